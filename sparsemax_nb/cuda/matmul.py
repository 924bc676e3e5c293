"""Dense products on CUDA: cuBLAS through CuPy (NumPy in the simulator), and two kernels to learn from and to fall back on.

`tiled_kernel` is what each multiprocessor can do since long ago: numbers are read once per tile and used from shared
memory, in plain float32. `mma_kernel` gives the same sums to the tensor cores.
"""

import numpy as np
from numba import float32

from ..core.device import address, cuda, cuda_device, cuda_jit, empty, xp
from . import launch
from .tensor_cores import SIDE, SIXTEEN, factor, place_of_lane, product_of_tile, shared_bytes_of, store_row

#: Numbers that are held at once where a product is added to another array: its own, and copied rows of a. 16 MiB.
SLAB = 1 << 22
ZERO = np.float32(0)
#: Rows, and columns, of its tile that one thread of `tiled_kernel` owns; terms that it stages at a time.
OWNED, TERMS = 4, 32
#: Threads of `mma_kernel`: tiles of 128 x 64, or of 32 x 128 where there are few rows.
BLOCK, BLOCK_OF_FEW = (32, 4, 2), (32, 1, 4)


@cuda_device
def _stage(matrix, first, stop, term, n_terms, n_rows, shared, at):
    """All threads write n_rows rows from `first` on, 32 terms from `term` on, term by term, as they lie side by side."""
    i, n_threads = cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockDim.x * cuda.blockDim.y
    while i < n_rows * TERMS:
        if matrix.term == 1:
            row, t = i // TERMS, i % TERMS
        else:
            t = np.int64(np.uint32(i) // np.uint32(n_rows))
            row = i - t * n_rows
        number = ZERO
        if first + row < stop and term + t < n_terms:
            number = matrix.flat[np.uint64((first + row) * matrix.row + (term + t) * matrix.term)]
        shared[np.uint64(at + t * (n_rows + 1) + row)] = number
        i += n_threads


@cuda_device
def _add(sums, x, w):
    return sums[0] + x * w[0], sums[1] + x * w[1], sums[2] + x * w[2], sums[3] + x * w[3]


@cuda_device
def _store(sums, row, column, add, out):
    """Four results of a row, blockDim.x apart."""
    nx = cuda.blockDim.x
    if row < out.shape[0]:
        for j in range(OWNED):
            if column + j * nx < out.shape[1]:
                old = out[row, column + j * nx] if add else ZERO
                out[row, column + j * nx] = old + sums[j]


@cuda_jit
def tiled_kernel(a, b, n_terms, add, out):
    """A block owns 4 blockDim.y rows and 4 blockDim.x columns of out (m, n); a thread 4 by 4 of them, a block apart.

    Grid: tiles of columns on x, of rows stride over y. Each number of the factors a (m, k), b (n, k) is read once per
    tile, 32 terms at a time, coalesced whichever way they lie, and used from shared memory by blockDim.x, blockDim.y
    threads: 16 products for 8 numbers. Writes out, or adds to it, coalesced. Shared memory: 128 (4 blockDim.x + 4
    blockDim.y + 2) bytes. No atomics.
    """
    tx, ty, nx, ny = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
    shared = cuda.shared.array(0, float32)
    n_rows, n_columns = OWNED * ny, OWNED * nx
    theirs, column = TERMS * (n_rows + 1), cuda.blockIdx.x * n_columns
    right, down = np.uint64(nx), np.uint64(ny)
    for row in range(cuda.blockIdx.y * n_rows, out.shape[0], cuda.gridDim.y * n_rows):
        s0 = s1 = s2 = s3 = (ZERO, ZERO, ZERO, ZERO)
        for term in range(0, n_terms, TERMS):
            _stage(a, row, out.shape[0], term, n_terms, n_rows, shared, 0)
            _stage(b, column, out.shape[1], term, n_terms, n_columns, shared, theirs)
            cuda.syncthreads()
            x, y = np.uint64(ty), np.uint64(theirs + tx)  # where no index can be negative, none is looked at
            for _ in range(min(TERMS, n_terms - term)):
                w = (shared[y], shared[y + right], shared[y + right + right], shared[y + right + right + right])
                s0 = _add(s0, shared[x], w)
                s1 = _add(s1, shared[x + down], w)
                s2 = _add(s2, shared[x + down + down], w)
                s3 = _add(s3, shared[x + down + down + down], w)
                x, y = x + np.uint64(n_rows + 1), y + np.uint64(n_columns + 1)
            cuda.syncthreads()
        _store(s0, row + ty, column + tx, add, out)
        _store(s1, row + ty + ny, column + tx, add, out)
        _store(s2, row + ty + 2 * ny, column + tx, add, out)
        _store(s3, row + ty + 3 * ny, column + tx, add, out)


def _tiled(a, b, out, add, block):
    grid = launch.labels_by_rows(out.shape[1], out.shape[0], OWNED * block[1], OWNED * block[0])
    shared = launch.shared_bytes(4 * TERMS * (OWNED * (block[0] + block[1]) + 2))
    tiled_kernel[grid, block, 0, shared](factor(a), factor(b.T), np.int64(a.shape[1]), np.int32(add), out)


@cuda_jit
def mma_kernel(a, b, sizes, exact, wide, out):
    """A block computes 32 blockDim.y rows by 32 blockDim.z columns of a product, from a part of its terms, on the tensor cores.

    Grid: tiles on x, neighbours below each other; parts on y. A warp of the block owns 32 x 32 results. The factors a
    (m, k), b (n, k) come in steps of 16 terms, each number once per tile; they are split into bfloat16 while they are
    staged in one buffer, and the other is multiplied. Writes out (parts m n), flat, 16 bytes a lane where `wide`; sizes
    = (m, n, k). Shared memory: two buffers of 3,072 (blockDim.y + blockDim.z) bytes. No atomics.
    """
    m, n, k = sizes
    n_rows, n_columns = SIDE * cuda.blockDim.y, SIDE * cuda.blockDim.z
    down, steps = (m + n_rows - 1) // n_rows, (k + SIXTEEN - 1) // SIXTEEN
    part, n_parts = cuda.blockIdx.y, cuda.gridDim.y
    row, column = cuda.blockIdx.x % down * n_rows, cuda.blockIdx.x // down * n_columns
    terms = SIXTEEN * (steps * part // n_parts), min(k, SIXTEEN * (steps * (part + 1) // n_parts))
    r0, r1, r2, r3 = product_of_tile((a, 0), (b, 0), (row, m), (column, n), terms, exact)
    y, x = place_of_lane()
    row, column, start = row + y, column + x, part * m
    if row < m:
        store_row(out, (start + row) * n, column, n, wide, r0)
    if row + 2 < m:
        store_row(out, (start + row + 2) * n, column, n, wide, r1)
    if row + 16 < m:
        store_row(out, (start + row + 16) * n, column, n, wide, r2)
    if row + 18 < m:
        store_row(out, (start + row + 18) * n, column, n, wide, r3)


def _mma(a, b, out, add, exact):
    (m, n), k = out.shape, a.shape[1]
    if not out.size:
        return
    block = BLOCK if m > SIDE else BLOCK_OF_FEW
    n_parts, grid = launch.tiles_of_product(m, n, k, SIDE * block[1], SIDE * block[2])
    direct = n_parts == 1 and not add
    parts = out if direct else empty((n_parts, m, n), np.float32, "cuda")
    wide = np.int32(n % 4 == 0 and address(parts) % 16 == 0)
    sizes, shared = (np.int64(m), np.int64(n), np.int64(k)), launch.shared_bytes(shared_bytes_of(block))
    mma_kernel[grid, block, 0, shared](factor(a), factor(b.T), sizes, np.int32(exact), wide, parts.reshape(-1))
    if add:
        out += parts.sum(axis=0)
    elif not direct:
        out[...] = parts.sum(axis=0)


def matmul(a, b, out, *, add=False, kernel=None, block=(16, 16)):
    """``out = a @ b`` for float32 matrices, or ``out += a @ b``; out C-contiguous.

    `kernel` None: cuBLAS, where something is added a slab of rows at a time. "tiled": float32, in any layout of a and
    b, with `block` threads. "mma": tensor cores (compute capability 8.0); each factor is the sum of three bfloat16
    numbers, as precise as float32. "bfloat16": tensor cores; the factors are rounded to bfloat16, 8 bits (products are
    exact where they are such numbers), the sums are the tensor core's, float32 cut off: a sixth of the products. Beyond
    out, what is added or cut into parts takes a matrix for each part.
    """
    if kernel == "tiled":
        _tiled(a, b, out, add, block)
    elif kernel is not None:
        _mma(a, b, out, add, exact={"mma": True, "bfloat16": False}[kernel])
    elif not add:
        xp.matmul(a, b, out=out)
    else:
        step = max(1, SLAB // max(1, sum(b.shape)))
        for first in range(0, out.shape[0], step):
            out[first : first + step] += xp.matmul(a[first : first + step], b)
