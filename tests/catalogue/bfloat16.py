"""Conversion of bfloat16 to float32."""

import ml_dtypes
import numpy as np

from sparsemax_nb.reference import bfloat16

from . import Budget, Task, operation, unwritten


def make_widen(n):
    bits = np.random.default_rng(1).permutation(1 << 16)[:n].astype(np.uint16)
    bits[:2] = 0x3F80, 0xFFC0  # 1 and NaN
    out, wanted = unwritten(n), bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(bfloat16.widen(bits), wanted)
    return Task((bits, out), lambda: np.testing.assert_array_equal(out, wanted))


OPERATIONS = [operation("bfloat16.widen", make_widen, (2, 33), (300, 40_000))]

BUDGETS = {
    "widen_kernel": Budget(16),
}
