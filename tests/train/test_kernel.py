"""`Classifier(architecture="kernel")`: what it chooses, keeps, resumes and refuses."""

import functools
import itertools
import signal

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import train
from sparsemax_nb.core import checkpoint
from sparsemax_nb.core.device import to_numpy
from sparsemax_nb.train import dual_run, held_out, kernel, linear_settings
from sparsemax_nb.train.outputs import UNSEEN_SCORE
from tests.helpers import threads
from tests.train.test_explanation import check_sums

#: Widths and numbers of the made-up data.
D, L = 6, 8
AUTO = {"device": "cpu", "progress": False}
SMALL = AUTO | {"power": 4.0, "kernel_C": 0.25, "n_neighbors": 30, "calibration": False}


def problem(n, seed=0):
    """Embeddings (n, D) around the mean of their labels' centers, and one or two labels per row, (n, L) CSR."""
    draw = np.random.default_rng(seed)
    y = np.zeros((n, L), np.float32)
    y[np.arange(n), draw.integers(0, L, n)] = 1
    y[np.arange(0, n, 3), draw.integers(0, L, len(range(0, n, 3)))] = 1
    centers = np.random.default_rng(9).standard_normal((L, D)) + 1
    h = y @ centers / y.sum(1, keepdims=True) + 0.2 * draw.standard_normal((n, D))
    return h.astype(np.float32), scipy.sparse.csr_matrix(y)


H, Y = problem(240)
NEW_H, NEW_Y = problem(80, seed=1)


def fitted(h=H, y=Y, names=None, **changes):
    return train.Classifier(**SMALL | changes).fit(h, y, names=names)


def bits(model):
    return {name: to_numpy(array).tobytes() for name, array in model.network_.parameters.items()}


@pytest.fixture(scope="module")
def model():
    """A calibrated model that no test changes."""
    return fitted(calibration=True)


# ---------------------------------------------------------------- what it learns


def test_it_learns_and_is_what_dense_features_get():
    model = train.Classifier(**AUTO).fit(H, Y)
    assert model.architecture_ == "kernel" and model.tfidf_ is None and model.is_dense_
    assert len(model.history_.losses) == 5 and model.history_.losses[-1] < model.history_.losses[0]
    assert model.score(NEW_H, NEW_Y) > 0.9
    assert train.Classifier(**AUTO, epochs=1, intermediate=16, fan_in=4).fit(H, Y).architecture_ == "network"


def test_settings_are_chosen_by_trials():
    model = train.Classifier(**AUTO, calibration=False).fit(H, Y)
    assert model.power_ in kernel.GRID_POWER and model.kernel_C_ in kernel.GRID_C and len(model.trials_) >= 4
    found = {(trial["power"], trial["kernel_C"]): trial["nDCG@5"] for trial in model.trials_}
    assert len(found) == len(model.trials_) and kernel.FIRST in found
    n_splits = min(linear_settings.MAX_SPLITS, linear_settings.MIN_HELD_OUT // 24)
    noise = linear_settings.MIN_GAIN_ROWS / (24 * n_splits)
    assert max(found.values()) <= (1 + linear_settings.MIN_GAIN) * found[model.power_, model.kernel_C_] + noise
    given = fitted(power=model.power_, kernel_C=model.kernel_C_, n_neighbors=100)
    assert bits(given) == bits(model) and given.trials_ == []


@pytest.mark.parametrize("n_cells", [2, 40])
def test_the_power_fits_the_fineness_of_the_labels(n_cells):
    """On a circle, whose cells are labels: the narrower the cells, the narrower the kernel."""
    angles = np.random.default_rng(0).random(600) * 2 * np.pi
    h = np.stack([np.cos(angles), np.sin(angles)], 1)
    model = train.Classifier(**SMALL | {"power": "auto", "n_neighbors": 100}).fit(
        h, (angles / (2 * np.pi) * n_cells).astype(int)
    )
    assert model.power_ < 16 if n_cells == 2 else model.power_ > 24


def test_only_what_is_auto_is_chosen():
    model = fitted(power="auto")
    assert model.kernel_C_ == 0.25 and {trial["kernel_C"] for trial in model.trials_} == {0.25}
    assert len({trial["power"] for trial in model.trials_}) > 1
    model = fitted(kernel_C="auto", power=3)
    assert model.power_ == 3 and {trial["power"] for trial in model.trials_} == {3.0}
    assert len({trial["kernel_C"] for trial in model.trials_}) > 1


def test_scores_are_those_of_the_definition(model):
    """Cosine similarities without the mean, to a power, with the nearest points, times dual variables."""
    mean = H.astype(np.float64).mean(0)
    x, new = (rows.astype(np.float64) - mean for rows in (H, NEW_H))
    x, new = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, new))
    similarities = new @ x.T
    nearest = np.sort(similarities, axis=1)[:, -30:-29]
    kernels = np.where(similarities >= nearest, np.maximum(similarities, 0) ** 4, 0)
    duals = model.network_.layer.duals.toarray().astype(np.float64)
    wanted = kernels @ duals + to_numpy(model.network_.layer.bias)
    np.testing.assert_allclose(model.decision_function(NEW_H), wanted, atol=1e-5)
    signs = np.where(Y.toarray() > 0, 1, -1)
    assert (duals * signs >= 0).all() and (duals != 0).any(0).all()


