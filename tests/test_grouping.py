"""Groups of similar labels: the CPU backend against `reference`, what the order promises, bad input."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import group_labels
from sparsemax_nb import grouping as module
from sparsemax_nb.cpu import grouping as cpu_backend
from sparsemax_nb.reference import grouping as reference

from .helpers import label_matrix, normal


def rows_of(n_rows, n_features, seed):
    dense = scipy.sparse.random(n_rows, n_features, 0.3, random_state=seed).toarray()
    dense[3] = 0
    return scipy.sparse.csr_matrix(dense)


@pytest.mark.parametrize(("n_labels", "group_size"), [(6, 1), (7, 7), (9, 2), (65, 8), (130, 3)])
def test_order_equals_reference(n_labels, group_size):
    rows = rows_of(n_labels, 17, n_labels)
    order = cpu_backend.order(rows, group_size, 2**64 - 1)
    np.testing.assert_array_equal(order, reference.order(rows, group_size, 2**64 - 1))
    np.testing.assert_array_equal(np.sort(order), np.arange(n_labels))


def planted(n_topics=12, size=8, points=30, seed=0):
    """Topics with words of their own, and labels that occur with them: (features, labels, topic of each label)."""
    random = np.random.default_rng(seed)
    topics = random.permutation(np.repeat(np.arange(n_topics), size))
    labels = np.repeat(np.arange(n_topics * size), points)
    words = 5 * topics[labels][:, None] + random.integers(0, 5, (len(labels), 3))
    noise = random.integers(0, 5 * n_topics, (len(labels), 1))
    rows = np.repeat(np.arange(len(labels)), 4)
    features = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, np.hstack([words, noise]).ravel()))).tocsr()
    matrix = scipy.sparse.csr_matrix((np.ones(len(labels)), (np.arange(len(labels)), labels)))
    return features, matrix, topics


@pytest.mark.parametrize("dense", [False, True])
def test_finds_planted_topics(dense, monkeypatch):
    """Far more pairs of a group are of one topic than the 8 % of chance; a dense matrix in pieces gives the same."""
    features, labels, topics = planted()
    order = group_labels(features, labels, 8)
    groups = topics[order].reshape(-1, 8)
    together = (groups[:, :, None] == groups[:, None, :]).mean()
    assert together > 0.7
    random = topics[group_labels(features, labels, 8, by="random")].reshape(-1, 8)
    assert (random[:, :, None] == random[:, None, :]).mean() < 0.3
    if dense:
        monkeypatch.setattr(module, "POINTS_PER_CHUNK", 100)
        np.testing.assert_array_equal(group_labels(features.toarray(), labels, 8), order)


def test_labels_without_points_come_last():
    features, labels = scipy.sparse.csr_matrix(normal(0, 20, 5)), label_matrix(20, 9)
    labels = labels.tolil()
    labels[:, [1, 4]] = 0
    order = group_labels(features, labels.tocsr(), 2)
    assert order.dtype == np.int32
    assert order[-2:].tolist() == [1, 4]
    no_labels = scipy.sparse.csr_matrix((20, 9))
    np.testing.assert_array_equal(group_labels(features, no_labels, 2), np.arange(9))


def test_by_frequency_and_at_random():
    labels = label_matrix(50, 30)
    counts = np.asarray(labels.sum(0)).ravel()
    order = group_labels(None, labels, 4, by="frequency")
    assert (np.diff(counts[order]) <= 0).all()
    one, two = (group_labels(None, labels, 4, by="random", seed=seed) for seed in (1, 2))
    assert (one != two).any()
    np.testing.assert_array_equal(np.sort(one), np.arange(30))
    np.testing.assert_array_equal(one, group_labels(None, labels, 4, by="random", seed=1))


FEATURES, LABELS = scipy.sparse.csr_matrix(normal(0, 5, 3)), label_matrix(5, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((FEATURES, LABELS.toarray(), 2), TypeError, "labels must be a SciPy sparse matrix, got ndarray"),
        ((FEATURES, LABELS, 5), ValueError, r"group_size must be between 1 and 4 \(n_labels = 4\), got 5"),
        ((FEATURES, LABELS, 2, "size"), ValueError, "by must be one of 'similar', 'frequency', 'random', got 'size'"),
        ((FEATURES, LABELS, 2, "similar", -1), ValueError, "seed must be"),
        ((FEATURES[:3], LABELS, 2), ValueError, "features must have as many rows as labels, 5, got 3"),
        ((np.full((5, 3), np.nan), LABELS, 2), ValueError, "features must be finite"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        group_labels(*arguments)
