"""The k best of each row on CUDA.

Small k: every thread keeps a sorted list of its own columns, then the lists of each row are merged. Large k: a library
sort.
"""

import numpy as np
from numba import int64

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit, empty, runs_ptx, xp
from . import launch
from .layout import padded
from .reduce import ALL_LANES, warp_max

_f = cuda_formulas(formulas)
beats_worst, insert = _f.beats_worst, _f.insert
#: Score of an empty list entry.
WORST = np.float32(-np.inf)
#: Largest k for which threads keep lists. The cost of insertion grows with k^2; above, rows are sorted.
MAX_INSERTED = 128
#: Scores that exist at once where a layer's scores are sorted: 64 MiB.
MAX_ELEMENTS = 1 << 24
#: Scores that are sorted at once: each needs an 8-byte key, and the sort a copy of it.
MAX_SORTED = 1 << 22
#: Bits of a float32: all but the sign; those of infinity.
MAGNITUDE, INFINITY = np.int64(0x7FFFFFFF), np.int64(0x7F800000)
#: A key is two words: score above, id below.
LOW_WORD, WORD_BITS = np.int64(0xFFFFFFFF), np.int64(32)
#: `_key` of an empty entry: score minus infinity, id -1.
EMPTY = np.int64((-INFINITY - 1) << WORD_BITS)


@cuda_device
def clear(scores, ids):
    """Makes all entries of a list empty."""
    for i in range(scores.size):
        scores[i] = WORST
        ids[i] = -1


@cuda_jit
def lists_kernel(scores, list_scores, list_ids):
    """One thread keeps the best k of every n_lists-th column of one row.

    Grid: lists on x, rows stride over y. Neighbouring threads own neighbouring columns, so scores (B, L) are read
    coalesced and once. Each thread writes its list in list_scores and list_ids (B, k, n_lists). No shared memory. No
    atomics.
    """
    part = cuda.grid(1)
    n_rows, n_columns = scores.shape
    n_lists = list_scores.shape[2]
    if part < n_lists:
        for row in range(cuda.blockIdx.y, n_rows, cuda.gridDim.y):
            best, ids = list_scores[row, :, part], list_ids[row, :, part]
            clear(best, ids)
            # The k-th best score stays in a register: almost every column fails this test, and the list, which is in
            # global memory, is not touched. `not <=` instead of `>` lets NaN pass.
            worst = WORST
            for i in range(part, n_columns, n_lists):
                score = scores[row, i]
                if not score <= worst and beats_worst(score, i, best, ids):
                    insert(best, ids, score, i)
                    worst = best[best.size - 1]


@cuda_jit
def merge_kernel(list_scores, list_ids, top_scores, top_ids):
    """First version: one thread merges all lists of one row by insertion; `merge_warps_kernel` uses whole blocks.

    Grid: rows on x. Reads list_scores and list_ids (B, k, n_lists), each list in its order; writes top_scores and
    top_ids (B, k). No shared memory. No atomics.
    """
    row = cuda.grid(1)
    n_rows, k, n_lists = list_scores.shape
    if row < n_rows:
        best, ids = top_scores[row], top_ids[row]
        clear(best, ids)
        for part in range(n_lists):
            for i in range(k):
                score, column = list_scores[row, i, part], list_ids[row, i, part]
                if beats_worst(score, column, best, ids):
                    insert(best, ids, score, column)


@cuda_device
def _sortable(word):
    """Float32 bits as an integer that orders like the number; applied twice, it gives the bits back.

    For negative numbers all bits but the sign are flipped.
    """
    return word ^ ((word >> WORD_BITS) & MAGNITUDE)


@cuda_device
def _key(words, ids, i, part):
    """A list entry as one int64, larger is better: NaN first, then score descending, then id ascending (-1 last).

    Negative zero counts as zero. One integer comparison replaces the comparison of scores and ids.
    """
    i, part = np.uint32(i), np.uint32(part)  # unsigned: Numba omits its test for negative indices
    word = np.int64(words[i, part])
    order = _sortable(word)
    if order == np.int64(-1):
        order = np.int64(0)
    if (word & MAGNITUDE) > INFINITY:
        order = MAGNITUDE
    return (order << WORD_BITS) | (~np.int64(ids[i, part]) & LOW_WORD)


@cuda_device
def _next_key(words, ids, part, taken, key):
    """The first key of a list that is below `key`, found by binary search among its first `taken` entries.

    At most `taken` entries of the list are at or above `key`.
    """
    low, high = 0, taken
    while low < high:
        middle = (low + high) // 2
        if _key(words, ids, middle, part) < key:
            high = middle
        else:
            low = middle + 1
    return _key(words, ids, low, part) if low < words.shape[0] else EMPTY


@cuda_device
def _write_key(words, ids, i, key):
    """Unpacks a key into score bits and id."""
    words[i] = np.int32(_sortable(key >> WORD_BITS))
    ids[i] = np.int32(~key)


