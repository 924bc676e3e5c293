"""What the runs of dual coordinate descent share: their position, the record of an epoch, and its checkpoint."""

import math
from dataclasses import dataclass, field

import numpy as np

from ..core import description
from .loop import COUNT, METRIC, SECONDS, History, Run, TrainingError, peak_memory

#: Maximum number of rows per step.
MAX_BATCH_SIZE = 1024
#: Minimum number of steps per epoch: smaller training sets use smaller batches.
MIN_STEPS_PER_EPOCH = 64
#: Description of a run in its checkpoint.
DESCRIPTION = description.record(
    n_rows=COUNT,
    history=description.record(
        epochs=description.list_of(
            description.record(epoch=COUNT, steps=COUNT, seconds=SECONDS, loss=METRIC, loss_std=METRIC)
        ),
        steps=COUNT,
        seconds=SECONDS,
        output_seconds=SECONDS,
        first_step_seconds=SECONDS,
        stopped=description.text,
    ),
    position=description.record(
        epoch=COUNT, step=COUNT, losses=description.list_of(description.list_of(description.number(), 2))
    ),
)


def batch_size_of(n_rows):
    """Rows per step."""
    return min(MAX_BATCH_SIZE, max(1, -(-n_rows // MIN_STEPS_PER_EPOCH)))


@dataclass
class Position:
    """The state of a run between two steps, apart from its arrays."""

    epoch: int = 0
    step: int = 0  # of this epoch
    losses: list = field(default_factory=list)  # [loss, sum of the weights of the rows] of each batch of this epoch


class DualRun(Run):
    """A run of dual coordinate descent over batches of rows.

    A subclass implements `_step`, which calls `_note_step`, and sets `_order`, the batches of the epoch.
    """

    #: What helps if the scores overflow.
    overflow_fix = "scale the features down"
    #: ``validate() -> dict`` of metrics, called after each epoch, or None.
    validate = None

    def __init__(self, epochs, budget_seconds):
        self._epochs = epochs
        self._budget_seconds = budget_seconds
        self.history = History()
        self._position = Position()
        self._order = None

    def _note_step(self, loss, weight):
        """Count a step with this loss of rows with this sum of weights; TrainingError if the loss is not finite."""
        if not math.isfinite(loss):
            raise TrainingError(f"step {self.history.steps}: the scores overflowed; {self.overflow_fix}")
        self._position.losses.append([float(loss), float(weight)])
        self._position.step += 1
        self.history.steps += 1

    def _is_epoch_done(self):
        return self._position.step == len(self._order)

    def _progress_text(self):
        total, weight = np.sum(self._position.losses[-200:], axis=0) if self._position.losses else (0, 1)
        shown = {"epoch": self._position.epoch + 1, "loss": f"{total / weight:.3f}"}
        return shown | {"GiB": f"{peak_memory() / 2**30:.2f}"}

    def _finish_epoch(self):
        """Record the epoch, and validate."""
        position, history = self._position, self.history
        sums, weights = np.array(position.losses).T
        record = {
            "epoch": position.epoch,
            "steps": history.steps,
            "seconds": history.seconds,
            "loss": float(sums.sum() / weights.sum()),
            "loss_std": float((sums / weights).std()),
            "gradient_norms": {},
        }
        if self.validate is not None:
            record["validation"] = self.validate()
        history.epochs.append(record)
        position.epoch += 1
        position.step = 0
        position.losses = []


def restored_position(about, steps_in):
    """`History` and `Position` of a checkpoint, checked; ``steps_in(epoch)`` is the number of steps of an epoch.

    KeyError, TypeError or ValueError if they do not fit.
    """
    DESCRIPTION("description", about)
    position = Position(**about["position"])
    if not position.step < steps_in(position.epoch):
        raise ValueError(f"position.step must be below {steps_in(position.epoch)}, got {position.step}")
    if len(about["history"]["epochs"]) != position.epoch:
        raise ValueError(f"history.epochs must be {position.epoch} epochs")
    if len(position.losses) != position.step or any(weight <= 0 for _, weight in position.losses):
        raise ValueError("position.losses must have one entry per step of the epoch, each of rows with a weight")
    return History(**about["history"]), position