def clusters():
    """400 embeddings around two points, and classes that do not depend on them: no neighbor is like all its own."""
    draw = np.random.default_rng(0)
    return np.eye(2, D)[np.arange(400) % 2] + 0.05 * draw.standard_normal((400, D)), draw.integers(0, 4, 400)


def test_points_that_are_nearly_the_same():
    """Cut off after the neighbors, the kernel of clusters is not positive; its damping bounds the dual variables."""
    params = SMALL | {"power": 1.0, "kernel_C": 1e4, "n_neighbors": 20, "epochs": 100}
    model = train.Classifier(**params).fit(*clusters())
    assert model.history_.losses[-1] < 1.1 * min(model.history_.losses)
    assert np.abs(model.network_.layer.duals.data).max() < 2


def test_scores_that_overflow(monkeypatch):
    """Lists of points that are no neighbors: each names others that do not name it. Such a trial is a bad one."""

    def listed(points, k, seed, progress):
        others = (np.arange(400)[:, None] + 200 + np.arange(k - 1)) % 400
        return np.ones((400, k), np.float32), np.concatenate([np.arange(400)[:, None], others], 1).astype(np.int32)

    monkeypatch.setattr(kernel, "nearest_points", listed)
    params = SMALL | {"kernel_C": 1e4, "n_neighbors": 60, "epochs": 300}
    with pytest.raises(train.TrainingError, match="the scores overflowed; use a smaller kernel_C or a larger n_neighb"):
        train.Classifier(**params).fit(*clusters())
    monkeypatch.setattr(kernel, "TRIAL_EPOCHS", 300)
    monkeypatch.setattr(kernel, "GRID_C", (1 / 64, 4.0))
    model = train.Classifier(**params | {"kernel_C": "auto"}).fit(*clusters())
    found = {trial["kernel_C"]: trial["nDCG@5"] for trial in model.trials_}
    assert model.kernel_C_ == 1 / 64 and found[4] == 0 < found[1 / 64]


def test_the_number_of_neighbors_counts():
    """More than there are points: all of them."""
    scores = {n: fitted(n_neighbors=n).decision_function(NEW_H) for n in (5, 60, 240, 1000)}
    assert np.array_equal(scores[240], scores[1000]) and not np.array_equal(scores[60], scores[240])
    assert np.abs(scores[5] - scores[240]).max() > 0.05


def test_same_seed_same_bits_with_any_number_of_threads():
    found = []
    for n in 1, 2:
        with threads(n):
            model = train.Classifier(**AUTO).fit(H, Y)
            found.append((bits(model), model.trials_, model.threshold_, model.top_k(NEW_H)[0].tobytes()))
    assert found[0] == found[1] and bits(fitted()) != bits(fitted(seed=1))


# ---------------------------------------------------------------- rows and labels of any kind


def test_rows_of_zeros_have_no_embedding(monkeypatch):
    """They score the biases, have no dual variables, do not change the mean, and are not held out in trials."""
    rows = np.arange(5, 240, 7)
    h = H.copy()
    h[rows] = 0
    held_out_rows, without = [], kernel.KernelTraining.without

    def recorded(self, rows, *arguments):
        held_out_rows.append(rows)
        return without(self, rows, *arguments)

    monkeypatch.setattr(kernel.KernelTraining, "without", recorded)
    model = fitted(h, power="auto")
    layer = model.network_.layer
    np.testing.assert_allclose(model.network_.mean, np.delete(h, rows, 0).mean(0), rtol=1e-5)
    assert not layer.points[rows].any() and layer.duals[rows].nnz == 0 and layer.duals[rows - 1].nnz > 0
    assert held_out_rows and not np.isin(np.concatenate(held_out_rows), rows).any()
    scores, ids = model.top_k(np.zeros((3, D)), L)
    assert (scores == -np.sort(-layer.bias)).all() and (layer.bias[ids] == scores).all()
    assert model.score(NEW_H, NEW_Y) > 0.9


def test_nothing_but_zeros():
    """Frequent labels rank first; the same where all rows are equal."""
    for h in np.zeros((9, D)), np.ones((9, D)):
        model = train.Classifier(**AUTO).fit(h, [0, 1, 1, 1, 0, 1, 2, 2, 1])
        assert model.predict(h).tolist() == [1] * 9 and np.isfinite(model.decision_function(h)).all()


def test_one_class_per_row():
    y = np.array(["map", "book", "ship"])[Y.toarray().argmax(1) % 3]
    model = fitted(y=y, calibration=True)
    assert model.classes_.tolist() == ["book", "map", "ship"] and model.predict(H).dtype == y.dtype
    assert model.score(H, y) == (model.predict(H) == y).mean() > 0.9
    np.testing.assert_allclose(model.predict_proba(H).sum(1), 1, rtol=1e-6)


