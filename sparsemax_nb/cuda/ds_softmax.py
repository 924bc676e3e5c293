"""DS-Softmax on CUDA: a sparse mixture of sparse experts. All kernels are deterministic: no atomics."""

import math

import numpy as np
from numba import float32, int32

from ..core.device import asarray, cuda, cuda_device, cuda_jit, empty, has_tensor_cores, xp
from ..core.experts import group
from . import launch
from .matmul import matmul
from .reduce import block_sum
from .tensor_cores import WARP_TILE, factor, origin_of_lane, product_of_tile, shared_bytes_of, store_row
from .top_k import MAX_INSERTED, MAX_SORTED, top_k

ZERO, ONE = np.float32(0), np.float32(1)
WORST, NAN = np.float32(-np.inf), np.float32(np.nan)
#: Position of "no class found": loses every tie, since the lowest position wins.
NO_CLASS = np.int32(2**31 - 1)
#: Sums per thread of a product: each number read from shared memory for the other factor is used four times.
ROWS_PER_THREAD = 4
#: Block of the tensor-core kernels: tiles of 32 x 128, since an expert gets few rows of a batch.
MMA_BLOCK = (32, 1, 4)


@cuda_device
def _block_best(shared, shared_ids, score, position):
    """The largest `score` of the block's threads and its `position`; the lowest position wins a tie.

    `shared` and `shared_ids` need 4 bytes per thread each.
    """
    thread, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    shared[thread], shared_ids[thread] = score, position
    cuda.syncthreads()
    while half > 0:
        if thread < half:
            other, other_position = shared[thread + half], shared_ids[thread + half]
            if other > shared[thread] or (other == shared[thread] and other_position < shared_ids[thread]):
                shared[thread], shared_ids[thread] = other, other_position
        cuda.syncthreads()
        half //= 2
    score, position = shared[0], shared_ids[0]
    cuda.syncthreads()
    return score, position


@cuda_device
def _choose(logits, shared, shared_ids):
    """Position and value of a row's largest logit (the first of equal ones), and its softmax probability.

    Called by all threads of a block.
    """
    thread, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    best, position, total = WORST, NO_CLASS, ZERO
    for j in range(thread, logits.size, n_threads):
        if logits[j] > best:
            best, position = logits[j], np.int32(j)
    best, position = _block_best(shared, shared_ids, best, position)
    position = np.int32(0) if position == NO_CLASS else position  # all logits are NaN, and so will be the scores
    for j in range(thread, logits.size, n_threads):
        total += math.exp(logits[j] - best)
    return position, best, ONE / block_sum(shared, total)


