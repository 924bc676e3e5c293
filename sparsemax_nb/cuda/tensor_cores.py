"""Float32 matrix products on the tensor cores, which multiply bfloat16: tiles staged in shared memory.

A float32 number is the sum of three bfloat16 numbers, exactly. Of the nine products of two such sums, six are large
enough to matter in float32: they are computed and added in float32. Where the factors are bfloat16 numbers, or may be
rounded to them, one product is enough.

"Rows" are the rows of the first factor and the columns of the second; "terms" are what the sums run over. `factor`
turns a matrix into the `Factor` that the kernels take.

Shared memory holds panels of 16 rows by 16 terms in the order in which the lanes of a warp use them. Each of the three
bfloat16 parts of a panel is 32 times four words of two numbers; a lane writes and reads its four words at once, 16
bytes next to its neighbour's, so there are no bank conflicts. Lane 4 g + t has rows r = 4 (g // 2) + g % 2 and r + 2,
and terms 4 t ... 4 t + 3; of the results it has columns 4 t ... 4 t + 3. The instruction's documentation numbers the
terms differently. That does not matter: a sum does not depend on the numbering, and both factors use the same.
"""

from typing import NamedTuple

import numpy as np
from numba import uint32

from ..core.device import address, asarray, cuda, cuda_device
from .ptx import add_product, load_vector, mma, split, store_vector, to_bfloat16

ZERO = np.float32(0)
FOUR_ZEROS = (ZERO, ZERO, ZERO, ZERO)
#: Rows of a panel, and terms that are staged at a time: m and k of one mma.m16n8k16.
PANEL_SIDE = 16
#: 32-bit words of one bfloat16 part of a panel, and of a panel: three parts.
PART_WORDS, PANEL_WORDS = 128, 384
#: Rows and columns of the results of one warp.
WARP_TILE = 32


class Factor(NamedTuple):
    """A matrix as the kernels take it: a flat array and two strides, so that transposed matrices need no copy."""

    flat: np.ndarray  # one-dimensional, float32
    row: np.int64  # stride: numbers from one row to the next
    term: np.int64  # stride: numbers from one term to the next
    wide: np.int32  # 1: four terms are adjacent and 16-byte aligned in every row, so one load fetches them


def factor(matrix):
    """`Factor` of a float32 matrix (rows, terms).

    The matrix is copied only if neither it nor its transpose is C-contiguous.
    """
    transposed = not matrix.flags.c_contiguous and matrix.T.flags.c_contiguous
    flat = (matrix.T if transposed else asarray(matrix, "cuda")).reshape(-1)
    n_rows, n_terms = matrix.shape
    wide = not transposed and n_terms % 4 == 0 and address(flat) % 16 == 0
    row, term = (1, n_rows) if transposed else (n_terms, 1)
    return Factor(flat, np.int64(row), np.int64(term), np.int32(wide))


def shared_bytes_of(block):
    """Shared memory of a block of (32, y, z) threads, in bytes: two buffers of 2 y and 2 z panels."""
    return 2 * 4 * PANEL_WORDS * 2 * (block[1] + block[2])


@cuda_device
def _four_terms(matrix, start, n):
    """The first n of four terms, zero for the others; n may be negative."""
    if matrix.wide:
        return load_vector(matrix.flat, start) if n > 0 else FOUR_ZEROS
    start, step = np.uint64(start), np.uint64(matrix.term)
    return (
        matrix.flat[start] if n > 0 else ZERO,
        matrix.flat[start + step] if n > 1 else ZERO,
        matrix.flat[start + step + step] if n > 2 else ZERO,
        matrix.flat[start + step + step + step] if n > 3 else ZERO,
    )


