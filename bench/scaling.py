"""How do time and memory grow with the number of labels? ``python -m bench.scaling`` (see bench/README.md).

Measures a training step of the fixed fan-in and group-shared layers and of PyTorch's dense layer, and a query to the
full softmax, the sparse layers and DS-Softmax. Each point runs in a separate process. If a point does not fit into
memory, the table gives the reason.
"""

import time

import numba
import numpy as np

from sparsemax_nb import (
    Adam,
    FixedFanIn,
    FullSoftmax,
    GroupSharedFanIn,
    PackedDSSoftmax,
    fixed_fan_in_forward,
    fixed_fan_in_step,
    fixed_fan_in_top_k,
)

from . import forward, harness, machine, plotting, step
from .memory_670k import in_new_process
from .peers import Unavailable, pytorch

SIZES = {
    "rows": (128, 20),
    "inputs": (16_384, 64),
    "fan_in": (32, 8),
    "group_size": (16, 8),
    "dense_width": (512, 16),
    "k": (5, 5),
    "width": (200, 16),
    "experts": (64, 4),
    "share": (32, 2),
    "label_rows": (5, 2),
    "largest": (10_000_000, 1_000),
}
#: {line of the plot: ("step" or "query", colour, marker)}.
LINES = {
    "fixed fan-in": ("step", "#0072B2", "o"), "group-shared": ("step", "#009E73", "^"),
    "group-shared, bfloat16": ("step", "#56B4E9", "v"), "PyTorch dense": ("step", "#D55E00", "s"),
    "fixed fan-in, top-k": ("query", "#0072B2", "o"), "group-shared, top-k": ("query", "#009E73", "^"),
    "full softmax": ("query", "#D55E00", "s"), "DS-Softmax": ("query", "#CC79A7", "D"),
}  # fmt: skip
PICTURE = machine.HERE / "scaling.png"
#: A point is skipped if it needs more than this share of the free memory.
MAX_MEMORY_SHARE = 0.8


def needs(line, n, args):
    """Bytes of the arrays of a point."""
    k, d = args.fan_in, args.dense_width
    return n * {
        "fixed fan-in": 16 * k, "group-shared": 12 * k + 4 * k // args.group_size,
        "group-shared, bfloat16": 14 * k, "PyTorch dense": 16 * d + 4 * args.rows,
        "fixed fan-in, top-k": 8 * k, "group-shared, top-k": 4 * k + 4 * k // args.group_size,
        "full softmax": 8 * args.width, "DS-Softmax": 8 * args.width * args.experts // args.share,
    }[line]  # fmt: skip


def make_layer(line, n, args):
    """The sparse layer of a line of the plot."""
    if line.startswith("fixed"):
        return FixedFanIn.random(n, args.inputs, args.fan_in, seed=0)
    dtype = "bfloat16" if "bfloat16" in line else "float32"
    return GroupSharedFanIn.random(n, args.inputs, args.fan_in, min(args.group_size, n), seed=0, dtype=dtype)


def prepared(line, n, args):
    """The function to be timed for a point."""
    random = np.random.default_rng(0)
    h = forward.inputs(args.rows, args.inputs, "cpu")
    if line == "PyTorch dense":
        labels = step.random_labels(args.rows, n, args.label_rows, "cpu")
        return pytorch.dense_step(
            forward.inputs(args.rows, args.dense_width, "cpu"), labels, n, "squared-hinge", step.LEARNING_RATE
        ).run
    if line == "full softmax":
        full = FullSoftmax(random.standard_normal((n, args.width), dtype=np.float32))
        h = random.standard_normal((1, args.width), dtype=np.float32)
        return lambda: full.top_k(h, args.k)
    if line == "DS-Softmax":
        return ds_query(n, args, random)
    layer = make_layer(line, n, args)
    if line.endswith("top-k"):
        row = h[:1]
        return lambda: fixed_fan_in_top_k(row, layer, args.k)
    labels, adam = step.random_labels(args.rows, n, args.label_rows, "cpu"), Adam(step.LEARNING_RATE)
    layer.bias[:] = -1 - np.quantile(fixed_fan_in_scores(h, layer), 0.99)  # about 1 % of the scores have a gradient
    return lambda: fixed_fan_in_step(h, layer, labels, "squared-hinge", adam)


