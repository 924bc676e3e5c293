"""Choice of the inputs of sparse linear functions: greedy least squares over all inputs. CPU only."""

import numpy as np
from numba import prange

from ..core.device import njit, njit_parallel

ZERO = np.float32(0)


@njit
def _choose(covariance, wanted, ridge, residual, pivots, rows, gains, chosen, solution):
    """Choose the inputs of one group, from `wanted` (n, H); returns how many were chosen.

    This is the Cholesky factorization of the covariance, one pivot at a time. ``rows[k]`` (H,) is its row of pivot k,
    ``pivots`` what is left of the diagonal, and ``residual`` (n, H) what is left of `wanted`. An input with residual r
    and pivot d would explain ``r^2 / d``: so a step costs k + n vectors of length H, and nothing is factorized twice.
    """
    n, n_inputs = residual.shape
    residual[:] = wanted
    for j in range(n_inputs):
        pivots[j] = covariance[j, j] + ridge
    for k in range(chosen.size):
        gains[:] = ZERO
        for i in range(n):
            left = residual[i]
            for j in range(n_inputs):
                gains[j] += left[j] * left[j]
        for j in range(n_inputs):
            gains[j] /= pivots[j]
        for p in range(k):
            gains[chosen[p]] = ZERO
        best = np.argmax(gains)
        if not gains[best] > ZERO:
            return k
        row = rows[k]
        row[:] = covariance[best]
        row[best] += ridge
        for p in range(k):
            factor, other = rows[p, best], rows[p]
            for j in range(n_inputs):
                row[j] -= factor * other[j]
        root = np.sqrt(pivots[best])
        for j in range(n_inputs):
            row[j] /= root
            pivots[j] = max(pivots[j] - row[j] * row[j], ridge)
        for i in range(n):
            left, factor = residual[i], residual[i, best] / root
            solution[i, k] = factor
            for j in range(n_inputs):
                left[j] -= factor * row[j]
        chosen[k] = best
    return chosen.size


@njit
def _solve_group(covariance, correlations, ridge, indices, values, group, group_size):
    """Choose the inputs of one group and solve for the values of its labels."""
    n_inputs, fan_in = covariance.shape[0], indices.shape[1]
    wanted = correlations[group * group_size : (group + 1) * group_size]
    n = wanted.shape[0]
    chosen, solution = np.empty(fan_in, np.int64), np.zeros((n, fan_in), np.float32)
    rows = np.empty((fan_in, n_inputs), np.float32)
    residual, pivots, gains = np.empty((n, n_inputs), np.float32), np.empty(n_inputs, np.float32), rows[-1].copy()
    n_chosen = _choose(covariance, wanted, ridge, residual, pivots, rows, gains, chosen, solution)
    for k in range(n_chosen - 1, -1, -1):
        for i in range(n):
            value = solution[i, k]
            for p in range(k + 1, n_chosen):
                value -= rows[k, chosen[p]] * solution[i, p]
            solution[i, k] = value / rows[k, chosen[k]]
    indices[group] = -1
    for k in range(n_chosen):
        indices[group, k] = chosen[k]
    values[group * group_size : group * group_size + n] = solution


@njit_parallel
def _matching_pursuit(covariance, correlations, ridge, indices, values, group_size):
    for group in prange(indices.shape[0]):
        _solve_group(covariance, correlations, ridge, indices, values, group, group_size)


def matching_pursuit(covariance, correlations, ridge, fan_in, group_size, indices, values):
    """Inputs and values of L linear functions with `fan_in` inputs each: indices (L / G, K) int32, values (L, K).

    See the definition in ``reference/matching_pursuit.py``. One thread owns a group; it needs K + G vectors of length
    H, and ``K^2 / 2 + 2 K G`` multiply-adds of them.
    """
    _matching_pursuit(covariance, correlations, np.float32(ridge), indices, values, group_size)
