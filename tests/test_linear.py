"""The linear layer over sparse features: steps against `reference`, optimality conditions, choice of features."""

import numba
import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import Labels, SparseLinear, sparse_linear_forward, sparse_linear_step, sparse_linear_top_k
from sparsemax_nb.core.connections import Duals, FeatureLists
from sparsemax_nb.core.device import SIMULATOR, to_numpy
from sparsemax_nb.core.sparse import SparseRows
from sparsemax_nb.cpu import feature_choice as cpu_choice
from sparsemax_nb.cpu import linear as cpu_linear
from sparsemax_nb.feature_choice import canonical, extended_lists, more_features, rows_of
from sparsemax_nb.linear import no_duals
from sparsemax_nb.reference import feature_choice, linear
from sparsemax_nb.train.linear_file import checked_lists

from .helpers import assert_close, label_matrix, normal, threads

SHAPES = (1, 3, 1), (33, 65, 33), (50, 40, 130), (7, 20, 5)
SIMULATED = (1, 3, 1), (4, 9, 7)


def points(n_rows, n_features, n_labels, seed=0, density=0.3):
    x = normal(seed, n_rows, n_features) * (np.random.default_rng(seed).random((n_rows, n_features)) < density)
    return scipy.sparse.csr_matrix(np.abs(x)), label_matrix(n_rows, n_labels, seed + 1, 0.1)


def copied(layer):
    return FeatureLists(*(np.array(to_numpy(a)) for a in layer.arrays))


def dense_duals(duals, shape):
    indptr, labels, values = map(to_numpy, duals)
    return scipy.sparse.csr_matrix((values, labels, indptr), shape).toarray()


def run(x, labels, n_passes, batch=16, layer=None, losses=None, sample_weight=None, **params):
    """(layer, dense duals) after passes over batches of rows; what each step returns goes into `losses`."""
    layer = SparseLinear.choose(x, labels, at_least=5) if layer is None else layer
    duals = {}
    for _ in range(n_passes):
        for first in range(0, x.shape[0], batch):
            rows = slice(first, first + batch)
            params["sample_weight"] = None if sample_weight is None else sample_weight[rows]
            loss, duals[first] = sparse_linear_step(x[rows], layer, labels[rows], duals.get(first), **params)
            if losses is not None:
                losses.append(loss)
    parts = [dense_duals(d, (len(d[0]) - 1, labels.shape[1])) for _, d in sorted(duals.items())]
    return layer, np.concatenate(parts)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_steps_equal_reference(backend, slack, weighted):
    for shape in SIMULATED if backend.device == "cuda" and SIMULATOR else SHAPES:
        x, labels = points(*shape)
        layer = SparseLinear.choose(x, labels, per_point=1, at_least=3, device=backend.device)
        given, wanted, duals = (x, labels), np.zeros(labels.shape), None
        if backend.device == "cuda":
            given = tuple(map(backend.array, rows_of(x))), Labels(*map(backend.array, (labels.indptr, labels.indices)))
        weights = np.arange(shape[0]) % 4 / 2 if weighted else np.ones(shape[0])
        options = {"C": 0.7, "slack": slack} | ({"sample_weight": weights} if weighted else {})
        for _ in range(3 if backend.device == "cpu" else 2):
            before = copied(layer)
            loss, duals = sparse_linear_step(given[0], layer, given[1], duals, **options)
            want_loss, values, wanted = linear.step(
                rows_of(x), labels.toarray() > 0, wanted, before, weights, 0.7, slack
            )
            np.testing.assert_allclose(to_numpy(layer.arrays.values), values, atol=1e-5)
            np.testing.assert_allclose(dense_duals(duals, labels.shape), wanted, atol=1e-5)
            assert loss == pytest.approx(want_loss, rel=1e-5)


def short_lists():
    """Points and a layer the lists of whose rows hold a few of 3,000 labels, some of them more than once."""
    x, labels = points(160, 40, 3000, seed=7, density=0.08)
    labels = scipy.sparse.csr_matrix(labels.toarray() * (np.arange(3000) % 60 == 0))
    layer = SparseLinear.choose(x, labels, per_point=1, at_least=4)
    listed = (x != 0) @ np.diff(layer.arrays.indptr)
    assert listed.max() < 3000 / 16 and np.bincount(layer.arrays.labels).max() >= 4
    return x, labels, layer