@cuda_jit
def gate_kernel(logits, probabilities, chosen, values):
    """One block owns one row of logits and probabilities (B, E); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x; block a power of two. Reads logits, writes probabilities, coalesced; writes chosen and values (B,).
    Shared memory: 8 bytes per thread for the reductions, which run in a fixed order. No atomics.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared, ids = cuda.shared.array(0, float32), cuda.shared.array(0, int32)  # one array, two views
    row = logits[b]
    position, largest, value = _choose(row, shared, ids[n_threads:])
    for j in range(thread, row.size, n_threads):
        probabilities[b, j] = math.exp(row[j] - largest) * value
    if thread == 0:
        chosen[b] = position
        values[b] = value


def gate(logits, probabilities, chosen, values, *, block=launch.BLOCK):
    """softmax(logits) (B, E), the most probable expert of each row, and its probability.

    `probabilities` may be `logits`.
    """
    if logits.shape[0]:
        gate_kernel[logits.shape[0], block, 0, launch.shared_bytes(8 * block)](logits, probabilities, chosen, values)


@cuda_device
def tile_of_expert(starts, tile, size):
    """(first, stop, expert) of tile number `tile`, where each expert's rows are cut into tiles of at most `size`.

    Past the last tile, expert is -1.
    """
    for k in range(starts.size - 1):
        n = (starts[k + 1] - starts[k] + size - 1) // size
        if tile < n:
            first = starts[k] + tile * size
            return first, min(first + size, starts[k + 1]), k
        tile -= n
    return 0, 0, -1


@cuda_jit
def scores_kernel(h, groups, experts, out):
    """One block owns blockDim.x classes of one expert and walks over the expert's rows of the batch.

    Grid: tiles of classes on x, rows stride over y. Thread (x, y) computes four scores: class x for rows y, y +
    blockDim.y, ... of 4 blockDim.y. Reads h (B, d) and the classes' weights (R, d), blockDim.x terms at a time, once
    per tile; writes out (flat), coalesced. Shared memory: 4 blockDim.x (4 blockDim.y + blockDim.x + 1) bytes. No
    atomics.
    """
    tx, ty, nx, ny = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
    shared, n_rows = cuda.shared.array(0, float32), ROWS_PER_THREAD * ny
    # Offsets into shared memory. The weights are padded by one number per class: neighbouring threads read one term of
    # neighbouring classes, which without padding are all in the same bank.
    tile_of_h, tile_of_weights, pitch = 0, n_rows * nx, nx + 1
    first, stop, k = tile_of_expert(experts.starts, cuda.blockIdx.x, nx)
    if k < 0:
        return
    width = h.shape[1]
    begin, end = groups.starts[k], groups.starts[k + 1]
    for row in range(begin + cuda.blockIdx.y * n_rows, end, cuda.gridDim.y * n_rows):
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for term in range(0, width, nx):
            inside = term + tx < width
            for i in range(ty, n_rows, ny):
                shared[tile_of_h + i * nx + tx] = h[row + i, term + tx] if inside and row + i < end else ZERO
            for i in range(ty, nx, ny):
                shared[tile_of_weights + i * pitch + tx] = (
                    experts.weights[first + i, term + tx] if inside and first + i < stop else ZERO
                )
            cuda.syncthreads()
            for t in range(nx):
                w = shared[tile_of_weights + tx * pitch + t]
                s0 += shared[tile_of_h + ty * nx + t] * w
                s1 += shared[tile_of_h + (ty + ny) * nx + t] * w
                s2 += shared[tile_of_h + (ty + 2 * ny) * nx + t] * w
                s3 += shared[tile_of_h + (ty + 3 * ny) * nx + t] * w
            cuda.syncthreads()
        if first + tx < stop:
            position = first + tx - experts.starts[k]
            if row + ty < end:
                out[groups.offsets[row + ty] + position] = s0
            if row + ty + ny < end:
                out[groups.offsets[row + ty + ny] + position] = s1
            if row + ty + 2 * ny < end:
                out[groups.offsets[row + ty + 2 * ny] + position] = s2
            if row + ty + 3 * ny < end:
                out[groups.offsets[row + ty + 3 * ny] + position] = s3


@cuda_jit
def scores_mma_kernel(h, weights, groups, experts, out):
    """`scores_kernel` on the tensor cores: one block owns 32 blockDim.z classes of one expert.

    Grid: tiles of classes on x, rows stride over y, 32 blockDim.y at a time. h (B, d) and weights (R, d) are a `Factor`
    each; see `tensor_cores` for how they are staged. Writes out (flat), 16 adjacent classes at a time. Shared memory:
    two buffers of 3,072 (blockDim.y + blockDim.z) bytes. No atomics.
    """
    n_rows = WARP_TILE * cuda.blockDim.y
    first, stop, k = tile_of_expert(experts.starts, cuda.blockIdx.x, WARP_TILE * cuda.blockDim.z)
    if k < 0:
        return
    begin, end = groups.starts[k], groups.starts[k + 1]
    size = experts.starts[k + 1] - experts.starts[k]
    y, x = origin_of_lane()
    position = first - experts.starts[k] + x
    for row in range(begin + cuda.blockIdx.y * n_rows, end, cuda.gridDim.y * n_rows):
        terms = 0, experts.weights.shape[1]
        r0, r1, r2, r3 = product_of_tile((h, 0), (weights, 0), (row, end), (first, stop), terms, True)
        i = row + y
        if i < end:
            store_row(out, groups.offsets[i], position, size, False, r0)
        if i + 2 < end:
            store_row(out, groups.offsets[i + 2], position, size, False, r1)
        if i + 16 < end:
            store_row(out, groups.offsets[i + 16], position, size, False, r2)
        if i + 18 < end:
            store_row(out, groups.offsets[i + 18], position, size, False, r3)


def scores(h, groups, experts, out, *, block=(32, 8), tensor_cores=None):
    """The products of each row of h (B, d) with all classes of its expert, flat; h is sorted by expert.

    Uses the tensor cores where the device has them, as precise as float32; `tensor_cores` overrides the detection.
    """
    n_experts, n_classes = experts.starts.shape[0] - 1, experts.ids.shape[0]
    rows_per_expert = launch.divide_up(2 * h.shape[0], n_experts)  # twice the average; more rows stride
    if has_tensor_cores(tensor_cores):
        _, y, z = MMA_BLOCK
        grid = launch.tiles_of_groups(n_classes, n_experts, WARP_TILE * z, rows_per_expert, WARP_TILE * y)
        shared = launch.shared_bytes(shared_bytes_of(MMA_BLOCK))
        scores_mma_kernel[grid, MMA_BLOCK, 0, shared](factor(h), factor(experts.weights), groups, experts, out)
        return
    shared = launch.shared_bytes(4 * block[0] * (ROWS_PER_THREAD * block[1] + block[0] + 1))
    grid = launch.tiles_of_groups(n_classes, n_experts, block[0], rows_per_expert, ROWS_PER_THREAD * block[1])
    scores_kernel[grid, block, 0, shared](h, groups, experts, out)


# ---------------------------------------------------------------- answers


@cuda_device
def _best_of_row(scores, value, ids, first, probabilities, found, shared, shared_ids):
    """The best of one row's scores: their softmax, times the gate value inside, and their classes.

    Called by all threads of a block, which finds one result after the other.
    """
    thread, n_threads, k = cuda.threadIdx.x, cuda.blockDim.x, found.size
    best, position = WORST, NO_CLASS
    total = largest = ZERO
    # Each thread remembers the best of its own scores. Only the thread whose score was taken scans its scores again.
    for j in range(thread, scores.size, n_threads):
        if scores[j] > best:
            best, position = scores[j], np.int32(j)
    for i in range(min(k, scores.size)):
        score, winner = _block_best(shared, shared_ids, best, position)
        if i == 0:
            largest = score
            for j in range(thread, scores.size, n_threads):
                total += math.exp(value * (scores[j] - largest))
            total = block_sum(shared, total)
        if winner == NO_CLASS:  # all scores are NaN
            probabilities[i], found[i] = NAN, -1
        elif winner == position:
            scores[winner] = WORST
            probabilities[i] = math.exp(value * (score - largest)) / total
            found[i] = ids[first + winner]
            best, position = WORST, NO_CLASS
            for j in range(thread, scores.size, n_threads):
                if scores[j] > best:
                    best, position = scores[j], np.int32(j)
    for i in range(scores.size + thread, k, n_threads):
        probabilities[i] = ZERO * value  # NaN if the gate value was not finite
        found[i] = -1


@cuda_device
def _products_of_row(h, rows, first, stop, shared, products):
    """products[r - first] = ``h @ rows[r]`` for r = first ... stop - 1; called by all threads of a block.

    The number of threads must be a multiple of four. Ends with a barrier.
    """
    thread, n_threads, width = cuda.threadIdx.x, cuda.blockDim.x, rows.shape[1]
    # A warp multiplies four rows at once, coalesced: each number of h is loaded once for four products. The lanes'
    # partial sums of 32 rows go to shared memory, 33 numbers per row; then each lane adds up one row. The padding keeps
    # the lanes' reads in different banks, and the order of the sum is fixed.
    lanes = min(launch.WARP, n_threads)
    lane, warp = thread % lanes, thread // lanes * lanes
    partial_sums = warp * (lanes + 1)
    for start in range(first, stop, n_threads):
        for j in range(0, lanes, 4):
            r = start + warp + j
            if r < stop:
                a, b, c = rows[r], rows[min(r + 1, stop - 1)], rows[min(r + 2, stop - 1)]
                d, i = rows[min(r + 3, stop - 1)], lane
                p, q, s, t = ZERO, ZERO, ZERO, ZERO
                while i < width:
                    x = h[i]
                    p += x * a[i]
                    q += x * b[i]
                    s += x * c[i]
                    t += x * d[i]
                    i += lanes
                slot = partial_sums + j * (lanes + 1) + lane
                shared[slot] = p
                shared[slot + lanes + 1] = q
                shared[slot + 2 * (lanes + 1)] = s
                shared[slot + 3 * (lanes + 1)] = t
        cuda.syncthreads()
        if start + thread < stop:
            total = ZERO
            for i in range(lanes):
                total += shared[partial_sums + lane * (lanes + 1) + i]
            products[start + thread - first] = total
        cuda.syncthreads()


@cuda_jit
def answer_kernel(h, gate_rows, experts, scratch, probabilities, ids):
    """One block owns one row of h from gate to answer.

    Grid: rows on x; block a power of two. Reads its row of h (B, d), gate_rows (E, d), and weights and ids of one
    expert, coalesced; writes probabilities and ids (B, k). Logits and scores pass through scratch (B, max(E, largest
    expert)). Shared memory: 33 numbers per thread for partial sums and reductions, which run in a fixed order, and the
    row of h. No atomics.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    width = h.shape[1]
    shared, shared_ints = cuda.shared.array(0, float32), cuda.shared.array(0, int32)  # one array, two views
    h_row, shared_ids = shared[(launch.WARP + 1) * n_threads :], shared_ints[n_threads:]
    row = scratch[b]
    for i in range(thread, width, n_threads):
        h_row[i] = h[b, i]
    cuda.syncthreads()
    _products_of_row(h_row, gate_rows, 0, gate_rows.shape[0], shared, row)
    k, _, value = _choose(row[: gate_rows.shape[0]], shared, shared_ids)
    first, stop = experts.starts[k], experts.starts[k + 1]
    _products_of_row(h_row, experts.weights, first, stop, shared, row)
    _best_of_row(row[: stop - first], value, experts.ids, first, probabilities[b], ids[b], shared, shared_ids)


