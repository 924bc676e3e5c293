"""Group-shared fixed fan-in output layer: G neighboring labels share one row of inputs (arXiv 2606.01117)."""

import numpy as np

from ..core.connections import Connections
from . import fixed_fan_in
from .bfloat16 import rounded, widen


def plain(layer):
    """The same layer without groups: each label gets a copy of its group's inputs; values are float32."""
    indices = np.repeat(layer.indices, layer.group_size, axis=0)[: len(layer.values)]
    values = widen(layer.values) if layer.values.dtype == np.uint16 else layer.values
    return Connections(indices, values, layer.bias)


def forward(h, layer):
    """``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l // G, k]]``, with (B, H) -> (B, L)."""
    return fixed_fan_in.forward(h, plain(layer))


def backward(h, layer, dscores):
    """Gradients of ``sum(dscores * forward(h, layer))`` with respect to h, values and bias."""
    return fixed_fan_in.backward(h, plain(layer), dscores)


def top_k(h, layer, k):
    """The k largest scores per row and their labels: score descending, then label ascending."""
    return fixed_fan_in.top_k(h, plain(layer), k)


def softmax_sums(h, layer):
    """The largest score of each row and the sum of ``exp(score - largest)`` over all labels, both (B,)."""
    return fixed_fan_in.softmax_sums(h, plain(layer))


def step(h, layer, label_rows, loss, optimizer, rates, values_moments, bias_moments, rounding):
    """`fixed_fan_in.step`; new bfloat16 values (uint16) are rounded stochastically."""
    plain_layer = plain(layer)
    dh, label_loss, values, bias = fixed_fan_in.step(
        h, plain_layer, label_rows, loss, optimizer, rates, values_moments, bias_moments
    )
    if layer.values.dtype == np.uint16:
        values = rounded(np.float32(values[0]), rounding), *values[1:]
    return dh, label_loss, values, bias
