"""Rerank the best labels of each row by the labels that occur together, on the CPU, in parallel over rows."""

import numpy as np
from numba import prange

from ..core import formulas
from ..core.device import cpu_formulas, njit_parallel

_f = cpu_formulas(formulas)
mutual_information, rough_probability, pair_count = _f.mutual_information, _f.rough_probability, _f.pair_count
ZERO, INFINITY = np.float32(0), np.float32(np.inf)
#: Rows per work item: they share scratch memory.
ROWS = 16


def _work(scores, ids, pairs, weight, top_scores, top_ids):
    """Each candidate and slot costs a search and a logarithm, about 30 steps."""
    return 30 * scores.size * top_scores.shape[1]


@njit_parallel(work=_work)
def rerank(scores, ids, pairs, weight, top_scores, top_ids):
    """Choose the k best of n candidates greedily, see `sparsemax_nb.rerank`; k is the width of the outputs."""
    n_rows, n = scores.shape
    k = top_scores.shape[1]
    for part in prange((n_rows + ROWS - 1) // ROWS):
        support, is_taken = np.empty(n, np.float32), np.empty(n, np.bool_)
        for b in range(part * ROWS, min((part + 1) * ROWS, n_rows)):
            support[:], is_taken[:] = ZERO, False
            last = INFINITY
            for slot in range(k):
                best, value = -1, ZERO
                for c in range(n):
                    if not is_taken[c] and (best < 0 or scores[b, c] + support[c] > value):
                        best, value = c, scores[b, c] + support[c]
                label = ids[b, best]
                is_taken[best], last = True, min(last, value)
                top_scores[b, slot], top_ids[b, slot] = max(last, scores[b, n - 1]), label
                factor = weight * rough_probability(scores[b, best])
                if slot + 1 == k or not factor > ZERO:  # also for NaN, which says nothing about the others
                    continue
                for c in range(n):
                    if not is_taken[c]:
                        other = ids[b, c]
                        n_points, n_others = pairs.label_counts[label], pairs.label_counts[other]
                        support[c] += factor * mutual_information(
                            pair_count(pairs, label, other), n_points, n_others, pairs.n_rows
                        )
