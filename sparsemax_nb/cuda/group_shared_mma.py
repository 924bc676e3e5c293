"""Group-shared fixed fan-in output layer on tensor cores: a warp takes 16 labels of a group by 32 rows at a time.

Each lane loads inputs of four neighbouring rows at once, 16 bytes of ``ht (H, B')``; B' is B padded with zeros to tiles
of 32 rows. float32 numbers are split into three bfloat16 parts, which takes six products (see `tensor_cores`); bfloat16
weights with split inputs take three. Both are as precise as the plain kernels.

Counted for a step with 128 rows, 670,000 labels, K = 32 and G = 16: 784 million warp instructions instead of 8,220, and
4.1 GB through L2 instead of 1.8, since inputs are not staged in shared memory (``bench/results/counted-cpu.json``).

Fragments of ``mma.sync.m16n8k16``: in lane 4 g + t, a holds rows g and g + 8, terms 2 t, 2 t + 1, 2 t + 8 and 2 t + 9;
b holds the same terms of column g; c holds rows g and g + 8, columns 2 t and 2 t + 1. In a product of scores, rows are
labels; column g of product number j, j < 4, is row 4 g + j of the tile.

Kernels take the layer as (indices (L / G, K), words, halves, shift, bias (L,), G), K a multiple of 16. words (L, K) are
the bits of float32 weights, or (L, K / 2) pairs of bfloat16 weights; halves (uint16) is the same memory; shift is 0 or,
for bfloat16, 16.
"""

import numpy as np
from numba import float32

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit
from . import launch
from .bfloat16 import random_half
from .layout import transposed
from .losses import shifted
from .optimizers import updated
from .ptx import as_bits, as_float, load4, mma, mma_exact, split
from .reduce import ALL_LANES
from .top_k import WORST, beats_worst, clear, insert

_f = cuda_formulas(formulas)
loss_and_gradient, round_bits = _f.loss_and_gradient, _f.round_bits

ZERO, ONE = np.float32(0), np.float32(1)
#: Second and third part of bfloat16 weights.
ZERO_WORDS = (np.uint32(0), np.uint32(0))
ZERO_FRAGMENT = (ZERO, ZERO, ZERO, ZERO)
#: Rows of a tile, and warps per block.
TILE_ROWS = launch.WARP
WARPS = 4
#: Pitch of a tile in shared memory: 16 labels, and one number of padding against bank conflicts.
PITCH = 17


def _weights(layer):
    """The layer as the kernels take it."""
    values, n_labels = layer.values, layer.values.shape[0]
    shape = n_labels, values.shape[1] * values.itemsize // 4
    words, halves = values.view(np.uint32).reshape(shape), values.view(np.uint16).reshape(n_labels, 2 * shape[1])
    shift = np.int32(16 if values.itemsize == 2 else 0)
    return layer.indices, words, halves, shift, layer.bias, layer.group_size


def _n_label_tiles(layer):
    """Number of tiles of 16 labels; each group is rounded up to whole tiles."""
    return layer.indices.shape[0] * launch.divide_up(layer.group_size, 16)


@cuda_device
def _labels_of_tile(label_tile, n_labels, group_size):
    """(group, first, stop): the labels of a tile of at most 16."""
    tiles_per_group = (group_size + 15) // 16
    group = label_tile // tiles_per_group
    first = group * group_size + label_tile % tiles_per_group * 16
    return group, first, min(n_labels, (group + 1) * group_size, first + 16)


