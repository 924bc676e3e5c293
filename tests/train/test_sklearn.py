"""`Classifier` with scikit-learn's tools, and with pandas."""

import warnings
from functools import partial

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, train

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn import metrics, model_selection  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.feature_extraction.text import TfidfTransformer  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils import estimator_checks  # noqa: E402

COMMON = {"device": "cpu", "progress": False}
LINEAR = COMMON | {"architecture": "linear", "C": 1.0, "slack": 0.2, "frequency": 0.0, "epochs": 5,
                   "calibration": False}  # fmt: skip
NETWORK = COMMON | {"architecture": "network", "embedding": 8, "intermediate": 16, "fan_in": 4, "epochs": 20,
                    "batch_size": 32, "learning_rate": 0.02, "dropout": 0.0}  # fmt: skip
KERNEL = COMMON | {"architecture": "kernel", "power": 4.0, "kernel_C": 1.0, "calibration": False}
HELD_OUT = {"validation_fraction": 0.2, "calibration": True, "threshold": 0.5, "limit": None}


@pytest.fixture(scope="module")
def corpus():
    return data.bag_of_words(n_rows=120, n_features=40, words_per_row=5, n_labels=8, labels_per_row=2, seed=1)


@pytest.fixture(scope="module")
def texts():
    """60 texts, and the class of each, which one of its words decides."""
    words, classes = ["maps", "books", "ships"], np.arange(60) % 3
    return [f"{'old new'.split()[i % 2]} {words[c]} {i % 7}" for i, c in enumerate(classes)], classes


# ---------------------------------------------------------------- scikit-learn's own checks

ORDER = "equal rows are trained one after the other, a row with a weight at once: the results differ slightly"
KIND = "a network that was trained on sparse features predicts from sparse features only"
BY_PROBABILITY = "label sets depend on probabilities, not on the sign of the scores"
NOT_MONOTONIC = "a probability depends not only on the score of its class"

