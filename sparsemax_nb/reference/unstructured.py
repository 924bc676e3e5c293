"""Unstructured sparse output layer (a baseline): the operation that SciPy and cuSPARSE lack."""

import numpy as np


def gradient_of_values(ht, dscores_t, rows, columns):
    """``dvalues[j] = sum_b dscores_t[rows[j], b] ht[columns[j], b]`` for the weights at (rows[j], columns[j]), (n,)."""
    return (dscores_t[rows].astype(np.float64) * ht[columns]).sum(1)
