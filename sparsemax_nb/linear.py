"""A linear layer over sparse features (method 1, one layer lower): the public functions.

A label is connected to the few features that its own points have more often than other points. So the lists of a row's
features are enough to score it against all labels, and training changes only labels whose score violates the margin.

Source: dual coordinate descent for the squared hinge: Hsieh, Chang, Lin, Keerthi, Sundararajan, "A dual coordinate
descent method for large-scale linear SVM", ICML 2008. One label against the rest over millions of labels: Babbar,
Schölkopf, "DiSMEC", WSDM 2017. The choice of features, the slack of the negatives and the step over a batch are ours.
"""

import math
from typing import Self

import numpy as np
import scipy.sparse

from .core import check, sparse
from .core.annotations import Array, Device, SparseMatrix
from .core.connections import Duals, FeatureLists
from .core.device import asarray, backend_of, empty, module_of, to_numpy
from .feature_choice import (
    INITIAL_BIAS,
    canonical,
    check_squares,
    choose_lists,
    dense_features,
    lists_by_label,
    new_lists,
    rows_of,
)


class SparseLinear:
    """A linear layer over sparse features, in which each label is connected to only a few features.

    ``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``; dense equivalent: ``features @ weights.T + bias``.

    Parameters
    ----------
    weights : (L, F) SciPy sparse matrix
        The stored entries are the connections, explicit zeros included. Other dtypes than float32 are converted, which
        makes a copy.
    bias : (L,) float32, optional
        -1 for every label if not given.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Not sparse, not finite, no labels or features; a bias of the wrong shape or dtype; CUDA not available.

    Notes
    -----
    The layer has its own arrays; training updates them in place. A feature that is connected to more than an eighth of
    the labels is connected to all of them; the additional weights are zero.

    Source: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008; R. Babbar,
    B. Schoelkopf, "DiSMEC: distributed sparse machines for extreme multi-label classification", WSDM 2017. The choice
    of features and the slack are ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import SparseLinear, sparse_linear_forward
    >>> layer = SparseLinear(scipy.sparse.csr_matrix(np.array([[0, 2], [3, 0]], np.float32)))
    >>> sparse_linear_forward(scipy.sparse.csr_matrix(np.array([[1, 10]], np.float32)), layer)
    array([[19.,  2.]], dtype=float32)
    """

    def __init__(self, weights: SparseMatrix, bias: Array | None = None, *, device: Device = "cpu") -> None:
        check.choice("device", device, ("cpu", "cuda"))
        weights = canonical("weights", weights)
        n_labels, n_features = weights.shape
        check.integer("n_labels (the length of weights)", n_labels, 1, 2**31 - 1)
        check.integer("n_features (the width of weights)", n_features, 1, 2**31 - 1)
        if bias is None:
            bias = np.full(n_labels, INITIAL_BIAS, np.float32)
        bias = check.array("bias", to_numpy(bias), np.float32, (n_labels,), finite=True)
        entries = rows_of(weights)
        dense = dense_features(entries.ids, n_labels, n_features)
        lists = new_lists(entries.indptr, entries.ids, entries.weights, n_features, bias.copy(), dense)
        self._set_arrays(lists, device)

    @classmethod
    def _from_lists(cls, lists, device="cpu"):
        """A layer around valid NumPy arrays, which are not checked again."""
        layer = cls.__new__(cls)
        layer._set_arrays(lists, device)
        return layer

    def _set_arrays(self, lists, device):
        self.device = device
        self.arrays = FeatureLists(*(asarray(a, device, a.dtype) for a in lists))

    bias = property(lambda self: self.arrays.bias, doc="(L,) float32")
    n_labels = property(lambda self: self.arrays.bias.shape[0], doc="L")
    n_features = property(lambda self: self.arrays.dense.shape[0], doc="F")
    n_weights = property(
        lambda self: self.arrays.labels.shape[0] + int((self.arrays.dense >= 0).sum()) * self.n_labels,
        doc="Connections of all labels.",
    )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    def __repr__(self):
        return (
            f"SparseLinear(n_labels={self.n_labels}, n_features={self.n_features}, n_weights={self.n_weights}, "
            f"device={self.device!r})"
        )

    @property
    def weights(self) -> SparseMatrix:
        """(L, F) SciPy CSR matrix, float32: a copy that stores every connection."""
        indptr, ids, values = lists_by_label(FeatureLists(*map(to_numpy, self.arrays)), 0, self.n_labels)
        matrix = scipy.sparse.csr_matrix((values, ids, indptr), shape=(self.n_labels, self.n_features))
        matrix.sort_indices()
        return matrix

    @classmethod
    def choose(
        cls,
        features: SparseMatrix,
        labels: SparseMatrix,
        *,
        per_point: float = 8.0,
        at_least: int = 16,
        dense: Array | None = None,
        device: Device = "cpu",
    ) -> Self:
        """A layer with zero weights, in which each label is connected to the features that distinguish its points.

        These are the features with the largest ``sum_i features[i, f] - n mean(features[:, f])``, i over the n points
        of the label: the excess over the sum of n average points. Only features that occur in its points are chosen.

        Parameters
        ----------
        features : (N, F) SciPy sparse matrix
            All points.
        labels : (N, L) SciPy sparse matrix
            The entries that are not zero are the labels of the points.
        per_point : float
            Features of a label per point of the label.
        at_least : int
            Minimum number of features of a label, if its points have that many. Labels without points get none.
        dense : (D,) integers, optional
            The features that are connected to all labels. If not given, those that more than an eighth of the labels
            choose. To train shards of the labels separately with the same results bit for bit, pass the same features
            to all of them.
        device : 'cpu' or 'cuda'

        Returns
        -------
        layer : SparseLinear
            The choice is computed on the CPU.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            Not sparse, not finite, shapes that do not match, a number out of range; CUDA not available.

        Examples
        --------
        >>> import numpy as np, scipy.sparse
        >>> from sparsemax_nb import SparseLinear
        >>> features = scipy.sparse.csr_matrix(np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1]], np.float32))
        >>> labels = scipy.sparse.csr_matrix(np.array([[1, 0], [1, 0], [0, 1]]))
        >>> no_features = np.empty(0, np.int32)
        >>> SparseLinear.choose(features, labels, per_point=0, at_least=1, dense=no_features).weights.indices
        array([0, 1], dtype=int32)
        """
        check.choice("device", device, ("cpu", "cuda"))
        features, labels = canonical("features", features), sparse.as_ones("labels", labels)
        if features.shape[0] != labels.shape[0]:
            raise ValueError(
                f"features and labels must have the same number of rows, got {features.shape[0]} and {labels.shape[0]}"
            )
        check_squares("features", features.data, features.indptr)
        check.number("per_point", per_point, 0, 1e6)
        check.integer("at_least", at_least, 1)
        if dense is not None:
            dense = np.unique(check.integers("dense", check.on_host("dense", dense), ("D",), features.shape[1]))
        return cls._from_lists(choose_lists(features, labels, per_point, at_least, dense), device)


