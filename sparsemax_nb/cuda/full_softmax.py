"""Tiles of the full softmax on CUDA."""

import math

import numpy as np
from numba import float32

from ..core import backend
from ..core.backend import cuda
from . import launch
from .reduce import block_max, block_sum

ZERO = np.float32(0)


@backend.cuda_jit
def add_tile_kernel(logits, bias, first, targets, running):
    """A block owns one row of logits (B, T), a thread its columns t, t + blockDim.x, ...; coalesced, read twice.

    running = (largest, total, target_logit), each (B,), updated in place. Maximum and sum are reduced in shared memory,
    4 bytes a thread, always in the same order. Grid: rows on x; block a power of two. No atomics.
    """
    largest, total, target_logit = running
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, float32)
    new = largest[b]
    for j in range(thread, logits.shape[1], n_threads):
        new = max(new, logits[b, j] + bias[j])
    new = block_max(shared, new)
    part = ZERO
    for j in range(thread, logits.shape[1], n_threads):
        part += math.exp(logits[b, j] + bias[j] - new)
    part = block_sum(shared, part)
    if thread == 0:
        total[b] = total[b] * math.exp(largest[b] - new) + part
        largest[b] = new
        place = targets[b] - first
        if place >= 0 and place < logits.shape[1]:
            target_logit[b] = logits[b, place] + bias[place]


def add_tile(logits, bias, first, targets, largest, total, target_logit, *, block=launch.BLOCK):
    """Running maximum, sum of ``exp(logit - maximum)`` and the target's logit, (B,), in place, after one more tile (B, T)."""
    if logits.shape[0]:
        running, shared = (largest, total, target_logit), launch.shared_bytes(4 * block)
        add_tile_kernel[logits.shape[0], block, 0, shared](logits, bias, first, targets, running)


@backend.cuda_jit
def gradient_of_tile_kernel(logits, bias, first, targets, log_z, scale, dlogits):
    """A block owns one row of logits, dlogits (B, T), a thread its columns t, t + blockDim.x, ...; coalesced.

    Grid: rows on x. No shared memory, no atomics.
    """
    b = cuda.blockIdx.x
    for j in range(cuda.threadIdx.x, logits.shape[1], cuda.blockDim.x):
        p = math.exp(logits[b, j] + bias[j] - log_z[b]) * scale[b]
        dlogits[b, j] = p - scale[b] if targets[b] - first == j else p


def gradient_of_tile(logits, bias, first, targets, log_z, scale, dlogits, *, block=launch.BLOCK):
    """``(exp(logit - log Z) - [class is the target]) scale`` for a tile (B, T); `dlogits` may be `logits`."""
    if logits.shape[0]:
        gradient_of_tile_kernel[logits.shape[0], block](logits, bias, first, targets, log_z, scale, dlogits)
