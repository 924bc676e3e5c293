"""PyTorch on the CPU or on CUDA, with the same number of threads as Numba.

Gradients of sparse and dense layers are written by hand, which is faster; those of PyTorch's cross-entropy use
autograd.
"""

import contextlib
import ctypes
import warnings

import numba
import numpy as np
import scipy.sparse
from tqdm import tqdm

from sparsemax_nb.internals import SIMULATOR, device_of

from ..machine import free_memory
from ..timing import fastest
from . import Peer, Unavailable
from .scipy_csr import matrix_of


def _torch(device):
    try:
        import torch
    except ImportError:
        raise Unavailable("PyTorch is not installed") from None
    if device == "cuda" and (SIMULATOR or not torch.cuda.is_available()):
        raise Unavailable("PyTorch has no CUDA device")
    torch.set_num_threads(numba.get_num_threads())
    return torch


def csr_forward(h, layer):
    """Scores (B, L) by a CSR product in the fastest of several layouts; ht (H, B) is made in advance.

    ``mm(w, ht, out=)`` and ``mm(w, h.t(), out=)`` return (L, B) as a view; ``h @ w.t()`` returns (B, L).
    """
    torch = _torch(layer.device)
    matrix, runs = matrix_of(layer), {}
    rows = torch.as_tensor(h, device=layer.device)
    columns, out = rows.t().contiguous(), torch.empty((layer.n_labels, len(h)), device=layer.device)
    for dtype in (torch.int32, torch.int64):
        parts = torch.from_numpy(matrix.indptr).to(dtype), torch.from_numpy(matrix.indices).to(dtype)
        with warnings.catch_warnings(action="ignore"):  # "CSR support is in beta"
            w = torch.sparse_csr_tensor(*parts, torch.from_numpy(matrix.data), matrix.shape).to(layer.device)
        name = str(dtype).removeprefix("torch.")
        runs[f"mm(w, ht, out=), {name}"] = lambda w=w: torch.mm(w, columns, out=out).t()
        runs[f"mm(w, h.t(), out=), {name}"] = lambda w=w: torch.mm(w, rows.t(), out=out).t()
        runs[f"h @ w.t(), {name}"] = lambda w=w: rows @ w.t()
    best = fastest(runs)
    return Peer(runs[best], best)


def embedding_bag_forward(h, layer):
    """The same scores as weighted sums of rows of ht (H, B), which is made in advance; returns a view of (L, B)."""
    torch = _torch(layer.device)
    columns = torch.as_tensor(h, device=layer.device).t().contiguous()
    indices, values = (torch.as_tensor(a, device=layer.device) for a in (layer.indices, layer.values))
    bag = torch.nn.functional.embedding_bag
    return Peer(lambda: bag(indices, columns, mode="sum", per_sample_weights=values).t(), "int32, allocates")


def gather_forward(h, layer):
    """Scores of a group-shared layer as a PyTorch user would write them: gather the inputs of the groups, then bmm.

    The gathered inputs are an (L / G, K, B) array; ht is made in advance. Returns a view of (L, B).
    """
    torch = _torch(layer.device)
    indices, values = (torch.as_tensor(a, device=layer.device) for a in (layer.indices.astype(np.int64), layer.values))
    (n_groups, fan_in), group_size = indices.shape, layer.group_size
    if n_groups * group_size != layer.n_labels:
        raise Unavailable("the last group is incomplete")
    columns = torch.as_tensor(h, device=layer.device).t().contiguous()
    values, flat = values.reshape(n_groups, group_size, fan_in), indices.reshape(-1)
    gathered = torch.empty((len(flat), len(h)), device=layer.device)
    out = torch.empty((n_groups, group_size, len(h)), device=layer.device)

    def run():
        torch.index_select(columns, 0, flat, out=gathered)
        return torch.bmm(values, gathered.view(n_groups, fan_in, -1), out=out).view(layer.n_labels, -1).t()

    return Peer(run, "index_select and bmm into preallocated arrays")


def dense_forward(h, n_labels, dtype="float32"):
    """The product of a dense layer into a preallocated array, in one dtype; `arrays` are the weights."""
    device = device_of(h)
    torch = _torch(device)
    h = torch.as_tensor(h, device=device).to(getattr(torch, dtype))
    w, s = _dense(torch, h, n_labels)
    return Peer(lambda: torch.mm(h, w.t(), out=s), f"{dtype}, width {h.shape[1]}, into a preallocated array", (w,))


