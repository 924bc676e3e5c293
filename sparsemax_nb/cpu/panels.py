"""Products of a few rows with one matrix that is used many times.

BLAS copies the matrix to its own layout in every call, which takes longer than the product with a few rows. Here it is
copied once, into panels of 16 columns (the last one padded with zeros). Four rows times one panel fill the registers;
each number of a panel is loaded once for four rows. A sum is added in the order of its terms, whatever the number of
rows.
"""

import numpy as np
from numba import prange

from ..core.device import njit, njit_parallel
from .simd import LANES, aligned, fma, item, load, splat, store, transpose

#: Rows that are multiplied with a panel at a time: their sums fit the registers.
ROWS = 4
ZERO = np.float32(0)


@njit_parallel
def _pack(matrix, panels):
    n_terms, n_columns = matrix.shape
    for p in prange(panels.shape[0]):
        for k in range(n_terms):
            for j in range(LANES):
                column = p * LANES + j
                panels[p, k, j] = matrix[k, column] if column < n_columns else ZERO


def pack(matrix):
    """The panels (N / 16 rounded up, K, 16) of a float32 matrix (K, N)."""
    n_terms, n_columns = matrix.shape
    panels = aligned(np.empty, ((n_columns + LANES - 1) // LANES, n_terms, LANES))
    _pack(matrix, panels)
    return panels


@njit
def pack_rows(rows, first, n_rows, panels):
    """Write the panels (n_rows / 16 rounded up, K, 16) of rows^T; `rows` is flat, its first row begins at `first`."""
    n_panels, n_terms, _ = panels.shape
    flat = panels.reshape(-1)
    for p in range(n_panels):
        offset, row, n = p * n_terms * LANES, first + p * LANES * n_terms, min(LANES, n_rows - p * LANES)
        if n == LANES and n_terms >= LANES:
            for k in range(0, n_terms, LANES):
                k = min(k, n_terms - LANES)  # the last square may overlap the one before
                transpose(rows, row + k, n_terms, flat, offset + k * LANES, LANES)
        else:
            for k in range(n_terms):
                for j in range(LANES):
                    flat[offset + k * LANES + j] = rows[row + j * n_terms + k] if j < n else ZERO


@njit
def padded(n, size):
    """n rounded up to a multiple of size."""
    return (n + size - 1) // size * size


@njit
def _four_rows(x, i, j, k, m, panels, offset, n_terms, out, target, width):
    """16 columns of four rows of out: rows of x that begin at i, j, k, m times the panel that begins at `offset`.

    The first row is written at `target`, the next ones `width` later each.
    """
    a = splat(ZERO)
    b, c, d = a, a, a
    for term in range(n_terms):
        v = load(panels, offset + LANES * term)
        a = fma(item(x, i + term), v, a)
        b = fma(item(x, j + term), v, b)
        c = fma(item(x, k + term), v, c)
        d = fma(item(x, m + term), v, d)
    store(out, target, a)
    store(out, target + width, b)
    store(out, target + 2 * width, c)
    store(out, target + 3 * width, d)


@njit
def _one_row(x, i, panels, offset, n_terms, out, target):
    """`_four_rows` for one row; the same bits."""
    a = splat(ZERO)
    for term in range(n_terms):
        a = fma(item(x, i + term), load(panels, offset + LANES * term), a)
    store(out, target, a)


@njit
def product(x, first, n_rows, panels, out):
    """``out = x @ matrix`` for `n_rows` >= 1 rows of x, the first of which begins at index `first`; x and out are flat.

    out needs space for ``padded(n_rows, ROWS)`` rows as wide as all panels together; anything beyond the rows and
    columns of the result may be overwritten too.
    """
    n_panels, n_terms, _ = panels.shape
    width, last, flat = LANES * n_panels, first + (n_rows - 1) * n_terms, panels.reshape(-1)
    for p in range(n_panels):
        for row in range(0, n_rows, ROWS):
            i, offset, target = first + row * n_terms, p * n_terms * LANES, row * width + p * LANES
            if i == last:
                _one_row(x, i, flat, offset, n_terms, out, target)
            else:
                j, k, m = min(i + n_terms, last), min(i + 2 * n_terms, last), min(i + 3 * n_terms, last)
                _four_rows(x, i, j, k, m, flat, offset, n_terms, out, target, width)
