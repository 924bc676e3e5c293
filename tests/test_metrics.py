"""Metrics against their definitions and against scikit-learn."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import metrics
from sparsemax_nb.metrics import ndcg_at_k, precision_at_k, propensities, psp_at_k, recall_at_k
from sparsemax_nb.train.validation import metrics_at_k

IDS = np.array([[2, 0, 1], [3, 1, -1], [0, 1, 2]], np.int32)
TRUTH = scipy.sparse.csr_matrix([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(("k", "wanted"), [(1, 1 / 3), (2, 3 / 6), (3, 3 / 9)])
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


def random_case(seed, n_rows=30, n_labels=12, width=5):
    """ids without repetition, some -1; truth with rows without labels, dense; propensities."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((n_rows, n_labels)), 1)[:, :width].astype(np.int32)
    ids[rng.random(ids.shape) < 0.1] = -1
    truth = rng.random((n_rows, n_labels)) < 0.3
    truth[::7] = False
    return ids, truth, rng.uniform(0.05, 1, n_labels)


@pytest.mark.parametrize(
    ("k", "wanted"), [(1, (1 / 2 + 0 + 0) / 3), (2, (1 / 2 + 1 + 0) / 3), (3, (1 / 2 + 1 + 0) / 3)]
)
def test_recall_by_hand(k, wanted):
    assert recall_at_k(IDS, scipy.sparse.csr_matrix([[0, 0, 1, 1], [0, 1, 0, 0], [0] * 4]), k) == pytest.approx(wanted)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_recall_against_its_definition(k):
    ids, truth, _ = random_case(k)
    rows = [len(set(i) & set(np.flatnonzero(t))) / max(t.sum(), 1) for i, t in zip(ids[:, :k], truth, strict=True)]
    got = recall_at_k(ids, scipy.sparse.csr_matrix(truth), k)
    assert 0 < got < 1 and got == pytest.approx(np.mean(rows))


def test_propensities_by_hand():
    """With n = 3, a = b = 1: C = 2 (ln 3 - 1) and p = 1 / (1 + C / (N + 1))."""
    c = 2 * (np.log(3) - 1)
    got = propensities(np.array([0, 1, 3], np.int32), 3, a=1, b=1)
    np.testing.assert_allclose(got, [1 / (1 + c), 1 / (1 + c / 2), 1 / (1 + c / 4)], rtol=1e-15)
    assert got.dtype == np.float64 and propensities(np.zeros(0, int), 3).shape == (0,)


def test_propensities_against_the_definition():
    counts, c = np.arange(100), (np.log(5000) - 1) * 2.5**0.55
    got = propensities(counts, 5000)
    np.testing.assert_allclose(got, [1 / (1 + c * np.exp(-0.55 * np.log(n + 1.5))) for n in counts], rtol=1e-12)
    assert (np.diff(got) > 0).all() and 0 < got[0] < got[-1] < 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones(3), 5), TypeError, r"label_counts must be a 1-D array of integers, got float64 of shape \(3,\)"),
        ((np.ones((1, 3), int), 5), TypeError, r"1-D array of integers, got int64 of shape \(1, 3\); use np.bincount"),
        ((np.array([1, 6]), 5), ValueError, "label_counts must lie between 0 and n_points = 5, got 1 to 6"),
        ((np.array([-1, 4]), 5), ValueError, "label_counts must lie between 0 and n_points = 5, got -1 to 4"),
        ((np.array([1]), 2), ValueError, "n_points must be at least 3, got 2"),
        ((np.array([1]), 5.0), TypeError, "n_points must be an integer"),
        ((np.array([1]), 5, 0), ValueError, r"a must lie in \(0, inf\), got 0"),
        ((np.array([1]), 5, 1, -1), ValueError, r"b must lie in \(0, inf\), got -1"),
    ],
)
def test_propensities_of_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        propensities(*arguments)


