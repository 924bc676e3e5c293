"""Sampled softmax on the CPU."""

import math

import numpy as np
from numba import prange

from ..core import backend

ZERO, ONE = np.float32(0), np.float32(1)
LANES = 16


@backend.njit_parallel
def scores(queries, classes, ids, out):
    """``out[b, m] = queries[b] . classes[ids[b, m]]``: each class that is drawn is read once, a row of d numbers."""
    width = queries.shape[1]
    for b in prange(ids.shape[0]):
        part = np.empty(LANES, np.float32)
        for m in range(ids.shape[1]):
            row = classes[ids[b, m]]
            part[:] = ZERO
            whole = width - width % LANES
            for d in range(0, whole, LANES):
                for lane in range(LANES):
                    part[lane] += queries[b, d + lane] * row[d + lane]
            total = ZERO
            for d in range(whole, width):
                total += queries[b, d] * row[d]
            for lane in range(LANES):
                total += part[lane]
            out[b, m] = total


@backend.njit_parallel
def softmax(scores, ids, log_q, target_scores, targets, log_q_targets, mask_hits, loss, dscores, dtargets):
    """Loss of every row and its derivatives by the scores and the target's score; `dscores` may be `scores`."""
    shared = ids.shape[0] != scores.shape[0]
    for b in prange(scores.shape[0]):
        line = 0 if shared else np.int64(b)
        t = target_scores[b] - log_q_targets[b]
        largest = t
        for m in range(scores.shape[1]):
            s = scores[b, m] - log_q[line, m]
            if mask_hits and ids[line, m] == targets[b]:
                s = -np.float32(np.inf)
            dscores[b, m] = s
            largest = max(largest, s)
        total = math.exp(t - largest)
        for m in range(scores.shape[1]):
            e = math.exp(dscores[b, m] - largest)
            dscores[b, m] = e
            total += e
        for m in range(scores.shape[1]):
            dscores[b, m] /= total
        loss[b] = math.log(total) + largest - t
        dtargets[b] = math.exp(t - largest) / total - ONE
