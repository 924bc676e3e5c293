"""Tiles of the full softmax, and its most probable classes, on CUDA."""

import math

import numpy as np
from numba import float32, int32

from ..core.device import address, cuda, cuda_device, cuda_jit, empty, has_tensor_cores, xp, zeros
from . import launch
from .matmul import matmul
from .reduce import ALL_LANES, block_max, block_sum
from .tensor_cores import WARP_TILE, factor, origin_of_lane, product_of_tile, shared_bytes_of, store_row
from .top_k import MAX_INSERTED, beats_worst, clear, insert, merge
from .top_k import top_k as top_k_of_scores

ZERO, ONE, NAN = np.float32(0), np.float32(1), np.float32(np.nan)
#: The lowest finite number: a maximum that starts here never gives infinity minus infinity.
LOWEST = np.finfo(np.float32).min
#: Score of an empty list entry.
WORST = np.float32(-np.inf)
#: Block of the tensor-core kernel: a tile of 128 rows and 64 classes.
MMA_BLOCK = (32, 4, 2)
#: Logits that exist at once in `top_k`: 64 MiB.
MAX_ELEMENTS = 1 << 24


@cuda_jit
def add_tile_kernel(logits, bias, largest, total):
    """One block owns one row of logits (B, T); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x; block a power of two. Reads logits twice, coalesced,
    and bias (T,); updates largest and total (B,). Shared memory: 4 bytes per thread for the reductions, which run in a
    fixed order. No atomics.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, float32)
    new = largest[b]
    for j in range(thread, logits.shape[1], n_threads):
        new = max(new, logits[b, j] + bias[j])
    new = block_max(shared, new)
    part = ZERO
    for j in range(thread, logits.shape[1], n_threads):
        part += math.exp(logits[b, j] + bias[j] - new)
    part = block_sum(shared, part)
    if thread == 0:
        # Online softmax: rescale the sum of the earlier tiles to the new maximum. No tile is needed twice.
        total[b] = total[b] * math.exp(largest[b] - new) + part
        largest[b] = new


def add_tile(logits, bias, largest, total, *, block=launch.BLOCK):
    """Updates the running maximum and sum of ``exp(logit - maximum)``, (B,), with one more tile (B, T)."""
    if logits.shape[0]:
        add_tile_kernel[logits.shape[0], block, 0, launch.shared_bytes(4 * block)](logits, bias, largest, total)


def labels_at_once(n_rows, n_labels, multiple=1):
    """How many labels `sums_of_layer` scores at a time: 64 MiB of scores, in multiples of `multiple`."""
    return min(n_labels, max(1, MAX_ELEMENTS // (max(n_rows, 1) * multiple)) * multiple)


def sums_of_layer(forward, part_of, h, n_labels, multiple, largest, total):
    """The largest score of each row and the sum of ``exp(score - largest)``, (B,), some labels at a time.

    ``forward(h, part_of(first, stop), scores)`` computes the scores of a range of labels.
    """
    size = labels_at_once(len(h), n_labels, multiple)
    scores, bias = empty(len(h) * size, np.float32, "cuda"), zeros(size, np.float32, "cuda")
    largest[...], total[...] = LOWEST, 0
    for first in range(0, n_labels, size):
        n = min(size, n_labels - first)
        tile = scores[: len(h) * n].reshape(len(h), n)
        forward(h, part_of(first, first + n), tile)
        add_tile(tile, bias[:n], largest, total)


@cuda_device
def _add_to_sums(values, biases, sums, row, part):
    """The largest logit of a row's 32 columns and the sum of ``exp(logit - largest)``, written to `sums`.

    Four neighbouring lanes have eight columns each: two shuffles reduce over them.
    """
    v, b = values, biases
    z0, z1, z2, z3 = v[0] + b[0], v[1] + b[1], v[2] + b[2], v[3] + b[3]
    z4, z5, z6, z7 = v[4] + b[4], v[5] + b[5], v[6] + b[6], v[7] + b[7]
    largest = max(max(max(z0, z1), max(z2, z3)), max(max(z4, z5), max(z6, z7)))
    largest = max(largest, cuda.shfl_xor_sync(ALL_LANES, largest, 1))
    largest = max(largest, cuda.shfl_xor_sync(ALL_LANES, largest, 2))
    total = (math.exp(z0 - largest) + math.exp(z1 - largest)) + (math.exp(z2 - largest) + math.exp(z3 - largest))
    total += (math.exp(z4 - largest) + math.exp(z5 - largest)) + (math.exp(z6 - largest) + math.exp(z7 - largest))
    total += cuda.shfl_xor_sync(ALL_LANES, total, 1)
    total += cuda.shfl_xor_sync(ALL_LANES, total, 2)
    if cuda.threadIdx.x % 4 == 0 and row < sums.shape[0]:
        sums[row, 0, part] = largest
        sums[row, 1, part] = total


@cuda_jit
def cross_entropy_mma_kernel(h, weights, bias, sizes, wide, logits, sums):
    """One block computes a tile of logits ``h @ weights.T`` on the tensor cores and reduces it on the way.

    Grid: tiles of 32 blockDim.y rows by 32 blockDim.z classes on x, vertical neighbours next to each other. sizes = (B,
    T, d). For each of its rows, a warp writes the largest of its 32 logits and their sum of ``exp(logit - largest)`` to
    sums (B, 2, parts of 32). It writes logits (B T), flat, without bias (T,), only if that array is not empty. Shared
    memory: two buffers of 3,072 (blockDim.y + blockDim.z) bytes. No atomics.
    """
    m, n, d = sizes
    n_rows = WARP_TILE * cuda.blockDim.y
    tiles_down = (m + n_rows - 1) // n_rows
    first_row = cuda.blockIdx.x % tiles_down * n_rows
    first = cuda.blockIdx.x // tiles_down * WARP_TILE * cuda.blockDim.z
    r0, r1, r2, r3 = product_of_tile((h, 0), (weights, 0), (first_row, m), (first, n), (0, d), True)
    y, x = origin_of_lane()
    row, c = first_row + y, first + x
    part = first // WARP_TILE + cuda.threadIdx.z
    # The sums are computed from registers: unless they are kept, the logits never reach memory.
    if logits.shape[0] > 0:
        if row < m:
            store_row(logits, row * n, c, n, wide, r0)
        if row + 2 < m:
            store_row(logits, (row + 2) * n, c, n, wide, r1)
        if row + 16 < m:
            store_row(logits, (row + 16) * n, c, n, wide, r2)
        if row + 18 < m:
            store_row(logits, (row + 18) * n, c, n, wide, r3)
    if part < sums.shape[2]:
        biases = (
            bias[c] if c < n else LOWEST,
            bias[c + 1] if c + 1 < n else LOWEST,
            bias[c + 2] if c + 2 < n else LOWEST,
            bias[c + 3] if c + 3 < n else LOWEST,
            bias[c + 16] if c + 16 < n else LOWEST,
            bias[c + 17] if c + 17 < n else LOWEST,
            bias[c + 18] if c + 18 < n else LOWEST,
            bias[c + 19] if c + 19 < n else LOWEST,
        )
        _add_to_sums(r0, biases, sums, row, part)
        _add_to_sums(r1, biases, sums, row + 2, part)
        _add_to_sums(r2, biases, sums, row + 16, part)
        _add_to_sums(r3, biases, sums, row + 18, part)


@cuda_jit
def add_sums_kernel(sums, largest, total):
    """One block owns one row and combines the sums of its tile's parts with the running ones.

    Grid: rows on x; block a power of two. Reads sums (B, 2, parts) twice, coalesced; updates largest and total (B,).
    Shared memory: 4 bytes per thread for the reductions, which run in a fixed order. No atomics.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, float32)
    new, part = largest[b], ZERO
    for p in range(thread, sums.shape[2], n_threads):
        new = max(new, sums[b, 0, p])
    new = block_max(shared, new)
    for p in range(thread, sums.shape[2], n_threads):
        part += sums[b, 1, p] * math.exp(sums[b, 0, p] - new)
    part = block_sum(shared, part)
    if thread == 0:
        total[b] = total[b] * math.exp(largest[b] - new) + part
        largest[b] = new


