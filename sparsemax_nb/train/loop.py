"""The training loop: schedule, rewiring, validation, checkpoints, and a stop with a name where numbers go wrong."""

import contextlib
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

import numpy as np

from ..core import check, description
from ..core.device import asarray, device_of, to_numpy
from ..data.batches import shuffled
from .gradients import GradientError
from .progress import Progress

#: Steps between two looks at the norms of the gradients; the first is at step 1, for at step 0 they are zero below an
#: output layer that starts at zero.
NORMS_EVERY = 50
#: What seconds are counted by; a test of a budget puts another one in its place.
clock = time.perf_counter


COUNT, SECONDS, FIGURE = description.integer(0), description.number(0), description.figure
#: What a checkpoint says of a run beside its arrays; `Training.restore` checks that the parts agree with each other.
DESCRIPTION = description.record(
    steps=COUNT,
    counts=description.dict_of(COUNT),
    history=description.record(
        epochs=description.list_of(
            description.record(
                epoch=COUNT,
                steps=COUNT,
                seconds=SECONDS,
                loss=FIGURE,
                loss_std=FIGURE,
                learning_rate=FIGURE,
                gradient_norms=description.dict_of(FIGURE),
            )
        ),
        rewirings=description.list_of(description.record(step=COUNT, share=FIGURE)),
        index_updates=description.list_of(
            description.record(step=COUNT, share=description.optional(FIGURE), seconds=SECONDS)
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
        norms=description.list_of(description.dict_of(FIGURE)),
    ),
)


class TrainingError(FloatingPointError):
    """NaN or infinity in the loss or in an input; the message names step and layer.

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
    """What governs a run; see `Classifier` for the meaning of each."""

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
    index_every: int | None = 0  # 0: there is nothing to update; None: once an epoch
    decay: str = "plateau"  # of the learning rate: halved where validation stands still; or 'linear' in the steps


@dataclass
class History:
    """What a run did.

    Attributes
    ----------
    epochs : list of dict
        One for every epoch: its mean loss a row (of sequences: each batch's mean over its targets, weighted by its
        lines) and the loss' standard deviation between batches, learning rate, mean
        norms of the gradients by layer, steps and seconds so far, and the figures of the validation.
    rewirings : list of dict
        Step and share of the connections that were replaced.
    index_updates : list of dict
        Step at which what negatives are drawn from caught up with the weights; share of the labels whose cell changed,
        and the seconds it took.
    steps : int
    seconds : float
        Of training: without validation, and without the first step.
    output_seconds : float
        Those of them that the output layer took.
    first_step_seconds : float
        Of the first step, which compiles (after a resume: of both first steps).
    best_epoch : int or None
        The epoch whose weights were kept, counted from 0; None without validation.
    stopped : str
        Why the run ended: 'epochs', 'budget' or 'plateau'; '' where it was interrupted.
    """

    epochs: list = field(default_factory=list)
    rewirings: list = field(default_factory=list)
    index_updates: list = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    output_seconds: float = 0.0
    first_step_seconds: float = 0.0
    best_epoch: int | None = None
    stopped: str = ""

    @property
    def losses(self):
        """Mean loss of every epoch."""
        return [epoch["loss"] for epoch in self.epochs]


@dataclass
class _Position:
    """Where a run stands between two steps, beside the arrays: all that a resumed run has to know."""

    epoch: int = 0
    row: int = 0  # of the epoch's order
    learning_rate: float = 0.0
    best: float | None = None  # figure of the best epoch
    bad_epochs: int = 0  # since the best one
    losses: list = field(default_factory=list)  # of this epoch: [batch's loss, its rows]
    norms: list = field(default_factory=list)  # of this epoch: {layer: norm}


def peak_memory():
    """Largest resident memory of the process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def deferred_interrupt(wanted, tell="the step is finished and a checkpoint written"):
    """A list that is empty until Ctrl-C is pressed: so a step is never cut in two. A second Ctrl-C interrupts at once.

    Where it is not `wanted`, Ctrl-C interrupts as ever. `tell` is what the first one will lead to.
    """
    pressed = []
    if not (wanted and threading.current_thread() is threading.main_thread()):
        yield pressed
        return

    def note(*_):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        print(f"\ninterrupted: {tell} (again: stop at once)", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Run:
    """One run of training, whatever is trained: steps and epochs, checkpoints, budget, Ctrl-C.

    A subclass sets `history`, `_position` (where it stands; `epoch` is part of it), `_epochs`, `_total_steps`,
    `_budget_seconds`, and has `_step`, `_epoch_ended`, `_end_epoch` and `_progress_text`.
    """

    #: Seconds that the output layer took of the last step.
    _output_seconds = 0.0

    def run(self, *, save=None, save_seconds=300.0, progress=True, after_epoch=None):
        """Train to the end; returns the `History`.

        `save()` writes a checkpoint; it is called after every epoch, every `save_seconds`, and on Ctrl-C, which then
        raises KeyboardInterrupt. `after_epoch(epoch, history)` is called after every epoch; its time does not count.
        """
        bar = Progress(self._total_steps, self.history.steps, progress)
        self.history.stopped = self._stop_reason()
        with bar, deferred_interrupt(save is not None) as interrupted:
            first, saved = True, clock()
            while not self.history.stopped:
                start = clock()
                self._step()
                seconds = clock() - start
                if first:
                    self.history.first_step_seconds += seconds
                else:
                    self.history.seconds += seconds
                    self.history.output_seconds += self._output_seconds
                first = False
                bar.step(self._progress_text)
                ended, over = self._epoch_ended(), self._over_budget()
                if over and not ended and save is not None:
                    self._check_finite()
                    save()  # inside the epoch: a run that gets more time goes on from here
                if ended or over:
                    self._end_epoch()
                    if after_epoch is not None:
                        after_epoch(self._position.epoch - 1, self.history)
                self.history.stopped = self._stop_reason()
                due = ended or interrupted or clock() - saved >= save_seconds
                if self.history.stopped or (save is not None and due):
                    self._check_finite()
                if save is not None and due and (ended or not over):
                    save()
                    saved = clock()
                if interrupted:
                    raise KeyboardInterrupt("a checkpoint was written")
        return self.history

    def _check_finite(self):
        """TrainingError for what must not be written over a checkpoint that is whole."""

    def _over_budget(self):
        return self._budget_seconds is not None and self.history.seconds >= self._budget_seconds

    def _stop_reason(self):
        """Why the run is over, or ''."""
        if self._position.epoch >= self._epochs:
            return "epochs"
        return "budget" if self._over_budget() else ""


class Training(Run):
    """One run of training a network: the network, its optimiser, the schedule, and where it stands.

    Parameters
    ----------
    network : Network
    optimizer : Adam
    schedule : Schedule
    n_rows : int
        Training points.
    batch : callable
        ``batch(row_ids) -> (x, labels)``, what `network.step` takes.
    order : callable or None
        ``order(epoch) -> row_ids``, the order in which an epoch visits the rows; None shuffles them.
    validate : callable or None
        ``validate() -> dict`` of figures, called after every epoch.
    monitor : str
        The figure that decides on learning rate, early stop and best model; larger is better.
    """

    def __init__(self, network, optimizer, schedule, n_rows, batch, order=None, validate=None, monitor="P@3"):
        self.network, self.optimizer, self.schedule, self.n_rows = network, optimizer, schedule, n_rows
        self._order_of = order or (lambda epoch: shuffled(n_rows, schedule.seed, epoch))
        self._batch, self._validate, self._monitor = batch, validate, monitor
        self.history, self._position = History(), _Position(learning_rate=schedule.learning_rate)
        self._best = {}  # the best epoch's parameters, NumPy
        self._order = None  # this epoch's order of the rows
        self._steps_per_epoch = -(-n_rows // schedule.batch_size)
        self._epochs, self._budget_seconds = schedule.epochs, schedule.budget_seconds
        self._total_steps = schedule.epochs * self._steps_per_epoch

    # ------------------------------------------------------------ checkpoints

    def state(self):
        """(arrays, description) for a checkpoint: the run continues from it bit for bit."""
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
        """Bytes of the arrays of a checkpoint, but for what negatives are drawn from."""
        total = 0
        for array in self.network.parameters.values():
            moments = 2 * 4 * array.size if array.dtype.kind != "i" else 0
            total += moments + array.nbytes * (1 if self._validate is None else 2)
        return total

    def restore(self, arrays, about):
        """Continue where `state` was taken; KeyError, TypeError or ValueError for a state that does not fit.

        The network and the optimiser are not to be used after an error.
        """
        DESCRIPTION("description", about)
        history, position = History(**about["history"]), _Position(**about["position"])
        self._check_position(history, position, about)
        if position.best is not None:  # checked like the parameters, which then take its place
            self.network.set_parameters(arrays, "best/")
            self._best = {name: arrays[f"best/{name}"] for name in self.network.parameters}
        self.network.set_parameters(arrays, "parameters/")
        counts, learning = about["counts"], {n: a for n, a in self.network.parameters.items() if a.dtype.kind != "i"}
        if counts.keys() != learning.keys():
            raise ValueError(f"counts must be those of {sorted(learning)}, got {sorted(counts)}")
        for name, array in learning.items():
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
        """ValueError where the parts of a checkpoint's description do not agree with each other, or with this run."""
        batch_size = self.schedule.batch_size
        check.integer("position.row", position.row, 0, self.n_rows - 1)
        in_epoch, rest = divmod(position.row, batch_size)
        steps = position.epoch * self._steps_per_epoch + in_epoch
        if rest or not steps == history.steps == about["steps"] or len(position.losses) != in_epoch:
            raise ValueError(
                f"steps, losses and position do not agree: {about['steps']}, {history.steps} and {len(position.losses)} steps, "
                f"row {position.row} of epoch {position.epoch} in batches of {batch_size}"
            )
        if any(rows <= 0 for _, rows in position.losses):
            raise ValueError("position.losses must count the rows of each batch")
        keys = [epoch.get("validation", {}).keys() for epoch in history.epochs]
        norms = [one.keys() for one in position.norms]
        wanted = {self._monitor} if self._validate is not None else set()
        if len(keys) != position.epoch or any(some != keys[0] or not wanted <= some for some in keys):
            raise ValueError(f"history.epochs must be {position.epoch} epochs with the same figures of the validation")
        if any(some != norms[0] for some in norms):
            raise ValueError("position.norms must be of the same layers in every step")
        for number, epoch in enumerate(history.epochs):
            description.dict_of(FIGURE)(f"history.epochs[{number}].validation", epoch.get("validation", {}))
        is_validated = self._validate is not None and position.epoch > 0
        if (position.best is not None) != is_validated or (history.best_epoch is not None) != is_validated:
            raise ValueError(
                "position.best and history.best_epoch must be there after an epoch with validation, else null"
            )
        if is_validated:
            check.integer("history.best_epoch", history.best_epoch, 0, position.epoch - 1)

    # ------------------------------------------------------------ the loop

    def run(self, **options):
        """As `Run.run`; then the network holds the best epoch's weights where there is validation."""
        super().run(**options)
        if self._best:
            self.network.set_parameters(self._best)
        return self.history

    def _stop_reason(self):
        stands_still = self._validate and self._position.bad_epochs >= self.schedule.stop_after
        return super()._stop_reason() or ("plateau" if stands_still else "")

    def _epoch_ended(self):
        return self._position.row >= self.n_rows

    def _progress_text(self):
        """What is shown of the progress, beside the number of the step."""
        total, rows = np.sum(self._position.losses[-200:], axis=0) if self._position.losses else (0, 1)
        shown = {
            "epoch": self._position.epoch + 1,
            "loss": f"{total / rows:.3f}",
            "lr": f"{self._at.learning_rate:.1e}",
        }
        if self._validate and self.history.epochs:
            shown[self._monitor] = f"{self.history.epochs[-1]['validation'][self._monitor]:.4f}"
        return shown | {"GiB": f"{peak_memory() / 2**30:.2f}"}

    def _rows(self):
        """The rows of the next batch."""
        if self._position.row == 0 or self._order is None:
            self._order = self._order_of(self._position.epoch)
        return self._order[self._position.row : self._position.row + self.schedule.batch_size]

    def _rate(self, number):
        """The learning rate of step `number`."""
        schedule, rate = self.schedule, self._position.learning_rate
        if schedule.decay == "linear":
            rate = max(rate * (1 - number / self._total_steps), min(schedule.min_learning_rate, rate))
        return rate * min(1.0, (number + 1) / max(schedule.warm_up, 1))

    def _step(self):
        """One step, and the rewiring where it is due."""
        rows, network, schedule, number = self._rows(), self.network, self.schedule, self.history.steps
        self.optimizer.learning_rate = self._rate(number)
        norms = {} if number % NORMS_EVERY == 1 else None
        try:
            update_seconds = self._update_index(number)
            value = network.step(*self._batch(rows), schedule.loss, self.optimizer, norms)
        except (FloatingPointError, ValueError) as error:
            self._raise_named(number, error)
        if norms:
            self._position.norms.append(norms)
        self._output_seconds = network.output_seconds + update_seconds
        self._position.losses.append([value * len(rows), len(rows)])
        self._position.row += len(rows)
        self.history.steps += 1
        last = schedule.rewire_until * schedule.epochs * self._steps_per_epoch
        if (
            schedule.rewire_fraction > 0
            and self.history.steps % schedule.rewire_every == 0
            and self.history.steps <= last
        ):
            try:
                share = network.rewire(schedule.rewire_fraction, self.optimizer)
            except ValueError as error:  # weights that are not finite after this step
                self._raise_named(number, error)
            self.history.rewirings.append({"step": self.history.steps, "share": share})

    def _raise_named(self, number, error, validating=False):
        """What an error of step `number` is about, where that is numbers that are not finite; else the error itself."""
        culprit = self.network.first_not_finite()
        if culprit is None and isinstance(error, ValueError) and not validating:
            raise error
        if culprit is not None:
            reason = f"{culprit} holds NaN or infinity"
        elif validating:  # which keeps no activations
            reason = "activations or scores overflowed in the validation after it"
        elif isinstance(error, GradientError):
            reason = "the gradient overflowed"
        else:
            reason = "the scores overflowed in the output layer"
        raise TrainingError(f"step {number}: {reason} ({error}); lower the learning rate") from error

    def _check_finite(self):
        """TrainingError for parameters that are not: they are not written over a checkpoint that is whole."""
        culprit = self.network.first_not_finite()
        if culprit is not None:
            last = self.history.steps - 1
            raise TrainingError(f"step {last}: {culprit} holds NaN or infinity after it; lower the learning rate")

    def _update_index(self, number):
        """What negatives are drawn from catches up with the weights, where that is due; returns the seconds it took."""
        every = self._steps_per_epoch if self.schedule.index_every is None else self.schedule.index_every
        if every and number % every == 0:
            start = clock()
            share = self.network.output.negatives.update()
            seconds = clock() - start
            self.history.index_updates.append({"step": number, "share": share, "seconds": seconds})
            return seconds
        return 0.0

    def _end_epoch(self):
        """Take down the epoch's figures; validate, and move the learning rate."""
        at, schedule, history = self._position, self.schedule, self.history
        sums, rows = np.array(at.losses).T
        layers = at.norms[0] if at.norms else ()
        record = {
            "epoch": at.epoch,
            "steps": history.steps,
            "seconds": history.seconds,
            "loss": float(sums.sum() / rows.sum()),
            "loss_std": float((sums / rows).std()),
            "learning_rate": self._rate(history.steps - 1),
            "gradient_norms": {layer: float(np.mean([norms[layer] for norms in at.norms])) for layer in layers},
        }
        if self._validate is not None:
            try:
                record["validation"] = self._validate()
            except (FloatingPointError, ValueError) as error:
                self._raise_named(history.steps - 1, error, validating=True)
            value = record["validation"][self._monitor]
            if at.best is None or value > at.best:
                at.best, at.bad_epochs, history.best_epoch = value, 0, at.epoch
                for name, array in self.network.parameters.items():
                    host = to_numpy(array)
                    np.copyto(self._best.setdefault(name, np.empty_like(host)), host)
            else:
                at.bad_epochs += 1
                if at.bad_epochs % schedule.patience == 0 and schedule.decay == "plateau":
                    at.learning_rate = max(at.learning_rate / 2, min(schedule.min_learning_rate, at.learning_rate))
        history.epochs.append(record)
        at.epoch, at.row, at.losses, at.norms = at.epoch + 1, 0, [], []


def top_k(network, n_rows, batch, k, batch_size):
    """The k best labels of every row, in batches: scores (n, k), ids (n, k), as NumPy arrays.

    ``batch(slice)`` gives the features of a batch; beside the result, memory does not depend on the number of rows.
    """
    scores, ids = np.empty((n_rows, k), np.float32), np.empty((n_rows, k), np.int32)
    for first in range(0, n_rows, batch_size):
        rows = slice(first, min(first + batch_size, n_rows))
        for out, array in zip((scores, ids), network.top_k(batch(rows), k), strict=True):
            out[rows] = to_numpy(array)
    return scores, ids


def encode(network, n_rows, batch, batch_size, out):
    """The input of the output layer for every row, into `out` (n, H); `batch` as in `top_k`."""
    for first in range(0, n_rows, batch_size):
        rows = slice(first, min(first + batch_size, n_rows))
        out[rows] = to_numpy(network.forward(batch(rows)))
