"""A linear layer over sparse features, trained one label against the rest by dual coordinate descent."""

import numpy as np

from .top_k import top_k as top_k_of_scores


def dense_inputs(features, n_features):
    """`SparseRows` as a dense (B, F) float64 array."""
    rows = np.repeat(np.arange(len(features.indptr) - 1), np.diff(features.indptr))
    inputs = np.zeros((len(features.indptr) - 1, n_features))
    np.add.at(inputs, (rows, features.ids), features.weights)
    return inputs


def slots(layer):
    """(L, F) int64: the index in `values` of the weight of a label and a feature, -1 if they are not connected."""
    found = np.full((len(layer.bias), len(layer.dense)), -1)
    for feature, start in enumerate(layer.dense):
        first, last = layer.indptr[feature : feature + 2]
        found[layer.labels[first:last], feature] = np.arange(first, last)
        if start >= 0:
            found[:, feature] = start + np.arange(len(layer.bias))
    return found


def weights(layer):
    """The dense weights, (L, F) float64."""
    found = slots(layer)
    return np.where(found < 0, 0.0, np.append(layer.values, 0).astype(np.float64)[found])


def forward(features, layer):
    """``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``."""
    return layer.bias + dense_inputs(features, len(layer.dense)) @ weights(layer).T


def top_k(features, layer, k):
    """The k largest scores per row and their labels: score descending, then label ascending."""
    return top_k_of_scores(forward(features, layer), k)


def step(features, labels, duals, layer, row_weights, c, slack, *, active=None):
    """One pass of dual coordinate descent; returns the loss before it, new values (as in `layer`) and new duals (B, L).

    `labels` (bool), `duals` and `active` are (B, L). Each label visits its active rows in ascending order; inactive
    pairs are unchanged. By default, a pair is active if the row has the label, if its dual is positive, or if its
    score is above ``slack - 1`` before the step.

    With y = 1 if the row has the label, else -1, z the inputs of the row that the label is connected to, and C the
    product of `c` and the row's weight:
    ``G = y s - 1 + (0 if y > 0 else slack) + a / (2 C); a <- max(0, a - G / (|z|^2 + 1 / (2 C))); w += change y z``.
    If the weight is 0, a becomes 0. The loss of a pair is multiplied by the weight.
    """
    inputs, found = dense_inputs(features, len(layer.dense)), slots(layer)
    w, duals = weights(layer), np.array(duals, np.float64)
    loss = 0.0
    active = labels | (duals > 0) | (forward(features, layer) > slack - 1) if active is None else active
    for label in range(len(layer.bias)):
        for row in np.flatnonzero(active[:, label]):
            z = np.where(found[label] >= 0, inputs[row], 0)
            y = 1 if labels[row, label] else -1
            square, old = z @ z, duals[row, label]
            score = layer.bias[label] + w[label] @ z
            margin = y * score - 1 + (0 if y > 0 else slack)
            loss += row_weights[row] * min(0.0, margin) ** 2
            new, cost = 0.0, c * row_weights[row]
            if square > 0 and cost > 0:
                new = max(0.0, old - (margin + old / (2 * cost)) / (square + 1 / (2 * cost)))
            w[label] += (new - old) * y * z
            duals[row, label] = new
    values = np.zeros(len(layer.values))
    values[found[found >= 0]] = w[found >= 0]
    return loss, values, duals
