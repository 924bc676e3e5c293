"""The catalogue of the CUDA kernels: operations on concrete arguments that launch them, with a check of the outcome.

An `Operation` names a function of the CUDA wing; its `make(shape)` gives a `Task`: NumPy arguments as both wings take
them, and a function that compares the outputs with `reference`. One catalogue serves all nets:

1. the operation on the CPU and in the simulator (tests/test_kernels.py);
2. what its kernels look like when compiled (tests/contracts), with the budgets at the end of this file;
3. its compiled kernels executed, launched as the wing launches them (tests/compiled);
4. on a CUDA device, the same as 1.

`intercepted` makes 2 and 3 possible: it lets the wing run without a device and hands every launch to the caller.
"""

import copy
import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np
import scipy.sparse

from sparsemax_nb import CoOccurrence
from sparsemax_nb.core import formulas, rng, sparse
from sparsemax_nb.core.alias import alias_table
from sparsemax_nb.core.device import SIMULATOR, asarray
from sparsemax_nb.core.experts import Experts, by_class, group
from sparsemax_nb.cuda import ds_softmax as cuda_experts
from sparsemax_nb.cuda import fixed_fan_in as cuda_layer
from sparsemax_nb.cuda import full_softmax as cuda_softmax
from sparsemax_nb.cuda import group_shared as cuda_groups
from sparsemax_nb.cuda import launch
from sparsemax_nb.cuda import linear as cuda_linear
from sparsemax_nb.cuda import matmul as cuda_matmul
from sparsemax_nb.cuda import sparse_experts as cuda_training
from sparsemax_nb.cuda import top_k as cuda_top_k
from sparsemax_nb.internals import cuda_kernels, intercepted_launches
from sparsemax_nb.midx import _Index, _records
from sparsemax_nb.reference import (
    activations,
    bfloat16,
    co_occurrence,
    ds_softmax,
    embedding,
    fixed_fan_in,
    full_softmax,
    group_shared,
    linear,
    losses,
    lstm,
    matmul,
    midx,
    optimizers,
    rewiring,
    sampled_softmax,
    samplers,
    sparse_experts,
    top_k,
    unstructured,
)

from .helpers import (
    assert_close,
    feature_lists,
    integers,
    label_matrix,
    layer_arrays,
    normal,
    shared_arrays,
    sparse_rows,
)

RATES = formulas.Rates(*map(np.float32, (0.125, 0.875, 0.984375, 0.001)))
SEED = np.uint64(12345678901234567890)


class Task(NamedTuple):
    args: tuple
    check: Callable


class Operation(NamedTuple):
    name: str
    function: Callable  # of the CUDA wing
    make: Callable  # shape -> Task
    small: tuple  # shapes for the simulator (at most four)
    large: tuple  # and those for everything that is faster
    twin: str | None = ""  # "module.function" of the CPU wing; None where it has none

    @property
    def shapes(self):
        return self.small + self.large


class Launch(NamedTuple):
    kernel: object
    grid: object
    block: object
    shared: int
    args: tuple


class Budget(NamedTuple):
    registers: int
    shared: int = 0  # static, bytes
    float64: bool = False
    holds: tuple = ()  # instructions that the kernel promises
    since: tuple = (7, 5)  # the least compute capability that has them


def all_kernels():
    """{"module.name": kernel} of everything in the CUDA wing that is called ..._kernel."""
    return {name: getattr(module, attribute) for name, (module, attribute) in cuda_kernels().items()}


def intercepted(receive):
    """The CUDA wing without a device: arrays are NumPy's, and each launch of a kernel becomes ``receive(Launch)``."""
    return intercepted_launches(lambda name, *launch: receive(Launch(*launch)))


def recorded():
    """{"module.name": Launch} of every kernel, as its operation launches it for the last of its shapes."""
    names, launches = {id(kernel): name for name, kernel in all_kernels().items()}, {}

    def receive(item):
        launches[names[id(item.kernel)]] = item

    with intercepted(receive):
        for operation in OPERATIONS:
            operation.function(*operation.make(operation.shapes[-1]).args)
    return launches


def run_on(backend, function, task):
    """Run the operation on the device of `backend`: arguments there, outputs back into the task's arrays; check."""
    placed = {}
    if backend.device == "cpu":
        function(*task.args)
        return task.check()

    def place(value):
        if isinstance(value, np.ndarray):
            if id(value) not in placed:
                transposed = not value.flags.c_contiguous
                placed[id(value)] = value, backend.array(value.T).T if transposed else backend.array(value)
            return placed[id(value)][1]
        if isinstance(value, tuple):
            items = map(place, value)
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    function(*place(task.args))
    for host, device in placed.values():
        host[...] = backend.numpy(device)
    return task.check()


def unwritten(*shape, dtype=np.float32):
    """An output array: what the kernel forgets stays NaN (or -9)."""
    return np.full(shape, np.nan if dtype == np.float32 else -9, dtype)


# ---------------------------------------------------------------- fixed fan-in layer


def layer_of(shape, bfloat16=False):
    """(arrays, their module of `reference`) for a shape (B, H, L, K), or (B, H, L, K, G) with groups that share inputs."""
    _, n_inputs, n_labels, fan_in, *group_size = shape
    if not group_size:
        return layer_arrays(n_labels, n_inputs, fan_in), fixed_fan_in
    return shared_arrays(n_labels, n_inputs, fan_in, *group_size, bfloat16=bfloat16), group_shared


def uses_of(indices, group_size=1):
    """Of the input that is used most: by how many labels."""
    return group_size * np.bincount(indices.reshape(-1)).max()


def make_forward(shape, **options):
    n_rows, n_inputs, n_labels, fan_in = shape[:4]
    (layer, reference), x, scores = layer_of(shape, **options), normal(1, n_rows, n_inputs), unwritten(n_rows, n_labels)
    return Task((x, layer, scores), lambda: assert_close(scores, reference.forward(x, layer), fan_in + 1))


def launch_simple_forward(x, layer, scores, *, block=(32, 8)):
    """Launch `forward_kernel`, which no function of the wing calls: it is there to be read."""
    grid = launch.labels_by_rows(layer.indices.shape[0], x.shape[0], *block)
    cuda_layer.forward_kernel[grid, block](asarray(x.T, "cuda"), layer, scores)


def make_backward(shape, **options):
    n_rows, n_inputs, n_labels, fan_in = shape[:4]
    (layer, reference), x = layer_of(shape, **options), normal(1, n_rows, n_inputs)
    dscores = normal(2, n_rows, n_labels) * integers(3, 0, 2, n_rows, n_labels)  # about half of them zero
    dscores[:, 2::5] *= integers(4, 0, 9, *dscores[:, 2::5].shape) == 0  # and of some labels most
    dscores[:1, :1] = 1
    outputs = unwritten(n_rows, n_inputs), unwritten(n_labels, fan_in), unwritten(n_labels)

    def check():
        wanted = reference.backward(x, layer, dscores)
        for got, want, terms in zip(outputs, wanted, (uses_of(layer.indices, *shape[4:]), n_rows, n_rows), strict=True):
            assert_close(got, want, terms)

    return Task((x, layer, dscores, *outputs), check)


ROUNDING = rng.Rounding(SEED, np.uint64(7))


def make_step(shape, loss, kind, **options):
    n_rows, n_inputs, n_labels, fan_in = shape[:4]
    (layer, reference), x = layer_of(shape, **options), normal(1, n_rows, n_inputs)
    matrix = label_matrix(n_rows, n_labels)
    label_rows = sparse.by_label(sparse.as_labels(matrix, n_rows, "cpu", n_labels), n_labels)
    moments = [make_moments(kind, array) for array in (layer.values, layer.bias)]
    dx, label_loss = unwritten(n_rows, n_inputs), unwritten(n_labels)
    before, rounding = copy.deepcopy((layer, *moments)), (ROUNDING,) if shape[4:] else ()

    def check():
        old, *old_moments = before
        want_dx, want_loss, *wanted = reference.step(x, old, label_rows, loss, kind, RATES, *old_moments, *rounding)
        assert_close(dx, want_dx, uses_of(layer.indices, *shape[4:]) * (fan_in + 1))
        assert_close(label_loss, want_loss, n_rows * (fan_in + 1))
        for array, moment, want in zip((layer.values, layer.bias), moments, wanted, strict=True):
            for got, wanted_array in zip((array, *moment), want, strict=True):
                if got.dtype == np.uint16:
                    check_rounded(got, wanted_array)
                else:
                    assert_close(got, wanted_array, 4 * max(n_rows, 1) * (fan_in + 1))

    return Task((x, layer, label_rows, loss, kind, RATES, *moments, *rounding, dx, label_loss), check)


