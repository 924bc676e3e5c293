"""Fixed fan-in output layer: every label is connected to K of the H inputs (Schultheis & Babbar, arXiv 2306.03725)."""

import numpy as np

from ..core import rng
from . import losses, optimizers
from .top_k import top_k as top_k_of_scores


def random_connections(seed, n_inputs, n_labels, fan_in):
    """`fan_in` different inputs for each label, ascending: Floyd's sampling, one random word a connection."""
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


def forward(x, layer):
    """``scores[b, l] = bias[l] + sum_k values[l, k] x[b, indices[l, k]]``, with (B, H) -> (B, L)."""
    return layer.bias + np.einsum("blk,lk->bl", x[:, layer.indices], layer.values, dtype=np.float64)


def backward(x, layer, dscores):
    """Gradients of ``sum(dscores * forward(x, layer))`` by x, values and bias."""
    x, dscores = np.asarray(x, np.float64), np.asarray(dscores, np.float64)
    dx = np.zeros(x.shape)
    for b in range(len(x)):
        np.add.at(dx[b], layer.indices, dscores[b][:, None] * layer.values)
    dvalues = np.einsum("bl,blk->lk", dscores, x[:, layer.indices])
    return dx, dvalues, dscores.sum(0)


def top_k(x, layer, k):
    """The k largest scores of each row and their labels: score descending, then label ascending."""
    return top_k_of_scores(forward(x, layer), k)


def step(x, layer, positives, loss, optimizer, rates, values_moments, bias_moments):
    """Forward, loss, backward and update; returns (dx, per-label loss, new values and moments, new bias and moments).

    The loss is summed over labels and averaged over rows; dx uses the values from before the update.
    """
    label_loss, dscores = losses.multilabel(forward(x, layer), positives, loss)
    dx, dvalues, dbias = backward(x, layer, dscores)
    values = optimizers.update(optimizer, layer.values, dvalues, values_moments, rates)
    bias = optimizers.update(optimizer, layer.bias, dbias, bias_moments, rates)
    return dx, label_loss, values, bias
