"""Choose the features that a label of a linear layer is connected to: those with the largest sums over its points.

CPU only.
"""

import numpy as np
from numba import prange

from ..core.device import njit, njit_parallel
from .simd import item, lowest_bit, set_item
from .top_k import select

ZERO = np.float32(0)
#: Number of work items; each has an array of sums of its own.
PARTS = 16


@njit
def _add_rows(points, label, x, sums, occurs):
    """Add the rows of a label's points to the sums, and mark the features that occur as bits of `occurs`."""
    for p in range(points.indptr[label], points.indptr[label + 1]):
        row, coefficient = np.int64(points.ids[p]), points.weights[p]
        for e in range(x.indptr[row], x.indptr[row + 1]):
            feature = np.int64(item(x.ids, e))
            occurs[feature >> 6] |= np.int64(1) << (feature & 63)
            sums[feature] += coefficient * item(x.weights, e)


@njit
def _candidates(n_points, known, label, expected, by_magnitude, sums, occurs, ids, measures):
    """List the new features that occur, ascending, and the measures they are ranked by; returns their number.

    The bits of `occurs` are cleared.
    """
    for j in range(known[0][label], known[0][label + 1]):
        feature = np.int64(known[1][j])
        occurs[feature >> 6] &= ~(np.int64(1) << (feature & 63))
        sums[feature] = ZERO
    n = 0
    for word in range(occurs.size):
        bits, occurs[word] = occurs[word], 0
        while bits != 0:
            feature = word * 64 + lowest_bit(bits)
            bits &= bits - 1
            measure = abs(sums[feature]) if by_magnitude else sums[feature] - n_points * expected[feature]
            ids[n], measures[n] = feature, measure
            n += 1
    return n


@njit_parallel(work=lambda points, x, *_: 4 * len(points.ids) * (len(x.ids) // max(1, len(x.indptr) - 1)))
def choose_features(points, x, expected, known, room, by_magnitude, chosen, sums):
    """For each label, at most ``room[l + 1] - room[l]`` new features, those with the largest sums; see `reference`.

    Their ids, ascending, are written to `chosen` from ``room[l]`` on, padded with -1, and their sums to `sums`.
    """
    n_labels, n_features = points.indptr.size - 1, expected.size
    for part in prange(PARTS):
        total, occurs = np.zeros(n_features, np.float32), np.zeros((n_features + 63) // 64, np.int64)
        ids, measures = np.empty(n_features, np.int32), np.empty(n_features, np.float32)
        for label in range(part, n_labels, PARTS):
            first, last = room[label], room[label + 1]
            chosen[first:last], sums[first:last] = -1, ZERO
            n_points = np.float32(points.indptr[label + 1] - points.indptr[label])
            if first == last or n_points == 0:
                continue
            _add_rows(points, label, x, total, occurs)
            n = _candidates(n_points, known, label, expected, by_magnitude, total, occurs, ids, measures)
            n_best = min(n, last - first)
            best, best_ids = np.empty(n_best, np.float32), np.empty(n_best, np.int32)
            select(measures[:n], best, best_ids)
            best_ids.sort()
            found = first
            for i in best_ids:
                if i >= 0:  # -1: the measure is -infinity
                    chosen[found], sums[found] = ids[i], total[ids[i]]
                    found += 1
            for i in range(n):
                total[ids[i]] = ZERO


@njit
def count(ids, first, counts):
    """Add to ``counts[i]`` how often the id ``first + i`` occurs."""
    for id_ in ids:
        if first <= id_ < first + counts.size:
            counts[id_ - first] += 1


@njit
def place(indptr, ids, values, row, first, ends, rows, column_values):
    """Append the entries of the columns from `first` on to the columns; `row` is the number of the first CSR row.

    ``ends[i]`` is where the next entry of column ``first + i`` goes in `rows` and `column_values`; it is advanced.
    """
    for b in range(indptr.size - 1):
        for j in range(indptr[b], indptr[b + 1]):
            column = np.int64(item(ids, j)) - first
            if 0 <= column < ends.size:
                target = item(ends, column)
                set_item(rows, target, np.int32(row + b))
                set_item(column_values, target, item(values, j))
                set_item(ends, column, target + 1)


@njit
def sign(indptr, rows, values, own_indptr, own_rows):
    """Negate the values, sorted by label, whose row does not have the label; rows ascend within a label."""
    for label in range(indptr.size - 1):
        own, last = own_indptr[label], own_indptr[label + 1]
        for j in range(indptr[label], indptr[label + 1]):
            while own < last and own_rows[own] < rows[j]:
                own += 1
            if own == last or own_rows[own] != rows[j]:
                values[j] = -values[j]


@njit
def spread(indptr, ids, values, ends, all_indptr, all_ids, all_values):
    """Copy each list to the beginning of its longer slot in the `all_*` arrays; `ends` becomes where it ends there."""
    for row in range(indptr.size - 1):
        target = all_indptr[row]
        for j in range(indptr[row], indptr[row + 1]):
            all_ids[target], all_values[target] = ids[j], values[j]
            target += 1
        ends[row] = target


@njit
def merge(indptr, middle, ids, values):
    """Sort each list whose two parts, before ``middle[row]`` and from there on, are each ascending."""
    for row in range(indptr.size - 1):
        more_ids, more_values = ids[middle[row] : indptr[row + 1]].copy(), values[middle[row] : indptr[row + 1]].copy()
        i, j = middle[row] - 1, more_ids.size - 1
        while j >= 0:  # backwards, so that nothing unread is overwritten
            n = i + j + 1
            if i >= indptr[row] and ids[i] > more_ids[j]:
                ids[n], values[n] = ids[i], values[i]
                i -= 1
            else:
                ids[n], values[n] = more_ids[j], more_values[j]
                j -= 1
