"""Text files: the format of the Extreme Classification Repository, and lists of names."""

import codecs
import contextlib
import gzip
import importlib.resources.abc
import itertools
import lzma
import numbers
import re
import reprlib
import zlib
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from ..core import check, files
from ..core.sparse import as_csr, check_structure

OPENERS = {".gz": gzip.open, ".xz": lzma.open}
#: First bytes of compressed files, whatever their names.
MAGIC = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}
#: First bytes of UTF-16 text: a byte-order mark, or a zero byte before or after the first letter.
UTF_16 = re.compile(rb"\xff\xfe|\xfe\xff|\x00[\x20-\x7e]|[\x20-\x7e]\x00")
#: Lines that are parsed at once: bounds the temporary memory.
LINES_PER_CHUNK = 1024
#: Limits for files that are not what they should be, such as damaged compressed files: bytes of a line, and consecutive
#: blank lines.
MAX_LINE_BYTES = 1 << 26
MAX_BLANK_LINES = 1 << 20
#: A compressed file may unpack to MAX_EXPANSION times its size, and to UNCHECKED_BYTES in any case. Real texts stay far
#: below; a decompression bomb reaches a factor of 1,000.
MAX_EXPANSION = 200
UNCHECKED_BYTES = 1 << 24

ID = r"[0-9]+"
VALUE = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
NOT_FINITE = re.compile("[-+]?(nan|inf|infinity)", re.IGNORECASE)
PAIRS = re.compile(rf"(?: +{ID}:{VALUE})* *".encode())
LINE = re.compile(rf"(?:{ID}(?:,{ID})*)?{PAIRS.pattern.decode()}".encode())


class DataError(ValueError):
    """A malformed file; the message names the file and the line.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sparsemax_nb.data import DataError, read_xc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "one_point.txt")
    ...     _ = path.write_text("1 3 4\\n1,3 0:2 2:many\\n")
    ...     try:
    ...         read_xc(path)
    ...     except DataError as error:
    ...         print(str(error).replace(folder, "")[1:])
    one_point.txt, line 2: '2:many' is not 'feature:value', an id and a number
    """


@dataclass(frozen=True, eq=False)
class XCData:
    """Points of a classification task with many labels.

    Attributes
    ----------
    features : (n_points, n_features) float32
        CSR with sorted indices, without duplicates; int32 indptr and indices. Or a dense matrix in a file
        (`numpy.memmap`), which `load` can return: read-only, C-contiguous.
    labels : (n_points, n_labels) CSR float32
        1 for each label of a point; otherwise as the features.
    excluded : (n_points, n_labels) CSR float32, or None
        1 for each pair of a point and a label that an evaluation must ignore, for example because both are the same
        item; otherwise as the features.

    Examples
    --------
    >>> import scipy.sparse
    >>> from sparsemax_nb.data import XCData
    >>> points = XCData(scipy.sparse.csr_matrix([[2.0, 0.0, 0.5]]), scipy.sparse.csr_matrix([[0, 1]]))
    >>> points.features.shape, points.labels.shape
    ((1, 3), (1, 2))
    """

    features: scipy.sparse.csr_matrix | np.memmap
    labels: scipy.sparse.csr_matrix
    excluded: scipy.sparse.csr_matrix | None = None


def read_xc(path, *, n_points=None):
    """Read a file in the text format of the Extreme Classification Repository.

    The first line is ``points features labels``. Each further line is one point:
    ``label,label feature:value feature:value``. Ids start at 0. A line without labels starts with a space; a point can
    also have no features. The peak memory is 9/8 of the result, plus a thousand lines.

    Parameters
    ----------
    path : str or path
        Plain text, or compressed with gzip or xz, whatever its name. Files of `importlib.resources` are accepted.
    n_points : int, optional
        Maximum number of points to read; the rest of the file is ignored.

    Returns
    -------
    XCData

    Raises
    ------
    DataError
        For the first malformed line.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "two_points.txt")
    ...     _ = path.write_text("2 3 4\\n1,3 0:2 2:0.5\\n 1:1\\n")
    ...     data = read_xc(path)
    >>> data.features.toarray()
    array([[2. , 0. , 0.5],
           [0. , 1. , 0. ]], dtype=float32)
    >>> data.labels.indices
    array([1, 3], dtype=int32)
    """
    check_n_points(n_points)
    with contextlib.closing(read_lines(path)) as lines:
        n_header, n_features, n_labels = read_header(path, next(lines, None), "points features labels")
        features, labels = GrowingCSR(n_features), GrowingCSR(n_labels)
        for first, chunk in chunks(path, lines, n_header, n_points):
            part = _parse(chunk, n_features, n_labels)
            if part is None:
                _raise_first_error(path, first, chunk, n_features, n_labels)
            features.append(part[0])
            labels.append(part[1])
    return XCData(features.finish(), labels.finish())