def _add_product_mma(h, weights, bias, logits, largest, total, block):
    """Launches the two kernels of `add_product` on the tensor cores."""
    sizes = (*h.shape[:1], *weights.shape)
    _, grid = launch.tiles_of_product(*sizes[:2], 0, WARP_TILE * MMA_BLOCK[1], WARP_TILE * MMA_BLOCK[2])
    sums = empty((sizes[0], 2, launch.divide_up(sizes[1], WARP_TILE)), np.float32, "cuda")
    wide = np.int32(sizes[1] % 4 == 0 and address(logits) % 16 == 0)
    cross_entropy_mma_kernel[grid, MMA_BLOCK, 0, launch.shared_bytes(shared_bytes_of(MMA_BLOCK))](
        factor(h), factor(weights), bias, tuple(map(np.int64, sizes)), wide, logits.reshape(-1), sums
    )
    add_sums_kernel[sizes[0], block, 0, launch.shared_bytes(4 * block)](sums, largest, total)


def add_product(h, weights, bias, keep, logits, largest, total, *, block=launch.BLOCK, tensor_cores=None):
    """`add_tile` of the tile ``h @ weights.T`` (B, T), for h (B, d) and weights (T, d).

    The tile is stored in `logits` if `keep`. Uses the tensor cores where the device has them, as precise as float32;
    `tensor_cores` overrides the detection.
    """
    if has_tensor_cores(tensor_cores):
        if h.shape[0]:
            _add_product_mma(h, weights, bias, logits if keep else logits[:0], largest, total, block)
        return
    matmul(h, weights.T, logits)
    add_tile(logits, bias, largest, total, block=block)


