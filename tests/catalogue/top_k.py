"""The k best scores of each row, and merged lists of them."""

import functools

import numpy as np

from sparsemax_nb.cuda import top_k as cuda
from sparsemax_nb.reference import top_k

from ..helpers import integers
from . import Budget, Task, operation, unwritten


def check_top_k(outputs, wanted):
    """Scores are exact integers with MANY_LISTS ties: scores and ids must be equal."""
    for got, want in zip(outputs, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def make_top_k(shape):
    n_rows, n_columns, k = shape
    scores = integers(1, -20, 20, n_rows, n_columns)
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    return Task((scores, *outputs), lambda: check_top_k(outputs, top_k.top_k(scores, k)))


def make_merge(shape):
    """Sorted lists of small integers, some not full. Most of the best are zeros of both signs; row 0 has one NaN."""
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


#: (B, lists, k)
FEW_LISTS = (1, 1, 1), (3, 5, 7), (0, 2, 3)
MANY_LISTS = (2, 700, 5), (1, 40, 40), (3, 300, 1), (1, 300, 40)
OPERATIONS = [
    operation(
        "top_k.top_k",
        make_top_k,
        ((1, 1, 1), (3, 7, 7), (5, 67, 3), (0, 5, 1)),
        ((33, 331, 4), (5, 300, 150), (9, 40, 40)),
    ),
    operation(
        "top_k.merge simple", make_merge, FEW_LISTS, ((33, 9, 4),), functools.partial(cuda.merge, shuffles=False), None
    ),
    operation(
        "top_k.merge shuffles",
        make_merge,
        (),
        FEW_LISTS + MANY_LISTS,
        functools.partial(cuda.merge, shuffles=True),
        None,
    ),
]

BUDGETS = {
    "lists_kernel": Budget(64),
    "merge_kernel": Budget(64),
    "merge_warps_kernel": Budget(48, holds=("shfl.sync.bfly",)),
}
