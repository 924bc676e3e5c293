"""Sampled softmax: values, gradients, what is expected under the exact proposal, and bad input."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import Labels, UniformSampler, UnigramSampler, sampled_softmax
from sparsemax_nb.reference import sampled_softmax as reference

from .helpers import assert_close, close_to_derivative, normal, on_other_device

N_CLASSES, WIDTH = 40, 9


def problem(n_rows=7, n_samples=11, shared=False, several=False, seed=0):
    """Arguments of `sampled_softmax`; with `several`, rows have zero to three targets."""
    random = np.random.default_rng(seed)
    queries, classes = normal(seed, n_rows, WIDTH), normal(seed + 1, N_CLASSES, WIDTH)
    targets = random.integers(0, N_CLASSES, n_rows).astype(np.int32)
    sampler = UnigramSampler(random.random(N_CLASSES) + 0.1)
    ids, log_q = sampler.sample(queries, n_samples, seed=seed)
    if shared:
        ids, log_q = ids[0].copy(), log_q[0].copy()
    if several:
        counts = np.arange(2, 2 + n_rows) % 4
        chosen = np.concatenate([random.choice(N_CLASSES, n, replace=False) for n in counts]).astype(np.int32)
        targets = Labels(np.append(0, np.cumsum(counts)).astype(np.int32), chosen)
        ids[..., 0] = chosen[1]  # a hit of a row's second target
    log_q_targets = sampler.log_prob(queries[:1], targets.indices if several else targets)[0].copy()
    return queries, classes, targets, ids, log_q, log_q_targets


def on(backend, arguments):
    """The arguments on the backend's device."""
    return [Labels(*map(backend.array, a)) if isinstance(a, Labels) else backend.array(a) for a in arguments]


def wanted(queries, classes, targets, ids, log_q, log_q_targets, correction="paper", mask_hits=False, reduction="mean"):
    """The same in float64: loss, dqueries, dclasses (L, d)."""
    queries, classes = queries.astype(np.float64), classes.astype(np.float64)
    if correction == "importance":
        log_q, log_q_targets = log_q + np.log(ids.shape[-1]), np.zeros(len(log_q_targets))
    labels = targets if isinstance(targets, Labels) else Labels(np.arange(len(queries) + 1), targets)
    row, all_ids = (
        np.repeat(np.arange(len(queries)), np.diff(labels.indptr)),
        np.broadcast_to(ids, (len(queries), ids.shape[-1])),
    )
    scores = reference.scores(queries, classes, all_ids)
    target_scores = reference.scores(queries[row], classes, labels.indices[:, None])[:, 0]
    loss, dscores, dtargets = reference.softmax(scores, ids, log_q, target_scores, labels, log_q_targets, mask_hits)
    scale, weights = 1 / len(queries) if reduction == "mean" else 1, np.zeros((len(queries), N_CLASSES))
    np.add.at(weights, (np.arange(len(queries))[:, None], all_ids), scale * dscores)
    np.add.at(weights, (row, labels.indices), scale * dtargets)
    return loss.sum() * scale, weights @ classes, weights.T @ queries


OPTIONS = [
    {}, {"mask_hits": True}, {"correction": "importance"}, {"correction": "importance", "mask_hits": True},
    {"reduction": "sum"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_reference(backend, options, shared, several):
    arguments = problem(shared=shared, several=several)
    loss, dqueries, (ids, dclasses) = sampled_softmax(*on(backend, arguments), **options)
    want_loss, want_dqueries, want_dclasses = wanted(*arguments, **options)
    touched = np.unique(np.concatenate([arguments[2].indices if several else arguments[2], arguments[3].reshape(-1)]))
    np.testing.assert_array_equal(backend.numpy(ids), touched)
    assert backend.numpy(ids).dtype == np.int32
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert_close(backend.numpy(dqueries), want_dqueries, 12 * WIDTH)
    assert_close(backend.numpy(dclasses), want_dclasses[touched], 12 * WIDTH)
    assert not np.delete(want_dclasses, touched, axis=0).any()


@pytest.mark.quick
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("several", [False, True])
def test_reference_is_the_derivative_of_its_loss(options, several):
    queries, classes, *rest = problem(several=several)
    queries, classes, random = queries.astype(np.float64), classes.astype(np.float64), np.random.default_rng(5)
    _, dqueries, dclasses = wanted(queries, classes, *rest, **options)
    close_to_derivative(lambda q: wanted(q, classes, *rest, **options)[0], queries, dqueries, random)
    close_to_derivative(lambda c: wanted(queries, c, *rest, **options)[0], classes, dclasses, random)


def test_several_targets_are_as_many_rows(backend):
    """Each target of a row counts as a row of its own with the same query and draws."""
    queries, classes, labels, ids, log_q, log_q_targets = problem(several=True)
    row = np.repeat(np.arange(len(queries)), np.diff(labels.indptr))
    apart = queries[row], classes, labels.indices, ids[row], log_q[row], log_q_targets
    options = {"mask_hits": True, "reduction": "sum"}
    loss, dqueries, (touched, dclasses) = sampled_softmax(*on(backend, apart), **options)
    arguments = on(backend, (queries, classes, labels, ids, log_q, log_q_targets))
    got_loss, got_dqueries, (got_touched, got_dclasses) = sampled_softmax(*arguments, **options)
    kept = np.isin(
        backend.numpy(got_touched), backend.numpy(touched)
    )  # the draws of rows without targets have no gradient
    assert got_loss == pytest.approx(loss, rel=1e-6) and not backend.numpy(got_dclasses)[~kept].any()
    summed = np.zeros(queries.shape)
    np.add.at(summed, row, backend.numpy(dqueries).astype(np.float64))
    assert_close(backend.numpy(got_dqueries), summed, 12 * WIDTH)
    assert_close(backend.numpy(got_dclasses)[kept], backend.numpy(dclasses).astype(np.float64), 12 * WIDTH)


def test_labels_of_scipy_are_targets():
    queries, classes, labels, *rest = problem(several=True)
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(labels.indices)), labels.indices, labels.indptr), (len(queries), N_CLASSES)
    )
    first, again = (sampled_softmax(queries, classes, targets, *rest) for targets in (labels, matrix))
    assert first[0] == again[0] and (first[1] == again[1]).all()


