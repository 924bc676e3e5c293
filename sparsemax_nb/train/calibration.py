"""Calibration: the probability that a predicted label is right, and the threshold from which on labels are predicted.

The scores of a classifier rank labels, but are no probabilities. A logistic regression on a few features of each
prediction, followed by an isotonic regression of its output, turns them into probabilities. Both are fitted to
predictions for rows that the model had not been trained on.
"""

import re

import numpy as np

from ..core import check
from ..metrics import hits_at_k
from .outputs import UNSEEN_SCORE

#: Features of a prediction: its score, the distance to the row's best score, the logarithms of its rank and of one plus
#: the label's number of points, and the score times the latter: labels with few points have lower scores.
N_FEATURES = 5
#: Fewer right or wrong predictions than this are too few for the isotonic regression.
MIN_PREDICTIONS = 50
#: Logits of the logistic regression alone are clipped to this magnitude: few predictions do not prove a probability of
#: 0 or 1.
MAX_LOGIT = 10.0
#: Thresholds that `choose_decision` tries for a measure of F1.
THRESHOLDS = np.arange(1, 100) / 100


class Calibration:
    """Probabilities of predicted labels: ``P(right | score, rank, best score of the row, points of the label)``.

    ``z = intercept + coefficients @ features`` is the output of a logistic regression; the probability is
    ``np.interp(z, logits, values)``, the isotonic regression of z, or ``1 / (1 + exp(-z))`` without one. Labels without
    training points have the probability 0.

    Attributes
    ----------
    intercept : float
    coefficients : (5,) float64
    logits : (T,) float64, strictly increasing
    values : (T,) float64
        In [0, 1], not decreasing. Both are empty if there were fewer than 50 right or 50 wrong predictions.

    Notes
    -----
    A single row takes NumPy alone; scikit-learn is needed for `fit` only.

    Source: J. Platt, "Probabilistic outputs for support vector machines", 1999; B. Zadrozny, C. Elkan, "Transforming
    classifier scores into accurate multiclass probability estimates", KDD 2002. The features are ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.train.calibration import Calibration
    >>> rng = np.random.default_rng(0)
    >>> scores = -np.sort(-rng.random((1000, 2), np.float32))
    >>> ids, n_points = np.tile(np.array([0, 1], np.int32), (1000, 1)), np.full((1000, 2), 9)
    >>> labels = scipy.sparse.csr_matrix(rng.random((1000, 2)) < scores)  # a label is right with the probability score
    >>> calibration = Calibration.fit(scores, ids, labels, n_points)
    >>> bool(np.abs(calibration.probabilities(scores, n_points) - scores).mean() < 0.05)
    True
    """

    def __init__(self, intercept, coefficients, logits, values):
        self.intercept = intercept
        self.coefficients = coefficients
        self.logits = logits
        self.values = values

    @classmethod
    def fit(cls, scores, ids, labels, n_points):
        """A calibration fitted to predictions for rows that the model had not been trained on.

        Parameters
        ----------
        scores : (n, k) float32
            Of each row's best labels, best first. Predictions with the score -1e30, that is of labels without training
            points, are left out.
        ids : (n, k) integers
        labels : (n, L) SciPy sparse matrix
            The labels of these rows.
        n_points : (n, k) integers
            The number of points with the predicted label that the model was trained on.

        Returns
        -------
        calibration : Calibration
            Without wrong, or without right predictions, the probability is ``(n_right + 1) / (n + 2)`` everywhere.

        Raises
        ------
        TypeError, ValueError
            Arrays of the wrong dtype or shape; scores not finite.
        """
        scores = check.array("scores", scores, np.float32, ("n", "k"), finite=True)
        is_right = hits_at_k(check.integers("ids", ids, scores.shape), labels, scores.shape[1])
        n_points = check.integers("n_points", n_points, scores.shape, dtype=np.int64)
        is_known = scores > UNSEEN_SCORE / 2
        x, y = _features(scores, n_points)[is_known], is_right[is_known]
        n_right = int(y.sum())
        nothing = np.empty(0)
        if not 0 < n_right < len(y):
            rate = (n_right + 1) / (len(y) + 2)
            return cls(float(np.log(rate / (1 - rate))), np.zeros(N_FEATURES), nothing, nothing)
        from sklearn import isotonic, linear_model  # here, because it takes long to import

        # The penalty assumes features of about equal scale. A feature that never varies gets the coefficient 0.
        mean, scale = x.mean(0), x.std(0)
        scale[scale <= 1e-9 * np.abs(mean)] = np.inf
        regression = linear_model.LogisticRegression(max_iter=1000).fit((x - mean) / scale, y)
        coefficients = regression.coef_[0] / scale
        found = cls(float(regression.intercept_[0] - coefficients @ mean), coefficients, nothing, nothing)
        if min(n_right, len(y) - n_right) >= MIN_PREDICTIONS:
            # No finite number of predictions proves a probability of 0 or 1.
            low = 1 / (len(y) + 2)
            steps = isotonic.IsotonicRegression(y_min=low, y_max=1 - low).fit(found._logits(x), y)
            found.logits, found.values = steps.X_thresholds_, steps.y_thresholds_
        return found

    def probabilities(self, scores, n_points):
        """The probability of each prediction.

        Parameters
        ----------
        scores : (n, k) float32
            Of each row's best labels, best first.
        n_points : (n, k) integers
            The number of training points of each of these labels.

        Returns
        -------
        probabilities : (n, k) float32
            Within a row they need not descend: of two labels with about the same score, the one with more points is
            more probable.
        """
        z = self._logits(_features(scores, n_points))
        if len(self.logits):
            found = np.interp(z, self.logits, self.values)
        else:
            found = 1 / (1 + np.exp(-np.clip(z, -MAX_LOGIT, MAX_LOGIT)))
        found[scores <= UNSEEN_SCORE / 2] = 0
        return found.astype(np.float32)

    def _logits(self, features):
        return features @ self.coefficients + self.intercept

    def to_arrays(self):
        """The arrays that `from_arrays` reads, by name."""
        return {
            "calibration.regression": np.concatenate([[self.intercept], self.coefficients]),
            "calibration.logits": self.logits,
            "calibration.values": self.values,
        }

    @classmethod
    def from_arrays(cls, arrays):
        """The calibration of arrays read from a file; KeyError, TypeError or ValueError for invalid arrays."""
        regression, logits, values = (arrays[f"calibration.{name}"] for name in ("regression", "logits", "values"))
        check.array("calibration.regression", regression, np.float64, (1 + N_FEATURES,), finite=True)
        check.array("calibration.logits", logits, np.float64, ("T",), finite=True)
        check.array("calibration.values", values, np.float64, logits.shape, finite=True)
        if (logits[1:] <= logits[:-1]).any():
            raise ValueError("calibration.logits must increase")
        if len(values) and not 0 <= values[0] <= values[-1] <= 1 or (values[1:] < values[:-1]).any():
            raise ValueError("calibration.values must lie in [0, 1] and not decrease")
        return cls(float(regression[0]), regression[1:], logits, values)