@pytest.mark.parametrize("bias", [-1.0, 0.5])
def test_steps_over_few_of_many_labels_equal_reference(bias):
    """Only the lists are looked at, unless the bias alone passes the margin."""
    x, labels, layer = short_lists()
    layer.bias[5] = bias
    layer.arrays.values[: layer.n_weights] = 2 * normal(8, layer.n_weights)
    wanted, duals = np.zeros(labels.shape), None
    for _ in range(3):
        before = copied(layer)
        loss, duals = sparse_linear_step(x, layer, labels, duals, C=0.7, slack=0.1)
        want_loss, values, wanted = linear.step(
            rows_of(x), labels.toarray() > 0, wanted, before, np.ones(x.shape[0]), 0.7, 0.1
        )
        np.testing.assert_allclose(layer.arrays.values, values, atol=1e-5)
        np.testing.assert_allclose(dense_duals(duals, labels.shape), wanted, atol=1e-5)
        assert loss == pytest.approx(want_loss, rel=1e-5)


def test_a_step_begins_anew_where_there_was_no_room():
    """Whether a row's lists hold few of the labels or not: the bits are those with room from the start."""
    for x, labels, layer in (short_lists(), (*points(60, 40, 90), None)):
        layer = SparseLinear.choose(x, labels) if layer is None else layer
        found = []
        for room in ([1, 1], [1 << 12, 1 << 14]):
            lists, rows = copied(layer), rows_of(x)
            y, duals = Labels(labels.indptr.astype(np.int64), labels.indices), no_duals(x.shape[0])
            for _ in range(2):
                loss, duals = cpu_linear.step(rows, y, duals, lists, np.ones(x.shape[0], np.float32), 1.0, 0.1, room)
            found.append((loss, lists.values.tobytes(), *(a.tobytes() for a in duals)))
        assert found[0] == found[1] and room == [1 << 12, 1 << 14]


def test_top_k_of_few_of_many_labels():
    """Where k is more than the lists give, and where a label's bias beats them, all labels are looked at."""
    x, labels, layer = short_lists()
    sparse_linear_step(x, layer, labels, C=5)
    for bias in (-1.0, 0.1, 3.0):
        layer.bias[7] = bias
        want = sparse_linear_forward(x, layer)
        assert (want > 0.1).any(1).sum() > 10
        for k in (1, 3, 64, 100):
            scores, ids = sparse_linear_top_k(x, layer, k)
            np.testing.assert_array_equal(ids, np.argsort(-want, axis=1, kind="stable")[:, :k])
            np.testing.assert_array_equal(scores, np.take_along_axis(want, ids.astype(np.int64), 1))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [1, 16, 60])
def test_duals_are_optimal(batch, weighted):
    """Of the whole problem, whatever the batch: the conditions of Karush, Kuhn and Tucker, and w = sum a y z."""
    c, slack = 0.6, 0.2
    x, labels = points(60, 30, 12)
    weights = np.arange(60) % 5 / 3 + 0.1 if weighted else None
    layer, duals = run(x, labels, 100, batch, C=c, slack=slack, sample_weight=weights)
    w, y = layer.weights.toarray().astype(np.float64), np.where(labels.toarray() > 0, 1, -1)
    connected = linear.slots(copied(layer)) >= 0
    dense = x.toarray().astype(np.float64)
    np.testing.assert_allclose(w, connected * ((duals * y).T @ dense), atol=1e-4)
    margins = y * (dense @ w.T - 1) - np.where(y > 0, 1, 1 - slack)
    gradient = margins + duals / (2 * c * (weights[:, None] if weighted else 1))
    reached = (dense @ connected.T) > 0  # a pair without a common feature can change nothing
    assert duals.max() > 0.1 and (duals > 0).sum() > 20
    assert np.abs(gradient[(duals > 0) & reached]).max() < 1e-4
    assert gradient[(duals == 0) & reached].min() > -1e-4


