"""bfloat16: the upper half of a float32."""

import numpy as np

from ..core import formulas, rng


def widen(bits):
    """The float32 numbers of bfloat16 `bits` (uint16); exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(numbers, rounding):
    """bfloat16 bits (uint16) of float32 `numbers`, rounded stochastically.

    The number at position p uses half p % 8 of random draw p // 8.
    """
    n = numbers.size
    with np.errstate(over="ignore"):
        position = np.arange((n + 7) // 8, dtype=np.uint64)
        words = rng.random_words(np.uint64(rounding.seed), rng.ROUNDING, np.uint64(rounding.step), position)
    halves = np.stack([half for word in words for half in (word & rng.HALF, word >> rng.SIXTEEN)], axis=1)
    bits = np.ascontiguousarray(numbers).reshape(-1).view(np.uint32)
    return formulas.round_bits(bits, halves.reshape(-1)[:n].astype(np.uint32)).astype(np.uint16).reshape(numbers.shape)
