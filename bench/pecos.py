"""How good is PECOS XR-Linear on the same data? ``python -m bench.pecos --data DIR --python FILE``.

Adds a row to the table of bench.accuracy. PECOS needs a separate environment (``python3 -m venv pecos && pecos/bin/pip
install libpecos``); --python is the Python of that environment. A repeated command does not train again. The result is
written to bench/results/accuracy/pecos-xr-linear.json.
"""

import argparse
import sys
from pathlib import Path

from sparsemax_nb import data, metrics

from . import accuracy, machine, rows
from .peers import Unavailable, pecos

#: Defaults of PECOS: trees with 16 children per node and at most 100 labels per leaf; weights below 0.1 are dropped;
#: beam of 10.
SETTINGS = {"beam": 10, "tree": {"nr_splits": 16, "max_leaf_size": 100, "seed": 0}, "solver": {"threshold": 0.1}}


def figures_of(ids, labels, training_labels):
    """The metrics of the rows of bench.accuracy, on the test set."""
    propensity = metrics.propensities(training_labels.getnnz(axis=0), training_labels.shape[0])
    figures = {f"P@{k}": metrics.precision_at_k(ids, labels, k) for k in (1, 3, 5)}
    return figures | {"PSP@5": metrics.psp_at_k(ids, labels, propensity, 5)}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.pecos", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="the data (see sparsemax-nb train --help)")
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="FILE",
        help="Python interpreter with PECOS installed (default: this one)",
    )
    parser.add_argument(
        "--work", type=Path, default=Path("accuracy_output"), metavar="DIR", help="folder for the model and arrays"
    )
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    args = parser.parse_args(argv)
    corpus = data.load(args.data)
    tfidf = data.Tfidf().fit(corpus.train.features)
    x, test_x = (tfidf.transform(part.features) for part in (corpus.train, corpus.test))
    options, folder = SETTINGS | {"threads": args.threads}, args.work / f"pecos-{Path(args.data).name}"
    try:
        ids, figures = pecos.xr_linear(
            x, corpus.train.labels, test_x, python=args.python, folder=folder, options=options
        )
    except Unavailable as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return 2
    environment = machine.environment("cpu") | {"threads": args.threads}
    environment["versions"] |= figures.pop("versions")
    environment["command"] = f"python -m bench.pecos --data {Path(args.data).name}"
    result = {
        "command": environment["command"], "data": Path(args.data).name, "device": "cpu", "points": x.shape[0],
        "n_labels": corpus.train.labels.shape[1], "n_features": x.shape[1], "settings": options, **figures,
        "test": figures_of(ids, corpus.test.labels, corpus.train.labels), "environment": environment,
    }  # fmt: skip
    rows.write(result, accuracy.FOLDER, accuracy.PECOS)
    print(result["test"] | figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
