"""The linear layer over dense features: steps against `reference`, optimality conditions, bad input."""

import numba
import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import Labels, dense_linear_step, sparse_linear_step
from sparsemax_nb.core.device import SIMULATOR, to_numpy
from sparsemax_nb.cpu import dense_linear as cpu
from sparsemax_nb.linear import SparseLinear
from sparsemax_nb.reference import dense_linear

from .helpers import label_matrix, normal, place_labels, threads

#: (B, d, L)
SHAPES = (1, 3, 1), (33, 65, 33), (50, 40, 130), (7, 20, 5), (100, 16, 9)
SIMULATED = (1, 3, 1), (9, 5, 7)


def points(n_rows, d, n_labels, seed=0):
    h = normal(seed, n_rows, d)
    return h / np.linalg.norm(h, axis=1, keepdims=True), label_matrix(n_rows, n_labels, seed + 1, 0.1)


def new_layer(n_labels, d):
    return np.zeros((n_labels, d), np.float32), np.full(n_labels, -1, np.float32)


def dense_duals(duals, shape):
    indptr, labels, values = map(to_numpy, duals)
    return scipy.sparse.csr_matrix((values, labels, indptr), shape).toarray()


def run(h, labels, n_passes, batch=16, layer=None, losses=None, sample_weight=None, **params):
    """(weights, dense duals) after passes over batches of rows; what each step returns goes into `losses`."""
    weights, bias = new_layer(labels.shape[1], h.shape[1]) if layer is None else layer
    duals = {}
    for _ in range(n_passes):
        for first in range(0, len(h), batch):
            rows = slice(first, first + batch)
            params["sample_weight"] = None if sample_weight is None else sample_weight[rows]
            loss, duals[first] = dense_linear_step(h[rows], weights, bias, labels[rows], duals.get(first), **params)
            if losses is not None:
                losses.append(loss)
    parts = [dense_duals(d, (len(d[0]) - 1, labels.shape[1])) for _, d in sorted(duals.items())]
    return weights, np.concatenate(parts)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_steps_equal_reference(backend, slack, weighted):
    """From weights that are not zero: the first scores then are."""
    simulated = backend.device == "cuda" and SIMULATOR
    for shape in SIMULATED if simulated else SHAPES:
        h, labels = points(*shape)
        wanted, bias, duals = 0.3 * normal(3, shape[2], shape[1]), normal(4, shape[2]) - 1, None
        weights, of_duals = backend.array(wanted), np.zeros(labels.shape)
        given = backend.array(h), weights, backend.array(bias), place_labels(backend, labels)
        row_weights = np.arange(shape[0]) % 4 / 2 if weighted else np.ones(shape[0])
        options = {"C": 0.7, "slack": slack} | ({"sample_weight": row_weights} if weighted else {})
        for search in (True, False) if simulated else (True, False, True, False):
            loss, duals = dense_linear_step(*given, duals, search=search, **options)
            want_loss, wanted, of_duals = dense_linear.step(
                h, labels.toarray() > 0, of_duals, wanted, bias, row_weights, 0.7, slack, search
            )
            np.testing.assert_allclose(to_numpy(weights), wanted, atol=1e-5)
            np.testing.assert_allclose(dense_duals(duals, labels.shape), of_duals, atol=1e-5)
            assert loss == pytest.approx(want_loss, rel=1e-5)
            indptr, ids, values = map(to_numpy, duals)
            assert (values > 0).all() and scipy.sparse.csr_matrix(
                (values, ids, indptr), labels.shape
            ).has_sorted_indices


def test_without_search_only_known_pairs_are_visited(backend):
    """A score above the margin has no influence until a step searches."""
    h = backend.array(np.eye(2, dtype=np.float32))
    weights, bias = backend.array(np.float32([[0, 0], [3, 3]])), backend.array(np.float32([-1, -1]))
    labels = place_labels(backend, scipy.sparse.csr_matrix(np.float32([[1, 0], [0, 0]])))
    loss, (indptr, ids, _) = dense_linear_step(h, weights, bias, labels, search=False)
    assert (loss, *(to_numpy(a).tolist() for a in (indptr, ids))) == (4, [0, 1, 1], [0])
    assert (to_numpy(weights)[1] == 3).all()
    loss, (indptr, ids, _) = dense_linear_step(h, weights, bias, labels)
    assert loss > 4 and (to_numpy(indptr).tolist(), to_numpy(ids).tolist()) == ([0, 2, 3], [0, 1, 1])


