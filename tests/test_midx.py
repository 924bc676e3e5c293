"""The inverted multi-index: k-means, cells, draws with the probabilities that it states, updates, bad input."""

import numpy as np
import pytest

from sparsemax_nb import InvertedMultiIndex, UnigramSampler, samplers
from sparsemax_nb.reference import midx as reference
from sparsemax_nb.reference import samplers as draws

from .helpers import normal, on_other_device
from .test_samplers import p_value

N_CLASSES, WIDTH = 400, 8
POPULARITY = np.random.default_rng(0).zipf(1.5, N_CLASSES).clip(max=500) - 1.0  # some zero
EACH = pytest.mark.parametrize(
    ("kind", "residual"), [("rq", "uniform"), ("rq", "popularity"), ("pq", "uniform"), ("pq", "popularity")]
)
WITH_EXACT = pytest.mark.parametrize(
    ("kind", "residual"), [(kind, residual) for residual in ("uniform", "popularity", "exact") for kind in ("rq", "pq")]
)


def embeddings(seed=1, n_classes=N_CLASSES, width=WIDTH):
    """Ten clusters."""
    return normal(seed, 10, width)[np.arange(n_classes) % 10] + normal(seed + 1, n_classes, width) / 3


def build(backend_array=np.array, kind="rq", residual="uniform", n_codewords=6, **more):
    popularity = POPULARITY if residual == "popularity" else None
    classes = backend_array(embeddings())
    return InvertedMultiIndex.build(classes, n_codewords, kind, residual, popularity=popularity, **more)


def everything():
    return np.arange(N_CLASSES, dtype=np.int32)


@WITH_EXACT
def test_a_million_draws_have_the_stated_probabilities(kind, residual):
    index, query = build(kind=kind, residual=residual), normal(5, 1, WIDTH)
    probability = np.exp(index.log_prob(query, everything())[0].astype(np.float64))
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert not probability[POPULARITY == 0].any() if residual == "popularity" else (probability > 0).all()
    ids, log_q = index.sample(np.repeat(query, 1000, axis=0), 1000, seed=1)
    assert 1e-4 < p_value(ids, probability)
    np.testing.assert_allclose(np.exp(log_q), probability[ids], rtol=1e-5)
    cell = index.codes[:, 0] * index.n_codewords + index.codes[:, 1]
    wrong = probability.copy()
    wrong[cell == cell[np.argmax(probability)]] *= 1.2
    assert p_value(ids, wrong / wrong.sum()) < 1e-4, "one cell with a wrong weight would be noticed"


@EACH
def test_probability_is_the_softmax_of_the_quantised_logits(kind, residual):
    index, queries = build(kind=kind, residual=residual), normal(5, 3, WIDTH)
    c0, c1 = index.codebooks
    codes = index.codes
    if kind == "rq":
        quantised = c0[codes[:, 0]] + c1[codes[:, 1]]
    else:
        quantised = np.concatenate([c0[codes[:, 0]], c1[codes[:, 1]]], axis=1)
    weight = POPULARITY if residual == "popularity" else np.ones(N_CLASSES)
    p = np.exp(queries.astype(np.float64) @ quantised.T) * weight
    got = np.exp(index.log_prob(queries, everything()))
    np.testing.assert_allclose(got, p / p.sum(1, keepdims=True), rtol=2e-5)
    distance = ((embeddings() - quantised) ** 2).sum()
    assert distance < 0.7 * ((embeddings() - embeddings().mean(0)) ** 2).sum(), "it quantises"