def test_equals_liblinear():
    """With bias 0 and slack 0 it is LIBLINEAR's problem without an intercept, one label after the other."""
    svm = pytest.importorskip("sklearn.svm")
    x, labels = points(80, 20, 4, seed=3)
    everything = scipy.sparse.csr_matrix((np.zeros(80), np.indices((4, 20)).reshape(2, -1)), (4, 20))
    layer = SparseLinear(everything, np.zeros(4, np.float32))
    assert layer.n_weights == 80
    layer, _ = run(x, labels, 150, 8, layer, C=0.8, slack=0.0)
    for label in range(4):
        y = labels[:, label].toarray().reshape(-1) > 0
        theirs = svm.LinearSVC(C=0.8, loss="squared_hinge", dual=True, fit_intercept=False, tol=1e-8, max_iter=100_000)
        theirs.fit(x, y)
        np.testing.assert_allclose(layer.weights[label].toarray()[0], theirs.coef_[0], atol=1e-4)


def everywhere(n_labels, n_features):
    """A layer in which each label is connected to all features."""
    return SparseLinear(
        scipy.sparse.csr_matrix(
            (np.zeros(n_labels * n_features), np.indices((n_labels, n_features)).reshape(2, -1)), (n_labels, n_features)
        )
    )


def test_equals_liblinear_with_weights():
    svm = pytest.importorskip("sklearn.svm")
    x, labels = points(80, 20, 3, seed=3)
    layer, weights = everywhere(3, 20), np.arange(80) % 3 / 2
    layer.bias[:] = 0
    run(x, labels, 150, 8, layer, C=0.8, slack=0.0, sample_weight=weights)
    for label in range(3):
        y = labels[:, label].toarray().reshape(-1) > 0
        theirs = svm.LinearSVC(C=0.8, loss="squared_hinge", dual=True, fit_intercept=False, tol=1e-8, max_iter=100_000)
        theirs.fit(x, y, weights)
        np.testing.assert_allclose(layer.weights[label].toarray()[0], theirs.coef_[0], atol=1e-4)


def test_a_weight_is_worth_as_many_rows():
    x, labels = points(40, 20, 6, seed=4)
    weights = np.arange(40) % 3
    repeated = np.repeat(np.arange(40), weights)
    losses, layers = ([], []), (everywhere(6, 20), everywhere(6, 20))
    run(x, labels, 100, 40, layers[0], losses[0], C=0.8, sample_weight=weights)
    run(x[repeated], labels[repeated], 100, 40, layers[1], losses[1], C=0.8)
    np.testing.assert_allclose(layers[0].weights.toarray(), layers[1].weights.toarray(), atol=1e-4)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=1e-3)  # of one batch, so of the same minimum
    plain, _ = run(x, labels, 100, 40, everywhere(6, 20), C=0.8)
    assert np.abs(plain.weights.toarray() - layers[0].weights.toarray()).max() > 0.01


def test_rows_of_weight_zero_have_no_influence(backend):
    """The bits are those of steps without these rows, and earlier dual variables of them become zero."""
    n_rows, density = (6, 0.6) if backend.device == "cuda" and SIMULATOR else (60, 0.3)
    x, labels = points(n_rows, 9, 7, seed=2, density=density)
    weights = np.arange(n_rows) % 2

    def steps(rows, *weights_of_steps):
        """(losses, values, dense duals) of steps over these rows."""
        layer, duals, losses = SparseLinear.choose(x, labels, device=backend.device), None, []
        features = tuple(map(backend.array, rows_of(x[rows])))
        own = Labels(*map(backend.array, (labels[rows].indptr, labels[rows].indices)))
        for some in weights_of_steps:
            loss, duals = sparse_linear_step(features, layer, own, duals, sample_weight=some)
            losses.append(loss)
        return losses, to_numpy(layer.arrays.values), dense_duals(duals, labels[rows].shape)

    every_row, rows = np.arange(n_rows), np.flatnonzero(weights)
    losses, values, duals = steps(every_row, weights, weights)
    want_losses, want_values, want_duals = steps(rows, None, None)
    assert losses == want_losses and values.tobytes() == want_values.tobytes()
    np.testing.assert_array_equal(duals[rows], want_duals)
    assert steps(every_row, None)[2][weights == 0].any()
    assert not steps(every_row, None, weights)[2][weights == 0].any()


