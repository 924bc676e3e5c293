"""Layers with forward and backward written out. A layer's `backward` also updates its parameters.

Every layer has a `name` and lists its arrays in `parameters` (name -> array), hidden layers also their last output in
`activations`; a layer passes back the gradient by its input *from before* the update, or None where nothing lies below.

`forward` writes to the layer only with `keep`, in a step of training: then the layer keeps what `backward` needs.
Without it nothing of the layer changes, so any number of threads may read one network at the same time.
"""

import math

import numpy as np

from ..core import check, formulas, rng, sparse
from ..core.device import asarray, backend_of, device_of, empty, module_of, product, to_numpy, zeros
from ..fixed_fan_in import FixedFanIn, fixed_fan_in_step, fixed_fan_in_top_k
from ..group_shared import GroupSharedFanIn
from ..rewiring import rewire
from .gradients import Gradient

# Numbers of the layers in the random streams: no two layers draw from the same counters. `FixedFanIn.random` takes 0.
EMBEDDING, DENSE = 1, 2
NO_DROPOUT = rng.make_dropout(0.0, 0, 0, 0)
#: The score of labels that no training point has: below any other, and a number that JSON knows. Losses and gradients
#: of such a negative are exactly zero, so it stays what it is.
LAST = np.float32(-1e30)


def uniform(shape, scale, seed, layer, device):
    """Weights uniform in [-scale, scale) from the counter-based stream of `seed` for layer number `layer`."""
    values = empty(shape, np.float32, device)
    wing = backend_of(device, "fixed_fan_in")
    wing.random_values(np.uint64(seed), rng.WEIGHTS + np.uint64(layer), np.float32(scale), values.reshape(-1))
    return values


class _ReluDropout:
    """Bias, ReLU and dropout behind a product; keeps its output, which is all that the gradient needs."""

    def __init__(self, width, device):
        self.bias = zeros(width, np.float32, device)
        self.out = zeros((0, width), np.float32, device)
        self._device = device

    def forward(self, z, dropout, keep):
        """``max(0, z + bias)``, dropped out where `dropout` is given; overwrites z."""
        if keep:
            self.out, self._scale = z, (dropout or NO_DROPOUT).scale
        backend_of(self._device, "activations").relu_dropout(z, self.bias, dropout or NO_DROPOUT, z)
        return z

    def backward(self, dout, optimizer):
        """Gradient by z; overwrites dout. Updates the bias."""
        dbias = empty(self.bias.shape, np.float32, device_of(self.bias))
        backend_of(self._device, "activations").relu_dropout_backward(dout, self.out, self._scale, dout, dbias)
        optimizer.step(self.bias, dbias)
        return dout


class Inputs:
    """First layer over dense features: they pass as they are, but for dropout. No parameters."""

    name = "inputs"
    parameters: dict = {}

    def __init__(self, n_features, device):
        self._device = device
        self.out = zeros((0, n_features), np.float32, device)

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

    def backward(self, dout, optimizer):
        """There is nothing to update, and nothing below."""


def gradient_of_rows(table, rows, dout):
    """`Gradient` by the rows of an embedding's table that `rows` (SparseRows) touches, from that by their sums, (B, D)."""
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
        # a row of TF-IDF weights has norm 1: with weights uniform in ±sqrt(6) its sum has the variance that ReLU keeps
        self.table = uniform((n_features, width), math.sqrt(6 / width), seed, EMBEDDING, device)
        self._relu = _ReluDropout(width, device)
        self._device = device

    @property
    def parameters(self):
        return {"embedding.table": self.table, "embedding.bias": self._relu.bias}

    @property
    def activations(self):
        return {"embedding.output": self._relu.out}

    def forward(self, rows, dropout=None, keep=False):
        """SparseRows -> (B, D)."""
        if keep:
            self._rows = rows
        z = empty((rows.indptr.shape[0] - 1, self.table.shape[1]), np.float32, self._device)
        backend_of(self._device, "embedding").forward(rows, self.table, z)
        return self._relu.forward(z, dropout, keep)

    def backward(self, dout, optimizer):
        """Update table and bias from the gradient by the output (overwritten). There is nothing below."""
        gradient_of_rows(self.table, self._rows, self._relu.backward(dout, optimizer)).apply(optimizer)


