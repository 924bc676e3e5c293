"""The LSTM cell over several steps."""

import numpy as np

from sparsemax_nb.reference import lstm

from ..helpers import assert_close, normal
from . import Budget, Task, operation, unwritten


def make_lstm(shape):
    """recurrent, gates, cells and hidden before the steps; entries to be filled in are NaN."""
    n_steps, n_rows, n_units = shape
    recurrent = normal(1, n_units, 4 * n_units) / np.float32(n_units**0.5)
    cells, hidden = unwritten(n_steps + 1, n_rows, n_units), unwritten(n_steps + 1, n_rows, n_units)
    cells[0], hidden[0] = normal(3, n_rows, n_units), normal(4, n_rows, n_units)
    return recurrent, normal(2, n_steps, n_rows, 4 * n_units), cells, hidden


def make_lstm_forward(shape):
    recurrent, *outputs = make_lstm(shape)
    wanted = lstm.forward(recurrent, *outputs)

    def check():
        for got, want, scale in zip(outputs, wanted, (1, 4, 1), strict=True):
            assert_close(got, want, 4 * shape[0] * shape[2], scale)

    return Task((recurrent, *outputs), check)


def make_lstm_backward(shape, in_place=False):
    recurrent, *arrays = make_lstm(shape)
    gates, cells, _ = (a.astype(np.float32) for a in lstm.forward(recurrent, *arrays))
    dout, dpre = normal(5, *cells[1:].shape), gates if in_place else unwritten(*gates.shape)
    wanted = lstm.backward(recurrent, gates.copy(), cells, dout)
    return Task((recurrent, gates, cells, dout, dpre), lambda: assert_close(dpre, wanted, 4 * shape[0] * shape[2], 4))


#: (T, B, H)
SEQUENCES = ((1, 1, 1), (3, 5, 3), (2, 0, 5), (0, 3, 2)), ((4, 33, 17), (5, 9, 70))
OPERATIONS = [
    operation("lstm.forward", make_lstm_forward, *SEQUENCES),
    operation("lstm.backward", make_lstm_backward, *SEQUENCES),
    operation("lstm.backward in place", make_lstm_backward, *(s[1:2] for s in SEQUENCES), in_place=True),
]

BUDGETS = {
    "cell_backward_kernel": Budget(64),
    "cell_kernel": Budget(56),
}
