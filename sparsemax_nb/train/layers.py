"""Hidden layers with forward and backward pass written out.

Every layer has a `name`, its arrays in `parameters` (name -> array), and its last output in `activations`.
``memory(batch_size, n_inputs, width, ...)``, static, lists the layer's arrays for the `Plan` of a `Classifier`.

``forward(x, dropout=None, keep=False)`` returns the output; `dropout` is a result of `rng.make_dropout`. Layers over
tokens take no `dropout`, and an `LSTM` also takes and returns its state. `forward` stores what `backward` needs only
with `keep`, in a training step. Without it no layer changes, so that any number of threads may use the same network.

``backward(dout)`` may overwrite dout. It returns the gradient with respect to the input, or None in a first layer, and
a list with a `Gradient` per parameter. The network applies them with its optimizer.
"""

import math

import numpy as np

from ..core import rng, sparse
from ..core.device import asarray, backend_of, device_of, empty, module_of, product, zeros
from .gradients import Gradient
from .memory import ALWAYS, array, parameter

# Numbers of the layers in the random streams: no two layers share a stream. `FixedFanIn.random` uses stream 0.
EMBEDDING_STREAM = 1
DENSE_STREAM = 2
NO_DROPOUT = rng.make_dropout(0.0, 0, 0, 0)


def uniform(shape, scale, seed, stream, device):
    """Weights uniform in [-scale, scale) from the counter-based random stream number `stream` of `seed`."""
    values = empty(shape, np.float32, device)
    kernels = backend_of(device, "initialization")
    kernels.random_values(np.uint64(seed), rng.WEIGHTS + np.uint64(stream), np.float32(scale), values.reshape(-1))
    return values


class _ReluDropout:
    """Bias, ReLU and dropout after a matrix product; keeps only its output, from which the gradient follows."""

    def __init__(self, width, device):
        self.bias = zeros(width, np.float32, device)
        self.out = zeros((0, width), np.float32, device)
        self._device = device

    def forward(self, z, dropout, keep):
        """``dropout(max(0, z + bias))``, without dropout if it is None; overwrites z."""
        if keep:
            self.out, self._scale = z, (dropout or NO_DROPOUT).scale
        backend_of(self._device, "activations").relu_dropout(z, self.bias, dropout or NO_DROPOUT, z)
        return z

    def backward(self, dout):
        """dz, which overwrites dout, and the gradient of the bias."""
        dbias = empty(self.bias.shape, np.float32, device_of(self.bias))
        backend_of(self._device, "activations").relu_dropout_backward(dout, self.out, self._scale, dout, dbias)
        return dout, Gradient(self.bias, dbias)


class Inputs:
    """First layer over dense features: only dropout, no parameters."""

    name = "inputs"
    parameters: dict = {}

    def __init__(self, n_features, device):
        self._device = device
        self.out = zeros((0, n_features), np.float32, device)

    @staticmethod
    def memory(batch_size, n_features):
        """The arrays of training, see `train.memory`."""
        return [array(ALWAYS, "inputs", 2, batch_size, n_features)]

    @property
    def activations(self):
        return {"inputs": self.out}

    def forward(self, x, dropout=None, keep=False):
        """(B, F) -> (B, F)."""
        out = x
        if dropout is not None:
            out = empty(x.shape, np.float32, self._device)
            backend_of(self._device, "activations").dropout(x, dropout, out)
        if keep:
            self.out = out
        return out

    def backward(self, dout):
        """No gradients: there are no parameters, and there is no layer below."""
        return None, []


def gradient_of_rows(table, rows, dout):
    """`Gradient` of an embedding's table, for the rows in `rows` (SparseRows); dout (B, D) belongs to their sums."""
    device, columns = device_of(table), sparse.by_column(rows)
    drows = empty((columns.ids.shape[0], table.shape[1]), np.float32, device)
    backend_of(device, "embedding").backward(columns, dout, drows)
    return Gradient(table, drows, columns.ids)


