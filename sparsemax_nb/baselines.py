"""Baselines that the methods are compared with, on the CPU only: approximate softmax layers and samplers.

SVD-softmax and D-softmax are layers with a `top_k`; Sphere, RFF and LSH are samplers for sampled softmax.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .core import check
from .core.annotations import Array
from .core.device import backend_of, product
from .core.low_rank import low_rank
from .full_softmax import SoftmaxLayer
from .samplers import check_draws, check_ids, log_prob_all, sample_all

#: Vectors with larger entries are divided by this before they are hashed.
HASH_SCALE = np.float32(2.0**64)


class _CPULayer(SoftmaxLayer):
    """A baseline layer, on the CPU only."""

    def __init__(self, weights: Array, bias: Array | None) -> None:
        if check.same_device(weights=weights) != "cpu":
            raise TypeError(
                f"{type(self).__name__} is a baseline for the CPU only, got weights on cuda; pass NumPy arrays"
            )
        super().__init__(weights, bias)


class SVDSoftmax(_CPULayer):
    """Top-k by approximate scores of all classes in a few dimensions, then exact scores of the best ones; CPU.

    With ``weights = U S V.T``, ``b = U S`` and ``q = h @ V``, the approximate scores ("preview") are
    ``q[:, :width] @ b[:, :width].T + bias``. The n_candidates best classes of a row (of equal scores, those with the
    lower id) get the exact score ``q @ b.T + bias``. Probabilities are the softmax over all classes, of the exact score
    if a class has one, else of the approximate one.

    Parameters
    ----------
    weights : (L, d) float32
        NumPy, C-contiguous and finite. Copied.
    bias : (L,) float32, optional
        Finite. 0 by default.
    width : int
        Dimensions of the approximate scores, in [1, d].
    n_candidates : int, optional
        In [1, L]. By default ``share * L``, rounded up.
    share : float
        In (0, 1].

    Attributes
    ----------
    flops_per_query : float
        Multiply-adds per row of h: ``d d + L width + n_candidates d``.
    nbytes : int
        Bytes of the layer's arrays.

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

    def __init__(
        self,
        weights: Array,
        bias: Array | None = None,
        *,
        width: int = 16,
        n_candidates: int | None = None,
        share: float = 0.05,
    ) -> None:
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
    def flops_per_query(self) -> float:
        return float(self.width**2 + self.n_classes * self.preview_width + self.n_candidates * self.width)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self._layer)


