"""Text for language models: words split by blanks, and the vocabulary that numbers them."""

import contextlib
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..core import check
from .corpora import TEXT, find_folder, first_file
from .readers import DataError, decoded, read_lines

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"
BUNDLED = ("wikitext-2",)
#: Names of the files of a part, in the order in which they are tried: ours, those of the Penn Treebank and of WikiText.
STEMS = {part: (part, f"ptb.{part}", f"wiki.{part}") for part in ("train", "valid", "test")}


def read_words(path):
    """Yield each line of a text file (plain, .gz or .xz; UTF-8) as a list of its words, which blanks divide.

    `DataError` for what is not UTF-8 text, with file and line.
    """
    with contextlib.closing(read_lines(path)) as lines:
        for number, line in enumerate(lines, 1):
            yield decoded(f"{path}, line {number}", line).split()


class Vocabulary:
    """Words by id, the most frequent first, equally frequent ones in the order of the alphabet.

    Parameters
    ----------
    words : sequence of str
        All different. `<unk>` stands for every word that is not among them; where it is missing, unknown words are an
        error.

    Examples
    --------
    >>> lines = [["a", "rose", "is", "a", "rose"], ["is", "a", "rose", "?"]]
    >>> vocabulary = Vocabulary.build(lines, min_count=2)
    >>> vocabulary.words
    ('a', 'rose', '<eos>', 'is', '<unk>')
    >>> tokens, n_unknown = vocabulary.encode([["a", "tulip"]])
    >>> tokens, n_unknown, vocabulary.decode(tokens)
    (array([0, 4, 2], dtype=int32), 1, ['a', '<unk>', '<eos>'])
    """

    def __init__(self, words):
        self.words = tuple(words)
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            twice = Counter(self.words).most_common(1)[0][0]
            raise ValueError(f"words must all be different, got {twice!r} twice")

    def __len__(self):
        return len(self.words)

    def __repr__(self):
        return f"Vocabulary(n_words={len(self.words)})"

    @classmethod
    def build(cls, lines, min_count=1):
        """The vocabulary of lines of words; every line ends with `<eos>`.

        Words that occur less than `min_count` times are counted as `<unk>`, which is always part of the vocabulary.
        """
        check.integer("min_count", min_count, 1)
        counts = Counter()
        for line in lines:
            counts.update(line)
            counts[END_OF_LINE] += 1
        if not counts:
            raise ValueError("lines must hold at least one line; the text is empty")
        kept = Counter({word: n for word, n in counts.items() if n >= min_count or word == END_OF_LINE})
        kept[UNKNOWN] = counts.total() - sum(n for word, n in kept.items() if word != UNKNOWN)
        return cls(sorted(kept, key=lambda word: (-kept[word], word)))

    def encode(self, lines):
        """Ids (n,) int32 of all words of the lines, `<eos>` behind each line, and how many words were unknown."""
        ids, unknown, n_unknown = array("i"), self._ids.get(UNKNOWN), 0
        for line in lines:
            words = [*line, END_OF_LINE]
            missing = [word for word in words if word not in self._ids]
            if missing and unknown is None:
                raise DataError(f"{missing[0]!r} is not in the vocabulary, nor is {UNKNOWN!r}")
            n_unknown += len(missing)
            ids.extend(self._ids.get(word, unknown) for word in words)
        return np.array(ids, np.int32), n_unknown

    def decode(self, ids):
        """The words of ids, a list; ValueError for an id out of range."""
        ids = np.asarray(ids)
        check.below("ids", ids, len(self.words))
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
    """

    name: str
    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    unknown: dict


def load_text(name_or_dir, min_count=1):
    """Load a text for a language model.

    Parameters
    ----------
    name_or_dir : str or path
        ``"wikitext-2"`` is bundled. Anything else is a directory with the files train, valid and test, also as ptb.train or
        wiki.train and so on, as they stand or with .txt, .txt.gz, .txt.xz or .tokens behind: UTF-8, words divided by blanks.
    min_count : int
        Words that occur less often in the training part become `<unk>`.

    Returns
    -------
    TextCorpus

    Raises
    ------
    FileNotFoundError
        No such corpus, or a part is missing.
    DataError
        A file that is empty, or no text.

    Examples
    --------
    >>> corpus = load_text("wikitext-2")
    >>> corpus.vocabulary, corpus.test.shape, corpus.unknown["test"]
    (Vocabulary(n_words=33278), (245569,), 0.0)
    >>> " ".join(corpus.vocabulary.decode(corpus.test[3:12]))
    '<unk> = <eos> <eos> Robert <unk> is an English'
    """
    name, folder = find_folder(name_or_dir, BUNDLED)
    files = {}
    for part, stems in STEMS.items():
        candidates = [stem + ending for stem in stems for ending in (*TEXT, ".tokens")]
        files[part] = first_file(folder, candidates)
        if files[part] is None:
            raise FileNotFoundError(f"{folder} holds no {part} file; looked for {', '.join(candidates)}")
    tokens, unknown, vocabulary = {}, {}, None
    for part, file in files.items():
        if next(read_words(file), None) is None:
            raise DataError(f"{file}: the file is empty")
        if vocabulary is None:
            vocabulary = Vocabulary.build(read_words(file), min_count)
        tokens[part], n_unknown = vocabulary.encode(read_words(file))
        unknown[part] = n_unknown / tokens[part].size
    return TextCorpus(name, vocabulary, **tokens, unknown=unknown)
