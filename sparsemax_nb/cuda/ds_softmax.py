"""DS-Softmax on CUDA: a sparse mixture of sparse experts. All kernels are deterministic: no atomics."""

import math

import numpy as np
from numba import float32, int32

from ..core.device import asarray, cuda, cuda_device, cuda_jit, empty, has_tensor_cores, xp
from ..core.experts import group
from . import launch
from .matmul import matmul
from .reduce import block_sum
from .tensor_cores import SIDE, factor, place_of_lane, product_of_tile, shared_bytes_of, store_row
from .top_k import INSERTED, SORTED, top_k

ZERO, ONE = np.float32(0), np.float32(1)
WORST, NAN, NO_CLASS = np.float32(-np.inf), np.float32(np.nan), np.int32(2**31 - 1)
#: Rows of its tile that one thread of a product owns.
OWNED = 4
#: Threads of a block on tensor cores: tiles of 32 by 128, since an expert gets few rows.
MMA_BLOCK = (32, 1, 4)


@cuda_device
def _block_best(shared, shared_ids, score, place):
    """The largest `score` of the block's threads and its `place`, the lowest of equal ones; shared: 8 bytes a thread."""
    thread, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    shared[thread], shared_ids[thread] = score, place
    cuda.syncthreads()
    while half > 0:
        if thread < half:
            other, at = shared[thread + half], shared_ids[thread + half]
            if other > shared[thread] or (other == shared[thread] and at < shared_ids[thread]):
                shared[thread], shared_ids[thread] = other, at
        cuda.syncthreads()
        half //= 2
    score, place = shared[0], shared_ids[0]
    cuda.syncthreads()
    return score, place


@cuda_device
def _choose(logits, shared, shared_ids):
    """The place of a row's largest logit, the first of equal ones, its value, and its softmax; by all threads of a block."""
    thread, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    best, place, total = WORST, NO_CLASS, ZERO
    for j in range(thread, logits.size, n_threads):
        if logits[j] > best:
            best, place = logits[j], np.int32(j)
    best, place = _block_best(shared, shared_ids, best, place)
    place = np.int32(0) if place == NO_CLASS else place  # no logit is a number: the scores will not be either
    for j in range(thread, logits.size, n_threads):
        total += math.exp(logits[j] - best)
    return place, best, ONE / block_sum(shared, total)


@cuda_jit
def gate_kernel(logits, probabilities, chosen, values):
    """A block owns one row of logits, probabilities (B, E), a thread its columns t, t + blockDim.x, ...; coalesced.

    Writes chosen, values (B,) too. Maximum and sum are reduced in shared memory, 8 bytes a thread, always in the same
    order. Grid: rows on x; block a power of two. No atomics.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared, ids = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    row = logits[b]
    place, largest, value = _choose(row, shared, ids[n_threads:])
    for j in range(thread, row.size, n_threads):
        probabilities[b, j] = math.exp(row[j] - largest) * value
    if thread == 0:
        chosen[b] = place
        values[b] = value


def gate(logits, probabilities, chosen, values, *, block=launch.BLOCK):
    """softmax(logits) (B, E), the expert with the largest of each row, and that value; probabilities may be the logits."""
    if logits.shape[0]:
        gate_kernel[logits.shape[0], block, 0, launch.shared_bytes(8 * block)](logits, probabilities, chosen, values)


@cuda_device
def tile_of(starts, tile, size):
    """first, stop, expert: the run of at most `size` rows that is number `tile` where each expert's are cut apart.

    Past the last one, expert is -1.
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
    """A block owns blockDim.x classes of one expert, one a thread side by side; it walks over the expert's rows of the batch.

    So many rows at a time that each thread holds 4 sums: 4 blockDim.y of them. Their h (B, d) and the classes' rows (R,
    d) come through shared memory, blockDim.x terms at a time, each number read once per tile. Writes out (flat),
    coalesced. Grid: tiles of classes on x, rows stride over y. Shared memory: 4 blockDim.x (4 blockDim.y + blockDim.x +
    1) bytes. No atomics.
    """
    tx, ty, nx, ny = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
    shared, n_rows = cuda.shared.array(0, float32), OWNED * ny
    mine, theirs, pad = 0, n_rows * nx, nx + 1
    first, stop, k = tile_of(experts.starts, cuda.blockIdx.x, nx)
    if k < 0:
        return
    width, begin, end = h.shape[1], groups.starts[k], groups.starts[k + 1]
    for row in range(begin + cuda.blockIdx.y * n_rows, end, cuda.gridDim.y * n_rows):
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for term in range(0, width, nx):
            inside = term + tx < width
            for i in range(ty, n_rows, ny):
                shared[mine + i * nx + tx] = h[row + i, term + tx] if inside and row + i < end else ZERO
            for i in range(ty, nx, ny):
                shared[theirs + i * pad + tx] = (
                    experts.weights[first + i, term + tx] if inside and first + i < stop else ZERO
                )
            cuda.syncthreads()
            for t in range(nx):
                w = shared[theirs + tx * pad + t]
                s0 += shared[mine + ty * nx + t] * w
                s1 += shared[mine + (ty + ny) * nx + t] * w
                s2 += shared[mine + (ty + 2 * ny) * nx + t] * w
                s3 += shared[mine + (ty + 3 * ny) * nx + t] * w
            cuda.syncthreads()
        if first + tx < stop:
            place = first + tx - experts.starts[k]
            if row + ty < end:
                out[groups.offsets[row + ty] + place] = s0
            if row + ty + ny < end:
                out[groups.offsets[row + ty + ny] + place] = s1
            if row + ty + 2 * ny < end:
                out[groups.offsets[row + ty + 2 * ny] + place] = s2
            if row + ty + 3 * ny < end:
                out[groups.offsets[row + ty + 3 * ny] + place] = s3


