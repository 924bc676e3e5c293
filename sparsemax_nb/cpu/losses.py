"""Multi-label losses over a score matrix on the CPU."""

import numpy as np
from numba import prange

from ..core import backend, formulas

loss_and_gradient = backend.cpu_formulas(formulas).loss_and_gradient
ZERO, ONE = np.float32(0), np.float32(1)
SPAN = 64


@backend.njit_parallel
def multilabel(scores, positives, loss, dscores, label_loss):
    """Loss of every label, averaged over the rows, and its gradient by the scores; `dscores` may be `scores`."""
    n_rows, n_labels = scores.shape
    scale = ONE / np.float32(max(n_rows, 1))
    for part in prange((n_labels + SPAN - 1) // SPAN):
        first, n = part * SPAN, min(SPAN, n_labels - part * SPAN)
        total = np.zeros(SPAN, np.float32)
        cursor = np.empty(SPAN, np.int64)
        next_row = np.full(SPAN, -1, np.int64)  # the next row in which each label is positive
        for j in range(n):
            cursor[j] = positives.indptr[first + j]
            if cursor[j] < positives.indptr[first + j + 1]:
                next_row[j] = positives.rows[cursor[j]]
        for row in range(n_rows):
            hits = 0
            for j in range(n):
                sign = ONE if next_row[j] == row else -ONE
                hits += next_row[j] == row
                value, gradient = loss_and_gradient(loss, scores[row, first + j], sign)
                dscores[row, first + j] = gradient * scale
                total[j] += value * scale
            if hits:
                for j in range(n):
                    if next_row[j] == row:
                        cursor[j] += 1
                        more = cursor[j] < positives.indptr[first + j + 1]
                        next_row[j] = positives.rows[cursor[j]] if more else -1
        label_loss[first : first + n] = total[:n]
