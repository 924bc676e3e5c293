"""A linear layer over dense features on CUDA: cuBLAS finds the active pairs, one block per label visits its own."""

import numpy as np
from numba import float32, int32

from ..core.connections import dual_diagonal, known_pairs, positive_duals
from ..core.device import asarray, cuda, cuda_jit, empty, xp
from ..core.sparse import by_label, row_of_each_entry
from . import launch
from .matmul import matmul
from .reduce import block_prefix_sum, block_sum

ZERO, ONE, INFINITY, NONE = np.float32(0), np.float32(1), np.float32(np.inf), np.int32(0)
#: Most scores that exist at a time: 64 MiB.
MAX_SCORES = 1 << 24
#: Score that marks a pair as active.
MARKED = np.float32(3e38)
#: Threads per block: most labels have few active rows, and a row has a few hundred features.
BLOCK = 64


@cuda_jit
def mark_active_kernel(scores, first, own, old, thresholds, counts):
    """One block owns one label, first + i: it marks the rows that have the label, or a dual variable for it.

    Then it counts the rows above the label's threshold. Grid: labels of scores (T, B) on x; block a power of two. own =
    (indptr, rows), old = (indptr, rows, duals), by label. Writes scores at the marked rows, which are scattered; reads
    all of them coalesced; writes counts (T,). Shared memory: 4 bytes per thread. No atomics.
    """
    shared = cuda.shared.array(0, int32)
    i, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    label, n = first + i, NONE
    for j in range(own[0][label] + thread, own[0][label + 1], n_threads):
        scores[i, own[1][j]] = MARKED
    cuda.syncthreads()  # a row may be in both lists
    for j in range(old[0][label] + thread, old[0][label + 1], n_threads):
        scores[i, old[1][j]] = MARKED
    cuda.syncthreads()
    for row in range(thread, scores.shape[1], n_threads):
        n += np.int32(not scores[i, row] <= thresholds[label])  # NaN counts: the loss shall show it
    n = block_sum(shared, n)
    if thread == 0:
        counts[i] = n


@cuda_jit
def list_active_kernel(scores, first, thresholds, starts, rows):
    """One block owns one label, first + i, and lists the rows above its threshold, ascending, from starts[i] on.

    Grid: labels of scores (T, B) on x; block a power of two. Reads scores coalesced, only of labels that have active
    rows; writes rows (n,). Shared memory: 4 bytes per thread for the prefix sums. No atomics.
    """
    shared = cuda.shared.array(0, int32)
    i, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    start, n_rows = starts[i], scores.shape[1]
    if start < starts[i + 1]:
        for row in range(thread, n_rows + thread, n_threads):  # all threads take part in the sums
            is_active = row < n_rows and not scores[i, row] <= thresholds[first + i]
            place, total = block_prefix_sum(shared, np.int32(is_active))
            if is_active:
                rows[start + place - 1] = row
            start += total


@cuda_jit
def update_kernel(first, own, old, inputs, slack, weights, bias, pairs):
    """One block owns one label, first + i: it updates the weights of the label over its active rows, ascending.

    Grid: labels on x; block a power of two. own = (indptr, rows) and old = (indptr, rows, duals), by label; inputs = (h
    (B, d), squared norms (B,), diagonal (B,)); pairs = (starts (T + 1,), rows, duals, losses), (n,) each, of which it
    writes the last two. If the diagonal of a row is infinite, its duals become 0. A thread owns every blockDim.x-th
    feature of weights (L, d), so that it reads what it has written itself. Shared memory: 4 bytes per thread for the
    dot products, which are added in a fixed order. No atomics.
    """
    shared = cuda.shared.array(0, float32)
    i, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    h, squares, diagonal = inputs
    starts, rows, duals, losses = pairs
    label = first + i
    j, k = np.int64(own[0][label]), np.int64(old[0][label])
    for p in range(starts[i], starts[i + 1]):
        row, score, before, new = rows[p], ZERO, ZERO, ZERO
        is_own = j < own[0][label + 1] and own[1][j] == row
        if is_own:
            j += 1
        if k < old[0][label + 1] and old[1][k] == row:
            before = old[2][k]
            k += 1
        for f in range(thread, h.shape[1], n_threads):
            score += weights[label, f] * h[row, f]
        score = block_sum(shared, score) + bias[label]
        slope, gradient = diagonal[row], score - ONE if is_own else slack - ONE - score
        if squares[row] > ZERO and slope < INFINITY:
            new = max(ZERO, before - (gradient + before * slope) / (squares[row] + slope))
        change = new - before if is_own else before - new
        if change != ZERO:
            for f in range(thread, h.shape[1], n_threads):
                weights[label, f] += change * h[row, f]
        if thread == 0:
            duals[p] = new
            losses[p] = ZERO if gradient >= ZERO else gradient * gradient  # NaN stays


