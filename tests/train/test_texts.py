"""`Classifier` on texts and label names: bad and odd input, models in files, runs that are resumed."""

import copy

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, train
from sparsemax_nb.core.device import to_numpy

TEXTS = ["old maps of Rome", "old books", "new maps", "new books of Rome", "a ship at sea", "ships and maps"] * 3
LABELS = [["map"], ["book"], ["map", "new"], ["book", "new"], ["ship"], ["ship", "map"]] * 3
NAMES = ["book", "map", "new", "ship"]
COMMON = {"device": "cpu", "progress": False}
LINEAR = COMMON | {"C": 1.0, "slack": 0.5, "frequency": 0.0, "epochs": 2}
NETWORK = COMMON | {"architecture": "network", "embedding": 8, "intermediate": 16, "fan_in": 4, "epochs": 2}
SPARSE = scipy.sparse.csr_matrix(np.eye(18, 6, dtype=np.float32))
NAN = float("nan")


def fit(x=TEXTS, y=LABELS, names=None, validation=None, **params):
    return train.Classifier(**LINEAR | params).fit(x, y, names=names, validation=validation)


@pytest.fixture(scope="module")
def fitted():
    """A model that no test changes."""
    return fit()


def state(model):
    """All that a model knows, in a form that is equal if nothing has changed."""
    parameters = {name: to_numpy(array).tobytes() for name, array in model.network_.parameters.items()}
    return dict(vars(model)), parameters, model.predict(TEXTS), model.classes_.tolist()


# ------------------------------------------------------------ texts


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([], ValueError, r"X must be a matrix, got shape \(0,\); Reshape your data: one row a point, or texts"),
        ("maps", TypeError, r"X must be a matrix or a sequence of texts, got 'maps'; use \[text\]"),
        (b"maps", TypeError, "X must be a matrix or a sequence of texts, got b'maps'"),
        ([*TEXTS[:-1], None], TypeError, r"X\[17\] must be a str, got NoneType None"),
        ([*TEXTS[:-1], NAN], TypeError, r"X\[17\] must be a str, got float nan"),
        (np.array([*TEXTS[:-1], NAN], object), TypeError, r"X\[17\] must be a str, got float nan"),
        ([3, *TEXTS[1:]], TypeError, r"X\[0\] must be a str, got int 3"),
        ([b"a", *TEXTS[1:]], TypeError, r"X\[0\] must be a str, got bytes"),
        ([None] * 18, ValueError, "X must be a matrix"),
        (np.array([TEXTS]), ValueError, "X must contain numbers"),
        (iter(TEXTS), TypeError, "X must be a sequence, got list_iterator, .* use list"),
        ([""] * 18, ValueError, "texts must contain words, got 18 texts without any"),
        (["?! \ud800 \U0001f339"] * 18, ValueError, "texts must contain words"),
        (TEXTS[:-1], ValueError, "X and y must have the same number of rows, got 17 and 18"),
    ],
)
def test_what_fit_refuses(x, error, message, fitted):
    with pytest.raises(error, match=message):
        fit(x)
    model = copy.copy(fitted)
    before = state(model)
    with pytest.raises(error, match=message):
        model.fit(x, LABELS)
    assert state(model) == before


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ("maps", r"X must be a sequence of texts, got 'maps'; use \[text\]"),
        (None, "X must be a sequence of texts as in fit, got NoneType"),
        (5, "X must be a sequence of texts as in fit, got int"),
        ([None], r"X\[0\] must be a str, got NoneType"),
        (["maps", NAN], r"X\[1\] must be a str, got float nan"),
        (iter(["maps"]), "X must be a sequence of texts as in fit, got list_iterator"),
        (SPARSE, "X must be a sequence of texts as in fit, got csr_matrix"),
        (SPARSE.toarray(), "X must be a sequence of texts as in fit, got ndarray"),
        (np.array([["maps"]]), "X must be a sequence of texts as in fit, got ndarray"),
        ({"a": "maps"}, "X must be a sequence of texts, got dict"),
    ],
)
def test_what_a_model_of_texts_refuses(fitted, x, message):
    for method in fitted.predict, fitted.top_k, fitted.predict_proba, fitted.decision_function:
        with pytest.raises(TypeError, match=message):
            method(x)
    for method in fitted.evaluate, fitted.score, fitted.calibrate, fitted.partial_fit:
        before = state(fitted)
        with pytest.raises(TypeError, match=message):
            method(x, [["map"]])
        assert state(fitted) == before