class TokenEmbedding:
    """First layer over tokens: each becomes its row of `table`, (L, D) float32, uniform in ±0.1 at first."""

    name = "embedding"
    activations: dict = {}

    def __init__(self, n_words, width, seed, device):
        self.table = uniform((n_words, width), 0.1, seed, EMBEDDING, device)
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

    def gradient(self, dout):
        """`Gradient` by the rows of the table that the tokens kept last were, from that by the output (T, B, D)."""
        return gradient_of_rows(self.table, self._rows, dout.reshape(-1, dout.shape[-1]))


class Dense:
    """Hidden layer ``relu(x weights + bias)``, then dropout; weights (D, H) float32.

    With `first` nothing that learns lies below, and the gradient by the input is not computed.
    """

    name = "intermediate"

    def __init__(self, n_inputs, width, seed, device, first=False):
        self._first = first
        self.weights = uniform((n_inputs, width), math.sqrt(6 / n_inputs), seed, DENSE, device)
        self._relu = _ReluDropout(width, device)

    @property
    def parameters(self):
        return {"intermediate.weights": self.weights, "intermediate.bias": self._relu.bias}

    @property
    def activations(self):
        return {"intermediate.output": self._relu.out}

    def forward(self, x, dropout=None, keep=False):
        """(B, D) -> (B, H)."""
        if keep:
            self._x = x
        return self._relu.forward(product(x, self.weights), dropout, keep)

    def backward(self, dout, optimizer):
        """Gradient by x; overwrites dout."""
        dz = self._relu.backward(dout, optimizer)
        dx = None if self._first else product(dz, self.weights.T)
        optimizer.step(self.weights, product(self._x.T, dz))
        return dx


def multilabel_loss(scores, labels, loss):
    """Loss of a batch and its gradient by the scores (B, L), which are overwritten; FloatingPointError if not finite."""
    device, n_labels = device_of(scores), scores.shape[1]
    positives = sparse.by_label(sparse.as_labels(labels, len(scores), device, n_labels), n_labels)
    label_loss = empty(n_labels, np.float32, device)
    backend_of(device, "losses").multilabel(scores, positives, formulas.LOSSES[loss], scores, label_loss)
    value = float(label_loss.sum(dtype=np.float64))
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    return value, scores


def top_k_of_scores(scores, k):
    """The k best labels of each row of scores (B, L): scores (B, k), ids (B, k) int32."""
    device, n_labels = device_of(scores), scores.shape[1]
    k = check.integer("k", k, 1, n_labels, f" (n_labels = {n_labels})")
    top_scores = empty((len(scores), k), np.float32, device)
    top_ids = empty((len(scores), k), np.int32, device)
    backend_of(device, "top_k").top_k(scores, top_scores, top_ids)
    return top_scores, top_ids


class RankedLast:
    """Labels that come last in every list, by id: those that no training point has. Their bias says so."""

    def rank_last(self, ids):
        """Give the labels `ids` (NumPy) the score LAST; their weights have to be zero."""
        self.bias[asarray(ids, device_of(self.bias))] = LAST


