"""A mixture of sparse experts: gate, scores, answers. `sparse_experts` uses its experts and batches too."""

import functools

import numpy as np

from sparsemax_nb.core.experts import Experts, group
from sparsemax_nb.cuda import ds_softmax as cuda
from sparsemax_nb.reference import ds_softmax

from ..helpers import assert_close, integers, normal
from . import Budget, Task, operation, unwritten

#: (B, E)
PAIRS = ((1, 1), (3, 7), (7, 3)), ((33, 65), (300, 16))
#: (B, E, L, d)
MIXTURES = ((1, 1, 1, 1), (5, 2, 7, 3), (9, 4, 9, 5)), ((65, 5, 130, 33), (70, 3, 300, 70))
#: (B, E, L, d) for tensor cores
LARGE_MIXTURES = (*MIXTURES[0], *MIXTURES[1], (150, 2, 150, 36))


def make_experts(n_experts, n_classes, width, seed=11):
    """Experts with about half of the classes each; the second has none if there are three or more."""
    random = np.random.default_rng(seed)
    has_class = random.random((n_experts, n_classes)) < 0.5
    has_class[0, 0] = True
    has_class[1:2] &= n_experts < 3
    starts = np.append(0, has_class.sum(1).cumsum()).astype(np.int32)
    return Experts(starts, np.nonzero(has_class)[1].astype(np.int32), normal(seed, starts[-1], width))


def make_batch(shape):
    """h sorted by expert, groups, experts.

    The first row's expert is the last one; no row's expert is the third.
    """
    n_rows, n_experts, n_classes, width = shape
    experts, chosen = make_experts(n_experts, n_classes, width), integers(12, 0, n_experts, n_rows).astype(np.int32)
    chosen[chosen == 2] = 0
    chosen[:1] = n_experts - 1
    return normal(1, n_rows, width), group(chosen, experts.starts), experts


def make_gate(shape, in_place=False):
    """Logits are small integers, so there are many ties."""
    logits = integers(1, -3, 4, *shape)
    probabilities = logits if in_place else unwritten(*shape)
    outputs, wanted = (unwritten(shape[0], dtype=np.int32), unwritten(shape[0])), ds_softmax.gate(logits)

    def check():
        assert_close(probabilities, wanted[0], 4 * shape[1], 1)
        np.testing.assert_array_equal(outputs[0], wanted[1])
        assert_close(outputs[1], wanted[2], 4 * shape[1], 1)

    return Task((logits, probabilities, *outputs), check)


def make_expert_scores(shape):
    h, groups, experts = make_batch(shape)
    out, wanted = unwritten(groups.offsets[-1]), ds_softmax.scores(h, groups, experts)
    return Task((h, groups, experts, out), lambda: assert_close(out, wanted, shape[3]))


def make_answers(shape, sort=False):
    """Scores are small integers, so there are many ties. For large k, experts have fewer classes than k."""
    *shape, k = shape
    n_rows, n_experts, n_classes, width = shape
    h, groups, experts = make_batch(shape)
    outputs = unwritten(n_rows, k), unwritten(n_rows, k, dtype=np.int32)
    if sort:
        scores, values = integers(2, -1, 2, groups.offsets[-1]), np.abs(normal(3, n_rows))
        args, wanted = (scores, values, groups, experts), ds_softmax.select(scores.copy(), values, groups, experts, k)
    else:
        h, gate_rows = integers(3, -1, 2, n_rows, width), integers(4, -1, 2, n_experts, width)
        experts = experts._replace(weights=integers(2, -1, 2, *experts.weights.shape))
        args, wanted = (h, gate_rows, experts), ds_softmax.answer(h, gate_rows, experts, k)

    def check():
        assert_close(outputs[0], wanted[0], 64 * n_classes, 1)
        np.testing.assert_array_equal(outputs[1], wanted[1])

    return Task((*args, *outputs), check)


#: (B, E, L, d, k)
ANSWERS = (
    ((1, 1, 1, 1, 1), (2, 3, 9, 4, 7), (9, 2, 9, 3, 3)),
    ((9, 7, 300, 33, 10), (70, 3, 65, 17, 40)),
)
OPERATIONS = [
    operation("ds_softmax.gate", make_gate, *PAIRS),
    operation("ds_softmax.gate in place", make_gate, PAIRS[0][1:2], PAIRS[1], in_place=True),
    operation("ds_softmax.scores", make_expert_scores, *MIXTURES),
    operation(
        "ds_softmax.scores tensor cores",
        make_expert_scores,
        (),
        LARGE_MIXTURES,
        functools.partial(cuda.scores, tensor_cores=True),
        None,
    ),
    operation("ds_softmax.answer", make_answers, *ANSWERS),
    operation("ds_softmax.select", make_answers, *ANSWERS, sort=True),
]

BUDGETS = {
    "answer_kernel": Budget(96),
    "gate_kernel": Budget(40),
    "scores_kernel": Budget(80),
    "scores_mma_kernel": Budget(136, holds=("mma.sync.aligned.m16n8k16", "ld.global.v4.f32"), since=(8, 0)),
    "select_kernel": Budget(56),
}
