"""Ranking metrics of multi-label prediction: the k best labels of each row against its true labels."""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from ..core import check
from ..core.annotations import Array, SparseMatrix
from ..core.sparse import as_ones


class Ranking(NamedTuple):
    """The k best predicted labels of each row, whether each is right, and the true labels."""

    ids: np.ndarray  # (n, k) int32; -1 where there is none
    hits: np.ndarray  # (n, k) bool
    truth: scipy.sparse.csr_matrix  # (n, L), canonical, of ones

    @property
    def k(self):
        return self.ids.shape[1]

    @property
    def n_true(self):
        """(n,) int: the number of true labels of each row."""
        return np.diff(self.truth.indptr)

    def first(self, k):
        """The first k of the predicted labels."""
        return Ranking(self.ids[:, :k], self.hits[:, :k], self.truth)


def _contains(matrix, ids):
    """(n, k) bool: whether each id, or -1, is an entry of its row in a canonical CSR matrix."""
    if not ids.size or not matrix.shape[1]:
        return np.zeros(ids.shape, bool)
    rows = np.repeat(np.arange(ids.shape[0]), ids.shape[1])
    flat = ids.reshape(-1)
    found = np.asarray(matrix[rows, np.maximum(flat, 0)]).reshape(-1) != 0
    return (found & (flat >= 0)).reshape(ids.shape)


def _without(ids, truth, excluded):
    """The predicted ids and the true labels without the excluded pairs; later ids move up, and -1 follows them."""
    excluded = as_ones("excluded", excluded)
    if excluded.shape != truth.shape:
        raise ValueError(f"excluded must have shape {truth.shape} like labels, got {excluded.shape}")
    removed = _contains(excluded, ids)
    order = np.argsort(removed, axis=1, kind="stable")
    ids = np.take_along_axis(np.where(removed, np.int32(-1), ids), order, axis=1)
    return ids, (truth - truth.multiply(excluded)).tocsr()


def checked(ids, labels, k, excluded=None):
    """`Ranking` of the k best of the predicted ids, without the pairs that are excluded; errors name the arguments."""
    if check.same_device(ids=ids) != "cpu":
        raise TypeError("ids must be a NumPy array, got one on cuda; use cupy.asnumpy(ids)")
    ids = check.integers("ids", ids, ("n", "k"))
    k = check.integer("k", k, 1, ids.shape[1], " (the width of ids)")
    truth = as_ones("labels", labels)
    if truth.shape[0] != ids.shape[0]:
        raise ValueError(f"labels must have {ids.shape[0]} rows like ids, got {truth.shape[0]}")
    if ids.size and not -1 <= int(ids.min()) <= int(ids.max()) < truth.shape[1]:
        raise ValueError(
            f"ids must lie in [0, {truth.shape[1]}), the columns of labels, or be -1, "
            f"got {int(ids.min())} to {int(ids.max())}"
        )
    if excluded is not None:
        ids, truth = _without(ids, truth, excluded)
    ids = np.ascontiguousarray(ids[:, :k])
    return Ranking(ids, _contains(truth, ids), truth)


def mean(values):
    """The mean of the values (n,); 0 for none."""
    return float(values.mean()) if len(values) else 0.0


