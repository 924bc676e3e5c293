"""The exact softmax, tile by tile."""

import functools

import numpy as np
import scipy.sparse

from sparsemax_nb.core import sparse
from sparsemax_nb.cuda import full_softmax as cuda
from sparsemax_nb.reference import full_softmax, matmul

from ..helpers import assert_close, integers, label_matrix, normal
from . import Budget, Task, operation, unwritten


def make_tile(shape, first):
    """A tile and labels before, inside and after it: several in a row, or none."""
    n_rows, n = shape
    is_label = label_matrix(n_rows, first + 2 * n, density=min(0.3, 9 / n)).toarray() > 0
    is_label[:1], is_label[-1:, first] = False, True
    labels = sparse.as_labels(scipy.sparse.csr_matrix(is_label), *is_label.shape[:1], "cpu", is_label.shape[1])
    return 3 * normal(1, n_rows, n), normal(2, n), first, labels


def make_add_tile(shape):
    logits, bias = 3 * normal(1, *shape), normal(2, shape[1])
    largest, total = normal(4, shape[0]), np.abs(normal(5, shape[0])) + 1
    largest[1::2], total[1::2] = np.finfo(np.float32).min, 0
    wanted = full_softmax.add_tile(logits, bias, largest.copy(), total.copy())

    def check():
        for got, want, scale in zip((largest, total), wanted, (20, shape[1]), strict=True):
            assert_close(got, want, 10 * shape[1], scale)

    return Task((logits, bias, largest, total), check)


def make_add_product(shape, keep):
    n_rows, n, width = shape
    bias, h, w = normal(2, n), normal(7, n_rows, width), normal(8, n, width)
    wanted_logits, logits = matmul.matmul(h, w.T), unwritten(n_rows, n)
    largest, total = normal(4, n_rows), np.abs(normal(5, n_rows)) + 1
    wanted = full_softmax.add_tile(wanted_logits, bias, largest.copy(), total.copy())

    def check():
        for got, want, scale in zip((largest, total), wanted, (20, n), strict=True):
            assert_close(got, want, 10 * max(n, width), scale)
        if keep:
            assert_close(logits, wanted_logits, width)

    return Task((h, w, bias, keep, logits, largest, total), check)


def make_gradient_of_tile(shape, first, in_place=False):
    logits, *rest = make_tile(shape, first)
    dbias, losses, largest = normal(6, shape[1]), normal(7, shape[0]), (logits + rest[0]).max(axis=1, initial=-9)
    inputs = *rest, largest, 9 + np.abs(normal(4, shape[0])), np.float32(0.3), dbias, losses
    dlogits = logits if in_place else unwritten(*shape)
    wanted = full_softmax.gradient_of_tile(logits.copy(), *inputs)

    def check():
        assert_close(dbias, wanted[0], 400 + shape[0])
        assert_close(losses, wanted[1], 400)
        assert_close(dlogits, wanted[2], 400)

    return Task((logits, *inputs, dlogits), check)


def make_rank(shape):
    """Small integers, so there are many ties; the last row is normal numbers, the one before has an infinity."""
    logits = integers(1, -3, 4, *shape)
    logits[-1:], targets = normal(2, *shape)[-1:], np.random.default_rng(3).integers(0, shape[1], shape[0], np.int32)
    logits[-2:-1, -1] = -np.inf
    outputs = unwritten(shape[0]), unwritten(shape[0], dtype=np.int32)
    wanted = full_softmax.rank(logits, targets)

    def check():
        finite = np.isfinite(wanted[0])
        np.testing.assert_array_equal(np.isfinite(outputs[0]), finite)
        assert_close(outputs[0][finite], wanted[0][finite], 10 * shape[1])
        np.testing.assert_array_equal(outputs[1], wanted[1])

    return Task((logits, targets, *outputs), check)


def make_probable(shape):
    """Inputs are small integers, so the scores are exact and many are equal."""
    n_rows, width, n_classes, k = shape
    h, w, bias = integers(1, -2, 3, n_rows, width), integers(2, -2, 3, n_classes, width), integers(3, -2, 3, n_classes)
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    wanted = full_softmax.top_k(h, w, bias, k)

    def check():
        assert_close(outputs[0], wanted[0], 10 * n_classes)
        np.testing.assert_array_equal(outputs[1], wanted[1])

    return Task((h, w, bias, *outputs), check)


#: (B, T)
TILES = ((1, 1), (3, 7), (0, 3)), ((33, 65), (5, 300))
#: (B, T, d)
PRODUCTS = ((1, 1, 1), (3, 7, 5), (0, 3, 2)), ((33, 65, 19), (5, 300, 8), (130, 68, 48))
OPERATIONS = [
    operation("full_softmax.add_tile", make_add_tile, *TILES),
    operation("full_softmax.gradient_of_tile", make_gradient_of_tile, *TILES, first=4),
    operation("full_softmax.gradient_of_tile in place", make_gradient_of_tile, *TILES, first=0, in_place=True),
    operation("full_softmax.add_product", make_add_product, PRODUCTS[0], PRODUCTS[1][:2], keep=True),
    *(
        operation(
            f"full_softmax.add_product tensor cores {'kept' if keep else ''}",
            make_add_product,
            (),
            sum(PRODUCTS, ()),
            functools.partial(cuda.add_product, tensor_cores=True),
            None,
            keep=keep,
        )
        for keep in (False, True)
    ),
    operation("full_softmax.rank", make_rank, *TILES),
    operation(  # (B, d, L, k); no twin: the CPU's takes packed panels
        "full_softmax.top_k",
        make_probable,
        ((1, 1, 1, 3), (3, 2, 67, 3), (5, 3, 9, 9), (0, 2, 3, 1)),
        ((33, 5, 331, 4), (5, 3, 300, 310), (3, 7, 3000, 40)),
        twin=None,
    ),
]

BUDGETS = {
    "add_sums_kernel": Budget(48),
    "add_tile_kernel": Budget(40),
    "cross_entropy_mma_kernel": Budget(
        136, holds=("mma.sync.aligned.m16n8k16", "ld.global.v4.f32", "shfl.sync.bfly"), since=(8, 0)
    ),
    "gradient_of_tile_kernel": Budget(40),
    "probabilities_kernel": Budget(48),
    "rank_kernel": Budget(48),
    "softmax_lists_kernel": Budget(64),
}
