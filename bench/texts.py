"""How good are predictions from raw texts? ``python -m bench.texts ROW --data DIR``.

Each row is one command in a separate process: it trains on the texts of the training set, predicts those of the test
set, and writes bench/results/texts/DATA/ROW.json. Our classifier gets texts and label names; omikuji gets the features
of our `TextVectorizer`. ``--table`` adds the rows of ``bench.annif``, which get the same texts.
"""

import argparse
import sys
import time
from pathlib import Path

import numba
import numpy as np
from sklearn.preprocessing import MultiLabelBinarizer

from sparsemax_nb import data, metrics, train
from sparsemax_nb.internals import peak_memory

from . import machine, rows, tables
from .peers import Unavailable, annif, answered, omikuji
from .words import N_SINGLE

#: Rows of our classifier, with the parameters that differ from the defaults.
OURS = {
    "texts": {},
    "words-only": {"word_pairs": False, "char_ngrams": 0},
    "no-word-pairs": {"word_pairs": False},
    "no-n-grams": {"char_ngrams": 0},
    "5-grams": {"char_ngrams": 5},
    "no-names": {"name_points": False},
    "not-calibrated": {"calibration": False},
    "hashed-18-bits": {"hash_bits": 18},
}
ROWS = *OURS, *omikuji.FORMS
FOLDER = tables.RESULTS / "texts"
DATA = "gutenberg", "yso-fi"
#: Labels with at most this many training points are rare.
RARE = 5
#: Precisions that thresholds promise.
PROMISED = 0.5, 0.7, 0.8, 0.9
METRICS = "P@1", "P@3", "P@5", "PSP@5", "F1@5", "nDCG@5", "rare R@5"


def read(folder, part):
    """The texts and label names of a part of the data."""
    return data.read_texts(Path(folder) / f"{part}_text.tsv.xz")


def figures_of(ids, labels, counts, n_points):
    """Ranking metrics of ids (n, >= 5) for CSR labels, whose columns have `counts` training points."""
    found = {f"P@{k}": metrics.precision_at_k(ids, labels, k) for k in (1, 3, 5)}
    found["PSP@5"] = metrics.psp_at_k(ids, labels, metrics.propensities(counts, n_points), 5)
    found |= {"F1@5": metrics.f1_at_k(ids, labels, 5), "nDCG@5": metrics.ndcg_at_k(ids, labels, 5)}
    is_rare = (counts > 0) & (counts <= RARE)
    rare = labels.multiply(is_rare[None]).tocsr()
    has_rare = np.flatnonzero(np.diff(rare.indptr))
    return found | {"rare R@5": metrics.recall_at_k(ids[has_rare], rare[has_rare], 5)}


def _calibration_figures(probabilities, hits):
    """Calibration of a top 20: errors, and what thresholds that promise a precision reach."""
    found = {f"ECE of {k}": metrics.expected_calibration_error(probabilities[:, :k], hits[:, :k]) for k in (1, 5, 20)}
    for promised in PROMISED:
        chosen = probabilities >= promised
        n = max(1, int(chosen.sum()))
        found[f"share of right ones among probabilities of at least {promised}"] = float(hits[chosen].sum() / n)
        found[f"mean probability of those of at least {promised}"] = float(probabilities[chosen].sum() / n)
    return found


def _ours(params, part, test, folder):
    small = ["old maps", "old books", "new maps"] * 40, [["map"], ["book"], ["map", "new"]] * 40
    train.Classifier(**params, progress=False).fit(*small).predict(small[0])  # compiles
    model = train.Classifier(**params, progress=False)
    start = time.perf_counter()
    model.fit(part.texts, part.labels)
    seconds = time.perf_counter() - start
    peak = peak_memory()
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.safetensors")
    texts = np.array(test.texts, object)
    _, times = answered(lambda given: model.top_k([given] if isinstance(given, str) else given, 5), texts, N_SINGLE)
    k = min(20, model.n_labels_)
    _, ids = model.top_k(texts, k)
    labels = indicator(test.labels, model.classes_.tolist())
    counts = np.pad(model.label_counts_, (0, labels.shape[1] - model.n_labels_))
    found = figures_of(ids, labels, counts, model.n_points_)
    if model.calibration_ is not None:
        probabilities = model.predict_proba(texts, k)[np.arange(len(ids))[:, None], ids].toarray()
        found |= _calibration_figures(probabilities, metrics.hits_at_k(ids, labels, k))
        sets = model.evaluate(test.texts, test.labels)
        found |= {name: sets[name] for name in ("sample F1", "micro F1", "macro F1")}
        found |= {"threshold": model.threshold_, "limit": model.limit_}
    return times | {
        "train_seconds": seconds,
        "peak_memory_bytes": peak,
        "model_bytes": (folder / "model.safetensors").stat().st_size,
        "settings": params | {"C": model.C_, "slack": model.slack_, "frequency": model.frequency_},
        "n_features": model.n_features_in_,
        "n_labels": model.n_labels_,
        "test": found,
    }


