"""The command `train ds-softmax`: from a saved model to experts that answer faster."""

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
from ..train.ds_softmax import KS, figures
from ..train.network import SPARSE_OUTPUTS
from . import common

TOPS = tuple(f"top-{k}" for k in KS)
POINTS_AT_ONCE = 4096


def ds_softmax(options):
    """Train a DS-Softmax on what the output layer of a saved model sees, compare its stages with the full softmax."""
    start, path = time.perf_counter(), common.checked_files(options)
    params = {name: getattr(options, name) for name in train.DSSoftmax._names() if hasattr(options, name)}
    model = train.DSSoftmax(**params, progress=not options.quiet)
    model._check_params()  # before minutes of work, not after
    model._check_checkpoint_path(path, options.resume)
    about, rows, parts = _of_language_model(options) if _is_language_model(options.model) else _of_classifier(options)
    n_contexts = parts["train"][0].shape[0]
    print(f"{about}; {n_contexts:,} contexts to learn from; {common.device_line(options.device)}", flush=True)
    stem, _ = os.path.splitext(options.save)
    files = {part: f"{stem}.contexts-{part}.npy" for part in parts}
    is_resumed = options.resume and os.path.exists(path)
    if options.resume:
        print(f"resuming from {path}" if is_resumed else f"no checkpoint {path} yet: starting anew", flush=True)
    try:
        known = {part: (_contexts(files[part], *parts[part], rows, is_resumed), parts[part][0]) for part in parts}
        model.fit(
            *known["train"],
            rows,
            validation=known.get("valid"),
            checkpoint_path=path,
            resume=options.resume,
            after_epoch=lambda record: print(_epoch_line(record), flush=True),
            after_stage=lambda n_experts, packed: packed.save(stage_file(options.save, n_experts)),
        )
    except BaseException:
        if not os.path.exists(path):  # there is nothing that a resume could go on from
            _remove(files.values())
        raise
    model.save(options.save)
    options.no_longer_needed = [path, *files.values()]  # removed once everything has been written
    table = [_line_of_table("full softmax", _full(rows, model.experts_.device), *known["test"])]
    for stage in _stages(options.save, params):
        if not os.path.exists(stage):  # of a run that was resumed
            print(f"{stage} is gone: it is left out below")
            continue
        packed = PackedDSSoftmax.load(stage, options.device)
        table.append(_line_of_table(f"DS-{packed.n_experts}", packed, *known["test"]))
    table[0]["speed-up"] = 1.0  # it has no gate
    _print_table(table)
    print(f"saved {options.save}, and each stage beside it")
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
    """Where the packed model of a stage lies: beside that of the last."""
    stem, ending = os.path.splitext(path)
    return f"{stem}-{n_experts}{ending}"


def _stages(path, params):
    """The files of all stages, from few experts to many."""
    n_experts = params["first_experts"]
    while n_experts <= params["n_experts"]:
        yield stage_file(path, n_experts)
        n_experts *= 2


# ------------------------------------------------------------ contexts


def _is_language_model(file):
    kind = checkpoint.kind_of(file)
    if kind not in (train.LanguageModel.kind, train.Classifier.kind):
        raise ValueError(
            f"{file} holds a {kind!r} model; --model takes what train language-model or train classifier has saved"
        )
    return kind == train.LanguageModel.kind


def _of_language_model(options):
    """A line about the model; its output rows; and of each part of the data, targets and what writes contexts to a path."""
    model = train.LanguageModel.load(options.model, device=options.device)
    _, _, parts, _ = common.texts_of(model, options.model, options.data)
    if options.contexts is not None:
        parts["train"] = _first(parts["train"], options.contexts, model.unroll)

    def of_part(part):
        every = part == "train"
        return (
            model.targets(parts[part], every=every),
            lambda path: model.encode(parts[part], out=path, every=every)[0],
        )

    rows = to_numpy(model.network_.output.weights)
    about = f"{options.model}: {model.n_words_:,} words, contexts of width {model.width}"
    return about, rows, {part: of_part(part) for part in common.PARTS}


def _first(tokens, n, longest):
    """The beginning of a text or of sequences, in which n tokens are to be predicted; of sequences it may be a few more."""
    if not hasattr(tokens, "indptr"):
        return tokens[: n + 1]
    predicted = np.cumsum(np.clip(np.diff(tokens.indptr) - 1, 0, longest))
    lines = int(np.searchsorted(predicted, n)) + 1
    indptr = tokens.indptr[: lines + 1]
    return replace(tokens, indptr=indptr, items=tokens.items[: indptr[-1]])


