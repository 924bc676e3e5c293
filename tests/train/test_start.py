"""Weights from the training labels: each closed form against its definition, and what the start is worth."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, train
from sparsemax_nb.train import start

OUTPUTS = "fixed-fan-in", "group-shared", "dense", "bottleneck"
SIZES = {"embedding": 32, "intermediate": 64, "bottleneck": 32, "fan_in": 16, "group_size": 4, "rewire_fraction": 0.0}


@pytest.fixture(scope="module")
def corpus():
    return data.bag_of_words(n_rows=400, n_features=120, words_per_row=8, n_labels=60, labels_per_row=2, seed=1)


def fitted(features, labels, **params):
    """A network after one training step with a negligible learning rate."""
    params = SIZES | {"batch_size": 1000, "epochs": 1, "learning_rate": 1e-9, "progress": False} | params
    return train.Classifier(architecture="network", calibration=False, device="cpu", **params).fit(features, labels)


def test_signs():
    rows = start.signs(np.arange(1000), 40, seed=3)
    assert set(np.unique(rows)) == {-1, 1}
    np.testing.assert_array_equal(start.signs([7, 5], 40, seed=3), rows[[7, 5]])
    assert (start.signs([7], 40, seed=4) != rows[7]).any()
    products = rows @ rows.T / 40
    assert abs(products[~np.eye(1000, dtype=bool)].mean()) < 0.01


def test_regression(monkeypatch):
    """With as many steps as features it is the ridge regression; parts and columns do not matter."""
    rng = np.random.default_rng(0)
    x = scipy.sparse.random_array((30, 9), density=0.4, rng=rng, format="csr", dtype=np.float32)
    labels = scipy.sparse.random_array((30, 5), density=0.3, rng=rng, format="csr", dtype=np.float32)
    labels.data[:] = 1
    x, labels = scipy.sparse.csr_matrix(x), scipy.sparse.csr_matrix(labels)
    monkeypatch.setattr(start, "STEPS", 12)
    monkeypatch.setattr(start, "COLUMNS", 5)
    table = start.regression([x[:11], x[11:]], labels, 9, 12, seed=1)
    dense = x.toarray().astype(np.float64)
    targets = dense.T @ (labels.toarray() @ start.signs(np.arange(5), 12, 1))
    np.testing.assert_allclose(table, np.linalg.solve(dense.T @ dense + start.RIDGE * np.eye(9), targets), atol=1e-4)


@pytest.mark.parametrize("loss", ["squared-hinge", "bce"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_sparse_features_start_far_above_chance(corpus, output, loss):
    features, labels = corpus.features, corpus.labels
    informed, random = (
        fitted(features, labels, output=output, loss=loss, initial=initial).evaluate(features, labels, ks=[1])["P@1"]
        for initial in ("labels", "random")
    )
    assert informed > 2 * random
    assert informed > 0.5


@pytest.mark.parametrize("output", OUTPUTS)
def test_dense_features_start_far_above_chance(corpus, output):
    """The scale and the mean of the features do not matter."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((60, 24)).astype(np.float32)
    features = np.asarray(corpus.labels @ centers) + 0.3 * rng.standard_normal((400, 24)).astype(np.float32)
    scores = [
        fitted(part, corpus.labels, output=output, intermediate=128).evaluate(part, corpus.labels, ks=[1])["P@1"]
        for part in (features, 0.01 * features, features + 5)
    ]
    assert min(scores) > 0.6
    assert max(scores) - min(scores) < 0.1


