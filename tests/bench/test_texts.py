"""The benchmarks of raw texts and of labels that come later, on small data."""

import json
import lzma

import numpy as np
import pytest
import scipy.sparse

from bench import later_labels, overview, tables, texts
from bench.peers import scikit
from sparsemax_nb import data, train

THINGS = {"map": "old maps of", "book": "books from", "ship": "ships at"}
TOWNS = "Athens", "Boston", "Cairo", "Delhi", "Kyoto", "Lima", "London", "Oslo", "Paris", "Rome", "Turin", "Wien"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    lines = [f"{text} {town}\t{label}\t{town}\n" for label, text in THINGS.items() for town in TOWNS]
    folder = tmp_path / "small"
    folder.mkdir()
    for part, some in (("train", lines[::2] + lines[1::4]), ("test", [*lines[3::4], "a town\tunknown\n"])):
        with lzma.open(folder / f"{part}_text.tsv.xz", "wt") as file:
            file.writelines(some)
    monkeypatch.setattr(texts, "FOLDER", tmp_path / "rows")
    monkeypatch.setattr(texts, "DATA", ("small",))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return folder


def test_a_row_of_texts_is_what_the_model_reaches(folder, tmp_path, capsys):
    given = ["--data", str(folder), "--work", str(tmp_path / "work"), "--threads", "1"]
    assert texts.main(["texts", *given]) == 0 and texts.main(["words-only", *given]) == 0
    found = json.loads((tmp_path / "rows" / "small" / "texts.json").read_text())
    part, test = texts.read(folder, "train"), texts.read(folder, "test")
    wanted = train.Classifier(progress=False).fit(part.texts, part.labels).evaluate(test.texts, test.labels)
    for name in ("P@1", "P@5", "PSP@5", "nDCG@5", "F1@5", "sample F1"):
        assert found["test"][name] == pytest.approx(wanted[name]), name
    assert found["test"]["ECE of 20"] == pytest.approx(wanted["ECE"])
    assert found["settings"]["C"] > 0 and found["points"] == 27 and found["n_labels"] == 12
    capsys.readouterr()
    assert texts.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert "| words-only |" in shown and "Not run: `python -m bench.texts no-word-pairs --data small`" in shown
    (line,) = overview.texts_line({"small": texts.finished("small"), "other": {}})
    assert f"on small, P@1, P@3 and P@5 are {100 * wanted['P@1']:.1f} / " in line and overview.texts_line({}) == []


@pytest.fixture
def embeddings(folder, tmp_path):
    """A folder with vectors that know the label of the thing in each text of `folder`."""
    things = [*THINGS, "unknown"]
    for part in "train", "test":
        known = [things.index(labels[0]) for labels in texts.read(folder, part).labels]
        noise = np.random.default_rng(len(known)).standard_normal((len(known), 6))
        np.save(tmp_path / f"{part}.npy", np.eye(4, 6)[known] + 0.1 * noise)
    return tmp_path


def test_rows_of_embeddings(folder, embeddings, tmp_path, capsys):
    """The classifier gets embeddings alone, or beside the texts; the table has these rows, and what is missing."""
    given = ["--data", str(folder), "--work", str(tmp_path / "work"), "--threads", "1"]
    given += ["--embeddings", str(embeddings)]
    for row in "embeddings", "texts-and-embeddings", "plain-neighbors":
        assert texts.main([row, *given]) == 0
    found = texts.finished("small")
    part, test = texts.read(folder, "train"), texts.read(folder, "test")
    h, test_h = (np.load(embeddings / f"{name}.npy").astype(np.float32) for name in ("train", "test"))
    for row, x, test_x in (
        ("embeddings", h, test_h),
        ("texts-and-embeddings", (part.texts, h), (test.texts, test_h)),
    ):
        wanted = train.Classifier(progress=False).fit(x, part.labels).evaluate(test_x, test.labels)
        for name in ("P@1", "nDCG@5", "sample F1"):
            assert found[row]["test"][name] == pytest.approx(wanted[name]), (row, name)
    assert found["embeddings"]["settings"].keys() == {"architecture", "power", "kernel_C"}
    assert found["texts-and-embeddings"]["settings"].keys() == set(texts.CHOSEN)
    assert [r["embedding_width"] for r in found.values()] == [6, 6, 6]
    assert found["plain-neighbors"]["test"]["P@1"] > 0.8 and found["plain-neighbors"]["model_bytes"] > h.nbytes
    capsys.readouterr()
    assert texts.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert "| texts-and-embeddings |" in shown and "embeddings of width 6" in shown
    assert "Not run: `python -m bench.texts embeddings-power-1 --data small --embeddings DIR`" in shown
    assert "`python -m bench.texts texts --data small`" in shown
    (line,) = overview.texts_line({"small": found | {"texts": found["texts-and-embeddings"]}})
    pair = found["texts-and-embeddings"]["test"]["P@1"]
    assert f"; with embeddings beside the texts they are {100 * pair:.1f} / " in line


