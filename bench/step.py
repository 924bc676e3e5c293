"""How fast is one training step, and a top-k search? ``python -m bench.step`` (see bench/README.md)."""

import numpy as np

from sparsemax_nb import Adam, FixedFanIn, Labels, fixed_fan_in_forward, fixed_fan_in_step, fixed_fan_in_top_k
from sparsemax_nb.internals import asarray, module_of, to_numpy

from . import forward, harness, machine, tables, timing
from .peers import pytorch, scipy_csr

SIZES = forward.SIZES | {"dense_width": (512, 16), "label_rows": (5, 2), "k": (5, 5)}
#: Small, so that the share of active scores does not change while the step is repeated.
LEARNING_RATE = 1e-6
#: Our CPU kernel skips rows without a gradient in blocks of this size.
BLOCK = 16


def random_labels(n_rows, n_labels, n_per_row, device):
    """`n_per_row` different random labels for each row."""
    rng = np.random.default_rng(1)
    indices = np.stack([rng.choice(n_labels, n_per_row, replace=False) for _ in range(n_rows)])
    indptr = np.arange(0, indices.size + 1, n_per_row)
    return Labels(*(asarray(a.ravel(), device, np.int32) for a in (indptr, np.sort(indices, axis=1))))


def expected(scores, labels, loss):
    """Loss, gradient with respect to the scores, and the mask of scores with a gradient; overwrites `scores`."""
    indptr, indices = map(to_numpy, labels)
    of_labels = np.repeat(np.arange(len(scores)), np.diff(indptr)), indices
    scores *= -1  # now y * scores, with y = 1 for labels and -1 otherwise
    scores[of_labels] *= -1
    if loss == "squared-hinge":
        gradient = np.maximum(1 - scores, 0)
        total = np.einsum("bl,bl->", gradient, gradient, dtype=np.float64)
        gradient *= -2 / len(scores)
    else:
        total = np.logaddexp(0, -scores).sum(dtype=np.float64)
        gradient = -1 / (1 + np.exp(scores)) / len(scores)
    active = gradient != 0
    gradient *= -1
    gradient[of_labels] *= -1
    return total / len(scores), gradient, active


def check_step(result, h, w, bias, labels, loss, gradient_of):
    """Check loss, dh and dw of 100 labels against NumPy (`w` before the step); returns the mask of active scores."""
    value, dh = result[0], to_numpy(result[1])
    total, g, active = expected(np.ascontiguousarray((w @ h.T).T) + bias, labels, loss)
    checked = np.unique(np.linspace(0, g.shape[1] - 1, 100).astype(int))
    timing.require(abs(value - total) <= 1e-4 * abs(total), f"the loss is {value}, not {total}")
    for name, got, want in (
        ("dh", dh, (w.T @ g.T).T),
        ("dw", gradient_of(checked), gradient_of(checked, g[:, checked].T @ h)),
    ):
        timing.require_close(name, got, want, 1e-3)
    return active


