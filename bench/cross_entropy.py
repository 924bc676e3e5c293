"""How fast, how exact and how frugal is the full softmax loss? ``python -m bench.cross_entropy`` (README.md says how)."""

import functools

import ml_dtypes
import numpy as np

from sparsemax_nb import softmax_cross_entropy
from sparsemax_nb.internals import asarray, to_numpy

from . import harness, machine, tables, timing
from .peers import Unavailable, fused_losses, pytorch

SIZES = {
    "rows": (1_024, 48), "width": (256, 16), "classes": (32_768, 300), "large_rows": (8_192, 64),
    "large_classes": (128_000, 500),
}  # fmt: skip
NAMES = "dh", "dw", "dbias"
SOME = 100  # rows and classes whose gradients are checked at the large size
BLOCK = 1 << 24  # logits that a check holds
CUT = "Cut Cross-Entropy, bfloat16"
#: By how much the loss may be off, relative to it, and gradients, relative to their largest number; of rivals that
#: round logits and gradients to bfloat16, and of the one that adds up its gradients in bfloat16, block by block.
EXACT, ROUNDED, SUMMED = (1e-5, 1e-4), (1e-2, 0.05), (1e-2, 0.15)


def problem(n_rows, width, n_classes):
    """Inputs h, w, bias (NumPy) whose softmax is neither flat nor a single class; targets."""
    rng = np.random.default_rng(0)
    h, w = (rng.standard_normal((n, width), dtype=np.float32) for n in (n_rows, n_classes))
    w *= np.float32(2 / np.sqrt(width))
    return h, w, rng.standard_normal(n_classes, dtype=np.float32), rng.integers(0, n_classes, n_rows).astype(np.int32)


