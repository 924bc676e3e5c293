"""Damage every kind of file that the library reads, and read it: a clear error or a model that answers, nothing else.

``python -m tests.fuzz.files`` damages each kind 2,000 times; ``--only KIND --first 17 -n 1`` repeats one case. A child
process reads the files: a crash is seen, and so is a read that takes more than `CPU_SECONDS` of the processor, or
`MOST_BYTES` more memory than the child had before. The test suite runs a short form.
"""

import argparse
import collections
import gzip
import io
import json
import lzma
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse

from sparsemax_nb import PackedDSSoftmax, SparseExperts, data, train
from sparsemax_nb.core.sparse import check_structure
from sparsemax_nb.data import DataError, arrays

ROOT = Path(__file__).parents[2]
CPU_SECONDS, MOST_BYTES = 20, 1 << 30
#: What a file may be refused with.
REFUSED = train.ModelFileError, DataError, OSError
#: Memory is faster than a disk, and each checkpoint is flushed.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
ODD_NUMBERS = (
    0,
    1,
    -1,
    -5,
    7,
    2**30,
    2**31 - 1,
    -(2**31),
    2**31,
    2**62,
    2**63,
    10**30,
    0.5,
    1e38,
    -1e300,
    float("nan"),
    float("inf"),
)
ODD_VALUES = (*ODD_NUMBERS, None, True, False, "", "a", "\udc80", [], [[]], [1], {}, {"a": 1}, [[[[]]]] * 3, "9" * 5000)
ODD_TOKENS = (
    b"-1",
    b"1e400",
    b"nan",
    b"99999999999999999999",
    b"2147483647",
    b"0:0:0",
    b":",
    b",",
    b"0:",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\r",
    b"1,1",
    b"0:1 0:1",
    b"1.5",
    b" ",
    b"\xe2\x80\xa8",
    b"<unk>",
    b"<eos>",
    b"0" * 400,
)


# ------------------------------------------------------------ damage


