"""A linear layer over sparse features on CUDA: one block per row computes scores, one per label trains its duals."""

import numpy as np
from numba import float32

from ..core import formulas
from ..core.connections import dual_diagonal, positive_duals
from ..core.device import asarray, cuda, cuda_device, cuda_formulas, cuda_jit, empty, xp
from ..core.sparse import row_of_each_entry
from . import launch
from .reduce import block_sum
from .top_k import rows_at_once
from .top_k import top_k as top_k_of_scores

first_at_least = cuda_formulas(formulas).first_at_least
ZERO, ONE, INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
#: Threads per block: most features have few labels, so more threads would idle.
BLOCK = 64


@cuda_jit
def lists_kernel(features, layer, scores):
    """One block owns one row of scores (B, L); its threads share the labels of each of the row's features.

    Grid: rows on x. Reads labels and values of the features' lists coalesced; reads and writes scores at the labels,
    which are scattered. No shared memory. No atomics: a label occurs once per list.
    """
    b, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature, weight = features.ids[e], features.weights[e]
        start = layer.dense[feature]
        if start >= 0:
            for label in range(thread, scores.shape[1], n_threads):
                scores[b, label] += weight * layer.values[start + label]
        for j in range(layer.indptr[feature] + thread, layer.indptr[feature + 1], n_threads):
            scores[b, layer.labels[j]] += weight * layer.values[j]
        cuda.syncthreads()  # one feature after the other: a score is always summed in the same order


def forward(features, layer, scores, *, block=BLOCK):
    """``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``.

    features is `SparseRows`, layer is `FeatureLists`.
    """
    scores[...] = layer.bias
    if scores.shape[0]:
        lists_kernel[scores.shape[0], block](features, layer, scores)


def _row_chunks(features, n_labels):
    """(first row, `SparseRows`) of chunks of rows whose scores fit in 64 MiB."""
    n_rows = features.indptr.shape[0] - 1
    rows_per_chunk = rows_at_once(n_rows, n_labels)
    for first in range(0, n_rows, rows_per_chunk):
        yield first, features._replace(indptr=features.indptr[first : min(first + rows_per_chunk, n_rows) + 1])


def top_k(features, layer, top_scores, top_ids):
    """The k largest scores of each row and their labels; k is the width of the outputs.

    At most 64 MiB of scores exist at once.
    """
    n_labels = layer.bias.shape[0]
    for first, part in _row_chunks(features, n_labels):
        rows = slice(first, first + part.indptr.shape[0] - 1)
        scores = empty((rows.stop - first, n_labels), np.float32, "cuda")
        forward(part, layer, scores)
        top_k_of_scores(scores, top_scores[rows], top_ids[rows])


# ---------------------------------------------------------------- training


@cuda_device
def _slot(layer, feature, label):
    """Position of the weight of (label, feature), or -1; a binary search in the feature's list unless it is dense."""
    start = layer.dense[feature]
    if start >= 0:
        return start + label
    stop = layer.indptr[feature + 1]
    position = first_at_least(layer.labels, layer.indptr[feature], stop, label)
    if position < stop and layer.labels[position] == label:
        return position
    return position - position - 1  # not -1: a literal would have another type


@cuda_jit
def update_kernel(features, starts, rows, labels, is_label, layer, diagonal, slack, duals, losses):
    """One block owns one label: it updates the label's pairs, starts[i]:starts[i + 1], in order.

    Grid: labels that occur on x; block a power of two. The threads share the features of a pair's row. They search each
    feature's list twice: for score and squared norm, and to update the weights, which no other block touches. rows,
    labels, is_label, duals and losses are (n,), one entry per pair. If diagonal[row], (B,), is infinite, the duals of
    the row become 0. Shared memory: 4 bytes per thread for the reductions, which run in a fixed order. No atomics.
    """
    shared = cuda.shared.array(0, float32)
    i, thread, n_threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    for p in range(starts[i], starts[i + 1]):
        label, score, square = labels[p], ZERO, ZERO
        first, stop = features.indptr[rows[p]] + thread, features.indptr[rows[p] + 1]
        for e in range(first, stop, n_threads):
            slot = _slot(layer, features.ids[e], label)
            if slot >= 0:
                score += features.weights[e] * layer.values[slot]
                square += features.weights[e] * features.weights[e]
        score, square = block_sum(shared, score) + layer.bias[label], block_sum(shared, square)
        old, new, slope = duals[p], ZERO, diagonal[rows[p]]
        gradient = score - ONE if is_label[p] else slack - ONE - score
        if square > ZERO and slope < INFINITY:
            new = max(ZERO, old - (gradient + old * slope) / (square + slope))
        change = new - old if is_label[p] else old - new
        if change != ZERO:
            for e in range(first, stop, n_threads):
                slot = _slot(layer, features.ids[e], label)
                if slot >= 0:
                    layer.values[slot] += change * features.weights[e]
        cuda.syncthreads()  # the next pair's score needs these weights
        if thread == 0:
            duals[p] = new
            losses[p] = gradient * gradient if gradient < ZERO else ZERO