class Embedding:
    """First layer over a sparse bag of words: ``relu(sum_j weight_j table[id_j] + bias)``, then dropout.

    table (F, D) float32. Only the rows that a batch touches are updated (lazy Adam).
    """

    name = "embedding"

    def __init__(self, n_features, width, seed, device):
        # Rows of TF-IDF weights have norm 1: scaled by sqrt(6), their sums have the variance that ReLU preserves.
        self.table = uniform((n_features, width), math.sqrt(6 / width), seed, EMBEDDING_STREAM, device)
        self._relu = _ReluDropout(width, device)
        self._device = device

    @staticmethod
    def memory(batch_size, n_features, width, entries_per_row):
        """The arrays of training, see `train.memory`; `entries_per_row` is the mean number of features per row."""
        phase, touched = "embedding: gradient", min(n_features, math.ceil(batch_size * entries_per_row))
        return [
            *parameter("embedding.table", n_features, width),
            *parameter("embedding.bias", width),
            array(ALWAYS, "embedding.output", batch_size, width),
            array(phase, "embedding.output: gradient", batch_size, width),
            array(phase, "embedding.table: gradient of its rows", touched, width),
        ]

    @property
    def parameters(self):
        return {"embedding.table": self.table, "embedding.bias": self._relu.bias}

    @property
    def activations(self):
        return {"embedding.output": self._relu.out}

    def set(self, table, bias):
        """Overwrite the parameters by NumPy arrays."""
        self.table[...] = asarray(table, self._device, np.float32)
        self._relu.bias[...] = asarray(bias, self._device, np.float32)

    def forward(self, rows, dropout=None, keep=False):
        """SparseRows -> (B, D)."""
        if keep:
            self._rows = rows
        z = empty((rows.indptr.shape[0] - 1, self.table.shape[1]), np.float32, self._device)
        backend_of(self._device, "embedding").forward(rows, self.table, z)
        return self._relu.forward(z, dropout, keep)

    def backward(self, dout):
        """The gradients of bias and table; there is no layer below."""
        dz, of_bias = self._relu.backward(dout)
        return None, [of_bias, gradient_of_rows(self.table, self._rows, dz)]


class TokenEmbedding:
    """First layer over tokens: each becomes its row of `table`, (L, D) float32, initially uniform in [-0.1, 0.1)."""

    name = "embedding"
    activations: dict = {}

    def __init__(self, n_words, width, seed, device):
        self.table = uniform((n_words, width), 0.1, seed, EMBEDDING_STREAM, device)
        self._device = device

    @property
    def parameters(self):
        return {"embedding.table": self.table}

    def forward(self, tokens, keep=False):
        """(T, B) int32 -> (T, B, D)."""
        n, xp = tokens.size, module_of(self._device)
        arrays = (xp.arange(n + 1), np.int32), (tokens.reshape(-1), np.int32), (xp.ones(n), np.float32)
        rows = sparse.SparseRows(*(asarray(array, self._device, dtype) for array, dtype in arrays))
        out = empty((n, self.table.shape[1]), np.float32, self._device)
        backend_of(self._device, "embedding").forward(rows, self.table, out)
        if keep:
            self._rows = rows
        return out.reshape(*tokens.shape, -1)

    def backward(self, dout):
        """The gradient of the table's rows that occurred, from dout (T, B, D); there is no layer below."""
        return None, [gradient_of_rows(self.table, self._rows, dout.reshape(-1, dout.shape[-1]))]


class Dense:
    """Hidden layer ``relu(x weights + bias)``, then dropout; weights (D, H) float32.

    With `first` no trainable layer is below, and the gradient with respect to the input is not computed.
    """

    name = "intermediate"

    def __init__(self, n_inputs, width, seed, device, first=False):
        self._first = first
        self.weights = uniform((n_inputs, width), math.sqrt(6 / n_inputs), seed, DENSE_STREAM, device)
        self._relu = _ReluDropout(width, device)

    @staticmethod
    def memory(batch_size, n_inputs, width, first=False):
        """The arrays of training, see `train.memory`."""
        phase = "intermediate: gradient"
        return [
            *parameter("intermediate.weights", n_inputs, width),
            *parameter("intermediate.bias", width),
            array(ALWAYS, "intermediate.output", batch_size, width),
            array(phase, "intermediate.output: gradient", batch_size, width),
            array(phase, "intermediate.weights: gradient", n_inputs, width),
            array(phase, "gradient of the layer below", 0 if first else batch_size, n_inputs),
        ]

    @property
    def parameters(self):
        return {"intermediate.weights": self.weights, "intermediate.bias": self._relu.bias}

    @property
    def activations(self):
        return {"intermediate.output": self._relu.out}

    def set(self, weights, bias, units):
        """Overwrite the parameters of some units (a slice) by NumPy arrays."""
        self.weights[:, units] = asarray(weights, device_of(self.weights), np.float32)
        self._relu.bias[units] = asarray(bias, device_of(self.weights), np.float32)

    def forward(self, x, dropout=None, keep=False):
        """(B, D) -> (B, H)."""
        if keep:
            self._x = x
        return self._relu.forward(product(x, self.weights), dropout, keep)

    def backward(self, dout):
        """dx and the gradients of bias and weights."""
        dz, of_bias = self._relu.backward(dout)
        dx = None if self._first else product(dz, self.weights.T)
        return dx, [of_bias, Gradient(self.weights, product(self._x.T, dz))]
