"""The k best of each row of a score matrix on the CPU: by insertion into a list of k, or for many by a radix sort."""

import numba
import numpy as np
from numba import prange

from ..core import formulas
from ..core.device import cpu_formulas, empty, njit, njit_parallel
from .simd import LANES

_f = cpu_formulas(formulas)
enters, insert = _f.enters, _f.insert
WORST = np.float32(-np.inf)
#: Most entries of a row's list that is kept in order by insertion, whose cost grows with their square; and of lists of
#: several ranges of labels, each of which fills up anew. `select` finds more from whole rows of scores, at a cost that
#: hardly grows with k. From k = 10 (several lists) and 40 to 170 (one) on it is faster; but lists need no memory for
#: the scores.
INSERTED, LISTED = 64, 32
#: Scores that exist at once where `select` is to find the best: 64 MiB.
MAX_ELEMENTS = 1 << 24
#: Bits of a digit of the radix sort: its counts, 8 KiB, stay in the L1 cache. Three digits make 32 bits.
DIGIT = 11
BINS = 1 << DIGIT
MASK, MINUS, SIGN, NAN_KEY = np.uint32(BINS - 1), np.uint32(0xFFFFFFFF), np.uint32(1 << 31), np.uint32(0)
HIGH, LOW = np.uint32(2 * DIGIT), np.uint32(DIGIT)


@njit
def _keys(scores, keys):
    """For each score an integer that ascends from the best to the worst: NaN 0, +infinity the next; 0 and -0 are equal."""
    bits = scores.view(np.uint32)
    for i in range(scores.size):
        b = bits[i] if scores[i] != 0 else np.uint32(0)
        descending = b if b & SIGN else b ^ (MINUS ^ SIGN)
        keys[i] = NAN_KEY if scores[i] != scores[i] else descending


@njit
def _count(keys, shift, counts):
    counts[:] = 0
    for i in range(keys.size):
        counts[(keys[i] >> shift) & MASK] += 1


@njit
def _sort_by_digit(keys, ids, shift, counts, sorted_keys, sorted_ids):
    """One pass: by the digit at `shift`; what is equal in it keeps its order. `counts` are those of the digit, and spoiled."""
    start = 0
    for digit in range(counts.size):
        n = counts[digit]
        counts[digit] = start
        start += n
    for i in range(keys.size):
        digit = (keys[i] >> shift) & MASK
        place = counts[digit]
        counts[digit] = place + 1
        sorted_keys[place], sorted_ids[place] = keys[i], ids[i]


@njit
def select(scores, top_scores, top_ids):
    """The best of a row of scores: score descending, then index ascending; NaN first; -infinity and -1 where there are fewer.

    The highest digit tells which scores may be among the k best; these are sorted, digit by digit from the lowest,
    which keeps equal ones in their order. Scratch: 4 bytes a score, 16 bytes for each one that is sorted.
    """
    n, k, counts = scores.size, min(top_ids.size, scores.size), np.empty(BINS, np.int64)
    keys = np.empty(n, np.uint32)
    _keys(scores, keys)
    _count(keys, HIGH, counts)
    last, size = 0, 0
    while last < BINS and size < k:
        size += counts[last]
        last += 1
    some, ids = np.empty((2, size + 1), np.uint32), np.empty((2, size + 1), np.int32)
    found = 0
    for i in range(n):  # without a branch: what is not taken is overwritten by the next
        some[0, found], ids[0, found] = keys[i], i
        found += np.int64(keys[i] >> HIGH) < last
    a, b, i, j = some[0, :size], some[1, :size], ids[0, :size], ids[1, :size]
    for shift in (np.uint32(0), LOW, HIGH):
        _count(a, shift, counts)
        _sort_by_digit(a, i, shift, counts, b, j)
        a, b, i, j = b, a, j, i
    for m in range(k):
        score = scores[i[m]]
        top_scores[m], top_ids[m] = score, i[m] if score != WORST else -1
    top_scores[k:], top_ids[k:] = WORST, -1


@njit
def _insert_all(scores, top_scores, top_ids):
    top_scores[:], top_ids[:] = WORST, -1
    worst = WORST
    for i in range(scores.size):
        if not scores[i] <= worst and enters(scores[i], i, top_scores, top_ids):
            insert(top_scores, top_ids, scores[i], i)
            worst = top_scores[top_scores.size - 1]


@njit_parallel
def top_k(scores, top_scores, top_ids):
    """The k largest scores of each row (B, L) and their columns; k is the width of the outputs."""
    few = top_scores.shape[1] <= INSERTED
    for row in prange(scores.shape[0]):
        if few:
            _insert_all(scores[row], top_scores[row], top_ids[row])
        else:
            select(scores[row], top_scores[row], top_ids[row])


def rows_at_once(n_rows, n_labels):
    """How many rows of scores exist at once: 64 MiB, whole blocks of 16 rows where these fit."""
    n = max(1, min(n_rows, MAX_ELEMENTS // n_labels))
    return n if n in (1, n_rows) or n < LANES else n // LANES * LANES


def of_layer(forward, x, layer, top_scores, top_ids):
    """The k largest of the scores that ``forward(x, layer, scores)`` gives, and their labels; some rows at a time."""
    n_rows, n_labels = len(x), len(layer.bias)
    at_once = rows_at_once(n_rows, n_labels)
    scores = empty((at_once, n_labels), np.float32, "cpu")
    for first in range(0, n_rows, at_once):
        some = slice(first, first + at_once)
        part = scores[: len(x[some])]
        forward(x[some], layer, part)
        top_k(part, top_scores[some], top_ids[some])


def shapes_of_layer(n_rows, n_inputs, n_labels):
    """{name: (shape, dtype)} of what `of_layer` and a `forward` with inputs in blocks of 16 rows allocate."""
    at_once = rows_at_once(n_rows, n_labels)
    return {
        "blocks": ((-(-at_once // LANES), n_inputs * LANES), np.float32),
        "scores": ((at_once, n_labels), np.float32),
        "keys and labels, sorted": ((min(at_once, numba.get_num_threads()), 5, n_labels), np.float32),
    }
