"""Sequences of items: their numbers, items left out, what is no such file."""

import gzip
import lzma

import numpy as np
import pytest

from sparsemax_nb import data

TEXT = "9 7 9\n\n7\t8  7\n9 10\n"
PACK = {"txt": bytes, "gz": gzip.compress, "xz": lzma.compress}


def of(sequences):
    """The items of each sequence, in words."""
    pieces = np.split(sequences.items, sequences.indptr[1:-1])
    return [sequences.vocabulary.decode(piece) for piece in pieces]


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.xz"])
@pytest.mark.parametrize("whole", [False, True])
def test_sequences_of_a_file(tmp_path, ending, whole):
    folder = tmp_path / "shop.v2"
    folder.mkdir()
    file = folder / f"sequences{ending}"
    file.write_bytes(PACK[ending.rpartition(".")[2]](TEXT.encode()))
    sequences = data.load_sequences(str(folder) if whole else file)
    assert sequences.name == ("shop.v2" if whole else "sequences")
    assert sequences.vocabulary.words == ("7", "9", "10", "8")  # 3, 3, 1, 1 times; names in the order of the alphabet
    assert sequences.indptr.dtype == np.int64 and sequences.indptr.tolist() == [0, 3, 3, 6, 8]
    assert sequences.items.dtype == np.int32 and sequences.items.tolist() == [1, 0, 1, 0, 3, 0, 1, 2]


def test_rare_items_are_left_out_and_every_line_stays(tmp_path):
    (tmp_path / "sequences").write_text("rare\n" + TEXT + "rare2 7\n\n")
    sequences = data.load_sequences(tmp_path, min_count=2)
    assert sequences.vocabulary.words == ("7", "9")
    assert of(sequences) == [[], ["9", "7", "9"], [], ["7", "7"], ["9"], ["7"], []]
    again, n_unknown = sequences.vocabulary.encode([["7"], [], ["9", "9"]])
    assert again.tolist() == [0, 1, 1] and n_unknown == 0


def test_a_file_without_a_known_ending(tmp_path):
    (tmp_path / "users").write_text("a b\n")
    assert data.load_sequences(tmp_path / "users").name == "users"


def test_many_sequences_against_plain_python(tmp_path):
    random = np.random.default_rng(0)
    lines = [[str(i) for i in random.zipf(1.6, random.integers(0, 7)) % 50] for _ in range(300)]
    (tmp_path / "sequences.txt").write_text("".join(" ".join(line) + "\n" for line in lines))
    words = [word for line in lines for word in line]
    kept = {word for word in words if words.count(word) >= 5}
    assert 0 < len(kept) < len(set(words))
    sequences = data.load_sequences(tmp_path, min_count=5)
    assert of(sequences) == [[word for word in line if word in kept] for line in lines]
    assert list(sequences.vocabulary.words) == sorted(kept, key=lambda word: (-words.count(word), word))


@pytest.mark.parametrize(
    ("content", "min_count", "message"),
    [
        (b"", 1, "sequences.txt: the file is empty"),
        (b"\n \n", 1, "sequences.txt: no word occurs 1 times or more"),
        (b"1 2\n3\n", 2, "sequences.txt: no word occurs 2 times or more; lower min_count"),
        (b"1 2\n3 \x80\x81\n", 1, "sequences.txt, line 2: byte 0x80 in column 3 is not UTF-8 text"),
        (b"1 2 <eos>\n", 1, "sequences.txt: words must not be '<eos>'"),
    ],
)
def test_bad_files(tmp_path, content, min_count, message):
    (tmp_path / "sequences.txt").write_bytes(content)
    for path in (tmp_path, tmp_path / "sequences.txt"):
        with pytest.raises(data.DataError, match=message):
            data.load_sequences(path, min_count)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-thing' is neither a file nor a directory"):
        data.load_sequences(tmp_path / "no-such-thing")
    with pytest.raises(FileNotFoundError, match="contains no sequences file; tried sequences, sequences.txt, "):
        data.load_sequences(tmp_path)
    (tmp_path / "sequences.txt.gz").write_bytes(gzip.compress(TEXT.encode())[:-9])
    with pytest.raises(data.DataError, match="sequences.txt.gz, line .: the compressed file is truncated"):
        data.load_sequences(tmp_path)
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        data.load_sequences(tmp_path, min_count=0)


def test_leave_last_out(tmp_path):
    (tmp_path / "sequences").write_text("7 9 7 8\n\n9\n8 7\n9 9 8\n")
    whole = data.load_sequences(tmp_path)
    training, validation, test = data.leave_last_out(whole)
    assert of(training) == [["7", "9"], [], [], [], ["9"]]
    assert of(validation) == [["7", "9", "7"], [], [], ["8"], ["9", "9"]]
    assert test is whole and training.vocabulary is whole.vocabulary and training.items.dtype == np.int32


def test_a_vocabulary_that_is_given(tmp_path):
    (tmp_path / "sequences").write_text("7 9 7 8\n9\n")
    vocabulary = data.Vocabulary(["9", "8", "1"])
    sequences = data.load_sequences(tmp_path, vocabulary=vocabulary)
    assert of(sequences) == [["9", "8"], ["9"]] and sequences.vocabulary is vocabulary
    with pytest.raises(data.DataError, match="none of the items is in the vocabulary"):
        data.load_sequences(tmp_path, vocabulary=data.Vocabulary(["x"]))
