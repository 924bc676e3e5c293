"""Corpora for classification: bundled ones, and directories of files."""

import importlib.resources
from dataclasses import dataclass, replace

import scipy.sparse

from ..core import check
from .arrays import read_arrays
from .matrices import read_excluded, read_matrices
from .readers import DataError, XCData, read_names, read_xc

BUNDLED = ("tate",)
#: File names without endings for each file of a corpus, in the order in which they are tried: those of our bundled
#: corpora, then those of the Extreme Classification Repository.
STEMS = {
    "train": ("train_bow", "train"),
    "test": ("test_bow", "test"),
    "dev": ("dev_bow", "dev"),
    "train labels": ("train_labels",),
    "test labels": ("test_labels",),
    "dev labels": ("dev_labels",),
    "train feature matrix": ("trn_X_Xf",),
    "test feature matrix": ("tst_X_Xf",),
    "train label matrix": ("trn_X_Y",),
    "test label matrix": ("tst_X_Y",),
    "train excluded": ("filter_labels_train",),
    "test excluded": ("filter_labels_test",),
    "feature names": ("features", "Xf"),
    "label names": ("labels", "Y"),
}
TEXT_ENDINGS = ("", ".txt", ".txt.gz", ".txt.xz")
ARRAY_ENDINGS = (".npy", ".npz")
ENDINGS = dict.fromkeys(("train", "test", "dev"), TEXT_ENDINGS + ARRAY_ENDINGS) | {
    f"{part} labels": (".npz",) for part in ("train", "test", "dev")
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus for classification: its parts have the same features and labels; missing ones are None.

    Attributes
    ----------
    name : str
    train, test : XCData
        Features are CSR in all parts, or dense in all parts.
    dev : XCData or None
    feature_names, label_names : list of str, or None
        One name for each column; names need not be unique.

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
    """Load a bundled corpus for classification, or a directory of files.

    Parameters
    ----------
    name_or_dir : str or path
        ``"tate"`` is bundled: 52,921 + 5,880 artworks of the Tate Collection, 12,310 word counts, 15,810 subjects.
        Anything else is a directory with the files train_bow and test_bow, and optionally dev_bow, features and labels;
        or with the names of the Extreme Classification Repository: train, test, dev, Xf and Y. Each name is tried as it
        is, then with the endings .txt, .txt.gz and .txt.xz. The parts have the format of `read_xc`; the files of
        feature and label names have one name per line.

        Without a train file, the features and labels of the Repository may be two files, trn_X_Xf and trn_X_Y, with the
        same endings: a first line ``rows columns``, then one point per line, ``column:value column:value``; labels have
        the value 1. The same applies to test, with tst_X_Xf and tst_X_Y.

        filter_labels_train and filter_labels_test, with the same endings, list the pairs of points and labels that an
        evaluation must ignore, one ``row label`` per line. They become `XCData.excluded`.

        If there is no such file, the features of a part may be an array in train.npy (dense, from `numpy.save`: (n, F)
        float32, C-contiguous) or train.npz (CSR float32, from `scipy.sparse.save_npz`). Its labels are then in
        train_labels.npz (`save_npz` of a CSR matrix (n, L) that stores ones only). The same applies to test and dev.
        Dense features stay on disk: they are a read-only `numpy.memmap`, and their values are not checked.

    Returns
    -------
    Corpus

    Raises
    ------
    FileNotFoundError
        No such corpus; a directory without a train or test file.
    DataError
        A malformed file; arrays or matrices without labels; files with different numbers of rows or columns; a mixture
        of dense and sparse parts.

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
    files = {file: _find(folder, file) for file in STEMS}
    for part in ("train", "test"):
        files[part] = files[part] or files[f"{part} feature matrix"]
        if files[part] is None:
            tried = _candidates(part) + _candidates(f"{part} feature matrix")
            raise FileNotFoundError(f"{folder} contains no {part} file; tried {', '.join(tried)}")
    parts = {part: _read(files, part) for part in ("train", "test", "dev") if files[part]}
    columns, sparse = _columns(parts["train"]), scipy.sparse.issparse(parts["train"].features)
    for part, points in parts.items():
        if _columns(points) != columns:
            raise DataError(
                f"{_location_of_sizes(files, part)}: {points.features.shape[1]} features and "
                f"{points.labels.shape[1]} labels, but {columns[0]} and {columns[1]} in {files['train']}; "
                "the parts of a corpus must agree"
            )
        if scipy.sparse.issparse(points.features) != sparse:
            found, expected = ("dense", "sparse") if sparse else ("sparse", "dense")
            raise DataError(
                f"{files[part]}: {found} features, but {expected} ones in {files['train']}; "
                "the parts of a corpus must agree"
            )
    names = {}
    for kind, n, source in zip(("feature names", "label names"), columns, _headers(files, "train"), strict=True):
        names[kind] = read_names(files[kind]) if files[kind] else None
        if names[kind] is not None and len(names[kind]) != n:
            source = source if _is_array(source) else f"the header of {source}"
            raise DataError(f"{files[kind]}: {len(names[kind])} {kind}, but {n} in {source}")
    return Corpus(name, parts["train"], parts["test"], parts.get("dev"), names["feature names"], names["label names"])


def _is_array(path):
    """True for array files, False for text files."""
    return path.name.endswith(ARRAY_ENDINGS)  # a resource in a zip file has no suffix


def _is_matrix(files, part):
    """True if the labels of a part are a text file of their own."""
    return files[part] is files.get(f"{part} feature matrix")


def _headers(files, part):
    """The file that states the number of features of a part, and the one that states the number of labels."""
    return files[part], files[f"{part} label matrix" if _is_matrix(files, part) else part]


def _location_of_sizes(files, part):
    """Where the files of a part state their numbers of features and labels, for error messages."""
    features, labels = _headers(files, part)
    if _is_matrix(files, part):
        return f"{features} and {labels}, line 1"
    return str(features) if _is_array(features) else f"{features}, line 1"


def _read(files, part):
    """Read one part of a corpus."""
    if _is_matrix(files, part):
        points = read_matrices(files[part], _labels_of(files, part, "label matrix", "add {}"))
    elif _is_array(files[part]):
        labels = _labels_of(files, part, "labels", "write {} with scipy.sparse.save_npz")
        points = read_arrays(files[part], labels)
    else:
        points = read_xc(files[part])
    excluded = files.get(f"{part} excluded")
    return replace(points, excluded=read_excluded(excluded, points.labels.shape)) if excluded else points


def _labels_of(files, part, kind, fix):
    """The file of the labels of a part; DataError if it is missing."""
    file = f"{part} {kind}"
    if files[file] is None:
        expected = next(name for name in _candidates(file) if "." in name)
        raise DataError(f"{files[part]}: the labels are missing; {fix.format(expected)}")
    return files[file]


def _columns(points):
    """The numbers of features and labels."""
    return points.features.shape[1], points.labels.shape[1]


def find_folder(name_or_dir, bundled):
    """Name and folder of a corpus that is `bundled`, or a directory; FileNotFoundError if it is neither."""
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
    """Path of the first of `names` that is a file in the folder, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _candidates(file):
    """Possible names of a file of a corpus."""
    return [stem + ending for stem in STEMS[file] for ending in ENDINGS.get(file, TEXT_ENDINGS)]


def _find(folder, file):
    """Path of the first candidate that exists, or None."""
    return first_file(folder, _candidates(file))
