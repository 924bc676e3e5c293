"""What do the CUDA kernels of a training step read, write and compute? ``python -m bench.counted``.

The numbers are counted, not measured. No GPU is needed: ptxsim runs a sample of the blocks of the compiled kernels, and
the counters are scaled to the whole grid. The floors are the times for these bytes and operations at the published
rates of an H200. Latency, occupancy and the rate of atomics are ignored, so a real time can only be longer.
"""

import ml_dtypes
import numpy as np

import ptxsim
from sparsemax_nb.internals import (
    Connections,
    LabelRows,
    SharedConnections,
    backend_of,
    formulas,
    intercepted_launches,
    rng,
)

from . import harness, machine, timing

SIZES = {
    "rows": (128, 40), "inputs": (32_768, 64), "labels": (670_000, 320), "fan_in": (32, 16), "group_size": (16, 16),
    "blocks": (48, 4), "label_rows": (5, 2),
}  # fmt: skip
CHIP = "H200"
#: Warp instructions issued per second: 132 multiprocessors, four schedulers each, 1.98 GHz (published).
ISSUE_RATE = 132 * 4 * 1.98e9
#: {row: (module, whether weights are bfloat16, keyword arguments of the step of the CUDA backend)}.
CASES = {
    "fixed fan-in, first version": ("fixed_fan_in", False, {"wide": False}),
    "fixed fan-in": ("fixed_fan_in", False, {"wide": True}),
    "group-shared": ("group_shared", False, {"tensor_cores": False}),
    "group-shared, tensor cores": ("group_shared", False, {"tensor_cores": True}),
    "group-shared, bfloat16": ("group_shared", True, {"tensor_cores": False}),
    "group-shared, bfloat16, tensor cores": ("group_shared", True, {"tensor_cores": True}),
}


def arguments_of(args, shared, low):
    """Arguments for the step of the CUDA backend: a random layer, Adam, squared hinge, a few labels per row."""
    random, n, k = np.random.default_rng(0), args.labels, args.fan_in
    n_groups = -(-n // args.group_size) if shared else n
    h = np.maximum(random.standard_normal((args.rows, args.inputs), np.float32), 0)
    indices = random.integers(0, args.inputs, (n_groups, k), np.int32)  # duplicates do not matter for the counts
    values = random.standard_normal((n, k), np.float32) / k
    bias = np.full(n, -1 - 2.33 * np.sqrt(0.5 / k), np.float32)  # about 1 % of the scores are inside the margin
    if low:
        values = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    layer = SharedConnections(indices, values, bias, args.group_size) if shared else Connections(indices, values, bias)
    indptr = np.zeros(n + 1, np.int32)
    chosen = np.sort(random.choice(n, args.rows * args.label_rows, replace=False))
    indptr[1:] = np.cumsum(np.bincount(chosen, minlength=n))
    label_rows = LabelRows(indptr, random.integers(0, args.rows, len(chosen), np.int32))
    moments = [formulas.Moments(np.zeros(a.shape, np.float32), np.ones(a.shape, np.float32)) for a in (values, bias)]
    rates = formulas.Rates(*map(np.float32, (1e-3, 0.9, 0.999, 1e-8)))
    rounding = (rng.Rounding(np.uint64(1), np.uint64(1)),) if shared else ()
    loss = formulas.StepLoss(formulas.SQUARED_HINGE, np.empty((0, 2), np.float32))
    inputs = h, layer, label_rows, loss, formulas.ADAM_KIND, rates, *moments, *rounding
    return *inputs, np.empty_like(h), np.empty(n, np.float32)


def count(args, case):
    """Name and simulation result (counters) of the step's kernel."""
    module, low, options = CASES[case]
    found = {}

    def receive(name, kernel, grid, block, shared, launch_args):
        result = ptxsim.launch(
            kernel, grid, block, launch_args, dynamic_shared=shared, max_blocks=args.blocks, check=not args.smoke
        )
        timing.require(not result.errors, f"{name}: {[str(error) for error in result.errors[:3]]}")
        found[name] = result

    with intercepted_launches(receive):
        backend_of("cuda", module).step(*arguments_of(args, module == "group_shared", low), **options)
    ((name, result),) = found.items()
    return name, result


def cells(args, case):
    """Cells of a row of the table."""
    name, result = count(args, case)
    c, bound = result.counters, ptxsim.lower_bound(result.counters, CHIP)
    atomics = sum(a["lanes"] for a in c.atomics.values())
    sectors = c.global_load.sectors + c.global_store.sectors
    flops = sum(c.flops.values())
    # the modelled DRAM traffic is wrong for a sample of blocks: each of them would load the inputs again
    bandwidth = c.dram_bytes / bound.pop("memory (modelled DRAM)")
    bound["memory"] = c.unique_bytes / bandwidth
    bound["instructions issued"] = c.warp_instructions / ISSUE_RATE
    limit = max(bound, key=bound.get)
    return [
        case, f"`{name.partition('.')[2]}`", f"{c.unique_bytes / 1e6:,.0f}", f"{32 * sectors / 1e6:,.0f}",
        f"{c.shared_load.requests / 1e6:,.1f}", f"{atomics / 1e6:,.1f}", f"{flops / 1e9:,.1f}",
        f"{c.warp_instructions / 1e6:,.0f}", f"{1e3 * bound[limit]:.2f}", limit,
    ]  # fmt: skip


def main(argv=None):
    args = harness.arguments("counted", __doc__.partition("\n")[0], SIZES, argv)
    header = [
        "step of",
        "kernel",
        "MB, each byte once",
        "L2 MB (sectors)",
        "shared loads (millions of warps)",
        "atomic adds (millions)",
        "GFLOP",
        "instructions (millions of warps)",
        "floor ms",
        "limited by",
    ]
    rows = [cells(args, case) for case in CASES]
    row = {
        "benchmark": "counted",
        "parameters": args.parameters | {"device": "cpu"},
        "table": {"header": header, "rows": rows},
        "notes": [
            f"Computed, not measured: counters of the compiled code (sm_90) for a sample of {args.blocks} blocks, "
            f"scaled to the grid; floors at the published rates of an {CHIP}.",
            "The floor is the maximum of three times: for the bytes of memory, each read or written once (inputs and "
            "their gradients fit into the L2 cache); for the FLOPs; for issuing the instructions, one per scheduler "
            "and cycle (PTX differs slightly from the instructions of the chip). Latency, occupancy, L2 and the rate "
            "of atomics are ignored.",
        ],
        "environment": machine.environment("cpu"),
    }
    return [harness.publish(args, row)]


if __name__ == "__main__":
    main()
