"""For each public name a small random legal call and a check of its result; `calls` then spoils its arguments."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse
import sklearn

import sparsemax_nb as s
from sparsemax_nb import data, metrics, train

from . import dense

CASES = {}


@dataclasses.dataclass
class Call:
    """A call: its positional and keyword arguments, the object that a method belongs to, what may be written to."""

    function: Callable
    args: list
    kwargs: dict = dataclasses.field(default_factory=dict)
    me: object = None
    writes: tuple = ()  # names of arguments, "self" for the object
    changed_by: tuple = ()  # exceptions behind which there may be changes, as documented
    check: Callable | None = None  # check(result, *args, **kwargs): AssertionError where the result is wrong


def of(*names):
    """Register a function of (random) that makes a `Call`, or one of (random, name) for several names."""

    def register(make):
        for name in names:
            CASES[name] = make if len(names) == 1 else lambda random, name=name: make(random, name)
        return make

    return register


def floats(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


def ids(random, high, *shape):
    return random.integers(0, high, shape).astype(np.int32)


def matrix(random, n_rows, n_labels, least=0):
    a = random.random((n_rows, n_labels)) < 0.3
    if least:
        a[np.arange(n_rows), random.integers(n_labels, size=n_rows)] = True
    return scipy.sparse.csr_matrix(a.astype(np.float32))


def as_labels(random, m):
    """The matrix itself, or `Labels` of it."""
    return m if random.random() < 0.6 else s.Labels(m.indptr.astype(np.int32), m.indices.astype(np.int32))


def sizes(random):
    """B, H, L, K of a small problem."""
    n_inputs = int(random.integers(2, 9))
    return int(random.integers(0, 5)), n_inputs, int(random.integers(1, 12)), int(random.integers(1, n_inputs // 2 + 1))


def a_layer(random, n_labels, n_inputs, fan_in):
    seed = int(random.integers(100))
    if random.random() < 0.6:
        layer = s.FixedFanIn.random(n_labels, n_inputs, fan_in, seed)
    else:
        dtype = "float32" if random.random() < 0.6 else "bfloat16"
        layer = s.GroupSharedFanIn.random(
            n_labels, n_inputs, fan_in, int(random.integers(1, n_labels + 1)), seed, dtype=dtype
        )
    layer.bias[:] = floats(random, n_labels)
    if random.random() < 0.05:
        layer.bias[0] = np.nan
    if random.random() < 0.1:
        for array in (layer.arrays.values, layer.bias):
            array.flags.writeable = random.random() < 0.5
        layer.values.flags.writeable = layer.arrays.values.flags.writeable
    return layer


def an_optimizer(random):
    return s.Adam(0.01) if random.random() < 0.5 else s.SGD(0.1)


# ---------------------------------------------------------------- fixed fan-in


@of("fixed_fan_in_forward")
def _(r):
    b, h, n, k = sizes(r)
    out = {"out": np.zeros((b, n), np.float32)} if r.random() < 0.4 else {}
    return Call(
        s.fixed_fan_in_forward, [floats(r, b, h), a_layer(r, n, h, k)], out, writes=("out",), check=dense.forward
    )


@of("fixed_fan_in_backward")
def _(r):
    b, h, n, k = sizes(r)
    return Call(s.fixed_fan_in_backward, [floats(r, b, h), a_layer(r, n, h, k), floats(r, b, n)], check=dense.backward)


@of("fixed_fan_in_top_k")
def _(r):
    b, h, n, k = sizes(r)
    return Call(
        s.fixed_fan_in_top_k, [floats(r, b, h), a_layer(r, n, h, k), int(r.integers(1, n + 1))], check=dense.layer_top_k
    )


@of("fixed_fan_in_step")
def _(r):
    b, h, n, k = sizes(r)
    loss = str(r.choice(["squared-hinge", "bce", "softmax"]))
    args = [floats(r, b, h), a_layer(r, n, h, k), as_labels(r, matrix(r, b, n)), loss, an_optimizer(r)]
    return Call(
        s.fixed_fan_in_step, args, writes=("layer", "optimizer"), changed_by=(FloatingPointError,), check=dense.step
    )


def a_linear_layer(r, n, f):
    weights = matrix(r, n, f).multiply(floats(r, n, f)).tocsr().astype(np.float32)
    return s.SparseLinear(weights, floats(r, n) if r.random() < 0.5 else None)


def sparse_points(r, b, f):
    return matrix(r, b, f).multiply(floats(r, b, f)).tocsr().astype(np.float32)


@of("SparseLinear")
def _(r):
    _, f, n, _ = sizes(r)
    layer = a_linear_layer(r, n, f)
    return Call(s.SparseLinear, [layer.weights, layer.bias], check=dense.linear_layer)


@of("SparseLinear.choose")
def _(r):
    b, f, n, k = sizes(r)
    options = {"per_point": float(r.random() * 2), "at_least": k}
    return Call(
        s.SparseLinear.choose, [abs(sparse_points(r, b, f)), matrix(r, b, n)], options, check=dense.linear_choice
    )


@of("sparse_linear_forward")
def _(r):
    b, f, n, _ = sizes(r)
    out = {"out": np.zeros((b, n), np.float32)} if r.random() < 0.4 else {}
    args = [sparse_points(r, b, f), a_linear_layer(r, n, f)]
    return Call(s.sparse_linear_forward, args, out, writes=("out",), check=dense.linear_forward)


@of("sparse_linear_top_k")
def _(r):
    b, f, n, _ = sizes(r)
    args = [sparse_points(r, b, f), a_linear_layer(r, n, f), int(r.integers(1, n + 1))]
    return Call(s.sparse_linear_top_k, args, check=dense.linear_top_k)


@of("CoOccurrence")
def _(r):
    b, _, n, _ = sizes(r)
    return Call(s.CoOccurrence, [matrix(r, b, n)], check=dense.co_occurrence)


@of("CoOccurrence.extended")
def _(r):
    b, _, n, _ = sizes(r)
    before, more = matrix(r, b, n), matrix(r, b, n + int(r.integers(3)))
    me = s.CoOccurrence(before)
    return Call(me.extended, [more], me=me, check=dense.more_co_occurrence(before))


@of("rerank")
def _(r):
    b, _, n, _ = sizes(r)
    k = int(r.integers(1, min(n, 32) + 1))
    scores = np.ascontiguousarray(-np.sort(-floats(r, b, k), axis=1))
    ids = np.array([r.permutation(n)[:k] for _ in range(b)], np.int32)
    args = [scores, ids, s.CoOccurrence(matrix(r, b, n)), int(r.integers(1, k + 1))]
    return Call(s.rerank, args, {"weight": float(r.random())}, check=dense.reranked)


@of("sparse_linear_step")
def _(r):
    b, f, n, _ = sizes(r)
    args = [sparse_points(r, b, f), a_linear_layer(r, n, f), as_labels(r, matrix(r, b, n))]
    options = {"C": float(r.random() + 0.1), "slack": float(r.random())}
    if r.random() < 0.5:
        options["sample_weight"] = r.integers(0, 3, b) if r.random() < 0.5 else r.random(b)
    if r.random() < 0.5:
        duals = abs(sparse_points(r, b, n))
        options["duals"] = duals if r.random() < 0.5 else (duals.indptr, duals.indices, duals.data)
    return Call(s.sparse_linear_step, args, options, writes=("layer",), check=dense.linear_step)


def unit_rows(r, n, d):
    """Rows of length 1, some of length 0."""
    x = floats(r, n, d)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[r.random(n) < 0.2] = 0
    return x


def a_neighbor_kernel(r, n_points, d, n):
    duals = matrix(r, n_points, n).multiply(floats(r, n_points, n)).tocsr().astype(np.float32)
    options = {"power": float(1 + 5 * r.random()), "n_neighbors": int(r.integers(1, 12))}
    return s.NeighborKernel(unit_rows(r, n_points, d), duals, floats(r, n) if r.random() < 0.5 else None, **options)


def padded_duals(r, n_points, n, width):
    width = min(n, width)
    labels = np.array([r.permutation(n)[:width] for _ in range(n_points)], np.int32)
    return ids(r, width + 1, n_points), labels, floats(r, n_points, width)


@of("nearest_neighbors")
def _(r):
    b, d, n, _ = sizes(r)
    return Call(s.nearest_neighbors, [floats(r, b, d), floats(r, n, d), int(r.integers(1, n + 1))], check=dense.nearest)


@of("NeighborKernel")
def _(r):
    n_points, d, n, k = sizes(r)
    layer = a_neighbor_kernel(r, n_points + 1, d, n)
    duals = layer.duals if r.random() < 0.5 else padded_duals(r, n_points + 1, n, k)
    options = {"power": layer.power, "n_neighbors": layer.n_neighbors}
    return Call(s.NeighborKernel, [layer.points, duals, layer.bias], options, check=dense.neighbor_kernel)


@of("neighbor_kernel_forward")
def _(r):
    b, d, n, k = sizes(r)
    out = {"out": np.zeros((b, n), np.float32)} if r.random() < 0.4 else {}
    args = [unit_rows(r, b, d), a_neighbor_kernel(r, 3 * k, d, n)]
    return Call(s.neighbor_kernel_forward, args, out, writes=("out",), check=dense.neighbor_kernel_forward)


@of("neighbor_kernel_top_k")
def _(r):
    b, d, n, k = sizes(r)
    args = [unit_rows(r, b, d), a_neighbor_kernel(r, 3 * k, d, n), int(r.integers(1, n + 1))]
    return Call(s.neighbor_kernel_top_k, args, check=dense.neighbor_kernel_top_k)


@of("neighbor_kernel_step")
def _(r):
    b, m, n, k = sizes(r)
    n_points = b + 3
    neighbors = ids(r, n_points + 1, n_points, m) - 1
    neighbors[:, 0] = np.arange(n_points)
    rows, kernels = r.permutation(n_points)[:b].astype(np.int32), r.random((n_points, m)).astype(np.float32)
    args = [rows, neighbors, kernels, padded_duals(r, n_points, n, k), as_labels(r, matrix(r, b, n)), n]
    options = {"C": float(r.random() + 0.1), "slack": float(r.random())}
    if r.random() < 0.5:
        options["sample_weight"] = r.integers(0, 3, b) if r.random() < 0.5 else r.random(b)
    return Call(s.neighbor_kernel_step, args, options, writes=("duals",), check=dense.neighbor_kernel_step)


@of("dense_linear_step")
def _(r):
    b, d, n, _ = sizes(r)
    args = [floats(r, b, d), floats(r, n, d), floats(r, n), as_labels(r, matrix(r, b, n))]
    options = {"C": float(r.random() + 0.1), "slack": float(r.random())}
    if r.random() < 0.5:
        options["sample_weight"] = r.integers(0, 3, b) if r.random() < 0.5 else r.random(b)
    if r.random() < 0.5:
        duals = abs(sparse_points(r, b, n))
        options["duals"] = duals if r.random() < 0.5 else (duals.indptr, duals.indices, duals.data)
    if r.random() < 0.5:
        options["search"] = bool(r.random() < 0.5)
    return Call(
        s.dense_linear_step,
        args,
        options,
        writes=("weights",),
        changed_by=(FloatingPointError,),
        check=dense.dense_step,
    )


@of("rewire")
def _(r):
    _, h, n, k = sizes(r)
    optimizer = None if r.random() < 0.5 else an_optimizer(r)
    return Call(
        s.rewire,
        [a_layer(r, n, h, k), float(r.random() * 0.5), int(r.integers(9)), optimizer],
        {"step": int(r.integers(9))},
        writes=("layer", "optimizer"),
        check=dense.rewired,
    )


@of("FixedFanIn")
def _(r):
    _, h, n, k = sizes(r)
    layer = s.FixedFanIn.random(n, h, k, 0)
    return Call(s.FixedFanIn, [h, layer.indices, layer.values, layer.bias], check=dense.layer_made)


@of("GroupSharedFanIn")
def _(r):
    _, h, n, k = sizes(r)
    g = int(r.integers(1, n + 1))
    layer = s.GroupSharedFanIn.random(n, h, k, g, 0)
    return Call(
        s.GroupSharedFanIn, [h, layer.indices, layer.values, layer.bias, g], {"seed": 3}, check=dense.layer_made
    )


@of("FixedFanIn.random")
def _(r):
    _, h, n, k = sizes(r)
    return Call(s.FixedFanIn.random, [n, h, k, int(r.integers(9))], {"device": "cpu"}, check=dense.random_layer)


@of("GroupSharedFanIn.random")
def _(r):
    _, h, n, k = sizes(r)
    return Call(
        s.GroupSharedFanIn.random, [n, h, k, int(r.integers(1, n + 1)), int(r.integers(9))],
        {"dtype": "float32", "device": "cpu"}, check=dense.random_layer,
    )  # fmt: skip


@of("FixedFanIn.to_dense", "GroupSharedFanIn.to_dense")
def _(r, name):
    _, h, n, k = sizes(r)
    layer = a_layer(r, n, h, k)
    return Call(layer.to_dense, [], me=layer)


@of("group_labels")
def _(r):
    n, h, labels = int(r.integers(1, 7)), int(r.integers(1, 6)), int(r.integers(1, 9))
    x = floats(r, n, h) if r.random() < 0.5 else scipy.sparse.csr_matrix(np.abs(floats(r, n, h)))
    by = ("similar", "frequency", "random")[r.integers(3)]
    return Call(
        s.group_labels,
        [x, matrix(r, n, labels), int(r.integers(1, labels + 1)), by, int(r.integers(9))],
        check=dense.grouped,
    )


# ---------------------------------------------------------------- optimizers


def _optimizer_case(make):
    def case(r, name):
        kind = getattr(s, name.split(".")[0])
        optimizer, w = kind(0.1), floats(r, int(r.integers(1, 5)), 3)
        for _ in range(r.integers(3)):
            optimizer.step(w, floats(r, *w.shape))
        if r.random() < 0.05:
            for moment in optimizer.state_of(w).moments:
                moment.flags.writeable = False
        return make(r, optimizer, w, name.split(".")[1])

    return case


@of(*[f"{kind}.{method}" for kind in ("SGD", "Adam") for method in ("state_of", "begin_step", "end_step")])
@_optimizer_case
def _(r, optimizer, w, method):
    return Call(getattr(optimizer, method), [w], me=optimizer, writes=("self",))


@of("SGD.check_writable", "Adam.check_writable")
@_optimizer_case
def _(r, optimizer, w, method):
    return Call(optimizer.check_writable, [], {"w": w}, me=optimizer)


@of("SGD.replace", "Adam.replace")
@_optimizer_case
def _(r, optimizer, w, method):
    def replace(old, new):  # what goes wrong inside `take` is the caller's
        return optimizer.replace(old, new, lambda a: a[:1])

    return Call(replace, [w, w[:1].copy()], me=optimizer, writes=("self",))


@of("SGD.scale_rate", "Adam.scale_rate")
@_optimizer_case
def _(r, optimizer, w, method):
    return Call(optimizer.scale_rate, [w, 0.5], me=optimizer, writes=("self",))


@of("SGD.step", "Adam.step")
@_optimizer_case
def _(r, optimizer, w, method):
    return Call(optimizer.step, [w, floats(r, *w.shape)], me=optimizer, writes=("self", "array"))


@of("SGD.step_rows", "Adam.step_rows")
@_optimizer_case
def _(r, optimizer, w, method):
    rows = r.permutation(len(w))[: r.integers(len(w) + 1)].astype(np.int32)
    return Call(optimizer.step_rows, [w, rows, floats(r, len(rows), 3)], me=optimizer, writes=("self", "array"))


@of("SGD")
def _(r):
    return Call(s.SGD, [0.1])


@of("Adam")
def _(r):
    return Call(s.Adam, [0.1, 0.9, 0.999, 1e-8])


# ---------------------------------------------------------------- softmax


def targets_of(r, b, n):
    return ids(r, n, b) if r.random() < 0.5 else as_labels(r, matrix(r, b, n))


@of("softmax_cross_entropy")
def _(r):
    b, d, n, _ = sizes(r)
    bias = None if r.random() < 0.5 else floats(r, n)
    return Call(
        s.softmax_cross_entropy, [floats(r, b, d), floats(r, n, d), targets_of(r, b, n), bias], {"ignore_index": -1},
        check=dense.cross_entropy,
    )  # fmt: skip


@of("target_ranks")
def _(r):
    b, d, n, _ = sizes(r)
    return Call(s.target_ranks, [floats(r, b, d), floats(r, n, d), ids(r, n, b)], check=dense.ranks)


@of("sampled_softmax")
def _(r):
    b, d, n, _ = sizes(r)
    m, targets = int(r.integers(1, 5)), targets_of(r, b, n)
    shape = (m,) if r.random() < 0.4 else (b, m)
    n_targets = len(targets) if isinstance(targets, np.ndarray) else targets.indices.size
    log_q = lambda *shape: np.log(r.uniform(0.01, 1, shape)).astype(np.float32)  # noqa: E731
    return Call(
        s.sampled_softmax,
        [floats(r, b, d), floats(r, n, d), targets, ids(r, n, *shape), log_q(*shape), log_q(n_targets)],
        {
            "correction": ("paper", "importance")[r.integers(2)],
            "mask_hits": bool(r.random() < 0.5),
            "reduction": "mean",
        },
        check=dense.sampled,
    )


@of("FullSoftmax")
def _(r):
    _, d, n, _ = sizes(r)
    return Call(
        s.FullSoftmax,
        [floats(r, n, d), floats(r, n)],
        check=lambda made, w, bias=None: dense.same_top_k(made, s.FullSoftmax, w, bias),
    )


@of("SVDSoftmax")
def _(r):
    _, d, n, _ = sizes(r)
    return Call(
        s.SVDSoftmax,
        [floats(r, n, d), floats(r, n)],
        {"width": int(r.integers(1, d + 1)), "n_candidates": int(r.integers(1, n + 1)), "share": 0.5},
    )


@of("DSoftmax")
def _(r):
    _, d, n, _ = sizes(r)
    return Call(s.DSoftmax, [floats(r, n, d), ids(r, 50, n), floats(r, n)], {"shares": [0.25, 0.75], "widths": [d, 1]})


@of("FullSoftmax.top_k", "SVDSoftmax.top_k", "DSoftmax.top_k")
def _(r, name):
    b, d, n, _ = sizes(r)
    w, bias, kind = floats(r, n, d), floats(r, n), name.split(".")[0]
    me = {
        "FullSoftmax": lambda: s.FullSoftmax(w, bias),
        "SVDSoftmax": lambda: s.SVDSoftmax(w, bias, width=d, n_candidates=n),
        "DSoftmax": lambda: s.DSoftmax(w, np.arange(n), bias, shares=[1.0], widths=[d]),
    }[kind]()
    return Call(
        me.top_k,
        [floats(r, b, d), int(r.integers(1, n + 3))],
        me=me,
        check=lambda out, h, k: dense.softmax_top_k(out, h, w, bias, k),
    )


# ---------------------------------------------------------------- samplers

N, D = 9, 4
SAMPLERS = {
    "UniformSampler": lambda r: s.UniformSampler(N),
    "LogUniformSampler": lambda r: s.LogUniformSampler(N, ranks=r.permutation(N)),
    "UnigramSampler": lambda r: s.UnigramSampler(r.integers(0, 3, N) + (np.arange(N) == 0)),
    "SphereSampler": lambda r: s.SphereSampler(floats(r, N, D)),
    "RFFSampler": lambda r: s.RFFSampler(floats(r, N, D)),
    "LSHSampler": lambda r: s.LSHSampler(floats(r, N, D)),
    "InvertedMultiIndex": lambda r: s.InvertedMultiIndex.build(
        floats(r, N, D), 3, ("rq", "pq")[r.integers(2)], ("uniform", "exact")[int(r.random() < 0.3)], n_iterations=1
    ),
}


@of(*[f"{name}.sample" for name in SAMPLERS])
def _(r, name):
    me = SAMPLERS[name.split(".")[0]](r)
    h = floats(r, int(r.integers(0, 4)), D)
    return Call(
        me.sample, [h, int(r.integers(1, 6)), int(r.integers(99)), int(r.integers(9))], me=me,
        check=lambda out, h, n_samples, seed, step=0: dense.drawn(out, me, h, n_samples, seed, step),
    )  # fmt: skip


@of(*[f"{name}.log_prob" for name in SAMPLERS])
def _(r, name):
    me = SAMPLERS[name.split(".")[0]](r)
    b, m = int(r.integers(0, 4)), int(r.integers(0, 6))
    asked = ids(r, N, m) if r.random() < 0.5 else ids(r, N, b, m)
    return Call(
        me.log_prob, [floats(r, b, D), asked], me=me, check=lambda out, h, ids: dense.log_probs(out, me, h, ids)
    )


@of("UniformSampler")
def _(r):
    return Call(s.UniformSampler, [5])


@of("LogUniformSampler")
def _(r):
    return Call(s.LogUniformSampler, [5], {"ranks": r.permutation(5), "device": "cpu"}, check=dense.sampler_made)


@of("UnigramSampler")
def _(r):
    return Call(s.UnigramSampler, [r.integers(0, 5, 6) + 1, 0.75], {"device": "cpu"}, check=dense.sampler_made)


@of("SphereSampler")
def _(r):
    return Call(s.SphereSampler, [floats(r, N, D), 10.0], check=dense.sampler_made)


@of("RFFSampler")
def _(r):
    return Call(s.RFFSampler, [floats(r, N, D), 8, 1], check=dense.sampler_made)


@of("LSHSampler")
def _(r):
    return Call(s.LSHSampler, [floats(r, N, D), 3, 4, 0.2, 1], check=dense.sampler_made)


@of("InvertedMultiIndex")
def _(r):
    k, n, kind = int(r.integers(1, 5)), int(r.integers(1, 9)), ("rq", "pq")[r.integers(2)]
    residual = ("uniform", "popularity", "exact")[r.integers(3)]
    width = 6 if kind == "pq" else 3
    return Call(
        s.InvertedMultiIndex,
        [
            [floats(r, k, 3), floats(r, k, 3)], ids(r, k, n, 2), kind, residual,
            np.ones(n) if residual == "popularity" else None, None if r.random() < 0.5 else r.random(n) + 0.1,
            floats(r, n, width) if residual == "exact" else None,
        ],
        {"metric": [(np.eye(3, dtype=np.float32),) * 2] * 2} if r.random() < 0.3 else {},
        check=dense.sampler_made,
    )  # fmt: skip


@of("InvertedMultiIndex.build")
def _(r):
    n, residual = int(r.integers(1, 12)), ("uniform", "popularity", "exact")[r.integers(3)]
    return Call(
        s.InvertedMultiIndex.build,
        [floats(r, n, D), int(r.integers(1, n + 1)), ("rq", "pq")[r.integers(2)], residual, int(r.integers(9))],
        {
            "popularity": np.arange(1.0, n + 1) if residual == "popularity" else None,
            "class_weights": None if r.random() < 0.5 else np.arange(1, n + 1),
            "h": None if r.random() < 0.5 else floats(r, 5, D),
            "n_iterations": 2,
        },
        check=dense.sampler_made,
    )


@of("InvertedMultiIndex.update")
def _(r):
    me = SAMPLERS["InvertedMultiIndex"](r)
    return Call(me.update, [floats(r, N, D), 2], {"h": floats(r, 5, D)}, me=me, writes=("self",))


# ---------------------------------------------------------------- DS-Softmax


def packed_arrays(r):
    e, d, n = int(r.integers(1, 4)), int(r.integers(1, 5)), int(r.integers(1, 9))
    held = [np.flatnonzero(r.random(n) < 0.7).astype(np.int32) for _ in range(e)]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in held])]).astype(np.int32)
    every = np.concatenate(held).astype(np.int32)
    return [floats(r, e, d), starts, every, floats(r, len(every), d), n]


def experts(r):
    e, d, n = int(r.integers(1, 4)), int(r.integers(1, 5)), int(r.integers(1, 9))
    made = s.SparseExperts.dense(floats(r, n, d), e, seed=int(r.integers(9)))
    if r.random() < 0.05:
        getattr(made, ("gate", "rows")[r.integers(2)]).flags.writeable = False
    return made


def holder(r, name):
    return s.PackedDSSoftmax(*packed_arrays(r)) if name.startswith("Packed") else experts(r)


@of("PackedDSSoftmax", "SparseExperts")
def _(r, name):
    return Call(getattr(s, name), packed_arrays(r))


@of(*[f"{kind}.{m}" for kind in ("PackedDSSoftmax", "SparseExperts") for m in ("choose", "utilisation", "speed_up")])
def _(r, name):
    me = holder(r, name)
    return Call(getattr(me, name.split(".")[1]), [floats(r, int(r.integers(0, 5)), me.width)], me=me)


@of("PackedDSSoftmax.top_k", "SparseExperts.top_k")
def _(r, name):
    me = holder(r, name)
    return Call(
        me.top_k, [floats(r, int(r.integers(0, 5)), me.width), int(r.integers(1, 12))], me=me,
        check=lambda out, h, k: dense.expert_top_k(out, me, h, k),
    )  # fmt: skip


@of("PackedDSSoftmax.speed_up_at", "SparseExperts.speed_up_at")
def _(r, name):
    me = holder(r, name)
    return Call(me.speed_up_at, [np.full(me.n_experts, 1 / me.n_experts)], me=me)


@of("PackedDSSoftmax.save", "SparseExperts.save")
def _(r, name):
    me = holder(r, name)
    return Call(me.save, [Path("ds.safetensors")], me=me)


@of("PackedDSSoftmax.load", "SparseExperts.load")
def _(r, name):
    holder(r, name).save("ds.safetensors")
    return Call(getattr(s, name.split(".")[0]).load, [Path("ds.safetensors"), "cpu"])


@of("SparseExperts.dense")
def _(r):
    return Call(s.SparseExperts.dense, [floats(r, int(r.integers(1, 6)), int(r.integers(1, 5))), 2, 3])


@of("SparseExperts.step")
def _(r):
    me, b = experts(r), int(r.integers(0, 5))
    return Call(
        me.step, [floats(r, b, me.width), targets_of(r, b, me.n_classes), s.Adam(0.01)],
        {"class_lasso": 1e-3, "expert_lasso": 1e-3, "balance": 1.0, "noise": 0.1, "seed": 3}, me=me,
        writes=("self", "optimizer", "targets") if r.random() < 0 else ("self", "optimizer"),
    )  # fmt: skip


@of("SparseExperts.prune")
def _(r):
    me = experts(r)
    return Call(me.prune, [0.7, s.Adam(0.01)], me=me, writes=("self", "optimizer"))


@of("SparseExperts.split")
def _(r):
    me = experts(r)
    return Call(me.split, [s.Adam(0.01), 3], me=me, writes=("self", "optimizer"))


@of("SparseExperts.pack")
def _(r):
    me = experts(r)
    return Call(me.pack, [], me=me)


@of("Labels")
def _(r):
    return Call(s.Labels, [np.array([0, 1], np.int32), np.array([0], np.int32)])


# ---------------------------------------------------------------- metrics


@of(
    "precision_at_k", "ndcg_at_k", "recall_at_k", "f1_at_k", "map_at_k", "psp_at_k", "coverage_at_k", "macro_f1_at_k",
    "per_label", "hits_at_k",
)  # fmt: skip
def _(r, name):
    n, labels, width = int(r.integers(0, 5)), int(r.integers(1, 8)), int(r.integers(1, 5))
    predicted = np.array([r.permutation(max(labels, width))[:width] for _ in range(n)], np.int32).reshape(n, width)
    predicted[predicted >= labels] = -1
    args = [
        predicted,
        matrix(r, n, labels),
        *([r.uniform(0.1, 1, labels)] if name == "psp_at_k" else []),
        int(r.integers(1, width + 1)),
    ]
    more = {"excluded": matrix(r, n, labels)} if r.random() < 0.3 else {}
    return Call(
        getattr(metrics, name), args, more, check=lambda out, *args, **more: dense.metric(name, out, *args, **more)
    )


@of("sample_f1", "micro_f1", "macro_f1")
def _(r, name):
    n, labels = int(r.integers(0, 5)), int(r.integers(1, 8))
    args = [matrix(r, n, labels), matrix(r, n, labels)]
    return Call(getattr(metrics, name), args, check=lambda out, *args: dense.set_metric(name, out, *args))


@of("expected_calibration_error", "reliability")
def _(r, name):
    shape = tuple(r.integers(0, 5, int(r.integers(1, 3))))
    args = [r.random(shape, np.float32), r.random(shape) < 0.5, int(r.integers(1, 20))]
    return Call(getattr(metrics, name), args, check=lambda out, *args: dense.calibration(name, out, *args))


@of("propensities")
def _(r):
    return Call(metrics.propensities, [r.integers(0, 50, 6), 50, 0.55, 1.5], check=dense.propensity)


@of("ranking_metrics")
def _(r):
    return Call(metrics.ranking_metrics, [ids(r, 30, int(r.integers(0, 9))), 10], check=dense.rank_figures)


@of("popularity_ranks")
def _(r):
    return Call(metrics.popularity_ranks, [r.integers(0, 9, 6), ids(r, 6, 4)], check=dense.popularity)


@of("unigram_perplexity")
def _(r):
    return Call(metrics.unigram_perplexity, [r.integers(0, 9, 6), ids(r, 6, 4)], check=dense.unigram)


# ---------------------------------------------------------------- data


@of("Tfidf")
def _(r):
    return Call(data.Tfidf, [True])


def counts(r, n=None):
    return scipy.sparse.csr_matrix(r.integers(0, 3, (int(r.integers(1, 6)) if n is None else n, 5)).astype(np.float32))


@of("Tfidf.fit", "Tfidf.fit_transform", "Tfidf.transform")
def _(r, name):
    me, method = data.Tfidf(bool(r.random() < 0.5)), name.split(".")[1]
    if method == "transform":
        me.fit(counts(r))
    return Call(getattr(me, method), [counts(r)], me=me, writes=("self",), check=dense.tfidf(me, method))


TEXTS = ["old maps of Rome", "old maps", "", "Rome, old and new", "\u4e2d\u6587 E\u0301cole"]


def vectorizer(r):
    hash_bits = None if r.random() < 0.6 else int(r.integers(1, 9))
    return data.TextVectorizer(
        word_pairs=bool(r.random() < 0.5), char_ngrams=int(r.integers(0, 5)), hash_bits=hash_bits
    )


@of("TextVectorizer")
def _(r):
    def construct_and_fit(**params):
        return data.TextVectorizer(**params).fit(TEXTS)

    return Call(construct_and_fit, [], vars(vectorizer(r)))


@of(*[f"TextVectorizer.{method}" for method in ("fit", "fit_transform", "transform", "extend")])
def _(r, name):
    me, method = vectorizer(r), name.split(".")[1]
    if method in ("transform", "extend"):
        me.fit(TEXTS[:3])
    return Call(getattr(me, method), [TEXTS], me=me, writes=("self",), check=dense.text_weights(me, method))


@of("TextVectorizer.feature_names", "TextVectorizer.parts")
def _(r, name):
    method, me = name.split(".")[1], vectorizer(r)
    me.hash_bits = me.hash_bits if method == "parts" else None
    return Call(getattr(me.fit(TEXTS), method), TEXTS[:1] if method == "parts" else [], me=me)


@of("fingerprint")
def _(r):
    m = counts(r)
    return Call(data.fingerprint, [m if r.random() < 0.5 else m.toarray(), matrix(r, m.shape[0], 4)])


@of("power_law_labels")
def _(r):
    return Call(data.power_law_labels, [4, 9, 2, 1.0, 3])


@of("bag_of_words")
def _(r):
    return Call(data.bag_of_words, [4, 9, 5, 8, 2, 3])


@of("hierarchy")
def _(r):
    return Call(data.hierarchy, [2, 3, 2, 4, 5])


def vocabulary():
    return data.Vocabulary(["a", "b", "c", "<unk>", "<eos>"])


@of("Vocabulary")
def _(r):
    return Call(data.Vocabulary, [["a", "b", "<unk>"], False])


@of("Vocabulary.build")
def _(r):
    return Call(data.Vocabulary.build, [[["a", "b"], ["a"]], 1, True])


@of("Vocabulary.of_counts")
def _(r):
    return Call(data.Vocabulary.of_counts, [{"a": 2, "<eos>": 1}, 1, True, False])


@of("Vocabulary.encode")
def _(r):
    me = vocabulary()
    return Call(me.encode, [[["a", "x"], ["b"]]], me=me)


@of("Vocabulary.find")
def _(r):
    me = vocabulary()
    return Call(me.find, [["a", "x"]], me=me)


@of("Vocabulary.decode")
def _(r):
    me = vocabulary()
    return Call(
        me.decode,
        [ids(r, 5, 3)],
        me=me,
        check=lambda out, ids: dense.equal(out, [vocabulary().words[int(i)] for i in ids]),
    )


@of("Vocabulary.split")
def _(r):
    me = vocabulary()
    return Call(me.split, ["a b, c"], me=me)


def sequences(r):
    return data.Sequences("x", data.Vocabulary(list("abcdefgh")), np.array([0, 3, 3, 7]), ids(r, 8, 7))


@of("Sequences")
def _(r):
    value = sequences(r)
    return Call(data.Sequences, ["x", value.vocabulary, value.indptr, value.items])


@of("leave_last_out")
def _(r):
    return Call(data.leave_last_out, [sequences(r)])


@of("Corpus", "LabeledTexts", "TextCorpus", "XCData")
def _(r, name):
    n = {"Corpus": 6, "LabeledTexts": 2, "TextCorpus": 6, "XCData": 3}[name]
    return Call(getattr(data, name), [counts(r)] * n)


@of("read_xc")
def _(r):
    data.write_xc("some.txt", counts(r, 3), matrix(r, 3, 4))
    return Call(data.read_xc, [Path("some.txt")], {"n_points": None if r.random() < 0.5 else 2})


@of("write_xc")
def _(r):
    def check(_, path, features, labels):
        if not Path(path).is_file():  # a device, which keeps nothing
            return
        back = data.read_xc(path)
        dense.close(back.features.toarray(), features.toarray(), 1e-6)
        dense.equal(back.labels.toarray(), labels.toarray())

    return Call(data.write_xc, [Path("some.txt"), counts(r, 3), matrix(r, 3, 4)], check=check)


@of("read_names", "read_words")
def _(r, name):
    Path("some.txt").write_text("a b\nc, d\n")
    return Call(getattr(data, name), [Path("some.txt")], {"raw": False} if name == "read_words" else {})


@of("read_texts")
def _(r):
    lines = {"corpus.tsv": "a b\tx\ty z\nc\n", "corpus.jsonl": '{"a": "a b", "b": ["x", "y z"]}\n{"a": "c"}\n'}
    name = r.choice(list(lines))
    Path(name).write_text(lines[name])
    fields = {"text": "a", "labels": "b"} if name == "corpus.jsonl" or r.random() < 0.5 else {}
    return Call(data.read_texts, [Path(name)], {"n_points": None if r.random() < 0.5 else 1, **fields})


@of("read_vocabulary")
def _(r):
    skos = '<a:b> a s:Concept; s:prefLabel "c"@en.'
    files = {"names.tsv": "a\tb\tc\nd\n", "names.ttl": f"@prefix s: <http://www.w3.org/2004/02/skos/core#>.\n{skos}\n"}
    name = r.choice(list(files))
    Path(name).write_text(files[name])
    return Call(data.read_vocabulary, [Path(name)], {"language": "en" if name.endswith("ttl") else None})


@of("load")
def _(r):
    for part, short in (("train", "trn"), ("test", "tst")):
        for file in (f"{part}.txt", f"{short}_X_Xf.txt", f"{short}_X_Y.txt"):
            Path(file).unlink(missing_ok=True)
        if r.random() < 0.5:
            data.write_xc(f"{part}.txt", counts(r, 3), matrix(r, 3, 4))
        else:
            Path(f"{short}_X_Xf.txt").write_text(f"2 {counts(r, 3).shape[1]}\n0:1 1:0.5\n\n")
            Path(f"{short}_X_Y.txt").write_text("2 4\n3:1\n0:1.0\n")
        Path(f"filter_labels_{part}.txt").write_text("1 3\n0 0\n")
    return Call(data.load, [Path()])


@of("load_sequences")
def _(r):
    Path("sequences.txt").write_text("a b c\nb\nc c a\n")
    return Call(
        data.load_sequences, [Path("sequences.txt"), 1, None if r.random() < 0.5 else data.Vocabulary(list("abc"))]
    )


@of("load_text")
def _(r):
    for part in ("train", "valid", "test"):
        Path(part).write_text("a b c a\nb a\n")
    return Call(data.load_text, [Path(), 1, None if r.random() < 0.5 else vocabulary(), False])


# ---------------------------------------------------------------- estimators

X = scipy.sparse.csr_matrix(np.random.default_rng(0).integers(0, 3, (12, 6)).astype(np.float32))
Y = matrix(np.random.default_rng(1), 12, 5, least=1)
TEXT = np.random.default_rng(2).integers(0, 7, 90).astype(np.int32)
H, T = np.random.default_rng(3).standard_normal((20, 4), np.float32), np.arange(20, dtype=np.int32) % 6
POSITIVE = np.abs(H)  # casts to unsigned integers keep it small
LINES = (TEXTS * 3)[:12]
NAMES = [[f"name {i}" for i in row.indices] for row in Y]
SMALL = {
    "Classifier": {
        "architecture": "network",
        "embedding": 4,
        "intermediate": 8,
        "fan_in": 2,
        "epochs": 1,
        "batch_size": 4,
        "dropout": 0.0,
        "device": "cpu",
        "progress": False,
    },
    "LanguageModel": {
        "width": 8,
        "n_layers": 1,
        "n_codewords": 2,
        "n_samples": 3,
        "epochs": 1,
        "batch_size": 4,
        "unroll": 4,
        "device": "cpu",
        "progress": False,
    },
    "DSSoftmax": {"n_experts": 2, "epochs": 1, "batch_size": 8, "device": "cpu", "progress": False},
}
FITTED = {}


def estimator(name, **changes):
    return getattr(train, name)(**SMALL[name] | changes)


def fitted(name):
    """A fitted model, made once in a process."""
    if name not in FITTED:
        FITTED[name] = estimator(name).fit(*{"Classifier": (X, Y), "LanguageModel": (TEXT,), "DSSoftmax": (H, T)}[name])
    return FITTED[name]


def linear_classifier():
    return train.Classifier(C=0.5, epochs=2, device="cpu", progress=False)


def kernel_classifier():
    return train.Classifier(power=2.0, kernel_C=0.5, n_neighbors=4, epochs=2, device="cpu", progress=False)


def wide_classifier():
    """Of words and embeddings."""
    params = {"C": 0.5, "power": 2.0, "kernel_C": 0.5, "n_neighbors": 4, "head_weight": 0.5, "epochs": 2}
    return train.Classifier(**params, device="cpu", progress=False)


def of_pair(me, method):
    """A method of a model of words and embeddings, whose parts are separate arguments."""
    function = getattr(me, method)

    def call(words, embeddings, *arguments):
        return function((words, embeddings), *arguments)

    x, *others = inspect.signature(function).parameters.values()
    call.__signature__ = inspect.Signature([x, x.replace(name="embeddings"), *others])
    return call


def fitted_linear():
    """The same of a linear layer."""
    if "linear" not in FITTED:
        FITTED["linear"] = linear_classifier().fit(X, Y)
    return FITTED["linear"]


def fitted_kernel():
    """The same of a kernel machine."""
    if "kernel" not in FITTED:
        FITTED["kernel"] = kernel_classifier().fit(POSITIVE[:12], Y)
    return FITTED["kernel"]


def fitted_pair():
    """The same of words and embeddings."""
    if "pair" not in FITTED:
        FITTED["pair"] = wide_classifier().fit((X, POSITIVE[:12]), Y)
    return FITTED["pair"]


def fitted_texts():
    """The same of texts, with a label matrix."""
    if "texts" not in FITTED:
        FITTED["texts"] = linear_classifier().fit(LINES, Y)
    return FITTED["texts"]


def brief(value):
    """`value`, or 3 for a number of epochs, words and the like that is legal and would take for ever."""
    return 3 if isinstance(value, int) and 1000 <= value < 2**63 else value


def parameters(name):
    """Constructor arguments of every kind, at small values."""
    return {
        key: (None if value is None else value) for key, value in getattr(train, name)().get_params().items()
    } | SMALL[name]


@of("Classifier", "LanguageModel", "DSSoftmax")
def _(r, name):
    """The constructor takes everything; `fit` checks. So this makes a model with odd parameters and fits it."""
    chosen = parameters(name)
    keep = r.permutation(sorted(chosen))[:6]
    where = {"Classifier": (X, Y), "LanguageModel": (TEXT,), "DSSoftmax": (H, T)}[name]

    def construct_and_fit(**params):
        model = getattr(train, name)(**SMALL[name] | {key: brief(value) for key, value in params.items()})
        return model.fit(*where)

    return Call(construct_and_fit, [], {key: chosen[key] for key in keep})


@of(*[f"{name}.{m}" for name in ("Classifier", "LanguageModel", "DSSoftmax") for m in ("get_params", "set_params")])
def _(r, name):
    name, method = name.split(".")
    me = estimator(name)
    return Call(getattr(me, method), [], {} if method == "get_params" else {"epochs": 3}, me=me, writes=("self",))


@of("Classifier.fit")
def _(r):
    me = estimator("Classifier", output=("fixed-fan-in", "dense")[r.integers(2)])
    x = X if r.random() < 0.6 else X.toarray()
    if scipy.sparse.issparse(x) and r.random() < 0.5:
        me = linear_classifier()
    more = {"validation": [X, Y]} if r.random() < 0.3 else {}
    if not scipy.sparse.issparse(x) and r.random() < 0.5:
        me = kernel_classifier()
    if r.random() < 0.3:
        me, more = linear_classifier(), {"names": {"name 1": ["old", "maps"]}} if r.random() < 0.5 else {}
        return Call(me.fit, [LINES, NAMES], more, me=me, writes=("self",))
    if r.random() < 0.3:
        me = wide_classifier()
        return Call(of_pair(me, "fit"), [X if r.random() < 0.5 else LINES, POSITIVE[:12], Y], me=me, writes=("self",))
    return Call(
        me.fit,
        [x, Y],
        more,
        me=me,
        writes=("self",),
        check=dense.same_fit,
    )


@of("Classifier.top_k", "Classifier.predict", "Classifier.encode", "Classifier.evaluate", "Classifier.score")
def _(r, name):
    method = name.split(".")[1]
    me, x = fitted("Classifier") if method == "encode" or r.random() < 0.5 else fitted_linear(), X[:5]
    if method != "encode" and r.random() < 0.3:
        me, x = fitted_texts(), LINES[:5]
    more = {"top_k": [2], "predict": [2], "encode": [], "evaluate": [Y[:5], [1, 2]], "score": [Y[:5]]}[method]
    if method != "encode" and r.random() < 0.3:
        me, x = fitted_kernel(), POSITIVE[:5]
    elif method != "encode" and r.random() < 0.3:
        me = fitted_pair()
        return Call(of_pair(me, method), [X[:5], POSITIVE[:5], *more], me=me)
    return Call(getattr(me, method), [x, *more], me=me, check=dense.same_answer(me, method))


@of("Classifier.predict_proba", "Classifier.decision_function")
def _(r, name):
    method, (me, x) = name.split(".")[1], (fitted_linear(), X[:5]) if r.random() < 0.6 else (fitted_texts(), LINES[:5])
    return Call(getattr(me, method), [x], me=me, check=dense.same_answer(me, method))


@of("Classifier.calibrate", "Classifier.retire")
def _(r, name):
    method, me = name.split(".")[1], linear_classifier().fit(X, Y)
    return Call(getattr(me, method), [X, Y] if method == "calibrate" else [[0, 3]], me=me, writes=("self",))


@of(*[f"Classifier.{m}" for m in ("set_fit_request", "set_partial_fit_request", "set_score_request")])
def _(r, name):
    me = estimator("Classifier")

    def call(sample_weight):
        import sklearn

        with sklearn.config_context(enable_metadata_routing=True):
            return getattr(me, name.split(".")[1])(sample_weight=sample_weight)

    return Call(call, [], {"sample_weight": True}, me=me, writes=("self",))


@of("Classifier.get_metadata_routing")
def _(r):
    me = estimator("Classifier")
    return Call(me.get_metadata_routing, [], me=me)


@of("Classifier.explain")
def _(r):
    me = fitted("Classifier") if r.random() < 0.5 else fitted_linear()
    if r.random() < 0.3:
        me = fitted_texts()
    x = X[0] if me.vectorizer_ is None else LINES[0]
    if r.random() < 0.2:
        me, x = fitted_kernel(), POSITIVE[0]
    elif r.random() < 0.2:
        me = fitted_pair()
        return Call(of_pair(me, "explain"), [X[0], POSITIVE[0], 2, 3], me=me, check=dense.adds_up)
    return Call(me.explain, [x], {"label": 2, "n": 3}, me=me, check=dense.adds_up)


@of("Explanation")
def _(r):
    return Call(train.Explanation, [3, "map", 1.0, 0.5, (("old", 2.0),), 0.0, {"bias": -1.0}])


@of("Explanation.plot")
def _(r):
    return Call(fitted_linear().explain(X[0], 2).plot, [Path("bars.svg")])


@of("Classifier.partial_fit")
def _(r):
    if r.random() < 0.5:
        me = linear_classifier().fit(LINES, NAMES)
        more = {"names": {"new": "a new name"}} if r.random() < 0.5 else {}
        return Call(me.partial_fit, [LINES[:5], NAMES[:5]], more, me=me, writes=("self",))
    me = linear_classifier().fit(X, Y)
    return Call(me.partial_fit, [X[:5], Y[:5]], me=me, writes=("self",))


@of("Classifier.save")
def _(r):
    me = r.choice([fitted("Classifier"), fitted_linear(), fitted_kernel(), fitted_pair()])
    return Call(me.save, [Path("model")], {"label_names": list("abcde")}, me=me)


@of("Classifier.get_metadata_routing")
def _(r):
    return Call(fitted("Classifier").get_metadata_routing, [], me=fitted("Classifier"))


@of("Classifier.set_fit_request", "Classifier.set_partial_fit_request", "Classifier.set_score_request")
def _(r, name):
    me = estimator("Classifier")

    def request(**requests):
        with sklearn.config_context(enable_metadata_routing=True):
            return getattr(me, name.split(".")[1])(**requests)

    return Call(request, [], {"sample_weight": True}, me=me, writes=("self",))


@of("Classifier.load", "LanguageModel.load")
def _(r, name):
    name = name.split(".")[0]
    fitted(name).save("model")
    return Call(getattr(train, name).load, [Path("model"), "cpu"])


@of("LanguageModel.fit")
def _(r):
    me = estimator("LanguageModel")
    more = {"validation": TEXT[:30]} if r.random() < 0.3 else {}
    return Call(me.fit, [TEXT], more | {"n_words": 7}, me=me, writes=("self",))


@of("LanguageModel.evaluate", "LanguageModel.perplexity", "LanguageModel.encode", "LanguageModel.targets")
def _(r, name):
    me, method = fitted("LanguageModel"), name.split(".")[1]
    more = {"every": False} if method in ("encode", "targets") else {}
    return Call(getattr(me, method), [TEXT[:20]], more, me=me, check=dense.same_answer(me, method))


@of("LanguageModel.generate")
def _(r):
    me = fitted("LanguageModel")

    def generate(prompt, n_words, *, temperature, top_k, seed):
        return me.generate(prompt, brief(n_words), temperature=temperature, top_k=top_k, seed=seed)

    def check(result, prompt, n_words, **more):
        dense.same_answer(me, "generate")(result, prompt, brief(n_words), **more)

    return Call(generate, [TEXT[:3], 4], {"temperature": 1.0, "top_k": 3, "seed": 1}, me=me, check=check)


@of("LanguageModel.save", "DSSoftmax.save")
def _(r, name):
    me = fitted(name.split(".")[0])
    return Call(me.save, [Path("model")], me=me)


@of("DSSoftmax.fit")
def _(r):
    me = estimator("DSSoftmax")
    t = T if r.random() < 0.6 else matrix(r, 20, 6, least=1)
    more = {"validation": [H[:9], T[:9]]} if r.random() < 0.2 and isinstance(t, np.ndarray) else {}
    return Call(me.fit, [H, t, floats(r, 6, 4)], more | {"n_classes": 6}, me=me, writes=("self",))


@of("DSSoftmax.evaluate")
def _(r):
    me = fitted("DSSoftmax")
    return Call(me.evaluate, [H[:9], T[:9]], me=me)


@of("DSSoftmax.pack")
def _(r):
    me = fitted("DSSoftmax")
    return Call(me.pack, [], me=me)
