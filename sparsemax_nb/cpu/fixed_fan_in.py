"""Fixed fan-in output layer on the CPU.

The inputs are packed into blocks of 16 rows, features first: ``block[16 i + q] = x[16 block + q, i]``. One connection
then is one vector multiply-add for 16 rows, and a block of 16,384 inputs (1 MiB) stays in a core's L2 cache while the
labels pass by. A plain label-by-label loop over all rows would read its inputs from the L3 cache instead.

Threads never share an output: results are bit-identical for any number of threads.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from ..core import backend, formulas, rng
from .top_k import WORST, enters, insert
from .vector import LANES, add, aligned, any_above, any_nonzero, dot, fma, item, load, splat, store, store_transposed

_f = backend.cpu_formulas(formulas)
_r = backend.cpu_formulas(rng)
squared_hinge, binary_cross_entropy, adam, sgd = _f.squared_hinge, _f.binary_cross_entropy, _f.adam, _f.sgd
random_word, below, symmetric = _r.random_word, _r.below, _r.symmetric

ZERO, ONE = np.float32(0), np.float32(1)
ADAM, SQUARED_HINGE = formulas.ADAM_KIND, formulas.SQUARED_HINGE
STREAM = rng.CONNECTIONS
NO_STEP = np.uint64(0)

#: Labels that one thread scores before it moves to the next block of rows: with 32 connections, 128 KiB of weights.
CHUNK = 512
#: Labels that one thread updates in one go.
SPAN = 64
#: Numbers that the blocks of rows hold back as their share of the labels' gradients (8 MiB) before the labels are updated.
PARTIAL_SUMS = 1 << 21
#: Work is cut into at least this many parts (blocks of rows x ranges of labels) where a label's gradient is needed.
PARTS = 8


@backend.njit_parallel
def random_connections(seed, n_inputs, indices):
    """`fan_in` different inputs for each label, ascending: Floyd's sampling, one random word a connection."""
    n_labels, fan_in = indices.shape
    for label in prange(n_labels):
        for k in range(fan_in):
            j = n_inputs - fan_in + k
            word = random_word(np.uint64(seed), STREAM, NO_STEP, np.uint64(label * fan_in + k))
            t = np.int64(below(word, np.uint64(j + 1)))
            place = k  # the chosen inputs so far are ascending: find where t belongs
            while place > 0 and indices[label, place - 1] > t:
                place -= 1
            if place > 0 and indices[label, place - 1] == t:
                t, place = j, k  # j is larger than all that were chosen before
            for i in range(k, place, -1):
                indices[label, i] = indices[label, i - 1]
            indices[label, place] = t


@backend.njit_parallel
def random_values(seed, stream, scale, values):
    """Uniform weights in [-scale, scale), `values` one-dimensional."""
    for i in prange(values.size):
        values[i] = symmetric(random_word(np.uint64(seed), np.uint64(stream), NO_STEP, np.uint64(i))) * scale


