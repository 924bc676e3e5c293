"""Products of float32 matrices on the tensor cores, from pieces of bfloat16: device functions for the kernels of a warp.

A float32 number is the sum of three bfloat16 numbers, to the last bit. Of the nine products of two such sums, float32 can tell
six; each is exact, and added in float32. So the result is as precise as float32 arithmetic, at six products of bfloat16.

Fragments of ``mma.sync.m16n8k16``: of lane 4 g + t, a holds rows g and g + 8, terms 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; b the same
terms of column g; c rows g and g + 8, columns 2 t and 2 t + 1.
"""

from ..core import backend
from .ptx import high_float, low_float, mma, to_bfloat16


@backend.cuda_device
def split(p, q, r, s):
    """(p, q) and (r, s) as three pairs of words of two bfloat16 each, whose sum they are to the last bit."""
    pq, rs = to_bfloat16(p, q), to_bfloat16(r, s)
    p, q, r, s = p - low_float(pq), q - high_float(pq), r - low_float(rs), s - high_float(rs)
    pq_2, rs_2 = to_bfloat16(p, q), to_bfloat16(r, s)
    p, q, r, s = p - low_float(pq_2), q - high_float(pq_2), r - low_float(rs_2), s - high_float(rs_2)
    return (pq, rs), (pq_2, rs_2), (to_bfloat16(p, q), to_bfloat16(r, s))


@backend.cuda_device
def rows_of(low, high):
    """The words of a: those of row g and of row g + 8."""
    return low[0], high[0], low[1], high[1]


@backend.cuda_device
def product(low, high, b, c):
    """c + a b for float32 a and b, split in three; a: row g, and row g + 8."""
    (l1, l2, l3), (h1, h2, h3), (b1, b2, b3) = low, high, b
    c = mma(rows_of(l3, h3), b1, c)
    c = mma(rows_of(l1, h1), b3, c)
    c = mma(rows_of(l2, h2), b2, c)
    c = mma(rows_of(l2, h2), b1, c)
    c = mma(rows_of(l1, h1), b2, c)
    return mma(rows_of(l1, h1), b1, c)