def _update(features, starts, rows, labels, is_label, layer, row_weights, c, slack, duals, losses, *, block=64):
    """Updates the dual variables of pairs that are sorted by label, then row.

    The layer's values, duals and losses are overwritten. The losses are not multiplied by the `row_weights` (B,).
    """
    if starts.shape[0] > 1:
        grid, diagonal = starts.shape[0] - 1, asarray(dual_diagonal(c, row_weights), "cuda")
        shared = launch.shared_bytes(4 * block)
        update_kernel[grid, block, 0, shared](
            features, starts, rows, labels, is_label, layer, diagonal, np.float32(slack), duals, losses
        )


def _pairs_above(features, layer, threshold, n_rows):
    """``label * n_rows + row`` (int64) of the pairs whose score is above the threshold."""
    found = []
    for first, part in _row_chunks(features, layer.bias.shape[0]):
        scores = empty((part.indptr.shape[0] - 1, layer.bias.shape[0]), np.float32, "cuda")
        forward(part, layer, scores)
        rows, labels = xp.nonzero(scores > threshold)
        found.append(labels.astype(np.int64) * n_rows + rows + first)
    return xp.concatenate(found)


def _pair_keys(indptr, labels, n_rows):
    """``label * n_rows + row`` of the labels of each row."""
    return labels.astype(np.int64) * n_rows + row_of_each_entry(indptr, labels.shape[0])


def step(features, labels, duals, layer, row_weights, c, slack, room=None):
    """Dual coordinate descent over the active pairs of a batch; returns the loss before it and the new `Duals`.

    A pair is active if the row has the label, if it has a dual variable, or if its score violates the margin. Each
    label visits its active rows in ascending order. The `values` of the layer change in place. `row_weights` is (B,).
    `room` is unused on CUDA.
    """
    n_rows = features.indptr.shape[0] - 1
    if not n_rows:
        return 0.0, duals
    label_keys = _pair_keys(labels.indptr, labels.indices, n_rows)
    dual_keys = _pair_keys(duals.indptr, duals.labels, n_rows)
    keys = xp.unique(
        xp.concatenate([_pairs_above(features, layer, np.float32(slack - 1), n_rows), label_keys, dual_keys])
    )
    rows, pair_labels = (keys % n_rows).astype(np.int32), (keys // n_rows).astype(np.int32)
    starts = xp.concatenate(
        [xp.zeros(1, np.int64), xp.flatnonzero(pair_labels[1:] != pair_labels[:-1]) + 1, xp.full(1, len(pair_labels))]
    )
    is_label, values = xp.zeros(len(keys), bool), xp.zeros(len(keys), np.float32)
    is_label[xp.searchsorted(keys, label_keys)] = True
    values[xp.searchsorted(keys, dual_keys)] = duals.values
    arrays = [
        asarray(a, "cuda") for a in (starts, rows, pair_labels, is_label, values, xp.zeros(len(keys), np.float32))
    ]
    if len(keys):
        _update(features, *arrays[:4], layer, row_weights, c, slack, *arrays[4:])
    values, losses = arrays[4:]
    new = positive_duals(rows, pair_labels, values, n_rows, layer.bias.shape[0])
    return float((row_weights[rows] * losses.astype(np.float64)).sum()), new