# ---------------------------------------------------------------- how features are chosen


# ---------------------------------------------------------------- functions


def _check_device(name, fields, arrays, device):
    """TypeError if the arrays of the tuple `name` are not on the layer's device."""
    actual = check.same_device(**{f"{name}.{field}": a for field, a in zip(fields, arrays, strict=True)})
    if actual != device:
        raise TypeError(f"{name} must live on {device} like the layer, got {actual}")


def _rows(features, layer):
    """The argument `features` as checked `SparseRows` on the layer's device, and their number."""
    if scipy.sparse.issparse(features):
        if layer.device == "cuda":
            raise TypeError(
                "features is a SciPy matrix on cpu, layer lives on cuda; pass (indptr, ids, weights) on cuda"
            )
        features = canonical("features", features)
        if features.shape[1] != layer.n_features:
            raise ValueError(f"features must have {layer.n_features} columns like the layer, got {features.shape[1]}")
        return rows_of(features), features.shape[0]
    if not (isinstance(features, tuple) and len(features) == 3):
        raise TypeError(
            f"features must be a SciPy sparse matrix or a tuple (indptr, ids, weights), got {type(features).__name__}"
        )
    _check_device("features", ("indptr", "ids", "weights"), features, layer.device)
    indptr = check.integers("features.indptr", features[0], ("n",), dtype=np.int64)
    ids = check.integers("features.ids", features[1], ("m",), layer.n_features)
    weights = check.array("features.weights", features[2], np.float32, ids.shape, finite=True)
    n = ids.shape[0]
    if indptr.shape[0] < 1 or int(indptr[0]) != 0 or int(indptr[-1]) != n or bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError(f"features.indptr must rise from 0 to len(features.ids) = {n}")
    xp = module_of(layer.device)
    keys = xp.sort(sparse.row_of_each_entry(indptr, n) * layer.n_features + ids)
    if bool((keys[1:] == keys[:-1]).any()):
        raise ValueError("features must not repeat a feature within one row")
    return sparse.SparseRows(indptr, ids, weights), indptr.shape[0] - 1


def _check_layer(layer):
    if not isinstance(layer, SparseLinear):
        raise TypeError(f"layer must be a SparseLinear, got {type(layer).__name__}")


