"""DS-Softmax on the CPU: a sparse mixture of sparse experts. A thread takes a tile of an expert's rows."""

import math

import numpy as np
from numba import prange

from ..core.device import njit, njit_parallel
from .exp import LANES as WIDE
from .exp import exp_nonpositive
from .panels import pack_rows, product
from .simd import LANES, any_above, inner, load, splat
from .top_k import INSERTED, WORST, enters, insert
from .top_k import select as select_best

ZERO, ONE, NAN = np.float32(0), np.float32(1), np.float32(np.nan)
#: Rows of one expert that one thread takes.
TILE = 512
#: Of these, so many at a time are packed into panels, for so many rows of the batch: what exists for them fits the L2
#: cache.
WIDTH, ROWS = 64, 256


@njit
def _choose(logits):
    """The place of the largest logit, the first of equal ones, and ``1 / sum(exp(logits - largest))``, its softmax."""
    place, largest, total = 0, logits[0], ZERO
    for k in range(1, logits.size):
        if logits[k] > largest:
            place, largest = k, logits[k]
    for k in range(logits.size):
        total += math.exp(logits[k] - largest)
    return place, ONE / total


@njit_parallel
def gate(logits, probabilities, chosen, values):
    """softmax(logits) (B, E), the expert with the largest of each row, and that value; probabilities may be the logits."""
    for b in prange(logits.shape[0]):
        row = logits[b]
        k, value = _choose(row)
        largest = row[k]
        for j in range(row.size):
            probabilities[b, j] = math.exp(row[j] - largest) * value
        chosen[b], values[b] = k, value


@njit
def tiles(starts):
    """firsts, experts: the runs of at most TILE rows into which each expert's are cut, one behind the other."""
    n = 0
    for k in range(starts.size - 1):
        n += (starts[k + 1] - starts[k] + TILE - 1) // TILE
    firsts, experts, place = np.empty(n, np.int64), np.empty(n, np.int64), 0
    for k in range(starts.size - 1):
        for first in range(starts[k], starts[k + 1], TILE):
            firsts[place], experts[place] = first, k
            place += 1
    return firsts, experts


@njit
def extent(first, k, of_batch, of_experts):
    """Of the tile of expert k that begins at `first`: its rows; where the expert's begin, how many; the same of the batch's."""
    start, size, row = of_experts[k], of_experts[k + 1] - of_experts[k], of_batch[k]
    return min(TILE, start + size - first), start, size, row, of_batch[k + 1] - row