def _of_classifier(options):
    """The same of a classifier. Where its output layer has a bias, that is the rows' last column, and contexts end in 1."""
    model = train.Classifier.load(options.model, device=options.device)
    if model.output in SPARSE_OUTPUTS:
        raise ValueError(
            f"{options.model} has a sparse output layer ({model.output}), which has no dense rows to start from; "
            "--model takes a classifier with --output dense or bottleneck, or a language model"
        )
    where = common.data_of(model, options.model, options.data, data.corpora.BUNDLED, "the folder of the points")
    corpus, layer, width = data.load(where), model.network_.output, model.network_.width
    points = {"train": corpus.train, "valid": corpus.dev, "test": corpus.test}
    for part in points.values():
        if part is not None and part.labels.shape[1] != model.n_labels_:
            raise ValueError(
                f"{corpus.name} has {part.labels.shape[1]:,} labels, {options.model} was trained with {model.n_labels_:,}"
            )
    common.check_same_data(model, options.model, corpus.name, corpus.train.features, corpus.train.labels)
    rows, bias = to_numpy(layer.weights), getattr(layer, "bias", None)
    if bias is not None:
        bias, has_points = to_numpy(bias), model.label_counts_ > 0
        lowest = (
            bias[has_points].min() if has_points.any() else 0
        )  # of the others it is -1e30, too far off to learn from
        rows = np.concatenate([rows, np.maximum(bias, lowest)[:, None]], axis=1)

    def of_part(part):
        n = options.contexts if part == "train" else None
        features, labels = points[part].features[:n], points[part].labels[:n]

        def fill(h):
            for some in batches(np.arange(h.shape[0]), POINTS_AT_ONCE):
                h[some, :width] = model.encode(features[some])
            h[:, width:] = 1

        return labels, lambda path: write_float16(path, (features.shape[0], rows.shape[1]), fill)

    about = f"{options.model}: {model.n_labels_:,} labels, contexts of width {rows.shape[1]}"
    return about, rows, {part: of_part(part) for part in common.PARTS if points[part] is not None}


def _contexts(path, targets, write, rows, is_resumed):
    """The contexts of a part, memory-mapped; those of the run that is resumed, if they are there."""
    if not (is_resumed and os.path.exists(path)):
        print(f"writing contexts to {path}", flush=True)
        return write(path)
    h, wanted = open_npy(path), (targets.shape[0], rows.shape[1])
    if h.shape != wanted:
        raise ValueError(
            f"{path} holds contexts of shape {h.shape}, not {wanted}; give the same --model, --data and --contexts as before"
        )
    return h


def _remove(paths):
    for path in paths:
        Path(path).unlink(missing_ok=True)


# ------------------------------------------------------------ figures


def _epoch_line(record):
    line = f"epoch {record['epoch'] + 1:3d}  {record['seconds']:7.1f} s  {record['n_experts']:3d} experts"
    line += f"  loss {record['loss']:.4f}  {record['rows']:,} rows  speed-up {record['speed-up']:.2f}"
    return line + (
        "  valid  " + common.percent(record["validation"], (*TOPS, "held")) if "validation" in record else ""
    )


def _full(rows, device):
    """The full softmax as one expert that holds all classes: the gate gives it the value 1."""
    n_classes, width = rows.shape
    arrays = np.zeros((1, width), np.float32), np.int32([0, n_classes]), np.arange(n_classes, dtype=np.int32), rows
    return PackedDSSoftmax(*(asarray(array, device) for array in arrays), n_classes)


def _line_of_table(name, packed, contexts, targets):
    return (
        {"name": name} | figures(packed, contexts, targets) | {"rows": len(packed.ids), "bytes": packed.weights.nbytes}
    )


def _print_table(table):
    print(f"{'test':14s}" + "".join(f"{name:>8s}" for name in (*TOPS, "held")) + "  speed-up        rows       MiB")
    for line in table:
        shares = "".join(f"{100 * line[name]:8.2f}" for name in (*TOPS, "held"))
        sizes = f"{line['speed-up']:10.2f}{line['rows']:12,}{line['bytes'] / 2**20:10.1f}"
        print(f"{line['name']:14s}{shares}{sizes}")


# ------------------------------------------------------------ options


def ds_softmax_options(sub, device):
    """The options of `train ds-softmax`."""
    device(sub)
    model = "a language model, or a classifier with a dense output layer, that train has saved"
    sub.add_argument("--model", metavar="FILE", required=True, help=model)
    data_help = "what the model was trained on; need not be given where that is bundled"
    sub.add_argument("--data", metavar="DIR-or-NAME", help=data_help)
    first = "learn from the first N tokens, items or points of the train part, 0: all"
    sub.add_argument("--contexts", type=common.count_or_none, default=None, metavar="N", help=first)
    default = train.DSSoftmax().get_params()
    option = common.options_of(sub, default)
    option("n_experts", int, "N", "at the end: --first-experts times a power of two")
    option("first_experts", int, "N", "at the beginning, each with all classes")
    option("epochs", int, "N", "for each number of experts")
    option("prune_after", int, "N", "epochs before anything is pruned")
    option("threshold", float, "X", "rows with a smaller root mean square are pruned")
    option("class_lasso", float, "X", "weight of the lasso over the rows")
    option("expert_lasso", float, "X", "weight of the lasso over the classes, all experts together")
    option("balance", float, "X", "weight of the variation between the experts' loads")
    option("noise", float, "X", "standard deviation of the noise at the gate")
    option("batch_size", int, "B", "contexts of a step")
    option("learning_rate", float, "LR", "of Adam, at the start of each stage")
    option("seed", int, "N", "of gate, order, noise and mitosis")
    common.file_options(sub, required=True)
