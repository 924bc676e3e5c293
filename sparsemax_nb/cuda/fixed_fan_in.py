"""Fixed fan-in output layer on CUDA.

The inputs are transposed to ``ht (H, B)``. The 32 threads of a warp then read 32 neighbouring rows of one input, a
single 128-byte line; index and weight of the connection are the same for the whole warp. Gradients with respect to the
inputs are added to ``dht (H, B)`` with atomics, again 32 neighbours at a time.

The `..._wide` kernels load four rows per thread, 128 per warp, 16 bytes at a time; the plain ones show the idea, and
run in the simulator.
"""

import numpy as np
from numba import float32

from ..core import formulas
from ..core.connections import Connections
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit, empty, runs_ptx
from . import launch
from .full_softmax import labels_at_once, sums_of_layer
from .layout import padded, transposed, transposed_loss, zeros_like_inputs
from .losses import four_shifted, shifted
from .optimizers import updated
from .ptx import load4
from .reduce import ALL_LANES, warp_sum
from .top_k import MAX_INSERTED, WORST, beats_worst, clear, insert, merge, top_k_of_layer, top_k_shapes_of_layer

_f = cuda_formulas(formulas)
loss_and_gradient = _f.loss_and_gradient

ZERO, ONE = np.float32(0), np.float32(1)
#: Labels (and, without wide loads, rows) of a block's tile; and a row of it with padding against bank conflicts.
TILE = 32
TILE_PITCH = TILE + 1
#: Rows that a warp of a `..._wide` kernel takes at once: four per lane; and with padding.
WARP_ROWS = 4 * launch.WARP
WARP_ROWS_PITCH = WARP_ROWS + 1
#: If at most this many of a warp's 128 rows have a gradient, they are handled one by one: fewer sectors, as counted by
#: ptxsim.
MAX_ROWS_ONE_BY_ONE = 16


def workspace_shapes(n_rows, n_inputs, n_labels, fan_in):
    """{name: (shape, dtype)} of the arrays that `step` allocates (`backward` also allocates dscores, transposed)."""
    return {"ht": ((n_inputs, padded(n_rows, 4)), np.float32), "dht": ((n_inputs, n_rows), np.float32)}


def top_k_shapes(n_rows, n_inputs, n_labels, fan_in, k):
    """{name: (shape, dtype)} of the arrays that `top_k` allocates."""
    if k > MAX_INSERTED:
        return top_k_shapes_of_layer(n_rows, n_inputs, n_labels)
    n_lists, _ = launch.lists_by_rows(n_labels, n_rows, k)
    lists = n_rows, k, n_lists
    shapes = {"ht": ((n_inputs, padded(n_rows, 4)), np.float32)}
    return shapes | {"list_scores": (lists, np.float32), "list_ids": (lists, np.int32)}


@cuda_device
def _score(ht, layer, label, row):
    """Score of one label for one row."""
    label, row = np.uint32(label), np.uint32(row)  # unsigned: Numba omits its test for negative indices
    score = layer.bias[label]
    for k in range(layer.indices.shape[1]):
        k = np.uint32(k)
        score += layer.values[label, k] * ht[np.uint32(layer.indices[label, k]), row]
    return score


@cuda_device
def _scatter(dht, layer, label, row, g):
    """Adds the gradient `g` of one score to the inputs of its label, with one atomic per connection."""
    label, row = np.uint32(label), np.uint32(row)
    for k in range(layer.indices.shape[1]):
        k = np.uint32(k)
        cuda.atomic.add(dht, (np.uint32(layer.indices[label, k]), row), layer.values[label, k] * g)


@cuda_jit
def forward_kernel(ht, layer, scores):
    """First version: one thread computes one score; x is the row, y the label.

    Grid: labels on x, rows stride over y. Reads ht (H, B) coalesced. Writes scores (B, L) one 32-byte sector per
    thread, since neighbouring threads are neighbouring rows: 32 sectors per warp. `forward_tiled_kernel` fixes that. No
    shared memory. No atomics.
    """
    label = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    if label < layer.indices.shape[0]:
        for row in range(
            cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x, ht.shape[1], cuda.gridDim.y * cuda.blockDim.x
        ):
            scores[row, label] = _score(ht, layer, label, row)


