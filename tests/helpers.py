"""What the tests share: made-up data, the rule for tolerances, layers and labels on a device."""

import contextlib

import ml_dtypes
import numba
import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import FixedFanIn, Labels, SparseLinear
from sparsemax_nb.core import formulas
from sparsemax_nb.core.connections import (
    Connections as Layer,  # the same type as in the library, so kernels are compiled once
)
from sparsemax_nb.core.connections import SharedConnections
from sparsemax_nb.core.device import to_numpy
from sparsemax_nb.core.sparse import SparseRows

EPS = float(np.finfo(np.float32).eps)
#: Codes of the losses that a step of a sparse output layer takes.
STEP_LOSSES = formulas.LOSSES | {"softmax": formulas.SOFTMAX}


def assert_none(culprits):
    """Fail with the list of all `culprits` (sentences), if there are any."""
    found = list(culprits)
    assert not found, "\n".join([f"{len(found)} found:", *found])


@contextlib.contextmanager
def threads(n):
    """Numba's parallel functions use `n` threads inside the block."""
    before = numba.get_num_threads()
    numba.set_num_threads(n)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def normal(seed, *shape):
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(seed, low, high, *shape):
    """Small integers as float32: their sums and products are exact, so results must agree to the last bit."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.float32)


def tolerance(terms, scale):
    """What float32 may lose in a sum of `terms` numbers whose result is about `scale`."""
    return 4 * EPS * np.sqrt(terms) * scale


def assert_close(got, want, terms, scale=None):
    """`got` (float32) equals `want` (float64) up to `tolerance`; `scale` is by default the largest number wanted.

    The wanted data must be non-trivial: finite, and not all the same where there are a few. Sums of 0 terms must be
    equal.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert got.dtype == np.float32
    if terms == 0 or want.size == 0:
        np.testing.assert_array_equal(got, want)
        return
    assert np.isfinite(want).all()
    assert want.size < 4 or np.ptp(want) > 1e-6, "trivial data: all the same"
    scale = np.abs(want).max() if scale is None else scale
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(terms, scale))


def close_to_derivative(function, point, gradient, rng, step=1e-6):
    """`gradient` (float64) of `function` at `point` agrees with central differences along random directions."""
    assert np.abs(gradient).max() > 1e-3, "trivial data: zero gradient"
    for _ in range(5):
        direction = rng.standard_normal(point.shape)
        slope = (function(point + step * direction) - function(point - step * direction)) / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum(), rel=1e-6, abs=1e-7)


def layer_arrays(n_labels, n_inputs, fan_in, seed=0):
    """A `Layer` of NumPy arrays with normal weights."""
    random = np.random.default_rng(seed)
    indices = np.array([random.permutation(n_inputs)[:fan_in] for _ in range(n_labels)], np.int32)
    return Layer(indices.reshape(n_labels, fan_in), normal(seed + 1, n_labels, fan_in), normal(seed + 2, n_labels))


def shared_arrays(n_labels, n_inputs, fan_in, group_size, seed=0, bfloat16=False):
    """The same with inputs shared by groups of labels; of bfloat16 weights the bits."""
    indices = layer_arrays(-(-n_labels // group_size), n_inputs, fan_in, seed).indices
    values = normal(seed + 1, n_labels, fan_in)
    if bfloat16:
        values = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return SharedConnections(indices, values, normal(seed + 2, n_labels), group_size)


def sparse_rows(n_rows, n_features, seed=0, density=0.4):
    """`SparseRows` with normal weights."""
    matrix = scipy.sparse.csr_matrix(
        normal(seed, n_rows, n_features) * label_matrix(n_rows, n_features, seed + 1, density).toarray()
    )
    return SparseRows(matrix.indptr.astype(np.int64), matrix.indices, matrix.data)


def feature_lists(n_labels, n_features, seed=0):
    """`FeatureLists` with normal weights; the features whose share of the labels is large are connected to all."""
    weights = normal(seed, n_labels, n_features) * label_matrix(n_labels, n_features, seed + 1, 0.12).toarray()
    weights[:, ::5] = (
        normal(seed + 2, n_labels, n_features)[:, ::5]
        * (label_matrix(n_labels, n_features, seed, 0.5).toarray()[:, ::5])
    )
    return SparseLinear(scipy.sparse.csr_matrix(weights), normal(seed + 3, n_labels)).arrays


def make_layer(backend, *arguments, **keywords):
    """The same as a `FixedFanIn` on the device of `backend`."""
    return place_layer(backend, layer_arrays(*arguments, **keywords), arguments[1])


def place_layer(backend, arrays, n_inputs):
    return FixedFanIn(n_inputs, *map(backend.array, arrays))


def copy_layer(layer):
    """The arrays of a `FixedFanIn` as NumPy copies."""
    return Layer(*(np.array(to_numpy(a)) for a in layer.arrays))


def label_matrix(n_rows, n_labels, seed=0, density=0.3):
    """Random positive labels as SciPy CSR (B, L)."""
    dense = np.random.default_rng(seed).random((n_rows, n_labels)) < density
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


def step_loss(kind, scores, matrix, dtype=np.float32):
    """The `StepLoss` with code `kind` for the scores (B, L) and label matrix of a batch."""
    if kind != formulas.SOFTMAX:
        return formulas.StepLoss(kind, np.empty((0, 2), dtype))
    largest, counts = scores.max(axis=1), np.diff(matrix.indptr)
    total = np.exp(scores - largest[:, None]).sum(axis=1)
    rest = np.where(counts, np.log(total / np.maximum(counts, 1)), 1e30)
    return formulas.StepLoss(kind, np.stack([largest, rest], axis=1).astype(dtype))


def place_labels(backend, matrix):
    """The labels as the public functions take them on the device of `backend`."""
    if backend.device == "cpu":
        return matrix
    return Labels(backend.array(matrix.indptr, np.int32), backend.array(matrix.indices, np.int32))


class ForeignArray:
    """An array on a CUDA device, as far as placement can see."""

    __cuda_array_interface__ = None

    def __init__(self, array):
        self.dtype, self.shape, self.ndim, self.flags = array.dtype, array.shape, array.ndim, array.flags


def on_other_device(backend, array):
    """A stand-in for `array` on the device that `backend` is not."""
    return ForeignArray(array) if backend.device == "cpu" else backend.numpy(array)
