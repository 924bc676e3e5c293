"""How good and how fast are the answers of DS-Softmax? ``python -m bench.ds_softmax wikitext-2 --model FILE``.

FILE is a trained language model, as ``python -m bench.language ROW`` or ``sparsemax-nb train ... --save FILE`` writes
it; or a classifier with a dense output, then instead of wikitext-2 stands tate or the folder of its data. Its contexts
are written into --work, and DS-2 ... DS-64 trained on them: that can take hours, be killed and given again. Then every
method answers the test part: accuracy against the truth, multiply-adds, and milliseconds for one query, 64 and 1,024,
beside PyTorch and FAISS on the same vectors.
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
from sparsemax_nb.internals import checkpoint, ds_softmax_figures

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
#: Of each stage, to measure its memory.
STEPS = 4
#: Training contexts: the first of the text.
CONTEXTS = 1_000_000
KS = 1, 5, 10
#: Stages with fewer experts are not shown.
FEWEST = 8
#: Contexts that are answered to measure accuracy.
ASKED = 50_000
PICTURE = machine.HERE / "ds_softmax.png"
PICTURE_OF_WORDS = machine.HERE / "ds_words.png"


# ---------------------------------------------------------------- contexts


def contexts(args, name):
    """{part: (h, targets)} of train, valid and test; the output rows; how often each class occurs; names of the classes.

    Those of a text are written into the folder --work, float16, unless they are there, and memory-mapped.
    """
    if checkpoint.kind_of(args.model) == train.Classifier.kind:
        model, corpus = train.Classifier.load(args.model, device="cpu"), data.load(args.data)
        if getattr(model.network_.output, "bias", None) is not None or model.output != "dense":
            raise ValueError(
                f"{args.model} must be a classifier with --output dense --loss softmax: its scores are products alone"
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


def trained(name, found, rows, work, settings):
    """{experts: file} of all stages, trained where they are missing, and what training took."""
    log, last = work / f"{name}-training.json", work / f"{name}-ds-{settings['n_experts']}.safetensors"
    files = {}
    first = settings["first_experts"]
    while first <= settings["n_experts"]:
        files[first] = work / f"{name}-ds-{first}.safetensors"
        first *= 2
    path = work / f"{name}.checkpoint.safetensors"
    if not (log.exists() and last.exists()):
        (h, targets), (valid_h, valid_targets) = found["train"], found["valid"]
        model = DSSoftmax(**settings, device="cpu")
        some = np.arange(0, len(valid_h), max(1, len(valid_h) // 10_000))
        validation = np.asarray(valid_h[some], np.float32), valid_targets[some]
        start = time.perf_counter()
        model.fit(
            h, targets, init=rows, validation=validation, checkpoint_path=path, resume=True,
            after_epoch=lambda record: print(_line(record), flush=True),
            after_stage=lambda n, packed: packed.save(files[n]),
        )  # fmt: skip
        result = {
            "settings": settings, "n_contexts": len(h), "history": model.history_, "seconds": time.perf_counter() - start,
            "environment": machine.environment("cpu"),
        }  # fmt: skip
        log.write_text(json.dumps(result, indent=1) + "\n")
    return files, json.loads(log.read_text())


def _line(record):
    v = record["validation"]
    return (
        f"{record['n_experts']:3d} experts  epoch {record['epoch'] + 1:2d}  loss {record['loss']:.3f}  rows {record['rows']:,}"
        f"  top-1 {100 * v['top-1']:.2f}  top-10 {100 * v['top-10']:.2f}  held {100 * v['held']:.1f}  "
        f"speed-up {v['speed-up']:.2f}  {record['seconds']:.0f} s"
    )


# ---------------------------------------------------------------- memory


def memory(found, rows, files, settings):
    """{experts: bytes} of all stages of a run that is over: how far memory grew above its level before, at most.

    Each stage begins with the saved experts of the one before: so a run that was killed and resumed can be measured,
    too. The contexts do not count.
    """
    h, targets = (a[: (STEPS + 1) * settings["batch_size"]] for a in found["train"])
    few = targets[:, :50] if scipy.sparse.issparse(targets) else np.minimum(targets, 49)
    _stage(None, rows[:50], h, few, settings)  # compiles
    grown, before = {}, None
    for n, path in files.items():
        with machine.memory_growth("cpu") as growth:
            _stage(before, rows, h, targets, settings)
        grown[n], packed = growth["bytes"], PackedDSSoftmax.load(path, device="cpu")
        before = [np.array(a) for a in (packed.gate, packed.starts, packed.ids, packed.weights)]
    return grown


def _stage(before, rows, h, targets, settings):
    """What a stage holds: from mitosis over steps, validation and pruning to the packed experts."""
    batch, adam = settings["batch_size"], Adam(settings["learning_rate"])
    parts = [(np.asarray(h[i : i + batch], np.float32), targets[i : i + batch]) for i in range(0, h.shape[0], batch)]
    if before is None:
        experts = SparseExperts.dense(rows, settings["first_experts"])
    else:
        experts = SparseExperts(*(a.copy() for a in before), len(rows))
        experts.step(*parts[0], adam)  # from now on there are moments
        experts.split(adam)
    for part in parts[1:]:
        experts.step(*part, adam)
    ds_softmax_figures(experts, h, targets)
    experts.prune(settings["threshold"], adam)
    experts.pack()


# ---------------------------------------------------------------- methods


class Method(NamedTuple):
    """``answer(h, k)`` gives ids (B, k); `flops` are the multiply-adds of a query, None where they are not known.

    ``exact(h)`` gives the scores (L,) of one query in float64, -inf of what is not there; None where the method is not
    exact.
    """

    answer: Callable
    flops: float | None = None
    n_bytes: int | None = None
    exact: Callable | None = None


def methods(found, rows, counts, files, adaptive, probes=(4, 16, 64), searches=(16, 64, 256)):
    """{name: what prepares the `Method`}; `adaptive` is the file of PyTorch's layer, trained where it is not there."""
    wide, sample = rows.astype(np.float64), np.ascontiguousarray(found["test"][0][::10], np.float32)

    def ours(layer, exact=None):
        return Method(lambda h, k: layer.top_k(h, k)[1], layer.flops_per_query, layer.nbytes, exact)

    def packed(path):
        layer = PackedDSSoftmax.load(path, device="cpu")
        gate = layer.gate.astype(np.float64)

        def exact(h):
            expert = int((gate @ h).argmax())
            held, scores = slice(*layer.starts[expert : expert + 2]), np.full(len(rows), -np.inf)
            scores[layer.ids[held]] = layer.rows[held].astype(np.float64) @ h
            return scores

        return Method(lambda h, k: layer.top_k(h, k)[1], rows.size / layer.speed_up(sample), layer.nbytes, exact)

    full, all_scores = rows.size, lambda h: wide @ h
    table = {
        "ours: full softmax": lambda: ours(FullSoftmax(rows), all_scores),
        "PyTorch: matmul, topk": lambda: Method(pytorch.top_k(rows), full, rows.nbytes, all_scores),
        "PyTorch: adaptive softmax": lambda: Method(*pytorch.adaptive_softmax(rows, counts, found["train"], adaptive)),
        "SVD-softmax-5": lambda: ours(SVDSoftmax(rows, width=16, share=0.05)),
        "SVD-softmax-10": lambda: ours(SVDSoftmax(rows, width=16, share=0.10)),
        "D-softmax": lambda: ours(DSoftmax(rows, counts)),
    }
    for n, path in files.items():
        if path.exists() and n >= FEWEST:
            table[f"DS-{n}"] = functools.partial(packed, path)
    table["FAISS flat"] = lambda: Method(faiss.flat(rows), full, rows.nbytes, all_scores)
    for n in probes:
        table[f"FAISS IVF, {n} probed"] = functools.partial(lambda n: Method(faiss.inverted_file(rows, n)), n)
    for n in searches:
        table[f"FAISS HNSW, ef {n}"] = functools.partial(lambda n: Method(faiss.graph(rows, n)), n)
    return table


