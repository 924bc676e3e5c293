"""A linear layer over sparse features on the CPU: scores are computed in parallel over rows, updates over labels.

Most entries of a batch belong to few features, to which nearly every label is connected: these are stored as dense
rows of weights, which add 16 labels at a time, while a list adds one. The bits do not depend on the number of threads:
one thread changes a label's weights, rows ascending.
"""

import numpy as np
from numba import prange

from ..core.connections import Active, Duals, Entries, dual_diagonal
from ..core.device import njit, njit_parallel
from .simd import LANES, any_above, fma, item, load, prefetch, set_item, splat, store
from .top_k import MAX_INSERTED, WORST, beats_worst, insert, select

ZERO, ONE, INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
#: Rows per work item of `forward` and `top_k`.
ROWS = 16
#: Most chunks of rows, the work items of the search for active pairs.
CHUNKS = 16
#: Number of owners among which the labels are divided, a cache line at a time; one thread updates the labels of an
#: owner.
OWNERS = 16
#: Scores that mark a label as active, and the padding of the last vector.
MARKED, LOWEST = np.float32(3e38), np.float32(-3e38)
#: If the lists of a row have fewer labels than this fraction of all, only these are examined: all others score their
#: bias.
MAX_LISTED_FRACTION = 1 / 16


@njit
def _longest(indptr):
    longest = 0
    for b in range(indptr.size - 1):
        longest = max(longest, indptr[b + 1] - indptr[b])
    return longest


@njit
def _reset(layer, scores):
    """The scores of a row without features; padding gets the lowest score."""
    scores[: layer.bias.size] = layer.bias
    scores[layer.bias.size :] = LOWEST


@njit
def _reset_listed(features, b, layer, scores):
    """`_reset` after only the lists of row b have been added."""
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature = np.int64(item(features.ids, e))
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            set_item(scores, label, item(layer.bias, label))


@njit
def _add_lists(features, b, layer, scores, starts, inputs):
    """Add the features of row b to `scores`, except for the dense ones, which are written to `starts` and `inputs`.

    Returns the number of dense features, and whether the lists have few labels. The head of the next list is
    prefetched while one is added.
    """
    n_dense, n_listed, stop = 0, 0, features.indptr[b + 1]
    for e in range(features.indptr[b], stop):
        if e + 1 < stop:
            following = layer.indptr[item(features.ids, e + 1)]
            prefetch(layer.labels, following)
            prefetch(layer.values, following)
        feature, input_ = np.int64(item(features.ids, e)), item(features.weights, e)
        if layer.dense[feature] >= 0:
            starts[n_dense], inputs[n_dense] = layer.dense[feature], input_
            n_dense += 1
        n_listed += layer.indptr[feature + 1] - layer.indptr[feature]
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            set_item(scores, label, item(scores, label) + input_ * item(layer.values, j))
    return n_dense, n_dense == 0 and n_listed < MAX_LISTED_FRACTION * layer.bias.size


@njit
def _with_dense(scores, i, values, starts, inputs, n_dense):
    """The scores of labels i to i + 15, including the dense features of the row."""
    v = load(scores, i)
    for d in range(n_dense):
        v = fma(item(inputs, d), load(values, item(starts, d) + i), v)
    return v


@njit
def _add_dense(scores, values, starts, inputs, n_dense):
    """Add the dense features of the row to all scores."""
    for i in range(0, scores.size, LANES):
        store(scores, i, _with_dense(scores, i, values, starts, inputs, n_dense))


def _work(features, layer, *_):
    """Rows times labels (reading the scores), plus the lists of the rows' features, assuming average length."""
    return len(features.indptr) * len(layer.bias) // LANES + len(features.ids) * (
        len(layer.values) // max(1, len(layer.dense))
    )


