"""Command line: ``sparsemax-nb`` or ``python -m sparsemax_nb``. Every figure a command prints can be had with --json."""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import re
import sys
from pathlib import Path

import numba

from . import __version__, cli_bench, cli_ds, cli_train, data, demo, train
from .core import backend, checkpoint, files

LIBRARIES = "numba", "numba-cuda", "numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "scikit-learn", "torch"
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


def _write_json(path, result):
    with files.writing(path) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")


def _check_files(options):
    """Before hours of work, not after: OSError for a file that cannot be written, ValueError for one that is named twice."""
    written = {f"--{name}": getattr(options, name, None) for name in ("json", "save", "plot")}
    written["the checkpoint beside --save"] = written["--save"] and cli_train.checkpoint_of(written["--save"])
    read = {"model": getattr(options, "model", None), "file": getattr(options, "file", None)}
    written, read = ({name: path for name, path in some.items() if path} for some in (written, read))
    for path in written.values():
        files.check_writable(path)
    for (one, path), (other, second) in itertools.combinations((written | read).items(), 2):
        if one in written and files.same_file(path, second):
            raise ValueError(f"{one} and {other} must be different files, got {path} and {second}")


def _info(_):
    """Devices, toolkit, libraries, and what would run where."""
    problem = backend.cuda_problem()
    result = {
        "sparsemax_nb": __version__,
        "python": platform.python_version(),
        "cpu": demo.cpu_name(),
        "cpu_threads": numba.get_num_threads(),
        "threading_layer": numba.threading_layer(),
        "simulator": backend.SIMULATOR,
        "cuda": problem or backend.cuda_description(),
        "device_auto": backend.resolve_device("auto"),
        "libraries": {},
    }
    for name in LIBRARIES:
        try:
            result["libraries"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result["libraries"][name] = None
    print(f"sparsemax_nb {__version__}, Python {result['python']}")
    print(f"CPU   {result['cpu']}, {result['cpu_threads']} threads ({result['threading_layer']})")
    print(f"CUDA  {result['cuda']}{' (simulated)' if backend.SIMULATOR else ''}")
    print(f"      --device auto computes on {result['device_auto']}; NumPy arrays on cpu, CUDA arrays on cuda")
    for name, version in result["libraries"].items():
        print(f"      {name:14s} {version or 'not installed'}")
    return result


def _evaluate(options):
    """Measure a saved model on a part of a corpus: precision and its kin of a classifier, perplexity of a language model."""
    if checkpoint.kind_of(options.model) == train.LanguageModel.kind:
        return _evaluate_language_model(options)
    model = train.Classifier.load(options.model, device=options.device)
    name = cli_train.data_of(
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
        cli_train.check_same_data(model, options.model, corpus.name, corpus.train.features, corpus.train.labels)
    print(
        f"sparsemax-nb: {points.features.shape[0]:,} points, evaluating {demo.where(options.device)}", file=sys.stderr
    )
    figures = model.evaluate(points.features, points.labels)
    cli_train.print_figures(options.part, figures)
    print(f"{options.part}  {1e3 * figures['seconds'] / max(points.features.shape[0], 1):.3f} ms a point")
    return {"model": options.model, "data": name, "part": options.part} | figures


def _evaluate_language_model(options):
    model = train.LanguageModel.load(options.model, device=options.device)
    part = {"dev": "valid"}.get(options.part, options.part)
    print(f"sparsemax-nb: evaluating {demo.where(options.device)}", file=sys.stderr)
    task, name, parts, unknown = cli_train.texts_of(model, options.model, options.data, options.any_data)
    if unknown is not None:
        print(f"{part}  {unknown[part]:.2%} of the tokens are not in the model's vocabulary")
    figures = model.evaluate(parts[part])
    cli_train.print_language_figures(part, figures, task)
    return {"model": options.model, "data": name, "part": part} | figures


def _generate(options):
    """Continue a prompt with a language model, word by word."""
    model = train.LanguageModel.load(options.model, device=options.device)
    print(f"sparsemax-nb: generating {demo.where(options.device)}", file=sys.stderr)
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


def _predict(options):
    """Predict the labels of points, and print them as a table, batch by batch."""
    model = train.Classifier.load(options.model, device=options.device)
    print(f"sparsemax-nb: predicting {demo.where(options.device)}", file=sys.stderr)
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


def _print_anything():
    """Standard output and error show what they can not encode as Python escapes: a name must not cost a run its results."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds each default, but where there is none."""

    def _get_help_string(self, action):
        has_none = action.default is None or action.default is False
        return action.help if has_none else super()._get_help_string(action)


def _parser():
    parser = argparse.ArgumentParser(prog="sparsemax-nb", description=__import__("sparsemax_nb").__doc__)
    parser.add_argument("--version", action="version", version=f"sparsemax_nb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(parent, name, run, text):
        sub = parent.add_parser(name, help=text, description=text, formatter_class=_Help)
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
    sub = command(trainers, "classifier", cli_train.classifier, "Train a multi-label classifier on bags of words.")
    cli_train.classifier_options(sub, device)
    text = "Train a language model: the next word of a text, or the last item of sequences."
    cli_train.language_model_options(command(trainers, "language-model", cli_train.language_model, text), device)
    text = "Turn the output layer of a saved model into a sparse mixture of sparse experts, which answers faster."
    cli_ds.ds_softmax_options(command(trainers, "ds-softmax", cli_ds.ds_softmax, text), device)

    text = "Measure a saved model: P@k and its kin of a classifier, perplexity and top-k of a language model."
    sub = command(commands, "evaluate", _evaluate, text)
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    data_help = "what the model was trained on; need not be given where that is bundled"
    sub.add_argument("--data", metavar="DIR-or-NAME", help=data_help)
    any_data = "measure it on data that it was not trained on, too, with the same features and labels, or words"
    sub.add_argument("--any-data", action="store_true", help=any_data)
    sub.add_argument("--part", choices=("train", "dev", "test"), default="test", help="of the data")

    sub = command(commands, "predict", _predict, "Predict the labels of points, as a table whose columns tabs divide.")
    sub.epilog = TABLE
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    sub.add_argument(
        "file", help="points: text in the Extreme Classification Repository's format, or features as .npy, .npz"
    )
    sub.add_argument("-k", type=int, default=None, help="labels per point (default: 5, or all where there are fewer)")
    sub.add_argument("--rows", type=cli_train.count, default=None, metavar="N", help="only the first N points")

    sub = command(commands, "generate", _generate, "Continue a prompt with a saved language model.")
    device(sub)
    sub.add_argument("model", help="file written by train language-model --save")
    sub.add_argument("prompt", help="words divided by blanks")
    sub.add_argument("--words", type=cli_train.count, default=50, metavar="N", help="to be drawn")
    sub.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: the best word every time")
    sub.add_argument("--top-k", type=int, default=None, metavar="K", help="draw from the K best words only")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws")

    cli_bench.bench_options(commands)
    command(commands, "info", _info, "Say which devices and libraries there are and what would run where.")
    return parser


def main(argv=None):
    """Run a command; returns the exit code: 0, 1 where nobody reads on, 2 for bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(argv)
    _print_anything()
    try:
        _check_files(options)
        result = options.run(options)
        if options.json:
            _write_json(options.json, result)
        for path in filter(os.path.exists, getattr(options, "no_longer_needed", ())):
            os.remove(path)
        sys.stdout.flush()
    except BrokenPipeError:  # who read what we print, as `head` does, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        print(f"sparsemax-nb: {error or 'not enough memory'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        what = f": {interrupt}; continue with --resume" if str(interrupt) else ""
        print(f"sparsemax-nb: interrupted{what}", file=sys.stderr)
        return 130
    return 0
