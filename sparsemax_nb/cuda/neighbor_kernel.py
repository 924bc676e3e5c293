"""A kernel machine over nearest neighbors on CUDA: one block per row adds its neighbors' lists of dual variables."""

import math

import numpy as np
from numba import float32, int32

from ..core import formulas
from ..core.connections import PaddedDuals, damping_factors, dual_diagonal
from ..core.device import asarray, cuda, cuda_device, cuda_formulas, cuda_jit, zeros
from . import launch
from .reduce import block_sum

updated_dual = cuda_formulas(formulas).updated_dual
ZERO, TWO = np.float32(0), np.float32(2)
NO, YES = np.int32(0), np.int32(1)
#: The score of a label that has been visited.
VISITED = np.float32(-np.inf)
#: Threads per block, a power of two: most points have fewer dual variables.
BLOCK = 32
#: Scores that exist at once in a step, those of all labels for each block: 128 MiB.
MAX_ELEMENTS = 1 << 25


@cuda_jit
def forward_kernel(neighbors, kernels, duals, scores):
    """One block owns one row of scores (B, L); its threads share the list of each neighbor.

    Grid: rows on x. Reads labels and values of the lists coalesced; reads and writes scores at the labels, which are
    scattered. No shared memory. No atomics: a label occurs once per list.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    for m in range(neighbors.shape[1]):
        j, kernel = neighbors[b, m], kernels[b, m]
        if j >= 0 and kernel > ZERO:  # the same for the whole block
            for e in range(duals.indptr[j] + thread, duals.indptr[j + 1], n_threads):
                scores[b, duals.labels[e]] += kernel * duals.values[e]
            cuda.syncthreads()  # one neighbor after the other: a score is always summed in the same order


def forward(neighbors, kernels, duals, bias, scores, *, block=BLOCK):
    """``scores[b, l] = bias[l] + sum_m kernels[b, m] duals[neighbors[b, m], l]``; an id of -1 is no neighbor."""
    scores[...] = bias
    if scores.shape[0]:
        forward_kernel[scores.shape[0], block](neighbors, kernels, duals, scores)


# ---------------------------------------------------------------- training


@cuda_device
def _curvature(shared, i, near, is_in_batch):
    """Bound and damping of point i, see `neighbor_kernel_step`.

    The bound is the sum of its kernels with the points of the batch, or 0 if its kernel with itself is 0.
    """
    neighbors, kernels = near
    itself, others, squares = ZERO, ZERO, ZERO
    for m in range(cuda.threadIdx.x, neighbors.shape[1], cuda.blockDim.x):
        j = neighbors[i, m]
        if j == i:
            itself += kernels[i, m]
        elif j >= 0:
            squares += kernels[i, m] * kernels[i, m]
            if is_in_batch[j]:
                others += kernels[i, m]
    itself, others, squares = block_sum(shared, itself), block_sum(shared, others), block_sum(shared, squares)
    return (itself + others if itself > ZERO else ZERO), math.sqrt(TWO * squares)


@cuda_device
def _dual_of(label, i, duals):
    """The signed dual variable of point i and a label, 0 if the point's list does not have the label."""
    found = ZERO
    for e in range(duals.count[i]):
        if duals.labels[i, e] == label:
            found = duals.values[i, e]
    return found


@cuda_device
def _append(flags, n, label, value, labels, values):
    """Appends the dual variables of a block's threads to a list, in the order of the threads; returns its length.

    A value of 0, and what does not fit, is left out. Every thread must call this. `flags` needs 4 bytes per thread of
    shared memory. Ends with a barrier, or begins with one where nothing is appended.
    """
    thread, is_new = cuda.threadIdx.x, YES if value != ZERO else NO
    flags[thread] = is_new
    n_new = cuda.syncthreads_count(is_new)
    if n_new > 0:
        # In most lists nothing is new: then this costs one barrier. Else a thread counts the flags before its own.
        if is_new:
            position = n
            for t in range(thread):
                position += flags[t]
            if position < labels.size:
                labels[position], values[position] = label, value
        cuda.syncthreads()  # all have read the flags: they may be overwritten
    return min(n + n_new, labels.size)


