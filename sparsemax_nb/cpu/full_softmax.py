"""Tiles of the full softmax on the CPU."""

import math

import numpy as np
from numba import prange

from ..core import backend

ZERO = np.float32(0)

#: Columns that a thread differentiates before it takes others: they are summed over the rows in the L1 cache.
COLUMNS = 512


@backend.njit_parallel
def add_tile(logits, bias, first, labels, largest, total, positive):
    """Running maximum, sum of ``exp(logit - maximum)``, sum of the labels' logits, (B,), in place, after one more tile (B, T)."""
    n = logits.shape[1]
    for b in prange(logits.shape[0]):
        new = largest[b]
        for j in range(n):
            new = max(new, logits[b, j] + bias[j])
        part = ZERO
        for j in range(n):
            part += math.exp(logits[b, j] + bias[j] - new)
        total[b] = total[b] * math.exp(largest[b] - new) + part
        largest[b] = new
        for i in range(labels.indptr[b], labels.indptr[b + 1]):
            place = labels.indices[i] - first
            if 0 <= place < n:
                positive[b] += logits[b, place] + bias[place]


@backend.njit_parallel
def gradient_of_tile(logits, bias, first, labels, log_z, scale, dbias, dlogits):
    """``(n_labels exp(logit - log Z) - [class is a label]) scale`` for a tile (B, T); its sum over rows is added to dbias.

    `dlogits` may be `logits`.
    """
    n = logits.shape[1]
    for part in prange((n + COLUMNS - 1) // COLUMNS):
        start, stop = part * COLUMNS, min((part + 1) * COLUMNS, n)
        for b in range(logits.shape[0]):
            weight = np.float32(labels.indptr[b + 1] - labels.indptr[b]) * scale
            for j in range(start, stop):
                dlogits[b, j] = math.exp(logits[b, j] + bias[j] - log_z[b]) * weight
            for i in range(labels.indptr[b], labels.indptr[b + 1]):
                place = labels.indices[i] - first
                if start <= place < stop:
                    dlogits[b, place] -= scale
            for j in range(start, stop):
                dbias[j] += dlogits[b, j]
