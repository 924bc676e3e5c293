"""Samplers: what they draw has the probabilities that they state; equal on every processor; bad input."""

import numpy as np
import pytest
import scipy.stats

from sparsemax_nb import LogUniformSampler, LSHSampler, RFFSampler, SphereSampler, UniformSampler, UnigramSampler
from sparsemax_nb.core.device import device_of
from sparsemax_nb.reference import baselines as reference

from .helpers import ForeignArray, normal, on_other_device

N_CLASSES = 500
COUNTS = np.random.default_rng(0).zipf(1.3, N_CLASSES).clip(max=10_000) - 1  # some zero
RANKS = np.random.default_rng(1).permutation(N_CLASSES)
SAMPLERS = {
    "uniform": lambda device: UniformSampler(N_CLASSES),
    "log-uniform": lambda device: LogUniformSampler(N_CLASSES, device=device),
    "log-uniform by rank": lambda device: LogUniformSampler(N_CLASSES, ranks=RANKS, device=device),
    "unigram": lambda device: UnigramSampler(COUNTS, device=device),
    "unigram 0.75": lambda device: UnigramSampler(COUNTS, power=0.75, device=device),
}
EACH = pytest.mark.parametrize("name", SAMPLERS)


def queries(n, width=3):
    return np.zeros((n, width), np.float32)


def p_value(ids, probability):
    """Of a chi-square test of drawn ids against stated probabilities; classes pooled, in order of their probability, to
    an expected count of 20."""
    order = np.argsort(probability)
    expected, counts = probability[order] * ids.size, np.bincount(ids.ravel(), minlength=len(probability))[order]
    assert not counts[expected == 0].any(), "drawn although its probability is 0"
    cell = np.floor((np.cumsum(expected) - expected / 2) / 20).astype(np.int64)
    cell = np.unique(cell, return_inverse=True)[1]
    expected, counts = np.bincount(cell, expected), np.bincount(cell, counts)
    return scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


def stated(sampler):
    """The probabilities that a sampler states, (L,) float64."""
    ids = np.arange(sampler.n_classes, dtype=np.int32)
    return np.exp(sampler.log_prob(queries(1), ids)[0].astype(np.float64))


@EACH
def test_a_million_draws_have_the_stated_probabilities(name):
    sampler = SAMPLERS[name]("cpu")
    probability = stated(sampler)
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    ids, log_q = sampler.sample(queries(1000), 1000, seed=1)
    assert 1e-4 < p_value(ids, probability)
    np.testing.assert_array_equal(log_q, sampler.log_prob(queries(1000), ids))


@EACH
def test_one_class_with_a_wrong_weight_fails_the_same_test(name):
    sampler = SAMPLERS[name]("cpu")
    probability = stated(sampler)
    ids, _ = sampler.sample(queries(1000), 1000, seed=1)
    assert 1e-4 < p_value(ids, probability)
    wrong = probability.copy()
    wrong[np.argmax(probability)] *= 1.5
    assert p_value(ids, wrong / wrong.sum()) < 1e-4


@EACH
def test_draws_are_the_same_everywhere_and_differ_by_seed_and_step(backend, name):
    sampler, here = SAMPLERS[name](backend.device), SAMPLERS[name]("cpu")
    place = backend.array(queries(5))
    got = [backend.numpy(a) for a in sampler.sample(place, 7, seed=2**63, step=9)]
    want = here.sample(queries(5), 7, seed=2**63, step=9)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    assert got[0].dtype == np.int32 and got[1].dtype == np.float32 and len(np.unique(got[0])) > 5
    for seed, step in ((2**63 + 1, 9), (2**63, 8)):
        assert (here.sample(queries(5), 7, seed=seed, step=step)[0] != want[0]).mean() > 0.5
    log_q = sampler.log_prob(place, backend.array(want[0]))
    np.testing.assert_array_equal(backend.numpy(log_q), want[1])
    assert sampler.sample(backend.array(queries(0)), 7, seed=0)[0].shape == (0, 7)


