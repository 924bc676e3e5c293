"""Scalar formulas, written once and compiled for both processors: losses, LSTM cell, optimizers, sorted lists.

The functions are undecorated because ``core.device`` compiles them twice. Constants are ``np.float32``: a literal
``1.0`` would turn float32 into float64 in compiled code.
"""

import math
from typing import NamedTuple

import numpy as np

ZERO, ONE, TWO, INFINITE = np.float32(0), np.float32(1), np.float32(2), np.float32(np.inf)
#: Bound of an exponent: e to its power is finite in float32, as the simulator requires.
LARGEST_EXPONENT = np.float32(80)
#: The count of a pair of labels that never occur together.
NO_POINTS = np.int32(0)

#: Masks for the bits of a float32: exponent (infinity), fraction, and the bit that makes a NaN quiet.
INFINITY, FRACTION, QUIET = np.uint32(0x7F800000), np.uint32(0x7FFFFF), np.uint32(0x400000)
NO_BITS, SIXTEEN = np.uint32(0), np.uint32(16)

#: Integer codes of the multi-label losses, because kernels cannot take strings.
LOSSES = {"squared-hinge": 0, "bce": 1}
SQUARED_HINGE = 0
#: Code of the softmax loss, for which a kernel needs the sums of each row; see `StepLoss`.
SOFTMAX = 2

#: Integer codes of the optimizers.
SGD_KIND, ADAM_KIND = 0, 1

#: All bits of a float32 except the sign: ``bits & MAGNITUDE`` is an integer that grows with |value|.
MAGNITUDE = np.int32(0x7FFFFFFF)


class StepLoss(NamedTuple):
    """The loss of a training step: its code, and what is subtracted from the scores of each row before its formula.

    Only SOFTMAX subtracts anything: the largest score of the row, then ``log(sum(exp(score - largest)) / n)`` for a row
    with n labels. In this order the difference of two large scores is exact. With z, the result, ``n softmax(scores)``
    is ``exp(z)``.
    """

    kind: int
    shifts: np.ndarray  # (B, 2) float32; (0, 2) if nothing is subtracted; the kernels of CUDA take it transposed


class Rates(NamedTuple):
    """Scalars of an update (float32): bias-corrected step size, decay rates, bias-corrected epsilon."""

    step_size: np.float32
    beta1: np.float32
    beta2: np.float32
    epsilon: np.float32


class Moments(NamedTuple):
    """First and second moment of a parameter, with its shape (of size 0 for SGD)."""

    m: np.ndarray
    v: np.ndarray


class Threshold(NamedTuple):
    """Which slots count as smallest: magnitude below `threshold`, or equal to it and flat index up to `last`."""

    threshold: np.int64
    last: np.int64


def squared_hinge(score, sign):
    """``max(0, 1 - y s)^2`` and its derivative with respect to s, for y = `sign` = +1 or -1; exactly 0 if y s >= 1."""
    margin = ONE - sign * score
    margin = ZERO if margin <= ZERO else margin  # not max(), which may drop NaN
    return margin * margin, -TWO * sign * margin


def binary_cross_entropy(score, sign):
    """``log(1 + exp(-y s))`` and its derivative with respect to s, for y = `sign` = +1 or -1; never overflows."""
    e = math.exp(-abs(score))
    loss = math.log1p(e) + max(ZERO, -sign * score)
    small, large = e / (ONE + e), ONE / (ONE + e)
    wrong = small if sign * score >= ZERO else large
    return loss, -sign * wrong


def softmax_term(z, sign):
    """What one score adds to ``-log softmax(scores)``, up to a constant, and its derivative with respect to it.

    ``-z`` for a label (`sign` = +1), else 0, and ``exp(z) - [sign = 1]``; z is the score as `StepLoss` shifts it.
    """
    e = math.exp(LARGEST_EXPONENT if z > LARGEST_EXPONENT else z)  # of rows beyond the batch, whose z is anything
    return (-z, e - ONE) if sign > ZERO else (ZERO, e)


def loss_and_gradient(kind, score, sign):
    """The loss with code `kind` (of LOSSES, or SOFTMAX) and its derivative with respect to the score."""
    if kind == SQUARED_HINGE:
        return squared_hinge(score, sign)
    if kind == SOFTMAX:
        return softmax_term(score, sign)
    return binary_cross_entropy(score, sign)


