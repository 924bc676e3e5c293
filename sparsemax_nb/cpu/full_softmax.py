"""Tiles of the full softmax on the CPU."""

import numpy as np
from numba import prange

from ..core import backend
from .exp import exp

ZERO = np.float32(0)
#: Sums and maxima run side by side, so that they become vector code; then they are joined in order.
LANES = 64
#: Runs of rows that are summed side by side: the order of the sums does not depend on the number of threads.
PARTS = 16


@backend.njit
def _largest(logits, bias, largest, lanes):
    """The largest of `largest` and ``logits + bias``, NaN left out; `lanes` (LANES,) is scratch."""
    n, whole = logits.size, logits.size // LANES * LANES
    lanes[:] = largest
    for start in range(0, whole, LANES):
        for i in range(LANES):
            x = logits[start + i] + bias[start + i]
            lanes[i] = x if x > lanes[i] else lanes[i]
    for j in range(whole, n):
        largest = max(largest, logits[j] + bias[j])
    for i in range(LANES):
        largest = max(largest, lanes[i])
    return largest


@backend.njit
def _sum_exp(logits, bias, shift, lanes):
    """``sum(exp(logits + bias - shift))``; `lanes` (LANES,) is scratch."""
    n, whole, total = logits.size, logits.size // LANES * LANES, ZERO
    lanes[:] = ZERO
    for start in range(0, whole, LANES):
        for i in range(LANES):
            lanes[i] += exp(logits[start + i] + bias[start + i] - shift)
    for j in range(whole, n):
        total += exp(logits[j] + bias[j] - shift)
    for i in range(LANES):
        total += lanes[i]
    return total


@backend.njit_parallel
def add_tile(logits, bias, first, labels, largest, total, positive):
    """Running maximum, sum of ``exp(logit - maximum)``, sum of the labels' logits, (B,), in place, after one more tile (B, T)."""
    n = logits.shape[1]
    for b in prange(logits.shape[0]):
        lanes = np.empty(LANES, np.float32)
        row = logits[b]
        new = _largest(row, bias, largest[b], lanes)
        total[b] = total[b] * exp(largest[b] - new) + _sum_exp(row, bias, new, lanes)
        largest[b] = new
        for i in range(labels.indptr[b], labels.indptr[b + 1]):
            place = labels.indices[i] - first
            if 0 <= place < n:
                positive[b] += row[place] + bias[place]


@backend.njit
def _gradient(logits, bias, log_z, weight):
    """``logits = exp(logits + bias - log Z) weight``; written to another array it would not be vector code in place."""
    for j in range(logits.size):
        logits[j] = exp(logits[j] + bias[j] - log_z) * weight


@backend.njit
def _add(a, total):
    """``total += a``."""
    for j in range(total.size):
        total[j] += a[j]


@backend.njit_parallel
def _gradient_of_tile(bias, first, labels, log_z, scale, dbias, logits):
    n_rows, n = logits.shape
    n_parts = min(PARTS, n_rows)
    sums = np.zeros((n_parts, n), np.float32)
    for part in prange(n_parts):
        for b in range(n_rows * part // n_parts, n_rows * (part + 1) // n_parts):
            row = logits[b]
            _gradient(row, bias, log_z[b], np.float32(labels.indptr[b + 1] - labels.indptr[b]) * scale)
            for i in range(labels.indptr[b], labels.indptr[b + 1]):
                place = labels.indices[i] - first
                if 0 <= place < n:
                    row[place] -= scale
            _add(row, sums[part])
    for part in range(n_parts):
        _add(sums[part], dbias)


def gradient_of_tile(logits, bias, first, labels, log_z, scale, dbias, dlogits):
    """``(n_labels exp(logit - log Z) - [class is a label]) scale`` for a tile (B, T); its sum over rows is added to dbias.

    `dlogits` may be `logits`.
    """
    if dlogits is not logits:
        np.copyto(dlogits, logits)
    _gradient_of_tile(bias, first, labels, log_z, scale, dbias, dlogits)
