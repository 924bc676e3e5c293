"""Nearest neighbors of training points: exact, and within clusters."""

import numpy as np
import pytest

from sparsemax_nb.core.device import asarray, to_numpy
from sparsemax_nb.train import neighbor_search
from sparsemax_nb.train.neighbor_search import nearest_points

from ..helpers import normal


@pytest.fixture
def points():
    """300 points around ten centers, of length 1; some are equal, and one is zero."""
    x = normal(1, 300, 8) + 2 * normal(2, 10, 8)[np.arange(300) % 10]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[5:9], x[17] = x[4], 0
    return x.astype(np.float32)


def expected(points, k):
    products = points @ points.T
    ids = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, ids, 1), ids


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_small_sets_are_searched_exactly(points, device):
    points = points[:70]
    found, _ = (to_numpy(a) for a in nearest_points(asarray(points, device), 7, 0, False))
    np.testing.assert_allclose(found, expected(points, 7)[0], atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_with_all_clusters_probed_nothing_is_missed(points, device, monkeypatch):
    points = points[:70]
    monkeypatch.setattr(neighbor_search, "MAX_EXACT", 0)
    monkeypatch.setattr(neighbor_search, "PROBES", 8)  # the root of 70
    found, ids = (to_numpy(a) for a in nearest_points(asarray(points, device), 7, 0, False))
    np.testing.assert_allclose(found, expected(points, 7)[0], atol=1e-6)
    np.testing.assert_allclose((points[:, None] * points[ids]).sum(2), found, atol=1e-6)
    assert all(len(set(row)) == 7 for row in ids.tolist())


def test_few_clusters_find_most_neighbors_and_each_point_itself(points, monkeypatch):
    monkeypatch.setattr(neighbor_search, "MAX_EXACT", 0)
    monkeypatch.setattr(neighbor_search, "PROBES", 4)
    found, ids = nearest_points(points, 10, 0, False)
    exact = expected(points, 10)[1]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids.tolist(), exact.tolist(), strict=True)])
    assert 0.8 < recall < 1
    itself = (ids == np.arange(300)[:, None]).any(1)
    assert itself[np.linalg.norm(points, axis=1) > 0].all()
    assert (np.diff(found, axis=1) <= 0).all()
    again = nearest_points(points, 10, 0, False)
    assert np.array_equal(again[1], ids)
    assert not np.array_equal(nearest_points(points, 10, 1, False)[1], ids)  # other clusters


def test_clusters_with_fewer_points_than_neighbors_are_padded(points, monkeypatch):
    monkeypatch.setattr(neighbor_search, "MAX_EXACT", 0)
    monkeypatch.setattr(neighbor_search, "PROBES", 1)
    found, ids = nearest_points(points, 100, 0, False)
    assert (ids == -1).any()
    assert np.array_equal(ids == -1, found == -np.inf)


def test_blocks_of_products_do_not_change_the_result(points, monkeypatch):
    monkeypatch.setattr(neighbor_search, "MAX_EXACT", 0)
    whole = nearest_points(points, 5, 0, False)
    monkeypatch.setattr(neighbor_search, "MAX_ELEMENTS", 100)
    assert np.array_equal(nearest_points(points, 5, 0, False)[1], whole[1])
