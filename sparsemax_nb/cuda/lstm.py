"""The pointwise part of an LSTM cell on CUDA."""

import math

import numpy as np

from ..core import backend, formulas
from ..core.backend import cuda
from . import launch

_formulas = backend.cuda_formulas(formulas)
lstm_cell = _formulas.lstm_cell
output_backward = _formulas.lstm_output_backward
input_backward = _formulas.lstm_input_backward
forget_backward = _formulas.lstm_forget_backward
ZERO, ONE = np.float32(0), np.float32(1)


@backend.cuda_device
def _sigmoid(x):
    """``1 / (1 + exp(-x))``; never overflows."""
    e = math.exp(-abs(x))
    return (ONE if x >= ZERO else e) / (ONE + e)


@backend.cuda_jit
def cell_kernel(pre, previous, gates, cells, out):
    """A block owns one row, a thread the units t, t + blockDim.x, ... of it, each with its four gates; coalesced.

    Reads pre (B, 4H) and previous (B, H), writes gates (B, 4H), cells and out (B, H): each number once.
    Grid: rows on x. No shared memory, no atomics.
    """
    b, n = cuda.blockIdx.x, previous.shape[1]
    for h in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        i, f = _sigmoid(pre[b, h]), _sigmoid(pre[b, n + h])
        g, o = math.tanh(pre[b, 2 * n + h]), _sigmoid(pre[b, 3 * n + h])
        c = lstm_cell(i, f, g, previous[b, h])
        gates[b, h], gates[b, n + h], gates[b, 2 * n + h], gates[b, 3 * n + h] = i, f, g, o
        cells[b, h] = c
        out[b, h] = o * math.tanh(c)


def cell(pre, previous, gates, cells, out, *, block=launch.BLOCK):
    """gates (B, 4H) = sigmoid or tanh of pre (B, 4H), ``cells = f previous + i g``, ``out = o tanh(cells)``, (B, H).

    The gates lie side by side as i, f, g, o; `gates` may be `pre`.
    """
    if previous.shape[0]:
        cell_kernel[previous.shape[0], block](pre, previous, gates, cells, out)


@backend.cuda_jit
def cell_backward_kernel(dout, dcells_next, gates, previous, cells, dpre, dprevious):
    """A block owns one row, a thread the units t, t + blockDim.x, ... of it, each with its four gates; coalesced.

    Reads gates (B, 4H), dout, dcells_next, previous and cells (B, H), writes dpre (B, 4H) and dprevious (B, H): each
    number once. Grid: rows on x. No shared memory, no atomics.
    """
    b, n = cuda.blockIdx.x, previous.shape[1]
    for h in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        i, f, g, o = gates[b, h], gates[b, n + h], gates[b, 2 * n + h], gates[b, 3 * n + h]
        do, dcell = output_backward(dout[b, h], dcells_next[b, h], o, math.tanh(cells[b, h]))
        di, dg = input_backward(dcell, i, g)
        df, dprevious[b, h] = forget_backward(dcell, f, previous[b, h])
        dpre[b, h], dpre[b, n + h], dpre[b, 2 * n + h], dpre[b, 3 * n + h] = di, df, dg, do


def cell_backward(dout, dcells_next, gates, previous, cells, dpre, dprevious, *, block=launch.BLOCK):
    """Gradients by pre, dpre (B, 4H), and by c_{t-1}, dprevious (B, H), which may be `dcells_next`."""
    if previous.shape[0]:
        cell_backward_kernel[previous.shape[0], block](dout, dcells_next, gates, previous, cells, dpre, dprevious)
