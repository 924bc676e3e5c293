"""Parameter updates, whole or row by row. Other operations that update parameters use `make_moments`."""

import copy

import numpy as np

from sparsemax_nb.core import formulas
from sparsemax_nb.reference import optimizers

from ..helpers import assert_close, normal
from . import RATES, Budget, Task, operation

KINDS = {"sgd": formulas.SGD_KIND, "adam": formulas.ADAM_KIND}


def make_moments(kind, array):
    """Moments as in mid-training (of size 0 for SGD); v is well above 0, where the update is smooth."""
    if kind == formulas.SGD_KIND:
        return formulas.Moments(*(np.zeros((0,) * array.ndim, np.float32) for _ in range(2)))
    return formulas.Moments(normal(7, *array.shape), np.abs(normal(8, *array.shape)) + np.float32(0.1))


def make_update(n, kind):
    parameter, gradient = normal(1, n), normal(2, n)
    moments = make_moments(kind, parameter)
    wanted = optimizers.update(kind, parameter.copy(), gradient, copy.deepcopy(moments), RATES)
    return Task((kind, parameter, gradient, moments, RATES), lambda: check_update((parameter, *moments), wanted))


def make_update_rows(shape, kind):
    n, n_rows, n_columns = shape
    parameter, gradient = normal(1, n_rows, n_columns), normal(2, n, n_columns)
    moments = make_moments(kind, parameter)
    row_ids = np.random.default_rng(3).permutation(n_rows)[:n].astype(np.int32)
    wanted = optimizers.update_rows(kind, parameter, row_ids, gradient, moments, RATES)
    return Task(
        (kind, parameter, row_ids, gradient, moments, RATES), lambda: check_update((parameter, *moments), wanted)
    )


def check_update(outputs, wanted):
    for got, want in zip(outputs, wanted, strict=True):
        assert_close(got, want, 4)


def _operations():
    for optimizer, kind in KINDS.items():
        yield operation(f"optimizers.update {optimizer}", make_update, (1, 33), (300,), kind=kind)
        yield operation(
            f"optimizers.update_rows {optimizer}",
            make_update_rows,
            ((1, 1, 1), (3, 9, 5), (0, 5, 7)),
            ((33, 65, 300),),
            kind=kind,
        )


OPERATIONS = list(_operations())

BUDGETS = {
    "update_kernel": Budget(32),
    "update_rows_kernel": Budget(48),
}