def check_n_points(n_points):
    """ValueError unless `n_points` is a non-negative integer or None."""
    is_integer = isinstance(n_points, numbers.Integral) and not isinstance(n_points, bool)
    if n_points is not None and not (is_integer and n_points >= 0):
        raise ValueError(f"n_points must be a non-negative integer or None, got {check.shown(n_points)}")


def write_xc(path, features, labels):
    """Write features and labels to a file that `read_xc` reads.

    Parameters
    ----------
    path : str or path
        Compressed if it ends in .gz or .xz. The file is created, or replaced, once it is complete.
    features : SciPy CSR matrix (n_points, n_features)
        Finite as float32, the precision of the file; without duplicate entries.
    labels : SciPy CSR matrix (n_points, n_labels)
        Every stored value is 1; without duplicate entries.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described; no file is written.
    OSError
        No such folder; not enough disk space. An existing file is not changed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import scipy.sparse
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "one_point.txt")
    ...     write_xc(path, scipy.sparse.csr_matrix([[2.0, 0.0, 0.5]]), scipy.sparse.csr_matrix([[0, 1]]))
    ...     path.read_text()
    '1 3 2\\n1 0:2 2:0.5\\n'
    """
    path = check.path("path", path)
    features, labels = _canonical("features", features), _canonical("labels", labels)
    if features.shape[0] != labels.shape[0]:
        raise ValueError(
            f"features and labels must have the same number of rows, got {features.shape[0]} and {labels.shape[0]}"
        )
    values = _float32(features.data)
    if not np.isfinite(values).all():
        raise ValueError(
            "features must be finite as float32, got NaN, infinity or a number beyond the range of float32"
        )
    if (labels.data != 1).any():
        raise ValueError("labels must store ones only; use labels.eliminate_zeros() and labels.data[:] = 1")
    pack = OPENERS.get(path.suffix, lambda file, _: contextlib.nullcontext(file))
    with files.writing(path) as file, pack(file, "wb") as stream:
        stream.write(f"{features.shape[0]} {features.shape[1]} {labels.shape[1]}\n".encode())
        lines = _format_lines(features, values, labels)
        while chunk := "".join(itertools.islice(lines, LINES_PER_CHUNK)):
            stream.write(chunk.encode())


def _format_lines(features, values, labels):
    """Yield the line of each point; `values` are those of the features, as float32."""
    for row in range(features.shape[0]):
        entries = slice(*features.indptr[row : row + 2])
        texts = [text.removesuffix(".0") for text in values[entries].astype(str).tolist()]
        pairs = map("{}:{}".format, features.indices[entries].tolist(), texts)
        ids = labels.indices[slice(*labels.indptr[row : row + 2])].tolist()
        yield f"{','.join(map(str, ids))} {' '.join(pairs)}\n"


def read_names(path):
    """Read a list of names, one per line.

    Parameters
    ----------
    path : str or path
        UTF-8, with or without a byte-order mark; plain, or compressed with gzip or xz, whatever its name.

    Returns
    -------
    names : list of str

    Raises
    ------
    DataError
        A line that is not UTF-8 text, with file and line number; a truncated compressed file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels.txt")
    ...     _ = path.write_text("landscape\\nWorld War II\\n")
    ...     read_names(path)
    ['landscape', 'World War II']
    """
    with contextlib.closing(read_lines(path)) as lines:
        return [decode(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def check_csr(name, matrix):
    """TypeError unless `matrix` is a SciPy CSR matrix, ValueError if its indices are out of bounds."""
    if not (scipy.sparse.issparse(matrix) and matrix.format == "csr"):
        raise TypeError(
            f"{name} must be a SciPy CSR matrix, got {type(matrix).__name__}; use scipy.sparse.csr_matrix({name})"
        )
    try:
        check_structure(matrix)
    except ValueError as error:
        raise ValueError(f"{name} is not a valid CSR matrix: {error}") from error


def read_lines(path):
    """Yield the lines of a text file as bytes, without line ends; close the generator if you do not read all lines.

    The first bytes of the file, not its name, determine whether it is compressed. A UTF-8 byte-order mark is dropped.
    DataError for files that are not text of a reasonable size: UTF-16, lines that are too long, too many blank lines, a
    small compressed file that unpacks to a huge one.
    """
    is_resource = isinstance(path, importlib.resources.abc.Traversable)  # one in a zip file is not PathLike
    path = path if is_resource else check.path("path", path)
    number = 0
    try:
        with path.open("rb") as packed, _decompressed(packed) as stream:
            is_packed = stream is not packed and packed.seekable()
            blank = unpacked = 0
            for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), 1):
                if number == 1:
                    if UTF_16.match(line):
                        raise DataError(f"{path}: this looks like UTF-16 text; save it as UTF-8")
                    line = line.removeprefix(codecs.BOM_UTF8)
                    if not line:  # nothing follows the byte-order mark
                        return
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}, line {number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; is this text?"
                    )
                if is_packed:
                    unpacked += len(line)
                    if unpacked > UNCHECKED_BYTES and unpacked > MAX_EXPANSION * packed.tell():
                        raise DataError(
                            f"{path}, line {number}: {packed.tell():,} bytes unpack to {unpacked:,}; is the file "
                            "damaged? If not, unpack it first"
                        )
                line = line.rstrip(b"\r\n")
                blank = 0 if line else blank + 1
                if blank > MAX_BLANK_LINES:
                    raise DataError(
                        f"{path}, line {number}: more than {MAX_BLANK_LINES:,} consecutive blank lines; is this text?"
                    )
                yield line
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}, line {number + 1}: the compressed file is truncated or corrupt ({error})") from error


