"""Draws of classes from probabilities that do not depend on the query."""

import numpy as np

from ..core import rng


def draw_words(seed, step, shape):
    """Four random words for every draw: draw m of row b sits at position ``b M + m`` of the stream."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64).reshape(shape)
    with np.errstate(over="ignore"):
        return rng.random_words(np.uint64(seed), rng.SAMPLING, np.uint64(step), position)


def draw_uniform(seed, step, n_classes, shape):
    """Ids (B, M), each class as likely as the other."""
    return rng.below(draw_words(seed, step, shape)[0], np.uint64(n_classes)).astype(np.int32)


def draw(seed, step, log_p, alias, shape):
    """Ids (B, M) from the alias tables of ``exp(log_p)``, and their log-probabilities."""
    column_word, keep_word, _, _ = draw_words(seed, step, shape)
    column = rng.below(column_word, np.uint64(len(log_p))).astype(np.int64)
    ids = np.where(keep_word < alias.threshold[column], column, alias.other[column]).astype(np.int32)
    return ids, log_p[ids]


def alias_probabilities(alias):
    """What a draw from the tables of one segment gives, exactly: (n,) float64."""
    n = len(alias.threshold)
    kept = np.where(alias.other == np.arange(n), 1, alias.threshold / 2.0**32)
    return (kept + np.bincount(alias.other, weights=1 - kept, minlength=n)) / n
