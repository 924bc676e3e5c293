"""Texts to weighted features: words, word pairs and character n-grams."""

import itertools
import re
import zlib
from array import array
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
import scipy.sparse

from ..core import check, description
from .text import Numbering, split

#: Kinds of features, in the order of their codes.
KINDS = "words", "word pairs", "character n-grams"
WORD, PAIR, CHARACTERS = range(3)
#: Length of the part of a row that consists of pairs; that of words is 1. Chosen on titles in English and in Finnish.
PAIR_WEIGHT = 0.5
MAX_WEIGHT = 1e6
#: Pairs and n-grams that occur in fewer training texts are left out; words never are.
MIN_TEXTS = 2
#: First character of the key of an n-gram. No word contains it, and a key with a space inside is a pair.
MARK = "#"
#: Scripts without spaces between words: each character is a word, so that pairs are the usual bigrams.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED_OR_RUN = re.compile(rf"[{UNSPACED}]\W*|[^{UNSPACED}]+")  # \W: the marks of a character, see `split`
#: Texts that are converted at once, and different words whose n-grams are remembered: bound the temporary memory.
TEXTS_PER_BLOCK = 1 << 16
MAX_REMEMBERED = 1 << 18
MAX_HASH_BITS = 28
PARAMETERS = "word_pairs", "char_ngrams", "char_weight", "hash_bits"

#: Description of a fitted vectorizer in a model file.
DESCRIPTION = description.record(
    word_pairs=description.boolean,
    char_ngrams=description.integer(0, 100),
    char_weight=description.number(0, MAX_WEIGHT),
    hash_bits=description.optional(description.integer(1, MAX_HASH_BITS)),
    n_texts=description.integer(0),
)


def words_of(text):
    """The words of a text in lower case: runs of letters, digits and their marks (Unicode), without punctuation."""
    words = [word for word in split(text.lower(), raw=True) if word[0].isalnum() or word[0] == "_"]
    if text.isascii():
        return words
    return [part for word in words for part in UNSPACED_OR_RUN.findall(word)]


def n_grams(word, n):
    """The character n-grams of a word with a space before and after it; the whole if it is not longer than n."""
    padded = f" {word} "
    return [padded[i : i + n] for i in range(max(1, len(padded) - n + 1))]


def checked_texts(name: str, texts: Iterable[str]) -> list[str]:
    """A list of str; TypeError for anything else, such as a single str."""
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
        raise TypeError(f"{name} must be a sequence of texts, got {check.shown(texts)}; use [text] for a single one")
    if hasattr(texts, "columns") or isinstance(texts, Mapping):  # whose items are the names of columns
        raise TypeError(f"{name} must be a sequence of texts, got {type(texts).__name__}; select one column")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] must be a str, got {type(text).__name__} {check.shown(text)}")
    return texts


