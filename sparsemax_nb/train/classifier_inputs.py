"""Checks of what `Classifier` is given: features, labels, names of the columns."""

import sys
import warnings

import numpy as np
import scipy.sparse

from ..core import check, sparse
from ..data import Tfidf
from ..data.tfidf import first_non_count


def feature_names(x):
    """Names of the columns of a DataFrame, (F,) objects, where all are strings, or None; TypeError where only some are."""
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
    """scikit-learn's message for columns that are not those of the fit."""

    def listed(title, some):
        some = sorted(some)
        return "".join(
            [f"{title}:\n", *(f"- {name}\n" for name in some[:5]), "- ...\n" * (len(some) > 5)] if some else []
        )

    message = listed("Feature names unseen at fit time", names - known)
    message += listed("Feature names seen at fit time, yet now missing", known - names)
    rule = "The feature names should match those that were passed during fit.\n"
    return rule + (message or "Feature names must be in the same order as they were in fit.\n")


def checked_features(name, x):
    """(n, F) features: CSR, or a dense array of floats. Neither is copied; a dense one is looked through as it is used."""
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
    """(n, L) labels as canonical CSR: float32 ones where an entry is not zero.

    Of one column, class ids are no labels. With `two_classes` it may hold two numbers: the larger one is the label.
    """
    if y is None:
        raise ValueError("Classifier requires y to be passed, but the target y is None")
    is_sparse = scipy.sparse.issparse(y)
    if is_sparse and y.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got shape {y.shape}")
    if is_sparse and y.shape[1] != 1:
        return sparse.as_ones(name, y)
    rule = f"{name} must be a SciPy sparse matrix, or a 0/1 matrix of n rows and one column a label"
    fix = "lists of label ids become one with scikit-learn's MultiLabelBinarizer(sparse_output=True)"
    try:
        y = sparse.valid_csr(name, y).toarray() if is_sparse else np.asarray(y)
        if y.ndim != 2:
            raise ValueError(f"got shape {y.shape}")
        if y.dtype.kind == "c":
            raise ValueError(f"got {y.dtype}")
        y = y.astype(np.float32)
        other = y[(y != 0) & (y != 1)]
        if other.size and y.shape[1] == 1:
            fix = "one class id per row becomes one with scikit-learn's LabelBinarizer(sparse_output=True)"
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
    """How `Classifier` takes features: checked, named, weighted by TF-IDF, batch by batch."""

    def _features(self, x):
        """Checked features: CSR or a dense array, as they were in the fit. Not copied where they are CSR or dense already."""
        names, x = feature_names(x), checked_features("X", x)
        if hasattr(self, "n_features_in_"):
            self._check_feature_names(names)
            if x.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {x.shape[1]} features, but Classifier is expecting {self.n_features_in_} features as input"
                )
            if self.is_dense_ == scipy.sparse.issparse(x):
                kind, mend = (
                    ("a dense array", "X.toarray()")
                    if self.is_dense_
                    else ("a SciPy sparse matrix", "scipy.sparse.csr_matrix(X)")
                )
                raise TypeError(f"X must be {kind} as in fit, got {type(x).__name__}; use {mend}")
        return x

    def _check_feature_names(self, names):
        """ValueError where a DataFrame's columns are not those of the fit, in their order; the rules are scikit-learn's."""
        known = getattr(self, "feature_names_in_", None)
        if (known is None) != (names is None):
            came, fitted = ("does not have valid", "with") if names is None else ("has", "without")
            message = f"X {came} feature names, but Classifier was fitted {fitted} feature names"
            warnings.warn(message, UserWarning, stacklevel=4)
        elif known is not None and list(names) != list(known):
            raise ValueError(names_differ_message(set(known), set(names)))

    def _fitted_tfidf(self, x, validation):
        """What weighs the features: a `Tfidf` of the training rows `x`, or None where they are taken as they are.

        `validation` is a pair of features and labels, or None.
        """
        if not self.tfidf:
            return None
        if isinstance(self.tfidf, str) and (other := first_non_count(x)) is not None:
            if self.progress:
                print(
                    f"sparsemax-nb: X holds weights, not counts (one is {other:g}): they are taken as they are; "
                    "tfidf=True or False decides otherwise",
                    file=sys.stderr,
                )
            return None
        if validation is not None and (other := first_non_count(validation[0])) is not None:
            raise ValueError(f"validation X must hold counts like X, got {other:g}; use tfidf=False for weights")
        return Tfidf().fit(x)

    def _batch(self, x, rows):
        """Rows of the features, a slice or ids, as the model takes them; only they are copied."""
        part = x if isinstance(rows, slice) and rows == slice(0, x.shape[0]) else x[rows]
        with np.errstate(over="ignore"):  # of numbers too large for float32, which are found below
            if self.is_dense_:
                part = np.ascontiguousarray(part, np.float32)
            else:
                part = part.astype(np.float32, copy=False) if self.tfidf_ is None else self.tfidf_._weights(part)
        if not np.isfinite(part if self.is_dense_ else part.data).all():
            ids = np.arange(x.shape[0])[rows]
            bad = next(row for row, one in zip(ids, part, strict=True) if not np.isfinite(one.sum()))
            raise ValueError(f"X must be finite as float32, got NaN or infinity in row {bad}")
        return part
