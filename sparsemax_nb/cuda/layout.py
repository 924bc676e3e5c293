"""Inputs as the sparse layers read them: transposed, so that a warp reads neighbouring rows of one input."""

import numpy as np

from ..core.device import empty, zeros


def padded(n, multiple):
    """`n`, filled up to a multiple."""
    return -(-n // multiple) * multiple


def transposed(array, multiple=1):
    """array (B, H) as a new (H, B'), B' being B filled up with zeros to a multiple."""
    n_rows, width = array.shape
    make = zeros if n_rows % multiple else empty
    out = make((width, padded(n_rows, multiple)), np.float32, "cuda")
    out[:, :n_rows] = array.T
    return out


def zeros_like_inputs(x):
    """dxt (H, B) for inputs x (B, H): zeros."""
    return zeros(x.shape[::-1], np.float32, "cuda")