@pytest.mark.parametrize(("k", "wanted"), [(1, 2 / (8 + 4)), (2, 6 / (8 + 2 + 4)), (3, 14 / (8 + 2 + 1 + 4))])
def test_psp_by_hand(k, wanted):
    """1 / p = 1, 2, 4, 8; row 0: labels 0, 1, 3, of which 1 and 3 are found; row 1: label 2; row 2: none."""
    truth = scipy.sparse.csr_matrix([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    ids = np.array([[1, 2, 3], [-1, 2, 3], [0, 1, 2]], np.int32)
    assert psp_at_k(ids, truth, 0.5 ** np.arange(4), k) == pytest.approx(wanted)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_psp_against_its_definition(k):
    ids, truth, p = random_case(k)
    found = sum(1 / p[j] for i, t in zip(ids[:, :k], truth, strict=True) for j in i if j >= 0 and t[j])
    best = sum(np.sort(1 / p[t])[::-1][:k].sum() for t in truth)
    got = psp_at_k(ids, scipy.sparse.csr_matrix(truth), p, k)
    assert 0 < got < 1 and got == pytest.approx(found / best)


def test_psp_of_the_best_prediction_and_of_equal_propensities():
    ids, truth, p = random_case(0)
    best = np.argsort(-(truth / p), 1)[:, :5].astype(np.int32)
    assert psp_at_k(best, scipy.sparse.csr_matrix(truth), p, 5) == pytest.approx(1)
    full = np.ones_like(truth)  # with k true labels at least in every row and one propensity, it is P@k
    full[:, 3] = False
    full = scipy.sparse.csr_matrix(full)
    assert psp_at_k(ids, full, np.full(12, 0.1), 5) == pytest.approx(precision_at_k(ids, full, 5))


@pytest.mark.parametrize(
    ("propensity", "error", "message"),
    [
        (np.ones(4, np.float32), TypeError, "propensity must be float64, got float32"),
        (np.ones(3), ValueError, r"propensity must have shape \(4,\), got \(3,\)"),
        (np.array([1, 1, 0.0, 1]), ValueError, r"propensity must lie in \(0, 1\]; use propensities\("),
        (np.array([1, 1, np.nan, 1]), ValueError, r"propensity must lie in \(0, 1\]"),
        (np.array([1, 1, 1.1, 1]), ValueError, r"propensity must lie in \(0, 1\]"),
    ],
)
def test_psp_of_bad_propensities(propensity, error, message):
    with pytest.raises(error, match=message):
        psp_at_k(IDS, TRUTH, propensity, 1)


def psp_at_half(ids, labels, k, **more):
    return psp_at_k(ids, labels, np.full(4, 0.5), k, **more)


AT_K = (
    *(precision_at_k, ndcg_at_k, recall_at_k, psp_at_half, metrics.f1_at_k, metrics.map_at_k),
    *(metrics.coverage_at_k, metrics.macro_f1_at_k),
)


@pytest.mark.parametrize("metric", AT_K, ids=lambda metric: metric.__name__)
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
    assert metric(IDS.astype(np.int64), TRUTH, 1) == metric(IDS, TRUTH, 1)
    with pytest.raises(TypeError, match="ids must hold integers, got float64"):
        metric(IDS.astype(float), TRUTH, 1)


def test_ranking_metrics():
    figures = metrics.ranking_metrics(np.array([0, 1, 4, 5, 99], np.int32), 5)
    assert figures["Recall@5"] == pytest.approx(3 / 5)
    assert figures["NDCG@5"] == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(6)) / 5)
    assert metrics.ranking_metrics(np.zeros(0, np.int32), 5) == {"Recall@5": 0.0, "NDCG@5": 0.0}
    with pytest.raises(ValueError, match="k must be at least 1"):
        metrics.ranking_metrics(np.zeros(1, np.int32), 0)


