"""How fast, how exact and how frugal is the full softmax loss? ``python -m bench.cross_entropy`` (README.md says how)."""

import ml_dtypes
import numpy as np

from sparsemax_nb import softmax_cross_entropy
from sparsemax_nb.core import backend

from . import harness, machine
from .peers import Unavailable, pytorch

SIZES = {
    "rows": (1_024, 48), "width": (256, 16), "classes": (32_768, 300), "large_rows": (8_192, 64),
    "large_classes": (128_000, 500),
}  # fmt: skip
NAMES = "dh", "dw", "dbias"
SOME = 100  # rows and classes whose gradients are checked at the large size
BLOCK = 1 << 24  # logits that a check holds


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

    def check(result):
        require_close(
            result[0], loss, [g[i] for g, i in zip(result[1:], (rows, classes, classes), strict=True)], wanted
        )

    return check


def require_close(loss, want_loss, gradients, wanted):
    """The loss to 5 digits, gradients to a ten-thousandth of their largest number."""
    harness.require(abs(loss - want_loss) <= 1e-5 * abs(want_loss), f"the loss is {loss}, not {want_loss}")
    for name, got, want in zip(NAMES, gradients, wanted, strict=True):
        harness.require_close(name, got, want, 1e-4)


def to_numpy(result):
    """(loss, gradients as NumPy arrays), whoever computed them."""
    return float(result[0]), *(backend.to_numpy(g) if backend.device_of(g) else g.cpu().numpy() for g in result[1:])


def rounded(a):
    """The nearest bfloat16 numbers, as float32."""
    return a.astype(ml_dtypes.bfloat16).astype(np.float32)


def contestants_of(arrays, check, narrow_check, device):
    """Ours, ours with bfloat16 inputs, PyTorch; `arrays` are h, w, bias and targets in NumPy."""
    h, w, bias, targets = (backend.asarray(a, device) for a in arrays)

    def compute(h, w, bias):
        return harness.Contestant(
            lambda: softmax_cross_entropy(h, w, targets, bias),
            lambda result: (check if h.dtype == np.float32 else narrow_check)(to_numpy(result)),
            f"inputs {h.dtype}, gradients float32",
        )

    try:
        narrow = compute(*(backend.asarray(a.astype(ml_dtypes.bfloat16), device) for a in arrays[:3]))
    except (TypeError, ValueError) as problem:
        narrow = Unavailable(f"no bfloat16 arrays on {device}: {problem}")  # an older CuPy
    rival = harness.offer(lambda result: check(to_numpy(result)), pytorch.cross_entropy, h, w, bias, targets)
    return {"ours": compute(h, w, bias), "ours, bfloat16": narrow, "PyTorch": rival}


def memory_of(contestants, timings, sizes, device):
    """Inputs and gradients, and what a call takes beyond them."""
    n_rows, width, n_classes = sizes
    numbers, memory = (n_rows + n_classes) * width + n_classes, {}
    for name in (
        timings if device == "cpu" else [n for n in timings if n.startswith("ours")]
    ):  # PyTorch's pool is its own
        with machine.memory_growth(device) as growth:
            result = contestants[name].run()
        del result
        beyond = None if growth["bytes"] is None else max(0, growth["bytes"] - 4 * numbers)
        memory[name] = {"held": (6 if "bfloat16" in name else 8) * numbers, "growth": beyond}
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
    return harness.make_row(
        "cross_entropy",
        dict(zip(("rows", "width", "classes"), sizes, strict=True)),
        contestants,
        timings,
        floor=harness.floor(args, work),
        memory=memory_of(contestants, timings, sizes, args.device),
        device=args.device,
    )


def accuracy_row(args, sizes, contestants, truths):
    """Errors against float64."""
    rows, figures = [], {}
    for name, contestant in contestants.items():
        if not isinstance(contestant, Unavailable):
            loss, *gradients = to_numpy(contestant.run())
            want_loss, *wanted = truths["bfloat16" in name]
            errors = {"loss": abs(loss / want_loss - 1)}
            for key, got, want in zip(NAMES, gradients, wanted, strict=True):
                error = got - want
                errors[f"{key} max"] = float(np.abs(error).max() / np.abs(want).max())
                errors[f"{key} rms"] = float(np.sqrt(np.square(error).mean() / np.square(want).mean()))
            figures[name] = errors
            rows.append([name, *(f"{error:.1e}" for error in errors.values())])
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


def main(argv=None):
    args = harness.arguments("cross_entropy", __doc__.partition("(")[0], SIZES, argv)
    sizes = args.rows, args.width, args.classes
    *arrays, targets = problem(*sizes)
    truths = exact(*arrays, targets), exact(*map(rounded, arrays), targets)
    checks = [lambda result, t=truth: require_close(result[0], t[0], result[1:], t[1:]) for truth in truths]
    contestants = contestants_of((*arrays, targets), *checks, args.device)
    rows = [harness.publish(args, row_of(args, sizes, contestants))]
    rows.append(harness.publish(args, accuracy_row(args, sizes, contestants, truths)))
    del contestants, truths, checks

    sizes = args.large_rows, args.width, args.large_classes
    *arrays, targets = problem(*sizes)
    checks = checker(*arrays, targets), checker(*map(rounded, arrays), targets)
    contestants = contestants_of((*arrays, targets), *checks, args.device)
    row = row_of(args, sizes, contestants, repeats=min(2, args.repeats), warmup=0)  # a call takes many seconds
    return [*rows, harness.publish(args, row)]


if __name__ == "__main__":
    main()
