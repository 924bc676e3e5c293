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
from .core.device import aligned, asarray, backend_of, device_of, empty, module_of, to_numpy
from .cpu import feature_choice
from .cpu.panels import padded
from .cpu.simd import LANES

#: A feature that more than this share of the labels has chosen is connected to all of them: its weights then need no
#: list of labels and are read in order.
DENSE_SHARE = 1 / 8
#: The bias before training, which is the target score of negatives without slack. A row's own labels should score at
#: least 1, all others at most ``slack - 1``.
INITIAL_BIAS = -1.0
#: `more_features` handles the labels in chunks of about this many dual variables and weights: limits its memory.
ENTRIES_PER_CHUNK = 1 << 21


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

    Source: ours; see the module.

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
        dense = _dense_features(entries.ids, n_labels, n_features)
        lists = _new_lists(entries.indptr, entries.ids, entries.weights, n_features, bias.copy(), dense)
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
        indptr, ids, values = _by_label(FeatureLists(*map(to_numpy, self.arrays)), 0, self.n_labels)
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


def canonical(name, features):
    """A SciPy sparse matrix as finite float32 CSR without duplicate entries; errors as for `sparse.valid_csr`."""
    features = sparse.valid_csr(name, features)
    if not features.has_canonical_format:
        features = features.copy()
        features.sum_duplicates()
    if features.dtype != np.float32:
        with np.errstate(over="ignore"):
            features = features.astype(np.float32)
        if not np.isfinite(features.data).all():
            raise ValueError(f"{name} must be finite as float32")
    return features


def _dense_features(ids, n_labels, n_features):
    """The features that occur in `ids` for more than the share `DENSE_SHARE` of the labels."""
    return np.flatnonzero(_column_counts([(None, ids)], 0, n_features) > DENSE_SHARE * n_labels)


def _column_counts(parts, first, last):
    """Entries of each column in [first, last) of the CSR matrices `parts`, (indptr, ids, values) each."""
    counts = np.zeros(last - first, np.int64)
    for part in parts:
        feature_choice.count(part[1], first, counts)
    return counts


def _columns(parts, first, last):
    """(indptr, rows, values) of the columns in [first, last) of vertically stacked CSR matrices.

    `parts` are the matrices, (indptr, ids, values) each. Rows ascend within a column; explicit zeros are kept.
    """
    indptr, row = np.concatenate([[0], np.cumsum(_column_counts(parts, first, last))]), 0
    ends = indptr[:-1].copy()
    rows, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    for part in parts:
        feature_choice.place(*part, row, first, ends, rows, values)
        row += len(part[0]) - 1
    return indptr, rows, values


def _empty_lists(lengths, dense, bias):
    """`FeatureLists` with uninitialised lists of these lengths, and with zeros for the features `dense`."""
    lengths[dense] = 0
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    first, width = padded(int(indptr[-1]), LANES), padded(len(bias), LANES)
    offsets = np.full(len(lengths), -1, np.int64)
    offsets[dense] = first + width * np.arange(len(dense))
    values = aligned(np.zeros, (first + len(dense) * width,))
    return FeatureLists(indptr, np.empty(indptr[-1], np.int32), values, offsets, bias)


def _new_lists(indptr, ids, values, n_features, bias, dense):
    """`FeatureLists` of entries by label, with the features `dense` connected to all labels. Ids of -1 are skipped."""
    lists = _empty_lists(np.zeros(n_features, np.int64), dense, bias)
    if len(dense):
        in_dense = np.flatnonzero((ids >= 0) & (lists.dense[ids] >= 0))
        label = np.searchsorted(indptr, in_dense, "right") - 1
        lists.values[lists.dense[ids[in_dense]] + label] = values[in_dense]
        ids = ids.copy()
        ids[in_dense] = -1
    return _with_entries(lists, (indptr, ids, values), bias)


def _with_entries(lists, entries, bias):
    """`FeatureLists` with additional entries, (indptr, ids, values) by label; `bias` may have new labels.

    Ids of -1 are skipped. No entry may be in `lists` already or belong to a feature that is connected to all labels:
    there is no slot for it.
    """
    dense, n_labels = np.flatnonzero(lists.dense >= 0), len(lists.bias)
    lengths = np.diff(lists.indptr) + _column_counts([entries], 0, len(lists.dense))
    found = _empty_lists(lengths, dense, bias)
    middle = np.empty(len(lists.dense), np.int64)
    feature_choice.spread(*lists[:3], middle, *found[:3])
    feature_choice.place(*entries, 0, 0, middle.copy(), *found[1:3])
    feature_choice.merge(found.indptr, middle, *found[1:3])
    for old, start in zip(lists.dense[dense], found.dense[dense], strict=True):
        found.values[start : start + n_labels] = lists.values[old : old + n_labels]
    return found


