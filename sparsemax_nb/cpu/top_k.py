"""The k best of each row of a score matrix on the CPU: insertion into a list of k, or for large k a radix sort."""

import numba
import numpy as np
from numba import prange

from ..core import formulas
from ..core.device import cpu_formulas, empty, njit, njit_parallel
from .simd import LANES

_f = cpu_formulas(formulas)
beats_worst, insert = _f.beats_worst, _f.insert
WORST = np.float32(-np.inf)
#: Largest k for one list per row, kept sorted by insertion, whose cost grows with k^2; and for several lists per row,
#: one for each range of labels, which all have to fill up. Above, `select` sorts whole rows of scores at a cost that
#: hardly grows with k. It is faster from k = 10 (several lists) and 10 to 50 (one list) on, but lists need no memory
#: for the scores.
MAX_INSERTED, MAX_LISTED = 64, 32
#: Most scores in memory for `select`: 64 MiB.
MAX_ELEMENTS = 1 << 24
#: Bits per digit of the radix sort: the 8 KiB of counts stay in the L1 cache. Three digits make 32 bits.
DIGIT = 11
BINS = 1 << DIGIT
MASK, ALL_BITS, SIGN, NAN_KEY = np.uint32(BINS - 1), np.uint32(0xFFFFFFFF), np.uint32(1 << 31), np.uint32(0)
HIGH, LOW = np.uint32(2 * DIGIT), np.uint32(DIGIT)
#: Groups of scores per result, of which the lowest keys limit what is sorted; and least scores per group for that.
GROUPS, MIN_ROUNDS = 8, 8


@njit
def _keys(scores, keys):
    """An integer per score that ascends from best to worst: NaN is 0, then +infinity; 0 and -0 are equal."""
    bits = scores.view(np.uint32)
    for i in range(scores.size):
        b = bits[i] if scores[i] != 0 else np.uint32(0)
        descending = b if b & SIGN else b ^ (ALL_BITS ^ SIGN)
        keys[i] = NAN_KEY if scores[i] != scores[i] else descending


@njit
def _count(keys, shift, counts):
    counts[:] = 0
    for i in range(keys.size):
        counts[(keys[i] >> shift) & MASK] += 1


@njit
def _sort_by_digit(keys, ids, shift, counts, sorted_keys, sorted_ids):
    """One stable pass of the radix sort, by the digit at `shift`; `counts` are that digit's, and are overwritten."""
    start = 0
    for digit in range(counts.size):
        n = counts[digit]
        counts[digit] = start
        start += n
    for i in range(keys.size):
        digit = (keys[i] >> shift) & MASK
        slot = counts[digit]
        counts[digit] = slot + 1
        sorted_keys[slot], sorted_ids[slot] = keys[i], ids[i]


@njit
def _within_limit(keys, k):
    """Keys among which are the k lowest, and their indices, (2, n + 1) each, the second row empty; and n.

    The keys are divided into groups: every `n_groups`-th belongs to the same one. The k-th lowest of the groups' lowest
    keys is a limit that at least k keys do not exceed, usually hardly more; only groups that reach it are read again.
    """
    n_groups, n_rounds = GROUPS * k, keys.size // (GROUPS * k)
    lowest = keys[:n_groups].copy()
    for r in range(1, n_rounds):
        part = keys[r * n_groups : (r + 1) * n_groups]
        for g in range(n_groups):
            lowest[g] = min(lowest[g], part[g])
    for i in range(n_rounds * n_groups, keys.size):
        lowest[i - n_rounds * n_groups] = min(lowest[i - n_rounds * n_groups], keys[i])
    limit = np.partition(lowest, k - 1)[k - 1]
    groups = np.flatnonzero(lowest <= limit)
    size = min(keys.size, (n_rounds + 1) * groups.size)
    keys_found, ids_found, found = np.empty((2, size + 1), np.uint32), np.empty((2, size + 1), np.int32), 0
    for first in range(0, keys.size, n_groups):
        for group in groups:
            i = first + group
            if i < keys.size:
                keys_found[0, found], ids_found[0, found] = keys[i], i  # overwritten by the next one if not taken
                found += keys[i] <= limit
    return keys_found, ids_found, found


