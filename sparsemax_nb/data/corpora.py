"""Whole corpora: the ones bundled with the package, or a directory of files."""

import importlib.resources
from dataclasses import dataclass

import scipy.sparse

from ..core import check
from .arrays import read_arrays
from .readers import DataError, XCData, read_names, read_xc

BUNDLED = ("tate",)
STEMS = {
    "train": ("train_bow", "train"),
    "test": ("test_bow", "test"),
    "dev": ("dev_bow", "dev"),
    "train labels": ("train_labels",),
    "test labels": ("test_labels",),
    "dev labels": ("dev_labels",),
    "feature names": ("features", "Xf"),
    "label names": ("labels", "Y"),
}
TEXT = ("", ".txt", ".txt.gz", ".txt.xz")
ARRAYS = (".npy", ".npz")
ENDINGS = {"train": TEXT + ARRAYS, "test": TEXT + ARRAYS, "dev": TEXT + ARRAYS} | {
    f"{part} labels": (".npz",) for part in ("train", "test", "dev")
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """A classification task: its parts share features and labels; what the corpus lacks is None.

    Attributes
    ----------
    name : str
    train, test : XCData
        Features are CSR in all parts, or dense in all parts.
    dev : XCData or None
    feature_names, label_names : list of str, or None
        One name for each column; two columns may share one.

    Examples
    --------
    >>> from sparsemax_nb.data import Corpus, bag_of_words
    >>> points = bag_of_words(20, 50, words_per_row=5, n_labels=10, labels_per_row=1, seed=0)
    >>> corpus = Corpus("made up", train=points, test=points, dev=None, feature_names=None, label_names=None)
    >>> corpus.train.labels.shape
    (20, 10)
    """

    name: str
    train: XCData
    test: XCData
    dev: XCData | None
    feature_names: list[str] | None
    label_names: list[str] | None


def load(name_or_dir):
    """Load a corpus for classification: one that is bundled, or a directory of files.

    Parameters
    ----------
    name_or_dir : str or path
        ``"tate"`` is bundled: 52,921 + 5,880 artworks of the Tate Collection, 12,310 word counts, 15,810 subjects.
        Anything else is a directory with the files train_bow and test_bow, optionally dev_bow, features and labels,
        or, as the Extreme Classification Repository calls them, train, test, dev, Xf and Y.
        They are tried in this order, each as it stands, then with .txt, .txt.gz and .txt.xz behind, in the format of
        `read_xc` or, features and labels, one name a line.

        Where there is no such file, a part's features may be an array in train.npy (dense, as `numpy.save` writes it:
        (n, F) float32, C-contiguous) or train.npz (CSR float32, as `scipy.sparse.save_npz` writes it). Its labels lie
        beside it in train_labels.npz (`save_npz` of a CSR matrix (n, L) that stores ones only). The same for test and
        dev. Dense features stay on disk: they are a read-only `numpy.memmap`, and their values are not checked.

    Returns
    -------
    Corpus

    Raises
    ------
    FileNotFoundError
        No such corpus, or a directory without train or test file.
    DataError
        A malformed file, arrays without labels, or files that do not fit together: numbers of rows or columns differ,
        or some parts are dense and others sparse.

    Examples
    --------
    >>> tate = load("tate")
    >>> tate.train.features.shape, tate.test.labels.shape
    ((52921, 12310), (5880, 15810))
    >>> [tate.label_names[i] for i in tate.test.labels[0].indices[:3]]
    ['literature and fiction', 'literature (not Shakespeare)', 'nature']

    Dense features:

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part in ("train", "test"):
    ...         np.save(Path(folder, f"{part}.npy"), np.ones((2, 3), np.float32))
    ...         scipy.sparse.save_npz(Path(folder, f"{part}_labels.npz"), scipy.sparse.csr_matrix([[0, 1], [1, 1]]))
    ...     corpus = load(folder)
    >>> type(corpus.train.features).__name__, corpus.train.features.shape, corpus.train.labels.nnz
    ('memmap', (2, 3), 3)
    """
    name, folder = find_folder(name_or_dir, BUNDLED)
    files = {what: _find(folder, what) for what in STEMS}
    for what in ("train", "test"):
        if files[what] is None:
            raise FileNotFoundError(f"{folder} holds no {what} file; looked for {', '.join(_candidates(what))}")
    parts = {what: _read(files, what) for what in ("train", "test", "dev") if files[what]}
    columns, sparse = _columns(parts["train"]), scipy.sparse.issparse(parts["train"].features)
    for what, part in parts.items():
        if _columns(part) != columns:
            raise DataError(
                f"{_where(files[what])}: {_columns(part)} features and labels, "
                f"but {columns} in {files['train']}; the parts of a corpus must agree"
            )
        if scipy.sparse.issparse(part.features) != sparse:
            mine, others = ("dense", "sparse") if sparse else ("sparse", "dense")
            raise DataError(
                f"{files[what]}: {mine} features, but {others} ones in {files['train']}; "
                "the parts of a corpus must agree"
            )
    names, source = {}, str(files["train"]) if _is_array(files["train"]) else f"the header of {files['train']}"
    for what, n in zip(("feature names", "label names"), columns, strict=True):
        names[what] = read_names(files[what]) if files[what] else None
        if names[what] is not None and len(names[what]) != n:
            raise DataError(f"{files[what]}: {len(names[what])} {what}, but {n} in {source}")
    return Corpus(name, parts["train"], parts["test"], parts.get("dev"), names["feature names"], names["label names"])


def _is_array(path):
    """Is it a file of arrays, not of text?"""
    return path.name.endswith(ARRAYS)  # a resource in a zip file has no suffix


def _where(path):
    """The place in a file that tells the numbers of features and labels."""
    return str(path) if _is_array(path) else f"{path}, line 1"


def _read(files, what):
    """One part of a corpus."""
    if not _is_array(files[what]):
        return read_xc(files[what])
    if files[f"{what} labels"] is None:
        raise DataError(
            f"{files[what]}: no labels beside it; write {_candidates(f'{what} labels')[0]} with scipy.sparse.save_npz"
        )
    return read_arrays(files[what], files[f"{what} labels"])


def _columns(part):
    """Numbers of features and labels."""
    return part.features.shape[1], part.labels.shape[1]


def find_folder(name_or_dir, bundled):
    """Name and folder of a corpus that is one of the names `bundled`, or a directory; FileNotFoundError where it is neither."""
    path = check.path("name_or_dir", name_or_dir)
    if name_or_dir in bundled:
        name, folder = name_or_dir, importlib.resources.files(__package__) / "bundled" / name_or_dir
    else:
        folder = path
        name = folder.resolve().name
    if not folder.is_dir():
        raise FileNotFoundError(f"{str(folder)!r} is neither bundled ({', '.join(bundled)}) nor a directory")
    return name, folder


def first_file(folder, names):
    """The first of the names that is a file in the folder, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _candidates(what):
    """File names under which a part of a corpus may be found."""
    return [stem + ending for stem in STEMS[what] for ending in ENDINGS.get(what, TEXT)]


def _find(folder, what):
    """The first candidate that exists, or None."""
    return first_file(folder, _candidates(what))