def test_lists_of_names():
    """Names are no training points, because X has no texts; a label that only a name knows ranks last."""
    labels = [[f"label {i}" for i in np.flatnonzero(row)] for row in Y.toarray()]
    model = fitted(y=labels, names={"label 3": "maps", "zebra": "zebra"}, calibration=True)
    plain = fitted(y=labels, calibration=True)
    assert model.label_names_[:3] == ["maps", "zebra", "label 0"] and not model.name_counts_.any()
    assert model.top_k(NEW_H, L + 1)[1][:, -1].tolist() == [1] * 80
    sets = model.predict(NEW_H)
    assert list(map(sorted, sets)) == list(map(sorted, plain.predict(NEW_H))) and isinstance(sets[0], list)
    assert plain.evaluate(NEW_H, [[f"label {i}" for i in row.indices] for row in NEW_Y])["sample F1"] > 0.8


@pytest.mark.parametrize("form", [scipy.sparse.csc_matrix, lambda y: y.toarray().astype(np.int8)])
def test_matrix_targets(form, model):
    other = fitted(y=form(Y), calibration=True)
    assert bits(other) == bits(model)
    predicted = other.predict(NEW_H)
    if scipy.sparse.issparse(predicted):
        assert predicted.dtype == np.float32
        predicted = predicted.toarray()
    else:
        assert predicted.dtype == np.int8
    np.testing.assert_array_equal(predicted, model.predict(NEW_H).toarray())


def test_labels_without_points_rank_last():
    y = scipy.sparse.csr_matrix(Y.multiply(np.arange(L) % 3 != 1))
    scores, ids = fitted(y=y, calibration=True).top_k(NEW_H, L)
    assert (ids[:, -3:] == [1, 4, 7]).all() and (scores[:, -3:] == UNSEEN_SCORE).all() and (scores[:, :-3] > -99).all()


def test_small_sets_and_odd_ones():
    x, y = np.eye(2, 3, dtype=np.float32), np.eye(2)
    assert train.Classifier(**AUTO).fit(x, y).predict(x, 1).tolist() == [[0], [1]]
    assert train.Classifier(**AUTO).fit(x[:1], y[:1]).predict(x, 2).tolist() == [[0, 1], [0, 1]]
    nothing = train.Classifier(**AUTO).fit(x, y * 0)
    assert nothing.predict(x, 2).tolist() == [[0, 1], [0, 1]] and not nothing.predict(x).any()
    assert fitted().predict(H[:0]).shape == (0, L)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_arrays_of_any_float_type_from_a_file(tmp_path, dtype):
    """The same bits as with the float32 numbers in memory, whatever the layout."""
    h, new = H.astype(dtype), NEW_H.astype(dtype)
    wanted = fitted(h.astype(np.float32))
    np.save(tmp_path / "h.npy", h)
    mapped = np.load(tmp_path / "h.npy", mmap_mode="r")
    for form in mapped, np.asfortranarray(h), np.repeat(h, 2, axis=1)[:, ::2], h.tolist():
        model = fitted(form)
        assert bits(model) == bits(wanted)
        np.testing.assert_array_equal(model.top_k(new)[0], wanted.top_k(new.astype(np.float32))[0])


def test_large_and_small_numbers():
    """Only directions from the mean count."""
    wanted = fitted().decision_function(NEW_H)
    for factor in 2.0**100, 2.0**-100:
        np.testing.assert_array_equal(fitted(H * factor).decision_function(NEW_H * factor), wanted)


def test_columns_of_a_table():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = pandas.DataFrame(H, columns=list("abcdef"))
    model = fitted(x)
    assert bits(model) == bits(fitted()) and model.feature_names_in_.tolist() == list("abcdef")
    with pytest.raises(ValueError, match="Feature names must be in the same order"):
        model.predict(x[list("fedcba")])


# ---------------------------------------------------------------- validation and weights


def test_a_validation_set_decides():
    """On power and C: a trial is a run of a few epochs. After each epoch its metrics are recorded."""
    model = train.Classifier(**SMALL | {"power": "auto", "kernel_C": "auto", "calibration": True})
    model.fit(H, Y, validation=(NEW_H, NEW_Y))
    records = [record["validation"] for record in model.history_.epochs]
    assert len(records) == 5 and records[-1]["P@1"] == model.score(NEW_H, NEW_Y)
    assert records[-1]["nDCG@5"] == model.evaluate(NEW_H, NEW_Y, [5])["nDCG@5"]
    for trial in model.trials_[:3]:
        tried = fitted(power=trial["power"], kernel_C=trial["kernel_C"], epochs=linear_settings.TRIAL_EPOCHS)
        assert tried.evaluate(NEW_H, NEW_Y, [5])["nDCG@5"] == trial["nDCG@5"]
    assert model.calibration_ is not None and model.n_points_ == 240
    again = fitted(power=model.power_, kernel_C=model.kernel_C_).calibrate(NEW_H, NEW_Y)
    assert bits(again) == bits(model) and again.threshold_ == model.threshold_


