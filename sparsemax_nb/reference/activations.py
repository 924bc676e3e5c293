"""Bias, ReLU and dropout in one step."""

import numpy as np

from ..core import rng


def dropout_mask(shape, rate, seed, stream, step):
    """Boolean (B, D): True where the unit is kept; probability 1 - rate."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        word = rng.random_word(np.uint64(seed), np.uint64(stream), np.uint64(step), position)
    return (word >= rng.fraction(rate)).reshape(shape)


def relu_dropout(z, bias, rate, seed, stream, step):
    """``max(0, z + bias) mask / (1 - rate)``, z (B, D), bias (D,)."""
    mask = dropout_mask(z.shape, rate, seed, stream, step)
    return np.maximum(0, z.astype(np.float64) + bias) * mask / (1 - float(rate))


def relu_dropout_backward(dout, out, rate):
    """Gradient by z, (B, D), and by the bias, (D,). A unit that was dropped or negative has out = 0 and passes nothing."""
    dz = np.where(out > 0, dout.astype(np.float64) / (1 - float(rate)), 0)
    return dz, dz.sum(0)