def _decompressed(packed):
    """A decompressing stream of an open binary file if it is compressed, else the file itself."""
    start = packed.peek(8)
    unpack = next((unpack for magic, unpack in MAGIC.items() if start.startswith(magic)), contextlib.nullcontext)
    return unpack(packed)


def decode(where, line):
    """Decode a line from UTF-8; DataError for the first byte that is not text."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(
            f"{where}: byte 0x{byte:02x} in column {error.start + 1} is not UTF-8 text; save the file as UTF-8, "
            "for example with iconv -f latin1 -t utf-8"
        ) from None


def chunks(path, lines, n_rows, n_wanted=None, unit="points"):
    """Yield the lines after the header in lists of at most LINES_PER_CHUNK, each with the number of its first line.

    DataError if there are fewer lines than the `n_rows` of the header; or more, unless only `n_wanted` are to be read.
    """
    done, wanted = 0, n_rows if n_wanted is None else min(n_rows, n_wanted)
    while done < wanted:
        chunk = list(itertools.islice(lines, min(LINES_PER_CHUNK, wanted - done)))
        if not chunk:
            raise DataError(f"{path}, line {done + 2}: the file ends after {done} of {n_rows} {unit}")
        yield done + 2, chunk
        done += len(chunk)
    if wanted == n_rows and next(lines, None) is not None:
        raise DataError(f"{path}, line {done + 2}: the file continues after {n_rows} {unit}, the number in the header")


def read_header(path, line, form):
    """Parse the sizes in the first line of a file; `form` names them, such as "points features labels"."""
    if line is None:
        raise DataError(f"{path}, line 1: the file is empty; expected the header '{form}'")
    text = decode(f"{path}, line 1", line)
    sizes, n_sizes = text.split(), len(form.split())
    if len(sizes) != n_sizes or not all(re.fullmatch(ID, size) and float(size) < 2**31 for size in sizes):
        raise DataError(
            f"{path}, line 1: the header must be '{form}', {n_sizes} integers from 0 to 2**31 - 1, "
            f"got {reprlib.repr(text)}"
        )
    return (int(float(size)) for size in sizes)  # int() refuses a size with thousands of leading zeros


def _float32(values):
    """Convert `values` to float32; numbers beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)


def _parse(lines, n_features, n_labels):
    """Parse lines to CSR matrices of features and labels; None if any line is malformed."""
    if not all(map(LINE.fullmatch, lines)):
        return None
    heads = [line.partition(b" ")[0] for line in lines]
    tails = [line.partition(b" ")[2] for line in lines]
    # Float64 represents every id below 2**53 exactly, and any larger id is out of range anyway.
    label_ids = np.array(b",".join(filter(None, heads)).replace(b",", b" ").split(), np.float64)
    features = parse_pairs(tails, n_features)
    counts = [head.count(b",") + 1 if head else 0 for head in heads]
    labels = _csr(counts, label_ids, np.ones(len(label_ids), np.float32), n_labels)
    return None if features is None or labels is None else (features, labels)


def parse_pairs(lines, n_columns):
    """Parse lines that match PAIRS to a CSR matrix; None if ids are out of range or repeated, or values not finite."""
    pairs = np.array(b" ".join(lines).replace(b":", b" ").split(), np.float64).reshape(-1, 2)
    return _csr([line.count(b":") for line in lines], pairs[:, 0], _float32(pairs[:, 1]), n_columns)