def first_at_least(ids, low, high, wanted):
    """The first position in [low, high) of the ascending `ids` with an id >= `wanted`, else `high`.

    Positions are int64.
    """
    while low < high:
        middle = (low + high) >> 1
        if ids[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def pair_count(pairs, one, other):
    """How many points have both labels, from `PairCounts`: a binary search in the list of the smaller label."""
    wanted = max(one, other)
    stop = pairs.indptr[min(one, other) + 1]
    position = first_at_least(pairs.ids, pairs.indptr[min(one, other)], stop, wanted)
    return pairs.counts[position] if position < stop and pairs.ids[position] == wanted else NO_POINTS


def rough_probability(score):
    """A rough probability that a label is right, from its score in a linear layer: ``1 / (1 + exp(-(4 score + 0.8)))``.

    Slope and offset were tuned on validation points of four data sets, together with the weight of `rerank`.
    """
    return ONE / (ONE + math.exp(min(-(np.float32(4) * score + np.float32(0.8)), LARGEST_EXPONENT)))


def mutual_information(n_both, one, other, n_rows):
    """Smoothed pointwise mutual information of two labels: ``log((n_jl + e) / (n_j n_l / N + e))``.

    `n_both` of the `n_rows` points have both labels, `one` and `other` points have each of them.
    """
    smoothing = np.float32(0.05)
    return math.log((np.float32(n_both) + smoothing) / (np.float32(one) * np.float32(other) / n_rows + smoothing))


def updated_dual(dual, gradient, bound, slope):
    """``max(0, dual - (gradient + slope dual) / (bound + slope))``: a step of dual coordinate descent.

    `gradient` is the margin's, `bound` an upper bound of its slope in the dual; 0 if the bound is 0 or the slope of the
    penalty infinite.
    """
    if bound > ZERO and slope < INFINITE:
        return max(ZERO, dual - (gradient + slope * dual) / (bound + slope))
    return ZERO


def lstm_cell(i, f, g, previous):
    """``c_t = f c_{t-1} + i g`` from the values of the input gate, forget gate and candidate."""
    return f * previous + i * g


def lstm_output_backward(dout, dcell, o, tanh_c):
    """Backward through ``h = o tanh(c)``, o = sigmoid(z): gradients for z and, added to `dcell`, for c."""
    return dout * tanh_c * o * (ONE - o), dout * o * (ONE - tanh_c * tanh_c) + dcell


def lstm_input_backward(dcell, i, g):
    """Backward through the term ``i g`` of c, i = sigmoid(z), g = tanh(z'): gradients for z and z'."""
    return dcell * g * i * (ONE - i), dcell * i * (ONE - g * g)


def lstm_forget_backward(dcell, f, previous):
    """Backward through the term ``f c_{t-1}`` of c, f = sigmoid(z): gradients for z and c_{t-1}."""
    return dcell * previous * f * (ONE - f), dcell * f


def adam(parameter, gradient, m, v, rates):
    """One Adam step, bias corrections moved into the rates (Kingma & Ba 2015, sec. 2); returns (parameter, m, v).

    ``m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p - step_size m / (sqrt(v) + epsilon)``.
    """
    m = rates.beta1 * m + (ONE - rates.beta1) * gradient
    v = rates.beta2 * v + (ONE - rates.beta2) * gradient * gradient
    return parameter - rates.step_size * m / (math.sqrt(v) + rates.epsilon), m, v


def sgd(parameter, gradient, rates):
    """One step of gradient descent; returns the new parameter."""
    return parameter - rates.step_size * gradient


def round_bits(bits, word):
    """Round a float32 to bfloat16 stochastically: the upper 16 bits of ``bits + word`` for a random 16-bit `word`.

    With uniform words the result is right on average. All values are uint32, scalars or arrays. NaN stays NaN.
    """
    not_finite = (bits & INFINITY) == INFINITY
    quiet = (bits & FRACTION != NO_BITS) & not_finite
    return ((bits + word * (not_finite ^ True)) | (QUIET * quiet)) >> SIXTEEN


def lasso(coefficient, square, n, epsilon):
    """The factor of w in the gradient of ``coefficient sqrt(square / n + epsilon)``, where ``square = sum(w^2)``."""
    return coefficient / (n * math.sqrt(square / n + epsilon))


def beats_worst(score, i, scores, ids):
    """Whether (score, i) belongs in a list of the best: score descending, then id ascending.

    NaN always does, unless the list already ends in NaN: so NaN is never lost.
    """
    worst = scores[scores.size - 1]
    return not (score < worst or (score == worst and i > ids[scores.size - 1]) or worst != worst)


def insert(scores, ids, score, i):
    """Insert (score, i) into such a list, NaN before all numbers; the last entry is dropped."""
    slot = scores.size - 1
    while slot > 0 and (
        scores[slot - 1] < score
        or (scores[slot - 1] == score and ids[slot - 1] > i)
        or (score != score and scores[slot - 1] == scores[slot - 1])
    ):
        scores[slot] = scores[slot - 1]
        ids[slot] = ids[slot - 1]
        slot -= 1
    scores[slot] = score
    ids[slot] = i


def digit(bits, prefix, shift, n_bins):
    """The digit of a magnitude at `shift`: in [0, n_bins) if the bits above it equal `prefix`, else outside."""
    return ((bits & MAGNITUDE) >> shift) - prefix * n_bins


def is_smallest(bits, flat_index, cut):
    """Whether a slot, given the bits of its value, is among the smallest (see `Threshold`); also for arrays."""
    magnitude = bits & MAGNITUDE
    return (magnitude < cut.threshold) | ((magnitude == cut.threshold) & (flat_index <= cut.last))


def free_input(rank, used):
    """The input with number `rank` (from 0, ascending) among those not in `used`, which need not be sorted.

    It equals rank plus the number of used inputs up to itself; iterating this from below converges to the answer.
    """
    found, before = rank, rank - 1
    while found != before:
        before, found = found, rank
        for k in range(used.size):
            found += np.int64(used[k] <= before)
    return found
