import numpy as np
import pytest

from sparsemax_nb.data import bag_of_words, power_law_labels, synthetic


def check_labels(labels, n_rows, n_labels, labels_per_row):
    assert labels.format == "csr" and labels.shape == (n_rows, n_labels)
    assert (labels.dtype, labels.indices.dtype, labels.indptr.dtype) == (np.float32, np.int32, np.int32)
    assert (labels.data == 1).all() and (np.diff(labels.indptr) == labels_per_row).all()
    ids = labels.indices.reshape(n_rows, labels_per_row)
    assert (np.diff(ids, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("n_rows", "n_labels", "labels_per_row", "exponent"),
    [(0, 5, 2, 1.0), (7, 1, 1, 1.0), (50, 8, 8, 1.0), (300, 40, 5, 0.0), (300, 40, 5, 2), (10, 200_000, 100, 1.0)],
)
def test_power_law_shapes(n_rows, n_labels, labels_per_row, exponent):
    check_labels(power_law_labels(n_rows, n_labels, labels_per_row, exponent, seed=1), n_rows, n_labels, labels_per_row)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.7])
def test_power_law_frequencies(exponent):
    n = 40_000
    counts = np.bincount(power_law_labels(n, 30, 1, exponent, seed=2).indices, minlength=30)
    p = np.arange(1, 31) ** -exponent
    p /= p.sum()
    assert (abs(counts - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()


def test_power_law_pairs():
    """Two labels a row: drawn one after the other, the second among those that are left."""
    n, p = 40_000, np.array([6, 3, 2]) / 11
    pairs = power_law_labels(n, 3, 2, 1.0, seed=3).indices.reshape(n, 2)
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        want = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
        got = (pairs == (a, b)).all(axis=1).mean()
        assert abs(got - want) < 4.5 * np.sqrt(want * (1 - want) / n)


def as_arrays(data):
    return [a for m in (data.features, data.labels) for a in (m.indptr, m.indices, m.data)]


def test_seeds():
    first, same, other = (power_law_labels(20, 50, 3, 1.0, seed) for seed in (4, 4, 5))
    assert (first != same).nnz == 0 and (first != other).nnz > 0
    first, same, other = (bag_of_words(20, 50, 9, 30, 3, seed) for seed in (4, 4, 5))
    assert all(map(np.array_equal, as_arrays(first), as_arrays(same)))
    assert (first.features != other.features).nnz > 0 and (first.labels != other.labels).nnz > 0


@pytest.mark.parametrize(("n_rows", "words_per_row"), [(0, 4), (1, 1), (60, 33)])
def test_bag_of_words_shapes(n_rows, words_per_row):
    data = bag_of_words(n_rows, 25, words_per_row, 12, 3, seed=6)
    check_labels(data.labels, n_rows, 12, 3)
    X = data.features
    assert X.format == "csr" and X.shape == (n_rows, 25)
    assert (X.dtype, X.indices.dtype, X.indptr.dtype) == (np.float32, np.int32, np.int32)
    assert X.has_canonical_format and (X.data >= 1).all()
    assert (X.sum(axis=1) == words_per_row).all()
    assert n_rows < 60 or (X.data > 1).any()


def test_words_tell_the_labels():
    """The mean row of each label, learned on one half, finds the labels of the other."""
    data = bag_of_words(2000, 400, 20, 50, 2, seed=7)
    X, Y = data.features.toarray(), data.labels.toarray()
    means = Y[:1000].T @ X[:1000] / np.maximum(Y[:1000].sum(axis=0), 1)[:, None]
    best = (X[1000:] @ (means - X[:1000].mean(axis=0)).T).argmax(axis=1)
    precision = Y[1000:][np.arange(1000), best].mean()
    guess = Y[1000:].mean(axis=0).max()
    assert guess < 0.5 and precision > 0.85


@pytest.mark.parametrize("name", ["n_rows", "n_labels", "labels_per_row", "n_features", "words_per_row"])
@pytest.mark.parametrize("value", [-1, 2.0, "2"])
def test_wrong_sizes(name, value):
    sizes = {"n_rows": 3, "n_labels": 4, "labels_per_row": 2}
    if name in sizes:
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
            power_law_labels(**{**sizes, name: value}, exponent=1.0, seed=0)
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
        bag_of_words(**{**sizes, "n_features": 9, "words_per_row": 5, name: value}, seed=0)


@pytest.mark.parametrize("exponent", [-1.0, np.nan, np.inf])
def test_wrong_exponent(exponent):
    with pytest.raises(ValueError, match="exponent must be finite and not negative"):
        power_law_labels(3, 4, 2, exponent, seed=0)


def test_too_many_labels():
    with pytest.raises(ValueError, match="labels_per_row must be at most n_labels = 4, got 5"):
        power_law_labels(3, 4, 5, 1.0, seed=0)
    with pytest.raises(ValueError, match="labels_per_row must be at most n_labels = 4, got 5"):
        bag_of_words(3, 9, 5, 4, 5, seed=0)


def test_draws_that_do_not_end(monkeypatch):
    monkeypatch.setattr(synthetic, "ROUNDS", 20)
    with pytest.raises(ValueError, match="no 4 different labels in 20 rounds; lower labels_per_row or exponent"):
        power_law_labels(3, 4, 4, 30.0, seed=0)
