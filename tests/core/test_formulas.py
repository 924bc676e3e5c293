"""Scalar formulas: derivatives by finite differences, extreme arguments, and float32 that stays float32."""

import numba
import numpy as np
import pytest

from sparsemax_nb.core import formulas
from sparsemax_nb.core.device import cpu_formulas

pytestmark = pytest.mark.quick

COMPILED = cpu_formulas(formulas)  # float64 in, float64 out; plain Python would round to float32 on the way
LOSSES = {"squared-hinge": COMPILED.squared_hinge, "bce": COMPILED.binary_cross_entropy}
EACH_LOSS = pytest.mark.parametrize("loss", LOSSES)
SIGNS = pytest.mark.parametrize("sign", [1, -1])
SCORES = np.float64([-30, -3, -1.5, -0.9, -0.1, 0, 0.1, 0.9, 1.5, 3, 30])  # not at the kinks, where y s = 1
F32 = numba.float32
RATES = formulas.Rates(*map(np.float32, (0.1, 0.9, 0.99, 1e-8)))


@EACH_LOSS
@SIGNS
def test_derivative_by_finite_differences(loss, sign):
    sign = float(sign)
    for score in SCORES:
        value, gradient = LOSSES[loss](score, sign)
        step = 1e-5
        slope = (LOSSES[loss](score + step, sign)[0] - LOSSES[loss](score - step, sign)[0]) / (2 * step)
        assert gradient == pytest.approx(slope, rel=1e-5, abs=1e-9)
        assert value >= 0


@SIGNS
def test_losses_are_what_they_are_called(sign):
    sign = float(sign)
    for score in SCORES:
        assert LOSSES["squared-hinge"](score, sign)[0] == pytest.approx(max(0, 1 - sign * score) ** 2)
        assert LOSSES["bce"](score, sign)[0] == pytest.approx(np.logaddexp(0, -sign * score), rel=1e-12)


def test_hinge_is_exactly_zero_beyond_the_margin():
    assert all(formulas.squared_hinge(y * s, y) == (0, 0) for s in (1, 1.5, 1e30) for y in (1, -1))


@pytest.mark.filterwarnings("error")
@SIGNS
def test_softmax_term(sign):
    """The derivative of ``log(exp(s) + rest) - [label] s`` by s, where z is s minus the logarithm."""
    sign = float(sign)
    for z in (-1e30, -100.0, -3.0, -0.1, 0.0):
        value, gradient = COMPILED.loss_and_gradient(formulas.SOFTMAX, z, sign)
        assert value == (-z if sign > 0 else 0)
        assert gradient == pytest.approx(np.exp(z) - (sign > 0), abs=1e-15)
    assert np.isfinite(formulas.softmax_term(np.float32(3e38), np.float32(sign))).all(), "of a row beyond the batch"


