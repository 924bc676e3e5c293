"""The commands `train classifier` and `train language-model`."""

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
from ..train.chunks import fingerprint_parts
from ..train.classifier_params import ARCHITECTURES
from ..train.loop import DECAYS
from ..train.negatives import SAMPLERS
from ..train.network import LOSSES, OUTPUTS
from . import common, texts

#: What `train classifier` takes by default.
DEFAULT_DATA = "tate"


def _epoch_line(record):
    line = f"epoch {record['epoch'] + 1:3d}  {record['seconds']:7.1f} s  loss {record['loss']:.4f}  "
    line += f"lr {record['learning_rate']:.1e}  " if "learning_rate" in record else ""
    scores = record.get("validation", {})
    return line + (
        common.format_language_metrics(scores)
        if "perplexity" in scores
        else common.format_percent(scores, ("P@1", "P@3", "P@5"))
    )


def _fit(model, path, options, *data_arguments, **more):
    """Fit with a checkpoint at `path` and print the progress; return the results that all runs have in common."""
    start = time.perf_counter()
    if options.resume:
        found = os.path.exists(path)
        print(f"resuming from {path}" if found else f"no checkpoint {path} yet: starting from scratch", flush=True)
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
        f"{history.steps} steps in {history.seconds:.1f} s (first step, with compilation: "
        f"{history.first_step_seconds:.1f} s); output layer {network.output_nbytes / 2**20:.1f} MiB, "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    if updates := history.index_updates:
        share = updates[-1]["share"]
        moved = "" if share is None else f"; the last one moved {share:.1%} of the {model.classes}"
        seconds = sum(update["seconds"] for update in updates)
        print(f"{len(updates)} updates of the {options.sampler} index, {seconds:.1f} s in total{moved}")
    if history.best_epoch is not None:
        print(f"kept the weights of epoch {history.best_epoch + 1}, the best on the validation set ({history.stopped})")
    return result


def _write_out(model, path, options, *more):
    """Save the model and plot the curves; after that, the checkpoint is no longer needed."""
    if options.save:
        model.save(options.save, *more)
        print(f"saved {options.save}")
    if options.plot:
        curves.plot(model.history_, options.plot)
        print(f"plotted the curves to {options.plot}")
    if path and model.history_.stopped == "budget" and os.path.exists(path):
        print(f"the time budget is used up; --resume with a larger --budget-seconds continues from {path}")
    elif path:
        options.no_longer_needed = [path]  # removed once everything has been written


def classifier(options):
    """Train on a corpus or on texts, print ranking metrics on its test part, save the model."""
    path = common.check_files(options)
    params = {name: getattr(options, name) for name in train.Classifier._param_names() if hasattr(options, name)}
    model = train.Classifier(**params, progress=not options.quiet)
    if options.validation not in ("dev", "none"):
        model.set_params(validation_fraction=options.validation)
    if options.test_dense is not None and options.dense is None:
        raise ValueError("--test-dense needs --dense FILE, the embeddings of the training points")
    if options.text is None:
        result, label_names = _train_on_features(model, path, options)
    else:
        result, label_names = _train_on_texts(model, path, options), None
    result |= {
        "n_labels": model.n_labels_,
        "n_features": model.n_features_in_,
        "memory_plan_bytes": model.memory_plan_.nbytes,
        "tfidf": model.tfidf_ is not None,
    }
    if "test" in result:
        common.print_metrics("test", result["test"])
    _write_out(model, path, options, label_names)
    return result


