"""How fast is the fixed fan-in forward pass? ``python -m bench.forward`` (see bench/README.md)."""

import numba
import numpy as np

from sparsemax_nb import FixedFanIn, fixed_fan_in_forward
from sparsemax_nb.internals import asarray, empty, to_numpy

from . import harness, machine, tables, timing
from .peers import pytorch, scipy_csr
from .peers.scipy_csr import inputs_of

SIZES = {"rows": (128, 20), "inputs": (16_384, 64), "labels": (200_000, 300), "fan_in": (32, 8)}
TARGETS = {"PyTorch CSR": (1.5, 2.5), "SciPy CSR": (5, 8)}
EPS = np.finfo(np.float32).eps


def inputs(n_rows, n_inputs, device):
    """Activations of a ReLU layer: half of them are zero."""
    h = np.random.default_rng(0).standard_normal((n_rows, n_inputs), np.float32)
    return asarray(np.maximum(h, 0), device)


def checker(h, layer):
    """A check of scores: 1,000 labels against float64, and the sum of each row, which covers all labels."""
    h, indices, values = to_numpy(h), inputs_of(layer), to_numpy(layer.values).astype(np.float32)
    checked = np.unique(np.linspace(0, len(values) - 1, 1000).astype(int))
    w = np.zeros((len(checked), h.shape[1]))
    w[np.arange(len(checked))[:, None], indices[checked]] = values[checked]
    expected = h.astype(np.float64) @ w.T
    size = (np.abs(h) @ np.abs(w.T)).max()
    sums = h @ np.bincount(indices.ravel(), values.ravel(), h.shape[1])

    def check(scores):
        scores = to_numpy(scores)
        timing.require(scores.shape == (len(h), len(values)), f"scores have shape {scores.shape}")
        error = np.abs(scores[:, checked] - expected).max()
        timing.require(error <= 4 * EPS * layer.fan_in**0.5 * size, f"scores are off by {error:.3g}")
        error = np.abs(scores.sum(axis=1, dtype=np.float64) - sums).max()
        timing.require(error <= 4 * EPS * values.size**0.5 * size, f"the sum of a row of scores is off by {error:.3g}")

    return check


def work(n_rows, n_inputs, n_labels, fan_in):
    """Bytes and FLOPs of our kernel; on the CPU, every weight loads its input once per row."""
    scores, weights = 4 * n_rows * n_labels, (8 * fan_in + 4) * n_labels
    return {
        "memory: scores stored": (scores, "dram_store"),
        "memory: inputs read, scores stored": (4 * n_rows * n_inputs + weights + scores, "dram_copy"),
        "L2: inputs gathered": (scores * fan_in, "l2_read"),
        "multiply-adds": (2 * n_rows * n_labels * fan_in, "flops"),
    }


def main(argv=None):
    args = harness.arguments("forward", __doc__, SIZES, argv)
    sizes = args.rows, args.inputs, args.labels, args.fan_in
    h = inputs(args.rows, args.inputs, args.device)
    layer = FixedFanIn.random(args.labels, args.inputs, args.fan_in, seed=0, device=args.device)
    out = empty((args.rows, args.labels), np.float32, args.device)
    out[:] = np.nan
    check = checker(h, layer)

    def ours():
        return fixed_fan_in_forward(h, layer, out=out)

    def one_thread():
        numba.set_num_threads(1)
        try:
            return ours()
        finally:
            numba.set_num_threads(args.threads)

    contestants = {"ours": timing.Contestant(ours, check, "checks and packing of h included")}
    contestants["PyTorch CSR"] = harness.offer(check, pytorch.csr_forward, h, layer)
    contestants["PyTorch embedding_bag"] = harness.offer(check, pytorch.embedding_bag_forward, h, layer)
    if args.device == "cpu":
        contestants["SciPy CSR"] = harness.offer(check, scipy_csr.forward, h, layer)
        contestants["ours, one thread"] = timing.Contestant(one_thread, check)
    else:
        contestants["CuPy CSR"] = harness.offer(check, scipy_csr.forward_cuda, h, layer)
    timings = harness.race(contestants, args)
    with machine.memory_growth(args.device) as growth:
        ours()
    row = tables.make_row(
        "forward",
        args.parameters,
        contestants,
        timings,
        floor=harness.floor(args, work(*sizes)),
        targets=TARGETS if args.device == "cpu" and not args.smoke else None,
        memory={"ours": {"held": layer.nbytes + h.nbytes + out.nbytes, "growth": growth["bytes"]}},
        device=args.device,
    )
    return [harness.publish(args, row)]


if __name__ == "__main__":
    main()
