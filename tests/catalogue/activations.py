"""Activations with dropout, and their derivatives."""

import functools

import numpy as np

from sparsemax_nb.core import rng
from sparsemax_nb.reference import activations

from ..helpers import assert_close, normal
from . import LARGE_MATRICES, MATRICES, SEED, Budget, Task, make_nan, operation, unwritten


def make_relu(shape, rate, in_place=False):
    z, bias = normal(1, *shape), normal(2, shape[1])
    dropout = rng.make_dropout(rate, 2**63 + 5, 1, 3)
    out = z if in_place else unwritten(*shape)
    wanted = activations.relu_dropout(z.copy(), bias, dropout)

    def check():
        np.testing.assert_array_equal(out > 0, wanted > 0)
        assert_close(out, wanted, min(shape[0], 2))

    return Task((z, bias, dropout, out), check)


def make_dropout(shape, rate):
    x, out = normal(1, *shape), unwritten(*shape)
    dropout = rng.make_dropout(rate, SEED, 3, 5)
    wanted = activations.dropout(x, dropout)

    def check():
        np.testing.assert_array_equal(out == 0, wanted == 0)
        assert_close(out, wanted, min(shape[0], 1))

    return Task((x, dropout, out), check)


def make_relu_backward(shape, in_place=False):
    dout, scale = normal(1, *shape), np.float32(1.25)
    out = np.maximum(normal(2, *shape), 0)
    out[:1] = 1
    dz, dbias = dout if in_place else unwritten(*shape), unwritten(shape[1])
    wanted = activations.relu_dropout_backward(dout.copy(), out, scale)

    def check():
        assert_close(dz, wanted[0], min(shape[0], 1))
        assert_close(dbias, wanted[1], shape[0])

    return Task((dout, out, scale, dz, dbias), check)


OPERATIONS = [
    *(
        operation(
            f"activations.relu_dropout {rate}", make_relu, MATRICES[::2] + MATRICES[3:], LARGE_MATRICES, rate=rate
        )
        for rate in (0, 0.3)
    ),
    operation(
        "activations.relu_dropout of NaN",
        make_nan,
        MATRICES[1:2],
        LARGE_MATRICES[:1],
        make_finite=functools.partial(make_relu, rate=0),
    ),
    operation("activations.relu_dropout in place", make_relu, MATRICES[1:2], LARGE_MATRICES, rate=0.5, in_place=True),
    operation("activations.dropout", make_dropout, MATRICES, LARGE_MATRICES, rate=0.3),
    operation("activations.relu_dropout_backward", make_relu_backward, MATRICES, LARGE_MATRICES),
    operation(
        "activations.relu_dropout_backward in place", make_relu_backward, MATRICES[1:2], LARGE_MATRICES, in_place=True
    ),
]

BUDGETS = {
    "dropout_kernel": Budget(48),
    "relu_dropout_backward_kernel": Budget(40),
    "relu_dropout_kernel": Budget(48),
}