def test_formulas():
    n = N_CLASSES
    np.testing.assert_allclose(stated(UniformSampler(n)), 1 / n, rtol=1e-5)
    i = np.arange(n)
    np.testing.assert_allclose(stated(LogUniformSampler(n)), np.log((i + 2) / (i + 1)) / np.log(n + 1), rtol=1e-5)
    ranked = stated(LogUniformSampler(n, ranks=RANKS))
    np.testing.assert_allclose(ranked, np.log((RANKS + 2) / (RANKS + 1)) / np.log(n + 1), rtol=1e-5)
    for power in (0.0, 0.75, 2.0):
        want = np.where(COUNTS > 0, COUNTS.astype(float) ** power, 0)
        np.testing.assert_allclose(stated(UnigramSampler(COUNTS, power)), want / want.sum(), rtol=1e-5)
    assert (COUNTS == 0).any() and UnigramSampler(COUNTS).log_prob(queries(1), np.int32([np.argmin(COUNTS)]))[
        0
    ] == -np.inf


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: UniformSampler(0), ValueError, "n_classes must be between 1"),
        (
            lambda: LogUniformSampler(3, ranks=[0, 2, 2]),
            ValueError,
            "ranks must hold each of 0 to 2 once; use np.argsort",
        ),
        (lambda: LogUniformSampler(3, ranks=[0, 1]), ValueError, "ranks must hold each of 0 to 2 once"),
        (lambda: LogUniformSampler(2.0), TypeError, "n_classes must be an integer"),
        (lambda: UnigramSampler(np.zeros(3)), ValueError, "counts must not be all zero"),
        (lambda: UnigramSampler(np.array([1.0, -2.0])), ValueError, "counts must not be negative, got -2"),
        (lambda: UnigramSampler(np.array([1.0, np.nan])), ValueError, r"counts must be finite, got nan at \[1\]"),
        (lambda: UnigramSampler(np.ones((2, 2))), ValueError, r"counts must have shape \(L,\)"),
        (lambda: UnigramSampler(np.ones(2), power=-1), ValueError, "power must lie in"),
        (lambda: UnigramSampler(np.ones(2), device="gpu"), ValueError, "device must be one of"),
    ],
)
def test_bad_samplers(make, error, message):
    with pytest.raises(error, match=message):
        make()


@EACH
def test_bad_requests(backend, name):
    sampler, good = SAMPLERS[name](backend.device), backend.array(queries(2))
    for arguments, error, message in (
        ((good, 0, 0), ValueError, "n_samples must be between 1"),
        ((good, 2.0, 0), TypeError, "n_samples must be an integer"),
        ((good, 2, -1), ValueError, "seed must be between 0"),
        ((good, 2, 0, 2**32), ValueError, "step must be between 0"),
        ((backend.array(queries(2).astype(np.float64)), 2, 0), TypeError, "h must be float32"),
        (([[0.0]], 2, 0), TypeError, "h must be a NumPy or CUDA array, got list"),
    ):
        with pytest.raises(error, match=message):
            sampler.sample(*arguments)
    for bad in (-1, N_CLASSES):
        with pytest.raises(ValueError, match=rf"ids must lie in \[0, {N_CLASSES}\), got {bad}"):
            sampler.log_prob(good, backend.array(np.array([3, bad], np.int32)))
    with pytest.raises(TypeError, match="one device"):
        sampler.log_prob(good, on_other_device(backend, np.array([3], np.int32)))
    assert device_of(sampler.sample(good, 2, 0)[0]) == backend.device


# ---------------------------------------------------------------- baselines: the query counts; on the CPU alone

