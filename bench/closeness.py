"""How close is each sampler to the softmax? ``python -m bench.closeness FILE`` (FILE is described in bench/README.md).

Computes the mean of ``KL(softmax(h @ weights.T) || Q)`` over rows of h, exactly: over all classes, in float64.
"""

import argparse
import sys
from pathlib import Path

import numba
import numpy as np

from sparsemax_nb import (
    InvertedMultiIndex,
    LogUniformSampler,
    LSHSampler,
    RFFSampler,
    SphereSampler,
    UniformSampler,
    UnigramSampler,
    data,
    train,
)

from . import harness, machine, plotting, tables, timing

ARRAYS = "classes", "queries", "counts"
CODEWORDS = 16, 32, 64, 128, 256
KINDS = "rq", "pq"
#: How the index is built. uniform, popularity: how a class is drawn inside its cell. weighted: uniform, and k-means
#: weights classes by count. queries: like weighted, and the codewords minimize the error of the scores of other
#: queries.
VARIANTS = "uniform", "popularity", "weighted", "queries"
#: At most this many of the other queries are used to build the variant "queries".
MAX_SAMPLE = 4096
#: Target: the divergence of BASELINE is at least MIN_RATIO times that of midx-rq with TARGET_CODEWORDS codewords.
BASELINE, TARGET_CODEWORDS, MIN_RATIO = "unigram", 128, 5
#: Bounds the size of the (ROWS_PER_BLOCK, L) arrays in float64.
ROWS_PER_BLOCK = 16
PICTURE = machine.HERE / "closeness.png"
#: Colours (Okabe and Ito) of the kinds; line style and marker of the variants.
COLOURS = {"rq": "#0072B2", "pq": "#D55E00"}
STYLES = {"uniform": ("-", "o"), "popularity": ("--", "s"), "weighted": ("-.", "^"), "queries": (":", "D")}


def of_model(path, name):
    """Arrays of a saved classifier with a dense output: its weights, the encoded test set of the data, label counts."""
    if name is None:
        raise ValueError(f"{path} is a model: give its data with --data; the queries are the test set")
    model = train.Classifier.load(path, device="cpu")
    if not hasattr(model.network_.output, "weights"):
        raise ValueError(f"{path} must have a dense output or a bottleneck, got output={model.output!r}")
    h = model.encode(data.load(name).test.features)
    return {"classes": model.network_.output.weights, "queries": h, "counts": model.label_counts_}


def read(path, n_queries, name=None):
    """Read and check the weights (L, d), rows of h (n, d), counts (L,) and a sample (m, d) of the other rows of h.

    `path` is an .npz file, a folder of .npy files, or a saved classifier together with the name of its data.
    """
    if path.suffix == ".safetensors":
        arrays = of_model(path, name)
    elif path.is_dir():
        arrays = {name: np.load(path / f"{name}.npy") for name in ARRAYS}
    else:
        with np.load(path) as file:
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}; it must contain {', '.join(ARRAYS)}")
            arrays = {name: file[name] for name in ARRAYS}
    weights, h = (np.ascontiguousarray(arrays[name], np.float32) for name in ARRAYS[:2])
    counts = np.asarray(arrays["counts"], np.float64)
    if weights.ndim != 2 or h.ndim != 2 or weights.shape[1] != h.shape[1]:
        raise ValueError(
            f"classes (L, d) and queries (n, d) must have the same width d, got shapes {weights.shape} and {h.shape}"
        )
    if counts.shape != weights.shape[:1]:
        raise ValueError(f"counts must have one entry per class, shape ({len(weights)},), got shape {counts.shape}")
    rows = _evenly(len(h), n_queries)
    others = np.setdiff1d(np.arange(len(h)), rows)
    return weights, h[rows], counts, h[others[_evenly(len(others), MAX_SAMPLE)]]


def _evenly(n, limit):
    """At most `limit` evenly spaced integers of 0, ..., n - 1."""
    return np.linspace(0, n - 1, min(n, limit)).astype(int)


def log_softmax_of(weights, h):
    """``log_softmax(h @ weights.T)`` in float64."""
    logits = h.astype(np.float64) @ weights.T.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def divergence(sampler, weights, h):
    """Mean of ``KL(P || Q)`` over the rows of h, in nats.

    Q is normalized, to correct its rounding errors; a sum of Q far from one stops the benchmark.
    """
    all_classes, total = np.arange(len(weights), dtype=np.int32), 0.0
    for first in range(0, len(h), ROWS_PER_BLOCK):
        block = h[first : first + ROWS_PER_BLOCK]
        log_p, log_q = log_softmax_of(weights, block), sampler.log_prob(block, all_classes).astype(np.float64)
        log_sum = np.logaddexp.reduce(log_q, axis=1, keepdims=True)
        timing.require(np.abs(log_sum).max() < 1e-3, f"probabilities sum to {np.exp(log_sum).max():.4f}")
        total += (np.exp(log_p) * (log_p - log_q + log_sum)).sum()
    return total / len(h)


