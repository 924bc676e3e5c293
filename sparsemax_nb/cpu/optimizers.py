"""Parameter updates on the CPU.

The moments are taken out of their tuple first: numba drops what a parallel loop writes through an attribute of a tuple.
"""

from numba import prange

from ..core import formulas
from ..core.device import cpu_formulas, njit, njit_parallel

_f = cpu_formulas(formulas)
adam, sgd = _f.adam, _f.sgd
ADAM = formulas.ADAM_KIND


@njit_parallel
def update(kind, parameter, gradient, moments, rates):
    """One step of SGD or Adam, in place; all arrays one-dimensional."""
    m = moments.m
    v = moments.v
    if kind == ADAM:
        for i in prange(parameter.size):
            parameter[i], m[i], v[i] = adam(parameter[i], gradient[i], m[i], v[i], rates)
    else:
        for i in prange(parameter.size):
            parameter[i] = sgd(parameter[i], gradient[i], rates)


@njit(error_model="numpy")
def update_range(kind, parameter, gradient, m, v, rates, updated):
    """`update` of a range of parameters in one thread, into `updated`; a flat loop, compiled to vector code."""
    if kind == ADAM:
        for i in range(parameter.size):
            updated[i], m[i], v[i] = adam(parameter[i], gradient[i], m[i], v[i], rates)
    else:
        for i in range(parameter.size):
            updated[i] = sgd(parameter[i], gradient[i], rates)


@njit_parallel(work=lambda kind, parameter, row_ids, gradient, moments, rates: 4 * gradient.size)
def update_rows(kind, parameter, row_ids, gradient, moments, rates):
    """`update` of the rows `row_ids` of a matrix only."""
    m = moments.m
    v = moments.v
    for n in prange(row_ids.size):
        row = row_ids[n]
        for i in range(parameter.shape[1]):
            if kind == ADAM:
                parameter[row, i], m[row, i], v[row, i] = adam(
                    parameter[row, i], gradient[n, i], m[row, i], v[row, i], rates
                )
            else:
                parameter[row, i] = sgd(parameter[row, i], gradient[n, i], rates)
