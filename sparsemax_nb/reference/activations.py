"""Bias, ReLU and dropout in one step, and dropout alone."""

import numpy as np

from ..core import rng


def dropout_mask(shape, dropout):
    """Boolean (B, D), True where a unit is kept; depends on seed, stream, step and position only."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        word = rng.random_word(dropout.seed, dropout.stream, dropout.step, position)
    return (word >= dropout.threshold).reshape(shape)


def dropout(x, dropout):
    """``x mask scale`` for x (B, D), with scale = 1 / (1 - rate)."""
    return x.astype(np.float64) * dropout_mask(x.shape, dropout) * float(dropout.scale)


def relu_dropout(z, bias, dropout):
    """``max(0, z + bias) mask scale`` for z (B, D) and bias (D,), with scale = 1 / (1 - rate)."""
    return np.maximum(0, z.astype(np.float64) + bias) * dropout_mask(z.shape, dropout) * float(dropout.scale)


def relu_dropout_backward(dout, out, scale):
    """Gradients with respect to z (B, D) and bias (D,); zero where out = 0: the unit was dropped or negative."""
    dz = np.where(out > 0, dout.astype(np.float64) * float(scale), 0)
    return dz, dz.sum(0)