@EACH
def test_same_on_every_processor(backend, kind, residual):
    there, here = (
        build(backend.array, kind, residual, n_iterations=2),
        build(kind=kind, residual=residual, n_iterations=2),
    )
    np.testing.assert_array_equal(backend.numpy(there.codes), here.codes)
    queries = normal(6, 4, WIDTH)
    ids, log_q = there.sample(backend.array(queries), 6, seed=3, step=2)
    r0, r1 = here._logits(queries)
    want, want_log_q, near = reference.sample(r0, r1, here._index, 3, 2, 6)
    sure = near > 1e-6
    assert sure.sum() >= sure.size - 1
    np.testing.assert_array_equal(backend.numpy(ids)[sure], want[sure])
    np.testing.assert_allclose(backend.numpy(log_q)[sure], want_log_q[sure], atol=1e-5)
    again = backend.numpy(there.log_prob(backend.array(queries), ids))
    np.testing.assert_allclose(again, backend.numpy(log_q), atol=1e-5)
    one_line = there.log_prob(backend.array(queries), backend.array(everything()[:3]))
    assert backend.numpy(one_line).shape == (4, 3)


@pytest.mark.parametrize("residual", ["uniform", "popularity"])
def test_a_draw_needs_one_record(backend, residual):
    """The record of a column says what the members, their popularity and the tables of the cell say."""
    built = build(backend.array, residual=residual, n_iterations=1)
    index = type(built._index)(*map(backend.numpy, built._index))
    n = N_CLASSES if residual == "popularity" else 0
    assert index.records.shape == index.values.shape == (n, 4)
    np.testing.assert_array_equal(index.records.view(np.float32), index.values)
    np.testing.assert_array_equal(
        index.transposed, index.cell_weights.T if backend.device == "cuda" else index.cell_weights[:0]
    )
    arrays = (
        index.codes,
        index.indptr,
        index.members,
        index.records,
        index.cell_weights,
        index.transposed,
        index.log_popularity,
    )
    assert built.nbytes == sum(a.nbytes for a in (*arrays, *map(backend.numpy, built.codebooks))), (
        "no other array twice"
    )
    if n:
        np.testing.assert_array_equal(index.records[:, 1], index.members)
        np.testing.assert_array_equal(index.values[:, 3], index.log_popularity[index.members])
        p, other, threshold = np.zeros(n), index.records[:, 2].astype(int), index.records[:, 0] / 2.0**32
        kept = np.where(other == np.arange(n), 1, threshold)
        sizes = np.diff(index.indptr)
        share = np.repeat(index.cell_weights.reshape(-1) / np.maximum(sizes, 1), sizes)  # of each column of a cell
        np.add.at(p, index.members, kept * share)
        np.add.at(p, index.members[other], (1 - kept) * share)
        np.testing.assert_allclose(p, POPULARITY / POPULARITY.sum(), rtol=1e-5, atol=1e-9)


def test_exact_is_the_softmax(backend, monkeypatch):
    monkeypatch.setattr(samplers, "SCORES_PER_CHUNK", 2 * N_CLASSES)  # two rows at a time
    index, queries = build(backend.array, residual="exact", n_iterations=1), normal(5, 5, WIDTH)
    logits = queries.astype(np.float64) @ embeddings().T
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    got = backend.numpy(index.log_prob(backend.array(queries), backend.array(everything())))
    np.testing.assert_allclose(np.exp(got), p, rtol=0, atol=1e-5)
    ids, log_q = map(backend.numpy, index.sample(backend.array(queries), 4, seed=3, step=2))
    want, want_log_q, near = draws.draw_softmax(logits, 0, 3, 2, 4)
    assert (near > 1e-6).all()
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_allclose(log_q, want_log_q, rtol=0, atol=1e-5)
    again = index.log_prob(backend.array(queries), backend.array(ids))
    np.testing.assert_allclose(backend.numpy(again), want_log_q, rtol=0, atol=1e-5)
    index.update(backend.array(2 * embeddings()))
    got = backend.numpy(index.log_prob(backend.array(queries), backend.array(everything())))
    np.testing.assert_allclose(got, 2 * logits - np.logaddexp.reduce(2 * logits, axis=1, keepdims=True), atol=1e-4)


def test_nearer_to_the_softmax_than_unigram_and_with_more_codewords_nearer():
    classes, queries = embeddings(), normal(7, 50, WIDTH)
    logits = queries.astype(np.float64) @ classes.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)

    def divergence(sampler):
        return (p * (np.log(p) - sampler.log_prob(queries, everything()))).sum(1).mean()

    kl = {k: divergence(InvertedMultiIndex.build(classes, k)) for k in (2, 8, 32)}
    assert kl[32] < kl[8] < kl[2] < divergence(UnigramSampler(np.ones(N_CLASSES)))
    assert divergence(InvertedMultiIndex.build(classes, N_CLASSES)) < 1e-5, "as many codewords as classes: exact"


