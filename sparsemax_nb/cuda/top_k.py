"""The k best of each row on CUDA: every thread keeps a list of its own, then the lists of a row are merged; many are sorted."""

import numpy as np
from numba import int64

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit, empty, runs_ptx, xp
from . import launch
from .layout import padded
from .reduce import ALL_LANES, warp_max

_f = cuda_formulas(formulas)
enters, insert = _f.enters, _f.insert
WORST = np.float32(-np.inf)
#: Most entries of the threads' lists, whose cost grows with their square; more of the best are found by a library's
#: sort.
INSERTED = 128
#: Scores that exist at once where they are sorted: 64 MiB; and those that are sorted at once, with 8 bytes each for key
#: and copy.
MAX_ELEMENTS, SORTED = 1 << 24, 1 << 22
MAGNITUDE, INFINITY, WORD, BITS = np.int64(0x7FFFFFFF), np.int64(0x7F800000), np.int64(0xFFFFFFFF), np.int64(32)
#: `_key` of an empty entry: minus infinity with the id -1.
EMPTY = np.int64((-INFINITY - 1) << BITS)


@cuda_device
def clear(scores, ids):
    """Empty a list."""
    for i in range(scores.size):
        scores[i] = WORST
        ids[i] = -1


@cuda_jit
def lists_kernel(scores, list_scores, list_ids):
    """One thread keeps the best k of every n_lists-th column of one row: x is the list, so a warp reads whole lines.

    Grid: lists on x, rows stride over y. Reads scores (B, L); its list in list_scores, list_ids (B, k, n_lists) is
    touched only where a score beats the k-th best so far, which a register holds. No shared memory, no atomics.
    """
    part = cuda.grid(1)
    n_rows, n_columns = scores.shape
    n_lists = list_scores.shape[2]
    if part < n_lists:
        for row in range(cuda.blockIdx.y, n_rows, cuda.gridDim.y):
            best, ids = list_scores[row, :, part], list_ids[row, :, part]
            clear(best, ids)
            worst = WORST
            for i in range(part, n_columns, n_lists):
                score = scores[row, i]
                if not score <= worst and enters(score, i, best, ids):
                    insert(best, ids, score, i)
                    worst = best[best.size - 1]


@cuda_jit
def merge_kernel(list_scores, list_ids, top_scores, top_ids):
    """One thread merges the lists of one row. Grid: rows on x. No shared memory, no atomics.

    Reads list_scores, list_ids (B, k, n_lists), each list in its order; writes top_scores, top_ids (B, k).
    """
    row = cuda.grid(1)
    n_rows, k, n_lists = list_scores.shape
    if row < n_rows:
        best, ids = top_scores[row], top_ids[row]
        clear(best, ids)
        for part in range(n_lists):
            for i in range(k):
                score, column = list_scores[row, i, part], list_ids[row, i, part]
                if enters(score, column, best, ids):
                    insert(best, ids, score, column)


@cuda_device
def _sortable(word):
    """The bits of a float32 as an integer that orders like the number (below zero: all but the sign turned over), and back."""
    return word ^ ((word >> BITS) & MAGNITUDE)


@cuda_device
def _key(words, ids, i, part):
    """An entry as one integer, the larger the better: NaN, then score descending (-0 is 0), then id ascending, -1 last."""
    i, part = np.uint32(i), np.uint32(part)  # unsigned indices spare Numba's test for negative ones
    word = np.int64(words[i, part])
    order = _sortable(word)
    if order == np.int64(-1):
        order = np.int64(0)
    if (word & MAGNITUDE) > INFINITY:
        order = MAGNITUDE
    return (order << BITS) | (~np.int64(ids[i, part]) & WORD)


@cuda_device
def _after(words, ids, part, taken, key):
    """The first key of a list that comes after `key`; at most `taken` of the list's do not."""
    low, high = 0, taken
    while low < high:
        middle = (low + high) // 2
        if _key(words, ids, middle, part) < key:
            high = middle
        else:
            low = middle + 1
    return _key(words, ids, low, part) if low < words.shape[0] else EMPTY


@cuda_device
def _write(words, ids, i, key):
    words[i] = np.int32(_sortable(key >> BITS))
    ids[i] = np.int32(~key)


