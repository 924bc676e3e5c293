"""Fixed fan-in output layer: every label is connected to K of the H inputs (Schultheis & Babbar, arXiv 2306.03725)."""

import numpy as np

from ..core import rng
from . import losses, optimizers
from .top_k import top_k as top_k_of_scores


def random_connections(seed, n_inputs, n_labels, fan_in):
    """`fan_in` distinct inputs per label, ascending: Floyd's sampling, one random word per connection."""
    indices = np.empty((n_labels, fan_in), np.int32)
    with np.errstate(over="ignore"):
        for label in range(n_labels):
            chosen = set()
            for k, j in enumerate(range(n_inputs - fan_in, n_inputs)):
                position = np.uint64(label * fan_in + k)
                word = rng.random_word(np.uint64(seed), rng.CONNECTIONS, np.uint64(0), position)
                t = int(rng.below(word, np.uint64(j + 1)))
                chosen.add(j if t in chosen else t)
            indices[label] = sorted(chosen)
    return indices


def random_values(seed, stream, scale, shape):
    """Uniform weights in [-scale, scale)."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        word = rng.random_word(np.uint64(seed), np.uint64(stream), np.uint64(0), position)
    return (rng.symmetric(word) * np.float32(scale)).reshape(shape)


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


def step(h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments):
    """Forward, loss, backward and update; returns (dh, loss per label, new values and moments, new bias and moments).

    The loss is summed over labels and averaged over rows; dh uses the values from before the update.
    """
    label_loss, dscores = losses.multilabel(forward(h, layer), label_rows, loss)
    dh, dvalues, dbias = backward(h, layer, dscores)
    values = optimizers.update(optimizer, layer.values, dvalues, values_moments, rates)
    bias = optimizers.update(optimizer, layer.bias, dbias, bias_moments, rates)
    return dh, label_loss, values, bias
