"""Tiles of the full softmax on the CPU."""

import math

import numpy as np
from numba import prange

from ..core import backend

ZERO = np.float32(0)


@backend.njit_parallel
def add_tile(logits, bias, first, targets, largest, total, target_logit):
    """Running maximum, sum of ``exp(logit - maximum)`` and the target's logit, (B,), in place, after one more tile (B, T)."""
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
        place = targets[b] - first
        if 0 <= place < n:
            target_logit[b] = logits[b, place] + bias[place]


@backend.njit_parallel
def gradient_of_tile(logits, bias, first, targets, log_z, scale, dlogits):
    """``(exp(logit - log Z) - [class is the target]) scale`` for a tile (B, T); `dlogits` may be `logits`."""
    n = logits.shape[1]
    for b in prange(logits.shape[0]):
        for j in range(n):
            dlogits[b, j] = math.exp(logits[b, j] + bias[j] - log_z[b]) * scale[b]
        place = targets[b] - first
        if 0 <= place < n:
            dlogits[b, place] -= scale[b]
