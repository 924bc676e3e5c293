"""The arrays of the sparse output layers, as kernels take them."""

from typing import NamedTuple

import numpy as np


class Connections(NamedTuple):
    """A fixed fan-in layer: every label has its own inputs."""

    indices: np.ndarray  # (L, K) int32
    values: np.ndarray  # (L, K) float32
    bias: np.ndarray  # (L,) float32


class SharedConnections(NamedTuple):
    """A group-shared layer: labels g G ... (g + 1) G - 1 have the inputs of row g; the last group may hold fewer."""

    indices: np.ndarray  # (L / G rounded up, K) int32
    values: np.ndarray  # (L, K) float32, or the bits of bfloat16 as uint16
    bias: np.ndarray  # (L,) float32
    group_size: int  # G


class FeatureLists(NamedTuple):
    """A linear layer over sparse features: list f holds the labels that feature f is connected to, ascending.

    A feature that many labels have chosen is connected to all of them: its list is empty, its weights are the L entries
    of `values` from ``dense[f]`` on, which is -1 for every other feature.
    """

    indptr: np.ndarray  # (F + 1,) int64
    labels: np.ndarray  # (n,) int32
    values: np.ndarray  # (n filled up to a multiple of 16 + D L filled up likewise,) float32
    dense: np.ndarray  # (F,) int64
    bias: np.ndarray  # (L,) float32


class PairCounts(NamedTuple):
    """How often two labels j < l are labels of one point: row j holds l = ``ids[i]`` and ``counts[i]``, l ascending."""

    indptr: np.ndarray  # (L + 1,) int64
    ids: np.ndarray  # (n,) int32
    counts: np.ndarray  # (n,) int32
    label_counts: np.ndarray  # (L,) int32, the points of each label
    n_rows: np.float32  # the number of points, at least 1


class Duals(NamedTuple):
    """Dual variables above zero, row by row: row b has that of label ``labels[j]`` for j in ``indptr[b]:indptr[b + 1]``."""

    indptr: np.ndarray  # (B + 1,) int64
    labels: np.ndarray  # (n,) int32
    values: np.ndarray  # (n,) float32


class Active(NamedTuple):
    """Pairs of a row and a label that a step looks at, row by row; C chunks of rows have room for P pairs each.

    Labels are dealt out to W owners, and the pairs of a row lie in the order of these.
    """

    ends: np.ndarray  # (B, W) int64, the end of the row's pairs of each owner in its chunk
    labels: np.ndarray  # (C, P) int32; -1 - label where it is one of the row's own
    duals: np.ndarray  # (C, P) float32
    losses: np.ndarray  # (C, P) float32, the squared hinge before the step


class Entries(NamedTuple):
    """The weights that connect those pairs: of pair `pairs`, counted from its row's first, the weight at `slots`."""

    ends: np.ndarray  # (B, W) int64, the end of the row's entries of each owner in its chunk
    slots: np.ndarray  # (C, E) int64
    pairs: np.ndarray  # (C, E) int32
    inputs: np.ndarray  # (C, E) float32, the row's weight of the feature
