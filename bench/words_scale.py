"""How does the linear classifier on word features scale with the labels? ``python -m bench.words_scale ROW``.

Each row is one command in a separate process. It trains on synthetic titles for two passes; the second one uses the
features that the errors of the first one added. Then it predicts held-out titles. The result is written to
bench/results/words_scale/ROW.json; ``--table`` makes the table from the finished rows, ``--list`` lists the rows.
"""

import argparse
import sys

import numba
import numpy as np
import scipy.sparse

from sparsemax_nb import data, train

from . import machine, rows, tables, timing
from .peers import answered

#: {row: (number of labels, number of threads)}.
ROWS = {
    f"{n}-labels-{t}-threads": (n, t)
    for n, t in ((1_000, 2), (10_000, 2), (100_000, 1), (100_000, 2), (670_000, 2), (3_000_000, 2))
}
N_POINTS, N_WORDS, N_TEST = 490_449, 135_909, 10_000
#: Target: MAIN labels train within LIMIT bytes, in addition to the data.
MAIN, LIMIT = 670_000, 1 << 30
FOLDER = tables.RESULTS / "words_scale"
WORDS_PER_TITLE, WORDS_PER_LABEL, LABELS_PER_TITLE, NOISE = 10, 4, 5, 0.25
#: Label l is drawn with a probability proportional to (l + 1)^-0.5, word w to 1 / (w + 10).
LABEL_EXPONENT, FIRST_WORDS = 0.5, 10
SETTINGS = {"architecture": "linear", "C": 0.5, "slack": 0.2, "frequency": 0.0, "epochs": 2}


def titles(n_points, n_words, n_labels, seed=0):
    """Synthetic titles: returns (word counts, labels).

    Each label owns four words. A word of a title is one of the four words of a random label of the title, or, with
    probability NOISE, any word. Words are drawn by frequency.
    """
    rng = np.random.default_rng(seed)
    labels = data.power_law_labels(n_points, n_labels, LABELS_PER_TITLE, LABEL_EXPONENT, seed)
    share = np.cumsum(1 / (np.arange(n_words) + FIRST_WORDS))

    def drawn(shape):
        return np.searchsorted(share, rng.random(shape) * share[-1]).astype(np.int32)

    shape = n_points, WORDS_PER_TITLE
    of_title = labels.indices.reshape(n_points, LABELS_PER_TITLE)
    label = np.take_along_axis(of_title, rng.integers(LABELS_PER_TITLE, size=shape), axis=1)
    ids = drawn((n_labels, WORDS_PER_LABEL))[label, rng.integers(WORDS_PER_LABEL, size=shape)]
    ids = np.where(rng.random(shape) < NOISE, drawn(shape), ids)
    counts = scipy.sparse.csr_matrix(
        (np.ones(ids.size, np.float32), ids.ravel(), np.arange(0, ids.size + 1, WORDS_PER_TITLE)), (n_points, n_words)
    )
    counts.sum_duplicates()
    return counts, labels


