"""Models on disk: safetensors files with a JSON description in the header.

The files are read and written here, not by the safetensors library. That library maps files into memory, so a file
that is overwritten crashes its reader; it orders the header at random; and its error for a full disk lacks the path.
"""

import contextlib
import json
import math
import os
import weakref
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from . import files

FORMAT = "sparsemax_nb"
VERSION = 8
#: NumPy dtypes by their safetensors names.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
#: Most bytes of a header; the limit of the safetensors format.
MAX_HEADER = 100_000_000
#: A longer description, e.g. with the names of a million labels, is stored as the array of this name.
MAX_DESCRIPTION, DESCRIPTION = 1 << 20, "__description__"
#: What a damaged description may raise while the model is rebuilt from it.
BROKEN = LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError


class ModelFileError(ValueError):
    """A model file that cannot be read: truncated, damaged, foreign, of another kind or format version.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sparsemax_nb.train import Classifier, ModelFileError
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model.safetensors")
    ...     _ = path.write_text("no model")
    ...     try:
    ...         Classifier.load(path)
    ...     except ModelFileError:
    ...         print("refused")
    refused
    """


def bits(array):
    """The array itself, or for bfloat16 a uint16 view of its bits."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


@contextlib.contextmanager
def complete(path, what):
    """Turn errors inside the block into a `ModelFileError`: the file `path` does not contain a complete `what`."""
    try:
        yield
    except ModelFileError:
        raise
    except BROKEN as error:
        raise ModelFileError(f"{path} does not contain a complete {what} ({error})") from error


# ------------------------------------------------------------ writing


def save(path, kind, arrays, description):
    """Write NumPy `arrays` (name -> array) and a JSON-serializable `description`; equal contents give equal bytes.

    bfloat16 arrays are stored as their `bits`. The file appears, or is replaced, when it is complete: see
    `files.writing`.
    """
    metadata, arrays = {"format": FORMAT, "version": str(VERSION), "kind": kind}, dict(arrays)
    text = json.dumps(description, ensure_ascii=False)
    if len(text) <= MAX_DESCRIPTION:
        metadata["description"] = text
    else:
        arrays[DESCRIPTION] = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    # largest items first, so that every array is aligned
    names = sorted(arrays, key=lambda name: (-bits(arrays[name]).itemsize, name))
    header = _header(metadata, {name: bits(arrays[name]) for name in names})
    with files.writing(path) as file:
        file.write(header)
        for name in names:
            file.write(np.ascontiguousarray(bits(arrays[name])).reshape(-1).view(np.uint8))


def _header(metadata, arrays):
    """The header of a file with these arrays in this order."""
    about, start = {"__metadata__": metadata}, 0
    for name, array in arrays.items():
        offsets = [start, start + array.nbytes]
        about[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        start += array.nbytes
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


# ------------------------------------------------------------ reading


class _Stored(NamedTuple):
    """Type and position of an array in a file."""

    dtype: np.dtype
    shape: tuple
    start: int

    @property
    def nbytes(self):
        return self.dtype.itemsize * math.prod(self.shape)


class Arrays(Mapping):
    """The arrays of a file by name; each is read on access, so that a large model is never in memory twice."""

    def __init__(self, path, file, stored):
        self._path = path
        self._file = file
        self._stored = stored
        weakref.finalize(self, file.close)

    def __getitem__(self, name):
        stored = self._stored[name]
        array = np.empty(stored.shape, stored.dtype)
        self._file.seek(stored.start)
        if self._file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
            raise ModelFileError(
                f"{self._path} is truncated or not a safetensors file (it was truncated while it was read)"
            )
        return array

    def __iter__(self):
        return iter(self._stored)

    def __len__(self):
        return len(self._stored)

    def mapped(self, name):
        """The array, memory-mapped copy-on-write: a page is read on first access, and writes do not reach the file."""
        stored = self._stored[name]
        if not stored.nbytes or stored.start % stored.dtype.itemsize:
            return self[name]
        return np.asarray(np.memmap(self._file, stored.dtype, "c", stored.start, stored.shape))

    def check_shapes(self, shapes):
        """KeyError or ValueError if an array does not have its shape in `shapes`; allocates nothing."""
        for name, shape in shapes.items():
            if self._stored[name].shape != tuple(shape):
                raise ValueError(f"{name} must have shape {tuple(shape)}, got {self._stored[name].shape}")


def _read_header(file):
    """The JSON object at the beginning of a file, the position of the data, and the size of the file; or ValueError."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        raise ValueError("no header")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return header, 8 + length, size


def _read_stored(header, start, size):
    """{name: `_Stored`} of a header; ValueError unless the arrays fill the file from `start` to `size` without gaps."""
    stored = {}
    for name, about in header.items():
        dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
        if dtype not in DTYPES or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
            raise ValueError(f"{name} has dtype {dtype}, shape {shape}, offsets {offsets}"[:200])
        stored[name] = entry = _Stored(np.dtype(DTYPES[dtype]), tuple(shape), start + offsets[0])
        if len(shape) > 8 or offsets != [offsets[0], offsets[0] + entry.nbytes]:
            raise ValueError(f"{name} has shape {shape}, but offsets {offsets}"[:200])
    end = start
    for entry in sorted(stored.values(), key=lambda entry: (entry.start, entry.nbytes)):
        if entry.start != end:
            raise ValueError("the arrays are not contiguous")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"the arrays end at byte {end}, the file at {size}")
    return stored


def _open(path):
    """(`Arrays`, kind, description) of a file; FileNotFoundError or ModelFileError if it cannot be read."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no model file {path}")
    stored = {}
    file = open(path, "rb")  # noqa: SIM115  stays open: `Arrays` reads on access
    arrays = Arrays(path, file, stored)
    try:
        header, start, size = _read_header(file)
        metadata = header.pop("__metadata__", {})
        stored |= _read_stored(header, start, size)
    except BROKEN as error:
        raise ModelFileError(f"{path} is truncated or not a safetensors file ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ModelFileError(f"{path} was not written by sparsemax_nb")
    if metadata.get("version") != str(VERSION):
        raise ModelFileError(
            f"{path} has format version {metadata.get('version')}, this package reads version {VERSION}; train it again"
        )
    try:
        text = arrays[DESCRIPTION].tobytes() if DESCRIPTION in stored else metadata["description"]
        description, kind = json.loads(text), metadata["kind"]
        if not (isinstance(description, dict) and isinstance(kind, str)):
            raise ValueError("the description is not a JSON object")
    except BROKEN as error:
        raise ModelFileError(f"{path} has no complete description ({error})") from error
    stored.pop(DESCRIPTION, None)
    return arrays, kind, description


def kind_of(path):
    """What kind of model a file contains; errors as for `load`."""
    return _open(path)[1]


def load(path, kind):
    """Open a file: (`Arrays` by name, description); FileNotFoundError or ModelFileError if it cannot be read."""
    arrays, found, description = _open(path)
    if found != kind:
        raise ModelFileError(f"{path} contains a {found!r} model, not {kind!r}")
    return arrays, description
