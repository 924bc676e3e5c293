"""Order labels so that neighbors are similar: recursive balanced spherical 2-means. CPU only."""

import numpy as np

from ..core import rng
from ..core.device import cpu_formulas, njit

_r = cpu_formulas(rng)
random_words, below = _r.random_words, _r.below
STREAM = rng.GROUPING
#: Rounds of 2-means per split.
ROUNDS = 8


@njit
def _draw(seed, start, stop):
    """Two different positions in [start, stop)."""
    position = np.uint64(start) * np.uint64(1 << 32) + np.uint64(stop)
    a, b, _, _ = random_words(np.uint64(seed), STREAM, np.uint64(0), position)
    one = start + np.int64(below(a, np.uint64(stop - start)))
    two = start + np.int64(below(b, np.uint64(stop - start - 1)))
    return one, two + (two >= one)


@njit
def _add_normalized(rows, members, total):
    """Write the normalized sum of some rows to `total`, which must be zero."""
    indptr, indices, weights = rows
    for row in members:
        for i in range(indptr[row], indptr[row + 1]):
            total[indices[i]] += weights[i]
    norm = np.sqrt((total * total).sum())
    if norm > 0:
        total /= norm


@njit
def _order(rows, n_features, group_size, seed, found):
    indptr, indices, weights = rows
    n = found.size
    parts, n_parts = np.empty((128, 2), np.int64), 1  # a stack of parts to split
    parts[0, 0], parts[0, 1] = 0, n
    left, right = np.empty(n_features), np.empty(n_features)
    while n_parts > 0:
        n_parts -= 1
        start, stop = parts[n_parts]
        n_groups = (stop - start + group_size - 1) // group_size
        if n_groups < 2:
            continue
        middle = start + n_groups // 2 * group_size
        part, scores = found[start:stop], np.empty(stop - start)
        one, two = _draw(seed, start, stop)
        left[:], right[:] = 0, 0
        _add_normalized(rows, found[one : one + 1], left)
        _add_normalized(rows, found[two : two + 1], right)
        for _ in range(ROUNDS):
            left -= right
            for j in range(part.size):
                score = 0.0
                for i in range(indptr[part[j]], indptr[part[j] + 1]):
                    score -= weights[i] * left[indices[i]]
                scores[j] = score
            new = part[np.argsort(scores, kind="mergesort")]
            if (new == part).all():
                break
            part[:] = new
            left[:], right[:] = 0, 0
            _add_normalized(rows, found[start:middle], left)
            _add_normalized(rows, found[middle:stop], right)
        parts[n_parts, 0], parts[n_parts, 1] = start, middle
        parts[n_parts + 1, 0], parts[n_parts + 1, 1] = middle, stop
        n_parts += 2


def order(rows, group_size, seed):
    """A permutation of the rows of a SciPy CSR matrix (L, F), split recursively into groups of `group_size`.

    The left half gets ``group_size (n_groups // 2)`` rows, those closer to its center than to the other one by dot
    product. The initial centers are two random rows; later ones are the normalized sums of the halves.
    """
    found = np.arange(rows.shape[0], dtype=np.int32)
    _order((rows.indptr, rows.indices, rows.data), rows.shape[1], group_size, np.uint64(seed), found)
    return found