def test_a_model_of_features_refuses_texts():
    model = fit(SPARSE)
    for x in TEXTS[:2], np.array(TEXTS[:2]):
        with pytest.raises(TypeError, match="X must have features as in fit, got texts"):
            model.predict(x)
        with pytest.raises(TypeError, match="X must have features as in fit, got texts"):
            model.partial_fit(x, LABELS[:2])
    with pytest.raises(TypeError, match="X must be a matrix or a sequence of texts, got 'maps'"):
        model.predict("maps")
    with pytest.raises(TypeError, match="got a text"):
        model.explain("maps")


def test_empty_texts_and_unknown_words_have_the_scores_of_the_biases(fitted):
    texts = ["", " \n\t", "zzzz qqqq", "?! \ud800", "\u4e2d"]
    assert fitted.predict(texts) == [[]] * 5
    scores, ids = fitted.top_k(texts)
    bias = to_numpy(fitted.network_.layer.arrays.bias)
    assert np.array_equal(scores, np.tile(-np.sort(-bias), (5, 1))) and (bias[ids] == scores).all()
    assert (fitted.predict_proba(texts) < 0.2).all()
    assert [found.contributions for found in fitted.explain("")] == [()]
    assert fitted.predict(texts, 1).tolist() == [[fitted.classes_[ids[0, 0]]]] * 5
    classes = fit(y=["a", "b", "a"] * 6)
    assert set(classes.predict(texts).tolist()) <= {"a", "b"} and len(set(classes.predict(texts))) == 1
    network = train.Classifier(**NETWORK).fit(TEXTS, LABELS)
    assert network.predict(texts) == [[]] * 5 and np.isfinite(network.decision_function(texts)).all()


def test_empty_texts_in_the_training():
    model = fit([*TEXTS, "", ""], [*LABELS, ["ship"], []])
    assert model.n_points_ == 20 and model.label_counts_.tolist() == [6, 9, 6, 7]
    assert model.predict(["maps", ""]) == [["map"], []]


def test_no_texts_have_no_predictions(fitted):
    assert fitted.predict([]) == [] and fitted.predict([], 2).shape == (0, 2)
    assert fitted.top_k([])[0].shape == fitted.predict_proba([]).shape == fitted.decision_function([]).shape == (0, 4)


def test_a_text_of_10_megabytes(fitted):
    text = "an old map of Rome and some other words " * 250_000
    assert len(text) == 10_000_000
    assert fitted.predict([text], 4).tolist() == fitted.predict([text[:4000]], 4).tolist()


def test_lone_surrogates_separate_words(tmp_path):
    texts = [text.replace(" ", "\ud800") for text in TEXTS]
    model = fit(texts)
    assert model.vectorizer_.feature_names() == fit().vectorizer_.feature_names()
    model.save(tmp_path / "model")
    assert train.Classifier.load(tmp_path / "model", device="cpu").predict(texts) == model.predict(TEXTS)


def test_files_that_are_not_utf_8(tmp_path):
    (tmp_path / "a.tsv").write_bytes("M\u00e4rchen\tbook\n".encode() + "M\u00e4rchen\tbook\n".encode("latin-1"))
    (tmp_path / "b.tsv").write_bytes("maps\tmap\n".encode("utf-16"))
    with pytest.raises(data.DataError, match="a.tsv, line 2"):
        data.read_texts(tmp_path / "a.tsv")
    with pytest.raises(data.DataError, match="b.tsv: this looks like UTF-16 text; save it as UTF-8"):
        data.read_texts(tmp_path / "b.tsv")


