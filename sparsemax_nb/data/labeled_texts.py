"""Texts with labels, and vocabularies: the names of labels."""

import codecs
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core import check
from .readers import OPENERS, DataError, check_n_points, decode, read_lines

JSON_ENDINGS = (".jsonl", ".ndjson")
#: Endings of SKOS files, and what rdflib calls their formats.
SKOS_FORMATS = {".ttl": "turtle", ".rdf": "xml", ".xml": "xml", ".nt": "nt", ".jsonld": "json-ld"}
#: Common formats that would be mistaken for tab-separated text.
OTHER_FORMATS = (".csv", ".json")
URI = re.compile(r"<[^<>\s]+>|https?://\S+")


@dataclass(frozen=True, eq=False)
class LabeledTexts:
    """Texts with labels.

    Attributes
    ----------
    texts : list of str
    labels : list of lists of str
        The labels of each text, all different; a text can have no labels.

    Examples
    --------
    >>> from sparsemax_nb.data import LabeledTexts
    >>> corpus = LabeledTexts(["A rose is a rose.", "Tea and milk"], [["flowers", "poetry"], []])
    >>> corpus.labels[0]
    ['flowers', 'poetry']
    """

    texts: list[str]
    labels: list[list[str]]


def read_texts(
    path: str | os.PathLike[str], *, text: str = "text", labels: str = "labels", n_points: int | None = None
) -> LabeledTexts:
    """Read texts with labels from a file or a folder.

    The name determines the format. Endings .gz and .xz are ignored: files are decompressed if their content is
    compressed. Everything is UTF-8, with or without a byte-order mark.

    - A name that ends in .jsonl or .ndjson: JSON lines, one object per line. Its labels are a list of strings or one
      string; without such a field, the text has no labels. Other fields are ignored.
    - A folder: the full-text corpus of Annif. Every file NAME.txt is a text. NAME.tsv or else NAME.key contains its
      labels, one per line, up to the first tab; without them, it has no labels. The texts are sorted by file name.
    - Any other name: tab-separated lines. The first field is the text, each further field one label, which may contain
      blanks. A field that consists of URIs, ``<http://...>`` or ``http://...``, separated by blanks, is split at the
      blanks, as in the short-text corpora of Annif. Quotation marks have no special meaning.

    Angle brackets around a label and blanks at its ends are removed. Empty labels are ignored, and a label that a text
    has twice is kept once. A text may be empty if it has labels. Blank lines are skipped.

    Parameters
    ----------
    path : str or path
    text, labels : str
        Names of the fields in JSON lines; the other formats ignore them.
    n_points : int, optional
        Maximum number of texts to read; the rest is ignored.

    Returns
    -------
    LabeledTexts

    Raises
    ------
    DataError
        A line that is not UTF-8, contains a null character or is longer than 64 MiB; a malformed JSON line, with file
        and line number; a file without texts; a .csv or .json file.
    FileNotFoundError
        No such file; a folder without .txt files.

    Notes
    -----
    Source: the corpus formats of Annif, https://github.com/NatLibFi/Annif/wiki/Document-corpus-formats. Labels in
    several tab-separated fields are our addition.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "corpus.tsv")
    ...     _ = path.write_text("A rose is a rose.\\tflowers\\tAmerican poetry\\nTea\\t<http://a.b/c> <http://a.b/d>\\n")
    ...     corpus = read_texts(path)
    >>> corpus.texts
    ['A rose is a rose.', 'Tea']
    >>> corpus.labels
    [['flowers', 'American poetry'], ['http://a.b/c', 'http://a.b/d']]
    """
    source = check.path("path", path)
    check_n_points(n_points)
    for name, field in (("text", text), ("labels", labels)):
        if not isinstance(field, str):
            raise TypeError(f"{name} must be a str, the name of a field, got {type(field).__name__}")
    if text == labels:
        raise ValueError(f"text and labels must be the names of different fields, got {text!r} twice")
    with contextlib.closing(_read_folder(source) if source.is_dir() else _read_file(source, text, labels)) as pairs:
        found = list(itertools.islice(pairs, None if n_points is None else min(n_points, sys.maxsize)))
    if not found and n_points != 0:
        raise DataError(f"{path}: the file contains no texts")
    return LabeledTexts([content for content, _ in found], [names for _, names in found])


