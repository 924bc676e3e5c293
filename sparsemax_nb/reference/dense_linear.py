"""A linear layer over dense features, trained one label against the rest by dual coordinate descent."""

import numpy as np


def step(h, labels, duals, weights, bias, row_weights, c, slack, search=True, *, active=None):
    """One pass of dual coordinate descent; returns the loss before it, the new weights (L, d) and the new duals (B, L).

    `labels` (bool), `duals` and `active` are (B, L). Each label visits its active rows in ascending order; inactive
    pairs are unchanged. By default, a pair is active if the row has the label, if its dual is positive, or, with
    `search`, if its score is above ``slack - 1`` before the step.

    With y = 1 if the row has the label, else -1, and C the product of `c` and the row's weight:
    ``G = y s - 1 + (0 if y > 0 else slack) + a / (2 C); a <- max(0, a - G / (|h|^2 + 1 / (2 C))); w += change y h``.
    If the weight is 0, a becomes 0. The loss of a pair is multiplied by the weight.
    """
    h, w, duals = (np.array(a, np.float64) for a in (h, weights, duals))
    loss = 0.0
    if active is None:
        active = labels | (duals > 0)
        if search:
            active |= h @ w.T + bias > slack - 1
    for label in range(len(w)):
        for row in np.flatnonzero(active[:, label]):
            y = 1 if labels[row, label] else -1
            square, old = h[row] @ h[row], duals[row, label]
            margin = y * (bias[label] + w[label] @ h[row]) - 1 + (0 if y > 0 else slack)
            loss += row_weights[row] * min(0.0, margin) ** 2
            new, cost = 0.0, c * row_weights[row]
            if square > 0 and cost > 0:
                new = max(0.0, old - (margin + old / (2 * cost)) / (square + 1 / (2 * cost)))
            w[label] += (new - old) * y * h[row]
            duals[row, label] = new
    return loss, w, duals