@cuda_device
def _eight_terms(matrix, row, stop, term, n_terms):
    """Four terms of row `row` and of row + 2; zero beyond the last row or term.

    `matrix` is (`Factor`, position of its first number).
    """
    factor, start = matrix
    position = start + np.int64(row) * factor.row + np.int64(term) * factor.term
    n = n_terms - term
    return (
        _four_terms(factor, position, n if row < stop else np.int32(0)),
        _four_terms(factor, position + 2 * factor.row, n if row + 2 < stop else np.int32(0)),
    )


@cuda_device
def _stage(a, b, rows, columns, term, n_terms, exact, shared, buffer):
    """The block writes its panels of both factors to `buffer` in shared memory, 16 terms from `term` on.

    a and b are (`Factor`, start), rows and columns are (first, stop). Each warp takes every n-th panel.
    """
    lane, n_y, n_z = cuda.threadIdx.x, cuda.blockDim.y, cuda.blockDim.z
    g, t = lane // 4, lane % 4
    panel = cuda.threadIdx.z * n_y + cuda.threadIdx.y
    while panel < 2 * (n_y + n_z):
        of_a = panel < 2 * n_y
        row = (rows[0] if of_a else columns[0] - WARP_TILE * n_y) + PANEL_SIDE * panel
        if row - PANEL_SIDE * (panel % 2) < (rows[1] if of_a else columns[1]):  # else no warp uses this panel
            row += 4 * (g // 2) + g % 2
            if of_a:
                x, y = _eight_terms(a, row, rows[1], term + 4 * t, n_terms)
            else:
                x, y = _eight_terms(b, row, columns[1], term + 4 * t, n_terms)
            position = buffer + PANEL_WORDS * panel + 4 * lane
            if exact:
                (x1, x2, x3), (y1, y2, y3) = split(x), split(y)
                store_vector(shared, position, (x1[0], y1[0], x1[1], y1[1]))
                store_vector(shared, position + PART_WORDS, (x2[0], y2[0], x2[1], y2[1]))
                store_vector(shared, position + 2 * PART_WORDS, (x3[0], y3[0], x3[1], y3[1]))
            else:
                first = to_bfloat16(x[0], x[1]), to_bfloat16(y[0], y[1])
                store_vector(shared, position, first + (to_bfloat16(x[2], x[3]), to_bfloat16(y[2], y[3])))
        panel += n_y * n_z


@cuda_device
def _add_exact(shared, rows, columns, sums):
    """Adds the product of a panel of rows and two panels of columns to four fragments (16 x 32), in six products."""
    a = load_vector(shared, rows), load_vector(shared, rows + PART_WORDS), load_vector(shared, rows + 2 * PART_WORDS)
    x, y, z = (
        load_vector(shared, columns),
        load_vector(shared, columns + PART_WORDS),
        load_vector(shared, columns + 2 * PART_WORDS),
    )
    c0 = add_product(a, ((x[0], x[2]), (y[0], y[2]), (z[0], z[2])), sums[0])
    c1 = add_product(a, ((x[1], x[3]), (y[1], y[3]), (z[1], z[3])), sums[1])
    columns += PANEL_WORDS
    x, y, z = (
        load_vector(shared, columns),
        load_vector(shared, columns + PART_WORDS),
        load_vector(shared, columns + 2 * PART_WORDS),
    )
    c2 = add_product(a, ((x[0], x[2]), (y[0], y[2]), (z[0], z[2])), sums[2])
    c3 = add_product(a, ((x[1], x[3]), (y[1], y[3]), (z[1], z[3])), sums[3])
    return c0, c1, c2, c3


@cuda_device
def _add_rounded(shared, rows, columns, sums):
    """The same product from the first bfloat16 parts alone."""
    a, x, y = load_vector(shared, rows), load_vector(shared, columns), load_vector(shared, columns + PANEL_WORDS)
    c0, c1 = mma(a, (x[0], x[2]), sums[0]), mma(a, (x[1], x[3]), sums[1])
    c2, c3 = mma(a, (y[0], y[2]), sums[2]), mma(a, (y[1], y[3]), sums[3])
    return c0, c1, c2, c3


@cuda_device
def product_of_tile(a, b, rows, columns, terms, exact):
    """One tile of ``a @ b.T`` per block; returns this lane's share of its warp's 32 x 32 results: four rows of eight.

    a and b are (`Factor`, start); rows, columns and terms are (first, stop). Warp (y, z) computes rows 32 y ... and
    columns 32 z ... of the tile; `origin_of_lane` says which results a lane has. All threads of the block must call
    this function; it ends with a barrier.
    """
    shared = cuda.shared.array(0, uint32, 16)  # aligned to 16 bytes, for 16-byte loads and stores
    n_y, n_z = cuda.blockDim.y, cuda.blockDim.z
    size = np.int32(2 * PANEL_WORDS * (n_y + n_z))
    panel_of_a = np.int32(2 * PANEL_WORDS * cuda.threadIdx.y + 4 * cuda.threadIdx.x)
    panel_of_b = np.int32(2 * PANEL_WORDS * (n_y + cuda.threadIdx.z) + 4 * cuda.threadIdx.x)
    staged, ready = np.int32(0), size
    has_results = (
        rows[0] + WARP_TILE * cuda.threadIdx.y < rows[1] and columns[0] + WARP_TILE * cuda.threadIdx.z < columns[1]
    )
    upper = lower = (FOUR_ZEROS, FOUR_ZEROS, FOUR_ZEROS, FOUR_ZEROS)
    begin, end = terms
    term = begin
    # Two buffers: while one is filled from global memory, the other is multiplied. Loads and products overlap, and one
    # barrier per step is enough. A panel is multiplied one step after its load, hence the additional last step.
    while term < end + PANEL_SIDE:
        if term < end:
            _stage(a, b, rows, columns, term, end, exact, shared, staged)
        if has_results and term > begin:
            if exact:
                upper = _add_exact(shared, ready + panel_of_a, ready + panel_of_b, upper)
                lower = _add_exact(shared, ready + panel_of_a + PANEL_WORDS, ready + panel_of_b, lower)
            else:
                upper = _add_rounded(shared, ready + panel_of_a, ready + panel_of_b, upper)
                lower = _add_rounded(shared, ready + panel_of_a + PANEL_WORDS, ready + panel_of_b, lower)
        cuda.syncthreads()
        staged, ready, term = ready, staged, term + PANEL_SIDE
    return _rows_of_fragments(upper) + _rows_of_fragments(lower)


@cuda_device
def _rows_of_fragments(c):
    """Four fragments as two rows of eight results."""
    c0, c1, c2, c3 = c
    return (
        (c0[0], c0[1], c1[0], c1[1], c2[0], c2[1], c3[0], c3[1]),
        (c0[2], c0[3], c1[2], c1[3], c2[2], c2[3], c3[2], c3[3]),
    )


@cuda_device
def origin_of_lane():
    """(row, column) of this lane's first result in the tile.

    The lane has rows + 0, 2, 16, 18 and columns + 0 ... 3, 16 ... 19.
    """
    lane = cuda.threadIdx.x
    g, t = lane // 4, lane % 4
    return WARP_TILE * cuda.threadIdx.y + 4 * (g // 2) + g % 2, WARP_TILE * cuda.threadIdx.z + 4 * t


@cuda_device
def store_row(out, start, column, stop, wide, values):
    """Stores eight results of one row to the flat array `out`, in which the row begins at `start`.

    `wide`: each four in one 16-byte store.
    """
    for half in range(2):
        four = (values[4], values[5], values[6], values[7]) if half else (values[0], values[1], values[2], values[3])
        first = column + 16 * half
        if wide:
            if first < stop:
                store_vector(out, start + first, four)
        else:
            if first < stop:
                out[start + first] = four[0]
            if first + 1 < stop:
                out[start + first + 1] = four[1]
            if first + 2 < stop:
                out[start + first + 2] = four[2]
            if first + 3 < stop:
                out[start + first + 3] = four[3]
