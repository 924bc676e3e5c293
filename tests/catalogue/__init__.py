"""The catalogue of CUDA operations: concrete arguments that launch every kernel, and a check of the results.

There is one file per module of the CUDA backend, with its `OPERATIONS` and the `BUDGETS` of its kernels; this file
collects them. An `Operation` names a function of the CUDA backend. Its `make(shape)` returns a `Task`: NumPy arguments
in the form that both backends take, and a function that compares the outputs with `reference`. All test tiers use the
catalogue:

1. the operation on the CPU and in the simulator (tests/test_kernels.py);
2. its compiled kernels and their budgets (tests/contracts);
3. its compiled kernels executed, launched as the backend launches them (tests/compiled);
4. the same as 1 on a CUDA device.

Tiers 2 and 3 use `intercepted`: the backend runs without a device, and every launch goes to the caller.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sparsemax_nb.core import formulas
from sparsemax_nb.internals import cuda_kernels, intercepted_launches

RATES = formulas.Rates(*map(np.float32, (0.125, 0.875, 0.984375, 0.001)))
SEED = np.uint64(12345678901234567890)
#: Shapes (B, n) of operations on whole matrices.
MATRICES = (1, 1), (3, 7), (9, 5), (0, 5)
#: The same, too large for the simulator.
LARGE_MATRICES = (65, 33), (33, 300)


class Task(NamedTuple):
    """Arguments of an operation, and a function that checks the outputs among them."""

    args: tuple
    check: Callable


class Operation(NamedTuple):
    """A function of the CUDA backend with the shapes to test it on."""

    name: str
    function: Callable  # of the CUDA backend
    make: Callable  # shape -> Task
    small: tuple  # shapes for the simulator, at most four: it is slow
    large: tuple  # further shapes for everything else
    twin: str | None = ""  # "module.function" of the CPU backend, or None

    @property
    def shapes(self):
        return self.small + self.large


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: object
    grid: object
    block: object
    shared: int
    args: tuple


class Budget(NamedTuple):
    """The resources that a kernel may use.

    `registers` per thread is a multiple of 8 at or above what the compiler needs today on every architecture: a change
    that costs occupancy fails a test. ``python -m tests.contracts.table`` shows both.
    """

    registers: int
    shared: int = 0  # bytes of static shared memory
    float64: bool = False
    holds: tuple = ()  # instructions that the compiled kernel must contain
    since: tuple = (7, 5)  # the lowest compute capability that supports them


def operation(name, make, small, large, function=None, twin="", **options):
    """The `Operation` `name`: "module.function" of the CUDA backend, then words that distinguish it from others.

    `function` replaces that function; `options` are passed to `make`.
    """
    module, _, attribute = name.partition(" ")[0].partition(".")
    if function is None:
        function = getattr(importlib.import_module(f"sparsemax_nb.cuda.{module}"), attribute)
    make = functools.partial(make, **options) if options else make
    return Operation(name, function, make, small, large, f"{module}.{attribute}" if twin == "" else twin)


def unwritten(*shape, dtype=np.float32):
    """An output array of NaN (or -9): elements that a kernel does not write stay visible."""
    return np.full(shape, np.nan if dtype == np.float32 else -9, dtype)


def make_nan(shape, make_finite):
    """`make_finite(shape)` with one NaN in the first input; only the first element of the last output may be NaN."""
    args = make_finite(shape).args
    args[0][0, 0] = np.nan
    return Task(args, lambda: np.testing.assert_array_equal(np.flatnonzero(np.isnan(args[-1])), [0]))


def all_kernels():
    """{"module.name": kernel} of all functions of the CUDA backend whose names end in ``_kernel``."""
    return {name: getattr(module, attribute) for name, (module, attribute) in cuda_kernels().items()}


def intercepted(receive):
    """The CUDA backend without a device: arrays are NumPy's, each kernel launch calls ``receive(Launch)``."""
    return intercepted_launches(lambda name, *launch: receive(Launch(*launch)))


def recorded():
    """{"module.name": Launch} of every kernel, as its operation launches it for the last of its shapes."""
    names, launches = {id(kernel): name for name, kernel in all_kernels().items()}, {}

    def receive(item):
        launches[names[id(item.kernel)]] = item

    with intercepted(receive):
        for operation in OPERATIONS:
            operation.function(*operation.make(operation.shapes[-1]).args)
    return launches


def run_on(backend, function, task):
    """Runs the operation on the device of `backend`, copies the outputs back into the task's arrays and checks them."""
    on_device = {}
    if backend.device == "cpu":
        function(*task.args)
        return task.check()

    def to_device(value):
        if isinstance(value, np.ndarray):
            if id(value) not in on_device:
                transposed = not value.flags.c_contiguous
                on_device[id(value)] = value, backend.array(value.T).T if transposed else backend.array(value)
            return on_device[id(value)][1]
        if isinstance(value, tuple):
            items = map(to_device, value)
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    function(*to_device(task.args))
    for host, device in on_device.values():
        host[...] = backend.numpy(device)
    return task.check()


_FILES = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
OPERATIONS = tuple(operation for file in _FILES.values() for operation in file.OPERATIONS)
#: {name of an operation: the file that it comes from}
FILE_OF = {operation.name: module for module, file in _FILES.items() for operation in file.OPERATIONS}
BUDGETS = {f"{module}.{name}": budget for module, file in _FILES.items() for name, budget in file.BUDGETS.items()}
