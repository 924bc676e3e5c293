"""Words of a file, their numbers, and what does not fit."""

import lzma
import unicodedata

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
    with pytest.raises(data.DataError, match="'tulip' is not in the vocabulary, which has no '<unk>'"):
        data.Vocabulary(["a", "<eos>"]).encode([["a"], ["tulip"]])
    for bad in (-1, 7):
        with pytest.raises(ValueError, match=f"ids must lie in .0, 7., got {bad}"):
            data.Vocabulary.build(LINES).decode([0, bad])
    (tmp_path / "binary").write_bytes(b"fine\nnot \xff\n")
    with pytest.raises(data.DataError, match="binary, line 2: byte 0xff in column 5 is not UTF-8 text"):
        list(data.read_words(tmp_path / "binary"))
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1 << 20)
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
    with pytest.raises(FileNotFoundError, match=r"contains no test file; tried test, test.txt, .*wiki.test.tokens"):
        data.load_text(tmp_path)
    (tmp_path / "test.txt").write_text("a rose\n")
    with pytest.raises(data.DataError, match="valid.txt: the file is empty"):
        data.load_text(tmp_path)


def test_a_vocabulary_that_is_of_no_text():
    lines = [["b", "a", "c"], [], ["a", "b", "d"]]
    vocabulary = data.Vocabulary.build(lines, min_count=1, text=False)
    assert vocabulary.words == ("a", "b", "c", "d")
    ids, n_unknown = vocabulary.encode([["d", "a"], [], ["b"]])
    assert ids.tolist() == [3, 0, 1] and n_unknown == 0
    assert data.Vocabulary.build(lines, min_count=2, text=False).words == ("a", "b")
    with pytest.raises(data.DataError, match="'e' is not in the vocabulary, which has no '<unk>'"):
        vocabulary.encode([["a", "e"]])
    with pytest.raises(ValueError, match="no word occurs 3 times or more; lower min_count"):
        data.Vocabulary.build(lines, min_count=3, text=False)
    for name in ("<eos>", "<unk>"):
        with pytest.raises(ValueError, match="words must not be '<eos>' or '<unk>'"):
            data.Vocabulary.build([["a", name]], text=False)


def test_find():
    ids = data.Vocabulary.build(LINES).find(["rose", "tulip", "<eos>", ""])
    assert ids.dtype == np.int32 and ids.tolist() == [3, -1, 0, -1]


@pytest.mark.parametrize("min_count", [1, 2, 3])
def test_a_file_read_once_gives_what_reading_it_twice_does(tmp_path, min_count):
    random = np.random.default_rng(min_count)
    texts = {
        part: "".join(" ".join(f"w{n}" for n in random.zipf(1.5, random.integers(0, 9)) % 40) + "\n" for _ in range(30))
        for part in ("train", "valid", "test")
    }
    texts["train"] += "<unk> w1\n"
    for part, text in texts.items():
        (tmp_path / f"{part}.txt").write_text(text)
    corpus = data.load_text(tmp_path, min_count)
    vocabulary = data.Vocabulary.build(data.read_words(tmp_path / "train.txt"), min_count)
    assert corpus.vocabulary.words == vocabulary.words
    for part in texts:
        tokens, n_unknown = vocabulary.encode(data.read_words(tmp_path / f"{part}.txt"))
        assert getattr(corpus, part).dtype == np.int32 and getattr(corpus, part).tolist() == tokens.tolist()
        assert corpus.unknown[part] == n_unknown / len(tokens)
    assert corpus.unknown["test"] > 0


@pytest.mark.parametrize(("n_lines", "held_out"), [(3, 1), (199, 1), (200, 2), (1000, 10)])
@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.xz"])
def test_a_text_in_one_file(tmp_path, name, n_lines, held_out):
    text = "".join(f"line {i}\n" for i in range(n_lines)).encode()
    (tmp_path / name).write_bytes(lzma.compress(text) if name.endswith("xz") else text)
    corpus = data.load_text(tmp_path)
    n_train = n_lines - 2 * held_out
    assert corpus.vocabulary.decode(corpus.train)[1::3] == [str(i) for i in range(n_train)]
    for part in corpus.valid, corpus.test:
        assert corpus.vocabulary.decode(part) == ["line", "<unk>", "<eos>"] * held_out
    assert len(corpus.vocabulary) == n_train + 3 and corpus.unknown == {"train": 0, "valid": 1 / 3, "test": 1 / 3}


def test_parts_go_before_a_text_in_one_file(tmp_path):
    (tmp_path / "corpus.txt").write_text("a\nb\nc\n")
    (tmp_path / "valid.txt").write_text("a rose\n")
    with pytest.raises(FileNotFoundError, match="contains no train file"):
        data.load_text(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part).write_text("a rose\n")
    assert len(data.load_text(tmp_path).train) == 3


