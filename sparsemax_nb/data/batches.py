"""The order of the rows in training: shuffled, in batches."""

import numpy as np

from ..core import rng


def shuffled(n_rows, seed, epoch):
    """A permutation of range(n_rows), (n,) int64: rows sorted by a random word of (seed, epoch, row)."""
    position = np.arange(n_rows, dtype=np.uint64)
    with np.errstate(over="ignore"):
        words = rng.random_word(np.uint64(seed), rng.SHUFFLE, np.uint64(epoch), position)
    return np.argsort(words, kind="stable")


def resampled(weights, seed, epoch):
    """n row ids in random order, (n,) int64: row i occurs ``n weights[i] / sum(weights)`` times, rounded up or down.

    This is systematic resampling: one uniform number decides all roundings, and the expected number is exact.
    """
    n = len(weights)
    with np.errstate(over="ignore"):
        word = rng.random_word(np.uint64(seed), rng.RESAMPLE, np.uint64(epoch), np.uint64(0))
    ends = np.cumsum(weights, dtype=np.float64)
    counts = np.diff(np.floor(ends / ends[-1] * n + float(rng.unit(word))).astype(np.int64), prepend=0)
    rows = np.repeat(np.arange(n), counts)
    return rows[shuffled(len(rows), seed, epoch)]


def batches(order, batch_size):
    """Yield consecutive slices of `order`; the last one may be shorter."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
