"""The model file of a `Classifier`, apart from the parameters of its network."""

import re

import numpy as np

from ..core import check, description
from ..data import TextVectorizer, Tfidf, vectorizer
from . import linear_file
from .calibration import Calibration
from .classifier_params import ARCHITECTURES
from .classifier_targets import CLASS_KINDS, FORMS, MATRIX, NAMES, object_array
from .estimator import DATA_DESCRIPTION

#: Description in the model file of a classifier.
DESCRIPTION = description.record(
    architecture=description.text,
    C=description.optional(description.number(0)),
    slack=description.optional(description.number(0)),
    frequency=description.optional(description.number(0)),
    power=description.optional(description.number(1, 100)),
    kernel_C=description.optional(description.number(0)),
    kernel_weight=description.optional(description.number(0)),
    head_weight=description.optional(description.number(0)),
    params=description.record(),
    n_features=description.integer(1),
    n_labels=description.integer(1),
    n_points=description.integer(0),
    is_dense=description.boolean,
    n_dense=description.integer(0),
    label_names=description.optional(description.list_of(description.text)),
    tfidf=description.boolean,
    vectorizer=description.optional(vectorizer.DESCRIPTION),
    targets=description.record(
        form=description.text,
        dtype=description.optional(description.text),
        classes=description.optional(description.list_of(description.text_or_number)),
        classes_dtype=description.text,
    ),
    threshold=description.optional(description.number(0, 1)),
    limit=description.optional(description.integer(1)),
    feature_names=description.optional(description.list_of(description.text)),
    calibrated=description.boolean,
    data=DATA_DESCRIPTION,
)


def _dtype(name, text):
    """The dtype of a name such as int64 or <U8; NumPy parses other text as Python."""
    if not re.fullmatch("[<>|]?[A-Za-z]+[0-9]{0,9}", text):
        raise ValueError(f"{name} must be the name of a dtype, got {check.shown(text)}")
    return np.dtype(text)


