"""Held-out rows of `DualTraining`, probabilities fitted to them, and thresholds chosen on them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import CoOccurrence, data, metrics
from sparsemax_nb.core.device import SIMULATOR, to_numpy
from sparsemax_nb.train import held_out, linear
from sparsemax_nb.train.calibration import Calibration, choose_decision, parse_measure
from sparsemax_nb.train.outputs import UNSEEN_SCORE

SETTINGS = linear.Settings(
    C=0.5,
    slack=0.2,
    frequency=0.05,
    co_occurrence=0.03,
    features_per_point=0.0,
    min_features=100,
    extra_features=0.0,
    epochs=5,
    seed=0,
)


@pytest.fixture(scope="module")
def corpus():
    return data.bag_of_words(n_rows=640, n_features=60, words_per_row=6, n_labels=25, labels_per_row=2, seed=1)


@pytest.fixture
def large(monkeypatch):
    """Sets of any size count as large: a tenth of the rows joins late."""
    monkeypatch.setattr(held_out, "SMALL_SET", 0)


def trained(corpus, device="cpu", settings=SETTINGS, rows=None, **options):
    rows = slice(None) if rows is None else rows
    x, y = corpus.features[rows].astype(np.float32), corpus.labels[rows].tocsr()
    training = linear.DualTraining(x, y, settings, device, held_out=True, **options)
    training.run(progress=False)
    return training


# ---------------------------------------------------------------- held-out rows


class Stop(Exception):
    """What ends a run early in these tests."""


def stop(*_):
    raise Stop


def test_late_rows_are_predicted_by_a_layer_that_was_not_trained_on_them(corpus, large, monkeypatch):
    """A layer trained on the other rows alone agrees. A small C converges fast, so that the order of the batches counts
    for little."""
    monkeypatch.setattr(held_out, "EPOCHS", 8)
    settings = replace(SETTINGS, C=0.05, co_occurrence=0.0, epochs=8)
    x, y = corpus.features, corpus.labels.tocsr()
    training = linear.DualTraining(x, y, replace(settings, epochs=16), held_out=True)
    with pytest.raises(Stop):
        training.run(progress=False, after_epoch=lambda epoch, _: epoch < 7 or stop())
    found, others = training.held_out, np.setdiff1d(np.arange(640), training.held_out.rows)
    assert len(found.rows) == 60 and len(others) == 580
    np.testing.assert_array_equal(found.n_points, np.bincount(y[others].indices, minlength=25)[found.ids])
    scores = []
    for rows in (others, np.arange(640)):
        other = linear.DualTraining(x[rows], y[rows], settings)
        other.run(progress=False)
        dense = np.zeros((60, 25), np.float32)
        np.put_along_axis(dense, *other.network.top_k(x[found.rows], 25)[::-1], axis=1)
        scores.append(np.take_along_axis(dense, found.ids, axis=1))
    from_honest, from_leaking = (np.abs(found.scores - other)[:, :3].mean() for other in scores)
    assert from_honest < 0.02 and from_honest < 0.5 * from_leaking


@pytest.mark.skipif(not SIMULATOR, reason="needs the simulator")
def test_late_rows_on_a_cuda_device(corpus, large):
    rows, settings = slice(0, 64), replace(SETTINGS, epochs=1)
    on_cpu, on_cuda = (trained(corpus, device, settings, rows).held_out for device in ("cpu", "cuda"))
    assert type(on_cuda.scores) is np.ndarray
    np.testing.assert_allclose(on_cpu.scores, on_cuda.scores, atol=1e-4)
    np.testing.assert_array_equal(on_cpu.ids[:, 0], on_cuda.ids[:, 0])
    np.testing.assert_array_equal(on_cpu.rows, on_cuda.rows)


def test_the_choice_of_features_does_not_know_the_late_rows(corpus, large):
    settings = replace(SETTINGS, min_features=4, extra_features=0.5, epochs=1)
    with_late = linear.DualTraining(corpus.features, corpus.labels, settings, held_out=True)
    early = with_late._row_ids[: with_late._n_early_rows]
    without = linear.DualTraining(corpus.features[early], corpus.labels[early], settings)
    np.testing.assert_array_equal(*((t.network.layer.weights.indptr) for t in (with_late, without)))
    np.testing.assert_array_equal(*((t.network.layer.weights.indices) for t in (with_late, without)))


def test_labels_get_features_from_late_rows(corpus, large):
    settings = replace(SETTINGS, min_features=4, features_per_point=0.1, extra_features=0.5)
    labels = corpus.labels.tolil()
    labels[linear.shuffled(640, 0, 0)[580:], :5] = 0  # the late rows have none of these labels
    training = linear.DualTraining(corpus.features, labels.tocsr(), settings, held_out=True)
    n_late, sizes = training._n_late_points(), []
    training.run(progress=False, after_epoch=lambda *_: sizes.append(np.diff(training.network.layer.weights.indptr)))
    assert 0 < (n_late > 0).sum() < 25
    np.testing.assert_array_equal(sizes[0], sizes[1])
    np.testing.assert_array_equal(sizes[1] < sizes[2], n_late > 0)
    np.testing.assert_array_equal(sizes[2], sizes[4])


def test_late_rows_join_the_training(corpus, large):
    """The trained layer comes to the same optimum as one that knew all rows from the start."""
    settings = replace(SETTINGS, C=0.05, epochs=12)
    layers = []
    for with_held_out in (False, True):
        training = linear.DualTraining(
            corpus.features.astype(np.float32), corpus.labels.tocsr(), settings, held_out=with_held_out
        )
        training.run(progress=False)
        layers.append(training.network.parameters["linear.values"])
    assert training.history.steps == 12 * 64 - 2 * len(training.held_out.rows) / 10 == training._total_steps
    np.testing.assert_allclose(*layers, atol=5e-3)


@pytest.mark.parametrize(("n_epochs", "joining"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (9, 2)])
def test_in_which_epoch_rows_join(corpus, large, n_epochs, joining):
    assert held_out.joining_epoch(n_epochs) == joining
    assert joining < n_epochs
    x, y = corpus.features[:64].astype(np.float32), corpus.labels[:64].tocsr()
    training = linear.DualTraining(x, y, replace(SETTINGS, epochs=n_epochs), held_out=True)
    for epoch in range(min(n_epochs, 6)):
        order, n_late = training._order_in(epoch).tolist(), held_out.n_late_batches(64, 1)
        assert n_late == 6 and len(order) == 64 - (n_late if epoch < joining else 0)
        assert (max(order[: 64 - n_late]) == 63 - n_late) == (epoch <= joining)
    training.run(progress=False)
    assert training.history.steps == training._total_steps


def test_a_label_of_late_rows_alone_is_unseen(corpus, large):
    rows = trained(corpus).held_out.rows
    column = np.zeros((640, 1), np.float32)
    column[rows[:3]] = 1
    more = replace(corpus, labels=scipy.sparse.hstack([corpus.labels, column]).tocsr())
    training = trained(more, settings=replace(SETTINGS, min_features=3))
    found = training.held_out
    np.testing.assert_array_equal(found.rows, rows)
    assert (found.scores[found.ids == 25] == UNSEEN_SCORE).all() and (found.n_points[found.ids == 25] == 0).all()
    assert (training.network.parameters["linear.labels"] == 25).any()  # its own features, from when its rows joined


def test_the_pairs_of_late_rows_do_not_count(corpus, large, monkeypatch):
    counted = []

    def count(labels, device):
        counted.append(labels.shape[0])
        return CoOccurrence(labels, device=device)

    monkeypatch.setattr(linear, "CoOccurrence", count)
    n_late = len(trained(corpus).held_out.rows)
    assert counted == [640 - n_late, 640]


@pytest.mark.parametrize("step", [(0, 63), (2, 57), (2, 58), (3, 1)])
def test_a_resumed_run_has_the_same_held_out_rows(corpus, large, step):
    """A checkpoint in the middle of an epoch: before, when and after the late rows join."""
    x, y = corpus.features[:64].astype(np.float32), corpus.labels[:64].tocsr()
    whole, saved = trained(corpus, rows=slice(0, 64)), []

    interrupted = linear.DualTraining(x, y, SETTINGS, held_out=True)

    def save():
        if (interrupted._position.epoch, interrupted._position.step) >= step:
            saved.append(interrupted.state())
            stop()

    with pytest.raises(Stop):
        interrupted.run(save=save, save_seconds=0, progress=False)
    resumed = linear.DualTraining(x, y, SETTINGS, held_out=True)
    resumed.restore(*saved[0])
    resumed.run(progress=False)
    for a, b in zip(whole.held_out, resumed.held_out, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(*(t.network.parameters["linear.values"] for t in (whole, resumed)))


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("scores", lambda a: a * np.float32(np.nan), "held_out/scores must be finite"),
        ("scores", lambda a: a[:-1], "held_out/scores must have shape"),
        ("ids", lambda a: a + 25, "held_out/ids must lie in"),
        ("n_points", lambda a: -1 - a, "held_out/n_points must not be negative"),
        ("rows", lambda a: a[::-1].copy(), "held_out/rows must be the rows that join last"),
    ],
)
def test_damaged_held_out_rows_are_refused(corpus, large, name, change, error):
    x, y = corpus.features[:64].astype(np.float32), corpus.labels[:64].tocsr()
    states, training = [], linear.DualTraining(x, y, SETTINGS, held_out=True)
    training.run(save=lambda: states.append(training.state()), progress=False)
    arrays, about = states[-1]
    arrays[f"held_out/{name}"] = change(arrays[f"held_out/{name}"])
    with pytest.raises(ValueError, match=error):
        linear.DualTraining(x, y, SETTINGS, held_out=True).restore(arrays, about)
    del arrays[f"held_out/{name}"]
    with pytest.raises(KeyError):
        linear.DualTraining(x, y, SETTINGS, held_out=True).restore(arrays, about)


def test_held_out_rows_are_in_the_memory_plan(corpus, large):
    training = linear.DualTraining(
        corpus.features, corpus.labels, replace(SETTINGS, features_per_point=0.1, min_features=4), held_out=True
    )
    counts = np.bincount(corpus.labels.indices, minlength=25)
    sizes = {"n_rows": 640, "n_features": 60, "n_labels": 25, "n_entries": corpus.features.nnz, "points": counts}
    sizes |= {"features_per_point": 0.1, "min_features": 4, "extra_features": 0.0, "n_pairs": 300}
    plans = [linear.memory(**sizes, held_out=with_held_out) for with_held_out in (False, True)]
    bytes_of = [{array.name: array.nbytes for array in plan.arrays} for plan in plans]
    assert plans[0].nbytes < plans[1].nbytes
    training.run(progress=False)
    lists = training.network.layer.arrays
    assert 4 * (len(lists.labels) + len(lists.values)) < 1.5 * bytes_of[1]["layer: lists of labels, weights"]


def test_a_budget_that_ends_before_the_rows_join(corpus, large):
    training = trained(corpus, budget_seconds=1e-9)
    assert training.history.stopped == "budget" and training.history.steps == 2
    assert len(training.held_out.rows) == 60


def test_a_small_set_is_split_into_folds(corpus):
    training = trained(corpus)
    found = training.held_out
    np.testing.assert_array_equal(np.sort(found.rows), np.arange(640))
    without = linear.DualTraining(corpus.features.astype(np.float32), corpus.labels.tocsr(), SETTINGS)
    without.run(progress=False)
    assert without.held_out is None
    np.testing.assert_array_equal(*(t.network.parameters["linear.values"] for t in (without, training)))
    others = np.sort(found.rows[128:])
    layer = linear.DualTraining(
        corpus.features[found.rows[128:]].astype(np.float32), corpus.labels[found.rows[128:]].tocsr(),
        replace(SETTINGS, epochs=3),
    )  # fmt: skip
    layer.run(progress=False)
    scores, ids = layer.network.top_k(corpus.features[found.rows[:128]].astype(np.float32), 20)
    np.testing.assert_array_equal(found.scores[:128], scores)
    np.testing.assert_array_equal(found.ids[:128], ids)
    counts = np.bincount(corpus.labels[others].tocsr().indices, minlength=25)
    np.testing.assert_array_equal(found.n_points[:128], counts[found.ids[:128]])


@pytest.mark.parametrize(("n", "wanted"), [(1, 0), (2, 2), (4, 4), (5, 5), (2000, 5), (4000, 3), (9999, 2)])
def test_how_many_folds(n, wanted):
    folds = held_out.folds(n)
    assert len(folds) == wanted
    for a, b in itertools.pairwise(folds):
        assert a.stop == b.start < b.stop <= n


@pytest.mark.parametrize(("n_rows", "n_held_out"), [(10_000, 1000), (30_000, 2000), (100_000, 5000), (10**7, 10_000)])
def test_how_many_rows_join_late(n_rows, n_held_out):
    assert held_out.n_late_batches(n_rows, 100) == n_held_out / 100


def test_a_single_row_has_no_others_to_train_on(corpus):
    found = trained(corpus, rows=slice(0, 1)).held_out
    assert found.scores.shape == found.ids.shape == found.n_points.shape == (0, 20) and found.rows.shape == (0,)
    empty = Calibration.fit(found.scores, found.ids, corpus.labels[:0], found.n_points)
    assert empty.probabilities(np.zeros((1, 2), np.float32), np.ones((1, 2), int)).tolist() == [[0.5, 0.5]]


# ---------------------------------------------------------------- probabilities


def predictions(n, seed=0, scale=1.0, shift=0.0, k=8):
    """Scores, ids, labels, points, and the true probability of each prediction."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.normal(size=(n, k)).astype(np.float32), axis=1)
    ids = np.argsort(rng.random((n, 40)), axis=1)[:, :k].astype(np.int32)
    n_points = np.arange(1, 41)[ids] ** 2
    z = 1.5 * scores + 0.4 * np.log(n_points) - 0.5 * np.log(np.arange(1, k + 1)) - 3
    truth = 0.9 / (1 + np.exp(-z)) ** 2
    is_right = rng.random((n, k)) < truth
    rows = np.repeat(np.arange(n), k).reshape(n, k)
    labels = scipy.sparse.csr_matrix((np.ones(is_right.sum()), (rows[is_right], ids[is_right])), shape=(n, 40))
    return (scale * scores + shift).astype(np.float32), ids, labels, n_points, truth


