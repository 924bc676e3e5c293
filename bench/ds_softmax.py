"""How good and how fast are the answers of DS-Softmax? ``python -m bench.ds_softmax wikitext-2 --model FILE``.

FILE is a trained language model, written by ``python -m bench.language ROW`` or ``sparsemax-nb train ... --save FILE``;
or a classifier with a dense output, with its data (tate or a folder) in place of wikitext-2. The inputs of its output
layer are written to --work, and DS-2 ... DS-64 are trained on them. This can take hours; it can be interrupted and
repeated. Then all methods answer the test set. Measured are the accuracy, the multiply-adds, and the milliseconds for
batches of 1, 64 and 1,024 queries. PyTorch and FAISS answer the same queries.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import scipy.sparse

from sparsemax_nb import (
    Adam,
    DSoftmax,
    DSSoftmax,
    FullSoftmax,
    PackedDSSoftmax,
    SparseExperts,
    SVDSoftmax,
    data,
    metrics,
    train,
)
from sparsemax_nb.internals import checkpoint, evaluate_experts

from . import machine, plotting, tables, timing
from .peers import Unavailable, faiss, pytorch

SHARED = {
    "n_experts": 64, "first_experts": 2, "epochs": 2, "prune_after": 0, "class_lasso": 3e-4, "expert_lasso": 3e-4,
    "balance": 10.0, "threshold": 0.03, "seed": 0,
}  # fmt: skip
SETTINGS = {
    train.LanguageModel.kind: SHARED | {"batch_size": 1024, "learning_rate": 3e-3},
    train.Classifier.kind: SHARED | {"batch_size": 128, "learning_rate": 1e-3},
}
#: Training steps per stage when memory is measured.
MEMORY_STEPS = 4
#: Number of training contexts: the beginning of the text.
N_CONTEXTS = 1_000_000
KS = 1, 5, 10
#: Stages with fewer experts are not measured.
MIN_EXPERTS = 8
#: Number of test contexts for the accuracy.
N_TEST = 50_000
PICTURE = machine.HERE / "ds_softmax.png"
PICTURE_OF_WORDS = machine.HERE / "ds_words.png"


# ---------------------------------------------------------------- inputs of the output layer


def encoded(args, name):
    """{part: (h, targets)} of train, valid and test; and the weights, counts and names of the classes.

    For a text, h is written to the folder --work as float16, unless it exists, and memory-mapped.
    """
    if checkpoint.kind_of(args.model) == train.Classifier.kind:
        model, corpus = train.Classifier.load(args.model, device="cpu"), data.load(args.data)
        if getattr(model.network_.output, "bias", None) is not None or model.output != "dense":
            raise ValueError(
                f"{args.model} must be a classifier with --output dense --loss softmax: DS-Softmax has no bias"
            )
        parts = {"train": corpus.train, "valid": corpus.dev or corpus.test, "test": corpus.test}
        found = {part: (model.encode(points.features), points.labels) for part, points in parts.items()}
        counts, names = np.asarray(corpus.train.labels.sum(0)).reshape(-1), model.label_names_
    else:
        model, corpus = train.LanguageModel.load(args.model, device="cpu"), data.load_text(args.data)
        found, counts = {}, np.bincount(corpus.train, minlength=len(corpus.vocabulary))
        for part in ("train", "valid", "test"):
            tokens, path = getattr(corpus, part), args.work / f"{name}-{part}.npy"
            tokens = tokens[: args.contexts + 1] if part == "train" else tokens
            if path.exists():
                found[part] = np.load(path, mmap_mode="r"), tokens[1:]
            else:
                found[part] = model.encode(tokens, out=path)
        names = corpus.vocabulary.words
    return found, np.ascontiguousarray(model.network_.output.weights), counts, names


# ---------------------------------------------------------------- training


def trained(name, found, weights, work, settings):
    """Train the missing stages; returns {number of experts: file} of all stages, and the training log."""
    log = work / f"{name}-training.json"
    last = work / f"{name}-ds-{settings['n_experts']}.safetensors"
    files = {}
    first = settings["first_experts"]
    while first <= settings["n_experts"]:
        files[first] = work / f"{name}-ds-{first}.safetensors"
        first *= 2
    path = work / f"{name}.checkpoint.safetensors"
    if not (log.exists() and last.exists()):
        (h, targets), (valid_h, valid_targets) = found["train"], found["valid"]
        model = DSSoftmax(**settings, device="cpu")
        chosen = np.arange(0, len(valid_h), max(1, len(valid_h) // 10_000))
        validation = np.asarray(valid_h[chosen], np.float32), valid_targets[chosen]
        start = time.perf_counter()
        model.fit(
            h, targets, weights=weights, validation=validation, checkpoint_path=path, resume=True,
            after_epoch=lambda record: print(_line(record), flush=True),
            after_stage=lambda n, packed: packed.save(files[n]),
        )  # fmt: skip
        result = {
            "settings": settings,
            "n_contexts": len(h),
            "history": model.history_,
            "seconds": time.perf_counter() - start,
            "environment": machine.environment("cpu"),
        }
        log.write_text(json.dumps(result, indent=1) + "\n")
    return files, json.loads(log.read_text())


def _line(record):
    v = record["validation"]
    return (
        f"{record['n_experts']:3d} experts  epoch {record['epoch'] + 1:2d}  loss {record['loss']:.3f}  rows "
        f"{record['rows']:,}  top-1 {100 * v['top-1']:.2f}  top-10 {100 * v['top-10']:.2f}  target in expert "
        f"{100 * v['held']:.1f}  speed-up {v['speed-up']:.2f}  {record['seconds']:.0f} s"
    )


# ---------------------------------------------------------------- memory


def memory(found, weights, files, settings):
    """{number of experts: peak growth of memory in bytes} for all stages of a finished training.

    Each stage starts from the saved experts of the stage before it, so that a training that was interrupted can be
    measured, too. The training data is not counted.
    """
    h, targets = (a[: (MEMORY_STEPS + 1) * settings["batch_size"]] for a in found["train"])
    few_classes = targets[:, :50] if scipy.sparse.issparse(targets) else np.minimum(targets, 49)
    _stage(None, weights[:50], h, few_classes, settings)  # compiles
    grown, before = {}, None
    for n, path in files.items():
        with machine.memory_growth("cpu") as growth:
            _stage(before, weights, h, targets, settings)
        grown[n], packed = growth["bytes"], PackedDSSoftmax.load(path, device="cpu")
        before = [np.array(a) for a in (packed.gate, packed.starts, packed.ids, packed.weights)]
    return grown


def _stage(before, weights, h, targets, settings):
    """Run a short stage with the memory of a full one: mitosis, steps, validation, pruning and packing."""
    batch, adam = settings["batch_size"], Adam(settings["learning_rate"])
    parts = [(np.asarray(h[i : i + batch], np.float32), targets[i : i + batch]) for i in range(0, h.shape[0], batch)]
    if before is None:
        experts = SparseExperts.dense(weights, settings["first_experts"])
    else:
        experts = SparseExperts(*(a.copy() for a in before), len(weights))
        experts.step(*parts[0], adam)  # allocates the moments
        experts.split(adam)
    for part in parts[1:]:
        experts.step(*part, adam)
    evaluate_experts(experts, h, targets)
    experts.prune(settings["threshold"], adam)
    experts.pack()


# ---------------------------------------------------------------- methods


class Method(NamedTuple):
    """``answer(h, k)`` returns ids (B, k); `flops` is the number of multiply-adds per query, None if unknown.

    ``exact(h)`` returns the float64 scores (L,) of one query, -inf for classes that are not searched; None for an
    approximate method.
    """

    answer: Callable
    flops: float | None = None
    n_bytes: int | None = None
    exact: Callable | None = None


def methods(found, weights, counts, files, adaptive, probes=(4, 16, 64), searches=(16, 64, 256)):
    """{name: function that prepares the `Method`}; `adaptive` is the file of PyTorch's layer, trained if missing."""
    weights64, sample = weights.astype(np.float64), np.ascontiguousarray(found["test"][0][::10], np.float32)

    def ours(layer, exact=None):
        return Method(lambda h, k: layer.top_k(h, k)[1], layer.flops_per_query, layer.nbytes, exact)

    def packed(path):
        layer = PackedDSSoftmax.load(path, device="cpu")
        gate = layer.gate.astype(np.float64)

        def exact(h):
            expert = int((gate @ h).argmax())
            of_expert, scores = slice(*layer.starts[expert : expert + 2]), np.full(len(weights), -np.inf)
            scores[layer.ids[of_expert]] = layer.weights[of_expert].astype(np.float64) @ h
            return scores

        return Method(lambda h, k: layer.top_k(h, k)[1], weights.size / layer.speed_up(sample), layer.nbytes, exact)

    full, all_scores = weights.size, lambda h: weights64 @ h
    table = {
        "ours: full softmax": lambda: ours(FullSoftmax(weights), all_scores),
        "PyTorch: matmul, topk": lambda: Method(pytorch.top_k(weights), full, weights.nbytes, all_scores),
        "PyTorch: adaptive softmax": lambda: Method(
            *pytorch.adaptive_softmax(weights, counts, found["train"], adaptive)
        ),
        "SVD-softmax-5": lambda: ours(SVDSoftmax(weights, width=16, share=0.05)),
        "SVD-softmax-10": lambda: ours(SVDSoftmax(weights, width=16, share=0.10)),
        "D-softmax": lambda: ours(DSoftmax(weights, counts)),
    }
    for n, path in files.items():
        if path.exists() and n >= MIN_EXPERTS:
            table[f"DS-{n}"] = functools.partial(packed, path)
    table["FAISS flat"] = lambda: Method(faiss.flat(weights), full, weights.nbytes, all_scores)
    for n in probes:
        table[f"FAISS IVF, {n} probed"] = functools.partial(lambda n: Method(faiss.inverted_file(weights, n)), n)
    for n in searches:
        table[f"FAISS HNSW, ef {n}"] = functools.partial(lambda n: Method(faiss.graph(weights, n)), n)
    return table


