"""Samplers that do not depend on h: they propose classes for sampled softmax.

All samplers, including those of other modules, have the methods ``sample(h, n_samples, seed, step)`` and
``log_prob(h, ids)``. They draw with replacement from one counter-based stream: the same ids on every device.
"""

import math

import numpy as np

from .core import check
from .core.alias import alias_table
from .core.annotations import Array, Device
from .core.device import asarray, backend_of, device_of, empty, module_of, resolve_device
from .core.rng import Alias

#: Samplers that need the scores of all classes compute them for chunks of rows, at most this many at a time: 128 MiB.
SCORES_PER_CHUNK = 1 << 25


def check_draws(n_rows, n_samples, seed, step):
    """Checked arguments of `sample`: the shape (B, M), and seed and step as the kernels take them."""
    shape = n_rows, check.integer("n_samples", n_samples, 1, 2**31 - 1)
    check.array_size(rows=n_rows, n_samples=shape[1])
    seed = np.uint64(check.integer("seed", seed, 0, 2**64 - 1))
    return shape, seed, np.uint64(check.integer("step", step, 0, 2**32 - 1))


def check_ids(ids, n_classes, n_rows):
    """Checked ids, (B, M) or (M,) int32 in [0, n_classes), for which a (B, M) result is not too large."""
    ids = check.integers("ids", ids, (n_rows, "M") if len(ids.shape) == 2 else ("M",), n_classes)
    check.array_size(rows=n_rows, ids=ids.shape[-1])
    return ids


def check_log_q(log_q):
    """FloatingPointError if log-probabilities that were computed from finite h are not finite; else returns them."""
    if not bool(module_of(device_of(log_q)).isfinite(log_q).all()):
        raise FloatingPointError(
            "the scores h @ weights.T overflowed, or differ too much for float32; scale h or the weights down"
        )
    return log_q


