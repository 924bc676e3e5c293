"""Parameter updates."""

import numpy as np

from ..core import formulas


def update(kind, parameter, gradient, moments, rates):
    """One step of SGD or Adam; returns (parameter, m, v) in float64."""
    p, g = np.asarray(parameter, np.float64), np.asarray(gradient, np.float64)
    step_size, beta1, beta2, epsilon = (float(r) for r in rates)
    if kind == formulas.SGD_KIND:
        return p - step_size * g, moments.m, moments.v
    m = beta1 * moments.m.astype(np.float64) + (1 - beta1) * g
    v = beta2 * moments.v.astype(np.float64) + (1 - beta2) * g**2
    return p - step_size * m / (np.sqrt(v) + epsilon), m, v


def update_rows(kind, parameter, row_ids, gradient, moments, rates):
    """`update` of the rows `row_ids` (n,) only; other rows and their moments do not change (lazy update)."""
    p = np.array(parameter, np.float64)
    m, v = np.array(moments.m, np.float64), np.array(moments.v, np.float64)
    part = formulas.Moments(moments.m[row_ids], moments.v[row_ids]) if kind == formulas.ADAM_KIND else moments
    p[row_ids], new_m, new_v = update(kind, parameter[row_ids], gradient, part, rates)
    if kind == formulas.ADAM_KIND:
        m[row_ids], v[row_ids] = new_m, new_v
    return p, m, v
