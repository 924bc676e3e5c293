"""Random initial weights and connections, the definition: each number depends on seed, stream and position alone."""

import numpy as np

from ..core import rng


def random_connections(seed, n_inputs, n_labels, fan_in):
    """`fan_in` distinct inputs per label, ascending: Floyd's sampling, one random word per connection."""
    indices = np.empty((n_labels, fan_in), np.int32)
    with np.errstate(over="ignore"):
        for label in range(n_labels):
            chosen = set()
            for k, j in enumerate(range(n_inputs - fan_in, n_inputs)):
                position = np.uint64(label * fan_in + k)
                word = rng.random_word(np.uint64(seed), rng.CONNECTIONS, np.uint64(0), position)
                t = int(rng.below(word, np.uint64(j + 1)))
                chosen.add(j if t in chosen else t)
            indices[label] = sorted(chosen)
    return indices


def random_values(seed, stream, scale, shape):
    """Uniform weights in [-scale, scale)."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        word = rng.random_word(np.uint64(seed), np.uint64(stream), np.uint64(0), position)
    return (rng.symmetric(word) * np.float32(scale)).reshape(shape)
