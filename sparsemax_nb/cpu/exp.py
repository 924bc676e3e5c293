"""exp, its sums, sigmoid and tanh in plain arithmetic: a loop over them is compiled to vector code, one over ``math.exp`` is not.

So they are not shared with the CUDA wing, which has fast ones in ``math``. A loop over sigmoid or tanh must stand in a
function with ``error_model="numpy"``: the usual check for a division by zero would keep it from being vector code.
"""

import numpy as np

from ..core.device import njit, njit_inline
from .simd import power_of_two

ZERO, HALF, ONE, TWO, INFINITY = map(np.float32, (0, 0.5, 1, 2, np.inf))
#: Sums and maxima run side by side, so that they become vector code; then they are joined in order.
LANES = 64
#: exp(-87) is still a normal number, exp(88) a finite one.
LOWEST, HIGHEST = np.float32(-87), np.float32(88)
#: ln 2 in two parts, the first with so few digits that n times it is exact.
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.442695041), np.float32(0.693359375), np.float32(-2.12194440e-4)
#: (exp(r) - 1 - r) / r^2 for |r| < 0.35 (Cephes, expf).
TERMS = tuple(
    map(np.float32, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))
)
#: tanh(x) / x as a polynomial in x^2, for |x| < 0.625 (Cephes, tanhf).
NEAR_ZERO = np.float32(0.625)
TANH_TERMS = tuple(
    map(np.float32, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1, 1))
)


@njit_inline
def polynomial(x, c0, c1, c2, c3, c4, c5):
    """``c0 x^5 + ... + c5``."""
    return ((((c0 * x + c1) * x + c2) * x + c3) * x + c4) * x + c5


@njit_inline
def exp(x):
    """``e^x`` for a float32, 2 units in the last place at most; 0 below -87, infinity above 88, NaN comes through."""
    t = x if x >= LOWEST else LOWEST  # NaN becomes a number
    t = t if t <= HIGHEST else HIGHEST
    n = np.int32(t * LOG2_E + (HALF if t >= ZERO else -HALF))  # exp(t) = 2^n exp(r)
    r = t - np.float32(n) * LN2_HIGH - np.float32(n) * LN2_LOW
    c = TERMS
    e = power_of_two(n) * (polynomial(r, c[0], c[1], c[2], c[3], c[4], c[5]) * r * r + r + ONE)
    e = e if x >= LOWEST else (ZERO if x < LOWEST else x)
    return e if not x > HIGHEST else INFINITY


@njit_inline
def exp_nonpositive(x):
    """`exp` for x <= 0, the same bits in fewer steps."""
    t = x if x >= LOWEST else LOWEST
    n = np.int32(t * LOG2_E - HALF)
    r = t - np.float32(n) * LN2_HIGH - np.float32(n) * LN2_LOW
    c = TERMS
    e = power_of_two(n) * (polynomial(r, c[0], c[1], c[2], c[3], c[4], c[5]) * r * r + r + ONE)
    return e if x >= LOWEST else (ZERO if x < LOWEST else x)


@njit_inline
def sigmoid(x):
    """``1 / (1 + exp(-x))`` for a float32; 0 below -88, NaN comes through."""
    return ONE / (ONE + exp(-x))


@njit_inline
def tanh(x):
    """``tanh(x)`` for a float32, of small relative error near 0 too; NaN comes through."""
    a, square, c = abs(x), x * x, TANH_TERMS
    far = ONE - TWO / (exp(TWO * a) + ONE)  # would lose digits near 0
    near = polynomial(square, c[0], c[1], c[2], c[3], c[4], c[5]) * x
    return near if a < NEAR_ZERO else (far if x > ZERO else -far)


@njit
def largest_of(logits, bias, largest, lanes):
    """The largest of `largest` and ``logits + bias``, NaN left out; `lanes` (LANES,) is scratch."""
    n, whole = logits.size, logits.size // LANES * LANES
    lanes[:] = largest
    for start in range(0, whole, LANES):
        for i in range(LANES):
            x, old = logits[start + i] + bias[start + i], lanes[i]
            lanes[i] = (x if x > old else old) + ZERO  # a sum: to store either number becomes a slow masked store
    for j in range(whole, n):
        largest = max(largest, logits[j] + bias[j])
    for i in range(LANES):
        largest = max(largest, lanes[i])
    return largest


@njit
def sum_exp(logits, bias, shift, lanes):
    """``sum(exp(logits + bias - shift))``, the shift being their largest or more; `lanes` (LANES,) is scratch."""
    n, whole, total = logits.size, logits.size // LANES * LANES, ZERO
    lanes[:] = ZERO
    for start in range(0, whole, LANES):
        for i in range(LANES):
            lanes[i] += exp_nonpositive(logits[start + i] + bias[start + i] - shift)
    for j in range(whole, n):
        total += exp_nonpositive(logits[j] + bias[j] - shift)
    for i in range(LANES):
        total += lanes[i]
    return total
