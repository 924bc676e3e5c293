"""The inverted multi-index on CUDA."""

import math

import numpy as np
from numba import float32

from ..core import rng, sparse
from ..core.device import asarray, cuda, cuda_device, cuda_formulas, cuda_jit, device_of, empty, module_of
from . import embedding, launch
from .matmul import matmul

_rng = cuda_formulas(rng)
random_words, unit, below = _rng.random_words, _rng.unit, _rng.below
SAMPLING = rng.SAMPLING
ZERO, HALF, TWO = np.float32(0), np.float32(0.5), np.float32(2)
LOWEST = np.float32(-np.inf)
#: Below this total, relative to the two largest exponentials, the weights are summed again with a maximum per codeword:
#: where the largest logits belong to empty cells, everything else underflows.
UNDERFLOW_LIMIT = np.float32(1e-20)
#: Vectors whose products with all codewords exist at once.
VECTORS_PER_CHUNK = 1 << 17


@cuda_jit
def nearest_kernel(vectors, products, half, codes, distance):
    """One thread owns one vector and walks down its row of products (n, K), then the vector (n, d) itself.

    |v - c|^2 = |v|^2 - 2 (v . c - |c|^2 / 2): the nearest codeword maximises the bracket, which the matrix product has
    computed up to half = |c|^2 / 2. Grid: vectors on x. Writes codes and distance (n,). No shared memory. No atomics.
    """
    i = cuda.grid(1)
    if i < products.shape[0]:
        best, found = LOWEST, 0
        for k in range(products.shape[1]):
            value = products[i, k] - half[k]
            if value > best:
                best, found = value, k
        norm = ZERO
        for d in range(vectors.shape[1]):
            norm += vectors[i, d] * vectors[i, d]
        codes[i] = found
        distance[i] = max(ZERO, norm - TWO * best)


def assign(vectors, codewords, weights, codes, distance, sums, totals, *, block=launch.BLOCK):
    """The nearest codeword of each vector (Euclidean; the first of equal ones) and the squared distance.

    ``sums[k]`` (K, d) adds up the vectors of codeword k times their weights, ``totals[k]`` (K,) the weights, in the
    order of the vectors. weights is (n,), or of size 0 if all are 1.
    """
    half = (codewords * codewords).sum(axis=1) * HALF
    for first in range(0, vectors.shape[0], VECTORS_PER_CHUNK):
        rows = slice(first, first + VECTORS_PER_CHUNK)
        chunk = vectors[rows]
        products = empty((chunk.shape[0], codewords.shape[0]), np.float32, "cuda")
        matmul(chunk, codewords.T, products)
        nearest_kernel[launch.flat(chunk.shape[0], block)](chunk, products, half, codes[rows], distance[rows])
    xp, n = module_of(device_of(codes)), vectors.shape[0]
    ones = xp.ones((n, 1), np.float32)
    arrays = (xp.arange(n + 1), np.int32), (codes, np.int32), (weights if weights.size else ones[:, 0], np.float32)
    # Sums per codeword as a gather over vectors sorted by code: no atomics, so the sums are reproducible.
    groups = sparse.by_column(sparse.SparseRows(*(asarray(a, "cuda", dtype) for a, dtype in arrays)))
    sums[:], totals[:] = 0, 0
    for source, out in (vectors, sums), (asarray(ones, "cuda"), totals.reshape(-1, 1)):
        found = empty((groups.ids.shape[0], source.shape[1]), np.float32, "cuda")
        embedding.backward(groups, source, found, block=block)
        out[groups.ids] = found


@cuda_device
def _cumulate(shared, n_codewords):
    """Replaces the third of the four rows in shared memory by its cumulative sums.

    The first thread does it alone, in order. Begins and ends with a barrier.
    """
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        for k in range(2 * n_codewords + 1, 3 * n_codewords):
            shared[k] += shared[k - 1]
    cuda.syncthreads()


