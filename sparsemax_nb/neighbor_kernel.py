"""A kernel machine over dense features (method 1, for embeddings): the public functions.

The kernel of two points is cut off after the nearest neighbors of the first. So a row is scored by the dual variables
of a few points, and training changes only labels whose score violates the margin.

Source: dual coordinate descent for the squared hinge: Hsieh, Chang, Lin, Keerthi, Sundararajan, "A dual coordinate
descent method for large-scale linear SVM", ICML 2008. Steps over all rows of a batch at once: Takac, Bijral, Richtarik,
Srebro, "Mini-batch primal and dual methods for SVMs", ICML 2013. Machines of a point's neighbors: Zhang, Berg, Maire,
Malik, "SVM-KNN", CVPR 2006. The cut-off kernel, the bound of a batch and the slack are ours.
"""

import math

import numpy as np
import scipy.sparse

from .core import check, sparse
from .core.annotations import Array, Device, SparseMatrix
from .core.connections import Duals, PaddedDuals
from .core.device import asarray, backend_of, device_of, empty, module_of, to_numpy
from .feature_choice import INITIAL_BIAS, canonical
from .linear import checked_weights

#: Most products that exist at a time in a search for neighbors: 64 MiB.
MAX_ELEMENTS = 1 << 24
#: A bound of the scores in training: their squares, summed over labels, must fit float32.
MAX_SCORE = 1e15
#: How far the length of a point may be from 1.
LENGTH_TOLERANCE = 1e-3


def nearest_neighbors(h: Array, points: Array, k: int) -> tuple[Array, Array]:
    """The k points with the largest inner product ``h @ points.T`` in each row: product descending, then id ascending.

    Exact: all products are computed, at most 64 MiB of them at a time (or one row, if that is more).

    Parameters
    ----------
    h : (B, d) float32
    points : (N, d) float32
        On the device of h.
    k : int
        1 <= k <= N.

    Returns
    -------
    similarities : (B, k) float32
        The inner products, descending.
    ids : (B, k) int32

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; numbers that are not finite; k out of range.
    FloatingPointError
        The products overflow.

    Notes
    -----
    Dense equivalent: ``np.argsort(-(h @ points.T), axis=1, kind="stable")[:, :k]``.

    Source: the definition; the computation in blocks of rows is ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import nearest_neighbors
    >>> points = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    >>> similarities, ids = nearest_neighbors(points, points, 2)
    >>> ids
    array([[0, 2],
           [1, 2],
           [2, 1]], dtype=int32)
    """
    device = check.same_device(h=h, points=points)
    points = check.array("points", points, np.float32, ("N", "d"), finite=True)
    n_points, width = points.shape
    check.integer("N (the length of points)", n_points, 1, 2**31 - 1)
    h = check.array("h", h, np.float32, ("B", width), finite=True)
    k = check.integer("k", k, 1, n_points, f" (there are {n_points} points)")
    check.array_size(B=h.shape[0], k=k)
    similarities, ids = nearest_checked(h, points, k)
    if not bool(module_of(device).isfinite(similarities).all()):
        raise FloatingPointError("the products h @ points.T overflowed; scale h and points to length 1")
    return similarities, ids