def damage_bytes(content, rng):
    """Bits, cuts, splices, and numbers at places where numbers lie."""
    content, n = bytearray(content), len(content)
    if not n:
        return bytes(rng.randbytes(rng.randrange(9)))
    how = rng.choice(
        ("bits", "bits", "head", "cut", "cut", "behind", "splice", "remove", "insert", "number", "number", "run")
    )
    at, length = rng.randrange(n), rng.randrange(1, 1 + min(n, rng.choice((1, 4, 8, 64, 4096))))
    if how in ("bits", "head"):
        for _ in range(rng.randrange(1, 9)):
            content[rng.randrange(n if how == "bits" else min(n, 200))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[at:]
    elif how == "behind":
        content += rng.randbytes(length)
    elif how == "splice":
        start = rng.randrange(n)
        content[at : at + length] = content[start : start + length]
    elif how == "remove":
        del content[at : at + length]
    elif how == "insert":
        content[at:at] = content[at : at + length] * rng.choice((1, 1, 1, 100))
    elif how == "number":
        packed = _packed(rng.choice(ODD_NUMBERS), rng.choice(("<i4", "<i8", "<f4", "<f8")))
        at -= at % len(packed)
        content[at : at + len(packed)] = packed
    else:
        content[at : at + length] = bytes([rng.choice((0, 255, 32, 127))]) * length
    return bytes(content)


def _packed(number, form):
    if "f" in form:
        with np.errstate(over="ignore"):
            return np.array(float(number), form).tobytes()
    return (int(number) % 2**64 if math.isfinite(number) else 0).to_bytes(8, "little")[: int(form[-1])]


def _places(value, found, path=()):
    """Every (container, key) below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        found.append((value, key))
        _places(below, found)
    return found


def damage_model(content, rng):
    """Edits of the header that leave it valid JSON, and of the arrays behind it; or any damage."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    start = 8 + int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:start]), bytearray(content[start:])
    metadata = header["__metadata__"]
    description = json.loads(metadata["description"])
    names = [name for name in header if name != "__metadata__"]
    how = rng.choice(("description",) * 5 + ("header", "swap", "rename", "drop", "array", "array", "array", "shape"))
    name, other = rng.choices(names, k=2)
    if how in ("description", "header"):
        places = _places(description if how == "description" else header, [])
        container, key = rng.choice(places)
        old, action = container[key], rng.random()
        if action < 0.15:
            del container[key]
        elif action < 0.3:
            container[key] = json.loads(json.dumps(rng.choice(places)[0]))
        elif action < 0.5 and isinstance(old, (int, float)) and not isinstance(old, bool):
            container[key] = old + rng.choice((-1, 1, 2, 1000))
        else:
            container[key] = rng.choice(ODD_VALUES)
    elif how == "swap":
        header[name]["data_offsets"], header[other]["data_offsets"] = (
            header[other]["data_offsets"],
            header[name]["data_offsets"],
        )
        if rng.random() < 0.5:  # and their shapes, so that it is a whole file
            one, two = dict(header[name]), dict(header[other])
            header[name] |= {"shape": two["shape"], "dtype": two["dtype"]}
            header[other] |= {"shape": one["shape"], "dtype": one["dtype"]}
    elif how == "rename":
        header[rng.choice((other, "other", name + "x"))] = header.pop(name)
    elif how == "drop":
        del header[name]
        if rng.random() < 0.5 and header.keys() - {"__metadata__"}:  # with its bytes: a whole file
            return _without(content, name)
    elif how == "shape":
        shape = header[name]["shape"]
        header[name]["shape"] = rng.choice(
            (shape[::-1], [*shape, 1], [1, *shape], [int(np.prod(shape))], [2**40] * 4, [0])
        )
    else:
        first, stop = header[name]["data_offsets"]
        some = bytes(body[first:stop])
        body[first:stop] = damage_bytes(some, rng)[: stop - first].ljust(stop - first, b"\x01")
    metadata["description"] = json.dumps(description)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _without(content, name):
    """The file without one of its arrays."""
    start = 8 + int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:start]), content[start:]
    kept, end = b"", 0
    for other, about in header.items():
        if other not in ("__metadata__", name):
            first, stop = about["data_offsets"]
            kept, about["data_offsets"], end = kept + body[first:stop], [end, end + stop - first], end + stop - first
    del header[name]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + kept


