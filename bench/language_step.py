"""How fast is a language model's whole training step? ``python -m bench.language_step`` (see bench/README.md)."""

import math

import numpy as np

from sparsemax_nb import Adam, Labels
from sparsemax_nb.internals import Chunk, LanguageNetwork, Negatives, Sampling, asarray, to_numpy

from . import harness, machine, tables, timing
from .peers import Unavailable, pytorch

SIZES = {"steps": (35, 4), "rows": (64, 3), "width": (200, 8), "samples": (100, 5), "codewords": (128, 4)}
#: {number of words: desired speed-up relative to PyTorch's full softmax}.
WORDS = {33_278: 10, 500_000: 50}
SMOKE_WORDS = {120: 0}
LAYERS, CLIP, RATE = 2, 1.0, 1e-3
#: Number of steps between two updates of the index, as in training.
INDEX_EVERY = 100


def network_of(n_words, args):
    """A network whose word vectors differ in length and direction, as after training; and the word counts."""
    network = LanguageNetwork(
        n_words, width=args.width, n_layers=LAYERS, tied=True, dropout=0.0, clip=CLIP, seed=0, device=args.device
    )
    counts = np.maximum(1, 1e7 / (np.arange(n_words) + 2.7)).astype(np.int64)  # the law of Zipf and Mandelbrot
    network.start_from(counts)
    how = Sampling("midx-rq", args.samples, args.codewords, "uniform", "paper", False)
    network.output.negatives = Negatives(how, network.output.weights, counts, seed=0)
    network.output.negatives.update()
    return network, counts


def text_like(counts, args, seed):
    """A `Chunk` (T, B) of words drawn with frequencies `counts`, and the next word of each."""
    cumulative = np.cumsum(counts / counts.sum())
    drawn = np.searchsorted(cumulative, np.random.default_rng(seed).random((args.steps + 1, args.rows)))
    drawn = drawn.clip(0, len(counts) - 1).astype(np.int32)
    return Chunk(drawn[:-1], np.ones((args.steps, args.rows), np.int64), True), drawn[1:].reshape(-1).copy()


def sampled_loss(network, chunk, targets):
    """The loss of the network's next step in float64, with the same draws."""
    h = network.forward(chunk)[0].reshape(-1, network.width)
    labels = Labels(asarray(np.arange(len(targets) + 1), network.device, np.int32), asarray(targets, network.device))
    drawn = network.output.negatives.draw(h, labels, network.steps)
    h, w, ids, log_q, log_q_targets = map(to_numpy, (h, network.output.weights, *drawn))
    total = 0.0
    for row, target in enumerate(targets):
        of_row = h[row].astype(np.float64)
        scores = np.append(w[target] @ of_row - log_q_targets[row], w[ids[row]] @ of_row - log_q[row])
        total += np.logaddexp.reduce(scores) - scores[0]
    return total / len(targets)


def measure(args, n_words, desired):
    """Measure and publish one row of results."""
    network, counts = network_of(n_words, args)
    chunk, targets = text_like(counts, args, 0)
    layers = [tuple(to_numpy(a) for a in lstm.parameters.values()) for lstm in network.lstms]
    exact = -float(network.evaluate(chunk, targets)[0].mean(dtype=np.float64))
    expected, adam, calls = sampled_loss(network, chunk, targets), Adam(RATE), []

    texts = [(chunk, targets)] + [text_like(counts, args, seed) for seed in range(1, args.repeats + 2)]

    def run():
        calls.append(network.step(*texts[len(calls)], "softmax", adam))
        return calls[-1]

    def check(loss):
        timing.require(math.isclose(loss, expected, rel_tol=1e-4), f"the loss is {loss}, not {expected}")

    def check_exact(loss):
        timing.require(math.isclose(loss, exact, rel_tol=1e-4), f"the loss is {loss}, not {exact}")

    table = network.output.weights.copy()
    bias = table[:, 0].copy()
    table[:, 0] = 0  # our network stores the bias in this column
    shape = args.steps, args.rows
    contestants = {
        "ours": timing.Contestant(run, check, f"midx-rq, {args.samples} draws per word, lazy Adam"),
        "PyTorch": harness.offer(
            check_exact, pytorch.language_step, chunk.tokens, targets.reshape(shape), table, bias, layers, CLIP, RATE
        ),
    }
    timings = harness.race(contestants, args)
    flops = LAYERS * 6 * 2 * args.steps * args.rows * 4 * args.width**2
    in_cache = network.output.weights.nbytes <= machine.cache_bytes()["L3"]
    drawn = 3 * 4 * args.steps * args.rows * (args.samples + 1) * args.width
    work = {
        "multiply-adds of the LSTM layers": (flops, "flops"),
        "rows of drawn classes, read for scores and gradients": (drawn, "l3_read" if in_cache else "dram_copy"),
    }
    row = tables.make_row(
        "language_step",
        args.parameters | {"words": n_words, "layers": LAYERS},
        contestants,
        timings,
        floor=harness.floor(args, work),
        targets={"PyTorch": (1, desired)} if args.device == "cpu" and desired else None,
        device=args.device,
    )
    seconds = timing.measure("update", network.output.negatives.update, lambda _: None, repeats=3).seconds
    each, n_tokens = float(np.median(seconds)), args.steps * args.rows
    rates = {
        name: n_tokens / row["contestants"][name]["median_s"]
        for name, contestant in contestants.items() if not isinstance(contestant, Unavailable)
    }  # fmt: skip
    row["notes"] = [
        "Tokens per second: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()) + ".",
        f"Not included: an update of the index every {INDEX_EVERY} steps takes {1e3 * each:,.0f} ms, which is "
        f"{1e3 * each / INDEX_EVERY:.1f} ms per step.",
    ]
    return harness.publish(args, row)


def main(argv=None):
    args = harness.arguments("language_step", __doc__.partition("``")[0], SIZES, argv, repeats=7)
    return [measure(args, n_words, desired) for n_words, desired in (SMOKE_WORDS if args.smoke else WORDS).items()]


if __name__ == "__main__":
    main()
