"""Some labels of a fixed fan-in layer for each row: the scores and gradients of a sampled softmax.

The entries of a CSR structure say which. It has the rows of h once or several times: its row r belongs to row r mod B.
"""

import numpy as np

from . import fixed_fan_in


def row_of_entries(indptr, n_rows):
    """The row of h of each entry, (n,)."""
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)) % max(n_rows, 1)


def scores(h, layer, indptr, ids):
    """The score of label ``ids[e]`` for the row of h that entry e belongs to, (n,)."""
    row = row_of_entries(indptr, len(h))[:, None]
    return layer.bias[ids] + np.einsum("ek,ek->e", h[row, layer.indices[ids]], layer.values[ids], dtype=np.float64)


def backward(h, layer, entries):
    """Gradients of ``sum(entries.weights * scores)`` with respect to h, values and bias."""
    dscores = np.zeros((len(h), len(layer.bias)))
    np.add.at(dscores, (row_of_entries(entries.indptr, len(h)), entries.ids), entries.weights)
    return fixed_fan_in.backward(h, layer, dscores)
