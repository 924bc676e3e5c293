"""Group-shared fixed fan-in output layer on tensor cores: 16 labels of a group by 32 rows of the batch, a warp at a time.

Each lane loads inputs of four neighbouring rows at once, 16 bytes of ``ht (H, B')``, B' being B filled up to tiles of
32 rows with zeros. Weights are float32, or bfloat16, whose products with split inputs take three of the six products:
as precise as the plain kernels.

Fragments of ``mma.sync.m16n8k16``: of lane 4 g + t, a holds rows g and g + 8, terms 2 t, 2 t + 1, 2 t + 8 and 2 t + 9;
b the same terms of column g; c rows g and g + 8, columns 2 t and 2 t + 1. Of scores, rows are labels; column g of
product number j, j < 4, is row 4 g + j of the tile.

Kernels take the layer as (indices (L / G, K), words, halves, shift, bias (L,), G), K a multiple of 16: words (L, K) are
the bits of float32 weights, or (L, K / 2) pairs of bfloat16; halves (uint16) are the same memory; shift is 0, or 16 for
bfloat16.
"""

import numpy as np
from numba import float32

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit
from . import launch
from .bfloat16 import random_half
from .layout import transposed
from .optimizers import updated
from .ptx import as_bits, as_float, load4, mma, mma_exact, split
from .reduce import ALL_LANES
from .top_k import WORST, clear, enters, insert

_f = cuda_formulas(formulas)
loss_and_gradient, round_bits = _f.loss_and_gradient, _f.round_bits

ZERO, ONE = np.float32(0), np.float32(1)
NONE = (np.uint32(0), np.uint32(0))
NOTHING = (ZERO, ZERO, ZERO, ZERO)
ROWS = launch.WARP
WARPS = 4
#: Numbers from one row of a tile in shared memory to the next: 16 labels, and one against bank conflicts.
PITCH = 17


def _weights(layer):
    """The layer as kernels take it."""
    values, n_labels = layer.values, layer.values.shape[0]
    shape = n_labels, values.shape[1] * values.itemsize // 4
    words, halves = values.view(np.uint32).reshape(shape), values.view(np.uint16).reshape(n_labels, 2 * shape[1])
    return layer.indices, words, halves, np.int32(16 if values.itemsize == 2 else 0), layer.bias, layer.group_size


def _sixteens(layer):
    """Sixteens of labels, each group filled up to whole ones."""
    return layer.indices.shape[0] * launch.divide_up(layer.group_size, 16)


@cuda_device
def _place_of(sixteen, n_labels, group_size):
    """group, first, stop: the labels of a sixteen."""
    by_group = (group_size + 15) // 16
    group = sixteen // by_group
    first = group * group_size + sixteen % by_group * 16
    return group, first, min(n_labels, (group + 1) * group_size, first + 16)


