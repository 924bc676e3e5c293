"""Formulas written once and compiled for both processors: losses, LSTM cell, their derivatives, optimisers, lists.

Undecorated on purpose (``core.device`` compiles them). Constants are ``np.float32``: a literal ``1.0`` would turn
float32 into float64 in compiled code.
"""

import math
from typing import NamedTuple

import numpy as np

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
#: No point has both labels.
NEVER = np.int32(0)

#: Of the bits of a float32: exponent, fraction, and what makes a NaN quiet.
INFINITY, FRACTION, QUIET = np.uint32(0x7F800000), np.uint32(0x7FFFFF), np.uint32(0x400000)
NOTHING, SIXTEEN = np.uint32(0), np.uint32(16)

#: Codes of the multi-label losses, as kernels take them.
LOSSES = {"squared-hinge": 0, "bce": 1}
SQUARED_HINGE = 0

#: Codes of the optimisers, as kernels take them.
SGD_KIND, ADAM_KIND = 0, 1

#: All bits of a float32 but its sign: ``bits & MAGNITUDE`` is an integer that grows with |value|.
MAGNITUDE = np.int32(0x7FFFFFFF)


class Rates(NamedTuple):
    """What an update needs beside the arrays (float32): bias-corrected step size, decay rates, bias-corrected epsilon."""

    step_size: np.float32
    beta1: np.float32
    beta2: np.float32
    epsilon: np.float32


class Moments(NamedTuple):
    """First and second moment of a parameter, shaped like it (of size 0 for SGD)."""

    m: np.ndarray
    v: np.ndarray


class Threshold(NamedTuple):
    """Which slots are the smallest: magnitude below `threshold`, or equal to it and flat index up to `last`."""

    threshold: np.int64
    last: np.int64


def squared_hinge(score, sign):
    """``max(0, 1 - y s)^2`` and its derivative by s, for y = `sign` = +1 or -1. Exactly 0 once y s >= 1."""
    margin = ONE - sign * score
    margin = ZERO if margin <= ZERO else margin  # not max(): NaN must come through
    return margin * margin, -TWO * sign * margin


def binary_cross_entropy(score, sign):
    """``log(1 + exp(-y s))`` and its derivative by s, for y = `sign` = +1 or -1; never overflows."""
    e = math.exp(-abs(score))
    loss = math.log1p(e) + max(ZERO, -sign * score)
    small, large = e / (ONE + e), ONE / (ONE + e)
    wrong = small if sign * score >= ZERO else large
    return loss, -sign * wrong


def loss_and_gradient(kind, score, sign):
    """The loss with code `kind` (see LOSSES) and its derivative by the score."""
    if kind == SQUARED_HINGE:
        return squared_hinge(score, sign)
    return binary_cross_entropy(score, sign)


