"""The k best of each row of a score matrix on the CPU."""

import numpy as np
from numba import prange

from ..core import backend, formulas

_f = backend.cpu_formulas(formulas)
enters, insert = _f.enters, _f.insert
WORST = np.float32(-np.inf)


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
