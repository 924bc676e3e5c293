"""SVD-softmax and D-softmax on the CPU."""

import math
from typing import NamedTuple

import numpy as np
from numba import prange

from ..core import rng
from ..core.device import cpu_formulas, njit, njit_parallel
from . import lists
from .exp import LANES as SIDE_BY_SIDE
from .matmul import matmul
from .panels import pack
from .samplers import DRAW
from .simd import LANES, add, aligned, dot, load, mul, prefetch_range, splat

ZERO, WORST = np.float32(0), np.float32(-np.inf)
#: Numbers that the score rows worked on together hold: 16 MiB.
MAX_ELEMENTS = 1 << 22
#: Candidates that one thread scores before the next row or range, and how early it asks for the row of one.
CANDIDATES, AHEAD = 256, 8
#: Of so many scores one is looked at first.
SAMPLE = 16
#: All bits of a float32 but its sign; those of infinity.
MAGNITUDE, INFINITE = 0x7FFFFFFF, 0x7F800000


# ---------------------------------------------------------------- SVD-softmax


class SVDLayer(NamedTuple):
    """What `svd_top_k` reads."""

    turn: np.ndarray  # panels of the axes (d, d)
    preview: np.ndarray  # panels of the classes' first coordinates
    bias: np.ndarray  # of the classes; -infinity where the last panel is filled up
    rows: np.ndarray  # (L, d up to a multiple of 16): all coordinates, filled up with zeros