class DSoftmax(_CPULayer):
    """Differentiated softmax: frequent classes are scored in many dimensions, rare ones in few; CPU.

    The classes, sorted by count, are divided into bins. The weights w_i of a bin are replaced by their best
    approximation of rank ``r = widths[i]``, ``w_i ~ a_i @ v_i.T`` with the first r singular vectors v_i of the bin, so
    that its scores are ``(h @ v_i) @ a_i.T + bias``. (The paper trains such a layer; here it is computed from a trained
    softmax layer.)

    Parameters
    ----------
    weights : (L, d) float32
        NumPy, C-contiguous and finite. Copied.
    counts : (L,) array, NumPy
        How often each class occurs, not negative. Of classes with equal counts, the lower id comes first.
    bias : (L,) float32, optional
        Finite. 0 by default.
    shares : sequence of float
        Each bin's share of the classes, the most frequent first; positive, with sum 1.
    widths : sequence of int, optional
        Each in [1, d]. By default d, d / 2, d / 4, ... (at least 1): with the default shares, half the multiply-adds of
        the full softmax, plus those of ``h @ v_i``.

    Attributes
    ----------
    flops_per_query : float
        Multiply-adds per row of h: for each bin of n classes ``n r``, plus ``d r`` if r < d.
    nbytes : int
        Bytes of the layer's arrays.

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

    def __init__(
        self,
        weights: Array,
        counts: Array,
        bias: Array | None = None,
        *,
        shares: Sequence[float] = (0.25, 0.25, 0.5),
        widths: Sequence[int] | None = None,
    ) -> None:
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
            raise ValueError(f"widths must have one entry per share, {len(shares)}, got {len(widths)}")
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
    def flops_per_query(self) -> float:
        ranks = [(len(part.classes), part.rows.shape[1]) for part in self._bins]
        return float(sum(n * r + (self.width * r if r < self.width else 0) for n, r in ranks))

    @property
    def nbytes(self) -> int:
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
    """A sampler that depends on h and on the class embeddings, on the CPU only."""

    def __init__(self, weights: Array) -> None:
        if check.same_device(weights=weights) != "cpu":
            raise TypeError(
                f"{type(self).__name__} is a baseline for the CPU only, got weights on cuda; pass a NumPy array"
            )
        self._weights = check.array("weights", weights, np.float32, ("L", "d"), finite=True)
        self.n_classes = check.integer("the number of classes", len(self._weights), 1, 2**31 - 1)

    def __repr__(self):
        return f"{type(self).__name__}(n_classes={self.n_classes})"

    def _checked_h(self, h):
        check.same_device(h=h, weights=self._weights)
        return check.array("h", h, np.float32, ("B", self._weights.shape[1]), finite=True)

    def sample(self, h: Array, n_samples: int, seed: int, step: int = 0) -> tuple[Array, Array]:
        """Draw classes for each row of h.

        Parameters
        ----------
        h : (B, d) float32
            Finite; NumPy.
        n_samples : int
            M, at least 1; B M at most 2^31 - 1.
        seed, step : int
            In [0, 2^64) and [0, 2^32). The same pair gives the same draws.

        Returns
        -------
        ids : (B, M) int32
            Classes, drawn with replacement.
        log_q : (B, M) float32
            ``log Q`` of each draw.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h that is not finite; n_samples, seed or step out of range.
        FloatingPointError
            The scores h @ weights.T overflow.
        """
        h = self._checked_h(h)
        shape, seed, step = check_draws(len(h), n_samples, seed, step)
        return self._sample(h, shape, seed, step)

    def log_prob(self, h: Array, ids: Array) -> Array:
        """``log Q(ids | h)`` of any classes.

        Parameters
        ----------
        h : (B, d) float32
        ids : (B, M) or (M,) int32, or other integers
            Classes of each row, or shared by all rows.

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
        h = self._checked_h(h)
        check.same_device(h=h, ids=ids)
        return self._log_prob(h, check_ids(ids, self.n_classes, len(h)))

    def _sample(self, h, shape, seed, step):
        """`sample` for checked arguments."""
        raise NotImplementedError

    def _log_prob(self, h, ids):
        """`log_prob` for checked arguments."""
        raise NotImplementedError


class _KernelSampler(_ClassSampler):
    """Draws from the softmax of ``_log_weights(h)``, (b, L): scores all classes."""

    def _scores(self, h):
        return lambda rows: self._log_weights(h[rows])

    def _sample(self, h, shape, seed, step):
        return sample_all(self._scores(h), len(h), self.n_classes, "cpu", shape, seed, step)

    def _log_prob(self, h, ids):
        return log_prob_all(self._scores(h), ids, len(h), self.n_classes, "cpu")


class SphereSampler(_KernelSampler):
    """Draws classes by a quadratic kernel of h and class, ``Q(i | h) ~ alpha (w_i^T h)^2 + 1``; CPU.

    This implementation scores all classes.

    Parameters
    ----------
    weights : (L, d) float32
        The output embeddings w_i. Kept, not copied.
    alpha : float
        Not negative, and a finite float32.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; weights that are not finite; alpha negative.

    Notes
    -----
    Source: G. Blanc, S. Rendle, "Adaptive sampled softmax with kernel based sampling", ICML 2018. There, a tree makes
    draws logarithmic.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import SphereSampler
    >>> weights = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
    >>> ids, log_q = SphereSampler(weights).sample(weights[:2], n_samples=5, seed=0)
    >>> ids.shape
    (2, 5)
    """

    def __init__(self, weights: Array, alpha: float = 100.0) -> None:
        super().__init__(weights)
        self._alpha = np.float32(check.number("alpha", alpha, 0, float(np.finfo(np.float32).max)))

    def _log_weights(self, h):
        """``log(alpha s^2 + 1)``; if the square overflows, the 1 is negligible: ``log(alpha) + 2 log |s|``."""
        scores = product(h, self._weights.T)
        log_weights = np.log1p(self._alpha * np.square(scores))
        large = ~np.isfinite(log_weights)
        if large.any():
            with np.errstate(divide="ignore"):  # alpha = 0
                log_weights[large] = np.maximum(np.log(self._alpha) + 2 * np.log(np.abs(scores[large])), 0)
        return log_weights


