"""Command line: ``sparsemax-nb`` or ``python -m sparsemax_nb``. Every figure a command prints can be had with --json."""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import sys

import numba

from .. import __version__
from ..core import files
from ..core.device import SIMULATOR, cuda_description, cuda_problem, resolve_device
from . import common, demo, ds_softmax, predict, train

LIBRARIES = "numba", "numba-cuda", "numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "scikit-learn", "torch"


def _write_json(path, result):
    with files.writing(path) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")


def _check_files(options):
    """Before hours of work, not after: OSError for a file that cannot be written, ValueError for one that is named twice."""
    written = {f"--{name}": getattr(options, name, None) for name in ("json", "save", "plot")}
    written["the checkpoint beside --save"] = written["--save"] and common.checkpoint_of(written["--save"])
    read = {"model": getattr(options, "model", None), "file": getattr(options, "file", None)}
    written, read = ({name: path for name, path in some.items() if path} for some in (written, read))
    for path in written.values():
        files.check_writable(path)
    for (one, path), (other, second) in itertools.combinations((written | read).items(), 2):
        if one in written and files.same_file(path, second):
            raise ValueError(f"{one} and {other} must be different files, got {path} and {second}")


def _info(_):
    """Devices, toolkit, libraries, and what would run where."""
    problem = cuda_problem()
    result = {
        "sparsemax_nb": __version__,
        "python": platform.python_version(),
        "cpu": common.cpu_name(),
        "cpu_threads": numba.get_num_threads(),
        "threading_layer": numba.threading_layer(),
        "simulator": SIMULATOR,
        "cuda": problem or cuda_description(),
        "device_auto": resolve_device("auto"),
        "libraries": {},
    }
    for name in LIBRARIES:
        try:
            result["libraries"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result["libraries"][name] = None
    print(f"sparsemax_nb {__version__}, Python {result['python']}")
    print(f"CPU   {result['cpu']}, {result['cpu_threads']} threads ({result['threading_layer']})")
    print(f"CUDA  {result['cuda']}{' (simulated)' if SIMULATOR else ''}")
    print(f"      --device auto computes on {result['device_auto']}; NumPy arrays on cpu, CUDA arrays on cuda")
    for name, version in result["libraries"].items():
        print(f"      {name:14s} {version or 'not installed'}")
    return result


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

    text = "Train output layers of three kinds on 15,810 subjects of artworks and compare them."
    demo.demo_options(command(commands, "demo", demo.demo, text), device)

    trainers = commands.add_parser("train", help="Train a model.").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    text = "Train a multi-label classifier on bags of words."
    train.classifier_options(command(trainers, "classifier", train.classifier, text), device)
    text = "Train a language model: the next word of a text, or the last item of sequences."
    train.language_model_options(command(trainers, "language-model", train.language_model, text), device)
    text = "Turn the output layer of a saved model into a sparse mixture of sparse experts, which answers faster."
    ds_softmax.ds_softmax_options(command(trainers, "ds-softmax", ds_softmax.ds_softmax, text), device)

    text = "Measure a saved model: P@k and its kin of a classifier, perplexity and top-k of a language model."
    predict.evaluate_options(command(commands, "evaluate", predict.evaluate, text), device)
    text = "Predict the labels of points, as a table whose columns tabs divide."
    predict.predict_options(command(commands, "predict", predict.predict, text), device)
    text = "Continue a prompt with a saved language model."
    predict.generate_options(command(commands, "generate", predict.generate, text), device)
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
    except (OSError, ImportError, TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        print(f"sparsemax-nb: {error or 'not enough memory'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        what = f": {interrupt}; continue with --resume" if str(interrupt) else ""
        print(f"sparsemax-nb: interrupted{what}", file=sys.stderr)
        return 130
    return 0
