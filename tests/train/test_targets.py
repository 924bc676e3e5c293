"""Targets of `Classifier`: label matrices, one class per row, lists of label names, and what is none of these."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import train
from sparsemax_nb.train import classifier_targets as targets

TEXTS = ["old maps", "old books", "new maps", "new books"] * 5
COMMON = {"device": "cpu", "progress": False}
FEW = COMMON | {"C": 1.0, "slack": 0.2, "frequency": 0.0, "epochs": 2, "calibration": False}
NETWORK = COMMON | {"embedding": 8, "intermediate": 16, "fan_in": 4, "epochs": 2, "architecture": "network"}
FIX = "y must be a SciPy sparse matrix, or a 0/1 matrix .*; convert lists of label ids with .*MultiLabelBinarizer"


@pytest.mark.parametrize(
    ("y", "form"),
    [
        (["a", "b"] * 10, "class"),
        ([1, 2] * 10, "class"),
        ((True, False) * 10, "class"),
        (np.array(["a", "b"] * 10, np.dtypes.StringDType()), "class"),
        (np.array(["a", "b"] * 10, object), "class"),
        (range(20), "class"),
        ([["a"], ["b", "c"]] * 10, "names"),
        ([("a",), {"b", "c"}] * 10, "names"),
        ([[], ["a"]] * 10, "names"),
        ([np.array(["a"]), np.array(["b", "c"])] * 10, "names"),
        ([["a", "b"], ["b", "c"]] * 10, "names"),
        ([[0, 1], [1, 0]] * 10, "matrix"),
        ([(True, False), (False, True)] * 10, "matrix"),
        ([np.array([0, 1]), np.array([1, 1])] * 10, "matrix"),
        (np.eye(20, 3, dtype=np.uint8), "matrix"),
        (scipy.sparse.eye_array(20, 3, format="coo"), "matrix"),
        (scipy.sparse.csc_matrix(np.eye(20, 1)), "matrix"),
    ],
)
def test_forms(y, form, tmp_path):
    """`predict` returns the form of y, also after loading."""
    assert targets.form_of(y) == form
    model = train.Classifier(**FEW).fit(TEXTS, y)
    model.save(tmp_path / "model")
    for each in model, train.Classifier.load(tmp_path / "model"):
        predicted = each.predict(TEXTS)
        if form == "class":
            assert predicted.shape == (20,) and set(predicted.tolist()) <= set(model.classes_.tolist())
        elif form == "names":
            assert isinstance(predicted, list) and all(type(name) is str for row in predicted for name in row)
        else:
            assert predicted.shape == np.shape(y) and scipy.sparse.issparse(predicted) == scipy.sparse.issparse(y)
        assert 0 <= each.score(TEXTS, y) <= 1 and np.isfinite(list(each.evaluate(TEXTS, y).values())).all()
    again = model.partial_fit(TEXTS, y)
    assert again.n_points_ == 40 and again.n_labels_ == each.n_labels_


def test_a_column_is_a_vector_of_classes():
    """With scikit-learn's warning; other columns of numbers are label matrices."""
    exceptions = pytest.importorskip("sklearn.exceptions")
    for column in (np.array([["a"], ["b"]] * 10), np.array([[7], [3]] * 10), [[7], [3]] * 10):
        with pytest.warns(exceptions.DataConversionWarning, match=r"use y.ravel\(\) for one class per row") as record:
            model = train.Classifier(**FEW).fit(TEXTS, column)
        assert model.predict(TEXTS).shape == (20,) and model.score(TEXTS, np.ravel(column)) == 1
        assert len(record) == 1
    assert record[0].filename == __file__


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ([[1, 2], [3]] * 10, ValueError, FIX),
        ([(1,), (2, 3)] * 10, ValueError, FIX),
        ([{1}, {2, 3}] * 10, ValueError, FIX),
        ([{1}, {2}] * 10, ValueError, FIX),
        ([[5, 7]] * 20, ValueError, "got 5 in it; convert lists of label ids"),
        ([[0.5, 1]] * 20, ValueError, "got 0.5 in it; convert lists of label ids"),
        (np.array([["a", "b"]] * 20), ValueError, "y must be a SciPy sparse matrix, or a 0/1 matrix"),
        (3, ValueError, r"y must be .* got shape \(\)"),
        ("ab" * 10, ValueError, r"y must be a 1-D array with one class per row, got shape \(\)"),
        (dict.fromkeys(range(20)), ValueError, r"y must be a 1-D array with one class per row, got shape \(\)"),
        (set(range(20)), ValueError, r"y must be a 1-D array with one class per row, got shape \(\)"),
        (None, ValueError, "requires y to be passed, but the target y is None"),
        ([["a"], [1]] * 10, TypeError, r"y\[1\] must contain str only, got int 1"),
        ([["a"], "b"] * 10, TypeError, r"y\[1\] must be a list of label names, got 'b'; use \[\] for no labels"),
        ([["a"], None] * 10, TypeError, r"y\[1\] must be a list of label names, got None; use \[\] for no labels"),
        ([["a"], [" "]] * 10, ValueError, r"y\[1\] must not contain an empty label name, got ' '"),
        ([[], []] * 10, ValueError, "y must have at least one label, got empty lists only"),
        ([1, "a"] * 10, ValueError, "y must contain either numbers or strings, got int, str"),
        (["a", float("nan")] * 10, ValueError, "y must contain either numbers or strings, got float, str; missing"),
        (["a", None] * 10, ValueError, "y must contain either numbers or strings, got NoneType, str; missing"),
        ([1, None] * 10, ValueError, "y must contain either numbers or strings, got NoneType, int; missing"),
        ([1.0, np.nan] * 10, ValueError, "Input y contains NaN or infinity"),
        ([1.0, 0.5] * 10, ValueError, "Unknown label type: y must contain classes, not continuous .* such as 0.5"),
        ([1j] * 20, ValueError, "Complex data not supported: y is complex"),
        ([b"a", b"b"] * 10, ValueError, "y must contain numbers or strings, got .S1"),
        (np.ma.masked_array([1, 2] * 10, [0, 1] * 10), TypeError, "y must be a plain array, got a MaskedArray"),
        (["a"] * 19, ValueError, "X and y must have the same number of rows, got 20 and 19"),
    ],
)
def test_targets_that_are_refused(y, error, message):
    with pytest.raises(error, match=message):
        train.Classifier(**FEW).fit(TEXTS, y)