def test_a_share_of_the_rows_is_held_out():
    model = fitted(validation_fraction=0.25, calibration=True)
    assert model.n_points_ == 180 == model.network_.layer.n_points and len(model.history_.epochs[0]["validation"]) > 3
    held = train.validation.split(H, Y, None, 0.25, 0)
    assert bits(model) == bits(fitted(H[held[1]], Y[held[1]]))


def test_rows_of_weight_zero_are_left_out():
    weights = np.arange(240) % 4 / 2
    rows = np.flatnonzero(weights)
    options = SMALL | {"power": "auto", "calibration": True}
    zeros = train.Classifier(**options).fit(H, Y, sample_weight=weights)
    without = train.Classifier(**options).fit(H[rows], Y[rows], sample_weight=weights[rows])
    assert bits(zeros) == bits(without) and zeros.threshold_ == without.threshold_ and zeros.n_points_ == 180
    assert zeros.trials_ == without.trials_ != train.Classifier(**options).fit(H[rows], Y[rows]).trials_


def test_weights_are_factors_of_c():
    twice = train.Classifier(**SMALL | {"kernel_C": 0.125}).fit(H, Y, sample_weight=np.full(240, 2))
    assert bits(twice) == bits(fitted()) != bits(fitted(kernel_C=0.125))
    assert twice.history_.losses == fitted().history_.losses


@pytest.mark.parametrize("heavy", [0, 1])
def test_rows_of_a_small_weight_hardly_count(heavy):
    """Points that are nearly the same, where damping is strong, of two classes: the one with the weight wins."""
    h, _ = clusters()
    y = np.arange(400) // 2 % 2
    weights = np.where(y == heavy, 1.0, 0.02)
    model = train.Classifier(**SMALL | {"kernel_C": 4.0}).fit(h, y, sample_weight=weights)
    assert (model.predict(h) == heavy).mean() > 0.95


# ---------------------------------------------------------------- predictions


def test_allowed_and_weighted_labels(model):
    scores = model.decision_function(NEW_H)
    found, ids = model.top_k(NEW_H, 3, allow=[6, 2])
    assert (np.sort(ids[:, :2]) == [2, 6]).all() and (ids[:, 2] == -1).all() and (found[:, 2] == -np.inf).all()
    np.testing.assert_array_equal(found[:, :2], -np.sort(-scores[:, [2, 6]]))
    assert not np.isin(model.top_k(NEW_H, L - 1, forbid=[3])[1], [3]).any()
    weights = np.linspace(0.1, 3, L)
    weighted = scores + (np.log(weights) / 4).astype(np.float32)
    found, ids = model.top_k(NEW_H, L, label_weights=weights)
    np.testing.assert_array_equal(ids, np.argsort(-weighted, axis=1, kind="stable"))
    np.testing.assert_allclose(found, -np.sort(-weighted), atol=1e-6)
    assert (ids != model.top_k(NEW_H, L)[1]).any()


def test_metrics(model):
    found = model.evaluate(NEW_H, NEW_Y)
    assert found["P@1"] == model.score(NEW_H, NEW_Y) == NEW_Y[np.arange(80), model.predict(NEW_H, 1)[:, 0]].mean()
    sets, true = model.predict(NEW_H).toarray(), NEW_Y.toarray()
    assert found["sample F1"] == pytest.approx((2 * (sets * true).sum(1) / (sets + true).sum(1)).mean())
    assert found["sample F1"] > 0.8 and found["ECE"] < 0.1


def test_explanations_add_up(model):
    for row in NEW_H[:3], np.zeros((1, D), np.float32):
        check_sums(model, row[:1], row[0])
        check_sums(model, row[:1], row[0], n=100)
    found = model.explain(NEW_H[0], 2, n=100)
    points = [int(name.removeprefix("point ")) for name, _ in found.contributions]
    assert points and all(
        value * (2 * Y[i, 2] - 1) > 0 for i, (_, value) in zip(points, found.contributions, strict=True)
    )
    assert found.terms == {"bias": float(model.network_.layer.bias[2])} and found.other == 0
    assert [one.label for one in model.explain(H[0])] == np.flatnonzero(model.predict(H[:1]).toarray()[0]).tolist()


# ---------------------------------------------------------------- held-out rows


def training(y=Y, settings=None, **options):
    """A `KernelTraining` of H, before its first step."""
    points = kernel.prepared(lambda rows: H[rows], len(H), D, 30, 0, "cpu", False)
    settings = settings or kernel.Settings(4.0, 0.25, 0.2, 30, 5, 0)
    return kernel.KernelTraining(points, y, settings, **options)


