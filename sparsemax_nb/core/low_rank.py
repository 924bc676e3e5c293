"""The best approximation of a matrix by one of lower rank."""

import numpy as np

from . import threads


def low_rank(rows, rank):
    """coordinates (n, rank) and axes (d, rank), float32, of which ``coordinates @ axes.T`` comes nearest to rows (n, d).

    With ``rows = U S V.T``: the first columns of U S and of V (Eckart and Young 1936). V are the eigenvectors of
    ``rows.T @ rows``, in float64. Bits do not depend on the number of threads.
    """
    rows = rows.astype(np.float64)
    with threads.one_blas_thread():
        axes = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :rank]
        return (rows @ axes).astype(np.float32), np.ascontiguousarray(axes, np.float32)
