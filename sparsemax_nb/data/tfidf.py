"""Term counts to TF-IDF weights."""

import numpy as np

from .readers import check_csr


class Tfidf:
    """Weigh term counts by rarity: ``w[i, t] = tf(count[i, t]) * idf[t]``, then scale each row to length 1.

    ``tf(c) = 1 + ln(c)`` if `sublinear`, else ``c``; ``idf[t] = ln((1 + n) / (1 + df[t])) + 1``,
    where `n` rows were fitted and term `t` occurs in `df[t]` of them. As ``TfidfTransformer`` of scikit-learn does it.

    Parameters
    ----------
    sublinear : bool
        Dampen repeated terms.

    Attributes
    ----------
    idf_ : ndarray
        (n_features,) float32, known after `fit`.

    Notes
    -----
    The dense equivalent, where no row is empty, is
    ``W = np.where(C > 0, 1 + np.log(C), 0) * idf; W /= np.linalg.norm(W, axis=1, keepdims=True)``.

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
        """Learn `idf_` from X, (n, n_features) CSR of counts; returns self."""
        X = _counts(X)
        df = np.bincount(X.indices, minlength=X.shape[1])
        self.idf_ = (np.log((1 + X.shape[0]) / (1 + df)) + 1).astype(np.float32)
        return self

    def transform(self, X):
        """TF-IDF weights of X, (n, n_features) CSR of counts, as a new CSR float32; empty rows stay empty."""
        if not hasattr(self, "idf_"):
            raise ValueError("this Tfidf is not fitted; call fit first")
        X = _counts(X)
        if X.shape[1] != len(self.idf_):
            raise ValueError(f"X must have {len(self.idf_)} features as in fit, got {X.shape[1]}")
        tf = 1 + np.log(X.data) if self.sublinear else X.data
        weights = tf * self.idf_[X.indices]
        rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
        norms = np.sqrt(np.bincount(rows, weights**2, minlength=X.shape[0]))
        norms[norms == 0] = 1
        X.data = (weights / norms[rows]).astype(np.float32)
        return X

    def fit_transform(self, X):
        """`fit`, then `transform`."""
        return self.fit(X).transform(X)


def _counts(X):
    """A float64 copy of X without repeated entries and zeros; errors where X holds no counts."""
    check_csr("X", X)
    X = X.astype(np.float64, copy=True)
    X.sum_duplicates()
    if not np.isfinite(X.data).all():
        raise ValueError("X must be finite, got NaN or infinity")
    if (X.data < 0).any():
        raise ValueError(f"X must hold counts, got the negative value {X.data.min():g}")
    X.eliminate_zeros()
    return X
