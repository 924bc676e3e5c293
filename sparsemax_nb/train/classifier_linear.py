"""The linear architecture of `Classifier`: training, choice of settings, `partial_fit`, its part of a model file."""

import copy
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import scipy.sparse

from ..co_occurrence import max_pairs
from ..core import check
from ..core.connections import FeatureLists
from ..core.device import to_numpy
from ..feature_choice import between, extended_lists, with_features, without_labels
from ..linear import SparseLinear
from . import linear, linear_file, linear_settings
from .classifier_targets import MATRIX, NAMES, checked_names, encode, object_array, weighted_rows
from .dual_run import DualRun
from .estimator import CHANGEABLE_ON_RESUME, AvailableIf, SampledEstimator
from .models import LinearModel, frequency_prior
from .outputs import UNSEEN_SCORE
from .validation import possible_ks

#: Passes over the data if `epochs` is None.
EPOCHS = 5
#: Parameters that make training take less memory.
SMALLER = "features_per_point, min_features or extra_features, or co_occurrence=0"


class LinearArchitecture(SampledEstimator):
    """Mixin of `Classifier` with the methods for architecture='linear'."""

    @functools.partial(
        AvailableIf,
        lambda self: getattr(self, "architecture_", self.architecture) in ("auto", "linear"),
        "partial_fit needs a linear layer; models of another architecture must be fitted again",
    )
    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
        *,
        names: Mapping[str, str | Sequence[str]] | None = None,
    ) -> Self:
        """Continue the training of a linear layer on new points, which may have new labels; the first call fits one.

        It makes `epochs` passes over the new points, without a time budget. The earlier points are not needed: their
        influence stays in the weights. Because nothing balances it against the new points any more, the weights of a
        label then move from their earlier values to the new ones only by the share ``sqrt(n_new / n)`` of the way,
        n_new of its n points being new. If old and new points contradict each other, pass the old ones again. Each
        label gets `features_per_point` more features per new
        point, the most distinctive ones. Words of new texts become features, and new labels follow the old ones in
        `classes_`. The weights of the old features, C, slack, frequency, co_occurrence and the calibration stay the
        same.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, or sequence of n texts
            As in `fit`.
        y : label matrix, classes or lists of label names
            In the form of the fit. Additional columns of a matrix, and unknown classes and names, are new labels.
        classes : sequence, optional
            In the first call, if y has one class per row: further classes, which y does not contain yet.
        sample_weight : (n,) array, optional
            As in `fit`.
        names : dict, optional
            Names of new labels, as in `fit`; those of known labels are not used.

        Returns
        -------
        self : Classifier

        Raises
        ------
        AttributeError
            The parameter is architecture='network', or the fitted model is a network: the method does not exist.
        TypeError
            X or y of a wrong type.
        ValueError
            X of another width than in `fit`, or not finite; y of another form,
            with fewer columns, or of other points. The model is then unchanged.

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> texts, labels = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9
        >>> model = Classifier(progress=False).fit(texts, labels)
        >>> model.partial_fit(["a ship", "ships at sea"], [["ship"], ["ship"]]).classes_.tolist()
        ['book', 'map', 'new', 'ship']
        >>> model.predict(["the ship"])
        [['ship']]
        """
        if not hasattr(self, self.fitted_attribute):
            self._first_classes = classes
            try:
                return self.fit(X, y, sample_weight, names=names)
            finally:
                del self._first_classes
        self._check_params()
        new = copy.copy(self)
        X, y, weights = weighted_rows(X, y, sample_weight)  # noqa: N806
        x, y, n_names = new._further_inputs(X, y, names)
        if not x.shape[0]:
            raise ValueError("X and y must have at least one row, got 0")
        if weights is not None:
            weights = np.append(weights, np.ones(n_names, np.float32))
        previous = self.label_counts_ + self.name_counts_
        previous = np.append(previous, np.zeros(y.shape[1] - self.n_labels_, np.int64))
        points = new.label_counts_ + new.name_counts_
        model = self.network_
        settings = self._linear_settings(self.C_, self.slack_, self.frequency_)
        settings = replace(settings, extra_features=0.0, co_occurrence=model.weight)
        lists = FeatureLists(*map(to_numpy, model.layer.arrays))
        lists = extended_lists(
            with_features(lists, x.shape[1]), x, y, settings.features_per_point, settings.min_features, previous
        )
        n = x.shape[0] - n_names
        pairs = None if model.pairs is None else model.pairs.extended(y[:n])
        training = linear.DualTraining(
            x, y, settings, self.device_, lists=lists, n_points=points, pairs=pairs, sample_weight=weights,
            is_name=np.arange(x.shape[0]) >= n,
        )  # fmt: skip
        new.history_, new.network_, new.data_ = training.history, training.network, None
        before, is_known = lists.values.copy(), previous > 0
        training.run(progress=self.progress)
        shares = np.where(is_known, np.sqrt((points - previous) / np.maximum(points, 1)), 1).astype(np.float32)
        lists = FeatureLists(*map(to_numpy, training.network.layer.arrays))
        between(lists, before, shares)
        new.network_.layer = SparseLinear._from_lists(lists, self.device_)
        vars(self).update(vars(new))
        return self

    def _further_inputs(self, x, y, names):
        """Features and labels of `partial_fit` with names of new labels at the end, and the number of these names.

        Sets what describes the labels and features.
        """
        form, n_before = self._target_form, self.n_labels_
        if names and form != NAMES:
            raise ValueError("names must be None unless y has lists of label names")
        names = {} if names is None else checked_names(names)
        known = None if form == MATRIX else self.classes_
        if form == NAMES:
            known = object_array(list(dict.fromkeys([*self.classes_.tolist(), *names])))
        y, self.classes_ = encode("y", y, form, known)
        new_labels = list(enumerate(self.classes_.tolist()))[n_before:]
        points = []
        if form == NAMES:
            self.label_names_ = self.label_names_ + [(names.get(label) or [label])[0] for _, label in new_labels]
            points = self._points_of_names(new_labels, names)
        elif self.n_labels_ < y.shape[1]:
            self.label_names_ = None
        if self.vectorizer_ is not None:
            x = self._texts(x)
            self.vectorizer_ = copy.copy(self.vectorizer_).extend([*x, *(name for _, name in points)])
            self.n_features_in_ = self.vectorizer_.n_features_
        x = self._features(x)
        if y.shape[0] != x.shape[0] or y.shape[1] < n_before:
            raise ValueError(f"y must have {x.shape[0]} rows and at least {n_before} columns, got {y.shape}")
        self.n_points_, self.n_labels_ = self.n_points_ + x.shape[0], y.shape[1]
        more = self.n_labels_ - n_before
        self.label_counts_ = np.pad(self.label_counts_, (0, more)) + np.bincount(y.indices, minlength=self.n_labels_)
        self._name_points, name_counts = points, np.pad(self.name_counts_, (0, more))
        n = x.shape[0]
        x, y, _ = self._with_name_points(self._all_batches(x), y, np.arange(n))
        n_names = int(self.name_counts_.sum())
        self.name_counts_ = self.name_counts_ + name_counts
        return x, y, n_names

    def retire(self, labels: Sequence[Any]) -> Self:
        """Remove labels from a linear layer: they belong to no label set any more, and rank last, with the score -1e30.

        Their weights are removed, and their counts become 0. The positions of the other labels do not change.
        `partial_fit` with points of such a label learns it anew.

        Parameters
        ----------
        labels : sequence of labels
            Elements of `classes_`.

        Returns
        -------
        self : Classifier

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet, or a network; an unknown label. The model is then unchanged.

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> texts, labels = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9
        >>> model = Classifier(progress=False).fit(texts, labels).retire(["map"])
        >>> model.predict(["a map"], k=3).tolist()
        [['new', 'book', 'map']]
        """
        self._check_fitted()
        if self.architecture_ != "linear":
            raise ValueError("retire needs architecture='linear'")
        ids, model = self._ids_of("labels", labels), self.network_
        lists = without_labels(FeatureLists(*map(to_numpy, model.layer.arrays)), ids)
        lists.bias[ids] = UNSEEN_SCORE
        counts, name_counts = self.label_counts_.copy(), self.name_counts_.copy()
        counts[ids] = name_counts[ids] = 0
        layer = SparseLinear._from_lists(lists, self.device_)
        self.network_ = LinearModel(layer, model.prior, model.pairs, model.weight)
        self.label_counts_, self.name_counts_ = counts, name_counts
        return self

    def _linear_settings(self, c, slack, frequency):
        epochs = EPOCHS if self.epochs is None else int(self.epochs)
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

    def _linear_memory(self, x, y, held_out):
        """The `Plan` of a linear layer over the sparse features x, whose rows are those of y."""
        return linear.memory(
            n_rows=y.shape[0],
            n_features=x.shape[1],
            n_labels=y.shape[1],
            n_entries=x.nnz,
            points=self.label_counts_ + self.name_counts_,
            features_per_point=self.features_per_point,
            min_features=self.min_features,
            extra_features=self.extra_features,
            n_pairs=max_pairs(y) if self.co_occurrence > 0 else 0,
            held_out=held_out,
        )

    def _linear_training(self, X, y, validation, rows, weights, start):  # noqa: N803
        """The `DualTraining` of a linear layer over sparse features; arguments as for `_dual_training`."""
        held_out = self.calibration and validation is None and start is None
        self._plan(self._linear_memory(X, y[rows], held_out), SMALLER)
        training = self._dual_training(
            X, y, validation, rows, weights, start, held_out=held_out, budget_seconds=self.budget_seconds
        )
        return self._recording(training, validation)

    def _recording(self, training, validation):
        """The `DualRun`, which records the metrics of the `validation` after each epoch, unless that is None."""
        if validation is not None:
            ks = possible_ks(self.n_labels_)
            training.validate = lambda: self._evaluate_with(training.network, *validation, ks)
        return training

    def _dual_training(self, X, y, validation, rows, weights, start, *, make=linear.DualTraining, **options):  # noqa: N803
        """A `DualTraining`, which `make` returns, after choosing C, slack and frequency if they are 'auto'.

        The last rows, ``name_counts_.sum()`` of them, are names of labels. `weights` are those of the rows of X before
        the names, or None. `start` is None, or a model whose weights are the initial ones.
        """
        n_names = int(self.name_counts_.sum())
        is_name = rows >= X.shape[0] - n_names if n_names else None
        if weights is not None:
            weights = np.append(weights, np.ones(n_names, np.float32))[rows]
        y = y[rows]
        self.tfidf_ = self._fitted_tfidf(X[rows] if len(rows) < X.shape[0] else X, validation)
        x = self._all_batches(X, rows)
        wanted = [name for name in ("C", "slack", "frequency") if getattr(self, name) == "auto"]
        initial = {"C": linear_settings.FIRST[0], "slack": linear_settings.FIRST[1], "frequency": 0.0}
        settings = self._linear_settings(
            *(start if name in wanted else getattr(self, name) for name, start in initial.items())
        )
        self.trials_, known = [], []
        if self.vectorizer_ is not None and self.char_weight == "auto" and self.char_ngrams:
            x, known = self._choose_char_weight(x, y, settings, validation, sample_weight=weights, is_name=is_name)
        if wanted:
            held_out = None if validation is None else (self._all_batches(validation[0]), validation[1])
            settings, trials = linear_settings.choose_settings(
                x, y, settings, wanted=wanted, validation=held_out, sample_weight=weights, is_name=is_name, known=known
            )
            self.trials_ = self.trials_ + trials
        self.C_ = settings.C
        self.slack_ = settings.slack
        self.frequency_ = settings.frequency
        if wanted and self.progress:
            chosen = ", ".join(f"{name} = {getattr(self, name + '_'):g}" for name in wanted)
            print(f"sparsemax-nb: {chosen}, after {len(self.trials_)} trials", file=sys.stderr)
        lists = None
        if start is not None:
            settings = replace(settings, extra_features=0.0)
            is_new = start.label_counts_ + start.name_counts_ == 0
            of_new = y @ scipy.sparse.diags(is_new.astype(np.float32), format="csr")
            of_new.eliminate_zeros()
            lists = FeatureLists(*map(to_numpy, start.network_.layer.arrays))  # `extended_lists` copies them
            lists = extended_lists(lists, x, of_new, settings.features_per_point, settings.min_features, 0)
        return make(
            x,
            y,
            settings,
            self.device_,
            lists=lists,
            is_name=is_name,
            as_new=None if self.vectorizer_ is None else self.vectorizer_._as_new,
            sample_weight=weights,
            **options,
        )

    def _choose_char_weight(self, x, y, settings, validation, **options):
        """Choose the weight of the n-grams; returns the features with this weight, and the trials with it.

        Also reweighs the features of the validation set in place.
        """

        def weighted(weight):
            self.vectorizer_.char_weight = weight
            if validation is not None:
                self.vectorizer_._normalized(validation[0])
            return self.vectorizer_._normalized(x.copy()), validation

        wanted = [name for name in ("frequency",) if getattr(self, name) == "auto"]
        weight, self.trials_ = linear_settings.choose_char_weight(weighted, y, settings, wanted=wanted, **options)
        if self.progress:
            print(f"sparsemax-nb: char_weight = {weight:g}, after {len(self.trials_)} trials", file=sys.stderr)
        return weighted(weight)[0], [trial for trial in self.trials_ if trial["char_weight"] == weight]

    def _changeable_on_resume(self, training):
        return CHANGEABLE_ON_RESUME if isinstance(training, DualRun) else super()._changeable_on_resume(training)

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
        prior = frequency_prior(self.frequency_, self.label_counts_ + self.name_counts_, device)
        layer = linear_file.layer_from_arrays(arrays, self._n_sparse, self.n_labels_, device)
        pairs = linear_file.pairs_from_arrays(arrays, self.n_labels_, device) if self.co_occurrence > 0 else None
        self.network_ = LinearModel(layer, prior, pairs, float(self.co_occurrence))