class GrowingCSR:
    """Stacks CSR matrices vertically as they arrive, in three arrays that grow in place.

    A full array grows by an eighth of its length with `realloc`, which on Linux moves memory pages instead of copying a
    large array. Stacking all parts at the end would need twice the memory of the data.
    """

    def __init__(self, n_columns):
        self.n_columns = n_columns
        self.n_rows = self.nnz = 0
        self.counts = np.empty(0, np.int32)
        self.indices = np.empty(0, np.int32)
        self.values = np.empty(0, np.float32)

    def append(self, matrix):
        """Add the rows of a CSR matrix."""
        _write_at_end(self.counts, self.n_rows, np.diff(matrix.indptr))
        _write_at_end(self.indices, self.nnz, matrix.indices)
        _write_at_end(self.values, self.nnz, matrix.data)
        self.n_rows += matrix.shape[0]
        self.nnz += matrix.nnz

    def finish(self):
        """Return the stacked CSR matrix, which takes over the arrays; call this once."""
        for array, used in ((self.counts, self.n_rows), (self.indices, self.nnz), (self.values, self.nnz)):
            array.resize(used, refcheck=False)
        indptr = np.zeros(self.n_rows + 1, np.int64)  # SciPy converts it to int32 if the entries fit
        np.cumsum(self.counts, out=indptr[1:])
        return scipy.sparse.csr_matrix((self.values, self.indices, indptr), shape=(self.n_rows, self.n_columns))


def _write_at_end(array, used, new):
    """Write `new` after the first `used` items of `array`, which grows if necessary."""
    end = used + len(new)
    if end > len(array):
        array.resize(max(end, len(array) + len(array) // 8), refcheck=False)  # there are no views of it
    array[used:end] = new


def _csr(counts, ids, values, n_columns):
    """CSR matrix with counts[i] entries in row i; None if ids are out of range or repeated, or values not finite."""
    if not ((ids < n_columns).all() and np.isfinite(values).all()):
        return None
    indptr = np.cumsum([0, *counts])
    matrix = scipy.sparse.csr_matrix((values, ids.astype(np.int32), indptr), shape=(len(counts), n_columns))
    matrix.sort_indices()
    return matrix if matrix.has_canonical_format else None


def _raise_first_error(path, first, lines, n_features, n_labels):
    """Find the first malformed line among those that `_parse` refused, and raise a DataError that describes it."""
    for number, line in enumerate(lines, first):
        where = f"{path}, line {number}"
        head, _, tail = decode(where, line).partition(" ")
        labels = head.split(",") if head else []
        for token in labels:
            if not re.fullmatch(ID, token):
                raise DataError(
                    f"{where}: {reprlib.repr(token)} is not a label id; expected "
                    "'label,label feature:value feature:value', with a leading space if there are no labels"
                )
        _check_ids(where, "label", labels, n_labels)
        check_pairs(where, "feature", tail, n_features)
    raise AssertionError(f"{path}: _parse refused the lines from {first} on, but no error was found in them")


def check_pairs(where, kind, text, n):
    """DataError for the first malformed pair of an id and a value, and for ids that are out of range or repeated."""
    ids = []
    for token in filter(None, text.split(" ")):
        number, _, value = token.partition(":")
        known = re.fullmatch(VALUE, value)
        if NOT_FINITE.fullmatch(value) or (known and not np.isfinite(_float32(float(value)))):
            raise DataError(f"{where}: the value in {reprlib.repr(token)} must be finite as float32")
        if not (known and re.fullmatch(ID, number)):
            raise DataError(f"{where}: {reprlib.repr(token)} is not '{kind}:value', an id and a number")
        ids.append(number)
    _check_ids(where, kind, ids, n)


def _check_ids(where, kind, tokens, n):
    """DataError for ids that are out of range or repeated."""
    seen = set()
    for token in tokens:
        if float(token) >= n:
            raise DataError(f"{where}: {kind} id {token[:40]} is not below {n}, the number in the header")
        if float(token) in seen:
            raise DataError(f"{where}: {kind} id {token[:40]} is repeated")
        seen.add(float(token))


def _canonical(name, matrix):
    """`matrix` with sorted indices; errors unless it is CSR without duplicate entries."""
    check_csr(name, matrix)
    matrix = as_csr(name, matrix).sorted_indices()
    if not matrix.has_canonical_format:
        raise ValueError(f"{name} must not have duplicate entries; use {name}.sum_duplicates()")
    return matrix