def test_iterators_are_refused_before_they_are_read():
    """They would be empty afterwards."""
    model, names, texts = train.Classifier(**FEW), iter([["a"]] * 20), iter(TEXTS)
    with pytest.raises(TypeError, match=r"y must be a sequence, got list_iterator, .*; use list\(y\)"):
        model.fit(TEXTS, names)
    with pytest.raises(TypeError, match=r"X must be a sequence, got list_iterator, .*; use list\(X\)"):
        model.fit(texts, ["a"] * 20)
    with pytest.raises(TypeError, match=r"y must be a sequence, got map, .*; use list\(y\)"):
        model.fit(TEXTS, map(len, TEXTS))
    assert len(list(names)) == len(list(texts)) == 20


def test_a_row_without_labels():
    names = [["map"], []] * 10
    model = train.Classifier(**FEW).fit(TEXTS, names)
    assert model.predict(TEXTS) == names and model.score(TEXTS, names) == 0.5
    matrix = model.partial_fit(TEXTS, [[]] * 20)
    assert matrix.classes_.tolist() == ["map"] and matrix.n_points_ == 40


def test_names_alone_are_enough():
    """No row has a label, but each label has a name."""
    model = train.Classifier(**FEW).fit(TEXTS, [[]] * 20, names={"m": "maps", "b": ["books", "paper"]})
    assert model.label_counts_.tolist() == [0, 0] and model.name_counts_.tolist() == [1, 2]
    assert model.predict(["maps", "books"], k=1).tolist() == [["m"], ["b"]]


@pytest.mark.parametrize("params", [FEW, NETWORK], ids=["linear", "network"])
@pytest.mark.parametrize("y", [["a"] * 20, [["a"]] * 20, scipy.sparse.csr_matrix(np.ones((20, 1)))])
def test_a_single_label(params, y, tmp_path):
    model = train.Classifier(**params).fit(TEXTS, y)
    scores = model.decision_function(TEXTS)
    assert scores.shape == (20, 1) and model.score(TEXTS, y) == 1 and model.top_k(TEXTS)[1].shape == (20, 1)
    if isinstance(y, list) and isinstance(y[0], str):
        assert model.predict(TEXTS).tolist() == y
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(train.Classifier.load(tmp_path / "model").decision_function(TEXTS), scores)


@pytest.mark.parametrize("params", [FEW, NETWORK], ids=["linear", "network"])
def test_a_matrix_without_labels(params):
    """Nothing can be learned; nothing is predicted."""
    model = train.Classifier(**params).fit(TEXTS, scipy.sparse.csr_matrix((20, 3)))
    assert model.predict(TEXTS).nnz == 0 and model.score(TEXTS, scipy.sparse.csr_matrix((20, 3))) == 0
    assert model.predict(TEXTS[:1], k=3).tolist() == [[0, 1, 2]]


def test_further_classes_are_of_the_same_type():
    model = train.Classifier(**FEW).partial_fit(TEXTS, ["a", "b"] * 10, classes=["c", "b", "a"])
    assert model.classes_.tolist() == ["a", "b", "c"] and set(model.predict(TEXTS)) == {"a", "b"}
    assert model.partial_fit(TEXTS, ["new", "c"] * 10).classes_.tolist() == ["a", "b", "c", "new"]
    with pytest.raises(ValueError, match="y must contain strings like the classes of the model, got numbers"):
        model.partial_fit(TEXTS, [1, 2] * 10)
    numbers = train.Classifier(**FEW).fit(TEXTS, [1, 2] * 10)
    for call in (numbers.partial_fit, numbers.score, numbers.evaluate):
        with pytest.raises(ValueError, match="y must contain numbers like the classes of the model, got strings"):
            call(TEXTS, ["a", "b"] * 10)
    assert numbers.classes_.tolist() == [1, 2] and numbers.n_points_ == 20
    with pytest.raises(ValueError, match="classes must contain either numbers or strings, got int, str"):
        train.Classifier(**FEW).partial_fit(TEXTS, ["a", "b"] * 10, classes=["a", "b", 1])
