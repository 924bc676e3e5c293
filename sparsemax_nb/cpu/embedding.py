"""Weighted sum of embedding rows on the CPU."""

import numpy as np
from numba import prange

from ..core.device import njit, njit_parallel

ZERO = np.float32(0)


@njit
def _weighted_sum(indptr, ids, weights, source, i, out):
    """``out = sum_j weights[j] source[ids[j]]`` over the entries j of row (or column) i of a sparse structure."""
    out[:] = ZERO
    for j in range(indptr[i], indptr[i + 1]):
        weight, row = weights[j], source[ids[j]]
        for d in range(out.size):
            out[d] += weight * row[d]


@njit_parallel(work=lambda rows, table, out: rows.ids.size * table.shape[1])
def forward(rows, table, out):
    """``out[b] = sum_j weights[j] table[ids[j]]`` over the entries j of row b."""
    for b in prange(out.shape[0]):
        _weighted_sum(rows.indptr, rows.ids, rows.weights, table, b, out[b])


@njit_parallel
def backward(columns, dout, drows):
    """Gradient of the table rows in use: ``drows[i] = sum_j weights[j] dout[rows[j]]`` over column i."""
    for c in prange(drows.shape[0]):
        _weighted_sum(columns.indptr, columns.rows, columns.weights, dout, c, drows[c])
