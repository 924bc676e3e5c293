"""Labels that occur together: counts of pairs of labels, and reranking of a row's best labels by these counts."""

from typing import Self

import numpy as np
import scipy.sparse

from .core import check, sparse
from .core.annotations import Array, Device, SparseMatrix
from .core.connections import PairCounts
from .core.device import asarray, backend_of, empty, module_of, to_numpy

#: Points with more labels are not counted: they would add most of the pairs, and say least about each.
MAX_LABELS_PER_POINT = 32
#: The limit of stored pairs: MIN_PAIR_LIMIT, or MAX_PAIRS_PER_LABEL on average if that is more. Beyond it, the rarest
#: pairs are dropped.
MIN_PAIR_LIMIT, MAX_PAIRS_PER_LABEL = 1 << 20, 64
#: Products of two labels per sparse matrix product: limits its memory.
PRODUCTS_PER_CHUNK = 1 << 21
#: Largest number of candidates that `rerank` takes: one per lane of a warp.
MAX_CANDIDATES = 32


class CoOccurrence:
    """The number of points that have both labels, for all pairs of labels that occur together.

    Parameters
    ----------
    labels : (N, L) SciPy sparse matrix
        The entries that are not zero are the labels of the points. Points with more than 32 labels are not counted.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Not sparse, not finite, no labels or points; CUDA not available.

    Notes
    -----
    A pair takes 8 bytes. At most 2^20 pairs are stored, or 64 L if that is more: beyond this limit, pairs that occur
    once are dropped, then those that occur twice, and so on. The counts are computed on the CPU, in chunks of labels.

    Source: ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import CoOccurrence
    >>> labels = scipy.sparse.csr_matrix(np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]]))
    >>> CoOccurrence(labels).counts.toarray()
    array([[0, 2, 0],
           [2, 0, 1],
           [0, 1, 0]], dtype=int32)
    """

    def __init__(self, labels: SparseMatrix, *, device: Device = "cpu") -> None:
        check.choice("device", device, ("cpu", "cuda"))
        pairs, label_counts, n_rows = _counted(_checked(labels))
        self._set_arrays(pairs, label_counts, n_rows, device)

    @classmethod
    def _from_counts(cls, pairs, label_counts, n_rows, device="cpu"):
        """An object around valid counts: CSR of the pairs j < l, the points of each label, the number of points."""
        counts = cls.__new__(cls)
        counts._set_arrays(pairs, label_counts, n_rows, device)
        return counts

    def _set_arrays(self, pairs, label_counts, n_rows, device):
        self.device, self.n_rows = device, n_rows
        arrays = (
            pairs.indptr.astype(np.int64),
            pairs.indices.astype(np.int32),
            pairs.data,
            label_counts.astype(np.int32),
        )
        self.arrays = PairCounts(*(asarray(a, device, a.dtype) for a in arrays), np.float32(max(1, n_rows)))

    n_labels = property(lambda self: self.arrays.label_counts.shape[0], doc="L")
    n_pairs = property(lambda self: self.arrays.ids.shape[0], doc="Pairs of labels that are stored.")
    nbytes = property(lambda self: sum(array.nbytes for array in self.arrays[:4]), doc="Bytes of all arrays.")

    def __repr__(self):
        sizes = f"n_labels={self.n_labels}, n_rows={self.n_rows}, n_pairs={self.n_pairs}"
        return f"CoOccurrence({sizes}, device={self.device!r})"

    @property
    def counts(self) -> SparseMatrix:
        """(L, L) SciPy CSR matrix, int32, symmetric, zero on the diagonal: a copy."""
        upper = self._upper()
        return (upper + upper.T).tocsr()

    def _upper(self):
        """The pairs j < l as a SciPy CSR matrix."""
        indptr, ids, counts = map(to_numpy, self.arrays[:3])
        return scipy.sparse.csr_matrix((counts, ids, indptr), shape=(self.n_labels, self.n_labels))

    def extended(self, labels: SparseMatrix) -> Self:
        """The counts of these and of more points, which may have new labels.

        Parameters
        ----------
        labels : (n, L or more) SciPy sparse matrix
            As for `CoOccurrence`; columns beyond L are new labels.

        Returns
        -------
        counts : CoOccurrence
            On the same device. Pairs that were dropped before are counted from 0.

        Raises
        ------
        TypeError, ValueError
            Not sparse, not finite, no points, or fewer labels than before.

        Examples
        --------
        >>> import numpy as np, scipy.sparse
        >>> from sparsemax_nb import CoOccurrence
        >>> before = CoOccurrence(scipy.sparse.csr_matrix(np.array([[1, 1]])))
        >>> before.extended(scipy.sparse.csr_matrix(np.array([[1, 0, 1]]))).counts.toarray()
        array([[0, 1, 1],
               [1, 0, 0],
               [1, 0, 0]], dtype=int32)
        """
        pairs, label_counts, n_rows = _counted(_checked(labels, self.n_labels))
        before = self._upper()
        before.resize(pairs.shape)
        label_counts[: self.n_labels] += to_numpy(self.arrays.label_counts)
        return self._from_counts(_limited([before + pairs])[0], label_counts, self.n_rows + n_rows, self.device)


