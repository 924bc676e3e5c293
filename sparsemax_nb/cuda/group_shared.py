"""Group-shared fixed fan-in output layer on CUDA.

A block owns one group. It gathers the group's inputs of some rows into shared memory once, from ``ht (H, B)`` with rows
side by side; scores of all its labels, the loss' gradients, their products with inputs and weights are computed from
there. A row's gradient by an input is summed over the group before it is added to ``dht (H, B)``: one atomic add for G
labels.

On a device with tensor cores for bfloat16 the kernels of `group_shared_mma` do the same.

Kernels take weights as integers, ``bits << shift`` being a float32: shift 0, or 16 for bfloat16 (`bits_of`). Shared
memory holds them as float32; it is seen as integers, too, where bits are written.
"""

import functools

import numpy as np
from numba import float32, int32

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit, empty, has_tensor_cores
from . import group_shared_mma, launch
from .bfloat16 import bits_of, random_half
from .layout import transposed, zeros_like_inputs
from .optimizers import updated
from .top_k import INSERTED, WORST, clear, enters, insert, merge, of_layer, shapes_of_layer

_f = cuda_formulas(formulas)
loss_and_gradient, round_bits = _f.loss_and_gradient, _f.round_bits

ZERO, ONE = np.float32(0), np.float32(1)
ROWS = launch.WARP
LISTS = 4


def workspace_shapes(n_rows, n_inputs, n_labels, fan_in, group_size):
    """{name: (shape, dtype)} of what `step` allocates (`backward`: also dscores, transposed)."""
    return dict.fromkeys(("ht", "dht"), ((n_inputs, n_rows), np.float32))


