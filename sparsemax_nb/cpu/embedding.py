"""Weighted sum of embedding rows on the CPU."""

import numpy as np
from numba import prange

from ..core import backend

ZERO = np.float32(0)


@backend.njit_parallel
def forward(rows, table, out):
    """``out[b] = sum_j weights[j] table[ids[j]]`` over the entries j of row b."""
    for b in prange(out.shape[0]):
        out[b] = ZERO
        for j in range(rows.indptr[b], rows.indptr[b + 1]):
            weight, source = rows.weights[j], table[rows.ids[j]]
            for i in range(out.shape[1]):
                out[b, i] += weight * source[i]


@backend.njit_parallel
def backward(columns, dout, drows):
    """Gradient of the touched table rows: ``drows[i] = sum_j weights[j] dout[rows[j]]`` over column i."""
    for c in prange(drows.shape[0]):
        drows[c] = ZERO
        for j in range(columns.indptr[c], columns.indptr[c + 1]):
            weight, source = columns.weights[j], dout[columns.rows[j]]
            for i in range(drows.shape[1]):
                drows[c, i] += weight * source[i]
