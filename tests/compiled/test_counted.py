"""The benchmark that counts what kernels do, on small sizes."""

import importlib

from bench import counted


def test_counted_at_smoke_size():
    (row,) = counted.main(["--smoke", "--device", "cpu"])
    assert [cells[0] for cells in row["table"]["rows"]] == list(counted.CASES)
    assert "Computed, not measured" in row["notes"][0]
    kernel = importlib.import_module("sparsemax_nb.cuda.fixed_fan_in").step_kernel
    assert hasattr(kernel, "py_func"), "the kernels are back in their modules"
