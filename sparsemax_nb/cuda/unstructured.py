"""Unstructured sparse output layer (a baseline) on CUDA: the one product that cuSPARSE does not offer."""

import numpy as np

from ..core.device import cuda, cuda_jit
from . import launch

ZERO = np.float32(0)


@cuda_jit
def gradient_of_values_kernel(ht, dscores_t, rows, columns, dvalues):
    """One thread sums the gradient of one weight over the batch.

    Grid: weights on x. Each thread reads one row of ht (H, B) and one of dscores_t (L, B) from end to end; neighbouring
    threads of the same label share the latter in the cache. Writes dvalues (n,) coalesced. No shared memory. No
    atomics.
    """
    j = cuda.grid(1)
    if j < dvalues.size:
        row, column = rows[j], columns[j]
        total = ZERO
        for b in range(ht.shape[1]):
            total += dscores_t[row, b] * ht[column, b]
        dvalues[j] = total


def gradient_of_values(ht, dscores_t, rows, columns, dvalues, *, block=launch.BLOCK):
    """``dvalues[j] = sum_b dscores_t[rows[j], b] ht[columns[j], b]``.

    A sampled product of two dense matrices: only the entries of the sparse pattern are computed.
    """
    gradient_of_values_kernel[launch.flat(dvalues.size, block)](ht, dscores_t, rows, columns, dvalues)
