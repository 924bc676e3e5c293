"""Label sets, restricted and weighted labels, and fits that continue from an earlier one."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, metrics, train
from sparsemax_nb.train import linear_settings

POINTS = data.bag_of_words(n_rows=500, n_features=80, words_per_row=6, n_labels=40, labels_per_row=2, seed=1)
X, Y = POINTS.features, POINTS.labels
LINEAR = {"C": 0.5, "slack": 0.2, "frequency": 0.0, "device": "cpu", "progress": False}
NETWORK = {
    "architecture": "network", "embedding": 16, "intermediate": 32, "fan_in": 8, "epochs": 2, "device": "cpu",
    "progress": False,
}  # fmt: skip
TEXTS, NAMES = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9


@pytest.mark.parametrize("params", [LINEAR, NETWORK | {"batch_size": 8}, NETWORK | {"loss": "bce"}], ids=str)
def test_restricted_and_weighted_labels(params):
    model = train.Classifier(**params).fit(X, Y)
    scores, ids = model.top_k(X[:37], 40)
    allowed = np.array([3, 11, 20])
    some_scores, some = model.top_k(X[:37], 4, allow=allowed)
    for row in range(37):
        wanted = [label for label in ids[row] if label in allowed]
        assert sorted(some[row, :3]) == [3, 11, 20] and some[row, 3] == -1 and some_scores[row, 3] == -np.inf
        if params is not LINEAR:  # a linear layer is reranked among the labels that are left
            assert some[row, :3].tolist() == wanted
    assert not np.isin(model.top_k(X[:37], 20, forbid=allowed)[1], allowed).any()
    heavy = model.top_k(X[:37], 1, label_weights={5: 1e9})[1]
    assert (heavy == 5).all() and not (model.top_k(X[:37], 5, label_weights={5: 0})[1] == 5).any()


def test_a_threshold_needs_label_sets():
    classes = np.asarray(Y.argmax(1)).ravel()
    model = train.Classifier(**LINEAR).fit(X, classes)
    for wrong in ({"threshold": 0.5}, {"limit": 2}):
        with pytest.raises(ValueError, match="threshold and limit must be None if there is one class per row"):
            model.predict(X[:3], **wrong)
    with pytest.raises(ValueError, match="limit of threshold must be between 1 and 20, got 25"):
        train.Classifier(**LINEAR, threshold="f1@25").fit(X, Y)
    few = train.Classifier(**LINEAR, threshold="f1@5").fit(X, Y[:, :3])
    assert few.limit_ == 3


def test_a_limit_above_the_candidates_is_reached():
    model = train.Classifier(**LINEAR).fit(X, Y)
    assert model.predict(X[:2], threshold=0.0, limit=30).getnnz(1).tolist() == [30, 30]
    assert model.predict(X[:2], threshold=0.0, limit=4).getnnz(1).tolist() == [4, 4]


def test_excluded_pairs_are_in_no_metric():
    model = train.Classifier(**LINEAR).fit(X, Y)
    best = model.top_k(X, 1)[1][:, 0]
    excluded = scipy.sparse.csr_matrix((np.ones(500), (np.arange(500), best)), shape=(500, 40))
    with_all, without = model.evaluate(X, Y), model.evaluate(X, Y, excluded=excluded)
    predicted = model.predict(X)
    wanted = metrics.sample_f1(predicted - predicted.multiply(excluded), Y - Y.multiply(excluded))
    assert without["sample F1"] == pytest.approx(wanted) and without["sample F1"] < with_all["sample F1"]
    assert without["P@1"] < with_all["P@1"]
    with pytest.raises(ValueError, match="excluded must have shape"):
        model.evaluate(X, Y, excluded=excluded[:5])
    with pytest.raises(TypeError, match="excluded"):
        model.evaluate(X, Y, excluded=excluded.toarray())


def test_probabilities_of_many_classes_add_up_to_one_among_the_best():
    """The other classes get next to nothing, however many there are."""
    classes = np.asarray(Y.argmax(1)).ravel()
    model = train.Classifier(**LINEAR).fit(X, classes)
    probabilities = model.predict_proba(X[:9])
    assert np.allclose(probabilities.sum(1), 1) and (np.sort(probabilities, 1)[:, :-20] < 1e-6).all()
    assert (model.classes_[probabilities.argmax(1)] == model.predict(X[:9])).all()


def test_a_warm_start_keeps_the_calibration_and_the_model_it_starts_from():
    model = train.Classifier(**LINEAR, warm_start=True).fit(X[:400], Y[:400])
    calibration, threshold, scores = model.calibration_, model.threshold_, model.decision_function(X[400:])
    first = model.network_
    model.fit(X[:400], Y[:400])
    assert model.calibration_ is calibration and model.threshold_ == threshold and model.network_ is not first
    assert (model.decision_function(X[400:]) != scores).any()
    again = train.Classifier(**LINEAR).fit(X[:400], Y[:400])
    again.network_ = first
    assert (again.decision_function(X[400:]) == scores).all(), "the first layer has not changed"


def test_a_warm_start_learns_labels_that_had_no_points():
    without = Y.tolil()
    without[:, 7] = 0
    model = train.Classifier(**LINEAR, warm_start=True).fit(X, without.tocsr())
    rows = np.flatnonzero(np.asarray(Y[:, 7].todense()).ravel())
    assert 7 not in model.top_k(X[rows], 5)[1]
    ids = model.fit(X, Y).top_k(X[rows], 5)[1]
    assert (ids == 7).any(1).mean() > 0.9


@pytest.mark.parametrize(("params", "change"), [(NETWORK, {"embedding": 8}), (LINEAR, {"char_ngrams": 3})], ids=str)
def test_a_warm_start_of_another_model_starts_anew(params, change):
    is_text = params is LINEAR
    params = params | ({"hash_bits": 8, "char_weight": 1.0} if is_text else {})
    x, y = (TEXTS, NAMES) if is_text else (X, Y)
    warm = train.Classifier(**params, warm_start=True).fit(x, y).set_params(**change).fit(x, y)
    cold = train.Classifier(**params | change).fit(x, y)
    assert (warm.decision_function(x[:9]) == cold.decision_function(x[:9])).all()


def test_trials_of_the_weight_of_n_grams_try_frequencies(monkeypatch):
    tried = []

    def choose(x, y, settings, *, wanted, **options):
        tried.append(tuple(wanted))
        return settings, [{"C": 0.5, "slack": 0.2, "frequency": 0.0, "nDCG@5": 0.5}]

    monkeypatch.setattr(linear_settings, "choose_settings", choose)
    params = {name: value for name, value in LINEAR.items() if name != "frequency"}
    train.Classifier(**params, calibration=False).fit(TEXTS, NAMES)
    assert tried == [("frequency",)] * 3
