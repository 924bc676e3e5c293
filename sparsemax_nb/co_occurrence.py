"""Labels that occur together: counts of pairs of labels, and a new order of a row's best labels by them."""

import numpy as np
import scipy.sparse

from .core import backend, check, sparse
from .core.connections import PairCounts

#: Points with more labels than this count no pairs: they would add most of the pairs and say least about each.
MOST_LABELS = 32
#: Labels of a row that `rerank` orders, at most: the lanes of a warp.
MOST_CANDIDATES = 32


class CoOccurrence:
    """How many points have two labels at once, for all pairs of labels that some point has.

    Parameters
    ----------
    labels : (N, L) SciPy sparse matrix
        Entries that are not zero are positive. Points with more than 32 labels count no pairs.
    device : 'cpu' or 'cuda'

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Not sparse, not finite, no labels or points; CUDA where there is none.

    Notes
    -----
    The counts are made on the CPU, in about three times the memory that they take: 8 bytes for each pair that occurs.

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
        labels = sparse.as_ones("labels", labels)
        check.integer("the number of points", labels.shape[0], 1)
        check.integer("n_labels (the width of labels)", labels.shape[1], 1, 2**31 - 1)
        self._set(*_counted(labels), labels.shape[0], device)

    @classmethod
    def _of(cls, pairs, n_points, n_rows, device="cpu"):
        """Counts that are known to be right: CSR of pairs j < l, the points of each label, and of all."""
        counts = cls.__new__(cls)
        counts._set(pairs, n_points, n_rows, device)
        return counts

    def _set(self, pairs, n_points, n_rows, device):
        self.device = device
        arrays = pairs.indptr.astype(np.int64), pairs.indices.astype(np.int32), pairs.data, n_points.astype(np.float32)
        self.arrays = PairCounts(*(backend.asarray(a, device, a.dtype) for a in arrays), np.float32(n_rows))

    n_labels = property(lambda self: self.arrays.n_points.shape[0], doc="L")
    n_points = property(lambda self: int(self.arrays.n_rows), doc="N")
    n_pairs = property(lambda self: self.arrays.ids.shape[0], doc="Pairs of labels that occur.")
    nbytes = property(lambda self: sum(array.nbytes for array in self.arrays[:4]), doc="Bytes of all arrays.")

    def __repr__(self):
        return f"CoOccurrence(n_labels={self.n_labels}, n_points={self.n_points}, n_pairs={self.n_pairs}, device={self.device!r})"

    @property
    def counts(self):
        """(L, L) SciPy CSR matrix, int32, symmetric, zero on the diagonal: a copy."""
        upper = self._upper()
        return (upper + upper.T).tocsr()

    def _upper(self):
        """The pairs j < l as a SciPy CSR matrix."""
        indptr, ids, counts = map(backend.to_numpy, self.arrays[:3])
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
            On the same device.

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
        labels = sparse.as_ones("labels", labels)
        check.integer("the number of points", labels.shape[0], 1)
        check.integer("the width of labels", labels.shape[1], self.n_labels, 2**31 - 1, " (the labels so far)")
        pairs, n_points = _counted(labels)
        before = self._upper()
        before.resize(pairs.shape)
        n_points[: self.n_labels] += backend.to_numpy(self.arrays.n_points).astype(np.int64)
        pairs = (before + pairs).tocsr()
        pairs.sort_indices()
        return self._of(pairs, n_points, self.n_points + labels.shape[0], self.device)


def _counted(labels):
    """(CSR of the pairs j < l, points of each label) of a canonical CSR matrix of ones."""
    few = scipy.sparse.csr_matrix(labels[np.diff(labels.indptr) <= MOST_LABELS], dtype=np.int32)
    pairs = scipy.sparse.triu(few.T.tocsr() @ few, 1, format="csr")
    pairs.sort_indices()
    return pairs, np.bincount(labels.indices, minlength=labels.shape[1])


def most_pairs(labels):
    """An upper bound of the pairs that `CoOccurrence` counts in a CSR matrix."""
    lengths = np.diff(labels.indptr).astype(np.int64)
    lengths = lengths[lengths <= MOST_LABELS]
    return int((lengths * (lengths - 1) // 2).sum())


def rerank(scores, ids, co_occurrence, k=None, *, weight=0.03):
    """The best k of each row's candidates, one after the other: each place takes what suits the places before it best.

    The first candidate stays first. Every next place goes to the candidate c with the largest
    ``scores[c] + weight * sum_j chance(scores[j]) * log((n_jc + 0.05) / (n_j n_c / N + 0.05))`` over the labels j in the
    places before: n_jc points of N have both labels, so the logarithm, the pointwise mutual information, is positive where
    they occur together more often than independent labels would. ``chance(s) = 1 / (1 + exp(-(4 s + 0.8)))``.

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
        Descending: what each was chosen by, but no more than that of the place before, and no less than the score of the
        last candidate, so that those beyond the K follow.
    ids : (B, k) int32

    Raises
    ------
    TypeError, ValueError
        Other types, devices or shapes; scores not finite or not descending; labels out of range; k or weight out of range.

    Notes
    -----
    Source: greedy re-ranking as in Carbonell, Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998; pointwise
    mutual information: Church, Hanks, "Word association norms, mutual information, and lexicography", 1990. That what
    belongs together attracts, the chance, the smoothing and the weight are ours.

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
    sorted_ids = backend.module_of(device).sort(ids, axis=1)
    if bool((sorted_ids[:, 1:] == sorted_ids[:, :-1]).any()):
        raise ValueError("ids must not repeat a label inside one row")
    return rerank_checked(scores, ids, co_occurrence, k, weight)


def rerank_checked(scores, ids, co_occurrence, k, weight):
    """`rerank` of arguments that are known to be right."""
    shape, device = (scores.shape[0], k), co_occurrence.device
    found = backend.empty(shape, np.float32, device), backend.empty(shape, np.int32, device)
    backend.wing(device, "co_occurrence").rerank(scores, ids, co_occurrence.arrays, np.float32(weight), *found)
    return found