def test_what_frequencies_alone_reach():
    counts = np.array([5, 0, 9, 5])
    assert metrics.popularity_ranks(counts, np.array([2, 0, 3, 1])).tolist() == [0, 1, 2, 3]
    assert metrics.unigram_perplexity(np.zeros(7, int), np.array([1, 2])) == pytest.approx(7)
    wanted = np.exp(-(np.log(6 / 23) + np.log(1 / 23)) / 2)
    assert metrics.unigram_perplexity(counts, np.array([0, 1])) == pytest.approx(wanted)


# ---------------------------------------------------------------- F1, MAP, coverage


def indicator(ids, n_labels):
    """The predicted ids (n, k), -1 left out, as a dense matrix (n, L)."""
    dense = np.zeros((len(ids), n_labels), int)
    for row, chosen in zip(dense, ids, strict=True):
        row[chosen[chosen >= 0]] = 1
    return dense


@pytest.mark.parametrize("k", [1, 3, 5])
def test_f1_at_k_agrees_with_scikit_learn(k):
    sklearn = pytest.importorskip("sklearn.metrics")
    ids, truth, _ = random_case(k)
    ids[7] = -1  # row 7 has neither predicted nor true labels
    predicted, labels = indicator(ids[:, :k], 12), scipy.sparse.csr_matrix(truth)
    found = np.flatnonzero(predicted.any(0) | truth.any(0))
    assert metrics.f1_at_k(ids, labels, k) == pytest.approx(
        sklearn.f1_score(truth, predicted, average="samples", zero_division=0)
    )
    assert metrics.macro_f1_at_k(ids, labels, k) == pytest.approx(
        sklearn.f1_score(truth, predicted, labels=found, average="macro", zero_division=0)
    )


def test_f1_at_k_by_hand():
    """Missing predictions do not count as predicted: the second row has one prediction, which is right."""
    assert metrics.f1_at_k(IDS, TRUTH, 3) == pytest.approx((2 * 2 / (3 + 2) + 2 / (2 + 1) + 0) / 3)
    assert metrics.f1_at_k(np.array([[1, -1]]), TRUTH[1:2], 2) == 1


def test_map_by_hand():
    truth = scipy.sparse.csr_matrix([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]])
    ids = np.array([[2, 0, 1], [-1, 3, 0], [0, 1, 2]], np.int32)
    assert metrics.map_at_k(ids, truth, 1) == pytest.approx((1 + 0 + 0) / 3)
    assert metrics.map_at_k(ids, truth, 3) == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 3 + 0) / 3)


def test_map_agrees_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    scores, truth = rng.random((20, 9)), rng.random((20, 9)) < 0.4
    truth[:, 0] = True
    ids = np.argsort(-scores, 1).astype(np.int32)
    wanted = sklearn.label_ranking_average_precision_score(truth, scores)
    assert metrics.map_at_k(ids, scipy.sparse.csr_matrix(truth), 9) == pytest.approx(wanted)


def test_coverage():
    """Labels 0, 1, 2 occur; 3 is predicted, but never true."""
    assert [metrics.coverage_at_k(IDS, TRUTH, k) for k in (1, 2)] == [1 / 3, 1]
    assert metrics.coverage_at_k(IDS + 1 - 4 * (IDS == 3), TRUTH, 1) == 0
    often = scipy.sparse.csr_matrix([[0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 0]])
    assert metrics.coverage_at_k(np.array([[2], [2], [2], [0]]), often, 1) == 1 / 3  # three hits of one label of three


def test_what_an_evaluation_reports_are_these_metrics():
    ids, truth, p = random_case(6)
    truth = scipy.sparse.csr_matrix(truth)
    names = {"P": precision_at_k, "nDCG": ndcg_at_k, "R": recall_at_k, "F1": metrics.f1_at_k, "MAP": metrics.map_at_k}
    wanted = {f"{name}@{k}": metric(ids, truth, k) for k in (4, 2) for name, metric in names.items()}
    assert metrics_at_k(ids, truth, (4, 2)) == wanted
    psp = {f"PSP@{k}": psp_at_k(ids, truth, p, k) for k in (4, 2)}
    assert metrics_at_k(ids, truth, (4, 2), p) == wanted | psp
    assert all(wanted[f"{name}@4"] != wanted[f"{name}@2"] > 0 for name in names)


