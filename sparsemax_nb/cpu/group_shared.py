"""Group-shared fixed fan-in output layer on the CPU: groups of labels share their inputs, not their weights.

Inputs lie in blocks of 16 rows (`blocks`). A group's scores for a block are a small dense product: each gathered line
of inputs meets a weight of every label. Four sums of 16 rows side by side hide the latency of a multiply-add and fit
the 16 registers of AVX2; so all three products (scores, gradients by the weights, gradients by the inputs) are made of
fours, and of ones for what is left over.

Weights in bfloat16 are widened where a thread takes up its labels, and rounded stochastically where it leaves them.
Threads never share an output: results are bit-identical for any number of threads.
"""

import numpy as np
from numba import prange

from ..core.device import LINE, njit, njit_inline, njit_parallel
from .bfloat16 import as_float32, put
from .blocks import clear, list_shapes, merge_lists, new_blocks, pack, step_shapes, unpack_sum, work_of_rows, workspace
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
    prefetch,
    prefetch_range,
    set_item,
    splat,
    store,
    stores,
    stream,
    transpose,
    transposed,
)
from .top_k import LISTED, WORST, enters, insert, of_layer, shapes_of_layer

ZERO, ONE = np.float32(0), np.float32(1)
FOUR = 4
#: Labels that one thread scores before it moves to the next block of rows: with 32 connections, 64 KiB of weights.
CHUNK = 512
#: Bytes of scores above which they are not kept in the caches.
STREAMED = 1 << 24
#: Labels that the collection of dh looks ahead.
AHEAD = 8
#: Gradients of a group and block of rows that are taken one by one, not as a product: with 32 connections as fast.
FEW = 12


