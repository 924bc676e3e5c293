"""Gradients of weights at arbitrary (label, input) pairs."""

import numpy as np

from sparsemax_nb.reference import unstructured

from ..helpers import assert_close, normal
from . import Budget, Task, operation, unwritten


def make_unstructured(shape):
    n_rows, n_inputs, n_labels, n_weights = shape
    ht, dscores_t, dvalues = normal(1, n_inputs, n_rows), normal(2, n_labels, n_rows), unwritten(n_weights)
    random = np.random.default_rng(3)
    rows = np.sort(random.integers(n_labels, size=n_weights)).astype(np.int32)
    columns = random.integers(n_inputs, size=n_weights).astype(np.int32)
    wanted = unstructured.gradient_of_values(ht, dscores_t, rows, columns)
    return Task((ht, dscores_t, rows, columns, dvalues), lambda: assert_close(dvalues, wanted, n_rows))


OPERATIONS = [
    operation(
        "unstructured.gradient_of_values",
        make_unstructured,
        ((3, 7, 5, 9), (33, 3, 5, 20), (0, 3, 2, 4)),
        ((65, 33, 31, 300), (128, 40, 9, 129)),
    ),
]

BUDGETS = {
    "gradient_of_values_kernel": Budget(40),
}
