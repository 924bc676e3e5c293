"""The training loop: schedule, rewiring, validation, checkpoints, and errors for values that are not finite."""

import contextlib
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

import numpy as np

from ..core import check, checkpoint, description
from ..core.device import asarray, device_of, to_numpy
from ..data.batches import shuffled
from .gradients import GradientError
from .progress import Progress

#: How the learning rate falls, see `LanguageModel`.
DECAYS = "linear", "plateau"
#: Steps between two records of the gradients' norms. The first record is at step 1: at step 0 the output weights are
#: zero, and so are the gradients of the layers below.
NORMS_EVERY = 50
#: Clock for the times and the time budget of a run; networks time their output layer themselves. Tests replace it.
clock = time.perf_counter


COUNT = description.integer(0)
SECONDS = description.number(0)
METRIC = description.any_number
#: Description of a run in its checkpoint. `Training.restore` also checks that its parts agree with each other.
DESCRIPTION = description.record(
    steps=COUNT,
    counts=description.dict_of(COUNT),
    history=description.record(
        epochs=description.list_of(
            description.record(
                epoch=COUNT,
                steps=COUNT,
                seconds=SECONDS,
                loss=METRIC,
                loss_std=METRIC,
                learning_rate=METRIC,
                gradient_norms=description.dict_of(METRIC),
            )
        ),
        rewirings=description.list_of(description.record(step=COUNT, share=METRIC)),
        index_updates=description.list_of(
            description.record(step=COUNT, share=description.optional(METRIC), seconds=SECONDS)
        ),
        steps=COUNT,
        seconds=SECONDS,
        output_seconds=SECONDS,
        first_step_seconds=SECONDS,
        best_epoch=description.optional(COUNT),
        stopped=description.text,
    ),
    position=description.record(
        epoch=COUNT,
        row=COUNT,
        learning_rate=description.number(0),
        best=description.optional(description.number()),
        bad_epochs=COUNT,
        losses=description.list_of(description.list_of(description.number(), 2)),
        norms=description.list_of(description.dict_of(METRIC)),
    ),
)


class TrainingError(FloatingPointError):
    """NaN or infinity in the loss, a parameter or an input; the message names the step and, if known, the array.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.train import DSSoftmax, TrainingError
    >>> h, targets = np.full((2, 4), np.inf, np.float32), np.zeros(2, np.int32)
    >>> try:
    ...     DSSoftmax(n_experts=2, device="cpu", progress=False).fit(h, targets)
    ... except TrainingError as error:
    ...     print(error)
    step 0: h must be finite, got NaN or infinity in row 0; fix the data
    """


@dataclass
class Schedule:
    """Settings of a training run; see `Classifier` and `LanguageModel` for their meaning."""

    loss: str
    batch_size: int
    epochs: int
    seed: int
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warm_up: int = 0
    patience: int = 1
    stop_after: int = 3
    rewire_fraction: float = 0.0
    rewire_every: int = 1000
    rewire_until: float = 1.0
    budget_seconds: float | None = None
    index_every: int | None = 0  # 0: the sampler needs no updates; None: once per epoch
    decay: str = "plateau"  # of the learning rate, one of DECAYS


@dataclass
class History:
    """Record of a training run.

    Attributes
    ----------
    epochs : list of dict
        One per epoch: mean loss per row and its standard deviation between batches, learning rate, mean norms of the
        gradients by layer, steps and seconds since the start, and the validation metrics. For sequences, the loss
        averages the batches' mean loss per target, weighted by their number of lines.
    rewirings : list of dict
        Step, and share of the connections that were replaced.
    index_updates : list of dict
        Step at which the sampler was updated to the current weights, share of the labels whose cell changed, and the
        seconds it took.
    steps : int
    seconds : float
        Training time, with the initial weights, without validation and without the first step.
    output_seconds : float
        The part of `seconds` spent in the output layer.
    first_step_seconds : float
        Time of the first step, which includes compilation. After a resume: the sum over the first steps of all runs.
    best_epoch : int or None
        The epoch whose weights were kept, counted from 0; None without validation.
    stopped : str
        Why the run ended: 'epochs', 'budget' or 'plateau'; '' if it was interrupted.
    """

    epochs: list[dict] = field(default_factory=list)
    rewirings: list[dict] = field(default_factory=list)
    index_updates: list[dict] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    output_seconds: float = 0.0
    first_step_seconds: float = 0.0
    best_epoch: int | None = None
    stopped: str = ""

    @property
    def losses(self) -> list[float]:
        """Mean loss of each epoch."""
        return [epoch["loss"] for epoch in self.epochs]