CHECKS = {
    "network": (
        NETWORK,
        {
            "check_sample_weight_equivalence_on_dense_data": ORDER,
            "check_sample_weight_equivalence_on_sparse_data": KIND,
        },
    ),
    "linear": (
        LINEAR,
        {
            "check_sample_weight_equivalence_on_dense_data": ORDER,
            "check_sample_weight_equivalence_on_sparse_data": ORDER,
        },
    ),
    "kernel": (KERNEL, {"check_sample_weight_equivalence_on_dense_data": ORDER}),
    "calibrated": (
        LINEAR | HELD_OUT,
        {
            "check_sample_weight_equivalence_on_dense_data": ORDER,
            "check_sample_weight_equivalence_on_sparse_data": ORDER,
            "check_classifier_multioutput": BY_PROBABILITY,
            "check_decision_proba_consistency": NOT_MONOTONIC,
        },
    ),
    "kernel, calibrated": (
        KERNEL | HELD_OUT,
        {
            "check_sample_weight_equivalence_on_dense_data": ORDER,
            "check_classifier_multioutput": BY_PROBABILITY,
            "check_decision_proba_consistency": NOT_MONOTONIC,
        },
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_scikit_learns_checks(name):
    """One class per row and several labels, dense and sparse features."""
    params, expected = CHECKS[name]
    with warnings.catch_warnings(action="ignore"):  # Classifier does not inherit from BaseEstimator
        results = estimator_checks.check_estimator(
            train.Classifier(**params), expected_failed_checks=expected, on_fail=None, on_skip=None
        )
    failed = [(result["check_name"], result["exception"]) for result in results if result["status"] == "failed"]
    assert failed == [] and sum(result["status"] == "passed" for result in results) >= 60


# ---------------------------------------------------------------- one class per row


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "params", [LINEAR | HELD_OUT, KERNEL | HELD_OUT, NETWORK | HELD_OUT], ids=["linear", "kernel", "network"]
)
def test_scores_probabilities_and_classes_agree(corpus, params, n_classes):
    x = corpus.features.toarray()
    y = np.array(["b", "a", "c"])[x[:, :10].argmax(1) % n_classes]
    model = train.Classifier(**params).fit(x, y)
    predicted, scores, probabilities = model.predict(x), model.decision_function(x), model.predict_proba(x)
    assert model.classes_.tolist() == sorted(set(y)) and predicted.shape == (120,) and predicted.dtype == y.dtype
    assert probabilities.shape == (120, n_classes) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert (model.classes_[probabilities.argmax(1)] == predicted).all()
    best = (scores > 0).astype(int) if n_classes == 2 else scores.argmax(1)
    assert scores.shape == ((120,) if n_classes == 2 else (120, 3)) and (model.classes_[best] == predicted).all()
    assert model.score(x, y) == metrics.accuracy_score(y, predicted)


def test_equal_probabilities_belong_to_the_class_that_is_predicted(corpus, monkeypatch):
    """A calibration may give the same probability to several classes, or a larger one to the second."""
    y = np.arange(120) % 3
    model = train.Classifier(**LINEAR | HELD_OUT).fit(corpus.features, y)
    predicted = model.predict(corpus.features)
    for values in ([1, 1, 1], [0, 0, 0], [0.2, 0.9, 0.1]):
        monkeypatch.setattr(
            model, "_probabilities", lambda scores, ids, values=values: np.tile(np.float32(values), (len(ids), 1))
        )
        probabilities = model.predict_proba(corpus.features)
        assert (probabilities.argmax(1) == predicted).all() and np.allclose(probabilities.sum(1), 1)


@pytest.mark.parametrize("classes", [[True, False], [2.0, -1.0], [7, 3], ["b", "a"]])
def test_classes_keep_their_type(corpus, tmp_path, classes):
    y = np.array(classes * 60)
    model = train.Classifier(**LINEAR).fit(corpus.features, y)
    model.save(tmp_path / "model")
    for each in model, train.Classifier.load(tmp_path / "model"):
        assert each.classes_.dtype == each.predict(corpus.features).dtype == y.dtype
        assert each.classes_.tolist() == sorted(classes)


def test_a_network_without_held_out_points_has_no_probabilities(corpus):
    x, y = corpus.features, np.arange(120) % 3
    model = train.Classifier(**NETWORK)
    assert not hasattr(model, "predict_proba") and not hasattr(model.fit(x, y), "predict_proba")
    with pytest.raises(AttributeError, match="predict_proba needs calibration; fit with a validation set, or call"):
        model.predict_proba(x)
    assert model.calibrate(x, y).predict_proba(x).shape == (120, 3)
    assert hasattr(train.Classifier(**NETWORK | HELD_OUT), "predict_proba")
    assert not hasattr(train.Classifier(calibration=False), "predict_proba")


def test_a_network_keeps_the_epoch_with_the_best_accuracy(corpus):
    """P@3 of three classes is always 1/3."""
    x, y = corpus.features.toarray(), corpus.features[:, :10].toarray().argmax(1) % 3
    params = NETWORK | {"initial": "random", "stop_after": 99}
    model = train.Classifier(**params).fit(x, y, validation=(x, y))
    found = [record["validation"]["P@1"] for record in model.history_.epochs]
    assert model.history_.best_epoch == np.argmax(found) > 0 and model.score(x, y) == max(found) > 0.6


@pytest.mark.parametrize("params", [LINEAR, KERNEL, NETWORK], ids=["linear", "kernel", "network"])
def test_nan_in_held_out_rows_is_refused(corpus, params):
    """Before the training: only the validation reads these rows."""
    x, y = corpus.features.toarray(), np.arange(120) % 3
    bad = x[:20].copy()
    bad[7, 3] = np.nan
    epochs = []
    with pytest.raises(ValueError, match="X must be finite.*, got NaN or infinity in row 7"):
        train.Classifier(**params).fit(x, y, validation=(bad, y[:20]), after_epoch=lambda *_: epochs.append(1))
    assert not epochs


# ---------------------------------------------------------------- dense features


def test_a_linear_layer_takes_dense_features(corpus, tmp_path):
    """They become CSR: the same model, and its predictions take both."""
    x, y = corpus.features, corpus.labels
    dense = x.toarray()
    sparse, model = train.Classifier(**LINEAR).fit(x, y), train.Classifier(**LINEAR).fit(dense, y)
    model.save(tmp_path / "model")
    want = sparse.top_k(x, 3)
    for each in sparse, model, train.Classifier.load(tmp_path / "model"):
        for form in x, dense, dense.astype(np.float64), dense.tolist():
            for got, expected in zip(each.top_k(form, 3), want, strict=True):
                np.testing.assert_array_equal(got, expected)
    validated = train.Classifier(**LINEAR | {"C": "auto"}).fit(dense, y, validation=(dense[:50], y[:50]))
    assert validated.trials_ and train.Classifier(**COMMON).fit(dense[:20], y[:20]).architecture_ == "kernel"


def test_the_first_partial_fit_selects_a_linear_layer(corpus):
    dense, y = corpus.features.toarray(), np.arange(120) % 3
    model = train.Classifier(**COMMON, C=1.0, slack=0.2, frequency=0.0).partial_fit(dense, y, classes=[0, 1, 2, 5])
    assert model.architecture_ == "linear" and model.classes_.tolist() == [0, 1, 2, 5]
    assert model.partial_fit(dense, y).n_points_ == 240 and model.architecture == "auto"
    assert not hasattr(model, "_first_classes")
    for more in {}, {"embedding": 8, "intermediate": 16, "fan_in": 4}:  # a kernel machine, a network
        assert not hasattr(train.Classifier(**COMMON, **more, epochs=1).fit(dense, y), "partial_fit")


# ---------------------------------------------------------------- model selection


@pytest.mark.parametrize("scoring", [None, "accuracy", "f1_macro", "neg_log_loss", "roc_auc_ovr"])
@pytest.mark.parametrize(
    "params", [LINEAR | HELD_OUT, KERNEL | HELD_OUT, NETWORK | HELD_OUT], ids=["linear", "kernel", "network"]
)
def test_cross_validation_of_classes(corpus, params, scoring):
    y = np.array(["a", "b", "c"])[corpus.features[:, :10].toarray().argmax(1) % 3]
    scores = model_selection.cross_val_score(
        train.Classifier(**params), corpus.features.toarray(), y, scoring=scoring, cv=2, error_score="raise"
    )
    assert np.isfinite(scores).all() and (scoring == "neg_log_loss" or scores.mean() > 0.3)


@pytest.mark.parametrize("scoring", [None, "accuracy", "f1_samples", "f1_micro", "average_precision"])
@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.csr_array, scipy.sparse.csr_matrix.toarray])
def test_cross_validation_of_label_sets(corpus, scoring, form):
    y = form(corpus.labels)
    if scoring == "average_precision" and scipy.sparse.issparse(y):
        pytest.skip("scikit-learn computes it from dense label matrices only")
    search = model_selection.GridSearchCV(  # `cross_val_score` refuses sparse label matrices
        train.Classifier(**LINEAR), {"C": [0.5, 1.0]}, scoring=scoring, cv=2, error_score="raise"
    )
    with warnings.catch_warnings(action="ignore", category=sklearn.exceptions.UndefinedMetricWarning):
        search.fit(corpus.features, y)
    assert (search.cv_results_["mean_test_score"] > 0.05).all()
    if not scipy.sparse.issparse(y):
        model_selection.cross_val_score(search.best_estimator_, corpus.features, y, scoring=scoring, cv=2)
    predicted = search.predict(corpus.features)
    assert scipy.sparse.issparse(predicted) == scipy.sparse.issparse(y) and predicted.dtype == corpus.labels.dtype


