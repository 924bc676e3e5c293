"""Bias, ReLU and dropout in one step, and dropout alone, on CUDA."""

import numpy as np

from ..core import rng
from ..core.device import cuda, cuda_formulas, cuda_jit
from . import launch

random_word = cuda_formulas(rng).random_word
ZERO = np.float32(0)
NEVER = np.uint64(0)


@cuda_jit
def dropout_kernel(x, dropout, out):
    """A block owns one row of x, out (B, D), a thread its columns t, t + blockDim.x, ...; coalesced.

    Grid: rows on x. No shared memory, no atomics.
    """
    row, n_columns = cuda.blockIdx.x, x.shape[1]
    for i in range(cuda.threadIdx.x, n_columns, cuda.blockDim.x):
        word = random_word(dropout.seed, dropout.stream, dropout.step, np.uint64(row * n_columns + i))
        out[row, i] = x[row, i] * dropout.scale if word >= dropout.threshold else ZERO


def dropout(x, dropout, out, *, block=launch.BLOCK):
    """``out = x mask scale``."""
    if x.shape[0]:
        dropout_kernel[x.shape[0], block](x, dropout, out)


@cuda_jit
def relu_dropout_kernel(z, bias, dropout, out):
    """A block owns one row of z, out (B, D), a thread its columns t, t + blockDim.x, ...; coalesced.

    Grid: rows on x. No shared memory, no atomics.
    """
    row, n_columns = cuda.blockIdx.x, z.shape[1]
    for i in range(cuda.threadIdx.x, n_columns, cuda.blockDim.x):
        value = z[row, i] + bias[i]
        value = ZERO if value <= ZERO else value  # not max(): NaN must come through
        if dropout.threshold > NEVER:
            word = random_word(dropout.seed, dropout.stream, dropout.step, np.uint64(row * n_columns + i))
            value = value * dropout.scale if word >= dropout.threshold else ZERO
        out[row, i] = value


def relu_dropout(z, bias, dropout, out, *, block=launch.BLOCK):
    """``out = max(0, z + bias) mask scale``; `out` may be `z`."""
    if z.shape[0]:
        relu_dropout_kernel[z.shape[0], block](z, bias, dropout, out)


@cuda_jit
def relu_dropout_backward_kernel(dout, out, scale, dz, dbias):
    """One thread owns one column of dout, out, dz (B, D) and sums dbias (D,) over the rows in their order; coalesced.

    Grid: columns on x. No shared memory, no atomics.
    """
    i = cuda.grid(1)
    if i < out.shape[1]:
        total = ZERO
        for row in range(out.shape[0]):
            value = dout[row, i] * scale if out[row, i] > ZERO else ZERO
            dz[row, i] = value
            total += value
        dbias[i] = total


def relu_dropout_backward(dout, out, scale, dz, dbias, *, block=launch.BLOCK):
    """Gradient by z and by the bias; `dz` may be `dout`."""
    relu_dropout_backward_kernel[launch.flat(out.shape[1], block)](dout, out, scale, dz, dbias)
