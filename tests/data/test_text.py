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
    assert vocabulary.words == ("<eos>", "a", "is", "rose", "?", "rosé") and len(vocabulary) == 6
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
        data.Vocabulary.build(LINES).encode([["a"], ["tulip"]])
    for bad in (-1, 6):
        with pytest.raises(ValueError, match=f"ids must lie in .0, 6., got {bad}"):
            data.Vocabulary.build(LINES).decode([0, bad])
    (tmp_path / "binary").write_bytes(b"fine\nnot \xff\n")
    with pytest.raises(data.DataError, match="binary, line 2: byte 0xff in column 5 is not UTF-8 text"):
        list(data.read_words(tmp_path / "binary"))
    monkeypatch.setattr(readers, "LONGEST", 1 << 20)
    (tmp_path / "long").write_bytes(b"fine\n" + b"a" * (1 << 20) + b"\n")
    with pytest.raises(data.DataError, match="long, line 2: the line is longer than 1 MiB; is this text"):
        list(data.read_words(tmp_path / "long"))