def expected_calibration_error(probabilities, is_right, bins=15):
    p, right = probabilities.ravel(), is_right.ravel()
    of_bin = np.minimum((p * bins).astype(int), bins - 1)
    return sum(abs((p - right)[of_bin == b].sum()) for b in range(bins)) / len(p)


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-3, 0), (50, -300), (1e6, 1e7)])
def test_probabilities_are_right_whatever_the_range_of_the_scores(scale, shift):
    """A logistic curve squared: the isotonic regression makes up for what the logistic one misses."""
    scores, ids, labels, n_points, _ = predictions(5000, 0, scale, shift)
    calibration = Calibration.fit(scores, ids, labels, n_points)
    scores, ids, labels, n_points, truth = predictions(5000, 1, scale, shift)
    found = calibration.probabilities(scores, n_points)
    assert found.dtype == np.float32 and found.shape == scores.shape and 0 < found.min() <= found.max() < 1
    assert expected_calibration_error(found, metrics.hits_at_k(ids, labels, 8)) < 0.015
    assert np.abs(found - truth).mean() < 0.02
    no_steps = Calibration(calibration.intercept, calibration.coefficients, np.empty(0), np.empty(0))
    worse = no_steps.probabilities(scores, n_points)
    assert np.abs(worse - truth).mean() > 1.2 * np.abs(found - truth).mean()