def sample_all(scores, n_rows, n_classes, device, shape, seed, step):
    """Draws from the softmax of ``scores(rows)``, the (b, L) scores of a slice of rows, in chunks of rows."""
    ids, log_q = empty(shape, np.int32, device), empty(shape, np.float32, device)
    chunk = max(1, SCORES_PER_CHUNK // n_classes)
    for first in range(0, n_rows, chunk):
        rows = slice(first, min(first + chunk, n_rows))
        with np.errstate(over="ignore", invalid="ignore"):
            backend_of(device, "samplers").draw_softmax(scores(rows), first, seed, step, ids[rows], log_q[rows])
    return ids, check_log_q(log_q)


def log_prob_all(scores, ids, n_rows, n_classes, device):
    """``log_softmax(scores)`` at ids (B, M) or (M,), in chunks of rows; `scores` as for `sample_all`."""
    xp, log_q = module_of(device), empty((n_rows, ids.shape[-1]), np.float32, device)
    chunk = max(1, SCORES_PER_CHUNK // n_classes)
    for first in range(0, n_rows, chunk):
        rows = slice(first, min(first + chunk, n_rows))
        with np.errstate(over="ignore", invalid="ignore"):
            shifted = scores(rows)
            shifted -= shifted.max(axis=1, keepdims=True)
            log_z = xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
            if len(ids.shape) == 1:
                log_q[rows] = shifted[:, ids] - log_z
            else:
                log_q[rows] = xp.take_along_axis(shifted, ids[rows].astype(np.int64), 1) - log_z
    return check_log_q(log_q)


class UniformSampler:
    """All classes are equally likely: ``Q(i) = 1 / n_classes``.

    Parameters
    ----------
    n_classes : int
        L, in [1, 2^31).

    Raises
    ------
    TypeError, ValueError
        n_classes out of range, or not an integer.

    Notes
    -----
    Source: the simplest proposal, the baseline of all others.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import UniformSampler
    >>> sampler, h = UniformSampler(1000), np.zeros((2, 8), np.float32)
    >>> ids, log_q = sampler.sample(h, n_samples=3, seed=0)
    >>> ids.shape, ids.dtype, round(float(np.exp(log_q[0, 0])), 6)
    ((2, 3), dtype('int32'), 0.001)
    >>> bool((sampler.log_prob(h, ids) == log_q).all())
    True
    """

    def __init__(self, n_classes: int) -> None:
        self.n_classes = check.integer("n_classes", n_classes, 1, 2**31 - 1)
        self._log_p = np.float32(-math.log(self.n_classes))

    def __repr__(self):
        return f"UniformSampler(n_classes={self.n_classes})"

    def sample(self, h: Array, n_samples: int, seed: int, step: int = 0) -> tuple[Array, Array]:
        """Draw classes for each row of h.

        Parameters
        ----------
        h : (B, d) float32
            Only the number of rows and the device matter.
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
            Wrong dtype, shape or device; n_samples, seed or step out of range.
        """
        device = check.same_device(h=h)
        h = check.array("h", h, np.float32, ("B", "d"))
        shape, seed, step = check_draws(h.shape[0], n_samples, seed, step)
        ids, log_q = empty(shape, np.int32, device), empty(shape, np.float32, device)
        backend_of(device, "samplers").draw_uniform(seed, step, self.n_classes, ids)
        log_q[...] = self._log_p
        return ids, log_q

    def log_prob(self, h: Array, ids: Array) -> Array:
        """``log Q(ids)`` of any classes.

        Parameters
        ----------
        h : (B, d) float32
            Only the number of rows and the device matter.
        ids : (B, M) or (M,) int32, or other integers
            Classes of each row, or shared by all rows.

        Returns
        -------
        log_q : (B, M) float32

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; ids out of range.
        """
        device = check.same_device(h=h, ids=ids)
        h = check.array("h", h, np.float32, ("B", "d"))
        ids = check_ids(ids, self.n_classes, h.shape[0])
        log_q = empty((h.shape[0], ids.shape[-1]), np.float32, device)
        log_q[...] = self._log_p
        return log_q


class _TableSampler:
    """Draws from fixed weights with an alias table, in O(1) per draw.

    `log_weights` has the logarithms, also of weights that underflow to 0.
    """

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

    def sample(self, h: Array, n_samples: int, seed: int, step: int = 0) -> tuple[Array, Array]:
        """Draw classes for each row of h.

        Parameters
        ----------
        h : (B, d) float32
            On the sampler's device. Only the number of rows matters.
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
            Wrong dtype, shape or device; n_samples, seed or step out of range.
        """
        device = check.same_device(h=h, sampler=self._log_p)
        h = check.array("h", h, np.float32, ("B", "d"))
        shape, seed, step = check_draws(h.shape[0], n_samples, seed, step)
        ids, log_q = empty(shape, np.int32, device), empty(shape, np.float32, device)
        backend_of(device, "samplers").draw(seed, step, self._log_p, self._alias, ids, log_q)
        return ids, log_q

    def log_prob(self, h: Array, ids: Array) -> Array:
        """``log Q(ids)`` of any classes.

        Parameters
        ----------
        h : (B, d) float32
            Only the number of rows and the device matter.
        ids : (B, M) or (M,) int32, or other integers
            Classes of each row, or shared by all rows.

        Returns
        -------
        log_q : (B, M) float32
            -inf for a class that is never drawn.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; ids out of range.
        """
        check.same_device(h=h, ids=ids, sampler=self._log_p)
        h = check.array("h", h, np.float32, ("B", "d"))
        ids = check_ids(ids, self.n_classes, h.shape[0])
        log_q = empty((h.shape[0], ids.shape[-1]), np.float32, self.device)
        log_q[...] = self._log_p[ids]
        return log_q


class LogUniformSampler(_TableSampler):
    """Draws classes by Zipf's law: ``Q(i) = log((r + 2) / (r + 1)) / log(n_classes + 1)``, r the rank of class i.

    Parameters
    ----------
    n_classes : int
        L, in [1, 2^31).
    ranks : (L,) array or sequence of integers, optional
        The rank r of each class by descending frequency, from 0. If not given, r = i: the classes are sorted.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        n_classes out of range; ranks that are not integers or not a permutation; an unknown device; CUDA not available.

    Notes
    -----
    Source: Zipf's law, in the form of TensorFlow's log-uniform candidate sampler.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import LogUniformSampler
    >>> sampler, h = LogUniformSampler(1000), np.zeros((1, 8), np.float32)
    >>> np.exp(sampler.log_prob(h, np.array([0, 999], np.int32))).round(6)
    array([[0.100329, 0.000145]], dtype=float32)
    >>> ids, log_q = sampler.sample(h, n_samples=1000, seed=0)
    >>> bool((ids < 100).mean() > 0.5)
    True
    """

    def __init__(self, n_classes: int, *, ranks: Array | None = None, device: Device = "cpu") -> None:
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
    """Draws classes by their frequency: ``Q(i) = counts[i]^power / sum_j counts[j]^power``.

    Parameters
    ----------
    counts : (L,) array, NumPy
        Not negative, finite, not all zero. A class with count 0 is never drawn; its log-probability is -inf.
    power : float
        At least 0; 0.75 is usual for word embeddings. A class with count 0 stays at probability 0 for every power.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Counts of the wrong shape, negative, not finite or all zero; a negative power; an unknown device; CUDA not
        available.
    FloatingPointError
        The power is so large that float32 cannot represent the log-probability of a class with a positive count.

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

    def __init__(self, counts: Array, power: float = 1.0, *, device: Device = "cpu") -> None:
        weights = check.nonnegative("counts", counts)
        if not weights.any():
            raise ValueError("counts must not be all zero: there would be no class to draw")
        power = check.number("power", power, 0, math.inf)
        occurs, largest = weights > 0, weights.max()
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            log_weights = np.where(occurs, power * (np.log(weights) - math.log(largest)), -math.inf)
        lowest = np.finfo(np.float32).min
        if (log_weights[occurs] < lowest / 2).any():
            raise FloatingPointError(
                f"power={power:g} gives a class the log-probability {log_weights[occurs].min():g}, "
                "too low for float32; use a smaller power"
            )
        super().__init__(np.where(occurs, weights / largest, 1) ** power * occurs, log_weights, device)
