"""MIDX (method 2): a sampler with an inverted multi-index. The public functions check, allocate and call the backend.

Source: "Adaptive sampled softmax with inverted multi-index: methods, theory and applications", arXiv 2501.08563.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import numpy as np

from .core import check
from .core.alias import alias_table
from .core.annotations import Array
from .core.device import asarray, backend_of, device_of, empty, module_of, product, to_numpy
from .core.metric import score_metric
from .samplers import check_draws, check_ids, log_prob_all, sample_all

KINDS = "rq", "pq"
RESIDUALS = "uniform", "popularity", "exact"
#: The CUDA kernels keep four numbers per codeword in 48 KiB of shared memory.
MAX_CODEWORDS = 3072


class _Index(NamedTuple):
    """The arrays of an index, as the kernels take them; cell (k0, k1) has the number ``k0 K + k1``."""

    codes: np.ndarray  # (L, 2) int32
    indptr: np.ndarray  # (K K + 1,) int32: the classes of cell c are members[indptr[c]:indptr[c + 1]]
    members: np.ndarray  # (L,) int32, ascending within a cell
    records: np.ndarray  # (L, 4) uint32, parallel to members; (0, 4) without popularity; see `_records`
    values: np.ndarray  # the memory of records as float32
    cell_weights: np.ndarray  # (K, K) float32: the number of classes in the cell, or their total popularity
    transposed: np.ndarray  # (K, K) float32: cell_weights.T on CUDA, where a warp sums 32 rows at a time; else (0, K)
    log_popularity: np.ndarray  # (L,) float32, by class; size 0 without popularity


def _records(members, alias, log_popularity):
    """Everything that a draw within a cell reads about position j, in 16 bytes of one cache line, (L, 4) uint32.

    The alias table (`rng.Alias`), ``threshold[j]``, ``members[j]``, ``other[j]``, and the bits of the float32
    ``log_popularity[members[j]]``.
    """
    records = np.empty((len(members), 4), np.uint32)
    for column, values in enumerate((alias.threshold, members, alias.other)):
        records[:, column] = values
    records.view(np.float32)[:, 3] = log_popularity[members]
    return records


def _update_codewords(codewords, vectors, class_weights, distance, sums, totals):
    """Each codeword becomes the mean of its vectors, in place. Unused ones take the vectors of largest error."""
    device = device_of(vectors)
    xp = module_of(device)
    is_empty = totals == 0
    means = sums / xp.where(is_empty, np.float32(1), totals)[:, None]
    codewords[...] = xp.where(is_empty[:, None], codewords, means)
    unused = np.flatnonzero(to_numpy(is_empty))
    if unused.size:
        error = to_numpy(distance * class_weights if class_weights.size else distance)
        worst = np.argsort(-error, kind="stable")[: unused.size]
        codewords[asarray(unused, device)] = vectors[asarray(worst, device)]


def k_means(vectors, codewords, class_weights, n_iterations):
    """Lloyd's algorithm from `codewords`, which are overwritten; returns the code of each vector, (n,) int32."""
    device = device_of(vectors)
    codes = empty(vectors.shape[0], np.int32, device)
    distance = empty(vectors.shape[0], np.float32, device)
    sums, totals = (empty(shape, np.float32, device) for shape in (codewords.shape, len(codewords)))
    kernels = backend_of(device, "midx")
    kernels.assign(vectors, codewords, class_weights, codes, distance, sums, totals)
    for _ in range(n_iterations):
        before = codes.copy()
        _update_codewords(codewords, vectors, class_weights, distance, sums, totals)
        kernels.assign(vectors, codewords, class_weights, codes, distance, sums, totals)
        if not bool((codes != before).any()):
            break
    return codes


