"""The best low-rank approximation of a matrix."""

import numpy as np

from . import threads


def low_rank(rows, rank):
    """Coordinates (n, rank) and axes (d, rank), float32: ``coordinates @ axes.T`` best approximates rows (n, d).

    With ``rows = U S V.T``: the first columns of U S and of V (Eckart and Young 1936). V contains the eigenvectors of
    ``rows.T @ rows``, computed in float64. Bits do not depend on the number of threads.
    """
    rows = rows.astype(np.float64)
    with threads.one_blas_thread():
        axes = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :rank]
        return (rows @ axes).astype(np.float32), np.ascontiguousarray(axes, np.float32)