def _mark_active(scores, first, own, old, thresholds, counts, *, block=BLOCK):
    """Launches `mark_active_kernel`."""
    shared = launch.shared_bytes(4 * block)
    mark_active_kernel[scores.shape[0], block, 0, shared](scores, np.int64(first), own, old, thresholds, counts)


def _list_active(scores, first, thresholds, starts, rows, *, block=BLOCK):
    """Launches `list_active_kernel`."""
    shared = launch.shared_bytes(4 * block)
    list_active_kernel[scores.shape[0], block, 0, shared](scores, np.int64(first), thresholds, starts, rows)


def _update(first, own, old, inputs, slack, weights, bias, pairs, *, block=BLOCK):
    """Launches `update_kernel`."""
    grid, shared = pairs[0].shape[0] - 1, launch.shared_bytes(4 * block)
    update_kernel[grid, block, 0, shared](np.int64(first), own, old, inputs, np.float32(slack), weights, bias, pairs)


def _duals_by_label(duals, n_labels):
    """(indptr, rows, values) of `Duals`, label by label; rows ascend."""
    rows = row_of_each_entry(duals.indptr, duals.labels.shape[0])
    order = xp.argsort(duals.labels.astype(np.int64) * (duals.indptr.shape[0] - 1) + rows)
    counts = xp.bincount(duals.labels, minlength=n_labels)
    indptr = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(counts)])
    arrays = (indptr, np.int64), (rows[order], np.int32), (duals.values[order], np.float32)
    return tuple(asarray(array, "cuda", dtype) for array, dtype in arrays)


def _active_pairs(h, own, old, thresholds, weights):
    """(first label, starts, rows) of the active pairs, of one block of labels after the other."""
    n_rows, n_labels = h.shape[0], weights.shape[0]
    size = max(1, min(n_labels, MAX_SCORES // n_rows))
    buffer = empty((size, n_rows), np.float32, "cuda")
    for first in range(0, n_labels, size):
        part = slice(first, min(first + size, n_labels))
        scores, counts = buffer[: part.stop - first], empty(part.stop - first, np.int32, "cuda")
        matmul(weights[part], h.T, scores)
        _mark_active(scores, first, own, old, thresholds, counts)
        starts = asarray(xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(counts, dtype=np.int64)]), "cuda")
        rows = empty(int(starts[-1]), np.int32, "cuda")
        _list_active(scores, first, thresholds, starts, rows)
        yield first, starts, rows


def step(h, labels, duals, weights, bias, row_weights, c, slack, search=True):
    """One pass of dual coordinate descent over a batch's active pairs; returns the loss before it and the new `Duals`.

    A pair is active if the row has the label, if it has a dual variable, or, with `search`, if its score is above
    ``slack - 1``. Each label visits its active rows in ascending order. `weights` (L, d) change in place. `row_weights`
    is (B,). At most 64 MiB of scores exist at a time.
    """
    n_rows, n_labels, found = h.shape[0], bias.shape[0], []
    if not n_rows:
        return 0.0, duals
    own, old = by_label(labels, n_labels), _duals_by_label(duals, n_labels)
    inputs = tuple(asarray(a, "cuda") for a in (h, (h * h).sum(1), dual_diagonal(c, row_weights)))
    if search:
        blocks = _active_pairs(h, own, old, asarray(np.float32(slack - 1) - bias, "cuda"), weights)
    else:
        blocks = [(0, *known_pairs(labels, duals, n_labels))]
    for first, starts, rows in blocks:
        values, losses = (empty(len(rows), np.float32, "cuda") for _ in range(2))
        _update(first, own, old, inputs, slack, weights, bias, (starts, rows, values, losses))
        found.append((row_of_each_entry(starts, len(rows)) + first, rows, values, losses))
    pair_labels, rows, values, losses = (xp.concatenate(arrays) for arrays in zip(*found, strict=True))
    new = positive_duals(rows, pair_labels, asarray(values, "cuda"), n_rows, n_labels)
    return float((row_weights[rows] * losses.astype(np.float64)).sum()), new