def first_at_least(ids, low, high, wanted):
    """The first of the positions `low` to `high` - 1 of ascending ids that holds `wanted` or more, else `high`; int64 positions."""
    while low < high:
        middle = (low + high) >> 1
        if ids[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def together(pairs, one, other):
    """How many points have both labels, of `PairCounts`: a search in the list of the smaller one."""
    wanted = max(one, other)
    stop = pairs.indptr[min(one, other) + 1]
    at = first_at_least(pairs.ids, pairs.indptr[min(one, other)], stop, wanted)
    return pairs.counts[at] if at < stop and pairs.ids[at] == wanted else NEVER


def rough_probability(score):
    """That a label is right, guessed from its score in a linear layer: ``1 / (1 + exp(-(4 score + 0.8)))``.

    Slope and offset were found on points held back from four data sets, together with the weight of `rerank`.
    """
    return ONE / (ONE + math.exp(-(np.float32(4) * score + np.float32(0.8))))


def mutual_information(together, one, other, n_rows):
    """Of two labels with `one` and `other` of `n_rows` points, pointwise, smoothed: ``log((n_jl + e) / (n_j n_l / N + e))``."""
    smoothing = np.float32(0.05)
    return math.log((np.float32(together) + smoothing) / (np.float32(one) * np.float32(other) / n_rows + smoothing))


def lstm_cell(i, f, g, previous):
    """``c_t = f c_{t-1} + i g``, for the values of the input gate, forget gate and candidate."""
    return f * previous + i * g


def lstm_output_backward(dout, dcell, o, tanh_c):
    """Through ``h = o tanh(c)``, o = sigmoid(z): gradients by z and c, the latter added to `dcell` from elsewhere."""
    return dout * tanh_c * o * (ONE - o), dout * o * (ONE - tanh_c * tanh_c) + dcell


def lstm_input_backward(dcell, i, g):
    """Through the term ``i g`` of c, i = sigmoid(z) and g = tanh(z'): gradients by z and z'."""
    return dcell * g * i * (ONE - i), dcell * i * (ONE - g * g)


def lstm_forget_backward(dcell, f, previous):
    """Through the term ``f c_{t-1}`` of c, f = sigmoid(z): gradients by z and by c_{t-1}."""
    return dcell * previous * f * (ONE - f), dcell * f


def adam(parameter, gradient, m, v, rates):
    """One Adam step: new (parameter, m, v). With the bias corrections moved into the rates (Kingma & Ba 2015, sec. 2):

    ``m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p - step_size m / (sqrt(v) + epsilon)``.
    """
    m = rates.beta1 * m + (ONE - rates.beta1) * gradient
    v = rates.beta2 * v + (ONE - rates.beta2) * gradient * gradient
    return parameter - rates.step_size * m / (math.sqrt(v) + rates.epsilon), m, v


def sgd(parameter, gradient, rates):
    """One step of gradient descent: the new parameter."""
    return parameter - rates.step_size * gradient


def round_bits(bits, word):
    """The upper 16 bits of a float32's `bits`, rounded up with the probability that the rest lies above a 16-bit `word`.

    So a bfloat16 that is right on average. All are uint32; works on arrays, too. NaN stays NaN.
    """
    not_finite = (bits & INFINITY) == INFINITY
    quiet = (bits & FRACTION != NOTHING) & not_finite
    return ((bits + word * (not_finite ^ True)) | (QUIET * quiet)) >> SIXTEEN


def lasso(coefficient, square, n, epsilon):
    """The factor of w in the gradient of ``coefficient sqrt(sum(w^2) / n + epsilon)``, `square` being the sum of w^2."""
    return coefficient / (n * math.sqrt(square / n + epsilon))


def enters(score, i, scores, ids):
    """Does (score, i) belong into a list of the best, score descending, then id ascending?

    NaN always does, and a list that ends in NaN is closed: so NaN is never lost.
    """
    worst = scores[scores.size - 1]
    return not (score < worst or (score == worst and i > ids[scores.size - 1]) or worst != worst)


def insert(scores, ids, score, i):
    """Insert (score, i) into such a list, NaN before all numbers; the last entry falls out."""
    place = scores.size - 1
    while place > 0 and (
        scores[place - 1] < score
        or (scores[place - 1] == score and ids[place - 1] > i)
        or (score != score and scores[place - 1] == scores[place - 1])
    ):
        scores[place] = scores[place - 1]
        ids[place] = ids[place - 1]
        place -= 1
    scores[place] = score
    ids[place] = i


def digit(bits, prefix, shift, n_bins):
    """The digit of a magnitude at `shift`, in [0, n_bins) where the bits above it equal `prefix`, else outside."""
    return ((bits & MAGNITUDE) >> shift) - prefix * n_bins


def is_smallest(bits, flat_index, cut):
    """Is a slot, by the bits of its value, among the smallest (see `Threshold`)? Without branches; also for arrays."""
    magnitude = bits & MAGNITUDE
    return (magnitude < cut.threshold) | ((magnitude == cut.threshold) & (flat_index <= cut.last))


def free_input(rank, used):
    """The input number `rank` (from 0, ascending) of those that are not in `used`, which need not be sorted.

    It is rank + the number of used inputs up to itself: iterated from below, that settles on the answer.
    """
    found, before = rank, rank - 1
    while found != before:
        before, found = found, rank
        for k in range(used.size):
            found += np.int64(used[k] <= before)
    return found
