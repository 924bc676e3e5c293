"""Multi-label losses on the CPU."""

import numpy as np
from numba import prange

from ..core import formulas
from ..core.device import cpu_formulas, njit, njit_inline, njit_parallel
from .exp import exp, polynomial

_f = cpu_formulas(formulas)
loss_and_gradient, squared_hinge = _f.loss_and_gradient, _f.squared_hinge
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
SQUARED_HINGE, SOFTMAX = formulas.SQUARED_HINGE, formulas.SOFTMAX
#: Labels per work item.
SPAN = 64
#: Coefficients of atanh(s) / s in powers of s^2, for s < 1/3 (Taylor series).
ATANH_TERMS = tuple(np.float32(1 / n) for n in (15, 13, 11, 9, 7, 5, 3, 1))


@njit_parallel
def multilabel(scores, label_rows, loss, dscores, label_loss):
    """The loss per label, averaged over the rows, and the gradient of the scores; `dscores` may be `scores`."""
    n_rows, n_labels = scores.shape
    scale = ONE / np.float32(max(n_rows, 1))
    for part in prange((n_labels + SPAN - 1) // SPAN):
        first, n = part * SPAN, min(SPAN, n_labels - part * SPAN)
        total = np.zeros(SPAN, np.float32)
        cursor = np.empty(SPAN, np.int64)
        next_row = np.full(SPAN, -1, np.int64)  # the next row that has each label
        for j in range(n):
            cursor[j] = label_rows.indptr[first + j]
            if cursor[j] < label_rows.indptr[first + j + 1]:
                next_row[j] = label_rows.rows[cursor[j]]
        for row in range(n_rows):
            hits = 0
            for j in range(n):
                sign = ONE if next_row[j] == row else -ONE
                hits += next_row[j] == row
                value, gradient = loss_and_gradient(loss, scores[row, first + j], sign)
                dscores[row, first + j] = gradient * scale
                total[j] += value * scale
            if hits:
                for j in range(n):
                    if next_row[j] == row:
                        cursor[j] += 1
                        more = cursor[j] < label_rows.indptr[first + j + 1]
                        next_row[j] = label_rows.rows[cursor[j]] if more else -1
        label_loss[first : first + n] = total[:n]


@njit_inline
def _binary_cross_entropy(score, sign):
    """The formula of ``core.formulas`` without math.exp and log1p, so that a loop over it becomes vector code."""
    z = sign * score
    a = z if z >= ZERO else -z
    e = exp(-a)
    s = e / (TWO + e)  # log(1 + e) = 2 atanh(s)
    c, square = ATANH_TERMS, s * s
    high = polynomial(square, c[0], c[1], c[2], c[3], c[4], c[5])
    log = TWO * s * ((high * square + c[6]) * square + c[7])
    wrong = (e if z >= ZERO else ONE) / (ONE + e)
    return log + (ZERO if z >= ZERO else -z), -sign * wrong


@njit(error_model="numpy")
def losses_and_slopes(loss, scores, signs, losses, slopes):
    """Losses and their derivatives with respect to the scores, for a few labels: flat loops that become vector code."""
    if loss == SQUARED_HINGE:
        for i in range(scores.size):
            losses[i], slopes[i] = squared_hinge(scores[i], signs[i])
    elif loss == SOFTMAX:  # `softmax_term` of core.formulas, without math.exp
        for i in range(scores.size):
            e, is_label = exp(scores[i]), signs[i] > ZERO
            losses[i] = -scores[i] if is_label else ZERO
            slopes[i] = e - ONE if is_label else e
    else:
        for i in range(scores.size):
            losses[i], slopes[i] = _binary_cross_entropy(scores[i], signs[i])
