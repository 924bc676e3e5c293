"""`DSSoftmax`: training of DS-Softmax, in epochs that prune and stages that double the number of experts (mitosis)."""

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable
from typing import Self

import numpy as np
import scipy.sparse

from ..core import check, description
from ..core.annotations import Array, SparseMatrix
from ..core.device import asarray, device_of, resolve_device, to_numpy
from ..core.sparse import Labels, as_ones
from ..data.batches import batches, shuffled
from ..ds_softmax import PackedDSSoftmax
from ..metrics import hits_at_k
from ..optimizers import Adam
from ..sparse_experts import SparseExperts
from .estimator import Estimator
from .loop import TrainingError, deferred_interrupt
from .progress import Progress

#: Number of training rows, spread over all, on which utilisation and speed-up are measured.
SAMPLE_ROWS = 20_000
#: The gate has collapsed if one expert gets more than this share of the rows.
COLLAPSED_SHARE = 0.9
#: Rows per batch of an evaluation. Limits the memory of the scores.
ROWS_PER_BATCH = 4096
#: Numbers of best classes for which `evaluate` reports the hits, ascending.
KS = 1, 5, 10
METRIC, COUNT = description.any_number, description.integer(0)
#: Description of a run in its checkpoint.
DESCRIPTION = description.record(
    n_classes=COUNT,
    steps=COUNT,
    epoch=COUNT,
    history=description.list_of(
        description.record(
            epoch=COUNT,
            n_experts=COUNT,
            loss=METRIC,
            rows=COUNT,
            removed=COUNT,
            smallest_share=METRIC,
            largest_share=METRIC,
            seconds=METRIC,
            **{"speed-up": METRIC},
        )
    ),
)


#: More experts are an error: the gate has one row per expert, and each stage doubles them.
MAX_EXPERTS = 1 << 20


