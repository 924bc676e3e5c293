"""Fixed fan-in output layer on CUDA.

The inputs are transposed to ``xt (H, B)``: the 32 threads of a warp then read 32 neighbouring rows of one feature, a
single 128-byte line, while index and weight of the connection are the same for the whole warp. Gradients by the inputs
are collected in ``dxt (H, B)`` with atomic adds, again 32 neighbours at a time.
"""

import numpy as np
from numba import float32

from ..core import backend, formulas, rng
from ..core.backend import cuda
from . import launch
from .top_k import WORST, clear, enters, insert, merge

_f = backend.cuda_formulas(formulas)
_r = backend.cuda_formulas(rng)
loss_and_gradient, adam, sgd = _f.loss_and_gradient, _f.adam, _f.sgd
random_word, below, symmetric = _r.random_word, _r.below, _r.symmetric

ZERO, ONE = np.float32(0), np.float32(1)
ADAM = formulas.ADAM_KIND
STREAM = rng.CONNECTIONS
NO_STEP = np.uint64(0)
TILE = 32
TILE_PITCH = TILE + 1


def workspace_shapes(n_rows, n_inputs, n_labels, fan_in):
    """{name: (shape, dtype)} of what `step` allocates (`backward`: also dscores, transposed)."""
    return {name: ((n_inputs, n_rows), np.float32) for name in ("xt", "dxt")}


def top_k_shapes(n_rows, n_inputs, n_labels, fan_in, k):
    """{name: (shape, dtype)} of what `top_k` allocates: the inputs, some lists for each row."""
    n_lists, _ = launch.lists_by_rows(n_labels, n_rows, k)
    lists = n_rows, k, n_lists
    shapes = {"xt": ((n_inputs, n_rows), np.float32)}
    return shapes | {"list_scores": (lists, np.float32), "list_ids": (lists, np.int32)}


def _zeros_like_inputs(x, layer):
    return backend.zeros(*workspace_shapes(*x.shape, *layer.indices.shape)["dxt"], "cuda")


def _transposed(array):
    return backend.asarray(array.T, "cuda")


@backend.cuda_device
def _score(xt, layer, label, row):
    """Score of one label for one row. Unsigned indices spare Numba's test for negative ones."""
    label, row = np.uint32(label), np.uint32(row)
    score = layer.bias[label]
    for k in range(layer.indices.shape[1]):
        k = np.uint32(k)
        score += layer.values[label, k] * xt[np.uint32(layer.indices[label, k]), row]
    return score


@backend.cuda_device
def _scatter(dxt, layer, label, row, g):
    """Adds the gradient `g` of one score to the inputs of its label, by atomics."""
    label, row = np.uint32(label), np.uint32(row)
    for k in range(layer.indices.shape[1]):
        k = np.uint32(k)
        cuda.atomic.add(dxt, (np.uint32(layer.indices[label, k]), row), layer.values[label, k] * g)


@backend.cuda_jit
def random_connections_kernel(seed, n_inputs, indices):
    """One thread draws the connections of one label. Grid: labels on x. Writes indices (L, K). No shared, no atomics."""
    label = cuda.grid(1)
    n_labels, fan_in = indices.shape
    if label < n_labels:
        for k in range(fan_in):
            j = n_inputs - fan_in + k
            word = random_word(seed, STREAM, NO_STEP, np.uint64(label * fan_in + k))
            t = np.int64(below(word, np.uint64(j + 1)))
            place = k  # the chosen inputs so far are ascending: find where t belongs
            while place > 0 and indices[label, place - 1] > t:
                place -= 1
            if place > 0 and indices[label, place - 1] == t:
                t = j  # larger than all that were chosen before
                place = k
            for i in range(k, place, -1):
                indices[label, i] = indices[label, i - 1]
            indices[label, place] = t


def random_connections(seed, n_inputs, indices, *, block=launch.BLOCK):
    """`fan_in` different inputs for each label, ascending: Floyd's sampling, one random word a connection."""
    random_connections_kernel[launch.flat(indices.shape[0], block)](seed, n_inputs, indices)


@backend.cuda_jit
def random_values_kernel(seed, stream, scale, values):
    """One thread draws one weight. Grid: elements on x. Writes values (n,). No shared, no atomics."""
    i = cuda.grid(1)
    if i < values.size:
        values[i] = symmetric(random_word(seed, stream, NO_STEP, np.uint64(i))) * scale


def random_values(seed, stream, scale, values, *, block=launch.BLOCK):
    """Uniform weights in [-scale, scale), `values` one-dimensional."""
    random_values_kernel[launch.flat(values.size, block)](seed, stream, scale, values)


