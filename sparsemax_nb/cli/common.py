"""What the commands share: option types, files, what a saved model was trained on, lines of figures."""

import argparse
import math
import os
import platform
import re

from .. import data
from ..core.device import cuda_description, cuda_problem, resolve_device
from ..train import curves
from ..train.language_model import _parts

PARTS = "train", "valid", "test"  # of a text


def size(text):
    """Bytes from '1GiB', '500 MiB', '64k' or a plain number."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *([kmgt]?)(i?b)?", text.strip().lower())
    size = float(match[1]) * 1024 ** " kmgt".index(match[2] or " ") if match else math.inf
    if not 1 <= size < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1GiB, 500MiB or a number of bytes")
    return int(size)


def seconds(text):
    """A time of at least 0, as a float."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return seconds


def number_or_auto(text):
    """A number, or 'auto'."""
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'auto'") from error


def auto_or_flag(text):
    """'auto', True or False of 'auto', 'yes' or 'no'."""
    choices = {"auto": "auto", "yes": True, "no": False}
    if text not in choices:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")
    return choices[text]


def validation_part(text):
    """'dev', 'none' or a share of the training points."""
    if text in ("dev", "none"):
        return text
    if not re.fullmatch(r"0?\.[0-9]+", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'dev', 'none' nor a share between 0 and 1")
    return float(text)


def count(text):
    """An integer of at least 0."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0 and below 10^18")
    return int(text)


def count_or_none(text):
    """An integer of at least 1; None for 0."""
    return count(text) or None


def checkpoint_of(path):
    """Where the checkpoint of a model file lies: beside it."""
    stem, ending = os.path.splitext(path)
    return f"{stem}.checkpoint{ending}"


def percent(figures, names):
    return "  ".join(f"{name} {100 * figures[name]:.2f}" for name in names if name in figures)


def checked_files(options):
    """The path of the checkpoint, or None; ValueError for files that do not go together, ImportError without matplotlib."""
    path = checkpoint_of(options.save) if options.save else None
    if options.resume and not path:
        raise ValueError("--resume needs --save FILE: the checkpoint lies beside it")
    if options.resume and os.path.exists(options.save) and not os.path.exists(path):
        raise ValueError(f"{options.save} is complete, there is no checkpoint to resume; remove it to train anew")
    plot = getattr(options, "plot", None)
    if plot and not plot.endswith((".png", ".svg", ".pdf")):
        raise ValueError(f"--plot {plot} must end in .png, .svg or .pdf")
    if plot:
        curves.pyplot()  # ImportError before hours of training, not after them
    return path


def remember(model, name, *training):
    """Note in a model what it was trained on: the name of the data, and the fingerprint of its training part, a pair."""
    model.data_ = {"name": name, "fingerprint": data.fingerprint(*training)}


def data_of(model, file, given, bundled, what):
    """The --data of a command that is given the model `file`: what is `given`, else the bundled data that it was trained on.

    ValueError that says `what` is to be given, where it was trained on other data, or does not say on which.
    """
    known = model.data_
    if given is None and (known is None or known["name"] not in bundled):
        about = "does not say what it was trained on" if known is None else f"was trained on {known['name']!r}"
        raise ValueError(f"--data is needed: {what}; {file} {about}")
    return known["name"] if given is None else given


def check_same_data(model, file, name, *training):
    """ValueError unless the training part, a pair, is what the model `file` was trained on, where it says so."""
    known = model.data_
    if known is not None and known["fingerprint"] != data.fingerprint(*training):
        raise ValueError(
            f"{file} was trained on {known['name']!r}, but {name!r} has another training part; check --data"
        )


def texts_of(model, file, name_or_dir, any_data=False):
    """What the language model in `file` is measured on: task, name, part -> tokens, and the share of unknown words or None.

    With `any_data` also what it was not trained on.
    """
    if model.vocabulary_ is None:
        raise ValueError(f"{file} was saved without a vocabulary")
    if data.text.END_OF_LINE in model.vocabulary_:
        where = data_of(model, file, name_or_dir, data.text.BUNDLED, "the folder of the text")
        corpus = data.load_text(where, vocabulary=model.vocabulary_)
        task, parts, unknown = "next-word", {part: getattr(corpus, part) for part in PARTS}, corpus.unknown
    else:
        where = data_of(model, file, name_or_dir, (), "the file of sequences, or its folder")
        corpus = data.load_sequences(where, vocabulary=model.vocabulary_)
        task, parts, unknown = "next-item", dict(zip(PARTS, data.leave_last_out(corpus), strict=True)), None
    if not any_data:
        check_same_data(model, file, corpus.name, *_parts(parts["train"]))
    return task, where, parts, unknown


def language_line(figures):
    shares = percent(figures, ("top-1", "top-5", "Recall@10", "NDCG@10"))
    return (f"perplexity {figures['perplexity']:.2f}  " if "perplexity" in figures else "") + shares


def print_language_figures(part, figures, task):
    print(
        f"{part}  {language_line(figures)}  ({figures['tokens']:,} {'words' if task == 'next-word' else 'sequences'})"
    )


def print_figures(part, figures):
    for measure in ("P", "nDCG", "R", "PSP"):
        print(f"{part}  " + percent(figures, [f"{measure}@{k}" for k in (1, 3, 5)]))


def options_of(sub, default):
    """A function that adds the option of a parameter: name, type, metavar, help."""

    def option(name, kind, metavar, text):
        flag = "--" + name.replace("_", "-")
        sub.add_argument(flag, type=kind, default=default.get(name), metavar=metavar, help=text)

    return option


def file_options(sub, **more):
    """--save, --resume and --quiet."""
    model = "write the model (safetensors); while training, a checkpoint beside it"
    sub.add_argument("--save", metavar="FILE", help=model, **more)
    resume = "continue from the checkpoint beside --save, if there is one"
    sub.add_argument("--resume", action="store_true", help=resume)
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def cpu_name():
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_line(device):
    """'on cpu (NAME)' or 'on cuda (NAME)'; where 'auto' did not find CUDA, why not."""
    chosen, problem = resolve_device(device), cuda_problem()
    name = cpu_name() if chosen == "cpu" else cuda_description()
    return f"on {chosen} ({name})" + (f"; {problem}" if device == "auto" and problem else "")