@njit
def _within_digit(keys, k, counts):
    """The same by the highest digit of the keys, which is coarse, but needs no groups. `counts` is scratch."""
    _count(keys, HIGH, counts)
    last, size = 0, 0
    while last < BINS and size < k:
        size += counts[last]
        last += 1
    keys_found, ids_found, found = np.empty((2, size + 1), np.uint32), np.empty((2, size + 1), np.int32), 0
    for i in range(keys.size):  # without a branch: a score that is not taken is overwritten by the next one
        keys_found[0, found], ids_found[0, found] = keys[i], i
        found += np.int64(keys[i] >> HIGH) < last
    return keys_found, ids_found, found


@njit
def select(scores, top_scores, top_ids):
    """The best of a row of scores: score descending, then index ascending, NaN first; padded with -infinity and -1.

    Only the scores that may be among the k best are sorted, digit by digit from the lowest, which keeps ties in order.
    Scratch: 4 bytes per score, 16 bytes per score that is sorted.
    """
    n, k, counts = scores.size, min(top_ids.size, scores.size), np.empty(BINS, np.int64)
    top_scores[k:], top_ids[k:] = WORST, -1
    if k == 0:
        return
    keys = np.empty(n, np.uint32)
    _keys(scores, keys)
    if n >= MIN_ROUNDS * GROUPS * k:
        keys_found, ids_found, size = _within_limit(keys, k)
    else:
        keys_found, ids_found, size = _within_digit(keys, k, counts)
    a, b, i, j = keys_found[0, :size], keys_found[1, :size], ids_found[0, :size], ids_found[1, :size]
    for shift in (np.uint32(0), LOW, HIGH):
        _count(a, shift, counts)
        _sort_by_digit(a, i, shift, counts, b, j)
        a, b, i, j = b, a, j, i
    for m in range(k):
        score = scores[i[m]]
        top_scores[m], top_ids[m] = score, i[m] if score != WORST else -1


@njit
def _insert_all(scores, top_scores, top_ids):
    top_scores[:], top_ids[:] = WORST, -1
    worst = WORST
    for i in range(scores.size):
        if not scores[i] <= worst and beats_worst(scores[i], i, top_scores, top_ids):
            insert(top_scores, top_ids, scores[i], i)
            worst = top_scores[top_scores.size - 1]


@njit_parallel
def top_k(scores, top_scores, top_ids):
    """The k largest scores of each row (B, L) and their columns; k is the width of the outputs."""
    few = top_scores.shape[1] <= MAX_INSERTED
    for row in prange(scores.shape[0]):
        if few:
            _insert_all(scores[row], top_scores[row], top_ids[row])
        else:
            select(scores[row], top_scores[row], top_ids[row])


def rows_at_once(n_rows, n_labels):
    """The number of rows of scores in memory: 64 MiB, in whole blocks of 16 rows if possible."""
    n = max(1, min(n_rows, MAX_ELEMENTS // n_labels))
    return n if n in (1, n_rows) or n < LANES else n // LANES * LANES


def top_k_of_layer(forward, h, layer, top_scores, top_ids):
    """The k largest scores of ``forward(h, layer, scores)`` per row and their labels, for some rows at a time."""
    n_rows, n_labels = len(h), len(layer.bias)
    rows_per_chunk = rows_at_once(n_rows, n_labels)
    scores = empty((rows_per_chunk, n_labels), np.float32, "cpu")
    for first in range(0, n_rows, rows_per_chunk):
        rows = slice(first, first + rows_per_chunk)
        part = scores[: len(h[rows])]
        forward(h[rows], layer, part)
        top_k(part, top_scores[rows], top_ids[rows])


def top_k_shapes_of_layer(n_rows, n_inputs, n_labels):
    """{name: (shape, dtype)} that `top_k_of_layer` and a `forward` with inputs in blocks of 16 rows allocate."""
    rows_per_chunk = rows_at_once(n_rows, n_labels)
    return {
        "blocks": ((-(-rows_per_chunk // LANES), n_inputs * LANES), np.float32),
        "scores": ((rows_per_chunk, n_labels), np.float32),
        "keys and labels, sorted": ((min(rows_per_chunk, numba.get_num_threads()), 5, n_labels), np.float32),
    }
