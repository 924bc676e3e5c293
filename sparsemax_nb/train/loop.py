"""The training loop: batches, progress, a budget of time, and a stop with a name where numbers go wrong."""

import resource
import sys
import time
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ..core import backend
from ..data.batches import batches, shuffled


class TrainingError(FloatingPointError):
    """NaN or infinity in the loss or in an input; the message names step and layer."""


@dataclass
class History:
    """What a run did: mean loss of every epoch, steps, seconds of training and of compiling (the first step)."""

    losses: list = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    first_step_seconds: float = 0.0


def peak_memory():
    """Largest resident memory of the process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _checked_step(network, x, labels, loss, optimizer):
    """`network.step`, with any NaN or infinity turned into a TrainingError that names step and layer."""
    number = network.steps
    try:
        return network.step(x, labels, loss, optimizer)
    except (FloatingPointError, ValueError) as error:
        culprit = network.first_not_finite()
        if culprit is None and isinstance(error, ValueError):
            raise
        reason = f"{culprit} holds NaN or infinity" if culprit else "the scores overflowed in the output layer"
        raise TrainingError(f"step {number}: {reason} ({error}); lower the learning rate") from error


def fit(
    network,
    x,
    labels,
    *,
    loss,
    optimizer,
    batch_size,
    epochs,
    seed,
    budget_seconds=None,
    progress=True,
    after_epoch=None,
):
    """Train `network` on SciPy CSR matrices x (n, F) and labels (n, L) for `epochs`, or until `budget_seconds` are over.

    The first step, which compiles kernels, is timed apart; neither it nor `after_epoch(epoch, history)`, which is called
    between epochs, counts against the budget. Returns a `History`.
    """
    history = History()
    n_rows = x.shape[0]
    steps_per_epoch = -(-n_rows // batch_size)
    bar = tqdm(total=epochs * steps_per_epoch, unit="step", disable=not progress, file=sys.stderr, mininterval=0.5)
    start = time.perf_counter()
    with bar:
        for epoch in range(epochs):
            total, count = 0.0, 0
            for rows in batches(shuffled(n_rows, seed, epoch), batch_size):
                total += _checked_step(network, x[rows], labels[rows], loss, optimizer) * len(rows)
                count += len(rows)
                history.steps += 1
                now = time.perf_counter()
                if history.steps == 1:
                    history.first_step_seconds, start = now - start, now
                bar.update()
                if history.steps % 20 == 0:
                    bar.set_postfix(
                        epoch=epoch + 1, loss=f"{total / count:.3f}", GiB=f"{peak_memory() / 2**30:.2f}", refresh=False
                    )
                if budget_seconds is not None and now - start >= budget_seconds:
                    break
            history.losses.append(total / max(count, 1))
            history.seconds = time.perf_counter() - start
            if count < n_rows or epoch + 1 == epochs:
                break
            if after_epoch is not None:
                after_epoch(epoch, history)
                start = time.perf_counter() - history.seconds
    return history


def top_k(network, x, k, batch_size=512, progress=False):
    """The k best labels of every row of a SciPy CSR matrix, in batches: scores (n, k), ids (n, k), as NumPy arrays."""
    scores, ids = np.empty((x.shape[0], k), np.float32), np.empty((x.shape[0], k), np.int32)
    for rows in tqdm(
        list(batches(np.arange(x.shape[0]), batch_size)), unit="batch", disable=not progress, file=sys.stderr
    ):
        part = slice(rows[0], rows[-1] + 1)
        for out, array in zip((scores, ids), network.top_k(x[part], k), strict=True):
            out[part] = backend.to_numpy(array)
    return scores, ids