# ------------------------------------------------------------ label names


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ([""], ValueError, r"y\[17\] must not contain an empty label name, got ''"),
        (["map", " \t\n"], ValueError, r"y\[17\] must not contain an empty label name"),
        (["map", 1], TypeError, r"y\[17\] must contain str only, got int 1"),
        (["map", None], TypeError, r"y\[17\] must contain str only, got NoneType"),
        ([NAN], TypeError, r"y\[17\] must contain str only, got float nan"),
        ([["map"]], TypeError, r"y\[17\] must contain str only, got list"),
        (None, TypeError, r"y\[17\] must be a list of label names, got None; use \[\] for no labels"),
        ("map", TypeError, r"y\[17\] must be a list of label names, got 'map'"),
        ({"map": 1}, TypeError, r"y\[17\] must be a list of label names, got {'map': 1}"),
    ],
)
def test_rows_that_are_no_lists_of_names(row, error, message, fitted):
    y = [*LABELS[:-1], row]
    model = copy.copy(fitted)
    before = state(model)
    for method in model.fit, model.partial_fit, model.evaluate:
        with pytest.raises(error, match=message):
            method(TEXTS, y)
    with pytest.raises(error, match=message.replace("y", "validation y", 1)):
        model.fit(TEXTS, LABELS, validation=(TEXTS, y))
    assert state(model) == before


def test_odd_names_of_labels(tmp_path):
    long = "x" * 100_000
    odd = ["Map", "map", " map", "\ud800", long, "a\nb", "\u00e9", "e\u0301", "0", "None"]
    model = fit(TEXTS, [[odd[i % 10], odd[i % 10], "book"] for i in range(18)])
    assert model.classes_.tolist() == sorted([*odd, "book"]) == model.label_names_
    assert model.label_counts_.sum() == 36  # a label that a row has twice counts once
    model.save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model", device="cpu")
    assert again.classes_.tolist() == model.classes_.tolist() and again.label_names_ == model.label_names_
    assert again.predict(TEXTS, 5).tolist() == model.predict(TEXTS, 5).tolist()


def test_rows_without_labels():
    model = fit(y=[["map"], []] * 9)
    assert model.label_counts_.tolist() == [9] and model.predict(["Rome maps", "book"]) == [["map"], []]
    with pytest.raises(ValueError, match="y must have at least one label, got empty lists only"):
        fit(y=[[]] * 18)


def test_one_label():
    assert fit(y=[["map"]] * 18).predict(["maps", ""], 1).tolist() == [["map"], ["map"]]
    model = fit(y=["map"] * 18)
    assert model.predict(["maps", "ship"]).tolist() == ["map", "map"] and model.classes_.tolist() == ["map"]


@pytest.mark.parametrize("make", [np.asarray, scipy.sparse.csr_matrix])
def test_a_label_matrix_with_texts(make):
    y = np.array([[name in row for name in NAMES] for row in LABELS])
    model, named = fit(y=make(y), name_points=False), fit(name_points=False)
    predicted = model.predict(TEXTS)
    assert predicted.dtype == (bool if make is np.asarray else np.float32)
    predicted = predicted if make is np.asarray else predicted.toarray() > 0
    assert [[NAMES[i] for i in np.flatnonzero(row)] for row in predicted] == list(map(sorted, named.predict(TEXTS)))
    assert model.label_names_ is None and not model.name_counts_.any()


# ------------------------------------------------------------ names