def check_rounded(got, want):
    """bfloat16 bits of sums that float32 may have added in another order: a few lie across the random boundary."""
    apart = np.abs(got.astype(np.int64) - want.astype(np.int64))
    assert apart.max(initial=0) <= 1
    assert np.count_nonzero(apart) <= max(1, got.size // 200)


def make_layer_top_k(shape, **options):
    n_rows, n_inputs, n_labels, fan_in, k, *group_size = shape
    layer, reference = layer_of((n_rows, n_inputs, n_labels, fan_in, *group_size), **options)
    values, bias = integers(4, -2, 3, n_labels, fan_in), integers(5, -2, 3, n_labels)
    if layer.values.dtype == np.uint16:
        values = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    layer, x = layer._replace(values=values, bias=bias), integers(6, -2, 3, n_rows, n_inputs)
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    return Task((x, layer, *outputs), lambda: check_top_k(outputs, reference.top_k(x, layer, k)))


def check_top_k(outputs, wanted):
    """Exact integers with many ties: scores and ids must be equal."""
    for got, want in zip(outputs, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def make_connections(shape):
    n_labels, n_inputs, fan_in = shape
    indices = unwritten(n_labels, fan_in, dtype=np.int32)
    wanted = functools.partial(fixed_fan_in.random_connections, SEED, n_inputs, n_labels, fan_in)
    return Task((SEED, n_inputs, indices), lambda: np.testing.assert_array_equal(indices, wanted()))


def make_values(n):
    values, scale = unwritten(n), np.float32(0.3)
    wanted = functools.partial(fixed_fan_in.random_values, SEED, rng.WEIGHTS, scale, (n,))
    return Task((SEED, rng.WEIGHTS, scale, values), lambda: np.testing.assert_array_equal(values, wanted()))


# ---------------------------------------------------------------- linear layer over sparse features


def make_forward_of_lists(shape):
    n_rows, n_features, n_labels = shape
    layer, x, scores = feature_lists(n_labels, n_features), sparse_rows(n_rows, n_features), unwritten(n_rows, n_labels)
    return Task((x, layer, scores), lambda: assert_close(scores, linear.forward(x, layer), n_features + 1))


def make_top_k_of_lists(shape):
    n_rows, n_features, n_labels, k = shape
    layer, x = feature_lists(n_labels, n_features), sparse_rows(n_rows, n_features)
    layer, x = (
        layer._replace(values=np.round(layer.values), bias=np.round(layer.bias)),
        x._replace(weights=np.round(2 * x.weights)),
    )
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    return Task((x, layer, *outputs), lambda: check_top_k(outputs, linear.top_k(x, layer, k)))


def make_update_of_lists(shape):
    """Pairs by label, then row: all of a row's own labels, and half of the others."""
    n_rows, n_features, n_labels = shape
    layer, x = feature_lists(n_labels, n_features), sparse_rows(n_rows, n_features)
    own, some = (
        a.reshape(n_labels, n_rows) > 0
        for a in (integers(3, 0, 2, n_labels * n_rows), integers(4, 0, 2, n_labels * n_rows))
    )
    duals = np.abs(normal(5, n_labels, n_rows)) * (own | some)
    labels, rows = np.nonzero(own | some)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(labels)]])
    given, losses = duals[labels, rows], unwritten(len(labels))
    before, moved = copy.deepcopy(layer), given.copy()

    def check():
        loss, values, new = linear.step(x, own.T, duals.T, before, 0.7, 2.5, active=(own | some).T)
        assert_close(moved, new.T[labels, rows], 4 * n_features * n_rows)
        assert_close(layer.values, values, 4 * n_features * n_rows)
        assert_close(np.float32(losses.sum()), np.float64(loss), 4 * n_features * n_rows)

    arrays = starts.astype(np.int64), rows.astype(np.int32), labels.astype(np.int32), own[labels, rows]
    return Task((x, *arrays, layer, 0.7, 2.5, moved, losses), check)


def make_rerank(shape):
    """Candidates of rows, whose labels occur together in 40 points; the sums of no two lie so close that rounding decides."""
    n_rows, n, n_labels, k = shape
    scores = -np.sort(-normal(1, n_rows, n), axis=1)
    ids = np.argsort(normal(2, n_rows, n_labels), axis=1)[:, :n].astype(np.int32)
    pairs = CoOccurrence(label_matrix(40, n_labels, 3, 0.2)).arrays
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)

    def check():
        top_scores, top_ids = co_occurrence.rerank(scores, ids, pairs, 0.3, k)
        np.testing.assert_array_equal(outputs[1], top_ids)
        assert_close(outputs[0], top_scores, 4 * k, 5)

    return Task((scores, ids, pairs, np.float32(0.3), *outputs), check)


# ---------------------------------------------------------------- rewiring


def weights(*shape):
    """Half normal numbers, half small integers; so some are equal, of either sign, and zeros of either sign too."""
    values = np.where(integers(1, 0, 2, *shape) > 0, normal(2, *shape), integers(3, -2, 3, *shape) / np.float32(4))
    return np.where(values == 0, integers(4, -1, 1, *shape) * np.float32(0), values)


