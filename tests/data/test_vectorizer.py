"""`TextVectorizer`: the weights of scikit-learn, words of all scripts, hashing, later features, arrays of a file."""

import copy
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from sparsemax_nb.data import TextVectorizer, vectorizer
from sparsemax_nb.data.vectorizer import CHARACTERS, KINDS, PAIR, PAIR_WEIGHT, WORD, n_grams, words_of

TEXTS = [
    "Old maps of Rome, old books",
    "New maps: Rome and Athens",
    "books, books and BOOKS",
    "",
    "Märchen aus alter Zeit; a map",
    "... --- !",
    "a map of old Rome and the old books of Athens",
    "x",
]
PARAMS = [
    {},
    {"char_ngrams": 0},
    {"word_pairs": False},
    {"char_ngrams": 0, "word_pairs": False},
    {"char_ngrams": 1},
    {"char_ngrams": 3},
    {"hash_bits": 6},
    {"hash_bits": 6, "char_ngrams": 0, "word_pairs": False},
]


#: Lengths of the parts of a row with the default weight of n-grams.
LENGTHS = [1.0, PAIR_WEIGHT, 1.0]


def bits(matrix):
    return matrix.shape, matrix.data.tobytes(), matrix.indices.tolist(), matrix.indptr.tolist()


def same(first, second):
    """Whether two vectorizers have the same features and weights."""
    assert first.n_texts_ == second.n_texts_ and first.n_features_ == second.n_features_
    return first._keys == second._keys and first.idf_.tobytes() == second.idf_.tobytes()


# ------------------------------------------------------------ weights, compared with scikit-learn


def test_words_alone_are_the_tfidf_of_scikit_learn():
    ours = TextVectorizer(word_pairs=False, char_ngrams=0)
    weights = ours.fit_transform(TEXTS)
    theirs = TfidfVectorizer(sublinear_tf=True, tokenizer=words_of, token_pattern=None, lowercase=False)
    wanted = theirs.fit_transform(TEXTS)
    columns = [theirs.vocabulary_[word] for word in ours.feature_names()]
    assert sorted(columns) == list(range(wanted.shape[1]))
    np.testing.assert_allclose(weights.toarray(), wanted.toarray()[:, columns], rtol=1e-6)
    np.testing.assert_allclose(ours.idf_, theirs.idf_[columns], rtol=1e-6)
    new = ["old maps, unknown words", "nothing known", ""]
    np.testing.assert_allclose(ours.transform(new).toarray(), theirs.transform(new).toarray()[:, columns], rtol=1e-6)


def features_by_kind(text, n):
    """The features of each kind as an own analyzer finds them."""
    words = words_of(text)
    pairs = [f"{first} {second}" for first, second in zip(words[:-1], words[1:], strict=True)]
    grams = [f"#{gram}" for word in words if len(word) > 1 for gram in n_grams(word, n)]
    return words, pairs, grams


@pytest.mark.parametrize("n", [1, 3, 4])
def test_kinds_have_the_lengths_1_and_07_in_a_row_of_length_1(n):
    ours = TextVectorizer(char_ngrams=n)
    weights = ours.fit_transform(TEXTS).toarray()
    wanted, parts, n_used = np.zeros(weights.shape), np.zeros((len(TEXTS), 3)), 0
    names = ours.feature_names()
    for kind, min_df in (WORD, 1), (PAIR, 2), (CHARACTERS, 2):
        theirs = TfidfVectorizer(
            analyzer=lambda text, kind=kind: features_by_kind(text, n)[kind], sublinear_tf=True, min_df=min_df
        )
        part = theirs.fit_transform(TEXTS).toarray()
        assert set(theirs.vocabulary_) == {name for name in names if vectorizer._kind(name) == kind}
        n_used += len(theirs.vocabulary_)
        for name, column in theirs.vocabulary_.items():
            wanted[:, names.index(name)] = LENGTHS[kind] * part[:, column]
        parts[:, kind] = np.linalg.norm(LENGTHS[kind] * part, axis=1)
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    wanted /= np.where(lengths > 0, lengths, 1)
    assert n_used == len(names)
    np.testing.assert_allclose(weights, wanted, rtol=2e-6)
    assert np.allclose(np.linalg.norm(weights, axis=1), [1, 1, 1, 0, 1, 0, 1, 1])


def test_n_grams_are_those_of_scikit_learn_within_words():
    words = ["maps", "zeit", "ab", "märchen"]
    for n in (2, 3, 4, 5):
        analyze = CountVectorizer(analyzer="char_wb", ngram_range=(n, n)).build_analyzer()
        for word in words:
            assert n_grams(word, n) == analyze(word)


