"""What does a draw cost, and a training step with sampled softmax? ``python -m bench.sampling``."""

import itertools
import time

import numpy as np

from sparsemax_nb import (
    Adam,
    InvertedMultiIndex,
    UniformSampler,
    UnigramSampler,
    sampled_softmax,
    softmax_cross_entropy,
)
from sparsemax_nb.internals import asarray, synchronize, to_numpy

from . import harness, machine, tables, timing
from .peers import pytorch

SIZES = {
    "largest": (1_000_000, 3_000), "width": (64, 8), "step_classes": (505_403, 2_000), "step_width": (200, 16),
    "rows": (1_024, 20), "samples": (100, 7), "codewords": (64, 8),
}  # fmt: skip
#: Target: maximum ratio of the time of a draw with the most classes to the time with the fewest.
MAX_GROWTH = 1.5
#: Small, so that the loss does not change while the step is repeated.
LEARNING_RATE = 1e-6
#: Timed rounds of steps and of builds, which take seconds.
MAX_ROUNDS = 3
SGD_BASELINE, ADAM_BASELINE = "PyTorch full softmax, SGD", "PyTorch full softmax, Adam"


def class_embeddings(n_classes, width, device):
    """Weights in 1,000 clusters; for standard normal h, the scores have a standard deviation of 1.5."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, width), np.float32)
    classes = centres[rng.integers(1000, size=n_classes)]
    classes += 0.7 * rng.standard_normal((n_classes, width), np.float32)
    classes *= np.float32(1.5 / np.sqrt(1.49 * width))
    return asarray(classes, device)


def popularity_of(n_classes):
    """Class frequencies by Zipf's law, in random order."""
    return 1 / (1 + np.random.default_rng(1).permutation(n_classes))


def normal(n_rows, width, device):
    return asarray(np.random.default_rng(2).standard_normal((n_rows, width), np.float32), device)


# ---------------------------------------------------------------- a draw


def log_probabilities(sampler, popularity, row):
    """Log-probabilities of all classes for one row of h, computed from the codebooks in float64."""
    log_q = np.zeros(sampler.n_classes) if isinstance(sampler, UniformSampler) else np.log(popularity)
    if isinstance(sampler, InvertedMultiIndex):
        codes = to_numpy(sampler.codes)
        words = [row.astype(np.float64) @ to_numpy(codebook).T for codebook in sampler.codebooks]
        log_q = words[0][codes[:, 0]] + words[1][codes[:, 1]] + log_q * (sampler.residual == "popularity")
    return log_q - np.logaddexp.reduce(log_q)