@cuda_device
def _weights_of(weights, label, k):
    """Weights k, k + 1, k + 8 and k + 9 of a label, split in three parts; bfloat16 needs only the first."""
    _, words, _, shift, _, _ = weights
    if shift:
        return (words[label, k // 2], words[label, k // 2 + 4]), ZERO_WORDS, ZERO_WORDS
    p, q = as_float(words[label, k]), as_float(words[label, k + 1])
    return split((p, q, as_float(words[label, k + 8]), as_float(words[label, k + 9])))


@cuda_device
def _fragment_of_rows(low, high):
    """The words of fragment a, from those of row g and of row g + 8."""
    return low[0], high[0], low[1], high[1]


@cuda_device
def _product(low, high, b, c):
    """``c + a b`` for float32 a and b, split in three parts; a is given by row g and row g + 8."""
    a = _fragment_of_rows(low[0], high[0]), _fragment_of_rows(low[1], high[1]), _fragment_of_rows(low[2], high[2])
    return mma_exact(a, b, c)


@cuda_device
def _weights_times_inputs(shift, low, high, b, c):
    """``c + a b`` for weights a and split inputs b: three products for bfloat16, six for float32."""
    if shift:
        a = _fragment_of_rows(low[0], high[0])
        return mma(a, b[0], mma(a, b[1], mma(a, b[2], c)))
    return _product(low, high, b, c)


@cuda_device
def _scores_of_tile(ht, weights, group, labels, first_row):
    """Four fragments of scores: this lane's two `labels`, and rows first_row ... first_row + 3 of its column."""
    (indices, _, _, shift, bias, _), (low, high) = weights, labels
    c0 = c1 = c2 = c3 = (bias[low], bias[low], bias[high], bias[high])
    for k in range(2 * (cuda.threadIdx.x % 4), indices.shape[1], 16):
        a, b = _weights_of(weights, low, k), _weights_of(weights, high, k)
        p, q = load4(ht, indices[group, k], first_row), load4(ht, indices[group, k + 1], first_row)
        r, s = load4(ht, indices[group, k + 8], first_row), load4(ht, indices[group, k + 9], first_row)
        c0 = _weights_times_inputs(shift, a, b, split((p[0], q[0], r[0], s[0])), c0)
        c1 = _weights_times_inputs(shift, a, b, split((p[1], q[1], r[1], s[1])), c1)
        c2 = _weights_times_inputs(shift, a, b, split((p[2], q[2], r[2], s[2])), c2)
        c3 = _weights_times_inputs(shift, a, b, split((p[3], q[3], r[3], s[3])), c3)
    return c0, c1, c2, c3


@cuda_device
def _store_fragment(scores, row, n_rows, label, stop, c):
    """Stores the scores of `label` and label + 8 for `row` and row + 4."""
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
    """One warp computes 16 labels of one group for tiles of 32 rows.

    Grid: tiles of labels on x (each group rounded up to whole tiles), tiles of rows stride over y and over the warps of
    a block of (32, warps). Reads ht (H, B') and weights; writes scores (B, L), 8 adjacent labels at a time, each
    32-byte sector once. No shared memory. No atomics.
    """
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    g, t, n_rows = lane // 4, lane % 4, scores.shape[0]
    group, first, stop = _labels_of_tile(cuda.blockIdx.x, scores.shape[1], weights[5])
    labels = min(first + g, stop - 1), min(first + g + 8, stop - 1)
    for tile in range(cuda.blockIdx.y * n_warps + warp, ht.shape[1] // TILE_ROWS, cuda.gridDim.y * n_warps):
        c0, c1, c2, c3 = _scores_of_tile(ht, weights, group, labels, tile * TILE_ROWS + 4 * g)
        row = tile * TILE_ROWS + 8 * t
        _store_fragment(scores, row, n_rows, first + g, stop, c0)
        _store_fragment(scores, row + 1, n_rows, first + g, stop, c1)
        _store_fragment(scores, row + 2, n_rows, first + g, stop, c2)
        _store_fragment(scores, row + 3, n_rows, first + g, stop, c3)


def forward(h, layer, scores):
    """Launches `forward_kernel`."""
    grid = launch.labels_by_rows(_n_label_tiles(layer), h.shape[0], TILE_ROWS * WARPS, 1)
    forward_kernel[grid, (TILE_ROWS, WARPS)](transposed(h, TILE_ROWS), _weights(layer), scores)


@cuda_device
def _gradients_of_fragment(loss, scale, c, number, rows, are_valid, masks):
    """Gradients of the four scores of fragment `number`, and the losses of its two labels.

    Its rows are `number` and number + 4, counted from this lane's first row; rows = (first row, how many exist from it
    on). `masks` tell which rows have the label.
    """
    first = np.uint32(8 * (cuda.threadIdx.x % 4) + number)
    second = first + np.uint32(4)
    row, row_4 = rows[0] + number, rows[0] + number + 4
    row_valid, row_4_valid = number < rows[1], number + 4 < rows[1]
    s_0, s_1, s_2, s_3 = (
        shifted(loss, c[0], row),
        shifted(loss, c[1], row_4),
        shifted(loss, c[2], row),
        shifted(loss, c[3], row_4),
    )
    value_0, g_0 = loss_and_gradient(loss.kind, s_0, ONE if (masks[0] >> first) & 1 else -ONE)
    value_1, g_1 = loss_and_gradient(loss.kind, s_1, ONE if (masks[0] >> second) & 1 else -ONE)
    value_2, g_2 = loss_and_gradient(loss.kind, s_2, ONE if (masks[1] >> first) & 1 else -ONE)
    value_3, g_3 = loss_and_gradient(loss.kind, s_3, ONE if (masks[1] >> second) & 1 else -ONE)
    w_0 = scale if are_valid[0] and row_valid else ZERO
    w_1 = scale if are_valid[0] and row_4_valid else ZERO
    w_2 = scale if are_valid[1] and row_valid else ZERO
    w_3 = scale if are_valid[1] and row_4_valid else ZERO
    gradients = (g_0 * w_0, g_1 * w_1, g_2 * w_2, g_3 * w_3)
    return gradients, value_0 * w_0 + value_1 * w_1, value_2 * w_2 + value_3 * w_3


@cuda_device
def _label_bits(label_rows, label, first_row):
    """Bit q is set if row first_row + q, q < 32, has the label."""
    mask = np.uint32(0)
    for p in range(label_rows.indptr[label], label_rows.indptr[label + 1]):
        q = label_rows.rows[p] - first_row
        if 0 <= q < TILE_ROWS:
            mask |= np.uint32(1) << np.uint32(q)
    return mask


@cuda_device
def _any_nonzero(c):
    """Whether any of four numbers is not zero."""
    return c[0] != ZERO or c[1] != ZERO or c[2] != ZERO or c[3] != ZERO


@cuda_device
def _fragment_to_tile(shared, start, c):
    """Writes one fragment to the tile (32, 17) of rows by labels in shared memory."""
    shared[start] = c[0]
    shared[start + 4 * PITCH] = c[1]
    shared[start + 8] = c[2]
    shared[start + 4 * PITCH + 8] = c[3]


@cuda_device
def _fragments_to_tile(shared, start, c0, c1, c2, c3):
    """Writes the four fragments of a tile to shared memory: (32, 17), rows by labels, from position `start` on."""
    g, t = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4
    start += 8 * t * PITCH + g
    _fragment_to_tile(shared, start, c0)
    _fragment_to_tile(shared, start + PITCH, c1)
    _fragment_to_tile(shared, start + 2 * PITCH, c2)
    _fragment_to_tile(shared, start + 3 * PITCH, c3)


@cuda_device
def _add_weight_gradients(ht, indices, shared, sums, group, lane_row, gradients):
    """Adds a tile's gradients times inputs to the warp's sums (16, K), eight connections at a time."""
    (c0, c1, c2, c3), fan_in = gradients, indices.shape[1]
    g, t = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4
    low_a, high_a = split((c0[0], c0[1], c1[0], c1[1])), split((c0[2], c0[3], c1[2], c1[3]))
    low_b, high_b = split((c2[0], c2[1], c3[0], c3[1])), split((c2[2], c2[3], c3[2], c3[3]))
    for k in range(0, fan_in, 8):
        i = indices[group, k + g]
        p, q = load4(ht, i, lane_row), load4(ht, i, lane_row + 4)
        d = ZERO_FRAGMENT
        d = _product(low_a, high_a, split((p[0], q[0], p[1], q[1])), d)
        d = _product(low_b, high_b, split((p[2], q[2], p[3], q[3])), d)
        start = sums + g * fan_in + k + 2 * t
        shared[start] += d[0]
        shared[start + 1] += d[1]
        shared[start + 8 * fan_in] += d[2]
        shared[start + 8 * fan_in + 1] += d[3]


@cuda_device
def _weight_of_four_labels(weights, labels, k):
    """Weight k of four labels, split in three parts as in `_weights_of`."""
    (_, words, halves, shift, _, _), (l0, l1, l2, l3) = weights, labels
    if shift:
        p = np.uint32(halves[l0, k]) | np.uint32(halves[l1, k]) << np.uint32(16)
        return (p, np.uint32(halves[l2, k]) | np.uint32(halves[l3, k]) << np.uint32(16)), ZERO_WORDS, ZERO_WORDS
    return split((as_float(words[l0, k]), as_float(words[l1, k]), as_float(words[l2, k]), as_float(words[l3, k])))


@cuda_device
def _gradients_times_weights(shift, low, high, b):
    """``a b`` for split gradients a and weights b."""
    if shift:
        c = mma(_fragment_of_rows(low[2], high[2]), b[0], ZERO_FRAGMENT)
        return mma(_fragment_of_rows(low[0], high[0]), b[0], mma(_fragment_of_rows(low[1], high[1]), b[0], c))
    return _product(low, high, b, ZERO_FRAGMENT)


@cuda_device
def _add_if_nonzero(dht, i, row, n_rows, value):
    """Adds `value` to dht with an atomic, unless it is zero or the row does not exist."""
    if row < n_rows and value != ZERO:
        cuda.atomic.add(dht, (i, row), value)


@cuda_device
def _add_input_gradients(weights, dht, shared, tile, group, labels, first_row):
    """Adds a tile's gradients times weights to dht, 16 rows and eight connections at a time."""
    indices, n_rows, shift = weights[0], dht.shape[1], weights[3]
    g, t, (first, stop) = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4, labels
    l0, last = first + 2 * t, stop - 1
    lane_labels = min(l0, last), min(l0 + 1, last), min(l0 + 8, last), min(l0 + 9, last)
    for m in range(0, TILE_ROWS, 16):
        start, row = tile + (m + g) * PITCH + 2 * t, first_row + m + g
        low = split((shared[start], shared[start + 1], shared[start + 8], shared[start + 9]))
        start += 8 * PITCH
        high = split((shared[start], shared[start + 1], shared[start + 8], shared[start + 9]))
        for k in range(0, indices.shape[1], 8):
            c = _gradients_times_weights(shift, low, high, _weight_of_four_labels(weights, lane_labels, k + g))
            i, j = np.uint32(indices[group, k + 2 * t]), np.uint32(indices[group, k + 2 * t + 1])
            _add_if_nonzero(dht, i, row, n_rows, c[0])
            _add_if_nonzero(dht, j, row, n_rows, c[1])
            _add_if_nonzero(dht, i, row + 8, n_rows, c[2])
            _add_if_nonzero(dht, j, row + 8, n_rows, c[3])


@cuda_device
def _add_tile(ht, weights, dht, shared, offsets, group, labels, first_row, gradients):
    """Adds what a tile's gradients give to the warp's sums by weight and, with atomics, to dht."""
    (sums, tile), (c0, c1, c2, c3) = offsets, gradients
    if cuda.any_sync(ALL_LANES, _any_nonzero(c0) or _any_nonzero(c1) or _any_nonzero(c2) or _any_nonzero(c3)):
        _add_weight_gradients(ht, weights[0], shared, sums, group, first_row + 8 * (cuda.threadIdx.x % 4), gradients)
        _fragments_to_tile(shared, tile, c0, c1, c2, c3)
        cuda.syncwarp()
        _add_input_gradients(weights, dht, shared, tile, group, labels, first_row)
        cuda.syncwarp()


@cuda_device
def _shared_offsets(fan_in):
    """Clears the warp's sums by weight; returns offsets into shared memory.

    They are those of the warp's sums (16, K), of its tile (32, 17) and of the totals of all warps.
    """
    shared = cuda.shared.array(0, float32)
    warp, n_warps = cuda.threadIdx.y, cuda.blockDim.y
    sums, tiles = warp * 16 * fan_in, n_warps * 16 * fan_in
    for i in range(cuda.threadIdx.x, 16 * fan_in, TILE_ROWS):
        shared[sums + i] = ZERO
    cuda.syncwarp()
    return sums, tiles + warp * TILE_ROWS * PITCH, tiles + n_warps * TILE_ROWS * PITCH


@cuda_device
def _strided_sum(shared, i, step, n):
    """``shared[i] + shared[i + step] + ...``, n numbers."""
    total = ZERO
    for w in range(n):
        total += shared[i + w * step]
    return total


@cuda_device
def _low_sum(c0, c1, c2, c3):
    """Sum over this lane's rows of a tile's fragments, for the lane's first label (row g)."""
    return ((c0[0] + c0[1]) + (c1[0] + c1[1])) + ((c2[0] + c2[1]) + (c3[0] + c3[1]))


@cuda_device
def _high_sum(c0, c1, c2, c3):
    """Sum over this lane's rows of a tile's fragments, for the lane's second label (row g + 8)."""
    return ((c0[2] + c0[3]) + (c1[2] + c1[3])) + ((c2[2] + c2[3]) + (c3[2] + c3[3]))


def _shared_bytes(fan_in, n_totals):
    """Shared memory of a block: sums by weight and a tile per warp, `n_totals` numbers per lane and label."""
    return launch.shared_bytes(4 * WARPS * (16 * fan_in + TILE_ROWS * PITCH + 64 * n_totals))


@cuda_device
def _load_fragment(dscores, row, n_rows, label, stop):
    """Gradients of `label` and label + 8 for `row` and row + 4; zero outside."""
    c0 = dscores[row, label] if row < n_rows and label < stop else ZERO
    c1 = dscores[row + 4, label] if row + 4 < n_rows and label < stop else ZERO
    c2 = dscores[row, label + 8] if row < n_rows and label + 8 < stop else ZERO
    c3 = dscores[row + 4, label + 8] if row + 4 < n_rows and label + 8 < stop else ZERO
    return c0, c1, c2, c3


@cuda_jit
def backward_kernel(ht, weights, dscores, dht, dvalues, dbias):
    """One block owns 16 labels of one group; its warps take tiles of 32 rows in turn.

    Grid: tiles of labels on x; block of (32, 4). Reads ht (H, B'), dscores (B, L), 8 adjacent labels at a time, and
    weights; writes dvalues (L, K) and dbias (L,). Dynamic shared memory per warp: the sums by weight (16, K), a tile
    (32, 17) of gradients and totals (16, 4). dht (H, B) with atomics, one per input and row of a tile with a gradient:
    order of float sums varies; everything else is deterministic.
    """
    shared = cuda.shared.array(0, float32)
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    g, t, fan_in, n_rows = lane // 4, lane % 4, weights[0].shape[1], dscores.shape[0]
    group, first, stop = _labels_of_tile(cuda.blockIdx.x, dscores.shape[1], weights[5])
    sums, tile_start, totals = _shared_offsets(fan_in)
    low = high = ZERO
    for tile in range(warp, ht.shape[1] // TILE_ROWS, n_warps):
        row = tile * TILE_ROWS + 8 * t
        c0 = _load_fragment(dscores, row, n_rows, first + g, stop)
        c1 = _load_fragment(dscores, row + 1, n_rows, first + g, stop)
        c2 = _load_fragment(dscores, row + 2, n_rows, first + g, stop)
        c3 = _load_fragment(dscores, row + 3, n_rows, first + g, stop)
        low += _low_sum(c0, c1, c2, c3)
        high += _high_sum(c0, c1, c2, c3)
        _add_tile(
            ht, weights, dht, shared, (sums, tile_start), group, (first, stop), tile * TILE_ROWS, (c0, c1, c2, c3)
        )
    slot = totals + (warp * 16 + g) * 4 + t
    shared[slot] = low
    shared[slot + 32] = high
    cuda.syncthreads()
    thread, n_threads = warp * TILE_ROWS + lane, n_warps * TILE_ROWS
    for i in range(thread, (stop - first) * fan_in, n_threads):
        dvalues[first + i // fan_in, i % fan_in] = _strided_sum(shared, i, 16 * fan_in, n_warps)
    for j in range(thread, stop - first, n_threads):
        total = ZERO
        for w in range(n_warps):
            total += _strided_sum(shared, totals + (w * 16 + j) * 4, 1, 4)
        dbias[first + j] = total


def backward(h, layer, dscores, dht, dvalues, dbias):
    """Launches `backward_kernel`, which adds to dht (H, B)."""
    grid, shared = max(1, _n_label_tiles(layer)), _shared_bytes(layer.indices.shape[1], 1)
    backward_kernel[grid, (TILE_ROWS, WARPS), 0, shared](
        transposed(h, TILE_ROWS), _weights(layer), dscores, dht, dvalues, dbias
    )


@cuda_jit
def step_kernel(ht, weights, label_rows, loss, update, values_moments, bias_moments, rounding, dht, label_loss):
    """One block owns 16 labels of one group: scores, loss, gradients, update; its warps take tiles of 32 rows in turn.

    Grid: tiles of labels on x (each group rounded up to whole tiles); block of (32, 4). Reads ht (H, B') and the
    labels' rows; updates weights, bias and moments of its labels; writes label_loss (L,). Dynamic shared memory per
    warp: the sums by weight (16, K), a tile (32, 17) of gradients and totals of gradients and losses (16, 4, 2). dht
    (H, B) with atomics, one per input and row of a tile with a gradient: order of float sums varies; everything else is
    deterministic. A tile without a gradient costs only its scores.
    """
    shared = cuda.shared.array(0, float32)
    indices, words, halves, shift, bias, group_size = weights
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    g, t, fan_in, n_rows = lane // 4, lane % 4, indices.shape[1], dht.shape[1]
    optimizer, rates, scale = update
    group, first, stop = _labels_of_tile(cuda.blockIdx.x, bias.shape[0], group_size)
    labels = min(first + g, stop - 1), min(first + g + 8, stop - 1)
    are_valid = first + g < stop, first + g + 8 < stop
    sums, tile_start, totals = _shared_offsets(fan_in)
    low_loss = high_loss = low_gradient = high_gradient = ZERO
    for tile in range(warp, ht.shape[1] // TILE_ROWS, n_warps):
        first_row = tile * TILE_ROWS
        c0, c1, c2, c3 = _scores_of_tile(ht, weights, group, labels, first_row + 4 * g)
        masks = _label_bits(label_rows, labels[0], first_row), _label_bits(label_rows, labels[1], first_row)
        rows = first_row + 8 * t, n_rows - first_row - 8 * t
        c0, l0, h0 = _gradients_of_fragment(loss, scale, c0, 0, rows, are_valid, masks)
        c1, l1, h1 = _gradients_of_fragment(loss, scale, c1, 1, rows, are_valid, masks)
        c2, l2, h2 = _gradients_of_fragment(loss, scale, c2, 2, rows, are_valid, masks)
        c3, l3, h3 = _gradients_of_fragment(loss, scale, c3, 3, rows, are_valid, masks)
        low_loss += (l0 + l1) + (l2 + l3)
        high_loss += (h0 + h1) + (h2 + h3)
        low_gradient += _low_sum(c0, c1, c2, c3)
        high_gradient += _high_sum(c0, c1, c2, c3)
        _add_tile(ht, weights, dht, shared, (sums, tile_start), group, (first, stop), first_row, (c0, c1, c2, c3))
    slot = totals + (warp * 16 + g) * 8 + 2 * t
    shared[slot] = low_gradient
    shared[slot + 1] = low_loss
    shared[slot + 64] = high_gradient
    shared[slot + 65] = high_loss
    cuda.syncthreads()
    thread, n_threads = warp * TILE_ROWS + lane, n_warps * TILE_ROWS
    for i in range(thread, (stop - first) * fan_in, n_threads):
        j, k = first + i // fan_in, i % fan_in
        gradient = _strided_sum(shared, i, 16 * fan_in, n_warps)
        value = as_float(np.uint32(halves[j, k]) << np.uint32(16) if shift else words[j, k])
        value = updated(optimizer, value, gradient, values_moments, (j, k), rates)
        if shift:
            halves[j, k] = round_bits(as_bits(value), random_half(rounding, np.uint64(first * fan_in + i)))
        else:
            words[j, k] = as_bits(value)
    for j in range(thread, stop - first, n_threads):
        dbias = total = ZERO
        for w in range(n_warps):
            slot = totals + (w * 16 + j) * 8
            dbias += _strided_sum(shared, slot, 2, 4)
            total += _strided_sum(shared, slot + 1, 2, 4)
        bias[first + j] = updated(optimizer, bias[first + j], dbias, bias_moments, first + j, rates)
        label_loss[first + j] = total


def step(h, layer, inputs, dht, label_loss):
    """Launches `step_kernel`, which adds to dht (H, B).

    `inputs` are its arguments from `label_rows` to `rounding`.
    """
    shared = _shared_bytes(layer.indices.shape[1], 2)
    step_kernel[_n_label_tiles(layer), (TILE_ROWS, WARPS), 0, shared](
        transposed(h, TILE_ROWS), _weights(layer), *inputs, dht, label_loss
    )


@cuda_jit
def top_k_kernel(ht, weights, list_scores, list_ids):
    """One warp searches a range of label tiles for tiles of 32 rows; each lane keeps the best k for one row.

    Grid: parts on x, tiles of rows stride over y. Warp y of block x owns list number blockIdx.x blockDim.y + y. Reads
    ht (H, B') and weights; writes list_scores and list_ids (B, k, n_lists). Dynamic shared memory: a tile (32, 17) of
    scores per warp. No atomics.
    """
    shared = cuda.shared.array(0, float32)
    lane, n_warps, n_rows, g = cuda.threadIdx.x, cuda.blockDim.y, list_scores.shape[0], cuda.threadIdx.x // 4
    tile = cuda.threadIdx.y * TILE_ROWS * PITCH  # offset into shared memory
    part, n_parts = cuda.blockIdx.x * n_warps + cuda.threadIdx.y, list_scores.shape[2]
    n_labels, group_size = weights[4].shape[0], weights[5]
    n_label_tiles = weights[0].shape[0] * ((group_size + 15) // 16)
    for first_row in range(cuda.blockIdx.y * TILE_ROWS, n_rows, cuda.gridDim.y * TILE_ROWS):
        row = first_row + lane
        worst = WORST  # the k-th best so far, in a register: the list in memory is touched only by a better score
        clamped_row = min(row, n_rows - 1)
        best, ids = list_scores[clamped_row, :, part], list_ids[clamped_row, :, part]
        if row < n_rows:
            clear(best, ids)
        for label_tile in range(n_label_tiles * part // n_parts, n_label_tiles * (part + 1) // n_parts):
            group, first, stop = _labels_of_tile(label_tile, n_labels, group_size)
            labels = min(first + g, stop - 1), min(first + g + 8, stop - 1)
            c0, c1, c2, c3 = _scores_of_tile(ht, weights, group, labels, first_row + 4 * g)
            # Transposed through shared memory: the mma spreads a row over lanes, a list belongs to one lane.
            _fragments_to_tile(shared, tile, c0, c1, c2, c3)
            cuda.syncwarp()
            for j in range(stop - first):
                score, label = shared[tile + lane * PITCH + j], first + j
                if row < n_rows and not score <= worst and beats_worst(score, label, best, ids):
                    insert(best, ids, score, label)
                    worst = best[best.size - 1]
            cuda.syncwarp()


def top_k(h, layer, list_scores, list_ids, grid):
    """Launches `top_k_kernel` on `grid`; its x is the number of lists divided by the warps per block."""
    shared = launch.shared_bytes(4 * WARPS * TILE_ROWS * PITCH)
    top_k_kernel[grid, (TILE_ROWS, WARPS), 0, shared](transposed(h, TILE_ROWS), _weights(layer), list_scores, list_ids)
