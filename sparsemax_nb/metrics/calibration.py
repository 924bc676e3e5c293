"""Calibration: whether predicted probabilities agree with the share of predictions that are right."""

import numpy as np

from ..core import check
from ..core.annotations import Array

#: Most bins.
MAX_BINS = 10_000


def reliability(probabilities: Array, hits: Array, n_bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean probability and share of hits of the predictions in each bin of a reliability diagram.

    Parameters
    ----------
    probabilities : (...) float array
        Predicted probabilities, in [0, 1], of any float dtype and shape. Leave missing predictions (id -1) out.
    hits : (...) bool array
        Of the same shape: whether each prediction is right, for example from `hits_at_k`.
    n_bins : int
        Number of bins of equal width, at most 10,000. Bin b holds the probabilities p with
        ``b / n_bins < p <= (b + 1) / n_bins``; the first bin also holds 0.

    Returns
    -------
    counts : (n_bins,) int64
    probability : (n_bins,) float64
        Mean probability in each bin; 0 for empty bins.
    hit_share : (n_bins,) float64
        Share of the predictions in each bin that are right; 0 for empty bins.

    Raises
    ------
    TypeError, ValueError
        Probabilities that are not floats, NaN or outside [0, 1]; hits that are not bool or of another shape; n_bins out
        of range.

    Notes
    -----
    Source: A. Niculescu-Mizil, R. Caruana, "Predicting good probabilities with supervised learning", ICML 2005.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.metrics import reliability
    >>> counts, probability, hit_share = reliability(np.array([0.1, 0.3, 0.8]), np.array([False, True, True]), n_bins=2)
    >>> counts
    array([2, 1])
    >>> probability
    array([0.2, 0.8])
    >>> hit_share
    array([0.5, 1. ])
    """
    n_bins = check.integer("n_bins", n_bins, 1, MAX_BINS)
    p, right = check.on_host("probabilities", probabilities), check.on_host("hits", hits)
    if p.dtype.kind != "f":
        raise TypeError(f"probabilities must be floats, got {p.dtype}; use probabilities.astype(np.float64)")
    if right.dtype != bool:
        raise TypeError(f"hits must be bool, got {right.dtype}; use hits.astype(bool)")
    if p.shape != right.shape:
        raise ValueError(f"hits must have shape {p.shape} like probabilities, got {right.shape}")
    p, right = p.ravel().astype(np.float64), right.ravel()
    inside = (p >= 0) & (p <= 1)  # false for NaN
    if not inside.all():
        raise ValueError(f"probabilities must lie in [0, 1], got {p[np.argmin(inside)]:g}")
    bins = np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:-1], p)
    counts = np.bincount(bins, minlength=n_bins)
    filled = np.maximum(counts, 1)
    sums = (np.bincount(bins, weights=values, minlength=n_bins) for values in (p, right))
    probability, hit_share = (total / filled for total in sums)
    return counts, probability, hit_share


def expected_calibration_error(probabilities: Array, hits: Array, n_bins: int = 15) -> float:
    """``ECE = sum over bins of counts / n |mean probability - share of hits|``, with bins of equal width.

    Parameters
    ----------
    probabilities : (...) float array
        Predicted probabilities, in [0, 1], of any float dtype and shape. Leave missing predictions (id -1) out.
    hits : (...) bool array
        Of the same shape: whether each prediction is right, for example from `hits_at_k`.
    n_bins : int
        Number of bins of equal width, as in `reliability`.

    Returns
    -------
    ece : float
        In [0, 1]; 0 for no predictions.

    Raises
    ------
    TypeError, ValueError
        As for `reliability`.

    Notes
    -----
    Source: M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015; C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017, whose
    15 bins are the default.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.metrics import expected_calibration_error
    >>> expected_calibration_error(np.array([0.75, 0.75, 0.5]), np.array([True, True, False]), n_bins=4)
    0.3333333333333333
    """
    counts, probability, hit_share = reliability(probabilities, hits, n_bins)
    return float((counts * np.abs(probability - hit_share)).sum() / max(counts.sum(), 1))