def _blocks(h, w, bias, dtype):
    """(slice of rows, their logits)."""
    w, bias, at_once = w.T.astype(dtype), bias.astype(dtype), max(1, BLOCK // len(w))
    for first in range(0, len(h), at_once):
        rows = slice(first, first + at_once)
        yield rows, h[rows].astype(dtype) @ w + bias


def exact(h, w, bias, targets):
    """Loss and all gradients in float64."""
    loss, dh, dw, dbias = 0.0, np.zeros(h.shape), np.zeros(w.shape), np.zeros(len(w))
    for rows, p in _blocks(h, w, bias, np.float64):
        places = np.arange(len(p)), targets[rows]
        p -= _log_z(p)[:, None]
        loss -= p[places].sum()
        np.exp(p, out=p)
        p[places] -= 1
        p /= len(h)
        dh[rows], dbias = p @ w.astype(np.float64), dbias + p.sum(0)
        dw += p.T @ h[rows].astype(np.float64)
    return loss / len(h), dh, dw, dbias


def _log_z(logits):
    """Logarithm of the sum of their exponentials, row by row, added in float64."""
    largest = logits.max(1)
    return np.log(np.exp(logits - largest[:, None]).sum(1, dtype=np.float64)) + largest


def checker(h, w, bias, targets):
    """A check of the loss and of some rows and classes of the gradients, for sizes at which float64 takes too long."""
    log_z = np.concatenate([_log_z(logits) for _, logits in _blocks(h, w, bias, np.float32)])
    loss = (log_z - np.einsum("bd,bd->b", h, w[targets], dtype=np.float64) - bias[targets]).mean()
    rows, classes = (np.unique(np.linspace(0, len(a) - 1, SOME).astype(int)) for a in (h, w))

    def gradient(some_h, some_w, some_bias, some_log_z, hits):
        return (np.exp(some_h @ some_w.T.astype(np.float64) + some_bias - some_log_z[:, None]) - hits) / len(h)

    by_class = gradient(h, w[classes], bias[classes], log_z, targets[:, None] == classes)
    by_row = gradient(h[rows], w, bias, log_z[rows], targets[rows, None] == np.arange(len(w)))
    wanted = by_row @ w, by_class.T @ h, by_class.sum(0)

    def check(result, tolerance=EXACT):
        some = [None if g is None else g[i] for g, i in zip(result[1:], (rows, classes, classes), strict=True)]
        require_close((result[0], *some), (loss, *wanted), tolerance)

    return check


def require_close(result, wanted, tolerance=EXACT):
    """Loss and gradients to the two tolerances; a gradient that is None was not asked for."""
    loss, want = result[0], wanted[0]
    timing.require(abs(loss - want) <= tolerance[0] * abs(want), f"the loss is {loss}, not {want}")
    for name, got, want in zip(NAMES, result[1:], wanted[1:], strict=True):
        if got is not None:
            timing.require_close(name, got, want, tolerance[1])


def on_host(result):
    """(loss, gradients as NumPy arrays), whoever computed them; None stays."""
    loss, *gradients = result
    gradients = [g.float().cpu() if hasattr(g, "cpu") else g for g in gradients]  # PyTorch's; NumPy knows no bfloat16
    return float(loss), *(None if g is None else to_numpy(g) for g in gradients)


def rounded(a):
    """The nearest bfloat16 numbers, as float32."""
    return a.astype(ml_dtypes.bfloat16).astype(np.float32)


def kind_of(name):
    """Whether a contestant computes with inputs in bfloat16, and whether with a bias."""
    return "bfloat16" in name, name != CUT


def inputs_of(arrays, is_narrow, has_bias):
    """`arrays` (h, w, bias, targets in NumPy) as contestants of a kind compute with them."""
    h, w, bias, targets = arrays
    if is_narrow:
        h, w, bias = map(rounded, (h, w, bias))
    return h, w, bias if has_bias else np.zeros_like(bias), targets


def contestants_of(arrays, check_of, device):
    """Ours, PyTorch and, on CUDA, their rivals; ``check_of(*kind)`` gives check(result, tolerance)."""
    h, w, bias, targets = (asarray(a, device) for a in arrays)

    def checked(name, tolerance=EXACT):
        return lambda result: check_of(*kind_of(name))(on_host(result), tolerance)

    def ours(name, h, w, bias):
        run = functools.partial(softmax_cross_entropy, h, w, targets, bias)
        return timing.Contestant(run, checked(name), f"inputs {h.dtype}, gradients float32")

    contestants, narrow = {"ours": ours("ours", h, w, bias)}, "ours, bfloat16"
    try:
        inputs = [asarray(a.astype(ml_dtypes.bfloat16), device) for a in arrays[:3]]
        contestants[narrow] = ours(narrow, *inputs)
    except (TypeError, ValueError) as problem:
        contestants[narrow] = Unavailable(f"no bfloat16 arrays on {device}: {problem}")  # an older CuPy
    rivals = {"PyTorch": (EXACT, pytorch.cross_entropy, h, w, bias, targets)}
    if device == "cuda":
        rivals["PyTorch, bfloat16"] = ROUNDED, pytorch.cross_entropy, h, w, bias, targets, "bfloat16"
        rivals["Liger"] = EXACT, fused_losses.liger, h, w, bias, targets, "float32"
        rivals["Liger, bfloat16"] = ROUNDED, fused_losses.liger, h, w, bias, targets, "bfloat16"
        rivals[CUT] = SUMMED, fused_losses.cut_cross_entropy, h, w, targets
    for name, (tolerance, *prepare) in rivals.items():
        contestants[name] = harness.offer(checked(name, tolerance), *prepare)
    return contestants


def memory_of(contestants, timings, sizes, device):
    """Inputs and gradients, and what a call takes beyond them."""
    n_rows, width, n_classes = sizes
    numbers, memory = (n_rows + n_classes) * width + n_classes, {}
    for name in timings:
        with machine.memory_growth(device) as growth:
            result = contestants[name].run()
        gradients = sum(g.nbytes for g in result[1:] if g is not None)
        del result
        beyond = None if growth["bytes"] is None else max(0, growth["bytes"] - gradients)
        memory[name] = {"held": (2 if "bfloat16" in name else 4) * numbers + gradients, "growth": beyond}
    return memory


def row_of(args, sizes, contestants, **options):
    """One comparison: time and memory."""
    n_rows, width, n_classes = sizes
    timings = harness.race(contestants, args, **options)
    numbers = (n_rows + n_classes) * width + n_classes
    work = {
        "multiply-adds of three products": (6 * n_rows * width * n_classes, "flops"),
        "memory: inputs read, gradients written": (8 * numbers, "dram_copy"),
    }
    return tables.make_row(
        "cross_entropy",
        dict(zip(("rows", "width", "classes"), sizes, strict=True)),
        contestants,
        timings,
        floor=harness.floor(args, work),
        memory=memory_of(contestants, timings, sizes, args.device),
        device=args.device,
    )


def accuracy_row(args, sizes, contestants, truth_of):
    """Errors against float64; ``truth_of(*kind)`` is what a contestant should find."""
    rows, figures = [], {}
    for name, contestant in contestants.items():
        if not isinstance(contestant, Unavailable):
            loss, *gradients = on_host(contestant.run())
            want_loss, *wanted = truth_of(*kind_of(name))
            errors = {"loss": abs(loss / want_loss - 1)}
            for key, got, want in zip(NAMES, gradients, wanted, strict=True):
                if got is not None:
                    error = got - want
                    errors[f"{key} max"] = float(np.abs(error).max() / np.abs(want).max())
                    errors[f"{key} rms"] = float(np.sqrt(np.square(error).mean() / np.square(want).mean()))
            figures[name] = errors
            rows.append([name, *(f"{errors[key]:.1e}" if key in errors else "-" for key in figures["ours"])])
    return {
        "benchmark": "cross_entropy: accuracy",
        "parameters": dict(zip(("rows", "width", "classes"), sizes, strict=True)) | {"device": args.device},
        "table": {"header": ["contestant", *figures["ours"]], "rows": rows},
        "notes": [
            "Against float64 on the same inputs: the error over the loss; the largest error over the largest number; rms error "
            "over rms."
        ],
        "figures": figures,
        "environment": machine.environment(args.device),
    }


def small(args):
    """The small size: everything is checked, and the errors are a table of their own."""
    sizes = args.rows, args.width, args.classes
    arrays = problem(*sizes)
    truth_of = functools.cache(lambda *kind: exact(*inputs_of(arrays, *kind)))

    def check_of(*kind):
        return lambda result, tolerance: require_close(result, truth_of(*kind), tolerance)

    contestants = contestants_of(arrays, check_of, args.device)
    yield row_of(args, sizes, contestants)
    yield accuracy_row(args, sizes, contestants, truth_of)


def large(args):
    """The large size, left out with --large-rows 0."""
    sizes = args.large_rows, args.width, args.large_classes
    arrays = problem(*sizes)
    check_of = functools.cache(lambda *kind: checker(*inputs_of(arrays, *kind)))
    contestants = contestants_of(arrays, check_of, args.device)
    slow = {"repeats": min(2, args.repeats), "warmup": 0} if args.device == "cpu" else {}  # a call takes many seconds
    yield row_of(args, sizes, contestants, **slow)


def main(argv=None):
    args = harness.arguments("cross_entropy", __doc__.partition("(")[0], SIZES, argv)
    parts = (small, large) if args.large_rows else (small,)
    return [harness.publish(args, row) for part in parts for row in part(args)]


if __name__ == "__main__":
    main()
