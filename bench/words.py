"""How do the usual tools for tagging texts by their words compare? ``python -m bench.words ROW --data DIR``.

Each row is one command in a separate process: it trains on the training set, predicts the test set, and writes
bench/results/words/DATA/ROW.json. All rows get the same features: TF-IDF with sublinear counts (fastText gets the
words). ``python -m bench.words --table`` makes the tables and the figure from the finished rows; ``--list`` lists the
rows. ``--points N`` trains on N random points.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numba
import numpy as np

from sparsemax_nb import data, metrics, train
from sparsemax_nb.internals import peak_memory

from . import machine, plotting, rows, tables
from . import pecos as pecos_row
from .peers import Unavailable, answered, fasttext, omikuji, pecos, scikit

#: Rows of our classifier, with the parameters that differ from the defaults.
OURS = {
    "linear": {},
    "linear-fast": {
        "C": 0.5,
        "slack": 0.2,
        "frequency": 0.0,
        "features_per_point": 4.0,
        "extra_features": 0.0,
        "epochs": 2,
    },
}
#: Rows of the ablation table: in each, one ingredient is switched off or increased. Co-occurrence does not take part in
#: training, and is off in all of them.
INGREDIENTS = {
    "fixed-settings": {"C": 0.5, "slack": 0.2, "frequency": 0.0},
    "no-frequency": {"frequency": 0.0},
    "no-co-occurrence": {},
    "no-slack": {"slack": 0.0},
    "64-features-a-label": {"features_per_point": 0.0, "min_features": 64},
    "4-features-a-point": {"features_per_point": 4.0},
    "16-features-a-point": {"features_per_point": 16.0},
    "no-features-from-errors": {"extra_features": 0.0},
    "2-passes": {"epochs": 2},
    "10-passes": {"epochs": 10},
    "raw-counts": {"tfidf": False},
}  # fmt: skip
ROWS = *OURS, *omikuji.FORMS, "pecos", "fasttext", "centroids", "one-vs-rest"
FOLDER = tables.RESULTS / "words"
PICTURE = machine.HERE / "words.png"
#: Data sets of the table and the figure, in this order.
DATA = "tib-gnd", "yso-fi", "gutenberg", "tate"
#: The figure shows rows whose P@1 is at most this many percentage points below the best.
MAX_DISTANCE = 8
#: Number of test rows that are predicted one per call, to time single queries.
N_SINGLE = 1000


def _ours(params, part, test, folder):
    """(ids, result) of our `Classifier`."""
    points = data.bag_of_words(n_rows=300, n_features=60, words_per_row=6, n_labels=30, labels_per_row=2, seed=1)
    small = {**params, "epochs": 2, "progress": False}
    train.Classifier(**small).fit(points.features, points.labels).top_k(points.features, 5)  # compiles
    model = train.Classifier(**params, progress=False)
    start = time.perf_counter()
    model.fit(part.features, part.labels)
    seconds = time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.safetensors")
    ids, times = answered(lambda rows: model.top_k(rows, 5)[1], test.features, N_SINGLE)
    return ids, times | {
        "train_seconds": seconds,
        "fit_seconds": model.history_.seconds,
        "model_bytes": (folder / "model.safetensors").stat().st_size,
        "settings": params | {"C": model.C_, "slack": model.slack_, "frequency": model.frequency_},
        "trials": model.trials_,
        "losses": model.history_.losses,
        "plan_bytes": model.memory_plan_.nbytes,
    }


def run(row, corpus, args, folder):
    """Train and predict one row, with its files in `folder`; returns (ids, result)."""
    part, test = corpus.train, corpus.test
    if row in OURS | INGREDIENTS:
        return _ours(OURS[row] if row in OURS else INGREDIENTS[row] | {"co_occurrence": 0.0}, part, test, folder)
    if row == "fasttext":
        return fasttext.train_and_predict(
            part.features, part.labels, test.features, folder=folder, threads=args.threads
        )
    tfidf = data.Tfidf().fit(part.features)
    x, test_x = tfidf.transform(part.features), tfidf.transform(test.features)
    if row in omikuji.FORMS:
        return omikuji.train_and_predict(row, x, part.labels, test_x, folder=folder, threads=args.threads)
    if row == "pecos":
        options = pecos_row.SETTINGS | {"threads": args.threads}
        ids, figures = pecos.xr_linear(x, part.labels, test_x, python=args.python, folder=folder, options=options)
        return ids, figures | {"model_bytes": figures["network_bytes"], "settings": options}
    if row == "centroids":
        return scikit.nearest_centroids(x, part.labels, test_x, n_single=N_SINGLE)
    return scikit.one_vs_rest(x, part.labels, test_x, c=30.0, threads=args.threads, n_single=N_SINGLE)


def summary(name, found):
    """One row of results with the table of one data set."""
    header = [
        "classifier",
        "P@1",
        "P@3",
        "P@5",
        "PSP@5",
        "F1@5",
        "training s",
        "ms per query",
        "ms, single query",
        "model MiB",
        "peak GiB",
    ]
    table = []
    for row, r in found.items():
        scores = [f"{100 * r['test'][key]:.2f}" for key in ("P@1", "P@3", "P@5", "PSP@5", "F1@5")]
        times = [f"{r['train_seconds']:.1f}", f"{r['ms_a_query']:.3f}", f"{r['ms_a_query_alone']:.3f}"]
        table.append([row, *scores, *times, f"{r['model_bytes'] / 2**20:.1f}", f"{r['peak_memory_bytes'] / 2**30:.2f}"])
    example = next(iter(found.values()))
    notes = [
        f"{name}: {example['points']:,} points, {example['n_features']:,} features, {example['n_labels']:,} labels. "
        "P@k, PSP@5 (gives rare labels more weight) and F1@5 in per cent on the test set.",
        "Training time starts with the features in memory (omikuji: in its file) and includes the choice of C, slack "
        "and frequency. Query times: the whole test set in one call, and one row per call; omikuji and fastText only "
        "take one row.",
    ]
    notes += rows.closing_notes(found, ROWS, f"python -m bench.words ROW --data {name}")
    return {
        "benchmark": f"words: {name}",
        "parameters": {"data": name, "points": example["points"]},
        "seconds": {},
        "notes": notes,
        "environment": example["environment"] | {"command": f"python -m bench.words ROW --data {name}"},
        "table": {"header": header, "rows": table},
    }


def ingredients(name, found):
    """One row of results with the ablation table of a data set; None if there is no such row."""
    ablated = {row: r for row, r in found.items() if row in INGREDIENTS}
    if "linear" not in found or not ablated:
        return None
    table = []
    for row, r in ({"linear": found["linear"]} | ablated).items():
        scores = [f"{100 * r['test'][key]:.2f}" for key in ("P@1", "P@3", "P@5", "PSP@5")]
        chosen = [f"{r['settings']['C']:.2f}", f"{r['settings']['slack']:g}", f"{r['settings']['frequency']:g}"]
        table.append(
            [
                row,
                *scores,
                *chosen,
                f"{r['train_seconds']:.1f}",
                f"{r['fit_seconds']:.1f}",
                f"{r['model_bytes'] / 2**20:.1f}",
            ]
        )
    notes = [
        "C, slack and frequency are chosen anew in each row unless the row sets them. All rows but the first: no "
        "co-occurrence."
    ]
    notes += rows.elsewhere_note({"linear": found["linear"]} | ablated)
    header = [
        "linear",
        "P@1",
        "P@3",
        "P@5",
        "PSP@5",
        "C",
        "slack",
        "frequency",
        "training s",
        "without the choice of C, slack, frequency",
        "model MiB",
    ]
    return {
        "benchmark": f"ingredients: {name}",
        "parameters": {"data": name},
        "seconds": {},
        "table": {"header": header, "rows": table},
        "notes": notes,
        "environment": ablated[next(iter(ablated))]["environment"]
        | {"command": f"python -m bench.words INGREDIENT --data {name}"},
    }


def finished(names=ROWS):
    """{data: {row: result}} of all finished rows."""
    folders = [path for path in FOLDER.iterdir() if path.is_dir()] if FOLDER.exists() else []
    folders.sort(key=lambda path: (DATA.index(path.name) if path.name in DATA else len(DATA), path.name))
    return {folder.name: rows.finished(names, folder) for folder in folders}


def draw():
    """Draw the figure from bench/results/words/."""
    found = {name: of_data for name, of_data in finished().items() if name in DATA}
    if found:
        picture(found, PICTURE)


def picture(found, path):
    """Plot P@1 over the training time, one panel per data set."""
    plt = plotting.pyplot()
    from matplotlib import ticker

    colours = dict(
        zip(ROWS, ("#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#666666", "#999999"), strict=True)
    )
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 4), layout="constrained", squeeze=False)
    drawn = {}
    for axis, (name, of_data) in zip(axes[0], found.items(), strict=True):
        others = rows.elsewhere(of_data)
        shown = {
            row: r for row, r in of_data.items() if row not in others and not machine.is_disturbed(r["environment"])
        }
        best = max((100 * r["test"]["P@1"] for r in shown.values()), default=MAX_DISTANCE)
        below = [
            f"{row} {100 * r['test']['P@1']:.1f}"
            for row, r in shown.items()
            if 100 * r["test"]["P@1"] < best - MAX_DISTANCE
        ]
        for row, r in shown.items():
            if 100 * r["test"]["P@1"] >= best - MAX_DISTANCE:
                size, marker = (200, "*") if row in OURS else (60, "o")
                drawn[row] = axis.scatter(
                    r["train_seconds"], 100 * r["test"]["P@1"], color=colours[row], marker=marker, s=size
                )
        axis.set(
            xscale="log", xlabel="seconds of training", title=name, ylim=(best - MAX_DISTANCE, best + MAX_DISTANCE / 10)
        )
        if below:
            axis.text(0.5, 0.02, "below: " + ", ".join(below), transform=axis.transAxes, ha="center", fontsize=9)
        axis.margins(x=0.2)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=len(drawn), frameon=False)
    axes[0, 0].set_ylabel("P@1 on the test set (%)")
    plotting.write_picture(figure, path)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.words", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "row", nargs="?", choices=(*ROWS, *INGREDIENTS), metavar="ROW", help="the row to measure; see --list"
    )
    parser.add_argument("--data", metavar="DIR", help="the data (see sparsemax-nb train --help)")
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="FILE",
        help="Python interpreter with PECOS installed (default: this one)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("words_output"),
        metavar="DIR",
        help="folder for files and models of the competitors",
    )
    parser.add_argument("--threads", type=int, default=numba.config.NUMBA_NUM_THREADS, help="default: all")
    parser.add_argument("--points", type=int, metavar="N", help="train on N random points")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--table", action="store_true", help="make the tables and the figure from the finished rows")
    args = parser.parse_args(argv)
    if args.list:
        print(*ROWS, *INGREDIENTS, sep="\n")
        return 0
    if args.table:
        made = [summary(name, of_data) for name, of_data in finished().items()]
        made += filter(
            None, (ingredients(name, of_data) for name, of_data in finished(("linear", *INGREDIENTS)).items())
        )
        if not made:
            parser.error("no row has been measured yet")
        for row in made:
            print(tables.table(row) + "\n")
        tables.write_rows(tables.RESULTS / "words-cpu.json", made, keep=False)
        draw()
        return 0
    if not (args.row and args.data):
        parser.error("give a row and --data DIR, or --list, or --table")
    numba.set_num_threads(args.threads)
    corpus, name = data.load(args.data), Path(args.data).name
    if args.points:
        chosen = np.sort(np.random.default_rng(0).permutation(corpus.train.features.shape[0])[: args.points])
        part = data.XCData(corpus.train.features[chosen], corpus.train.labels[chosen])
        corpus, name = dataclasses.replace(corpus, train=part), f"{name}-{args.points}"
    environment = machine.environment("cpu") | {"threads": args.threads}
    try:
        with machine.other_work() as others:
            ids, figures = run(args.row, corpus, args, args.work / name / args.row)
    except Unavailable as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return 2
    environment["versions"] |= figures.pop("versions", {})
    environment["command"] = f"python -m bench.words {args.row} --data {Path(args.data).name}" + (
        f" --points {args.points}" if args.points else ""
    )
    environment |= others
    peak = figures.pop("peak_memory_bytes", None) or peak_memory()
    test = pecos_row.figures_of(ids, corpus.test.labels, corpus.train.labels) | {
        "F1@5": metrics.f1_at_k(ids, corpus.test.labels, 5)
    }
    result = {
        "command": environment["command"], "data": name, "device": "cpu", "points": corpus.train.features.shape[0],
        "n_labels": corpus.train.labels.shape[1], "n_features": corpus.train.features.shape[1], **figures,
        "peak_memory_bytes": peak, "test": test, "environment": environment,
    }  # fmt: skip
    rows.write(result, FOLDER / name, args.row)
    print(
        args.row,
        name,
        {key: round(100 * value, 2) for key, value in result["test"].items()},
        f"{figures['train_seconds']:.1f} s",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
