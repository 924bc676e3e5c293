"""The CPU backend's exp, sigmoid and tanh: as exact as promised, and vector code where it matters."""

import platform
import re

import numba
import numpy as np
import pytest

from sparsemax_nb.cpu import exp as compiled
from sparsemax_nb.cpu import full_softmax, lstm
from sparsemax_nb.cpu.exp import exp, exp_nonpositive
from sparsemax_nb.reference.lstm import sigmoid

from .helpers import EPS


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


@numba.njit
def of_each_nonpositive(x, out):
    for i in range(x.size):
        out[i] = exp_nonpositive(x[i])


def test_fewer_steps_give_the_same_bits():
    x = np.concatenate([-np.logspace(-40, 38, 500_001), [-np.inf, np.nan, 0, -0.0]]).astype(np.float32)
    want, got = np.empty_like(x), np.empty_like(x)
    of_each(x, want)
    of_each_nonpositive(x, got)
    np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))
    assert 0.2 < (want > 0).mean() < 0.8


@pytest.mark.parametrize(
    ("in_place", "exact"), [(lstm._sigmoid, sigmoid), (lstm._tanh, np.tanh)], ids=["sigmoid", "tanh"]
)
def test_sigmoid_and_tanh_to_two_eps(in_place, exact):
    """Absolute and relative error, down to the smallest numbers (sigmoid ends where exp does)."""
    near, far, tiny = np.linspace(-1, 1, 200_001), np.linspace(-87, 87, 500_001), np.logspace(-37, 0, 100_001)
    x = np.concatenate([near, far, tiny, -tiny]).astype(np.float32)
    got, want = x.copy(), exact(x.astype(np.float64))
    in_place(got)
    assert 0 < np.abs(got - want).max() <= EPS
    assert (np.abs(got - want) <= 2 * EPS * np.abs(want)).all()


def test_limits_of_sigmoid_and_tanh():
    x = np.array([-np.inf, -1e30, -89, 89, 1e30, np.inf, np.nan, 0], np.float32)
    got = x.copy()
    lstm._sigmoid(got)
    np.testing.assert_array_equal(got, np.array([0, 0, 0, 1, 1, 1, np.nan, 0.5], np.float32))
    lstm._tanh(x)
    np.testing.assert_array_equal(x, np.array([-1, -1, -1, 1, 1, 1, np.nan, 0], np.float32))


VECTOR, SCALAR = numba.float32[::1], numba.float32


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64")
@pytest.mark.parametrize(
    ("function", "types"),
    [
        (compiled.largest_of, (VECTOR, VECTOR, SCALAR, VECTOR)),
        (compiled.sum_exp, (VECTOR, VECTOR, SCALAR, VECTOR)),
        (full_softmax._gradient, (VECTOR, VECTOR, SCALAR, SCALAR)),
        (lstm._sigmoid, (VECTOR,)),
        (lstm._tanh, (VECTOR,)),
        (lstm._out, (VECTOR,) * 3),
        (lstm._output_backward, (VECTOR,) * 5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_loops_are_vector_code(function, types):
    division = function.targetoptions.get("error_model", "python")
    code = numba.njit(types, error_model=division)(function.py_func).inspect_asm(types)
    assert code.count("addps") >= 4
    assert "addss" in code, "the rest of a row"
    assert "expf" not in code


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64")
def test_the_maximum_is_stored_whole():
    """Stores under a mask take five times as long on some processors."""
    types = VECTOR, VECTOR, SCALAR, VECTOR
    assert "maskmov" not in numba.njit(types)(compiled.largest_of.py_func).inspect_asm(types)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64")
def test_counts_are_vector_code():
    counts = numba.int32[::1]
    for function, types in (
        (full_softmax._compare, (VECTOR, SCALAR, counts, VECTOR, VECTOR)),
        (full_softmax._n_equal, (VECTOR, SCALAR, counts)),
    ):
        code = numba.njit(types)(function.py_func).inspect_asm(types)
        assert re.search(r"cmp\w*ps", code), function
        assert re.search("p(add|sub)d", code), function


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64")
@pytest.mark.parametrize(
    ("function", "n"),
    [(lstm._cells, 5), (lstm._input_backward, 5), (lstm._forget_backward, 4)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_products_are_vector_code(function, n):
    code = numba.njit((VECTOR,) * n)(function.py_func).inspect_asm((VECTOR,) * n)
    assert code.count("mulps") >= 4
