"""Samples of classes from fixed probabilities, or from the softmax of each row of a score matrix, on the CPU."""

import math

import numpy as np
from numba import prange

from ..core import rng
from ..core.alias import BLOCK
from ..core.device import cpu_formulas, njit, njit_parallel

_rng = cpu_formulas(rng)
random_words, below, alias_draw, unit = _rng.random_words, _rng.below, _rng.alias_draw, _rng.unit
SAMPLING, ZERO = rng.SAMPLING, np.float32(0)
#: A draw takes about as long as reading this many numbers in sequence; for `work` of a `ParallelKernel`.
DRAW = 32


@njit_parallel(work=lambda seed, step, n_classes, ids: DRAW * ids.size)
def draw_uniform(seed, step, n_classes, ids):
    """Ids (B, M), all classes equally likely."""
    n_samples = ids.shape[1]
    for row in prange(ids.shape[0]):
        for m in range(n_samples):
            word, _, _, _ = random_words(seed, SAMPLING, step, np.uint64(row * n_samples + m))
            ids[row, m] = below(word, np.uint64(n_classes))


@njit_parallel(work=lambda seed, step, log_p, alias, ids, log_q: DRAW * ids.size)
def draw(seed, step, log_p, alias, ids, log_q):
    """Ids (B, M) from the alias tables of ``exp(log_p)``, and their log-probabilities."""
    n_samples = ids.shape[1]
    for row in prange(ids.shape[0]):
        for m in range(n_samples):
            word, keep, _, _ = random_words(seed, SAMPLING, step, np.uint64(row * n_samples + m))
            i = alias_draw(word, keep, 0, log_p.size, alias)
            ids[row, m] = i
            log_q[row, m] = log_p[i]


@njit
def _pick(weights, wanted):
    """The first index where the running sum of the weights exceeds `wanted`, else the last one with weight."""
    total, index = ZERO, 0
    for i in range(weights.size):
        if weights[i] > ZERO:
            index = i
            total += weights[i]
            if total > wanted:
                break
    return index


@njit_parallel
def draw_softmax(scores, first_row, seed, step, ids, log_q):
    """Ids (B, M) from the softmax of each row of scores (B, L), and their log-probabilities; overwrites the scores.

    A draw picks a block of `BLOCK` classes, then one of them. `first_row` is the number of row 0 in the random stream.
    """
    n_classes, n_samples = scores.shape[1], ids.shape[1]
    n_blocks = (n_classes + BLOCK - 1) // BLOCK
    for b in prange(scores.shape[0]):
        sums, largest, total = np.empty(n_blocks, np.float32), scores[b].max(), ZERO
        for block in range(n_blocks):
            sums[block] = ZERO
            for i in range(block * BLOCK, min(block * BLOCK + BLOCK, n_classes)):
                scores[b, i] = math.exp(scores[b, i] - largest)
                sums[block] += scores[b, i]
            total += sums[block]
        log_total = math.log(total)
        for m in range(n_samples):
            w0, w1, _, _ = random_words(seed, SAMPLING, step, np.uint64((first_row + b) * n_samples + m))
            block = _pick(sums, unit(w0) * total)
            start = block * BLOCK
            i = start + _pick(scores[b, start : min(start + BLOCK, n_classes)], unit(w1) * sums[block])
            ids[b, m] = i
            log_q[b, m] = math.log(scores[b, i]) - log_total