def _new_blocks(x):
    """Room for x in blocks of 16 rows, features first: (n_blocks, 16 H)."""
    n_rows, n_inputs = x.shape
    return aligned(np.empty, ((n_rows + LANES - 1) // LANES, n_inputs * LANES))


@backend.njit_parallel
def _pack(x, blocks):
    """Fill the blocks from x; missing rows of the last block are zero."""
    n_rows, n_inputs = x.shape
    span = 512
    n_spans = (n_inputs + span - 1) // span
    for part in prange(blocks.shape[0] * n_spans):
        block, first = part // n_spans, part % n_spans * span
        for i in range(first, min(first + span, n_inputs)):
            for q in range(LANES):
                row = block * LANES + q
                blocks[block, i * LANES + q] = x[row, i] if row < n_rows else ZERO


@backend.njit_inline
def _score(block, indices, values, start, fan_in, bias):
    """Scores of one label for the 16 rows of a block, as a vector. Four sums run side by side to hide the latency."""
    s0, s1, s2, s3 = splat(bias), splat(ZERO), splat(ZERO), splat(ZERO)
    whole = start + fan_in // 4 * 4
    for k in range(start, whole, 4):
        s0 = fma(item(values, k), load(block, item(indices, k) * LANES), s0)
        s1 = fma(item(values, k + 1), load(block, item(indices, k + 1) * LANES), s1)
        s2 = fma(item(values, k + 2), load(block, item(indices, k + 2) * LANES), s2)
        s3 = fma(item(values, k + 3), load(block, item(indices, k + 3) * LANES), s3)
    for k in range(whole, start + fan_in):
        s0 = fma(item(values, k), load(block, item(indices, k) * LANES), s0)
    return add(add(s0, s1), add(s2, s3))


@backend.njit_parallel
def _forward(x, layer, scores, blocks):
    n_rows = x.shape[0]
    n_labels, fan_in = layer.indices.shape
    _pack(x, blocks)
    indices, values, flat_scores = layer.indices.reshape(-1), layer.values.reshape(-1), scores.reshape(-1)
    for chunk in prange((n_labels + CHUNK - 1) // CHUNK):
        tile = np.empty(LANES * LANES, np.float32)
        stop = min((chunk + 1) * CHUNK, n_labels)
        for b in range(blocks.shape[0]):
            block, first_row = blocks[b], b * LANES
            for first in range(chunk * CHUNK, stop, LANES):
                n = min(LANES, stop - first)
                for j in range(n):
                    label = first + j
                    score = _score(block, indices, values, label * fan_in, fan_in, item(layer.bias, label))
                    store(tile, j * LANES, score)
                if n == LANES and first_row + LANES <= n_rows:
                    store_transposed(tile, flat_scores, first_row * n_labels + first, n_labels)
                else:
                    for q in range(min(LANES, n_rows - first_row)):
                        for j in range(n):
                            scores[first_row + q, first + j] = tile[j * LANES + q]


def forward(x, layer, scores):
    """``scores[b, l] = bias[l] + sum_k values[l, k] x[b, indices[l, k]]``."""
    _forward(x, layer, scores, _new_blocks(x))


@backend.njit_inline
def _scatter(block, dblock, indices, values, start, fan_in, g, dvalues):
    """For one label and the gradients `g` of 16 rows: dblock += values g (scattered), dvalues = g . block (gathered)."""
    for k in range(fan_in):
        i = item(indices, start + k) * LANES
        dvalues[k] = dot(g, load(block, i))
        store(dblock, i, fma(item(values, start + k), g, load(dblock, i)))


class _Workspace(NamedTuple):
    """Where gradients are collected, cut by the shape alone, so that sums keep their order for any number of threads."""

    blocks: np.ndarray  # (n_blocks, 16 H): the inputs
    dblocks: np.ndarray  # (n_splits, n_blocks, 16 H): dx, one for each range of labels and block of rows
    # what each block of rows adds to the gradients of the labels that are summed at once
    dvalues: np.ndarray  # (n_blocks, n_at_once, K), written only where it is not zero
    dbias: np.ndarray  # (n_blocks, n_at_once), likewise
    loss: np.ndarray  # (n_blocks, n_at_once)
    active: np.ndarray  # (n_blocks, n_at_once) bool: is there anything to add


def _n_splits(n_blocks):
    """Ranges of labels that are worked on side by side, so that there are at least PARTS parts."""
    return -(-PARTS // max(n_blocks, 1))


def _workspace(x, layer):
    n_labels, fan_in = layer.indices.shape
    blocks = _new_blocks(x)
    n_blocks = len(blocks)
    shape = n_blocks, min(n_labels, max(256, PARTIAL_SUMS // (max(n_blocks, 1) * fan_in)))
    return _Workspace(
        blocks, aligned(np.zeros, (_n_splits(n_blocks), *blocks.shape)), np.empty((*shape, fan_in), np.float32),
        np.empty(shape, np.float32), np.empty(shape, np.float32), np.zeros(shape, np.bool_),
    )  # fmt: skip


@backend.njit_parallel
def _unpack_sum(dblocks, dx):
    """dx (B, H) from its packed parts (n_splits, n_blocks, 16 H), added in the order of the splits."""
    n_rows, n_inputs = dx.shape
    for part in prange((n_inputs + 63) // 64):
        for row in range(n_rows):
            for i in range(part * 64, min((part + 1) * 64, n_inputs)):
                total = ZERO
                for s in range(dblocks.shape[0]):
                    total += dblocks[s, row // LANES, i * LANES + row % LANES]
                dx[row, i] = total


@backend.njit_inline
def _add_parts(work, j, dvalues):
    """Sum over the blocks of rows, in their order, for the j-th label at hand: writes dvalues (K,), returns dbias."""
    dvalues[:] = ZERO
    dbias = ZERO
    for b in range(work.active.shape[0]):
        if work.active[b, j]:
            dbias += work.dbias[b, j]
            for k in range(dvalues.size):
                dvalues[k] += work.dvalues[b, j, k]
    return dbias


@backend.njit
def _backward_of_block(layer, dscores, work, b, s, first, n):
    """Gradients of 16 rows and a range of the `n` labels from `first` on."""
    fan_in, n_splits = layer.indices.shape[1], work.dblocks.shape[0]
    block, dblock = work.blocks[b], work.dblocks[s, b]
    indices, values = layer.indices.reshape(-1), layer.values.reshape(-1)
    g = np.zeros(LANES, np.float32)
    for j in range(n * s // n_splits, n * (s + 1) // n_splits):
        for q in range(min(LANES, dscores.shape[0] - b * LANES)):
            g[q] = dscores[b * LANES + q, first + j]
        work.active[b, j] = any_nonzero(load(g, 0))
        if work.active[b, j]:
            work.dbias[b, j] = dot(load(g, 0), splat(ONE))
            _scatter(block, dblock, indices, values, (first + j) * fan_in, fan_in, load(g, 0), work.dvalues[b, j])


@backend.njit
def _backward_of_labels(work, first, start, stop, dvalues, dbias):
    """Gradients of the labels first + start ... first + stop, summed over all rows."""
    for j in range(start, stop):
        dbias[first + j] = _add_parts(work, j, dvalues[first + j])


@backend.njit_parallel
def _backward(x, layer, dscores, dx, dvalues, dbias, work):
    # The parallel loops only call functions, not inlined ones: what a parallel loop's own body writes into the arrays of
    # a tuple is lost (numba 0.68).
    n_labels = layer.indices.shape[0]
    _pack(x, work.blocks)
    n_splits, n_blocks = work.dblocks.shape[:2]
    at_once = work.active.shape[1]
    for first in range(0, n_labels, at_once):
        n = min(at_once, n_labels - first)
        for part in prange(n_blocks * n_splits):
            _backward_of_block(layer, dscores, work, part // n_splits, part % n_splits, first, n)
        for part in prange((n + SPAN - 1) // SPAN):
            _backward_of_labels(work, first, part * SPAN, min(n, (part + 1) * SPAN), dvalues, dbias)
    _unpack_sum(work.dblocks, dx)


def backward(x, layer, dscores, dx, dvalues, dbias):
    """Gradients of ``sum(dscores * scores)``: dx (scattered), dvalues and dbias; all three are overwritten."""
    _backward(x, layer, dscores, dx, dvalues, dbias, _workspace(x, layer))


@backend.njit_inline
def _update_label(layer, label, dvalues, dbias, optimizer, rates, values_moments, bias_moments):
    """Adam or SGD on the weights and the bias of one label."""
    values = layer.values[label]
    if optimizer == ADAM:
        m, v = values_moments.m[label], values_moments.v[label]
        for k in range(values.size):
            values[k], m[k], v[k] = adam(values[k], dvalues[k], m[k], v[k], rates)
        layer.bias[label], bias_moments.m[label], bias_moments.v[label] = adam(
            layer.bias[label], dbias, bias_moments.m[label], bias_moments.v[label], rates
        )
    else:
        for k in range(values.size):
            values[k] = sgd(values[k], dvalues[k], rates)
        layer.bias[label] = sgd(layer.bias[label], dbias, rates)


@backend.njit_inline
def _mark_positives(positives, label, first_row, signs):
    """signs[q] = +1 where the label is positive in row first_row + q, else -1."""
    signs[:] = -ONE
    for p in range(positives.indptr[label], positives.indptr[label + 1]):
        q = positives.rows[p] - first_row
        if 0 <= q < LANES:
            signs[q] = ONE


@backend.njit_inline
def _loss_of_block(loss, scores, signs, weights, losses, g):
    """Loss of one label over 16 rows, each times its weight; g becomes its gradient by the scores. Returns (loss, dbias)."""
    if loss == SQUARED_HINGE:  # two loops, so that this one is compiled to vector code
        for q in range(LANES):
            losses[q], g[q] = squared_hinge(scores[q], signs[q])
    else:
        for q in range(LANES):
            losses[q], g[q] = binary_cross_entropy(scores[q], signs[q])
    for q in range(LANES):
        g[q] *= weights[q]
    return dot(load(losses, 0), load(weights, 0)), dot(load(g, 0), splat(ONE))


@backend.njit
def _step_of_block(x, layer, positives, loss, work, b, s, first, n):
    """Scores, loss and gradients of 16 rows and a range of the `n` labels from `first` on."""
    fan_in, n_splits = layer.indices.shape[1], work.dblocks.shape[0]
    block, dblock = work.blocks[b], work.dblocks[s, b]
    indices, values = layer.indices.reshape(-1), layer.values.reshape(-1)
    g, signs, scores, losses, weights = np.zeros((5, LANES), np.float32)
    weights[: min(LANES, x.shape[0] - b * LANES)] = ONE / np.float32(x.shape[0])
    for j in range(n * s // n_splits, n * (s + 1) // n_splits):
        label = first + j
        start = label * fan_in
        score = _score(block, indices, values, start, fan_in, item(layer.bias, label))
        no_positives = item(positives.indptr, label) == item(positives.indptr, label + 1)
        if loss == SQUARED_HINGE and no_positives and not any_above(score, splat(-ONE)):
            work.active[b, j], work.loss[b, j] = False, ZERO  # outside the margin: no loss, no gradient
            continue
        store(scores, 0, score)
        _mark_positives(positives, label, b * LANES, signs)
        work.loss[b, j], work.dbias[b, j] = _loss_of_block(loss, scores, signs, weights, losses, g)
        work.active[b, j] = any_nonzero(load(g, 0))
        if work.active[b, j]:
            _scatter(block, dblock, indices, values, start, fan_in, load(g, 0), work.dvalues[b, j])


@backend.njit
def _step_of_labels(layer, work, first, start, stop, optimizer, rates, values_moments, bias_moments, label_loss):
    """Gradients and losses of the labels first + start ... first + stop are summed over all rows, the labels updated."""
    dvalues = np.empty(layer.indices.shape[1], np.float32)
    for j in range(start, stop):
        dbias = _add_parts(work, j, dvalues)
        _update_label(layer, first + j, dvalues, dbias, optimizer, rates, values_moments, bias_moments)
        total = ZERO
        for b in range(work.loss.shape[0]):
            total += work.loss[b, j]
        label_loss[first + j] = total


@backend.njit_parallel
def _step(x, layer, positives, loss, optimizer, rates, values_moments, bias_moments, dx, label_loss, work):
    n_labels = layer.indices.shape[0]
    _pack(x, work.blocks)
    n_splits, n_blocks = work.dblocks.shape[:2]
    at_once = work.active.shape[1]
    for first in range(0, n_labels, at_once):
        n = min(at_once, n_labels - first)
        for part in prange(n_blocks * n_splits):
            _step_of_block(x, layer, positives, loss, work, part // n_splits, part % n_splits, first, n)
        for part in prange((n + SPAN - 1) // SPAN):
            stop = min(n, (part + 1) * SPAN)
            _step_of_labels(
                layer, work, first, part * SPAN, stop, optimizer, rates, values_moments, bias_moments, label_loss
            )
    _unpack_sum(work.dblocks, dx)


def step(x, layer, positives, loss, optimizer, rates, values_moments, bias_moments, dx, label_loss):
    """Scores, loss, gradients and update in one pass over the labels, in place; no (B, L) array exists.

    A block of rows whose gradient is zero (squared hinge: every score on the right side of its margin) costs its
    scores only.
    """
    work = _workspace(x, layer)
    _step(x, layer, positives, loss, optimizer, rates, values_moments, bias_moments, dx, label_loss, work)


@backend.njit_parallel
def _top_k(x, layer, top_scores, top_ids, blocks, n_splits):
    n_rows, k = top_scores.shape
    n_labels, fan_in = layer.indices.shape
    _pack(x, blocks)
    n_blocks = blocks.shape[0]
    indices, values = layer.indices.reshape(-1), layer.values.reshape(-1)
    part_scores = np.full((n_blocks, n_splits, LANES, k), WORST, np.float32)
    part_ids = np.full((n_blocks, n_splits, LANES, k), -1, np.int32)
    for part in prange(n_blocks * n_splits):
        b, s = part // n_splits, part % n_splits
        best, best_ids = part_scores[b, s], part_ids[b, s]
        worst, scores = np.full(LANES, WORST, np.float32), np.empty(LANES, np.float32)
        for label in range(n_labels * s // n_splits, n_labels * (s + 1) // n_splits):
            score = _score(blocks[b], indices, values, label * fan_in, fan_in, item(layer.bias, label))
            if any_above(score, load(worst, 0)):
                store(scores, 0, score)
                for q in range(LANES):
                    if enters(scores[q], label, best[q], best_ids[q]):
                        insert(best[q], best_ids[q], scores[q], label)
                        worst[q] = best[q, k - 1]
    for row in prange(n_rows):
        b, q = row // LANES, row % LANES
        top_scores[row], top_ids[row] = part_scores[b, 0, q], part_ids[b, 0, q]
        for s in range(1, n_splits):
            for i in range(k):
                if enters(part_scores[b, s, q, i], part_ids[b, s, q, i], top_scores[row], top_ids[row]):
                    insert(top_scores[row], top_ids[row], part_scores[b, s, q, i], part_ids[b, s, q, i])


def top_k(x, layer, top_scores, top_ids):
    """The k best labels of each row; only k scores a row are kept. A label enters where it beats the k-th best so far."""
    blocks = _new_blocks(x)
    _top_k(x, layer, top_scores, top_ids, blocks, _n_splits(len(blocks)))
