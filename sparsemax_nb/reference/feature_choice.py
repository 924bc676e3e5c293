"""Choose the features that a label of a linear layer is connected to: those with the largest sums over its points."""

import numpy as np

from .linear import dense_inputs


def choose_features(points, x, expected, known, room, by_magnitude, n_features):
    """For each label, at most `room[label]` new features, those with the largest sums.

    `points` (`SparseRows`) contains for each label rows of `x` and their coefficients. A feature is ranked by ``sum_i
    coefficient_i x_i`` minus `expected` (F,) per point, or by the magnitude of the sum. `known`, a pair (indptr, ids),
    are the features that each label has already. Only features that occur count; ties go to the smaller id. Returns
    the ids, ascending, and the sums of each label.
    """
    inputs, chosen = dense_inputs(x, n_features), []
    for label in range(len(points.indptr) - 1):
        rows = slice(*points.indptr[label : label + 2])
        part = inputs[points.ids[rows]]
        sums = points.weights[rows].astype(np.float64) @ part
        occurs = (part != 0).any(0)
        occurs[known[1][slice(*known[0][label : label + 2])]] = False
        measure = np.abs(sums) if by_magnitude else sums - len(part) * np.asarray(expected, np.float64)
        ids = np.flatnonzero(occurs)
        ids = np.sort(ids[np.argsort(-measure[ids], kind="stable")][: room[label]])
        chosen.append((ids, sums[ids]))
    return chosen