def parse_texts(
    lines: Iterable[bytes], name: str, is_json: bool, text: str = "text", labels: str = "labels", first: int = 1
) -> Iterator[tuple[str, list[str]]]:
    """Yield text and labels of each line in a format of `read_texts`: JSON lines, or tab-separated.

    `name` is the name of the source in messages, such as "standard input", and `first` the number of the first line in
    it; the lines may have their ends.
    """
    shared: dict[str, str] = {}  # a frequent label is stored once
    for number, line in enumerate(lines, first):
        where = f"{name}, line {number}"
        content = decode(where, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip("\r\n")
        if not content or content.isspace():
            continue
        content, found = _parse_json(where, content, text, labels) if is_json else _split_fields(content)
        _check_characters(where, content)
        yield content, _distinct(where, found, shared)


def _read_file(path, text, labels):
    """Yield text and labels of each line of a file."""
    _check_ending(path)
    with contextlib.closing(read_lines(path)) as lines:
        yield from parse_texts(lines, str(path), _ending(path) in JSON_ENDINGS, text, labels)


def _read_folder(path):
    """Yield text and labels of each .txt file of a folder."""
    files = sorted(file for file in path.glob("*.txt") if file.is_file())
    if not files:
        raise FileNotFoundError(f"{path} contains no .txt files; expected NAME.txt with NAME.key or NAME.tsv")
    shared = {}
    for file in files:
        content = "\n".join(line for _, line in _decoded_lines(file))
        _check_characters(file, content)
        labels = file.with_suffix(".tsv")
        labels = labels if labels.is_file() else file.with_suffix(".key")
        found = (label for _, label in labels_of(labels, shared)) if labels.is_file() else ()
        yield content, list(dict.fromkeys(found))


def labels_of(path: Path, shared: dict[str, str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield where it is, and the label, of each line of a file: up to the first tab, without brackets.

    `shared` remembers the labels, so that a frequent one is stored once.
    """
    shared = {} if shared is None else shared
    for where, line in _decoded_lines(path):
        given = line.partition("\t")[0]
        if not given.strip() and line.strip():
            raise DataError(f"{where}: the label before the tab is missing")
        for label in _distinct(where, [given], shared):
            yield where, label


def _decoded_lines(path):
    """Yield where it is, and the text, of each line of a file."""
    with contextlib.closing(read_lines(path)) as lines:
        for number, line in enumerate(lines, 1):
            yield (where := f"{path}, line {number}"), decode(where, line)


def _ending(path):
    """The last ending of a file name in lower case, other than those of compressed files."""
    name = path.name.lower()
    for packed in OPENERS:
        name = name.removesuffix(packed)
    return Path(name).suffix


def _check_ending(path):
    """DataError for formats that are not read."""
    if (ending := _ending(path)) in OTHER_FORMATS:
        raise DataError(f"{path}: {ending} files are not supported; convert it to .jsonl (JSON lines) or .tsv")


def _split_fields(line):
    """Split a tab-separated line into its text and a list of labels."""
    text, *fields = line.split("\t")
    labels = []
    for field in fields:
        tokens = field.split()
        labels += tokens if all(map(URI.fullmatch, tokens)) else [field]
    return text, labels


def _parse_json(where, line, text, labels):
    """Text and labels of a JSON object; DataError if it has another form."""
    record = _load_json(where, line)
    if not isinstance(record, dict):
        raise DataError(f"{where}: the line must be a JSON object, got {check.shown(record)}")
    if text not in record:
        raise DataError(f"{where}: the field {text!r} is missing; the fields are {', '.join(map(check.shown, record))}")
    content, found = record[text], record.get(labels, [])
    if not isinstance(content, str):
        raise DataError(f"{where}: the field {text!r} must be a string, got {check.shown(content)}")
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise DataError(f"{where}: the field {labels!r} must be a list of strings, got {check.shown(found)}")
    return content, found


def _load_json(where, content):
    """Parse JSON; DataError if it is malformed."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: malformed JSON: {error.msg} in column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # an integer with thousands of digits; thousands of open brackets
        raise DataError(f"{where}: malformed JSON: {error}") from None


def _distinct(where, labels, shared):
    """The labels without brackets, blanks, empty ones and duplicates; `shared` remembers the result for each string."""
    kept = {}
    for given in labels:
        if given not in shared:
            label = shared[given] = _without_brackets(given.strip())
            _check_characters(where, label)
            if re.search("[\t\r\n]", label):
                raise DataError(f"{where}: a label must be one line without tabs, got {check.shown(label)}")
        kept[shared[given]] = None
    kept.pop("", None)
    return list(kept)


def _without_brackets(label):
    """``http://...`` for ``<http://...>``; any other label as it is."""
    return label[1:-1] if label.startswith("<") and URI.fullmatch(label) else label


def _check_characters(where, text):
    """DataError for null characters, and for halves of surrogate pairs, which JSON can contain and UTF-8 cannot."""
    if "\0" in text:
        raise DataError(f"{where}: the text contains a null character; is this UTF-8 text?")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"{where}: {half} is half of a surrogate pair, not a character; remove it") from None


def read_vocabulary(path: str | os.PathLike[str], *, language: str | None = None) -> dict[str, list[str]]:
    """Read the names of labels: the preferred name and the synonyms of each.

    The name of the file determines its format; endings .gz and .xz are ignored, as in `read_texts`.

    - SKOS (.ttl, .rdf, .xml, .nt, .jsonld): the concepts with their preferred and alternative labels. Deprecated
      concepts and those without a name in the language are left out. This needs rdflib:
      ``pip install 'sparsemax-nb[skos]'``.
    - Any other name: tab-separated lines, a label (such as a URI in angle brackets, which are removed), its preferred
      name, and any number of synonyms. A label that is alone in its line is its own name. Blank lines are skipped.

    Parameters
    ----------
    path : str or path
    language : str, optional
        Language tag of the names in a SKOS file, such as ``"en"``, which includes ``"en-GB"``. All languages by
        default.

    Returns
    -------
    names : dict of lists of str
        {label: [preferred name, synonym, ...]} in the order of the file, without duplicate names. Names from SKOS are
        sorted by language, then alphabetically: first the preferred ones, then the alternative ones.

    Raises
    ------
    DataError
        A line that is not UTF-8; an empty or repeated label, a missing preferred name, with file and line number; a
        malformed SKOS file, or one without names; a .csv or .json file; an empty file.
    ImportError
        A SKOS file, and rdflib is not installed.
    TypeError, ValueError
        language is neither None nor a tag, or it is given for a file that is not SKOS.

    Notes
    -----
    Source: the vocabulary formats of Annif, https://github.com/NatLibFi/Annif/wiki/Subject-vocabulary-formats, and
    the SKOS Reference, section 5. The columns of synonyms are our addition.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "vocabulary.tsv")
    ...     _ = path.write_text("<http://a.b/c>\\tcats\\tfelines\\nflowers\\n")
    ...     read_vocabulary(path)
    {'http://a.b/c': ['cats', 'felines'], 'flowers': ['flowers']}
    """
    source = check.path("path", path)
    if language is not None and not isinstance(language, str):
        raise TypeError(f"language must be a str or None, got {type(language).__name__} {check.shown(language)}")
    if language is not None and not re.fullmatch("[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*", language):
        raise ValueError(f"language must be a language tag, such as 'en' or 'pt-BR', got {check.shown(language)}")
    _check_ending(source)
    if _ending(source) in SKOS_FORMATS:
        return _read_skos(source, language)
    if language is not None:
        raise ValueError(
            f"language must be None for {str(source)!r}, which is tab-separated and does not state languages, "
            f"got {language!r}; SKOS files end in {', '.join(SKOS_FORMATS)}"
        )
    vocabulary: dict[str, list[str]] = {}
    for where, line in _decoded_lines(source):
        _check_characters(where, line)
        if not line.strip():
            continue
        label, *names = (field.strip() for field in line.rstrip().split("\t"))
        label = _without_brackets(label)
        if not label:
            raise DataError(f"{where}: the label before the first tab is missing")
        if label in vocabulary:
            raise DataError(f"{where}: the label {check.shown(label)} is repeated; write its names in one line")
        if names and not names[0]:
            raise DataError(f"{where}: the preferred name, between the first two tabs, is missing")
        vocabulary[label] = list(dict.fromkeys(filter(None, names))) or [label]
    if not vocabulary:
        raise DataError(f"{path}: the file contains no labels")
    return vocabulary


def _read_skos(path, language):
    """{URI: [preferred name, synonym, ...]} of the concepts in a SKOS file that are not deprecated."""
    graph = _read_graph(path)
    from rdflib import OWL, RDF, SKOS, URIRef

    vocabulary = {}
    for concept in dict.fromkeys(graph.subjects(RDF.type, SKOS.Concept)):
        is_deprecated = any(str(value).lower() in ("true", "1") for value in graph.objects(concept, OWL.deprecated))
        if is_deprecated or not isinstance(concept, URIRef):
            continue
        names = [
            name
            for kind in (SKOS.prefLabel, SKOS.altLabel)
            for _, name in sorted(
                (literal.language or "", " ".join(literal.split()))
                for literal in graph.objects(concept, kind)
                if language is None or _matches(getattr(literal, "language", None), language)
            )
        ]
        if names := list(dict.fromkeys(filter(None, names))):
            _check_characters(path, " ".join([concept, *names]))
            vocabulary[str(concept)] = names
    if not vocabulary:
        literals = graph.objects(None, SKOS.prefLabel)
        found = sorted({literal.language for literal in literals if getattr(literal, "language", None)})
        wanted = "" if language is None else f" in the language {language!r}"
        raise DataError(
            f"{path}: no concept has a name{wanted}; the file has names in {', '.join(found) or 'no language'}"
        )
    return vocabulary


def _matches(tag, language):
    """Whether the language tag of a name is `language`, or a variant such as en-GB of en."""
    return tag is not None and f"{tag}-".lower().startswith(f"{language}-".lower())


def _read_graph(path):
    """Parse a SKOS file to an rdflib graph, without access to the network."""
    try:
        import rdflib
    except ImportError as error:
        raise ImportError("SKOS files need rdflib; install it with pip install 'sparsemax-nb[skos]'") from error
    with contextlib.closing(read_lines(path)) as lines:
        content = b"\n".join(lines)
    kind = SKOS_FORMATS[_ending(path)]
    if kind == "json-ld":
        _check_contexts(path, _load_json(path, decode(path, content)))
    graph = rdflib.Graph()
    try:
        graph.parse(data=content, format=kind)
    except Exception as error:  # its parsers raise exceptions of many kinds, some of them plain
        message = " ".join(str(error).split())
        raise DataError(f"{path}: malformed or not {kind} ({type(error).__name__}: {message[:200]})") from error
    return graph


def _check_contexts(path, document):
    """DataError if JSON-LD refers to a context at another address, which the parser would load from there."""
    values = [document]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            context = value.get("@context")
            contexts = context if isinstance(context, list) else [context]
            for address in (*contexts, value.get("@import")):
                if isinstance(address, str):
                    raise DataError(
                        f"{path}: the context {check.shown(address)} is not in the file, and files are read without "
                        "network access; write the context into the file"
                    )
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