def test_unseen_labels_have_the_probability_0_and_do_not_count():
    scores, ids, labels, n_points, _ = predictions(1000)
    before = Calibration.fit(scores, ids, labels, n_points)
    padded = [
        np.hstack([a, np.full((1000, 2), value, a.dtype)]) for a, value in ((scores, UNSEEN_SCORE), (n_points, 0))
    ]
    ids = np.hstack([ids, np.full((1000, 2), [[40, 41]], ids.dtype)])
    labels.resize(1000, 42)
    after = Calibration.fit(padded[0], ids, labels, padded[1])
    np.testing.assert_array_equal(before.coefficients, after.coefficients)
    np.testing.assert_array_equal(before.values, after.values)
    assert (after.probabilities(*padded)[:, 8:] == 0).all() and (after.probabilities(*padded)[:, :8] > 0).all()
    nothing = after.probabilities(np.full((2, 3), UNSEEN_SCORE), np.zeros((2, 3), int))
    assert nothing.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("n_right", [0, 1, 3, 49, 50, 351, 352, 399, 400])
def test_few_right_or_wrong_predictions(n_right):
    scores, ids, _, n_points, _ = predictions(50)
    order = np.argsort(-scores, axis=None, kind="stable")[:n_right]
    labels = scipy.sparse.csr_matrix((np.ones(n_right), (order // 8, ids.ravel()[order])), shape=(50, 40))
    calibration = Calibration.fit(scores, ids, labels, n_points)
    found = calibration.probabilities(scores, n_points)
    assert np.isfinite(found).all() and 0 < found.min() <= found.max() < 1
    assert found.mean() == pytest.approx(n_right / 400, abs=0.01)
    assert (len(calibration.logits) > 0) == (50 <= n_right <= 350)
    if n_right in (0, 400):
        assert (found == np.float32((n_right + 1) / 402)).all()
    else:
        assert found.ravel()[order].mean() > found.mean()


def test_features_that_never_vary():
    scores, ids, labels, n_points, _ = predictions(500, k=1)
    calibration = Calibration.fit(scores, ids, labels, np.full_like(n_points, 7))
    assert (calibration.coefficients[1:4] == 0).all()
    again = calibration.probabilities(scores, np.full_like(n_points, 7))
    assert expected_calibration_error(again, metrics.hits_at_k(ids, labels, 1)) < 0.02


def test_arrays_are_written_and_read():
    scores, ids, labels, n_points, _ = predictions(1000)
    calibration = Calibration.fit(scores, ids, labels, n_points)
    again = Calibration.from_arrays({name: array.copy() for name, array in calibration.to_arrays().items()})
    np.testing.assert_array_equal(*(c.probabilities(scores, n_points) for c in (calibration, again)))


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("regression", lambda a: a[1:], "regression must have shape"),
        ("regression", lambda a: a * np.inf, "regression must be finite"),
        ("regression", lambda a: a.astype(np.float32), "regression must be float64"),
        ("logits", lambda a: a[::-1].copy(), "logits must increase"),
        ("logits", lambda a: np.repeat(a[:1], len(a)), "logits must increase"),
        ("logits", lambda a: a[1:], "values must have shape"),
        ("values", lambda a: a[::-1].copy(), "values must lie in"),
        ("values", lambda a: a + 1, "values must lie in"),
        ("values", lambda a: a - 1, "values must lie in"),
        ("values", lambda a: a * np.nan, "values must be finite"),
    ],
)
def test_damaged_arrays_are_refused(name, change, error):
    scores, ids, labels, n_points, _ = predictions(500)
    arrays = Calibration.fit(scores, ids, labels, n_points).to_arrays()
    assert len(arrays["calibration.logits"]) > 2
    arrays[f"calibration.{name}"] = change(arrays[f"calibration.{name}"])
    with pytest.raises((TypeError, ValueError), match=f"calibration.{error}"):
        Calibration.from_arrays(arrays)
    del arrays[f"calibration.{name}"]
    with pytest.raises(KeyError):
        Calibration.from_arrays(arrays)


def test_arguments_of_fit_are_checked():
    scores, ids, labels, n_points, _ = predictions(50)
    for changes in (
        {"scores": scores.astype(np.float64)},
        {"scores": scores * np.float32(np.nan)},
        {"ids": ids[:, 1:]},
        {"ids": ids + 33},
        {"labels": labels[1:]},
        {"n_points": n_points[1:]},
    ):
        with pytest.raises((TypeError, ValueError), match=next(iter(changes))):
            Calibration.fit(**{"scores": scores, "ids": ids, "labels": labels, "n_points": n_points} | changes)


# ---------------------------------------------------------------- thresholds


def sample_f1(probabilities, ids, labels, threshold, limit):
    total = 0
    for p, row_ids, row in zip(probabilities, ids, labels.toarray() > 0, strict=True):
        predicted = {label for label, q in zip(row_ids[:limit], p[:limit], strict=True) if q >= np.float32(threshold)}
        true = set(np.flatnonzero(row))
        total += 2 * len(predicted & true) / len(predicted | true | {None}) if not true else (
            2 * len(predicted & true) / (len(predicted) + len(true))
        )  # fmt: skip
    return total / len(ids)


def test_no_other_threshold_or_limit_has_a_better_f1():
    _, ids, labels, _, truth = predictions(60, k=4)
    probabilities = truth.astype(np.float32)
    threshold, limit = choose_decision(probabilities, ids, labels, "sample-f1")
    best = sample_f1(probabilities, ids, labels, threshold, limit)
    tried = itertools.product(np.arange(1, 100) / 100, range(1, 5))
    assert best == pytest.approx(max(sample_f1(probabilities, ids, labels, t, k) for t, k in tried))
    threshold, limit = choose_decision(probabilities, ids, labels, "f1@2")
    assert limit == 2
    tried = [sample_f1(probabilities, ids, labels, t, 2) for t in np.arange(1, 100) / 100]
    assert sample_f1(probabilities, ids, labels, threshold, 2) == pytest.approx(max(tried))


def test_a_precision_is_kept_by_the_lowest_threshold():
    _, ids, labels, _, truth = predictions(400)
    probabilities, is_right = truth.astype(np.float32), metrics.hits_at_k(ids, labels, 8)
    previous = 0.0
    for precision in (0.3, 0.5, 0.6, 0.7):
        threshold, limit = choose_decision(probabilities, ids, labels, f"precision={precision}")
        assert limit == 8 and threshold >= previous

        def reached(t):
            return is_right[probabilities >= t].sum() / ((probabilities >= t).sum() + 1)  # noqa: B023

        assert reached(np.float32(threshold)) >= precision
        lower = np.unique(probabilities[probabilities < np.float32(threshold)])
        assert all(reached(t) < precision for t in lower)
        previous = threshold
    assert choose_decision(probabilities, ids, scipy.sparse.csr_matrix(labels.shape), "precision=0.1") == (1.0, 8)


def test_measures():
    assert parse_measure("f1@12") == ("f1", 12) and parse_measure("precision=.75") == ("precision", 0.75)
    for wrong in ("", "f1", "f1@0", "f1@x", "precision=0", "precision=1", "precision=nan", "recall", None, 5):
        with pytest.raises(ValueError, match="threshold must be"):
            parse_measure(wrong)
    _, ids, labels, _, truth = predictions(10, k=4)
    assert choose_decision(truth.astype(np.float32), ids, labels, "f1@5")[1] == 4
    with pytest.raises(ValueError, match="number of rows"):
        choose_decision(np.empty((0, 4), np.float32), ids[:0], labels[:0], "sample-f1")


def test_held_out_rows_calibrate_a_layer(corpus):
    """From training to thresholds: probabilities that hold on points the layer has not seen."""
    new = data.bag_of_words(n_rows=5000, n_features=60, words_per_row=6, n_labels=25, labels_per_row=2, seed=1)
    training = trained(new, rows=slice(0, 2000))
    found = training.held_out
    calibration = Calibration.fit(found.scores, found.ids, new.labels[found.rows], found.n_points)
    x, y = new.features[2000:].astype(np.float32), new.labels[2000:]
    scores, ids = map(to_numpy, training.network.top_k(x, 20))
    n_points = np.bincount(new.labels[:2000].tocsr().indices, minlength=25)[ids]
    probabilities = calibration.probabilities(scores, n_points)
    assert expected_calibration_error(probabilities, metrics.hits_at_k(ids, y, 20)) < 0.02
    own = calibration.probabilities(found.scores, found.n_points)
    for measure in ("precision=0.7", "precision=0.9"):
        threshold, _ = choose_decision(own, found.ids, new.labels[found.rows], measure)
        reached = metrics.hits_at_k(ids, y, 20)[probabilities >= threshold].mean()
        assert reached == pytest.approx(float(measure.partition("=")[2]), abs=0.05)