@cuda_jit
def scores_mma_kernel(h, weights, groups, experts, out):
    """`scores_kernel` on the tensor cores: a block owns 32 blockDim.z classes of one expert, and takes 32 blockDim.y rows at a time.

    h (B, d) and weights (R, d) are a `Factor` each; what a block stages of them, and how, is said in `tensor_cores`.
    Writes out (flat), 16 classes side by side. Grid: tiles of classes on x, rows stride over y. Shared memory: two
    buffers of 3,072 (blockDim.y + blockDim.z) bytes. No atomics.
    """
    n_rows = SIDE * cuda.blockDim.y
    first, stop, k = tile_of(experts.starts, cuda.blockIdx.x, SIDE * cuda.blockDim.z)
    if k < 0:
        return
    begin, end, size = groups.starts[k], groups.starts[k + 1], experts.starts[k + 1] - experts.starts[k]
    y, x = place_of_lane()
    place = first - experts.starts[k] + x
    for row in range(begin + cuda.blockIdx.y * n_rows, end, cuda.gridDim.y * n_rows):
        terms = 0, experts.weights.shape[1]
        r0, r1, r2, r3 = product_of_tile((h, 0), (weights, 0), (row, end), (first, stop), terms, True)
        i = row + y
        if i < end:
            store_row(out, groups.offsets[i], place, size, False, r0)
        if i + 2 < end:
            store_row(out, groups.offsets[i + 2], place, size, False, r1)
        if i + 16 < end:
            store_row(out, groups.offsets[i + 16], place, size, False, r2)
        if i + 18 < end:
            store_row(out, groups.offsets[i + 18], place, size, False, r3)


def scores(h, groups, experts, out, *, block=(32, 8), tensor_cores=None):
    """The products of each row of h (B, d) with all rows of its expert, flat; h lies in the order of the groups.

    On tensor cores where the device has them, as precise as float32; `tensor_cores` says that it has them, or not.
    """
    n_experts, n_classes = experts.starts.shape[0] - 1, experts.ids.shape[0]
    rows_of_one = launch.divide_up(2 * h.shape[0], n_experts)  # an expert that gets more of them takes longer
    if has_tensor_cores(tensor_cores):
        _, y, z = MMA_BLOCK
        grid = launch.tiles_of_groups(n_classes, n_experts, SIDE * z, rows_of_one, SIDE * y)
        shared = launch.shared_bytes(shared_bytes_of(MMA_BLOCK))
        scores_mma_kernel[grid, MMA_BLOCK, 0, shared](factor(h), factor(experts.weights), groups, experts, out)
        return
    shared = launch.shared_bytes(4 * block[0] * (OWNED * block[1] + block[0] + 1))
    grid = launch.tiles_of_groups(n_classes, n_experts, block[0], rows_of_one, OWNED * block[1])
    scores_kernel[grid, block, 0, shared](h, groups, experts, out)


