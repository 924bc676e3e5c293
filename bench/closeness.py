"""How close does each sampler come to the softmax? ``python -m bench.closeness FILE`` (README.md says what FILE holds).

The mean over the queries of ``KL(softmax(q C.T) || Q)``, exact: over all classes, in float64.
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
#: weighted: uniform, k-means weighs classes by count; queries: and measures the error of the scores of other queries.
VARIANTS = "uniform", "popularity", "weighted", "queries"
SAMPLE = 4096  # of the other queries, at most
RIVAL, AT, BAR = "unigram", 128, 5
AT_ONCE = 16  # queries
PICTURE = machine.HERE / "closeness.png"
#: Okabe and Ito's colours for the kinds; a line style and a marker for the variants.
COLOURS = {"rq": "#0072B2", "pq": "#D55E00"}
STYLES = {"uniform": ("-", "o"), "popularity": ("--", "s"), "weighted": ("-.", "^"), "queries": (":", "D")}


def of_model(path, name):
    """The arrays of a saved classifier with a dense output: its weights, and the contexts of the data's test part."""
    if name is None:
        raise ValueError(f"{path} is a model: name the data whose test part are the queries with --data")
    model = train.Classifier.load(path, device="cpu")
    if not hasattr(model.network_.output, "weights"):
        raise ValueError(f"{path} must have a dense output or a bottleneck, got output={model.output!r}")
    queries = model.encode(data.load(name).test.features)
    return {"classes": model.network_.output.weights, "queries": queries, "counts": model.label_counts_}


def read(path, n_queries, name=None):
    """Class embeddings (L, d), queries (n, d), counts (L,), and a sample (m, d) of the other queries; checked.

    From an .npz file, a folder of .npy files, or a saved classifier and the name of its data.
    """
    if path.suffix == ".safetensors":
        arrays = of_model(path, name)
    elif path.is_dir():
        arrays = {name: np.load(path / f"{name}.npy") for name in ARRAYS}
    else:
        with np.load(path) as file:
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}; it must hold {', '.join(ARRAYS)}")
            arrays = {name: file[name] for name in ARRAYS}
    classes, queries = (np.ascontiguousarray(arrays[name], np.float32) for name in ARRAYS[:2])
    counts = np.asarray(arrays["counts"], np.float64)
    if classes.ndim != 2 or queries.ndim != 2 or classes.shape[1] != queries.shape[1]:
        raise ValueError(
            f"classes (L, d) and queries (n, d) must be equally wide, got {classes.shape}, {queries.shape}"
        )
    if counts.shape != classes.shape[:1]:
        raise ValueError(f"counts must have shape ({len(classes)},) like classes, got {counts.shape}")
    rows = _evenly(len(queries), n_queries)
    others = np.setdiff1d(np.arange(len(queries)), rows)
    return classes, queries[rows], counts, queries[others[_evenly(len(others), SAMPLE)]]


def _evenly(n, most):
    """At most `most` of 0, ..., n - 1."""
    return np.linspace(0, n - 1, min(n, most)).astype(int)


def softmax_of(classes, queries):
    """``log_softmax(queries @ classes.T)`` in float64."""
    logits = queries.astype(np.float64) @ classes.T.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def divergence(sampler, classes, queries):
    """Mean ``KL(P || Q)`` in nats over the queries.

    What Q lacks to a sum of one (by rounding) is made up; a Q that is far from one stops the benchmark.
    """
    everything, total = np.arange(len(classes), dtype=np.int32), 0.0
    for first in range(0, len(queries), AT_ONCE):
        some = queries[first : first + AT_ONCE]
        log_p, log_q = softmax_of(classes, some), sampler.log_prob(some, everything).astype(np.float64)
        log_sum = np.logaddexp.reduce(log_q, axis=1, keepdims=True)
        timing.require(np.abs(log_sum).max() < 1e-3, f"probabilities sum to {np.exp(log_sum).max():.4f}")
        total += (np.exp(log_p) * (log_p - log_q + log_sum)).sum()
    return total / len(queries)


def measure(classes, queries, counts, sample, codewords):
    """``{name: KL}`` of the samplers without codewords, and ``{(kind, variant): {number of codewords: KL}}``.

    The variant "queries" is left out where there is no sample.
    """
    drawn = counts + (counts == 0)  # a class that is never drawn would make the divergence infinite
    ranks = np.argsort(np.argsort(-counts, kind="stable"))

    def of(sampler):
        return divergence(sampler, classes, queries)

    lines = {
        "uniform": of(UniformSampler(len(classes))),
        "log-uniform": of(LogUniformSampler(len(classes), ranks=ranks)),
        "unigram": of(UnigramSampler(drawn)),
        "LSH": of(LSHSampler(classes)),
        "Sphere*": of(SphereSampler(classes)),
        "RFF*": of(RFFSampler(classes)),
    }
    options = {
        "uniform": {}, "popularity": {"residual": "popularity", "popularity": drawn}, "weighted": {"weights": counts},
        "queries": {"weights": counts, "queries": sample},
    }  # fmt: skip
    curves = {}
    for kind in KINDS if classes.shape[1] % 2 == 0 else KINDS[:1]:
        for variant in VARIANTS if len(sample) else VARIANTS[:-1]:
            made = (InvertedMultiIndex.build(classes, k, kind, **options[variant]) for k in codewords)
            curves[kind, variant] = dict(zip(codewords, map(of, made), strict=True))
    return lines, curves


