"""Output layers: loss, gradients and top-k over the classes. `Output` describes what each of them implements."""

import math

import numpy as np
import scipy.sparse

from ..core import check, rng, sparse
from ..core.device import (
    SIMULATOR,
    asarray,
    backend_of,
    csr_matrix,
    device_of,
    empty,
    module_of,
    product,
    to_numpy,
    zeros,
)
from ..fixed_fan_in import (
    FixedFanIn,
    fixed_fan_in_backward,
    fixed_fan_in_forward,
    fixed_fan_in_step,
    fixed_fan_in_top_k,
)
from ..full_softmax import MAX_ELEMENTS, softmax_cross_entropy
from ..group_shared import DTYPES, GroupSharedFanIn
from ..rewiring import rewire
from ..sampled_fan_in import sampled_softmax_of_layer
from ..sampled_softmax import _sampled_softmax
from .gradients import Gradient, apply_all
from .memory import ALWAYS, PREDICTION, REWIRING, STEP, array, parameter
from .negatives import Negatives
from .score_losses import multilabel_loss

#: Score of labels without training points: lower than any other score, and valid in JSON. The losses and gradients of
#: such a negative are exactly zero, so that training does not change it.
UNSEEN_SCORE = np.float32(-1e30)
#: Four-byte numbers per sampled negative until its gradient is known: id, log Q, score, gradient, indices, sort keys.
NUMBERS_PER_NEGATIVE = 16
#: Bytes per connection while an unstructured layer draws or redraws connections (measured).
BYTES_PER_DRAWN_CONNECTION = 130


def top_k_of_scores(scores, k):
    """The k best labels of each row of scores (B, L): scores (B, k), ids (B, k) int32."""
    device, n_labels = device_of(scores), scores.shape[1]
    k = check.integer("k", k, 1, n_labels, f" (n_labels = {n_labels})")
    top_scores = empty((len(scores), k), np.float32, device)
    top_ids = empty((len(scores), k), np.int32, device)
    backend_of(device, "top_k").top_k(scores, top_scores, top_ids)
    return top_scores, top_ids


class Output:
    """Base class of the output layers. h (B, H) is on the device of the layer.

    A subclass implements:

    - the constructor, ``(n_inputs, n_labels, ..., device)``; sparse layers take ``fan_in, seed`` before the device;
    - ``memory(batch_size, n_inputs, n_labels, **sizes)``, static or a class method: its arrays as a list of
      `memory.Array`. It takes the `sizes` it needs from those that `Network.memory` passes, and ignores the others;
    - ``parameters``, a property: {name: array}, updated and overwritten in place. Integer arrays are not trained;
    - ``gradients(h, labels, loss, step_number)``: the loss, dh, and a list with a `Gradient` per trained parameter.
      `labels` are SciPy CSR or `Labels` (for `SoftmaxOutput` also targets, (B,) int32). `step_number` is the number of
      the training step, for samplers;
    - ``top_k(h, k)``: scores (B, k) and ids (B, k) int32, best first;
    - ``weights_of(label)``, for explanations: the inputs that the label is connected to, (n,) integers, their weights,
      (n,) float64, both NumPy, and the bias of the label.

    It may override `step` with one fused pass over the labels that never stores all scores; dh is always computed from
    the weights before the update. It overrides `rank_last` if it has no `bias` (L,), and `check_connections` if it has
    connections. Sparse layers also have ``rewire(fraction, seed, step, optimizer)``, which returns the share of the
    connections that were replaced. A layer that can sample has ``negatives``, a `Negatives` or None.
    """

    def step(self, h, labels, loss, optimizer, step_number):
        """Loss of a batch and dh; updates the parameters."""
        value, dh, gradients = self.gradients(h, labels, loss, step_number)
        apply_all(gradients, optimizer)
        return value, dh

    @staticmethod
    def _step_memory(batch_size, n_inputs, n_labels):
        """Arrays of a training step that all layers with a bias allocate."""
        return [
            array(STEP, "gradient of the layer below", batch_size, n_inputs),
            array(STEP, "rows of each label", n_labels, 5),
            array(STEP, "loss of each label", n_labels),
        ]

    def rank_last(self, ids):
        """Make the labels `ids` (NumPy), which have no training points, rank last: their bias becomes UNSEEN_SCORE.

        Their weights must be zero.
        """
        self.bias[asarray(ids, device_of(self.bias))] = UNSEEN_SCORE

    def check_connections(self):
        """ValueError if overwritten parameters are no valid connections; dense layers have none."""