def _omikuji(form, part, test, folder, threads):
    """omikuji with our features; the training time includes making them."""
    vectorizer, start = data.TextVectorizer(), time.perf_counter()
    x = vectorizer.fit_transform(part.texts)
    seconds = time.perf_counter() - start
    names = sorted({name for of_row in (*part.labels, *test.labels) for name in of_row})
    y, test_y = indicator(part.labels, names), indicator(test.labels, names)
    ids, result = omikuji.train_and_predict(
        form, x, y, vectorizer.transform(test.texts), folder=folder, threads=threads, k=20
    )
    counts = np.bincount(y.indices, minlength=len(names))
    return result | {
        "train_seconds": result["train_seconds"] + seconds,
        "n_features": x.shape[1],
        "n_labels": int((counts > 0).sum()),
        "test": figures_of(ids, test_y, counts, len(part.texts)),
    }


def indicator(labels, names):
    """Lists of label names as a CSR matrix of ones; columns for other names follow those of `names`."""
    others = sorted({name for of_row in labels for name in of_row}.difference(names))
    return MultiLabelBinarizer(classes=[*names, *others], sparse_output=True).fit_transform(labels)


def finished(name):
    """{row: result} of the finished rows of a data set, those of Annif included."""
    return rows.finished(ROWS, FOLDER / name) | rows.finished(annif.PROJECTS, tables.RESULTS / "annif" / name)


def summary(name, found):
    """One row of results with the table of one data set."""
    header = [
        "row", *METRICS, "sample F1", "calibration error", "promised 80 %", "training s", "ms, single query",
        "model MiB", "peak GiB",
    ]  # fmt: skip
    reached = "share of right ones among probabilities of at least 0.8"
    table = []
    for row, r in found.items():
        shown = [*METRICS, "sample F1", "ECE of 20", reached]
        cells = [f"{100 * r['test'][key]:.2f}" if key in r["test"] else "" for key in shown]
        alone = f"{r['ms_a_query_alone']:.3f}" if "ms_a_query_alone" in r else f"{r['ms_a_query']:.3f}"
        sizes = [f"{r['model_bytes'] / 2**20:.1f}", f"{r['peak_memory_bytes'] / 2**30:.2f}"]
        table.append([row, *cells, f"{r['train_seconds']:.1f}", alone, *sizes])
    example = next(iter(found.values()))
    notes = [
        f"{name}: {example['points']:,} training texts, {example['test_points']:,} test texts. All metrics in per cent "
        f"on the test set. rare R@5: recall of the labels with at most {RARE} training texts. sample F1: mean F1 of "
        "the predicted label sets. Calibration error: expected calibration error of the best 20 labels. Promised "
        "80 %: share of right ones among the labels with a probability of at least 0.8.",
        "Training: from texts in memory to the trained model, including the choice of C, slack and frequency (Annif: "
        "a whole command). Query: one text per call (Annif: suggestions for the whole test set in one command).",
        "omikuji gets our features. Annif makes its own.",
    ]
    notes += rows.closing_notes(found, ROWS, f"python -m bench.texts ROW --data {name}")
    return {
        "benchmark": f"texts: {name}",
        "parameters": {"data": name, "points": example["points"]},
        "seconds": {},
        "notes": notes,
        "environment": example["environment"] | {"command": f"python -m bench.texts ROW --data {name}"},
        "table": {"header": header, "rows": table},
    }


def measure(row, folder, args):
    """Train and evaluate one row; returns the row of results."""
    name, part, test = Path(folder).name, read(folder, "train"), read(folder, "test")
    environment = machine.environment("cpu") | {"threads": args.threads}
    work = args.work / name / row
    with machine.other_work() as others:
        if row in OURS:
            result = _ours(OURS[row], part, test, work)
        else:
            result = _omikuji(row, part, test, work, args.threads)
    environment["versions"] |= result.pop("versions", {})
    environment["command"] = f"python -m bench.texts {row} --data {name}"
    return {
        "command": environment["command"], "data": name, "device": "cpu", "points": len(part.texts),
        "test_points": len(test.texts), **result, "environment": environment | others,
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.texts", description=__doc__.partition("\n")[0])
    parser.add_argument("row", nargs="?", choices=ROWS, help="the row to measure")
    parser.add_argument("--data", metavar="DIR", help="a folder with train_text.tsv.xz and test_text.tsv.xz")
    parser.add_argument(
        "--work", type=Path, default=Path("accuracy_output"), metavar="DIR", help="folder for models and files"
    )
    parser.add_argument("--threads", type=int, default=numba.config.NUMBA_NUM_THREADS, help="default: all")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--table", action="store_true", help="make the tables from the finished rows")
    args = parser.parse_args(argv)
    if args.list:
        print(*ROWS, sep="\n")
        return 0
    if args.table:
        made = []
        for name in DATA:
            if found := finished(name):
                made.append(summary(name, found))
        if not made:
            parser.error("no row has been measured yet")
        for row in made:
            print(tables.table(row) + "\n")
        tables.write_rows(tables.RESULTS / "texts-cpu.json", made, keep=False)
        return 0
    if not (args.row and args.data):
        parser.error("give a row and --data DIR, or --list, or --table")
    numba.set_num_threads(args.threads)
    try:
        result = measure(args.row, args.data, args)
    except Unavailable as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return 2
    rows.write(result, FOLDER / Path(args.data).name, args.row)
    print(args.row, {name: round(100 * value, 2) for name, value in result["test"].items()})
    print(f"{result['train_seconds']:.1f} s of training, {result['model_bytes'] / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
