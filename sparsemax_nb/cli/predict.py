"""The commands `evaluate`, `predict` and `generate`, which use a saved model."""

import os
import re
import sys
from pathlib import Path

from .. import data, train
from ..core import checkpoint
from . import common

#: Points per call of `top_k`: bounds the memory for their features and scores.
POINTS_PER_BATCH = 4096
#: The columns of the table that `predict` prints.
COLUMNS = "row", "rank", "label", "name", "score"
TABLE_FORMAT = (
    "The table has a line of column names, then one line per point and predicted label, best label first. Rows and "
    "labels are numbered from 0, ranks from 1. The name is the label's number if the model has no label names. Tabs, "
    "line breaks and backslashes in names are escaped (\\t, \\n, \\\\)."
)
#: Control characters and line separators, which would end a field or a line; and the backslash, which starts an escape.
ESCAPED_CHARACTERS = re.compile(r"[\\\x00-\x1f\x7f\x85\u2028\u2029]")


def evaluate(options):
    """Evaluate a saved model on a part of a corpus: ranking metrics of a classifier, perplexity of a language model."""
    if checkpoint.kind_of(options.model) == train.LanguageModel.kind:
        return _evaluate_language_model(options)
    model = train.Classifier.load(options.model, device=options.device)
    name = common.resolve_data(
        model, options.model, options.data, data.corpora.BUNDLED, "the folder of the data to evaluate on"
    )
    corpus = data.load(name)
    points = getattr(corpus, options.part)
    if points is None:
        raise ValueError(f"{name} has no {options.part} part")
    if points.features.shape[1] != model.n_features_in_:
        raise ValueError(
            f"--data must have {model.n_features_in_} features, as {options.model} expects, but {name} has "
            f"{points.features.shape[1]}; use the data that the model was trained on"
        )
    if not options.any_data:
        common.check_same_data(model, options.model, corpus.name, corpus.train.features, corpus.train.labels)
    print(
        f"sparsemax-nb: {points.features.shape[0]:,} points, evaluating {common.device_line(options.device)}",
        file=sys.stderr,
    )
    metrics = model.evaluate(points.features, points.labels)
    common.print_metrics(options.part, metrics)
    print(f"{options.part}  {1e3 * metrics['seconds'] / max(points.features.shape[0], 1):.3f} ms per point")
    return {"model": options.model, "data": name, "part": options.part} | metrics


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
        raise FileNotFoundError(f"{path} cannot be read: there is no such file")
    if path.endswith(".npy"):
        return data.arrays.read_dense(Path(path))[:n_rows]
    if path.endswith(".npz"):
        return data.arrays.read_csr(Path(path))[:n_rows]
    return data.read_xc(path, n_points=n_rows).features


def predict(options):
    """Predict the labels of points batch by batch, and print them as a table."""
    model = train.Classifier.load(options.model, device=options.device)
    print(f"sparsemax-nb: predicting {common.device_line(options.device)}", file=sys.stderr)
    points = _points(options.file, options.rows)
    result = []
    print(*COLUMNS, sep="\t")
    for start in range(0, points.shape[0], POINTS_PER_BATCH):
        scores, ids = model.top_k(points[start : start + POINTS_PER_BATCH], options.k)
        texts = scores.astype(str)
        for row in range(len(ids)):
            names = [model.label_names_[i] if model.label_names_ else str(i) for i in ids[row]]
            for rank, (i, name, text) in enumerate(zip(ids[row], names, texts[row], strict=True), 1):
                print(start + row, rank, i, _escape(name), text, sep="\t")
            if options.json:
                found = zip(ids[row].tolist(), names, scores[row].tolist(), strict=True)
                result.append([{"label": i, "name": name, "score": score} for i, name, score in found])
    return result


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
    sub.add_argument("--part", choices=("train", "dev", "test"), default="test", help="part of the data to evaluate on")


def predict_options(sub, device):
    """The options of `predict`."""
    sub.epilog = TABLE_FORMAT
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    points = "points: text in the format of the Extreme Classification Repository, or features as .npy or .npz"
    sub.add_argument("file", help=points)
    sub.add_argument("-k", type=int, default=None, help="labels per point (default: 5, or all if there are fewer)")
    sub.add_argument("--rows", type=common.count, default=None, metavar="N", help="use only the first N points")


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
