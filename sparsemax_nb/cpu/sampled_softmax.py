"""Sampled softmax on the CPU."""

import math

import numpy as np
from numba import prange

from ..core.device import njit_parallel
from .simd import inner, prefetch_range

ZERO, ONE = np.float32(0), np.float32(1)
#: How many samples ahead a row of weights is prefetched, and how much of it; the hardware prefetcher loads the rest.
AHEAD, BEGINNING = 4, 256


@njit_parallel(work=lambda h, weights, ids, out: ids.size * weights.shape[1])
def scores(h, weights, ids, out):
    """``out[b, m] = h[b] . weights[ids[b, m]]``; the weights of each sampled class are read once."""
    width, n_samples = h.shape[1], ids.shape[1]
    flat_h, flat_weights = h.reshape(-1), weights.reshape(-1)
    for b in prange(ids.shape[0]):
        for m in range(n_samples):
            if m + AHEAD < n_samples:
                prefetch_range(flat_weights, np.int64(ids[b, m + AHEAD]) * width, min(width, BEGINNING))
            out[b, m] = inner(flat_h, b * width, flat_weights, np.int64(ids[b, m]) * width, width)


@njit_parallel
def softmax(scores, ids, log_q, target_scores, labels, log_q_targets, mask_hits, loss, dscores, dtargets):
    """Each target of a row against the row's samples: its loss and derivative (n,), and the gradient of the scores."""
    n_samples, shared = scores.shape[1], ids.shape[0] != scores.shape[0]
    for b in prange(scores.shape[0]):
        sample_row = 0 if shared else np.int64(b)
        corrected, e = np.empty(n_samples, np.float32), np.empty(n_samples, np.float32)
        shift = scores[b, 0]
        for m in range(n_samples):
            shift = max(shift, scores[b, m])
        for m in range(n_samples):
            # in this order: large scores would swallow log Q
            corrected[m] = scores[b, m] - shift - log_q[sample_row, m]
            dscores[b, m] = ZERO
        for p in range(labels.indptr[b], labels.indptr[b + 1]):
            target, t = labels.indices[p], target_scores[p] - shift - log_q_targets[p]
            largest = t
            for m in range(n_samples):
                if not (mask_hits and ids[sample_row, m] == target):
                    largest = max(largest, corrected[m])
            own = math.exp(t - largest)
            total = own
            for m in range(n_samples):
                e[m] = ZERO if mask_hits and ids[sample_row, m] == target else math.exp(corrected[m] - largest)
                total += e[m]
            for m in range(n_samples):
                dscores[b, m] += e[m] / total
            loss[p] = math.log(total) + (largest - t)
            dtargets[p] = own / total - ONE
