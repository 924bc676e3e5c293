"""exp, its sums, sigmoid and tanh in plain arithmetic, so that loops over them become vector code.

A loop over ``math.exp`` would not. The CUDA backend does not share them: its ``math`` functions are fast. A loop over
sigmoid or tanh must be in a function with ``error_model="numpy"``: the default check for division by zero prevents
vector code.
"""

import numpy as np

from ..core.device import njit, njit_inline
from .simd import power_of_two

ZERO, HALF, ONE, TWO, INFINITY = map(np.float32, (0, 0.5, 1, 2, np.inf))
#: Sums and maxima use this many independent accumulators, so that the loops become vector code; joined in order.
ACCUMULATORS = 64
#: exp(-87) is still a normal number and exp(88) a finite one.
LOWEST, HIGHEST = np.float32(-87), np.float32(88)
#: ln 2 in two parts; the first has so few digits that n times it is exact.
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
    """``e^x`` for a float32, at most 2 units in the last place off; 0 below -87, infinity above 88, NaN stays NaN."""
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
    """`exp` for x <= 0: the same bits in fewer steps."""
    t = x if x >= LOWEST else LOWEST
    n = np.int32(t * LOG2_E - HALF)
    r = t - np.float32(n) * LN2_HIGH - np.float32(n) * LN2_LOW
    c = TERMS
    e = power_of_two(n) * (polynomial(r, c[0], c[1], c[2], c[3], c[4], c[5]) * r * r + r + ONE)
    return e if x >= LOWEST else (ZERO if x < LOWEST else x)


@njit_inline
def sigmoid(x):
    """``1 / (1 + exp(-x))`` for a float32; 0 below -88, NaN stays NaN."""
    return ONE / (ONE + exp(-x))


@njit_inline
def tanh(x):
    """``tanh(x)`` for a float32, with a small relative error also near 0; NaN stays NaN."""
    a, square, c = abs(x), x * x, TANH_TERMS
    far = ONE - TWO / (exp(TWO * a) + ONE)  # cancels near 0, hence the polynomial
    near = polynomial(square, c[0], c[1], c[2], c[3], c[4], c[5]) * x
    return near if a < NEAR_ZERO else (far if x > ZERO else -far)


@njit
def largest_of(logits, bias, largest, lanes):
    """The maximum of `largest` and ``logits + bias``, ignoring NaN; `lanes` (ACCUMULATORS,) is scratch."""
    n, whole = logits.size, logits.size // ACCUMULATORS * ACCUMULATORS
    lanes[:] = largest
    for start in range(0, whole, ACCUMULATORS):
        for i in range(ACCUMULATORS):
            x, old = logits[start + i] + bias[start + i], lanes[i]
            lanes[i] = (x if x > old else old) + ZERO  # + 0: storing either number would become a slow masked store
    for j in range(whole, n):
        largest = max(largest, logits[j] + bias[j])
    for i in range(ACCUMULATORS):
        largest = max(largest, lanes[i])
    return largest


@njit
def sum_exp(logits, bias, shift, lanes):
    """``sum(exp(logits + bias - shift))`` for a shift >= their maximum; `lanes` (ACCUMULATORS,) is scratch."""
    n, whole, total = logits.size, logits.size // ACCUMULATORS * ACCUMULATORS, ZERO
    lanes[:] = ZERO
    for start in range(0, whole, ACCUMULATORS):
        for i in range(ACCUMULATORS):
            lanes[i] += exp_nonpositive(logits[start + i] + bias[start + i] - shift)
    for j in range(whole, n):
        total += exp_nonpositive(logits[j] + bias[j] - shift)
    for i in range(ACCUMULATORS):
        total += lanes[i]
    return total
