"""`Classifier.explain`: the contributions add up to the score, for both architectures and every output layer."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, train
from sparsemax_nb.train import curves

TEXTS = ["old maps of rome", "old books", "new maps and new books", "a ship at sea", "old ships", "maps"] * 6
LABELS = [["map", "rome"], ["book"], ["map", "book"], ["ship"], ["ship", "old"], ["map"]] * 6
TEXT = "Old maps, maps of ships: shipping quux"
NETWORK = {
    "architecture": "network",
    "embedding": 16,
    "intermediate": 32,
    "bottleneck": 8,
    "fan_in": 8,
    "batch_size": 16,
    "epochs": 20,
    "learning_rate": 1e-2,
    "device": "cpu",
    "progress": False,
}
OUTPUTS = {
    "fixed-fan-in": {},
    "group-shared": {"output": "group-shared", "group_size": 4},
    "bfloat16": {"output": "group-shared", "group_size": 4, "weight_dtype": "bfloat16"},
    "unstructured": {"output": "unstructured"},
    "dense": {"output": "dense"},
    "bottleneck": {"output": "bottleneck"},
    "softmax": {"output": "bottleneck", "loss": "softmax"},
    "no intermediate": {"intermediate": None, "fan_in": 6},
}


@pytest.fixture(scope="module")
def corpus():
    return data.bag_of_words(n_rows=200, n_features=60, words_per_row=8, n_labels=25, labels_per_row=2, seed=1)


def linear_of_texts(**params):
    settings = {"C": 1.0, "slack": 0.5, "frequency": 0.1, "calibration": False, "progress": False, "device": "cpu"}
    return train.Classifier(**settings, **params).fit(TEXTS, LABELS)


def total(found, hidden=False):
    """The sum that is equal to the score."""
    if hidden:
        return sum(value for _, value in found.hidden) + found.hidden_other + found.terms.get("bias", 0)
    return sum(value for _, value in found.contributions) + found.other + sum(found.terms.values())


def is_near(found, value, terms=100):
    """Whether a value is the score, up to the rounding of float32 sums."""
    scale = max(abs(v) for v in (1, *found.terms.values(), *dict(found.contributions + found.hidden).values()))
    return abs(value - found.score) < 4 * np.finfo(np.float32).eps * np.sqrt(terms) * scale


def check_sums(model, x, row, n=3, hidden=False):
    """Explain every label of one row, and compare the sums with its scores."""
    scores, ids = model.top_k(x, model.n_labels_)
    for score, i in zip(scores[0], ids[0], strict=True):
        found = model.explain(row, model.classes_[i], n)
        assert found.score == score and len(found.contributions) <= n and is_near(found, total(found))
        magnitudes = [abs(value) for _, value in found.contributions]
        assert magnitudes == sorted(magnitudes, reverse=True) and all(magnitudes)
        assert bool(found.hidden) <= hidden
        if hidden:
            assert is_near(found, total(found, hidden=True))
            assert all(name.startswith("hidden ") for name, _ in found.hidden)


@pytest.mark.parametrize("params", [{}, {"char_ngrams": 0}, {"word_pairs": False}, {"hash_bits": 4}, {"hash_bits": 12}])
def test_contributions_of_words_add_up(params):
    model = linear_of_texts(**params)
    for text in (TEXT, "maps", "maps maps maps mapsmaps", "quux", ""):
        check_sums(model, [text], text)
        check_sums(model, [text], text, n=1000)


def test_contributions_of_words_are_those_of_their_features():
    """By the definition: a feature's effect is divided among the parts of the text that have it."""
    model = linear_of_texts()
    weights, row = model.network_.layer.weights.toarray(), model.vectorizer_.transform([TEXT]).toarray()[0]
    words = ["old", "maps", "maps", "of", "ships", "shipping"]
    parts = [(word, model.vectorizer_._keys_of(word)) for word in words]
    parts += [(pair, [pair]) for pair in ("old maps", "maps of", "maps maps", "of ships", "ships shipping")]
    numbers = dict(zip(model.vectorizer_.feature_names(), range(len(row)), strict=True))
    keys = [key for _, keys in parts for key in keys]
    for label, name in enumerate(model.classes_):
        wanted = {}
        for part, of_part in parts:
            for key in filter(numbers.__contains__, of_part):
                effect = float(row[numbers[key]]) * float(weights[label, numbers[key]]) / keys.count(key)
                wanted[part] = wanted.get(part, 0) + effect
        found = dict(model.explain(TEXT, name, n=1000).contributions)
        wanted = {part: value for part, value in wanted.items() if value}
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12) and len(found) > 1