def sparse_linear_forward(
    features: SparseMatrix | tuple[Array, Array, Array], layer: SparseLinear, out: Array | None = None
) -> Array:
    """Scores of all labels: ``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``.

    Dense equivalent: ``features @ layer.weights.T + layer.bias``.

    Parameters
    ----------
    features : (B, F) SciPy sparse matrix
        On CUDA a tuple (indptr, ids, weights) of CSR arrays there: (B + 1,) integers, (n,) integers, (n,) float32.
    layer : SparseLinear
    out : (B, L) float32, optional
        Overwritten and returned. Allocated if not given.

    Returns
    -------
    scores : (B, L) float32

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; features not finite; more than 2^31 - 1 scores.

    Notes
    -----
    Source: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008; R. Babbar,
    B. Schoelkopf, "DiSMEC: distributed sparse machines for extreme multi-label classification", WSDM 2017. The choice
    of features and the slack are ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import SparseLinear, sparse_linear_forward
    >>> layer = SparseLinear(scipy.sparse.csr_matrix(np.array([[0, 2], [3, 0]], np.float32)))
    >>> sparse_linear_forward(scipy.sparse.csr_matrix(np.array([[1, 10], [0, 0]], np.float32)), layer)
    array([[19.,  2.],
           [-1., -1.]], dtype=float32)
    """
    _check_layer(layer)
    rows, n_rows = _rows(features, layer)
    check.array_size(B=n_rows, L=layer.n_labels)
    scores = check.output("out", out, np.float32, (n_rows, layer.n_labels), layer.device, values=layer.arrays.values)
    backend_of(layer.device, "linear").forward(rows, layer.arrays, scores)
    return scores


def sparse_linear_top_k(
    features: SparseMatrix | tuple[Array, Array, Array], layer: SparseLinear, k: int
) -> tuple[Array, Array]:
    """The k labels with the largest scores in each row: score descending, then label ascending.

    Dense equivalent: ``np.argsort(-(features @ layer.weights.T + layer.bias), axis=1, kind="stable")[:, :k]``. On the
    CPU no (B, L) array exists.

    Parameters
    ----------
    features : (B, F) SciPy sparse matrix
        On CUDA a tuple, see `sparse_linear_forward`.
    layer : SparseLinear
    k : int
        1 <= k <= L.

    Returns
    -------
    scores : (B, k) float32
    ids : (B, k) int32

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; features not finite; k out of range.

    Notes
    -----
    Source: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008; R. Babbar,
    B. Schoelkopf, "DiSMEC: distributed sparse machines for extreme multi-label classification", WSDM 2017. The choice
    of features and the slack are ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import SparseLinear, sparse_linear_top_k
    >>> layer = SparseLinear(scipy.sparse.csr_matrix(np.array([[0, 2], [3, 0]], np.float32)))
    >>> sparse_linear_top_k(scipy.sparse.csr_matrix(np.array([[1, 10]], np.float32)), layer, k=1)
    (array([[19.]], dtype=float32), array([[0]], dtype=int32))
    """
    _check_layer(layer)
    k = check.integer("k", k, 1, layer.n_labels, f" (n_labels = {layer.n_labels})")
    rows, n_rows = _rows(features, layer)
    check.array_size(B=n_rows, k=k)
    scores = empty((n_rows, k), np.float32, layer.device)
    ids = empty((n_rows, k), np.int32, layer.device)
    backend_of(layer.device, "linear").top_k(rows, layer.arrays, scores, ids)
    return scores, ids