# ---------------------------------------------------------------- excluded pairs


@pytest.mark.parametrize("metric", AT_K, ids=lambda metric: metric.__name__)
def test_excluded_pairs_are_neither_predicted_nor_true(metric):
    """Removed from both by hand: ids move up, -1 fills the end; k is smaller than the width."""
    ids = np.array([[2, 0, 1, 3], [3, -1, 1, 2], [0, 1, 2, 3]], np.int32)
    truth = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0]])
    excluded = scipy.sparse.csr_matrix([[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
    without = np.array([[0, 3, -1, -1], [-1, 1, 2, -1], [2, 3, -1, -1]], np.int32)
    left = scipy.sparse.csr_matrix([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]])
    for k in (1, 2, 4):
        wanted = metric(without, left, k)
        for kind in (scipy.sparse.csr_matrix, scipy.sparse.csr_array, scipy.sparse.coo_matrix):
            got = metric(ids, scipy.sparse.csr_matrix(truth), k, excluded=kind(excluded))
            assert got == metric(ids, scipy.sparse.csr_array(truth), k, excluded=kind(excluded)) == wanted
    assert metric(ids, left, 2) != metric(without, left, 2)


def test_what_is_not_excluded_keeps_its_order_in_long_lists():
    rng = np.random.default_rng(7)
    ids = np.stack([rng.permutation(200) for _ in range(5)]).astype(np.int32)
    excluded, truth = (scipy.sparse.csr_matrix(rng.random((5, 200)) < share) for share in (0.5, 0.3))
    kept = np.stack([[i for i in row if not excluded[b, i]][:60] for b, row in enumerate(ids)])
    got = metrics.hits_at_k(ids, truth, 60, excluded=excluded)
    np.testing.assert_array_equal(got, metrics.hits_at_k(kept, truth, 60))


def test_excluded_pairs_do_not_change_the_arguments_and_have_the_shape_of_the_labels():
    ids, truth, excluded = IDS.copy(), TRUTH.copy(), TRUTH.copy()
    assert precision_at_k(ids, truth, 2, excluded=excluded) == 0
    np.testing.assert_array_equal(ids, IDS)
    assert (truth != TRUTH).nnz == (excluded != TRUTH).nnz == 0
    with pytest.raises(ValueError, match=r"excluded must have shape \(3, 4\) like labels, got \(2, 4\)"):
        precision_at_k(ids, truth, 2, excluded=excluded[:2])
    with pytest.raises(TypeError, match="excluded must be a SciPy sparse matrix, got ndarray"):
        precision_at_k(ids, truth, 2, excluded=excluded.toarray())


# ---------------------------------------------------------------- sets of labels, and the counts of each label


@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csr_array, scipy.sparse.csc_matrix])
def test_f1_of_sets_agrees_with_scikit_learn(kind):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    predicted, truth = (rng.random((40, 15)) < share for share in (0.2, 0.3))
    predicted[:, 4] = truth[:, 4] = False  # occurs nowhere
    predicted[:, 5] = False  # never predicted
    truth[:, 6] = False  # never true
    predicted[3] = truth[3] = False
    for average, metric in (("samples", metrics.sample_f1), ("micro", metrics.micro_f1), ("macro", metrics.macro_f1)):
        found = np.flatnonzero(predicted.any(0) | truth.any(0)) if average == "macro" else None
        wanted = sklearn.f1_score(truth, predicted, labels=found, average=average, zero_division=0)
        assert metric(kind(predicted), scipy.sparse.csr_matrix(truth)) == pytest.approx(wanted), average
        assert metric(kind(predicted[:0]), kind(truth[:0])) == 0
        zero = scipy.sparse.csr_matrix((np.zeros(1), ([0], [1])), shape=(2, 3))  # a stored zero is no label
        assert metric(zero, zero) == 0
        with pytest.raises(ValueError, match=r"predicted must have shape \(40, 15\) like labels, got \(39, 15\)"):
            metric(kind(predicted[1:]), kind(truth))


