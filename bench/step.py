"""How fast is one training step, and a top-k search? ``python -m bench.step`` (README.md says what is compared)."""

import numpy as np

from sparsemax_nb import Adam, FixedFanIn, Labels, fixed_fan_in_forward, fixed_fan_in_step, fixed_fan_in_top_k
from sparsemax_nb.internals import asarray, module_of, to_numpy

from . import forward, harness, machine, tables, timing
from .peers import pytorch, scipy_csr

SIZES = forward.SIZES | {"dense_width": (512, 16), "label_rows": (5, 2), "k": (5, 5)}
LEARNING_RATE = 1e-6  # small, so that the share of active scores stays what it is while the step is repeated
BLOCK = 16  # rows that our CPU kernel skips together


def targets_of(n_rows, n_labels, n_positives, device):
    """`n_positives` different random labels for each row."""
    rng = np.random.default_rng(1)
    indices = np.stack([rng.choice(n_labels, n_positives, replace=False) for _ in range(n_rows)])
    indptr = np.arange(0, indices.size + 1, n_positives)
    return Labels(*(asarray(a.ravel(), device, np.int32) for a in (indptr, np.sort(indices, axis=1))))


def expected(scores, labels, loss):
    """Loss, gradient by the scores, and which scores have one; NumPy, overwrites `scores` with y * scores."""
    indptr, indices = map(to_numpy, labels)
    places = np.repeat(np.arange(len(scores)), np.diff(indptr)), indices
    scores *= -1  # y = -1 but for the positives
    scores[places] *= -1
    if loss == "squared-hinge":
        gradient = np.maximum(1 - scores, 0)
        total = np.einsum("bl,bl->", gradient, gradient, dtype=np.float64)
        gradient *= -2 / len(scores)
    else:
        total = np.logaddexp(0, -scores).sum(dtype=np.float64)
        gradient = -1 / (1 + np.exp(scores)) / len(scores)
    active = gradient != 0
    gradient *= -1
    gradient[places] *= -1
    return total / len(scores), gradient, active


def check_step(result, x, w, bias, labels, loss, gradient_of):
    """Loss, dx and the gradient of 100 labels against NumPy; `w` is from before the step. Returns the active scores."""
    value, dx = result[0], to_numpy(result[1])
    total, g, active = expected(np.ascontiguousarray((w @ x.T).T) + bias, labels, loss)
    some = np.unique(np.linspace(0, g.shape[1] - 1, 100).astype(int))
    timing.require(abs(value - total) <= 1e-4 * abs(total), f"the loss is {value}, not {total}")
    for name, got, want in (("dx", dx, (w.T @ g.T).T), ("dw", gradient_of(some), gradient_of(some, g[:, some].T @ x))):
        timing.require_close(name, got, want, 1e-3)
    return active


