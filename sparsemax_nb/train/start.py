"""Initial weights of a network from the training labels: closed forms that spare the first epochs.

With random hidden layers and an output of zeros, a label with thirty points among 400,000 takes epochs until it has any
influence on the layers below. Here the network starts as a linear model instead:

- **embedding**: the ridge regression of a sketch of the labels. Each label gets a random vector of signs; the target of
  a point is the sum of its labels' vectors, and the table is the regression of these targets on the words. Then
  ``signs @ z / width`` estimates which labels a point has (our choice; random projections of labels: D. Hsu et al.,
  "Multi-label prediction via compressed sensing", NIPS 2009).
- **hidden units**: before a sparse output, a unit of the intermediate layer is the linear discriminant of a frequent
  label over the layer below: so the inputs that a label may choose are labels that go with it. All hidden units are
  scaled and shifted before the ReLU to variance 1 and, below a sparse output, mean 2, in the embedding 1, whatever the
  scale of the features: so nearly all of them start linear, and lose nothing of the regression.
- **output**: the least squares approximation of these estimates by the hidden units. With dense features there is no
  embedding; the wanted scores are discriminants: ``(mean of the label's points - mean)' S^-1 (h - mean)``, shrunk for
  labels with few points. Sparse outputs choose the inputs of a label one after the other, by the error that is left:
  inputs that correlate most with a label, but also with each other, are no good choice.
"""

import math

import numpy as np
import scipy.linalg

from ..core import checkpoint, rng, sparse
from ..core.device import asarray, product, to_numpy
from ..cpu.matching_pursuit import matching_pursuit
from ..data.batches import batches, shuffled
from .memory import array

#: Ridge of the embedding's regression. Rows of TF-IDF weights have norm 1.
RIDGE = 1.0
#: Steps of conjugate gradients. With short texts one is enough, with abstracts five.
STEPS = 5
#: The mean of a unit of the intermediate layer before the ReLU, in standard deviations: it starts nearly linear.
SHIFT = 2
#: Ridge of the other regressions, relative to the mean variance of their inputs.
RELATIVE_RIDGE = 0.03
#: Training points from which means and covariances of the hidden units are computed, and how many at a time.
SAMPLE, BATCH_SIZE = 1 << 14, 1 << 10
#: Columns of the embedding that are solved for together.
COLUMNS = 64
#: Hidden units between which the labels of a range may choose, and elements of the largest matrix of labels.
MAX_INPUTS, MAX_ELEMENTS = 1 << 12, 1 << 24
#: Phases of the memory plan.
INITIAL, DISCRIMINANTS = "initial weights", "initial weights of the intermediate layer"
#: In place of the number of an epoch: the order that decides which points are in the sample.
ORDER = 1 << 31


def memory(n_points, n_features, n_labels, embedding, intermediate, output):
    """The arrays that exist while the initial weights are computed, see `train.memory`; not the labels."""
    width, batch_size = intermediate or embedding or n_features, min(n_points, BATCH_SIZE)
    n_inputs = width if output in ("dense", "bottleneck") else min(width, MAX_INPUTS)
    found = [
        array(INITIAL, "covariance of the hidden units", 2 if n_points > BATCH_SIZE else 1, n_inputs, n_inputs),
        array(INITIAL, "hidden units of some points", 3, batch_size, n_inputs),
        array(INITIAL, "correlations with the labels", 2, min(MAX_ELEMENTS, n_labels * n_inputs)),
    ]
    if intermediate is not None and output in ("fixed-fan-in", "group-shared"):
        below = embedding or n_features
        found.append(array(DISCRIMINANTS, "weights and discriminants of some units", 4, n_inputs, below))
        found.append(array(DISCRIMINANTS, "covariance of the layer below", 4, below, below))
        found.append(array(DISCRIMINANTS, "both layers for some points", batch_size, below + n_inputs))
        found.append(array(DISCRIMINANTS, "table of the regression", n_features, embedding or 0))
    if embedding is not None:
        found.append(array(INITIAL, "regression of the labels on the features", 6, n_features, min(COLUMNS, embedding)))
        found.append(array(INITIAL, "table of the regression", n_features, embedding))
    return found


