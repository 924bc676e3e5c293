"""The kernel machine over nearest neighbors."""

import copy
import functools

import numpy as np

from sparsemax_nb import Labels
from sparsemax_nb.core.connections import Duals, PaddedDuals
from sparsemax_nb.core.device import SIMULATOR
from sparsemax_nb.cuda import neighbor_kernel as cuda
from sparsemax_nb.reference import neighbor_kernel

from ..helpers import assert_close, integers, label_matrix, normal
from . import Budget, Task, operation, unwritten


def neighbor_lists(n_rows, n_points, n_neighbors):
    """(neighbors, kernels): ids without order, of which about a fifth are -1, and kernels, some of them 0."""
    ids = np.argsort(normal(1, n_rows, n_points), axis=1)[:, :n_neighbors].astype(np.int32)
    ids[integers(2, 0, 5, n_rows, n_neighbors) == 0] = -1
    return ids, np.maximum(normal(3, n_rows, n_neighbors), 0)


def make_forward(shape):
    n_rows, n_points, n_neighbors, n_labels = shape
    neighbors, kernels = neighbor_lists(n_rows, n_points, n_neighbors)
    matrix = label_matrix(n_points, n_labels, 4)
    duals = Duals(matrix.indptr.astype(np.int64), matrix.indices, normal(5, matrix.nnz))
    bias, scores = normal(6, n_labels), unwritten(n_rows, n_labels)

    def check():
        assert_close(scores, neighbor_kernel.forward(neighbors, kernels, duals, bias), n_neighbors + 1)

    return Task((neighbors, kernels, duals, bias, scores), check)


def make_step(shape, slack=0.3):
    """Every second point has itself as a neighbor; half of the lists are full of labels, which may be its own."""
    n_rows, n_points, n_neighbors, n_labels, width = shape
    neighbors, kernels = neighbor_lists(n_points, n_points, n_neighbors)
    neighbors[::2] = np.where(neighbors[::2] == np.arange(n_points)[::2, None], -1, neighbors[::2])
    neighbors[::2, 0], kernels[::2, 0] = np.arange(n_points)[::2], 1
    rows = np.random.default_rng(7).permutation(n_points)[:n_rows].astype(np.int32)
    own = label_matrix(n_points, n_labels, 8, 0.15)
    listed = np.argsort(normal(9, n_points, n_labels), axis=1)[:, :width].astype(np.int32)
    signs = np.take_along_axis(np.where(own.toarray() > 0, 1, -1), listed.astype(np.int64), 1)
    values = (np.abs(normal(10, n_points, width)) * signs).astype(np.float32)
    count = (integers(11, 0, 2, n_points) * integers(12, 0, width + 1, n_points)).astype(np.int32)
    duals, row_weights = PaddedDuals(count, listed, values), integers(13, 0, 4, n_rows)
    labels = Labels(own[rows].indptr, own[rows].indices)
    before, losses = copy.deepcopy(duals), unwritten(n_rows)

    def check():
        want_losses, want = neighbor_kernel.step(
            rows, neighbors, kernels, labels, row_weights, 0.7, slack, n_labels, before
        )
        np.testing.assert_array_equal(duals.count, want.count)
        stored = np.arange(width) < want.count[:, None]
        np.testing.assert_array_equal(duals.labels[stored], want.labels[stored])
        assert_close(duals.values[stored], want.values[stored].astype(np.float64), 8 * n_neighbors)
        assert_close(losses, want_losses, 8 * n_neighbors * n_labels)

    return Task((rows, neighbors, kernels, labels, row_weights, 0.7, slack, n_labels, duals, losses), check)


step = functools.partial(cuda.step, block=8) if SIMULATOR else cuda.step
OPERATIONS = [
    operation(  # (B, N, M, L)
        "neighbor_kernel.forward",
        make_forward,
        ((1, 1, 1, 1), (3, 7, 5, 9), (4, 9, 9, 33)),
        ((0, 3, 2, 5), (33, 65, 20, 70), (9, 20, 3, 300)),
    ),
    operation(  # (B, N, M, L, W)
        "neighbor_kernel.step",
        make_step,
        ((1, 1, 1, 1, 1), (3, 7, 5, 9, 9), (4, 9, 9, 33, 3)),
        ((0, 3, 2, 5, 2), (33, 65, 20, 70, 40), (60, 65, 33, 19, 2)),
        step,
    ),
]

BUDGETS = {
    "forward_kernel": Budget(48),
    "step_kernel": Budget(72),
}
