"""The inverted multi-index: codes, samples, probabilities."""

import numpy as np

from sparsemax_nb.core.alias import alias_table
from sparsemax_nb.midx import _Index, _records
from sparsemax_nb.reference import midx

from ..helpers import assert_close, integers, normal
from . import SEED, Budget, Task, operation, unwritten


def make_assign(shape, weighted=False):
    n, n_codewords, width = shape
    vectors, codewords = normal(1, n, width), normal(2, n_codewords, width)
    vectors[1::5] = vectors[:1]  # some vectors are equal
    codewords[1:2] = codewords[:1]  # a tie: the first codeword wins
    codes, distance = unwritten(n, dtype=np.int32), unwritten(n)
    weights = np.abs(normal(3, n)) if weighted else np.zeros(0, np.float32)
    sums, totals = unwritten(n_codewords, width), unwritten(n_codewords)
    want_codes, want_distance, want_sums, want_totals = midx.assign(vectors, codewords, weights)

    def check():
        np.testing.assert_array_equal(codes, want_codes)
        np.testing.assert_allclose(totals, want_totals, rtol=1e-6 * max(n, 1) ** 0.5 if weighted else 0)
        assert_close(distance, want_distance, 4 * width, 20 * width)
        assert_close(sums, want_sums, n)

    return Task((vectors, codewords, weights, codes, distance, sums, totals), check)


def make_index(n_codewords, n_classes, weighted):
    """An `_Index` of random codes with empty cells (one codeword is never used) and classes of popularity 0."""
    random = np.random.default_rng(n_classes)
    codes = random.integers(0, max(n_codewords - 1, 1), (n_classes, 2)).astype(np.int32)
    cell = codes[:, 0] * n_codewords + codes[:, 1]
    members, popularity = np.argsort(cell, kind="stable").astype(np.int32), np.ones(n_classes)
    if weighted:
        popularity = random.pareto(1, n_classes) * (random.random(n_classes) < 0.8) + (np.arange(n_classes) == 0)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=n_codewords**2))]).astype(np.int32)
    weights = np.bincount(cell, popularity, n_codewords**2).reshape(n_codewords, n_codewords).astype(np.float32)
    records, log_popularity = np.zeros((0, 4), np.uint32), np.zeros(0, np.float32)
    if weighted:
        with np.errstate(divide="ignore"):
            log_popularity = np.log(popularity).astype(np.float32)
        records = _records(members, alias_table(popularity[members], indptr), log_popularity)
    transposed = np.ascontiguousarray(weights.T)
    return _Index(codes, indptr, members, records, records.view(np.float32), weights, transposed, log_popularity)


def make_index_sample(shape, weighted, scale=1):
    n_rows, n_samples, n_codewords, n_classes = shape
    index, r0, r1 = (
        make_index(n_codewords, n_classes, weighted),
        normal(1, n_rows, n_codewords),
        normal(2, n_rows, n_codewords),
    )
    r0, r1 = (scale * np.float32(1.5) * r for r in (r0, r1))
    ids, log_q = unwritten(n_rows, n_samples, dtype=np.int32), unwritten(n_rows, n_samples)
    want_ids, want_log_q, distance = midx.sample(r0, r1, index, SEED, 3, n_samples)

    def check():
        is_certain = distance > 1e-6
        assert (~is_certain).sum() <= max(1, 0.001 * ids.size)
        np.testing.assert_array_equal(ids[is_certain], want_ids[is_certain])
        same = ids == want_ids
        np.testing.assert_allclose(log_q[same], want_log_q[same], rtol=0, atol=1e-5 * scale)

    return Task((r0, r1, index, SEED, np.uint64(3), ids, log_q), check)


def make_index_log_prob(shape, weighted, shared=False):
    n_rows, n_samples, n_codewords, n_classes = shape
    index, r0, r1 = (
        make_index(n_codewords, n_classes, weighted),
        2 * normal(1, n_rows, n_codewords),
        normal(2, n_rows, n_codewords),
    )
    ids = integers(3, 0, n_classes, 1 if shared else n_rows, n_samples).astype(np.int32)
    log_q = unwritten(n_rows, n_samples)
    wanted = midx.log_prob(r0, r1, index, ids)
    return Task((r0, r1, index, ids, log_q), lambda: np.testing.assert_allclose(log_q, wanted, rtol=0, atol=1e-5))


def _operations():
    yield operation("midx.assign", make_assign, ((1, 1, 1), (9, 3, 5), (0, 2, 3)), ((300, 17, 9), (3000, 130, 33)))
    yield operation("midx.assign weighted", make_assign, ((9, 3, 5),), ((3000, 130, 33),), weighted=True)
    sizes = ((1, 1, 1, 1), (3, 5, 4, 9), (0, 3, 2, 5)), ((33, 65, 16, 1000), (70, 9, 130, 400))  # (B, M, K, L)
    for weighted in (False, True):
        name = "popularity" if weighted else "uniform"
        yield operation(f"midx.sample {name}", make_index_sample, *sizes, weighted=weighted)
        yield operation(f"midx.log_prob {name}", make_index_log_prob, *sizes, weighted=weighted, shared=weighted)
    yield operation("midx.sample far apart", make_index_sample, sizes[0][1:2], sizes[1][:1], weighted=False, scale=100)


OPERATIONS = list(_operations())

BUDGETS = {
    "log_prob_kernel": Budget(64),
    "nearest_kernel": Budget(48),
    "sample_kernel": Budget(64),
}
