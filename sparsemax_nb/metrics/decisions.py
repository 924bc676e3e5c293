"""Metrics of predicted sets of labels, and the counts of each label."""

import numpy as np

from ..core.annotations import SparseMatrix
from ..core.sparse import as_ones
from .ranking import checked, mean, ratio


def _checked_sets(predicted, labels):
    """Canonical CSR of the predicted labels, of the true labels and of the labels in both; shapes must match."""
    predicted, truth = as_ones("predicted", predicted), as_ones("labels", labels)
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted must have shape {truth.shape} like labels, got {predicted.shape}")
    return predicted, truth, predicted.multiply(truth).tocsr()


def _counts_by_label(n_labels, *ids):
    """The labels that occur in any of several lists of ids, ascending, and how often each occurs in each list."""
    counts = [np.bincount(i, minlength=n_labels) for i in ids]
    found = np.flatnonzero(sum(counts))
    return found, *(c[found] for c in counts)


def _macro_f1(n_labels, predicted, true, hits):
    _, n_predicted, n_true, n_hits = _counts_by_label(n_labels, predicted, true, hits)
    return mean(ratio(2 * n_hits, n_predicted + n_true))


def _ids_at_k(ranking):
    """The number of labels, and the ids predicted, true and in both, of all rows in one list each."""
    ids = ranking.ids
    return ranking.truth.shape[1], ids[ids >= 0], ranking.truth.indices, ids[ranking.hits]


def sample_f1(predicted: SparseMatrix, labels: SparseMatrix) -> float:
    """F1 by row: ``mean over rows of 2 |{predicted} and {true}| / (|{predicted}| + |{true}|)``.

    Parameters
    ----------
    predicted : SciPy sparse (n, L)
        Predicted labels: the entries that are not zero.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.

    Returns
    -------
    f1 : float
        In [0, 1]; 0 for no rows. Rows without predicted and true labels count as 0.

    Raises
    ------
    TypeError, ValueError
        Not SciPy sparse matrices; different shapes; NaN.

    Notes
    -----
    Source: the definition; ``f1_score(average='samples', zero_division=0)`` of scikit-learn.

    Examples
    --------
    >>> import scipy.sparse
    >>> from sparsemax_nb.metrics import sample_f1
    >>> predicted = scipy.sparse.csr_matrix([[1, 1, 0], [0, 1, 0]])
    >>> labels = scipy.sparse.csr_matrix([[1, 0, 0], [0, 1, 0]])
    >>> sample_f1(predicted, labels)  # 2/3 and 1
    0.8333333333333333
    """
    predicted, truth, both = _checked_sets(predicted, labels)
    return mean(ratio(2 * np.diff(both.indptr), np.diff(predicted.indptr) + np.diff(truth.indptr)))


def micro_f1(predicted: SparseMatrix, labels: SparseMatrix) -> float:
    """F1 over all pairs of row and label: ``2 |predicted and true| / (|predicted| + |true|)``.

    Parameters
    ----------
    predicted : SciPy sparse (n, L)
        Predicted labels: the entries that are not zero.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.

    Returns
    -------
    f1 : float
        In [0, 1]; 0 if there are no predicted and no true labels.

    Raises
    ------
    TypeError, ValueError
        Not SciPy sparse matrices; different shapes; NaN.

    Notes
    -----
    Source: the definition; ``f1_score(average='micro', zero_division=0)`` of scikit-learn.

    Examples
    --------
    >>> import scipy.sparse
    >>> from sparsemax_nb.metrics import micro_f1
    >>> predicted = scipy.sparse.csr_matrix([[1, 1, 0], [0, 1, 0]])
    >>> labels = scipy.sparse.csr_matrix([[1, 0, 0], [0, 1, 0]])
    >>> micro_f1(predicted, labels)  # 2 * 2 / (3 + 2)
    0.8
    """
    predicted, truth, both = _checked_sets(predicted, labels)
    n = predicted.nnz + truth.nnz
    return 2 * both.nnz / n if n else 0.0


