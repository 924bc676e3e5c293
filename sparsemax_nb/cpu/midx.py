"""The inverted multi-index on the CPU."""

import math

import numpy as np
from numba import prange

from ..core import backend, rng
from .matmul import matmul

_rng = backend.cpu_formulas(rng)
random_words, unit, below = _rng.random_words, _rng.unit, _rng.below
SAMPLING = rng.SAMPLING
ZERO, HALF, TWO = np.float32(0), np.float32(0.5), np.float32(2)
LOWEST = np.float32(-np.inf)
#: The sum of all weight, relative to what the largest logits would give, below which it is summed with more care.
VANISHING = np.float32(1e-20)
#: Vectors whose products with all codewords are held at once.
CHUNK = 8192


def assign(vectors, codewords, codes, distance):
    """The nearest codeword of each vector (Euclidean; the first of equal ones), and the squared distance."""
    half = np.einsum("kd,kd->k", codewords, codewords) * HALF
    products = np.empty((min(CHUNK, len(vectors)), len(codewords)), np.float32)
    for first in range(0, len(vectors), CHUNK):
        part = slice(first, first + CHUNK)
        some = products[: len(vectors[part])]
        matmul(vectors[part], codewords.T, some)
        _nearest(vectors[part], some, half, codes[part], distance[part])


@backend.njit_parallel
def _nearest(vectors, products, half, codes, distance):
    """|v - c|^2 = |v|^2 - 2 (v . c - |c|^2 / 2): the nearest has the largest bracket."""
    for i in prange(products.shape[0]):
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


@backend.njit
def _weigh(r0, r1, weights, e1, sums, cumulative, top):
    """For one query: ``sums[k] = sum_j W[k, j] exp(r1[j] - top[k])``, cumulative sums of all weight; returns log Z.

    top is the largest r1 for all k, so that the exponentials ``e1`` are shared; where all weight lies so far below it
    that the sums vanish, it is the largest r1 of k's own cells that are not empty.
    """
    largest0, largest1, total = r0.max(), r1.max(), ZERO
    for j in range(r1.size):
        e1[j] = math.exp(r1[j] - largest1)
    for k in range(r0.size):
        part = ZERO
        for j in range(r1.size):
            part += weights[k, j] * e1[j]
        sums[k], top[k] = part, largest1
        total += math.exp(r0[k] - largest0) * part
        cumulative[k] = total
    if total > VANISHING:
        return math.log(total) + largest0 + largest1
    largest = LOWEST
    for k in range(r0.size):
        top[k], sums[k] = LOWEST, ZERO
        for j in range(r1.size):
            if weights[k, j] > ZERO:
                top[k] = max(top[k], r1[j])
        largest = max(largest, r0[k] + top[k])
        for j in range(r1.size):
            if weights[k, j] > ZERO:
                sums[k] += weights[k, j] * math.exp(r1[j] - top[k])
    total = ZERO
    for k in range(r0.size):
        total += math.exp(r0[k] + top[k] - largest) * sums[k]
        cumulative[k] = total
    return math.log(total) + largest


@backend.njit_parallel
def log_prob(r0, r1, index, ids, log_q):
    """``log Q(i | q) = r0[k0(i)] + r1[k1(i)] + log pop(i) - log Z(q)`` of ids (B, M) or (1, M), for all rows."""
    n_words = r0.shape[1]
    shared, is_weighted = ids.shape[0] != r0.shape[0], index.log_popularity.size > 0
    for b in prange(r0.shape[0]):
        buffer = np.empty((4, n_words), np.float32)
        e1, sums, cumulative, top = buffer[0], buffer[1], buffer[2], buffer[3]
        log_z = _weigh(r0[b], r1[b], index.weights, e1, sums, cumulative, top)
        line = 0 if shared else np.int64(b)
        for m in range(ids.shape[1]):
            i = ids[line, m]
            log_q[b, m] = r0[b, index.codes[i, 0]] + r1[b, index.codes[i, 1]] - log_z
            if is_weighted:
                log_q[b, m] += index.log_popularity[i]


@backend.njit_parallel
def sample(r0, r1, index, seed, step, ids, log_q):
    """Draws (B, M): k0, then k1 given k0, then the class inside the cell; and the log-probabilities.

    The tables of L entries are looked up in loops of their own: they miss the cache, and only reads that do not wait for
    one another overlap.
    """
    n_words, n_samples = r0.shape[1], ids.shape[1]
    is_weighted = index.log_popularity.size > 0
    for b in prange(r0.shape[0]):
        buffer = np.empty((4, n_words), np.float32)
        e1, sums, cumulative, top = buffer[0], buffer[1], buffer[2], buffer[3]
        column, keep = np.empty(n_samples, np.int64), np.empty(n_samples, np.uint64)
        log_z = _weigh(r0[b], r1[b], index.weights, e1, sums, cumulative, top)
        largest1 = r1[b].max()
        for m in range(n_samples):
            w0, w1, w2, w3 = random_words(seed, SAMPLING, step, np.uint64(b * n_samples + m))
            wanted = unit(w0) * cumulative[n_words - 1]
            low, high = 0, n_words - 1
            while low < high:  # the first cumulative sum above `wanted`
                middle = (low + high) // 2
                if cumulative[middle] > wanted:
                    high = middle
                else:
                    low = middle + 1
            k0 = low
            while not sums[k0] > ZERO:  # rounding only: the last codeword with weight
                k0 -= 1
            wanted, part, k1 = unit(w1) * sums[k0], ZERO, 0
            for k in range(n_words):
                weight = index.weights[k0, k]
                if weight > ZERO:
                    k1 = k
                    part += weight * (e1[k] if top[k0] == largest1 else math.exp(r1[b, k] - top[k0]))
                    if part > wanted:
                        break
            cell = k0 * n_words + k1
            first = np.int64(index.indptr[cell])
            column[m] = first + np.int64(below(w2, np.uint64(index.indptr[cell + 1] - first)))
            keep[m] = w3
            log_q[b, m] = r0[b, k0] + r1[b, k1] - log_z
        if is_weighted:
            for m in range(n_samples):
                if not keep[m] < np.uint64(index.threshold[column[m]]):
                    column[m] = index.other[column[m]]
        for m in range(n_samples):
            ids[b, m] = index.members[column[m]]
        if is_weighted:
            for m in range(n_samples):
                log_q[b, m] += index.log_popularity[ids[b, m]]
