"""Bias, ReLU and dropout in one step, and dropout alone, on the CPU."""

import numpy as np
from numba import prange

from ..core import rng
from ..core.device import cpu_formulas, njit_parallel

random_word = cpu_formulas(rng).random_word
ZERO = np.float32(0)
NO_DROPOUT = np.uint64(0)


@njit_parallel
def dropout(x, dropout, out):
    """``out = x mask scale``."""
    n_columns = x.shape[1]
    for row in prange(x.shape[0]):
        for i in range(n_columns):
            word = random_word(dropout.seed, dropout.stream, dropout.step, np.uint64(row * n_columns + i))
            out[row, i] = x[row, i] * dropout.scale if word >= dropout.threshold else ZERO


@njit_parallel
def relu_dropout(z, bias, dropout, out):
    """``out = max(0, z + bias) mask scale``; `out` may be `z`."""
    n_columns = z.shape[1]
    for row in prange(z.shape[0]):
        for i in range(n_columns):
            value = z[row, i] + bias[i]
            value = ZERO if value <= ZERO else value  # not max(), which may drop NaN
            if dropout.threshold > NO_DROPOUT:
                word = random_word(dropout.seed, dropout.stream, dropout.step, np.uint64(row * n_columns + i))
                value = value * dropout.scale if word >= dropout.threshold else ZERO
            out[row, i] = value


@njit_parallel
def relu_dropout_backward(dout, out, scale, dz, dbias):
    """Gradients with respect to z and bias, summed over the rows in order; `dz` may be `dout`."""
    n_columns, span = out.shape[1], 64
    for part in prange((n_columns + span - 1) // span):
        first, stop = part * span, min((part + 1) * span, n_columns)
        dbias[first:stop] = ZERO
        for row in range(out.shape[0]):
            for i in range(first, stop):
                dz[row, i] = dout[row, i] * scale if out[row, i] > ZERO else ZERO
                dbias[i] += dz[row, i]
