"""Command line: ``sparsemax-nb`` or ``python -m sparsemax_nb``. Every figure a command prints can be had with --json."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import numba
import numpy as np

from . import __version__, data, demo, train
from .core import backend, checkpoint
from .midx import CORRECTIONS, RESIDUALS
from .train import curves
from .train.language_model import DECAYS
from .train.network import LOSSES, OUTPUTS
from .train.softmax import SAMPLERS

LIBRARIES = "numba", "numba-cuda", "numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "scikit-learn", "torch"
PREDICTED_AT_ONCE = 4096  # points


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


def _size(text):
    """Bytes from '1GiB', '500 MiB', '64k' or a plain number."""
    match = re.fullmatch(r"([0-9.]+) *([kmgt]?)(i?b)?", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1GiB, 500MiB or a number of bytes")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


def _validation(text):
    """'dev', 'none' or a share of the training points."""
    if text in ("dev", "none"):
        return text
    if not re.fullmatch(r"0?\.[0-9]+", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'dev', 'none' nor a share between 0 and 1")
    return float(text)


def _count(text):
    """An integer of at least 0."""
    if not re.fullmatch("[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def _count_or_none(text):
    """An integer of at least 1; None for 0."""
    return _count(text) or None


def checkpoint_of(path):
    """Where the checkpoint of a model file lies: beside it."""
    stem, ending = os.path.splitext(path)
    return f"{stem}.checkpoint{ending}"


def _percent(figures, names):
    return "  ".join(f"{name} {100 * figures[name]:.2f}" for name in names if name in figures)


def _epoch_line(record):
    line = f"epoch {record['epoch'] + 1:3d}  {record['seconds']:7.1f} s  loss {record['loss']:.4f}"
    line += f"  lr {record['learning_rate']:.1e}  "
    figures = record.get("validation", {})
    return line + (_language_line(figures) if "perplexity" in figures else _percent(figures, ("P@1", "P@3", "P@5")))


def _checked_files(options):
    """The path of the checkpoint, or None; ValueError for files that do not go together."""
    path = checkpoint_of(options.save) if options.save else None
    if options.resume and not path:
        raise ValueError("--resume needs --save FILE: the checkpoint lies beside it")
    if options.resume and os.path.exists(options.save) and not os.path.exists(path):
        raise ValueError(f"{options.save} is complete, there is no checkpoint to resume; remove it to train anew")
    if options.plot and not options.plot.endswith((".png", ".svg", ".pdf")):
        raise ValueError(f"--plot {options.plot} must end in .png, .svg or .pdf")
    return path


def _fit(model, path, options, *data_arguments, **more):
    """Fit with a checkpoint at `path`, saying what happens; returns the figures that every run has."""
    start = time.perf_counter()
    if options.resume:
        found = os.path.exists(path)
        print(f"resuming from {path}" if found else f"no checkpoint {path} yet: starting anew", flush=True)
    model.fit(
        *data_arguments, checkpoint_path=path, checkpoint_seconds=options.checkpoint_seconds, resume=options.resume,
        after_epoch=lambda _, history: print(_epoch_line(history.epochs[-1]), flush=True), **more,
    )  # fmt: skip
    history, network = model.history_, model.network_
    result = {
        "command": sys.argv[1:], "params": model.get_params(), "device": model.device_, "stopped": history.stopped,
        "steps": history.steps, "train_seconds": history.seconds, "output_seconds": history.output_seconds,
        "first_step_seconds": history.first_step_seconds, "losses": history.losses, "best_epoch": history.best_epoch,
        "epochs": history.epochs, "rewirings": history.rewirings, "index_updates": history.index_updates,
        "total_seconds": time.perf_counter() - start, "output_layer_bytes": network.output_nbytes,
        "network_bytes": network.nbytes, "peak_memory_bytes": train.loop.peak_memory(),
    }  # fmt: skip
    print(
        f"{history.steps} steps in {history.seconds:.1f} s (first step, with compilation: {history.first_step_seconds:.1f} s); "
        f"output layer {network.output_nbytes / 2**20:.1f} MiB, peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    if updates := history.index_updates:
        print(
            f"{len(updates)} updates of what {options.sampler} draws from, {sum(u['seconds'] for u in updates):.1f} s in all"
            + (
                ""
                if updates[-1]["share"] is None
                else f"; the last moved {updates[-1]['share']:.1%} of the {model.classes}"
            )
        )
    if history.best_epoch is not None:
        print(f"kept the weights of epoch {history.best_epoch + 1}, the best on the validation set ({history.stopped})")
    return result


def _write_out(model, path, options, *more):
    """Save the model, draw the curves; the checkpoint is no longer needed then."""
    if options.save:
        model.save(options.save, *more)
        print(f"saved {options.save}")
    if options.plot:
        curves.plot(model.history_, options.plot)
        print(f"curves in {options.plot}")
    if path and model.history_.stopped != "budget":
        options.no_longer_needed = path  # removed once everything has been written


def _train_classifier(options):
    """Train on a corpus, report P@k and its kin on its test set, save the model."""
    path = _checked_files(options)
    corpus = data.load(options.data)
    params = {name: getattr(options, name) for name in train.Classifier._names() if hasattr(options, name)}
    model, validation = train.Classifier(**params, progress=not options.quiet), None
    if options.validation == "dev":
        validation = None if corpus.dev is None else (corpus.dev.features, corpus.dev.labels)
    elif options.validation != "none":
        model.set_params(validation_fraction=options.validation)
    n, n_features = corpus.train.features.shape
    print(
        f"{corpus.name}: {n:,} points, {n_features:,} features, {corpus.train.labels.shape[1]:,} labels; "
        f"{demo.where(options.device)}",
        flush=True,
    )
    result = _fit(model, path, options, corpus.train.features, corpus.train.labels, validation=validation)
    result |= {
        "n_labels": model.n_labels_, "n_features": model.n_features_in_, "memory_plan_bytes": model.memory_plan_.nbytes,
        "test": model.evaluate(corpus.test.features, corpus.test.labels),
    }  # fmt: skip
    _print_figures("test", result["test"])
    _write_out(model, path, options, corpus.label_names)
    return result


def _texts(options):
    """What `--task` makes of the data: the parts to train on, validate with and test on, vocabulary, a line about it."""
    if options.task == "next-item":
        sequences = data.load_sequences(options.data, options.min_count)
        n, vocabulary = len(sequences.indptr) - 1, sequences.vocabulary
        return (
            *data.leave_last_out(sequences),
            vocabulary,
            f"{sequences.name}: {n:,} sequences, {len(vocabulary):,} items",
        )
    corpus = data.load_text(options.data, options.min_count, raw=options.raw)
    for part in ("train", "valid", "test"):
        if len(getattr(corpus, part)) < 2:
            raise ValueError(f"{corpus.name}: the {part} part must hold two tokens or more, got 1")
    unknown = ", ".join(f"{part} {share:.2%}" for part, share in corpus.unknown.items())
    about = (
        f"{corpus.name}: {len(corpus.train):,} tokens, {len(corpus.vocabulary):,} words; out of vocabulary: {unknown}"
    )
    return corpus.train, corpus.valid, corpus.test, corpus.vocabulary, about


def _train_language_model(options):
    """Train on a text or on sequences of items, report how well the next word or last item is predicted, save the model."""
    path = _checked_files(options)
    if options.task == "next-item" and options.validation_tokens:
        raise ValueError("--validation-tokens cuts a text; for next-item it may be 0 only: no validation")
    training, validation, test, vocabulary, about = _texts(options)
    params = {name: getattr(options, name) for name in train.LanguageModel._names() if hasattr(options, name)}
    model = train.LanguageModel(**params, progress=not options.quiet)
    print(f"{about}; {demo.where(options.device)}", flush=True)
    if options.validation_tokens is not None:
        validation = validation[: options.validation_tokens] if options.validation_tokens else None
    result = _fit(model, path, options, training, vocabulary=vocabulary, validation=validation)
    _write_out(model, path, options)
    result |= {
        "about": about, "n_words": model.n_words_, "tokens": len(getattr(training, "items", training)),
        "output_share": result["output_seconds"] / max(result["train_seconds"], 1e-9), "test": model.evaluate(test),
        "baseline": _baseline(options.task, training, test, len(vocabulary)),
    }  # fmt: skip
    print(f"{result['output_share']:.0%} of the time went into the output layer")
    _print_language_figures("test", result["test"], options.task)
    name = "a unigram model" if options.task == "next-word" else "the most popular items"
    print(f"to compare: {name}  {_language_line(result['baseline'])}")
    return result


def _baseline(task, training, test, n_words):
    """What is reached by knowing how frequent each word or item is, and nothing else."""
    if task == "next-word":
        return {"perplexity": train.unigram_perplexity(np.bincount(training, minlength=n_words), test[1:])}
    counts, last = (
        np.bincount(training.items, minlength=n_words),
        test.items[test.indptr[1:][np.diff(test.indptr) > 1] - 1],
    )
    return train.figures_of_ranks(train.ranks_by_popularity(counts, last), 10)


def _language_line(figures):
    shares = _percent(figures, ("top-1", "top-5", "Recall@10", "NDCG@10"))
    return (f"perplexity {figures['perplexity']:.2f}  " if "perplexity" in figures else "") + shares


def _print_language_figures(part, figures, task):
    print(
        f"{part}  {_language_line(figures)}  ({figures['tokens']:,} {'words' if task == 'next-word' else 'sequences'})"
    )


def _print_figures(part, figures):
    for measure in ("P", "nDCG", "R", "PSP"):
        print(f"{part}  " + _percent(figures, [f"{measure}@{k}" for k in (1, 3, 5)]))


def _evaluate(options):
    """Measure a saved model on a part of a corpus: precision and its kin of a classifier, perplexity of a language model."""
    if checkpoint.kind_of(options.model) == train.LanguageModel.kind:
        return _evaluate_language_model(options)
    model = train.Classifier.load(options.model, device=options.device)
    points = getattr(data.load(options.data or "tate"), options.part)
    if points is None:
        raise ValueError(f"{options.data} has no {options.part} part")
    print(
        f"sparsemax-nb: {points.features.shape[0]:,} points, evaluating {demo.where(options.device)}", file=sys.stderr
    )
    figures = model.evaluate(points.features, points.labels)
    _print_figures(options.part, figures)
    print(f"{options.part}  {1e3 * figures['seconds'] / max(points.features.shape[0], 1):.3f} ms a point")
    return {"model": options.model, "data": options.data, "part": options.part} | figures


def _evaluate_language_model(options):
    model = train.LanguageModel.load(options.model, device=options.device)
    vocabulary, part = model.vocabulary_, {"dev": "valid"}.get(options.part, options.part)
    if vocabulary is None:
        raise ValueError(f"{options.model} was saved without a vocabulary")
    print(f"sparsemax-nb: evaluating {demo.where(options.device)}", file=sys.stderr)
    if data.text.END_OF_LINE in vocabulary:
        task, corpus = "next-word", data.load_text(options.data or "wikitext-2", vocabulary=vocabulary)
        print(f"{part}  {corpus.unknown[part]:.2%} of the tokens are not in the model's vocabulary")
        tokens = getattr(corpus, part)
    else:
        if options.data is None:
            raise ValueError("--data is needed: the file of sequences, or its folder")
        task, sequences = "next-item", data.load_sequences(options.data, vocabulary=vocabulary)
        tokens = dict(zip(("train", "valid", "test"), data.leave_last_out(sequences), strict=True))[part]
    figures = model.evaluate(tokens)
    _print_language_figures(part, figures, task)
    return {"model": options.model, "data": options.data, "part": part} | figures


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
    if path.endswith(".npy"):
        return data.arrays.read_dense(Path(path))[:n_rows]
    if path.endswith(".npz"):
        return data.arrays.read_csr(Path(path))[:n_rows]
    return data.read_xc(path, n_points=n_rows).features


def _predict(options):
    """Predict the labels of points, and print them batch by batch."""
    model = train.Classifier.load(options.model, device=options.device)
    print(f"sparsemax-nb: predicting {demo.where(options.device)}", file=sys.stderr)
    points = _points(options.file, options.rows)
    result = []
    for start in range(0, points.shape[0], PREDICTED_AT_ONCE):
        scores, ids = model.top_k(points[start : start + PREDICTED_AT_ONCE], options.k)
        for row in range(len(ids)):
            names = [model.label_names_[i] if model.label_names_ else str(i) for i in ids[row]]
            found = list(zip(ids[row].tolist(), names, scores[row].tolist(), strict=True))
            print(f"{start + row}\t" + "; ".join(f"{name} ({score:.2f})" for _, name, score in found))
            if options.json:
                result.append([{"label": i, "name": name, "score": score} for i, name, score in found])
    return result


LANGUAGE_MODEL = "Train a language model: the next word of a text, or the last item of sequences."


def _options(sub, default):
    """A function that adds the option of a parameter: name, type, metavar, help."""

    def option(name, kind, metavar, text):
        flag = "--" + name.replace("_", "-")
        sub.add_argument(flag, type=kind, default=default.get(name), metavar=metavar, help=text)

    return option


def _sampler_options(sub, option, default, what):
    sub.add_argument("--sampler", choices=SAMPLERS, default=default["sampler"], help=what)
    sub.add_argument("--residual", choices=RESIDUALS, default=default["residual"], help="how MIDX draws inside a cell")
    corrected = "for the probabilities of the draws"
    sub.add_argument("--correction", choices=CORRECTIONS, default=default["correction"], help=corrected)
    sub.add_argument("--mask-hits", action="store_true", help="leave out draws that hit the class they are drawn for")
    option("n_samples", int, "M", "negatives drawn for a row")
    option("n_codewords", int, "K", "of each codebook of a MIDX index")
    every = "steps between two updates of a MIDX index (or lsh, sphere, rff), 0: an epoch"
    option("index_every", _count_or_none, "N", every)


def _file_options(sub):
    model = "write the model (safetensors); while training, a checkpoint beside it"
    sub.add_argument("--save", metavar="FILE", help=model)
    resume = "continue from the checkpoint beside --save, if there is one"
    sub.add_argument("--resume", action="store_true", help=resume)
    between = "between two checkpoints inside an epoch"
    sub.add_argument("--checkpoint-seconds", type=float, default=300, metavar="S", help=between)
    sub.add_argument("--plot", metavar="FILE", help="draw the curves of the run")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def _language_model_options(sub, device):
    device(sub)
    default = train.LanguageModel().get_params()
    option = _options(sub, default)
    task = "a text in parts train, valid and test; or lines of items, whose last is to be predicted from those before"
    sub.add_argument("--task", choices=("next-word", "next-item"), default="next-word", help=task)
    where = (
        "'wikitext-2' (bundled) or a folder with train, valid and test (or a corpus) in words; for next-item, sequences"
    )
    sub.add_argument("--data", default="wikitext-2", metavar="DIR-or-NAME", help=where)
    raw = "the text is as people write it: punctuation marks become words of their own, empty lines are left out"
    sub.add_argument("--raw", action="store_true", help=raw)
    rare = "words seen less often count as <unk>; items are left out"
    sub.add_argument("--min-count", type=int, default=1, metavar="N", help=rare)
    option("width", int, "H", "of the embedding and of the LSTM layers")
    option("n_layers", int, "N", "LSTM layers")
    tied = "the output's weights are the embedding's"
    sub.add_argument("--tied", action=argparse.BooleanOptionalAction, default=default["tied"], help=tied)
    _sampler_options(sub, option, default, "draws negatives for the softmax; none: exact")
    option("dropout", float, "P", "rate behind the embedding and each LSTM layer")
    option("clip", float, "X", "largest norm of the gradient")
    option("learning_rate", float, "LR", "of Adam, at the start")
    decay = "of the learning rate: linear in the steps, or halved where the validation stands still"
    sub.add_argument("--decay", choices=DECAYS, default=default["decay"], help=decay)
    option("warm_up", int, "N", "steps over which the learning rate rises from 0")
    option("min_learning_rate", float, "LR", "the learning rate does not fall below it")
    option("patience", int, "N", "epochs without a better validation after which --decay plateau halves the rate")
    option("stop_after", int, "N", "epochs without a better validation after which training stops")
    fewer = "validate with so many tokens of the valid part of a text; 0: no validation (default: all)"
    sub.add_argument("--validation-tokens", type=_count, default=None, metavar="N", help=fewer)
    option("batch_size", int, "B", "streams of a text, or sequences of a step")
    option("unroll", int, "T", "tokens of each stream in a step, or items of a sequence that count")
    option("epochs", int, "N", "at most")
    option("budget_seconds", float, "S", "stop training after S seconds")
    option("seed", int, "N", "of weights, order, dropout and draws")
    _file_options(sub)


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
    option = _options(sub, default)
    sub.add_argument("--output", choices=tuple(OUTPUTS), default=default["output"], help="the output layer")
    sub.add_argument("--loss", choices=LOSSES, default=default["loss"], help="summed over the labels")
    _sampler_options(sub, option, default, "draws negatives for the softmax loss; none: exact")
    option("embedding", int, "D", "width of the embedding of sparse features")
    option("intermediate", _count_or_none, "H", "width of the dense layer below a sparse output, 0 for none")
    option("bottleneck", int, "H", "width of the bottleneck")
    option("fan_in", int, "K", "connections per label")
    option("dropout", float, "P", "rate behind the embedding, or of dense features")
    option("word_dropout", float, "P", "rate at which the entries of sparse features are dropped")
    option("learning_rate", float, "LR", "of Adam, at the start")
    option("embedding_rate", float, "X", "the embedding learns at X times the learning rate")
    option("intermediate_rate", float, "X", "the wide layer below a sparse output learns at X times the learning rate")
    option("warm_up", int, "N", "steps over which the learning rate rises from 0")
    option("min_learning_rate", float, "LR", "the learning rate is not halved below it")
    option("patience", int, "N", "epochs without a better P@3 after which the learning rate is halved")
    option("stop_after", int, "N", "epochs without a better P@3 after which training stops")
    sub.add_argument(
        "--validation", type=_validation, default="dev", metavar="dev|none|SHARE",
        help="what decides on that: the data's dev part (where there is one), nothing, or a share of the training points",
    )  # fmt: skip
    option("rewire_fraction", float, "P", "share of the connections that a rewiring replaces, 0 for none")
    option("rewire_every", int, "N", "steps between two rewirings")
    option("rewire_until", float, "P", "share of the training after which rewiring ends")
    option("batch_size", int, "B", "rows of a step")
    option("epochs", int, "N", "at most")
    option("budget_seconds", float, "S", "stop training after S seconds")
    option("memory_limit", _size, "SIZE", "refuse, before allocating, what needs more memory; e.g. 1GiB")
    option("seed", int, "N", "of weights, order, dropout and rewiring")
    _file_options(sub)
    _language_model_options(command(trainers, "language-model", _train_language_model, LANGUAGE_MODEL), device)

    text = "Measure a saved model: P@k and its kin of a classifier, perplexity and top-k of a language model."
    sub = command(commands, "evaluate", _evaluate, text)
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    data_help = "as for train (if not given: tate, or wikitext-2 for a language model)"
    sub.add_argument("--data", metavar="DIR-or-NAME", help=data_help)
    sub.add_argument("--part", choices=("train", "dev", "test"), default="test", help="of the data")

    sub = command(commands, "predict", _predict, "Predict the labels of points, in words where the model knows them.")
    device(sub)
    sub.add_argument("model", help="file written by train --save")
    sub.add_argument(
        "file", help="points: text in the Extreme Classification Repository's format, or features as .npy, .npz"
    )
    sub.add_argument("-k", type=int, default=None, help="labels per point (default: 5, or all where there are fewer)")
    sub.add_argument("--rows", type=_count, default=None, metavar="N", help="only the first N points")

    sub = command(commands, "generate", _generate, "Continue a prompt with a saved language model.")
    device(sub)
    sub.add_argument("model", help="file written by train language-model --save")
    sub.add_argument("prompt", help="words divided by blanks")
    sub.add_argument("--words", type=_count, default=50, metavar="N", help="to be drawn")
    sub.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: the best word every time")
    sub.add_argument("--top-k", type=int, default=None, metavar="K", help="draw from the K best words only")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws")

    command(commands, "info", _info, "Say which devices and libraries there are and what would run where.")
    return parser


def main(argv=None):
    """Run a command; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        written = options.json, getattr(options, "save", None), getattr(options, "plot", None)
        for path in filter(None, written):  # before hours of work, not after
            if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
                raise FileNotFoundError(f"{path} can not be written: there is no such folder")
        result = options.run(options)
        if options.json:
            _write_json(options.json, result)
        if os.path.exists(checkpoint := getattr(options, "no_longer_needed", "")):
            os.remove(checkpoint)
    except (OSError, TypeError, ValueError, RuntimeError, FloatingPointError) as error:
        print(f"sparsemax-nb: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        what = f": {interrupt}; continue with --resume" if str(interrupt) else ""
        print(f"sparsemax-nb: interrupted{what}", file=sys.stderr)
        return 130
    return 0