def test_a_search_over_texts(texts):
    """Parameters of the features and of the training; the best model predicts texts."""
    texts, classes = texts
    search = model_selection.GridSearchCV(
        train.Classifier(**LINEAR), {"char_ngrams": [0, 3], "C": [0.5, 1.0]}, cv=2, error_score="raise"
    ).fit(texts, classes)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all() and search.best_score_ > 0.9
    assert (search.predict(texts) == classes).mean() > 0.9 and search.best_estimator_.vectorizer_ is not None


def test_lists_of_label_names(texts):
    texts, classes = texts
    names = [["map"], ["book", "paper"], []]
    folds = model_selection.KFold(3, shuffle=True, random_state=0)
    for form in (list, tuple, set):
        y = [form(names[c]) for c in classes]
        scores = model_selection.cross_val_score(train.Classifier(**LINEAR), texts, y, cv=folds, error_score="raise")
        assert np.isfinite(scores).all() and scores.mean() > 0.5


def test_a_pipeline_and_a_clone(corpus):
    pipeline = make_pipeline(TfidfTransformer(), train.Classifier(**LINEAR, tfidf=False))
    again = clone(pipeline.set_params(classifier__C=0.25))
    assert again.fit(corpus.features, corpus.labels).score(corpus.features, corpus.labels) > 0.5
    assert again[-1].tfidf_ is None and again[-1].C_ == 0.25 and not hasattr(pipeline[-1], "network_")


