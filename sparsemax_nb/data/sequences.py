"""Sequences of items, such as the purchases of each user in their order."""

from dataclasses import dataclass, replace

import numpy as np

from ..core import check
from .corpora import TEXT_ENDINGS, first_file
from .readers import DataError
from .text import Numbering, Vocabulary

STEM = "sequences"  # name of the file in a folder, without ending


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of item ids: sequence i is ``items[indptr[i]:indptr[i + 1]]``.

    Attributes
    ----------
    name : str
        Name of the file without endings, or of the directory.
    vocabulary : Vocabulary
        The items, most frequent first; without `<eos>` and `<unk>`.
    indptr : (n + 1,) int64
    items : (m,) int32

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.data import Sequences, Vocabulary
    >>> items = np.array([0, 1, 2, 1, 0], np.int32)
    >>> sequences = Sequences("made up", Vocabulary(["tea", "milk", "jam"]), np.array([0, 3, 5]), items)
    >>> sequences.items[sequences.indptr[1] : sequences.indptr[2]]
    array([1, 0], dtype=int32)
    """

    name: str
    vocabulary: Vocabulary
    indptr: np.ndarray
    items: np.ndarray


def load_sequences(path, min_count=1, vocabulary=None):
    """Load sequences of items, for a model that predicts the next item.

    Parameters
    ----------
    path : str or path
        A text file (UTF-8; plain, gzip or xz) with one sequence per line: its items in their order, separated by
        spaces. Or a directory with such a file, named sequences, without an ending or with .txt, .txt.gz or .txt.xz.
    min_count : int
        Items that occur less often are left out.
    vocabulary : Vocabulary, optional
        The vocabulary of a model. Items that are not in it are left out, however frequent they are.

    Returns
    -------
    Sequences
        Sequence i is line i + 1 of the file. Sequences without items are kept, empty.

    Raises
    ------
    FileNotFoundError
        No such file or directory; a directory without the file.
    DataError
        The file is empty or not text; no item is left.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "sequences.txt")
    ...     _ = file.write_text("tea milk tea\\ncoffee\\nmilk tea\\n")
    ...     sequences = load_sequences(file, min_count=2)
    >>> sequences.vocabulary.words, sequences.indptr, sequences.items
    (('tea', 'milk'), array([0, 3, 3, 5]), array([0, 1, 0, 1, 0], dtype=int32))
    """
    check.integer("min_count", min_count, 1)
    path = check.path("path", path)
    if not isinstance(vocabulary, (Vocabulary, type(None))):
        raise TypeError(f"vocabulary must be a Vocabulary or None, got {type(vocabulary).__name__}")
    file = _find(path)
    numbering = Numbering()
    numbers, ends = numbering.read(file)
    if vocabulary is None:
        try:
            vocabulary = Vocabulary.of_counts(numbering.counts(numbers), min_count, text=False)
        except ValueError as error:
            raise DataError(f"{file}: {error}") from error
    items = vocabulary.find(numbering)[numbers]
    kept = items >= 0
    if not kept.any():
        raise DataError(f"{file}: none of the items is in the vocabulary")
    indptr = np.concatenate([[0], kept.cumsum()])[ends]
    name = path.resolve().name if file != path else file.name.removesuffix(file.suffix).removesuffix(".txt")
    return Sequences(name, vocabulary, indptr, items[kept])


def _find(path):
    """The file of sequences: `path`, or the one in the directory `path`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{str(path)!r} is neither a file nor a directory")
    candidates = [STEM + ending for ending in TEXT_ENDINGS]
    file = first_file(path, candidates)
    if file is None:
        raise FileNotFoundError(f"{path} contains no {STEM} file; tried {', '.join(candidates)}")
    return file


def leave_last_out(sequences):
    """Split `Sequences` into a train, validation and test part by leaving out the last items.

    The train part has all items of a sequence but the last two, the validation part all but the last, the test part
    all. In the validation and test part, the last item of each sequence is to be predicted from those before it.

    Parameters
    ----------
    sequences : Sequences

    Returns
    -------
    train, valid, test : Sequences
        Each with the same number of sequences, some of which may be empty.

    Raises
    ------
    TypeError, ValueError
        Not `Sequences`; an indptr that does not fit the items.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.data import Sequences, Vocabulary, leave_last_out
    >>> items = np.array([0, 1, 2, 1, 0], np.int32)
    >>> sequences = Sequences("made up", Vocabulary(["tea", "milk", "jam"]), np.array([0, 3, 5]), items)
    >>> [part.items.tolist() for part in leave_last_out(sequences)]
    [[0], [0, 1, 1], [0, 1, 2, 1, 0]]
    """
    if not isinstance(sequences, Sequences):
        raise TypeError(f"sequences must be Sequences, got {type(sequences).__name__}")
    items = check.integers("sequences.items", sequences.items, ("m",))
    starts = check.integers("sequences.indptr", sequences.indptr, ("n",), dtype=np.int64)
    if not len(starts) or starts[0] != 0 or starts[-1] != len(items) or (starts[1:] < starts[:-1]).any():
        raise ValueError(f"sequences.indptr must rise from 0 to len(sequences.items) = {len(items)}")
    lengths = np.diff(starts)

    def without(n):
        kept = np.maximum(lengths - n, 0)
        within = np.arange(len(items)) - np.repeat(starts[:-1], lengths)
        return replace(
            sequences, indptr=np.concatenate([[0], kept.cumsum()]), items=items[within < np.repeat(kept, lengths)]
        )

    return without(2), without(1), sequences