@EACH_LOSS
def test_codes_of_losses(loss):
    arguments = np.float32(0.3), np.float32(-1)
    assert COMPILED.loss_and_gradient(formulas.LOSSES[loss], *arguments) == pytest.approx(
        LOSSES[loss](*map(float, arguments)), rel=1e-6
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("score", [50, 88, 89, 104, 1e4, 1e30, 3e38, np.inf])
def test_bce_never_overflows(score, compiled):
    function = (COMPILED if compiled else formulas).binary_cross_entropy
    score = np.float32(score)
    for sign in (np.float32(1), np.float32(-1)):
        value, gradient = function(-sign * score, sign)  # wrong by far: loss |s|, slope -y
        assert value == score
        assert gradient == -sign
        value, gradient = function(sign * score, sign)  # right by far: nothing, and never negative
        assert 0 <= value < 1e-20
        assert 0 <= -sign * gradient < 1e-20


@EACH_LOSS
@SIGNS
@pytest.mark.parametrize("compiled", [False, True])
def test_nan_stays_nan(loss, sign, compiled):
    """A score that is NaN must not look like a label beyond its margin."""
    function = getattr(COMPILED if compiled else formulas, LOSSES[loss].__name__)
    value, gradient = function(np.float32(np.nan), np.float32(sign))
    assert np.isnan(value)
    assert np.isnan(gradient)


@pytest.mark.parametrize(
    ("name", "arguments", "results"),
    [
        ("squared_hinge", (F32, F32), 2),
        ("binary_cross_entropy", (F32, F32), 2),
        ("softmax_term", (F32, F32), 2),
        ("loss_and_gradient", (numba.int64, F32, F32), 2),
        ("adam", (F32, F32, F32, F32, numba.typeof(RATES)), 3),
        ("sgd", (F32, F32, numba.typeof(RATES)), 1),
        ("lasso", (F32, F32, F32, F32), 1),
    ],
)
def test_float32_stays_float32(name, arguments, results):
    compiled = numba.njit(getattr(COMPILED, name).py_func)
    compiled.compile(arguments)
    returned = compiled.nopython_signatures[0].return_type
    assert returned == (F32 if results == 1 else numba.types.UniTuple(F32, results))


#: Magnitudes in the order of the real line, as bits: zeros, the smallest numbers, one, the largest, infinity, NaN.
ORDERED = np.float32([0, 1e-45, 1.1754942e-38, 1.1754944e-38, 0.5, 1, 1.0000001, 2, 3.4028235e38, np.inf, np.nan])
BITS = ORDERED.view(np.int32)


@pytest.mark.parametrize("sign", [0, -(2**31)], ids=["positive", "negative"])
def test_digits_put_a_magnitude_together(sign):
    """Three digits, each asked for with those above it as its prefix; with another prefix they lie outside."""
    assert (np.diff(BITS) > 0).all()
    for bits in BITS:
        prefix, signed = 0, np.int32(int(bits) + sign)
        for shift, n_bins in (20, 2048), (10, 1024), (0, 1024):
            digit = int(COMPILED.digit(signed, prefix, shift, n_bins))
            assert digit == formulas.digit(signed, prefix, shift, n_bins)
            assert 0 <= digit < n_bins
            for other in (prefix - 1, prefix + 1):
                assert not 0 <= COMPILED.digit(signed, other, shift, n_bins) < n_bins
            prefix = prefix * n_bins + digit
        assert prefix == bits


@pytest.mark.parametrize("sign", [0, -(2**31)], ids=["positive", "negative"])
def test_is_smallest(sign):
    """Below the threshold whatever the place, at the threshold up to the last place, above it never."""
    for threshold in BITS:
        for bits in BITS:
            got = [
                bool(COMPILED.is_smallest(np.int32(int(bits) + sign), i, formulas.Threshold(int(threshold), 7)))
                for i in (0, 7, 8, 10**12)
            ]
            assert got == ([bits <= threshold] * 2 + [bits < threshold] * 2)
    cut = formulas.Threshold(int(BITS[4]), -1)
    assert formulas.is_smallest(BITS, np.arange(BITS.size), cut).sum() == 4, "of arrays"


@pytest.mark.parametrize("used", [[], [0], [9], [0, 1, 2], [9, 8, 7], [5, 3, 4, 0], [8, 2, 6, 4, 0], [*range(9)]])
def test_free_input(used):
    free = [i for i in range(10) if i not in used]
    used = np.array(used, np.int32)
    assert [COMPILED.free_input(np.int64(rank), used) for rank in range(len(free))] == free
    assert [formulas.free_input(rank, used) for rank in range(len(free))] == free


def test_adam_and_sgd():
    rates = formulas.Rates(0.1, 0.9, 0.99, 1e-3)
    parameter, m, v = formulas.adam(2.0, 0.5, 0.25, 0.04, rates)
    assert m == pytest.approx(0.9 * 0.25 + 0.1 * 0.5)
    assert v == pytest.approx(0.99 * 0.04 + 0.01 * 0.25)
    assert parameter == pytest.approx(2 - 0.1 * m / (np.sqrt(v) + 1e-3))
    assert formulas.sgd(2.0, 0.5, rates) == pytest.approx(1.95)
    assert formulas.adam(2.0, 0.0, 0.0, 0.0, rates) == (2.0, 0.0, 0.0)


def test_lasso_by_finite_differences():
    w, step = np.array([0.3, -0.2, 0.0]), 1e-6
    moved = w + step * np.eye(3)
    norms = [2 * np.sqrt((a**2).sum(-1) / 3 + 1e-4) for a in (moved, 2 * w - moved)]
    np.testing.assert_allclose(
        formulas.lasso(2, (w**2).sum(), 3, 1e-4) * w, (norms[0] - norms[1]) / (2 * step), atol=1e-8
    )


def test_compiled_update_equals_the_formula():
    arguments = [np.float32(a) for a in (2, 0.5, 0.25, 0.04)]
    assert COMPILED.adam(*arguments, RATES) == pytest.approx(formulas.adam(*map(float, arguments), RATES), rel=1e-6)
    assert COMPILED.sgd(*arguments[:2], RATES) == pytest.approx(1.95, rel=1e-6)
