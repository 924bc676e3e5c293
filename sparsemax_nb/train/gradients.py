"""Gradients on their way from the layers to the optimiser: their common norm, clipping, tied parameters."""

import math
from typing import NamedTuple

import numpy as np

from ..core.device import asarray, device_of, module_of

#: Numbers that are squared at once.
AT_ONCE = 1 << 12


class GradientError(FloatingPointError):
    """The norm of the gradient is NaN or infinity."""


class Gradient(NamedTuple):
    """The loss' gradient by a parameter: `values` is shaped like `array`, or holds only the rows `rows` (n,) int32 of it.

    The rows are all different; those of an output layer or an embedding ascend.
    """

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
    """In float32 over runs of AT_ONCE numbers, whose sums are added up in float64."""
    flat = values.reshape(-1)
    n = flat.size // AT_ONCE * AT_ONCE
    xp, total = module_of(device_of(values)), 0.0
    for lines in (flat[:n].reshape(-1, AT_ONCE), flat[n:].reshape(1, -1)):
        total += float(xp.einsum("ij,ij->i", lines, lines).sum(dtype=np.float64))
    return total


def clip(gradients, limit):
    """The norm of all gradients together; where it exceeds `limit`, all are scaled down to it, in place.

    ``g = g min(1, limit / norm)``, norm = sqrt(sum of all squares). GradientError for a norm that is not finite.

    Source: R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norm = math.sqrt(sum(_sum_of_squares(gradient.values) for gradient in gradients))
    if not math.isfinite(norm):
        raise GradientError(f"the norm of the gradient is {norm}")
    if norm > limit:
        for gradient in gradients:
            gradient.values[...] *= np.float32(limit / norm)
    return norm


def add_rows(gradient, other):
    """The sum of two gradients by one matrix, of which `other` holds rows only; overwrites the values of `gradient`.

    Rows that `gradient` has not (its own must ascend) come behind those that it has.
    """
    if gradient.rows is None:
        gradient.values[other.rows] += other.values
        return gradient
    xp, n = module_of(device_of(gradient.rows)), len(gradient.rows)
    places = xp.searchsorted(gradient.rows, other.rows)
    places[places == n] = 0
    found = gradient.rows[places] == other.rows if n else xp.zeros(len(places), bool)
    gradient.values[places[found]] += other.values[found]
    values, rows = (
        asarray(xp.concatenate([a, b[~found]]), device_of(gradient.rows))
        for a, b in ((gradient.values, other.values), (gradient.rows, other.rows))
    )
    return Gradient(gradient.array, values, rows)
