"""DS-Softmax trained: epochs that prune, mitosis that doubles the number of experts."""

import math
import os
import sys
import time
import warnings

import numpy as np
import scipy.sparse
from tqdm import tqdm

from ..core import backend, check, checkpoint
from ..core.formulas import Moments
from ..data.batches import batches, shuffled
from ..ds_softmax import SparseExperts
from ..optimizers import Adam
from .estimator import FREE_TO_CHANGE, Estimator, check_same_run
from .loop import TrainingError, _ctrl_c_later

#: Contexts that are looked at for utilisation and speed-up, spread over all.
SAMPLE = 20_000
#: A gate has collapsed where one expert gets more than this share of the queries.
COLLAPSED = 0.9
#: Queries that are answered at once when a model is evaluated.
AT_ONCE = 4096
KS = 1, 5, 10


class DSSoftmax(Estimator):
    """A sparse mixture of sparse experts, fitted to contexts and their targets; answers top-k at a fraction of the cost.

    Training starts with few experts that hold all classes. Each epoch from `prune_after` on ends by removing the rows that two
    group lassos have made small; after `epochs` of them every expert is cloned, until there are `n_experts`. So memory stays
    near that of a few full layers. See `SparseExperts.step` for what is minimised.

    Parameters
    ----------
    n_experts : int
        At the end: `first_experts` times a power of two.
    first_experts : int
    epochs : int
        Of each stage, that is, for each number of experts.
    prune_after : int
        Epochs of the first stage before anything is pruned. The later stages start from pruned experts and prune at once.
    threshold : float
        Rows with a smaller root mean square are pruned.
    class_lasso, expert_lasso, balance : float
        Weights of the two lassos, and of the squared coefficient of variation of the experts' loads.
    noise : float
        Standard deviation of the noise at the gate, in training.
    batch_size : int
    learning_rate : float
        Of Adam at the start of a stage; it falls linearly to a tenth.
    seed : int
        Of gate, order, noise and mitosis.
    device : 'auto', 'cpu' or 'cuda'
    progress : bool
        A progress bar.

    Attributes
    ----------
    experts_ : SparseExperts
    history_ : list of dict
        One for every epoch: number of experts, loss, rows that are left and were removed, largest and smallest share of the
        queries, speed-up by FLOPs, seconds, and the figures of the validation.
    n_classes_ : int

    Source: arXiv 1901.10668; the defaults are those of the authors' program, but for the learning rate's fall, which we chose.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import DSSoftmax
    >>> random = np.random.default_rng(0)
    >>> centres, targets = random.standard_normal((20, 16)), random.integers(0, 20, 2000).astype(np.int32)
    >>> contexts = (centres[targets] + 0.1 * random.standard_normal((2000, 16))).astype(np.float32)
    >>> model = DSSoftmax(n_experts=4, batch_size=50, epochs=8, prune_after=4, progress=False).fit(contexts, targets)
    >>> model.evaluate(contexts, targets)["top-1"] > 0.98
    True
    >>> probabilities, ids = model.pack().top_k(contexts[:3], k=2)
    >>> ids.shape
    (3, 2)
    """

    kind = "ds-softmax training"
    fit_call = "fit(contexts, targets)"
    result = "experts_"

    def __init__(
        self, n_experts=64, first_experts=2, epochs=3, prune_after=3, threshold=0.03, class_lasso=0.002, expert_lasso=0.002,
        balance=10.0, noise=0.0, batch_size=512, learning_rate=3e-3, seed=0, device="auto", progress=True,
    ):  # fmt: skip
        self.n_experts, self.first_experts, self.epochs, self.prune_after = (
            n_experts,
            first_experts,
            epochs,
            prune_after,
        )
        self.threshold, self.class_lasso, self.expert_lasso, self.balance = (
            threshold,
            class_lasso,
            expert_lasso,
            balance,
        )
        self.noise, self.batch_size, self.learning_rate = noise, batch_size, learning_rate
        self.seed, self.device, self.progress = seed, device, progress

    def _check_params(self):
        check.integer("first_experts", self.first_experts, 1)
        check.integer("n_experts", self.n_experts, self.first_experts)
        ratio = self.n_experts / self.first_experts
        if not math.log2(ratio).is_integer():
            raise ValueError(
                f"n_experts must be first_experts = {self.first_experts} times a power of two, got {self.n_experts}"
            )
        for name in ("epochs", "batch_size"):
            check.integer(name, getattr(self, name), 1)
        check.integer("prune_after", self.prune_after, 0)
        for name in ("threshold", "class_lasso", "expert_lasso", "balance", "noise"):
            check.number(name, getattr(self, name), 0, math.inf)
        check.number("learning_rate", self.learning_rate, 0, math.inf, open_ends=True)
        check.integer("seed", self.seed, 0, 2**63)

    def fit(
        self, contexts, targets, init=None, *, n_classes=None, validation=None, checkpoint_path=None, resume=False,
        after_epoch=None, after_stage=None,
    ):  # fmt: skip
        """Train from the first experts to the last.

        Parameters
        ----------
        contexts : (N, d) float32 or float16 NumPy array
            May be memory-mapped: a batch is read when its turn comes.
        targets : (N,) int32, or SciPy CSR matrix (N, L)
            One class, or any number of labels, for each context.
        init : (L, d) float32 NumPy array, optional
            Rows of a trained output layer, which every expert starts with; else they are random, and small.
        n_classes : int, optional
            L, where neither `init` nor a matrix of targets says it; else one more than the largest target.
        validation : (contexts, targets), optional
            Evaluated after each epoch.
        checkpoint_path : path, optional
            Written after each epoch, and on Ctrl-C by the end of the epoch before; with `resume` the run goes on from it, bit for
            bit.
        after_epoch : callable, optional
            ``after_epoch(record)``, the record as in `history_`.
        after_stage : callable, optional
            ``after_stage(n_experts, packed)`` at the end of each stage, with a `PackedDSSoftmax`.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            Wrong types, shapes or parameters; targets out of range.
        TrainingError
            Contexts that are not finite, or scores that overflow: the message names the step.
        """
        self._check_params()
        self._check_checkpoint_path(checkpoint_path, resume)
        contexts, targets = _checked_data("", contexts, targets)
        n_classes = _n_classes(init, targets, n_classes)
        init = None if init is None else check.array("init", init, np.float32, (n_classes, contexts.shape[1]))
        if validation is not None:
            validation = _checked_data("validation ", *validation)
        if init is not None:
            check.finite("init", init)
        about = self._about([_pair(contexts, targets)])
        run = _Run(self, contexts, targets, init, n_classes, validation)
        if resume and os.path.exists(checkpoint_path):
            run.restore(checkpoint_path, about)
        run.go(checkpoint_path, about, after_epoch, after_stage)
        self.experts_, self.history_, self.n_classes_ = run.experts, run.history, n_classes
        return self

    def pack(self):
        """`PackedDSSoftmax` of the fitted experts."""
        self._check_fitted()
        return self.experts_.pack()

    def evaluate(self, contexts, targets):
        """How good the answers are, and what they cost.

        Returns
        -------
        dict
            'top-1', 'top-5', 'top-10': the share of the targets among the best 1, 5, 10 classes - of several labels P@1, P@5,
            P@10; 'held', the share of the targets that the chosen expert holds; 'speed-up' by FLOPs, the gate counted.
        """
        self._check_fitted()
        return figures(self.experts_, *_checked_data("", contexts, targets))

    def save(self, path):
        """Write the experts as `PackedDSSoftmax.load` reads them."""
        self.pack().save(path)


