"""The norm of all gradients, clipping, sums of row-wise gradients."""

import numpy as np
import pytest

from sparsemax_nb import SGD
from sparsemax_nb.train import gradients
from sparsemax_nb.train.gradients import Gradient, add_rows, clip
from tests.helpers import normal


def test_clipping_scales_all_to_the_limit(backend, monkeypatch):
    monkeypatch.setattr(gradients, "BLOCK_SIZE", 3)  # several parts
    a, b = normal(1, 4, 2), normal(2, 5)
    norm = np.sqrt((a.astype(np.float64) ** 2).sum() + (b.astype(np.float64) ** 2).sum())
    for limit, scale in ((norm / 2, 0.5), (norm * 2, 1.0)):
        both = [Gradient(None, backend.array(values)) for values in (a, b)]
        assert clip(both, limit) == pytest.approx(norm, rel=1e-6)
        for gradient, values in zip(both, (a, b), strict=True):
            np.testing.assert_allclose(backend.numpy(gradient.values), scale * values, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_norm_that_is_not_finite(bad):
    with pytest.raises(FloatingPointError, match="norm of the gradient"):
        clip([Gradient(None, np.array([1, bad], np.float32))], 1.0)


@pytest.mark.parametrize("other_rows", [[1, 4], [0, 1, 5], [2], []])
def test_sum_of_gradients_by_rows(backend, other_rows):
    rows, other_rows = np.array([1, 3, 4], np.int32), np.array(other_rows, np.int32)
    values, other = normal(1, 3, 2), normal(2, len(other_rows), 2)
    dense = np.zeros((6, 2), np.float32)
    dense[rows] += values
    dense[other_rows] += other
    placed = [tuple(map(backend.array, pair)) for pair in ((values, rows), (other, other_rows))]
    total = add_rows(Gradient(None, *placed[0]), Gradient(None, *placed[1]))
    more = [row for row in other_rows.tolist() if row not in rows]
    assert backend.numpy(total.rows).tolist() == [*rows.tolist(), *more]
    np.testing.assert_allclose(backend.numpy(total.values), dense[backend.numpy(total.rows)], rtol=1e-6)
    total = add_rows(Gradient(None, backend.array(np.ones((6, 2), np.float32))), Gradient(None, *placed[1]))
    dense = np.ones((6, 2), np.float32)
    dense[other_rows] += other
    np.testing.assert_allclose(backend.numpy(total.values), dense, rtol=1e-6)


def test_applied_to_all_or_to_rows():
    array = np.zeros((3, 2), np.float32)
    Gradient(array, np.ones((3, 2), np.float32)).apply(SGD(1.0))
    Gradient(array, np.ones((1, 2), np.float32), np.array([2], np.int32)).apply(SGD(1.0))
    assert array.tolist() == [[-1, -1], [-1, -1], [-2, -2]]
