"""The linear architecture of `Classifier`: training, choice of settings, `partial_fit`, its part of a model file."""

import copy
import functools
import math
import sys
from dataclasses import replace
from typing import Any, Self

import numpy as np

from ..co_occurrence import max_pairs
from ..core import check
from ..core.connections import FeatureLists
from ..core.device import to_numpy
from ..feature_choice import extended_lists
from . import linear, linear_settings
from .classifier_inputs import checked_labels
from .classifier_network import EPOCHS
from .estimator import AvailableIf, SampledEstimator
from .validation import possible_ks

#: Parameters that the network architecture does not have.
LINEAR_ONLY = "C", "slack", "frequency", "co_occurrence", "features_per_point", "min_features", "extra_features"


class LinearArchitecture(SampledEstimator):
    """Mixin of `Classifier` with the methods for architecture='linear'."""

    @functools.partial(AvailableIf, lambda self: self.architecture != "network")
    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Continue the training of a linear layer on new points, which may have new labels; the first call fits.

        It makes `epochs` passes over the new points, without a time budget. The earlier points are not needed. Their
        influence stays in the weights, but is no longer balanced against the new points: if old and new points
        contradict each other, pass the old ones again. Each label gets `features_per_point` more features per new
        point, the most distinctive ones. TF-IDF, C, slack, frequency and co_occurrence stay the same. If there are new
        labels, the label names are discarded.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix
            As in `fit`.
        y : (n, L or more) SciPy CSR matrix
            As in `fit`; additional columns are new labels.
        classes : object, optional
            Ignored: the labels are the columns of y. For compatibility with scikit-learn.

        Returns
        -------
        self : Classifier

        Raises
        ------
        TypeError, ValueError
            The model is a network; X of another width than in `fit`, or not finite; y with fewer labels or of other
            points. The model is then unchanged.
        AttributeError
            With architecture='network' the method does not exist.
        """
        if not hasattr(self, self.fitted_attribute):
            return self.fit(X, y)
        self._check_params()
        if self.architecture_ != "linear":
            raise ValueError("partial_fit needs architecture='linear'; fit a network again, or resume its training")
        X, y = self._features(X), checked_labels("y", y)  # noqa: N806
        if y.shape[0] != X.shape[0] or y.shape[1] < self.n_labels_:
            raise ValueError(f"y must have {X.shape[0]} rows and at least {self.n_labels_} columns, got {y.shape}")
        if not X.shape[0]:
            raise ValueError("X and y must have at least one row, got 0")
        new = copy.copy(self)
        new.n_points_, new.n_labels_ = self.n_points_ + X.shape[0], y.shape[1]
        previous_counts = np.concatenate([self.label_counts_, np.zeros(y.shape[1] - self.n_labels_, np.int64)])
        new.label_counts_ = previous_counts + np.bincount(y.indices, minlength=y.shape[1])
        if self.label_names_ is not None and new.n_labels_ > self.n_labels_:
            new.label_names_ = None
        x, model = self._all_batches(X), self.network_
        settings = self._linear_settings(self.C_, self.slack_, self.frequency_)
        settings = replace(settings, extra_features=0.0, co_occurrence=model.weight)
        lists = FeatureLists(*map(to_numpy, model.layer.arrays))
        lists = extended_lists(lists, x, y, settings.features_per_point, settings.min_features, previous_counts)
        pairs = None if model.pairs is None else model.pairs.extended(y)
        training = linear.DualTraining(
            x, y, settings, self.device_, lists=lists, n_points=new.label_counts_, pairs=pairs
        )
        new.history_, new.network_, new.data_ = training.history, training.network, None
        training.run(progress=self.progress)
        vars(self).update(vars(new))
        return self

    def _linear_settings(self, c, slack, frequency):
        epochs = EPOCHS["linear"] if self.epochs is None else int(self.epochs)
        return linear.Settings(
            float(c),
            float(slack),
            float(frequency),
            float(self.co_occurrence),
            float(self.features_per_point),
            int(self.min_features),
            float(self.extra_features),
            epochs,
            int(self.seed),
        )

    def _linear_training(self, X, y, validation, rows):  # noqa: N803
        """The `DualTraining` of a linear layer, after choosing C, slack and frequency if they are 'auto'."""
        y = y[rows]
        self._plan(
            linear.memory(
                n_rows=len(rows),
                n_features=X.shape[1],
                n_labels=y.shape[1],
                n_entries=X.nnz,
                points=self.label_counts_,
                features_per_point=self.features_per_point,
                min_features=self.min_features,
                extra_features=self.extra_features,
                n_pairs=max_pairs(y) if self.co_occurrence > 0 else 0,
            ),
            "features_per_point, min_features or extra_features, or co_occurrence=0",
        )
        self.tfidf_ = self._fitted_tfidf(X[rows] if len(rows) < X.shape[0] else X, validation)
        x = self._all_batches(X, rows)
        wanted = [name for name in ("C", "slack", "frequency") if getattr(self, name) == "auto"]
        initial = {"C": linear_settings.FIRST[0], "slack": linear_settings.FIRST[1], "frequency": 0.0}
        settings = self._linear_settings(
            *(start if name in wanted else getattr(self, name) for name, start in initial.items())
        )
        self.trials_ = []
        if wanted:
            held_out = None if validation is None else (self._all_batches(validation[0]), validation[1])
            settings, self.trials_ = linear_settings.choose_settings(x, y, settings, wanted=wanted, validation=held_out)
        self.C_ = settings.C
        self.slack_ = settings.slack
        self.frequency_ = settings.frequency
        if wanted and self.progress:
            chosen = ", ".join(f"{name} = {getattr(self, name + '_'):g}" for name in wanted)
            print(f"sparsemax-nb: {chosen}, after {len(self.trials_)} trials", file=sys.stderr)
        ks = possible_ks(y.shape[1])
        training = linear.DualTraining(x, y, settings, self.device_, budget_seconds=self.budget_seconds)
        if validation is not None:
            training.validate = lambda: self._evaluate_with(training.network, *validation, ks)
        return training

    def _all_batches(self, x, rows=None):
        """The features of the rows with these ids, of all rows by default, as one CSR matrix that the model takes."""
        rows = np.arange(x.shape[0]) if rows is None else rows
        return linear.weighted_csr(lambda ids: self._batch(x, rows[ids]), len(rows), x.shape[1], x.nnz)

    def _restore_linear(self, arrays, about, device):
        if self.is_dense_:
            raise ValueError("a linear layer needs sparse features, but is_dense is true")
        self.C_ = check.number("C", about["C"], 0, math.inf, open_ends=True)
        self.slack_ = check.number("slack", about["slack"], 0, 1.999)
        self.frequency_ = check.number("frequency", about["frequency"], 0, 1e6)
        prior = linear.frequency_prior(self.frequency_, self.label_counts_, device)
        layer = linear.layer_from_arrays(arrays, self.n_features_in_, self.n_labels_, device)
        pairs = linear.pairs_from_arrays(arrays, self.n_labels_, device) if self.co_occurrence > 0 else None
        self.network_ = linear.LinearModel(layer, prior, pairs, float(self.co_occurrence))
