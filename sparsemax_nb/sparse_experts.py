"""Training a sparse mixture of sparse experts (method 3, DS-Softmax): steps, pruning, mitosis."""

import math
from typing import Self

import numpy as np

from .core import check, rng
from .core.annotations import Array, SparseMatrix
from .core.device import asarray, backend_of, empty, module_of, product, to_numpy
from .core.experts import Experts, by_class, group
from .core.sparse import Labels, as_targets
from .ds_softmax import PackedDSSoftmax, _check_rows
from .optimizers import Adam

#: Added inside the square root of a group lasso: keeps its gradient finite at zero.
EPSILON = 1e-8
#: Size of the random vectors that separate the gate's rows when experts are split, relative to the rows' root mean
#: square.
PERTURBATION = 0.1


class SparseExperts(PackedDSSoftmax):
    """A sparse mixture of sparse experts in training, which needs less memory with every row that is pruned.

    It stores the rows of all experts, their two moments and their gradient; and, for a batch, one score for each row of
    h and class of its expert, which is B x L scores before pruning.

    Parameters
    ----------
    gate : (E, d) float32
        Updated in place, like `weights`.
    starts : (E + 1,) int32, or other integers
        Expert k has the rows ``starts[k] : starts[k + 1]`` of `ids` and `weights`.
    ids : (R,) int32, or other integers
        The class of each row, ascending within an expert.
    weights : (R, d) float32
        The output embedding of each row.
    n_classes : int
        L, the number of classes of all experts together.

    Attributes
    ----------
    steps : int
        Number of steps so far; part of the counter of the noise's random numbers.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; read-only arrays; starts or ids that are not in order.

    Notes
    -----
    Source: arXiv 1901.10668.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import Adam, SparseExperts
    >>> random = np.random.default_rng(0)
    >>> weights, targets = random.standard_normal((30, 8), dtype=np.float32), np.arange(30, dtype=np.int32)
    >>> experts, adam = SparseExperts.dense(0.1 * weights, n_experts=2, seed=0), Adam(0.03)
    >>> losses = [experts.step(weights, targets, adam, class_lasso=1e-3, balance=1) for _ in range(200)]
    >>> losses[-1] < 0.1
    True
    >>> removed = experts.prune(0.03, adam)
    >>> experts.split(adam, seed=1)
    >>> experts
    SparseExperts(n_experts=4, n_classes=30, rows=...)
    >>> experts.pack()
    PackedDSSoftmax(n_experts=4, n_classes=30, rows=...)
    """

    def __init__(self, gate: Array, starts: Array, ids: Array, weights: Array, n_classes: int) -> None:
        super().__init__(gate, starts, ids, weights, n_classes)
        for name in ("gate", "weights"):
            check.writable(name, getattr(self, name))
        self.steps = 0

    @classmethod
    def dense(cls, weights: Array, n_experts: int, seed: int = 0) -> Self:
        """Experts that each have all classes, with the rows of `weights` minus their mean, and a random gate.

        Subtracting the mean does not change the softmax. It makes the rows of average classes small, so that pruning
        removes the least informative rows first, and a missing class has the logit of an average one.

        Parameters
        ----------
        weights : (L, d) float32
            The rows of a trained output layer, or random ones. Copied.
        n_experts : int
            E.
        seed : int
            Of the gate, in [0, 2^64).

        Returns
        -------
        experts : SparseExperts

        Raises
        ------
        TypeError, ValueError
            Wrong dtype or shape; weights that are not finite; more than 2^31 - 1 rows of all experts together.
        """
        device = check.same_device(weights=weights)
        weights = check.array("weights", weights, np.float32, ("L", "d"), finite=True)
        n_experts = check.integer("n_experts", n_experts, 1)
        n_classes, width = weights.shape
        check.integer("n_classes (the length of weights)", n_classes, 1)
        _check_rows(n_experts * n_classes)
        xp = module_of(device)
        gate = _random((n_experts, width), 1 / math.sqrt(max(width, 1)), seed, device)
        ids = asarray(xp.tile(xp.arange(n_classes, dtype=np.int32), n_experts), device)
        starts = asarray(xp.arange(n_experts + 1, dtype=np.int32) * n_classes, device, np.int32)
        experts = asarray(xp.tile(weights - weights.mean(axis=0), (n_experts, 1)), device, np.float32)
        return cls(gate, starts, ids, experts, n_classes)

    def _set_experts(self, experts):
        """Set new arrays, and everything that depends on the rows."""
        xp = module_of(self.device)
        with np.errstate(over="ignore"):
            squares = asarray((experts.weights**2).sum(axis=1), self.device, np.float32)
        if not bool(xp.isfinite(squares).all()):
            check.finite("weights", experts.weights)
            raise ValueError(
                "weights must have rows whose sum of squares fits float32, got larger numbers; scale them down"
            )
        super()._set_experts(experts)
        self._by_class = by_class(experts.ids, self.n_classes)
        self._squares = squares
        self._class_squares = empty(self.n_classes, np.float32, self.device)
        self._dweights, self._scores = None, empty(0, np.float32, self.device)

    def _scores_buffer(self, n):
        """n uninitialised scores in a buffer that is kept for the next step: allocating it every time is slow."""
        if self._scores.shape[0] < n:
            self._scores = None  # free it before the larger one is allocated
            self._scores = empty(n, np.float32, self.device)
        return self._scores[:n]

    def step(
        self,
        h: Array,
        targets: Array | SparseMatrix | Labels,
        optimizer: Adam,
        *,
        class_lasso: float = 0.0,
        expert_lasso: float = 0.0,
        balance: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> float:
        """One step of training: forward, backward and update of gate and experts.

        It minimizes ``cross-entropy + class_lasso sum_k sum_c rms(row_kc) + expert_lasso sum_c rms_c + balance CV^2``.
        rms is the root mean square of a row, and rms_c that of class c over all experts (missing rows count as zero).
        CV is the coefficient of variation of the sums of gate values that the experts get from the batch. A class that
        the chosen expert does not have counts with logit 0, like a row of zeros. So pruning a small row hardly changes
        the loss, and an expert without the target still has a gradient (our choice; the paper does not specify this).

        Parameters
        ----------
        h : (B, d) float32
            Finite.
        targets : (B,) int32, or SciPy CSR matrix (B, L), or Labels(indptr, indices)
            As for `softmax_cross_entropy`.
        optimizer : Adam
            Its moments of gate and rows are updated in place.
        class_lasso, expert_lasso, balance : float
            Weights of the penalties; not negative.
        noise : float
            Standard deviation of the noise on the gate's logits, a nearly normal sum of uniform numbers.
        seed : int
            Of the noise.

        Returns
        -------
        loss : float
            The mean cross-entropy before the update; 0 for no rows.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape or device; targets out of range; h that is not finite; read-only arrays.
        FloatingPointError
            The scores overflow. Nothing has changed.
        """
        _check_optimizer(optimizer)
        numbers = {"class_lasso": class_lasso, "expert_lasso": expert_lasso, "balance": balance, "noise": noise}
        for name, number in numbers.items():
            check.number(name, number, 0, math.inf)
        key = np.uint64(check.integer("seed", seed, 0, 2**64 - 1))
        h, device = self._checked_h(h), self.device
        n_rows, experts = h.shape[0], self._experts
        forward, training = backend_of(device, "ds_softmax"), backend_of(device, "sparse_experts")
        labels = as_targets(targets, n_rows, device, self.n_classes)
        optimizer.check_writable(**{"experts.gate": self.gate, "experts.weights": self.weights})
        if not n_rows:
            return 0.0
        logits = product(h, self.gate.T)
        if noise > 0:
            training.add_noise(key, np.uint64(self.steps), np.float32(noise), logits)
        values, loss, dvalues = (empty(n_rows, np.float32, device) for _ in range(3))
        chosen = empty(n_rows, np.int32, device)
        forward.gate(logits, logits, chosen, values)
        groups = group(chosen, experts.starts)
        scores, sorted_h = self._scores_buffer(int(groups.offsets[-1])), h[groups.order]
        scale = np.float32(1 / n_rows)
        forward.scores(sorted_h, groups, experts, scores)
        training.cross_entropy(scores, values, labels, groups, experts, self.n_classes, scale, loss, dvalues, scores)
        value = float(loss.sum(dtype=np.float64)) / n_rows
        if not (math.isfinite(value) and bool(module_of(device).isfinite(dvalues).all())):
            for name, array in (("h", h), ("gate", self.gate), ("weights", self.weights)):
                check.finite(name, array)
            raise FloatingPointError("the scores of the experts overflowed; lower the learning rate")
        if self._dweights is None:
            self._dweights = empty(self.weights.shape, np.float32, device)
        training.gradient_of_rows(scores, sorted_h, groups, experts, self._dweights)
        load, dload = (empty(self.n_experts, np.float32, device) for _ in range(2))
        training.balance(values, groups, load, dload)
        dload *= np.float32(balance)
        dlogits = empty(logits.shape, np.float32, device)
        training.gate_backward(logits, chosen, dvalues, dload, dlogits)
        optimizer.step(self.gate, product(dlogits.T, h))
        training.class_sums(self._squares, self._by_class, self._class_squares)
        _, rates, moments = optimizer.begin_step(self.weights)
        penalties = tuple(map(np.float32, (class_lasso, expert_lasso, self.n_experts, EPSILON)))
        training.update(
            self._dweights, self.ids, self._class_squares, penalties, rates, moments, self.weights, self._squares
        )
        optimizer.end_step(self.weights)
        self.steps += 1
        return value

    def prune(self, threshold: float, optimizer: Adam | None = None) -> int:
        """Remove every row whose root mean square is below `threshold`, except the largest row of each class.

        Parameters
        ----------
        threshold : float
            Not negative.
        optimizer : Adam, optional
            The optimizer that trains the experts; its moments of removed rows are removed as well.

        Returns
        -------
        removed : int
            The number of removed rows.

        Raises
        ------
        TypeError, ValueError
            threshold is not a number, negative or not finite; optimizer is not an `Adam`.
        """
        threshold = check.number("threshold", threshold, 0, math.inf)
        if optimizer is not None:
            _check_optimizer(optimizer)
        keep = empty(self.ids.shape[0], np.uint8, self.device)
        least = np.float32(min(threshold**2 * self.width, check.LARGEST))
        backend_of(self.device, "sparse_experts").survivors(self._squares, self._by_class, least, keep)
        xp, kept = module_of(self.device), keep.astype(bool)
        before = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(kept, dtype=np.int64)])
        starts = asarray(before[self.starts], self.device, np.int32)
        return self._take(starts, xp.flatnonzero(kept), optimizer)

    def split(self, optimizer: Adam | None = None, seed: int = 0) -> None:
        """Mitosis: expert k becomes two experts, 2 k and 2 k + 1, with the same rows and moments.

        A random vector is added to the gate's row of one, and subtracted from that of the other.

        Parameters
        ----------
        optimizer : Adam, optional
            The optimizer that trains the experts; its moments of gate and rows are copied as well.
        seed : int
            Of the random vectors, in [0, 2^64).

        Raises
        ------
        TypeError, ValueError
            seed out of range; more than 2^31 - 1 rows of all experts together; optimizer is not an `Adam`.
        """
        if optimizer is not None:
            _check_optimizer(optimizer)
        _check_rows(2 * self.ids.shape[0])
        xp, counts = module_of(self.device), np.diff(to_numpy(self.starts))
        scale = PERTURBATION * math.sqrt(3 * float((self.gate**2).mean()))
        shift = _random(self.gate.shape, scale, seed, self.device)
        gate = empty((2 * self.n_experts, self.width), np.float32, self.device)
        gate[0::2], gate[1::2] = self.gate + shift, self.gate - shift
        new_counts = np.repeat(counts, 2)
        starts = np.concatenate([[0], np.cumsum(new_counts)])
        old_starts = np.repeat(to_numpy(self.starts)[:-1], 2)
        old_rows = np.arange(starts[-1]) + np.repeat(old_starts - starts[:-1], new_counts)
        if optimizer is not None:
            optimizer.replace(self.gate, gate, lambda a: xp.repeat(a, 2, axis=0))
        self.gate = gate
        self._take(asarray(starts, self.device, np.int32), asarray(old_rows, self.device, np.int32), optimizer)

    def _take(self, starts, rows, optimizer):
        """Replace the rows of all experts by copies of `rows`; returns the number of rows before minus after."""
        old, self._dweights = self.weights, None
        experts = Experts(starts, self.ids[rows], old[rows])
        if optimizer is not None:
            optimizer.replace(old, experts.weights, lambda a: a[rows])
        self._set_experts(experts)
        return old.shape[0] - experts.ids.shape[0]

    def pack(self) -> PackedDSSoftmax:
        """A copy for prediction, with the present weights.

        Returns
        -------
        packed : PackedDSSoftmax
        """
        starts, ids, weights = (a.copy() for a in self._experts)
        return PackedDSSoftmax(self.gate.copy(), starts, ids, weights, self.n_classes)


def _check_optimizer(optimizer):
    if not isinstance(optimizer, Adam):
        raise TypeError(f"optimizer must be Adam, got {type(optimizer).__name__}")


def _random(shape, scale, seed, device):
    """Random float32 numbers, uniform in [-scale, scale)."""
    seed, out = np.uint64(check.integer("seed", seed, 0, 2**64 - 1)), empty(shape, np.float32, device)
    backend_of(device, "initialization").random_values(seed, rng.GATE, np.float32(scale), out.reshape(-1))
    return out