def _train_on_features(model, path, options):
    """Train on --data; return the results and the label names."""
    for name in ("test_text", "vocabulary", "language"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} needs --text FILE")
    corpus, validation = data.load(options.data or DEFAULT_DATA), None
    x, dense = corpus.train.features, common.embeddings(options.dense, corpus.train.features.shape[0])
    if options.validation == "dev" and corpus.dev is not None and dense is None:
        validation = corpus.dev.features, corpus.dev.labels
    n, n_features = corpus.train.features.shape
    print(
        f"{corpus.name}: {n:,} points, {n_features:,} features, {corpus.train.labels.shape[1]:,} labels; "
        f"{common.device_line(options.device)}",
        flush=True,
    )
    if corpus.dev is None and options.validation == "dev":
        print(
            "no dev part: all epochs are run and the last one is kept; "
            "--validation 0.1 validates on a tenth of the training points"
        )
    x = x if dense is None else (x, dense)
    result = _fit(model, path, options, x, corpus.train.labels, validation=validation)
    if options.save:
        common.record_training_data(model, corpus.name, corpus.train.features, corpus.train.labels)
    test = corpus.test
    if dense is None:
        test_x = test.features
    elif options.test_dense is not None:
        test_x = test.features, common.embeddings(options.test_dense, test.features.shape[0])
    else:
        print("no evaluation: --test-dense FILE has the embeddings of the test part")
        return result, corpus.label_names
    return result | {"test": model.evaluate(test_x, test.labels, excluded=test.excluded)}, corpus.label_names


def _train_on_texts(model, path, options):
    """Train on --text; return the results, with those on --test-text if it is given."""
    if not options.quiet:
        print(f"sparsemax-nb: reading {options.text}", file=sys.stderr, flush=True)
    corpus = texts.read_labeled(options.text, options)
    test = None if options.test_text is None else texts.read_labeled(options.test_text, options)
    name, n_labels = texts.name_of(options.text), len({label for labels in corpus.labels for label in labels})
    print(f"{name}: {len(corpus.texts):,} texts, {n_labels:,} labels; {common.device_line(options.device)}", flush=True)
    names = texts.read_vocabulary(options, corpus)
    x = texts.with_embeddings(corpus.texts, options.dense)
    test_x = None if test is None else texts.with_embeddings(test.texts, options.test_dense)
    if test is not None and isinstance(x, tuple) != isinstance(test_x, tuple):
        raise ValueError("--dense and --test-dense must be given together if there is --test-text")
    result = _fit(model, path, options, x, corpus.labels, names=names)
    by_name = int(((model.label_counts_ == 0) & (model.name_counts_ > 0)).sum())
    print(
        f"{model.n_features_in_:,} features, {model.n_labels_:,} labels, {by_name:,} of them known by their names only"
    )
    if options.save:
        common.record_training_data(model, name, *texts.digests(corpus))
    result |= {"n_texts": len(corpus.texts), "n_labels_by_name": by_name}
    if test is not None:
        result["test"] = model.evaluate(test_x, test.labels)
    return result


def _texts(options):
    """Load the data for `--task`: train, valid and test part, vocabulary, name, description."""
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
            raise ValueError(f"{corpus.name}: the {part} part must have at least two tokens, got 1")
    unknown = ", ".join(f"{part} {share:.2%}" for part, share in corpus.unknown.items())
    about = (
        f"{corpus.name}: {len(corpus.train):,} tokens, {len(corpus.vocabulary):,} words; out of vocabulary: {unknown}"
    )
    return corpus.train, corpus.valid, corpus.test, corpus.vocabulary, corpus.name, about


def language_model(options):
    """Train on a text or on sequences of items, print the metrics of the predictions, save the model."""
    path = common.check_files(options)
    if options.task == "next-item" and options.validation_tokens:
        raise ValueError(
            "--validation-tokens must be 0 (no validation) or omitted with --task next-item; it shortens a text only"
        )
    training, validation, test, vocabulary, name, about = _texts(options)
    params = {name: getattr(options, name) for name in train.LanguageModel._param_names() if hasattr(options, name)}
    model = train.LanguageModel(**params, progress=not options.quiet)
    print(f"{about}; {common.device_line(options.device)}", flush=True)
    if options.validation_tokens is not None:
        validation = validation[: options.validation_tokens] if options.validation_tokens else None
    result = _fit(model, path, options, training, vocabulary=vocabulary, validation=validation)
    if options.save:
        common.record_training_data(model, name, *fingerprint_parts(training))
    _write_out(model, path, options)
    result |= {
        "about": about,
        "n_words": model.n_words_,
        "tokens": len(getattr(training, "items", training)),
        "output_share": result["output_seconds"] / max(result["train_seconds"], 1e-9),
        "test": model.evaluate(test),
        "baseline": _baseline(options.task, training, test, len(vocabulary)),
    }
    print(f"{result['output_share']:.0%} of the training time was spent in the output layer")
    common.print_language_metrics("test", result["test"], options.task)
    name = "a unigram model" if options.task == "next-word" else "the most popular items"
    print(f"baseline: {name}  {common.format_language_metrics(result['baseline'])}")
    return result


