"""Text for language models: splitting into words, and vocabularies."""

import contextlib
import functools
import re
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..core import check
from .corpora import TEXT_ENDINGS, find_folder, first_file
from .readers import DataError, decode, read_lines

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"
BUNDLED = ("wikitext-2",)
#: File names of a part, in the order in which they are tried: ours, those of the Penn Treebank and of WikiText.
STEMS = {part: (part, f"ptb.{part}", f"wiki.{part}") for part in ("train", "valid", "test")}
#: Name of the file of a text without parts. One line in HELD_OUT is for validation, and the same number for test.
SINGLE_FILE, HELD_OUT = "corpus", 100
#: Zero-width joiner and non-joiner: they determine the shape of letters, or combine several emojis.
JOINERS = "\u200c\u200d"
WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


@functools.cache
def _word_or_mark():
    """Pattern of a word or a punctuation mark with its combining marks, which ``\\w`` does not match."""
    codes = [code for code in range(0x80, sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if code + 1 != after]
    marks = "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True))
    return re.compile(rf"\w[\w{marks}{JOINERS}]*|[^\w\s](?:[{marks}]|[{JOINERS}][^\w\s])*")


def split(line, raw=False):
    """Split a line at spaces; or, if `raw`, into words and single punctuation marks, in Unicode NFC."""
    if not raw:
        return line.split()
    if line.isascii():  # same result, in half the time
        return WORD_OR_MARK.findall(line)
    return _word_or_mark().findall(unicodedata.normalize("NFC", line))


def _check_words_iterable(name, value, fix):
    """TypeError for a str, whose items are characters instead of words, and for values that are not iterable."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must contain words, got a {type(value).__name__}, whose items are characters; {fix}")
    if not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must contain words, got {type(value).__name__} {check.shown(value)}; {fix}")


def _words(name, value, fix):
    """Words as a tuple of str; TypeError for anything else."""
    _check_words_iterable(name, value, fix)
    words = tuple(value)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"{name} must contain words (str), got {type(word).__name__} {check.shown(word)}")
    return words


def read_words(path, raw=False):
    """Yield the words of each line of a text file.

    Parameters
    ----------
    path : str or path
        UTF-8; plain, gzip or xz; words are separated by spaces. A byte-order mark is dropped.
    raw : bool
        The text is not tokenised: every punctuation mark becomes a word of its own, and lines without a word are left
        out. Combining marks (accents, the vowel signs of Hindi or Thai) and zero-width joiners stay in their word. Text
        is normalized to Unicode NFC: é is one letter, however the file encodes it.

    Yields
    ------
    words : list of str
        The words of one line.

    Raises
    ------
    DataError
        A line that is not UTF-8 text, with file and line number; a truncated compressed file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "text.txt")
    ...     _ = path.write_text("A rose is a rose.\\n")
    ...     print(list(read_words(path)), list(read_words(path, raw=True)))
    [['A', 'rose', 'is', 'a', 'rose.']] [['A', 'rose', 'is', 'a', 'rose', '.']]
    """
    check.flag("raw", raw)
    with contextlib.closing(read_lines(path)) as lines:
        for number, line in enumerate(lines, 1):
            words = split(decode(f"{path}, line {number}", line), raw)
            if words or not raw:
                yield words


class Numbering(dict):
    """{word: number}, in order of first occurrence: one pass over a file can both count and encode its words."""

    def __missing__(self, word):
        self[word] = number = len(self)
        return number

    def read(self, path, end=(), raw=False):
        """Number all words of a file, as `read_words` yields them, with the words `end` after each line.

        Returns
        -------
        numbers : (n,) int32
        ends : (n_lines + 1,) int64
            Line i is ``numbers[ends[i]:ends[i + 1]]``.

        Raises
        ------
        DataError
            The file is empty or not text.
        """
        numbers, ends = array("i"), array("q", [0])
        for words in read_words(path, raw):
            numbers.extend(map(self.__getitem__, words))
            numbers.extend(map(self.__getitem__, end))
            ends.append(len(numbers))
        if len(ends) == 1:
            raise DataError(f"{path}: the file is empty")
        return np.asarray(numbers), np.asarray(ends)

    def counts(self, numbers):
        """{word: number of its occurrences in `numbers`}."""
        return dict(zip(self, np.bincount(numbers, minlength=len(self)).tolist(), strict=True))


class Vocabulary:
    """Words by id, most frequent first; equally frequent words in alphabetical order.

    Parameters
    ----------
    words : sequence of str
        All different. `<unk>` stands for every other word; without it, unknown words are an error.
    raw : bool
        Whether the words come from raw text; see `read_words`.

    Raises
    ------
    TypeError, ValueError
        A str instead of a sequence of words; duplicate words.

    Examples
    --------
    >>> lines = [["a", "rose", "is", "a", "rose"], ["is", "a", "rose", "?"]]
    >>> vocabulary = Vocabulary.build(lines, min_count=2)
    >>> vocabulary.words
    ('a', 'rose', '<eos>', 'is', '<unk>')
    >>> tokens, n_unknown = vocabulary.encode([["a", "tulip"]])
    >>> tokens, n_unknown, vocabulary.decode(tokens)
    (array([0, 4, 2], dtype=int32), 1, ['a', '<unk>', '<eos>'])
    >>> vocabulary.find(["rose", "tulip"]), vocabulary.split("a rose is")
    (array([ 1, -1], dtype=int32), ['a', 'rose', 'is'])
    >>> Vocabulary.of_counts({"rose": 3, "tulip": 1, "<eos>": 2}).words
    ('rose', '<eos>', 'tulip', '<unk>')
    """

    def __init__(self, words, raw=False):
        self.words, self.raw = _words("words", words, "use a list of words"), check.flag("raw", raw)
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            twice = Counter(self.words).most_common(1)[0][0]
            raise ValueError(f"words must all be different, got {twice!r} twice; use list(dict.fromkeys(words))")

    def __len__(self):
        return len(self.words)

    def __contains__(self, word):
        return word in self._ids

    def __repr__(self):
        return f"Vocabulary(n_words={len(self.words)})"

    @classmethod
    def build(cls, lines, min_count=1, text=True):
        """Build the vocabulary of lines of words.

        Parameters
        ----------
        lines : iterable of lists of str
        min_count : int
            Less frequent words become `<unk>`; if the lines are not text, they are left out.
        text : bool
            Whether the lines are text. If so, `<eos>` ends each of them, and `<unk>` is always in the vocabulary;
            otherwise neither is used.

        Returns
        -------
        vocabulary : Vocabulary

        Raises
        ------
        TypeError, ValueError
            A str instead of lines, or instead of the words of a line; min_count below 1; no line; no word that is
            frequent enough; a word `<eos>` or `<unk>` if the lines are not text.
        """
        _check_words_iterable("lines", lines, "use [text.split()]")
        check.flag("text", text)
        counts = Counter()
        for line in lines:
            counts.update(_words("lines", line, "use line.split() for each"))
            counts.update([END_OF_LINE] if text else [])
        return cls.of_counts(counts, min_count, text)

    @classmethod
    def of_counts(cls, counts, min_count=1, text=True, raw=False):
        """Build a vocabulary from word counts.

        Parameters
        ----------
        counts : dict
            {word: number of occurrences}, including `<eos>` for text.
        min_count : int
            Less frequent words become `<unk>`; if the lines are not text, they are left out.
        text : bool
            Whether the lines are text. If so, `<eos>` ends each of them, and `<unk>` is always in the vocabulary;
            otherwise neither is used.
        raw : bool
            Passed to `Vocabulary`; see `read_words`.

        Returns
        -------
        vocabulary : Vocabulary

        Raises
        ------
        TypeError, ValueError
            As for `build`.
        """
        check.integer("min_count", min_count, 1)
        check.flag("text", text)
        if not isinstance(counts, Mapping):
            raise TypeError(f"counts must be a dict of words, got {type(counts).__name__} {check.shown(counts)}")
        for word, n in counts.items():
            if type(word) is not str or type(n) is not int or n < 0:
                _words("counts", [word], "use {word: number of occurrences}")
                check.integer(f"counts[{word!r}]", n, 0)
        if text and not counts:
            raise ValueError("lines must contain at least one line; the text is empty")
        kept = {word: n for word, n in counts.items() if n >= min_count or (text and word == END_OF_LINE)}
        if text:
            kept[UNKNOWN] = sum(counts.values()) - sum(n for word, n in kept.items() if word != UNKNOWN)
        elif not kept:
            raise ValueError(f"no word occurs {min_count} times or more; lower min_count")
        elif END_OF_LINE in kept or UNKNOWN in kept:
            raise ValueError(
                f"words must not be {END_OF_LINE!r} or {UNKNOWN!r} if the lines are not text; rename these words"
            )
        return cls(sorted(kept, key=lambda word: (-kept[word], word)), raw)

    def split(self, line):
        """Split a line of text into words.

        Parameters
        ----------
        line : str

        Returns
        -------
        words : list of str
            Split at spaces; for a raw vocabulary, words and punctuation marks.

        Raises
        ------
        TypeError
            line is not a str.
        """
        if not isinstance(line, str):
            raise TypeError(f"line must be a str, got {type(line).__name__} {check.shown(line)}")
        return split(line, self.raw)

    def find(self, words):
        """Convert words to ids.

        Parameters
        ----------
        words : iterable of str

        Returns
        -------
        ids : (n,) int32
            -1 for words that are not in the vocabulary.

        Raises
        ------
        TypeError
            A str instead of words.
        """
        words = _words("words", words, "use [word]")
        return np.fromiter((self._ids.get(word, -1) for word in words), np.int32, len(words))

    def encode(self, lines):
        """Convert lines of words to ids, concatenated.

        Parameters
        ----------
        lines : iterable of lists of str
            `<eos>` is appended to each line if the vocabulary contains it.

        Returns
        -------
        ids : (n,) int32
        n_unknown : int
            Number of unknown words, which became `<unk>`.

        Raises
        ------
        TypeError
            A str instead of lines, or instead of the words of a line.
        DataError
            An unknown word, if the vocabulary has no `<unk>`.
        """
        _check_words_iterable("lines", lines, "use [vocabulary.split(line)]")
        ids, unknown, n_unknown = array("i"), self._ids.get(UNKNOWN), 0
        end = [END_OF_LINE] if END_OF_LINE in self._ids else []
        for line in lines:
            words = [*_words("lines", line, "use vocabulary.split(line) for each"), *end]
            missing = [word for word in words if word not in self._ids]
            if missing and unknown is None:
                raise DataError(f"{missing[0]!r} is not in the vocabulary, which has no {UNKNOWN!r}")
            n_unknown += len(missing)
            ids.extend(self._ids.get(word, unknown) for word in words)
        return np.array(ids, np.int32), n_unknown

    def decode(self, ids):
        """Convert ids to words.

        Parameters
        ----------
        ids : (n,) int array

        Returns
        -------
        words : list of str

        Raises
        ------
        TypeError, ValueError
            Ids that are not integers; an id out of range.
        """
        ids = np.asarray(check.on_host("ids", ids), order="C")
        ids = check.integers("ids", ids, ("n",), len(self.words)) if ids.size else np.zeros(0, np.int32)
        return [self.words[number] for number in ids.tolist()]


@dataclass(frozen=True, eq=False)
class TextCorpus:
    """A text in three parts, as token ids.

    Attributes
    ----------
    name : str
    vocabulary : Vocabulary
        The vocabulary of the training part, or the one passed to `load_text`.
    train, valid, test : (n,) int32
        Tokens; `<eos>` ends every line.
    unknown : dict
        {part: share of its tokens that are not in the vocabulary and became `<unk>`}.

    Examples
    --------
    >>> from sparsemax_nb.data import TextCorpus, load_text
    >>> corpus = load_text("wikitext-2")
    >>> isinstance(corpus, TextCorpus), corpus.name, len(corpus.valid)
    (True, 'wikitext-2', 217646)
    """

    name: str
    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    unknown: dict


def load_text(name_or_dir, min_count=1, vocabulary=None, raw=False):
    """Load a text for a language model.

    Parameters
    ----------
    name_or_dir : str or path
        ``"wikitext-2"`` is bundled. Anything else is a directory with the files train, valid and test (or ptb.train,
        wiki.train and so on), without an ending or with .txt, .txt.gz, .txt.xz or .tokens: UTF-8, words separated by
        spaces. If it has none of these, it must have one file named corpus. Then the last hundredth of its lines,
        rounded down but at least one line, is the test part, the same number of lines before these the valid part, and
        the rest the train part.
    min_count : int
        Words that are less frequent in the training part become `<unk>`.
    vocabulary : Vocabulary, optional
        The vocabulary of a model, to use instead of that of the training part.
    raw : bool
        The text is not tokenised: punctuation marks become words of their own, and empty lines are left out; see
        `read_words`. If a vocabulary is given, its `raw` is used instead.

    Returns
    -------
    TextCorpus

    Raises
    ------
    FileNotFoundError
        No such corpus; a missing part.
    DataError
        A file that is empty or not text; a corpus of fewer than three lines.

    Examples
    --------
    >>> corpus = load_text("wikitext-2")
    >>> corpus.vocabulary, corpus.test.shape, corpus.unknown["test"]
    (Vocabulary(n_words=33278), (245569,), 0.0)
    >>> " ".join(corpus.vocabulary.decode(corpus.test[3:12]))
    '<unk> = <eos> <eos> Robert <unk> is an English'
    """
    check.integer("min_count", min_count, 1)
    raw = check.flag("raw", raw)
    if not isinstance(vocabulary, (Vocabulary, type(None))):
        raise TypeError(f"vocabulary must be a Vocabulary or None, got {type(vocabulary).__name__}")
    name, folder = find_folder(name_or_dir, BUNDLED)
    numbering = Numbering()
    parts = _read_parts(folder, numbering, raw if vocabulary is None else vocabulary.raw)
    if vocabulary is None:
        vocabulary = Vocabulary.of_counts(numbering.counts(parts["train"]), min_count, raw=raw)
    ids = vocabulary.find(numbering)
    is_unknown = ids < 0
    if is_unknown.any() and UNKNOWN not in vocabulary:
        raise DataError(f"{folder}: the vocabulary must contain all words of the text, or {UNKNOWN!r}")
    ids[is_unknown] = vocabulary.find([UNKNOWN])[0]
    unknown = {part: float(is_unknown[numbers].mean()) for part, numbers in parts.items()}
    return TextCorpus(name, vocabulary, **{part: ids[numbers] for part, numbers in parts.items()}, unknown=unknown)


def _read_parts(folder, numbering, raw):
    """{part: its words (n,) int32, as numbered by `numbering`}."""
    candidates = {part: _candidates(*stems) for part, stems in STEMS.items()}
    files = {part: first_file(folder, names) for part, names in candidates.items()}
    single = None if any(files.values()) else first_file(folder, _candidates(SINGLE_FILE))
    if single is not None:
        return _split_parts(single, *numbering.read(single, (END_OF_LINE,), raw))
    for part, file in files.items():
        if file is None:
            raise FileNotFoundError(
                f"{folder} contains no {part} file; tried {', '.join(candidates[part])}; "
                f"name the file of a text without parts {SINGLE_FILE}"
            )
    return {part: numbering.read(file, (END_OF_LINE,), raw)[0] for part, file in files.items()}


def _candidates(*stems):
    """Possible file names of a text."""
    return [stem + ending for stem in stems for ending in (*TEXT_ENDINGS, ".tokens")]


def _split_parts(file, numbers, ends):
    """Split a text in one file into its three parts; line i is ``numbers[ends[i]:ends[i + 1]]``."""
    n = len(ends) - 1
    if n < 3:
        raise DataError(f"{file}: a text in one file must have at least three lines, one for each part, got {n}")
    n_lines = max(1, n // HELD_OUT)
    valid, test = ends[n - 2 * n_lines], ends[n - n_lines]
    return {"train": numbers[:valid], "valid": numbers[valid:test], "test": numbers[test:]}
