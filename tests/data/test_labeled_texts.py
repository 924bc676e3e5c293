import gzip
import json
import lzma
import socket
import sys
import tracemalloc

import numpy as np
import pytest

from sparsemax_nb.data import DataError, labeled_texts, read_texts, read_vocabulary

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
BOM = b"\xef\xbb\xbf"


def save(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def check(corpus, *pairs):
    assert list(zip(corpus.texts, corpus.labels, strict=True)) == [(text, labels) for text, labels in pairs]


def write_lines(folder, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    return save(folder, "corpus.jsonl", "\n".join(lines) + "\n")


# ---------------------------------------------------------------- tab-separated

TSV = "A rose\tflowers\tAmerican poetry\nTea\n\t \n\tno text\n"
PAIRS = ("A rose", ["flowers", "American poetry"]), ("Tea", []), ("", ["no text"])


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", ["", ".tsv", ".txt", ".TSV"])
def test_tab_separated(tmp_path, ending, packed):
    path = save(tmp_path, f"corpus{ending}{packed}", PACK[packed](TSV.encode()))
    check(read_texts(path), *PAIRS)
    check(read_texts(str(path)), *PAIRS)


@pytest.mark.parametrize("content", [TSV.replace("\n", "\r\n"), TSV.rstrip(), BOM + TSV.encode(), f"\n{TSV}\n\n"])
def test_line_ends_and_byte_order_mark(tmp_path, content):
    check(read_texts(save(tmp_path, "corpus", content)), *PAIRS)


def test_compressed_by_content(tmp_path):
    check(read_texts(save(tmp_path, "corpus.tsv", gzip.compress(TSV.encode()))), *PAIRS)


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ("<http://a.b/c> <http://a.b/d>", ["http://a.b/c", "http://a.b/d"]),
        ("http://a.b/c  https://a.b/d", ["http://a.b/c", "https://a.b/d"]),
        ("<http://a.b/c> http://a.b/d", ["http://a.b/c", "http://a.b/d"]),
        ("<urn:x> <y>\tWorld War II", ["urn:x", "y", "World War II"]),
        ("<http://a.b/c> cats", ["<http://a.b/c> cats"]),
        ("http://a.b/c cats", ["http://a.b/c cats"]),
        ("about http://a.b/c", ["about http://a.b/c"]),
        ("<b", ["<b"]),
        ("<>", ["<>"]),
        (" cats \tdogs", ["cats", "dogs"]),
        ("cats\t\t \tcats\t cats ", ["cats"]),
        ("<http://a.b/c>\thttp://a.b/c", ["http://a.b/c"]),
        ("", []),
        ('"cats"', ['"cats"']),
    ],
)
def test_labels_of_a_line(tmp_path, fields, labels):
    check(read_texts(save(tmp_path, "corpus", f"text\t{fields}\n")), ("text", labels))


def test_text_is_kept_as_it_is(tmp_path):
    text = '  "A  rose", caf\u00e9\u2028 \U0001f339 '
    check(read_texts(save(tmp_path, "corpus", f"{text}\tx\n")), (text, ["x"]))


@pytest.mark.parametrize("n_points", [0, 1, 2, 3, 9, np.int64(2), 2**64])
def test_n_points(tmp_path, n_points):
    check(read_texts(save(tmp_path, "corpus", TSV), n_points=n_points), *PAIRS[:n_points])