@pytest.mark.parametrize("params", PARAMS)
def test_rows_are_canonical_and_transform_repeats_fit(params):
    model = TextVectorizer(**params)
    weights = model.fit_transform(TEXTS)
    assert weights.dtype == np.float32 and weights.has_canonical_format and weights.shape[1] == model.n_features_
    assert isinstance(weights, scipy.sparse.csr_matrix) and (weights.data > 0).all()
    assert bits(model.transform(TEXTS)) == bits(weights) == bits(TextVectorizer(**params).fit(TEXTS).transform(TEXTS))
    assert np.diff(weights.indptr)[[3, 5]].tolist() == [0, 0]
    assert bits(model.transform(iter(TEXTS))) == bits(weights) == bits(model.transform(np.array(TEXTS)))
    assert model.transform([]).shape == (0, model.n_features_)


# ------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The QUICK brown-fox", ["the", "quick", "brown", "fox"]),
        ("don't; d\u2019Alembert", ["don", "t", "d", "alembert"]),
        ("snake_case _x 3rd 1,000 2.5e3", ["snake_case", "_x", "3rd", "1", "000", "2", "5e3"]),
        ("E\u0301COLE \u00c9cole", ["\u00e9cole", "\u00e9cole"]),
        ("\u0130stanbul", ["i\u0307stanbul"]),
        ("\u039f\u0394\u039f\u03a3 Stra\u00dfe STRASSE", ["\u03bf\u03b4\u03bf\u03c2", "stra\u00dfe", "strasse"]),
        ("q\u0323\u0307 x", ["q\u0323\u0307", "x"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0e04\u0e23\u0e31\u0e1a",
         ["\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0e04\u0e23\u0e31\u0e1a"]),
        ("\u4e2d\u6587abc\u5b57 \u3042\u30a2", ["\u4e2d", "\u6587", "abc", "\u5b57", "\u3042", "\u30a2"]),
        ("\u304b\u3099", ["\u304c"]),  # NFC
        ("\u304b\u309a\u304d", ["\u304b\u309a", "\u304d"]),  # a mark that no character includes
        ("\u845b\U000e0100\u57ce", ["\u845b\U000e0100", "\u57ce"]),  # a variation selector
        ("\U00020000\U0001f339 \u2764\ufe0f", ["\U00020000"]),
        ("\ud55c\uad6d\uc5b4", ["\ud55c\uad6d\uc5b4"]),
        ("\u0661\u0662 \u00bd", ["\u0661\u0662", "\u00bd"]),
        ("a\ud800b \udfff", ["a", "b"]),
        ("a\u200db a\u00a0b\u2028c\0d", ["a\u200db", "a", "b", "c", "d"]),
        ("# ## #a", ["a"]),
        ("", []),
        ("\u0301 \u200d .", []),
    ],
)  # fmt: skip
def test_words(text, words):
    assert words_of(text) == words
    assert words_of(unicodedata.normalize("NFD", text)) == words


def test_short_words_have_no_n_grams():
    model = TextVectorizer(char_ngrams=3, word_pairs=False).fit(["a bc \u4e2d", "a bc \u4e2d"])
    assert model.feature_names() == ["a", "bc", "# bc", "#bc ", "\u4e2d"]
    assert n_grams("bc", 4) == n_grams("bc", 99) == [" bc "] and n_grams("bc", 1) == [" ", "b", "c", " "]


def test_pairs_of_unspaced_scripts_are_bigrams():
    names = TextVectorizer(char_ngrams=0).fit(["\u4e2d\u6587", "\u4e2d\u6587\u5b57"]).feature_names()
    assert names == ["\u4e2d", "\u6587", "\u4e2d \u6587", "\u5b57"]


def test_features_do_not_collide_across_kinds():
    """The word 'a b' does not exist, and no word begins with '#'."""
    model = TextVectorizer(char_ngrams=4).fit(["ab cd", "ab cd", "#ab "])
    assert model.feature_names() == ["ab", "# ab ", "cd", "# cd ", "ab cd"]
    assert model._kinds.tolist() == [WORD, CHARACTERS, WORD, CHARACTERS, PAIR]


def test_pairs_and_n_grams_need_two_texts_and_words_one():
    model = TextVectorizer(char_ngrams=3).fit(["old maps old maps", "new maps"])
    assert [name for name in model.feature_names() if name[0] != "#"] == ["old", "maps", "new"]
    assert {name for name in model.feature_names() if name[0] == "#"} == {"# ma", "#map", "#aps", "#ps "}


# ------------------------------------------------------------ bad texts