def _by_label(lists, first, last):
    """(indptr, ids, values) of the labels in [first, last): features ascend, then those connected to all labels."""
    dense, n = np.flatnonzero(lists.dense >= 0), last - first
    values = np.empty((len(dense), n), np.float32)
    for row, start in zip(values, lists.dense[dense], strict=True):
        row[:] = lists.values[start + first : start + last]
    dense_rows = (
        np.arange(len(dense) + 1) * n,
        np.tile(np.arange(first, last, dtype=np.int32), len(dense)),
        values.reshape(-1),
    )
    indptr, rows, values = _columns((lists[:3], dense_rows), first, last)
    return indptr, np.concatenate([np.arange(len(lists.dense)), dense]).astype(np.int32)[rows], values


def _allocate(n_of_label):
    """(indptr, ids, sums) by label, uninitialised, with room for ``n_of_label[l]`` features of label l."""
    indptr = np.concatenate([[0], np.cumsum(n_of_label)])
    return indptr, np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)


def _distinctive_features(features, labels, per_point, at_least, known, n_known_points=0):
    """(indptr, ids, zeros) by label: the features that distinguish a label's points and are not `known` yet.

    Each label gets `per_point` features per point; with the known features at least `at_least`, and at least
    `per_point` per point including the `n_known_points` (L,) earlier ones. Slots without a feature have the id -1.
    """
    points = sparse.SparseRows(*_columns([rows_of(labels)], 0, labels.shape[1]))
    n_points = np.diff(points.indptr)
    wanted = np.maximum(at_least, per_point * (n_points + n_known_points)) - np.diff(known[0])
    available = labels.T @ np.diff(features.indptr)  # an upper bound: the entries of the label's points
    n_of_label = np.minimum(np.maximum(per_point * n_points, wanted), np.minimum(available, features.shape[1])).astype(
        np.int64
    )
    expected = np.bincount(features.indices, features.data, minlength=features.shape[1]) / max(1, features.shape[0])
    indptr, ids, sums = _allocate(n_of_label)
    feature_choice.choose_features(
        points, rows_of(features), expected.astype(np.float32), known, indptr, False, ids, sums
    )
    sums[:] = 0
    return indptr, ids, sums


def choose_lists(features, labels, per_point, at_least, dense=None):
    """`FeatureLists` with zero weights; see `SparseLinear.choose`."""
    n_labels, n_features = labels.shape[1], features.shape[1]
    nothing_known = np.zeros(n_labels + 1, np.int64), np.empty(0, np.int32)
    indptr, ids, zeros = _distinctive_features(features, labels, per_point, at_least, nothing_known)
    dense = _dense_features(ids, n_labels, n_features) if dense is None else dense
    return _new_lists(indptr, ids, zeros, n_features, np.full(n_labels, INITIAL_BIAS, np.float32), dense)


def extended_lists(lists, features, labels, per_point, at_least, n_known_points):
    """`FeatureLists` extended by the labels and features of new points; known weights stay, new ones are 0."""
    n_labels, known = labels.shape[1], _by_label(lists, 0, len(lists.bias))
    indptr = np.concatenate([known[0], np.full(n_labels - len(lists.bias), known[0][-1])])
    new = _distinctive_features(features, labels, per_point, at_least, (indptr, known[1]), n_known_points)
    ids = new[1]
    ids[lists.dense[ids] >= 0] = -1  # connected to all labels already
    return _with_entries(lists, new, np.full(n_labels, INITIAL_BIAS, np.float32))


