"""Validation of a classifier: held-out points, and the metrics that compare epochs."""

import numpy as np
import scipy.sparse

from ..data.batches import shuffled
from ..metrics import ranking
from .classifier_inputs import checked_features
from .classifier_targets import checked_labels
from .wide_features import WideFeatures

#: Default values of k for the metrics.
KS = (1, 3, 5)
#: Number of the pseudo-epoch whose order selects the held-out rows: no run gets that far.
VALIDATION_EPOCH = 2**32 - 1


def possible_ks(n_labels, ks=KS):
    """The values of `ks` that are at most `n_labels`, or [n_labels] if there are none."""
    return [k for k in ks if k <= n_labels] or [n_labels]


def split(x, y, validation, fraction, seed):
    """The validation set, (X, y) or None, and the ids of the training rows; first checks all against each other."""
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"X and y must have the same number of rows, got {x.shape[0]} and {y.shape[0]}")
    if min(*x.shape, y.shape[1]) < 1:
        raise ValueError(f"X and y must have at least one row and column, got {x.shape} and {y.shape}")
    rows = np.arange(x.shape[0])
    if validation is not None:
        validation_x = validation[0]
        if not isinstance(validation_x, WideFeatures):
            validation_x = checked_features("validation X", validation_x)
        validation_y = checked_labels("validation y", validation[1])
        n_rows = validation_x.shape[0]
        shapes = (n_rows, x.shape[1]), (n_rows, y.shape[1])
        same_kind = type(validation_x) is type(x) or scipy.sparse.issparse(validation_x) == scipy.sparse.issparse(x)
        if (validation_x.shape, validation_y.shape) != shapes or not same_kind:
            raise ValueError(
                "validation X and y must have the columns of X and y, and the same number of rows, "
                f"got {validation_x.shape} and {validation_y.shape}"
            )
        if validation_y.nnz == 0:
            raise ValueError(f"validation must have rows with labels, got {n_rows} rows without any")
        return (validation_x, validation_y), rows
    if fraction == 0:
        return None, rows
    if len(rows) < 2:
        raise ValueError("validation_fraction needs at least two rows, got n_samples = 1")
    order = shuffled(len(rows), seed, VALIDATION_EPOCH)
    n = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    held_out, rows = np.sort(order[:n]), np.sort(order[n:])
    return (x[held_out], y[held_out]), rows


def metrics_at_k(ids, y, ks, propensity=None, excluded=None):
    """P, nDCG, R, F1 and MAP at each k of the predicted `ids` (n, k) for the labels y; with `propensity` (L,) also PSP.

    `excluded` as in `precision_at_k`. The hits are found once.
    """
    best = ranking.checked(ids, y, max(ks), excluded)
    found = {}
    for k in ks:
        at_k = best.first(k)
        found |= {f"{name}@{k}": definition(at_k) for name, definition in ranking.DEFINITIONS.items()}
        if propensity is not None:
            found[f"PSP@{k}"] = ranking.psp(at_k, propensity)
    return found