class ClassifierFile:
    """Mixin of `Classifier` that converts the fitted model to and from the contents of a file."""

    def _state(self):
        """(arrays, description) of the model without its network's parameters, which the estimator adds."""
        arrays = {"label_counts": self.label_counts_, "name_counts": self.name_counts_}
        if self.vectorizer_ is not None:
            arrays |= self.vectorizer_._arrays()
        if self.calibration_ is not None:
            arrays |= self.calibration_.to_arrays()
        if (pairs := getattr(self.network_, "pairs", None)) is not None:
            arrays |= linear_file.pairs_to_arrays(pairs)
        if self.tfidf_ is not None:
            arrays["tfidf.idf"] = self.tfidf_.idf_
        names = "architecture", "C", "slack", "frequency", "power", "kernel_C", "kernel_weight", "head_weight"
        about = {name: getattr(self, f"{name}_", None) for name in names}
        about |= {
            "n_features": self.n_features_in_,
            "n_labels": self.n_labels_,
            "n_points": self.n_points_,
            "is_dense": self.is_dense_,
            "n_dense": self.n_dense_,
            "tfidf": self.tfidf_ is not None,
            "feature_names": list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None,
            "label_names": self.label_names_,
            "vectorizer": None if self.vectorizer_ is None else self.vectorizer_._description(),
            "targets": {
                "form": self._target_form,
                "dtype": None if self._target_dtype is None else str(self._target_dtype),
                "classes": None if self._target_form == MATRIX else self.classes_.tolist(),
                "classes_dtype": str(self.classes_.dtype),
            },
            "calibrated": self.calibration_ is not None,
            "threshold": self.threshold_,
            "limit": self.limit_,
        }
        return arrays, about

    def _restore(self, arrays, about, device):
        """Set the fitted attributes from the contents of a file; TypeError or ValueError where they do not fit."""
        self.n_features_in_, self.n_labels_ = about["n_features"], about["n_labels"]
        self.n_points_, self.is_dense_, self.n_dense_ = about["n_points"], about["is_dense"], about["n_dense"]
        if self.n_dense_ and (self.is_dense_ or self.n_dense_ >= self.n_features_in_):
            raise ValueError(f"n_dense must be below n_features = {self.n_features_in_}, and 0 if is_dense is true")
        self.label_names_ = about["label_names"]
        if self.label_names_ is not None and len(self.label_names_) != self.n_labels_:
            raise ValueError(f"label_names must have {self.n_labels_} names, got {len(self.label_names_)}")
        self.label_counts_ = check.array("label_counts", arrays["label_counts"], np.int64, (self.n_labels_,))
        check.in_range("label_counts", self.label_counts_, self.n_points_ + 1)
        self.name_counts_ = check.array("name_counts", arrays["name_counts"], np.int64, (self.n_labels_,))
        check.in_range("name_counts", self.name_counts_, 2**31)
        self._restore_targets(about["targets"])
        self.vectorizer_ = self.calibration_ = None
        if about["vectorizer"] is not None:
            self.vectorizer_ = TextVectorizer._from_arrays(arrays, about["vectorizer"])
            if self.vectorizer_.n_features_ != self._n_sparse:
                raise ValueError(f"text.idf must have {self._n_sparse} features")
        if about["calibrated"]:
            self.calibration_ = Calibration.from_arrays(arrays)
            check.number("threshold", about["threshold"], 0, 1)
        self.threshold_, self.limit_ = about["threshold"], about["limit"]
        if self.vectorizer_ is not None and (self.is_dense_ or about["tfidf"]):
            raise ValueError("a model of texts has sparse weights, but is_dense or tfidf is true")
        names, self.tfidf_ = about["feature_names"], None
        if names is not None:
            if len(names) != self.n_features_in_:
                raise ValueError(f"feature_names must have {self.n_features_in_} names, got {len(names)}")
            self.feature_names_in_ = np.array(names, object)
        if about["tfidf"]:
            self.tfidf_ = Tfidf()
            self.tfidf_.idf_ = check.array("tfidf.idf", arrays["tfidf.idf"], np.float32, (self._n_sparse,))
            check.finite("tfidf.idf", self.tfidf_.idf_)
        self.architecture_ = check.choice("architecture", about["architecture"], ARCHITECTURES)
        if (self.architecture_ == "wide-and-deep") != (self.n_dense_ > 0):
            raise ValueError(f"n_dense must not be {self.n_dense_} for architecture={self.architecture_!r}")
        if self.dense_columns and (self.dense_columns != self.n_dense_ or self.vectorizer_ is not None):
            raise ValueError(f"dense_columns must be 0, or n_dense if there is no vectorizer, got {self.dense_columns}")
        restore = {
            "linear": self._restore_linear,
            "wide-and-deep": self._restore_wide,
            "kernel": self._restore_kernel,
            "network": self._restore_network,
        }
        restore[self.architecture_](arrays, about, device)

    @property
    def _n_sparse(self):
        """Columns of the sparse features."""
        return self.n_features_in_ - self.n_dense_

    def _restore_targets(self, about):
        """Set the form of the targets and `classes_` from the contents of a file."""
        self._target_form = check.choice("targets.form", about["form"], FORMS)
        self._target_dtype = None if about["dtype"] is None else _dtype("targets.dtype", about["dtype"])
        if self._target_form == MATRIX:
            if self._target_dtype is not None and self._target_dtype.kind not in "biuf":
                raise ValueError(f"targets.dtype must be a type of numbers, got {self._target_dtype}")
            self.classes_ = np.arange(self.n_labels_)
            return
        dtype, classes = _dtype("targets.classes_dtype", about["classes_dtype"]), about["classes"]
        has_text = dtype.kind in "UO"
        if dtype.kind not in CLASS_KINDS or not all(isinstance(label, str) == has_text for label in classes):
            raise ValueError("targets.classes must be of the type targets.classes_dtype, numbers or text")
        # The length of a text type is not what a file says, but what the classes need.
        self.classes_ = object_array(classes) if dtype.kind == "O" else np.array(classes, str if has_text else dtype)
        if len(classes) != self.n_labels_ or self.classes_.tolist() != classes or len(set(classes)) < self.n_labels_:
            raise ValueError(f"targets.classes must be {self.n_labels_} different classes of type {dtype}")
        if self._target_form == NAMES and (dtype.kind != "O" or self.label_names_ is None):
            raise ValueError("targets of the form 'names' need label_names and text")
