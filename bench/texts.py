"""How good are predictions from raw texts? ``python -m bench.texts ROW --data DIR``.

Each row is one command in a separate process: it trains on the texts of the training set, predicts those of the test
set, and writes bench/results/texts/DATA/ROW.json. Our classifier gets texts and label names; omikuji gets the features
of our `TextVectorizer`. Rows of embeddings need ``--embeddings DIR``, made by any encoder before. ``--table`` adds the
rows of ``bench.annif``, which get the same texts.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
from sklearn.preprocessing import MultiLabelBinarizer

from sparsemax_nb import data, metrics, nearest_neighbors, train
from sparsemax_nb.internals import peak_memory

from . import machine, rows, tables
from .peers import Unavailable, annif, answered, omikuji, scikit
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
#: Rows of our classifier that get embeddings alone, and embeddings beside the texts.
EMBEDDINGS = {
    "embeddings": {"architecture": "kernel"},
    "embeddings-power-1": {"architecture": "kernel", "power": 1.0},
}
PAIRS = {"texts-and-embeddings": {}, "texts-and-embeddings-head": {"head_weight": 0.25}}
#: A baseline without training: the labels of the nearest training points.
PLAIN = "plain-neighbors"
WITH_EMBEDDINGS = *EMBEDDINGS, *PAIRS, PLAIN
PARAMETERS = OURS | EMBEDDINGS | PAIRS
ROWS = *OURS, *WITH_EMBEDDINGS, *omikuji.FORMS
FOLDER = tables.RESULTS / "texts"
DATA = "gutenberg", "yso-fi"
#: Labels with at most this many training points are rare.
RARE = 5
#: Precisions that thresholds promise.
PROMISED = 0.5, 0.7, 0.8, 0.9
#: Neighbors of the baseline, and the power of their cosine similarities.
NEIGHBORS, POWER = 40, 6
#: The encoder of our figures, for the help.
ENCODER = "all-MiniLM-L6-v2 (384 numbers, max_seq_length 32)"
#: Settings that a fitted classifier may have.
CHOSEN = "C", "slack", "frequency", "power", "kernel_C", "kernel_weight", "head_weight"
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


@dataclass
class Inputs:
    """Texts, embeddings (n, d) or both, of the same rows; what the classifier does not get is None."""

    texts: np.ndarray | None
    h: np.ndarray | None

    def of(self, rows=slice(None)):
        """Texts, embeddings or a pair of them, as the classifier takes them."""
        found = tuple(part[rows] for part in (self.texts, self.h) if part is not None)
        return found if len(found) == 2 else found[0]


def read_embeddings(folder, part, n_texts):
    """The embeddings of a part of the data, (n_texts, d) float32."""
    path = Path(folder) / f"{part}.npy"
    h = np.load(path)
    if h.ndim != 2 or len(h) != n_texts:
        raise ValueError(f"{path} must have one row per text, {n_texts} in all, got the shape {h.shape}")
    return h.astype(np.float32)


def _ours(params, x, labels, test_x, test_labels, folder):
    """Our classifier; x and test_x are `Inputs`."""
    texts = np.array(["old maps", "old books", "new maps"] * 40)
    h = np.random.default_rng(0).random((120, 8), np.float32)
    few = Inputs(None if x.texts is None else texts, None if x.h is None else h).of()
    train.Classifier(**params, progress=False).fit(few, [["map"], ["book"], ["map", "new"]] * 40).predict(few)
    if x.h is not None:
        _search_once(x.h)
    model = train.Classifier(**params, progress=False)  # everything is compiled now
    start = time.perf_counter()
    model.fit(x.of(), labels)
    seconds = time.perf_counter() - start
    peak = peak_memory()
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.safetensors")
    numbers = np.arange(len(test_labels))
    _, times = answered(lambda rows: model.top_k(test_x.of(np.atleast_1d(rows)), 5), numbers, N_SINGLE)
    k = min(20, model.n_labels_)
    _, ids = model.top_k(test_x.of(), k)
    y = indicator(test_labels, model.classes_.tolist())
    counts = np.pad(model.label_counts_, (0, y.shape[1] - model.n_labels_))
    found = figures_of(ids, y, counts, model.n_points_)
    if model.calibration_ is not None:
        probabilities = model.predict_proba(test_x.of(), k)[np.arange(len(ids))[:, None], ids].toarray()
        found |= _calibration_figures(probabilities, metrics.hits_at_k(ids, y, k))
        sets = model.evaluate(test_x.of(), test_labels)
        found |= {name: sets[name] for name in ("sample F1", "micro F1", "macro F1")}
        found |= {"threshold": model.threshold_, "limit": model.limit_}
    return times | {
        "train_seconds": seconds,
        "peak_memory_bytes": peak,
        "model_bytes": (folder / "model.safetensors").stat().st_size,
        "settings": params | {name: getattr(model, f"{name}_") for name in CHOSEN if hasattr(model, f"{name}_")},
        "n_features": model.n_features_in_,
        "n_labels": model.n_labels_,
        "test": found,
    }


def _search_once(h):
    """Compile the search for neighbors, for one row and for many."""
    for n in (1, 256):
        nearest_neighbors(h[:n], h, min(NEIGHBORS, len(h)))


def _plain_neighbors(h, labels, test_h, test_labels):
    """The labels of the nearest training points; the training time is that of scaling the points to length 1."""
    names = sorted({name for of_row in (*labels, *test_labels) for name in of_row})
    y, test_y = indicator(labels, names), indicator(test_labels, names)
    _search_once(h)
    ids, result = scikit.nearest_votes(h, y, test_h, neighbors=NEIGHBORS, power=POWER, k=20, n_single=N_SINGLE)
    counts = np.bincount(y.indices, minlength=len(names))
    return result | {
        "peak_memory_bytes": peak_memory(),
        "settings": {"neighbors": NEIGHBORS, "power": POWER},
        "n_features": h.shape[1],
        "n_labels": int((counts > 0).sum()),
        "test": figures_of(ids, test_y, counts, len(h)),
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
    command, embedded = f"python -m bench.texts ROW --data {name}", [row for row in WITH_EMBEDDINGS if row in found]
    notes += rows.closing_notes(found, [row for row in ROWS if row not in WITH_EMBEDDINGS], command)
    if embedded:
        notes += [
            f"{', '.join(embedded)}: embeddings of width {found[embedded[0]]['embedding_width']}; making them is not "
            f"part of the times. {PLAIN}: the labels of the {NEIGHBORS} nearest training texts, each with cosine ** "
            f"{POWER}; nothing is trained.",
            *rows.missing_note(found, WITH_EMBEDDINGS, f"{command} --embeddings DIR"),
        ]
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
    texts, embeddings = [np.array(each.texts, object) for each in (part, test)], [None, None]
    if row in WITH_EMBEDDINGS:
        sizes = ("train", len(part.texts)), ("test", len(test.texts))
        embeddings = [read_embeddings(args.embeddings, *size) for size in sizes]
    if row in EMBEDDINGS:
        texts = [None, None]
    x, test_x = map(Inputs, texts, embeddings)
    work = args.work / name / row
    with machine.other_work() as others:
        if row in PARAMETERS:
            result = _ours(PARAMETERS[row], x, part.labels, test_x, test.labels, work)
        elif row == PLAIN:
            result = _plain_neighbors(x.h, part.labels, test_x.h, test.labels)
        else:
            result = _omikuji(row, part, test, work, args.threads)
    environment["versions"] |= result.pop("versions", {})
    environment["command"] = f"python -m bench.texts {row} --data {name}"
    if row in WITH_EMBEDDINGS:
        environment["command"] += " --embeddings DIR"
        result["embedding_width"] = x.h.shape[1]
    return {
        "command": environment["command"], "data": name, "device": "cpu", "points": len(part.texts),
        "test_points": len(test.texts), **result, "environment": environment | others,
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.texts", description=__doc__.partition("\n")[0])
    parser.add_argument("row", nargs="?", choices=ROWS, help="the row to measure")
    parser.add_argument("--data", metavar="DIR", help="a folder with train_text.tsv.xz and test_text.tsv.xz")
    embeddings = (
        "a folder with train.npy and test.npy, one row per text, made by any encoder, for the rows "
        f"{', '.join(WITH_EMBEDDINGS)}; our figures are those of gutenberg, encoded by {ENCODER}"
    )
    parser.add_argument("--embeddings", metavar="DIR", help=embeddings)
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
    if (args.row in WITH_EMBEDDINGS) != (args.embeddings is not None):
        needs = "" if args.row in WITH_EMBEDDINGS else "not "
        parser.error(f"--embeddings DIR must {needs}be given for the row {args.row}")
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
