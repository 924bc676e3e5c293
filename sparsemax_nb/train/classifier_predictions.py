"""Predictions of `Classifier`: best labels, label sets, probabilities, metrics."""

import functools
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from .. import metrics
from ..core import check, sparse
from . import loop, models
from .calibration import Calibration, choose_decision
from .classifier_targets import CLASS, MATRIX, NAMES, checked_weights, encode, object_array
from .estimator import AvailableIf, SampledEstimator
from .outputs import UNSEEN_SCORE
from .validation import metrics_at_k, possible_ks

#: Added to the scores of labels that may not be predicted. Scores below the limit stand for no label.
FORBIDDEN, NO_LABEL = np.float32(-1e35), np.float32(-1e34)
#: Factor of a score in its log-odds, about: for a linear layer and squared hinge, and for losses of log-odds.
SLOPES = {"squared-hinge": 4.0, "bce": 1.0, "softmax": 1.0}
#: Labels per row that are considered for a label set; as many as a linear layer reranks and calibrates on.
CANDIDATES = models.CANDIDATES
#: Maximum bytes of a dense array of scores or probabilities.
MAX_DENSE = 1 << 32
#: Entries of such an array that are computed at once: bounds the temporary memory.
DENSE_BLOCK = 1 << 22
#: Rows per batch where a network ranks all labels.
ROWS_OF_ALL_LABELS = 16