def make_histogram(n, shift):
    """Half of the weights within 4,096 units in the last place of the median: many prefixes agree, digits differ."""
    bits = weights(n).view(np.int32)
    middle = np.sort(bits & formulas.MAGNITUDE)[n // 2]
    near = integers(5, 0, 4096, n).astype(np.int32) + (middle & ~np.int32(4095))
    bits = np.where(integers(6, 0, 2, n) > 0, near, bits)
    bits[1::7] = -np.abs(bits[1::7])  # the sign bit, with other magnitudes
    n_bins = 2048 if shift == 20 else 1024
    prefix = int(middle >> shift) // n_bins
    counts = unwritten(n_bins, dtype=np.int64)
    wanted = rewiring.magnitude_histogram(bits, prefix, shift, n_bins)
    assert wanted.sum() == n if shift == 20 else n == 1 or 0 < wanted.sum() < n
    return Task((bits, prefix, shift, counts), lambda: np.testing.assert_array_equal(counts, wanted))


def make_cut(values, share):
    """The cut that leaves a share of the slots, and their flat indices."""
    chosen = rewiring.smallest(values, max(1, int(share * values.size)))
    threshold = np.abs(values).reshape(-1)[chosen].max()
    last = chosen[np.abs(values).reshape(-1)[chosen] == threshold].max()
    return formulas.Threshold(int(threshold.view(np.int32)), int(last)), chosen


def make_count(shape):
    values = weights(*shape)
    cut, chosen = make_cut(values, 0.4)
    counts = unwritten(shape[0], dtype=np.int32)

    def check():
        np.testing.assert_array_equal(counts, np.bincount(chosen // shape[1], minlength=shape[0]))
        np.testing.assert_array_equal(counts, rewiring.count_smallest(values.view(np.int32), cut))

    return Task((values.view(np.int32), cut, counts), check)


def make_magnitudes(shape, bfloat16):
    n_labels, fan_in, group_size = shape
    values = normal(1, n_labels, fan_in).astype(ml_dtypes.bfloat16 if bfloat16 else np.float32)
    values, means = values.view(np.uint16) if bfloat16 else values, unwritten(-(-n_labels // group_size), fan_in)
    wanted = rewiring.magnitudes(values, group_size)
    return Task((values, group_size, means), lambda: assert_close(means, wanted, group_size))


def make_clear(shape, dtype):
    n_labels, fan_in, group_size = shape
    array = (normal(1, n_labels, fan_in) + 3).astype(dtype)
    slots = np.argwhere(integers(2, 0, 3, -(-n_labels // group_size), fan_in) == 0).astype(np.int32)
    wanted = rewiring.clear(slots, group_size, array)
    return Task((slots, group_size, array), lambda: np.testing.assert_array_equal(array, wanted))


def make_redraw(shape, kind):
    n_labels, n_inputs, fan_in, share = shape
    layer, step = layer_arrays(n_labels, n_inputs, fan_in), np.uint64(3)
    layer = layer._replace(values=weights(n_labels, fan_in))
    cut, chosen = make_cut(layer.values, share)
    moments = make_moments(kind, layer.values)
    offsets = np.searchsorted(chosen, np.arange(n_labels + 1) * fan_in)
    slots, bits = unwritten(len(chosen), 2, dtype=np.int32), layer.values.view(np.int32).copy()
    wanted = rewiring.rewire(SEED, step, n_inputs, len(chosen), layer, moments)
    indices, moments = layer.indices.copy(), copy.deepcopy(moments)

    def check():
        for got, want in zip((indices, bits.view(np.float32), *moments, slots), wanted, strict=True):
            assert got.tobytes() == want.tobytes()

    return Task((SEED, step, n_inputs, cut, offsets, indices, bits, moments, slots), check)


# ---------------------------------------------------------------- the rest of a network


def make_moments(kind, array):
    """Moments in mid-training (of size 0 for SGD); v well above 0, so that the update is a smooth function."""
    if kind == formulas.SGD_KIND:
        return formulas.Moments(*(np.zeros((0,) * array.ndim, np.float32) for _ in range(2)))
    return formulas.Moments(normal(7, *array.shape), np.abs(normal(8, *array.shape)) + np.float32(0.1))


def make_update(n, kind):
    parameter, gradient = normal(1, n), normal(2, n)
    moments = make_moments(kind, parameter)
    wanted = optimizers.update(kind, parameter.copy(), gradient, copy.deepcopy(moments), RATES)
    return Task((kind, parameter, gradient, moments, RATES), lambda: check_update((parameter, *moments), wanted))


def make_update_rows(shape, kind):
    n, n_rows, n_columns = shape
    parameter, gradient = normal(1, n_rows, n_columns), normal(2, n, n_columns)
    moments = make_moments(kind, parameter)
    row_ids = np.random.default_rng(3).permutation(n_rows)[:n].astype(np.int32)
    wanted = optimizers.update_rows(kind, parameter, row_ids, gradient, moments, RATES)
    return Task(
        (kind, parameter, row_ids, gradient, moments, RATES), lambda: check_update((parameter, *moments), wanted)
    )


def check_update(outputs, wanted):
    for got, want in zip(outputs, wanted, strict=True):
        assert_close(got, want, 4)


def make_multilabel(shape, loss):
    scores = normal(1, *shape) * 3
    matrix = label_matrix(*shape)
    label_rows = sparse.by_label(sparse.as_labels(matrix, shape[0], "cpu", shape[1]), shape[1])
    dscores, label_loss = unwritten(*shape), unwritten(shape[1])

    def check():
        want_loss, want_dscores = losses.multilabel(scores, label_rows, loss)
        assert_close(label_loss, want_loss, shape[0])
        assert_close(dscores, want_dscores, min(shape[0], 1))

    return Task((scores, label_rows, loss, dscores, label_loss), check)


def make_top_k(shape):
    n_rows, n_columns, k = shape
    scores = integers(1, -20, 20, n_rows, n_columns)
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    return Task((scores, *outputs), lambda: check_top_k(outputs, top_k.top_k(scores, k)))


def make_merge(shape):
    """Sorted lists of small integers, some not full; most of the best are zeros, of both signs. In the first row, one NaN."""
    n_rows, n_lists, k = shape
    scores, length = integers(1, -9, 2, n_rows, n_lists, k), integers(2, 0, k + 1, n_rows, n_lists, 1)
    scores[(scores == 1) & (integers(4, 0, n_lists, *scores.shape) > 0)] = 0
    scores[:, ::3][scores[:, ::3] == 0] *= -1
    ids = np.random.default_rng(3).permuted(np.broadcast_to(np.arange(n_lists * k), (n_rows, n_lists * k)), axis=1)
    ids = ids.reshape(scores.shape).astype(np.int32)
    scores[length <= np.arange(k)], ids[length <= np.arange(k)] = -np.inf, -1
    scores[:1, n_lists // 2, 0], ids[:1, n_lists // 2, 0] = -np.nan, n_lists * k

    def best(scores, ids, n):
        order = np.lexsort((ids.astype(np.uint32), -scores, ~np.isnan(scores)), axis=-1)[..., :n]
        return np.take_along_axis(scores, order, -1), np.take_along_axis(ids, order, -1)

    wanted = best(scores.reshape(n_rows, n_lists * k), ids.reshape(n_rows, n_lists * k), k)
    lists = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in best(scores, ids, k))
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    return Task((*lists, *outputs), lambda: check_top_k(outputs, wanted))


def make_relu(shape, rate, in_place=False):
    z, bias = normal(1, *shape), normal(2, shape[1])
    dropout = rng.make_dropout(rate, 2**63 + 5, 1, 3)
    out = z if in_place else unwritten(*shape)
    wanted = activations.relu_dropout(z.copy(), bias, dropout)

    def check():
        np.testing.assert_array_equal(out > 0, wanted > 0)
        assert_close(out, wanted, min(shape[0], 2))

    return Task((z, bias, dropout, out), check)


def make_dropout(shape, rate):
    x, out = normal(1, *shape), unwritten(*shape)
    dropout = rng.make_dropout(rate, SEED, 3, 5)
    wanted = activations.dropout(x, dropout)

    def check():
        np.testing.assert_array_equal(out == 0, wanted == 0)
        assert_close(out, wanted, min(shape[0], 1))

    return Task((x, dropout, out), check)


def make_relu_backward(shape, in_place=False):
    dout, scale = normal(1, *shape), np.float32(1.25)
    out = np.maximum(normal(2, *shape), 0)
    out[:1] = 1
    dz, dbias = dout if in_place else unwritten(*shape), unwritten(shape[1])
    wanted = activations.relu_dropout_backward(dout.copy(), out, scale)

    def check():
        assert_close(dz, wanted[0], min(shape[0], 1))
        assert_close(dbias, wanted[1], shape[0])

    return Task((dout, out, scale, dz, dbias), check)


def make_lstm(shape):
    """recurrent, gates, cells and hidden before the steps; what is to be filled in is NaN."""
    n_steps, n_rows, n_units = shape
    recurrent = normal(1, n_units, 4 * n_units) / np.float32(n_units**0.5)
    cells, hidden = unwritten(n_steps + 1, n_rows, n_units), unwritten(n_steps + 1, n_rows, n_units)
    cells[0], hidden[0] = normal(3, n_rows, n_units), normal(4, n_rows, n_units)
    return recurrent, normal(2, n_steps, n_rows, 4 * n_units), cells, hidden


def make_lstm_forward(shape):
    recurrent, *outputs = make_lstm(shape)
    wanted = lstm.forward(recurrent, *outputs)

    def check():
        for got, want, scale in zip(outputs, wanted, (1, 4, 1), strict=True):
            assert_close(got, want, 4 * shape[0] * shape[2], scale)

    return Task((recurrent, *outputs), check)


def make_lstm_backward(shape, in_place=False):
    recurrent, *arrays = make_lstm(shape)
    gates, cells, _ = (a.astype(np.float32) for a in lstm.forward(recurrent, *arrays))
    dout, dpre = normal(5, *cells[1:].shape), gates if in_place else unwritten(*gates.shape)
    wanted = lstm.backward(recurrent, gates.copy(), cells, dout)
    return Task((recurrent, gates, cells, dout, dpre), lambda: assert_close(dpre, wanted, 4 * shape[0] * shape[2], 4))


def make_unstructured(shape):
    n_rows, n_inputs, n_labels, n_weights = shape
    xt, dscores_t, dvalues = normal(1, n_inputs, n_rows), normal(2, n_labels, n_rows), unwritten(n_weights)
    random = np.random.default_rng(3)
    rows = np.sort(random.integers(n_labels, size=n_weights)).astype(np.int32)
    columns = random.integers(n_inputs, size=n_weights).astype(np.int32)
    wanted = unstructured.gradient_of_values(xt, dscores_t, rows, columns)
    return Task((xt, dscores_t, rows, columns, dvalues), lambda: assert_close(dvalues, wanted, n_rows))


def make_nan(shape, usual):
    """One NaN comes in and is seen in the last of the outputs, in the first place and nowhere else."""
    args = usual(shape).args
    args[0][0, 0] = np.nan
    return Task(args, lambda: np.testing.assert_array_equal(np.flatnonzero(np.isnan(args[-1])), [0]))


def bag(n_rows, n_features):
    """Random `SparseRows` with empty rows and features that never occur."""
    matrix = label_matrix(n_rows, n_features)
    matrix.data[:] = normal(4, matrix.nnz)
    return sparse.as_rows(matrix, "cpu")


def make_embedding(shape):
    n_rows, n_features, width = shape
    rows, table, out = bag(n_rows, n_features), normal(1, n_features, width), unwritten(n_rows, width)
    terms = np.diff(rows.indptr).max(initial=0)
    return Task((rows, table, out), lambda: assert_close(out, embedding.forward(rows, table), terms))


def make_embedding_backward(shape):
    n_rows, n_features, width = shape
    columns, dout = sparse.by_column(bag(n_rows, n_features)), normal(1, n_rows, width)
    drows = unwritten(len(columns.ids), width)
    terms = np.diff(columns.indptr).max(initial=0)
    return Task((columns, dout, drows), lambda: assert_close(drows, embedding.backward(columns, dout), terms))


def make_matmul(shape, transpose_a=False, transpose_b=False, low=False):
    """`low`: of numbers that are bfloat16."""
    m, n, k = shape
    a, b, out = normal(1, m, k), normal(2, k, n), unwritten(m, n)
    if low:
        a, b = (x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (a, b))
    a = np.ascontiguousarray(a.T).T if transpose_a else a
    b = np.ascontiguousarray(b.T).T if transpose_b else b
    return Task((a, b, out), lambda: assert_close(out, matmul.matmul(a, b), k))


# ---------------------------------------------------------------- samplers


def make_draw_uniform(shape):
    *shape, n_classes = shape
    ids = unwritten(*shape, dtype=np.int32)
    wanted = samplers.draw_uniform(SEED, 3, n_classes, shape)
    return Task((SEED, np.uint64(3), n_classes, ids), lambda: np.testing.assert_array_equal(ids, wanted))


def make_draw(shape):
    *shape, n_classes = shape
    weights = np.random.default_rng(1).permutation(1 / np.arange(1.0, n_classes + 1))
    log_p, alias = np.log(weights / weights.sum()).astype(np.float32), alias_table(weights, [0, n_classes])
    outputs = unwritten(*shape, dtype=np.int32), unwritten(*shape)
    wanted = samplers.draw(SEED, 3, log_p, alias, shape)

    def check():
        for got, want in zip(outputs, wanted, strict=True):
            np.testing.assert_array_equal(got, want)

    return Task((SEED, np.uint64(3), log_p, alias, *outputs), check)


# ---------------------------------------------------------------- full softmax


def make_widen(n):
    bits = np.random.default_rng(1).permutation(1 << 16)[:n].astype(np.uint16)
    bits[:2] = 0x3F80, 0xFFC0  # 1 and NaN
    out, wanted = unwritten(n), bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(bfloat16.widen(bits), wanted)
    return Task((bits, out), lambda: np.testing.assert_array_equal(out, wanted))


def make_tile(shape, first):
    """A tile and its labels: before, inside and behind, several in a row or none."""
    n_rows, n = shape
    hot = label_matrix(n_rows, first + 2 * n, density=min(0.3, 9 / n)).toarray() > 0
    hot[:1], hot[-1:, first] = False, True
    labels = sparse.as_labels(scipy.sparse.csr_matrix(hot), *hot.shape[:1], "cpu", hot.shape[1])
    return 3 * normal(1, n_rows, n), normal(2, n), first, labels


def make_add_tile(shape):
    logits, bias = 3 * normal(1, *shape), normal(2, shape[1])
    largest, total = normal(4, shape[0]), np.abs(normal(5, shape[0])) + 1
    largest[1::2], total[1::2] = np.finfo(np.float32).min, 0
    wanted = full_softmax.add_tile(logits, bias, largest.copy(), total.copy())

    def check():
        for got, want, scale in zip((largest, total), wanted, (20, shape[1]), strict=True):
            assert_close(got, want, 10 * shape[1], scale)

    return Task((logits, bias, largest, total), check)


def make_add_product(shape, keep):
    n_rows, n, width = shape
    bias, h, w = normal(2, n), normal(7, n_rows, width), normal(8, n, width)
    wanted_logits, logits = matmul.matmul(h, w.T), unwritten(n_rows, n)
    largest, total = normal(4, n_rows), np.abs(normal(5, n_rows)) + 1
    wanted = full_softmax.add_tile(wanted_logits, bias, largest.copy(), total.copy())

    def check():
        for got, want, scale in zip((largest, total), wanted, (20, n), strict=True):
            assert_close(got, want, 10 * max(n, width), scale)
        if keep:
            assert_close(logits, wanted_logits, width)

    return Task((h, w, bias, keep, logits, largest, total), check)


def make_gradient_of_tile(shape, first, in_place=False):
    logits, *rest = make_tile(shape, first)
    dbias, losses, largest = normal(6, shape[1]), normal(7, shape[0]), (logits + rest[0]).max(axis=1, initial=-9)
    inputs = *rest, largest, 9 + np.abs(normal(4, shape[0])), np.float32(0.3), dbias, losses
    dlogits = logits if in_place else unwritten(*shape)
    wanted = full_softmax.gradient_of_tile(logits.copy(), *inputs)

    def check():
        assert_close(dbias, wanted[0], 400 + shape[0])
        assert_close(losses, wanted[1], 400)
        assert_close(dlogits, wanted[2], 400)

    return Task((logits, *inputs, dlogits), check)


def make_rank(shape):
    """Small integers, so there are many ties; the last row is of normal numbers, the one before holds an infinity."""
    logits = integers(1, -3, 4, *shape)
    logits[-1:], targets = normal(2, *shape)[-1:], np.random.default_rng(3).integers(0, shape[1], shape[0], np.int32)
    logits[-2:-1, -1] = -np.inf
    outputs = unwritten(shape[0]), unwritten(shape[0], dtype=np.int32)
    wanted = full_softmax.rank(logits, targets)

    def check():
        finite = np.isfinite(wanted[0])
        np.testing.assert_array_equal(np.isfinite(outputs[0]), finite)
        assert_close(outputs[0][finite], wanted[0][finite], 10 * shape[1])
        np.testing.assert_array_equal(outputs[1], wanted[1])

    return Task((logits, targets, *outputs), check)


def make_probable(shape):
    """Small integers, so the scores are exact and many are equal."""
    n_rows, width, n_classes, k = shape
    h, w, bias = integers(1, -2, 3, n_rows, width), integers(2, -2, 3, n_classes, width), integers(3, -2, 3, n_classes)
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    wanted = full_softmax.top_k(h, w, bias, k)

    def check():
        assert_close(outputs[0], wanted[0], 10 * n_classes)
        np.testing.assert_array_equal(outputs[1], wanted[1])

    return Task((h, w, bias, *outputs), check)


# ---------------------------------------------------------------- DS-Softmax


def make_experts(n_experts, n_classes, width, seed=11):
    """Experts that each hold about half of the classes; the second none, where there are three or more."""
    random = np.random.default_rng(seed)
    held = random.random((n_experts, n_classes)) < 0.5
    held[0, 0] = True
    held[1:2] &= n_experts < 3
    starts = np.append(0, held.sum(1).cumsum()).astype(np.int32)
    return Experts(starts, np.nonzero(held)[1].astype(np.int32), normal(seed, starts[-1], width))


def make_batch(shape):
    """h in the order of the groups, groups, experts; the first row's expert is the last, and nobody's is the third."""
    n_rows, n_experts, n_classes, width = shape
    experts, chosen = make_experts(n_experts, n_classes, width), integers(12, 0, n_experts, n_rows).astype(np.int32)
    chosen[chosen == 2] = 0
    chosen[:1] = n_experts - 1
    return normal(1, n_rows, width), group(chosen, experts.starts), experts


def make_noise(shape):
    logits, scale = normal(1, *shape), np.float32(0.5)
    wanted = sparse_experts.add_noise(SEED, np.uint64(3), scale, logits)
    return Task((SEED, np.uint64(3), scale, logits), lambda: assert_close(logits, wanted, 4))


def make_gate(shape, in_place=False):
    """Small integers, so there are many ties."""
    logits = integers(1, -3, 4, *shape)
    probabilities = logits if in_place else unwritten(*shape)
    outputs, wanted = (unwritten(shape[0], dtype=np.int32), unwritten(shape[0])), ds_softmax.gate(logits)

    def check():
        assert_close(probabilities, wanted[0], 4 * shape[1], 1)
        np.testing.assert_array_equal(outputs[0], wanted[1])
        assert_close(outputs[1], wanted[2], 4 * shape[1], 1)

    return Task((logits, probabilities, *outputs), check)


def make_expert_scores(shape):
    h, groups, experts = make_batch(shape)
    out, wanted = unwritten(groups.offsets[-1]), ds_softmax.scores(h, groups, experts)
    return Task((h, groups, experts, out), lambda: assert_close(out, wanted, shape[3]))


def make_gradient_of_rows(shape):
    h, groups, experts = make_batch(shape)
    dscores, drows = normal(3, groups.offsets[-1]), unwritten(*experts.weights.shape)
    wanted = sparse_experts.gradient_of_rows(dscores, h, groups, experts)
    return Task((dscores, h, groups, experts, drows), lambda: assert_close(drows, wanted, max(shape[0], 1)))


def make_expert_loss(shape, several=False, in_place=False):
    """Labels that the experts hold, and some that they do not."""
    n_rows, _, n_classes, width = shape
    h, groups, experts = make_batch(shape)
    scores = ds_softmax.scores(h, groups, experts).astype(np.float32)
    labels = label_matrix(n_rows, n_classes) if several else scipy.sparse.csr_matrix(
        (np.ones(n_rows), integers(4, 0, n_classes, n_rows).astype(np.int32), np.arange(n_rows + 1)), (n_rows, n_classes)
    )  # fmt: skip
    labels = sparse.as_labels(labels, n_rows, "cpu", n_classes)
    values, scale = np.abs(normal(5, n_rows)) % np.float32(1), np.float32(1 / max(n_rows, 1))
    dscores, outputs = scores if in_place else unwritten(scores.size), (unwritten(n_rows), unwritten(n_rows))
    wanted = sparse_experts.cross_entropy(scores, values, labels, groups, experts, n_classes, scale)
    terms = n_classes * max(np.diff(labels.indptr), default=1)

    def check():
        for got, want in zip((*outputs, dscores), wanted, strict=True):
            assert_close(got, want, 4 * terms)

    return Task((scores, values, labels, groups, experts, n_classes, scale, *outputs, dscores), check)


def make_balance(shape):
    n_rows, n_experts = shape
    values, chosen = np.abs(normal(1, n_rows)), integers(2, 0, n_experts, n_rows).astype(np.int32)
    groups = group(chosen, np.zeros(n_experts + 1, np.int32))
    outputs, wanted = (unwritten(n_experts), unwritten(n_experts)), sparse_experts.balance(values, groups)

    def check():
        for got, want in zip(outputs, wanted, strict=True):
            assert_close(got, want, 4 * n_rows, max(np.abs(want).max(), n_experts / wanted[0].sum()))

    return Task((values, groups, *outputs), check)


def make_gate_backward(shape):
    n_rows, n_experts = shape
    probabilities, chosen, _ = ds_softmax.gate(normal(1, *shape))
    probabilities, out = probabilities.astype(np.float32), unwritten(*shape)
    dvalues, dload = normal(2, n_rows), normal(3, n_experts)
    wanted = sparse_experts.gate_backward(probabilities, chosen, dvalues, dload)
    return Task((probabilities, chosen, dvalues, dload, out), lambda: assert_close(out, wanted, 8, 4))


def make_class_sums(shape):
    experts = make_experts(*shape)
    squares, sums, table = np.abs(normal(1, len(experts.ids))), unwritten(shape[1]), by_class(experts.ids, shape[1])
    wanted = sparse_experts.class_sums(squares, table)
    return Task((squares, table, sums), lambda: assert_close(sums, wanted, shape[0]))


def make_expert_update(shape):
    n_experts, n_classes, width = shape
    experts, moments = make_experts(*shape), make_moments(formulas.ADAM_KIND, np.empty((0, 0), np.float32))
    rows, ids = experts.weights, experts.ids
    moments, gradient = make_moments(formulas.ADAM_KIND, rows), normal(4, *rows.shape)
    squares = (rows**2).sum(1)
    class_squares = sparse_experts.class_sums(squares, by_class(ids, n_classes)).astype(np.float32)
    penalties = tuple(map(np.float32, (2, 3, n_experts, 1e-8)))
    args = gradient, ids, class_squares, penalties, RATES
    wanted = sparse_experts.update(*args, copy.deepcopy(moments), rows.copy(), squares.copy())

    def check():
        for got, want in zip((rows, *moments, squares), wanted, strict=True):
            assert_close(got, want, 16 * width)

    return Task((*args, moments, rows, squares), check)


def make_survivors(shape):
    """Squares that are small integers, so there are many ties."""
    experts = make_experts(*shape)
    squares, table = integers(1, 0, 4, len(experts.ids)), by_class(experts.ids, shape[1])
    keep, least = np.full(len(squares), 9, np.uint8), np.float32(2)
    wanted = sparse_experts.survivors(squares, table, least)
    return Task((squares, table, least, keep), lambda: np.testing.assert_array_equal(keep, wanted))


def make_answers(shape, sort=False):
    """Small integers, so there are many ties; the experts hold fewer classes than k where k is large."""
    *shape, k = shape
    n_rows, n_experts, n_classes, width = shape
    h, groups, experts = make_batch(shape)
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    if sort:
        scores, values = integers(2, -1, 2, groups.offsets[-1]), np.abs(normal(3, n_rows))
        args, wanted = (scores, values, groups, experts), ds_softmax.select(scores.copy(), values, groups, experts, k)
    else:
        h, gate_rows = integers(3, -1, 2, n_rows, width), integers(4, -1, 2, n_experts, width)
        experts = experts._replace(rows=integers(2, -1, 2, *experts.weights.shape))
        args, wanted = (h, gate_rows, experts), ds_softmax.answer(h, gate_rows, experts, k)

    def check():
        assert_close(outputs[0], wanted[0], 64 * n_classes, 1)
        np.testing.assert_array_equal(outputs[1], wanted[1])

    return Task((*args, *outputs), check)


# ---------------------------------------------------------------- the inverted multi-index


def make_assign(shape, weighted=False):
    n, n_codewords, width = shape
    vectors, codewords = normal(1, n, width), normal(2, n_codewords, width)
    vectors[1::5] = vectors[:1]  # some equal
    codewords[1:2] = codewords[:1]  # a tie: the first wins
    codes, distance = unwritten(n, dtype=np.int32), unwritten(n)
    weights = np.abs(normal(3, n)) if weighted else np.zeros(0, np.float32)
    sums, totals = unwritten(n_codewords, width), unwritten(n_codewords)
    want_codes, want_distance, want_sums, want_totals = midx.assign(vectors, codewords, weights)

    def check():
        np.testing.assert_array_equal(codes, want_codes)
        np.testing.assert_allclose(totals, want_totals, rtol=1e-6 * max(n, 1) ** 0.5 if weighted else 0)
        assert_close(distance, want_distance, 4 * width, 20 * width)
        assert_close(sums, want_sums, n)

    return Task((vectors, codewords, weights, codes, distance, sums, totals), check)


def make_index(n_words, n_classes, weighted):
    """An `_Index` of random codes with empty cells (a whole codeword is never used) and classes of popularity 0."""
    random = np.random.default_rng(n_classes)
    codes = random.integers(0, max(n_words - 1, 1), (n_classes, 2)).astype(np.int32)
    cell = codes[:, 0] * n_words + codes[:, 1]
    members, popularity = np.argsort(cell, kind="stable").astype(np.int32), np.ones(n_classes)
    if weighted:
        popularity = random.pareto(1, n_classes) * (random.random(n_classes) < 0.8) + (np.arange(n_classes) == 0)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=n_words**2))]).astype(np.int32)
    weights = np.bincount(cell, popularity, n_words**2).reshape(n_words, n_words).astype(np.float32)
    records, log_popularity = np.zeros((0, 4), np.uint32), np.zeros(0, np.float32)
    if weighted:
        with np.errstate(divide="ignore"):
            log_popularity = np.log(popularity).astype(np.float32)
        records = _records(members, alias_table(popularity[members], indptr), log_popularity)
    transposed = np.ascontiguousarray(weights.T)
    return _Index(codes, indptr, members, records, records.view(np.float32), weights, transposed, log_popularity)


def make_index_sample(shape, weighted, scale=1):
    n_rows, n_samples, n_words, n_classes = shape
    index, r0, r1 = make_index(n_words, n_classes, weighted), normal(1, n_rows, n_words), normal(2, n_rows, n_words)
    r0, r1 = (scale * np.float32(1.5) * r for r in (r0, r1))
    ids, log_q = unwritten(n_rows, n_samples, dtype=np.int32), unwritten(n_rows, n_samples)
    want_ids, want_log_q, near = midx.sample(r0, r1, index, SEED, 3, n_samples)

    def check():
        sure = near > 1e-6
        assert (~sure).sum() <= max(1, 0.001 * ids.size)
        np.testing.assert_array_equal(ids[sure], want_ids[sure])
        same = ids == want_ids
        np.testing.assert_allclose(log_q[same], want_log_q[same], rtol=0, atol=1e-5 * scale)

    return Task((r0, r1, index, SEED, np.uint64(3), ids, log_q), check)


def make_index_log_prob(shape, weighted, shared=False):
    n_rows, n_samples, n_words, n_classes = shape
    index, r0, r1 = make_index(n_words, n_classes, weighted), 2 * normal(1, n_rows, n_words), normal(2, n_rows, n_words)
    ids = integers(3, 0, n_classes, 1 if shared else n_rows, n_samples).astype(np.int32)
    log_q = unwritten(n_rows, n_samples)
    wanted = midx.log_prob(r0, r1, index, ids)
    return Task((r0, r1, index, ids, log_q), lambda: np.testing.assert_allclose(log_q, wanted, rtol=0, atol=1e-5))


# ---------------------------------------------------------------- sampled softmax


def make_scores(shape):
    n_rows, n_samples, n_classes, width = shape
    queries, classes = normal(1, n_rows, width), normal(2, n_classes, width)
    ids, out = integers(3, 0, n_classes, n_rows, n_samples).astype(np.int32), unwritten(n_rows, n_samples)
    wanted = sampled_softmax.scores(queries, classes, ids)
    return Task((queries, classes, ids, out), lambda: assert_close(out, wanted, width))


def make_softmax(shape, shared=False, mask_hits=False):
    n_rows, n_samples = shape
    counts = integers(7, 0, 4, n_rows).astype(np.int32)  # of targets: some rows have none
    counts[:1] = 2
    indptr, chosen = np.append(0, np.cumsum(counts)), integers(4, 0, 5, counts.sum())
    labels = sparse.Labels(indptr.astype(np.int32), chosen.astype(np.int32))
    n, lines = len(labels.indices), 1 if shared else n_rows
    scores, target_scores, ids = (
        3 * normal(1, *shape),
        3 * normal(2, n),
        integers(3, 0, 5, lines, n_samples).astype(np.int32),
    )
    if n_rows:
        ids[0, 0] = labels.indices[0]  # a hit
    log_q, log_q_targets = normal(5, lines, n_samples) - 2, normal(6, n) - 2
    inputs = scores, ids, log_q, target_scores, labels, log_q_targets, mask_hits
    wanted, outputs = sampled_softmax.softmax(*inputs), (unwritten(n), unwritten(*shape), unwritten(n))

    def check():
        for got, want, scale in zip(outputs, wanted, (10, 1, 1), strict=True):
            assert_close(got, want, n_samples + 1, scale * 10)  # exponentials of scores as large as 10

    return Task((*inputs, *outputs), check)


def make_draw_softmax(shape, first_row):
    *shape, n_classes = shape
    scores = 3 * normal(1, shape[0], n_classes)
    scores[:, 1::3] = -np.inf  # never drawn
    outputs = unwritten(*shape, dtype=np.int32), unwritten(*shape)
    want_ids, want_log_q, near = samplers.draw_softmax(scores.copy(), first_row, SEED, 3, shape[1])

    def check():
        sure = near > 1e-6
        assert (~sure).sum() <= max(1, 0.002 * near.size)
        np.testing.assert_array_equal(outputs[0][sure], want_ids[sure])
        same = outputs[0] == want_ids
        np.testing.assert_allclose(outputs[1][same], want_log_q[same], rtol=0, atol=2e-5)

    return Task((scores, first_row, SEED, np.uint64(3), *outputs), check)


# ---------------------------------------------------------------- the catalogue

#: (B, H, L, K): one of everything; K = H; nothing a multiple of a block or a tile; no rows.
SMALL_LAYERS = (1, 1, 1, 1), (3, 7, 5, 7), (9, 5, 7, 3), (0, 5, 3, 2)
LARGE_LAYERS = (33, 19, 17, 3), (65, 31, 1100, 9), (140, 11, 9, 4)
#: (B, H, L, K, G): groups of one, of all labels, with fewer in the last; as many as the CPU takes at a time, and more.
SMALL_GROUPS = (1, 1, 1, 1, 1), (3, 7, 5, 7, 2), (9, 5, 7, 3, 7), (0, 5, 3, 2, 2)
LARGE_GROUPS = (33, 19, 17, 3, 8), (65, 31, 1100, 9, 16), (140, 40, 70, 33, 32), (20, 31, 65, 16, 5)
MATRICES = (1, 1), (3, 7), (9, 5), (0, 5)
LARGE_MATRICES = (65, 33), (33, 300)


def _group_shared(operation, kinds):
    for name, low in (("float32", False), ("bfloat16", True)):
        # K is a multiple of 16; no twin: the plain kernels are what they are compared with elsewhere
        for function, make in (("forward", make_forward), ("backward", make_backward)):
            yield operation(
                f"group_shared.{function} tensor cores {name}", make, (),
                ((1, 20, 3, 16, 1), (3, 20, 1, 16, 1), (33, 40, 17, 16, 8), (140, 70, 200, 32, 16), (5, 60, 70, 48, 32), (0, 20, 3, 16, 2)),
                functools.partial(getattr(cuda_groups, function), tensor_cores=True), None, bfloat16=low,
            )  # fmt: skip
        yield operation(
            f"group_shared.top_k tensor cores {name}", make_layer_top_k, (),
            ((1, 20, 1, 16, 1, 1), (33, 40, 331, 16, 4, 16), (70, 40, 40, 32, 40, 32), (40, 20, 65, 16, 3, 5), (0, 20, 3, 16, 1, 2)),
            functools.partial(cuda_groups.top_k, tensor_cores=True), None, bfloat16=low,
        )  # fmt: skip
        for loss, optimizer in zip(formulas.LOSSES, kinds, strict=True):
            yield operation(
                f"group_shared.step tensor cores {loss} {optimizer} {name}", make_step, (),
                ((1, 20, 1, 16, 1), (33, 40, 17, 16, 8), (140, 70, 100, 32, 16), (70, 60, 70, 16, 32), (0, 20, 3, 16, 2)),
                functools.partial(cuda_groups.step, tensor_cores=True), None,
                loss=formulas.LOSSES[loss], kind=kinds[optimizer], bfloat16=low,
            )  # fmt: skip
    for name, low in (("float32", False), ("bfloat16", True)):
        for function, make in (("forward", make_forward), ("backward", make_backward)):
            yield operation(f"group_shared.{function} {name}", make, SMALL_GROUPS, LARGE_GROUPS, bfloat16=low)
        yield operation(
            f"group_shared.top_k {name}", make_layer_top_k,
            ((1, 1, 1, 1, 1, 1), (3, 7, 5, 7, 5, 2), (5, 9, 67, 3, 3, 8), (0, 5, 3, 2, 1, 3)),
            ((33, 19, 331, 5, 4, 16), (5, 9, 300, 2, 150, 8), (65, 9, 40, 2, 40, 32)), bfloat16=low,
        )  # fmt: skip
        for loss, code in formulas.LOSSES.items():
            for optimizer, kind in kinds.items():
                if low and (loss == "bce") == (optimizer == "adam"):
                    continue  # rounding comes after both, whatever they are
                yield operation(
                    f"group_shared.step {loss} {optimizer} {name}", make_step, SMALL_GROUPS[1:3],
                    (*LARGE_GROUPS, (0, 70, 5, 66, 4)), loss=code, kind=kind, bfloat16=low,
                )  # fmt: skip


def _operations():
    def operation(name, make, small, large, function=None, twin="", **options):
        module, _, attribute = name.partition(" ")[0].partition(".")
        if function is None:
            function = getattr(importlib.import_module(f"sparsemax_nb.cuda.{module}"), attribute)
        make = functools.partial(make, **options) if options else make
        return Operation(name, function, make, small, large, f"{module}.{attribute}" if twin == "" else twin)

    kinds = {"sgd": formulas.SGD_KIND, "adam": formulas.ADAM_KIND}
    yield operation("fixed_fan_in.random_connections", make_connections, ((1, 1, 1), (7, 9, 3)), ((65, 31, 31),))
    yield operation("fixed_fan_in.random_values", make_values, (1, 33), (300,))
    yield operation(
        "fixed_fan_in.forward (simple)", make_forward, SMALL_LAYERS, LARGE_LAYERS, launch_simple_forward, None
    )
    lists = (
        ((1, 1, 1, 1, 1), (3, 7, 5, 7, 5), (5, 9, 67, 3, 3), (0, 5, 3, 2, 1)),
        ((33, 19, 331, 5, 4), (5, 9, 300, 2, 150), (65, 9, 40, 2, 40)),
    )
    for name, make, (small, large) in (
        ("forward", make_forward, (SMALL_LAYERS, LARGE_LAYERS)),
        ("backward", make_backward, (SMALL_LAYERS, LARGE_LAYERS)),
        ("top_k", make_layer_top_k, lists),
    ):
        narrow, wide = (functools.partial(getattr(cuda_layer, name), wide=choice) for choice in (False, True))
        yield operation(f"fixed_fan_in.{name}", make, small, large)
        yield operation(f"fixed_fan_in.{name} (narrow)", make, (), large[::2], narrow, None)
        yield operation(f"fixed_fan_in.{name} (wide)", make, (), large[:1], wide, None)
    for loss, code in formulas.LOSSES.items():
        for optimizer, kind in kinds.items():
            yield operation(
                f"fixed_fan_in.step {loss} {optimizer}",
                make_step,
                SMALL_LAYERS[1:3],
                (*LARGE_LAYERS, (12, 70, 9, 66), (0, 70, 5, 66)),  # no rows: what is left to do is the update
                loss=code,
                kind=kind,
            )
        kind = kinds["adam" if loss == "bce" else "sgd"]
        for name, wide, shapes in (("narrow", False, LARGE_LAYERS[::2]), ("wide", True, LARGE_LAYERS[:1])):
            step = functools.partial(cuda_layer.step, wide=wide)
            yield operation(
                f"fixed_fan_in.step {loss} ({name})", make_step, (), shapes, step, None, loss=code, kind=kind
            )
        multilabel = functools.partial(make_multilabel, loss=code)
        yield operation(f"losses.multilabel {loss}", multilabel, MATRICES, LARGE_MATRICES)
        yield operation(
            f"losses.multilabel {loss} of NaN", make_nan, MATRICES[1:2], LARGE_MATRICES[:1], usual=multilabel
        )
    yield from _group_shared(operation, kinds)
    small, large = ((1, 1, 1), (3, 7, 5), (4, 9, 33)), ((0, 3, 2), (33, 65, 19), (9, 100, 70))  # (B, F, L)
    yield operation("linear.forward", make_forward_of_lists, small, large)
    small, large = ((1, 1, 1, 1), (3, 7, 5, 5), (4, 9, 33, 3)), ((0, 3, 2, 2), (33, 65, 19, 7), (5, 30, 330, 100))
    yield operation("linear.top_k", make_top_k_of_lists, small, large)
    small, large = (
        ((1, 1, 1, 1), (3, 5, 7, 3), (2, 20, 33, 5)),
        ((0, 3, 4, 2), (33, 32, 65, 32), (9, 20, 100, 20)),
    )  # (B, K, L, k)
    yield operation("co_occurrence.rerank", make_rerank, small, large)
    update = functools.partial(cuda_linear._update, block=8) if SIMULATOR else cuda_linear._update
    small, large = ((1, 1, 1), (2, 5, 3)), ((9, 65, 19), (7, 40, 33))
    yield operation("linear.update", make_update_of_lists, small, large, update, None)
    for shift in (20, 10, 0):
        yield operation(f"rewiring.magnitude_histogram {shift}", make_histogram, (1, 200), (33, 20_000), shift=shift)
    groups = ((1, 1, 1), (5, 3, 2), (7, 4, 7)), ((65, 33, 8), (100, 5, 16))  # (L, K, G)
    for name, low in (("float32", False), ("bfloat16", True)):
        yield operation(f"rewiring.magnitudes {name}", make_magnitudes, *groups, bfloat16=low)
        yield operation(f"rewiring.clear {name}", make_clear, *groups, dtype=np.uint16 if low else np.float32)
    yield operation("rewiring.count_smallest", make_count, ((1, 1), (7, 3), (33, 5)), ((65, 33), (70, 31), (300, 2)))
    for optimizer, kind in kinds.items():
        yield operation(
            f"rewiring.redraw {optimizer}", make_redraw, # (L, H, K, share): one of everything; most of what there is
            ((1, 2, 1, 1), (7, 9, 3, 0.4), (33, 10, 5, 0.9)), ((65, 62, 31, 0.5), (300, 1000, 8, 0.1)),
            kind=kind,
        )  # fmt: skip
    yield operation(
        "top_k.top_k",
        make_top_k,
        ((1, 1, 1), (3, 7, 7), (5, 67, 3), (0, 5, 1)),
        ((33, 331, 4), (5, 300, 150), (9, 40, 40)),
    )
    few, many = (
        ((1, 1, 1), (3, 5, 7), (0, 2, 3)),
        ((2, 700, 5), (1, 40, 40), (3, 300, 1), (1, 300, 40)),
    )  # (B, lists, k)
    for name, shuffles, *shapes in ("simple", False, few, ((33, 9, 4),)), ("shuffles", True, (), few + many):
        merge = functools.partial(cuda_top_k.merge, shuffles=shuffles)
        yield operation(f"top_k.merge {name}", make_merge, *shapes, merge, None)
    for optimizer, kind in kinds.items():
        yield operation(f"optimizers.update {optimizer}", make_update, (1, 33), (300,), kind=kind)
        yield operation(
            f"optimizers.update_rows {optimizer}", make_update_rows,
            ((1, 1, 1), (3, 9, 5), (0, 5, 7)), ((33, 65, 300),),
            kind=kind,
        )  # fmt: skip
    for rate in (0, 0.3):
        relu = functools.partial(make_relu, rate=rate)
        yield operation(f"activations.relu_dropout {rate}", relu, MATRICES[::2] + MATRICES[3:], LARGE_MATRICES)
    yield operation(
        "activations.relu_dropout of NaN",
        make_nan,
        MATRICES[1:2],
        LARGE_MATRICES[:1],
        usual=functools.partial(make_relu, rate=0),
    )
    yield operation(
        "activations.relu_dropout in place", make_relu, MATRICES[1:2], LARGE_MATRICES, rate=0.5, in_place=True
    )
    yield operation("activations.dropout", make_dropout, MATRICES, LARGE_MATRICES, rate=0.3)
    yield operation("activations.relu_dropout_backward", make_relu_backward, MATRICES, LARGE_MATRICES)
    yield operation(
        "activations.relu_dropout_backward in place", make_relu_backward, MATRICES[1:2], LARGE_MATRICES, in_place=True
    )
    sequences = ((1, 1, 1), (3, 5, 3), (2, 0, 5), (0, 3, 2)), ((4, 33, 17), (5, 9, 70))  # (T, B, H)
    for name, make in (("forward", make_lstm_forward), ("backward", make_lstm_backward)):
        yield operation(f"lstm.{name}", make, *sequences)
    yield operation("lstm.backward in place", make_lstm_backward, *(s[1:2] for s in sequences), in_place=True)
    bags = ((3, 7, 5), (9, 5, 3), (0, 3, 2)), ((65, 33, 31), (33, 100, 300))
    yield operation("embedding.forward", make_embedding, *bags)
    yield operation("embedding.backward", make_embedding_backward, *bags)
    weights = ((3, 7, 5, 9), (33, 3, 5, 20), (0, 3, 2, 4)), ((65, 33, 31, 300), (128, 40, 9, 129))
    yield operation("unstructured.gradient_of_values", make_unstructured, *weights)
    for name, make in (("draw_uniform", make_draw_uniform), ("draw", make_draw)):  # (B, M, L)
        yield operation(f"samplers.{name}", make, ((1, 1, 1), (3, 7, 5), (0, 3, 2)), ((33, 65, 1000),))
    yield operation("bfloat16.widen", make_widen, (2, 33), (300, 40_000))
    tiles = ((1, 1), (3, 7), (0, 3)), ((33, 65), (5, 300))
    yield operation("full_softmax.add_tile", make_add_tile, *tiles)
    yield operation("full_softmax.gradient_of_tile", make_gradient_of_tile, *tiles, first=4)
    yield operation("full_softmax.gradient_of_tile in place", make_gradient_of_tile, *tiles, first=0, in_place=True)
    products = ((1, 1, 1), (3, 7, 5), (0, 3, 2)), ((33, 65, 19), (5, 300, 8), (130, 68, 48))  # (B, T, d)
    yield operation("full_softmax.add_product", make_add_product, products[0], products[1][:2], keep=True)
    for keep in (False, True):
        yield operation(
            f"full_softmax.add_product tensor cores {'kept' if keep else ''}", make_add_product, (), sum(products, ()),
            functools.partial(cuda_softmax.add_product, tensor_cores=True), None, keep=keep,
        )  # fmt: skip
    yield operation("full_softmax.rank", make_rank, *tiles)
    yield operation(  # (B, d, L, k); the CPU's takes panels
        "full_softmax.top_k", make_probable,
        ((1, 1, 1, 3), (3, 2, 67, 3), (5, 3, 9, 9), (0, 2, 3, 1)), ((33, 5, 331, 4), (5, 3, 300, 310), (9, 7, 3000, 40)), twin=None,
    )  # fmt: skip
    pairs = ((1, 1), (3, 7), (7, 3)), ((33, 65), (300, 16))  # (B, E)
    yield operation("sparse_experts.add_noise", make_noise, *pairs)
    yield operation("ds_softmax.gate", make_gate, *pairs)
    yield operation("ds_softmax.gate in place", make_gate, pairs[0][1:2], pairs[1], in_place=True)
    yield operation("sparse_experts.balance", make_balance, *pairs)
    yield operation("sparse_experts.gate_backward", make_gate_backward, *pairs)
    mixtures = ((1, 1, 1, 1), (5, 2, 7, 3), (9, 4, 9, 5)), ((65, 5, 130, 33), (70, 3, 300, 70))  # (B, E, L, d)
    yield operation("ds_softmax.scores", make_expert_scores, *mixtures)
    yield operation("sparse_experts.gradient_of_rows", make_gradient_of_rows, *mixtures)
    for name, function, make in (
        ("ds_softmax.scores", cuda_experts.scores, make_expert_scores),
        ("sparse_experts.gradient_of_rows", cuda_training.gradient_of_rows, make_gradient_of_rows),
    ):
        on_tensor_cores = functools.partial(function, tensor_cores=True)
        large = (*mixtures[0], *mixtures[1], (150, 2, 150, 36))
        yield operation(f"{name} tensor cores", make, (), large, on_tensor_cores, None)
    yield operation("sparse_experts.cross_entropy", make_expert_loss, *mixtures)
    yield operation(
        "sparse_experts.cross_entropy of several", make_expert_loss, *(m[1:2] for m in mixtures), several=True
    )
    yield operation(
        "sparse_experts.cross_entropy in place", make_expert_loss, *(m[1:2] for m in mixtures), in_place=True
    )
    held = ((1, 1, 1), (3, 7, 5)), ((5, 300, 33), (3, 1000, 130))  # (E, L, d)
    for name, make in (("class_sums", make_class_sums), ("update", make_expert_update), ("survivors", make_survivors)):
        yield operation(f"sparse_experts.{name}", make, *held)
    asked = ((1, 1, 1, 1, 1), (2, 3, 9, 4, 7), (9, 2, 9, 3, 3)), ((9, 7, 300, 33, 10), (70, 3, 65, 17, 40))
    yield operation("ds_softmax.answer", make_answers, *asked)
    yield operation("ds_softmax.select", make_answers, *asked, sort=True)
    yield operation("midx.assign", make_assign, ((1, 1, 1), (9, 3, 5), (0, 2, 3)), ((300, 17, 9), (3000, 130, 33)))
    yield operation("midx.assign weighted", make_assign, ((9, 3, 5),), ((3000, 130, 33),), weighted=True)
    sizes = ((1, 1, 1, 1), (3, 5, 4, 9), (0, 3, 2, 5)), ((33, 65, 16, 1000), (70, 9, 130, 400))  # (B, M, K, L)
    for weighted in (False, True):
        name = "popularity" if weighted else "uniform"
        yield operation(f"midx.sample {name}", make_index_sample, *sizes, weighted=weighted)
        yield operation(f"midx.log_prob {name}", make_index_log_prob, *sizes, weighted=weighted, shared=weighted)
    yield operation("midx.sample far apart", make_index_sample, sizes[0][1:2], sizes[1][:1], weighted=False, scale=100)
    yield operation(
        "sampled_softmax.scores", make_scores, ((1, 1, 1, 1), (3, 5, 4, 7), (0, 2, 3, 2)), ((33, 65, 50, 19),)
    )
    for options in ({}, {"shared": True}, {"mask_hits": True}, {"shared": True, "mask_hits": True}):
        name = f"sampled_softmax.softmax {' '.join(options)}".strip()
        yield operation(name, make_softmax, ((1, 1), (3, 7), (0, 3)), ((33, 65), (5, 300)), **options)
    yield operation(
        "samplers.draw_softmax", make_draw_softmax, ((1, 1, 1), (3, 5, 7), (0, 3, 2)), ((33, 20, 1300),), first_row=5
    )
    for transposed in ({}, {"transpose_a": True}, {"transpose_b": True}):
        small, large = ((1, 1, 1), (3, 7, 5), (0, 3, 2), (3, 2, 0)), ((65, 33, 19), (33, 300, 7), (3, 5, 200))
        yield operation(f"matmul.matmul {' '.join(transposed)}".strip(), make_matmul, small, large, **transposed)
        tiled, mma, rounded = (functools.partial(cuda_matmul.matmul, kernel=k) for k in ("tiled", "mma", "bfloat16"))
        name = " ".join(transposed)
        yield operation(f"matmul.matmul tiled {name}", make_matmul, small, large[:2], tiled, None, **transposed)
        parts = () if transposed else ((33, 20, 530),)  # sums in two parts
        large = ((1, 1, 1), (33, 65, 19), (130, 68, 48), *parts, (0, 3, 2), (3, 2, 0))
        yield operation(f"matmul.matmul mma {name}", make_matmul, (), large, mma, None, **transposed)
        yield operation(
            f"matmul.matmul bfloat16 {name}", make_matmul, (), large[:3], rounded, None, low=True, **transposed
        )  # fmt: skip


OPERATIONS = tuple(_operations())

#: Registers a thread: a multiple of 8 at or above what the compiler needs today for any of the architectures, so that
#: a change which costs occupancy is noticed (`python -m tests.contracts.table` shows both).
TENSOR_CORES = "mma.sync.aligned.m16n8k16", "ld.global.v4.f32"
BUDGETS = {
    "activations.dropout_kernel": Budget(48),
    "activations.relu_dropout_backward_kernel": Budget(40),
    "activations.relu_dropout_kernel": Budget(48),
    "bfloat16.widen_kernel": Budget(16),
    "sparse_experts.add_noise_kernel": Budget(24),
    "ds_softmax.answer_kernel": Budget(96),
    "sparse_experts.balance_kernel": Budget(56),
    "sparse_experts.class_sums_kernel": Budget(32),
    "sparse_experts.cross_entropy_kernel": Budget(56),  # what it counts from the best score stays in registers
    "sparse_experts.gate_backward_kernel": Budget(32),
    "ds_softmax.gate_kernel": Budget(40),
    "sparse_experts.gradient_of_rows_kernel": Budget(88),
    "sparse_experts.gradient_of_rows_mma_kernel": Budget(136, holds=("mma.sync.aligned.m16n8k16",), since=(8, 0)),
    "ds_softmax.scores_kernel": Budget(80),
    "ds_softmax.scores_mma_kernel": Budget(136, holds=("mma.sync.aligned.m16n8k16", "ld.global.v4.f32"), since=(8, 0)),
    "ds_softmax.select_kernel": Budget(56),
    "sparse_experts.survivors_kernel": Budget(32),
    "sparse_experts.update_kernel": Budget(56),
    "co_occurrence.rerank_kernel": Budget(64),
    "embedding.backward_kernel": Budget(48),
    "embedding.forward_kernel": Budget(48),
    "fixed_fan_in.backward_kernel": Budget(64),
    "fixed_fan_in.backward_wide_kernel": Budget(64, holds=("ld.global.v4.f32",)),
    "fixed_fan_in.forward_kernel": Budget(56),
    "fixed_fan_in.forward_tiled_kernel": Budget(64, shared=4 * 32 * 33),
    "fixed_fan_in.forward_wide_kernel": Budget(64, shared=4 * 32 * 129, holds=("ld.global.v4.f32",)),
    "fixed_fan_in.random_connections_kernel": Budget(56),
    "fixed_fan_in.random_values_kernel": Budget(24),
    "fixed_fan_in.step_kernel": Budget(80),
    "fixed_fan_in.step_wide_kernel": Budget(80, holds=("ld.global.v4.f32",)),
    "fixed_fan_in.top_k_kernel": Budget(64),
    "fixed_fan_in.top_k_wide_kernel": Budget(80, holds=("ld.global.v4.f32",)),
    "full_softmax.add_sums_kernel": Budget(48),
    "full_softmax.add_tile_kernel": Budget(40),
    "full_softmax.cross_entropy_mma_kernel": Budget(
        136, holds=("mma.sync.aligned.m16n8k16", "ld.global.v4.f32", "shfl.sync.bfly"), since=(8, 0)
    ),
    "full_softmax.gradient_of_tile_kernel": Budget(40),
    "full_softmax.probabilities_kernel": Budget(48),
    "full_softmax.rank_kernel": Budget(48),
    "full_softmax.softmax_lists_kernel": Budget(64),
    "group_shared.backward_kernel": Budget(96),
    "group_shared.forward_kernel": Budget(80),
    "group_shared.step_kernel": Budget(88),
    "group_shared.top_k_kernel": Budget(80),
    "group_shared_mma.backward_kernel": Budget(160, holds=TENSOR_CORES, since=(8, 0)),
    "group_shared_mma.forward_kernel": Budget(112, holds=TENSOR_CORES, since=(8, 0)),
    "group_shared_mma.step_kernel": Budget(168, holds=TENSOR_CORES, since=(8, 0)),
    "group_shared_mma.top_k_kernel": Budget(136, holds=TENSOR_CORES, since=(8, 0)),
    "linear.lists_kernel": Budget(48),
    "linear.update_kernel": Budget(64),
    "losses.multilabel_kernel": Budget(40),
    "lstm.cell_backward_kernel": Budget(64),
    "lstm.cell_kernel": Budget(56),
    "matmul.mma_kernel": Budget(
        128,
        holds=("mma.sync.aligned.m16n8k16", "ld.global.v4.f32", "ld.shared.v4.u32", "st.shared.v4.u32"),
        since=(8, 0),
    ),
    "matmul.tiled_kernel": Budget(64),
    "midx.log_prob_kernel": Budget(64),
    "midx.nearest_kernel": Budget(48),
    "midx.sample_kernel": Budget(64),
    "optimizers.update_kernel": Budget(32),
    "optimizers.update_rows_kernel": Budget(48),
    "rewiring.clear_kernel": Budget(32),
    "rewiring.count_smallest_kernel": Budget(48, shared=4 * 32),
    "rewiring.magnitude_histogram_kernel": Budget(32, shared=4 * 2048),
    "rewiring.magnitudes_kernel": Budget(40),
    "rewiring.redraw_kernel": Budget(64),
    "sampled_softmax.scores_kernel": Budget(40),
    "sampled_softmax.softmax_kernel": Budget(64),
    "samplers.draw_kernel": Budget(40),
    "samplers.draw_softmax_kernel": Budget(40),
    "samplers.exponentials_kernel": Budget(40),
    "samplers.draw_uniform_kernel": Budget(40),
    "top_k.lists_kernel": Budget(64),
    "top_k.merge_kernel": Budget(64),
    "top_k.merge_warps_kernel": Budget(48, holds=("shfl.sync.bfly",)),
    "unstructured.gradient_of_values_kernel": Budget(40),
}