class TextVectorizer:
    """Texts to TF-IDF weights of their words, word pairs and character n-grams.

    Each kind of feature is a vector with the weights ``(1 + ln(count)) * idf``, where
    ``idf[t] = ln((1 + n) / (1 + df[t])) + 1``, n is the number of training texts and ``df[t]`` the number of those with
    feature t. It is scaled to length 1 for words, 0.5 for pairs and `char_weight` for n-grams. A row is the
    concatenation of these vectors, scaled to length 1.

    Parameters
    ----------
    word_pairs : bool
        Whether two neighboring words are a feature.
    char_ngrams : int
        Length of the character n-grams inside a word, which includes a space at both ends; 0: no n-grams. They relate
        inflected words and compounds, and recognize parts of unknown words.
    char_weight : float
        Length of the vector of the n-grams, above 0. Languages with much inflection need a larger one.
    hash_bits : int or None
        None stores a vocabulary of all features. A number from 1 to 28 stores none: each kind of feature has
        ``2**hash_bits`` columns, and a hash function chooses the column. Memory is then bounded, and words that did not
        occur in training have columns, too; but different features can share a column.

    Attributes
    ----------
    idf_ : (F,) float32
    n_features_ : int
    n_texts_ : int
        Number of training texts.

    Notes
    -----
    A word is a run of letters, digits and underscores with their combining marks, in lower case and Unicode NFC. Of
    Chinese and Japanese, each character is a word. Words that occur once are features; pairs and n-grams must occur in
    two texts. Texts without known features give empty rows.

    Source: G. Salton, C. Buckley, "Term-weighting approaches in automatic text retrieval", 1988. The kinds and their
    lengths are our choice.

    Examples
    --------
    >>> from sparsemax_nb.data import TextVectorizer
    >>> vectorizer = TextVectorizer(char_ngrams=0)
    >>> x = vectorizer.fit_transform(["Old maps of Rome", "Old maps", "Rome, old and new"])
    >>> vectorizer.feature_names()
    ['old', 'maps', 'of', 'rome', 'old maps', 'and', 'new']
    >>> vectorizer.transform(["New maps!"]).toarray().round(3)
    array([[0.   , 0.605, 0.   , 0.   , 0.   , 0.   , 0.796]], dtype=float32)
    """

    def __init__(
        self,
        *,
        word_pairs: bool = True,
        char_ngrams: int = 4,
        char_weight: float = 1.0,
        hash_bits: int | None = None,
    ):
        self.word_pairs = word_pairs
        self.char_ngrams = char_ngrams
        self.char_weight = char_weight
        self.hash_bits = hash_bits

    def fit(self, texts: Iterable[str]) -> Self:
        """Learn the features and their `idf_` from texts.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        self : TextVectorizer

        Raises
        ------
        TypeError, ValueError
            Not a sequence of str; no text has a word; a parameter out of range.

        Examples
        --------
        >>> from sparsemax_nb.data import TextVectorizer
        >>> TextVectorizer(word_pairs=False).fit(["maps", "maps, too"]).feature_names()
        ['maps', '# map', '#maps', '#aps ', 'too']
        """
        self.fit_transform(texts)
        return self

    def fit_transform(self, texts: Iterable[str]) -> scipy.sparse.csr_matrix:
        """`fit`, then `transform`, in one pass over the texts.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        weights : (n, F) CSR float32

        Raises
        ------
        TypeError, ValueError
            Not a sequence of str; no text has a word; a parameter out of range.

        Examples
        --------
        >>> from sparsemax_nb.data import TextVectorizer
        >>> TextVectorizer().fit_transform(["maps", "maps, too"]).shape
        (2, 5)
        """
        return self._fit_transform(texts, lambda n: None)

    def _fit_transform(self, texts, after_block):
        """`fit_transform`; ``after_block(n)`` is called after every n texts that have been read."""
        self._check_params()
        checked = checked_texts("texts", texts)
        if self.hash_bits is None:
            numbering = Numbering()
            counts = self._counts(checked, numbering.__getitem__, numbering, after_block)
            df = _rows_of_each(counts)
            keys, kept = _kept(list(numbering), df)
            counts, df = counts[:, kept], df[kept]
        else:
            keys = None
            counts = self._counts(checked, self._hashed, range(len(KINDS) << self.hash_bits), after_block)
            df = _rows_of_each(counts)
        if not counts.nnz:
            raise ValueError(f"texts must contain words, got {len(checked)} texts without any")
        self._set_vocabulary(keys)
        self.n_texts_, self.n_features_ = len(checked), len(df)
        self.idf_ = _idf(df, self.n_texts_)
        return self._weights(counts)

    def transform(self, texts: Iterable[str]) -> scipy.sparse.csr_matrix:
        """Convert texts to weights; unknown features are ignored.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        weights : (n, F) CSR float32
            Canonical; the row of a text without known features is empty.

        Raises
        ------
        TypeError, ValueError
            Not a sequence of str; not fitted yet.
        """
        self._check_fitted()
        counts = self._counts(checked_texts("texts", texts), self._number, range(self.n_features_))
        return self._weights(counts)

    def extend(self, texts: Iterable[str]) -> Self:
        """Append the features of further texts that are not known yet; known ones keep column and weight.

        The idf of a new feature counts all texts so far; that none of the earlier ones had it is exact for words, and
        nearly so for pairs and n-grams. With hashing there is nothing to append.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        self : TextVectorizer

        Raises
        ------
        TypeError, ValueError
            Not a sequence of str; not fitted yet.

        Examples
        --------
        >>> from sparsemax_nb.data import TextVectorizer
        >>> vectorizer = TextVectorizer(char_ngrams=0).fit(["old maps"])
        >>> vectorizer.extend(["new maps"]).feature_names()
        ['old', 'maps', 'new']
        """
        self._check_fitted()
        checked = checked_texts("texts", texts)
        n_texts = self.n_texts_ + len(checked)
        if self.hash_bits is None:
            numbering = Numbering(self._numbers)
            df = _rows_of_each(self._counts(checked, numbering.__getitem__, numbering))[self.n_features_ :]
            keys, kept = _kept(list(numbering)[self.n_features_ :], df)
            if keys:
                self._set_vocabulary(self._keys + keys)
            self.idf_ = np.concatenate([self.idf_, _idf(df[kept], n_texts)])
        self.n_texts_, self.n_features_ = n_texts, len(self.idf_)
        return self

    def feature_names(self) -> list[str]:
        """The features by column: words, pairs as 'old maps', n-grams with '#' before them.

        Returns
        -------
        names : list of str

        Raises
        ------
        ValueError
            Not fitted yet; or with hashing, which does not store them.
        """
        if getattr(self, "_keys", None) is None:
            raise ValueError("feature names need a fitted TextVectorizer with hash_bits=None")
        return list(self._keys)

    def parts(self, text: str) -> list[tuple[str, np.ndarray]]:
        """The words and word pairs of a text, and the columns that belong to each.

        Parameters
        ----------
        text : str

        Returns
        -------
        parts : list of (str, (n,) int64)
            In the order of the text: each word with the columns of the word and its n-grams, one per occurrence; then
            the pairs. Parts without known features are left out.

        Raises
        ------
        TypeError, ValueError
            Not a str; not fitted yet.

        Examples
        --------
        >>> from sparsemax_nb.data import TextVectorizer
        >>> vectorizer = TextVectorizer(char_ngrams=3).fit(["old maps", "old maps"])
        >>> [(name, len(columns)) for name, columns in vectorizer.parts("old maps here")]
        [('old', 4), ('maps', 5), ('old maps', 1)]
        """
        self._check_fitted()
        words = words_of(checked_texts("text", [text])[0])
        found = [(word, list(map(self._number, self._keys_of(word)))) for word in words]
        if self.word_pairs:
            found += [(pair, [self._number(pair)]) for pair in _pairs(words)]
        return [(name, np.array([i for i in numbers if i >= 0])) for name, numbers in found if max(numbers) >= 0]

    # ------------------------------------------------------------ inside

    def _check_fitted(self):
        if not hasattr(self, "idf_"):
            raise ValueError("this TextVectorizer is not fitted; call fit first")

    def _check_params(self):
        check.flag("word_pairs", self.word_pairs)
        check.integer("char_ngrams", self.char_ngrams, 0, 100)
        check.number("char_weight", self.char_weight, 0, MAX_WEIGHT, open_ends=True)
        if self.hash_bits is not None:
            check.integer("hash_bits", self.hash_bits, 1, MAX_HASH_BITS)

    def _set_vocabulary(self, keys):
        """Store the keys of the features, None with hashing."""
        self._keys = keys
        self._numbers = None if keys is None else dict(zip(keys, range(len(keys)), strict=True))
        self._kinds = None if keys is None else np.array(list(map(_kind, keys)), np.int8)

    def _number(self, key):
        """The column of a key, -1 if it is unknown."""
        return self._hashed(key) if self._numbers is None else self._numbers.get(key, -1)

    def _hashed(self, key):
        """The column of a key with hashing: each kind has its own range of columns."""
        code = zlib.crc32(key.encode("utf-8", "surrogatepass"))
        return (_kind(key) << self.hash_bits) | (code >> (32 - self.hash_bits))

    def _keys_of(self, word):
        """The keys of a word and of its n-grams; n-grams say nothing new about a word of one character."""
        n = self.char_ngrams
        return [word, *(MARK + gram for gram in n_grams(word, n))] if n and len(word) > 1 else [word]

    def _counts(self, texts, number, columns, after_block=lambda n: None):
        """Counts of the features, canonical CSR float32; ``number(key)`` is a column or -1.

        ``len(columns)`` is the number of columns once all texts have been read; ``after_block(n)`` is called after
        every n texts.
        """
        parts, of_word = [], {}
        for first in range(0, max(1, len(texts)), TEXTS_PER_BLOCK):
            numbers, ends = array("i"), array("q", [0])
            block = texts[first : first + TEXTS_PER_BLOCK]
            for text in block:
                words = words_of(text)
                for word in words:
                    known = of_word.get(word)
                    if known is None:
                        if len(of_word) >= MAX_REMEMBERED:
                            of_word.clear()
                        of_word[word] = known = array("i", map(number, self._keys_of(word)))
                    numbers.extend(known)
                if self.word_pairs:
                    numbers.extend(map(number, _pairs(words)))
                ends.append(len(numbers))
            parts.append(_counted(np.asarray(numbers), np.asarray(ends), len(columns)))
            after_block(len(block))
        for part in parts:
            part.resize(part.shape[0], len(columns))
        return scipy.sparse.vstack(parts, "csr") if len(parts) > 1 else parts[0]

    def _weights(self, counts):
        """Weighted rows from counts, which are overwritten."""
        return self._normalized(counts, lambda columns, counts: (1 + np.log(counts)) * self.idf_[columns])

    def _normalized(self, rows, weigh=lambda columns, values: values):
        """Rows whose parts, one per kind of feature, have their lengths, and the whole has length 1; overwritten.

        ``weigh(columns, values)`` are the weights before, float64.
        """
        lengths_of_kinds, n_kinds = np.array([1.0, PAIR_WEIGHT, self.char_weight]), len(KINDS)
        for first in range(0, rows.shape[0], TEXTS_PER_BLOCK):
            ends = rows.indptr[first : first + TEXTS_PER_BLOCK + 1]
            n, entries = len(ends) - 1, slice(ends[0], ends[-1])
            columns = rows.indices[entries]
            kinds = columns >> self.hash_bits if self._kinds is None else self._kinds[columns]
            row_ids = np.repeat(np.arange(n), np.diff(ends))
            part = row_ids * n_kinds + kinds
            weights = weigh(columns, rows.data[entries].astype(np.float64))
            squares = np.bincount(part, weights**2, n_kinds * n)
            lengths = np.sqrt((squares.reshape(n, n_kinds) > 0) @ lengths_of_kinds**2)
            scales = np.tile(lengths_of_kinds, n) / np.sqrt(np.where(squares > 0, squares, 1))
            rows.data[entries] = weights * scales[part] / lengths[row_ids]
        return rows

    def _as_new(self, rows, others):
        """The rows of training texts as they would be if only the others were known; both CSR of `fit_transform`.

        Features that occur only in these rows go, as unknown words of a new text do, and the others get their length.
        Without this, scores of training texts are smaller than those of new ones.
        """
        if self.hash_bits is not None:
            return rows
        needed = np.where(self._kinds == WORD, 1, MIN_TEXTS)
        is_known = _rows_of_each(others) >= needed
        rows = rows.copy()
        rows.data[~is_known[rows.indices]] = 0
        rows.eliminate_zeros()
        return self._normalized(rows)

    def _arrays(self):
        """The fitted arrays by name, as `_from_arrays` reads them."""
        text = "\n".join(self._keys or ()).encode("utf-8", "surrogatepass")
        return {"text.idf": self.idf_, "text.vocabulary": np.frombuffer(text, np.uint8)}

    def _description(self):
        """What a model file says about the vectorizer, see `DESCRIPTION`."""
        return {
            "word_pairs": bool(self.word_pairs),
            "char_ngrams": int(self.char_ngrams),
            "char_weight": float(self.char_weight),
            "hash_bits": None if self.hash_bits is None else int(self.hash_bits),
            "n_texts": self.n_texts_,
        }

    @classmethod
    def _from_arrays(cls, arrays, about):
        """The vectorizer of `_arrays` and `_description` from a file; TypeError or ValueError if they are invalid."""
        new = cls(**{name: about[name] for name in PARAMETERS})
        new._check_params()
        text = check.array("text.vocabulary", arrays["text.vocabulary"], np.uint8, ("n",)).tobytes()
        keys = text.decode("utf-8", "surrogatepass").split("\n") if text else []
        if "" in keys or len(set(keys)) < len(keys):
            raise ValueError("text.vocabulary must contain different features that are not empty")
        new._set_vocabulary(keys if new.hash_bits is None else None)
        new.n_features_ = len(keys) if new.hash_bits is None else len(KINDS) << new.hash_bits
        new.idf_ = check.array("text.idf", arrays["text.idf"], np.float32, (new.n_features_,), finite=True)
        if (new.idf_ <= 0).any():
            raise ValueError(f"text.idf must be above 0, got {new.idf_.min():g}")
        new.n_texts_ = about["n_texts"]
        return new


