"""Draws from hash tables on the CPU."""

import math

import numpy as np
from numba import prange

from ..core import rng
from ..core.device import cpu_formulas, njit, njit_parallel
from .matmul import matmul
from .samplers import DRAW

_rng = cpu_formulas(rng)
random_words, below, unit = _rng.random_words, _rng.below, _rng.unit
SAMPLING, ZERO, ONE = rng.SAMPLING, np.float32(0), np.float32(1)


def hash_codes(vectors, planes, codes):
    """``code = sum_j 2^j [plane_j . v > 0]`` in each of T tables: (n, d), (T, n_bits, d) -> (n, T) int32."""
    n_tables, n_bits, width = planes.shape
    products = np.empty((len(vectors), n_tables * n_bits), np.float32)
    matmul(vectors, planes.reshape(-1, width).T, products)
    _codes(products.reshape(-1, n_tables, n_bits), codes)


@njit_parallel
def _codes(products, codes):
    for i in prange(products.shape[0]):
        for t in range(products.shape[1]):
            code = 0
            for j in range(products.shape[2]):
                code |= np.int64(products[i, t, j] > ZERO) << j
            codes[i, t] = code


@njit
def _log_prob(codes, tables, uniform, i):
    """The log-probability of class i for one query."""
    n_tables, n_classes = tables.indptr.shape[0], np.float32(tables.codes.shape[0])
    share = ZERO
    for t in range(n_tables):
        size = tables.indptr[t, codes[t] + 1] - tables.indptr[t, codes[t]]
        if size == 0:
            share += ONE / n_classes
        elif tables.codes[i, t] == codes[t]:
            share += ONE / np.float32(size)
    return math.log(uniform / n_classes + (ONE - uniform) * share / np.float32(n_tables))


@njit_parallel(work=lambda codes, tables, uniform, ids, log_q: DRAW * ids.size)
def log_prob(codes, tables, uniform, ids, log_q):
    """``log(u / L + (1 - u) / T sum_t [same bucket] / |bucket|)`` of ids (B, M); an empty bucket counts as uniform."""
    for b in prange(ids.shape[0]):
        for m in range(ids.shape[1]):
            log_q[b, m] = _log_prob(codes[b], tables, uniform, ids[b, m])


@njit_parallel(work=lambda codes, tables, uniform, seed, step, ids, log_q: DRAW * ids.size)
def sample(codes, tables, uniform, seed, step, ids, log_q):
    """Draws (B, M) for queries with hash codes (B, T), and their log-probabilities."""
    n_tables, n_classes, n_samples = tables.indptr.shape[0], tables.codes.shape[0], ids.shape[1]
    for b in prange(ids.shape[0]):
        for m in range(n_samples):
            w0, w1, w2, _ = random_words(seed, SAMPLING, step, np.uint64(b * n_samples + m))
            t = np.int64(below(w1, np.uint64(n_tables)))
            first = tables.indptr[t, codes[b, t]]
            size = tables.indptr[t, codes[b, t] + 1] - first
            if unit(w0) >= uniform and size > 0:
                ids[b, m] = tables.members[t, first + np.int64(below(w2, np.uint64(size)))]
            else:
                ids[b, m] = np.int64(below(w2, np.uint64(n_classes)))
            log_q[b, m] = _log_prob(codes[b], tables, uniform, ids[b, m])
