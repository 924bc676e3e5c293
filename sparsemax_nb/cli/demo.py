"""The demo: train three kinds of output layers with 15,810 labels, and compare them in a table and a plot."""

import os
import sys
import textwrap
import time

import numpy as np

from .. import data, train
from ..core import files
from ..core.device import resolve_device
from ..train import curves
from . import common

#: Name and `Classifier` parameters of each contestant. All use the same embedding, loss, optimiser and time. A
#: connection stores a weight and an index: so the bottleneck of 64 and fixed fan-in 32 take the same memory, and so do
#: the bottleneck of 16 and fixed fan-in 8.
CONTESTANTS = {
    "dense": {"output": "dense"},
    "bottleneck of 64": {"output": "bottleneck", "bottleneck": 64},
    "bottleneck of 16": {"output": "bottleneck", "bottleneck": 16},
    "fixed fan-in 32": {"output": "fixed-fan-in", "intermediate": 4096, "fan_in": 32},
    "fixed fan-in 8": {"output": "fixed-fan-in", "intermediate": 4096, "fan_in": 8},
}
PREDICTIONS_OF = "fixed fan-in 32"
N_ARTWORKS = 5


def _train(name, params, corpus, options):
    """Train one contestant; return the model and its results."""
    model = train.Classifier(
        architecture="network",
        **params,
        epochs=1000,
        budget_seconds=options.seconds,
        seed=options.seed,
        device=options.device,
        progress=not options.quiet,
    )
    test, curve = corpus.test, []

    def record_score(_, history):
        curve.append((history.seconds, model.score(test.features, test.labels)))

    print(f"\n{name}: {options.seconds:g} s of training", flush=True)
    start = time.perf_counter()
    model.fit(corpus.train.features, corpus.train.labels, after_epoch=record_score)
    result = model.evaluate(test.features, test.labels)
    history = model.history_
    result |= {
        "output_layer_bytes": model.network_.output_nbytes,
        "network_bytes": model.network_.nbytes,
        "train_seconds": history.seconds,
        "steps": history.steps,
        "epochs": history.steps * model.batch_size / corpus.train.features.shape[0],
        "curve": curve,
        "compile_seconds": history.first_step_seconds,
        "total_seconds": time.perf_counter() - start,
    }
    return model, result


def _table(results):
    columns = (
        f"{'P@1':>7s}{'P@3':>7s}{'P@5':>7s}{'MiB':>8s}{'all MiB':>9s}{'train s':>9s}{'epochs':>8s}{'compile s':>11s}"
    )
    print(f"\n{'output layer':18s}{columns}")
    for name, r in results.items():
        scores = "".join(f"{100 * r[f'P@{k}']:7.1f}" for k in (1, 3, 5))
        memory, whole = r["output_layer_bytes"] / 2**20, r["network_bytes"] / 2**20
        seconds = f"{r['train_seconds']:9.1f}{r['epochs']:8.1f}{r['compile_seconds']:11.1f}"
        print(f"{name:18s}{scores}{memory:8.1f}{whole:9.1f}{seconds}")
    print("P@k: percentage of correct labels among the k best, on the test set. MiB: parameters of the output layer;")
    print(
        "all MiB: parameters of all layers. During training, the moments of Adam take twice as much memory in addition."
    )


def _artworks(model, corpus, seed):
    """Print a few artworks of the test set with their words, true and predicted subjects; return them."""
    test, names = corpus.test, corpus.label_names
    rows = np.sort(np.random.default_rng(seed).choice(test.features.shape[0], N_ARTWORKS, replace=False))
    _, ids = model.top_k(test.features[rows], 5)
    shown = []
    for row, predicted in zip(rows, ids, strict=True):
        words = [corpus.feature_names[i] for i in test.features[row].indices]
        true = set(test.labels[row].indices.tolist())
        entry = {
            "row": int(row),
            "words": words,
            "true": [names[i] for i in sorted(true)],
            "predicted": [{"name": names[i], "right": int(i) in true} for i in predicted],
        }
        shown.append(entry)
        lines = {
            "words": " ".join(words),
            "true": "; ".join(entry["true"]),
            "predicted": "; ".join(f"{'+' if p['right'] else '-'} {p['name']}" for p in entry["predicted"]),
        }
        print(f"\nartwork {row} of the test set")
        for key, text in lines.items():
            print(textwrap.fill(text, 110, initial_indent=f"  {key:10s}", subsequent_indent=" " * 12, max_lines=4))
    return shown


