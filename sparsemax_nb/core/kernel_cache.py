"""Compiled kernels on disk: a file for each kernel and signature, named by the content of all that is compiled into it.

Numba's own cache compares the source file of a kernel alone: an edit of ``core/formulas.py``, which is compiled into
kernels of many files, would go unnoticed. It also needs a folder that can be written, or refuses to decorate a function
at all. And two processes that compile one kernel for different types at once may number their files alike, so that one
of them later loads the code of the other. Here the name of a file is a hash of everything that its code depends on:
what is found is right, whoever wrote it, and several checkouts can share a folder.
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
#: When the source files had the content that is compiled here, or an older one.
IMPORTED = time.time()
#: Where kernels lie if NUMBA_CACHE_DIR does not say where: removed together with Python's own compiled files.
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
    """The source files whose content decides on the kernels of `path`: itself, and what it imports from this package."""
    found, new = set(), {Path(path).resolve()}
    while new:
        found |= new
        new = {file for file in new for file in _imported(file)} - found
    return sorted(found)


@functools.cache
def _fingerprint(path):
    """A hash of these files, and of the compilers' versions and options; None where a file has changed since it was imported."""
    if any(file.stat().st_mtime > IMPORTED for file in sources(path)):
        return None
    options = numba.config.OPT, numba.config.BOUNDSCHECK, sys.implementation.cache_tag, platform.machine()
    found = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, options)).encode())
    for file in sources(path):
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


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
    """(folders that kernels are looked for in, the one that they are written to, or None)."""
    candidates = _candidates(wanted)
    return candidates, next(filter(_is_writable, candidates), None)


@functools.cache
def _warn_once(reason):
    warnings.warn(
        f"compiled kernels are not kept, so every process compiles them anew, for seconds to minutes: {reason}; "
        "set the environment variable NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


class _Files:
    """What is on disk of one kernel, in place of Numba's index and numbered files."""

    def __init__(self, numbas, source, name):
        self._numbas, self._source, self._name = numbas, source, name

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
            except Exception:  # noqa: BLE001, S112  not there, cut short, of a pickle that is not ours: compiled anew
                continue
            if stored == key:
                return data
        return None

    def save(self, key, data):
        """Write the compiled code; where that fails, warn once and go on."""
        candidates, folder = _folders(numba.config.CACHE_DIR)
        if _fingerprint(self._source) is None:
            return  # the files on disk are not what was compiled
        if folder is None:
            _warn_once(f"{' and '.join(map(str, candidates))} can not be written")
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._numbas._open_for_write(str(folder / self._file(key))) as file:
                file.write(self._numbas._dump((key, data)))
        except OSError as error:
            _warn_once(f"{folder}: {error.strerror or error}")

    def flush(self):
        """Remove all code of this kernel that is kept for any signature."""
        folder = _folders(numba.config.CACHE_DIR)[1]
        for file in folder.glob(f"{self._name}-*.kernel") if folder else ():
            file.unlink(missing_ok=True)


class _Locator(caching._CacheLocator):
    """Tells Numba that every function can be cached; where, `_Files` decides."""

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
def _cache_class(numbas):
    """Numba's class of caches for one processor, but for where and under which names it keeps files."""

    class Cache(numbas):
        _impl_class = type("_Impl", (numbas._impl_class,), {"_locator_classes": [_Locator]})

        def __init__(self, py_func):
            super().__init__(py_func)
            self._cache_file = _Files(self._cache_file, py_func.__code__.co_filename, self._impl.filename_base)

    return Cache


def enable(dispatcher, numbas=caching.FunctionCache):
    """Let a function that Numba has decorated keep its compiled code; `numbas` is the class of caches of its processor."""
    dispatcher._cache = _cache_class(numbas)(dispatcher.py_func)
    return dispatcher
