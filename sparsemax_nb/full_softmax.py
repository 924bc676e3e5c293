"""The baseline: the softmax over all classes - cross-entropy, ranks, top-k - never storing all the logits of a large problem."""

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np

from .core import check
from .core.device import as_native, backend_of, device_of, empty, module_of, zeros
from .core.sparse import Labels, as_targets, holds_several

#: Where the running maximum starts: finite, so that the difference of two of them is 0.
LOWEST = np.finfo(np.float32).min
#: Logits that are held at once: 64 MiB.
MAX_ELEMENTS = 1 << 24
#: Rows that are worked on together. With fewer, reading and writing dw costs more than a fourth product.
MOST_ROWS, FEWEST_ROWS = 512, 64
#: Weights that are widened to float32 at once, where they are bfloat16: 16 MiB.
WIDENED = 1 << 22
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class _Plan(NamedTuple):
    """How the (B, L) logits are cut."""

    rows: int  # worked on together
    classes: int  # of a tile
    held: bool  # all tiles of these rows: their logits are not computed again for the gradient


def _plan(n_rows, n_classes, most_classes):
    rows = min(n_rows, MOST_ROWS, MAX_ELEMENTS // n_classes)
    held = rows >= min(n_rows, FEWEST_ROWS)
    rows = rows if held else min(n_rows, MOST_ROWS)
    return _Plan(rows, max(1, min(n_classes, MAX_ELEMENTS // max(rows, FEWEST_ROWS), most_classes)), held)


def _slices(n, size):
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def softmax_cross_entropy(h, weights, targets, bias=None, *, ignore_index=-1):
    """Exact cross-entropy ``mean_b(sum_{t in targets of b} log sum_c exp(s_bc) - s_bt)``, s = h @ w.T + bias; its gradients.

    At most 64 MiB of the (B, L) logits exist at a time: some rows pass over the classes, once for the sums, once for
    the gradients. Beyond these, inputs and gradients it takes at most 16 MiB of sums, and the size of h in float32
    where h is bfloat16. Where 64 MiB hold too few rows of logits (more than 262,144 classes), the second pass computes
    the logits again.

    Parameters
    ----------
    h : (B, d) float32 or bfloat16
        bfloat16 (``ml_dtypes.bfloat16``, in NumPy and in CuPy 14) is widened to float32, which is exact: h at once, w
        some classes at a time. Everything is computed in float32, the gradients are float32.
    weights : (L, d) like h
    targets : (B,) int32 or other integers, or SciPy CSR matrix (B, L), or Labels(indptr, indices)
        One class for each row, in [0, L), or `ignore_index`: then the row does not count. Or any number of positive
        labels for each row; every one counts. On CUDA `Labels`, not a SciPy matrix.
    bias : (L,) float32 or bfloat16, optional
    ignore_index : int
        Outside [0, L).

    Returns
    -------
    loss : float
        The mean over the rows, those apart that are ignored; 0 where none is left.
    dh : (B, d) float32
    dweights : (L, d) float32
    dbias : (L,) float32
        Also where no bias was given.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; targets out of range or repeated in a row; numbers that are not finite.
    FloatingPointError
        The logits overflow.

    Notes
    -----
    Source: the definition; the order of the work is ours.

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
        | ({} if holds_several(targets) else {"targets": targets})
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
            f"h and weights must have the same dtype, got {h.dtype} and {weights.dtype}; use h.astype(w.dtype)"
        )
    ignore_index = check.integer("ignore_index", ignore_index, -(2**31), 2**31 - 1)
    if 0 <= ignore_index < n_classes:
        raise ValueError(f"ignore_index must not be a class, one of [0, {n_classes}), got {ignore_index}")
    labels = as_targets(targets, n_rows, device, n_classes, ignore_index)
    n_counted = n_rows if holds_several(targets) else int(labels.indptr[-1])
    bias = zeros(n_classes, np.float32, device) if bias is None else _check_floats("bias", bias, (n_classes,))
    h, bias = _widened(h), _widened(bias)
    dh, dweights, dbias = (zeros(a.shape, np.float32, device) for a in (h, weights, bias))
    if not n_rows:
        return 0.0, dh, dweights, dbias
    loss = _loss_and_gradients(h, weights, bias, labels, n_counted, dh, dweights, dbias, device)
    if not (math.isfinite(loss) and bool(module_of(device).isfinite(dh).all())):
        for name, value in (("h", h), ("weights", weights), ("bias", bias)):
            check.finite(name, _widened(value))
        raise FloatingPointError("the logits h @ w.T + bias overflowed; lower the learning rate")
    return loss, dh, dweights, dbias


def target_ranks(h, weights, targets):
    """``log softmax(h @ weights.T)[target]`` and the rank of each target among all classes, 0 for the best.

    At most 64 MiB of the (B, L) logits exist at a time, or one row where that is more; each is computed once.

    Parameters
    ----------
    h : (B, d) float32
    weights : (L, d) float32
    targets : (B,) int32 or other integers
        One class for each row, in [0, L).

    Returns
    -------
    log_prob : (B,) float32
        ``exp(-log_prob.mean())`` is the perplexity.
    rank : (B,) int32
        How many classes beat the target: their logit is higher, or equal and their id lower. So ``rank < k`` where
        the target is among the top k; ``(rank < k).mean()`` is the accuracy at k, which is also Recall@k, and
        ``((rank < k) / np.log2(rank + 2)).mean()`` is NDCG@k.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; targets out of range; numbers that are not finite.
    FloatingPointError
        The logits overflow.

    Notes
    -----
    Source: the definition, a part of the logits at a time (ours).

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
    at_once = max(1, min(n_rows, MAX_ELEMENTS // n_classes))
    buffer = empty((at_once, n_classes), np.float32, device)
    for rows in _slices(n_rows, at_once):
        logits = buffer[: min(rows.stop, n_rows) - rows.start]
        matmul(h[rows], weights.T, logits)
        kernels.rank(logits, targets[rows], log_prob[rows], rank[rows])
    if not bool(module_of(device).isfinite(log_prob).all()):
        check.finite("h", h)
        check.finite("weights", weights)
        raise FloatingPointError("the logits h @ w.T overflowed; lower the learning rate")
    return log_prob, rank


class SoftmaxLayer:
    """What output layers with a `top_k` share: checked weights, queries and results."""

    def __init__(self, weights, bias):
        self.device = check.same_device(
            **({"weights": weights} if bias is None else {"weights": weights, "bias": bias})
        )
        weights = check.array("weights", weights, np.float32, ("L", "d"))
        self.n_classes = check.integer("n_classes (the length of weights)", weights.shape[0], 1, 2**31 - 1)
        self.width = check.integer("d (the width of weights)", weights.shape[1], 1)
        check.finite("weights", weights)
        if bias is None:
            bias = zeros(self.n_classes, np.float32, self.device)
        bias = check.array("bias", bias, np.float32, (self.n_classes,))
        check.finite("bias", bias)
        self._build(weights, bias)

    def __repr__(self):
        return f"{type(self).__name__}(n_classes={self.n_classes}, d={self.width}, device={self.device!r})"

    def top_k(self, h, k):
        """The k most probable classes of each row of h.

        Parameters
        ----------
        h : (B, d) float32
            C-contiguous, finite, on the layer's device.
        k : int
            At least 1; at most the number of classes, or 65,536 where that is more; B k at most 2^31 - 1.

        Returns
        -------
        probabilities : (B, k) float32
            Descending in their scores; 0 where there are fewer than k classes.
        ids : (B, k) int32
            The classes; those of equal scores ascend. -1 where there are fewer than k.

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
                f"h must live on {self.device} like the layer, got h on {device}; move it with cupy.asarray or cupy.asnumpy"
            )
        h = check.array("h", h, np.float32, ("B", self.width))
        k = check.padded_k(k, self.n_classes)
        check.elements(rows=len(h), k=k)
        check.finite("h", h)
        probabilities, ids = (empty((len(h), k), dtype, device) for dtype in (np.float32, np.int32))
        self._top_k(h, probabilities, ids)
        if not bool(module_of(device).isfinite(probabilities).all()):
            raise FloatingPointError("the scores h @ w.T + bias overflowed; use smaller h, w or bias")
        return probabilities, ids


class FullSoftmax(SoftmaxLayer):
    """The exact softmax over all classes, ``p = softmax(h @ weights.T + bias)``: its k best.

    What others are compared with.

    Every class is scored, ``L d`` multiply-adds a query. On the CPU no logits are stored for k up to 32; a query costs
    one pass over the weights. Else, and on CUDA, at most 64 MiB of the (B, L) logits exist at a time. Same bits for the
    same h, with any number of threads.

    Parameters
    ----------
    weights : (L, d) float32
        C-contiguous and finite. Copied on the CPU; on CUDA held as it is.
    bias : (L,) float32, optional
        Finite. 0 by default.

    Attributes
    ----------
    flops_per_query : float
        Multiply-adds of one query.
    nbytes : int
        Bytes that the layer's arrays take.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape, layout or device; numbers that are not finite.

    Notes
    -----
    Source: the definition; the one pass over the weights, without logits, is ours.

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

    The dense equivalent: ``p = scipy.special.softmax(h @ weights.T + bias, axis=1); ids = np.argsort(-p, kind="stable")[:,
    :k]``.
    """

    def __init__(self, weights, bias=None):
        super().__init__(weights, bias)

    def _build(self, weights, bias):
        self._arrays = backend_of(self.device, "full_softmax").pack(weights, bias)

    def _top_k(self, h, probabilities, ids):
        backend_of(self.device, "full_softmax").top_k(h, *self._arrays, probabilities, ids)

    @property
    def flops_per_query(self):
        return float(self.n_classes * self.width)

    @property
    def nbytes(self):
        return sum(a.nbytes for a in self._arrays)


def _check_floats(name, value, shape):
    """A float32 or bfloat16 array, checked."""
    check.same_device(**{name: value})
    value = as_native(value)
    if value.dtype not in (np.float32, BFLOAT16):
        part = ".real" if value.dtype.kind == "c" else ""
        raise TypeError(f"{name} must be float32 or bfloat16, got {value.dtype}; use {name}{part}.astype(np.float32)")
    return check.array(name, value, value.dtype, shape)


def _widened(array, buffer=None):
    """`array` where it is float32; where it is bfloat16 its float32 numbers, at the start of `buffer` if that is given."""
    if array.dtype == np.float32:
        return array
    device = device_of(array)
    out = empty(array.size, np.float32, device) if buffer is None else buffer[: array.size]
    backend_of(device, "bfloat16").widen(array.view(np.uint16).reshape(-1), out)
    return out.reshape(array.shape)


def _loss_and_gradients(h, weights, bias, labels, n_counted, dh, dweights, dbias, device):
    """Adds the gradients to dh, dweights and dbias; returns the loss, NaN as soon as something is not finite."""
    kernels, xp = backend_of(device, "full_softmax"), module_of(device)
    matmul = backend_of(device, "matmul").matmul
    n_rows, n_classes = h.shape[0], weights.shape[0]
    at_once = WIDENED // max(h.shape[1], 1) if weights.dtype == BFLOAT16 else n_classes
    plan = _plan(n_rows, n_classes, at_once)
    buffer = empty(plan.rows * (n_classes if plan.held else plan.classes), np.float32, device)
    wide = empty(plan.classes * h.shape[1] if weights.dtype == BFLOAT16 else 0, np.float32, device)
    scale, loss = np.float32(1 / max(n_counted, 1)), 0.0
    for rows in _slices(n_rows, plan.rows):
        some_h, some_labels = h[rows], Labels(labels.indptr[rows.start : rows.stop + 1], labels.indices)
        n = len(some_h)
        largest, total, losses = (zeros(n, np.float32, device) for _ in range(3))
        largest[...] = LOWEST
        tiles = []
        for part in _slices(n_classes, plan.classes):
            start = n * part.start if plan.held else 0
            logits = buffer[start : start + n * (part.stop - part.start)].reshape(n, -1)
            kernels.add_product(some_h, _widened(weights[part], wide), bias[part], plan.held, logits, largest, total)
            tiles.append((part, logits))
        with np.errstate(divide="ignore"):
            if not bool(xp.isfinite(xp.log(total) + largest).all()):
                return math.nan
        for part, logits in tiles:
            some_w = _widened(weights[part], wide)
            if not plan.held:
                matmul(some_h, some_w.T, logits)
            sums = largest, total, scale, dbias[part], losses
            kernels.gradient_of_tile(logits, bias[part], part.start, some_labels, *sums, logits)
            matmul(logits, some_w, dh[rows], add=True)
            matmul(logits.T, some_h, dweights[part], add=True)
        loss += float(losses.sum(dtype=np.float64))
    return loss / max(n_counted, 1)
