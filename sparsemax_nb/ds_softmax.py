"""DS-Softmax: a gate sends each query to one small expert, so that it meets a fraction of the classes.

``g = softmax(gate h);  k = argmax g;  logits = g_k weights h`` for the classes that expert k holds; the others are absent. The
value g_k is not normalised to 1: it is the inverse temperature of the expert's softmax, and the way by which the gate learns.

Source: S. Liao, T. Chen, T. Lin, D. Zhou, C. Wang, "Doubly sparse: sparse mixture of sparse experts for efficient
softmax inference", arXiv 1901.10668.
"""

import numpy as np

from .core import check, checkpoint
from .core.device import asarray, backend_of, empty, module_of, product, resolve_device, to_numpy
from .core.experts import Experts, group

#: Scores that are held at once when queries are answered: 64 MiB.
MAX_ELEMENTS = 1 << 24
#: Queries for each expert, on average, from which those of an expert are multiplied at once.
ENOUGH_ROWS = 8
#: Rows that all experts together may have: their places are int32.
MOST_ROWS = 2**31 - 1


def _check_experts(gate, starts, ids, weights, n_classes):
    """The gate and `Experts`, checked."""
    device = check.same_device(gate=gate, starts=starts, ids=ids, weights=weights)
    gate = check.array("gate", gate, np.float32, ("E", "d"))
    n_experts, width = gate.shape
    check.integer("n_experts (the length of gate)", n_experts, 1)
    starts = check.integers("starts", starts, (n_experts + 1,))
    ids = check.integers("ids", ids, ("R",), n_classes)
    weights = check.array("weights", weights, np.float32, (ids.shape[0], width))
    host_starts, host_ids = to_numpy(starts), to_numpy(ids)
    if host_starts[0] != 0 or host_starts[-1] != len(host_ids) or (np.diff(host_starts) < 0).any():
        raise ValueError(f"starts must rise from 0 to {len(host_ids)}, the length of ids")
    falls = np.flatnonzero(np.diff(host_ids) <= 0) + 1
    if not np.isin(falls, host_starts).all():
        raise ValueError("ids must be ascending inside each expert")
    return device, gate, Experts(starts, ids, weights)


