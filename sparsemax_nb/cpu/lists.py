"""Lists of the best classes and sums of exponentials, computed for ranges of classes in parallel, then joined.

A range yields, for each row, a list of its best classes, its largest score m and the sum of ``exp(score - m)``: no (B,
L) array exists. Ranges, and blocks of rows, depend on the shapes alone and are joined in order: the bits do not depend
on the number of threads.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from ..core.device import empty, njit, njit_parallel
from .exp import ACCUMULATORS, exp, exp_nonpositive, largest_of, sum_exp
from .panels import ROWS, pack, padded, product
from .simd import LANES, add, any_above, load, splat
from .top_k import MAX_ELEMENTS, MAX_LISTED, WORST, beats_worst, insert, select

LOWEST, ZERO = np.finfo(np.float32).min, np.float32(0)
#: Rows per block, and panels per block whose scores exist at a time: 128 KiB, in the L2 cache.
BLOCK, CHUNK = 64, 32
#: Rows and panels per work item of `affine`, whose output is stored as a whole.
PRODUCT_ROWS, PRODUCT_PANELS = 16, 128
#: Least number of work items (ranges x blocks of rows). Not more ranges than needed: each fills a list of its own.
PARTS = 16


class Lists(NamedTuple):
    """The results of S ranges of classes for B rows."""

    scores: np.ndarray  # (S, B, k) float32
    ids: np.ndarray  # (S, B, k) int32
    sums: np.ndarray  # (S, B, 2) float32: the largest score, the sum of exp(score - largest)


def pack_classes(weights, bias):
    """Panels of the rows of weights (L, d), and their bias, -infinity in the padding of the last panel."""
    packed = pack(weights.T)
    padded_bias = np.full(len(packed) * LANES, WORST, np.float32)
    padded_bias[: len(bias)] = bias
    return packed, padded_bias


def n_blocks(n_rows):
    """The number of blocks of rows."""
    return -(-n_rows // BLOCK)


def n_ranges(n_blocks, n_panels, k):
    """The number of ranges of classes: enough for all threads, but at least 8 k classes each."""
    return max(1, min(-(-PARTS // max(1, n_blocks)), n_panels, n_panels * LANES // (8 * k)))


def empty_lists(n_ranges, n_rows, k):
    """Uninitialized lists."""
    shape = n_ranges, n_rows
    return Lists(np.empty((*shape, k), np.float32), np.empty((*shape, k), np.int32), np.empty((*shape, 2), np.float32))


@njit
def _clear(best, ids, sums):
    best[:], ids[:] = WORST, -1
    sums[0], sums[1] = LOWEST, ZERO


@njit
def _add_scores(scores, bias, first, best, ids, sums, lanes):
    """Add scores + bias of the classes first, first + 1, ... (a multiple of 16) to a row's list and its sum.

    Groups of 16 classes that do not beat the worst entry of the list are skipped.
    """
    new = largest_of(scores, bias, sums[0], lanes)
    sums[1] = sums[1] * exp(sums[0] - new) + sum_exp(scores, bias, new, lanes)
    sums[0] = new
    worst = best[best.size - 1]
    for start in range(0, scores.size, LANES):
        if any_above(add(load(scores, start), load(bias, start)), splat(worst)):
            for j in range(start, start + LANES):
                score = scores[j] + bias[j]
                if not score <= worst and beats_worst(score, first + j, best, ids):
                    insert(best, ids, score, first + j)
                    worst = best[best.size - 1]


@njit
def _lists_of_range(x, panels, bias, first_row, n_rows, start, stop, best, ids, sums):
    """The lists of n_rows rows and the panels from `start` to `stop`; x is flat."""
    scores, lanes = np.empty(padded(n_rows, ROWS) * CHUNK * LANES, np.float32), np.empty(ACCUMULATORS, np.float32)
    for row in range(first_row, first_row + n_rows):
        _clear(best[row], ids[row], sums[row])
    for p in range(start, stop, CHUNK):
        q = min(p + CHUNK, stop)
        product(x, first_row * panels.shape[1], n_rows, panels[p:q], scores)
        width = (q - p) * LANES
        for i in range(n_rows):
            row = first_row + i
            row_scores = scores[i * width : (i + 1) * width]
            _add_scores(row_scores, bias[p * LANES : q * LANES], p * LANES, best[row], ids[row], sums[row], lanes)


@njit_parallel(work=lambda x, panels, *_: panels.size * -(-len(x) // LANES))
def of_panels(x, panels, bias, scores, ids, sums):
    """The lists of ``x @ matrix + bias``, x (B, K); bias (N,) is -infinity in the padding of the last panel."""
    n_rows, n_ranges, n_panels, flat = x.shape[0], scores.shape[0], panels.shape[0], x.reshape(-1)
    for part in prange((n_rows + BLOCK - 1) // BLOCK * n_ranges):
        first, s = part // n_ranges * BLOCK, part % n_ranges
        start, stop = n_panels * s // n_ranges, n_panels * (s + 1) // n_ranges
        n = min(BLOCK, n_rows - first)
        _lists_of_range(flat, panels, bias, first, n, start, stop, scores[s], ids[s], sums[s])


@njit
def _lists_of_row(row, start, stop, best, ids, sums):
    _clear(best, ids, sums)
    lanes, bias = np.empty(ACCUMULATORS, np.float32), np.zeros(CHUNK * LANES, np.float32)
    for i in range(start, stop, CHUNK * LANES):
        part = row[i : min(i + CHUNK * LANES, stop)]
        _add_scores(part, bias[: part.size], i, best, ids, sums, lanes)


@njit_parallel
def of_scores(rows, scores, ids, sums):
    """The lists of score rows (B, N), N a multiple of 16; padding must be -infinity."""
    n_ranges, n_panels = scores.shape[0], rows.shape[1] // LANES
    for part in prange(rows.shape[0] * n_ranges):
        b, s = part // n_ranges, part % n_ranges
        start, stop = n_panels * s // n_ranges * LANES, n_panels * (s + 1) // n_ranges * LANES
        _lists_of_row(rows[b], start, stop, scores[s, b], ids[s, b], sums[s, b])


@njit
def _join_row(scores, ids, sums, probabilities, top_ids):
    probabilities[:], top_ids[:] = WORST, -1
    largest, total = LOWEST, ZERO
    for s in range(scores.shape[0]):
        largest = max(largest, sums[s, 0])
        for i in range(scores.shape[1]):
            if ids[s, i] < 0 or not beats_worst(scores[s, i], ids[s, i], probabilities, top_ids):
                break
            insert(probabilities, top_ids, scores[s, i], ids[s, i])
    for s in range(scores.shape[0]):
        total += sums[s, 1] * exp_nonpositive(sums[s, 0] - largest)
    for i in range(top_ids.size):
        probabilities[i] = exp_nonpositive(probabilities[i] - largest) / total


@njit_parallel
def join(scores, ids, sums, probabilities, top_ids):
    """The best of all lists of each row, and their probabilities: (S, B, k) -> (B, k)."""
    for b in prange(top_ids.shape[0]):
        _join_row(scores[:, b], ids[:, b], sums[:, b], probabilities[b], top_ids[b])


# ---------------------------------------------------------------- large k, from rows of scores


@njit
def _add(a, b, out):
    for j in range(out.size):
        out[j] = a[j] + b[j]


@njit
def _affine_of_range(x, panels, bias, first, n_rows, start, stop, out):
    width, n_terms = (stop - start) * LANES, panels.shape[1]
    sums = np.empty(padded(n_rows, ROWS) * width, np.float32)
    product(x, first * n_terms, n_rows, panels[start:stop], sums)
    left, right = start * LANES, min(stop * LANES, out.shape[1])
    for i in range(n_rows):
        _add(sums[i * width : (i + 1) * width], bias[left:right], out[first + i, left:right])


@njit_parallel(work=lambda x, panels, *_: panels.size * -(-len(x) // LANES))
def affine(x, panels, bias, out):
    """``out = x @ matrix + bias`` from the panels of a matrix; `out` may lack its last columns."""
    n_rows, n_panels, flat = x.shape[0], panels.shape[0], x.reshape(-1)
    n_ranges = (n_panels + PRODUCT_PANELS - 1) // PRODUCT_PANELS
    for part in prange((n_rows + PRODUCT_ROWS - 1) // PRODUCT_ROWS * n_ranges):
        first, start = part // n_ranges * PRODUCT_ROWS, part % n_ranges * PRODUCT_PANELS
        n, stop = min(PRODUCT_ROWS, n_rows - first), min(start + PRODUCT_PANELS, n_panels)
        _affine_of_range(flat, panels, bias, first, n, start, stop, out)


@njit
def _best_of_row(row, bias, probabilities, top_ids):
    lanes = np.empty(ACCUMULATORS, np.float32)
    select(row, probabilities, top_ids)
    largest = largest_of(row, bias, LOWEST, lanes)
    total = sum_exp(row, bias, largest, lanes)
    for i in range(top_ids.size):
        probabilities[i] = exp_nonpositive(probabilities[i] - largest) / total


@njit_parallel
def best_of_rows(rows, probabilities, top_ids):
    """The k best of score rows (B, N), by sorting, and their probabilities, (B, k); efficient for large k."""
    bias = np.zeros(rows.shape[1], np.float32)
    for b in prange(rows.shape[0]):
        _best_of_row(rows[b], bias, probabilities[b], top_ids[b])


def top_k(x, panels, bias, probabilities, top_ids):
    """The k largest of ``softmax(x @ matrix + bias)`` per row and their columns.

    Small k use lists. Large k are sorted from rows of scores, at most 64 MiB at a time (or one row, if that is more).
    """
    n_rows, k = top_ids.shape
    if k <= MAX_LISTED:
        parts = empty_lists(n_ranges(n_blocks(n_rows), len(panels), k), n_rows, k)
        of_panels(x, panels, bias, *parts)
        join(*parts, probabilities, top_ids)
        return
    rows_per_chunk = max(1, min(n_rows, MAX_ELEMENTS // len(bias)))
    scores = empty((rows_per_chunk, len(bias)), np.float32, "cpu")
    for first in range(0, n_rows, rows_per_chunk):
        part = slice(first, first + rows_per_chunk)
        rows = scores[: len(x[part])]
        affine(x[part], panels, bias, rows)
        best_of_rows(rows, probabilities[part], top_ids[part])
