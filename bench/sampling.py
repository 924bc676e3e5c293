"""What does a draw cost, and a training step with sampled softmax? ``python -m bench.sampling`` (README.md says how)."""

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
GROWTH = 1.5
LEARNING_RATE = 1e-6  # small, so that the loss stays what it is while the step is repeated
ROUNDS = 3  # of steps and of builds, which take seconds
SGD_RIVAL, ADAM_RIVAL = "PyTorch full softmax, SGD", "PyTorch full softmax, Adam"


def class_embeddings(n_classes, width, device):
    """A thousand clusters; with standard normal queries, scores with a standard deviation of 1.5."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, width), np.float32)
    classes = centres[rng.integers(1000, size=n_classes)]
    classes += 0.7 * rng.standard_normal((n_classes, width), np.float32)
    classes *= np.float32(1.5 / np.sqrt(1.49 * width))
    return asarray(classes, device)


def popularity_of(n_classes):
    """Zipf's law, in no order."""
    return 1 / (1 + np.random.default_rng(1).permutation(n_classes))


def normal(n_rows, width, device):
    return asarray(np.random.default_rng(2).standard_normal((n_rows, width), np.float32), device)


# ---------------------------------------------------------------- a draw


def log_probabilities(sampler, popularity, query):
    """What the sampler promises for one query and all classes, from its codebooks alone; float64."""
    log_q = np.zeros(sampler.n_classes) if isinstance(sampler, UniformSampler) else np.log(popularity)
    if isinstance(sampler, InvertedMultiIndex):
        codes = to_numpy(sampler.codes)
        words = [query.astype(np.float64) @ to_numpy(codebook).T for codebook in sampler.codebooks]
        log_q = words[0][codes[:, 0]] + words[1][codes[:, 1]] + log_q * (sampler.residual == "popularity")
    return log_q - np.logaddexp.reduce(log_q)


