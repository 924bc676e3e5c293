"""Random initial weights and connections on CUDA: counter-based, one thread per label or number."""

import numpy as np

from ..core import rng
from ..core.device import cuda, cuda_formulas, cuda_jit
from . import launch

_r = cuda_formulas(rng)
random_word, below, symmetric = _r.random_word, _r.below, _r.symmetric

STREAM, NO_STEP = rng.CONNECTIONS, np.uint64(0)


@cuda_jit
def random_connections_kernel(seed, n_inputs, indices):
    """One thread draws the connections of one label by Floyd's sampling.

    Grid: labels on x. Writes indices (L, K), ascending per label. No shared memory. No atomics.
    """
    label = cuda.grid(1)
    n_labels, fan_in = indices.shape
    if label < n_labels:
        for k in range(fan_in):
            j = n_inputs - fan_in + k
            word = random_word(seed, STREAM, NO_STEP, np.uint64(label * fan_in + k))
            t = np.int64(below(word, np.uint64(j + 1)))
            position = k  # the inputs chosen so far are ascending: find where t belongs
            while position > 0 and indices[label, position - 1] > t:
                position -= 1
            if position > 0 and indices[label, position - 1] == t:
                t = j  # larger than all that were chosen before
                position = k
            for i in range(k, position, -1):
                indices[label, i] = indices[label, i - 1]
            indices[label, position] = t


def random_connections(seed, n_inputs, indices, *, block=launch.BLOCK):
    """`fan_in` different inputs for each label, ascending: Floyd's sampling, one random word per connection."""
    random_connections_kernel[launch.flat(indices.shape[0], block)](seed, n_inputs, indices)


@cuda_jit
def random_values_kernel(seed, stream, scale, values):
    """One thread draws one weight.

    Grid: elements on x. Writes values (n,) coalesced. No shared memory. No atomics.
    """
    i = cuda.grid(1)
    if i < values.size:
        values[i] = symmetric(random_word(seed, stream, NO_STEP, np.uint64(i))) * scale


def random_values(seed, stream, scale, values, *, block=launch.BLOCK):
    """Uniform weights in [-scale, scale); `values` is one-dimensional."""
    random_values_kernel[launch.flat(values.size, block)](seed, stream, scale, values)
