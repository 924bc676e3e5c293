"""An LSTM: the cell, which is what follows its matrix products, and the recurrent part of a layer."""

import numpy as np


def sigmoid(x):
    """``1 / (1 + exp(-x))``, elementwise; never overflows."""
    return np.exp(-np.logaddexp(0, -x))


def cell(pre, previous):
    """One step of an LSTM: gates (B, 4H), cells (B, H) and out (B, H), from pre (B, 4H) and previous (B, H) = c_{t-1}.

    pre = x W + h_{t-1} U + b holds the input gate, forget gate, candidate and output gate side by side (i, f, g, o):
    ``i, f, o = sigmoid(...);  g = tanh(...);  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)``
    (Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000).
    """
    i, f, g, o = np.split(pre.astype(np.float64), 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    cells = f * previous + i * g
    return np.hstack([i, f, g, o]), cells, o * np.tanh(cells)


def cell_backward(dout, dcells_next, gates, previous, cells):
    """Gradients by pre, (B, 4H), and by c_{t-1}, (B, H); dout (B, H) is that by h_t, dcells_next (B, H) that by c_t.

    dcells_next is what comes from step t + 1, zeros at the last; with what comes by h_t,
    ``dc = dout o (1 - tanh(c)^2) + dcells_next``.
    """
    i, f, g, o = np.split(gates.astype(np.float64), 4, axis=1)
    tanh_c = np.tanh(cells.astype(np.float64))
    dc = dout * o * (1 - tanh_c**2) + dcells_next
    dpre = dc * g * i * (1 - i), dc * previous * f * (1 - f), dc * i * (1 - g**2), dout * tanh_c * o * (1 - o)
    return np.hstack(dpre), dc * f


def forward(recurrent, gates, cells, hidden):
    """All steps of an LSTM: gates (T, B, 4H), cells and hidden (T + 1, B, H), from what the inputs add to the gates.

    ``gates_t, c_t, h_t = cell(gates_t + h_{t-1} recurrent, c_{t-1})``; c and h before the first step are cells[0],
    hidden[0].
    """
    cells, hidden = [cells[0].astype(np.float64)], [hidden[0].astype(np.float64)]
    gates = gates.astype(np.float64)
    for t, pre in enumerate(gates):
        gates[t], c, h = cell(pre + hidden[t] @ recurrent, cells[t])
        cells.append(c)
        hidden.append(h)
    return gates, np.stack(cells), np.stack(hidden)


def backward(recurrent, gates, cells, dout):
    """The gradient by the sums that become gates, (T, B, 4H); gates and cells come from `forward`.

    dout (T, B, H) is that by h as it comes from outside; by h_t there is ``dpre_{t+1} recurrent'`` besides.
    """
    dpre, dcells, dh = np.zeros(gates.shape), 0, 0
    for t in reversed(range(len(gates))):
        dpre[t], dcells = cell_backward(dout[t] + dh, dcells, gates[t], cells[t], cells[t + 1])
        dh = dpre[t] @ recurrent.T
    return dpre
