"""How kernels on the CPU share the processor: among Python's threads, after a fork, with BLAS, and with other processes.

Everything that the library needs of Numba's and BLAS's threads is in this file; ``docs/threads.md`` is about using it.
"""

import contextlib
import ctypes
import importlib
import os
import threading

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  the BLAS that Numba calls must be loaded before threadpoolctl looks
import threadpoolctl
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.np.ufunc import parallel

#: A kernel that reads fewer numbers (1 MiB of float32), or multiplies 16 times as many, is left to one thread: that
#: takes a few tenths of a millisecond. Where other processes use the cores, GNU OpenMP's threads spin for milliseconds,
#: waiting for each other.
SMALL = 1 << 18

#: Of Numba's threading layers, the one that must not be entered by two threads at once: it would end the process.
ONE_AT_A_TIME = "workqueue"
_entered = threading.RLock()
#: The only thread that a forked process has at first, where the threads of its parent's pool are gone.
_forked_thread = None


def n_numbers(arguments):
    """How many numbers the arrays among the arguments of a kernel hold, those inside tuples included."""
    total = 0
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            total += argument.size
        elif isinstance(argument, tuple):
            total += n_numbers(argument)
    return total


class ParallelKernel(CPUDispatcher):
    """A function that Numba has compiled with ``parallel=True``, called from Python.

    Any number of Python's threads may call it at once, also after a fork; and small work is done by one thread. Calls
    from other compiled functions do not come by here: their caller has.
    """

    #: ``work(*arguments)``: how many numbers the kernel reads, or a 16th of its multiply-adds; where that is not given,
    #: as many as its arrays hold.
    work = None

    def __call__(self, *arguments):
        if parallel._threading_layer is None:
            numba.get_num_threads()  # chooses the threading layer
        with _entered if parallel._threading_layer == ONE_AT_A_TIME else contextlib.nullcontext():
            # inside: in a forked process, asking for the number makes workqueue start its threads
            before = n_threads = parallel._get_num_threads()
            if threading.get_ident() == _forked_thread:
                n_threads = 1
            elif before > 1:
                numbers = n_numbers(arguments) if self.work is None else self.work(*arguments)
                n_threads = before if numbers >= SMALL else 1
            if n_threads == before:
                return super().__call__(*arguments)
            parallel._set_num_threads(n_threads)
            try:
                return super().__call__(*arguments)
            finally:
                parallel._set_num_threads(before)


# ---------------------------------------------------------------- BLAS

_libraries = [lib for lib in threadpoolctl.ThreadpoolController().lib_controllers if lib.user_api == "blas"]
_blas = threading.Lock()
_n_users, _numbers_before = 0, []


def _set_blas_threads(numbers):
    """Give each BLAS library of the process its number of threads.

    threadpoolctl (from 3.7 on) ignores what a thread sets as long as another one lives that has set something before:
    here the lock does what that is for.
    """
    release = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", lambda **_: None)
    release(force=True)
    for library, number in zip(_libraries, numbers, strict=True):
        library.set_num_threads(number)
    release(force=True)


@contextlib.contextmanager
def one_blas_thread():
    """BLAS, that of NumPy and that of Numba, uses one thread in here: its bits would depend on their number.

    The setting is the whole process's: the first that enters makes it, the last that leaves restores it.
    """
    global _n_users, _numbers_before
    with _blas:
        if not _n_users:
            _numbers_before = [library.num_threads for library in _libraries]
            _set_blas_threads([1] * len(_libraries))
        _n_users += 1
    try:
        yield
    finally:
        with _blas:
            _n_users = max(0, _n_users - 1)  # 0 in a fork of a process that was in here
            if not _n_users:
                _set_blas_threads(_numbers_before)


# ---------------------------------------------------------------- fork


#: In the order in which a thread takes them, that calls a kernel for the first time.
_LOCKS = _entered, global_compiler_lock, parallel._backend_init_thread_lock, _blas


def _before_fork():
    """No lock is held by a thread that the new process will not have."""
    for lock in _LOCKS:
        lock.acquire()


def _after_fork():
    for lock in reversed(_LOCKS):
        lock.release()


def _after_fork_in_child():
    """Make kernels callable in the new process.

    GNU OpenMP is not made for forks: Numba ends a process that enters it with its parent's pool of threads, which are
    gone. But a thread that works alone needs no pool, and one that the new process starts gets a pool of its own. So
    the thread that has come through the fork works alone from now on, in all code that Numba has compiled, and Numba is
    told that its library starts here.
    """
    global _forked_thread, _n_users
    _after_fork()
    if _n_users:  # threads of the parent
        _set_blas_threads(_numbers_before)
        _n_users = 0
    if parallel._threading_layer == "omp":
        pool = importlib.import_module("numba.np.ufunc.omppool")
        ctypes.CFUNCTYPE(None, ctypes.c_int)(pool.launch_threads)(numba.config.NUMBA_NUM_THREADS)
        parallel._set_num_threads(1)
        _forked_thread = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
