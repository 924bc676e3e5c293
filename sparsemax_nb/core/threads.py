"""How CPU kernels share the processor: with other Python threads, after a fork, with BLAS, and with other processes.

All code that depends on the threads of Numba and BLAS is in this file; ``docs/threads.md`` explains how to use it.
"""

import contextlib
import ctypes
import importlib
import os
import threading

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  loads the BLAS that Numba calls, before threadpoolctl searches
import threadpoolctl
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.np.ufunc import parallel

#: A kernel that reads fewer numbers (1 MiB of float32), or does less than 16 times as many multiply-adds, runs on one
#: thread: that takes a few tenths of a millisecond. If other processes use the cores, GNU OpenMP's threads spin for
#: milliseconds while they wait for each other.
MIN_PARALLEL = 1 << 18

#: The threading layer of Numba that must not be entered by two threads at once: it would abort the process.
ONE_AT_A_TIME = "workqueue"
_entered = threading.RLock()
#: The main thread of a forked process, in which the threads of the parent's pool no longer exist.
_forked_thread = None


def n_numbers(arguments):
    """Total number of elements of the arrays among a kernel's arguments, including those inside tuples."""
    total = 0
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            total += argument.size
        elif isinstance(argument, tuple):
            total += n_numbers(argument)
    return total


class ParallelKernel(CPUDispatcher):
    """A function that Numba has compiled with ``parallel=True``, called from Python.

    Any number of Python threads may call it at once, also after a fork; small work runs on one thread. Calls from other
    compiled functions bypass this class: their caller has gone through it.
    """

    #: ``work(*arguments)``: how many numbers the kernel reads, or 1/16 of its multiply-adds; without it, the number of
    #: elements of its arrays.
    work = None

    def __call__(self, *arguments):
        if parallel._threading_layer is None:
            numba.get_num_threads()  # chooses the threading layer
        with _entered if parallel._threading_layer == ONE_AT_A_TIME else contextlib.nullcontext():
            # inside the lock: in a forked process, reading the number makes workqueue start its threads
            before = n_threads = parallel._get_num_threads()
            if threading.get_ident() == _forked_thread:
                n_threads = 1
            elif before > 1:
                numbers = n_numbers(arguments) if self.work is None else self.work(*arguments)
                n_threads = before if numbers >= MIN_PARALLEL else 1
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
    """Set the number of threads of each BLAS library of the process.

    threadpoolctl (3.7 and later) ignores settings of one thread while another thread that has changed them is alive.
    Here the lock `_blas` gives that protection.
    """
    release = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", lambda **_: None)
    release(force=True)
    for library, number in zip(_libraries, numbers, strict=True):
        library.set_num_threads(number)
    release(force=True)


@contextlib.contextmanager
def one_blas_thread():
    """Limit BLAS (NumPy's and Numba's) to one thread in this block: the bits would depend on the number of threads.

    The setting is global: the first block entered makes it, the last block left restores it.
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


#: In the order in which a thread takes them when it calls a kernel for the first time.
_LOCKS = _entered, global_compiler_lock, parallel._backend_init_thread_lock, _blas


def _before_fork():
    """Take all locks, so that none is held by a thread that does not exist in the new process."""
    for lock in _LOCKS:
        lock.acquire()


def _after_fork():
    for lock in reversed(_LOCKS):
        lock.release()


def _after_fork_in_child():
    """Make kernels callable in the new process.

    GNU OpenMP does not support forks: Numba aborts a process that enters it with the pool of its parent, whose threads
    no longer exist. But a thread that works alone needs no pool, and a thread that the new process starts gets its own.
    So the forked thread works alone from now on, in all code that Numba has compiled, and Numba's record of the process
    that started its library is set to this process.
    """
    global _forked_thread, _n_users
    _after_fork()
    if _n_users:  # the users were threads of the parent
        _set_blas_threads(_numbers_before)
        _n_users = 0
    if parallel._threading_layer == "omp":
        pool = importlib.import_module("numba.np.ufunc.omppool")
        ctypes.CFUNCTYPE(None, ctypes.c_int)(pool.launch_threads)(numba.config.NUMBA_NUM_THREADS)
        parallel._set_num_threads(1)
        _forked_thread = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
