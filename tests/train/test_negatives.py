"""The output layer under the softmax loss: what its negatives are drawn from, and when that catches up."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import (
    Adam,
    FixedFanIn,
    GroupSharedFanIn,
    InvertedMultiIndex,
    Labels,
    softmax_cross_entropy,
)
from sparsemax_nb.train.negatives import MIDX_KINDS, SAMPLERS, Negatives, Sampling
from sparsemax_nb.train.outputs import SoftmaxOutput
from tests.helpers import normal

N_LABELS, WIDTH = 30, 8
COUNTS = np.random.default_rng(5).permutation(N_LABELS) + 1
LABELS = Labels(np.array([0, 2, 2, 5], np.int32), np.array([3, 7, 1, 2, 29], np.int32))
ALL = np.arange(N_LABELS, dtype=np.int32)


def sampling(sampler, **changes):
    plain = Sampling(sampler, n_samples=6, n_codewords=4, residual="uniform", correction="paper", mask_hits=False)
    return plain._replace(**changes)


def negatives_of(sampler, weights=None, **changes):
    weights = normal(1, N_LABELS, WIDTH) if weights is None else weights
    negatives = Negatives(sampling(sampler, **changes), weights, COUNTS, seed=3)
    if negatives.follows_weights:
        negatives.update()
    return negatives


def layer_with(sampler, **changes):
    layer = SoftmaxOutput(WIDTH, N_LABELS, "cpu")
    layer.weights[...] = normal(1, N_LABELS, WIDTH)
    layer.negatives = negatives_of(sampler, layer.weights, **changes)
    return layer


def test_fixed_samplers_know_the_frequencies():
    x = normal(2, 1, WIDTH)
    unigram, log_uniform, uniform = (
        np.exp(negatives_of(name).sampler.log_prob(x, ALL)[0]) for name in ("unigram", "log-uniform", "uniform")
    )
    np.testing.assert_allclose(unigram, COUNTS / COUNTS.sum(), rtol=1e-5)
    ranks = N_LABELS - COUNTS  # the counts are 1 to N_LABELS: the most frequent label has rank 0
    np.testing.assert_allclose(log_uniform, np.log((ranks + 2) / (ranks + 1)) / np.log(N_LABELS + 1), rtol=1e-5)
    np.testing.assert_allclose(uniform, 1 / N_LABELS, rtol=1e-5)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "none"])
def test_log_q_of_the_positives_is_that_of_the_sampler(sampler):
    x, negatives = normal(2, 3, WIDTH), negatives_of(sampler)
    ids, log_q, log_q_positives = negatives.draw(x, LABELS, step=0)
    row = np.array([0, 0, 2, 2, 2])
    np.testing.assert_allclose(log_q_positives, negatives.sampler.log_prob(x, ALL)[row, LABELS.indices], rtol=1e-4)
    np.testing.assert_allclose(log_q, negatives.sampler.log_prob(x, ids), rtol=1e-4)
    assert ids.shape == (3, 6) and len(np.unique(ids)) > 3


def test_rows_without_any_label_draw_nothing_to_compare():
    nothing = Labels(np.zeros(4, np.int32), np.zeros(0, np.int32))
    assert negatives_of("midx-rq").draw(normal(2, 3, WIDTH), nothing, step=0)[2].shape == (0,)


@pytest.mark.parametrize("sampler", ["lsh", "rff"])
def test_seed_makes_the_hashes_and_features(sampler):
    probabilities = []
    for seed in (3, 4):
        negatives = Negatives(sampling(sampler), normal(1, N_LABELS, WIDTH), COUNTS, seed)
        negatives.update()
        probabilities.append(negatives.sampler.log_prob(normal(2, 1, WIDTH), ALL))
    assert (probabilities[0] != probabilities[1]).any()


def test_every_step_draws_anew():
    layer, adam, seen = layer_with("uniform"), Adam(1e-3), []
    draw = layer.negatives.draw
    layer.negatives.draw = lambda *arguments: seen.append(draw(*arguments)) or seen[-1]
    for step in range(3):
        layer.step(normal(2, 3, WIDTH), LABELS, "softmax", adam, step)
    for number, (ids, *_) in enumerate(seen):
        assert (ids == layer.negatives.sampler.sample(normal(2, 3, WIDTH), 6, seed=3, step=number)[0]).all()
    assert (seen[0][0] != seen[1][0]).any() and (seen[1][0] != seen[2][0]).any()


@pytest.mark.parametrize("change", [{"correction": "importance"}, {"mask_hits": True}])
def test_options_of_the_loss_arrive_one_by_one(change):
    steps = [
        layer_with("uniform", n_samples=40, **more).step(normal(2, 3, WIDTH), LABELS, "softmax", Adam(), 0)
        for more in ({}, change)
    ]
    assert steps[0][0] != pytest.approx(steps[1][0], rel=1e-4)


def test_without_negatives_the_loss_is_exact():
    layer, x = SoftmaxOutput(WIDTH, N_LABELS, "cpu"), normal(2, 3, WIDTH)
    layer.weights[...] = normal(1, N_LABELS, WIDTH)
    matrix = scipy.sparse.csr_matrix((np.ones(5, np.float32), LABELS.indices, LABELS.indptr), (3, N_LABELS))
    want, want_dx, dweights, _ = softmax_cross_entropy(x, layer.weights.copy(), matrix)
    before = layer.weights.copy()
    value, dx = layer.step(x, matrix, "softmax", Adam(1e-3), 0)
    assert value == want and (dx == want_dx).all()
    np.testing.assert_allclose(layer.weights - before, -1e-3 * np.sign(dweights), rtol=1e-2)  # the first step of Adam


@pytest.mark.parametrize("sampler", MIDX_KINDS)
def test_an_index_of_zeros_is_built_anew_then_followed(sampler):
    """Output weights start at zero: codewords that are all alike lead nowhere."""
    weights = np.zeros((N_LABELS, WIDTH), np.float32)
    negatives = negatives_of(sampler, weights)
    weights[...] = normal(1, N_LABELS, WIDTH)
    assert negatives.update() == 1.0
    index = InvertedMultiIndex.build(weights, 4, MIDX_KINDS[sampler], seed=3, class_weights=COUNTS)
    assert (negatives.sampler.codes == index.codes).all()
    weights += np.float32(0.1) * normal(2, N_LABELS, WIDTH)
    assert negatives.update() == index.update(weights)
    for got, want in zip(negatives.sampler.codebooks, index.codebooks, strict=True):
        assert (got == want).all()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "none"])
@pytest.mark.parametrize("kind", [FixedFanIn, GroupSharedFanIn])
def test_sparse_weights_draw_as_dense_ones(sampler, kind):
    """Also after an update to new weights; before it, the weights of the last one count."""
    groups = (4,) if kind is GroupSharedFanIn else ()
    layer, x = kind.random(N_LABELS, WIDTH, 3, *groups, seed=1), normal(2, 3, WIDTH)
    of_layer, of_matrix = negatives_of(sampler, layer), negatives_of(sampler, layer.to_dense())
    for got, want in zip(of_layer.draw(x, LABELS, 4), of_matrix.draw(x, LABELS, 4), strict=True):
        np.testing.assert_array_equal(got, want)
    layer.values[...] = normal(3, N_LABELS, 3)
    for got, want in zip(of_layer.draw(x, LABELS, 4), of_matrix.draw(x, LABELS, 4), strict=True):
        np.testing.assert_array_equal(got, want)
    if of_layer.follows_weights:
        of_layer.update()
        changed = [
            (a != b).any() for a, b in zip(of_layer.draw(x, LABELS, 4), of_matrix.draw(x, LABELS, 4), strict=True)
        ]
        assert any(changed)


@pytest.mark.parametrize("sampler", ["midx-rq", "midx-pq", "sphere"])
def test_what_a_checkpoint_holds_draws_the_same(sampler):
    first, x = negatives_of(sampler), normal(2, 3, WIDTH)
    second = Negatives(first.sampling, normal(1, N_LABELS, WIDTH), COUNTS, seed=3)
    second.restore(first.arrays)
    for got, want in zip(second.draw(x, LABELS, 4), first.draw(x, LABELS, 4), strict=True):
        assert (got == want).all()
