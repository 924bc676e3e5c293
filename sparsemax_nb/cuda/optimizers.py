"""Parameter updates on CUDA."""

from ..core import formulas
from ..core.device import cuda, cuda_device, cuda_formulas, cuda_jit
from . import launch

_f = cuda_formulas(formulas)
adam, sgd = _f.adam, _f.sgd
ADAM = formulas.ADAM_KIND


@cuda_device
def updated(kind, value, gradient, moments, index, rates):
    """One number after a step of SGD or Adam; its moments at `index` are updated."""
    if kind == ADAM:
        value, m, v = adam(value, gradient, moments.m[index], moments.v[index], rates)
        moments.m[index] = m
        moments.v[index] = v
        return value
    return sgd(value, gradient, rates)


@cuda_jit
def update_kernel(kind, parameter, gradient, moments, rates):
    """One thread updates one element.

    Grid: elements on x. Reads and writes parameter, m and v (n,), coalesced. No shared memory. No atomics.
    """
    i = cuda.grid(1)
    if i < parameter.size:
        parameter[i] = updated(kind, parameter[i], gradient[i], moments, i, rates)


def update(kind, parameter, gradient, moments, rates, *, block=launch.BLOCK):
    """One step of SGD or Adam, in place; all arrays are one-dimensional."""
    update_kernel[launch.flat(parameter.size, block)](kind, parameter, gradient, moments, rates)


@cuda_jit
def update_rows_kernel(kind, parameter, row_ids, gradient, moments, rates):
    """One block updates one row of the matrix `parameter` (F, D); its threads share the columns.

    Grid: row_ids (n,) on x. Reads gradient (n, D), updates parameter and moments, coalesced. No shared memory. No
    atomics: row_ids are distinct.
    """
    n = cuda.blockIdx.x
    row = row_ids[n]
    for i in range(cuda.threadIdx.x, parameter.shape[1], cuda.blockDim.x):
        parameter[row, i] = updated(kind, parameter[row, i], gradient[n, i], moments, (row, i), rates)


def update_rows(kind, parameter, row_ids, gradient, moments, rates, *, block=launch.BLOCK):
    """One step of SGD or Adam for the rows `row_ids` of a matrix only, in place."""
    if row_ids.size:
        update_rows_kernel[row_ids.size, block](kind, parameter, row_ids, gradient, moments, rates)