class DSSoftmax(Estimator):
    """A sparse mixture of sparse experts that answers top-k queries on the hidden activations h of a model.

    It is trained on h and targets, and computes the scores of only the classes in the expert that its gate picks.
    Training starts with few experts that contain all classes. Each epoch ends by pruning the rows that two group lassos
    have made small. After `epochs` epochs, a stage, every expert is cloned, until there are `n_experts`. Hence training
    needs the memory of only a few full output layers. See `SparseExperts.step` for the objective.

    Parameters
    ----------
    n_experts : int
        Final number of experts: `first_experts` times a power of two.
    first_experts : int
        Number of experts of the first stage.
    epochs : int
        Epochs per stage.
    prune_after : int
        Epochs of the first stage before pruning starts; its last epoch always prunes. Later stages prune from their
        first epoch, because their experts are pruned already.
    threshold : float
        Rows whose root mean square is smaller are pruned.
    class_lasso, expert_lasso, balance : float
        Weights of the two lassos and of the squared coefficient of variation of the experts' loads, relative to the
        loss of one target. For several labels per row, they are multiplied by the mean number of labels.
    noise : float
        Standard deviation of the noise added to the gate in training.
    batch_size : int
    learning_rate : float
        Learning rate of Adam at the start of a stage; it falls linearly to a tenth.
    seed : int
        Seed of the gate, the order of the rows, the noise and the mitosis.
    device : 'auto', 'cpu' or 'cuda'
        'auto' uses a CUDA device if there is one.
    progress : bool
        Show progress on standard error: a bar in a terminal, else a line per tenth of the steps.

    Attributes
    ----------
    experts_ : SparseExperts
    history_ : list of dict
        One per epoch: number of experts, loss, rows kept and removed, largest and smallest share of the training rows
        that an expert gets, speed-up in FLOPs, seconds, and the validation metrics.
    n_classes_ : int

    Notes
    -----
    Source: arXiv 1901.10668. The defaults are those that worked for the 33,278 words of WikiText-2 (bench.ds_softmax).
    Threshold, balance and learning rate are the authors'. We chose smaller lassos (theirs: 0.002), larger batches and
    a learning rate that decays.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import DSSoftmax
    >>> random = np.random.default_rng(0)
    >>> centres, targets = random.standard_normal((20, 16)), random.integers(0, 20, 2000).astype(np.int32)
    >>> h = (centres[targets] + 0.1 * random.standard_normal((2000, 16))).astype(np.float32)
    >>> model = DSSoftmax(n_experts=4, batch_size=50, epochs=8, prune_after=4, progress=False).fit(h, targets)
    >>> model.evaluate(h, targets)["top-1"] > 0.98
    True
    >>> probabilities, ids = model.pack().top_k(h[:3], k=2)
    >>> ids.shape
    (3, 2)
    """

    kind = PackedDSSoftmax.kind
    fit_call = "fit(h, targets)"
    fitted_attribute = "experts_"
    experts_: SparseExperts
    history_: list[dict]
    n_classes_: int

    def __init__(
        self,
        n_experts: int = 64,
        first_experts: int = 2,
        epochs: int = 2,
        prune_after: int = 0,
        threshold: float = 0.03,
        class_lasso: float = 3e-4,
        expert_lasso: float = 3e-4,
        balance: float = 10.0,
        noise: float = 0.0,
        batch_size: int = 1024,
        learning_rate: float = 3e-3,
        seed: int = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        self.set_params(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})

    def _check_params(self):
        first = check.integer("first_experts", self.first_experts, 1)
        check.flag("progress", self.progress)
        n_experts, lower = check.integer("n_experts", self.n_experts, first), first
        if n_experts > MAX_EXPERTS:
            raise ValueError(f"n_experts must be at most {MAX_EXPERTS}, got {n_experts}")
        while 2 * lower <= n_experts:
            lower *= 2
        if lower != n_experts:
            raise ValueError(
                f"n_experts must be first_experts = {first} times a power of two, got {n_experts}; "
                f"use {lower} or {2 * lower}"
            )
        for name in ("epochs", "batch_size"):
            check.integer(name, getattr(self, name), 1)
        check.integer("prune_after", self.prune_after, 0)
        for name in ("threshold", "class_lasso", "expert_lasso", "balance", "noise"):
            check.number(name, getattr(self, name), 0, math.inf)
        check.number("learning_rate", self.learning_rate, 0, math.inf, open_ends=True)
        check.integer("seed", self.seed, 0, 2**63)

    def fit(
        self,
        h: Array,
        targets: Array | SparseMatrix,
        weights: Array | None = None,
        *,
        n_classes: int | None = None,
        validation: tuple[Array, Array | SparseMatrix] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        resume: bool = False,
        after_epoch: Callable[[dict], object] | None = None,
        after_stage: Callable[[int, PackedDSSoftmax], object] | None = None,
    ) -> Self:
        """Train all stages, from `first_experts` to `n_experts`.

        Parameters
        ----------
        h : (N, d) float32 or float16 NumPy array
            Hidden activations. May be memory-mapped: each batch is read when it is needed.
        targets : (N,) int32 or other integers, or SciPy CSR matrix (N, L)
            One class per row of h, or any number of labels.
        weights : (L, d) float32 NumPy array, optional
            Weights of a trained output layer, which initialise every expert; by default small random numbers.
        n_classes : int, optional
            L, if neither `weights` nor a matrix of targets determines it; by default the largest target plus one.
        validation : (h, targets), optional
            Evaluated after each epoch.
        checkpoint_path : path, optional
            File to which a checkpoint is written after each epoch. Without `resume` it must not exist yet.
        resume : bool
            Continue from `checkpoint_path` if it exists; the result is, bit for bit, that of an uninterrupted run. Data
            and parameters must be the same, except for device and progress.
        after_epoch : callable, optional
            ``after_epoch(record)``, called after each epoch with its record in `history_`.
        after_stage : callable, optional
            ``after_stage(n_experts, packed)``, called after each stage with a `PackedDSSoftmax`. The checkpoint of the
            epoch is written after both callbacks: if one is interrupted, a resumed run calls it again.

        Returns
        -------
        self : DSSoftmax

        Raises
        ------
        TypeError, ValueError
            Wrong types, shapes or parameters; targets out of range; or `ModelFileError`: the checkpoint is damaged, of
            another version, or of different data or parameters.
        TrainingError
            h is not finite, or the scores overflow; the message names the step. The last checkpoint is kept.
        KeyboardInterrupt
            Ctrl-C, after the current step, or after the checkpoint at the end of an epoch. The last checkpoint is kept.
        """
        self._check_params()
        device = resolve_device(self.device)
        h, targets = _checked_data("", h, targets)
        n_classes = _n_classes(weights, targets, n_classes)
        if weights is not None:
            weights = check.array("weights", _on_host("weights", weights), np.float32, (n_classes, h.shape[1]))
            check.finite("weights", weights)
        if validation is not None:
            validation_h, validation_targets = check.pair("validation", validation, "(h, targets)")
            validation = _checked_data("validation ", validation_h, validation_targets, h.shape[1], n_classes)
        self._check_checkpoint_path(checkpoint_path, resume)
        run = _Run(self, h, targets, weights, n_classes, validation, device)
        parts = [(h, targets)] if weights is None else [(h, targets), (weights, np.zeros(0))]
        run.go(self._set_up_checkpoints(run, checkpoint_path, resume, parts), after_epoch, after_stage)
        self.experts_, self.history_, self.n_classes_ = run.experts, run.history, n_classes
        return self

    def pack(self) -> PackedDSSoftmax:
        """Return the fitted experts in the form that answers top-k queries.

        Returns
        -------
        packed : PackedDSSoftmax
            With copies of the arrays.

        Raises
        ------
        ValueError
            The estimator is not fitted yet.
        """
        self._check_fitted()
        return self.experts_.pack()

    def evaluate(self, h: Array, targets: Array | SparseMatrix) -> dict[str, float]:
        """Return the accuracy and the cost of the answers.

        Parameters
        ----------
        h : (N, d) float32 or float16
            NumPy; may be memory-mapped.
        targets : (N,) int32 or other integers, or SciPy CSR matrix (N, L)
            As for `fit`.

        Returns
        -------
        metrics : dict
            'top-1', 'top-5', 'top-10': share of the targets among the best 1, 5, 10 classes (for several labels: P@1,
            P@5, P@10). 'held': share of the targets that the chosen expert contains. 'speed-up': ratio of FLOPs to a
            full softmax, including the gate.

        Raises
        ------
        TypeError, ValueError
            The estimator is not fitted yet; wrong dtype or shape; targets out of range; h is not finite.
        """
        self._check_fitted()
        return evaluate_experts(self.experts_, h, targets)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the experts to a file for `PackedDSSoftmax.load`.

        Parameters
        ----------
        path : str or path
            The file appears, or is replaced, only when it is complete.

        Raises
        ------
        ValueError
            The estimator is not fitted yet.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from sparsemax_nb import DSSoftmax, PackedDSSoftmax
        >>> h = np.eye(8, dtype=np.float32)
        >>> model = DSSoftmax(n_experts=2, epochs=1, device="cpu", progress=False).fit(h, np.arange(8, dtype=np.int32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(Path(folder, "ds.safetensors"))
        ...     packed = PackedDSSoftmax.load(Path(folder, "ds.safetensors"), device="cpu")
        >>> packed.n_classes
        8
        """
        self.pack().save(path)


class _Run:
    """A run of `DSSoftmax.fit`, and its state."""

    def __init__(self, model, h, targets, weights, n_classes, validation, device):
        self.model = model
        self.h = h
        self.targets = targets
        self.validation = validation
        self.device = device
        self.optimizer = Adam(model.learning_rate)
        self.history = []
        self.epoch = 0
        self.n_labels = max(targets.nnz / len(h), 1.0) if scipy.sparse.issparse(targets) else 1.0  # per row
        self.n_steps = -(-len(h) // model.batch_size)  # per epoch
        self.n_epochs = model.epochs * int(model.n_experts // model.first_experts).bit_length()  # of all stages
        if weights is None:
            width = h.shape[1]
            weights = np.random.default_rng(model.seed).standard_normal((n_classes, width), np.float32)
            weights /= np.float32(math.sqrt(max(width, 1)))
        self.experts = SparseExperts.dense(asarray(weights, device), model.first_experts, model.seed)

    def go(self, save, after_epoch, after_stage):
        """Train all remaining epochs."""
        model, outcome = self.model, "the step is finished; the checkpoint of the last complete epoch is kept"
        bar = Progress(self.n_epochs * self.n_steps, self.epoch * self.n_steps, model.progress)
        with bar, deferred_interrupt(save is not None, outcome) as interrupted:
            while self.epoch < self.n_epochs:
                stage, epoch_in_stage = divmod(self.epoch, model.epochs)
                if epoch_in_stage == 0 and stage > 0:
                    with _naming_step(self.epoch * self.n_steps - 1):
                        self.experts.split(self.optimizer, seed=model.seed + stage)
                record = self._one_epoch(stage, epoch_in_stage, bar, interrupted)
                self.history.append(record)
                self.epoch += 1
                if after_epoch is not None:
                    after_epoch(record)
                if after_stage is not None and epoch_in_stage == model.epochs - 1:
                    after_stage(self.experts.n_experts, self.experts.pack())
                if save is not None:
                    save()
                if interrupted:
                    self._stop()

    def _stop(self):
        """Raise KeyboardInterrupt, with a message if there is a checkpoint."""
        raise KeyboardInterrupt(*[f"the checkpoint is that of the end of epoch {self.epoch}"] if self.epoch else [])

    def _one_epoch(self, stage, epoch_in_stage, bar, interrupted):
        """Train, prune and validate; returns the record of the epoch."""
        model, experts, start = self.model, self.experts, time.perf_counter()
        loss = self._steps(epoch_in_stage, bar, interrupted)
        last = (self.epoch + 1) * self.n_steps - 1
        with _naming_step(last):
            for name in ("gate", "weights"):  # values that are not finite must not overwrite a good checkpoint
                check.finite(name, getattr(experts, name))
            is_due = stage > 0 or epoch_in_stage >= model.prune_after or epoch_in_stage == model.epochs - 1
            # Threshold 0 removes nothing, but recomputes what depends on the rows, as a resumed run does.
            removed = experts.prune(model.threshold if is_due else 0.0, self.optimizer)
        seconds = time.perf_counter() - start
        sample = np.arange(0, len(self.h), max(1, len(self.h) // SAMPLE_ROWS))
        h = _rows_on_device("h", self.h, sample, self.device)
        utilisation = experts.utilisation(h)
        if experts.n_experts > 1 and utilisation.max() > COLLAPSED_SHARE:
            warnings.warn(
                f"the gate has collapsed: expert {utilisation.argmax()} of {experts.n_experts} gets "
                f"{utilisation.max():.0%} of the rows of h "
                f"(utilisation {np.array2string(utilisation, precision=2, threshold=16)}); use a larger balance",
                RuntimeWarning,
                stacklevel=4,
            )
        record = {
            "epoch": self.epoch,
            "n_experts": experts.n_experts,
            "loss": loss,
            "rows": experts.ids.shape[0],
            "removed": removed,
            "smallest_share": float(utilisation.min()),
            "largest_share": float(utilisation.max()),
            "speed-up": experts.speed_up_at(utilisation),
            "seconds": seconds,
        }
        if self.validation is not None:
            with _naming_step(last):
                record["validation"] = evaluate_experts(experts, *self.validation, prefix="validation ")
        return record

    def _steps(self, epoch_in_stage, bar, interrupted):
        """Run the steps of an epoch; returns their mean loss per row."""
        model, experts, losses = self.model, self.experts, []
        options = {name: getattr(model, name) * self.n_labels for name in ("class_lasso", "expert_lasso", "balance")}
        options |= {"noise": model.noise, "seed": model.seed}
        order = shuffled(len(self.h), model.seed, self.epoch)
        for i, rows in enumerate(batches(order, model.batch_size)):
            if interrupted:
                self._stop()
            done = (epoch_in_stage * self.n_steps + i) / (model.epochs * self.n_steps)
            self.optimizer.learning_rate = model.learning_rate * (1 - 0.9 * done)
            with _naming_step(self.epoch * self.n_steps + i):
                h = _rows_on_device("h", self.h, rows, self.device)
                loss = experts.step(h, _targets(self.targets, rows, self.device), self.optimizer, **options)
            losses.append([loss * len(rows), len(rows)])
            bar.step(lambda: _progress_text(experts, losses))
        total, n_rows = np.sum(losses, axis=0)
        return float(total / n_rows)

    # ------------------------------------------------------------ checkpoints

    def state(self):
        """(arrays, description) for a checkpoint, from which a run continues bit for bit."""
        experts, arrays = self.experts, {}
        for name in ("gate", "weights"):
            array = getattr(experts, name)
            moments = self.optimizer.state_of(array).moments
            arrays |= {name: array, f"m/{name}": moments.m, f"v/{name}": moments.v}
        arrays |= {"starts": experts.starts, "ids": experts.ids}
        about = {
            "n_classes": experts.n_classes,
            "steps": experts.steps,
            "epoch": self.epoch,
            "history": self.history,
        }
        return {name: to_numpy(array) for name, array in arrays.items()}, about

    @property
    def checkpoint_nbytes(self):
        """Upper bound of the bytes of a checkpoint's arrays: those before any pruning."""
        experts = self.experts
        return 3 * (experts.gate.nbytes + experts.weights.nbytes) + experts.starts.nbytes + experts.ids.nbytes

    def restore(self, arrays, about):
        """Continue from a result of `state`; KeyError, TypeError or ValueError if it does not fit."""
        width, n_classes = self.experts.width, self.experts.n_classes
        model = self.model
        DESCRIPTION("description", about)
        if about["n_classes"] != n_classes:
            raise ValueError(f"n_classes was {about['n_classes']}, not {n_classes}")
        epoch = check.integer("epoch", about["epoch"], 1, self.n_epochs)
        if len(about["history"]) != epoch:
            raise ValueError(f"history must have {epoch} epochs, got {len(about['history'])}")
        n_experts = model.first_experts << (epoch - 1) // model.epochs
        check.array("gate", arrays["gate"], np.float32, (n_experts, width))
        names = "gate", "starts", "ids", "weights"
        experts = SparseExperts(*(asarray(arrays[name], self.device) for name in names), n_classes)
        experts.steps = check.integer("steps", about["steps"], epoch * self.n_steps, epoch * self.n_steps)
        for name in ("gate", "weights"):
            array = getattr(experts, name)
            check.finite(name, array)
            state = self.optimizer.state_of(array)
            for moment, part in zip(state.moments, "mv", strict=True):
                stored = check.array(f"{part}/{name}", arrays[f"{part}/{name}"], np.float32, array.shape)
                check.finite(f"{part}/{name}", stored)
                if part == "v" and stored.size and stored.min() < 0:
                    raise ValueError(f"v/{name} must not be negative, got {stored.min()}")
                moment[...] = asarray(stored, self.device)
            state.count = experts.steps
        self.experts = experts
        self.epoch = epoch
        self.history = about["history"]


def _progress_text(experts, losses):
    """What the progress display shows next to the step number."""
    total, n_rows = np.sum(losses[-100:], axis=0)
    return {"experts": experts.n_experts, "rows": experts.ids.shape[0], "loss": f"{total / n_rows:.3f}"}


@contextlib.contextmanager
def _naming_step(step):
    """Turn errors about values that are not finite into a `TrainingError` that names the step."""
    try:
        yield
    except (FloatingPointError, ValueError) as error:
        raise TrainingError(f"step {step}: {error}") from error


# ------------------------------------------------------------ data


def _on_host(name, array):
    """`array`, or TypeError if it is not a NumPy array."""
    is_array = device_of(array) is not None  # checked here, because this message also names the reason
    if not is_array or check.same_device(**{name: array}) != "cpu":
        raise TypeError(f"{name} must be a NumPy array (batches are moved to the device), got {type(array).__name__}")
    return array


def _checked_data(prefix, h, targets, width="d", n_classes=None):
    """Checked h and targets; errors call them ``{prefix}h`` and ``{prefix}targets``."""
    h = _on_host(f"{prefix}h", h)
    if h.dtype not in (np.float16, np.float32):
        raise TypeError(f"{prefix}h must be float32 or float16, got {h.dtype}; use h.astype(np.float32)")
    h = check.array(f"{prefix}h", h, h.dtype, ("N", width))
    n_rows = check.integer(f"the number of rows of {prefix}h", h.shape[0], 1)
    if scipy.sparse.issparse(targets):
        if targets.ndim != 2:
            raise ValueError(f"{prefix}targets must be a matrix, got shape {targets.shape}")
        shape = n_rows, targets.shape[1] if n_classes is None else n_classes
        if targets.shape != shape:
            raise ValueError(f"{prefix}targets must have shape {shape} like h, got {targets.shape}")
        return h, as_ones(f"{prefix}targets", targets)
    name = f"{prefix}targets"
    return h, check.integers(name, _on_host(name, targets), (n_rows,), n_classes)


def _n_classes(weights, targets, n_classes):
    """The number of classes; ValueError if the arguments disagree on it."""
    known = {}
    if weights is not None:
        check.array("weights", _on_host("weights", weights), np.float32, ("L", "d"))
        known["weights"] = weights.shape[0]
    if scipy.sparse.issparse(targets):
        known["targets"] = targets.shape[1]
    if n_classes is not None:
        known["n_classes"] = check.integer("n_classes", n_classes, 1)
    if len(set(known.values())) > 1:
        raise ValueError(f"weights, targets and n_classes must agree on the number of classes, got {known}")
    n_classes = next(iter(known.values()), None)
    if not scipy.sparse.issparse(targets):
        n_classes = max(int(targets.max()) + 1, 1) if n_classes is None else n_classes
        check.in_range("targets", targets, n_classes)
    return n_classes


def _rows_on_device(name, h, rows, device):
    """Some rows of h as float32 on the device; ValueError if they are not finite."""
    part = np.ascontiguousarray(h[rows], np.float32)
    finite = np.isfinite(part)
    if not finite.all():
        row = rows[int(np.argmin(finite.all(axis=1)))]
        raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}; fix the data")
    return asarray(part, device)


def _targets(targets, rows, device):
    """The targets of some rows, on the device, as `SparseExperts.step` takes them."""
    part = targets[rows]
    if scipy.sparse.issparse(part):
        return Labels(*(asarray(a, device, np.int32) for a in (part.indptr, part.indices)))
    return asarray(part, device)


def evaluate_experts(experts, h, targets, *, prefix=""):
    """As `DSSoftmax.evaluate`, for any `PackedDSSoftmax`; errors put `prefix` before the names h and targets."""
    h, targets = _checked_data(prefix, h, targets, experts.width, experts.n_classes)
    n_rows, n_classes = len(h), experts.n_classes
    max_k = max(KS)
    multi_label = scipy.sparse.issparse(targets)
    # One key per (expert, class) that exists, ascending, so that a binary search can find it.
    keys = np.repeat(np.arange(experts.n_experts), experts.sizes) * np.int64(n_classes)
    keys += to_numpy(experts.ids)
    hits, load = np.zeros(max_k), np.zeros(experts.n_experts)
    n_held, n_targets = 0, 0
    for rows in batches(np.arange(n_rows), ROWS_PER_BATCH):
        batch, wanted = _rows_on_device(f"{prefix}h", h, rows, experts.device), targets[rows]
        ids, chosen = (to_numpy(a) for a in (experts.top_k(batch, max_k)[1], experts.choose(batch)))
        load += np.bincount(chosen, minlength=experts.n_experts)
        hits += (hits_at_k(ids, wanted, max_k) if multi_label else ids == wanted[:, None]).sum(axis=0)
        classes, counts = (wanted.indices, np.diff(wanted.indptr)) if multi_label else (wanted, 1)
        target_keys = np.repeat(chosen, counts) * np.int64(n_classes) + classes
        n_held += int((keys[np.searchsorted(keys[:-1], target_keys)] == target_keys).sum())
        n_targets += len(target_keys)
    result = {f"top-{k}": float(hits[:k].sum() / (n_rows * (k if multi_label else 1))) for k in KS}
    return result | {"held": n_held / max(n_targets, 1), "speed-up": experts.speed_up_at(load / n_rows)}