def test_weights_serve_the_heavy_classes_best(backend):
    """Also after an update; equal weights, whatever their size, are no weights."""
    classes, weights = embeddings(), np.where(np.arange(N_CLASSES) < 40, 1.0, 0.01)
    plain, equal, weighted = (
        InvertedMultiIndex.build(backend.array(classes), 6, n_iterations=4, class_weights=w)
        for w in (None, [7] * N_CLASSES, weights)
    )
    np.testing.assert_array_equal(backend.numpy(plain.codes), backend.numpy(equal.codes))

    def distance(index, heavy):
        (c0, c1), codes = map(backend.numpy, index.codebooks), backend.numpy(index.codes)
        return ((classes - c0[codes[:, 0]] - c1[codes[:, 1]]) ** 2)[: 40 if heavy else None].sum()

    assert distance(weighted, heavy=True) < 0.8 * distance(plain, heavy=True)
    assert distance(weighted, heavy=False) > distance(plain, heavy=False)
    before = distance(weighted, heavy=True)
    weighted.update(backend.array(classes))
    assert distance(weighted, heavy=True) <= before


@pytest.mark.parametrize("kind", ["rq", "pq"])
def test_queries_say_which_errors_matter(backend, kind):
    """Queries that look along few directions: scores are served better, vectors worse; also after an update."""
    classes, queries = normal(1, N_CLASSES, WIDTH), normal(2, 50, WIDTH)
    queries *= np.array([3, 1, 0.01, 0.01] * 2, np.float32)
    blind, seeing = (
        InvertedMultiIndex.build(backend.array(classes), 6, kind, n_iterations=4, **more)
        for more in ({}, {"h": backend.array(queries)})
    )

    def residual(index):
        (c0, c1), codes = map(backend.numpy, index.codebooks), backend.numpy(index.codes)
        first, second = c0[codes[:, 0]], c1[codes[:, 1]]
        return classes - (first + second if kind == "rq" else np.concatenate([first, second], axis=1))

    def error(index):
        return np.square(queries @ residual(index).T).mean()

    assert error(seeing) < 0.5 * error(blind)
    assert np.square(residual(seeing)).sum() > np.square(residual(blind)).sum()
    before = error(seeing)
    seeing.update(backend.array(classes))
    assert error(seeing) <= 1.001 * before, "the queries of the build count on"
    blind.update(backend.array(classes), n_iterations=10, h=backend.array(queries))
    assert error(blind) < 2 * before
    everywhere = np.exp(backend.numpy(seeing.log_prob(backend.array(queries[:3]), backend.array(everything()))))
    np.testing.assert_allclose(everywhere.sum(axis=1), 1, rtol=1e-5)


def test_update_follows_the_embeddings():
    index, classes = build(n_iterations=50), embeddings()
    assert index.update(classes) == 0.0, "nothing moved"
    moved = index.update(classes + normal(9, N_CLASSES, WIDTH) / 10)
    assert 0 < moved < 0.5
    index.update(-classes, n_iterations=20)
    queries = normal(5, 3, WIDTH)
    np.testing.assert_allclose(np.exp(index.log_prob(queries, everything())).sum(1), 1, rtol=1e-5)
    quantised = index.codebooks[0][index.codes[:, 0]] + index.codebooks[1][index.codes[:, 1]]
    assert ((-classes - quantised) ** 2).sum() < 0.7 * (classes**2).sum()


def test_no_codeword_is_wasted():
    """Two equal first codewords: one has no vectors, and takes the worst served one."""
    classes = np.concatenate([np.zeros((50, 2)), np.full((50, 2), 10)]).astype(np.float32)
    for seed in range(10):
        index = InvertedMultiIndex.build(classes, 2, seed=seed)
        assert len(np.unique(index.codes[:, 0])) == 2


