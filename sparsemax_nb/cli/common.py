"""Shared by the commands: option types, files, the data that a saved model was trained on, printed metrics."""

import argparse
import math
import os
import platform
import re
from pathlib import Path

from .. import data
from ..core.device import cuda_description, cuda_problem, resolve_device
from ..train import curves
from ..train.chunks import fingerprint_parts

PARTS = "train", "valid", "test"  # of a text
#: The metrics that are printed, and what they mean.
MEANINGS = {
    "P": "share of the k best labels that are right",
    "nDCG": "like P@k, but right labels near the top count more; 100 if all true labels come first",
    "R": "share of the true labels of a row that are among the k best",
    "F1": "harmonic mean of P@k and R@k of a row",
    "MAP": "P@r averaged over the ranks r of the true labels of a row; 0 for those that are not found",
    "PSP": "like P@k, but rare labels count more",
}
#: The same for metrics of label sets and of probabilities.
SET_MEANINGS = {
    "sample F1": "harmonic mean of precision and recall of the predicted label set of a row, averaged over the rows",
    "micro F1": "F1 of all pairs of a row and a predicted or true label together",
    "macro F1": "F1 of each label, averaged over the labels that are true or predicted",
    "ECE": "expected calibration error: mean difference between a probability and the share of right labels",
}


def size(text):
    """Convert '1GiB', '500 MiB', '64k' or a plain number to bytes."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *([kmgt]?)(i?b)?", text.strip().lower())
    size = float(match[1]) * 1024 ** " kmgt".index(match[2] or " ") if match else math.inf
    if not 1 <= size < 2**63:
        raise argparse.ArgumentTypeError(f"must be a size such as 1GiB, 500MiB or a number of bytes, got {text!r}")
    return int(size)


def seconds(text):
    """Convert a time of at least 0 seconds to a float."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds of at least 0, got {text!r}")
    return seconds


def number_or_auto(text):
    """Convert a number to a float; keep 'auto'."""
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number or 'auto', got {text!r}") from error


def auto_or_flag(text):
    """Convert 'auto', 'yes' or 'no' to 'auto', True or False."""
    choices = {"auto": "auto", "yes": True, "no": False}
    if text not in choices:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got {text!r}")
    return choices[text]


def validation_part(text):
    """Convert a fraction of the training points to a float; keep 'dev' and 'none'."""
    if text in ("dev", "none"):
        return text
    if not re.fullmatch(r"0?\.[0-9]+", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"must be 'dev', 'none' or a fraction between 0 and 1, got {text!r}")
    return float(text)


def count(text):
    """Convert a whole number of at least 0 to an int."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0 and below 10^18, got {text!r}")
    return int(text)


def threshold(text):
    """Convert a number to a float; keep the name of a measure."""
    try:
        return float(text)
    except ValueError:
        return text


def limit(text):
    """Convert a whole number to an int and 'none' to None; keep 'auto'."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, 'auto' or 'none', got {text!r}")
    return int(text)


def count_or_none(text):
    """Convert a whole number to an int; 0 becomes None."""
    return count(text) or None


def checkpoint_of(path):
    """Path of the checkpoint of a model file, in the same folder."""
    stem, ending = os.path.splitext(path)
    return f"{stem}.checkpoint{ending}"


def format_percent(metrics, names):
    return "  ".join(f"{name} {100 * metrics[name]:.2f}" for name in names if name in metrics)


def check_files(options):
    """Check --save, --resume and --plot; return the path of the checkpoint, or None.

    ValueError for files that contradict each other, ImportError if a plot needs matplotlib.
    """
    path = checkpoint_of(options.save) if options.save else None
    if options.resume and not path:
        raise ValueError("--resume needs --save FILE: the checkpoint is stored next to this file")
    if options.resume and os.path.exists(options.save) and not os.path.exists(path):
        raise ValueError(f"{options.save} is complete and has no checkpoint to resume from; remove it to train again")
    check_plot(getattr(options, "plot", None))
    return path


def check_plot(path):
    """ValueError if the --plot file has another format, ImportError if matplotlib is missing; None is no plot."""
    if path and not path.endswith(curves.FORMATS):
        raise ValueError(f"--plot {path} must end in .png, .svg or .pdf")
    if path:
        curves.pyplot()  # raise ImportError before hours of training, not after


def record_training_data(model, name, *training):
    """Record in the model the name of its data and the fingerprint of the training part, a pair of arrays."""
    model.data_ = {"name": name, "fingerprint": data.fingerprint(*training)}