def set_bias(layer, x, margin):
    """A bias for which about 1 % of the scores lie inside the hinge's margin ("1 %"), or all ("all")."""
    scores = fixed_fan_in_forward(x, layer)
    xp = module_of(layer.device)
    place = scores.min() - 0.1 if margin == "all" else xp.quantile(scores[:, :: max(1, layer.n_labels // 10_000)], 0.99)
    layer.bias[:] = -1 - place


def our_step(layer, x, labels, loss, margin, note, smoke):
    """(a fused step of a fixed fan-in layer as a contestant, a dict into which its check writes the active share)."""
    set_bias(layer, x, margin)
    adam, share = Adam(LEARNING_RATE), {}
    w, bias, indices = scipy_csr.matrix_of(layer), to_numpy(layer.bias).copy(), scipy_csr.inputs_of(layer)

    def run():
        return fixed_fan_in_step(x, layer, labels, loss, adam)

    def check(result):
        moments = to_numpy(adam.state_of(layer.values).moments.m) / (1 - adam.beta1)  # after one step: gradients

        def gradient_of(some, dense=None):
            return moments[some] if dense is None else np.take_along_axis(dense, indices[some], axis=1)

        active = check_step(result, to_numpy(x), w, bias, labels, loss, gradient_of)
        share["scores"] = float(active.mean())
        share["blocks"] = float(np.logical_or.reduceat(active, np.arange(0, len(active), BLOCK)).mean())
        wanted = (0.007, 0.013) if margin == "1 %" else (0.99, 1)
        timing.require(
            smoke or wanted[0] <= share["scores"] <= wanted[1], f"{share['scores']:.2%} of the scores are active"
        )

    return timing.Contestant(run, check, note), share


def dense_step(dense_x, labels, n_labels, loss):
    """PyTorch's step of a dense layer as a contestant."""

    def check_dense(result, dense_w, dense_gradient):
        dense_w, dense_gradient = map(to_numpy, (dense_w, dense_gradient))
        before = dense_w + np.float32(LEARNING_RATE) * np.sign(
            dense_gradient
        )  # Adam's first step is as long as the rate

        def gradient_of(some, dense=None):
            return dense_gradient[some] if dense is None else dense

        check_step(result, to_numpy(dense_x), before, 0, labels, loss, gradient_of)

    return harness.offer(check_dense, pytorch.dense_step, dense_x, labels, n_labels, loss, LEARNING_RATE)


def step_row(args, x, dense_x, labels, loss, margin):
    """One comparison of the step: this loss, this share of active scores."""
    layer = FixedFanIn.random(args.labels, args.inputs, args.fan_in, seed=0, device=args.device)
    ours, share = our_step(layer, x, labels, loss, margin, f"fan-in {args.fan_in}, Adam", args.smoke)
    contestants = {"ours": ours, "PyTorch dense": dense_step(dense_x, labels, args.labels, loss)}
    timings = harness.race(contestants, args)
    memory = {}
    held = {"ours": 3 * layer.nbytes - 2 * layer.indices.nbytes, "PyTorch dense": 16 * args.labels * args.dense_width}
    for name in timings:
        with machine.memory_growth(args.device) as growth:
            contestants[name].run()
        extra = 4 * args.rows * args.labels if name != "ours" else 0  # PyTorch's scores, held between calls
        memory[name] = {"held": held[name] + extra, "growth": growth["bytes"]}
    parameters = args.parameters | {"loss": loss, "inside_margin": margin}
    parameters |= {f"active_{what}_percent": round(100 * value, 1) for what, value in share.items()}
    limits = harness.floor(args, step_work(args, share["blocks"]))
    targets = {"PyTorch dense": (6, 8)} if margin == "1 %" and not args.smoke else None
    return tables.make_row(
        "step", parameters, contestants, timings, floor=limits, targets=targets, memory=memory, device=args.device
    )


def step_work(args, active_blocks):
    """What our step has to move and compute: the forward pass without its scores, then each active block of rows."""
    connections = args.labels * args.fan_in
    active = 4 * args.rows * connections * active_blocks
    return {
        "memory: weights and moments read and written": (28 * connections, "dram_copy"),
        "L2: inputs gathered, gradients scattered": (4 * args.rows * connections + 3 * active, "l2_read"),
        "multiply-adds": (2 * args.rows * connections + active + 12 * connections, "flops"),
    }


def check_top_k(result, x, w, k):
    """Scores, and those of the ids, against those of weights w (L, H) for x (B, H)."""
    values, ids = map(to_numpy, result)
    scores = w @ x.T
    best = -np.partition(-scores, k - 1, axis=0)[:k]
    for got in (values, np.take_along_axis(scores, ids.T.astype(int), axis=0).T):
        error = np.abs(np.sort(got, axis=1) - np.sort(best.T, axis=1)).max()
        timing.require(error <= 1e-5 * np.abs(best).max(), f"a top-k score is off by {error:.3g}")


def our_top_k(layer, x, k, note):
    """The search of a fixed fan-in layer as a contestant."""
    w = scipy_csr.matrix_of(layer)
    return timing.Contestant(
        lambda: fixed_fan_in_top_k(x, layer, k), lambda result: check_top_k(result, to_numpy(x), w, k), note
    )


def dense_top_k(dense_x, n_labels, k):
    """PyTorch's dense product and topk as a contestant."""

    def check(result, w):
        check_top_k(result, to_numpy(dense_x), to_numpy(w), k)

    return harness.offer(check, pytorch.dense_top_k, dense_x, n_labels, k)


def top_k_row(args, x, dense_x):
    """The k best labels of each row."""
    layer = FixedFanIn.random(args.labels, args.inputs, args.fan_in, seed=0, device=args.device)
    contestants = {"ours": our_top_k(layer, x, args.k, f"fan-in {args.fan_in}")}
    contestants["PyTorch dense"] = dense_top_k(dense_x, args.labels, args.k)
    timings = harness.race(contestants, args)
    work = forward.work(args.rows, args.inputs, args.labels, args.fan_in)
    work = {what: amount for what, amount in work.items() if not what.startswith("memory")}
    work["memory: weights read"] = (8 * args.labels * args.fan_in, "dram_copy")
    limits = harness.floor(args, work)
    return tables.make_row("top_k", args.parameters, contestants, timings, floor=limits, device=args.device)


def main(argv=None):
    args = harness.arguments("step", __doc__, SIZES, argv)
    x = forward.inputs(args.rows, args.inputs, args.device)
    dense_x = forward.inputs(args.rows, args.dense_width, args.device)
    labels = targets_of(args.rows, args.labels, args.label_rows, args.device)
    cases = (("squared-hinge", "1 %"), ("squared-hinge", "all"), ("bce", "all"))
    rows = [harness.publish(args, step_row(args, x, dense_x, labels, loss, margin)) for loss, margin in cases]
    return [*rows, harness.publish(args, top_k_row(args, x, dense_x))]


if __name__ == "__main__":
    main()
