"""Weighted sums of embedding rows on CUDA."""

import numpy as np

from ..core.device import cuda, cuda_device, cuda_jit
from . import launch

ZERO = np.float32(0)


@cuda_device
def _weighted_sum(indptr, ids, weights, source, out):
    """``out[b] = sum_j weights[j] source[ids[j]]`` for row b = blockIdx.x.

    The threads of the block share the columns, so each row of `source` is read coalesced. The sum over j stays in a
    register.
    """
    b = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, out.shape[1], cuda.blockDim.x):
        total = ZERO
        for j in range(indptr[b], indptr[b + 1]):
            total += weights[j] * source[ids[j], i]
        out[b, i] = total


@cuda_jit
def forward_kernel(rows, table, out):
    """One block owns one row of out (B, D); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x. Reads rows of table (F, D), writes out, coalesced. No shared memory. No atomics.
    """
    _weighted_sum(rows.indptr, rows.ids, rows.weights, table, out)


def forward(rows, table, out, *, block=launch.BLOCK):
    """``out[b] = sum_j weights[j] table[ids[j]]`` over the entries j of row b."""
    if out.shape[0]:
        forward_kernel[out.shape[0], block](rows, table, out)


@cuda_jit
def backward_kernel(columns, dout, drows):
    """One block owns one row of drows (U, D); thread t owns columns t, t + blockDim.x, ...

    Grid: the touched rows of the table on x. Reads rows of dout (B, D), writes drows, coalesced. The entries are sorted
    by feature, so a block gathers its own sum and no row is written twice. No shared memory. No atomics.
    """
    _weighted_sum(columns.indptr, columns.rows, columns.weights, dout, drows)


def backward(columns, dout, drows, *, block=launch.BLOCK):
    """Gradient of the touched table rows: ``drows[i] = sum_j weights[j] dout[rows[j]]`` over column i."""
    if drows.shape[0]:
        backward_kernel[drows.shape[0], block](columns, dout, drows)
