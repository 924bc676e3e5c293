"""Words of a file, their numbers, and what does not fit."""

import lzma

import numpy as np
import pytest

from sparsemax_nb import data
from sparsemax_nb.data import readers

LINES = [["a", "rose", "is", "a", "rose"], [], ["is", "a", "rosé", "?"]]


@pytest.mark.parametrize("name", ["text.txt", "text.txt.xz"])
def test_words_of_a_file(tmp_path, name):
    text = " a rose  is\ta rose \n\nis a rosé ?".encode()
    (tmp_path / name).write_bytes(lzma.compress(text) if name.endswith("xz") else text)
    assert list(data.read_words(tmp_path / name)) == LINES


def test_most_frequent_words_come_first():
    vocabulary = data.Vocabulary.build(LINES)
    assert vocabulary.words == ("<eos>", "a", "is", "rose", "?", "rosé", "<unk>") and len(vocabulary) == 7
    tokens, n_unknown = vocabulary.encode(LINES)
    assert tokens.dtype == np.int32 and tokens.tolist() == [1, 3, 2, 1, 3, 0, 0, 2, 1, 5, 4, 0] and n_unknown == 0
    assert vocabulary.decode(tokens) == [word for line in LINES for word in [*line, "<eos>"]]


def test_rare_words_are_one():
    vocabulary = data.Vocabulary.build([*LINES, ["<unk>"]], min_count=3)
    assert vocabulary.words == ("<unk>", "<eos>", "a")  # 2 + 2 + 1 + 1 and one of its own; 4; 3
    tokens, n_unknown = vocabulary.encode([["a", "tulip", "<unk>"]])
    assert tokens.tolist() == [2, 0, 0, 1] and n_unknown == 1


def test_bad_text(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the text is empty"):
        data.Vocabulary.build([])
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        data.Vocabulary.build(LINES, min_count=0)
    with pytest.raises(ValueError, match="words must all be different, got 'a' twice"):
        data.Vocabulary(["a", "b", "a"])
    with pytest.raises(data.DataError, match="'tulip' is not in the vocabulary, nor is '<unk>'"):
        data.Vocabulary(["a", "<eos>"]).encode([["a"], ["tulip"]])
    for bad in (-1, 7):
        with pytest.raises(ValueError, match=f"ids must lie in .0, 7., got {bad}"):
            data.Vocabulary.build(LINES).decode([0, bad])
    (tmp_path / "binary").write_bytes(b"fine\nnot \xff\n")
    with pytest.raises(data.DataError, match="binary, line 2: byte 0xff in column 5 is not UTF-8 text"):
        list(data.read_words(tmp_path / "binary"))
    monkeypatch.setattr(readers, "LONGEST", 1 << 20)
    (tmp_path / "long").write_bytes(b"fine\n" + b"a" * (1 << 20) + b"\n")
    with pytest.raises(data.DataError, match="long, line 2: the line is longer than 1 MiB; is this text"):
        list(data.read_words(tmp_path / "long"))


def test_wikitext():
    corpus = data.load_text("wikitext-2")
    assert corpus.name == "wikitext-2" and len(corpus.vocabulary) == 33278
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [2088628, 217646, 245569]
    assert corpus.unknown == {"train": 0, "valid": 0, "test": 0}
    assert corpus.vocabulary.words[:3] == ("the", ",", ".") and (corpus.train == 0).sum() == 113161


@pytest.mark.parametrize("name", ["{}.txt", "ptb.{}.txt", "wiki.{}.tokens"])
def test_a_folder_of_text(tmp_path, name):
    for part, text in ("train", "a rose is a rose\n"), ("valid", "a rose\n"), ("test", "a tulip is a tulip\n\n"):
        (tmp_path / name.format(part)).write_text(text)
    corpus = data.load_text(tmp_path, min_count=2)
    assert corpus.name == tmp_path.name and corpus.vocabulary.words == ("a", "rose", "<eos>", "<unk>")
    assert corpus.test.tolist() == [0, 3, 3, 0, 3, 2, 2] and corpus.unknown == {
        "train": 1 / 6,
        "valid": 0,
        "test": 3 / 7,
    }


def test_bad_folders_of_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="is neither bundled .wikitext-2. nor a directory"):
        data.load_text("wikitext-3")
    for part in ("train", "valid"):
        (tmp_path / f"{part}.txt").write_text("a rose\n" if part == "train" else "")
    with pytest.raises(FileNotFoundError, match=r"holds no test file; looked for test, test.txt, .*wiki.test.tokens"):
        data.load_text(tmp_path)
    (tmp_path / "test.txt").write_text("a rose\n")
    with pytest.raises(data.DataError, match="valid.txt: the file is empty"):
        data.load_text(tmp_path)
