"""Dense products that are added to what is there (tests/catalogue/matmul.py holds the plain ones)."""

import numpy as np
import pytest

from sparsemax_nb.core.device import asarray, backend_of, to_numpy

from .helpers import assert_close, normal


@pytest.mark.parametrize("shape", [(5, 3, 7), (70, 2, 40), (2, 70, 1), (3, 4, 70), (0, 3, 2), (3, 2, 0)])
@pytest.mark.parametrize("transposed", [False, True])
def test_adds_to_its_output(backend, monkeypatch, shape, transposed):
    m, n, k = shape
    if backend.device == "cuda":
        monkeypatch.setattr(backend_of("cuda", "matmul"), "MAX_SCRATCH", 4 * (n + k))  # four rows at once
    a, b, before = normal(1, m, k), normal(2, k, n), normal(3, m, n)
    out, left = backend.array(before), backend.array(a.T).T if transposed else backend.array(a)
    backend_of(backend.device, "matmul").matmul(left, backend.array(b), out, add=True)
    assert_close(backend.numpy(out), before + a.astype(np.float64) @ b, k)


@pytest.mark.cuda
def test_tiled_kernel_adds_to_its_output():
    a, b, before = normal(1, 9, 5), normal(2, 5, 7), normal(3, 9, 7)
    out = asarray(before.copy(), "cuda")
    matmul = backend_of("cuda", "matmul").matmul
    matmul(asarray(a, "cuda"), asarray(b, "cuda"), out, add=True, kernel="tiled")
    assert_close(to_numpy(out), before + a.astype(np.float64) @ b, 5)


@pytest.mark.parametrize("shape", [(7, 40, 80), (7, 40, 79), (40, 7, 200)])
def test_long_sums_after_one_another(shape):
    """Sums that are cut share a scratch: what a larger product, and one full of NaN, left in it does no harm."""
    (m, n, k), module = shape, backend_of("cpu", "matmul")
    a, b, out = normal(1, k, m), normal(2, k, n), np.full((m, n), np.nan, np.float32)
    large = np.full((400, 50), np.nan, np.float32)
    module.matmul(large.T, large, np.empty((50, 50), np.float32))
    module.matmul(a.T, b, out)
    assert_close(out, a.T.astype(np.float64) @ b, k)
