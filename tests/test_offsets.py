"""An offset that all scores of a row have in common changes neither loss nor gradient nor probabilities.

The scores are integers (for the largest offset multiples of 8), so that float32 holds them with the offset, too: then
only what is computed from them can lose digits.
"""

import numpy as np
import pytest

from sparsemax_nb import (
    DSoftmax,
    FullSoftmax,
    InvertedMultiIndex,
    Labels,
    PackedDSSoftmax,
    SVDSoftmax,
    ds_softmax,
    full_softmax,
    sampled_softmax,
    softmax_cross_entropy,
    target_ranks,
)
from sparsemax_nb.core.device import backend_of
from sparsemax_nb.core.experts import Experts, group

from .helpers import EPS, integers, normal

OFFSETS = 1e5, -(2.0**23), 1e8
B, L, D = 5, 23, 4


def unit(offset):
    """What float32 can tell apart near the offset."""
    return 8 if abs(offset) > 2**24 else 1


def problem(offset, n_rows=B):
    """h (B, D) and w (L, D) with integer logits; the last column of h adds a different offset to every row."""
    h, w = unit(offset) * integers(1, -1, 2, n_rows, D), integers(2, -1, 2, L, D)
    h[:, -1], w[:, -1] = offset + 1024 * np.arange(n_rows) * (offset != 0), 1
    return h, w


def without_offset(offset):
    h, w = problem(offset)
    h[:, -1] = 0
    return h, w


@pytest.fixture(params=OFFSETS, ids=lambda offset: f"{offset:g}")
def offset(request):
    return request.param


@pytest.mark.parametrize("held", [1 << 24, 28], ids=["held", "computed again"])
@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_cross_entropy(backend, monkeypatch, offset, held, several):
    monkeypatch.setattr(full_softmax, "MAX_ELEMENTS", held)
    monkeypatch.setattr(full_softmax, "MIN_ROWS", 4)
    targets = np.array([3, 0, 22, 7, 7], np.int32)
    if several:
        indptr = np.array([0, 3, 3, 4, 5, 7], np.int32)
        targets = Labels(indptr, np.array([3, 4, 20, 0, 22, 1, 7], np.int32))
    placed = Labels(*map(backend.array, targets)) if several else backend.array(targets)
    loss, dh, dw, dbias = softmax_cross_entropy(*map(backend.array, problem(offset)), placed)
    want, want_dh, want_dw, want_dbias = softmax_cross_entropy(*map(backend.array, without_offset(offset)), placed)
    assert loss == pytest.approx(want, rel=1e-6) and want > 1
    np.testing.assert_allclose(backend.numpy(dh), backend.numpy(want_dh), rtol=0, atol=1e-6)
    np.testing.assert_allclose(backend.numpy(dbias), backend.numpy(want_dbias), rtol=0, atol=1e-6)
    np.testing.assert_allclose(backend.numpy(dw)[:, :-1], backend.numpy(want_dw)[:, :-1], rtol=0, atol=1e-5)
    assert np.abs(backend.numpy(want_dbias)).max() > 0.1


def test_an_offset_in_the_bias(backend, offset):
    """All classes alike: the loss is log L whatever they have in common."""
    h, w, targets = np.ones((2, 4), np.float32), np.zeros((11, 4), np.float32), np.array([0, 3], np.int32)
    bias = np.full(11, offset, np.float32)
    loss, _, _, dbias = softmax_cross_entropy(*map(backend.array, (h, w, targets, bias)))
    assert loss == pytest.approx(np.log(11), rel=1e-6)
    assert float(dbias.sum()) == pytest.approx(0, abs=1e-6)


def test_target_ranks(backend, offset):
    targets = backend.array(np.array([3, 0, 22, 7, 7], np.int32))
    log_prob, rank = target_ranks(*map(backend.array, problem(offset)), targets)
    want, want_rank = target_ranks(*map(backend.array, without_offset(offset)), targets)
    np.testing.assert_allclose(backend.numpy(log_prob), backend.numpy(want), rtol=1e-6)
    np.testing.assert_array_equal(backend.numpy(rank), backend.numpy(want_rank))


@pytest.mark.parametrize("k", [3, L])
def test_probabilities_of_the_best(backend, offset, k):
    (h, w), (h0, w0) = problem(offset), without_offset(offset)
    p, ids = FullSoftmax(backend.array(w)).top_k(backend.array(h), k)
    want, want_ids = FullSoftmax(backend.array(w0)).top_k(backend.array(h0), k)
    np.testing.assert_allclose(backend.numpy(p), backend.numpy(want), rtol=2e-6)
    np.testing.assert_array_equal(backend.numpy(ids), backend.numpy(want_ids))


