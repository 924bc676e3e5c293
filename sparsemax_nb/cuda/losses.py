"""Multi-label losses over a score matrix on CUDA."""

import numpy as np

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit
from . import launch
from .ptx import load4

loss_and_gradient = cuda_formulas(formulas).loss_and_gradient
ZERO, ONE = np.float32(0), np.float32(1)
SOFTMAX = formulas.SOFTMAX


@cuda_device
def shifted(loss, score, row):
    """A score as the formula of a `StepLoss` takes it; its shifts are transposed."""
    if loss.kind == SOFTMAX:
        score = (score - loss.shifts[0, row]) - loss.shifts[1, row]
    return score


@cuda_device
def four_shifted(loss, a, b, c, d, first_row):
    """`shifted` for the scores of the rows first_row ... first_row + 3."""
    if loss.kind == SOFTMAX:
        largest, rest = load4(loss.shifts, 0, first_row), load4(loss.shifts, 1, first_row)
        a, b = (a - largest[0]) - rest[0], (b - largest[1]) - rest[1]
        c, d = (c - largest[2]) - rest[2], (d - largest[3]) - rest[3]
    return a, b, c, d


@cuda_jit
def multilabel_kernel(scores, label_rows, loss, scale, dscores, label_loss):
    """One thread owns one label and walks down its column of scores.

    Grid: labels on x. Reads scores (B, L) and writes dscores (B, L), coalesced across neighbouring labels; writes
    label_loss (L,). No shared memory. No atomics.
    """
    label = cuda.grid(1)
    if label < scores.shape[1]:
        # The label's rows are ascending, as is the loop: one cursor finds them all without a search.
        cursor, stop = label_rows.indptr[label], label_rows.indptr[label + 1]
        total = ZERO
        for row in range(scores.shape[0]):
            sign = -ONE
            if cursor < stop and label_rows.rows[cursor] == row:
                sign = ONE
                cursor += 1
            value, gradient = loss_and_gradient(loss, scores[row, label], sign)
            dscores[row, label] = gradient * scale
            total += value * scale
        label_loss[label] = total


def multilabel(scores, label_rows, loss, dscores, label_loss, *, block=launch.BLOCK):
    """Loss of each label, averaged over the rows, and its gradient with respect to the scores.

    `dscores` may be `scores`.
    """
    scale = np.float32(1 / max(scores.shape[0], 1))
    multilabel_kernel[launch.flat(scores.shape[1], block)](scores, label_rows, loss, scale, dscores, label_loss)