@cuda_jit
def forward_tiled_kernel(ht, layer, scores):
    """One block computes a tile of 32 rows x 32 labels, transposes it in shared memory and writes whole lines.

    Grid: tiles of labels on x, tiles of rows stride over y; blocks of any size. Reads ht (H, B) and writes scores (B,
    L), both coalesced: 4 sectors per store of a warp instead of 32. Shared memory: 32 x 33 floats. No atomics.
    """
    # The padding column keeps the transposed reads free of bank conflicts.
    tile = cuda.shared.array((TILE, TILE_PITCH), float32)
    first_label = cuda.blockIdx.x * TILE
    n_labels, n_rows = layer.indices.shape[0], ht.shape[1]
    for first_row in range(cuda.blockIdx.y * TILE, n_rows, cuda.gridDim.y * TILE):
        for j in range(cuda.threadIdx.y, min(TILE, n_labels - first_label), cuda.blockDim.y):
            label = first_label + j
            for q in range(cuda.threadIdx.x, min(TILE, n_rows - first_row), cuda.blockDim.x):
                tile[j, q] = _score(ht, layer, label, first_row + q)
        cuda.syncthreads()
        for q in range(cuda.threadIdx.y, min(TILE, n_rows - first_row), cuda.blockDim.y):
            for j in range(cuda.threadIdx.x, min(TILE, n_labels - first_label), cuda.blockDim.x):
                scores[first_row + q, first_label + j] = tile[j, q]
        cuda.syncthreads()


@cuda_device
def _scores_of_four(ht, layer, label, first_row):
    """Scores of one label for the rows first_row ... first_row + 3."""
    indices, values = layer.indices[label], layer.values[label]
    a = b = c = d = layer.bias[label]
    k, fan_in = np.uint64(0), np.uint64(indices.size)
    while k < fan_in:  # cheaper than range(): unsigned, no test for negative indices
        weight, h = values[k], load4(ht, indices[k], first_row)
        a += weight * h[0]
        b += weight * h[1]
        c += weight * h[2]
        d += weight * h[3]
        k += np.uint64(1)
    return a, b, c, d