@pytest.mark.parametrize("k", [3, L])
def test_baselines(offset, k):
    """The offset lies in the bias: turned axes would round it."""
    h, w = without_offset(offset)
    bias = np.full(L, offset, np.float32)
    for make in (
        lambda b: SVDSoftmax(w, b, width=2, n_candidates=5),
        lambda b: DSoftmax(w, np.arange(L)[::-1].copy(), b, widths=(4, 4, 4)),
    ):
        p, _ = make(bias).top_k(h, k)
        want, _ = make(None).top_k(h, k)
        if make(None).__class__ is DSoftmax:  # scores are exact
            np.testing.assert_allclose(p, want, rtol=2e-6)
        assert p[:, :L].sum(1) == pytest.approx(np.ones(len(h)), abs=1e-5) if k == L else (p <= 1).all()


@pytest.mark.parametrize("mask_hits", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_sampled_softmax(backend, offset, mask_hits, shared):
    """Also the log-probabilities, which are no integers, keep their digits beside large scores."""
    ids = np.random.default_rng(3).integers(0, L, 6 if shared else (B, 6)).astype(np.int32)
    log_q, log_q_targets, targets = (
        -abs(normal(4, *ids.shape)) - 2,
        -abs(normal(5, B)) - 2,
        np.array([3, 0, 22, 7, 7], np.int32),
    )

    def gradients(h, w):
        arguments = map(backend.array, (h, w, targets, ids, log_q, log_q_targets))
        loss, dh, (_, dw) = sampled_softmax(*arguments, mask_hits=mask_hits)
        return loss, backend.numpy(dh), backend.numpy(dw)[:, :-1]

    (loss, *got), (want, *wanted) = gradients(*problem(offset)), gradients(*without_offset(offset))
    assert loss == pytest.approx(want, rel=1e-6)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_sampled_softmax_of_a_target_far_above_the_draws(backend):
    """What the row's scores are shifted by comes from the draws: the target's may lie anywhere."""
    h, w = np.ones((1, 1), np.float32), np.array([[1e8], [0], [8]], np.float32)
    targets, ids, log_q = np.zeros(1, np.int32), np.array([[1, 2]], np.int32), np.zeros((1, 2), np.float32)
    for scale, want in (1, 0), (-1, 1e8 + 8):
        arguments = map(
            backend.array, (h, (scale * w * [[1], [1], [scale]]).astype(np.float32), targets, ids, log_q, log_q[0, :1])
        )
        assert sampled_softmax(*arguments)[0] == pytest.approx(want, rel=1e-6)


def index_of(backend, residual, offset):
    """Codebooks of integers, whose last columns add the offset to the scores of both."""
    c0, c1 = (integers(seed, -1, 2, 6, D) for seed in (1, 2))
    c0[:, -1], c1[:, -1] = 1, 1
    codes = np.random.default_rng(3).integers(0, 6, (L, 2)).astype(np.int32)
    more = (np.arange(L) + 1.0,) if residual == "popularity" else (None,)
    codebooks = [backend.array(c) for c in (c0, c1)]
    h, _ = problem(offset) if offset else without_offset(offset)
    return InvertedMultiIndex(codebooks, backend.array(codes), "rq", residual, *more, None, None), h


@pytest.mark.parametrize("residual", ["uniform", "popularity"])
def test_index(backend, offset, residual):
    every = backend.array(np.arange(L, dtype=np.int32))
    index, h = index_of(backend, residual, offset)
    without = h.copy()
    without[:, -1] = 0
    log_q = backend.numpy(index.log_prob(backend.array(h), every))
    np.testing.assert_allclose(log_q, backend.numpy(index.log_prob(backend.array(without), every)), rtol=2e-6)
    np.testing.assert_allclose(np.exp(log_q).sum(1), 1, rtol=1e-5)
    ids, drawn = map(backend.numpy, index.sample(backend.array(h), 7, seed=1))
    want_ids, want = map(backend.numpy, index.sample(backend.array(without), 7, seed=1))
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(drawn, want, rtol=2e-6)


def test_index_whose_best_cells_are_empty(backend, offset):
    """The sums over the cells underflow at first and are computed again, relative to the largest: log Q stays exact."""
    c0, c1 = np.zeros((2, 3, D), np.float32)
    c0[:, 0], c1[:, 0], c0[:, -1], c1[:, -1] = [0, 0, 30], [0, 0, 30], 1, 1
    codes = np.array([[0, 0], [1, 0], [0, 1], [2, 0]] * 2, np.int32)  # none in cell (2, 2), (0, 2) and (1, 2)
    index = InvertedMultiIndex(
        [backend.array(c) for c in (c0, c1)], backend.array(codes), "rq", "uniform", None, None, None
    )
    h = np.zeros((1, D), np.float32)
    h[0, 0], h[0, -1] = 8, offset
    every = backend.array(np.arange(8, dtype=np.int32))
    log_q = backend.numpy(index.log_prob(backend.array(h), every))
    want = np.tile([-240, -240, -240, 0], 2) - np.log(2 + 6 * np.exp(-240.0))
    np.testing.assert_allclose(log_q[0], want, rtol=0, atol=240 * 4 * EPS)


def test_exact_index(backend, offset):
    h, w = problem(offset)
    every = backend.array(np.arange(L, dtype=np.int32))
    index = InvertedMultiIndex.build(backend.array(w), 3, residual="exact", n_iterations=1)
    log_q = backend.numpy(index.log_prob(backend.array(h), every))
    want = backend.numpy(index.log_prob(backend.array(without_offset(offset)[0]), every))
    np.testing.assert_allclose(log_q, want, rtol=2e-6)
    _, drawn = map(backend.numpy, index.sample(backend.array(h), 7, seed=1))
    assert (np.abs(drawn[:, :, None] - log_q[:, None]).min(-1) < 1e-5).all()


def experts_of(w, n_held):
    """One expert, whose gate value is 1, with some of the classes."""
    starts = np.array([0, n_held], np.int32)
    return np.zeros((1, D), np.float32), Experts(starts, np.arange(n_held, dtype=np.int32), w[:n_held].copy())


@pytest.mark.parametrize("at_once", [False, True])
def test_answers_of_experts(backend, monkeypatch, offset, at_once):
    monkeypatch.setattr(ds_softmax, "MIN_ROWS_PER_EXPERT", 1 if at_once else 9)
    h, w = problem(offset, 2)
    gate, experts = experts_of(w, L)
    packed = PackedDSSoftmax(backend.array(gate), *map(backend.array, experts), L)
    p, ids = map(backend.numpy, packed.top_k(backend.array(h), L))
    h[:, -1] = 0
    want, want_ids = map(backend.numpy, packed.top_k(backend.array(h), L))
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(p, want, rtol=2e-6)


@pytest.mark.parametrize("n_held", [L, L - 2], ids=["all", "two are absent"])
def test_loss_of_experts(backend, offset, n_held):
    """Where classes are absent, with the logit 0, an offset counts; there the loss of a held label is still right."""
    if offset < 0 and n_held < L:
        pytest.skip("absent classes, with the logit 0, have all probability")
    h, w = problem(offset)
    _, experts = experts_of(w, n_held)
    logits = unit(offset) * integers(1, -1, 2, B, n_held) + np.float32(offset)
    indptr, ids = np.array([0, 2, 2, 3, 4, 5], np.int32), np.array([3, 5, 20, 7, 1], np.int32)
    module = backend_of(backend.device, "sparse_experts")

    def run(scores):
        chosen, values = np.zeros(B, np.int32), np.full(B, 0.5, np.float32)
        groups = group(backend.array(chosen), backend.array(experts.starts))
        flat = backend.array(scores.reshape(-1))
        loss, dvalues, dscores = (backend.array(np.empty(n, np.float32)) for n in (B, B, flat.size))
        labels = Labels(backend.array(indptr), backend.array(ids))
        placed = Experts(*map(backend.array, experts))
        module.cross_entropy(
            flat, backend.array(values), labels, groups, placed, L, np.float32(1), loss, dvalues, dscores
        )
        return [backend.numpy(a) for a in (loss, dvalues, dscores)]

    got = run(logits)
    experts = experts._replace(starts=np.array([0, n_held], np.int32))
    relative = (logits - np.float32(offset)).astype(np.float64)
    log_p = 0.5 * relative - np.log(
        np.exp(0.5 * relative).sum(1, keepdims=True)
    )  # absent ones vanish beside the offset
    hot = np.zeros((B, n_held))
    for b in range(B):
        hot[b, ids[indptr[b] : indptr[b + 1]]] = 1
    dz = hot.sum(1, keepdims=True) * np.exp(log_p) - hot
    np.testing.assert_allclose(got[0], -(hot * log_p).sum(1), rtol=2e-6)
    np.testing.assert_allclose(got[1], (dz * relative).sum(1), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(got[2].reshape(B, -1), 0.5 * dz, rtol=0, atol=1e-6)
