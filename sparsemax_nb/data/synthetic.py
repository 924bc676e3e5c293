"""Made-up data of any size."""

import math
import numbers

import numpy as np
import scipy.sparse

from ..core import check
from .readers import XCData

WORDS_PER_LABEL = 4
NOISE = 0.25
LABEL_EXPONENT = 1.0
ROUNDS = 1000
#: Of contexts in `hierarchy`: 4 TiB.
MOST_NUMBERS = 2**40


def power_law_labels(n_rows, n_labels, labels_per_row, exponent, seed):
    """Random labels, few frequent and most rare: label l is drawn with probability proportional to (l + 1)**-exponent.

    Parameters
    ----------
    n_rows, n_labels : int
    labels_per_row : int
        Every row has so many different labels, drawn one after the other without replacement.
    exponent : float
        0 makes all labels equally frequent; around 1 is usual in real data.
    seed : int

    Returns
    -------
    scipy.sparse.csr_matrix
        (n_rows, n_labels) float32 ones, ids ascending in each row.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or out of range, or labels so rare that the draws do not come to an end.

    Examples
    --------
    >>> labels = power_law_labels(1000, 50, 3, exponent=1.0, seed=0)
    >>> labels.shape, labels.nnz
    ((1000, 50), 3000)
    >>> bool(labels[:, 0].sum() > 5 * labels[:, 49].sum())
    True
    """
    _check_sizes(n_rows=n_rows, n_labels=n_labels, labels_per_row=labels_per_row)
    if isinstance(exponent, float) and not (math.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"exponent must be finite and not negative, got {exponent}")
    exponent = check.number("exponent", exponent, 0, math.inf)
    rng = _generator(seed)
    return _label_matrix(_draw_labels(n_rows, n_labels, labels_per_row, exponent, rng), n_labels)


def bag_of_words(n_rows, n_features, words_per_row, n_labels, labels_per_row, seed):
    """Made-up texts whose words tell their labels.

    Every label owns 4 words (by chance two labels may share one). A row gets its labels as in `power_law_labels` with
    exponent 1; each of its words is, 3 times in 4, one of the words of one of its labels, else any word at all.
    To train and to test, make one set and split its rows: another seed gives the labels other words.

    Parameters
    ----------
    n_rows, n_features, n_labels, labels_per_row : int
    words_per_row : int
        Words are drawn with replacement, so the counts in a row sum up to this.
    seed : int

    Returns
    -------
    XCData
        features (n_rows, n_features) hold the word counts, labels (n_rows, n_labels).

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or out of range, or labels so rare that the draws do not come to an end.

    Examples
    --------
    >>> data = bag_of_words(100, 500, words_per_row=20, n_labels=30, labels_per_row=2, seed=0)
    >>> data.features.shape, int(data.features.sum()), data.labels.nnz
    ((100, 500), 2000, 200)
    """
    _check_sizes(n_rows=n_rows, n_labels=n_labels, labels_per_row=labels_per_row)
    _check_sizes(n_rows=n_rows, n_features=n_features, words_per_row=words_per_row)
    rng = _generator(seed)
    words_of = rng.integers(n_features, size=(n_labels, WORDS_PER_LABEL))
    ids = _draw_labels(n_rows, n_labels, labels_per_row, LABEL_EXPONENT, rng)
    shape = (n_rows, words_per_row)
    label = np.take_along_axis(ids, rng.integers(labels_per_row, size=shape), axis=1)
    words = words_of[label, rng.integers(WORDS_PER_LABEL, size=shape)]
    words = np.where(rng.random(shape) < NOISE, rng.integers(n_features, size=shape), words)
    rows = np.repeat(np.arange(n_rows), words_per_row)
    ones = np.ones(words.size, np.float32)
    features = scipy.sparse.csr_matrix((ones, (rows, words.ravel())), shape=(n_rows, n_features))  # sums repeated words
    return XCData(features, _label_matrix(ids, n_labels))


