"""Random initial weights and connections on the CPU: counter-based, so the bits do not depend on the threads."""

import numpy as np
from numba import prange

from ..core import rng
from ..core.device import cpu_formulas, njit_parallel

_r = cpu_formulas(rng)
random_word, below, symmetric = _r.random_word, _r.below, _r.symmetric

STREAM, NO_STEP = rng.CONNECTIONS, np.uint64(0)


@njit_parallel
def random_connections(seed, n_inputs, indices):
    """`fan_in` distinct inputs per label, ascending: Floyd's sampling, one random word per connection."""
    n_labels, fan_in = indices.shape
    for label in prange(n_labels):
        for k in range(fan_in):
            j = n_inputs - fan_in + k
            word = random_word(np.uint64(seed), STREAM, NO_STEP, np.uint64(label * fan_in + k))
            t = np.int64(below(word, np.uint64(j + 1)))
            slot = k  # the chosen inputs so far are ascending: find where t belongs
            while slot > 0 and indices[label, slot - 1] > t:
                slot -= 1
            if slot > 0 and indices[label, slot - 1] == t:
                t, slot = j, k  # j is larger than all that were chosen before
            for i in range(k, slot, -1):
                indices[label, i] = indices[label, i - 1]
            indices[label, slot] = t


@njit_parallel
def random_values(seed, stream, scale, values):
    """Uniform weights in [-scale, scale); `values` is one-dimensional."""
    for i in prange(values.size):
        values[i] = symmetric(random_word(np.uint64(seed), np.uint64(stream), NO_STEP, np.uint64(i))) * scale
