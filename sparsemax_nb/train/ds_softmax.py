"""DS-Softmax trained: epochs that prune, mitosis that doubles the number of experts."""

import contextlib
import math
import time
import warnings

import numpy as np
import scipy.sparse

from ..core import check, description
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

#: Contexts that are looked at for utilisation and speed-up, spread over all.
SAMPLE = 20_000
#: A gate has collapsed where one expert gets more than this share of the queries.
COLLAPSED = 0.9
#: Queries that are answered at once when a model is evaluated.
AT_ONCE = 4096
#: Of the figures, the last is the largest.
KS = 1, 5, 10
FIGURE, COUNT = description.figure, description.integer(0)
#: What a checkpoint says of a run beside its arrays.
DESCRIPTION = description.record(
    n_classes=COUNT,
    steps=COUNT,
    epoch=COUNT,
    history=description.list_of(
        description.record(
            epoch=COUNT,
            n_experts=COUNT,
            loss=FIGURE,
            rows=COUNT,
            removed=COUNT,
            smallest_share=FIGURE,
            largest_share=FIGURE,
            seconds=FIGURE,
            **{"speed-up": FIGURE},
        )
    ),
)


#: More are a mistake: each expert takes a row of the gate, and a stage of training twice as many as the one before.
MOST_EXPERTS = 1 << 20