class DenseOutput(RankedLast):
    """Dense output layer ``scores = x weights.T + bias``; weights (L, H). Stores scores and gradient, (B, L).

    The weights of every output layer start at zero (our choice): random scores of 10^4 labels are noise that takes
    epochs to unlearn, above all for rare labels.
    """

    name = "output"

    def __init__(self, n_inputs, n_labels, device):
        self.weights = zeros((n_labels, n_inputs), np.float32, device)
        self.bias = zeros(n_labels, np.float32, device)
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
        value, dscores = multilabel_loss(self._scores(x), labels, loss)
        dx = product(dscores, self.weights)
        optimizer.step(self.weights, product(dscores.T, x))
        optimizer.step(self.bias, dscores.sum(axis=0))
        return value, dx

    def check_connections(self):
        """All inputs are connected to all labels: nothing to check."""

    def top_k(self, x, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32."""
        return top_k_of_scores(self._scores(x), k)


class FixedFanInOutput(RankedLast):
    """Sparse output layer: `FixedFanIn` and its fused step; no (B, L) array exists. The values start at zero."""

    name = "output"

    def __init__(self, n_inputs, n_labels, fan_in, seed, device):
        self.layer = FixedFanIn.random(n_labels, n_inputs, fan_in, seed, device=device)
        self.layer.values[...] = 0
        self.values, self.bias = self.layer.values, self.layer.bias

    @property
    def parameters(self):
        layer = self.layer
        return {"output.indices": layer.indices, "output.values": layer.values, "output.bias": layer.bias}

    def step(self, x, labels, loss, optimizer):
        """Loss of a batch and gradient by x; updates values and bias."""
        return fixed_fan_in_step(x, self.layer, labels, loss, optimizer)

    def check_connections(self):
        """ValueError where parameters that were overwritten hold connections that can not be: kernels trust them."""
        FixedFanIn(self.layer.n_inputs, *self.layer.arrays)

    def top_k(self, x, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32."""
        return fixed_fan_in_top_k(x, self.layer, k)

    def rewire(self, fraction, seed, step, optimizer):
        """Replace the share `fraction` of the connections, those with the smallest weights; returns what it came to."""
        return len(rewire(self.layer, fraction, seed, optimizer, step=step)) / self.layer.indices.size


class GroupSharedOutput(FixedFanInOutput):
    """`FixedFanInOutput` with inputs shared by groups of labels; labels keep their ids, `order` says who lies where.

    ``order[place]`` is the label at a place of the layer; neighbours share their inputs. At first every label lies at
    its id; set another order before the first step.
    """

    def __init__(self, n_inputs, n_labels, fan_in, seed, group_size, weight_dtype, device):
        self.layer = GroupSharedFanIn.random(
            n_labels, n_inputs, fan_in, group_size, seed, dtype=weight_dtype, device=device
        )
        self.layer.values[...] = 0
        self.values, self.bias = self.layer.values, self.layer.bias
        self.order = asarray(module_of(device).arange(n_labels), device, np.int32)
        self._places = self.order.copy()  # of each label

    @property
    def parameters(self):
        return super().parameters | {"output.order": self.order}

    def rank_last(self, ids):
        """As in `RankedLast`: the bias is that of the labels' places."""
        super().rank_last(to_numpy(self._places)[ids])

    def set_order(self, order):
        """Lay the labels in the order that `group_labels` gives."""
        self.order[...] = asarray(order, self.layer.device, np.int32)
        self.check_connections()

    def check_connections(self):
        """ValueError where parameters that were overwritten hold connections, or an order, that can not be."""
        layer, xp = self.layer, module_of(self.layer.device)
        GroupSharedFanIn(layer.n_inputs, layer.indices, layer.values, layer.bias, layer.group_size)
        every_label = asarray(xp.arange(layer.n_labels), layer.device, np.int32)
        if not bool((xp.sort(self.order) == every_label).all()):
            raise ValueError("output.order must be a permutation of the labels")
        self._places[self.order] = every_label

    def step(self, x, labels, loss, optimizer):
        """Loss of a batch and gradient by x; updates values and bias."""
        labels = sparse.as_labels(labels, len(x), self.layer.device, self.layer.n_labels)
        labels = labels._replace(indices=self._places[labels.indices])
        return super().step(x, labels, loss, optimizer)

    def top_k(self, x, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32; equal scores by their place in the layer."""
        scores, places = super().top_k(x, k)
        return scores, self.order[places]