def choose_decision(probabilities, ids, labels, measure):
    """The threshold and the limit with the best `measure` on held-out rows.

    Of the first `limit` labels of a row, those with at least the probability `threshold` are predicted.

    Parameters
    ----------
    probabilities : (n, k) float32
        Of each row's best labels, in the order in which they are predicted.
    ids : (n, k) integers
    labels : (n, L) SciPy sparse matrix
        The labels of these rows.
    measure : str
        'sample-f1': the mean over the rows of ``2 n_right / (n_predicted + n_true)``, which is 0 for rows without
        labels; the limit is at most k. 'f1@5', or another number (or k): the same with this limit. 'precision=0.8', or
        another number in (0, 1): the lowest threshold at which this share of the predicted labels of all rows is right,
        if one more prediction were wrong, so that a few right ones do not decide; the limit is k.

    Returns
    -------
    threshold : float
        For a precision that no threshold reaches, 1: no probability is as large.
    limit : int

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong dtype or shape, no rows, or an unknown measure.

    Notes
    -----
    For F1 the thresholds 0.01, 0.02 ... 0.99 are tried; of several best ones, the one in the middle is chosen, with the
    smallest limit. The choice is of the rows given: for few rows, the measure on
    other rows is lower.

    Source: D. Lewis, "Evaluating and optimizing autonomous text classification systems", SIGIR 1995: thresholds that
    maximize an expected measure. The limit is ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb.train.calibration import choose_decision
    >>> probabilities = np.array([[0.9, 0.4], [0.8, 0.1]], np.float32)
    >>> ids, labels = np.array([[0, 1], [1, 2]], np.int32), scipy.sparse.csr_matrix([[1, 1, 0], [0, 1, 0]])
    >>> choose_decision(probabilities, ids, labels, "sample-f1")
    (0.26, 2)
    >>> threshold, limit = choose_decision(probabilities, ids, labels, "precision=0.7")
    >>> round(threshold, 3), limit
    (0.4, 2)
    """
    kind, number = parse_measure(measure)
    probabilities = check.array("probabilities", probabilities, np.float32, ("n", "k"), finite=True)
    n, k = check.integer("the number of rows", probabilities.shape[0], 1), probabilities.shape[1]
    is_right = hits_at_k(check.integers("ids", ids, probabilities.shape), labels, k)
    if kind == "precision":
        order = np.argsort(-probabilities, axis=None, kind="stable")
        sorted_probabilities = probabilities.ravel()[order]
        precision = np.cumsum(is_right.ravel()[order]) / np.arange(2, len(order) + 2)
        is_last = np.append(sorted_probabilities[1:] != sorted_probabilities[:-1], True)  # of equal probabilities
        reached = np.flatnonzero(is_last & (precision >= number) & (sorted_probabilities > 0))
        return (float(sorted_probabilities[reached[-1]]) if len(reached) else 1.0), k
    limits = np.arange(1, k + 1)
    if kind == "f1":
        limits = np.array([min(number, k)])
    n_true, f1 = np.diff(labels.tocsr().indptr)[:, None], np.empty((len(THRESHOLDS), len(limits)))
    for of_threshold, threshold in zip(f1, THRESHOLDS, strict=True):
        is_predicted = probabilities >= np.float32(threshold)
        n_right = np.cumsum(is_right & is_predicted, axis=1)[:, limits - 1]
        n_predicted = np.cumsum(is_predicted, axis=1)[:, limits - 1]
        of_threshold[:] = (2 * n_right / np.maximum(n_predicted + n_true, 1)).sum(0) / n
    is_best = f1 >= f1.max() - 1e-12
    limit = int(is_best.any(0).argmax())
    equal = np.flatnonzero(is_best[:, limit])  # with few rows, many thresholds are equally good
    return float(THRESHOLDS[equal[len(equal) // 2]]), int(limits[limit])


def parse_measure(measure):
    """('sample-f1', None), ('f1', limit) or ('precision', share) of a measure; ValueError for others."""
    parsed = (
        re.fullmatch(r"(sample-f1)|f1@(\d{1,6})|precision=(\d*\.?\d+)", measure) if isinstance(measure, str) else None
    )
    if parsed and parsed[1]:
        return "sample-f1", None
    if parsed and parsed[2] and int(parsed[2]) > 0:
        return "f1", int(parsed[2])
    if parsed and parsed[3] and 0 < float(parsed[3]) < 1:
        return "precision", float(parsed[3])
    raise ValueError(
        "threshold must be a number in [0, 1], 'sample-f1', 'f1@5' (or another limit) or 'precision=0.8' (or another "
        "number in (0, 1)), got "
        f"{check.shown(measure)}"
    )


def _features(scores, n_points):
    """(n, k, 5) float64, see N_FEATURES. Those of labels without training points are not used."""
    scores = scores.astype(np.float64)
    log_points = np.log1p(n_points)
    features = np.empty((*scores.shape, N_FEATURES))
    features[..., 0] = scores
    features[..., 1] = scores[:, :1] - scores
    features[..., 2] = np.log(np.arange(1, scores.shape[1] + 1))
    features[..., 3] = log_points
    features[..., 4] = scores * log_points
    return features
