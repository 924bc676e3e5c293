"""Rewiring of the fixed fan-in layer on CUDA: find the smallest weights, draw new connections.

Without its sign, a float32 orders like its bits, an integer. So the threshold is found digit by digit (radix
selection): no copy of the weights, no sort, one read of them per digit. All counts are integers, so the order of the
atomics does not change the result.
"""

import numpy as np
from numba import float32, int32

from ..core import formulas, rng
from ..core.device import cuda, cuda_formulas, cuda_jit
from . import launch
from .bfloat16 import bits_of

_f = cuda_formulas(formulas)
_r = cuda_formulas(rng)
digit, is_smallest, free_input = _f.digit, _f.is_smallest, _f.free_input
random_word, below = _r.random_word, _r.below

STREAM = rng.REWIRING
ZERO, ONE = np.float32(0), np.int32(1)
#: Bins of a digit: 11 bits. The table takes 8 KiB of shared memory.
MAX_BINS = 2048
#: Labels per block of `count_smallest_kernel`.
LABELS_PER_BLOCK = 32


@cuda_jit
def magnitudes_kernel(bits, shift, group_size, means):
    """One thread owns one slot of a group: the mean of |value| over the group's labels, added in their order.

    Grid: slots on x. Reads bits (L, K) coalesced: float32 (shift 0) or bfloat16 (shift 16); writes means (L / G rounded
    up, K). Dynamic shared memory: 4 bytes per thread. No atomics.
    """
    # One array, two views: bits are written as int32 and read back as float32.
    as_float, as_bits = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    i, t, fan_in = cuda.grid(1), cuda.threadIdx.x, means.shape[1]
    if i < means.size:
        group, k = i // fan_in, i % fan_in
        first, stop = group * group_size, min(bits.shape[0], (group + 1) * group_size)
        total = ZERO
        for label in range(first, stop):
            as_bits[t] = np.int32(bits[label, k]) << shift
            total += abs(as_float[t])
        means[group, k] = total / np.float32(stop - first)


def magnitudes(values, group_size, means, *, block=launch.BLOCK):
    """Mean |value| of every slot over the labels of its group, in float32.

    `values` (L, K) are float32 or the bits of bfloat16.
    """
    grid, block = launch.flat(means.size, block)
    magnitudes_kernel[grid, block, 0, 4 * block](*bits_of(values), group_size, means)


@cuda_jit
def clear_kernel(slots, group_size, array):
    """One thread owns one slot and clears it in every label of its group.

    Grid: slots on x. Writes array (L, K). No shared memory. No atomics.
    """
    i = cuda.grid(1)
    if i < slots.shape[0]:
        first, k = slots[i, 0] * group_size, slots[i, 1]
        for label in range(first, min(array.shape[0], first + group_size)):
            array[label, k] = 0


def clear(slots, group_size, array, *, block=launch.BLOCK):
    """Sets the distinct slots (n, 2) = (group, k) of array (L, K) to zero in every label of their groups."""
    clear_kernel[launch.flat(slots.shape[0], block)](slots, group_size, array)


@cuda_jit
def magnitude_histogram_kernel(bits, prefix, shift, counts):
    """One block counts its share of the weights in a table in shared memory, then adds the table to counts.

    Grid: any number of blocks on x; elements stride over all threads. Reads bits (n,) int32 coalesced; adds to counts
    (n_bins,) int64. Shared memory: 2,048 int32. Integer atomics: deterministic.
    """
    # One atomic per weight goes to shared memory; global memory gets one per block and bin that is not empty.
    table = cuda.shared.array(MAX_BINS, int32)
    n_bins, t, n_threads = counts.size, cuda.threadIdx.x, cuda.blockDim.x
    for b in range(t, n_bins, n_threads):
        table[b] = 0
    cuda.syncthreads()
    for i in range(cuda.grid(1), bits.size, cuda.gridsize(1)):
        d = digit(bits[i], prefix, shift, n_bins)
        if 0 <= d < n_bins:
            cuda.atomic.add(table, d, ONE)
    cuda.syncthreads()
    for b in range(t, n_bins, n_threads):
        if table[b] != 0:
            cuda.atomic.add(counts, b, np.int64(table[b]))