def test_n_points_does_not_look_further(tmp_path):
    path = save(tmp_path, "corpus", b"a\tx\n\xff\n")
    check(read_texts(path, n_points=1), ("a", ["x"]))
    with pytest.raises(DataError, match="corpus, line 2: byte 0xff in column 1 is not UTF-8 text; .*iconv"):
        read_texts(path, n_points=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tx\n\na\xe4b\ty\n", "corpus, line 3: byte 0xe4 in column 2 is not UTF-8 text; save .* iconv -f latin1"),
        (b"a\tx\nb\tc\0d\n", "corpus, line 2: the text contains a null character"),
        (b"a\tx\nb\0\tcd\n", "corpus, line 2: the text contains a null character"),
        ("a\tx\n".encode("utf-16"), "this looks like UTF-16 text; save it as UTF-8"),
        (gzip.compress(TSV.encode(), mtime=0)[:-9], "the compressed file is truncated"),  # the same id in every process
        (b"", "corpus: the file contains no texts"),
        (b"\n \t\n", "corpus: the file contains no texts"),
    ],
)
def test_what_is_no_text(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_texts(save(tmp_path, "corpus", content))


def test_long_lines(tmp_path, monkeypatch):
    long = "rose " * 2_200_000
    check(read_texts(save(tmp_path, "corpus", f"{long}\tflowers\n")), (long, ["flowers"]))
    check(read_texts(write_lines(tmp_path, {"text": long, "labels": "flowers"})), (long, ["flowers"]))
    monkeypatch.setattr("sparsemax_nb.data.readers.MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(DataError, match="corpus, line 1: the line is longer than 1 MiB"):
        read_texts(tmp_path / "corpus")


def test_frequent_labels_share_their_memory(tmp_path):
    label = "x" * 1000
    path = save(tmp_path, "corpus", f"a\t{label}\n" * 2000)
    tracemalloc.start()
    corpus = read_texts(path)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert corpus.labels == [[label]] * 2000 and used < 1_000_000


@pytest.mark.parametrize("name", ["corpus.csv", "corpus.json", "corpus.CSV.gz"])
@pytest.mark.parametrize("read", [read_texts, read_vocabulary])
def test_formats_that_look_like_ours(tmp_path, name, read):
    with pytest.raises(DataError, match=r"\.(csv|json) files are not supported; convert it to .jsonl"):
        read(save(tmp_path, name, "a\tb\n"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_points": -1}, ValueError, "n_points must be a non-negative integer"),
        ({"text": 3}, TypeError, "text must be a str, the name of a field, got int"),
        ({"labels": None}, TypeError, "labels must be a str, the name of a field, got NoneType"),
        ({"labels": "text"}, ValueError, "text and labels must be the names of different fields"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        read_texts(save(tmp_path, "corpus", TSV), **arguments)


def test_no_such_file(tmp_path):
    for read in (read_texts, read_vocabulary):
        with pytest.raises(FileNotFoundError, match="nothing"):
            read(tmp_path / "nothing.tsv")


def test_lines_of_a_stream():
    lines = [BOM + b"a\tx y\r\n", b"\n", b"b"]
    assert list(labeled_texts.parse_texts(lines, "standard input", False)) == [("a", ["x y"]), ("b", [])]
    assert list(labeled_texts.parse_texts([BOM + b'{"text": "a"}\n'], "standard input", True)) == [("a", [])]
    with pytest.raises(DataError, match="standard input, line 2: malformed JSON"):
        list(labeled_texts.parse_texts([b'{"text": "a"}\n', b"b\n"], "standard input", True))


# ---------------------------------------------------------------- JSON lines


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".JSONL"])
def test_json_lines(tmp_path, ending, packed):
    content = '{"text": "A rose", "labels": ["flowers", "American poetry"], "id": 3}\n\n{"text": "Tea"}\n'
    content += '{"labels": "no text", "text": ""}'
    check(read_texts(save(tmp_path, f"corpus{ending}{packed}", PACK[packed](BOM + content.encode()))), *PAIRS)


def test_fields_of_json_lines(tmp_path):
    path = write_lines(tmp_path, {"title": "a", "subjects": ["x"], "text": 3, "labels": 3})
    check(read_texts(path, text="title", labels="subjects"), ("a", ["x"]))


def test_labels_of_json_lines(tmp_path):
    labels = ["<http://a.b/c>", " cats", "", "cats", "http://a.b/c http://a.b/d", "<b> c"]
    path = write_lines(tmp_path, {"text": "a\tb\nc", "labels": labels})
    check(read_texts(path), ("a\tb\nc", ["http://a.b/c", "cats", "http://a.b/c http://a.b/d", "<b> c"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\tb", "malformed JSON: Expecting value in column 1"),
        ('{"text": "a" "labels"}', "malformed JSON: .* in column 14"),
        ("[" * 100_000, "malformed JSON: "),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "malformed JSON: .*digits"),
        ("[1]", r"the line must be a JSON object, got \[1\]"),
        ("null", "the line must be a JSON object, got None"),
        ({"title": "a", "labels": []}, "the field 'text' is missing; the fields are 'title', 'labels'"),
        ({"text": None}, "the field 'text' must be a string, got None"),
        ({"text": ["a"]}, "the field 'text' must be a string"),
        ({"text": "a", "labels": 3}, "the field 'labels' must be a list of strings, got 3"),
        ({"text": "a", "labels": None}, "the field 'labels' must be a list of strings, got None"),
        ({"text": "a", "labels": ["b", 3]}, "the field 'labels' must be a list of strings, got .*3"),
        ({"text": "a", "labels": {"b": 1}}, "the field 'labels' must be a list of strings"),
        ({"text": "a", "labels": ["b\nc"]}, "a label must be one line without tabs"),
        ({"text": "a", "labels": ["b\tc"]}, "a label must be one line without tabs"),
        ({"text": "a\0"}, "the text contains a null character"),
        ({"text": "a", "labels": "b\0"}, "the text contains a null character"),
        ({"text": "a\ud83c"}, r"\\ud83c is half of a surrogate pair"),
        ({"text": "a", "labels": ["\udf39"]}, r"\\udf39 is half of a surrogate pair"),
    ],
)
def test_malformed_json_lines(tmp_path, line, message):
    with pytest.raises(DataError, match=f"corpus.jsonl, line 3: {message}"):
        read_texts(write_lines(tmp_path, {"text": "a"}, "", line))


def test_surrogate_pairs(tmp_path):
    check(read_texts(write_lines(tmp_path, {"text": "\U0001f339", "labels": "\U0001f339"})), ("🌹", ["🌹"]))


# ---------------------------------------------------------------- a folder


def test_folder(tmp_path):
    save(tmp_path, "b.txt", "first line\n\nthird line\n")
    save(tmp_path, "b.key", "cats\n\nWorld War II\ncats\n")
    save(tmp_path, "a.txt", BOM + b"with URIs\r\n")
    save(tmp_path, "a.tsv", "<http://a.b/c>\tcats\n<http://a.b/d>\tdogs\n")
    save(tmp_path, "a.key", "not read\n")
    save(tmp_path, "c.d.txt", gzip.compress(b"no labels"))
    save(tmp_path, "c.key", "of another text\n")
    save(tmp_path, "e.md", "not read")
    (tmp_path / "f.txt").mkdir()
    check(
        read_texts(tmp_path),
        ("with URIs", ["http://a.b/c", "http://a.b/d"]),
        ("first line\n\nthird line", ["cats", "World War II"]),
        ("no labels", []),
    )
    check(read_texts(tmp_path, n_points=1), ("with URIs", ["http://a.b/c", "http://a.b/d"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a\nb\xff", "a.txt, line 2: byte 0xff in column 2 is not UTF-8"),
        ("a.txt", b"ab\0", "a.txt: the text contains a null character"),
        ("a.key", b"cats\n\xff", "a.key, line 2: byte 0xff in column 1 is not UTF-8"),
        ("a.key", b"cats\n\0", "a.key, line 2: the text contains a null character"),
        ("a.tsv", b"<x>\tcats\n\tdogs\n", "a.tsv, line 2: the label before the tab is missing"),
    ],
)
def test_malformed_files_in_a_folder(tmp_path, name, content, message):
    save(tmp_path, "a.txt", "text")
    save(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path)


def test_folder_without_texts(tmp_path):
    save(tmp_path, "a.tsv", "text\tlabel\n")
    with pytest.raises(FileNotFoundError, match=r"contains no .txt files; expected NAME.txt with NAME.key or NAME.tsv"):
        read_texts(tmp_path)


# ---------------------------------------------------------------- vocabularies


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", ["vocabulary", "vocabulary.tsv", "vocabulary.txt"])
def test_tab_separated_vocabulary(tmp_path, name, packed):
    content = "<http://a.b/c>\tcats\tfelines\t \tcats\t moggies \t\r\nWorld War II\n\nhttp://a.b/d\tdogs\n<x>\t\n"
    names = read_vocabulary(save(tmp_path, name + packed, PACK[packed](BOM + content.encode())))
    assert list(names.items()) == [
        ("http://a.b/c", ["cats", "felines", "moggies"]),
        ("World War II", ["World War II"]),
        ("http://a.b/d", ["dogs"]),
        ("x", ["x"]),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\n\n<a>\tc\n", "line 3: the label 'a' is repeated"),
        ("a\tb\n\tc\n", "line 2: the label before the first tab is missing"),
        ("a\t\tb\n", "line 1: the preferred name, between the first two tabs, is missing"),
        (b"a\n\xff\n", "line 2: byte 0xff in column 1 is not UTF-8"),
        ("a\tb\0\n", "line 1: the text contains a null character"),
        ("\n", "the file contains no labels"),
    ],
)
def test_malformed_vocabularies(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_vocabulary(save(tmp_path, "vocabulary.tsv", content))


@pytest.mark.parametrize(
    ("language", "error", "message"),
    [
        ("en", ValueError, "language must be None for .*vocabulary.tsv', which is tab-separated"),
        (3, TypeError, "language must be a str or None, got int 3"),
        ("", ValueError, "language must be a language tag"),
        ("en_GB", ValueError, "language must be a language tag, such as 'en' or 'pt-BR', got 'en_GB'"),
    ],
)
def test_wrong_language(tmp_path, language, error, message):
    with pytest.raises(error, match=message):
        read_vocabulary(save(tmp_path, "vocabulary.tsv", "a\n"), language=language)


TTL = """
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
@prefix : <http://a.b/> .
:scheme a skos:ConceptScheme ; skos:prefLabel "Animals"@en .
:dog a skos:Concept ; skos:prefLabel "koira"@fi, "dog"@en ; skos:altLabel "mutt"@en, "hound"@en-GB, "dog"@en .
:cat a skos:Concept ; skos:prefLabel "cat"@en ; skos:altLabel "  house\\n cat "@en .
:cow a skos:Concept ; skos:prefLabel "lehmä"@fi .
:unnamed a skos:Concept ; skos:broader :dog .
:dodo a skos:Concept ; skos:prefLabel "dodo"@en ; owl:deprecated true .
:auk a skos:Concept ; skos:prefLabel "auk"@en ; owl:deprecated false .
[] a skos:Concept ; skos:prefLabel "nameless"@en .
"""
ALL = {
    "http://a.b/dog": ["dog", "koira", "mutt", "hound"],
    "http://a.b/cat": ["cat", "house cat"],
    "http://a.b/cow": ["lehmä"],
    "http://a.b/auk": ["auk"],
}
LANGUAGES = {
    None: ALL,
    "en": {
        "http://a.b/dog": ["dog", "mutt", "hound"],
        "http://a.b/cat": ["cat", "house cat"],
        "http://a.b/auk": ["auk"],
    },
    "EN-gb": {"http://a.b/dog": ["hound"]},
    "fi": {"http://a.b/dog": ["koira"], "http://a.b/cow": ["lehmä"]},
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("packed", PACK)
def test_skos(tmp_path, language, packed):
    pytest.importorskip("rdflib")
    path = save(tmp_path, "animals.ttl" + packed, PACK[packed](TTL.encode()))
    assert list(read_vocabulary(path, language=language).items()) == list(LANGUAGES[language].items())


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")  # rdflib itself uses it
@pytest.mark.parametrize("ending", labeled_texts.SKOS_FORMATS)
def test_skos_formats(tmp_path, ending):
    rdflib = pytest.importorskip("rdflib")
    path = tmp_path / f"animals{ending}"
    rdflib.Graph().parse(data=TTL, format="turtle").serialize(
        path, labeled_texts.SKOS_FORMATS[ending], encoding="utf-8"
    )
    assert read_vocabulary(path) == ALL


@pytest.mark.parametrize("character", ["\\u0000", "\\ud800"])
def test_odd_characters_in_skos(tmp_path, character):
    pytest.importorskip("rdflib")
    with pytest.raises(DataError, match="animals.ttl: (malformed|.* null character|.* surrogate pair)"):
        read_vocabulary(save(tmp_path, "animals.ttl", TTL.replace("koira", character)))


def test_skos_in_another_language(tmp_path):
    pytest.importorskip("rdflib")
    path = save(tmp_path, "animals.ttl", TTL)
    with pytest.raises(DataError, match="no concept has a name in the language 'sv'; the file has names in en, fi"):
        read_vocabulary(path, language="sv")
    with pytest.raises(DataError, match="empty.nt: no concept has a name; the file has names in no language"):
        read_vocabulary(save(tmp_path, "empty.nt", ""))


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
@pytest.mark.parametrize("ending", labeled_texts.SKOS_FORMATS)
def test_malformed_skos(tmp_path, ending):
    pytest.importorskip("rdflib")
    with pytest.raises(DataError, match=f"animals{ending}: malformed"):
        read_vocabulary(save(tmp_path, f"animals{ending}", "<a> cats\n"))
    with pytest.raises(DataError, match=f"animals{ending}: this looks like UTF-16"):
        read_vocabulary(save(tmp_path, f"animals{ending}", b"\xff\xfe"))


@pytest.mark.parametrize(
    "document",
    [
        {"@context": "http://a.b/context"},
        [{"@context": [{}, "context.jsonld"]}],
        {"@context": {"x": {"@id": "http://a.b/", "@context": "http://a.b/context"}}},
        {"@context": {"@import": "http://a.b/context"}},
    ],
)
def test_json_ld_does_not_reach_for_the_network(tmp_path, document, monkeypatch):
    pytest.importorskip("rdflib")

    def refuse(*arguments):
        raise AssertionError(f"network access: {arguments}")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(DataError, match=r"the context '.*' is not in the file"):
        read_vocabulary(save(tmp_path, "animals.jsonld", json.dumps(document)))


def test_skos_without_rdflib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdflib", None)
    with pytest.raises(
        ImportError, match=r"SKOS files need rdflib; install it with pip install 'sparsemax-nb\[skos\]'"
    ):
        read_vocabulary(save(tmp_path, "animals.ttl", TTL))