def sparse_linear_step(
    features: SparseMatrix | tuple[Array, Array, Array],
    layer: SparseLinear,
    labels: SparseMatrix | sparse.Labels,
    duals: SparseMatrix | tuple[Array, Array, Array] | None = None,
    *,
    C: float = 0.5,  # noqa: N803
    slack: float = 0.2,
    sample_weight: Array | None = None,
) -> tuple[float, tuple[Array, Array, Array]]:
    """Dual coordinate descent over a batch, one label against the rest; the layer's weights change in place.

    For every label, it minimizes over the connected weights w ``|w|^2 / 2 + sum_i C_i max(0, m_i - y_i s_i)^2``. s_i is
    the score of row i and C_i = C sample_weight[i]; y_i = 1 and m_i = 1 for the row's own labels, else y_i = -1 and
    m_i = 1 - slack. With the dual variable a >= 0 of row i and a label, and z, the row's entries of features that the
    label is connected to: ``G = y s - m + a / (2 C_i);  a <- max(0, a - G / (|z|^2 + 1 / (2 C_i)));
    w += (change of a) y z``. If the weight of a row is 0, its dual variables become 0, and it has no influence.
    A step visits a row's own labels, the labels with a dual variable, and those whose score before the step is above
    ``slack - 1``. Each label visits its rows in order. Repeated over all rows, with the dual variables of the previous
    pass, it converges; a few passes are enough.

    Parameters
    ----------
    features : (B, F) SciPy sparse matrix
        On CUDA a tuple, see `sparse_linear_forward`.
    layer : SparseLinear
    labels : (B, L) SciPy sparse matrix or `Labels`
        The rows' own labels.
    duals : (B, L) SciPy sparse matrix, or a tuple (indptr, labels, values)
        The dual variables of these rows, as an earlier step returned them; None in the first pass.
    C : float
        Above 0: the weight of the errors.
    slack : float
        In [0, 1.999]: negatives only need a score of at most ``slack - 1``.
    sample_weight : (B,) integers or floats, optional
        At least 0: the weight of each row, 1 if not given. Pass the same weights of a row in every pass.

    Returns
    -------
    loss : float
        The sum of ``sample_weight max(0, m - y s)^2`` over the visited pairs, each before its own change.
    duals : tuple
        The new dual variables that are above zero: ``(indptr (B + 1,) int64, labels (n,) int32, values (n,) float32)``.

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; features, duals or weights not finite; duals or weights negative; C or slack out
        of range. Nothing has changed.

    Notes
    -----
    Source: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008, section 3,
    which visits all rows, one at a time; the slack and the choice of rows by the scores before the step are ours. On
    one device, the bits do not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import SparseLinear, sparse_linear_forward, sparse_linear_step
    >>> features, labels = scipy.sparse.eye(2, 3, format="csr", dtype=np.float32), scipy.sparse.eye(2, format="csr")
    >>> layer, duals = SparseLinear.choose(features, labels), None
    >>> for _ in range(3):
    ...     loss, duals = sparse_linear_step(features, layer, labels, duals, C=10)
    >>> sparse_linear_forward(features, layer).round(2)
    array([[ 0.9, -1. ],
           [-1. ,  0.9]], dtype=float32)
    """
    _check_layer(layer)
    check.writable("layer.values", layer.arrays.values)
    check.number("C", C, 0, math.inf, open_ends=True)
    check.number("slack", slack, 0, 1.999)
    rows, n_rows = _rows(features, layer)
    check_squares("features", rows.weights, rows.indptr)
    labels = sparse.as_labels(labels, n_rows, layer.device, layer.n_labels)
    sparse.sorted_keys(labels, layer.n_labels)
    duals = checked_duals(duals, n_rows, layer.n_labels, layer.device)
    row_weights = asarray(checked_weights(sample_weight, n_rows), layer.device)
    step = backend_of(layer.device, "linear").step
    loss, new = step(rows, labels, duals, layer.arrays, row_weights, float(C), float(slack))
    return float(loss), tuple(new)


def checked_weights(sample_weight, n_rows):
    """The argument `sample_weight` as NumPy array, (N,) float32; ones if it is None."""
    if sample_weight is None:
        return np.ones(n_rows, np.float32)
    weights = check.nonnegative("sample_weight", sample_weight, n_rows)
    if weights.size and weights.max() > check.LARGEST:
        raise ValueError(f"sample_weight must fit float32, got {weights.max():g}; scale the weights down")
    return weights.astype(np.float32)


def no_duals(n_rows, device="cpu"):
    """`Duals` of rows before their first step: none is above zero."""
    arrays = np.zeros(n_rows + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
    return Duals(*(asarray(a, device) for a in arrays))


def checked_duals(duals, n_rows, n_labels, device):
    """The argument `duals` of a step as `Duals`; the layer has `n_labels` and lives on `device`."""
    if duals is None:
        return no_duals(n_rows, device)
    if scipy.sparse.issparse(duals) and device == "cpu":
        if duals.shape != (n_rows, n_labels):
            raise ValueError(f"duals must have shape ({n_rows}, {n_labels}), got {duals.shape}")
        duals = canonical("duals", duals)
        duals = duals.indptr.astype(np.int64), duals.indices, duals.data
    if not (isinstance(duals, tuple) and len(duals) == 3):
        raise TypeError(
            f"duals must be a tuple (indptr, labels, values) as a step returns it, got {type(duals).__name__}"
        )
    _check_device("duals", ("indptr", "labels", "values"), duals, device)
    indptr = check.integers("duals.indptr", duals[0], (n_rows + 1,), dtype=np.int64)
    labels = check.integers("duals.labels", duals[1], ("n",))
    sparse.sorted_keys(sparse.Labels(indptr, labels), n_labels, "duals")
    values = check.array("duals.values", duals[2], np.float32, labels.shape, finite=True)
    if values.size and float(values.min()) < 0:
        raise ValueError(f"duals must not be negative, got {float(values.min()):g}")
    return Duals(indptr, labels, values)