def check_draws(sampler, popularity, h):
    """A check of (ids, log_q): ids are in range; log_q equals `log_prob` and, for three rows, the float64 value."""

    def check(result):
        ids, log_q = map(to_numpy, result)
        timing.require(((0 <= ids) & (ids < sampler.n_classes)).all(), "ids out of range")
        again = to_numpy(sampler.log_prob(h, result[0]))
        timing.require(np.allclose(log_q, again, rtol=0, atol=1e-4), "log_q differs from log_prob")
        for row in sorted({0, len(ids) // 2, len(ids) - 1}):
            want = log_probabilities(sampler, popularity, to_numpy(h)[row])[ids[row]]
            error = np.abs(log_q[row] - want).max()
            timing.require(error <= 1e-4, f"a log-probability is off by {error:.3g}")

    return check


def draws_row(args, n_classes_list, h):
    """Time per number of classes. New random numbers in every call: repeated ones would hit the cache."""
    contestants = {}
    for n_classes in n_classes_list:
        popularity, device = popularity_of(n_classes), args.device
        classes = class_embeddings(n_classes, args.width, device)
        samplers = {
            "MIDX uniform": InvertedMultiIndex.build(classes, args.codewords),
            "MIDX popularity": InvertedMultiIndex.build(
                classes, args.codewords, residual="popularity", popularity=popularity
            ),
            "uniform": UniformSampler(n_classes),
            "unigram": UnigramSampler(popularity, device=device),
        }
        for name, sampler in samplers.items():
            steps = itertools.count()

            def run(sampler=sampler, steps=steps):
                return sampler.sample(h, args.samples, 0, next(steps))

            contestants[name, n_classes] = timing.Contestant(run, check_draws(sampler, popularity, h))
    timings = harness.race(contestants, args)
    first, last = n_classes_list[0], n_classes_list[-1]
    table, notes, figures = [], [], {}
    for name in dict.fromkeys(name for name, _ in timings):
        summaries = [timings[name, n].summary() for n in n_classes_list]
        growth = timing.ratio(timings[name, last], timings[name, first])
        cells = [f"{1e3 * s['median_s']:.2f} ({1e3 * s['min_s']:.2f})" for s in summaries]
        each = 1e9 * summaries[-1]["median_s"] / (args.rows * args.samples)
        spread = f"{growth['ratio_to_ours']:.2f} ({growth['ratio_q10']:.2f} - {growth['ratio_q90']:.2f})"
        table.append([name, *cells, f"{each:.0f}", spread])
        figures[name] = {"growth": growth["ratio_to_ours"], "median_s": [s["median_s"] for s in summaries]}
        if name.startswith("MIDX") and not args.smoke:
            verdict = "met" if growth["ratio_to_ours"] <= MAX_GROWTH else "not met"
            notes.append(
                f"Target: the time of {name} grows by at most {MAX_GROWTH} x from {first:,} to {last:,} classes; "
                f"measured {growth['ratio_to_ours']:.2f} x: {verdict}."
            )
    sizes = [f"{n:,} classes, ms (min)" for n in n_classes_list]
    return {
        "benchmark": "sampling",
        "parameters": parameters(args, "rows", "samples", "codewords", "width") | {"repeats": args.repeats},
        "table": {"header": ["sampler", *sizes, f"ns per draw at {last:,}", "growth"], "rows": table},
        "notes": [
            *notes,
            "Growth: ratio of the time with the most classes to that with the fewest, per round: median (10 % - 90 %).",
        ],
        "figures": figures,
        "environment": machine.environment(args.device),
    }


def parameters(args, *names):
    return {name: getattr(args, name) for name in names} | {"device": args.device}


# ---------------------------------------------------------------- a step


def expected_loss(h, weights, targets, ids, log_q, log_q_targets):
    """The sampled loss (correction="paper") of each row, and the weight of every draw in its gradient; float64."""
    losses, of_draws = np.empty(len(h)), np.empty(ids.shape)
    for b in range(len(h)):
        row = h[b].astype(np.float64)
        scores = np.concatenate([[weights[targets[b]] @ row - log_q_targets[b]], weights[ids[b]] @ row - log_q[b]])
        log_z = np.logaddexp.reduce(scores)
        losses[b], of_draws[b] = log_z - scores[0], np.exp(scores[1:] - log_z)
    return losses, of_draws


def step_row(args, classes, h, targets):
    """A training step. Ours: draws, sampled softmax, lazy Adam. PyTorch: full softmax, Adam or SGD."""
    device, adam, steps = args.device, Adam(LEARNING_RATE), itertools.count()
    w = classes.copy()  # our step changes it
    index = InvertedMultiIndex.build(w, args.codewords)
    seconds = {"draws and their log Q": [], "loss and gradients": [], "update": []}

    def run():
        times = [time.perf_counter()]

        def mark():
            if device == "cuda":
                synchronize()
            times.append(time.perf_counter())

        ids, log_q = index.sample(h, args.samples, 0, next(steps))
        log_q_targets = index.log_prob(h, targets.reshape(-1, 1)).reshape(-1)
        mark()
        loss, dh, (touched, dw) = sampled_softmax(h, w, targets, ids, log_q, log_q_targets)
        mark()
        adam.step_rows(w, touched, dw)
        mark()
        for name, value in zip(seconds, np.diff(times), strict=True):
            seconds[name].append(value)
        return loss, dh, touched, dw, ids, log_q, log_q_targets

    def check(result):
        loss, dh, touched, dw, ids, log_q, log_q_targets = (r if isinstance(r, float) else to_numpy(r) for r in result)
        before, after, rows, wanted = map(to_numpy, (classes, w, h, targets))
        losses, of_draws = expected_loss(rows, before, wanted, ids, log_q, log_q_targets)
        timing.require_close("loss", np.array(loss), losses.mean(), 1e-4)
        of_draws /= len(rows)
        of_targets = (np.exp(-losses) - 1) / len(rows)
        checked = sorted({0, len(ids) // 2, len(ids) - 1})
        want = [of_draws[b] @ before[ids[b]] + of_targets[b] * before[wanted[b]] for b in checked]
        timing.require_close("dh", dh[checked], np.array(want), 1e-3)
        for i in np.unique(np.linspace(0, len(touched) - 1, 10).astype(int)):
            drawn_by, positions = np.nonzero(ids == touched[i])
            want = of_draws[drawn_by, positions] @ rows[drawn_by]
            want += of_targets[wanted == touched[i]] @ rows[wanted == touched[i]]
            timing.require_close("dw", dw[i], want, 1e-3)
            moved = before[touched[i]] - after[touched[i]]  # the length of Adam's first step is the learning rate
            timing.require(
                (np.abs(moved) <= 1.1 * LEARNING_RATE).all() and (moved * dw[i] >= 0).all(), "the update is wrong"
            )

    full_loss, full_dh, *_ = softmax_cross_entropy(h, classes, targets)

    def check_full(result, _):
        timing.require_close("loss", np.array(float(result[0])), full_loss, 1e-3)
        timing.require_close("dh", to_numpy(result[1]), to_numpy(full_dh), 1e-2)

    note = f"{args.samples} draws per row by MIDX, {args.codewords} codewords; lazy Adam for the rows that occur"
    contestants = {"ours": timing.Contestant(run, check, note)}
    for name, kind in (SGD_BASELINE, "SGD"), (ADAM_BASELINE, "Adam"):
        contestants[name] = harness.offer(
            check_full, pytorch.full_softmax_step, h, classes, targets, kind, LEARNING_RATE
        )
    timings = harness.race(contestants, args, repeats=min(args.repeats, MAX_ROUNDS))
    memory = {}
    arrays = w.nbytes
    held = {"ours": 3 * arrays + index.nbytes, SGD_BASELINE: 2 * arrays, ADAM_BASELINE: 4 * arrays}
    for name in timings if device == "cpu" else ("ours",):  # on CUDA, PyTorch has a separate memory pool
        with machine.memory_growth(device) as growth:
            contestants[name].run()
        by_hand = name != "ours" and contestants[name].note.startswith("by hand")
        logits = 4 * h.shape[0] * w.shape[0] if by_hand else 0  # kept between calls
        memory[name] = {"held": held[name] + logits, "growth": growth["bytes"]}
    targets_wanted = None if args.smoke else {SGD_BASELINE: (20, 20), ADAM_BASELINE: (20, 20)}
    sizes = parameters(args, "step_classes", "step_width", "rows", "samples", "codewords")
    row = tables.make_row(
        "sampling: step", sizes, contestants, timings, targets=targets_wanted, memory=memory, device=device
    )
    parts = {name: float(np.median(values[2:])) for name, values in seconds.items()}
    divided = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in parts.items())
    return row | {"figures": parts, "notes": [f"Parts of our step: {divided} (medians)."]}


# ---------------------------------------------------------------- building the index


def build_row(args, n_classes_list):
    """Time of `build` and `update`: at most ten and three iterations of k-means."""
    warm = class_embeddings(10 * args.codewords, args.width, args.device)
    InvertedMultiIndex.build(warm, args.codewords, residual="popularity", popularity=np.ones(len(warm))).update(warm)
    table, figures = [], {}
    for n_classes in n_classes_list:
        classes, popularity = class_embeddings(n_classes, args.width, args.device), popularity_of(n_classes)
        moved = classes + np.float32(0.05) * normal(n_classes, args.width, args.device)
        seconds = {"build": [], "update": []}
        for _ in range(min(args.repeats, MAX_ROUNDS)):
            start = time.perf_counter()
            index = InvertedMultiIndex.build(classes, args.codewords, residual="popularity", popularity=popularity)
            synchronize()
            built = time.perf_counter()
            share = index.update(moved)
            synchronize()
            seconds["build"].append(built - start)
            seconds["update"].append(time.perf_counter() - built)
        timing.require(0 < share < 1, f"{share:.0%} of the classes changed their cell")
        cells = [f"{np.median(s):.3f} ({min(s):.3f})" for s in seconds.values()]
        table.append([f"{n_classes:,}", *cells, f"{share:.0%}"])
        figures[f"{n_classes}"] = {name: float(np.median(s)) for name, s in seconds.items()}
    return {
        "benchmark": "sampling: index",
        "parameters": parameters(args, "codewords", "width"),
        "table": {"header": ["classes", "build, s (min)", "update, s (min)", "classes in another cell"], "rows": table},
        "notes": [f"kind='rq', residual='popularity'; medians of {min(args.repeats, MAX_ROUNDS)}."],
        "figures": figures,
        "environment": machine.environment(args.device),
    }


def main(argv=None):
    args = harness.arguments("sampling", __doc__, SIZES, argv)
    numbers = [max(args.largest // part, 10 * args.codewords) for part in (100, 10, 1)]
    h = normal(args.rows, args.width, args.device)
    rows = [harness.publish(args, draws_row(args, numbers, h))]
    rows.append(harness.publish(args, build_row(args, numbers[1:])))
    classes = class_embeddings(args.step_classes, args.step_width, args.device)
    h = normal(args.rows, args.step_width, args.device)
    targets = np.random.default_rng(3).integers(args.step_classes, size=args.rows)
    return [*rows, harness.publish(args, step_row(args, classes, h, asarray(targets, args.device, np.int32)))]


if __name__ == "__main__":
    main()
