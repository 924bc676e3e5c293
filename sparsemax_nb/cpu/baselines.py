"""SVD-softmax, D-softmax and LSH sampling on the CPU."""

import math
from typing import NamedTuple

import numpy as np
from numba import prange

from ..core import rng
from ..core.device import cpu_formulas, njit, njit_parallel
from . import lists
from .exp import ACCUMULATORS
from .matmul import matmul
from .panels import pack
from .samplers import DRAW
from .simd import LANES, add, aligned, dot, load, mul, prefetch_range, splat

ZERO, WORST = np.float32(0), np.float32(-np.inf)
#: Most scores in memory at a time: 16 MiB.
MAX_ELEMENTS = 1 << 22
#: Candidates per work item of a thread, and how many candidates ahead a row of weights is prefetched.
CANDIDATES, AHEAD = 256, 8
#: Every 16th score is sampled for a first estimate of the bound.
SAMPLE = 16
#: All bits of a float32 except the sign; the bits of infinity.
MAGNITUDE, INFINITE = 0x7FFFFFFF, 0x7F800000


# ---------------------------------------------------------------- SVD-softmax


class SVDLayer(NamedTuple):
    """The arrays that `svd_top_k` takes."""

    axes: np.ndarray  # panels of the axes (d, d)
    preview: np.ndarray  # panels of the classes' first coordinates
    bias: np.ndarray  # of the classes; -infinity in the padding of the last panel
    rows: np.ndarray  # (L, d padded to a multiple of 16): all coordinates


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
    """The number of scores above `bound`; `counts` (ACCUMULATORS,) int32 is scratch."""
    n, whole, count = scores.size, scores.size // ACCUMULATORS * ACCUMULATORS, 0
    counts[:] = 0
    for start in range(0, whole, ACCUMULATORS):
        for i in range(ACCUMULATORS):
            counts[i] += scores[start + i] > bound
    for j in range(whole, n):
        count += scores[j] > bound
    for i in range(ACCUMULATORS):
        count += counts[i]
    return count


@njit
def _float_of_key(key):
    """The float32 of an integer sort key: positive floats ascend with their bits, negative ones descend."""
    return np.int32(key if key >= 0 else key ^ MAGNITUDE).view(np.float32)


@njit
def _bound(scores, n, counts):
    """The n-th best score, and how many of the scores equal to it are among the n best.

    Bisects the range of all float32 numbers until n scores, or all but the ties, are above the middle: at most 32
    passes of vector code.
    """
    low, high, above = -INFINITE - 1, INFINITE, 0  # more than n scores (or all) are above low, `above` <= n above high
    while high - low > 1 and above < n:
        middle = (low + high) // 2
        count = _n_above(scores, _float_of_key(middle), counts)
        if count > n:
            low = middle
        else:
            high, above = middle, count
    return _float_of_key(high), n - above


@njit
def _list_above(scores, floor, values, positions):
    """List the scores above `floor` and their positions, without a branch; returns their number."""
    n = 0
    for i in range(scores.size):
        values[n], positions[n] = scores[i], i
        n += scores[i] > floor
    return n


@njit
def _select(scores, n, chosen):
    """The n best scores (ties: the first): their positions, ascending, in chosen[:n]; `chosen` has space for one more.

    The bound is searched only among likely scores: those above an estimate from every 16th score.
    """
    counts, size, floor = np.empty(ACCUMULATORS, np.int32), scores.size // SAMPLE, WORST
    likely = n // SAMPLE + 4 * int(math.sqrt(n // SAMPLE)) + 4  # four standard deviations above the expected number
    if likely < size:
        sample = np.empty(size, np.float32)
        for i in range(size):
            sample[i] = scores[SAMPLE * i + i % SAMPLE]
        floor, _ = _bound(sample, likely, counts)
    size = _n_above(scores, floor, counts)
    if size < n:
        floor, size = WORST, scores.size
    values, positions = np.empty(size + 1, np.float32), np.empty(size + 1, np.int32)
    size = _list_above(scores, floor, values, positions)
    bound, n_ties = _bound(values[:size], n, counts)
    found = 0
    for i in range(size):
        chosen[found] = positions[i]
        tied = (values[i] == bound) & (n_ties > 0)
        n_ties -= tied
        found += (values[i] > bound) | tied
    chosen[found:n] = 0  # only if scores are NaN


@njit_parallel
def _candidates(scores, n, chosen):
    for b in prange(scores.shape[0]):
        _select(scores[b], n, chosen[b])


