"""Whole corpora: the ones bundled with the package, or a directory of files."""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

from .readers import DataError, XCData, read_names, read_xc

BUNDLED = ("tate",)
STEMS = {
    "train": ("train_bow", "train"),
    "test": ("test_bow", "test"),
    "dev": ("dev_bow", "dev"),
    "feature names": ("features", "Xf"),
    "label names": ("labels", "Y"),
}
ENDINGS = ("", ".txt", ".txt.gz", ".txt.xz")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A classification task: its parts share features and labels; what the corpus lacks is None.

    Attributes
    ----------
    name : str
    train, test : XCData
    dev : XCData or None
    feature_names, label_names : list of str or None
        One name for each column; two columns may share one.
    """

    name: str
    train: XCData
    test: XCData
    dev: XCData | None
    feature_names: list[str] | None
    label_names: list[str] | None


def load(name_or_dir):
    """Load a corpus.

    Parameters
    ----------
    name_or_dir : str or path
        ``"tate"`` is bundled: 52,921 + 5,880 artworks of the Tate Collection, 12,310 word counts, 15,810 subjects.
        Anything else is a directory with the files train_bow and test_bow, optionally dev_bow, features and labels,
        or, as the Extreme Classification Repository calls them, train, test, dev, Xf and Y.
        They are tried in this order, each as it stands, then with .txt, .txt.gz and .txt.xz behind.

    Returns
    -------
    Corpus

    Raises
    ------
    FileNotFoundError
        No such corpus, or a directory without train or test file.
    DataError
        A malformed file, or files that do not fit together.

    Examples
    --------
    >>> tate = load("tate")
    >>> tate.train.features.shape, tate.test.labels.shape
    ((52921, 12310), (5880, 15810))
    >>> [tate.label_names[i] for i in tate.test.labels[0].indices[:3]]
    ['literature and fiction', 'literature (not Shakespeare)', 'nature']
    """
    if name_or_dir in BUNDLED:
        name, folder = name_or_dir, importlib.resources.files(__package__) / "bundled" / name_or_dir
    else:
        folder = Path(name_or_dir)
        name = folder.resolve().name
    if not folder.is_dir():
        raise FileNotFoundError(f"{str(folder)!r} is neither bundled ({', '.join(BUNDLED)}) nor a directory")
    files = {what: _find(folder, what) for what in STEMS}
    for what in ("train", "test"):
        if files[what] is None:
            raise FileNotFoundError(f"{folder} holds no {what} file; looked for {', '.join(_candidates(what))}")
    parts = {what: read_xc(files[what]) for what in ("train", "test", "dev") if files[what]}
    columns = _columns(parts["train"])
    for what, part in parts.items():
        if _columns(part) != columns:
            raise DataError(
                f"{files[what]}, line 1: {_columns(part)} features and labels, "
                f"but {columns} in {files['train']}; the parts of a corpus must agree"
            )
    names = {}
    for what, n in zip(("feature names", "label names"), columns, strict=True):
        names[what] = read_names(files[what]) if files[what] else None
        if names[what] is not None and len(names[what]) != n:
            raise DataError(f"{files[what]}: {len(names[what])} {what}, but {n} in the header of {files['train']}")
    return Corpus(name, parts["train"], parts["test"], parts.get("dev"), names["feature names"], names["label names"])


def _columns(part):
    """Numbers of features and labels."""
    return part.features.shape[1], part.labels.shape[1]


def _candidates(what):
    """File names under which a part of a corpus may be found."""
    return [stem + ending for stem in STEMS[what] for ending in ENDINGS]


def _find(folder, what):
    """The first candidate that exists, or None."""
    return next((folder / name for name in _candidates(what) if (folder / name).is_file()), None)
