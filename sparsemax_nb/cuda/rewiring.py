"""Rewiring of the fixed fan-in layer on CUDA: find the smallest weights, draw new connections.

Weights are looked at as integers: without its sign, a float32 grows with its bits. The threshold is found digit by
digit (radix selection), so that no copy of the weights is needed; every pass reads them once. All counts are integers:
in whatever order atomics add them, the result is the same.
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
MAX_BINS = 2048
LABELS = 32  # of a block of count_smallest_kernel


@cuda_jit
def magnitudes_kernel(bits, shift, group_size, means):
    """A thread owns one slot of a group: the mean of |value| over its labels, added in their order.

    Grid: slots on x. Reads bits (L, K), the upper halves (shift 16) or all (0) of float32 numbers, coalesced; writes
    means (L / G rounded up, K). Dynamic shared memory: a number a thread, to look at its bits as float32. No atomics.
    """
    number, numbers = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    i, t, fan_in = cuda.grid(1), cuda.threadIdx.x, means.shape[1]
    if i < means.size:
        group, k = i // fan_in, i % fan_in
        first, stop = group * group_size, min(bits.shape[0], (group + 1) * group_size)
        total = ZERO
        for label in range(first, stop):
            numbers[t] = np.int32(bits[label, k]) << shift
            total += abs(number[t])
        means[group, k] = total / np.float32(stop - first)


def magnitudes(values, group_size, means, *, block=launch.BLOCK):
    """Mean |value| of every slot over the labels of its group (values float32 or bits of bfloat16, (L, K)), in float32."""
    grid, block = launch.flat(means.size, block)
    magnitudes_kernel[grid, block, 0, 4 * block](*bits_of(values), group_size, means)


@cuda_jit
def clear_kernel(slots, group_size, array):
    """A thread owns one slot: zeros in every label of its group. Grid: slots on x. Writes array (L, K). No shared, no atomics."""
    i = cuda.grid(1)
    if i < slots.shape[0]:
        first, k = slots[i, 0] * group_size, slots[i, 1]
        for label in range(first, min(array.shape[0], first + group_size)):
            array[label, k] = 0


def clear(slots, group_size, array, *, block=launch.BLOCK):
    """Zeros for the slots (n, 2) = (group, k), different ones, in every label of their groups: array (L, K)."""
    clear_kernel[launch.flat(slots.shape[0], block)](slots, group_size, array)


@cuda_jit
def magnitude_histogram_kernel(bits, prefix, shift, counts):
    """A block counts its share of the weights in shared memory, then adds what it found to counts (n_bins,) int64.

    Grid: any number of blocks on x; elements stride over all threads. Reads bits (n,) int32 coalesced. Shared: 2,048
    int32. Integer atomics, in shared memory for each weight, in global memory for each bin: deterministic.
    """
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
    """How many magnitudes of `bits` (n,) have which digit at `shift`, of those whose higher bits equal `prefix`."""
    counts[:] = 0
    magnitude_histogram_kernel[launch.tables(bits.size, block)](bits, prefix, shift, counts)


@cuda_jit
def count_smallest_kernel(bits, fan_in, cut, counts):
    """A block counts for 32 labels: its threads share their slots, so that the weights are read coalesced.

    Grid: tiles of 32 labels on x. Reads bits (L K,) int32, writes counts (L,) int32. Shared: 32 int32, one a label.
    Integer atomics in shared memory, one for each slot found: deterministic.
    """
    table = cuda.shared.array(LABELS, int32)
    first, t, n_threads = cuda.blockIdx.x * LABELS, cuda.threadIdx.x, cuda.blockDim.x
    n_labels = min(LABELS, counts.size - first)
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
    """How many of each label's slots are among the smallest."""
    n_labels, fan_in = bits.shape
    count_smallest_kernel[launch.flat(n_labels, LABELS)[0], block](bits.reshape(-1), fan_in, cut, counts)


@cuda_jit
def redraw_kernel(seed, step, n_inputs, cut, offsets, indices, bits, moments, slots):
    """One thread rewires one label: draws ranks, turns them into inputs, puts these into the slots that are dropped.

    Grid: labels on x. Reads offsets (L + 1,); of labels that lose something, reads and writes indices, bits and moments
    (L, K), not coalesced; writes slots (n, 2), which also holds the draws: no room of its own. No shared, no atomics.
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
            place = i
            while place > 0 and drawn[place - 1] > t:
                place -= 1
            if place > 0 and drawn[place - 1] == t:
                t = j  # larger than all that were drawn before
                place = i
            for p in range(i, place, -1):
                drawn[p] = drawn[p - 1]
            drawn[place] = t
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
    """New connections for the smallest slots, in place: value and moments 0; `slots` (n, 2) = (label, k) of each.

    Label l fills the rows offsets[l] ... offsets[l + 1]. Their second column first holds the ranks of the new inputs
    among the free ones, ascending (Floyd's sampling, one random word a slot), then the inputs, at last k.
    """
    grid = launch.flat(bits.shape[0], block)
    redraw_kernel[grid](seed, step, n_inputs, cut, offsets, indices, bits, moments, slots)
