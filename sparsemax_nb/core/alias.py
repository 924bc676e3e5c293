"""Alias tables: a draw from n fixed probabilities costs two random words and one look, whatever n is.

Source: A. Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS
1977; built in O(n) as in M. Vose, "A linear algorithm for generating random numbers with a given distribution", IEEE
TSE 1991.
"""

import numpy as np

from .device import njit
from .rng import Alias

FULL = 2.0**32
LAST = np.uint32(2**32 - 1)
#: Where the probabilities depend on the query there are no tables: a draw picks a block of so many classes, then one.
BLOCK = 512


def alias_table(weights, indptr):
    """Tables (`Alias`, NumPy) for segments of weights, each drawn from on its own.

    Parameters
    ----------
    weights : (n,) float64
        Not negative; in a segment, proportional to the probabilities.
    indptr : (S + 1,) int64
        Segment s holds ``weights[indptr[s]:indptr[s + 1]]``. A segment without weight is drawn from uniformly.
    """
    alias = Alias(np.full(len(weights), LAST), np.arange(len(weights), dtype=np.int32))
    _fill(np.asarray(weights, np.float64), np.asarray(indptr, np.int64), alias.threshold, alias.other)
    return alias


@njit
def _fill(weights, indptr, threshold, other):
    """Columns that are too small are filled up by one that is too large, which shrinks, until none is left."""
    longest = np.int64(0)
    for s in range(indptr.size - 1):
        longest = max(longest, indptr[s + 1] - indptr[s])
    share, small, large = np.empty(longest), np.empty(longest, np.int64), np.empty(longest, np.int64)
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
            threshold[first + needy] = np.uint32(min(share[needy] * FULL, FULL - 1))
            other[first + needy] = first + giver
            share[giver] -= 1 - share[needy]
            if share[giver] < 1:
                n_large -= 1
                small[n_small] = giver
                n_small += 1