def answer(h, gate_rows, experts, probabilities, ids, *, block=launch.BLOCK):
    """The k best classes of the expert that the gate picks: their probabilities in its softmax and ids, (B, k).

    One block per row; large k instead goes through `gate`, `scores` and `select`.
    """
    if h.shape[0] and ids.shape[1] > MAX_INSERTED:
        logits = empty((h.shape[0], gate_rows.shape[0]), np.float32, "cuda")
        chosen, values = (empty(h.shape[0], dtype, "cuda") for dtype in (np.int32, np.float32))
        matmul(h, gate_rows.T, logits)
        gate(logits, logits, chosen, values)
        groups = group(chosen, experts.starts)
        flat = empty(int(groups.offsets[-1]), np.float32, "cuda")
        scores(h[groups.order], groups, experts, flat)
        select(flat, values, groups, experts, probabilities, ids)
    elif h.shape[0]:
        max_classes = int((experts.starts[1:] - experts.starts[:-1]).max())
        scratch = empty((h.shape[0], max(gate_rows.shape[0], max_classes)), np.float32, "cuda")
        shared = launch.shared_bytes(4 * ((launch.WARP + 1) * block + h.shape[1]))
        answer_kernel[h.shape[0], block, 0, shared](h, gate_rows, experts, scratch, probabilities, ids)