def set_bias(layer, h, margin):
    """Set the bias so that about 1 % of the scores are inside the hinge's margin ("1 %"), or all ("all")."""
    scores = fixed_fan_in_forward(h, layer)
    xp = module_of(layer.device)
    threshold = (
        scores.min() - 0.1 if margin == "all" else xp.quantile(scores[:, :: max(1, layer.n_labels // 10_000)], 0.99)
    )
    layer.bias[:] = -1 - threshold


def our_step(layer, h, labels, loss, margin, note, smoke):
    """(contestant, share) of a fused fixed fan-in step; its check writes the active shares into `share`."""
    set_bias(layer, h, margin)
    adam, share = Adam(LEARNING_RATE), {}
    w, bias, indices = scipy_csr.matrix_of(layer), to_numpy(layer.bias).copy(), scipy_csr.inputs_of(layer)

    def run():
        return fixed_fan_in_step(h, layer, labels, loss, adam)

    def check(result):
        moments = to_numpy(adam.state_of(layer.values).moments.m) / (1 - adam.beta1)  # after one step: the gradients

        def gradient_of(some, dense=None):
            return moments[some] if dense is None else np.take_along_axis(dense, indices[some], axis=1)

        active = check_step(result, to_numpy(h), w, bias, labels, loss, gradient_of)
        share["scores"] = float(active.mean())
        share["blocks"] = float(np.logical_or.reduceat(active, np.arange(0, len(active), BLOCK)).mean())
        wanted = (0.007, 0.013) if margin == "1 %" else (0.99, 1)
        timing.require(
            smoke or wanted[0] <= share["scores"] <= wanted[1], f"{share['scores']:.2%} of the scores are active"
        )

    return timing.Contestant(run, check, note), share


def dense_step(dense_h, labels, n_labels, loss):
    """A contestant: PyTorch's training step of a dense layer."""

    def check_dense(result, dense_w, dense_gradient):
        dense_w, dense_gradient = map(to_numpy, (dense_w, dense_gradient))
        # the length of Adam's first step is the learning rate
        before = dense_w + np.float32(LEARNING_RATE) * np.sign(dense_gradient)

        def gradient_of(some, dense=None):
            return dense_gradient[some] if dense is None else dense

        check_step(result, to_numpy(dense_h), before, 0, labels, loss, gradient_of)

    return harness.offer(check_dense, pytorch.dense_step, dense_h, labels, n_labels, loss, LEARNING_RATE)


def step_row(args, h, dense_h, labels, loss, margin):
    """Compare the step for one loss and one share of active scores."""
    layer = FixedFanIn.random(args.labels, args.inputs, args.fan_in, seed=0, device=args.device)
    ours, share = our_step(layer, h, labels, loss, margin, f"fan-in {args.fan_in}, Adam", args.smoke)
    contestants = {"ours": ours, "PyTorch dense": dense_step(dense_h, labels, args.labels, loss)}
    timings = harness.race(contestants, args)
    memory = {}
    held = {"ours": 3 * layer.nbytes - 2 * layer.indices.nbytes, "PyTorch dense": 16 * args.labels * args.dense_width}
    for name in timings:
        with machine.memory_growth(args.device) as growth:
            contestants[name].run()
        extra = 4 * args.rows * args.labels if name != "ours" else 0  # PyTorch's scores, kept between calls
        memory[name] = {"held": held[name] + extra, "growth": growth["bytes"]}
    parameters = args.parameters | {"loss": loss, "inside_margin": margin}
    parameters |= {f"active_{what}_percent": round(100 * value, 1) for what, value in share.items()}
    limits = harness.floor(args, step_work(args, share["blocks"]))
    targets = {"PyTorch dense": (6, 8)} if margin == "1 %" and not args.smoke else None
    return tables.make_row(
        "step", parameters, contestants, timings, floor=limits, targets=targets, memory=memory, device=args.device
    )


def step_work(args, active_blocks):
    """Bytes and FLOPs of our step: the forward pass without storing scores, then each active block of rows."""
    connections = args.labels * args.fan_in
    active = 4 * args.rows * connections * active_blocks
    return {
        "memory: weights and moments read and written": (28 * connections, "dram_copy"),
        "L2: inputs gathered, gradients scattered": (4 * args.rows * connections + 3 * active, "l2_read"),
        "multiply-adds": (2 * args.rows * connections + active + 12 * connections, "flops"),
    }


def check_top_k(result, h, w, k):
    """Check the scores, and the scores of the ids, against weights w (L, H) for h (B, H)."""
    values, ids = map(to_numpy, result)
    scores = w @ h.T
    best = -np.partition(-scores, k - 1, axis=0)[:k]
    for got in (values, np.take_along_axis(scores, ids.T.astype(int), axis=0).T):
        error = np.abs(np.sort(got, axis=1) - np.sort(best.T, axis=1)).max()
        timing.require(error <= 1e-5 * np.abs(best).max(), f"a top-k score is off by {error:.3g}")


def our_top_k(layer, h, k, note):
    """A contestant: the top-k search of a fixed fan-in layer."""
    w = scipy_csr.matrix_of(layer)
    return timing.Contestant(
        lambda: fixed_fan_in_top_k(h, layer, k), lambda result: check_top_k(result, to_numpy(h), w, k), note
    )


def dense_top_k(dense_h, n_labels, k):
    """A contestant: PyTorch's dense product and topk."""

    def check(result, w):
        check_top_k(result, to_numpy(dense_h), to_numpy(w), k)

    return harness.offer(check, pytorch.dense_top_k, dense_h, n_labels, k)


def top_k_row(args, h, dense_h):
    """Compare the search for the k best labels per row."""
    layer = FixedFanIn.random(args.labels, args.inputs, args.fan_in, seed=0, device=args.device)
    contestants = {"ours": our_top_k(layer, h, args.k, f"fan-in {args.fan_in}")}
    contestants["PyTorch dense"] = dense_top_k(dense_h, args.labels, args.k)
    timings = harness.race(contestants, args)
    work = forward.work(args.rows, args.inputs, args.labels, args.fan_in)
    work = {what: amount for what, amount in work.items() if not what.startswith("memory")}
    work["memory: weights read"] = (8 * args.labels * args.fan_in, "dram_copy")
    limits = harness.floor(args, work)
    return tables.make_row("top_k", args.parameters, contestants, timings, floor=limits, device=args.device)


def main(argv=None):
    args = harness.arguments("step", __doc__, SIZES, argv)
    h = forward.inputs(args.rows, args.inputs, args.device)
    dense_h = forward.inputs(args.rows, args.dense_width, args.device)
    labels = random_labels(args.rows, args.labels, args.label_rows, args.device)
    cases = (("squared-hinge", "1 %"), ("squared-hinge", "all"), ("bce", "all"))
    rows = [harness.publish(args, step_row(args, h, dense_h, labels, loss, margin)) for loss, margin in cases]
    return [*rows, harness.publish(args, top_k_row(args, h, dense_h))]


if __name__ == "__main__":
    main()