def test_labels_in_blocks_come_to_the_same_bits(monkeypatch):
    h, labels = points(40, 20, 90)
    found = []
    for at_once in (cpu.MAX_SCORES, 40 * 7, 1):
        monkeypatch.setattr(cpu, "MAX_SCORES", at_once)
        losses = []
        weights, duals = run(h, labels, 3, losses=losses, slack=0.1)
        found.append((losses, weights.tobytes(), duals.tobytes()))
    assert found[0] == found[1] == found[2]


def test_equals_the_layer_over_sparse_features():
    """One that connects every label to every feature."""
    h, labels = points(60, 20, 30)
    every = scipy.sparse.csr_matrix((np.zeros(600), np.indices((30, 20)).reshape(2, -1)), (30, 20))
    layer, weights, duals, sparse_duals = SparseLinear(every), new_layer(30, 20), None, None
    for _ in range(3):
        loss, duals = dense_linear_step(h, *weights, labels, duals, C=2, slack=0.2)
        sparse_loss, sparse_duals = sparse_linear_step(
            scipy.sparse.csr_matrix(h), layer, labels, sparse_duals, C=2, slack=0.2
        )
        assert loss == pytest.approx(sparse_loss, rel=1e-5)
    np.testing.assert_allclose(weights[0], layer.weights.toarray(), atol=1e-5)
    np.testing.assert_allclose(dense_duals(duals, (60, 30)), dense_duals(sparse_duals, (60, 30)), atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [1, 16, 60])
def test_duals_are_optimal(batch, weighted):
    """Of the whole problem, whatever the batch: the conditions of Karush, Kuhn and Tucker, and w = sum a y h."""
    c, slack = 0.6, 0.2
    h, labels = points(60, 30, 12)
    weights = np.arange(60) % 5 / 3 + 0.1 if weighted else None
    w, duals = run(h, labels, 100, batch, C=c, slack=slack, sample_weight=weights)
    y, w, h = np.where(labels.toarray() > 0, 1, -1), w.astype(np.float64), h.astype(np.float64)
    np.testing.assert_allclose(w, (duals * y).T @ h, atol=1e-4)
    margins = y * (h @ w.T - 1) - np.where(y > 0, 1, 1 - slack)
    gradient = margins + duals / (2 * c * (weights[:, None] if weighted else 1))
    assert duals.max() > 0.1 and (duals > 0).sum() > 20
    assert np.abs(gradient[duals > 0]).max() < 1e-4
    assert gradient[duals == 0].min() > -1e-4


def objective(h, labels, weights, c, slack):
    """The primal objective of all labels together."""
    y, w = np.where(labels.toarray() > 0, 1, -1), weights.astype(np.float64)
    errors = np.where(y > 0, 1, 1 - slack) - y * (h.astype(np.float64) @ w.T - 1)
    return (w**2).sum() / 2 + c * (np.maximum(errors, 0) ** 2).sum()


def test_the_objective_falls_to_its_minimum():
    h, labels = points(120, 25, 40, seed=2)
    values, layer, duals = [], new_layer(40, 25), [None] * 3
    for _ in range(40):
        values.append(objective(h, labels, layer[0], 1.0, 0.3))
        for i in range(3):
            rows = slice(40 * i, 40 * i + 40)
            _, duals[i] = dense_linear_step(h[rows], *layer, labels[rows], duals[i], C=1.0, slack=0.3)
    least = objective(h, labels, run(h, labels, 300, C=1.0, slack=0.3)[0], 1.0, 0.3)
    assert np.isfinite(values).all() and values[0] > 1.5 * least
    assert np.diff(values[:5]).max() < 0 and values[-1] == pytest.approx(least, rel=1e-4)


