"""Counter-based random numbers: Philox4x32-10, a pure function of (seed, stream, step, position).

Every processor gets the same words, whatever the number of threads or blocks. The functions are undecorated: NumPy and
Python run them as they are, ``core.device`` compiles them for the CPU and for CUDA. All values are ``uint64`` that
contain 32-bit words, because ``uint64 & literal`` would become ``int64`` in compiled code.

Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from typing import NamedTuple

import numpy as np

MASK = np.uint64(0xFFFFFFFF)
BITS = np.uint64(32)
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
DROP8 = np.uint64(8)
UNIT24 = np.float32(2.0**-24)
TWO, ONE = np.float32(2), np.float32(1)
HALF, SIXTEEN = np.uint64(0xFFFF), np.uint64(16)
#: Mean and 1 / standard deviation of the sum of eight uniform integers in [0, 2^16).
BELL_MEAN, BELL_SCALE = np.float32(8 * (2**16 - 1) / 2), np.float32((8 * (2**32 - 1) / 12) ** -0.5)

# Streams: the purpose of a random word. A layer adds its number to the stream, so that no two draws share a counter.
CONNECTIONS, WEIGHTS, DROPOUT, SHUFFLE = np.uint64(1 << 16), np.uint64(2 << 16), np.uint64(3 << 16), np.uint64(4 << 16)
REWIRING, SAMPLING, GENERATION, GATE = np.uint64(5 << 16), np.uint64(6 << 16), np.uint64(7 << 16), np.uint64(8 << 16)
NOISE, ROUNDING, GROUPING, RESAMPLE = np.uint64(9 << 16), np.uint64(10 << 16), np.uint64(11 << 16), np.uint64(12 << 16)
SKETCH = np.uint64(13 << 16)


def philox(c0, c1, c2, c3, k0, k1):
    """Four random 32-bit words from a counter of four words and a key of two (all uint64)."""
    for _ in range(10):
        p0 = M0 * c0
        p1 = M1 * c2
        c0 = (p1 >> BITS) ^ c1 ^ k0
        c1 = p1 & MASK
        c2 = (p0 >> BITS) ^ c3 ^ k1
        c3 = p0 & MASK
        k0 = (k0 + W0) & MASK
        k1 = (k1 + W1) & MASK
    return c0, c1, c2, c3


def random_words(seed, stream, step, position):
    """Four uniform 32-bit words (in uint64) for `position` (64 bits) of `stream` (32 bits) at `step` (32 bits)."""
    return philox(position & MASK, position >> BITS, step & MASK, stream & MASK, seed & MASK, seed >> BITS)


def random_word(seed, stream, step, position):
    """The first of `random_words`."""
    w0, _, _, _ = random_words(seed, stream, step, position)
    return w0


def below(word, n):
    """Uniform integer in [0, n) from a 32-bit word: ``floor(word n / 2^32)``, with a bias of less than n / 2^32."""
    return (word * n) >> BITS


def bell(w0, w1, w2, w3):
    """A nearly normal float32 with mean 0 and variance 1: the sum of the eight 16-bit halves of four words, |x| < 4.9.

    The sum is an integer, so the number is the same on every processor.
    """
    total = (w0 & HALF) + (w0 >> SIXTEEN) + (w1 & HALF) + (w1 >> SIXTEEN)
    total = total + (w2 & HALF) + (w2 >> SIXTEEN) + (w3 & HALF) + (w3 >> SIXTEEN)
    return (np.float32(total) - BELL_MEAN) * BELL_SCALE


def unit(word):
    """Uniform float32 in [0, 1), a multiple of 2^-24, from a 32-bit word."""
    return np.float32(word >> DROP8) * UNIT24


def symmetric(word):
    """Uniform float32 in [-1, 1), a multiple of 2^-23, from a 32-bit word; exact in every order of evaluation."""
    return unit(word) * TWO - ONE


class Rounding(NamedTuple):
    """Where stochastic rounding takes its random words from: a seed of the layer and the step (uint64)."""

    seed: np.uint64
    step: np.uint64


class Alias(NamedTuple):
    """Alias tables, to draw from fixed probabilities at constant cost (built by ``core.alias``).

    Column j gives itself if a random word is below ``threshold[j]`` (n,) uint32, else ``other[j]`` (n,) int32.
    """

    threshold: np.ndarray
    other: np.ndarray


def alias_draw(column_word, keep_word, first, n, alias):
    """Draw one of the n columns from `first` on according to their probabilities, with two 32-bit words; int64."""
    column = first + np.int64(below(column_word, np.uint64(n)))
    return column if keep_word < np.uint64(alias.threshold[column]) else np.int64(alias.other[column])


class Dropout(NamedTuple):
    """Dropout as kernels take it: a unit is dropped if its random word is below `threshold`."""

    threshold: np.uint64  # rate 2^32
    scale: np.float32  # 1 / (1 - rate), for the units that are kept
    seed: np.uint64
    stream: np.uint64
    step: np.uint64


def make_dropout(rate, seed, layer, step):
    """`Dropout` for `rate` in [0, 1) in layer number `layer` at `step`."""
    rate = float(rate)
    scale = np.float32(1 / (1 - rate))
    return Dropout(np.uint64(rate * 2**32), scale, np.uint64(seed), DROPOUT + np.uint64(layer), np.uint64(step))
