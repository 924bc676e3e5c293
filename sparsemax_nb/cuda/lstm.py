"""The recurrent part of an LSTM layer on CUDA: per step, one matrix product and one pointwise kernel."""

import math

import numpy as np

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit, zeros
from . import launch
from .matmul import matmul

_formulas = cuda_formulas(formulas)
lstm_cell = _formulas.lstm_cell
output_backward = _formulas.lstm_output_backward
input_backward = _formulas.lstm_input_backward
forget_backward = _formulas.lstm_forget_backward
ZERO, ONE = np.float32(0), np.float32(1)


@cuda_device
def _sigmoid(x):
    """``1 / (1 + exp(-x))``; never overflows, since the exponent is never positive."""
    e = math.exp(-abs(x))
    return (ONE if x >= ZERO else e) / (ONE + e)


@cuda_jit
def cell_kernel(pre, previous, gates, cells, out):
    """One block owns one row; thread t owns units t, t + blockDim.x, ..., each with its four gates.

    Grid: rows on x. Reads pre (B, 4H) and previous (B, H); writes gates (B, 4H), cells and out (B, H). Fused: each
    number is read or written once, coalesced. `gates` may be `pre`. No shared memory. No atomics.
    """
    b, n = cuda.blockIdx.x, previous.shape[1]
    for h in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        i, f = _sigmoid(pre[b, h]), _sigmoid(pre[b, n + h])
        g, o = math.tanh(pre[b, 2 * n + h]), _sigmoid(pre[b, 3 * n + h])
        c = lstm_cell(i, f, g, previous[b, h])
        gates[b, h], gates[b, n + h], gates[b, 2 * n + h], gates[b, 3 * n + h] = i, f, g, o
        cells[b, h] = c
        out[b, h] = o * math.tanh(c)


def forward(recurrent, gates, cells, hidden, *, block=launch.BLOCK):
    """All steps of an LSTM: ``gates_t + h_{t-1} @ recurrent``, then the cell; recurrent is (H, 4H).

    gates (T, B, 4H) holds the contributions of the inputs to i, f, g, o (concatenated) and is overwritten by the gate
    values. cells and hidden (T + 1, B, H) hold c and h before the first step at index 0; the other T entries are
    filled.
    """
    n_steps, n_rows = gates.shape[:2]
    for t in range(n_steps if n_rows else 0):
        matmul(hidden[t], recurrent, gates[t], add=True)
        cell_kernel[n_rows, block](gates[t], cells[t], gates[t], cells[t + 1], hidden[t + 1])


@cuda_jit
def cell_backward_kernel(dout, dcells_next, gates, previous, cells, dpre, dprevious):
    """One block owns one row; thread t owns units t, t + blockDim.x, ..., each with its four gates.

    Grid: rows on x. Reads gates (B, 4H), dout, dcells_next, previous and cells (B, H); writes dpre (B, 4H) and
    dprevious (B, H). Fused: each number is read or written once, coalesced. `dpre` may be `gates`, `dprevious` may be
    `dcells_next`. No shared memory. No atomics.
    """
    b, n = cuda.blockIdx.x, previous.shape[1]
    for h in range(cuda.threadIdx.x, n, cuda.blockDim.x):
        i, f, g, o = gates[b, h], gates[b, n + h], gates[b, 2 * n + h], gates[b, 3 * n + h]
        do, dcell = output_backward(dout[b, h], dcells_next[b, h], o, math.tanh(cells[b, h]))
        di, dg = input_backward(dcell, i, g)
        df, dprevious[b, h] = forget_backward(dcell, f, previous[b, h])
        dpre[b, h], dpre[b, n + h], dpre[b, 2 * n + h], dpre[b, 3 * n + h] = di, df, dg, do


def backward(recurrent, gates, cells, dout, dpre, *, block=launch.BLOCK):
    """Gradient dpre (T, B, 4H) with respect to the gates' arguments, given dout (T, B, H) with respect to h.

    recurrent, gates and cells are as `forward` left them; dpre may be gates. The gradient from later steps arrives as
    ``dpre_{t+1} @ recurrent.T``.
    """
    n_steps, n_rows = dout.shape[:2]
    dcells, dh = (zeros(dout.shape[1:], np.float32, "cuda") for _ in range(2))
    for t in reversed(range(n_steps if n_rows else 0)):
        dh[...] = dout[t]
        if t + 1 < n_steps:
            matmul(dpre[t + 1], recurrent.T, dh, add=True)
        cell_backward_kernel[n_rows, block](dh, dcells, gates[t], cells[t], cells[t + 1], dpre[t], dcells)