@dataclass
class _Position:
    """The state of a run between two steps, apart from its arrays: what a resumed run needs."""

    epoch: int = 0
    row: int = 0  # index into the order of this epoch
    learning_rate: float = 0.0
    best: float | None = None  # monitored metric of the best epoch
    bad_epochs: int = 0  # epochs since the best one
    losses: list = field(default_factory=list)  # [loss, rows] of each batch of this epoch
    norms: list = field(default_factory=list)  # {layer: norm} of this epoch


def peak_memory():
    """Peak resident memory of the process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def deferred_interrupt(enabled, outcome="the step is finished and a checkpoint written"):
    """Defer Ctrl-C so that it never cuts a step in two; a second Ctrl-C interrupts at once.

    Yields a list that is empty until Ctrl-C is pressed. If not `enabled`, or outside the main thread, Ctrl-C works as
    usual. `outcome` completes the message that the first Ctrl-C prints.
    """
    pressed = []
    if not (enabled and threading.current_thread() is threading.main_thread()):
        yield pressed
        return

    def handle(*_):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        print(f"\ninterrupted: {outcome} (press Ctrl-C again to stop at once)", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


class Run:
    """A training run of any model: steps, epochs, checkpoints, time budget and Ctrl-C.

    A subclass sets `history`, `_position` (with an attribute `epoch`), `_epochs`, `_total_steps` and `_budget_seconds`,
    and implements `_step`, `_is_epoch_done`, `_finish_epoch` and `_progress_text`.
    """

    #: Seconds of the last step that were spent in the output layer.
    _output_seconds = 0.0

    def run(self, *, save=None, save_seconds=300.0, progress=True, after_epoch=None):
        """Train to the end; returns the `History`.

        `save()` writes a checkpoint. It is called after each epoch, every `save_seconds`, and on Ctrl-C, which then
        raises KeyboardInterrupt. `after_epoch(epoch, history)` is called after each epoch; its time does not count.
        """
        has_budget = self._budget_seconds is not None
        if has_budget:  # it may end the run long before the last epoch
            bar = Progress(self._budget_seconds, self.history.seconds, progress, unit="s")
        else:
            bar = Progress(self._total_steps, self.history.steps, progress)
        self.history.stopped = self._stop_reason()
        with bar, deferred_interrupt(save is not None) as interrupted:
            is_first, last_save = True, clock()
            while not self.history.stopped:
                start, before = clock(), self.history.seconds
                self._step()
                seconds = clock() - start
                if is_first:
                    self.history.first_step_seconds += seconds
                else:
                    self.history.seconds += seconds
                    self.history.output_seconds += self._output_seconds
                is_first = False
                bar.step(self._progress_text, self.history.seconds - before if has_budget else 1)
                epoch_done, over_budget = self._is_epoch_done(), self._over_budget()
                if over_budget and not epoch_done and save is not None:
                    self._check_finite()
                    save()  # inside the epoch, so that a run with a larger budget can continue from here
                if epoch_done or over_budget:
                    self._finish_epoch()
                    if after_epoch is not None:
                        after_epoch(self._position.epoch - 1, self.history)
                self.history.stopped = self._stop_reason()
                due = epoch_done or interrupted or clock() - last_save >= save_seconds
                if self.history.stopped or (save is not None and due):
                    self._check_finite()
                if save is not None and due and (epoch_done or not over_budget):
                    save()
                    last_save = clock()
                if interrupted:
                    raise KeyboardInterrupt("a checkpoint was written")
        return self.history

    def _check_finite(self):
        """TrainingError for values that are not finite: they must not overwrite a good checkpoint."""

    def _over_budget(self):
        return self._budget_seconds is not None and self.history.seconds >= self._budget_seconds

    def _stop_reason(self):
        """Why the run is over, or ''."""
        if self._position.epoch >= self._epochs:
            return "epochs"
        return "budget" if self._over_budget() else ""


class Training(Run):
    """A training run of a network.

    Parameters
    ----------
    network : Network or LanguageNetwork
    optimizer : Adam
    schedule : Schedule
    n_rows : int
        Number of training points.
    batch : callable
        ``batch(row_ids) -> (x, labels)``, the arguments of `network.step`.
    order : callable or None
        ``order(epoch) -> row_ids``, the order in which an epoch visits the rows; None shuffles them.
    validate : callable or None
        ``validate() -> dict`` of metrics, called after each epoch.
    monitor : str
        The validation metric that decides about learning rate, early stop and best model; larger is better.
    prepare : callable or None
        ``prepare()`` sets the initial weights of the network; called before the first step, but not after a resume.
    """

    def __init__(
        self, network, optimizer, schedule, n_rows, batch, order=None, validate=None, monitor="P@3", prepare=None
    ):
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.n_rows = n_rows
        self._order_of = order or (lambda epoch: shuffled(n_rows, schedule.seed, epoch))
        self._batch = batch
        self._validate = validate
        self._prepare = prepare
        self._monitor = monitor
        self.history = History()
        self._position = _Position(learning_rate=schedule.learning_rate)
        self._best = {}  # parameters of the best epoch, NumPy
        self._order = None  # order of the rows in this epoch
        self._steps_per_epoch = -(-n_rows // schedule.batch_size)
        self._epochs = schedule.epochs
        self._budget_seconds = schedule.budget_seconds
        self._total_steps = schedule.epochs * self._steps_per_epoch

    # ------------------------------------------------------------ checkpoints

    def state(self):
        """(arrays, description) for a checkpoint, from which a run continues bit for bit."""
        arrays, counts = {}, {}
        for name, array in self.network.parameters.items():
            arrays[f"parameters/{name}"] = array
            if array.dtype.kind != "i":
                state = self.optimizer.state_of(array)
                arrays[f"m/{name}"], arrays[f"v/{name}"] = state.moments
                counts[name] = state.count
        arrays |= {f"best/{name}": array for name, array in self._best.items()}
        arrays |= self.network.sampler_state
        about = {
            "schedule": asdict(self.schedule),
            "history": asdict(self.history),
            "position": asdict(self._position),
            "counts": counts,
            "steps": self.network.steps,
            "n_rows": self.n_rows,
        }
        return {name: to_numpy(array) for name, array in arrays.items()}, about

    @property
    def checkpoint_nbytes(self):
        """Bytes of the arrays of a checkpoint, without the state of the sampler."""
        total = 0
        for array in self.network.parameters.values():
            moments = 2 * 4 * array.size if array.dtype.kind != "i" else 0
            total += moments + array.nbytes * (1 if self._validate is None else 2)
        return total

    def restore(self, arrays, about):
        """Continue from a result of `state`; KeyError, TypeError or ValueError if it does not fit.

        After an error, network and optimizer are in an undefined state.
        """
        DESCRIPTION("description", about)
        history, position = History(**about["history"]), _Position(**about["position"])
        self._check_position(history, position, about)
        if position.best is not None:  # written into the network to be checked, then overwritten by `parameters/`
            self.network.set_parameters(arrays, "best/")
            self._best = {name: arrays[f"best/{name}"] for name in self.network.parameters}
        self.network.set_parameters(arrays, "parameters/")
        counts = about["counts"]
        trainable = {n: a for n, a in self.network.parameters.items() if a.dtype.kind != "i"}
        if counts.keys() != trainable.keys():
            raise ValueError(f"counts must have the keys {sorted(trainable)}, got {sorted(counts)}")
        for name, array in trainable.items():
            state = self.optimizer.state_of(array)
            for moment, part in zip(state.moments, ("m", "v"), strict=True):
                stored = check.array(f"{part}/{name}", arrays[f"{part}/{name}"], moment.dtype, moment.shape)
                check.finite(f"{part}/{name}", stored)
                if part == "v" and stored.size and stored.min() < 0:
                    raise ValueError(f"v/{name} must not be negative, got {stored.min()}")
                moment[...] = asarray(stored, device_of(moment))
            state.count = check.integer(f"counts.{name}", counts[name], 0, history.steps)
        self.network.restore_sampler(arrays)
        self.network.steps = history.steps
        self.history, self._position = history, position

    def _check_position(self, history, position, about):
        """ValueError where the parts of a checkpoint's description contradict each other or this run."""
        batch_size = self.schedule.batch_size
        check.integer("position.row", position.row, 0, self.n_rows - 1)
        in_epoch, rest = divmod(position.row, batch_size)
        steps = position.epoch * self._steps_per_epoch + in_epoch
        if rest or not steps == history.steps == about["steps"] or len(position.losses) != in_epoch:
            raise ValueError(
                f"steps, losses and position must agree, got {about['steps']}, {history.steps} and "
                f"{len(position.losses)} steps, row {position.row} of epoch {position.epoch} in batches of {batch_size}"
            )
        if any(rows <= 0 for _, rows in position.losses):
            raise ValueError("position.losses must have at least one row per batch")
        keys = [epoch.get("validation", {}).keys() for epoch in history.epochs]
        layers = [norms.keys() for norms in position.norms]
        required = {self._monitor} if self._validate is not None else set()
        if len(keys) != position.epoch or any(names != keys[0] or not required <= names for names in keys):
            raise ValueError(f"history.epochs must be {position.epoch} epochs with the same validation metrics")
        if any(names != layers[0] for names in layers):
            raise ValueError("position.norms must name the same layers in every step")
        for number, epoch in enumerate(history.epochs):
            description.dict_of(METRIC)(f"history.epochs[{number}].validation", epoch.get("validation", {}))
        is_validated = self._validate is not None and position.epoch > 0
        if (position.best is not None) != is_validated or (history.best_epoch is not None) != is_validated:
            raise ValueError(
                "position.best and history.best_epoch must be numbers after an epoch with validation, else null"
            )
        if is_validated:
            check.integer("history.best_epoch", history.best_epoch, 0, position.epoch - 1)

    # ------------------------------------------------------------ the loop

    def run(self, **options):
        """As `Run.run`; then the network has the weights of the best epoch if there is validation."""
        if self._prepare is not None and self.history.steps == 0:
            start = clock()
            self._prepare()
            self.history.seconds += clock() - start
        super().run(**options)
        if self._best:
            self.network.set_parameters(self._best)
        return self.history

    def _stop_reason(self):
        is_stalled = self._validate and self._position.bad_epochs >= self.schedule.stop_after
        return super()._stop_reason() or ("plateau" if is_stalled else "")

    def _is_epoch_done(self):
        return self._position.row >= self.n_rows

    def _progress_text(self):
        """What the progress display shows next to the step number."""
        total, rows = np.sum(self._position.losses[-200:], axis=0) if self._position.losses else (0, 1)
        shown = {
            "epoch": self._position.epoch + 1,
            "loss": f"{total / rows:.3f}",
            "lr": f"{self._position.learning_rate:.1e}",
        }
        if self._validate and self.history.epochs:
            shown[self._monitor] = f"{self.history.epochs[-1]['validation'][self._monitor]:.4f}"
        return shown | {"GiB": f"{peak_memory() / 2**30:.2f}"}

    def _next_rows(self):
        """The row ids of the next batch."""
        if self._position.row == 0 or self._order is None:
            self._order = self._order_of(self._position.epoch)
        return self._order[self._position.row : self._position.row + self.schedule.batch_size]

    def _learning_rate(self, step):
        """The learning rate of step number `step`."""
        schedule, rate = self.schedule, self._position.learning_rate
        if schedule.decay == "linear":
            rate = max(rate * (1 - step / self._total_steps), min(schedule.min_learning_rate, rate))
        return rate * min(1.0, (step + 1) / max(schedule.warm_up, 1))

    def _step(self):
        """One training step, and the rewiring if it is due."""
        network, schedule = self.network, self.schedule
        rows, step = self._next_rows(), self.history.steps
        self.optimizer.learning_rate = self._learning_rate(step)
        norms = {} if step % NORMS_EVERY == 1 else None
        try:
            update_seconds = self._update_sampler(step)
            value = network.step(*self._batch(rows), schedule.loss, self.optimizer, norms)
        except (FloatingPointError, ValueError) as error:
            self._raise_training_error(step, error)
        if norms:
            self._position.norms.append(norms)
        self._output_seconds = network.output_seconds + update_seconds
        self._position.losses.append([value * len(rows), len(rows)])
        self._position.row += len(rows)
        self.history.steps += 1
        last_rewiring = schedule.rewire_until * schedule.epochs * self._steps_per_epoch
        if (
            schedule.rewire_fraction > 0
            and self.history.steps % schedule.rewire_every == 0
            and self.history.steps <= last_rewiring
        ):
            try:
                share = network.rewire(schedule.rewire_fraction, self.optimizer)
            except ValueError as error:  # weights that are not finite after this step
                self._raise_training_error(step, error)
            self.history.rewirings.append({"step": self.history.steps, "share": share})

    def _raise_training_error(self, step, error, validating=False):
        """Raise a TrainingError that says what was not finite in this step; other errors are raised unchanged."""
        culprit = self.network.first_not_finite()
        if culprit is None and isinstance(error, ValueError) and not validating:
            raise error
        if culprit is not None:
            reason = f"{culprit} holds NaN or infinity"
        elif validating:  # validation keeps no activations that could be searched
            reason = "activations or scores overflowed in the validation after it"
        elif isinstance(error, GradientError):
            reason = "the gradient overflowed"
        else:
            reason = "the scores overflowed in the output layer"
        raise TrainingError(f"step {step}: {reason} ({error}); lower the learning rate") from error

    def _check_finite(self):
        """TrainingError for parameters that are not finite: they must not overwrite a good checkpoint."""
        culprit = self.network.first_not_finite()
        if culprit is not None:
            last = self.history.steps - 1
            raise TrainingError(f"step {last}: {culprit} holds NaN or infinity after it; lower the learning rate")

    def _update_sampler(self, step):
        """Update the sampler to the current weights if that is due; returns the seconds it took."""
        every = self._steps_per_epoch if self.schedule.index_every is None else self.schedule.index_every
        if every and step % every == 0:
            start = clock()
            share = self.network.output.negatives.update()
            seconds = clock() - start
            self.history.index_updates.append({"step": step, "share": share, "seconds": seconds})
            return seconds
        return 0.0

    def _finish_epoch(self):
        """Record the epoch, validate, and adapt the learning rate."""
        position, schedule, history = self._position, self.schedule, self.history
        sums, rows = np.array(position.losses).T
        layers = position.norms[0] if position.norms else ()
        record = {
            "epoch": position.epoch,
            "steps": history.steps,
            "seconds": history.seconds,
            "loss": float(sums.sum() / rows.sum()),
            "loss_std": float((sums / rows).std()),
            "learning_rate": self._learning_rate(history.steps - 1),
            "gradient_norms": {layer: float(np.mean([norms[layer] for norms in position.norms])) for layer in layers},
        }
        if self._validate is not None:
            try:
                record["validation"] = self._validate()
            except (FloatingPointError, ValueError) as error:
                self._raise_training_error(history.steps - 1, error, validating=True)
            value = record["validation"][self._monitor]
            if position.best is None or value > position.best:
                position.best, position.bad_epochs = value, 0
                history.best_epoch = position.epoch
                for name, array in self.network.parameters.items():
                    host = to_numpy(array)
                    if name not in self._best:
                        self._best[name] = np.empty_like(host)
                    np.copyto(checkpoint.bits(self._best[name]), checkpoint.bits(host))
            else:
                position.bad_epochs += 1
                if position.bad_epochs % schedule.patience == 0 and schedule.decay == "plateau":
                    lowest = min(schedule.min_learning_rate, position.learning_rate)
                    position.learning_rate = max(position.learning_rate / 2, lowest)
        history.epochs.append(record)
        position.epoch, position.row = position.epoch + 1, 0
        position.losses, position.norms = [], []


def top_k(network, n_rows, batch, k, batch_size):
    """The k best labels of each row, in batches: scores (n, k), ids (n, k), as NumPy arrays.

    ``batch(slice)`` gives the features of a batch. Apart from the result, memory does not depend on the number of rows.
    """
    scores, ids = np.empty((n_rows, k), np.float32), np.empty((n_rows, k), np.int32)
    for first in range(0, n_rows, batch_size):
        rows = slice(first, min(first + batch_size, n_rows))
        for out, array in zip((scores, ids), network.top_k(batch(rows), k), strict=True):
            out[rows] = to_numpy(array)
    return scores, ids


def encode(network, n_rows, batch, batch_size, out):
    """Write the input of the output layer for each row to `out` (n, H), in batches; `batch` as in `top_k`."""
    for first in range(0, n_rows, batch_size):
        rows = slice(first, min(first + batch_size, n_rows))
        out[rows] = to_numpy(network.forward(batch(rows)))