def check(name, method, h):
    """Stop where the classes that an exact method finds do not have the best scores, computed in float64."""
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
    """Share of the targets among the best 1, 5 and 10 (of several labels: P@k)."""
    hits, several = np.zeros(max(KS)), scipy.sparse.issparse(targets)
    for first in range(0, len(h), 1024):
        some = slice(first, first + 1024)
        ids = answer(np.asarray(h[some], np.float32), max(KS))
        if several:
            found = metrics.hits_at_k(ids.astype(np.int32), targets[some], max(KS))
        else:
            found = ids == targets[some, None]
        hits += found.sum(0)
    return {k: float(hits[:k].sum() / (len(h) * (k if several else 1))) for k in KS}


def timed(answers, h, rounds):
    """{batch: {name: Timing}} of one query (64 different ones after another), 64 and 1,024, all methods in turn."""
    found = {}
    for size, calls in ((1, 64), (64, 4), (1024, 1)):
        h = np.resize(h, (max(len(h), calls * size), h.shape[1]))  # a small test part again and again
        parts = [np.ascontiguousarray(h[i * size : (i + 1) * size], np.float32) for i in range(calls)]

        def run(answer, parts=parts):
            return [answer(part, 10) for part in parts]

        def whole(ids, size=size):
            timing.require(all(i.shape == (size, 10) for i in ids), "ten answers a query")

        contestants = {
            name: timing.Contestant(functools.partial(run, answer), whole) for name, answer in answers.items()
        }
        timings = timing.compare(contestants, rounds)
        found[size] = {name: (taken, calls) for name, taken in timings.items()}
    return found