def test_table_of_each_label():
    table = metrics.per_label(IDS, TRUTH, 2)
    assert {name: values.tolist() for name, values in table.items()} == {
        "label": [0, 1, 2, 3],
        "support": [1, 1, 1, 0],
        "predicted": [2, 2, 1, 1],
        "hits": [1, 1, 1, 0],
        "precision": [1 / 2, 1 / 2, 1, 0],
        "recall": [1, 1, 1, 0],
        "f1": [2 / 3, 2 / 3, 1, 0],
    }
    assert metrics.per_label(IDS, TRUTH, 1)["label"].tolist() == [0, 1, 2, 3]
    assert metrics.per_label(IDS[:1], TRUTH[:1], 1)["label"].tolist() == [0, 2]  # 1 and 3 are not in the table


def test_table_of_each_label_agrees_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    ids, truth, _ = random_case(4)
    table = metrics.per_label(ids, scipy.sparse.csr_matrix(truth), 5)
    wanted = sklearn.precision_recall_fscore_support(
        truth, indicator(ids, 12), labels=table["label"], average=None, zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        np.testing.assert_allclose(table[name], values, rtol=1e-12)
    assert metrics.macro_f1_at_k(ids, scipy.sparse.csr_matrix(truth), 5) == pytest.approx(table["f1"].mean())


# ---------------------------------------------------------------- calibration


def test_calibration_error_by_hand():
    """Bins (0, 0.5], which holds 0 and 0.5 too, and (0.5, 1]."""
    p, hits = np.array([[0, 0.5, 0.4], [0.75, 1, 0.75]]), np.array([[False, True, True], [True, False, True]])
    counts, probability, hit_share = metrics.reliability(p, hits, 2)
    assert counts.tolist() == [3, 3]
    np.testing.assert_allclose(probability, [0.3, 2.5 / 3])
    np.testing.assert_allclose(hit_share, [2 / 3, 2 / 3])
    wanted = 0.5 * (2 / 3 - 0.3) + 0.5 * 0.5 / 3
    assert metrics.expected_calibration_error(p, hits, 2) == pytest.approx(wanted)
    assert metrics.expected_calibration_error(p[:0], hits[:0]) == 0
    assert metrics.expected_calibration_error(hits.astype(np.float32), hits) == 0


def test_reliability_agrees_with_scikit_learn():
    calibration = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(5)
    p = np.round(rng.random(500), 2)  # many on the edges of bins
    hits = rng.random(500) < p
    counts, probability, hit_share = metrics.reliability(p, hits, 10)
    wanted_share, wanted_probability = calibration.calibration_curve(hits, p, n_bins=10)
    assert counts.sum() == 500 and counts.all()
    np.testing.assert_allclose(probability, wanted_probability, rtol=1e-12)
    np.testing.assert_allclose(hit_share, wanted_share, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.array([1, 0]), np.ones(2, bool)), TypeError, "probabilities must be floats, got int64"),
        ((np.ones(2), np.ones(2)), TypeError, r"hits must be bool, got float64; use hits.astype\(bool\)"),
        ((np.ones(2), np.ones(3, bool)), ValueError, r"hits must have shape \(2,\) like probabilities, got \(3,\)"),
        ((np.array([0, np.nan]), np.ones(2, bool)), ValueError, r"probabilities must lie in \[0, 1\], got nan"),
        ((np.array([0, -0.1]), np.ones(2, bool)), ValueError, r"probabilities must lie in \[0, 1\], got -0.1"),
        ((np.array([1.5, 0]), np.ones(2, bool)), ValueError, r"probabilities must lie in \[0, 1\], got 1.5"),
        ((np.ones(2), np.ones(2, bool), 0), ValueError, "n_bins must be between 1 and 10000, got 0"),
    ],
)
def test_calibration_of_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        metrics.expected_calibration_error(*arguments)