def more_features(lists, features, labels, duals, share):
    """`FeatureLists` with more features for each label: `share` times its present number, and at least one.

    Takes the features with the largest gradients, the magnitude of ``sum_i a_i y_i features[i, f]`` over the points i
    with a dual variable a_i. This sum is the weight that the feature would have, and its initial value. `labels` is the
    (N, L) CSR matrix of the rows' own labels; `duals` is a sequence of `Duals` of consecutive rows, N rows in all.
    Features that are connected to all labels do not change.
    """
    n_labels, nothing_expected = len(lists.bias), np.zeros(features.shape[1], np.float32)
    rows = rows_of(features)
    n = _column_counts([lists], 0, n_labels) + np.count_nonzero(lists.dense >= 0)
    n_duals = _column_counts(duals, 0, n_labels)
    n_of_label = np.where((n > 0) & (n_duals > 0), np.maximum(1, share * n), 0).astype(np.int64)
    indptr, ids, sums = _allocate(n_of_label)
    own_indptr, own = _columns([rows_of(labels)], 0, n_labels)[:2]
    # Labels are handled in chunks: the dual variables of all labels, sorted by label, would not fit into memory.
    cuts = np.flatnonzero(np.diff(np.cumsum(n + n_duals) // ENTRIES_PER_CHUNK)) + 1
    for first, last in zip([0, *cuts], [*cuts, n_labels], strict=True):
        signed = sparse.SparseRows(*_columns(duals, first, last))
        feature_choice.sign(*signed, own_indptr[first : last + 1], own)
        known = _by_label(lists, first, last)[:2]
        feature_choice.choose_features(signed, rows, nothing_expected, known, indptr[first : last + 1], True, ids, sums)
        del signed, known  # before the next chunk is allocated
    del own_indptr, own, n, n_duals, n_of_label, cuts  # the new lists are the peak of memory
    return _with_entries(lists, (indptr, ids, sums), lists.bias)


def check_squares(name, weights, indptr):
    """ValueError if the sum of squares of a row may exceed float32: a step divides by it."""
    if not weights.shape[0]:
        return
    xp = module_of(device_of(weights))
    largest, longest = float(xp.abs(weights).max()), int((indptr[1:] - indptr[:-1]).max())
    if largest**2 * longest > check.LARGEST:
        raise ValueError(f"{name} must have squares that a float32 can hold, got {largest:g}; scale the features down")


def rows_of(features, device="cpu"):
    """A canonical CSR matrix as `SparseRows` for the kernels; on the CPU without copying ids and weights."""
    arrays = features.indptr.astype(np.int64), features.indices.astype(np.int32, copy=False), features.data
    return sparse.SparseRows(*(asarray(array, device) for array in arrays))


# ---------------------------------------------------------------- functions


def _check_device(name, fields, arrays, layer):
    """TypeError if the arrays of the tuple `name` are not on the layer's device."""
    device = check.same_device(**{f"{name}.{field}": a for field, a in zip(fields, arrays, strict=True)})
    if device != layer.device:
        raise TypeError(f"{name} must live on {layer.device} like the layer, got {device}")


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
    _check_device("features", ("indptr", "ids", "weights"), features, layer)
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
    Source: ours; see the module.

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
    Source: ours; see the module.

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
) -> tuple[float, tuple[Array, Array, Array]]:
    """Dual coordinate descent over a batch, one label against the rest; the layer's weights change in place.

    For every label, it minimizes over the connected weights w ``|w|^2 / 2 + C sum_i max(0, m_i - y_i s_i)^2``. s_i is
    the score of row i; y_i = 1 and m_i = 1 for the row's own labels, else y_i = -1 and m_i = 1 - slack. With the dual
    variable a >= 0 of a row and a label, and z, the row's entries of features that the label is connected to:
    ``G = y s - m + a / (2 C);  a <- max(0, a - G / (|z|^2 + 1 / (2 C)));  w += (change of a) y z``.
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
        In [0, 2): negatives only need a score of at most ``slack - 1``.

    Returns
    -------
    loss : float
        The sum of the squared hinge ``max(0, m - y s)^2`` over the visited pairs, each before its own change.
    duals : tuple
        The new dual variables that are above zero: ``(indptr (B + 1,) int64, labels (n,) int32, values (n,) float32)``.

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; features or duals not finite, duals negative; C or slack out of range. Nothing
        has changed.

    Notes
    -----
    Source: Hsieh et al., ICML 2008, section 3, which visits all rows, one at a time; the slack and the choice of rows
    by the scores before the step are ours. On one device, the bits do not depend on the number of threads.

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
    duals = _checked_duals(duals, n_rows, layer)
    loss, new = backend_of(layer.device, "linear").step(rows, labels, duals, layer.arrays, float(C), float(slack))
    return float(loss), tuple(new)


def no_duals(n_rows, device="cpu"):
    """`Duals` of rows before their first step: none is above zero."""
    arrays = np.zeros(n_rows + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
    return Duals(*(asarray(a, device) for a in arrays))


def _checked_duals(duals, n_rows, layer):
    if duals is None:
        return no_duals(n_rows, layer.device)
    if scipy.sparse.issparse(duals) and layer.device == "cpu":
        if duals.shape != (n_rows, layer.n_labels):
            raise ValueError(f"duals must have shape ({n_rows}, {layer.n_labels}), got {duals.shape}")
        duals = canonical("duals", duals)
        duals = duals.indptr.astype(np.int64), duals.indices, duals.data
    if not (isinstance(duals, tuple) and len(duals) == 3):
        raise TypeError(
            f"duals must be a tuple (indptr, labels, values) as a step returns it, got {type(duals).__name__}"
        )
    _check_device("duals", ("indptr", "labels", "values"), duals, layer)
    indptr = check.integers("duals.indptr", duals[0], (n_rows + 1,), dtype=np.int64)
    labels = check.integers("duals.labels", duals[1], ("n",))
    sparse.sorted_keys(sparse.Labels(indptr, labels), layer.n_labels, "duals")
    values = check.array("duals.values", duals[2], np.float32, labels.shape, finite=True)
    if values.size and float(values.min()) < 0:
        raise ValueError(f"duals must not be negative, got {float(values.min()):g}")
    return Duals(indptr, labels, values)