# ---------------------------------------------------------------- weights of rows


@pytest.mark.parametrize("params", [LINEAR, KERNEL, NETWORK | {"epochs": 1}], ids=["linear", "kernel", "network"])
def test_rows_of_weight_zero_are_left_out(corpus, tmp_path, params):
    """Also in the counts of the labels, and among the classes."""
    x, y = corpus.features, np.arange(120) % 3
    forms = x, x.tocoo()
    if params is KERNEL:
        x = x.toarray()
        forms = x, x.tolist()
    model = train.Classifier(**params | {"frequency": 0.1} if params is LINEAR else params)
    for form in forms:
        model.fit(form, y, sample_weight=y != 1)
        assert model.classes_.tolist() == [0, 2] and model.n_points_ == 80
        assert model.label_counts_.tolist() == [40, 40] and set(model.predict(x)) <= {0, 2}
    matrix = scipy.sparse.coo_matrix(np.eye(3, dtype=int)[y])
    assert model.fit(x, matrix, sample_weight=y != 1).label_counts_.tolist() == [40, 0, 40]
    model.save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.decision_function(x), model.decision_function(x))
    with pytest.raises(ValueError, match="sample_weight must be above 0 for at least one row, got zeros"):
        model.fit(x, y, sample_weight=np.zeros(120))
    for n in (119, 121):
        with pytest.raises(ValueError, match=f"X and y must have the same number of rows, got 120 and {n}"):
            model.fit(x, np.arange(n) % 3, sample_weight=np.arange(120))


def test_names_count_in_the_scores_of_a_model_from_a_file(tmp_path):
    """The logarithms of the numbers of points, with `frequency`."""
    texts, names = ["old maps", "old books", "new maps"] * 6, [["map"], ["book"], ["map", "new"]] * 6
    model = train.Classifier(**LINEAR | {"frequency": 0.5, "co_occurrence": 0.0}).fit(texts, names)
    model.save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.decision_function(texts), model.decision_function(texts))


def test_weights_of_the_score(corpus):
    y, weights = np.arange(120) % 3, np.arange(120) % 5
    model = train.Classifier(**LINEAR).fit(corpus.features, y)
    want = metrics.accuracy_score(y, model.predict(corpus.features), sample_weight=weights)
    assert model.score(corpus.features, y, weights) == pytest.approx(want)
    assert model.score(corpus.features, y, np.ones(120)) == pytest.approx(model.score(corpus.features, y))


