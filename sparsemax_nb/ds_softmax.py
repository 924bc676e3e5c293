"""DS-Softmax: a gate sends each row of h to one small expert, which scores only a fraction of the classes.

``g = softmax(gate h);  k = argmax g;  logits = g_k weights h`` for the classes of expert k; it has no others. g_k is
not renormalized to 1: it acts as the inverse temperature of the expert's softmax, and lets gradients reach the gate.

Source: S. Liao, T. Chen, T. Lin, D. Zhou, C. Wang, "Doubly sparse: sparse mixture of sparse experts for efficient
softmax inference", arXiv 1901.10668.
"""

import os
from typing import Literal, Self

import numpy as np

from .core import check, checkpoint
from .core.annotations import Array
from .core.device import asarray, backend_of, empty, module_of, product, resolve_device, to_numpy
from .core.experts import Experts, group

#: `top_k` handles the rows of h in chunks with at most this many scores: 64 MiB.
MAX_ELEMENTS = 1 << 24
#: From this many rows of h per expert on average, `top_k` sorts them by expert and computes matrix products.
MIN_ROWS_PER_EXPERT = 8
#: Most rows of all experts together: they are indexed with int32.
MAX_ROWS = 2**31 - 1


def _checked_experts(gate, starts, ids, weights, n_classes):
    """The device, the checked gate, and the other arrays as checked `Experts`."""
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
        raise ValueError("ids must ascend within each expert")
    return device, gate, Experts(starts, ids, weights)


