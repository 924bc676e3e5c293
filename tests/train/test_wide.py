"""`Classifier(architecture="wide-and-deep")`: what it learns from words and embeddings, keeps, resumes and refuses."""

import functools
import itertools
import signal

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import metrics, train
from sparsemax_nb.core import checkpoint
from sparsemax_nb.core.device import to_numpy
from sparsemax_nb.train import dual_run, held_out, linear_settings, wide
from sparsemax_nb.train.dense_linear import fit_dense_linear
from sparsemax_nb.train.models import normalized
from sparsemax_nb.train.outputs import UNSEEN_SCORE
from tests.helpers import threads
from tests.train.test_explanation import check_sums

#: Width of the embeddings.
D = 6
AUTO = {"device": "cpu", "progress": False}
OF_LINEAR = {"C": 1.0, "slack": 0.5, "frequency": 0.0, "co_occurrence": 0.0, "char_ngrams": 0}
OF_KERNEL = {"power": 4.0, "kernel_C": 0.25, "n_neighbors": 240}
SMALL = AUTO | OF_LINEAR | OF_KERNEL | {"kernel_weight": 1.0, "head_weight": 0.25, "calibration": False}
COLORS = ["red", "green", "blue", "white"]


def problem(n, seed=0):
    """Texts, embeddings (n, D) and classes (n,) of 8: a text tells the half of a class, an embedding its remainder."""
    draw = np.random.default_rng(seed)
    classes = draw.integers(0, 8, n)
    centers = np.random.default_rng(3).standard_normal((4, D)) + 1
    h = centers[classes % 4] + 0.2 * draw.standard_normal((n, D))
    return [f"{COLORS[c // 2]} thing {draw.integers(9)}" for c in classes], h.astype(np.float32), classes


TEXTS, H, CLASSES = problem(240)
NEW_TEXTS, NEW_H, NEW_CLASSES = problem(80, seed=1)


def names_of(classes):
    return [[f"label {c}", *(["also"] if c < 3 else [])] for c in classes]


def counts_of(texts):
    """How often each color, and the word 'thing', is in a text, (n, 5) CSR."""
    words = [*COLORS, "thing"]
    return scipy.sparse.csr_matrix([[text.split().count(word) for word in words] for text in texts], dtype=np.float32)


PAIR, Y = (TEXTS, H), names_of(CLASSES)
NEW, NEW_Y = (NEW_TEXTS, NEW_H), names_of(NEW_CLASSES)
COUNTS, NEW_COUNTS = counts_of(TEXTS), counts_of(NEW_TEXTS)
NOISE, NEW_NOISE = (np.random.default_rng(n).standard_normal((n, D)) for n in (240, 80))


def fitted(x=PAIR, y=Y, sample_weight=None, names=None, **changes):
    return train.Classifier(**SMALL | changes).fit(x, y, sample_weight, names=names)


def bits(model):
    return {name: to_numpy(array).tobytes() for name, array in model.network_.parameters.items()}


@pytest.fixture(scope="module")
def model():
    """A calibrated model that no test changes."""
    return fitted(calibration=True, frequency=0.02, co_occurrence=0.03)


# ---------------------------------------------------------------- what it learns


def test_it_learns_from_both_parts_and_is_what_a_pair_gets():
    wide_model = train.Classifier(**AUTO, char_ngrams=0).fit(PAIR, CLASSES)
    assert wide_model.architecture_ == "wide-and-deep" and not wide_model.is_dense_
    assert wide_model.n_dense_ == D and wide_model.n_features_in_ == wide_model.vectorizer_.n_features_ + D
    assert wide_model.kernel_weight_ in wide.KERNEL_WEIGHTS and wide_model.head_weight_ in wide.HEAD_WEIGHTS
    assert wide_model.kernel_weight_ + wide_model.head_weight_ > 0
    of_words, of_embeddings = (fitted_part(kind, CLASSES) for kind in ("linear", "kernel"))
    scores = [wide_model.score(NEW, NEW_CLASSES), of_words.score(NEW_TEXTS, NEW_CLASSES)]
    scores.append(of_embeddings.score(NEW_H, NEW_CLASSES))
    assert scores[0] > 0.85 and max(scores[1:]) < 0.65
    assert [{*trial} for trial in (wide_model.trials_[0], wide_model.trials_[-1])] == [
        {"power", "kernel_C", "nDCG@5"},
        {"C", "slack", "frequency", "nDCG@5"},
    ]


def fitted_part(architecture, y=Y, **changes):
    """A model of the texts, or of the embeddings, alone."""
    params = AUTO | (OF_LINEAR if architecture == "linear" else OF_KERNEL) | {"calibration": False} | changes
    return train.Classifier(**params).fit(TEXTS if architecture == "linear" else H, y)


@pytest.mark.parametrize(("weight", "head_weight"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (2.0, 0.25)])
def test_scores_are_the_sum_of_the_parts(weight, head_weight):
    """Each is trained as if it were alone; the bias is that of the linear layer over words."""
    both = fitted(kernel_weight=weight, head_weight=head_weight, y=CLASSES)
    parts = fitted_part("linear", CLASSES), fitted_part("kernel", CLASSES)
    of_words, of_embeddings = bits(parts[0]), bits(parts[1])
    points, new = (normalized(h, H.mean(0, dtype=np.float64).astype(np.float32)) for h in (H, NEW_H))
    head = fit_dense_linear(points, scipy.sparse.csr_matrix(np.eye(8)[CLASSES]))[0]
    of_head = {"head.weights": head.tobytes()} if head_weight else {}
    assert bits(both) == of_words | of_embeddings | {"kernel.bias": bytes(4 * 8)} | of_head
    bias = to_numpy(parts[1].network_.layer.bias)
    wanted = parts[0].decision_function(NEW_TEXTS) + weight * (parts[1].decision_function(NEW_H) - bias)
    wanted += head_weight * new @ head.T
    np.testing.assert_allclose(both.decision_function(NEW), wanted, atol=1e-5)
    assert (both.kernel_weight_, both.head_weight_) == (weight, head_weight) and both.trials_ == []