@cuda_jit
def merge_warps_kernel(list_words, list_ids, top_words, top_ids):
    """One block merges the lists of one row: each warp its share of them, then the first warp the warps' results.

    Grid: rows on x; block of (32, W). Reads the first entries of list_words (bits of float32 scores) and list_ids (B,
    k, n_lists) coalesced, few of the others; writes top_words and top_ids (B, k). Dynamic shared memory where W > 1: 8
    k bytes per warp. No atomics.
    """
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    shared, row = cuda.shared.array(0, int64), cuda.blockIdx.x
    words, ids = list_words[row], list_ids[row]
    found, found_ids = top_words[row], top_ids[row]
    k, n_lists = words.shape
    first, step = 32 * warp, 32 * n_warps
    # A lane keeps only the best key of its lists (every 32 W-th) that is not yet taken. So each result is one round of
    # shuffles; nothing is inserted.
    best, taken = EMPTY, 0
    for part in range(first + lane, n_lists, step):
        best = max(best, _key(words, ids, 0, part))
    for i in range(k):
        top = warp_max(best)
        if lane == 0:
            if n_warps > 1:
                shared[warp * k + i] = top
            else:
                _write_key(found, found_ids, i, top)
        if top > EMPTY:  # the same for the whole warp
            # Only the owner's lists have changed. All 32 lanes search them for the owner's next best key.
            is_mine = best == top
            owner = cuda.ffs(cuda.ballot_sync(ALL_LANES, is_mine)) - 1
            taken += is_mine
            taken_by_owner = cuda.shfl_sync(ALL_LANES, taken, owner)
            next_best = EMPTY
            part = first + owner + lane * step
            while part < n_lists:  # while, not range: range() with a step computes a division
                next_best = max(next_best, _next_key(words, ids, part, taken_by_owner, top))
                part += 32 * step
            next_best = warp_max(next_best)
            best = next_best if is_mine else best
    cuda.syncthreads()
    if n_warps > 1 and warp == 0:
        # Each warp's result is sorted: a lane is the head of one of them.
        position = lane * k
        best = shared[position] if lane < n_warps else EMPTY
        for i in range(k):
            top = warp_max(best)
            if lane == 0:
                _write_key(found, found_ids, i, top)
            if best == top:
                position += 1
                best = shared[position] if position < (lane + 1) * k and top > EMPTY else EMPTY


def merge(list_scores, list_ids, top_scores, top_ids, *, block=launch.BLOCK, shuffles=None):
    """The best of all lists of each row: (B, k, n_lists) -> (B, k); NaN comes first.

    `shuffles` selects `merge_warps_kernel`; the default is True on a device, False in the simulator.
    """
    n_rows, k, n_lists = list_scores.shape
    if n_rows and runs_ptx(shuffles):
        words = list_scores.view(np.int32), list_ids, top_scores.view(np.int32), top_ids
        merge_warps_kernel[launch.merged_rows(n_rows, n_lists, k)](*words)
    else:
        merge_kernel[launch.flat(n_rows, block)](list_scores, list_ids, top_scores, top_ids)


def _sort(scores, top_scores, top_ids):
    """The best of some rows of scores, in the order of the lists, by one library sort of integer keys.

    A key is the score, made sortable, above its column.
    """
    n, k = scores.shape[1], min(top_ids.shape[1], scores.shape[1])
    words = scores.view(np.int32)
    order = words ^ ((words >> 31) & np.int32(MAGNITUDE))  # integers that order like the numbers
    order = xp.where(scores == 0, np.int32(0), order)  # -0 is 0
    order = xp.where(scores != scores, np.int32(MAGNITUDE), order)  # NaN comes first
    keys = (~order).astype(np.int64) << WORD_BITS | xp.arange(n)
    keys.sort(axis=1)
    ids = keys[:, :k] & LOW_WORD
    best = xp.take_along_axis(scores, ids, 1)
    top_scores[...], top_ids[...] = WORST, -1
    top_scores[:, :k], top_ids[:, :k] = best, xp.where(best == WORST, -1, ids)


def rows_at_once(n_rows, n_labels):
    """Number of rows whose scores fit in 64 MiB; at least one."""
    return max(1, min(n_rows, MAX_ELEMENTS // n_labels))


def top_k_of_layer(forward, h, layer, top_scores, top_ids):
    """The k largest of the scores that ``forward(h, layer, scores)`` computes, and their labels.

    Only `rows_at_once` rows of scores exist at a time.
    """
    n_rows, n_labels = h.shape[0], layer.bias.shape[0]
    rows_per_chunk = rows_at_once(n_rows, n_labels)
    scores = empty((rows_per_chunk, n_labels), np.float32, "cuda")
    for first in range(0, n_rows, rows_per_chunk):
        rows = slice(first, min(first + rows_per_chunk, n_rows))
        part = scores[: rows.stop - first]
        forward(h[rows], layer, part)
        top_k(part, top_scores[rows], top_ids[rows])


def top_k_shapes_of_layer(n_rows, n_inputs, n_labels):
    """{name: (shape, dtype)} of what `top_k_of_layer` and a `forward` with transposed inputs allocate."""
    rows_per_chunk = rows_at_once(n_rows, n_labels)
    return {
        "ht": ((n_inputs, padded(rows_per_chunk, 4)), np.float32),
        "scores": ((rows_per_chunk, n_labels), np.float32),
        "keys, sorted": ((4, max(1, min(rows_per_chunk, MAX_SORTED // n_labels)), n_labels), np.int64),
    }


def top_k(scores, top_scores, top_ids, *, block=launch.BLOCK):
    """The k largest scores of each row (B, L) and their columns; k is the width of the outputs."""
    n_rows, k = top_scores.shape
    if k > MAX_INSERTED:
        rows_per_chunk = max(1, MAX_SORTED // scores.shape[1])
        for first in range(0, n_rows, rows_per_chunk):
            rows = slice(first, first + rows_per_chunk)
            _sort(scores[rows], top_scores[rows], top_ids[rows])
        return
    n_lists, grid = launch.lists_per_row(scores.shape[1], n_rows, k, block)
    list_scores = empty((n_rows, k, n_lists), np.float32, "cuda")
    list_ids = empty((n_rows, k, n_lists), np.int32, "cuda")
    lists_kernel[grid, block](scores, list_scores, list_ids)
    merge(list_scores, list_ids, top_scores, top_ids, block=block)
