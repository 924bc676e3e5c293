"""Losses of output layers that store the scores of all labels, (B, L)."""

import math

import numpy as np

from ..core import formulas, sparse
from ..core.device import backend_of, device_of, empty, module_of, zeros
from ..full_softmax import LOWEST


def multilabel_loss(scores, labels, loss):
    """Loss of a batch, and its gradient, which overwrites scores (B, L); FloatingPointError if it is not finite."""
    device, n_labels = device_of(scores), scores.shape[1]
    if loss == "softmax":
        return _softmax_loss(scores, sparse.as_targets(labels, len(scores), device, n_labels)), scores
    label_rows = sparse.by_label(sparse.as_labels(labels, len(scores), device, n_labels), n_labels)
    label_loss = empty(n_labels, np.float32, device)
    backend_of(device, "losses").multilabel(scores, label_rows, formulas.LOSSES[loss], scores, label_loss)
    value = float(label_loss.sum(dtype=np.float64))
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    return value, scores


def _softmax_loss(scores, labels):
    """`multilabel_loss` with the softmax of all scores, which are one tile of it; returns the loss."""
    device, (n_rows, n_labels) = device_of(scores), scores.shape
    kernels, scale = backend_of(device, "full_softmax"), np.float32(1 / max(n_rows, 1))
    bias, dbias = (zeros(n_labels, np.float32, device) for _ in range(2))  # of zero: the scores have theirs already
    largest, total, losses = (zeros(n_rows, np.float32, device) for _ in range(3))
    largest[...] = LOWEST
    kernels.add_tile(scores, bias, largest, total)
    kernels.gradient_of_tile(scores, bias, 0, labels, largest, total, scale, dbias, losses, scores)
    value = float(losses.sum(dtype=np.float64)) / max(n_rows, 1)
    if not (math.isfinite(value) and bool(module_of(device).isfinite(dbias).all())):
        raise FloatingPointError(f"the loss is {value}, or scores are not finite")
    return value