CLASSES, QUERIES = normal(1, N_CLASSES, 6), normal(2, 5, 6)
IDS = np.arange(N_CLASSES, dtype=np.int32)
BASELINES = {
    "lsh": lambda: LSHSampler(CLASSES),
    "lsh, empty buckets": lambda: LSHSampler(CLASSES, n_bits=12, n_tables=3),
    "sphere": lambda: SphereSampler(CLASSES),
    "rff": lambda: RFFSampler(CLASSES),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_draw_what_they_state(name):
    sampler = BASELINES[name]()
    p = np.exp(sampler.log_prob(QUERIES, IDS).astype(np.float64))
    assert p.sum(1) == pytest.approx(1, abs=1e-5) and np.ptp(p, axis=0).max() > 1e-4, "the query counts"
    ids, log_q = sampler.sample(np.repeat(QUERIES[:1], 1000, axis=0), 1000, seed=1)
    assert 1e-4 < p_value(ids, p[0])
    np.testing.assert_allclose(np.exp(log_q), p[0][ids], rtol=1e-4)
    wrong = p[0].copy()
    wrong[np.argmax(wrong)] *= 1.5
    assert p_value(ids, wrong / wrong.sum()) < 1e-4
    again, other = (sampler.sample(QUERIES, 9, seed=s)[0] for s in (4, 5))
    np.testing.assert_array_equal(sampler.sample(QUERIES, 9, seed=4)[0], again)
    assert (again != other).any()
    log_p = sampler.log_prob(QUERIES, again)
    np.testing.assert_allclose(np.exp(log_p), np.take_along_axis(p, again.astype(np.int64), 1), rtol=1e-5)


def test_formulas_of_the_baselines():
    scores = QUERIES.astype(np.float64) @ CLASSES.T
    sphere = 100 * scores**2 + 1
    got = np.exp(SphereSampler(CLASSES).log_prob(QUERIES, IDS))
    np.testing.assert_allclose(got, sphere / sphere.sum(1, keepdims=True), rtol=1e-4)
    softmax = np.exp(scores / 9)
    got = np.exp(RFFSampler(CLASSES / 3, n_features=50_000).log_prob(QUERIES / 3, IDS))
    np.testing.assert_allclose(got, softmax / softmax.sum(1, keepdims=True), rtol=0.2)


@pytest.mark.parametrize("n_bits", [1, 4, 12])
def test_lsh_equals_reference(n_bits):
    sampler = LSHSampler(CLASSES, n_bits=n_bits, n_tables=3)
    codes = reference.hash_codes(QUERIES, sampler._planes)
    np.testing.assert_array_equal(sampler._codes(QUERIES), codes)
    ids, log_q = sampler.sample(QUERIES, 200, seed=2**63, step=3)
    want, want_log_q = reference.lsh_sample(codes, sampler._tables, sampler._uniform, 2**63, 3, 200)
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_allclose(log_q, want_log_q, rtol=0, atol=1e-5)
    assert len(np.unique(log_q)) > 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LSHSampler(CLASSES, uniform=0), ValueError, "uniform must be above 0"),
        (lambda: LSHSampler(CLASSES, n_bits=17), ValueError, "n_bits must be between 1 and 16"),
        (lambda: LSHSampler(CLASSES, n_tables=0), ValueError, "n_tables must be at least 1"),
        (lambda: SphereSampler(CLASSES, alpha=-1), ValueError, "alpha must lie in"),
        (lambda: RFFSampler(CLASSES, n_features=0), ValueError, "n_features must be at least 1"),
        (lambda: RFFSampler(CLASSES.astype(np.float64)), TypeError, "weights must be float32"),
        (lambda: RFFSampler(np.full((3, 2), np.nan, np.float32)), ValueError, "weights must be finite"),
        (lambda: SphereSampler(CLASSES).sample(QUERIES, 0, 0), ValueError, "n_samples must be between 1"),
        (lambda: SphereSampler(CLASSES).sample(QUERIES[:, 1:].copy(), 2, 0), ValueError, "h must have shape"),
        (lambda: LSHSampler(CLASSES).log_prob(QUERIES, np.int32([500])), ValueError, "ids must lie in"),
        (lambda: LSHSampler(CLASSES).sample(ForeignArray(QUERIES), 2, 0), TypeError, "one device"),
    ],
)
def test_bad_baselines(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---------------------------------------------------------------- numbers near the ends of float32


def test_power_of_counts_that_overflows():
    """Computed by logarithms: the rarest class has the probability 10^-360, whose logarithm is an ordinary number."""
    sampler, queries = UnigramSampler(np.array([1e6, 1, 0, 1e6]), power=60), np.zeros((1, 1), np.float32)
    log_q = sampler.log_prob(queries, np.arange(4, dtype=np.int32))[0]
    np.testing.assert_allclose(log_q, [-np.log(2), -60 * np.log(1e6) - np.log(2), -np.inf, -np.log(2)], rtol=1e-6)
    assert set(sampler.sample(queries, 100, seed=0)[0][0]) == {0, 3}
    large = UnigramSampler(np.array([1e308, 1e308, 1e-300]))
    log_q = large.log_prob(queries, np.arange(3, dtype=np.int32))[0]
    np.testing.assert_allclose(log_q, [-np.log(2), -np.log(2), -608 * np.log(10) - np.log(2)], rtol=1e-6)
    with pytest.raises(
        FloatingPointError, match="power=3e.38 gives a class the log-probability -.*use a smaller power"
    ):
        UnigramSampler(np.array([2, 1]), power=3e38)


@pytest.mark.parametrize("scale", [1e10, 1e19, 1e21, 1e30])
@pytest.mark.parametrize("sampler", [SphereSampler, RFFSampler, LSHSampler])
def test_large_queries(sampler, scale):
    """Finite queries whose squares may overflow: the probabilities are right all the same."""
    classes, queries = normal(1, 50, 8), (normal(2, 3, 8) * scale).astype(np.float32)
    every = np.arange(50, dtype=np.int32)
    log_q = sampler(classes).log_prob(queries, every).astype(np.float64)
    np.testing.assert_allclose(np.exp(log_q).sum(1), 1, rtol=1e-5)
    if sampler is SphereSampler:
        weights = 2 * np.log(np.abs(queries.astype(np.float64) @ classes.T)) + np.log(100)  # the 1 vanishes beside it
        np.testing.assert_allclose(log_q, weights - np.logaddexp.reduce(weights, axis=1)[:, None], atol=5e-5)
    if sampler is LSHSampler:
        np.testing.assert_array_equal(log_q, sampler(classes).log_prob(queries / np.float32(2**23), every))
    ids, drawn = sampler(classes).sample(queries, 5, seed=0)
    np.testing.assert_allclose(drawn, np.take_along_axis(log_q, ids, 1), atol=1e-5)


@pytest.mark.parametrize("sampler", [SphereSampler, RFFSampler])
def test_scores_that_overflow_are_refused(sampler):
    classes, queries = normal(1, 50, 8), np.full((3, 8), 3e38, np.float32)
    for call in (
        lambda: sampler(classes).sample(queries, 5, 0),
        lambda: sampler(classes).log_prob(queries, np.zeros(1, np.int32)),
    ):
        with pytest.raises(FloatingPointError, match="the scores h @ weights.T overflowed"):
            call()


def test_the_norm_of_a_query_does_not_matter_to_its_features():
    """The shift is the same for all features but would round away small differences: here two are almost equal."""
    classes, sampler = normal(1, 50, 8), RFFSampler(normal(1, 50, 8), n_features=2)
    a, b = sampler._directions.astype(np.float64)
    query = normal(2, 8).astype(np.float64)
    query -= (a - b) * (query @ (a - b)) / ((a - b) @ (a - b))
    query *= 1000 / np.linalg.norm(query)  # whose half square, 500,000, has a last digit of 0.03
    query = (query + 0.012 * (a - b) / ((a - b) @ (a - b))).astype(np.float32)[None]
    phi = classes.astype(np.float64) @ np.stack([a, b]).T - 0.5 * np.square(classes.astype(np.float64)).sum(
        1, keepdims=True
    )
    weights = np.logaddexp.reduce(query.astype(np.float64) @ np.stack([a, b]).T + phi, axis=1)
    got = sampler.log_prob(query, np.arange(50, dtype=np.int32))[0]
    np.testing.assert_allclose(got, weights - np.logaddexp.reduce(weights), atol=1e-3)


def test_classes_that_overflow_are_refused():
    with pytest.raises(FloatingPointError, match="features of the weights overflowed"):
        RFFSampler(np.full((5, 8), 1e30, np.float32))
    with pytest.raises(ValueError, match="alpha must lie in"):
        SphereSampler(normal(1, 5, 8), alpha=1e39)
    assert LSHSampler(np.full((5, 8), 3e38, np.float32)).log_prob(normal(1, 1, 8), np.zeros(1, np.int32)) < 0
