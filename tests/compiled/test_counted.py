"""The benchmark that counts what kernels do, on small sizes."""

import importlib
from unittest import mock

import ptxsim
from bench import counted
from tests import ptx


def compiled(kernel, types, cc):
    """What `ptxsim.kernel_ptx` gives, of what is compiled already for the other tests of this folder."""
    return [ptx.ptx_of_types(kernel, types, cc)]


def test_counted_at_smoke_size():
    with mock.patch.object(ptxsim, "kernel_ptx", compiled):
        (row,) = counted.main(["--smoke", "--device", "cpu"])
    assert [cells[0] for cells in row["table"]["rows"]] == list(counted.CASES)
    assert "Computed, not measured" in row["notes"][0]
    kernel = importlib.import_module("sparsemax_nb.cuda.fixed_fan_in").step_kernel
    assert hasattr(kernel, "py_func"), "the kernels are back in their modules"