def _baseline(task, training, test, n_words):
    """Metrics of predictions that use the frequency of each word or item only."""
    if task == "next-word":
        return {"perplexity": metrics.unigram_perplexity(np.bincount(training, minlength=n_words), test[1:])}
    counts = np.bincount(training.items, minlength=n_words)
    last = test.items[test.indptr[1:][np.diff(test.indptr) > 1] - 1]
    return metrics.ranking_metrics(metrics.popularity_ranks(counts, last), 10)


# ------------------------------------------------------------ options


def _decay_options(sub, option, default):
    """Add the options of the schedule of the learning rate."""
    decay = "how the learning rate falls: linear in the steps, or halved when the validation does not improve"
    sub.add_argument("--decay", choices=DECAYS, default=default["decay"], help=decay)
    option("warm_up", int, "N", "steps over which the learning rate rises from 0")
    option("min_learning_rate", float, "LR", "minimum learning rate")
    option("patience", int, "N", "epochs without a better validation before --decay plateau halves the learning rate")
    option("stop_after", int, "N", "epochs without a better validation before training stops")


def _sampler_options(sub, option, default, text):
    sub.add_argument("--sampler", choices=SAMPLERS, default=default["sampler"], help=text)
    cells = "how MIDX draws a class within a cell"
    sub.add_argument("--residual", choices=RESIDUALS, default=default["residual"], help=cells)
    correction = "how the loss is corrected for the probabilities of the draws"
    sub.add_argument("--correction", choices=CORRECTIONS, default=default["correction"], help=correction)
    sub.add_argument("--mask-hits", action="store_true", help="leave out draws that equal the target")
    option("n_samples", int, "M", "negatives drawn per row")
    option("n_codewords", int, "K", "codewords in each codebook of MIDX")
    every = "steps between two updates of the index of MIDX (or of lsh, sphere, rff); 0: once per epoch"
    option("index_every", common.count_or_none, "N", every)


def _training_file_options(sub):
    common.file_options(sub)
    interval = "seconds between two checkpoints within an epoch"
    sub.add_argument("--checkpoint-seconds", type=common.seconds, default=300, metavar="S", help=interval)
    sub.add_argument("--plot", metavar="FILE", help="plot the learning curves to FILE (.png, .svg or .pdf)")


def _text_options(sub, default):
    """Add the options of `train classifier` for texts."""
    option = common.option_adder(sub, default)
    test = "texts with labels for the evaluation at the end (default: no evaluation)"
    sub.add_argument("--test-text", metavar="FILE-or-FOLDER", help=test)
    texts.field_options(sub, labels=True)
    texts.vocabulary_options(sub)
    yes_or_no = argparse.BooleanOptionalAction
    pairs = "use two neighboring words as a feature, in addition to single words"
    sub.add_argument("--word-pairs", action=yes_or_no, default=default["word_pairs"], help=pairs)
    option("char_ngrams", common.count, "N", "length of the character n-grams that are features, too; 0: none")
    weight = "weight of the character n-grams relative to the words; auto: chosen by trials, for the linear layer"
    option("char_weight", common.number_or_auto, "X|auto", weight)
    bits = "store no vocabulary: a hash function maps each kind of feature to 2^N columns (default: a vocabulary)"
    option("hash_bits", common.count, "N", bits)
    points = "use the names of a label as its training points"
    sub.add_argument("--name-points", action=yes_or_no, default=default["name_points"], help=points)


def _label_set_options(sub, default):
    """Add the options of `train classifier` for probabilities and label sets."""
    option = common.option_adder(sub, default)
    calibration = "learn probabilities, and choose threshold and limit, from held-out points"
    flag = argparse.BooleanOptionalAction
    sub.add_argument("--calibration", action=flag, default=default["calibration"], help=calibration)
    threshold = (
        "probability that a predicted label needs, or the measure that decides it: sample-f1, f1@5, or for example "
        "precision=0.8"
    )
    option("threshold", common.threshold, "P|MEASURE", threshold)
    option("limit", common.limit, "N|auto|none", "maximum number of labels of a row; auto: as for --threshold")


