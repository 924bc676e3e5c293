"""Ranking metrics of multi-label and next-item prediction."""

import numpy as np

from .core import check
from .core.annotations import Array, SparseMatrix
from .core.sparse import as_ones

__all__ = [
    "ndcg_at_k",
    "popularity_ranks",
    "precision_at_k",
    "propensities",
    "psp_at_k",
    "ranking_metrics",
    "recall_at_k",
    "unigram_perplexity",
]


def _checked(ids, labels, k):
    """The first k predicted ids, (n, k) int32, and the true labels as canonical CSR, with matching shapes."""
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
    return np.ascontiguousarray(ids[:, :k]), truth


def _hits(ids, truth):
    """(n, k) bool: whether each predicted id is a true label of its row."""
    if not ids.size or not truth.shape[1]:
        return np.zeros(ids.shape, bool)
    rows = np.repeat(np.arange(ids.shape[0]), ids.shape[1])
    flat = ids.reshape(-1)
    hits = np.asarray(truth[rows, np.maximum(flat, 0)]).reshape(-1) != 0
    return (hits & (flat >= 0)).reshape(ids.shape)


def hits_at_k(ids, labels, k):
    """(n, k) bool: whether each predicted id is a true label of its row. Errors as for `precision_at_k`."""
    return _hits(*_checked(ids, labels, k))


def precision_at_k(ids: np.ndarray, labels: SparseMatrix, k: int) -> float:
    """``P@k = mean over rows of |{predicted 1..k} and {true}| / k``.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.
    k : int
        At most the width of ids.

    Returns
    -------
    p : float
        In [0, 1]; 0 for no rows.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels that are NaN.

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
    hits = hits_at_k(ids, labels, k)
    return float(hits.mean()) if len(hits) else 0.0


def ndcg_at_k(ids: np.ndarray, labels: SparseMatrix, k: int) -> float:
    """``nDCG@k = mean over rows of DCG / best DCG``, ``DCG = sum over hits at rank r of 1 / log2(r + 1)``.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.
    k : int
        At most the width of ids.

    Returns
    -------
    ndcg : float
        In [0, 1]; 0 for no rows. Rows without true labels count as 0.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels that are NaN.

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
    ids, truth = _checked(ids, labels, k)
    if not len(ids):
        return 0.0
    gains = 1 / np.log2(np.arange(2, k + 2))
    n_true = np.minimum(np.diff(truth.indptr), k)
    best = np.append(0, np.cumsum(gains))[n_true]
    found = _hits(ids, truth) @ gains
    return float(np.divide(found, best, out=np.zeros(len(ids)), where=best > 0).mean())