def test_words_that_are_unknown_are_absent():
    found = linear_of_texts().explain(TEXT, "map", n=1000)
    names = [name for name, _ in found.contributions]
    assert "quux" not in names and "maps" in names and "old maps" in names and found.other == 0
    assert linear_of_texts().explain("quux", "map").contributions == ()


def test_terms_of_a_linear_layer_are_named():
    """Reranking is a term of its own, for exactly those labels whose score it changes."""
    model = linear_of_texts(co_occurrence=0.5)
    plain = linear_of_texts(co_occurrence=0.0)
    scores = dict(zip(*(a[0].tolist() for a in plain.top_k([TEXT], 5)[::-1]), strict=True))
    changed, points = set(), model.label_counts_ + model.name_counts_
    for i, label in enumerate(model.classes_):
        found = model.explain(TEXT, label)
        assert found.terms["bias"] == float(model.network_.layer.bias[i])
        assert found.terms["frequency"] == pytest.approx(0.1 * np.log(points[i]), rel=1e-6)
        assert found.terms.get("co-occurrence", 0) == pytest.approx(found.score - scores[i], abs=1e-9)
        changed |= {label} if "co-occurrence" in found.terms else set()
    assert changed and changed != set(model.classes_)
    assert "co-occurrence" not in plain.explain(TEXT, "map").terms


def test_contributions_of_features_add_up():
    """With lists of labels and with features that are connected to all labels; a row may repeat an entry."""
    corpus = data.bag_of_words(n_rows=300, n_features=200, words_per_row=12, n_labels=60, labels_per_row=2, seed=1)
    model = train.Classifier(C=1.0, slack=0.5, progress=False, device="cpu", tfidf=False)
    model.fit(corpus.features, corpus.labels)
    row, is_dense = corpus.features[0], model.network_.layer.arrays.dense >= 0
    assert 0 < is_dense[row.indices].sum() < row.nnz
    check_sums(model, row, row)
    weights = model.network_.layer.weights.toarray()
    for label in range(60):
        effects = {f"feature {j}": float(v * weights[label, j]) for j, v in zip(row.indices, row.data, strict=True)}
        found = model.explain(row, label, n=100)
        assert dict(found.contributions) == pytest.approx({name: v for name, v in effects.items() if v})
    values, indices = np.tile(row.data / 2, 2), np.tile(row.indices, 2)
    twice = scipy.sparse.csr_matrix((values, indices, [0, 2 * row.nnz]), shape=row.shape)
    assert dict(model.explain(twice, 59, n=100).contributions) == pytest.approx(dict(found.contributions))


def test_columns_of_a_table_name_the_features():
    pandas = pytest.importorskip("pandas")
    random = np.random.default_rng(0)
    x = pandas.DataFrame(random.standard_normal((60, 4), dtype=np.float32), columns=["age", "size", "rent", "area"])
    model = train.Classifier(**NETWORK | {"fan_in": 4}).fit(x, np.where(x["age"] > 0, "old", "new"))
    found = model.explain(x[:1], "old")
    assert {name for name, _ in found.contributions} <= set(x.columns) and found.contributions
    assert is_near(found, total(found))