@cuda_jit
def gradient_of_tile_kernel(logits, bias, first, labels, sums, scale, losses, dlogits):
    """One block owns one row of logits and dlogits (B, T); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x; block a power of two. Reads logits and writes dlogits, coalesced; adds to losses (B,). sums =
    (largest, total), each (B,). The threads share the row's labels. Shared memory: 4 bytes per thread for the reduction
    of the loss, in a fixed order. No atomics.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared, loss = cuda.shared.array(0, float32), ZERO
    largest, total = sums[0][b], sums[1][b]
    # The loss comes first: dlogits may overwrite the logits.
    for i in range(labels.indptr[b] + thread, labels.indptr[b + 1], n_threads):
        column = labels.indices[i] - first
        if column >= 0 and column < logits.shape[1]:
            loss += math.log(total) + (largest - (logits[b, column] + bias[column]))
    loss = block_sum(shared, loss)
    if thread == 0:
        losses[b] += loss
    weight = np.float32(labels.indptr[b + 1] - labels.indptr[b]) * scale / total
    for j in range(thread, logits.shape[1], n_threads):
        dlogits[b, j] = math.exp(logits[b, j] + bias[j] - largest) * weight
    cuda.syncthreads()  # the columns of the labels were written by other threads
    for i in range(labels.indptr[b] + thread, labels.indptr[b + 1], n_threads):
        column = labels.indices[i] - first
        if column >= 0 and column < logits.shape[1]:
            dlogits[b, column] -= scale


def gradient_of_tile(logits, bias, first, labels, largest, total, scale, dbias, losses, dlogits, *, block=launch.BLOCK):
    """``(n_labels * p - [class is a label]) * scale`` of a tile (B, T), with ``p = exp(logit - largest) / total``.

    The gradient summed over rows is added to dbias; ``log(total) + largest - logit`` of each label is added to losses
    (B,). `dlogits` may be `logits`.
    """
    n_rows = logits.shape[0]
    if n_rows:
        gradient_of_tile_kernel[n_rows, block, 0, launch.shared_bytes(4 * block)](
            logits, bias, first, labels, (largest, total), scale, losses, dlogits
        )
        ones = empty((1, n_rows), np.float32, "cuda")
        ones[...] = 1
        matmul(ones, dlogits, dbias.reshape(1, -1), add=True)


@cuda_jit
def rank_kernel(logits, targets, log_prob, rank):
    """One block owns one row of logits (B, L); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x; block a power of two. Reads logits twice, coalesced, and targets (B,); writes log_prob and rank
    (B,). Shared memory: 4 bytes per thread for the reductions, which run in a fixed order. No atomics.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared, counts = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    target = targets[b]
    score, largest = logits[b, target], LOWEST
    for j in range(thread, logits.shape[1], n_threads):
        largest = max(largest, logits[b, j])
    largest = block_max(shared, largest)
    total, count = ZERO, np.int32(0)
    for j in range(thread, logits.shape[1], n_threads):
        x = logits[b, j]
        total += math.exp(x - largest) if x >= LOWEST else NAN  # of infinity, too: infinity less infinity
        if x > score or (x == score and j < target):
            count += np.int32(1)
    total, count = block_sum(shared, total), block_sum(counts, count)
    if thread == 0:
        log_prob[b] = score - largest - math.log(total)
        rank[b] = count


def rank(logits, targets, log_prob, rank, *, block=launch.BLOCK):
    """log softmax(logits)[target] and the number of classes that rank above the target, (B,).

    A class ranks above if its score is higher, or equal with a lower id. The logarithm is NaN where a logit of the row
    is not finite.
    """
    if logits.shape[0]:
        rank_kernel[logits.shape[0], block, 0, launch.shared_bytes(4 * block)](logits, targets, log_prob, rank)


