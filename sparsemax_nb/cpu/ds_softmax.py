"""DS-Softmax on the CPU: a sparse mixture of sparse experts. A thread takes a tile of an expert's rows."""

import math

import numpy as np
from numba import prange

from ..core import formulas, rng, threads
from ..core.device import cpu_formulas, njit, njit_parallel
from .exp import LANES as WIDE
from .exp import exp, exp_nonpositive
from .matmul import AS_IS, FLOAT32, ITEM, TURNED, find_blas, gemm
from .panels import pack_rows, product
from .simd import LANES, any_above, inner, load, splat
from .top_k import INSERTED, WORST, enters, insert
from .top_k import select as select_best

_f, _r = cpu_formulas(formulas), cpu_formulas(rng)
adam, lasso = _f.adam, _f.lasso
random_words, bell = _r.random_words, _r.bell

ZERO, ONE, NAN = np.float32(0), np.float32(1), np.float32(np.nan)
NOISE = rng.NOISE
#: Rows of one expert that one thread takes.
TILE = 512
#: Of these, so many at a time are packed into panels, for so many rows of the batch: what exists for them fits the L2
#: cache.
WIDTH, ROWS = 64, 256


@njit_parallel
def add_noise(seed, step, scale, logits):
    """Adds scale times nearly normal random numbers to the logits (B, E)."""
    n_rows, n_experts = logits.shape
    for b in prange(n_rows):
        for k in range(n_experts):
            w0, w1, w2, w3 = random_words(seed, NOISE, step, np.uint64(b * n_experts + k))
            logits[b, k] += scale * bell(w0, w1, w2, w3)


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
def _tiles(starts):
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
def _extent(first, k, of_batch, of_experts):
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
    flat_h, flat_rows, terms = h.reshape(-1), experts.rows.reshape(-1), h.shape[1]
    firsts, of = _tiles(experts.starts)
    for tile in prange(firsts.size):
        n, start, size, row, n_rows = _extent(firsts[tile], of[tile], groups.starts, experts.starts)
        if n_rows > 0:
            panels, scratch = np.empty((WIDTH // LANES, terms, LANES), np.float32), np.empty(ROWS * WIDTH, np.float32)
            stop = firsts[tile] + n
            for first in range(firsts[tile], stop, WIDTH):
                to, count = groups.offsets[row] + first - start, min(WIDTH, stop - first)
                _scores_of_tile(flat_h, row, n_rows, flat_rows, first, count, out, to, size, panels, scratch)


@njit_parallel
def _gradient_of_rows(dscores, h, groups, experts, drows, scalars):
    width = h.shape[1]
    alpha = scalars.ctypes.data
    beta, at_h, at_drows, at_dscores = alpha + ITEM, h.ctypes.data, drows.ctypes.data, dscores.ctypes.data
    find_blas(scalars)
    firsts, of = _tiles(experts.starts)
    for tile in prange(firsts.size):
        first = firsts[tile]
        n, start, size, row, n_rows = _extent(first, of[tile], groups.starts, experts.starts)
        if n_rows > 0:
            b, a = at_dscores + ITEM * (groups.offsets[row] + first - start), at_h + ITEM * row * width
            to = at_drows + ITEM * first * width
            gemm(FLOAT32, AS_IS, TURNED, width, n, n_rows, alpha, a, width, b, size, beta, to, width)
        else:
            drows[first : first + n] = ZERO


def gradient_of_rows(dscores, h, groups, experts, drows):
    """The gradient by the experts' rows, (R, d): of expert k, its matrix of dscores, transposed, times its rows of h."""
    with threads.one_blas_thread():
        _gradient_of_rows(dscores, h, groups, experts, drows, np.array([1, 0, 0], np.float32))


@njit
def _largest(scores, lanes):
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
def _sum_exp(scores, value, best, shift, lanes):
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


@njit
def _gradient(scores, value, best, shift, weight, lanes):
    """``dz = weight exp(value (scores - best) + shift)``; the scores become ``value dz``; returns ``sum((scores - best) dz)``."""
    whole, total = scores.size // WIDE * WIDE, ZERO
    lanes[:] = ZERO
    for start in range(0, whole, WIDE):
        for i in range(WIDE):
            s = scores[start + i] - best
            dz = weight * exp_nonpositive(value * s + shift)
            lanes[i] += dz * s
            scores[start + i] = value * dz
    for j in range(whole, scores.size):
        s = scores[j] - best
        dz = weight * exp_nonpositive(value * s + shift)
        total += dz * s
        scores[j] = value * dz
    for i in range(WIDE):
        total += lanes[i]
    return total


@njit
def _find(ids, wanted):
    """The place of `wanted` in ascending ids, -1 where it is not there."""
    low, high = 0, ids.size
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < ids.size and ids[low] == wanted else -1


@njit
def _row_loss(scores, value, held, wanted, n_classes, scale):
    """Loss of one row and the gradient by its gate value; the scores become their gradient.

    Everything is counted from the best score: what the scores have in common cancels before anything is rounded. The
    loss of a label is ``log(total) + (largest - logit)``, the logits being ``value (score - best) + shift + largest``,
    or 0.
    """
    lanes, n_wanted, n_absent = np.empty(WIDE, np.float32), np.float32(wanted.size), np.float32(n_classes - held.size)
    best = _largest(scores, lanes) if held.size > 0 else ZERO
    best = best if best > WORST else NAN
    largest = max(value * best, ZERO) if n_absent > ZERO else value * best
    shift = value * best - largest
    absent = n_absent * exp(-largest) if n_absent > ZERO else ZERO
    total = _sum_exp(scores, value, best, shift, lanes) + absent
    log_total, below, n_missing = math.log(total), ZERO, n_wanted
    for i in range(wanted.size):
        place = _find(held, wanted[i])
        if place >= 0:
            below += best - scores[place]
            n_missing -= ONE
    loss = n_wanted * log_total + value * below - (n_wanted - n_missing) * shift
    if n_missing > ZERO:
        loss += n_missing * largest
    dvalue = _gradient(scores, value, best, shift, n_wanted * scale / total, lanes) + scale * below
    if n_absent > ZERO:
        dvalue += best * (scale * (n_missing - n_wanted * absent / total))
    for i in range(wanted.size):
        place = _find(held, wanted[i])
        if place >= 0:
            scores[place] -= value * scale
    return loss, dvalue


@njit_parallel
def _cross_entropy(values, labels, groups, experts, n_classes, scale, loss, dvalues, scores):
    indptr, offsets, starts = labels.indptr, groups.offsets, experts.starts
    for place in prange(values.size):
        b, k = groups.order[place], groups.experts[place]
        held, wanted = experts.ids[starts[k] : starts[k + 1]], labels.indices[indptr[b] : indptr[b + 1]]
        of_row = scores[offsets[place] : offsets[place + 1]]
        loss[b], dvalues[b] = _row_loss(of_row, values[b], held, wanted, n_classes, scale)


def cross_entropy(scores, values, labels, groups, experts, n_classes, scale, loss, dvalues, dscores):
    """``sum_labels(log(sum_c exp(g s_c) + n_absent) - g s_label)`` of each row, and its gradients times `scale`.

    `dscores` may be `scores`.
    """
    if dscores is not scores:
        np.copyto(dscores, scores)
    _cross_entropy(values, labels, groups, experts, n_classes, scale, loss, dvalues, dscores)


@njit
def _balance(values, groups, load, dload):
    load[:] = ZERO
    for k in range(load.size):
        for place in range(groups.starts[k], groups.starts[k + 1]):
            load[k] += values[groups.order[place]]
    total, square, n_experts = ZERO, ZERO, np.float32(load.size)
    for k in range(load.size):
        total += load[k]
        square += load[k] * load[k]
    for k in range(load.size):
        dload[k] = np.float32(2) * n_experts * (load[k] * total - square) / (total * total * total)


def balance(values, groups, load, dload):
    """Gate value that each expert gets, (E,), and the gradient by it of its squared coefficient of variation."""
    _balance(values, groups, load, dload)


@njit_parallel
def gate_backward(probabilities, chosen, dvalues, dload, dlogits):
    """The gradient by the gate's logits (B, E), from that by the kept values (B,) and by the experts' loads (E,)."""
    for b in prange(chosen.size):
        k = chosen[b]
        upstream = (dvalues[b] + dload[k]) * probabilities[b, k]
        for j in range(dload.size):
            dlogits[b, j] = upstream * ((ONE if j == k else ZERO) - probabilities[b, j])


@njit_parallel
def class_sums(squares, by_class, sums):
    """The sum of `squares` (R,) over the rows of each class, (L,)."""
    for c in prange(sums.size):
        total = ZERO
        for i in range(by_class.indptr[c], by_class.indptr[c + 1]):
            total += squares[by_class.rows[i]]
        sums[c] = total


@njit(error_model="numpy")
def _adam_of_row(row, gradient, m, v, factor, rates):
    """A flat loop, which is compiled to vector code."""
    for i in range(row.size):
        row[i], m[i], v[i] = adam(row[i], gradient[i] + factor * row[i], m[i], v[i], rates)


@njit_parallel
def update(gradient, ids, class_squares, penalties, rates, moments, rows, squares):
    """Adam on the loss and the two group lassos, in place; `squares` (R,) are the sums of squares of the rows."""
    m, v = moments.m, moments.v
    class_lasso, expert_lasso, n_experts, epsilon = penalties
    flat, width = rows.reshape(-1), rows.shape[1]
    n = np.float32(width)
    for r in prange(rows.shape[0]):
        factor = lasso(class_lasso, squares[r], n, epsilon)
        factor += lasso(expert_lasso, class_squares[ids[r]], n_experts * n, epsilon)
        _adam_of_row(rows[r], gradient[r], m[r], v[r], factor, rates)
        squares[r] = inner(flat, r * width, flat, r * width, width)


@njit_parallel
def survivors(squares, by_class, least, keep):
    """Which rows are kept, (R,) uint8: squares >= least, and of each class the largest one, the first of equal ones."""
    for c in prange(by_class.indptr.size - 1):
        first, stop = by_class.indptr[c], by_class.indptr[c + 1]
        best = first
        for i in range(first, stop):
            row = by_class.rows[i]
            keep[row] = squares[row] >= least
            if squares[row] > squares[by_class.rows[best]]:
                best = i
        if first < stop:
            keep[by_class.rows[best]] = 1


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
    total = _sum_exp(scores, value, best, ZERO, lanes)
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
    flat_h, flat_gate, flat_rows = h.reshape(-1), gate_rows.reshape(-1), experts.rows.reshape(-1)
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
    return h.shape[0] * (gate_rows.size + experts.rows.size // gate_rows.shape[0])


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