@cuda_device
def _weights_of(weights, label, k):
    """Weights k, k + 1, k + 8 and k + 9 of a label, split in three: bfloat16 has nothing in the second and third part."""
    _, words, _, shift, _, _ = weights
    if shift:
        return (words[label, k // 2], words[label, k // 2 + 4]), NONE, NONE
    p, q = as_float(words[label, k]), as_float(words[label, k + 1])
    return split((p, q, as_float(words[label, k + 8]), as_float(words[label, k + 9])))


@cuda_device
def _rows_of(low, high):
    """The words of a: those of row g and of row g + 8."""
    return low[0], high[0], low[1], high[1]


@cuda_device
def _product(low, high, b, c):
    """c + a b for float32 a and b, split in three; a: row g, and row g + 8."""
    a = _rows_of(low[0], high[0]), _rows_of(low[1], high[1]), _rows_of(low[2], high[2])
    return mma_exact(a, b, c)


@cuda_device
def _weights_by_inputs(shift, low, high, b, c):
    """c + a b for weights a and split inputs b."""
    if shift:
        a = _rows_of(low[0], high[0])
        return mma(a, b[0], mma(a, b[1], mma(a, b[2], c)))
    return _product(low, high, b, c)


@cuda_device
def _scores_of_tile(ht, weights, group, labels, place):
    """Four fragments of scores: of the two `labels` of this lane, and rows place ... place + 3 of its column."""
    (indices, _, _, shift, bias, _), (low, high) = weights, labels
    c0 = c1 = c2 = c3 = (bias[low], bias[low], bias[high], bias[high])
    for k in range(2 * (cuda.threadIdx.x % 4), indices.shape[1], 16):
        a, b = _weights_of(weights, low, k), _weights_of(weights, high, k)
        p, q = load4(ht, indices[group, k], place), load4(ht, indices[group, k + 1], place)
        r, s = load4(ht, indices[group, k + 8], place), load4(ht, indices[group, k + 9], place)
        c0 = _weights_by_inputs(shift, a, b, split((p[0], q[0], r[0], s[0])), c0)
        c1 = _weights_by_inputs(shift, a, b, split((p[1], q[1], r[1], s[1])), c1)
        c2 = _weights_by_inputs(shift, a, b, split((p[2], q[2], r[2], s[2])), c2)
        c3 = _weights_by_inputs(shift, a, b, split((p[3], q[3], r[3], s[3])), c3)
    return c0, c1, c2, c3


@cuda_device
def _store_fragment(scores, row, n_rows, label, stop, c):
    """Scores of the labels `label` and label + 8, for a row and the row four below."""
    if label < stop:
        if row < n_rows:
            scores[row, label] = c[0]
        if row + 4 < n_rows:
            scores[row + 4, label] = c[1]
    if label + 8 < stop:
        if row < n_rows:
            scores[row, label + 8] = c[2]
        if row + 4 < n_rows:
            scores[row + 4, label + 8] = c[3]


@cuda_jit
def forward_kernel(ht, weights, scores):
    """A warp computes 16 labels of one group for tiles of 32 rows.

    Grid: sixteens of labels on x (each group filled up to whole ones), tiles of rows stride over y and over the warps
    of a block (x: lanes). Reads ht (H, B') and weights; writes scores (B, L), 8 labels side by side, each 32-byte
    sector once. No shared memory, no atomics.
    """
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    g, t, n_rows = lane // 4, lane % 4, scores.shape[0]
    group, first, stop = _place_of(cuda.blockIdx.x, scores.shape[1], weights[5])
    labels = min(first + g, stop - 1), min(first + g + 8, stop - 1)
    for tile in range(cuda.blockIdx.y * n_warps + warp, ht.shape[1] // ROWS, cuda.gridDim.y * n_warps):
        c0, c1, c2, c3 = _scores_of_tile(ht, weights, group, labels, tile * ROWS + 4 * g)
        row = tile * ROWS + 8 * t
        _store_fragment(scores, row, n_rows, first + g, stop, c0)
        _store_fragment(scores, row + 1, n_rows, first + g, stop, c1)
        _store_fragment(scores, row + 2, n_rows, first + g, stop, c2)
        _store_fragment(scores, row + 3, n_rows, first + g, stop, c3)


def forward(h, layer, scores):
    """Launch `forward_kernel`."""
    grid = launch.labels_by_rows(_sixteens(layer), h.shape[0], ROWS * WARPS, 1)
    forward_kernel[grid, (ROWS, WARPS)](transposed(h, ROWS), _weights(layer), scores)


@cuda_device
def _slopes_of_fragment(loss, scale, c, number, left, are_valid, masks):
    """Gradients by the four scores of fragment `number`, and the losses of its two labels.

    Its rows are `number` and number + 4 of the `left` ones from this lane's first on; `masks` say which are positive.
    """
    first = np.uint32(8 * (cuda.threadIdx.x % 4) + number)
    second = first + np.uint32(4)
    row_valid, row_4_valid = number < left, number + 4 < left
    value_0, g_0 = loss_and_gradient(loss, c[0], ONE if (masks[0] >> first) & 1 else -ONE)
    value_1, g_1 = loss_and_gradient(loss, c[1], ONE if (masks[0] >> second) & 1 else -ONE)
    value_2, g_2 = loss_and_gradient(loss, c[2], ONE if (masks[1] >> first) & 1 else -ONE)
    value_3, g_3 = loss_and_gradient(loss, c[3], ONE if (masks[1] >> second) & 1 else -ONE)
    w_0 = scale if are_valid[0] and row_valid else ZERO
    w_1 = scale if are_valid[0] and row_4_valid else ZERO
    w_2 = scale if are_valid[1] and row_valid else ZERO
    w_3 = scale if are_valid[1] and row_4_valid else ZERO
    slopes = (g_0 * w_0, g_1 * w_1, g_2 * w_2, g_3 * w_3)
    return slopes, value_0 * w_0 + value_1 * w_1, value_2 * w_2 + value_3 * w_3


@cuda_device
def _mask_of(label_rows, label, first_row):
    """Bit q is set where row first_row + q, q < 32, is one of a label's positives."""
    mask = np.uint32(0)
    for p in range(label_rows.indptr[label], label_rows.indptr[label + 1]):
        q = label_rows.rows[p] - first_row
        if 0 <= q < ROWS:
            mask |= np.uint32(1) << np.uint32(q)
    return mask


@cuda_device
def _is_any(c):
    return c[0] != ZERO or c[1] != ZERO or c[2] != ZERO or c[3] != ZERO


@cuda_device
def _keep_fragment(shared, at, c):
    """A fragment to the tile (32, 17) of rows and labels, from number `at` on."""
    shared[at] = c[0]
    shared[at + 4 * PITCH] = c[1]
    shared[at + 8] = c[2]
    shared[at + 4 * PITCH + 8] = c[3]


@cuda_device
def _keep_tile(shared, at, c0, c1, c2, c3):
    """The four fragments of a tile to shared memory: (32, 17), rows by labels, from number `at` on."""
    g, t = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4
    at += 8 * t * PITCH + g
    _keep_fragment(shared, at, c0)
    _keep_fragment(shared, at + PITCH, c1)
    _keep_fragment(shared, at + 2 * PITCH, c2)
    _keep_fragment(shared, at + 3 * PITCH, c3)


@cuda_device
def _add_by_weights(ht, indices, shared, sums, group, place, slopes):
    """Adds to the warp's sums (16, K) what a tile of rows gives: gradients times inputs, eight connections at a time."""
    (c0, c1, c2, c3), fan_in = slopes, indices.shape[1]
    g, t = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4
    low_a, high_a = split((c0[0], c0[1], c1[0], c1[1])), split((c0[2], c0[3], c1[2], c1[3]))
    low_b, high_b = split((c2[0], c2[1], c3[0], c3[1])), split((c2[2], c2[3], c3[2], c3[3]))
    for k in range(0, fan_in, 8):
        i = indices[group, k + g]
        p, q = load4(ht, i, place), load4(ht, i, place + 4)
        d = NOTHING
        d = _product(low_a, high_a, split((p[0], q[0], p[1], q[1])), d)
        d = _product(low_b, high_b, split((p[2], q[2], p[3], q[3])), d)
        at = sums + g * fan_in + k + 2 * t
        shared[at] += d[0]
        shared[at + 1] += d[1]
        shared[at + 8 * fan_in] += d[2]
        shared[at + 8 * fan_in + 1] += d[3]


@cuda_device
def _weights_across(weights, labels, k):
    """Weight k of four labels, split in three, as `_weights_of`."""
    (_, words, halves, shift, _, _), (l0, l1, l2, l3) = weights, labels
    if shift:
        p = np.uint32(halves[l0, k]) | np.uint32(halves[l1, k]) << np.uint32(16)
        return (p, np.uint32(halves[l2, k]) | np.uint32(halves[l3, k]) << np.uint32(16)), NONE, NONE
    return split((as_float(words[l0, k]), as_float(words[l1, k]), as_float(words[l2, k]), as_float(words[l3, k])))


@cuda_device
def _slopes_by_weights(shift, low, high, b):
    """a b for split gradients a and weights b."""
    if shift:
        c = mma(_rows_of(low[2], high[2]), b[0], NOTHING)
        return mma(_rows_of(low[0], high[0]), b[0], mma(_rows_of(low[1], high[1]), b[0], c))
    return _product(low, high, b, NOTHING)


@cuda_device
def _add_if_any(dht, i, row, n_rows, value):
    if row < n_rows and value != ZERO:
        cuda.atomic.add(dht, (i, row), value)


@cuda_device
def _add_by_inputs(weights, dht, shared, tile, group, labels, first_row):
    """Adds to dht what a tile of rows gives: gradients times weights, sixteen rows and eight connections at a time."""
    indices, n_rows, shift = weights[0], dht.shape[1], weights[3]
    g, t, (first, stop) = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4, labels
    l0, last = first + 2 * t, stop - 1
    mine = min(l0, last), min(l0 + 1, last), min(l0 + 8, last), min(l0 + 9, last)
    for m in range(0, ROWS, 16):
        at, row = tile + (m + g) * PITCH + 2 * t, first_row + m + g
        low = split((shared[at], shared[at + 1], shared[at + 8], shared[at + 9]))
        at += 8 * PITCH
        high = split((shared[at], shared[at + 1], shared[at + 8], shared[at + 9]))
        for k in range(0, indices.shape[1], 8):
            c = _slopes_by_weights(shift, low, high, _weights_across(weights, mine, k + g))
            i, j = np.uint32(indices[group, k + 2 * t]), np.uint32(indices[group, k + 2 * t + 1])
            _add_if_any(dht, i, row, n_rows, c[0])
            _add_if_any(dht, j, row, n_rows, c[1])
            _add_if_any(dht, i, row + 8, n_rows, c[2])
            _add_if_any(dht, j, row + 8, n_rows, c[3])


@cuda_device
def _add_tile(ht, weights, dht, shared, places, group, labels, first_row, slopes):
    """What follows from the gradients of a warp's tile: its sums by weight, and dht by atomics. Nothing where all are zero."""
    (sums, tile), (c0, c1, c2, c3) = places, slopes
    if cuda.any_sync(ALL_LANES, _is_any(c0) or _is_any(c1) or _is_any(c2) or _is_any(c3)):
        _add_by_weights(ht, weights[0], shared, sums, group, first_row + 8 * (cuda.threadIdx.x % 4), slopes)
        _keep_tile(shared, tile, c0, c1, c2, c3)
        cuda.syncwarp()
        _add_by_inputs(weights, dht, shared, tile, group, labels, first_row)
        cuda.syncwarp()


@cuda_device
def _places(fan_in):
    """Where in shared memory the warp's sums by weight (16, K), its tile (32, 17) and all warps' totals begin; sums are cleared."""
    shared = cuda.shared.array(0, float32)
    warp, n_warps = cuda.threadIdx.y, cuda.blockDim.y
    sums, tiles = warp * 16 * fan_in, n_warps * 16 * fan_in
    for i in range(cuda.threadIdx.x, 16 * fan_in, ROWS):
        shared[sums + i] = ZERO
    cuda.syncwarp()
    return sums, tiles + warp * ROWS * PITCH, tiles + n_warps * ROWS * PITCH


@cuda_device
def _sum_of(shared, i, step, n):
    """shared[i] + shared[i + step] + ..., n numbers."""
    total = ZERO
    for w in range(n):
        total += shared[i + w * step]
    return total


@cuda_device
def _low_sum(c0, c1, c2, c3):
    """The sum of a tile's fragments over this lane's rows, of its first label."""
    return ((c0[0] + c0[1]) + (c1[0] + c1[1])) + ((c2[0] + c2[1]) + (c3[0] + c3[1]))


@cuda_device
def _high_sum(c0, c1, c2, c3):
    """And of its second label."""
    return ((c0[2] + c0[3]) + (c1[2] + c1[3])) + ((c2[2] + c2[3]) + (c3[2] + c3[3]))


def _shared_bytes(fan_in, n_totals):
    """Of a block: sums by weight and a tile for each warp, and `n_totals` numbers for each lane's two labels."""
    return launch.shared_bytes(4 * WARPS * (16 * fan_in + ROWS * PITCH + 64 * n_totals))


@cuda_device
def _load_fragment(dscores, row, n_rows, label, stop):
    """Gradients of the labels `label` and label + 8, for a row and the row four below; zero outside."""
    c0 = dscores[row, label] if row < n_rows and label < stop else ZERO
    c1 = dscores[row + 4, label] if row + 4 < n_rows and label < stop else ZERO
    c2 = dscores[row, label + 8] if row < n_rows and label + 8 < stop else ZERO
    c3 = dscores[row + 4, label + 8] if row + 4 < n_rows and label + 8 < stop else ZERO
    return c0, c1, c2, c3


@cuda_jit
def backward_kernel(ht, weights, dscores, dht, dvalues, dbias):
    """A block owns 16 labels of one group; a warp takes tiles of 32 rows, in turn.

    Grid: sixteens of labels on x; a block of (32, 4). Reads ht (H, B'), dscores (B, L), 8 labels side by side, and
    weights; writes dvalues (L, K), dbias (L,). Dynamic shared memory: for each warp the sums by weight (16, K), a tile
    (32, 17) of gradients and its totals (16, 4). dht (H, B) by atomics, one for each input and row of a tile with a
    gradient: order of float sums varies; all else is deterministic.
    """
    shared = cuda.shared.array(0, float32)
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    g, t, fan_in, n_rows = lane // 4, lane % 4, weights[0].shape[1], dscores.shape[0]
    group, first, stop = _place_of(cuda.blockIdx.x, dscores.shape[1], weights[5])
    sums, tile_at, totals = _places(fan_in)
    low = high = ZERO
    for tile in range(warp, ht.shape[1] // ROWS, n_warps):
        row = tile * ROWS + 8 * t
        c0 = _load_fragment(dscores, row, n_rows, first + g, stop)
        c1 = _load_fragment(dscores, row + 1, n_rows, first + g, stop)
        c2 = _load_fragment(dscores, row + 2, n_rows, first + g, stop)
        c3 = _load_fragment(dscores, row + 3, n_rows, first + g, stop)
        low += _low_sum(c0, c1, c2, c3)
        high += _high_sum(c0, c1, c2, c3)
        _add_tile(ht, weights, dht, shared, (sums, tile_at), group, (first, stop), tile * ROWS, (c0, c1, c2, c3))
    at = totals + (warp * 16 + g) * 4 + t
    shared[at] = low
    shared[at + 32] = high
    cuda.syncthreads()
    thread, n_threads = warp * ROWS + lane, n_warps * ROWS
    for i in range(thread, (stop - first) * fan_in, n_threads):
        dvalues[first + i // fan_in, i % fan_in] = _sum_of(shared, i, 16 * fan_in, n_warps)
    for j in range(thread, stop - first, n_threads):
        total = ZERO
        for w in range(n_warps):
            total += _sum_of(shared, totals + (w * 16 + j) * 4, 1, 4)
        dbias[first + j] = total


def backward(h, layer, dscores, dht, dvalues, dbias):
    """Launch `backward_kernel`; dht (H, B) is added to."""
    grid, shared = max(1, _sixteens(layer)), _shared_bytes(layer.indices.shape[1], 1)
    backward_kernel[grid, (ROWS, WARPS), 0, shared](transposed(h, ROWS), _weights(layer), dscores, dht, dvalues, dbias)


@cuda_jit
def step_kernel(ht, weights, label_rows, loss, update, values_moments, bias_moments, rounding, dht, label_loss):
    """A block owns 16 labels of one group: scores, loss, gradients, update; a warp takes tiles of 32 rows, in turn.

    Grid: sixteens of labels on x (each group filled up to whole ones); a block of (32, 4). Reads ht (H, B'), positives;
    updates weights, bias and moments of its labels; writes label_loss (L,). Dynamic shared memory: for each warp the
    sums by weight (16, K), the gradients of a tile (32, 17), totals of gradients and losses (16, 4, 2). dht (H, B) by
    atomics, one for each input and row of a tile with a gradient: order of float sums varies; all else is
    deterministic. A tile without one costs its scores.
    """
    shared = cuda.shared.array(0, float32)
    indices, words, halves, shift, bias, group_size = weights
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    g, t, fan_in, n_rows = lane // 4, lane % 4, indices.shape[1], dht.shape[1]
    optimizer, rates, scale = update
    group, first, stop = _place_of(cuda.blockIdx.x, bias.shape[0], group_size)
    labels = min(first + g, stop - 1), min(first + g + 8, stop - 1)
    are_valid = first + g < stop, first + g + 8 < stop
    sums, tile_at, totals = _places(fan_in)
    low_loss = high_loss = low_slope = high_slope = ZERO
    for tile in range(warp, ht.shape[1] // ROWS, n_warps):
        first_row = tile * ROWS
        c0, c1, c2, c3 = _scores_of_tile(ht, weights, group, labels, first_row + 4 * g)
        masks = _mask_of(label_rows, labels[0], first_row), _mask_of(label_rows, labels[1], first_row)
        left = n_rows - first_row - 8 * t  # rows from this lane's first on
        c0, l0, h0 = _slopes_of_fragment(loss, scale, c0, 0, left, are_valid, masks)
        c1, l1, h1 = _slopes_of_fragment(loss, scale, c1, 1, left, are_valid, masks)
        c2, l2, h2 = _slopes_of_fragment(loss, scale, c2, 2, left, are_valid, masks)
        c3, l3, h3 = _slopes_of_fragment(loss, scale, c3, 3, left, are_valid, masks)
        low_loss += (l0 + l1) + (l2 + l3)
        high_loss += (h0 + h1) + (h2 + h3)
        low_slope += _low_sum(c0, c1, c2, c3)
        high_slope += _high_sum(c0, c1, c2, c3)
        _add_tile(ht, weights, dht, shared, (sums, tile_at), group, (first, stop), first_row, (c0, c1, c2, c3))
    at = totals + (warp * 16 + g) * 8 + 2 * t
    shared[at] = low_slope
    shared[at + 1] = low_loss
    shared[at + 64] = high_slope
    shared[at + 65] = high_loss
    cuda.syncthreads()
    thread, n_threads = warp * ROWS + lane, n_warps * ROWS
    for i in range(thread, (stop - first) * fan_in, n_threads):
        j, k = first + i // fan_in, i % fan_in
        gradient = _sum_of(shared, i, 16 * fan_in, n_warps)
        value = as_float(np.uint32(halves[j, k]) << np.uint32(16) if shift else words[j, k])
        value = updated(optimizer, value, gradient, values_moments, (j, k), rates)
        if shift:
            halves[j, k] = round_bits(as_bits(value), random_half(rounding, np.uint64(first * fan_in + i)))
        else:
            words[j, k] = as_bits(value)
    for j in range(thread, stop - first, n_threads):
        dbias = total = ZERO
        for w in range(n_warps):
            at = totals + (w * 16 + j) * 8
            dbias += _sum_of(shared, at, 2, 4)
            total += _sum_of(shared, at + 1, 2, 4)
        bias[first + j] = updated(optimizer, bias[first + j], dbias, bias_moments, first + j, rates)
        label_loss[first + j] = total


def step(h, layer, inputs, dht, label_loss):
    """Launch `step_kernel`; `inputs` are its arguments from the positives to the rounding; dht (H, B) is added to."""
    shared = _shared_bytes(layer.indices.shape[1], 2)
    step_kernel[_sixteens(layer), (ROWS, WARPS), 0, shared](
        transposed(h, ROWS), _weights(layer), *inputs, dht, label_loss
    )


@cuda_jit
def top_k_kernel(ht, weights, list_scores, list_ids):
    """A warp searches a range of sixteens of labels for tiles of 32 rows; then each lane has a row, and keeps its best k.

    Grid: parts on x, a list for each warp of a block: list blockIdx.x blockDim.y + threadIdx.y; tiles of rows stride
    over y. Reads ht (H, B') and weights; its list in list_scores, list_ids (B, k, n_lists) is touched only where a
    label beats the k-th best so far, which a register holds. Dynamic shared memory: a tile (32, 17) of scores for each
    warp. No atomics.
    """
    shared = cuda.shared.array(0, float32)
    lane, n_warps, n_rows, g = cuda.threadIdx.x, cuda.blockDim.y, list_scores.shape[0], cuda.threadIdx.x // 4
    at, part, n_parts = (
        cuda.threadIdx.y * ROWS * PITCH,
        cuda.blockIdx.x * n_warps + cuda.threadIdx.y,
        list_scores.shape[2],
    )
    n_labels, group_size = weights[4].shape[0], weights[5]
    n_sixteens = weights[0].shape[0] * ((group_size + 15) // 16)
    for first_row in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
        row, worst = first_row + lane, WORST
        here = min(row, n_rows - 1)
        best, ids = list_scores[here, :, part], list_ids[here, :, part]
        if row < n_rows:
            clear(best, ids)
        for sixteen in range(n_sixteens * part // n_parts, n_sixteens * (part + 1) // n_parts):
            group, first, stop = _place_of(sixteen, n_labels, group_size)
            labels = min(first + g, stop - 1), min(first + g + 8, stop - 1)
            c0, c1, c2, c3 = _scores_of_tile(ht, weights, group, labels, first_row + 4 * g)
            _keep_tile(shared, at, c0, c1, c2, c3)
            cuda.syncwarp()
            for j in range(stop - first):
                score, label = shared[at + lane * PITCH + j], first + j
                if row < n_rows and not score <= worst and enters(score, label, best, ids):
                    insert(best, ids, score, label)
                    worst = best[best.size - 1]
            cuda.syncwarp()


def top_k(h, layer, list_scores, list_ids, grid):
    """Launch `top_k_kernel` on a grid of as many blocks on x as there are fours of lists."""
    shared = launch.shared_bytes(4 * WARPS * ROWS * PITCH)
    top_k_kernel[grid, (ROWS, WARPS), 0, shared](transposed(h, ROWS), _weights(layer), list_scores, list_ids)