@cuda_jit
def forward_wide_kernel(ht, layer, scores):
    """`forward_tiled_kernel` with tiles of 128 rows x 32 labels: a warp takes one label, a lane four rows.

    Grid: tiles of labels on x, tiles of rows stride over y; block of (32, warps). Reads ht (H, B'), B' a multiple of 4,
    in 16-byte loads; writes scores (B, L) coalesced. Shared memory: 32 x 129 floats. No atomics.
    """
    tile = cuda.shared.array((TILE, WARP_ROWS_PITCH), float32)
    lane, first_label = cuda.threadIdx.x, cuda.blockIdx.x * TILE
    n_labels, n_rows = layer.indices.shape[0], scores.shape[0]
    for first_row in range(cuda.blockIdx.y * WARP_ROWS, n_rows, cuda.gridDim.y * WARP_ROWS):
        for j in range(cuda.threadIdx.y, min(TILE, n_labels - first_label), cuda.blockDim.y):
            row = min(first_row + 4 * lane, ht.shape[1] - 4)
            a, b, c, d = _scores_of_four(ht, layer, first_label + j, row)
            # Stored as four runs of 32 rows: neighbouring lanes write neighbouring banks, not every fourth one.
            tile[j, lane] = a
            tile[j, lane + 32] = b
            tile[j, lane + 64] = c
            tile[j, lane + 96] = d
        cuda.syncthreads()
        if first_label + lane < n_labels:
            for q in range(cuda.threadIdx.y, min(WARP_ROWS, n_rows - first_row), cuda.blockDim.y):
                scores[first_row + q, first_label + lane] = tile[lane, q % 4 * 32 + q // 4]
        cuda.syncthreads()


def forward(h, layer, scores, *, block=(32, 8), wide=None):
    """``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l, k]]``.

    `wide` selects `forward_wide_kernel`; the default is True on a device, False in the simulator.
    """
    kernel, rows, multiple = (forward_wide_kernel, WARP_ROWS, 4) if runs_ptx(wide) else (forward_tiled_kernel, TILE, 1)
    grid = launch.labels_by_rows(layer.indices.shape[0], h.shape[0], rows, TILE)
    kernel[grid, block](transposed(h, multiple), layer, scores)


@cuda_jit
def backward_kernel(ht, layer, dscores_t, dht, dvalues, dbias):
    """One block owns one label. Its threads share the rows (for dh), then the connections (for dvalues and dbias).

    Grid: labels on x. Reads dscores_t (L, B) and ht (H, B); writes dvalues (L, K) and dbias (L,). Rows whose gradient
    is zero are skipped. No shared memory. dht (H, B) with atomics: order of float sums varies.
    """
    label = cuda.blockIdx.x
    n_rows, fan_in = ht.shape[1], layer.indices.shape[1]
    for row in range(cuda.threadIdx.x, n_rows, cuda.blockDim.x):
        g = dscores_t[label, row]
        if g != ZERO:
            _scatter(dht, layer, label, row, g)
    for k in range(cuda.threadIdx.x, fan_in + 1, cuda.blockDim.x):
        total = ZERO
        for row in range(n_rows):
            g = dscores_t[label, row]
            if g != ZERO:
                if k < fan_in:
                    total += g * ht[layer.indices[label, k], row]
                else:
                    total += g
        if k < fan_in:
            dvalues[label, k] = total
        else:
            dbias[label] = total


@cuda_device
def _count_lanes_with(g):
    """The number of lanes of the warp with a nonzero `g`."""
    return cuda.popc(cuda.ballot_sync(ALL_LANES, g != ZERO))


@cuda_device
def _add_all_rows(ht, layer, dht, shared, sums, gradients, label, row, lane_row, g):
    """`_add_tile` where many rows have a gradient: all lanes take one connection after the other.

    A lane adds to dht at `row` + 0, 32, 64 and 96, so the atomics of a warp touch whole lines.
    """
    lane = cuda.threadIdx.x
    slot, row, sums = gradients + lane, np.uint64(row), np.uint64(sums)
    p, q, r, s = shared[slot], shared[slot + 32], shared[slot + 64], shared[slot + 96]
    indices, values = layer.indices[label], layer.values[label]
    k, fan_in = np.uint64(0), np.uint64(indices.size)
    while k < fan_in:
        i, weight = np.uint32(indices[k]), values[k]
        if p != ZERO:
            cuda.atomic.add(dht, (i, row), weight * p)
        if q != ZERO:
            cuda.atomic.add(dht, (i, row + np.uint64(32)), weight * q)
        if r != ZERO:
            cuda.atomic.add(dht, (i, row + np.uint64(64)), weight * r)
        if s != ZERO:
            cuda.atomic.add(dht, (i, row + np.uint64(96)), weight * s)
        h = load4(ht, i, lane_row)
        total = warp_sum((g[0] * h[0] + g[1] * h[1]) + (g[2] * h[2] + g[3] * h[3]))
        if lane == 0:
            shared[sums + k] += total
        k += np.uint64(1)


@cuda_device
def _add_rows_one_by_one(ht, layer, dht, shared, sums, gradients, label, first_row):
    """`_add_tile` for 32 rows of which few have a gradient: each lane takes a connection and loops over these rows."""
    lane = cuda.threadIdx.x
    label, gradients = np.uint32(label), np.uint64(gradients)
    mask = np.uint32(cuda.ballot_sync(ALL_LANES, shared[gradients + np.uint64(lane)] != ZERO))
    if mask:
        for k in range(lane, layer.indices.shape[1], 32):
            i, weight = np.uint32(layer.indices[label, np.uint32(k)]), layer.values[label, np.uint32(k)]
            total, rows_left = ZERO, mask
            while rows_left:
                q = cuda.ffs(rows_left) - 1
                rows_left &= rows_left - np.uint32(1)
                g, row = shared[gradients + np.uint64(q)], np.uint32(first_row + q)
                total += g * ht[i, row]
                cuda.atomic.add(dht, (i, row), weight * g)
            shared[sums + k] += total


@cuda_device
def _add_tile(ht, layer, dht, shared, sums, label, first_row, lane_row, g):
    """Adds what a warp's gradients of 128 rows give: to its label's sums for dvalues, and to dht with atomics.

    `g` are the gradients of the lane's four rows, which begin at `lane_row` of ht. Shared memory: K + 2 sums from
    position `sums` on, then 128 gradients.
    """
    lane = cuda.threadIdx.x
    gradients = sums + layer.indices.shape[1] + 2
    slot = gradients + 4 * lane
    n_active = _count_lanes_with(g[0]) + _count_lanes_with(g[1]) + _count_lanes_with(g[2]) + _count_lanes_with(g[3])
    if n_active > 0:
        shared[slot] = g[0]
        shared[slot + 1] = g[1]
        shared[slot + 2] = g[2]
        shared[slot + 3] = g[3]
        cuda.syncwarp()
        if n_active > MAX_ROWS_ONE_BY_ONE:
            _add_all_rows(ht, layer, dht, shared, sums, gradients, label, first_row + lane, lane_row, g)
        else:
            for q in range(0, WARP_ROWS, 32):
                _add_rows_one_by_one(ht, layer, dht, shared, sums, gradients + q, label, first_row + q)
        cuda.syncwarp()


@cuda_jit
def backward_wide_kernel(ht, layer, dscores_t, dht, dvalues, dbias):
    """`backward_kernel` with one warp per label and four neighbouring rows per lane, in 16-byte loads.

    Grid: labels on x; block of (32, labels). Reads dscores_t (L, B') and ht (H, B'), B' a multiple of 4, zero beyond
    the batch; writes dvalues (L, K) and dbias (L,). Dynamic shared memory per warp: K + 2 sums and 128 gradients. dht
    (H, B) with atomics: order of float sums varies.
    """
    shared = cuda.shared.array(0, float32)
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    label = cuda.blockIdx.x * cuda.blockDim.y + warp
    n_labels, fan_in = layer.indices.shape
    sums = warp * (fan_in + 2 + WARP_ROWS)
    if label < n_labels:
        for k in range(lane, fan_in, 32):
            shared[sums + k] = ZERO
        total = ZERO
        for first_row in range(0, ht.shape[1], WARP_ROWS):
            row = first_row + 4 * lane
            lane_row = min(row, ht.shape[1] - 4)
            a = b = c = d = ZERO
            if row == lane_row:
                a, b, c, d = load4(dscores_t, label, lane_row)
            total += (a + b) + (c + d)
            _add_tile(ht, layer, dht, shared, sums, label, first_row, lane_row, (a, b, c, d))
        total = warp_sum(total)
        for k in range(lane, fan_in, 32):
            dvalues[label, k] = shared[sums + k]
        if lane == 0:
            dbias[label] = total


def _launch_of_warps(layer, block):
    """(grid, block, shared bytes) of a kernel whose warps own one label each, with its sums and 128 gradients."""
    n_labels, fan_in = layer.indices.shape
    return launch.labels_by_warps(n_labels, 4 * (fan_in + 2 + WARP_ROWS), block)


def backward(h, layer, dscores, dh, dvalues, dbias, *, block=launch.BLOCK, wide=None):
    """Gradients of ``sum(dscores * scores)``: dh (scattered), dvalues and dbias; all three are overwritten.

    `wide` as in `forward`.
    """
    dht, outputs = zeros_like_inputs(h), (dvalues, dbias)
    if runs_ptx(wide):
        grid, block, shared = _launch_of_warps(layer, block)
        backward_wide_kernel[grid, block, 0, shared](transposed(h, 4), layer, transposed(dscores, 4), dht, *outputs)
    else:
        backward_kernel[layer.indices.shape[0], block](transposed(h), layer, transposed(dscores), dht, *outputs)
    dh[:] = dht.T


@cuda_device
def _scaled_gradient(loss, scale, score, is_label):
    """Gradient of one score, already shifted, and its loss, both times `scale`."""
    value, g = loss_and_gradient(loss.kind, score, ONE if is_label else -ONE)
    return g * scale, value * scale


@cuda_device
def _update(layer, update, values_moments, bias_moments, label_loss, shared, sums, label, thread, n_threads):
    """One optimizer step for a label, from its K + 2 sums in shared memory from position `sums` on.

    The sums are dvalues (K), dbias and the loss.
    """
    optimizer, rates, _ = update
    fan_in = layer.indices.shape[1]
    for k in range(thread, fan_in, n_threads):
        value, gradient = layer.values[label, k], shared[sums + k]
        layer.values[label, k] = updated(optimizer, value, gradient, values_moments, (label, k), rates)
    if thread == 0:
        bias, gradient = layer.bias[label], shared[sums + fan_in]
        layer.bias[label] = updated(optimizer, bias, gradient, bias_moments, label, rates)
        label_loss[label] = shared[sums + fan_in + 1]


@cuda_jit
def step_kernel(ht, layer, label_rows, loss, update, values_moments, bias_moments, dht, label_loss):
    """One block owns one label: scores of all rows, loss, gradients, update. Scores never leave the registers.

    Grid: labels on x. Reads ht (H, B) and the label's rows; updates values, bias and moments; writes label_loss (L,).
    `update` is (optimizer, rates, scale): kind of optimizer, `Rates`, and 1 / B, the factor of losses and gradients.
    Dynamic shared memory: gradient and loss of blockDim.x rows, then the K + 2 sums of the label (dvalues, dbias,
    loss). dht (H, B) with atomics: order of float sums varies; everything else is deterministic.
    """
    shared = cuda.shared.array(0, float32)
    label, t, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_rows, fan_in = ht.shape[1], layer.indices.shape[1]
    sums = 2 * n_threads
    for k in range(t, fan_in + 2, n_threads):
        shared[sums + k] = ZERO
    cuda.syncthreads()
    for first_row in range(0, n_rows, n_threads):
        row = first_row + t
        g = value = ZERO
        if row < n_rows:
            score = shifted(loss, _score(ht, layer, label, row), row)
            is_label = False
            for p in range(label_rows.indptr[label], label_rows.indptr[label + 1]):
                is_label |= label_rows.rows[p] == row
            g, value = _scaled_gradient(loss, update[2], score, is_label)
        shared[t] = g
        shared[n_threads + t] = value
        # Where no row has a gradient, there is nothing to add: only the update remains.
        if cuda.syncthreads_or(np.int32(g != ZERO)):
            if g != ZERO:
                _scatter(dht, layer, label, row, g)
            rows = min(n_threads, n_rows - first_row)
            for k in range(t, fan_in + 2, n_threads):
                total = ZERO
                for q in range(rows):
                    if k < fan_in:
                        if shared[q] != ZERO:
                            total += shared[q] * ht[layer.indices[label, k], first_row + q]
                    else:
                        total += shared[(k - fan_in) * n_threads + q]
                shared[sums + k] += total
        cuda.syncthreads()
    _update(layer, update, values_moments, bias_moments, label_loss, shared, sums, label, t, n_threads)


@cuda_device
def _label_bits_of_four(label_rows, label, first_row):
    """Bit j is set if row first_row + j, j < 4, has the label."""
    mask = np.uint32(0)
    for p in range(label_rows.indptr[label], label_rows.indptr[label + 1]):
        j = label_rows.rows[p] - first_row
        if 0 <= j < 4:
            mask |= np.uint32(1) << np.uint32(j)
    return mask


@cuda_jit
def step_wide_kernel(ht, layer, label_rows, loss, update, values_moments, bias_moments, dht, label_loss):
    """`step_kernel` with one warp per label and four neighbouring rows per lane, in 16-byte loads.

    Grid: labels on x; block of (32, labels). Reads ht (H, B'), B' a multiple of 4, and the labels' rows; updates
    values, bias and moments; writes label_loss (L,). Dynamic shared memory per warp: the K + 2 sums of its label
    (dvalues, dbias, loss) and 128 gradients. dht (H, B) with atomics: order of float sums varies; everything else is
    deterministic.

    Index and weight are loaded, and addresses computed, once per 128 rows. Counted by the PTX emulator (``python -m
    bench.counted``) for 128 rows, 670,000 labels and K = 32: 675 million warp instructions instead of 4,355, 14.0 GB
    through L2 instead of 20.2 (``bench/results/counted-cpu.json``). Tried and rejected: a reverse index of the
    connections instead of atomics. It reads more sectors than the atomics touch, most of them from memory, and needs
    the gradients of all labels stored.
    """
    shared = cuda.shared.array(0, float32)
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    label = cuda.blockIdx.x * cuda.blockDim.y + warp
    n_labels, fan_in = layer.indices.shape
    n_rows, scale = dht.shape[1], update[2]
    sums = warp * (fan_in + 2 + WARP_ROWS)
    if label < n_labels:
        for k in range(lane, fan_in, 32):
            shared[sums + k] = ZERO
        total = gradient_sum = ZERO
        for first_row in range(0, n_rows, WARP_ROWS):
            row = first_row + 4 * lane
            lane_row = min(row, ht.shape[1] - 4)
            a, b, c, d = _scores_of_four(ht, layer, label, lane_row)
            a, b, c, d = four_shifted(loss, a, b, c, d, lane_row)
            mask = _label_bits_of_four(label_rows, label, row)
            a, a_loss = _scaled_gradient(loss, scale if row < n_rows else ZERO, a, mask & 1)
            b, b_loss = _scaled_gradient(loss, scale if row + 1 < n_rows else ZERO, b, mask & 2)
            c, c_loss = _scaled_gradient(loss, scale if row + 2 < n_rows else ZERO, c, mask & 4)
            d, d_loss = _scaled_gradient(loss, scale if row + 3 < n_rows else ZERO, d, mask & 8)
            total += (a_loss + b_loss) + (c_loss + d_loss)
            gradient_sum += (a + b) + (c + d)
            _add_tile(ht, layer, dht, shared, sums, label, first_row, lane_row, (a, b, c, d))
        total, gradient_sum = warp_sum(total), warp_sum(gradient_sum)
        if lane == 0:
            shared[sums + fan_in] = gradient_sum
            shared[sums + fan_in + 1] = total
        cuda.syncwarp()
        _update(layer, update, values_moments, bias_moments, label_loss, shared, sums, label, lane, 32)


def step(
    h,
    layer,
    label_rows,
    loss,
    optimizer,
    rates,
    values_moments,
    bias_moments,
    dh,
    label_loss,
    *,
    block=launch.BLOCK,
    wide=None,
):
    """Scores, loss, gradients and update in one pass over the labels, in place; no (B, L) array exists.

    `wide` selects `step_wide_kernel`; the default is True on a device, False in the simulator.
    """
    n_labels, fan_in = layer.indices.shape
    update = (optimizer, rates, np.float32(1 / max(h.shape[0], 1)))
    dht = zeros_like_inputs(h)
    wide = runs_ptx(wide)
    loss = transposed_loss(loss, 4 if wide else 1)
    inputs = layer, label_rows, loss, update, values_moments, bias_moments, dht, label_loss
    if wide:
        grid, block, shared = _launch_of_warps(layer, block)
        step_wide_kernel[grid, block, 0, shared](transposed(h, 4), *inputs)
    else:
        shared = launch.shared_bytes(4 * (2 * block + fan_in + 2))
        step_kernel[n_labels, block, 0, shared](transposed(h), *inputs)
    dh[:] = dht.T


def softmax_shapes(n_rows, n_inputs, n_labels, fan_in):
    """{name: (shape, dtype)} of the arrays that `softmax_sums` allocates."""
    shape = n_rows, labels_at_once(n_rows, n_labels)
    return {"ht": ((n_inputs, padded(n_rows, 4)), np.float32), "scores of some labels": (shape, np.float32)}


def softmax_sums(h, layer, largest, total):
    """The largest score of each row and the sum of ``exp(score - largest)`` over all labels, both (B,).

    The scores of some labels exist at a time, at most 64 MiB.
    """

    def part_of(first, stop):
        return Connections(*(array[first:stop] for array in layer))

    sums_of_layer(forward, part_of, h, layer.indices.shape[0], 1, largest, total)


@cuda_device
def _offer(list_scores, list_ids, row, part, score, label, worst):
    """Inserts a label into a list if it beats `worst`, the list's k-th best score; returns the new k-th best."""
    if not score <= worst:
        best, ids = list_scores[row, :, part], list_ids[row, :, part]
        if beats_worst(score, label, best, ids):
            insert(best, ids, score, label)
            worst = best[best.size - 1]
    return worst


@cuda_jit
def top_k_kernel(ht, layer, list_scores, list_ids):
    """One thread keeps the best k of one range of labels for one row: x is the row, y the range.

    Grid: ranges on x, rows stride over y. Reads ht (H, B) coalesced; writes its list in list_scores and list_ids (B, k,
    n_lists). No shared memory. No atomics.
    """
    part = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    n_labels = layer.indices.shape[0]
    n_rows, _, n_lists = list_scores.shape
    if part < n_lists:
        for row in range(
            cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x, n_rows, cuda.gridDim.y * cuda.blockDim.x
        ):
            clear(list_scores[row, :, part], list_ids[row, :, part])
            worst = WORST  # the k-th best so far, in a register: the list in memory is touched only by a better score
            for label in range(n_labels * part // n_lists, n_labels * (part + 1) // n_lists):
                worst = _offer(list_scores, list_ids, row, part, _score(ht, layer, label, row), label, worst)


@cuda_device
def _worst_of_four(list_scores, row, n, part):
    """The k-th best scores of `n` rows from `row` on; infinity, which no score beats, for the rows beyond `n`."""
    last = list_scores.shape[1] - 1
    a = list_scores[row, last, part]
    b = list_scores[row + 1, last, part] if n > 1 else -WORST
    c = list_scores[row + 2, last, part] if n > 2 else -WORST
    d = list_scores[row + 3, last, part] if n > 3 else -WORST
    return a, b, c, d


@cuda_jit
def top_k_wide_kernel(ht, layer, list_scores, list_ids):
    """`top_k_kernel` with four neighbouring rows per thread, in 16-byte loads, and their four lists.

    Grid: ranges on x, groups of four rows stride over y. Reads ht (H, B'), B' a multiple of 4; writes list_scores and
    list_ids (B, k, n_lists). No shared memory. No atomics.
    """
    part = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    n_labels = layer.indices.shape[0]
    n_rows, _, n_lists = list_scores.shape
    if part < n_lists:
        for four in range(
            cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x, ht.shape[1] // 4, cuda.gridDim.y * cuda.blockDim.x
        ):
            row = 4 * four
            n = min(4, n_rows - row)
            for j in range(n):
                clear(list_scores[row + j, :, part], list_ids[row + j, :, part])
            p, q, r, s = _worst_of_four(list_scores, row, n, part)
            for label in range(n_labels * part // n_lists, n_labels * (part + 1) // n_lists):
                a, b, c, d = _scores_of_four(ht, layer, label, row)
                if not (a <= p and b <= q and c <= r and d <= s):
                    for j in range(n):
                        score = (a, b, c, d)[j]
                        _offer(list_scores, list_ids, row + j, part, score, label, (p, q, r, s)[j])
                    p, q, r, s = _worst_of_four(list_scores, row, n, part)


def top_k(h, layer, top_scores, top_ids, *, block=None, wide=None):
    """The k best labels of each row; k is the width of the outputs. Only k scores per row and range of labels are kept.

    `wide` selects `top_k_wide_kernel`; the default is True on a device for four rows or more. With few rows, a block
    takes more ranges instead. Large k: the scores of some rows are sorted, at most 64 MiB or one row.
    """
    n_rows, k = top_scores.shape
    if k > MAX_INSERTED:
        top_k_of_layer(forward, h, layer, top_scores, top_ids)
        return
    wide = runs_ptx() and n_rows > 3 if wide is None else wide
    kernel, multiple = (top_k_wide_kernel, 4) if wide else (top_k_kernel, 1)
    block = launch.block_of_rows(launch.divide_up(n_rows, multiple)) if block is None else block
    _, grid = launch.lists_by_rows(layer.indices.shape[0], n_rows, k, multiple * block[0], block[1])
    shapes = top_k_shapes(*h.shape, *layer.indices.shape, k)
    list_scores, list_ids = (empty(*shapes[name], "cuda") for name in ("list_scores", "list_ids"))
    kernel[grid, block](transposed(h, multiple), layer, list_scores, list_ids)
    merge(list_scores, list_ids, top_scores, top_ids)
