import tracemalloc

import numpy as np
import pytest

from sparsemax_nb.data import bag_of_words, hierarchy, power_law_labels, synthetic


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
    monkeypatch.setattr(synthetic, "MAX_ROUNDS", 20)
    with pytest.raises(ValueError, match="no 4 different labels in 20 rounds; lower labels_per_row or exponent"):
        power_law_labels(3, 4, 4, 30.0, seed=0)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 4, 5, 6), (4, 3, 0, 2)])
def test_hierarchy_shapes(shape):
    n_super, n_sub, n_points, width = shape
    contexts, targets = hierarchy(*shape, seed=1)
    assert contexts.shape == (n_super * n_sub * n_points, width) and contexts.dtype == np.float32
    assert contexts.flags.c_contiguous and targets.dtype == np.int32
    np.testing.assert_array_equal(targets, np.arange(len(contexts)) % (n_super * n_sub))


def test_hierarchy_variances():
    """Of the super-classes' means, of the classes around them, of the points around these: 1, 1 / 10, 1 / 100."""
    n_super, n_sub, n_points, width = 40, 30, 20, 50
    contexts, _ = hierarchy(n_super, n_sub, n_points, width, seed=2)
    x = contexts.astype(np.float64).reshape(n_points, n_super, n_sub, width)
    of_class, of_super = x.mean(0), x.mean((0, 2))
    within = ((x - of_class) ** 2).sum() / ((n_points - 1) * n_super * n_sub * width)
    classes = ((of_class - of_super[:, None]) ** 2).sum() / (n_super * (n_sub - 1) * width) - within / n_points
    supers = ((of_super - of_super.mean(0)) ** 2).sum() / ((n_super - 1) * width) - classes / n_sub
    for got, want, freedom in ((within, 0.01, 1.1e6), (classes, 0.1, 5.8e4), (supers, 1.0, 1.9e3)):
        assert abs(got / want - 1) < 4.5 * np.sqrt(2 / freedom)
    assert abs(x.mean()) < 4.5 / np.sqrt(n_super * width)


def test_hierarchy_seeds_and_more_points():
    first, same, other = (hierarchy(3, 4, 5, 6, seed)[0] for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, same)
    assert (first != other).all()
    np.testing.assert_array_equal(hierarchy(3, 4, 9, 6, 4)[0][: len(first)], first)


def test_hierarchy_takes_no_second_copy():
    tracemalloc.start()
    contexts, targets = hierarchy(10, 10, 200, 50, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * (contexts.nbytes + targets.nbytes)


@pytest.mark.parametrize("name", ["n_super", "n_sub", "n_points", "width"])
@pytest.mark.parametrize("value", [-1, 2.0, "2"])
def test_hierarchy_of_wrong_sizes(name, value):
    with pytest.raises(
        ValueError, match=f"{name} must be an integer of at least {0 if name == 'n_points' else 1}, got"
    ):
        hierarchy(**{"n_super": 2, "n_sub": 2, "n_points": 2, "width": 2, name: value}, seed=0)


def test_hierarchy_of_too_many_classes():
    with pytest.raises(ValueError, match="must be below 2"):
        hierarchy(1 << 16, 1 << 16, 1, 1, seed=0)
