"""Counts of labels that occur together, and the order of a row's best labels by them."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import CoOccurrence, rerank
from sparsemax_nb import co_occurrence as module
from sparsemax_nb.core.device import SIMULATOR, to_numpy
from sparsemax_nb.reference import co_occurrence

from .helpers import assert_close, label_matrix, normal

LABELS = label_matrix(40, 30, 3, 0.2)


def candidates(n_rows, n, seed=0):
    ids = np.argsort(normal(seed, n_rows, 30), axis=1)[:, :n].astype(np.int32)
    return -np.sort(-normal(seed + 1, n_rows, n), axis=1), ids


def test_counts_are_the_product_of_the_labels():
    y = LABELS.toarray()
    together = (y.T @ y) * (1 - np.eye(30))
    counts = CoOccurrence(LABELS)
    np.testing.assert_array_equal(counts.counts.toarray(), together)
    assert counts.n_pairs == np.count_nonzero(together) // 2 and (counts.n_labels, counts.n_rows) == (30, 40)
    assert counts.nbytes == 8 * 31 + 8 * counts.n_pairs + 4 * 30
    again = CoOccurrence(scipy.sparse.csr_array(LABELS[:25, :20])).extended(LABELS[25:])
    y[:25, 20:] = 0
    assert again.n_rows == 40
    for got, want in zip(again.arrays, CoOccurrence(scipy.sparse.csr_matrix(y)).arrays, strict=True):
        np.testing.assert_array_equal(got, want)


def test_points_with_many_labels_are_not_counted():
    y = np.zeros((3, 50))
    y[0, :33], y[1, :32], y[2, 48:] = 1, 1, 1
    counts = CoOccurrence(scipy.sparse.csr_matrix(y))
    assert counts.n_pairs == 32 * 31 // 2 + 1 and counts.counts.max() == 1 and counts.n_rows == 2
    np.testing.assert_array_equal(counts.arrays.label_counts, y[1:].sum(0))
    scores, ids = candidates(5, 20)
    none = CoOccurrence(scipy.sparse.csr_matrix(np.ones((9, 50))))
    assert none.n_rows == 0 and (rerank(scores, ids, none, weight=0.5)[1] == ids).all()


def test_pairs_that_occur_least_are_left_out_where_there_are_too_many(monkeypatch):
    whole = CoOccurrence(LABELS).counts.toarray()
    monkeypatch.setattr(module, "MIN_PAIR_LIMIT", 60)
    monkeypatch.setattr(module, "MAX_PAIRS_PER_LABEL", 2)
    for at_once in (1 << 21, 10):  # all labels at once, and some at a time
        monkeypatch.setattr(module, "PRODUCTS_PER_CHUNK", at_once)
        few = CoOccurrence(LABELS)
        least = few.counts.data.min()
        assert np.triu(whole >= least).sum() == few.n_pairs <= 60 < np.triu(whole >= least - 1).sum()
        np.testing.assert_array_equal(few.counts.toarray(), whole * (whole >= least))
    assert module.max_pairs(LABELS) == 60
    assert few.extended(LABELS).counts.data.min() > least


def test_rerank_equals_reference(backend):
    counts = CoOccurrence(LABELS, device=backend.device)
    for n_rows, n in ((1, 1), (3, 20)) if SIMULATOR and backend.device == "cuda" else ((1, 1), (0, 5), (40, 30)):
        scores, ids = candidates(n_rows, n)
        for k in {1, n}:
            got = rerank(backend.array(scores), backend.array(ids), counts, k, weight=0.3)
            want = co_occurrence.rerank(scores, ids, CoOccurrence(LABELS).arrays, 0.3, k)
            np.testing.assert_array_equal(to_numpy(got[1]), want[1])
            assert_close(to_numpy(got[0]), want[0], 4 * k, 5)


def test_fewer_places_are_the_first_of_more_and_the_first_candidate_stays():
    (scores, ids), counts = candidates(40, 20), CoOccurrence(LABELS)
    most = rerank(scores, ids, counts, weight=0.5)
    assert (most[1] != ids).any() and (most[1][:, 0] == ids[:, 0]).all() and (most[0][:, 0] == scores[:, 0]).all()
    assert (np.diff(most[0]) <= 0).all() and (most[0] >= scores[:, -1:]).all()
    np.testing.assert_array_equal(np.sort(most[1]), np.sort(ids))
    for k in (1, 2, 7):
        for few, many in zip(rerank(scores, ids, counts, k, weight=0.5), most, strict=True):
            np.testing.assert_array_equal(few, many[:, :k])
    for got, want in zip(rerank(scores, ids, counts, weight=0), (scores, ids), strict=True):
        np.testing.assert_array_equal(got, want)


def test_equal_sums_go_by_the_order_of_the_candidates_and_a_score_of_minus_1e30_is_legal():
    counts = CoOccurrence(scipy.sparse.csr_matrix((2, 4)))  # no pairs, no points of any label
    scores = np.array([[0, 0, 0, -1e30]], np.float32)
    got = rerank(scores, np.array([[2, 1, 3, 0]], np.int32), counts)
    assert got[1].tolist() == [[2, 1, 3, 0]] and (got[0] == scores).all()


def test_bad_input():
    (scores, ids), counts = candidates(3, 5), CoOccurrence(LABELS)
    for message, call in {
        "co_occurrence must be a CoOccurrence, got csr_matrix": lambda: rerank(scores, ids, LABELS),
        "scores must be float32": lambda: rerank(scores.astype(np.float64), ids, counts),
        "scores must be finite": lambda: rerank(scores * np.float32(np.nan), ids, counts),
        "scores must descend within a row": lambda: rerank(np.ascontiguousarray(scores[:, ::-1]), ids, counts),
        r"ids must lie in \[0, 30\)": lambda: rerank(scores, ids + 30, counts),
        "ids must not repeat a label": lambda: rerank(scores, ids * 0, counts),
        r"ids must have shape \(3, 5\)": lambda: rerank(scores, ids[:2], counts),
        "k must be between 1 and 5": lambda: rerank(scores, ids, counts, 6),
        r"weight must lie in \[0, 1000000.0\], got -1": lambda: rerank(scores, ids, counts, weight=-1),
        "K .the width of scores. must": lambda: rerank(
            np.zeros((1, 33), np.float32), np.arange(33, dtype=np.int32)[None], counts
        ),
        "labels must be a SciPy sparse matrix": lambda: CoOccurrence(LABELS.toarray()),
        "the number of points must be at least 1": lambda: CoOccurrence(LABELS[:0]),
        "the width of labels must be between 30": lambda: counts.extended(LABELS[:, :20]),
        "device must be one of": lambda: CoOccurrence(LABELS, device="gpu"),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
