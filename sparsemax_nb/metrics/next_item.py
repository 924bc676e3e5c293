"""Metrics of one true item per row, and what frequencies alone reach."""

import numpy as np

from ..core import check
from ..core.annotations import Array


def _host_integers(name, value, n=2**63 - 1):
    """A checked NumPy array (n,) int64 of integers in [0, n), from an array of any layout and device."""
    return check.integers(name, np.asarray(check.on_host(name, value), order="C"), ("n",), n, np.int64)


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