class InvertedMultiIndex:
    """MIDX sampler: draws classes from the softmax of quantized logits, at a cost independent of their number.

    With two codebooks C0, C1 of K codewords, ``r0 = h0 C0.T`` and ``r1 = h1 C1.T``, and W[k0, k1] the number (or total
    popularity) of the classes in cell (k0, k1): ``Q(i | h) = exp(r0[k0(i)] + r1[k1(i)]) pop(i) / Z(h)``, with
    ``Z(h) = sum W[k0, k1] exp(r0[k0] + r1[k1])``; pop(i) is the popularity of class i, or 1 without popularities. h0
    and h1 are the halves of h for "pq", and both h for "rq". A row of h costs K d for the products and K^2 for Z; a
    draw costs at most K.

    Use `build` to create an index.

    Parameters
    ----------
    codebooks : two (K, d) float32
        (K, d / 2) for "pq". Kept, not copied.
    codes : (L, 2) int32, or other integers
        The codewords of each class, in [0, K), on the device of the codebooks.
    kind, residual : str
        See `build`.
    popularity, class_weights : (L,) float, or None
        See `build`.
    weights : (L, d) float32, or None
        The output embeddings. Needed, and kept, only for residual='exact'.
    metric : two pairs of (d, d) float32, or None
        What `build` computes from its argument `h`.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; numbers that are not finite; codes out of range; an unknown kind or residual;
        popularity or weights of the wrong shape, negative or all zero; popularity with another residual.

    Notes
    -----
    Source: arXiv 2501.08563.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import InvertedMultiIndex
    >>> random = np.random.default_rng(0)
    >>> weights, h = (random.standard_normal((n, 16), dtype=np.float32) for n in (1000, 2))
    >>> index = InvertedMultiIndex.build(weights, n_codewords=8)
    >>> ids, log_q = index.sample(h, n_samples=5, seed=0)
    >>> bool(np.array_equal(index.log_prob(h, ids), log_q))
    True

    Training changes the embeddings; `update` adapts the index:

    >>> share = index.update(weights + 0.1 * random.standard_normal((1000, 16), dtype=np.float32))
    >>> 0 < share < 1
    True
    """

    def __init__(
        self,
        codebooks: Sequence[Array],
        codes: Array,
        kind: Literal["rq", "pq"],
        residual: Literal["uniform", "popularity", "exact"],
        popularity: Array | None,
        class_weights: Array | None,
        weights: Array | None,
        metric: Sequence[tuple[Array, Array]] | None = None,
    ) -> None:
        self.kind, self.residual = check.choice("kind", kind, KINDS), check.choice("residual", residual, RESIDUALS)
        self.codebooks = _checked_codebooks(codebooks)
        self.n_codewords = self.codebooks[0].shape[0]
        self.device = check.same_device(codebooks=self.codebooks[0], codes=codes)
        codes = check.integers("codes", codes, ("L", 2), self.n_codewords)
        n_classes = check.integer("the number of classes (the length of codes)", codes.shape[0], 1, 2**31 - 1)
        #: With residual='exact', the embeddings themselves (not a copy); else None.
        self.weights = _checked_weights(weights, n_classes, self._width, self.device) if residual == "exact" else None
        self._popularity = _checked_popularity(popularity, residual, n_classes)
        self._class_weights = _k_means_weights(class_weights, n_classes, self.device)
        self._metric = None if metric is None else _checked_metric(metric, self.codebooks[0].shape[1], self.device)
        self._set_cells(codes)

    codes = property(lambda self: self._index.codes, doc="(L, 2) int32: the two codewords of each class")
    n_classes = property(lambda self: self._index.codes.shape[0], doc="L")
    nbytes = property(
        lambda self: (
            sum(a.nbytes for a in (*self.codebooks, self._class_weights, *self._index)) - self._index.values.nbytes
        ),
        doc="bytes of all arrays",
    )

    def __repr__(self):
        return (
            f"InvertedMultiIndex(n_classes={self.n_classes}, n_codewords={self.n_codewords}, kind={self.kind!r}, "
            f"residual={self.residual!r}, device={self.device!r})"
        )

    @classmethod
    def build(
        cls,
        weights: Array,
        n_codewords: int,
        kind: Literal["rq", "pq"] = "rq",
        residual: Literal["uniform", "popularity", "exact"] = "uniform",
        seed: int = 0,
        *,
        popularity: Array | None = None,
        class_weights: Array | None = None,
        h: Array | None = None,
        n_iterations: int = 10,
    ) -> Self:
        """Quantize the class embeddings by k-means and group the classes by cell.

        Parameters
        ----------
        weights : (L, d) float32
            The output embeddings. The index is on their device.
        n_codewords : int
            K, in [1, L].
        kind : 'rq' or 'pq'
            Residual quantization: k-means on the embeddings, then on the residuals. Product quantization: k-means on
            each half of the embeddings; d must be even.
        residual : 'uniform', 'popularity' or 'exact'
            How a class is drawn within a cell. 'exact' draws by the softmax of the residual scores, so that Q is the
            softmax of ``h @ weights.T`` itself; it scores all classes, and is a baseline.
        seed : int
            Of the initial codewords, which are classes drawn without repetition.
        popularity : (L,) array
            For residual='popularity': not negative, not all zero. A class of popularity 0 is never drawn.
        class_weights : (L,) array
            Weight of each class in k-means: not negative, not all zero; equal weights if not given. With the classes'
            numbers of training points, frequent classes are quantized with smaller errors.
        h : (n, d) float32, on the device of the weights
            A sample of hidden activations. If given, k-means minimizes the error of the scores, ``mean_h (h . (w -
            w'))^2`` with w' the sum of w's codewords, instead of ``|w - w'|^2`` (our choice, after R. Guo et al.,
            AISTATS 2016).
        n_iterations : int
            Of k-means, at most.

        Returns
        -------
        index : InvertedMultiIndex

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; numbers that are not finite; an unknown kind or residual; n_codewords out of
            range; an odd width for "pq"; popularity or weights of the wrong shape, negative or all zero.
        FloatingPointError
            Embeddings so large that the sums of k-means overflow.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import InvertedMultiIndex
        >>> random = np.random.default_rng(0)
        >>> weights, h = (random.standard_normal((n, 16)).astype(np.float32) for n in (1000, 2))
        >>> index = InvertedMultiIndex.build(weights, n_codewords=8)
        >>> index
        InvertedMultiIndex(n_classes=1000, n_codewords=8, kind='rq', residual='uniform', device='cpu')
        >>> ids, log_q = index.sample(h, n_samples=5, seed=0)
        >>> all_classes = np.arange(1000, dtype=np.int32)
        >>> np.exp(index.log_prob(h, all_classes)).sum(axis=1).round(4)
        array([1., 1.], dtype=float32)
        """
        check.choice("kind", kind, KINDS)
        check.choice("residual", residual, RESIDUALS)
        device = check.same_device(weights=weights, **({} if h is None else {"h": h}))
        weights = check.array("weights", weights, np.float32, ("L", "d"), finite=True)
        n_classes, width = weights.shape
        check.integer("the number of classes", n_classes, 1, 2**31 - 1)
        check.integer("the width of weights", width, 1)
        n_codewords = check.integer(
            "n_codewords", n_codewords, 1, min(n_classes, MAX_CODEWORDS), f" (there are {n_classes} classes)"
        )
        check.integer("n_iterations", n_iterations, 0)
        if kind == "pq" and width % 2:
            raise ValueError(f"kind='pq' halves the embeddings: their width must be even, got {width}; use kind='rq'")
        key = np.uint64(check.integer("seed", seed, 0, 2**64 - 1))
        _checked_popularity(popularity, residual, n_classes)  # errors before the expensive part
        shares = _k_means_weights(class_weights, n_classes, device)
        metric = _metric(h, kind, width)
        # The initial codewords of both codebooks; `random_connections` repeats no class within a row.
        first = empty((2, n_codewords), np.int32, device)
        backend_of(device, "initialization").random_connections(key, n_classes, first)
        codebooks = [part[rows] for part, rows in zip(_parts(weights, kind), first, strict=True)]
        codes, codebooks = _quantize(weights, codebooks, shares, kind, n_iterations, metric, is_first=True)
        return cls(codebooks, codes, kind, residual, popularity, class_weights, weights, metric)

    def update(self, weights: Array, n_iterations: int = 3, *, h: Array | None = None) -> float:
        """Quantize the embeddings again after they have changed, starting from the present codebooks.

        Parameters
        ----------
        weights : (L, d) float32, on the device of the index
            Of the same shape as in `build`.
        n_iterations : int
            Of k-means, at most.
        h : (n, d) float32, on the device of the index
            As in `build`. If not given, the last sample is used again.

        Returns
        -------
        share : float
            Share of the classes whose cell has changed.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; another number or width of classes than in `build`; numbers that are not
            finite.
        FloatingPointError
            Embeddings so large that the sums of k-means overflow. The index has not changed.
        """
        check.same_device(weights=weights, index=self.codes, **({} if h is None else {"h": h}))
        weights = check.array("weights", weights, np.float32, ("L", self._width), finite=True)
        if weights.shape[0] != self.n_classes:
            raise ValueError(
                f"weights must have {self.n_classes} rows as in build, got {weights.shape[0]}; build a new index"
            )
        check.integer("n_iterations", n_iterations, 0)
        metric = self._metric if h is None else _metric(h, self.kind, self._width)
        before = self.codes
        codes, codebooks = _quantize(
            weights, self.codebooks, self._class_weights, self.kind, n_iterations, metric, is_first=False
        )
        self.codebooks, self._metric = codebooks, metric
        self._set_cells(codes)
        self.weights = weights if self.residual == "exact" else None
        return float((codes != before).any(axis=1).mean())

    @property
    def _width(self):
        return self.codebooks[0].shape[1] * (2 if self.kind == "pq" else 1)

    def _set_cells(self, codes):
        """Sort the classes by cell and set the arrays of the kernels."""
        device, n_cells = self.device, self.n_codewords**2
        host_codes = to_numpy(codes).astype(np.int64)
        cell = host_codes[:, 0] * self.n_codewords + host_codes[:, 1]
        members = np.argsort(cell, kind="stable")
        counts = np.bincount(cell, minlength=n_cells)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        popularity = np.zeros(0) if self._popularity is None else self._popularity
        cell_weights = np.bincount(cell, self._popularity, n_cells).reshape(self.n_codewords, -1)
        with np.errstate(divide="ignore"):
            log_popularity = np.log(popularity).astype(np.float32)
        records = np.zeros((0, 4), np.uint32)
        if popularity.size:
            records = _records(members, alias_table(popularity[members], indptr), log_popularity)
        records = asarray(records, device)
        transposed = cell_weights.T if device == "cuda" else cell_weights[:0]
        arrays = _Index(
            codes, indptr, members, records, records.view(np.float32), cell_weights, transposed, log_popularity
        )
        dtypes = _Index(np.int32, np.int32, np.int32, np.uint32, *[np.float32] * 4)
        self._index = _Index(*map(asarray, arrays, [device] * len(arrays), dtypes))

    def _checked_h(self, h):
        return check.array("h", h, np.float32, ("B", self._width), finite=True)

    def _scores(self, h):
        """A function that returns the scores of all classes for a slice of the rows of checked h."""
        return lambda rows: product(h[rows], self.weights.T)

    def _logits(self, h):
        """r0, r1 (B, K) of checked h. The differences within a row, which the kernels compute with, are finite."""
        parts = zip(_parts(h, self.kind), self.codebooks, strict=True)
        with np.errstate(over="ignore", invalid="ignore"):
            out = [product(part, codebook.T) for part, codebook in parts]
            spread = sum(r.max(axis=1) - r.min(axis=1) for r in out)
        if not bool(module_of(self.device).isfinite(spread).all()):
            raise FloatingPointError(
                "the scores h @ codebook.T overflowed, or differ too much for float32; lower the learning rate"
            )
        return out

    def sample(self, h: Array, n_samples: int, seed: int, step: int = 0) -> tuple[Array, Array]:
        """Draw classes for each row of h.

        Parameters
        ----------
        h : (B, d) float32, on the device of the index
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
            The scores of the codewords overflow, or those of the classes with residual='exact'.
        """
        check.same_device(h=h, index=self.codes)
        h, device = self._checked_h(h), self.device
        shape, seed, step = check_draws(h.shape[0], n_samples, seed, step)
        if self.residual == "exact":
            return sample_all(self._scores(h), shape[0], self.n_classes, device, shape, seed, step)
        r0, r1 = self._logits(h)
        ids, log_q = empty(shape, np.int32, device), empty(shape, np.float32, device)
        if not shape[0]:
            return ids, log_q
        backend_of(device, "midx").sample(r0, r1, self._index, seed, step, ids, log_q)
        return ids, log_q

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
            -inf for a class that is never drawn.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h that is not finite; ids out of range.
        FloatingPointError
            The scores of the codewords overflow, or those of the classes with residual='exact'.
        """
        check.same_device(h=h, ids=ids, index=self.codes)
        h = self._checked_h(h)
        ids = check_ids(ids, self.n_classes, h.shape[0])
        if self.residual == "exact":
            return log_prob_all(self._scores(h), ids, h.shape[0], self.n_classes, self.device)
        r0, r1 = self._logits(h)
        log_q = empty((h.shape[0], ids.shape[-1]), np.float32, self.device)
        backend_of(self.device, "midx").log_prob(r0, r1, self._index, ids if len(ids.shape) == 2 else ids[None], log_q)
        return log_q


def _parts(vectors, kind):
    """The vectors that each of the two codebooks quantizes: the halves for "pq", the whole vectors twice for "rq"."""
    if kind == "rq":
        return vectors, vectors
    half, device = vectors.shape[1] // 2, device_of(vectors)
    return asarray(vectors[:, :half], device), asarray(vectors[:, half:], device)


def _metric(h, kind, width):
    """For each of the two `_parts` of the embeddings, the matrix that k-means transforms it by, and the inverse.

    For "rq" both pairs are the same. None without h.
    """
    if h is None:
        return None
    h = check.array("h", h, np.float32, ("n", width), finite=True)
    check.integer("the number of rows of h", h.shape[0], 1)
    device, parts = device_of(h), _parts(h, kind)
    pairs = [score_metric(to_numpy(part)) for part in (parts[:1] if kind == "rq" else parts)]
    pairs = [tuple(asarray(matrix, device, np.float32) for matrix in pair) for pair in pairs]
    return pairs * 2 if kind == "rq" else pairs


def _quantize(*arguments, **options):
    """`_codes_and_codebooks`; FloatingPointError if the embeddings are too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        codes, codebooks = _codes_and_codebooks(*arguments, **options)
    if not all(bool(module_of(device_of(c)).isfinite(c).all()) for c in codebooks):
        raise FloatingPointError("the sums of the embeddings overflowed in k-means; scale the embeddings down")
    return codes, codebooks