def resolve_data(model, file, given, bundled, expected):
    """Return --data as `given`, or by default the bundled data that the model in `file` was trained on.

    ValueError if there is no default: the data are not bundled, or not recorded. `expected` says what to pass.
    """
    known = model.data_
    if given is None and (known is None or known["name"] not in bundled):
        about = "does not record its training data" if known is None else f"was trained on {known['name']!r}"
        raise ValueError(f"--data is needed: {expected}; {file} {about}")
    return known["name"] if given is None else given


def check_same_data(model, file, name, *training):
    """ValueError if the model in `file` records another fingerprint than that of the training part, a pair."""
    known = model.data_
    if known is not None and known["fingerprint"] != data.fingerprint(*training):
        raise ValueError(
            f"{file} was trained on {known['name']!r}, but {name!r} has another training part; check --data"
        )


def load_texts(model, file, name_or_dir, any_data=False):
    """Load the data of the language model in `file`.

    Returns the task, the name, {part: tokens}, and {part: share of unknown words} or None.

    With `any_data`, they may differ from those that the model was trained on.
    """
    if model.vocabulary_ is None:
        raise ValueError(f"{file} must contain a vocabulary; pass one to fit before you save the model")
    if data.text.END_OF_LINE in model.vocabulary_:
        where = resolve_data(model, file, name_or_dir, data.text.BUNDLED, "the folder of the text")
        corpus = data.load_text(where, vocabulary=model.vocabulary_)
        task = "next-word"
        parts = {part: getattr(corpus, part) for part in PARTS}
        unknown = corpus.unknown
    else:
        where = resolve_data(model, file, name_or_dir, (), "the file of sequences, or its folder")
        corpus = data.load_sequences(where, vocabulary=model.vocabulary_)
        task = "next-item"
        parts = dict(zip(PARTS, data.leave_last_out(corpus), strict=True))
        unknown = None
    if not any_data:
        check_same_data(model, file, corpus.name, *fingerprint_parts(parts["train"]))
    return task, where, parts, unknown


def format_language_metrics(metrics):
    shares = format_percent(metrics, ("top-1", "top-5", "Recall@10", "NDCG@10"))
    return (f"perplexity {metrics['perplexity']:.2f}  " if "perplexity" in metrics else "") + shares


def print_language_metrics(part, metrics, task):
    unit = "words" if task == "next-word" else "sequences"
    print(f"{part}  {format_language_metrics(metrics)}  ({metrics['tokens']:,} {unit})")


def print_metrics(part, metrics):
    """Print a line for each metric, with its meaning."""
    for metric, meaning in MEANINGS.items():
        if figures := format_percent(metrics, [f"{metric}@{k}" for k in (1, 3, 5)]):
            print(f"{part}  {figures}  ({metric}@k in %: {meaning})")
    for metric, meaning in SET_MEANINGS.items():
        if metric in metrics:
            print(f"{part}  {format_percent(metrics, [metric])}  (in %: {meaning})")


def option_adder(sub, default):
    """Return a function that adds an option for a parameter: name, type, metavar, help."""

    def option(name, kind, metavar, text):
        flag = "--" + name.replace("_", "-")
        sub.add_argument(flag, type=kind, default=default.get(name), metavar=metavar, help=text)

    return option


def file_options(sub, **more):
    """Add --save, --resume and --quiet."""
    model = "write the trained model to FILE (safetensors); during training, a checkpoint is kept in the same folder"
    sub.add_argument("--save", metavar="FILE", help=model, **more)
    resume = "continue from the checkpoint of --save, if there is one"
    sub.add_argument("--resume", action="store_true", help=resume)
    sub.add_argument("--quiet", action="store_true", help="do not show progress")


def cpu_name():
    """Name of the processor, as the operating system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_line(device):
    """Return 'on cpu (NAME)' or 'on cuda (NAME)'; for 'auto' without CUDA, also the reason."""
    chosen, problem = resolve_device(device), cuda_problem()
    name = cpu_name() if chosen == "cpu" else cuda_description()
    return f"on {chosen} ({name})" + (f"; {problem}" if device == "auto" and problem else "")


def embeddings(path, n_rows):
    """The embeddings in a .npy file, one per point, as a read-only array; None without a file."""
    if path is None:
        return None
    if not path.endswith(".npy"):
        raise ValueError(f"{path} must be a .npy file with a matrix of embeddings")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} cannot be read: there is no such file")
    found = data.arrays.read_dense(Path(path))
    if n_rows is not None and found.shape[0] != n_rows:
        raise ValueError(f"{path} must have one row per point, {n_rows} in all, got {found.shape[0]}")
    return found
