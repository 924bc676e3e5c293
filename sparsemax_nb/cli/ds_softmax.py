"""The command `train ds-softmax`: fit a sparse mixture of experts to the output layer of a saved model."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import PackedDSSoftmax, data, train
from ..core import checkpoint
from ..core.device import asarray, to_numpy
from ..data.arrays import open_npy, write_float16
from ..data.batches import batches
from ..train.ds_softmax import KS, evaluate_experts
from ..train.network import SPARSE_OUTPUTS
from . import common

TOP_K_NAMES = tuple(f"top-{k}" for k in KS)
#: Points whose contexts are computed at once: bounds the memory while the file is written.
POINTS_PER_BATCH = 4096


def ds_softmax(options):
    """Train a DS-Softmax on the inputs of a saved output layer; compare its stages with the full softmax."""
    start, path = time.perf_counter(), common.check_files(options)
    params = {name: getattr(options, name) for name in train.DSSoftmax._param_names() if hasattr(options, name)}
    model = train.DSSoftmax(**params, progress=not options.quiet)
    model._check_params()  # raise errors before minutes of work, not after
    model._check_checkpoint_path(path, options.resume)
    about, rows, parts = _of_language_model(options) if _is_language_model(options.model) else _of_classifier(options)
    n_contexts = parts["train"][0].shape[0]
    print(f"{about}; {n_contexts:,} training contexts; {common.device_line(options.device)}", flush=True)
    stem, _ = os.path.splitext(options.save)
    files = {part: f"{stem}.contexts-{part}.npy" for part in parts}
    is_resumed = options.resume and os.path.exists(path)
    if options.resume:
        print(f"resuming from {path}" if is_resumed else f"no checkpoint {path} yet: starting from scratch", flush=True)
    try:
        pairs = {part: (_contexts(files[part], *parts[part], rows, is_resumed), parts[part][0]) for part in parts}
        model.fit(
            *pairs["train"],
            rows,
            validation=pairs.get("valid"),
            checkpoint_path=path,
            resume=options.resume,
            after_epoch=lambda record: print(_epoch_line(record), flush=True),
            after_stage=lambda n_experts, packed: packed.save(stage_file(options.save, n_experts)),
        )
    except BaseException:
        if not os.path.exists(path):  # nothing to resume from: the contexts are of no use
            _remove(files.values())
        raise
    model.save(options.save)
    options.no_longer_needed = [path, *files.values()]  # removed once everything has been written
    table = [_line_of_table("full softmax", _full(rows, model.experts_.device), *pairs["test"])]
    for stage in _stages(options.save, params):
        if not os.path.exists(stage):  # removed before the run was resumed
            print(f"{stage} is missing and left out of the table")
            continue
        packed = PackedDSSoftmax.load(stage, options.device)
        table.append(_line_of_table(f"DS-{packed.n_experts}", packed, *pairs["test"]))
    table[0]["speed-up"] = 1.0  # the full softmax needs no gate
    _print_table(table)
    print(f"saved {options.save}, and a file for each stage in the same folder")
    return {
        "command": sys.argv[1:],
        "about": about,
        "params": model.get_params(),
        "device": model.experts_.device,
        "contexts": n_contexts,
        "epochs": model.history_,
        "train_seconds": sum(e["seconds"] for e in model.history_),
        "total_seconds": time.perf_counter() - start,
        "peak_memory_bytes": train.loop.peak_memory(),
        "test": table,
    }


def stage_file(path, n_experts):
    """Path of the packed model of a stage, in the folder of the final model."""
    stem, ending = os.path.splitext(path)
    return f"{stem}-{n_experts}{ending}"


def _stages(path, params):
    """Yield the files of all stages, from few experts to many."""
    n_experts = params["first_experts"]
    while n_experts <= params["n_experts"]:
        yield stage_file(path, n_experts)
        n_experts *= 2


# ------------------------------------------------------------ contexts


def _is_language_model(file):
    kind = checkpoint.kind_of(file)
    if kind not in (train.LanguageModel.kind, train.Classifier.kind):
        raise ValueError(
            f"--model must be a language model or a classifier, got a {kind!r} model in {file}; "
            "save one with train language-model or train classifier"
        )
    return kind == train.LanguageModel.kind


def _of_language_model(options):
    """Load a language model and its data.

    Returns a description, the rows of the output layer, and {part: (targets, function that writes the contexts)}.
    """
    model = train.LanguageModel.load(options.model, device=options.device)
    _, _, parts, _ = common.load_texts(model, options.model, options.data)
    if options.contexts is not None:
        parts["train"] = _first(parts["train"], options.contexts, model.unroll)

    def of_part(part):
        every = part == "train"
        targets = model.targets(parts[part], every=every)
        return targets, lambda path: model.encode(parts[part], out=path, every=every)[0]

    rows = to_numpy(model.network_.output.weights)
    about = f"{options.model}: {model.n_words_:,} words, contexts of width {model.width}"
    return about, rows, {part: of_part(part) for part in common.PARTS}


def _first(tokens, n, longest):
    """The start of a text that contains n targets; of sequences, whole ones with at least n targets."""
    if not hasattr(tokens, "indptr"):
        return tokens[: n + 1]
    predicted = np.cumsum(np.clip(np.diff(tokens.indptr) - 1, 0, longest))
    lines = int(np.searchsorted(predicted, n)) + 1
    indptr = tokens.indptr[: lines + 1]
    return replace(tokens, indptr=indptr, items=tokens.items[: indptr[-1]])


def _of_classifier(options):
    """Load a classifier, as `_of_language_model`. A bias becomes the last column of the rows, where contexts are 1."""
    model = train.Classifier.load(options.model, device=options.device)
    if model.output in SPARSE_OUTPUTS:
        raise ValueError(
            f"--model must have a dense output layer, got {model.output!r} in {options.model}; "
            "use a classifier with --output dense or bottleneck, or a language model"
        )
    where = common.resolve_data(
        model, options.model, options.data, data.corpora.BUNDLED, "the folder of the training data"
    )
    corpus, layer, width = data.load(where), model.network_.output, model.network_.width
    points = {"train": corpus.train, "valid": corpus.dev, "test": corpus.test}
    for part in points.values():
        if part is not None and part.labels.shape[1] != model.n_labels_:
            raise ValueError(
                f"--data must have {model.n_labels_:,} labels, as {options.model} expects, but {corpus.name} has "
                f"{part.labels.shape[1]:,}; use the data that the model was trained on"
            )
    common.check_same_data(model, options.model, corpus.name, corpus.train.features, corpus.train.labels)
    rows, bias = to_numpy(layer.weights), getattr(layer, "bias", None)
    if bias is not None:
        bias, has_points = to_numpy(bias), model.label_counts_ > 0
        # Labels without training points have the bias -1e30, too large in magnitude to train with.
        lowest = bias[has_points].min() if has_points.any() else 0
        rows = np.concatenate([rows, np.maximum(bias, lowest)[:, None]], axis=1)

    def of_part(part):
        n = options.contexts if part == "train" else None
        features, labels = points[part].features[:n], points[part].labels[:n]

        def fill(h):
            for batch in batches(np.arange(h.shape[0]), POINTS_PER_BATCH):
                h[batch, :width] = model.encode(features[batch])
            h[:, width:] = 1

        return labels, lambda path: write_float16(path, (features.shape[0], rows.shape[1]), fill)

    about = f"{options.model}: {model.n_labels_:,} labels, contexts of width {rows.shape[1]}"
    return about, rows, {part: of_part(part) for part in common.PARTS if points[part] is not None}


def _contexts(path, targets, write, rows, is_resumed):
    """The contexts of a part, memory-mapped; a resumed run uses the existing file, if there is one."""
    if not (is_resumed and os.path.exists(path)):
        print(f"writing contexts to {path}", flush=True)
        return write(path)
    h, wanted = open_npy(path), (targets.shape[0], rows.shape[1])
    if h.shape != wanted:
        raise ValueError(
            f"{path} must have shape {wanted}, got {h.shape}; use the same --model, --data and --contexts as before"
        )
    return h


def _remove(paths):
    for path in paths:
        Path(path).unlink(missing_ok=True)


# ------------------------------------------------------------ results


def _epoch_line(record):
    line = f"epoch {record['epoch'] + 1:3d}  {record['seconds']:7.1f} s  {record['n_experts']:3d} experts"
    line += f"  loss {record['loss']:.4f}  {record['rows']:,} rows  speed-up {record['speed-up']:.2f}"
    return line + (
        "  valid  " + common.format_percent(record["validation"], (*TOP_K_NAMES, "held"))
        if "validation" in record
        else ""
    )


def _full(rows, device):
    """The full softmax, as a single expert with all classes; its gate value is 1."""
    n_classes, width = rows.shape
    gate = np.zeros((1, width), np.float32)
    starts = np.int32([0, n_classes])
    ids = np.arange(n_classes, dtype=np.int32)
    return PackedDSSoftmax(*(asarray(array, device) for array in (gate, starts, ids, rows)), n_classes)


def _line_of_table(name, packed, contexts, targets):
    return (
        {"name": name}
        | evaluate_experts(packed, contexts, targets)
        | {"rows": len(packed.ids), "bytes": packed.weights.nbytes}
    )


def _print_table(table):
    print(
        f"{'test':14s}" + "".join(f"{name:>8s}" for name in (*TOP_K_NAMES, "held")) + "  speed-up        rows       MiB"
    )
    for line in table:
        shares = "".join(f"{100 * line[name]:8.2f}" for name in (*TOP_K_NAMES, "held"))
        sizes = f"{line['speed-up']:10.2f}{line['rows']:12,}{line['bytes'] / 2**20:10.1f}"
        print(f"{line['name']:14s}{shares}{sizes}")


# ------------------------------------------------------------ options


def ds_softmax_options(sub, device):
    """The options of `train ds-softmax`."""
    device(sub)
    model = "saved language model, or saved classifier with a dense output layer"
    sub.add_argument("--model", metavar="FILE", required=True, help=model)
    data_help = "the data that the model was trained on; may be omitted if bundled"
    sub.add_argument("--data", metavar="DIR-or-NAME", help=data_help)
    first = "train on the first N tokens, items or points of the train part; 0: all (the default)"
    sub.add_argument("--contexts", type=common.count_or_none, default=None, metavar="N", help=first)
    default = train.DSSoftmax().get_params()
    option = common.option_adder(sub, default)
    option("n_experts", int, "N", "final number of experts: --first-experts times a power of two")
    option("first_experts", int, "N", "initial number of experts, each with all classes")
    option("epochs", int, "N", "epochs for each number of experts")
    option("prune_after", int, "N", "epochs before the first pruning")
    option("threshold", float, "X", "prune rows whose root mean square is smaller")
    option("class_lasso", float, "X", "weight of the group lasso over the rows of each expert")
    option("expert_lasso", float, "X", "weight of the group lasso over each class across all experts")
    option("balance", float, "X", "weight of the penalty on unequal loads of the experts")
    option("noise", float, "X", "standard deviation of the noise added to the gate")
    option("batch_size", int, "B", "contexts per step")
    option("learning_rate", float, "LR", "learning rate of Adam at the start of each stage")
    option("seed", int, "N", "random seed of gate, order, noise and mitosis")
    common.file_options(sub, required=True)
