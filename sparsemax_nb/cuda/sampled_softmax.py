"""Sampled softmax on CUDA."""

import math

import numpy as np
from numba import float32

from ..core.device import cuda, cuda_device, cuda_jit
from . import launch
from .reduce import block_max, block_sum

ZERO, ONE = np.float32(0), np.float32(1)
MINUS_INFINITY = np.float32(-np.inf)


@cuda_jit
def scores_kernel(h, weights, ids, out):
    """One thread owns one drawn class of one row: out[b, m] is a dot product over d.

    Grid: (row, draw) pairs on x. Reads h (B, d), ids (B, M) and rows of weights (L, d); writes out (B, M) coalesced.
    Neighbouring threads share their row of h in the cache; each walks down its own row of weights, sector by sector. No
    shared memory. No atomics.
    """
    position = cuda.grid(1)
    if position < out.size:
        b, m = position // out.shape[1], position % out.shape[1]
        i, total = ids[b, m], ZERO
        for d in range(h.shape[1]):
            total += h[b, d] * weights[i, d]
        out[b, m] = total


def scores(h, weights, ids, out, *, block=launch.BLOCK):
    """``out[b, m] = h[b] @ weights[ids[b, m]]``."""
    scores_kernel[launch.flat(out.size, block)](h, weights, ids, out)


@cuda_device
def _corrected(scores, shift, ids, log_q, b, m, target, mask_hits):
    """Score of a draw minus `shift` minus its log-probability; -inf for an accidental hit that is masked.

    The shift is subtracted first: a large score would swallow log Q.
    """
    row = 0 if ids.shape[0] != scores.shape[0] else b
    return MINUS_INFINITY if mask_hits and ids[row, m] == target else scores[b, m] - shift - log_q[row, m]


@cuda_jit
def softmax_kernel(scores, ids, log_q, targets, labels, mask_hits, loss, dscores, dtargets):
    """One block owns one row of scores and dscores (B, M); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x; block a power of two. The block processes the row's targets one after the other: labels = (indptr,
    indices) lists them. targets = (target_scores, log_q_targets), each (n,), like the outputs loss and dtargets. Reads
    scores, ids and log_q, adds to dscores, coalesced. Shared memory: 4 bytes per thread for the reductions, which run
    in a fixed order. No atomics.
    """
    target_scores, log_q_targets = targets
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, float32)
    # The row's largest score. It is subtracted before log Q, so that large scores do not swallow log Q's digits.
    shift = scores[b, 0]
    for m in range(thread, scores.shape[1], n_threads):
        dscores[b, m] = ZERO
        shift = max(shift, scores[b, m])
    shift = block_max(shared, shift)
    for p in range(labels.indptr[b], labels.indptr[b + 1]):
        target, t = labels.indices[p], target_scores[p] - shift - log_q_targets[p]
        largest = t
        for m in range(thread, scores.shape[1], n_threads):
            largest = max(largest, _corrected(scores, shift, ids, log_q, b, m, target, mask_hits))
        largest = block_max(shared, largest)
        total = ZERO
        for m in range(thread, scores.shape[1], n_threads):
            total += math.exp(_corrected(scores, shift, ids, log_q, b, m, target, mask_hits) - largest)
        own = math.exp(t - largest)
        total = block_sum(shared, total) + own
        for m in range(thread, scores.shape[1], n_threads):
            e = math.exp(_corrected(scores, shift, ids, log_q, b, m, target, mask_hits) - largest)
            dscores[b, m] += e / total
        if thread == 0:
            loss[p] = math.log(total) + (largest - t)
            dtargets[p] = own / total - ONE


def softmax(
    scores, ids, log_q, target_scores, labels, log_q_targets, mask_hits, loss, dscores, dtargets, *, block=launch.BLOCK
):
    """Cross-entropy of each target of a row against the row's draws.

    Writes the loss of each target and its derivative with respect to the target's score, both (n,), and the derivative
    with respect to the scores.
    """
    if scores.shape[0]:
        targets, shared = (target_scores, log_q_targets), launch.shared_bytes(4 * block)
        softmax_kernel[scores.shape[0], block, 0, shared](
            scores, ids, log_q, targets, labels, mask_hits, loss, dscores, dtargets
        )