@njit_parallel(work=_work)
def forward(features, layer, scores):
    """``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``; features `SparseRows`, layer `FeatureLists`."""
    n_rows, n_labels, longest = scores.shape[0], layer.bias.size, _longest(features.indptr)
    width = (n_labels + LANES - 1) // LANES * LANES
    for part in prange((n_rows + ROWS - 1) // ROWS):
        row_scores, starts, inputs = (
            np.empty(width, np.float32),
            np.empty(longest, np.int64),
            np.empty(longest, np.float32),
        )
        for b in range(part * ROWS, min((part + 1) * ROWS, n_rows)):
            _reset(layer, row_scores)
            n_dense, _ = _add_lists(features, b, layer, row_scores, starts, inputs)
            _add_dense(row_scores, layer.values, starts, inputs, n_dense)
            scores[b] = row_scores[:n_labels]


@njit
def _insert_listed(features, b, layer, scores, top_scores, top_ids):
    """The best of the labels in the row's lists; a label gets the worst score once examined, so that it counts once."""
    top_scores[:], top_ids[:] = WORST, -1
    worst = WORST
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature = np.int64(item(features.ids, e))
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            score = item(scores, label)
            set_item(scores, label, WORST)
            if score != WORST and not score < worst and beats_worst(score, label, top_scores, top_ids):
                insert(top_scores, top_ids, score, label)
                worst = top_scores[top_scores.size - 1]


@njit
def _insert_all(scores, layer, starts, inputs, n_dense, top_scores, top_ids):
    """The best of all labels; groups of 16 that do not beat the worst kept one are skipped."""
    top_scores[:], top_ids[:] = WORST, -1
    worst = WORST
    for i in range(0, scores.size, LANES):
        v = _with_dense(scores, i, layer.values, starts, inputs, n_dense)
        if any_above(v, splat(worst)):
            store(scores, i, v)
            for label in range(i, min(i + LANES, layer.bias.size)):
                if not scores[label] <= worst and beats_worst(scores[label], label, top_scores, top_ids):
                    insert(top_scores, top_ids, scores[label], label)
                    worst = top_scores[top_scores.size - 1]


@njit_parallel(work=_work)
def _top_k(features, layer, largest_bias, top_scores, top_ids):
    n_rows, n_labels, longest = top_ids.shape[0], layer.bias.size, _longest(features.indptr)
    width, k = (n_labels + LANES - 1) // LANES * LANES, top_ids.shape[1]
    for part in prange((n_rows + ROWS - 1) // ROWS):
        scores, starts, inputs = np.empty(width, np.float32), np.empty(longest, np.int64), np.empty(longest, np.float32)
        _reset(layer, scores)
        for b in range(part * ROWS, min((part + 1) * ROWS, n_rows)):
            n_dense, few = _add_lists(features, b, layer, scores, starts, inputs)
            if few and k <= MAX_INSERTED:
                _insert_listed(features, b, layer, scores, top_scores[b], top_ids[b])
                _reset_listed(features, b, layer, scores)
                if top_scores[b, k - 1] > largest_bias:  # no other label can be among the best
                    continue
                _add_lists(features, b, layer, scores, starts, inputs)
            if k <= MAX_INSERTED:
                _insert_all(scores, layer, starts, inputs, n_dense, top_scores[b], top_ids[b])
            else:
                _add_dense(scores, layer.values, starts, inputs, n_dense)
                select(scores[:n_labels], top_scores[b], top_ids[b])
            _reset(layer, scores)


def top_k(features, layer, top_scores, top_ids):
    """The k largest scores per row and their labels; k is the width of the outputs. No (B, L) array exists."""
    _top_k(features, layer, layer.bias.max(), top_scores, top_ids)


# ---------------------------------------------------------------- training


@njit
def _label_of(pair):
    """The label in an entry of `Active.labels`, which is -1 - label if the row has the label."""
    return np.int64(-1 - pair if pair < 0 else pair)


@njit
def _owner(pair):
    """The owner of the label of a pair."""
    return _label_of(pair) // LANES % OWNERS


@njit
def _append_pair(label, dual, own, n, active_labels, active_duals):
    """Write the n-th pair if there is space."""
    if n < active_labels.size:
        active_labels[n] = -1 - label if own else label
        active_duals[n] = dual


@njit
def _find_pairs(scores, width, layer, starts, inputs, n_dense, threshold, positions, n, labels, duals):
    """Append the labels above the threshold, from pair n on; `positions` are their pairs' positions in the row.

    Returns the new number of pairs. A score above the threshold marks a label as active.
    """
    first = n
    for i in range(0, width, LANES):
        v = _with_dense(scores, i, layer.values, starts, inputs, n_dense)
        store(scores, i, v)
        if any_above(v, splat(threshold)):
            for label in range(i, i + LANES):
                if item(scores, label) > threshold:
                    _append_pair(label, ZERO, False, n, labels, duals)
                    positions[label] = n - first
                    n += 1
    return n


@njit
def _find_listed_pairs(features, b, layer, scores, threshold, positions, n, labels, duals):
    """`_find_pairs` among the labels of the row's lists only; labels that have a position are skipped."""
    first = n
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature = np.int64(item(features.ids, e))
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            if item(scores, label) > threshold and item(positions, label) < 0:
                _append_pair(label, ZERO, False, n, labels, duals)
                set_item(positions, label, np.int32(n - first))
                n += 1
    return n


@njit
def _add_pair(label, dual, own, scores, threshold, positions, first, n, labels, duals):
    """Add a pair that is active whatever its score, or update it if it exists; returns the number of pairs."""
    if scores[label] > threshold:
        slot = first + positions[label]
        if slot < labels.size:
            labels[slot] = -1 - label if own else label
            if not own:
                duals[slot] = dual
        return n
    _append_pair(label, dual, own, n, labels, duals)
    scores[label], positions[label] = MARKED, n - first
    return n + 1


@njit
def _find_entries(features, b, layer, scores, threshold, positions, n, slots, pairs, weights):
    """Append the weights that connect the active labels to the row's features; returns the number of entries.

    Reads the lists a second time, in order: a search in each label's own features would access memory at random.
    """
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature, input_ = np.int64(item(features.ids, e)), item(features.weights, e)
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            if item(scores, label) > threshold:
                if n < slots.size:
                    slots[n], pairs[n], weights[n] = j, positions[label], input_
                n += 1
    return n


@njit
def _sort_pairs_by_owner(first, last, labels, duals, positions, ends, old_labels, old_duals):
    """Sort the pairs of a row, `first` to `last`, by owner; write `ends` per owner and `positions`.

    `old_labels` and `old_duals` are scratch.
    """
    ends[:] = 0
    for i in range(first, last):
        old_labels[i - first], old_duals[i - first] = labels[i], duals[i]
        ends[_owner(labels[i])] += 1
    _starts(first, ends)
    for i in range(last - first):
        owner = _owner(old_labels[i])
        target = ends[owner]
        labels[target], duals[target], positions[_label_of(old_labels[i])] = old_labels[i], old_duals[i], target - first
        ends[owner] = target + 1


@njit
def _sort_entries_by_owner(first, last, labels, slots, pairs, weights, ends, old_slots, old_pairs, old_weights):
    """Sort the entries of a row, `first` to `last`, by the owner of their pair; write `ends` per owner.

    `labels` are those of the row's pairs; `old_slots`, `old_pairs` and `old_weights` are scratch.
    """
    ends[:] = 0
    for e in range(last - first):
        pair = item(pairs, first + e)
        set_item(old_slots, e, item(slots, first + e))
        set_item(old_pairs, e, pair)
        set_item(old_weights, e, item(weights, first + e))
        owner = _owner(item(labels, np.int64(pair)))
        set_item(ends, owner, item(ends, owner) + 1)
    _starts(first, ends)
    for e in range(last - first):
        pair = item(old_pairs, e)
        owner = _owner(item(labels, np.int64(pair)))
        target = item(ends, owner)
        set_item(slots, target, item(old_slots, e))
        set_item(pairs, target, pair)
        set_item(weights, target, item(old_weights, e))
        set_item(ends, owner, target + 1)


@njit
def _starts(first, counts):
    """Replace the length of each owner's part by its start; the first one starts at `first`."""
    for owner in range(OWNERS):
        first, counts[owner] = first + counts[owner], first


@njit
def _reset_row(features, b, layer, few, scores, positions, labels):
    """Reset scores and positions after row b, whose pairs have these labels."""
    for pair in labels:
        positions[_label_of(pair)], scores[_label_of(pair)] = -1, layer.bias[_label_of(pair)]
    if few:
        _reset_listed(features, b, layer, scores)
    else:
        _reset(layer, scores)


@njit_parallel(work=lambda features, labels, duals, layer, *_: _work(features, layer))
def _find_active(features, labels, duals, layer, threshold, largest_bias, active, entries, needed):
    n_rows, n_labels, longest = features.indptr.size - 1, layer.bias.size, _longest(features.indptr)
    width, n_chunks = (n_labels + LANES - 1) // LANES * LANES, active.labels.shape[0]
    pair_ends = active.ends
    entry_ends = entries.ends
    for chunk in prange(n_chunks):
        scores, positions = np.empty(width, np.float32), np.empty(width, np.int32)
        starts, inputs = np.empty(longest, np.int64), np.empty(longest, np.float32)
        pair_labels, pair_duals = active.labels[chunk], active.duals[chunk]
        slots, pairs, weights = entries.slots[chunk], entries.pairs[chunk], entries.inputs[chunk]
        old_labels, old_duals = np.empty_like(pair_labels), np.empty_like(pair_duals)
        old_slots, old_pairs, old_weights = np.empty_like(slots), np.empty_like(pairs), np.empty_like(weights)
        n_pairs, n_entries = 0, 0
        _reset(layer, scores)
        positions[:] = -1
        for b in range(n_rows * chunk // n_chunks, n_rows * (chunk + 1) // n_chunks):
            first, begin = n_pairs, n_entries
            n_dense, few = _add_lists(features, b, layer, scores, starts, inputs)
            few = few and largest_bias <= threshold
            if few:
                n_pairs = _find_listed_pairs(
                    features, b, layer, scores, threshold, positions, n_pairs, pair_labels, pair_duals
                )
            else:
                n_pairs = _find_pairs(
                    scores,
                    width,
                    layer,
                    starts,
                    inputs,
                    n_dense,
                    threshold,
                    positions,
                    n_pairs,
                    pair_labels,
                    pair_duals,
                )
            for j in range(duals.indptr[b], duals.indptr[b + 1]):
                n_pairs = _add_pair(
                    duals.labels[j],
                    duals.values[j],
                    False,
                    scores,
                    threshold,
                    positions,
                    first,
                    n_pairs,
                    pair_labels,
                    pair_duals,
                )
            for j in range(labels.indptr[b], labels.indptr[b + 1]):
                n_pairs = _add_pair(
                    labels.indices[j], ZERO, True, scores, threshold, positions, first, n_pairs, pair_labels, pair_duals
                )
            if n_pairs <= pair_labels.size:
                _sort_pairs_by_owner(
                    first, n_pairs, pair_labels, pair_duals, positions, pair_ends[b], old_labels, old_duals
                )
            for i in range(first, min(n_pairs, pair_labels.size)):
                label = _label_of(pair_labels[i])
                for d in range(n_dense):
                    if n_entries < slots.size:
                        slots[n_entries], pairs[n_entries], weights[n_entries] = starts[d] + label, i - first, inputs[d]
                    n_entries += 1
            n_entries = _find_entries(
                features, b, layer, scores, threshold, positions, n_entries, slots, pairs, weights
            )
            if n_pairs <= pair_labels.size and n_entries <= slots.size:
                own = pair_labels[first:n_pairs]
                _sort_entries_by_owner(
                    begin, n_entries, own, slots, pairs, weights, entry_ends[b], old_slots, old_pairs, old_weights
                )
            _reset_row(features, b, layer, few, scores, positions, pair_labels[first:n_pairs])
        needed[chunk, 0], needed[chunk, 1] = n_pairs, n_entries


def _active(features, labels, duals, layer, slack, capacity):
    """The `Active` pairs of a batch and their `Entries`, for `_update`; nothing else changes.

    A pair is active if its score is above ``slack - 1``, if the row has the label, or if its dual is positive.
    `capacity` is a list: the number of pairs and of entries that a chunk of rows has space for; it grows if that is
    too small.
    """
    n_rows = len(features.indptr) - 1
    n_chunks, needed = min(CHUNKS, n_rows), np.zeros((min(CHUNKS, n_rows), 2), np.int64)
    while True:
        pair_shape, entry_shape = (n_chunks, capacity[0]), (n_chunks, capacity[1])
        ends = np.empty((2, n_rows, OWNERS), np.int64)
        active = Active(
            ends[0], np.empty(pair_shape, np.int32), np.empty(pair_shape, np.float32), np.empty(pair_shape, np.float32)
        )
        entries = Entries(
            ends[1], np.empty(entry_shape, np.int64), np.empty(entry_shape, np.int32), np.empty(entry_shape, np.float32)
        )
        _find_active(features, labels, duals, layer, np.float32(slack - 1), layer.bias.max(), active, entries, needed)
        largest = needed.max(0, initial=0)
        if (largest <= capacity).all():
            return active, entries
        capacity[:] = [max(have, int(1.25 * need)) for have, need in zip(capacity, largest, strict=True)]


@njit
def _begin(ends, b, owner, first_row):
    """The start of the owner's part of row b: the end of the previous owner's part, or of the previous row."""
    if owner > 0:
        return ends[b, owner - 1]
    return ends[b - 1, OWNERS - 1] if b > first_row else 0


@njit
def _scores_of_pairs(labels, base, first, last, slots, pairs, inputs, begin, end, bias, values, scores, squares):
    """Score and squared norm of an owner's pairs of a row, from the current values."""
    for i in range(first, last):
        scores[i - base], squares[i - base] = bias[_label_of(labels[i])], ZERO
    for e in range(begin, end):
        i, input_ = np.int64(item(pairs, e)), item(inputs, e)
        set_item(scores, i, item(scores, i) + input_ * item(values, item(slots, e)))
        set_item(squares, i, item(squares, i) + input_ * input_)


@njit
def _move_duals(labels, duals, losses, base, first, last, slack, diagonal, scores, squares):
    """Update the duals of these pairs, which become 0 if `diagonal` is infinite, and store the losses from before.

    `scores` becomes the change of the dual times y.
    """
    for j in range(first, last):
        own, old, new, i = labels[j] < 0, duals[j], ZERO, j - base
        gradient = scores[i] - ONE if own else slack - ONE - scores[i]
        losses[j] = gradient * gradient if gradient < ZERO else ZERO
        if squares[i] > ZERO and diagonal < INFINITY:
            new = max(ZERO, old - (gradient + old * diagonal) / (squares[i] + diagonal))
        duals[j] = new
        scores[i] = new - old if own else old - new


@njit_parallel(work=lambda active, entries, *_: 4 * entries.slots.size)
def _update(active, entries, bias, diagonal, slack, values):
    n_rows, n_chunks = active.ends.shape[0], active.labels.shape[0]
    for owner in prange(OWNERS):
        size = active.labels.shape[1]  # a chunk has space for all pairs of a row
        scores, squares = np.empty(size, np.float32), np.empty(size, np.float32)
        for chunk in range(n_chunks):
            labels, duals, losses = active.labels[chunk], active.duals[chunk], active.losses[chunk]
            slots, pairs, inputs = entries.slots[chunk], entries.pairs[chunk], entries.inputs[chunk]
            first_row = n_rows * chunk // n_chunks
            for b in range(first_row, n_rows * (chunk + 1) // n_chunks):
                base = _begin(active.ends, b, 0, first_row)  # entries count pairs from the row's first
                first, last = _begin(active.ends, b, owner, first_row), active.ends[b, owner]
                begin, end = _begin(entries.ends, b, owner, first_row), entries.ends[b, owner]
                _scores_of_pairs(
                    labels, base, first, last, slots, pairs, inputs, begin, end, bias, values, scores, squares
                )
                _move_duals(labels, duals, losses, base, first, last, slack, diagonal[b], scores, squares)
                for e in range(begin, end):
                    change = item(scores, item(pairs, e))
                    if change != ZERO:
                        slot = item(slots, e)
                        set_item(values, slot, item(values, slot) + change * item(inputs, e))


@njit
def _positive_duals(active, row_weights):
    """The loss of all pairs, each times the weight of its row, added in order, and the positive `Duals`."""
    n_rows, n_chunks, n, loss = active.ends.shape[0], active.labels.shape[0], 0, 0.0
    indptr = np.zeros(n_rows + 1, np.int64)
    for chunk in range(n_chunks):
        first = 0
        for b in range(n_rows * chunk // n_chunks, n_rows * (chunk + 1) // n_chunks):
            last = active.ends[b, OWNERS - 1]
            for i in range(first, last):
                n += active.duals[chunk, i] > ZERO
                loss += np.float64(row_weights[b]) * active.losses[chunk, i]
            first, indptr[b + 1] = last, n
    labels, values, n = np.empty(n, np.int32), np.empty(n, np.float32), 0
    for chunk in range(n_chunks):
        first = 0
        for b in range(n_rows * chunk // n_chunks, n_rows * (chunk + 1) // n_chunks):
            last = active.ends[b, OWNERS - 1]
            for i in range(first, last):
                if active.duals[chunk, i] > ZERO:
                    labels[n], values[n] = _label_of(active.labels[chunk, i]), active.duals[chunk, i]
                    n += 1
            first = last
    return loss, indptr, labels, values


def step(features, labels, duals, layer, row_weights, c, slack, room=None):
    """One pass of dual coordinate descent over a batch's active pairs; returns the loss before it and the new `Duals`.

    Each label visits its active rows in order. The layer's `values` change in place. `row_weights` is (B,). `room` is
    the `capacity` of `_active`.
    """
    active, entries = _active(features, labels, duals, layer, slack, [1 << 10, 1 << 13] if room is None else room)
    _update(active, entries, layer.bias, dual_diagonal(c, row_weights), np.float32(slack), layer.values)
    loss, *new = _positive_duals(active, row_weights)
    return loss, Duals(*new)
