"""The commands `train classifier` and `train language-model`, and what the other commands share with them."""

import argparse
import os
import sys
import time

import numpy as np

from .. import data, metrics, train
from ..group_shared import DTYPES
from ..grouping import GROUPINGS
from ..midx import RESIDUALS
from ..sampled_softmax import CORRECTIONS
from ..train import curves
from ..train.classifier import ARCHITECTURES
from ..train.language_model import DECAYS, _parts
from ..train.negatives import SAMPLERS
from ..train.network import LOSSES, OUTPUTS
from . import common


def _epoch_line(record):
    line = f"epoch {record['epoch'] + 1:3d}  {record['seconds']:7.1f} s  loss {record['loss']:.4f}  "
    line += f"lr {record['learning_rate']:.1e}  " if "learning_rate" in record else ""
    figures = record.get("validation", {})
    return line + (
        common.language_line(figures) if "perplexity" in figures else common.percent(figures, ("P@1", "P@3", "P@5"))
    )


def _fit(model, path, options, *data_arguments, **more):
    """Fit with a checkpoint at `path`, saying what happens; returns the figures that every run has."""
    start = time.perf_counter()
    if options.resume:
        found = os.path.exists(path)
        print(f"resuming from {path}" if found else f"no checkpoint {path} yet: starting anew", flush=True)
    model.fit(
        *data_arguments,
        checkpoint_path=path,
        checkpoint_seconds=options.checkpoint_seconds,
        resume=options.resume,
        after_epoch=lambda _, history: print(_epoch_line(history.epochs[-1]), flush=True),
        **more,
    )
    history, network = model.history_, model.network_
    result = {
        "command": sys.argv[1:],
        "params": model.get_params(),
        "device": model.device_,
        "stopped": history.stopped,
        "steps": history.steps,
        "train_seconds": history.seconds,
        "output_seconds": history.output_seconds,
        "first_step_seconds": history.first_step_seconds,
        "losses": history.losses,
        "best_epoch": history.best_epoch,
        "epochs": history.epochs,
        "rewirings": history.rewirings,
        "index_updates": history.index_updates,
        "total_seconds": time.perf_counter() - start,
        "output_layer_bytes": network.output_nbytes,
        "network_bytes": network.nbytes,
        "peak_memory_bytes": train.loop.peak_memory(),
    }
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
    if path and model.history_.stopped == "budget" and os.path.exists(path):
        print(f"the budget is spent; --resume with a larger one continues from {path}")
    elif path:
        options.no_longer_needed = [path]  # removed once everything has been written


def classifier(options):
    """Train on a corpus, report P@k and its kin on its test set, save the model."""
    path = common.checked_files(options)
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
        f"{common.device_line(options.device)}",
        flush=True,
    )
    if validation is None and options.validation == "dev":
        print(
            "no dev part: every epoch is run, the last one is kept; --validation 0.1 sets a share of the points aside"
        )
    result = _fit(model, path, options, corpus.train.features, corpus.train.labels, validation=validation)
    if options.save:
        common.remember(model, corpus.name, corpus.train.features, corpus.train.labels)
    result |= {
        "n_labels": model.n_labels_,
        "n_features": model.n_features_in_,
        "memory_plan_bytes": model.memory_plan_.nbytes,
        "tfidf": model.tfidf_ is not None,
        "test": model.evaluate(corpus.test.features, corpus.test.labels),
    }
    common.print_figures("test", result["test"])
    _write_out(model, path, options, corpus.label_names)
    return result


