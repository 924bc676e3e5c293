"""Where arrays live and who computes on them. The only file that imports ``numba.cuda`` or ``cupy``.

Placement follows the data: NumPy arrays are computed by ``cpu/``, CUDA arrays by ``cuda/``. In Numba's simulator
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

# A batch of a few rows is a legal launch: no warning for each small grid. Set here and not by the environment variable,
# which is read when Numba is imported, and somebody else may have done that already.
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

SIMULATOR = bool(numba.config.ENABLE_CUDASIM)
if SIMULATOR:

    def cuda_intrinsic(function):
        """Numba's simulator runs no intrinsics: kernels that use them have a plain twin, which it runs."""
        return function
else:
    from numba.cuda.extending import intrinsic as cuda_intrinsic  # noqa: F401

try:
    import cupy
except ImportError:
    cupy = None


class SimArray(np.ndarray):
    """A NumPy array that counts as placed on the (simulated) CUDA device; only used in Numba's simulator."""


#: The array module of the CUDA side: CuPy on a device, NumPy in the simulator or where CuPy is not installed.
xp = np if SIMULATOR or cupy is None else cupy

njit_inline = numba.njit(inline="always")


def njit(function=None, **options):
    """`numba.njit`, with compiled code that is kept on disk."""
    if function is None:
        return functools.partial(njit, **options)
    return kernel_cache.enable(numba.njit(**options)(function))


def njit_parallel(function=None, *, work=None, **options):
    """`njit` of a function whose ``prange`` loops the threads share; see `threads.ParallelKernel`, for `work`, too."""
    if function is None:
        return functools.partial(njit_parallel, work=work, **options)
    kernel = njit(function, parallel=True, **options)
    kernel.__class__, kernel.work = threads.ParallelKernel, work
    return kernel


def cuda_jit(function=None, **options):
    """`numba.cuda.jit`, with compiled code that is kept on disk."""
    if function is None:
        return functools.partial(cuda_jit, **options)
    if SIMULATOR:
        return cuda.jit(**options)(function)
    from numba.cuda.dispatcher import CUDACache

    return kernel_cache.enable(cuda.jit(**options)(function), CUDACache)


#: Device functions are inlined: without that, compiling one asks for a driver.
cuda_device = cuda.jit(device=True, inline="always")


@functools.cache
def cuda_problem():
    """None where the CUDA path can run, else a sentence that says why it can not."""
    if SIMULATOR:
        return None
    if not cuda.is_available():
        return "no CUDA device and driver were found"
    if cupy is None:
        return "CuPy is not installed (pip install 'sparsemax-nb[cuda12]' or '[cuda13]')"
    return None


def runs_ptx(said=None):
    """True where kernels may use shuffles and the intrinsics of ``cuda/ptx.py``, which the simulator can not run; or what is `said`."""
    return not SIMULATOR if said is None else said


def has_tensor_cores(said=None):
    """True where a CUDA device multiplies bfloat16 on tensor cores (compute capability 8.0), or what is `said`; else plain kernels do."""
    if said is not None:
        return said
    return not SIMULATOR and cuda.is_available() and cuda.get_current_device().compute_capability >= (8, 0)


def cuda_description():
    """Name, compute capability and memory of the CUDA device in use, and which products it can take."""
    if SIMULATOR:
        return "Numba's CUDA simulator"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    memory = cuda.current_context().get_memory_info().total / 2**30
    products = "tensor cores for bfloat16" if has_tensor_cores() else "no tensor cores for bfloat16: plain kernels"
    capability = ".".join(map(str, device.compute_capability))
    return f"{name}, compute capability {capability}, {memory:.0f} GiB, {products}"


def cuda_available():
    """True where arrays can be placed on a CUDA device (or on Numba's simulator of one)."""
    return cuda_problem() is None