def _checked(labels, min_labels=1):
    """Labels as a CSR matrix of ones, with at least one point and `min_labels` columns."""
    labels = sparse.as_ones("labels", labels)
    check.integer("the number of points", labels.shape[0], 1)
    check.integer("the width of labels", labels.shape[1], min_labels, 2**31 - 1)
    return labels


def _counted(labels):
    """(CSR of the pairs j < l, points of each label, number of points) over the points that are counted."""
    is_counted = np.diff(labels.indptr) <= MAX_LABELS_PER_POINT
    rows = labels if is_counted.all() else labels[is_counted]
    rows = scipy.sparse.csr_matrix((np.ones(rows.nnz, np.int32), rows.indices, rows.indptr), shape=rows.shape)
    by_label, n_labels = rows.T.tocsr(), rows.shape[1]
    pairs, min_count = [], 1
    # Row l of `by_label @ rows` sums up as many products as the points of label l have labels in all.
    products = np.cumsum(by_label @ np.diff(rows.indptr).astype(np.int64))
    cuts = np.flatnonzero(np.diff(products // PRODUCTS_PER_CHUNK)) + 1
    for first, last in zip([0, *cuts], [*cuts, n_labels], strict=True):
        pairs.append(scipy.sparse.triu(by_label[first:last] @ rows, first + 1, format="csr"))
        if sum(part.nnz for part in pairs) > _pair_limit(n_labels):
            found, min_count = _limited(pairs, min_count)
            pairs = [found]
    return _limited(pairs, min_count)[0], np.bincount(rows.indices, minlength=n_labels), rows.shape[0]


def _pair_limit(n_labels):
    return max(MIN_PAIR_LIMIT, MAX_PAIRS_PER_LABEL * n_labels)


def _limited(parts, min_count=1):
    """Stacked CSR matrices as one with sorted indices, reduced to the pair limit, and the smallest count it may have.

    The smallest count is `min_count`, or the next larger one that leaves no more pairs than the limit.
    """
    pairs, limit = scipy.sparse.vstack(parts, format="csr"), _pair_limit(parts[0].shape[1])
    if np.count_nonzero(pairs.data >= min_count) > limit:
        min_count = int(np.partition(pairs.data, -limit - 1)[-limit - 1]) + 1
    if min_count > 1:
        pairs.data[pairs.data < min_count] = 0
        pairs.eliminate_zeros()
    pairs.sort_indices()
    return pairs, min_count


def max_pairs(labels):
    """An upper bound of the number of pairs that `CoOccurrence` stores for a CSR matrix of labels."""
    lengths, n_labels = np.diff(labels.indptr).astype(np.int64), labels.shape[1]
    lengths = lengths[lengths <= MAX_LABELS_PER_POINT]
    return min(int((lengths * (lengths - 1) // 2).sum()), n_labels * (n_labels - 1) // 2, _pair_limit(n_labels))


def rerank(
    scores: Array, ids: Array, co_occurrence: CoOccurrence, k: int | None = None, *, weight: float = 0.03
) -> tuple[Array, Array]:
    """Choose the best k of each row's candidates one by one, each by its score and how well it fits those before it.

    The first candidate stays first. Then, at each position, the candidate c with the largest
    ``scores[c] + weight * sum_j p(scores[j]) * log((n_jc + 0.05) / (n_j n_c / N + 0.05))`` is chosen, where j runs over
    the labels chosen before. n_jc of N points have both labels, so the logarithm (pointwise mutual information) is
    positive for labels that occur together more often than independent ones. ``p(s) = 1 / (1 + exp(-(4 s + 0.8)))`` is
    roughly the probability that a label with that score is correct.

    Parameters
    ----------
    scores : (B, K) float32
        Scores of a linear layer (1 for a label that is surely correct, -1 for one that is surely not), descending; K at
        most 32.
    ids : (B, K) int32
        The labels, none repeated within a row.
    co_occurrence : CoOccurrence
        On the device of scores and ids.
    k : int, optional
        At most K; K if not given.
    weight : float
        Not negative; 0 leaves the order as it is.

    Returns
    -------
    scores : (B, k) float32
        Descending. The value that each label was chosen by, clipped to the score before it from above and to the score
        of the last candidate from below, so that labels beyond the K candidates still follow. Labels with equal scores
        are in the order of the choice, not of their ids.
    ids : (B, k) int32

    Raises
    ------
    TypeError, ValueError
        Wrong types, devices or shapes; scores not finite or not descending; labels out of range; k or weight out of
        range.

    Notes
    -----
    Source: greedy re-ranking as in Carbonell, Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998;
    pointwise mutual information: Church, Hanks, "Word association norms, mutual information, and lexicography", 1990.
    Favouring related labels instead of diverse ones, the probability, the smoothing and the weight are ours.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import CoOccurrence, rerank
    >>> together = CoOccurrence(scipy.sparse.csr_matrix(np.array([[1, 0, 1], [1, 0, 1], [0, 1, 0]])))
    >>> scores, ids = rerank(np.array([[0.9, 0.1, 0.09]], np.float32), np.array([[0, 1, 2]], np.int32), together)
    >>> ids
    array([[0, 2, 1]], dtype=int32)
    """
    if not isinstance(co_occurrence, CoOccurrence):
        raise TypeError(f"co_occurrence must be a CoOccurrence, got {type(co_occurrence).__name__}")
    device = check.same_device(scores=scores, ids=ids)
    if device != co_occurrence.device:
        raise TypeError(f"co_occurrence must live on {device} like the scores, got {co_occurrence.device}")
    scores = check.array("scores", scores, np.float32, ("B", "K"), finite=True)
    n_rows, n = scores.shape
    check.integer("K (the width of scores)", n, 1, MAX_CANDIDATES)
    ids = check.integers("ids", ids, (n_rows, n), co_occurrence.n_labels)
    k = n if k is None else check.integer("k", k, 1, n, f" (candidates per row: {n})")
    check.number("weight", weight, 0, 1e6)
    if bool((scores[:, 1:] > scores[:, :-1]).any()):
        raise ValueError("scores must descend within a row, the best first")
    sorted_ids = module_of(device).sort(ids, axis=1)
    if bool((sorted_ids[:, 1:] == sorted_ids[:, :-1]).any()):
        raise ValueError("ids must not repeat a label within one row")
    return rerank_checked(scores, ids, co_occurrence, k, weight)


def rerank_checked(scores, ids, co_occurrence, k, weight):
    """`rerank` for valid arguments, which are not checked again."""
    shape, device = (scores.shape[0], k), co_occurrence.device
    found = empty(shape, np.float32, device), empty(shape, np.int32, device)
    backend_of(device, "co_occurrence").rerank(scores, ids, co_occurrence.arrays, np.float32(weight), *found)
    return found