class _Run:
    """A run of `DSSoftmax.fit`: what it trains, and where it stands."""

    def __init__(self, model, contexts, targets, init, n_classes, validation):
        self.model, self.contexts, self.targets, self.validation = model, contexts, targets, validation
        self.device = backend.resolve_device(model.device)
        self.optimizer, self.history, self.epoch = Adam(model.learning_rate), [], 0
        if init is None:
            width = contexts.shape[1]
            init = np.random.default_rng(model.seed).standard_normal((n_classes, width), np.float32) / math.sqrt(width)
        classes = backend.asarray(init, self.device)
        self.experts = SparseExperts.dense(classes, model.first_experts, model.seed)

    n_stages = property(lambda self: int(math.log2(self.model.n_experts // self.model.first_experts)) + 1)

    def go(self, path, about, after_epoch, after_stage):
        """All epochs that are left; `epoch` counts those of all stages."""
        model = self.model
        n_steps = -(-self.contexts.shape[0] // model.batch_size)
        total = self.n_stages * model.epochs
        bar = tqdm(
            total=total * n_steps, initial=self.epoch * n_steps, unit="step", disable=not model.progress, file=sys.stderr,
            mininterval=0.5,
        )  # fmt: skip
        with bar, _ctrl_c_later(path is not None) as interrupted:
            while self.epoch < total:
                stage, number = divmod(self.epoch, model.epochs)
                if number == 0 and stage > 0:
                    self.experts.split(self.optimizer, seed=model.seed + stage)
                record = self._one_epoch(stage, number, n_steps, bar, interrupted)
                self.history.append(record)
                self.epoch += 1
                if path is not None:
                    self.save(path, about)
                if after_epoch is not None:
                    after_epoch(record)
                if after_stage is not None and number == model.epochs - 1:
                    after_stage(self.experts.n_experts, self.experts.pack())

    def _one_epoch(self, stage, number, n_steps, bar, interrupted):
        model, experts = self.model, self.experts
        start, losses, n_rows = time.perf_counter(), [], self.contexts.shape[0]
        options = {name: getattr(model, name) for name in ("class_lasso", "expert_lasso", "balance", "noise", "seed")}
        order = shuffled(n_rows, model.seed, self.epoch)
        for i, rows in enumerate(batches(order, model.batch_size)):
            done = (number * n_steps + i) / (model.epochs * n_steps)
            self.optimizer.learning_rate = model.learning_rate * (1 - 0.9 * done)
            h, targets = _batch(self.contexts, self.targets, rows, self.device)
            try:
                losses.append([experts.step(h, targets, self.optimizer, **options) * len(rows), len(rows)])
            except (FloatingPointError, ValueError) as error:
                raise TrainingError(f"step {self.epoch * n_steps + i}: {error}") from error
            bar.update()
            if interrupted:
                raise KeyboardInterrupt(f"the checkpoint is that of the end of epoch {self.epoch}")
            if i % 20 == 0:
                total, counted = np.sum(losses[-100:], axis=0)
                shown = {"experts": experts.n_experts, "rows": experts.ids.shape[0], "loss": f"{total / counted:.3f}"}
                bar.set_postfix(shown, refresh=False)
        removed = experts.prune(model.threshold, self.optimizer) if stage > 0 or number >= model.prune_after else 0
        seconds = time.perf_counter() - start
        sample = np.arange(0, n_rows, max(1, n_rows // SAMPLE))
        sample_h, _ = _batch(self.contexts, None, sample, self.device)
        used = experts.utilisation(sample_h)
        if experts.n_experts > 1 and used.max() > COLLAPSED:
            warnings.warn(
                f"the gate has collapsed: expert {used.argmax()} of {experts.n_experts} gets {used.max():.0%} of the queries "
                f"(utilisation {np.array2string(used, precision=2, threshold=16)}); use a larger balance",
                RuntimeWarning,
                stacklevel=4,
            )
        sums, counts = np.array(losses).T
        record = {
            "epoch": self.epoch, "n_experts": experts.n_experts, "loss": float(sums.sum() / counts.sum()),
            "rows": experts.ids.shape[0], "removed": removed, "smallest_share": float(used.min()),
            "largest_share": float(used.max()), "speed-up": experts.speed_up(sample_h), "seconds": seconds,
        }  # fmt: skip
        if self.validation is not None:
            record["validation"] = figures(experts, *self.validation)
        return record

    # ------------------------------------------------------------ checkpoints

    def save(self, path, about):
        """Write where the run stands at the end of an epoch."""
        experts, arrays = self.experts, {}
        for name in ("gate", "rows"):
            array = getattr(experts, name)
            state = self.optimizer.state_of(array)
            arrays |= {name: array, f"m/{name}": state.moments.m, f"v/{name}": state.moments.v}
        arrays |= {"starts": experts.starts, "ids": experts.ids}
        description = {
            "n_classes": experts.n_classes, "steps": experts.steps, "epoch": self.epoch, "history": self.history,
            "count": self.optimizer.state_of(experts.rows).count,
        }  # fmt: skip
        host = {name: backend.to_numpy(array) for name, array in arrays.items()}
        checkpoint.save(path, self.model.kind, host, about | description)

    def restore(self, path, about):
        """Continue where `save` was called; ModelFileError for a file of another run."""
        arrays, description = checkpoint.load(path, self.model.kind)
        try:
            check_same_run(description, about, FREE_TO_CHANGE)
            names = "gate", "starts", "ids", "rows"
            self.experts = SparseExperts(
                *(backend.asarray(arrays[name], self.device) for name in names), description["n_classes"]
            )
            self.experts.steps = description["steps"]
            for name in ("gate", "rows"):
                state = self.optimizer.state_of(getattr(self.experts, name))
                state.moments = Moments(*(backend.asarray(arrays[f"{m}/{name}"], self.device) for m in "mv"))
                state.count = description["count"]
            self.epoch, self.history = description["epoch"], description["history"]
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.ModelFileError(f"{path} can not be resumed: {error}") from error


# ------------------------------------------------------------ data


def _checked_data(of, contexts, targets):
    """Contexts and targets, checked; errors call them ``{of}contexts`` and ``{of}targets``."""
    if not isinstance(contexts, np.ndarray):
        raise TypeError(
            f"{of}contexts must be a NumPy array (batches are moved to the device), got {type(contexts).__name__}"
        )
    dtype = contexts.dtype if contexts.dtype == np.float16 else np.float32
    contexts = check.array(f"{of}contexts", contexts, dtype, ("N", "d"))
    n_rows = contexts.shape[0]
    check.integer(f"the number of {of}contexts", n_rows, 1)
    if scipy.sparse.issparse(targets):
        if targets.shape[0] != n_rows:
            raise ValueError(f"{of}targets must have {n_rows} rows like the contexts, got {targets.shape[0]}")
        return contexts, targets.tocsr()
    return contexts, check.array(f"{of}targets", targets, np.int32, (n_rows,))


def _n_classes(init, targets, n_classes):
    """How many classes there are."""
    known = {}
    if init is not None:
        known["init"] = len(init)
    if scipy.sparse.issparse(targets):
        known["targets"] = targets.shape[1]
    if n_classes is not None:
        known["n_classes"] = check.integer("n_classes", n_classes, 1)
    if len(set(known.values())) > 1:
        raise ValueError(f"init, targets and n_classes must agree on the number of classes, got {known}")
    n = next(iter(known.values()), None)
    if not scipy.sparse.issparse(targets):
        n = int(targets.max()) + 1 if n is None else n
        check.below("targets", targets, n)
    return n


def _pair(contexts, targets):
    """As `fingerprint` takes them."""
    return (contexts, targets.indices if scipy.sparse.issparse(targets) else targets)


def _batch(contexts, targets, rows, device):
    """Contexts (float32) and targets of some rows, on the device."""
    h = backend.asarray(contexts[rows], device, np.float32)
    if targets is None:
        return h, None
    if not scipy.sparse.issparse(targets):
        return h, backend.asarray(targets[rows], device)
    some = targets[rows]
    return h, some


def figures(experts, contexts, targets):
    """See `DSSoftmax.evaluate`."""
    n_rows, most = contexts.shape[0], max(KS)
    hits, held, n_targets = np.zeros(most), 0, 0
    usage, host_starts, host_ids = np.zeros(experts.n_experts), *map(backend.to_numpy, (experts.starts, experts.ids))
    for rows in batches(np.arange(n_rows), AT_ONCE):
        h, _ = _batch(contexts, None, rows, experts.device)
        ids, chosen = (backend.to_numpy(a) for a in (experts.top_k(h, most)[1], experts.choose(h)))
        usage += np.bincount(chosen, minlength=experts.n_experts)
        some = targets[rows]
        if not scipy.sparse.issparse(some):
            some = scipy.sparse.csr_matrix(
                (np.ones(len(rows)), some, np.arange(len(rows) + 1)), (len(rows), experts.n_classes)
            )
        of_row = np.repeat(np.arange(len(rows)), np.diff(some.indptr))
        found = np.asarray(some[np.arange(len(rows))[:, None], np.maximum(ids, 0)].todense()).astype(bool) & (ids >= 0)
        hits += found.sum(0)
        n_targets += len(of_row)
        keys = chosen[of_row].astype(np.int64) * experts.n_classes + some.indices
        all_keys = (
            np.repeat(np.arange(experts.n_experts), np.diff(host_starts)) * np.int64(experts.n_classes) + host_ids
        )
        place = np.minimum(np.searchsorted(all_keys, keys), len(all_keys) - 1)
        held += int((all_keys[place] == keys).sum())
    several, found = scipy.sparse.issparse(targets), hits.cumsum()
    result = {f"top-{k}": float(found[k - 1] / (n_rows * (k if several else 1))) for k in KS}
    cost = experts.n_experts + float(usage @ experts.sizes) / n_rows
    return result | {"held": held / max(n_targets, 1), "speed-up": experts.n_classes / cost}
