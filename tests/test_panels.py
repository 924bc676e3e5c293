"""Products with a packed matrix on the CPU: right for every shape, and no number outside their room is touched."""

import numpy as np
import pytest

from sparsemax_nb.cpu import panels

from .helpers import assert_close, normal


def product(x, matrix, first=0):
    """Rows of x from `first` on, times the matrix; checks that nothing behind the room of the result is written."""
    packed, n_rows = panels.pack(matrix), len(x) - first
    room = panels.padded(n_rows, panels.ROWS) * packed.shape[0] * panels.LANES
    out = np.full(room + 64, -9, np.float32)
    panels.product(x.reshape(-1), first * x.shape[1], n_rows, packed, out)
    assert (out[room:] == -9).all()
    return out[:room].reshape(-1, packed.shape[0] * panels.LANES)[:n_rows, : matrix.shape[1]]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n_rows", "n_terms", "n_columns"), [(1, 1, 1), (3, 7, 16), (4, 16, 17), (9, 33, 65)])
def test_equals_reference(n_rows, n_terms, n_columns, transposed):
    matrix = normal(1, n_columns, n_terms).T if transposed else normal(1, n_terms, n_columns)
    x = normal(2, n_rows + 2, n_terms)
    assert_close(product(x, matrix, 2), x[2:].astype(np.float64) @ matrix, n_terms)


def test_a_row_does_not_depend_on_the_others():
    x, matrix = normal(2, 7, 33), normal(1, 33, 20)
    whole = product(x, matrix)
    for row in range(7):
        assert product(x[row : row + 1].copy(), matrix).tobytes() == whole[row].tobytes()


def test_nan_of_a_row_stays_in_it():
    x, matrix = normal(2, 6, 5), normal(1, 5, 20)
    clean = product(x, matrix)
    x[3, 2] = np.nan
    spoilt = product(x, matrix)
    assert np.isnan(spoilt[3]).all()
    np.testing.assert_array_equal(np.delete(spoilt, 3, 0), np.delete(clean, 3, 0))


@pytest.mark.parametrize("n_terms", [1, 15, 16, 40])
@pytest.mark.parametrize("n_rows", [1, 16, 21])
def test_rows_are_packed_as_the_columns_of_their_transpose_are(n_rows, n_terms):
    rows = normal(1, n_rows + 2, n_terms)
    packed = np.full((n_rows // 16 + 2, n_terms, 16), -9, np.float32)
    panels.pack_rows(rows.reshape(-1), 2 * n_terms, n_rows, packed[: -(-n_rows // 16)])
    np.testing.assert_array_equal(packed[: -(-n_rows // 16)], panels.pack(rows[2:].T))
    assert (packed[-(-n_rows // 16) :] == -9).all()