@pytest.mark.parametrize("n_ranges", [1, 2])
def test_hidden_units_are_discriminants_of_frequent_labels(n_ranges, monkeypatch):
    """Of the most frequent labels of each range, up to their scale; variance 1 and mean 2 before the ReLU."""
    rng = np.random.default_rng(0)
    x, wanted = rng.standard_normal((500, 6)), rng.standard_normal((6, 40))
    labels = scipy.sparse.csr_matrix((x @ wanted > np.linspace(1, 6, 40)).astype(np.float32)[:, rng.permutation(40)])
    x = (x + 3).astype(np.float32)
    monkeypatch.setattr(start, "MAX_INPUTS", 16 // n_ranges)
    model = fitted(x, labels, intermediate=16, fan_in=4)
    units, counts = model.network_.parameters["intermediate.weights"], np.bincount(labels.indices, minlength=40)
    z = x @ units + model.network_.parameters["intermediate.bias"]
    np.testing.assert_allclose(z.mean(0), 2, atol=1e-3)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)
    centered = x - x.mean(0)
    covariance = centered.T @ centered / 500
    covariance += start.RELATIVE_RIDGE * np.diag(covariance).mean() * np.eye(6)
    ranges = np.split(np.argsort(-counts, kind="stable")[:16] if n_ranges == 1 else np.arange(40), n_ranges)
    for i, of_range in enumerate(ranges):
        frequent = of_range[np.argsort(-counts[of_range], kind="stable")][: 16 // n_ranges]
        for unit, label in zip(units.T[16 // n_ranges * i :], frequent, strict=False):
            wanted = np.linalg.solve(covariance, centered[labels[:, [label]].toarray()[:, 0] > 0].mean(0))
            cosine = unit @ wanted / np.linalg.norm(unit) / np.linalg.norm(wanted)
            assert cosine > 0.9999


def test_softmax_starts_without_bias(corpus):
    model = fitted(corpus.features, corpus.labels, output="dense", loss="softmax")
    assert model.evaluate(corpus.features, corpus.labels, ks=[1])["P@1"] > 0.5


def test_wide_layers_are_divided(corpus, monkeypatch):
    """Labels choose between the hidden units of one range only."""
    monkeypatch.setattr(start, "MAX_INPUTS", 32)
    model = fitted(corpus.features, corpus.labels)
    assert model.evaluate(corpus.features, corpus.labels, ks=[1])["P@1"] > 0.5
    layer = model.network_.output.layer
    seen = np.bincount(corpus.labels.indices, minlength=60) > 0
    assert (layer.indices[:30][seen[:30]] < 32).all()
    assert (layer.indices[30:][seen[30:]] >= 32).all()


def test_labels_without_points_keep_their_connections(corpus):
    labels = scipy.sparse.csr_matrix(corpus.labels[:, :59])
    labels.resize(400, 64)
    informed, random = (fitted(corpus.features, labels, initial=initial) for initial in ("labels", "random"))
    unseen = np.flatnonzero(np.bincount(labels.indices, minlength=64) == 0)
    assert len(unseen) >= 5
    for name in ("indices", "values", "bias"):
        of_informed, of_random = (getattr(m.network_.output.layer, name)[unseen] for m in (informed, random))
        np.testing.assert_array_equal(of_informed, of_random)


def test_rows_without_labels_or_features():
    """Degenerate data start without a warning, and stay finite."""
    empty = scipy.sparse.csr_matrix((5, 40), dtype=np.float32)
    labels = scipy.sparse.csr_matrix(np.eye(5, 9, dtype=np.float32))
    for features in (empty, np.ones((5, 40), np.float32)):
        for y in (labels, scipy.sparse.csr_matrix((5, 9), dtype=np.float32)):
            scores = fitted(features, y).top_k(features, 3)[0]
            assert np.isfinite(scores).all()


def test_warm_start_keeps_its_weights(corpus):
    """A second fit does not start anew from the labels."""
    model = fitted(corpus.features, corpus.labels, warm_start=True)
    before = model.network_.output.values.copy()
    model.fit(corpus.features[:100], corpus.labels[:100])
    np.testing.assert_allclose(model.network_.output.values, before, atol=1e-6)


@pytest.mark.parametrize("output", ["fixed-fan-in", "group-shared"])
def test_a_sparse_softmax_starts_from_the_labels(output):
    d = data.bag_of_words(n_rows=300, n_features=80, words_per_row=6, n_labels=40, labels_per_row=2, seed=1)
    params = {"output": output, "loss": "softmax", "embedding": 32, "intermediate": 128, "fan_in": 8, "group_size": 4}
    scores = [
        train.Classifier(architecture="network", **params, initial=initial, epochs=1, device="cpu", progress=False)
        .fit(d.features, d.labels)
        .score(d.features, d.labels)
        for initial in ("labels", "random")
    ]
    assert scores[0] > 1.5 * scores[1]
