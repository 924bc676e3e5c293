"""Labels that occur together: counts of pairs of labels, and a new order of a row's best labels by them."""

import numpy as np
import scipy.sparse

from .core import check, sparse
from .core.connections import PairCounts
from .core.device import asarray, backend_of, empty, module_of, to_numpy

#: Points with more labels than this are not counted: they would add most of the pairs and say least about each.
MOST_LABELS = 32
#: Pairs that are always kept, and for each label on average; where there are more, those that occur least often are
#: left out.
ALWAYS, MOST_PAIRS = 1 << 20, 64
#: Products of labels that are counted at once.
AT_ONCE = 1 << 21
#: Labels of a row that `rerank` orders, at most: the lanes of a warp.
MOST_CANDIDATES = 32


class CoOccurrence:
    """How many points have two labels at once, for all pairs of labels that some point has.

    Parameters
    ----------
    labels : (N, L) SciPy sparse matrix
        Entries that are not zero are positive. Points with more than 32 labels are not counted at all.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Not sparse, not finite, no labels or points; CUDA where there is none.

    Notes
    -----
    A pair takes 8 bytes. Where there are more than 64 L pairs, and more than 2^20, those that occur once are left out,
    then those that occur twice, and so on until no more than that are left. The counts are made on the CPU, some labels
    at a time.

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

    def __init__(self, labels, *, device="cpu"):
        check.choice("device", device, ("cpu", "cuda"))
        self._set(*_counted(_checked(labels)), device)

    @classmethod
    def _of(cls, pairs, label_counts, n_rows, device="cpu"):
        """Counts that are known to be right: CSR of pairs j < l, the points of each label, and of all."""
        counts = cls.__new__(cls)
        counts._set(pairs, label_counts, n_rows, device)
        return counts

    def _set(self, pairs, label_counts, n_rows, device):
        self.device, self.n_rows = device, n_rows
        arrays = (
            pairs.indptr.astype(np.int64),
            pairs.indices.astype(np.int32),
            pairs.data,
            label_counts.astype(np.int32),
        )
        self.arrays = PairCounts(*(asarray(a, device, a.dtype) for a in arrays), np.float32(max(1, n_rows)))

    n_labels = property(lambda self: self.arrays.label_counts.shape[0], doc="L")
    n_pairs = property(lambda self: self.arrays.ids.shape[0], doc="Pairs of labels that are kept.")
    nbytes = property(lambda self: sum(array.nbytes for array in self.arrays[:4]), doc="Bytes of all arrays.")

    def __repr__(self):
        return f"CoOccurrence(n_labels={self.n_labels}, n_rows={self.n_rows}, n_pairs={self.n_pairs}, device={self.device!r})"

    @property
    def counts(self):
        """(L, L) SciPy CSR matrix, int32, symmetric, zero on the diagonal: a copy."""
        upper = self._upper()
        return (upper + upper.T).tocsr()

    def _upper(self):
        """The pairs j < l as a SciPy CSR matrix."""
        indptr, ids, counts = map(to_numpy, self.arrays[:3])
        return scipy.sparse.csr_matrix((counts, ids, indptr), shape=(self.n_labels, self.n_labels))

    def extended(self, labels):
        """The counts of these and of more points, which may have new labels.

        Parameters
        ----------
        labels : (n, L or more) SciPy sparse matrix
            As for `CoOccurrence`; columns beyond L are new labels.

        Returns
        -------
        counts : CoOccurrence
            On the same device. Pairs that were left out before are counted from 0.

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
        return self._of(_kept([before + pairs])[0], label_counts, self.n_rows + n_rows, self.device)


def _checked(labels, at_least=1):
    """Labels as a CSR matrix of ones, of a point and so many labels at least."""
    labels = sparse.as_ones("labels", labels)
    check.integer("the number of points", labels.shape[0], 1)
    check.integer("the width of labels", labels.shape[1], at_least, 2**31 - 1)
    return labels


