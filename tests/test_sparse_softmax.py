"""The softmax loss over sparse output layers: against the dense loss, large scores, labels that never occur."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import (
    SGD,
    Adam,
    FixedFanIn,
    GroupSharedFanIn,
    fixed_fan_in_step,
    sampled_softmax,
    softmax_cross_entropy,
)
from sparsemax_nb.core.device import to_numpy
from sparsemax_nb.core.sparse import as_labels
from sparsemax_nb.cuda import full_softmax as cuda_full_softmax
from sparsemax_nb.reference import fixed_fan_in, full_softmax, group_shared
from sparsemax_nb.sampled_fan_in import sampled_softmax_of_layer

from .conftest import Backend
from .helpers import assert_close, integers, label_matrix, layer_arrays, normal, place_labels, shared_arrays

B, H, L, K, G = 19, 11, 37, 5, 4  # two blocks of rows; the last group has one label
KINDS = pytest.mark.parametrize("kind", ["plain", "float32", "bfloat16"])


def make(backend, kind, **changes):
    """A layer on the device of `backend`; `changes` replace its arrays."""
    if kind == "plain":
        return FixedFanIn(H, *map(backend.array, layer_arrays(L, H, K)._replace(**changes)))
    indices, values, bias, _ = shared_arrays(L, H, K, G)._replace(**changes)
    values = backend.array(values) if kind == "float32" else backend.array(values).astype("bfloat16")
    return GroupSharedFanIn(H, backend.array(indices), values, backend.array(bias), G)


def weights_of(layer):
    return np.array(to_numpy(layer.values).astype(np.float32))


def some_labels(n_rows=B, n_labels=L):
    """Several labels per row; the first row has none, the second one."""
    dense = label_matrix(n_rows, n_labels, density=0.2).toarray()
    dense[:2] = 0
    dense[1, 3] = 1
    return scipy.sparse.csr_matrix(dense)


def gradients_of_step(backend, layer, h, matrix):
    """Loss, dh, dvalues and dbias of a step of size 1; dvalues is None for bfloat16, which rounds."""
    values, bias = weights_of(layer), np.array(to_numpy(layer.bias))
    loss, dh = fixed_fan_in_step(backend.array(h), layer, place_labels(backend, matrix), "softmax", SGD(1.0))
    dvalues = values - weights_of(layer) if layer.values.dtype == np.float32 else None
    return loss, backend.numpy(dh), dvalues, bias - to_numpy(layer.bias)


@pytest.mark.twins
@KINDS
def test_equals_the_dense_loss(backend, kind):
    """Loss and gradients are those of `softmax_cross_entropy` with the dense weights, at the connections."""
    layer, h, matrix = make(backend, kind), normal(1, B, H), some_labels()
    weights = backend.array(layer.to_dense())
    wanted = softmax_cross_entropy(backend.array(h), weights, place_labels(backend, matrix), layer.bias)
    want_loss, want_dh, dweights, want_dbias = wanted[0], *(backend.numpy(a) for a in wanted[1:])
    inputs = np.repeat(to_numpy(layer.indices), 1 if kind == "plain" else G, axis=0)[:L]
    loss, dh, dvalues, dbias = gradients_of_step(backend, layer, h, matrix)
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert_close(dh, want_dh.astype(np.float64), 4 * L)
    assert_close(dbias, want_dbias.astype(np.float64), 4 * B)
    if dvalues is not None:
        assert_close(dvalues, np.take_along_axis(dweights, inputs, 1).astype(np.float64), 4 * B)


@pytest.mark.twins
@KINDS
@pytest.mark.parametrize("offset", [0, -(2**14), 2**14])
def test_large_scores(backend, kind, offset):
    """Small integers times 2^10, all scores exact, and moved by 2^14: nothing overflows, and the result is the same."""
    values, bias = integers(2, -3, 4, L, K), integers(3, -3, 4, L)
    h, matrix = 1024 * integers(1, -2, 3, B, H), some_labels()
    layer = make(backend, kind, values=values, bias=1024 * bias + offset)
    scores = h.astype(np.float64) @ to_numpy(layer.to_dense()).T + 1024 * bias
    assert np.abs(scores).max() > 1e4
    counts = np.diff(matrix.indptr)[:, None]
    log_p, hot = full_softmax.log_softmax(scores), matrix.toarray()
    loss, dh, _, dbias = gradients_of_step(backend, layer, h, matrix)
    assert loss == pytest.approx(-(hot * log_p).sum() / B, rel=1e-6)
    dscores = (counts * np.exp(log_p) - hot) / B
    assert_close(dh, dscores @ to_numpy(make(backend, kind, values=values).to_dense()), 4 * L)
    if not offset:
        np.testing.assert_allclose(dbias, dscores.sum(0), atol=1e-3)  # the new bias is rounded


@pytest.mark.twins
@KINDS
def test_labels_that_never_occur_contribute_nothing(backend, kind):
    """With a bias of -1e30: the loss and dh of a layer without these labels, and not a bit of them changes."""
    unseen, arrays = np.arange(4, L, 3), layer_arrays(L, H, K) if kind == "plain" else shared_arrays(L, H, K, G)
    dense = some_labels().toarray()
    dense[:, unseen] = 0
    bias = arrays.bias.copy()
    bias[unseen] = -1e30
    layer, h, adam = make(backend, kind, bias=bias), normal(1, B, H), Adam(0.1)
    before, weights = weights_of(layer), to_numpy(layer.to_dense()).astype(np.float64)
    matrix = scipy.sparse.csr_matrix(dense)
    loss, dh = fixed_fan_in_step(backend.array(h), layer, place_labels(backend, matrix), "softmax", adam)
    seen = np.setdiff1d(np.arange(L), unseen)
    log_p, hot = full_softmax.log_softmax(h @ weights[seen].T + bias[seen]), dense[:, seen]
    assert loss == pytest.approx(-(hot * log_p).sum() / B, rel=1e-5)
    assert_close(backend.numpy(dh), (hot.sum(1)[:, None] * np.exp(log_p) - hot) / B @ weights[seen], 4 * L)
    np.testing.assert_array_equal(weights_of(layer)[unseen], before[unseen])
    np.testing.assert_array_equal(to_numpy(layer.bias)[unseen], np.float32(-1e30))
    assert (weights_of(layer)[seen] != before[seen]).mean() > 0.5


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")  # of NumPy, in the simulator
@pytest.mark.twins
@KINDS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_change_nothing(backend, kind, value):
    """Also where a row has no labels, whose loss is 0."""
    layer, adam = make(backend, kind), Adam()
    fixed_fan_in_step(backend.array(normal(1, B, H)), layer, place_labels(backend, some_labels()), "softmax", adam)
    layer.bias[3] = value
    before, bias, count = weights_of(layer), np.array(to_numpy(layer.bias)), adam.state_of(layer.values).count
    no_labels = scipy.sparse.csr_matrix((B, L), dtype=np.float32)
    for matrix in (some_labels(), no_labels):
        with pytest.raises(FloatingPointError, match="the scores are not finite"):
            fixed_fan_in_step(backend.array(normal(1, B, H)), layer, place_labels(backend, matrix), "softmax", adam)
    np.testing.assert_array_equal(weights_of(layer), before)
    np.testing.assert_array_equal(to_numpy(layer.bias), bias)
    assert adam.state_of(layer.values).count == count == 1


@pytest.mark.cuda
@KINDS
def test_cuda_takes_some_labels_at_a_time(kind, monkeypatch):
    """Eight labels at a time (whole groups), or one group: sums as of all at once."""
    backend = Backend("cuda")
    layer, h = make(backend, kind), normal(1, B, H)
    module = backend.module(layer._backend_module)
    arrays = layer.arrays._replace(**{n: np.array(to_numpy(getattr(layer.arrays, n))) for n in ("indices", "values")})
    arrays = arrays._replace(bias=to_numpy(layer.bias))
    scores = (fixed_fan_in if kind == "plain" else group_shared).forward(h, arrays)
    for held in (1 << 24, 8 * B, 1):
        monkeypatch.setattr(cuda_full_softmax, "MAX_ELEMENTS", held)
        largest, total = backend.array(np.zeros(B, np.float32)), backend.array(np.zeros(B, np.float32))
        module.softmax_sums(backend.array(h), layer.arrays, largest, total)
        np.testing.assert_allclose(backend.numpy(largest), scores.max(1), rtol=1e-5)
        want = np.exp(scores - scores.max(1)[:, None]).sum(1)
        np.testing.assert_allclose(backend.numpy(total), want, rtol=1e-5)
    sizes = (B, H, L, K) if kind == "plain" else (B, H, L, K, G)
    assert module.softmax_shapes(*sizes)["scores of some labels"][0] == (B, 1 if kind == "plain" else G)


def test_step_learns():
    """The mean log-probability of the labels of points that the layer can tell apart goes to that of a uniform one."""
    layer, adam = FixedFanIn.random(40, 64, 16, seed=3), Adam(learning_rate=0.05)
    h, matrix = normal(1, 32, 64), label_matrix(32, 40, density=0.1)
    n = np.diff(matrix.indptr)
    best = (n * np.log(np.maximum(n, 1))).sum() / 32  # n labels of probability 1/n each
    losses = [fixed_fan_in_step(h, layer, matrix, "softmax", adam)[0] for _ in range(80)]
    assert losses[0] > best + 5
    assert best <= losses[-1] < best + 0.5


# ---------------------------------------------------------------- negatives


def draws(backend, matrix, n_samples=6):
    """Labels, ids, log Q of the draws, of which some are repeated and some are labels, and log Q of the labels."""
    labels = as_labels(place_labels(backend, matrix), B, backend.device, L)
    ids = np.random.default_rng(4).integers(0, L - 9, (B, n_samples)).astype(np.int32)
    log_q = np.log(0.01 + np.abs(normal(5, B, n_samples)))
    log_q_labels = np.log(0.01 + np.abs(normal(6, labels.indices.shape[0])))
    return labels, *map(backend.array, (ids, log_q, log_q_labels))


@pytest.mark.twins
@KINDS
@pytest.mark.parametrize("mask_hits", [False, True])
@pytest.mark.parametrize("correction", ["paper", "importance"])
def test_sampled_equals_the_dense_loss(backend, kind, correction, mask_hits):
    """Loss and gradients are those of `sampled_softmax` with dense weights, whose last column is the bias."""
    layer, h, matrix = make(backend, kind), normal(1, B, H), some_labels().tolil()
    matrix[:, L - 9 :] = 0  # nor are these labels drawn
    matrix = matrix.tocsr()
    options = {"correction": correction, "mask_hits": mask_hits}
    labels, *drawn = draws(backend, matrix)
    loss, dh, (rows, dvalues, dbias) = sampled_softmax_of_layer(backend.array(h), layer, labels, *drawn, **options)
    with_bias = np.concatenate([to_numpy(layer.to_dense()), to_numpy(layer.bias)[:, None]], axis=1)
    wide = np.concatenate([h, np.ones((B, 1), np.float32)], axis=1)
    arrays = backend.array(wide), backend.array(with_bias), place_labels(backend, matrix), *drawn
    want_loss, want_dh, (want_rows, dweights) = sampled_softmax(*arrays, **options)
    np.testing.assert_array_equal(backend.numpy(rows), backend.numpy(want_rows))
    assert 10 < len(rows) < L
    want_dh, dweights = (backend.numpy(a).astype(np.float64) for a in (want_dh, dweights))
    inputs = to_numpy(layer.indices)[backend.numpy(rows) // (1 if kind == "plain" else G)]
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert_close(backend.numpy(dh), want_dh[:, :-1], 4 * L)
    assert_close(backend.numpy(dvalues), np.take_along_axis(dweights, inputs, 1), 4 * B)
    assert_close(backend.numpy(dbias), dweights[:, -1], 4 * B)


@pytest.mark.twins
@KINDS
def test_sampled_without_rows_or_labels(backend, kind):
    layer, no_labels = make(backend, kind), scipy.sparse.csr_matrix((B, L), dtype=np.float32)
    loss, dh, (rows, dvalues, dbias) = sampled_softmax_of_layer(
        backend.array(normal(1, B, H)), layer, *draws(backend, no_labels)
    )
    assert loss == 0
    assert len(rows) > 10
    assert not any(backend.numpy(a).any() for a in (dh, dvalues, dbias))
    labels = as_labels(place_labels(backend, no_labels[:0]), 0, backend.device, L)
    nothing = [backend.array(a) for a in (np.zeros((0, 6), np.int32), np.zeros((0, 6), np.float32))]
    loss, dh, (rows, _, _) = sampled_softmax_of_layer(
        backend.array(normal(1, 0, H)), layer, labels, *nothing, backend.array(np.zeros(0, np.float32))
    )
    assert (loss, dh.shape, len(rows)) == (0, (0, H), 0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the simulator
@pytest.mark.twins
@KINDS
def test_sampled_scores_that_are_not_finite(backend, kind):
    layer, drawn = make(backend, kind), draws(backend, some_labels())
    layer.bias[int(drawn[1][0, 0])] = np.nan
    with pytest.raises(ValueError, match="layer.bias must be finite"):
        sampled_softmax_of_layer(backend.array(normal(1, B, H)), layer, *drawn)
    layer.bias[:] = 3e38
    layer.values[...] = 1
    with pytest.raises(FloatingPointError, match="the scores overflowed"):
        sampled_softmax_of_layer(backend.array(np.full((B, H), 3e38, np.float32)), layer, *drawn)
