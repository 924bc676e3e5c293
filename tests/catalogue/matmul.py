"""Matrix products, each factor transposed or not."""

import functools

import ml_dtypes
import numpy as np

from sparsemax_nb.cuda import matmul as cuda
from sparsemax_nb.reference import matmul

from ..helpers import assert_close, normal
from . import Budget, Task, operation, unwritten


def make_matmul(shape, transpose_a=False, transpose_b=False, bfloat16=False):
    """With `bfloat16`, the factors are bfloat16 numbers, stored as float32."""
    m, n, k = shape
    a, b, out = normal(1, m, k), normal(2, k, n), unwritten(m, n)
    if bfloat16:
        a, b = (x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (a, b))
    a = np.ascontiguousarray(a.T).T if transpose_a else a
    b = np.ascontiguousarray(b.T).T if transpose_b else b
    return Task((a, b, out), lambda: assert_close(out, matmul.matmul(a, b), k))


def _operations():
    tiled, mma, rounded = (functools.partial(cuda.matmul, kernel=k) for k in ("tiled", "mma", "bfloat16"))
    for transposed in ({}, {"transpose_a": True}, {"transpose_b": True}):
        small, large = ((1, 1, 1), (3, 7, 5), (0, 3, 2), (3, 2, 0)), ((65, 33, 19), (33, 300, 7), (3, 5, 200))
        name = " ".join(transposed)
        yield operation(f"matmul.matmul {name}".strip(), make_matmul, small, large, **transposed)
        yield operation(f"matmul.matmul tiled {name}", make_matmul, small, large[:2], tiled, None, **transposed)
        parts = () if transposed else ((33, 20, 530),)  # large enough for sums in two parts
        large = ((1, 1, 1), (33, 65, 19), (130, 68, 48), *parts, (0, 3, 2), (3, 2, 0))
        yield operation(f"matmul.matmul mma {name}", make_matmul, (), large, mma, None, **transposed)
        yield operation(
            f"matmul.matmul bfloat16 {name}", make_matmul, (), large[:3], rounded, None, bfloat16=True, **transposed
        )


OPERATIONS = list(_operations())

BUDGETS = {
    "mma_kernel": Budget(
        128,
        holds=("mma.sync.aligned.m16n8k16", "ld.global.v4.f32", "ld.shared.v4.u32", "st.shared.v4.u32"),
        since=(8, 0),
    ),
    "tiled_kernel": Budget(64),
}
