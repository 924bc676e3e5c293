"""Fixed fan-in output layer: every label is connected to K of the H inputs (Schultheis & Babbar, arXiv 2306.03725)."""

import numpy as np

from ..core import formulas
from . import losses, optimizers
from .top_k import top_k as top_k_of_scores


def forward(h, layer):
    """``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l, k]]``, with (B, H) -> (B, L)."""
    return layer.bias + np.einsum("blk,lk->bl", h[:, layer.indices], layer.values, dtype=np.float64)


def backward(h, layer, dscores):
    """Gradients of ``sum(dscores * forward(h, layer))`` with respect to h, values and bias."""
    h, dscores = np.asarray(h, np.float64), np.asarray(dscores, np.float64)
    dh = np.zeros(h.shape)
    for b in range(len(h)):
        np.add.at(dh[b], layer.indices, dscores[b][:, None] * layer.values)
    dvalues = np.einsum("bl,blk->lk", dscores, h[:, layer.indices])
    return dh, dvalues, dscores.sum(0)


def top_k(h, layer, k):
    """The k largest scores per row and their labels: score descending, then label ascending."""
    return top_k_of_scores(forward(h, layer), k)


def softmax_sums(h, layer):
    """The largest score of each row and the sum of ``exp(score - largest)`` over all labels, both (B,)."""
    scores = forward(h, layer)
    largest = scores.max(axis=1)
    return largest, np.exp(scores - largest[:, None]).sum(axis=1)


def shifted(scores, loss):
    """The scores (B, L) as the formula of a `StepLoss` takes them: with a softmax, minus both shifts of their row."""
    return scores - loss.shifts.sum(axis=1, keepdims=True) if loss.kind == formulas.SOFTMAX else scores


def step(h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments):
    """Forward, loss, backward and update; returns (dh, loss per label, new values and moments, new bias and moments).

    The loss is summed over labels and averaged over rows; dh uses the values from before the update.
    """
    scores = shifted(forward(h, layer), loss)
    label_loss, dscores = losses.multilabel(scores, label_rows, loss.kind)
    dh, dvalues, dbias = backward(h, layer, dscores)
    values = optimizers.update(optimizer, layer.values, dvalues, values_moments, rates)
    bias = optimizers.update(optimizer, layer.bias, dbias, bias_moments, rates)
    return dh, label_loss, values, bias
