"""A linear layer over sparse features (method 1, one layer lower): the public functions.

A label is connected to a few features only, which its own points have more often than others. So the lists of a row's
features score it against all labels, and training moves only the labels whose score passes the margin.

Source: dual coordinate descent for the squared hinge: Hsieh, Chang, Lin, Keerthi, Sundararajan, "A dual coordinate
descent method for large-scale linear SVM", ICML 2008. One label against the rest over millions of labels: Babbar,
Schölkopf, "DiSMEC", WSDM 2017. The choice of features, the slack of the negatives and the step over a batch are ours.
"""

import math

import numpy as np
import scipy.sparse

from .core import check, sparse
from .core.connections import Duals, FeatureLists
from .core.device import aligned, asarray, backend_of, device_of, empty, module_of, to_numpy
from .cpu import feature_choice
from .cpu.panels import padded
from .cpu.simd import LANES

#: A feature that more than this share of the labels has chosen is connected to all of them: its weights then need no
#: list and are read in order.
DENSE_SHARE = 1 / 8
#: What training asks of a score: at least 1 for a row's own labels, at most ``slack - 1`` for the others.
BIAS = -1.0
#: Dual variables and weights in one round of the choice of further features: those of some labels, of one at least.
AT_ONCE = 1 << 21


class SparseLinear:
    """A linear layer over sparse features, in which each label is connected to a few features of its own choice.

    ``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``; dense equivalent: ``features @ weights.T + bias``.

    Parameters
    ----------
    weights : (L, F) SciPy sparse matrix
        Its stored entries are the connections, zeros included; float32, others are converted, which copies them.
    bias : (L,) float32, optional
        If not given -1 for every label.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Not sparse, not finite, no labels or features; a bias of another shape or dtype; CUDA where there is none.

    Notes
    -----
    The arrays are the layer's own and are updated in place by training. A feature that more than an eighth of the
    labels are connected to is connected to all of them, with weights of zero.

    Source: ours; see the module.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import SparseLinear, sparse_linear_forward
    >>> layer = SparseLinear(scipy.sparse.csr_matrix(np.array([[0, 2], [3, 0]], np.float32)))
    >>> sparse_linear_forward(scipy.sparse.csr_matrix(np.array([[1, 10]], np.float32)), layer)
    array([[19.,  2.]], dtype=float32)
    """

    def __init__(self, weights, bias=None, *, device="cpu"):
        check.choice("device", device, ("cpu", "cuda"))
        weights = canonical("weights", weights)
        n_labels, n_features = weights.shape
        check.integer("n_labels (the length of weights)", n_labels, 1, 2**31 - 1)
        check.integer("n_features (the width of weights)", n_features, 1, 2**31 - 1)
        if bias is None:
            bias = np.full(n_labels, BIAS, np.float32)
        bias = check.array("bias", to_numpy(bias), np.float32, (n_labels,))
        check.finite("bias", bias)
        entries = rows_of(weights)
        self._set(_lists(*entries, n_features, bias.copy(), _dense(entries.ids, n_labels, n_features)), device)

    @classmethod
    def _of(cls, lists, device="cpu"):
        """A layer around NumPy arrays that are known to be right."""
        layer = cls.__new__(cls)
        layer._set(lists, device)
        return layer

    def _set(self, lists, device):
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
    def nbytes(self):
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    def __repr__(self):
        return (
            f"SparseLinear(n_labels={self.n_labels}, n_features={self.n_features}, n_weights={self.n_weights}, "
            f"device={self.device!r})"
        )

    @property
    def weights(self):
        """(L, F) SciPy CSR matrix, float32: a copy, in which every connection is stored."""
        indptr, ids, values = _by_label(FeatureLists(*map(to_numpy, self.arrays)), 0, self.n_labels)
        matrix = scipy.sparse.csr_matrix((values, ids, indptr), shape=(self.n_labels, self.n_features))
        matrix.sort_indices()
        return matrix

    @classmethod
    def choose(cls, features, labels, *, per_point=8.0, at_least=16, dense=None, device="cpu"):
        """A layer with zero weights, in which each label is connected to the features that stand out in its points.

        Those of the largest ``sum_i features[i, f] - n mean(features[:, f])``, i over the n points of the label: what its points have
        more of than chance would give. Only features of its points are taken.

        Parameters
        ----------
        features : (N, F) SciPy sparse matrix
            All points.
        labels : (N, L) SciPy sparse matrix
            Entries that are not zero are positive.
        per_point : float
            Features of a label for each of its points.
        at_least : int
            And at least so many, where its points have them. Labels without points choose none.
        dense : (D,) integers, optional
            The features that are connected to all labels. If not given those that more than an eighth of the labels
            choose. Shards of the labels that are trained apart come to the bits of the whole where these are the same.
        device : 'cpu' or 'cuda'

        Returns
        -------
        layer : SparseLinear
            The choice is made on the CPU.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            Not sparse, not finite, shapes that do not fit, a number out of range; CUDA where there is none.

        Examples
        --------
        >>> import numpy as np, scipy.sparse
        >>> from sparsemax_nb import SparseLinear
        >>> features = scipy.sparse.csr_matrix(np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1]], np.float32))
        >>> labels = scipy.sparse.csr_matrix(np.array([[1, 0], [1, 0], [0, 1]]))
        >>> nowhere = np.empty(0, np.int32)
        >>> SparseLinear.choose(features, labels, per_point=0, at_least=1, dense=nowhere).weights.indices
        array([0, 1], dtype=int32)
        """
        check.choice("device", device, ("cpu", "cuda"))
        features, labels = canonical("features", features), sparse.as_ones("labels", labels)
        if features.shape[0] != labels.shape[0]:
            raise ValueError(
                f"features and labels must have as many rows as each other, got {features.shape[0]} and {labels.shape[0]}"
            )
        check_squares("features", features.data, features.indptr)
        check.number("per_point", per_point, 0, 1e6)
        check.integer("at_least", at_least, 1)
        if dense is not None:
            dense = np.unique(check.integers("dense", check.on_host("dense", dense), ("D",), features.shape[1]))
        return cls._of(choose_lists(features, labels, per_point, at_least, dense), device)


