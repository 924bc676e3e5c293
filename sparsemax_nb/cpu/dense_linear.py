"""A linear layer over dense features on the CPU: BLAS finds the active pairs, then each label visits its own.

Nearly all of the time is the product. It is computed label by label, (L, B): so one thread reads the scores of a label
in order, and changes its weights at once. The bits do not depend on the number of threads.
"""

import numpy as np
from numba import prange

from ..core.connections import Duals, dual_diagonal, known_pairs
from ..core.device import empty, njit, njit_parallel
from ..core.sparse import by_label
from .feature_choice import count, place
from .matmul import matmul
from .simd import LANES, any_above, fma, inner, item, load, set_item, splat, store

ZERO, ONE, INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
#: Most scores that exist at a time: 64 MiB. Few large blocks: threads that wait for each other take time.
MAX_SCORES = 1 << 24
#: Parts of the labels that threads take; adjacent labels belong to different parts, because frequent labels are often
#: adjacent.
PARTS = 64
#: Score that marks a pair as active.
MARKED = np.float32(3e38)


@njit_parallel(work=lambda scores, *_: scores.size)
def _mark_active(scores, first, own_indptr, own_rows, dual_indptr, dual_rows, thresholds, counts):
    """Mark the rows that have a label or a dual variable for it, and count the rows above each label's threshold."""
    n_labels, n_rows = scores.shape
    for part in prange(PARTS):
        for i in range(part, n_labels, PARTS):
            row_scores, threshold, n = scores[i], thresholds[i], 0
            for j in range(own_indptr[first + i], own_indptr[first + i + 1]):
                row_scores[own_rows[j]] = MARKED
            for j in range(dual_indptr[first + i], dual_indptr[first + i + 1]):
                row_scores[dual_rows[j]] = MARKED
            for row in range(n_rows):
                n += not row_scores[row] <= threshold  # NaN counts: the loss shall show it
            counts[i] = n


@njit_parallel(work=lambda scores, *_: scores.size)
def _list_active(scores, thresholds, starts, rows):
    """List the rows above each label's threshold, ascending, from ``starts[i]`` on."""
    n_labels, n_rows = scores.shape
    flat = scores.reshape(-1)
    for part in prange(PARTS):
        for i in range(part, n_labels, PARTS):
            n, threshold = starts[i], thresholds[i]
            for first in range(0, n_rows, LANES):
                stop = min(first + LANES, n_rows)
                is_part = stop - first < LANES
                if is_part or any_above(load(flat, i * n_rows + first), splat(threshold)):
                    for row in range(first, stop):
                        if not scores[i, row] <= threshold:
                            rows[n] = row
                            n += 1


@njit
def _add_multiple(factor, a, i, b, j, n):
    """``b[j:j + n] += factor * a[i:i + n]``."""
    whole = n - n % LANES
    for k in range(0, whole, LANES):
        store(b, j + k, fma(factor, load(a, i + k), load(b, j + k)))
    for k in range(whole, n):
        set_item(b, j + k, item(b, j + k) + factor * item(a, i + k))