# ---------------------------------------------------------------- answers


@cuda_device
def _best(scores, value, ids, first, probabilities, found, shared, shared_ids):
    """The best of one row's scores, one after the other: their softmax, times the gate value inside, and their classes.

    By all threads of a block. A thread remembers the best of its own scores that is not yet taken; only the one whose
    score was taken looks again.
    """
    thread, n_threads, k = cuda.threadIdx.x, cuda.blockDim.x, found.size
    best, place, total, largest = WORST, NO_CLASS, ZERO, ZERO
    for j in range(thread, scores.size, n_threads):
        if scores[j] > best:
            best, place = scores[j], np.int32(j)
    for i in range(min(k, scores.size)):
        score, at = _block_best(shared, shared_ids, best, place)
        if i == 0:
            largest = score
            for j in range(thread, scores.size, n_threads):
                total += math.exp(value * (scores[j] - largest))
            total = block_sum(shared, total)
        if at == NO_CLASS:  # no score is a number
            probabilities[i], found[i] = NAN, -1
        elif at == place:
            scores[at] = WORST
            probabilities[i] = math.exp(value * (score - largest)) / total
            found[i] = ids[first + at]
            best, place = WORST, NO_CLASS
            for j in range(thread, scores.size, n_threads):
                if scores[j] > best:
                    best, place = scores[j], np.int32(j)
    for i in range(scores.size + thread, k, n_threads):
        probabilities[i] = ZERO * value  # NaN where the gate was not finite
        found[i] = -1


@cuda_device
def _products(query, rows, first, stop, shared, line):
    """line[r - first] = the product of `query` and rows[r], for the rows first ... stop - 1; by all threads of a block.

    A warp reads four rows together, coalesced. Its lanes' parts of 32 rows lie in shared memory, 33 numbers a row; then
    each lane adds up those of one row, from the first lane's on. Ends behind a barrier. Threads: a multiple of four.
    """
    thread, n_threads, width = cuda.threadIdx.x, cuda.blockDim.x, rows.shape[1]
    lanes = min(launch.WARP, n_threads)
    lane, warp = thread % lanes, thread // lanes * lanes
    parts = warp * (lanes + 1)
    for start in range(first, stop, n_threads):
        for j in range(0, lanes, 4):
            r = start + warp + j
            if r < stop:
                a, b, c = rows[r], rows[min(r + 1, stop - 1)], rows[min(r + 2, stop - 1)]
                d, i = rows[min(r + 3, stop - 1)], lane
                p, q, s, t = ZERO, ZERO, ZERO, ZERO
                while i < width:
                    x = query[i]
                    p += x * a[i]
                    q += x * b[i]
                    s += x * c[i]
                    t += x * d[i]
                    i += lanes
                at = parts + j * (lanes + 1) + lane
                shared[at] = p
                shared[at + lanes + 1] = q
                shared[at + 2 * (lanes + 1)] = s
                shared[at + 3 * (lanes + 1)] = t
        cuda.syncthreads()
        if start + thread < stop:
            total = ZERO
            for i in range(lanes):
                total += shared[parts + lane * (lanes + 1) + i]
            line[start + thread - first] = total
        cuda.syncthreads()


@cuda_jit
def answer_kernel(h, gate_rows, experts, scratch, probabilities, ids):
    """A block owns one query, from its gate to its answer; a warp four of the gate's rows, then of the expert's, at a time.

    Reads the row of h (B, d), gate_rows (E, d), and rows and ids of one expert, all coalesced; writes probabilities,
    ids (B, k). Logits and scores pass through scratch (B, max(E, largest expert)). The query lies in shared memory
    behind 33 numbers a thread, for the parts of products and for the reductions, which always run in the same order.
    Grid: queries on x; block a power of two. No atomics.
    """
    b, thread, n_threads, width = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x, h.shape[1]
    shared, places = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    query, shared_ids, line = shared[(launch.WARP + 1) * n_threads :], places[n_threads:], scratch[b]
    for i in range(thread, width, n_threads):
        query[i] = h[b, i]
    cuda.syncthreads()
    _products(query, gate_rows, 0, gate_rows.shape[0], shared, line)
    k, _, value = _choose(line[: gate_rows.shape[0]], shared, shared_ids)
    first, stop = experts.starts[k], experts.starts[k + 1]
    _products(query, experts.weights, first, stop, shared, line)
    _best(line[: stop - first], value, experts.ids, first, probabilities[b], ids[b], shared, shared_ids)


