"""Validation: the points set aside, and the figures by which epochs are compared."""

import numpy as np
import scipy.sparse

from .. import metrics
from ..data.batches import shuffled
from .classifier_inputs import checked_features, checked_labels

KS = (1, 3, 5)
#: The "epoch" whose order chooses the rows set aside: no run gets that far.
VALIDATION_EPOCH = 2**32 - 1


def possible_ks(n_labels, ks=KS):
    """Those of `ks` that there are enough labels for."""
    return [k for k in ks if k <= n_labels] or [n_labels]


def split(x, y, validation, fraction, seed):
    """(X, y, (X, y) of the validation or None, ids of the rows to train on), checked against each other."""
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"X and y must have as many rows as each other, got {x.shape[0]} and {y.shape[0]}")
    if min(*x.shape, y.shape[1]) < 1:
        raise ValueError(f"X and y must have at least one row and column, got {x.shape} and {y.shape}")
    rows = np.arange(x.shape[0])
    if validation is not None:
        other_x, other_y = (
            checked_features("validation X", validation[0]),
            checked_labels("validation y", validation[1]),
        )
        shapes = (other_x.shape[0], x.shape[1]), (other_x.shape[0], y.shape[1])
        if (other_x.shape, other_y.shape) != shapes or scipy.sparse.issparse(other_x) != scipy.sparse.issparse(x):
            raise ValueError(
                f"validation must have the columns of X and y and equally many rows, got {other_x.shape} and {other_y.shape}"
            )
        if other_y.nnz == 0:
            raise ValueError(f"validation must have rows with labels, got {other_y.shape[0]} rows without any")
        return x, y, (other_x, other_y), rows
    if fraction == 0:
        return x, y, None, rows
    order = shuffled(len(rows), seed, VALIDATION_EPOCH)
    n = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    aside, rows = np.sort(order[:n]), np.sort(order[n:])
    if n < 1:
        raise ValueError("validation_fraction needs at least two rows")
    return x, y, (x[aside], y[aside]), rows


def figures(ids, y, ks, propensity=None):
    """P, nDCG and R at each k of the predicted `ids` (n, k) against the labels y, and PSP with a `propensity` (L,)."""
    found = {}
    for k in ks:
        found |= {
            f"P@{k}": metrics.precision_at_k(ids, y, k),
            f"nDCG@{k}": metrics.ndcg_at_k(ids, y, k),
            f"R@{k}": metrics.recall_at_k(ids, y, k),
        }
        if propensity is not None:
            found[f"PSP@{k}"] = metrics.psp_at_k(ids, y, propensity, k)
    return found
