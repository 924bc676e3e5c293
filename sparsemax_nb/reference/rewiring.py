"""Rewiring of the fixed fan-in layer: new connections of the same label replace the smallest weights."""

import numpy as np

from ..core import rng
from .bfloat16 import widen


def smallest(values, n):
    """Flat indices of the `n` smallest |values|, ascending; ties: the lower index first."""
    return np.sort(np.argsort(np.abs(values).reshape(-1), kind="stable")[:n])


def magnitudes(values, group_size):
    """Mean |value| of every slot over the labels of its group: (L, K) -> (L / G rounded up, K)."""
    starts = np.arange(0, len(values), group_size)
    values = widen(values) if values.dtype == np.uint16 else values
    sums = np.add.reduceat(np.abs(values, dtype=np.float64), starts)
    return sums / np.minimum(group_size, len(values) - starts)[:, None]


def clear(slots, group_size, array):
    """A copy of the array with zeros in the slots (n, 2) = (group, k) of all labels of their groups."""
    array = array.copy()
    for group, k in slots:
        array[group * group_size : (group + 1) * group_size, k] = 0
    return array


def magnitude_histogram(bits, prefix, shift, n_bins):
    """Counts of the digits at `shift` of all magnitudes whose bits above that digit equal `prefix`."""
    magnitude = bits.astype(np.int64) & 0x7FFFFFFF
    above, digits = np.divmod(magnitude >> shift, n_bins)
    return np.bincount(digits[above == prefix], minlength=n_bins)


def count_smallest(bits, cut):
    """How many slots of each label are among the smallest: (magnitude, flat index) up to the cut, in this order."""
    magnitude = bits.astype(np.int64).reshape(-1) & 0x7FFFFFFF
    chosen = [pair <= tuple(cut) for pair in zip(magnitude.tolist(), range(bits.size), strict=True)]
    return np.reshape(chosen, bits.shape).sum(1)


def rewire(seed, step, n_inputs, n, layer, moments):
    """Drop the `n` smallest weights; each label draws as many inputs as it lost, from those it was not connected to.

    Floyd's sampling of ranks among the free inputs, one random word per slot. New inputs ascend with the slot; their
    values and moments are 0. Returns (indices, values, m, v, slots), slots (n, 2) = (label, k).
    """
    indices, values, m, v = (np.array(a) for a in (layer.indices, layer.values, *moments))
    fan_in = indices.shape[1]
    slots = np.stack(np.divmod(smallest(values, n), fan_in), axis=1).astype(np.int32)
    for label in np.unique(slots[:, 0]):
        free = sorted(set(range(n_inputs)) - set(layer.indices[label].tolist()))
        dropped = slots[slots[:, 0] == label, 1]
        ranks = set()
        for i, j in enumerate(range(len(free) - len(dropped), len(free))):
            position = np.uint64(int(label) * fan_in + i)
            with np.errstate(over="ignore"):
                word = rng.random_word(np.uint64(seed), rng.REWIRING, np.uint64(step), position)
            t = int(rng.below(word, np.uint64(j + 1)))
            ranks.add(j if t in ranks else t)
        indices[label, dropped] = [free[rank] for rank in sorted(ranks)]
    for array in (values, m, v):
        if array.size:
            array[tuple(slots.T)] = 0
    return indices, values, m, v, slots
