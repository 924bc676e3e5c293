import tracemalloc

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb.data import Tfidf, tfidf


def counts(n_rows, n_features, seed):
    """Poisson counts with empty rows and columns."""
    dense = np.random.default_rng(seed).poisson(0.4, size=(n_rows, n_features)).astype(np.float32)
    dense[::7] = 0
    dense[:, ::5] = 0
    return scipy.sparse.csr_matrix(dense)


@pytest.mark.parametrize("sublinear", [True, False])
def test_formula(sublinear):
    X = counts(50, 20, seed=0)
    C, weights = X.toarray().astype(float), np.zeros(X.shape)
    for i, t in zip(*C.nonzero(), strict=True):
        idf = np.log((1 + 50) / (1 + (C[:, t] > 0).sum())) + 1
        weights[i, t] = (1 + np.log(C[i, t]) if sublinear else C[i, t]) * idf
    for row in weights:
        row /= np.sqrt((row**2).sum()) or 1
    np.testing.assert_allclose(Tfidf(sublinear=sublinear).fit_transform(X).toarray(), weights, rtol=5e-7)


@pytest.mark.parametrize("sublinear", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_as_scikit_learn(sublinear, dtype):
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="scikit-learn is not installed")
    theirs = text.TfidfTransformer(sublinear_tf=sublinear)
    train, test = counts(200, 60, seed=1).astype(dtype), counts(40, 60, seed=2).astype(dtype)
    theirs.fit(train.astype(float))
    ours = Tfidf(sublinear).fit(train)
    assert ours.idf_.dtype == np.float32
    np.testing.assert_allclose(ours.idf_, theirs.idf_, rtol=1e-6)
    want = theirs.transform(test.astype(float))
    np.testing.assert_allclose(ours.transform(test).toarray(), want.toarray(), rtol=1e-6)


def test_output():
    X = counts(50, 20, seed=3)
    before = X.copy()
    weighted = Tfidf().fit_transform(X)
    assert (
        weighted.format == "csr"
        and weighted.dtype == np.float32
        and weighted.indices.dtype == np.int32
        and weighted.shape == X.shape
    )
    np.testing.assert_array_equal(weighted.indptr, X.indptr)
    lengths = np.sqrt(weighted.multiply(weighted).sum(axis=1)).A1
    np.testing.assert_allclose(lengths, np.diff(X.indptr) > 0, rtol=1e-6)
    assert np.diff(X.indptr).min() == 0
    np.testing.assert_array_equal(X.toarray(), before.toarray())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stored_zeros_and_repeated_entries(dtype):
    """They mean the same as the clean matrix, and are left as they are."""
    messy = scipy.sparse.csr_matrix((np.array([1, 0, 2, 3], dtype), [2, 0, 2, 1], [0, 3, 4]), shape=(2, 3))
    clean = scipy.sparse.csr_matrix(messy.toarray())
    messy_weights, clean_weights = Tfidf().fit_transform(messy), Tfidf().fit_transform(clean)
    np.testing.assert_array_equal(messy_weights.toarray(), clean_weights.toarray())
    np.testing.assert_array_equal(Tfidf().fit(messy).idf_, Tfidf().fit(clean).idf_)
    assert messy.indices.tolist() == [2, 0, 2, 1] and messy.data.tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("block", [1, 7, 40, 10**6])
def test_fit_in_blocks(monkeypatch, block):
    """Blocks of any size, with empty rows at both ends and a row longer than a block, count the same."""
    dense = np.random.default_rng(8).integers(0, 3, size=(30, 25))
    dense[[0, 1, 13, 14, 29]] = 0
    messy = scipy.sparse.vstack([scipy.sparse.csr_matrix(dense)] * 2, format="csr")
    messy.data[::3] = 0
    want = np.log((1 + 60) / (1 + (messy.toarray() > 0).sum(0))) + 1
    monkeypatch.setattr(tfidf, "ENTRIES_PER_BLOCK", block)
    np.testing.assert_array_equal(Tfidf().fit(messy).idf_, want.astype(np.float32))


