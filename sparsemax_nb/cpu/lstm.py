"""The recurrent part of an LSTM layer on the CPU: all steps of a sequence in one call.

The rows of a batch are independent. So a thread takes a block of rows through all steps, each a product with the
recurrent matrix followed by the cells, and no thread waits for another before the end.

A row of cells goes through a few flat loops, each compiled to vector code, and stays in the L1 cache meanwhile. A
single loop over everything would not be vector code: the compiler must check at run time that every array that is
written does not overlap any other array, and gives up above eight checks. The check fails if an output is also an
input: so arrays that may be the same are copied first.
"""

import numpy as np
from numba import prange

from ..core import formulas
from ..core.device import cpu_formulas, njit, njit_parallel
from .exp import sigmoid, tanh
from .panels import LANES, ROWS, pack, padded, product

_formulas = cpu_formulas(formulas)
lstm_cell = _formulas.lstm_cell
output_backward = _formulas.lstm_output_backward
input_backward = _formulas.lstm_input_backward
forget_backward = _formulas.lstm_forget_backward

#: Rows that a thread takes through all steps.
BLOCK = 8


@njit
def _copy(x, out):
    for j in range(x.size):
        out[j] = x[j]


@njit
def _add(x, out):
    """``out += x``; x may be longer."""
    for j in range(out.size):
        out[j] += x[j]


@njit(error_model="numpy")
def _sigmoid(x):
    """In place."""
    for j in range(x.size):
        x[j] = sigmoid(x[j])


@njit(error_model="numpy")
def _tanh(x):
    """In place."""
    for j in range(x.size):
        x[j] = tanh(x[j])


@njit
def _cells(i, f, g, previous, cells):
    for h in range(cells.size):
        cells[h] = lstm_cell(i[h], f[h], g[h], previous[h])


@njit(error_model="numpy")
def _out(o, cells, out):
    for h in range(out.size):
        out[h] = o[h] * tanh(cells[h])


@njit
def _cell(row, previous, cells, out):
    """One step of one row: pre-activations (4H,) become gates."""
    n = previous.size
    i, f, g, o = row[:n], row[n : 2 * n], row[2 * n : 3 * n], row[3 * n :]
    _sigmoid(row[: 2 * n])
    _tanh(g)
    _sigmoid(o)
    _cells(i, f, g, previous, cells)
    _out(o, cells, out)


@njit_parallel(work=lambda panels, gates, *_: gates.shape[0] * gates.shape[1] * panels.size // LANES)
def _forward(panels, gates, cells, hidden, block):
    n_steps, n_rows, n = gates.shape[0], cells.shape[1], cells.shape[2]
    width, flat = panels.shape[0] * LANES, hidden.reshape(-1)
    for part in prange((n_rows + block - 1) // block):
        first = part * block
        stop = min(first + block, n_rows)
        sums = np.empty(padded(block, ROWS) * width, np.float32)
        for t in range(n_steps):
            product(flat, (t * n_rows + first) * n, stop - first, panels, sums)
            for b in range(first, stop):
                _add(sums[(b - first) * width :], gates[t, b])
                _cell(gates[t, b], cells[t, b], cells[t + 1, b], hidden[t + 1, b])


def forward(recurrent, gates, cells, hidden, *, block=BLOCK):
    """All steps of an LSTM: the product ``gates_t + h_{t-1} recurrent`` and the cells; recurrent is (H, 4H).

    gates (T, B, 4H) contains what the inputs add to i, f, g, o (concatenated) and is overwritten by the gates.
    cells, hidden (T + 1, B, H) contain c and h before the first step; those after each step are filled in.
    `block` is the number of rows that a thread takes at a time.
    """
    if cells.size:
        _forward(pack(recurrent), gates, cells, hidden, block)


@njit(error_model="numpy")
def _output_backward(dout, o, cells, do, dcells):
    """On entry `dcells` is that of step t + 1; on exit, the whole gradient of c_t."""
    for h in range(dout.size):
        do[h], dcells[h] = output_backward(dout[h], dcells[h], o[h], tanh(cells[h]))


@njit
def _input_backward(dcells, i, g, di, dg):
    for h in range(dcells.size):
        di[h], dg[h] = input_backward(dcells[h], i[h], g[h])


@njit
def _forget_backward(f, previous, df, dcells):
    """`dcells` is the gradient of c_t on entry and of c_{t-1} on exit."""
    for h in range(dcells.size):
        df[h], dcells[h] = forget_backward(dcells[h], f[h], previous[h])


@njit
def _cell_backward(dout, dcells, gates, previous, cells, dpre):
    """One step of one row; `dcells` is the gradient of c_t from step t + 1 on entry and that of c_{t-1} on exit."""
    n = previous.size
    i, f, g, o = gates[:n], gates[n : 2 * n], gates[2 * n : 3 * n], gates[3 * n :]
    di, df, dg, do = dpre[:n], dpre[n : 2 * n], dpre[2 * n : 3 * n], dpre[3 * n :]
    _output_backward(dout, o, cells, do, dcells)
    _input_backward(dcells, i, g, di, dg)
    _forget_backward(f, previous, df, dcells)


@njit_parallel(work=lambda panels, gates, *_: gates.shape[0] * gates.shape[1] * panels.size // LANES)
def _backward(panels, gates, cells, dout, dpre, block):
    n_steps, n_rows, n = dout.shape
    width, flat = panels.shape[0] * LANES, dpre.reshape(-1)
    for part in prange((n_rows + block - 1) // block):
        first = part * block
        stop = min(first + block, n_rows)
        sums, dcells = np.zeros(padded(block, ROWS) * width, np.float32), np.zeros((block, n), np.float32)
        row = np.empty(4 * n, np.float32)
        for t in range(n_steps - 1, -1, -1):
            if t + 1 < n_steps:
                product(flat, ((t + 1) * n_rows + first) * 4 * n, stop - first, panels, sums)
            for b in range(first, stop):
                dh = sums[(b - first) * width : (b - first) * width + n]
                _add(dout[t, b], dh)
                _copy(gates[t, b], row)
                _cell_backward(dh, dcells[b - first], row, cells[t, b], cells[t + 1, b], dpre[t, b])


def backward(recurrent, gates, cells, dout, dpre, *, block=BLOCK):
    """dpre (T, B, 4H), the gradient of the pre-activations, from dout (T, B, H), the gradient of h from outside.

    recurrent, gates and cells are as `forward` left them; dpre may be gates. Step t adds ``dpre_{t+1} recurrent'`` to
    the gradient of h_t.
    """
    if dout.size:
        _backward(pack(recurrent.T), gates, cells, dout, dpre, block)
