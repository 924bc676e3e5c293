"""Term counts to TF-IDF weights."""

import copy
import itertools

import numpy as np

from ..core.sparse import own_csr
from .readers import check_csr

BLOCK = 2**20  # entries that `fit` looks at in one go


class Tfidf:
    """Weigh term counts by rarity: ``w[i, t] = tf(count[i, t]) * idf[t]``, then scale each row to length 1.

    ``tf(c) = 1 + ln(c)`` if `sublinear`, else ``c``; ``idf[t] = ln((1 + n) / (1 + df[t])) + 1``,
    where `n` rows were fitted and term `t` occurs in `df[t]` of them. As ``TfidfTransformer`` of scikit-learn does it.

    Parameters
    ----------
    sublinear : bool
        Dampen repeated terms. X then has to hold counts, whole numbers: of a weight below 1 the logarithm is negative.

    Attributes
    ----------
    idf_ : ndarray
        (n_features,) float32, known after `fit`.

    Notes
    -----
    The dense equivalent, where no row is empty, is
    ``W = np.where(C > 0, 1 + np.log(C), 0) * idf; W /= np.linalg.norm(W, axis=1, keepdims=True)``.

    Source: G. Salton, C. Buckley, "Term-weighting approaches in automatic text retrieval", 1988; in the form of
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
            Counts. It is visited block by block, not copied.

        Returns
        -------
        self : Tfidf

        Raises
        ------
        TypeError, ValueError
            X is not CSR, not finite, negative somewhere, or (`sublinear`) holds other numbers than counts.
        """
        check_csr("X", X)
        X = own_csr("X", X)  # noqa: N806
        df = np.zeros(X.shape[1], np.int64)
        for start, stop in _row_blocks(X.indptr):
            block = self._checked(X[start:stop])
            df += np.bincount(block.indices[: block.nnz], minlength=X.shape[1])
        self.idf_ = (np.log((1 + X.shape[0]) / (1 + df)) + 1).astype(np.float32)
        return self

    def transform(self, X):
        """TF-IDF weights of counts.

        Computed in float64. Made for batches: where no entry is zero or repeated, the index arrays are copied, once.

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
            Not fitted yet; X is not CSR, of another width than in `fit`, not finite, negative somewhere, or
            (`sublinear`) holds other numbers than counts.
        """
        if not hasattr(self, "idf_"):
            raise ValueError("this Tfidf is not fitted; call fit first")
        check_csr("X", X)
        return self._weights(own_csr("X", X))

    def _weights(self, X):
        """`transform` of a matrix that `own_csr` has returned, or of rows of it."""
        X = self._checked(X)
        if X.shape[1] != len(self.idf_):
            raise ValueError(f"X must have {len(self.idf_)} features as in fit, got {X.shape[1]}")
        indices, weights = X.indices[: X.nnz].copy(), X.data[: X.nnz].astype(np.float64)
        if self.sublinear:
            np.log(weights, out=weights)
            weights += 1
        weights *= self.idf_.take(indices)
        lengths = np.diff(X.indptr)
        some = np.flatnonzero(lengths)  # `reduceat` knows no empty rows
        norms = np.sqrt(np.add.reduceat(weights**2, X.indptr[some]))
        norms[norms == 0] = 1
        weights /= np.repeat(norms, lengths[some])
        found = copy.copy(X)  # SciPy checks a new matrix, which counts where it has one row
        found.data, found.indices, found.indptr = weights.astype(np.float32), indices, X.indptr.copy()
        return found

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
            X is not CSR, not finite, negative somewhere, or (`sublinear`) holds other numbers than counts.

        Examples
        --------
        >>> from scipy.sparse import csr_matrix
        >>> Tfidf().fit_transform(csr_matrix(np.array([[1, 1]], np.float32))).toarray().round(3)
        array([[0.707, 0.707]], dtype=float32)
        """
        return self.fit(X).transform(X)

    def _checked(self, X):
        """X as `_non_negative` returns it; ValueError where it has to hold counts and does not."""
        X = _non_negative(X)
        other = first_non_count(X) if self.sublinear else None
        if other is not None:
            raise ValueError(
                f"X must hold counts, that is, whole numbers, got {other:g}; weights are taken as they are with "
                "Classifier(tfidf=False), or use Tfidf(sublinear=False)"
            )
        return X


def first_non_count(X):
    """The first stored value of a CSR matrix that is no whole number of at least 0, or None."""
    for start in range(0, X.nnz, BLOCK):
        part = X.data[start : min(start + BLOCK, X.nnz)]
        other = (part < 0) | (part != np.floor(part))
        if other.any():
            return part[np.argmax(other)]
    return None


def _non_negative(X):
    """X where it stores no entry twice and no zeros, else a float64 copy without; errors where a value is no amount."""
    clean = X.has_canonical_format and X.data.all()
    if not clean:
        X = X.astype(np.float64, copy=True)
        X.sum_duplicates()
    data = X.data[: X.nnz]
    if not np.isfinite(data).all():
        raise ValueError("X must be finite, got NaN or infinity")
    if len(data) and data.min() < 0:
        raise ValueError(f"X must hold counts, got the negative value {data.min():g}; take other features as they are")
    if not clean:
        X.eliminate_zeros()
    return X


def _row_blocks(indptr):
    """(start, stop) of consecutive blocks of rows, each with about BLOCK entries: at most one row more."""
    inner = np.searchsorted(indptr, np.arange(BLOCK, indptr[-1], BLOCK))
    return itertools.pairwise(np.unique([0, *inner, len(indptr) - 1]).tolist())