def check(name, method, h):
    """Raise if the classes that an exact method finds do not have the best float64 scores."""
    if method.exact is None:
        return
    for query, ids in zip(h, method.answer(h, max(KS)), strict=True):
        scores = method.exact(query.astype(np.float64))
        best = np.sort(scores)[::-1][: max(KS)]
        best = best[np.isfinite(best)]
        good = (
            (ids[: len(best)] >= 0).all() and (ids[len(best) :] == -1).all() and len(set(ids[: len(best)])) == len(best)
        )
        good = good and np.allclose(scores[ids[: len(best)]], best, rtol=0, atol=1e-4 * np.abs(best).max(initial=1))
        timing.require(good, f"{name} does not find the best classes")


def accuracy(answer, h, targets):
    """Share of targets among the best 1, 5 and 10 classes; P@k if there are several labels."""
    hits, several = np.zeros(max(KS)), scipy.sparse.issparse(targets)
    for first in range(0, len(h), 1024):
        batch = slice(first, first + 1024)
        ids = answer(np.asarray(h[batch], np.float32), max(KS))
        if several:
            found = metrics.hits_at_k(ids.astype(np.int32), targets[batch], max(KS))
        else:
            found = ids == targets[batch, None]
        hits += found.sum(0)
    return {k: float(hits[:k].sum() / (len(h) * (k if several else 1))) for k in KS}


