"""A new order of a row's best labels by the labels that occur together, on the CPU: rows share the threads."""

import numpy as np
from numba import prange

from ..core import formulas
from ..core.device import cpu_formulas, njit_parallel

_f = cpu_formulas(formulas)
mutual_information, rough_probability, together = _f.mutual_information, _f.rough_probability, _f.together
ZERO, INFINITY = np.float32(0), np.float32(np.inf)
#: Rows that one thread orders, one after the other, in the same scratch memory.
ROWS = 16


def _work(scores, ids, pairs, weight, top_scores, top_ids):
    """Searches, of about 30 steps with the logarithm."""
    return 30 * scores.size * top_scores.shape[1]


@njit_parallel(work=_work)
def rerank(scores, ids, pairs, weight, top_scores, top_ids):
    """Greedy choice of the k best of K candidates, see `sparsemax_nb.rerank`; k is the width of the outputs."""
    n_rows, n = scores.shape
    k = top_scores.shape[1]
    for part in prange((n_rows + ROWS - 1) // ROWS):
        support, taken = np.empty(n, np.float32), np.empty(n, np.bool_)
        for b in range(part * ROWS, min((part + 1) * ROWS, n_rows)):
            support[:], taken[:] = ZERO, False
            last = INFINITY
            for place in range(k):
                best, value = -1, ZERO
                for c in range(n):
                    if not taken[c] and (best < 0 or scores[b, c] + support[c] > value):
                        best, value = c, scores[b, c] + support[c]
                label = ids[b, best]
                taken[best], last = True, min(last, value)
                top_scores[b, place], top_ids[b, place] = max(last, scores[b, n - 1]), label
                factor = weight * rough_probability(scores[b, best])
                if place + 1 == k or not factor > ZERO:  # of NaN, too: it says nothing of the others
                    continue
                for c in range(n):
                    if not taken[c]:
                        other = ids[b, c]
                        points, others = pairs.label_counts[label], pairs.label_counts[other]
                        support[c] += factor * mutual_information(
                            together(pairs, label, other), points, others, pairs.n_rows
                        )