def test_steps_with_the_largest_and_the_smallest_weights():
    """Those whose 1 / (2 C weight) does not fit float32 count as zero."""
    x, labels = points(12, 9, 7)
    for weight in (3e38, 1e-30, 1e-44, 1e-60):
        layer = SparseLinear.choose(x, labels, at_least=5)
        loss, duals = sparse_linear_step(x, layer, labels, sample_weight=np.full(12, weight))
        assert np.isfinite(loss) and np.isfinite(layer.arrays.values).all() and np.isfinite(duals[2]).all()
        assert (len(duals[2]) > 0) == (weight > 1e-40)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_same_bits_with_any_number_of_threads():
    def bits(n):
        with threads(n):
            x, labels = points(200, 60, 300, seed=5)
            losses = []
            layer, duals = run(x, labels, 2, 100, losses=losses)
            return losses, duals.tobytes(), *(a.tobytes() for a in layer.arrays)

    assert bits(1) == bits(2) == bits(numba.config.NUMBA_NUM_THREADS)


def test_label_shards_trained_apart_come_to_the_bits_of_the_whole():
    x, labels = points(120, 100, 90, seed=6, density=0.1)
    whole = SparseLinear.choose(x, labels, at_least=6, per_point=0)
    dense = np.flatnonzero(whole.arrays.dense >= 0)
    assert 0 < len(dense) < 100
    layer, duals = run(x, labels, 3, layer=whole)
    for some in (slice(0, 31), slice(31, 90)):
        shard = SparseLinear.choose(x, labels[:, some], at_least=6, per_point=0, dense=dense)
        shard, shard_duals = run(x, labels[:, some], 3, layer=shard)
        np.testing.assert_array_equal(shard.weights.toarray(), layer.weights[some].toarray())
        np.testing.assert_array_equal(shard_duals, duals[:, some])


def test_forward_and_top_k(backend):
    x, labels = points(*((4, 9, 7) if SIMULATOR and backend.device == "cuda" else (40, 60, 90)))
    weights = scipy.sparse.csr_matrix(
        normal(1, labels.shape[1], x.shape[1]) * (normal(2, labels.shape[1], x.shape[1]) > 0.7)
    )
    layer = SparseLinear(weights, normal(3, labels.shape[1]), device=backend.device)
    given = x if backend.device == "cpu" else tuple(map(backend.array, rows_of(x)))
    want = x.toarray().astype(np.float64) @ weights.toarray().T + to_numpy(layer.bias)
    assert_close(to_numpy(sparse_linear_forward(given, layer)), want, x.shape[1])
    for k in {1, 5, labels.shape[1]}:
        scores, ids = map(to_numpy, sparse_linear_top_k(given, layer, k))
        np.testing.assert_array_equal(ids, np.argsort(-want, axis=1, kind="stable")[:, :k])
        assert_close(scores, np.take_along_axis(want, ids.astype(np.int64), 1), x.shape[1])


def test_weights_come_back_as_they_were_given():
    weights = scipy.sparse.csr_matrix(normal(1, 70, 30) * (normal(2, 70, 30) > 1.2))
    weights.data[::7] = 0  # connections all the same
    layer = SparseLinear(weights)
    dense = np.flatnonzero(layer.arrays.dense >= 0)
    assert 0 < len(dense) < 30
    np.testing.assert_array_equal(layer.weights.toarray(), weights.toarray())
    rest = np.setdiff1d(np.arange(30), dense)
    assert layer.weights[:, rest].nnz == weights[:, rest].nnz and layer.weights[:, dense].nnz == 70 * len(dense)
    assert layer.n_weights == layer.weights.nnz


def chosen(points, x, expected, known, n_of_label, by_magnitude):
    """(indptr, ids, sums) of the CPU, without the places that nothing was found for."""
    room = np.concatenate([[0], np.cumsum(n_of_label)])
    ids, sums = np.empty(room[-1], np.int32), np.empty(room[-1], np.float32)
    cpu_choice.choose_features(points, x, expected, known, room, by_magnitude, ids, sums)
    found = ids >= 0
    return np.concatenate([[0], np.cumsum(found)])[room], ids[found], sums[found]


