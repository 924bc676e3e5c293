"""A linear layer over sparse features on the CPU: rows share the threads while scores are read, labels while they change.

Most postings of a row belong to few features, which nearly every label knows: these are stored as dense rows of
weights, added 16 labels at a time where a list takes one by one. The bits do not depend on the number of threads: a
label's weights are changed by one thread, rows ascending.
"""

import numpy as np
from numba import prange

from ..core.connections import Active, Duals, Entries
from ..core.device import njit, njit_parallel
from .simd import LANES, any_above, fma, item, load, prefetch, set_item, splat, store
from .top_k import INSERTED, WORST, enters, insert, select

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
#: Rows that one thread reads the scores of, one after the other.
ROWS = 16
#: Chunks that the rows of a step are cut into, at most.
CHUNKS = 16
#: Owners that the labels are dealt out to, a cache line of labels at a time: one thread moves the weights of an owner's
#: labels.
OWNERS = 16
#: A score that stands for "looked at", and one of no label.
MARKED, LOWEST = np.float32(3e38), np.float32(-3e38)
#: Where the lists of a row hold fewer labels than this share of all, only these are looked at: the others score their
#: bias.
FEW = 1 / 16


@njit
def _longest(indptr):
    longest = 0
    for b in range(indptr.size - 1):
        longest = max(longest, indptr[b + 1] - indptr[b])
    return longest


@njit
def _reset(layer, scores):
    """The scores of a row without features; labels that fill up the last vector get the lowest score."""
    scores[: layer.bias.size] = layer.bias
    scores[layer.bias.size :] = LOWEST


@njit
def _reset_listed(features, b, layer, scores):
    """The same where only the lists of row b have been added."""
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature = np.int64(item(features.ids, e))
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            set_item(scores, label, item(layer.bias, label))


@njit
def _add_lists(features, b, layer, scores, starts, inputs):
    """Add the features of row b to scores after `_reset`, but for the dense ones, which go into `starts`, `inputs`.

    Returns how many these are, and whether the labels of the lists are few. The head of the next list is on its way
    while one is added.
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
    return n_dense, n_dense == 0 and n_listed < FEW * layer.bias.size


@njit
def _with_dense(scores, i, values, starts, inputs, n_dense):
    """The scores of labels i to i + 15, with the dense features of the row."""
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
    """Rows times labels, the look at the scores, and the lists of the row's features, as long as they are on average."""
    return len(features.indptr) * len(layer.bias) // LANES + len(features.ids) * (
        len(layer.values) // max(1, len(layer.dense))
    )


