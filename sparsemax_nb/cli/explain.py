"""The command `explain`: which words or features speak for a label."""

import dataclasses
import sys

from .. import train
from . import common, predict


def explain(options):
    """Print, for one text or one row of features, what each word or feature adds to the score of labels."""
    common.check_plot(options.plot)
    model = train.Classifier.load(options.model, device=options.device)
    print(f"sparsemax-nb: explaining {common.device_line(options.device)}", file=sys.stderr)
    found = model.explain(_point(model, options), _label(model, options.label), options.n)
    found = [found] if isinstance(found, train.Explanation) else found
    print(*found, sep="\n\n")
    if options.plot:
        found[0].plot(options.plot)
    return {"model": options.model, "explanations": list(map(dataclasses.asdict, found))}


def _point(model, options):
    """The text, or a row of the features in the file."""
    if model.vectorizer_ is not None:
        if options.row is not None:
            raise ValueError(f"--row is for a model of features, but {options.model} takes texts; omit it")
        return options.file
    row = options.row or 0
    points = predict._points(options.file, row + 1)
    if points.shape[0] <= row:
        raise ValueError(f"--row must be below {points.shape[0]}, the number of rows in {options.file}, got {row}")
    return points[row : row + 1]


def _label(model, name):
    """The element of `classes_` with this name, which may also be the text of the element itself; None for None."""
    if name is None:
        return None
    classes = model.classes_.tolist()
    for names in (model.label_names_ or [], list(map(str, classes))):
        if name in names:
            return classes[names.index(name)]
    raise ValueError(f"--label must be the name or number of a label of the model, got {name!r}")


def explain_options(sub, device):
    """The options of `explain`."""
    device(sub)
    sub.add_argument("model", help="file written by train --save, or by Classifier.save")
    point = "the text; for a model of features, a file as for predict"
    sub.add_argument("file", metavar="TEXT", help=point)
    row = "for a model of features: the row to explain, counted from 0 (default: 0)"
    sub.add_argument("--row", type=common.count, default=None, metavar="N", help=row)
    label = "name or number of the label to explain (default: the predicted labels, or the best one if there are none)"
    sub.add_argument("--label", metavar="NAME", help=label)
    sub.add_argument("-n", type=int, default=10, metavar="N", help="number of words or features to list")
    plot = "also draw a bar chart of the first explanation to FILE (.png, .svg or .pdf)"
    sub.add_argument("--plot", metavar="FILE", help=plot)
