"""CSR products of SciPy and CuPy. SciPy only uses one thread."""

import numpy as np
import scipy.sparse
from scipy.sparse import _sparsetools

from sparsemax_nb.internals import SIMULATOR, to_numpy, xp

from ..timing import fastest
from . import Peer, Unavailable


def inputs_of(layer):
    """Indices of the inputs of each label, (L, K), for plain and group-shared layers; NumPy."""
    indices, group_size = to_numpy(layer.indices), getattr(layer, "group_size", 1)
    return np.repeat(indices, group_size, axis=0)[: layer.n_labels] if group_size > 1 else indices


def matrix_of(layer):
    """Copy the weights of a layer into a SciPy CSR matrix (L, H) with sorted columns."""
    indices, values = inputs_of(layer), to_numpy(layer.values).astype(np.float32)
    indptr = np.arange(0, indices.size + 1, indices.shape[1], dtype=np.int32)
    w = scipy.sparse.csr_matrix((values.ravel(), indices.ravel(), indptr), (len(indices), layer.n_inputs), copy=True)
    w.sort_indices()
    return w


def forward(h, layer):
    """Scores as a (B, L) view of (L, B), by the faster of ``w @ ht`` (allocates) and csr_matvecs (into an array).

    ``ht`` is transposed in advance. csr_matvecs adds to its output, so the time includes setting it to zero.
    """
    w, ht = matrix_of(layer), np.ascontiguousarray(to_numpy(h).T)
    out = np.zeros((w.shape[0], ht.shape[1]), np.float32)

    def into_out():
        out.fill(0)
        _sparsetools.csr_matvecs(*w.shape, ht.shape[1], w.indptr, w.indices, w.data, ht.reshape(-1), out.reshape(-1))
        return out.T

    runs = {"w @ ht, allocates": lambda: (w @ ht).T, "csr_matvecs, including zeroing": into_out}
    best = fastest(runs)
    return Peer(runs[best], f"one thread; {best}")


def forward_cuda(h, layer):
    """The product on CUDA with cupyx.scipy.sparse (cuSPARSE), which allocates the output from CuPy's pool."""
    try:
        import cupyx.scipy.sparse
    except ImportError:
        raise Unavailable("CuPy is not installed") from None
    if SIMULATOR:
        raise Unavailable("CuPy needs a real device, not Numba's simulator")
    w = cupyx.scipy.sparse.csr_matrix(matrix_of(layer))
    ht = xp.ascontiguousarray(h.T)
    return Peer(lambda: (w @ ht).T, "w @ ht, allocates from the pool")
