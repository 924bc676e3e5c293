"""Where arrays live and which backend computes on them. The only file that imports ``numba.cuda`` or ``cupy``.

Placement follows the data: ``cpu/`` computes on NumPy arrays, ``cuda/`` on CUDA arrays. In Numba's simulator
(``NUMBA_ENABLE_CUDASIM=1``) a `SimArray` stands for a CUDA array, so that all CUDA code runs without a GPU.
"""

import contextlib
import ctypes
import functools
import importlib
import math
import types

import numba
import numpy as np
import scipy.sparse
from numba import cuda

from . import kernel_cache, threads

# A batch of a few rows is a valid launch: Numba must not warn about each small grid. Set here because Numba reads the
# environment variable on import, which may have happened already.
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

SIMULATOR = bool(numba.config.ENABLE_CUDASIM)
if SIMULATOR:

    def cuda_intrinsic(function):
        """Intrinsics do not run in Numba's simulator: kernels that use them have a plain version for it."""
        return function
else:
    from numba.cuda.extending import intrinsic as cuda_intrinsic  # noqa: F401

try:
    import cupy
except ImportError:
    cupy = None


class SimArray(np.ndarray):
    """A NumPy array that counts as placed on the simulated CUDA device; used in Numba's simulator only."""


#: The array module of the CUDA backend: CuPy on a device, NumPy in the simulator or without CuPy.
xp = np if SIMULATOR or cupy is None else cupy

njit_inline = numba.njit(inline="always")


def njit(function=None, **options):
    """`numba.njit` with compiled code cached on disk."""
    if function is None:
        return functools.partial(njit, **options)
    return kernel_cache.enable(numba.njit(**options)(function))


def njit_parallel(function=None, *, work=None, **options):
    """`njit` of a function with ``prange`` loops, called through `threads.ParallelKernel`, which explains `work`."""
    if function is None:
        return functools.partial(njit_parallel, work=work, **options)
    kernel = njit(function, parallel=True, **options)
    kernel.__class__, kernel.work = threads.ParallelKernel, work
    return kernel


def cuda_jit(function=None, **options):
    """`numba.cuda.jit` with compiled code cached on disk."""
    if function is None:
        return functools.partial(cuda_jit, **options)
    if SIMULATOR:
        return cuda.jit(**options)(function)
    from numba.cuda.dispatcher import CUDACache

    return kernel_cache.enable(cuda.jit(**options)(function), CUDACache)


#: Device functions are inlined: otherwise compiling one requires a CUDA driver.
cuda_device = cuda.jit(device=True, inline="always")


@functools.cache
def cuda_problem():
    """None if the CUDA backend can run, else a sentence that says why it cannot."""
    if SIMULATOR:
        return None
    if not cuda.is_available():
        return "no CUDA device and driver were found"
    if cupy is None:
        return "CuPy is not installed (pip install 'sparsemax-nb[cuda12]' or '[cuda13]')"
    return None


def runs_ptx(override=None):
    """Whether kernels may use shuffles and the intrinsics of ``cuda/ptx.py``: not in the simulator; or `override`."""
    return not SIMULATOR if override is None else override


def has_tensor_cores(override=None):
    """Whether the CUDA device multiplies bfloat16 on tensor cores (compute capability 8.0 or higher); or `override`."""
    if override is not None:
        return override
    return not SIMULATOR and cuda.is_available() and cuda.get_current_device().compute_capability >= (8, 0)


def cuda_description():
    """Name, compute capability, memory and tensor cores of the current CUDA device."""
    if SIMULATOR:
        return "Numba's CUDA simulator"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    memory = cuda.current_context().get_memory_info().total / 2**30
    products = "tensor cores for bfloat16" if has_tensor_cores() else "no tensor cores for bfloat16: plain kernels"
    capability = ".".join(map(str, device.compute_capability))
    return f"{name}, compute capability {capability}, {memory:.0f} GiB, {products}"


def cuda_available():
    """Whether arrays can be placed on a CUDA device, real or simulated."""
    return cuda_problem() is None


def resolve_device(device="auto"):
    """Turn 'auto', 'cpu' or 'cuda' into 'cpu' or 'cuda'; RuntimeError if 'cuda' is requested but cannot run."""
    if not isinstance(device, str) or device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not cuda_available():
        raise RuntimeError(f"device='cuda' cannot be used: {cuda_problem()}; use device='cpu'")
    if device == "auto":
        return "cuda" if cuda_available() and not SIMULATOR else "cpu"
    return device


def device_of(array):
    """'cpu' for NumPy arrays, 'cuda' for CUDA arrays (or `SimArray`), None for anything else."""
    if isinstance(array, SimArray):
        return "cuda"
    if isinstance(array, np.ndarray):
        return "cpu"
    return "cuda" if hasattr(array, "__cuda_array_interface__") else None


def module_of(device):
    """The array module of a device: NumPy for 'cpu', `xp` for 'cuda'."""
    return np if device == "cpu" else xp