@njit
def _exact(q, rows, bias, chosen, start, stop, scores):
    """Exact scores, from all coordinates, of the classes chosen[start:stop] of one row."""
    width, flat = rows.shape[1], rows.reshape(-1)
    for c in range(start, stop):
        if c + AHEAD < stop:
            prefetch_range(flat, chosen[c + AHEAD] * width, width)
        offset, total = chosen[c] * width, splat(ZERO)
        for j in range(0, width, LANES):
            total = add(total, mul(load(q, j), load(flat, offset + j)))
        scores[chosen[c]] = dot(total, splat(np.float32(1))) + bias[chosen[c]]


@njit_parallel(work=lambda q, rows, bias, chosen, n, scores: len(scores) * n * rows.shape[1])
def _score_candidates(q, rows, bias, chosen, n, scores):
    n_ranges = (n + CANDIDATES - 1) // CANDIDATES
    for part in prange(scores.shape[0] * n_ranges):
        b, start = part // n_ranges, part % n_ranges * CANDIDATES
        _exact(q[b], rows, bias, chosen[b], start, min(start + CANDIDATES, n), scores[b])


def svd_top_k(h, layer, n_candidates, probabilities, ids):
    """The k largest probabilities per row and their classes: a preview scores all classes, the best get exact scores.

    At most 16 MiB of scores exist at a time. The layer comes from `pack_svd`.
    """
    n_rows, k = ids.shape
    n_panels, width, _ = layer.preview.shape
    q = np.empty((n_rows, layer.rows.shape[1]), np.float32)
    lists.affine(h, layer.axes, np.zeros(q.shape[1], np.float32), q)
    rows_per_chunk = max(1, min(n_rows, MAX_ELEMENTS // (n_panels * LANES)))
    buffer = aligned(np.empty, (rows_per_chunk, n_panels * LANES))
    chosen = np.empty((rows_per_chunk, n_candidates + 1), np.int32)
    for first in range(0, n_rows, rows_per_chunk):
        part = slice(first, first + rows_per_chunk)
        scores = buffer[: len(h[part])]
        lists.affine(np.ascontiguousarray(q[part, :width]), layer.preview, layer.bias, scores)
        _candidates(scores, n_candidates, chosen)
        _score_candidates(q[part], layer.rows, layer.bias, chosen, n_candidates, scores)
        if k > lists.MAX_LISTED:
            lists.best_of_rows(scores, probabilities[part], ids[part])
            continue
        found = lists.empty_lists(lists.n_ranges(len(scores), n_panels, k), len(scores), k)
        lists.of_scores(scores, *found)
        lists.join(*found, probabilities[part], ids[part])


# ---------------------------------------------------------------- D-softmax


class Bin(NamedTuple):
    """Classes whose scores have the same number of terms."""

    classes: np.ndarray  # (n,) int32, ascending
    axes: np.ndarray | None  # panels of (d, r); None: the unit axes
    rows: np.ndarray  # panels of (n, r)
    bias: np.ndarray  # -infinity in the padding of the last panel


def pack_bin(classes, coordinates, axes, bias):
    """A bin as `d_top_k` takes it, from its classes' coordinates (n, r) on axes (d, r); None: the unit axes."""
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
    """The k largest probabilities per row and their classes; the layer is a sequence of bins from `pack_bin`.

    For large k, all scores of some rows exist at a time (16 MiB), plus those of one bin.
    """
    n_rows, k = ids.shape
    if k > lists.MAX_LISTED:
        n_classes = sum(len(part.classes) for part in layer)
        rows_per_chunk = max(1, min(n_rows, MAX_ELEMENTS // n_classes))
        scores = np.empty((rows_per_chunk, n_classes), np.float32)
        for first in range(0, n_rows, rows_per_chunk):
            rows = slice(first, first + rows_per_chunk)
            n = len(h[rows])
            for part in layer:
                bin_scores = np.empty((n, len(part.bias)), np.float32)
                lists.affine(_on_axes(h[rows], part), part.rows, part.bias, bin_scores)
                scores[:n, part.classes] = bin_scores[:, : len(part.classes)]
            lists.best_of_rows(scores[:n], probabilities[rows], ids[rows])
        return
    lists_of_bins = []
    for part in layer:
        n_panels, q = len(part.rows), _on_axes(h, part)
        found = lists.empty_lists(lists.n_ranges(lists.n_blocks(n_rows), n_panels, k), n_rows, k)
        lists.of_panels(q, part.rows, part.bias, *found)
        found.ids[...] = np.where(found.ids < 0, -1, part.classes[found.ids])
        lists_of_bins.append(found)
    lists.join(*map(np.concatenate, zip(*lists_of_bins, strict=True)), probabilities, ids)


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
    """The log-probability of class i for one row of hash codes."""
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
    """Draw ids (B, M) for rows of h with hash codes (B, T), and their log-probabilities."""
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
