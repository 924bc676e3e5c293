"""Approximations of the softmax over all classes that others are compared with: SVD-softmax, D-softmax; on the CPU alone."""

import math

import numpy as np

from .core import check
from .core.device import backend_of
from .core.low_rank import low_rank
from .full_softmax import SoftmaxLayer


class _CPULayer(SoftmaxLayer):
    """A baseline, on the CPU alone."""

    def __init__(self, w, bias):
        if check.same_device(w=w) != "cpu":
            raise TypeError(
                f"{type(self).__name__} is a baseline that computes on the CPU alone, got w on cuda; pass NumPy arrays"
            )
        super().__init__(w, bias)


class SVDSoftmax(_CPULayer):
    """Top-k by a preview of all classes in a few dimensions and exact scores for the best of it; CPU.

    With ``w = U S V.T``, ``b = U S`` and ``q = h @ V``: the preview is ``q[:, :width] @ b[:, :width].T + bias``; the
    n_candidates best classes of a row (of equal ones, those with the lower id) get the exact ``q @ b.T + bias``.
    Probabilities are the softmax over all classes, of the exact scores where there are any, else of the preview.

    Parameters
    ----------
    w : (L, d) float32
        C-contiguous and finite; copied. NumPy.
    bias : (L,) float32, optional
        Finite. 0 by default.
    width : int
        Dimensions of the preview, in [1, d].
    n_candidates : int, optional
        In [1, L]. By default ``share * L``, rounded up.
    share : float
        In (0, 1].

    Attributes
    ----------
    flops_per_query : float
        Multiply-adds of one query: ``d d + L width + n_candidates d``.
    nbytes : int
        Bytes that the layer's arrays take.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or layout; CUDA arrays; numbers that are not finite or out of range.

    Notes
    -----
    Source: K. Shim, M. Lee, I. Choi, Y. Boo, W. Sung, "SVD-softmax: fast softmax approximation on large vocabulary
    neural networks", NIPS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import SVDSoftmax
    >>> random = np.random.default_rng(0)
    >>> w = (random.standard_normal((1000, 4)) @ random.standard_normal((4, 32))).astype(np.float32)  # of rank 4
    >>> layer = SVDSoftmax(w, width=4, share=0.01)
    >>> probabilities, ids = layer.top_k(w[:3], k=2)
    >>> (ids == np.argsort(-w[:3] @ w.T)[:, :2]).all()
    np.True_
    >>> layer.n_candidates, layer.flops_per_query
    (10, 5344.0)
    """

    def __init__(self, w, bias=None, *, width=16, n_candidates=None, share=0.05):
        self._options = width, n_candidates, share
        super().__init__(w, bias)

    def _build(self, w, bias):
        width, n_candidates, share = self._options
        self.preview_width = check.integer("width", width, 1, self.width, " (the width of w)")
        if n_candidates is None:
            n_candidates = math.ceil(_positive("share", share) * self.n_classes)
        self.n_candidates = check.integer("n_candidates", n_candidates, 1, self.n_classes, " (the number of classes)")
        pack = backend_of("cpu", "baselines").pack_svd
        self._layer = pack(*low_rank(w, self.width), bias, self.preview_width)

    def _top_k(self, h, probabilities, ids):
        backend_of("cpu", "baselines").svd_top_k(h, self._layer, self.n_candidates, probabilities, ids)

    @property
    def flops_per_query(self):
        return float(self.width**2 + self.n_classes * self.preview_width + self.n_candidates * self.width)

    @property
    def nbytes(self):
        return sum(a.nbytes for a in self._layer)


