"""Reranking of each row's best labels by label co-occurrence on CUDA: one warp per row, one lane per candidate."""

import numpy as np
from numba import float32

from ..core import formulas
from ..core.device import cuda, cuda_formulas, cuda_jit
from . import launch

_f = cuda_formulas(formulas)
mutual_information, rough_probability, pair_count = _f.mutual_information, _f.rough_probability, _f.pair_count
ZERO, INFINITY = np.float32(0), np.float32(np.inf)
ONE, NO_BIT = np.uint32(1), np.uint32(0)
#: Threads per block: one per candidate. The chosen ones are the bits of one 32-bit register.
BLOCK = 32


@cuda_jit
def rerank_kernel(scores, ids, pairs, weight, top_scores, top_ids):
    """One block owns one row; thread c owns candidate c of K <= 32 and its current score.

    Grid: rows on x; block of 32. Reads scores and ids (B, K) and, after each of the first k - 1 choices, up to K lists
    of label pairs at random addresses; writes top_scores and top_ids (B, k). Shared memory: 4 K bytes. No atomics.
    """
    shared = cuda.shared.array(0, float32)
    b, c = cuda.blockIdx.x, cuda.threadIdx.x
    n, k = scores.shape[1], top_scores.shape[1]
    taken = NO_BIT
    previous = INFINITY
    floor = scores[b, n - 1]
    score, label = ZERO, ids[b, 0]
    if c < n:
        score, label = scores[b, c], ids[b, c]
    for position in range(k):
        if c < n:
            shared[c] = score
        cuda.syncthreads()
        # Every thread scans all K scores itself. At most 32 reads of shared memory, and all find the same best: no
        # reduction, and no second exchange to tell the others.
        best, value = -1, ZERO
        for i in range(n):
            if (taken >> np.uint32(i)) & ONE == NO_BIT and (best < 0 or shared[i] > value):
                best, value = i, shared[i]
        cuda.syncthreads()  # all have read: the next scores may be written
        taken |= ONE << np.uint32(best)
        previous = min(previous, value)
        chosen = ids[b, best]
        if c == 0:
            top_scores[b, position] = max(previous, floor)
            top_ids[b, position] = chosen
        factor = weight * rough_probability(scores[b, best])
        if position + 1 < k and factor > ZERO and c < n and (taken >> np.uint32(c)) & ONE == NO_BIT:
            points, others = pairs.label_counts[chosen], pairs.label_counts[label]
            score += factor * mutual_information(pair_count(pairs, chosen, label), points, others, pairs.n_rows)


def rerank(scores, ids, pairs, weight, top_scores, top_ids):
    """Greedy choice of the k best of K candidates (see `sparsemax_nb.rerank`).

    k is the width of the outputs.
    """
    if scores.shape[0]:
        shared = launch.shared_bytes(4 * scores.shape[1])
        rerank_kernel[scores.shape[0], BLOCK, 0, shared](scores, ids, pairs, weight, top_scores, top_ids)
