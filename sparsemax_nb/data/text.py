"""Text for language models: words split by blanks, and the vocabulary that numbers them."""

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
from .corpora import TEXT, find_folder, first_file
from .readers import DataError, decoded, read_lines

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"
BUNDLED = ("wikitext-2",)
#: Names of the files of a part, in the order in which they are tried: ours, those of the Penn Treebank and of WikiText.
STEMS = {part: (part, f"ptb.{part}", f"wiki.{part}") for part in ("train", "valid", "test")}
#: The name of the one file of a text that is not divided, and the share of its lines that are for validation, and for
#: test.
WHOLE, SHARE = "corpus", 100
#: Zero-width (non-)joiners: they shape the letters of a word, or make one emoji of several.
JOINERS = "\u200c\u200d"
WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


@functools.cache
def _word_or_mark():
    """The pattern of a word or punctuation mark, with the combining marks on it; ``\\w`` alone leaves those out."""
    codes = [code for code in range(0x80, sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if code + 1 != after]
    marks = "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True))
    return re.compile(rf"\w[\w{marks}{JOINERS}]*|[^\w\s](?:[{marks}]|[{JOINERS}][^\w\s])*")


def split(line, raw=False):
    """The words of a line, which blanks divide; or, `raw`, its words and punctuation marks, one by one, in NFC."""
    if not raw:
        return line.split()
    if line.isascii():  # the same, in half the time
        return WORD_OR_MARK.findall(line)
    return _word_or_mark().findall(unicodedata.normalize("NFC", line))


def _refuse_text(name, value, fix):
    """TypeError for a str where a sequence of words is wanted: its items are characters; and for what has no items."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must hold words, got a {type(value).__name__}, whose items are characters; {fix}")
    if not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must hold words, got {type(value).__name__} {check.shown(value)}; {fix}")


def _words(name, value, fix):
    """The words of a line, or any others, as a tuple of str; TypeError for what is none."""
    _refuse_text(name, value, fix)
    words = tuple(value)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"{name} must hold words, which are str, got {type(word).__name__} {check.shown(word)}")
    return words


def read_words(path, raw=False):
    """Yield the words of each line of a text file.

    Parameters
    ----------
    path : str or path
        UTF-8, plain or compressed by gzip or xz; words are divided by blanks. A byte-order mark is dropped.
    raw : bool
        The text is as people write it: every punctuation mark is a word of its own, too, and lines without a word are
        left out. Combining marks (accents, the vowel signs of Hindi or Thai) and zero-width joiners stay with their
        word, and what Unicode holds to be the same text is the same word (NFC): é is one letter, however the file
        spells it.

    Yields
    ------
    words : list of str
        Those of a line.

    Raises
    ------
    DataError
        What is not UTF-8 text, with file and line; a compressed file that is truncated.

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
            words = split(decoded(f"{path}, line {number}", line), raw)
            if words or not raw:
                yield words


class Numbering(dict):
    """{word: number} in the order in which the words are met, so that a file is read once: counted and encoded in one pass."""

    def __missing__(self, word):
        self[word] = number = len(self)
        return number

    def read(self, path, end=(), raw=False):
        """Number every word of a file, as `read_words` finds them, and the words `end` behind each line.

        Returns
        -------
        numbers : (n,) int32
        ends : (n_lines + 1,) int64
            Line i holds ``numbers[ends[i]:ends[i + 1]]``.

        Raises
        ------
        DataError
            The file is empty, or no text.
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
        """{word: how often its number occurs}."""
        return dict(zip(self, np.bincount(numbers, minlength=len(self)).tolist(), strict=True))


class Vocabulary:
    """Words by id, the most frequent first, equally frequent ones in the order of the alphabet.

    Parameters
    ----------
    words : sequence of str
        All different. `<unk>` stands for every word that is not among them; where it is missing, unknown words are an
        error.
    raw : bool
        Whether the words are those of a text as people write it; see `read_words`.

    Raises
    ------
    TypeError, ValueError
        A str in place of a sequence of words; a word that occurs twice.

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
            raise ValueError(f"words must all be different, got {twice!r} twice")

    def __len__(self):
        return len(self.words)

    def __contains__(self, word):
        return word in self._ids

    def __repr__(self):
        return f"Vocabulary(n_words={len(self.words)})"

    @classmethod
    def build(cls, lines, min_count=1, text=True):
        """The vocabulary of lines of words.

        Parameters
        ----------
        lines : iterable of lists of str
        min_count : int
            Words that occur less often become `<unk>`; where the lines are no text, they are left out.
        text : bool
            Whether the lines are text. Then `<eos>` ends each of them, and `<unk>` is always part of the vocabulary;
            else neither is.

        Returns
        -------
        vocabulary : Vocabulary

        Raises
        ------
        TypeError, ValueError
            A str in place of lines, or of the words of a line; min_count below 1; no line, or no word that occurs so
            often; a word called `<eos>` or `<unk>` where the lines are no text.
        """
        _refuse_text("lines", lines, "use [text.split()]")
        check.flag("text", text)
        counts = Counter()
        for line in lines:
            counts.update(_words("lines", line, "use line.split() for each"))
            counts.update([END_OF_LINE] if text else [])
        return cls.of_counts(counts, min_count, text)

    @classmethod
    def of_counts(cls, counts, min_count=1, text=True, raw=False):
        """The vocabulary of words whose numbers are known.

        Parameters
        ----------
        counts : dict
            {word: how often it occurs}, `<eos>` of a text included.
        min_count : int
            Words that occur less often become `<unk>`; where the lines are no text, they are left out.
        text : bool
            Whether the lines are text. Then `<eos>` ends each of them, and `<unk>` is always part of the vocabulary;
            else neither is.
        raw : bool
            Kept; see `read_words`.

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
                _words("counts", [word], "use {word: how often it occurs}")
                check.integer(f"counts[{word!r}]", n, 0)
        if text and not counts:
            raise ValueError("lines must hold at least one line; the text is empty")
        kept = {word: n for word, n in counts.items() if n >= min_count or (text and word == END_OF_LINE)}
        if text:
            kept[UNKNOWN] = sum(counts.values()) - sum(n for word, n in kept.items() if word != UNKNOWN)
        elif not kept:
            raise ValueError(f"no word occurs {min_count} times or more; lower min_count")
        elif END_OF_LINE in kept or UNKNOWN in kept:
            raise ValueError(f"words must not be called {END_OF_LINE!r} or {UNKNOWN!r} where the lines are no text")
        return cls(sorted(kept, key=lambda word: (-kept[word], word)), raw)

    def split(self, line):
        """The words of a line of text.

        Parameters
        ----------
        line : str

        Returns
        -------
        words : list of str
            What blanks divide; of a raw vocabulary, words and punctuation marks.

        Raises
        ------
        TypeError
            line is no str.
        """
        if not isinstance(line, str):
            raise TypeError(f"line must be a str, got {type(line).__name__} {check.shown(line)}")
        return split(line, self.raw)

    def find(self, words):
        """Ids of words.

        Parameters
        ----------
        words : iterable of str

        Returns
        -------
        ids : (n,) int32
            -1 for those that are not in the vocabulary.

        Raises
        ------
        TypeError
            A str in place of words.
        """
        words = _words("words", words, "use [word]")
        return np.fromiter((self._ids.get(word, -1) for word in words), np.int32, len(words))

    def encode(self, lines):
        """Ids of all words of some lines, one line after the other.

        Parameters
        ----------
        lines : iterable of lists of str
            `<eos>` is put behind each line where the vocabulary has it.

        Returns
        -------
        ids : (n,) int32
        n_unknown : int
            How many words were unknown, and became `<unk>`.

        Raises
        ------
        TypeError
            A str in place of lines, or of the words of a line.
        DataError
            An unknown word, where the vocabulary has no `<unk>`.
        """
        _refuse_text("lines", lines, "use [vocabulary.split(line)]")
        ids, unknown, n_unknown = array("i"), self._ids.get(UNKNOWN), 0
        end = [END_OF_LINE] if END_OF_LINE in self._ids else []
        for line in lines:
            words = [*_words("lines", line, "use vocabulary.split(line) for each"), *end]
            missing = [word for word in words if word not in self._ids]
            if missing and unknown is None:
                raise DataError(f"{missing[0]!r} is not in the vocabulary, nor is {UNKNOWN!r}")
            n_unknown += len(missing)
            ids.extend(self._ids.get(word, unknown) for word in words)
        return np.array(ids, np.int32), n_unknown

    def decode(self, ids):
        """The words of ids.

        Parameters
        ----------
        ids : (n,) int array

        Returns
        -------
        words : list of str

        Raises
        ------
        TypeError, ValueError
            Ids that are no integers; an id out of range.
        """
        ids = np.asarray(check.on_host("ids", ids), order="C")
        ids = check.integers("ids", ids, ("n",), len(self.words)) if ids.size else np.zeros(0, np.int32)
        return [self.words[number] for number in ids.tolist()]


@dataclass(frozen=True, eq=False)
class TextCorpus:
    """A text in three parts, in numbers.

    Attributes
    ----------
    name : str
    vocabulary : Vocabulary
        Of the training part.
    train, valid, test : (n,) int32
        Tokens; `<eos>` ends every line.
    unknown : dict
        {part: share of its tokens that are not in the vocabulary, and became `<unk>`}.

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
        ``"wikitext-2"`` is bundled. Anything else is a directory with the files train, valid and test, also as
        ptb.train or wiki.train and so on, as they stand or with .txt, .txt.gz, .txt.xz or .tokens behind: UTF-8, words
        divided by blanks. Or, where it holds none of these, with one file, corpus: the last hundredth of its lines,
        rounded down, but one line at least, is the test part, as many lines before them are the valid part, the others
        the train part.
    min_count : int
        Words that occur less often in the training part become `<unk>`.
    vocabulary : Vocabulary, optional
        A model's, instead of that of the training part.
    raw : bool
        The text is as people write it: punctuation marks become words of their own, empty lines are left out; see
        `read_words`. A vocabulary that is given knows whether it is.

    Returns
    -------
    TextCorpus

    Raises
    ------
    FileNotFoundError
        No such corpus, or a part is missing.
    DataError
        A file that is empty, or no text; a corpus of less than three lines.

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
        raise DataError(f"{folder}: the vocabulary has neither all of its words nor {UNKNOWN!r}")
    ids[is_unknown] = vocabulary.find([UNKNOWN])[0]
    unknown = {part: float(is_unknown[numbers].mean()) for part, numbers in parts.items()}
    return TextCorpus(name, vocabulary, **{part: ids[numbers] for part, numbers in parts.items()}, unknown=unknown)


def _read_parts(folder, numbering, raw):
    """{part: its words (n,) int32 as `numbering` numbers them}."""
    candidates = {part: _candidates(*stems) for part, stems in STEMS.items()}
    files = {part: first_file(folder, names) for part, names in candidates.items()}
    whole = None if any(files.values()) else first_file(folder, _candidates(WHOLE))
    if whole is not None:
        return _divided(whole, *numbering.read(whole, (END_OF_LINE,), raw))
    for part, file in files.items():
        if file is None:
            raise FileNotFoundError(
                f"{folder} holds no {part} file; looked for {', '.join(candidates[part])}; "
                f"a text in one file is called {WHOLE}"
            )
    return {part: numbering.read(file, (END_OF_LINE,), raw)[0] for part, file in files.items()}


def _candidates(*stems):
    """File names under which a text may be found."""
    return [stem + ending for stem in stems for ending in (*TEXT, ".tokens")]


def _divided(file, numbers, ends):
    """The three parts of a text in one file, whose line i holds ``numbers[ends[i]:ends[i + 1]]``."""
    n = len(ends) - 1
    if n < 3:
        raise DataError(f"{file}: a text in one file must have three lines at least, one for each part, got {n}")
    held_out = max(1, n // SHARE)
    valid, test = ends[n - 2 * held_out], ends[n - held_out]
    return {"train": numbers[:valid], "valid": numbers[valid:test], "test": numbers[test:]}
