"""Dense products on the CPU: single-threaded BLAS on tiles that Numba's threads share.

BLAS's own threads are not used, for two reasons. They split a product differently for every number of threads, so the
bits would depend on it; and after each product they spin for milliseconds on the cores that Numba's threads need next.
So the result is split into tiles by its shape alone. If the result is small and its sums are long, the sums are split
instead: every tile would read a whole matrix.
"""

import math
import threading

import numpy as np
from numba import prange, types

from ..core import threads
from ..core.device import njit, njit_parallel

# Numba's interface to BLAS: gemm(kind, transa, transb, m, n, k, &alpha, a, lda, b, ldb, &beta, c, ldc), column-major.
gemm = types.ExternalFunction("numba_xxgemm", types.intc(*[types.char] * 3, *[types.intp] * 11))
FLOAT32, NOT_TRANSPOSED, TRANSPOSED = np.int8(ord("s")), np.int8(ord("n")), np.int8(ord("t"))
#: Bytes of a float32.
ITEM = 4
#: Number of tiles of a product, or of parts of its sums.
PARTS = 16
#: Sums are split if they are this many times as long as the result's longer side. Tiles of a' b each copy scattered
#: parts of a, so that splitting the sums pays earlier.
LONG, LONG_TRANSPOSED = PARTS, 2
#: Most numbers in the parts of the sums: 16 MiB.
MAX_SCRATCH = 1 << 22
_thread = threading.local()


@njit
def find_blas(scalars):
    """A 1 x 1 product: the first call looks up BLAS under the interpreter's lock, so not in a parallel loop."""
    alpha = scalars.ctypes.data
    beta, nothing = alpha + ITEM, alpha + 2 * ITEM
    gemm(FLOAT32, NOT_TRANSPOSED, NOT_TRANSPOSED, 1, 1, 1, alpha, nothing, 1, nothing, 1, beta, nothing, 1)


def _work(transpose_a, transpose_b, a, b, out, *_):
    return max(threads.n_numbers((a, b, out)), out.size * a.shape[0 if transpose_a else 1] // 16)


@njit_parallel(work=_work)
def _tiled(transpose_a, transpose_b, a, b, out, scalars):
    """out = op(a) op(b) + beta out, all C-contiguous; scalars = [1, beta, 0].

    A row-major product is the column-major product of the transposes: b comes first. Only addresses of arguments are
    taken: Numba frees a local array after the last use of its name.
    """
    m, n = out.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    alpha = scalars.ctypes.data
    beta = alpha + ITEM
    address_a, address_b, address_out = a.ctypes.data, b.ctypes.data, out.ctypes.data
    lda, ldb = a.shape[1], b.shape[1]
    op_a, op_b = TRANSPOSED if transpose_a else NOT_TRANSPOSED, TRANSPOSED if transpose_b else NOT_TRANSPOSED
    find_blas(scalars)
    size = max(m, n)
    tile = max(32, (size + PARTS - 1) // PARTS)
    for part in prange((size + tile - 1) // tile):
        row, n_rows, column, n_columns = 0, m, 0, n
        if m > n:
            row, n_rows = part * tile, min(tile, size - part * tile)
        else:
            column, n_columns = part * tile, min(tile, size - part * tile)
        tile_a = address_a + ITEM * (row if transpose_a else row * lda)
        tile_b = address_b + ITEM * (column * ldb if transpose_b else column)
        tile_out = address_out + ITEM * (row * n + column)
        gemm(FLOAT32, op_b, op_a, n_columns, n_rows, k, alpha, tile_b, ldb, tile_a, lda, beta, tile_out, n)


@njit_parallel(work=_work)
def _summed(transpose_a, transpose_b, a, b, out, scalars, parts):
    """`_tiled` with the k terms split among threads: parts (PARTS, m, n), then their sum."""
    m, n = out.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    alpha = scalars.ctypes.data
    nothing = alpha + 2 * ITEM
    address_a, address_b, address_parts = a.ctypes.data, b.ctypes.data, parts.ctypes.data
    lda, ldb = a.shape[1], b.shape[1]
    op_a, op_b = TRANSPOSED if transpose_a else NOT_TRANSPOSED, TRANSPOSED if transpose_b else NOT_TRANSPOSED
    find_blas(scalars)
    for part in prange(PARTS):
        first, stop = k * part // PARTS, k * (part + 1) // PARTS
        part_a = address_a + ITEM * (first * lda if transpose_a else first)
        part_b = address_b + ITEM * (first if transpose_b else first * ldb)
        target = address_parts + ITEM * part * m * n
        gemm(FLOAT32, op_b, op_a, n, m, stop - first, alpha, part_b, ldb, part_a, lda, nothing, target, n)
    for row in prange(m):
        total = out[row]
        if scalars[1] == 0:
            total[:] = 0
        for part in range(PARTS):
            total += parts[part, row]


def _scratch(*shape):
    """Scratch memory, kept for the thread's next product: allocating fresh memory takes as long as a small product."""
    size = math.prod(shape)
    if getattr(_thread, "scratch", np.empty(0)).size < size:
        _thread.scratch = np.empty(size, np.float32)
    return _thread.scratch[:size].reshape(shape)


def matmul(a, b, out, *, add=False):
    """``out = a @ b``, or ``out += a @ b`` with `add`, for float32 matrices.

    a and b are C-contiguous or transposes of such; out is C-contiguous.
    """
    if not (out.size and a.size):
        if not add:
            out[:] = 0
        return
    transpose_a, transpose_b = not a.flags.c_contiguous, not b.flags.c_contiguous
    scalars, m, n, k = np.array([1, add, 0], np.float32), *out.shape, a.shape[1]
    operands = transpose_a, transpose_b, a.T if transpose_a else a, b.T if transpose_b else b, out, scalars
    with threads.one_blas_thread():
        long = LONG_TRANSPOSED if transpose_a else LONG
        if k < long * max(m, n) or PARTS * m * n > MAX_SCRATCH:
            _tiled(*operands)
        else:
            _summed(*operands, _scratch(PARTS, m, n))
