"""Group-shared fixed fan-in output layer on CUDA.

One block owns one group. It gathers the group's inputs of some rows from ``ht (H, B)`` into shared memory once; scores
of all labels of the group, the gradients of the loss and their products with inputs and weights are computed from
there. A gradient with respect to an input is summed over the group before it is added to ``dht (H, B)``: one atomic for
G labels.

On devices with tensor cores for bfloat16, the kernels of `group_shared_mma` do the same.

Kernels take weights as integers: ``bits << shift`` are the bits of a float32, with shift 0 for float32 and 16 for
bfloat16 (`bits_of`). In shared memory weights are float32; a second view of it as integers writes their bits.
"""

import functools

import numpy as np
from numba import float32, int32

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit, empty, has_tensor_cores
from . import group_shared_mma, launch
from .bfloat16 import bits_of, random_half
from .full_softmax import labels_at_once, sums_of_layer
from .layout import transposed, transposed_loss, zeros_like_inputs
from .losses import shifted
from .optimizers import updated
from .top_k import MAX_INSERTED, WORST, beats_worst, clear, insert, merge, top_k_of_layer, top_k_shapes_of_layer

_f = cuda_formulas(formulas)
loss_and_gradient, round_bits = _f.loss_and_gradient, _f.round_bits

ZERO, ONE = np.float32(0), np.float32(1)
#: Rows of a tile: one per lane of a warp.
TILE_ROWS = launch.WARP
#: Lists that a block of `top_k_kernel` keeps per row.
LISTS_PER_ROW = 4


def workspace_shapes(n_rows, n_inputs, n_labels, fan_in, group_size):
    """{name: (shape, dtype)} of the arrays that `step` allocates (`backward` also allocates dscores, transposed)."""
    return dict.fromkeys(("ht", "dht"), ((n_inputs, n_rows), np.float32))