def test_equals_liblinear_with_weights():
    """With bias 0 and slack 0 it is LIBLINEAR's problem without an intercept, one label after the other."""
    svm = pytest.importorskip("sklearn.svm")
    h, labels = points(80, 20, 3, seed=3)
    layer, weights = (np.zeros((3, 20), np.float32), np.zeros(3, np.float32)), np.arange(80) % 3 / 2
    run(h, labels, 150, 8, layer, C=0.8, slack=0.0, sample_weight=weights)
    for label in range(3):
        y = labels[:, label].toarray().reshape(-1) > 0
        theirs = svm.LinearSVC(C=0.8, loss="squared_hinge", dual=True, fit_intercept=False, tol=1e-8, max_iter=100_000)
        theirs.fit(h, y, weights)
        np.testing.assert_allclose(layer[0][label], theirs.coef_[0], atol=1e-4)


def test_rows_of_weight_zero_have_no_influence(backend):
    """The bits are those of steps without these rows, and earlier dual variables of them become zero."""
    h, labels = points(*((6, 5, 7) if backend.device == "cuda" and SIMULATOR else (60, 9, 7)), seed=2)
    weights = np.arange(len(h)) % 2

    def steps(rows, *weights_of_steps):
        """(losses, weights, dense duals) of steps over these rows."""
        layer, duals, losses = tuple(map(backend.array, new_layer(7, h.shape[1]))), None, []
        for some in weights_of_steps:
            loss, duals = dense_linear_step(
                backend.array(h[rows]), *layer, place_labels(backend, labels[rows]), duals, sample_weight=some
            )
            losses.append(loss)
        return losses, to_numpy(layer[0]), dense_duals(duals, labels[rows].shape)

    every_row, rows = np.arange(len(h)), np.flatnonzero(weights)
    losses, values, duals = steps(every_row, weights, weights)
    want_losses, want_values, want_duals = steps(rows, None, None)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
    np.testing.assert_allclose(values, want_values, atol=1e-6)
    np.testing.assert_allclose(duals[rows], want_duals, atol=1e-6)
    assert steps(every_row, None)[2][weights == 0].any()
    assert not steps(every_row, None, weights)[2][weights == 0].any()


def test_rows_of_zeros_and_without_labels():
    """A row of zeros changes nothing: its score is the bias."""
    h, labels = points(20, 10, 6)
    labels = scipy.sparse.csr_matrix(labels.toarray() * (np.arange(20) != 4)[:, None])
    row = int(np.argmax(np.diff(labels.indptr)))
    h[row] = 0
    weights, duals = run(h, labels, 2)
    assert not duals[row].any() and np.isfinite(weights).all() and weights.any()
    loss, _ = dense_linear_step(h[row : row + 1], weights, np.full(6, -1, np.float32), labels[row])
    assert loss == 4 * labels[row].nnz > 0


def test_steps_with_the_largest_and_the_smallest_weights():
    """Those whose 1 / (2 C weight) does not fit float32 count as zero."""
    h, labels = points(12, 9, 7)
    for weight in (3e38, 1e-30, 1e-44, 1e-60):
        layer = new_layer(7, 9)
        loss, duals = dense_linear_step(h, *layer, labels, sample_weight=np.full(12, weight))
        assert np.isfinite(loss) and np.isfinite(layer[0]).all() and np.isfinite(duals[2]).all()
        assert (len(duals[2]) > 0) == (weight > 1e-40)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_same_bits_with_any_number_of_threads():
    def bits(n):
        with threads(n):
            h, labels = points(400, 60, 900, seed=5)
            weights, bias = new_layer(900, 60)
            losses, duals = [], None
            for search in (True, False, True):
                loss, duals = dense_linear_step(h, weights, bias, labels, duals, slack=0.1, search=search)
                losses.append(loss)
            assert len(duals[1]) * 60 > 1 << 18  # enough work for several threads
            return losses, weights.tobytes(), *(a.tobytes() for a in duals)

    assert bits(1) == bits(2) == bits(numba.config.NUMBA_NUM_THREADS)