def check_draws(sampler, popularity, queries):
    """check(ids, log_q): ids in range, log_q as `log_prob` says, and for three rows as float64 has it."""

    def check(result):
        ids, log_q = map(to_numpy, result)
        timing.require(((0 <= ids) & (ids < sampler.n_classes)).all(), "ids out of range")
        again = to_numpy(sampler.log_prob(queries, result[0]))
        timing.require(np.allclose(log_q, again, rtol=0, atol=1e-4), "log_q is not what log_prob says")
        for row in sorted({0, len(ids) // 2, len(ids) - 1}):
            want = log_probabilities(sampler, popularity, to_numpy(queries)[row])[ids[row]]
            error = np.abs(log_q[row] - want).max()
            timing.require(error <= 1e-4, f"a log-probability is off by {error:.3g}")

    return check


def draws_row(args, n_classes_list, queries):
    """Time against the number of classes; every call draws anew, so that no look-up is answered by the last call's."""
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
                return sampler.sample(queries, args.samples, 0, next(steps))

            contestants[name, n_classes] = timing.Contestant(run, check_draws(sampler, popularity, queries))
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
            verdict = "met" if growth["ratio_to_ours"] <= GROWTH else "not met"
            notes.append(
                f"Target: {name} grows at most {GROWTH} x from {first:,} to {last:,} classes; "
                f"measured {growth['ratio_to_ours']:.2f} x: {verdict}."
            )
    sizes = [f"{n:,} classes, ms (min)" for n in n_classes_list]
    return {
        "benchmark": "sampling",
        "parameters": parameters(args, "rows", "samples", "codewords", "width") | {"repeats": args.repeats},
        "table": {"header": ["sampler", *sizes, f"ns a draw at {last:,}", "growth"], "rows": table},
        "notes": [
            *notes, "Growth: time at the most classes over time at the fewest, round by round: median (10 % - 90 %)."
        ],
        "figures": figures,
        "environment": machine.environment(args.device),
    }  # fmt: skip


def parameters(args, *names):
    return {name: getattr(args, name) for name in names} | {"device": args.device}


# ---------------------------------------------------------------- a step


def expected_loss(h, w, targets, ids, log_q, log_q_targets):
    """The sampled loss of each row ("paper"), and the weight of every draw in its gradient; float64, a row at a time."""
    losses, weights = np.empty(len(h)), np.empty(ids.shape)
    for b in range(len(h)):
        query = h[b].astype(np.float64)
        scores = np.concatenate([[w[targets[b]] @ query - log_q_targets[b]], w[ids[b]] @ query - log_q[b]])
        log_z = np.logaddexp.reduce(scores)
        losses[b], weights[b] = log_z - scores[0], np.exp(scores[1:] - log_z)
    return losses, weights


def step_row(args, classes, h, targets):
    """Ours: draw, sampled softmax, gradients, lazy Adam. PyTorch: the full softmax, its gradients, Adam or SGD."""
    device, adam, steps = args.device, Adam(LEARNING_RATE), itertools.count()
    w = classes.copy()  # ours to change
    index = InvertedMultiIndex.build(w, args.codewords)
    seconds = {"draws and their log Q": [], "loss and gradients": [], "update": []}

    def run():
        at = [time.perf_counter()]

        def mark():
            if device == "cuda":
                synchronize()
            at.append(time.perf_counter())

        ids, log_q = index.sample(h, args.samples, 0, next(steps))
        log_q_targets = index.log_prob(h, targets.reshape(-1, 1)).reshape(-1)
        mark()
        loss, dh, (touched, dw) = sampled_softmax(h, w, targets, ids, log_q, log_q_targets)
        mark()
        adam.step_rows(w, touched, dw)
        mark()
        for name, value in zip(seconds, np.diff(at), strict=True):
            seconds[name].append(value)
        return loss, dh, touched, dw, ids, log_q, log_q_targets

    def check(result):
        loss, dh, touched, dw, ids, log_q, log_q_targets = (r if isinstance(r, float) else to_numpy(r) for r in result)
        before, now, queries, wanted = map(to_numpy, (classes, w, h, targets))
        losses, weights = expected_loss(queries, before, wanted, ids, log_q, log_q_targets)
        timing.require_close("loss", np.array(loss), losses.mean(), 1e-4)
        weights /= len(queries)
        picked = np.exp(-losses) - 1  # the target's
        some = sorted({0, len(ids) // 2, len(ids) - 1})
        want = [weights[b] @ before[ids[b]] + picked[b] / len(queries) * before[wanted[b]] for b in some]
        timing.require_close("dh", dh[some], np.array(want), 1e-3)
        for i in np.unique(np.linspace(0, len(touched) - 1, 10).astype(int)):
            rows, places = np.nonzero(ids == touched[i])
            want = weights[rows, places] @ queries[rows]
            want += (picked / len(queries))[wanted == touched[i]] @ queries[wanted == touched[i]]
            timing.require_close("dw", dw[i], want, 1e-3)
            moved = before[touched[i]] - now[touched[i]]  # Adam's first step is as long as the rate
            timing.require(
                (np.abs(moved) <= 1.1 * LEARNING_RATE).all() and (moved * dw[i] >= 0).all(), "a wrong update"
            )

    full_loss, full_dh, *_ = softmax_cross_entropy(h, classes, targets)

    def check_full(result, _):
        timing.require_close("loss", np.array(float(result[0])), full_loss, 1e-3)
        timing.require_close("dh", to_numpy(result[1]), to_numpy(full_dh), 1e-2)

    note = f"{args.samples} draws a row by MIDX, {args.codewords} codewords; lazy Adam on the rows that occur"
    contestants = {"ours": timing.Contestant(run, check, note)}
    for name, kind in (SGD_RIVAL, "SGD"), (ADAM_RIVAL, "Adam"):
        contestants[name] = harness.offer(
            check_full, pytorch.full_softmax_step, h, classes, targets, kind, LEARNING_RATE
        )
    timings = harness.race(contestants, args, repeats=min(args.repeats, ROUNDS))
    memory = {}
    arrays = w.nbytes
    held = {"ours": 3 * arrays + index.nbytes, SGD_RIVAL: 2 * arrays, ADAM_RIVAL: 4 * arrays}
    for name in timings if device == "cpu" else ("ours",):  # PyTorch's pool on CUDA is its own
        with machine.memory_growth(device) as growth:
            contestants[name].run()
        by_hand = name != "ours" and contestants[name].note.startswith("by hand")
        logits = 4 * h.shape[0] * w.shape[0] if by_hand else 0  # held between calls
        memory[name] = {"held": held[name] + logits, "growth": growth["bytes"]}
    targets_wanted = None if args.smoke else {SGD_RIVAL: (20, 20), ADAM_RIVAL: (20, 20)}
    sizes = parameters(args, "step_classes", "step_width", "rows", "samples", "codewords")
    row = tables.make_row(
        "sampling: step", sizes, contestants, timings, targets=targets_wanted, memory=memory, device=device
    )
    parts = {name: float(np.median(values[2:])) for name, values in seconds.items()}
    divided = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in parts.items())
    return row | {"figures": parts, "notes": [f"Ours divides into {divided} (medians)."]}


# ---------------------------------------------------------------- building the index


def build_row(args, n_classes_list):
    """Seconds that `build` and `update` take; ten and three iterations of k-means at most."""
    warm = class_embeddings(10 * args.codewords, args.width, args.device)
    InvertedMultiIndex.build(warm, args.codewords, residual="popularity", popularity=np.ones(len(warm))).update(warm)
    table, figures = [], {}
    for n_classes in n_classes_list:
        classes, popularity = class_embeddings(n_classes, args.width, args.device), popularity_of(n_classes)
        moved = classes + np.float32(0.05) * normal(n_classes, args.width, args.device)
        seconds = {"build": [], "update": []}
        for _ in range(min(args.repeats, ROUNDS)):
            start = time.perf_counter()
            index = InvertedMultiIndex.build(classes, args.codewords, residual="popularity", popularity=popularity)
            synchronize()
            built = time.perf_counter()
            share = index.update(moved)
            synchronize()
            seconds["build"].append(built - start)
            seconds["update"].append(time.perf_counter() - built)
        timing.require(0 < share < 1, f"{share:.0%} of the classes have changed their cell")
        cells = [f"{np.median(s):.3f} ({min(s):.3f})" for s in seconds.values()]
        table.append([f"{n_classes:,}", *cells, f"{share:.0%}"])
        figures[f"{n_classes}"] = {name: float(np.median(s)) for name, s in seconds.items()}
    return {
        "benchmark": "sampling: index",
        "parameters": parameters(args, "codewords", "width"),
        "table": {"header": ["classes", "build, s (min)", "update, s (min)", "classes in another cell"], "rows": table},
        "notes": [f"kind='rq', residual='popularity'; medians of {min(args.repeats, ROUNDS)}."],
        "figures": figures,
        "environment": machine.environment(args.device),
    }


def main(argv=None):
    args = harness.arguments("sampling", __doc__, SIZES, argv)
    numbers = [max(args.largest // part, 10 * args.codewords) for part in (100, 10, 1)]
    queries = normal(args.rows, args.width, args.device)
    rows = [harness.publish(args, draws_row(args, numbers, queries))]
    rows.append(harness.publish(args, build_row(args, numbers[1:])))
    classes = class_embeddings(args.step_classes, args.step_width, args.device)
    h = normal(args.rows, args.step_width, args.device)
    targets = np.random.default_rng(3).integers(args.step_classes, size=args.rows)
    return [*rows, harness.publish(args, step_row(args, classes, h, asarray(targets, args.device, np.int32)))]


if __name__ == "__main__":
    main()