def test_a_codeword_left_behind_takes_the_worst_served_vector():
    def two(low, high):
        return np.repeat(np.array([[low, low], [high, high]], np.float32), 50, axis=0)

    index = InvertedMultiIndex.build(two(0, 10), 2, seed=1)
    assert sorted(index.codebooks[0][:, 0]) == [0, 10]
    index.update(two(30, 60))  # nearer to 10 than to 0, and nearer to their mean
    assert sorted(index.codebooks[0][:, 0]) == [30, 60]
    far = np.concatenate([two(0, 10), [[0, 0]]]).astype(np.float32)  # the last one weighs nothing
    index = InvertedMultiIndex.build(far, 2, seed=1, class_weights=np.arange(101) < 100)
    far[:100], far[100] = two(30, 60), 1000
    index.update(far, n_iterations=1)
    assert sorted(index.codebooks[0][:, 0]) == [45, 60]


def test_zero_embeddings_are_all_alike(backend):
    index = InvertedMultiIndex.build(backend.array(np.zeros((7, 4), np.float32)), 3)
    ids = backend.array(np.arange(7, dtype=np.int32))
    np.testing.assert_allclose(
        backend.numpy(index.log_prob(backend.array(normal(1, 2, 4)), ids)), -np.log(7), rtol=1e-5
    )


def test_scores_that_are_far_apart_do_not_overflow():
    index, queries = build(), 200 * normal(5, 3, WIDTH)
    ids, log_q = index.sample(queries, 50, seed=0)
    assert np.isfinite(log_q).all() and np.exp(index.log_prob(queries, everything())).sum() == pytest.approx(
        3, rel=1e-3
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_codewords": N_CLASSES + 1}, ValueError, f"n_codewords must be between 1 and {N_CLASSES} .there are"),
        ({"n_codewords": 0}, ValueError, "n_codewords must be between 1"),
        ({"kind": "opq"}, ValueError, "kind must be one of 'rq', 'pq'"),
        ({"residual": "none"}, ValueError, "residual must be one of"),
        ({"residual": "popularity"}, ValueError, "needs popularity"),
        ({"popularity": np.ones(N_CLASSES)}, ValueError, "popularity is used with residual='popularity' only"),
        ({"residual": "popularity", "popularity": np.zeros(N_CLASSES)}, ValueError, "must not be all zero"),
        ({"residual": "popularity", "popularity": -np.ones(N_CLASSES)}, ValueError, "must not be negative"),
        ({"residual": "popularity", "popularity": np.ones(3)}, ValueError, "popularity must have shape"),
        ({"class_weights": np.ones(3)}, ValueError, "class_weights must have shape"),
        ({"class_weights": -np.ones(N_CLASSES)}, ValueError, "class_weights must not be negative"),
        ({"class_weights": np.zeros(N_CLASSES)}, ValueError, "must not be all zero"),
        ({"class_weights": np.full(N_CLASSES, np.nan)}, ValueError, "class_weights must be finite"),
        ({"weights": np.full((9, 4), np.nan, np.float32)}, ValueError, "weights must be finite"),
        ({"weights": np.full((9, 4), np.inf, np.float32)}, ValueError, "weights must be finite"),
        ({"weights": np.zeros((9, 4))}, TypeError, "weights must be float32"),
        ({"weights": np.zeros((9, 5), np.float32), "kind": "pq"}, ValueError, "width must be even, got 5"),
        ({"h": np.zeros((0, WIDTH), np.float32)}, ValueError, "the number of rows of h must be at least 1"),
        ({"h": np.zeros((3, WIDTH + 1), np.float32)}, ValueError, "h must have shape .n, 8."),
        ({"h": np.full((3, WIDTH), np.inf, np.float32)}, ValueError, "h must be finite"),
        ({"seed": -1}, ValueError, "seed must be between"),
        ({"n_iterations": -1}, ValueError, "n_iterations must be at least 0"),
    ],
)
def test_bad_index(change, error, message):
    with pytest.raises(error, match=message):
        InvertedMultiIndex.build(**{"weights": embeddings(), "n_codewords": 4} | change)


