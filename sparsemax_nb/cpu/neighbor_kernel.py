"""A kernel machine over nearest neighbors on the CPU, in parallel over rows.

A row's scores are the sum of its neighbors' lists of dual variables, each times a kernel value: the cost is the length
of these lists, whatever the number of labels. The lists of a step are read twice, to add them up and to find the labels
whose score violates the margin. The second pass also clears the scores, so neither marks nor a list of the labels that
were touched are needed.
"""

import math

import numpy as np
from numba import prange

from ..core import formulas
from ..core.connections import PaddedDuals, damping_factors, dual_diagonal
from ..core.device import cpu_formulas, njit, njit_parallel, zeros
from .simd import item, prefetch, set_item

updated_dual = cpu_formulas(formulas).updated_dual
ZERO, TWO = np.float32(0), np.float32(2)
#: Rows per work item of `forward`.
ROWS = 16
#: Most work items of a step: each has scores of all labels.
PARTS = 16
#: The score of a label that has been visited.
VISITED = np.float32(-np.inf)


@njit
def _add(kernel, first, stop, labels, values, scores):
    """Add the entries from `first` to `stop` of flat lists, times `kernel`."""
    for e in range(first, stop):
        label = np.int64(item(labels, e))
        set_item(scores, label, item(scores, label) + kernel * item(values, e))


