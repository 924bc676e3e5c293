"""Rows of the batch in blocks of 16, features first, and other parts shared by the sparse output layers.

``block[16 i + q] = h[16 block + q, i]``: one weight is then one vector multiply-add for 16 rows, and a block of 16,384
inputs (1 MiB) stays in a core's L2 cache while all labels are processed.
"""

import contextlib
from typing import NamedTuple

import numpy as np
from numba import prange

from ..core import formulas
from ..core.device import njit, njit_parallel
from .exp import exp_nonpositive
from .simd import LANES, add, aligned, fma, load, maximum, mul, store, transpose
from .top_k import beats_worst, insert

ZERO, MINUS_ONE = np.float32(0), np.float32(-1)
#: The lowest finite number: a maximum that starts here never gives infinity minus infinity.
LOWEST = np.finfo(np.float32).min
#: Subtracted from the scores of rows that do not exist: exp of the result is 0.
FAR = np.float32(1e30)
SOFTMAX = formulas.SOFTMAX
#: Most numbers (16 MiB) that a step stores for the labels it processes at once: their score gradients and old values.
MAX_ELEMENTS = 1 << 22
#: Least number of work items (blocks of rows x ranges of labels), so that small batches use all threads too.
PARTS = 8


def new_blocks(h):
    """Uninitialized memory for h in blocks of 16 rows, features first: (n_blocks, 16 H)."""
    n_rows, n_inputs = h.shape
    return aligned(np.empty, ((n_rows + LANES - 1) // LANES, n_inputs * LANES))


def work_of_rows(h, layer, *_):
    """`work` of a `ParallelKernel`: every weight of a layer is multiplied with each block of rows."""
    return -(-len(h) // LANES) * (layer.values.size + layer.indices.size)


@njit_parallel
def pack(h, blocks):
    """Fill the blocks from h; missing rows of the last block are zero."""
    n_rows, n_inputs = h.shape
    span, flat_h, flat = 512, h.reshape(-1), blocks.reshape(-1)
    n_spans = (n_inputs + span - 1) // span
    for part in prange(blocks.shape[0] * n_spans):
        block, first = part // n_spans, part % n_spans * span
        stop = min(first + span, n_inputs)
        whole = stop - (stop - first) % LANES if (block + 1) * LANES <= n_rows else first
        for i in range(first, whole, LANES):
            transpose(flat_h, block * LANES * n_inputs + i, n_inputs, flat, (block * n_inputs + i) * LANES, LANES)
        for i in range(whole, stop):
            for q in range(LANES):
                row = block * LANES + q
                blocks[block, i * LANES + q] = h[row, i] if row < n_rows else ZERO


def splits_of(n_blocks):
    """The number of label ranges that are processed in parallel, so that there are at least PARTS work items."""
    return -(-PARTS // max(n_blocks, 1))


class Workspace(NamedTuple):
    """Scratch memory of a step, split by shapes alone, so that sums keep their order for any number of threads."""

    blocks: np.ndarray  # (n_blocks, 16 H): the inputs
    dblocks: np.ndarray  # (n_splits, n_blocks, 16 H): partial dh per range of labels and block of rows
    # for the labels that are processed at once:
    gradients: np.ndarray  # (n_blocks, 16 n): of the active labels' scores, packed at the beginning of each chunk
    active: np.ndarray  # (n_blocks, n) int32: the numbers of these labels, packed likewise
    n_active: np.ndarray  # (n_blocks, n_chunks) int32: active labels per chunk
    values: np.ndarray  # (n K): from before the update


def step_shapes(n_rows, n_inputs, n_labels, fan_in, chunk):
    """{name: (shape, dtype)} of a `Workspace`; threads take `chunk` labels at a time.

    A label is active in a block of rows if the gradient of its score is nonzero in one of them.
    """
    n_blocks = -(-n_rows // LANES)
    dblocks = splits_of(n_blocks), n_blocks, n_inputs * LANES
    chunks = max(1, MAX_ELEMENTS // (chunk * (n_blocks * LANES + fan_in)))
    n = min(n_labels, chunks * chunk)
    return {
        "blocks": ((n_blocks, n_inputs * LANES), np.float32),
        "dblocks": (dblocks, np.float32),
        "gradients": ((n_blocks, n * LANES), np.float32),
        "active": ((n_blocks, n), np.int32),
        "n_active": ((n_blocks, -(-n // chunk)), np.int32),
        "values": ((n * fan_in,), np.float32),
    }


#: At most one unused workspace, with its shapes: fresh pages from the system would cost a tenth of a step.
_free = []


@contextlib.contextmanager
def workspace(shapes):
    """A `Workspace` with undefined contents for one step; no other thread gets it meanwhile.

    It is kept for the next call; only the most recent one stays in memory.
    """
    wanted = tuple(shapes.values())
    try:
        found, work = _free.pop()
    except IndexError:  # none is kept, or it is in use
        found = None
    if found != wanted:
        work = Workspace(*(aligned(np.empty, *shape) for shape in wanted))
    yield work
    _free[:] = [(wanted, work)]


@njit_parallel
def clear(dblocks):
    """Fill (n_splits, n_blocks, 16 H) with zeros."""
    n_splits, n_blocks = dblocks.shape[:2]
    for part in prange(n_splits * n_blocks):
        dblocks[part // n_blocks, part % n_blocks] = ZERO


@njit_parallel
def unpack_sum(dblocks, dh):
    """dh (B, H): the sum of its packed parts (n_splits, n_blocks, 16 H), added in the order of the splits."""
    n_rows, n_inputs = dh.shape
    n_splits, n_blocks, size = dblocks.shape
    flat, flat_dh = dblocks.reshape(-1), dh.reshape(-1)
    n_spans = (n_inputs + LANES - 1) // LANES
    for part in prange(n_blocks * n_spans):
        block, first = part // n_spans, part % n_spans * LANES
        n, rows = min(LANES, n_inputs - first), min(LANES, n_rows - block * LANES)
        tile = np.empty(LANES * LANES, np.float32)
        for i in range(n):
            position = block * size + (first + i) * LANES
            total = load(flat, position)
            for s in range(1, n_splits):
                total = add(total, load(flat, s * n_blocks * size + position))
            store(tile, i * LANES, total)
        if n == LANES and rows == LANES:
            transpose(tile, 0, LANES, flat_dh, block * LANES * n_inputs + first, n_inputs)
        else:
            for q in range(rows):
                for i in range(n):
                    dh[block * LANES + q, first + i] = tile[i * LANES + q]


def sums_shapes(n_rows, n_inputs, n_labels, chunk):
    """{name: (shape, dtype)} that the sums of a softmax allocate: the inputs, and two sums per row and chunk."""
    n_blocks = -(-n_rows // LANES)
    sums = -(-n_labels // chunk), n_blocks, 2 * LANES
    return {"blocks": ((n_blocks, n_inputs * LANES), np.float32), "part_sums": (sums, np.float32)}


@njit
def clear_sums(sums):
    """The largest score and the sum of ``exp(score - largest)`` of 16 rows (32,) before the first label."""
    sums[:LANES], sums[LANES:] = LOWEST, ZERO


@njit
def add_to_sums(scores, n, sums):
    """Update `sums` (32,) with n more labels, whose scores are n lines of 16; one more line and they are scratch.

    The maximum of all n comes first, so that each score costs one exp. NaN does not become the maximum, but stays in
    the sum.
    """
    old = load(sums, 0)
    new = old
    for j in range(n):
        new = maximum(load(scores, j * LANES), new)
    for j in range(n):
        store(scores, j * LANES, fma(MINUS_ONE, new, load(scores, j * LANES)))
    store(scores, n * LANES, fma(MINUS_ONE, new, old))
    for i in range((n + 1) * LANES):  # flat, so that it becomes vector code
        scores[i] = exp_nonpositive(scores[i])
    total = mul(load(sums, LANES), load(scores, n * LANES))
    for j in range(n):
        total = add(total, load(scores, j * LANES))
    store(sums, 0, new)
    store(sums, LANES, total)


@njit_parallel
def merge_sums(part_sums, largest, total):
    """The sums of each row, (B,), from those of the chunks of labels (n_chunks, n_blocks, 32), added in order."""
    for row in prange(largest.size):
        b, q = row // LANES, row % LANES
        new, result = LOWEST, ZERO
        for part in range(part_sums.shape[0]):
            new = max(new, part_sums[part, b, q])
        for part in range(part_sums.shape[0]):
            result += part_sums[part, b, LANES + q] * exp_nonpositive(part_sums[part, b, q] - new)
        largest[row], total[row] = new, result


@njit
def shifts_of_block(loss, b):
    """What a softmax loss subtracts from the scores of 16 rows: two lines, see `StepLoss`. Empty for other losses."""
    if loss.kind != SOFTMAX:
        return np.empty(0, np.float32)
    shifts = np.full(2 * LANES, FAR, np.float32)
    for q in range(min(LANES, loss.shifts.shape[0] - b * LANES)):
        shifts[q], shifts[LANES + q] = loss.shifts[b * LANES + q]
    return shifts


@njit
def shift(scores, n, shifts):
    """Subtract a block's shifts, if it has any, from n lines of 16 scores."""
    if shifts.size:
        for i in range(n):
            z = fma(MINUS_ONE, load(shifts, 0), load(scores, i * LANES))
            store(scores, i * LANES, fma(MINUS_ONE, load(shifts, LANES), z))


def list_shapes(n_rows, n_inputs, k):
    """{name: (shape, dtype)} that a top-k search allocates: the inputs and a list per row and range of labels."""
    n_blocks = -(-n_rows // LANES)
    lists = n_blocks, splits_of(n_blocks), LANES, k
    shapes = {"blocks": ((n_blocks, n_inputs * LANES), np.float32)}
    return shapes | {"part_scores": (lists, np.float32), "part_ids": (lists, np.int32)}


@njit_parallel
def merge_lists(part_scores, part_ids, top_scores, top_ids):
    """The k best of each row, from the lists (n_blocks, n_splits, 16, k) of its ranges of labels."""
    n_rows, k = top_scores.shape
    n_splits = part_scores.shape[1]
    for row in prange(n_rows):
        b, q = row // LANES, row % LANES
        top_scores[row], top_ids[row] = part_scores[b, 0, q], part_ids[b, 0, q]
        for s in range(1, n_splits):
            for i in range(k):
                if beats_worst(part_scores[b, s, q, i], part_ids[b, s, q, i], top_scores[row], top_ids[row]):
                    insert(top_scores[row], top_ids[row], part_scores[b, s, q, i], part_ids[b, s, q, i])
