"""The linear layer over sparse features."""

import copy
import functools

import numpy as np

from sparsemax_nb.core.device import SIMULATOR
from sparsemax_nb.cuda import linear as cuda
from sparsemax_nb.reference import linear

from ..helpers import assert_close, feature_lists, integers, normal, sparse_rows
from . import Budget, Task, operation, unwritten
from .top_k import check_top_k


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


update = functools.partial(cuda._update, block=8) if SIMULATOR else cuda._update
OPERATIONS = [
    operation(  # (B, F, L)
        "linear.forward",
        make_forward_of_lists,
        ((1, 1, 1), (3, 7, 5), (4, 9, 33)),
        ((0, 3, 2), (33, 65, 19), (9, 100, 70)),
    ),
    operation(  # (B, F, L, k)
        "linear.top_k",
        make_top_k_of_lists,
        ((1, 1, 1, 1), (3, 7, 5, 5), (4, 9, 33, 3)),
        ((0, 3, 2, 2), (33, 65, 19, 7), (2, 30, 330, 100)),
    ),
    operation("linear.update", make_update_of_lists, ((1, 1, 1), (2, 5, 3)), ((9, 65, 19), (7, 40, 33)), update, None),
]

BUDGETS = {
    "lists_kernel": Budget(48),
    "update_kernel": Budget(64),
}
