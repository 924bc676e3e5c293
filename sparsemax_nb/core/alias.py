"""Alias tables: a draw from n fixed probabilities costs two random words and one table lookup, whatever n is.

Source: A. Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS
1977; built in O(n) as in M. Vose, "A linear algorithm for generating random numbers with a given distribution", IEEE
TSE 1991.
"""

import numpy as np

from .device import njit
from .rng import Alias

#: The number of 32-bit random words, and the largest one.
WORDS = 2.0**32
LAST_WORD = np.uint32(2**32 - 1)
#: Probabilities that depend on h have no tables: a draw picks a block of this many classes, then a class in it.
BLOCK = 512


def alias_table(weights, indptr):
    """Build alias tables (`Alias`, NumPy) for segments of weights; each segment is drawn from on its own.

    Parameters
    ----------
    weights : (n,) float64
        Not negative; proportional to the probabilities within a segment.
    indptr : (S + 1,) int64
        Segment s is ``weights[indptr[s]:indptr[s + 1]]``. A segment whose weights are all 0 is drawn from uniformly.
    """
    alias = Alias(np.full(len(weights), LAST_WORD), np.arange(len(weights), dtype=np.int32))
    _fill(np.asarray(weights, np.float64), np.asarray(indptr, np.int64), alias.threshold, alias.other)
    return alias


@njit
def _fill(weights, indptr, threshold, other):
    """Vose's algorithm: each column with too little probability is filled up from one with too much."""
    longest = np.int64(0)
    for s in range(indptr.size - 1):
        longest = max(longest, indptr[s + 1] - indptr[s])
    share = np.empty(longest)
    small, large = np.empty(longest, np.int64), np.empty(longest, np.int64)
    for s in range(indptr.size - 1):
        first, n = indptr[s], indptr[s + 1] - indptr[s]
        total = weights[first : first + n].sum()
        n_small, n_large = 0, 0
        if not total > 0:
            continue
        for j in range(n):
            share[j] = weights[first + j] / total * n
            if share[j] < 1:
                small[n_small] = j
                n_small += 1
            else:
                large[n_large] = j
                n_large += 1
        while n_small and n_large:
            n_small -= 1
            needy, giver = small[n_small], large[n_large - 1]
            threshold[first + needy] = np.uint32(min(share[needy] * WORDS, WORDS - 1))
            other[first + needy] = first + giver
            share[giver] -= 1 - share[needy]
            if share[giver] < 1:
                n_large -= 1
                small[n_small] = giver
                n_small += 1
