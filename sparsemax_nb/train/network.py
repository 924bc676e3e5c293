"""The network of the multi-label classifier: inputs or embedding, optional intermediate layer, output layer."""

import contextlib
import math
import time

import numpy as np
import scipy.sparse

from ..core import check, checkpoint, formulas, rng, sparse
from ..core.device import asarray, backend_of, empty, module_of, synchronize
from . import memory, start
from .gradients import apply_all, clip
from .layers import Dense, Embedding, Inputs
from .outputs import DenseOutput, FixedFanInOutput, GroupSharedOutput, SoftmaxOutput, UnstructuredOutput

#: Output layers by name; the sparse ones also take a fan-in and a seed.
OUTPUTS = {
    "dense": DenseOutput,
    "bottleneck": DenseOutput,
    "unstructured": UnstructuredOutput,
    "fixed-fan-in": FixedFanInOutput,
    "group-shared": GroupSharedOutput,
}
SPARSE_OUTPUTS = "unstructured", "fixed-fan-in", "group-shared"
LOSSES = *formulas.LOSSES, "softmax"
#: Random streams of the two dropouts: after the first hidden layer, and of the sparse features.
DROPOUT_STREAM = 0
WORD_DROPOUT_STREAM = 1 << 15


def _output_class(output, loss):
    return SoftmaxOutput if loss == "softmax" and output not in SPARSE_OUTPUTS else OUTPUTS[output]


class BaseNetwork:
    """Base class of the networks: a stack of layers.

    A subclass sets `device`, `steps`, `hidden` (layers with `parameters` and `activations`) and `output` (the output
    layer), and sets `output_seconds` in each step.
    """

    #: Seconds of the last step that were spent in the output layer.
    output_seconds = 0.0

    @property
    def parameters(self):
        """All arrays by name, from the input to the output."""
        layers = [*self.hidden, self.output]
        return {name: array for layer in layers for name, array in layer.parameters.items()}

    @property
    def output_nbytes(self):
        """Bytes of the output layer's parameters; training with Adam adds two float32 moments per weight."""
        return sum(array.nbytes for array in self.output.parameters.values())

    @property
    def nbytes(self):
        """Bytes of all parameters."""
        return sum(array.nbytes for array in self.parameters.values())

    def set_parameters(self, arrays, prefix=""):
        """Overwrite all parameters in place by ``arrays[prefix + name]``, NumPy; TypeError or ValueError if invalid."""
        for name, array in self.parameters.items():
            target = checkpoint.bits(array)
            stored = check.array(name, checkpoint.bits(arrays[prefix + name]), target.dtype, array.shape)
            if array.dtype.kind != "i":
                check.finite(name, stored.view(array.dtype))
            target[...] = asarray(stored, self.device)
        self.output.check_connections()

    @property
    def sampler_state(self):
        """State that a checkpoint needs apart from parameters and moments, by name: the sampler's arrays, if any."""
        negatives = getattr(self.output, "negatives", None)
        return {} if negatives is None else {f"sampler/{name}": array for name, array in negatives.arrays.items()}

    def restore_sampler(self, arrays):
        """Continue from a `sampler_state` among these arrays; KeyError, TypeError or ValueError if it does not fit."""
        if getattr(self.output, "negatives", None) is not None:
            prefix = "sampler/"
            names = (name for name in arrays if name.startswith(prefix))
            self.output.negatives.restore({name.removeprefix(prefix): arrays[name] for name in names})

    @contextlib.contextmanager
    def _timing_output(self):
        """Add the time of the block to that of the output layer; on CUDA the device is synchronized for that."""
        if self.device == "cuda":
            synchronize()
        start = time.perf_counter()
        try:
            yield
            if self.device == "cuda":
                synchronize()
        finally:
            self.output_seconds += time.perf_counter() - start

    @staticmethod
    def _note_norm(norms, layer, gradient):
        """Record the norm of the gradient with respect to a layer's output in the dict `norms`, unless it is None."""
        if norms is not None:
            flat = gradient.reshape(-1)
            norms[layer.name] = math.sqrt(float(flat @ flat))

    def first_not_finite(self):
        """Name of the first array with NaN or infinity, or None: parameters, then activations of the last step."""
        activations = {name: array for layer in self.hidden for name, array in layer.activations.items()}
        for name, array in (self.parameters | activations).items():
            if not bool(module_of(self.device).isfinite(array).all()):
                return name
        return None