def test_labels_that_only_names_say_are_predicted():
    model = fit(names={"http://z/1": ["zebra", "striped horses"], "map": "map", "http://z/2": "walrus"})
    assert model.classes_.tolist() == ["http://z/1", "map", "http://z/2", "book", "new", "ship"]
    assert model.label_names_ == ["zebra", "map", "walrus", "book", "new", "ship"]
    assert model.label_counts_.tolist() == [0, 9, 0, 6, 6, 6] and model.name_counts_.tolist() == [2, 1, 1, 1, 1, 1]
    assert model.predict(["a zebra", "striped", "a walrus"], 1)[:, 0].tolist() == ["http://z/1"] * 2 + ["http://z/2"]
    without = fit(names={"http://z/1": "zebra"}, name_points=False)
    assert without.top_k(["a zebra"], 5)[1][0, -1] == 0 and without.top_k(["a zebra"], 5)[0][0, -1] == -1e30
    assert without.label_names_[0] == "zebra"


def test_two_labels_with_the_same_name(tmp_path):
    model = fit(names={"planet": "mercury", "metal": "mercury"})
    assert set(model.predict(["mercury"], 2)[0]) == {"planet", "metal"}
    scores, _ = model.top_k(["mercury"], 2)
    model.save(tmp_path / "model")
    again = train.Classifier.load(tmp_path / "model", device="cpu")
    assert again.label_names_[:2] == ["mercury", "mercury"] and np.array_equal(again.top_k(["mercury"], 2)[0], scores)


def test_empty_names_are_left_out():
    model = fit(names={"map": "", "book": [], "new": [" ", "novel"], "ship": "?!"})
    assert model.classes_.tolist() == ["map", "book", "new", "ship"]
    assert model.label_names_ == ["map", "book", "novel", "?!"]
    assert model.name_counts_.tolist() == [0, 0, 1, 0]  # a name without a word is no training point


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["map"], TypeError, "names must be a dict of label to names, got list"),
        ("map", TypeError, "names must be a dict"),
        ({1: "map"}, ValueError, "names must have str keys that are not empty, got 1"),
        ({"": "map"}, ValueError, "names must have str keys that are not empty, got ''"),
        ({"map": 3}, TypeError, r"names\['map'\] must be a sequence of str, got int 3"),
        ({"map": None}, TypeError, r"names\['map'\] must be a sequence of str, got NoneType"),
        ({"map": b"plan"}, TypeError, r"names\['map'\] must be a sequence of str, got bytes"),
        ({"map": {"plan"}}, TypeError, r"names\['map'\] must be a sequence of str, got set"),
        ({"map": ["plan", 3]}, TypeError, r"names\['map'\] must be a str or a list of str"),
    ],
)
def test_bad_names(names, error, message, fitted):
    model = copy.copy(fitted)
    before = state(model)
    for method in model.fit, model.partial_fit, train.Classifier(**LINEAR).partial_fit:
        with pytest.raises(error, match=message):
            method(TEXTS, LABELS, names=names)
    assert state(model) == before


@pytest.mark.parametrize("y", [np.eye(18), scipy.sparse.csr_matrix(np.eye(18)), ["a", "b"] * 9, [1, 2] * 9])
def test_names_need_label_names(y):
    with pytest.raises(ValueError, match="names must be None unless y has lists of label names"):
        fit(y=y, names={"a": "b"})


def test_names_of_a_model_of_features():
    model = fit(SPARSE, names={"zebra": "striped horse", "map": "plan"})
    assert model.classes_.tolist() == ["zebra", "map", "book", "new", "ship"]
    assert model.label_names_ == ["striped horse", "plan", "book", "new", "ship"] and not model.name_counts_.any()
    assert (model.top_k(SPARSE, 5)[1][:, -1] == 0).all()  # nothing is known about zebras


# ------------------------------------------------------------ validation