# ---------------------------------------------------------------- metadata routing


class Recorder(train.Classifier):
    """Remembers the weights that it was given."""

    seen = ()

    def fit(self, X, y, sample_weight=None, **more):
        type(self).seen = (*type(self).seen, None if sample_weight is None else np.sum(sample_weight))
        return super().fit(X, y, sample_weight, **more)


Recorder.__init__ = train.Classifier.__init__


def test_weights_are_routed(corpus):
    x, y, weights = corpus.features, np.arange(120) % 3, np.full(120, 2.0)
    Recorder.seen = ()
    with sklearn.config_context(enable_metadata_routing=True):
        model = Recorder(**LINEAR).set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        result = model_selection.cross_validate(
            model, x, y, params={"sample_weight": weights}, cv=2, error_score="raise"
        )
        assert np.isfinite(result["test_score"]).all() and Recorder.seen == (120.0, 120.0)
        search = model_selection.GridSearchCV(model, {"C": [0.5, 1.0]}, cv=2, error_score="raise")
        search.fit(x, y, sample_weight=weights)
        assert Recorder.seen[2:] == (120.0,) * 4 + (240.0,)  # the last one is the refit
        pipeline = make_pipeline(TfidfTransformer(), clone(model))
        pipeline.fit(x, y, sample_weight=weights)
        assert Recorder.seen[-1] == 240.0
        renamed = Recorder(**LINEAR).set_fit_request(sample_weight="weights").set_score_request(sample_weight="weights")
        model_selection.cross_validate(renamed, x, y, params={"weights": weights}, cv=2, error_score="raise")
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match="set_fit_request"):
            model_selection.cross_validate(Recorder(**LINEAR), x, y, params={"sample_weight": weights}, cv=2)


def test_requests(corpus):
    model = train.Classifier()
    requests = model.get_metadata_routing()
    assert requests.fit.requests == {"sample_weight": None, "names": None}
    assert requests.partial_fit.requests == {"classes": None, "sample_weight": None, "names": None}
    assert requests.score.requests == {"sample_weight": None} and requests.predict.requests == {}
    with pytest.raises(RuntimeError, match="set_fit_request needs sklearn.set_config"):
        model.set_fit_request(sample_weight=True)
    with sklearn.config_context(enable_metadata_routing=True):
        assert model.set_partial_fit_request(classes=True, sample_weight=False) is model
        again = clone(model)
        assert again.get_metadata_routing().partial_fit.requests["classes"] is True
        again.set_score_request(sample_weight=True)
        assert model.get_metadata_routing().score.requests["sample_weight"] is None
        with pytest.raises(TypeError, match="set_score_request has no argument 'names'; its arguments are sample_we"):
            model.set_score_request(names=True)
        for wrong in (1.0, [], "a b", np.zeros(2)):
            with pytest.raises(ValueError, match="sample_weight must be True, False, None or the name of an argument"):
                model.set_fit_request(names=True, sample_weight=wrong)
        assert model.get_metadata_routing().fit.requests["names"] is None


# ---------------------------------------------------------------- warm start


@pytest.mark.parametrize("params", [LINEAR, NETWORK | {"epochs": 2}], ids=["linear", "network"])
def test_another_fit_continues_with_a_warm_start(corpus, params):
    """Of the same data; a linear layer keeps its features. A change of the labels starts anew."""
    x, y = corpus.features, corpus.labels
    cold, warm = (train.Classifier(**params, warm_start=how).fit(x, y) for how in (False, True))
    first = cold.history_.losses[0]
    kept = cold.network_.parameters
    again = cold.fit(x, y)
    assert again.history_.losses[0] == first
    assert warm.fit(x, y).history_.losses[0] < 0.95 * first
    if params is LINEAR:
        for name in ("linear.indptr", "linear.labels"):
            np.testing.assert_array_equal(warm.network_.parameters[name], kept[name])
    other = train.Classifier(**params).fit(x, y[:, ::-1].tocsr()[:, :5]).history_.losses
    assert warm.fit(x, y[:, ::-1].tocsr()[:, :5]).history_.losses == other


