"""bfloat16 on CUDA."""

import numpy as np

from ..core import rng
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit
from . import launch

random_words = cuda_formulas(rng).random_words
STREAM = rng.ROUNDING
HALVES = np.uint64(8)


def bits_of(values):
    """Bits of float32 `values` or bfloat16 ones (uint16), and how far to the left they belong in a float32: for kernels."""
    return (values, np.int32(16)) if values.dtype == np.uint16 else (values.view(np.int32), np.int32(0))


@cuda_device
def random_half(rounding, position):
    """The 16 random bits for the weight at `position`."""
    a, b, c, d = random_words(rounding.seed, STREAM, rounding.step, position // HALVES)
    place = np.uint32(position % HALVES)
    word = a
    if place >= 6:
        word = d
    elif place >= 4:
        word = c
    elif place >= 2:
        word = b
    return np.uint32(word >> np.uint64(16)) if place % 2 else np.uint32(word & np.uint64(0xFFFF))


@cuda_jit
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
