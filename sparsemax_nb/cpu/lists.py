"""Lists of the best classes and sums of exponentials, joined from ranges of classes; a range, or a block of rows, a thread.

Ranges and blocks are cut by the shapes alone and joined in their order: the bits do not depend on the number of
threads. A range leaves for each row a list of its best classes, its largest score m and the sum of ``exp(score - m)``:
no (B, L) array exists.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from ..core.device import empty, njit, njit_parallel
from .exp import LANES as SIDE_BY_SIDE
from .exp import exp, exp_nonpositive, largest_of, sum_exp
from .panels import ROWS, pack, padded, product
from .simd import LANES, add, any_above, load, splat
from .top_k import LISTED, MAX_ELEMENTS, WORST, enters, insert, select

LOWEST, ZERO = np.finfo(np.float32).min, np.float32(0)
#: Rows of a block, and panels whose scores for them exist at a time: 128 KiB, in the L2 cache.
BLOCK, CHUNK = 64, 32
#: Rows of a block and panels of a range in a product whose scores all exist.
PRODUCT_ROWS, PRODUCT_PANELS = 16, 128
#: Parts of the work - ranges of blocks - where there are enough of them. Every range warms up a list of its own.
PARTS = 16


class Lists(NamedTuple):
    """What S ranges of classes leave for B rows."""

    scores: np.ndarray  # (S, B, k) float32
    ids: np.ndarray  # (S, B, k) int32
    sums: np.ndarray  # (S, B, 2) float32: the largest score, the sum of exp(score - largest)


def pack_classes(w, bias):
    """Panels of the rows of w (L, d), and their bias; classes that fill up the last panel have the bias -infinity."""
    packed = pack(w.T)
    filled = np.full(len(packed) * LANES, WORST, np.float32)
    filled[: len(bias)] = bias
    return packed, filled


def n_blocks(n_rows):
    """How many blocks the rows are cut into."""
    return -(-n_rows // BLOCK)


def n_ranges(n_blocks, n_panels, k):
    """How many ranges the classes are cut into: enough for the threads, and lists of 8 k classes and more."""
    return max(1, min(-(-PARTS // max(1, n_blocks)), n_panels, n_panels * LANES // (8 * k)))


def empty_lists(n_ranges, n_rows, k):
    """Lists that are still to be written."""
    shape = n_ranges, n_rows
    return Lists(np.empty((*shape, k), np.float32), np.empty((*shape, k), np.int32), np.empty((*shape, 2), np.float32))


@njit
def _clear(best, ids, sums):
    best[:], ids[:] = WORST, -1
    sums[0], sums[1] = LOWEST, ZERO


@njit
def _take(scores, bias, first, best, ids, sums, lanes):
    """Take scores + bias of the classes first, first + 1, ... (a multiple of 16) into a row's list and its sum.

    A class enters where it beats the last of the list; of 16 classes, none is looked at where none does.
    """
    new = largest_of(scores, bias, sums[0], lanes)
    sums[1] = sums[1] * exp(sums[0] - new) + sum_exp(scores, bias, new, lanes)
    sums[0] = new
    worst = best[best.size - 1]
    for start in range(0, scores.size, LANES):
        if any_above(add(load(scores, start), load(bias, start)), splat(worst)):
            for j in range(start, start + LANES):
                score = scores[j] + bias[j]
                if not score <= worst and enters(score, first + j, best, ids):
                    insert(best, ids, score, first + j)
                    worst = best[best.size - 1]


@njit
def _of_range(x, panels, bias, first_row, n_rows, start, stop, best, ids, sums):
    """The lists of some rows and the panels from `start` to `stop`; x is flat."""
    scores, lanes = np.empty(padded(n_rows, ROWS) * CHUNK * LANES, np.float32), np.empty(SIDE_BY_SIDE, np.float32)
    for row in range(first_row, first_row + n_rows):
        _clear(best[row], ids[row], sums[row])
    for p in range(start, stop, CHUNK):
        q = min(p + CHUNK, stop)
        product(x, first_row * panels.shape[1], n_rows, panels[p:q], scores)
        width = (q - p) * LANES
        for i in range(n_rows):
            row = first_row + i
            some = scores[i * width : (i + 1) * width]
            _take(some, bias[p * LANES : q * LANES], p * LANES, best[row], ids[row], sums[row], lanes)


@njit_parallel(work=lambda x, panels, *_: panels.size * -(-len(x) // LANES))
def of_panels(x, panels, bias, scores, ids, sums):
    """The lists of ``x @ matrix + bias``, x (B, K); bias (N,) is -infinity where the last panel is filled up."""
    n_rows, n_ranges, n_panels, flat = x.shape[0], scores.shape[0], panels.shape[0], x.reshape(-1)
    for part in prange((n_rows + BLOCK - 1) // BLOCK * n_ranges):
        first, s = part // n_ranges * BLOCK, part % n_ranges
        start, stop = n_panels * s // n_ranges, n_panels * (s + 1) // n_ranges
        n = min(BLOCK, n_rows - first)
        _of_range(flat, panels, bias, first, n, start, stop, scores[s], ids[s], sums[s])


@njit
def _of_row(row, start, stop, best, ids, sums):
    _clear(best, ids, sums)
    lanes, bias = np.empty(SIDE_BY_SIDE, np.float32), np.zeros(CHUNK * LANES, np.float32)
    for i in range(start, stop, CHUNK * LANES):
        some = row[i : min(i + CHUNK * LANES, stop)]
        _take(some, bias[: some.size], i, best, ids, sums, lanes)


@njit_parallel
def of_scores(rows, scores, ids, sums):
    """The lists of score rows (B, N), N a multiple of 16; a number that stands for no class is -infinity."""
    n_ranges, n_panels = scores.shape[0], rows.shape[1] // LANES
    for part in prange(rows.shape[0] * n_ranges):
        b, s = part // n_ranges, part % n_ranges
        start, stop = n_panels * s // n_ranges * LANES, n_panels * (s + 1) // n_ranges * LANES
        _of_row(rows[b], start, stop, scores[s, b], ids[s, b], sums[s, b])


@njit
def _join_row(scores, ids, sums, probabilities, top_ids):
    probabilities[:], top_ids[:] = WORST, -1
    most, total = LOWEST, ZERO
    for s in range(scores.shape[0]):
        most = max(most, sums[s, 0])
        for i in range(scores.shape[1]):
            if ids[s, i] < 0 or not enters(scores[s, i], ids[s, i], probabilities, top_ids):
                break
            insert(probabilities, top_ids, scores[s, i], ids[s, i])
    for s in range(scores.shape[0]):
        total += sums[s, 1] * exp_nonpositive(sums[s, 0] - most)
    for i in range(top_ids.size):
        probabilities[i] = exp_nonpositive(probabilities[i] - most) / total


@njit_parallel
def join(scores, ids, sums, probabilities, top_ids):
    """The best of all lists of each row, and their probabilities: (S, B, k) -> (B, k)."""
    for b in prange(top_ids.shape[0]):
        _join_row(scores[:, b], ids[:, b], sums[:, b], probabilities[b], top_ids[b])


# ---------------------------------------------------------------- many of the best, from rows of scores


@njit
def _sum(a, b, out):
    for j in range(out.size):
        out[j] = a[j] + b[j]


@njit
def _affine_of_range(x, panels, bias, first, n_rows, start, stop, out):
    width, n_terms = (stop - start) * LANES, panels.shape[1]
    sums = np.empty(padded(n_rows, ROWS) * width, np.float32)
    product(x, first * n_terms, n_rows, panels[start:stop], sums)
    left, right = start * LANES, min(stop * LANES, out.shape[1])
    for i in range(n_rows):
        _sum(sums[i * width : (i + 1) * width], bias[left:right], out[first + i, left:right])


@njit_parallel(work=lambda x, panels, *_: panels.size * -(-len(x) // LANES))
def affine(x, panels, bias, out):
    """``out = x @ matrix + bias`` from the panels of a matrix; its last columns may be left out."""
    n_rows, n_panels, flat = x.shape[0], panels.shape[0], x.reshape(-1)
    n_ranges = (n_panels + PRODUCT_PANELS - 1) // PRODUCT_PANELS
    for part in prange((n_rows + PRODUCT_ROWS - 1) // PRODUCT_ROWS * n_ranges):
        first, start = part // n_ranges * PRODUCT_ROWS, part % n_ranges * PRODUCT_PANELS
        n, stop = min(PRODUCT_ROWS, n_rows - first), min(start + PRODUCT_PANELS, n_panels)
        _affine_of_range(flat, panels, bias, first, n, start, stop, out)


@njit
def _best_of_row(row, bias, probabilities, top_ids):
    lanes = np.empty(SIDE_BY_SIDE, np.float32)
    select(row, probabilities, top_ids)
    most = largest_of(row, bias, LOWEST, lanes)
    total = sum_exp(row, bias, most, lanes)
    for i in range(top_ids.size):
        probabilities[i] = exp_nonpositive(probabilities[i] - most) / total


@njit_parallel
def best_of_rows(rows, probabilities, top_ids):
    """The k best of score rows (B, N), by sorting, and their probabilities, (B, k); as `of_scores` and `join` for any k."""
    bias = np.zeros(rows.shape[1], np.float32)
    for b in prange(rows.shape[0]):
        _best_of_row(rows[b], bias, probabilities[b], top_ids[b])


def top_k(x, panels, bias, probabilities, top_ids):
    """The k largest of ``softmax(x @ matrix + bias)`` in each row and their columns: by lists for small k, else from score rows.

    Of these at most 64 MiB exist at a time, or one row where that is more.
    """
    n_rows, k = top_ids.shape
    if k <= LISTED:
        parts = empty_lists(n_ranges(n_blocks(n_rows), len(panels), k), n_rows, k)
        of_panels(x, panels, bias, *parts)
        join(*parts, probabilities, top_ids)
        return
    at_once = max(1, min(n_rows, MAX_ELEMENTS // len(bias)))
    scores = empty((at_once, len(bias)), np.float32, "cpu")
    for first in range(0, n_rows, at_once):
        some = slice(first, first + at_once)
        rows = scores[: len(x[some])]
        affine(x[some], panels, bias, rows)
        best_of_rows(rows, probabilities[some], top_ids[some])