def test_validation_by_texts():
    model = fit(validation=(["a map", "books", "zebras"], [["map", "zebra"], ["book"], ["zebra"]]))
    assert model.classes_.tolist() == NAMES and model.calibration_ is not None  # zebra remains unknown
    assert model.evaluate(["a map"], [["map", "zebra"]], [1])["R@1"] == 0.5
    for params in {"C": "auto"}, NETWORK | {"C": "auto", "slack": "auto", "frequency": "auto"}:
        model = fit(validation=(TEXTS[:6], LABELS[:6]), **params)
        assert len(model.predict(TEXTS)) == 18 and model.calibration_ is not None


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (("maps", [["map"]] * 4), TypeError, "validation X must be a sequence of texts, got 'maps'"),
        ((["a map", None], [["map"], ["book"]]), TypeError, r"validation X\[1\] must be a str"),
        ((SPARSE, LABELS), TypeError, r"validation X\[0\] must be a str"),
        ((["a map"], [["zebra"]]), ValueError, "validation must have rows with labels"),
        ((["a map"], [["map"], ["book"]]), ValueError, "validation X and y must have"),
        (([], []), ValueError, "validation must have rows with labels"),
        ((["a map"], np.eye(1, 4)), TypeError, "validation y must be a sequence of lists"),
        ((["a map"], ["map"]), TypeError, r"validation y\[0\] must be a list of label names"),
        ((["a map"],), TypeError, "validation must be a pair"),
        (5, TypeError, "validation must be a pair"),
    ],
)
def test_bad_validation_sets(validation, error, message, fitted):
    model = copy.copy(fitted)
    before = state(model)
    with pytest.raises(error, match=message):
        model.fit(TEXTS, LABELS, validation=validation)
    assert state(model) == before


# ------------------------------------------------------------ partial_fit and retire


def test_partial_fit_with_new_words_and_labels(fitted):
    model = copy.copy(fitted)
    before, features = state(model), model.vectorizer_.feature_names()
    model.partial_fit(["a zebra", "zebras at sea", "maps"], [["zebra"], ["zebra"], ["map"]], names={"walrus": "walrus"})
    assert model.classes_.tolist() == [*NAMES, "walrus", "zebra"] and model.label_names_ == model.classes_.tolist()
    assert model.label_counts_.tolist() == [6, 10, 6, 6, 0, 2] and model.name_counts_.tolist() == [1] * 6
    assert model.predict(["the zebra", "a walrus"], 1)[:, 0].tolist() == ["zebra", "walrus"]
    new = model.vectorizer_.feature_names()
    assert new[: len(features)] == features and "zebra" in new and model.n_features_in_ == len(new)
    assert state(fitted) == before  # nothing is shared with what changed


def test_partial_fit_keeps_the_names_of_known_labels(fitted):
    model = copy.copy(fitted).partial_fit(["maps"], [["map"]], names={"map": "chart", "walrus": ["tusks", "morse"]})
    assert model.label_names_ == [*NAMES, "tusks"] and model.name_counts_.tolist() == [1, 1, 1, 1, 2]


def test_partial_fit_without_labels_or_words(fitted):
    model = copy.copy(fitted).partial_fit(["", "old maps"], [["zebra"], []])
    assert model.classes_.tolist() == [*NAMES, "zebra"] and model.n_points_ == 20
    assert model.predict(["maps of Rome", "books"], 1)[:, 0].tolist() == ["map", "book"]


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (["maps"], ["map"], TypeError, r"y\[0\] must be a list of label names, got 'map'"),
        (["maps"], np.eye(1, 4), TypeError, "y must be a sequence of lists of label names, got ndarray"),
        (["maps"], scipy.sparse.csr_matrix(np.eye(1, 4)), TypeError, "y must be a sequence of lists"),
        (["maps"], [], ValueError, "y must have 1 rows"),
        ([], [], ValueError, "X and y must have at least one row, got 0"),
        (["maps", "books"], [["map"]], ValueError, "y must have 2 rows"),
        (SPARSE[:1], [["map"]], TypeError, "X must be a sequence of texts as in fit"),
    ],
)
def test_bad_partial_fits(x, y, error, message, fitted):
    model = copy.copy(fitted)
    before = state(model)
    with pytest.raises(error, match=message):
        model.partial_fit(x, y)
    assert state(model) == before


