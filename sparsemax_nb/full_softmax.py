"""The exact softmax over all classes: cross-entropy, ranks, top-k. Logits of large problems are computed in tiles."""

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np

from .core import check
from .core.annotations import Array, SparseMatrix
from .core.device import as_native, backend_of, device_of, empty, module_of, zeros
from .core.sparse import Labels, as_targets, is_multi_label

#: The initial value of a running maximum: finite, so that the difference of two such values is 0, not NaN.
LOWEST = np.finfo(np.float32).min
#: Most logits that exist at a time: 64 MiB.
MAX_ELEMENTS = 1 << 24
#: Rows per chunk. dweights is read and written once per chunk: with fewer rows than the minimum, this costs more than
#: a fourth matrix product, the second computation of the logits.
MAX_ROWS, MIN_ROWS = 512, 64
#: Most bfloat16 weights that are converted to float32 at a time: 16 MiB.
MAX_WIDENED = 1 << 22
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class _Plan(NamedTuple):
    """How the (B, L) logits are divided into tiles."""

    rows: int  # per chunk of rows
    classes: int  # per tile
    keeps_logits: bool  # whether all tiles of a chunk are stored, and not computed again for the gradient


def _plan(n_rows, n_classes, max_classes):
    """Store the logits of a chunk if at least MIN_ROWS rows fit into the limit, else compute them twice."""
    rows = min(n_rows, MAX_ROWS, MAX_ELEMENTS // n_classes)
    keeps_logits = rows >= min(n_rows, MIN_ROWS)
    rows = rows if keeps_logits else min(n_rows, MAX_ROWS)
    classes = max(1, min(n_classes, MAX_ELEMENTS // max(rows, MIN_ROWS), max_classes))
    return _Plan(rows, classes, keeps_logits)


def _slices(n, size):
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def softmax_cross_entropy(
    h: Array,
    weights: Array,
    targets: Array | SparseMatrix | Labels,
    bias: Array | None = None,
    *,
    ignore_index: int = -1,
) -> tuple[float, Array, Array, Array]:
    """Exact cross-entropy ``mean_b(sum_{t in targets of b} log sum_c exp(s_bc) - s_bt)`` and its gradients.

    The logits are ``s = h @ weights.T + bias``. At most 64 MiB of them exist at a time. Chunks of rows are processed in
    two passes over the classes, for the sums and for the gradients. If 64 MiB hold too few rows (more than 262,144
    classes), the second pass computes the logits again. Besides logits, inputs and gradients, this needs at most 16 MiB
    of sums, and a float32 copy of h if h is bfloat16.

    Parameters
    ----------
    h : (B, d) float32 or bfloat16
        bfloat16 (``ml_dtypes.bfloat16``, in NumPy and in CuPy 14) is converted to float32, which is exact: h at once,
        the weights in chunks of classes. All computations and gradients are float32.
    weights : (L, d) like h
    targets : (B,) int32 or other integers, or SciPy CSR matrix (B, L), or Labels(indptr, indices)
        One class per row, in [0, L), or `ignore_index` for rows that do not count. Or any number of labels per row,
        which all count. On CUDA `Labels`, not a SciPy matrix.
    bias : (L,) float32 or bfloat16, optional
    ignore_index : int
        Outside [0, L).

    Returns
    -------
    loss : float
        The mean over the rows that are not ignored; 0 if there are none.
    dh : (B, d) float32
    dweights : (L, d) float32
    dbias : (L,) float32
        Returned also if `bias` is not given.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; targets out of range or repeated in a row; numbers that are not finite.
    FloatingPointError
        The logits overflow.

    Notes
    -----
    Source: the definition; the computation in tiles is ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import Labels, softmax_cross_entropy
    >>> h, weights = np.eye(2, 3, dtype=np.float32), np.eye(4, 3, dtype=np.float32)
    >>> loss, dh, dweights, dbias = softmax_cross_entropy(h, weights, np.array([0, 2], np.int32))
    >>> round(loss, 4), dh.shape, dweights.shape, dbias.shape
    (1.2437, (2, 3), (4, 3), (4,))

    The first row has two labels, the second none:

    >>> labels = Labels(np.array([0, 2, 2], np.int32), np.array([0, 3], np.int32))
    >>> round(softmax_cross_entropy(h, weights, labels)[0], 4)
    1.2437
    """
    arrays = (
        {"h": h, "weights": weights}
        | ({} if is_multi_label(targets) else {"targets": targets})
        | ({} if bias is None else {"bias": bias})
    )
    device = check.same_device(**arrays)
    weights = _check_floats("weights", weights, ("L", "d"))
    n_classes, width = weights.shape
    check.integer("n_classes (the length of weights)", n_classes, 1)
    h = _check_floats("h", h, ("B", width))
    n_rows = h.shape[0]
    if h.dtype != weights.dtype:
        raise TypeError(
            f"h and weights must have the same dtype, got {h.dtype} and {weights.dtype}; use h.astype(weights.dtype)"
        )
    ignore_index = check.integer("ignore_index", ignore_index, -(2**31), 2**31 - 1)
    if 0 <= ignore_index < n_classes:
        raise ValueError(f"ignore_index must not be a class, one of [0, {n_classes}), got {ignore_index}")
    labels = as_targets(targets, n_rows, device, n_classes, ignore_index)
    n_counted = n_rows if is_multi_label(targets) else int(labels.indptr[-1])
    bias = zeros(n_classes, np.float32, device) if bias is None else _check_floats("bias", bias, (n_classes,))
    h, bias = _widened(h), _widened(bias)
    dh, dweights, dbias = (zeros(a.shape, np.float32, device) for a in (h, weights, bias))
    if not n_rows:
        return 0.0, dh, dweights, dbias
    loss = _loss_and_gradients(h, weights, bias, labels, n_counted, dh, dweights, dbias, device)
    if not (math.isfinite(loss) and bool(module_of(device).isfinite(dh).all())):
        for name, value in (("h", h), ("weights", weights), ("bias", bias)):
            check.finite(name, _widened(value))
        raise FloatingPointError("the logits h @ weights.T + bias overflowed; lower the learning rate")
    return loss, dh, dweights, dbias


def target_ranks(h: Array, weights: Array, targets: Array) -> tuple[Array, Array]:
    """``log softmax(h @ weights.T)[target]``, and the rank of each target among all classes, 0 for the best.

    At most 64 MiB of the (B, L) logits exist at a time, or one row if that is more; each is computed once.

    Parameters
    ----------
    h : (B, d) float32
    weights : (L, d) float32
    targets : (B,) int32 or other integers
        One class per row, in [0, L).

    Returns
    -------
    log_prob : (B,) float32
        ``exp(-log_prob.mean())`` is the perplexity.
    rank : (B,) int32
        The number of classes ranked before the target: those with a higher logit, or an equal one and a lower id.
        ``rank < k`` tells whether the target is among the top k; ``(rank < k).mean()`` is the accuracy at k, which is
        also Recall@k, and ``((rank < k) / np.log2(rank + 2)).mean()`` is NDCG@k.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; targets out of range; numbers that are not finite.
    FloatingPointError
        The logits overflow.

    Notes
    -----
    Source: the definition; the computation in chunks of rows is ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import target_ranks
    >>> h, weights = np.eye(2, 3, dtype=np.float32), np.eye(4, 3, dtype=np.float32)
    >>> log_prob, rank = target_ranks(h, weights, np.array([0, 3], np.int32))
    >>> log_prob.round(4), rank
    (array([-0.7437, -1.7437], dtype=float32), array([0, 3], dtype=int32))
    """
    device = check.same_device(h=h, weights=weights, targets=targets)
    weights = check.array("weights", weights, np.float32, ("L", "d"))
    n_classes, width = weights.shape
    check.integer("n_classes (the length of weights)", n_classes, 1)
    h = check.array("h", h, np.float32, ("B", width))
    n_rows = h.shape[0]
    targets = check.integers("targets", targets, (n_rows,), n_classes)
    kernels, matmul = backend_of(device, "full_softmax"), backend_of(device, "matmul").matmul
    log_prob, rank = (empty(n_rows, dtype, device) for dtype in (np.float32, np.int32))
    chunk = max(1, min(n_rows, MAX_ELEMENTS // n_classes))
    buffer = empty((chunk, n_classes), np.float32, device)
    for rows in _slices(n_rows, chunk):
        logits = buffer[: min(rows.stop, n_rows) - rows.start]
        matmul(h[rows], weights.T, logits)
        kernels.rank(logits, targets[rows], log_prob[rows], rank[rows])
    if not bool(module_of(device).isfinite(log_prob).all()):
        check.finite("h", h)
        check.finite("weights", weights)
        raise FloatingPointError("the logits h @ weights.T overflowed; lower the learning rate")
    return log_prob, rank


class SoftmaxLayer:
    """Base class of output layers with a `top_k`: checks weights, h and results.

    A layer implements ``_build(weights, bias)`` and ``_top_k(h, probabilities, ids)``, which get checked arrays.
    """

    def __init__(self, weights: Array, bias: Array | None) -> None:
        self.device = check.same_device(
            **({"weights": weights} if bias is None else {"weights": weights, "bias": bias})
        )
        weights = check.array("weights", weights, np.float32, ("L", "d"), finite=True)
        self.n_classes = check.integer("n_classes (the length of weights)", weights.shape[0], 1, 2**31 - 1)
        self.width = check.integer("d (the width of weights)", weights.shape[1], 1)
        if bias is None:
            bias = zeros(self.n_classes, np.float32, self.device)
        self._build(weights, check.array("bias", bias, np.float32, (self.n_classes,), finite=True))

    def _build(self, weights, bias):
        raise NotImplementedError

    def _top_k(self, h, probabilities, ids):
        raise NotImplementedError

    def __repr__(self):
        return f"{type(self).__name__}(n_classes={self.n_classes}, d={self.width}, device={self.device!r})"

    def top_k(self, h: Array, k: int) -> tuple[Array, Array]:
        """The k most probable classes of each row of h.

        Parameters
        ----------
        h : (B, d) float32
            C-contiguous, finite, on the layer's device.
        k : int
            At least 1; at most the number of classes, or 65,536 if that is more; B k at most 2^31 - 1.

        Returns
        -------
        probabilities : (B, k) float32
            In descending order of the scores; padded with 0 if there are fewer than k classes.
        ids : (B, k) int32
            The classes; those with equal scores ascend. Padded with -1 if there are fewer than k.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape, layout or device; h not finite; k out of range.
        FloatingPointError
            The scores overflow.
        """
        device = check.same_device(h=h)
        if device != self.device:
            raise TypeError(
                f"h must live on {self.device} like the layer, got h on {device}; "
                "move it with cupy.asarray or cupy.asnumpy"
            )
        h = check.array("h", h, np.float32, ("B", self.width), finite=True)
        k = check.padded_k(k, self.n_classes)
        check.array_size(rows=len(h), k=k)
        probabilities, ids = (empty((len(h), k), dtype, device) for dtype in (np.float32, np.int32))
        self._top_k(h, probabilities, ids)
        if not bool(module_of(device).isfinite(probabilities).all()):
            raise FloatingPointError("the scores h @ weights.T + bias overflowed; use smaller h, weights or bias")
        return probabilities, ids


class FullSoftmax(SoftmaxLayer):
    """The exact softmax over all classes, ``p = softmax(h @ weights.T + bias)``, with a top-k: the baseline.

    Every class is scored, with ``L d`` multiply-adds per row of h. For k up to 32 on the CPU, no logits are stored, and
    a row costs one pass over the weights. Otherwise at most 64 MiB of the (B, L) logits exist at a time. The results do
    not depend on the number of threads, bit for bit.

    Parameters
    ----------
    weights : (L, d) float32
        C-contiguous and finite. Copied on the CPU; on CUDA kept without a copy.
    bias : (L,) float32, optional
        Finite. 0 by default.

    Attributes
    ----------
    flops_per_query : float
        Multiply-adds per row of h.
    nbytes : int
        Bytes of the layer's arrays.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape, layout or device; numbers that are not finite.

    Notes
    -----
    Source: the definition; the top-k in one pass over the weights is ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FullSoftmax
    >>> layer = FullSoftmax(np.array([[0, 1], [2, 0], [1, 1], [2, 0]], np.float32))
    >>> probabilities, ids = layer.top_k(np.array([[1, 0], [0, 2]], np.float32), k=3)
    >>> ids
    array([[1, 3, 2],
           [0, 2, 1]], dtype=int32)
    >>> probabilities.round(3)
    array([[0.399, 0.399, 0.147],
           [0.44 , 0.44 , 0.06 ]], dtype=float32)
    >>> layer.flops_per_query
    8.0

    Dense equivalent: ``p = scipy.special.softmax(h @ weights.T + bias, axis=1)``, ``ids = np.argsort(-p, axis=1,
    kind="stable")[:, :k]``.
    """

    def __init__(self, weights: Array, bias: Array | None = None) -> None:
        super().__init__(weights, bias)

    def _build(self, weights, bias):
        self._arrays = backend_of(self.device, "full_softmax").pack(weights, bias)

    def _top_k(self, h, probabilities, ids):
        backend_of(self.device, "full_softmax").top_k(h, *self._arrays, probabilities, ids)

    @property
    def flops_per_query(self) -> float:
        return float(self.n_classes * self.width)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self._arrays)


def _check_floats(name, value, shape):
    """A checked float32 or bfloat16 array."""
    check.same_device(**{name: value})
    value = as_native(value)
    if value.dtype not in (np.float32, BFLOAT16):
        part = ".real" if value.dtype.kind == "c" else ""
        raise TypeError(f"{name} must be float32 or bfloat16, got {value.dtype}; use {name}{part}.astype(np.float32)")
    return check.array(name, value, value.dtype, shape)


def _widened(array, buffer=None):
    """`array` if it is float32; a bfloat16 array as float32, at the start of `buffer` if one is given."""
    if array.dtype == np.float32:
        return array
    device = device_of(array)
    out = empty(array.size, np.float32, device) if buffer is None else buffer[: array.size]
    backend_of(device, "bfloat16").widen(array.view(np.uint16).reshape(-1), out)
    return out.reshape(array.shape)


def _loss_and_gradients(h, weights, bias, labels, n_counted, dh, dweights, dbias, device):
    """Add the gradients to dh, dweights and dbias; return the loss, or NaN as soon as something is not finite."""
    kernels, xp = backend_of(device, "full_softmax"), module_of(device)
    matmul = backend_of(device, "matmul").matmul
    n_rows, n_classes = h.shape[0], weights.shape[0]
    max_classes = MAX_WIDENED // max(h.shape[1], 1) if weights.dtype == BFLOAT16 else n_classes
    plan = _plan(n_rows, n_classes, max_classes)
    keep = plan.keeps_logits
    buffer = empty(plan.rows * (n_classes if keep else plan.classes), np.float32, device)
    wide = empty(plan.classes * h.shape[1] if weights.dtype == BFLOAT16 else 0, np.float32, device)
    scale, loss = np.float32(1 / max(n_counted, 1)), 0.0
    for rows in _slices(n_rows, plan.rows):
        h_part, labels_part = h[rows], Labels(labels.indptr[rows.start : rows.stop + 1], labels.indices)
        n = len(h_part)
        largest, total, losses = (zeros(n, np.float32, device) for _ in range(3))
        largest[...] = LOWEST
        tiles = []
        for part in _slices(n_classes, plan.classes):
            start = n * part.start if keep else 0
            logits = buffer[start : start + n * (part.stop - part.start)].reshape(n, -1)
            kernels.add_product(h_part, _widened(weights[part], wide), bias[part], keep, logits, largest, total)
            tiles.append((part, logits))
        with np.errstate(divide="ignore"):
            if not bool(xp.isfinite(xp.log(total) + largest).all()):
                return math.nan
        for part, logits in tiles:
            weights_part = _widened(weights[part], wide)
            if not keep:
                matmul(h_part, weights_part.T, logits)
            sums = largest, total, scale, dbias[part], losses
            kernels.gradient_of_tile(logits, bias[part], part.start, labels_part, *sums, logits)
            matmul(logits, weights_part, dh[rows], add=True)
            matmul(logits.T, h_part, dweights[part], add=True)
        loss += float(losses.sum(dtype=np.float64))
    return loss / max(n_counted, 1)