class DSoftmax(_CPULayer):
    """Differentiated softmax: frequent classes are scored in many dimensions, rare ones in few; CPU.

    The classes, sorted by their counts, are cut into bins. The rows w_i of a bin are replaced by the nearest ones of
    rank ``r = widths[i]``, ``w_i ~ a_i @ v_i.T`` with the first r singular vectors v_i of the bin, so its scores are
    ``(h @ v_i) @ a_i.T + bias``. (The paper trains such a layer; here it is made from a trained softmax.)

    Parameters
    ----------
    w : (L, d) float32
        C-contiguous and finite; copied. NumPy.
    counts : (L,) array, NumPy
        How often each class occurs, not negative. Of equal counts, the lower id counts as more frequent.
    bias : (L,) float32, optional
        Finite. 0 by default.
    shares : sequence of float
        Each bin's share of the classes, the most frequent first; positive, their sum is 1.
    widths : sequence of int, optional
        Each in [1, d]. By default d, d / 2, d / 4, ... (1 at least): with the default shares half the multiply-adds of
        the full softmax, but for those of ``h @ v_i``.

    Attributes
    ----------
    flops_per_query : float
        Multiply-adds of one query: for each bin of n classes ``n r``, and ``d r`` where r < d.
    nbytes : int
        Bytes that the layer's arrays take.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or layout; CUDA arrays; numbers that are not finite or out of range.

    Notes
    -----
    Source: W. Chen, D. Grangier, M. Auli, "Strategies for training large vocabulary neural language models", ACL 2016,
    arXiv 1512.04906.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import DSoftmax
    >>> w = np.eye(8, dtype=np.float32)
    >>> layer = DSoftmax(w, counts=np.array([9, 1, 8, 1, 3, 1, 4, 1]))
    >>> probabilities, ids = layer.top_k(w[[0, 2]], k=1)
    >>> ids.ravel(), layer.widths, layer.flops_per_query
    (array([0, 2], dtype=int32), (8, 4, 2), 80.0)
    """

    def __init__(self, w, counts, bias=None, *, shares=(0.25, 0.25, 0.5), widths=None):
        self._options = counts, shares, widths
        super().__init__(w, bias)

    def _build(self, w, bias):
        counts, shares, widths = self._options
        del self._options
        shares = [_positive("shares", share) for share in check.sequence("shares", shares, "numbers")]
        if not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError(f"shares must sum to 1, got {sum(shares):g}; divide them by their sum")
        if widths is None:
            widths = [max(1, self.width >> i) for i in range(len(shares))]
        widths = check.sequence("widths", widths, "integers")
        if len(widths) != len(shares):
            raise ValueError(f"widths must be as many as shares, {len(shares)}, got {len(widths)}")
        self.widths = tuple(check.integer("widths", r, 1, self.width, " (the width of w)") for r in widths)
        pack = backend_of("cpu", "baselines").pack_bin
        self._bins = []
        for classes, r in zip(_bins(counts, shares, self.n_classes), self.widths, strict=True):
            if classes.size:
                coordinates, axes = low_rank(w[classes], r) if r < self.width else (w[classes], None)
                self._bins.append(pack(classes, coordinates, axes, bias[classes]))

    def _top_k(self, h, probabilities, ids):
        backend_of("cpu", "baselines").d_top_k(h, self._bins, probabilities, ids)

    @property
    def flops_per_query(self):
        ranks = [(len(part.classes), part.rows.shape[1]) for part in self._bins]
        return float(sum(n * r + (self.width * r if r < self.width else 0) for n, r in ranks))

    @property
    def nbytes(self):
        return sum(a.nbytes for part in self._bins for a in part if a is not None)


def _positive(name, value):
    """A number in (0, 1]."""
    if check.number(name, value, 0, 1) == 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return float(value)


def _bins(counts, shares, n_classes):
    """The classes of each bin, ascending; the bins from frequent to rare."""
    counts = check.array("counts", counts, getattr(counts, "dtype", None), (n_classes,))
    if counts.dtype.kind not in "iuf":
        raise TypeError(f"counts must be integers or floats, got {counts.dtype}")
    check.finite("counts", counts)
    if (counts < 0).any():
        raise ValueError(f"counts must not be negative, got {counts.min():g}")
    order = np.argsort(-counts.astype(np.float64), kind="stable").astype(np.int32)
    cuts = np.rint(np.cumsum(shares)[:-1] * n_classes).astype(int)
    return [np.sort(classes) for classes in np.split(order, cuts)]
