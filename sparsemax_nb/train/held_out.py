"""Predictions for training rows by a linear layer that had not been trained on them: what calibration is fitted to."""

from typing import NamedTuple

import numpy as np

from ..core import check
from ..data.batches import shuffled

#: Sets of fewer rows are split into FOLDS parts, each predicted by a layer that is trained on the others. As many parts
#: are predicted as it takes for MIN_ROWS rows.
SMALL_SET = 10_000
FOLDS = 5
#: Larger sets hold out this share of the rows, but at least MIN_ROWS or a tenth of all, and at most MAX_ROWS.
SHARE = 0.05
MIN_ROWS = 2000
MAX_ROWS = 10_000
#: Epochs of training before the prediction. Scores hardly change after the third one.
EPOCHS = 3


class HeldOut(NamedTuple):
    """The best labels of rows that the layer had not been trained on."""

    scores: np.ndarray  # (n, k) float32, as `Model.top_k` returns them
    ids: np.ndarray  # (n, k) int32
    n_points: np.ndarray  # (n, k) int64, the number of points with the label that the layer had been trained on
    rows: np.ndarray  # (n,) int64, row numbers in the training set


def n_late_rows(n_rows):
    """About how many rows join the training late; 0 for sets that are split into folds."""
    return 0 if n_rows < SMALL_SET else min(max(SHARE * n_rows, min(MIN_ROWS, n_rows / 10)), MAX_ROWS)


def n_late_batches(n_rows, batch_size):
    """How many batches join the training late; 0 for sets that are split into folds."""
    n = n_late_rows(n_rows)
    return max(1, round(n / batch_size)) if n else 0


def names_not_last(order, is_name, n_late):
    """The row ids `order` with the names of labels, ``is_name[id]``, moved before the last `n_late` rows."""
    late = order[~is_name[order]][-n_late:] if n_late else order[:0]
    return np.concatenate([order[~np.isin(order, late)], late])


def joining_epoch(epochs):
    """The epoch, counted from 0, at whose end late batches join, so that they take part in about half of all epochs."""
    return min(EPOCHS, (epochs + 1) // 2) - 1


def folds(n_rows):
    """Slices of the rows that are predicted by a layer trained on the other rows; none if there is only one row."""
    cuts = [n_rows * fold // FOLDS for fold in range(FOLDS + 1)] if n_rows > 1 else [0]
    slices = [slice(first, last) for first, last in zip(cuts[:-1], cuts[1:], strict=True) if first < last]
    n_enough = max(1, -(-MIN_ROWS * FOLDS // max(1, n_rows)))
    return slices[:n_enough]


def parts_of(rows, seed):
    """Disjoint parts of `rows`, each to be predicted by a model that is trained on the other rows; in random order."""
    order = rows[shuffled(len(rows), seed, 0)]
    n = round(n_late_rows(len(rows)))
    return [order[-n:]] if n else [order[fold] for fold in folds(len(rows))]


def joined(parts, k):
    """One `HeldOut` of several; empty arrays, k wide, of none."""
    nothing = HeldOut(
        np.empty((0, k), np.float32), np.empty((0, k), np.int32), np.empty((0, k), np.int64), np.empty(0, np.int64)
    )
    return HeldOut(*map(np.concatenate, zip(nothing, *parts, strict=True)))


def to_arrays(held_out):
    """The arrays that `from_arrays` reads, by name."""
    return {f"held_out/{name}": array for name, array in held_out._asdict().items()}


def from_arrays(arrays, rows, k, n_labels):
    """`HeldOut` of a checkpoint, of these rows, k wide; KeyError, TypeError or ValueError for invalid arrays."""
    read = HeldOut(**{name: arrays[f"held_out/{name}"] for name in HeldOut._fields})
    shape = len(rows), k
    check.array("held_out/scores", read.scores, np.float32, shape, finite=True)
    check.in_range("held_out/ids", check.array("held_out/ids", read.ids, np.int32, shape), n_labels)
    if check.array("held_out/n_points", read.n_points, np.int64, shape).min() < 0:
        raise ValueError(f"held_out/n_points must not be negative, got {read.n_points.min()}")
    if not np.array_equal(read.rows, rows):
        raise ValueError("held_out/rows must be the rows that join last")
    return read