# ---------------------------------------------------------------- how features are chosen


def canonical(name, features):
    """A SciPy sparse matrix as finite CSR, float32, with no entry twice; errors as for `sparse.valid_csr`."""
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


def _dense(ids, n_labels, n_features):
    """Features that more than the share `DENSE_SHARE` of the labels is connected to."""
    return np.flatnonzero(_counts([(None, ids)], 0, n_features) > DENSE_SHARE * n_labels)


def _counts(parts, first, last):
    """Entries of each of the columns from `first` to `last` - 1, of CSR matrices (indptr, ids, values)."""
    counts = np.zeros(last - first, np.int64)
    for part in parts:
        feature_choice.count(part[1], first, counts)
    return counts


def _columns_of(parts, first, last):
    """(indptr, rows, values) of the columns from `first` to `last` - 1; rows ascend within a column, zeros stay entries.

    `parts` are CSR matrices that lie below each other, (indptr, ids, values) each.
    """
    indptr, row = np.concatenate([[0], np.cumsum(_counts(parts, first, last))]), 0
    ends, rows, values = indptr[:-1].copy(), np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    for part in parts:
        feature_choice.place(*part, row, first, ends, rows, values)
        row += len(part[0]) - 1
    return indptr, rows, values


def _empty_lists(lengths, dense, bias):
    """`FeatureLists` with lists of these lengths that are to be written, and zeros for the features `dense`."""
    lengths[dense] = 0
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    first, width = padded(int(indptr[-1]), LANES), padded(len(bias), LANES)
    where = np.full(len(lengths), -1, np.int64)
    where[dense] = first + width * np.arange(len(dense))
    values = aligned(np.zeros, (first + len(dense) * width,))
    return FeatureLists(indptr, np.empty(indptr[-1], np.int32), values, where, bias)


def _lists(indptr, ids, values, n_features, bias, dense):
    """`FeatureLists` of entries by label, whose features `dense` are connected to all labels; an id of -1 is none."""
    lists = _empty_lists(np.zeros(n_features, np.int64), dense, bias)
    if len(dense):
        everywhere = np.flatnonzero((ids >= 0) & (lists.dense[ids] >= 0))
        label = np.searchsorted(indptr, everywhere, "right") - 1
        lists.values[lists.dense[ids[everywhere]] + label] = values[everywhere]
        ids = ids.copy()
        ids[everywhere] = -1
    return _extended(lists, (indptr, ids, values), bias)


