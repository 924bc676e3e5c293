"""Rewiring of the fixed fan-in layer on the CPU: find the smallest weights, draw new connections.

Weights are compared as integers: without the sign, a float32 grows with its bits. The threshold is found digit by
digit (radix selection), without a copy of the weights; every pass reads them once.
"""

import numpy as np
from numba import prange

from ..core import formulas, rng
from ..core.device import cpu_formulas, njit, njit_parallel
from .bfloat16 import as_float32

_f = cpu_formulas(formulas)
_r = cpu_formulas(rng)
digit, is_smallest, free_input = _f.digit, _f.is_smallest, _f.free_input
random_word, below = _r.random_word, _r.below

STREAM = rng.REWIRING
#: Number of parts in which the weights are counted, independent of the number of threads.
PARTS = 16


@njit_parallel
def magnitudes(values, group_size, means):
    """Mean |value| of every slot over the labels of its group, float32; values are (L, K) float32 or bfloat16 bits."""
    n_groups, fan_in = means.shape
    for group in prange(n_groups):
        first, stop = group * group_size, min(len(values), (group + 1) * group_size)
        numbers, total = as_float32(values[first:stop].reshape(-1)), means[group]
        total[:] = 0
        for j in range(stop - first):
            for k in range(fan_in):
                total[k] += abs(numbers[j * fan_in + k])
        for k in range(fan_in):
            total[k] /= np.float32(stop - first)


@njit_parallel
def clear(slots, group_size, array):
    """Write zeros to the slots (n, 2) = (group, k), all different, of every label of their groups: array (L, K)."""
    for i in prange(len(slots)):
        group, k = slots[i]
        array[group * group_size : (group + 1) * group_size, k] = 0


@njit
def _count_digits(bits, prefix, shift, counts):
    n_bins = counts.size
    for i in range(bits.size):
        d = np.uint64(digit(bits[i], prefix, shift, n_bins))  # unsigned: one test checks both bounds
        if d < np.uint64(n_bins):
            counts[d] += 1


@njit_parallel
def magnitude_histogram(bits, prefix, shift, counts):
    """Counts of the digits at `shift` of all magnitudes in `bits` (n,) whose higher bits equal `prefix`."""
    parts = np.zeros((PARTS, counts.size), np.int64)
    for part in prange(PARTS):
        chunk = bits[bits.size * part // PARTS : bits.size * (part + 1) // PARTS]
        _count_digits(chunk, prefix, shift, parts[part])
    counts[:] = parts.sum(0)


@njit_parallel
def count_smallest(bits, cut, counts):
    """The number of slots of each label that are among the smallest."""
    n_labels, fan_in = bits.shape
    for label in prange(n_labels):
        count = 0
        for k in range(fan_in):
            count += is_smallest(bits[label, k], label * fan_in + k, cut)
        counts[label] = count


@njit_parallel
def redraw(seed, step, n_inputs, cut, offsets, indices, bits, moments, slots):
    """New connections for the smallest slots, in place: value and moments 0; `slots` (n, 2) = (label, k) of each.

    Label l fills the rows offsets[l] ... offsets[l + 1]. Their second column first contains the ranks of the new
    inputs among the free ones, ascending (Floyd's sampling, one random word per slot), then the inputs, finally k.
    """
    n_labels, fan_in = bits.shape
    m = moments.m
    v = moments.v
    for label in prange(n_labels):
        drawn = slots[offsets[label] : offsets[label + 1], 1]
        for i in range(drawn.size):
            j = n_inputs - fan_in - drawn.size + i
            word = random_word(np.uint64(seed), STREAM, np.uint64(step), np.uint64(label * fan_in + i))
            t = np.int64(below(word, np.uint64(j + 1)))
            position = i
            while position > 0 and drawn[position - 1] > t:
                position -= 1
            if position > 0 and drawn[position - 1] == t:
                t, position = j, i  # j is larger than all that were drawn before
            for p in range(i, position, -1):
                drawn[p] = drawn[p - 1]
            drawn[position] = t
        for i in range(drawn.size):
            drawn[i] = free_input(np.int64(drawn[i]), indices[label])
        row = offsets[label]
        for k in range(fan_in):
            if row < offsets[label + 1] and is_smallest(bits[label, k], label * fan_in + k, cut):
                indices[label, k] = slots[row, 1]
                slots[row, 0], slots[row, 1] = label, k
                bits[label, k] = 0
                if m.size > 0:
                    m[label, k] = 0
                    v[label, k] = 0
                row += 1