def test_bad_texts_in_one_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="contains no train file; .*; name the file of a text without parts corpus"
    ):
        data.load_text(tmp_path)
    for text, message in ("", "the file is empty"), ("a\n\n", "at least three lines, one for each part, got 2"):
        (tmp_path / "corpus").write_text(text)
        with pytest.raises(data.DataError, match=f"corpus: .*{message}"):
            data.load_text(tmp_path)
    (tmp_path / "corpus").write_bytes(b"a\nb\nc \xfe\n")
    with pytest.raises(data.DataError, match="corpus, line 3: byte 0xfe in column 3 is not UTF-8 text"):
        data.load_text(tmp_path)
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        data.load_text(tmp_path, min_count=0)


def test_raw_text(tmp_path):
    """As people write it: marks are words, lines without a word go."""
    (tmp_path / "corpus.txt").write_text("Arma virumque cano, Troiae\n \n\nqui primus ab oris.\n<a> b_1...\nfinis\n")
    lines = [["Arma", "virumque", "cano", ",", "Troiae"], ["qui", "primus", "ab", "oris", "."]]
    lines += [["<", "a", ">", "b_1", ".", ".", "."], ["finis"]]
    assert list(data.read_words(tmp_path / "corpus.txt", raw=True)) == lines
    corpus = data.load_text(tmp_path, raw=True)
    assert corpus.vocabulary.decode(corpus.train) == [*lines[0], "<eos>", *lines[1], "<eos>"]
    assert corpus.vocabulary.decode(corpus.test) == ["<unk>", "<eos>"] and corpus.unknown["test"] == 0.5
    assert corpus.vocabulary.raw and corpus.vocabulary.split("cano,ab") == ["cano", ",", "ab"]
    again = data.load_text(tmp_path, vocabulary=corpus.vocabulary)
    assert (again.train == corpus.train).all() and not data.load_text(tmp_path).vocabulary.raw


def test_a_vocabulary_that_is_given(tmp_path):
    (tmp_path / "corpus").write_text("a b\nb c\nd\n")
    corpus = data.load_text(tmp_path, vocabulary=data.Vocabulary(["c", "<unk>", "<eos>", "b"]))
    assert [part.tolist() for part in (corpus.train, corpus.valid, corpus.test)] == [[1, 3, 2], [3, 0, 2], [1, 2]]
    assert corpus.unknown == {"train": pytest.approx(1 / 3), "valid": 0, "test": 0.5}
    with pytest.raises(data.DataError, match="the vocabulary must contain all words of the text, or '<unk>'"):
        data.load_text(tmp_path, vocabulary=data.Vocabulary(["a", "b", "<eos>"]))


SCRIPTS = {
    "Hindi": "नमस्ते दुनिया", "Tamil": "தமிழ் மொழி", "Arabic": "السَّلامُ عليكم", "Thai": "สวัสดี", "Latin": "café naïve",
    "Persian": "می\u200cخواهم", "Malayalam": "അവന്\u200d", "Hebrew": "שָׁלוֹם",
}  # fmt: skip


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_raw_text_keeps_combining_marks_and_joiners_in_words(tmp_path, script, form):
    """As many words as blanks divide; both spellings of an accent are one."""
    words = unicodedata.normalize("NFC", SCRIPTS[script]).split()
    (tmp_path / "text").write_text(unicodedata.normalize(form, f"({SCRIPTS[script]})!"), encoding="utf-8")
    assert list(data.read_words(tmp_path / "text", raw=True)) == [["(", *words, ")", "!"]]
    vocabulary = data.Vocabulary(words, raw=True)
    assert vocabulary.split(unicodedata.normalize(form, SCRIPTS[script])) == words


def test_raw_text_keeps_what_makes_one_sign():
    coder, heart = "\U0001f469\u200d\U0001f4bb", "\u2764\ufe0f"
    assert data.text.split(f"{coder}{heart}, \u0301x \u00a0y", raw=True) == [coder, heart, ",", "\u0301", "x", "y"]
    ascii_line = "don't (a) b_1...\tc\x1cd"
    assert data.text.split(ascii_line, raw=True) == data.text._word_or_mark().findall(ascii_line)


@pytest.mark.parametrize("text", ["a rose", b"a rose"])
def test_a_text_is_no_list_of_words(text):
    vocabulary = data.Vocabulary.build(LINES)
    for call in (
        lambda: vocabulary.encode(text), lambda: vocabulary.encode([text]), lambda: vocabulary.find(text),
        lambda: data.Vocabulary(text), lambda: data.Vocabulary.build(text), lambda: data.Vocabulary.build([text]),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="must contain words, got a (str|bytes), whose items are characters; use "):
            call()
    with pytest.raises(TypeError, match="ids must hold integers, got float64"):
        vocabulary.decode([0.0])
    assert vocabulary.decode([]) == []


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    (tmp_path / "corpus.txt").write_text("the end\n" * 3, encoding="utf-8-sig")
    assert data.load_text(tmp_path).vocabulary.words == ("<eos>", "end", "the", "<unk>")
    (tmp_path / "sequences.txt").write_text("7 8 9\n7 8\n", encoding="utf-8-sig")
    assert data.load_sequences(tmp_path).vocabulary.words == ("7", "8", "9")
