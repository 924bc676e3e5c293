"""A layer of LSTM cells over a batch of sequences, with back-propagation through time by hand."""

import math

import numpy as np

from ..core.device import backend_of, empty, product, zeros
from .gradients import Gradient
from .layers import uniform

#: Number of the first layer's weights in the random streams, which `layers` uses, too; each layer uses two streams.
FIRST_STREAM = 16


class LSTM:
    """``a_t = x_t weights + h_{t-1} recurrent + bias``; a_t contains the gates i, f, g, o, and they give ``c_t, h_t``.

    ``i, f, o = sigmoid(a);  g = tanh(a);  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)``. One matrix product computes
    ``x_t weights`` for all steps; only what depends on the previous step is computed step by step.

    Parameters
    ----------
    n_inputs, width : int
        D and H.
    seed, number : int
        Weights are uniform in ±1 / sqrt(H), from a random stream given by the seed and the layer's number, counted
        from 0. The bias is zero, except one for the forget gate, which then forgets little at first.
    device : 'cpu' or 'cuda'

    Attributes
    ----------
    weights (D, 4H), recurrent (H, 4H), bias (4H,) : float32
    hidden, cells : (T + 1, B, H) float32
        h and c before the first step of the last `forward` with `keep`, and after each step.

    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 1997; F. Gers et al., "Learning
    to forget", Neural Computation 2000 (forget gate); R. Jozefowicz et al., "An empirical exploration of recurrent
    network architectures", ICML 2015 (its bias).
    """

    def __init__(self, n_inputs, width, seed, number, device):
        self.name = f"lstm{number}"
        self._device = device
        scale, stream = 1 / math.sqrt(width), FIRST_STREAM + 2 * number
        self.weights = uniform((n_inputs, 4 * width), scale, seed, stream, device)
        self.recurrent = uniform((width, 4 * width), scale, seed, stream + 1, device)
        self.bias = zeros(4 * width, np.float32, device)
        self.bias[width : 2 * width] = 1
        self._x, self._gates = None, self._new(0, 0, 4 * width)
        self.hidden = self.cells = self._new(1, 0, width)

    @property
    def parameters(self):
        """All arrays by name."""
        arrays = {"weights": self.weights, "recurrent": self.recurrent, "bias": self.bias}
        return {f"{self.name}.{name}": array for name, array in arrays.items()}

    @property
    def activations(self):
        """The array in which an overflow would show."""
        return {f"{self.name}.cells": self.cells}

    def _new(self, *shape):
        return empty(shape, np.float32, self._device)

    def forward(self, x, state, keep=False):
        """x (T, B, D) and the state (h, c) before it, (B, H) each -> all h, (T, B, H), and the state after it.

        With `keep` the layer stores what `backward` needs: x, not copied; `hidden` and `cells`, new arrays of which the
        results are views; and the gates, which overwrite those of the last call if the sizes match, because allocating
        memory is slow. Without `keep` the layer does not change, and several threads may call it at once.
        """
        kernels, matmul = backend_of(self._device, "lstm"), backend_of(self._device, "matmul").matmul
        (n_steps, n_rows, n_inputs), width = x.shape, self.recurrent.shape[0]
        can_reuse = keep and self._gates.shape[:2] == (n_steps, n_rows)
        gates = self._gates if can_reuse else self._new(n_steps, n_rows, 4 * width)
        hidden, cells = (self._new(n_steps + 1, n_rows, width) for _ in range(2))
        hidden[0], cells[0] = state
        gates[...] = self.bias
        matmul(x.reshape(-1, n_inputs), self.weights, gates.reshape(-1, 4 * width), add=True)
        kernels.forward(self.recurrent, gates, cells, hidden)
        if keep:
            self._x, self._gates = x, gates
            self.hidden, self.cells = hidden, cells
        return hidden[1:], (hidden[-1], cells[-1])

    def backward(self, dout):
        """Back-propagate dout (T, B, H), the gradient with respect to all h of the last `forward` with `keep`.

        Returns dx and a `Gradient` per parameter. The state before the first step is a constant: back-propagation is
        truncated there. The gates are overwritten by their own gradients, so that each such `forward` allows one call.
        """
        if self._x is None:
            raise RuntimeError(
                "backward needs the gates of a forward pass, and overwrites them; call forward(..., keep=True) first"
            )
        shape, arrays = self._x.shape, (self._x, self.hidden[:-1], self._gates)
        self._x = None
        backend_of(self._device, "lstm").backward(self.recurrent, self._gates, self.cells, dout, self._gates)
        x, before, dpre = (a.reshape(-1, a.shape[2]) for a in arrays)
        dx = product(dpre, self.weights.T).reshape(shape)
        gradients = product(x.T, dpre), product(before.T, dpre), dpre.sum(axis=0)
        return dx, list(map(Gradient, self.parameters.values(), gradients))