@cuda_jit
def step_kernel(rows, near, labels, is_in_batch, slopes, slack, duals, scores, new, losses):
    """One block owns one row after another: it adds its neighbors' lists, then writes the row's new dual variables.

    Grid: blocks on x, as many as scores (blocks, L), which are 0 before and after, have rows; they stride over rows
    (B,). Block: a power of two. near = (neighbors, kernels), each (N, M); slopes = (diagonal, factors of the
    damping), each (B,). Reads each list of duals twice, coalesced, and scores at its labels, which are scattered;
    writes the lists of new (B, W) and losses (B,). The duals stay as they are: all rows see the scores before the
    step. Shared memory: 4 bytes per thread. No atomics: a label occurs once per list, one list follows the other,
    and positions in a new list are counted in the order of the threads.
    """
    shared, flags = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    thread, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    neighbors, kernels = near
    score = scores[cuda.blockIdx.x]
    for b in range(cuda.blockIdx.x, rows.shape[0], cuda.gridDim.x):
        i = rows[b]
        bound, damping = _curvature(shared, i, near, is_in_batch)
        slope = slopes[0][b] + damping * slopes[1][b]
        for m in range(neighbors.shape[1]):
            j, kernel = neighbors[i, m], kernels[i, m]
            if j >= 0 and kernel > ZERO:
                for e in range(thread, duals.count[j], n_threads):
                    score[duals.labels[j, e]] += kernel * duals.values[j, e]
                cuda.syncthreads()
        n, loss, stop = 0, ZERO, labels.indptr[b + 1]
        for start in range(labels.indptr[b], stop, n_threads):
            label, value = NO, ZERO
            if start + thread < stop:
                label = labels.indices[start + thread]
                gradient = score[label] - TWO  # of the score, which is 1 less: the bias
                score[label] = VISITED
                loss += gradient * gradient if gradient < ZERO else ZERO
                value = updated_dual(max(ZERO, _dual_of(label, i, duals)), gradient, bound, slope)
            n = _append(flags, n, label, value, new.labels[b], new.values[b])
        for start in range(0, duals.count[i], n_threads):
            label, value, e = NO, ZERO, start + thread
            if e < duals.count[i]:
                label = duals.labels[i, e]
                if score[label] != VISITED:
                    old, gradient = max(ZERO, -duals.values[i, e]), slack - score[label]
                    score[label] = VISITED
                    loss += gradient * gradient if gradient < ZERO else ZERO
                    value = -updated_dual(old, gradient, bound, slope)
            n = _append(flags, n, label, value, new.labels[b], new.values[b])
        for m in range(neighbors.shape[1]):
            j = neighbors[i, m]
            if j >= 0 and kernels[i, m] > ZERO:
                for start in range(0, duals.count[j], n_threads):
                    label, value, e = NO, ZERO, start + thread
                    if e < duals.count[j]:
                        label = duals.labels[j, e]
                        gradient = slack - score[label]
                        score[label] = ZERO  # so that the label counts once, and for the next row
                        if gradient < ZERO:
                            loss += gradient * gradient
                            value = -updated_dual(ZERO, gradient, bound, slope)
                    n = _append(flags, n, label, value, new.labels[b], new.values[b])
        for e in range(labels.indptr[b] + thread, stop, n_threads):
            score[labels.indices[e]] = ZERO  # these and the following need not be in a neighbor's list
        cuda.syncthreads()
        for e in range(thread, duals.count[i], n_threads):
            score[duals.labels[i, e]] = ZERO
        loss = block_sum(shared, loss)
        if thread == 0:
            new.count[b], losses[b] = n, loss


def step(rows, neighbors, kernels, labels, row_weights, c, slack, n_labels, duals, losses, *, block=BLOCK):
    """Move the dual variables of all `rows` at once, by the scores before, see `neighbor_kernel_step`.

    `duals` changes in place. `losses` (B,) are the rows' losses before, not multiplied by the `row_weights` (B,).
    `labels` are the rows' own.
    """
    n_rows, width = rows.shape[0], duals.labels.shape[1]
    if not n_rows:
        return
    is_in_batch = zeros(neighbors.shape[0], bool, "cuda")
    is_in_batch[rows] = True
    lists = n_rows, width
    new = PaddedDuals(zeros(n_rows, np.int32, "cuda"), zeros(lists, np.int32, "cuda"), zeros(lists, np.float32, "cuda"))
    scores = zeros((max(1, min(n_rows, MAX_ELEMENTS // n_labels)), n_labels), np.float32, "cuda")
    slopes = tuple(asarray(a, "cuda") for a in (dual_diagonal(c, row_weights), damping_factors(row_weights)))
    step_kernel[scores.shape[0], block, 0, launch.shared_bytes(4 * block)](
        rows, (neighbors, kernels), labels, is_in_batch, slopes, np.float32(slack), duals, scores, new, losses
    )
    for array, values in zip(duals, new, strict=True):
        array[rows] = values
