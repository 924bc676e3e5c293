"""Pairs of sparse features and embeddings of the same rows."""

import numpy as np
import scipy.sparse


def is_pair(x):
    """Whether features are a pair (texts or sparse features, embeddings): the second part is a matrix."""
    return isinstance(x, tuple) and len(x) == 2 and getattr(x[1], "ndim", None) == 2


class WideFeatures:
    """Sparse features (n, F) and embeddings (n, d), with the indexing of a matrix.

    Parameters
    ----------
    words : (n, F) SciPy CSR matrix
    dense : (n, d) array
    """

    def __init__(self, words, dense):
        self.words = words
        self.dense = dense

    shape = property(lambda self: (self.words.shape[0], self.words.shape[1] + self.dense.shape[1]), doc="(n, F + d)")

    def __getitem__(self, rows):
        return WideFeatures(self.words[rows], self.dense[rows])

    @classmethod
    def from_matrix(cls, x, n_dense):
        """The last `n_dense` columns of a matrix are the embeddings."""
        n = x.shape[1] - n_dense
        words, dense = x[:, :n], x[:, n:]
        return cls(scipy.sparse.csr_matrix(words), dense.toarray() if scipy.sparse.issparse(dense) else dense)

    def extended(self, words):
        """With further rows at the end, which have no embeddings."""
        dense = np.concatenate([self.dense, np.zeros((words.shape[0], self.dense.shape[1]), self.dense.dtype)])
        return WideFeatures(scipy.sparse.vstack([self.words, words], "csr"), dense)
