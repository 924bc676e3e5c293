"""Draws of classes from fixed probabilities, or from the softmax of each row of a score matrix, on CUDA."""

import math

import numpy as np
from numba import float32

from ..core import rng
from ..core.alias import BLOCK
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit, empty
from . import launch
from .reduce import block_max

_rng = cuda_formulas(rng)
random_words, below, alias_draw, unit = _rng.random_words, _rng.below, _rng.alias_draw, _rng.unit
SAMPLING, ZERO = rng.SAMPLING, np.float32(0)


@cuda_jit
def draw_uniform_kernel(seed, step, n_classes, ids):
    """One thread owns one draw of ids (B, M).

    Grid: draws on x. Reads nothing, writes ids coalesced. No shared memory. No atomics.
    """
    position = cuda.grid(1)
    if position < ids.size:
        word, _, _, _ = random_words(seed, SAMPLING, step, np.uint64(position))
        ids[position // ids.shape[1], position % ids.shape[1]] = below(word, np.uint64(n_classes))


def draw_uniform(seed, step, n_classes, ids, *, block=launch.BLOCK):
    """Ids (B, M), all classes equally likely."""
    draw_uniform_kernel[launch.flat(ids.size, block)](seed, step, n_classes, ids)


@cuda_jit
def draw_kernel(seed, step, log_p, alias, ids, log_q):
    """One thread owns one draw: two random reads of the alias table (n,) and one of log_p (n,), whatever n is.

    Grid: draws on x. Writes ids and log_q (B, M) coalesced. No shared memory. No atomics.
    """
    position = cuda.grid(1)
    if position < ids.size:
        word, keep, _, _ = random_words(seed, SAMPLING, step, np.uint64(position))
        i = alias_draw(word, keep, 0, log_p.size, alias)
        row, m = position // ids.shape[1], position % ids.shape[1]
        ids[row, m] = i
        log_q[row, m] = log_p[i]


def draw(seed, step, log_p, alias, ids, log_q, *, block=launch.BLOCK):
    """Ids (B, M) from the alias table of ``exp(log_p)``, and their log-probabilities."""
    draw_kernel[launch.flat(ids.size, block)](seed, step, log_p, alias, ids, log_q)


@cuda_device
def _pick(weights, b, first, stop, wanted):
    """The first position in row b at which the running sum from `first` exceeds `wanted`.

    Rounding may keep the sum at or below `wanted`: then the last position with a positive weight.
    """
    total, position = ZERO, first
    for i in range(first, stop):
        if weights[b, i] > ZERO:
            position = i
            total += weights[b, i]
            if total > wanted:
                break
    return position


@cuda_jit
def exponentials_kernel(scores, sums):
    """One block owns one row of scores (B, L) and replaces it by ``exp(score - row maximum)``.

    Grid: rows on x; block a power of two. Also writes sums (B, n) of parts of `BLOCK` classes: thread t owns parts t, t
    + blockDim.x, ... and adds the classes of a part in order, so the sums are reproducible. Shared memory: 4 bytes per
    thread, for the maximum. No atomics.
    """
    b, thread, n_threads, n_classes = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x, scores.shape[1]
    shared = cuda.shared.array(0, float32)
    largest = scores[b, 0]
    for i in range(thread, n_classes, n_threads):
        largest = max(largest, scores[b, i])
    largest = block_max(shared, largest)
    for part in range(thread, sums.shape[1], n_threads):
        total = ZERO
        for i in range(part * BLOCK, min(part * BLOCK + BLOCK, n_classes)):
            e = math.exp(scores[b, i] - largest)
            scores[b, i] = e
            total += e
        sums[b, part] = total


@cuda_jit
def draw_softmax_kernel(weights, sums, first_row, seed, step, ids, log_q):
    """One thread owns one draw of ids and log_q (B, M): it picks a part, then a class of that part.

    Grid: draws on x. Reads the n sums of its row of sums (B, n), then up to `BLOCK` weights of weights (B, L), instead
    of all L. No shared memory. No atomics.
    """
    position = cuda.grid(1)
    if position < ids.size:
        b, m = position // ids.shape[1], position % ids.shape[1]
        w0, w1, _, _ = random_words(seed, SAMPLING, step, np.uint64(first_row * ids.shape[1] + position))
        total = ZERO
        for part in range(sums.shape[1]):
            total += sums[b, part]
        part = _pick(sums, b, 0, sums.shape[1], unit(w0) * total)
        start = part * BLOCK
        i = _pick(weights, b, start, min(start + BLOCK, weights.shape[1]), unit(w1) * sums[b, part])
        ids[b, m] = i
        log_q[b, m] = math.log(weights[b, i]) - math.log(total)


def draw_softmax(scores, first_row, seed, step, ids, log_q, *, block=launch.BLOCK):
    """Ids (B, M) from the softmax of each row of scores (B, L), and their log-probabilities.

    `scores` is overwritten by exponentials. A draw picks a block of `BLOCK` classes, then one of them. Rows are
    numbered from `first_row` in the random stream, so a batch may be drawn in pieces.
    """
    n_rows, n_classes = scores.shape
    if n_rows:
        sums = empty((n_rows, launch.divide_up(n_classes, BLOCK)), np.float32, "cuda")
        exponentials_kernel[n_rows, block, 0, launch.shared_bytes(4 * block)](scores, sums)
        draw_softmax_kernel[launch.flat(ids.size, block)](scores, sums, first_row, seed, step, ids, log_q)
