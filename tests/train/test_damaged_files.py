"""Damaged files are refused when they are read, by name; a fit that is refused leaves the estimator as it was."""

import json

import numpy as np
import pytest

from sparsemax_nb import data, train
from sparsemax_nb.core import checkpoint
from sparsemax_nb.train import language_network, network
from tests.train.test_resume import SMALL, Stop

POINTS = data.bag_of_words(n_rows=120, n_features=40, words_per_row=5, n_labels=50, labels_per_row=2, seed=1)
CLASSIFIER = SMALL | {"epochs": 2}
TEXT = (np.arange(400) ** 2 % 17).astype(np.int32)
LANGUAGE = {
    "width": 8, "sampler": "midx-rq", "n_samples": 3, "n_codewords": 4, "unroll": 5, "batch_size": 4, "epochs": 2,
    "device": "cpu", "progress": False,
}  # fmt: skip


def stop(epoch, _):
    """Ends a run in its second epoch: the last checkpoint lies inside it, behind an epoch with best weights."""
    if epoch == 1:
        raise Stop


def fit(path=None, **more):
    part = POINTS.features[80:], POINTS.labels[80:]
    model = train.Classifier(**CLASSIFIER | more.pop("params", {}))
    return model.fit(POINTS.features[:80], POINTS.labels[:80], validation=part, checkpoint_path=path, **more)