def timed(answers, h, rounds):
    """Time all methods in alternation, for batches of 1, 64 and 1,024 queries: {batch: {name: (Timing, calls)}}.

    Batches of one query: 64 different queries, so that a small expert is not always in the cache.
    """
    found = {}
    for size, calls in ((1, 64), (64, 4), (1024, 1)):
        h = np.resize(h, (max(len(h), calls * size), h.shape[1]))  # a small test set is repeated
        parts = [np.ascontiguousarray(h[i * size : (i + 1) * size], np.float32) for i in range(calls)]

        def run(answer, parts=parts):
            return [answer(part, 10) for part in parts]

        def complete(ids, size=size):
            timing.require(all(i.shape == (size, 10) for i in ids), "each query must have ten answers")

        contestants = {
            name: timing.Contestant(functools.partial(run, answer), complete) for name, answer in answers.items()
        }
        timings = timing.compare(contestants, rounds)
        found[size] = {name: (taken, calls) for name, taken in timings.items()}
    return found


def row_of(name, args, found, weights, counts, files, log, adaptive):
    """The row of results: accuracy, cost and time of every method."""
    h, targets = found["test"]
    chosen = np.unique(np.linspace(0, len(h) - 1, min(args.asked, len(h))).astype(int))
    h, targets = np.asarray(h[chosen], np.float32), targets[chosen]
    table, figures, answers = methods(found, weights, counts, files, adaptive), {}, {}
    for method, make in table.items():
        try:
            answer, flops, n_bytes, _ = made = make()
        except Unavailable as reason:
            figures[method] = {"unavailable": str(reason)}
            continue
        for n in (1, 20, 1024):  # the code path depends on the batch size
            check(method, made, h[:n])
        figures[method] = {"accuracy": accuracy(answer, h, targets), "flops": flops, "bytes": n_bytes}
        answers[method] = answer
        print(f"{method}: {figures[method]}", flush=True)
    order = np.random.default_rng(0).permutation(len(h))[:1024]
    times = timed(answers, h[order], args.repeats)
    base = {size: {n: np.array(t.seconds) for n, (t, _) in by_name.items()} for size, by_name in times.items()}
    grown = memory(found, weights, files, log["settings"])
    lines, baseline = [], "ours: full softmax"
    for method, f in figures.items():
        if "unavailable" in f:
            lines.append([method, *["-"] * 9, f["unavailable"]])
            continue
        cells = [f"{100 * f['accuracy'][k]:.2f}" for k in KS]
        cells.append("-" if f["flops"] is None else f"{weights.size / f['flops']:.2f}")
        for size, by_name in times.items():
            taken, calls = by_name[method]
            f[f"ms, batch {size}"] = float(np.median(taken.seconds)) / calls * 1e3
            f[f"times full, batch {size}"] = float(np.median(base[size][baseline] / base[size][method]))
            cells += [f"{f[f'ms, batch {size}']:.3f}", f"{f[f'times full, batch {size}']:.1f}"]
        lines.append([method, *cells])
    several = scipy.sparse.issparse(targets)
    header = ["method", *(f"{'P@' if several else 'top-'}{k}" for k in KS), "fewer FLOPs"]
    for size in times:
        header += [f"ms, {size}", "times faster"]
    settings = ", ".join(f"{key} {value}" for key, value in log["settings"].items())
    notes = [
        f"{weights.shape[0]:,} classes of width {weights.shape[1]}, {len(chosen):,} test contexts; accuracy in per "
        "cent. The FLOPs of DS-n include the gate.",
        "ms: median; for batches of one query, 64 different queries are timed. times faster: relative to our full "
        "softmax, median of the ratios within each round. Our methods also return probabilities; PyTorch and FAISS "
        "return only the classes. FAISS searches the same vectors: flat and HNSW by inner product; IVF by distance, "
        "after adding a coordinate that gives all vectors the same length.",
        f"DS-n: {log['n_contexts']:,} contexts, {settings}. Trained in "
        f"{sum(r['seconds'] for r in log['history']):,.0f} s, without validation.",
        _memory(grown, weights.size),
    ]
    return {
        "benchmark": f"ds_softmax: {name}",
        "parameters": {"data": name, "model": Path(args.model).stem, "device": "cpu"},
        "table": {"header": header, "rows": lines},
        "notes": notes,
        "figures": figures,
        "memory": grown,
        "training": log,
        "environment": machine.environment("cpu"),
    }


