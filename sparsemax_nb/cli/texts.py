"""Shared by the commands for models of texts: texts with labels, vocabularies, lists of labels, standard input."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

from .. import data
from ..core import check
from ..data import labeled_texts, readers
from ..train.classifier_targets import CLASS, MATRIX
from . import common

#: Bytes per read of standard input. A read returns what is available, and waits only if there is nothing.
BYTES_PER_READ = 1 << 16
#: Field of the labels in JSON lines whose labels are ignored: no labels are found in it.
NO_FIELD = ""
#: Endings of files. An argument without spaces that ends so is the name of a file, not a text.
FILE_ENDINGS = (".txt", ".tsv", ".key", ".jsonl", ".ndjson", ".csv", ".json", ".npy", ".npz", ".gz", ".xz")


def text_options(sub, text, labels=True):
    """Add --text with this help, and the names of the fields of JSON lines."""
    sub.add_argument("--text", metavar="FILE-or-FOLDER", help=text)
    field_options(sub, labels)


def field_options(sub, labels):
    """Add --text-field and, if `labels`, --labels-field."""
    sub.add_argument("--text-field", default="text", metavar="NAME", help="field of the text in JSON lines")
    if labels:
        sub.add_argument("--labels-field", default="labels", metavar="NAME", help="field of the labels in JSON lines")


def vocabulary_options(sub):
    """Add --vocabulary and --language."""
    vocabulary = (
        "names and synonyms of the labels: lines of label, name and synonyms, separated by tabs, or a SKOS file; names "
        "are additional training points, and labels without texts can be predicted, too"
    )
    sub.add_argument("--vocabulary", metavar="FILE", help=vocabulary)
    language = "language of the names in a SKOS file, such as en (default: all languages)"
    sub.add_argument("--language", metavar="TAG", help=language)


def read_labeled(path, options):
    """The texts and labels of a file or folder; ValueError if no text has a label."""
    corpus = data.read_texts(path, text=options.text_field, labels=options.labels_field)
    if not any(corpus.labels):
        hint = (
            f"labels are in the field {options.labels_field!r} of JSON lines (see --labels-field), in the fields after "
            "the text in tab-separated lines, and in NAME.tsv or NAME.key next to NAME.txt in a folder"
        )
        raise ValueError(f"{path} must have texts with labels, but no text has a label; {hint}")
    return corpus


def read_vocabulary(options, corpus):
    """The names of the labels by --vocabulary, or None; prints how it matches the labels of the texts."""
    if options.vocabulary is None:
        if options.language is not None:
            raise ValueError("--language needs --vocabulary FILE, a SKOS file")
        return None
    names = data.read_vocabulary(options.vocabulary, language=options.language)
    used = {label for labels in corpus.labels for label in labels}
    print(
        f"{options.vocabulary}: {len(names):,} labels, {len(names.keys() - used):,} of them without texts; labels of "
        f"the texts that it does not contain: {len(used.difference(names)):,} of {len(used):,}",
        flush=True,
    )
    return names


def with_embeddings(found, path):
    """Texts, or the pair of them and their embeddings in the file `path`, if it is given."""
    return found if path is None else (found, common.embeddings(path, len(found)))


def name_of(path):
    """The name of a corpus: that of its file or folder."""
    return Path(path).resolve().name


def digests(corpus):
    """Hashes of the texts and of their labels, two arrays (n, 16) uint8, from which a fingerprint is computed."""
    parts = corpus.texts, map("\n".join, corpus.labels)
    return tuple(
        np.frombuffer(b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in part), np.uint8)
        .reshape(-1, 16)
        for part in parts
    )  # fmt: skip


def require_texts(model, file, option):
    """ValueError unless the model is one of texts with label names; `option` is what it was given."""
    if model.vectorizer_ is None:
        raise ValueError(
            f"{option} needs a model of texts, but {file} expects {model.n_features_in_} features; use --data"
        )
    if model._target_form == MATRIX or (model._target_form == CLASS and model.classes_.dtype.kind not in "UO"):
        raise ValueError(f"{option} needs a model with label names, but the labels of {file} are numbers")


def targets(model, corpus, path):
    """The labels of a corpus in the form that the model was trained with."""
    if model._target_form != CLASS:
        return corpus.labels
    for number, labels in enumerate(corpus.labels, 1):
        if len(labels) != 1:
            raise ValueError(f"{path}, text {number}: the model needs one label per text, got {check.shown(labels)}")
    return [labels[0] for labels in corpus.labels]


def read_label_list(path, model):
    """The labels in a file, one per line, as elements of `classes_`; ValueError for one that the model does not have.

    None without a file.
    """
    if path is None:
        return None
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} cannot be read: there is no such file")
    known = {str(label): label for label in model.classes_.tolist()}
    labels = []
    for where, label in labeled_texts.labels_of(Path(path)):
        if label not in known:
            numbers = f"; labels are numbers from 0 to {model.n_labels_ - 1}" if model._target_form == MATRIX else ""
            raise ValueError(f"{where}: the model has no label {check.shown(label)}{numbers}")
        labels.append(known[label])
    if not labels:
        raise ValueError(f"{path} must contain labels, one per line, but it is empty")
    return labels


def standard_input(is_json, text_field):
    """Yield lists of texts from standard input, each with all lines that have arrived so far.

    ValueError if there is no text at all, or for a malformed line.
    """
    stream, first, rest, found = sys.stdin.buffer, 1, b"", False
    while chunk := stream.read1(BYTES_PER_READ):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > readers.MAX_LINE_BYTES:
            limit = f"{readers.MAX_LINE_BYTES >> 20} MiB"
            raise data.DataError(f"standard input, line {first + len(lines)}: the line is longer than {limit}")
        if texts := _parse(lines, is_json, text_field, first):
            found = True
            yield texts
        first += len(lines)
    if texts := _parse([rest], is_json, text_field, first):
        yield texts
    elif not found:
        raise data.DataError("standard input contains no texts")


def given_texts(arguments, n_texts, is_json, text_field):
    """Yield lists of texts from arguments, each a file or folder, '-' for standard input, or a text itself.

    `n_texts` is the maximum number of texts, or None.
    """
    left = sys.maxsize if n_texts is None else n_texts
    for argument in arguments:
        for texts in _texts_of(argument, left, is_json, text_field):
            yield texts[:left]
            left -= len(texts[:left])
            if left <= 0:
                return


def _texts_of(argument, n_texts, is_json, text_field):
    if argument == "-":
        yield from standard_input(is_json, text_field)
    elif os.path.exists(argument):
        if argument.endswith(data.corpora.ARRAY_ENDINGS):
            raise ValueError(f"{argument} contains features, but the model expects texts")
        yield data.read_texts(argument, text=text_field, labels=NO_FIELD, n_points=n_texts).texts
    elif argument.lower().endswith(FILE_ENDINGS) and not any(map(str.isspace, argument)):
        raise FileNotFoundError(f"{argument} cannot be read: there is no such file")
    elif not argument.strip():
        raise ValueError("a text must not be empty")
    else:
        yield [argument]


def _parse(lines, is_json, text_field, first):
    parsed = labeled_texts.parse_texts(lines, "standard input", is_json, text_field, NO_FIELD, first)
    return [text for text, _ in parsed]
