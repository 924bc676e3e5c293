"""Which features a label of a linear layer is connected to: those of the largest sums over its points."""

import numpy as np

from .linear import dense_inputs


def choose_features(points, x, expected, known, room, by_magnitude, n_features):
    """For each label at most `room[label]` features that it does not know yet, those of the largest sums.

    `points`, `SparseRows`, holds for each label rows of `x` and their coefficients; ``sum_i coefficient_i x_i`` is
    compared less `expected` (F,) for each of the points, or by its magnitude. `known` is a pair (indptr, ids). Only
    features that occur count; ties go to the smaller id. Returns the ids, ascending, and the sums of each label.
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