class RFFSampler(_KernelSampler):
    """Draws classes by positive random features of the exponential kernel; CPU.

    ``Q(i | h) ~ phi(h) . phi(w_i)``, ``phi_j(x) = exp(z_j . x - |x|^2 / 2)`` with z_j standard normal. The expectation
    of the product is ``exp(h . w_i)``; the norm of h cancels in Q. All classes are scored. (The name is from random
    Fourier features, which can make the kernel negative.)

    Parameters
    ----------
    weights : (L, d) float32
        The output embeddings w_i. Kept, not copied.
    n_features : int
        Number of features.
    seed : int
        Of the features.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; weights that are not finite; n_features below 1.
    FloatingPointError
        Weights so large that their features overflow.

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

    def __init__(self, weights: Array, n_features: int = 32, seed: int = 0) -> None:
        super().__init__(weights)
        n_features = check.integer("n_features", n_features, 1)
        check.array_size(n_features=n_features, width_or_classes=max(self._weights.shape))
        random = np.random.default_rng(check.integer("seed", seed, 0, 2**64 - 1))
        self._directions = random.standard_normal((n_features, self._weights.shape[1])).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            exponents = product(self._weights, self._directions.T)
            exponents -= np.float32(0.5) * np.einsum("nd,nd->n", self._weights, self._weights)[:, None]
            self._features = np.exp(exponents - exponents.max()).T.copy()
        if not np.isfinite(self._features).all():
            raise FloatingPointError(
                "the features of the weights overflowed: z . w - |w|^2 / 2; scale the weights down"
            )

    def _log_weights(self, h):
        exponents = product(h, self._directions.T)
        weighted = product(np.exp(exponents - exponents.max(axis=1, keepdims=True)), self._features)
        return np.log(np.maximum(weighted, np.finfo(np.float32).tiny))


class _Tables(NamedTuple):
    """Hash tables, as the kernels take them."""

    codes: np.ndarray  # (L, T) int32: the bucket of each class in each table
    indptr: np.ndarray  # (T, 2^n_bits + 1) int32: bucket c of table t is members[t, indptr[t, c]:indptr[t, c + 1]]
    members: np.ndarray  # (T, L) int32


class LSHSampler(_ClassSampler):
    """Draws classes from the bucket of h in random hash tables, mixed with uniform draws; CPU.

    ``Q(i | h) = u / L + (1 - u) / T sum_t [code_t(w_i) = code_t(h)] / |bucket|``; an empty bucket counts as uniform.
    The codes are the signs of random projections (SimHash). A draw costs O(T), independent of the number of classes.

    Parameters
    ----------
    weights : (L, d) float32
        The output embeddings w_i. Kept, not copied.
    n_bits, n_tables : int
        Bits of a code, in [1, 16], and T, the number of tables.
    uniform : float
        u, in (0, 1]. Without it, most classes would have probability 0.
    seed : int
        Of the projections.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; weights that are not finite; n_bits, n_tables or uniform out of range.

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

    def __init__(
        self, weights: Array, n_bits: int = 4, n_tables: int = 16, uniform: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(weights)
        n_bits, n_tables = check.integer("n_bits", n_bits, 1, 16), check.integer("n_tables", n_tables, 1)
        check.array_size(n_tables=n_tables, size=max(self.n_classes, n_bits * self._weights.shape[1], 2**n_bits + 1))
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
        large = np.abs(vectors).max(axis=1, initial=0) > HASH_SCALE
        if large.any():  # keeps the projections finite; scaling by a power of two does not change their signs
            vectors = vectors.copy()
            vectors[large] *= 1 / HASH_SCALE
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