@pytest.mark.parametrize("method", ["fit", "fit_transform", "transform", "extend"])
def test_texts_of_wrong_types(method):
    call = getattr(TextVectorizer(), method)
    if method in ("transform", "extend"):
        with pytest.raises(ValueError, match="not fitted; call fit first"):
            call(["a"])
        call = getattr(TextVectorizer().fit(["a"]), method)
    for texts, message in [
        ("maps", r"sequence of texts, got 'maps'; use \[text\]"),
        (b"maps", "sequence of texts"),
        (None, "sequence of texts, got None"),
        (5, "sequence of texts, got 5"),
        (["a", None], r"texts\[1\] must be a str, got NoneType None"),
        (["a", float("nan")], r"texts\[1\] must be a str, got float nan"),
        ([b"a"], r"texts\[0\] must be a str, got bytes"),
        (np.array([["a"]]), r"texts\[0\] must be a str, got ndarray"),
        (np.array("a"), "0-d array"),
        ({"a": "maps"}, "sequence of texts, got dict; select one column"),
    ]:
        with pytest.raises(TypeError, match=message):
            call(texts)


def test_a_data_frame_is_not_a_sequence_of_texts():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS})
    with pytest.raises(TypeError, match="got DataFrame; select one column"):
        TextVectorizer().fit(frame)
    assert bits(TextVectorizer().fit_transform(frame["text"])) == bits(TextVectorizer().fit_transform(TEXTS))


@pytest.mark.parametrize("hash_bits", [None, 4])
def test_a_refused_fit_changes_nothing(hash_bits):
    model = TextVectorizer(hash_bits=hash_bits).fit(TEXTS)
    before = dict(vars(model))
    for texts in [], ["", "..."], ["\ud800", "\U0001f339"]:
        with pytest.raises(ValueError, match=f"texts must contain words, got {len(texts)} texts without any"):
            model.fit(texts)
    with pytest.raises(TypeError, match="must be a str"):
        model.fit(["a", 1])
    with pytest.raises(TypeError, match="must be a str"):
        model.extend(["a", 1])
    assert vars(model) == before


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"word_pairs": 1}, TypeError, "word_pairs must be True or False"),
        ({"char_ngrams": -1}, ValueError, "char_ngrams must be between 0 and 100"),
        ({"char_ngrams": 101}, ValueError, "char_ngrams must be between"),
        ({"char_ngrams": 2.0}, TypeError, "char_ngrams must be an integer"),
        ({"hash_bits": 0}, ValueError, "hash_bits must be between 1 and 28"),
        ({"hash_bits": 29}, ValueError, "hash_bits must be between 1 and 28"),
        ({"hash_bits": True}, TypeError, "hash_bits must be an integer"),
    ],
)
def test_parameters_out_of_range(params, error, message):
    with pytest.raises(error, match=message):
        TextVectorizer(**params).fit(TEXTS)


# ------------------------------------------------------------ hashing


def test_same_columns_in_another_process():
    code = (
        "import sys; from sparsemax_nb.data import TextVectorizer\n"
        f"x = TextVectorizer(hash_bits=10).fit_transform({TEXTS!r})\n"
        "print(x.indices.tolist(), x.indptr.tolist())"
    )
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    here = TextVectorizer(hash_bits=10).fit_transform(TEXTS)
    assert found.stdout.strip() == f"{here.indices.tolist()} {here.indptr.tolist()}"


def test_each_kind_has_its_range_of_columns():
    model = TextVectorizer(hash_bits=5).fit(TEXTS)
    assert model.n_features_ == len(model.idf_) == len(KINDS) * 32
    words, pairs, grams = features_by_kind(TEXTS[6], 4)
    for kind, keys in (WORD, words), (PAIR, pairs), (CHARACTERS, grams):
        columns = [model._hashed(key) for key in keys]
        assert min(columns) >= 32 * kind and max(columns) < 32 * (kind + 1) and len(set(columns)) > 3
    assert (model.transform(TEXTS).indices < 96).all()
    only = TextVectorizer(hash_bits=5, word_pairs=False, char_ngrams=0).fit_transform(TEXTS)
    assert only.shape[1] == 96 and only.indices.max() < 32


def test_hashing_without_collisions_gives_the_weights_of_a_vocabulary():
    """Apart from pairs and n-grams that occur once, which hashing keeps."""
    texts = TEXTS * 2
    names, hashed = TextVectorizer(), TextVectorizer(hash_bits=26)
    wanted, found = names.fit_transform(texts), hashed.fit_transform(texts)
    columns = [hashed._hashed(name) for name in names.feature_names()]
    assert len(set(columns)) == len(columns)
    np.testing.assert_array_equal(found[:, columns].toarray(), wanted.toarray())
    assert found.nnz == wanted.nnz


