"""PyTorch, on the CPU or on CUDA, with as many threads as Numba has.

Gradients of the sparse and dense layers are written by hand; those of its own cross-entropy come from its autograd.
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
        raise Unavailable("this PyTorch has no CUDA")
    torch.set_num_threads(numba.get_num_threads())
    return torch


def csr_forward(x, layer):
    """Scores (B, L) by a CSR product in the fastest of its layouts, columns sorted; xt (H, B) is made beforehand.

    ``mm(w, xt, out=)`` and ``mm(w, x.t(), out=)`` give (L, B), returned as a view; ``x @ w.t()`` gives (B, L).
    """
    torch = _torch(layer.device)
    matrix, runs = matrix_of(layer), {}
    rows = torch.as_tensor(x, device=layer.device)
    columns, out = rows.t().contiguous(), torch.empty((layer.n_labels, len(x)), device=layer.device)
    for dtype in (torch.int32, torch.int64):
        parts = torch.from_numpy(matrix.indptr).to(dtype), torch.from_numpy(matrix.indices).to(dtype)
        with warnings.catch_warnings(action="ignore"):  # "CSR support is in beta"
            w = torch.sparse_csr_tensor(*parts, torch.from_numpy(matrix.data), matrix.shape).to(layer.device)
        name = str(dtype).removeprefix("torch.")
        runs[f"mm(w, xt, out=), {name}"] = lambda w=w: torch.mm(w, columns, out=out).t()
        runs[f"mm(w, x.t(), out=), {name}"] = lambda w=w: torch.mm(w, rows.t(), out=out).t()
        runs[f"x @ w.t(), {name}"] = lambda w=w: rows @ w.t()
    best = fastest(runs)
    return Peer(runs[best], best)


def embedding_bag_forward(x, layer):
    """The same sums as weighted bags of the rows of xt (H, B), made beforehand; gives (L, B), returned as a view."""
    torch = _torch(layer.device)
    columns = torch.as_tensor(x, device=layer.device).t().contiguous()
    indices, values = (torch.as_tensor(a, device=layer.device) for a in (layer.indices, layer.values))
    bag = torch.nn.functional.embedding_bag
    return Peer(lambda: bag(indices, columns, mode="sum", per_sample_weights=values).t(), "int32, allocates")


def gather_forward(x, layer):
    """The scores of a group-shared layer as PyTorch's user would write them: gather the groups' inputs, then bmm.

    The inputs of all groups are a (L / G, K, B) array; xt is made beforehand. Gives (L, B), returned as a view.
    """
    torch = _torch(layer.device)
    indices, values = (torch.as_tensor(a, device=layer.device) for a in (layer.indices.astype(np.int64), layer.values))
    (n_groups, fan_in), group_size = indices.shape, layer.group_size
    if n_groups * group_size != layer.n_labels:
        raise Unavailable("the last group is not full")
    columns = torch.as_tensor(x, device=layer.device).t().contiguous()
    values, flat = values.reshape(n_groups, group_size, fan_in), indices.reshape(-1)
    gathered = torch.empty((len(flat), len(x)), device=layer.device)
    out = torch.empty((n_groups, group_size, len(x)), device=layer.device)

    def run():
        torch.index_select(columns, 0, flat, out=gathered)
        return torch.bmm(values, gathered.view(n_groups, fan_in, -1), out=out).view(layer.n_labels, -1).t()

    return Peer(run, "index_select and bmm into arrays made beforehand")


def dense_forward(x, n_labels, dtype="float32"):
    """The product of a dense layer into a preallocated array, all of a `dtype`; `arrays` are the weights."""
    device = device_of(x)
    torch = _torch(device)
    x = torch.as_tensor(x, device=device).to(getattr(torch, dtype))
    w, s = _dense(torch, x, n_labels)
    return Peer(lambda: torch.mm(x, w.t(), out=s), f"{dtype}, width {x.shape[1]}, into a preallocated array", (w,))


def _dense(torch, x, n_labels):
    generator = torch.Generator(device=x.device).manual_seed(0)
    w = torch.randn((n_labels, x.shape[1]), generator=generator, device=x.device).div_(x.shape[1]).to(x.dtype)
    return w, torch.empty((len(x), n_labels), dtype=x.dtype, device=x.device)


def dense_step(x, labels, n_labels, loss, learning_rate):
    """A dense layer's whole step: product, loss, gradients, fused Adam; scores and gradients in preallocated arrays.

    No bias and no autograd, both in its favour; the (B, L) scores become their own gradient in place.
    `arrays` are the weights and their gradient.
    """
    device = device_of(x)
    torch = _torch(device)
    x = torch.as_tensor(x, device=device)
    w, s = _dense(torch, x, n_labels)
    w.grad = torch.empty_like(w)
    adam = torch.optim.Adam([w.requires_grad_()], lr=learning_rate, fused=True)
    indptr, columns = (torch.as_tensor(a, device=device).long() for a in labels)
    rows, n_rows = torch.repeat_interleave(torch.arange(len(x), device=device), indptr.diff()), len(x)

    @torch.no_grad()
    def run():
        torch.mm(x, w.t(), out=s)
        positive = s[rows, columns]
        if loss == "squared-hinge":
            s.add_(1).clamp_(min=0)
            total = torch.linalg.vector_norm(s, dim=1).square().sum() - (1 + positive).clamp(min=0).square().sum()
            total += (1 - positive).clamp(min=0).square().sum()
            s[rows, columns] = -(1 - positive).clamp(min=0)
            s.mul_(2 / n_rows)
        else:
            total = torch.nn.functional.softplus(s).sum() - positive.sum()
            s.sigmoid_()
            s[rows, columns] -= 1
            s.div_(n_rows)
        torch.mm(s.t(), x, out=w.grad)
        dx = s @ w
        adam.step()
        return float(total) / n_rows, dx

    return Peer(run, f"width {x.shape[1]}, gradients by hand, fused Adam", (w.detach(), w.grad))


def dense_top_k(x, n_labels, k):
    """Dense product into a preallocated array, then topk; `arrays` are the weights."""
    device = device_of(x)
    torch = _torch(device)
    x = torch.as_tensor(x, device=device)
    w, s = _dense(torch, x, n_labels)
    return Peer(lambda: torch.topk(torch.mm(x, w.t(), out=s), k), f"width {x.shape[1]}, mm and topk", (w,))


def differentiated(loss_of, arrays, targets, dtype):
    """``run()`` gives ``loss_of(*leaves, targets)`` and, by autograd, its gradients by the leaves: copies of the arrays."""
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
    """``F.cross_entropy(F.linear(h, w, bias), targets)`` and its backward pass by autograd; returns loss and gradients."""
    device = device_of(h)
    torch = _torch(device)
    needed = 3 * getattr(torch, dtype).itemsize * h.shape[0] * w.shape[0]  # logits, their log-softmax, the gradient
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    if free is not None and needed > free:
        raise Unavailable(f"its (B, L) arrays take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
    functional = torch.nn.functional

    def loss_of(h, w, bias, classes):
        return functional.cross_entropy(functional.linear(h, w, bias), classes)

    run = differentiated(loss_of, (h, w, bias), targets, dtype)
    return Peer(run, f"{dtype}, F.cross_entropy of F.linear, autograd")


def full_softmax_step(h, w, targets, kind, learning_rate):
    """The step of a full softmax: ``h @ w.t()``, cross-entropy, gradients, fused `kind` ("Adam" or "SGD") on all of w.

    The faster of two forms: autograd, and by hand in a preallocated (B, L) array, where the logits become their own
    gradient. w is copied. `run` gives the loss and the gradient by h.
    """
    device = device_of(h)
    torch = _torch(device)
    h, w, targets = (torch.as_tensor(a, device=device).clone() for a in (h, w, targets))
    targets, rows, n_rows = targets.long(), torch.arange(len(h), device=device), len(h)
    w.requires_grad_().grad = torch.empty_like(w)
    optimizer = getattr(torch.optim, kind)([w], lr=learning_rate, fused=True)
    held = []  # the logits, once the form by hand is tried

    @torch.no_grad()
    def by_hand():
        if not held:
            held.append(torch.empty((n_rows, len(w)), device=device))
        s = torch.mm(h, w.t(), out=held[0])
        positive = s[rows, targets]
        largest = s.amax(dim=1, keepdim=True)
        sums = s.sub_(largest).exp_().sum(dim=1, keepdim=True)
        loss = (sums.log() + largest).mean() - positive.mean()
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
        held.clear()
    return Peer(runs[best], f"{best}, fused {kind}", (w.detach(),))


def _stacked(torch, layers, device):
    """`torch.nn.LSTM` of layers (weights (D, 4H), recurrent (H, 4H), bias (4H,)), NumPy arrays, gates as i, f, g, o."""
    torch.backends.cudnn.allow_tf32 = False  # as exact as ours
    network = torch.nn.LSTM(layers[0][0].shape[0], len(layers[0][1]), len(layers), device=device)
    parameters = list(network.parameters())  # of each layer: weights, recurrent, and a bias for each of the two
    with torch.no_grad():
        for i, (weights, recurrent, bias) in enumerate(layers):
            for parameter, value in zip(parameters[4 * i :], (weights.T, recurrent.T, bias, 0 * bias), strict=False):
                parameter.copy_(torch.as_tensor(value))
    return network


def lstm(x, dout, layers, device):
    """``torch.nn.LSTM`` of several layers and its backward pass by autograd; NumPy arrays as `bench.lstm` makes them.

    `run` gives all h, the gradient by x, and of each layer those by weights, recurrent and bias, turned to our layout.
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
    """Let the process keep memory that is freed: PyTorch's large arrays cost more in fresh pages than in arithmetic."""
    with contextlib.suppress(OSError, AttributeError):  # glibc alone
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no maps of their own for large arrays
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def language_step(tokens, targets, table, bias, layers, clip, learning_rate):
    """A language model's whole step: embedding, LSTM layers, full softmax with tied weights, autograd, clipping, fused Adam.

    tokens, targets (T, B); table (L, H), bias (L,) of the words; `layers` as for `lstm`. The softmax goes over some
    rows at a time, 2^24 or 2^26 logits, whichever is faster, and freed memory is kept. `run` returns the loss before
    the step.
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
            for some, wanted in zip(rows_of_h.split(rows), targets.split(rows), strict=True):
                logits = functional.linear(some, own, own_bias)
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


def top_k(rows):
    """The full softmax' best: a product with all rows (L, d), then topk; the logits lie in memory that is kept."""
    torch = _torch("cpu")
    w, kept = torch.as_tensor(rows).t(), {}

    def answer(h, k):
        if len(h) not in kept:
            kept[len(h)] = torch.empty((len(h), len(rows)))
        logits = torch.mm(torch.from_numpy(h), w, out=kept[len(h)])
        return torch.topk(logits, k).indices.numpy()

    return answer


