"""Cross-entropy and the most probable classes of the full softmax."""

import numpy as np

from .top_k import top_k as best


def multi_hot(labels, first, n):
    """(B, n) float64: 1 where class first + j is a label of the row."""
    hot = np.zeros((len(labels.indptr) - 1, n))
    for row in range(len(hot)):
        columns = labels.indices[labels.indptr[row] : labels.indptr[row + 1]] - first
        hot[row, columns[(columns >= 0) & (columns < n)]] = 1
    return hot


def log_softmax(logits):
    """``log softmax(logits)`` per row, float64.

    The largest logit is subtracted first, so an offset common to all logits cancels exactly.
    """
    logits = logits.astype(np.float64)
    below = logits - logits.max(axis=1, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=1, keepdims=True))


def cross_entropy(h, weights, bias, labels, n):
    """``sum_b sum_{p in labels of b} (log Z_b - logit_bp) / n``; its gradients with respect to h, weights and bias."""
    h, weights = h.astype(np.float64), weights.astype(np.float64)
    log_p = log_softmax(h @ weights.T + bias)
    hot = multi_hot(labels, 0, len(weights))
    dlogits = (hot.sum(1, keepdims=True) * np.exp(log_p) - hot) / n
    return -(hot * log_p).sum() / n, dlogits @ weights, dlogits.T @ h, dlogits.sum(0)


def add_tile(logits, bias, largest, total):
    """The running maximum and sum of ``exp(logit - maximum)``, (B,), after one more tile of classes (B, T).

    The tile contains products without the bias (T,).
    """
    logits = logits.astype(np.float64) + bias
    new = np.maximum(largest, logits.max(1))
    return new, total * np.exp(largest - new) + np.exp(logits - new[:, None]).sum(1)


def gradient_of_tile(logits, bias, first, labels, largest, total, scale, dbias, losses):
    """``(n_labels p - [class is a label]) scale`` for a tile (B, T) of the classes `first`, `first` + 1, ...

    ``p = exp(logit - largest) / total``, with the row's largest logit and its sum of ``exp(logit - largest)``, (B,).
    Returns dbias (T,) plus the sum over rows, losses (B,) plus ``log(total) + largest - logit`` of each label, and the
    gradient.
    """
    below, hot = logits.astype(np.float64) + bias - largest[:, None], multi_hot(labels, first, logits.shape[1])
    p = np.exp(below) / total[:, None]
    dlogits = (np.diff(labels.indptr)[:, None] * p - hot) * scale
    return dbias + dlogits.sum(0), losses + (hot * (np.log(total)[:, None] - below)).sum(1), dlogits


def rank(logits, targets):
    """``log softmax(logits)[target]``, (B,), and the number of classes that rank before the target.

    Classes rank by score descending, then id ascending. The logarithm is NaN if a logit of the row is not finite.
    """
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(logits)), targets][:, None]
    beats = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < targets[:, None]))
    with np.errstate(invalid="ignore"):
        log_prob = log_softmax(logits)[np.arange(len(logits)), targets]
    return np.where(np.isfinite(logits).all(1), log_prob, np.nan), beats.sum(1, dtype=np.int32)


def most_probable(logits, k):
    """The k largest of ``softmax(logits)`` per row and their columns, padded with 0 and -1."""
    p = np.exp(log_softmax(logits))
    _, ids = best(logits, k)
    pad = (0, 0), (0, k - ids.shape[1])
    return np.pad(np.take_along_axis(p, ids, 1), pad), np.pad(ids, pad, constant_values=-1)


def top_k(h, weights, bias, k):
    """The k largest of ``softmax(h @ weights.T + bias)`` per row and their classes, padded with 0 and -1."""
    return most_probable(h.astype(np.float64) @ weights.T + bias, k)