def notes_of(lines, curves):
    """What the table says: which of the two kinds is closer, and how far unigram is behind."""
    notes = []
    for variant in VARIANTS:
        rq, pq = (curves.get((kind, variant), {}) for kind in KINDS)
        if pq:
            closer = [k for k in rq if rq[k] < pq[k]]
            where = "at every number of codewords" if len(closer) == len(rq) else f"at {closer or 'none'} codewords"
            notes.append(f"{variant}: midx-rq is closer than midx-pq {where}.")
    at = AT if AT in curves["rq", "uniform"] else max(curves["rq", "uniform"])
    for variant in (variant for kind, variant in curves if kind == "rq"):
        ratio = lines[RIVAL] / curves["rq", variant][at]
        verdict = "met" if ratio >= BAR else "not met"
        notes.append(
            f"Target: {RIVAL}'s divergence at least {BAR} x that of midx-rq at {at} codewords; "
            f"{variant}: {ratio:.2f} x: {verdict}."
        )
    nearest = min(lines, key=lines.get)
    best = min(curve[at] for curve in curves.values())
    notes.append(
        f"Closest of the samplers without codewords: {nearest}, {lines[nearest] / best:.2f} x the best midx at {at}."
    )
    return [
        *notes,
        "uniform, popularity: how a class is drawn inside its cell; weighted: uniform, and k-means weighs classes by count; "
        "queries: and it makes the error of the scores small, of a sample of other queries.",
        "*: touches all classes for every draw. As popularity, classes that never occur count as occurring once.",
    ]


def row_of(name, classes, queries, lines, curves):
    """The row of results, with its own table."""
    numbers = sorted(next(iter(curves.values())))
    table = [[key, "-", f"{value:.3f}", *["-"] * len(numbers)] for key, value in lines.items()]
    for (kind, variant), curve in curves.items():
        table.append([f"midx-{kind}", variant, "-", *(f"{curve[k]:.3f}" for k in numbers)])
    figures = {"lines": lines, "curves": {f"{kind} {variant}": c for (kind, variant), c in curves.items()}}
    sizes = {"data": name, "classes": len(classes), "width": classes.shape[1], "queries": len(queries)}
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


def _spread(heights, least):
    """The heights (ascending), moved as little as it takes to lie `least` apart: groups that overlap are centred."""
    groups = []  # (sum of what the first of the group should be at, number)
    for height in heights:
        total, n = height, 1
        while groups and groups[-1][0] / groups[-1][1] + groups[-1][1] * least > total / n:
            more, m = groups.pop()
            total, n = more + total - n * m * least, m + n
        groups.append((total, n))
    return [total / n + i * least for total, n in groups for i in range(n)]


def picture(row, path):
    """Divergence (logarithmic) against codewords; the samplers without codewords are level lines. Labels, no legend."""
    plt = plotting.pyplot()
    from matplotlib.ticker import NullFormatter

    lines, curves = row["figures"]["lines"], row["figures"]["curves"]
    curves = {name: {int(k): value for k, value in curve.items()} for name, curve in curves.items()}  # of a file: text
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
    places = _spread([np.log10(max(value, 1e-300)) for value, *_ in labels], 0.045 * (high - low + 2 * margin))
    for place, (value, text, colour) in zip(places, labels, strict=True):
        axes.annotate(
            text, (1.0, value), (1.06, (place - low + margin) / (high - low + 2 * margin)), color=colour, va="center",
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
        "file", type=Path, help=f"a model of `train classifier`, or an .npz or folder of .npy with {', '.join(ARRAYS)}"
    )
    parser.add_argument("--data", metavar="DIR-or-NAME", help="with a model: the data whose test part are the queries")
    parser.add_argument("--queries", type=int, default=256, help="at most so many, evenly from all (default: 256)")
    parser.add_argument("--codewords", type=int, nargs="+", default=CODEWORDS, metavar="K", help="default: 16 ... 256")
    cores = numba.config.NUMBA_NUM_THREADS
    parser.add_argument("--threads", type=int, default=min(2, cores), help="Numba's threads (default: 2)")
    parser.add_argument("--json", type=Path, help="file to add the row to (default: bench/results/closeness-cpu.json)")
    parser.add_argument("--picture", type=Path, help="default: bench/closeness.png")
    args = parser.parse_args(argv)
    numba.set_num_threads(args.threads)
    try:
        classes, queries, counts, sample = read(args.file, args.queries, args.data)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    args.json = args.json or tables.RESULTS / "closeness-cpu.json"
    row = row_of(args.file.stem, classes, queries, *measure(classes, queries, counts, sample, args.codewords))
    harness.publish(args, row)
    picture(row, args.picture or PICTURE)
    return row


if __name__ == "__main__":
    sys.exit(not main())
