"""DS-Softmax on the CPU: a sparse mixture of sparse experts. A thread takes a tile of an expert's rows."""

import math

import numpy as np
from numba import prange

from ..core.device import njit, njit_parallel
from .exp import ACCUMULATORS, exp_nonpositive
from .panels import pack_rows, product
from .simd import LANES, any_above, inner, load, splat
from .top_k import MAX_INSERTED, WORST, beats_worst, insert
from .top_k import select as select_best

ZERO, ONE, NAN = np.float32(0), np.float32(1), np.float32(np.nan)
#: Rows of an expert per tile, the work item of a thread.
TILE = 512
#: Rows of a tile that are packed into panels at a time, and batch rows that they meet: both fit the L2 cache.
WIDTH, ROWS = 64, 256


@njit
def _choose(logits):
    """The index of the largest logit (ties: the first) and its softmax, ``1 / sum(exp(logits - largest))``."""
    chosen, largest, total = 0, logits[0], ZERO
    for k in range(1, logits.size):
        if logits[k] > largest:
            chosen, largest = k, logits[k]
    for k in range(logits.size):
        total += math.exp(logits[k] - largest)
    return chosen, ONE / total


@njit_parallel
def gate(logits, probabilities, chosen, values):
    """softmax(logits) (B, E), the most probable expert of each row, and its probability.

    `probabilities` may be the logits.
    """
    for b in prange(logits.shape[0]):
        row = logits[b]
        k, value = _choose(row)
        largest = row[k]
        for j in range(row.size):
            probabilities[b, j] = math.exp(row[j] - largest) * value
        chosen[b], values[b] = k, value


@njit
def tiles(starts):
    """Cut each expert into runs of at most TILE rows: (the first row of each run, its expert), concatenated."""
    n = 0
    for k in range(starts.size - 1):
        n += (starts[k + 1] - starts[k] + TILE - 1) // TILE
    firsts, experts, tile = np.empty(n, np.int64), np.empty(n, np.int64), 0
    for k in range(starts.size - 1):
        for first in range(starts[k], starts[k + 1], TILE):
            firsts[tile], experts[tile] = first, k
            tile += 1
    return firsts, experts


@njit
def tile_extent(first, k, batch_starts, expert_starts):
    """The tile of expert k that begins at `first`, as (tile size, expert start, expert size, batch start, batch size).

    Starts and sizes count rows: of the expert's weights and of the batch rows that chose it.
    """
    start, size, row = expert_starts[k], expert_starts[k + 1] - expert_starts[k], batch_starts[k]
    return min(TILE, start + size - first), start, size, row, batch_starts[k + 1] - row