def test_fit_does_not_copy(monkeypatch):
    X = scipy.sparse.csr_matrix((np.ones(10**6, np.float32), np.arange(10**6) % 100, np.arange(0, 10**6 + 1, 100)))
    Tfidf().fit(X[:9])
    monkeypatch.setattr(tfidf, "ENTRIES_PER_BLOCK", 10_000)
    tracemalloc.start()
    Tfidf().fit(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6 < X.data.nbytes


def test_unused_space_behind_the_entries():
    clean = counts(20, 8, seed=9)
    roomy = clean.copy()
    roomy.data, roomy.indices = np.append(clean.data, [np.inf, 0]), np.append(clean.indices, [3, 3])
    np.testing.assert_array_equal(Tfidf().fit(roomy).idf_, Tfidf().fit(clean).idf_)
    for there in (roomy, roomy[:, :]):
        got = Tfidf().fit(clean).transform(there)
        np.testing.assert_array_equal(got.toarray(), Tfidf().fit_transform(clean).toarray())
    roomy.data[-1] = 1  # no zero anywhere
    np.testing.assert_array_equal(Tfidf().fit_transform(roomy).toarray(), Tfidf().fit_transform(clean).toarray())


def test_result_shares_no_memory():
    X = counts(20, 8, seed=10)
    weighted = Tfidf().fit_transform(X)
    for name in ("data", "indices", "indptr"):
        assert not np.shares_memory(getattr(X, name), getattr(weighted, name))


def test_no_rows():
    X = scipy.sparse.csr_matrix((0, 3), dtype=np.float32)
    assert Tfidf().fit_transform(X).shape == (0, 3)
    np.testing.assert_array_equal(Tfidf().fit(X).idf_, [1, 1, 1])
    empty = scipy.sparse.csr_matrix((2, 3), dtype=np.float32)
    assert Tfidf().fit_transform(empty).shape == (2, 3) and Tfidf().fit_transform(empty).nnz == 0


@pytest.mark.parametrize("method", ["fit", "transform", "fit_transform"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda X: X.toarray(), TypeError, "X must be a SciPy CSR matrix, got ndarray; use scipy.sparse.csr_matrix"),
        (lambda X: X.tocsc(), TypeError, "X must be a SciPy CSR matrix, got csc_matrix"),
        (lambda X: -X, ValueError, "X must contain counts, got the negative value -"),
        (lambda X: X * np.float32(np.nan), ValueError, "X must be finite"),
        (lambda X: X * np.float32(np.inf), ValueError, "X must be finite"),
    ],
)
def test_wrong_input(method, change, error, message):
    X = counts(9, 4, seed=4)
    with pytest.raises(error, match=message):
        getattr(Tfidf().fit(X), method)(change(X))


def test_wrong_number_of_features():
    with pytest.raises(ValueError, match="X must have 4 features as in fit, got 5"):
        Tfidf().fit(counts(9, 4, seed=5)).transform(counts(9, 5, seed=5))


def test_not_fitted():
    with pytest.raises(ValueError, match="not fitted; call fit first"):
        Tfidf().transform(counts(9, 4, seed=6))


def test_fit_returns_self():
    tfidf = Tfidf()
    assert tfidf.fit(counts(9, 4, seed=7)) is tfidf


@pytest.mark.parametrize("other", [0.5, 1.5, 2**24 + 0.5])
def test_weights_are_no_counts(other):
    """1 + ln(w) of a weight below 1/e is negative; without the logarithm they may be weighed."""
    X = scipy.sparse.csr_matrix([[1.0, 2.0], [0.0, other]])
    for call in Tfidf().fit, Tfidf().fit(X.astype(int)).transform:
        with pytest.raises(ValueError, match=r"X must contain counts .* got .*tfidf=False.*Tfidf\(sublinear=False\)"):
            call(X)
    assert (Tfidf(sublinear=False).fit_transform(X).data > 0).all()


def test_the_first_value_that_is_no_count(monkeypatch):
    monkeypatch.setattr(tfidf, "ENTRIES_PER_BLOCK", 3)
    matrix = scipy.sparse.csr_matrix(np.array([[1, 2, 3, 4], [5, 1.5, -1, 7]]))
    assert tfidf.first_non_count(matrix) == 1.5 and tfidf.first_non_count(matrix[:1]) is None
    assert tfidf.first_non_count(matrix[:0]) is None and tfidf.first_non_count(-matrix[:1]) == -1
