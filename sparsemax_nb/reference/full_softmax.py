"""Cross-entropy and the most probable classes of the full softmax."""

import numpy as np

from .top_k import top_k as best


def multi_hot(labels, first, n):
    """(B, n) float64: 1 where class first + j is a label of the row."""
    hot = np.zeros((len(labels.indptr) - 1, n))
    for row in range(len(hot)):
        places = labels.indices[labels.indptr[row] : labels.indptr[row + 1]] - first
        hot[row, places[(places >= 0) & (places < n)]] = 1
    return hot


def cross_entropy(h, w, bias, labels, n):
    """``sum_b sum_{p in labels of b} (log Z_b - logit_bp) / n``; its gradients by h, w and bias."""
    h, w = h.astype(np.float64), w.astype(np.float64)
    logits = h @ w.T + bias
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    hot = multi_hot(labels, 0, len(w))
    dlogits = (hot.sum(1, keepdims=True) * np.exp(log_p) - hot) / n
    return -(hot * log_p).sum() / n, dlogits @ w, dlogits.T @ h, dlogits.sum(0)


def add_tile(logits, bias, first, labels, largest, total, positive):
    """The running maximum, sum of ``exp(logit - maximum)`` and sum of the labels' logits, (B,), after one more tile (B, T).

    The tile holds the products of the classes `first`, `first` + 1, ...; the bias (T,) is still to be added.
    """
    logits = logits.astype(np.float64) + bias
    new = np.maximum(largest, logits.max(1))
    total = total * np.exp(largest - new) + np.exp(logits - new[:, None]).sum(1)
    return new, total, positive + (multi_hot(labels, first, logits.shape[1]) * logits).sum(1)


def gradient_of_tile(logits, bias, first, labels, log_z, scale, dbias):
    """``(n_labels exp(logit - log Z) - [class is a label]) scale`` for a tile (B, T); dbias (T,) plus its sum over rows."""
    p = np.exp(logits.astype(np.float64) + bias - log_z[:, None])
    dlogits = (np.diff(labels.indptr)[:, None] * p - multi_hot(labels, first, logits.shape[1])) * scale
    return dbias + dlogits.sum(0), dlogits


def rank(logits, targets):
    """log softmax(logits)[target] and the number of classes that beat the target, (B,): score higher, or equal with a lower id.

    The logarithm is NaN where a logit of the row is not finite.
    """
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(logits)), targets][:, None]
    beats = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < targets[:, None]))
    with np.errstate(invalid="ignore"):
        log_prob = own[:, 0] - np.logaddexp.reduce(logits, axis=1)
    return np.where(np.isfinite(logits).all(1), log_prob, np.nan), beats.sum(1, dtype=np.int32)


def most_probable(logits, k):
    """The k largest of ``softmax(logits)`` in each row and their columns; where there are fewer, 0 and -1."""
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    _, ids = best(logits, k)
    pad = (0, 0), (0, k - ids.shape[1])
    return np.pad(np.take_along_axis(p, ids, 1), pad), np.pad(ids, pad, constant_values=-1)


def top_k(h, w, bias, k):
    """The k largest of ``softmax(h @ w.T + bias)`` in each row and their classes; where there are fewer, 0 and -1."""
    return most_probable(h.astype(np.float64) @ w.T + bias, k)