def measure(weights, h, counts, sample, codewords):
    """``{name: KL}`` of the samplers without codewords, and ``{(kind, variant): {number of codewords: KL}}``.

    The variant "queries" needs a non-empty sample.
    """
    drawn = counts + (counts == 0)  # with probability 0 for a class, the divergence would be infinite
    ranks = np.argsort(np.argsort(-counts, kind="stable"))

    def kl(sampler):
        return divergence(sampler, weights, h)

    lines = {
        "uniform": kl(UniformSampler(len(weights))),
        "log-uniform": kl(LogUniformSampler(len(weights), ranks=ranks)),
        "unigram": kl(UnigramSampler(drawn)),
        "LSH": kl(LSHSampler(weights)),
        "Sphere*": kl(SphereSampler(weights)),
        "RFF*": kl(RFFSampler(weights)),
    }
    options = {
        "uniform": {},
        "popularity": {"residual": "popularity", "popularity": drawn},
        "weighted": {"class_weights": counts},
        "queries": {"class_weights": counts, "h": sample},
    }
    curves = {}
    for kind in KINDS if weights.shape[1] % 2 == 0 else KINDS[:1]:
        for variant in VARIANTS if len(sample) else VARIANTS[:-1]:
            indexes = (InvertedMultiIndex.build(weights, k, kind, **options[variant]) for k in codewords)
            curves[kind, variant] = dict(zip(codewords, map(kl, indexes), strict=True))
    return lines, curves


def notes_of(lines, curves):
    """Notes of the table: which kind of index is closer, and the ratio of the unigram sampler to it."""
    notes = []
    for variant in VARIANTS:
        rq, pq = (curves.get((kind, variant), {}) for kind in KINDS)
        if pq:
            closer = [k for k in rq if rq[k] < pq[k]]
            where = "at every number of codewords" if len(closer) == len(rq) else f"at {closer or 'none'} codewords"
            notes.append(f"{variant}: midx-rq is closer than midx-pq {where}.")
    n_codewords = TARGET_CODEWORDS if TARGET_CODEWORDS in curves["rq", "uniform"] else max(curves["rq", "uniform"])
    for variant in (variant for kind, variant in curves if kind == "rq"):
        ratio = lines[BASELINE] / curves["rq", variant][n_codewords]
        verdict = "met" if ratio >= MIN_RATIO else "not met"
        notes.append(
            f"Target: the divergence of {BASELINE} is at least {MIN_RATIO} x that of midx-rq with {n_codewords} "
            f"codewords; {variant}: {ratio:.2f} x: {verdict}."
        )
    nearest = min(lines, key=lines.get)
    best = min(curve[n_codewords] for curve in curves.values())
    notes.append(
        f"Closest sampler without codewords: {nearest}; its divergence is {lines[nearest] / best:.2f} x that of the "
        f"best midx with {n_codewords} codewords."
    )
    return [
        *notes,
        "uniform, popularity: how a class is drawn inside its cell; weighted: uniform, and k-means weights classes by "
        "count; "
        "queries: like weighted, and the codewords minimize the error of the scores on a sample of other queries.",
        "*: computes all scores for every draw. The popularity of a class that never occurs is that of one occurrence.",
    ]


def row_of(name, weights, h, lines, curves):
    """The row of results with its table."""
    numbers = sorted(next(iter(curves.values())))
    table = [[key, "-", f"{value:.3f}", *["-"] * len(numbers)] for key, value in lines.items()]
    for (kind, variant), curve in curves.items():
        table.append([f"midx-{kind}", variant, "-", *(f"{curve[k]:.3f}" for k in numbers)])
    figures = {"lines": lines, "curves": {f"{kind} {variant}": c for (kind, variant), c in curves.items()}}
    sizes = {"data": name, "classes": len(weights), "width": weights.shape[1], "queries": len(h)}
    return {
        "benchmark": "closeness",
        "parameters": sizes | {"device": "cpu"},
        "table": {
            "header": ["sampler", "variant", "KL, nats", *(f"{k} codewords" for k in numbers)],
            "rows": table,
        },
        "notes": notes_of(lines, curves),
        "figures": figures,
        "environment": machine.environment("cpu"),
    }


