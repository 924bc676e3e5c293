"""Ranking metrics against their definitions."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb.train import ndcg_at_k, precision_at_k

IDS = np.array([[2, 0, 1], [3, 1, -1], [0, 1, 2]], np.int32)
TRUTH = scipy.sparse.csr_matrix([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("k, wanted", [(1, 1 / 3), (2, 3 / 6), (3, 3 / 9)])
def test_precision(k, wanted):
    assert precision_at_k(IDS, TRUTH, k) == pytest.approx(wanted)


def test_ndcg_against_its_definition():
    second = 1 / np.log2(3)
    assert ndcg_at_k(IDS, TRUTH, 1) == pytest.approx(1 / 3)
    assert ndcg_at_k(IDS, TRUTH, 3) == pytest.approx((1 + second + 0) / 3)


def test_ndcg_agrees_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    scores, truth = rng.random((20, 9)), (rng.random((20, 9)) < 0.4).astype(int)
    truth[:, 0] = 1
    ids = np.argsort(-scores, 1).astype(np.int32)
    assert ndcg_at_k(ids, scipy.sparse.csr_matrix(truth), 5) == pytest.approx(sklearn.ndcg_score(truth, scores, k=5))


@pytest.mark.parametrize("metric", [precision_at_k, ndcg_at_k])
def test_edges(metric):
    assert metric(IDS[:0], TRUTH[:0], 1) == 0
    zeros = TRUTH.copy()
    zeros.data[:] = 0  # stored zeros are no labels
    assert metric(IDS, zeros, 2) == 0
    some = TRUTH.copy()
    some.data[some.indptr[0]] = 0
    without = scipy.sparse.csr_matrix([[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert metric(IDS, some, 2) == metric(IDS, without, 2) > 0
    with pytest.raises(ValueError, match=r"k must be between 1 and 3 \(the width of ids\), got 4"):
        metric(IDS, TRUTH, 4)
    with pytest.raises(ValueError, match="labels must have 3 rows like ids, got 2"):
        metric(IDS, TRUTH[:2], 1)
    with pytest.raises(TypeError, match="ids must be int32"):
        metric(IDS.astype(np.int64), TRUTH, 1)