def adaptive_softmax(
    rows, counts, contexts, path, *, shares=(0.8, 0.95), epochs=1, batch_size=1024, learning_rate=3e-4
):
    """``AdaptiveLogSoftmaxWithLoss`` trained on contexts; the best classes by its `log_prob`, and multiply-adds of a query.

    The most frequent classes, which together make up the first of `shares` of all that occur, are the head; those up to
    the second share the first cluster, of a quarter of the width, the others the second, of a sixteenth. It starts from
    the trained rows (L, d) - of a cluster, their best approximation of its width - and is trained by Adam, whose rate
    falls linearly to a tenth: the settings that gave the best top-1 of those tried. `contexts` are ``(h, targets)``; of
    several labels of a context, each is one target. The weights are kept at `path`, and read where they are there.
    """
    torch = _torch("cpu")
    order = np.argsort(-counts, kind="stable")  # the layer wants classes by frequency
    reached = np.cumsum(counts[order]) / counts.sum()
    cutoffs = [int(np.searchsorted(reached, share)) + 1 for share in shares]
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(rows.shape[1], len(rows), cutoffs)
    if path.exists():
        layer.load_state_dict(torch.load(path))
    else:
        _from_rows(torch, layer, rows[order], cutoffs)
        _train(torch, layer, contexts, np.argsort(order), epochs, batch_size, learning_rate)
        torch.save(layer.state_dict(), path)
    classes = torch.as_tensor(order)

    @torch.no_grad()
    def answer(h, k):
        return classes[torch.topk(layer.log_prob(torch.from_numpy(h)), k).indices].numpy()

    return answer, sum(p.numel() for p in layer.parameters())