@pytest.mark.parametrize("by_magnitude", [False, True])
def test_features_are_those_of_the_largest_sums(by_magnitude):
    x, labels = points(50, 130, 9, seed=2)
    x.data[:] = np.round(2 * x.data) + 1  # sums are exact, many are equal
    transposed = labels.T.tocsr()
    signs = np.where(normal(4, transposed.nnz) > 0, 1, -1).astype(np.float32)
    by_label = SparseRows(
        transposed.indptr.astype(np.int64), transposed.indices, signs if by_magnitude else transposed.data
    )
    expected = np.zeros(130, np.float32) if by_magnitude else np.float32(np.arange(130) % 3 / 4)
    known = np.arange(10) * 5, np.tile(np.arange(0, 130, 26, dtype=np.int32), 9)
    room = np.arange(9) * 4
    indptr, ids, sums = chosen(by_label, rows_of(x), expected, known, room, by_magnitude)
    wanted = feature_choice.choose_features(by_label, rows_of(x), expected, known, room, by_magnitude, 130)
    for label, (want_ids, want_sums) in enumerate(wanted):
        some = slice(*indptr[label : label + 2])
        np.testing.assert_array_equal(ids[some], want_ids)
        np.testing.assert_array_equal(sums[some], want_sums)
    assert len(wanted[8][0]) == 32


@pytest.mark.parametrize("at_once", [1 << 22, 64])
def test_features_from_errors_are_those_of_the_largest_gradients(monkeypatch, at_once):
    """All labels at once, and a few at a time; what was connected keeps its weights."""
    monkeypatch.setattr("sparsemax_nb.feature_choice.ENTRIES_PER_CHUNK", at_once)
    x, labels = points(60, 40, 30, seed=2)
    layer = SparseLinear.choose(x, labels, per_point=1, at_least=4)
    dense = layer.arrays.dense >= 0
    assert 0 < dense.sum() < 40
    duals = [sparse_linear_step(x[rows], layer, labels[rows], C=2) for rows in (slice(0, 25), slice(25, 60))]
    duals = [Duals(*some) for _, some in duals]
    signed = np.concatenate([dense_duals(d, (len(d.indptr) - 1, 30)) for d in duals]) * np.where(
        labels.toarray() > 0, 1, -1
    )
    transposed = scipy.sparse.csr_matrix(signed.T)
    by_label, known = (
        SparseRows(transposed.indptr, transposed.indices, transposed.data),
        linear.slots(layer.arrays) >= 0,
    )
    ids = scipy.sparse.csr_matrix(known)
    room = np.maximum(1, 0.5 * known.sum(1)).astype(int)
    wanted = feature_choice.choose_features(
        by_label, rows_of(x), np.zeros(40), (ids.indptr, ids.indices), room, True, 40
    )
    want = layer.weights.toarray()
    for label, (features, sums) in enumerate(wanted):
        want[label, features] = sums
    found = SparseLinear._from_lists(more_features(layer.arrays, x, labels, duals, 0.5))
    np.testing.assert_allclose(found.weights.toarray(), want, atol=1e-5)
    assert found.n_weights == layer.n_weights + sum(len(features) for features, _ in wanted) > layer.n_weights + 30
    np.testing.assert_array_equal(found.arrays.dense >= 0, dense)
    checked_lists(found.arrays, 40, 30)
    without = more_features(layer.arrays, x, labels, [no_duals(60)], 0.5)
    np.testing.assert_array_equal(without.values, layer.arrays.values)


@pytest.mark.parametrize("n_dense", [0, 2])
def test_new_points_bring_features_and_labels(n_dense):
    """Known connections keep their weights; features connected to all labels are connected to the new ones, too."""
    x, labels = points(60, 40, 30, seed=2)
    before = SparseLinear.choose(x[:30], labels[:30, :20], per_point=1, at_least=4, dense=np.arange(n_dense))
    before.arrays.values[:] = np.where(before.arrays.values == 0, 0.5, 0)
    want = before.weights
    extended = SparseLinear._from_lists(extended_lists(before.arrays, x[30:], labels[30:], 1, 6, np.zeros(30, int)))
    checked_lists(extended.arrays, 40, 30)
    found = extended.weights
    np.testing.assert_array_equal(found.toarray()[:20], want.toarray())
    assert not found[20:].data.any() and found.nnz > want.nnz + 10 * n_dense
    new = np.diff(found.indptr)[20:][np.diff(labels[30:, 20:].tocsc().indptr) > 0]
    assert len(new) and (new >= 4 + n_dense).all()


