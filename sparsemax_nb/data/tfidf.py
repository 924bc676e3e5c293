"""TF-IDF weights from term counts."""

import copy
import itertools

import numpy as np

from ..core.sparse import as_csr
from .readers import check_csr

#: Entries that are checked and counted at once: bounds the temporary memory.
ENTRIES_PER_BLOCK = 2**20


class Tfidf:
    """TF-IDF: ``w[i, t] = tf(count[i, t]) * idf[t]``, with each row scaled to length 1.

    ``tf(c) = 1 + ln(c)`` if `sublinear`, else ``c``; ``idf[t] = ln((1 + n) / (1 + df[t])) + 1``,
    where `n` is the number of rows in `fit` and `df[t]` the number of rows with term `t`. The result equals that of
    scikit-learn's ``TfidfTransformer``.

    Parameters
    ----------
    sublinear : bool
        Dampen repeated terms. X must then contain counts (whole numbers): the logarithm of weights below 1 is negative.

    Attributes
    ----------
    idf_ : ndarray
        (n_features,) float32, available after `fit`.

    Notes
    -----
    The dense equivalent, if no row is empty, is
    ``W = np.where(C > 0, 1 + np.log(C), 0) * idf; W /= np.linalg.norm(W, axis=1, keepdims=True)``.

    Source: G. Salton, C. Buckley, "Term-weighting approaches in automatic text retrieval", 1988; in the variant of
    scikit-learn.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> counts = csr_matrix(np.array([[1, 1], [0, 2], [0, 0]], np.float32))
    >>> tfidf = Tfidf().fit(counts)
    >>> tfidf.idf_.round(3)
    array([1.693, 1.288], dtype=float32)
    >>> tfidf.transform(counts).toarray().round(3)
    array([[0.796, 0.605],
           [0.   , 1.   ],
           [0.   , 0.   ]], dtype=float32)
    """

    def __init__(self, sublinear=True):
        self.sublinear = sublinear

    def fit(self, X):
        """Learn `idf_` from counts.

        Parameters
        ----------
        X : (n, n_features) SciPy CSR matrix
            Counts, processed block by block without a copy.

        Returns
        -------
        self : Tfidf

        Raises
        ------
        TypeError, ValueError
            X is not CSR, not finite, negative somewhere, or (`sublinear`) contains values that are not counts.
        """
        check_csr("X", X)
        X = as_csr("X", X)  # noqa: N806
        df = np.zeros(X.shape[1], np.int64)
        for start, stop in _row_blocks(X.indptr):
            block = self._checked(X[start:stop])
            df += np.bincount(block.indices[: block.nnz], minlength=X.shape[1])
        self.idf_ = (np.log((1 + X.shape[0]) / (1 + df)) + 1).astype(np.float32)
        return self

    def transform(self, X):
        """Convert counts to TF-IDF weights, computed in float64.

        This is efficient for batches: the only copies are of the index arrays, unless X has duplicate entries or zeros.

        Parameters
        ----------
        X : (n, n_features) SciPy CSR matrix
            Counts.

        Returns
        -------
        weights : (n, n_features) CSR float32
            New; empty rows stay empty.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; X is not CSR, has another width than in `fit`, is not finite, negative somewhere, or
            (`sublinear`) contains values that are not counts.
        """
        if not hasattr(self, "idf_"):
            raise ValueError("this Tfidf is not fitted; call fit first")
        check_csr("X", X)
        return self._weights(as_csr("X", X))

    def _weights(self, X):
        """`transform` for a matrix returned by `as_csr`, or for rows of it."""
        X = self._checked(X)
        if X.shape[1] != len(self.idf_):
            raise ValueError(f"X must have {len(self.idf_)} features as in fit, got {X.shape[1]}")
        indices, weights = X.indices[: X.nnz].copy(), X.data[: X.nnz].astype(np.float64)
        if self.sublinear:
            np.log(weights, out=weights)
            weights += 1
        weights *= self.idf_.take(indices)
        lengths = np.diff(X.indptr)
        nonempty = np.flatnonzero(lengths)  # `reduceat` gives wrong sums for empty rows
        norms = np.sqrt(np.add.reduceat(weights**2, X.indptr[nonempty]))
        norms[norms == 0] = 1
        weights /= np.repeat(norms, lengths[nonempty])
        result = copy.copy(X)  # not a new matrix: SciPy's checks would take most of the time for a single row
        result.data = weights.astype(np.float32)
        result.indices = indices
        result.indptr = X.indptr.copy()
        return result

    def fit_transform(self, X):
        """`fit`, then `transform`.

        Parameters
        ----------
        X : (n, n_features) SciPy CSR matrix
            Counts.

        Returns
        -------
        weights : (n, n_features) CSR float32

        Raises
        ------
        TypeError, ValueError
            X is not CSR, not finite, negative somewhere, or (`sublinear`) contains values that are not counts.

        Examples
        --------
        >>> from scipy.sparse import csr_matrix
        >>> Tfidf().fit_transform(csr_matrix(np.array([[1, 1]], np.float32))).toarray().round(3)
        array([[0.707, 0.707]], dtype=float32)
        """
        return self.fit(X).transform(X)

    def _checked(self, X):
        """X as returned by `_non_negative`; ValueError if it must contain counts and does not."""
        X = _non_negative(X)
        non_count = first_non_count(X) if self.sublinear else None
        if non_count is not None:
            raise ValueError(
                f"X must contain counts (whole numbers), got {non_count:g}; use Classifier(tfidf=False), which keeps "
                "weights unchanged, or Tfidf(sublinear=False)"
            )
        return X


def first_non_count(X):
    """The first stored value of a CSR matrix that is not a whole number of at least 0, or None."""
    for start in range(0, X.nnz, ENTRIES_PER_BLOCK):
        block = X.data[start : min(start + ENTRIES_PER_BLOCK, X.nnz)]
        is_non_count = (block < 0) | (block != np.floor(block))
        if is_non_count.any():
            return block[np.argmax(is_non_count)]
    return None


def _non_negative(X):
    """X, or a float64 copy without duplicates and zeros if it has any; ValueError for negative or infinite values."""
    clean = X.has_canonical_format and X.data.all()
    if not clean:
        X = X.astype(np.float64, copy=True)
        X.sum_duplicates()
    data = X.data[: X.nnz]
    if not np.isfinite(data).all():
        raise ValueError("X must be finite, got NaN or infinity")
    if len(data) and data.min() < 0:
        raise ValueError(
            f"X must contain counts, got the negative value {data.min():g}; use Classifier(tfidf=False) for other data"
        )
    if not clean:
        X.eliminate_zeros()
    return X


def _row_blocks(indptr):
    """(start, stop) of consecutive blocks of rows, with about ENTRIES_PER_BLOCK entries: at most one row more."""
    inner = np.searchsorted(indptr, np.arange(ENTRIES_PER_BLOCK, indptr[-1], ENTRIES_PER_BLOCK))
    return itertools.pairwise(np.unique([0, *inner, len(indptr) - 1]).tolist())
