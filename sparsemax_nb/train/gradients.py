"""Gradients on their way from the layers to the optimiser: their common norm, clipping, tied parameters."""

import math
from typing import NamedTuple

import numpy as np

from ..core import backend

#: Numbers that are squared at once.
AT_ONCE = 1 << 22


class Gradient(NamedTuple):
    """The loss' gradient by a parameter: `values` is shaped like `array`, or holds only the rows `rows` (n,) int32 of it."""

    array: object
    values: object
    rows: object = None

    def apply(self, optimizer):
        """Update the parameter: all of it, or those rows (lazy)."""
        if self.rows is None:
            optimizer.step(self.array, self.values)
        else:
            optimizer.step_rows(self.array, self.rows, self.values)


def _sum_of_squares(values):
    flat = values.reshape(-1)
    parts = (flat[start : start + AT_ONCE] for start in range(0, flat.size, AT_ONCE))
    return sum(float((part * part).sum(dtype=np.float64)) for part in parts)


def clip(gradients, limit):
    """The norm of all gradients together; where it exceeds `limit`, all are scaled down to it, in place.

    ``g = g min(1, limit / norm)``, norm = sqrt(sum of all squares). FloatingPointError for a norm that is not finite.

    Source: R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norm = math.sqrt(sum(_sum_of_squares(gradient.values) for gradient in gradients))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the norm of the gradient is {norm}")
    if norm > limit:
        for gradient in gradients:
            gradient.values[...] *= np.float32(limit / norm)
    return norm


def add_rows(gradient, other):
    """The sum of two gradients by one matrix, of which `other` holds rows only; overwrites the values of `gradient`."""
    values, rows, places = gradient.values, gradient.rows, other.rows
    if rows is not None:
        xp = backend.module_of(backend.device_of(rows))
        places = xp.minimum(xp.searchsorted(rows, other.rows), max(len(rows) - 1, 0))
        found = rows[places] == other.rows if len(rows) else xp.zeros(len(places), bool)
        if not bool(found.all()):
            both = xp.unique(xp.concatenate([rows, other.rows]))
            wider = backend.zeros((len(both), values.shape[1]), np.float32, backend.device_of(values))
            wider[xp.searchsorted(both, rows)] = values
            values, rows = wider, backend.asarray(both, backend.device_of(values), np.int32)
            places = xp.searchsorted(rows, other.rows)
    values[places] += other.values
    return Gradient(gradient.array, values, rows)