def fit_text(path=None, **more):
    return train.LanguageModel(**LANGUAGE).fit(TEXT, checkpoint_path=path, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model and checkpoint of a classifier and of a language model."""
    path = tmp_path_factory.mktemp("files")
    fit().save(path / "model")
    fit_text().save(path / "text")
    for run, name in (fit, "checkpoint"), (fit_text, "text checkpoint"):
        with pytest.raises(Stop):
            run(path / name, checkpoint_seconds=0, after_epoch=stop)
    return path


def changed(source, kind, target, change):
    """`target` is what `change` makes of the arrays and the description of `source`."""
    arrays, description = checkpoint.load(source, kind)
    arrays = dict(arrays)
    change(arrays, description)
    checkpoint.save(target, kind, arrays, description)
    return target


def put(name, value, where=0):
    """A change of numbers of an array."""

    def change(arrays, _):
        arrays[name].reshape(-1)[where] = value

    return change


def say(*path, value):
    """A change of a value of the description."""

    def change(_, description):
        for key in path[:-1]:
            description = description[key]
        description[path[-1]] = value

    return change


def without(name):
    return lambda arrays, _: arrays.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say("n_points", value="a"), "n_points must be an integer"),
        (say("n_points", value=-1), "n_points must be between 0"),
        (say("n_features", value=2**62), "tfidf.idf must have shape"),
        (say("n_labels", value=2**62), "label_counts must have shape"),
        (say("params", "fan_in", value=10), "output.indices must have shape"),
        (say("params", "embedding", value=2**31 - 1), "embedding.table must have shape"),
        (say("params", "unknown", value=1), "unexpected keyword argument 'unknown'"),
        (say("params", value=[1]), "params must be a JSON object"),
        (say("is_dense", value=0), "is_dense must be true or false"),
        (say("label_names", value=[[1]] * 50), r"label_names\[0\] must be a string"),
        (say("label_names", value=["a"]), "label_names must have 50 names, got 1"),
        (say("feature_names", value=[1] * 40), r"feature_names\[0\] must be a string"),
        (say("feature_names", value=["a"]), "feature_names must have 40 names, got 1"),
        (say("tfidf", value=[]), "tfidf must be true or false"),
        (put("label_counts", 10**6), r"label_counts must lie in \[0, 81\), got 1000000"),
        (put("tfidf.idf", np.nan), "tfidf.idf must be finite"),
        (without("tfidf.idf"), "tfidf.idf"),
        (without("output.bias"), "output.bias"),
    ],
)
def test_models(folder, tmp_path, change, message):
    path = changed(folder / "model", "classifier", tmp_path / "x", change)
    with pytest.raises(train.ModelFileError, match=f"does not contain a complete Classifier .*{message}"):
        train.Classifier.load(path, device="cpu")


def replaced(name, value):
    return lambda arrays, _: arrays.update({name: value})


@pytest.fixture(scope="module")
def text_models(tmp_path_factory):
    """Models of texts with label names, with one class per row, and with hashing and a label matrix."""
    path = tmp_path_factory.mktemp("texts")
    texts = ["old maps of Rome", "old books", "new maps", "a ship at sea"] * 30
    params = {"C": 1.0, "slack": 0.5, "frequency": 0.0, "epochs": 2, "device": "cpu", "progress": False}
    for name, y, more in (
        ("names", [["map", "old"], ["book"], ["map"], []] * 30, {}),
        ("classes", ["map", "book", "map", "ship"] * 30, {}),
        ("numbers", [1, 2, 1, 3] * 30, {}),
        ("matrix", np.eye(120, 3, dtype=np.int8), {"hash_bits": 4}),
    ):
        train.Classifier(**params, **more).fit(texts, y).save(path / name)
    return path


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("names", say("targets", value=None), "targets must be a JSON object"),
        ("names", say("targets", "form", value="lists"), "targets.form must be one of 'matrix', 'class', 'names'"),
        ("names", say("targets", "classes", value=None), "NoneType"),
        ("names", say("targets", "classes", value=["book", "map"]), "targets.classes must be 3 different classes"),
        ("names", say("targets", "classes", value=["book", "map", "map"]), "targets.classes must be 3 different"),
        ("names", say("targets", "classes", value=["book", "map", 3]), "targets.classes must be of the type"),
        ("names", say("targets", "classes", 1, value=None), r"targets.classes\[1\] must be a string or a number"),
        (
            "names",
            say("targets", "classes_dtype", value="<U4"),
            "targets of the form 'names' need label_names and text",
        ),
        ("names", say("label_names", value=None), "targets of the form 'names' need label_names and text"),
        ("names", say("label_names", value=["a"]), "label_names must have 3 names, got 1"),
        ("classes", say("targets", "classes_dtype", value="int64"), "targets.classes must be of the type"),
        ("classes", say("targets", "classes_dtype", value="V4"), "targets.classes must be of the type"),
        ("classes", say("targets", "classes_dtype", value="i4,i4"), "classes_dtype must be the name of a dtype"),
        ("classes", say("targets", "classes_dtype", value="9" * 5000), "classes_dtype must be the name of a dtype"),
        ("classes", say("targets", "classes_dtype", value="zebra"), "zebra"),
        ("numbers", say("targets", "classes_dtype", value="<U4"), "targets.classes must be of the type"),
        ("numbers", say("targets", "classes_dtype", value="bool"), "targets.classes must be 3 different classes"),
        ("numbers", say("targets", "classes", value=[1, 2, 2**70]), "large"),
        ("numbers", say("targets", "classes", value=[1, 2, 2.5]), "targets.classes must be 3 different classes"),
        ("numbers", say("targets", "classes", value=[1, 2, float("nan")]), "NaN|nan"),
        ("matrix", say("targets", "dtype", value="<U4"), "targets.dtype must be a type of numbers"),
        ("matrix", say("targets", "dtype", value="{"), "targets.dtype must be the name of a dtype"),
        ("matrix", say("vectorizer", "hash_bits", value=5), r"text.idf must have shape \(96,\)"),
        ("matrix", say("vectorizer", "hash_bits", value=29), "vectorizer.hash_bits must be between 1 and 28"),
        ("matrix", say("vectorizer", "hash_bits", value=None), "text.idf must have shape"),
        ("names", say("vectorizer", "hash_bits", value=4), "text.idf must have shape"),
        ("names", say("vectorizer", "char_ngrams", value=-1), "vectorizer.char_ngrams must be between"),
        ("names", say("vectorizer", "word_pairs", value=1), "vectorizer.word_pairs must be true or false"),
        ("names", say("vectorizer", "n_texts", value=-1), "vectorizer.n_texts must be between"),
        ("names", say("is_dense", value=True), "a model of texts has sparse weights"),
        ("names", say("tfidf", value=True), "a model of texts has sparse weights"),
        ("names", say("n_features", value=3), "text.idf must have 3 features"),
        ("names", put("text.idf", np.nan), "text.idf must be finite"),
        ("names", put("text.idf", 0), "text.idf must be above 0"),
        ("names", put("text.vocabulary", 0xFF), "utf-8"),
        ("names", put("text.vocabulary", 10), "text.vocabulary must contain different features that are not empty"),
        ("names", replaced("text.vocabulary", np.zeros(0, np.uint8)), "text.idf must have shape"),
        ("names", without("text.vocabulary"), "text.vocabulary"),
        ("names", without("text.idf"), "text.idf"),
        ("names", put("name_counts", -1), r"name_counts must lie in \[0, "),
        ("names", put("label_counts", 10**6), r"label_counts must lie in \[0, 121\)"),
        ("names", without("name_counts"), "name_counts"),
        ("names", put("calibration.regression", np.inf), "calibration.regression must be finite"),
        ("names", replaced("calibration.regression", np.zeros(3)), "calibration.regression must have shape"),
        ("names", replaced("calibration.logits", np.zeros(2)), "calibration.values must have shape|must increase"),
        ("names", replaced("calibration.values", np.zeros(999)), "calibration.values must have shape"),
        ("names", without("calibration.logits"), "calibration.logits"),
        ("names", say("threshold", value=None), "threshold must be a number"),
        ("names", say("threshold", value=1.5), "threshold must lie in"),
        ("names", say("limit", value=0), "limit must be between 1"),
        ("names", say("calibrated", value=None), "calibrated must be true or false"),
    ],
)
def test_models_of_texts(text_models, tmp_path, name, change, message):
    path = changed(text_models / name, "classifier", tmp_path / "x", change)
    with pytest.raises(train.ModelFileError, match=f"does not contain a complete Classifier .*({message})"):
        train.Classifier.load(path, device="cpu")


def test_the_length_of_a_text_type_is_not_read(text_models, tmp_path):
    """A file may not make NumPy allocate gigabytes, or cut off the ends of classes."""
    for dtype in "<U2000000", "<U1", "<U0":
        path = changed(
            text_models / "classes", "classifier", tmp_path / "x", say("targets", "classes_dtype", value=dtype)
        )
        model = train.Classifier.load(path, device="cpu")
        assert model.classes_.tolist() == ["book", "map", "ship"] and model.classes_.dtype == "<U4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say("steps", value="a"), "steps must be an integer"),
        (say("steps", value=[1]), "steps must be an integer"),
        (say("steps", value=4), "steps, losses and position must agree"),
        (say("counts", "output.bias", value=-3), r"counts.output.bias must be between 0"),
        (say("counts", "output.bias", value=99), r"counts.output.bias must be between 0 and 5"),
        (say("counts", "other", value=1), "counts must have the keys"),
        (say("position", "row", value=-5), "position.row must be between 0"),
        (say("position", "row", value=80), "position.row must be between 0 and 79"),
        (say("position", "row", value=5), "steps, losses and position must agree"),
        (say("position", "losses", value="x"), "position.losses must be a list"),
        (say("position", "losses", value=[[1.0, 32]]), "must agree"),
        (say("position", "losses", value=[[1.0, 32], [1.0, 0]]), "position.losses must have at least one row"),
        (say("position", "learning_rate", value=float("nan")), "position.learning_rate must lie in"),
        (say("position", "best", value=None), "position.best and history.best_epoch must be numbers"),
        (say("position", "norms", value=[{"a": 1.0}, {"b": 1.0}]), "position.norms must name the same layers"),
        (say("position", "other", value=1), "unexpected keyword argument 'other'"),
        (say("history", "epochs", value=[]), "history.epochs must be 1 epochs"),
        (
            say("history", "epochs", 0, "validation", value={"P@1": 1.0}),
            "history.epochs must be 1 epochs with the same",
        ),
        (say("history", "seconds", value=-1.0), "history.seconds must lie in"),
        (say("history", "best_epoch", value=7), "history.best_epoch must be between 0 and 0"),
        (put("m/output.bias", np.nan), "m/output.bias must be finite"),
        (put("v/output.bias", -1.0), "v/output.bias must not be negative"),
        (put("best/output.bias", np.nan), "output.bias must be finite"),
        (put("best/output.indices", 10**8), r"indices must lie in \[0, 32\)"),
        (without("best/output.bias"), "best/output.bias"),
        (lambda arrays, _: arrays.update({"best/output.bias": np.zeros(3, np.float32)}), "output.bias must have shape"),
    ],
)
def test_checkpoints(folder, tmp_path, change, message):
    path = changed(folder / "checkpoint", "classifier checkpoint", tmp_path / "x", change)
    with pytest.raises(train.ModelFileError, match=f"x cannot be resumed: .*{message}"):
        fit(path, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say("n_words", value=2**62), "embedding.table must have shape"),
        (say("params", "n_layers", value=10**12), "n_layers must be between 1 and"),
        (say("params", "width", value=10**9), "embedding.table must have shape"),
        (say("words", value=[1] * 17), r"words\[0\] must be a string"),
        (say("words", value=["a"] * 17), "words must all be different"),
        (say("raw", value="no"), "raw must be true or false"),
        (without("lstm1.recurrent"), "lstm1.recurrent"),
    ],
)
def test_language_models(folder, tmp_path, change, message):
    path = changed(folder / "text", "language model", tmp_path / "x", change)
    with pytest.raises(train.ModelFileError, match=f"does not contain a complete LanguageModel .*{message}"):
        train.LanguageModel.load(path, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("state/0", np.inf), "state/0 must be finite"),
        (without("state/0"), "state/0"),
        (lambda arrays, _: arrays.update({"state/1": arrays["state/1"][:, :2].copy()}), "state/1 must have shape"),
        (without("sampler/codes"), "codes"),
        (put("sampler/codebook_0", np.nan), "sampler/codebook_0 must be finite"),
    ],
)
def test_checkpoints_of_language_models(folder, tmp_path, change, message):
    path = changed(folder / "text checkpoint", "language model checkpoint", tmp_path / "x", change)
    with pytest.raises(train.ModelFileError, match=f"x cannot be resumed: .*{message}"):
        fit_text(path, resume=True)


def raw(path, change):
    """The file with another header: what `change` returns, or JSON that it has changed."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    text = change(header)
    text = text if isinstance(text, str) else json.dumps(header)
    return len(text).to_bytes(8, "little") + text.encode() + content[start:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(version="x"), "has format version x, this package reads version 8"),
        (lambda h: h["__metadata__"].update(description="[" * 100000), "has no complete description"),
        (lambda h: h["__metadata__"].update(description="[]"), "has no complete description"),
        (lambda h: h["__metadata__"].pop("kind") and None, "has no complete description"),
        (lambda h: h.update(__metadata__=[1]), "was not written by sparsemax_nb"),
        (lambda _: "[" * 100000, "truncated or not a safetensors file"),
        (lambda _: "[1]", "truncated or not a safetensors file"),
        (lambda h: h["output.bias"].update(shape=[2**40]), "truncated or not a safetensors file .*offsets"),
        (lambda h: h["output.bias"].update(shape=[-50]), "truncated or not a safetensors file"),
        (lambda h: h["output.bias"].update(data_offsets=[0, 200]), "are not contiguous"),
        (lambda h: h["output.bias"].update(dtype="F99"), "truncated or not a safetensors file"),
        (lambda h: h.pop("output.bias"), "truncated or not a safetensors file"),
    ],
)
def test_headers(folder, tmp_path, change, message):
    (tmp_path / "x").write_bytes(raw(folder / "model", change))
    for read in (lambda path: train.Classifier.load(path, device="cpu"), checkpoint.kind_of):
        with pytest.raises(train.ModelFileError, match=message):
            read(tmp_path / "x")


