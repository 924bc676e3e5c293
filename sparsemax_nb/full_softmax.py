"""The yardstick: cross-entropy of the softmax over all classes, without ever storing the logits."""

import math

import numpy as np

from .core import backend, check

#: Where the running maximum starts: finite, so that the difference of two of them is 0.
LOWEST = np.finfo(np.float32).min
#: Logits that are held at once: 32 MiB.
TILE = 1 << 23


def softmax_cross_entropy(h, w, targets, bias=None, *, ignore_index=-1):
    """Exact cross-entropy ``mean_b(log sum_c exp(h_b . w_c + bias_c) - h_b . w_t - bias_t)`` and its gradients.

    The (B, L) logits never exist: tiles of classes pass by twice, once for the sums, once (computed again) for the
    gradients. Beyond inputs and gradients it takes 32 MiB and the size of h.

    Parameters
    ----------
    h : (B, d) float32
    w : (L, d) float32
    targets : (B,) int32
        In [0, L), or `ignore_index`: then the row does not count.
    bias : (L,) float32, optional
    ignore_index : int
        Outside [0, L).

    Returns
    -------
    loss : float
        The mean over the rows that count; 0 where none does.
    dh : (B, d) float32
    dw : (L, d) float32
    dbias : (L,) float32
        Also where no bias was given.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; targets out of range; numbers that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import softmax_cross_entropy
    >>> h, w = np.eye(2, 3, dtype=np.float32), np.eye(4, 3, dtype=np.float32)
    >>> loss, dh, dw, dbias = softmax_cross_entropy(h, w, np.array([0, 2], np.int32))
    >>> round(loss, 4), dh.shape, dw.shape, dbias.shape
    (1.2437, (2, 3), (4, 3), (4,))
    """
    device = check.same_device(h=h, w=w, targets=targets, **({} if bias is None else {"bias": bias}))
    w = check.array("w", w, np.float32, ("L", "d"))
    n_classes, width = w.shape
    check.integer("n_classes (the length of w)", n_classes, 1)
    h = check.array("h", h, np.float32, ("B", width))
    n_rows = h.shape[0]
    targets = check.array("targets", targets, np.int32, (n_rows,))
    ignore_index = check.integer("ignore_index", ignore_index, -(2**31), 2**31 - 1)
    if 0 <= ignore_index < n_classes:
        raise ValueError(f"ignore_index must not be a class, one of [0, {n_classes}), got {ignore_index}")
    counted = targets != ignore_index
    wrong = counted & ((targets < 0) | (targets >= n_classes))
    if bool(wrong.any()):
        raise ValueError(f"targets must lie in [0, {n_classes}) or be {ignore_index}, got {int(targets[wrong][0])}")
    if bias is None:
        bias = backend.zeros(n_classes, np.float32, device)
    else:
        bias = check.array("bias", bias, np.float32, (n_classes,))
    wing, matmul, xp = (
        backend.wing(device, "full_softmax"),
        backend.wing(device, "matmul").matmul,
        backend.module_of(device),
    )

    def new(*shape):
        return backend.empty(shape, np.float32, device)

    per_tile = min(n_classes, max(1, TILE // max(n_rows, 1)))
    buffer = new(n_rows * per_tile)

    def tiles():
        """(slice of classes, their logits without bias)."""
        for first in range(0, n_classes, per_tile):
            part = slice(first, min(first + per_tile, n_classes))
            logits = buffer[: n_rows * (part.stop - first)].reshape(n_rows, -1)
            matmul(h, w[part].T, logits)
            yield part, logits

    largest, total, target_logit = new(n_rows), backend.zeros(n_rows, np.float32, device), new(n_rows)
    largest[...], target_logit[...] = LOWEST, 0
    if n_rows:
        for part, logits in tiles():
            wing.add_tile(logits, bias[part], part.start, targets, largest, total, target_logit)
    log_z, n_counted = xp.log(total) + largest, max(int(counted.sum()), 1)
    loss = float(xp.where(counted, log_z - target_logit, 0).sum(dtype=np.float64)) / n_counted
    if not math.isfinite(loss):
        for name, value in (("h", h), ("w", w), ("bias", bias)):
            check.finite(name, value)
        raise ValueError("the logits h @ w.T + bias must be finite; lower the learning rate")
    scale = backend.asarray(counted, device, np.float32) * np.float32(1 / n_counted)
    dh, dw, dbias = backend.zeros(h.shape, np.float32, device), new(n_classes, width), new(n_classes)
    if not n_rows:
        dw[...], dbias[...] = 0, 0
        return loss, dh, dw, dbias
    ones, some = backend.zeros((1, n_rows), np.float32, device), new(n_rows, width)
    ones[...] = 1
    for part, logits in tiles():
        wing.gradient_of_tile(logits, bias[part], part.start, targets, log_z, scale, logits)
        matmul(logits, w[part], some)
        dh += some
        matmul(logits.T, h, dw[part])
        matmul(ones, logits, dbias[part].reshape(1, -1))
    return loss, dh, dw, dbias
