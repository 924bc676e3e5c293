"""Fixed fan-in output layer on the CPU.

The inputs are packed into blocks of 16 rows, features first: ``block[16 i + q] = h[16 block + q, i]``. One connection
is then one vector multiply-add for 16 rows, and a block of 16,384 inputs (1 MiB) stays in a core's L2 cache while all
labels are processed. A plain loop over labels and rows would read its inputs from the L3 cache instead.

Threads never share an output: results are bit-identical for any number of threads.
"""

import numpy as np
from numba import prange

from ..core.device import njit, njit_inline, njit_parallel
from .blocks import (
    add_to_sums,
    clear,
    clear_sums,
    list_shapes,
    merge_lists,
    merge_sums,
    new_blocks,
    pack,
    shift,
    shifts_of_block,
    splits_of,
    step_shapes,
    sums_shapes,
    unpack_sum,
    work_of_rows,
    workspace,
)
from .losses import losses_and_slopes
from .optimizers import update_range
from .simd import (
    LANES,
    add,
    aligned,
    any_above,
    any_nonzero,
    dot,
    dots,
    fma,
    item,
    load,
    mul,
    prefetch_range,
    splat,
    store,
    transpose,
)
from .top_k import MAX_LISTED, WORST, beats_worst, insert, top_k_of_layer, top_k_shapes_of_layer

ZERO, ONE = np.float32(0), np.float32(1)

#: Labels that one thread scores before it moves to the next block of rows: with 32 connections, 128 KiB of weights.
CHUNK = 512
#: Labels that are scored before their gradients are computed: with 32 connections, 32 KiB of inputs, for the L1 cache.
GROUP = 16
#: How many labels ahead `_step_of_inputs` prefetches.
AHEAD = 8


@njit_inline
def _score(block, indices, values, start, fan_in, bias):
    """Scores of one label for the 16 rows of a block, as a vector; four independent sums hide the fma latency."""
    s0, s1, s2, s3 = splat(bias), splat(ZERO), splat(ZERO), splat(ZERO)
    whole = start + fan_in // 4 * 4
    for k in range(start, whole, 4):
        s0 = fma(item(values, k), load(block, item(indices, k) * LANES), s0)
        s1 = fma(item(values, k + 1), load(block, item(indices, k + 1) * LANES), s1)
        s2 = fma(item(values, k + 2), load(block, item(indices, k + 2) * LANES), s2)
        s3 = fma(item(values, k + 3), load(block, item(indices, k + 3) * LANES), s3)
    for k in range(whole, start + fan_in):
        s0 = fma(item(values, k), load(block, item(indices, k) * LANES), s0)
    return add(add(s0, s1), add(s2, s3))


