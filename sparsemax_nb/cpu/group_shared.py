"""Group-shared fixed fan-in output layer on the CPU: the labels of a group share their inputs, not their weights.

The inputs are packed into blocks of 16 rows (`blocks`). The scores of a group for one block are a small dense product:
each line of 16 inputs that is gathered meets one weight of every label. Four independent sums of 16 rows hide the
latency of a multiply-add and fit the 16 registers of AVX2. So all three products (scores, gradients of the weights,
gradients of the inputs) work on four sums at a time, then on the remaining ones singly (`group_products`).

bfloat16 weights are widened when a thread starts with its labels, and rounded stochastically when it is done. Threads
never share an output: results are bit-identical for any number of threads.
"""

import numpy as np
from numba import prange

from ..core.device import LINE, njit, njit_parallel
from .bfloat16 import as_float32, put
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
    step_shapes,
    sums_shapes,
    unpack_sum,
    work_of_rows,
    workspace,
)
from .group_products import FOUR, add_input_gradients, add_weight_gradients, group_scores, prefetch_inputs
from .losses import losses_and_slopes
from .optimizers import update_range
from .panels import pack_rows, padded
from .simd import (
    LANES,
    aligned,
    any_above,
    count_bits,
    dot,
    fmas,
    item,
    load,
    lowest_bit,
    mul,
    nonzero_lanes,
    prefetch_range,
    set_item,
    splat,
    store,
    stream,
    transpose,
)
from .top_k import MAX_LISTED, WORST, beats_worst, insert, top_k_of_layer, top_k_shapes_of_layer

ZERO, ONE = np.float32(0), np.float32(1)
#: Labels that one thread scores before it moves to the next block of rows: with 32 connections, 64 KiB of weights.
CHUNK = 512
#: Scores with more bytes are written past the caches, which could not keep them anyway.
MIN_STREAMED_BYTES = 1 << 24
#: How many labels ahead `_dh_of_labels` prefetches.
AHEAD = 8
#: Up to this many nonzero gradients of a group and block are processed singly: with 32 connections the break-even.
MAX_SINGLE_GRADIENTS = 12


