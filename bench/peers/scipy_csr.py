"""SciPy's and CuPy's CSR products. SciPy computes in one thread; it has no other way."""

import numpy as np
import scipy.sparse
from scipy.sparse import _sparsetools

from sparsemax_nb.internals import SIMULATOR, to_numpy, xp

from ..timing import fastest
from . import Peer, Unavailable


def inputs_of(layer):
    """The inputs of each label, (L, K), whether groups of labels share them or not; NumPy."""
    indices, group_size = to_numpy(layer.indices), getattr(layer, "group_size", 1)
    return np.repeat(indices, group_size, axis=0)[: layer.n_labels] if group_size > 1 else indices


def matrix_of(layer):
    """The layer's weights as a SciPy CSR matrix (L, H), copied; columns ascending inside a row."""
    indices, values = inputs_of(layer), to_numpy(layer.values).astype(np.float32)
    indptr = np.arange(0, indices.size + 1, indices.shape[1], dtype=np.int32)
    w = scipy.sparse.csr_matrix((values.ravel(), indices.ravel(), indptr), (len(indices), layer.n_inputs), copy=True)
    w.sort_indices()
    return w


def forward(x, layer):
    """Scores as a (B, L) view of (L, B): the faster of ``w @ xt`` (allocates) and csr_matvecs into an array.

    ``xt`` is made beforehand. csr_matvecs adds to its output: the zeroing is part of the time.
    """
    w, xt = matrix_of(layer), np.ascontiguousarray(to_numpy(x).T)
    out = np.zeros((w.shape[0], xt.shape[1]), np.float32)

    def into_out():
        out.fill(0)
        _sparsetools.csr_matvecs(*w.shape, xt.shape[1], w.indptr, w.indices, w.data, xt.reshape(-1), out.reshape(-1))
        return out.T

    runs = {"w @ xt, allocates": lambda: (w @ xt).T, "csr_matvecs, zeroing included": into_out}
    best = fastest(runs)
    return Peer(runs[best], f"one thread; {best}")


def forward_cuda(x, layer):
    """The same product on CUDA through cupyx.scipy.sparse (cuSPARSE); its output is allocated by CuPy's pool."""
    try:
        import cupyx.scipy.sparse
    except ImportError:
        raise Unavailable("CuPy is not installed") from None
    if SIMULATOR:
        raise Unavailable("CuPy needs a real device, this is Numba's simulator")
    w = cupyx.scipy.sparse.csr_matrix(matrix_of(layer))
    xt = xp.ascontiguousarray(x.T)
    return Peer(lambda: (w @ xt).T, "w @ xt, allocates from the pool")