@njit_parallel(work=work_of_rows)
def _forward(h, layer, scores, blocks):
    n_rows = h.shape[0]
    n_labels, fan_in = layer.indices.shape
    pack(h, blocks)
    indices, values, flat_scores = layer.indices.reshape(-1), layer.values.reshape(-1), scores.reshape(-1)
    for chunk in prange((n_labels + CHUNK - 1) // CHUNK):
        tile = np.empty(LANES * LANES, np.float32)
        stop = min((chunk + 1) * CHUNK, n_labels)
        for b in range(blocks.shape[0]):
            block, first_row = blocks[b], b * LANES
            for first in range(chunk * CHUNK, stop, LANES):
                n = min(LANES, stop - first)
                for j in range(n):
                    label = first + j
                    score = _score(block, indices, values, label * fan_in, fan_in, item(layer.bias, label))
                    store(tile, j * LANES, score)
                if n == LANES and first_row + LANES <= n_rows:
                    transpose(tile, 0, LANES, flat_scores, first_row * n_labels + first, n_labels)
                else:
                    for q in range(min(LANES, n_rows - first_row)):
                        for j in range(n):
                            scores[first_row + q, first + j] = tile[j * LANES + q]


def forward(h, layer, scores):
    """``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l, k]]``."""
    _forward(h, layer, scores, new_blocks(h))


@njit_inline
def _gather(block, indices, start, fan_in, g, dvalues, offset):
    """For one label and the gradients `g` of 16 rows: add ``g . block`` at its K inputs to dvalues from `offset` on."""
    whole = fan_in // LANES * LANES
    for k in range(0, whole, LANES):
        store(dvalues, offset + k, add(load(dvalues, offset + k), dots(g, block, indices, start + k)))
    for k in range(whole, fan_in):
        dvalues[offset + k] += dot(g, load(block, item(indices, start + k) * LANES))


@njit_inline
def _scatter(dblock, indices, start, fan_in, g, values, offset):
    """For one label and the gradients `g` of 16 rows: add ``values g`` (from `offset` on) to its K inputs in dblock."""
    for k in range(fan_in):
        i = item(indices, start + k) * LANES
        store(dblock, i, fma(item(values, offset + k), g, load(dblock, i)))


def workspace_shapes(n_rows, n_inputs, n_labels, fan_in):
    """{name: (shape, dtype)} that `step` allocates (`backward`: blocks and dblocks only)."""
    return step_shapes(n_rows, n_inputs, n_labels, fan_in, CHUNK)


@njit_inline
def _load_gradients(dscores, first_row, label, g):
    """Copy the dscores of 16 rows and one label to g, which stays zero beyond the last row."""
    for q in range(min(LANES, dscores.shape[0] - first_row)):
        g[q] = dscores[first_row + q, label]


@njit
def _backward_of_labels(layer, dscores, blocks, start, stop, dvalues, dbias):
    """dvalues and dbias of the labels from `start` to `stop`, summed over the blocks of rows in order."""
    fan_in = layer.indices.shape[1]
    indices, flat_dvalues = layer.indices.reshape(-1), dvalues.reshape(-1)
    dvalues[start:stop], dbias[start:stop] = ZERO, ZERO
    for b in range(blocks.shape[0]):
        g = np.zeros(LANES, np.float32)
        for label in range(start, stop):
            _load_gradients(dscores, b * LANES, label, g)
            if any_nonzero(load(g, 0)):
                dbias[label] += dot(load(g, 0), splat(ONE))
                _gather(blocks[b], indices, label * fan_in, fan_in, load(g, 0), flat_dvalues, label * fan_in)


@njit
def _backward_of_inputs(layer, dscores, dblocks, b, s):
    """dh of a block of rows, from range s of the labels."""
    n_labels, fan_in = layer.indices.shape
    n_splits = dblocks.shape[0]
    indices, values, g = layer.indices.reshape(-1), layer.values.reshape(-1), np.zeros(LANES, np.float32)
    for label in range(n_labels * s // n_splits, n_labels * (s + 1) // n_splits):
        _load_gradients(dscores, b * LANES, label, g)
        if any_nonzero(load(g, 0)):
            _scatter(dblocks[s, b], indices, label * fan_in, fan_in, load(g, 0), values, label * fan_in)


@njit_parallel(work=work_of_rows)
def _backward(h, layer, dscores, dh, dvalues, dbias, blocks, dblocks):
    # The parallel loops only call functions, never inlined ones: numba 0.68 drops what the body of a parallel loop
    # itself writes to the arrays of a tuple.
    n_labels = layer.indices.shape[0]
    pack(h, blocks)
    for chunk in prange((n_labels + CHUNK - 1) // CHUNK):
        stop = min(n_labels, (chunk + 1) * CHUNK)
        _backward_of_labels(layer, dscores, blocks, chunk * CHUNK, stop, dvalues, dbias)
    n_splits, n_blocks = dblocks.shape[:2]
    for part in prange(n_blocks * n_splits):
        _backward_of_inputs(layer, dscores, dblocks, part // n_splits, part % n_splits)
    unpack_sum(dblocks, dh)


def backward(h, layer, dscores, dh, dvalues, dbias):
    """Gradients of ``sum(dscores * scores)``: dh (scattered), dvalues and dbias; all three are overwritten."""
    blocks = new_blocks(h)
    dblocks = aligned(np.zeros, (splits_of(len(blocks)), *blocks.shape))
    _backward(h, layer, dscores, dh, dvalues, dbias, blocks, dblocks)


@njit
def _gradients_of_block(h, layer, label_rows, loss, work, b, first, start, stop, dvalues, dbias, label_loss):
    """Scores and loss of 16 rows and the labels first + start ... first + stop; stores the gradients of their scores.

    Adds to dvalues and dbias (of these labels) and label_loss (of all). A few labels are scored before their gradients
    are computed: the inputs then come from the L1 cache, and a mispredicted branch does not delay the scores.
    """
    fan_in = layer.indices.shape[1]
    block, gradients, n_stored = work.blocks[b], work.gradients[b], start
    indices, values = layer.indices.reshape(-1), layer.values.reshape(-1)
    size, active = GROUP * LANES, np.empty(GROUP, np.int64)
    scores, signs = np.zeros(size, np.float32), np.empty(size, np.float32)
    losses, slopes, weights = np.empty(size, np.float32), np.empty(size, np.float32), np.zeros(LANES, np.float32)
    shifts = shifts_of_block(loss, b)
    weights[: min(LANES, h.shape[0] - b * LANES)] = ONE / np.float32(h.shape[0])
    for group in range(start, stop, GROUP):
        n = min(GROUP, stop - group)
        signs[:] = -ONE
        for i in range(n):
            label = first + group + i
            score = _score(block, indices, values, label * fan_in, fan_in, item(layer.bias, label))
            store(scores, i * LANES, score)
            for p in range(item(label_rows.indptr, label), item(label_rows.indptr, label + 1)):
                q = label_rows.rows[p] - b * LANES
                if 0 <= q < LANES:
                    signs[i * LANES + q] = ONE
        shift(scores, n, shifts)
        losses_and_slopes(loss.kind, scores, signs, losses, slopes)
        n_active = 0
        for i in range(n):  # a list without a branch: whether a label is active is unpredictable
            g = mul(load(slopes, i * LANES), load(weights, 0))
            store(slopes, i * LANES, g)
            active[n_active] = i
            n_active += any_nonzero(g)
        for a in range(n_active):
            i, j, label = active[a], group + active[a], first + group + active[a]
            g = load(slopes, i * LANES)
            store(gradients, n_stored * LANES, g)
            work.active[b, n_stored] = j
            n_stored += 1
            label_loss[label] += dot(load(losses, i * LANES), load(weights, 0))
            dbias[j - start] += dot(g, splat(ONE))
            _gather(block, indices, label * fan_in, fan_in, g, dvalues, (j - start) * fan_in)
    work.n_active[b, start // CHUNK] = n_stored - start


@njit
def _step_of_labels(
    h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, label_loss, work, first, start, stop
):
    """Losses, gradients and update of the labels first + start ... first + stop; saves their old values."""
    fan_in = layer.indices.shape[1]
    dvalues, dbias = np.zeros((stop - start) * fan_in, np.float32), np.zeros(stop - start, np.float32)
    label_loss[first + start : first + stop] = ZERO
    for b in range(work.blocks.shape[0]):
        _gradients_of_block(h, layer, label_rows, loss, work, b, first, start, stop, dvalues, dbias, label_loss)
    low, high = first + start, first + stop
    values, m, v = layer.values[low:high], values_moments.m[low:high], values_moments.v[low:high]
    work.values[start * fan_in : stop * fan_in] = values.reshape(-1)
    values, bias = values.reshape(-1), layer.bias[low:high]
    update_range(optimizer, values, dvalues, m.reshape(-1), v.reshape(-1), rates, values)
    update_range(optimizer, bias, dbias, bias_moments.m[low:high], bias_moments.v[low:high], rates, bias)


@njit
def _step_of_inputs(layer, work, b, s, first, n):
    """dh of a block of rows, from range s of the chunks of the `n` labels from `first` on."""
    fan_in, n_splits, n_chunks = layer.indices.shape[1], work.dblocks.shape[0], (n + CHUNK - 1) // CHUNK
    dblock, gradients, active = work.dblocks[s, b], work.gradients[b], work.active[b]
    indices = layer.indices.reshape(-1)
    for chunk in range(n_chunks * s // n_splits, n_chunks * (s + 1) // n_splits):
        low, high = chunk * CHUNK, chunk * CHUNK + work.n_active[b, chunk]
        for a in range(low, high):
            j = item(active, min(a + AHEAD, high - 1))  # the hardware prefetcher cannot predict these addresses
            prefetch_range(indices, (first + j) * fan_in, fan_in)
            prefetch_range(work.values, j * fan_in, fan_in)
            j = item(active, a)
            g = load(gradients, a * LANES)
            _scatter(dblock, indices, (first + j) * fan_in, fan_in, g, work.values, j * fan_in)


@njit_parallel(work=work_of_rows)
def _step(h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, dh, label_loss, work):
    n_labels = layer.indices.shape[0]
    pack(h, work.blocks)
    clear(work.dblocks)
    n_splits, n_blocks = work.dblocks.shape[:2]
    labels_per_pass = work.active.shape[1]
    for first in range(0, n_labels, labels_per_pass):
        n = min(labels_per_pass, n_labels - first)
        for part in prange((n + CHUNK - 1) // CHUNK):
            stop = min(n, (part + 1) * CHUNK)
            _step_of_labels(
                h,
                layer,
                label_rows,
                loss,
                optimizer,
                rates,
                values_moments,
                bias_moments,
                label_loss,
                work,
                first,
                part * CHUNK,
                stop,
            )
        for part in prange(n_blocks * n_splits):
            _step_of_inputs(layer, work, part // n_splits, part % n_splits, first, n)
    unpack_sum(work.dblocks, dh)


def step(h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, dh, label_loss):
    """Scores, loss, gradients and update in one pass over the labels, in place; no (B, L) array exists.

    Two phases: the thread that owns a range of labels scores, differentiates and updates it; then each block of rows
    computes dh from the score gradients of these labels and their old values. So the inputs and dh do not compete for
    the L2 cache. If all gradients of a block of rows are zero (squared hinge: every score beyond its margin), a label
    costs its scores only.
    """
    with workspace(workspace_shapes(*h.shape, *layer.indices.shape)) as work:
        _step(h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, dh, label_loss, work)


def softmax_shapes(n_rows, n_inputs, n_labels, fan_in):
    """{name: (shape, dtype)} that `softmax_sums` allocates."""
    return sums_shapes(n_rows, n_inputs, n_labels, CHUNK)


@njit
def _sums_of_labels(layer, block, start, stop, sums):
    """The sums of 16 rows over the labels from `start` to `stop`."""
    indices, values, fan_in = layer.indices.reshape(-1), layer.values.reshape(-1), layer.indices.shape[1]
    scores = np.empty((GROUP + 1) * LANES, np.float32)
    clear_sums(sums)
    for first in range(start, stop, GROUP):
        n = min(GROUP, stop - first)
        for j in range(n):
            label = first + j
            store(scores, j * LANES, _score(block, indices, values, label * fan_in, fan_in, item(layer.bias, label)))
        add_to_sums(scores, n, sums)


@njit_parallel(work=work_of_rows)
def _softmax_sums(h, layer, largest, total, blocks, part_sums):
    n_labels = layer.indices.shape[0]
    pack(h, blocks)
    for chunk in prange(part_sums.shape[0]):
        for b in range(blocks.shape[0]):
            stop = min((chunk + 1) * CHUNK, n_labels)
            _sums_of_labels(layer, blocks[b], chunk * CHUNK, stop, part_sums[chunk, b])
    merge_sums(part_sums, largest, total)


def softmax_sums(h, layer, largest, total):
    """The largest score of each row and the sum of ``exp(score - largest)`` over all labels, both (B,).

    The scores of 16 labels and 16 rows at a time stay in the cache; each chunk of labels has its own sums.
    """
    shapes = softmax_shapes(*h.shape, *layer.indices.shape)
    _softmax_sums(h, layer, largest, total, *(aligned(np.empty, *shape) for shape in shapes.values()))


def top_k_shapes(n_rows, n_inputs, n_labels, fan_in, k):
    """{name: (shape, dtype)} that `top_k` allocates."""
    return list_shapes(n_rows, n_inputs, k) if k <= MAX_LISTED else top_k_shapes_of_layer(n_rows, n_inputs, n_labels)


@njit_parallel(work=work_of_rows)
def _top_k(h, layer, top_scores, top_ids, blocks, part_scores, part_ids):
    k = top_scores.shape[1]
    n_labels, fan_in = layer.indices.shape
    pack(h, blocks)
    n_blocks, n_splits = part_scores.shape[:2]
    indices, values = layer.indices.reshape(-1), layer.values.reshape(-1)
    for part in prange(n_blocks * n_splits):
        b, s = part // n_splits, part % n_splits
        best, best_ids = part_scores[b, s], part_ids[b, s]
        best[:], best_ids[:] = WORST, -1
        worst, scores = np.full(LANES, WORST, np.float32), np.empty(LANES, np.float32)
        for label in range(n_labels * s // n_splits, n_labels * (s + 1) // n_splits):
            score = _score(blocks[b], indices, values, label * fan_in, fan_in, item(layer.bias, label))
            if any_above(score, load(worst, 0)):
                store(scores, 0, score)
                for q in range(LANES):
                    if beats_worst(scores[q], label, best[q], best_ids[q]):
                        insert(best[q], best_ids[q], scores[q], label)
                        worst[q] = best[q, k - 1]
    merge_lists(part_scores, part_ids, top_scores, top_ids)


def top_k(h, layer, top_scores, top_ids):
    """The k best labels per row: score descending, then label ascending.

    For small k only the k best scores so far are stored per row. Large k are sorted from all scores of some rows, at
    most 64 MiB at a time (or one row, if that is more).
    """
    if top_ids.shape[1] > MAX_LISTED:
        top_k_of_layer(forward, h, layer, top_scores, top_ids)
        return
    shapes = top_k_shapes(*h.shape, *layer.indices.shape, top_ids.shape[1])
    _top_k(h, layer, top_scores, top_ids, *(aligned(np.empty, *shape) for shape in shapes.values()))
