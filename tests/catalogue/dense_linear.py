"""The linear layer over dense features."""

import functools

import numpy as np

from sparsemax_nb.core.device import SIMULATOR
from sparsemax_nb.cuda import dense_linear as cuda
from sparsemax_nb.reference import dense_linear

from ..helpers import assert_close, integers, normal
from . import Budget, Task, operation, unwritten

#: The first label of the block of labels that an operation gets: the arrays of all labels have others before and after.
FIRST = 2


def lists(is_member, *values):
    """(indptr, columns) of the members of a matrix, and `values` at these positions, row by row."""
    indptr = np.concatenate([[0], np.cumsum(is_member.sum(1))])
    return indptr, np.nonzero(is_member)[1].astype(np.int32), *(v[is_member] for v in values)


def case(n_rows, n_labels):
    """Scores (T, B) of a block of labels; the labels of rows and the dual variables (L, B) of all; thresholds (L,)."""
    n_all = n_labels + 3
    is_label, has_dual = (integers(seed, 0, 4, n_all, n_rows) == 0 for seed in (3, 4))
    duals = np.abs(normal(5, n_all, n_rows)) * has_dual
    return normal(1, n_labels, n_rows), is_label, duals, normal(2, n_all)


def make_mark_active(shape):
    scores, is_label, duals, thresholds = case(*shape)
    counts, some = unwritten(len(scores), dtype=np.int32), slice(FIRST, FIRST + len(scores))
    active = (scores > thresholds[some, None]) | is_label[some] | (duals[some] > 0)
    own, old = lists(is_label), lists(duals > 0, duals)

    def check():
        np.testing.assert_array_equal(counts, active.sum(1))
        np.testing.assert_array_equal(scores > thresholds[some, None], active)

    return Task((scores, FIRST, (own[0].astype(np.int32), own[1]), old, thresholds, counts), check)


def make_list_active(shape):
    scores, _, _, thresholds = case(*shape)
    thresholds[FIRST] = 10  # a label without active rows
    starts, rows = lists(scores > thresholds[FIRST : FIRST + len(scores), None])
    found = unwritten(len(rows), dtype=np.int32)
    return Task((scores, FIRST, thresholds, starts, found), lambda: np.testing.assert_array_equal(found, rows))


def make_update(shape):
    n_rows, n_labels, d = shape
    scores, is_label, duals, _ = case(n_rows, n_labels)
    h, weights, bias = normal(6, n_rows, d) / np.float32(d**0.5), normal(7, n_labels + 3, d), normal(8, n_labels + 3)
    some, before, row_weights = slice(FIRST, FIRST + n_labels), weights.copy(), integers(9, 0, 3, n_rows)
    h[: n_rows // 4] = 0
    active = (scores > 0) | is_label[some] | (duals[some] > 0)
    with np.errstate(divide="ignore"):
        inputs = h, (h * h).sum(1), np.float32(1 / (2 * 0.7 * row_weights))
    starts, rows = lists(active)
    new, losses = unwritten(len(rows)), unwritten(len(rows))

    def check():
        loss, wanted, want_duals = dense_linear.step(
            h, is_label[some].T, duals[some].T, before[some], bias[some], row_weights, 0.7, 0.5, active=active.T
        )
        assert_close(weights[some], wanted, 4 * d * n_rows)
        np.testing.assert_array_equal(weights[:FIRST], before[:FIRST])
        np.testing.assert_array_equal(weights[some.stop :], before[some.stop :])
        assert_close(new, want_duals.T[active], 4 * d * n_rows)
        assert_close(np.float32((row_weights[rows] * losses).sum()), np.float64(loss), 4 * d * n_rows)

    own, old = lists(is_label), lists(duals > 0, duals)
    own = own[0].astype(np.int32), own[1]
    return Task((FIRST, own, old, inputs, 0.5, weights, bias, (starts, rows, new, losses)), check)


def on_few_threads(function):
    """The function, with small blocks in the simulator."""
    return functools.partial(function, block=8) if SIMULATOR else function


OPERATIONS = [
    operation(  # (B, T)
        "dense_linear.mark_active",
        make_mark_active,
        ((1, 1), (9, 3), (33, 5)),
        ((65, 19), (200, 33)),
        on_few_threads(cuda._mark_active),
        None,
    ),
    operation(
        "dense_linear.list_active",
        make_list_active,
        ((1, 2), (9, 3), (33, 5)),
        ((65, 19), (200, 33)),
        on_few_threads(cuda._list_active),
        None,
    ),
    operation(  # (B, T, d)
        "dense_linear.update",
        make_update,
        ((1, 1, 1), (9, 3, 5), (7, 2, 19)),
        ((33, 19, 65), (20, 33, 100)),
        on_few_threads(cuda._update),
        None,
    ),
]

BUDGETS = {
    "mark_active_kernel": Budget(32),
    "list_active_kernel": Budget(32),
    "update_kernel": Budget(64),
}