def _extended(lists, more, bias):
    """`FeatureLists` with `more` entries, (indptr, ids, values) by label, which has the labels of `bias`; an id of -1 is none.

    No entry may be in `lists` already, or belong to a feature that is connected to all labels: there is no place for
    it.
    """
    dense, n_labels = np.flatnonzero(lists.dense >= 0), len(lists.bias)
    found = _empty_lists(np.diff(lists.indptr) + _counts([more], 0, len(lists.dense)), dense, bias)
    middle = np.empty(len(lists.dense), np.int64)
    feature_choice.spread(*lists[:3], middle, *found[:3])
    feature_choice.place(*more, 0, 0, middle.copy(), *found[1:3])
    feature_choice.merge(found.indptr, middle, *found[1:3])
    for old, start in zip(lists.dense[dense], found.dense[dense], strict=True):
        found.values[start : start + n_labels] = lists.values[old : old + n_labels]
    return found


def _by_label(lists, first, last):
    """(indptr, ids, values) of the labels from `first` to `last` - 1: features ascend but for the dense ones, which come last."""
    dense, n = np.flatnonzero(lists.dense >= 0), last - first
    values = np.empty((len(dense), n), np.float32)
    for row, start in zip(values, lists.dense[dense], strict=True):
        row[:] = lists.values[start + first : start + last]
    everywhere = (
        np.arange(len(dense) + 1) * n,
        np.tile(np.arange(first, last, dtype=np.int32), len(dense)),
        values.reshape(-1),
    )
    indptr, rows, values = _columns_of((lists[:3], everywhere), first, last)
    return indptr, np.concatenate([np.arange(len(lists.dense)), dense]).astype(np.int32)[rows], values


def _room(n_of_label):
    """(indptr, ids, sums) by label with room for so many features of each (L,), which are to be written."""
    indptr = np.concatenate([[0], np.cumsum(n_of_label)])
    return indptr, np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)


def _outstanding(features, labels, per_point, at_least, known, n_known_points=0):
    """(indptr, ids, zeros) by label of the features that stand out in a label's points, beside those that are `known`.

    `per_point` for each point, and so many that with the known ones there are `at_least`, and `per_point` for each of
    its points, the `n_known_points` (L,) of before among them. Where there are fewer ids are -1.
    """
    points = sparse.SparseRows(*_columns_of([rows_of(labels)], 0, labels.shape[1]))
    n_points = np.diff(points.indptr)
    wanted = np.maximum(at_least, per_point * (n_points + n_known_points)) - np.diff(known[0])
    there = labels.T @ np.diff(features.indptr)  # no more than its points have
    n_of_label = np.minimum(np.maximum(per_point * n_points, wanted), np.minimum(there, features.shape[1])).astype(
        np.int64
    )
    expected = np.bincount(features.indices, features.data, minlength=features.shape[1]) / max(1, features.shape[0])
    room, ids, sums = _room(n_of_label)
    feature_choice.choose_features(
        points, rows_of(features), expected.astype(np.float32), known, room, False, ids, sums
    )
    sums[:] = 0
    return room, ids, sums


def choose_lists(features, labels, per_point, at_least, dense=None):
    """`FeatureLists` with zero weights: see `SparseLinear.choose`."""
    n_labels, n_features = labels.shape[1], features.shape[1]
    nothing = np.zeros(n_labels + 1, np.int64), np.empty(0, np.int32)
    indptr, ids, zeros = _outstanding(features, labels, per_point, at_least, nothing)
    dense = _dense(ids, n_labels, n_features) if dense is None else dense
    return _lists(indptr, ids, zeros, n_features, np.full(n_labels, BIAS, np.float32), dense)


def extended_lists(lists, features, labels, per_point, at_least, n_known_points):
    """`FeatureLists` with the labels and features that new points bring: what was known keeps its weights, the rest is 0."""
    n_labels, known = labels.shape[1], _by_label(lists, 0, len(lists.bias))
    indptr = np.concatenate([known[0], np.full(n_labels - len(lists.bias), known[0][-1])])
    indptr, ids, zeros = _outstanding(features, labels, per_point, at_least, (indptr, known[1]), n_known_points)
    ids[lists.dense[ids] >= 0] = -1  # there already
    return _extended(lists, (indptr, ids, zeros), np.full(n_labels, BIAS, np.float32))


