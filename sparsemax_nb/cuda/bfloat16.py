"""bfloat16 on CUDA."""

import numpy as np

from ..core import backend
from ..core.backend import cuda
from . import launch


def bits_of(values):
    """Bits of float32 `values` or bfloat16 ones (uint16), and how far to the left they belong in a float32: for kernels."""
    return (values, np.int32(16)) if values.dtype == np.uint16 else (values.view(np.int32), np.int32(0))


@backend.cuda_jit
def widen_kernel(bits, out):
    """A thread owns one number: bits (n,) uint16, out (n,) int32, the bits of a float32; coalesced.

    Grid: flat. No shared memory, no atomics.
    """
    i = cuda.grid(1)
    if i < bits.shape[0]:
        out[i] = np.int32(bits[i]) << 16


def widen(bits, out, *, block=launch.BLOCK):
    """The float32 numbers of bfloat16 `bits` (uint16), both one-dimensional: exact."""
    grid, block = launch.flat(bits.shape[0], block)
    widen_kernel[grid, block](bits, out.view(np.int32))
