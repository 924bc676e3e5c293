"""The commands that use a saved model: `evaluate`, `predict` and `generate`."""

import os
import re
import sys
from pathlib import Path

from .. import data, train
from ..core import checkpoint
from . import common

PREDICTED_AT_ONCE = 4096  # points
#: The columns of the table that `predict` prints.
PREDICTED = "row", "rank", "label", "name", "score"
TABLE = (
    "The table: a line of column names, then a line for each label of each point, best first. Rows and labels count from 0, ranks "
    "from 1. The name is the label's number where the model has no names; tabs, ends of lines and backslashes in names are escaped "
    "(\\t, \\n, \\\\)."
)
#: What would end a field or a line of it, for whatever reads it; and the backslash, which escapes.
ENDS = re.compile(r"[\\\x00-\x1f\x7f\x85\u2028\u2029]")


def evaluate(options):
    """Measure a saved model on a part of a corpus: precision and its kin of a classifier, perplexity of a language model."""
    if checkpoint.kind_of(options.model) == train.LanguageModel.kind:
        return _evaluate_language_model(options)
    model = train.Classifier.load(options.model, device=options.device)
    name = common.data_of(
        model, options.model, options.data, data.corpora.BUNDLED, "the folder of the points to measure it on"
    )
    corpus = data.load(name)
    points = getattr(corpus, options.part)
    if points is None:
        raise ValueError(f"{name} has no {options.part} part")
    if points.features.shape[1] != model.n_features_in_:
        raise ValueError(
            f"{options.model} takes {model.n_features_in_} features, {name} has {points.features.shape[1]}; "
            "--data names what the model was trained on"
        )
    if not options.any_data:
        common.check_same_data(model, options.model, corpus.name, corpus.train.features, corpus.train.labels)
    print(
        f"sparsemax-nb: {points.features.shape[0]:,} points, evaluating {common.device_line(options.device)}",
        file=sys.stderr,
    )
    figures = model.evaluate(points.features, points.labels)
    common.print_figures(options.part, figures)
    print(f"{options.part}  {1e3 * figures['seconds'] / max(points.features.shape[0], 1):.3f} ms a point")
    return {"model": options.model, "data": name, "part": options.part} | figures


def _evaluate_language_model(options):
    model = train.LanguageModel.load(options.model, device=options.device)
    part = {"dev": "valid"}.get(options.part, options.part)
    print(f"sparsemax-nb: evaluating {common.device_line(options.device)}", file=sys.stderr)
    task, name, parts, unknown = common.texts_of(model, options.model, options.data, options.any_data)
    if unknown is not None:
        print(f"{part}  {unknown[part]:.2%} of the tokens are not in the model's vocabulary")
    figures = model.evaluate(parts[part])
    common.print_language_figures(part, figures, task)
    return {"model": options.model, "data": name, "part": part} | figures


def generate(options):
    """Continue a prompt with a language model, word by word."""
    model = train.LanguageModel.load(options.model, device=options.device)
    print(f"sparsemax-nb: generating {common.device_line(options.device)}", file=sys.stderr)
    drawn = {"temperature": options.temperature, "top_k": options.top_k, "seed": options.seed}
    text = model.generate(options.prompt, options.words, **drawn)
    print(f"{options.prompt} {text}")
    return {"model": options.model, "prompt": options.prompt, "text": text} | drawn


def _points(path, n_rows):
    """Features from a text file, or from a .npy or .npz file of the features alone."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} can not be read: it is a folder; name a file of points in it")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} can not be read: there is no such file")
    if path.endswith(".npy"):
        return data.arrays.read_dense(Path(path))[:n_rows]
    if path.endswith(".npz"):
        return data.arrays.read_csr(Path(path))[:n_rows]
    return data.read_xc(path, n_points=n_rows).features


def predict(options):
    """Predict the labels of points, and print them as a table, batch by batch."""
    model = train.Classifier.load(options.model, device=options.device)
    print(f"sparsemax-nb: predicting {common.device_line(options.device)}", file=sys.stderr)
    points = _points(options.file, options.rows)
    result = []
    print(*PREDICTED, sep="\t")
    for start in range(0, points.shape[0], PREDICTED_AT_ONCE):
        scores, ids = model.top_k(points[start : start + PREDICTED_AT_ONCE], options.k)
        texts = scores.astype(str)
        for row in range(len(ids)):
            names = [model.label_names_[i] if model.label_names_ else str(i) for i in ids[row]]
            for rank, (i, name, text) in enumerate(zip(ids[row], names, texts[row], strict=True), 1):
                print(start + row, rank, i, _escaped(name), text, sep="\t")
            if options.json:
                found = zip(ids[row].tolist(), names, scores[row].tolist(), strict=True)
                result.append([{"label": i, "name": name, "score": score} for i, name, score in found])
    return result


def _escaped(text):
    """`text` without what ends a field or a line: such characters, and backslashes, as Python writes them in a string."""
    return ENDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def evaluate_options(sub, device):
    """The options of `evaluate`."""
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    data_help = "what the model was trained on; need not be given where that is bundled"
    sub.add_argument("--data", metavar="DIR-or-NAME", help=data_help)
    any_data = "measure it on data that it was not trained on, too, with the same features and labels, or words"
    sub.add_argument("--any-data", action="store_true", help=any_data)
    sub.add_argument("--part", choices=("train", "dev", "test"), default="test", help="of the data")


def predict_options(sub, device):
    """The options of `predict`."""
    sub.epilog = TABLE
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    points = "points: text in the Extreme Classification Repository's format, or features as .npy, .npz"
    sub.add_argument("file", help=points)
    sub.add_argument("-k", type=int, default=None, help="labels per point (default: 5, or all where there are fewer)")
    sub.add_argument("--rows", type=common.count, default=None, metavar="N", help="only the first N points")


def generate_options(sub, device):
    """The options of `generate`."""
    device(sub)
    sub.add_argument("model", help="file written by train language-model --save")
    sub.add_argument("prompt", help="words divided by blanks")
    sub.add_argument("--words", type=common.count, default=50, metavar="N", help="to be drawn")
    sub.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: the best word every time")
    sub.add_argument("--top-k", type=int, default=None, metavar="K", help="draw from the K best words only")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws")
