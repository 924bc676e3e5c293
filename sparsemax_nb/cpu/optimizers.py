"""Parameter updates on the CPU."""

from numba import prange

from ..core import backend, formulas

_f = backend.cpu_formulas(formulas)
adam, sgd = _f.adam, _f.sgd
ADAM = formulas.ADAM_KIND


@backend.njit_parallel
def update(kind, parameter, gradient, moments, rates):
    """One step of SGD or Adam, in place; all arrays one-dimensional."""
    if kind == ADAM:
        for i in prange(parameter.size):
            parameter[i], moments.m[i], moments.v[i] = adam(parameter[i], gradient[i], moments.m[i], moments.v[i], rates)
    else:
        for i in prange(parameter.size):
            parameter[i] = sgd(parameter[i], gradient[i], rates)


@backend.njit_parallel
def update_rows(kind, parameter, row_ids, gradient, moments, rates):
    """The same for the rows `row_ids` of a matrix only."""
    for n in prange(row_ids.size):
        row = row_ids[n]
        for i in range(parameter.shape[1]):
            if kind == ADAM:
                parameter[row, i], moments.m[row, i], moments.v[row, i] = adam(
                    parameter[row, i], gradient[n, i], moments.m[row, i], moments.v[row, i], rates
                )
            else:
                parameter[row, i] = sgd(parameter[row, i], gradient[n, i], rates)
