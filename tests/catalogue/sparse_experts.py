"""Training of a mixture of sparse experts."""

import copy
import functools

import numpy as np
import scipy.sparse

from sparsemax_nb.core import formulas, sparse
from sparsemax_nb.core.experts import by_class, group
from sparsemax_nb.cuda import sparse_experts as cuda
from sparsemax_nb.reference import ds_softmax, sparse_experts

from ..helpers import assert_close, integers, label_matrix, normal
from . import RATES, SEED, Budget, Task, operation, unwritten
from .ds_softmax import LARGE_MIXTURES, MIXTURES, PAIRS, make_batch, make_experts
from .optimizers import make_moments


def make_noise(shape):
    logits, scale = normal(1, *shape), np.float32(0.5)
    wanted = sparse_experts.add_noise(SEED, np.uint64(3), scale, logits)
    return Task((SEED, np.uint64(3), scale, logits), lambda: assert_close(logits, wanted, 4))


def make_gradient_of_rows(shape):
    h, groups, experts = make_batch(shape)
    dscores, drows = normal(3, groups.offsets[-1]), unwritten(*experts.weights.shape)
    wanted = sparse_experts.gradient_of_rows(dscores, h, groups, experts)
    return Task((dscores, h, groups, experts, drows), lambda: assert_close(drows, wanted, max(shape[0], 1)))


def make_expert_loss(shape, several=False, in_place=False):
    """Rows with labels of their expert, and with labels that it does not have."""
    n_rows, _, n_classes, width = shape
    h, groups, experts = make_batch(shape)
    scores = ds_softmax.scores(h, groups, experts).astype(np.float32)
    labels = (
        label_matrix(n_rows, n_classes)
        if several
        else scipy.sparse.csr_matrix(
            (np.ones(n_rows), integers(4, 0, n_classes, n_rows).astype(np.int32), np.arange(n_rows + 1)),
            (n_rows, n_classes),
        )
    )
    labels = sparse.as_labels(labels, n_rows, "cpu", n_classes)
    values, scale = np.abs(normal(5, n_rows)) % np.float32(1), np.float32(1 / max(n_rows, 1))
    dscores, outputs = scores if in_place else unwritten(scores.size), (unwritten(n_rows), unwritten(n_rows))
    wanted = sparse_experts.cross_entropy(scores, values, labels, groups, experts, n_classes, scale)
    terms = n_classes * max(np.diff(labels.indptr), default=1)

    def check():
        for got, want in zip((*outputs, dscores), wanted, strict=True):
            assert_close(got, want, 4 * terms)

    return Task((scores, values, labels, groups, experts, n_classes, scale, *outputs, dscores), check)


def make_balance(shape):
    n_rows, n_experts = shape
    values, chosen = np.abs(normal(1, n_rows)), integers(2, 0, n_experts, n_rows).astype(np.int32)
    groups = group(chosen, np.zeros(n_experts + 1, np.int32))
    outputs, wanted = (unwritten(n_experts), unwritten(n_experts)), sparse_experts.balance(values, groups)

    def check():
        for got, want in zip(outputs, wanted, strict=True):
            assert_close(got, want, 4 * n_rows, max(np.abs(want).max(), n_experts / wanted[0].sum()))

    return Task((values, groups, *outputs), check)


def make_gate_backward(shape):
    n_rows, n_experts = shape
    probabilities, chosen, _ = ds_softmax.gate(normal(1, *shape))
    probabilities, out = probabilities.astype(np.float32), unwritten(*shape)
    dvalues, dload = normal(2, n_rows), normal(3, n_experts)
    wanted = sparse_experts.gate_backward(probabilities, chosen, dvalues, dload)
    return Task((probabilities, chosen, dvalues, dload, out), lambda: assert_close(out, wanted, 8, 4))


def make_class_sums(shape):
    experts = make_experts(*shape)
    squares, sums, table = np.abs(normal(1, len(experts.ids))), unwritten(shape[1]), by_class(experts.ids, shape[1])
    wanted = sparse_experts.class_sums(squares, table)
    return Task((squares, table, sums), lambda: assert_close(sums, wanted, shape[0]))


def make_expert_update(shape):
    n_experts, n_classes, width = shape
    experts, moments = make_experts(*shape), make_moments(formulas.ADAM_KIND, np.empty((0, 0), np.float32))
    rows, ids = experts.weights, experts.ids
    moments, gradient = make_moments(formulas.ADAM_KIND, rows), normal(4, *rows.shape)
    squares = (rows**2).sum(1)
    class_squares = sparse_experts.class_sums(squares, by_class(ids, n_classes)).astype(np.float32)
    penalties = tuple(map(np.float32, (2, 3, n_experts, 1e-8)))
    args = gradient, ids, class_squares, penalties, RATES
    wanted = sparse_experts.update(*args, copy.deepcopy(moments), rows.copy(), squares.copy())

    def check():
        for got, want in zip((rows, *moments, squares), wanted, strict=True):
            assert_close(got, want, 16 * width)

    return Task((*args, moments, rows, squares), check)


def make_survivors(shape):
    """Squares are small integers, so there are many ties."""
    experts = make_experts(*shape)
    squares, table = integers(1, 0, 4, len(experts.ids)), by_class(experts.ids, shape[1])
    keep, least = np.full(len(squares), 9, np.uint8), np.float32(2)
    wanted = sparse_experts.survivors(squares, table, least)
    return Task((squares, table, least, keep), lambda: np.testing.assert_array_equal(keep, wanted))


#: (E, L, d)
EXPERTS = ((1, 1, 1), (3, 7, 5)), ((5, 300, 33), (3, 1000, 130))
OPERATIONS = [
    operation("sparse_experts.add_noise", make_noise, *PAIRS),
    operation("sparse_experts.balance", make_balance, *PAIRS),
    operation("sparse_experts.gate_backward", make_gate_backward, *PAIRS),
    operation("sparse_experts.gradient_of_rows", make_gradient_of_rows, *MIXTURES),
    operation(
        "sparse_experts.gradient_of_rows tensor cores",
        make_gradient_of_rows,
        (),
        LARGE_MIXTURES,
        functools.partial(cuda.gradient_of_rows, tensor_cores=True),
        None,
    ),
    operation("sparse_experts.cross_entropy", make_expert_loss, *MIXTURES),
    operation("sparse_experts.cross_entropy of several", make_expert_loss, *(m[1:2] for m in MIXTURES), several=True),
    operation("sparse_experts.cross_entropy in place", make_expert_loss, *(m[1:2] for m in MIXTURES), in_place=True),
    operation("sparse_experts.class_sums", make_class_sums, *EXPERTS),
    operation("sparse_experts.update", make_expert_update, *EXPERTS),
    operation("sparse_experts.survivors", make_survivors, *EXPERTS),
]

BUDGETS = {
    "add_noise_kernel": Budget(24),
    "balance_kernel": Budget(56),
    "class_sums_kernel": Budget(32),
    "cross_entropy_kernel": Budget(56),  # values relative to the best score stay in registers
    "gate_backward_kernel": Budget(32),
    "gradient_of_rows_kernel": Budget(88),
    "gradient_of_rows_mma_kernel": Budget(136, holds=("mma.sync.aligned.m16n8k16",), since=(8, 0)),
    "survivors_kernel": Budget(32),
    "update_kernel": Budget(56),
}