def pack_svd(coordinates, axes, bias, width):
    """The layer as `svd_top_k` takes it, from the coordinates (L, d) of the classes on axes (d, d)."""
    n_classes, d = coordinates.shape
    rows = aligned(np.zeros, (n_classes, -(-d // LANES) * LANES))
    rows[:, :d] = coordinates
    return SVDLayer(pack(axes), *lists.pack_classes(coordinates[:, :width], bias), rows)


_rng = cpu_formulas(rng)
random_words, below, unit = _rng.random_words, _rng.below, _rng.unit
SAMPLING, ZERO, ONE = rng.SAMPLING, np.float32(0), np.float32(1)


@njit
def _n_above(scores, bound, counts):
    """How many scores (a multiple of 16) exceed `bound`; `counts` (64,) int32 is scratch."""
    n, whole, count = scores.size, scores.size // SIDE_BY_SIDE * SIDE_BY_SIDE, 0
    counts[:] = 0
    for start in range(0, whole, SIDE_BY_SIDE):
        for i in range(SIDE_BY_SIDE):
            counts[i] += scores[start + i] > bound
    for j in range(whole, n):
        count += scores[j] > bound
    for i in range(SIDE_BY_SIDE):
        count += counts[i]
    return count


@njit
def _number(key):
    """The float32 with a place in the order of all: bits of positive ones ascend, those of negative ones descend."""
    return np.int32(key if key >= 0 else key ^ MAGNITUDE).view(np.float32)


@njit
def _bound(scores, n, counts):
    """The n-th best score; how many of those that are equal to it are among the n best.

    The range of all float32 numbers is halved until n scores, or all but equal ones, lie above its middle: 32 passes at
    most, in vector code.
    """
    low, high, above = -INFINITE - 1, INFINITE, 0  # more than n scores, or all, lie above low, `above` <= n above high
    while high - low > 1 and above < n:
        middle = (low + high) // 2
        count = _n_above(scores, _number(middle), counts)
        if count > n:
            low = middle
        else:
            high, above = middle, count
    return _number(high), n - above


@njit
def _above(scores, floor, values, places):
    """Lists, without a branch, the scores above `floor` and their places; returns how many they are."""
    n = 0
    for i in range(scores.size):
        values[n], places[n] = scores[i], i
        n += scores[i] > floor
    return n


@njit
def _select(scores, n, chosen):
    """The n best scores (ties: the first), ascending places in chosen[:n]; chosen has room for one more.

    The bound is sought among the scores that are likely to be above it, by that of every 16th score.
    """
    counts, size, floor = np.empty(SIDE_BY_SIDE, np.int32), scores.size // SAMPLE, WORST
    likely = n // SAMPLE + 4 * int(math.sqrt(n // SAMPLE)) + 4  # four standard deviations more than there should be
    if likely < size:
        sample = np.empty(size, np.float32)
        for i in range(size):
            sample[i] = scores[SAMPLE * i + i % SAMPLE]
        floor, _ = _bound(sample, likely, counts)
    size = _n_above(scores, floor, counts)
    if size < n:
        floor, size = WORST, scores.size
    values, places = np.empty(size + 1, np.float32), np.empty(size + 1, np.int32)
    size = _above(scores, floor, values, places)
    bound, n_ties = _bound(values[:size], n, counts)
    found = 0
    for i in range(size):
        chosen[found] = places[i]
        tied = (values[i] == bound) & (n_ties > 0)
        n_ties -= tied
        found += (values[i] > bound) | tied
    chosen[found:n] = 0  # where scores are NaN


@njit_parallel
def _candidates(scores, n, chosen):
    for b in prange(scores.shape[0]):
        _select(scores[b], n, chosen[b])


@njit
def _exact(q, rows, bias, chosen, start, stop, scores):
    """Scores from all coordinates, for the classes chosen[start:stop] of one row."""
    width, flat = rows.shape[1], rows.reshape(-1)
    for c in range(start, stop):
        if c + AHEAD < stop:
            prefetch_range(flat, chosen[c + AHEAD] * width, width)
        at, total = chosen[c] * width, splat(ZERO)
        for j in range(0, width, LANES):
            total = add(total, mul(load(q, j), load(flat, at + j)))
        scores[chosen[c]] = dot(total, splat(np.float32(1))) + bias[chosen[c]]


@njit_parallel(work=lambda q, rows, bias, chosen, n, scores: len(scores) * n * rows.shape[1])
def _score_candidates(q, rows, bias, chosen, n, scores):
    n_ranges = (n + CANDIDATES - 1) // CANDIDATES
    for part in prange(scores.shape[0] * n_ranges):
        b, start = part // n_ranges, part % n_ranges * CANDIDATES
        _exact(q[b], rows, bias, chosen[b], start, min(start + CANDIDATES, n), scores[b])


def svd_top_k(h, layer, n_candidates, probabilities, ids):
    """The k largest probabilities of each row and their classes: a preview for all, exact scores for the best of it.

    The scores of some rows exist at a time, 16 MiB. The layer comes from `pack_svd`.
    """
    n_rows, k = ids.shape
    n_panels, width, _ = layer.preview.shape
    q = np.empty((n_rows, layer.rows.shape[1]), np.float32)
    lists.affine(h, layer.turn, np.zeros(q.shape[1], np.float32), q)
    at_once = max(1, min(n_rows, MAX_ELEMENTS // (n_panels * LANES)))
    buffer = aligned(np.empty, (at_once, n_panels * LANES))
    chosen = np.empty((at_once, n_candidates + 1), np.int32)
    for first in range(0, n_rows, at_once):
        some = slice(first, first + at_once)
        scores = buffer[: len(h[some])]
        lists.affine(np.ascontiguousarray(q[some, :width]), layer.preview, layer.bias, scores)
        _candidates(scores, n_candidates, chosen)
        _score_candidates(q[some], layer.rows, layer.bias, chosen, n_candidates, scores)
        if k > lists.LISTED:
            lists.best_of_rows(scores, probabilities[some], ids[some])
            continue
        parts = lists.empty_lists(lists.n_ranges(len(scores), n_panels, k), len(scores), k)
        lists.of_scores(scores, *parts)
        lists.join(*parts, probabilities[some], ids[some])


# ---------------------------------------------------------------- D-softmax


class Bin(NamedTuple):
    """Classes whose scores are sums of equally many terms."""

    classes: np.ndarray  # (n,) int32, ascending
    axes: np.ndarray | None  # panels of (d, r); None: the rows are not turned
    rows: np.ndarray  # panels of (n, r)
    bias: np.ndarray  # -infinity where the last panel is filled up


def pack_bin(classes, coordinates, axes, bias):
    """A bin as `d_top_k` takes it, from the coordinates (n, r) of its classes on axes (d, r); None: the unit axes."""
    return Bin(classes, None if axes is None else pack(axes), *lists.pack_classes(coordinates, bias))


def _on_axes(h, part):
    """The coordinates of h on the axes of a bin."""
    if part.axes is None:
        return h
    width = part.rows.shape[1]
    q = np.empty((len(h), width), np.float32)
    lists.affine(h, part.axes, np.zeros(width, np.float32), q)
    return q


def d_top_k(h, layer, probabilities, ids):
    """The k largest probabilities of each row and their classes; the layer: bins from `pack_bin`.

    Where k is large, all scores of some rows exist at a time, 16 MiB, and once more those of a bin.
    """
    n_rows, k = ids.shape
    if k > lists.LISTED:
        n_classes = sum(len(part.classes) for part in layer)
        at_once = max(1, min(n_rows, MAX_ELEMENTS // n_classes))
        scores = np.empty((at_once, n_classes), np.float32)
        for first in range(0, n_rows, at_once):
            some = slice(first, first + at_once)
            n = len(h[some])
            for part in layer:
                of_bin = np.empty((n, len(part.bias)), np.float32)
                lists.affine(_on_axes(h[some], part), part.rows, part.bias, of_bin)
                scores[:n, part.classes] = of_bin[:, : len(part.classes)]
            lists.best_of_rows(scores[:n], probabilities[some], ids[some])
        return
    of_bins = []
    for part in layer:
        n_panels, q = len(part.rows), _on_axes(h, part)
        found = lists.empty_lists(lists.n_ranges(lists.n_blocks(n_rows), n_panels, k), n_rows, k)
        lists.of_panels(q, part.rows, part.bias, *found)
        found.ids[...] = np.where(found.ids < 0, -1, part.classes[found.ids])
        of_bins.append(found)
    lists.join(*map(np.concatenate, zip(*of_bins, strict=True)), probabilities, ids)


def hash_codes(vectors, planes, codes):
    """``code = sum_j 2^j [plane_j . v > 0]`` in each of T tables: (n, d), (T, n_bits, d) -> (n, T) int32."""
    n_tables, n_bits, width = planes.shape
    products = np.empty((len(vectors), n_tables * n_bits), np.float32)
    matmul(vectors, planes.reshape(-1, width).T, products)
    _codes(products.reshape(-1, n_tables, n_bits), codes)


@njit_parallel
def _codes(products, codes):
    for i in prange(products.shape[0]):
        for t in range(products.shape[1]):
            code = 0
            for j in range(products.shape[2]):
                code |= np.int64(products[i, t, j] > ZERO) << j
            codes[i, t] = code


@njit
def _log_prob(codes, tables, uniform, i):
    """The log-probability of class i for one query."""
    n_tables, n_classes = tables.indptr.shape[0], np.float32(tables.codes.shape[0])
    share = ZERO
    for t in range(n_tables):
        size = tables.indptr[t, codes[t] + 1] - tables.indptr[t, codes[t]]
        if size == 0:
            share += ONE / n_classes
        elif tables.codes[i, t] == codes[t]:
            share += ONE / np.float32(size)
    return math.log(uniform / n_classes + (ONE - uniform) * share / np.float32(n_tables))


@njit_parallel(work=lambda codes, tables, uniform, ids, log_q: DRAW * ids.size)
def lsh_log_prob(codes, tables, uniform, ids, log_q):
    """``log(u / L + (1 - u) / T sum_t [same bucket] / |bucket|)`` of ids (B, M); an empty bucket counts as uniform."""
    for b in prange(ids.shape[0]):
        for m in range(ids.shape[1]):
            log_q[b, m] = _log_prob(codes[b], tables, uniform, ids[b, m])


@njit_parallel(work=lambda codes, tables, uniform, seed, step, ids, log_q: DRAW * ids.size)
def lsh_sample(codes, tables, uniform, seed, step, ids, log_q):
    """Draws (B, M) for queries with hash codes (B, T), and their log-probabilities."""
    n_tables, n_classes, n_samples = tables.indptr.shape[0], tables.codes.shape[0], ids.shape[1]
    for b in prange(ids.shape[0]):
        for m in range(n_samples):
            w0, w1, w2, _ = random_words(seed, SAMPLING, step, np.uint64(b * n_samples + m))
            t = np.int64(below(w1, np.uint64(n_tables)))
            first = tables.indptr[t, codes[b, t]]
            size = tables.indptr[t, codes[b, t] + 1] - first
            if unit(w0) >= uniform and size > 0:
                ids[b, m] = tables.members[t, first + np.int64(below(w2, np.uint64(size)))]
            else:
                ids[b, m] = np.int64(below(w2, np.uint64(n_classes)))
            log_q[b, m] = _log_prob(codes[b], tables, uniform, ids[b, m])
