"""Sparse batches: bags of words, multi-label targets, and both transposed (by feature, by label)."""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from . import check
from .device import asarray, device_of, module_of, zeros


class Labels(NamedTuple):
    """Labels of each row in CSR form: row b has the labels ``indices[indptr[b]:indptr[b + 1]]``.

    Parameters
    ----------
    indptr : (B + 1,) int32
        Ascending from 0 to n.
    indices : (n,) int32
        Labels, none twice in one row. Both arrays live on one device; functions that take labels check them.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import Labels, softmax_cross_entropy
    >>> labels = Labels(np.array([0, 2, 3], np.int32), np.array([0, 3, 1], np.int32))  # {0, 3} and {1}
    >>> h, weights = np.eye(2, 3, dtype=np.float32), np.eye(4, 3, dtype=np.float32)
    >>> loss, dh, dweights, dbias = softmax_cross_entropy(h, weights, labels)
    >>> dh.shape
    (2, 3)
    """

    indptr: np.ndarray
    indices: np.ndarray


class LabelRows(NamedTuple):
    """`Labels` transposed: label l occurs in the rows ``rows[indptr[l]:indptr[l + 1]]``, ascending (both int32)."""

    indptr: np.ndarray
    rows: np.ndarray


class SparseRows(NamedTuple):
    """Sparse inputs (CSR): row b has feature ``ids[j]`` with ``weights[j]`` for j in ``indptr[b]:indptr[b + 1]``."""

    indptr: np.ndarray  # (B + 1,) int32
    ids: np.ndarray  # (n,) int32
    weights: np.ndarray  # (n,) float32


class SparseColumns(NamedTuple):
    """`SparseRows` transposed, features that occur only: ``ids[i]`` occurs in ``rows[j]`` with ``weights[j]``.

    j runs over ``indptr[i]:indptr[i + 1]``.
    """

    ids: np.ndarray  # (U,) int32, ascending
    indptr: np.ndarray  # (U + 1,) int32
    rows: np.ndarray  # (n,) int32
    weights: np.ndarray  # (n,) float32


def check_structure(matrix):
    """ValueError if indices of a SciPy CSR or CSC matrix point outside its arrays; call it before SciPy's own loops.

    SciPy's ``check_format(full_check=True)`` checks nothing if the last number of indptr is 0 or negative.
    """
    indptr, (n, width) = matrix.indptr, matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    n_stored = min(len(matrix.indices), len(matrix.data))
    if len(indptr) != n + 1 or indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any() or indptr[-1] > n_stored:
        raise ValueError(f"indptr must hold {n + 1} numbers that rise from 0 to at most {n_stored}")
    check.in_range("indices", matrix.indices[: indptr[-1]], width)


def as_csr(name, matrix):
    """A valid CSR matrix object around the arrays of a SciPy sparse matrix; other formats are copied.

    SciPy sorts, prunes and sums in place and sets flags on the matrix: a new object keeps the caller's matrix
    unchanged. Copy indices and data before changing them.
    """
    if not scipy.sparse.issparse(matrix):
        fix = f"; use scipy.sparse.csr_matrix({name})" if isinstance(matrix, (np.ndarray, list)) else ""
        raise TypeError(f"{name} must be a SciPy sparse matrix, got {type(matrix).__name__}{fix}")
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got shape {matrix.shape}")
    if matrix.dtype.kind not in "biuf":
        part = ".real" if matrix.dtype.kind == "c" else ""
        raise TypeError(f"{name} must hold real numbers, got {matrix.dtype}; use {name}{part}.astype(np.float32)")
    try:
        checked = matrix.format in ("csr", "csc")
        if checked:
            check_structure(matrix)
        matrix = matrix.tocsr()
        # SciPy cannot compute with float16 or foreign byte orders
        dtype = np.float32 if matrix.dtype == np.float16 else matrix.dtype.newbyteorder("=")
        data = matrix.data.astype(dtype, copy=False)
        matrix = type(matrix)((data, matrix.indices, matrix.indptr), shape=matrix.shape)
        if not checked:
            matrix.check_format(full_check=True)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{name} is not a valid CSR matrix: {error}") from error
    return matrix