@cuda_jit
def softmax_lists_kernel(logits, bias, list_scores, list_ids, list_sums):
    """One thread keeps the best k of every n_lists-th class of one row, and the softmax sum of all of them.

    Grid: lists on x, rows stride over y. Neighbouring threads own neighbouring classes: logits (B, L) are read
    coalesced and once, and bias (L,). Each thread writes its list in list_scores and list_ids (B, k, n_lists), and its
    largest score and its sum of ``exp(score - largest)`` in list_sums (B, 2, n_lists). No shared memory. No atomics.
    """
    part = cuda.grid(1)
    n_rows, n_classes = logits.shape
    n_lists = list_scores.shape[2]
    if part < n_lists:
        for row in range(cuda.blockIdx.y, n_rows, cuda.gridDim.y):
            best, ids = list_scores[row, :, part], list_ids[row, :, part]
            clear(best, ids)
            # The k-th best score stays in a register: a list in global memory is touched only by a score that beats it.
            worst = WORST
            largest, total = LOWEST, ZERO
            for i in range(part, n_classes, n_lists):
                score = logits[row, i] + bias[i]
                if not score <= worst and beats_worst(score, i, best, ids):
                    insert(best, ids, score, i)
                    worst = best[best.size - 1]
                if score > largest:
                    total = total * math.exp(largest - score) + ONE
                    largest = score
                else:
                    total += math.exp(score - largest)
            list_sums[row, 0, part] = largest
            list_sums[row, 1, part] = total


@cuda_jit
def probabilities_kernel(list_sums, probabilities):
    """One block owns one row: it combines the sums of the row's lists and turns the k best scores into probabilities.

    Grid: rows on x; block a power of two. Reads list_sums (B, 2, n_lists) twice, coalesced; overwrites the scores in
    probabilities (B, k). Shared memory: 4 bytes per thread for the reductions, which run in a fixed order. No atomics.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, float32)
    largest, total = LOWEST, ZERO
    for part in range(thread, list_sums.shape[2], n_threads):
        largest = max(largest, list_sums[b, 0, part])
    largest = block_max(shared, largest)
    for part in range(thread, list_sums.shape[2], n_threads):
        total += list_sums[b, 1, part] * math.exp(list_sums[b, 0, part] - largest)
    total = block_sum(shared, total)
    for i in range(thread, probabilities.shape[1], n_threads):
        probabilities[b, i] = math.exp(probabilities[b, i] - largest) / total


def pack(weights, bias):
    """weights (L, d) and bias (L,) in the layout that `top_k` takes: unchanged on CUDA."""
    return weights, bias


def _sorted_probabilities(logits, bias, probabilities, ids):
    """The k best probabilities for large k, by sorting the logits; the bias is added to `logits` in place."""
    logits += bias
    largest = logits.max(axis=1, keepdims=True)
    top_k_of_scores(logits, probabilities, ids)
    total = xp.exp(logits - largest).sum(axis=1, keepdims=True)
    probabilities[...] = xp.exp(probabilities - largest) / total


def top_k(h, weights, bias, probabilities, ids, *, block=launch.BLOCK):
    """The k largest of ``softmax(h @ weights.T + bias)`` in each row and their classes.

    weights and bias come from `pack`. At most 64 MiB of logits exist at once, or one row if that is larger.
    """
    (n_rows, k), n_classes = ids.shape, len(weights)
    rows_per_chunk = max(1, min(n_rows, MAX_ELEMENTS // n_classes))
    buffer, shared = empty((rows_per_chunk, n_classes), np.float32, "cuda"), launch.shared_bytes(4 * block)
    for first in range(0, n_rows, rows_per_chunk):
        rows = slice(first, min(first + rows_per_chunk, n_rows))
        n = rows.stop - first
        logits = buffer[:n]
        matmul(h[rows], weights.T, logits)
        if k > MAX_INSERTED:
            _sorted_probabilities(logits, bias, probabilities[rows], ids[rows])
            continue
        n_lists, grid = launch.lists_per_row(n_classes, n, k, block)
        list_scores = empty((n, k, n_lists), np.float32, "cuda")
        list_ids = empty((n, k, n_lists), np.int32, "cuda")
        list_sums = empty((n, 2, n_lists), np.float32, "cuda")
        softmax_lists_kernel[grid, block](logits, bias, list_scores, list_ids, list_sums)
        merge(list_scores, list_ids, probabilities[rows], ids[rows], block=block)
        probabilities_kernel[n, block, 0, shared](list_sums, probabilities[rows])