@cuda_device
def _weigh_cells(r0, r1, transposed, shared):
    """The proposal of one row of h in shared memory; returns b0, b1, ``log Z - b0 - b1`` and the largest r1.

    Four rows of K numbers: ``e1[k] = exp(r1[k] - top)``, ``sums[k0] = sum_k1 weights[k0, k1] e1[k1]``, the cumulative
    sums of ``exp(r0[k0]) sums[k0]``, and the top that e1 of each k0 is relative to. Thread k sums column k of the
    transposed weights, so a warp reads whole lines.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_codewords = r0.shape[1]
    largest0, largest1 = r0[b, 0], r1[b, 0]
    for k in range(1, n_codewords):
        largest0, largest1 = max(largest0, r0[b, k]), max(largest1, r1[b, k])
    for k in range(thread, n_codewords, n_threads):
        shared[k] = math.exp(r1[b, k] - largest1)
    cuda.syncthreads()
    for k in range(thread, n_codewords, n_threads):
        part = ZERO
        for j in range(n_codewords):
            part += transposed[j, k] * shared[j]
        shared[n_codewords + k] = part
        shared[2 * n_codewords + k] = math.exp(r0[b, k] - largest0) * part
        shared[3 * n_codewords + k] = largest1
    _cumulate(shared, n_codewords)
    best0, best1 = largest0, largest1
    # Rare: the weight has underflowed. Sum again, relative to the largest logits of the cells that are not empty. All
    # threads see the same condition, so the barriers inside are safe.
    if not shared[3 * n_codewords - 1] > UNDERFLOW_LIMIT:
        cuda.syncthreads()
        for k in range(thread, n_codewords, n_threads):
            top, part = LOWEST, ZERO
            for j in range(n_codewords):
                if transposed[j, k] > ZERO:
                    top = max(top, r1[b, j])
            for j in range(n_codewords):
                if transposed[j, k] > ZERO:
                    part += transposed[j, k] * math.exp(r1[b, j] - top)
            shared[n_codewords + k], shared[3 * n_codewords + k] = part, top
        cuda.syncthreads()
        best0, best1 = r0[b, 0], LOWEST
        for k in range(n_codewords):
            top = shared[3 * n_codewords + k]
            if top > LOWEST and (best1 == LOWEST or (r0[b, k] - best0) + (top - best1) > ZERO):
                best0, best1 = r0[b, k], top
        for k in range(thread, n_codewords, n_threads):
            difference = (r0[b, k] - best0) + (shared[3 * n_codewords + k] - best1)
            shared[2 * n_codewords + k] = math.exp(difference) * shared[n_codewords + k]
        _cumulate(shared, n_codewords)
    return best0, best1, math.log(shared[3 * n_codewords - 1]), largest1


@cuda_jit
def log_prob_kernel(r0, r1, index, ids, log_q):
    """One block owns one row of log_q (B, M); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x. Reads r0 and r1 (B, K), the transposed weights (K, K), coalesced and from the cache, and ids (B, M)
    or (1, M). Shared memory: 16 K bytes. No atomics.
    """
    b, shared = cuda.blockIdx.x, cuda.shared.array(0, float32)
    best0, best1, log_z, _ = _weigh_cells(r0, r1, index.transposed, shared)
    row = 0 if ids.shape[0] != r0.shape[0] else b
    for m in range(cuda.threadIdx.x, ids.shape[1], cuda.blockDim.x):
        i = ids[row, m]
        value = (r0[b, index.codes[i, 0]] - best0) + (r1[b, index.codes[i, 1]] - best1) - log_z
        log_q[b, m] = value + index.log_popularity[i] if index.log_popularity.size > 0 else value


def log_prob(r0, r1, index, ids, log_q, *, block=launch.BLOCK):
    """``log Q(i | h) = r0[k0(i)] + r1[k1(i)] + log pop(i) - log Z(h)`` of ids (B, M) or (1, M), for all rows."""
    if r0.shape[0]:
        shared = launch.shared_bytes(16 * r0.shape[1])
        log_prob_kernel[r0.shape[0], block, 0, shared](r0, r1, index, ids, log_q)


@cuda_jit
def sample_kernel(r0, r1, index, seed, step, ids, log_q):
    """One block owns one row of ids and log_q (B, M); thread t makes the draws t, t + blockDim.x, ...

    Grid: rows on x. A draw is a binary search in the K cumulative sums for k0, a walk along row k0 of the weights (K,
    K) for k1, then one member of the cell: one entry of members, or one or two 16-byte records (each inside one
    32-byte sector). Shared memory: 16 K bytes. No atomics.
    """
    b, shared = cuda.blockIdx.x, cuda.shared.array(0, float32)
    n_codewords = r0.shape[1]
    best0, best1, log_z, largest1 = _weigh_cells(r0, r1, index.transposed, shared)
    for m in range(cuda.threadIdx.x, ids.shape[1], cuda.blockDim.x):
        w0, w1, w2, w3 = random_words(seed, SAMPLING, step, np.uint64(b * ids.shape[1] + m))
        wanted = unit(w0) * shared[3 * n_codewords - 1]
        low, high = 0, n_codewords - 1
        while low < high:  # the first cumulative sum above `wanted`
            middle = (low + high) // 2
            if shared[2 * n_codewords + middle] > wanted:
                high = middle
            else:
                low = middle + 1
        k0 = low
        while k0 > 0 and not shared[n_codewords + k0] > ZERO:  # only after rounding: take the last codeword with weight
            k0 -= 1
        wanted, part = unit(w1) * shared[n_codewords + k0], ZERO
        k1 = 0
        top = shared[3 * n_codewords + k0]
        for k in range(n_codewords):
            weight = index.cell_weights[k0, k]
            if weight > ZERO:
                k1 = k
                e1 = shared[k] if top == largest1 else math.exp(r1[b, k] - top)
                part += weight * e1
                if part > wanted:
                    break
        cell = k0 * n_codewords + k1
        first = np.int64(index.indptr[cell])
        column = first + np.int64(below(w2, np.uint64(index.indptr[cell + 1] - first)))
        value = (r0[b, k0] - best0) + (r1[b, k1] - best1) - log_z
        if index.records.shape[0] > 0:
            if not w3 < np.uint64(index.records[column, 0]):
                column = np.int64(index.records[column, 2])
            ids[b, m] = np.int32(index.records[column, 1])
            value += index.values[column, 3]
        else:
            ids[b, m] = index.members[column]
        log_q[b, m] = value


def sample(r0, r1, index, seed, step, ids, log_q, *, block=launch.BLOCK):
    """Draws ids (B, M), k0 first, then k1 given k0, then a class of the cell; and their log-probabilities."""
    if r0.shape[0]:
        shared = launch.shared_bytes(16 * r0.shape[1])
        sample_kernel[r0.shape[0], block, 0, shared](r0, r1, index, seed, step, ids, log_q)
