"""Cross-entropy of the full softmax."""

import numpy as np


def cross_entropy(h, w, bias, targets, ignore_index):
    """Loss, averaged over the rows whose target is not `ignore_index`; its gradients by h, w and bias."""
    h, w = h.astype(np.float64), w.astype(np.float64)
    counted = targets != ignore_index
    n, rows = max(counted.sum(), 1), np.flatnonzero(counted)
    logits = h @ w.T + bias
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    dlogits = np.exp(log_p)
    dlogits[rows, targets[rows]] -= 1
    dlogits *= counted[:, None] / n
    return -log_p[rows, targets[rows]].sum() / n, dlogits @ w, dlogits.T @ h, dlogits.sum(0)


def add_tile(logits, bias, first, targets, largest, total, target_logit):
    """The running maximum, the sum of ``exp(logit - maximum)`` and the target's logit, (B,), after one more tile (B, T).

    The tile holds the products of the classes `first`, `first` + 1, ...; the bias (T,) is still to be added.
    """
    logits = logits.astype(np.float64) + bias
    new = np.maximum(largest, logits.max(1))
    total = total * np.exp(largest - new) + np.exp(logits - new[:, None]).sum(1)
    place = targets - first
    inside = (place >= 0) & (place < logits.shape[1])
    found = logits[np.arange(len(logits)), np.where(inside, place, 0)]
    return new, total, np.where(inside, found, target_logit)


def gradient_of_tile(logits, bias, first, targets, log_z, scale):
    """``(exp(logit - log Z) - [class is the target]) scale`` for a tile (B, T); scale (B,)."""
    p = np.exp(logits.astype(np.float64) + bias - log_z[:, None])
    p -= targets[:, None] == first + np.arange(logits.shape[1])
    return p * scale[:, None]
