"""The order in which training visits the rows."""

import numpy as np

from ..core import rng


def shuffled(n_rows, seed, epoch):
    """A permutation of range(n_rows), (n,) int64: the rows sorted by one random word each, from (seed, epoch, row)."""
    position = np.arange(n_rows, dtype=np.uint64)
    with np.errstate(over="ignore"):
        words = rng.random_word(np.uint64(seed), rng.SHUFFLE, np.uint64(epoch), position)
    return np.argsort(words, kind="stable")


def batches(order, batch_size):
    """Consecutive slices of `order`; the last one may be shorter."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
