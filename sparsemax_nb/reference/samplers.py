"""Samples of classes from fixed probabilities, or from the softmax of each row of a score matrix."""

import numpy as np

from ..core import rng
from ..core.alias import BLOCK
from .full_softmax import log_softmax


def draw_words(seed, step, shape):
    """Four random words per draw: draw m of row b is at position ``b M + m`` of the stream."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64).reshape(shape)
    with np.errstate(over="ignore"):
        return rng.random_words(np.uint64(seed), rng.SAMPLING, np.uint64(step), position)


def draw_uniform(seed, step, n_classes, shape):
    """Ids (B, M), all classes equally likely."""
    return rng.below(draw_words(seed, step, shape)[0], np.uint64(n_classes)).astype(np.int32)


def draw(seed, step, log_p, alias, shape):
    """Ids (B, M) from the alias tables of ``exp(log_p)``, and their log-probabilities."""
    column_word, keep_word, _, _ = draw_words(seed, step, shape)
    column = rng.below(column_word, np.uint64(len(log_p))).astype(np.int64)
    ids = np.where(keep_word < alias.threshold[column], column, alias.other[column]).astype(np.int32)
    return ids, log_p[ids]


def draw_softmax(scores, first_row, seed, step, n_samples):
    """Ids (B, M) from the softmax of each row of scores (B, L), and their log-probabilities.

    A draw picks a block of `BLOCK` classes, then one of them. `first_row` is the number of row 0 in the random stream.
    A third result, (B, M), is the distance (0..1) of a uniform number to one that would give another id: near 0,
    rounding decides.
    """
    n_rows, n_classes = scores.shape
    words = [w[first_row:] for w in draw_words(seed, step, (first_row + n_rows, n_samples))]
    log_p = log_softmax(scores)
    n_blocks, rows = -(-n_classes // BLOCK), np.arange(n_rows)[:, None]
    p = np.zeros((n_rows, n_blocks * BLOCK))
    p[:, :n_classes] = np.exp(log_p)
    p = p.reshape(n_rows, n_blocks, BLOCK)
    block, near0 = invert(p.sum(2)[:, None], rng.unit(words[0]))
    chosen = p[rows, block]
    index, near1 = invert(chosen / chosen.sum(-1, keepdims=True), rng.unit(words[1]))
    ids = (block * BLOCK + index).astype(np.int32)
    return ids, log_p[rows, ids], np.minimum(near0, near1)


def invert(p, uniform):
    """The first index where the cumulative sum of p (..., K) exceeds `uniform`; the distance to the nearest sum."""
    cumulative = np.cumsum(p, axis=-1)
    above = cumulative > uniform[..., None]
    last = p.shape[-1] - 1 - np.argmax(np.broadcast_to(p > 0, above.shape)[..., ::-1], axis=-1)
    index = np.where(above.any(-1), above.argmax(-1), last)
    return index, np.abs(cumulative - uniform[..., None]).min(-1)


def alias_probabilities(alias):
    """The exact probabilities that the alias tables of one segment give: (n,) float64."""
    n = len(alias.threshold)
    kept = np.where(alias.other == np.arange(n), 1, alias.threshold / 2.0**32)
    return (kept + np.bincount(alias.other, weights=1 - kept, minlength=n)) / n