def hierarchy(n_super, n_sub, n_points, width, seed):
    """Points of classes in two levels, as in the synthetic check of DS-Softmax: ``super-class + class + point`` of each row.

    Class c belongs to super-class ``c // n_sub``; only the contexts tell. Every coordinate has variance 100 over the
    means of the super-classes, 100 / 10 over the classes around them, 100 / 100 over the points around these; and
    everything is divided by 10.

    Row i is of class ``i % n_classes``: cut the rows where you like, to train and to test; both parts hold all classes.
    More points are added at the end, and do not change those before.

    Parameters
    ----------
    n_super : int
    n_sub : int
        Classes in each super-class.
    n_points : int
        Points of each class.
    width : int
    seed : int

    Returns
    -------
    contexts : (n_points n_super n_sub, width) float32
        Made in place: it takes as much memory as it has, and the means of the classes twice.
    targets : (n_points n_super n_sub,) int32

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or out of range.

    Notes
    -----
    Source: arXiv 1901.10668, its synthetic data; the division keeps scores and steps of Adam in proportion (we chose).

    Examples
    --------
    >>> contexts, targets = hierarchy(n_super=4, n_sub=3, n_points=10, width=50, seed=0)
    >>> contexts.shape, targets[:15].tolist()
    ((120, 50), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2])
    >>> distance = np.linalg.norm(contexts[0] - contexts[1:13], axis=1)
    >>> bool(distance[11] < distance[:2].min() < distance[:2].max() < distance[2:11].min())  # class, super-class, others
    True
    """
    _check_sizes(n_points, "n_points", n_super=n_super, n_sub=n_sub, width=width)
    random, n_classes = _generator(seed), n_super * n_sub
    if n_classes >= 2**31:
        raise ValueError(f"n_super n_sub must be below 2**31, got {n_super} x {n_sub}")
    check.elements(MOST_NUMBERS, n_points=n_points, n_classes=n_classes, width=width)
    means = np.float32(math.sqrt(1 / 10)) * random.standard_normal((n_super, n_sub, width), np.float32)
    means += random.standard_normal((n_super, 1, width), np.float32)
    means = means.reshape(n_classes, width)
    contexts = np.empty((n_points, n_classes, width), np.float32)
    for points in contexts:  # one of each class
        random.standard_normal(out=points, dtype=np.float32)
        points *= np.float32(1 / 10)
        points += means
    return contexts.reshape(-1, width), np.tile(np.arange(n_classes, dtype=np.int32), n_points)


def _draw_labels(n_rows, n_labels, labels_per_row, exponent, rng):
    """(n_rows, labels_per_row) ids, ascending and different in each row: repeated ones are drawn anew."""
    if labels_per_row > n_labels:
        raise ValueError(f"labels_per_row must be at most n_labels = {n_labels}, got {labels_per_row}")
    cumulated = np.cumsum(np.arange(1, n_labels + 1, dtype=np.float64) ** -exponent)

    def draw(shape):
        return np.searchsorted(cumulated[:-1], rng.random(shape) * cumulated[-1])

    ids = np.sort(draw((n_rows, labels_per_row)), axis=1)
    for _ in range(ROUNDS):
        open_rows = np.flatnonzero((ids[:, 1:] == ids[:, :-1]).any(axis=1))
        if len(open_rows) == 0:
            return ids
        again = ids[open_rows]
        repeated = again[:, 1:] == again[:, :-1]
        again[:, 1:][repeated] = draw(repeated.sum())
        ids[open_rows] = np.sort(again, axis=1)
    raise ValueError(f"found no {labels_per_row} different labels in {ROUNDS} rounds; lower labels_per_row or exponent")


def _label_matrix(ids, n_labels):
    """CSR matrix of ones from the ids of each row."""
    indptr = np.arange(len(ids) + 1) * ids.shape[1]
    ones = np.ones(ids.size, np.float32)
    return scipy.sparse.csr_matrix((ones, ids.ravel(), indptr), shape=(len(ids), n_labels))


def _check_sizes(n_rows, rows="n_rows", **sizes):
    """ValueError for what is no integer, below 0 (`n_rows`, which the message calls `rows`) or below 1 (everything else)."""
    for name, size, low in [(rows, n_rows, 0), *((name, size, 1) for name, size in sizes.items())]:
        if isinstance(size, (bool, np.bool_)) or not isinstance(size, numbers.Integral) or size < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {check.shown(size)}")
        check.integer(name, int(size), low, 2**31 - 1)
    for name in sizes.keys() & {"labels_per_row", "words_per_row"}:
        check.elements(**{rows: n_rows, name: sizes[name]})


def _generator(seed):
    return np.random.default_rng(check.integer("seed", seed, 0, 2**64 - 1))
