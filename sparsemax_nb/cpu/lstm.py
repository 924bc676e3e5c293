"""The pointwise part of an LSTM cell on the CPU.

A row goes through a few flat loops, each compiled to vector code, and stays in the first-level cache meanwhile.
A single loop over everything would not be vector code: at run time every array that is written must be checked for
overlap with all others, and above eight checks the compiler gives up. The check fails where an output is also an input:
so what may be the same array is copied first, and then changed in place.
"""

from numba import prange

from ..core import backend, formulas
from .exp import sigmoid, tanh

_formulas = backend.cpu_formulas(formulas)
lstm_cell = _formulas.lstm_cell
output_backward = _formulas.lstm_output_backward
input_backward = _formulas.lstm_input_backward
forget_backward = _formulas.lstm_forget_backward


@backend.njit
def _copy(x, out):
    for j in range(x.size):
        out[j] = x[j]


@backend.njit(error_model="numpy")
def _sigmoid(x):
    """In place."""
    for j in range(x.size):
        x[j] = sigmoid(x[j])


@backend.njit(error_model="numpy")
def _tanh(x):
    """In place."""
    for j in range(x.size):
        x[j] = tanh(x[j])


@backend.njit
def _cells(i, f, g, previous, cells):
    for h in range(cells.size):
        cells[h] = lstm_cell(i[h], f[h], g[h], previous[h])


@backend.njit(error_model="numpy")
def _out(o, cells, out):
    for h in range(out.size):
        out[h] = o[h] * tanh(cells[h])


@backend.njit_parallel
def cell(pre, previous, gates, cells, out):
    """gates (B, 4H) = sigmoid or tanh of pre (B, 4H), ``cells = f previous + i g``, ``out = o tanh(cells)``, (B, H).

    The gates lie side by side as i, f, g, o; `gates` may be `pre`.
    """
    n = previous.shape[1]
    for b in prange(previous.shape[0]):
        row = gates[b]
        i, f, g, o = row[:n], row[n : 2 * n], row[2 * n : 3 * n], row[3 * n :]
        _copy(pre[b], row)
        _sigmoid(row[: 2 * n])
        _tanh(g)
        _sigmoid(o)
        _cells(i, f, g, previous[b], cells[b])
        _out(o, cells[b], out[b])


@backend.njit(error_model="numpy")
def _output_backward(dout, o, cells, do, dcells):
    """`dcells` is that of step t + 1 before, and the whole gradient by c_t after."""
    for h in range(dout.size):
        do[h], dcells[h] = output_backward(dout[h], dcells[h], o[h], tanh(cells[h]))


@backend.njit
def _input_backward(dcells, i, g, di, dg):
    for h in range(dcells.size):
        di[h], dg[h] = input_backward(dcells[h], i[h], g[h])


@backend.njit
def _forget_backward(f, previous, df, dcells):
    """`dcells` is the gradient by c_t before and by c_{t-1} after."""
    for h in range(dcells.size):
        df[h], dcells[h] = forget_backward(dcells[h], f[h], previous[h])


@backend.njit_parallel
def cell_backward(dout, dcells_next, gates, previous, cells, dpre, dprevious):
    """Gradients by pre, dpre (B, 4H), and by c_{t-1}, dprevious (B, H), which may be `dcells_next`."""
    n = previous.shape[1]
    for b in prange(previous.shape[0]):
        i, f, g, o = gates[b, :n], gates[b, n : 2 * n], gates[b, 2 * n : 3 * n], gates[b, 3 * n :]
        di, df, dg, do = dpre[b, :n], dpre[b, n : 2 * n], dpre[b, 2 * n : 3 * n], dpre[b, 3 * n :]
        dcells = dprevious[b]
        _copy(dcells_next[b], dcells)
        _output_backward(dout[b], o, cells[b], do, dcells)
        _input_backward(dcells, i, g, di, dg)
        _forget_backward(f, previous[b], df, dcells)