class PackedDSSoftmax:
    """A trained DS-Softmax for prediction: ``top_k`` within the expert that the gate chooses.

    Parameters
    ----------
    gate : (E, d) float32
        One row per expert.
    starts : (E + 1,) int32, or other integers
        Expert k has the rows ``starts[k] : starts[k + 1]`` of `ids` and `weights`.
    ids : (R,) int32, or other integers
        The class of each row, ascending within an expert.
    weights : (R, d) float32
        The output embedding of each row.
    n_classes : int
        L, the number of classes of all experts together.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; starts or ids that are not in order.

    Notes
    -----
    Source: arXiv 1901.10668.

    Examples
    --------
    Two experts; the sign of the first coordinate of h selects one:

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

    #: The kind of model that the files of `save` declare.
    kind = "ds-softmax"

    def __init__(self, gate: Array, starts: Array, ids: Array, weights: Array, n_classes: int) -> None:
        self.n_classes = check.integer("n_classes", n_classes, 1, MAX_ROWS)
        self.device, self.gate, experts = _checked_experts(gate, starts, ids, weights, self.n_classes)
        self._set_experts(experts)

    def _set_experts(self, experts):
        self._experts, self._sizes = experts, np.diff(to_numpy(experts.starts))
        self._rows_per_chunk = max(1, MAX_ELEMENTS // max(int(self._sizes.max()), 1))

    starts = property(lambda self: self._experts.starts, doc="(E + 1,) int32")
    ids = property(lambda self: self._experts.ids, doc="(R,) int32")
    weights = property(lambda self: self._experts.weights, doc="(R, d) float32")
    n_experts = property(lambda self: self.gate.shape[0], doc="E")
    width = property(lambda self: self.gate.shape[1], doc="d")
    sizes = property(lambda self: self._sizes, doc="(E,) NumPy: the number of classes of each expert")
    nbytes = property(lambda self: sum(a.nbytes for a in (self.gate, *self._experts)), doc="bytes of all arrays")

    def __repr__(self):
        return (
            f"{type(self).__name__}(n_experts={self.n_experts}, n_classes={self.n_classes}, rows={self.ids.shape[0]})"
        )

    @property
    def experts_per_class(self) -> np.ndarray:
        """(L,) NumPy: the number of experts that have each class."""
        return np.bincount(to_numpy(self.ids), minlength=self.n_classes)

    def _checked_h(self, h, finite=False):
        check.same_device(h=h, weights=self.weights)
        return check.array("h", h, np.float32, ("B", self.width), finite=finite)

    def choose(self, h: Array) -> Array:
        """The expert of each row of h.

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
        return self._route(self._checked_h(h, finite=True))[0]

    def _route(self, h):
        """The expert of each row of h, and the gate's value for it, (B,) each."""
        logits = product(h, self.gate.T)
        chosen, values = (empty(h.shape[0], dtype, self.device) for dtype in (np.int32, np.float32))
        backend_of(self.device, "ds_softmax").gate(logits, logits, chosen, values)
        return chosen, values

    def utilisation(self, h: Array) -> np.ndarray:
        """The share of the rows of h that each expert gets.

        Parameters
        ----------
        h : (B, d) float32
            Finite.

        Returns
        -------
        share : (E,) float64
            NumPy, also if h is on CUDA.

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

    def speed_up(self, h: Array) -> float:
        """Multiply-adds of the full softmax divided by those of this layer: ``L / (E + sum_k u_k |v_k|)``.

        u_k is the share of the rows of h that expert k gets, and ``|v_k|`` the number of its classes. E is the cost of
        the gate.

        Parameters
        ----------
        h : (B, d) float32
            Finite.

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

    def speed_up_at(self, utilisation: np.ndarray) -> float:
        """`speed_up` for a known utilisation.

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
            Not numbers, not one per expert, negative or not finite.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SparseExperts
        >>> h = np.random.default_rng(0).standard_normal((100, 8), dtype=np.float32)
        >>> packed = SparseExperts.dense(h[:30], n_experts=2, seed=0).pack()
        >>> packed.speed_up_at(np.array([0.5, 0.5]))
        0.9375
        """
        utilisation = check.nonnegative("utilisation", utilisation, self.n_experts)
        return self.n_classes / (self.n_experts + float(utilisation @ self.sizes))

    def top_k(self, h: Array, k: int) -> tuple[Array, Array]:
        """The k best classes of each row of h.

        Parameters
        ----------
        h : (B, d) float32
            Finite.
        k : int
            At least 1; at most the number of classes, or 65,536 if that is more; B k at most 2^31 - 1.

        Returns
        -------
        probabilities : (B, k) float32
            Descending. ``softmax(g_k weights h)`` over the classes of the chosen expert only: the probability of a
            class given that it is one of them. Classes that the expert does not have get no probability, however likely
            they are.
        ids : (B, k) int32
            Classes with equal probabilities ascend. If the expert has fewer than k classes: id -1, probability 0.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; h that is not finite; k out of range.
        FloatingPointError
            The scores overflow.
        """
        h, k = self._checked_h(h), check.padded_k(k, self.n_classes)
        n_rows = h.shape[0]
        check.array_size(rows=n_rows, k=k)
        probabilities, ids = (empty((n_rows, k), dtype, self.device) for dtype in (np.float32, np.int32))
        search = self._top_k_by_row if n_rows < MIN_ROWS_PER_EXPERT * self.n_experts else self._top_k_by_expert
        for first in range(0, n_rows, self._rows_per_chunk):
            rows = slice(first, first + self._rows_per_chunk)
            search(h[rows], probabilities[rows], ids[rows])
        if not bool(module_of(self.device).isfinite(probabilities).all()):
            for name, array in (("h", h), ("gate", self.gate), ("weights", self.weights)):
                check.finite(name, array)
            raise FloatingPointError("the scores of the experts overflowed; scale h or the weights down")
        return probabilities, ids

    def _top_k_by_row(self, h, probabilities, ids):
        """Each row of h reads its expert on its own: fastest for few rows."""
        backend_of(self.device, "ds_softmax").answer(h, self.gate, self._experts, probabilities, ids)

    def _top_k_by_expert(self, h, probabilities, ids):
        """One matrix product for all rows of h that chose the same expert."""
        kernels, device = backend_of(self.device, "ds_softmax"), self.device
        chosen, values = self._route(h)
        groups = group(chosen, self.starts)
        scores = empty(int(groups.offsets[-1]), np.float32, device)
        kernels.scores(h[groups.order], groups, self._experts, scores)
        kernels.select(scores, values, groups, self._experts, probabilities, ids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write gate and experts to a safetensors file, which is created or replaced once it is complete.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        OSError
            No such folder, no space on disk, or another error. An existing file has not changed.

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
        ...     loaded = type(packed).load(Path(folder, "ds.safetensors"), device="cpu")
        ...     print(loaded)
        PackedDSSoftmax(n_experts=2, n_classes=30, rows=60)
        """
        check.path("path", path)
        arrays = {"gate": self.gate} | self._experts._asdict()
        arrays = {name: to_numpy(array) for name, array in arrays.items()}
        checkpoint.save(path, self.kind, arrays, {"n_classes": self.n_classes})

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: Literal["auto", "cpu", "cuda"] = "auto", *, mapped: bool = False
    ) -> Self:
        """Read a file that `save` has written.

        Parameters
        ----------
        path : str or path
        device : 'auto', 'cpu' or 'cuda'
            'auto' takes a CUDA device if there is one.
        mapped : bool
            On the CPU, map the file into memory instead of reading it: loading takes no time, rows are read when they
            are needed, processes share them, and they may exceed memory. Weights that are not finite are then only
            detected in results. Replace a mapped file only by renaming another one, as `save` does: if it is truncated,
            as by ``cp``, processes that have mapped it crash (SIGBUS).

        Returns
        -------
        packed : PackedDSSoftmax

        Raises
        ------
        FileNotFoundError, ModelFileError
            No such file; a file that is truncated, damaged, or of another kind, format or version.

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
        ...     loaded = type(packed).load(Path(folder, "ds.safetensors"), device="cpu")
        ...     print(loaded)
        PackedDSSoftmax(n_experts=2, n_classes=30, rows=60)
        """
        check.path("path", path)
        device = resolve_device(device)
        arrays, description = checkpoint.load(path, cls.kind)
        with checkpoint.complete(path, "DS-Softmax"):
            # Only the weights are mapped: arrays that kernels use as indices must not change after they were checked.
            gate, starts, ids = (asarray(arrays[name], device) for name in ("gate", "starts", "ids"))
            weights = asarray(arrays.mapped("weights") if mapped and device == "cpu" else arrays["weights"], device)
            packed = cls(gate, starts, ids, weights, description["n_classes"])
            for name, array in ({"gate": gate} | ({} if mapped else {"weights": weights})).items():
                check.finite(name, array)
        return packed


def _check_rows(n):
    if n > MAX_ROWS:
        raise ValueError(
            f"the experts would have {n:,} rows together, more than {MAX_ROWS:,}; prune, or use fewer experts"
        )
