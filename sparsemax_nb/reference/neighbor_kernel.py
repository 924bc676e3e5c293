"""A kernel machine whose kernel is cut off after the nearest neighbors, trained one label against the rest."""

import numpy as np

from ..core.connections import PaddedDuals
from .top_k import top_k

#: The bias before training.
BIAS = -1.0


def nearest(h, points, k):
    """The k largest inner products of each row of h with the points, and the points: product descending, then id."""
    return top_k(h.astype(np.float64) @ points.T.astype(np.float64), k)


def kernel(similarities, power):
    """``max(0, similarities) ** power``."""
    return np.maximum(similarities, 0.0) ** power


def dense(duals, n_labels):
    """Signed duals, `Duals` or `PaddedDuals`, as a dense (N, L) float64 array."""
    if isinstance(duals, PaddedDuals):
        stored = np.arange(duals.labels.shape[1]) < duals.count[:, None]
        rows, labels, values = np.nonzero(stored)[0], duals.labels[stored], duals.values[stored]
    else:
        rows, labels, values = np.repeat(np.arange(len(duals.indptr) - 1), np.diff(duals.indptr)), *duals[1:]
    signed = np.zeros((len(duals[0]) - (not isinstance(duals, PaddedDuals)), n_labels))
    np.add.at(signed, (rows, labels), values)
    return signed


def forward(neighbors, kernels, duals, bias):
    """``scores[b, l] = bias[l] + sum_m kernels[b, m] duals[neighbors[b, m], l]``; an id of -1 is no neighbor."""
    signed, kernels = dense(duals, len(bias)), np.where(neighbors >= 0, kernels, 0.0)
    return bias + np.einsum("bm,bml->bl", kernels, signed[neighbors])


def step(rows, neighbors, kernels, labels, row_weights, c, slack, n_labels, duals):
    """Move the duals of all `rows` at once, by the scores before; returns the loss of each row and new `PaddedDuals`.

    With y = 1 if a row has the label, else -1, a = y times its signed dual, C the product of `c` and the row's weight:
    ``G = y s - 1 + (0 if y > 0 else slack) + D a; a <- max(0, a - G / (S + D))``, where S is the sum of the kernels
    between the row and the rows of the batch among its neighbors, itself included, and ``D = 1 / (2 C) + sqrt(2 sum_j
    k_ij^2) / min(1, weight)`` over the row's other neighbors j. Only labels that are the row's own, whose dual is
    positive or whose score is above ``slack - 1`` change. If the weight or the kernel of the row with itself is 0, a
    becomes 0. The loss of a label is ``max(0, its violation of the margin)^2``.

    A list has the row's own labels first, then those that were in it, then those of its neighbors with a positive
    kernel, one after another; what does not fit is dropped.
    """
    signed, width = dense(duals, n_labels), duals.labels.shape[1]
    losses, new = np.zeros(len(rows)), PaddedDuals(*(a.copy() for a in duals))
    for b, i in enumerate(rows):
        found = (neighbors[i] >= 0) & (kernels[i] > 0)
        near, k = neighbors[i][found], kernels[i][found].astype(np.float64)
        own = labels.indices[labels.indptr[b] : labels.indptr[b + 1]]
        scores, y = BIAS + k @ signed[near], np.full(n_labels, -1.0)
        y[own] = 1
        old, margins = np.maximum(0, y * signed[i]), y * scores - 1 + np.where(y > 0, 0, slack)
        active = (y > 0) | (old > 0) | (scores > slack - 1)
        losses[b] = (np.minimum(0, margins[active]) ** 2).sum()
        a, cost = np.zeros(n_labels), c * row_weights[b]
        if k[near == i].sum() > 0 and cost > 0:
            damping = np.sqrt(2 * (k[near != i] ** 2).sum()) / min(1, row_weights[b])
            bound, slope = k[np.isin(near, rows)].sum(), 1 / (2 * cost) + damping
            a[active] = np.maximum(0, old - (margins + slope * old) / (bound + slope))[active]
        lists = [duals.labels[j, : duals.count[j]] for j in (i, *near)]
        kept = [label for label in dict.fromkeys(np.concatenate([own, *lists]).tolist()) if a[label] > 0][:width]
        new.count[i], new.labels[i, : len(kept)], new.values[i, : len(kept)] = len(kept), kept, (a * y)[kept]
    return losses, new