def classifier_options(parser, device):
    """Add the options of `train classifier`."""
    device(parser)
    default = train.Classifier().get_params()
    source = parser.add_mutually_exclusive_group()
    where = f"{DEFAULT_DATA!r} (bundled, the default), or a folder with train and test files"
    source.add_argument("--data", metavar="DIR-or-NAME", help=where)
    text = (
        "texts with labels: tab-separated lines (the text, then each label), JSON lines (.jsonl), or a folder with "
        "NAME.txt and NAME.tsv or NAME.key"
    )
    source.add_argument("--text", metavar="FILE-or-FOLDER", help=text)
    dense = "embeddings beside the texts or sparse features, a .npy array with a row per point, in the same order"
    parser.add_argument("--dense", metavar="FILE.npy", help=dense)
    test = "embeddings of the test texts, or of the test part of the data"
    parser.add_argument("--test-dense", metavar="FILE.npy", help=test)
    _text_options(parser.add_argument_group("texts"), default)
    _label_set_options(parser.add_argument_group("label sets"), default)
    architecture = (
        "linear layer over sparse features, kernel machine over dense ones, both (wide-and-deep), or neural network; "
        "auto: by the features"
    )
    parser.add_argument(
        "--architecture", choices=("auto", *ARCHITECTURES), default=default["architecture"], help=architecture
    )
    option = common.option_adder(parser.add_argument_group("the linear layer"), default)
    option("C", common.number_or_auto, "C|auto", "weight of the loss; auto: chosen by trials on some of the labels")
    option("slack", common.number_or_auto, "S|auto", "the score of a negative must be below S - 1; auto: as for --C")
    frequency = "added to the score of a label, times the logarithm of its number of points; auto: as for --C"
    option("frequency", common.number_or_auto, "F|auto", frequency)
    co_occurrence = "weight of label co-occurrence in the reranking of the best 20 labels; 0: no reranking"
    option("co_occurrence", float, "W", co_occurrence)
    option("features_per_point", float, "X", "connected features of a label per training point")
    option("min_features", int, "N", "minimum number of connected features of a label")
    extra = "features added to each label after the first pass, chosen by its errors, as a multiple of its features"
    option("extra_features", float, "X", extra)
    option = common.option_adder(parser.add_argument_group("the kernel machine"), default)
    option("power", common.number_or_auto, "P|auto", "power of the cosine similarity; auto: chosen by trials")
    option("kernel_C", common.number_or_auto, "C|auto", "weight of the loss; auto: chosen by trials")
    option("n_neighbors", int, "N", "nearest training points that score a point")
    weight = "weight of the kernel machine beside the linear layer; auto: chosen on held-out points"
    option("kernel_weight", common.number_or_auto, "W|auto", weight)
    weight = "weight of a linear layer over the embeddings; 0: no such layer; auto: chosen on held-out points"
    option("head_weight", common.number_or_auto, "W|auto", weight)
    columns = "number of the last columns of the features that are embeddings, instead of --dense"
    option("dense_columns", int, "N", columns)
    sub = parser.add_argument_group("the network")
    option = common.option_adder(sub, default)
    sub.add_argument("--output", choices=tuple(OUTPUTS), default=default["output"], help="type of the output layer")
    sub.add_argument("--loss", choices=LOSSES, default=default["loss"], help="loss, summed over the labels")
    initial = "weights before the training: computed from the training labels, or random hidden layers and zeros"
    sub.add_argument("--initial", choices=("labels", "random"), default=default["initial"], help=initial)
    _sampler_options(sub, option, default, "how negatives are drawn for the softmax loss; none: exact loss")
    option("embedding", int, "D", "width of the embedding of sparse features")
    option("intermediate", common.count_or_none, "H", "width of the dense layer below a sparse output layer; 0: none")
    option("bottleneck", int, "H", "width of the bottleneck layer")
    option("fan_in", int, "K", "connections per label (default: 64, at most half the width of the layer below)")
    option("group_size", int, "G", "labels per group in a group-shared output layer")
    grouping = "how labels are grouped: by the features of their points, by their number of points, or at random"
    sub.add_argument("--grouping", choices=GROUPINGS, default=default["grouping"], help=grouping)
    dtype = "type of the weights of a group-shared output layer; bfloat16: stochastic rounding, no float32 copy"
    sub.add_argument("--weight-dtype", choices=tuple(DTYPES), default=default["weight_dtype"], help=dtype)
    option("batch_size", int, "B", "rows per step")
    tfidf = "convert counts to TF-IDF weights; auto: if all sparse features are whole numbers"
    parser.add_argument("--tfidf", type=common.auto_or_flag, default="auto", metavar="auto|yes|no", help=tfidf)
    option("dropout", float, "P", "dropout rate after the embedding, or of dense features")
    option("word_dropout", float, "P", "dropout rate of the entries of sparse features")
    option("learning_rate", float, "LR", "initial learning rate of Adam")
    option("embedding_lr_multiplier", float, "X", "factor of the learning rate for the embedding")
    multiplier = "factor of the learning rate for the dense layer below a sparse output layer"
    option("intermediate_lr_multiplier", float, "X", multiplier)
    option("clip", float, "X", "maximum norm of the gradient (default: no clipping)")
    _decay_options(sub, option, default)
    validation = (
        "data for choosing C, slack and frequency, or the best epoch of a network: the dev part of the data (if there "
        "is one), none, or a fraction of the training points"
    )
    parser.add_argument(
        "--validation", type=common.validation_part, default="dev", metavar="dev|none|FRACTION", help=validation
    )
    option("rewire_fraction", float, "P", "fraction of the connections that a rewiring replaces; 0: no rewiring")
    option("rewire_every", int, "N", "steps between two rewirings")
    option("rewire_until", float, "P", "fraction of the training after which rewiring ends")
    option = common.option_adder(parser, default)
    option("epochs", int, "N", "maximum number of epochs (default: 5)")
    option("budget_seconds", float, "S", "stop training after S seconds")
    option("memory_limit", common.size, "SIZE", "raise an error before training if it needs more memory, e.g. 1GiB")
    option("seed", int, "N", "random seed of weights, order, dropout and rewiring")
    _training_file_options(parser)


