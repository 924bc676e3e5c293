"""CPU kernels called from several threads of Python, after a fork, and with other users of BLAS's threads."""

import concurrent.futures
import os
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
import threadpoolctl

from sparsemax_nb.core import threads
from sparsemax_nb.cpu import embedding, fixed_fan_in

needs_two = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")


def kernel(work=None):
    """A kernel that tells how many threads it was given. Numba can not keep such code on disk."""

    def n_threads(x, others):
        for i in numba.prange(x.size):
            x[i] = i
        return numba.get_num_threads()

    compiled = numba.njit(n_threads, parallel=True)
    compiled.__class__, compiled.work = threads.ParallelKernel, work
    return compiled


def test_parallel_kernels_of_the_library_are_such_kernels():
    assert isinstance(fixed_fan_in._forward, threads.ParallelKernel)
    assert embedding.forward.work is not None


@pytest.fixture
def two_threads():
    before = numba.get_num_threads()
    numba.set_num_threads(2)
    yield
    numba.set_num_threads(before)


# ---------------------------------------------------------------- how many threads


@needs_two
def test_small_work_is_left_to_one_thread(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "MIN_PARALLEL", 100)
    n_threads, nothing = kernel(), np.zeros(0)
    assert [n_threads(np.zeros(n), (nothing, nothing)) for n in (99, 100)] == [1, 2]
    assert [n_threads(np.zeros(40), (np.zeros(n), nothing)) for n in (59, 60)] == [1, 2]
    assert numba.get_num_threads() == 2, "the caller's number is back"


@needs_two
def test_a_kernel_may_say_how_much_it_touches(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "MIN_PARALLEL", 100)
    n_threads, large = kernel(work=lambda x, others: x.size), (np.zeros(1000), np.zeros(1000))
    assert [n_threads(np.zeros(n), large) for n in (99, 100)] == [1, 2]


@needs_two
def test_the_number_of_threads_is_restored_after_an_error(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "MIN_PARALLEL", 100)
    with pytest.raises(TypeError):
        kernel()(np.zeros(3), "no tuple", "too many")
    assert numba.get_num_threads() == 2


# ---------------------------------------------------------------- BLAS


def blas_threads():
    return [info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]


def test_blas_has_one_thread_until_the_last_of_several_users_leaves():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        first, second = threads.one_blas_thread(), threads.one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert set(blas_threads()) == {1}
        first.__exit__(None, None, None)
        assert set(blas_threads()) == {1}, "the second is still inside"
        second.__exit__(None, None, None)
        assert set(blas_threads()) == {2}


def test_blas_is_limited_and_restored_from_any_thread():
    """threadpoolctl lets only the first of several threads set anything, while that one lives."""

    def inside():
        with threads.one_blas_thread():
            return blas_threads()

    with threadpoolctl.threadpool_limits(2, user_api="blas"), concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert set(pool.submit(inside).result()) == {1}
        assert set(blas_threads()) == {2}


def test_concurrent_users_leave_blas_as_it_was():
    def use(_):
        with threads.one_blas_thread():
            return set(blas_threads())

    before = blas_threads()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(use, range(200))) == {1}
    assert blas_threads() == before


# ---------------------------------------------------------------- processes

PREPARE = """
import concurrent.futures, os, sys, threading
import numpy as np
from sparsemax_nb import FixedFanIn, fixed_fan_in_top_k
layer, x = FixedFanIn.random(20_000, 64, 8, seed=0), np.random.default_rng(0).random((64, 64), np.float32)

def call(_=0):
    return b"".join(a.tobytes() for a in fixed_fan_in_top_k(x, layer, 5))

def forked(check):
    pid = os.fork()
    if pid == 0:
        signal.alarm(600)  # which a fork does not inherit
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
AFTER_A_FORK = """
want = call()
for _ in range(3):
    forked(lambda: call() == want)
assert call() == want
"""
IN_THREADS_OF_A_FORK = """
def in_threads():
    barrier = threading.Barrier(4)

    def meet(_):  # whoever comes first starts the new process's threads
        barrier.wait()
        return call()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return set(pool.map(meet, range(4))) | {call()} == {want}

want = call()
sys.setswitchinterval(1e-6)
for _ in range(8):
    forked(in_threads)
sys.setswitchinterval(0.005)
"""
A_FORK_OF_A_FORK = """
def again():
    forked(lambda: call() == want)
    return call() == want

want = call()
forked(again)
"""
BEFORE_A_FORK = """
forked(lambda: len(call()))
"""
FOREIGN_CODE = """
import numba

@numba.njit(parallel=True)
def total(x):
    found = 0.0
    for i in numba.prange(x.size):
        found += x[i]
    return found

ones = np.ones(1000)
assert total(ones) == 1000
forked(lambda: total(ones) == 1000)
"""
MANY_THREADS = """
want = call()
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert set(pool.map(call, range(50))) == {want}
"""
COMPILED_MEANWHILE = """
import numba
want, stop = call(), threading.Event()

def compile_on():
    while not stop.is_set():
        numba.njit(lambda x: x + 1)(1)

thread = threading.Thread(target=compile_on)
thread.start()
for _ in range(5):
    forked(lambda: numba.njit(lambda x: x + 2)(1) == 3 and call() == want)
stop.set()
thread.join()
"""
#: In this order: once the parent has called a kernel, no fork is its first use.
CODES = (
    BEFORE_A_FORK,
    AFTER_A_FORK,
    IN_THREADS_OF_A_FORK,
    A_FORK_OF_A_FORK,
    FOREIGN_CODE,
    MANY_THREADS,
    COMPILED_MEANWHILE,
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_kernels_run_and_give_the_same_bits_in_threads_and_forks(layer, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("\n".join(["import signal", "signal.alarm(600)  # a deadlock ends, too", PREPARE, *CODES]))
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_fork_waits_until_no_lock_is_held():
    """What another thread holds would be held for ever in the new process, which does not have that thread."""
    held = [threads._entered, threads._blas]
    threads._before_fork()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        free = [pool.submit(lock.acquire, blocking=False).result() for lock in held]
    threads._after_fork()
    assert free == [False, False]
    assert threads._blas.acquire(blocking=False)
    threads._blas.release()


def test_the_first_thread_of_a_fork_works_alone(monkeypatch):
    monkeypatch.setattr(threads, "MIN_PARALLEL", 0)
    monkeypatch.setattr(threads, "_forked_thread", threading.get_ident())
    assert kernel()(np.zeros(10), (np.zeros(1),)) == 1
