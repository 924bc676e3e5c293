"""Top-k with large k: the order of the short lists, the memory it takes, and which k are refused."""

import math

import numpy as np
import pytest

from sparsemax_nb import (
    DSoftmax,
    FixedFanIn,
    FullSoftmax,
    GroupSharedFanIn,
    PackedDSSoftmax,
    SVDSoftmax,
    ds_softmax,
    fixed_fan_in_top_k,
)
from sparsemax_nb.core.device import backend_of, to_numpy
from sparsemax_nb.cpu import baselines, lists
from sparsemax_nb.cpu import top_k as cpu_top_k
from sparsemax_nb.cuda import top_k as cuda_top_k
from sparsemax_nb.reference import full_softmax
from sparsemax_nb.reference import top_k as reference
from sparsemax_nb.train.outputs import top_k_of_scores

from .helpers import integers, layer_arrays, normal, place_layer, shared_arrays, threads

L, D = 150, 6


def queries(n_rows=3):
    return integers(1, -2, 3, n_rows, D)


def small_integers(arrays):
    """A sparse layer whose scores are small integers: many are equal."""
    return arrays._replace(values=integers(2, -2, 3, *arrays.values.shape), bias=integers(3, -2, 3, *arrays.bias.shape))


def sparse_layer(backend, shared, n_labels=L):
    if not shared:
        return place_layer(backend, small_integers(layer_arrays(n_labels, D, 2)), D)
    indices, values, bias, group_size = small_integers(shared_arrays(n_labels, D, 2, 4))
    return GroupSharedFanIn(D, *map(backend.array, (indices, values, bias)), group_size)


