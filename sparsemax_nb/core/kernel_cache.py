"""Compiled kernels on disk: one file per kernel and signature, named by a hash of all code that is compiled into it.

Numba's own cache checks only the source file of the kernel: an edit of ``core/formulas.py``, which is compiled into
kernels of many files, would go unnoticed. It also raises on decoration if no folder is writable. And two processes
that compile one kernel for different types at once may pick the same file number, so that one of them later loads the
code of the other. Here the hash covers everything that the code depends on: whatever is found is valid, and several
checkouts can share a folder.
"""

import ast
import functools
import hashlib
import os
import pickle
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import llvmlite
import numba
from numba.core import caching

PACKAGE = Path(__file__).resolve().parents[1]
#: When the sources were imported: a file that is newer than this is not what is compiled here.
IMPORTED = time.time()
#: The default folder, if NUMBA_CACHE_DIR is not set; removed together with Python's own compiled files.
IN_TREE = PACKAGE / "__pycache__" / "kernels"


def _imported(path):
    """The files of this package that the source file `path` imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1]
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == PACKAGE.name:
            base = PACKAGE.parent
        else:
            continue
        module = base.joinpath(*(node.module or "").split("."))
        for name in (module, *(module / alias.name for alias in node.names)):
            yield from (file for file in (name.with_suffix(".py"), name / "__init__.py") if file.is_file())


@functools.cache
def sources(path):
    """The source files that the kernels of `path` depend on: itself and everything it imports from this package."""
    found, new = set(), {Path(path).resolve()}
    while new:
        found |= new
        new = {file for file in new for file in _imported(file)} - found
    return sorted(found)


@functools.cache
def _fingerprint(path):
    """A hash of these files and of compiler versions and options; None if a file has changed since it was imported."""
    if any(file.stat().st_mtime > IMPORTED for file in sources(path)):
        return None
    options = numba.config.OPT, numba.config.BOUNDSCHECK, sys.implementation.cache_tag, platform.machine()
    digest = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, options)).encode())
    for file in sources(path):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _is_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _candidates(wanted):
    if wanted:
        return (Path(wanted),)
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return IN_TREE, Path(users, PACKAGE.name, "kernels")


@functools.cache
def _folders(wanted):
    """(folders to search for kernels, the folder to write them to or None)."""
    candidates = _candidates(wanted)
    return candidates, next(filter(_is_writable, candidates), None)


@functools.cache
def _warn_once(reason):
    warnings.warn(
        f"compiled kernels are not cached, so every process compiles them again, for seconds to minutes: {reason}; "
        "set the environment variable NUMBA_CACHE_DIR to a writable folder",
        RuntimeWarning,
        stacklevel=2,
    )


class _Files:
    """The files of one kernel; replaces Numba's index and numbered files."""

    def __init__(self, numba_cache, source, name):
        self._numba_cache = numba_cache
        self._source = source
        self._name = name

    def _file(self, key):
        signature, *others = key
        unique = repr((_fingerprint(self._source), str(signature), others))
        return f"{self._name}-{hashlib.sha256(unique.encode()).hexdigest()[:24]}.kernel"

    def load(self, key):
        """What `save` wrote for this key, or None."""
        if _fingerprint(self._source) is None:
            return None
        name = self._file(key)
        for folder in _folders(numba.config.CACHE_DIR)[0]:
            try:
                stored, data = pickle.loads((folder / name).read_bytes())
            except Exception:  # noqa: BLE001, S112  missing, truncated or foreign: compile again
                continue
            if stored == key:
                return data
        return None

    def save(self, key, data):
        """Write the compiled code; if that fails, warn once and continue."""
        candidates, folder = _folders(numba.config.CACHE_DIR)
        if _fingerprint(self._source) is None:
            return  # the files on disk differ from what was compiled
        if folder is None:
            _warn_once(f"{' and '.join(map(str, candidates))} cannot be written")
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._numba_cache._open_for_write(str(folder / self._file(key))) as file:
                file.write(self._numba_cache._dump((key, data)))
        except OSError as error:
            _warn_once(f"{folder}: {error.strerror or error}")

    def flush(self):
        """Remove the cached code of this kernel for all signatures."""
        folder = _folders(numba.config.CACHE_DIR)[1]
        for file in folder.glob(f"{self._name}-*.kernel") if folder else ():
            file.unlink(missing_ok=True)


class _Locator(caching._CacheLocator):
    """Tells Numba that every function can be cached; `_Files` decides where."""

    def __init__(self, py_file):
        self._py_file = py_file

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_file)

    def ensure_cache_path(self):
        pass

    def get_cache_path(self):
        candidates, folder = _folders(numba.config.CACHE_DIR)
        return str(folder or candidates[0])

    def get_source_stamp(self):
        return None

    def get_disambiguator(self):
        return hashlib.sha256(os.path.relpath(self._py_file, PACKAGE).encode()).hexdigest()[:8]


@functools.cache
def _cache_class(numba_cache):
    """Numba's cache class for one processor, but with our folders and file names."""

    class Cache(numba_cache):
        _impl_class = type("_Impl", (numba_cache._impl_class,), {"_locator_classes": [_Locator]})

        def __init__(self, py_func):
            super().__init__(py_func)
            self._cache_file = _Files(self._cache_file, py_func.__code__.co_filename, self._impl.filename_base)

    return Cache


def enable(dispatcher, numba_cache=caching.FunctionCache):
    """Cache the compiled code of a function that Numba has decorated, with the cache class of its processor."""
    dispatcher._cache = _cache_class(numba_cache)(dispatcher.py_func)
    return dispatcher
