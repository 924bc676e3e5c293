"""Bags of features: weighted sums of rows of a table."""

import numpy as np

from sparsemax_nb.core import sparse
from sparsemax_nb.reference import embedding

from ..helpers import assert_close, label_matrix, normal
from . import Budget, Task, operation, unwritten


def random_rows(n_rows, n_features):
    """Random `SparseRows` with empty rows and features that never occur."""
    matrix = label_matrix(n_rows, n_features)
    matrix.data[:] = normal(4, matrix.nnz)
    return sparse.as_rows(matrix, "cpu")


def make_embedding(shape):
    n_rows, n_features, width = shape
    rows, table, out = random_rows(n_rows, n_features), normal(1, n_features, width), unwritten(n_rows, width)
    terms = np.diff(rows.indptr).max(initial=0)
    return Task((rows, table, out), lambda: assert_close(out, embedding.forward(rows, table), terms))


def make_embedding_backward(shape):
    n_rows, n_features, width = shape
    columns, dout = sparse.by_column(random_rows(n_rows, n_features)), normal(1, n_rows, width)
    drows = unwritten(len(columns.ids), width)
    terms = np.diff(columns.indptr).max(initial=0)
    return Task((columns, dout, drows), lambda: assert_close(drows, embedding.backward(columns, dout), terms))


#: (B, F, D)
SHAPES = ((3, 7, 5), (9, 5, 3), (0, 3, 2)), ((65, 33, 31), (33, 100, 300))
OPERATIONS = [
    operation("embedding.forward", make_embedding, *SHAPES),
    operation("embedding.backward", make_embedding_backward, *SHAPES),
]

BUDGETS = {
    "backward_kernel": Budget(48),
    "forward_kernel": Budget(48),
}
