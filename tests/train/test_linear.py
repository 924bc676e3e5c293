"""`Classifier(architecture="linear")`: what it chooses, keeps, resumes and refuses."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import CoOccurrence, SparseLinear, data, rerank, train
from sparsemax_nb.cli import main
from sparsemax_nb.core import checkpoint, sparse
from sparsemax_nb.cpu import linear as cpu_linear
from sparsemax_nb.feature_choice import rows_of
from sparsemax_nb.train import linear, linear_settings

SMALL = {
    "architecture": "linear",
    "C": 0.5,
    "slack": 0.2,
    "frequency": 0.05,
    "min_features": 5,
    "features_per_point": 0.0,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def corpus():
    return data.bag_of_words(n_rows=300, n_features=60, words_per_row=6, n_labels=25, labels_per_row=2, seed=1)


def fitted(corpus, **changes):
    return train.Classifier(**SMALL | changes).fit(corpus.features, corpus.labels)


def bits(model):
    return {name: array.tobytes() for name, array in model.network_.parameters.items()}


def test_it_learns_and_is_what_sparse_features_get(corpus):
    model = train.Classifier(device="cpu", progress=False).fit(corpus.features[:250], corpus.labels[:250])
    assert model.architecture_ == "linear" and model.slack_ in linear_settings.GRID_SLACK
    assert {"C", "slack", "frequency", "nDCG@5"} == model.trials_[0].keys()
    best = max(trial["nDCG@5"] for trial in model.trials_)
    assert any(
        trial["nDCG@5"] >= best * (1 - 3 * linear_settings.MIN_GAIN) - 3 * linear_settings.MIN_GAIN_ROWS / 250
        and trial["slack"] == model.slack_
        and trial["C"] / 1.42 < model.C_ < trial["C"] * 1.42
        for trial in model.trials_
    )
    assert model.score(corpus.features[250:], corpus.labels[250:]) > 0.8
    assert np.diff(model.history_.losses[1:]).max() < 0.1 and len(model.history_.epochs) == 5
    dense = train.Classifier(device="cpu", progress=False, epochs=1, intermediate=64, fan_in=4)
    assert dense.fit(corpus.features.toarray(), corpus.labels).architecture_ == "network"


def test_more_passes_come_closer_to_the_optimum(corpus):
    """The dual variables of a long run are those of the minimum: one pass more changes next to nothing."""
    a, b = fitted(corpus, epochs=200), fitted(corpus, epochs=201)
    np.testing.assert_allclose(
        a.network_.parameters["linear.values"], b.network_.parameters["linear.values"], atol=1e-5
    )


def test_extra_features_come_from_errors(corpus):
    few, more = (fitted(corpus, features_per_point=0.0, min_features=3, extra_features=x) for x in (0.0, 1.0))
    assert few.network_.layer.n_weights < more.network_.layer.n_weights <= 2 * few.network_.layer.n_weights + 25
    assert more.score(corpus.features, corpus.labels) > few.score(corpus.features, corpus.labels)


def test_a_validation_set_is_what_c_and_slack_are_chosen_by(corpus):
    held = corpus.features[250:], corpus.labels[250:]
    model = train.Classifier(**SMALL | {"C": "auto", "slack": "auto"})
    model.fit(corpus.features[:250], corpus.labels[:250], validation=held)
    assert model.history_.epochs[-1]["validation"]["P@1"] == model.score(*held)
    assert max(t["nDCG@5"] for t in model.trials_) == pytest.approx(
        train.Classifier(**SMALL | {"C": model.C_, "slack": model.slack_, "epochs": 3})
        .fit(corpus.features[:250], corpus.labels[:250]).evaluate(*held, ks=[5])["nDCG@5"], abs=0.03,
    )  # fmt: skip


def test_answers_add_the_frequency_and_training_does_not(corpus):
    without, model = (fitted(corpus, frequency=f, co_occurrence=0) for f in (0, 0.05))
    assert bits(without) == bits(model) and without.network_.prior is None
    (scores, ids), (more, others) = (m.top_k(corpus.features, 25) for m in (without, model))
    logs = 0.05 * np.log(model.label_counts_)
    np.testing.assert_allclose(
        np.take_along_axis(more, np.argsort(others), 1),
        np.take_along_axis(scores, np.argsort(ids), 1) + logs,
        atol=1e-6,
    )
    assert (ids != others).any()


def test_answers_are_reranked_by_co_occurrence_and_training_is_not(corpus):
    without, model = fitted(corpus, co_occurrence=0), fitted(corpus, co_occurrence=0.5)
    assert bits(without) == bits(model) and without.network_.pairs is None
    best = without.top_k(corpus.features, linear.CANDIDATES)
    scores, ids = rerank(*best, CoOccurrence(corpus.labels), weight=0.5)
    assert (ids != best[1]).any()
    for k in (1, 5, linear.CANDIDATES, 25):  # what comes first does not depend on how many are asked for
        some = min(k, linear.CANDIDATES)
        got = model.top_k(corpus.features, k)
        np.testing.assert_array_equal(got[1][:, :some], ids[:, :some])
        np.testing.assert_array_equal(got[0][:, :some], scores[:, :some])
        assert (np.diff(got[0]) <= 0).all()
    np.testing.assert_array_equal(got[1][:, some:], without.predict(corpus.features, 25)[:, some:])


def test_frequency_is_chosen_where_words_say_little():
    """Words tell nothing; three labels are frequent."""
    rng = np.random.default_rng(0)
    x = scipy.sparse.csr_matrix(rng.random((300, 40)) < 0.1, dtype=np.float32)
    y = data.power_law_labels(300, 60, 2, 1.5, seed=0)
    chosen = train.Classifier(**SMALL | {"frequency": "auto"}).fit(x, y)
    assert chosen.frequency_ == max(linear_settings.FREQUENCIES) and chosen.trials_[0]["frequency"] == chosen.frequency_


def test_c_lies_at_the_vertex_of_the_parabola():
    highest = 0.3
    assert linear_settings._vertex(*(7 - 2 * (at - highest) ** 2 for at in (-1, 0, 1))) == pytest.approx(highest)
    assert linear_settings._vertex(1.0, 1.0, 0.0) == -0.5
    assert linear_settings._vertex(1.0, 1.0, 1.0) == linear_settings._vertex(None, 1.0, 0.0) == 0
    assert linear_settings._vertex(0.0, 1.0, 1.0005) == 0.5


def test_climbing_stops_where_no_neighbour_is_better_enough():
    figures = {1: 0.3, 2: 0.5, 3: 0.5009, 4: 0.9, 5: 0.2}

    def beats(one, other):
        return one > other + 0.001

    assert [linear_settings.climb((1, 2, 3, 4, 5), start, figures.get, beats) for start in figures] == [2, 2, 4, 4, 4]


def test_only_what_is_wanted_is_chosen(corpus):
    model = fitted(corpus, C="auto", slack=0.15)
    assert model.slack_ == 0.15 and {trial["slack"] for trial in model.trials_} == {0.15}
    assert fitted(corpus).trials_ == []


def test_same_seed_same_bits_and_other_seeds_others(corpus):
    assert bits(fitted(corpus)) == bits(fitted(corpus)) != bits(fitted(corpus, seed=1))


def test_save_and_load(corpus, tmp_path):
    model, names = fitted(corpus), [f"label {i}" for i in range(25)]
    model.save(tmp_path / "m", names)
    again = train.Classifier.load(tmp_path / "m", device="cpu")
    assert bits(again) == bits(model) and again.label_names_ == names
    assert (again.C_, again.slack_, again.architecture_) == (0.5, 0.2, "linear")
    for got, want in zip(again.top_k(corpus.features), model.top_k(corpus.features), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("linear.labels", lambda a: a + 25, "linear.labels must lie in"),
        ("linear.labels", lambda a: a[::-1].copy(), "must ascend within a feature"),
        ("linear.indptr", lambda a: a[::-1].copy(), "linear.indptr must rise"),
        ("linear.dense", lambda a: np.where(a >= 0, a + 1, a), "must agree"),
        ("linear.values", lambda a: a[:-1], "must agree"),
        ("linear.values", lambda a: a * np.nan, "must be finite"),
        (
            "linear.values",
            lambda a: np.where(np.arange(len(a)) == len(a) - 1, np.float32(1), a),
            "must be zero in the padding",
        ),
        ("linear.bias", lambda a: a[:-1], "linear.bias must have shape"),
        ("co_occurrence.ids", lambda a: a * 0, "co_occurrence.ids must ascend"),
        ("co_occurrence.ids", lambda a: np.r_[a[1], a[0], a[2:]].astype(np.int32), "co_occurrence.ids must ascend"),
        ("co_occurrence.ids", lambda a: a + 25, "co_occurrence.ids must lie in"),
        ("co_occurrence.counts", lambda a: a - a.max(), "co_occurrence.counts must lie between 1 and"),
        ("co_occurrence.counts", lambda a: a + 300, "co_occurrence.counts must lie between 1 and"),
        ("co_occurrence.label_counts", lambda a: a + 300, "co_occurrence.label_counts must lie in"),
        ("co_occurrence.n_rows", lambda a: a - 400, "co_occurrence.n_rows must be"),
        ("co_occurrence.counts", lambda a: a[:-1], "co_occurrence.counts must have shape"),
        ("co_occurrence.indptr", lambda a: a[:-1], "co_occurrence.indptr must have shape"),
    ],
)
def test_damaged_files(corpus, tmp_path, name, change, message):
    fitted(corpus).save(tmp_path / "m")
    arrays, about = checkpoint.load(tmp_path / "m", "classifier")
    checkpoint.save(tmp_path / "bad", "classifier", dict(arrays) | {name: change(arrays[name])}, about)
    with pytest.raises(train.ModelFileError, match=message):
        train.Classifier.load(tmp_path / "bad")


@pytest.mark.parametrize("steps", [3, 64, 65, 200])
def test_a_resumed_run_comes_to_the_same_bits(corpus, tmp_path, monkeypatch, steps):
    whole, path = fitted(corpus), tmp_path / "c"
    counted = itertools.count(1)
    step = linear.DualTraining._step

    def stop(self):
        step(self)
        if next(counted) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(linear.DualTraining, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train.Classifier(**SMALL).fit(corpus.features, corpus.labels, checkpoint_path=path, checkpoint_seconds=0)
    monkeypatch.undo()
    model = train.Classifier(**SMALL)
    model.fit(corpus.features, corpus.labels, checkpoint_path=path, resume=True)
    assert bits(model) == bits(whole) and model.history_.losses == whole.history_.losses
    with pytest.raises(train.ModelFileError, match="C was 0.5, not 0.7"):
        train.Classifier(**SMALL | {"C": 0.7}).fit(corpus.features, corpus.labels, checkpoint_path=path, resume=True)


def test_a_budget_ends_the_run_which_goes_on_with_more(corpus, tmp_path, ticking):
    model = fitted(corpus, budget_seconds=1e-9)
    assert model.history_.stopped == "budget" and len(model.history_.epochs) == 1
    model.predict(corpus.features)
    path, whole = tmp_path / "c", fitted(corpus)
    few = train.Classifier(**SMALL | {"budget_seconds": 1e-9}).fit(corpus.features, corpus.labels, checkpoint_path=path)
    assert few.history_.steps < whole.history_.steps
    again = train.Classifier(**SMALL).fit(corpus.features, corpus.labels, checkpoint_path=path, resume=True)
    assert bits(again) == bits(whole) and again.history_.losses == whole.history_.losses


@pytest.mark.parametrize("slack", [0, 0.001])
def test_without_slack_only_labels_with_a_score_are_looked_at(corpus, slack, monkeypatch):
    looked, kernel = [], cpu_linear._active

    def count(*arguments):
        active, entries = kernel(*arguments)
        looked.append(active.ends.max())
        return active, entries

    monkeypatch.setattr(cpu_linear, "_active", count)
    empty = scipy.sparse.vstack([corpus.features, scipy.sparse.csr_matrix((300, 60), dtype=np.float32)]).tocsr()
    y = scipy.sparse.vstack([corpus.labels, scipy.sparse.csr_matrix((300, 25))]).tocsr()
    model = train.Classifier(**SMALL | {"slack": slack}).fit(empty, y)
    layer, rows = model.network_.layer, rows_of(empty[300:])
    active, _ = kernel(
        rows,
        sparse.Labels(*linear.csr_slice(y, slice(300, 600))[:2]),
        linear.no_duals(300),
        layer.arrays,
        slack,
        [16, 16],
    )
    assert looked and (active.ends == 0).all()


def test_the_command_line_trains_it_by_default(corpus, tmp_path, capsys):
    for part, rows in ("train", slice(0, 200)), ("dev", slice(200, 250)), ("test", slice(250, 300)):
        data.write_xc(tmp_path / f"{part}.txt", corpus.features[rows], corpus.labels[rows])
    files = ["--save", str(tmp_path / "m.st"), "--plot", str(tmp_path / "p.png"), "--json", str(tmp_path / "f.json")]
    for more in [], ["--validation", "none", "--C", "0.5", "--slack", "auto", "--epochs", "2"]:
        assert (
            main.main(["train", "classifier", "--data", str(tmp_path), "--device", "cpu", "--quiet", *files, *more])
            == 0
        )
    assert "loss" in capsys.readouterr().out and (tmp_path / "p.png").exists()
    assert train.Classifier.load(tmp_path / "m.st").C_ == 0.5
    assert main.main(["train", "classifier", "--data", str(tmp_path), "--quiet", "--fan-in", "3"]) == 2
    assert "fan_in must keep its default" in capsys.readouterr().err


SETTINGS = linear.Settings(
    C=0.5,
    slack=0.2,
    frequency=0.0,
    co_occurrence=0.3,
    features_per_point=0.0,
    min_features=5,
    extra_features=0.5,
    epochs=3,
    seed=0,
)


def training(corpus, rows=slice(None), sample_weight=None, lists=None, n_points=None, **changes):
    """A `DualTraining` on some of the rows, before its first step."""
    x, y = corpus.features[rows].astype(np.float32), corpus.labels[rows].astype(np.float32)
    weights = None if sample_weight is None else np.asarray(sample_weight, np.float32)
    settings = dataclasses.replace(SETTINGS, **changes)
    return linear.DualTraining(x, y, settings, lists=lists, n_points=n_points, sample_weight=weights)


def result(run):
    """The bits of all that a `DualTraining` learns, and the losses of its epochs."""
    run.run(progress=False)
    network = run.network
    arrays = [*network.layer.arrays, *network.pairs.arrays[:4]]
    return [array.tobytes() for array in arrays], run.history.losses, [e["loss_std"] for e in run.history.epochs]


def test_rows_of_weight_zero_are_as_good_as_removed(corpus):
    """The same bits, with all that is counted and chosen; a label that has no other points is unseen."""
    weights = np.arange(300) % 4
    weights[corpus.labels[:, 7].toarray().reshape(-1) > 0] = 0
    rows = np.flatnonzero(weights)
    assert 0 < len(rows) < 250
    zeros = training(corpus, sample_weight=weights)
    assert zeros.network.layer.bias[7] == linear.UNSEEN_SCORE
    assert result(zeros) == result(training(corpus, rows, weights[rows]))
    assert result(training(corpus, sample_weight=weights > 0)) == result(training(corpus, rows))


def test_weights_are_factors_of_c(corpus):
    """Of the same steps; and a loss is the mean over the rows, not a sum of weights."""
    twice = result(training(corpus, sample_weight=np.full(300, 2), C=0.25))
    assert twice == result(training(corpus)) != result(training(corpus, C=0.25))


def test_a_weight_is_worth_as_many_rows(corpus):
    """After enough epochs, with the same features."""
    weights = np.arange(60) % 3
    repeated = np.repeat(np.arange(60), weights)
    connections = scipy.sparse.csr_matrix(np.ones((25, 60), np.float32))
    options = {"C": 0.1, "epochs": 60, "extra_features": 0.0, "n_points": np.ones(25, np.int64)}
    values = []
    for rows, sample_weight in (slice(60), weights), (repeated, None), (slice(60), None):
        lists = SparseLinear(connections).arrays
        lists.values[:] = 0
        run = training(corpus, rows, sample_weight, lists, **options)
        run.run(progress=False)
        values.append(run.network.layer.weights.toarray())
    np.testing.assert_allclose(values[0], values[1], atol=1e-4)
    assert np.abs(values[0] - values[2]).max() > 0.03


def test_a_run_with_weights_goes_on_from_a_checkpoint(corpus):
    weights = np.random.default_rng(0).random(300)
    first, again, whole = (training(corpus, sample_weight=weights) for _ in range(3))
    for _ in range(10):
        first._step()
    again.restore(*first.state())
    assert result(again) == result(whole) != result(training(corpus))


def test_trials_train_with_the_weights(corpus):
    def chosen(rows=slice(None), sample_weight=None):
        x, y = corpus.features[rows].astype(np.float32), corpus.labels[rows].astype(np.float32)
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float32)
        wanted = ["C", "frequency"]
        return linear_settings.choose_settings(x, y, SETTINGS, wanted=wanted, sample_weight=weights)

    weights = np.arange(300) % 4
    rows = np.flatnonzero(weights)
    assert chosen(sample_weight=weights) == chosen(rows, weights[rows]) != chosen(rows)
    assert chosen(rows, weights[rows] > 0) == chosen(rows)


def test_weights_must_not_all_be_zero(corpus):
    with pytest.raises(ValueError, match="sample_weight must be above 0 for at least one row, got only zeros"):
        training(corpus, sample_weight=np.zeros(300))


def test_labels_without_points_come_last(corpus):
    labels = scipy.sparse.csr_matrix(corpus.labels.multiply(np.arange(25) % 5 != 2))
    scores, ids = train.Classifier(**SMALL).fit(corpus.features, labels).top_k(corpus.features, 25)
    assert (np.sort(ids[:, -5:], axis=1) == [2, 7, 12, 17, 22]).all() and (scores[:, -5:] < -1e29).all()


def test_small_sets_and_odd_ones():
    x, y = scipy.sparse.eye(2, 3, format="csr"), scipy.sparse.eye(2, format="csr")
    model = train.Classifier(device="cpu", progress=False).fit(x, y)
    assert model.predict(x, 1).tolist() == [[0], [1]]
    assert train.Classifier(device="cpu", progress=False).fit(x[:1], y[:1]).predict(x, 1).tolist() == [[0], [0]]
    nothing = train.Classifier(device="cpu", progress=False).fit(x, y * 0)
    assert nothing.predict(x, 2).tolist() == [[0, 1], [0, 1]]


def test_bad_input(corpus):
    x, y = corpus.features, corpus.labels
    for message, params in {
        r"C must lie in \(0, inf\), got 0": {"C": 0},
        "C must be a number, got str 'big'": {"C": "big"},
        r"slack must lie in \[0, 1.999\], got 2": {"slack": 2},
        "min_features must be at least 1, got 0": {"min_features": 0},
        "architecture must be one of 'auto', 'linear', 'kernel', 'wide-and-deep', 'network', got 'tree'": {
            "architecture": "tree"
        },
        "output, embedding must keep their defaults: sparse features with architecture='linear' select": {
            "embedding": 3,
            "output": "dense",
        },
        r"co_occurrence must lie in \[0, 1000000.0\], got -1": {"co_occurrence": -1},
        "C, slack, frequency, features_per_point, min_features must keep their defaults: sparse features": {
            "architecture": "network"
        },
        "training needs .* MiB, memory_limit allows": {"memory_limit": 1000},
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            train.Classifier(**SMALL | params).fit(x, y)
    model = fitted(corpus)
    with pytest.raises(ValueError, match="architecture='linear' has none"):
        model.encode(x)
    with pytest.raises(ValueError, match="X must be finite|X must contain counts"):
        model.fit(x * np.nan, y)
    assert model.network_.layer.n_labels == 25  # as before


def test_negative_and_signed_features_are_taken_as_they_are(corpus):
    """Weights from outside: no TF-IDF, and a feature may speak against a label."""
    x = corpus.features.copy().astype(np.float32)
    x.data[::2] *= -0.5
    assert train.Classifier(**SMALL).fit(x, corpus.labels).tfidf_ is None


def test_partial_fit_learns_new_points_and_new_labels(corpus):
    x, y = corpus.features, corpus.labels
    first = train.Classifier(**SMALL).fit(x[:150], y[:150, :20])
    before = first.score(x[200:], y[200:, :20])
    seen = first.network_.layer.weights
    again = train.Classifier(**SMALL).fit(x[:150], y[:150, :20]).partial_fit(x[150:200], y[150:200])
    assert again.n_labels_ == 25 and again.n_points_ == 200 and (again.label_counts_[:20] >= first.label_counts_).all()
    together = CoOccurrence(scipy.sparse.vstack([y[:150].multiply(np.arange(25) < 20), y[150:200]])).arrays
    assert all(map(np.array_equal, again.network_.pairs.arrays, together))
    assert again.score(x[200:], y[200:]) > before - 0.05
    ids = again.predict(x[150:200], 5)
    new = y[150:200, 20:].toarray() > 0
    found = np.array([[label in row for label in range(20, 25)] for row in ids])
    assert found[new].mean() > 0.8 and found[~new].mean() < 0.3
    kept = again.network_.layer.weights[:20]
    assert (kept.toarray() != 0).sum() >= (seen.toarray() != 0).sum() * 0.9
    same = train.Classifier(**SMALL).fit(x[:150], y[:150, :20]).partial_fit(x[150:200], y[150:200])
    assert bits(same) == bits(again)


def test_partial_fit_of_nothing_new_keeps_the_weights(corpus):
    """Rows without features and labels change no weight."""
    model = fitted(corpus)
    before = model.network_.layer.weights.toarray()
    model.partial_fit(scipy.sparse.csr_matrix((3, 60)), scipy.sparse.csr_matrix((3, 25)))
    np.testing.assert_array_equal(model.network_.layer.weights.toarray(), before)


def test_bad_partial_fits(corpus):
    model = fitted(corpus)
    before = bits(model)
    assert bits(train.Classifier(**SMALL).partial_fit(corpus.features, corpus.labels)) == before
    with pytest.raises(ValueError, match="y must have 300 rows and at least 25 columns"):
        model.partial_fit(corpus.features, corpus.labels[:, :24])
    with pytest.raises(ValueError, match="X has 59 features"):
        model.partial_fit(corpus.features[:, :59], corpus.labels)
    with pytest.raises(ValueError, match="at least one row"):
        model.partial_fit(corpus.features[:0], corpus.labels[:0])
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        fitted(corpus).set_params(epochs=0).partial_fit(corpus.features, corpus.labels)
    network = train.Classifier(architecture="network", embedding=8, intermediate=16, fan_in=4, epochs=1, progress=False)
    with pytest.raises(
        AttributeError, match="partial_fit needs a linear layer; models of another architecture must be fitted again"
    ):
        network.partial_fit(corpus.features, corpus.labels)
    network = train.Classifier(intermediate=16, fan_in=4, epochs=1, progress=False)
    with pytest.raises(
        AttributeError, match="partial_fit needs a linear layer; models of another architecture must be fitted again"
    ):
        network.fit(corpus.features.toarray(), corpus.labels).partial_fit(corpus.features.toarray(), corpus.labels)
    assert bits(model) == before and model.n_labels_ == 25


@pytest.mark.cuda
def test_on_cuda_as_on_the_cpu(corpus):
    """A few points: the same active pairs, so nearly the same weights."""
    some = corpus.features[:24], corpus.labels[:24]
    few = SMALL | {"epochs": 2, "min_features": 2}
    models = [train.Classifier(**few | {"device": device}).fit(*some) for device in ("cpu", "cuda")]
    a, b = (m.network_.layer.weights.toarray() for m in models)
    np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_array_equal(*(m.predict(some[0], 1) for m in models))


def test_features_whose_squares_overflow_are_refused(corpus):
    x = corpus.features.astype(np.float32) * np.float32(1e25)
    with pytest.raises(
        ValueError, match="X must have squares that a float32 can hold, got .*; scale the features down"
    ):
        train.Classifier(**SMALL | {"tfidf": False}).fit(x, corpus.labels)