@backend.cuda_jit
def forward_kernel(xt, layer, scores):
    """First version: one thread computes one score; x is the row, y the label; rows stride over grid y.

    Reads xt (H, B) coalesced, writes scores (B, L) with a whole 32-byte sector a thread, since neighbouring threads are
    neighbouring rows: `forward_tiled_kernel` mends that. No shared memory, no atomics.
    """
    label = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    if label < layer.indices.shape[0]:
        for row in range(
            cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x, xt.shape[1], cuda.gridDim.y * cuda.blockDim.x
        ):
            scores[row, label] = _score(xt, layer, label, row)


@backend.cuda_jit
def forward_tiled_kernel(xt, layer, scores):
    """A block computes a tile of 32 rows x 32 labels, turns it in shared memory and writes whole lines.

    Grid: tiles of labels on x, tiles of rows stride over y; a block of any size works through its tile. Reads
    xt (H, B) coalesced, writes scores (B, L) coalesced: 4 sectors a warp instead of 32. Shared: 32 x 33 floats (the
    column of padding keeps the turned access free of bank conflicts). No atomics.
    """
    tile = cuda.shared.array((TILE, TILE_PITCH), float32)
    first_label = cuda.blockIdx.x * TILE
    n_labels, n_rows = layer.indices.shape[0], xt.shape[1]
    for first_row in range(cuda.blockIdx.y * TILE, n_rows, cuda.gridDim.y * TILE):
        for j in range(cuda.threadIdx.y, min(TILE, n_labels - first_label), cuda.blockDim.y):
            label = first_label + j
            for q in range(cuda.threadIdx.x, min(TILE, n_rows - first_row), cuda.blockDim.x):
                tile[j, q] = _score(xt, layer, label, first_row + q)
        cuda.syncthreads()
        for q in range(cuda.threadIdx.y, min(TILE, n_rows - first_row), cuda.blockDim.y):
            for j in range(cuda.threadIdx.x, min(TILE, n_labels - first_label), cuda.blockDim.x):
                scores[first_row + q, first_label + j] = tile[j, q]
        cuda.syncthreads()


def forward(x, layer, scores, *, block=(32, 8)):
    """``scores[b, l] = bias[l] + sum_k values[l, k] x[b, indices[l, k]]``."""
    grid = launch.labels_by_rows(layer.indices.shape[0], x.shape[0], TILE, TILE)
    forward_tiled_kernel[grid, block](_transposed(x), layer, scores)


@backend.cuda_jit
def backward_kernel(xt, layer, dscores_t, dxt, dvalues, dbias):
    """A block owns one label. Its threads first share the rows (dx), then the connections (dvalues, dbias).

    Grid: labels on x. Reads dscores_t (L, B), xt (H, B); writes dvalues (L, K), dbias (L,). No shared memory.
    dxt (H, B) by atomics: order of float sums varies. Rows whose gradient is zero are skipped.
    """
    label = cuda.blockIdx.x
    n_rows, fan_in = xt.shape[1], layer.indices.shape[1]
    for row in range(cuda.threadIdx.x, n_rows, cuda.blockDim.x):
        g = dscores_t[label, row]
        if g != ZERO:
            _scatter(dxt, layer, label, row, g)
    for k in range(cuda.threadIdx.x, fan_in + 1, cuda.blockDim.x):
        total = ZERO
        for row in range(n_rows):
            g = dscores_t[label, row]
            if g != ZERO:
                if k < fan_in:
                    total += g * xt[layer.indices[label, k], row]
                else:
                    total += g
        if k < fan_in:
            dvalues[label, k] = total
        else:
            dbias[label] = total


def backward(x, layer, dscores, dx, dvalues, dbias, *, block=launch.BLOCK):
    """Gradients of ``sum(dscores * scores)``: dx (scattered), dvalues and dbias; all three are overwritten."""
    dxt = _zeros_like_inputs(x, layer)
    grid = layer.indices.shape[0]
    backward_kernel[grid, block](_transposed(x), layer, _transposed(dscores), dxt, dvalues, dbias)
    dx[:] = dxt.T