@cuda_jit
def select_kernel(scores, values, groups, experts, probabilities, ids):
    """One block owns one row of the batch sorted by expert: the best of its scores.

    Grid: rows on x; block a power of two. Reads and overwrites scores (flat); writes probabilities and ids (B, k).
    Shared memory: 8 bytes per thread for the reductions, which run in a fixed order. No atomics.
    """
    position, n_threads = cuda.blockIdx.x, cuda.blockDim.x
    shared, shared_ints = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    b, first = groups.order[position], experts.starts[groups.experts[position]]
    row = scores[groups.offsets[position] : groups.offsets[position + 1]]
    _best_of_row(row, values[b], experts.ids, first, probabilities[b], ids[b], shared, shared_ints[n_threads:])


def _select_many(scores, values, groups, experts, probabilities, ids):
    """`select` for large k: sorts the scores, padded to a matrix, some rows at a time."""
    n_rows = values.shape[0]
    sizes, starts = groups.offsets[1:] - groups.offsets[:-1], experts.starts[groups.experts]
    max_classes = max(1, int(sizes.max()))
    columns = xp.arange(max_classes)
    for first in range(0, n_rows, max(1, MAX_SORTED // max_classes)):
        rows = slice(first, min(first + max(1, MAX_SORTED // max_classes), n_rows))
        exists = columns < sizes[rows, None]
        index = xp.where(exists, groups.offsets[:-1][rows, None] + columns, 0)
        padded_scores = asarray(xp.where(exists, scores[index] if scores.size else WORST, WORST), "cuda", np.float32)
        best, best_columns = (
            empty((padded_scores.shape[0], ids.shape[1]), dtype, "cuda") for dtype in (np.float32, np.int32)
        )
        top_k(padded_scores, best, best_columns)
        order, value = groups.order[rows], values[groups.order[rows]][:, None]
        with np.errstate(invalid="ignore"):
            probability = xp.exp(value * (best - best[:, :1])) / xp.exp(value * (padded_scores - best[:, :1])).sum(
                axis=1, keepdims=True
            )
        is_missing = xp.arange(ids.shape[1]) >= sizes[rows, None]
        best_ids = (
            experts.ids[xp.where(best_columns < 0, 0, starts[rows, None] + best_columns)]
            if experts.ids.size
            else best_columns
        )
        probability = xp.where(best_columns < 0, NAN, probability)  # its score was NaN
        probabilities[order] = xp.where(is_missing, ZERO * value, probability)  # NaN if the gate value was not finite
        ids[order] = xp.where(best_columns < 0, -1, best_ids)


def select(scores, values, groups, experts, probabilities, ids, *, block=launch.BLOCK):
    """The same probabilities and ids, (B, k), from the flat scores of a batch sorted by expert.

    `values` (B,) are the gate's values. `scores` is overwritten.
    """
    if values.shape[0] and ids.shape[1] > MAX_INSERTED:
        _select_many(scores, values, groups, experts, probabilities, ids)
    elif values.shape[0]:
        shared = launch.shared_bytes(8 * block)
        select_kernel[values.shape[0], block, 0, shared](scores, values, groups, experts, probabilities, ids)