def test_label_shards_trained_apart_come_to_the_whole():
    h, labels = points(120, 40, 90, seed=6)
    weights, duals = run(h, labels, 3)
    for some in (slice(0, 31), slice(31, 90)):
        shard, shard_duals = run(h, labels[:, some], 3)
        np.testing.assert_allclose(shard, weights[some], atol=1e-6)
        np.testing.assert_allclose(shard_duals, duals[:, some], atol=1e-6)


def test_no_rows(backend):
    weights, bias = map(backend.array, new_layer(7, 9))
    indptr, nothing = backend.array(np.zeros(1, np.int64)), backend.array(np.empty(0, np.int32))
    loss, duals = dense_linear_step(backend.array(np.empty((0, 9), np.float32)), weights, bias, Labels(indptr, nothing))
    assert loss == 0 and [len(a) for a in duals] == [1, 0, 0] and not to_numpy(weights).any()


def test_duals_may_be_a_matrix():
    h, labels = points(20, 10, 30)
    layers = new_layer(30, 10), new_layer(30, 10)
    duals = [dense_linear_step(h, *layer, labels)[1] for layer in layers]
    matrix = scipy.sparse.csr_matrix((duals[1][2], duals[1][1], duals[1][0]), (20, 30))
    for layer, given in zip(layers, (duals[0], matrix.tocoo()), strict=True):
        dense_linear_step(h, *layer, labels, given)
    assert layers[0][0].tobytes() == layers[1][0].tobytes()


def test_overflow_raises(backend):
    """Scores of infinity, and of NaN where there is no label: infinity - infinity."""
    if backend.device == "cuda" and SIMULATOR:
        pytest.skip("NumPy, which stands for the device, warns of the overflow")
    for signs in ((1, 1), (1, -1)):
        h, weights = np.full((1, 2), 1e10, np.float32), np.float32([[3e38 * sign for sign in signs]])
        labels = place_labels(backend, scipy.sparse.csr_matrix((1, 1)))
        with pytest.raises(FloatingPointError, match="the scores overflowed; scale h or the weights down"):
            dense_linear_step(*map(backend.array, (h, weights, np.zeros(1, np.float32))), labels)


def test_bad_input_is_refused_before_anything_changes():
    h, labels = points(20, 10, 6)
    weights, bias = new_layer(6, 10)
    bad, read_only = h.copy(), weights.copy()
    bad[3, 2], read_only.flags.writeable = np.nan, False
    square = np.zeros((20, 10), np.float32)
    cases = {
        "h must be float32": lambda: dense_linear_step(h.astype(np.float64), weights, bias, labels),
        r"h must be finite, got nan at \[3, 2\]": lambda: dense_linear_step(bad, weights, bias, labels),
        "h must have squares that a float32 can hold": lambda: dense_linear_step(h * 1e30, weights, bias, labels),
        r"weights must have shape \(L, 9\)": lambda: dense_linear_step(h[:, :9].copy(), weights, bias, labels),
        "weights must be float32": lambda: dense_linear_step(h, weights.astype(int), bias, labels),
        "weights must be finite": lambda: dense_linear_step(h, np.full((6, 10), np.inf, np.float32), bias, labels),
        "weights is written to but is read-only": lambda: dense_linear_step(h, read_only, bias, labels),
        "must not share memory with h": lambda: dense_linear_step(square, square, np.zeros(20, np.float32), labels),
        r"bias must have shape \(6,\)": lambda: dense_linear_step(h, weights, bias[:5].copy(), labels),
        r"labels must have shape \(20, 6\)": lambda: dense_linear_step(h, weights, bias, labels[:, :5]),
        "C must lie in": lambda: dense_linear_step(h, weights, bias, labels, C=0),
        "slack must lie in": lambda: dense_linear_step(h, weights, bias, labels, slack=2),
        "search must be True or False": lambda: dense_linear_step(h, weights, bias, labels, search=1),
        "sample_weight must not be negative": lambda: dense_linear_step(
            h, weights, bias, labels, sample_weight=np.full(20, -1)
        ),
        r"duals must have shape \(20, 6\)": lambda: dense_linear_step(h, weights, bias, labels, labels[:, :5]),
        "duals must not be negative": lambda: dense_linear_step(h, weights, bias, labels, -labels),
    }
    for message, call in cases.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert not weights.any()
