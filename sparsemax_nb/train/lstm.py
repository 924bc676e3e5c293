"""A layer of LSTM cells over a batch of sequences, with back-propagation through time by hand."""

import math

import numpy as np

from ..core.device import backend_of, empty, product, zeros
from .gradients import Gradient
from .layers import uniform

#: Number of the first layer's weights in the random streams (`layers.EMBEDDING` and DENSE come before); two a layer.
FIRST = 16


class LSTM:
    """``a_t = x_t weights + h_{t-1} recurrent + bias`` and ``c_t, h_t`` by the gates i, f, g, o that a_t holds side by side.

    ``i, f, o = sigmoid(a);  g = tanh(a);  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)``. The products over the inputs of all
    steps are one; step by step goes only what depends on the step before.

    Parameters
    ----------
    n_inputs, width : int
        D and H.
    seed, number : int
        Weights are uniform in ±1 / sqrt(H) from the stream of the seed and the layer's number, counted from 0; the bias
        is zero, but one for the forget gate, which then forgets little at first.
    device : 'cpu' or 'cuda'

    Attributes
    ----------
    weights (D, 4H), recurrent (H, 4H), bias (4H,) : float32
    hidden, cells : (T + 1, B, H) float32
        h and c before the first step of the last `forward` with `keep`, and behind every step.

    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 1997; F. Gers et al., "Learning
    to forget", Neural Computation 2000 (forget gate); R. Jozefowicz et al., "An empirical exploration of recurrent
    network architectures", ICML 2015 (its bias).
    """

    def __init__(self, n_inputs, width, seed, number, device):
        self.name, self._device, scale = f"lstm{number}", device, 1 / math.sqrt(width)
        self.weights = uniform((n_inputs, 4 * width), scale, seed, FIRST + 2 * number, device)
        self.recurrent = uniform((width, 4 * width), scale, seed, FIRST + 2 * number + 1, device)
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
        """Where infinity would show."""
        return {f"{self.name}.cells": self.cells}

    def _new(self, *shape):
        return empty(shape, np.float32, self._device)

    def forward(self, x, state, keep=False):
        """x (T, B, D) and the state (h, c) before it, (B, H) each: all h, (T, B, H), and the state behind it.

        With `keep` the layer keeps what `backward` needs: x, which is not copied; `hidden` and `cells`, of which the
        results are views, and which each call makes anew; and the gates, which overwrite those of the last call if they
        are as many: fresh memory costs time. Without it nothing of the layer changes: several threads may call it at
        once.
        """
        kernels, matmul = backend_of(self._device, "lstm"), backend_of(self._device, "matmul").matmul
        (n_steps, n_rows, n_inputs), width = x.shape, self.recurrent.shape[0]
        is_kept = keep and self._gates.shape[:2] == (n_steps, n_rows)
        gates = self._gates if is_kept else self._new(n_steps, n_rows, 4 * width)
        hidden, cells = (self._new(n_steps + 1, n_rows, width) for _ in range(2))
        hidden[0], cells[0] = state
        gates[...] = self.bias
        matmul(x.reshape(-1, n_inputs), self.weights, gates.reshape(-1, 4 * width), add=True)
        kernels.forward(self.recurrent, gates, cells, hidden)
        if keep:
            self._x, self._gates, self.hidden, self.cells = x, gates, hidden, cells
        return hidden[1:], (hidden[-1], cells[-1])

    def backward(self, dout):
        """The gradient by all h of the last `forward` with `keep`, (T, B, H), carried back to its first step.

        Returns dx and a `Gradient` for each parameter. The state before the first step counts as
        given: back-propagation is truncated there. The gates become their own gradients: once after each such
        `forward`.
        """
        if self._x is None:
            raise RuntimeError(
                "backward needs the gates that forward leaves, and has used them; call forward before, with keep=True"
            )
        shape, arrays, self._x = self._x.shape, (self._x, self.hidden[:-1], self._gates), None
        backend_of(self._device, "lstm").backward(self.recurrent, self._gates, self.cells, dout, self._gates)
        x, before, dpre = (a.reshape(-1, a.shape[2]) for a in arrays)
        dx = product(dpre, self.weights.T).reshape(shape)
        gradients = product(x.T, dpre), product(before.T, dpre), dpre.sum(axis=0)
        return dx, list(map(Gradient, self.parameters.values(), gradients))
