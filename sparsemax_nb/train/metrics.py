"""Ranking metrics of multi-label prediction."""

import numpy as np

from ..core import check


def _truth(labels):
    """The entries that are not zero, as a boolean CSR matrix."""
    truth = labels.tocsr(copy=True)
    truth.sum_duplicates()
    truth.eliminate_zeros()
    return truth.astype(bool)


def hits_at_k(ids, labels, k):
    """(n, k) bool: is the predicted id a true label of its row?"""
    ids = np.ascontiguousarray(check.array("ids", ids, np.int32, ("n", "k"))[:, :k])
    if labels.shape[0] != ids.shape[0]:
        raise ValueError(f"labels must have {ids.shape[0]} rows like ids, got {labels.shape[0]}")
    truth = _truth(labels)
    rows = np.repeat(np.arange(ids.shape[0]), ids.shape[1])
    flat = ids.reshape(-1)
    hits = np.asarray(truth[rows, np.maximum(flat, 0)]).reshape(-1)
    return (hits & (flat >= 0)).reshape(ids.shape)


def precision_at_k(ids, labels, k):
    """``P@k = mean over rows of |{predicted 1..k} and {true}| / k``.

    Parameters
    ----------
    ids : (n, >= k) int32
        Predicted labels, best first; -1 counts as wrong.
    labels : SciPy sparse (n, L)
        True labels: entries that are not zero.
    k : int
        At most the width of ids.

    Returns
    -------
    p : float
        In [0, 1]; 0 for no rows.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; other numbers of rows in ids and labels; k out of range.

    Notes
    -----
    Source: the definition, as the Extreme Classification Repository uses it.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.train import precision_at_k
    >>> precision_at_k(np.array([[2, 0], [1, 2]], np.int32), scipy.sparse.csr_matrix([[0, 0, 1], [0, 1, 1]]), k=2)
    0.75
    """
    k = check.integer("k", k, 1, ids.shape[1], " (the width of ids)")
    return float(hits_at_k(ids, labels, k).mean()) if len(ids) else 0.0


def ndcg_at_k(ids, labels, k):
    """``nDCG@k = mean over rows of DCG / best DCG``, ``DCG = sum over hits at rank r of 1 / log2(r + 1)``.

    Parameters
    ----------
    ids : (n, >= k) int32
        Predicted labels, best first; -1 counts as wrong.
    labels : SciPy sparse (n, L)
        True labels: entries that are not zero.
    k : int
        At most the width of ids.

    Returns
    -------
    ndcg : float
        In [0, 1]; 0 for no rows. Rows without true labels count 0.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; other numbers of rows in ids and labels; k out of range.

    Notes
    -----
    Source: K. Järvelin, J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.train import ndcg_at_k
    >>> ndcg_at_k(np.array([[2, 0]], np.int32), scipy.sparse.csr_matrix([[0, 0, 1]]), k=2)
    1.0
    """
    k = check.integer("k", k, 1, ids.shape[1], " (the width of ids)")
    if not len(ids):
        return 0.0
    gains = 1 / np.log2(np.arange(2, k + 2))
    n_true = np.minimum(np.diff(_truth(labels).indptr), k)
    best = np.append(0, np.cumsum(gains))[n_true]
    found = hits_at_k(ids, labels, k) @ gains
    return float(np.divide(found, best, out=np.zeros(len(ids)), where=best > 0).mean())


def recall_at_k(ids, labels, k):
    """``R@k = mean over rows of |{predicted 1..k} and {true}| / |{true}|``.

    Parameters
    ----------
    ids : (n, >= k) int32
        Predicted labels, best first; -1 counts as wrong.
    labels : SciPy sparse (n, L)
        True labels: entries that are not zero.
    k : int
        At most the width of ids.

    Returns
    -------
    recall : float
        In [0, 1]; 0 for no rows. Rows without true labels count 0.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; other numbers of rows in ids and labels; k out of range.

    Notes
    -----
    Source: the definition.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.train import recall_at_k
    >>> recall_at_k(np.array([[2, 0], [1, 0]], np.int32), scipy.sparse.csr_matrix([[0, 0, 1], [0, 1, 1]]), k=2)
    0.75
    """
    k = check.integer("k", k, 1, ids.shape[1], " (the width of ids)")
    if not len(ids):
        return 0.0
    found, n_true = hits_at_k(ids, labels, k).sum(1), np.diff(_truth(labels).indptr)
    return float(np.divide(found, n_true, out=np.zeros(len(ids)), where=n_true > 0).mean())


