"""Rows of the batch in blocks of 16, features first, and what else the output layers on top of them share.

``block[16 i + q] = x[16 block + q, i]``: one weight then is one vector multiply-add for 16 rows, and a block of 16,384
inputs (1 MiB) stays in a core's L2 cache while the labels pass by.
"""

import contextlib
from typing import NamedTuple

import numpy as np
from numba import prange

from ..core.device import njit_parallel
from .simd import LANES, add, aligned, load, store, transpose
from .top_k import enters, insert

ZERO = np.float32(0)
#: Numbers (16 MiB) that a step holds of the labels it works on at once: gradients by their scores, old values.
MAX_ELEMENTS = 1 << 22
#: Work is cut into at least this many parts (blocks of rows x ranges of labels) where a label's gradient is needed.
PARTS = 8


def new_blocks(x):
    """Room for x in blocks of 16 rows, features first: (n_blocks, 16 H)."""
    n_rows, n_inputs = x.shape
    return aligned(np.empty, ((n_rows + LANES - 1) // LANES, n_inputs * LANES))


def work_of_rows(x, layer, *_):
    """For `ParallelKernel`: every weight of a layer is multiplied with each block of rows."""
    return -(-len(x) // LANES) * (layer.values.size + layer.indices.size)


@njit_parallel
def pack(x, blocks):
    """Fill the blocks from x; missing rows of the last block are zero."""
    n_rows, n_inputs = x.shape
    span, flat_x, flat = 512, x.reshape(-1), blocks.reshape(-1)
    n_spans = (n_inputs + span - 1) // span
    for part in prange(blocks.shape[0] * n_spans):
        block, first = part // n_spans, part % n_spans * span
        stop = min(first + span, n_inputs)
        whole = stop - (stop - first) % LANES if (block + 1) * LANES <= n_rows else first
        for i in range(first, whole, LANES):
            transpose(flat_x, block * LANES * n_inputs + i, n_inputs, flat, (block * n_inputs + i) * LANES, LANES)
        for i in range(whole, stop):
            for q in range(LANES):
                row = block * LANES + q
                blocks[block, i * LANES + q] = x[row, i] if row < n_rows else ZERO


def splits_of(n_blocks):
    """Ranges of labels that are worked on side by side, so that there are at least PARTS parts."""
    return -(-PARTS // max(n_blocks, 1))


class Workspace(NamedTuple):
    """What a step holds, cut by the shape alone, so that sums keep their order for any number of threads."""

    blocks: np.ndarray  # (n_blocks, 16 H): the inputs
    dblocks: np.ndarray  # (n_splits, n_blocks, 16 H): dx, one for each range of labels and block of rows
    # of the labels that are worked on at once:
    gradients: np.ndarray  # (n_blocks, 16 n_at_once): by the scores of active labels, packed at each chunk's beginning
    active: np.ndarray  # (n_blocks, n_at_once) int32: which labels these are, packed like them
    n_active: np.ndarray  # (n_blocks, n_chunks) int32: how many of a chunk
    values: np.ndarray  # (n_at_once K): from before the update


def step_shapes(n_rows, n_inputs, n_labels, fan_in, chunk):
    """{name: (shape, dtype)} of a `Workspace`; threads take `chunk` labels at a time.

    A label is active in a block of rows where one of these rows has a gradient by its score.
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


#: At most one workspace that no step is using, with its shapes. Fresh pages from the system would cost a tenth of a
#: step.
_free = []


@contextlib.contextmanager
def workspace(shapes):
    """A `Workspace`, of undefined contents, for one step: no other thread gets it meanwhile.

    It is kept for the next call: of all sizes, that of the last one stays in memory.
    """
    wanted = tuple(shapes.values())
    try:
        found, work = _free.pop()
    except IndexError:  # none was kept, or all are in use
        found = None
    if found != wanted:
        work = Workspace(*(aligned(np.empty, *shape) for shape in wanted))
    yield work
    _free[:] = [(wanted, work)]


@njit_parallel
def clear(dblocks):
    """Zeros: (n_splits, n_blocks, 16 H)."""
    n_splits, n_blocks = dblocks.shape[:2]
    for part in prange(n_splits * n_blocks):
        dblocks[part // n_blocks, part % n_blocks] = ZERO


@njit_parallel
def unpack_sum(dblocks, dx):
    """dx (B, H) from its packed parts (n_splits, n_blocks, 16 H), added in the order of the splits."""
    n_rows, n_inputs = dx.shape
    n_splits, n_blocks, size = dblocks.shape
    flat, flat_dx = dblocks.reshape(-1), dx.reshape(-1)
    n_spans = (n_inputs + LANES - 1) // LANES
    for part in prange(n_blocks * n_spans):
        block, first = part // n_spans, part % n_spans * LANES
        n, rows, tile = (
            min(LANES, n_inputs - first),
            min(LANES, n_rows - block * LANES),
            np.empty(LANES * LANES, np.float32),
        )
        for i in range(n):
            place = block * size + (first + i) * LANES
            total = load(flat, place)
            for s in range(1, n_splits):
                total = add(total, load(flat, s * n_blocks * size + place))
            store(tile, i * LANES, total)
        if n == LANES and rows == LANES:
            transpose(tile, 0, LANES, flat_dx, block * LANES * n_inputs + first, n_inputs)
        else:
            for q in range(rows):
                for i in range(n):
                    dx[block * LANES + q, first + i] = tile[i * LANES + q]


def list_shapes(n_rows, n_inputs, k):
    """{name: (shape, dtype)} of what a top-k search allocates: the inputs, a list for each row and range of labels."""
    n_blocks = -(-n_rows // LANES)
    lists = n_blocks, splits_of(n_blocks), LANES, k
    shapes = {"blocks": ((n_blocks, n_inputs * LANES), np.float32)}
    return shapes | {"part_scores": (lists, np.float32), "part_ids": (lists, np.int32)}


@njit_parallel
def merge_lists(part_scores, part_ids, top_scores, top_ids):
    """The k best of each row, from those of its ranges of labels: lists (n_blocks, n_splits, 16, k) of rows in blocks."""
    n_rows, k = top_scores.shape
    n_splits = part_scores.shape[1]
    for row in prange(n_rows):
        b, q = row // LANES, row % LANES
        top_scores[row], top_ids[row] = part_scores[b, 0, q], part_ids[b, 0, q]
        for s in range(1, n_splits):
            for i in range(k):
                if enters(part_scores[b, s, q, i], part_ids[b, s, q, i], top_scores[row], top_ids[row]):
                    insert(top_scores[row], top_ids[row], part_scores[b, s, q, i], part_ids[b, s, q, i])