@pytest.mark.parametrize("changes", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("kind", ["texts", "dense features"])
def test_contributions_in_a_network_add_up(corpus, changes, kind):
    model = train.Classifier(**NETWORK | changes)
    if kind == "texts":
        model.fit(TEXTS, LABELS)
        check_sums(model, [TEXT], TEXT, hidden=True)
        check_sums(model, [TEXT], TEXT, n=1000, hidden=True)
        assert "maps" in [name for name, _ in model.explain(TEXT, "map").contributions]
    else:
        x = corpus.features.toarray()
        model.fit(x, corpus.labels)
        has_hidden = changes.get("intermediate", 32) is not None and changes.get("output") != "dense"
        check_sums(model, x[:1], x[0], hidden=has_hidden)


def test_labels_without_points_have_the_lowest_score(corpus):
    labels = corpus.labels.tolil()
    labels[:, 4] = 0
    for changes in OUTPUTS.values():
        model = train.Classifier(**NETWORK | changes | {"epochs": 1}).fit(corpus.features, labels.tocsr())
        found = model.explain(corpus.features[0], 4)
        assert found.score == found.terms["bias"] == np.float32(-1e30) and "e+30" in str(found)


def test_the_labels_that_are_predicted_are_explained(corpus):
    model = linear_of_texts()
    for text in TEXTS[:6]:
        found = model.explain(text)
        assert [one.label for one in found] == model.predict([text])[0]
    model.limit_ = 1
    assert [one.label for one in model.explain("old maps of rome")] == model.predict(["old maps of rome"])[0]
    nothing = model.explain("quux")
    assert model.predict(["quux"]) == [[]]
    assert [one.label for one in nothing] == [model.predict(["quux"], k=1)[0, 0]]


def test_probabilities_are_those_of_predict_proba():
    split = TEXTS[:6], LABELS[:6]
    model = train.Classifier(C=1.0, slack=0.5, progress=False, device="cpu").fit(TEXTS, LABELS, validation=split)
    wanted = model.predict_proba([TEXT])[0]
    assert [model.explain(TEXT, label).probability for label in model.classes_] == wanted.tolist()
    assert [found.label for found in model.explain(TEXTS[0])] == model.predict(TEXTS[:1])[0]
    classes = [labels[0] for labels in LABELS]
    model = train.Classifier(C=1.0, slack=0.5, progress=False, device="cpu")
    model.fit(TEXTS, classes, validation=(TEXTS[:6], classes[:6]))
    wanted = model.predict_proba([TEXT])[0]
    assert [model.explain(TEXT, label).probability for label in model.classes_] == wanted.tolist()
    found = model.explain(TEXT)
    assert len(found) == 1 and found[0].label == model.predict([TEXT])[0]
    assert train.Classifier(**NETWORK).fit(TEXTS, LABELS).explain(TEXT, "map").probability is None


def test_the_same_after_loading(tmp_path):
    for model in (linear_of_texts(), train.Classifier(**NETWORK).fit(TEXTS, LABELS)):
        model.save(tmp_path / "model")
        again = train.Classifier.load(tmp_path / "model", device="cpu")
        assert again.explain(TEXT, "map") == model.explain(TEXT, "map")


def test_names_of_labels(corpus, tmp_path):
    model = train.Classifier(C=1.0, slack=0.5, progress=False, device="cpu").fit(corpus.features, corpus.labels)
    assert model.explain(corpus.features[0], 3).name == "3"
    model.save(tmp_path / "model", [f"subject {i}" for i in range(25)])
    found = train.Classifier.load(tmp_path / "model", device="cpu").explain(corpus.features[0], np.int64(3))
    assert found.label == 3 and found.name == "subject 3"
    json.dumps(dataclasses.asdict(found))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["one text"],), TypeError, "X must be one text, got list"),
        ((TEXTS,), TypeError, "X must be one text, got list"),
        ((np.zeros((1, 5), np.float32),), TypeError, "X must be one text, got ndarray"),
        ((TEXT, "sea"), ValueError, "label must be a label of the model, an element of classes_, got 'sea'"),
        ((TEXT, ["map"]), ValueError, "label must be a label of the model"),
        ((TEXT, 0), ValueError, "label must be a label of the model"),
        ((TEXT, "map", 0), ValueError, "n must be at least 1, got 0"),
        ((TEXT, "map", 2.0), TypeError, "n must be an integer"),
    ],
)
def test_bad_input_for_a_model_of_texts(arguments, error, message):
    with pytest.raises(error, match=message):
        linear_of_texts().explain(*arguments)