def _spread(heights, gap):
    """Move ascending heights apart to a distance of at least `gap`; overlapping groups stay centred."""
    groups = []  # (sum over members of the height wanted for the first of the group, number of members)
    for height in heights:
        total, n = height, 1
        while groups and groups[-1][0] / groups[-1][1] + groups[-1][1] * gap > total / n:
            more, m = groups.pop()
            total, n = more + total - n * m * gap, m + n
        groups.append((total, n))
    return [total / n + i * gap for total, n in groups for i in range(n)]


def picture(row, path):
    """Plot divergence (log scale) against number of codewords; horizontal lines are the samplers without codewords."""
    plt = plotting.pyplot()
    from matplotlib.ticker import NullFormatter

    lines, curves = row["figures"]["lines"], row["figures"]["curves"]
    curves = {
        name: {int(k): value for k, value in curve.items()} for name, curve in curves.items()
    }  # keys are strings in a file
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    numbers = sorted(next(iter(curves.values())))
    labels = [(value, name, "#444444") for name, value in lines.items()]
    for value in lines.values():
        axes.axhline(value, color="#999999", linewidth=1.5, zorder=1)
    for name, curve in curves.items():
        kind, variant = name.split()
        style = STYLES[variant]
        values = [curve[k] for k in numbers]
        axes.plot(numbers, values, style[0], marker=style[1], color=COLOURS[kind], linewidth=2.5, markersize=8)
        labels.append((values[-1], f"midx-{kind}, {variant}", COLOURS[kind]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(numbers, [str(k) for k in numbers])
    axes.xaxis.set_minor_formatter(NullFormatter())
    everything = [value for curve in curves.values() for value in curve.values()] + list(lines.values())
    low, high = np.log10(min(everything)), np.log10(max(everything))
    margin = max(0.06 * (high - low), 0.02)
    axes.set_ylim(10 ** (low - margin), 10 ** (high + margin))
    ticks = [
        n * 10.0**e for e in range(-6, 5) for n in (1, 2, 5) if low - margin <= np.log10(n * 10.0**e) <= high + margin
    ]
    if len(ticks) > 1:
        axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
    labels.sort()
    label_heights = _spread([np.log10(max(value, 1e-300)) for value, *_ in labels], 0.045 * (high - low + 2 * margin))
    for height, (value, text, colour) in zip(label_heights, labels, strict=True):
        axes.annotate(
            text, (1.0, value), (1.06, (height - low + margin) / (high - low + 2 * margin)), color=colour, va="center",
            xycoords=("axes fraction", "data"), textcoords="axes fraction", fontsize=13, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1, "shrinkA": 2, "shrinkB": 0},
        )  # fmt: skip
    axes.set_xlabel("codewords in each of the two codebooks", fontsize=14)
    axes.set_ylabel("mean KL(softmax || sampler) (nats)", fontsize=14)
    sizes = row["parameters"]
    axes.set_title(f"Distance from the softmax: {sizes['data']}, {sizes['classes']:,} classes", fontsize=15)
    axes.tick_params(labelsize=13)
    axes.spines[["top", "right"]].set_visible(False)
    plotting.write_picture(figure, path, dpi=120)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.closeness", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "file",
        type=Path,
        help=f"a saved classifier, or an .npz file or a folder of .npy files with {', '.join(ARRAYS)}",
    )
    parser.add_argument("--data", metavar="DIR-or-NAME", help="with a model: its data; the queries are the test set")
    parser.add_argument(
        "--queries", type=int, default=256, help="maximum number of queries, evenly spaced (default: 256)"
    )
    parser.add_argument("--codewords", type=int, nargs="+", default=CODEWORDS, metavar="K", help="default: 16 ... 256")
    cores = numba.config.NUMBA_NUM_THREADS
    parser.add_argument("--threads", type=int, default=min(2, cores), help="Numba's threads (default: 2)")
    parser.add_argument(
        "--json", type=Path, help="file to add the results to (default: bench/results/closeness-cpu.json)"
    )
    parser.add_argument("--picture", type=Path, help="default: bench/closeness.png")
    args = parser.parse_args(argv)
    numba.set_num_threads(args.threads)
    try:
        weights, h, counts, sample = read(args.file, args.queries, args.data)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    args.json = args.json or tables.RESULTS / "closeness-cpu.json"
    row = row_of(args.file.stem, weights, h, *measure(weights, h, counts, sample, args.codewords))
    harness.publish(args, row)
    picture(row, args.picture or PICTURE)
    return row


if __name__ == "__main__":
    sys.exit(not main())