def nearest_checked(h, points, k):
    """`nearest_neighbors` for valid arguments, which are not checked again."""
    n_rows, n_points, device = h.shape[0], points.shape[0], device_of(h)
    similarities, ids = empty((n_rows, k), np.float32, device), empty((n_rows, k), np.int32, device)
    matmul, top_k = backend_of(device, "matmul").matmul, backend_of(device, "top_k").top_k
    rows_per_block = max(1, min(n_rows, MAX_ELEMENTS // n_points))
    buffer = empty((rows_per_block, n_points), np.float32, device)
    for first in range(0, n_rows, rows_per_block):
        rows = slice(first, min(first + rows_per_block, n_rows))
        products = buffer[: rows.stop - first]
        matmul(h[rows], points.T, products)
        top_k(products, similarities[rows], ids[rows])
    return similarities, ids


def kernel_values(similarities, power):
    """``max(0, similarities) ** power`` of inner products, float32."""
    return module_of(device_of(similarities)).maximum(similarities, np.float32(0)) ** np.float32(power)


class NeighborKernel:
    """A kernel machine with the kernel ``max(0, h . x) ** power`` of a row and its nearest points.

    ``scores[b, l] = bias[l] + sum_i k(h_b, x_i) duals[i, l]``, where i runs over the `n_neighbors` points with the
    largest inner products with h_b.

    Parameters
    ----------
    points : (N, d) float32
        C-contiguous and finite; each of length 1, or 0: such a point is not a neighbor of any row. Not copied if it is
        on `device`.
    duals : (N, L) SciPy sparse matrix, or tuple (count, labels, values)
        The signed dual variables; a tuple as `neighbor_kernel_step` changes it, which needs a bias.
    bias : (L,) float32, optional
        -1 for every label if not given.
    power : float
        In [1, 100]. The larger, the more the nearest of the neighbors count.
    n_neighbors : int
        At least 1. If it is above N, all points are neighbors.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Wrong types or shapes; not finite; points of another length; no points or labels; CUDA not available.

    Notes
    -----
    Source: duals of a kernel machine: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear
    SVM", ICML 2008; a machine of a row's neighbors: H. Zhang et al., "SVM-KNN", CVPR 2006. The cut-off kernel is ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import NeighborKernel, neighbor_kernel_forward
    >>> points = np.array([[1, 0], [0, 1]], np.float32)
    >>> duals = scipy.sparse.csr_matrix(np.array([[2, -1], [0, 3]], np.float32))
    >>> layer = NeighborKernel(points, duals, power=2, n_neighbors=1)
    >>> neighbor_kernel_forward(np.array([[0.8, 0.6], [0, 1]], np.float32), layer).round(2)
    array([[ 0.28, -1.64],
           [-1.  ,  2.  ]], dtype=float32)
    """

    def __init__(
        self,
        points: Array,
        duals: SparseMatrix | tuple[Array, Array, Array],
        bias: Array | None = None,
        *,
        power: float = 6.0,
        n_neighbors: int = 128,
        device: Device = "cpu",
    ) -> None:
        check.choice("device", device, ("cpu", "cuda"))
        points = check.array("points", points, np.float32, ("N", "d"), finite=True)
        n_points = check.integer("n_points (the length of points)", points.shape[0], 1, 2**31 - 1)
        check.integer("d (the width of points)", points.shape[1], 1)
        check_lengths("points", points)
        check.number("power", power, 1, 100)
        check.integer("n_neighbors", n_neighbors, 1)
        if bias is not None:
            check.same_device(bias=bias)
            bias = check.array("bias", to_numpy(bias), np.float32, ("L",), finite=True)
        if isinstance(duals, tuple):
            if bias is None:
                raise ValueError("bias must be given with a tuple of duals: its length is the number of labels")
            check.same_device(**_named_duals(duals))
            n_labels = bias.shape[0]
            entries = _entries(_checked_duals(tuple(map(to_numpy, duals)), n_points, n_labels, False), n_labels)
        else:
            matrix = canonical("duals", duals)
            if matrix.shape[0] != n_points:
                raise ValueError(f"duals must have {n_points} rows like points, got {matrix.shape[0]}")
            n_labels = matrix.shape[1]
            entries = Duals(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)
        check.integer("n_labels (the width of duals)", n_labels, 1, 2**31 - 1)
        if bias is None:
            bias = np.full(n_labels, INITIAL_BIAS, np.float32)
        bias = check.array("bias", bias, np.float32, (n_labels,))
        self._set_arrays(points, entries, bias, power, n_neighbors, device)

    @classmethod
    def _from_padded(cls, points, count, labels, values, bias, power, n_neighbors, device="cpu"):
        """A layer around valid arrays, which are not checked again; the lists are those of `PaddedDuals`."""
        entries = _entries(PaddedDuals(*map(to_numpy, (count, labels, values))), bias.shape[0])
        return cls._from_arrays(points, entries, bias, power, n_neighbors, device)

    @classmethod
    def _from_arrays(cls, points, duals, bias, power, n_neighbors, device="cpu"):
        """A layer around valid arrays, which are not checked again."""
        layer = cls.__new__(cls)
        layer._set_arrays(points, duals, bias, power, n_neighbors, device)
        return layer

    def _set_arrays(self, points, duals, bias, power, n_neighbors, device):
        self.device, self.power, self.n_neighbors = device, float(power), int(n_neighbors)
        self.points, self.bias = asarray(points, device), asarray(bias, device)
        self.arrays = Duals(*(asarray(a, device) for a in duals))

    n_points = property(lambda self: self.points.shape[0], doc="N")
    n_inputs = property(lambda self: self.points.shape[1], doc="d")
    n_labels = property(lambda self: self.bias.shape[0], doc="L")
    n_duals = property(lambda self: self.arrays.labels.shape[0], doc="Dual variables that are stored.")

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in (self.points, self.bias, *self.arrays))

    @property
    def duals(self) -> SparseMatrix:
        """(N, L) SciPy CSR matrix, float32: a copy."""
        indptr, labels, values = map(to_numpy, self.arrays)
        return scipy.sparse.csr_matrix((values, labels, indptr), shape=(self.n_points, self.n_labels), copy=True)

    def __repr__(self):
        return (
            f"NeighborKernel(n_points={self.n_points}, n_inputs={self.n_inputs}, n_labels={self.n_labels}, "
            f"n_neighbors={self.n_neighbors}, power={self.power:g}, device={self.device!r})"
        )


def _entries(padded, n_labels):
    """`PaddedDuals` of NumPy arrays as `Duals` with ascending labels."""
    n_points, width = padded.labels.shape
    stored = np.arange(width) < padded.count[:, None]
    indptr = np.concatenate([[0], np.cumsum(padded.count, dtype=np.int64)])
    matrix = scipy.sparse.csr_matrix((padded.values[stored], padded.labels[stored], indptr), (n_points, n_labels))
    matrix.sort_indices()
    return Duals(indptr, matrix.indices.astype(np.int32), matrix.data)


def check_lengths(name, rows):
    """ValueError if a row's length is neither 1 nor 0."""
    xp = module_of(device_of(rows))
    lengths = xp.sqrt(xp.einsum("ij,ij->i", rows, rows))
    wrong = (xp.abs(lengths - 1) > LENGTH_TOLERANCE) & (lengths != 0)
    if bool(wrong.any()):
        row = int(xp.argmax(wrong))
        raise ValueError(
            f"{name} must have rows of length 1 or 0, got {float(lengths[row]):g} in row {row}; "
            f"divide them by np.linalg.norm({name}, axis=1, keepdims=True)"
        )


def _neighbors(h, layer):
    """(neighbors, kernels) of the checked argument h."""
    if not isinstance(layer, NeighborKernel):
        raise TypeError(f"layer must be a NeighborKernel, got {type(layer).__name__}")
    device = check.same_device(h=h)
    if device != layer.device:
        raise TypeError(f"h must live on {layer.device} like the layer, got {device}")
    h = check.array("h", h, np.float32, ("B", layer.n_inputs), finite=True)
    check_lengths("h", h)
    k = min(layer.n_neighbors, layer.n_points)
    check.array_size(B=h.shape[0], n_neighbors=k)
    similarities, ids = nearest_checked(h, layer.points, k)
    return ids, kernel_values(similarities, layer.power)


def neighbor_kernel_forward(h: Array, layer: NeighborKernel, out: Array | None = None) -> Array:
    """Scores of all labels: ``scores[b, l] = bias[l] + sum_i max(0, h_b . x_i) ** power duals[i, l]``.

    i runs over the `n_neighbors` points of the layer with the largest inner products; among equal ones, the lower ids.

    Parameters
    ----------
    h : (B, d) float32
        Rows of length 1, or 0: such a row scores the bias.
    layer : NeighborKernel
    out : (B, L) float32, optional
        Overwritten and returned. Allocated if not given.

    Returns
    -------
    scores : (B, L) float32

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; h not finite, or rows of another length; more than 2^31 - 1 scores.

    Notes
    -----
    With all points as neighbors the dense equivalent is ``np.maximum(h @ layer.points.T, 0) ** layer.power @
    layer.duals + layer.bias``.

    Source: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008; H. Zhang et
    al., "SVM-KNN", CVPR 2006. The cut-off kernel is ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import NeighborKernel, neighbor_kernel_forward
    >>> duals = scipy.sparse.csr_matrix(np.array([[2, -1], [0, 3]], np.float32))
    >>> layer = NeighborKernel(np.eye(2, dtype=np.float32), duals, power=1)
    >>> neighbor_kernel_forward(np.array([[0.8, 0.6]], np.float32), layer).round(2)
    array([[0.6, 0. ]], dtype=float32)
    """
    neighbors, kernels = _neighbors(h, layer)
    check.array_size(B=h.shape[0], L=layer.n_labels)
    shape = h.shape[0], layer.n_labels
    scores = check.output("out", out, np.float32, shape, layer.device, h=h, points=layer.points, bias=layer.bias)
    backend_of(layer.device, "neighbor_kernel").forward(neighbors, kernels, layer.arrays, layer.bias, scores)
    return scores


def neighbor_kernel_top_k(h: Array, layer: NeighborKernel, k: int) -> tuple[Array, Array]:
    """The k labels with the largest scores in each row: score descending, then label ascending.

    At most 64 MiB of the (B, L) scores exist at a time, or one row if that is more.

    Parameters
    ----------
    h : (B, d) float32
        Rows of length 1 or 0.
    layer : NeighborKernel
    k : int
        1 <= k <= L.

    Returns
    -------
    scores : (B, k) float32
    ids : (B, k) int32

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; h not finite, or rows of another length; k out of range.

    Notes
    -----
    Dense equivalent: ``np.argsort(-neighbor_kernel_forward(h, layer), axis=1, kind="stable")[:, :k]``.

    Source: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008; H. Zhang et
    al., "SVM-KNN", CVPR 2006. The cut-off kernel is ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import NeighborKernel, neighbor_kernel_top_k
    >>> duals = scipy.sparse.csr_matrix(np.array([[2, -1], [0, 3]], np.float32))
    >>> layer = NeighborKernel(np.eye(2, dtype=np.float32), duals)
    >>> neighbor_kernel_top_k(np.array([[1, 0]], np.float32), layer, k=1)
    (array([[1.]], dtype=float32), array([[0]], dtype=int32))
    """
    neighbors, kernels = _neighbors(h, layer)
    k = check.integer("k", k, 1, layer.n_labels, f" (n_labels = {layer.n_labels})")
    n_rows, device = h.shape[0], layer.device
    check.array_size(B=n_rows, k=k)
    top_scores, top_ids = empty((n_rows, k), np.float32, device), empty((n_rows, k), np.int32, device)
    forward, top_k = backend_of(device, "neighbor_kernel").forward, backend_of(device, "top_k")
    rows_per_block = top_k.rows_at_once(n_rows, layer.n_labels)
    buffer = empty((rows_per_block, layer.n_labels), np.float32, device)
    for first in range(0, n_rows, rows_per_block):
        rows = slice(first, min(first + rows_per_block, n_rows))
        scores = buffer[: rows.stop - first]
        forward(neighbors[rows], kernels[rows], layer.arrays, layer.bias, scores)
        top_k.top_k(scores, top_scores[rows], top_ids[rows])
    return top_scores, top_ids


def neighbor_kernel_step(
    rows: Array,
    neighbors: Array,
    kernels: Array,
    duals: tuple[Array, Array, Array],
    labels: SparseMatrix | sparse.Labels,
    n_labels: int,
    *,
    C: float = 1.0,  # noqa: N803
    slack: float = 0.3,
    sample_weight: Array | None = None,
) -> float:
    """Dual coordinate descent over a batch, one label against the rest; the dual variables change in place.

    For every label, it minimizes over functions f of the kernel's space ``|f|^2 / 2 + sum_i C_i max(0, m_i - y_i
    s_i)^2`` with ``s_i = f(x_i) - 1``: the bias is -1. y_i = 1 and m_i = 1 for the row's own labels, else y_i = -1 and
    m_i = 1 - slack. ``C_i = 1 / (2 D_i)`` with ``D_i = 1 / (2 C w_i) + sqrt(2 sum_j k_ij^2) / min(1, w_i)``, w_i being
    the row's sample weight, and j its other neighbors; the second term is the damping, see below. With the dual
    variable a >= 0 of row i and a label, and the scores of all rows before the step: ``G = y s - m + D_i a;  a <-
    max(0, a - G / (S_i + D_i))``. S_i is the sum of the kernels of row i with the rows of the batch, itself included:
    all rows of the batch move at once, and with this bound on the curvature the objective falls nevertheless, if the
    kernel is symmetric.
    A step visits a row's own labels, the labels with a dual variable, and those whose score before the step is above
    ``slack - 1``. If the weight of a row or its kernel with itself is 0, its dual variables become 0.

    Parameters
    ----------
    rows : (B,) integers
        The points of the batch, none twice.
    neighbors : (N, M) integers
        The nearest neighbors of all points, each its own first; -1 for none. See `nearest_neighbors`.
    kernels : (N, M) float32
        Not negative: the kernel of each point and its neighbors, for example ``np.maximum(similarities, 0) ** 6``. A
        neighbor with kernel 0 is ignored.
    duals : tuple (count, labels, values)
        Lists of signed dual variables: (N,) int32, (N, W) int32 and (N, W) float32. Point i has ``values[i, j]`` for
        ``labels[i, j]``, j < ``count[i]``, no label twice, positive for its own labels. The rows of the batch are
        overwritten. Start with zeros. Points whose count is 0 contribute nothing: they may be held out.
    labels : (B, L) SciPy sparse matrix or `Labels`
        The own labels of the batch's rows, in every step the same.
    n_labels : int
        L.
    C : float
        Above 0: the weight of the errors, of rows without near neighbors.
    slack : float
        In [0, 1.999]: negatives only need a score of at most ``slack - 1``.
    sample_weight : (B,) integers or floats, optional
        At least 0: the weight of each row, 1 if not given. Pass the same weights of a row in every pass.

    Returns
    -------
    loss : float
        The sum of ``sample_weight max(0, m - y s)^2`` over the visited pairs, before the step.

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; ids out of range; kernels, duals or weights not finite, negative (but for duals)
        or too large; C or slack out of range. Nothing has changed.

    Notes
    -----
    A list holds at most W dual variables: of the row's own labels first, then of those that were in it before, then of
    those in its neighbors' lists, the nearest first. What does not fit is dropped. W = 32 + the largest number of own
    labels of a row is enough for nearly all rows.

    Cut off after the nearest neighbors, the kernel is neither symmetric nor positive: a point need not be a neighbor of
    its neighbors, and among many points that are nearly the same, dual variables would grow without bound. The damping
    prevents it, as if C were smaller there. If the kernels that are cut off were random, the smallest eigenvalue of the
    symmetric part would be ``-sqrt(2 sum_j k_ij^2)``, by the semicircle law; the damping makes up for it. A weight
    below 1 makes it larger, a weight above 1 must not make it smaller.

    Source: C.-J. Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008, section 3; a
    bound on the curvature for a batch: M. Takac et al., "Mini-batch primal and dual methods for SVMs", ICML 2013. The
    bound by the kernels within the batch, the cut-off and the slack are ours. On one device, the bits do not depend on
    the number of threads.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import NeighborKernel, nearest_neighbors, neighbor_kernel_forward, neighbor_kernel_step
    >>> points = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    >>> labels = scipy.sparse.csr_matrix(np.array([[1, 0], [0, 1], [0, 1]]))
    >>> similarities, neighbors = nearest_neighbors(points, points, 2)
    >>> duals = np.zeros(3, np.int32), np.zeros((3, 2), np.int32), np.zeros((3, 2), np.float32)
    >>> for _ in range(20):
    ...     loss = neighbor_kernel_step(np.arange(3), neighbors, similarities**2, duals, labels, 2, C=10)
    >>> layer = NeighborKernel(points, duals, np.full(2, -1, np.float32), power=2, n_neighbors=2)
    >>> neighbor_kernel_forward(points, layer).argmax(axis=1)
    array([0, 1, 1])
    """
    check.number("C", C, 0, math.inf, open_ends=True)
    check.number("slack", slack, 0, 1.999)
    n_labels = check.integer("n_labels", n_labels, 1, 2**31 - 1)
    device = check.same_device(rows=rows, neighbors=neighbors, kernels=kernels, **_named_duals(duals))
    xp = module_of(device)
    neighbors = check.integers("neighbors", neighbors, ("N", "M"))
    n_points = neighbors.shape[0]
    kernels = check.array("kernels", kernels, np.float32, neighbors.shape)
    rows = check.integers("rows", rows, ("B",), n_points)
    if xp.unique(rows).shape[0] < rows.shape[0]:
        raise ValueError("rows must not contain a point twice")
    near, values = neighbors[rows], kernels[rows]  # the other rows are not read
    if near.size and (int(near.min()) < -1 or int(near.max()) >= n_points):
        raise ValueError(f"neighbors must lie in [-1, {n_points}), got {int(near.min())} to {int(near.max())}")
    check.finite("kernels[rows]", values)
    if values.size and float(values.min()) < 0:
        raise ValueError(f"kernels must not be negative, got {float(values.min()):g}; use np.maximum(kernels, 0)")
    padded = _checked_duals(duals, n_points, n_labels, writeable=True)
    if values.size:
        largest = float(values.max()) * float(xp.abs(padded.values).max()) * values.shape[1]
        if largest > MAX_SCORE:
            raise ValueError(f"kernels and duals are too large: scores could reach {largest:g}; scale the kernels down")
    labels = sparse.as_labels(labels, rows.shape[0], device, n_labels)
    sparse.sorted_keys(labels, n_labels)
    row_weights = checked_weights(sample_weight, rows.shape[0])
    return step_checked(rows, neighbors, kernels, padded, labels, n_labels, C, slack, row_weights)


def step_checked(rows, neighbors, kernels, duals, labels, n_labels, c, slack, row_weights):
    """`neighbor_kernel_step` for valid arguments, which are not checked again.

    `rows` and `neighbors` are int32, `duals` is `PaddedDuals` and `labels` is `Labels` on the device; `row_weights`
    (B,) float32 is a NumPy array.
    """
    device = device_of(neighbors)
    losses = empty(rows.shape[0], np.float32, device)
    step = backend_of(device, "neighbor_kernel").step
    step(
        rows, neighbors, kernels, labels, asarray(row_weights, device), float(c), float(slack), n_labels, duals, losses
    )
    return float((row_weights.astype(np.float64) * to_numpy(losses)).sum())


def _named_duals(duals):
    """The arrays of a tuple (count, labels, values) by name."""
    if not (isinstance(duals, tuple) and len(duals) == 3):
        raise TypeError(f"duals must be a tuple (count, labels, values), got {type(duals).__name__}")
    return {f"duals.{name}": a for name, a in zip(PaddedDuals._fields, duals, strict=True)}


def _checked_duals(duals, n_points, n_labels, writeable):
    """Checked `PaddedDuals` around the arrays of the argument `duals`."""
    count = check.array("duals.count", duals[0], np.int32, (n_points,), writeable)
    labels = check.array("duals.labels", duals[1], np.int32, (n_points, "W"), writeable)
    width = check.integer("W (the width of duals.labels)", labels.shape[1], 1)
    values = check.array("duals.values", duals[2], np.float32, labels.shape, writeable, finite=True)
    check.in_range("duals.count", count, width + 1)
    check.in_range("duals.labels", labels, n_labels)
    return PaddedDuals(count, labels, values)