@njit_parallel(work=_work)
def forward(features, layer, scores):
    """``scores[b, l] = bias[l] + sum_f weights[l, f] features[b, f]``; features `SparseRows`, layer `FeatureLists`."""
    n_rows, n_labels, longest = scores.shape[0], layer.bias.size, _longest(features.indptr)
    width = (n_labels + LANES - 1) // LANES * LANES
    for part in prange((n_rows + ROWS - 1) // ROWS):
        some, starts, inputs = np.empty(width, np.float32), np.empty(longest, np.int64), np.empty(longest, np.float32)
        for b in range(part * ROWS, min((part + 1) * ROWS, n_rows)):
            _reset(layer, some)
            n_dense, _ = _add_lists(features, b, layer, some, starts, inputs)
            _add_dense(some, layer.values, starts, inputs, n_dense)
            scores[b] = some[:n_labels]


@njit
def _insert_listed(features, b, layer, scores, top_scores, top_ids):
    """The best of the labels of the row's lists; each is looked at once, and has the worst score then."""
    top_scores[:], top_ids[:] = WORST, -1
    worst = WORST
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature = np.int64(item(features.ids, e))
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            score = item(scores, label)
            set_item(scores, label, WORST)
            if score != WORST and not score < worst and enters(score, label, top_scores, top_ids):
                insert(top_scores, top_ids, score, label)
                worst = top_scores[top_scores.size - 1]


@njit
def _insert_all(scores, layer, starts, inputs, n_dense, top_scores, top_ids):
    """Of 16 labels none is looked at where none beats the last of the list."""
    top_scores[:], top_ids[:] = WORST, -1
    worst = WORST
    for i in range(0, scores.size, LANES):
        v = _with_dense(scores, i, layer.values, starts, inputs, n_dense)
        if any_above(v, splat(worst)):
            store(scores, i, v)
            for label in range(i, min(i + LANES, layer.bias.size)):
                if not scores[label] <= worst and enters(scores[label], label, top_scores, top_ids):
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
            if few and k <= INSERTED:
                _insert_listed(features, b, layer, scores, top_scores[b], top_ids[b])
                _reset_listed(features, b, layer, scores)
                if top_scores[b, k - 1] > largest_bias:  # no other label can be among them
                    continue
                _add_lists(features, b, layer, scores, starts, inputs)
            if k <= INSERTED:
                _insert_all(scores, layer, starts, inputs, n_dense, top_scores[b], top_ids[b])
            else:
                _add_dense(scores, layer.values, starts, inputs, n_dense)
                select(scores[:n_labels], top_scores[b], top_ids[b])
            _reset(layer, scores)


def top_k(features, layer, top_scores, top_ids):
    """The k largest scores of each row and their labels; k is the width of the outputs. No (B, L) array exists."""
    _top_k(features, layer, layer.bias.max(), top_scores, top_ids)


# ---------------------------------------------------------------- training


@njit
def _label_of(pair):
    """The label that `Active.labels` holds, whether it is one of the row's own or not."""
    return np.int64(-1 - pair if pair < 0 else pair)


@njit
def _owner(pair):
    """Who owns the label of a pair."""
    return _label_of(pair) // LANES % OWNERS


@njit
def _note(label, dual, own, n, active_labels, active_duals):
    """Write the n-th pair where there is room."""
    if n < active_labels.size:
        active_labels[n] = -1 - label if own else label
        active_duals[n] = dual


@njit
def _find_pairs(scores, width, layer, starts, inputs, n_dense, threshold, place, n, labels, duals):
    """Note the labels above the threshold from the n-th pair on: their `place` in the row; returns the pairs' number.

    Marked with their own score, since that lies above the threshold.
    """
    first = n
    for i in range(0, width, LANES):
        v = _with_dense(scores, i, layer.values, starts, inputs, n_dense)
        store(scores, i, v)
        if any_above(v, splat(threshold)):
            for label in range(i, i + LANES):
                if item(scores, label) > threshold:
                    _note(label, ZERO, False, n, labels, duals)
                    place[label] = n - first
                    n += 1
    return n


@njit
def _find_listed_pairs(features, b, layer, scores, threshold, place, n, labels, duals):
    """The same, among the labels of the row's lists alone; those that have a `place` have been noted."""
    first = n
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature = np.int64(item(features.ids, e))
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            if item(scores, label) > threshold and item(place, label) < 0:
                _note(label, ZERO, False, n, labels, duals)
                set_item(place, label, np.int32(n - first))
                n += 1
    return n


@njit
def _add_pair(label, dual, own, scores, threshold, place, first, n, labels, duals):
    """Note a pair that must be looked at, once; returns the pairs' number."""
    if scores[label] > threshold:
        at = first + place[label]
        if at < labels.size:
            labels[at] = -1 - label if own else label
            if not own:
                duals[at] = dual
        return n
    _note(label, dual, own, n, labels, duals)
    scores[label], place[label] = MARKED, n - first
    return n + 1


@njit
def _find_entries(features, b, layer, scores, threshold, place, n, slots, pairs, weights):
    """Note the weights of the marked labels for the row's features; returns the entries' number.

    The lists are read a second time, in order, where searching each label's own features would jump about.
    """
    for e in range(features.indptr[b], features.indptr[b + 1]):
        feature, input_ = np.int64(item(features.ids, e)), item(features.weights, e)
        for j in range(layer.indptr[feature], layer.indptr[feature + 1]):
            label = np.int64(item(layer.labels, j))
            if item(scores, label) > threshold:
                if n < slots.size:
                    slots[n], pairs[n], weights[n] = j, place[label], input_
                n += 1
    return n


@njit
def _deal_pairs(first, last, labels, duals, place, ends, some_labels, some_duals):
    """Bring the pairs of a row from `first` to `last` into the order of their owners; `ends` of each, and the new `place`."""
    ends[:] = 0
    for i in range(first, last):
        some_labels[i - first], some_duals[i - first] = labels[i], duals[i]
        ends[_owner(labels[i])] += 1
    _starts(first, ends)
    for i in range(last - first):
        owner = _owner(some_labels[i])
        at = ends[owner]
        labels[at], duals[at], place[_label_of(some_labels[i])] = some_labels[i], some_duals[i], at - first
        ends[owner] = at + 1


@njit
def _deal_entries(first, last, labels, slots, pairs, weights, ends, some_slots, some_pairs, some_weights):
    """Bring the entries of a row from `first` to `last` into the order of their pairs' owners; `ends` of each.

    `labels` are those of the row's pairs.
    """
    ends[:] = 0
    for e in range(last - first):
        pair = item(pairs, first + e)
        set_item(some_slots, e, item(slots, first + e))
        set_item(some_pairs, e, pair)
        set_item(some_weights, e, item(weights, first + e))
        owner = _owner(item(labels, np.int64(pair)))
        set_item(ends, owner, item(ends, owner) + 1)
    _starts(first, ends)
    for e in range(last - first):
        pair = item(some_pairs, e)
        owner = _owner(item(labels, np.int64(pair)))
        at = item(ends, owner)
        set_item(slots, at, item(some_slots, e))
        set_item(pairs, at, pair)
        set_item(weights, at, item(some_weights, e))
        set_item(ends, owner, at + 1)


@njit
def _starts(first, counts):
    """Where each owner's part begins, from `first` on, in the place of its length."""
    for owner in range(OWNERS):
        first, counts[owner] = first + counts[owner], first


@njit
def _forget(features, b, layer, few, scores, place, labels):
    """Scores and places as they were before row b, whose pairs have these labels."""
    for pair in labels:
        place[_label_of(pair)], scores[_label_of(pair)] = -1, layer.bias[_label_of(pair)]
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
        scores, place = np.empty(width, np.float32), np.empty(width, np.int32)
        starts, inputs = np.empty(longest, np.int64), np.empty(longest, np.float32)
        pair_labels, pair_duals = active.labels[chunk], active.duals[chunk]
        slots, pairs, weights = entries.slots[chunk], entries.pairs[chunk], entries.inputs[chunk]
        some_labels, some_duals = np.empty_like(pair_labels), np.empty_like(pair_duals)
        some_slots, some_pairs, some_weights = np.empty_like(slots), np.empty_like(pairs), np.empty_like(weights)
        n_pairs, n_entries = 0, 0
        _reset(layer, scores)
        place[:] = -1
        for b in range(n_rows * chunk // n_chunks, n_rows * (chunk + 1) // n_chunks):
            first, begin = n_pairs, n_entries
            n_dense, few = _add_lists(features, b, layer, scores, starts, inputs)
            few = few and largest_bias <= threshold
            if few:
                n_pairs = _find_listed_pairs(
                    features, b, layer, scores, threshold, place, n_pairs, pair_labels, pair_duals
                )
            else:
                n_pairs = _find_pairs(
                    scores, width, layer, starts, inputs, n_dense, threshold, place, n_pairs, pair_labels, pair_duals
                )
            for j in range(duals.indptr[b], duals.indptr[b + 1]):
                n_pairs = _add_pair(
                    duals.labels[j],
                    duals.values[j],
                    False,
                    scores,
                    threshold,
                    place,
                    first,
                    n_pairs,
                    pair_labels,
                    pair_duals,
                )
            for j in range(labels.indptr[b], labels.indptr[b + 1]):
                n_pairs = _add_pair(
                    labels.indices[j], ZERO, True, scores, threshold, place, first, n_pairs, pair_labels, pair_duals
                )
            if n_pairs <= pair_labels.size:
                _deal_pairs(first, n_pairs, pair_labels, pair_duals, place, pair_ends[b], some_labels, some_duals)
            for i in range(first, min(n_pairs, pair_labels.size)):
                label = _label_of(pair_labels[i])
                for d in range(n_dense):
                    if n_entries < slots.size:
                        slots[n_entries], pairs[n_entries], weights[n_entries] = starts[d] + label, i - first, inputs[d]
                    n_entries += 1
            n_entries = _find_entries(features, b, layer, scores, threshold, place, n_entries, slots, pairs, weights)
            if n_pairs <= pair_labels.size and n_entries <= slots.size:
                own = pair_labels[first:n_pairs]
                _deal_entries(
                    begin, n_entries, own, slots, pairs, weights, entry_ends[b], some_slots, some_pairs, some_weights
                )
            _forget(features, b, layer, few, scores, place, pair_labels[first:n_pairs])
        needed[chunk, 0], needed[chunk, 1] = n_pairs, n_entries


def _active(features, labels, duals, layer, slack, room):
    """The `Active` pairs of a batch and their `Entries`, for `_update`: nothing changes.

    A pair is active where the score lies above ``slack - 1``, where the label is the row's own, and where it has a dual
    variable. `room` is a list of the pairs and entries that a chunk of rows had room for, and grows where that is too
    small.
    """
    n_rows = len(features.indptr) - 1
    n_chunks, needed = min(CHUNKS, n_rows), np.zeros((min(CHUNKS, n_rows), 2), np.int64)
    while True:
        pairs, some = (n_chunks, room[0]), (n_chunks, room[1])
        ends = np.empty((2, n_rows, OWNERS), np.int64)
        active = Active(ends[0], np.empty(pairs, np.int32), np.empty(pairs, np.float32), np.empty(pairs, np.float32))
        entries = Entries(ends[1], np.empty(some, np.int64), np.empty(some, np.int32), np.empty(some, np.float32))
        _find_active(features, labels, duals, layer, np.float32(slack - 1), layer.bias.max(), active, entries, needed)
        most = needed.max(0, initial=0)
        if (most <= room).all():
            return active, entries
        room[:] = [max(have, int(1.25 * need)) for have, need in zip(room, most, strict=True)]


@njit
def _begin(ends, b, owner, first_row):
    """Where the owner's part of row b begins: behind that of the owner before it, or of the row before it."""
    if owner > 0:
        return ends[b, owner - 1]
    return ends[b - 1, OWNERS - 1] if b > first_row else 0


@njit
def _scores_of_pairs(labels, base, first, last, slots, pairs, inputs, begin, end, bias, values, scores, squares):
    """Score and squared norm of an owner's pairs of a row, from the values as they are now."""
    for i in range(first, last):
        scores[i - base], squares[i - base] = bias[_label_of(labels[i])], ZERO
    for e in range(begin, end):
        i, input_ = np.int64(item(pairs, e)), item(inputs, e)
        set_item(scores, i, item(scores, i) + input_ * item(values, item(slots, e)))
        set_item(squares, i, item(squares, i) + input_ * input_)


@njit
def _move_duals(labels, duals, losses, base, first, last, slack, half, scores, squares):
    """New dual variables of these pairs, and the squared hinge before; `scores` becomes the change of the dual times y."""
    for j in range(first, last):
        own, old, new, i = labels[j] < 0, duals[j], ZERO, j - base
        gradient = scores[i] - ONE if own else slack - ONE - scores[i]
        losses[j] = gradient * gradient if gradient < ZERO else ZERO
        if squares[i] > ZERO:
            new = max(ZERO, old - (gradient + old * half) / (squares[i] + half))
        duals[j] = new
        scores[i] = new - old if own else old - new


@njit_parallel(work=lambda active, entries, *_: 4 * entries.slots.size)
def _update(active, entries, bias, half, slack, values):
    n_rows, n_chunks = active.ends.shape[0], active.labels.shape[0]
    for owner in prange(OWNERS):
        room = active.labels.shape[1]  # no row has more pairs than a chunk has room for
        scores, squares = np.empty(room, np.float32), np.empty(room, np.float32)
        for chunk in range(n_chunks):
            labels, duals, losses = active.labels[chunk], active.duals[chunk], active.losses[chunk]
            slots, pairs, inputs = entries.slots[chunk], entries.pairs[chunk], entries.inputs[chunk]
            first_row = n_rows * chunk // n_chunks
            for b in range(first_row, n_rows * (chunk + 1) // n_chunks):
                base = _begin(active.ends, b, 0, first_row)  # pairs are counted from the row's first
                first, last = _begin(active.ends, b, owner, first_row), active.ends[b, owner]
                begin, end = _begin(entries.ends, b, owner, first_row), entries.ends[b, owner]
                _scores_of_pairs(
                    labels, base, first, last, slots, pairs, inputs, begin, end, bias, values, scores, squares
                )
                _move_duals(labels, duals, losses, base, first, last, slack, half, scores, squares)
                for e in range(begin, end):
                    change = item(scores, item(pairs, e))
                    if change != ZERO:
                        slot = item(slots, e)
                        set_item(values, slot, item(values, slot) + change * item(inputs, e))


@njit
def _above_zero(active):
    """The loss of all pairs, added in their order, and the `Duals` where they are above zero."""
    n_rows, n_chunks, n, loss = active.ends.shape[0], active.labels.shape[0], 0, 0.0
    indptr = np.zeros(n_rows + 1, np.int64)
    for chunk in range(n_chunks):
        first = 0
        for b in range(n_rows * chunk // n_chunks, n_rows * (chunk + 1) // n_chunks):
            last = active.ends[b, OWNERS - 1]
            for i in range(first, last):
                n += active.duals[chunk, i] > ZERO
                loss += active.losses[chunk, i]
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


def step(features, labels, duals, layer, c, slack, room=None):
    """Dual coordinate descent over the active pairs of a batch; returns the loss before it, and the new `Duals`.

    Each label visits its active rows in their order. `values` of the layer change in place. `room`: see `_active`.
    """
    active, entries = _active(features, labels, duals, layer, slack, [1 << 10, 1 << 13] if room is None else room)
    _update(active, entries, layer.bias, np.float32(1 / (2 * c)), np.float32(slack), layer.values)
    loss, *new = _above_zero(active)
    return loss, Duals(*new)
