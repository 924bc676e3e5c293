"""How does the linear layer over words grow with the labels? ``python -m bench.words_scale ROW`` (README.md says what is measured).

A row is one command, in a process of its own: made-up titles, two passes, the second with the features that the errors
of the first added, then the answers to titles that are kept aside. It writes bench/results/words_scale/ROW.json;
``--table`` makes the table of the rows that there are, ``--list`` names them.
"""

import argparse
import sys

import numba
import numpy as np
import scipy.sparse

from sparsemax_nb import data, train

from . import machine, rows, tables, timing
from .peers import answered

#: Labels and threads of the rows.
ROWS = {
    f"{n}-labels-{t}-threads": (n, t)
    for n, t in ((1_000, 2), (10_000, 2), (100_000, 1), (100_000, 2), (670_000, 2), (3_000_000, 2))
}
POINTS, WORDS, ASKED = 490_449, 135_909, 10_000
#: The size that should train within so many bytes beyond the data.
MAIN, LIMIT = 670_000, 1 << 30
FOLDER = tables.RESULTS / "words_scale"
WORDS_PER_TITLE, WORDS_PER_LABEL, LABELS_PER_TITLE, NOISE = 10, 4, 5, 0.25
#: Label l is drawn with probability proportional to (l + 1)^-0.5, word w with 1 / (w + 10).
LABEL_EXPONENT, FIRST_WORDS = 0.5, 10
SETTINGS = {"architecture": "linear", "C": 0.5, "slack": 0.2, "frequency": 0.0, "epochs": 2}


def titles(n_points, n_words, n_labels, seed=0):
    """(counts, labels) of titles: a word is mostly one of the four of one of the title's labels, else any; common ones more often."""
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


def measure(n_labels, n_threads, n_points=POINTS, n_words=WORDS, n_asked=ASKED):
    """Compile, train, ask; returns what was found."""
    numba.set_num_threads(n_threads)
    for few in (200, 20_000):  # both ways to look at the labels of a row
        x, y = titles(300, 60 + few // 10, few)
        train.Classifier(**SETTINGS, progress=False).fit(x, y).predict(x, 5)
    x, y = titles(n_points + n_asked, n_words, n_labels)
    held, truth = x[n_points:], y[n_points:]
    x, y = x[:n_points], y[:n_points]
    with machine.memory_growth() as growth:
        model = train.Classifier(**SETTINGS, progress=False).fit(x, y)
        _, times = answered(lambda some: model.predict(some, 5), held, min(1000, n_asked))
    found = model.evaluate(held, truth, ks=[1, 5])
    frequent = np.bincount(y.indices).max() / n_points  # P@1 of the most frequent label, given to all
    timing.require(
        found["P@1"] > 2 * frequent, f"P@1 is {found['P@1']:.3f}, the most frequent label alone has {frequent:.3f}"
    )
    first, second = (epoch["seconds"] for epoch in model.history_.epochs)
    return {
        "labels": n_labels, "threads": n_threads, "points": n_points, "settings": SETTINGS, "bytes": growth["bytes"],
        "plan_bytes": model.memory_plan_.nbytes, "weights_bytes": model.network_.nbytes, "first_pass_seconds": first,
        "second_pass_seconds": second - first, "P@1": found["P@1"], "P@5": found["P@5"], **times,
    }  # fmt: skip


def summary(found):
    """The row of results with the table of {name: result}."""
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
    some = next(iter(found.values()))
    notes = [
        f"{some['points']:,} made-up titles of {WORDS_PER_TITLE} words, {LABELS_PER_TITLE} labels each; C = {SETTINGS['C']}, slack = "
        f"{SETTINGS['slack']}. The first pass ends with the choice of the additional features.",
        "Memory: growth of the process beyond the data, weights included. Query: all together, and one by one.",
    ]
    for r in found.values():
        if r["labels"] == MAIN and r["bytes"] is not None:
            verdict = "met" if r["bytes"] <= LIMIT else "not met"
            notes.append(f"Target: {MAIN:,} labels within {LIMIT >> 20:,} MiB: {verdict}.")
        one = found.get(f"{r['labels']}-labels-1-threads")
        if r["threads"] > 1 and one:
            times = [q["first_pass_seconds"] + q["second_pass_seconds"] for q in (one, r)]
            notes.append(
                f"{r['labels']:,} labels: {r['threads']} threads are {times[0] / times[1]:.2f} times as fast as one."
            )
    notes += rows.elsewhere_note(found)
    if missing := [f"`python -m bench.words_scale {row}`" for row in ROWS if row not in found]:
        notes.append(f"Not run: {', '.join(missing)}.")
    return {
        "benchmark": "words_scale", "parameters": {"points": some["points"]}, "seconds": {}, "notes": notes,
        "environment": some["environment"] | {"command": "python -m bench.words_scale ROW"},
        "table": {
            "header": ["labels", "threads", "first pass s", "second pass s", "MiB beyond the data", "weights MiB", "ms a query", "one by one", "P@1"],
            "rows": table,
        },
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.words_scale", description=__doc__.partition("\n")[0])
    parser.add_argument("row", nargs="?", choices=ROWS, metavar="ROW", help="the row to measure; see --list")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--table", action="store_true", help="make the table of the rows that there are")
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
        parser.error("name a row, or --list or --table")
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