def test_a_warm_start_compares_classes_and_words(texts):
    texts, classes = texts
    params = LINEAR | {"warm_start": True}
    model = train.Classifier(**params).fit(texts, classes)
    first = model.history_.losses[0]
    assert model.fit(texts, classes).history_.losses[0] < first
    assert model.fit(texts, classes + 1).history_.losses[0] == first
    others = [text.replace("maps", "mops") for text in texts]  # as many words and n-grams
    cold = train.Classifier(**LINEAR).fit(others, classes + 1)
    assert model.fit(others, classes + 1).history_.losses == cold.history_.losses


# ---------------------------------------------------------------- pandas


def frame(columns, corpus, n=8):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.DataFrame(corpus.features[:, :n].toarray(), columns=columns)


def test_columns_of_a_data_frame_are_those_of_the_fit(corpus, tmp_path):
    """scikit-learn's rules: the names of the columns, in their order."""
    x = frame(list("abcdefgh"), corpus)
    model = train.Classifier(**NETWORK | {"epochs": 1}).fit(x, corpus.labels)
    assert model.feature_names_in_.tolist() == list("abcdefgh")
    model.save(tmp_path / "model")
    y = corpus.labels
    for fitted_ in model, train.Classifier.load(tmp_path / "model", device="cpu"):
        assert (fitted_.predict(x, 5) == model.predict(x, 5)).all()
        for call in fitted_.predict, fitted_.encode, partial(fitted_.evaluate, y=y), partial(fitted_.score, y=y):
            with pytest.raises(
                ValueError, match="names should match those .* during fit.\nFeature names must be in the same"
            ):
                call(x[x.columns[::-1]])
        with pytest.raises(
            ValueError, match="unseen at fit time:\n- z\nFeature names seen at fit time, yet now missing:\n- a\n"
        ):
            fitted_.predict(x.rename(columns={"a": "z"}))
        with pytest.warns(UserWarning, match="X does not have valid feature names, but Classifier was fitted with"):
            fitted_.predict(x.to_numpy())
    with pytest.raises(ValueError, match="validation: The feature names should match"):
        model.fit(x, y, validation=(x[x.columns[::-1]], y))
    with pytest.raises(TypeError, match="only supported if all input features have string names"):
        train.Classifier(**NETWORK).fit(frame([*"abcdefg", 1], corpus), y)
    model.fit(x.to_numpy(), y)
    assert not hasattr(model, "feature_names_in_")
    with pytest.warns(UserWarning, match="X has feature names, but Classifier was fitted without"):
        model.predict(x)
    assert (model.predict(frame(range(8), corpus), 5) == model.predict(x.to_numpy(), 5)).all()


def test_scikit_learns_check_of_column_names():
    pytest.importorskip("pandas", reason="pandas is not installed")
    estimator_checks.check_dataframe_column_names_consistency("Classifier", train.Classifier(**NETWORK | {"epochs": 1}))


TEXTS = ["old maps", "old books", "new maps", "new books"] * 5
FEW = LINEAR | {"epochs": 2}


@pytest.mark.parametrize("dtype", ["object", "str", "string"])
def test_series_of_texts_and_classes(dtype):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x, y = pandas.Series(TEXTS, index=range(40, 60), dtype=dtype), pandas.Series(["map", "book"] * 10, dtype=dtype)
    model = train.Classifier(**FEW).fit(x, y, sample_weight=pandas.Series([1.0, 2.0] * 10))
    assert model.predict(x).tolist() == y.tolist() and isinstance(model.predict(x), np.ndarray)
    assert model.score(x[::2], y[::2]) == 1
    for missing in (None, pandas.NA):
        with pytest.raises(TypeError, match=r"X\[0\] must be a str, got"):
            model.fit(pandas.Series([missing, *TEXTS[1:]], dtype=dtype), y)
        with pytest.raises(ValueError, match="y must contain either numbers or strings, got .*missing values"):
            model.fit(x, pandas.Series([missing, *y[1:]], dtype=dtype))
    assert model.predict(x).tolist() == y.tolist()