def test_colliding_features_share_a_column():
    model = TextVectorizer(hash_bits=1, word_pairs=False, char_ngrams=0)
    texts = ["a b c d e f", "g h", "i"]
    counts = model.fit(texts)._counts(texts, model._hashed, range(6)).toarray()
    assert counts.sum(1).tolist() == [6, 2, 1] and counts[0, :2].max() > 1
    df = (counts > 0).sum(0)
    np.testing.assert_allclose(model.idf_, np.log(4 / (1 + df)) + 1, rtol=1e-6)


def test_hashing_knows_new_words_and_stores_none():
    model = TextVectorizer(hash_bits=8).fit(TEXTS)
    assert model.transform(["entirely different"]).nnz > 0
    with pytest.raises(ValueError, match="hash_bits=None"):
        model.feature_names()
    idf = model.idf_.copy()
    model.extend(["entirely different"])
    assert model.idf_.tobytes() == idf.tobytes() and model.n_features_ == 3 << 8 and model.n_texts_ == len(TEXTS) + 1


# ------------------------------------------------------------ more features later


@pytest.mark.parametrize("params", [{}, {"char_ngrams": 0}, {"word_pairs": False}])
def test_extend_keeps_columns_and_weights(params):
    more = ["Zebras of Athens", "zebras of Sparta", "old map"]
    model = TextVectorizer(**params).fit(TEXTS)
    names, idf, before = model.feature_names(), model.idf_.copy(), model.transform(TEXTS)
    old = copy.copy(model)
    assert model.extend(more) is model
    n = len(names)
    assert model.feature_names()[:n] == names and model.idf_[:n].tobytes() == idf.tobytes()
    assert old.feature_names() == names and old.idf_.tobytes() == idf.tobytes()  # a copy shares nothing that changed
    new = model.feature_names()[n:]
    assert {"zebras", "sparta"} <= set(new) and "maps" not in new
    assert ("zebras of" in new) == model.word_pairs and ("of athens" in new) is False
    assert ("#zebr" in new) == (model.char_ngrams > 0) and "#spar" not in new
    assert model.n_texts_ == len(TEXTS) + 3 and model.n_features_ == len(model.idf_) == n + len(new)
    df = {"zebras": 2, "sparta": 1}
    for word, count in df.items():
        wanted = np.log((1 + model.n_texts_) / (1 + count)) + 1
        assert model.idf_[n + new.index(word)] == np.float32(wanted)
    only_known = before[:, :n]
    after = model.transform(TEXTS)
    assert bits(after[:, :n]) == bits(only_known) and after.nnz == before.nnz


def test_extend_with_nothing_new():
    model = TextVectorizer().fit(TEXTS)
    names = model.feature_names()
    assert model.extend([]).feature_names() == names and model.n_texts_ == len(TEXTS)
    assert model.extend(["", "..."]).feature_names() == names and model.n_texts_ == len(TEXTS) + 2


# ------------------------------------------------------------ parts


@pytest.mark.parametrize("params", PARAMS)
def test_parts_are_the_columns_of_a_text(params):
    model = TextVectorizer(**params).fit(TEXTS)
    for text in [*TEXTS, "an old map of an old map", "unknown, entirely"]:
        parts = model.parts(text)
        columns = np.concatenate([np.empty(0, np.int64), *(found for _, found in parts)])
        counts = model._counts([text], model._number, range(model.n_features_))
        assert np.array_equal(np.bincount(columns, minlength=model.n_features_), counts.toarray()[0])
        words = words_of(text)
        known = {*words, *(f"{first} {second}" for first, second in zip(words[:-1], words[1:], strict=True))}
        assert all(name in known and len(found) and found.dtype == np.int64 for name, found in parts)


def test_parts_of_a_word():
    model = TextVectorizer(char_ngrams=4).fit(["old maps", "old maps", "new map"])
    names = model.feature_names()
    parts = [(name, [names[i] for i in columns]) for name, columns in model.parts("Maps, old maps; maplike")]
    grams = ["maps", "# map", "#maps", "#aps "]
    assert parts == [("maps", grams), ("old", ["old", "# old", "#old "]), ("maps", grams), ("maplike", ["# map"]),
                     ("old maps", ["old maps"])]  # fmt: skip
    assert model.parts("") == model.parts("unknown") == []


