"""The three products of a group of labels and a block of 16 rows: scores, gradients of the weights and of the inputs.

`group_shared` explains the layout. Each product works on four sums at a time, then on the remaining ones singly.
"""

from ..core.device import njit, njit_inline
from .simd import LANES, fmas, item, load, prefetch, splat, store, stores, transposed

FOUR = 4


@njit_inline
def _add_scores(block, indices, start, fan_in, values, offset, sums):
    """Add to sums[j] the scores of neighboring labels, whose weights begin at ``values[offset + K j]``."""
    for k in range(fan_in):
        line = load(block, item(indices, start + k) * LANES)
        sums = fmas(values, offset + k, fan_in, line, sums)
    return sums


@njit
def prefetch_inputs(block, indices, start, fan_in, part, n_parts):
    """Prefetch one of n_parts parts of a group's input lines, which the hardware prefetcher cannot predict.

    The parts are spread between products: a core stalls if it issues more loads than it can have in flight.
    """
    for k in range(start + fan_in * part // n_parts, min(start + fan_in * (part + 1) // n_parts, indices.size)):
        prefetch(block, item(indices, k) * LANES)


@njit
def group_scores(block, indices, start, fan_in, values, offset, bias, first, n, tile):
    """``tile[16 j + q]`` = score of label first + j, j < n, for row q of a block; prefetches the next group's lines."""
    whole = n - n % FOUR
    for j in range(0, whole, FOUR):
        prefetch_inputs(block, indices, start + fan_in, fan_in, j // FOUR, whole // FOUR)
        b = first + j
        sums = splat(item(bias, b)), splat(item(bias, b + 1)), splat(item(bias, b + 2)), splat(item(bias, b + 3))
        sums = _add_scores(block, indices, start, fan_in, values, offset + j * fan_in, sums)
        stores(tile, j * LANES, sums)
    for j in range(whole, n):
        one = (splat(item(bias, first + j)),)
        one = _add_scores(block, indices, start, fan_in, values, offset + j * fan_in, one)
        stores(tile, j * LANES, one)


@njit
def add_weight_gradients(block, padded_indices, inputs, g, active, n_active, dvalues, first_row):
    """Add to row ``first_row + active[a]`` of dvalues the sum over 16 rows of g[a] times the inputs `padded_indices`.

    g and active are padded to a multiple of four. dvalues is flat; its rows are as long as padded_indices. `inputs` is
    scratch for the transposed inputs.
    """
    width = padded_indices.size
    for k in range(0, width, LANES):
        transposed(block, padded_indices, k, inputs, k * LANES)
    for a in range(0, n_active, FOUR):
        r0, r1 = (first_row + item(active, a)) * width, (first_row + item(active, a + 1)) * width
        r2, r3 = (first_row + item(active, a + 2)) * width, (first_row + item(active, a + 3)) * width
        for k in range(0, width, LANES):
            sums = load(dvalues, r0 + k), load(dvalues, r1 + k), load(dvalues, r2 + k), load(dvalues, r3 + k)
            for q in range(LANES):
                sums = fmas(g, a * LANES + q, LANES, load(inputs, k * LANES + q * LANES), sums)
            store(dvalues, r0 + k, sums[0])
            store(dvalues, r1 + k, sums[1])
            store(dvalues, r2 + k, sums[2])
            store(dvalues, r3 + k, sums[3])


@njit
def add_input_gradients(dblock, indices, start, next_start, fan_in, gradients, values, active, low, high):
    """Add to the K input lines of dblock the weights of label ``active[a]`` times its gradients, for low <= a < high.

    The lines whose list begins at `next_start` are prefetched for the next call.
    """
    whole = fan_in - fan_in % FOUR
    for k in range(0, whole, FOUR):
        prefetch_inputs(dblock, indices, next_start, fan_in, k // FOUR, whole // FOUR)
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
