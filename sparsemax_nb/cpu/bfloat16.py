"""bfloat16 on the CPU."""

import numpy as np
from numba import prange

from ..core import formulas, rng
from ..core.device import cpu_formulas, njit, njit_parallel

random_words, round_bits = cpu_formulas(rng).random_words, cpu_formulas(formulas).round_bits
STREAM = rng.ROUNDING
#: Numbers that one draw of four 32-bit words rounds.
HALVES = 8
#: Numbers per parallel work item: enough that its cost does not show.
RUN = 1 << 14


@njit
def _widen_run(bits, out):
    for i in range(bits.size):
        out[i] = np.int32(bits[i]) << 16


@njit_parallel
def _widen(bits, out):
    n = bits.size
    for part in prange((n + RUN - 1) // RUN):
        start, stop = part * RUN, min((part + 1) * RUN, n)
        _widen_run(bits[start:stop], out[start:stop])


def widen(bits, out):
    """The float32 numbers of bfloat16 `bits` (uint16), both one-dimensional; exact."""
    _widen(bits, out.view(np.int32))


@njit
def as_float32(values):
    """float32 `values` unchanged, or bfloat16 ones (uint16) widened to float32; one-dimensional."""
    if values.itemsize == 4:
        return values.view(np.float32)
    out = np.empty(values.size, np.float32)
    _widen_run(values.view(np.uint16), out.view(np.int32))
    return out


@njit
def _draw(rounding, first, halves):
    """Random 16-bit numbers for the positions from ``8 first`` on; a flat loop, so that the compiler vectorizes it."""
    words = halves.view(np.uint32)
    for i in range(halves.size // HALVES):
        a, b, c, d = random_words(rounding.seed, STREAM, rounding.step, np.uint64(first + i))
        words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3] = a, b, c, d


@njit
def put(numbers, rounding, first, values):
    """``values[:] = numbers`` (float32); bfloat16 values (uint16) are rounded stochastically.

    `first` is the position of values[0]. The number at position p uses half p % 8 of draw p // 8.
    """
    if values.itemsize == 4:
        values.view(np.float32)[:] = numbers
    else:
        bits, out, start = numbers.view(np.uint32), values.view(np.uint16), first // HALVES
        halves = np.empty(((first + out.size + HALVES - 1) // HALVES - start) * HALVES, np.uint16)
        _draw(rounding, start, halves)
        skipped = first - start * HALVES
        for i in range(out.size):
            out[i] = round_bits(bits[i], np.uint32(halves[skipped + i]))
