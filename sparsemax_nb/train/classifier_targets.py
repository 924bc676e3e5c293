"""Targets of `Classifier` in their three forms: label matrices, one class per row, lists of label names."""

import re
import warnings
from collections.abc import Mapping

import numpy as np
import scipy.sparse

from ..core import check, sparse
from ..linear import checked_weights
from .wide_features import is_pair

#: A matrix has a column per label. 'class': one class per row. 'names': a list of label names per row.
MATRIX, CLASS, NAMES = FORMS = "matrix", "class", "names"
#: Types of the classes of one class per row.
CLASS_KINDS = "biufUO"
#: Types of a row with any number of label names. pandas reads lists from some files as arrays.
LISTS = list, tuple, set, frozenset, np.ndarray


def form_of(y):
    """The form of targets: 'matrix', 'class' or 'names'; TypeError or ValueError for None and for iterators."""
    y = _rows_of(y)
    if scipy.sparse.issparse(y):
        return MATRIX
    has_lists = isinstance(y, list) and any(isinstance(row, LISTS) for row in y)
    if has_lists:
        labels = [label for row in y if isinstance(row, LISTS) for label in row]
        if not labels or any(isinstance(label, str) for label in labels):
            return NAMES
    try:
        shape = np.shape(y)
    except ValueError:  # rows of different lengths, which `checked_labels` reports
        return MATRIX
    if len(shape) == 2 and shape[1] == 1:
        message = "A column-vector y was passed when a 1d array was expected; use y.ravel() for one class per row"
        from sklearn.exceptions import DataConversionWarning

        warnings.warn(DataConversionWarning(message), stacklevel=3)
        return CLASS
    return CLASS if len(shape) == 1 and not has_lists else MATRIX


def _rows_of(y):
    """A sparse matrix, DataFrame or array with numbers as it is; everything else that has rows as a list."""
    if y is None:
        raise ValueError("Classifier requires y to be passed, but the target y is None")
    if hasattr(y, "__next__"):
        raise TypeError(f"y must be a sequence, got {type(y).__name__}, which is read only once; use list(y)")
    if scipy.sparse.issparse(y) or hasattr(y, "columns"):
        return y
    if isinstance(y, np.ndarray):
        y = check.on_host("y", y)  # refuses masked arrays
        return list(y) if y.ndim == 1 and y.dtype.kind == "O" else y
    if hasattr(y, "__len__") and hasattr(y, "__iter__"):
        return list(y)
    return np.asarray(y)


def encode(name, y, form, classes=None):
    """Targets as (labels, classes): canonical CSR with float32 ones, and the classes of its columns.

    `classes` are those known so far, None for none; others that occur in y follow them, sorted. A matrix has the
    classes 0, 1, ...; its width is not checked.
    """
    if form == MATRIX:
        labels = checked_labels(name, y)
        return labels, np.arange(labels.shape[1])
    if form == NAMES:
        return _encode_names(name, y, classes)
    return _encode_classes(name, y, classes)


def _encode_names(name, y, classes):
    rows = _rows_of(y)
    if not isinstance(rows, list):
        raise TypeError(f"{name} must be a sequence of lists of label names, got {type(y).__name__}")
    for i, row in enumerate(rows):
        if not isinstance(row, LISTS):
            raise TypeError(f"{name}[{i}] must be a list of label names, got {check.shown(row)}; use [] for no labels")
        for label in row:
            if not isinstance(label, str):
                raise TypeError(f"{name}[{i}] must contain str only, got {type(label).__name__} {check.shown(label)}")
            if not label.strip():
                raise ValueError(f"{name}[{i}] must not contain an empty label name, got {check.shown(label)}")
    numbers = {label: i for i, label in enumerate(() if classes is None else classes)}
    for label in sorted({str(label) for row in rows for label in row}.difference(numbers)):
        numbers[label] = len(numbers)
    indices = [sorted({numbers[label] for label in row}) for row in rows]
    indptr = np.cumsum([0, *map(len, indices)])
    flat = np.fromiter((i for row in indices for i in row), np.int32, indptr[-1])
    labels = scipy.sparse.csr_matrix((np.ones(len(flat), np.float32), flat, indptr), shape=(len(rows), len(numbers)))
    return labels, object_array(numbers)


def _encode_classes(name, y, classes):
    y = class_array(name, y)
    found, targets = np.unique(y, return_inverse=True)
    if classes is not None:
        kinds = ["strings" if np.asarray(part).dtype.kind in "UO" else "numbers" for part in (classes, found)]
        if len(classes) and len(found) and kinds[0] != kinds[1]:
            raise ValueError(f"{name} must contain {kinds[0]} like the classes of the model, got {kinds[1]}")
        new = np.setdiff1d(found, classes)
        known = classes if not len(new) else np.concatenate([classes, new])
        order = np.argsort(known, kind="stable")
        found, targets = known, order[np.searchsorted(known, found, sorter=order)][targets]
    indptr = np.arange(len(y) + 1)
    labels = (np.ones(len(y), np.float32), targets.astype(np.int32), indptr)
    return scipy.sparse.csr_matrix(labels, shape=(len(y), len(found))), found


