"""Does a network with 670,000 labels train within 1 GiB? ``python -m bench.memory_670k`` (method: see bench/README.md).

Each batch size runs in a separate process: imports, a warm-up on tiny arrays (which compiles), synthetic data. Then the
peak memory is reset; the network is trained, rewired once, and predicts the five best labels. The throughput is that of
a second fit, which continues with the trained weights: the first one also computes the initial weights.
"""

import multiprocessing
import sys

import numba
import numpy as np

from sparsemax_nb import data, train
from sparsemax_nb.internals import SIMULATOR, xp

from . import harness, machine, timing

SIZES = {
    "labels": (670_000, 3_000), "inputs": (768, 16), "intermediate": (32_768, 64), "fan_in": (32, 8), "steps": (60, 4),
    "points": (490_449, 490_449), "limit_mib": (1024, 64),
}  # fmt: skip
BATCHES = 32, 128
LABELS_PER_ROW, LABEL_EXPONENT, K = 5, 1.0, 5


def fit(n_labels, n_inputs, intermediate, fan_in, batch, steps, limit, device, epochs=1, **more):
    """Train on synthetic data, rewire halfway, predict; returns (memory growth, model, data)."""
    x = np.random.default_rng(0).standard_normal((batch * steps // epochs, n_inputs), dtype=np.float32)
    y = data.power_law_labels(len(x), n_labels, LABELS_PER_ROW, LABEL_EXPONENT, seed=0)
    model = train.Classifier(
        intermediate=intermediate, fan_in=fan_in, batch_size=batch, epochs=epochs, rewire_every=max(1, steps // 2),
        rewire_until=0.5, memory_limit=limit, device=device, progress=False, warm_start=True, **more,
    )  # fmt: skip
    with machine.memory_growth(device) as growth:
        model.fit(x, y)
        scores, ids = model.top_k(x[: 2 * batch], K)
    timing.require(np.isfinite(model.history_.losses).all() and np.isfinite(scores).all(), "NaN or infinity")
    timing.require(len(model.history_.rewirings) == 1, "the layer was not rewired once")
    timing.require(
        (np.diff(scores, axis=1) <= 0).all() and ((0 <= ids) & (ids < n_labels)).all(), "the top-k result is invalid"
    )
    return growth["bytes"], model, (x, y)


def measure(queue, args, batch, more):
    """Warm up, measure, and put the result into `queue`; `more` are parameters of the classifier."""
    numba.set_num_threads(args.threads)
    limit = args.limit_mib << 20
    fit(50, 8, 64, min(args.fan_in, 32), batch, 4, None, args.device, **more)
    if args.device == "cuda" and not SIMULATOR:
        xp.get_default_memory_pool().set_limit(
            size=limit
        )  # the pool then fails beyond the limit, whatever was predicted
    sizes = args.labels, args.inputs, args.intermediate, args.fan_in
    measured, model, inputs = fit(*sizes, batch, args.steps, limit, args.device, **more)
    plan, losses, first_seconds = model.memory_plan_, model.history_.losses, model.history_.seconds
    history = model.fit(*inputs).history_
    queue.put(
        {
            "plan": plan,
            "measured": measured,
            "output_layer": model.network_.output_nbytes,
            "losses": losses,
            "initial_seconds": first_seconds - history.seconds,
            "seconds": history.seconds / (history.steps - 1),
            "samples_per_second": (history.steps - 1) * batch / history.seconds,
        }  # fmt: skip
    )


def row_of(benchmark, args, batch, found):
    """The row of results for one batch size."""
    plan, measured = found["plan"], found["measured"]
    mib = [(phase, f"{n / 2**20:,.1f}") for phase, n in plan.phases.items()]
    arrays = [[a.phase, a.name, f"{a.nbytes / 2**20:,.2f}"] for a in plan.arrays]
    total = [["always + largest phase", "predicted peak", f"{plan.nbytes / 2**20:,.1f}"]]
    if measured is not None:
        total += [["", "**measured peak**", f"**{measured / 2**20:,.1f}**"]]
    rate, limit = found["samples_per_second"], args.limit_mib
    verdict = "unknown" if measured is None else "met" if measured <= limit << 20 else "not met"
    return {
        "benchmark": benchmark,
        "parameters": args.parameters | {"batch": batch, "device": args.device},
        "table": {"header": ["phase", "array", "MiB"], "rows": [*arrays, *([p, "= sum", n] for p, n in mib), *total]},
        "notes": [
            f"Target: at most {limit:,} MiB on top of imports and warm-up for training, one rewiring and top-{K}: "
            f"{verdict}.",
            f"Output layer: {found['output_layer'] / 2**20:,.0f} MiB of parameters.",
            f"{rate:,.0f} samples per second; an epoch of {args.points:,} points would take "
            f"{args.points / rate / 60:,.0f} min. The initial weights took {found['initial_seconds']:.0f} s.",
        ],
        "figures": {
            "predicted": plan.nbytes,
            "measured": measured,
            "samples_per_second": rate,
            "losses": found["losses"],
        },
        "environment": machine.environment(args.device),
    }


def in_new_process(function, *args):
    """Run ``function(queue, *args)`` in a new process; returns what it puts into the queue."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=function, args=(queue, *args))
    process.start()
    while process.is_alive() and queue.empty():
        process.join(0.2)
    if queue.empty():
        sys.exit(f"{function.__name__} of {args[1:]} failed (exit code {process.exitcode})")
    found = queue.get()
    process.join()
    return found


def main(argv=None):
    args = harness.arguments("memory_670k", __doc__.partition("\n")[0], SIZES, argv)
    rows = []
    for batch in BATCHES if not args.smoke else BATCHES[:1]:
        found = in_new_process(measure, args, batch, {})
        rows.append(harness.publish(args, row_of("memory_670k", args, batch, found)))
    return rows


if __name__ == "__main__":
    main()