def valid_csr(name, matrix):
    """`as_csr` of a matrix whose entries must be finite."""
    matrix = as_csr(name, matrix)
    chunk = 1 << 20
    for start in range(0, matrix.nnz, chunk):
        finite = np.isfinite(matrix.data[start : start + chunk])
        if not finite.all():
            row = int(np.searchsorted(matrix.indptr, start + int(np.argmin(finite)), side="right")) - 1
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}")
    return matrix


def _nonzero_structure(name, matrix, keep_order):
    """(indices, indptr) of the nonzero entries of a SciPy sparse matrix, after duplicates are summed.

    The arrays of `matrix` are not changed. With `keep_order`, a matrix without duplicates keeps the order of its ids.
    Errors as for `valid_csr`.
    """
    matrix = valid_csr(name, matrix)
    if not matrix.has_canonical_format:
        summed = matrix.copy()
        summed.sum_duplicates()
        matrix = matrix if keep_order and summed.nnz == matrix.nnz else summed
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    # kernels would be compiled again for read-only arrays
    return tuple(a if a.flags.writeable else a.copy() for a in (matrix.indices, matrix.indptr))


def as_ones(name, matrix):
    """Canonical CSR with a float32 one for each nonzero entry of a SciPy sparse matrix; errors as for `valid_csr`.

    Duplicates are summed first. The arrays of `matrix` are not changed.
    """
    indices, indptr = _nonzero_structure(name, matrix, keep_order=False)
    kind = scipy.sparse.csr_array if isinstance(matrix, scipy.sparse.sparray) else scipy.sparse.csr_matrix
    return kind((np.ones(int(indptr[-1]), np.float32), indices, indptr), shape=matrix.shape)


def as_rows(matrix, device):
    """A SciPy CSR matrix as `SparseRows` on `device`."""
    arrays = (matrix.indptr, np.int32), (matrix.indices, np.int32), (matrix.data, np.float32)
    return SparseRows(*(asarray(a, device, dtype) for a, dtype in arrays))


def row_of_each_entry(indptr, n):
    """(n,) int64: the row of each entry of a CSR structure."""
    xp = module_of(device_of(indptr))
    return xp.cumsum(xp.bincount(indptr[1:], minlength=n)[:n])


def by_column(rows):
    """Transpose `SparseRows` to `SparseColumns`; the entries of a feature keep the order of their rows.

    Id and position are sorted as one 64-bit integer: NumPy's sort is several times as fast as its argsort.
    """
    device = device_of(rows.ids)
    xp, n = module_of(device), rows.ids.shape[0]
    bits, keys = n.bit_length(), rows.ids.astype(np.int64)
    keys <<= bits
    keys |= xp.arange(n)
    keys.sort()
    order = keys & ((1 << bits) - 1)
    keys >>= bits  # now the ids
    starts = xp.flatnonzero(xp.concatenate([xp.ones(min(n, 1), bool), keys[1:] != keys[:-1]]))
    indptr = xp.concatenate([starts, xp.full(1, n)])
    row = row_of_each_entry(rows.indptr, n)[order]
    arrays = (keys[starts], np.int32), (indptr, np.int32), (row, np.int32), (rows.weights[order], np.float32)
    return SparseColumns(*(asarray(a, device, dtype) for a, dtype in arrays))


