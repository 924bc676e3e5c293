"""Reranking of candidates by label co-occurrence."""

import numpy as np

from sparsemax_nb import CoOccurrence
from sparsemax_nb.reference import co_occurrence

from ..helpers import assert_close, label_matrix, normal
from . import Budget, Task, operation, unwritten


def make_rerank(shape):
    """Candidates of each row; labels co-occur in 40 points. No two sums are so close that rounding decides."""
    n_rows, n, n_labels, k = shape
    scores = -np.sort(-normal(1, n_rows, n), axis=1)
    ids = np.argsort(normal(2, n_rows, n_labels), axis=1)[:, :n].astype(np.int32)
    pairs = CoOccurrence(label_matrix(40, n_labels, 3, 0.2)).arrays
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)

    def check():
        top_scores, top_ids = co_occurrence.rerank(scores, ids, pairs, 0.3, k)
        np.testing.assert_array_equal(outputs[1], top_ids)
        assert_close(outputs[0], top_scores, 4 * k, 5)

    return Task((scores, ids, pairs, np.float32(0.3), *outputs), check)


OPERATIONS = [
    operation(  # (B, K, L, k)
        "co_occurrence.rerank",
        make_rerank,
        ((1, 1, 1, 1), (3, 5, 7, 3), (2, 20, 33, 5)),
        ((0, 3, 4, 2), (33, 32, 65, 32), (9, 20, 100, 20)),
    ),
]

BUDGETS = {
    "rerank_kernel": Budget(64),
}
