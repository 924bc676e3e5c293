"""Rewiring: find the smallest weights by their bits, redraw their connections."""

import copy

import ml_dtypes
import numpy as np

from sparsemax_nb.core import formulas
from sparsemax_nb.reference import rewiring

from ..helpers import assert_close, integers, layer_arrays, normal
from . import SEED, Budget, Task, operation, unwritten
from .optimizers import KINDS, make_moments


def weights(*shape):
    """Half normal numbers, half multiples of 1/4: some are equal up to sign, and there are zeros of both signs."""
    values = np.where(integers(1, 0, 2, *shape) > 0, normal(2, *shape), integers(3, -2, 3, *shape) / np.float32(4))
    return np.where(values == 0, integers(4, -1, 1, *shape) * np.float32(0), values)


def make_histogram(n, shift):
    """Half of the weights are within 4,096 ulp of the median: many prefixes are equal, but the digits differ."""
    bits = weights(n).view(np.int32)
    middle = np.sort(bits & formulas.MAGNITUDE)[n // 2]
    near = integers(5, 0, 4096, n).astype(np.int32) + (middle & ~np.int32(4095))
    bits = np.where(integers(6, 0, 2, n) > 0, near, bits)
    bits[1::7] = -np.abs(bits[1::7])  # the sign bit must not matter
    n_bins = 2048 if shift == 20 else 1024
    prefix = int(middle >> shift) // n_bins
    counts = unwritten(n_bins, dtype=np.int64)
    wanted = rewiring.magnitude_histogram(bits, prefix, shift, n_bins)
    assert wanted.sum() == n if shift == 20 else n == 1 or 0 < wanted.sum() < n
    return Task((bits, prefix, shift, counts), lambda: np.testing.assert_array_equal(counts, wanted))


def make_cut(values, share):
    """The threshold below which a share of the slots falls, and the flat indices of these slots."""
    chosen = rewiring.smallest(values, max(1, int(share * values.size)))
    threshold = np.abs(values).reshape(-1)[chosen].max()
    last = chosen[np.abs(values).reshape(-1)[chosen] == threshold].max()
    return formulas.Threshold(int(threshold.view(np.int32)), int(last)), chosen


def make_count(shape):
    values = weights(*shape)
    cut, chosen = make_cut(values, 0.4)
    counts = unwritten(shape[0], dtype=np.int32)

    def check():
        np.testing.assert_array_equal(counts, np.bincount(chosen // shape[1], minlength=shape[0]))
        np.testing.assert_array_equal(counts, rewiring.count_smallest(values.view(np.int32), cut))

    return Task((values.view(np.int32), cut, counts), check)


def make_magnitudes(shape, bfloat16):
    n_labels, fan_in, group_size = shape
    values = normal(1, n_labels, fan_in).astype(ml_dtypes.bfloat16 if bfloat16 else np.float32)
    values, means = values.view(np.uint16) if bfloat16 else values, unwritten(-(-n_labels // group_size), fan_in)
    wanted = rewiring.magnitudes(values, group_size)
    return Task((values, group_size, means), lambda: assert_close(means, wanted, group_size))


def make_clear(shape, dtype):
    n_labels, fan_in, group_size = shape
    array = (normal(1, n_labels, fan_in) + 3).astype(dtype)
    slots = np.argwhere(integers(2, 0, 3, -(-n_labels // group_size), fan_in) == 0).astype(np.int32)
    wanted = rewiring.clear(slots, group_size, array)
    return Task((slots, group_size, array), lambda: np.testing.assert_array_equal(array, wanted))


def make_redraw(shape, kind):
    n_labels, n_inputs, fan_in, share = shape
    layer, step = layer_arrays(n_labels, n_inputs, fan_in), np.uint64(3)
    layer = layer._replace(values=weights(n_labels, fan_in))
    cut, chosen = make_cut(layer.values, share)
    moments = make_moments(kind, layer.values)
    offsets = np.searchsorted(chosen, np.arange(n_labels + 1) * fan_in)
    slots, bits = unwritten(len(chosen), 2, dtype=np.int32), layer.values.view(np.int32).copy()
    wanted = rewiring.rewire(SEED, step, n_inputs, len(chosen), layer, moments)
    indices, moments = layer.indices.copy(), copy.deepcopy(moments)

    def check():
        for got, want in zip((indices, bits.view(np.float32), *moments, slots), wanted, strict=True):
            assert got.tobytes() == want.tobytes()

    return Task((SEED, step, n_inputs, cut, offsets, indices, bits, moments, slots), check)


def _operations():
    for shift in (20, 10, 0):
        yield operation(f"rewiring.magnitude_histogram {shift}", make_histogram, (1, 200), (33, 20_000), shift=shift)
    groups = ((1, 1, 1), (5, 3, 2), (7, 4, 7)), ((65, 33, 8), (100, 5, 16))  # (L, K, G)
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        yield operation(f"rewiring.magnitudes {name}", make_magnitudes, *groups, bfloat16=bfloat16)
        yield operation(f"rewiring.clear {name}", make_clear, *groups, dtype=np.uint16 if bfloat16 else np.float32)
    yield operation("rewiring.count_smallest", make_count, ((1, 1), (7, 3), (33, 5)), ((65, 33), (70, 31), (300, 2)))
    for optimizer, kind in KINDS.items():
        yield operation(  # (L, H, K, share): one of everything; most connections redrawn
            f"rewiring.redraw {optimizer}",
            make_redraw,
            ((1, 2, 1, 1), (7, 9, 3, 0.4), (33, 10, 5, 0.9)),
            ((65, 62, 31, 0.5), (300, 1000, 8, 0.1)),
            kind=kind,
        )


OPERATIONS = list(_operations())

BUDGETS = {
    "clear_kernel": Budget(32),
    "count_smallest_kernel": Budget(48, shared=4 * 32),
    "magnitude_histogram_kernel": Budget(32, shared=4 * 2048),
    "magnitudes_kernel": Budget(40),
    "redraw_kernel": Budget(64),
}
