"""Group-shared fixed fan-in output layer on CUDA.

A block owns one group. It gathers the group's inputs of some rows into shared memory once, from ``xt (H, B)`` with rows side
by side; scores of all its labels, the loss' gradients, their products with inputs and weights are computed from there. A
row's gradient by an input is summed over the group before it is added to ``dxt (H, B)``: one atomic add for G labels.

Kernels take weights as integers, ``bits << shift`` being a float32: shift 0, or 16 for bfloat16 (`bits_of`). Shared memory
holds them as float32; it is seen as integers, too, where bits are written.
"""

import numpy as np
from numba import float32, int32

from ..core import backend, formulas, rng
from ..core.backend import cuda
from . import launch
from .bfloat16 import bits_of
from .ptx import as_bits, high_float, load4, low_float, mma, to_bfloat16
from .top_k import WORST, clear, enters, insert, merge

_f = backend.cuda_formulas(formulas)
_r = backend.cuda_formulas(rng)
loss_and_gradient, adam, sgd, round_bits = _f.loss_and_gradient, _f.adam, _f.sgd, _f.round_bits
random_words = _r.random_words

ZERO, ONE = np.float32(0), np.float32(1)
ADAM = formulas.ADAM_KIND
STREAM = rng.ROUNDING
HALVES = np.uint64(8)
ROWS = launch.WARP
LISTS = 4
ALL_LANES = np.uint32(0xFFFFFFFF)


def workspace_shapes(n_rows, n_inputs, n_labels, fan_in, group_size):
    """{name: (shape, dtype)} of what `step` allocates (`backward`: also dscores, transposed)."""
    return {name: ((n_inputs, n_rows), np.float32) for name in ("xt", "dxt")}


