"""The plain samplers: they propose classes for sampled softmax without looking at the query.

All samplers have the same two methods, ``sample(queries, n_samples, seed, step)`` and ``log_prob(queries, ids)``; draws
are with replacement, from one counter-based stream: the same ids on every processor.
"""

import math
from typing import NamedTuple

import numpy as np

from .core import check
from .core.alias import alias_table
from .core.device import asarray, backend_of, device_of, empty, module_of, product, resolve_device
from .core.rng import Alias


def check_draws(queries, n_samples, seed, step):
    """Checked arguments of `sample`: device, (B, M), seed and step as kernels take them."""
    device = check.same_device(queries=queries)
    queries = check.array("queries", queries, np.float32, ("B", "d"))
    shape = queries.shape[0], check.integer("n_samples", n_samples, 1, 2**31 - 1)
    check.elements(rows=shape[0], n_samples=shape[1])
    seed = np.uint64(check.integer("seed", seed, 0, 2**64 - 1))
    return device, shape, seed, np.uint64(check.integer("step", step, 0, 2**32 - 1))


def check_ids(ids, n_classes, n_rows):
    """Checked ids (B, M) or (M,) int32 in [0, n_classes), of which B x M numbers can be made."""
    ids = check.integers("ids", ids, (n_rows, "M") if len(ids.shape) == 2 else ("M",), n_classes)
    check.elements(rows=n_rows, ids=ids.shape[-1])
    return ids


#: Vectors with larger numbers are scaled down by it before they are hashed.
LARGE = np.float32(2.0**64)
#: Scores of all classes that are held at once, where a sampler needs them: 128 MiB.
SCORES = 1 << 25


def check_log_q(log_q):
    """Log-probabilities that were computed from finite queries; FloatingPointError where they are not finite."""
    if not bool(module_of(device_of(log_q)).isfinite(log_q).all()):
        raise FloatingPointError(
            "the scores of queries and classes overflowed, or lie too far apart for float32; scale queries or classes down"
        )
    return log_q


