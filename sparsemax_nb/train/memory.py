"""What training will allocate, array by array, before anything is allocated.

Measured peaks lie a few per cent above: small arrays, and what libraries hold.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ..core.device import backend_of
from ..cpu.linear import CHUNKS
from ..cpu.midx import PARTS, SUMS
from ..full_softmax import HELD
from ..group_shared import DTYPES
from ..linear import AT_ONCE
from ..samplers import SCORES
from .negatives import BASELINES, INDICES
from .network import SPARSE_OUTPUTS

#: Numbers of four bytes that a draw takes until its gradient is known: id, log Q, score and gradient, places and keys.
ENTRY = 16

#: Outputs with a fixed number of connections a label, and the files of the wings that compute them.
FIXED = {"fixed-fan-in": "fixed_fan_in", "group-shared": "group_shared"}
#: Bytes for each connection while an unstructured layer draws or redraws them (measured).
DRAWN_BYTES = 130


class MemoryLimitError(ValueError):
    """A network that does not fit into the memory that it may take; the message says how much it needs.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.train import Classifier, MemoryLimitError
    >>> x, y = np.ones((4, 100), np.float32), np.eye(4, 1000, dtype=np.float32)
    >>> try:
    ...     Classifier(memory_limit=1 << 20, device="cpu", progress=False).fit(x, y)
    ... except MemoryLimitError:
    ...     print("refused")
    refused
    """


class Array(NamedTuple):
    """An array of the plan. Those of the phase 'always' are held; of the other phases only the largest counts."""

    phase: str
    name: str
    nbytes: int


class Plan(NamedTuple):
    """Every array of a training run, and the sum that counts."""

    arrays: list

    @property
    def phases(self):
        """{phase: bytes}."""
        return {
            p: sum(a.nbytes for a in self.arrays if a.phase == p) for p in dict.fromkeys(a.phase for a in self.arrays)
        }

    @property
    def nbytes(self):
        """What is held always, and the largest of the other phases."""
        phases = self.phases
        return phases.pop("always") + max(phases.values())

    def __str__(self):
        lines = [f"{'phase':<28}{'array':<40}{'MiB':>10}"]
        for phase, nbytes in self.phases.items():
            lines += [f"{a.phase:<28}{a.name:<40}{a.nbytes / 2**20:>10.1f}" for a in self.arrays if a.phase == phase]
            lines.append(f"{phase:<28}{'= sum':<40}{nbytes / 2**20:>10.1f}")
        return "\n".join([*lines, f"{'always + largest phase':<68}{self.nbytes / 2**20:>10.1f}"])


def require(plan, limit, smaller="intermediate layer, fan-in or batch"):
    """MemoryLimitError, with the whole plan and what could be `smaller`, where it needs more than `limit` bytes."""
    if plan.nbytes > limit:
        raise MemoryLimitError(
            f"training needs {plan.nbytes / 2**20:,.1f} MiB, memory_limit allows {limit / 2**20:,.1f} MiB; "
            f"use a smaller {smaller}, or a larger limit\n{plan}"
        )


def plan(
    *,
    n_features,
    n_labels,
    embedding,
    intermediate,
    output,
    fan_in,
    device,
    batch_size,
    entries_per_row=0.0,
    group_size=1,
    weight_dtype="float32",
    rewired=0.1,
    keep_best=False,
    k=5,
    loss="squared-hinge",
    sampling=None,
    labels_per_row=1.0,
):
    """The `Plan` of training with Adam and predicting, both in batches of `batch_size` rows.

    Parameters are those of `Network`; `entries_per_row` is the mean number of sparse features of a row, `rewired` the
    share of connections that a rewiring replaces; `keep_best` says whether the weights of the best epoch are kept
    beside; `k` is that of the top-k; `sampling` is the `Sampling` of a softmax loss that draws negatives,
    `labels_per_row` the mean number of labels of a row. The data, the code and the libraries themselves do not count.
    """
    arrays, b = [], batch_size

    def add(phase, name, *shape, item=4):
        arrays.append(Array(phase, name, math.prod(shape) * item))

    def parameter(name, *shape, learns=True, item=4):
        add("always", name, *shape, item=item)
        if learns:
            add("always", f"{name}: Adam's two moments", 2, *shape)
        if keep_best and device == "cpu":  # of a CUDA network they lie in the host's memory
            add("always", f"{name}: of the best epoch", *shape, item=item)

    width = n_features
    if embedding is not None:
        parameter("embedding.table", n_features, embedding)
        parameter("embedding.bias", embedding)
        add("always", "embedding.output", b, embedding)
        touched = min(n_features, math.ceil(b * entries_per_row))
        add("embedding: gradient", "embedding.output: gradient", b, embedding)
        add("embedding: gradient", "embedding.table: gradient of its rows", touched, embedding)
        width = embedding
    else:
        add("always", "inputs", 2, b, n_features)
    if intermediate is not None:
        parameter("intermediate.weights", width, intermediate)
        parameter("intermediate.bias", intermediate)
        add("always", "intermediate.output", b, intermediate)
        add("intermediate: gradient", "intermediate.output: gradient", b, intermediate)
        add("intermediate: gradient", "intermediate.weights: gradient", width, intermediate)
        if embedding is not None:
            add("intermediate: gradient", "embedding.output: gradient", b, width)
        width = intermediate
    if loss == "softmax":
        _add_softmax(add, parameter, b, width, n_labels, sampling, labels_per_row, device)
    else:
        _add_output(add, parameter, output, b, width, n_labels, fan_in, device, group_size, weight_dtype)
    if rewired and output in FIXED:
        n_rows = -(-n_labels // group_size) if output == "group-shared" else n_labels
        add("rewiring", "slots that change", math.ceil(rewired * n_rows * fan_in), 2)
        add("rewiring", "counts and offsets of the labels", n_rows, 4, item=8)
        if output == "group-shared":
            add("rewiring", "mean magnitudes", n_rows, fan_in)
    if output == "unstructured":
        add("drawing connections", "random words, places, their order", n_labels, fan_in, item=DRAWN_BYTES)
    add("prediction", "hidden layers' outputs", b, width)
    if output in FIXED:
        group = (group_size,) if output == "group-shared" else ()
        shapes = backend_of(device, FIXED[output]).top_k_shapes(b, width, n_labels, fan_in, *group, k)
        for name, (shape, dtype) in shapes.items():
            add("prediction", f"top-k: {name}", *shape, item=np.dtype(dtype).itemsize)
    else:
        add("prediction", "scores", b, n_labels)
    return Plan(arrays)


#: Dual variables above zero of a row, on average, at the most that was seen; pairs and entries of a step, in bytes a
#: row.
DUALS, PAIRS = 128, 32_768


def linear_plan(
    *, n_rows, n_features, n_labels, n_entries, points, features_per_point, min_features, extra_features, n_pairs
):
    """The `Plan` of training a linear layer over sparse features; `points` (L,) are the training points of each label.

    `n_pairs` bounds the pairs of labels that occur together.
    """
    arrays, mean, threads = [], n_entries / max(1, n_rows), numba.config.NUMBA_NUM_THREADS

    def add(phase, name, *shape, item=4):
        arrays.append(Array(phase, name, math.prod(shape) * item))

    chosen = np.minimum(np.maximum(min_features, features_per_point * points), n_features)
    n = int(np.minimum(chosen, mean * points).sum() * (1 + extra_features))  # a label can not have more than its points
    add("always", "features: ids, weights, in the order of training", 2, 2, n_entries)
    add("always", "features, labels: ends of the rows", 2, 2, n_rows)
    add("always", "labels of the rows, in the order of training", 2, 2, int(points.sum()))
    add("always", "layer: lists of labels, weights", 2, n)
    add("always", "layer: bias, starts of the lists", n_labels + 4 * n_features)
    add("always", "dual variables: labels, values", 2 * DUALS, n_rows)
    add("always", "pairs of labels that occur together: ids, counts", 2, n_pairs)
    add("counting of pairs", "all of them once more", 2, n_pairs)
    add("counting of pairs", "labels, twice", 4, int(points.sum()))
    add("choice of features", "rows by label", 2, int(points.sum()) + 3 * n_labels)
    add("choice of features", "lists before, and what is added", 2, n)
    add("choice of features", "dual variables and features by label", 4, min(AT_ONCE, n + DUALS * n_rows))
    add("choice of features", "sums of all features", 16 * 4, n_features)
    add("step", "pairs and entries", 1024, PAIRS, item=1)
    add("step", "scores of a row, places of its pairs", 2 * min(CHUNKS, threads), n_labels)
    add("prediction", "scores of a row", threads, n_labels)
    return Plan(arrays)


def _add_softmax(add, parameter, b, width, n_labels, sampling, labels_per_row, device):
    """The output layer's arrays under the softmax loss."""
    parameter("output.weights", n_labels, width)
    phase = "output: step"
    add(phase, "gradient by the layer below", 2, b, width)
    if sampling is None:
        add(phase, "scores of some rows", min(HELD, b * n_labels))
        add(phase, "output.weights: gradient", n_labels, width)
        return
    drawn, positives = b * sampling.n_samples, math.ceil(b * labels_per_row)
    add(phase, "draws, their scores and gradients, sorted by label", drawn + positives, ENTRY)
    add(phase, "inputs of the positives", positives, width)
    add(phase, "output.weights: gradient of its rows", min(n_labels, drawn + positives), width)
    if sampling.sampler in BASELINES:
        add("always", f"{sampling.sampler}: weights as last seen", n_labels, width)
    elif sampling.sampler in INDICES:
        n_words, halves = sampling.n_codewords, 2 if INDICES[sampling.sampler] == "pq" else 1
        has_records = sampling.residual == "popularity"
        add("always", "index: codebooks", 2, n_words, width // halves)
        add("always", "index: codes, members, weights of k-means", 4, n_labels)
        add("always", "index: cells, their weights", 3 if device == "cuda" else 2, n_words**2)
        add("always", "index: popularity, records", 7 * has_records, n_labels)
        add("index: update", "residuals or halves", n_labels, width)
        add("index: update", "sums of the codewords, in parts", min(SUMS, PARTS * n_words * width // halves))
        add("index: update", "distances, codes, their order", n_labels, 12 + 12 * has_records)
    elif sampling.sampler != "uniform":
        add("always", f"{sampling.sampler}: tables", 3, n_labels)
    if sampling.sampler in BASELINES or (sampling.sampler in INDICES and sampling.residual == "exact"):
        add(phase, "scores of all labels", 4, min(SCORES, b * n_labels))


def _add_output(add, parameter, output, b, width, n_labels, fan_in, device, group_size, weight_dtype):
    """The output layer's arrays: parameters, and what its step needs."""
    phase = "output: step"
    if output in FIXED:
        group = (group_size,) if output == "group-shared" else ()
        parameter("output.indices", -(-n_labels // (group_size if group else 1)), fan_in, learns=False)
        parameter("output.values", n_labels, fan_in, item=DTYPES[weight_dtype].itemsize)
        if group:
            parameter("output.order", n_labels, learns=False)
            add("always", "places of the labels", n_labels)
        shapes = backend_of(device, FIXED[output]).workspace_shapes(b, width, n_labels, fan_in, *group)
        for name, (shape, dtype) in shapes.items():  # the CPU keeps them for the next step
            add("always" if device == "cpu" else phase, f"step: {name}", *shape, item=np.dtype(dtype).itemsize)
    elif output in SPARSE_OUTPUTS:
        parameter("output.indptr", n_labels + 1, learns=False)
        parameter("output.indices", n_labels, fan_in, learns=False)
        add("always", "label of each connection", n_labels, fan_in)
        parameter("output.values", n_labels, fan_in)
        add(phase, "output.values: gradient", n_labels, fan_in)
        add(phase, "scores, gradient, both turned round", 3, b, n_labels)
    else:
        parameter("output.weights", n_labels, width)
        add(phase, "output.weights: gradient", n_labels, width)
        add(phase, "scores, which become their gradient", b, n_labels)
    parameter("output.bias", n_labels)
    add(phase, "gradient by the layer below", b, width)
    add(phase, "positive rows of the labels", n_labels, 5)
    add(phase, "loss of the labels", n_labels)
