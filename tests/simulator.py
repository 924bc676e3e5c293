"""Numba's CUDA simulator with a faster schedule of the threads of a block.

Numba starts a Python thread for each CUDA thread and polls them in a loop, which competes with them for the
interpreter. Here one CUDA thread runs at a time, up to a barrier or its end, in ascending order, and a kernel without
barriers needs no Python threads. Results and checks are the same.
"""

import contextlib
import contextvars
import functools
import sys
import threading
import types

import numpy as np
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator import kernelapi


def _names(code):
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _globals(function):
    """The values of the global names, closure cells and module attributes that a function uses."""
    names = set(_names(function.__code__))
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    values += [cell.cell_contents for cell in function.__closure__ or ()]
    modules = [value for value in values if isinstance(value, types.ModuleType)]
    return values + [getattr(module, name) for module in modules for name in names if hasattr(module, name)]


@functools.cache
def has_barriers(function):
    """Whether a kernel or a function that it calls uses a name that starts with `sync`, so waits for other threads."""
    seen, left = set(), {function}
    while left:
        seen |= left
        if any(name.startswith("sync") for f in left for name in _names(f.__code__)):
            return True
        found = {getattr(value, "fn", value) for f in left for value in _globals(f) if callable(value)}
        left = {f for f in found if isinstance(f, types.FunctionType) and f.__module__.split(".")[0] != "numpy"} - seen
    return False


class Alone:
    """Stands for the current thread while a CUDA thread runs without a Python thread of its own."""

    def __init__(self, number, block, point):
        self.thread_id, self.blockIdx, self.threadIdx = number, block, kernelapi.Dim3(*point)

    def syncthreads(self):
        raise AssertionError("has_barriers found no barrier in this kernel, but it reached one")

    syncthreads_count = syncthreads_and = syncthreads_or = syncthreads


class Turns(simulator.BlockThread):
    """A CUDA thread that `proceed` runs to its next barrier."""

    def __init__(self, *args):
        super().__init__(*args)
        self._go, self._rests, self.ended = threading.Lock(), threading.Lock(), False
        self._go.acquire()
        self._rests.acquire()

    def run(self):
        super().run()
        self.ended = True
        self._rests.release()

    def syncthreads(self):
        self._rests.release()
        self._go.acquire()
        if self.abort:
            raise RuntimeError("abort flag set on syncthreads call")

    def proceed(self):
        """Run to the next barrier or the end."""
        if self.ident is None:
            self.start()
        else:
            self._go.release()
        self._rests.acquire()


class Block(simulator.BlockManager):
    """The threads of a block, one after another from barrier to barrier."""

    def run(self, grid_point, *args):
        points = list(np.ndindex(*self._block_dim))
        points.sort(key=lambda point: point[::-1])  # x is the fastest
        if has_barriers(self._f):
            self._by_turns(grid_point, points, args)
        else:
            self._in_a_row(grid_point, points, args)

    def _by_turns(self, grid_point, points, args):
        def target():
            self._f(*args)

        everyone = [Turns(target, self, grid_point, point, self._debug) for point in points]
        left = everyone
        while left:
            for thread in left:
                thread.proceed()
                if thread.exception:
                    self._abort(everyone)
                    raise thread.exception[0].with_traceback(thread.exception[1])
            left = [thread for thread in left if not thread.ended]

    @staticmethod
    def _abort(everyone):
        for thread in everyone:
            if thread.ident is not None and not thread.ended:
                thread.abort = True
                thread.proceed()

    def _in_a_row(self, grid_point, points, args):
        block, me = kernelapi.Dim3(*grid_point), threading.get_ident()
        own = threading._active[me]
        try:
            for number, point in enumerate(points):
                threading._active[me] = Alone(number, block, point)
                try:
                    contextvars.Context().run(self._f, *args)  # with NumPy's default error state, as in a new thread
                except Exception as error:
                    message = f"tid={list(point)} ctaid={list(grid_point)}"
                    message += f": {error}" if str(error) else ""
                    raise type(error)(message).with_traceback(error.__traceback__) from None
        finally:
            threading._active[me] = own


def _shared_array(self, shape, dtype, alignment=None):
    """One array per source line, as `FakeCUDAShared.array` does, without its walk over the whole stack."""
    frame = sys._getframe(1)
    key = frame.f_code.co_filename, frame.f_lineno
    if isinstance(shape, int) and shape == 0 or alignment is not None:
        return _original_shared_array(self, shape, dtype, alignment)
    if key not in self._allocations:
        if isinstance(dtype, kernelapi.types.Type):
            dtype = kernelapi.numpy_support.as_dtype(dtype)
        self._allocations[key] = np.empty(shape, dtype)
    return self._allocations[key]


_original_shared_array = kernelapi.FakeCUDAShared.array


@contextlib.contextmanager
def by_turns():
    """Kernels run so inside the block."""
    before = simulator.BlockManager, kernelapi.FakeCUDAShared.array
    simulator.BlockManager, kernelapi.FakeCUDAShared.array = Block, _shared_array
    try:
        yield
    finally:
        simulator.BlockManager, kernelapi.FakeCUDAShared.array = before
