"""Some labels of a fixed fan-in layer for each row."""

import numpy as np

from sparsemax_nb.core import sparse
from sparsemax_nb.reference import sampled_fan_in

from ..helpers import assert_close, layer_arrays, normal
from . import Budget, Task, operation, unwritten

#: (B, H, L, K, M): one of everything; K = H; no size a multiple of a block; no rows. M draws per row.
SMALL = (1, 1, 1, 1, 1), (3, 7, 5, 7, 4), (9, 5, 7, 3, 6), (0, 5, 3, 2, 1)
LARGE = (33, 70, 17, 40, 9), (20, 31, 300, 9, 70)


def entries_of(n_rows, n_labels, n_samples):
    """Two rows of entries for each row of h, as a sampled softmax has them: up to two labels, then the draws."""
    random = np.random.default_rng(3)
    counts = np.concatenate([random.integers(0, 3, n_rows), np.full(n_rows, n_samples)])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ids = random.integers(0, n_labels, indptr[-1]).astype(np.int32)
    return sparse.SparseRows(indptr, ids, normal(4, len(ids)))


def make_scores(shape):
    n_rows, n_inputs, n_labels, fan_in, n_samples = shape
    layer, h = layer_arrays(n_labels, n_inputs, fan_in), normal(1, n_rows, n_inputs)
    indptr, ids, _ = entries_of(n_rows, n_labels, n_samples)
    out = unwritten(len(ids))
    return Task(
        (h, layer, indptr, ids, out),
        lambda: assert_close(out, sampled_fan_in.scores(h, layer, indptr, ids), fan_in + 1),
    )


def make_backward(shape):
    n_rows, n_inputs, n_labels, fan_in, n_samples = shape
    layer, h = layer_arrays(n_labels, n_inputs, fan_in), normal(1, n_rows, n_inputs)
    entries = entries_of(n_rows, n_labels, n_samples)
    columns = sparse.by_column(entries)
    columns = columns._replace(rows=columns.rows % np.int32(max(n_rows, 1)))
    outputs = unwritten(n_rows, n_inputs), unwritten(n_labels, fan_in), unwritten(n_labels)
    absent = np.setdiff1d(np.arange(n_labels), entries.ids)

    def check():
        wanted = sampled_fan_in.backward(h, layer, entries)
        n_terms = np.bincount(columns.ids, minlength=1).size * fan_in, len(entries.ids), len(entries.ids)
        for got, want, terms in zip(outputs, wanted, n_terms, strict=True):
            if want.shape[:1] == (n_labels,) and got is not outputs[0]:
                assert np.isnan(got[absent]).all(), "labels that do not occur are not touched"
                got, want = np.delete(got, absent, axis=0), np.delete(want, absent, axis=0)
            assert_close(got, want, terms)

    return Task((h, layer, entries, columns, *outputs), check)


OPERATIONS = [
    operation("sampled_fan_in.scores", make_scores, SMALL, LARGE),
    operation("sampled_fan_in.backward", make_backward, SMALL, LARGE),
]

BUDGETS = {
    "gradient_of_labels_kernel": Budget(48),
    "gradient_of_rows_kernel": Budget(56),
    "scores_kernel": Budget(48),
}
