"""Inputs as the sparse layers read them: transposed, so that a warp reads neighbouring rows of one input."""

import numpy as np

from ..core.device import empty, zeros


def padded(n, multiple):
    """`n` rounded up to a multiple of `multiple`."""
    return -(-n // multiple) * multiple


def transposed(array, multiple=1):
    """A transposed copy (H, B') of `array` (B, H); B' is B rounded up to `multiple`, padded with zeros."""
    n_rows, width = array.shape
    make = zeros if n_rows % multiple else empty
    out = make((width, padded(n_rows, multiple)), np.float32, "cuda")
    out[:, :n_rows] = array.T
    return out


def transposed_loss(loss, multiple=1):
    """A `StepLoss` as the kernels of a step take it: its shifts become (2, B'), with the B' of the inputs."""
    return loss._replace(shifts=transposed(loss.shifts, multiple))


def zeros_like_inputs(x):
    """Zeros (H, B) for the transposed gradient with respect to inputs x (B, H)."""
    return zeros(x.shape[::-1], np.float32, "cuda")
