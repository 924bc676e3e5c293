"""The metric in which the nearest vector is the one whose scores are nearest.

Source: R. Guo et al., "Quantization based fast inner product search", AISTATS 2016 (the error of the scores in place of
that of the vectors, from a sample of the queries).
"""

import numpy as np

from . import threads

#: So much of the mean variance is added in every direction: what no query of the sample has shown still counts a
#: little.
RIDGE = 1e-3


def score_metric(queries):
    """G and its inverse, (d, d) float64, for which ``|v G|^2`` is proportional to ``mean_q (q . v)^2`` (and a ridge).

    ``G G.T = M / (tr M / d) + RIDGE I`` with ``M = mean_q q q.T``; G is lower triangular. Bits do not depend on the
    number of threads.

    Parameters
    ----------
    queries : (n, d) float, NumPy
        Finite, n at least 1. Where all are zero, G is the identity up to the ridge.
    """
    queries = queries.astype(np.float64)
    width = queries.shape[1]
    with threads.one_blas_thread():
        moment = queries.T @ queries
        mean = np.trace(moment) / width
        moment = moment / mean if mean > 0 else np.eye(width)
        factor = np.linalg.cholesky(moment + RIDGE * np.eye(width))
        return factor, np.linalg.inv(factor)
