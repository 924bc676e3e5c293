"""Unstructured sparse output layer (a baseline) on the CPU: the operation that SciPy lacks."""

import numpy as np
from numba import prange

from ..core.device import njit_parallel
from .simd import LANES, dot, load

ZERO = np.float32(0)
#: Weights per work item.
SPAN = 256


@njit_parallel
def _gradient_of_values(ht, dscores_t, rows, columns, dvalues):
    n_rows = ht.shape[1]
    whole = n_rows // LANES * LANES
    flat_h, flat_g = ht.reshape(-1), dscores_t.reshape(-1)
    for part in prange((dvalues.size + SPAN - 1) // SPAN):
        for j in range(part * SPAN, min((part + 1) * SPAN, dvalues.size)):
            h, g = columns[j] * n_rows, rows[j] * n_rows
            total = ZERO
            for b in range(0, whole, LANES):
                total += dot(load(flat_g, g + b), load(flat_h, h + b))
            for b in range(whole, n_rows):
                total += flat_g[g + b] * flat_h[h + b]
            dvalues[j] = total


def gradient_of_values(ht, dscores_t, rows, columns, dvalues):
    """``dvalues[j] = sum_b dscores_t[rows[j], b] ht[columns[j], b]``: a sampled product of two dense matrices."""
    _gradient_of_values(ht, dscores_t, rows, columns, dvalues)