def _work(neighbors, kernels, duals, bias, scores):
    """All scores, and the lists of the neighbors, assuming average length."""
    return scores.size + neighbors.size * (len(duals.labels) // max(1, len(duals.indptr) - 1))


@njit_parallel(work=_work)
def forward(neighbors, kernels, duals, bias, scores):
    """``scores[b, l] = bias[l] + sum_m kernels[b, m] duals[neighbors[b, m], l]``; an id of -1 is no neighbor.

    The lists of the next neighbor are prefetched while one is added.
    """
    n_rows, n = neighbors.shape
    for part in prange((n_rows + ROWS - 1) // ROWS):
        for b in range(part * ROWS, min((part + 1) * ROWS, n_rows)):
            row = scores[b]
            row[:] = bias
            for m in range(n):
                if m + 1 < n and neighbors[b, m + 1] >= 0:
                    following = duals.indptr[neighbors[b, m + 1]]
                    prefetch(duals.labels, following)
                    prefetch(duals.values, following)
                j = neighbors[b, m]
                if j >= 0 and kernels[b, m] > ZERO:
                    _add(kernels[b, m], duals.indptr[j], duals.indptr[j + 1], duals.labels, duals.values, row)


# ---------------------------------------------------------------- training


@njit
def _curvature(rows, neighbors, kernels, factors, bounds, slopes):
    """Write bounds (B,) and add the damping, times the factors, to slopes (B,), see `neighbor_kernel_step`.

    A bound is the sum of a row's kernels with the rows of the batch, or 0 if the kernel with itself is 0.
    """
    is_in_batch = np.zeros(neighbors.shape[0], np.bool_)
    is_in_batch[rows] = True
    for b in range(rows.size):
        itself, others, squares = ZERO, ZERO, ZERO
        for m in range(neighbors.shape[1]):
            j = neighbors[rows[b], m]
            if j == rows[b]:
                itself += kernels[j, m]
            elif j >= 0:
                squares += kernels[rows[b], m] * kernels[rows[b], m]
                if is_in_batch[j]:
                    others += kernels[rows[b], m]
        bounds[b] = itself + others if itself > ZERO else ZERO
        slopes[b] += math.sqrt(TWO * squares) * factors[b]


@njit
def _add_lists(near, kernels, duals, scores):
    """Add the lists of a row's neighbors to `scores`."""
    width, labels, values = duals.labels.shape[1], duals.labels.reshape(-1), duals.values.reshape(-1)
    for m in range(near.size):
        if m + 1 < near.size and near[m + 1] >= 0:
            following = np.int64(near[m + 1]) * width
            prefetch(labels, following)
            prefetch(values, following)
        j = np.int64(near[m])
        if j >= 0 and kernels[m] > ZERO:
            _add(kernels[m], j * width, j * width + duals.count[j], labels, values, scores)


@njit
def _dual_of(label, i, duals):
    """The signed dual variable of point i and a label, 0 if the point's list does not have the label."""
    for e in range(duals.count[i]):
        if duals.labels[i, e] == label:
            return duals.values[i, e]
    return ZERO


@njit
def _append(n, label, value, labels, values):
    """Append a dual variable unless it is 0 or the list is full; returns the length."""
    if value != ZERO and n < labels.size:
        labels[n], values[n] = label, value
        return n + 1
    return n


@njit
def _loss(gradient):
    return gradient * gradient if gradient < ZERO else ZERO


@njit
def _update(i, own, near, kernels, duals, curvature, slack, scores, labels, values):
    """Write the new list of point i; returns its length and the loss before. Clears the scores.

    Scores come without the bias, which is -1. `curvature` = (bound, slope).
    """
    (bound, slope), n, loss = curvature, 0, ZERO
    for e in range(own.size):
        label, gradient = own[e], scores[own[e]] - TWO
        scores[label] = VISITED
        loss += _loss(gradient)
        old = max(ZERO, _dual_of(label, i, duals))
        n = _append(n, label, updated_dual(old, gradient, bound, slope), labels, values)
    for e in range(duals.count[i]):
        label = duals.labels[i, e]
        if scores[label] != VISITED:
            old, gradient = max(ZERO, -duals.values[i, e]), slack - scores[label]
            scores[label] = VISITED
            loss += _loss(gradient)
            n = _append(n, label, -updated_dual(old, gradient, bound, slope), labels, values)
    for m in range(near.size):
        j = np.int64(near[m])
        if j >= 0 and kernels[m] > ZERO:
            listed = duals.labels[j]
            for e in range(duals.count[j]):
                label = np.int64(item(listed, e))
                score = item(scores, label)
                set_item(scores, label, ZERO)
                if score > slack:
                    gradient = slack - score
                    loss += _loss(gradient)
                    n = _append(n, label, -updated_dual(ZERO, gradient, bound, slope), labels, values)
    scores[own] = ZERO  # these and the following need not be in a neighbor's list
    scores[duals.labels[i, : duals.count[i]]] = ZERO
    return n, loss


def _work_of_step(rows, near, *_):
    """Two passes over lists that are assumed to have 16 entries."""
    return 32 * len(rows) * near[0].shape[1]


@njit_parallel(work=_work_of_step)
def _new_duals(rows, near, labels, curvature, slack, duals, scores, new, losses):
    """New lists of the rows, (B, W); `duals` stays as it is: all rows see the scores before the step.

    `near` = (neighbors, kernels), `curvature` = (bounds, slopes). Each row of `scores` (parts, L) belongs to a work
    item; they are 0 before and after.
    """
    neighbors, kernels = near
    bounds, slopes = curvature
    count, new_labels, new_values = new.count, new.labels, new.values
    n_rows, n_parts = rows.size, scores.shape[0]
    for part in prange(n_parts):
        for b in range(n_rows * part // n_parts, n_rows * (part + 1) // n_parts):
            i, pair = rows[b], (bounds[b], slopes[b])
            own = labels.indices[labels.indptr[b] : labels.indptr[b + 1]]
            _add_lists(neighbors[i], kernels[i], duals, scores[part])
            count[b], losses[b] = _update(
                i, own, neighbors[i], kernels[i], duals, pair, slack, scores[part], new_labels[b], new_values[b]
            )


def step(rows, neighbors, kernels, labels, row_weights, c, slack, n_labels, duals, losses):
    """Move the dual variables of all `rows` at once, by the scores before, see `neighbor_kernel_step`.

    `duals` changes in place. `losses` (B,) are the rows' losses before, not multiplied by the `row_weights` (B,).
    `labels` are the rows' own.
    """
    n_rows, width = len(rows), duals.labels.shape[1]
    new = PaddedDuals(
        np.empty(n_rows, np.int32), np.zeros((n_rows, width), np.int32), np.zeros((n_rows, width), np.float32)
    )
    bounds, slopes = np.empty(n_rows, np.float32), dual_diagonal(c, row_weights)
    _curvature(rows, neighbors, kernels, damping_factors(row_weights), bounds, slopes)
    scores = zeros((min(PARTS, n_rows), n_labels), np.float32, "cpu")
    _new_duals(rows, (neighbors, kernels), labels, (bounds, slopes), np.float32(slack), duals, scores, new, losses)
    for array, values in zip(duals, new, strict=True):
        array[rows] = values
