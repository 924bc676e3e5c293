"""The commands `evaluate`, `predict` and `generate`, which use a saved model."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np

from .. import data, train
from ..core import check, checkpoint, files
from ..metrics import per_label
from ..train.classifier_targets import MATRIX, encode
from . import common, texts

#: Points per call of `top_k`: bounds the memory for their features and scores.
POINTS_PER_BATCH = 4096
#: The columns of the table that `predict` prints.
COLUMNS = "row", "rank", "label", "name", "score", "probability", "points"
#: The columns of the table that `evaluate --per-label` writes.
PER_LABEL_COLUMNS = "label", "name", "points", "support", "predicted", "hits", "precision", "recall", "f1"
TABLE_FORMAT = (
    "The table has a line of column names, then one line per point or text and predicted label, best label first. Rows "
    "are numbered from 0, ranks from 1. Labels are those of the training data, or numbers from 0 if these have no "
    "label names. The probability is empty if the model is not calibrated. Points is the number of training points of "
    "the label; 0: only its name is known. A row without predicted labels has no line in the table, and an empty list "
    "in JSON lines. Tabs, line breaks and backslashes in names are escaped (\\t, \\n, \\\\)."
)
DENSE_HELP = "embeddings, one per point or text, in the same order, for a model that was trained with --dense"
#: Control characters and line separators, which would end a field or a line; and the backslash, which starts an escape.
ESCAPED_CHARACTERS = re.compile(r"[\\\x00-\x1f\x7f\x85\u2028\u2029]")


def evaluate(options):
    """Evaluate a saved model: ranking and label-set metrics of a classifier, perplexity of a language model."""
    if checkpoint.kind_of(options.model) == train.LanguageModel.kind:
        for option in ("text", "dense", "per_label", "label_weights"):
            if getattr(options, option) is not None:
                flag = "--" + option.replace("_", "-")
                raise ValueError(f"{flag} needs a classifier, but {options.model} is a language model; use --data")
        return _evaluate_language_model(options)
    model = train.Classifier.load(options.model, device=options.device)
    if options.text is not None:
        part = "test"
        name, x, y, excluded = (*_labeled_texts(model, options), None)
    else:
        part = options.part
        name, points = _part_of_data(model, options)
        x, y, excluded = points.features, points.labels, points.excluded
    n, unit = (len(x), "text") if options.text else (x.shape[0], "point")
    if (dense := _checked_dense(model, options, n)) is not None:
        x = x, dense
    print(f"sparsemax-nb: {n:,} {unit}s, evaluating {common.device_line(options.device)}", file=sys.stderr)
    metrics = model.evaluate(x, y, excluded=excluded, label_weights=options.label_weights)
    common.print_metrics(part, metrics)
    print(f"{part}  {1e3 * metrics['seconds'] / max(n, 1):.3f} ms per {unit}")
    result = {"model": options.model, "data": name, "part": part} | metrics
    if options.per_label:
        _write_per_label(model, x, y, excluded, options)
        print(f"wrote the metrics of each label to {options.per_label}")
    return result


def _checked_dense(model, options, n_rows):
    """The embeddings in --dense, or None; ValueError unless the model was trained with embeddings beside others."""
    needs = model.architecture_ == "wide-and-deep" and not model.dense_columns
    if needs != (options.dense is not None):
        has = "was" if needs else "was not"
        raise ValueError(
            f"--dense FILE.npy must {'' if needs else 'not '}be given: {options.model} {has} trained with embeddings "
            "beside other features"
        )
    return common.embeddings(options.dense, n_rows)


def _labeled_texts(model, options):
    """Name, texts and labels of --text; prints how many of the labels the model does not know."""
    if options.data is not None or options.part != "test":
        raise ValueError("--text and --data or --part must not be given together: all texts are evaluated")
    texts.require_texts(model, options.model, "--text")
    corpus = texts.read_labeled(options.text, options)
    if model.data_ is not None and model.data_["fingerprint"] == data.fingerprint(*texts.digests(corpus)):
        print(
            "sparsemax-nb: the model was trained on these texts: it knows their labels, and other texts give lower "
            "metrics",
            file=sys.stderr,
        )
    used = {label for labels in corpus.labels for label in labels}
    if unknown := used.difference(model.classes_.tolist()):
        n = sum(label in unknown for labels in corpus.labels for label in labels)
        print(
            f"{len(unknown):,} of the {len(used):,} labels are unknown to the model; their {n:,} occurrences count as "
            "missed"
        )
    return texts.name_of(options.text), corpus.texts, texts.targets(model, corpus, options.text)


def _n_columns(model):
    """The number of features in a file, without the embeddings in --dense."""
    return model.n_features_in_ if model.dense_columns else model._n_sparse


def _part_of_data(model, options):
    """The name of --data, and the points of --part."""
    if model.vectorizer_ is not None:
        raise ValueError(f"--text FILE is needed instead of --data: {options.model} is a model of texts")
    name = common.resolve_data(
        model, options.model, options.data, data.corpora.BUNDLED, "the folder of the data to evaluate on"
    )
    corpus = data.load(name)
    points = getattr(corpus, options.part)
    if points is None:
        raise ValueError(f"{name} has no {options.part} part")
    if points.features.shape[1] != _n_columns(model):
        raise ValueError(
            f"--data must have {_n_columns(model)} features, as {options.model} expects, but {name} has "
            f"{points.features.shape[1]}; use the data that the model was trained on"
        )
    if not options.any_data:
        common.check_same_data(model, options.model, corpus.name, corpus.train.features, corpus.train.labels)
    return name, points


def _write_per_label(model, x, y, excluded, options):
    """Write a table of the labels with their precision, recall and F1 among the labels that `predict` would print."""
    labels, classes = encode("y", y, model._target_form, None if model._target_form == MATRIX else model.classes_)
    offsets = model._offsets(None, None, options.label_weights)
    _, ids, _, chosen = model._answers(model._features(x), None, None, None, offsets)
    table = per_label(np.where(chosen, ids, -1), labels, ids.shape[1], excluded=excluded)
    order = np.lexsort((table["label"], -table["support"]))
    with files.writing(options.per_label) as file:
        file.write(("\t".join(PER_LABEL_COLUMNS) + "\n").encode())
        for row in order:
            i = table["label"][row]
            if i < model.n_labels_:
                fields = [*_described(model, i), model.label_counts_[i]]
            else:
                fields = [classes[i], classes[i], 0]
            fields += [table[column][row] for column in ("support", "predicted", "hits")]
            fields += [f"{table[column][row]:.4f}" for column in ("precision", "recall", "f1")]
            file.write(("\t".join(_escape(str(field)) for field in fields) + "\n").encode())


def _evaluate_language_model(options):
    model = train.LanguageModel.load(options.model, device=options.device)
    part = {"dev": "valid"}.get(options.part, options.part)
    print(f"sparsemax-nb: evaluating {common.device_line(options.device)}", file=sys.stderr)
    task, name, parts, unknown = common.load_texts(model, options.model, options.data, options.any_data)
    if unknown is not None:
        print(f"{part}  {unknown[part]:.2%} of the tokens are not in the model's vocabulary")
    metrics = model.evaluate(parts[part])
    common.print_language_metrics(part, metrics, task)
    return {"model": options.model, "data": name, "part": part} | metrics


def generate(options):
    """Continue a prompt word by word with a language model."""
    model = train.LanguageModel.load(options.model, device=options.device)
    print(f"sparsemax-nb: generating {common.device_line(options.device)}", file=sys.stderr)
    drawn = {"temperature": options.temperature, "top_k": options.top_k, "seed": options.seed}
    text = model.generate(options.prompt, options.words, **drawn)
    print(f"{options.prompt} {text}")
    return {"model": options.model, "prompt": options.prompt, "text": text} | drawn


def _points(path, n_rows):
    """Read features from a text file, or from a .npy or .npz file that contains features only."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} cannot be read: it is a folder; pass a file in it")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} cannot be read: there is no such file; the model expects features, not texts")
    if path.endswith(".npy"):
        return data.arrays.read_dense(Path(path))[:n_rows]
    if path.endswith(".npz"):
        return data.arrays.read_csr(Path(path))[:n_rows]
    return data.read_xc(path, n_points=n_rows).features


