"""The kernel machine over nearest neighbors: steps against `reference`, the objective, a small problem."""

import numba
import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import (
    Labels,
    NeighborKernel,
    nearest_neighbors,
    neighbor_kernel_forward,
    neighbor_kernel_step,
    neighbor_kernel_top_k,
)
from sparsemax_nb.core.connections import PaddedDuals
from sparsemax_nb.core.device import SIMULATOR, to_numpy
from sparsemax_nb.reference import neighbor_kernel as reference

from .helpers import assert_close, label_matrix, normal, threads

#: Points, labels, neighbors, width of the lists.
SHAPES = (1, 1, 1, 1), (33, 65, 7, 65), (40, 20, 40, 3), (65, 33, 9, 33)
SIMULATED = (1, 1, 1, 1), (9, 7, 4, 7)


def points(n, d=5, seed=0, nonnegative=False):
    """Rows of length 1."""
    x = np.abs(normal(seed, n, d)) if nonnegative else normal(seed, n, d)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def no_duals(n, width):
    return PaddedDuals(np.zeros(n, np.int32), np.zeros((n, width), np.int32), np.zeros((n, width), np.float32))


def graph(x, m, power=2):
    """(neighbors, kernels) of points among each other."""
    similarities, ids = nearest_neighbors(x, x, m)
    return ids, np.maximum(similarities, 0) ** np.float32(power)


def assert_same_lists(got, want):
    """The same labels in the same order, and values up to rounding."""
    np.testing.assert_array_equal(got.count, want.count)
    for i, n in enumerate(want.count):
        np.testing.assert_array_equal(got.labels[i, :n], want.labels[i, :n])
        np.testing.assert_allclose(got.values[i, :n], want.values[i, :n], atol=1e-5)


def placed(backend, *arrays):
    return tuple(map(backend.array, arrays))