def fixed_fan_in_scores(h, layer):
    """Scores of about 10,000 labels, to choose the bias."""
    n = min(layer.n_labels, 10_000) // 16 * 16 or layer.n_labels
    group = getattr(layer, "group_size", 1)
    indices = np.repeat(layer.indices[: -(-n // group)], group, axis=0)[:n]
    part = FixedFanIn(layer.n_inputs, indices, layer.values[:n].astype(np.float32), np.zeros(n, np.float32))
    return fixed_fan_in_forward(h, part)


def ds_query(n, args, random):
    """One query to experts that each contain a random 1 / `share` of the classes."""
    each = max(1, n // args.share)
    classes = np.concatenate([np.sort(random.choice(n, each, replace=False)) for _ in range(args.experts)])
    weights = random.standard_normal((len(classes), args.width), dtype=np.float32)
    gate = random.standard_normal((args.experts, args.width), dtype=np.float32)
    starts = (np.arange(args.experts + 1) * each).astype(np.int32)
    packed = PackedDSSoftmax(gate, starts, classes.astype(np.int32), weights, n)
    h = random.standard_normal((64, 1, args.width), dtype=np.float32)
    turn = iter(range(1 << 30))
    return lambda: packed.top_k(h[next(turn) % len(h)], args.k)  # different experts, which are not in the cache


def measure(queue, args, line, n):
    """In a new process: warm up at a small size, then measure time and memory of one point."""
    numba.set_num_threads(args.threads)
    prepared(line, 256, args)()
    with machine.memory_growth("cpu") as growth:
        try:
            run = prepared(line, n, args)
        except Unavailable as reason:
            queue.put({"unavailable": str(reason)})
            return
        run()
        seconds, start = [], time.perf_counter()
        while len(seconds) < 5 or (len(seconds) < 200 and time.perf_counter() - start < 1):
            before = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - before)
    queue.put({"seconds": float(np.median(seconds)), "bytes": growth["bytes"]})


def slope(points, value):
    """Exponent of the number of labels between the two largest sizes; 1 is linear."""
    (n, a), (m, b) = sorted(points)[-2:]
    return float(np.log(b[value] / a[value]) / np.log(m / n))


#: {quantity: (factor, unit)}.
UNITS = {"seconds": (1e3, "ms"), "bytes": (2**-20, "MiB")}


def panel(axis, row, question, value, title, with_slopes=True):
    """Plot seconds or bytes of a "step" or a "query" over the number of labels."""
    factor, unit = UNITS[value]
    for line, (kind, colour, marker) in LINES.items():
        points = sorted((int(n), p) for n, p in row["figures"][line].items() if value in p)
        if kind == question and points:
            x, y = zip(*((n, factor * p[value]) for n, p in points), strict=True)
            label = f"{line} (slope {slope(points, value):.2f})" if with_slopes else line
            axis.plot(x, y, marker=marker, color=colour, label=label)
    what = f"{unit} per {question}" if value == "seconds" else f"peak {unit}"
    axis.set(xscale="log", yscale="log", xlabel="labels", ylabel=what, title=title)


def picture(row, path):
    """Plot time and memory of a step, and time of a query, over the number of labels."""
    figure, axes = plotting.new_panels(3, 5, 4.8)
    panel(axes[0], row, "step", "seconds", "Training step, batch of 128")
    panel(axes[1], row, "step", "bytes", "Memory for training the output layer")
    panel(axes[2], row, "query", "seconds", "Top-5 of one query")
    for axis, position in zip(axes, ("lower right", "lower right", "upper left"), strict=True):
        axis.legend(frameon=False, fontsize=9, loc=position)
    plotting.write_picture(figure, path)


def main(argv=None):
    args = harness.arguments("scaling", __doc__.partition("\n")[0], SIZES, argv)
    if args.device != "cpu":
        raise SystemExit("bench.scaling measures the CPU; use --device cpu")
    sizes = [n for n in (10**i for i in range(3 if args.smoke else 4, 9)) if n <= args.largest]
    found, rows = {}, []
    for line in LINES:
        found[line] = {}
        for n in sizes:
            free, needed = machine.free_memory(), needs(line, n, args)
            if free is not None and needed > MAX_MEMORY_SHARE * free:
                point = {"unavailable": f"needs {needed / 2**30:.1f} GiB"}
            else:
                point = in_new_process(measure, args, line, n)
            found[line][n] = point
            print(line, f"{n:,}", point, flush=True)
        measured = {n: p for n, p in found[line].items() if "seconds" in p}
        cells = [_cell(found[line][n], LINES[line][0]) for n in sizes]
        slopes = (
            [f"{slope(list(measured.items()), v):.2f}" for v in ("seconds", "bytes")]
            if len(measured) > 1
            else ["-", "-"]
        )
        rows.append([line, *cells, *slopes])
    row = {
        "benchmark": "scaling",
        "parameters": args.parameters | {"device": args.device},
        "table": {
            "header": ["ms, peak MiB", *(f"{n:,} labels" for n in sizes), "slope of time", "of memory"],
            "rows": rows,
        },
        "notes": [
            "Slope: exponent of the number of labels between the two largest sizes; 1 is linear.",
            f"Steps with a batch of {args.rows}, Adam, 1 % of the scores inside the margin. Queries: one row per call.",
            f"DS-Softmax: {args.experts} experts with 1/{args.share} of the classes each; width {args.width}, like "
            "the full softmax.",
            "Memory: growth of the process since before the layer was created: arrays and working memory.",
        ],
        "figures": {line: {str(n): p for n, p in points.items()} for line, points in found.items()},
        "environment": machine.environment(args.device),
    }
    if not args.smoke:
        picture(row, PICTURE)
    return [harness.publish(args, row)]


def _cell(point, question):
    if "unavailable" in point:
        return point["unavailable"]
    memory = "" if point["bytes"] is None else f", {point['bytes'] / 2**20:,.0f}"
    return f"{1e3 * point['seconds']:,.2f}{memory}" if question == "query" else f"{1e3 * point['seconds']:,.1f}{memory}"


if __name__ == "__main__":
    main()