def _from_rows(torch, layer, rows, cutoffs):
    """Head and clusters from the rows of a full softmax, in the layer's order; a cluster's own logit begins at its mean row."""
    rows = torch.as_tensor(rows)
    parts = rows[cutoffs[0] :].tensor_split([n - cutoffs[0] for n in cutoffs[1:]])
    with torch.no_grad():
        layer.head.weight.copy_(torch.cat([rows[: cutoffs[0]], *(part.mean(dim=0, keepdim=True) for part in parts)]))
        for (narrow, wide), part in zip(layer.tail, parts, strict=True):
            u, sizes, v = torch.linalg.svd(part, full_matrices=False)
            width = len(narrow.weight)
            narrow.weight.copy_(v[:width])
            wide.weight.copy_(u[:, :width] * sizes[:width])


def _train(torch, layer, contexts, places, epochs, batch_size, learning_rate):
    """Adam on the layer's own loss; `places` are those of the classes in the layer's order."""
    h, targets = contexts
    rows = np.arange(len(h))
    if scipy.sparse.issparse(targets):
        rows, targets = targets.nonzero()
    adam, random = torch.optim.Adam(layer.parameters(), lr=learning_rate, fused=True), np.random.default_rng(0)
    n_steps = epochs * -(-len(rows) // batch_size)
    bar = tqdm(total=n_steps, unit="step", desc="adaptive softmax")
    for _ in range(epochs):
        order = random.permutation(len(rows))
        for first in range(0, len(rows), batch_size):
            some = order[first : first + batch_size]
            adam.param_groups[0]["lr"] = learning_rate * (1 - 0.9 * bar.n / n_steps)
            x = torch.from_numpy(np.asarray(h[rows[some]], np.float32))
            adam.zero_grad()
            layer(x, torch.from_numpy(places[targets[some]])).loss.backward()
            adam.step()
            bar.update()
    bar.close()