@njit_parallel(work=lambda first, own, old, inputs, slack, weights, bias, pairs: pairs[1].size * weights.shape[1])
def _update(first, own, old, inputs, slack, weights, bias, pairs):
    """One step of each label, from `first` on, over its active rows, ascending.

    `own` is (indptr, rows) and `old` is (indptr, rows, duals), by label; `inputs` is h, the squared norms of its rows
    and their `dual_diagonal`. `pairs` is (starts, rows, duals, losses): the active rows of each label, their new dual
    variables and their losses from before the step, which are written.
    """
    d = weights.shape[1]
    h, squares, diagonal = inputs
    own_indptr, own_rows = own
    old_indptr, old_rows, old_duals = old
    starts, rows, duals, losses = pairs
    flat_h, flat_weights = h.reshape(-1), weights.reshape(-1)
    for part in prange(PARTS):
        for i in range(part, starts.size - 1, PARTS):
            label = first + i
            j, k = np.int64(own_indptr[label]), np.int64(old_indptr[label])
            for p in range(starts[i], starts[i + 1]):
                row = np.int64(rows[p])
                is_own = j < own_indptr[label + 1] and own_rows[j] == row
                has_dual = k < old_indptr[label + 1] and old_rows[k] == row
                before, new, slope = old_duals[k] if has_dual else ZERO, ZERO, diagonal[row]
                j, k = j + is_own, k + has_dual
                score = bias[label] + inner(flat_weights, label * d, flat_h, row * d, d)
                gradient = score - ONE if is_own else slack - ONE - score
                if squares[row] > ZERO and slope < INFINITY:
                    new = max(ZERO, before - (gradient + before * slope) / (squares[row] + slope))
                change = new - before if is_own else before - new
                if change != ZERO:
                    _add_multiple(change, flat_h, row * d, flat_weights, label * d, d)
                duals[p], losses[p] = new, ZERO if gradient >= ZERO else gradient * gradient  # NaN stays


def _transposed(indptr, ids, values, n_columns):
    """(indptr, rows, values) of the columns of a CSR matrix; rows ascend in each column."""
    counts = np.zeros(n_columns, np.int64)
    count(ids, 0, counts)
    ends = np.concatenate([[0], np.cumsum(counts)])
    rows, columns = np.empty(len(ids), np.int32), np.empty(len(ids), np.float32)
    place(indptr, ids, values, 0, 0, ends[:-1].copy(), rows, columns)
    return ends, rows, columns


def _active_pairs(h, own, old, thresholds, weights):
    """(first label, starts, rows) of the active pairs, of one block of labels after the other."""
    n_rows, n_labels = h.shape[0], len(weights)
    size = max(1, min(n_labels, MAX_SCORES // n_rows))
    counts, buffer = np.empty(size, np.int64), empty((size, n_rows), np.float32, "cpu")
    for first in range(0, n_labels, size):
        part = slice(first, min(first + size, n_labels))
        scores = buffer[: part.stop - first]
        matmul(weights[part], h.T, scores)
        _mark_active(scores, first, *own, *old[:2], thresholds[part], counts)
        starts = np.concatenate([[0], np.cumsum(counts[: len(scores)])])
        rows = np.empty(starts[-1], np.int32)
        _list_active(scores, thresholds[part], starts, rows)
        yield first, starts, rows


def step(h, labels, duals, weights, bias, row_weights, c, slack, search=True):
    """One pass of dual coordinate descent over a batch's active pairs; returns the loss before it and the new `Duals`.

    A pair is active if the row has the label, if it has a dual variable, or, with `search`, if its score is above
    ``slack - 1``. Each label visits its active rows in ascending order. `weights` (L, d) change in place. `row_weights`
    is (B,). At most 64 MiB of scores exist at a time.
    """
    (n_rows, n_labels), slack, found = (h.shape[0], bias.shape[0]), np.float32(slack), []
    if not n_rows:
        return 0.0, duals
    own, old = by_label(labels, n_labels), _transposed(*duals, n_labels)
    inputs = h, (h * h).sum(1), dual_diagonal(c, row_weights)
    if search:
        blocks = _active_pairs(h, own, old, slack - ONE - bias, weights)
    else:
        blocks = [(0, *known_pairs(labels, duals, n_labels))]
    for first, starts, rows in blocks:
        values, losses = np.empty((2, len(rows)), np.float32)
        _update(first, own, old, inputs, slack, weights, bias, (starts, rows, values, losses))
        found.append((np.diff(starts), rows, values, losses))
    counts, rows, values, losses = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    is_positive = values > 0
    ends = np.concatenate([[0], np.cumsum(is_positive)])[np.concatenate([[0], np.cumsum(counts)])]
    new = _transposed(ends, rows[is_positive], values[is_positive], n_rows)
    return float((row_weights[rows] * losses.astype(np.float64)).sum()), Duals(*new)
