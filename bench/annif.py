"""How good is Annif on the same texts? ``python -m bench.annif ROW --data DIR --python FILE``.

Annif is the subject-indexing tool of libraries. It gets raw texts. Each row is one project with Annif's omikuji
backend: trained with ``annif train``, evaluated with ``annif eval``, and written to bench/results/annif/DATA/ROW.json.
The best 20 suggestions per document (ids.npy in the --work folder) are measured a second time with our metrics; the
script fails if Annif's metrics and ours, with the same definitions, differ. ``--table`` makes the table.
"""

import argparse
import sys
from pathlib import Path

import numba
import numpy as np

from sparsemax_nb import data, metrics

from . import machine, rows, tables, timing
from . import pecos as pecos_row
from .peers import Unavailable, annif

FOLDER = tables.RESULTS / "annif"
#: {data: (language, analyzer)}. Each folder holds texts in train_text.tsv.xz and test_text.tsv.xz, in the order of the
#: bags of words.
LANGUAGES = {"gutenberg": ("en", "snowball(english)"), "yso-fi": ("fi", "snowball(finnish)")}
#: Suggestions with equal scores have no fixed order: Annif's metrics may differ from ours by this much.
TOLERANCE = 1e-3


def texts(folder, part):
    """The texts of a part of the data, without their labels."""
    return [line.partition("\t")[0] for line in data.read_names(Path(folder) / f"{part}_text.tsv.xz")]


def annifs_metrics(ids, labels, limit=annif.EVAL_LIMIT):
    """Metrics with the definitions of ``annif eval --limit LIMIT``, from ids (n, >= limit) padded with -1.

    Precision@k divides by the number of suggestions, at most k. NDCG divides the DCG of `limit` suggestions by the best
    DCG of any number of suggestions; NDCG@k by the best DCG of k, like `ndcg_at_k`. Every row must have a label.
    """
    hits, n_true = metrics.hits_at_k(ids, labels, limit), np.diff(labels.indptr)
    n_found = np.cumsum(ids >= 0, axis=1)
    precision = {f"Precision@{k}": hits[:, :k].sum(1) / np.maximum(1, n_found[:, k - 1]) for k in (1, 3, 5)}
    gains = 1 / np.log2(np.arange(2, max(limit, n_true.max(initial=0)) + 2))
    ndcg = hits @ gains[:limit] / np.cumsum(gains)[n_true - 1]
    found = precision | {"F1@5": 2 * hits[:, :5].sum(1) / (n_found[:, 4] + n_true), "NDCG": ndcg}
    return {name: float(values.mean()) for name, values in found.items()} | {
        f"NDCG@{k}": metrics.ndcg_at_k(ids, labels, k) for k in (5, 10)
    }


def check_agreement(theirs, ids, labels):
    """The largest difference between Annif's metrics and `annifs_metrics`; stops if it is above TOLERANCE."""
    ours = annifs_metrics(ids, labels)
    differences = {name: abs(value - theirs[name]) for name, value in ours.items()}
    worst = max(differences, key=differences.get)
    timing.require(
        differences[worst] <= TOLERANCE, f"Annif's {worst} is {theirs[worst]:.4f}, ours from its suggestions is "
        f"{ours[worst]:.4f}",
    )  # fmt: skip
    return differences[worst]


def summary(name, found):
    """One row of results with the table of one data set."""
    header = [
        "project", "P@1", "P@3", "P@5", "PSP@5", "F1@5", "nDCG@5", "Annif's F1@5", "Annif's NDCG", "training s",
        "evaluation s", "ms per query", "model MiB", "peak GiB",
    ]  # fmt: skip
    table = []
    for row, r in found.items():
        scores = [f"{100 * r['test'][key]:.2f}" for key in ("P@1", "P@3", "P@5", "PSP@5", "F1@5", "nDCG@5")]
        scores += [f"{100 * r['annif'][key]:.2f}" for key in ("F1@5", "NDCG")]
        times = [f"{r['train_seconds']:.1f}", f"{r['eval_seconds']:.1f}", f"{r['ms_a_query']:.3f}"]
        table.append([row, *scores, *times, f"{r['model_bytes'] / 2**20:.1f}", f"{r['peak_memory_bytes'] / 2**30:.2f}"])
    example = next(iter(found.values()))
    notes = [
        f"{name}: {example['points']:,} training texts, {example['test_points']:,} test texts, {example['n_labels']:,} "
        "labels. All metrics in per cent on the test set.",
        "Annif's F1@5 divides by the number of suggestions where there are fewer than five. Annif's NDCG divides the "
        f"DCG of {annif.EVAL_LIMIT} suggestions by the best DCG of any number.",
        "Training and evaluation: whole commands, from texts in a file. Query: suggestions for the whole test set in "
        "one command, without the time of the same command for one text.",
    ]
    notes += rows.closing_notes(found, annif.PROJECTS, f"python -m bench.annif ROW --data {name}")
    return {
        "benchmark": f"annif: {name}",
        "parameters": {"data": name},
        "seconds": {},
        "notes": notes,
        "environment": example["environment"] | {"command": f"python -m bench.annif ROW --data {name} --python FILE"},
        "table": {"header": header, "rows": table},
    }


