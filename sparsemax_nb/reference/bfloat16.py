"""bfloat16: the upper half of a float32."""

import numpy as np


def widen(bits):
    """The float32 numbers of bfloat16 `bits` (uint16): exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
