"""The demo: a linear layer over texts, networks with five output layers, and an answer with its reasons."""

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

#: Name and `Classifier` parameters of each network. All use the same embedding, loss, optimizer and time.
CONTESTANTS = {
    "bottleneck of 16": {"output": "bottleneck", "bottleneck": 16},
    "fixed fan-in 8": {"output": "fixed-fan-in", "intermediate": 4096, "fan_in": 8},
    "bottleneck of 64": {"output": "bottleneck", "bottleneck": 64},
    "fixed fan-in 32": {"output": "fixed-fan-in", "intermediate": 4096, "fan_in": 32},
    "dense": {"output": "dense"},
}
#: Layers with the same memory: a connection stores a weight and an index.
PAIRS = ("bottleneck of 16", "fixed fan-in 8"), ("bottleneck of 64", "fixed fan-in 32")
METRICS = "P@1", "P@3", "P@5"


def _texts(points, words):
    """A text for each point: its words, each as often as it occurs."""
    x = points.features
    counts = x.data.astype(np.int64)
    occurrences = np.repeat(np.asarray(words, object)[x.indices], counts)
    ends = np.concatenate([[0], np.cumsum(counts)])[x.indptr]
    return [" ".join(occurrences[first:last]) for first, last in zip(ends[:-1], ends[1:], strict=True)]


def _names(points, names):
    """The label names of each point, without duplicates."""
    return [list(dict.fromkeys(names[i] for i in row.indices)) for row in points.labels]


def _train_on_texts(parts, options):
    """Train the linear layer; return the model and its results."""
    model = train.Classifier(
        word_pairs=False, char_ngrams=0, seed=options.seed, device=options.device, progress=not options.quiet
    )
    start = time.perf_counter()
    model.fit(*parts["train"])
    seconds = time.perf_counter() - start
    result = model.evaluate(*parts["test"]) | {"nbytes": model.network_.nbytes, "seconds": seconds}
    scores = "   ".join(f"{metric} {100 * result[metric]:.1f} %" for metric in METRICS)
    print(f"{scores}   {seconds:.0f} s   {result['nbytes'] / 2**20:.1f} MiB")
    print("P@k: share of correct subjects among the k best, on the test set. The time includes the choice of settings,")
    print("the calibration of the probabilities and compilation. MiB: memory of the layer.")
    return model, result


def _train_network(name, params, corpus, options):
    """Train one network; return its results."""
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
    return result | {
        "output_layer_bytes": model.network_.output_nbytes,
        "network_bytes": model.network_.nbytes,
        "train_seconds": history.seconds,
        "steps": history.steps,
        "epochs": history.steps * model.batch_size / corpus.train.features.shape[0],
        "curve": curve or [(history.seconds, result["P@1"])],  # no step, if the initial weights took all the time
        "compile_seconds": history.first_step_seconds,
        "total_seconds": time.perf_counter() - start,
    }


def _table(results):
    """Print the networks, with the better layer of each pair marked in each column."""
    rivals = {name: pair for pair in PAIRS for name in pair}
    columns = "".join(f"{metric:>7s} " for metric in METRICS) + f"{'MiB':>8s}{'all MiB':>9s}{'epochs':>8s}"
    print(f"\n{'output layer':18s}{columns}")
    previous = None
    for name, r in results.items():
        scores = ""
        for metric in METRICS:
            others = [results[rival][metric] for rival in rivals.get(name, ()) if rival != name]
            scores += f"{100 * r[metric]:7.1f}{'*' if others and r[metric] > others[0] else ' '}"
        if previous and previous not in rivals.get(name, ()):
            print()
        memory = f"{r['output_layer_bytes'] / 2**20:8.1f}{r['network_bytes'] / 2**20:9.1f}"
        print(f"{name:18s}{scores}{memory}{r['epochs']:8.1f}")
        previous = name
    print("\n* the better of two output layers with the same memory; dense, with all connections, is for comparison.")
    print("MiB: parameters of the output layer; all MiB: of all layers. Training also stores two moments per weight.")
    print("epochs: passes over the artworks in the same time.")


def _answer(model, texts, labels, seed):
    """Print the prediction for one text of the test set, and why its best label is predicted; return them."""
    row = int(np.random.default_rng(seed).integers(len(texts)))
    text, true = texts[row], labels[row]
    found = model.explain(text)
    predicted = [{"name": e.name, "probability": e.probability, "right": e.label in true} for e in found]
    lines = {
        "text": text,
        "true": "; ".join(true),
        "predicted": "; ".join(f"{'+' if p['right'] else '-'} {p['name']} {p['probability']:.2f}" for p in predicted),
    }
    print(f"Artwork {row} of the test set, and the subjects that the linear layer predicts, with their probabilities;")
    print("+ marks correct ones.\n")
    for key, line in lines.items():
        print(textwrap.fill(line, 110, initial_indent=f"  {key:10s}", subsequent_indent=" " * 12, max_lines=4))
    print(f"\nWhat speaks for (+) or against (-) the first one:\n\n{found[0]}")
    return {"row": row, "text": text, "true": true, "predicted": predicted, "explanation": str(found[0])}


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
    first.legend(frameon=False, loc="best")
    third.set(xlabel="seconds of training (without evaluation and compilation)", ylabel="P@1 on the test set (%)")
    third.set_title("P@1 over time")
    third.set_xlim(left=0)
    third.set_ylim(bottom=max(0, 100 * max(r["P@1"] for r in results.values()) - 15))
    third.legend(frameon=False, loc="best")
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
    print(f"Subjects of artworks (Tate Collection): {n:,} artworks to train on, {n_labels:,} subjects")
    print(f"Computing {common.device_line(options.device)}")
    print("\n1. A linear layer over texts, which chooses its settings itself\n")
    print(
        "The corpus contains word counts, not texts. Here a text is the words of an artwork, each as often as counted:"
    )
    print("their order means nothing, so only single words are features. Subjects with the same name become one.")
    print("Before the training it tries a few settings on held-out artworks.", flush=True)
    points = {"train": corpus.train, "test": corpus.test}
    parts = {part: (_texts(p, corpus.feature_names), _names(p, corpus.label_names)) for part, p in points.items()}
    model, linear = _train_on_texts(parts, options)
    print("\n2. Networks over the same word counts, which differ in their output layer\n")
    print(
        "For texts, the linear layer is the default. The networks show what the output layer costs and achieves over a"
    )
    print("hidden layer, with the same training time for each.", flush=True)
    results = {name: _train_network(name, params, corpus, options) for name, params in CONTESTANTS.items()}
    _table(results)
    print("\n3. An answer\n")
    answer = _answer(model, *parts["test"], options.seed)
    _picture(results, picture)
    seconds = time.perf_counter() - start
    print(f"\nplot: {picture}; the demo took {seconds:.0f} s", file=sys.stdout)
    return {
        "device": device,
        "cpu": common.cpu_name(),
        "linear": linear,
        "contestants": results,
        "answer": answer,
        "seconds": seconds,
    }


def demo_options(sub, device):
    """The options of `demo`."""
    device(sub)
    seconds = "training time of each network, in seconds"
    sub.add_argument("--seconds", type=float, default=30, metavar="S", help=seconds)
    sub.add_argument("--out", default="demo_output", metavar="DIR", help="folder for the plot")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of weights, order and dropout")
    sub.add_argument("--quiet", action="store_true", help="do not show progress")
