"""Dense products on CUDA: cuBLAS through CuPy (NumPy in the simulator), and two kernels to learn from and fall back on.

`tiled_kernel` is the classic: tiles in shared memory, plain float32. `mma_kernel` computes the same on the tensor
cores.
"""

import numpy as np
from numba import float32

from ..core.device import address, cuda, cuda_device, cuda_jit, empty, xp
from . import launch
from .tensor_cores import PANEL_SIDE, WARP_TILE, factor, origin_of_lane, product_of_tile, shared_bytes_of, store_row

#: Temporary numbers where cuBLAS adds to an existing array: the product and copied rows of a. 16 MiB.
MAX_SCRATCH = 1 << 22
ZERO = np.float32(0)
#: A thread of `tiled_kernel` owns 4 x 4 results: 16 products for every 8 numbers read from shared memory.
PER_THREAD = 4
#: Terms of the sums that `tiled_kernel` stages in shared memory at a time: one 128-byte line of a row.
TERMS_PER_STAGE = 32
#: Blocks of `mma_kernel`: tiles of 128 x 64 results, or of 32 x 128 for a product of few rows.
MMA_BLOCK, MMA_BLOCK_FEW_ROWS = (32, 4, 2), (32, 1, 4)


@cuda_device
def _stage(matrix, first, stop, term, n_terms, n_rows, shared, start):
    """All threads copy n_rows rows from `first` on, 32 terms from `term` on, to shared memory, term by term.

    Neighbouring threads read neighbouring addresses, whichever way the matrix is stored. In shared memory a term's
    numbers are n_rows + 1 apart: without the padding, threads that write the terms of one row would hit the same bank.
    """
    i, n_threads = cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockDim.x * cuda.blockDim.y
    while i < n_rows * TERMS_PER_STAGE:
        if matrix.term == 1:
            row, t = i // TERMS_PER_STAGE, i % TERMS_PER_STAGE
        else:
            t = np.int64(np.uint32(i) // np.uint32(n_rows))
            row = i - t * n_rows
        number = ZERO
        if first + row < stop and term + t < n_terms:
            number = matrix.flat[np.uint64((first + row) * matrix.row + (term + t) * matrix.term)]
        shared[np.uint64(start + t * (n_rows + 1) + row)] = number
        i += n_threads


@cuda_device
def _add(sums, x, w):
    """``sums + x * w`` for four sums."""
    return sums[0] + x * w[0], sums[1] + x * w[1], sums[2] + x * w[2], sums[3] + x * w[3]


@cuda_device
def _store(sums, row, column, add, out):
    """Stores (or adds) four results of one row, blockDim.x columns apart."""
    nx = cuda.blockDim.x
    if row < out.shape[0]:
        for j in range(PER_THREAD):
            if column + j * nx < out.shape[1]:
                old = out[row, column + j * nx] if add else ZERO
                out[row, column + j * nx] = old + sums[j]


@cuda_jit
def tiled_kernel(a, b, n_terms, add, out):
    """One block computes a tile of 4 blockDim.y rows by 4 blockDim.x columns of out; one thread 4 x 4 of them.

    Grid: tiles of columns on x, tiles of rows stride over y. Reads the factors a (m, k) and b (n, k) once per tile, 32
    terms at a time, coalesced; writes out (m, n) or adds to it, coalesced. Shared memory: 128 (4 blockDim.x + 4
    blockDim.y + 2) bytes. No atomics.
    """
    tx, ty, nx, ny = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
    shared = cuda.shared.array(0, float32)
    n_rows, n_columns = PER_THREAD * ny, PER_THREAD * nx
    tile_of_b = TERMS_PER_STAGE * (n_rows + 1)
    column = cuda.blockIdx.x * n_columns
    # A thread's 4 x 4 results are blockDim apart, not adjacent: neighbouring threads read neighbouring banks.
    right, down = np.uint64(nx), np.uint64(ny)
    for row in range(cuda.blockIdx.y * n_rows, out.shape[0], cuda.gridDim.y * n_rows):
        s0 = s1 = s2 = s3 = (ZERO, ZERO, ZERO, ZERO)
        for term in range(0, n_terms, TERMS_PER_STAGE):
            _stage(a, row, out.shape[0], term, n_terms, n_rows, shared, 0)
            _stage(b, column, out.shape[1], term, n_terms, n_columns, shared, tile_of_b)
            cuda.syncthreads()
            x, y = np.uint64(ty), np.uint64(tile_of_b + tx)  # unsigned: Numba omits its test for negative indices
            for _ in range(min(TERMS_PER_STAGE, n_terms - term)):
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
    """Launches `tiled_kernel`."""
    grid = launch.labels_by_rows(out.shape[1], out.shape[0], PER_THREAD * block[1], PER_THREAD * block[0])
    shared = launch.shared_bytes(4 * TERMS_PER_STAGE * (PER_THREAD * (block[0] + block[1]) + 2))
    tiled_kernel[grid, block, 0, shared](factor(a), factor(b.T), np.int64(a.shape[1]), np.int32(add), out)


@cuda_jit
def mma_kernel(a, b, sizes, exact, wide, out):
    """One block computes 32 blockDim.y rows by 32 blockDim.z columns of a product on the tensor cores.

    Grid: tiles on x, vertical neighbours next to each other, so that they share b in the cache; parts of the sums on y.
    One warp owns 32 x 32 results. Reads the factors a (m, k) and b (n, k), 16 terms per step, once per tile; writes
    out, flat, (parts m n), in 16-byte stores where `wide`. `exact`: six products of bfloat16 parts instead of one.
    sizes = (m, n, k). Shared memory: two buffers of 3,072 (blockDim.y + blockDim.z) bytes. No atomics.
    """
    m, n, k = sizes
    n_rows, n_columns = WARP_TILE * cuda.blockDim.y, WARP_TILE * cuda.blockDim.z
    tiles_down = (m + n_rows - 1) // n_rows
    steps = (k + PANEL_SIDE - 1) // PANEL_SIDE
    part, n_parts = cuda.blockIdx.y, cuda.gridDim.y
    row, column = cuda.blockIdx.x % tiles_down * n_rows, cuda.blockIdx.x // tiles_down * n_columns
    terms = PANEL_SIDE * (steps * part // n_parts), min(k, PANEL_SIDE * (steps * (part + 1) // n_parts))
    r0, r1, r2, r3 = product_of_tile((a, 0), (b, 0), (row, m), (column, n), terms, exact)
    y, x = origin_of_lane()
    row, column = row + y, column + x
    start = part * m
    if row < m:
        store_row(out, (start + row) * n, column, n, wide, r0)
    if row + 2 < m:
        store_row(out, (start + row + 2) * n, column, n, wide, r1)
    if row + 16 < m:
        store_row(out, (start + row + 16) * n, column, n, wide, r2)
    if row + 18 < m:
        store_row(out, (start + row + 18) * n, column, n, wide, r3)


def _mma(a, b, out, add, exact):
    """Launches `mma_kernel`; sums the parts where the terms were split.

    Splitting keeps the device busy when the result has few tiles; each part is then a matrix of its own, not an atomic.
    """
    (m, n), k = out.shape, a.shape[1]
    if not out.size:
        return
    block = MMA_BLOCK if m > WARP_TILE else MMA_BLOCK_FEW_ROWS
    n_parts, grid = launch.tiles_of_product(m, n, k, WARP_TILE * block[1], WARP_TILE * block[2])
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
    """``out = a @ b`` for float32 matrices, or ``out += a @ b``; out is C-contiguous.

    `kernel`:

    - None: cuBLAS; with `add`, a limited number of rows at a time.
    - "tiled": float32, any layout of a and b, `block` threads.
    - "mma": tensor cores (compute capability 8.0); each factor is the sum of three bfloat16 numbers. As precise as
      float32.
    - "bfloat16": tensor cores, a sixth of the products; the factors are rounded to bfloat16 (8 bits). Products of
      bfloat16 numbers are exact; the tensor core truncates the float32 sums.

    The tensor-core kernels allocate one matrix like out per part where they add or split the sums.
    """
    if kernel == "tiled":
        _tiled(a, b, out, add, block)
    elif kernel is not None:
        _mma(a, b, out, add, exact={"mma": True, "bfloat16": False}[kernel])
    elif not add:
        xp.matmul(a, b, out=out)
    else:
        step = max(1, MAX_SCRATCH // max(1, sum(b.shape)))
        for first in range(0, out.shape[0], step):
            out[first : first + step] += xp.matmul(a[first : first + step], b)
