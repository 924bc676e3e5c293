"""The benchmarks of raw texts and of labels that come later, on small data."""

import json
import lzma

import numpy as np
import pytest

from bench import later_labels, overview, tables, texts
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