def row_of(name, args, found, rows, counts, files, log, adaptive):
    """Accuracy, cost and time of every method, as a row of results."""
    h, targets = found["test"]
    asked = np.unique(np.linspace(0, len(h) - 1, min(args.asked, len(h))).astype(int))
    h, targets = np.asarray(h[asked], np.float32), targets[asked]
    table, figures, answers = methods(found, rows, counts, files, adaptive), {}, {}
    for method, make in table.items():
        try:
            answer, flops, n_bytes, _ = made = make()
        except Unavailable as reason:
            figures[method] = {"unavailable": str(reason)}
            continue
        for n in (1, 20, 1024):  # each batch size may go another way
            check(method, made, h[:n])
        figures[method] = {"accuracy": accuracy(answer, h, targets), "flops": flops, "bytes": n_bytes}
        answers[method] = answer
        print(f"{method}: {figures[method]}", flush=True)
    order = np.random.default_rng(0).permutation(len(h))[:1024]
    times = timed(answers, h[order], args.repeats)
    base = {size: {n: np.array(t.seconds) for n, (t, _) in by_name.items()} for size, by_name in times.items()}
    grown = memory(found, rows, files, log["settings"])
    lines, first = [], "ours: full softmax"
    for method, f in figures.items():
        if "unavailable" in f:
            lines.append([method, *["-"] * 9, f["unavailable"]])
            continue
        cells = [f"{100 * f['accuracy'][k]:.2f}" for k in KS]
        cells.append("-" if f["flops"] is None else f"{rows.size / f['flops']:.2f}")
        for size, by_name in times.items():
            timing, calls = by_name[method]
            f[f"ms, batch {size}"] = float(np.median(timing.seconds)) / calls * 1e3
            f[f"times full, batch {size}"] = float(np.median(base[size][first] / base[size][method]))
            cells += [f"{f[f'ms, batch {size}']:.3f}", f"{f[f'times full, batch {size}']:.1f}"]
        lines.append([method, *cells])
    several = scipy.sparse.issparse(targets)
    header = ["method", *(f"{'P@' if several else 'top-'}{k}" for k in KS), "fewer FLOPs"]
    for size in times:
        header += [f"ms, {size}", "times faster"]
    settings = ", ".join(f"{key} {value}" for key, value in log["settings"].items())
    notes = [
        f"{rows.shape[0]:,} classes of width {rows.shape[1]}, {len(asked):,} test contexts; in per cent. FLOPs of DS-n count the gate.",
        "ms: median; one query: 64 different ones, one after the other. times faster: than our full softmax, median of the rounds' "
        "ratios. Ours give probabilities, too, PyTorch and FAISS the classes alone. FAISS searches the same vectors: flat and HNSW by "
        "inner product; IVF by distance, after one more coordinate has made all vectors equally long.",
        f"DS-n: {log['n_contexts']:,} contexts, {settings}; trained in {sum(r['seconds'] for r in log['history']):,.0f} s, without validation.",
        _memory(grown, rows.size),
    ]
    return {
        "benchmark": f"ds_softmax: {name}", "parameters": {"data": name, "model": Path(args.model).stem, "device": "cpu"},
        "table": {"header": header, "rows": lines}, "notes": notes, "figures": figures, "memory": grown, "training": log,
        "environment": machine.environment("cpu"),
    }  # fmt: skip


def _memory(grown, size):
    """Of the training, beside that of as many full layers: weights, two moments, gradient, float32."""
    if None in grown.values():
        return "Memory of the training: not measured, /proc does not offer it."
    stage, last = max(grown, key=grown.get), max(grown)
    peak, full = grown[stage], last * 16 * size
    return (
        f"Memory of the training beyond its contexts, measured stage by stage: {peak / 2**20:,.0f} MiB at most, with {stage} "
        f"experts; {last} full layers with moments and gradient: {full / 2**20:,.0f} MiB, {full / peak:.1f} times as much."
    )


# ---------------------------------------------------------------- pictures


#: {beginning of a method's name: colour, marker, label}.
STYLES = {
    "DS": ("#0072B2", "o", "DS-Softmax"), "SVD": ("#E69F00", "^", "SVD-softmax"), "D-": ("#CC79A7", "v", "D-softmax"),
    "FAISS IVF": ("#009E73", "s", "FAISS IVF"), "FAISS HNSW": ("#56B4E9", "P", "FAISS HNSW"),
    "FAISS flat": ("#999999", "X", "FAISS flat"), "PyTorch: matmul": ("#D55E00", "D", "PyTorch, full"),
    "PyTorch: adaptive": ("#D55E00", "d", "PyTorch, adaptive"), "ours": ("#000000", "*", "our full softmax"),
}  # fmt: skip