def magnitude_histogram(bits, prefix, shift, counts, *, block=2 * launch.BLOCK):
    """Histogram of the digit at `shift` of the magnitudes in `bits` (n,).

    Only magnitudes whose higher bits equal `prefix` count.
    """
    counts[:] = 0
    magnitude_histogram_kernel[launch.tables(bits.size, block)](bits, prefix, shift, counts)


@cuda_jit
def count_smallest_kernel(bits, fan_in, cut, counts):
    """One block counts for 32 labels; its threads share the slots of all 32, so the weights are read coalesced.

    Grid: tiles of 32 labels on x. Reads bits (L K,) int32, writes counts (L,) int32. Shared memory: 32 int32. Integer
    atomics in shared memory, one per slot found: deterministic.
    """
    table = cuda.shared.array(LABELS_PER_BLOCK, int32)
    first, t, n_threads = cuda.blockIdx.x * LABELS_PER_BLOCK, cuda.threadIdx.x, cuda.blockDim.x
    n_labels = min(LABELS_PER_BLOCK, counts.size - first)
    for j in range(t, n_labels, n_threads):
        table[j] = 0
    cuda.syncthreads()
    start = np.int64(first) * fan_in
    for i in range(t, n_labels * fan_in, n_threads):
        if is_smallest(bits[start + i], start + i, cut):
            cuda.atomic.add(table, np.uint32(i) // np.uint32(fan_in), ONE)
    cuda.syncthreads()
    for j in range(t, n_labels, n_threads):
        counts[first + j] = table[j]


def count_smallest(bits, cut, counts, *, block=launch.BLOCK):
    """The number of slots of each label that are among the smallest."""
    n_labels, fan_in = bits.shape
    count_smallest_kernel[launch.flat(n_labels, LABELS_PER_BLOCK)[0], block](bits.reshape(-1), fan_in, cut, counts)


@cuda_jit
def redraw_kernel(seed, step, n_inputs, cut, offsets, indices, bits, moments, slots):
    """One thread rewires one label: it draws ranks, turns them into inputs and puts these into the dropped slots.

    Grid: labels on x. Reads offsets (L + 1,). For labels that lose connections: reads and writes indices, bits and
    moments (L, K), not coalesced; writes slots (n, 2), which also serves as scratch memory for the draws. No shared
    memory. No atomics.
    """
    label = cuda.grid(1)
    n_labels, fan_in = bits.shape
    if label < n_labels:
        row, stop = offsets[label], offsets[label + 1]
        n = stop - row
        drawn = slots[row:stop, 1]
        for i in range(n):
            j = n_inputs - fan_in - n + i
            word = random_word(seed, STREAM, step, np.uint64(label * fan_in + i))
            t = np.int64(below(word, np.uint64(j + 1)))
            position = i
            while position > 0 and drawn[position - 1] > t:
                position -= 1
            if position > 0 and drawn[position - 1] == t:
                t = j  # larger than all that were drawn before
                position = i
            for p in range(i, position, -1):
                drawn[p] = drawn[p - 1]
            drawn[position] = t
        for i in range(n):
            drawn[i] = free_input(np.int64(drawn[i]), indices[label])
        for k in range(fan_in):
            if row < stop and is_smallest(bits[label, k], label * fan_in + k, cut):
                indices[label, k] = slots[row, 1]
                slots[row, 0] = label
                slots[row, 1] = k
                bits[label, k] = 0
                if moments.m.size > 0:
                    moments.m[label, k] = ZERO
                    moments.v[label, k] = ZERO
                row += 1


def redraw(seed, step, n_inputs, cut, offsets, indices, bits, moments, slots, *, block=launch.BLOCK):
    """New connections for the smallest slots, in place, with value and moments 0.

    `slots` (n, 2) = (label, k) lists them; label l fills rows offsets[l] ... offsets[l + 1]. During the computation the
    second column holds first the ranks of the new inputs among the free ones, ascending (Floyd's sampling, one random
    word per slot), then the inputs.
    """
    grid = launch.flat(bits.shape[0], block)
    redraw_kernel[grid](seed, step, n_inputs, cut, offsets, indices, bits, moments, slots)