def macro_f1(predicted: SparseMatrix, labels: SparseMatrix) -> float:
    """F1 by label, averaged over the labels that occur in `labels` or in `predicted`.

    Parameters
    ----------
    predicted : SciPy sparse (n, L)
        Predicted labels: the entries that are not zero.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.

    Returns
    -------
    f1 : float
        In [0, 1]; 0 if there are no such labels. Rare labels count as much as frequent ones.

    Raises
    ------
    TypeError, ValueError
        Not SciPy sparse matrices; different shapes; NaN.

    Notes
    -----
    ``F1[l] = 2 |rows with l predicted and true| / (|rows with l predicted| + |rows with l true|)``. A label that is
    neither predicted nor true in any row has no F1 and is left out.

    Source: the definition; ``f1_score(average='macro', labels=those, zero_division=0)`` of scikit-learn.

    Examples
    --------
    >>> import scipy.sparse
    >>> from sparsemax_nb.metrics import macro_f1
    >>> predicted = scipy.sparse.csr_matrix([[1, 1, 0], [0, 1, 0]])
    >>> labels = scipy.sparse.csr_matrix([[1, 0, 0], [0, 1, 0]])
    >>> macro_f1(predicted, labels)  # 1 and 2/3
    0.8333333333333333
    """
    predicted, truth, both = _checked_sets(predicted, labels)
    return _macro_f1(truth.shape[1], predicted.indices, truth.indices, both.indices)


def macro_f1_at_k(ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None) -> float:
    """F1 by label of the k best labels, averaged over the labels that occur in `labels` or among the k best of a row.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 is no prediction.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.
    k : int
        At most the width of ids.
    excluded : SciPy sparse (n, L), optional
        Pairs of row and label that are not evaluated, such as the filter files of the Extreme Classification
        Repository. They are removed from ids, where the following labels move up, and from labels. Pass ids with more
        than k columns: what is missing then counts as -1.

    Returns
    -------
    f1 : float
        In [0, 1]; 0 if there are no such labels. Rare labels count as much as frequent ones.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: as for `macro_f1`, with the k best labels as the predicted set.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import macro_f1_at_k
    >>> labels = scipy.sparse.csr_matrix([[1, 0, 0], [0, 1, 0]])
    >>> macro_f1_at_k(np.array([[0, 1], [1, -1]], np.int32), labels, k=2)  # 1 and 2/3
    0.8333333333333333
    """
    return _macro_f1(*_ids_at_k(checked(ids, labels, k, excluded)))


def per_label(
    ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each label that occurs in `labels` or among the k best labels of a row.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 is no prediction.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.
    k : int
        At most the width of ids.
    excluded : SciPy sparse (n, L), optional
        Pairs of row and label that are not evaluated, such as the filter files of the Extreme Classification
        Repository. They are removed from ids, where the following labels move up, and from labels. Pass ids with more
        than k columns: what is missing then counts as -1.

    Returns
    -------
    table : dict of arrays (m,)
        'label': the ids, ascending; 'support': the number of rows in which the label is true; 'predicted': in which it
        is among the k best; 'hits': in which it is both (int64). 'precision' = hits / predicted, 'recall' = hits /
        support, 0 for a divisor of 0, and 'f1' = 2 hits / (predicted + support) (float64). The mean of 'f1' is
        `macro_f1_at_k`.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: the definitions.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import per_label
    >>> labels = scipy.sparse.csr_matrix([[1, 0, 0, 0], [0, 0, 1, 1]])
    >>> table = per_label(np.array([[0, 2], [2, -1]], np.int32), labels, k=2)
    >>> for name, values in table.items():
    ...     print(name, values.round(2))
    label [0 2 3]
    support [1 1 1]
    predicted [1 2 0]
    hits [1 1 0]
    precision [1.  0.5 0. ]
    recall [1. 1. 0.]
    f1 [1.   0.67 0.  ]
    """
    found, predicted, support, hits = _counts_by_label(*_ids_at_k(checked(ids, labels, k, excluded)))
    return {
        "label": found,
        "support": support,
        "predicted": predicted,
        "hits": hits,
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, predicted + support),
    }
