"""Losses of scores with several labels per row."""

import functools

from sparsemax_nb.core import formulas, sparse
from sparsemax_nb.reference import losses

from ..helpers import assert_close, label_matrix, normal
from . import LARGE_MATRICES, MATRICES, Budget, Task, make_nan, operation, unwritten


def make_multilabel(shape, loss):
    scores = normal(1, *shape) * 3
    matrix = label_matrix(*shape)
    label_rows = sparse.by_label(sparse.as_labels(matrix, shape[0], "cpu", shape[1]), shape[1])
    dscores, label_loss = unwritten(*shape), unwritten(shape[1])

    def check():
        want_loss, want_dscores = losses.multilabel(scores, label_rows, loss)
        assert_close(label_loss, want_loss, shape[0])
        assert_close(dscores, want_dscores, min(shape[0], 1))

    return Task((scores, label_rows, loss, dscores, label_loss), check)


def _operations():
    for loss, code in formulas.LOSSES.items():
        multilabel = functools.partial(make_multilabel, loss=code)
        yield operation(f"losses.multilabel {loss}", multilabel, MATRICES, LARGE_MATRICES)
        yield operation(
            f"losses.multilabel {loss} of NaN", make_nan, MATRICES[1:2], LARGE_MATRICES[:1], make_finite=multilabel
        )


OPERATIONS = list(_operations())

BUDGETS = {
    "multilabel_kernel": Budget(40),
}