def _counted(labels):
    """(CSR of the pairs j < l, points of each label, number of points), of the points that are counted."""
    counted = np.diff(labels.indptr) <= MOST_LABELS
    few = labels if counted.all() else labels[counted]
    few = scipy.sparse.csr_matrix((np.ones(few.nnz, np.int32), few.indices, few.indptr), shape=few.shape)
    by_label, n_labels, pairs, least = few.T.tocsr(), few.shape[1], [], 1
    products = np.cumsum(
        by_label @ np.diff(few.indptr).astype(np.int64)
    )  # what a label's row of the product is added up from
    cuts = np.flatnonzero(np.diff(products // AT_ONCE)) + 1
    for first, last in zip([0, *cuts], [*cuts, n_labels], strict=True):
        pairs.append(scipy.sparse.triu(by_label[first:last] @ few, first + 1, format="csr"))
        if sum(part.nnz for part in pairs) > _limit(n_labels):
            found, least = _kept(pairs, least)
            pairs = [found]
    return _kept(pairs, least)[0], np.bincount(few.indices, minlength=n_labels), few.shape[0]


def _limit(n_labels):
    """How many pairs are kept at most."""
    return max(ALWAYS, MOST_PAIRS * n_labels)


def _kept(parts, least=1):
    """CSR matrices below each other as one, with sorted indices, and how often its pairs occur at least.

    That is `least`, or the least larger number that leaves no more pairs than the limit.
    """
    pairs, limit = scipy.sparse.vstack(parts, format="csr"), _limit(parts[0].shape[1])
    if np.count_nonzero(pairs.data >= least) > limit:
        least = int(np.partition(pairs.data, -limit - 1)[-limit - 1]) + 1
    if least > 1:
        pairs.data[pairs.data < least] = 0
        pairs.eliminate_zeros()
    pairs.sort_indices()
    return pairs, least


def most_pairs(labels):
    """An upper bound of the pairs that `CoOccurrence` keeps of a CSR matrix."""
    lengths, n_labels = np.diff(labels.indptr).astype(np.int64), labels.shape[1]
    lengths = lengths[lengths <= MOST_LABELS]
    return min(int((lengths * (lengths - 1) // 2).sum()), n_labels * (n_labels - 1) // 2, _limit(n_labels))


def rerank(scores, ids, co_occurrence, k=None, *, weight=0.03):
    """The best k of each row's candidates, one after the other: each place takes what suits the places before it best.

    The first candidate stays first. Every next place goes to the candidate c with the largest
    ``scores[c] + weight * sum_j p(scores[j]) * log((n_jc + 0.05) / (n_j n_c / N + 0.05))`` over the labels j in the
    places before: n_jc points of N have both labels, so the logarithm, the pointwise mutual information, is positive
    where they occur together more often than independent labels would. ``p(s) = 1 / (1 + exp(-(4 s + 0.8)))`` is
    roughly the probability that a label with that score is right.

    Parameters
    ----------
    scores : (B, K) float32
        Of a linear layer (1 for a label that is surely right, -1 for one that is surely not), best first; K at most 32.
    ids : (B, K) int32
        Their labels, none twice in a row.
    co_occurrence : CoOccurrence
        On the device of scores and ids.
    k : int, optional
        At most K. If not given K.
    weight : float
        Not negative; 0 leaves the order as it is.

    Returns
    -------
    scores : (B, k) float32
        Descending: what each was chosen by, but no more than the score of the place before, and no less than that of
        the last candidate, so that labels beyond the K follow. Equal ones stand in the order of the choice, not of
        their ids.
    ids : (B, k) int32

    Raises
    ------
    TypeError, ValueError
        Other types, devices or shapes; scores not finite or not descending; labels out of range; k or weight out of
        range.

    Notes
    -----
    Source: greedy re-ranking as in Carbonell, Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998;
    pointwise mutual information: Church, Hanks, "Word association norms, mutual information, and lexicography", 1990.
    That what belongs together is drawn up, the probability, the smoothing and the weight are ours.

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
    scores = check.array("scores", scores, np.float32, ("B", "K"))
    n_rows, n = scores.shape
    check.integer("K (the width of scores)", n, 1, MOST_CANDIDATES)
    ids = check.integers("ids", ids, (n_rows, n), co_occurrence.n_labels)
    k = n if k is None else check.integer("k", k, 1, n, f" (candidates of a row: {n})")
    check.number("weight", weight, 0, 1e6)
    check.finite("scores", scores)
    if bool((scores[:, 1:] > scores[:, :-1]).any()):
        raise ValueError("scores must descend within a row, the best first")
    sorted_ids = module_of(device).sort(ids, axis=1)
    if bool((sorted_ids[:, 1:] == sorted_ids[:, :-1]).any()):
        raise ValueError("ids must not repeat a label inside one row")
    return rerank_checked(scores, ids, co_occurrence, k, weight)


def rerank_checked(scores, ids, co_occurrence, k, weight):
    """`rerank` of arguments that are known to be right."""
    shape, device = (scores.shape[0], k), co_occurrence.device
    found = empty(shape, np.float32, device), empty(shape, np.int32, device)
    backend_of(device, "co_occurrence").rerank(scores, ids, co_occurrence.arrays, np.float32(weight), *found)
    return found