@pytest.mark.parametrize("run", [fit, fit_text])
def test_a_refused_fit_changes_nothing(folder, tmp_path, run):
    """Damage that is found when the network has been built; and another run's checkpoint."""
    kind = "classifier checkpoint" if run is fit else "language model checkpoint"
    name = "parameters/output.indices" if run is fit else "parameters/embedding.table"
    source = folder / ("checkpoint" if run is fit else "text checkpoint")
    bad = changed(source, kind, tmp_path / "bad", put(name, 2**30 if run is fit else np.nan))
    model = run()
    before, answers = dict(vars(model)), answers_of(model)
    data_ = (POINTS.features[:80], POINTS.labels[:80]) if run is fit else (TEXT,)
    with pytest.raises(train.ModelFileError, match="cannot be resumed"):
        model.fit(*data_, checkpoint_path=bad, resume=True)
    with pytest.raises(train.ModelFileError, match="cannot be resumed: seed was 3, not 4|seed was 0, not 4"):
        model.set_params(seed=4).fit(*data_, checkpoint_path=source, resume=True)
    model.set_params(seed=before["seed"])
    assert vars(model) == before and answers_of(model) == answers
    new = type(model)(**model.get_params())
    with pytest.raises(train.ModelFileError):
        new.fit(*data_, checkpoint_path=bad, resume=True)
    with pytest.raises(ValueError, match="is not fitted yet"):
        answers_of(new)