def _memory(grown, size):
    """A note: memory of the training, and of n_experts full layers with weights, moments and gradient."""
    if None in grown.values():
        return "Memory of the training: not measured, because /proc is not available."
    stage, last = max(grown, key=grown.get), max(grown)
    peak, full = grown[stage], last * 16 * size
    return (
        f"Peak memory of the training in addition to its data, measured per stage: {peak / 2**20:,.0f} MiB, with "
        f"{stage} experts; {last} full layers with moments and gradient: {full / 2**20:,.0f} MiB, {full / peak:.1f} "
        "times as much."
    )


# ---------------------------------------------------------------- pictures


#: {prefix of the name of a method: (colour, marker, label)}.
STYLES = {
    "DS": ("#0072B2", "o", "DS-Softmax"), "SVD": ("#E69F00", "^", "SVD-softmax"), "D-": ("#CC79A7", "v", "D-softmax"),
    "FAISS IVF": ("#009E73", "s", "FAISS IVF"), "FAISS HNSW": ("#56B4E9", "P", "FAISS HNSW"),
    "FAISS flat": ("#999999", "X", "FAISS flat"), "PyTorch: matmul": ("#D55E00", "D", "PyTorch, full"),
    "PyTorch: adaptive": ("#D55E00", "d", "PyTorch, adaptive"), "ours": ("#000000", "*", "our full softmax"),
}  # fmt: skip