def _dense(torch, h, n_labels):
    generator = torch.Generator(device=h.device).manual_seed(0)
    w = torch.randn((n_labels, h.shape[1]), generator=generator, device=h.device).div_(h.shape[1]).to(h.dtype)
    return w, torch.empty((len(h), n_labels), dtype=h.dtype, device=h.device)


def dense_step(h, labels, n_labels, loss, learning_rate):
    """A training step of a dense layer: product, loss, gradients, fused Adam; with preallocated scores and gradients.

    It has no bias and does not use autograd, which makes it faster. The scores (B, L) are overwritten with their
    gradient. `arrays` are the weights and their gradient.
    """
    device = device_of(h)
    torch = _torch(device)
    h = torch.as_tensor(h, device=device)
    w, s = _dense(torch, h, n_labels)
    w.grad = torch.empty_like(w)
    adam = torch.optim.Adam([w.requires_grad_()], lr=learning_rate, fused=True)
    indptr, columns = (torch.as_tensor(a, device=device).long() for a in labels)
    rows, n_rows = torch.repeat_interleave(torch.arange(len(h), device=device), indptr.diff()), len(h)

    @torch.no_grad()
    def run():
        torch.mm(h, w.t(), out=s)
        of_labels = s[rows, columns]
        if loss == "squared-hinge":
            s.add_(1).clamp_(min=0)
            total = torch.linalg.vector_norm(s, dim=1).square().sum() - (1 + of_labels).clamp(min=0).square().sum()
            total += (1 - of_labels).clamp(min=0).square().sum()
            s[rows, columns] = -(1 - of_labels).clamp(min=0)
            s.mul_(2 / n_rows)
        else:
            total = torch.nn.functional.softplus(s).sum() - of_labels.sum()
            s.sigmoid_()
            s[rows, columns] -= 1
            s.div_(n_rows)
        torch.mm(s.t(), h, out=w.grad)
        dh = s @ w
        adam.step()
        return float(total) / n_rows, dh

    return Peer(run, f"width {h.shape[1]}, gradients by hand, fused Adam", (w.detach(), w.grad))


def dense_top_k(h, n_labels, k):
    """A dense product into a preallocated array, then topk; `arrays` are the weights."""
    device = device_of(h)
    torch = _torch(device)
    h = torch.as_tensor(h, device=device)
    w, s = _dense(torch, h, n_labels)
    return Peer(lambda: torch.topk(torch.mm(h, w.t(), out=s), k), f"width {h.shape[1]}, mm and topk", (w,))


def differentiated(loss_of, arrays, targets, dtype):
    """A function that returns ``loss_of(*leaves, targets)`` and its gradients; the leaves are copies of the arrays."""
    device = device_of(targets)
    torch = _torch(device)
    leaves = [torch.as_tensor(a, device=device).to(getattr(torch, dtype), copy=True).requires_grad_() for a in arrays]
    classes = torch.as_tensor(targets, device=device).long()

    def run():
        loss = loss_of(*leaves, classes)
        loss.backward()
        gradients = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return loss.item(), *gradients

    return run


def cross_entropy(h, w, bias, targets, dtype="float32"):
    """``F.cross_entropy(F.linear(h, w, bias), targets)`` and its backward pass by autograd: loss and gradients."""
    device = device_of(h)
    torch = _torch(device)
    needed = 3 * getattr(torch, dtype).itemsize * h.shape[0] * w.shape[0]  # logits, their log-softmax, the gradient
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    if free is not None and needed > free:
        raise Unavailable(f"its (B, L) arrays need {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free")
    functional = torch.nn.functional

    def loss_of(h, w, bias, classes):
        return functional.cross_entropy(functional.linear(h, w, bias), classes)

    run = differentiated(loss_of, (h, w, bias), targets, dtype)
    return Peer(run, f"{dtype}, F.cross_entropy of F.linear, autograd")