@pytest.mark.parametrize("is_large", [False, True])
def test_held_out_rows_are_not_trained_on(is_large, monkeypatch):
    """They have no dual variables, and what is predicted for them does not depend on their labels."""
    if is_large:
        monkeypatch.setattr(held_out, "SMALL_SET", 0)
    seen, without = [], kernel.KernelTraining.without

    def recorded(self, rows, *arguments):
        seen.append((rows, without(self, rows, *arguments)))
        return seen[-1][1]

    monkeypatch.setattr(kernel.KernelTraining, "without", recorded)
    run = training(held_out=True)
    run.run(progress=False)
    assert len(seen) == (1 if is_large else held_out.FOLDS)
    others = np.setdiff1d(np.arange(240), seen[0][0])
    count = seen[0][1]._duals.count
    assert (count[seen[0][0]] == 0).all() and (count[others] > 0).mean() > 0.9
    if is_large:
        assert len(run.held_out.rows) == round(held_out.n_late_rows(240))
    else:
        assert np.array_equal(np.sort(run.held_out.rows), np.arange(240))
    n = len(seen[0][0])
    np.testing.assert_array_equal(run.held_out.rows[:n], seen[0][0])
    np.testing.assert_array_equal(
        run.held_out.n_points[:n], np.bincount(Y[others].indices, minlength=L)[run.held_out.ids[:n]]
    )
    y = Y.tolil()
    y[seen[0][0]] = Y[np.roll(seen[0][0], 1)]
    other = training(y.tocsr(), held_out=True)
    other.run(progress=False)
    for name in "scores", "ids", "n_points":
        one, two = (getattr(found, name) for found in (run.held_out, other.held_out))
        np.testing.assert_array_equal(one[:n], two[:n])
        assert is_large or not np.array_equal(one[n:], two[n:])
    plain = training()
    plain.run(progress=False)
    np.testing.assert_array_equal(run._duals.values, plain._duals.values)


def test_probabilities(model):
    found = model.predict_proba(NEW_H)
    assert found.shape == (80, L) and (found >= 0).all() and (found <= 1).all() and np.ptp(found) > 0.8
    scores, ids = model.top_k(NEW_H, L)
    wanted = model.calibration_.probabilities(scores, model.label_counts_[ids])
    np.testing.assert_array_equal(np.take_along_axis(found, ids, 1), wanted)
    assert (np.asarray(model.predict(NEW_H).sum(1)) <= model.limit_).all()
    plain = fitted()
    assert plain.calibration_ is None and not hasattr(plain, "predict_proba")
    np.testing.assert_array_equal(plain.predict(NEW_H).toarray(), plain.decision_function(NEW_H) >= 0)
    by_precision = fitted(calibration=True, threshold="precision=0.99")
    assert by_precision.threshold_ > model.threshold_


# ---------------------------------------------------------------- files


def test_save_and_load(model, tmp_path):
    model.save(tmp_path / "a", [f"subject {i}" for i in range(L)])
    again = train.Classifier.load(tmp_path / "a", device="cpu")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() and bits(again) == bits(model)
    assert (again.architecture_, again.power_, again.kernel_C_, again.n_neighbors) == ("kernel", 4.0, 0.25, 30)
    for got, want in zip(again.top_k(NEW_H, L), model.top_k(NEW_H, L), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(again.predict_proba(NEW_H), model.predict_proba(NEW_H))
    assert (again.threshold_, again.limit_) == (model.threshold_, model.limit_)
    assert again.explain(NEW_H[0], 1).contributions == model.explain(NEW_H[0], 1).contributions


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("points", lambda a: a[:-1], r"kernel.indptr must have shape \(240,\)"),
        ("points", lambda a: a[:, :-1].copy(), r"kernel.points must have shape \(N, 6\)"),
        ("points", lambda a: a[:0], "the length of kernel.points must be between 1 and"),
        ("points", lambda a: a * np.float32(np.nan), "kernel.points must be finite"),
        ("points", lambda a: a * np.float32(2), "kernel.points must have rows of length 1 or 0, got 2 in row 0"),
        ("points", lambda a: a.astype(np.float64), "kernel.points must be float32"),
        ("indptr", lambda a: a[:-1], "kernel.indptr must have shape"),
        ("indptr", lambda a: a[::-1].copy(), "kernel.indptr must rise"),
        ("indptr", lambda a: a + 1, "kernel.indptr must rise"),
        ("indptr", lambda a: np.r_[a[0], a[2], a[1], a[3:]], "kernel.indptr must rise"),
        ("indptr", lambda a: np.r_[a[:-1], a[-1] + 8], "kernel.indptr must rise"),
        ("labels", lambda a: a + L, r"kernel.labels must lie in \[0, 8\)"),
        ("labels", lambda a: a - 1, r"kernel.labels must lie in \[0, 8\)"),
        ("labels", lambda a: a[:-1], "kernel.values must have shape"),
        ("values", lambda a: a[:-1], "kernel.values must have shape"),
        ("values", lambda a: np.r_[a[:-1], np.float32(np.nan)], "kernel.values must be finite"),
        ("bias", lambda a: a[:-1], r"kernel.bias must have shape \(8,\)"),
        ("bias", lambda a: a + np.float32(np.inf), "kernel.bias must be finite"),
        ("mean", lambda a: a[:-1], r"kernel.mean must have shape \(6,\)"),
        ("mean", lambda a: a * np.float32(np.nan), "kernel.mean must be finite"),
        *(
            (name, lambda a: None, f"kernel.{name}")
            for name in ("points", "indptr", "labels", "values", "bias", "mean")
        ),
    ],
)
def test_damaged_arrays(model, tmp_path, name, change, message):
    """None stands for an array that is missing."""
    model.save(tmp_path / "m")
    arrays, about = checkpoint.load(tmp_path / "m", "classifier")
    arrays = dict(arrays) | {f"kernel.{name}": change(arrays[f"kernel.{name}"])}
    checkpoint.save(tmp_path / "bad", "classifier", {n: a for n, a in arrays.items() if a is not None}, about)
    with pytest.raises(train.ModelFileError, match=f"does not contain a complete Classifier .*({message})"):
        train.Classifier.load(tmp_path / "bad", device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power": None}, "power must be a number"),
        ({"power": 0.5}, r"power must lie in \[1, 100\]"),
        ({"power": 101}, r"power must lie in \[1, 100\]"),
        ({"kernel_C": 0}, r"kernel_C must lie in \(0, inf\)"),
        ({"kernel_C": None}, "kernel_C must be a number"),
        ({"is_dense": False}, "a kernel machine needs dense features, but is_dense is false"),
        ({"n_dense": 3}, "n_dense must be below n_features = 6, and 0 if is_dense is true"),
        ({"n_features": 7}, r"kernel.points must have shape \(N, 7\)"),
        ({"n_labels": 9}, "label_counts must have shape"),
        ({"architecture": "linear"}, "a linear layer needs sparse features, but is_dense is true"),
        ({"architecture": "wide-and-deep"}, "n_dense must not be 0 for architecture='wide-and-deep'"),
        ({"architecture": "network"}, "intermediate.weights"),
        ({"params": {"dense_columns": 3}}, "dense_columns must be 0, or n_dense if there is no vectorizer, got 3"),
        ({"params": {"n_neighbors": 0}}, "n_neighbors must be between 1"),
        ({"params": {"n_neighbors": 10**9}}, "n_neighbors must be between 1"),
    ],
)
def test_damaged_descriptions(model, tmp_path, changes, message):
    model.save(tmp_path / "m")
    arrays, about = checkpoint.load(tmp_path / "m", "classifier")
    checkpoint.save(tmp_path / "bad", "classifier", dict(arrays), about | changes)
    with pytest.raises(train.ModelFileError, match=f"does not contain a complete Classifier .*{message}"):
        train.Classifier.load(tmp_path / "bad", device="cpu")


