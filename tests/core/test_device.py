"""Placement: which arrays count as what, where they are put, and how formulas are compiled for both processors."""

import types

import numba
import numpy as np
import pytest

from sparsemax_nb.core import device as placement
from sparsemax_nb.core import formulas, rng

from ..helpers import ForeignArray

pytestmark = pytest.mark.quick

IN_SIMULATOR = pytest.mark.skipif(not placement.SIMULATOR, reason="SimArray stands for CUDA in the simulator only")


@pytest.mark.parametrize(
    ("value", "device"),
    [
        (np.zeros(3), "cpu"),
        (np.zeros(()), "cpu"),
        (np.zeros(3).view(placement.SimArray), "cuda"),
        (ForeignArray(np.zeros(3)), "cuda"),
        ([1.0], None),
        (1.0, None),
        (np.float32(1), None),
        (None, None),
    ],
)
def test_device_of(value, device):
    assert placement.device_of(value) == device


def test_arrays_are_made_where_they_should_be(backend):
    for array in (
        placement.asarray(np.arange(6.0), backend.device),
        placement.empty((2, 3), np.float32, backend.device),
        placement.zeros(3, np.int32, backend.device),
    ):
        assert placement.device_of(array) == backend.device
    empty, zeros = placement.empty((2, 3), np.float32, backend.device), placement.zeros(3, np.int32, backend.device)
    assert (empty.shape, empty.dtype, zeros.shape, zeros.dtype) == ((2, 3), np.float32, (3,), np.int32)
    assert not backend.numpy(zeros).any()


def test_asarray_makes_contiguous_and_converts(backend):
    transposed = np.arange(6, dtype=np.int64).reshape(2, 3).T
    placed = placement.asarray(transposed, backend.device, np.float32)
    assert placed.flags.c_contiguous
    assert placed.dtype == np.float32
    back = placement.to_numpy(placed)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, transposed)
    assert placement.device_of(placement.asarray(placed, backend.device)) == backend.device
    assert placement.device_of(placement.asarray(placed, "cpu")) == "cpu"


def test_nothing_is_copied_that_need_not_be():
    array = np.zeros((3, 2), np.float32)
    assert placement.asarray(array, "cpu") is array
    assert placement.as_native(array) is array
    assert np.shares_memory(placement.to_numpy(array), array)


@IN_SIMULATOR
def test_sim_arrays_keep_their_placement():
    """Views and results of arithmetic are placed like their arrays; `to_numpy` gives plain arrays, without a copy."""
    array = placement.asarray(np.ones((2, 3)), "cuda")
    for made in (array.T, array[0], array + 1, array.astype(np.float32), array.reshape(-1), placement.as_native(array)):
        assert placement.device_of(made) == "cuda"
    plain = placement.to_numpy(array)
    assert type(plain) is np.ndarray
    assert np.shares_memory(plain, array)
    assert placement.module_of("cuda") is np
    placement.synchronize()


@pytest.mark.parametrize(("device", "found"), [("cpu", "cpu"), ("auto", "cpu"), ("cuda", "cuda")])
def test_resolve_device(device, found, monkeypatch):
    """In the simulator 'auto' means the CPU: it must be asked for."""
    monkeypatch.setattr(placement, "cuda_problem", lambda: None)
    monkeypatch.setattr(placement, "SIMULATOR", True)
    assert placement.resolve_device(device) == found


def test_auto_takes_a_device(monkeypatch):
    monkeypatch.setattr(placement, "cuda_problem", lambda: None)
    monkeypatch.setattr(placement, "SIMULATOR", False)
    assert placement.resolve_device() == "cuda"


def test_without_cuda_nothing_falls_back(monkeypatch):
    monkeypatch.setattr(placement, "cuda_problem", lambda: "no CUDA device and driver were found")
    assert not placement.cuda_available()
    assert placement.resolve_device("auto") == "cpu"
    with pytest.raises(RuntimeError, match="^device='cuda' cannot be used: no CUDA device.*; use device='cpu'$"):
        placement.resolve_device("cuda")
    with pytest.raises(RuntimeError, match="^cannot place an array on CUDA: no CUDA device and driver were found$"):
        placement.asarray(np.zeros(3), "cuda")


@pytest.mark.parametrize(
    ("available", "module", "problem"), [(False, None, "no CUDA device"), (True, None, "CuPy is not")]
)
def test_cuda_problem_says_why(available, module, problem, monkeypatch):
    monkeypatch.setattr(placement, "SIMULATOR", False)
    monkeypatch.setattr(placement, "cupy", module)
    monkeypatch.setattr(placement.cuda, "is_available", lambda: available)
    assert placement.cuda_problem.__wrapped__().startswith(problem)


@pytest.mark.parametrize("device", ["gpu", "", None, 0])
def test_unknown_device(device):
    with pytest.raises(ValueError, match="^device must be 'auto', 'cpu' or 'cuda', got "):
        placement.resolve_device(device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_backend_is_the_module_that_computes_there(device):
    assert placement.backend_of(device, "fixed_fan_in").__name__ == f"sparsemax_nb.{device}.fixed_fan_in"


# ---------------------------------------------------------------- formulas compiled for both processors


def test_formulas_stay_plain_and_compile_once():
    compiled = placement.cpu_formulas(formulas)
    assert isinstance(formulas.adam, types.FunctionType)
    assert isinstance(compiled.adam, numba.core.registry.CPUDispatcher)
    assert compiled is placement.cpu_formulas(formulas)
    assert compiled is not placement.cpu_formulas(rng)
    assert compiled.adam.__doc__ == formulas.adam.__doc__
    names = {name for name, value in vars(formulas).items() if getattr(value, "__module__", "") == formulas.__name__}
    names -= {"Threshold", "Moments", "Rates", "StepLoss"}
    assert set(vars(compiled)) == set(vars(placement.cuda_formulas(formulas))) == names


def test_compiled_formulas_call_compiled_formulas():
    """`random_word` calls `philox`, `loss_and_gradient` both losses: not the plain functions of the module."""
    assert placement.cpu_formulas(rng).random_word.py_func.__globals__["philox"] is placement.cpu_formulas(rng).philox
    inner = placement.cpu_formulas(formulas).loss_and_gradient.py_func.__globals__
    assert inner["squared_hinge"] is placement.cpu_formulas(formulas).squared_hinge