def panel(axis, row, k, title=None):
    """Plot top-k accuracy, relative to the full softmax, against the time of one query."""
    figures = {name: f for name, f in row["figures"].items() if "accuracy" in f}
    kept = {
        name: f["accuracy"][str(k)] for name, f in json.loads(json.dumps(figures)).items()
    }  # string keys, as in a file
    for start, (colour, marker, label) in STYLES.items():
        matching = [name for name in figures if name.startswith(start)]
        if matching:
            points = sorted((figures[n]["ms, batch 1"], 100 * kept[n] / kept["ours: full softmax"]) for n in matching)
            x, y = zip(*points, strict=True)
            axis.plot(x, y, color=colour, marker=marker, markersize=8, label=label, linewidth=1)
    axis.axhline(100, color="#999999", linewidth=1, linestyle=":")
    axis.set(
        xscale="log", xlabel="milliseconds, one query", ylabel=f"top-{k} accuracy, % of the full softmax", title=title
    )


def picture(row, path):
    """Draw `panel` for top-1 and top-10."""
    figure, axes = plotting.new_panels(2, 5, 4.5, sharex=True)
    for axis, k in zip(axes, (1, 10), strict=True):
        panel(axis, row, k)
    axes[0].legend(frameon=False, fontsize=9)
    plotting.write_picture(figure, path)


def words(packed, counts, names, path, n_smallest=3):
    """Lines with the words of the smallest experts; plots the number of experts of a word against its frequency."""
    starts, ids = packed.starts, packed.ids
    lines = []
    for k in np.argsort(packed.sizes, kind="stable")[:n_smallest]:
        classes = ids[starts[k] : starts[k + 1]]
        order = np.lexsort((-counts[classes], packed.experts_per_class[classes]))
        lines.append(
            f"Expert {k}, {len(classes):,} words, first those that few other experts have: "
            f"{' '.join(names[i] for i in classes[order[:60]])}"
        )
    seen = np.flatnonzero(counts > 0)
    figure, (axes,) = plotting.new_panels(1, 6, 4)
    axes.plot(
        counts[seen], packed.experts_per_class[seen], ".", color="#0072B2", markersize=3, alpha=0.4, rasterized=True
    )
    edges = np.unique(np.geomspace(1, counts.max() + 1, 16).astype(int))
    middles, means = [], []
    for low, high in zip(edges, edges[1:], strict=False):
        in_bin = (counts >= low) & (counts < high)
        if in_bin.any():
            middles.append(np.sqrt(low * high))
            means.append(packed.experts_per_class[in_bin].mean())
    axes.plot(middles, means, color="#D55E00", marker="o", label="mean")
    axes.set(xscale="log", xlabel="occurrences of the word in the training text", ylabel="experts that contain it")
    axes.legend(frameon=False)
    plotting.write_picture(figure, path)
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.ds_softmax", description=__doc__.partition("\n")[0])
    parser.add_argument("data", metavar="DIR-or-NAME", help="the data that the model was trained on")
    parser.add_argument(
        "--model", required=True, metavar="FILE", help="the trained model; its hidden activations are the queries"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("ds_output"),
        metavar="DIR",
        help="folder for contexts, checkpoints and packed models",
    )
    parser.add_argument(
        "--contexts", type=int, default=N_CONTEXTS, metavar="N", help="number of training contexts of a text"
    )
    parser.add_argument(
        "--asked", type=int, default=N_TEST, metavar="N", help="number of test contexts for the accuracy"
    )
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument(
        "--threads",
        type=int,
        default=min(2, numba.config.NUMBA_NUM_THREADS),
        help="threads of Numba, PyTorch and FAISS",
    )
    parser.add_argument("--train-only", action="store_true", help="train, but do not measure")
    parser.add_argument(
        "--json", type=Path, default=tables.RESULTS / "ds_softmax-cpu.json", help="file to add the results to"
    )
    args = parser.parse_args(argv)
    numba.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    kind, stem = checkpoint.kind_of(args.model), Path(args.model).stem
    name = f"{Path(args.data).name}-{stem}-{args.contexts}"  # prefix of the files in --work
    found, weights, counts, names = encoded(args, name)
    files, log = trained(name, found, weights, args.work, SETTINGS[kind])
    if args.train_only:
        return 0
    if log["settings"] != SETTINGS[kind]:
        parser.error(
            f"{args.work}/{name}-training.json was made with other settings; delete it and the checkpoint to train "
            "again"
        )
    row = row_of(Path(args.data).name, args, found, weights, counts, files, log, args.work / f"{name}-adaptive.pt")
    if kind == train.LanguageModel.kind:
        row["notes"] += words(PackedDSSoftmax.load(files[max(files)], device="cpu"), counts, names, PICTURE_OF_WORDS)
        picture(row, PICTURE)
    tables.write_rows(args.json, [row])
    print(tables.table(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