def resolve_device(device="auto"):
    """Turn 'auto', 'cpu' or 'cuda' into 'cpu' or 'cuda'; RuntimeError where 'cuda' is asked for and can not run."""
    if not isinstance(device, str) or device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not cuda_available():
        raise RuntimeError(f"device='cuda' can not be used: {cuda_problem()}; use device='cpu'")
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
    """`x` on `device` ('cpu' or 'cuda'), C-contiguous, copied only where it has to be."""
    if device == "cpu":
        return np.ascontiguousarray(to_numpy(x), dtype)
    if not cuda_available():
        raise RuntimeError(f"no array can be placed on CUDA: {cuda_problem()}")
    if SIMULATOR:
        return np.ascontiguousarray(x, dtype).view(SimArray)
    return cupy.ascontiguousarray(cupy.asarray(x, dtype))


def as_native(array):
    """A foreign CUDA array (Numba, PyTorch) as CuPy sees it, without a copy; NumPy arrays and SimArrays unchanged."""
    return array if isinstance(array, np.ndarray) or cupy is None else cupy.asarray(array)


def to_numpy(x):
    """`x` as a plain NumPy array (copied from the device where it lives there)."""
    if isinstance(x, SimArray):
        return x.view(np.ndarray)
    if cupy is not None and hasattr(x, "__cuda_array_interface__"):
        return cupy.asnumpy(cupy.asarray(x))
    return np.asarray(x)


def address(array):
    """Where the first number of an array lies in its processor's memory."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.__cuda_array_interface__["data"][0]


#: Bytes of a cache line.
LINE = 64


def _allocated(make, shape, dtype):
    """``make(shape, dtype)``; MemoryError also for sizes that are none to NumPy."""
    try:
        return make(shape, dtype)
    except (ValueError, MemoryError) as error:
        raise MemoryError(
            f"unable to allocate an array of shape {shape} and type {np.dtype(dtype)}: {error}"
        ) from error


def aligned(make, shape, dtype=np.float32):
    """``make(shape, dtype)`` (np.empty or np.zeros) at a multiple of 64 bytes.

    NumPy's own arrays begin 16 bytes into a cache line: every vector would straddle two lines and be read twice.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = _allocated(make, size + LINE - 1, np.uint8)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % LINE  # `buffer.ctypes` is slower
    return buffer[start : start + size].view(dtype).reshape(shape)


def empty(shape, dtype, device):
    """Uninitialised array on `device`; a matrix on the CPU begins with a cache line."""
    if device == "cpu":
        return aligned(np.empty, shape, dtype) if isinstance(shape, tuple) else _allocated(np.empty, shape, dtype)
    array = xp.empty(shape, dtype)
    return array.view(SimArray) if SIMULATOR else array


def zeros(shape, dtype, device):
    """Array of zeros on `device`."""
    array = _allocated(module_of(device).zeros, shape, dtype)
    return array.view(SimArray) if SIMULATOR and device == "cuda" else array


@functools.cache
def backend_of(device, name):
    """The module `name` of the wing that computes on `device`: ``sparsemax_nb.cpu.NAME`` or ``sparsemax_nb.cuda.NAME``."""
    return importlib.import_module(f"{__package__.rpartition('.')[0]}.{device}.{name}")


def product(a, b):
    """``a @ b``, float32 matrices on one device: a new array."""
    device = device_of(a)
    out = empty((a.shape[0], b.shape[1]), np.float32, device)
    backend_of(device, "matmul").matmul(a, b, out)
    return out


def _compile_formulas(module, decorate):
    """A copy of a module of undecorated scalar functions, each compiled by `decorate` and calling compiled ones."""
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
    """A sparse matrix around arrays that lie on one device, not copied: SciPy's, or CuPy's with cuSPARSE behind it."""
    if device_of(values) == "cpu" or SIMULATOR:
        return scipy.sparse.csr_matrix(tuple(map(to_numpy, (values, indices, indptr))), shape)
    from cupyx.scipy import sparse  # slow to import

    return sparse.csr_matrix((values, indices, indptr), shape)


@contextlib.contextmanager
def profiled():
    """What CUDA does inside lies between a profiler's start and stop (nothing in the simulator)."""
    synchronize()
    if not SIMULATOR:
        cuda.profile_start()
    yield
    synchronize()
    if not SIMULATOR:
        cuda.profile_stop()


def synchronize():
    """Wait until the CUDA device has finished (nothing to wait for in the simulator)."""
    if cupy is not None and not SIMULATOR and cuda_available():
        cupy.cuda.get_current_stream().synchronize()
