"""A linear layer over sparse features on CUDA: a block a row reads the scores, a block a label moves its dual variables."""

import numpy as np
from numba import float32

from ..core import formulas
from ..core.connections import Duals
from ..core.device import asarray, cuda, cuda_device, cuda_formulas, cuda_jit, empty, xp
from ..core.sparse import row_of_each_entry
from . import launch
from . import top_k as best
from .reduce import block_sum

first_at_least = cuda_formulas(formulas).first_at_least
ZERO, ONE = np.float32(0), np.float32(1)
#: Threads of a block that walks down the lists of a row: most lists are short.
BLOCK = 64


@cuda_jit
def lists_kernel(features, layer, scores):
    """A block owns one row of scores (B, L), its threads the labels of a list, t, t + blockDim.x, ...: coalesced reads of it.

    One feature of the row after the other, a barrier between them, so that a score is always added in the same order; a
    label occurs once in a list, so no atomics. Reads labels and values of the row's lists, reads and writes as many
    scores, which lie apart. Grid: rows on x. No shared memory.
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
        cuda.syncthreads()


def forward(features, layer, scores, *, block=BLOCK):
    """``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``; x `SparseRows`, layer `FeatureLists`."""
    scores[...] = layer.bias
    if scores.shape[0]:
        lists_kernel[scores.shape[0], block](features, layer, scores)


def _parts(features, n_labels):
    """(first row, `SparseRows`) of as many rows as scores may exist for at once."""
    n_rows = features.indptr.shape[0] - 1
    at_once = best.rows_at_once(n_rows, n_labels)
    for first in range(0, n_rows, at_once):
        yield first, features._replace(indptr=features.indptr[first : min(first + at_once, n_rows) + 1])


def top_k(features, layer, top_scores, top_ids):
    """The k largest scores of each row and their labels; k is the width of the outputs. 64 MiB of scores exist at once."""
    n_labels = layer.bias.shape[0]
    for first, part in _parts(features, n_labels):
        some = slice(first, first + part.indptr.shape[0] - 1)
        scores = empty((some.stop - first, n_labels), np.float32, "cuda")
        forward(part, layer, scores)
        best.top_k(scores, top_scores[some], top_ids[some])


# ---------------------------------------------------------------- training


@cuda_device
def _slot(layer, feature, label):
    """Where the weight of a label and a feature lies, or -1: a binary search in the feature's list."""
    start = layer.dense[feature]
    if start >= 0:
        return start + label
    stop = layer.indptr[feature + 1]
    at = first_at_least(layer.labels, layer.indptr[feature], stop, label)
    if at < stop and layer.labels[at] == label:
        return at
    return at - at - 1  # a literal would have another type


@cuda_jit
def update_kernel(features, starts, rows, labels, own, layer, half, slack, duals, losses):
    """A block owns one label: the pairs p of starts[i] to starts[i + 1], one after the other; a thread has features of the row.

    Twice a pair its threads search the lists of the row's features: for the score and the square, which are added in
    shared memory, 4 bytes a thread, always in the same order; and to change the weights, which no other block touches.
    rows, labels, own, duals, losses (n,). Grid: labels that occur on x; block a power of two. No atomics.
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
        old, new = duals[p], ZERO
        gradient = score - ONE if own[p] else slack - ONE - score
        if square > ZERO:
            new = max(ZERO, old - (gradient + old * half) / (square + half))
        change = new - old if own[p] else old - new
        if change != ZERO:
            for e in range(first, stop, n_threads):
                slot = _slot(layer, features.ids[e], label)
                if slot >= 0:
                    layer.values[slot] += change * features.weights[e]
        cuda.syncthreads()  # the next row's score is read by other threads
        if thread == 0:
            duals[p] = new
            losses[p] = gradient * gradient if gradient < ZERO else ZERO


def _update(features, starts, rows, labels, own, layer, c, slack, duals, losses, *, block=64):
    """Move the dual variables of pairs that are sorted by label, then row; weights, duals and losses are overwritten."""
    if starts.shape[0] > 1:
        grid, half = starts.shape[0] - 1, np.float32(1 / (2 * c))
        shared = launch.shared_bytes(4 * block)
        update_kernel[grid, block, 0, shared](
            features, starts, rows, labels, own, layer, half, np.float32(slack), duals, losses
        )


def _active(features, layer, threshold, n_rows):
    """``label * n_rows + row`` (int64) where the score lies above the threshold."""
    found = []
    for first, part in _parts(features, layer.bias.shape[0]):
        scores = empty((part.indptr.shape[0] - 1, layer.bias.shape[0]), np.float32, "cuda")
        forward(part, layer, scores)
        rows, labels = xp.nonzero(scores > threshold)
        found.append(labels.astype(np.int64) * n_rows + rows + first)
    return xp.concatenate(found)


def _keys(indptr, labels, n_rows):
    """``label * n_rows + row`` of labels row by row."""
    return labels.astype(np.int64) * n_rows + row_of_each_entry(indptr, labels.shape[0])


def step(features, labels, duals, layer, c, slack, room=None):
    """Dual coordinate descent over the active pairs of a batch; returns the loss before it, and the new `Duals`.

    Each label visits its active rows in their order. `values` of the layer change in place. `room` is of no use here.
    """
    n_rows = features.indptr.shape[0] - 1
    if not n_rows:
        return 0.0, duals
    own, known = _keys(labels.indptr, labels.indices, n_rows), _keys(duals.indptr, duals.labels, n_rows)
    keys = xp.unique(xp.concatenate([_active(features, layer, np.float32(slack - 1), n_rows), own, known]))
    rows, found = (keys % n_rows).astype(np.int32), (keys // n_rows).astype(np.int32)
    starts = xp.concatenate(
        [xp.zeros(1, np.int64), xp.flatnonzero(found[1:] != found[:-1]) + 1, xp.full(1, len(found))]
    )
    is_own, values = xp.zeros(len(keys), bool), xp.zeros(len(keys), np.float32)
    is_own[xp.searchsorted(keys, own)] = True
    values[xp.searchsorted(keys, known)] = duals.values
    arrays = [asarray(a, "cuda") for a in (starts, rows, found, is_own, values, xp.zeros(len(keys), np.float32))]
    if len(keys):
        _update(features, *arrays[:4], layer, c, slack, *arrays[4:])
    values, losses = arrays[4:]
    kept = xp.flatnonzero(values > 0)
    order = kept[xp.argsort(rows[kept].astype(np.int64) * layer.bias.shape[0] + found[kept])]
    indptr = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(xp.bincount(rows[kept], minlength=n_rows))])
    new = Duals(*(asarray(a, "cuda") for a in (indptr.astype(np.int64), found[order], values[order])))
    return float(losses.sum()), new
