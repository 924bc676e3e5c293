"""Bias, ReLU and dropout fused into one pass, and dropout alone, on CUDA."""

import numpy as np

from ..core import rng
from ..core.device import cuda, cuda_formulas, cuda_jit
from . import launch

random_word = cuda_formulas(rng).random_word
ZERO = np.float32(0)
#: `Dropout.threshold` where no unit is dropped.
NO_DROPOUT = np.uint64(0)


@cuda_jit
def dropout_kernel(x, dropout, out):
    """One block owns one row of x and out (B, D); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x. Reads x, writes out, each element once, coalesced. No shared memory. No atomics.
    """
    row, n_columns = cuda.blockIdx.x, x.shape[1]
    for i in range(cuda.threadIdx.x, n_columns, cuda.blockDim.x):
        # The random word depends on the element's position only: the mask needs no memory and is the same on the CPU.
        word = random_word(dropout.seed, dropout.stream, dropout.step, np.uint64(row * n_columns + i))
        out[row, i] = x[row, i] * dropout.scale if word >= dropout.threshold else ZERO


def dropout(x, dropout, out, *, block=launch.BLOCK):
    """``out = x * mask * scale``."""
    if x.shape[0]:
        dropout_kernel[x.shape[0], block](x, dropout, out)


@cuda_jit
def relu_dropout_kernel(z, bias, dropout, out):
    """One block owns one row of z and out (B, D); thread t owns columns t, t + blockDim.x, ...

    Grid: rows on x. Reads z and bias (D,), writes out, coalesced. Fused: one read and one write per element instead of
    three passes. No shared memory. No atomics.
    """
    row, n_columns = cuda.blockIdx.x, z.shape[1]
    for i in range(cuda.threadIdx.x, n_columns, cuda.blockDim.x):
        value = z[row, i] + bias[i]
        value = ZERO if value <= ZERO else value  # not max(), which would drop NaN
        if dropout.threshold > NO_DROPOUT:
            word = random_word(dropout.seed, dropout.stream, dropout.step, np.uint64(row * n_columns + i))
            value = value * dropout.scale if word >= dropout.threshold else ZERO
        out[row, i] = value


def relu_dropout(z, bias, dropout, out, *, block=launch.BLOCK):
    """``out = max(0, z + bias) * mask * scale``; `out` may be `z`."""
    if z.shape[0]:
        relu_dropout_kernel[z.shape[0], block](z, bias, dropout, out)


@cuda_jit
def relu_dropout_backward_kernel(dout, out, scale, dz, dbias):
    """One thread owns one column: it writes dz (B, D) and sums dbias (D,) over the rows, in order.

    Grid: columns on x. Reads dout and out (B, D); neighbouring threads read neighbouring columns, so every access is
    coalesced. A thread adds its column alone: the sum needs no reduction and is deterministic. No shared memory. No
    atomics.
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
    """Gradients with respect to z and the bias; `dz` may be `dout`."""
    relu_dropout_backward_kernel[launch.flat(out.shape[1], block)](dout, out, scale, dz, dbias)