class DenseOutput(Output):
    """Dense output layer ``scores = h weights.T + bias``; weights (L, H). Stores scores and gradient, (B, L).

    The weights of every output layer start at zero (our choice): random scores of 10^4 labels are noise that takes
    epochs to unlearn, especially for rare labels.
    """

    def __init__(self, n_inputs, n_labels, device):
        self.weights = zeros((n_labels, n_inputs), np.float32, device)
        self.bias = zeros(n_labels, np.float32, device)
        self._device = device

    @classmethod
    def memory(cls, batch_size, n_inputs, n_labels, **_):
        """The arrays of training and prediction, see `train.memory`."""
        return [
            *parameter("output.weights", n_labels, n_inputs),
            *parameter("output.bias", n_labels),
            array(STEP, "output.weights: gradient", n_labels, n_inputs),
            array(STEP, "scores, which become their gradient", batch_size, n_labels),
            *cls._step_memory(batch_size, n_inputs, n_labels),
            array(PREDICTION, "scores", batch_size, n_labels),
        ]

    @property
    def parameters(self):
        return {"output.weights": self.weights, "output.bias": self.bias}

    def _scores(self, h):
        scores = product(h, self.weights.T)
        scores += self.bias
        return scores

    def gradients(self, h, labels, loss, step_number):
        """Loss of a batch, dh, and the gradients of weights and bias."""
        value, dscores = multilabel_loss(self._scores(h), labels, loss)
        of_weights = Gradient(self.weights, product(dscores.T, h))
        return value, product(dscores, self.weights), [of_weights, Gradient(self.bias, dscores.sum(axis=0))]

    def top_k(self, h, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32."""
        return top_k_of_scores(self._scores(h), k)

    def weights_of(self, label):
        """As in `Output`."""
        weights = to_numpy(self.weights[label]).astype(np.float64)
        return np.arange(len(weights)), weights, float(self.bias[label])


class FixedFanInOutput(Output):
    """Sparse output layer: `FixedFanIn` with its fused step, so that no (B, L) array exists. Values start at zero.

    With `negatives`, the softmax loss compares each label with the negatives of its row instead of all labels, and only
    the labels that occur have a gradient (lazy Adam).
    """

    backend = "fixed_fan_in"  # its module in cpu/ and cuda/
    #: `Negatives` of a softmax loss, or None.
    negatives = None

    def __init__(self, n_inputs, n_labels, fan_in, seed, device):
        self.layer = FixedFanIn.random(n_labels, n_inputs, fan_in, seed, device=device)
        self.layer.values[...] = 0
        self.values, self.bias = self.layer.values, self.layer.bias

    @classmethod
    def memory(
        cls,
        batch_size,
        n_inputs,
        n_labels,
        *,
        device,
        fan_in,
        group_size,
        weight_dtype,
        rewired,
        clipped,
        k,
        loss,
        sampling,
        labels_per_row,
        **_,
    ):
        """The arrays of training and prediction, see `train.memory`."""
        group = () if group_size is None else (group_size,)
        n_rows, values = -(-n_labels // (group_size or 1)), DTYPES[weight_dtype].itemsize
        kernels = backend_of(device, cls.backend)
        found = [
            *parameter("output.indices", n_rows, fan_in, learns=False),
            *parameter("output.values", n_labels, fan_in, item=values),
            *parameter("output.bias", n_labels),
            *cls._step_memory(batch_size, n_inputs, n_labels),
        ]
        if sampling is not None:
            n = batch_size * sampling.n_samples + math.ceil(batch_size * labels_per_row)
            found.append(array(STEP, "draws, their scores and gradients, sorted by label", n, NUMBERS_PER_NEGATIVE))
            name = "labels that occur: connections and gradients"
            found.append(array(STEP, name, min(n_labels, n), 3 * fan_in + 3))
            found += Negatives.memory(sampling, batch_size, n_inputs, n_labels, device, is_sparse=True)
        elif clipped:
            found.append(array(STEP, "scores, which become their gradient", batch_size, n_labels))
            found.append(array(STEP, "output.values: gradient", n_labels, fan_in))
        else:
            workspace = kernels.workspace_shapes(batch_size, n_inputs, n_labels, fan_in, *group)
            for name, (shape, dtype) in workspace.items():  # the CPU backend keeps them for the next step
                phase = ALWAYS if device == "cpu" else STEP
                found.append(array(phase, f"step: {name}", *shape, item=np.dtype(dtype).itemsize))
            sums = kernels.softmax_shapes(batch_size, n_inputs, n_labels, fan_in, *group) if loss == "softmax" else {}
            for name, (shape, dtype) in sums.items():
                found.append(array("output: sums", f"softmax: {name}", *shape, item=np.dtype(dtype).itemsize))
        if rewired:
            found.append(array(REWIRING, "slots that change", math.ceil(rewired * n_rows * fan_in), 2))
            found.append(array(REWIRING, "counts and offsets of the labels", n_rows, 4, item=8))
        for name, (shape, dtype) in kernels.top_k_shapes(batch_size, n_inputs, n_labels, fan_in, *group, k).items():
            found.append(array(PREDICTION, f"top-k: {name}", *shape, item=np.dtype(dtype).itemsize))
        return found

    @property
    def parameters(self):
        layer = self.layer
        return {"output.indices": layer.indices, "output.values": layer.values, "output.bias": layer.bias}

    def gradients(self, h, labels, loss, step_number):
        """Loss of a batch, dh, and the gradients of values and bias.

        Without `negatives`, unlike `step`, it stores all scores.
        """
        return self._gradients(h, labels, loss, step_number)

    def _gradients(self, h, labels, loss, step_number):
        """`gradients` for labels that are numbered as in the layer."""
        if self.negatives is not None:
            return self._gradients_of_draws(h, labels, step_number)
        value, dscores = multilabel_loss(fixed_fan_in_forward(h, self.layer), labels, loss)
        dh, dvalues, dbias = fixed_fan_in_backward(h, self.layer, dscores)
        return value, dh, [Gradient(self.values, dvalues), Gradient(self.bias, dbias)]

    def _gradients_of_draws(self, h, labels, step_number):
        labels = sparse.as_targets(labels, len(h), self.layer.device, self.layer.n_labels)
        draws, sampling = self.negatives.draw(h, labels, step_number), self.negatives.sampling
        value, dh, (rows, dvalues, dbias) = sampled_softmax_of_layer(
            h, self.layer, labels, *draws, sampling.correction, sampling.mask_hits
        )
        return value, dh, [Gradient(self.values, dvalues, rows), Gradient(self.bias, dbias, rows)]

    def step(self, h, labels, loss, optimizer, step_number):
        """Loss of a batch and dh; updates values and bias, without negatives in the same pass over the labels."""
        return self._step(h, labels, loss, optimizer, step_number)

    def _step(self, h, labels, loss, optimizer, step_number):
        """`step` for labels that are numbered as in the layer."""
        if self.negatives is not None:
            value, dh, gradients = self._gradients(h, labels, loss, step_number)
            apply_all(gradients, optimizer)
            return value, dh
        return fixed_fan_in_step(h, self.layer, labels, loss, optimizer)

    def check_connections(self):
        """ValueError if overwritten parameters are no valid connections, which kernels do not check."""
        FixedFanIn(self.layer.n_inputs, *self.layer.arrays)

    def top_k(self, h, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32."""
        return fixed_fan_in_top_k(h, self.layer, k)

    def weights_of(self, label):
        """As in `Output`."""
        indices, values, bias = self.layer.indices[label], self.values[label], self.bias[label]
        return to_numpy(indices), to_numpy(values).astype(np.float64), float(bias)

    @property
    def sampler_weights(self):
        """What `Negatives` takes as the weights of the output layer."""
        return self.layer

    def rewire(self, fraction, seed, step, optimizer):
        """Replace the share `fraction` of the connections, those with the smallest weights; returns the real share."""
        return len(rewire(self.layer, fraction, seed, optimizer, step=step)) / self.layer.indices.size


class GroupSharedOutput(FixedFanInOutput):
    """`FixedFanInOutput` in which groups of labels share their inputs.

    ``order[i]`` is the label at position i of the layer; labels in adjacent positions share inputs. Initially the
    position of a label is its id; another order must be set before the first step. Callers only see label ids.
    """

    backend = "group_shared"

    def __init__(self, n_inputs, n_labels, fan_in, seed, group_size, weight_dtype, device):
        self.layer = GroupSharedFanIn.random(
            n_labels, n_inputs, fan_in, group_size, seed, dtype=weight_dtype, device=device
        )
        self.layer.values[...] = 0
        self.values, self.bias = self.layer.values, self.layer.bias
        self.order = asarray(module_of(device).arange(n_labels), device, np.int32)
        self._positions = self.order.copy()  # position of each label

    @classmethod
    def memory(cls, batch_size, n_inputs, n_labels, **sizes):
        """The arrays of training and prediction, see `train.memory`."""
        found = super().memory(batch_size, n_inputs, n_labels, **sizes)
        found += parameter("output.order", n_labels, learns=False)
        found.append(array(ALWAYS, "positions of the labels", n_labels))
        if sizes["rewired"]:
            n_groups = -(-n_labels // sizes["group_size"])
            found.append(array(REWIRING, "mean magnitudes", n_groups, sizes["fan_in"]))
        return found

    @property
    def parameters(self):
        return super().parameters | {"output.order": self.order}

    def rank_last(self, ids):
        """As in `Output`; the bias is in the order of the positions."""
        super().rank_last(to_numpy(self._positions)[ids])

    def set_order(self, order):
        """Set the order of the labels, a result of `group_labels`."""
        self.order[...] = asarray(order, self.layer.device, np.int32)
        self.check_connections()

    def check_connections(self):
        """ValueError if overwritten parameters are no valid connections, or no valid order."""
        layer, xp = self.layer, module_of(self.layer.device)
        GroupSharedFanIn(layer.n_inputs, layer.indices, layer.values, layer.bias, layer.group_size)
        every_label = asarray(xp.arange(layer.n_labels), layer.device, np.int32)
        if not bool((xp.sort(self.order) == every_label).all()):
            raise ValueError("output.order must be a permutation of the labels")
        self._positions[self.order] = every_label

    def _reordered(self, labels, n_rows):
        """Labels replaced by their positions in the layer; `fit` has checked that they are in range."""
        labels = sparse.as_labels(labels, n_rows, self.layer.device, self.layer.n_labels)
        return labels._replace(indices=self._positions[labels.indices])

    def gradients(self, h, labels, loss, step_number):
        """As in `FixedFanInOutput`."""
        return self._gradients(h, self._reordered(labels, len(h)), loss, step_number)

    def step(self, h, labels, loss, optimizer, step_number):
        """As in `FixedFanInOutput`."""
        return self._step(h, self._reordered(labels, len(h)), loss, optimizer, step_number)

    def top_k(self, h, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32; ties break by position in the layer."""
        scores, positions = super().top_k(h, k)
        return scores, self.order[positions]

    def weights_of(self, label):
        """As in `Output`."""
        position = int(self._positions[label])
        indices, values = self.layer.indices[position // self.layer.group_size], self.values[position]
        return to_numpy(indices), to_numpy(values).astype(np.float64), float(self.bias[position])


class SoftmaxOutput(Output):
    """Output layer ``scores = h weights.T`` with the softmax loss, ``-log softmax(scores)`` summed over a row's labels.

    weights (L, H) float32, without a bias, because the samplers take weights only. They start at zero, or are the array
    that is given (tied to an embedding). With `negatives` each label is compared with the negatives of its row instead
    of all labels, and only the rows that occur have a gradient (lazy Adam).
    """

    def __init__(self, n_inputs, n_labels, device, weights=None):
        self.weights = zeros((n_labels, n_inputs), np.float32, device) if weights is None else weights
        #: `Negatives`, or None for the exact loss.
        self.negatives = None
        self._unseen = None  # ids that rank last

    @staticmethod
    def memory(batch_size, n_inputs, n_labels, *, device, sampling, labels_per_row, **_):
        """The arrays of training and prediction, see `train.memory`."""
        found = [
            *parameter("output.weights", n_labels, n_inputs),
            array(STEP, "gradient of the layer below", 2, batch_size, n_inputs),
            array(PREDICTION, "scores", batch_size, n_labels),
        ]
        if sampling is None:
            found.append(array(STEP, "scores of some rows", min(MAX_ELEMENTS, batch_size * n_labels)))
            found.append(array(STEP, "output.weights: gradient", n_labels, n_inputs))
            return found
        drawn, label_rows = batch_size * sampling.n_samples, math.ceil(batch_size * labels_per_row)
        found.append(
            array(STEP, "draws, their scores and gradients, sorted by label", drawn + label_rows, NUMBERS_PER_NEGATIVE)
        )
        found.append(array(STEP, "h of each label", label_rows, n_inputs))
        found.append(array(STEP, "output.weights: gradient of its rows", min(n_labels, drawn + label_rows), n_inputs))
        return found + Negatives.memory(sampling, batch_size, n_inputs, n_labels, device)

    @property
    def parameters(self):
        return {"output.weights": self.weights}

    @property
    def sampler_weights(self):
        """What `Negatives` takes as the weights of the output layer."""
        return self.weights

    def gradients(self, h, labels, loss, step_number):
        """Loss of a batch, dh, and the gradient of the weights; `labels` as in `softmax_cross_entropy`."""
        if self.negatives is None:
            value, dh, dweights, _ = softmax_cross_entropy(h, self.weights, labels)
            return value, dh, [Gradient(self.weights, dweights)]
        labels = sparse.as_targets(labels, len(h), device_of(h), len(self.weights))
        ids, log_q, log_q_targets = self.negatives.draw(h, labels, step_number)
        sampling = self.negatives.sampling
        value, dh, (rows, drows) = _sampled_softmax(
            h,
            self.weights,
            labels,
            ids,
            log_q,
            log_q_targets,
            correction=sampling.correction,
            mask_hits=sampling.mask_hits,
        )
        return value, dh, [Gradient(self.weights, drows, rows)]

    def rank_last(self, ids):
        """Make the labels `ids` (NumPy) rank last, with UNSEEN_SCORE; there is no bias to set."""
        self._unseen = asarray(ids, device_of(self.weights)) if len(ids) else None

    def top_k(self, h, k):
        """The k best labels of each row, over all labels: scores (B, k), ids (B, k) int32."""
        scores = product(h, self.weights.T)
        if self._unseen is not None:
            scores[:, self._unseen] = UNSEEN_SCORE
        return top_k_of_scores(scores, k)

    def weights_of(self, label):
        """As in `Output`; the bias is 0, but for labels that rank last."""
        if self._unseen is not None and label in to_numpy(self._unseen):
            return np.empty(0, np.int64), np.empty(0), float(UNSEEN_SCORE)
        weights = to_numpy(self.weights[label]).astype(np.float64)
        return np.arange(len(weights)), weights, 0.0


class UnstructuredOutput(Output):
    """Unstructured sparse layer, a baseline: ``scores = h W.T + bias``, W (L, H) with `fan_in` L connections anywhere.

    Products are SciPy's on the CPU and cuSPARSE's (through CuPy) on CUDA; only the gradient of the weights, a sampled
    dense product, is our kernel. Scores and their gradient are stored as (B, L) arrays.

    The connections are drawn at random and stored as CSR: indptr (L + 1,) int32, indices, values (n,). Rewiring follows
    the rule of a fixed fan-in layer, but new connections may be anywhere in W, as in SET (Mocanu et al. 2018).
    """

    def __init__(self, n_inputs, n_labels, fan_in, seed, device):
        n = n_labels * fan_in
        check.integer("connections", n, 1, 2**31 - 1)
        self._shape, self._device = (n_labels, n_inputs), device
        self._indptr = zeros(n_labels + 1, np.int32, device)
        self._indices, self._rows = (empty(n, np.int32, device) for _ in range(2))
        self._set_connections(np.sort(self._draw(np.empty(0, np.int64), n, seed, rng.CONNECTIONS, 0)))
        self.values = zeros(n, np.float32, device)
        self.bias = zeros(n_labels, np.float32, device)

    @classmethod
    def memory(cls, batch_size, n_inputs, n_labels, *, fan_in, **_):
        """The arrays of training and prediction, see `train.memory`."""
        n = n_labels * fan_in
        return [
            *parameter("output.indptr", n_labels + 1, learns=False),
            *parameter("output.indices", n, learns=False),
            *parameter("output.values", n),
            *parameter("output.bias", n_labels),
            array(ALWAYS, "label of each connection", n),
            array(STEP, "output.values: gradient", n),
            array(STEP, "scores, their gradient, both transposed", 3, batch_size, n_labels),
            *cls._step_memory(batch_size, n_inputs, n_labels),
            array("drawing connections", "random words, positions, order", n, BYTES_PER_DRAWN_CONNECTION, item=1),
            array(PREDICTION, "scores", batch_size, n_labels),
        ]

    @property
    def parameters(self):
        names = "output.indptr", "output.indices", "output.values", "output.bias"
        return dict(zip(names, (self._indptr, self._indices, self.values, self.bias), strict=True))

    def check_connections(self):
        """ValueError if overwritten parameters are no valid connections, which kernels do not check."""
        matrix = scipy.sparse.csr_matrix(tuple(map(to_numpy, (self.values, self._indices, self._indptr))), self._shape)
        sparse.check_structure(matrix)
        if not matrix.has_canonical_format:
            raise ValueError("output.indices must ascend within each label")
        self._rows[:] = sparse.row_of_each_entry(self._indptr, self._indices.size)

    def _draw(self, taken, n, seed, stream, step):
        """`n` distinct positions (row H + column, int64) of W that are not in the sorted `taken`, in drawing order."""
        drawn, counter_start = np.empty(0, np.int64), 0
        while len(drawn) < n:
            missing = n - len(drawn)
            counter = np.arange(counter_start, counter_start + 2 * missing, dtype=np.uint64)
            with np.errstate(over="ignore"):
                words = rng.random_word(np.uint64(seed), stream, np.uint64(step), counter)
                row, column = (
                    rng.below(w, np.uint64(s)) for w, s in zip((words[::2], words[1::2]), self._shape, strict=True)
                )
            positions = np.append(drawn, row.astype(np.int64) * self._shape[1] + column.astype(np.int64))
            _, first = np.unique(positions, return_index=True)
            positions = positions[np.sort(first)]
            nearest = np.minimum(np.searchsorted(taken, positions), max(len(taken) - 1, 0))
            drawn = positions[taken[nearest] != positions] if len(taken) else positions
            counter_start += 2 * missing
        return drawn

    def _set_connections(self, positions):
        """Set the connections to `positions`, ascending."""
        row = positions // self._shape[1]
        self._rows[:] = asarray(row, self._device, np.int32)
        self._indices[:] = asarray(positions % self._shape[1], self._device, np.int32)
        counts = np.bincount(row, minlength=self._shape[0])
        self._indptr[1:] = asarray(np.cumsum(counts), self._device, np.int32)

    def _matrix(self):
        return csr_matrix(self.values, self._indices, self._indptr, self._shape)

    def _product(self, matrix, h):
        """``(matrix @ h.T).T``, C-contiguous, on the device of h."""
        h = to_numpy(h) if SIMULATOR else h
        return asarray((matrix @ h.T).T, self._device)

    def _scores(self, h):
        scores = self._product(self._matrix(), h)
        scores += self.bias
        return scores

    def gradients(self, h, labels, loss, step_number):
        """Loss of a batch, dh, and the gradients of values and bias."""
        value, dscores = multilabel_loss(self._scores(h), labels, loss)
        dh = self._product(self._matrix().T, dscores)
        ht, dscores_t = (asarray(a.T, self._device) for a in (h, dscores))
        dvalues = empty(self.values.shape, np.float32, self._device)
        kernels = backend_of(self._device, "unstructured")
        kernels.gradient_of_values(ht, dscores_t, self._rows, self._indices, dvalues)
        return value, dh, [Gradient(self.values, dvalues), Gradient(self.bias, dscores.sum(axis=0))]

    def top_k(self, h, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32."""
        return top_k_of_scores(self._scores(h), k)

    def weights_of(self, label):
        """As in `Output`."""
        part = slice(int(self._indptr[label]), int(self._indptr[label + 1]))
        return to_numpy(self._indices[part]), to_numpy(self.values[part]).astype(np.float64), float(self.bias[label])

    def rewire(self, fraction, seed, step, optimizer):
        """Replace the share `fraction` of the connections, those with the smallest weights; returns the actual share.

        New positions are drawn from those of W without a connection; new weights and their moments are zero.
        """
        values, rows, columns = map(to_numpy, (self.values, self._rows, self._indices))
        n, free = math.floor(fraction * values.size + 0.5), math.prod(self._shape) - values.size
        if n > free:
            raise ValueError(f"fraction {fraction} needs {n} redraws, but only {free} positions of the layer are free")
        positions = rows.astype(np.int64) * self._shape[1] + columns
        dropped = np.argsort(np.abs(values), kind="stable")[:n]
        positions[dropped] = self._draw(positions, n, seed, rng.REWIRING, step)
        order = np.argsort(positions)
        self._set_connections(positions[order])
        for weights in (self.values, *optimizer.state_of(self.values).moments):
            if weights.size:
                host = to_numpy(weights).copy()
                host[dropped] = 0
                weights[:] = asarray(host[order], self._device)
        return n / values.size
