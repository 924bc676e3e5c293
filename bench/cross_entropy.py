"""How fast and exact is the full softmax loss, and how much memory does it take? ``python -m bench.cross_entropy``."""

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
#: Rows and classes whose gradients are checked at the large size.
N_CHECKED = 100
#: Logits that a check computes at the same time.
LOGITS_PER_BLOCK = 1 << 24
CUT = "Cut Cross-Entropy, bfloat16"
#: Tolerances of (the loss, relative to it; gradients, relative to their largest number).
EXACT = 1e-5, 1e-4
#: For competitors that round logits and gradients to bfloat16.
ROUNDED = 1e-2, 0.05
#: For the competitor that sums its gradients in bfloat16, block by block.
SUMMED = 1e-2, 0.15


def problem(n_rows, width, n_classes):
    """Random h, w, bias and targets (NumPy); the softmax is neither uniform nor concentrated on one class."""
    rng = np.random.default_rng(0)
    h, w = (rng.standard_normal((n, width), dtype=np.float32) for n in (n_rows, n_classes))
    w *= np.float32(2 / np.sqrt(width))
    return h, w, rng.standard_normal(n_classes, dtype=np.float32), rng.integers(0, n_classes, n_rows).astype(np.int32)


def _blocks(h, w, bias, dtype):
    """Yield (slice of rows, their logits)."""
    w, bias, n_rows = w.T.astype(dtype), bias.astype(dtype), max(1, LOGITS_PER_BLOCK // len(w))
    for first in range(0, len(h), n_rows):
        rows = slice(first, first + n_rows)
        yield rows, h[rows].astype(dtype) @ w + bias


def exact(h, w, bias, targets):
    """The loss and all gradients in float64."""
    loss, dh, dw, dbias = 0.0, np.zeros(h.shape), np.zeros(w.shape), np.zeros(len(w))
    for rows, p in _blocks(h, w, bias, np.float64):
        of_targets = np.arange(len(p)), targets[rows]
        p -= _log_z(p)[:, None]
        loss -= p[of_targets].sum()
        np.exp(p, out=p)
        p[of_targets] -= 1
        p /= len(h)
        dh[rows], dbias = p @ w.astype(np.float64), dbias + p.sum(0)
        dw += p.T @ h[rows].astype(np.float64)
    return loss / len(h), dh, dw, dbias


def _log_z(logits):
    """``log(sum(exp(logits)))`` per row, summed in float64."""
    largest = logits.max(1)
    return np.log(np.exp(logits - largest[:, None]).sum(1, dtype=np.float64)) + largest


def checker(h, w, bias, targets):
    """A check of the loss and of some rows and classes of the gradients, for sizes that are too large for `exact`."""
    log_z = np.concatenate([_log_z(logits) for _, logits in _blocks(h, w, bias, np.float32)])
    loss = (log_z - np.einsum("bd,bd->b", h, w[targets], dtype=np.float64) - bias[targets]).mean()
    rows, classes = (np.unique(np.linspace(0, len(a) - 1, N_CHECKED).astype(int)) for a in (h, w))

    def gradient(some_h, some_w, some_bias, some_log_z, hits):
        return (np.exp(some_h @ some_w.T.astype(np.float64) + some_bias - some_log_z[:, None]) - hits) / len(h)

    by_class = gradient(h, w[classes], bias[classes], log_z, targets[:, None] == classes)
    by_row = gradient(h[rows], w, bias, log_z[rows], targets[rows, None] == np.arange(len(w)))
    wanted = by_row @ w, by_class.T @ h, by_class.sum(0)

    def check(result, tolerance=EXACT):
        checked = [None if g is None else g[i] for g, i in zip(result[1:], (rows, classes, classes), strict=True)]
        require_close((result[0], *checked), (loss, *wanted), tolerance)

    return check


def require_close(result, wanted, tolerance=EXACT):
    """Check loss and gradients; a gradient that is None is skipped."""
    loss, want = result[0], wanted[0]
    timing.require(abs(loss - want) <= tolerance[0] * abs(want), f"the loss is {loss}, not {want}")
    for name, got, want in zip(NAMES, result[1:], wanted[1:], strict=True):
        if got is not None:
            timing.require_close(name, got, want, tolerance[1])


def on_host(result):
    """Loss and gradients as NumPy arrays, from any contestant; None stays None."""
    loss, *gradients = result
    gradients = [g.float().cpu() if hasattr(g, "cpu") else g for g in gradients]  # PyTorch: NumPy has no bfloat16
    return float(loss), *(None if g is None else to_numpy(g) for g in gradients)


def rounded(a):
    """Round to bfloat16; returns float32."""
    return a.astype(ml_dtypes.bfloat16).astype(np.float32)


def kind_of(name):
    """(whether the inputs of a contestant are bfloat16, whether it has a bias)."""
    return "bfloat16" in name, name != CUT


def inputs_of(arrays, is_narrow, has_bias):
    """Round `arrays` (h, w, bias, targets in NumPy) to bfloat16, and set the bias to zero, as the contestant does."""
    h, w, bias, targets = arrays
    if is_narrow:
        h, w, bias = map(rounded, (h, w, bias))
    return h, w, bias if has_bias else np.zeros_like(bias), targets


def contestants_of(arrays, check_of, device):
    """Ours, PyTorch and, on CUDA, fused losses; ``check_of(*kind)`` returns check(result, tolerance)."""
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
    competitors = {"PyTorch": (EXACT, pytorch.cross_entropy, h, w, bias, targets)}
    if device == "cuda":
        competitors["PyTorch, bfloat16"] = ROUNDED, pytorch.cross_entropy, h, w, bias, targets, "bfloat16"
        competitors["Liger"] = EXACT, fused_losses.liger, h, w, bias, targets, "float32"
        competitors["Liger, bfloat16"] = ROUNDED, fused_losses.liger, h, w, bias, targets, "bfloat16"
        competitors[CUT] = SUMMED, fused_losses.cut_cross_entropy, h, w, targets
    for name, (tolerance, *prepare) in competitors.items():
        contestants[name] = harness.offer(checked(name, tolerance), *prepare)
    return contestants


def memory_of(contestants, timings, sizes, device):
    """Bytes of inputs and gradients, and the additional memory of a call."""
    n_rows, width, n_classes = sizes
    numbers, memory = (n_rows + n_classes) * width + n_classes, {}
    for name in timings:
        with machine.memory_growth(device) as growth:
            result = contestants[name].run()
        gradients = sum(g.nbytes for g in result[1:] if g is not None)
        del result
        additional = None if growth["bytes"] is None else max(0, growth["bytes"] - gradients)
        memory[name] = {"held": (2 if "bfloat16" in name else 4) * numbers + gradients, "growth": additional}
    return memory


def row_of(args, sizes, contestants, **options):
    """Compare time and memory."""
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
    """Errors against float64; ``truth_of(*kind)`` is the exact result for the inputs of a contestant."""
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
            "Errors against float64 for the same inputs. Loss: relative error. Gradients: maximum error relative to "
            "the largest number, and rms error relative to the rms."
        ],
        "figures": figures,
        "environment": machine.environment(args.device),
    }