def measure(n_labels, n_threads, n_points=N_POINTS, n_words=N_WORDS, n_test=N_TEST):
    """Compile, train and predict; returns the measurements."""
    numba.set_num_threads(n_threads)
    for n in (200, 20_000):  # compiles: training looks up the labels of a row in one of two ways, by their number
        x, y = titles(300, 60 + n // 10, n)
        train.Classifier(**SETTINGS, progress=False).fit(x, y).predict(x, 5)
    x, y = titles(n_points + n_test, n_words, n_labels)
    test_x, test_y = x[n_points:], y[n_points:]
    x, y = x[:n_points], y[:n_points]
    with machine.memory_growth() as growth:
        model = train.Classifier(**SETTINGS, progress=False).fit(x, y)
        _, times = answered(lambda rows: model.predict(rows, 5), test_x, min(1000, n_test))
    found = model.evaluate(test_x, test_y, ks=[1, 5])
    frequent = np.bincount(y.indices).max() / n_points  # P@1 of always predicting the most frequent label
    timing.require(
        found["P@1"] > 2 * frequent, f"P@1 is {found['P@1']:.3f}, only the most frequent label gives {frequent:.3f}"
    )
    first, second = (epoch["seconds"] for epoch in model.history_.epochs)
    return {
        "labels": n_labels, "threads": n_threads, "points": n_points, "settings": SETTINGS, "bytes": growth["bytes"],
        "plan_bytes": model.memory_plan_.nbytes, "weights_bytes": model.network_.nbytes, "first_pass_seconds": first,
        "second_pass_seconds": second - first, "P@1": found["P@1"], "P@5": found["P@5"], **times,
    }  # fmt: skip


def summary(found):
    """The row of results with the table, from {row: result}."""
    table = []
    for r in found.values():
        growth = "-" if r["bytes"] is None else f"{r['bytes'] / 2**20:,.0f}"
        table.append(
            [
                f"{r['labels']:,}",
                str(r["threads"]),
                f"{r['first_pass_seconds']:.1f}",
                f"{r['second_pass_seconds']:.1f}",
                growth,
            ]
            + [
                f"{r['weights_bytes'] / 2**20:,.0f}",
                f"{r['ms_a_query']:.3f}",
                f"{r['ms_a_query_alone']:.3f}",
                f"{100 * r['P@1']:.1f}",
            ]
        )
    example = next(iter(found.values()))
    notes = [
        f"{example['points']:,} synthetic titles of {WORDS_PER_TITLE} words and {LABELS_PER_TITLE} labels; C = "
        f"{SETTINGS['C']}, slack = {SETTINGS['slack']}. The first pass includes the choice of the additional features.",
        "Memory: growth of the process in addition to the data, weights included. Query times: all rows in one call, "
        "and one row per call.",
    ]
    for r in found.values():
        if r["labels"] == MAIN and r["bytes"] is not None:
            verdict = "met" if r["bytes"] <= LIMIT else "not met"
            notes.append(f"Target: {MAIN:,} labels within {LIMIT >> 20:,} MiB: {verdict}.")
        one = found.get(f"{r['labels']}-labels-1-threads")
        if r["threads"] > 1 and one:
            times = [q["first_pass_seconds"] + q["second_pass_seconds"] for q in (one, r)]
            notes.append(
                f"{r['labels']:,} labels: {r['threads']} threads are {times[0] / times[1]:.2f} times as fast as one "
                "thread."
            )
    notes += rows.elsewhere_note(found)
    if missing := [f"`python -m bench.words_scale {row}`" for row in ROWS if row not in found]:
        notes.append(f"Not run: {', '.join(missing)}.")
    return {
        "benchmark": "words_scale",
        "parameters": {"points": example["points"]},
        "seconds": {},
        "notes": notes,
        "environment": example["environment"] | {"command": "python -m bench.words_scale ROW"},
        "table": {
            "header": [
                "labels",
                "threads",
                "first pass s",
                "second pass s",
                "MiB in addition to the data",
                "weights MiB",
                "ms per query",
                "ms, single query",
                "P@1",
            ],
            "rows": table,
        },
    }


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.words_scale", description=__doc__.partition("\n")[0])
    parser.add_argument("row", nargs="?", choices=ROWS, metavar="ROW", help="the row to measure; see --list")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--table", action="store_true", help="make the table from the finished rows")
    args = parser.parse_args(argv)
    if args.list:
        print(*ROWS, sep="\n")
        return 0
    if args.table:
        found = rows.finished(ROWS, FOLDER)
        if not found:
            parser.error("no row has been measured yet")
        print(tables.table(summary(found)) + "\n")
        tables.write_rows(tables.RESULTS / "words_scale-cpu.json", [summary(found)], keep=False)
        return 0
    if not args.row:
        parser.error("give a row, or --list, or --table")
    with machine.other_work() as others:
        found = measure(*ROWS[args.row])
    environment = (
        machine.environment("cpu")
        | {"threads": found["threads"], "command": f"python -m bench.words_scale {args.row}"}
        | others
    )
    rows.write(
        found | {"command": environment["command"], "device": "cpu", "environment": environment}, FOLDER, args.row
    )
    print(args.row, {name: value for name, value in found.items() if name != "settings"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