def test_another_form_of_y_in_partial_fit():
    for y, other in (["a", "b"] * 9, [1]), ([1, 2] * 9, ["a"]), (["a", "b"] * 9, [["a"]]), (np.eye(18), [["a"]]):
        model = fit(y=y)
        before = dict(vars(model))
        with pytest.raises((TypeError, ValueError), match="y must"):
            model.partial_fit(["maps"], other)
        assert vars(model) == before


def test_retired_labels_can_be_learned_again(fitted):
    model = copy.copy(fitted).retire(["map"])
    assert "map" not in [label for row in model.predict(TEXTS) for label in row]
    model.partial_fit(["a map", "old maps", "new maps"], [["map"]] * 3)
    assert model.classes_.tolist() == NAMES and model.label_counts_[1] == 3
    assert model.predict(["maps"], 1).tolist() == [["map"]]


@pytest.mark.parametrize("params", [{}, {"calibration": False}])
def test_nothing_is_left(params, tmp_path):
    model = fit(**params).retire(NAMES)
    model.save(tmp_path / "model")
    for each in model, train.Classifier.load(tmp_path / "model", device="cpu"):
        assert each.predict(TEXTS) == [[]] * 18
        scores, ids = each.top_k(TEXTS)
        assert (scores == -1e30).all() and (ids == np.arange(4)).all() and not each.label_counts_.any()
        if each.calibration_ is not None:
            assert not each.predict_proba(TEXTS).any()
        assert each.explain("maps")[0].contributions == ()
    assert model.partial_fit(["maps"], [["map"]]).predict(["maps"], 1).tolist() == [["map"]]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("map", TypeError, "labels must be a sequence of labels, got 'map'"),
        (["zebra"], ValueError, "labels must contain labels of the model, got 'zebra'"),
        ([["map"]], ValueError, r"labels must contain labels of the model, got \['map'\]"),
        ([1], ValueError, "labels must contain labels of the model, got 1"),
        (None, TypeError, "labels must be a sequence"),
        (np.array("map"), TypeError, "labels must be a sequence"),
        (np.array([["map"]]), TypeError, "labels must be a sequence"),
    ],
)
def test_labels_that_cannot_be_retired(labels, error, message, fitted):
    before = state(fitted)
    with pytest.raises(error, match=message):
        fitted.retire(labels)
    assert state(fitted) == before


# ------------------------------------------------------------ files

MATRIX = np.array([[name in row for name in NAMES] for row in LABELS])
FORMS = {
    "sparse matrix": {"y": scipy.sparse.csr_matrix(MATRIX.astype(np.float64))},
    "dense matrix": {"y": MATRIX.astype(np.uint8)},
    "int classes": {"y": np.array([3, 1, 2] * 6, np.int16)},
    "float classes": {"y": [0.0, 1e9, -2.0] * 6},
    "str classes": {"y": ["map", "book", "new"] * 6},
    "object classes": {"y": np.array(["map", "book", "\u4e2d\u6587"] * 6, object)},
    "bool classes": {"y": [True, False] * 9},
    "names": {},
    "URIs with names": {
        "y": [[f"http://a.b/{label}" for label in row] for row in LABELS],
        "names": {"http://a.b/map": ["map", "chart"], "http://a.b/zebra": "zebra"},
    },
    "hashing": {"hash_bits": np.int64(7), "char_ngrams": np.int8(3), "word_pairs": np.True_},
    "no calibration": {"calibration": False},
    "threshold": {"threshold": np.float32(0.25), "limit": np.int64(2)},
    "features and names": {"x": SPARSE},
    "network": NETWORK | dict.fromkeys(("C", "slack", "frequency"), "auto") | {"validation": (TEXTS[:6], LABELS[:6])},
}


