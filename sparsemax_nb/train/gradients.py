"""Gradients between layers and optimizer: their common norm, clipping, and tied parameters."""

import math
from typing import NamedTuple

import numpy as np

from ..core.device import asarray, device_of, module_of

#: Squares added up in float32 at a time; the sums of these blocks are added up in float64. Limits the rounding error.
BLOCK_SIZE = 1 << 12


class GradientError(FloatingPointError):
    """The norm of the gradient is NaN or infinity."""


class Gradient(NamedTuple):
    """Gradient of the loss with respect to the parameter `array`.

    `values` has the shape of `array`, or contains only its rows `rows` (n,) int32. The rows are distinct; those of an
    output layer or an embedding are ascending.
    """

    array: object
    values: object
    rows: object = None

    def apply(self, optimizer):
        """Update the parameter: all of it, or only the rows (lazy update)."""
        if self.rows is None:
            optimizer.step(self.array, self.values)
        else:
            optimizer.step_rows(self.array, self.rows, self.values)


def _sum_of_squares(values):
    """Sum of squares: in float32 within blocks of BLOCK_SIZE numbers, in float64 over the blocks."""
    flat = values.reshape(-1)
    n = flat.size // BLOCK_SIZE * BLOCK_SIZE
    xp, total = module_of(device_of(values)), 0.0
    for blocks in (flat[:n].reshape(-1, BLOCK_SIZE), flat[n:].reshape(1, -1)):
        total += float(xp.einsum("ij,ij->i", blocks, blocks).sum(dtype=np.float64))
    return total


def apply_all(gradients, optimizer):
    """Update each parameter by its `Gradient`."""
    for gradient in gradients:
        gradient.apply(optimizer)


def clip(gradients, limit):
    """Scale all gradients down, in place, if their common norm exceeds `limit`; returns the norm before scaling.

    ``g = g min(1, limit / norm)`` with norm = sqrt(sum of all squares). GradientError if the norm is not finite.

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
    """The sum of two gradients of the same matrix; `other` has only rows. Overwrites the values of `gradient`.

    Rows that are only in `other` are appended to those of `gradient`, which must be ascending.
    """
    if gradient.rows is None:
        gradient.values[other.rows] += other.values
        return gradient
    xp, n = module_of(device_of(gradient.rows)), len(gradient.rows)
    positions = xp.searchsorted(gradient.rows, other.rows)
    positions[positions == n] = 0
    found = gradient.rows[positions] == other.rows if n else xp.zeros(len(positions), bool)
    gradient.values[positions[found]] += other.values[found]
    values, rows = (
        asarray(xp.concatenate([a, b[~found]]), device_of(gradient.rows))
        for a, b in ((gradient.values, other.values), (gradient.rows, other.rows))
    )
    return Gradient(gradient.array, values, rows)
