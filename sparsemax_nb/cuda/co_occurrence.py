"""A new order of a row's best labels by the labels that occur together, on CUDA: a warp a row, a thread a candidate."""

import numpy as np
from numba import float32

from ..core import formulas
from ..core.device import cuda, cuda_formulas, cuda_jit
from . import launch

_f = cuda_formulas(formulas)
mutual_information, rough_probability, together = _f.mutual_information, _f.rough_probability, _f.together
ZERO, INFINITY, ONE, NONE = np.float32(0), np.float32(np.inf), np.uint32(1), np.uint32(0)
#: Threads of a block: one for each candidate that there may be.
BLOCK = 32


@cuda_jit
def rerank_kernel(scores, ids, pairs, weight, top_scores, top_ids):
    """A block owns one row, its thread c the candidate c of K <= 32: it searches the pairs of c and of each label that is chosen.

    All threads read the K sums from shared memory (4 bytes a candidate) and find the same best one, so no second
    exchange is needed; those chosen are bits of a register. Two barriers a place. Reads scores, ids (B, K) and, for
    each of the k places but the last, K lists of pairs at random, side by side; writes top_scores, top_ids (B, k).
    Grid: rows on x. No atomics.
    """
    shared = cuda.shared.array(0, float32)
    b, c = cuda.blockIdx.x, cuda.threadIdx.x
    n, k = scores.shape[1], top_scores.shape[1]
    taken, last, floor = NONE, INFINITY, scores[b, n - 1]
    mine, label = ZERO, ids[b, 0]
    if c < n:
        mine, label = scores[b, c], ids[b, c]
    for place in range(k):
        if c < n:
            shared[c] = mine
        cuda.syncthreads()
        best, value = -1, ZERO
        for i in range(n):
            if (taken >> np.uint32(i)) & ONE == NONE and (best < 0 or shared[i] > value):
                best, value = i, shared[i]
        cuda.syncthreads()  # before the next sums are written
        taken |= ONE << np.uint32(best)
        last = min(last, value)
        chosen = ids[b, best]
        if c == 0:
            top_scores[b, place] = max(last, floor)
            top_ids[b, place] = chosen
        factor = weight * rough_probability(scores[b, best])
        if place + 1 < k and factor > ZERO and c < n and (taken >> np.uint32(c)) & ONE == NONE:
            points, others = pairs.label_counts[chosen], pairs.label_counts[label]
            mine += factor * mutual_information(together(pairs, chosen, label), points, others, pairs.n_rows)


def rerank(scores, ids, pairs, weight, top_scores, top_ids):
    """Greedy choice of the k best of K candidates, see `sparsemax_nb.rerank`; k is the width of the outputs."""
    if scores.shape[0]:
        shared = launch.shared_bytes(4 * scores.shape[1])
        rerank_kernel[scores.shape[0], BLOCK, 0, shared](scores, ids, pairs, weight, top_scores, top_ids)
