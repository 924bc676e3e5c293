"""Ranking metrics of multi-label prediction."""

import numpy as np

from ..core import check


def _truth(labels):
    """The entries that are not zero, as a boolean CSR matrix."""
    truth = labels.tocsr(copy=True)
    truth.sum_duplicates()
    truth.eliminate_zeros()
    return truth.astype(bool)


def _hits(ids, labels, k):
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

    Returns
    -------
    float in [0, 1]; 0 for no rows.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.train import precision_at_k
    >>> precision_at_k(np.array([[2, 0], [1, 2]], np.int32), scipy.sparse.csr_matrix([[0, 0, 1], [0, 1, 1]]), k=2)
    0.75
    """
    k = check.integer("k", k, 1, ids.shape[1], " (the width of ids)")
    return float(_hits(ids, labels, k).mean()) if len(ids) else 0.0


def ndcg_at_k(ids, labels, k):
    """``nDCG@k = mean over rows of DCG / best DCG``, ``DCG = sum over hits at rank r of 1 / log2(r + 1)``.

    Parameters and result as for `precision_at_k`; rows without true labels count 0.

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
    found = _hits(ids, labels, k) @ gains
    return float(np.divide(found, best, out=np.zeros(len(ids)), where=best > 0).mean())
