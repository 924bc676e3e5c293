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
    layer, features = feature_lists(n_labels, n_features), sparse_rows(n_rows, n_features)
    scores = unwritten(n_rows, n_labels)

    def check():
        assert_close(scores, linear.forward(features, layer), n_features + 1)

    return Task((features, layer, scores), check)


def make_top_k_of_lists(shape):
    n_rows, n_features, n_labels, k = shape
    layer, features = feature_lists(n_labels, n_features), sparse_rows(n_rows, n_features)
    layer = layer._replace(values=np.round(layer.values), bias=np.round(layer.bias))
    features = features._replace(weights=np.round(2 * features.weights))
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    return Task((features, layer, *outputs), lambda: check_top_k(outputs, linear.top_k(features, layer, k)))


def make_update_of_lists(shape):
    """Pairs sorted by label, then row: all labels of each row, and half of the other labels."""
    n_rows, n_features, n_labels = shape
    layer, features = feature_lists(n_labels, n_features), sparse_rows(n_rows, n_features)
    is_label, is_other = (
        a.reshape(n_labels, n_rows) > 0
        for a in (integers(3, 0, 2, n_labels * n_rows), integers(4, 0, 2, n_labels * n_rows))
    )
    duals = np.abs(normal(5, n_labels, n_rows)) * (is_label | is_other)
    labels, rows = np.nonzero(is_label | is_other)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(labels)]])
    old, losses = duals[labels, rows], unwritten(len(labels))
    before, updated = copy.deepcopy(layer), old.copy()
    row_weights = integers(6, 0, 3, n_rows).astype(np.float32)

    def check():
        active = (is_label | is_other).T
        loss, values, new = linear.step(features, is_label.T, duals.T, before, row_weights, 0.7, 2.5, active=active)
        assert_close(updated, new.T[labels, rows], 4 * n_features * n_rows)
        assert_close(layer.values, values, 4 * n_features * n_rows)
        assert_close(np.float32((row_weights[rows] * losses).sum()), np.float64(loss), 4 * n_features * n_rows)

    arrays = starts.astype(np.int64), rows.astype(np.int32), labels.astype(np.int32), is_label[labels, rows]
    return Task((features, *arrays, layer, row_weights, 0.7, 2.5, updated, losses), check)


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
        ((0, 3, 2, 2), (33, 65, 19, 7), (2, 30, 200, 70)),
    ),
    operation("linear.update", make_update_of_lists, ((1, 1, 1), (2, 5, 3)), ((9, 65, 19), (7, 40, 33)), update, None),
]

BUDGETS = {
    "lists_kernel": Budget(48),
    "update_kernel": Budget(64),
}
