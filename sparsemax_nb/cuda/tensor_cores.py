"""Products of float32 matrices on the tensor cores: tiles that a block stages in shared memory, in bfloat16.

A float32 number is the sum of three bfloat16 ones, to the last bit. Of the nine products of two such sums six are large
enough for float32 to tell: they are computed, and added in float32. Where the factors are bfloat16 numbers, or are
meant to be rounded to them, one product is enough.

A factor is a tuple that `factor` makes of a matrix: (flat array, stride of a row, stride of a term, whether four terms
can be read at once). "Rows" are the rows of the first factor and the columns of the second, "terms" what the sums run
over.

Shared memory holds 16 rows by 16 terms as the lanes of a warp take them: each of the three parts is 32 times four words
of two numbers, which a lane writes and reads at once, so there are no bank conflicts. Lane 4 g + t has the rows r = 4
(g // 2) + g % 2 and r + 2, and the terms 4 t ... 4 t + 3; of the results it has the columns 4 t ... 4 t + 3. The order
of terms is not that of the instruction's documentation: it is the same for both factors, and so of no account.
"""

from typing import NamedTuple

import numpy as np
from numba import uint32

from ..core.device import address, asarray, cuda, cuda_device
from .ptx import add_product, load_vector, mma, split, store_vector, to_bfloat16

ZERO = np.float32(0)
NONE = (ZERO, ZERO, ZERO, ZERO)
#: Rows of a panel, and terms that are staged at a time.
SIXTEEN = 16
#: Words of a panel: three parts.
PANEL, PART = 384, 128
#: Rows and columns of a warp's results.
SIDE = 32


class Factor(NamedTuple):
    """A matrix as the kernels take it."""

    flat: np.ndarray  # one-dimensional, float32
    row: np.int64  # from a row to the next
    term: np.int64  # from a term to the next
    wide: np.int32  # 1 where four terms lie side by side at multiples of 16 bytes, whatever the row


def factor(matrix):
    """`Factor` of a matrix (rows, terms) float32; it is copied where neither it nor its transpose is C-contiguous."""
    transposed = not matrix.flags.c_contiguous and matrix.T.flags.c_contiguous
    flat = (matrix.T if transposed else asarray(matrix, "cuda")).reshape(-1)
    n_rows, n_terms = matrix.shape
    wide = not transposed and n_terms % 4 == 0 and address(flat) % 16 == 0
    row, term = (1, n_rows) if transposed else (n_terms, 1)
    return Factor(flat, np.int64(row), np.int64(term), np.int32(wide))


def shared_bytes_of(block):
    """Shared memory of a block of (32, y, z) threads: two buffers, each of 2 y panels and 2 z."""
    return 2 * 4 * PANEL * 2 * (block[1] + block[2])


@cuda_device
def _four_terms(matrix, at, n):
    """The first n of four terms, zero for the others; n may be negative."""
    if matrix.wide:
        return load_vector(matrix.flat, at) if n > 0 else NONE
    at, step = np.uint64(at), np.uint64(matrix.term)
    return (
        matrix.flat[at] if n > 0 else ZERO,
        matrix.flat[at + step] if n > 1 else ZERO,
        matrix.flat[at + step + step] if n > 2 else ZERO,
        matrix.flat[at + step + step + step] if n > 3 else ZERO,
    )


@cuda_device
def _eight_terms(matrix, row, stop, term, n_terms):
    """Four terms of a row, and of the second next; zero beyond the last row or term. matrix = (`Factor`, start)."""
    factor, start = matrix
    at, n = start + np.int64(row) * factor.row + np.int64(term) * factor.term, n_terms - term
    return (
        _four_terms(factor, at, n if row < stop else np.int32(0)),
        _four_terms(factor, at + 2 * factor.row, n if row + 2 < stop else np.int32(0)),
    )


