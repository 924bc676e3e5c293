"""Weighted sum of embedding rows: the first layer over sparse bags of words."""

import numpy as np


def forward(rows, table):
    """``out[b] = sum_j weights[j] table[ids[j]]`` over the entries j of row b; rows = SparseRows, table (F, D)."""
    out = np.zeros((len(rows.indptr) - 1, table.shape[1]))
    for b in range(len(out)):
        part = slice(rows.indptr[b], rows.indptr[b + 1])
        out[b] = rows.weights[part].astype(np.float64) @ table[rows.ids[part]]
    return out


def backward(columns, dout):
    """Gradient of the table rows in use, (n, D): ``dtable[i] = sum_j weights[j] dout[rows[j]]`` over column i."""
    gradient = np.zeros((len(columns.ids), dout.shape[1]))
    for i in range(len(gradient)):
        part = slice(columns.indptr[i], columns.indptr[i + 1])
        gradient[i] = columns.weights[part].astype(np.float64) @ dout[columns.rows[part]]
    return gradient