def ratio(part, whole):
    """``part / whole``, and 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


# ------------------------------------------------------------ the definitions


def precision(ranking):
    return float(ranking.hits.mean()) if len(ranking.hits) else 0.0


def ndcg(ranking):
    gains = 1 / np.log2(np.arange(2, ranking.k + 2))
    best = np.append(0, np.cumsum(gains))[np.minimum(ranking.n_true, ranking.k)]
    return mean(ratio(ranking.hits @ gains, best))


def recall(ranking):
    return mean(ratio(ranking.hits.sum(1), ranking.n_true))


def f1(ranking):
    return mean(ratio(2 * ranking.hits.sum(1), (ranking.ids >= 0).sum(1) + ranking.n_true))


def mean_average_precision(ranking):
    precision_at_rank = np.cumsum(ranking.hits, axis=1) / np.arange(1, ranking.k + 1)
    return mean(ratio((precision_at_rank * ranking.hits).sum(1), np.minimum(ranking.n_true, ranking.k)))


def psp(ranking, propensity):
    truth = ranking.truth
    found = (1 / propensity[ranking.ids[ranking.hits]]).sum()
    gains, rows = 1 / propensity[truth.indices], np.repeat(np.arange(len(ranking.ids)), ranking.n_true)
    gains = gains[np.lexsort((-gains, rows))]
    best = gains[np.arange(len(gains)) - truth.indptr[rows] < ranking.k].sum()
    return float(found / best) if best > 0 else 0.0


#: What is reported at each k: the abbreviation of a metric, and its definition.
DEFINITIONS = {"P": precision, "nDCG": ndcg, "R": recall, "F1": f1, "MAP": mean_average_precision}


# ------------------------------------------------------------ public functions


def hits_at_k(ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None) -> np.ndarray:
    """Whether each predicted label is a true label of its row.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
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
    hits : (n, k) bool

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: the definition.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import hits_at_k
    >>> hits_at_k(np.array([[2, 0], [1, -1]], np.int32), scipy.sparse.csr_matrix([[0, 0, 1], [0, 1, 1]]), k=2)
    array([[ True, False],
           [ True, False]])
    """
    return checked(ids, labels, k, excluded).hits


def precision_at_k(ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None) -> float:
    """``P@k = mean over rows of |{predicted 1..k} and {true}| / k``.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
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
    p : float
        In [0, 1]; 0 for no rows.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: the definition, as the Extreme Classification Repository uses it.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import precision_at_k
    >>> precision_at_k(np.array([[2, 0], [1, 2]], np.int32), scipy.sparse.csr_matrix([[0, 0, 1], [0, 1, 1]]), k=2)
    0.75
    """
    return precision(checked(ids, labels, k, excluded))


def ndcg_at_k(ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None) -> float:
    """``nDCG@k = mean over rows of DCG / best DCG``, ``DCG = sum over hits at rank r of 1 / log2(r + 1)``.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
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
    ndcg : float
        In [0, 1]; 0 for no rows. Rows without true labels count as 0.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: K. Järvelin, J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import ndcg_at_k
    >>> ndcg_at_k(np.array([[2, 0]], np.int32), scipy.sparse.csr_matrix([[0, 0, 1]]), k=2)
    1.0
    """
    return ndcg(checked(ids, labels, k, excluded))


def recall_at_k(ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None) -> float:
    """``R@k = mean over rows of |{predicted 1..k} and {true}| / |{true}|``.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
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
    recall : float
        In [0, 1]; 0 for no rows. Rows without true labels count as 0.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: the definition.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import recall_at_k
    >>> recall_at_k(np.array([[2, 0], [1, 0]], np.int32), scipy.sparse.csr_matrix([[0, 0, 1], [0, 1, 1]]), k=2)
    0.75
    """
    return recall(checked(ids, labels, k, excluded))


def f1_at_k(ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None) -> float:
    """``F1@k = mean over rows of 2 |{predicted 1..k} and {true}| / (|{predicted 1..k}| + |{true}|)``.

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
        In [0, 1]; 0 for no rows. Rows without predicted and true labels count as 0.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: the definition; F1@5 of Annif, and ``f1_score(average='samples', zero_division=0)`` of scikit-learn for the
    k best labels.


    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import f1_at_k
    >>> labels = scipy.sparse.csr_matrix([[0, 0, 1], [0, 1, 0]])
    >>> f1_at_k(np.array([[2, 0], [1, -1]], np.int32), labels, k=2)  # 2/3 and 1
    0.8333333333333333
    """
    return f1(checked(ids, labels, k, excluded))


def map_at_k(ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None) -> float:
    """Mean average precision: the mean over rows of ``(sum over hits at rank r of P@r) / min(k, |{true}|)``.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
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
    map : float
        In [0, 1]; 0 for no rows. Rows without true labels count as 0.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: C. Manning, P. Raghavan, H. Schütze, "Introduction to Information Retrieval", 2008, section 8.4. Only the k
    best labels are known here; hence the sum of a row with more than k true labels is divided by k, and can reach 1.


    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import map_at_k
    >>> map_at_k(np.array([[2, 0, 1]], np.int32), scipy.sparse.csr_matrix([[0, 1, 1]]), k=3)  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    return mean_average_precision(checked(ids, labels, k, excluded))


def coverage_at_k(ids: np.ndarray, labels: SparseMatrix, k: int, *, excluded: SparseMatrix | None = None) -> float:
    """The share of the labels that occur in `labels` and are predicted correctly in at least one row, among its k best.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
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
    coverage : float
        In [0, 1]; 0 for no true labels.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN.

    Notes
    -----
    Source: the definition of ``coverage_at_k`` in napkinXC. E. Schultheis et al., "Generalized test utilities for
    long-tail performance in extreme multi-label classification", NeurIPS 2023, discuss it as a metric for rare labels.
    In recommender systems, coverage is the share of the items that are recommended at all.


    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import coverage_at_k
    >>> labels = scipy.sparse.csr_matrix([[0, 0, 1], [1, 0, 1]])
    >>> coverage_at_k(np.array([[2, 0], [2, 1]], np.int32), labels, k=2)  # 2, but not 0
    0.5
    """
    ranking = checked(ids, labels, k, excluded)
    occurring, found = (np.count_nonzero(np.bincount(i)) for i in (ranking.truth.indices, ranking.ids[ranking.hits]))
    return float(found / occurring) if occurring else 0.0