@cuda_jit
def merge_warps_kernel(list_words, list_ids, top_words, top_ids):
    """A block merges the lists of one row: each warp its share of them, then the first warp what the warps found.

    Grid: rows on x; a block of (32, W). A lane keeps the best of every 32 W-th list that is not yet taken: the best of
    the warp is found by shuffles, k times; then all lanes look for the next of those lists from which it came. Reads
    the first entries of list_words (the bits of float32 scores), list_ids (B, k, n_lists) coalesced, of the others few;
    writes top_words, top_ids (B, k). Dynamic shared memory where W > 1: 8 k bytes a warp. No atomics.
    """
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    shared, row = cuda.shared.array(0, int64), cuda.blockIdx.x
    words, ids, found, found_ids = list_words[row], list_ids[row], top_words[row], top_ids[row]
    k, n_lists = words.shape
    first, step = 32 * warp, 32 * n_warps
    best, taken = EMPTY, 0
    for part in range(first + lane, n_lists, step):
        best = max(best, _key(words, ids, 0, part))
    for i in range(k):
        top = warp_max(best)
        if lane == 0:
            if n_warps > 1:
                shared[warp * k + i] = top
            else:
                _write(found, found_ids, i, top)
        if top > EMPTY:  # the same for the whole warp
            is_mine = best == top
            owner = cuda.ffs(cuda.ballot_sync(ALL_LANES, is_mine)) - 1
            taken += is_mine
            most, following = cuda.shfl_sync(ALL_LANES, taken, owner), EMPTY
            part = first + owner + lane * step
            while part < n_lists:  # a range would divide
                following = max(following, _after(words, ids, part, most, top))
                part += 32 * step
            following = warp_max(following)
            best = following if is_mine else best
    cuda.syncthreads()
    if n_warps > 1 and warp == 0:
        at = lane * k
        best = shared[at] if lane < n_warps else EMPTY
        for i in range(k):
            top = warp_max(best)
            if lane == 0:
                _write(found, found_ids, i, top)
            if best == top:
                at += 1
                best = shared[at] if at < (lane + 1) * k and top > EMPTY else EMPTY


def merge(list_scores, list_ids, top_scores, top_ids, *, block=launch.BLOCK, shuffles=None):
    """The best of all lists of each row: (B, k, n_lists) -> (B, k); NaN comes first. By shuffles but in the simulator."""
    n_rows, k, n_lists = list_scores.shape
    if n_rows and runs_ptx(shuffles):
        words = list_scores.view(np.int32), list_ids, top_scores.view(np.int32), top_ids
        merge_warps_kernel[launch.merged_rows(n_rows, n_lists, k)](*words)
    else:
        merge_kernel[launch.flat(n_rows, block)](list_scores, list_ids, top_scores, top_ids)


def _sort(scores, top_scores, top_ids):
    """The best of rows of scores, in the order of the lists, by the library's sort of integers: the score, then its column."""
    n, k = scores.shape[1], min(top_ids.shape[1], scores.shape[1])
    words = scores.view(np.int32)
    order = words ^ ((words >> 31) & np.int32(MAGNITUDE))  # integers that ascend with the numbers
    order = xp.where(scores == 0, np.int32(0), order)  # -0 is 0
    order = xp.where(scores != scores, np.int32(MAGNITUDE), order)  # NaN comes first
    keys = (~order).astype(np.int64) << BITS | xp.arange(n)
    keys.sort(axis=1)
    ids = keys[:, :k] & WORD
    best = xp.take_along_axis(scores, ids, 1)
    top_scores[...], top_ids[...] = WORST, -1
    top_scores[:, :k], top_ids[:, :k] = best, xp.where(best == WORST, -1, ids)


def rows_at_once(n_rows, n_labels):
    """How many rows of scores exist at once: 64 MiB."""
    return max(1, min(n_rows, MAX_ELEMENTS // n_labels))


def of_layer(forward, x, layer, top_scores, top_ids):
    """The k largest of the scores that ``forward(x, layer, scores)`` gives, and their labels; some rows at a time."""
    n_rows, n_labels = x.shape[0], layer.bias.shape[0]
    at_once = rows_at_once(n_rows, n_labels)
    scores = empty((at_once, n_labels), np.float32, "cuda")
    for first in range(0, n_rows, at_once):
        some = slice(first, min(first + at_once, n_rows))
        part = scores[: some.stop - first]
        forward(x[some], layer, part)
        top_k(part, top_scores[some], top_ids[some])


def shapes_of_layer(n_rows, n_inputs, n_labels):
    """{name: (shape, dtype)} of what `of_layer` and a `forward` with transposed inputs allocate."""
    at_once = rows_at_once(n_rows, n_labels)
    return {
        "xt": ((n_inputs, padded(at_once, 4)), np.float32),
        "scores": ((at_once, n_labels), np.float32),
        "keys, sorted": ((4, max(1, min(at_once, SORTED // n_labels)), n_labels), np.int64),
    }


def top_k(scores, top_scores, top_ids, *, block=launch.BLOCK):
    """The k largest scores of each row (B, L) and their columns; k is the width of the outputs."""
    n_rows, k = top_scores.shape
    if k > INSERTED:
        at_once = max(1, SORTED // scores.shape[1])
        for first in range(0, n_rows, at_once):
            some = slice(first, first + at_once)
            _sort(scores[some], top_scores[some], top_ids[some])
        return
    n_lists, grid = launch.lists_per_row(scores.shape[1], n_rows, k, block)
    list_scores = empty((n_rows, k, n_lists), np.float32, "cuda")
    list_ids = empty((n_rows, k, n_lists), np.int32, "cuda")
    lists_kernel[grid, block](scores, list_scores, list_ids)
    merge(list_scores, list_ids, top_scores, top_ids, block=block)