def sample_all(scores, n_rows, n_classes, device, shape, seed, step):
    """Draws from the softmax of ``scores(rows)``, the (b, L) scores of a slice of rows, a few rows at a time."""
    ids, log_q = empty(shape, np.int32, device), empty(shape, np.float32, device)
    at_once = max(1, SCORES // n_classes)
    for first in range(0, n_rows, at_once):
        rows = slice(first, min(first + at_once, n_rows))
        with np.errstate(over="ignore", invalid="ignore"):
            backend_of(device, "samplers").draw_softmax(scores(rows), first, seed, step, ids[rows], log_q[rows])
    return ids, check_log_q(log_q)


def log_prob_all(scores, ids, n_rows, n_classes, device):
    """``log_softmax(scores)`` at ids (B, M) or (M,), a few rows at a time."""
    xp, log_q = module_of(device), empty((n_rows, ids.shape[-1]), np.float32, device)
    at_once = max(1, SCORES // n_classes)
    for first in range(0, n_rows, at_once):
        rows = slice(first, min(first + at_once, n_rows))
        with np.errstate(over="ignore", invalid="ignore"):
            some = scores(rows)
            some -= some.max(axis=1, keepdims=True)
            log_z = xp.log(xp.exp(some).sum(axis=1, keepdims=True))
            picked = some[:, ids] if len(ids.shape) == 1 else xp.take_along_axis(some, ids[rows].astype(np.int64), 1)
            log_q[rows] = picked - log_z
    return check_log_q(log_q)


class UniformSampler:
    """Every class is as likely as the other: ``Q(i) = 1 / n_classes``.

    Parameters
    ----------
    n_classes : int
        L, in [1, 2^31).

    Raises
    ------
    TypeError, ValueError
        n_classes out of range, or no integer.

    Notes
    -----
    Source: the simplest proposal; what the others have to beat.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import UniformSampler
    >>> sampler, queries = UniformSampler(1000), np.zeros((2, 8), np.float32)
    >>> ids, log_q = sampler.sample(queries, n_samples=3, seed=0)
    >>> ids.shape, ids.dtype, round(float(np.exp(log_q[0, 0])), 6)
    ((2, 3), dtype('int32'), 0.001)
    >>> bool((sampler.log_prob(queries, ids) == log_q).all())
    True
    """

    def __init__(self, n_classes):
        self.n_classes = check.integer("n_classes", n_classes, 1, 2**31 - 1)
        self._log_p = np.float32(-math.log(self.n_classes))

    def __repr__(self):
        return f"UniformSampler(n_classes={self.n_classes})"

    def sample(self, queries, n_samples, seed, step=0):
        """Draw classes for each row of the queries.

        Parameters
        ----------
        queries : (B, d) float32
            Only their number and device matter.
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
            Wrong dtype, shape or device; n_samples, seed or step out of range.
        """
        device, shape, seed, step = check_draws(queries, n_samples, seed, step)
        ids, log_q = empty(shape, np.int32, device), empty(shape, np.float32, device)
        backend_of(device, "samplers").draw_uniform(seed, step, self.n_classes, ids)
        log_q[...] = self._log_p
        return ids, log_q

    def log_prob(self, queries, ids):
        """``log Q(ids)``, whatever was drawn.

        Parameters
        ----------
        queries : (B, d) float32
            Only their number and device matter.
        ids : (B, M) or (M,) int32, or other integers
            Classes of each row, or those of all rows.

        Returns
        -------
        log_q : (B, M) float32

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; ids out of range.
        """
        device = check.same_device(queries=queries, ids=ids)
        queries = check.array("queries", queries, np.float32, ("B", "d"))
        ids = check_ids(ids, self.n_classes, queries.shape[0])
        log_q = empty((queries.shape[0], ids.shape[-1]), np.float32, device)
        log_q[...] = self._log_p
        return log_q


class _TableSampler:
    """Draws from fixed weights with alias tables, O(1) a draw; `log_weights` says what a tiny weight was before it became 0."""

    def __init__(self, weights, log_weights, device):
        self.device = resolve_device(check.choice("device", device, ("cpu", "cuda")))
        self.n_classes = len(weights)
        total = weights.sum()
        weights = weights / total
        self._log_p = asarray(log_weights - math.log(total), self.device, np.float32)
        alias = alias_table(weights, np.array([0, len(weights)]))
        self._alias = Alias(*(asarray(table, self.device) for table in alias))

    def __repr__(self):
        return f"{type(self).__name__}(n_classes={self.n_classes}, device={self.device!r})"

    def sample(self, queries, n_samples, seed, step=0):
        """Draw classes for each row of the queries.

        Parameters
        ----------
        queries : (B, d) float32
            On the sampler's device. Only their number matters.
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
            Wrong dtype, shape or device; n_samples, seed or step out of range.
        """
        check.same_device(queries=queries, sampler=self._log_p)
        device, shape, seed, step = check_draws(queries, n_samples, seed, step)
        ids, log_q = empty(shape, np.int32, device), empty(shape, np.float32, device)
        backend_of(device, "samplers").draw(seed, step, self._log_p, self._alias, ids, log_q)
        return ids, log_q

    def log_prob(self, queries, ids):
        """``log Q(ids)``, whatever was drawn.

        Parameters
        ----------
        queries : (B, d) float32
            Only their number and device matter.
        ids : (B, M) or (M,) int32, or other integers
            Classes of each row, or those of all rows.

        Returns
        -------
        log_q : (B, M) float32
            -inf for a class that is never drawn.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; ids out of range.
        """
        check.same_device(queries=queries, ids=ids, sampler=self._log_p)
        queries = check.array("queries", queries, np.float32, ("B", "d"))
        ids, n_rows = check_ids(ids, self.n_classes, queries.shape[0]), queries.shape[0]
        log_q = empty((n_rows, ids.shape[-1]), np.float32, self.device)
        log_q[...] = self._log_p[ids]
        return log_q


class LogUniformSampler(_TableSampler):
    """Classes drawn by Zipf's law: ``Q(i) = log((r + 2) / (r + 1)) / log(n_classes + 1)``, r the rank of class i.

    Parameters
    ----------
    n_classes : int
        L, in [1, 2^31).
    ranks : (L,) array or sequence of integers, optional
        The place of each class in the order of falling frequency, from 0; where not given, the classes are sorted: r =
        i.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        n_classes out of range; ranks that are no integers, or no permutation; an unknown device, or CUDA where there is
        none.

    Notes
    -----
    Source: Zipf's law; the form is that of TensorFlow's log-uniform candidate sampler.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import LogUniformSampler
    >>> sampler, queries = LogUniformSampler(1000), np.zeros((1, 8), np.float32)
    >>> np.exp(sampler.log_prob(queries, np.array([0, 999], np.int32))).round(6)
    array([[0.100329, 0.000145]], dtype=float32)
    >>> ids, log_q = sampler.sample(queries, n_samples=1000, seed=0)
    >>> bool((ids < 100).mean() > 0.5)
    True
    """

    def __init__(self, n_classes, *, ranks=None, device="cpu"):
        n_classes = check.integer("n_classes", n_classes, 1, 2**31 - 1)
        if ranks is not None:
            ranks = check.integers("ranks", np.asarray(check.on_host("ranks", ranks), order="C"), ("L",))
            if not np.array_equal(np.sort(ranks), np.arange(n_classes)):
                raise ValueError(
                    f"ranks must hold each of 0 to {n_classes - 1} once; use np.argsort(np.argsort(-counts))"
                )
        weights = np.log1p(1 / np.arange(1, n_classes + 1))
        if ranks is not None:
            weights = weights[ranks]
        super().__init__(weights, np.log(weights), device)


class UnigramSampler(_TableSampler):
    """Classes drawn by how often they occur: ``Q(i) = counts[i]^power / sum_j counts[j]^power``.

    Parameters
    ----------
    counts : (L,) array, NumPy
        Not negative and finite, not all zero. A class with count 0 is never drawn, its log-probability is -inf.
    power : float
        At least 0; 0.75 is usual for word embeddings. The power of a count of 0 is 0 for every power.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Counts of the wrong shape, negative, not finite or all zero; a negative power; an unknown device, or CUDA where
        there is none.
    FloatingPointError
        The power is so large that float32 cannot hold the log-probability of a class that has a count.

    Notes
    -----
    Source: Y. Bengio, J.-S. Senecal, "Quick training of probabilistic neural nets by importance sampling", AISTATS 2003
    (unigram proposals); T. Mikolov et al., "Distributed representations of words and phrases", NIPS 2013 (the power
    0.75).

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import UnigramSampler
    >>> sampler = UnigramSampler(np.array([6, 3, 0, 1]))
    >>> np.exp(sampler.log_prob(np.zeros((1, 8), np.float32), np.array([0, 1, 2, 3], np.int32))).round(3)
    array([[0.6, 0.3, 0. , 0.1]], dtype=float32)
    """

    def __init__(self, counts, power=1.0, *, device="cpu"):
        weights = check.amounts("counts", counts)
        if not weights.any():
            raise ValueError("counts must not be all zero: then there is nothing to draw")
        power = check.number("power", power, 0, math.inf)
        occurs, largest = weights > 0, weights.max()
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            log_weights = np.where(occurs, power * (np.log(weights) - math.log(largest)), -math.inf)
        lowest = np.finfo(np.float32).min
        if (log_weights[occurs] < lowest / 2).any():
            raise FloatingPointError(
                f"power={power:g} gives a class the log-probability {log_weights[occurs].min():g}, below what float32 holds; "
                "use a smaller power"
            )
        super().__init__(np.where(occurs, weights / largest, 1) ** power * occurs, log_weights, device)


class _ClassSampler:
    """A baseline that looks at the query and at the class embeddings; on the CPU alone."""

    def __init__(self, classes):
        if check.same_device(classes=classes) != "cpu":
            raise TypeError(f"{type(self).__name__} computes on the CPU alone, got classes on cuda; pass a NumPy array")
        self._classes = check.array("classes", classes, np.float32, ("L", "d"))
        check.finite("classes", self._classes)
        self.n_classes = check.integer("the number of classes", len(self._classes), 1, 2**31 - 1)

    def __repr__(self):
        return f"{type(self).__name__}(n_classes={self.n_classes})"

    def _queries(self, queries):
        check.same_device(queries=queries, classes=self._classes)
        queries = check.array("queries", queries, np.float32, ("B", self._classes.shape[1]))
        check.finite("queries", queries)
        return queries

    def sample(self, queries, n_samples, seed, step=0):
        """Draw classes for each query.

        Parameters
        ----------
        queries : (B, d) float32
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
            Wrong dtype, shape or device; queries that are not finite; n_samples, seed or step out of range.
        FloatingPointError
            The scores of queries and classes overflow.
        """
        queries = self._queries(queries)
        _, shape, seed, step = check_draws(queries, n_samples, seed, step)
        return self._sample(queries, shape, seed, step)

    def log_prob(self, queries, ids):
        """``log Q(ids | queries)``, whatever was drawn.

        Parameters
        ----------
        queries : (B, d) float32
        ids : (B, M) or (M,) int32, or other integers
            Classes of each row, or those of all rows.

        Returns
        -------
        log_q : (B, M) float32

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; queries that are not finite; ids out of range.
        FloatingPointError
            The scores of queries and classes overflow.
        """
        queries = self._queries(queries)
        check.same_device(queries=queries, ids=ids)
        return self._log_prob(queries, check_ids(ids, self.n_classes, len(queries)))


class _KernelSampler(_ClassSampler):
    """Draws by ``_log_weights(queries)``, (b, L): touches all classes, for a draw and for a probability."""

    def _scores(self, queries):
        return lambda rows: self._log_weights(queries[rows])

    def _sample(self, queries, shape, seed, step):
        return sample_all(self._scores(queries), len(queries), self.n_classes, "cpu", shape, seed, step)

    def _log_prob(self, queries, ids):
        return log_prob_all(self._scores(queries), ids, len(queries), self.n_classes, "cpu")


class SphereSampler(_KernelSampler):
    """Draws by a quadratic kernel of query and class; CPU.

    ``Q(i | q) ~ alpha (q . c_i)^2 + 1``. Here it touches all classes.

    Parameters
    ----------
    classes : (L, d) float32
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
    >>> classes = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
    >>> ids, log_q = SphereSampler(classes).sample(classes[:2], n_samples=5, seed=0)
    >>> ids.shape
    (2, 5)
    """

    def __init__(self, classes, alpha=100.0):
        super().__init__(classes)
        self._alpha = np.float32(check.number("alpha", alpha, 0, float(np.finfo(np.float32).max)))

    def _log_weights(self, queries):
        """``log(alpha s^2 + 1)``; where the square overflows, the 1 does not count: ``log(alpha) + 2 log |s|``."""
        scores = product(queries, self._classes.T)
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
    classes : (L, d) float32
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
    >>> classes = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
    >>> ids, log_q = RFFSampler(classes).sample(classes[:2], n_samples=5, seed=0)
    >>> ids.shape
    (2, 5)
    """

    def __init__(self, classes, n_features=32, seed=0):
        super().__init__(classes)
        n_features = check.integer("n_features", n_features, 1)
        check.elements(n_features=n_features, width_or_classes=max(self._classes.shape))
        random = np.random.default_rng(check.integer("seed", seed, 0, 2**64 - 1))
        self._directions = random.standard_normal((n_features, self._classes.shape[1])).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            exponents = product(self._classes, self._directions.T)
            exponents -= np.float32(0.5) * np.einsum("nd,nd->n", self._classes, self._classes)[:, None]
            self._features = np.exp(exponents - exponents.max()).T.copy()
        if not np.isfinite(self._features).all():
            raise FloatingPointError(
                "the features of the classes overflowed: w . c - |c|^2 / 2; scale the classes down"
            )

    def _log_weights(self, queries):
        exponents = product(queries, self._directions.T)
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
    classes : (L, d) float32
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
    >>> classes = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
    >>> sampler = LSHSampler(classes)
    >>> ids, log_q = sampler.sample(classes[:2], n_samples=5, seed=0)
    >>> bool(np.allclose(sampler.log_prob(classes[:2], ids), log_q))
    True
    """

    def __init__(self, classes, n_bits=4, n_tables=16, uniform=0.1, seed=0):
        super().__init__(classes)
        n_bits, n_tables = check.integer("n_bits", n_bits, 1, 16), check.integer("n_tables", n_tables, 1)
        check.elements(n_tables=n_tables, size=max(self.n_classes, n_bits * self._classes.shape[1], 2**n_bits + 1))
        check.number("uniform", uniform, 0, 1)
        if uniform == 0:
            raise ValueError("uniform must be above 0: without it most classes would have probability 0")
        self._uniform = np.float32(uniform)
        random = np.random.default_rng(check.integer("seed", seed, 0, 2**64 - 1))
        self._planes = random.standard_normal((n_tables, n_bits, self._classes.shape[1])).astype(np.float32)
        codes, n_buckets = self._codes(self._classes), 2**n_bits
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
        backend_of("cpu", "lsh").hash_codes(vectors, self._planes, codes)
        return codes

    def _sample(self, queries, shape, seed, step):
        ids, log_q = np.empty(shape, np.int32), np.empty(shape, np.float32)
        wing = backend_of("cpu", "lsh")
        wing.sample(self._codes(queries), self._tables, self._uniform, seed, step, ids, log_q)
        return ids, log_q

    def _log_prob(self, queries, ids):
        ids = np.ascontiguousarray(np.broadcast_to(ids, (len(queries), ids.shape[-1])))
        log_q = np.empty(ids.shape, np.float32)
        backend_of("cpu", "lsh").log_prob(self._codes(queries), self._tables, self._uniform, ids, log_q)
        return log_q