class ClassifierPredictions(SampledEstimator):
    """Mixin of `Classifier` with the methods that predict."""

    def top_k(
        self,
        X: Any,
        k: int | None = None,
        *,
        allow: Sequence[Any] | None = None,
        forbid: Sequence[Any] | None = None,
        label_weights: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best labels of each row.

        X is processed in batches: apart from the result, memory does not depend on n. Texts are first converted to
        features, all at once.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, or sequence of n texts
            As in `fit`.
        k : int, optional
            At most L. By default 5, or L if that is smaller.
        allow, forbid : sequence of labels, optional
            The labels (elements of `classes_`) that may, or may not, be predicted.
        label_weights : (L,) array, dict or 'inverse-propensity', optional
            Factors of the odds of the labels, at least 0; a dict gives those that are not 1. 'inverse-propensity' is
            ``1 / propensities(label_counts_, n_points_)``, which favors rare labels. A score gets
            ``log(weight) / slope``; the slope is 4, or 1 for a network with loss='bce' or 'softmax'.

        Returns
        -------
        scores : (n, k) float32
            NumPy, descending. For a linear layer those of `rerank`: a label that moved up gets the score of the label
            before it.
        ids : (n, k) int32
            NumPy; positions in `classes_`, best first. If fewer labels are allowed, the rest is -1, with score -inf.
            A row without features, such as an empty text or one without known words, has the scores of the biases.

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; X of another kind or width than in `fit`, or not finite; k out of range; an
            unknown label; weights that are negative or not finite.
        """
        self._check_fitted()
        k = min(5, self.n_labels_) if k is None else k
        return self._top_k(self._features(X), k, self._offsets(allow, forbid, label_weights))

    def _top_k(self, x, k, offsets=None):
        """`top_k` of checked features."""
        check.integer("k", k, 1, self.n_labels_, f" (n_labels = {self.n_labels_})")
        return self._top_k_with(self.network_, x, k, offsets)

    def _top_k_with(self, network, x, k, offsets=None):
        has_offsets = isinstance(network, models.Model)
        batch_size = models.ROWS_PER_PREDICTION if has_offsets else self.batch_size
        if offsets is not None and has_offsets:
            network = network.with_offsets(offsets)
        if offsets is None or has_offsets:
            scores, ids = loop.top_k(network, x.shape[0], lambda rows: self._batch(x, rows), k, batch_size)
        else:
            scores, ids = np.empty((x.shape[0], k), np.float32), np.empty((x.shape[0], k), np.int32)
            for first in range(0, x.shape[0], ROWS_OF_ALL_LABELS):
                rows = slice(first, min(first + ROWS_OF_ALL_LABELS, x.shape[0]))
                all_scores, all_ids = loop.top_k(
                    network,
                    rows.stop - first,
                    lambda part, first=first: self._batch(x, slice(first + part.start, first + part.stop)),
                    self.n_labels_,
                    batch_size,
                )
                all_scores += offsets[all_ids]
                best = np.lexsort((all_ids, -all_scores))[:, :k]
                scores[rows] = np.take_along_axis(all_scores, best, 1)
                ids[rows] = np.take_along_axis(all_ids, best, 1)
        if offsets is not None:
            missing = scores < NO_LABEL
            scores[missing], ids[missing] = -np.inf, -1
        return scores, ids

    def _offsets(self, allow, forbid, label_weights):
        """What is added to the scores, (L,) float32, or None."""
        if allow is None and forbid is None and label_weights is None:
            return None
        offsets = np.zeros(self.n_labels_, np.float32)
        if label_weights is not None:
            weights = self._label_weights(label_weights)
            with np.errstate(divide="ignore"):
                offsets += (np.log(weights) / self._slope).astype(np.float32)
        if allow is not None:
            forbidden = np.ones(self.n_labels_, bool)
            forbidden[self._ids_of("allow", allow)] = False
            offsets[forbidden] = FORBIDDEN
        if forbid is not None:
            offsets[self._ids_of("forbid", forbid)] = FORBIDDEN
        return np.maximum(offsets, FORBIDDEN)

    _slope = property(lambda self: SLOPES[self.loss if self.architecture_ == "network" else "squared-hinge"])

    def _label_weights(self, weights):
        """Weights of the labels, (L,) float64."""
        if isinstance(weights, str):
            check.choice("label_weights", weights, ("inverse-propensity",))
            return 1 / metrics.propensities(self.label_counts_, max(self.n_points_, 3))
        if isinstance(weights, Mapping):
            values = np.ones(self.n_labels_)
            values[self._ids_of("label_weights", list(weights))] = list(weights.values())
            weights = values
        return check.nonnegative("label_weights", weights, self.n_labels_).astype(np.float64)

    def _ids_of(self, name, labels):
        """Positions of labels in `classes_`; ValueError for an unknown one."""
        is_array = isinstance(labels, np.ndarray)
        if isinstance(labels, (str, bytes)) or not hasattr(labels, "__iter__") or (is_array and labels.ndim != 1):
            raise TypeError(f"{name} must be a sequence of labels, got {check.shown(labels)}")
        known = {label: i for i, label in enumerate(self.classes_.tolist())}
        labels = labels.tolist() if is_array else list(labels)
        for label in labels:
            if not isinstance(label, Hashable) or label not in known:
                raise ValueError(f"{name} must contain labels of the model, got {check.shown(label)}")
        return np.array([known[label] for label in labels], np.int64)

    # ------------------------------------------------------------ label sets

    def predict(
        self,
        X: Any,
        k: int | None = None,
        *,
        threshold: float | None = None,
        limit: int | None = None,
        allow: Sequence[Any] | None = None,
        forbid: Sequence[Any] | None = None,
        label_weights: Any = None,
    ) -> Any:
        """Return the predicted label set of each row, in the form of y in `fit`; or, with k, its k best labels.

        The set consists of the best labels with a probability of at least `threshold`, at most `limit` of them. By
        default these are `threshold_` and `limit_`, which were chosen on held-out points. A model that is not
        calibrated predicts the labels with a score of at least 0; with loss='softmax', the best label.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, or sequence of n texts
            As in `fit`.
        k : int, optional
            Number of labels; not together with `threshold` or `limit`.
        threshold : float, optional
            In [0, 1].
        limit : int, optional
            At least 1.
        allow, forbid, label_weights : optional
            As in `top_k`. They decide which labels are the best. The threshold applies to the probability of the
            unweighted score at its rank among the labels that are left.

        Returns
        -------
        labels : array, CSR matrix or list
            If y had one class per row: (n,) classes. If it had lists of label names: a list of lists of names, best
            first. If it was a matrix: (n, L), CSR float32 if it was sparse, else a dense array of its dtype.
            An empty text, or one without known words, gets the labels that the biases alone predict, most often none.
            With k: (n, k) labels (elements of `classes_`), best first; for a matrix int32 ids.

        Raises
        ------
        TypeError, ValueError
            As for `top_k`; threshold or limit out of range, or together with k; a threshold without calibration.

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> texts, labels = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9
        >>> model = Classifier(progress=False).fit(texts, labels)
        >>> model.predict(["a map", "books"])
        [['map'], ['book']]
        >>> model.predict(["a map"], k=2, forbid=["map"]).tolist()
        [['new', 'book']]
        """
        self._check_fitted()
        x, offsets = self._features(X), self._offsets(allow, forbid, label_weights)
        if k is not None:
            if threshold is not None or limit is not None:
                raise ValueError("k and threshold or limit must not be given together")
            ids = self._top_k(x, k, offsets)[1]
            return ids if self._target_form == MATRIX else self._classes_at(ids)
        if self._target_form == CLASS:
            if threshold is not None or limit is not None:
                raise ValueError("threshold and limit must be None if there is one class per row")
            ids = self._top_k(x, 1, offsets)[1]
            if (ids < 0).any():
                raise ValueError("allow and forbid must leave at least one class")
            return self.classes_[ids[:, 0]]
        scores, ids = self._top_k(x, self._n_candidates(limit), offsets)
        chosen = self._chosen(scores, ids, offsets, threshold, limit)
        if self._target_form == NAMES:
            return [self.classes_[row[mask]].tolist() for row, mask in zip(ids, chosen, strict=True)]
        labels = _label_sets(ids, chosen, self.n_labels_)
        return labels if self._target_dtype is None else labels.toarray().astype(self._target_dtype)

    def _answers(self, x, k, threshold, limit, offsets):
        """The best labels of checked features as the commands print them: (scores, ids, probabilities, chosen).

        `probabilities` is None without calibration. `chosen` is a mask of the k best labels; without k, of the label
        set if the model is calibrated or `threshold` or `limit` is given, else of the 5 best.
        """
        if k is not None and not (threshold is None and limit is None):
            raise ValueError("k and threshold or limit must not be given together")
        is_set = k is None and (self.calibration_ is not None or threshold is not None or limit is not None)
        if is_set and self._target_form == CLASS and threshold is None:
            is_set, k = False, 1
        if not is_set:
            k = min(5, self.n_labels_) if k is None else k
        n = self._n_candidates(limit) if is_set else k
        is_class = self._target_form == CLASS
        scores, ids = self._top_k(x, max(n, self._n_candidates(None)) if is_class else n, offsets)
        probabilities = None
        if self.calibration_ is not None:
            of_labels = self._class_probabilities if is_class else self._probabilities
            probabilities = of_labels(_without(offsets, scores, ids), ids)[:, :n]
        scores, ids = scores[:, :n], ids[:, :n]
        chosen = self._chosen(scores, ids, offsets, threshold, limit) if is_set else ids >= 0
        return scores, ids, probabilities, chosen

    def _n_candidates(self, limit):
        """The number of labels per row that are considered for a label set."""
        return min(max(CANDIDATES, limit or 0, self.limit_ or 0), self.n_labels_)

    def _chosen(self, scores, ids, offsets, threshold, limit):
        """(n, k) bool: the labels of a top-k that belong to the set."""
        limit = self.limit_ if limit is None else check.integer("limit", limit, 1)
        plain = _without(offsets, scores, ids)
        if self.calibration_ is not None:
            threshold = self.threshold_ if threshold is None else check.number("threshold", threshold, 0, 1)
            chosen = self._probabilities(plain, ids) >= threshold
        elif threshold is not None:
            raise ValueError("threshold needs calibration; fit with a validation set, or call calibrate(X, y)")
        elif self.architecture_ == "network" and self.loss == "softmax":
            chosen = np.zeros(ids.shape, bool)
            chosen[:, 0] = True
        else:
            chosen = plain >= 0
        chosen &= (ids >= 0) & (plain > UNSEEN_SCORE / 2)
        return chosen if limit is None else chosen & (np.cumsum(chosen, 1) <= limit)

    def _classes_at(self, ids):
        """`classes_` of ids; None where an id is -1."""
        if (ids >= 0).all():
            return self.classes_[ids]
        found = object_array(self.classes_.tolist())[ids]
        found[ids < 0] = None
        return found

    # ------------------------------------------------------------ probabilities

    def calibrate(self, X: Any, y: Any) -> Any:
        """Learn probabilities, and choose `threshold_` and `limit_`, on points that the model was not trained on.

        `fit` does this itself: a linear layer on points that join the training late, or that other layers predict, and
        a network on the validation points.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, or sequence of n texts
            As in `fit`.
        y : label matrix, classes or lists of label names
            As in `fit`.

        Returns
        -------
        self : Classifier

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; X or y invalid; no point has a label.

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> texts, labels = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9
        >>> model = Classifier(progress=False, calibration=False).fit(texts, labels)
        >>> model.calibrate(["a map", "books", "a new book"], [["map"], ["book"], ["book"]]).predict(["books"])
        [['book']]
        """
        self._check_fitted()
        x, labels = self._pair(X, y)
        if not labels.nnz:
            raise ValueError("y must have at least one label")
        self._calibrate_on(x, labels)
        return self

    def _calibrate_on(self, x, labels):
        """Calibrate on checked features and labels."""
        self._calibrate(*self._top_k(x, min(CANDIDATES, self.n_labels_)), labels)

    def _calibrate_after(self, training, labels, validation):
        """Calibrate on the validation points, or on those of the `labels` that a linear layer has held out."""
        if validation is not None:
            self._calibrate_on(*validation)
        elif getattr(training, "held_out", None) is not None:
            scores, ids, n_points, rows = training.held_out
            self._calibrate(scores, ids, labels[rows], n_points)

    def _calibrate(self, scores, ids, labels, n_points=None):
        """Set the calibration from held-out scores, ids and points of the ids (n, k), and from the true labels."""
        n_points = self._points_of(ids) if n_points is None else n_points
        calibration = Calibration.fit(scores, ids, labels, n_points)
        measure, is_measure = self.threshold, isinstance(self.threshold, str)
        threshold, limit = 0.5, None
        if len(scores):
            probabilities = calibration.probabilities(scores, n_points)
            threshold, limit = choose_decision(probabilities, ids, labels, measure if is_measure else "sample-f1")
        self.calibration_, self.threshold_ = calibration, threshold if is_measure else float(measure)
        self.limit_ = limit if self.limit == "auto" else self._fixed_limit

    @property
    def _fixed_limit(self):
        """The parameter `limit` as an int, None if it is 'auto' or None."""
        return None if self.limit in (None, "auto") else int(self.limit)

    def _points_of(self, ids):
        """The number of training points of labels, names included."""
        return (self.label_counts_ + self.name_counts_)[ids]

    @functools.partial(
        AvailableIf,
        lambda self: self.calibration_ is not None if self.__sklearn_is_fitted__() else self._may_be_calibrated,
        "predict_proba needs calibration; fit with a validation set, or call calibrate(X, y)",
    )
    def predict_proba(self, X: Any, k: int | None = None) -> Any:
        """Return the calibrated probability that a label is right, for all labels or for the k best.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, or sequence of n texts
            As in `fit`.
        k : int, optional
            Return a sparse matrix with the k best labels of each row. Without it all L labels are ranked, and stored.

        Returns
        -------
        probabilities : (n, L) float32
            In [0, 1]; a dense array, with `k` a CSR matrix. Labels are independent, except if y had one class per row:
            then a row of the dense array (but not of the CSR matrix) sums to 1.

        Raises
        ------
        AttributeError
            The model is not calibrated (a network fitted without validation points): the method does not exist.
        TypeError, ValueError
            As for `top_k`; more than 4 GiB without `k`.
        """
        self._check_fitted()
        x = self._features(X)
        if k is None:
            return self._dense(x, self._class_probabilities if self._target_form == CLASS else self._probabilities)
        scores, ids = self._top_k(x, k)
        probabilities, indptr = self._probabilities(scores, ids), np.arange(len(ids) + 1) * k
        found = scipy.sparse.csr_matrix((probabilities.ravel(), ids.ravel(), indptr), shape=(len(ids), self.n_labels_))
        found.sort_indices()
        return found

    def _probabilities(self, scores, ids):
        """Probabilities of a top-k; 0 where the id is -1."""
        return self.calibration_.probabilities(np.maximum(scores, UNSEEN_SCORE), self._points_of(ids))

    @property
    def _may_be_calibrated(self):
        """Whether `fit` without a validation set learns probabilities, as far as the parameters tell."""
        return self.calibration and (self.architecture != "network" or self.validation_fraction > 0)

    def _class_probabilities(self, scores, ids):
        """`_probabilities` of all classes, best first, for rows with one class each: their sum is 1.

        The class with the best score, which `predict` returns, is the only one with the largest probability.
        """
        values = np.minimum.accumulate(self._probabilities(scores, ids), axis=1).astype(np.float64)
        values[:, CANDIDATES:] = 0  # the calibration does not know these ranks, and there can be very many
        values += 1e-9  # where all are 0
        values[:, 0] *= 1 + 1e-6
        return (values / values.sum(1, keepdims=True)).astype(np.float32)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of all labels.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, or sequence of n texts
            As in `fit`.

        Returns
        -------
        scores : (n, L) float32
            If y had two classes: (n,), the score of the second minus that of the first, as in scikit-learn.

        Raises
        ------
        TypeError, ValueError
            As for `top_k`; more than 4 GiB of scores: use `top_k`.

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> texts, labels = ["old maps", "old books", "new maps"] * 9, ["map", "book", "map"] * 9
        >>> model = Classifier(progress=False).fit(texts, labels)
        >>> (model.decision_function(["maps", "books"]) > 0).tolist()
        [True, False]
        """
        self._check_fitted()
        scores = self._dense(self._features(X), lambda scores, ids: scores)
        return scores[:, 1] - scores[:, 0] if self._target_form == CLASS and self.n_labels_ == 2 else scores

    def _dense(self, x, values):
        """``values(scores, ids)`` of all labels in their columns, (n, L) float32."""
        nbytes = 4 * x.shape[0] * self.n_labels_
        if nbytes > MAX_DENSE:
            raise ValueError(
                f"X has {x.shape[0]} rows: {self.n_labels_} labels of each take {nbytes / 2**30:.1f} GiB; use top_k, "
                "predict_proba(X, k=20), or fewer rows at once"
            )
        dense = np.empty((x.shape[0], self.n_labels_), np.float32)
        step = min(models.ROWS_PER_PREDICTION, max(1, DENSE_BLOCK // self.n_labels_))
        for first in range(0, x.shape[0], step):
            rows = slice(first, min(first + step, x.shape[0]))
            scores, ids = self._top_k(x[rows], self.n_labels_)
            np.put_along_axis(dense[rows], ids, values(scores, ids), 1)
        return dense

    # ------------------------------------------------------------ metrics

    def evaluate(
        self, X: Any, y: Any, ks: Sequence[int] | None = None, *, excluded: Any = None, label_weights: Any = None
    ) -> dict[str, float]:
        """Return ranking metrics, metrics of the predicted label sets, and the seconds that prediction took.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, or sequence of n texts
            As in `fit`.
        y : label matrix, classes or lists of label names
            As in `fit`. Names that the model does not know count as missed.
        ks : sequence of int, optional
            By default 1, 3 and 5, as far as there are enough labels.
        excluded : (n, L) SciPy sparse matrix, optional
            Pairs of point and label that are neither right nor wrong, see `metrics.precision_at_k`.
        label_weights : optional
            As in `top_k`.

        Returns
        -------
        metrics : dict
            In [0, 1]: P@k, nDCG@k, R@k, PSP@k (after a fit on at least three points), F1@k and MAP@k with the values of
            k, such as 'P@1'. Of label sets, not for one class per row: 'sample F1', 'micro F1', 'macro F1'. Of a
            calibrated model: 'ECE', the expected calibration error of the best labels (20, or as many as there are).
            And 'seconds'.

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; X of another kind or width than in `fit`, or not finite; y of another shape; a
            k out of range.
        """
        self._check_fitted()
        if ks is None:
            ks = possible_ks(self.n_labels_)
        else:
            ks = [check.integer("ks", k, 1, self.n_labels_) for k in check.sequence("ks", ks, "integers")]
            check.integer("the number of ks", len(ks), 1)
        x, labels = self._pair(X, y)
        if excluded is not None:
            excluded = sparse.as_ones("excluded", excluded)
            if excluded.shape != labels.shape:
                raise ValueError(f"excluded must have shape {labels.shape} like y, got {excluded.shape}")
        offsets, start = self._offsets(None, None, label_weights), time.perf_counter()
        n_excluded = 0 if excluded is None else int(np.diff(excluded.indptr).max(initial=0))
        n = min(max(*ks, CANDIDATES) + n_excluded, self.n_labels_)
        scores, ids = self._top_k(x, n, offsets)
        seconds = time.perf_counter() - start
        found = self._ranking_metrics(ids, labels, ks, excluded)
        if self._target_form != CLASS:
            best = slice(0, self._n_candidates(None))
            chosen = self._chosen(scores[:, best], ids[:, best], offsets, None, None)
            predicted, true = _label_sets(ids[:, best], chosen, labels.shape[1]), labels
            if excluded is not None:
                predicted, true = (m - m.multiply(excluded) for m in (predicted, true))
            found |= {
                "sample F1": metrics.sample_f1(predicted, true),
                "micro F1": metrics.micro_f1(predicted, true),
                "macro F1": metrics.macro_f1(predicted, true),
            }
        if self.calibration_ is not None:
            best = slice(0, min(CANDIDATES, self.n_labels_))
            probabilities = self._probabilities(_without(offsets, scores, ids)[:, best], ids[:, best])
            hits = metrics.hits_at_k(ids, labels, best.stop)
            found["ECE"] = metrics.expected_calibration_error(probabilities[ids[:, best] >= 0], hits[ids[:, best] >= 0])
        return found | {"seconds": seconds}

    def _evaluate_with(self, network, x, labels, ks):
        """Ranking metrics of a network or linear layer during the training."""
        start = time.perf_counter()
        ids = self._top_k_with(network, x, max(ks))[1]
        seconds = time.perf_counter() - start
        return self._ranking_metrics(ids, labels, ks) | {"seconds": seconds}

    def _ranking_metrics(self, ids, labels, ks, excluded=None):
        propensity = None
        if self.n_points_ > 2:
            propensity = metrics.propensities(self._counts_of_all(labels.shape[1]), self.n_points_)
        return metrics_at_k(ids, labels, ks, propensity, excluded)

    def _counts_of_all(self, n_labels):
        """`label_counts_`, followed by zeros for labels that the model does not know."""
        return np.pad(self.label_counts_, (0, n_labels - self.n_labels_))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return P@1, the share of the rows whose best label is correct; for one class per row it is the accuracy.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, or sequence of n texts
            As in `fit`.
        y : label matrix, classes or lists of label names
            As in `fit`.
        sample_weight : (n,) array, optional
            Weights of the rows in the mean, at least 0.

        Returns
        -------
        p : float
            In [0, 1].

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; X of another kind or width than in `fit`, or not finite; y of another shape.
        """
        self._check_fitted()
        x, labels = self._pair(X, y)
        ids, weights = self._top_k(x, 1)[1], checked_weights(sample_weight, x.shape[0])
        if weights is None:
            return metrics.precision_at_k(ids, labels, 1)
        return float(np.average(metrics.hits_at_k(ids, labels, 1)[:, 0], weights=weights))

    def _pair(self, x, y):
        """Checked features, and labels as CSR whose first columns are the model's labels; names can add others."""
        x = self._features(x)
        form = self._target_form
        y, classes = encode("y", y, form, None if form == MATRIX else self.classes_)
        if y.shape[0] != x.shape[0] or (form == MATRIX and y.shape[1] != self.n_labels_):
            raise ValueError(f"y must have shape ({x.shape[0]}, {self.n_labels_}), got {y.shape}")
        return x, y


def _without(offsets, scores, ids):
    """Scores without the offsets that `top_k` has added."""
    return scores if offsets is None else scores - offsets[np.maximum(ids, 0)]


def _label_sets(ids, chosen, n_labels):
    """The chosen ids of each row as a matrix, (n, n_labels) canonical CSR of ones."""
    indptr = np.concatenate([[0], np.cumsum(chosen.sum(1))])
    labels = (np.ones(indptr[-1], np.float32), ids[chosen], indptr)
    labels = scipy.sparse.csr_matrix(labels, shape=(len(ids), n_labels))
    labels.sort_indices()
    return labels
