"""Dense products on CUDA: cuBLAS through CuPy (NumPy in the simulator)."""

from ..core import backend

#: Numbers that are held at once where a product is added to another array: its own, and copied rows of a. 16 MiB.
SLAB = 1 << 22


def matmul(a, b, out, *, add=False):
    """``out = a @ b`` for float32 matrices, or ``out += a @ b``, then a slab of rows at a time."""
    if not add:
        backend.xp.matmul(a, b, out=out)
        return
    step = max(1, SLAB // max(1, sum(b.shape)))
    for first in range(0, out.shape[0], step):
        out[first : first + step] += backend.xp.matmul(a[first : first + step], b)
