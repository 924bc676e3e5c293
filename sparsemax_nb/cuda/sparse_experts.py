"""Training of a sparse mixture of sparse experts on CUDA."""

import math

import numpy as np
from numba import float32

from ..core import formulas, rng
from ..core.device import address, cuda, cuda_device, cuda_formulas, cuda_jit, has_tensor_cores
from . import launch
from .ds_softmax import MMA_BLOCK, NAN, ONE, ROWS_PER_THREAD, WORST, ZERO, tile_of_expert
from .reduce import block_max, block_sum
from .tensor_cores import WARP_TILE, Factor, factor, origin_of_lane, product_of_tile, shared_bytes_of, store_row

_f, _r = cuda_formulas(formulas), cuda_formulas(rng)
adam, first_at_least, lasso = _f.adam, _f.first_at_least, _f.lasso
random_words, bell = _r.random_words, _r.bell
TWO, NOISE = np.float32(2), rng.NOISE


@cuda_jit
def add_noise_kernel(seed, step, scale, logits):
    """One thread owns one of the logits (B, E), updated in place.

    Grid: elements on x. Coalesced. No shared memory. No atomics.
    """
    i = cuda.grid(1)
    if i < logits.size:
        w0, w1, w2, w3 = random_words(seed, NOISE, step, np.uint64(i))
        logits[i // logits.shape[1], i % logits.shape[1]] += scale * bell(w0, w1, w2, w3)


def add_noise(seed, step, scale, logits, *, block=launch.BLOCK):
    """Adds scale times nearly normal random numbers to the logits (B, E), in place."""
    add_noise_kernel[launch.flat(logits.size, block)](seed, step, scale, logits)


@cuda_jit
def gradient_of_rows_kernel(dscores, h, groups, experts, dweights):
    """One block owns 4 blockDim.y classes of one expert and walks over the columns of h, blockDim.x at a time.

    Grid: tiles of classes on x, tiles of columns stride over y. The sums run over the expert's rows of the batch:
    thread (x, y) computes four of them, for classes y, y + blockDim.y, ... and column x. Reads dscores (flat) and h (B,
    d) once per tile, blockDim.x rows at a time; writes dweights (R, d), coalesced. Shared memory: 4 blockDim.x (4
    blockDim.y + blockDim.x) bytes. No atomics.
    """
    tx, ty, nx, ny = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
    shared, n_classes = cuda.shared.array(0, float32), ROWS_PER_THREAD * ny
    tile_of_gradients, tile_of_h = 0, n_classes * nx  # offsets into shared memory
    first, stop, k = tile_of_expert(experts.starts, cuda.blockIdx.x, n_classes)
    if k < 0:
        return
    width, thread = h.shape[1], ty * nx + tx
    begin, end = groups.starts[k], groups.starts[k + 1]
    for column in range(cuda.blockIdx.y * nx, width, cuda.gridDim.y * nx):
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for row in range(begin, end, nx):
            for i in range(thread, nx * n_classes, nx * ny):
                b, c = row + i // n_classes, first + i % n_classes
                inside = b < end and c < stop
                shared[tile_of_gradients + i] = dscores[groups.offsets[b] + c - experts.starts[k]] if inside else ZERO
            for i in range(ty, nx, ny):
                inside = row + i < end and column + tx < width
                shared[tile_of_h + i * nx + tx] = h[row + i, column + tx] if inside else ZERO
            cuda.syncthreads()
            for t in range(nx):
                x = shared[tile_of_h + t * nx + tx]
                s0 += shared[tile_of_gradients + t * n_classes + ty] * x
                s1 += shared[tile_of_gradients + t * n_classes + ty + ny] * x
                s2 += shared[tile_of_gradients + t * n_classes + ty + 2 * ny] * x
                s3 += shared[tile_of_gradients + t * n_classes + ty + 3 * ny] * x
            cuda.syncthreads()
        if column + tx < width:
            if first + ty < stop:
                dweights[first + ty, column + tx] = s0
            if first + ty + ny < stop:
                dweights[first + ty + ny, column + tx] = s1
            if first + ty + 2 * ny < stop:
                dweights[first + ty + 2 * ny, column + tx] = s2
            if first + ty + 3 * ny < stop:
                dweights[first + ty + 3 * ny, column + tx] = s3


@cuda_jit
def gradient_of_rows_mma_kernel(dscores, h, groups, experts, wide, dweights):
    """`gradient_of_rows_kernel` on the tensor cores: one block owns 32 blockDim.y classes and 32 blockDim.z columns.

    Grid: tiles of classes on x, tiles of columns stride over y. Reads dscores (flat) without a copy, and h (B, d) as a
    `Factor` of its transpose; writes dweights (R d), flat, in 16-byte stores where `wide`. Shared memory: two buffers
    of 3,072 (blockDim.y + blockDim.z) bytes. No atomics.
    """
    first, stop, k = tile_of_expert(experts.starts, cuda.blockIdx.x, WARP_TILE * cuda.blockDim.y)
    if k < 0:
        return
    n_columns, width = WARP_TILE * cuda.blockDim.z, experts.weights.shape[1]
    begin, end, start = groups.starts[k], groups.starts[k + 1], experts.starts[k]
    gradients = Factor(dscores, np.int64(1), np.int64(experts.starts[k + 1] - start), np.int32(0))
    offset = groups.offsets[begin] - start  # rows are numbered over all experts; this matrix begins at `start`
    y, x = origin_of_lane()
    column = cuda.blockIdx.y * n_columns
    while column < width:
        inputs, columns, terms = (h, np.int64(begin) * width), (column, width), (0, end - begin)
        r0, r1, r2, r3 = product_of_tile((gradients, offset), inputs, (first, stop), columns, terms, True)
        row = np.int64(first + y)
        if row < stop:
            store_row(dweights, row * width, column + x, width, wide, r0)
        if row + 2 < stop:
            store_row(dweights, (row + 2) * width, column + x, width, wide, r1)
        if row + 16 < stop:
            store_row(dweights, (row + 16) * width, column + x, width, wide, r2)
        if row + 18 < stop:
            store_row(dweights, (row + 18) * width, column + x, width, wide, r3)
        column += cuda.gridDim.y * n_columns


def gradient_of_rows(dscores, h, groups, experts, dweights, *, block=(32, 8), tensor_cores=None):
    """Gradient with respect to the experts' weights, (R, d): for each expert, ``dscores.T @ h`` of its rows.

    Uses the tensor cores as `scores` does.
    """
    (n_rows, width), n_experts = dweights.shape, experts.starts.shape[0] - 1
    if has_tensor_cores(tensor_cores):
        _, y, z = MMA_BLOCK
        grid = launch.tiles_of_groups(n_rows, n_experts, WARP_TILE * y, width, WARP_TILE * z)
        wide = np.int32(width % 4 == 0 and address(dweights) % 16 == 0)
        gradient_of_rows_mma_kernel[grid, MMA_BLOCK, 0, launch.shared_bytes(shared_bytes_of(MMA_BLOCK))](
            dscores, factor(h.T), groups, experts, wide, dweights.reshape(-1)
        )
        return
    shared = launch.shared_bytes(4 * block[0] * (ROWS_PER_THREAD * block[1] + block[0]))
    grid = launch.tiles_of_groups(n_rows, n_experts, ROWS_PER_THREAD * block[1], width, block[0])
    gradient_of_rows_kernel[grid, block, 0, shared](dscores, h, groups, experts, dweights)


@cuda_device
def _find(ids, first, stop, wanted):
    """Position of `wanted` in ascending ids[first:stop], or -1."""
    position = first_at_least(ids, first, stop, wanted)
    return position - first if position < stop and ids[position] == wanted else -1


@cuda_jit
def cross_entropy_kernel(scores, values, labels, groups, experts, n_classes, scale, loss, dvalues, dscores):
    """One block owns one row of the batch sorted by expert; thread t owns its scores t, t + blockDim.x, ...

    Grid: rows on x; block a power of two. Reads scores (flat) three times, coalesced, and values (B,); writes dscores,
    which may be scores, and loss and dvalues (B,). The threads share the row's labels; each looks its label up in the
    expert's ids. Shared memory: 4 bytes per thread for the reductions, which run in a fixed order. No atomics.
    """
    position, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(0, float32)
    b, k, start = groups.order[position], groups.experts[position], groups.offsets[position]
    first, stop = experts.starts[k], experts.starts[k + 1]
    size, value = stop - first, values[b]
    n_absent, n_labels = np.float32(n_classes - size), np.float32(labels.indptr[b + 1] - labels.indptr[b])
    best = WORST if size > 0 else ZERO
    for j in range(thread, size, n_threads):
        best = max(best, scores[start + j])
    best = block_max(shared, best)
    if best == WORST:  # all scores are NaN
        best = NAN
    # As on the CPU, everything is relative to the best score: exp never overflows.
    largest, absent = value * best, ZERO
    if n_absent > ZERO:
        largest = max(largest, ZERO)
        absent = n_absent * math.exp(-largest)
    shift = value * best - largest
    total, gap, n_found, dvalue = ZERO, ZERO, ZERO, ZERO
    for j in range(thread, size, n_threads):
        total += math.exp(value * (scores[start + j] - best) + shift)
    for i in range(labels.indptr[b] + thread, labels.indptr[b + 1], n_threads):
        column = _find(experts.ids, first, stop, labels.indices[i])
        if column >= 0:
            gap += best - scores[start + column]
            n_found += ONE
    total = block_sum(shared, total) + absent
    gap, n_missing = block_sum(shared, gap), n_labels - block_sum(shared, n_found)
    weight = n_labels * scale / total
    for j in range(thread, size, n_threads):
        s = scores[start + j] - best
        dz = weight * math.exp(value * s + shift)
        dvalue += dz * s
        dscores[start + j] = value * dz
    dvalue = block_sum(shared, dvalue)  # its barriers: the labels' dscores were written by other threads
    for i in range(labels.indptr[b] + thread, labels.indptr[b + 1], n_threads):
        column = _find(experts.ids, first, stop, labels.indices[i])
        if column >= 0:
            dscores[start + column] -= value * scale
    if thread == 0:
        dvalue += scale * gap
        row_loss = n_labels * math.log(total) + value * gap - (n_labels - n_missing) * shift
        if n_missing > ZERO:
            row_loss += n_missing * largest
        if n_absent > ZERO:
            dvalue += best * (scale * (n_missing - n_labels * absent / total))
        loss[b] = row_loss
        dvalues[b] = dvalue


def cross_entropy(
    scores, values, labels, groups, experts, n_classes, scale, loss, dvalues, dscores, *, block=launch.BLOCK
):
    """``sum_labels(log(sum_c exp(g s_c) + n_absent) - g s_label)`` per row, and its gradients times `scale`.

    `dscores` may be `scores`.
    """
    if values.shape[0]:
        cross_entropy_kernel[values.shape[0], block, 0, launch.shared_bytes(4 * block)](
            scores, values, labels, groups, experts, n_classes, scale, loss, dvalues, dscores
        )


@cuda_jit
def balance_kernel(values, groups, load, dload):
    """One thread owns the experts t, t + blockDim.x, ... of load and dload (E,) and walks over their rows.

    Grid: one block, a power of two: the sums run over all experts. Reads values (B,). Shared memory: 4 bytes per thread
    for the reductions, which run in a fixed order. No atomics.
    """
    thread, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    shared, total, square = cuda.shared.array(0, float32), ZERO, ZERO
    for k in range(thread, load.size, n_threads):
        expert_load = ZERO
        for position in range(groups.starts[k], groups.starts[k + 1]):
            expert_load += values[groups.order[position]]
        load[k] = expert_load
        total += expert_load
        square += expert_load * expert_load
    total, square = block_sum(shared, total), block_sum(shared, square)
    for k in range(thread, load.size, n_threads):
        dload[k] = TWO * np.float32(load.size) * (load[k] * total - square) / (total * total * total)


def balance(values, groups, load, dload, *, block=launch.BLOCK):
    """The sum of the gate values of each expert's rows, (E,).

    Also writes the gradient of the squared coefficient of variation with respect to it.
    """
    balance_kernel[1, block, 0, launch.shared_bytes(4 * block)](values, groups, load, dload)


@cuda_jit
def gate_backward_kernel(probabilities, chosen, dvalues, dload, dlogits):
    """One thread owns one element of dlogits (B, E).

    Grid: elements on x. Reads probabilities (B, E), chosen and dvalues (B,) and dload (E,), coalesced. No shared
    memory. No atomics.
    """
    i = cuda.grid(1)
    if i < dlogits.size:
        b, j = i // dlogits.shape[1], i % dlogits.shape[1]
        k = chosen[b]
        upstream = (dvalues[b] + dload[k]) * probabilities[b, k]
        dlogits[b, j] = upstream * ((ONE if j == k else ZERO) - probabilities[b, j])


def gate_backward(probabilities, chosen, dvalues, dload, dlogits, *, block=launch.BLOCK):
    """The gradient with respect to the gate's logits (B, E).

    Given are the gradients with respect to the chosen experts' values (B,) and to the experts' loads (E,).
    """
    gate_backward_kernel[launch.flat(dlogits.size, block)](probabilities, chosen, dvalues, dload, dlogits)


@cuda_jit
def class_sums_kernel(squares, by_class, sums):
    """One thread owns one class of sums (L,) and walks over the class's rows of squares (R,).

    Grid: classes on x. No shared memory. No atomics.
    """
    c = cuda.grid(1)
    if c < sums.size:
        total = ZERO
        for i in range(by_class.indptr[c], by_class.indptr[c + 1]):
            total += squares[by_class.rows[i]]
        sums[c] = total


def class_sums(squares, by_class, sums, *, block=launch.BLOCK):
    """The sum of `squares` (R,) over the rows of each class, (L,)."""
    class_sums_kernel[launch.flat(sums.shape[0], block)](squares, by_class, sums)


@cuda_jit
def update_kernel(gradient, ids, class_squares, penalties, rates, moments, weights, squares):
    """One block owns one row of weights, gradient, m and v (R, d); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x; block a power of two. Reads and writes each number once, coalesced. Reads ids, class_squares and
    the old squares (R,), writes the new squares. Shared memory: 4 bytes per thread for their reduction, in a fixed
    order. No atomics.
    """
    r, thread, n_threads, width = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x, weights.shape[1]
    shared = cuda.shared.array(0, float32)
    class_lasso, expert_lasso, n_experts, epsilon = penalties
    n, square = np.float32(width), ZERO
    factor = lasso(class_lasso, squares[r], n, epsilon)
    factor += lasso(expert_lasso, class_squares[ids[r]], n_experts * n, epsilon)
    for i in range(thread, width, n_threads):
        w = weights[r, i]
        w, m, v = adam(w, gradient[r, i] + factor * w, moments.m[r, i], moments.v[r, i], rates)
        weights[r, i] = w
        moments.m[r, i] = m
        moments.v[r, i] = v
        square += w * w
    square = block_sum(shared, square)
    if thread == 0:
        squares[r] = square


def update(gradient, ids, class_squares, penalties, rates, moments, weights, squares, *, block=launch.BLOCK):
    """One Adam step on the loss and the two group lassos, in place.

    `squares` (R,) are the sums of squares of the rows, before and after.
    """
    if weights.shape[0]:
        update_kernel[weights.shape[0], block, 0, launch.shared_bytes(4 * block)](
            gradient, ids, class_squares, penalties, rates, moments, weights, squares
        )


@cuda_jit
def survivors_kernel(squares, by_class, least, keep):
    """One thread owns one class and writes keep (R,) for the class's rows.

    Grid: classes on x. No shared memory. No atomics.
    """
    c = cuda.grid(1)
    if c < by_class.indptr.size - 1:
        first, stop = by_class.indptr[c], by_class.indptr[c + 1]
        best = first
        for i in range(first, stop):
            row = by_class.rows[i]
            keep[row] = squares[row] >= least
            if squares[row] > squares[by_class.rows[best]]:
                best = i
        if first < stop:
            keep[by_class.rows[best]] = 1


def survivors(squares, by_class, least, keep, *, block=launch.BLOCK):
    """Which rows are kept, (R,) uint8: those with squares >= least, and the largest one of each class.

    The first row wins a tie.
    """
    survivors_kernel[launch.flat(by_class.indptr.shape[0] - 1, block)](squares, by_class, least, keep)
