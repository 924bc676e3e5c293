"""Weighted sum of embedding rows on CUDA."""

import numpy as np

from ..core.device import cuda, cuda_device, cuda_jit
from . import launch

ZERO = np.float32(0)


@cuda_device
def _weighted_sum(indptr, ids, weights, source, out):
    """``out[b] = sum_j weights[j] source[ids[j]]`` for the row b of this block; its threads share the columns."""
    b = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, out.shape[1], cuda.blockDim.x):
        total = ZERO
        for j in range(indptr[b], indptr[b + 1]):
            total += weights[j] * source[ids[j], i]
        out[b, i] = total


@cuda_jit
def forward_kernel(rows, table, out):
    """A block owns one row of out (B, D), a thread its columns t, t + blockDim.x, ...; reads table (F, D) coalesced.

    Grid: rows on x. No shared memory, no atomics.
    """
    _weighted_sum(rows.indptr, rows.ids, rows.weights, table, out)


def forward(rows, table, out, *, block=launch.BLOCK):
    """``out[b] = sum_j weights[j] table[ids[j]]`` over the entries j of row b."""
    if out.shape[0]:
        forward_kernel[out.shape[0], block](rows, table, out)


@cuda_jit
def backward_kernel(columns, dout, drows):
    """A block owns one row of drows (U, D), a thread its columns t, t + blockDim.x, ...; reads dout (B, D) coalesced.

    Grid: touched table rows on x. No shared memory, no atomics.
    """
    _weighted_sum(columns.indptr, columns.rows, columns.weights, dout, drows)


def backward(columns, dout, drows, *, block=launch.BLOCK):
    """Gradient of the touched table rows: ``drows[i] = sum_j weights[j] dout[rows[j]]`` over column i."""
    if drows.shape[0]:
        backward_kernel[drows.shape[0], block](columns, dout, drows)