def top_k_shapes(n_rows, n_inputs, n_labels, fan_in, group_size, k):
    """{name: (shape, dtype)} of the arrays that `top_k` allocates."""
    if k > MAX_INSERTED:
        return top_k_shapes_of_layer(n_rows, n_inputs, n_labels)
    n_parts, _ = launch.parts_by_rows(-(-n_labels // group_size), n_rows, k, group_size)
    lists = n_rows, k, n_parts * LISTS_PER_ROW
    shapes = {"ht": ((n_inputs, n_rows), np.float32)}
    return shapes | {"list_scores": (lists, np.float32), "list_ids": (lists, np.int32)}


def _kernel_inputs(layer):
    """The layer as the kernels take it: (indices, bits, shift, bias, group size)."""
    return (layer.indices, *bits_of(layer.values), layer.bias, layer.group_size)


@cuda_device
def _stage_weights(weights, start, shared, thread, n_threads, group):
    """Copies a group's weights to shared memory from position `start` on, label by label.

    Returns the group's first label and its number of labels.
    """
    indices, bits, shift, _, group_size = weights
    fan_in, first = np.uint32(indices.shape[1]), group * group_size
    n = min(group_size, bits.shape[0] - first)
    for i in range(thread, n * indices.shape[1], n_threads):
        j, k = np.uint32(i) // fan_in, np.uint32(i) % fan_in
        shared[start + i] = np.int32(bits[first + j, k]) << shift
    return first, n


@cuda_jit
def forward_kernel(ht, weights, scores):
    """One block computes the scores of one group for tiles of 32 rows.

    Grid: groups on x, tiles of rows stride over y; block of (32, warps). A warp takes every blockDim.y-th label, a lane
    one row. Reads ht (H, B) coalesced, once per group, and the group's weights once; writes scores (B, L), the labels
    of a group next to each other. Dynamic shared memory: K x 32 inputs, G x K weights, G x 33 scores. No atomics.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, bias, group_size = weights
    q, y, n_y = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    t, n_threads = y * cuda.blockDim.x + q, cuda.blockDim.x * n_y
    n_rows, fan_in = ht.shape[1], indices.shape[1]
    group = cuda.blockIdx.x
    values, tile = fan_in * TILE_ROWS, fan_in * (TILE_ROWS + group_size)  # offsets into shared memory
    first, n = _stage_weights(weights, values, integers, t, n_threads, group)
    for first_row in range(cuda.blockIdx.y * TILE_ROWS, n_rows, cuda.gridDim.y * TILE_ROWS):
        rows = min(TILE_ROWS, n_rows - first_row)
        for k in range(y, fan_in, n_y):
            for row in range(q, rows, cuda.blockDim.x):
                shared[k * TILE_ROWS + row] = ht[indices[group, k], first_row + row]
        cuda.syncthreads()
        for j in range(y, n, n_y):
            for row in range(q, rows, cuda.blockDim.x):
                score = bias[first + j]
                for k in range(fan_in):
                    score += shared[values + j * fan_in + k] * shared[k * TILE_ROWS + row]
                shared[tile + j * (TILE_ROWS + 1) + row] = score
        cuda.syncthreads()
        # Through the tile (33 numbers per label against bank conflicts), adjacent threads store adjacent labels.
        for i in range(t, rows * n, n_threads):
            scores[first_row + i // n, first + i % n] = shared[tile + i % n * (TILE_ROWS + 1) + i // n]
        cuda.syncthreads()


def _use_tensor_cores(layer, tensor_cores):
    """Whether to use the tensor cores: K must be a multiple of 16, and the device must have them."""
    return layer.indices.shape[1] % 16 == 0 and has_tensor_cores(tensor_cores)


def forward(h, layer, scores, *, block=(32, 4), tensor_cores=None):
    """``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l // G, k]]``.

    Uses the tensor cores where the device has them and K is a multiple of 16; `tensor_cores` overrides the detection.
    """
    if _use_tensor_cores(layer, tensor_cores):
        group_shared_mma.forward(h, layer, scores)
        return
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    grid = launch.labels_by_rows(n_groups, h.shape[0], TILE_ROWS, 1)
    shared = launch.shared_bytes(4 * (fan_in * (TILE_ROWS + group_size) + group_size * (TILE_ROWS + 1)))
    forward_kernel[grid, block, 0, shared](transposed(h), _kernel_inputs(layer), scores)


@cuda_device
def _add_sums(ht, indices, dht, shared, offsets, sizes, group, row):
    """Adds what the gradients of a tile give, one row per thread: to the sums by weight, and to dht with atomics.

    A row whose gradients are all zero adds nothing to dht.
    """
    inputs, gradients, values, sums = offsets
    n, n_sums, rows = sizes
    t, n_threads, fan_in = cuda.threadIdx.x, cuda.blockDim.x, indices.shape[1]
    pitch = n_threads + 1
    active = False
    for j in range(n):
        active |= shared[gradients + j * n_threads + t] != ZERO
    if active:
        for k in range(fan_in):
            total = ZERO
            for j in range(n):
                total += shared[values + j * fan_in + k] * shared[gradients + j * n_threads + t]
            cuda.atomic.add(dht, (np.uint32(indices[group, k]), row), total)
    for i in range(t, n * n_sums, n_threads):
        j, k, total = i // n_sums, i % n_sums, ZERO
        if k < fan_in:
            for q in range(rows):
                total += shared[gradients + j * n_threads + q] * shared[inputs + k * pitch + q]
        else:
            start = gradients + (k - fan_in) * n * n_threads + j * n_threads
            for q in range(rows):
                total += shared[start + q]
        shared[sums + i] += total


@cuda_device
def _gather(ht, indices, shared, group, row):
    """Copies the group's inputs of this thread's row to shared memory: column threadIdx.x of (K, blockDim.x + 1)."""
    for k in range(indices.shape[1]):
        shared[k * (cuda.blockDim.x + 1) + cuda.threadIdx.x] = ht[np.uint32(indices[group, k]), row]


@cuda_jit
def backward_kernel(ht, weights, dscores_t, dht, dvalues, dbias):
    """One block owns one group; one thread owns one row of each tile.

    Grid: groups on x. Reads dscores_t (L, B) and ht (H, B) coalesced; writes dvalues (L, K) and dbias (L,). Dynamic
    shared memory: inputs and gradients of blockDim.x rows, weights and their sums. dht (H, B) with atomics, one per
    input and row: order of float sums varies.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, _, group_size = weights
    group, t, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_rows, fan_in = ht.shape[1], indices.shape[1]
    gradients = fan_in * (n_threads + 1)  # this and the following are offsets into shared memory
    values = gradients + group_size * n_threads
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
            shared[gradients + j * n_threads + t] = dscores_t[first + j, row] if t < rows else ZERO
        cuda.syncthreads()
        _add_sums(ht, indices, dht, shared, (0, gradients, values, sums), (n, n_sums, rows), group, row)
    cuda.syncthreads()
    for i in range(t, n * n_sums, n_threads):
        if i % n_sums < fan_in:
            dvalues[first + i // n_sums, i % n_sums] = shared[sums + i]
        else:
            dbias[first + i // n_sums] = shared[sums + i]


def backward(h, layer, dscores, dh, dvalues, dbias, *, block=launch.BLOCK, tensor_cores=None):
    """Gradients of ``sum(dscores * scores)``: dh (scattered), dvalues (float32) and dbias; all three are overwritten.

    Uses the tensor cores as `forward` does.
    """
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    dht = zeros_like_inputs(h)
    if _use_tensor_cores(layer, tensor_cores):
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
    """One block owns one group, one thread one row of each tile: scores of all labels, loss, gradients, update.

    Grid: groups on x. Reads ht (H, B) coalesced and once, and the labels' rows; updates the group's weights, bias and
    moments; writes label_loss (L,). Dynamic shared memory: inputs, gradients and losses of blockDim.x rows, the weights
    and their K + 2 sums (dvalues, dbias, loss). dht (H, B) with atomics, one per input and row with a gradient: order
    of float sums varies; everything else is deterministic.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, bits, shift, bias, group_size = weights
    group, t, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_rows, fan_in = ht.shape[1], indices.shape[1]
    optimizer, rates, scale = update
    first = group * group_size
    n = min(group_size, bits.shape[0] - first)
    gradients = fan_in * (n_threads + 1)  # this and the following are offsets into shared memory
    values = gradients + 2 * n * n_threads
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
                value, g = loss_and_gradient(loss.kind, shifted(loss, score, row), sign)
                value *= scale
                g *= scale
            shared[gradients + j * n_threads + t] = g
            shared[gradients + (n + j) * n_threads + t] = value
            active |= g != ZERO
        # A tile without a gradient costs only its scores.
        if cuda.syncthreads_or(np.int32(active)):
            _add_sums(ht, indices, dht, shared, (0, gradients, values, sums), (n, n_sums, rows), group, row)
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

    Uses the tensor cores as `forward` does.
    """
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    update = (optimizer, rates, np.float32(1 / max(h.shape[0], 1)))
    dht = zeros_like_inputs(h)
    if _use_tensor_cores(layer, tensor_cores):
        inputs = label_rows, transposed_loss(loss, TILE_ROWS), update, values_moments, bias_moments, rounding
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
        transposed_loss(loss),
        update,
        values_moments,
        bias_moments,
        rounding,
        dht,
        label_loss,
    )
    dh[:] = dht.T


def softmax_shapes(n_rows, n_inputs, n_labels, fan_in, group_size):
    """{name: (shape, dtype)} of the arrays that `softmax_sums` allocates."""
    shape = n_rows, labels_at_once(n_rows, n_labels, group_size)
    return {"ht": ((n_inputs, n_rows), np.float32), "scores of some labels": (shape, np.float32)}


def softmax_sums(h, layer, largest, total, *, tensor_cores=None):
    """The largest score of each row and the sum of ``exp(score - largest)`` over all labels, both (B,).

    The scores of some groups exist at a time, at most 64 MiB. Uses the tensor cores as `forward` does.
    """
    size = layer.group_size

    def part_of(first, stop):
        indices = layer.indices[first // size : -(-stop // size)]
        return layer._replace(indices=indices, values=layer.values[first:stop], bias=layer.bias[first:stop])

    scores_of = functools.partial(forward, tensor_cores=tensor_cores)
    sums_of_layer(scores_of, part_of, h, len(layer.bias), size, largest, total)


@cuda_jit
def top_k_kernel(ht, weights, list_scores, list_ids):
    """One block searches one part of the groups for 32 rows; each thread keeps the best k of its labels for one row.

    Grid: parts on x, tiles of rows stride over y. Thread (q, y) owns row q and every blockDim.y-th label of a group;
    its list is number blockIdx.x blockDim.y + y. Reads ht (H, B) coalesced, once per group, and the weights once;
    writes list_scores and list_ids (B, k, n_lists). Dynamic shared memory: K x 32 inputs, G x K weights. No atomics.
    """
    shared, integers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    indices, _, _, bias, _ = weights
    q, y, n_y = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.y
    t, n_threads = y * cuda.blockDim.x + q, cuda.blockDim.x * n_y
    n_rows = ht.shape[1]
    n_groups, fan_in = indices.shape
    part, n_parts = cuda.blockIdx.x, cuda.gridDim.x
    values = fan_in * cuda.blockDim.x  # offset of the weights in shared memory
    for first_row in range(cuda.blockIdx.y * cuda.blockDim.x, n_rows, cuda.gridDim.y * cuda.blockDim.x):
        row = first_row + q
        worst = WORST  # the k-th best so far, in a register: the list in memory is touched only by a better score
        clamped_row = min(row, n_rows - 1)
        best, ids = list_scores[clamped_row, :, part * n_y + y], list_ids[clamped_row, :, part * n_y + y]
        if row < n_rows:
            clear(best, ids)
        for group in range(n_groups * part // n_parts, n_groups * (part + 1) // n_parts):
            cuda.syncthreads()
            first, n = _stage_weights(weights, values, integers, t, n_threads, group)
            for k in range(y, fan_in, n_y):
                shared[k * cuda.blockDim.x + q] = ht[np.uint32(indices[group, k]), clamped_row]
            cuda.syncthreads()
            for j in range(y, n, n_y):
                score = bias[first + j]
                for k in range(fan_in):
                    score += shared[values + j * fan_in + k] * shared[k * cuda.blockDim.x + q]
                if row < n_rows and not score <= worst and beats_worst(score, first + j, best, ids):
                    insert(best, ids, score, first + j)
                    worst = best[best.size - 1]


def top_k(h, layer, top_scores, top_ids, *, block=(TILE_ROWS, LISTS_PER_ROW), tensor_cores=None):
    """The k best labels of each row; only k scores per row and list are kept.

    Uses the tensor cores as `forward` does. Large k: the scores of some rows are sorted, at most 64 MiB or one row.
    """
    n_rows, k = top_scores.shape
    if k > MAX_INSERTED:
        top_k_of_layer(functools.partial(forward, tensor_cores=tensor_cores), h, layer, top_scores, top_ids)
        return
    (n_groups, fan_in), group_size = layer.indices.shape, layer.group_size
    n_parts, grid = launch.parts_by_rows(n_groups, n_rows, k, group_size, *block)
    lists = n_rows, k, n_parts * block[1]
    list_scores, list_ids = empty(lists, np.float32, "cuda"), empty(lists, np.int32, "cuda")
    if _use_tensor_cores(layer, tensor_cores):
        group_shared_mma.top_k(h, layer, list_scores, list_ids, grid)
    else:
        shared = launch.shared_bytes(4 * fan_in * (block[0] + group_size))
        top_k_kernel[grid, block, 0, shared](transposed(h), _kernel_inputs(layer), list_scores, list_ids)
    merge(list_scores, list_ids, top_scores, top_ids)