def full_softmax_step(h, w, targets, kind, learning_rate):
    """A training step of a full softmax: ``h @ w.t()``, cross-entropy, gradients, fused `kind` ("Adam" or "SGD") on w.

    Uses the faster of two versions: autograd, and gradients by hand with a preallocated (B, L) array, in which the
    logits are overwritten with their gradient. w is copied. `run` returns the loss and dh.
    """
    device = device_of(h)
    torch = _torch(device)
    h, w, targets = (torch.as_tensor(a, device=device).clone() for a in (h, w, targets))
    targets, rows, n_rows = targets.long(), torch.arange(len(h), device=device), len(h)
    w.requires_grad_().grad = torch.empty_like(w)
    optimizer = getattr(torch.optim, kind)([w], lr=learning_rate, fused=True)
    logits = []  # allocated when the version by hand is tried

    @torch.no_grad()
    def by_hand():
        if not logits:
            logits.append(torch.empty((n_rows, len(w)), device=device))
        s = torch.mm(h, w.t(), out=logits[0])
        of_targets = s[rows, targets]
        largest = s.amax(dim=1, keepdim=True)
        sums = s.sub_(largest).exp_().sum(dim=1, keepdim=True)
        loss = (sums.log() + largest).mean() - of_targets.mean()
        s.div_(sums * n_rows)
        s[rows, targets] -= 1 / n_rows
        torch.mm(s.t(), h, out=w.grad)
        dh = s @ w
        optimizer.step()
        return float(loss), dh

    def autograd():
        optimizer.zero_grad(set_to_none=True)
        x = h.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(x @ w.t(), targets)
        loss.backward()
        optimizer.step()
        return float(loss.detach()), x.grad

    runs = {"autograd": autograd, "by hand": by_hand}
    best = fastest(runs, tries=1)
    if best == "autograd":
        logits.clear()
    return Peer(runs[best], f"{best}, fused {kind}", (w.detach(),))


def _stacked(torch, layers, device):
    """`torch.nn.LSTM` from layers (weights (D, 4H), recurrent (H, 4H), bias (4H,)); gates i, f, g, o."""
    torch.backends.cudnn.allow_tf32 = False  # the same precision as ours
    network = torch.nn.LSTM(layers[0][0].shape[0], len(layers[0][1]), len(layers), device=device)
    parameters = list(network.parameters())  # per layer: weights, recurrent, and a bias for each of them
    with torch.no_grad():
        for i, (weights, recurrent, bias) in enumerate(layers):
            for parameter, value in zip(parameters[4 * i :], (weights.T, recurrent.T, bias, 0 * bias), strict=False):
                parameter.copy_(torch.as_tensor(value))
    return network


def lstm(x, dout, layers, device):
    """``torch.nn.LSTM`` with several layers, and its backward pass; the arguments are those of `bench.lstm`.

    `run` returns all h, dx, and the gradients of weights, recurrent and bias of each layer, in our layout.
    """
    torch = _torch(device)
    network = _stacked(torch, layers, device)
    parameters = list(network.parameters())
    x, dout = (torch.as_tensor(a, device=device) for a in (x, dout))
    x.requires_grad_()

    def run():
        out, _ = network(x)
        out.backward(dout)
        gradients = [p.grad.t() if p.ndim == 2 else p.grad for i, p in enumerate(parameters) if i % 4 < 3]
        dx, x.grad = x.grad, None
        for parameter in parameters:
            parameter.grad = None
        return out, dx, *gradients

    return Peer(run, f"float32, torch.nn.LSTM(num_layers={len(layers)}), autograd")


