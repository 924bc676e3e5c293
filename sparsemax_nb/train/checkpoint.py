"""Models on disk: safetensors with a JSON description in the header."""

import json
import os
import tempfile

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = "sparsemax_nb"
VERSION = 1


class ModelFileError(ValueError):
    """A model file that can not be read: truncated, foreign, of another kind or a newer version."""


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(path, kind, arrays, description):
    """Write NumPy `arrays` (name -> array) and a JSON-able `description` to a temporary file, then rename it to `path`."""
    header = {"format": FORMAT, "version": str(VERSION), "kind": kind, "description": json.dumps(description)}
    folder = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, metadata=header)
        os.chmod(temporary, 0o666 & ~_umask())  # temporary files are made for their owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path, kind):
    """Read (arrays, description); FileNotFoundError or ModelFileError where that can not be."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no model file {path}")
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ModelFileError(f"{path} was not written by sparsemax_nb")
            if int(header["version"]) > VERSION:
                raise ModelFileError(
                    f"{path} has format version {header['version']}, this package reads up to {VERSION}: update it"
                )
            if header["kind"] != kind:
                raise ModelFileError(f"{path} holds a {header['kind']!r} model, not {kind!r}")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["description"])  # noqa: SIM118
    except SafetensorError as error:
        raise ModelFileError(f"{path} is truncated or no safetensors file ({error})") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path} has no whole description ({error})") from error
