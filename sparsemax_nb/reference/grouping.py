"""Order labels so that neighbors are similar: recursive balanced spherical 2-means."""

import numpy as np

from ..core import rng

#: Rounds of 2-means per split.
ROUNDS = 8


def order(rows, group_size, seed):
    """A permutation of the rows of a SciPy CSR matrix (L, F), split recursively into groups of `group_size`.

    The left half gets ``group_size (n_groups // 2)`` rows, those closer to its center than to the other one by dot
    product. The initial centers are two random rows; later ones are the normalized sums of the halves.
    """
    dense, found = rows.toarray().astype(np.float64), np.arange(rows.shape[0], dtype=np.int32)
    parts = [(0, rows.shape[0])]
    while parts:
        start, stop = parts.pop()
        n_groups = -(-(stop - start) // group_size)
        if n_groups < 2:
            continue
        middle = start + n_groups // 2 * group_size
        one, two = _draw(seed, start, stop)
        direction = _normalized(dense[found[one]]) - _normalized(dense[found[two]])
        for _ in range(ROUNDS):
            scores = dense[found[start:stop]] @ direction
            new = found[start:stop][np.argsort(-scores, kind="stable")]
            same = (new == found[start:stop]).all()
            found[start:stop] = new
            if same:
                break
            left, right = (dense[found[a:b]].sum(0) for a, b in ((start, middle), (middle, stop)))
            direction = _normalized(left) - _normalized(right)
        parts += [(start, middle), (middle, stop)]
    return found


def _draw(seed, start, stop):
    """Two different positions in [start, stop)."""
    with np.errstate(over="ignore"):
        position = np.uint64(start) * np.uint64(1 << 32) + np.uint64(stop)
        a, b, _, _ = rng.random_words(np.uint64(seed), rng.GROUPING, np.uint64(0), position)
    one = start + int(rng.below(a, np.uint64(stop - start)))
    two = start + int(rng.below(b, np.uint64(stop - start - 1)))
    return one, two + (two >= one)


def _normalized(vector):
    norm = np.sqrt((vector**2).sum())
    return vector / norm if norm > 0 else vector
