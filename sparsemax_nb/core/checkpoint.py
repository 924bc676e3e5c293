"""Models on disk: safetensors files with a JSON description in the header.

They are read and written here, not by the library of that name: it maps files into memory, so that one which is
overwritten kills its reader, orders its header at random, and says nothing of the path where a disk is full.
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
VERSION = 6
#: NumPy's types by their names in a file.
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
#: The most bytes that the format allows a header.
MOST_HEADER = 100_000_000
#: A description with more characters, such as one with the names of a million labels, is stored as the array of this
#: name.
MOST_DESCRIPTION, DESCRIPTION = 1 << 20, "__description__"
#: What the parts of a damaged description raise as they are put together.
BROKEN = LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError


class ModelFileError(ValueError):
    """A model file that can not be read: truncated, damaged, foreign, of another kind or a newer version.

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
    """The array itself; of a bfloat16 one its bits as uint16, a view."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


@contextlib.contextmanager
def whole(path, what):
    """Errors inside become a `ModelFileError`: the file `path` does not hold a whole `what`."""
    try:
        yield
    except ModelFileError:
        raise
    except BROKEN as error:
        raise ModelFileError(f"{path} does not hold a whole {what} ({error})") from error


# ------------------------------------------------------------ writing


def save(path, kind, arrays, description):
    """Write NumPy `arrays` (name -> array) and a JSON-able `description`; equal ones give equal bytes.

    bfloat16 arrays are stored as their `bits`. The file appears, or is replaced, once it is complete: see
    `files.writing`.
    """
    metadata, arrays = {"format": FORMAT, "version": str(VERSION), "kind": kind}, dict(arrays)
    text = json.dumps(description, ensure_ascii=False)
    if len(text) <= MOST_DESCRIPTION:
        metadata["description"] = text
    else:
        arrays[DESCRIPTION] = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    names = sorted(arrays, key=lambda name: (-bits(arrays[name]).itemsize, name))  # so all of them are aligned
    header = _header(metadata, {name: bits(arrays[name]) for name in names})
    with files.writing(path) as file:
        file.write(header)
        for name in names:
            file.write(np.ascontiguousarray(bits(arrays[name])).reshape(-1).view(np.uint8))


def _header(metadata, arrays):
    """The beginning of a file with these arrays in this order."""
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
    """Where an array lies in a file."""

    dtype: np.dtype
    shape: tuple
    start: int

    @property
    def nbytes(self):
        return self.dtype.itemsize * math.prod(self.shape)


class Arrays(Mapping):
    """The arrays of a file by name; each is read when it is asked for, so that a large model is never held twice."""

    def __init__(self, path, file, stored):
        self._path, self._file, self._stored = path, file, stored
        weakref.finalize(self, file.close)

    def __getitem__(self, name):
        stored = self._stored[name]
        array = np.empty(stored.shape, stored.dtype)
        self._file.seek(stored.start)
        if self._file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
            raise ModelFileError(
                f"{self._path} is truncated or no safetensors file (it has been cut while it was read)"
            )
        return array

    def __iter__(self):
        return iter(self._stored)

    def __len__(self):
        return len(self._stored)

    def mapped(self, name):
        """The array, memory-mapped: pages are read when they are touched, and copied when they are written to."""
        stored = self._stored[name]
        if not stored.nbytes or stored.start % stored.dtype.itemsize:
            return self[name]
        return np.asarray(np.memmap(self._file, stored.dtype, "c", stored.start, stored.shape))

    def check_shapes(self, shapes):
        """KeyError or ValueError where the arrays named in `shapes` are others: before any memory is taken for them."""
        for name, shape in shapes.items():
            if self._stored[name].shape != tuple(shape):
                raise ValueError(f"{name} must have shape {tuple(shape)}, got {self._stored[name].shape}")


def _read_header(file):
    """The JSON object at the beginning of a file, and where the data begins; ValueError for anything else."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MOST_HEADER):
        raise ValueError("no header")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    return header, 8 + length, size


def _read_stored(header, start, size):
    """{name: `_Stored`} of a header; ValueError where the arrays do not fill the file from `start` to `size`, one by one."""
    stored = {}
    for name, about in header.items():
        dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
        if dtype not in DTYPES or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
            raise ValueError(f"{name} has dtype {dtype}, shape {shape}, offsets {offsets}"[:200])
        stored[name] = one = _Stored(np.dtype(DTYPES[dtype]), tuple(shape), start + offsets[0])
        if len(shape) > 8 or offsets != [offsets[0], offsets[0] + one.nbytes]:
            raise ValueError(f"{name} has shape {shape}, but offsets {offsets}"[:200])
    end = start
    for one in sorted(stored.values(), key=lambda one: (one.start, one.nbytes)):
        if one.start != end:
            raise ValueError("the arrays do not lie one behind the other")
        end += one.nbytes
    if end != size:
        raise ValueError(f"the arrays end at byte {end}, the file at {size}")
    return stored


def _open(path):
    """(`Arrays`, kind, description); FileNotFoundError or ModelFileError where that can not be."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no model file {path}")
    stored = {}
    file = open(path, "rb")  # noqa: SIM115  the arrays are read from it as they are asked for
    arrays = Arrays(path, file, stored)
    try:
        header, start, size = _read_header(file)
        metadata = header.pop("__metadata__", {})
        stored |= _read_stored(header, start, size)
    except BROKEN as error:
        raise ModelFileError(f"{path} is truncated or no safetensors file ({error})") from error
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
            raise ValueError("the description is no object")
    except BROKEN as error:
        raise ModelFileError(f"{path} has no whole description ({error})") from error
    stored.pop(DESCRIPTION, None)
    return arrays, kind, description


def kind_of(path):
    """What kind of model a file holds; errors as for `load`."""
    return _open(path)[1]


def load(path, kind):
    """Open (`Arrays` by name, description); FileNotFoundError or ModelFileError where that can not be."""
    arrays, found, description = _open(path)
    if found != kind:
        raise ModelFileError(f"{path} holds a {found!r} model, not {kind!r}")
    return arrays, description