def panel(axis, row, k, title=None):
    """Top-k accuracy that is kept, against the time of one query."""
    figures = {name: f for name, f in row["figures"].items() if "accuracy" in f}
    kept = {name: f["accuracy"][str(k)] for name, f in json.loads(json.dumps(figures)).items()}  # as in a file
    for start, (colour, marker, label) in STYLES.items():
        some = [name for name in figures if name.startswith(start)]
        if some:
            points = sorted((figures[n]["ms, batch 1"], 100 * kept[n] / kept["ours: full softmax"]) for n in some)
            x, y = zip(*points, strict=True)
            axis.plot(x, y, color=colour, marker=marker, markersize=8, label=label, linewidth=1)
    axis.axhline(100, color="#999999", linewidth=1, linestyle=":")
    axis.set(xscale="log", xlabel="milliseconds, one query", ylabel=f"top-{k} kept, % of the full softmax", title=title)


def picture(row, path):
    """`panel` of top-1 and of top-10."""
    figure, axes = plotting.new_panels(2, 5, 4.5, sharex=True)
    for axis, k in zip(axes, (1, 10), strict=True):
        panel(axis, row, k)
    axes[0].legend(frameon=False, fontsize=9)
    plotting.write_picture(figure, path)


def words(packed, counts, names, path, n_smallest=3):
    """The words of the smallest experts, as text; experts per word against frequency, as a picture."""
    starts, ids = packed.starts, packed.ids
    lines = []
    for k in np.argsort(packed.sizes, kind="stable")[:n_smallest]:
        held = ids[starts[k] : starts[k + 1]]
        own = held[np.lexsort((-counts[held], packed.experts_per_class[held]))]  # first those that few others hold
        lines.append(f"Expert {k}, {len(held):,} words, its own first: {' '.join(names[i] for i in own[:60])}")
    seen = np.flatnonzero(counts > 0)
    figure, (axes,) = plotting.new_panels(1, 6, 4)
    axes.plot(
        counts[seen], packed.experts_per_class[seen], ".", color="#0072B2", markersize=3, alpha=0.4, rasterized=True
    )
    edges = np.unique(np.geomspace(1, counts.max() + 1, 16).astype(int))
    middles, means = [], []
    for low, high in zip(edges, edges[1:], strict=False):
        some = (counts >= low) & (counts < high)
        if some.any():
            middles.append(np.sqrt(low * high))
            means.append(packed.experts_per_class[some].mean())
    axes.plot(middles, means, color="#D55E00", marker="o", label="mean")
    axes.set(xscale="log", xlabel="times the word occurs in the training text", ylabel="experts that hold it")
    axes.legend(frameon=False)
    plotting.write_picture(figure, path)
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.ds_softmax", description=__doc__.partition("\n")[0])
    parser.add_argument("data", metavar="DIR-or-NAME", help="what the model was trained on")
    parser.add_argument("--model", required=True, metavar="FILE", help="the trained model whose contexts are taken")
    parser.add_argument(
        "--work", type=Path, default=Path("ds_output"), metavar="DIR", help="contexts, checkpoints, packed models"
    )
    parser.add_argument("--contexts", type=int, default=CONTEXTS, metavar="N", help="training contexts of a text")
    parser.add_argument("--asked", type=int, default=ASKED, metavar="N", help="test contexts for the accuracy")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument(
        "--threads", type=int, default=min(2, numba.config.NUMBA_NUM_THREADS), help="of Numba, PyTorch and FAISS"
    )
    parser.add_argument("--train-only", action="store_true", help="do not measure")
    parser.add_argument(
        "--json", type=Path, default=tables.RESULTS / "ds_softmax-cpu.json", help="file to add the row to"
    )
    args = parser.parse_args(argv)
    numba.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    kind, stem = checkpoint.kind_of(args.model), Path(args.model).stem
    name = f"{Path(args.data).name}-{stem}-{args.contexts}"  # of the files in --work
    found, rows, counts, names = contexts(args, name)
    files, log = trained(name, found, rows, args.work, SETTINGS[kind])
    if args.train_only:
        return 0
    if log["settings"] != SETTINGS[kind]:
        parser.error(
            f"{args.work}/{name}-training.json was made with other settings; remove it and the checkpoint to train anew"
        )
    row = row_of(Path(args.data).name, args, found, rows, counts, files, log, args.work / f"{name}-adaptive.pt")
    if kind == train.LanguageModel.kind:
        row["notes"] += words(PackedDSSoftmax.load(files[max(files)], device="cpu"), counts, names, PICTURE_OF_WORDS)
        picture(row, PICTURE)
    tables.write_rows(args.json, [row])
    print(tables.table(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
