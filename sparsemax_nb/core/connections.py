"""The arrays of the sparse output layers, in the form that kernels take."""

from typing import NamedTuple

import numpy as np

from .device import asarray, device_of, module_of
from .sparse import Labels, sorted_keys


class Connections(NamedTuple):
    """A fixed fan-in layer: every label has its own inputs."""

    indices: np.ndarray  # (L, K) int32
    values: np.ndarray  # (L, K) float32
    bias: np.ndarray  # (L,) float32


class SharedConnections(NamedTuple):
    """A group-shared layer: labels g G ... (g + 1) G - 1 share row g of `indices`; the last group may be smaller."""

    indices: np.ndarray  # (L / G rounded up, K) int32
    values: np.ndarray  # (L, K) float32, or the bits of bfloat16 as uint16
    bias: np.ndarray  # (L,) float32
    group_size: int  # G


class FeatureLists(NamedTuple):
    """A linear layer over sparse features: list f contains the labels that feature f is connected to, ascending.

    A feature that many labels have chosen is dense: it is connected to all labels, its list is empty, and its weights
    are the L entries of `values` from ``dense[f]`` on. ``dense[f]`` is -1 for every other feature.
    """

    indptr: np.ndarray  # (F + 1,) int64
    labels: np.ndarray  # (n,) int32
    values: np.ndarray  # float32, n padded to a multiple of 16, then D dense rows of L padded likewise
    dense: np.ndarray  # (F,) int64
    bias: np.ndarray  # (L,) float32


class PairCounts(NamedTuple):
    """How often labels j < l occur in the same point: row j contains l = ``ids[i]``, ascending, with ``counts[i]``."""

    indptr: np.ndarray  # (L + 1,) int64
    ids: np.ndarray  # (n,) int32
    counts: np.ndarray  # (n,) int32
    label_counts: np.ndarray  # (L,) int32, the number of points with each label
    n_rows: np.float32  # the number of points, at least 1


class Duals(NamedTuple):
    """Dual variables (CSR): row b has ``values[j]`` for ``labels[j]``, j in ``indptr[b]:indptr[b + 1]``.

    Positive for a `SparseLinear`; for a `NeighborKernel` signed, negative where the row does not have the label.
    """

    indptr: np.ndarray  # (B + 1,) int64
    labels: np.ndarray  # (n,) int32
    values: np.ndarray  # (n,) float32


class PaddedDuals(NamedTuple):
    """Signed dual variables in lists of at most W: row i has ``values[i, j]`` for ``labels[i, j]``, j < ``count[i]``.

    Positive where the row has the label, else negative; no label twice in a list.
    """

    count: np.ndarray  # (N,) int32
    labels: np.ndarray  # (N, W) int32
    values: np.ndarray  # (N, W) float32


def positive_duals(rows, labels, values, n_rows, n_labels):
    """The `Duals` of pairs of a row and a label, (n,) each, of which those with a positive value are kept."""
    device = device_of(values)
    xp, kept = module_of(device), values > 0
    rows, labels, values = rows[kept], labels[kept], values[kept]
    order = xp.argsort(rows.astype(np.int64) * n_labels + labels)
    indptr = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(xp.bincount(rows, minlength=n_rows))])
    arrays = (indptr, np.int64), (labels[order], np.int32), (values[order], np.float32)
    return Duals(*(asarray(array, device, dtype) for array, dtype in arrays))


def known_pairs(labels, duals, n_labels):
    """(starts (L + 1,) int64, rows (n,) int32): label l has, or has a dual in, the rows ``starts[l]:starts[l + 1]``.

    The rows of a label ascend. `labels` are `Labels`, `duals` are `Duals`.
    """
    device, n_rows = device_of(labels.indptr), duals.indptr.shape[0] - 1
    xp = module_of(device)
    keys = [sorted_keys(Labels(*some), n_labels) for some in (labels, duals[:2])]
    keys = xp.unique(xp.concatenate(keys))
    starts = xp.searchsorted(keys, xp.arange(n_labels + 1) * n_rows)
    return asarray(starts, device, np.int64), asarray(keys % n_rows, device, np.int32)


def dual_diagonal(c, row_weights):
    """``1 / (2 C weight)`` of each row, (B,) float32: the slope of a dual variable's gradient in the variable itself.

    It is infinite where the weight is 0: no error of that row costs anything, and its dual variables are 0.
    """
    with np.errstate(divide="ignore", over="ignore"):
        return (1 / (2 * c * row_weights.astype(np.float64))).astype(np.float32)


def damping_factors(row_weights):
    """``1 / min(1, weight)`` of each row, (B,) float32: the factor of its damping. Finite where the weight is 0."""
    return (1 / np.clip(row_weights, np.finfo(np.float32).tiny, 1)).astype(np.float32)


class Active(NamedTuple):
    """The (row, label) pairs that a training step updates, row by row, in C chunks of rows with space for P pairs each.

    Each label belongs to one of W owners; the pairs of a row are sorted by owner.
    """

    ends: np.ndarray  # (B, W) int64, where each owner's pairs of the row end in its chunk
    labels: np.ndarray  # (C, P) int32; -1 - label if the row has the label
    duals: np.ndarray  # (C, P) float32
    losses: np.ndarray  # (C, P) float32, the squared hinge before the step


class Entries(NamedTuple):
    """The weights of the pairs in `Active`: entry e is the weight `slots[e]`, of pair `pairs[e]` of its row."""

    ends: np.ndarray  # (B, W) int64, where each owner's entries of the row end in its chunk
    slots: np.ndarray  # (C, E) int64
    pairs: np.ndarray  # (C, E) int32
    inputs: np.ndarray  # (C, E) float32, the value of the feature in the row