def scores_of(layer, h):
    """Dense scores of a sparse layer, exact."""
    indices, values, bias = (to_numpy(a) for a in (layer.indices, layer.values, layer.bias))
    indices = np.repeat(indices, -(-len(bias) // len(indices)), axis=0)[: len(bias)]
    return (h[:, indices] * values).sum(-1) + bias


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("k", [140, L])
def test_sparse_layers(backend, shared, k):
    layer, h = sparse_layer(backend, shared), queries()
    scores, ids = map(backend.numpy, fixed_fan_in_top_k(backend.array(h), layer, k))
    want, want_ids = reference.top_k(scores_of(layer, h), k)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(scores, want)
    few, few_ids = map(backend.numpy, fixed_fan_in_top_k(backend.array(h), layer, 5))
    np.testing.assert_array_equal(ids[:, :5], few_ids)
    np.testing.assert_array_equal(scores[:, :5], few)


def softmax_layers(backend):
    w, bias = integers(2, -2, 3, L, D), integers(3, -2, 3, L)
    yield FullSoftmax(backend.array(w), backend.array(bias))
    if backend.device == "cpu":
        yield DSoftmax(w, np.arange(L), bias, widths=(D, D, D))
        yield SVDSoftmax(w, bias, width=D, n_candidates=1)


@pytest.mark.parametrize("k", [140, L, L + 10])
def test_softmax_layers(backend, k):
    h = queries()
    for layer in softmax_layers(backend):
        p, ids = map(backend.numpy, layer.top_k(backend.array(h), k))
        want, want_ids = full_softmax.top_k(h, integers(2, -2, 3, L, D), integers(3, -2, 3, L), k)
        if not isinstance(layer, SVDSoftmax):  # which turns the axes: its scores are no integers
            np.testing.assert_array_equal(ids, want_ids)
        np.testing.assert_allclose(p, want, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("k", [140, L + 10])
def test_experts(backend, monkeypatch, at_once, k):
    """The second of two experts holds fewer classes than k: the rest is padding."""
    monkeypatch.setattr(ds_softmax, "MIN_ROWS_PER_EXPERT", 1 if at_once else 9)
    n_rows = 3
    h, rows = queries(n_rows), integers(2, -2, 3, L + 9, D)
    gate = np.array([[9], [-9]], np.float32) * (np.arange(D) == 0).astype(np.float32)
    h[:, 0] = np.where(np.arange(n_rows) % 3, 2, -2)
    ids = np.concatenate([np.arange(L), np.arange(0, 18, 2)]).astype(np.int32)
    packed = PackedDSSoftmax(*map(backend.array, (gate, np.array([0, L, L + 9], np.int32), ids, rows)), L)
    p, found = map(backend.numpy, packed.top_k(backend.array(h), k))
    for b in range(n_rows):
        some = slice(0, L) if h[b, 0] > 0 else slice(L, L + 9)
        want, order = full_softmax.most_probable(h[b : b + 1] @ rows[some].T, k)
        np.testing.assert_array_equal(found[b], np.where(order[0] < 0, -1, ids[some][order[0]]))
        np.testing.assert_allclose(p[b], want[0], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("k", [10, 64, 65, 140, 200])
def test_numbers_of_every_kind(backend, k):
    """NaN first, both zeros equal, minus infinity as padding: as by insertion, for any k, also in descending rows."""
    scores = integers(1, -9, 10, 4, 200)
    scores[0, [5, 7, 100]], scores[1, 11], scores[1, ::3] = np.nan, np.inf, -np.inf
    scores[2] = np.where(np.arange(200) % 2, 0.0, -0.0) * (np.arange(200) != 9)
    scores[2, 4], scores[2, 150], scores[3] = 1e-45, -1e-45, np.arange(200) * np.float32(1e30)
    got, ids = map(backend.numpy, top_k_of_scores(backend.array(scores), k))
    for row, found, best in zip(scores, ids, got, strict=True):
        order = np.lexsort((np.arange(200), -row, ~np.isnan(row)))[:k]
        n_nan = np.isnan(row[order]).sum()
        if k <= cuda_top_k.MAX_INSERTED:  # merged lists on CUDA leave the order of NaN open
            found[:n_nan].sort()
        np.testing.assert_array_equal(found, np.where(row[order] == -np.inf, -1, order))
        np.testing.assert_array_equal(best, row[order])


@pytest.mark.parametrize("k", [1, 2, 7, 30])
def test_selection_from_long_rows(k):
    """From the groups that reach a limit: random, ascending, descending and equal scores, numbers of every kind."""
    n = cpu_top_k.MIN_ROUNDS * cpu_top_k.GROUPS * k + 13
    scores = normal(1, 7, n)
    scores[1], scores[2], scores[3] = np.arange(n), -np.arange(n), 2
    scores[4], scores[5] = np.round(scores[4]), -np.inf
    scores[5, [3, n - 1]], scores[6, ::5], scores[6, 4 * k] = [-0.0, 0.0], np.nan, np.inf
    for row in scores:
        best, ids = np.empty(k, np.float32), np.empty(k, np.int32)
        cpu_top_k.select(row, best, ids)
        order = np.lexsort((np.arange(n), -row, ~np.isnan(row)))[:k]
        np.testing.assert_array_equal(ids, np.where(row[order] == -np.inf, -1, order))
        np.testing.assert_array_equal(best, row[order])


def test_some_rows_at_a_time(backend, monkeypatch):
    """Neither how many rows of scores exist at once nor the number of threads changes a bit."""
    h = queries(19 if backend.device == "cpu" else 4)

    def answers():
        found = [fixed_fan_in_top_k(backend.array(h), sparse_layer(backend, shared), 140) for shared in (False, True)]
        found += [layer.top_k(backend.array(h), 140) for layer in softmax_layers(backend)]
        return [backend.numpy(a).tobytes() for pair in found for a in pair]

    want = answers()
    for module in (cpu_top_k, lists, baselines):
        monkeypatch.setattr(module, "MAX_ELEMENTS", 17 * L)
    monkeypatch.setattr(cuda_top_k, "MAX_ELEMENTS", 3 * L)
    monkeypatch.setattr(cuda_top_k, "MAX_SORTED", 2 * L)
    assert cpu_top_k.rows_at_once(19, L) == 16
    with threads(1):
        assert answers() == want


@pytest.mark.parametrize("group", [(), (16,)])
def test_memory_does_not_grow_with_k(backend, group):
    """Lists of k for each row would take 3 GiB for 5,000 rows and k = L = 80,000."""
    name = "group_shared" if group else "fixed_fan_in"
    module = backend_of(backend.device, name)
    for n_rows in (1, 200, 5000):
        shapes = module.top_k_shapes(n_rows, 64, 80_000, 8, *group, 80_000).values()
        inputs = 4 * 64 * (n_rows + 16)
        assert sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes) < inputs + (3 << 26)


@pytest.mark.parametrize("k", [65_537, 2**62])
def test_padding_has_a_bound(backend, k):
    w, h = backend.array(integers(2, -2, 3, L, D)), backend.array(queries())
    gate, ids = normal(1, 1, D), np.arange(L, dtype=np.int32)
    packed = PackedDSSoftmax(*map(backend.array, (gate, np.array([0, L], np.int32), ids)), w, L)
    for layer in (FullSoftmax(w), packed):
        with pytest.raises(ValueError, match=r"k must be between 1 and 65536 .there are 150 classes.*, got"):
            layer.top_k(h, k)
    with pytest.raises(ValueError, match="k must be between 1 and 150"):
        fixed_fan_in_top_k(h, sparse_layer(backend, False), k)


def test_more_classes_than_the_bound():
    layer = FixedFanIn.random(70_000, D, 2, 0)
    assert fixed_fan_in_top_k(queries(1), layer, 70_000)[1].shape == (1, 70_000)
    assert FullSoftmax(integers(1, -2, 3, 70_000, 2)).top_k(queries(1)[:, :2].copy(), 70_000)[1].min() == 0