def recall_at_k(ids: np.ndarray, labels: SparseMatrix, k: int) -> float:
    """``R@k = mean over rows of |{predicted 1..k} and {true}| / |{true}|``.

    Parameters
    ----------
    ids : (n, >= k) int32 or other integers, NumPy
        Predicted labels in [0, L), best first; -1 counts as wrong.
    labels : SciPy sparse (n, L)
        True labels: the entries that are not zero.
    k : int
        At most the width of ids.

    Returns
    -------
    recall : float
        In [0, 1]; 0 for no rows. Rows without true labels count as 0.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels that are NaN.

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
    ids, truth = _checked(ids, labels, k)
    if not len(ids):
        return 0.0
    found, n_true = _hits(ids, truth).sum(1), np.diff(truth.indptr)
    return float(np.divide(found, n_true, out=np.zeros(len(ids)), where=n_true > 0).mean())


def _host_integers(name, value, n=2**63 - 1):
    """A checked NumPy array (n,) int64 of integers in [0, n), from an array of any layout and device."""
    return check.integers(name, np.asarray(check.on_host(name, value), order="C"), ("n",), n, np.int64)


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


def psp_at_k(ids: np.ndarray, labels: SparseMatrix, propensity: np.ndarray, k: int) -> float:
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

    Returns
    -------
    psp : float
        In [0, 1]; 0 if no row has a true label.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; different numbers of rows in ids and labels; an id or k out of range; labels that are NaN;
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
    ids, truth = _checked(ids, labels, k)
    propensity = check.array("propensity", propensity, np.float64, (truth.shape[1],))
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise ValueError("propensity must lie in (0, 1]; use propensities(label_counts, n_points)")
    if not len(ids):
        return 0.0
    found = (1 / propensity[ids[_hits(ids, truth)]]).sum()
    gains, rows = 1 / propensity[truth.indices], np.repeat(np.arange(len(ids)), np.diff(truth.indptr))
    gains = gains[np.lexsort((-gains, rows))]
    best = gains[np.arange(len(gains)) - truth.indptr[rows] < k].sum()
    return float(found / best) if best > 0 else 0.0


def ranking_metrics(ranks: Array, k: int) -> dict[str, float]:
    """``Recall@k = mean [rank < k]`` and ``NDCG@k = mean [rank < k] / log2(rank + 2)``, for one true item per row.

    Parameters
    ----------
    ranks : (n,) int32 or other integers, NumPy
        The number of items ranked before the true one.
    k : int
        At least 1.

    Returns
    -------
    metrics : dict
        With keys such as 'Recall@10' and 'NDCG@10' for k = 10; values are 0 for no rows.

    Raises
    ------
    TypeError, ValueError
        k below 1 or not an integer; ranks that are negative or not integers.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.metrics import ranking_metrics
    >>> ranking_metrics(np.array([0, 2, 30], np.int32), k=10)
    {'Recall@10': 0.6666666666666666, 'NDCG@10': 0.5}
    """
    check.integer("k", k, 1)
    ranks = _host_integers("ranks", ranks)
    found = ranks < k
    gains = found / np.log2(ranks + 2.0)
    return {
        f"Recall@{k}": float(found.mean()) if len(ranks) else 0.0,
        f"NDCG@{k}": float(gains.mean()) if len(ranks) else 0.0,
    }


def popularity_ranks(counts: Array, targets: Array) -> np.ndarray:
    """The rank of each target among all items by frequency; equally frequent items in the order of their ids.

    These are the ranks of a recommender that recommends the most popular items to everyone.

    Parameters
    ----------
    counts : (L,) array of int or float
        How often each item occurs, not negative; NumPy.
    targets : (n,) int32 or other integers
        Items, in [0, L).

    Returns
    -------
    ranks : (n,) int32
        0 for the most frequent item.

    Raises
    ------
    TypeError, ValueError
        Counts that are not numbers, negative or not finite; targets that are not integers, or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.metrics import popularity_ranks
    >>> popularity_ranks(np.array([5, 9, 5]), np.array([0, 1, 2], np.int32))
    array([1, 0, 2], dtype=int32)
    """
    counts = check.nonnegative("counts", counts)
    targets = _host_integers("targets", targets, len(counts))
    ranks = np.empty(len(counts), np.int32)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return ranks[targets]


def unigram_perplexity(counts: Array, tokens: Array) -> float:
    """``exp(-mean log p(token))`` of a model that knows only frequencies: ``p(w) = (counts[w] + 1) / (sum + L)``.

    The added counts (Laplace's rule) give words that do not occur in training a probability above 0.

    Parameters
    ----------
    counts : (L,) array of int or float
        How often each word occurs in the training text, not negative; NumPy.
    tokens : (n,) int32 or other integers
        The text to predict, in [0, L).

    Returns
    -------
    perplexity : float

    Raises
    ------
    TypeError, ValueError
        Counts that are not numbers, negative or not finite; tokens that are not integers, out of range, or empty.

    Notes
    -----
    Source: the definition; Laplace's rule of succession.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.metrics import unigram_perplexity
    >>> round(unigram_perplexity(np.array([3, 3, 3, 3]), np.array([0, 1, 2], np.int32)), 6)
    4.0
    """
    counts = check.nonnegative("counts", counts)
    tokens = _host_integers("tokens", tokens, len(counts))
    check.integer("the number of tokens", len(tokens), 1)
    log_p = np.log((counts + 1.0) / (counts.sum() + len(counts)))
    return float(np.exp(-log_p[tokens].mean()))