def _pairs(words):
    """Each two neighboring words, separated by a space."""
    return map(" ".join, itertools.pairwise(words))


def _kind(key):
    """The code of the kind of a key."""
    return CHARACTERS if key[0] == MARK else PAIR if " " in key else WORD


def _kept(keys, df):
    """(keys, mask) of the features that occur often enough."""
    kept = np.array([_kind(key) == WORD for key in keys], bool) | (df >= MIN_TEXTS)
    return [key for key, keep in zip(keys, kept, strict=True) if keep], kept


def _counted(numbers, ends, width):
    """Canonical CSR (n, width) float32: the numbers of row i are ``numbers[ends[i]:ends[i + 1]]``; -1 is left out."""
    known = numbers >= 0
    if not known.all():
        ends = np.concatenate([[0], np.cumsum(known)])[ends]
        numbers = numbers[known]
    counts = scipy.sparse.csr_matrix((np.ones(len(numbers), np.float32), numbers, ends), shape=(len(ends) - 1, width))
    counts.sum_duplicates()
    return counts


def _rows_of_each(counts):
    """Number of rows in which each column occurs."""
    return np.bincount(counts.indices, minlength=counts.shape[1])


def _idf(df, n_texts):
    return (np.log((1 + n_texts) / (1 + df)) + 1).astype(np.float32)
