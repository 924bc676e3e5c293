"""Sparse batches: labels by row and by label, bags of words by row and by feature, against SciPy."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb.core import sparse
from sparsemax_nb.core.device import device_of

from ..helpers import label_matrix, normal, place_labels

pytestmark = pytest.mark.quick

SHAPES = [(0, 3), (1, 1), (3, 5), (33, 17), (65, 1)]


def matrix_of(shape):
    """Random weights; some rows and some columns are empty where there is room."""
    matrix = label_matrix(*shape, density=0.15 if min(shape) > 4 else 0.5)
    matrix.data[:] = normal(3, matrix.nnz)
    return matrix


@pytest.mark.parametrize("shape", SHAPES)
def test_by_label_is_the_transpose(backend, shape):
    matrix = matrix_of(shape)
    labels = sparse.as_labels(place_labels(backend, matrix), shape[0], backend.device, shape[1])
    label_rows = sparse.by_label(labels, shape[1])
    transposed = matrix.tocsc()
    for got, want in zip(label_rows, (transposed.indptr, transposed.indices), strict=True):
        assert (device_of(got), got.dtype) == (backend.device, np.int32)
        np.testing.assert_array_equal(backend.numpy(got), want)


def test_positives_are_ascending_whatever_the_order_of_labels(backend):
    labels = sparse.Labels(backend.array([0, 3, 5], np.int32), backend.array([2, 0, 1, 2, 0], np.int32))
    label_rows = sparse.by_label(labels, 4)
    assert backend.numpy(label_rows.indptr).tolist() == [0, 2, 3, 5, 5]
    assert backend.numpy(label_rows.rows).tolist() == [0, 1, 0, 0, 1]


def test_entries_that_are_not_zero_count():
    matrix = scipy.sparse.csr_matrix(([0.0, -1.0, 5.0], [1, 0, 2], [0, 1, 3]), shape=(2, 3))
    labels = sparse.as_labels(matrix, 2, "cpu", 3)
    assert labels.indices.tolist() == [0, 2] and labels.indptr.tolist() == [0, 0, 2]
    assert matrix.nnz == 3, "the matrix is not changed"


def test_labels_of_scipy_need_no_copy():
    matrix = label_matrix(5, 7)
    labels = sparse.as_labels(matrix, 5, "cpu", 7)
    assert np.shares_memory(labels.indices, matrix.indices)
    assert np.shares_memory(labels.indptr, matrix.indptr)


@pytest.mark.parametrize("n_rows", [1, 3, 50])
def test_row_of_each_entry(backend, n_rows):
    counts = np.random.default_rng(0).integers(0, 4, n_rows)
    counts[: n_rows // 3] = 0
    indptr = np.concatenate([[0], np.cumsum(counts)])
    rows = sparse.row_of_each_entry(backend.array(indptr, np.int32), int(indptr[-1]))
    np.testing.assert_array_equal(backend.numpy(rows), np.repeat(np.arange(n_rows), counts))


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_columns(backend, shape):
    matrix = matrix_of(shape)
    rows = sparse.as_rows(matrix, backend.device)
    for got, want in zip(rows, (matrix.indptr, matrix.indices, matrix.data), strict=True):
        assert device_of(got) == backend.device
        np.testing.assert_array_equal(backend.numpy(got), want)
    columns = sparse.by_column(rows)
    assert [a.dtype for a in columns] == [np.int32, np.int32, np.int32, np.float32]
    ids, indptr, row, weights = map(backend.numpy, columns)
    transposed = matrix.tocsc()
    np.testing.assert_array_equal(ids, np.flatnonzero(np.diff(transposed.indptr)))
    np.testing.assert_array_equal(indptr, np.unique(transposed.indptr))
    np.testing.assert_array_equal(row, transposed.indices)
    np.testing.assert_array_equal(weights, transposed.data)


def test_entries_of_a_feature_stay_in_their_order(backend):
    """Also where a row holds a feature twice, and where ids are as large as can be."""
    largest = 2**31 - 1
    ids = backend.array([5, largest, 5, 0, largest, 5, largest], np.int32)
    weights = backend.array(np.arange(7), np.float32)
    rows = sparse.SparseRows(backend.array([0, 0, 3, 3, 7], np.int32), ids, weights)
    columns = [backend.numpy(a).tolist() for a in sparse.by_column(rows)]
    assert columns == [[0, 5, largest], [0, 1, 4, 7], [3, 1, 1, 3, 1, 3, 3], [3, 0, 2, 5, 1, 4, 6]]