def test_bad_requests(backend):
    index, good = build(backend.array), backend.array(normal(1, 2, WIDTH))
    with pytest.raises(ValueError, match="weights must have 400 rows as in build, got 399; build a new index"):
        index.update(backend.array(embeddings()[:-1]))
    with pytest.raises(ValueError, match="weights must have shape"):
        index.update(backend.array(embeddings()[:, :-1]))
    with pytest.raises(ValueError, match="n_samples must be between 1"):
        index.sample(good, 0, seed=0)
    with pytest.raises(ValueError, match="h must have shape"):
        index.sample(backend.array(normal(1, 2, 3)), 2, seed=0)
    with pytest.raises(ValueError, match="h must be finite"):
        index.sample(backend.array(np.full((1, WIDTH), np.nan, np.float32)), 2, seed=0)
    for bad in (-1, N_CLASSES):
        with pytest.raises(ValueError, match=f"ids must lie in .0, {N_CLASSES}., got {bad}"):
            index.log_prob(good, backend.array(np.array([bad], np.int32)))
    with pytest.raises(TypeError, match="one device"):
        index.sample(on_other_device(backend, normal(1, 2, WIDTH)), 2, seed=0)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # of NumPy, which computes in the simulator
def test_scores_that_overflow_are_refused(backend):
    """Finite embeddings and queries, products that are not: a kernel would walk out of its arrays."""
    index = InvertedMultiIndex.build(backend.array(normal(1, 50, 4) * np.float32(1e15)), 3)
    queries = backend.array(normal(2, 2, 4) * np.float32(1e30))
    for call in (
        lambda: index.sample(queries, 5, 0),
        lambda: index.log_prob(queries, backend.array(np.zeros(1, np.int32))),
    ):
        with pytest.raises(FloatingPointError, match="the scores h @ codebook.T overflowed"):
            call()


@pytest.mark.parametrize("residual", ["uniform", "exact"])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # of NumPy, which computes in the simulator
def test_finite_scores_too_far_apart_are_refused(backend, residual):
    """Their difference is no float32: no NaN, and no minus infinity for a class that has weight."""
    classes = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    index = InvertedMultiIndex.build(backend.array(classes), 4, residual=residual)
    queries = backend.array(np.full((2, 2), 3e38, np.float32))
    with pytest.raises(FloatingPointError, match="overflowed, or differ too much for float32"):
        index.log_prob(queries, backend.array(np.arange(4, dtype=np.int32)))
    exact = InvertedMultiIndex.build(backend.array(np.float32(1e9) * classes), 4, residual=residual)
    with pytest.raises(FloatingPointError, match="overflowed"):
        exact.sample(queries, 3, seed=0)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_embeddings_too_large_for_k_means(backend):
    """An update that fails leaves the index as it was."""
    with pytest.raises(FloatingPointError, match="sums of the embeddings overflowed in k-means"):
        InvertedMultiIndex.build(backend.array(np.full((50, 4), 3e38, np.float32)), 3)
    index = build(backend.array, n_iterations=1)
    before, codes = [backend.numpy(c).copy() for c in index.codebooks], backend.numpy(index.codes).copy()
    with pytest.raises(FloatingPointError, match="sums of the embeddings overflowed in k-means"):
        index.update(backend.array(np.full((N_CLASSES, WIDTH), 3e38, np.float32)), h=backend.array(normal(1, 9, WIDTH)))
    assert all((backend.numpy(c) == b).all() for c, b in zip(index.codebooks, before, strict=True))
    assert (backend.numpy(index.codes) == codes).all() and index._metric is None


def test_popularity_whose_sum_overflows():
    index = InvertedMultiIndex.build(embeddings(), 4, residual="popularity", popularity=np.full(N_CLASSES, 1e308))
    plain = InvertedMultiIndex.build(embeddings(), 4)
    queries = normal(1, 2, WIDTH)
    np.testing.assert_allclose(index.log_prob(queries, everything()), plain.log_prob(queries, everything()), atol=1e-5)