def some_labels(backend, matrix):
    return matrix if backend.device == "cpu" else Labels(*placed(backend, matrix.indptr, matrix.indices))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_steps_equal_reference(backend, slack, weighted):
    """Over batches of shuffled rows, with a held-out point, a point of length 0, and ids of -1."""
    for n, n_labels, m, width in SIMULATED if backend.device == "cuda" and SIMULATOR else SHAPES:
        x = points(n)
        x[n // 2 : n // 2 + (n > 1)] = 0
        neighbors, kernels = graph(x, m)
        neighbors[:, -1] = np.where(np.arange(n) % 3, neighbors[:, -1], -1)
        labels, weights = label_matrix(n, n_labels, 1), np.arange(n) % 4 / 2
        wanted, duals = no_duals(n, width), PaddedDuals(*placed(backend, *no_duals(n, width)))
        on_device = placed(backend, neighbors, kernels)
        for seed in range(3):
            rows = np.random.default_rng(seed).permutation(n)[: max(1, n - 1)].astype(np.int32)
            own, some = labels[rows], weights[rows] if weighted else np.ones(len(rows))
            options = {"C": 0.7, "slack": slack} | ({"sample_weight": some} if weighted else {})
            loss = neighbor_kernel_step(
                backend.array(rows), *on_device, duals, some_labels(backend, own), n_labels, **options
            )
            losses, wanted = reference.step(
                rows, neighbors, kernels, Labels(own.indptr, own.indices), some, 0.7, slack, n_labels, wanted
            )
            assert_same_lists(PaddedDuals(*map(to_numpy, duals)), wanted)
            assert loss == pytest.approx((some * losses).sum(), rel=1e-5)


def slopes(kernel, c, weights=1):
    """``1 / (2 C)`` and the damping of each point, over a full kernel."""
    return 1 / (2 * c) + np.sqrt(2 * ((kernel**2).sum(1) - np.diag(kernel) ** 2)) / np.minimum(1, weights)


def objective(x, power, y, duals, c, slack):
    """The dual problem's objective, of all labels, over a full kernel: what a step must not raise."""
    kernel = np.maximum(x.astype(np.float64) @ x.T, 0) ** power
    signed = reference.dense(duals, y.shape[1])
    a, signs = np.abs(signed), np.where(y, 1, -1)
    targets = np.where(y, 1, 1 - slack) + signs  # the bias of -1 is part of the target
    return 0.5 * (signed * (kernel @ signed)).sum() - (a * targets).sum() + slopes(kernel, c) @ (a**2).sum(1) / 2


@pytest.mark.parametrize("n_copies", [1, 2, 30])
@pytest.mark.parametrize("batch", [1, 7, 60])
def test_the_objective_never_rises(batch, n_copies):
    """Not even where all rows of a batch are the same: each alone would move as far as all should together."""
    x = np.repeat(points(60 // n_copies, nonnegative=True), n_copies, axis=0)
    y = label_matrix(60, 8, 3, 0.2)
    neighbors, kernels = graph(x, 60)
    duals, found = no_duals(60, 8), [0.0]
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(60)
        for first in range(0, 60, batch):
            rows = order[first : first + batch]
            neighbor_kernel_step(rows, neighbors, kernels, duals, y[rows], 8, C=2.0, slack=0.1)
            found.append(objective(x, 2, y.toarray() > 0, duals, 2.0, 0.1))
    assert (np.diff(found) <= 1e-4).all() and found[-1] < -1


def test_duals_are_optimal():
    """The conditions of Karush, Kuhn and Tucker of the whole problem, after many steps over batches."""
    x, y, c, slack = points(40, nonnegative=True), label_matrix(40, 6, 2, 0.2), 0.6, 0.2
    neighbors, kernels = graph(x, 40)
    duals, weights = no_duals(40, 6), np.arange(40) % 3 / 2 + 0.5
    for seed in range(2000):
        rows = np.random.default_rng(seed).permutation(40)[:4]
        neighbor_kernel_step(rows, neighbors, kernels, duals, y[rows], 6, C=c, slack=slack, sample_weight=weights[rows])
    signed, signs = reference.dense(duals, 6), np.where(y.toarray() > 0, 1, -1)
    kernel = np.maximum(x.astype(np.float64) @ x.T, 0) ** 2
    a = signs * signed
    margins = np.where(signs > 0, 1, 1 - slack)
    gradient = signs * (kernel @ signed - 1) - margins + slopes(kernel, c * weights, weights)[:, None] * a
    assert (a > 0).sum() > 40
    assert np.abs(gradient[a > 0]).max() < 1e-3 and gradient[a == 0].min() > -1e-3


def test_learns_a_small_problem():
    """Five clusters of points, a label each and one for all: nearly all of the training points are right."""
    centers = points(5, 16, 1)
    x = np.repeat(centers, 40, axis=0) + np.float32(0.15) * normal(2, 200, 16)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    cluster = np.repeat(np.arange(5), 40)
    y = scipy.sparse.csr_matrix((np.ones(200), (np.arange(200), cluster)), (200, 6)).tolil()
    y[:, 5] = 1
    y = y.tocsr()
    neighbors, kernels = graph(x, 20, 4)
    duals = no_duals(200, 34)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(200)
        losses = [
            neighbor_kernel_step(rows, neighbors, kernels, duals, y[rows], 6, C=1.0) for rows in np.split(order, 4)
        ]
    assert sum(losses) < 160  # a tenth of those at the start, 4 for each of 400 labels
    layer = NeighborKernel(x, duals, np.full(6, -1, np.float32), power=4, n_neighbors=20)
    scores = neighbor_kernel_forward(x, layer)
    assert (scores[:, :5].argmax(1) == cluster).mean() > 0.97 and (scores[:, 5] > 0).mean() > 0.97


def some_layer(backend, n, d, n_labels, n_neighbors, power=2.0):
    duals = label_matrix(n, n_labels, 5).multiply(normal(6, n, n_labels)).tocsr().astype(np.float32)
    return NeighborKernel(
        points(n, d, 7),
        duals,
        normal(8, n_labels) if n_labels % 2 else None,
        power=power,
        n_neighbors=n_neighbors,
        device=backend.device,
    )


def test_forward_and_top_k_equal_reference(backend):
    shapes = ((1, 1, 1, 1, 1), (3, 9, 5, 7, 4))
    for n_rows, n, d, n_labels, m in (
        shapes if backend.device == "cuda" and SIMULATOR else (*shapes, (33, 65, 17, 300, 9), (0, 5, 3, 2, 9))
    ):
        layer, h = some_layer(backend, n, d, n_labels, m, 3.0), points(n_rows, d, 9)
        h[n_rows // 2 : n_rows // 2 + (n_rows > 1)] = 0
        similarities, ids = reference.nearest(h, to_numpy(layer.points), min(m, n))
        want = reference.forward(
            ids, reference.kernel(similarities, 3.0), type(layer.arrays)(*map(to_numpy, layer.arrays)),
            to_numpy(layer.bias),
        )  # fmt: skip
        scores = to_numpy(neighbor_kernel_forward(backend.array(h), layer))
        assert_close(scores, want, m + d)
        assert n_rows < 2 or (scores[n_rows // 2] == to_numpy(layer.bias)).all()
        for k in {1, n_labels}:
            found = neighbor_kernel_top_k(backend.array(h), layer, k)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            np.testing.assert_array_equal(to_numpy(found[1]), order)
            np.testing.assert_array_equal(to_numpy(found[0]), np.take_along_axis(scores, order, 1))


def test_nearest_neighbors_are_exact(backend):
    """Small integers: products are exact, with many ties."""
    shapes = ((1, 1, 1, 1), (3, 9, 2, 5))
    for n_rows, n, d, k in (
        shapes if backend.device == "cuda" and SIMULATOR else (*shapes, (50, 300, 3, 200), (0, 3, 2, 2))
    ):
        h, x = np.round(normal(0, n_rows, d)), np.round(normal(1, n, d))
        similarities, ids = map(to_numpy, nearest_neighbors(*placed(backend, h, x), k))
        want = np.argsort(-(h @ x.T), axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(ids, want)
        np.testing.assert_array_equal(similarities, np.take_along_axis(h @ x.T, want, 1))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_same_bits_with_any_number_of_threads():
    x, y = points(2000, 40), label_matrix(2000, 300, 1, 0.01)

    def bits(n):
        with threads(n):
            neighbors, kernels = graph(x, 150)
            duals, losses = no_duals(2000, 40), []
            for rows in np.array_split(np.arange(2000), 3):
                losses.append(neighbor_kernel_step(rows, neighbors, kernels, duals, y[rows], 300))
            layer = NeighborKernel(x, duals, np.full(300, -1, np.float32))
            return losses, [a.tobytes() for a in (neighbors, kernels, *duals, *neighbor_kernel_top_k(x, layer, 5))]

    assert bits(1) == bits(2)


@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_labels_that_have_changed(backend, slack):
    """A dual variable whose sign is not that of the label counts as 0, and the list stays one without repeats."""
    n, n_labels = 6, 5
    neighbors, kernels = graph(points(n), n)
    count, listed = np.full(n, n_labels, np.int32), np.tile(np.arange(n_labels, dtype=np.int32), (n, 1))
    before = PaddedDuals(count, listed, np.where(normal(1, n, n_labels) > 0, 1, -1).astype(np.float32))
    rows, labels = np.arange(n, dtype=np.int32), label_matrix(n, n_labels, 2)
    duals = PaddedDuals(*placed(backend, *before))
    arguments = placed(backend, rows, neighbors, kernels)
    neighbor_kernel_step(*arguments, duals, some_labels(backend, labels), n_labels, slack=slack)
    own = Labels(labels.indptr, labels.indices)
    _, want = reference.step(rows, neighbors, kernels, own, np.ones(n), 1.0, slack, n_labels, before)
    assert_same_lists(PaddedDuals(*map(to_numpy, duals)), want)
    signed = reference.dense(want, n_labels)
    assert (signed[labels.toarray() > 0] >= 0).all() and (signed[labels.toarray() == 0] <= 0).all()


def test_a_full_list_keeps_own_labels_then_those_it_had():
    neighbors, kernels = np.array([[0, 1], [1, -1]], np.int32), np.ones((2, 2), np.float32)
    labels = scipy.sparse.csr_matrix(np.array([[0, 0, 0, 1, 0]]))
    listed = np.array([[2, 0, 0], [0, 1, 2]], np.int32)
    duals = np.array([1, 3], np.int32), listed, np.array([[-0.5, 0, 0], [2, 2, 2]], np.float32)
    neighbor_kernel_step(np.array([0]), neighbors, kernels, duals, labels, 5, slack=0.1)
    assert duals[0].tolist() == [3, 3] and duals[1][0].tolist() == [3, 2, 0]
    assert (np.sign(duals[2][0]) == [1, -1, -1]).all()


def test_a_row_of_weight_zero_or_without_a_kernel_with_itself_gets_no_duals():
    x, labels = points(12), label_matrix(12, 7, 1)
    neighbors, kernels = graph(x, 12)
    neighbors[3][neighbors[3] == 3] = -1
    duals, rows = no_duals(12, 8), np.arange(12)
    neighbor_kernel_step(rows, neighbors, kernels, duals, labels, 7)
    assert duals.count[3] == 0 and (np.delete(duals.count, 3) > 0).any()
    loss = neighbor_kernel_step(rows, neighbors, kernels, duals, labels, 7, sample_weight=np.zeros(12))
    assert loss == 0 and not duals.count.any()


def test_layers_from_lists_and_matrices_are_equal(backend):
    x = points(9)
    count, listed = np.arange(9, dtype=np.int32) % 4, np.argsort(normal(1, 9, 6), axis=1)[:, :3].astype(np.int32)
    lists, bias = PaddedDuals(count, listed, normal(2, 9, 3)), normal(3, 6)
    layers = [
        NeighborKernel(x, lists, bias, power=2, n_neighbors=4, device=backend.device),
        NeighborKernel._from_padded(x, *lists, bias, 2, 4, backend.device),
    ]
    layers.append(NeighborKernel(x, layers[0].duals, bias, power=2, n_neighbors=4, device=backend.device))
    np.testing.assert_allclose(layers[0].duals.toarray(), reference.dense(lists, 6), rtol=1e-6)
    for layer in layers:
        assert layer.device == backend.device and layer.nbytes == 4 * (9 * 5 + 6) + 8 * (10 + count.sum())
        assert (layer.n_points, layer.n_inputs, layer.n_labels, layer.n_duals) == (9, 5, 6, count.sum())
        assert (layer.duals != layers[0].duals).nnz == 0 and layer.duals.has_sorted_indices
        assert repr(layer).startswith("NeighborKernel(n_points=9, n_inputs=5, n_labels=6, n_neighbors=4, power=2, ")


def test_bad_input():
    x, h, y = points(4), points(3), label_matrix(4, 6, 1)
    layer = NeighborKernel(x, y.astype(np.float32))
    rows, (neighbors, kernels), lists = np.arange(4), graph(x, 2), no_duals(4, 3)

    def step(**changed):
        given = {"rows": rows, "neighbors": neighbors, "kernels": kernels, "duals": lists, "labels": y, "n_labels": 6}
        return lambda: neighbor_kernel_step(**(given | changed))

    for message, call in {
        "k must be between 1 and 4": lambda: nearest_neighbors(h, x, 5),
        r"h must have shape \(B, 5\)": lambda: nearest_neighbors(h[:, :4].copy(), x, 1),
        "points must be finite": lambda: nearest_neighbors(h, x * np.float32(np.nan), 1),
        "N .the length of points. must": lambda: nearest_neighbors(h, x[:0], 1),
        "points must have rows of length 1 or 0, got 2 in row 0": lambda: NeighborKernel(2 * x, y),
        "duals must have 4 rows like points, got 3": lambda: NeighborKernel(x, y[:3]),
        "duals must be a SciPy sparse matrix": lambda: NeighborKernel(x, y.toarray()),
        "bias must be given with a tuple": lambda: NeighborKernel(x, lists),
        r"bias must have shape \(6,\)": lambda: NeighborKernel(x, y, h[0]),
        r"power must lie in \[1, 100\], got 0": lambda: NeighborKernel(x, y, power=0),
        "n_neighbors must be at least 1": lambda: NeighborKernel(x, y, n_neighbors=0),
        "device must be one of": lambda: NeighborKernel(x, y, device="gpu"),
        "layer must be a NeighborKernel": lambda: neighbor_kernel_forward(h, y),
        "h must have rows of length 1 or 0": lambda: neighbor_kernel_forward(h / 2, layer),
        "k must be between 1 and 6": lambda: neighbor_kernel_top_k(h, layer, 7),
        "out must not share memory": lambda: neighbor_kernel_forward(x, NeighborKernel(x, y[:, :5]), out=x),
        "rows must not contain a point twice": step(rows=np.array([0, 1, 2, 2])),
        r"rows must lie in \[0, 4\), got 4": step(rows=rows + 1),
        r"neighbors must lie in \[-1, 4\), got": step(neighbors=neighbors + 1),
        r"kernels must have shape \(4, 2\)": step(kernels=kernels[:, :1].copy()),
        "kernels must not be negative": step(kernels=-kernels),
        "kernels.rows. must be finite": step(kernels=kernels + np.float32(np.inf)),
        "kernels and duals are too large": step(
            kernels=kernels * np.float32(1e20), duals=(*lists[:2], np.ones((4, 3), np.float32))
        ),
        r"duals must be a tuple \(count, labels, values\)": step(duals=list(lists)),
        r"duals.count must lie in \[0, 4\), got 4": step(duals=(lists[0] + 4, *lists[1:])),
        r"duals.labels must lie in \[0, 6\), got 6": step(duals=(lists[0], lists[1] + 6, lists[2])),
        "duals.values must be float32": step(duals=(*lists[:2], lists[2].astype(np.float64))),
        r"labels must have shape \(4, 6\)": step(labels=y[:3]),
        "n_labels must be at least 1|between 1": step(n_labels=0),
        "C must lie in": step(C=0),
        r"slack must lie in \[0, 1.999\], got 2": step(slack=2),
        "sample_weight must not be negative": step(sample_weight=-np.ones(4)),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    frozen = lists._replace(values=lists.values.copy())
    frozen.values.flags.writeable = False
    with pytest.raises(ValueError, match=r"duals.values is written to but is read-only"):
        step(duals=frozen)()
    assert not any(a.any() for a in lists)
    with pytest.raises(FloatingPointError, match="the products h @ points.T overflowed"):
        nearest_neighbors(h * np.float32(1e30), x * np.float32(1e30), 1)