@backend.cuda_jit
def step_kernel(xt, layer, positives, loss, update, values_moments, bias_moments, dxt, label_loss):
    """A block owns one label: scores of all rows, loss, gradients, update. Scores never leave the registers.

    Grid: labels on x. Reads xt (H, B), positives; updates the label's values, bias and moments; writes label_loss (L,).
    Dynamic shared memory: gradient and loss of blockDim.x rows, then the K + 2 sums of the label (dvalues, dbias, loss).
    dxt (H, B) by atomics: order of float sums varies; everything else is deterministic. Where no row has a gradient,
    only the update is left to do.
    """
    shared = cuda.shared.array(0, float32)
    label, t, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    n_rows, fan_in = xt.shape[1], layer.indices.shape[1]
    optimizer, rates, scale = update
    sums = 2 * n_threads
    for k in range(t, fan_in + 2, n_threads):
        shared[sums + k] = ZERO
    cuda.syncthreads()
    for first_row in range(0, n_rows, n_threads):
        row = first_row + t
        g = value = ZERO
        if row < n_rows:
            score = _score(xt, layer, label, row)
            sign = -ONE
            for p in range(positives.indptr[label], positives.indptr[label + 1]):
                if positives.rows[p] == row:
                    sign = ONE
            value, g = loss_and_gradient(loss, score, sign)
            value *= scale
            g *= scale
        shared[t] = g
        shared[n_threads + t] = value
        if cuda.syncthreads_or(np.int32(value != ZERO)):
            if g != ZERO:
                _scatter(dxt, layer, label, row, g)
            rows = min(n_threads, n_rows - first_row)
            for k in range(t, fan_in + 2, n_threads):
                total = ZERO
                for q in range(rows):
                    if k < fan_in:
                        if shared[q] != ZERO:
                            total += shared[q] * xt[layer.indices[label, k], first_row + q]
                    else:
                        total += shared[(k - fan_in) * n_threads + q]
                shared[sums + k] += total
        cuda.syncthreads()
    for k in range(t, fan_in, n_threads):
        if optimizer == ADAM:
            value, m, v = adam(
                layer.values[label, k], shared[sums + k], values_moments.m[label, k], values_moments.v[label, k], rates
            )
            values_moments.m[label, k] = m
            values_moments.v[label, k] = v
        else:
            value = sgd(layer.values[label, k], shared[sums + k], rates)
        layer.values[label, k] = value
    if t == 0:
        dbias = shared[sums + fan_in]
        if optimizer == ADAM:
            value, m, v = adam(layer.bias[label], dbias, bias_moments.m[label], bias_moments.v[label], rates)
            bias_moments.m[label] = m
            bias_moments.v[label] = v
        else:
            value = sgd(layer.bias[label], dbias, rates)
        layer.bias[label] = value
        label_loss[label] = shared[sums + fan_in + 1]


def step(
    x, layer, positives, loss, optimizer, rates, values_moments, bias_moments, dx, label_loss, *, block=launch.BLOCK
):
    """Scores, loss, gradients and update in one pass over the labels, in place; no (B, L) array exists."""
    n_labels, fan_in = layer.indices.shape
    update = (optimizer, rates, np.float32(1 / max(x.shape[0], 1)))
    dxt = _zeros_like_inputs(x, layer)
    shared_bytes = launch.shared_bytes(4 * (2 * block + fan_in + 2))
    step_kernel[n_labels, block, 0, shared_bytes](
        _transposed(x), layer, positives, loss, update, values_moments, bias_moments, dxt, label_loss
    )
    dx[:] = dxt.T


@backend.cuda_jit
def top_k_kernel(xt, layer, list_scores, list_ids):
    """One thread keeps the best k of one range of labels for one row: x is the row, y the range.

    Grid: ranges on x, rows stride over y. Reads xt (H, B) coalesced; its list in list_scores, list_ids (B, k, n_lists)
    is touched only where a label beats the k-th best so far, which a register holds. No shared memory, no atomics.
    """
    part = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    n_labels = layer.indices.shape[0]
    n_rows, _, n_lists = list_scores.shape
    if part < n_lists:
        for row in range(
            cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x, n_rows, cuda.gridDim.y * cuda.blockDim.x
        ):
            best, ids = list_scores[row, :, part], list_ids[row, :, part]
            clear(best, ids)
            worst = WORST
            for label in range(n_labels * part // n_lists, n_labels * (part + 1) // n_lists):
                score = _score(xt, layer, label, row)
                if not score <= worst and enters(score, label, best, ids):
                    insert(best, ids, score, label)
                    worst = best[best.size - 1]


def top_k(x, layer, top_scores, top_ids, *, block=None):
    """The k best labels of each row; only k scores a row and range of labels are kept. Few rows: more ranges in a block."""
    n_rows, k = top_scores.shape
    block = launch.rows_side_by_side(n_rows) if block is None else block
    _, grid = launch.lists_by_rows(layer.indices.shape[0], n_rows, k, *block)
    shapes = top_k_shapes(*x.shape, *layer.indices.shape, k)
    list_scores, list_ids = (backend.empty(*shapes[name], "cuda") for name in ("list_scores", "list_ids"))
    top_k_kernel[grid, block](_transposed(x), layer, list_scores, list_ids)
    merge(list_scores, list_ids, top_scores, top_ids)
