"""Random initial weights and connections."""

import functools

import numpy as np

from sparsemax_nb.core import rng
from sparsemax_nb.reference import initialization

from . import SEED, Budget, Task, operation, unwritten


def make_connections(shape):
    n_labels, n_inputs, fan_in = shape
    indices = unwritten(n_labels, fan_in, dtype=np.int32)
    wanted = functools.partial(initialization.random_connections, SEED, n_inputs, n_labels, fan_in)
    return Task((SEED, n_inputs, indices), lambda: np.testing.assert_array_equal(indices, wanted()))


def make_values(n):
    values, scale = unwritten(n), np.float32(0.3)
    wanted = functools.partial(initialization.random_values, SEED, rng.WEIGHTS, scale, (n,))
    return Task((SEED, rng.WEIGHTS, scale, values), lambda: np.testing.assert_array_equal(values, wanted()))


OPERATIONS = [
    operation("initialization.random_connections", make_connections, ((1, 1, 1), (7, 9, 3)), ((65, 31, 31),)),
    operation("initialization.random_values", make_values, (1, 33), (300,)),
]

BUDGETS = {
    "random_connections_kernel": Budget(56),
    "random_values_kernel": Budget(24),
}