@pytest.mark.parametrize(
    ("values", "dtype", "kind"),
    [
        (["map", "book"], "category", "O"),
        ([7, 3], "category", "i"),
        ([7, 3], "Int64", "i"),
        ([True, False], "boolean", "b"),
        ([7, 3], "Float64", "f"),
    ],
)
def test_series_of_extension_types(values, dtype, kind):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    y = pandas.Series(values * 10, dtype=dtype)
    model = train.Classifier(**FEW).fit(TEXTS, y)
    assert model.classes_.dtype.kind == kind and model.predict(TEXTS).tolist() == y.tolist()
    with pytest.raises(ValueError, match="y must contain either numbers or strings|Input y contains NaN"):
        model.fit(TEXTS, pandas.Series([*values * 9, values[0], None], dtype=dtype))


def test_series_of_lists_of_names():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    rows = [["map"], ["book", "paper"], np.array(["map"]), ("book", "paper")] * 5
    model = train.Classifier(**FEW).fit(pandas.Series(TEXTS), pandas.Series(rows))
    assert model.classes_.tolist() == ["book", "map", "paper"] and all(type(c) is str for c in model.classes_)
    assert model.evaluate(TEXTS, pandas.Series(rows))["sample F1"] == 1
    with pytest.raises(TypeError, match=r"y\[1\] must be a list of label names, got nan; use \[\] for no labels"):
        model.fit(TEXTS, pandas.Series([["map"], np.nan] * 10))


@pytest.mark.parametrize("dtype", ["int8", "bool", "float64", "Int64", "boolean"])
def test_data_frame_of_labels(dtype):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    y = pandas.DataFrame({"map": [1, 0] * 10, "book": [0, 1] * 10}).astype(dtype)
    model = train.Classifier(**FEW).fit(TEXTS, y)
    predicted = model.predict(TEXTS)
    assert isinstance(predicted, np.ndarray) and (predicted == y.to_numpy(predicted.dtype)).all()
    assert predicted.dtype == {"Int64": np.dtype(int), "boolean": np.dtype(int)}.get(dtype, dtype)
    assert model.classes_.tolist() == [0, 1]
    with pytest.warns(sklearn.exceptions.DataConversionWarning, match="use y.ravel()"):
        assert train.Classifier(**FEW).fit(TEXTS, y[["map"]]).predict(TEXTS).shape == (20,)
    if dtype in ("Int64", "float64"):
        y.iloc[0, 0] = None
        with pytest.raises(ValueError, match="y must be a SciPy sparse matrix, or a 0/1 matrix .*(nan|NAType)"):
            model.fit(TEXTS, y)


def test_data_frames_of_features(corpus):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x, y = frame(list("abcdefgh"), corpus), np.arange(120) % 3
    plain = train.Classifier(**FEW).fit(x.to_numpy(), y).decision_function(x.to_numpy())
    for form in (x, x.astype("Float64"), x.astype(pandas.SparseDtype("float", 0)), x.astype(int)):
        model = train.Classifier(**FEW).fit(form, y)
        assert model.feature_names_in_.tolist() == list("abcdefgh")
        np.testing.assert_array_equal(model.decision_function(form), plain)
    missing = x.astype("Float64")
    missing.iloc[3, 1] = pandas.NA
    for bad, error in ((missing, TypeError), (x.assign(t="old maps"), ValueError)):
        with pytest.raises(error, match="X must contain numbers, without missing values: .*; pass texts as a sequence"):
            model.fit(bad, y)
