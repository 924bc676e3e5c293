"""Input checks of `Classifier`: features, labels, column names."""

import sys
import warnings

import numpy as np
import scipy.sparse

from ..core import check, sparse
from ..data import Tfidf
from ..data.tfidf import first_non_count


def feature_names(x):
    """Column names of a DataFrame, (F,) objects, if all are strings, else None; TypeError if only some are strings."""
    if scipy.sparse.issparse(x) or not hasattr(x, "columns"):
        return None
    names = np.array(list(x.columns), object)
    kinds = sorted({type(name).__name__ for name in names})
    if any(isinstance(name, str) for name in names) and len(kinds) > 1:
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your input has "
            f"{kinds} as feature name / column name types; use X.columns = X.columns.astype(str)"
        )
    return names if kinds == ["str"] else None


def names_differ_message(known, names):
    """scikit-learn's message for columns that differ from those of the fit."""

    def listing(title, differing):
        differing = sorted(differing)
        return "".join(
            [f"{title}:\n", *(f"- {name}\n" for name in differing[:5]), "- ...\n" * (len(differing) > 5)]
            if differing
            else []
        )

    message = listing("Feature names unseen at fit time", names - known)
    message += listing("Feature names seen at fit time, yet now missing", known - names)
    rule = "The feature names should match those that were passed during fit.\n"
    return rule + (message or "Feature names must be in the same order as they were in fit.\n")


def checked_features(name, x):
    """(n, F) features: CSR, or a dense float array. Neither is copied; dense values are checked batch by batch."""
    if isinstance(x, (list, tuple, np.ma.MaskedArray, np.matrix)):
        x = check.on_host(name, x)
    x = x if scipy.sparse.issparse(x) or isinstance(x, np.ndarray) else np.asarray(x)
    if x.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} is {x.dtype}")
    if scipy.sparse.issparse(x):
        x = sparse.valid_csr(name, x)
    elif x.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got shape {x.shape}; Reshape your data: one row a point")
    elif x.dtype.kind != "f":
        x = x.astype(np.float32)
    if x.shape[1] < 1:
        raise ValueError(f"{name} has 0 feature(s) (shape={x.shape}) while a minimum of 1 is required.")
    return x


def checked_labels(name, y, two_classes=False):
    """(n, L) labels as canonical CSR, with float32 ones where an entry is nonzero.

    Class ids in a single column are refused. With `two_classes` it may have two numbers, the larger of which is the
    label.
    """
    if y is None:
        raise ValueError("Classifier requires y to be passed, but the target y is None")
    is_sparse = scipy.sparse.issparse(y)
    if is_sparse and y.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got shape {y.shape}")
    if is_sparse and y.shape[1] != 1:
        return sparse.as_ones(name, y)
    rule = f"{name} must be a SciPy sparse matrix, or a 0/1 matrix with one row per point and one column per label"
    fix = "convert lists of label ids with scikit-learn's MultiLabelBinarizer(sparse_output=True)"
    try:
        y = sparse.valid_csr(name, y).toarray() if is_sparse else np.asarray(y)
        if y.ndim != 2:
            raise ValueError(f"got shape {y.shape}")
        if y.dtype.kind == "c":
            raise ValueError(f"got {y.dtype}")
        y = y.astype(np.float32)
        other = y[(y != 0) & (y != 1)]
        if other.size and y.shape[1] == 1:
            fix = "convert one class id per row with scikit-learn's LabelBinarizer(sparse_output=True)"
            numbers = np.unique(y)
            if two_classes and len(numbers) == 2:
                return scipy.sparse.csr_matrix(y == numbers[1], dtype=np.float32)
            raise ValueError(f"got one column with {other[0]:g} in it")
        if other.size:
            raise ValueError(f"got {other[0]:g} in it")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{rule}, {error}; {fix}") from error
    return sparse.as_ones(name, scipy.sparse.csr_matrix(y))


class ClassifierInputs:
    """Mixin of `Classifier` that checks features, and converts them to batches for the model."""

    def _features(self, x):
        """Checked features, CSR or a dense array; TypeError or ValueError unless they are like those of the fit."""
        names, x = feature_names(x), checked_features("X", x)
        if hasattr(self, "n_features_in_"):
            self._check_feature_names(names)
            if x.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {x.shape[1]} features, but Classifier is expecting {self.n_features_in_} features as input"
                )
            if self.is_dense_ == scipy.sparse.issparse(x):
                kind, fix = (
                    ("a dense array", "X.toarray()")
                    if self.is_dense_
                    else ("a SciPy sparse matrix", "scipy.sparse.csr_matrix(X)")
                )
                raise TypeError(f"X must be {kind} as in fit, got {type(x).__name__}; use {fix}")
        return x

    def _check_feature_names(self, names):
        """ValueError unless a DataFrame has the columns of the fit, in the same order; the rules are scikit-learn's."""
        known = getattr(self, "feature_names_in_", None)
        if (known is None) != (names is None):
            now, fitted = ("does not have valid", "with") if names is None else ("has", "without")
            message = f"X {now} feature names, but Classifier was fitted {fitted} feature names"
            warnings.warn(message, UserWarning, stacklevel=4)
        elif known is not None and list(names) != list(known):
            raise ValueError(names_differ_message(set(known), set(names)))

    def _fitted_tfidf(self, x, validation):
        """A `Tfidf` fitted to the training rows `x`, or None if features are used as they are.

        `validation` is a pair of features and labels, or None.
        """
        if not self.tfidf:
            return None
        if isinstance(self.tfidf, str) and (other := first_non_count(x)) is not None:
            if self.progress:
                print(
                    f"sparsemax-nb: X has weights, not counts (one is {other:g}), which are used as they are; "
                    "set tfidf=True or False to decide otherwise",
                    file=sys.stderr,
                )
            return None
        if validation is not None and (other := first_non_count(validation[0])) is not None:
            raise ValueError(f"validation X must have counts like X, got {other:g}; use tfidf=False for weights")
        return Tfidf().fit(x)

    def _batch(self, x, rows):
        """The features of some rows (a slice or ids) as the model takes them; only these rows are copied."""
        part = x if isinstance(rows, slice) and rows == slice(0, x.shape[0]) else x[rows]
        with np.errstate(over="ignore"):  # numbers too large for float32 are reported below
            if self.is_dense_:
                part = np.ascontiguousarray(part, np.float32)
            else:
                part = part.astype(np.float32, copy=False) if self.tfidf_ is None else self.tfidf_._weights(part)
        if not np.isfinite(part if self.is_dense_ else part.data).all():
            ids = np.arange(x.shape[0])[rows]
            bad = next(row for row, values in zip(ids, part, strict=True) if not np.isfinite(values.sum()))
            raise ValueError(f"X must be finite as float32, got NaN or infinity in row {bad}")
        return part