class PackedDSSoftmax:
    """A trained DS-Softmax that answers: ``top_k`` of the expert that the gate picks.

    Parameters
    ----------
    gate : (E, d) float32
        A row for each expert.
    starts : (E + 1,) int32, or other integers
        Expert k holds the rows ``starts[k] : starts[k + 1]`` of `ids` and `weights`.
    ids : (R,) int32, or other integers
        Classes, ascending inside an expert.
    weights : (R, d) float32
        Their output embeddings.
    n_classes : int
        L, of all experts together.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; starts or ids that are not in order.

    Notes
    -----
    Source: arXiv 1901.10668.

    Examples
    --------
    Two experts; the sign of the first coordinate decides:

    >>> import numpy as np
    >>> from sparsemax_nb import PackedDSSoftmax
    >>> gate = np.array([[9, 0], [-9, 0]], np.float32)
    >>> starts, ids = np.array([0, 2, 5], np.int32), np.array([0, 1, 1, 2, 3], np.int32)
    >>> weights = np.array([[0, 1], [0, 2], [0, 1], [0, 3], [0, 2]], np.float32)
    >>> packed = PackedDSSoftmax(gate, starts, ids, weights, n_classes=4)
    >>> probabilities, found = packed.top_k(np.array([[1, 1], [-1, 1]], np.float32), k=2)
    >>> found.tolist(), probabilities.astype(float).round(2).tolist()
    ([[1, 0], [2, 3]], [[0.73, 0.27], [0.67, 0.24]])
    >>> packed.choose(np.array([[1, 1], [-1, 1]], np.float32)).tolist()
    [0, 1]
    """

    #: What the files of `save` say that they hold.
    kind = "ds-softmax"

    def __init__(self, gate, starts, ids, weights, n_classes):
        self.n_classes = check.integer("n_classes", n_classes, 1, MOST_ROWS)
        self.device, self.gate, experts = _check_experts(gate, starts, ids, weights, self.n_classes)
        self._hold(experts)

    def _hold(self, experts):
        self._experts, self._sizes = experts, np.diff(to_numpy(experts.starts))
        self._at_once = max(1, MAX_ELEMENTS // max(int(self._sizes.max()), 1))  # queries

    starts = property(lambda self: self._experts.starts, doc="(E + 1,) int32")
    ids = property(lambda self: self._experts.ids, doc="(R,) int32")
    weights = property(lambda self: self._experts.weights, doc="(R, d) float32")
    n_experts = property(lambda self: self.gate.shape[0], doc="E")
    width = property(lambda self: self.gate.shape[1], doc="d")
    sizes = property(lambda self: self._sizes, doc="(E,) NumPy: how many classes each expert holds")
    nbytes = property(lambda self: sum(a.nbytes for a in (self.gate, *self._experts)), doc="bytes of all arrays")

    def __repr__(self):
        return (
            f"{type(self).__name__}(n_experts={self.n_experts}, n_classes={self.n_classes}, rows={self.ids.shape[0]})"
        )

    @property
    def experts_per_class(self):
        """(L,) NumPy: by how many experts each class is held."""
        return np.bincount(to_numpy(self.ids), minlength=self.n_classes)

    def _queries(self, h):
        check.same_device(h=h, weights=self.weights)
        return check.array("h", h, np.float32, ("B", self.width))

    def choose(self, h):
        """The expert of each query.

        Parameters
        ----------
        h : (B, d) float32
            Finite.

        Returns
        -------
        expert : (B,) int32

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h not finite.
        """
        h = self._queries(h)
        check.finite("h", h)
        return self._route(h)[0]

    def _route(self, h):
        """The expert of each query and the gate's value for it, (B,)."""
        logits = product(h, self.gate.T)
        chosen, values = (empty(h.shape[0], dtype, self.device) for dtype in (np.int32, np.float32))
        backend_of(self.device, "ds_softmax").gate(logits, logits, chosen, values)
        return chosen, values

    def utilisation(self, h):
        """The share of the queries that each expert gets.

        Parameters
        ----------
        h : (B, d) float32
            Queries, finite.

        Returns
        -------
        share : (E,) float64
            NumPy, on either device.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h not finite.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SparseExperts
        >>> h = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
        >>> packed = SparseExperts.dense(h[:30], n_experts=2, seed=0).pack()
        >>> packed.utilisation(h).round(2).sum()
        np.float64(1.0)
        """
        chosen = to_numpy(self.choose(h))
        return np.bincount(chosen, minlength=self.n_experts) / max(len(chosen), 1)

    def speed_up(self, h):
        """``L / (E + sum_k u_k |v_k|)``: multiply-adds of the full softmax by those here, the gate's included.

        Parameters
        ----------
        h : (B, d) float32
            Queries, finite: they say how often each expert is asked.

        Returns
        -------
        factor : float

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h not finite.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SparseExperts
        >>> h = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
        >>> packed = SparseExperts.dense(h[:30], n_experts=2, seed=0).pack()
        >>> packed.speed_up(h) == 30 / (2 + 30)  # nothing pruned yet
        True
        """
        return self.speed_up_at(self.utilisation(h))

    def speed_up_at(self, utilisation):
        """`speed_up`, where it is known how often each expert is asked.

        Parameters
        ----------
        utilisation : (E,) float64, NumPy
            u, as `utilisation` returns it.

        Returns
        -------
        factor : float

        Raises
        ------
        TypeError, ValueError
            No numbers, not one for each expert, negative or not finite.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SparseExperts
        >>> h = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
        >>> packed = SparseExperts.dense(h[:30], n_experts=2, seed=0).pack()
        >>> packed.speed_up_at(np.array([0.5, 0.5]))
        0.9375
        """
        utilisation = check.amounts("utilisation", utilisation, self.n_experts)
        return self.n_classes / (self.n_experts + float(utilisation @ self.sizes))

    def top_k(self, h, k):
        """The k best classes of each query.

        Parameters
        ----------
        h : (B, d) float32
            Queries, finite.
        k : int
            At least 1; at most the number of classes, or 65,536 where that is more; B k at most 2^31 - 1.

        Returns
        -------
        probabilities : (B, k) float32
            ``softmax(g_k weights h)`` over the classes of the chosen expert alone: how likely a class is, given that it is
            one of these. A class that the expert does not hold has none, though it may be more likely.
        ids : (B, k) int32
            Probability descending, of equal ones the lower id first. Where the expert holds fewer than k classes: id
            -1, probability 0.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h that is not finite; k out of range.
        FloatingPointError
            The scores overflow.
        """
        h, k = self._queries(h), check.padded_k(k, self.n_classes)
        n_rows = h.shape[0]
        check.elements(rows=n_rows, k=k)
        probabilities, ids = (empty((n_rows, k), dtype, self.device) for dtype in (np.float32, np.int32))
        answer = self._top_k_of_few if n_rows < ENOUGH_ROWS * self.n_experts else self._top_k_of_many
        for first in range(0, n_rows, self._at_once):
            some = slice(first, first + self._at_once)
            answer(h[some], probabilities[some], ids[some])
        if not bool(module_of(self.device).isfinite(probabilities).all()):
            for name, array in (("h", h), ("gate", self.gate), ("weights", self.weights)):
                check.finite(name, array)
            raise FloatingPointError("the scores of the experts overflowed; scale h or the weights down")
        return probabilities, ids

    def _top_k_of_few(self, h, probabilities, ids):
        """Each query reads its expert for itself."""
        backend_of(self.device, "ds_softmax").answer(h, self.gate, self._experts, probabilities, ids)

    def _top_k_of_many(self, h, probabilities, ids):
        """The queries of an expert are multiplied at once."""
        kernels, device = backend_of(self.device, "ds_softmax"), self.device
        chosen, values = self._route(h)
        groups = group(chosen, self.starts)
        scores = empty(int(groups.offsets[-1]), np.float32, device)
        kernels.scores(h[groups.order], groups, self._experts, scores)
        kernels.select(scores, values, groups, self._experts, probabilities, ids)

    def save(self, path):
        """Write gate and experts (safetensors); the file appears, or is replaced, once it is complete.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        OSError
            No such folder, no room on disk, or another reason; a file that is there stays as it was.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SparseExperts
        >>> h = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
        >>> packed = SparseExperts.dense(h[:30], n_experts=2, seed=0).pack()

        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     packed.save(Path(folder, "ds.safetensors"))
        ...     again = type(packed).load(Path(folder, "ds.safetensors"), device="cpu")
        ...     print(again)
        PackedDSSoftmax(n_experts=2, n_classes=30, rows=60)
        """
        check.path("path", path)
        arrays = {"gate": self.gate} | self._experts._asdict()
        arrays = {name: to_numpy(array) for name, array in arrays.items()}
        checkpoint.save(path, self.kind, arrays, {"n_classes": self.n_classes})

    @classmethod
    def load(cls, path, device="auto", *, mapped=False):
        """Read what `save` wrote.

        Parameters
        ----------
        path : str or path
        device : 'auto', 'cpu' or 'cuda'
            'auto' takes a CUDA device where there is one.
        mapped : bool
            On the CPU, map the file into memory instead of reading it: loading takes no time, rows are read when they
            are asked for, processes share them, and they may exceed memory. Whether they are finite is then seen in the
            answers only. Replace such a file by renaming another one, as `save` does: a process dies (SIGBUS) where a
            file that it has mapped gets shorter, as ``cp`` over it may make it.

        Returns
        -------
        packed : PackedDSSoftmax

        Raises
        ------
        FileNotFoundError, ModelFileError
            No such file; truncated, damaged, foreign, of another kind or version.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SparseExperts
        >>> h = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
        >>> packed = SparseExperts.dense(h[:30], n_experts=2, seed=0).pack()

        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     packed.save(Path(folder, "ds.safetensors"))
        ...     again = type(packed).load(Path(folder, "ds.safetensors"), device="cpu")
        ...     print(again)
        PackedDSSoftmax(n_experts=2, n_classes=30, rows=60)
        """
        check.path("path", path)
        device = resolve_device(device)
        arrays, description = checkpoint.load(path, cls.kind)
        with checkpoint.whole(path, "DS-Softmax"):
            # what steers a kernel's reads is never mapped: it stays as it was when it was checked
            gate, starts, ids = (asarray(arrays[name], device) for name in ("gate", "starts", "ids"))
            weights = asarray(arrays.mapped("weights") if mapped and device == "cpu" else arrays["weights"], device)
            packed = cls(gate, starts, ids, weights, description["n_classes"])
            for name, array in ({"gate": gate} | ({} if mapped else {"weights": weights})).items():
                check.finite(name, array)
        return packed


def _check_rows(n):
    if n > MOST_ROWS:
        raise ValueError(
            f"the experts would have {n:,} rows together, more than {MOST_ROWS:,}; prune, or use fewer experts"
        )
