"""An LSTM: the cell (everything after its matrix products) and the recurrent part of a layer."""

import numpy as np


def sigmoid(x):
    """``1 / (1 + exp(-x))``, elementwise; never overflows."""
    return np.exp(-np.logaddexp(0, -x))


def cell(pre, previous):
    """One LSTM step: gates (B, 4H), cells (B, H) and out (B, H), from pre (B, 4H) and previous (B, H) = c_{t-1}.

    pre = x W + h_{t-1} U + b contains the input gate, forget gate, candidate and output gate, concatenated (i, f, g,
    o): ``i, f, o = sigmoid(...);  g = tanh(...);  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)`` (Hochreiter &
    Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000).
    """
    i, f, g, o = np.split(pre.astype(np.float64), 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    cells = f * previous + i * g
    return np.hstack([i, f, g, o]), cells, o * np.tanh(cells)


def cell_backward(dout, dcells_next, gates, previous, cells):
    """Gradients with respect to pre (B, 4H) and c_{t-1} (B, H), from dout (B, H), that of h_t, and dcells_next (B, H).

    dcells_next is the gradient of c_t that arrives from step t + 1, zero at the last step; the whole one is
    ``dc = dout o (1 - tanh(c)^2) + dcells_next``.
    """
    i, f, g, o = np.split(gates.astype(np.float64), 4, axis=1)
    tanh_c = np.tanh(cells.astype(np.float64))
    dc = dout * o * (1 - tanh_c**2) + dcells_next
    dpre = dc * g * i * (1 - i), dc * previous * f * (1 - f), dc * i * (1 - g**2), dout * tanh_c * o * (1 - o)
    return np.hstack(dpre), dc * f


def forward(recurrent, gates, cells, hidden):
    """All steps of an LSTM: gates (T, B, 4H), cells and hidden (T + 1, B, H).

    `gates` contains what the inputs add to the gates: ``gates_t, c_t, h_t = cell(gates_t + h_{t-1} recurrent,
    c_{t-1})``. cells[0] and hidden[0] are c and h before the first step.
    """
    cells, hidden = [cells[0].astype(np.float64)], [hidden[0].astype(np.float64)]
    gates = gates.astype(np.float64)
    for t, pre in enumerate(gates):
        gates[t], c, h = cell(pre + hidden[t] @ recurrent, cells[t])
        cells.append(c)
        hidden.append(h)
    return gates, np.stack(cells), np.stack(hidden)


def backward(recurrent, gates, cells, dout):
    """The gradient with respect to the pre-activations of the gates, (T, B, 4H); gates and cells come from `forward`.

    dout (T, B, H) is the gradient of h from outside the recurrence; the step after t adds ``dpre_{t+1} recurrent'``.
    """
    dpre = np.zeros(gates.shape)
    dcells, dh = 0, 0
    for t in reversed(range(len(gates))):
        dpre[t], dcells = cell_backward(dout[t] + dh, dcells, gates[t], cells[t], cells[t + 1])
        dh = dpre[t] @ recurrent.T
    return dpre