def class_array(name, y):
    """One class per row as an array of numbers, or of strings."""
    if hasattr(y, "__next__"):
        raise TypeError(f"{name} must be a sequence, got {type(y).__name__}, which is read only once; use list({name})")
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array.ravel()
    if array.ndim != 1:
        raise ValueError(f"{name} must be a 1-D array with one class per row, got shape {array.shape}")
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} is {array.dtype}")
    # NumPy converts lists of strings and numbers, such as NaN for missing strings, to strings.
    values = list(y) if array.dtype.kind == "U" and isinstance(y, (list, tuple)) else None
    if array.dtype.kind in "OT":
        values = array.tolist()
        array = object_array(values)
    if values is not None and not all(isinstance(value, str) for value in values):
        array = np.array(values) if all(np.ndim(value) == 0 for value in values) else array
        if array.dtype.kind not in "biuf":
            kinds = ", ".join(sorted({type(value).__name__ for value in values}))
            raise ValueError(f"{name} must contain either numbers or strings, got {kinds}; missing values and mixtures "
                             "are not allowed")  # fmt: skip
    if array.dtype.kind not in CLASS_KINDS:
        raise ValueError(f"{name} must contain numbers or strings, got {array.dtype}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"Input {name} contains NaN or infinity; remove these rows")
        fractions = array[array != np.floor(array)]
        if len(fractions):
            raise ValueError(
                f"Unknown label type: {name} must contain classes, not continuous numbers such as {fractions[0]:g}"
            )
    return array


def object_array(values):
    """A 1-D array of objects."""
    array = np.empty(len(values), object)
    array[:] = list(values)
    return array


def checked_names(names):
    """{label: [name, synonym ...]}; TypeError or ValueError for anything else."""
    if not isinstance(names, Mapping):
        raise TypeError(f"names must be a dict of label to names, got {type(names).__name__}")
    result = {}
    for label, of_label in names.items():
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"names must have str keys that are not empty, got {check.shown(label)}")
        if isinstance(of_label, str):
            of_label = [of_label]
        of_label = check.sequence(f"names[{label!r}]", of_label, "str")
        if not all(isinstance(name, str) for name in of_label):
            raise TypeError(f"names[{label!r}] must be a str or a list of str, got {check.shown(of_label)}")
        result[label] = [name for name in of_label if name.strip()]
    return result


def is_uri(label):
    """Whether a label is an identifier such as http://example.org/1 instead of a name."""
    return re.match(r"[a-z][a-z0-9+.-]*://", label) is not None


def weighted_rows(x, y, sample_weight):
    """(x, y, weights) without the rows of weight 0; the weights are (n,) float32, or None if there are none.

    TypeError or ValueError unless the weights are at least 0, and above 0 for at least one row.
    """
    if sample_weight is None:
        return x, y, None
    x, y = (values if hasattr(values, "__len__") else np.asarray(values) for values in (x, y))
    first = x[0] if is_pair(x) else x
    n, n_targets = (np.shape(values)[:1] if hasattr(values, "shape") else (len(values),) for values in (first, y))
    if n != n_targets or not n:
        raise ValueError(f"X and y must have the same number of rows, got {sum(n)} and {sum(n_targets)}")
    n, weights = n[0], np.asarray(sample_weight)
    weights = checked_weights(np.full(n, weights) if weights.ndim == 0 else weights, n)
    if not weights.any():
        raise ValueError(f"sample_weight must be above 0 for at least one row, got zeros for all {n}")
    rows = np.flatnonzero(weights)
    return (x, y, weights) if len(rows) == n else (_selected(x, rows), _selected(y, rows), weights[rows])


def _selected(values, rows):
    """Some rows of a matrix, DataFrame, Series, sequence or pair of features."""
    if is_pair(values):
        return tuple(_selected(part, rows) for part in values)
    if hasattr(values, "iloc"):
        return values.iloc[rows]
    if scipy.sparse.issparse(values):
        return values.tocsr()[rows]
    return values[rows] if hasattr(values, "shape") else [values[row] for row in rows]


def checked_labels(name, y):
    """(n, L) labels as canonical CSR, with float32 ones where an entry is nonzero. Class ids are refused."""
    if y is None:
        raise ValueError("Classifier requires y to be passed, but the target y is None")
    if scipy.sparse.issparse(y):
        if y.ndim != 2:
            raise ValueError(f"{name} must be a matrix, got shape {y.shape}")
        return sparse.as_ones(name, y)
    rule = f"{name} must be a SciPy sparse matrix, or a 0/1 matrix with one row per point and one column per label"
    fix = "convert lists of label ids with scikit-learn's MultiLabelBinarizer(sparse_output=True)"
    try:
        y = np.asarray(y)
        if y.ndim != 2:
            raise ValueError(f"got shape {y.shape}")
        if y.dtype.kind == "c":
            raise ValueError(f"got {y.dtype}")
        y = y.astype(np.float32)
        other = y[(y != 0) & (y != 1)]
        if other.size:
            raise ValueError(f"got {other[0]:g} in it")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{rule}, {error}; {fix}") from error
    return sparse.as_ones(name, scipy.sparse.csr_matrix(y))
