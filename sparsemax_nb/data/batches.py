"""The order of the rows in training: shuffled, in batches."""

import numpy as np

from ..core import rng


def shuffled(n_rows, seed, epoch):
    """A permutation of range(n_rows), (n,) int64: rows sorted by a random word of (seed, epoch, row)."""
    position = np.arange(n_rows, dtype=np.uint64)
    with np.errstate(over="ignore"):
        words = rng.random_word(np.uint64(seed), rng.SHUFFLE, np.uint64(epoch), position)
    return np.argsort(words, kind="stable")


def batches(order, batch_size):
    """Yield consecutive slices of `order`; the last one may be shorter."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
