"""The simulator's threads take turns: kernels do what CUDA says of barriers, errors and ids."""

import numpy as np
import pytest
from numba import cuda

from .simulator import Turns, has_barriers


@cuda.jit(device=True)
def wait():
    cuda.syncthreads()


@cuda.jit
def reverse(x, out):
    """Through shared memory, several times: right only where all have written before anybody reads."""
    held = cuda.shared.array(6, np.float32)
    i = cuda.threadIdx.x
    for _ in range(3):
        held[i] = x[cuda.blockIdx.x, i]
        wait()
        out[cuda.blockIdx.x, i] = held[5 - i]
        wait()


@cuda.jit
def count(x, out):
    if cuda.grid(1) == 3:
        return  # some end before the others meet
    out[cuda.grid(1)] = cuda.syncthreads_count(x[cuda.grid(1)] > 0)


@cuda.jit
def ids(out):
    x, y = cuda.grid(2)
    out[x, y] = x + 10 * y + 100 * cuda.threadIdx.x + 1000 * cuda.laneid


@cuda.jit
def divide(x, out):
    out[cuda.grid(1)] = x[cuda.grid(1)] / x[0]


@cuda.jit
def fall_out(x):
    if cuda.threadIdx.x == 2:
        raise IndexError("out")
    cuda.syncthreads()
    x[0] = 1


def test_barriers_are_found():
    assert [has_barriers(kernel.fn) for kernel in (reverse, count, ids, divide)] == [True, True, False, False]


def test_threads_wait_for_each_other():
    x, out = np.arange(12, dtype=np.float32).reshape(2, 6), np.zeros((2, 6), np.float32)
    reverse[2, 6](x, out)
    np.testing.assert_array_equal(out, x[:, ::-1])


def test_without_waiting_it_is_wrong(monkeypatch):
    monkeypatch.setattr(Turns, "syncthreads", lambda self: None)
    x, out = np.arange(6, dtype=np.float32)[None], np.zeros((1, 6), np.float32)
    reverse[1, 6](x, out)
    assert (out != x[:, ::-1]).any()


def test_those_that_are_left_are_counted():
    x, out = np.array([1, -1, 2, 3, 4]), np.zeros(5, int)
    count[1, 5](x, out)
    np.testing.assert_array_equal(out, [3, 3, 3, 0, 3])


def test_ids():
    out = np.zeros((4, 6), int)
    ids[(2, 2), (2, 3)](out)
    x, y = np.indices(out.shape)
    np.testing.assert_array_equal(out, x + 10 * y + 100 * (x % 2) + 1000 * (x % 2 + 2 * (y % 3)))


def test_errors_name_the_thread():
    with pytest.raises(IndexError, match=r"tid=\[2, 0, 0\] ctaid=\[0, 0, 0\]: out"):
        fall_out[2, 4](np.zeros(1))
    with pytest.raises(IndexError, match=r"tid=\[1, 0, 0\] ctaid=\[1, 0, 0\]: index 3"):
        divide[2, 2](np.ones(3, np.float32), np.zeros(3, np.float32))


def test_errors_of_numpy_are_not_ignored():
    """Whatever the caller of the kernel ignores: as in a thread of its own."""
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning, match="invalid value|divide by zero"):
        divide[1, 2](np.arange(2, dtype=np.float32), np.ones(2, np.float32))