class Network(BaseNetwork):
    """Sparse bag of words -> embedding -> ReLU -> dropout [-> dense -> ReLU] -> output layer.

    With dense features: features -> dropout [-> dense -> ReLU] -> output layer.

    Parameters
    ----------
    n_features, n_labels : int
    embedding : int or None
        Width of the embedding; None: the features are dense, (B, n_features) float32.
    intermediate : int or None
        Width of the dense layer below the output; None omits it.
    output : 'dense', 'bottleneck', 'unstructured', 'fixed-fan-in' or 'group-shared'
    fan_in : int
        Connections per label of a sparse output (of an unstructured one: on average).
    dropout : float
        Dropout rate after the embedding, or of dense features.
    seed : int
    device : 'cpu' or 'cuda'
    loss : 'squared-hinge', 'bce' or 'softmax'
        With 'softmax', a dense output or bottleneck has no bias.
    word_dropout : float
        Dropout rate of the entries of sparse features.
    group_size : int
        Labels per group of a group-shared output.
    weight_dtype : 'float32' or 'bfloat16'
        Type of the weights of a group-shared output.
    clip : float or None
        Maximum norm of the gradient of all parameters together; None: no clipping.
    """

    def __init__(
        self,
        n_features,
        n_labels,
        *,
        embedding,
        intermediate,
        output,
        fan_in,
        dropout,
        seed,
        device,
        loss="squared-hinge",
        word_dropout=0.0,
        group_size=1,
        weight_dtype="float32",
        clip=None,
    ):
        self.clip = clip
        self.device = device
        self.seed = seed
        self.steps = 0
        self.dropout = dropout
        self.word_dropout = word_dropout
        self.is_dense = embedding is None
        if self.is_dense:
            self.hidden = [Inputs(n_features, device)]
        else:
            self.hidden = [Embedding(n_features, embedding, seed, device)]
        width = n_features if self.is_dense else embedding
        if intermediate is not None:
            self.hidden.append(Dense(width, intermediate, seed, device, first=self.is_dense))
            width = intermediate
        self.width = width  # of the output layer's input
        output_arguments = (fan_in, seed) if output in SPARSE_OUTPUTS else ()
        output_arguments += (group_size, weight_dtype) if output == "group-shared" else ()
        self.output = _output_class(output, loss)(width, n_labels, *output_arguments, device)

    @staticmethod
    def memory(
        *,
        n_features,
        n_labels,
        embedding,
        intermediate,
        output,
        fan_in,
        device,
        batch_size=1,
        entries_per_row=0.0,
        group_size=1,
        weight_dtype="float32",
        rewired=0.1,
        keep_best=False,
        k=5,
        loss="squared-hinge",
        sampling=None,
        labels_per_row=1.0,
        clip=None,
        initial="random",
        n_points=1 << 20,
    ):
        """The `Plan` of training such a network with Adam, and of predictions, both in batches of `batch_size` rows.

        Parameters beyond those of `Network`: `entries_per_row`, the mean number of sparse features per row; `rewired`,
        the share of the connections that a rewiring replaces; `keep_best`, whether the weights of the best epoch are
        also stored; `k` of the top-k; `sampling`, the `Sampling` of a softmax loss with negatives, or None;
        `labels_per_row`, the mean number of labels per row; `initial`, as in `Classifier`; `n_points`, the number of
        training points. Data, code and libraries are not counted.
        """
        width, arrays = n_features, []
        if embedding is None:
            arrays += Inputs.memory(batch_size, n_features)
        else:
            arrays += Embedding.memory(batch_size, n_features, embedding, entries_per_row)
            width = embedding
        if intermediate is not None:
            arrays += Dense.memory(batch_size, width, intermediate, first=embedding is None)
            width = intermediate
        arrays += _output_class(output, loss).memory(
            batch_size,
            width,
            n_labels,
            device=device,
            fan_in=fan_in,
            group_size=group_size if output == "group-shared" else None,
            weight_dtype=weight_dtype if output == "group-shared" else "float32",
            rewired=rewired,
            clipped=clip is not None,
            k=k,
            loss=loss,
            sampling=sampling,
            labels_per_row=labels_per_row,
        )
        if initial == "labels":
            arrays += start.memory(n_points, n_features, n_labels, embedding, intermediate, output)
        arrays.append(memory.array(memory.PREDICTION, "hidden layers' outputs", batch_size, width))
        if keep_best and device == "cpu":  # those of a CUDA network are stored in the host's memory
            parameters = [array for array in arrays if array.shape is not None]
            arrays += [memory.Array(memory.ALWAYS, f"{a.name}: of the best epoch", a.nbytes) for a in parameters]
        return memory.Plan(arrays)

    def forward(self, x, training=False):
        """The input h (B, H) of the output layer, from a SciPy CSR matrix or dense array (B, F)."""
        return self.hidden_outputs(x, training)[-1]

    def hidden_outputs(self, x, training=False):
        """The outputs of all hidden layers, from a SciPy CSR matrix or dense array (B, F).

        Only in training the layers store what their backward pass needs; otherwise the network does not change.
        """
        if scipy.sparse.issparse(x):
            h = sparse.as_rows(x, self.device)
            if training and self.word_dropout > 0:
                h = self._drop_words(h)
        else:
            h = asarray(x, self.device, np.float32)
            check.finite("X", h)
        has_dropout = training and self.dropout > 0
        dropout = rng.make_dropout(self.dropout, self.seed, DROPOUT_STREAM, self.steps) if has_dropout else None
        first, *others = self.hidden
        outputs = [first.forward(h, dropout, keep=training)]
        for layer in others:
            outputs.append(layer.forward(outputs[-1], keep=training))
        return outputs

    def _drop_words(self, rows):
        """Dropout of the entries: some weights become zero, the others are scaled up to preserve the expectation."""
        dropout = rng.make_dropout(self.word_dropout, self.seed, WORD_DROPOUT_STREAM, self.steps)
        weights = empty((1, rows.weights.shape[0]), np.float32, self.device)
        backend_of(self.device, "activations").dropout(rows.weights.reshape(1, -1), dropout, weights)
        return rows._replace(weights=weights.reshape(-1))

    def step(self, x, labels, loss, optimizer, norms=None):
        """One training step on a batch (labels SciPy CSR): forward, backward, update of all layers; returns the loss.

        A dict `norms` receives the norm of the loss's gradient with respect to the output of each hidden layer.
        """
        h = self.forward(x, training=True)
        if self.device == "cuda":
            arrays = labels.indptr, labels.indices
            labels = sparse.Labels(*(asarray(a, self.device, np.int32) for a in arrays))
        self.output_seconds = 0.0
        with self._timing_output():
            if self.clip is None:
                value, dout = self.output.step(h, labels, loss, optimizer, self.steps)
            else:
                value, dout, gradients = self.output.gradients(h, labels, loss, self.steps)
        for layer in reversed(self.hidden):
            if dout is None:
                break
            self._note_norm(norms, layer, dout)
            dout, of_layer = layer.backward(dout)
            if self.clip is None:
                apply_all(of_layer, optimizer)
            else:
                gradients += of_layer
        if self.clip is not None:
            clip(gradients, self.clip)
            apply_all(gradients, optimizer)
        self.steps += 1
        return value

    def rewire(self, fraction, optimizer):
        """Replace the share `fraction` of the output layer's connections; returns the share that was replaced."""
        return self.output.rewire(fraction, self.seed, self.steps, optimizer)

    def top_k(self, x, k):
        """The k best labels of each row of a SciPy CSR matrix or dense array: scores, ids (B, k)."""
        return self.output.top_k(self.forward(x), k)