def test_bad_input_for_a_model_of_features(corpus):
    model = train.Classifier(C=1.0, slack=0.5, progress=False, device="cpu").fit(corpus.features, corpus.labels)
    for x, error, message in (
        (corpus.features[:2], ValueError, r"X must be one row of features, got 2 rows; use X\[i : i \+ 1\]"),
        (corpus.features[:0], ValueError, "X must be one row of features, got 0 rows"),
        (corpus.features[:1, :5], ValueError, "X has 5 features"),
        ([1.0, 2.0], ValueError, "X has 2 features"),
        ("one text", TypeError, "X must be one row of features as in fit, got a text"),
        (["one text"], TypeError, "X must have features as in fit, got texts"),
    ):
        with pytest.raises((error, ValueError), match=message):
            model.explain(x)


def test_an_unfitted_model_says_so():
    with pytest.raises(ValueError, match="not fitted yet"):
        train.Classifier().explain(TEXT)


FOUND = train.Explanation(
    3,
    "a $label$\nof",
    0.5,
    0.75,
    (("maps", 2.0), ("old" * 20, -1.0)),
    0.25,
    {"bias": -0.75},
    (("hidden 7", 1.25),),
    0.0,
)


def test_the_printed_table():
    assert str(FOUND).splitlines() == [
        "a $label$\\nof: score 0.500, probability 0.75",
        "  maps                                      +2.000  ++++++++++++++++++++++++",
        "  oldoldoldoldoldoldoldoldoldoldoldoldo...  -1.000  ------------",
        "  other                                     +0.250  +++",
        "  bias                                      -0.750  ---------",
        "  The same score by hidden features:",
        "  hidden 7  +1.250  ++++++++++++++++++++++++",
        "  bias      -0.750  --------------",
    ]
    assert str(dataclasses.replace(FOUND, hidden=(), probability=None)).startswith("a $label$\\nof: score 0.500\n")


def test_nothing_is_cut_off_in_a_plot(tmp_path, monkeypatch):
    """Names, numbers and title lie inside the figure, without overlap of the names."""
    pytest.importorskip("matplotlib")
    seen = []

    def write(figure, path):
        figure.canvas.draw()
        axes, whole = figure.axes[0], figure.bbox
        names = [text.get_window_extent() for text in axes.get_yticklabels()]
        for box in [*names, axes._left_title.get_window_extent(), *(t.get_window_extent() for t in axes.texts)]:
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        assert all(below.y1 <= above.y0 for above, below in zip(names, names[1:], strict=False))
        seen.extend(text.get_text() for text in axes.get_yticklabels())
        written(figure, path)

    written = curves.write_figure
    monkeypatch.setattr(curves, "write_figure", write)
    rows = tuple((f"{'long ' * i}word {i}", (-1.0) ** i / (i + 1)) for i in range(10))
    dataclasses.replace(FOUND, contributions=rows, name="name " * 30).plot(tmp_path / "bars.png")
    assert len(seen) == 12 and seen[-1] == "bias" and (tmp_path / "bars.png").stat().st_size > 1000
    dataclasses.replace(FOUND, contributions=(), other=0.0).plot(tmp_path / "bars.svg")
    with pytest.raises(ValueError, match="path must end in .png, .svg or .pdf, got bars.txt"):
        FOUND.plot("bars.txt")


def test_on_cuda_the_sums_are_right_too(corpus):
    x, labels = corpus.features[:20], corpus.labels[:20]
    labels = labels[:, np.flatnonzero(np.bincount(labels.indices, minlength=25))[:6]]
    for params in ({"C": 1.0, "slack": 0.5}, NETWORK, NETWORK | OUTPUTS["group-shared"]):
        model = train.Classifier(**params | {"epochs": 1, "progress": False, "device": "cuda"}).fit(x, labels)
        found = [model.explain(x[0], label) for label in range(6)]
        assert all(is_near(one, total(one)) for one in found) and any(one.contributions for one in found)
