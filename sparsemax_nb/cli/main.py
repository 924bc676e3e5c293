"""The command line: ``sparsemax-nb`` or ``python -m sparsemax_nb``. --json writes everything that a command prints."""

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
from . import common, demo, ds_softmax, explain, predict, train, update

LIBRARIES = "numba", "numba-cuda", "numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "scikit-learn", "torch"


def _write_json(path, result):
    with files.writing(path) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")


def _check_files(options):
    """Check all files before hours of work, not after.

    OSError for a file that cannot be written, ValueError if two options name the same file.
    """
    outputs = {
        f"--{name.replace('_', '-')}": getattr(options, name, None) for name in ("json", "save", "plot", "per_label")
    }
    outputs["the checkpoint of --save"] = outputs["--save"] and common.checkpoint_of(outputs["--save"])
    outputs = {name: path for name, path in outputs.items() if path}
    names = "model", "file", "text", "test_text", "dense", "test_dense", "vocabulary", "allow", "forbid", "retire"
    inputs = {name: getattr(options, name) for name in names if getattr(options, name, None)}
    inputs = {
        name if name in ("model", "file") else f"--{name.replace('_', '-')}": path for name, path in inputs.items()
    }
    inputs |= {
        path: path for path in getattr(options, "points", ()) if path in outputs.values() or os.path.exists(path)
    }
    for path in outputs.values():
        files.check_writable(path)
    for (one, path), (other, second) in itertools.combinations((outputs | inputs).items(), 2):
        if one in outputs and files.same_file(path, second):
            raise ValueError(f"{one} and {other} must be different files, got {path} and {second}")


def _info(_):
    """Print versions, devices and libraries."""
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


def _escape_unencodable_output():
    """Print characters that the terminal cannot encode as Python escapes, so that a label name cannot end a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default of an option, if it has one."""

    def _get_help_string(self, action):
        has_none = action.default is None or action.default is False
        return action.help if has_none else super()._get_help_string(action)


def _parser():
    parser = argparse.ArgumentParser(prog="sparsemax-nb", description=__import__("sparsemax_nb").__doc__)
    parser.add_argument("--version", action="version", version=f"sparsemax_nb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(parent, name, run, text):
        sub = parent.add_parser(name, help=text, description=text, formatter_class=_HelpFormatter)
        sub.add_argument("--json", metavar="FILE", help="also write all printed results to FILE, as JSON")
        sub.set_defaults(run=run)
        return sub

    def device(sub):
        sub.add_argument(
            "--device",
            choices=("auto", "cpu", "cuda"),
            default="auto",
            help="device to compute on; auto: a GPU if there is one",
        )

    text = "Predict 15,810 subjects of artworks: a linear layer over texts, and networks with five output layers."
    demo.demo_options(command(commands, "demo", demo.demo, text), device)

    trainers = commands.add_parser("train", help="Train a model.").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    text = "Train a multi-label classifier on texts, sparse or dense features."
    train.classifier_options(command(trainers, "classifier", train.classifier, text), device)
    text = "Train a language model that predicts the next word of a text, or the next item of sequences."
    train.language_model_options(command(trainers, "language-model", train.language_model, text), device)
    text = "Turn the output layer of a saved model into a sparse mixture of sparse experts, for faster top-k queries."
    ds_softmax.ds_softmax_options(command(trainers, "ds-softmax", ds_softmax.ds_softmax, text), device)

    text = (
        "Evaluate a saved model: precision, nDCG, recall and propensity-scored precision at k of a classifier, F1 of "
        "its label sets, and the error of its probabilities; perplexity, or "
        "Recall@10 and NDCG@10 for next items, of a language model."
    )
    predict.evaluate_options(command(commands, "evaluate", predict.evaluate, text), device)
    text = "Predict labels with a saved classifier, and print them as a tab-separated table or as JSON lines."
    predict.predict_options(command(commands, "predict", predict.predict, text), device)
    text = "Train a saved classifier of texts on further texts, which may have new labels, or remove labels from it."
    update.update_options(command(commands, "update", update.update, text), device)
    text = "Show which words or features of one point speak for a label of a saved classifier."
    explain.explain_options(command(commands, "explain", explain.explain, text), device)
    text = "Continue a prompt with a saved language model."
    predict.generate_options(command(commands, "generate", predict.generate, text), device)
    command(commands, "info", _info, "Show the version, the devices and the installed libraries.")
    return parser


def main(argv=None):
    """Run a command and return the exit code: 0, 1 if the output pipe was closed, 2 for bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(argv)
    _escape_unencodable_output()
    try:
        _check_files(options)
        result = options.run(options)
        if options.json:
            _write_json(options.json, result)
        for path in filter(os.path.exists, getattr(options, "no_longer_needed", ())):
            os.remove(path)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has stopped reading
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
