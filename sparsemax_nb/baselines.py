"""Approximations of the softmax over all classes that others are compared with: SVD-softmax, D-softmax; on the CPU alone."""

import math
from typing import NamedTuple

import numpy as np

from .core import check
from .core.device import backend_of, product
from .core.low_rank import low_rank
from .full_softmax import SoftmaxLayer
from .samplers import LARGE, check_draws, check_ids, log_prob_all, sample_all


class _CPULayer(SoftmaxLayer):
    """A baseline, on the CPU alone."""

    def __init__(self, weights, bias):
        if check.same_device(weights=weights) != "cpu":
            raise TypeError(
                f"{type(self).__name__} is a baseline that computes on the CPU alone, got w on cuda; pass NumPy arrays"
            )
        super().__init__(weights, bias)


class SVDSoftmax(_CPULayer):
    """Top-k by a preview of all classes in a few dimensions and exact scores for the best of it; CPU.

    With ``weights = U S V.T``, ``b = U S`` and ``q = h @ V``: the preview is ``q[:, :width] @ b[:, :width].T + bias``; the
    n_candidates best classes of a row (of equal ones, those with the lower id) get the exact ``q @ b.T + bias``.
    Probabilities are the softmax over all classes, of the exact scores where there are any, else of the preview.

    Parameters
    ----------
    weights : (L, d) float32
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
    >>> weights = (random.standard_normal((1000, 4)) @ random.standard_normal((4, 32))).astype(np.float32)  # of rank 4
    >>> layer = SVDSoftmax(weights, width=4, share=0.01)
    >>> probabilities, ids = layer.top_k(weights[:3], k=2)
    >>> (ids == np.argsort(-weights[:3] @ weights.T)[:, :2]).all()
    np.True_
    >>> layer.n_candidates, layer.flops_per_query
    (10, 5344.0)
    """

    def __init__(self, weights, bias=None, *, width=16, n_candidates=None, share=0.05):
        self._options = width, n_candidates, share
        super().__init__(weights, bias)

    def _build(self, weights, bias):
        width, n_candidates, share = self._options
        self.preview_width = check.integer("width", width, 1, self.width, " (the width of weights)")
        if n_candidates is None:
            n_candidates = math.ceil(_positive("share", share) * self.n_classes)
        self.n_candidates = check.integer("n_candidates", n_candidates, 1, self.n_classes, " (the number of classes)")
        pack = backend_of("cpu", "baselines").pack_svd
        self._layer = pack(*low_rank(weights, self.width), bias, self.preview_width)

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
    weights : (L, d) float32
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
    >>> weights = np.eye(8, dtype=np.float32)
    >>> layer = DSoftmax(weights, counts=np.array([9, 1, 8, 1, 3, 1, 4, 1]))
    >>> probabilities, ids = layer.top_k(weights[[0, 2]], k=1)
    >>> ids.ravel(), layer.widths, layer.flops_per_query
    (array([0, 2], dtype=int32), (8, 4, 2), 80.0)
    """

    def __init__(self, weights, counts, bias=None, *, shares=(0.25, 0.25, 0.5), widths=None):
        self._options = counts, shares, widths
        super().__init__(weights, bias)

    def _build(self, weights, bias):
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
        self.widths = tuple(check.integer("widths", r, 1, self.width, " (the width of weights)") for r in widths)
        pack = backend_of("cpu", "baselines").pack_bin
        self._bins = []
        for classes, r in zip(_bins(counts, shares, self.n_classes), self.widths, strict=True):
            if classes.size:
                coordinates, axes = low_rank(weights[classes], r) if r < self.width else (weights[classes], None)
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


class _ClassSampler:
    """A baseline that looks at the query and at the class embeddings; on the CPU alone."""

    def __init__(self, weights):
        if check.same_device(weights=weights) != "cpu":
            raise TypeError(f"{type(self).__name__} computes on the CPU alone, got classes on cuda; pass a NumPy array")
        self._weights = check.array("weights", weights, np.float32, ("L", "d"))
        check.finite("weights", self._weights)
        self.n_classes = check.integer("the number of classes", len(self._weights), 1, 2**31 - 1)

    def __repr__(self):
        return f"{type(self).__name__}(n_classes={self.n_classes})"

    def _queries(self, h):
        check.same_device(h=h, weights=self._weights)
        h = check.array("h", h, np.float32, ("B", self._weights.shape[1]))
        check.finite("h", h)
        return h

    def sample(self, h, n_samples, seed, step=0):
        """Draw classes for each query.

        Parameters
        ----------
        h : (B, d) float32
            Finite; NumPy.
        n_samples : int
            M, at least 1; B M at most 2^31 - 1.
        seed, step : int
            In [0, 2^64) and [0, 2^32): the same pair gives the same draws.

        Returns
        -------
        ids : (B, M) int32
            Classes, drawn with replacement.
        log_q : (B, M) float32
            ``log Q`` of each.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h that is not finite; n_samples, seed or step out of range.
        FloatingPointError
            The scores h @ weights.T overflow.
        """
        h = self._queries(h)
        _, shape, seed, step = check_draws(h, n_samples, seed, step)
        return self._sample(h, shape, seed, step)

    def log_prob(self, h, ids):
        """``log Q(ids | h)``, whatever was drawn.

        Parameters
        ----------
        h : (B, d) float32
        ids : (B, M) or (M,) int32, or other integers
            Classes of each row, or those of all rows.

        Returns
        -------
        log_q : (B, M) float32

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h that is not finite; ids out of range.
        FloatingPointError
            The scores h @ weights.T overflow.
        """
        h = self._queries(h)
        check.same_device(h=h, ids=ids)
        return self._log_prob(h, check_ids(ids, self.n_classes, len(h)))


class _KernelSampler(_ClassSampler):
    """Draws by ``_log_weights(h)``, (b, L): touches all classes, for a draw and for a probability."""

    def _scores(self, h):
        return lambda rows: self._log_weights(h[rows])

    def _sample(self, h, shape, seed, step):
        return sample_all(self._scores(h), len(h), self.n_classes, "cpu", shape, seed, step)

    def _log_prob(self, h, ids):
        return log_prob_all(self._scores(h), ids, len(h), self.n_classes, "cpu")


class SphereSampler(_KernelSampler):
    """Draws by a quadratic kernel of query and class; CPU.

    ``Q(i | q) ~ alpha (q . c_i)^2 + 1``. Here it touches all classes.

    Parameters
    ----------
    weights : (L, d) float32
        Held, not copied.
    alpha : float
        Not negative, and a finite float32.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; classes that are not finite; alpha negative.

    Notes
    -----
    Source: G. Blanc, S. Rendle, "Adaptive sampled softmax with kernel based sampling", ICML 2018 (with a tree, which
    would make a draw logarithmic).

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import SphereSampler
    >>> weights = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
    >>> ids, log_q = SphereSampler(weights).sample(weights[:2], n_samples=5, seed=0)
    >>> ids.shape
    (2, 5)
    """

    def __init__(self, weights, alpha=100.0):
        super().__init__(weights)
        self._alpha = np.float32(check.number("alpha", alpha, 0, float(np.finfo(np.float32).max)))

    def _log_weights(self, h):
        """``log(alpha s^2 + 1)``; where the square overflows, the 1 does not count: ``log(alpha) + 2 log |s|``."""
        scores = product(h, self._weights.T)
        log_weights = np.log1p(self._alpha * np.square(scores))
        large = ~np.isfinite(log_weights)
        if large.any():
            with np.errstate(divide="ignore"):  # alpha = 0
                log_weights[large] = np.maximum(np.log(self._alpha) + 2 * np.log(np.abs(scores[large])), 0)
        return log_weights


class RFFSampler(_KernelSampler):
    """Draws by positive random features of the exponential kernel; CPU.

    ``Q(i | q) ~ phi(q) . phi(c_i)``, ``phi_j(x) = exp(w_j . x - |x|^2 / 2)`` with w_j standard normal: the
    expectation of the product is ``exp(q . c)``; the query's own norm cancels in Q. It touches all classes. (Fourier
    features, after which the sampler is named, can make a kernel negative.)

    Parameters
    ----------
    weights : (L, d) float32
        Held, not copied.
    n_features : int
        D.
    seed : int
        Of the features.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; classes that are not finite; n_features below 1.
    FloatingPointError
        Classes so large that their features overflow.

    Notes
    -----
    Source: A. Rawat et al., "Sampled softmax with random Fourier features", NeurIPS 2019; K. Choromanski et al.,
    "Rethinking attention with performers", ICLR 2021 (positive features).

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import RFFSampler
    >>> weights = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
    >>> ids, log_q = RFFSampler(weights).sample(weights[:2], n_samples=5, seed=0)
    >>> ids.shape
    (2, 5)
    """

    def __init__(self, weights, n_features=32, seed=0):
        super().__init__(weights)
        n_features = check.integer("n_features", n_features, 1)
        check.elements(n_features=n_features, width_or_classes=max(self._weights.shape))
        random = np.random.default_rng(check.integer("seed", seed, 0, 2**64 - 1))
        self._directions = random.standard_normal((n_features, self._weights.shape[1])).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            exponents = product(self._weights, self._directions.T)
            exponents -= np.float32(0.5) * np.einsum("nd,nd->n", self._weights, self._weights)[:, None]
            self._features = np.exp(exponents - exponents.max()).T.copy()
        if not np.isfinite(self._features).all():
            raise FloatingPointError(
                "the features of the classes overflowed: w . c - |c|^2 / 2; scale the classes down"
            )

    def _log_weights(self, h):
        exponents = product(h, self._directions.T)
        weighted = product(np.exp(exponents - exponents.max(axis=1, keepdims=True)), self._features)
        return np.log(np.maximum(weighted, np.finfo(np.float32).tiny))


class _Tables(NamedTuple):
    """Hash tables, as kernels take them."""

    codes: np.ndarray  # (L, T) int32: the bucket of each class in each table
    indptr: np.ndarray  # (T, 2^n_bits + 1) int32: bucket c of table t holds members[t, indptr[t, c]:indptr[t, c + 1]]
    members: np.ndarray  # (T, L) int32


class LSHSampler(_ClassSampler):
    """Draws classes that a hash table puts into the query's bucket, mixed with a little uniform; CPU.

    ``Q(i | q) = u / L + (1 - u) / T sum_t [h_t(i) = h_t(q)] / |bucket|``; an empty bucket counts as uniform. Hashes are
    the signs of random projections (SimHash). A draw costs O(T), whatever the number of classes.

    Parameters
    ----------
    weights : (L, d) float32
        Held, not copied.
    n_bits, n_tables : int
        Bits of a hash, in [1, 16]; T.
    uniform : float
        u, in (0, 1]: without it most classes would have probability 0.
    seed : int
        Of the projections.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; classes that are not finite; n_bits, n_tables or uniform out of range.

    Notes
    -----
    Source: S. Vijayanarasimhan et al., "Deep networks with large output spaces", ICLR 2015; the mixture is ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import LSHSampler
    >>> weights = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
    >>> sampler = LSHSampler(weights)
    >>> ids, log_q = sampler.sample(weights[:2], n_samples=5, seed=0)
    >>> bool(np.allclose(sampler.log_prob(weights[:2], ids), log_q))
    True
    """

    def __init__(self, weights, n_bits=4, n_tables=16, uniform=0.1, seed=0):
        super().__init__(weights)
        n_bits, n_tables = check.integer("n_bits", n_bits, 1, 16), check.integer("n_tables", n_tables, 1)
        check.elements(n_tables=n_tables, size=max(self.n_classes, n_bits * self._weights.shape[1], 2**n_bits + 1))
        check.number("uniform", uniform, 0, 1)
        if uniform == 0:
            raise ValueError("uniform must be above 0: without it most classes would have probability 0")
        self._uniform = np.float32(uniform)
        random = np.random.default_rng(check.integer("seed", seed, 0, 2**64 - 1))
        self._planes = random.standard_normal((n_tables, n_bits, self._weights.shape[1])).astype(np.float32)
        codes, n_buckets = self._codes(self._weights), 2**n_bits
        indptr = np.zeros((n_tables, n_buckets + 1), np.int32)
        for t in range(n_tables):
            indptr[t, 1:] = np.cumsum(np.bincount(codes[:, t], minlength=n_buckets))
        members = np.ascontiguousarray(np.argsort(codes, axis=0, kind="stable").T, np.int32)
        self._tables = _Tables(codes, indptr, members)

    def _codes(self, vectors):
        codes = np.empty((len(vectors), len(self._planes)), np.int32)
        large = np.abs(vectors).max(axis=1, initial=0) > LARGE
        if large.any():  # only signs count, and a power of two changes none: so the projections do not overflow
            vectors = vectors.copy()
            vectors[large] *= 1 / LARGE
        backend_of("cpu", "baselines").hash_codes(vectors, self._planes, codes)
        return codes

    def _sample(self, h, shape, seed, step):
        ids, log_q = np.empty(shape, np.int32), np.empty(shape, np.float32)
        draw = backend_of("cpu", "baselines").lsh_sample
        draw(self._codes(h), self._tables, self._uniform, seed, step, ids, log_q)
        return ids, log_q

    def _log_prob(self, h, ids):
        ids = np.ascontiguousarray(np.broadcast_to(ids, (len(h), ids.shape[-1])))
        log_q = np.empty(ids.shape, np.float32)
        log_prob = backend_of("cpu", "baselines").lsh_log_prob
        log_prob(self._codes(h), self._tables, self._uniform, ids, log_q)
        return log_q