def predict(options):
    """Predict the labels of points or texts batch by batch, and print them."""
    model = train.Classifier.load(options.model, device=options.device)
    allow, forbid = (texts.read_label_list(path, model) for path in (options.allow, options.forbid))
    offsets = model._offsets(allow, forbid, options.label_weights)
    print(f"sparsemax-nb: predicting {common.device_line(options.device)}", file=sys.stderr)
    batches, dense = _batches(model, options), _checked_dense(model, options, None)
    first, result = 0, []
    if options.format == "table":
        print(*COLUMNS, sep="\t", flush=True)
    for batch in batches:
        if dense is not None:
            n = first + (batch.shape[0] if hasattr(batch, "shape") else len(batch))
            if dense.shape[0] < n:
                raise ValueError(
                    f"{options.dense} must have one row per point or text, at least {n}, got {dense.shape[0]}"
                )
            batch = batch, dense[first:n]
        x = model._features(batch)
        answers = model._answers(x, options.k, options.threshold, options.limit, offsets)
        for row, found in enumerate(_labels_of_rows(model, *answers), first):
            if options.format == "table":
                for rank, label in enumerate(found, 1):
                    print(row, rank, *map(_field, label.values()), sep="\t")
            else:
                found = [{name: _plain(value) for name, value in label.items()} for label in found]
                print(json.dumps({"row": row, "labels": found}))
            if options.json:
                result.append([{name: _plain(value) for name, value in label.items()} for label in found])
        first += x.shape[0]
        sys.stdout.flush()  # whoever waits for the answer to a line gets it now
    if dense is not None and options.rows is None and dense.shape[0] > first:
        raise ValueError(f"{options.dense} must have one row per point or text, {first} in all, got {dense.shape[0]}")
    return result