@njit
def _chunk(group_size):
    """Labels of whole groups, about CHUNK."""
    return max(1, CHUNK // group_size) * group_size


# ---------------------------------------------------------------- the products of one group and one block of rows


@njit_inline
def _scores_of_some(block, indices, start, fan_in, values, at, sums):
    """sums[j] + the scores of neighbouring labels, whose weights begin at ``values[at + K j]``."""
    for k in range(fan_in):
        line = load(block, item(indices, start + k) * LANES)
        sums = fmas(values, at + k, fan_in, line, sums)
    return sums


@njit
def _prefetch(block, indices, start, fan_in, part, n_parts):
    """Begin to load one of n_parts parts of a group's lines: no prefetcher of the processor foresees them.

    Part by part between products, since a core waits for the first of them where more are asked for than it can have
    on their way.
    """
    for k in range(start + fan_in * part // n_parts, min(start + fan_in * (part + 1) // n_parts, indices.size)):
        prefetch(block, item(indices, k) * LANES)


@njit
def _scores(block, indices, start, fan_in, values, at, bias, first, n, tile):
    """``tile[16 j + q]`` = score of label first + j, j < n, for row q of a block; fetches the next group's lines."""
    whole = n - n % FOUR
    for j in range(0, whole, FOUR):
        _prefetch(block, indices, start + fan_in, fan_in, j // FOUR, whole // FOUR)
        b = first + j
        sums = splat(item(bias, b)), splat(item(bias, b + 1)), splat(item(bias, b + 2)), splat(item(bias, b + 3))
        sums = _scores_of_some(block, indices, start, fan_in, values, at + j * fan_in, sums)
        stores(tile, j * LANES, sums)
    for j in range(whole, n):
        one = (splat(item(bias, first + j)),)
        one = _scores_of_some(block, indices, start, fan_in, values, at + j * fan_in, one)
        stores(tile, j * LANES, one)


@njit
def _by_weights(block, places, inputs, g, active, n_active, dvalues, place):
    """Row place + active[a] of dvalues += sum over 16 rows of g[a] times the inputs at `places`.

    g and active are filled up to a four. dvalues is flat, its rows are as long as places; `inputs` is room for them,
    turned.
    """
    width = places.size
    for k in range(0, width, LANES):
        transposed(block, places, k, inputs, k * LANES)
    for a in range(0, n_active, FOUR):
        r0, r1 = (place + item(active, a)) * width, (place + item(active, a + 1)) * width
        r2, r3 = (place + item(active, a + 2)) * width, (place + item(active, a + 3)) * width
        for k in range(0, width, LANES):
            sums = load(dvalues, r0 + k), load(dvalues, r1 + k), load(dvalues, r2 + k), load(dvalues, r3 + k)
            for q in range(LANES):
                sums = fmas(g, a * LANES + q, LANES, load(inputs, k * LANES + q * LANES), sums)
            store(dvalues, r0 + k, sums[0])
            store(dvalues, r1 + k, sums[1])
            store(dvalues, r2 + k, sums[2])
            store(dvalues, r3 + k, sums[3])


@njit
def _by_inputs(dblock, indices, start, following, fan_in, gradients, values, active, low, high):
    """Lines of dblock += sum over a from low to high of the weights of label ``active[a]`` times its gradients.

    The lines whose list begins at `following` are fetched for the next call.
    """
    whole = fan_in - fan_in % FOUR
    for k in range(0, whole, FOUR):
        _prefetch(dblock, indices, following, fan_in, k // FOUR, whole // FOUR)
        i0, i1 = item(indices, start + k) * LANES, item(indices, start + k + 1) * LANES
        i2, i3 = item(indices, start + k + 2) * LANES, item(indices, start + k + 3) * LANES
        lines = load(dblock, i0), load(dblock, i1), load(dblock, i2), load(dblock, i3)
        for a in range(low, high):
            lines = fmas(values, item(active, a) * fan_in + k, 1, load(gradients, a * LANES), lines)
        store(dblock, i0, lines[0])
        store(dblock, i1, lines[1])
        store(dblock, i2, lines[2])
        store(dblock, i3, lines[3])
    for k in range(whole, fan_in):
        i = item(indices, start + k) * LANES
        line = (load(dblock, i),)
        for a in range(low, high):
            line = fmas(values, item(active, a) * fan_in + k, 1, load(gradients, a * LANES), line)
        stores(dblock, i, line)


# ---------------------------------------------------------------- forward


@njit
def _rows_of_scores(
    block, indices, start, fan_in, following, transposed, at, bias, label, scores, place, n_labels, is_streamed
):
    """Scores of 16 labels for 16 rows, from weights that are turned round: a vector holds those of one row.

    ``scores[place + n_labels q + j]`` is that of label + j for row q, stored past the caches with `is_streamed`.
    The lines whose list begins at `following` are fetched for the next call.
    """
    b = load(bias, label)
    for q in range(0, LANES, FOUR):
        _prefetch(block, indices, following, fan_in, q // FOUR, FOUR)
        sums = b, b, b, b
        for k in range(fan_in):
            sums = fmas(block, item(indices, start + k) * LANES + q, 1, load(transposed, at + k * LANES), sums)
        to = place + q * n_labels
        if is_streamed:
            stream(scores, to, sums[0])
            stream(scores, to + n_labels, sums[1])
            stream(scores, to + 2 * n_labels, sums[2])
            stream(scores, to + 3 * n_labels, sums[3])
        else:
            store(scores, to, sums[0])
            store(scores, to + n_labels, sums[1])
            store(scores, to + 2 * n_labels, sums[2])
            store(scores, to + 3 * n_labels, sums[3])


@njit
def _forward_of_sixteens(layer, blocks, scores, first, stop, is_streamed):
    """Scores of all whole blocks of rows and of the labels from `first` to `stop`, in groups of a multiple of 16."""
    n_rows, n_labels = scores.shape
    group_size, fan_in = layer.group_size, layer.indices.shape[1]
    indices, flat, bias = layer.indices.reshape(-1), scores.reshape(-1), layer.bias
    panels, values = np.empty(((stop - first) // LANES, fan_in, LANES), np.float32), layer.values.reshape(-1)
    pack_rows(as_float32(values[first * fan_in : stop * fan_in]), 0, stop - first, panels)
    transposed, n_blocks = panels.reshape(-1), n_rows // LANES
    for b in range(n_blocks):
        block, place = blocks[b], b * LANES * n_labels
        for label in range(first, stop, LANES):
            ahead = (stop + label - first) * fan_in + LANES * fan_in * b // n_blocks
            prefetch_range(values, ahead, min(LANES * fan_in // n_blocks, values.size - ahead))
            start, at = label // group_size * fan_in, (label - first) * fan_in
            following = (label + LANES) // group_size * fan_in
            _rows_of_scores(
                block,
                indices,
                start,
                fan_in,
                following,
                transposed,
                at,
                bias,
                label,
                flat,
                place + label,
                n_labels,
                is_streamed,
            )


@njit
def _forward_of_labels(layer, blocks, scores, first, stop, first_block):
    """Scores of the rows from block number `first_block` on, and the labels of whole groups from `first` to `stop`."""
    n_rows, n_labels = scores.shape
    group_size, fan_in = layer.group_size, layer.indices.shape[1]
    indices, flat = layer.indices.reshape(-1), scores.reshape(-1)
    values = as_float32(layer.values[first:stop].reshape(-1))
    tile = np.empty(padded(group_size, LANES) * LANES, np.float32)
    for b in range(first_block, blocks.shape[0]):
        row, rows = b * LANES, min(LANES, n_rows - b * LANES)
        for label in range(first, stop, group_size):
            n, start, at = min(group_size, stop - label), label // group_size * fan_in, (label - first) * fan_in
            _scores(blocks[b], indices, start, fan_in, values, at, layer.bias, label, n, tile)
            whole = n - n % LANES if rows == LANES else 0
            for j in range(0, whole, LANES):
                transpose(tile, j * LANES, LANES, flat, row * n_labels + label + j, n_labels)
            for q in range(rows):
                for j in range(whole, n):
                    scores[row + q, label + j] = tile[j * LANES + q]


@njit
def _forward_of_part(layer, blocks, scores, first, stop, is_streamed):
    whole = first
    if layer.group_size % LANES == 0:
        whole = stop - (stop - first) % LANES
        _forward_of_sixteens(layer, blocks, scores, first, whole, is_streamed)
        if scores.shape[0] % LANES:
            _forward_of_labels(layer, blocks, scores, first, whole, scores.shape[0] // LANES)
    if whole < stop:
        _forward_of_labels(layer, blocks, scores, whole, stop, 0)


@njit_parallel(work=work_of_rows)
def _forward(h, layer, scores, blocks, chunk, is_streamed):
    n_labels = layer.values.shape[0]
    pack(h, blocks)
    for part in prange((n_labels + chunk - 1) // chunk):
        _forward_of_part(layer, blocks, scores, part * chunk, min(n_labels, (part + 1) * chunk), is_streamed)


def forward(h, layer, scores):
    """``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l // G, k]]``.

    Groups of a multiple of 16 labels are scored sixteen labels a vector, so that rows of scores are stored as they
    come; others sixteen rows a vector, which are turned round. Scores too many for the caches go past them, where each
    row of them begins with a cache line.
    """
    is_streamed = scores.nbytes > STREAMED and scores.shape[1] % LANES == 0 and scores.ctypes.data % LINE == 0
    _forward(h, layer, scores, new_blocks(h), _chunk(layer.group_size), is_streamed)


# ---------------------------------------------------------------- backward and step


def workspace_shapes(n_rows, n_inputs, n_labels, fan_in, group_size):
    """{name: (shape, dtype)} of what `step` and `backward` allocate."""
    return step_shapes(n_rows, n_inputs, n_labels, fan_in, _chunk(group_size))


def _workspace(h, layer):
    n_labels, fan_in = layer.values.shape
    return workspace(workspace_shapes(*h.shape, n_labels, fan_in, layer.group_size))


@njit
def _room(group_size, fan_in):
    """What a thread keeps for one group and one block: packed slopes, active labels, places, inputs turned round."""
    n, width = padded(group_size, FOUR) + 1, padded(fan_in, LANES)
    packed, active = np.empty(n * LANES, np.float32), np.empty(n, np.int64)
    return packed, active, np.empty(width, np.int32), np.empty(width * LANES, np.float32)


@njit
def _one_by_one(block, indices, start, fan_in, g, active, n_active, dvalues, place, width):
    """Row place + active[a] of dvalues += the inputs of each row of the batch whose gradient is not zero, times it."""
    for a in range(n_active):
        at, lanes = (place + item(active, a)) * width, nonzero_lanes(load(g, a * LANES))
        while lanes != 0:
            q = lowest_bit(lanes)
            lanes &= lanes - 1
            slope = item(g, a * LANES + q)
            for k in range(fan_in):
                h = item(block, item(indices, start + k) * LANES + q)
                set_item(dvalues, at + k, item(dvalues, at + k) + slope * h)


@njit
def _by_scores(
    block,
    indices,
    start,
    fan_in,
    slopes,
    n,
    packed,
    active,
    places,
    inputs,
    gradients,
    ids,
    kept,
    label,
    dvalues,
    dbias,
    place,
):
    """From the gradients by the scores of n labels, to those by their weights; n active labels.

    Theirs are kept for those by the inputs, from number `kept` of `gradients` and `ids` on. `label` is the first one's
    number in the workspace, `place` in dvalues and dbias, whose last row is nobody's.
    """
    n_active = n_slopes = 0
    for j in range(n):  # a list without a branch: whether a label is active can not be guessed
        g = load(slopes, j * LANES)
        lanes = nonzero_lanes(g)
        store(packed, n_active * LANES, g)
        active[n_active] = j
        n_active += lanes != 0
        n_slopes += count_bits(lanes)
    for a in range(n_active):
        g, j = load(packed, a * LANES), item(active, a)
        store(gradients, (kept + a) * LANES, g)
        ids[kept + a] = label + j
        dbias[place + j] += dot(g, splat(ONE))
    if n_slopes <= FEW:
        _one_by_one(block, indices, start, fan_in, packed, active, n_active, dvalues, place, places.size)
    else:
        for a in range(n_active, padded(n_active, FOUR)):
            active[a] = dbias.size - 1 - place
            store(packed, a * LANES, splat(ZERO))
        for k in range(places.size):  # the last one again where there are fewer
            places[k] = item(indices, start + min(k, fan_in - 1))
        _by_weights(block, places, inputs, packed, active, n_active, dvalues, place)
    return n_active


@njit
def _gradients_of_block(h, layer, label_rows, loss, work, b, first, start, stop, room, dvalues, dbias, label_loss):
    """Scores and loss of 16 rows and the labels first + start ... first + stop; keeps their gradients by the scores.

    Adds to dvalues and dbias (of these labels) and label_loss (of all).
    """
    group_size, fan_in, flat = layer.group_size, layer.indices.shape[1], layer.indices.reshape(-1)
    block, gradients, ids, values, kept = work.blocks[b], work.gradients[b], work.active[b], work.values, start
    bias, indptr, rows, size = layer.bias, label_rows.indptr, label_rows.rows, group_size * LANES
    packed, active, places, inputs = room
    scores, signs = np.zeros(size, np.float32), np.empty(size, np.float32)
    losses, slopes, weights = np.empty(size, np.float32), np.empty(size, np.float32), np.zeros(LANES, np.float32)
    weights[: min(LANES, h.shape[0] - b * LANES)] = ONE / np.float32(h.shape[0])
    for j in range(start, stop, group_size):
        label, n = first + j, min(group_size, stop - j)
        group = label // group_size
        _scores(block, flat, group * fan_in, fan_in, values, j * fan_in, bias, label, n, scores)
        for i in range(n):
            store(signs, i * LANES, splat(-ONE))
            for p in range(item(indptr, label + i), item(indptr, label + i + 1)):
                q = item(rows, p) - b * LANES
                if 0 <= q < LANES:
                    signs[i * LANES + q] = ONE
        losses_and_slopes(loss, scores, signs, losses, slopes)
        for i in range(n):
            store(slopes, i * LANES, mul(load(slopes, i * LANES), load(weights, 0)))
        n_active = _by_scores(
            block,
            flat,
            group * fan_in,
            fan_in,
            slopes,
            n,
            packed,
            active,
            places,
            inputs,
            gradients,
            ids,
            kept,
            j,
            dvalues,
            dbias,
            j - start,
        )
        kept += n_active
        for a in range(n_active):
            i = item(active, a)
            label_loss[label + i] += dot(load(losses, i * LANES), load(weights, 0))
    work.n_active[b, start // _chunk(group_size)] = kept - start


@njit
def _without_padding(rows, n, width):
    """The first `width` numbers of each of n equally long rows; flat."""
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
    """Losses, gradients and update of the labels first + start ... first + stop; their old values are kept."""
    n, fan_in, low, high = stop - start, layer.indices.shape[1], first + start, first + stop
    dvalues, dbias = np.zeros((n + 1) * padded(fan_in, LANES), np.float32), np.zeros(n + 1, np.float32)
    values, old = layer.values[low:high].reshape(-1), work.values[start * fan_in : stop * fan_in]
    old[:] = as_float32(values)
    label_loss[low:high] = ZERO
    room = _room(layer.group_size, fan_in)
    for b in range(work.blocks.shape[0]):
        _gradients_of_block(h, layer, label_rows, loss, work, b, first, start, stop, room, dvalues, dbias, label_loss)
    new = np.empty(n * fan_in, np.float32)
    m, v = values_moments.m[low:high].reshape(-1), values_moments.v[low:high].reshape(-1)
    update_range(optimizer, old, _without_padding(dvalues, n, fan_in), m, v, rates, new)
    put(new, rounding, low * fan_in, values)
    bias, m, v = layer.bias[low:high], bias_moments.m[low:high], bias_moments.v[low:high]
    update_range(optimizer, bias, dbias, m, v, rates, bias)


@njit
def _dx_of_labels(layer, work, b, s, first, n):
    """dh of a block of rows, from the s-th range of the chunks of the `n` labels from `first` on."""
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
            following = (first_group + next_group) * fan_in
            _by_inputs(dblock, indices, start, following, fan_in, gradients, work.values, active, low, high)
            low = high


@njit_parallel(work=work_of_rows)
def _step(
    h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, rounding, dh, label_loss, work, chunk
):
    n_labels = layer.values.shape[0]
    pack(h, work.blocks)
    clear(work.dblocks)
    n_splits, n_blocks = work.dblocks.shape[:2]
    at_once = work.active.shape[1]
    for first in range(0, n_labels, at_once):
        n = min(at_once, n_labels - first)
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
            _dx_of_labels(layer, work, part // n_splits, part % n_splits, first, n)
    unpack_sum(work.dblocks, dh)


def step(h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, rounding, dh, label_loss):
    """Scores, loss, gradients and update in one pass over the groups, in place; no (B, L) array exists.

    Two turns, as in `fixed_fan_in.step`. A label without a gradient in a block of rows costs its scores only.
    """
    inputs = h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, rounding
    with _workspace(h, layer) as work:
        _step(*inputs, dh, label_loss, work, _chunk(layer.group_size))


@njit
def _backward_of_labels(layer, dscores, work, first, start, stop, dvalues, dbias):
    """dvalues and dbias of the labels first + start ... first + stop; their values and slopes are kept."""
    n, group_size, fan_in, low, high = (
        stop - start,
        layer.group_size,
        layer.indices.shape[1],
        first + start,
        first + stop,
    )
    padded_dvalues, padded_dbias = np.zeros((n + 1) * padded(fan_in, LANES), np.float32), np.zeros(n + 1, np.float32)
    work.values[start * fan_in : stop * fan_in] = as_float32(layer.values[low:high].reshape(-1))
    slopes, flat = np.zeros(group_size * LANES, np.float32), layer.indices.reshape(-1)
    packed, active, places, inputs = _room(group_size, fan_in)
    for b in range(work.blocks.shape[0]):
        block, gradients, ids, kept = work.blocks[b], work.gradients[b], work.active[b], start
        rows = min(LANES, dscores.shape[0] - b * LANES)
        for j in range(start, stop, group_size):
            label, m = first + j, min(group_size, stop - j)
            for i in range(m):
                for q in range(LANES):
                    slopes[i * LANES + q] = dscores[b * LANES + q, label + i] if q < rows else ZERO
            kept += _by_scores(
                block,
                flat,
                label // group_size * fan_in,
                fan_in,
                slopes,
                m,
                packed,
                active,
                places,
                inputs,
                gradients,
                ids,
                kept,
                j,
                padded_dvalues,
                padded_dbias,
                j - start,
            )
        work.n_active[b, start // _chunk(group_size)] = kept - start
    dvalues[low:high] = _without_padding(padded_dvalues, n, fan_in).reshape(n, fan_in)
    dbias[low:high] = padded_dbias[:n]


@njit_parallel(work=work_of_rows)
def _backward(h, layer, dscores, dh, dvalues, dbias, work, chunk):
    n_labels = layer.values.shape[0]
    pack(h, work.blocks)
    clear(work.dblocks)
    n_splits, n_blocks = work.dblocks.shape[:2]
    at_once = work.active.shape[1]
    for first in range(0, n_labels, at_once):
        n = min(at_once, n_labels - first)
        for part in prange((n + chunk - 1) // chunk):
            _backward_of_labels(layer, dscores, work, first, part * chunk, min(n, (part + 1) * chunk), dvalues, dbias)
        for part in prange(n_blocks * n_splits):
            _dx_of_labels(layer, work, part // n_splits, part % n_splits, first, n)
    unpack_sum(work.dblocks, dh)


def backward(h, layer, dscores, dh, dvalues, dbias):
    """Gradients of ``sum(dscores * scores)``: dx (scattered), dvalues (float32) and dbias; all three are overwritten."""
    with _workspace(h, layer) as work:
        _backward(h, layer, dscores, dh, dvalues, dbias, work, _chunk(layer.group_size))


# ---------------------------------------------------------------- top-k


def top_k_shapes(n_rows, n_inputs, n_labels, fan_in, group_size, k):
    """{name: (shape, dtype)} of what `top_k` allocates."""
    return list_shapes(n_rows, n_inputs, k) if k <= LISTED else shapes_of_layer(n_rows, n_inputs, n_labels)


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
            n, start, at = min(group_size, stop - label), label // group_size * fan_in, (label - low) * fan_in
            _scores(block, indices, start, fan_in, values, at, layer.bias, label, n, tile)
            for j in range(n):
                if any_above(load(tile, j * LANES), load(worst, 0)):
                    for q in range(LANES):
                        if enters(tile[j * LANES + q], label + j, best[q], best_ids[q]):
                            insert(best[q], best_ids[q], tile[j * LANES + q], label + j)
                            worst[q] = best[q, k - 1]


@njit_parallel(work=work_of_rows)
def _top_k(h, layer, top_scores, top_ids, blocks, part_scores, part_ids):
    n_labels, group_size = layer.values.shape[0], layer.group_size
    n_groups = layer.indices.shape[0]
    pack(h, blocks)
    n_blocks, n_splits = part_scores.shape[:2]
    for part in prange(n_blocks * n_splits):
        b, s = part // n_splits, part % n_splits
        first, stop = n_groups * s // n_splits * group_size, n_groups * (s + 1) // n_splits * group_size
        _best_of_labels(layer, blocks[b], first, min(n_labels, stop), part_scores[b, s], part_ids[b, s])
    merge_lists(part_scores, part_ids, top_scores, top_ids)


def top_k(h, layer, top_scores, top_ids):
    """The k best labels of each row. Of few only k scores a row are kept: a label enters where it beats the k-th best so far.

    Many are sorted from all scores of some rows, at most 64 MiB, or one row where that is more.
    """
    if top_ids.shape[1] > LISTED:
        of_layer(forward, h, layer, top_scores, top_ids)
        return
    shapes = list_shapes(*h.shape, top_ids.shape[1])
    _top_k(h, layer, top_scores, top_ids, *(aligned(np.empty, *shape) for shape in shapes.values()))