def asarray(x, device, dtype=None):
    """`x` on `device` ('cpu' or 'cuda'), C-contiguous; copied only if necessary."""
    if device == "cpu":
        return np.ascontiguousarray(to_numpy(x), dtype)
    if not cuda_available():
        raise RuntimeError(f"cannot place an array on CUDA: {cuda_problem()}")
    if SIMULATOR:
        return np.ascontiguousarray(x, dtype).view(SimArray)
    return cupy.ascontiguousarray(cupy.asarray(x, dtype))


def as_native(array):
    """A foreign CUDA array (Numba, PyTorch) as CuPy array, without a copy; NumPy arrays and SimArrays unchanged."""
    return array if isinstance(array, np.ndarray) or cupy is None else cupy.asarray(array)


def to_numpy(x):
    """`x` as a plain NumPy array, copied from the device if necessary."""
    if isinstance(x, SimArray):
        return x.view(np.ndarray)
    if cupy is not None and hasattr(x, "__cuda_array_interface__"):
        return cupy.asnumpy(cupy.asarray(x))
    return np.asarray(x)


def address(array):
    """The memory address of the first element of an array."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.__cuda_array_interface__["data"][0]


#: Bytes per cache line.
LINE = 64


def _allocate(make, shape, dtype):
    """``make(shape, dtype)``; MemoryError also for sizes that NumPy rejects with a ValueError."""
    try:
        return make(shape, dtype)
    except (ValueError, MemoryError) as error:
        raise MemoryError(
            f"unable to allocate an array of shape {shape} and type {np.dtype(dtype)}: {error}"
        ) from error


def aligned(make, shape, dtype=np.float32):
    """``make(shape, dtype)`` (np.empty or np.zeros), aligned to 64 bytes.

    NumPy's own arrays begin 16 bytes into a cache line: every vector load would touch two lines.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = _allocate(make, size + LINE - 1, np.uint8)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % LINE  # faster than `buffer.ctypes`
    return buffer[start : start + size].view(dtype).reshape(shape)


def empty(shape, dtype, device):
    """Uninitialized array on `device`; a matrix on the CPU is aligned to a cache line."""
    if device == "cpu":
        return aligned(np.empty, shape, dtype) if isinstance(shape, tuple) else _allocate(np.empty, shape, dtype)
    array = xp.empty(shape, dtype)
    return array.view(SimArray) if SIMULATOR else array


def zeros(shape, dtype, device):
    """Array of zeros on `device`."""
    array = _allocate(module_of(device).zeros, shape, dtype)
    return array.view(SimArray) if SIMULATOR and device == "cuda" else array


@functools.cache
def backend_of(device, name):
    """The module `name` of the backend for `device`: ``sparsemax_nb.cpu.NAME`` or ``sparsemax_nb.cuda.NAME``."""
    return importlib.import_module(f"{__package__.rpartition('.')[0]}.{device}.{name}")


def product(a, b):
    """``a @ b`` as a new array, for float32 matrices on one device."""
    device = device_of(a)
    out = empty((a.shape[0], b.shape[1]), np.float32, device)
    backend_of(device, "matmul").matmul(a, b, out)
    return out


def _compile_formulas(module, decorate):
    """The scalar functions of an undecorated module, each compiled by `decorate`; they call each other compiled."""
    compiled = {}
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            copy = types.FunctionType(value.__code__, {**vars(module), **compiled}, name, value.__defaults__)
            copy.__module__, copy.__doc__ = value.__module__, value.__doc__
            compiled[name] = decorate(copy)
    return types.SimpleNamespace(**compiled)


@functools.cache
def cpu_formulas(module):
    """The scalar functions of `module` compiled for the CPU."""
    return _compile_formulas(module, njit_inline)


@functools.cache
def cuda_formulas(module):
    """The scalar functions of `module` compiled as CUDA device functions."""
    return _compile_formulas(module, cuda_device)


def csr_matrix(values, indices, indptr, shape):
    """A CSR matrix around arrays of one device, without copies: SciPy's, or CuPy's, which uses cuSPARSE."""
    if device_of(values) == "cpu" or SIMULATOR:
        return scipy.sparse.csr_matrix(tuple(map(to_numpy, (values, indices, indptr))), shape)
    from cupyx.scipy import sparse  # slow to import

    return sparse.csr_matrix((values, indices, indptr), shape)


@contextlib.contextmanager
def profiled():
    """A profiler records the CUDA work of this block (no effect in the simulator)."""
    synchronize()
    if not SIMULATOR:
        cuda.profile_start()
    yield
    synchronize()
    if not SIMULATOR:
        cuda.profile_stop()


def synchronize():
    """Wait until the CUDA device has finished (no effect in the simulator)."""
    if cupy is not None and not SIMULATOR and cuda_available():
        cupy.cuda.get_current_stream().synchronize()
