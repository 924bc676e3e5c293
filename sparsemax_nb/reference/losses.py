"""Multi-label losses over a score matrix."""

import numpy as np

from ..core import formulas


def signs(label_rows, shape):
    """(B, L): +1 for the labels of each row, else -1."""
    y = -np.ones(shape)
    label = np.repeat(np.arange(shape[1]), np.diff(label_rows.indptr))
    y[label_rows.rows, label] = 1
    return y


def multilabel(scores, label_rows, loss):
    """The loss per label, averaged over the B rows, (L,), and its gradient with respect to the scores, (B, L).

    Squared hinge: ``max(0, 1 - y s)^2``; binary cross-entropy: ``log(1 + exp(-y s))``; y = +1 or -1. Softmax, for
    scores that are shifted as in `StepLoss`: ``-s`` for y = +1, else 0, with the gradient ``exp(s) - [y = 1]``.
    """
    y, n_rows = signs(label_rows, scores.shape), max(len(scores), 1)
    if loss == formulas.SQUARED_HINGE:
        margin = np.maximum(0, 1 - y * scores)
        value, gradient = margin**2, -2 * y * margin
    elif loss == formulas.SOFTMAX:
        value, gradient = -scores * (y > 0), np.exp(scores) - (y > 0)
    else:
        value, gradient = np.logaddexp(0, -y * scores), -y / (1 + np.exp(y * scores))
    return value.sum(0) / n_rows, gradient / n_rows