def signs(labels, width, seed):
    """The sketch of labels (n,): (n, width) float32, +1 or -1, from one random bit each."""
    n_words = -(-width // 32)
    position = np.asarray(labels, np.uint64)[:, None] * np.uint64(n_words) + np.arange(n_words, dtype=np.uint64)
    with np.errstate(over="ignore"):
        words = rng.random_word(np.uint64(seed), rng.SKETCH, np.uint64(0), position)
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little")[:, :width]
    return np.where(bits, np.float32(1), np.float32(-1))


class Parts:
    """The sparse features in CSR matrices of some rows each. Few are kept in memory, others made anew in each pass."""

    def __init__(self, features, n_rows):
        self._features, self._ids = features, list(batches(np.arange(n_rows), 4 * BATCH_SIZE))
        is_small = features(self._ids[0]).nnz * len(self._ids) <= MAX_ELEMENTS
        self._kept = [features(ids) for ids in self._ids] if is_small else None

    def __iter__(self):
        return map(self._features, self._ids) if self._kept is None else iter(self._kept)


def regression(parts, labels, n_features, width, seed):
    """Table (F, width) that minimizes ``|x table - y signs|^2 + RIDGE |table|^2``, by conjugate gradients.

    `parts` are the features x in CSR matrices of some rows each, labels y (n, L) CSR with ones. The columns are
    independent of each other: each takes steps of its own size. The diagonal is the preconditioner.
    """
    diagonal = np.full(n_features, RIDGE, np.float64)
    for part in parts:
        diagonal += np.bincount(part.indices, np.square(part.data, dtype=np.float64), n_features)
    diagonal = diagonal[:, None].astype(np.float32)
    table = np.empty((n_features, width), np.float32)
    for first in range(0, width, COLUMNS):
        columns = slice(first, min(first + COLUMNS, width))
        left, row = np.zeros((n_features, columns.stop - first), np.float32), 0
        for part in parts:
            own = labels[row : row + part.shape[0]]
            ids, own.indices = np.unique(own.indices, return_inverse=True)
            own.resize(own.shape[0], len(ids))
            left += part.T @ (own @ signs(ids, width, seed)[:, columns])
            row += part.shape[0]
        found, scaled = np.zeros_like(left), left / diagonal
        direction, size = scaled.copy(), (left * scaled).sum(axis=0)
        for _ in range(STEPS + 1):
            image = np.float32(RIDGE) * direction
            for part in parts:
                image += part.T @ (part @ direction)
            step = size / np.maximum((direction * image).sum(axis=0), np.finfo(np.float32).tiny)
            found += step * direction
            left -= step * image
            np.divide(left, diagonal, out=scaled)
            before, size = size, (left * scaled).sum(axis=0)
            direction *= size / np.maximum(before, np.finfo(np.float32).tiny)
            direction += scaled
        table[:, columns] = found
    return table


class LabelStart:
    """Sets the weights of a new network, whose output bias is already set; see the top of this file.

    Parameters
    ----------
    network : Network
    features : callable
        ``features(ids)`` returns rows of the training features, as the network takes them.
    labels : (n, L) SciPy CSR matrix
        Of these rows, with ones.
    seed : int
    """

    def __init__(self, network, features, labels, seed):
        self.network, self.features, self.seed = network, features, seed
        self.labels = sparse.as_ones("labels", labels).astype(np.float32)
        self.counts = np.bincount(labels.indices, minlength=labels.shape[1])
        self.sample = shuffled(labels.shape[0], seed, ORDER)[:SAMPLE]
        if hasattr(network.output, "layer"):  # compile here: `run` counts as training time, and compilation must not
            one, found = np.ones((1, 1), np.float32), np.empty((1, 1), np.float32)
            matching_pursuit(one, one, 1, 1, 1, np.empty((1, 1), np.int32), found)

    @property
    def scale(self):
        """1 / standard deviation of dense features: weights next to them are larger by this. 1 for sparse features."""
        if not self.network.is_dense:
            return 1.0
        x = self.features(self.sample[:BATCH_SIZE]).astype(np.float64)
        deviation = math.sqrt(np.square(x - x.mean(axis=0)).mean()) if x.size else 0
        return 1 / deviation if deviation > 0 else 1.0

    def run(self):
        """Set the weights of all layers."""
        if not self.labels.nnz:
            return
        self.table = self.mean = None
        if not self.network.is_dense:
            self._start_embedding()
        output, self.by_label = self.network.output, self.labels.tocsc()
        if len(self.network.hidden) > 1:
            self._start_intermediate(self.network.hidden[-1])
        if hasattr(output, "weights"):
            self._start_dense(output)
        elif hasattr(output, "layer"):
            self._start_sparse(output)

    def _start_embedding(self):
        embedding = self.network.hidden[0]
        parts = Parts(self.features, self.labels.shape[0])
        self.table = regression(parts, self.labels, *embedding.table.shape, self.seed)
        z = np.concatenate([self.features(ids) @ self.table for ids in batches(self.sample, BATCH_SIZE)])
        self.mean = z.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation = math.sqrt(np.square(z - self.mean, dtype=np.float64).mean())
        if deviation == 0:
            return
        scale = np.float32(1 / deviation)
        embedding.set(self.table * scale, 1 - self.mean * scale)

    def _start_intermediate(self, layer):
        """Set the weights of the intermediate layer, some units at a time."""
        is_sparse, mean, factor = hasattr(self.network.output, "layer"), None, None
        if is_sparse:
            mean, covariance, _ = self._moments(self._inputs_of_last)
            factor = scipy.linalg.cho_factor(self._system(covariance))
        for inputs, groups in self._ranges():
            weights = to_numpy(layer.parameters["intermediate.weights"][:, inputs]).copy()
            if is_sparse:
                labels = self._labels_at(_positions(self.network.output.layer, groups))
                labels = labels[np.argsort(-self.counts[labels], kind="stable")][: weights.shape[1]]
                labels = labels[self.counts[labels] > 0]
                weights[:, : len(labels)] = scipy.linalg.cho_solve(
                    factor, self._means(labels, self._inputs_of_last, mean).T
                )
            self._set_standardized(layer, weights, inputs, SHIFT if is_sparse else float(self.table is not None))

    def _ranges(self):
        """Pairs of slices: at most MAX_INPUTS hidden units, and the groups of labels that choose from them.

        There are no groups if the output is not sparse.
        """
        n_groups = len(self.network.output.layer.indices) if hasattr(self.network.output, "layer") else 0
        n = -(-self.network.width // MAX_INPUTS)
        for i in range(n):
            yield tuple(slice(size * i // n, size * (i + 1) // n) for size in (self.network.width, n_groups))

    def _means(self, labels, units, mean):
        """Means (n, H) of units, see `_moments`, over the points of each label, minus `mean`; 0 without points."""
        own = self.by_label[:, labels].tocsr()
        sums = np.zeros((len(labels), len(mean)), np.float32)
        for ids in batches(np.flatnonzero(np.diff(own.indptr)), BATCH_SIZE):
            sums += own[ids].T @ (units(ids) - mean)
        return sums / np.maximum(self.counts[labels], 1)[:, None].astype(np.float32)

    def _labels_at(self, positions):
        """The labels at these positions (a slice) of the output layer."""
        order = getattr(self.network.output, "order", None)
        return np.arange(positions.start, positions.stop) if order is None else to_numpy(order)[positions]

    def _set_standardized(self, layer, weights, inputs, shift):
        """Set the `weights` of some units, scaled and shifted to variance 1 and mean `shift` over the sample."""
        n, total, squares = len(self.sample), 0, 0
        for ids in batches(self.sample, BATCH_SIZE):
            z = self._product(self._inputs_of_last(ids), weights)
            total += z.sum(axis=0, dtype=np.float64)
            squares += np.einsum("ij,ij->j", z, z, dtype=np.float64)
        mean = total / n
        variance = squares / n - mean**2
        scale = 1 / np.sqrt(np.where(variance > 1e-12 * squares / n, variance, 1))
        layer.set(weights * scale.astype(np.float32), shift - mean * scale, inputs)

    def _product(self, x, weights):
        """``x @ weights`` of NumPy arrays, computed on the network's device."""
        device = self.network.device
        return to_numpy(product(asarray(x, device, np.float32), asarray(weights, device, np.float32)))

    def _inputs_of_last(self, ids):
        """The input of the last hidden layer, NumPy."""
        x = self.features(ids)
        if self.network.is_dense:
            return x.astype(np.float32)
        return to_numpy(self.network.hidden[0].forward(sparse.as_rows(x, self.network.device)))

    def _moments(self, units, wants_z=False):
        """Mean (H,) and covariance (H, H) of units, and their covariance with z, (D, H), if it is wanted, or None.

        ``units(ids)`` returns those of some rows, (n, H).
        """
        n, covariance, with_z, wants_z = len(self.sample), 0, 0, wants_z and self.table is not None
        mean = sum(units(ids).sum(axis=0, dtype=np.float64) for ids in batches(self.sample, BATCH_SIZE)) / n
        mean = mean.astype(np.float32)
        for ids in batches(self.sample, BATCH_SIZE):
            h = units(ids) - mean
            covariance += h.T @ h
            if wants_z:
                with_z += (self.features(ids) @ self.table - self.mean).T @ h
        covariance /= np.float32(n)
        return mean, covariance, with_z / np.float32(n) if wants_z else None

    def _units(self, ids, inputs):
        """The outputs of the last hidden layer, (n, H) NumPy; only of these units, not of the whole layer."""
        if len(self.network.hidden) == 1:
            return to_numpy(self.network.forward(self.features(ids)))[:, inputs]
        parameters = self.network.hidden[-1].parameters
        z = self._product(self._inputs_of_last(ids), parameters["intermediate.weights"][:, inputs])
        z += to_numpy(parameters["intermediate.bias"][inputs])
        return np.maximum(z, 0, out=z)

    def _wanted(self, positions, inputs, mean, with_z):
        """Covariance of the hidden units (of these inputs) with the wanted scores of the labels at `positions`."""
        labels = self._labels_at(positions)
        counts = self.counts[labels]
        if with_z is not None:
            width = len(with_z)
            return (signs(labels, width, self.seed) @ with_z / width * (counts > 0)[:, None]).astype(np.float32), counts
        return self._means(labels, lambda ids: self._units(ids, inputs), mean), counts

    def _factors(self, values, wanted, counts, positions, n_inputs):
        """What to multiply the solved values of each label with."""
        bias = getattr(self.network.output, "bias", None)
        if bias is None or not bool(bias.any()):  # the softmax loss
            scale = 2 * math.log(max(self.labels.shape[1], 2))
        else:
            scale = -2 * to_numpy(bias[positions])
        if self.table is None:
            # the mean of c points is noisy: as far from the others, on average, as n_inputs / c
            own = np.einsum("ij,ij->i", values, wanted)
            scale = scale * counts / np.maximum(counts * own + n_inputs / 2, 1)
        return np.where(counts > 0, scale, 0).astype(np.float32)[:, None]

    def _start_dense(self, output):
        n_labels, n_inputs = output.weights.shape
        everything = slice(0, n_inputs)
        mean, covariance, with_z = self._moments(lambda ids: self._units(ids, everything), wants_z=True)
        factor = scipy.linalg.cho_factor(self._system(covariance))
        step = max(1, MAX_ELEMENTS // n_inputs)
        for first in range(0, n_labels, step):
            part = slice(first, min(first + step, n_labels))
            wanted, counts = self._wanted(part, everything, mean, with_z)
            weights = scipy.linalg.cho_solve(factor, wanted.T).T
            weights = weights * self._factors(weights, wanted, counts, part, n_inputs)
            if hasattr(output, "bias"):
                output.bias[part] -= asarray(weights @ mean, self.network.device, np.float32)
            elif mean.any():  # without a bias, the mean must not score
                weights -= np.outer(weights @ mean / (mean @ mean), mean)
            output.weights[part] = asarray(weights, self.network.device, np.float32)

    def _start_sparse(self, output):
        layer = output.layer
        fan_in, group_size = layer.indices.shape[1], getattr(layer, "group_size", 1)
        for inputs, of_range in self._ranges():
            n_inputs = inputs.stop - inputs.start
            if n_inputs < fan_in:
                return
            mean, covariance, with_z = self._moments(lambda ids, inputs=inputs: self._units(ids, inputs), wants_z=True)
            ridge = self._ridge(covariance)
            step = max(1, MAX_ELEMENTS // (n_inputs * group_size))
            for first in range(of_range.start, of_range.stop, step):
                groups = slice(first, min(first + step, of_range.stop))
                part = _positions(layer, groups)
                wanted, counts = self._wanted(part, inputs, mean, with_z)
                indices = np.empty((groups.stop - groups.start, fan_in), np.int32)
                values = np.empty((len(wanted), fan_in), np.float32)
                matching_pursuit(covariance, wanted, ridge, fan_in, group_size, indices, values)
                label_indices = np.repeat(indices, group_size, axis=0)[: len(wanted)]
                own = np.take_along_axis(wanted, np.maximum(label_indices, 0), 1)
                values *= self._factors(values, own, counts, part, n_inputs)
                # a group that finds too few useful inputs keeps its random ones, with values of zero
                complete = indices[:, -1] >= 0
                values[~np.repeat(complete, group_size)[: len(wanted)]] = 0
                old = to_numpy(layer.indices[groups]).copy()
                old[complete] = indices[complete] + inputs.start
                layer.indices[groups] = asarray(old, layer.device, np.int32)
                offset = np.einsum("ij,ij->i", values, mean[np.maximum(label_indices, 0)])
                stored = values.astype(layer.values.dtype)
                checkpoint.bits(layer.values)[part] = asarray(checkpoint.bits(stored), layer.device)
                layer.bias[part] -= asarray(offset, layer.device, np.float32)
        output.check_connections()

    def _system(self, covariance):
        """The covariance with the ridge on its diagonal."""
        return covariance + self._ridge(covariance) * np.eye(len(covariance), dtype=np.float32)

    @staticmethod
    def _ridge(covariance):
        """The ridge of a regression; above 0 even if all units are constant."""
        return np.float32(RELATIVE_RIDGE * float(np.diag(covariance).mean()) or 1e-6)


def _positions(layer, groups):
    """The positions (a slice) of the labels in some groups (a slice) of a sparse output layer."""
    size = getattr(layer, "group_size", 1)
    return slice(groups.start * size, min(groups.stop * size, len(layer.bias)))