class DSSoftmax(Estimator):
    """A sparse mixture of sparse experts, fitted to the hidden activations h of a model and their targets; answers top-k at a fraction of the cost.

    Training starts with few experts that hold all classes. An epoch ends by removing the rows that two group lassos
    have made small; after `epochs` of them every expert is cloned, until there are `n_experts`. So memory stays near
    that of a few full layers. See `SparseExperts.step` for what is minimised.

    Parameters
    ----------
    n_experts : int
        At the end: `first_experts` times a power of two.
    first_experts : int
    epochs : int
        Of each stage, that is, for each number of experts.
    prune_after : int
        Epochs of the first stage before anything is pruned; its last epoch prunes in any case. The later stages start
        from pruned experts and prune at once.
    threshold : float
        Rows with a smaller root mean square are pruned.
    class_lasso, expert_lasso, balance : float
        Weights of the two lassos, and of the squared coefficient of variation of the experts' loads, beside the loss of
        one target: where rows have several labels, they are multiplied by the mean number of labels.
    noise : float
        Standard deviation of the noise at the gate, in training.
    batch_size : int
    learning_rate : float
        Of Adam at the start of a stage; it falls linearly to a tenth.
    seed : int
        Of gate, order, noise and mitosis.
    device : 'auto', 'cpu' or 'cuda'
    progress : bool
        Show progress on standard error: a bar in a terminal, else a line for every tenth of the steps.

    Attributes
    ----------
    experts_ : SparseExperts
    history_ : list of dict
        One for every epoch: number of experts, loss, rows that are left and were removed, largest and smallest share of
        the queries, speed-up by FLOPs, seconds, and the figures of the validation.
    n_classes_ : int

    Notes
    -----
    Source: arXiv 1901.10668. The defaults are those that served the 33,278 words of WikiText-2 (bench.ds_softmax):
    threshold, balance and learning rate are the authors'; the lassos are smaller than theirs (0.002), the batches
    larger, the learning rate falls, which we chose.

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
    result = "experts_"

    def __init__(
        self,
        n_experts=64,
        first_experts=2,
        epochs=2,
        prune_after=0,
        threshold=0.03,
        class_lasso=3e-4,
        expert_lasso=3e-4,
        balance=10.0,
        noise=0.0,
        batch_size=1024,
        learning_rate=3e-3,
        seed=0,
        device="auto",
        progress=True,
    ):
        self.set_params(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})

    def _check_params(self):
        first = check.integer("first_experts", self.first_experts, 1)
        check.flag("progress", self.progress)
        n_experts, below = check.integer("n_experts", self.n_experts, first), first
        if n_experts > MOST_EXPERTS:
            raise ValueError(f"n_experts must be at most {MOST_EXPERTS}, got {n_experts}")
        while 2 * below <= n_experts:
            below *= 2
        if below != n_experts:
            raise ValueError(
                f"n_experts must be first_experts = {first} times a power of two, got {n_experts}; use {below} or {2 * below}"
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
        h,
        targets,
        weights=None,
        *,
        n_classes=None,
        validation=None,
        checkpoint_path=None,
        resume=False,
        after_epoch=None,
        after_stage=None,
    ):
        """Train from the first experts to the last.

        Parameters
        ----------
        h : (N, d) float32 or float16 NumPy array
            May be memory-mapped: a batch is read when its turn comes.
        targets : (N,) int32 or other integers, or SciPy CSR matrix (N, L)
            One class, or any number of labels, for each context.
        weights : (L, d) float32 NumPy array, optional
            Rows of a trained output layer, which every expert starts with; else they are random, and small.
        n_classes : int, optional
            L, where neither `weights` nor a matrix of targets says it; else one more than the largest target.
        validation : (h, targets), optional
            Evaluated after each epoch.
        checkpoint_path : path, optional
            A checkpoint is written there after each epoch. A file that is there already is an error, but with `resume`.
        resume : bool
            Continue from `checkpoint_path` where there is one, bit for bit as if the run had not been interrupted. Data
            and parameters must be the same, but for device and progress.
        after_epoch : callable, optional
            ``after_epoch(record)``, the record as in `history_`.
        after_stage : callable, optional
            ``after_stage(n_experts, packed)`` at the end of each stage, with a `PackedDSSoftmax`. It and `after_epoch`
            are called before the checkpoint is written: where one of them is interrupted, a resumed run calls it again.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            Wrong types, shapes or parameters; targets out of range; `ModelFileError` for a checkpoint of other data,
            parameters or version, or a damaged one.
        TrainingError
            Contexts that are not finite, or scores that overflow: the message names the step. The last checkpoint
            stays.
        KeyboardInterrupt
            Ctrl-C, after the step in hand (at the end of an epoch, after its checkpoint). The last checkpoint stays.
        """
        self._check_params()
        device = resolve_device(self.device)
        h, targets = _checked_data("", h, targets)
        n_classes = _n_classes(weights, targets, n_classes)
        if weights is not None:
            weights = check.array("weights", _on_the_host("weights", weights), np.float32, (n_classes, h.shape[1]))
            check.finite("weights", weights)
        if validation is not None:
            pair = check.pair("validation", validation, "(h, targets)")
            validation = _checked_data("validation ", *pair, h.shape[1], n_classes)
        self._check_checkpoint_path(checkpoint_path, resume)
        run = _Run(self, h, targets, weights, n_classes, validation, device)
        parts = [(h, targets)] if weights is None else [(h, targets), (weights, np.zeros(0))]
        run.go(self._checkpoints(run, checkpoint_path, resume, parts), after_epoch, after_stage)
        self.experts_, self.history_, self.n_classes_ = run.experts, run.history, n_classes
        return self

    def pack(self):
        """The fitted experts as they answer.

        Returns
        -------
        packed : PackedDSSoftmax
            Of copies.

        Raises
        ------
        ValueError
            Not fitted yet.
        """
        self._check_fitted()
        return self.experts_.pack()

    def evaluate(self, h, targets):
        """How good the answers are, and what they cost.

        Parameters
        ----------
        h : (N, d) float32 or float16
            NumPy; may be memory-mapped.
        targets : (N,) int32 or other integers, or SciPy CSR matrix (N, L)
            As for `fit`.

        Returns
        -------
        figures : dict
            'top-1', 'top-5', 'top-10': the share of the targets among the best 1, 5, 10 classes - of several labels
            P@1, P@5, P@10; 'held', the share of the targets that the chosen expert holds; 'speed-up' by FLOPs, the gate
            counted.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; wrong dtype or shape; targets out of range; h that is not finite.
        """
        self._check_fitted()
        return figures(self.experts_, h, targets)

    def save(self, path):
        """Write the experts as `PackedDSSoftmax.load` reads them.

        Parameters
        ----------
        path : str or path
            The file appears, or is replaced, once it is complete.

        Raises
        ------
        ValueError
            Not fitted yet.

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
    """A run of `DSSoftmax.fit`: what it trains, and where it stands."""

    def __init__(self, model, h, targets, weights, n_classes, validation, device):
        self.model, self.h, self.targets, self.validation = model, h, targets, validation
        self.device, self.optimizer, self.history, self.epoch = device, Adam(model.learning_rate), [], 0
        self.n_labels = max(targets.nnz / len(h), 1.0) if scipy.sparse.issparse(targets) else 1.0  # of a context
        self.n_steps = -(-len(h) // model.batch_size)  # of an epoch
        self.n_epochs = model.epochs * int(model.n_experts // model.first_experts).bit_length()  # of all stages
        if weights is None:
            width = h.shape[1]
            weights = np.random.default_rng(model.seed).standard_normal((n_classes, width), np.float32)
            weights /= np.float32(math.sqrt(max(width, 1)))
        self.experts = SparseExperts.dense(asarray(weights, device), model.first_experts, model.seed)

    def go(self, save, after_epoch, after_stage):
        """All epochs that are left."""
        model, tell = self.model, "the step is finished; the checkpoint of the last whole epoch stays"
        bar = Progress(self.n_epochs * self.n_steps, self.epoch * self.n_steps, model.progress)
        with bar, deferred_interrupt(save is not None, tell) as interrupted:
            while self.epoch < self.n_epochs:
                stage, number = divmod(self.epoch, model.epochs)
                if number == 0 and stage > 0:
                    with _named(self.epoch * self.n_steps - 1):
                        self.experts.split(self.optimizer, seed=model.seed + stage)
                record = self._one_epoch(stage, number, bar, interrupted)
                self.history.append(record)
                self.epoch += 1
                if after_epoch is not None:
                    after_epoch(record)
                if after_stage is not None and number == model.epochs - 1:
                    after_stage(self.experts.n_experts, self.experts.pack())
                if save is not None:
                    save()
                if interrupted:
                    self._stop()

    def _stop(self):
        """KeyboardInterrupt, with a message where there is a checkpoint."""
        raise KeyboardInterrupt(*[f"the checkpoint is that of the end of epoch {self.epoch}"] if self.epoch else [])

    def _one_epoch(self, stage, number, bar, interrupted):
        """Steps, pruning and validation; returns the epoch's record."""
        model, experts, start = self.model, self.experts, time.perf_counter()
        loss = self._steps(number, bar, interrupted)
        last = (self.epoch + 1) * self.n_steps - 1
        with _named(last):
            for name in ("gate", "weights"):  # numbers that are not are not written over a checkpoint that is whole
                check.finite(name, getattr(experts, name))
            is_due = stage > 0 or number >= model.prune_after or number == model.epochs - 1
            # at 0 nothing goes, but what depends on the rows is computed anew: as where a run is resumed
            removed = experts.prune(model.threshold if is_due else 0.0, self.optimizer)
        seconds = time.perf_counter() - start
        sample = np.arange(0, len(self.h), max(1, len(self.h) // SAMPLE))
        h = _rows_on_device("h", self.h, sample, self.device)
        used = experts.utilisation(h)
        if experts.n_experts > 1 and used.max() > COLLAPSED:
            warnings.warn(
                f"the gate has collapsed: expert {used.argmax()} of {experts.n_experts} gets {used.max():.0%} of the queries "
                f"(utilisation {np.array2string(used, precision=2, threshold=16)}); use a larger balance",
                RuntimeWarning,
                stacklevel=4,
            )
        record = {
            "epoch": self.epoch,
            "n_experts": experts.n_experts,
            "loss": loss,
            "rows": experts.ids.shape[0],
            "removed": removed,
            "smallest_share": float(used.min()),
            "largest_share": float(used.max()),
            "speed-up": experts.speed_up_at(used),
            "seconds": seconds,
        }
        if self.validation is not None:
            with _named(last):
                record["validation"] = figures(experts, *self.validation, of="validation ")
        return record

    def _steps(self, number, bar, interrupted):
        """The steps of an epoch, number `number` of its stage; returns their mean loss a context."""
        model, experts, losses = self.model, self.experts, []
        options = {name: getattr(model, name) * self.n_labels for name in ("class_lasso", "expert_lasso", "balance")}
        options |= {"noise": model.noise, "seed": model.seed}
        order = shuffled(len(self.h), model.seed, self.epoch)
        for i, rows in enumerate(batches(order, model.batch_size)):
            if interrupted:
                self._stop()
            done = (number * self.n_steps + i) / (model.epochs * self.n_steps)
            self.optimizer.learning_rate = model.learning_rate * (1 - 0.9 * done)
            with _named(self.epoch * self.n_steps + i):
                h = _rows_on_device("h", self.h, rows, self.device)
                loss = experts.step(h, _targets(self.targets, rows, self.device), self.optimizer, **options)
            losses.append([loss * len(rows), len(rows)])
            bar.step(lambda: _progress_text(experts, losses))
        total, counted = np.sum(losses, axis=0)
        return float(total / counted)

    # ------------------------------------------------------------ checkpoints

    def state(self):
        """(arrays, description) for a checkpoint: the run continues from it bit for bit."""
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
        """Bytes of the arrays of a checkpoint before anything is pruned."""
        experts = self.experts
        return 3 * (experts.gate.nbytes + experts.weights.nbytes) + experts.starts.nbytes + experts.ids.nbytes

    def restore(self, arrays, about):
        """Continue where `state` was taken; KeyError, TypeError or ValueError for a state that does not fit."""
        width, n_classes, model = self.experts.width, self.experts.n_classes, self.model
        DESCRIPTION("description", about)
        if about["n_classes"] != n_classes:
            raise ValueError(f"n_classes was {about['n_classes']}, not {n_classes}")
        epoch = check.integer("epoch", about["epoch"], 1, self.n_epochs)
        if len(about["history"]) != epoch:
            raise ValueError(f"history must be that of {epoch} epochs, got {len(about['history'])}")
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
        self.experts, self.epoch, self.history = experts, epoch, about["history"]


def _progress_text(experts, losses):
    """What is shown of the progress, beside the number of the step."""
    total, counted = np.sum(losses[-100:], axis=0)
    return {"experts": experts.n_experts, "rows": experts.ids.shape[0], "loss": f"{total / counted:.3f}"}


@contextlib.contextmanager
def _named(step):
    """Numbers inside that are not finite become a `TrainingError` that names the step."""
    try:
        yield
    except (FloatingPointError, ValueError) as error:
        raise TrainingError(f"step {step}: {error}") from error


# ------------------------------------------------------------ data


def _on_the_host(name, array):
    """`array`, or TypeError where it is not NumPy's."""
    is_array = device_of(array) is not None  # other words than those of `check` for what is none, or elsewhere
    if not is_array or check.same_device(**{name: array}) != "cpu":
        raise TypeError(f"{name} must be a NumPy array (batches are moved to the device), got {type(array).__name__}")
    return array


def _checked_data(of, h, targets, width="d", n_classes=None):
    """Contexts and targets, checked; errors call them ``{of}h`` and ``{of}targets``."""
    h = _on_the_host(f"{of}h", h)
    if h.dtype not in (np.float16, np.float32):
        raise TypeError(f"{of}h must be float32 or float16, got {h.dtype}; use h.astype(np.float32)")
    h = check.array(f"{of}h", h, h.dtype, ("N", width))
    n_rows = check.integer(f"the number of rows of {of}h", h.shape[0], 1)
    if scipy.sparse.issparse(targets):
        if targets.ndim != 2:
            raise ValueError(f"{of}targets must be a matrix, got shape {targets.shape}")
        shape = n_rows, targets.shape[1] if n_classes is None else n_classes
        if targets.shape != shape:
            raise ValueError(f"{of}targets must have shape {shape} like h, got {targets.shape}")
        return h, as_ones(f"{of}targets", targets)
    targets = check.integers(f"{of}targets", _on_the_host(f"{of}targets", targets), (n_rows,), n_classes)
    return h, targets


def _n_classes(weights, targets, n_classes):
    """How many classes there are: what all that says it must agree on."""
    known = {}
    if weights is not None:
        check.array("weights", _on_the_host("weights", weights), np.float32, ("L", "d"))
        known["weights"] = weights.shape[0]
    if scipy.sparse.issparse(targets):
        known["targets"] = targets.shape[1]
    if n_classes is not None:
        known["n_classes"] = check.integer("n_classes", n_classes, 1)
    if len(set(known.values())) > 1:
        raise ValueError(f"init, targets and n_classes must agree on the number of classes, got {known}")
    n_classes = next(iter(known.values()), None)
    if not scipy.sparse.issparse(targets):
        n_classes = max(int(targets.max()) + 1, 1) if n_classes is None else n_classes
        check.below("targets", targets, n_classes)
    return n_classes


def _rows_on_device(name, h, rows, device):
    """Some rows of h, float32, on the device; ValueError where they are not finite."""
    some = np.ascontiguousarray(h[rows], np.float32)
    finite = np.isfinite(some)
    if not finite.all():
        row = rows[int(np.argmin(finite.all(axis=1)))]
        raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}; fix the data")
    return asarray(some, device)


def _targets(targets, rows, device):
    """The targets of some rows as `SparseExperts.step` takes them, on the device."""
    some = targets[rows]
    if scipy.sparse.issparse(some):
        return Labels(*(asarray(a, device, np.int32) for a in (some.indptr, some.indices)))
    return asarray(some, device)


def figures(experts, h, targets, *, of=""):
    """What `DSSoftmax.evaluate` says, of any `PackedDSSoftmax`; errors call the data ``{of}h`` and ``{of}targets``."""
    h, targets = _checked_data(of, h, targets, experts.width, experts.n_classes)
    n_rows, n_classes, most, several = len(h), experts.n_classes, max(KS), scipy.sparse.issparse(targets)
    # which expert holds which class: numbers that ascend, to be searched for
    holds = np.repeat(np.arange(experts.n_experts), experts.sizes) * np.int64(n_classes)
    holds += to_numpy(experts.ids)
    found, used, held, n_targets = np.zeros(most), np.zeros(experts.n_experts), 0, 0
    for rows in batches(np.arange(n_rows), AT_ONCE):
        batch, some = _rows_on_device(f"{of}h", h, rows, experts.device), targets[rows]
        ids, chosen = (to_numpy(a) for a in (experts.top_k(batch, most)[1], experts.choose(batch)))
        used += np.bincount(chosen, minlength=experts.n_experts)
        found += (hits_at_k(ids, some, most) if several else ids == some[:, None]).sum(axis=0)
        classes, counts = (some.indices, np.diff(some.indptr)) if several else (some, 1)
        wanted = np.repeat(chosen, counts) * np.int64(n_classes) + classes
        held += int((holds[np.searchsorted(holds[:-1], wanted)] == wanted).sum())
        n_targets += len(wanted)
    result = {f"top-{k}": float(found[:k].sum() / (n_rows * (k if several else 1))) for k in KS}
    return result | {"held": held / max(n_targets, 1), "speed-up": experts.speed_up_at(used / n_rows)}