def test_weights_in_memory_of_any_layout():
    """Strided, reversed and read-only arrays of a SciPy matrix mean what they say."""
    given = scipy.sparse.csr_matrix(normal(1, 9, 30) * (normal(2, 9, 30) > 0.5))
    wide, back = np.repeat(given.data, 2)[::2], np.repeat(given.indices[::-1], 2)[::-2]
    matrix = scipy.sparse.csr_matrix((wide, back, given.indptr), given.shape)
    matrix.data, matrix.indices = wide, back
    assert not matrix.data.flags.c_contiguous and not matrix.indices.flags.c_contiguous
    np.testing.assert_array_equal(SparseLinear(matrix).weights.toarray(), given.toarray())
    given.data.flags.writeable = given.indices.flags.writeable = False
    np.testing.assert_array_equal(SparseLinear(given).weights.toarray(), given.toarray())


def test_a_label_has_the_features_of_its_points_only():
    x, labels = points(30, 40, 5)
    labels = scipy.sparse.csr_matrix(labels.multiply(np.arange(5) != 2))
    layer = SparseLinear.choose(x, labels, at_least=100)
    for label in (0, 1, 3, 4):
        rows = labels[:, label].toarray().reshape(-1) > 0
        listed = layer.arrays.labels
        features = np.repeat(np.arange(40), np.diff(layer.arrays.indptr))[listed == label]
        assert set(features) <= set(x[rows].indices)
    assert not (layer.arrays.labels == 2).any()


def test_no_rows(backend):
    x, labels = points(4, 9, 7)
    layer = SparseLinear.choose(x, labels, device=backend.device)
    indptr, nothing = backend.array(np.zeros(1, np.int64)), backend.array(np.empty(0, np.int32))
    rows = indptr, nothing, backend.array(np.empty(0, np.float32))
    loss, duals = sparse_linear_step(rows, layer, Labels(indptr, nothing))
    assert loss == 0 and [len(a) for a in duals] == [1, 0, 0]
    assert sparse_linear_forward(rows, layer).shape == (0, 7) and sparse_linear_top_k(rows, layer, 2)[1].shape == (0, 2)


def test_measures_of_minus_infinity_choose_nothing():
    """A kernel must not take the -1 that stands for them as an index."""
    x = scipy.sparse.csr_matrix(np.ones((2, 3), np.float32))
    by_label, known = (
        SparseRows(np.array([0, 2]), np.arange(2, dtype=np.int32), np.ones(2, np.float32)),
        (np.zeros(2, int), np.empty(0, np.int32)),
    )
    expected = np.array([np.inf, 0, np.inf], np.float32)
    indptr, ids, sums = chosen(by_label, rows_of(x), expected, known, np.array([2]), False)
    assert (indptr.tolist(), ids.tolist(), sums.tolist()) == ([0, 1], [1], [2])


def test_rows_without_features_and_without_labels():
    x, labels = points(20, 10, 6)
    x, labels = x.tolil(), labels.tolil()
    x[3], labels[4] = 0, 0
    x, labels = x.tocsr(), labels.tocsr()
    layer, duals = run(x, labels, 5)
    assert not duals[3].any() and np.isfinite(layer.arrays.values).all()
    scores, ids = sparse_linear_top_k(x[3], layer, 3)
    assert (scores == -1).all() and ids.tolist() == [[0, 1, 2]]
    assert sparse_linear_top_k(x[:0], layer, 2)[1].shape == (0, 2)
    loss, duals = sparse_linear_step(x[:0], layer, labels[:0])
    assert loss == 0 and len(duals[1]) == 0