def _codes_and_codebooks(weights, codebooks, class_weights, kind, n_iterations, metric, is_first):
    """Codes (L, 2) and the two codebooks by k-means that starts from `codebooks`, which are not changed.

    If it is the first time, the second k-means of "rq" starts from some of the residuals instead.
    """
    first, second = _parts(weights, kind)
    if metric is None:
        codebooks = [codebook.copy() for codebook in codebooks]
    else:
        (factor, _), (other, _) = metric
        codebooks = [product(codebooks[0], factor), product(codebooks[1], other)]
        first, second = product(first, factor), None if kind == "rq" else product(second, other)
    codes = empty((first.shape[0], 2), np.int32, device_of(first))
    codes[:, 0] = k_means(first, codebooks[0], class_weights, n_iterations)
    if kind == "rq":
        second = codebooks[0][codes[:, 0]]
        module_of(device_of(first)).subtract(first, second, out=second)
        if is_first:
            rows = module_of(device_of(first)).arange(len(codebooks[1]))
            codebooks[1] = second[rows * (len(second) // len(rows))].copy()
    codes[:, 1] = k_means(second, codebooks[1], class_weights, n_iterations)
    if metric is not None:
        codebooks = [product(codebook, inverse) for codebook, (_, inverse) in zip(codebooks, metric, strict=True)]
    return codes, codebooks


def _checked_codebooks(codebooks):
    """Two checked codebooks of the same shape."""
    if not isinstance(codebooks, (list, tuple)) or len(codebooks) != 2:
        raise TypeError(f"codebooks must be two arrays, got {type(codebooks).__name__}; use [codebook0, codebook1]")
    names = [f"codebooks[{i}]" for i in range(2)]
    check.same_device(**dict(zip(names, codebooks, strict=True)))
    first = check.array(names[0], codebooks[0], np.float32, ("K", "d"), finite=True)
    check.integer("n_codewords (the length of codebooks[0])", first.shape[0], 1, MAX_CODEWORDS)
    check.integer("the width of codebooks[0]", first.shape[1], 1)
    return [first, check.array(names[1], codebooks[1], np.float32, first.shape, finite=True)]


def _checked_weights(weights, n_classes, width, device):
    """Checked embeddings for residual='exact'."""
    if weights is None:
        raise ValueError("residual='exact' needs weights, (L, d)")
    if check.same_device(weights=weights) != device:
        raise TypeError(f"weights must live on {device} like the codes, got {device_of(weights)}")
    return check.array("weights", weights, np.float32, (n_classes, width), finite=True)


def _checked_metric(metric, width, device):
    """A checked result of `_metric`: a matrix and its inverse for each of the two parts of the embeddings."""

    def is_pair(value):
        return isinstance(value, (list, tuple)) and len(value) == 2

    if not (is_pair(metric) and all(map(is_pair, metric))):
        raise TypeError(
            f"metric must be two pairs of matrices or None, got {type(metric).__name__}; use InvertedMultiIndex.build"
        )
    for i, pair in enumerate(metric):
        for j, matrix in enumerate(pair):
            name = f"metric[{i}][{j}]"
            if check.same_device(**{name: matrix}) != device:
                raise TypeError(f"{name} must live on {device} like the codes, got {device_of(matrix)}")
            check.array(name, matrix, np.float32, (width, width), finite=True)
    return [tuple(pair) for pair in metric]


def _checked_popularity(popularity, residual, n_classes):
    """Checked and normalized popularity, NumPy float64; None if `residual` does not use it."""
    if residual != "popularity":
        if popularity is not None:
            raise ValueError("popularity is used with residual='popularity' only")
        return None
    if popularity is None:
        raise ValueError("residual='popularity' needs popularity, (L,)")
    return _normalized("popularity", popularity, n_classes)


def _k_means_weights(class_weights, n_classes, device):
    """Checked weights of k-means on `device`, the largest being 1; size 0 if all are equal."""
    class_weights = np.zeros(0) if class_weights is None else _normalized("class_weights", class_weights, n_classes)
    return asarray(class_weights / class_weights.max(initial=0), device, np.float32)


def _normalized(name, value, n_classes):
    """Checked numbers, one per class, divided by their sum; NumPy float64."""
    value = check.nonnegative(name, value, n_classes)
    if not value.any():
        raise ValueError(f"{name} must not be all zero")
    value = value / value.max()  # so that the sum does not overflow
    return value / value.sum()