def answer(h, gate_rows, experts, probabilities, ids, *, block=launch.BLOCK):
    """The best classes of the expert that the gate picks: their probabilities in its softmax, and ids, (B, k); row by row."""
    if h.shape[0] and ids.shape[1] > INSERTED:
        logits = empty((h.shape[0], gate_rows.shape[0]), np.float32, "cuda")
        chosen, values = (empty(h.shape[0], dtype, "cuda") for dtype in (np.int32, np.float32))
        matmul(h, gate_rows.T, logits)
        gate(logits, logits, chosen, values)
        groups = group(chosen, experts.starts)
        flat = empty(int(groups.offsets[-1]), np.float32, "cuda")
        scores(h[groups.order], groups, experts, flat)
        select(flat, values, groups, experts, probabilities, ids)
    elif h.shape[0]:
        most = int((experts.starts[1:] - experts.starts[:-1]).max())
        scratch = empty((h.shape[0], max(gate_rows.shape[0], most)), np.float32, "cuda")
        shared = launch.shared_bytes(4 * ((launch.WARP + 1) * block + h.shape[1]))
        answer_kernel[h.shape[0], block, 0, shared](h, gate_rows, experts, scratch, probabilities, ids)


@cuda_jit
def select_kernel(scores, values, groups, experts, probabilities, ids):
    """A block owns one row of the sorted batch: the best of its scores (flat, which are spoiled), probabilities, ids (B, k).

    Shared memory: 8 bytes a thread for the reductions, which always run in the same order. Grid: rows on x; block a
    power of two. No atomics.
    """
    place, n_threads = cuda.blockIdx.x, cuda.blockDim.x
    shared, places = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    b, first = groups.order[place], experts.starts[groups.experts[place]]
    line = scores[groups.offsets[place] : groups.offsets[place + 1]]
    _best(line, values[b], experts.ids, first, probabilities[b], ids[b], shared, places[n_threads:])


def _select_many(scores, values, groups, experts, probabilities, ids):
    """`select` of many: by sorting the scores, filled up to a row for each query; some rows at a time."""
    n_rows = values.shape[0]
    sizes, starts = groups.offsets[1:] - groups.offsets[:-1], experts.starts[groups.experts]
    most = max(1, int(sizes.max()))
    place = xp.arange(most)
    for first in range(0, n_rows, max(1, SORTED // most)):
        some = slice(first, min(first + max(1, SORTED // most), n_rows))
        held = place < sizes[some, None]
        index = xp.where(held, groups.offsets[:-1][some, None] + place, 0)
        rows = asarray(xp.where(held, scores[index] if scores.size else WORST, WORST), "cuda", np.float32)
        best, at = (empty((rows.shape[0], ids.shape[1]), dtype, "cuda") for dtype in (np.float32, np.int32))
        top_k(rows, best, at)
        order, value = groups.order[some], values[groups.order[some]][:, None]
        with np.errstate(invalid="ignore"):
            p = xp.exp(value * (best - best[:, :1])) / xp.exp(value * (rows - best[:, :1])).sum(axis=1, keepdims=True)
        is_missing = xp.arange(ids.shape[1]) >= sizes[some, None]
        found = experts.ids[xp.where(at < 0, 0, starts[some, None] + at)] if experts.ids.size else at
        p = xp.where(at < 0, NAN, p)  # its score was not a number
        probabilities[order] = xp.where(is_missing, ZERO * value, p)  # NaN where the gate was not finite
        ids[order] = xp.where(at < 0, -1, found)


def select(scores, values, groups, experts, probabilities, ids, *, block=launch.BLOCK):
    """The same, (B, k), from the scores (flat) of a batch that is sorted by expert, and the gate's values (B,)."""
    if values.shape[0] and ids.shape[1] > INSERTED:
        _select_many(scores, values, groups, experts, probabilities, ids)
    elif values.shape[0]:
        shared = launch.shared_bytes(8 * block)
        select_kernel[values.shape[0], block, 0, shared](scores, values, groups, experts, probabilities, ids)
