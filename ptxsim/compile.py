"""Compile numba.cuda kernels to PTX without a driver, and flatten launch arguments."""

import contextlib
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import numpy as np


class _Nvrtc:
    """Stands in for numba-cuda's compiler wrapper, whose own path asks for a driver."""

    def __init__(self, source, _language, options=None):
        self.source, self.options = source, options

    def compile(self, _kind, logs=None):
        from cuda.bindings import nvrtc

        options = self.options.as_bytes("nvrtc")
        _, prog = nvrtc.nvrtcCreateProgram(self.source.encode(), b"device_functions.cu", 0, [], [])
        (error,) = nvrtc.nvrtcCompileProgram(prog, len(options), options)
        if error:
            log = b" " * nvrtc.nvrtcGetProgramLogSize(prog)[1]
            nvrtc.nvrtcGetProgramLog(prog, log)
            raise RuntimeError(log.decode())
        text = b" " * nvrtc.nvrtcGetPTXSize(prog)[1]
        nvrtc.nvrtcGetPTX(prog, text)
        return text.rstrip(b"\0 ").decode()


@contextlib.contextmanager
def _no_driver(cc):
    """Let device functions and their C++ parts compile for `cc` with no device present."""
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvrtc

    device = mock.Mock(compute_capability=cc)
    with (
        mock.patch.object(dispatcher, "get_current_device", return_value=device),
        mock.patch.object(nvrtc, "Program", _Nvrtc),
    ):
        yield


def signature_of(args):
    """Numba types of the arguments, as a launch would infer them."""
    from numba import typeof

    return tuple(typeof(a) for a in args)


_cache = {}


def kernel_ptx(kernel, signature, cc):
    """PTX modules of a kernel: [its own, then any linked device functions]."""
    from numba.cuda.compiler import compile_all

    func = getattr(kernel, "py_func", kernel)
    options = getattr(kernel, "targetoptions", {})
    debug = bool(options.get("debug"))
    choice = {
        "fastmath": options.get("fastmath", False), "debug": debug, "lineinfo": not debug,
        "opt": bool(options.get("opt", True)), "launch_bounds": options.get("launch_bounds"),
    }  # fmt: skip
    key = (func, signature, cc, tuple(choice.values()))
    if key not in _cache:
        with _no_driver(cc), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not find source")
            codes, _ = compile_all(func, signature, device=False, abi="numba", cc=cc, output="ptx", **choice)
        if not all(isinstance(c, str) for c in codes):
            raise NotImplementedError("the kernel links object code; only PTX can be interpreted")
        _cache[key] = [c for c in codes if c]
    return _cache[key]


def find_ptxas():
    found = shutil.which("ptxas")
    if found:
        return found
    with contextlib.suppress(ImportError):
        import nvidia

        for root in nvidia.__path__:
            for path in Path(root).glob("*/bin/ptxas"):
                return str(path)
    return None


def ptxas_resources(modules, cc):
    """Registers, spills and shared memory from ptxas, or None when it cannot tell."""
    tool = find_ptxas()
    if tool is None or len(modules) != 1:
        return None
    with tempfile.TemporaryDirectory() as tmp:
        source = Path(tmp) / "kernel.ptx"
        source.write_text(modules[0])
        command = [tool, "-v", f"-arch=sm_{cc[0]}{cc[1]}", str(source), "-o", str(Path(tmp) / "kernel.cubin")]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return None

    def number(pattern):
        found = re.search(pattern, run.stdout + run.stderr)
        return int(found[1]) if found else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "stack_bytes": number(r"(\d+) bytes stack frame"),
        "spill_store_bytes": number(r"(\d+) bytes spill stores"),
        "spill_load_bytes": number(r"(\d+) bytes spill loads"),
        "shared_bytes": number(r"(\d+) bytes smem"),
    }


def address(value):
    """Host address of an array or record."""
    return value.__array_interface__["data"][0]


def skew(array, low):
    """Offset of a view in its base array, modulo 256: what a slice of a device array keeps.

    Unaligned arrays exist only on the host; their copy on the device is aligned.
    """
    if not array.flags.aligned:
        return 0
    while isinstance(array.base, np.ndarray):
        array = array.base
    return max(0, low - address(array)) % 256


def host_ranges(args):
    """Merge the memory ranges of all array arguments: [(low, high, name, writeable, skew)]."""
    ranges = []

    def visit(value, name):
        if isinstance(value, np.ndarray):
            low, high = np.lib.array_utils.byte_bounds(value) if value.size else (address(value),) * 2
            ranges.append((low, high, name, value.flags.writeable, skew(value, low)))
        elif isinstance(value, np.void):
            low = address(value)
            ranges.append((low, low + value.nbytes, name, True, 0))
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                visit(item, f"{name}[{i}]")

    for i, arg in enumerate(args):
        visit(arg, f"arg{i}")
    merged = []
    for low, high, name, writeable, offset in sorted(ranges):
        if merged and low < merged[-1][1]:
            last = merged[-1]
            names = last[2] if name in last[2].split("/") else f"{last[2]}/{name}"
            merged[-1] = (last[0], max(high, last[1]), names, writeable or last[3], last[4])
        else:
            merged.append((low, high, name, writeable, offset))
    return merged


def flatten_argument(value, type_, address_of):
    """Bytes of the kernel parameters that one argument becomes."""
    from numba.core import types

    if isinstance(value, np.ndarray):
        words = [0, 0, value.size, value.dtype.itemsize, address_of(value), *value.shape, *value.strides]
        return [np.array([w], np.int64).tobytes() for w in words]
    if isinstance(value, np.void):
        return [np.array([address_of(value)], np.int64).tobytes()]
    if isinstance(type_, types.EnumMember):
        return flatten_argument(value.value, type_.dtype, address_of)
    if isinstance(type_, (types.NPDatetime, types.NPTimedelta)):
        return [value.view(np.int64).tobytes()]
    if isinstance(type_, types.BaseTuple):
        inner = type_.types if hasattr(type_, "types") else [type_.dtype] * len(value)
        return [b for v, t in zip(value, inner, strict=True) for b in flatten_argument(v, t, address_of)]
    if isinstance(type_, types.Boolean):
        return [np.array([bool(value)], np.uint8).tobytes()]
    if isinstance(type_, types.Complex):
        part = np.dtype(str(type_.underlying_float))
        return [np.array([v], part).tobytes() for v in (value.real, value.imag)]
    if isinstance(type_, (types.Integer, types.Float)):
        return [np.array([value]).astype(str(type_)).tobytes()]
    raise TypeError(f"unsupported kernel argument {type(value).__name__} ({type_})")
