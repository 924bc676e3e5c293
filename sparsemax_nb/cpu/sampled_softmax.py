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
def softmax(scores, ids, log_q, target_scores, labels, log_q_targets, mask_hits, loss, dscores, dtargets):
    """Each target of a row against the row's draws: loss and derivative of each target, (n,), derivative by the scores."""
    n_samples, shared = scores.shape[1], ids.shape[0] != scores.shape[0]
    for b in prange(scores.shape[0]):
        line = 0 if shared else np.int64(b)
        corrected, e = np.empty(n_samples, np.float32), np.empty(n_samples, np.float32)
        for m in range(n_samples):
            corrected[m] = scores[b, m] - log_q[line, m]
            dscores[b, m] = ZERO
        for p in range(labels.indptr[b], labels.indptr[b + 1]):
            target, t = labels.indices[p], target_scores[p] - log_q_targets[p]
            largest = t
            for m in range(n_samples):
                if not (mask_hits and ids[line, m] == target):
                    largest = max(largest, corrected[m])
            own = math.exp(t - largest)
            total = own
            for m in range(n_samples):
                e[m] = ZERO if mask_hits and ids[line, m] == target else math.exp(corrected[m] - largest)
                total += e[m]
            for m in range(n_samples):
                dscores[b, m] += e[m] / total
            loss[p] = math.log(total) + largest - t
            dtargets[p] = own / total - ONE
