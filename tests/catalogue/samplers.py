"""Classes drawn uniformly, from an alias table, or from a softmax."""

import numpy as np

from sparsemax_nb.core.alias import alias_table
from sparsemax_nb.reference import samplers

from ..helpers import normal
from . import SEED, Budget, Task, operation, unwritten


def make_draw_uniform(shape):
    *shape, n_classes = shape
    ids = unwritten(*shape, dtype=np.int32)
    wanted = samplers.draw_uniform(SEED, 3, n_classes, shape)
    return Task((SEED, np.uint64(3), n_classes, ids), lambda: np.testing.assert_array_equal(ids, wanted))


def make_draw(shape):
    *shape, n_classes = shape
    weights = np.random.default_rng(1).permutation(1 / np.arange(1.0, n_classes + 1))
    log_p, alias = np.log(weights / weights.sum()).astype(np.float32), alias_table(weights, [0, n_classes])
    outputs = unwritten(*shape, dtype=np.int32), unwritten(*shape)
    wanted = samplers.draw(SEED, 3, log_p, alias, shape)

    def check():
        for got, want in zip(outputs, wanted, strict=True):
            np.testing.assert_array_equal(got, want)

    return Task((SEED, np.uint64(3), log_p, alias, *outputs), check)


def make_draw_softmax(shape, first_row):
    *shape, n_classes = shape
    scores = 3 * normal(1, shape[0], n_classes)
    scores[:, 1::3] = -np.inf  # never drawn
    outputs = unwritten(*shape, dtype=np.int32), unwritten(*shape)
    want_ids, want_log_q, distance = samplers.draw_softmax(scores.copy(), first_row, SEED, 3, shape[1])

    def check():
        is_certain = distance > 1e-6
        assert (~is_certain).sum() <= max(1, 0.002 * distance.size)
        np.testing.assert_array_equal(outputs[0][is_certain], want_ids[is_certain])
        same = outputs[0] == want_ids
        np.testing.assert_allclose(outputs[1][same], want_log_q[same], rtol=0, atol=2e-5)

    return Task((scores, first_row, SEED, np.uint64(3), *outputs), check)


#: (B, M, L)
SHAPES = ((1, 1, 1), (3, 7, 5), (0, 3, 2)), ((33, 65, 1000),)
OPERATIONS = [
    operation("samplers.draw_uniform", make_draw_uniform, *SHAPES),
    operation("samplers.draw", make_draw, *SHAPES),
    operation(
        "samplers.draw_softmax", make_draw_softmax, ((1, 1, 1), (3, 5, 7), (0, 3, 2)), ((33, 20, 1300),), first_row=5
    ),
]

BUDGETS = {
    "draw_kernel": Budget(40),
    "draw_softmax_kernel": Budget(40),
    "exponentials_kernel": Budget(40),
    "draw_uniform_kernel": Budget(40),
}
