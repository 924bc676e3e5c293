"""The commands for embeddings, alone and beside texts or sparse features, run as a user runs them."""

import io
import json
import sys

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, train
from sparsemax_nb.cli import main

from ..train.test_wide import COUNTS, NEW_COUNTS, NEW_H, NEW_TEXTS, NEW_Y, TEXTS, D, H, Y
from .test_texts import StandardInput

KERNEL = ["--power", "4", "--kernel-C", "0.25", "--n-neighbors", "240"]
LINEAR = ["--C", "1", "--slack", "0.5", "--frequency", "0", "--co-occurrence", "0"]
TRAIN = ["train", "classifier", "--device", "cpu", "--quiet", *KERNEL]
WIDE = [*TRAIN, *LINEAR, "--char-ngrams", "0"]
PARAMS = {"power": 4.0, "kernel_C": 0.25, "n_neighbors": 240, "device": "cpu", "progress": False}
OF_LINEAR = {"C": 1.0, "slack": 0.5, "frequency": 0.0, "co_occurrence": 0.0}
OF_WIDE = PARAMS | OF_LINEAR | {"char_ngrams": 0}


def labels_of(y):
    """A CSR matrix of lists of label names."""
    names = sorted({label for row in Y for label in row})
    return scipy.sparse.csr_matrix([[name in row for name in names] for row in y], dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts and embeddings, a corpus of sparse and one of dense features, and models of all of them."""
    path = tmp_path_factory.mktemp("embeddings")
    for name, texts, h, y in ("train", TEXTS, H, Y), ("test", NEW_TEXTS, NEW_H, NEW_Y):
        lines = ("\t".join([text, *labels]) + "\n" for text, labels in zip(texts, y, strict=True))
        (path / f"{name}.tsv").write_text("".join(lines))
        np.save(path / f"{name}.npy", h)
    np.save(path / "few.npy", H[:7])
    np.save(path / "float64.npy", H.astype(np.float64))
    np.save(path / "narrow.npy", np.ascontiguousarray(NEW_H[:, :4]))
    (path / "h.csv").write_text("1,2\n")
    for kind, x, new in ("sparse", COUNTS, NEW_COUNTS), ("dense", H, NEW_H):
        (path / kind).mkdir()
        for part, features, y in ("train", x, Y), ("test", new, NEW_Y):
            if kind == "dense":
                np.save(path / kind / f"{part}.npy", features)
                scipy.sparse.save_npz(path / kind / f"{part}_labels.npz", labels_of(y))
            else:
                data.write_xc(path / kind / f"{part}.txt", features, labels_of(y))
    data.write_xc(path / "test.txt", NEW_COUNTS, labels_of(NEW_Y))
    joined = scipy.sparse.csr_matrix(scipy.sparse.hstack([NEW_COUNTS, NEW_H]))
    scipy.sparse.save_npz(path / "joined.npz", joined)
    text = ["--text", str(path / "train.tsv")]
    dense = ["--dense", str(path / "train.npy")]
    assert main.main([*WIDE, *text, *dense, "--save", str(path / "wide.st")]) == 0
    assert main.main([*TRAIN, *LINEAR, "--data", str(path / "sparse"), *dense, "--save", str(path / "counts.st")]) == 0
    assert main.main([*TRAIN, "--data", str(path / "dense"), "--save", str(path / "kernel.st")]) == 0
    linear = [option for option in WIDE if option not in KERNEL]
    assert main.main([*linear, *text, "--save", str(path / "linear.st")]) == 0
    return path


def load(path):
    return train.Classifier.load(path, device="cpu")


@pytest.fixture
def predict(folder, capsys):
    """Run `predict` of a model in the folder; returns the lines of standard output after the first one as fields."""

    def run(*arguments, model="wide.st"):
        capsys.readouterr()
        assert main.main(["predict", str(folder / model), *map(str, arguments), "--device", "cpu"]) == 0
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]

    return run


# ------------------------------------------------------------ train


def test_train_on_texts_and_embeddings(folder, tmp_path, capsys):
    """The same model as from Python, and the metrics of the test texts."""
    figures = tmp_path / "figures.json"
    files = ["--text", str(folder / "train.tsv"), "--dense", str(folder / "train.npy")]
    files += ["--test-text", str(folder / "test.tsv"), "--test-dense", str(folder / "test.npy")]
    assert main.main([*WIDE, *files, "--save", str(tmp_path / "m.st"), "--json", str(figures)]) == 0
    result, model = json.loads(figures.read_text()), load(tmp_path / "m.st")
    wanted = train.Classifier(**OF_WIDE).fit((TEXTS, H), Y)
    metrics = wanted.evaluate((NEW_TEXTS, NEW_H), NEW_Y)
    assert model.architecture_ == "wide-and-deep" and model.kernel_weight_ == wanted.kernel_weight_ > 0
    np.testing.assert_array_equal(model.top_k((NEW_TEXTS, NEW_H))[0], wanted.top_k((NEW_TEXTS, NEW_H))[0])
    assert {name: result["test"][name] for name in ("P@1", "sample F1")} == {
        name: metrics[name] for name in ("P@1", "sample F1")
    }
    assert metrics["P@1"] > 0.85 and f"test  P@1 {100 * metrics['P@1']:.2f}" in capsys.readouterr().out


def test_options_of_the_parts(folder, tmp_path):
    """Weights that are given are kept."""
    files = [
        "--text",
        str(folder / "train.tsv"),
        "--dense",
        str(folder / "train.npy"),
        "--save",
        str(tmp_path / "m.st"),
    ]
    assert main.main([*WIDE, *files, "--kernel-weight", "0.75", "--head-weight", "0.25", "--epochs", "2"]) == 0
    model = load(tmp_path / "m.st")
    assert (model.power_, model.kernel_C_, model.kernel_weight_, model.head_weight_) == (4.0, 0.25, 0.75, 0.25)
    assert (model.n_neighbors, model.epochs, model.C_) == (240, 2, 1.0)
    rest = [option for option in WIDE if option not in KERNEL]
    assert main.main([*rest, *files, "--power", "auto", "--kernel-C", "1", "--validation", "0.2"]) == 0
    model = load(tmp_path / "m.st")
    assert model.kernel_C_ == 1 and model.power == "auto" and model.n_points_ == 192


def test_train_on_sparse_features_and_embeddings(folder, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    files = ["--data", str(folder / "sparse"), "--dense", str(folder / "train.npy"), "--json", str(figures)]
    assert main.main([*TRAIN, *LINEAR, *files]) == 0
    assert "no evaluation: --test-dense FILE has the embeddings of the test part" in capsys.readouterr().out
    assert "test" not in json.loads(figures.read_text())
    assert main.main([*TRAIN, *LINEAR, *files, "--test-dense", str(folder / "test.npy")]) == 0
    model = load(folder / "counts.st")
    metrics = model.evaluate((NEW_COUNTS, NEW_H), labels_of(NEW_Y))
    assert json.loads(figures.read_text())["test"]["nDCG@3"] == metrics["nDCG@3"] and metrics["P@1"] > 0.85


def test_the_last_columns_of_the_data_are_embeddings(folder, tmp_path, predict):
    (tmp_path / "joined").mkdir()
    for part, pair, y in ("train", (COUNTS, H), Y), ("test", (NEW_COUNTS, NEW_H), NEW_Y):
        scipy.sparse.save_npz(tmp_path / "joined" / f"{part}.npz", scipy.sparse.csr_matrix(scipy.sparse.hstack(pair)))
        scipy.sparse.save_npz(tmp_path / "joined" / f"{part}_labels.npz", labels_of(y))
    files = ["--data", str(tmp_path / "joined"), "--dense-columns", str(D), "--save", str(tmp_path / "m.st")]
    assert main.main([*TRAIN, *LINEAR, *files]) == 0
    model, pair = load(tmp_path / "m.st"), load(folder / "counts.st")
    ids = pair.predict((NEW_COUNTS, NEW_H), 1)[:, 0]
    assert [int(line[2]) for line in predict(folder / "joined.npz", "-k", "1", model=tmp_path / "m.st")] == ids.tolist()
    assert model.n_dense_ == D
    assert main.main(["evaluate", str(tmp_path / "m.st"), "--data", str(tmp_path / "joined"), "--device", "cpu"]) == 0


def test_train_on_embeddings_alone(folder, predict, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    assert main.main([*TRAIN, "--data", str(folder / "dense"), "--json", str(figures)]) == 0
    model = load(folder / "kernel.st")
    assert model.architecture_ == "kernel" and (model.power_, model.kernel_C_) == (4.0, 0.25)
    wanted = train.Classifier(**PARAMS).fit(H, labels_of(Y))
    np.testing.assert_array_equal(model.top_k(NEW_H)[0], wanted.top_k(NEW_H)[0])
    assert json.loads(figures.read_text())["test"]["P@1"] == wanted.score(NEW_H, labels_of(NEW_Y))
    lines = predict(folder / "dense" / "test.npy", "-k", "2", model="kernel.st")
    assert [int(line[2]) for line in lines] == wanted.predict(NEW_H, 2).ravel().tolist()
    command = ["explain", str(folder / "kernel.st"), str(folder / "dense" / "test.npy"), "--row", "3", "--label", "2"]
    assert main.main([*command, "-n", "2"]) == 0
    assert capsys.readouterr().out.count("  point ") == 2


# ------------------------------------------------------------ evaluate


@pytest.mark.parametrize("model", ["wide.st", "counts.st"])
def test_evaluate_with_embeddings(folder, tmp_path, capsys, model):
    figures, table = tmp_path / "figures.json", tmp_path / "labels.tsv"
    points = ["--text", str(folder / "test.tsv")] if model == "wide.st" else ["--data", str(folder / "sparse")]
    command = ["evaluate", str(folder / model), *points, "--dense", str(folder / "test.npy"), "--device", "cpu"]
    assert main.main([*command, "--json", str(figures), "--per-label", str(table)]) == 0
    x, y = (NEW_TEXTS, NEW_Y) if model == "wide.st" else (NEW_COUNTS, labels_of(NEW_Y))
    wanted, result = load(folder / model).evaluate((x, NEW_H), y), json.loads(figures.read_text())
    assert all(result[name] == wanted[name] for name in ("P@1", "R@3", "sample F1", "ECE"))
    unit = "text" if model == "wide.st" else "point"
    assert f"ms per {unit}" in capsys.readouterr().out and len(table.read_text().splitlines()) == 10


# ------------------------------------------------------------ predict


def test_predict_texts_from_a_file(folder, predict):
    model = load(folder / "wide.st")
    lines = predict(folder / "test.tsv", "--dense", folder / "test.npy", "-k", "2")
    assert [line[2] for line in lines] == model.predict((NEW_TEXTS, NEW_H), 2).ravel().tolist()
    assert [int(line[0]) for line in lines] == np.repeat(np.arange(80), 2).tolist()
    scores, _ = model.top_k((NEW_TEXTS, NEW_H), 2)
    assert [np.float32(line[4]) for line in lines] == scores.ravel().tolist()
    sets = predict(folder / "test.tsv", "--dense", folder / "test.npy")
    wanted = model.predict((NEW_TEXTS, NEW_H))
    assert [(int(line[0]), line[2]) for line in sets] == [(i, label) for i, row in enumerate(wanted) for label in row]


def test_batches_get_their_own_embeddings(folder, predict, monkeypatch):
    """Several files, and batches of a few texts."""
    from sparsemax_nb.cli import predict as command

    wanted = predict(folder / "test.tsv", "--dense", folder / "test.npy", "-k", "1")
    monkeypatch.setattr(command, "POINTS_PER_BATCH", 7)
    assert predict(folder / "test.tsv", "--dense", folder / "test.npy", "-k", "1") == wanted
    for name, part in (("a", slice(0, 11)), ("b", slice(11, 80))):
        (folder / f"{name}.txt").write_text("".join(text + "\n" for text in NEW_TEXTS[part]))
    found = predict(folder / "a.txt", folder / "b.txt", "--dense", folder / "test.npy", "-k", "1")
    assert [line[:3] for line in found] == [line[:3] for line in wanted]


def test_the_first_rows_of_a_file(folder, predict):
    wanted = predict(folder / "test.tsv", "--dense", folder / "test.npy", "-k", "1")
    assert predict(folder / "test.tsv", "--dense", folder / "test.npy", "-k", "1", "--rows", "9") == wanted[:9]
    few = ["--dense", folder / "few.npy", "-k", "1", "--rows", "7"]
    assert len(predict(folder / "test.tsv", *few)) == 7


@pytest.mark.parametrize("points", ["test.txt", "sparse/test.txt"])
def test_predict_sparse_features(folder, predict, points):
    model = load(folder / "counts.st")
    lines = predict(folder / points, "--dense", folder / "test.npy", "-k", "1", model="counts.st")
    assert [int(line[2]) for line in lines] == model.predict((NEW_COUNTS, NEW_H), 1)[:, 0].tolist()


def test_standard_input_with_embeddings_is_answered_line_by_line(folder, monkeypatch):
    written, seen = io.BytesIO(), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))
    reads = f"{NEW_TEXTS[0]}\n{NEW_TEXTS[1]}\n".encode(), f"{NEW_TEXTS[2]}\n".encode()
    asked = lambda _: seen.append(len(written.getvalue().splitlines()))  # noqa: E731
    monkeypatch.setattr(sys, "stdin", StandardInput(*reads, asked=asked))
    np.save(folder / "three.npy", NEW_H[:3])
    command = ["predict", str(folder / "wide.st"), "-", "--dense", str(folder / "three.npy"), "-k", "1"]
    assert main.main([*command, "--format", "json-lines", "--device", "cpu"]) == 0
    assert seen == [0, 2, 3]
    found = [json.loads(line)["labels"][0]["label"] for line in written.getvalue().splitlines()]
    assert found == load(folder / "wide.st").predict((NEW_TEXTS[:3], NEW_H[:3]), 1)[:, 0].tolist()


# ------------------------------------------------------------ errors

TEXT = "--text DIR/train.tsv"
EVALUATE = "evaluate DIR/wide.st --text DIR/test.tsv"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"train classifier {TEXT} --dense DIR/few.npy", "few.npy must have one row per point, 240 in all, got 7"),
        ("train classifier --data DIR/sparse --dense DIR/few.npy", "few.npy must have one row per point, 240 in all"),
        (f"train classifier {TEXT} --dense DIR/none.npy", "none.npy cannot be read: there is no such file"),
        (f"train classifier {TEXT} --dense DIR/h.csv", "h.csv must be a .npy file with a matrix of embeddings"),
        (f"train classifier {TEXT} --dense DIR/train.tsv", "train.tsv must be a .npy file with a matrix of embeddings"),
        (f"train classifier {TEXT} --dense DIR/float64.npy", "float64.npy: features must be float32, got float64"),
        (f"train classifier {TEXT} --dense DIR/text.npy", "text.npy"),
        (
            f"train classifier {TEXT} --dense DIR/nan.npy",
            "the embeddings must be finite as float32, got NaN or infinity",
        ),
        (
            f"train classifier {TEXT} --dense DIR/train.npy --test-text DIR/test.tsv",
            "--dense and --test-dense must be given together if there is --test-text",
        ),
        (f"train classifier {TEXT} --test-dense DIR/test.npy", "--test-dense needs --dense FILE"),
        (
            f"train classifier {TEXT} --dense DIR/train.npy --test-text DIR/test.tsv --test-dense DIR/few.npy",
            "few.npy must have one row per point, 80 in all, got 7",
        ),
        (f"train classifier {TEXT} --dense DIR/train.npy --embedding 3", "embedding must keep its default: a pair of"),
        (f"train classifier {TEXT} --power 3", "power must keep its default: sparse features"),
        (f"train classifier {TEXT} --dense DIR/train.npy --power 0", "power must lie in [1, 100], got 0"),
        (f"train classifier {TEXT} --dense DIR/train.npy --save DIR/train.npy", "--save and --dense must be different"),
        (EVALUATE, "--dense FILE.npy must be given: DIR/wide.st was trained with embeddings beside other features"),
        (f"{EVALUATE} --dense DIR/few.npy", "few.npy must have one row per point, 80 in all, got 7"),
        (
            f"{EVALUATE} --dense DIR/narrow.npy",
            "sparse features and embeddings of width 6, got 29 and 4",
        ),
        (f"{EVALUATE} --dense DIR/h.csv", "h.csv must be a .npy file"),
        (
            f"{EVALUATE} --dense DIR/test.npy --per-label DIR/test.npy",
            "--per-label and --dense must be different files",
        ),
        (
            "evaluate DIR/linear.st --text DIR/test.tsv --dense DIR/test.npy",
            "--dense FILE.npy must not be given: DIR/linear.st was not trained with embeddings beside other features",
        ),
        ("evaluate DIR/kernel.st --data DIR/dense --dense DIR/test.npy", "--dense FILE.npy must not be given"),
        ("evaluate DIR/counts.st --data DIR/sparse", "--dense FILE.npy must be given"),
        ("predict DIR/wide.st DIR/test.tsv", "--dense FILE.npy must be given"),
        (
            "predict DIR/wide.st DIR/test.tsv --dense DIR/few.npy",
            "few.npy must have one row per point or text, at least",
        ),
        (
            "predict DIR/wide.st DIR/test.tsv --dense DIR/train.npy",
            "train.npy must have one row per point or text, 80 in all, got 240",
        ),
        ("predict DIR/wide.st DIR/test.tsv --dense DIR/narrow.npy", "embeddings of width 6"),
        ("predict DIR/linear.st maps --dense DIR/test.npy", "--dense FILE.npy must not be given"),
        ("predict DIR/kernel.st DIR/dense/test.npy --dense DIR/test.npy", "--dense FILE.npy must not be given"),
        ("predict DIR/kernel.st DIR/narrow.npy", "X has 4 features, but Classifier is expecting 6 features"),
        ("predict DIR/kernel.st DIR/test.txt", "X has 5 features, but Classifier is expecting 6"),
        ("predict DIR/counts.st maps ships --dense DIR/test.npy", "expects one file with 5 features per point, got"),
        ("explain DIR/wide.st maps", "X must be a pair (text or row of features, embedding), got str"),
        ("update DIR/wide.st --text DIR/test.tsv --save DIR/n.st", "but DIR/wide.st has architecture='wide-and-deep'"),
        (
            "update DIR/kernel.st --retire DIR/test.tsv --save DIR/n.st",
            "DIR/kernel.st has architecture='kernel'; train",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, command, message):
    np.save(folder / "text.npy", np.array([["a"]]))
    bad = H.copy()
    bad[17, 3] = np.nan
    np.save(folder / "nan.npy", bad)
    arguments = command.replace("DIR", str(folder)).split()
    assert main.main([*arguments, "--device", "cpu"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if " on cpu (" not in line and "reading" not in line]
    assert len(error) == 1 and error[0].startswith("sparsemax-nb: ")
    assert message.replace("DIR", str(folder)) in error[0]
    assert not (folder / "n.st").exists() and np.array_equal(np.load(folder / "train.npy"), H)


def test_a_language_model_has_no_embeddings(folder, capsys, monkeypatch):
    monkeypatch.setattr(main.predict.checkpoint, "kind_of", lambda path: train.LanguageModel.kind)
    assert main.main(["evaluate", str(folder / "wide.st"), "--dense", str(folder / "test.npy")]) == 2
    assert "--dense needs a classifier" in capsys.readouterr().err
