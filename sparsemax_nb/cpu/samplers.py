"""Draws of classes from probabilities that do not depend on the query, on the CPU."""

import numpy as np
from numba import prange

from ..core import backend, rng

_rng = backend.cpu_formulas(rng)
random_words, below, alias_draw = _rng.random_words, _rng.below, _rng.alias_draw
SAMPLING = rng.SAMPLING


@backend.njit_parallel
def draw_uniform(seed, step, n_classes, ids):
    """Ids (B, M), each class as likely as the other."""
    n_samples = ids.shape[1]
    for row in prange(ids.shape[0]):
        for m in range(n_samples):
            word, _, _, _ = random_words(seed, SAMPLING, step, np.uint64(row * n_samples + m))
            ids[row, m] = below(word, np.uint64(n_classes))


@backend.njit_parallel
def draw(seed, step, log_p, alias, ids, log_q):
    """Ids (B, M) from the alias tables of ``exp(log_p)``, and their log-probabilities."""
    n_samples = ids.shape[1]
    for row in prange(ids.shape[0]):
        for m in range(n_samples):
            word, keep, _, _ = random_words(seed, SAMPLING, step, np.uint64(row * n_samples + m))
            i = alias_draw(word, keep, 0, log_p.size, alias)
            ids[row, m] = i
            log_q[row, m] = log_p[i]
