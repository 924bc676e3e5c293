"""The catalogue of the CUDA kernels: operations on concrete arguments that launch them, with a check of the outcome.

A file for each module of the CUDA backend, with its `OPERATIONS` and the `BUDGETS` of its kernels; this one collects
them. An `Operation` names a function of the CUDA backend; its `make(shape)` gives a `Task`: NumPy arguments as both
backends take them, and a function that compares the outputs with `reference`. One catalogue serves all tiers:

1. the operation on the CPU and in the simulator (tests/test_kernels.py);
2. what its kernels look like when compiled, with their budgets (tests/contracts);
3. its compiled kernels executed, launched as the backend launches them (tests/compiled);
4. on a CUDA device, the same as 1.

`intercepted` makes 2 and 3 possible: it lets the backend run without a device and hands every launch to the caller.
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
#: (B, n) of operations on whole matrices
MATRICES = (1, 1), (3, 7), (9, 5), (0, 5)
LARGE_MATRICES = (65, 33), (33, 300)


class Task(NamedTuple):
    args: tuple
    check: Callable


class Operation(NamedTuple):
    name: str
    function: Callable  # of the CUDA backend
    make: Callable  # shape -> Task
    small: tuple  # shapes for the simulator (at most four)
    large: tuple  # and those for everything that is faster
    twin: str | None = ""  # "module.function" of the CPU backend; None where it has none

    @property
    def shapes(self):
        return self.small + self.large


class Launch(NamedTuple):
    kernel: object
    grid: object
    block: object
    shared: int
    args: tuple


class Budget(NamedTuple):
    """What a kernel may need.

    Registers a thread: a multiple of 8 at or above what the compiler needs today for any of the architectures, so that
    a change which costs occupancy is noticed (`python -m tests.contracts.table` shows both).
    """

    registers: int
    shared: int = 0  # static, bytes
    float64: bool = False
    holds: tuple = ()  # instructions that the kernel promises
    since: tuple = (7, 5)  # the least compute capability that has them


def operation(name, make, small, large, function=None, twin="", **options):
    """The `Operation` of the CUDA backend's function `name`, "module.function" and what tells it from others of it.

    `function` launches something else than that function; `options` go to `make`.
    """
    module, _, attribute = name.partition(" ")[0].partition(".")
    if function is None:
        function = getattr(importlib.import_module(f"sparsemax_nb.cuda.{module}"), attribute)
    make = functools.partial(make, **options) if options else make
    return Operation(name, function, make, small, large, f"{module}.{attribute}" if twin == "" else twin)


def unwritten(*shape, dtype=np.float32):
    """An output array: what the kernel forgets stays NaN (or -9)."""
    return np.full(shape, np.nan if dtype == np.float32 else -9, dtype)


def make_nan(shape, usual):
    """One NaN comes in and is seen in the last of the outputs, in the first place and nowhere else."""
    args = usual(shape).args
    args[0][0, 0] = np.nan
    return Task(args, lambda: np.testing.assert_array_equal(np.flatnonzero(np.isnan(args[-1])), [0]))


def all_kernels():
    """{"module.name": kernel} of everything in the CUDA backend that is called ..._kernel."""
    return {name: getattr(module, attribute) for name, (module, attribute) in cuda_kernels().items()}


def intercepted(receive):
    """The CUDA backend without a device: arrays are NumPy's, each launch of a kernel becomes ``receive(Launch)``."""
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
    """Run the operation on the device of `backend`: arguments there, outputs back into the task's arrays; check."""
    placed = {}
    if backend.device == "cpu":
        function(*task.args)
        return task.check()

    def place(value):
        if isinstance(value, np.ndarray):
            if id(value) not in placed:
                turned = not value.flags.c_contiguous
                placed[id(value)] = value, backend.array(value.T).T if turned else backend.array(value)
            return placed[id(value)][1]
        if isinstance(value, tuple):
            items = map(place, value)
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    function(*place(task.args))
    for host, device in placed.values():
        host[...] = backend.numpy(device)
    return task.check()


_FILES = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
OPERATIONS = tuple(operation for file in _FILES.values() for operation in file.OPERATIONS)
#: {name of an operation: the file that it comes from}
FILE_OF = {operation.name: module for module, file in _FILES.items() for operation in file.OPERATIONS}
BUDGETS = {f"{module}.{name}": budget for module, file in _FILES.items() for name, budget in file.BUDGETS.items()}