@pytest.mark.parametrize("with_validation", [False, True])
def test_noise_gets_no_weight(with_validation):
    """Noise of either part: in embeddings, they are not used; in words, embeddings are."""
    texts, new_texts = ([f"thing {row}" for row in range(n)] for n in (240, 80))
    for x, new, is_used in ((TEXTS, NOISE), (NEW_TEXTS, NEW_NOISE), False), ((texts, H), (new_texts, NEW_H), True):
        model = train.Classifier(**SMALL | {"kernel_weight": "auto", "head_weight": "auto", "power": 1.0})
        model.fit(x, Y, validation=(new, NEW_Y) if with_validation else None)
        assert (model.kernel_weight_ + model.head_weight_ > 0) == is_used
        assert model.calibration_ is None and (model.network_.head is None) == (model.head_weight_ == 0)


def test_the_weights_are_the_best_ones_on_held_out_rows(monkeypatch):
    """By nDCG@5, with as few parts as possible; and calibration gets the predictions with these weights."""
    seen, choose = [], wide.WideTraining._choose

    def recorded(self, ids, labels):
        seen.append((ids, labels, choose(self, ids, labels)))
        return seen[-1][-1]

    monkeypatch.setattr(wide.WideTraining, "_choose", recorded)
    calibrated, fit = [], train.calibration.Calibration.fit
    monkeypatch.setattr(
        train.calibration.Calibration, "fit", lambda *arguments: calibrated.append(arguments) or fit(*arguments)
    )
    model = fitted(kernel_weight="auto", head_weight="auto", calibration=True)
    ((ids, labels, best),) = seen
    tried = list(itertools.product(wide.KERNEL_WEIGHTS, wide.HEAD_WEIGHTS))
    assert [one.shape for one in ids] == [(240, 9)] * len(tried) and labels.shape == (240, 9)
    found = [metrics.ndcg_at_k(np.ascontiguousarray(one[:, :5]), labels, 5) for one in ids]
    enough = max(found) / (1 + linear_settings.MIN_GAIN)
    assert found[best] >= enough > found[0] and (model.kernel_weight_, model.head_weight_) == tried[best]
    n_parts = [sum(map(bool, weights)) for weights in tried]
    assert max(value for value, n in zip(found, n_parts, strict=True) if n < n_parts[best]) < enough
    np.testing.assert_array_equal(calibrated[0][1], ids[best])


def test_same_seed_same_bits_with_any_number_of_threads():
    found = []
    for n in 1, 2:
        with threads(n):
            model = fitted(kernel_weight="auto", head_weight="auto", power="auto", calibration=True)
            weights = model.kernel_weight_, model.head_weight_, model.trials_, model.threshold_
            found.append((bits(model), weights, model.top_k(NEW)[0].tobytes()))
    assert found[0] == found[1] and bits(fitted()) != bits(fitted(seed=1))


# ---------------------------------------------------------------- features and labels of any kind


