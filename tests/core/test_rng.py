"""Random numbers: the published vectors on every processor, and what is made of the words."""

import numba
import numpy as np
import pytest
import scipy.stats

from sparsemax_nb.core import rng
from sparsemax_nb.core.device import cpu_formulas

from . import philox

pytestmark = pytest.mark.quick

WORDS = np.uint64([0, 1, 2**31, 2**32 - 1])


def words(n, seed=1, stream=7, step=0):
    return rng.random_word(*map(np.uint64, (seed, stream, step)), np.arange(n, dtype=np.uint64))


def test_published_vectors_in_python_and_numpy():
    for counter, key, want in zip(philox.COUNTERS, philox.KEYS, philox.WORDS, strict=True):
        assert rng.philox(*counter, *key) == tuple(want)
    np.testing.assert_array_equal(rng.philox(*philox.COUNTERS.T, *philox.KEYS.T), philox.WORDS.T)


def test_published_vectors_compiled_for_the_cpu():
    compiled = cpu_formulas(rng).philox
    for counter, key, want in zip(philox.COUNTERS, philox.KEYS, philox.WORDS, strict=True):
        assert compiled(*counter, *key) == tuple(want)


def test_published_vectors_on_cuda(backend):
    if backend.device == "cpu":
        pytest.skip("the tests above")
    out = backend.array(np.zeros((len(philox.VECTORS), 4)), np.uint64)
    philox.kernel[1, 4](backend.array(philox.COUNTERS), backend.array(philox.KEYS), out)
    np.testing.assert_array_equal(backend.numpy(out), philox.WORDS)


def test_random_word_places_its_arguments():
    """Counter = position (low, high), step, stream; key = seed (low, high): no two arguments share a word."""
    seed, stream, step, position = (0x0123456789ABCDEF, 0x11112222, 0x33334444, 0x5555666677778888)
    counter = 0x77778888, 0x55556666, step, stream
    want = rng.philox(*map(np.uint64, counter), np.uint64(0x89ABCDEF), np.uint64(0x01234567))[0]
    arguments = tuple(map(np.uint64, (seed, stream, step, position)))
    assert rng.random_word(*arguments) == want
    compiled = cpu_formulas(rng)
    assert compiled.random_word(*arguments) == want
    drawn = {
        int(rng.random_word(*(np.uint64(a ^ (i == j)) for j, a in enumerate(map(int, arguments))))) for i in range(5)
    }
    assert len(drawn) == 5, "each argument changes the word"


def test_words_are_uniform_and_independent():
    drawn = words(1 << 16)
    counts = np.bincount((drawn >> np.uint64(24)).astype(np.int64), minlength=256)
    assert 1e-3 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-3
    for other in (words(1 << 16, seed=2), words(1 << 16, stream=8), words(1 << 16, step=1), np.roll(drawn, 1)):
        assert abs(np.corrcoef(drawn.astype(float), other.astype(float))[0, 1]) < 0.02
        assert (drawn == other).mean() < 1e-3


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 2**31 - 1, 2**32 - 1])
def test_below_stays_below(n):
    drawn = rng.below(WORDS, np.uint64(n))
    assert drawn.tolist() == [int(word) * n >> 32 for word in WORDS]
    assert drawn[0] == 0
    assert drawn[-1] == n - 1


def test_below_is_uniform():
    counts = np.bincount(rng.below(words(70_000), np.uint64(7)).astype(np.int64), minlength=7)
    assert 1e-3 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-3


def test_symmetric_is_exact_and_half_open():
    drawn = rng.symmetric(WORDS)
    assert drawn.dtype == np.float32
    assert drawn.tolist() == [-1, -1, 0, 1 - 2.0**-23]
    compiled, many = cpu_formulas(rng).symmetric, words(1000)
    assert [compiled(word) for word in many] == rng.symmetric(many).tolist()
    assert compiled.nopython_signatures[0].return_type == numba.float32


def four_words(n):
    return rng.random_words(*map(np.uint64, (1, 7, 0)), np.arange(n, dtype=np.uint64))


def test_bell_is_nearly_normal():
    drawn = rng.bell(*four_words(100_000)).astype(np.float64)
    assert abs(drawn.mean()) < 4 / np.sqrt(1e5) and abs(drawn.var() - 1) < 4 * np.sqrt(2 / 1e5)
    assert abs(scipy.stats.skew(drawn)) < 0.03 and scipy.stats.kurtosis(drawn) == pytest.approx(-6 / 5 / 8, abs=0.06)
    assert (
        np.abs(np.sort(drawn)[::100] - scipy.stats.norm.ppf(np.linspace(0, 1, 1001)[:-1] + 5e-6))[50:-50].max() < 0.05
    )
    lowest, highest = (rng.bell(*[np.uint64(word)] * 4) for word in (0, 2**32 - 1))
    assert lowest == -highest and 4.8 < highest < 4.9 and (np.abs(drawn) < highest).all()
    for place in range(4):  # each word and both of its halves count alike
        for word in (0xFFFF, 0xFFFF0000):
            one = [np.uint64(word if n == place else 0) for n in range(4)]
            assert rng.bell(*one) - lowest == pytest.approx((highest - lowest) / 8, rel=1e-5)


def test_bell_is_the_same_compiled_for_the_cpu():
    compiled, many = cpu_formulas(rng).bell, four_words(1000)
    wanted = rng.bell(*many)
    assert wanted.dtype == np.float32 and np.ptp(wanted) > 4
    assert [compiled(*words) for words in zip(*many, strict=True)] == wanted.tolist()
    assert compiled.nopython_signatures[0].return_type == numba.float32


def test_bell_is_the_same_on_cuda(backend):
    if backend.device == "cpu":
        pytest.skip("the test above")
    many = np.stack(four_words(40), axis=1)
    out = backend.array(np.zeros(40, np.float32))
    philox.bell_kernel[5, 8](backend.array(many), out)
    np.testing.assert_array_equal(backend.numpy(out), rng.bell(*many.T))


def test_streams_do_not_overlap():
    """Layers add their number to a stream: there is room for 65,536 of them."""
    names = "CONNECTIONS WEIGHTS DROPOUT SHUFFLE REWIRING SAMPLING GENERATION GATE NOISE"
    streams = sorted(int(getattr(rng, name)) for name in names.split())
    assert np.diff([0, *streams]).min() >= 1 << 16
    assert max(streams) + (1 << 16) <= 1 << 32


@pytest.mark.parametrize("rate", [0, 0.1, 0.5, 0.999])
def test_dropout_drops_its_share(rate):
    dropout = rng.make_dropout(rate, seed=2**64 - 1, layer=3, step=2**32 - 1)
    assert dropout.scale == np.float32(1 / (1 - rate))
    assert (dropout.stream, dropout.step) == (rng.DROPOUT + np.uint64(3), 2**32 - 1)
    n, kept = 100_000, (words(100_000, dropout.seed, dropout.stream, dropout.step) >= dropout.threshold).sum()
    assert abs(kept - n * (1 - rate)) <= 4 * np.sqrt(n * rate * (1 - rate))
