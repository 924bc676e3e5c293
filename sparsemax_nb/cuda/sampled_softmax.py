"""Sampled softmax on CUDA."""

import math

import numpy as np
from numba import float32

from ..core.device import cuda, cuda_device, cuda_jit
from . import launch
from .reduce import block_max, block_sum

ZERO, ONE = np.float32(0), np.float32(1)
NEVER = np.float32(-np.inf)


@cuda_jit
def scores_kernel(h, weights, ids, out):
    """One thread owns one drawn class of a row: out (B, M) = h (B, d) . classes[ids], a loop over d.

    Grid: (row, draw) pairs on x, the draws of a row side by side: they share its query in the cache; each walks down
    its own row of weights (L, d), sector by sector. No shared memory, no atomics.
    """
    position = cuda.grid(1)
    if position < out.size:
        b, m = position // out.shape[1], position % out.shape[1]
        i, total = ids[b, m], ZERO
        for d in range(h.shape[1]):
            total += h[b, d] * weights[i, d]
        out[b, m] = total


def scores(h, weights, ids, out, *, block=launch.BLOCK):
    """``out[b, m] = h[b] . weights[ids[b, m]]``."""
    scores_kernel[launch.flat(out.size, block)](h, weights, ids, out)


@cuda_device
def _corrected(scores, shift, ids, log_q, b, m, target, mask_hits):
    """The score of a draw less `shift` and its log-probability; -inf where it hits the target and hits are left out.

    The shift goes first: large scores would swallow log Q.
    """
    line = 0 if ids.shape[0] != scores.shape[0] else b
    return NEVER if mask_hits and ids[line, m] == target else scores[b, m] - shift - log_q[line, m]


@cuda_jit
def softmax_kernel(scores, ids, log_q, targets, labels, mask_hits, loss, dscores, dtargets):
    """A block owns one row of scores, dscores (B, M), a thread its columns t, t + blockDim.x, ...; coalesced.

    targets = (target_scores, log_q_targets), each (n,), like loss and dtargets; labels = (indptr, indices) says which
    belong to the row: the block takes one after the other. The largest score and the sum of the exponentials are
    reduced in shared memory, 4 bytes a thread, always in the same order. Grid: rows on x; block a power of two. No
    atomics.
    """
    target_scores, log_q_targets = targets
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, float32)
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
    """Each target of a row against the row's draws: loss and derivative of each target, (n,), derivative by the scores."""
    if scores.shape[0]:
        targets, shared = (target_scores, log_q_targets), launch.shared_bytes(4 * block)
        softmax_kernel[scores.shape[0], block, 0, shared](
            scores, ids, log_q, targets, labels, mask_hits, loss, dscores, dtargets
        )
