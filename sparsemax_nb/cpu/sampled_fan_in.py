"""Some labels of a fixed fan-in layer for each row, on the CPU: the scores and gradients of a sampled softmax.

A thread owns rows of h, then labels, and no two write to the same number: the bits do not depend on their number.
"""

import numpy as np
from numba import prange

from ..core.device import njit, njit_parallel

ZERO = np.float32(0)


@njit
def _scores_of_row(h, layer, indptr, ids, b, out):
    """The scores of row b's entries: those of the rows b, b + B, ... of the CSR structure."""
    row, fan_in = h[b], layer.indices.shape[1]
    for r in range(b, indptr.size - 1, h.shape[0]):
        for e in range(indptr[r], indptr[r + 1]):
            label = ids[e]
            total = layer.bias[label]
            for k in range(fan_in):
                total += layer.values[label, k] * row[layer.indices[label, k]]
            out[e] = total


@njit_parallel(work=lambda h, layer, indptr, ids, out: ids.size * layer.values.shape[1])
def scores(h, layer, indptr, ids, out):
    """The score of label ``ids[e]`` for the row of h that entry e belongs to, (n,).

    The entries of row r of the CSR structure belong to row r mod B of h.
    """
    for b in prange(h.shape[0]):
        _scores_of_row(h, layer, indptr, ids, b, out)


@njit
def _gradient_of_row(layer, entries, b, n_rows, drow):
    """dh of row b, from its entries in order."""
    drow[:] = ZERO
    for r in range(b, entries.indptr.size - 1, n_rows):
        for e in range(entries.indptr[r], entries.indptr[r + 1]):
            label, g = entries.ids[e], entries.weights[e]
            for k in range(layer.indices.shape[1]):
                drow[layer.indices[label, k]] += layer.values[label, k] * g


@njit
def _gradient_of_label(h, layer, columns, i, dvalues, dbias):
    """dvalues and dbias of label ``columns.ids[i]``, from its entries in the order of their rows."""
    label = columns.ids[i]
    dvalues[label], dbias[label] = ZERO, ZERO
    for j in range(columns.indptr[i], columns.indptr[i + 1]):
        row, g = h[columns.rows[j]], columns.weights[j]
        for k in range(layer.indices.shape[1]):
            dvalues[label, k] += g * row[layer.indices[label, k]]
        dbias[label] += g


@njit_parallel(work=lambda h, layer, entries, *_: 2 * entries.ids.size * layer.values.shape[1] + h.size)
def backward(h, layer, entries, columns, dh, dvalues, dbias):
    """Gradients of ``sum(entries.weights * scores)``: dh (overwritten), dvalues and dbias of the labels that occur.

    `columns` are the same entries by label, with rows of h.
    """
    n_rows = h.shape[0]
    for b in prange(n_rows):
        _gradient_of_row(layer, entries, b, n_rows, dh[b])
    for i in prange(columns.ids.size):
        _gradient_of_label(h, layer, columns, i, dvalues, dbias)