def _picture(results, path):
    """Plot accuracy over the memory of the output layer (P@1 and P@5), and over training time."""
    plt = curves.pyplot()
    styles = {  # the colours of Okabe and Ito, which colour-blind readers can distinguish
        "dense": ("#0072B2", "s"),
        "bottleneck": ("#E69F00", "D"),
        "fixed fan-in": ("#009E73", "o"),
    }
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    memory = {name: r["output_layer_bytes"] / 2**20 for name, r in results.items()}
    for kind, (colour, marker) in styles.items():
        names = sorted((name for name in results if name.startswith(kind)), key=memory.get)
        for axes, metric in ((first, "P@1"), (second, "P@5")):
            scores = [100 * results[name][metric] for name in names]
            axes.plot([memory[name] for name in names], scores, marker=marker, color=colour, ms=11, lw=2, label=kind)
        for name, line in zip(names, ("-",) if len(names) == 1 else ("--", "-"), strict=True):
            seconds, scores = zip(*results[name]["curve"], strict=True)
            third.plot(seconds, 100 * np.array(scores), line, marker=marker, color=colour, label=name, lw=2, ms=5)
    ticks = sorted({round(m, 1) for m in memory.values()})
    for axes, metric in ((first, "P@1"), (second, "P@5")):
        axes.set(
            xscale="log",
            xlabel="parameters of the output layer (MiB, log scale)",
            ylabel=f"{metric} on the test set (%)",
        )
        axes.set_title(f"{metric} over memory")
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_xticks([], minor=True)
        axes.margins(0.15)
    first.legend(frameon=False, loc="lower right")
    third.set(xlabel="seconds of training (without evaluation and compilation)", ylabel="P@1 on the test set (%)")
    third.set_title("P@1 over time")
    third.set_ylim(bottom=max(0, 100 * max(r["P@1"] for r in results.values()) - 15))
    third.legend(frameon=False, loc="lower right")
    for axes in (first, second, third):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    curves.write_figure(figure, path)
    plt.close(figure)


def demo(options):
    """Run the demo; return all results."""
    start = time.perf_counter()
    curves.pyplot()  # raise ImportError before the training, not after
    os.makedirs(options.out, exist_ok=True)
    picture = os.path.join(options.out, "accuracy_against_memory.png")
    files.check_writable(picture)
    device = resolve_device(options.device)
    corpus = data.load("tate")
    n, n_labels = corpus.train.labels.shape
    print(f"Subjects of artworks (Tate Collection): {n:,} training points, {n_labels:,} subjects")
    print(f"Computing {common.device_line(options.device)}")
    models, results = {}, {}
    for name, params in CONTESTANTS.items():
        models[name], results[name] = _train(name, params, corpus, options)
    _table(results)
    print(f"\nPredictions of the network with {PREDICTIONS_OF}; + marks correct ones:")
    artworks = _artworks(models[PREDICTIONS_OF], corpus, options.seed)
    _picture(results, picture)
    seconds = time.perf_counter() - start
    print(f"\nplot: {picture}; the demo took {seconds:.0f} s", file=sys.stdout)
    return {
        "device": device,
        "cpu": common.cpu_name(),
        "contestants": results,
        "artworks": artworks,
        "seconds": seconds,
    }


def demo_options(sub, device):
    """The options of `demo`."""
    device(sub)
    sub.add_argument("--seconds", type=float, default=30, help="training time of each layer, in seconds")
    sub.add_argument("--out", default="demo_output", metavar="DIR", help="folder for the plot")
    sub.add_argument("--seed", type=int, default=0, help="random seed of weights, order and dropout")
    sub.add_argument("--quiet", action="store_true", help="do not show progress")