@cuda_device
def _stage(a, b, rows, columns, term, n_terms, exact, shared, buffer):
    """The block writes its panels of both factors, sixteen terms from `term` on; a = (`Factor`, start), rows = (first, stop)."""
    lane, n_y, n_z = cuda.threadIdx.x, cuda.blockDim.y, cuda.blockDim.z
    g, t = lane // 4, lane % 4
    panel = cuda.threadIdx.z * n_y + cuda.threadIdx.y
    while panel < 2 * (n_y + n_z):
        mine = panel < 2 * n_y
        row = (rows[0] if mine else columns[0] - SIDE * n_y) + SIXTEEN * panel
        if row - SIXTEEN * (panel % 2) < (rows[1] if mine else columns[1]):  # else no warp takes it
            row += 4 * (g // 2) + g % 2
            if mine:
                x, y = _eight_terms(a, row, rows[1], term + 4 * t, n_terms)
            else:
                x, y = _eight_terms(b, row, columns[1], term + 4 * t, n_terms)
            at = buffer + PANEL * panel + 4 * lane
            if exact:
                (x1, x2, x3), (y1, y2, y3) = split(x), split(y)
                store_vector(shared, at, (x1[0], y1[0], x1[1], y1[1]))
                store_vector(shared, at + PART, (x2[0], y2[0], x2[1], y2[1]))
                store_vector(shared, at + 2 * PART, (x3[0], y3[0], x3[1], y3[1]))
            else:
                first = to_bfloat16(x[0], x[1]), to_bfloat16(y[0], y[1])
                store_vector(shared, at, first + (to_bfloat16(x[2], x[3]), to_bfloat16(y[2], y[3])))
        panel += n_y * n_z


@cuda_device
def _add_exact(shared, rows, columns, sums):
    """Adds to four fragments (16 x 32) the product of a panel of rows and two of columns."""
    a = load_vector(shared, rows), load_vector(shared, rows + PART), load_vector(shared, rows + 2 * PART)
    x, y, z = load_vector(shared, columns), load_vector(shared, columns + PART), load_vector(shared, columns + 2 * PART)
    c0 = add_product(a, ((x[0], x[2]), (y[0], y[2]), (z[0], z[2])), sums[0])
    c1 = add_product(a, ((x[1], x[3]), (y[1], y[3]), (z[1], z[3])), sums[1])
    columns += PANEL
    x, y, z = load_vector(shared, columns), load_vector(shared, columns + PART), load_vector(shared, columns + 2 * PART)
    c2 = add_product(a, ((x[0], x[2]), (y[0], y[2]), (z[0], z[2])), sums[2])
    c3 = add_product(a, ((x[1], x[3]), (y[1], y[3]), (z[1], z[3])), sums[3])
    return c0, c1, c2, c3


@cuda_device
def _add_rounded(shared, rows, columns, sums):
    """The same from the first parts alone."""
    a, x, y = load_vector(shared, rows), load_vector(shared, columns), load_vector(shared, columns + PANEL)
    c0, c1 = mma(a, (x[0], x[2]), sums[0]), mma(a, (x[1], x[3]), sums[1])
    c2, c3 = mma(a, (y[0], y[2]), sums[2]), mma(a, (y[1], y[3]), sums[3])
    return c0, c1, c2, c3


@cuda_device
def product_of_tile(a, b, rows, columns, terms, exact):
    """The block's rows of a times its columns of b: of the warp's 32 x 32 results what this lane has, eight columns of four rows.

    a, b are (`Factor`, where it starts); rows, columns, terms (first, stop). Warp (y, z) has rows 32 y ... and columns
    32 z ... of the tile; the lane's are told by `place_of_lane`. All threads of the block must call it; it ends behind
    a barrier.
    """
    shared = cuda.shared.array(0, uint32, 16)
    n_y, n_z = cuda.blockDim.y, cuda.blockDim.z
    size = np.int32(2 * PANEL * (n_y + n_z))
    mine = np.int32(2 * PANEL * cuda.threadIdx.y + 4 * cuda.threadIdx.x)
    theirs = np.int32(2 * PANEL * (n_y + cuda.threadIdx.z) + 4 * cuda.threadIdx.x)
    now, then = np.int32(0), size
    busy = rows[0] + SIDE * cuda.threadIdx.y < rows[1] and columns[0] + SIDE * cuda.threadIdx.z < columns[1]
    upper = lower = (NONE, NONE, NONE, NONE)
    begin, end = terms
    term = begin
    while term < end + SIXTEEN:  # one turn more: what is staged in one is multiplied in the next
        if term < end:
            _stage(a, b, rows, columns, term, end, exact, shared, now)
        if busy and term > begin:
            if exact:
                upper = _add_exact(shared, then + mine, then + theirs, upper)
                lower = _add_exact(shared, then + mine + PANEL, then + theirs, lower)
            else:
                upper = _add_rounded(shared, then + mine, then + theirs, upper)
                lower = _add_rounded(shared, then + mine + PANEL, then + theirs, lower)
        cuda.syncthreads()
        now, then, term = then, now, term + SIXTEEN
    return _rows_of(upper) + _rows_of(lower)


@cuda_device
def _rows_of(c):
    """Four fragments as two rows of eight columns."""
    c0, c1, c2, c3 = c
    return (
        (c0[0], c0[1], c1[0], c1[1], c2[0], c2[1], c3[0], c3[1]),
        (c0[2], c0[3], c1[2], c1[3], c2[2], c2[3], c3[2], c3[3]),
    )


@cuda_device
def place_of_lane():
    """(row, column) in the tile of this lane's first result: it has the rows + 0, 2, 16, 18, the columns + 0...3, 16...19."""
    lane = cuda.threadIdx.x
    g, t = lane // 4, lane % 4
    return SIDE * cuda.threadIdx.y + 4 * (g // 2) + g % 2, SIDE * cuda.threadIdx.z + 4 * t


@cuda_device
def store_row(out, start, column, stop, wide, values):
    """Eight results of a row to the flat array `out`, whose row begins at `start`: at once where they can be."""
    for half in range(2):
        four = (values[4], values[5], values[6], values[7]) if half else (values[0], values[1], values[2], values[3])
        at = column + 16 * half
        if wide:
            if at < stop:
                store_vector(out, start + at, four)
        else:
            if at < stop:
                out[start + at] = four[0]
            if at + 1 < stop:
                out[start + at + 1] = four[1]
            if at + 2 < stop:
                out[start + at + 2] = four[2]
            if at + 3 < stop:
                out[start + at + 3] = four[3]
