"""The network of the multi-label classifier: embedding, optional intermediate layer, output layer."""

import numpy as np

from ..core import backend, rng, sparse
from .layers import Dense, DenseOutput, Embedding, FixedFanInOutput


class Network:
    """Sparse bag of words -> embedding -> ReLU -> dropout [-> dense -> ReLU] -> output layer.

    Parameters
    ----------
    n_features, n_labels : int
    embedding : int
        Width of the embedding.
    intermediate : int or None
        Width of the dense layer below the output; None leaves it out.
    fan_in : int or None
        Connections per label of a fixed fan-in output; None makes the output dense.
    dropout : float
        Rate behind the embedding.
    seed : int
    device : 'cpu' or 'cuda'
    """

    def __init__(self, n_features, n_labels, *, embedding, intermediate, fan_in, dropout, seed, device):
        self.device, self.seed, self.dropout, self.steps = device, seed, dropout, 0
        self.hidden = [Embedding(n_features, embedding, seed, device)]
        if intermediate is not None:
            self.hidden.append(Dense(embedding, intermediate, seed, device))
        width = embedding if intermediate is None else intermediate
        if fan_in is None:
            self.output = DenseOutput(width, n_labels, seed, device)
        else:
            self.output = FixedFanInOutput(width, n_labels, fan_in, seed, device)

    @property
    def parameters(self):
        """All arrays by name, from the input to the output."""
        layers = [*self.hidden, self.output]
        return {name: array for layer in layers for name, array in layer.parameters.items()}

    @property
    def output_nbytes(self):
        """Bytes of the output layer's parameters; training with Adam adds two float32 moments for each weight."""
        return sum(array.nbytes for array in self.output.parameters.values())

    @property
    def nbytes(self):
        """Bytes of all parameters."""
        return sum(array.nbytes for array in self.parameters.values())

    def forward(self, x, training=False):
        """Contexts h (B, H) of a SciPy CSR matrix (B, F): the input of the output layer."""
        h = sparse.as_rows(x, self.device)
        for number, layer in enumerate(self.hidden):
            drop = training and number == 0 and self.dropout > 0
            h = layer.forward(h, rng.make_dropout(self.dropout, self.seed, number, self.steps) if drop else None)
        return h

    def step(self, x, labels, loss, optimizer):
        """One training step on a batch (SciPy CSR): forward, backward and update of every layer; returns the loss."""
        h = self.forward(x, training=True)
        if self.device == "cuda":
            arrays = labels.indptr, labels.indices
            labels = sparse.Labels(*(backend.asarray(a, self.device, np.int32) for a in arrays))
        value, gradient = self.output.step(h, labels, loss, optimizer)
        for layer in reversed(self.hidden):
            gradient = layer.backward(gradient, optimizer)
        self.steps += 1
        return value

    def top_k(self, x, k):
        """The k best labels of each row of a SciPy CSR matrix: scores, ids (B, k)."""
        return self.output.top_k(self.forward(x), k)

    def first_not_finite(self):
        """Name of the first array that holds NaN or infinity, or None: parameters, then the last outputs of the layers."""
        activations = {name: array for layer in self.hidden for name, array in layer.activations.items()}
        for name, array in (self.parameters | activations).items():
            if not bool(backend.module_of(self.device).isfinite(array).all()):
                return name
        return None