@njit
def _scores_of_tile(h, row, n_rows, rows, first, n, out, target, size, panels, scratch):
    """The products of n_rows rows of h, from number `row` on, with n <= WIDTH rows of `rows`, from number `first` on.

    Those of the first row begin at ``out[target]``, those of each next row `size` later.
    """
    terms = panels.shape[1]
    part = panels[: (n + LANES - 1) // LANES]
    pack_rows(rows, first * terms, n, part)
    for start in range(0, n_rows, ROWS):
        count, width = min(ROWS, n_rows - start), part.shape[0] * LANES
        product(h, (row + start) * terms, count, part, scratch)
        for b in range(count):
            offset = target + (start + b) * size
            out[offset : offset + n] = scratch[b * width : b * width + n]


@njit_parallel
def scores(h, groups, experts, out):
    """The products of each row of h (B, d) with all rows of its expert, flat; h is in the order of the groups."""
    flat_h, flat_rows, terms = h.reshape(-1), experts.weights.reshape(-1), h.shape[1]
    firsts, tile_experts = tiles(experts.starts)
    for tile in prange(firsts.size):
        n, start, size, row, n_rows = tile_extent(firsts[tile], tile_experts[tile], groups.starts, experts.starts)
        if n_rows > 0:
            panels, scratch = np.empty((WIDTH // LANES, terms, LANES), np.float32), np.empty(ROWS * WIDTH, np.float32)
            stop = firsts[tile] + n
            for first in range(firsts[tile], stop, WIDTH):
                target, count = groups.offsets[row] + first - start, min(WIDTH, stop - first)
                _scores_of_tile(flat_h, row, n_rows, flat_rows, first, count, out, target, size, panels, scratch)


# ---------------------------------------------------------------- answers


@njit
def _insert_all(scores, best, positions):
    """The best scores and their positions; groups of 16 scores that do not beat the worst kept one are skipped."""
    n, worst = scores.size, WORST
    positions[:], best[:] = -1, WORST
    whole = n - n % LANES
    for start in range(0, whole, LANES):
        if any_above(load(scores, start), splat(worst)):
            for j in range(start, start + LANES):
                if not scores[j] <= worst and beats_worst(scores[j], j, best, positions):
                    insert(best, positions, scores[j], j)
                    worst = best[best.size - 1]
    for j in range(whole, n):
        if beats_worst(scores[j], j, best, positions):
            insert(best, positions, scores[j], j)


@njit
def _best(scores, value, classes, probabilities, ids, lanes):
    """The best classes of one row: their probabilities ``softmax(value scores)`` and ids."""
    k, n = ids.size, scores.size
    if k > MAX_INSERTED:
        select_best(scores, probabilities, ids)
    else:
        _insert_all(scores, probabilities, ids)
    best = probabilities[0]
    total = sum_exp(scores, value, best, ZERO, lanes)
    for i in range(min(k, n)):
        if ids[i] < 0:  # its score was -infinity
            probabilities[i] = NAN
        else:
            probabilities[i], ids[i] = exp_nonpositive(value * (probabilities[i] - best)) / total, classes[ids[i]]
    probabilities[n:] = ZERO * value  # 0, or NaN if the gate is not finite


@njit
def _answer(b, h, gate_rows, experts, probabilities, ids):
    """The answer for row b: choose its expert, score its classes, find the best."""
    width, n_experts, lanes = h.shape[1], gate_rows.shape[0], np.empty(ACCUMULATORS, np.float32)
    flat_h, flat_gate, flat_rows = h.reshape(-1), gate_rows.reshape(-1), experts.weights.reshape(-1)
    logits = np.empty(n_experts, np.float32)
    for k in range(n_experts):
        logits[k] = inner(flat_h, b * width, flat_gate, k * width, width)
    k, value = _choose(logits)
    first, stop = experts.starts[k], experts.starts[k + 1]
    scores = np.empty(stop - first, np.float32)
    for r in range(scores.size):
        scores[r] = inner(flat_h, b * width, flat_rows, (first + r) * width, width)
    _best(scores, value, experts.ids[first:stop], probabilities[b], ids[b], lanes)


@njit
def _one_row(h, gate_rows, experts, probabilities, ids):
    _answer(0, h, gate_rows, experts, probabilities, ids)


def _work_of_few(h, gate_rows, experts, probabilities, ids):
    """Each row is multiplied with the gate and with one expert of average size."""
    return h.shape[0] * (gate_rows.size + experts.weights.size // gate_rows.shape[0])


@njit_parallel(work=_work_of_few)
def _few_rows(h, gate_rows, experts, probabilities, ids):
    for b in prange(h.shape[0]):
        _answer(b, h, gate_rows, experts, probabilities, ids)


def answer(h, gate_rows, experts, probabilities, ids):
    """The k best classes of the expert that the gate picks: their probabilities in its softmax, and ids, (B, k).

    Computed row by row, without sorting the batch by expert.
    """
    (_one_row if len(h) == 1 else _few_rows)(h, gate_rows, experts, probabilities, ids)


@njit_parallel(work=lambda scores, values, groups, experts, probabilities, ids: scores.size)
def select(scores, values, groups, experts, probabilities, ids):
    """`answer` from the flat scores of a batch sorted by expert and the gate's values (B,)."""
    starts, offsets = experts.starts, groups.offsets
    for position in prange(values.size):
        lanes = np.empty(ACCUMULATORS, np.float32)
        b, k = groups.order[position], groups.experts[position]
        row_scores, classes = scores[offsets[position] : offsets[position + 1]], experts.ids[starts[k] : starts[k + 1]]
        _best(row_scores, values[b], classes, probabilities[b], ids[b], lanes)


@njit
def largest_score(scores, lanes):
    """The largest score, ignoring NaN; -inf without scores. `lanes` (ACCUMULATORS,) is scratch."""
    whole, largest = scores.size // ACCUMULATORS * ACCUMULATORS, WORST
    lanes[:] = WORST
    for start in range(0, whole, ACCUMULATORS):
        for i in range(ACCUMULATORS):
            x, old = scores[start + i], lanes[i]
            lanes[i] = (x if x > old else old) + ZERO  # + 0: storing either number would become a slow masked store
    for j in range(whole, scores.size):
        largest = max(largest, scores[j])
    for i in range(ACCUMULATORS):
        largest = max(largest, lanes[i])
    return largest


@njit
def sum_exp(scores, value, best, shift, lanes):
    """``sum(exp(value (scores - best) + shift))``; no term may exceed 1; `lanes` (ACCUMULATORS,) is scratch."""
    whole, total = scores.size // ACCUMULATORS * ACCUMULATORS, ZERO
    lanes[:] = ZERO
    for start in range(0, whole, ACCUMULATORS):
        for i in range(ACCUMULATORS):
            lanes[i] += exp_nonpositive(value * (scores[start + i] - best) + shift)
    for j in range(whole, scores.size):
        total += exp_nonpositive(value * (scores[j] - best) + shift)
    for i in range(ACCUMULATORS):
        total += lanes[i]
    return total