@pytest.mark.parametrize("form", FORMS)
def test_models_come_back_from_files(form, tmp_path):
    model = fit(**FORMS[form])
    model.save(tmp_path / "a")
    again = train.Classifier.load(tmp_path / "a", device="cpu")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    x = SPARSE if form == "features and names" else [*TEXTS, "", "zebras"]
    predicted, found = model.predict(x), again.predict(x)
    assert type(predicted) is type(found) and getattr(predicted, "dtype", 0) == getattr(found, "dtype", 0)
    if scipy.sparse.issparse(predicted):
        predicted, found = predicted.toarray(), found.toarray()
    assert np.array_equal(predicted, found) if isinstance(predicted, np.ndarray) else predicted == found
    for one, other in zip(model.top_k(x, model.n_labels_), again.top_k(x, model.n_labels_), strict=True):
        assert one.tobytes() == other.tobytes()
    assert hasattr(again, "predict_proba") == hasattr(model, "predict_proba") == (form != "no calibration")
    if form != "no calibration":
        assert model.predict_proba(x).tobytes() == again.predict_proba(x).tobytes()
    for name in "threshold_", "limit_", "n_points_", "label_names_", "n_features_in_":
        assert getattr(again, name) == getattr(model, name)
    for name in "classes_", "label_counts_", "name_counts_":
        assert getattr(again, name).tolist() == getattr(model, name).tolist()
    if model.architecture_ == "linear":
        y = model.predict(x)[:1]
        assert again.partial_fit(x[:1], y).predict(x, 2).tolist() == model.partial_fit(x[:1], y).predict(x, 2).tolist()


# ------------------------------------------------------------ checkpoints


class Stop(Exception):
    """What ends a run early in these tests."""


def run(path=None, resume=False, stop=False, names=None, y=LABELS, **params):
    def after(epoch, _):
        if stop and epoch == 1:
            raise Stop

    model = train.Classifier(**LINEAR | {"epochs": 4} | params)
    return model.fit(TEXTS, y, names=names, checkpoint_path=path, checkpoint_seconds=0, resume=resume,
                     after_epoch=after)  # fmt: skip


VOCABULARY = {"map": ["maps", "charts"], "zebra": "zebra"}
OF_NETWORK = NETWORK | {"validation_fraction": 0.3, "C": "auto", "slack": "auto", "frequency": "auto", "epochs": 4}


@pytest.mark.parametrize("params", [{}, {"hash_bits": 7}, OF_NETWORK], ids=["linear", "hashing", "network"])
def test_a_resumed_fit_of_texts_gives_the_same_bits(params, tmp_path):
    whole = run(names=VOCABULARY, **params)
    with pytest.raises(Stop):
        run(tmp_path / "c", stop=True, names=VOCABULARY, **params)
    again = run(tmp_path / "c", resume=True, names=VOCABULARY, **params)
    whole.save(tmp_path / "whole")
    again.save(tmp_path / "again")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "again").read_bytes()
    assert whole.calibration_ is not None and whole.history_.losses == again.history_.losses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": False}, "calibration was True, not False"),
        ({"word_pairs": False}, "word_pairs was True, not False"),
        ({"char_ngrams": 3}, "char_ngrams was 4, not 3"),
        ({"hash_bits": 9}, "hash_bits was None, not 9"),
        ({"name_points": False}, "name_points was True, not False"),
        ({"threshold": 0.3}, "threshold was 'sample-f1', not 0.3"),
        ({"names": {"map": ["books", "charts"], "zebra": "zebra"}}, "written for different data"),
        ({"names": {"map": "maps"}}, "written for different data"),
        ({"names": None}, "written for different data"),
        ({"y": [["ship"], *LABELS[1:]]}, "written for different data"),
    ],
)
def test_checkpoints_of_another_fit_of_texts(changes, message, tmp_path, fitted):
    with pytest.raises(Stop):
        run(tmp_path / "c", stop=True, names=VOCABULARY)
    with pytest.raises(train.ModelFileError, match=message):
        run(tmp_path / "c", resume=True, **{"names": VOCABULARY} | changes)