def small(args):
    """The small size: all numbers are checked, and a second table shows the errors."""
    sizes = args.rows, args.width, args.classes
    arrays = problem(*sizes)
    truth_of = functools.cache(lambda *kind: exact(*inputs_of(arrays, *kind)))

    def check_of(*kind):
        return lambda result, tolerance: require_close(result, truth_of(*kind), tolerance)

    contestants = contestants_of(arrays, check_of, args.device)
    yield row_of(args, sizes, contestants)
    yield accuracy_row(args, sizes, contestants, truth_of)


def large(args):
    """The large size; skipped with --large-rows 0."""
    sizes = args.large_rows, args.width, args.large_classes
    arrays = problem(*sizes)
    check_of = functools.cache(lambda *kind: checker(*inputs_of(arrays, *kind)))
    contestants = contestants_of(arrays, check_of, args.device)
    slow = (
        {"repeats": min(2, args.repeats), "warmup": 0} if args.device == "cpu" else {}
    )  # each call takes many seconds
    yield row_of(args, sizes, contestants, **slow)


def main(argv=None):
    args = harness.arguments("cross_entropy", __doc__, SIZES, argv)
    parts = (small, large) if args.large_rows else (small,)
    return [harness.publish(args, row) for part in parts for row in part(args)]


if __name__ == "__main__":
    main()