def as_labels(labels, n_rows, device, n_labels, name="labels"):
    """Check `labels` (SciPy sparse matrix or `Labels`) and return `Labels` on `device`; `name` is used in errors.

    For a matrix, the nonzero entries are the labels; explicitly stored zeros are ignored.
    """
    if scipy.sparse.issparse(labels):
        if labels.shape != (n_rows, n_labels):
            raise ValueError(f"{name} must have shape ({n_rows}, {n_labels}), got {labels.shape}")
        if device == "cuda":
            raise TypeError(
                f"{name} is a SciPy matrix on cpu, but other arrays are on cuda; pass Labels(indptr, indices) on cuda"
            )
        indices, indptr = _nonzero_structure(name, labels, keep_order=True)
        labels = Labels(indptr, indices)
    if not (isinstance(labels, tuple) and len(labels) == 2):
        raise TypeError(
            f"{name} must be a SciPy CSR matrix or Labels(indptr, indices), got {type(labels).__name__}; "
            "scipy.sparse.csr_matrix(y) converts a dense 0/1 matrix"
        )
    indptr, indices = labels
    actual = check.same_device(**{f"{name}.indptr": indptr, f"{name}.indices": indices})
    if actual != device:
        raise TypeError(f"{name} must live on {device} like the other arrays, got {actual}")
    indptr = check.integers(f"{name}.indptr", indptr, (n_rows + 1,))
    return Labels(indptr, check.integers(f"{name}.indices", indices, ("n",)))


def sorted_keys(labels, n_labels, name="labels"):
    """``label * n_rows + row`` of every entry of `Labels`, ascending (int64).

    ValueError for ids out of range, repeated ids or an invalid indptr; it calls the argument `name`.
    """
    xp = module_of(device_of(labels.indptr))
    n_rows, n = labels.indptr.shape[0] - 1, labels.indices.shape[0]
    counts = labels.indptr[1:] - labels.indptr[:-1]
    if int(labels.indptr[0]) != 0 or int(labels.indptr[-1]) != n or bool((counts < 0).any()):
        raise ValueError(f"{name}.indptr must rise from 0 to len({name}.indices) = {n}")
    low, high = (int(labels.indices.min()), int(labels.indices.max())) if n else (0, 0)
    if low < 0 or high >= max(n_labels, 1):
        raise ValueError(f"{name} must hold ids in [0, {n_labels}), got {low if low < 0 else high}")
    keys = xp.sort(labels.indices.astype(np.int64) * n_rows + row_of_each_entry(labels.indptr, n))
    if bool((keys[1:] == keys[:-1]).any()):
        raise ValueError(f"{name} must not repeat a label inside one row; use {name}.sum_duplicates()")
    return keys


def is_multi_label(targets):
    """Whether targets have the form that `as_labels` takes (any number per row), not an array of one per row."""
    return scipy.sparse.issparse(targets) or isinstance(targets, tuple)


def as_targets(targets, n_rows, device, n_classes, ignore_index=None):
    """Checked `Labels` on `device` from one target per row, (B,) int32, or from several, in the form `as_labels` takes.

    A row whose only target is `ignore_index` gets no label.
    """
    if is_multi_label(targets):
        labels = as_labels(targets, n_rows, device, n_classes, "targets")
        sorted_keys(labels, n_classes, "targets")
        return labels
    targets = check.integers("targets", targets, (n_rows,), n_classes if ignore_index is None else None)
    if ignore_index is None:
        return Labels(asarray(module_of(device).arange(n_rows + 1), device, np.int32), targets)
    counted = targets != ignore_index
    wrong = counted & ((targets < 0) | (targets >= n_classes))
    if bool(wrong.any()):
        raise ValueError(f"targets must lie in [0, {n_classes}) or be {ignore_index}, got {int(targets[wrong][0])}")
    indptr = zeros(n_rows + 1, np.int32, device)
    indptr[1:] = counted.cumsum()
    return Labels(indptr, targets[counted])


def by_label(labels, n_labels):
    """Transpose `Labels` to `LabelRows`; ValueError for ids out of range, repeated ids or an invalid indptr."""
    device = device_of(labels.indptr)
    xp = module_of(device)
    n_rows, keys = labels.indptr.shape[0] - 1, sorted_keys(labels, n_labels)
    if keys.shape[0] == 0:
        return LabelRows(zeros(n_labels + 1, np.int32, device), labels.indices)
    indptr = zeros(n_labels + 1, np.int32, device)
    indptr[1:] = xp.cumsum(xp.bincount(labels.indices, minlength=n_labels))
    return LabelRows(indptr, asarray((keys % n_rows).astype(np.int32), device))