def top_k_shapes(n_rows, n_inputs, n_labels, fan_in, group_size, k):
    """{name: (shape, dtype)} of what `top_k` allocates: the inputs, some lists for each row; many are sorted from scores."""
    if k > INSERTED:
        return shapes_of_layer(n_rows, n_inputs, n_labels)
    n_parts, _ = launch.parts_by_rows(-(-n_labels // group_size), n_rows, k, group_size)
    lists = n_rows, k, n_parts * LISTS
    shapes = {"ht": ((n_inputs, n_rows), np.float32)}
    return shapes | {"list_scores": (lists, np.float32), "list_ids": (lists, np.int32)}


def _kernel_inputs(layer):
    """The layer as kernels take it: (indices, bits, shift, bias, group size)."""
    return (layer.indices, *bits_of(layer.values), layer.bias, layer.group_size)


@cuda_device
def _stage_weights(weights, at, shared, thread, n_threads, group):
    """Weights of a group to shared memory, from number `at` on, label by label; returns first label and their number."""
    indices, bits, shift, _, group_size = weights
    fan_in, first = np.uint32(indices.shape[1]), group * group_size
    n = min(group_size, bits.shape[0] - first)
    for i in range(thread, n * indices.shape[1], n_threads):
        j, k = np.uint32(i) // fan_in, np.uint32(i) % fan_in
        shared[at + i] = np.int32(bits[first + j, k]) << shift
    return first, n


@cuda_jit
def forward_kernel(ht, weights, scores):
    """A block computes the scores of one group for tiles of 32 rows: a warp takes every blockDim.y-th label, a thread a row.

    Grid: groups on x, tiles of rows stride over y. Reads ht (H, B) coalesced, once for the group, and the group's
    weights once; writes scores (B, L), a group's labels side by side. Dynamic shared memory: K x 32 inputs, G x K
    weights, G x 33 scores. No atomics.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, bias, group_size = weights
    q, y, n_y = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    t, n_threads, n_rows, fan_in = y * cuda.blockDim.x + q, cuda.blockDim.x * n_y, ht.shape[1], indices.shape[1]
    group, values, tile = cuda.blockIdx.x, fan_in * ROWS, fan_in * (ROWS + group_size)
    first, n = _stage_weights(weights, values, integers, t, n_threads, group)
    for first_row in range(cuda.blockIdx.y * ROWS, n_rows, cuda.gridDim.y * ROWS):
        rows = min(ROWS, n_rows - first_row)
        for k in range(y, fan_in, n_y):
            for row in range(q, rows, cuda.blockDim.x):
                shared[k * ROWS + row] = ht[indices[group, k], first_row + row]
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


def _takes_tensor_cores(layer, tensor_cores):
    """Connections in whole sixteens, on a device that has tensor cores for bfloat16, or is said to have."""
    return layer.indices.shape[1] % 16 == 0 and has_tensor_cores(tensor_cores)


def forward(h, layer, scores, *, block=(32, 4), tensor_cores=None):
    """``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l // G, k]]``.

    On tensor cores where the device has them for bfloat16 and K is a multiple of 16; `tensor_cores` says that it has
    them, or not.
    """
    if _takes_tensor_cores(layer, tensor_cores):
        group_shared_mma.forward(h, layer, scores)
        return
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    grid = launch.labels_by_rows(n_groups, h.shape[0], ROWS, 1)
    shared = launch.shared_bytes(4 * (fan_in * (ROWS + group_size) + group_size * (ROWS + 1)))
    forward_kernel[grid, block, 0, shared](transposed(h), _kernel_inputs(layer), scores)


@cuda_device
def _add_sums(ht, indices, dht, shared, places, sizes, group, row):
    """What follows from the gradients of a tile of rows, one a thread: sums by weight, and dht by atomics.

    Where a row has no gradient by any label, nothing is added to dht.
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
            cuda.atomic.add(dht, (np.uint32(indices[group, k]), row), total)
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


@cuda_device
def _gather(ht, indices, shared, group, row):
    """The group's inputs of one row, a thread's own, to shared memory: column threadIdx.h of (K, blockDim.x + 1)."""
    for k in range(indices.shape[1]):
        shared[k * (cuda.blockDim.x + 1) + cuda.threadIdx.x] = ht[np.uint32(indices[group, k]), row]


@cuda_jit
def backward_kernel(ht, weights, dscores_t, dht, dvalues, dbias):
    """A block owns one group, a thread a row of each tile.

    Grid: groups on x. Reads dscores_t (L, B), ht (H, B) coalesced; writes dvalues (L, K), dbias (L,). Dynamic shared
    memory: inputs and gradients of blockDim.x rows, weights and their sums. dht (H, B) by atomics, one for each input
    and row: order of float sums varies.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, _, group_size = weights
    group, t, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_rows, fan_in = ht.shape[1], indices.shape[1]
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
            _gather(ht, indices, shared, group, row)
        for j in range(n):
            shared[slopes + j * n_threads + t] = dscores_t[first + j, row] if t < rows else ZERO
        cuda.syncthreads()
        _add_sums(ht, indices, dht, shared, (0, slopes, values, sums), (n, n_sums, rows), group, row)
    cuda.syncthreads()
    for i in range(t, n * n_sums, n_threads):
        if i % n_sums < fan_in:
            dvalues[first + i // n_sums, i % n_sums] = shared[sums + i]
        else:
            dbias[first + i // n_sums] = shared[sums + i]


def backward(h, layer, dscores, dh, dvalues, dbias, *, block=launch.BLOCK, tensor_cores=None):
    """Gradients of ``sum(dscores * scores)``: dx (scattered), dvalues (float32) and dbias; all three are overwritten.

    On tensor cores as `forward`.
    """
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    dht = zeros_like_inputs(h)
    if _takes_tensor_cores(layer, tensor_cores):
        group_shared_mma.backward(h, layer, dscores, dht, dvalues, dbias)
        dh[:] = dht.T
        return
    block, shared = launch.block_that_fits(
        lambda threads: 4 * (fan_in * (threads + 1) + group_size * (threads + 2 * fan_in + 1)), block
    )
    backward_kernel[n_groups, block, 0, shared](
        transposed(h), _kernel_inputs(layer), transposed(dscores), dht, dvalues, dbias
    )
    dh[:] = dht.T


@cuda_jit
def step_kernel(ht, weights, label_rows, loss, update, values_moments, bias_moments, rounding, dht, label_loss):
    """A block owns one group, a thread a row of each tile: scores of all labels, loss, gradients, update.

    Grid: groups on x. Reads ht (H, B) coalesced and once, positives; updates the group's weights, bias and moments;
    writes label_loss (L,). Dynamic shared memory: inputs, gradients and losses of blockDim.x rows, weights, their K + 2
    sums (dvalues, dbias, loss). dht (H, B) by atomics, one for each input and row with a gradient: order of float sums
    varies; everything else is deterministic. Where no row of a tile has a gradient, only its scores are computed.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, bits, shift, bias, group_size = weights
    group, t, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_rows, fan_in = ht.shape[1], indices.shape[1]
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
            _gather(ht, indices, shared, group, row)
        active = False
        for j in range(n):
            value = g = ZERO
            if t < rows:
                score, sign = bias[first + j], -ONE
                for k in range(fan_in):
                    score += shared[values + j * fan_in + k] * shared[k * (n_threads + 1) + t]
                for p in range(label_rows.indptr[first + j], label_rows.indptr[first + j + 1]):
                    if label_rows.rows[p] == row:
                        sign = ONE
                value, g = loss_and_gradient(loss, score, sign)
                value *= scale
                g *= scale
            shared[slopes + j * n_threads + t] = g
            shared[slopes + (n + j) * n_threads + t] = value
            active |= value != ZERO
        if cuda.syncthreads_or(np.int32(active)):
            _add_sums(ht, indices, dht, shared, (0, slopes, values, sums), (n, n_sums, rows), group, row)
        cuda.syncthreads()
    for i in range(t, n * fan_in, n_threads):
        j, k = i // fan_in, i % fan_in
        value, gradient = shared[values + i], shared[sums + j * n_sums + k]
        shared[values + i] = updated(optimizer, value, gradient, values_moments, (first + j, k), rates)
        new = integers[values + i]
        if shift:
            new = round_bits(np.uint32(new), random_half(rounding, np.uint64(first * fan_in + i)))
        bits[first + j, k] = new
    for j in range(t, n, n_threads):
        dbias = shared[sums + j * n_sums + fan_in]
        bias[first + j] = updated(optimizer, bias[first + j], dbias, bias_moments, first + j, rates)
        label_loss[first + j] = shared[sums + j * n_sums + fan_in + 1]


def step(
    h,
    layer,
    label_rows,
    loss,
    optimizer,
    rates,
    values_moments,
    bias_moments,
    rounding,
    dh,
    label_loss,
    *,
    block=launch.BLOCK,
    tensor_cores=None,
):
    """Scores, loss, gradients and update in one pass over the groups, in place; no (B, L) array exists.

    On tensor cores as `forward`.
    """
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    update = (optimizer, rates, np.float32(1 / max(h.shape[0], 1)))
    dht = zeros_like_inputs(h)
    if _takes_tensor_cores(layer, tensor_cores):
        inputs = label_rows, loss, update, values_moments, bias_moments, rounding
        group_shared_mma.step(h, layer, inputs, dht, label_loss)
        dh[:] = dht.T
        return
    block, shared = launch.block_that_fits(
        lambda threads: 4 * (fan_in * (threads + 1) + group_size * (2 * threads + 2 * fan_in + 2)), block
    )
    step_kernel[n_groups, block, 0, shared](
        transposed(h),
        _kernel_inputs(layer),
        label_rows,
        loss,
        update,
        values_moments,
        bias_moments,
        rounding,
        dht,
        label_loss,
    )
    dh[:] = dht.T


@cuda_jit
def top_k_kernel(ht, weights, list_scores, list_ids):
    """A block searches ranges of groups for 32 rows; each thread keeps the best k of its labels for one row.

    Grid: parts on x, tiles of rows stride over y. Thread (q, y) has row q and every blockDim.y-th label of a group,
    list blockIdx.x blockDim.y + y. Reads ht (H, B) coalesced, once for a group, and the weights once; its list in
    list_scores, list_ids (B, k, n_lists) is touched only where a label beats the k-th best so far, which a register
    holds. Dynamic shared memory: K x 32 inputs, G x K weights. No atomics.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, bias, _ = weights
    q, y, n_y = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    t, n_threads, n_rows = y * cuda.blockDim.x + q, cuda.blockDim.x * n_y, ht.shape[1]
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
                shared[k * cuda.blockDim.x + q] = ht[np.uint32(indices[group, k]), here]
            cuda.syncthreads()
            for j in range(y, n, n_y):
                score = bias[first + j]
                for k in range(fan_in):
                    score += shared[values + j * fan_in + k] * shared[k * cuda.blockDim.x + q]
                if row < n_rows and not score <= worst and enters(score, first + j, best, ids):
                    insert(best, ids, score, first + j)
                    worst = best[best.size - 1]


def top_k(h, layer, top_scores, top_ids, *, block=(ROWS, LISTS), tensor_cores=None):
    """The k best labels of each row; only k scores a row and list are kept. On tensor cores as `forward`.

    Large k: sorted from all scores of some rows, at most 64 MiB, or one row.
    """
    n_rows, k = top_scores.shape
    if k > INSERTED:
        of_layer(functools.partial(forward, tensor_cores=tensor_cores), h, layer, top_scores, top_ids)
        return
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    n_parts, grid = launch.parts_by_rows(n_groups, n_rows, k, group_size, *block)
    lists = n_rows, k, n_parts * block[1]
    list_scores, list_ids = empty(lists, np.float32, "cuda"), empty(lists, np.int32, "cuda")
    if _takes_tensor_cores(layer, tensor_cores):
        group_shared_mma.top_k(h, layer, list_scores, list_ids, grid)
    else:
        shared = launch.shared_bytes(4 * fan_in * (block[0] + group_size))
        top_k_kernel[grid, block, 0, shared](transposed(h), _kernel_inputs(layer), list_scores, list_ids)
    merge(list_scores, list_ids, top_scores, top_ids)