def top_k_shapes(n_rows, n_inputs, n_labels, fan_in, group_size, k):
    """{name: (shape, dtype)} of what `top_k` allocates: the inputs, some lists for each row."""
    n_parts, _ = launch.parts_by_rows(-(-n_labels // group_size), n_rows, k, group_size)
    lists = n_rows, k, n_parts * LISTS
    shapes = {"xt": ((n_inputs, n_rows), np.float32)}
    return shapes | {"list_scores": (lists, np.float32), "list_ids": (lists, np.int32)}


def _transposed(array):
    return backend.asarray(array.T, "cuda")


def _transposed_tiles(x):
    """x (B, H) as (H, B'), B' being B filled up with zeros to tiles of 32 rows."""
    n_rows, n_inputs = x.shape
    if n_rows % ROWS == 0:
        return _transposed(x)
    xt = backend.zeros((n_inputs, -(-n_rows // ROWS) * ROWS), np.float32, "cuda")
    xt[:, :n_rows] = x.T
    return xt


def _kernel_inputs(layer):
    """The layer as kernels take it: (indices, bits, shift, bias, group size)."""
    return (layer.indices, *bits_of(layer.values), layer.bias, layer.group_size)


@backend.cuda_device
def _stage_weights(weights, at, shared, thread, n_threads, group):
    """Weights of a group to shared memory, from number `at` on, label by label; returns first label and their number."""
    indices, bits, shift, _, group_size = weights
    fan_in, first = np.uint32(indices.shape[1]), group * group_size
    n = min(group_size, bits.shape[0] - first)
    for i in range(thread, n * indices.shape[1], n_threads):
        j, k = np.uint32(i) // fan_in, np.uint32(i) % fan_in
        shared[at + i] = np.int32(bits[first + j, k]) << shift
    return first, n


@backend.cuda_jit
def forward_kernel(xt, weights, scores):
    """A block computes the scores of one group for tiles of 32 rows: a warp takes every blockDim.y-th label, a thread a row.

    Grid: groups on x, tiles of rows stride over y. Reads xt (H, B) coalesced, once for the group, and the group's weights
    once; writes scores (B, L), a group's labels side by side. Dynamic shared memory: K x 32 inputs, G x K weights, G x 33
    scores. No atomics.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, bias, group_size = weights
    q, y, n_y = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    t, n_threads, n_rows, fan_in = y * cuda.blockDim.x + q, cuda.blockDim.x * n_y, xt.shape[1], indices.shape[1]
    group, values, tile = cuda.blockIdx.x, fan_in * ROWS, fan_in * (ROWS + group_size)
    first, n = _stage_weights(weights, values, integers, t, n_threads, group)
    for first_row in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
        rows = min(ROWS, n_rows - first_row)
        for k in range(y, fan_in, n_y):
            for row in range(q, rows, cuda.blockDim.x):
                shared[k * ROWS + row] = xt[indices[group, k], first_row + row]
        cuda.syncthreads()
        for j in range(y, n, n_y):
            for row in range(q, rows, cuda.blockDim.x):
                score = bias[first + j]
                for k in range(fan_in):
                    score += shared[values + j * fan_in + k] * shared[k * ROWS + row]
                shared[tile + j * (ROWS + 1) + row] = score
        cuda.syncthreads()
        for i in range(t, rows * n, n_threads):
            scores[first_row + i // n, first + i % n] = shared[tile + i % n * (ROWS + 1) + i // n]
        cuda.syncthreads()


@backend.cuda_device
def _split(p, q, r, s):
    """(p, q) and (r, s) as three pairs of words of bfloat16 each, whose sum they are to the last bit."""
    pq, rs = to_bfloat16(p, q), to_bfloat16(r, s)
    p, q, r, s = p - low_float(pq), q - high_float(pq), r - low_float(rs), s - high_float(rs)
    pq_2, rs_2 = to_bfloat16(p, q), to_bfloat16(r, s)
    p, q, r, s = p - low_float(pq_2), q - high_float(pq_2), r - low_float(rs_2), s - high_float(rs_2)
    return (pq, rs), (pq_2, rs_2), (to_bfloat16(p, q), to_bfloat16(r, s))


@backend.cuda_device
def _mma_exact(a, p, q, r, s, c):
    """c + a b for float32 b, of which this lane has p, q, r, s."""
    b1, b2, b3 = _split(p, q, r, s)
    return mma(a, b3, mma(a, b2, mma(a, b1, c)))


@backend.cuda_device
def _scores_of_tile(xt, indices, pairs, bias, group, labels, place):
    """Four fragments of scores: of the labels `labels` of this lane, and rows place ... place + 3 of its column."""
    low, high = labels
    t = cuda.threadIdx.x % 4
    c0 = c1 = c2 = c3 = (bias[low], bias[low], bias[high], bias[high])
    for k in range(0, indices.shape[1], 16):
        half = k // 2 + t
        a = pairs[low, half], pairs[high, half], pairs[low, half + 4], pairs[high, half + 4]
        p, q = load4(xt, indices[group, k + 2 * t], place), load4(xt, indices[group, k + 2 * t + 1], place)
        r, s = load4(xt, indices[group, k + 2 * t + 8], place), load4(xt, indices[group, k + 2 * t + 9], place)
        c0 = _mma_exact(a, p[0], q[0], r[0], s[0], c0)
        c1 = _mma_exact(a, p[1], q[1], r[1], s[1], c1)
        c2 = _mma_exact(a, p[2], q[2], r[2], s[2], c2)
        c3 = _mma_exact(a, p[3], q[3], r[3], s[3], c3)
    return c0, c1, c2, c3


@backend.cuda_device
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


@backend.cuda_jit
def forward_mma_kernel(xt, indices, pairs, bias, group_size, scores):
    """A warp computes 16 labels of one group for tiles of 32 rows on the tensor cores, from bfloat16 weights.

    Grid: sixteens of labels on x (each group filled up to whole ones), tiles of rows stride over y and over the warps of a
    block (x: lanes). Each lane loads the inputs of four neighbouring rows at once, 16 bytes of xt (H, B'), B' a multiple of
    32, zero beyond the batch; two weights at once from pairs (L, K / 2) uint32, K a multiple of 16; writes scores (B, L), 8
    labels side by side, each 32-byte sector once. No shared memory, no atomics.

    An input is split into three bfloat16 numbers whose sum it is, to the last bit; products with bfloat16 weights are exact
    and added in float32: as precise as `forward_kernel`. Lane 4 g + t of the fragments: label g (and g + 8), connections
    2 t and 2 t + 1 (and + 8); column g of product number j is row 4 g + j of the tile.
    """
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    g, t, n_rows = lane // 4, lane % 4, scores.shape[0]
    sixteens = (group_size + 15) // 16
    group = cuda.blockIdx.x // sixteens
    first = group * group_size + cuda.blockIdx.x % sixteens * 16
    stop = min(bias.shape[0], (group + 1) * group_size)
    low, high = min(first + g, stop - 1), min(first + g + 8, stop - 1)
    for tile in range(cuda.blockIdx.y * n_warps + warp, xt.shape[1] // ROWS, cuda.gridDim.y * n_warps):
        place = tile * ROWS + 4 * g
        c0, c1, c2, c3 = _scores_of_tile(xt, indices, pairs, bias, group, (low, high), place)
        row = tile * ROWS + 8 * t
        _store_fragment(scores, row, n_rows, first + g, stop, c0)
        _store_fragment(scores, row + 1, n_rows, first + g, stop, c1)
        _store_fragment(scores, row + 2, n_rows, first + g, stop, c2)
        _store_fragment(scores, row + 3, n_rows, first + g, stop, c3)


def _takes_tensor_cores(layer, tensor_cores):
    """Weights in bfloat16, in rows of whole sixteens, on a device that has tensor cores for them, or is said to have."""
    if layer.values.dtype != np.uint16 or layer.values.shape[1] % 16 != 0:
        return False
    return backend.has_tensor_cores() if tensor_cores is None else tensor_cores


def _forward_mma(x, layer, scores, block):
    n_rows, fan_in = x.shape[0], layer.values.shape[1]
    n_tiles = layer.indices.shape[0] * -(-layer.group_size // 16)
    grid = launch.labels_by_rows(n_tiles, n_rows, ROWS * block[1], 1)
    pairs = layer.values.view(np.uint32).reshape(-1, fan_in // 2)
    forward_mma_kernel[grid, block](_transposed_tiles(x), layer.indices, pairs, layer.bias, layer.group_size, scores)


def forward(x, layer, scores, *, block=(32, 4), tensor_cores=None):
    """``scores[b, l] = bias[l] + sum_k values[l, k] x[b, indices[l // G, k]]``.

    On tensor cores where the device has them for bfloat16, weights are bfloat16 and K is a multiple of 16; `tensor_cores`
    says that it has them, or not.
    """
    if _takes_tensor_cores(layer, tensor_cores):
        _forward_mma(x, layer, scores, (32, 4))
        return
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    grid = launch.labels_by_rows(n_groups, x.shape[0], ROWS, 1)
    shared = launch.shared_bytes(4 * (fan_in * (ROWS + group_size) + group_size * (ROWS + 1)))
    forward_kernel[grid, block, 0, shared](_transposed(x), _kernel_inputs(layer), scores)


@backend.cuda_device
def _add_sums(xt, indices, dxt, shared, places, sizes, group, row):
    """What follows from the gradients of a tile of rows, one a thread: sums by weight, and dxt by atomics.

    Where a row has no gradient by any label, nothing is added to dxt.
    """
    inputs, slopes, values, sums = places
    n, n_sums, rows = sizes
    t, n_threads, fan_in = cuda.threadIdx.x, cuda.blockDim.x, indices.shape[1]
    pitch = n_threads + 1
    active = False
    for j in range(n):
        active |= shared[slopes + j * n_threads + t] != ZERO
    if active:
        for k in range(fan_in):
            total = ZERO
            for j in range(n):
                total += shared[values + j * fan_in + k] * shared[slopes + j * n_threads + t]
            cuda.atomic.add(dxt, (np.uint32(indices[group, k]), row), total)
    for i in range(t, n * n_sums, n_threads):
        j, k, total = i // n_sums, i % n_sums, ZERO
        if k < fan_in:
            for q in range(rows):
                total += shared[slopes + j * n_threads + q] * shared[inputs + k * pitch + q]
        else:
            at = slopes + (k - fan_in) * n * n_threads + j * n_threads
            for q in range(rows):
                total += shared[at + q]
        shared[sums + i] += total


@backend.cuda_device
def _gather(xt, indices, shared, group, row):
    """The group's inputs of one row, a thread's own, to shared memory: column threadIdx.x of (K, blockDim.x + 1)."""
    for k in range(indices.shape[1]):
        shared[k * (cuda.blockDim.x + 1) + cuda.threadIdx.x] = xt[np.uint32(indices[group, k]), row]


@backend.cuda_jit
def backward_kernel(xt, weights, dscores_t, dxt, dvalues, dbias):
    """A block owns one group, a thread a row of each tile.

    Grid: groups on x. Reads dscores_t (L, B), xt (H, B) coalesced; writes dvalues (L, K), dbias (L,). Dynamic shared
    memory: inputs and gradients of blockDim.x rows, weights and their sums. dxt (H, B) by atomics, one for each input and
    row: order of float sums varies.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, _, group_size = weights
    group, t, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_rows, fan_in = xt.shape[1], indices.shape[1]
    slopes = fan_in * (n_threads + 1)
    values = slopes + group_size * n_threads
    sums, n_sums = values + group_size * fan_in, fan_in + 1
    first, n = _stage_weights(weights, values, integers, t, n_threads, group)
    for i in range(t, n * n_sums, n_threads):
        shared[sums + i] = ZERO
    for first_row in range(0, n_rows, n_threads):
        row, rows = first_row + t, min(n_threads, n_rows - first_row)
        cuda.syncthreads()
        if t < rows:
            _gather(xt, indices, shared, group, row)
        for j in range(n):
            shared[slopes + j * n_threads + t] = dscores_t[first + j, row] if t < rows else ZERO
        cuda.syncthreads()
        _add_sums(xt, indices, dxt, shared, (0, slopes, values, sums), (n, n_sums, rows), group, row)
    cuda.syncthreads()
    for i in range(t, n * n_sums, n_threads):
        if i % n_sums < fan_in:
            dvalues[first + i // n_sums, i % n_sums] = shared[sums + i]
        else:
            dbias[first + i // n_sums] = shared[sums + i]


def _zeros_like_inputs(x):
    return backend.zeros((x.shape[1], x.shape[0]), np.float32, "cuda")


def backward(x, layer, dscores, dx, dvalues, dbias, *, block=launch.BLOCK):
    """Gradients of ``sum(dscores * scores)``: dx (scattered), dvalues (float32) and dbias; all three are overwritten."""
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    dxt = _zeros_like_inputs(x)
    block, shared = launch.block_that_fits(
        lambda threads: 4 * (fan_in * (threads + 1) + group_size * (threads + 2 * fan_in + 1)), block
    )
    backward_kernel[n_groups, block, 0, shared](
        _transposed(x), _kernel_inputs(layer), _transposed(dscores), dxt, dvalues, dbias
    )
    dx[:] = dxt.T


@backend.cuda_device
def _random_half(rounding, position):
    """The 16 random bits for the weight at `position`."""
    a, b, c, d = random_words(rounding.seed, STREAM, rounding.step, position // HALVES)
    place = np.uint32(position % HALVES)
    word = a
    if place >= 6:
        word = d
    elif place >= 4:
        word = c
    elif place >= 2:
        word = b
    return np.uint32(word >> np.uint64(16)) if place % 2 else np.uint32(word & np.uint64(0xFFFF))


@backend.cuda_jit
def step_kernel(xt, weights, positives, loss, update, values_moments, bias_moments, rounding, dxt, label_loss):
    """A block owns one group, a thread a row of each tile: scores of all labels, loss, gradients, update.

    Grid: groups on x. Reads xt (H, B) coalesced and once, positives; updates the group's weights, bias and moments; writes
    label_loss (L,). Dynamic shared memory: inputs, gradients and losses of blockDim.x rows, weights, their K + 2 sums
    (dvalues, dbias, loss). dxt (H, B) by atomics, one for each input and row with a gradient: order of float sums varies;
    everything else is deterministic. Where no row of a tile has a gradient, only its scores are computed.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, bits, shift, bias, group_size = weights
    group, t, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_rows, fan_in = xt.shape[1], indices.shape[1]
    optimizer, rates, scale = update
    first = group * group_size
    n = min(group_size, bits.shape[0] - first)
    slopes = fan_in * (n_threads + 1)
    values = slopes + 2 * n * n_threads
    sums, n_sums = values + group_size * fan_in, fan_in + 2
    _stage_weights(weights, values, integers, t, n_threads, group)
    for i in range(t, n * n_sums, n_threads):
        shared[sums + i] = ZERO
    cuda.syncthreads()
    for first_row in range(0, n_rows, n_threads):
        row, rows = first_row + t, min(n_threads, n_rows - first_row)
        if t < rows:
            _gather(xt, indices, shared, group, row)
        active = False
        for j in range(n):
            value = g = ZERO
            if t < rows:
                score, sign = bias[first + j], -ONE
                for k in range(fan_in):
                    score += shared[values + j * fan_in + k] * shared[k * (n_threads + 1) + t]
                for p in range(positives.indptr[first + j], positives.indptr[first + j + 1]):
                    if positives.rows[p] == row:
                        sign = ONE
                value, g = loss_and_gradient(loss, score, sign)
                value *= scale
                g *= scale
            shared[slopes + j * n_threads + t] = g
            shared[slopes + (n + j) * n_threads + t] = value
            active |= value != ZERO
        if cuda.syncthreads_or(np.int32(active)):
            _add_sums(xt, indices, dxt, shared, (0, slopes, values, sums), (n, n_sums, rows), group, row)
        cuda.syncthreads()
    for i in range(t, n * fan_in, n_threads):
        j, k = i // fan_in, i % fan_in
        value, gradient = shared[values + i], shared[sums + j * n_sums + k]
        if optimizer == ADAM:
            value, m, v = adam(value, gradient, values_moments.m[first + j, k], values_moments.v[first + j, k], rates)
            values_moments.m[first + j, k] = m
            values_moments.v[first + j, k] = v
        else:
            value = sgd(value, gradient, rates)
        shared[values + i] = value
        new = integers[values + i]
        if shift:
            new = round_bits(np.uint32(new), _random_half(rounding, np.uint64(first * fan_in + i)))
        bits[first + j, k] = new
    for j in range(t, n, n_threads):
        dbias = shared[sums + j * n_sums + fan_in]
        if optimizer == ADAM:
            value, m, v = adam(bias[first + j], dbias, bias_moments.m[first + j], bias_moments.v[first + j], rates)
            bias_moments.m[first + j] = m
            bias_moments.v[first + j] = v
        else:
            value = sgd(bias[first + j], dbias, rates)
        bias[first + j] = value
        label_loss[first + j] = shared[sums + j * n_sums + fan_in + 1]


@backend.cuda_device
def _mma_both(low, high, b, c):
    """c + a b for float32 a and b, split in three: the six products that float32 can tell. a: rows g, and g + 8."""
    (l1, l2, l3), (h1, h2, h3), (b1, b2, b3) = low, high, b
    c = mma((l3[0], h3[0], l3[1], h3[1]), b1, c)
    c = mma((l1[0], h1[0], l1[1], h1[1]), b3, c)
    c = mma((l2[0], h2[0], l2[1], h2[1]), b2, c)
    c = mma((l2[0], h2[0], l2[1], h2[1]), b1, c)
    c = mma((l1[0], h1[0], l1[1], h1[1]), b2, c)
    return mma((l1[0], h1[0], l1[1], h1[1]), b1, c)


@backend.cuda_device
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


@backend.cuda_device
def _mask_of(positives, label, first_row):
    """Bit q is set where row first_row + q, q < 32, is one of a label's positives."""
    mask = np.uint32(0)
    for p in range(positives.indptr[label], positives.indptr[label + 1]):
        q = positives.rows[p] - first_row
        if 0 <= q < ROWS:
            mask |= np.uint32(1) << np.uint32(q)
    return mask


@backend.cuda_device
def _is_any(c):
    return c[0] != ZERO or c[1] != ZERO or c[2] != ZERO or c[3] != ZERO


@backend.cuda_device
def _keep_fragment(shared, at, c):
    """Gradients of a fragment to the tile (32, 17) of rows and labels, from number `at` on."""
    shared[at] = c[0]
    shared[at + 4 * 17] = c[1]
    shared[at + 8] = c[2]
    shared[at + 4 * 17 + 8] = c[3]


@backend.cuda_device
def _add_by_weights(xt, indices, shared, sums, group, place, g, t, slopes):
    """Adds to the warp's sums (16, K) what a tile of rows gives: gradients times inputs, eight connections at a time."""
    (c0, c1, c2, c3), fan_in = slopes, indices.shape[1]
    low_a, high_a = _split(c0[0], c0[1], c1[0], c1[1]), _split(c0[2], c0[3], c1[2], c1[3])
    low_b, high_b = _split(c2[0], c2[1], c3[0], c3[1]), _split(c2[2], c2[3], c3[2], c3[3])
    for k in range(0, fan_in, 8):
        i = indices[group, k + g]
        p, q = load4(xt, i, place), load4(xt, i, place + 4)
        d = (ZERO, ZERO, ZERO, ZERO)
        d = _mma_both(low_a, high_a, _split(p[0], q[0], p[1], q[1]), d)
        d = _mma_both(low_b, high_b, _split(p[2], q[2], p[3], q[3]), d)
        at = sums + g * fan_in + k + 2 * t
        shared[at] += d[0]
        shared[at + 1] += d[1]
        shared[at + 8 * fan_in] += d[2]
        shared[at + 8 * fan_in + 1] += d[3]


@backend.cuda_device
def _add_by_inputs(indices, bits, dxt, shared, tiles, group, first, stop, first_row, g, t):
    """Adds to dxt what a tile of rows gives: gradients times weights, sixteen rows and eight connections at a time."""
    n_rows, last = dxt.shape[1], stop - 1
    l0, l1 = min(first + 2 * t, last), min(first + 2 * t + 1, last)
    l2, l3 = min(first + 2 * t + 8, last), min(first + 2 * t + 9, last)
    for m in range(0, ROWS, 16):
        at, row = tiles + (m + g) * 17 + 2 * t, first_row + m + g
        a1, a2, a3 = _split(shared[at], shared[at + 1], shared[at + 8], shared[at + 9])
        at += 8 * 17
        h1, h2, h3 = _split(shared[at], shared[at + 1], shared[at + 8], shared[at + 9])
        for k in range(0, indices.shape[1], 8):
            b = (
                np.uint32(bits[l0, k + g]) | (np.uint32(bits[l1, k + g]) << np.uint32(16)),
                np.uint32(bits[l2, k + g]) | (np.uint32(bits[l3, k + g]) << np.uint32(16)),
            )
            c = mma((a3[0], h3[0], a3[1], h3[1]), b, (ZERO, ZERO, ZERO, ZERO))
            c = mma((a2[0], h2[0], a2[1], h2[1]), b, c)
            c = mma((a1[0], h1[0], a1[1], h1[1]), b, c)
            i, j = np.uint32(indices[group, k + 2 * t]), np.uint32(indices[group, k + 2 * t + 1])
            if row < n_rows:
                if c[0] != ZERO:
                    cuda.atomic.add(dxt, (i, row), c[0])
                if c[1] != ZERO:
                    cuda.atomic.add(dxt, (j, row), c[1])
            if row + 8 < n_rows:
                if c[2] != ZERO:
                    cuda.atomic.add(dxt, (i, row + 8), c[2])
                if c[3] != ZERO:
                    cuda.atomic.add(dxt, (j, row + 8), c[3])


@backend.cuda_jit
def step_mma_kernel(xt, weights, positives, loss, update, values_moments, bias_moments, rounding, dxt, label_loss):
    """`step_kernel` with all three products on the tensor cores, from bfloat16 weights: a block owns 16 labels of one group.

    Grid: sixteens of labels on x (each group filled up to whole ones); a block of (32, 4): a warp takes tiles of 32 rows,
    in turn. Reads xt (H, B'), B' a multiple of 32, 16 bytes a lane, positives; updates weights (bits), bias and moments of
    its labels; writes label_loss (L,). Dynamic shared memory: for each warp the sums by weight (16, K), the gradients of a
    tile (32, 17) and sums of losses and gradients (16, 4, 2). dxt (H, B) by atomics, one for each input and row of a tile
    with a gradient: order of float sums varies; all else is deterministic. A tile without one costs its scores.

    Fragments as in `forward_mma_kernel`. float32 factors are split into three bfloat16 numbers: the products that float32 can
    tell are computed, as precise as `step_kernel`.
    """
    shared = cuda.shared.array(0, float32)
    indices, bits, pairs, bias, group_size = weights
    lane, warp, n_warps = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    g, t, fan_in, n_rows = lane // 4, lane % 4, indices.shape[1], dxt.shape[1]
    optimizer, rates, scale = update
    sixteens = (group_size + 15) // 16
    group = cuda.blockIdx.x // sixteens
    first = group * group_size + cuda.blockIdx.x % sixteens * 16
    stop = min(bias.shape[0], (group + 1) * group_size, first + 16)
    low, high = min(first + g, stop - 1), min(first + g + 8, stop - 1)
    low_valid, high_valid = first + g < stop, first + g + 8 < stop
    sums, tiles = warp * 16 * fan_in, n_warps * 16 * fan_in + warp * ROWS * 17
    stats = n_warps * (16 * fan_in + ROWS * 17)
    for i in range(lane, 16 * fan_in, 32):
        shared[sums + i] = ZERO
    cuda.syncwarp()
    low_loss = high_loss = low_slope = high_slope = ZERO
    for tile in range(warp, xt.shape[1] // ROWS, n_warps):
        first_row = tile * ROWS
        place = first_row + 4 * g
        c0, c1, c2, c3 = _scores_of_tile(xt, indices, pairs, bias, group, (low, high), place)
        masks = _mask_of(positives, low, first_row), _mask_of(positives, high, first_row)
        left, are_valid = n_rows - first_row - 8 * t, (low_valid, high_valid)  # rows from this lane's first on
        c0, l0, h0 = _slopes_of_fragment(loss, scale, c0, 0, left, are_valid, masks)
        c1, l1, h1 = _slopes_of_fragment(loss, scale, c1, 1, left, are_valid, masks)
        c2, l2, h2 = _slopes_of_fragment(loss, scale, c2, 2, left, are_valid, masks)
        c3, l3, h3 = _slopes_of_fragment(loss, scale, c3, 3, left, are_valid, masks)
        low_loss += (l0 + l1) + (l2 + l3)
        high_loss += (h0 + h1) + (h2 + h3)
        low_slope += ((c0[0] + c0[1]) + (c1[0] + c1[1])) + ((c2[0] + c2[1]) + (c3[0] + c3[1]))
        high_slope += ((c0[2] + c0[3]) + (c1[2] + c1[3])) + ((c2[2] + c2[3]) + (c3[2] + c3[3]))
        if cuda.any_sync(ALL_LANES, _is_any(c0) or _is_any(c1) or _is_any(c2) or _is_any(c3)):
            _add_by_weights(xt, indices, shared, sums, group, first_row + 8 * t, g, t, (c0, c1, c2, c3))
            at = tiles + 8 * t * 17 + g
            _keep_fragment(shared, at, c0)
            _keep_fragment(shared, at + 17, c1)
            _keep_fragment(shared, at + 2 * 17, c2)
            _keep_fragment(shared, at + 3 * 17, c3)
            cuda.syncwarp()
            _add_by_inputs(indices, bits, dxt, shared, tiles, group, first, stop, first_row, g, t)
            cuda.syncwarp()
    at = stats + (warp * 16 + g) * 8 + 2 * t
    shared[at] = low_slope
    shared[at + 1] = low_loss
    shared[at + 64] = high_slope
    shared[at + 65] = high_loss
    cuda.syncthreads()
    thread, n_threads = warp * 32 + lane, n_warps * 32
    for i in range(thread, (stop - first) * fan_in, n_threads):
        j, k, gradient = i // fan_in, i % fan_in, ZERO
        for w in range(n_warps):
            gradient += shared[w * 16 * fan_in + i]
        value = low_float(np.uint32(bits[first + j, k]))
        if optimizer == ADAM:
            value, m, v = adam(value, gradient, values_moments.m[first + j, k], values_moments.v[first + j, k], rates)
            values_moments.m[first + j, k] = m
            values_moments.v[first + j, k] = v
        else:
            value = sgd(value, gradient, rates)
        bits[first + j, k] = round_bits(as_bits(value), _random_half(rounding, np.uint64(first * fan_in + i)))
    for j in range(thread, stop - first, n_threads):
        dbias = total = ZERO
        for w in range(n_warps):
            for i in range(4):
                dbias += shared[stats + (w * 16 + j) * 8 + 2 * i]
                total += shared[stats + (w * 16 + j) * 8 + 2 * i + 1]
        if optimizer == ADAM:
            value, m, v = adam(bias[first + j], dbias, bias_moments.m[first + j], bias_moments.v[first + j], rates)
            bias_moments.m[first + j] = m
            bias_moments.v[first + j] = v
        else:
            value = sgd(bias[first + j], dbias, rates)
        bias[first + j] = value
        label_loss[first + j] = total


def _step_mma(x, layer, inputs, dxt, label_loss):
    """Launch `step_mma_kernel`; `inputs` are its arguments from the positives to the rounding."""
    fan_in, n_warps = layer.values.shape[1], 4
    n_tiles = layer.indices.shape[0] * -(-layer.group_size // 16)
    pairs = layer.values.view(np.uint32).reshape(-1, fan_in // 2)
    weights = layer.indices, layer.values, pairs, layer.bias, layer.group_size
    shared = launch.shared_bytes(4 * n_warps * (16 * fan_in + ROWS * 17 + 16 * 8))
    step_mma_kernel[n_tiles, (ROWS, n_warps), 0, shared](_transposed_tiles(x), weights, *inputs, dxt, label_loss)


def step(
    x, layer, positives, loss, optimizer, rates, values_moments, bias_moments, rounding, dx, label_loss, *,
    block=launch.BLOCK, tensor_cores=None,
):  # fmt: skip
    """Scores, loss, gradients and update in one pass over the groups, in place; no (B, L) array exists.

    On tensor cores as `forward`.
    """
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    update = (optimizer, rates, np.float32(1 / max(x.shape[0], 1)))
    dxt = _zeros_like_inputs(x)
    if _takes_tensor_cores(layer, tensor_cores):
        inputs = positives, loss, update, values_moments, bias_moments, rounding
        _step_mma(x, layer, inputs, dxt, label_loss)
        dx[:] = dxt.T
        return
    block, shared = launch.block_that_fits(
        lambda threads: 4 * (fan_in * (threads + 1) + group_size * (2 * threads + 2 * fan_in + 2)), block
    )
    step_kernel[n_groups, block, 0, shared](
        _transposed(x), _kernel_inputs(layer), positives, loss, update, values_moments, bias_moments, rounding, dxt,
        label_loss,
    )  # fmt: skip
    dx[:] = dxt.T


@backend.cuda_jit
def top_k_kernel(xt, weights, list_scores, list_ids):
    """A block searches ranges of groups for 32 rows; each thread keeps the best k of its labels for one row.

    Grid: parts on x, tiles of rows stride over y. Thread (q, y) has row q and every blockDim.y-th label of a group, list
    blockIdx.x blockDim.y + y. Reads xt (H, B) coalesced, once for a group, and the weights once; its list in list_scores,
    list_ids (B, k, n_lists) is touched only where a label beats the k-th best so far, which a register holds. Dynamic
    shared memory: K x 32 inputs, G x K weights. No atomics.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, bias, _ = weights
    q, y, n_y = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    t, n_threads, n_rows = y * cuda.blockDim.x + q, cuda.blockDim.x * n_y, xt.shape[1]
    n_groups, fan_in = indices.shape
    part, n_parts, values = cuda.blockIdx.x, cuda.gridDim.x, fan_in * cuda.blockDim.x
    for first_row in range(cuda.blockIdx.y * cuda.blockDim.x, n_rows, cuda.gridDim.y * cuda.blockDim.x):
        row, worst = first_row + q, WORST
        here = min(row, n_rows - 1)
        best, ids = list_scores[here, :, part * n_y + y], list_ids[here, :, part * n_y + y]
        if row < n_rows:
            clear(best, ids)
        for group in range(n_groups * part // n_parts, n_groups * (part + 1) // n_parts):
            cuda.syncthreads()
            first, n = _stage_weights(weights, values, integers, t, n_threads, group)
            for k in range(y, fan_in, n_y):
                shared[k * cuda.blockDim.x + q] = xt[np.uint32(indices[group, k]), here]
            cuda.syncthreads()
            for j in range(y, n, n_y):
                score = bias[first + j]
                for k in range(fan_in):
                    score += shared[values + j * fan_in + k] * shared[k * cuda.blockDim.x + q]
                if row < n_rows and not score <= worst and enters(score, first + j, best, ids):
                    insert(best, ids, score, first + j)
                    worst = best[best.size - 1]


def top_k(x, layer, top_scores, top_ids, *, block=(ROWS, LISTS)):
    """The k best labels of each row; only k scores a row and list are kept."""
    n_rows, k = top_scores.shape
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    n_parts, grid = launch.parts_by_rows(n_groups, n_rows, k, group_size, *block)
    lists = n_rows, k, n_parts * block[1]
    list_scores, list_ids = backend.empty(lists, np.float32, "cuda"), backend.empty(lists, np.int32, "cuda")
    shared = launch.shared_bytes(4 * fan_in * (block[0] + group_size))
    top_k_kernel[grid, block, 0, shared](_transposed(x), _kernel_inputs(layer), list_scores, list_ids)
    merge(list_scores, list_ids, top_scores, top_ids, block=block[0])