def answers_of(model):
    if isinstance(model, train.Classifier):
        return model.predict(POINTS.features[:9], 5).tolist()
    return model.perplexity(TEXT)


def test_a_fit_that_finds_wrong_numbers_changes_nothing():
    """Dense features are looked through as they are used."""
    x, y = np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32), POINTS.labels[:60]
    model = train.Classifier(**CLASSIFIER | {"output": "dense"}).fit(x, y)
    before, answers = dict(vars(model)), model.predict(x, 5).tolist()
    wild = x.copy()
    wild[50, 3] = np.inf
    with pytest.raises((FloatingPointError, ValueError), match="finite"):
        model.fit(wild, y)
    assert vars(model) == before and model.predict(x, 5).tolist() == answers


def test_names_are_kept_by_load_then_save_and_go_with_another_fit(tmp_path):
    names, points = [f"subject {n}" for n in range(50)], (POINTS.features[:80], POINTS.labels[:80])
    fit().save(tmp_path / "a", names)
    model = train.Classifier.load(tmp_path / "a", device="cpu")
    model.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert train.Classifier.load(tmp_path / "b", device="cpu").label_names_ == names
    assert model.set_params(progress=False).fit(*points).label_names_ is None


def test_where_a_checkpoint_cannot_be_written_is_found_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(train.loop.Training, "run", lambda *_, **__: pytest.fail("the training has begun"))
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        fit(tmp_path / "no" / "c")
    monkeypatch.setattr(train.loop.Training, "checkpoint_nbytes", 1 << 60)
    with pytest.raises(OSError, match="c cannot be written: the disk has .* MiB free"):
        fit(tmp_path / "c")


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"intermediate": None},
        {"output": "dense"},
        {"output": "bottleneck", "bottleneck": 3},
        {"output": "unstructured"},
        {"output": "group-shared", "group_size": 7, "weight_dtype": "bfloat16"},
        {"output": "dense", "loss": "softmax"},
    ],
)
@pytest.mark.parametrize("dense", [False, True])
def test_shapes_of_a_network_that_is_not_made(params, dense):
    model = train.Classifier(**SMALL | params)
    arguments = model._network_params(40, 50, dense, "cpu")
    made = {name: array.shape for name, array in model._new_network(arguments).parameters.items()}
    assert network.Network.memory(**arguments).parameter_shapes == made


@pytest.mark.parametrize("tied", [False, True])
def test_shapes_of_a_language_network_that_is_not_made(tied):
    made = language_network.LanguageNetwork(9, width=4, n_layers=3, tied=tied, dropout=0, clip=1, seed=0, device="cpu")
    shapes = language_network.parameter_shapes(9, 4, 3, tied)
    assert shapes == {name: array.shape for name, array in made.parameters.items()}


def test_the_bytes_of_a_checkpoint_are_known_before_it_is_written(folder, monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(
        train.loop.Training, "run", lambda self, save, **_: found.append((self.checkpoint_nbytes, save()))
    )
    fit(tmp_path / "c")  # whose best weights are not there yet
    size = (folder / "checkpoint").stat().st_size
    assert (tmp_path / "c").stat().st_size < found[0][0] < size < 1.5 * found[0][0]
