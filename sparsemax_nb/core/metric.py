"""The metric in which vectors are close if their scores are.

Source: R. Guo et al., "Quantization based fast inner product search", AISTATS 2016: the error of the scores, estimated
from sample activations h, replaces the error of the vectors.
"""

import numpy as np

from . import threads

#: Fraction of the mean variance that is added in every direction: directions unseen in the sample count a little.
RIDGE = 1e-3


def score_metric(h):
    """G and its inverse, (d, d) float64, such that ``|v G|^2`` is proportional to ``mean_h (h . v)^2``, plus a ridge.

    ``G G.T = M / (tr M / d) + RIDGE I`` with ``M = mean_h h h.T``; G is lower triangular. Bits do not depend on the
    number of threads.

    Parameters
    ----------
    h : (n, d) float, NumPy
        Finite sample of hidden activations, n >= 1. If all are zero, G is the identity up to the ridge.
    """
    h = h.astype(np.float64)
    width = h.shape[1]
    with threads.one_blas_thread():
        moment = h.T @ h
        mean = np.trace(moment) / width
        moment = moment / mean if mean > 0 else np.eye(width)
        factor = np.linalg.cholesky(moment + RIDGE * np.eye(width))
        return factor, np.linalg.inv(factor)