def test_same_bits_again(backend):
    arguments = [backend.array(a) for a in problem(n_rows=20, n_samples=50)]
    first, again = sampled_softmax(*arguments), sampled_softmax(*arguments)
    assert first[0] == again[0]
    for a, b in zip((first[1], *first[2]), (again[1], *again[2]), strict=True):
        np.testing.assert_array_equal(backend.numpy(a), backend.numpy(b))


def full_gradient(query, classes, target):
    score = classes @ query
    probability = np.exp(score - score.max())
    probability /= probability.sum()
    return (probability - (np.arange(len(classes)) == target)) @ classes, np.log(probability)


@pytest.mark.parametrize("n_samples", [1, 4])
def test_paper_correction_under_the_exact_sampler(n_samples):
    """The mean gradient is M / (M + 1) times the full one."""
    check_mean_gradient(n_samples, n_samples / (n_samples + 1), correction="paper")


def test_importance_correction_tends_to_the_full_gradient():
    check_mean_gradient(800, 1.0, correction="importance", mask_hits=True, bias=0.005)


def check_mean_gradient(n_samples, factor, bias=0.0, **options):
    n_rows = 200_000 // max(n_samples, 4)
    query, classes, target = normal(1, WIDTH) / 2, normal(2, N_CLASSES, WIDTH), 3
    full, log_p = full_gradient(query.astype(np.float64), classes, target)
    ids = np.random.default_rng(3).choice(N_CLASSES, (n_rows, n_samples), p=np.exp(log_p)).astype(np.int32)
    _, dqueries, _ = sampled_softmax(
        np.tile(query, (n_rows, 1)), classes, np.full(n_rows, target, np.int32), ids, log_p.astype(np.float32)[ids],
        np.full(n_rows, log_p[target], np.float32), reduction="sum", **options,
    )  # fmt: skip
    error = dqueries.std(axis=0) / np.sqrt(n_rows)
    assert (error < 0.05 * np.abs(full).max()).all(), "too few draws to see anything"
    assert (np.abs(dqueries.mean(axis=0) - factor * full) < 4 * error + bias * np.abs(full).max()).all()
    assert (np.abs(dqueries.mean(axis=0) - 1.2 * factor * full) > 4 * error).any(), "another factor would be noticed"


def test_all_draws_hit_the_target(backend):
    """With masking nothing is left but the target: no loss, no gradient."""
    queries, classes, targets, ids, log_q, log_q_targets = problem(n_rows=2)
    ids[:] = targets[:, None]
    arguments = map(backend.array, (queries, classes, targets, ids, log_q, log_q_targets))
    loss, dqueries, (touched, dclasses) = sampled_softmax(*arguments, mask_hits=True)
    assert loss == 0 and not backend.numpy(dqueries).any() and not backend.numpy(dclasses).any()
    np.testing.assert_array_equal(backend.numpy(touched), np.unique(targets))


def test_no_rows(backend):
    queries, classes, targets, ids, log_q, log_q_targets = problem()
    none = queries[:0], classes, targets[:0], ids[:0], log_q[:0], log_q_targets[:0]
    loss, dqueries, (touched, dclasses) = sampled_softmax(*map(backend.array, none))
    assert (loss, dqueries.shape, touched.shape, dclasses.shape) == (0, (0, WIDTH), (0,), (0, WIDTH))


