"""How does the linear layer over words grow with the labels? ``python -m bench.words_scale`` (README.md says what is measured).

Made-up titles; each size in a process of its own: two passes, the second with the features that the errors of the first
added, then the answers to titles that are kept aside.
"""

import time

import numba
import numpy as np
import scipy.sparse

from sparsemax_nb import data, train

from . import harness, machine
from .memory_670k import in_its_own_process
from .peers import answered

SIZES = {
    "points": (490_449, 3_000), "words": (135_909, 500), "largest": (3_000_000, 1_000), "limit_mib": (1024, 64), "asked": (10_000, 200),
}  # fmt: skip
LABELS = 1_000, 10_000, 100_000, 670_000, 3_000_000
#: The size whose memory and speed-up by threads are asked for.
MAIN = 670_000
WORDS_PER_TITLE, WORDS_PER_LABEL, LABELS_PER_TITLE, NOISE = 10, 4, 5, 0.25
#: Label l is drawn with probability proportional to (l + 1)^-0.5, word w with 1 / (w + 10).
LABEL_EXPONENT, FIRST_WORDS = 0.5, 10
SETTINGS = {"architecture": "linear", "C": 0.5, "slack": 0.2, "epochs": 2}


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


def measure(queue, args, n_labels, n_threads):
    """What a process of its own does: compile, train, ask, report."""
    numba.set_num_threads(n_threads)
    for few in (200, 20_000):  # both ways to look at the labels of a row
        x, y = titles(300, 60 + few // 10, few)
        train.Classifier(**SETTINGS, progress=False).fit(x, y).predict(x, 5)
    x, y = titles(args.points + args.asked, args.words, n_labels)
    held, truth = x[args.points :], y[args.points :]
    x, y = x[: args.points], y[: args.points]
    with machine.memory_growth() as growth:
        model = train.Classifier(**SETTINGS, progress=False).fit(x, y)
        _, times = answered(lambda rows: model.predict(rows, 5), held, min(1000, args.asked))
    found = model.evaluate(held, truth, ks=[1, 5])
    chance = np.sort(np.diff(y.tocsc().indptr))[::-1][:1].sum() / args.points  # always the most frequent label
    harness.require(found["P@1"] > 2 * chance, f"P@1 is {found['P@1']:.3f}, the most frequent label alone has {chance:.3f}")
    first, second = (epoch["seconds"] for epoch in model.history_.epochs)
    queue.put(
        {
            "bytes": growth["bytes"], "plan": model.memory_plan_.nbytes, "weights_bytes": model.network_.nbytes,
            "first": first, "second": second - first, "P@1": found["P@1"], "P@5": found["P@5"], **times,
        }
    )  # fmt: skip


def main(argv=None):
    args = harness.arguments("words_scale", __doc__.partition("\n")[0], SIZES, argv)
    if args.device != "cpu":
        raise SystemExit("bench.words_scale measures the CPU; use --device cpu")
    figures, rows = {}, []
    start = time.perf_counter()
    for n_labels in [n for n in LABELS if n <= args.largest]:
        for n_threads in (1, args.threads) if n_labels == MAIN and args.threads > 1 else (args.threads,):
            found = in_its_own_process(measure, args, n_labels, n_threads)
            print(f"{n_labels:,} labels, {n_threads} threads", found, flush=True)
            figures[f"{n_labels} labels, {n_threads} threads"] = found
            growth = "-" if found["bytes"] is None else f"{found['bytes'] / 2**20:,.0f}"
            rows.append(
                [f"{n_labels:,}", str(n_threads), f"{found['first']:.1f}", f"{found['second']:.1f}", growth]
                + [f"{found['weights_bytes'] / 2**20:,.0f}", f"{found['ms_a_query']:.3f}", f"{found['ms_a_query_alone']:.3f}"]
                + [f"{100 * found['P@1']:.1f}"]
            )
    notes = [
        f"{args.points:,} made-up titles of {WORDS_PER_TITLE} words among {args.words:,} (Zipf), {LABELS_PER_TITLE} labels each; "
        f"{time.perf_counter() - start:,.0f} s in all.",
        "Passes: seconds of the first, which ends with the choice of the additional features, and of the second.",
        "Memory: growth of the process beyond the data, weights included. Query: all together, and one by one.",
    ]
    main_row = figures.get(f"{MAIN} labels, {args.threads} threads")
    if main_row and main_row["bytes"] is not None:
        verdict = "met" if main_row["bytes"] <= args.limit_mib << 20 else "not met"
        notes.append(f"Target: {MAIN:,} labels within {args.limit_mib:,} MiB: {verdict}.")
    one = figures.get(f"{MAIN} labels, 1 threads")
    if main_row and one and args.threads > 1:
        notes.append(f"{args.threads} threads: {(one['first'] + one['second']) / (main_row['first'] + main_row['second']):.2f} times one.")
    row = {
        "benchmark": "words_scale", "parameters": args.parameters | {"device": args.device, "settings": SETTINGS},
        "table": {
            "header": ["labels", "threads", "first pass s", "second pass s", "MiB beyond the data", "weights MiB", "ms a query", "one by one", "P@1"],
            "rows": rows,
        },
        "notes": notes, "figures": figures, "environment": machine.environment(args.device),
    }  # fmt: skip
    return [harness.publish(args, row)]


if __name__ == "__main__":
    main()