def test_embeddings_must_fit_the_row_and_the_texts(folder, embeddings, tmp_path, capsys):
    for row, more in ("embeddings", []), ("texts", ["--embeddings", str(embeddings)]):
        with pytest.raises(SystemExit):
            texts.main([row, "--data", str(folder), *more])
        assert f"be given for the row {row}" in capsys.readouterr().err
    np.save(embeddings / "test.npy", np.ones((3, 6)))
    with pytest.raises(ValueError, match=r"test.npy must have one row per text, 10 in all, got the shape \(3, 6\)"):
        texts.main(["embeddings", "--data", str(folder), "--embeddings", str(embeddings)])


def test_votes_of_neighbors():
    """Each neighbor gives its labels the cosine to a power; ties by label; no labels where no cosine is positive."""
    points = np.array([[2, 0], [0.6, 0.8], [0, 3], [0, 0]], np.float32)
    y = scipy.sparse.csr_matrix([[1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    rows = np.array([[1, 0], [0, 5], [-1, 0]], np.float32)
    ids, found = scikit.nearest_votes(points, y, rows, neighbors=2, power=2, k=3, n_single=2)
    assert ids.tolist() == [[0, 2, -1], [1, 0, 2], [-1, -1, -1]]
    assert found["ms_a_query_alone"] > 0


def test_names_that_training_does_not_have_are_further_columns():
    labels = texts.indicator([["b", "c"], [], ["a", "new", "b"]], ["a", "b", "c"])
    assert labels.toarray().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]]


def test_later_labels(tmp_path, monkeypatch, capsys):
    points = [data.bag_of_words(n, 60, words_per_row=6, n_labels=25, labels_per_row=2, seed=1) for n in (600, 900)]
    parts = [data.XCData(p.features, p.labels) for p in points]
    monkeypatch.setattr(later_labels, "N_NEW", 5)
    monkeypatch.setattr(later_labels, "POINTS_PER_LABEL", (2, 8))
    monkeypatch.setattr(later_labels, "PICTURE", tmp_path / "later.png")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(data, "load", lambda _: data.Corpus("small", *parts, None, None, None))
    is_new, later = later_labels.split(parts[0].labels, 8)
    assert is_new.sum() == 5 and 8 <= len(later) <= 40
    assert (np.asarray(parts[0].labels[later][:, is_new].sum(0)) >= 8).all()
    kept = later_labels.without_columns(parts[0].labels, is_new)
    assert not kept[:, is_new].nnz and (kept[:, ~is_new] != parts[0].labels[:, ~is_new]).nnz == 0
    assert later_labels.main([]) == 0
    (row,) = json.loads((tmp_path / "later_labels-cpu.json").read_text())
    of_8 = row["figures"]["8"]
    assert of_8["partial_fit"]["new nDCG@5"] > of_8["earlier"]["new nDCG@5"] and (tmp_path / "later.png").exists()
    assert "| 8 | partial_fit |" in capsys.readouterr().out