def test_importance_does_not_ask_for_log_q_of_the_targets(backend):
    """A class that the sampler never draws may still be a target."""
    queries, classes, targets, ids, log_q, log_q_targets = problem()
    calls = [
        sampled_softmax(*map(backend.array, (queries, classes, targets, ids, log_q, q)), correction="importance")
        for q in (log_q_targets, np.full_like(log_q_targets, -np.inf))
    ]
    assert calls[0][0] == calls[1][0] and (backend.numpy(calls[0][1]) == backend.numpy(calls[1][1])).all()


def test_large_scores_do_not_overflow(backend):
    queries, *rest = problem()
    arguments = (queries * 100, *rest)
    loss, dqueries, _ = sampled_softmax(*map(backend.array, arguments))
    assert loss == pytest.approx(wanted(*arguments)[0], rel=1e-5) and np.isfinite(backend.numpy(dqueries)).all()


def spoiled(place, change):
    arguments = list(problem())
    arguments[place] = change(arguments[place].copy())
    return arguments


def put(value):
    def change(array):
        array.reshape(-1)[1] = value
        return array

    return change


@pytest.mark.parametrize(
    ("place", "change", "error", "message"),
    [
        (0, put(np.nan), ValueError, r"h must be finite, got nan at \[0, 1\]"),
        (1, lambda a: np.full_like(a, np.nan), ValueError, "weights must be finite"),
        (0, lambda a: a.astype(np.float64), TypeError, "h must be float32, got float64"),
        (0, lambda a: a[:, :5].copy(), ValueError, rf"h must have shape \(B, {WIDTH}\), got \(7, 5\)"),
        (2, put(-1), ValueError, rf"targets must lie in \[0, {N_CLASSES}\), got -1"),
        (2, put(N_CLASSES), ValueError, rf"targets must lie in \[0, {N_CLASSES}\), got {N_CLASSES}"),
        (2, lambda a: a[:3].copy(), ValueError, r"targets must have shape \(7,\)"),
        (3, put(N_CLASSES), ValueError, rf"ids must lie in \[0, {N_CLASSES}\), got {N_CLASSES}"),
        (3, lambda a: a.astype(np.float64), TypeError, "ids must hold integers, got float64"),
        (3, lambda a: a[:, :0].copy(), ValueError, "the number of samples"),
        (4, put(-np.inf), ValueError, "log_q must be finite"),
        (4, lambda a: a[:, :3].copy(), ValueError, "log_q must have shape"),
        (5, put(-np.inf), ValueError, r"log_q_targets must be finite, got -inf at \[1\]"),
    ],
)
def test_bad_arguments(backend, place, change, error, message):
    with pytest.raises(error, match=message):
        sampled_softmax(*map(backend.array, spoiled(place, change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: np.where(i == i[0], N_CLASSES, i), rf"targets must hold ids in \[0, {N_CLASSES}\), got {N_CLASSES}"),
        (lambda i: np.full_like(i, 3), "targets must not repeat a label inside one row"),
        (lambda i: i[:-1].copy(), "targets.indptr must rise from 0"),
    ],
)
def test_bad_labels(backend, change, message):
    queries, classes, labels, *rest = problem(several=True)
    bad = labels._replace(indices=change(labels.indices).astype(np.int32))
    with pytest.raises(ValueError, match=message):
        sampled_softmax(*on(backend, (queries, classes, bad, *rest)))


def test_bad_options_and_placement(backend):
    arguments = [backend.array(a) for a in problem()]
    with pytest.raises(ValueError, match="correction must be one of 'paper', 'importance', got 'none'"):
        sampled_softmax(*arguments, correction="none")
    with pytest.raises(ValueError, match="reduction must be one of"):
        sampled_softmax(*arguments, reduction="max")
    arguments[4] = on_other_device(backend, problem()[4])
    with pytest.raises(TypeError, match="one device"):
        sampled_softmax(*arguments)


def test_uniform_sampler_gives_the_plain_softmax_of_the_draws():
    """Log-probabilities that are all equal cancel: torch-style cross-entropy over [target, draws]."""
    queries, classes, targets, *_ = problem()
    sampler = UniformSampler(N_CLASSES)
    ids, log_q = sampler.sample(queries, 5, seed=2)
    loss, _, _ = sampled_softmax(queries, classes, targets, ids, log_q, sampler.log_prob(queries, targets)[0])
    logits = np.einsum("bd,bmd->bm", queries, classes[np.concatenate([targets[:, None], ids], axis=1)])
    assert loss == pytest.approx((np.log(np.exp(logits).sum(1)) - logits[:, 0]).mean(), rel=1e-5)
