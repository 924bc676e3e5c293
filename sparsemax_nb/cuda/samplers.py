"""Draws of classes from probabilities that do not depend on the query, on CUDA."""

import numpy as np

from ..core import backend, rng
from ..core.backend import cuda
from . import launch

_rng = backend.cuda_formulas(rng)
random_words, below, alias_draw = _rng.random_words, _rng.below, _rng.alias_draw
SAMPLING = rng.SAMPLING


@backend.cuda_jit
def draw_uniform_kernel(seed, step, n_classes, ids):
    """One thread owns one draw of ids (B, M): no reads, one coalesced write. Grid: draws on x. No shared, no atomics."""
    position = cuda.grid(1)
    if position < ids.size:
        word, _, _, _ = random_words(seed, SAMPLING, step, np.uint64(position))
        ids[position // ids.shape[1], position % ids.shape[1]] = below(word, np.uint64(n_classes))


def draw_uniform(seed, step, n_classes, ids, *, block=launch.BLOCK):
    """Ids (B, M), each class as likely as the other."""
    draw_uniform_kernel[launch.flat(ids.size, block)](seed, step, n_classes, ids)


@backend.cuda_jit
def draw_kernel(seed, step, log_p, alias, ids, log_q):
    """One thread owns one draw: two looks into the tables (n,), one into log_p (n,); writes ids, log_q (B, M) coalesced.

    Grid: draws on x. No shared memory, no atomics.
    """
    position = cuda.grid(1)
    if position < ids.size:
        word, keep, _, _ = random_words(seed, SAMPLING, step, np.uint64(position))
        i = alias_draw(word, keep, 0, log_p.size, alias)
        row, m = position // ids.shape[1], position % ids.shape[1]
        ids[row, m] = i
        log_q[row, m] = log_p[i]


def draw(seed, step, log_p, alias, ids, log_q, *, block=launch.BLOCK):
    """Ids (B, M) from the alias tables of ``exp(log_p)``, and their log-probabilities."""
    draw_kernel[launch.flat(ids.size, block)](seed, step, log_p, alias, ids, log_q)