# ---------------------------------------------------------------- runs that go on


def run(path=None, resume=False, n_steps=None, monkeypatch=None, **changes):
    """Fit with weights and a checkpoint; with `n_steps`, Ctrl-C in that step."""
    if n_steps is not None:
        counted, step = itertools.count(1), kernel.KernelTraining._step

        def stop(self):
            step(self)
            if next(counted) == n_steps:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(kernel.KernelTraining, "_step", stop)
    model = train.Classifier(**SMALL | {"calibration": True} | changes)
    weights = 1 + np.arange(240) % 3 / 2
    return model.fit(H, Y, weights, checkpoint_path=path, resume=resume)


@functools.cache
def whole_run():
    return run()


@pytest.mark.parametrize("n_steps", [2, 60, 61, 120, 130, 180, 240, 300])
def test_a_resumed_run_comes_to_the_same_bits(tmp_path, monkeypatch, n_steps):
    """60 steps are an epoch."""
    whole = whole_run()
    assert whole.history_.steps == 300
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", n_steps=n_steps, monkeypatch=monkeypatch)
    monkeypatch.undo()
    again = run(tmp_path / "c", resume=True)
    assert bits(again) == bits(whole) and again.history_.losses == whole.history_.losses
    assert again.threshold_ == whole.threshold_ and again.history_.steps == 300


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint within the third epoch."""
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        run(path, n_steps=130, monkeypatch=monkeypatch)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_C": 0.5}, "kernel_C was 0.25, not 0.5"),
        ({"power": "auto"}, "power was 4.0, not 'auto'"),
        ({"n_neighbors": 20}, "n_neighbors was 30, not 20"),
        ({"epochs": 3}, "epochs was None, not 3"),
        ({"seed": 1}, "seed was 0, not 1"),
    ],
)
def test_checkpoints_of_other_runs(saved, changes, message):
    with pytest.raises(train.ModelFileError, match=f"cannot be resumed: {message}"):
        run(saved, resume=True, **changes)


def test_a_checkpoint_of_other_data(saved):
    with pytest.raises(train.ModelFileError, match="cannot be resumed: the checkpoint was written for different data"):
        train.Classifier(**SMALL | {"calibration": True}).fit(NEW_H, NEW_Y, checkpoint_path=saved, resume=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("count", lambda a: a[:-1], "duals/count must have shape"),
        ("count", lambda a: a + 99, "duals/count must lie in"),
        ("count", lambda a: a - 99, "duals/count must lie in"),
        ("labels", lambda a: a + L, "duals/labels must lie in"),
        ("labels", lambda a: a - 1, "duals/labels must lie in"),
        ("labels", lambda a: a[:, :-1].copy(), "duals/labels must have shape"),
        ("values", lambda a: a[:-1], "duals/values must have shape"),
        ("values", lambda a: a + np.float32(np.nan), "duals/values must be finite"),
        ("values", lambda a: None, "duals/values"),
    ],
)
def test_damaged_arrays_of_checkpoints(saved, tmp_path, name, change, message):
    arrays, about = checkpoint.load(saved, "classifier checkpoint")
    arrays = dict(arrays) | {f"duals/{name}": change(arrays[f"duals/{name}"])}
    arrays = {n: a for n, a in arrays.items() if a is not None}
    checkpoint.save(tmp_path / "bad", "classifier checkpoint", arrays, about)
    with pytest.raises(train.ModelFileError, match=f"cannot be resumed: .*{message}"):
        run(tmp_path / "bad", resume=True)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("position", {"step": 60}, "position.step must be below 60, got 60"),
        ("position", {"step": 3}, "position.losses must have one entry per step"),
        ("position", {"epoch": 1}, "history.epochs must be 1 epochs"),
        (
            "position",
            {"losses": [[1.0, 0.0]] * 10},
            "position.losses must have one entry per step of the epoch, each of",
        ),
        ("position", {"step": -1}, "position.step must be between 0"),
        ("history", {"epochs": []}, "history.epochs must be 2 epochs"),
        ("history", {"first_step_seconds": {}}, "history.first_step_seconds must be a number"),
        ("history", {"output_seconds": "a"}, "history.output_seconds must be a number"),
        ("history", {"seconds": -1.0}, "history.seconds must lie in"),
    ],
)
def test_damaged_descriptions_of_checkpoints(saved, tmp_path, part, changes, message):
    arrays, about = checkpoint.load(saved, "classifier checkpoint")
    checkpoint.save(tmp_path / "bad", "classifier checkpoint", dict(arrays), about | {part: about[part] | changes})
    with pytest.raises(train.ModelFileError, match=f"cannot be resumed: .*{message}"):
        run(tmp_path / "bad", resume=True)


def test_a_budget_ends_the_run_which_goes_on_with_more(tmp_path, ticking):
    few = run(tmp_path / "c", budget_seconds=1.0)
    assert few.history_.stopped == "budget" and 1 < few.history_.steps < 60 and len(few.history_.epochs) == 1
    assert few.calibration_ is not None and few.score(NEW_H, NEW_Y) > 0.2
    whole, again = whole_run(), run(tmp_path / "c", resume=True)
    assert bits(again) == bits(whole) and again.history_.losses == whole.history_.losses


def test_an_interrupted_fit_predicts(monkeypatch):
    """With the weights of the last whole epoch."""
    model = train.Classifier(**SMALL)
    counted, step = itertools.count(1), kernel.KernelTraining._step

    def stop(self):
        step(self)
        if next(counted) == 70:
            raise KeyboardInterrupt

    monkeypatch.setattr(kernel.KernelTraining, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        model.fit(H, Y)
    assert model.score(NEW_H, NEW_Y) > 0.8


def test_another_fit_starts_anew():
    model = fitted(warm_start=True)
    before = bits(model)
    assert bits(model.fit(H, Y)) == before


# ---------------------------------------------------------------- memory


def test_a_limit_is_kept_before_the_search(monkeypatch):
    plan = fitted().memory_plan_
    assert bits(fitted(memory_limit=plan.nbytes)) == bits(fitted())
    monkeypatch.setattr(kernel, "prepared", lambda *_: pytest.fail("the neighbors were searched"))
    with pytest.raises(
        train.MemoryLimitError, match="memory_limit allows .*; use a smaller n_neighbors, or a larger"
    ) as e:
        fitted(memory_limit=plan.nbytes - 1)
    assert "kernel: neighbors, similarities, kernels" in str(e.value)


def test_large_arrays_are_predicted_to_the_byte():
    run = training()
    largest = int(np.diff(Y.indptr).max())
    arrays = kernel.memory(n_rows=240, n_inputs=D, n_labels=L, n_neighbors=30, largest_row=largest)
    predicted = {array.name: array.nbytes for array in arrays}
    points = run._points
    assert predicted["kernel: points"] == points.points.nbytes
    graph = points.neighbors.nbytes + points.similarities.nbytes + run._kernels.nbytes
    assert predicted["kernel: neighbors, similarities, kernels"] == graph
    assert predicted["kernel: lists of dual variables"] == sum(array.nbytes for array in run._duals)
    assert run.checkpoint_nbytes == sum(array.nbytes for array in run.state()[0].values())


# ---------------------------------------------------------------- CUDA


@pytest.mark.cuda
def test_on_cuda_as_on_the_cpu(monkeypatch):
    """Three steps, and predictions."""
    monkeypatch.setattr(dual_run, "MIN_STEPS_PER_EPOCH", 3)
    few = {"epochs": 1, "n_neighbors": 5}
    a, b = (fitted(H[:12], Y[:12, :4].tocsr(), **few, device=device) for device in ("cpu", "cuda"))
    assert a.history_.steps == b.history_.steps == 3 and b.network_.device == "cuda"
    assert a.history_.losses == pytest.approx(b.history_.losses, rel=1e-5)
    one, other = (m.network_.layer.duals.toarray() for m in (a, b))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(one).max() > 0.1
    (scores, ids), (more, others) = (m.top_k(NEW_H[:3], 4) for m in (a, b))
    np.testing.assert_allclose(scores, more, atol=1e-5)
    np.testing.assert_array_equal(ids, others)
    assert type(scores) is type(more) is np.ndarray


# ---------------------------------------------------------------- bad input


def test_what_a_kernel_machine_cannot_do(model):
    before = bits(model)
    with pytest.raises(
        AttributeError, match="partial_fit needs a linear layer; models of another architecture must be"
    ):
        model.partial_fit(H, Y)
    with pytest.raises(AttributeError, match="partial_fit needs a linear layer"):
        train.Classifier(**SMALL, architecture="kernel").partial_fit(H, Y)
    with pytest.raises(ValueError, match="retire needs architecture='linear'"):
        model.retire([1])
    with pytest.raises(ValueError, match="encode returns the input of an output layer: architecture='kernel' has none"):
        model.encode(H)
    with pytest.raises(AttributeError, match="this attribute needs a fitted model with architecture='wide-and-deep'"):
        model.kernel_weight_  # noqa: B018
    assert bits(model) == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"power": 0.9}, r"power must lie in \[1, 100\], got 0.9"),
        ({"power": "big"}, "power must be a number, got str 'big'"),
        ({"kernel_C": 0}, r"kernel_C must lie in \(0, inf\), got 0"),
        ({"kernel_C": float("nan")}, r"kernel_C must lie in \(0, inf\), got nan"),
        ({"n_neighbors": 0}, "n_neighbors must be between 1 and 4096, got 0"),
        ({"n_neighbors": 4097}, "n_neighbors must be between 1 and 4096, got 4097"),
        ({"n_neighbors": 2.0}, "n_neighbors must be an integer"),
        (
            {"architecture": "kernel", "slack": 0.1, "embedding": 3},
            "embedding, slack must keep their defaults: dense features with architecture='kernel'",
        ),
        ({"kernel_weight": 1}, "kernel_weight must keep its default: dense features .*; do not set it"),
        ({"architecture": "linear"}, "power, kernel_C, n_neighbors must keep their defaults: sparse features"),
        (
            {"architecture": "network"},
            "power, kernel_C, n_neighbors .* 'network' architecture; use architecture='kernel'",
        ),
        ({"architecture": "wide-and-deep"}, "architecture='wide-and-deep' needs X to be a pair"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fitted(**params)


def test_a_parameter_of_another_architecture_says_which():
    with pytest.raises(
        ValueError, match="C must keep its default: .* 'kernel' architecture; use architecture='linear'"
    ):
        train.Classifier(**AUTO, C=1.0).fit(H, Y)
    for x in scipy.sparse.csr_matrix(H), ["old maps"] * 240:
        with pytest.raises(
            ValueError, match="power must keep its default: sparse .* 'linear' architecture; do not set"
        ):
            train.Classifier(**AUTO, power=3.0).fit(x, Y)
        with pytest.raises(TypeError, match="architecture='kernel' needs a dense array X, got .*; use 'linear'"):
            train.Classifier(**AUTO, architecture="kernel").fit(x, Y)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite(model, wrong):
    h = H.astype(np.float64)
    h[200, 3] = wrong
    for call in (
        lambda: fitted(h),
        lambda: model.predict(h),
        lambda: model.evaluate(h, Y),
        lambda: model.calibrate(h, Y),
    ):
        with pytest.raises(ValueError, match="X must be finite as float32, got NaN or infinity in row 200"):
            call()
    epochs = []
    with pytest.raises(ValueError, match="X must be finite as float32, got NaN or infinity in row 200"):
        train.Classifier(**SMALL).fit(H, Y, validation=(h, Y), after_epoch=lambda *_: epochs.append(1))
    assert not epochs


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (H[:, :5], ValueError, "X has 5 features, but Classifier is expecting 6 features"),
        (H[0], ValueError, r"X must be a matrix, got shape \(6,\)"),
        (
            scipy.sparse.csr_matrix(H),
            TypeError,
            r"X must be a dense array as in fit, got csr_matrix; use X.toarray\(\)",
        ),
        (["old maps"], TypeError, "X must have features as in fit, got texts"),
        ((["old maps"], H[:1]), TypeError, "X must not be a pair: the model was fitted without embeddings"),
        ((scipy.sparse.csr_matrix(H), H), TypeError, "X must not be a pair"),
    ],
)
def test_features_of_another_kind(model, x, error, message):
    for method in model.predict, model.top_k, model.predict_proba, model.decision_function:
        with pytest.raises(error, match=message):
            method(x)


def test_a_refused_fit_changes_nothing(model):
    before, answers = dict(vars(model)), model.top_k(NEW_H)[0]
    for bad in (H * np.float32(np.nan), Y), (H, Y[:9]), (H[:0], Y[:0]):
        with pytest.raises(ValueError):  # noqa: PT011
            model.fit(*bad)
    assert vars(model) == before and np.array_equal(model.top_k(NEW_H)[0], answers)