def test_parts_of_anything_else():
    with pytest.raises(ValueError, match="not fitted"):
        TextVectorizer().parts("a")
    for text in None, 5, ["a"], b"a":
        with pytest.raises(TypeError, match=r"text\[0\] must be a str"):
            TextVectorizer().fit(["a"]).parts(text)
    with pytest.raises(ValueError, match="hash_bits=None"):
        TextVectorizer().feature_names()


# ------------------------------------------------------------ blocks and memory


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize(("per_block", "remembered"), [(1, 1), (3, 2), (8, 1 << 18), (1 << 16, 1)])
def test_blocks_do_not_matter(params, per_block, remembered, monkeypatch):
    more = ["zebras of Athens", "zebras of Rome", "x", ""]
    whole = TextVectorizer(**params)
    wanted = whole.fit_transform(TEXTS)
    answers = whole.transform(more)
    whole.extend(more)
    monkeypatch.setattr(vectorizer, "TEXTS_PER_BLOCK", per_block)
    monkeypatch.setattr(vectorizer, "MAX_REMEMBERED", remembered)
    model, read = TextVectorizer(**params), []
    assert bits(model._fit_transform(TEXTS, read.append)) == bits(wanted)
    assert sum(read) == len(TEXTS) and len(read) == -(-len(TEXTS) // per_block)
    assert bits(model.transform(more)) == bits(answers)
    assert same(model.extend(more), whole)


def test_a_long_text():
    """A quadratic algorithm would take hours."""
    text = "an old map of Rome and other words 12345 " * 250_000
    assert len(text) > 10_000_000
    model = TextVectorizer().fit([text, "old maps"])
    weights = model.transform([text])
    assert weights.nnz == model.transform(["an old map of Rome and other words 12345 an"]).nnz
    assert abs(np.linalg.norm(weights.data) - 1) < 1e-5


# ------------------------------------------------------------ arrays of a file


@pytest.mark.parametrize("params", PARAMS)
def test_arrays_of_a_file(params):
    model = TextVectorizer(**params).fit([*TEXTS, "\u4e2d\u6587 E\u0301cole \U00020000"])
    arrays = {name: array.copy() for name, array in model._arrays().items()}
    vectorizer.DESCRIPTION("vectorizer", model._description())
    again = TextVectorizer._from_arrays(arrays, model._description())
    assert same(again, model) and bits(again.transform(TEXTS)) == bits(model.transform(TEXTS))
    assert again._description() == model._description()
    assert same(again.extend(["zebras"]), model.extend(["zebras"]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text.vocabulary", b"old\nold\nof", "must contain different features"),
        ("text.vocabulary", b"old\n\nof", "not empty"),
        ("text.vocabulary", b"old\nof\n", "not empty"),
        ("text.vocabulary", b"old\nof", r"text.idf must have shape \(2,\), got \(3,\)"),
        ("text.vocabulary", b"", r"text.idf must have shape \(0,\)"),
        ("text.vocabulary", b"old\nmaps\n\xff", "utf-8"),
        ("text.vocabulary", b"old\nmaps\n\xf8\x88\x80\x80\x80", "utf-8"),
        ("text.vocabulary", np.zeros((1, 3), np.uint8), "text.vocabulary must have shape"),
        ("text.vocabulary", np.zeros(3, np.int8), "text.vocabulary must be uint8"),
        ("text.idf", np.array([1, np.nan, 1], np.float32), "text.idf must be finite"),
        ("text.idf", np.array([1, np.inf, 1], np.float32), "text.idf must be finite"),
        ("text.idf", np.array([1, 0, 1], np.float32), "text.idf must be above 0, got 0"),
        ("text.idf", np.array([1, -2, 1], np.float32), "text.idf must be above 0, got -2"),
        ("text.idf", np.ones(3), "text.idf must be float32, got float64"),
        ("text.idf", np.ones((3, 1), np.float32), "text.idf must have shape"),
        ("hash_bits", 3, r"text.idf must have shape \(24,\)"),
        ("hash_bits", 99, "hash_bits must be between 1 and 28"),
        ("char_ngrams", -1, "char_ngrams must be between"),
        ("word_pairs", 0, "word_pairs must be True or False"),
    ],
)
def test_damaged_arrays(name, value, message):
    model = TextVectorizer(char_ngrams=0).fit(["old maps", "of"])
    arrays, about = model._arrays(), model._description()
    where = arrays if name in arrays else about
    where[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    with pytest.raises((TypeError, ValueError), match=message):
        TextVectorizer._from_arrays(arrays, about)


def test_missing_arrays():
    model = TextVectorizer().fit(["old maps"])
    for name in model._arrays():
        with pytest.raises(KeyError, match=name):
            TextVectorizer._from_arrays({n: a for n, a in model._arrays().items() if n != name}, model._description())
