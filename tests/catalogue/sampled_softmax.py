"""Softmax over sampled classes."""

import numpy as np

from sparsemax_nb.core import sparse
from sparsemax_nb.reference import sampled_softmax

from ..helpers import assert_close, integers, normal
from . import Budget, Task, operation, unwritten


def make_scores(shape):
    n_rows, n_samples, n_classes, width = shape
    h, weights = normal(1, n_rows, width), normal(2, n_classes, width)
    ids, out = integers(3, 0, n_classes, n_rows, n_samples).astype(np.int32), unwritten(n_rows, n_samples)
    wanted = sampled_softmax.scores(h, weights, ids)
    return Task((h, weights, ids, out), lambda: assert_close(out, wanted, width))


def make_softmax(shape, shared=False, mask_hits=False):
    n_rows, n_samples = shape
    counts = integers(7, 0, 4, n_rows).astype(np.int32)  # targets per row; some rows have none
    counts[:1] = 2
    indptr, indices = np.append(0, np.cumsum(counts)), integers(4, 0, 5, counts.sum())
    labels = sparse.Labels(indptr.astype(np.int32), indices.astype(np.int32))
    n, n_id_rows = len(labels.indices), 1 if shared else n_rows
    scores, target_scores, ids = (
        3 * normal(1, *shape),
        3 * normal(2, n),
        integers(3, 0, 5, n_id_rows, n_samples).astype(np.int32),
    )
    if n_rows:
        ids[0, 0] = labels.indices[0]  # an accidental hit
    log_q, log_q_targets = normal(5, n_id_rows, n_samples) - 2, normal(6, n) - 2
    inputs = scores, ids, log_q, target_scores, labels, log_q_targets, mask_hits
    wanted, outputs = sampled_softmax.softmax(*inputs), (unwritten(n), unwritten(*shape), unwritten(n))

    def check():
        for got, want, scale in zip(outputs, wanted, (10, 1, 1), strict=True):
            assert_close(got, want, n_samples + 1, scale * 10)  # exponentials of scores as large as 10

    return Task((*inputs, *outputs), check)


OPERATIONS = [
    operation("sampled_softmax.scores", make_scores, ((1, 1, 1, 1), (3, 5, 4, 7), (0, 2, 3, 2)), ((33, 65, 50, 19),)),
    *(
        operation(
            f"sampled_softmax.softmax {' '.join(options)}".strip(),
            make_softmax,
            ((1, 1), (3, 7), (0, 3)),
            ((33, 65), (5, 300)),
            **options,
        )
        for options in ({}, {"shared": True}, {"mask_hits": True}, {"shared": True, "mask_hits": True})
    ),
]

BUDGETS = {
    "scores_kernel": Budget(40),
    "softmax_kernel": Budget(64),
}
