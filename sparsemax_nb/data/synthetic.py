"""Synthetic data of any size."""

import math
import numbers

import numpy as np
import scipy.sparse

from ..core import check
from .readers import XCData

#: Parameters of `bag_of_words`: words per label, share of unrelated words, exponent of the label frequencies.
WORDS_PER_LABEL = 4
NOISE = 0.25
LABEL_EXPONENT = 1.0
#: Maximum number of times that duplicate labels of a row are redrawn, before the labels count as too rare.
MAX_ROUNDS = 1000
#: Maximum number of elements of h in `hierarchy`: 4 TiB.
MAX_ELEMENTS = 2**40


def power_law_labels(n_rows, n_labels, labels_per_row, exponent, seed):
    """Draw random labels with a power law: label l has a probability proportional to ``(l + 1)**-exponent``.

    Parameters
    ----------
    n_rows, n_labels : int
    labels_per_row : int
        Number of different labels in every row, drawn one after the other without replacement.
    exponent : float
        0 makes all labels equally frequent; real data have about 1.
    seed : int

    Returns
    -------
    scipy.sparse.csr_matrix
        (n_rows, n_labels) float32 ones, with sorted indices.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or out of range; labels so rare that no different ones are found.

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
    """Generate synthetic bags of words that depend on their labels.

    Every label has 4 words; labels may share words by chance. Labels are drawn as in `power_law_labels` with exponent
    1. With probability 3/4, a word of a row is one of the words of its labels, otherwise any word. For training and
    testing, generate one data set and split its rows: another seed gives the labels other words.

    Parameters
    ----------
    n_rows, n_features, n_labels, labels_per_row : int
    words_per_row : int
        Words are drawn with replacement: the counts of each row add up to this number.
    seed : int

    Returns
    -------
    XCData
        Word counts as features (n_rows, n_features), and labels (n_rows, n_labels).

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or out of range; labels so rare that no different ones are found.

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
    """Generate points of a two-level hierarchy of classes: each row is ``super-class + class + noise``.

    Class c belongs to super-class ``c // n_sub``; the targets do not reveal it. In every coordinate, the means of the
    super-classes have variance 100, the classes around them variance 100 / 10, and the points around these variance
    100 / 100; everything is then divided by 10.

    Row i is of class ``i % n_classes``, so you can split the rows anywhere into training and test data: both have all
    classes. A larger n_points appends rows and does not change the others.

    Parameters
    ----------
    n_super : int
    n_sub : int
        Classes per super-class.
    n_points : int
        Points per class.
    width : int
    seed : int

    Returns
    -------
    h : (n_points n_super n_sub, width) float32
        Generated in place: the peak memory is this array plus twice the means of the classes.
    targets : (n_points n_super n_sub,) int32

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or out of range.

    Notes
    -----
    Source: arXiv 1901.10668, its synthetic data. The division by 10 is our choice: it suits the step size of Adam.

    Examples
    --------
    >>> h, targets = hierarchy(n_super=4, n_sub=3, n_points=10, width=50, seed=0)
    >>> h.shape, targets[:15].tolist()
    ((120, 50), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2])
    >>> distance = np.linalg.norm(h[0] - h[1:13], axis=1)
    >>> bool(distance[11] < distance[:2].min() < distance[:2].max() < distance[2:11].min())  # class, super-class, rest
    True
    """
    _check_sizes(n_points, "n_points", n_super=n_super, n_sub=n_sub, width=width)
    random, n_classes = _generator(seed), n_super * n_sub
    if n_classes >= 2**31:
        raise ValueError(f"n_super * n_sub must be below 2**31, got {n_super} x {n_sub}")
    check.array_size(MAX_ELEMENTS, n_points=n_points, n_classes=n_classes, width=width)
    means = np.float32(math.sqrt(1 / 10)) * random.standard_normal((n_super, n_sub, width), np.float32)
    means += random.standard_normal((n_super, 1, width), np.float32)
    means = means.reshape(n_classes, width)
    h = np.empty((n_points, n_classes, width), np.float32)
    for points in h:  # one of each class
        random.standard_normal(out=points, dtype=np.float32)
        points *= np.float32(1 / 10)
        points += means
    return h.reshape(-1, width), np.tile(np.arange(n_classes, dtype=np.int32), n_points)


def _draw_labels(n_rows, n_labels, labels_per_row, exponent, rng):
    """(n_rows, labels_per_row) ids, ascending and different in each row; duplicates are redrawn."""
    if labels_per_row > n_labels:
        raise ValueError(f"labels_per_row must be at most n_labels = {n_labels}, got {labels_per_row}")
    cumulative = np.cumsum(np.arange(1, n_labels + 1, dtype=np.float64) ** -exponent)

    def draw(shape):
        return np.searchsorted(cumulative[:-1], rng.random(shape) * cumulative[-1])

    ids = np.sort(draw((n_rows, labels_per_row)), axis=1)
    for _ in range(MAX_ROUNDS):
        rows = np.flatnonzero((ids[:, 1:] == ids[:, :-1]).any(axis=1))
        if len(rows) == 0:
            return ids
        redrawn = ids[rows]
        is_duplicate = redrawn[:, 1:] == redrawn[:, :-1]
        redrawn[:, 1:][is_duplicate] = draw(is_duplicate.sum())
        ids[rows] = np.sort(redrawn, axis=1)
    raise ValueError(
        f"found no {labels_per_row} different labels in {MAX_ROUNDS} rounds; lower labels_per_row or exponent"
    )


def _label_matrix(ids, n_labels):
    """CSR matrix of ones at the ids of each row."""
    indptr = np.arange(len(ids) + 1) * ids.shape[1]
    ones = np.ones(ids.size, np.float32)
    return scipy.sparse.csr_matrix((ones, ids.ravel(), indptr), shape=(len(ids), n_labels))


def _check_sizes(n_rows, rows="n_rows", **sizes):
    """ValueError for sizes that are not integers, `n_rows` below 0 (named `rows` in the message), or others below 1."""
    for name, size, low in [(rows, n_rows, 0), *((name, size, 1) for name, size in sizes.items())]:
        if isinstance(size, (bool, np.bool_)) or not isinstance(size, numbers.Integral) or size < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {check.shown(size)}")
        check.integer(name, int(size), low, 2**31 - 1)
    for name in sizes.keys() & {"labels_per_row", "words_per_row"}:
        check.array_size(**{rows: n_rows, name: sizes[name]})


def _generator(seed):
    return np.random.default_rng(check.integer("seed", seed, 0, 2**64 - 1))