def _batches(model, options):
    """Batches of features or texts."""
    if model.vectorizer_ is None:
        if len(options.points) > 1 or options.points == ["-"]:
            raise ValueError(
                f"{options.model} expects one file with {_n_columns(model)} features per point, got "
                f"{' '.join(map(check.shown, options.points))}; texts need a model that was trained with --text"
            )
        points = _points(options.points[0], options.rows)
        for start in range(0, points.shape[0], POINTS_PER_BATCH):
            yield points[start : start + POINTS_PER_BATCH]
        return
    for found in texts.given_texts(options.points, options.rows, options.json_lines, options.text_field):
        for start in range(0, len(found), POINTS_PER_BATCH):
            yield found[start : start + POINTS_PER_BATCH]


def _labels_of_rows(model, scores, ids, probabilities, chosen):
    """Yield a list of dicts for each row: the chosen labels, best first, as they are printed."""
    for row, mask in enumerate(chosen):
        labels = []
        for column in np.flatnonzero(mask):
            i = ids[row, column]
            label, name = _described(model, i)
            probability = None if probabilities is None else probabilities[row, column]
            labels.append({
                "label": label, "name": name, "score": scores[row, column], "probability": probability,
                "points": model.label_counts_[i],
            })  # fmt: skip
        yield labels


def _described(model, i):
    """A label of the model, and its name."""
    label = model.classes_[i]
    return label, model.label_names_[i] if model.label_names_ else str(label)


def _plain(value):
    """A NumPy scalar as a number of Python; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _field(value):
    """A field of the table."""
    return "" if value is None else _escape(str(value))


def _escape(text):
    """Escape control characters, line separators and backslashes, as in a Python string literal."""
    return ESCAPED_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def evaluate_options(sub, device):
    """The options of `evaluate`."""
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    data_help = "the data that the model was trained on; may be omitted if bundled"
    sub.add_argument("--data", metavar="DIR-or-NAME", help=data_help)
    any_data = "allow other data than those the model was trained on, with the same features and labels, or words"
    sub.add_argument("--any-data", action="store_true", help=any_data)
    sub.add_argument("--dense", metavar="FILE.npy", help=DENSE_HELP)
    sub.add_argument("--part", choices=("train", "dev", "test"), default="test", help="part of the data to evaluate on")
    texts.text_options(sub, "texts with labels, for a model of texts, as in train classifier")
    per_label_help = (
        "write a tab-separated table with precision, recall and F1 of each label in the label sets (without "
        "calibration: among the 5 best), most frequent label first"
    )
    sub.add_argument("--per-label", metavar="FILE", help=per_label_help)
    _label_weights_option(sub)


def _label_weights_option(sub):
    weights = "prefer rare labels: multiply the odds of each label by the inverse of its propensity"
    sub.add_argument("--label-weights", choices=("inverse-propensity",), default=None, help=weights)


def predict_options(sub, device):
    """The options of `predict`."""
    sub.epilog = TABLE_FORMAT
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    points = (
        "for a model of texts: files or folders as in train classifier --text, whose labels are ignored; - for lines "
        "from standard input, each answered at once, up to the first tab; or texts themselves. Otherwise a file with "
        "points, in the format of the Extreme Classification Repository, or features as .npy or .npz"
    )
    sub.add_argument("points", nargs="+", metavar="TEXT-or-FILE", help=points)
    sub.add_argument("--dense", metavar="FILE.npy", help=DENSE_HELP)
    k = "number of labels (default: the label set that the model's threshold selects; without calibration, 5)"
    sub.add_argument("-k", type=int, default=None, help=k)
    threshold = "predict labels with at least this probability (default: the model's choice)"
    sub.add_argument("--threshold", type=float, default=None, metavar="P", help=threshold)
    limit = "maximum size of a label set (default: the model's choice)"
    sub.add_argument("--limit", type=int, default=None, metavar="N", help=limit)
    sub.add_argument("--allow", metavar="FILE", help="predict only the labels in FILE, one per line")
    sub.add_argument("--forbid", metavar="FILE", help="do not predict the labels in FILE, one per line")
    _label_weights_option(sub)
    sub.add_argument(
        "--rows", type=common.count, default=None, metavar="N", help="use only the first N points or texts"
    )
    sub.add_argument("--json-lines", action="store_true", help="standard input has JSON lines")
    texts.field_options(sub, labels=False)
    output = "a tab-separated table, or a JSON object per point or text, in a line"
    sub.add_argument("--format", choices=("table", "json-lines"), default="table", help=output)


def generate_options(sub, device):
    """The options of `generate`."""
    device(sub)
    sub.add_argument("model", help="file written by train language-model --save")
    sub.add_argument("prompt", help="words separated by spaces")
    sub.add_argument("--words", type=common.count, default=50, metavar="N", help="number of words to generate")
    sub.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divides the scores before sampling; 0: always take the most likely word",
    )
    sub.add_argument("--top-k", type=int, default=None, metavar="K", help="sample from the K most likely words only")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="random seed")
