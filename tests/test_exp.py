"""The CPU wing's exp: as exact as promised, and vector code where it matters."""

import platform

import numba
import numpy as np
import pytest

from sparsemax_nb.cpu import full_softmax
from sparsemax_nb.cpu.exp import exp


@numba.njit
def of_each(x, out):
    for i in range(x.size):
        out[i] = exp(x[i])


def test_two_units_in_the_last_place():
    near, far = np.linspace(-1, 1, 200_001), np.linspace(-87, 88, 500_001)
    x = np.concatenate([near, far]).astype(np.float32)
    got, want = np.empty_like(x), np.exp(x.astype(np.float64))
    of_each(x, got)
    error = np.abs(got - want) / np.spacing(want.astype(np.float32))
    assert 0 < error.max() <= 2
    assert got.dtype == np.float32


def test_what_lies_outside():
    x = np.array([-np.inf, -1e30, -87.1, 88.1, 1e30, np.inf, np.nan, 0, -0.0], np.float32)
    got = np.empty_like(x)
    of_each(x, got)
    np.testing.assert_array_equal(got, np.array([0, 0, 0, np.inf, np.inf, np.inf, np.nan, 1, 1], np.float32))


VECTOR, SCALAR = numba.float32[::1], numba.float32


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64")
@pytest.mark.parametrize(
    ("function", "types"),
    [
        (full_softmax._largest, (VECTOR, VECTOR, SCALAR, VECTOR)),
        (full_softmax._sum_exp, (VECTOR, VECTOR, SCALAR, VECTOR)),
        (full_softmax._gradient, (VECTOR, VECTOR, SCALAR, SCALAR)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_loops_are_vector_code(function, types):
    code = numba.njit(types)(function.py_func).inspect_asm(types)
    assert code.count("addps") >= 4
    assert "addss" in code, "the rest of a row"
    assert "expf" not in code
