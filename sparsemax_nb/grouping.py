"""The order of the labels for a `GroupSharedFanIn`: similar labels next to each other, in one group."""

from typing import Any, Literal

import numpy as np
import scipy.sparse

from .core import check, rng, sparse
from .core.annotations import SparseMatrix
from .cpu import grouping

GROUPINGS = "similar", "frequency", "random"

#: Points whose features are summed in one sparse product: limits the memory of the chunk, which may come from a file.
POINTS_PER_CHUNK = 1 << 14


def _features(features):
    """Checked features, not copied: a SciPy matrix as valid CSR, an array, or an object whose slices are rows."""
    if scipy.sparse.issparse(features):
        return sparse.valid_csr("features", features)
    if isinstance(features, (np.ndarray, list, tuple)) or not hasattr(features, "shape"):
        features = check.on_host("features", features)
        if features.ndim != 2:
            raise ValueError(f"features must have shape (n, F), got {features.shape}")
        if features.dtype.kind not in "biuf":
            raise TypeError(f"features must hold real numbers, got {features.dtype}; use features.astype(np.float32)")
    return features


def _sums(features, label_rows):
    """For each label, the sum of the features of its points: (L, F) CSR."""
    sums = scipy.sparse.csr_matrix((label_rows.shape[1], features.shape[1]), dtype=np.float32)
    for start in range(0, features.shape[0], POINTS_PER_CHUNK):
        part = scipy.sparse.csr_matrix(features[start : start + POINTS_PER_CHUNK])
        check.finite("features", part.data)
        sums = sums + (label_rows[start : start + POINTS_PER_CHUNK].T.astype(np.float32) @ part).tocsr()
    return sums


def group_labels(
    features: SparseMatrix | np.ndarray | Any,
    labels: SparseMatrix,
    group_size: int,
    by: Literal["similar", "frequency", "random"] = "similar",
    seed: int = 0,
) -> np.ndarray:
    """An order of the labels in which groups of `group_size` neighbours are similar: ``order[position]`` is a label.

    Train a `GroupSharedFanIn` on ``labels[:, order]``, and translate its predictions: ``order[ids]``.

    Parameters
    ----------
    features : (n, F) SciPy CSR matrix or dense array, in memory or memory-mapped
        Features of the training points, as the network gets them. Read in chunks of rows, and only for 'similar'.
    labels : (n, L) SciPy sparse matrix
        Labels of the training points: the entries that are not zero.
    group_size : int
        G, 1 <= G <= L. All groups are full; if L is not a multiple of G, the last one has fewer labels.
    by : 'similar', 'frequency' or 'random'
        'similar': a label is represented by the normalized sum of the features of its points. Balanced spherical
        2-means splits the labels in halves until the parts are groups. Labels without points come last. 'frequency':
        labels with the most points first. 'random': shuffled.
    seed : int
        In [0, 2^64).

    Returns
    -------
    order : (L,) int32
        A permutation of the labels.

    Raises
    ------
    TypeError, ValueError
        Invalid arguments; features and labels with different numbers of rows, or not finite.

    Notes
    -----
    Source: HASTE, arXiv 2606.01117 (compares 'similar', 'frequency' and 'random', best first); balanced 2-means over
    the features of the labels' points as in Parabel (Y. Prabhu et al., WWW 2018).

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import group_labels
    >>> features = scipy.sparse.csr_matrix(np.eye(4)[[0, 1, 0, 1]])
    >>> labels = scipy.sparse.csr_matrix(np.eye(4))
    >>> sorted(map(sorted, group_labels(features, labels, group_size=2).reshape(2, 2).tolist()))
    [[0, 2], [1, 3]]
    """
    label_rows = sparse.as_ones("labels", labels)
    n_points, n_labels = label_rows.shape
    group_size = check.integer("group_size", group_size, 1, n_labels, f" (n_labels = {n_labels})")
    check.choice("by", by, GROUPINGS)
    seed = check.integer("seed", seed, 0, 2**64 - 1)
    counts = np.bincount(label_rows.indices, minlength=n_labels)
    if by == "frequency":
        return np.argsort(-counts, kind="stable").astype(np.int32)
    if by == "random":
        with np.errstate(over="ignore"):
            position = np.arange(n_labels, dtype=np.uint64)
            words = rng.random_word(np.uint64(seed), rng.GROUPING, np.uint64(1), position)
        return np.argsort(words, kind="stable").astype(np.int32)
    features = _features(features)
    if features.shape[0] != n_points:
        raise ValueError(f"features must have as many rows as labels, {n_points}, got {features.shape[0]}")
    used, unused = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    sums = _sums(features, label_rows[:, used])
    norms = np.sqrt(np.asarray(sums.multiply(sums).sum(axis=1), np.float64)).ravel()
    sums.data /= np.repeat(np.where(norms > 0, norms, 1), np.diff(sums.indptr)).astype(sums.dtype)
    ordered = used[grouping.order(sums, group_size, seed)] if len(used) else used
    return np.concatenate([ordered, unused]).astype(np.int32)