@njit
def _chunk(group_size):
    """The number of labels per work item: about CHUNK, in whole groups."""
    return max(1, CHUNK // group_size) * group_size


# ---------------------------------------------------------------- forward


@njit
def _rows_of_scores(
    block, indices, start, fan_in, next_start, panels, offset, bias, label, scores, target, n_labels, streamed
):
    """Scores of 16 labels for 16 rows, from transposed weights (`panels`): one vector contains the scores of one row.

    ``scores[target + n_labels q + j]`` is that of label + j for row q, stored past the caches if `streamed`. The
    lines whose list begins at `next_start` are prefetched for the next call.
    """
    b = load(bias, label)
    for q in range(0, LANES, FOUR):
        prefetch_inputs(block, indices, next_start, fan_in, q // FOUR, FOUR)
        sums = b, b, b, b
        for k in range(fan_in):
            sums = fmas(block, item(indices, start + k) * LANES + q, 1, load(panels, offset + k * LANES), sums)
        row_start = target + q * n_labels
        if streamed:
            stream(scores, row_start, sums[0])
            stream(scores, row_start + n_labels, sums[1])
            stream(scores, row_start + 2 * n_labels, sums[2])
            stream(scores, row_start + 3 * n_labels, sums[3])
        else:
            store(scores, row_start, sums[0])
            store(scores, row_start + n_labels, sums[1])
            store(scores, row_start + 2 * n_labels, sums[2])
            store(scores, row_start + 3 * n_labels, sums[3])


@njit
def _forward_in_sixteens(layer, blocks, scores, first, stop, streamed):
    """Scores of all full blocks of rows and the labels from `first` to `stop`, in groups of a multiple of 16."""
    n_rows, n_labels = scores.shape
    group_size, fan_in = layer.group_size, layer.indices.shape[1]
    indices, flat, bias = layer.indices.reshape(-1), scores.reshape(-1), layer.bias
    panels, values = np.empty(((stop - first) // LANES, fan_in, LANES), np.float32), layer.values.reshape(-1)
    pack_rows(as_float32(values[first * fan_in : stop * fan_in]), 0, stop - first, panels)
    packed, n_blocks = panels.reshape(-1), n_rows // LANES
    for b in range(n_blocks):
        block, block_start = blocks[b], b * LANES * n_labels
        for label in range(first, stop, LANES):
            ahead = (stop + label - first) * fan_in + LANES * fan_in * b // n_blocks
            prefetch_range(values, ahead, min(LANES * fan_in // n_blocks, values.size - ahead))
            start, offset = label // group_size * fan_in, (label - first) * fan_in
            next_start = (label + LANES) // group_size * fan_in
            target = block_start + label
            _rows_of_scores(
                block, indices, start, fan_in, next_start, packed, offset, bias, label, flat, target, n_labels, streamed
            )


@njit
def _forward_of_labels(layer, blocks, scores, first, stop, first_block):
    """Scores of the rows from block `first_block` on and the labels of whole groups from `first` to `stop`."""
    n_rows, n_labels = scores.shape
    group_size, fan_in = layer.group_size, layer.indices.shape[1]
    indices, flat = layer.indices.reshape(-1), scores.reshape(-1)
    values = as_float32(layer.values[first:stop].reshape(-1))
    tile = np.empty(padded(group_size, LANES) * LANES, np.float32)
    for b in range(first_block, blocks.shape[0]):
        row, rows = b * LANES, min(LANES, n_rows - b * LANES)
        for label in range(first, stop, group_size):
            n, start, offset = min(group_size, stop - label), label // group_size * fan_in, (label - first) * fan_in
            group_scores(blocks[b], indices, start, fan_in, values, offset, layer.bias, label, n, tile)
            whole = n - n % LANES if rows == LANES else 0
            for j in range(0, whole, LANES):
                transpose(tile, j * LANES, LANES, flat, row * n_labels + label + j, n_labels)
            for q in range(rows):
                for j in range(whole, n):
                    scores[row + q, label + j] = tile[j * LANES + q]


@njit
def _forward_of_part(layer, blocks, scores, first, stop, streamed):
    whole = first  # the end of the labels that are scored in sixteens
    if layer.group_size % LANES == 0:
        whole = stop - (stop - first) % LANES
        _forward_in_sixteens(layer, blocks, scores, first, whole, streamed)
        if scores.shape[0] % LANES:
            _forward_of_labels(layer, blocks, scores, first, whole, scores.shape[0] // LANES)
    if whole < stop:
        _forward_of_labels(layer, blocks, scores, whole, stop, 0)


@njit_parallel(work=work_of_rows)
def _forward(h, layer, scores, blocks, chunk, streamed):
    n_labels = layer.values.shape[0]
    pack(h, blocks)
    for part in prange((n_labels + chunk - 1) // chunk):
        _forward_of_part(layer, blocks, scores, part * chunk, min(n_labels, (part + 1) * chunk), streamed)


def forward(h, layer, scores):
    """``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l // G, k]]``.

    Groups of a multiple of 16 labels are scored 16 labels per vector, so that rows of scores are stored directly;
    other groups 16 rows per vector, then transposed. Scores too large for the caches bypass them if every row of
    scores is aligned to a cache line.
    """
    streamed = scores.nbytes > MIN_STREAMED_BYTES and scores.shape[1] % LANES == 0 and scores.ctypes.data % LINE == 0
    _forward(h, layer, scores, new_blocks(h), _chunk(layer.group_size), streamed)


# ---------------------------------------------------------------- backward and step


def workspace_shapes(n_rows, n_inputs, n_labels, fan_in, group_size):
    """{name: (shape, dtype)} that `step` and `backward` allocate."""
    return step_shapes(n_rows, n_inputs, n_labels, fan_in, _chunk(group_size))


def _workspace(h, layer):
    n_labels, fan_in = layer.values.shape
    return workspace(workspace_shapes(*h.shape, n_labels, fan_in, layer.group_size))


@njit
def _scratch(group_size, fan_in):
    """Scratch of a thread for one group and block: packed slopes, active labels, padded indices, transposed inputs."""
    n, width = padded(group_size, FOUR) + 1, padded(fan_in, LANES)
    packed, inputs = np.empty(n * LANES, np.float32), np.empty(width * LANES, np.float32)
    return packed, np.empty(n, np.int64), np.empty(width, np.int32), inputs


@njit
def _add_few_weight_gradients(block, indices, start, fan_in, g, active, n_active, dvalues, first_row, width):
    """`add_weight_gradients` for few nonzero gradients: one batch row at a time instead of a dense product."""
    for a in range(n_active):
        offset, lanes = (first_row + item(active, a)) * width, nonzero_lanes(load(g, a * LANES))
        while lanes != 0:
            q = lowest_bit(lanes)
            lanes &= lanes - 1
            slope = item(g, a * LANES + q)
            for k in range(fan_in):
                h = item(block, item(indices, start + k) * LANES + q)
                set_item(dvalues, offset + k, item(dvalues, offset + k) + slope * h)


@njit
def _backward_of_group(
    block, indices, start, fan_in, slopes, n, scratch, gradients, ids, n_stored, label, dvalues, dbias, first_row
):
    """Add the gradients of the weights of n labels, given those of their scores (`slopes`).

    Returns the number of active labels. Their slopes are stored for `_dh_of_labels`, from number `n_stored` of
    `gradients` and `ids` on. `label` is the first label's number in the workspace, `first_row` its row in dvalues and
    dbias, whose last row takes padding only.
    """
    packed, active, padded_indices, inputs = scratch
    n_active = n_slopes = 0
    for j in range(n):  # a list without a branch: whether a label is active is unpredictable
        g = load(slopes, j * LANES)
        lanes = nonzero_lanes(g)
        store(packed, n_active * LANES, g)
        active[n_active] = j
        n_active += lanes != 0
        n_slopes += count_bits(lanes)
    for a in range(n_active):
        g, j = load(packed, a * LANES), item(active, a)
        store(gradients, (n_stored + a) * LANES, g)
        ids[n_stored + a] = label + j
        dbias[first_row + j] += dot(g, splat(ONE))
    if n_slopes <= MAX_SINGLE_GRADIENTS:
        _add_few_weight_gradients(
            block, indices, start, fan_in, packed, active, n_active, dvalues, first_row, padded_indices.size
        )
    else:
        for a in range(n_active, padded(n_active, FOUR)):
            active[a] = dbias.size - 1 - first_row
            store(packed, a * LANES, splat(ZERO))
        for k in range(padded_indices.size):  # pad with the last index
            padded_indices[k] = item(indices, start + min(k, fan_in - 1))
        add_weight_gradients(block, padded_indices, inputs, packed, active, n_active, dvalues, first_row)
    return n_active


@njit
def _gradients_of_block(h, layer, label_rows, loss, work, b, first, start, stop, scratch, dvalues, dbias, label_loss):
    """Scores and loss of 16 rows and the labels first + start ... first + stop; stores the gradients of their scores.

    Adds to dvalues and dbias (of these labels) and label_loss (of all).
    """
    group_size, fan_in, flat = layer.group_size, layer.indices.shape[1], layer.indices.reshape(-1)
    block, gradients, ids, values, n_stored = work.blocks[b], work.gradients[b], work.active[b], work.values, start
    bias, indptr, rows, size = layer.bias, label_rows.indptr, label_rows.rows, group_size * LANES
    active = scratch[1]
    scores, signs = np.zeros(size, np.float32), np.empty(size, np.float32)
    losses, slopes, weights = np.empty(size, np.float32), np.empty(size, np.float32), np.zeros(LANES, np.float32)
    shifts = shifts_of_block(loss, b)
    weights[: min(LANES, h.shape[0] - b * LANES)] = ONE / np.float32(h.shape[0])
    for j in range(start, stop, group_size):
        label, n = first + j, min(group_size, stop - j)
        group = label // group_size
        group_scores(block, flat, group * fan_in, fan_in, values, j * fan_in, bias, label, n, scores)
        for i in range(n):
            store(signs, i * LANES, splat(-ONE))
            for p in range(item(indptr, label + i), item(indptr, label + i + 1)):
                q = item(rows, p) - b * LANES
                if 0 <= q < LANES:
                    signs[i * LANES + q] = ONE
        shift(scores, n, shifts)
        losses_and_slopes(loss.kind, scores, signs, losses, slopes)
        for i in range(n):
            store(slopes, i * LANES, mul(load(slopes, i * LANES), load(weights, 0)))
        k = group * fan_in
        n_active = _backward_of_group(
            block, flat, k, fan_in, slopes, n, scratch, gradients, ids, n_stored, j, dvalues, dbias, j - start
        )
        n_stored += n_active
        for a in range(n_active):
            i = item(active, a)
            label_loss[label + i] += dot(load(losses, i * LANES), load(weights, 0))
    work.n_active[b, start // _chunk(group_size)] = n_stored - start


@njit
def _without_padding(rows, n, width):
    """The first `width` numbers of each of n rows of equal length, without the extra last row; flat."""
    length = rows.size // (n + 1)
    if length == width:
        return rows[: n * width]
    return rows.reshape(n + 1, length)[:n, :width].copy().reshape(-1)


@njit
def _step_of_labels(
    h,
    layer,
    label_rows,
    loss,
    optimizer,
    rates,
    values_moments,
    bias_moments,
    rounding,
    label_loss,
    work,
    first,
    start,
    stop,
):
    """Losses, gradients and update of the labels first + start ... first + stop; saves their old values."""
    n, fan_in, low, high = stop - start, layer.indices.shape[1], first + start, first + stop
    dvalues, dbias = np.zeros((n + 1) * padded(fan_in, LANES), np.float32), np.zeros(n + 1, np.float32)
    values, old = layer.values[low:high].reshape(-1), work.values[start * fan_in : stop * fan_in]
    old[:] = as_float32(values)
    label_loss[low:high] = ZERO
    scratch = _scratch(layer.group_size, fan_in)
    for b in range(work.blocks.shape[0]):
        _gradients_of_block(
            h, layer, label_rows, loss, work, b, first, start, stop, scratch, dvalues, dbias, label_loss
        )
    new = np.empty(n * fan_in, np.float32)
    m, v = values_moments.m[low:high].reshape(-1), values_moments.v[low:high].reshape(-1)
    update_range(optimizer, old, _without_padding(dvalues, n, fan_in), m, v, rates, new)
    put(new, rounding, low * fan_in, values)
    bias, m, v = layer.bias[low:high], bias_moments.m[low:high], bias_moments.v[low:high]
    update_range(optimizer, bias, dbias, m, v, rates, bias)


@njit
def _dh_of_labels(layer, work, b, s, first, n):
    """dh of a block of rows, from range s of the chunks of the `n` labels from `first` on."""
    group_size, fan_in, n_splits = layer.group_size, layer.indices.shape[1], work.dblocks.shape[0]
    dblock, gradients, active = work.dblocks[s, b], work.gradients[b], work.active[b]
    indices, size = layer.indices.reshape(-1), _chunk(group_size)
    n_chunks, first_group = (n + size - 1) // size, first // group_size
    for chunk in range(n_chunks * s // n_splits, n_chunks * (s + 1) // n_splits):
        low, end = chunk * size, chunk * size + work.n_active[b, chunk]
        while low < end:
            group, high = item(active, low) // group_size, low
            while high < end and item(active, high) // group_size == group:
                prefetch_range(work.values, item(active, min(high + AHEAD, end - 1)) * fan_in, fan_in)
                high += 1
            start, next_group = (first_group + group) * fan_in, item(active, min(high, end - 1)) // group_size
            next_start = (first_group + next_group) * fan_in
            add_input_gradients(dblock, indices, start, next_start, fan_in, gradients, work.values, active, low, high)
            low = high


@njit_parallel(work=work_of_rows)
def _step(
    h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, rounding, dh, label_loss, work, chunk
):
    n_labels = layer.values.shape[0]
    pack(h, work.blocks)
    clear(work.dblocks)
    n_splits, n_blocks = work.dblocks.shape[:2]
    labels_per_pass = work.active.shape[1]
    for first in range(0, n_labels, labels_per_pass):
        n = min(labels_per_pass, n_labels - first)
        for part in prange((n + chunk - 1) // chunk):
            stop = min(n, (part + 1) * chunk)
            _step_of_labels(
                h,
                layer,
                label_rows,
                loss,
                optimizer,
                rates,
                values_moments,
                bias_moments,
                rounding,
                label_loss,
                work,
                first,
                part * chunk,
                stop,
            )
        for part in prange(n_blocks * n_splits):
            _dh_of_labels(layer, work, part // n_splits, part % n_splits, first, n)
    unpack_sum(work.dblocks, dh)


def step(h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, rounding, dh, label_loss):
    """Scores, loss, gradients and update in one pass over the groups, in place; no (B, L) array exists.

    Two phases, as in `fixed_fan_in.step`. A label without a gradient in a block of rows costs its scores only.
    """
    inputs = h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, rounding
    with _workspace(h, layer) as work:
        _step(*inputs, dh, label_loss, work, _chunk(layer.group_size))


@njit
def _backward_of_labels(layer, dscores, work, first, start, stop, dvalues, dbias):
    """dvalues and dbias of the labels first + start ... first + stop; saves their values and slopes."""
    n, low, high = stop - start, first + start, first + stop
    group_size, fan_in = layer.group_size, layer.indices.shape[1]
    padded_dvalues, padded_dbias = np.zeros((n + 1) * padded(fan_in, LANES), np.float32), np.zeros(n + 1, np.float32)
    work.values[start * fan_in : stop * fan_in] = as_float32(layer.values[low:high].reshape(-1))
    slopes, flat = np.zeros(group_size * LANES, np.float32), layer.indices.reshape(-1)
    scratch = _scratch(group_size, fan_in)
    for b in range(work.blocks.shape[0]):
        block, gradients, ids, n_stored = work.blocks[b], work.gradients[b], work.active[b], start
        rows = min(LANES, dscores.shape[0] - b * LANES)
        for j in range(start, stop, group_size):
            label, m = first + j, min(group_size, stop - j)
            for i in range(m):
                for q in range(LANES):
                    slopes[i * LANES + q] = dscores[b * LANES + q, label + i] if q < rows else ZERO
            k = label // group_size * fan_in
            n_stored += _backward_of_group(
                block,
                flat,
                k,
                fan_in,
                slopes,
                m,
                scratch,
                gradients,
                ids,
                n_stored,
                j,
                padded_dvalues,
                padded_dbias,
                j - start,
            )
        work.n_active[b, start // _chunk(group_size)] = n_stored - start
    dvalues[low:high] = _without_padding(padded_dvalues, n, fan_in).reshape(n, fan_in)
    dbias[low:high] = padded_dbias[:n]


@njit_parallel(work=work_of_rows)
def _backward(h, layer, dscores, dh, dvalues, dbias, work, chunk):
    n_labels = layer.values.shape[0]
    pack(h, work.blocks)
    clear(work.dblocks)
    n_splits, n_blocks = work.dblocks.shape[:2]
    labels_per_pass = work.active.shape[1]
    for first in range(0, n_labels, labels_per_pass):
        n = min(labels_per_pass, n_labels - first)
        for part in prange((n + chunk - 1) // chunk):
            _backward_of_labels(layer, dscores, work, first, part * chunk, min(n, (part + 1) * chunk), dvalues, dbias)
        for part in prange(n_blocks * n_splits):
            _dh_of_labels(layer, work, part // n_splits, part % n_splits, first, n)
    unpack_sum(work.dblocks, dh)


def backward(h, layer, dscores, dh, dvalues, dbias):
    """Gradients of ``sum(dscores * scores)``: dh (scattered), dvalues (float32), dbias; all three are overwritten."""
    with _workspace(h, layer) as work:
        _backward(h, layer, dscores, dh, dvalues, dbias, work, _chunk(layer.group_size))


# ---------------------------------------------------------------- the sums of a softmax


def softmax_shapes(n_rows, n_inputs, n_labels, fan_in, group_size):
    """{name: (shape, dtype)} that `softmax_sums` allocates."""
    return sums_shapes(n_rows, n_inputs, n_labels, _chunk(group_size))


@njit
def _sums_of_labels(layer, blocks, first, stop, sums):
    """The sums of all rows over the labels of whole groups from `first` to `stop`, (n_blocks, 32)."""
    group_size, fan_in, indices = layer.group_size, layer.indices.shape[1], layer.indices.reshape(-1)
    values, tile = as_float32(layer.values[first:stop].reshape(-1)), np.empty((group_size + 1) * LANES, np.float32)
    for b in range(blocks.shape[0]):
        clear_sums(sums[b])
        for label in range(first, stop, group_size):
            n, start, offset = min(group_size, stop - label), label // group_size * fan_in, (label - first) * fan_in
            group_scores(blocks[b], indices, start, fan_in, values, offset, layer.bias, label, n, tile)
            add_to_sums(tile, n, sums[b])


@njit_parallel(work=work_of_rows)
def _softmax_sums(h, layer, largest, total, chunk, blocks, part_sums):
    n_labels = layer.values.shape[0]
    pack(h, blocks)
    for part in prange(part_sums.shape[0]):
        _sums_of_labels(layer, blocks, part * chunk, min(n_labels, (part + 1) * chunk), part_sums[part])
    merge_sums(part_sums, largest, total)


def softmax_sums(h, layer, largest, total):
    """The largest score of each row and the sum of ``exp(score - largest)`` over all labels, both (B,).

    The scores of one group and 16 rows at a time stay in the cache; each chunk of labels has its own sums.
    """
    shapes = softmax_shapes(*h.shape, *layer.values.shape, layer.group_size)
    arrays = (aligned(np.empty, *shape) for shape in shapes.values())
    _softmax_sums(h, layer, largest, total, _chunk(layer.group_size), *arrays)


# ---------------------------------------------------------------- top-k


def top_k_shapes(n_rows, n_inputs, n_labels, fan_in, group_size, k):
    """{name: (shape, dtype)} that `top_k` allocates."""
    return list_shapes(n_rows, n_inputs, k) if k <= MAX_LISTED else top_k_shapes_of_layer(n_rows, n_inputs, n_labels)


@njit
def _best_of_labels(layer, block, first, stop, best, best_ids):
    """The best of the labels of whole groups from `first` to `stop`, for each of 16 rows: lists (16, k)."""
    group_size, fan_in = layer.group_size, layer.indices.shape[1]
    indices, k = layer.indices.reshape(-1), best.shape[1]
    best[:], best_ids[:] = WORST, -1
    worst, tile = np.full(LANES, WORST, np.float32), np.empty(group_size * LANES, np.float32)
    chunk = _chunk(group_size)
    for low in range(first, stop, chunk):
        high = min(stop, low + chunk)
        values = as_float32(layer.values[low:high].reshape(-1))
        for label in range(low, high, group_size):
            n, start, offset = min(group_size, stop - label), label // group_size * fan_in, (label - low) * fan_in
            group_scores(block, indices, start, fan_in, values, offset, layer.bias, label, n, tile)
            for j in range(n):
                if any_above(load(tile, j * LANES), load(worst, 0)):
                    for q in range(LANES):
                        if beats_worst(tile[j * LANES + q], label + j, best[q], best_ids[q]):
                            insert(best[q], best_ids[q], tile[j * LANES + q], label + j)
                            worst[q] = best[q, k - 1]


@njit_parallel(work=work_of_rows)
def _top_k(h, layer, top_scores, top_ids, blocks, part_scores, part_ids):
    n_labels, n_groups, group_size = layer.values.shape[0], layer.indices.shape[0], layer.group_size
    pack(h, blocks)
    n_blocks, n_splits = part_scores.shape[:2]
    for part in prange(n_blocks * n_splits):
        b, s = part // n_splits, part % n_splits
        first, stop = n_groups * s // n_splits * group_size, n_groups * (s + 1) // n_splits * group_size
        _best_of_labels(layer, blocks[b], first, min(n_labels, stop), part_scores[b, s], part_ids[b, s])
    merge_lists(part_scores, part_ids, top_scores, top_ids)


def top_k(h, layer, top_scores, top_ids):
    """The k best labels per row: score descending, then label ascending.

    For small k only the k best scores so far are stored; large k are sorted from all scores of some rows, at most 64
    MiB.
    """
    if top_ids.shape[1] > MAX_LISTED:
        top_k_of_layer(forward, h, layer, top_scores, top_ids)
        return
    shapes = list_shapes(*h.shape, top_ids.shape[1])
    _top_k(h, layer, top_scores, top_ids, *(aligned(np.empty, *shape) for shape in shapes.values()))
