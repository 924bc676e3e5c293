"""bfloat16 on the CPU."""

import numpy as np
from numba import prange

from ..core import backend

#: Numbers that a thread converts before it takes others.
RUN = 1 << 14


@backend.njit
def _widen_run(bits, out):
    for i in range(bits.size):
        out[i] = np.int32(bits[i]) << 16


@backend.njit_parallel
def _widen(bits, out):
    n = bits.size
    for part in prange((n + RUN - 1) // RUN):
        start, stop = part * RUN, min((part + 1) * RUN, n)
        _widen_run(bits[start:stop], out[start:stop])


def widen(bits, out):
    """The float32 numbers of bfloat16 `bits` (uint16), both one-dimensional: exact."""
    _widen(bits, out.view(np.int32))
