"""Which features a label of a linear layer is connected to: those more frequent in its points than elsewhere."""

import numpy as np

from .core import check, sparse
from .core.connections import FeatureLists
from .core.device import aligned, asarray, device_of, module_of
from .cpu import feature_choice
from .cpu.panels import padded
from .cpu.simd import LANES

#: The bias before training, which is the target score of negatives without slack. A row's own labels should score at
#: least 1, all others at most ``slack - 1``.
INITIAL_BIAS = -1.0
#: A feature that more than this share of the labels has chosen is connected to all of them: its weights then need no
#: list of labels and are read in order.
DENSE_SHARE = 1 / 8
#: `more_features` handles the labels in chunks of about this many dual variables and weights: limits its memory.
ENTRIES_PER_CHUNK = 1 << 21


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


def dense_features(ids, n_labels, n_features):
    """The features that occur in `ids` for more than the share `DENSE_SHARE` of the labels."""
    return np.flatnonzero(_column_counts([(None, ids)], 0, n_features) > DENSE_SHARE * n_labels)


def _column_counts(parts, first, last):
    """Number of entries of each column in [first, last) of all CSR matrices `parts` together.

    A part is a tuple of arrays that begins with (indptr, ids), for example `SparseRows`; only its ids are read.
    """
    counts = np.zeros(last - first, np.int64)
    for part in parts:
        feature_choice.count(part[1], first, counts)
    return counts


def _columns(parts, first, last):
    """(indptr, rows, values) of the columns in [first, last) of vertically stacked CSR matrices.

    `parts` are the matrices, each a tuple (indptr, ids, values) like `SparseRows`. Rows ascend within a column;
    explicit zeros are kept.
    """
    indptr, row = np.concatenate([[0], np.cumsum(_column_counts(parts, first, last))]), 0
    ends = indptr[:-1].copy()
    rows, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    for part in parts:
        feature_choice.place(*part, row, first, ends, rows, values)
        row += len(part[0]) - 1
    return indptr, rows, values


def _empty_lists(lengths, dense, bias):
    """`FeatureLists` with uninitialized lists of these lengths, and with zeros for the features `dense`."""
    lengths[dense] = 0
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    first, width = padded(int(indptr[-1]), LANES), padded(len(bias), LANES)
    offsets = np.full(len(lengths), -1, np.int64)
    offsets[dense] = first + width * np.arange(len(dense))
    values = aligned(np.zeros, (first + len(dense) * width,))
    return FeatureLists(indptr, np.empty(indptr[-1], np.int32), values, offsets, bias)


def new_lists(indptr, ids, values, n_features, bias, dense):
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


def lists_by_label(lists, first, last):
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
    """(indptr, ids, sums) by label, uninitialized, with room for ``n_of_label[l]`` features of label l."""
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
    dense = dense_features(ids, n_labels, n_features) if dense is None else dense
    return new_lists(indptr, ids, zeros, n_features, np.full(n_labels, INITIAL_BIAS, np.float32), dense)


def extended_lists(lists, features, labels, per_point, at_least, n_known_points):
    """`FeatureLists` extended by the labels and features of new points; known weights stay, new ones are 0."""
    n_labels, known = labels.shape[1], lists_by_label(lists, 0, len(lists.bias))
    indptr = np.concatenate([known[0], np.full(n_labels - len(lists.bias), known[0][-1])])
    new = _distinctive_features(features, labels, per_point, at_least, (indptr, known[1]), n_known_points)
    ids = new[1]
    ids[lists.dense[ids] >= 0] = -1  # connected to all labels already
    return _with_entries(lists, new, np.full(n_labels, INITIAL_BIAS, np.float32))


def with_features(lists, n_features):
    """`FeatureLists` with further features at the end, `n_features` in all; they are connected to no label."""
    more = n_features - len(lists.dense)
    return lists._replace(
        indptr=np.pad(lists.indptr, (0, more), "edge"), dense=np.pad(lists.dense, (0, more), constant_values=-1)
    )


def without_labels(lists, labels):
    """`FeatureLists` without the connections of some labels; their weights of dense features are 0."""
    n_labels = len(lists.bias)
    indptr, ids, values = lists_by_label(lists, 0, n_labels)
    removed = np.zeros(n_labels, bool)
    removed[labels] = True
    ids[np.repeat(removed, np.diff(indptr))] = -1
    return new_lists(indptr, ids, values, len(lists.dense), lists.bias.copy(), np.flatnonzero(lists.dense >= 0))


def between(lists, before, shares):
    """Overwrite the weights of `FeatureLists` by ``before + shares[l] (weights - before)``, for shares (L,)."""
    values, n, n_labels = lists.values, len(lists.labels), len(lists.bias)
    values[:n] = before[:n] + shares[lists.labels] * (values[:n] - before[:n])
    for start in lists.dense[lists.dense >= 0]:
        row = slice(start, start + n_labels)
        values[row] = before[row] + shares * (values[row] - before[row])


def more_features(lists, features, labels, duals, share):
    """`FeatureLists` with more features for each label: `share` times its present number, at least one.

    Takes the features with the largest gradients, the magnitude of ``sum_i a_i y_i features[i, f]`` over the points i
    with a dual variable a_i. This sum is the weight that the feature would have, and its initial value. `labels` is the
    (N, L) CSR matrix of the rows' own labels; `duals` is a sequence of `Duals` of consecutive rows, N rows in all.
    Features that are connected to all labels do not change. `share` is a number, or one per label, (L,); labels whose
    share is 0 get none.
    """
    n_labels, nothing_expected = len(lists.bias), np.zeros(features.shape[1], np.float32)
    rows = rows_of(features)
    n = _column_counts([lists], 0, n_labels) + np.count_nonzero(lists.dense >= 0)
    n_duals = _column_counts(duals, 0, n_labels)
    n_of_label = np.where((n > 0) & (n_duals > 0) & (share > 0), np.maximum(1, share * n), 0).astype(np.int64)
    indptr, ids, sums = _allocate(n_of_label)
    own_indptr, own = _columns([rows_of(labels)], 0, n_labels)[:2]
    # Labels are handled in chunks: the dual variables of all labels, sorted by label, would not fit into memory.
    cuts = np.flatnonzero(np.diff(np.cumsum(n + n_duals) // ENTRIES_PER_CHUNK)) + 1
    for first, last in zip([0, *cuts], [*cuts, n_labels], strict=True):
        signed = sparse.SparseRows(*_columns(duals, first, last))
        feature_choice.sign(*signed, own_indptr[first : last + 1], own)
        known = lists_by_label(lists, first, last)[:2]
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