def _texts(options):
    """What `--task` makes of the data: the parts to train on, validate with and test on, vocabulary, name, a line about it."""
    if options.task == "next-item":
        sequences = data.load_sequences(options.data, options.min_count)
        n, vocabulary = len(sequences.indptr) - 1, sequences.vocabulary
        return (
            *data.leave_last_out(sequences),
            vocabulary,
            sequences.name,
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
    return corpus.train, corpus.valid, corpus.test, corpus.vocabulary, corpus.name, about


def language_model(options):
    """Train on a text or on sequences of items, report how well the next word or last item is predicted, save the model."""
    path = common.checked_files(options)
    if options.task == "next-item" and options.validation_tokens:
        raise ValueError("--validation-tokens cuts a text; for next-item it may be 0 only: no validation")
    training, validation, test, vocabulary, name, about = _texts(options)
    params = {name: getattr(options, name) for name in train.LanguageModel._names() if hasattr(options, name)}
    model = train.LanguageModel(**params, progress=not options.quiet)
    print(f"{about}; {common.device_line(options.device)}", flush=True)
    if options.validation_tokens is not None:
        validation = validation[: options.validation_tokens] if options.validation_tokens else None
    result = _fit(model, path, options, training, vocabulary=vocabulary, validation=validation)
    if options.save:
        common.remember(model, name, *_parts(training))
    _write_out(model, path, options)
    result |= {
        "about": about,
        "n_words": model.n_words_,
        "tokens": len(getattr(training, "items", training)),
        "output_share": result["output_seconds"] / max(result["train_seconds"], 1e-9),
        "test": model.evaluate(test),
        "baseline": _baseline(options.task, training, test, len(vocabulary)),
    }
    print(f"{result['output_share']:.0%} of the time went into the output layer")
    common.print_language_figures("test", result["test"], options.task)
    name = "a unigram model" if options.task == "next-word" else "the most popular items"
    print(f"to compare: {name}  {common.language_line(result['baseline'])}")
    return result


def _baseline(task, training, test, n_words):
    """What is reached by knowing how frequent each word or item is, and nothing else."""
    if task == "next-word":
        return {"perplexity": metrics.unigram_perplexity(np.bincount(training, minlength=n_words), test[1:])}
    counts, last = (
        np.bincount(training.items, minlength=n_words),
        test.items[test.indptr[1:][np.diff(test.indptr) > 1] - 1],
    )
    return metrics.ranking_metrics(metrics.popularity_ranks(counts, last), 10)


# ------------------------------------------------------------ what a saved model was trained on


# ------------------------------------------------------------ figures


# ------------------------------------------------------------ options


def _sampler_options(sub, option, default, what):
    sub.add_argument("--sampler", choices=SAMPLERS, default=default["sampler"], help=what)
    sub.add_argument("--residual", choices=RESIDUALS, default=default["residual"], help="how MIDX draws inside a cell")
    corrected = "for the probabilities of the draws"
    sub.add_argument("--correction", choices=CORRECTIONS, default=default["correction"], help=corrected)
    sub.add_argument("--mask-hits", action="store_true", help="leave out draws that hit the class they are drawn for")
    option("n_samples", int, "M", "negatives drawn for a row")
    option("n_codewords", int, "K", "of each codebook of a MIDX index")
    every = "steps between two updates of a MIDX index (or lsh, sphere, rff), 0: an epoch"
    option("index_every", common.count_or_none, "N", every)


def _more_file_options(sub):
    common.file_options(sub)
    between = "between two checkpoints inside an epoch"
    sub.add_argument("--checkpoint-seconds", type=common.seconds, default=300, metavar="S", help=between)
    sub.add_argument("--plot", metavar="FILE", help="draw the curves of the run")


def classifier_options(parser, device):
    """The options of `train classifier`."""
    device(parser)
    default = train.Classifier().get_params()
    parser.add_argument(
        "--data", default="tate", metavar="DIR-or-NAME", help="'tate' (bundled) or a folder with train and test files"
    )
    architecture = (
        "a linear layer over sparse features, or a network; auto: linear for sparse features, network for dense"
    )
    parser.add_argument(
        "--architecture", choices=("auto", *ARCHITECTURES), default=default["architecture"], help=architecture
    )
    option = common.options_of(parser.add_argument_group("the linear layer"), default)
    option("C", common.number_or_auto, "C|auto", "how much an error weighs; auto: tried on a part of the labels")
    option(
        "slack", common.number_or_auto, "S|auto", "other labels than a point's own are asked for a score of S - 1 only"
    )
    option(
        "frequency",
        common.number_or_auto,
        "F|auto",
        "what a label's score gains for the logarithm of its number of points",
    )
    option(
        "co_occurrence",
        float,
        "W",
        "weight with which the best 20 labels are reranked by how often they share points; 0: off",
    )
    option("features_per_point", float, "X", "features of a label for each of its points")
    option("min_features", int, "N", "and so many at least")
    option(
        "extra_features", float, "X", "so many times as many more after the first pass, chosen by the label's errors"
    )
    sub = parser.add_argument_group("the network")
    option = common.options_of(sub, default)
    sub.add_argument("--output", choices=tuple(OUTPUTS), default=default["output"], help="the output layer")
    sub.add_argument("--loss", choices=LOSSES, default=default["loss"], help="summed over the labels")
    _sampler_options(sub, option, default, "draws negatives for the softmax loss; none: exact")
    option("embedding", int, "D", "width of the embedding of sparse features")
    option("intermediate", common.count_or_none, "H", "width of the dense layer below a sparse output, 0 for none")
    option("bottleneck", int, "H", "width of the bottleneck")
    option("fan_in", int, "K", "connections per label")
    option("group_size", int, "G", "labels that share their inputs in a group-shared output")
    grouping = "how its labels are grouped: by the features of their points, by their number of points, at random"
    sub.add_argument("--grouping", choices=GROUPINGS, default=default["grouping"], help=grouping)
    stored = "what its weights are stored in; bfloat16 ones are rounded at random, there is no float32 copy"
    sub.add_argument("--weight-dtype", choices=tuple(DTYPES), default=default["weight_dtype"], help=stored)
    option("batch_size", int, "B", "rows of a step")
    weigh = "whether sparse features are counts that become TF-IDF weights; auto: unless any of them is no whole number"
    parser.add_argument("--tfidf", type=common.auto_or_flag, default="auto", metavar="auto|yes|no", help=weigh)
    option("dropout", float, "P", "rate behind the embedding, or of dense features")
    option("word_dropout", float, "P", "rate at which the entries of sparse features are dropped")
    option("learning_rate", float, "LR", "of Adam, at the start")
    option("embedding_lr_multiplier", float, "X", "the embedding learns at X times the learning rate")
    option(
        "intermediate_lr_multiplier",
        float,
        "X",
        "the wide layer below a sparse output learns at X times the learning rate",
    )
    option("clip", float, "X", "largest norm of the gradient; not given: gradients are not clipped")
    option("warm_up", int, "N", "steps over which the learning rate rises from 0")
    option("min_learning_rate", float, "LR", "the learning rate is not halved below it")
    option("patience", int, "N", "epochs without a better P@3 after which the learning rate is halved")
    option("stop_after", int, "N", "epochs without a better P@3 after which training stops")
    parser.add_argument(
        "--validation",
        type=common.validation_part,
        default="dev",
        metavar="dev|none|SHARE",
        help="what C, slack and frequency, or rate and end of the training, are chosen by: the data's dev part (where there is one), "
        "nothing, or a share of the training points",
    )
    option("rewire_fraction", float, "P", "share of the connections that a rewiring replaces, 0 for none")
    option("rewire_every", int, "N", "steps between two rewirings")
    option("rewire_until", float, "P", "share of the training after which rewiring ends")
    option = common.options_of(parser, default)
    option("epochs", int, "N", "passes over the data, at most (default: 5 for the linear layer, 10 for a network)")
    option("budget_seconds", float, "S", "stop training after S seconds")
    option("memory_limit", common.size, "SIZE", "refuse, before allocating, what needs more memory; e.g. 1GiB")
    option("seed", int, "N", "of weights, order, dropout and rewiring")
    _more_file_options(parser)


def language_model_options(sub, device):
    """The options of `train language-model`."""
    device(sub)
    default = train.LanguageModel().get_params()
    option = common.options_of(sub, default)
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
    sub.add_argument("--validation-tokens", type=common.count, default=None, metavar="N", help=fewer)
    option("batch_size", int, "B", "streams of a text, or sequences of a step")
    option("unroll", int, "T", "tokens of each stream in a step, or items of a sequence that count")
    option("epochs", int, "N", "at most")
    option("budget_seconds", float, "S", "stop training after S seconds")
    option("seed", int, "N", "of weights, order, dropout and draws")
    _more_file_options(sub)
