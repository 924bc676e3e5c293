"""What the file of a `Classifier` holds beside the parameters of its network."""

import numpy as np

from ..core import check, description
from ..data import Tfidf
from . import linear
from .estimator import DATA

ARCHITECTURES = "linear", "network"
#: What the file of a classifier says beside its arrays.
DESCRIPTION = description.record(
    architecture=description.text,
    C=description.optional(description.number(0)),
    slack=description.optional(description.number(0)),
    frequency=description.optional(description.number(0)),
    params=description.record(),
    n_features=description.integer(1),
    n_labels=description.integer(1),
    n_points=description.integer(0),
    is_dense=description.boolean,
    label_names=description.optional(description.list_of(description.text)),
    tfidf=description.boolean,
    feature_names=description.optional(description.list_of(description.text)),
    data=DATA,
)


class ClassifierFile:
    """How `Classifier` is written to a file and read back; the parameters of the network are written by the estimator."""

    def _state(self):
        arrays = {"label_counts": self.label_counts_}
        if (pairs := getattr(self.network_, "pairs", None)) is not None:
            arrays |= linear.arrays_of(pairs)
        if self.tfidf_ is not None:
            arrays["tfidf.idf"] = self.tfidf_.idf_
        about = {name: getattr(self, f"{name}_", None) for name in ("architecture", "C", "slack", "frequency")}
        about |= {
            "n_features": self.n_features_in_,
            "n_labels": self.n_labels_,
            "n_points": self.n_points_,
            "is_dense": self.is_dense_,
            "tfidf": self.tfidf_ is not None,
            "feature_names": list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None,
            "label_names": self.label_names_,
        }
        return arrays, about

    def _restore(self, arrays, about, device):
        self.n_features_in_, self.n_labels_ = about["n_features"], about["n_labels"]
        self.n_points_, self.is_dense_, self.label_names_ = about["n_points"], about["is_dense"], about["label_names"]
        if self.label_names_ is not None and len(self.label_names_) != self.n_labels_:
            raise ValueError(f"{len(self.label_names_)} label names for {self.n_labels_} labels")
        self.label_counts_ = check.array("label_counts", arrays["label_counts"], np.int64, (self.n_labels_,))
        check.below("label_counts", self.label_counts_, self.n_points_ + 1)
        names, self.tfidf_ = about["feature_names"], None
        if names is not None:
            if len(names) != self.n_features_in_:
                raise ValueError(f"feature_names must be {self.n_features_in_} strings")
            self.feature_names_in_ = np.array(names, object)
        if about["tfidf"]:
            self.tfidf_ = Tfidf()
            self.tfidf_.idf_ = check.array("tfidf.idf", arrays["tfidf.idf"], np.float32, (self.n_features_in_,))
            check.finite("tfidf.idf", self.tfidf_.idf_)
        self.architecture_ = check.choice("architecture", about["architecture"], ARCHITECTURES)
        restore = self._restore_linear if self.architecture_ == "linear" else self._restore_network
        restore(arrays, about, device)
