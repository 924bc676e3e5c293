"""Layers with forward and backward written out. A layer's `backward` also updates its parameters.

Every layer lists its arrays in `parameters` (name -> array), hidden layers also their last output in `activations`; a
layer passes back the gradient by its input *from before* the update.
"""

import math

import numpy as np

from ..core import backend, check, formulas, rng, sparse
from ..fixed_fan_in import FixedFanIn, fixed_fan_in_step, fixed_fan_in_top_k

# Numbers of the layers in the random streams: no two layers draw from the same counters.
EMBEDDING, DENSE, OUTPUT = 0, 1, 2
NO_DROPOUT = rng.make_dropout(0.0, 0, 0, 0)


def uniform(shape, scale, seed, layer, device):
    """Weights uniform in [-scale, scale) from the counter-based stream of `seed` for layer number `layer`."""
    values = backend.empty(shape, np.float32, device)
    wing = backend.wing(device, "fixed_fan_in")
    wing.random_values(np.uint64(seed), rng.WEIGHTS + np.uint64(layer), np.float32(scale), values.reshape(-1))
    return values


def product(a, b):
    """``a @ b``, float32 matrices on one device."""
    device = backend.device_of(a)
    out = backend.empty((a.shape[0], b.shape[1]), np.float32, device)
    backend.wing(device, "matmul").matmul(a, b, out)
    return out


class _ReluDropout:
    """Bias, ReLU and dropout behind a product; remembers its output, which is all that the gradient needs."""

    def __init__(self, width, device):
        self.bias = backend.zeros(width, np.float32, device)
        self.out = backend.zeros((0, width), np.float32, device)
        self._wing = backend.wing(device, "activations")

    def forward(self, z, dropout):
        """``max(0, z + bias)``, dropped out where `dropout` is given; overwrites z."""
        self.out, self._scale = z, (dropout or NO_DROPOUT).scale
        self._wing.relu_dropout(z, self.bias, dropout or NO_DROPOUT, z)
        return z

    def backward(self, dout, optimizer):
        """Gradient by z; overwrites dout. Updates the bias."""
        dbias = backend.empty(self.bias.shape, np.float32, backend.device_of(self.bias))
        self._wing.relu_dropout_backward(dout, self.out, self._scale, dout, dbias)
        optimizer.step(self.bias, dbias)
        return dout


class Embedding:
    """First layer over a sparse bag of words: ``relu(sum_j weight_j table[id_j] + bias)``, then dropout.

    table (F, D) float32. Only the rows that a batch touches are updated (lazy Adam).
    """

    def __init__(self, n_features, width, seed, device):
        # a row of TF-IDF weights has norm 1: with weights uniform in ±sqrt(6) its sum has the variance that ReLU keeps
        self.table = uniform((n_features, width), math.sqrt(6 / width), seed, EMBEDDING, device)
        self._relu = _ReluDropout(width, device)
        self._device, self._wing = device, backend.wing(device, "embedding")

    @property
    def parameters(self):
        return {"embedding.table": self.table, "embedding.bias": self._relu.bias}

    @property
    def activations(self):
        return {"embedding.output": self._relu.out}

    def forward(self, rows, dropout=None):
        """SparseRows -> (B, D)."""
        self._rows = rows
        z = backend.empty((rows.indptr.shape[0] - 1, self.table.shape[1]), np.float32, self._device)
        self._wing.forward(rows, self.table, z)
        return self._relu.forward(z, dropout)

    def backward(self, dout, optimizer):
        """Update table and bias from the gradient by the output (overwritten). There is nothing below."""
        dz = self._relu.backward(dout, optimizer)
        columns = sparse.by_column(self._rows)
        drows = backend.empty((columns.ids.shape[0], self.table.shape[1]), np.float32, self._device)
        self._wing.backward(columns, dz, drows)
        optimizer.step_rows(self.table, columns.ids, drows)


class Dense:
    """Hidden layer ``relu(x weights + bias)``, then dropout; weights (D, H) float32."""

    def __init__(self, n_inputs, width, seed, device):
        self.weights = uniform((n_inputs, width), math.sqrt(6 / n_inputs), seed, DENSE, device)
        self._relu = _ReluDropout(width, device)

    @property
    def parameters(self):
        return {"intermediate.weights": self.weights, "intermediate.bias": self._relu.bias}

    @property
    def activations(self):
        return {"intermediate.output": self._relu.out}

    def forward(self, x, dropout=None):
        """(B, D) -> (B, H)."""
        self._x = x
        return self._relu.forward(product(x, self.weights), dropout)

    def backward(self, dout, optimizer):
        """Gradient by x; overwrites dout."""
        dz = self._relu.backward(dout, optimizer)
        dx = product(dz, self.weights.T)
        optimizer.step(self.weights, product(self._x.T, dz))
        return dx


class DenseOutput:
    """Dense output layer ``scores = x weights.T + bias``; weights (L, H). Stores scores and gradient, (B, L)."""

    def __init__(self, n_inputs, n_labels, seed, device):
        self.weights = uniform((n_labels, n_inputs), 1 / math.sqrt(n_inputs), seed, OUTPUT, device)
        self.bias = backend.zeros(n_labels, np.float32, device)
        self._device = device

    @property
    def parameters(self):
        return {"output.weights": self.weights, "output.bias": self.bias}

    def _scores(self, x):
        scores = product(x, self.weights.T)
        scores += self.bias
        return scores

    def step(self, x, labels, loss, optimizer):
        """Loss of a batch and gradient by x; updates weights and bias."""
        positives = sparse.by_label(sparse.as_labels(labels, x.shape[0], self._device, len(self.bias)), len(self.bias))
        dscores = self._scores(x)
        label_loss = backend.empty(self.bias.shape, np.float32, self._device)
        backend.wing(self._device, "losses").multilabel(dscores, positives, formulas.LOSSES[loss], dscores, label_loss)
        value = float(label_loss.sum(dtype=np.float64))
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value}")
        dx = product(dscores, self.weights)
        optimizer.step(self.weights, product(dscores.T, x))
        optimizer.step(self.bias, dscores.sum(axis=0))
        return value, dx

    def top_k(self, x, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32."""
        k = check.integer("k", k, 1, len(self.bias), f" (n_labels = {len(self.bias)})")
        top_scores = backend.empty((x.shape[0], k), np.float32, self._device)
        top_ids = backend.empty((x.shape[0], k), np.int32, self._device)
        backend.wing(self._device, "top_k").top_k(self._scores(x), top_scores, top_ids)
        return top_scores, top_ids


class FixedFanInOutput:
    """Sparse output layer: `FixedFanIn` and its fused step; no (B, L) array exists."""

    def __init__(self, n_inputs, n_labels, fan_in, seed, device):
        self.layer = FixedFanIn.random(n_labels, n_inputs, fan_in, seed, device=device)
        self.bias = self.layer.bias

    @property
    def parameters(self):
        names = "output.indices", "output.values", "output.bias"
        return dict(zip(names, self.layer.arrays, strict=True))

    def step(self, x, labels, loss, optimizer):
        """Loss of a batch and gradient by x; updates values and bias."""
        return fixed_fan_in_step(x, self.layer, labels, loss, optimizer)

    def top_k(self, x, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32."""
        return fixed_fan_in_top_k(x, self.layer, k)