@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.coo_matrix, scipy.sparse.csr_matrix.toarray])
def test_features_instead_of_texts(form, tmp_path):
    """Sparse, or dense ones, which become sparse; the counts get TF-IDF weights."""
    model = fitted((form(COUNTS), H))
    wanted = fitted((COUNTS, H))
    assert model.tfidf_ is not None and model.architecture_ == "wide-and-deep" and bits(model) == bits(wanted)
    assert model.evaluate((form(NEW_COUNTS), NEW_H), NEW_Y, [1])["P@1"] > 0.85
    model.save(tmp_path / "m")
    again = train.Classifier.load(tmp_path / "m", device="cpu")
    np.testing.assert_array_equal(again.top_k((NEW_COUNTS, NEW_H))[0], model.top_k((form(NEW_COUNTS), NEW_H))[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_embeddings_of_any_float_type_from_a_file(tmp_path, dtype):
    np.save(tmp_path / "h.npy", H.astype(dtype))
    wanted = fitted((TEXTS, H.astype(dtype).astype(np.float32)))
    for form in np.load(tmp_path / "h.npy", mmap_mode="r"), np.asfortranarray(H.astype(dtype)):
        model = fitted((TEXTS, form))
        assert bits(model) == bits(wanted)
    found, expected = (m.top_k((NEW_TEXTS, NEW_H.astype(dtype)))[0] for m in (model, wanted))
    np.testing.assert_array_equal(found, expected)


def test_embeddings_in_a_table():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = pandas.Series(TEXTS), pandas.DataFrame(H, columns=list("abcdef"))
    assert bits(fitted(x)) == bits(fitted()) and bits(fitted(x, sample_weight=np.arange(240) % 2)) == bits(
        fitted(PAIR, sample_weight=np.arange(240) % 2)
    )


def test_rows_without_words_or_without_an_embedding(model):
    """The other part decides."""
    zeros = np.zeros((80, D))
    of_words = fitted_part("linear", frequency=0.02, co_occurrence=0.03)
    found, wanted = model.decision_function((NEW_TEXTS, zeros)), of_words.decision_function(NEW_TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    kernel = fitted_part("kernel")
    wanted = kernel.decision_function(NEW_H) - kernel.decision_function(zeros)
    plain = fitted(head_weight=0)
    found = plain.decision_function(([""] * 80, NEW_H)) - plain.decision_function(([""] * 80, zeros))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_some_training_rows_without_an_embedding():
    h = H.copy()
    h[::5] = 0
    model = fitted((TEXTS, h))
    assert not to_numpy(model.network_.kernel.layer.points[::5]).any()
    assert model.network_.kernel.layer.duals[::5].nnz == 0 and model.evaluate(NEW, NEW_Y, [1])["P@1"] > 0.8


@pytest.mark.parametrize("kind", ["classes", "sparse", "dense"])
def test_targets_of_any_form(kind):
    matrix = np.eye(8, dtype=np.int16)[CLASSES]
    y = {"classes": np.array(list("hgfedcba"))[CLASSES], "sparse": scipy.sparse.csr_matrix(matrix), "dense": matrix}[
        kind
    ]
    model = fitted(y=y, calibration=True)
    predicted = model.predict(NEW)
    if kind == "classes":
        assert (predicted == np.array(list("hgfedcba"))[NEW_CLASSES]).mean() == model.score(
            NEW, np.array(list("hgfedcba"))[NEW_CLASSES]
        )
    else:
        assert predicted.dtype == (np.float32 if kind == "sparse" else np.int16)
        assert ((predicted if kind == "dense" else predicted.toarray()) == np.eye(8)[NEW_CLASSES]).mean() > 0.9


def test_labels_without_points_rank_last():
    y = scipy.sparse.csr_matrix(np.eye(10)[CLASSES])
    scores, ids = fitted(y=y, frequency=0.1).top_k(NEW, 10)
    assert (ids[:, 8:] == [8, 9]).all() and (scores[:, 8:] <= UNSEEN_SCORE).all() and (scores[:, :8] > -99).all()


def test_names_are_points_without_embeddings():
    """A label that only its name knows is predicted by the word."""
    names = {f"label {c}": f"label {c}" for c in range(8)} | {"also": "also", "zebra": "zebra"}
    model = fitted(names=names, calibration=True, kernel_weight="auto")
    assert model.network_.kernel.layer.n_points == 240 and model.name_counts_.sum() == 10
    zebra = model.classes_.tolist().index("zebra")
    assert (model.network_.kernel.layer.duals[:, zebra]).nnz == 0
    assert model.predict((["a zebra"], np.zeros((1, D))), 1).tolist() == [["zebra"]]
    assert model.evaluate(NEW, NEW_Y, [1])["P@1"] > 0.85
    without = fitted(names=names, name_points=False)
    assert without.top_k(NEW, 10)[1][:, -1].tolist() == [zebra] * 80 and not without.name_counts_.any()


def test_small_sets_and_odd_ones():
    x, y = (["maps", "books"], np.eye(2, 3)), [["map"], ["book"]]
    options = {"kernel_weight": "auto", "head_weight": "auto", "power": "auto", "calibration": True}
    assert fitted(x, y, **options).predict(x, 1).tolist() == [["map"], ["book"]]
    assert fitted((["maps"], np.ones((1, 3))), [["map"]], **options).predict(x, 1).tolist() == [["map"], ["map"]]
    assert fitted(x, np.zeros((2, 3)), **options).predict(x, 3).tolist() == [[0, 1, 2]] * 2
    for h in np.ones((240, 2)), np.zeros((240, 2)):  # rows that are all the same, or without embeddings
        same = fitted((TEXTS, h), **options)
        assert same.kernel_weight_ == same.head_weight_ == 0 and np.isfinite(same.decision_function((TEXTS, h))).all()


# ---------------------------------------------------------------- one matrix


@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.csc_array, scipy.sparse.csr_matrix.toarray])
def test_the_last_columns_of_a_matrix_are_embeddings(form, tmp_path):
    x, new = (form(scipy.sparse.csr_matrix(scipy.sparse.hstack(p))) for p in ((COUNTS, H), (NEW_COUNTS, NEW_H)))
    model, pair = fitted(x, dense_columns=D), fitted((COUNTS, H))
    assert bits(model) == bits(pair) and model.n_features_in_ == 5 + D and model.n_dense_ == D
    model.save(tmp_path / "m")
    again = train.Classifier.load(tmp_path / "m", device="cpu")
    for one in model, again:
        np.testing.assert_array_equal(one.top_k(new)[0], pair.top_k((NEW_COUNTS, NEW_H))[0])
        check_sums(one, new[:1], new[:1])
    validated = train.Classifier(**SMALL, dense_columns=D).fit(x, Y, validation=(new, NEW_Y))
    assert validated.history_.epochs[-1]["validation"]["P@1"] == pair.evaluate((NEW_COUNTS, NEW_H), NEW_Y)["P@1"]
    with pytest.raises(ValueError, match=r"dense_columns must be between 1 and 10 \(X has 11 columns\), got 11"):
        fitted(x, dense_columns=11)
    with pytest.raises(ValueError, match="X must be one matrix, not a pair, or dense_columns must be 0"):
        fitted(PAIR, dense_columns=D)
    with pytest.raises(ValueError, match="X must be one matrix, not a pair"):
        model.predict((NEW_COUNTS, NEW_H))
    with pytest.raises(ValueError, match="X must have 5 sparse features and embeddings of width 6, got 4 and 6"):
        model.predict(new[:, 1:])


def test_a_column_transformer():
    """Texts and numbers in one table, as scikit-learn converts them."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    columns = [f"h{i}" for i in range(D)]
    table, new = (pandas.DataFrame(h, columns=columns).assign(text=t) for t, h in (PAIR, NEW))
    for density in 0.0, 1.0:  # a dense, a sparse matrix
        parts = [("words", TfidfVectorizer(), "text"), ("embeddings", "passthrough", columns)]
        classifier = train.Classifier(**SMALL, dense_columns=D)
        pipeline = make_pipeline(ColumnTransformer(parts, sparse_threshold=density), classifier).fit(table, CLASSES)
        assert pipeline[-1].tfidf_ is None and pipeline[-1].architecture_ == "wide-and-deep"
        assert pipeline.score(new, NEW_CLASSES) > 0.85
    assert cross_val_score(pipeline, table, CLASSES, cv=2, error_score="raise").mean() > 0.8


# ---------------------------------------------------------------- validation and weights


def test_a_validation_set_decides():
    """On all settings and the weights of the parts; its metrics are recorded after each epoch."""
    weights = {"kernel_weight": "auto", "head_weight": "auto"}
    model = train.Classifier(**SMALL | weights | {"power": "auto", "C": "auto", "calibration": True})
    model.fit(PAIR, Y, validation=(NEW, NEW_Y))
    assert [record["validation"]["P@1"] > 0.5 for record in model.history_.epochs] == [True] * 5
    found = {}
    for tried in itertools.product(wide.KERNEL_WEIGHTS, wide.HEAD_WEIGHTS):
        other = fitted(kernel_weight=tried[0], head_weight=tried[1], power=model.power_, C=model.C_)
        found[tried] = other.evaluate(NEW, NEW_Y)["nDCG@5"]
    chosen = model.kernel_weight_, model.head_weight_
    assert found[chosen] == model.evaluate(NEW, NEW_Y)["nDCG@5"] > found[0.0, 0.0]
    assert found[chosen] * (1 + linear_settings.MIN_GAIN) >= max(found.values())
    tried = [trial for trial in model.trials_ if "power" in trial][0]
    kernel = fitted_part("kernel", power=tried["power"], epochs=linear_settings.TRIAL_EPOCHS)
    assert tried["nDCG@5"] == kernel.evaluate(NEW_H, NEW_Y)["nDCG@5"]
    again = fitted(kernel_weight=chosen[0], head_weight=chosen[1], power=model.power_, C=model.C_).calibrate(NEW, NEW_Y)
    assert bits(again) == bits(model) and again.threshold_ == model.threshold_


def test_a_share_of_the_rows_is_held_out():
    weights = {"kernel_weight": "auto", "head_weight": "auto"}
    model = fitted((COUNTS, H), validation_fraction=0.25, calibration=True, **weights)
    assert model.n_points_ == 180 == model.network_.kernel.layer.n_points
    assert model.kernel_weight_ + model.head_weight_ > 0
    y = scipy.sparse.csr_matrix(np.eye(8)[CLASSES])
    rows = train.validation.split(COUNTS, y, None, 0.25, 0)[1]
    other = fitted(
        (COUNTS[rows], H[rows]),
        [Y[row] for row in rows],
        kernel_weight=model.kernel_weight_,
        head_weight=model.head_weight_,
    )
    assert bits(model) == bits(other)


def test_rows_of_weight_zero_are_left_out():
    weights = np.arange(240) % 4 / 2
    rows = np.flatnonzero(weights)
    options = {"kernel_weight": "auto", "power": "auto", "calibration": True}
    zeros = fitted(sample_weight=weights, **options)
    part = [TEXTS[row] for row in rows], H[rows]
    without = fitted(part, [Y[row] for row in rows], weights[rows], **options)
    assert bits(zeros) == bits(without) and zeros.trials_ == without.trials_ and zeros.n_points_ == 180
    assert (zeros.kernel_weight_, zeros.threshold_) == (without.kernel_weight_, without.threshold_)
    plain = bits(fitted(part, [Y[row] for row in rows], **options))
    assert all(plain[name] != bits(zeros)[name] for name in ("linear.values", "kernel.values"))


# ---------------------------------------------------------------- held-out rows, predictions


@pytest.mark.parametrize("is_large", [False, True])
def test_held_out_rows_are_not_trained_on(is_large, monkeypatch):
    """By no part: what is predicted for them does not depend on their labels."""
    if is_large:
        monkeypatch.setattr(held_out, "SMALL_SET", 0)
    seen, found = wide.WideTraining._predicted, []

    def recorded(self, model, x, n_points, rows):
        found.append((rows, seen(self, model, x, n_points, rows)))
        return found[-1][1]

    monkeypatch.setattr(wide.WideTraining, "_predicted", recorded)
    options = {"kernel_weight": "auto", "head_weight": "auto", "calibration": True}
    fitted((COUNTS, H), CLASSES, **options)
    rows, candidates = found[0]
    assert len(found) == (1 if is_large else 5) and len(candidates) == len(wide.KERNEL_WEIGHTS) * len(wide.HEAD_WEIGHTS)
    classes = CLASSES.copy()
    classes[rows] = np.roll(CLASSES[rows], 1)
    found.clear()
    model = fitted((COUNTS, H), classes, **options)
    assert model.calibration_ is not None
    np.testing.assert_array_equal(rows, found[0][0])
    for one, other in zip(candidates, found[0][1], strict=True):
        for name in "scores", "ids", "n_points":
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len({one.scores.tobytes() for one in candidates}) == len(candidates)


def test_probabilities_and_label_sets(model):
    found = model.predict_proba(NEW)
    assert found.shape == (80, 9) and (found >= 0).all() and (found <= 1).all() and np.ptp(found) > 0.8
    scores, ids = model.top_k(NEW, 9)
    wanted = model.calibration_.probabilities(scores, (model.label_counts_ + model.name_counts_)[ids])
    np.testing.assert_array_equal(np.take_along_axis(found, ids, 1), wanted)
    values = model.evaluate(NEW, NEW_Y)
    assert values["sample F1"] > 0.8 and values["ECE"] < 0.1 and values["P@1"] == model.score(NEW, NEW_Y)


def test_allowed_and_weighted_labels(model):
    plain = fitted()
    scores = plain.decision_function(NEW)
    found, ids = plain.top_k(NEW, 3, allow=["label 6", "label 2"])
    at = sorted(map(plain.classes_.tolist().index, ("label 2", "label 6")))
    assert (np.sort(ids[:, :2]) == at).all() and (ids[:, 2] == -1).all()
    np.testing.assert_array_equal(found[:, :2], -np.sort(-scores[:, at]))
    assert "also" not in {label for row in model.predict(NEW, 8, forbid=["also"]) for label in row}
    weights = np.linspace(0.1, 3, 9)
    weighted = scores + (np.log(weights) / 4).astype(np.float32)
    np.testing.assert_array_equal(plain.top_k(NEW, 9, label_weights=weights)[1], np.argsort(-weighted, 1, "stable"))


def test_explanations_add_up(model):
    """The score of the kernel machine is one term."""
    for text, h in zip([*NEW_TEXTS[:3], ""], [*NEW_H[:2], NEW_H[2] * 0, NEW_H[3]], strict=True):
        check_sums(model, ([text], h[None]), (text, h))
    label = NEW_Y[0][0]
    found = model.explain((NEW_TEXTS[0], NEW_H[0]), label, n=100)
    kernel, id_ = model.network_.kernel, model.classes_.tolist().index(label)
    wanted = model.kernel_weight_ * to_numpy(kernel.scores(*kernel.neighbors(NEW_H[:1])))[0, id_]
    wanted += model.head_weight_ * (normalized(NEW_H[:1], kernel.mean) @ model.network_.head[id_])[0]
    assert found.terms["embedding"] == pytest.approx(wanted) and wanted
    assert {"bias", "embedding", "frequency"} <= found.terms.keys() and NEW_TEXTS[0].split()[0] in dict(
        found.contributions
    )
    assert "embedding" not in model.explain((NEW_TEXTS[0], np.zeros(D)), label).terms
    assert [one.label for one in model.explain((TEXTS[0], H[0]))] == model.predict((TEXTS[:1], H[:1]))[0]


def test_explanations_of_features():
    model = fitted((COUNTS, H))
    row = (NEW_COUNTS[:1], NEW_H[:1])
    for form in row, (NEW_COUNTS[0].toarray()[0], NEW_H[0]), (NEW_COUNTS[:1].toarray(), NEW_H[0]):
        check_sums(model, row, form)
    assert {name for name, _ in model.explain(row, "also").contributions} <= {f"feature {i}" for i in range(5)}
    for bad, error, message in (
        (NEW_H[0], TypeError, r"X must be a pair \(text or row of features, embedding\), got ndarray"),
        ((NEW_COUNTS[:2], NEW_H[:2]), ValueError, "X must have one embedding per row|width 6"),
        ((NEW_COUNTS[:1], NEW_H[0, :3]), ValueError, "embeddings of width 6, got 5 and 3"),
    ):
        with pytest.raises(error, match=message):
            model.explain(bad)


# ---------------------------------------------------------------- files


def test_save_and_load(model, tmp_path):
    model.save(tmp_path / "a")
    again = train.Classifier.load(tmp_path / "a", device="cpu")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() and bits(again) == bits(model)
    names = (
        "architecture_",
        "power_",
        "kernel_C_",
        "kernel_weight_",
        "head_weight_",
        "C_",
        "frequency_",
        "n_dense_",
        "threshold_",
    )
    assert [getattr(again, name) for name in names] == [getattr(model, name) for name in names]
    for got, want in zip(again.top_k(NEW, 9), model.top_k(NEW, 9), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(again.predict_proba(NEW), model.predict_proba(NEW))
    assert again.explain((TEXTS[0], H[0])) == model.explain((TEXTS[0], H[0]))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("kernel.points", lambda a: a[:-1], "kernel.indptr must have shape"),
        ("kernel.points", lambda a: a[:, :-1].copy(), r"kernel.points must have shape \(N, 6\)"),
        ("kernel.points", lambda a: a * np.float32(np.nan), "kernel.points must be finite"),
        ("kernel.indptr", lambda a: a + 1, "kernel.indptr must rise"),
        ("kernel.labels", lambda a: a + 9, r"kernel.labels must lie in \[0, 9\)"),
        ("kernel.values", lambda a: a[:-1], "kernel.values must have shape"),
        ("kernel.bias", lambda a: a[:-1], "kernel.bias must have shape"),
        ("kernel.mean", lambda a: a[:-1], "kernel.mean must have shape"),
        ("head.weights", lambda a: a[:-1], r"head.weights must have shape \(9, 6\)"),
        ("head.weights", lambda a: a[:, 1:].copy(), r"head.weights must have shape \(9, 6\)"),
        ("head.weights", lambda a: a * np.float32(np.inf), "head.weights must be finite"),
        ("head.weights", lambda a: a.astype(np.float64), "head.weights must be float32"),
        ("linear.labels", lambda a: a + 9, r"linear.labels must lie in \[0, 9\)"),
        ("linear.values", lambda a: a * np.float32(np.nan), "linear.values must be finite"),
        ("linear.indptr", lambda a: a[:-1], "linear.indptr must have shape"),
        ("co_occurrence.counts", lambda a: a[:-1], "co_occurrence.counts must have shape"),
        ("text.idf", lambda a: a[:-1], "text.idf must have shape"),
        *((name, lambda a: None, name) for name in ("kernel.points", "head.weights", "linear.bias", "text.idf")),
    ],
)
def test_damaged_arrays(model, tmp_path, name, change, message):
    """None stands for an array that is missing."""
    model.save(tmp_path / "m")
    arrays, about = checkpoint.load(tmp_path / "m", "classifier")
    arrays = dict(arrays) | {name: change(arrays[name])}
    checkpoint.save(tmp_path / "bad", "classifier", {n: a for n, a in arrays.items() if a is not None}, about)
    with pytest.raises(train.ModelFileError, match=f"does not contain a complete Classifier .*{message}"):
        train.Classifier.load(tmp_path / "bad", device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_weight": None}, "kernel_weight must be a number"),
        ({"kernel_weight": -1.0}, "kernel_weight must lie in"),
        ({"kernel_weight": 1e7}, "kernel_weight must lie in"),
        ({"head_weight": None}, "head_weight must be a number"),
        ({"head_weight": -1.0}, "head_weight must lie in"),
        ({"head_weight": 1e7}, "head_weight must lie in"),
        ({"power": None}, "power must be a number"),
        ({"kernel_C": None}, "kernel_C must be a number"),
        ({"C": None}, "C must be a number"),
        ({"params": {"dense_columns": 6}}, "dense_columns must be 0, or n_dense if there is no vectorizer, got 6"),
        ({"n_dense": 0}, "text.idf must have|n_dense must not be 0"),
        ({"n_dense": 5}, "text.idf must have"),
        ({"n_dense": 10**6}, "n_dense must be below n_features"),
        ({"n_dense": -1}, "n_dense must be between 0"),
        ({"is_dense": True}, "n_dense must be below n_features = .*, and 0 if is_dense is true"),
        ({"architecture": "linear"}, "n_dense must not be 6 for architecture='linear'"),
        ({"architecture": "kernel"}, "n_dense must not be 6 for architecture='kernel'"),
    ],
)
def test_damaged_descriptions(model, tmp_path, changes, message):
    model.save(tmp_path / "m")
    arrays, about = checkpoint.load(tmp_path / "m", "classifier")
    checkpoint.save(tmp_path / "bad", "classifier", dict(arrays), about | changes)
    with pytest.raises(train.ModelFileError, match=f"does not contain a complete Classifier .*({message})"):
        train.Classifier.load(tmp_path / "bad", device="cpu")


# ---------------------------------------------------------------- runs that go on


def run(path=None, resume=False, n_steps=None, monkeypatch=None, **changes):
    """Fit with weights and a checkpoint; with `n_steps`, Ctrl-C in that step of the linear layer."""
    if n_steps is not None:
        counted, step = itertools.count(1), wide.WideTraining._step

        def stop(self):
            step(self)
            if next(counted) == n_steps:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(wide.WideTraining, "_step", stop)
    options = {"calibration": True, "kernel_weight": "auto", "head_weight": "auto"} | changes
    validation = options.pop("validation", None)
    model = train.Classifier(**SMALL | options)
    weights = 1 + np.arange(240) % 3 / 2
    return model.fit((COUNTS, H), Y, weights, checkpoint_path=path, resume=resume, validation=validation)


def of_kind(kind, monkeypatch):
    """What a run of this kind needs: held-out rows in folds, or that join in the third epoch, or a validation set."""
    if kind == "late rows":
        monkeypatch.setattr(held_out, "SMALL_SET", 0)
    return {"validation": ((NEW_COUNTS, NEW_H), NEW_Y)} if kind == "validation" else {}


@functools.cache
def whole_run(kind):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(**of_kind(kind, monkeypatch))


@pytest.mark.parametrize("kind", ["folds", "late rows", "validation"])
@pytest.mark.parametrize("n_steps", [1, 60, 100, 170, 180, 240, 280])
def test_a_resumed_run_comes_to_the_same_bits(tmp_path, monkeypatch, kind, n_steps):
    """With the same weights of the parts, and calibration."""
    options, whole = of_kind(kind, monkeypatch), whole_run(kind)
    with pytest.MonkeyPatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", n_steps=n_steps, monkeypatch=stopping, **options)
    again = run(tmp_path / "c", resume=True, **options)
    assert bits(again) == bits(whole) and again.history_.losses == whole.history_.losses
    for name in "kernel_weight_", "head_weight_", "threshold_":
        assert getattr(again, name) == getattr(whole, name)
    for one, other in zip(again.history_.epochs, whole.history_.epochs, strict=True):
        found, wanted = (record.get("validation", {}) | {"seconds": 0} for record in (one, other))
        assert found == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a * np.nan, "weights must be finite"),
        (lambda a: -1 - a, "weights must lie in"),
        (lambda a: a[:1], "weights must have shape"),
        (lambda a: a.astype(np.float32), "weights must be float64"),
        (lambda a: None, "weights"),
    ],
)
def test_damaged_checkpoints(tmp_path, monkeypatch, change, message):
    with pytest.MonkeyPatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", n_steps=70, monkeypatch=stopping)
    arrays, about = checkpoint.load(tmp_path / "c", "classifier checkpoint")
    arrays = dict(arrays) | {"weights": change(arrays["weights"])}
    arrays = {n: a for n, a in arrays.items() if a is not None}
    checkpoint.save(tmp_path / "bad", "classifier checkpoint", arrays, about)
    with pytest.raises(train.ModelFileError, match=f"cannot be resumed: .*{message}"):
        run(tmp_path / "bad", resume=True)


def test_a_checkpoint_of_another_run(tmp_path):
    run(tmp_path / "c")
    for changes, message in (
        ({"kernel_weight": 1.0}, "kernel_weight was 'auto', not 1.0"),
        ({"power": 3.0}, "power was 4"),
    ):
        with pytest.raises(train.ModelFileError, match=f"cannot be resumed: {message}"):
            run(tmp_path / "c", resume=True, **changes)
    model = train.Classifier(**SMALL | {"calibration": True, "kernel_weight": "auto", "head_weight": "auto"})
    with pytest.raises(train.ModelFileError, match="cannot be resumed: the checkpoint was written for different data"):
        model.fit((COUNTS, H + 1), Y, 1 + np.arange(240) % 3 / 2, checkpoint_path=tmp_path / "c", resume=True)


def test_a_budget_is_shared(tmp_path, ticking, monkeypatch):
    """The kernel machine gets half of it, the linear layer what is left."""
    few = run(tmp_path / "c", budget_seconds=8.0)
    assert few.history_.stopped == "budget" and few.history_.seconds == 4.0
    assert few.score((NEW_COUNTS, NEW_H), NEW_Y) > 0.2 and few.calibration_ is not None
    whole, again = run(), run(tmp_path / "c", resume=True)
    assert bits(again) == bits(whole) and again.kernel_weight_ == whole.kernel_weight_
    enough = run(budget_seconds=155.0)  # 300 steps of each part, which take a quarter of a second
    assert enough.history_.stopped == "epochs"


def test_an_interrupted_fit_predicts_and_can_be_saved(tmp_path):
    """It has no linear layer over the embeddings."""
    model = train.Classifier(**SMALL)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(PAIR, Y, after_epoch=interrupt)
    assert model.head_weight_ == 0 and model.kernel_weight_ == 1
    model.save(tmp_path / "m")
    again = train.Classifier.load(tmp_path / "m", device="cpu")
    np.testing.assert_array_equal(again.top_k(NEW)[0], model.top_k(NEW)[0])


def test_a_limit_is_kept_before_the_search(monkeypatch):
    plan = fitted().memory_plan_
    names = [array.name for array in plan.arrays]
    for name in "kernel: points", "layer: lists of labels, weights", "layer over embeddings: weights":
        assert name in names
    assert "layer over embeddings: weights" not in [one.name for one in fitted(head_weight=0).memory_plan_.arrays]
    assert bits(fitted(memory_limit=plan.nbytes)) == bits(fitted())
    monkeypatch.setattr(train.kernel, "prepared", lambda *_: pytest.fail("the neighbors were searched"))
    with pytest.raises(train.MemoryLimitError, match="use a smaller n_neighbors, features_per_point, .* head_weight=0"):
        fitted(memory_limit=plan.nbytes - 1)


# ---------------------------------------------------------------- CUDA


@pytest.mark.cuda
def test_on_cuda_as_on_the_cpu(monkeypatch):
    """Three steps of the layer over words and of the kernel machine, the layer over embeddings, and predictions."""
    monkeypatch.setattr(dual_run, "MIN_STEPS_PER_EPOCH", 3)
    x, few = (COUNTS[:12], H[:12]), {"epochs": 1, "n_neighbors": 5, "min_features": 2}
    a, b = (fitted(x, CLASSES[:12] % 4, **few, device=device) for device in ("cpu", "cuda"))
    assert a.history_.steps == b.history_.steps == 3 and b.network_.device == "cuda"
    for name, values in a.network_.parameters.items():
        np.testing.assert_allclose(to_numpy(values), to_numpy(b.network_.parameters[name]), atol=1e-4)
    new = NEW_COUNTS[:3], NEW_H[:3]
    (scores, ids), (more, others) = (m.top_k(new, 4) for m in (a, b))
    np.testing.assert_allclose(scores, more, atol=1e-4)
    np.testing.assert_array_equal(ids, others)


# ---------------------------------------------------------------- bad input

NAN_IN_ROW = H.copy()
NAN_IN_ROW[200, 2] = np.nan


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ((TEXTS, NAN_IN_ROW), ValueError, "the embeddings must be finite as float32, got NaN or infinity in row 200"),
        ((TEXTS, np.where(np.isnan(NAN_IN_ROW), 1e300, H.astype(float))), ValueError, "the embeddings .* in row 200"),
        ((TEXTS, H[:5]), ValueError, "X must have one embedding per row, .* got 240 rows and 5 embeddings"),
        ((TEXTS[:5], H), ValueError, "X must have one embedding per row, .* got 5 rows and 240 embeddings"),
        ((TEXTS, scipy.sparse.csr_matrix(H)), TypeError, "a pair of words and a dense array, got csr_matrix as second"),
        (
            (H, TEXTS),
            TypeError,
            "X must be a pair of texts or sparse features, and a dense array .* got ndarray and list",
        ),
        ((H, COUNTS), TypeError, "X must be a pair of words and a dense array, got csr_matrix as second part"),
        ((TEXTS, H.tolist()), TypeError, "X must be a pair of .* got list and list; use np.asarray for the embeddings"),
        ((TEXTS, H[:, 0]), TypeError, "X must be a pair of .* got list and ndarray"),
        ((TEXTS, H * 1j), ValueError, "Complex data not supported: the embeddings of X"),
        ((TEXTS, np.full((240, 2), "a")), ValueError, "the embeddings of X must"),
        ((TEXTS, np.empty((240, 0))), ValueError, "the embeddings of X has 0 feature"),
        (([*TEXTS[:-1], None], H), TypeError, r"X\[239\] must be a str, got NoneType"),
        ((COUNTS * np.nan, H), ValueError, "X must contain counts|X must be finite"),
    ],
)
def test_what_fit_refuses(x, error, message, model):
    with pytest.raises(error, match=message):
        fitted(x)
    before, answers = dict(vars(model)), model.top_k(NEW)[0]
    with pytest.raises(error, match=message):
        model.fit(x, Y)
    assert vars(model) == before and np.array_equal(model.top_k(NEW)[0], answers)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (NEW_TEXTS, TypeError, r"X must be a pair \(words, embeddings of width 6\) as in fit, got list; without embed"),
        (NEW_H, TypeError, r"X must be a pair \(words, embeddings of width 6\) as in fit, got ndarray"),
        ((NEW_H, NEW_TEXTS), TypeError, "X must be a pair of texts or sparse features, and a dense array"),
        ((NEW_TEXTS, NEW_H.tolist()), TypeError, "use np.asarray for the embeddings"),
        (
            (NEW_TEXTS, NEW_H[:, :5]),
            ValueError,
            "X must have .* sparse features and embeddings of width 6, got .* and 5",
        ),
        ((NEW_TEXTS, NEW_H[:7]), ValueError, "X must have one embedding per row, .* got 80 rows and 7 embeddings"),
        ((NEW_TEXTS, scipy.sparse.csr_matrix(NEW_H)), TypeError, "got csr_matrix as second part"),
        ((NEW_COUNTS, NEW_H), TypeError, "X must be a sequence of texts as in fit, got csr_matrix"),
        (
            (NEW_TEXTS, NEW_H * np.nan),
            ValueError,
            "the embeddings must be finite as float32, got NaN or infinity in row 0",
        ),
    ],
)
def test_what_a_model_of_pairs_refuses(x, error, message, model):
    for method in model.predict, model.top_k, model.predict_proba, model.decision_function:
        with pytest.raises(error, match=message):
            method(x)
    for method in model.evaluate, model.score, model.calibrate:
        with pytest.raises(error, match=message):
            method(x, NEW_Y)


def test_a_model_of_features_refuses_other_pairs():
    model = fitted((COUNTS, H))
    for x, error, message in (
        ((NEW_TEXTS, NEW_H), TypeError, "X must have features as in fit, got texts"),
        (
            (NEW_COUNTS[:, :4], NEW_H),
            ValueError,
            "X must have 5 sparse features and embeddings of width 6, got 4 and 6",
        ),
        ((NEW_H, NEW_COUNTS), TypeError, "got csr_matrix as second part"),
        ((NEW_COUNTS, NEW_COUNTS), TypeError, "got csr_matrix as second part"),
    ):
        with pytest.raises(error, match=message):
            model.predict(x)


def test_embeddings_with_a_model_without_any():
    for architecture, x in ("linear", NEW), ("kernel", NEW):
        with pytest.raises(TypeError, match="X must not be a pair: the model was fitted without embeddings"):
            fitted_part(architecture).predict(x)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (NEW_TEXTS, "validation X must have embeddings if X has them, of the same width"),
        ((NEW_TEXTS, NEW_H[:, :4]), "validation X must have embeddings if X has them, of the same width"),
        ((NEW_TEXTS, NEW_H[:9]), "validation X must have one embedding per row, .* got 80 rows and 9 embeddings"),
        ((NEW_TEXTS, NEW_H * np.nan), "the embeddings must be finite as float32, got NaN or infinity in row 0"),
    ],
)
def test_bad_validation_sets(validation, message):
    with pytest.raises(ValueError, match=message):
        train.Classifier(**SMALL).fit(PAIR, Y, validation=(validation, NEW_Y))


def test_embeddings_in_the_validation_set_only():
    with pytest.raises(ValueError, match="validation X must have embeddings if X has them"):
        train.Classifier(**AUTO | OF_LINEAR).fit(TEXTS, Y, validation=(NEW, NEW_Y))


@pytest.mark.parametrize(
    ("params", "x", "message"),
    [
        ({"kernel_weight": -1}, PAIR, "kernel_weight must lie in"),
        ({"kernel_weight": "much"}, PAIR, "kernel_weight must be a number, got str 'much'"),
        ({"head_weight": float("nan")}, PAIR, "head_weight must lie in"),
        ({"dense_columns": -1}, PAIR, "dense_columns must be at least 0, got -1"),
        (
            {"embedding": 3},
            PAIR,
            "embedding must keep its default: a pair of features .* 'wide-and-deep' .*; do not set",
        ),
        ({"architecture": "linear"}, PAIR, "architecture='linear' needs X to be one matrix, or texts, not a pair; use"),
        ({"architecture": "kernel"}, PAIR, "architecture='kernel' needs X to be one matrix, or texts, not a pair"),
        ({"architecture": "wide-and-deep"}, TEXTS, "architecture='wide-and-deep' needs X to be a pair"),
        ({"architecture": "wide-and-deep"}, H, "architecture='wide-and-deep' needs X to be a pair"),
    ],
)
def test_bad_parameters(params, x, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fitted(x, **params)


def test_what_a_model_of_pairs_cannot_do(model):
    before = bits(model)
    with pytest.raises(
        AttributeError, match="partial_fit needs a linear layer; models of another architecture must be"
    ):
        model.partial_fit(PAIR, Y)
    with pytest.raises(ValueError, match="architecture='linear' needs X to be one matrix, or texts, not a pair"):
        train.Classifier(**AUTO).partial_fit(PAIR, Y)
    with pytest.raises(ValueError, match="retire needs architecture='linear'"):
        model.retire(["also"])
    with pytest.raises(ValueError, match="encode .* architecture='wide-and-deep' has none"):
        model.encode(PAIR)
    again = train.Classifier(**model.get_params()).set_params(warm_start=True)
    assert bits(again.fit(PAIR, Y)) == bits(again.fit(PAIR, Y)) == before