def propensities(label_counts: Array, n_points: int, a: float = 0.55, b: float = 1.5) -> np.ndarray:
    """Probability that a true label is recorded: ``p[l] = 1 / (1 + C (N[l] + b)**-a)``, ``C = (ln n - 1) (b + 1)**a``.

    Parameters
    ----------
    label_counts : (L,) int array
        ``N[l]``, the number of training points with label l: ``np.bincount(Y.indices, minlength=L)`` for a CSR matrix Y
        of ones.
    n_points : int
        ``n``, the number of training points, at least 3 (so that C > 0).
    a, b : float
        Positive. The defaults are usual for most data sets; (0.5, 0.4) is used for WikiLSHTC-325K and Wikipedia-500K,
        (0.6, 2.6) for Amazon-670K and Amazon-3M.

    Returns
    -------
    p : (L,) float64
        In (0, 1); smaller for rarer labels.

    Raises
    ------
    TypeError, ValueError
        Counts that are not integers, or outside [0, n_points]; n_points below 3; a or b not positive.

    Notes
    -----
    Source: H. Jain, Y. Prabhu, M. Varma, "Extreme multi-label loss functions for recommendation, tagging, ranking and
    other missing label applications", KDD 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.metrics import propensities
    >>> propensities(np.array([0, 10, 1000]), n_points=1000).round(3)
    array([0.113, 0.282, 0.821])
    """
    n_points = check.integer("n_points", n_points, 3)
    a, b = (check.number(name, value, 0, np.inf, open_ends=True) for name, value in (("a", a), ("b", b)))
    counts = check.on_host("label_counts", label_counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise TypeError(
            f"label_counts must be a 1-D array of integers, got {counts.dtype} of shape {counts.shape}; "
            "use np.bincount(Y.indices, minlength=Y.shape[1])"
        )
    if len(counts) and not 0 <= counts.min() <= counts.max() <= n_points:
        raise ValueError(
            f"label_counts must lie between 0 and n_points = {n_points}, got {counts.min()} to {counts.max()}"
        )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        c = (np.log(n_points) - 1) * np.float64(b + 1) ** a
        p = 1 / (1 + c * (counts + b) ** -a)
    if not (p > 0).all():
        raise ValueError(
            f"a and b must give propensities above 0, got a = {a:g} and b = {b:g}; usual values are below 3"
        )
    return p


def psp_at_k(
    ids: np.ndarray,
    labels: SparseMatrix,
    propensity: np.ndarray,
    k: int,
    *,
    excluded: SparseMatrix | None = None,
) -> float:
    """Propensity-scored precision: the sum of ``1 / p`` over all hits, divided by the largest possible sum.

    p is the propensity of the label, so that hits of rare labels count more. The largest possible sum is that of
    predictions that rank the true labels of each row by ``1 / p``.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.
    propensity : (L,) float64
        In (0, 1], from `propensities` of the training labels.
    k : int
        At most the width of ids.
    excluded : SciPy sparse (n, L), optional
        Pairs of row and label that are not evaluated, such as the filter files of the Extreme Classification
        Repository. They are removed from ids, where the following labels move up, and from labels. Pass ids with more
        than k columns: what is missing then counts as -1.

    Returns
    -------
    psp : float
        In [0, 1]; 0 if no row has a true label.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels or excluded
        pairs that are NaN;
        a propensity outside (0, 1].

    Notes
    -----
    Source: as for `propensities`; the division by the largest value as in the Extreme Classification Repository.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.metrics import psp_at_k
    >>> truth = scipy.sparse.csr_matrix([[1, 1, 0], [1, 0, 0]])
    >>> psp_at_k(np.array([[0], [0]], np.int32), truth, np.array([0.5, 0.25, 0.1]), k=1)  # (2 + 2) / (4 + 2)
    0.6666666666666666
    """
    ranking = checked(ids, labels, k, excluded)
    propensity = check.array("propensity", propensity, np.float64, (ranking.truth.shape[1],))
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise ValueError("propensity must lie in (0, 1]; use propensities(label_counts, n_points)")
    return psp(ranking, propensity)