def propensities(label_counts, n_points, a=0.55, b=1.5):
    """``p[l] = 1 / (1 + C (N[l] + b)**-a)``, ``C = (ln n - 1) (b + 1)**a``: the chance that a true label was noted.

    Parameters
    ----------
    label_counts : (L,) int array
        ``N[l]``, the training points with label l; ``np.bincount(Y.indices, minlength=L)`` of a CSR matrix Y of ones.
    n_points : int
        ``n``, the number of training points, at least 3 (so that C > 0).
    a, b : float
        Positive. The defaults are usual for most data; (0.5, 0.4) for WikiLSHTC-325K and Wikipedia-500K, (0.6, 2.6) for
        Amazon-670K and Amazon-3M.

    Returns
    -------
    p : (L,) float64
        In (0, 1); the rarer a label, the smaller.

    Raises
    ------
    TypeError, ValueError
        Counts that are no integers, or outside [0, n_points]; n_points below 3; a or b not positive.

    Notes
    -----
    Source: H. Jain, Y. Prabhu, M. Varma, "Extreme multi-label loss functions for recommendation, tagging, ranking and
    other missing label applications", KDD 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.train import propensities
    >>> propensities(np.array([0, 10, 1000]), n_points=1000).round(3)
    array([0.113, 0.282, 0.821])
    """
    n_points = check.integer("n_points", n_points, 3)
    a, b = (check.number(name, value, 0, np.inf, open_ends=True) for name, value in (("a", a), ("b", b)))
    counts = np.asarray(label_counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise TypeError(
            f"label_counts must be a 1-D array of integers, got {counts.dtype} of shape {counts.shape}; "
            "use np.bincount(Y.indices, minlength=Y.shape[1])"
        )
    if len(counts) and not 0 <= counts.min() <= counts.max() <= n_points:
        raise ValueError(
            f"label_counts must lie between 0 and n_points = {n_points}, got {counts.min()} to {counts.max()}"
        )
    c = (np.log(n_points) - 1) * (b + 1) ** a
    return 1 / (1 + c * (counts + b) ** -a)


def psp_at_k(ids, labels, propensity, k):
    """``PSP@k = sum over rows and hits of 1 / p / the largest value that it could take``, ``p`` the hit's propensity.

    A hit counts the more the rarer its label. The largest value comes from ranking, in each row, the true labels by
    ``1 / p``.

    Parameters
    ----------
    ids : (n, >= k) int32
        Predicted labels, best first; -1 counts as wrong.
    labels : SciPy sparse (n, L)
        True labels: entries that are not zero.
    propensity : (L,) float64
        In (0, 1], from `propensities` of the training labels.
    k : int
        At most the width of ids.

    Returns
    -------
    psp : float
        In [0, 1]; 0 where no row has a true label.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; other numbers of rows in ids and labels; k out of range; a propensity outside (0, 1].

    Notes
    -----
    Source: as for `propensities`; the division by the largest value as in the Extreme Classification Repository.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.train import psp_at_k
    >>> truth = scipy.sparse.csr_matrix([[1, 1, 0], [1, 0, 0]])
    >>> psp_at_k(np.array([[0], [0]], np.int32), truth, np.array([0.5, 0.25, 0.1]), k=1)  # (2 + 2) / (4 + 2)
    0.6666666666666666
    """
    k = check.integer("k", k, 1, ids.shape[1], " (the width of ids)")
    propensity = check.array("propensity", propensity, np.float64, (labels.shape[1],))
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise ValueError("propensity must lie in (0, 1]; use propensities(label_counts, n_points)")
    if not len(ids):
        return 0.0
    hits, truth = hits_at_k(ids, labels, k), _truth(labels)
    found = (1 / propensity[ids[:, :k][hits]]).sum()
    gains, rows = 1 / propensity[truth.indices], np.repeat(np.arange(len(ids)), np.diff(truth.indptr))
    gains = gains[np.lexsort((-gains, rows))]
    best = gains[np.arange(len(gains)) - truth.indptr[rows] < k].sum()
    return float(found / best) if best > 0 else 0.0


def figures_of_ranks(ranks, k):
    """``Recall@k = mean [rank < k]`` and ``NDCG@k = mean [rank < k] / log2(rank + 2)``, one true item a row.

    Parameters
    ----------
    ranks : (n,) int32
        How many items are ranked before the true one.
    k : int
        At least 1.

    Returns
    -------
    figures : dict
        'Recall@k' and 'NDCG@k' with the number for k; 0 for no rows.

    Raises
    ------
    TypeError, ValueError
        k below 1, or no integer.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.train import figures_of_ranks
    >>> figures_of_ranks(np.array([0, 2, 30], np.int32), k=10)
    {'Recall@10': 0.6666666666666666, 'NDCG@10': 0.5}
    """
    check.integer("k", k, 1)
    found = ranks < k
    gains = found / np.log2(ranks + 2.0)
    return {
        f"Recall@{k}": float(found.mean()) if len(ranks) else 0.0,
        f"NDCG@{k}": float(gains.mean()) if len(ranks) else 0.0,
    }


def ranks_by_popularity(counts, targets):
    """The rank of each target among all items by how often they occur; equally frequent ones by number.

    What a recommendation of the most popular items reaches, for everyone the same.

    Parameters
    ----------
    counts : (L,) int array
        How often each item occurs; NumPy.
    targets : (n,) int32
        Items.

    Returns
    -------
    ranks : (n,) int32
        0 for the most frequent item.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.train import ranks_by_popularity
    >>> ranks_by_popularity(np.array([5, 9, 5]), np.array([0, 1, 2], np.int32))
    array([1, 0, 2], dtype=int32)
    """
    ranks = np.empty(len(counts), np.int32)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return ranks[targets]


def unigram_perplexity(counts, tokens):
    """``exp(-mean log p(token))`` of a model that knows frequencies alone: ``p(w) = (counts[w] + 1) / (sum + L)``.

    Laplace's rule keeps words that do not occur in training from having probability 0.

    Parameters
    ----------
    counts : (L,) int array
        How often each word occurs in the training text; NumPy.
    tokens : (n,) int32
        The text to be predicted.

    Returns
    -------
    perplexity : float

    Notes
    -----
    Source: the definition; Laplace's rule of succession.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.train import unigram_perplexity
    >>> round(unigram_perplexity(np.array([3, 3, 3, 3]), np.array([0, 1, 2], np.int32)), 6)
    4.0
    """
    log_p = np.log((counts + 1.0) / (counts.sum() + len(counts)))
    return float(np.exp(-log_p[tokens].mean()))