def damage_text(content, rng):
    """Tokens and lines, or any damage."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    lines = content.split(b"\n")
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, how = rng.randrange(len(lines)), rng.choice(("token", "token", "token", "line", "again", "gone", "first"))
        if how == "token":
            tokens = lines[at].split(b" ")
            tokens[rng.randrange(len(tokens))] = rng.choice(
                (*ODD_TOKENS, b"%d:%d" % (rng.randrange(70), rng.randrange(9)))
            )
            lines[at] = b" ".join(tokens)
        elif how == "line":
            lines[at] = rng.choice((b"", b" ", *ODD_TOKENS, lines[rng.randrange(len(lines))]))
        elif how == "again":
            lines[at:at] = [lines[at]] * rng.choice((1, 1, 50))
        elif how == "first":
            tokens = lines[0].split(b" ")
            tokens[rng.randrange(len(tokens))] = str(rng.choice(ODD_NUMBERS)).encode()
            lines[0] = b" ".join(tokens)
        elif len(lines) > 1:
            del lines[at]
    return b"\n".join(lines)


def _compressed(pack, unpack):
    """Damage of a compressed file, or of what it holds."""

    def damage(content, rng):
        return damage_bytes(content, rng) if rng.random() < 0.5 else pack(damage_text(unpack(content), rng))

    return damage


def damage_npy(content, rng):
    """The header of a .npy file, whose length stays right; or any damage."""
    if rng.random() < 0.5:
        return damage_bytes(content, rng)
    end = 10 + int.from_bytes(content[8:10], "little")
    header = content[10:end].decode("latin1").rstrip()
    old = rng.choice(("<f4", "False", "(", ")", ", ", "shape", "descr", *filter(str.isdigit, header)))
    new = rng.choice(
        (
            "<f8",
            "|O",
            "<c8",
            "<U9",
            "|V7",
            "True",
            "-1",
            "9" * 9,
            "1" * 30,
            "()",
            "None",
            "0",
            "'",
            "{",
            "[('a', '<f4')]",
        )
    )
    header = header.replace(old, new, 1).encode("latin1") + b"\n"
    return content[:8] + len(header).to_bytes(2, "little") + header + content[end:]


def damage_npz(content, rng):
    """A member of a .npz file, whose checksums stay right; or any damage."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    name, other = rng.choices(sorted(members), k=2)
    how = rng.random()
    if how < 0.1:
        members[rng.choice((other, "other.npy"))] = members.pop(name)
    elif how < 0.2:
        del members[name]
    else:
        members[name] = damage_npy(members[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as packed:
        for name, member in members.items():
            packed.writestr(name, member)
    return stream.getvalue()


# ------------------------------------------------------------ the files, and what reads them

SMALL = {"epochs": 2, "batch_size": 16, "dropout": 0.1, "device": "cpu", "progress": False, "learning_rate": 0.01}
NETWORK = SMALL | {"architecture": "network", "embedding": 8, "intermediate": 12, "fan_in": 3, "rewire_every": 3}
LINEAR = {
    "C": 0.5,
    "slack": 0.2,
    "frequency": 0.05,
    "min_features": 3,
    "features_per_point": 0.0,
    "epochs": 2,
    "device": "cpu",
    "progress": False,
}
KERNEL = {"power": 4.0, "kernel_C": 0.25, "n_neighbors": 20, "epochs": 2, "device": "cpu", "progress": False}
WIDE = LINEAR | KERNEL | {"kernel_weight": 0.5, "head_weight": 0.25}
SHARED = NETWORK | {"output": "group-shared", "group_size": 4, "weight_dtype": "bfloat16"}
SAMPLED = SMALL | {
    "architecture": "network",
    "embedding": 8,
    "output": "dense",
    "loss": "softmax",
    "sampler": "midx-rq",
    "n_samples": 3,
    "n_codewords": 4,
    "index_every": 3,
}
LANGUAGE = SMALL | {"width": 8, "sampler": "midx-pq", "n_samples": 3, "n_codewords": 4, "unroll": 5, "batch_size": 4}
EXPERTS = {"n_experts": 4, "epochs": 2, "batch_size": 16, "device": "cpu", "progress": False}
POINTS = data.bag_of_words(n_rows=60, n_features=20, words_per_row=4, n_labels=15, labels_per_row=2, seed=1)
DENSE = np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32)
TARGETS = (np.arange(60) % 13).astype(np.int32)
WORDS = (np.arange(300) ** 2 % 17).astype(np.int32)
TEXT = "".join(f"{' '.join(f'w{(i * i + j) % 29}' for j in range(i % 7))}\n" for i in range(120))
LINES = TEXT.split("\n")
LABELS = [[f"l{i % 5}", f"l{i % 3}"][: i % 3] for i in range(len(LINES))]
CLASSES = [("a", "b", "\u4e2d\u6587")[i % 3] for i in range(len(LINES))]


class Stop(Exception):
    """What ends a run whose checkpoint is wanted."""


def _stop(epoch, _):
    """In the second epoch: the last checkpoint lies inside it, behind an epoch with best weights."""
    if epoch == 1:
        raise Stop


def _check_ids(ids, n):
    assert ids.dtype == np.int32 and (ids >= -1).all() and (ids < n).all(), "ids out of range"


class Classifier:
    """A model file."""

    damage = staticmethod(damage_model)

    def __init__(self, x=POINTS.features, **params):
        self.x, self.params = x, params

    def rows(self, rows):
        """Some rows of the features, which may be a pair."""
        return tuple(part[rows] for part in self.x) if isinstance(self.x, tuple) else self.x[rows]

    def make(self, path):
        train.Classifier(**self.params).fit(self.x, POINTS.labels).save(path, [f"label {n}" for n in range(15)])

    def read(self, path):
        return train.Classifier.load(path, device="cpu")

    def use(self, model):
        _check_ids(model.predict(self.rows(slice(4)), 3), 15)
        assert model.explain(self.rows(slice(1)), n=3)
        model.evaluate(self.rows(slice(9)), POINTS.labels[:9])


class ClassifierCheckpoint(Classifier):
    """A checkpoint in the second of two epochs."""

    def fit(self, path, **more):
        parts = [(self.rows(rows), POINTS.labels[rows]) for rows in (slice(40), slice(40, None))]
        return train.Classifier(**self.params).fit(*parts[0], validation=parts[1], checkpoint_path=path, **more)

    def make(self, path):
        try:
            self.fit(path, checkpoint_seconds=0, after_epoch=_stop)
        except Stop:
            return

    def read(self, path):
        return self.fit(path, resume=True)


class TextClassifier:
    """A model file of texts: label names or one class per row, calibrated."""

    damage = staticmethod(damage_model)
    names = {"l1": ["w3 w4", "first"], "l9": "w28"}

    def __init__(self, y, **params):
        self.y, self.params = y, LINEAR | params

    def fit(self, path=None, **more):
        names = self.names if isinstance(self.y[0], list) else None
        return train.Classifier(**self.params).fit(LINES, self.y, names=names, checkpoint_path=path, **more)

    def make(self, path):
        self.fit().save(path)

    def read(self, path):
        return train.Classifier.load(path, device="cpu")

    def use(self, model):
        n = model.n_labels_
        _check_ids(model.top_k(LINES, n)[1], n)
        for predicted in model.predict(LINES[:30]), model.predict(LINES[:4], 2):
            assert len(predicted) in (4, 30)
        if model.calibration_ is not None:
            probabilities = model.predict_proba(LINES)
            assert (probabilities >= 0).all() and (probabilities <= 1).all(), "probabilities out of range"
        assert model.explain(LINES[6], n=3)
        model.evaluate(LINES[:9], self.y[:9])


class TextClassifierCheckpoint(TextClassifier):
    """A checkpoint in the second of two epochs."""

    def make(self, path):
        try:
            self.fit(path, checkpoint_seconds=0, after_epoch=_stop)
        except Stop:
            return

    def read(self, path):
        return self.fit(path, resume=True)


class LanguageModel:
    """A model file, with a vocabulary."""

    damage = staticmethod(damage_model)
    checkpoint = False

    def fit(self, **more):
        vocabulary = data.Vocabulary([f"w{n}" for n in range(17)])
        return train.LanguageModel(**LANGUAGE).fit(WORDS, vocabulary=vocabulary, **more)

    def make(self, path):
        self.fit().save(path)

    def read(self, path):
        return train.LanguageModel.load(path, device="cpu")

    def use(self, model):
        assert model.perplexity(WORDS[:50]) >= 0
        _check_ids(model.generate(WORDS[:3], 3), 17)


class LanguageModelCheckpoint(LanguageModel):
    """A checkpoint in the second of two epochs."""

    def make(self, path):
        try:
            self.fit(checkpoint_path=path, checkpoint_seconds=0, after_epoch=_stop)
        except Stop:
            return

    def read(self, path):
        return self.fit(checkpoint_path=path, resume=True)


class Packed:
    """A packed DS-Softmax."""

    damage = staticmethod(damage_model)

    def __init__(self, mapped):
        self.mapped = mapped

    def make(self, path):
        SparseExperts.dense(DENSE[:13], 3, 0).pack().save(path)

    def read(self, path):
        return PackedDSSoftmax.load(path, device="cpu", mapped=self.mapped)

    def use(self, model):
        for h in DENSE[:2], DENSE:
            if model.width == 8:
                _check_ids(model.top_k(h, 4)[1], model.n_classes)


class ExpertsCheckpoint(Packed):
    """A checkpoint of its training, after the first epoch."""

    def fit(self, path, **more):
        return train.DSSoftmax(**EXPERTS).fit(DENSE, TARGETS, n_classes=13, checkpoint_path=path, **more)

    def make(self, path):
        counted = []

        def stop(_):
            counted.append(1)
            if len(counted) == 2:
                raise Stop

        try:
            self.fit(path, after_epoch=stop)
        except Stop:
            return

    def read(self, path):
        return self.fit(path, resume=True).pack()


class Points:
    """Points as text, plain or compressed; as a .npz or .npy file of features."""

    def __init__(self, ending, damage):
        self.ending, self.damage = ending, damage

    def make(self, path):
        x = POINTS.features
        if self.ending == ".npy":
            np.save(path, DENSE)
        elif self.ending == ".npz":
            scipy.sparse.save_npz(path, x)
        else:
            data.write_xc(path, x, POINTS.labels)
        dense = self.ending == ".npy"
        self.model = train.Classifier(**NETWORK | {"epochs": 1}).fit(DENSE if dense else x, POINTS.labels)

    def read(self, path):
        if self.ending == ".npy":
            return arrays.read_dense(path)
        return arrays.read_csr(path) if self.ending == ".npz" else data.read_xc(path).features

    def use(self, x):
        try:
            _check_ids(self.model.predict(x[:50], 3), 15)
        except ValueError as error:
            if not str(error).startswith("X "):  # other numbers of features, numbers that are not finite or no counts
                raise


class Text:
    """A text for a language model, or sequences of items."""

    damage = staticmethod(damage_text)
    ending = ".txt"

    def __init__(self, sequences):
        self.sequences = sequences

    def make(self, path):
        path.write_text(TEXT)

    def read(self, path):
        if self.sequences:
            return data.load_sequences(path)
        folder = path.parent / "text"
        folder.mkdir(exist_ok=True)
        (folder / "corpus.txt").write_bytes(path.read_bytes())
        return data.load_text(folder)

    def use(self, found):
        n = len(found.vocabulary)
        if not self.sequences:
            for part in (found.train, found.valid, found.test):
                _check_ids(part, n)
            return
        _check_ids(found.items, n)
        assert found.indptr[0] == 0 and found.indptr[-1] == len(found.items) and (np.diff(found.indptr) >= 0).all()
        data.leave_last_out(found)


class Matrices:
    """Features and labels in separate text files; or the pairs that an evaluation ignores."""

    damage = staticmethod(damage_text)
    ending = ".txt"

    def __init__(self, damaged):
        self.damaged = damaged

    def make(self, path):
        rows = range(60)
        self.files = {
            "trn_X_Xf": "60 70\n" + "".join(f"{i}:1.5 {i + 1}:{i}e-1\n" for i in rows),
            "trn_X_Y": "60 9\n" + "".join(f"{i % 9}:1.0 {(i + 4) % 9}:1\n" for i in rows),
            "tst_X_Xf": "1 70\n\n",
            "tst_X_Y": "1 9\n\n",
            "filter_labels_train": "".join(f"{i} {i % 9}\n" for i in rows),
        }
        path.write_text(self.files[self.damaged])

    def read(self, path):
        folder = path.parent / "matrices"
        folder.mkdir(exist_ok=True)
        for name, content in self.files.items():
            damaged = path.read_bytes() if name == self.damaged else content.encode()
            (folder / f"{name}.txt").write_bytes(damaged)
        return data.load(folder)

    def use(self, corpus):
        points = corpus.train
        assert points.labels.shape == points.excluded.shape == (points.features.shape[0], 9)
        for matrix in (points.features, points.labels, points.excluded):
            check_structure(matrix)
            assert matrix.has_canonical_format and np.isfinite(matrix.data).all()


class LabeledTexts:
    """Texts with labels, tab-separated or as JSON lines."""

    damage = staticmethod(damage_text)

    def __init__(self, ending):
        self.ending = ending

    def make(self, path):
        pairs = [(line, [f"l{i % 5}", "a label"]) for i, line in enumerate(TEXT.split("\n"))]
        if self.ending == ".jsonl":
            lines = [json.dumps({"text": text, "labels": labels}) for text, labels in pairs]
        else:
            lines = ["\t".join([text, *labels]) for text, labels in pairs]
        path.write_text("\n".join(lines))

    def read(self, path):
        return data.read_texts(path)

    def use(self, found):
        assert len(found.texts) == len(found.labels)
        for text, labels in zip(found.texts, found.labels, strict=True):
            assert (text.strip() or labels) and all(labels) and len(set(labels)) == len(labels)
            "".join([text, *labels]).encode()


class Names:
    """A vocabulary, tab-separated or SKOS."""

    damage = staticmethod(damage_text)

    def __init__(self, ending):
        self.ending = ending

    def make(self, path):
        prefix = "@prefix skos: <http://www.w3.org/2004/02/skos/core#> .\n" if self.ending == ".ttl" else ""
        line = '<a:{0}> a skos:Concept ; skos:prefLabel "name {0}"@en .' if prefix else "<a:{0}>\tname {0}\tsynonym"
        path.write_text(prefix + "\n".join(map(line.format, range(40))))

    def read(self, path):
        return data.read_vocabulary(path)

    def use(self, found):
        for label, names in found.items():
            assert label and names and all(names) and len(set(names)) == len(names)


KINDS = {
    "classifier": Classifier(**NETWORK),
    "classifier, linear": Classifier(**LINEAR),
    "classifier, group-shared": Classifier(**SHARED),
    "classifier, unstructured": Classifier(**NETWORK | {"output": "unstructured"}),
    "classifier, dense features, softmax": Classifier(DENSE, **SAMPLED),
    "classifier, kernel machine": Classifier(DENSE, **KERNEL),
    "classifier, wide-and-deep": Classifier((POINTS.features, DENSE), **WIDE),
    "checkpoint of a classifier": ClassifierCheckpoint(**NETWORK),
    "checkpoint of a linear classifier": ClassifierCheckpoint(**LINEAR),
    "checkpoint of a sampled softmax": ClassifierCheckpoint(**SAMPLED),
    "checkpoint of a kernel machine": ClassifierCheckpoint(DENSE, **KERNEL),
    "checkpoint of wide-and-deep": ClassifierCheckpoint((POINTS.features, DENSE), **WIDE),
    "classifier of texts": TextClassifier(LABELS),
    "classifier of texts, classes": TextClassifier(CLASSES, hash_bits=5),
    "classifier of texts, numbers": TextClassifier([i % 3 - 1 for i in range(len(LINES))], char_ngrams=0),
    "checkpoint of a classifier of texts": TextClassifierCheckpoint(LABELS),
    "language model": LanguageModel(),
    "checkpoint of a language model": LanguageModelCheckpoint(),
    "packed": Packed(False),
    "packed, mapped": Packed(True),
    "checkpoint of experts": ExpertsCheckpoint(False),
    "points .txt": Points(".txt", damage_text),
    "points .txt.gz": Points(".txt.gz", _compressed(gzip.compress, gzip.decompress)),
    "points .txt.xz": Points(".txt.xz", _compressed(lzma.compress, lzma.decompress)),
    "points .npy": Points(".npy", damage_npy),
    "points .npz": Points(".npz", damage_npz),
    "text": Text(False),
    "sequences": Text(True),
    "matrix of features": Matrices("trn_X_Xf"),
    "matrix of labels": Matrices("trn_X_Y"),
    "excluded pairs": Matrices("filter_labels_train"),
    "labeled texts .tsv": LabeledTexts(".tsv"),
    "labeled texts .jsonl": LabeledTexts(".jsonl"),
    "vocabulary .tsv": Names(".tsv"),
    "vocabulary .ttl": Names(".ttl"),
}


# ------------------------------------------------------------ child and parent


def outcome(kind, path):
    """'refused', 'answered' or 'not finite'; what is wrong, where that is not how a file may end."""
    try:
        found = kind.read(path)
    except REFUSED:
        return "refused"
    except FloatingPointError:  # of a run that went on from a checkpoint with wild weights
        return "not finite"
    except BaseException as error:
        return f"WRONG while it was read: {type(error).__name__}: {error}"[:300]
    try:
        kind.use(found)
    except FloatingPointError:
        return "not finite"
    except BaseException as error:
        if isinstance(error, ValueError) and "finite" in str(error):  # finite weights, too large ones
            return "not finite"
        return f"WRONG while it was used: {type(error).__name__}: {error}"[:300]
    return "answered"


def child(segments, seed):
    """Damage and read, for each (kind, first number, how many); a line for each case before and after it."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        for name, first, n in segments:
            kind, place = KINDS[name], Path(folder, name)
            place.mkdir()
            path = place / f"file{getattr(kind, 'ending', '')}"
            kind.make(path)
            whole = path.read_bytes()
            if (found := outcome(kind, path)) != "answered":
                raise AssertionError(f"{name}, not damaged: {found}")
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, resource.RLIM_INFINITY))
            for number in range(first, first + n):
                print(json.dumps([name, number]), flush=True)
                path.write_bytes(kind.damage(whole, random.Random(f"{seed} {name} {number}")))
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
                found = outcome(kind, path)
                signal.setitimer(signal.ITIMER_PROF, 0)
                print(json.dumps([name, number, found]), flush=True)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def run(names, first=0, n=2000, seed=0, tell=print):
    """{kind: {outcome: how often}}, and a list of what went wrong: (kind, number, what)."""
    counts, wrong, segments = {name: collections.Counter() for name in names}, [], [(name, first, n) for name in names]

    def note(name, number, found):
        counts[name][found.partition(" ")[0] if found.startswith("WRONG") else found] += 1
        if found.startswith("WRONG"):
            wrong.append((name, number, found))
            tell(f"{name}, number {number}: {found}")

    while segments:
        command = [sys.executable, "-m", "tests.fuzz.files", "--seed", str(seed), "--child", json.dumps(segments)]
        begun = None
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                begun, *found = (json.loads(line)[:2], *json.loads(line)[2:])
                if found:
                    note(*begun, *found)
        if process.returncode == 0:
            break
        if begun is None:
            raise RuntimeError(f"the child ended with {process.returncode} before the first case")
        hangs, when = process.returncode == -signal.SIGPROF, "after it" if found else "in it"
        note(*begun, "WRONG: it hangs" if hangs else f"WRONG: the process ended with {process.returncode} {when}")
        name, number = begun
        later = segments[[segment[0] for segment in segments].index(name) + 1 :]
        segments = [(name, number + 1, first + n - number - 1), *later]
    return counts, wrong


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.files", description=__doc__)
    parser.add_argument("-n", type=int, default=2000, help="how often each kind is damaged")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, help="kinds of files (default: all)")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.seed)
    counts, wrong = run(options.only or list(KINDS), options.first, options.n, options.seed)
    for name, found in counts.items():
        print(f"{name:40s}" + "  ".join(f"{what} {number}" for what, number in sorted(found.items())))
    print(f"{sum(sum(found.values()) for found in counts.values()):,} files, {len(wrong)} of them wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
