"""Command line: ``sparsemax-nb`` or ``python -m sparsemax_nb``. Every figure a command prints can be had with --json."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time

import numba

from . import __version__, data, demo, train
from .core import backend
from .core.formulas import LOSSES
from .train.classifier import OUTPUTS

LIBRARIES = "numba", "numba-cuda", "numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "scikit-learn", "torch"


def _write_json(path, result):
    temporary = f"{path}.part"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    os.replace(temporary, path)


def _info(_):
    """Devices, toolkit, libraries, and what would run where."""
    problem = backend.cuda_problem()
    result = {
        "sparsemax_nb": __version__, "python": platform.python_version(), "cpu": demo.cpu_name(),
        "cpu_threads": numba.config.NUMBA_NUM_THREADS, "simulator": backend.SIMULATOR,
        "cuda": problem or backend.cuda_description(), "device_auto": backend.resolve_device("auto"), "libraries": {},
    }  # fmt: skip
    for name in LIBRARIES:
        try:
            result["libraries"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result["libraries"][name] = None
    print(f"sparsemax_nb {__version__}, Python {result['python']}")
    print(f"CPU   {result['cpu']}, {result['cpu_threads']} threads")
    print(f"CUDA  {result['cuda']}{' (simulated)' if backend.SIMULATOR else ''}")
    print(f"      --device auto computes on {result['device_auto']}; NumPy arrays on cpu, CUDA arrays on cuda")
    for name, version in result["libraries"].items():
        print(f"      {name:14s} {version or 'not installed'}")
    return result


def _train_classifier(options):
    """Train on a corpus, report P@k and nDCG@k on its test set, save the model."""
    corpus = data.load(options.data)
    names = [name for name in train.Classifier._names() if name not in ("tfidf", "progress")]
    model = train.Classifier(**{name: getattr(options, name) for name in names}, progress=not options.quiet)
    n, n_features = corpus.train.features.shape
    where = demo.where(options.device)
    print(f"{corpus.name}: {n:,} points, {n_features:,} features, {corpus.train.labels.shape[1]:,} labels; {where}")
    start = time.perf_counter()
    model.fit(corpus.train.features, corpus.train.labels)
    history, network = model.history_, model.network_
    result = {
        "command": sys.argv[1:], "params": model.get_params(), "device": model.device_, "steps": history.steps,
        "train_seconds": history.seconds, "first_step_seconds": history.first_step_seconds, "losses": history.losses,
        "total_seconds": time.perf_counter() - start, "output_layer_bytes": network.output_nbytes,
        "peak_memory_bytes": train.loop.peak_memory(), "test": model.evaluate(corpus.test.features, corpus.test.labels),
    }  # fmt: skip
    print(
        f"{history.steps} steps in {history.seconds:.1f} s (first step, with compilation: {history.first_step_seconds:.1f} s); "
        f"output layer {network.output_nbytes / 2**20:.1f} MiB, peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    print("test  " + "  ".join(f"{name} {value:.4f}" for name, value in result["test"].items() if name != "seconds"))
    if options.save:
        model.save(options.save, corpus.label_names)
        print(f"saved {options.save}")
    return result


def _predict(options):
    """Predict the labels of the points in a file of the Extreme Classification Repository's format."""
    model = train.Classifier.load(options.model, device=options.device)
    print(f"sparsemax-nb: predicting {demo.where(options.device)}", file=sys.stderr)
    points = data.read_xc(options.file, n_points=options.rows)
    k = min(options.k, model.n_labels_)
    scores, ids = model.top_k(points.features, k)
    result = []
    for row in range(len(ids)):
        names = [model.label_names_[i] if model.label_names_ else str(i) for i in ids[row]]
        result.append(
            [
                {"label": int(i), "name": n, "score": float(s)}
                for i, n, s in zip(ids[row], names, scores[row], strict=True)
            ]
        )
        print(f"{row}\t" + "; ".join(f"{name} ({score:.2f})" for name, score in zip(names, scores[row], strict=True)))
    return result


def _parser():
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="sparsemax-nb", description=__import__("sparsemax_nb").__doc__)
    parser.add_argument("--version", action="version", version=f"sparsemax_nb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(parent, name, run, text):
        sub = parent.add_parser(name, help=text, description=text, formatter_class=formatter)
        sub.add_argument("--json", metavar="FILE", help="also write every printed figure to FILE")
        sub.set_defaults(run=run)
        return sub

    def device(sub):
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")

    sub = command(
        commands,
        "demo",
        demo.run,
        "Train output layers of three kinds on 15,810 subjects of artworks and compare them.",
    )
    device(sub)
    sub.add_argument("--seconds", type=float, default=30, help="training time of each layer")
    sub.add_argument("--out", default="demo_output", metavar="DIR", help="folder for the picture")
    sub.add_argument("--seed", type=int, default=0, help="of weights, order and dropout")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")

    trainers = commands.add_parser("train", help="Train a model.").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    sub = command(trainers, "classifier", _train_classifier, "Train a multi-label classifier on bags of words.")
    device(sub)
    default = train.Classifier().get_params()
    sub.add_argument(
        "--data", default="tate", metavar="DIR-or-NAME", help="'tate' (bundled) or a folder with train and test files"
    )
    sub.add_argument("--output", choices=OUTPUTS, default=default["output"], help="the output layer")
    sub.add_argument("--loss", choices=tuple(LOSSES), default=default["loss"])
    sub.add_argument("--embedding", type=int, default=default["embedding"], metavar="D", help="width of the embedding")
    sub.add_argument(
        "--intermediate", type=lambda s: int(s) or None, default=default["intermediate"], metavar="H",
        help="width of the dense layer below a fixed fan-in output, 0 for none",
    )  # fmt: skip
    sub.add_argument(
        "--bottleneck", type=int, default=default["bottleneck"], metavar="H", help="width of the bottleneck"
    )
    sub.add_argument("--fan-in", type=int, default=default["fan_in"], metavar="K", help="connections per label")
    sub.add_argument("--dropout", type=float, default=default["dropout"], metavar="P", help="rate behind the embedding")
    sub.add_argument("--learning-rate", type=float, default=default["learning_rate"], metavar="LR", help="of Adam")
    sub.add_argument("--batch-size", type=int, default=default["batch_size"], metavar="B")
    sub.add_argument("--epochs", type=int, default=default["epochs"], metavar="N")
    sub.add_argument("--budget-seconds", type=float, default=None, metavar="S", help="stop training after S seconds")
    sub.add_argument("--seed", type=int, default=default["seed"], help="of weights, order and dropout")
    sub.add_argument("--save", metavar="FILE", help="write the model (safetensors)")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command(commands, "predict", _predict, "Predict the labels of points, in words where the model knows them.")
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    sub.add_argument("file", help="points in the Extreme Classification Repository's format (plain, .gz, .xz)")
    sub.add_argument("-k", type=int, default=5, help="labels per point")
    sub.add_argument("--rows", type=int, default=None, metavar="N", help="only the first N points")

    command(commands, "info", _info, "Say which devices and libraries there are and what would run where.")
    return parser


def main(argv=None):
    """Run a command; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        for path in filter(None, (options.json, getattr(options, "save", None))):  # before hours of work, not after
            if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
                raise FileNotFoundError(f"{path} can not be written: there is no such folder")
        result = options.run(options)
        if options.json:
            _write_json(options.json, result)
    except (OSError, TypeError, ValueError, RuntimeError, FloatingPointError) as error:
        print(f"sparsemax-nb: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sparsemax-nb: interrupted", file=sys.stderr)
        return 130
    return 0
