"""The inverted multi-index on the CPU."""

import math

import numpy as np
from numba import prange

from ..core import rng, threads
from ..core.device import cpu_formulas, njit, njit_parallel
from .exp import exp
from .matmul import FLOAT32, ITEM, NOT_TRANSPOSED, TRANSPOSED, find_blas, gemm, matmul
from .samplers import DRAW
from .simd import prefetch

_rng = cpu_formulas(rng)
random_words, unit, below = _rng.random_words, _rng.unit, _rng.below
SAMPLING = rng.SAMPLING
ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
LOWEST = np.float32(-np.inf)
#: If the total weight relative to the largest logits is smaller, `_add_up` sums it again more carefully.
VANISHING = np.float32(1e-20)
#: Most parts of the vectors in `assign` (each has sums of its own, so that bits do not depend on the threads), and the
#: approximate number of products per block in a part, which stay in a core's L2 cache.
PARTS, PRODUCTS = 64, 1 << 15
#: Most numbers in the sums of all parts: 64 MiB.
SUMS = 1 << 24


def assign(vectors, codewords, weights, codes, distance, sums, totals):
    """The nearest codeword of each vector (Euclidean; ties: the first), and the squared distance.

    ``sums[k]`` (K, d) is the weighted sum of the vectors of codeword k, ``totals[k]`` (K,) the sum of their weights
    (n,); `weights` of size 0 mean all 1. One pass over the vectors.
    """
    (n, width), n_words = vectors.shape, len(codewords)
    rows = max(16, PRODUCTS // n_words)
    n_parts = max(1, min(PARTS, SUMS // codewords.size if codewords.size else PARTS, -(-n // rows)))
    half = np.einsum("kd,kd->k", codewords, codewords) * HALF
    products = np.empty((n_parts, rows, n_words), np.float32)
    part_sums, part_totals = (np.zeros((n_parts, n_words, *more), np.float32) for more in ((width,), ()))
    with threads.one_blas_thread():
        scalars = np.array([1, 0, 0], np.float32)
        _assign(vectors, codewords, weights, half, products, scalars, codes, distance, part_sums, part_totals)
    sums[:], totals[:] = part_sums.sum(axis=0), part_totals.sum(axis=0)


@njit_parallel
def _assign(vectors, codewords, weights, half, products, scalars, codes, distance, part_sums, part_totals):
    """Only addresses of arguments are taken: Numba frees a local array after the last use of its name."""
    n, width = vectors.shape
    n_parts, rows, n_words = products.shape
    alpha, address_products = scalars.ctypes.data, products.ctypes.data
    address_vectors, address_words = vectors.ctypes.data, codewords.ctypes.data
    find_blas(scalars)
    n_blocks = (n + rows - 1) // rows
    for part in prange(n_parts):
        for block in range(np.int64(part) * n_blocks // n_parts, (np.int64(part) + 1) * n_blocks // n_parts):
            first = block * rows
            size = min(rows, n - first)
            gemm(
                FLOAT32,
                TRANSPOSED,
                NOT_TRANSPOSED,
                n_words,
                size,
                width,
                alpha,
                address_words,
                width,
                address_vectors + ITEM * first * width,
                width,
                alpha + ITEM,
                address_products + ITEM * np.int64(part) * rows * n_words,
                n_words,
            )
            for i in range(size):
                found, best = _nearest(products[part, i], half)
                vector = vectors[first + i]
                codes[first + i], distance[first + i] = found, max(ZERO, _square(vector) - TWO * best)
                weight = weights[first + i] if weights.size else ONE
                _add(part_sums[part, found], weight, vector)
                part_totals[part, found] += weight


@njit(error_model="numpy", fastmath={"nnan", "nsz"})
def _largest(products, half):
    best = LOWEST
    for k in range(products.size):
        best = max(best, products[k] - half[k])
    return best


@njit(error_model="numpy")
def _nearest(products, half):
    """|v - c|^2 = |v|^2 - 2 (v . c - |c|^2 / 2): the codeword with the largest bracket, and the bracket."""
    best, found = _largest(products, half), np.int32(products.size - 1)
    for k in range(products.size):
        found = min(found, np.int32(k) if products[k] - half[k] == best else np.int32(products.size))
    return found, best


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _square(vector):
    total = ZERO
    for d in range(vector.size):
        total += vector[d] * vector[d]
    return total


@njit(error_model="numpy")
def _add(sums, weight, vector):
    for d in range(vector.size):
        sums[d] += weight * vector[d]


@njit(error_model="numpy")
def _exponentials(r, largest, e):
    for k in range(r.size):
        e[k] = exp(r[k] - largest)


@njit_parallel
def _exponentials_of_rows(r0, r1, e0, e1):
    for b in prange(r0.shape[0]):
        _exponentials(r0[b], r0[b].max(), e0[b])
        _exponentials(r1[b], r1[b].max(), e1[b])


def _weigh(r0, r1, weights):
    """``e0, e1 = exp(r0 - max r0), exp(r1 - max r1)`` and ``sums = e1 weights.T``: all O(K^2) work per row."""
    e0, e1, sums = (np.empty_like(r0) for _ in range(3))
    _exponentials_of_rows(r0, r1, e0, e1)
    matmul(e1, weights.T, sums)
    return e0, e1, sums


@njit
def _add_up(r0, r1, weights, e0, sums, cumulative, top):
    """For one row: cumulative sums of all weight, ``exp(r0[k] + top[k]) sums[k]`` up to a factor.

    Returns b0, b1 and ``log Z - b0 - b1``; b0 and b1 are scores as large as any pair's with weight, so that large
    scores do not swallow the rest. ``sums[k] = sum_j W[k, j] exp(r1[j] - top[k])``, where top is the largest r1 for
    all k. If all weight is so far below it that the sums vanish, top[k] becomes the largest r1 of k's own nonempty
    cells and `sums` are recomputed.
    """
    largest0, largest1, total = r0.max(), r1.max(), ZERO
    for k in range(r0.size):
        top[k] = largest1
        total += e0[k] * sums[k]
        cumulative[k] = total
    if total > VANISHING:
        return largest0, largest1, math.log(total)
    best0, best1 = r0[0], LOWEST
    for k in range(r0.size):
        top[k], sums[k] = LOWEST, ZERO
        for j in range(r1.size):
            if weights[k, j] > ZERO:
                top[k] = max(top[k], r1[j])
        if top[k] > LOWEST and (best1 == LOWEST or (r0[k] - best0) + (top[k] - best1) > ZERO):
            best0, best1 = r0[k], top[k]
        for j in range(r1.size):
            if weights[k, j] > ZERO:
                sums[k] += weights[k, j] * math.exp(r1[j] - top[k])
    total = ZERO
    for k in range(r0.size):
        total += math.exp((r0[k] - best0) + (top[k] - best1)) * sums[k]
        cumulative[k] = total
    return best0, best1, math.log(total)


def log_prob(r0, r1, index, ids, log_q):
    """``log Q(i | h) = r0[k0(i)] + r1[k1(i)] + log pop(i) - log Z(h)`` of ids (B, M), or (1, M) for all rows."""
    e0, _, sums = _weigh(r0, r1, index.cell_weights)
    _log_prob(r0, r1, e0, sums, index, ids, log_q)


@njit_parallel(work=lambda r0, r1, e0, sums, index, ids, log_q: DRAW * (r0.shape[0] * ids.shape[1] + r0.size))
def _log_prob(r0, r1, e0, sums, index, ids, log_q):
    n_words = r0.shape[1]
    shared, is_weighted = ids.shape[0] != r0.shape[0], index.log_popularity.size > 0
    for b in prange(r0.shape[0]):
        buffer = np.empty((2, n_words), np.float32)
        best0, best1, log_z = _add_up(r0[b], r1[b], index.cell_weights, e0[b], sums[b], buffer[0], buffer[1])
        line = 0 if shared else np.int64(b)
        for m in range(ids.shape[1]):
            i = ids[line, m]
            log_q[b, m] = (r0[b, index.codes[i, 0]] - best0) + (r1[b, index.codes[i, 1]] - best1) - log_z
            if is_weighted:
                log_q[b, m] += index.log_popularity[i]


@njit(error_model="numpy")
def _draw_words(seed, step, first, words):
    """The four random words of draws first, first + 1, ...; a separate loop, so that it becomes vector code."""
    for m in range(words.shape[1]):
        words[0, m], words[1, m], words[2, m], words[3, m] = random_words(seed, SAMPLING, step, np.uint64(first + m))


@njit(error_model="numpy")
def _count(sums, wanted):
    """The number of cumulative sums <= `wanted`: the index of the first larger one. Compiled to vector code."""
    n = np.int32(0)
    for k in range(sums.size):
        n += np.int32(sums[k] <= wanted)
    return n


@njit(error_model="numpy")
def _cumulate(weights, e1, r1, top, is_shared, line):
    """Cumulative sums of ``weights exp(r1 - top)`` in `line`, whose size is a multiple of 4: four chains, then joined.

    A single chain would wait for each addition in turn.
    """
    if is_shared:  # top is the largest r1
        for k in range(weights.size):
            line[k] = weights[k] * e1[k]
    else:
        for k in range(weights.size):
            line[k] = weights[k] * math.exp(r1[k] - top) if weights[k] > ZERO else ZERO
    line[weights.size :] = ZERO
    n, a, b, c, d = line.size // 4, ZERO, ZERO, ZERO, ZERO
    for k in range(n):
        a += line[k]
        b += line[n + k]
        c += line[2 * n + k]
        d += line[3 * n + k]
        line[k], line[n + k], line[2 * n + k], line[3 * n + k] = a, b, c, d
    for k in range(n):
        line[n + k] += a
    b = line[2 * n - 1]
    for k in range(n):
        line[2 * n + k] += b
    c = line[3 * n - 1]
    for k in range(n):
        line[3 * n + k] += c


@njit
def _by_first_word(k0, n_words, order):
    """Sort the draws by their first codeword (counting sort), so that each row of weights is accumulated once."""
    slot = np.zeros(n_words + 1, np.int32)
    for m in range(k0.size):
        slot[k0[m] + 1] += 1
    for k in range(n_words):
        slot[k + 1] += slot[k]
    for m in range(k0.size):
        order[slot[k0[m]]] = m
        slot[k0[m]] += 1


def sample(r0, r1, index, seed, step, ids, log_q):
    """Draw ids (B, M): k0, then k1 given k0, then the class in the cell; and their log-probabilities."""
    _sample(r0, r1, *_weigh(r0, r1, index.cell_weights), index, seed, step, ids, log_q)


@njit_parallel(work=lambda r0, r1, e0, e1, sums, index, seed, step, ids, log_q: DRAW * (ids.size + r0.size))
def _sample(r0, r1, e0, e1, sums, index, seed, step, ids, log_q):
    """The arrays of L entries miss the cache: each entry is prefetched as soon as its index is known, and read later.

    So the cost of a draw hardly depends on L. With popularity, all data of a draw is in one record of 16 bytes.
    """
    n_words, n_samples = r0.shape[1], ids.shape[1]
    weights, members, records, values = index.cell_weights, index.members, index.records, index.values
    flat = values.reshape(-1)
    is_weighted = records.shape[0] > 0
    for b in prange(r0.shape[0]):
        words, column = np.empty((4, n_samples), np.uint32), np.empty(n_samples, np.int64)
        cumulative, top = np.empty(n_words, np.float32), np.empty(n_words, np.float32)
        first_words, order = np.empty(n_samples, np.int32), np.empty(n_samples, np.int32)
        line = np.empty((n_words + 3) // 4 * 4, np.float32)
        best0, best1, log_z = _add_up(r0[b], r1[b], weights, e0[b], sums[b], cumulative, top)
        largest1, total, last = r1[b].max(), cumulative[n_words - 1], -1
        _draw_words(seed, step, np.int64(b) * n_samples, words)
        for m in range(n_samples):
            k0 = min(_count(cumulative, unit(np.uint64(words[0, m])) * total), n_words - 1)
            while k0 > 0 and not sums[b, k0] > ZERO:  # only by rounding: take the last codeword with weight
                k0 -= 1
            first_words[m] = k0
        _by_first_word(first_words, n_words, order)
        for j in range(n_samples):
            m = order[j]
            k0 = first_words[m]
            if k0 != last:
                _cumulate(weights[k0], e1[b], r1[b], top[k0], top[k0] == largest1, line)
                last = k0
            k1 = min(_count(line, unit(np.uint64(words[1, m])) * line[line.size - 1]), n_words - 1)
            while k1 > 0 and not weights[k0, k1] > ZERO:  # only by rounding
                k1 -= 1
            cell = k0 * n_words + k1
            first = np.int64(index.indptr[cell])
            n = np.uint64(index.indptr[cell + 1] - first)
            column[m] = first + np.int64(below(np.uint64(words[2, m]), n))
            log_q[b, m] = (r0[b, k0] - best0) + (r1[b, k1] - best1) - log_z
            if is_weighted:
                prefetch(flat, 4 * column[m])
            else:
                prefetch(members, column[m])
        if is_weighted:
            for m in range(n_samples):
                if not words[3, m] < records[column[m], 0]:
                    column[m] = records[column[m], 2]
                    prefetch(flat, 4 * column[m])
            for m in range(n_samples):
                ids[b, m] = records[column[m], 1]
                log_q[b, m] += values[column[m], 3]
        else:
            for m in range(n_samples):
                ids[b, m] = members[column[m]]