def _keep_memory():
    """Let the process keep freed memory: new pages for large arrays cost PyTorch more time than arithmetic."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings for large arrays
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def language_step(tokens, targets, table, bias, layers, clip, learning_rate):
    """A training step of a language model: embedding, LSTM, tied full softmax, autograd, clipping, fused Adam.

    tokens and targets are (T, B); table (L, H) and bias (L,) belong to the words; `layers` as for `lstm`. The softmax
    is computed in chunks of 2^24 or 2^26 logits, whichever is faster, and freed memory is kept. `run` returns the loss
    before the step.
    """
    device = device_of(table)
    torch = _torch(device)
    if device == "cpu":
        _keep_memory()
    functional = torch.nn.functional
    tokens, targets = (torch.as_tensor(a, device=device).long() for a in (tokens, targets))
    targets = targets.flatten()

    def prepared(n_logits):
        own, own_bias = (torch.nn.Parameter(torch.as_tensor(a, device=device).clone()) for a in (table, bias))
        stack, rows = _stacked(torch, layers, device), max(1, n_logits // len(table))
        parameters = [own, own_bias, *stack.parameters()]
        adam = torch.optim.Adam(parameters, lr=learning_rate, fused=True)

        def run():
            h, _ = stack(functional.embedding(tokens, own))
            h, total = h.flatten(0, 1), 0.0
            rows_of_h = h.detach().requires_grad_()
            adam.zero_grad()
            for part, wanted in zip(rows_of_h.split(rows), targets.split(rows), strict=True):
                logits = functional.linear(part, own, own_bias)
                loss = functional.cross_entropy(logits, wanted, reduction="sum") / len(targets)
                loss.backward()
                total += loss.item()
            h.backward(rows_of_h.grad)
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            adam.step()
            return total

        return run

    best = int(fastest({str(n): prepared(n) for n in (1 << 24, 1 << 26)}, tries=1))
    return Peer(prepared(best), f"float32, full softmax of {best >> 20} Mi logits at a time, autograd, fused Adam")


def top_k(weights):
    """Top-k of the full softmax: a product with all weights (L, d), then topk; reuses the array of logits."""
    torch = _torch("cpu")
    w, kept = torch.as_tensor(weights).t(), {}

    def answer(h, k):
        if len(h) not in kept:
            kept[len(h)] = torch.empty((len(h), len(weights)))
        logits = torch.mm(torch.from_numpy(h), w, out=kept[len(h)])
        return torch.topk(logits, k).indices.numpy()

    return answer


def adaptive_softmax(
    weights, counts, training, path, *, shares=(0.8, 0.95), epochs=1, batch_size=1024, learning_rate=3e-4
):
    """Train ``AdaptiveLogSoftmaxWithLoss``; returns a function for the best classes, and the multiply-adds of a query.

    The head contains the most frequent classes, up to the first of `shares` of all occurrences. Classes up to the
    second share are the first cluster, with a quarter of the width; the rest is the second, with a sixteenth. The layer
    is initialized with the trained weights (L, d), and clusters with their best approximation of that width. Then it is
    trained by Adam with a learning rate that decreases linearly to a tenth. Of the settings that were tried, these gave
    the best top-1. `training` is ``(h, targets)``; with several labels per row, each is one target. The weights are
    stored at `path`, and loaded if it exists.
    """
    torch = _torch("cpu")
    order = np.argsort(-counts, kind="stable")  # the layer needs classes in order of frequency
    reached = np.cumsum(counts[order]) / counts.sum()
    cutoffs = [int(np.searchsorted(reached, share)) + 1 for share in shares]
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(weights.shape[1], len(weights), cutoffs)
    if path.exists():
        layer.load_state_dict(torch.load(path))
    else:
        _initialize(torch, layer, weights[order], cutoffs)
        _train(torch, layer, training, np.argsort(order), epochs, batch_size, learning_rate)
        torch.save(layer.state_dict(), path)
    classes = torch.as_tensor(order)

    @torch.no_grad()
    def answer(h, k):
        return classes[torch.topk(layer.log_prob(torch.from_numpy(h)), k).indices].numpy()

    return answer, sum(p.numel() for p in layer.parameters())


def _initialize(torch, layer, rows, cutoffs):
    """Initialize from the rows of a full softmax, in the layer's order; a cluster's logit starts at its mean row."""
    rows = torch.as_tensor(rows)
    parts = rows[cutoffs[0] :].tensor_split([n - cutoffs[0] for n in cutoffs[1:]])
    with torch.no_grad():
        layer.head.weight.copy_(torch.cat([rows[: cutoffs[0]], *(part.mean(dim=0, keepdim=True) for part in parts)]))
        for (narrow, wide), part in zip(layer.tail, parts, strict=True):
            u, sizes, v = torch.linalg.svd(part, full_matrices=False)
            width = len(narrow.weight)
            narrow.weight.copy_(v[:width])
            wide.weight.copy_(u[:, :width] * sizes[:width])


def _train(torch, layer, training, positions, epochs, batch_size, learning_rate):
    """Train with Adam and the loss of the layer; `positions` are the indices of the classes in the layer's order."""
    h, targets = training
    rows = np.arange(len(h))
    if scipy.sparse.issparse(targets):
        rows, targets = targets.nonzero()
    adam, random = torch.optim.Adam(layer.parameters(), lr=learning_rate, fused=True), np.random.default_rng(0)
    n_steps = epochs * -(-len(rows) // batch_size)
    bar = tqdm(total=n_steps, unit="step", desc="adaptive softmax")
    for _ in range(epochs):
        order = random.permutation(len(rows))
        for first in range(0, len(rows), batch_size):
            batch = order[first : first + batch_size]
            adam.param_groups[0]["lr"] = learning_rate * (1 - 0.9 * bar.n / n_steps)
            x = torch.from_numpy(np.asarray(h[rows[batch]], np.float32))
            adam.zero_grad()
            layer(x, torch.from_numpy(positions[targets[batch]])).loss.backward()
            adam.step()
            bar.update()
    bar.close()
