"""Kernels compiled to PTX without a device; the front end runs once for each signature, for all architectures.

Numba's types and its LLVM code do not depend on the compute capability; NVVM, which is the last step and the fastest,
does. The PTX is cached in memory, so tests of the same kernels should run in one process, and on disk in the folder of
the kernel cache. Its file name is a hash of all that the PTX depends on.
"""

import functools
import hashlib
import os
from pathlib import Path

import numba_cuda
from numba import typeof
from numba.cuda.compiler import _compile_pyfunc_with_fixup

from sparsemax_nb.core import files, kernel_cache


def ptx_of(kernel, args, cc):
    """A kernel for compute capability `cc` and arguments of the types of `args`, as `numba.cuda` compiles it."""
    return ptx_of_types(kernel, tuple(map(typeof, args)), cc)


@functools.cache
def ptx_of_types(kernel, types, cc):
    source, name = kernel.py_func.__code__.co_filename, kernel.py_func.__qualname__
    fingerprint, made_by = kernel_cache._fingerprint(source), numba_cuda.__version__
    unique = repr((fingerprint, made_by, name, kernel.targetoptions.get("fastmath"), list(map(str, types)), cc))
    folder = kernel_cache._folders(os.environ.get("NUMBA_CACHE_DIR"))[1]
    file = folder and Path(folder, f"{name}-{hashlib.sha256(unique.encode()).hexdigest()[:24]}.ptx")
    if fingerprint is not None and file is not None and file.exists():
        return file.read_text()
    (ptx,) = _front_end(kernel, types).get_asm_strs(cc=cc)
    if fingerprint is not None and file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.writing(file) as stream:
            stream.write(ptx.encode())
    return ptx


@functools.cache
def _front_end(kernel, types):
    """Numba's library of a kernel, from which PTX for any compute capability can be made."""
    fastmath = bool(kernel.targetoptions.get("fastmath"))
    options = {"device": False, "abi": "numba", "fastmath": fastmath, "cc": (9, 0)}
    return _compile_pyfunc_with_fixup(kernel.py_func, types, **options)[0]