def more_features(lists, features, labels, duals, share):
    """`FeatureLists` with more features for each label: `share` times as many as it has, and at least one.

    Those with the largest gradients: the magnitude of ``sum_i a_i y_i features[i, f]`` over the points i with a dual variable
    a_i, which is the weight that the feature would have, and has from now on. `labels` is the (N, L) CSR matrix of the
    rows' own, and `duals` are those of all rows, some rows each. The features that are connected to all labels stay the
    same. Some labels are dealt with at a time: no array by label holds all dual variables.
    """
    n_labels, nothing, rows = len(lists.bias), np.zeros(features.shape[1], np.float32), rows_of(features)
    n = _counts([lists], 0, n_labels) + np.count_nonzero(lists.dense >= 0)
    n_duals = _counts(duals, 0, n_labels)
    n_of_label = np.where((n > 0) & (n_duals > 0), np.maximum(1, share * n), 0).astype(np.int64)
    room, ids, sums = _room(n_of_label)
    own_indptr, own = _columns_of([rows_of(labels)], 0, n_labels)[:2]
    cuts = np.flatnonzero(np.diff(np.cumsum(n + n_duals) // AT_ONCE)) + 1
    for first, last in zip([0, *cuts], [*cuts, n_labels], strict=True):
        signed = sparse.SparseRows(*_columns_of(duals, first, last))
        feature_choice.sign(*signed, own_indptr[first : last + 1], own)
        known = _by_label(lists, first, last)[:2]
        feature_choice.choose_features(signed, rows, nothing, known, room[first : last + 1], True, ids, sums)
        del signed, known  # before the next are made
    del own_indptr, own, n, n_duals, n_of_label, cuts  # the new lists are what takes most
    return _extended(lists, (room, ids, sums), lists.bias)


def check_squares(name, weights, indptr):
    """ValueError where the sum of the squares of a row may not be a float32: a step could not be divided by it."""
    if not weights.shape[0]:
        return
    xp = module_of(device_of(weights))
    largest, longest = float(xp.abs(weights).max()), int((indptr[1:] - indptr[:-1]).max())
    if largest**2 * longest > check.LARGEST:
        raise ValueError(f"{name} must have squares that a float32 can hold, got {largest:g}; scale the features down")


def rows_of(features, device="cpu"):
    """A canonical CSR matrix as kernels take it: `SparseRows`, on the CPU around its arrays."""
    arrays = features.indptr.astype(np.int64), features.indices.astype(np.int32, copy=False), features.data
    return sparse.SparseRows(*(asarray(array, device) for array in arrays))


# ---------------------------------------------------------------- functions


def _check_place(name, fields, arrays, layer):
    """TypeError where the arrays of the tuple `name` do not live where the layer does."""
    device = check.same_device(**{f"{name}.{field}": a for field, a in zip(fields, arrays, strict=True)})
    if device != layer.device:
        raise TypeError(f"{name} must live on {layer.device} like the layer, got {device}")


def _rows(features, layer):
    """Checked `SparseRows` of what the functions take as features, on the layer's device, and their number."""
    if scipy.sparse.issparse(features):
        if layer.device == "cuda":
            raise TypeError(
                "features is a SciPy matrix on cpu, layer lives on cuda; pass (indptr, ids, weights) on cuda"
            )
        features = canonical("features", features)
        if features.shape[1] != layer.n_features:
            raise ValueError(
                f"features must have {layer.n_features} features as the layer has, got {features.shape[1]}"
            )
        return rows_of(features), features.shape[0]
    if not (isinstance(features, tuple) and len(features) == 3):
        raise TypeError(
            f"features must be a SciPy sparse matrix or a tuple (indptr, ids, weights), got {type(features).__name__}"
        )
    _check_place("features", ("indptr", "ids", "weights"), features, layer)
    indptr = check.integers("features.indptr", features[0], ("n",), dtype=np.int64)
    ids = check.integers("features.ids", features[1], ("m",), layer.n_features)
    weights = check.array("features.weights", features[2], np.float32, ids.shape)
    check.finite("features.weights", weights)
    n = ids.shape[0]
    if indptr.shape[0] < 1 or int(indptr[0]) != 0 or int(indptr[-1]) != n or bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError(f"features.indptr must rise from 0 to len(features.ids) = {n}")
    xp = module_of(layer.device)
    keys = xp.sort(sparse.row_of_each_entry(indptr, n) * layer.n_features + ids)
    if bool((keys[1:] == keys[:-1]).any()):
        raise ValueError("features must not repeat a feature inside one row")
    return sparse.SparseRows(indptr, ids, weights), indptr.shape[0] - 1


def _check_layer(layer):
    if not isinstance(layer, SparseLinear):
        raise TypeError(f"layer must be a SparseLinear, got {type(layer).__name__}")


def sparse_linear_forward(features, layer, out=None):
    """``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``; dense equivalent: ``features @ layer.weights.T + layer.bias``.

    Parameters
    ----------
    features : (B, F) SciPy sparse matrix
        On CUDA a tuple (indptr, ids, weights) of CSR arrays there: (B + 1,) integers, (n,) integers, (n,) float32.
    layer : SparseLinear
    out : (B, L) float32, optional
        Overwritten and returned.

    Returns
    -------
    scores : (B, L) float32

    Raises
    ------
    TypeError, ValueError
        Other types, devices or shapes; features not finite; more than 2^31 - 1 scores.

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
    check.elements(B=n_rows, L=layer.n_labels)
    scores = check.output("out", out, np.float32, (n_rows, layer.n_labels), layer.device, values=layer.arrays.values)
    backend_of(layer.device, "linear").forward(rows, layer.arrays, scores)
    return scores


def sparse_linear_top_k(features, layer, k):
    """The k labels with the largest scores in each row: score descending, then label ascending.

    Dense equivalent: ``np.argsort(-(features @ layer.weights.T + layer.bias), axis=1, kind="stable")[:, :k]``. On the CPU no
    (B, L) array exists.

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
        Other types, devices or shapes; features not finite; k out of range.

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
    check.elements(B=n_rows, k=k)
    scores = empty((n_rows, k), np.float32, layer.device)
    ids = empty((n_rows, k), np.int32, layer.device)
    backend_of(layer.device, "linear").top_k(rows, layer.arrays, scores, ids)
    return scores, ids


def sparse_linear_step(features, layer, labels, duals=None, *, C=0.5, slack=0.2):  # noqa: N803
    """Dual coordinate descent over a batch, one label against the rest; the layer's weights change in place.

    It goes towards the minimum, over the connected weights w of every label, of
    ``|w|^2 / 2 + C sum_i max(0, m_i - y_i s_i)^2``: s_i is the score of row i, y_i = 1 with m_i = 1 where the label is the
    row's own, else y_i = -1 with m_i = 1 - slack. For the dual variable a >= 0 of a row and a label, and z, the row's
    entries of features that the label is connected to:
    ``G = y s - m + a / (2 C);  a <- max(0, a - G / (|z|^2 + 1 / (2 C)));  w += (change of a) y z``.
    Looked at are a row's own labels, those with a dual variable, and those whose score lies above ``slack - 1`` before the
    step. Each label visits its rows in their order. Called again and again over all rows, with what it returned for them
    before, it converges; a few rounds are enough.

    Parameters
    ----------
    features : (B, F) SciPy sparse matrix
        On CUDA a tuple, see `sparse_linear_forward`.
    layer : SparseLinear
    labels : (B, L) SciPy sparse matrix or `Labels`
        The rows' own labels.
    duals : (B, L) SciPy sparse matrix, or a tuple (indptr, labels, values)
        The dual variables of these rows, as an earlier step returned them; None where there was none.
    C : float
        Above 0: how much an error weighs.
    slack : float
        In [0, 2): negatives are asked for a score of ``slack - 1`` only.

    Returns
    -------
    loss : float
        The sum of the squared hinge ``max(0, m - y s)^2`` of what was looked at, each before its own change.
    duals : tuple
        The new dual variables, ``(indptr (B + 1,) int64, labels (n,) int32, values (n,) float32)``, those above zero.

    Raises
    ------
    TypeError, ValueError
        Other types, devices or shapes; features or duals not finite, duals negative; C or slack out of range. Nothing has
        changed then.

    Notes
    -----
    Source: Hsieh et al., ICML 2008, section 3, which visits one row at a time and all of them; slack and the choice of
    rows by the scores before the step are ours. On one processor the bits do not depend on the number of threads.

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
    """`Duals` of rows that no step has seen."""
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
    _check_place("duals", ("indptr", "labels", "values"), duals, layer)
    indptr = check.integers("duals.indptr", duals[0], (n_rows + 1,), dtype=np.int64)
    labels = check.integers("duals.labels", duals[1], ("n",))
    sparse.sorted_keys(sparse.Labels(indptr, labels), layer.n_labels, "duals")
    values = check.array("duals.values", duals[2], np.float32, labels.shape)
    check.finite("duals.values", values)
    if values.size and float(values.min()) < 0:
        raise ValueError(f"duals must not be negative, got {float(values.min()):g}")
    return Duals(indptr, labels, values)
