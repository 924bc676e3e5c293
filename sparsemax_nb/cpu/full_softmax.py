"""Tiles of the full softmax, and its most probable classes, on the CPU."""

import math

import numpy as np
from numba import prange

from ..core.device import njit, njit_parallel
from . import lists
from .exp import ACCUMULATORS, exp, exp_nonpositive, largest_of, sum_exp
from .matmul import matmul

ZERO = np.float32(0)
#: Number of row ranges with partial sums of their own: fixed, so that the bits do not depend on the number of threads.
PARTS = 16


@njit
def _compare(logits, score, counts, lanes, zeros):
    """The number of logits above `score`; the largest logit, ignoring NaN; and 0, or NaN if a logit is not finite.

    `counts` (ACCUMULATORS,) int32, `lanes` and `zeros` (ACCUMULATORS,) are scratch.
    """
    n, whole, count, largest, invalid = logits.size, logits.size // ACCUMULATORS * ACCUMULATORS, 0, score, ZERO
    counts[:], lanes[:], zeros[:] = 0, score, ZERO
    for start in range(0, whole, ACCUMULATORS):
        for i in range(ACCUMULATORS):
            x, old = logits[start + i], lanes[i]
            counts[i] += x > score
            lanes[i] = (x if x > old else old) + ZERO  # as in `largest_of`
            zeros[i] += ZERO * x
    for j in range(whole, n):
        x = logits[j]
        count += x > score
        largest = max(largest, x)
        invalid += ZERO * x
    for i in range(ACCUMULATORS):
        count += counts[i]
        largest = max(largest, lanes[i])
        invalid += zeros[i]
    return count, largest, invalid


@njit
def _n_equal(logits, score, counts):
    """The number of logits equal to `score`; `counts` (ACCUMULATORS,) int32 is scratch."""
    n, whole, count = logits.size, logits.size // ACCUMULATORS * ACCUMULATORS, 0
    counts[:] = 0
    for start in range(0, whole, ACCUMULATORS):
        for i in range(ACCUMULATORS):
            counts[i] += logits[start + i] == score
    for j in range(whole, n):
        count += logits[j] == score
    for i in range(ACCUMULATORS):
        count += counts[i]
    return count


@njit_parallel
def rank(logits, targets, log_prob, rank):
    """``log softmax(logits)[target]``, (B,), and the number of classes that rank before the target.

    Classes rank by score descending, then id ascending. The logarithm is NaN if a logit of the row is not finite. A
    thread reads a row (L,) three times, twice from its cache.
    """
    bias = np.zeros(logits.shape[1], np.float32)
    for b in prange(logits.shape[0]):
        counts, lanes, zeros = (
            np.empty(ACCUMULATORS, np.int32),
            np.empty(ACCUMULATORS, np.float32),
            np.empty(ACCUMULATORS, np.float32),
        )
        row, target = logits[b], targets[b]
        score = row[target]
        n_larger, largest, invalid = _compare(row, score, counts, lanes, zeros)
        total = sum_exp(row, bias, largest, lanes)
        log_prob[b] = score - largest - math.log(total) + invalid
        rank[b] = n_larger + _n_equal(row[:target], score, counts)


@njit_parallel
def add_tile(logits, bias, largest, total):
    """Update the running maximum and sum of ``exp(logit - maximum)``, (B,), in place with one more tile (B, T)."""
    for b in prange(logits.shape[0]):
        lanes = np.empty(ACCUMULATORS, np.float32)
        row = logits[b]
        new = largest_of(row, bias, largest[b], lanes)
        total[b] = total[b] * exp(largest[b] - new) + sum_exp(row, bias, new, lanes)
        largest[b] = new


def add_product(h, weights, bias, keep, logits, largest, total):
    """`add_tile` of the tile ``h @ weights.T`` (B, T), for h (B, d) and weights (T, d).

    `logits` always contains the tile afterwards; `keep` matters only in the CUDA twin.
    """
    matmul(h, weights.T, logits)
    add_tile(logits, bias, largest, total)


@njit
def _gradient(logits, bias, largest, weight):
    """``logits = exp(logits + bias - largest) weight``, in place: a separate output array would prevent vector code."""
    for j in range(logits.size):
        logits[j] = exp_nonpositive(logits[j] + bias[j] - largest) * weight


@njit
def _add(a, total):
    """``total += a``."""
    for j in range(total.size):
        total[j] += a[j]


@njit
def _loss(logits, bias, labels, first, largest, total):
    """``sum(log(total) + (largest - logit))`` over labels in the tile; small differences are exact."""
    loss = ZERO
    for i in range(labels.size):
        column = labels[i] - first
        if 0 <= column < logits.size:
            loss += math.log(total) + (largest - (logits[column] + bias[column]))
    return loss


@njit_parallel
def _gradient_of_tile(bias, first, labels, largest, total, scale, dbias, losses, logits):
    n_rows, n = logits.shape
    n_parts = min(PARTS, n_rows)
    sums = np.zeros((n_parts, n), np.float32)
    for part in prange(n_parts):
        for b in range(n_rows * part // n_parts, n_rows * (part + 1) // n_parts):
            row = logits[b]
            losses[b] += _loss(
                row, bias, labels.indices[labels.indptr[b] : labels.indptr[b + 1]], first, largest[b], total[b]
            )
            _gradient(row, bias, largest[b], np.float32(labels.indptr[b + 1] - labels.indptr[b]) * scale / total[b])
            for i in range(labels.indptr[b], labels.indptr[b + 1]):
                column = labels.indices[i] - first
                if 0 <= column < n:
                    row[column] -= scale
            _add(row, sums[part])
    for part in range(n_parts):
        _add(sums[part], dbias)


def gradient_of_tile(logits, bias, first, labels, largest, total, scale, dbias, losses, dlogits):
    """``(n_labels p - [class is a label]) scale`` for a tile (B, T), ``p = exp(logit - largest) / total``.

    Its sum over rows is added to dbias, ``log(total) + largest - logit`` of each label to losses (B,). `dlogits` may be
    `logits`.
    """
    if dlogits is not logits:
        np.copyto(dlogits, logits)
    _gradient_of_tile(bias, first, labels, largest, total, scale, dbias, losses, dlogits)


def pack(weights, bias):
    """weights (L, d) and bias (L,) as `top_k` takes them: copied into panels of 16 classes."""
    return lists.pack_classes(weights, bias)


def top_k(h, weights, bias, probabilities, ids):
    """The k largest of ``softmax(h @ weights.T + bias)`` per row and their classes; weights and bias come from `pack`.

    For small k no logits are stored: 64 rows meet 512 classes at a time, so that their scores stay in the cache.
    """
    lists.top_k(h, weights, bias, probabilities, ids)
