"""Published vectors of Philox4x32-10 (Random123's known-answer tests), and kernels that compute them and numbers."""

import numpy as np

from sparsemax_nb.core import rng
from sparsemax_nb.core.device import cuda, cuda_formulas

VECTORS = [  # counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
COUNTERS, KEYS, WORDS = (
    np.array([[int(word, 16) for word in row[column].split()] for row in VECTORS], np.uint64) for column in range(3)
)

_philox = cuda_formulas(rng).philox


@cuda.jit
def kernel(counters, keys, words):
    """One thread computes one vector: counters (n, 4), keys (n, 2), words (n, 4), all uint64."""
    i = cuda.grid(1)
    if i < words.shape[0]:
        c, k = counters[i], keys[i]
        words[i, 0], words[i, 1], words[i, 2], words[i, 3] = _philox(c[0], c[1], c[2], c[3], k[0], k[1])


_bell = cuda_formulas(rng).bell


@cuda.jit
def bell_kernel(words, out):
    """One thread computes one number of out (n,) float32 from words (n, 4) uint64."""
    i = cuda.grid(1)
    if i < out.shape[0]:
        w = words[i]
        out[i] = _bell(w[0], w[1], w[2], w[3])