def measure(row, corpus, args):
    """Train and evaluate one project; returns the row of results."""
    name = Path(args.data).name
    language, analyzer = LANGUAGES[name]
    parts = [(texts(args.data, part), getattr(corpus, part).labels) for part in ("train", "test")]
    environment = machine.environment("cpu") | {"threads": args.threads}
    with machine.other_work() as others:
        ids, figures = annif.train_and_suggest(
            row, *parts, data.read_names(Path(args.data) / "labels.txt.xz"), language=language, analyzer=analyzer,
            python=args.python, folder=args.work / name / row, threads=args.threads,
        )  # fmt: skip
    labels = corpus.test.labels
    difference = check_agreement(figures["annif"], ids, labels)
    environment["versions"] |= figures.pop("versions")
    environment["command"] = f"python -m bench.annif {row} --data {name} --python FILE"
    test = pecos_row.figures_of(ids, labels, corpus.train.labels) | {"F1@5": metrics.f1_at_k(ids, labels, 5)}
    test |= {f"nDCG@{k}": metrics.ndcg_at_k(ids, labels, k) for k in (5, 10, 20)}
    return {
        "command": environment["command"], "data": name, "device": "cpu", "points": len(parts[0][0]),
        "test_points": len(ids), "n_labels": labels.shape[1], **figures, "test": test,
        "largest_difference_from_annif": difference, "environment": environment | others,
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.annif", description=__doc__.partition("\n")[0])
    parser.add_argument("row", nargs="?", choices=tuple(annif.PROJECTS), help="the project to measure")
    parser.add_argument("--data", metavar="DIR", help=f"the data, one of {', '.join(LANGUAGES)}")
    parser.add_argument(
        "--python", default=sys.executable, metavar="FILE", help="Python interpreter with Annif (default: this one)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("annif_output"), metavar="DIR", help="folder for files and models of Annif"
    )
    parser.add_argument("--threads", type=int, default=numba.config.NUMBA_NUM_THREADS, help="default: all")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--table", action="store_true", help="make the tables from the finished rows")
    args = parser.parse_args(argv)
    if args.list:
        print(*annif.PROJECTS, sep="\n")
        return 0
    if args.table:
        found = {name: rows.finished(annif.PROJECTS, FOLDER / name) for name in LANGUAGES}
        made = [summary(name, of_data) for name, of_data in found.items() if of_data]
        if not made:
            parser.error("no row has been measured yet")
        for row in made:
            print(tables.table(row) + "\n")
        tables.write_rows(tables.RESULTS / "annif-cpu.json", made, keep=False)
        return 0
    if not (args.row and args.data):
        parser.error("give a row and --data DIR, or --list, or --table")
    name = Path(args.data).name
    if name not in LANGUAGES:
        parser.error(f"--data must be one of {', '.join(LANGUAGES)}, got {name}; add its language to bench/annif.py")
    args.work = args.work.resolve()
    try:
        result = measure(args.row, data.load(args.data), args)
    except Unavailable as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return 2
    rows.write(result, FOLDER / name, args.row)
    for kind in "test", "annif":
        print(args.row, name, kind, {key: round(100 * value, 2) for key, value in result[kind].items() if value <= 1})
    print(f"{result['train_seconds']:.1f} s of training, {result['eval_seconds']:.1f} s of evaluation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