def test_bad_input():
    x, labels = points(20, 10, 6)
    layer = SparseLinear.choose(x, labels)
    before, step = [a.tobytes() for a in layer.arrays], sparse_linear_step
    nan = x.copy()
    nan.data[3] = np.nan
    _, good = SparseLinear.choose(x, labels), step(x, SparseLinear.choose(x, labels), labels)[1]
    frozen = SparseLinear.choose(x, labels)
    frozen.arrays.values.flags.writeable = False
    for message, call in {
        "layer.values is written to but is read-only": lambda: step(x, frozen, labels),
        "features must have squares that a float32 can hold": lambda: SparseLinear.choose(x * 1e30, labels),
        "layer must be a SparseLinear, got NoneType": lambda: step(x, None, labels),
        r"C must lie in \(0, inf\), got 0": lambda: step(x, layer, labels, C=0),
        r"C must lie in \(0, inf\), got -1": lambda: step(x, layer, labels, C=-1),
        r"slack must lie in \[0, 1.999\], got 2": lambda: step(x, layer, labels, slack=2),
        r"sample_weight must have shape \(20,\), got \(19,\)": lambda: step(x, layer, labels, sample_weight=[1] * 19),
        r"sample_weight must not be negative, got -1": lambda: step(x, layer, labels, sample_weight=[-1] * 20),
        "sample_weight must be finite, got nan": lambda: step(x, layer, labels, sample_weight=[np.nan] * 20),
        "sample_weight must fit float32, got 1e.60; scale": lambda: step(x, layer, labels, sample_weight=[1e60] * 20),
        "sample_weight must hold integers or floats": lambda: step(x, layer, labels, sample_weight=["1"] * 20),
        "sample_weight must be a NumPy or CUDA array, got int": lambda: step(x, layer, labels, sample_weight=1),
        "features must be finite, got NaN or infinity in row 1": lambda: step(nan, layer, labels),
        "features must have 10 columns like the layer, got 9": lambda: sparse_linear_forward(x[:, :9], layer),
        r"labels must have shape \(20, 6\)": lambda: step(x, layer, labels[:, :5]),
        r"duals must have shape \(20, 6\)": lambda: step(x, layer, labels, labels[:3]),
        "duals must not be negative, got -1": lambda: step(x, layer, labels, -labels),
        "duals must hold ids in": lambda: step(x, layer, labels, (good[0], good[1] + 6, good[2])),
        "duals must be a tuple": lambda: step(x, layer, labels, 3),
        "features must be a SciPy sparse matrix or a tuple": lambda: sparse_linear_forward(x.toarray(), layer),
        r"k must be between 1 and 6 \(n_labels = 6\), got 7": lambda: sparse_linear_top_k(x, layer, 7),
        "features must not repeat a feature within one row": lambda: sparse_linear_forward(
            (np.array([0, 2]), np.array([1, 1]), np.ones(2, np.float32)), layer
        ),
        "features.ids must lie in": lambda: sparse_linear_forward(
            (np.array([0, 1]), np.array([10]), np.ones(1, np.float32)), layer
        ),
        "features.indptr must rise from 0": lambda: sparse_linear_forward(
            (np.array([0, 2]), np.array([1]), np.ones(1, np.float32)), layer
        ),
        "at_least must be at least 1, got 0": lambda: SparseLinear.choose(x, labels, at_least=0),
        "features and labels must have the same number of rows": lambda: SparseLinear.choose(x[:5], labels),
        "weights must be a SciPy sparse matrix": lambda: SparseLinear(np.ones((2, 3))),
        "weights must be finite": lambda: SparseLinear(nan),
        r"bias must have shape \(20,\)": lambda: SparseLinear(x, np.zeros(3, np.float32)),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert [a.tobytes() for a in layer.arrays] == before


def test_duplicated_columns_are_summed():
    x, labels = points(20, 10, 6)
    layer, _ = run(x, labels, 3)
    twice = scipy.sparse.csr_matrix((np.repeat(x.data / 2, 2), np.repeat(x.indices, 2), 2 * x.indptr), x.shape)
    np.testing.assert_array_equal(canonical("x", twice).toarray(), x.toarray())
    np.testing.assert_allclose(sparse_linear_forward(twice, layer), sparse_linear_forward(x, layer), rtol=1e-6)
