"""Models on disk: safetensors with a JSON description in the header."""

import json
import os
import shutil
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = "sparsemax_nb"
VERSION = 2
#: Of the arrays that can be memory-mapped, by their names in a file.
DTYPES = {"F32": np.float32, "I32": np.int32}


class ModelFileError(ValueError):
    """A model file that can not be read: truncated, foreign, of another kind or a newer version.

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


def save(path, kind, arrays, description):
    """Write NumPy `arrays` (name -> array) and a JSON-able `description` into the folder `path`.part, then move it to `path`.

    bfloat16 arrays are stored as their `bits`, which safetensors can read again. It writes into a file of its own, with a
    name that it draws, and renames that: in a folder of ours, what a process that was killed left behind can be found, and
    goes the next time.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} can not be written: it is a folder; name a file in it")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise FileNotFoundError(f"{path} can not be written: there is no such folder")
    header = {"format": FORMAT, "version": str(VERSION), "kind": kind, "description": json.dumps(description)}
    folder = f"{os.fspath(path)}.part"
    temporary = os.path.join(folder, "whole")
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    try:
        with open(temporary, "wb") as file:  # for the rights of a new file: safetensors makes it for its owner alone
            mode = os.fstat(file.fileno()).st_mode & 0o777
        save_file(
            {name: np.ascontiguousarray(bits(array)) for name, array in arrays.items()}, temporary, metadata=header
        )
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(folder)


class _Arrays(Mapping):
    """The arrays of a file by name; each is read when it is asked for, so that a large model is never held twice."""

    def __init__(self, file):
        self._file, self._names = file, tuple(file.keys())

    def __getitem__(self, name):
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


def _open(path):
    """The file and its header; FileNotFoundError or ModelFileError where that can not be."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no model file {path}")
    try:
        file = safe_open(path, framework="np")
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise ModelFileError(f"{path} was not written by sparsemax_nb")
        if int(header["version"]) != VERSION:
            raise ModelFileError(f"{path} has format version {header['version']}, this package reads version {VERSION}")
        return file, {"kind": header["kind"], "description": json.loads(header["description"])}
    except SafetensorError as error:
        raise ModelFileError(f"{path} is truncated or no safetensors file ({error})") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path} has no whole description ({error})") from error


def kind_of(path):
    """What kind of model a file holds; errors as for `load`."""
    return _open(path)[1]["kind"]


def load(path, kind):
    """Open (arrays by name, description); FileNotFoundError or ModelFileError where that can not be."""
    file, header = _open(path)
    if header["kind"] != kind:
        raise ModelFileError(f"{path} holds a {header['kind']!r} model, not {kind!r}")
    return _Arrays(file), header["description"]


def load_mapped(path, kind):
    """The same, with arrays that are memory-mapped: pages are read when they are touched, and copied when written to."""
    _, description = load(path, kind)
    raw = np.memmap(path, np.uint8, "c")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    arrays = {}
    for name, about in json.loads(raw[8:start].tobytes()).items():
        if name != "__metadata__":
            first, stop = about["data_offsets"]
            part = np.asarray(raw[start + first : start + stop])
            arrays[name] = part.view(DTYPES[about["dtype"]]).reshape(about["shape"])
    return arrays, description