@njit
def _scores_of_tile(h, row, n_rows, rows, first, n, out, to, size, panels, scratch):
    """The products of n_rows rows of h, from number `row` on, with n <= WIDTH rows of `rows`; each row's `size` behind the last's."""
    terms = panels.shape[1]
    some = panels[: (n + LANES - 1) // LANES]
    pack_rows(rows, first * terms, n, some)
    for start in range(0, n_rows, ROWS):
        count, width = min(ROWS, n_rows - start), some.shape[0] * LANES
        product(h, (row + start) * terms, count, some, scratch)
        for b in range(count):
            place = to + (start + b) * size
            out[place : place + n] = scratch[b * width : b * width + n]


@njit_parallel
def scores(h, groups, experts, out):
    """The products of each row of h (B, d) with all rows of its expert, flat; h lies in the order of the groups."""
    flat_h, flat_rows, terms = h.reshape(-1), experts.weights.reshape(-1), h.shape[1]
    firsts, of = tiles(experts.starts)
    for tile in prange(firsts.size):
        n, start, size, row, n_rows = extent(firsts[tile], of[tile], groups.starts, experts.starts)
        if n_rows > 0:
            panels, scratch = np.empty((WIDTH // LANES, terms, LANES), np.float32), np.empty(ROWS * WIDTH, np.float32)
            stop = firsts[tile] + n
            for first in range(firsts[tile], stop, WIDTH):
                to, count = groups.offsets[row] + first - start, min(WIDTH, stop - first)
                _scores_of_tile(flat_h, row, n_rows, flat_rows, first, count, out, to, size, panels, scratch)


# ---------------------------------------------------------------- answers


@njit
def _insert_all(scores, best, places):
    """The best scores and their places; of 16 scores, none is looked at where none beats the last of the list."""
    n, worst = scores.size, WORST
    places[:], best[:] = -1, WORST
    whole = n - n % LANES
    for start in range(0, whole, LANES):
        if any_above(load(scores, start), splat(worst)):
            for j in range(start, start + LANES):
                if not scores[j] <= worst and enters(scores[j], j, best, places):
                    insert(best, places, scores[j], j)
                    worst = best[best.size - 1]
    for j in range(whole, n):
        if enters(scores[j], j, best, places):
            insert(best, places, scores[j], j)


@njit
def _best(scores, value, held, probabilities, ids, lanes):
    """The best of one row's scores: their softmax, times the gate value inside, and their classes."""
    k, n = ids.size, scores.size
    if k > INSERTED:
        select_best(scores, probabilities, ids)
    else:
        _insert_all(scores, probabilities, ids)
    best = probabilities[0]
    total = sum_exp(scores, value, best, ZERO, lanes)
    for i in range(min(k, n)):
        if ids[i] < 0:  # its score was -infinity
            probabilities[i] = NAN
        else:
            probabilities[i], ids[i] = exp_nonpositive(value * (probabilities[i] - best)) / total, held[ids[i]]
    probabilities[n:] = ZERO * value  # NaN where the gate was not finite


@njit
def _answer(b, h, gate_rows, experts, probabilities, ids):
    """One query, from its gate to its answer."""
    width, n_experts, lanes = h.shape[1], gate_rows.shape[0], np.empty(WIDE, np.float32)
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
def _one_query(h, gate_rows, experts, probabilities, ids):
    _answer(0, h, gate_rows, experts, probabilities, ids)


def _work_of_few(h, gate_rows, experts, probabilities, ids):
    """A query meets the gate and one expert of so many."""
    return h.shape[0] * (gate_rows.size + experts.weights.size // gate_rows.shape[0])


@njit_parallel(work=_work_of_few)
def _few_queries(h, gate_rows, experts, probabilities, ids):
    for b in prange(h.shape[0]):
        _answer(b, h, gate_rows, experts, probabilities, ids)


def answer(h, gate_rows, experts, probabilities, ids):
    """The best classes of the expert that the gate picks: their probabilities in its softmax, and ids, (B, k); row by row."""
    (_one_query if len(h) == 1 else _few_queries)(h, gate_rows, experts, probabilities, ids)


@njit_parallel(work=lambda scores, values, groups, experts, probabilities, ids: scores.size)
def select(scores, values, groups, experts, probabilities, ids):
    """The same, (B, k), from the scores (flat) of a batch that is sorted by expert, and the gate's values (B,)."""
    starts, offsets = experts.starts, groups.offsets
    for place in prange(values.size):
        lanes = np.empty(WIDE, np.float32)
        b, k = groups.order[place], groups.experts[place]
        of_row, held = scores[offsets[place] : offsets[place + 1]], experts.ids[starts[k] : starts[k + 1]]
        _best(of_row, values[b], held, probabilities[b], ids[b], lanes)


@njit
def largest_score(scores, lanes):
    """The largest score, NaN left out; -inf of none. `lanes` (WIDE,) is scratch."""
    whole, largest = scores.size // WIDE * WIDE, WORST
    lanes[:] = WORST
    for start in range(0, whole, WIDE):
        for i in range(WIDE):
            x, old = scores[start + i], lanes[i]
            lanes[i] = (x if x > old else old) + ZERO  # a sum: to store either number becomes a slow masked store
    for j in range(whole, scores.size):
        largest = max(largest, scores[j])
    for i in range(WIDE):
        largest = max(largest, lanes[i])
    return largest


@njit
def sum_exp(scores, value, best, shift, lanes):
    """``sum(exp(value (scores - best) + shift))``, where no term exceeds 1; `lanes` (WIDE,) is scratch."""
    whole, total = scores.size // WIDE * WIDE, ZERO
    lanes[:] = ZERO
    for start in range(0, whole, WIDE):
        for i in range(WIDE):
            lanes[i] += exp_nonpositive(value * (scores[start + i] - best) + shift)
    for j in range(whole, scores.size):
        total += exp_nonpositive(value * (scores[j] - best) + shift)
    for i in range(WIDE):
        total += lanes[i]
    return total
