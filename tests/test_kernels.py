"""Tier 1: every operation of the catalogue on the CPU and on CUDA (simulator or device) against `reference`."""

import importlib

import numba
import numpy as np
import pytest

from sparsemax_nb.core.device import SIMULATOR

from .catalogue import BUDGETS, OPERATIONS, all_kernels, recorded, run_on
from .conftest import DEVICES
from .helpers import threads


def _cases():
    for operation in OPERATIONS:
        few = operation.small if SIMULATOR else operation.shapes
        for device, shapes in ("cpu", operation.shapes if operation.twin else ()), ("cuda", few):
            for shape in shapes if device in DEVICES else ():
                yield pytest.param(device, operation, shape, id=f"{operation.name}-{shape}-{device}")


def _twin(operation):
    module, _, function = operation.twin.partition(".")
    return getattr(importlib.import_module(f"sparsemax_nb.cpu.{module}"), function)


@pytest.mark.twins
@pytest.mark.parametrize(("backend", "operation", "shape"), list(_cases()), indirect=["backend"])
def test_equals_reference(backend, operation, shape):
    function = _twin(operation) if backend.device == "cpu" else operation.function
    run_on(backend, function, operation.make(shape))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.twin], ids=lambda operation: operation.name)
def test_same_bits_with_any_number_of_threads(operation):
    """All that the CPU backend writes, for the largest shape, with one thread, two and all that there are."""

    def bits(n_threads):
        args = operation.make(operation.shapes[-1]).args
        with threads(n_threads):
            _twin(operation)(*args)
        return list(_array_bytes(args))

    one = bits(1)
    assert bits(2) == one
    assert bits(numba.config.NUMBA_NUM_THREADS) == one


def _array_bytes(value):
    if isinstance(value, tuple):
        for item in value:
            yield from _array_bytes(item)
    elif isinstance(value, np.ndarray):
        yield value.tobytes()


def test_the_catalogue_knows_every_kernel():
    """Each kernel is launched by an operation and has a budget; no budget is left of a kernel that is gone."""
    assert set(recorded()) == set(all_kernels()) == set(BUDGETS)
