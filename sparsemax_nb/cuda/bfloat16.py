"""bfloat16 weights on CUDA: stored as uint16, computed with as float32."""

import numpy as np

from ..core import rng
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit
from . import launch

random_words = cuda_formulas(rng).random_words
STREAM = rng.ROUNDING
#: 16-bit random numbers in one Philox draw of four 32-bit words.
HALVES_PER_DRAW = np.uint64(8)


def bits_of(values):
    """(bits, shift) of weights, as kernels take them: ``bits << shift`` is the float32 bit pattern.

    float32 `values` give their own bits and shift 0; bfloat16 `values` (uint16) give shift 16.
    """
    return (values, np.int32(16)) if values.dtype == np.uint16 else (values.view(np.int32), np.int32(0))


@cuda_device
def random_half(rounding, position):
    """The 16 random bits that round the weight at `position`: one half of one word of a Philox draw."""
    a, b, c, d = random_words(rounding.seed, STREAM, rounding.step, position // HALVES_PER_DRAW)
    half = np.uint32(position % HALVES_PER_DRAW)
    word = a
    if half >= 6:
        word = d
    elif half >= 4:
        word = c
    elif half >= 2:
        word = b
    return np.uint32(word >> np.uint64(16)) if half % 2 else np.uint32(word & np.uint64(0xFFFF))


@cuda_jit
def widen_kernel(bits, out):
    """One thread owns one number: reads bits (n,) uint16, writes out (n,) int32, the bits of a float32.

    Grid: flat. Coalesced. No shared memory. No atomics.
    """
    i = cuda.grid(1)
    if i < bits.shape[0]:
        out[i] = np.int32(bits[i]) << 16


def widen(bits, out, *, block=launch.BLOCK):
    """The float32 numbers of bfloat16 `bits` (uint16); both arrays are one-dimensional. Exact."""
    grid, block = launch.flat(bits.shape[0], block)
    widen_kernel[grid, block](bits, out.view(np.int32))
