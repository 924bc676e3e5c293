"""The k best of each row of a score matrix on the CPU."""

import numpy as np
from numba import prange

from ..core import backend

WORST = np.float32(-np.inf)


@backend.njit
def enters(score, i, scores, ids):
    """Does (score, i) belong into the list? NaN always does, and a list that ends in NaN is closed: so NaN is never lost."""
    worst = scores[scores.size - 1]
    return not (score < worst or (score == worst and i > ids[scores.size - 1]) or worst != worst)


@backend.njit
def insert(scores, ids, score, i):
    """Insert into a list kept by score descending, then id ascending; the last entry falls out."""
    place = scores.size - 1
    while place > 0 and not (scores[place - 1] > score or (scores[place - 1] == score and ids[place - 1] < i)):
        scores[place], ids[place] = scores[place - 1], ids[place - 1]
        place -= 1
    scores[place], ids[place] = score, i


@backend.njit_parallel
def top_k(scores, top_scores, top_ids):
    """The k largest scores of each row (B, L) and their columns; k is the width of the outputs."""
    for row in prange(scores.shape[0]):
        top_scores[row], top_ids[row] = WORST, -1
        worst = WORST
        for i in range(scores.shape[1]):
            if not scores[row, i] <= worst and enters(scores[row, i], i, top_scores[row], top_ids[row]):
                insert(top_scores[row], top_ids[row], scores[row, i], i)
                worst = top_scores[row, top_scores.shape[1] - 1]