def language_model_options(sub, device):
    """Add the options of `train language-model`."""
    device(sub)
    default = train.LanguageModel().get_params()
    option = common.option_adder(sub, default)
    task = "next-word: predict each word of a text; next-item: predict the last item of each sequence from those before"
    sub.add_argument("--task", choices=("next-word", "next-item"), default="next-word", help=task)
    where = (
        "'wikitext-2' (bundled), or a folder with the text files train, valid and test, or with one file corpus; "
        "for next-item, a file of sequences or its folder"
    )
    sub.add_argument("--data", default="wikitext-2", metavar="DIR-or-NAME", help=where)
    raw = "the text is not tokenised: split off punctuation marks as words, and leave out empty lines"
    sub.add_argument("--raw", action="store_true", help=raw)
    rare = "replace words that occur less often by <unk>, and leave out such items"
    sub.add_argument("--min-count", type=int, default=1, metavar="N", help=rare)
    option("width", int, "H", "width of the embedding and of the LSTM layers")
    option("n_layers", int, "N", "number of LSTM layers")
    tied = "use the table of the embedding as weights of the output layer"
    sub.add_argument("--tied", action=argparse.BooleanOptionalAction, default=default["tied"], help=tied)
    _sampler_options(sub, option, default, "how negatives are drawn for the softmax loss; none: exact loss")
    option("dropout", float, "P", "dropout rate after the embedding and after each LSTM layer")
    option("clip", float, "X", "maximum norm of the gradient")
    option("learning_rate", float, "LR", "initial learning rate of Adam")
    _decay_options(sub, option, default)
    fewer = "validate on the first N tokens of the valid part of a text; 0: no validation (default: all)"
    sub.add_argument("--validation-tokens", type=common.count, default=None, metavar="N", help=fewer)
    option("batch_size", int, "B", "parallel streams of a text, or sequences, per step")
    option("unroll", int, "T", "tokens of each stream per step, or last items of a sequence that are used")
    option("epochs", int, "N", "maximum number of epochs")
    option("budget_seconds", float, "S", "stop training after S seconds")
    option("seed", int, "N", "random seed of weights, order, dropout and draws")
    _training_file_options(sub)
