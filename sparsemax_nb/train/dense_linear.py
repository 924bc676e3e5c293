"""Training of a linear layer over dense features by dual coordinate descent."""

import math

import numpy as np

from ..core import check, sparse
from ..core.device import asarray, backend_of, empty, resolve_device, zeros
from ..data.batches import shuffled
from ..feature_choice import INITIAL_BIAS, check_squares
from ..linear import checked_weights, no_duals
from .dual_run import batch_size_of
from .linear import csr_slice, weighted_rows
from .loop import TrainingError
from .memory import ALWAYS, array
from .models import MAX_SCORES

#: Passes of an epoch after the first one, which searches for labels whose score violates the margin. They visit only
#: the labels of a row and those with a dual variable. They compute no product and take little time, but bring the
#: weights close to the optimum for the pairs that were found: two such epochs rank better than four searches.
REVISITS = 4
#: Positive dual variables per row: the largest mean over the rows of a data set that we have seen.
DUALS_PER_ROW = 64


class DenseDual:
    """A training run of a linear layer over dense features.

    Parameters
    ----------
    h : (N, d) float32
        Rows of zeros are left out: they cannot change weights.
    y : (N, L) SciPy CSR matrix of ones
    C, slack : float
        See `dense_linear_step`.
    seed : int
        Of the order of the rows.
    sample_weight : (N,) float32 or None
        At least 0: the weight of each row, a factor of C; None: all are 1. Rows of weight 0 are left out.
    device : 'cpu' or 'cuda'
    late : (n,) integers or None
        Rows that join after the first epoch, and can be predicted before.

    Attributes
    ----------
    weights : (L, d) float32, on `device`
        Change with every step.
    bias : (L,) float32, on `device`
        -1 for every label.
    """

    def __init__(self, h, y, *, C=1.0, slack=0.5, seed=0, sample_weight=None, device="cpu", late=None):  # noqa: N803
        self.device = device
        self._c, self._slack, self._seed = float(C), float(slack), seed
        h, y, row_weights, rows = weighted_rows(h, y, sample_weight)
        order = shuffled(len(h), seed, 0)
        order = order[h.any(1)[order]]
        is_late = np.zeros(len(order), bool) if late is None else np.isin(rows[order], late)
        order = np.concatenate([order[~is_late], order[is_late]])
        shuffled_h = empty((len(order), h.shape[1]), np.float32, "cpu")  # aligned for vector loads
        self._h = asarray(np.take(h, order, 0, out=shuffled_h), device)
        self._y, self._row_weights = y[order], row_weights[order]
        batch_size = batch_size_of(len(order))
        n_early = len(order) - int(is_late.sum())
        parts = (0, n_early), (n_early, len(order))
        self._batches = [
            slice(first, min(first + batch_size, end))
            for start, end in parts
            for first in range(start, end, batch_size)
        ]
        self._n_early = -(-n_early // batch_size)
        self._duals = [no_duals(rows.stop - rows.start, device) for rows in self._batches]
        self._step = backend_of(device, "dense_linear").step
        self.weights = zeros((y.shape[1], h.shape[1]), np.float32, device)
        self.bias = asarray(np.full(y.shape[1], INITIAL_BIAS, np.float32), device)

    def steps(self, epochs):
        """A list per epoch with the (number, search) of each step, the arguments of `step`.

        Each pass visits the batches in another order, the first epoch only those without late rows.
        """
        n_passes, found = 1 + REVISITS, []
        for epoch in range(epochs):
            passes = range(epoch * n_passes, (epoch + 1) * n_passes)
            order = [shuffled(self._n_early if epoch == 0 else len(self._batches), self._seed, i + 1) for i in passes]
            found.append([(number, i == 0) for i, numbers in enumerate(order) for number in numbers])
        return found

    def step(self, number, search):
        """One step over the batch with this number; returns the loss, a sum over its rows, and their summed weight."""
        rows = self._batches[number]
        labels = sparse.Labels(*(asarray(a, self.device) for a in csr_slice(self._y, rows)[:2]))
        row_weights = self._row_weights[rows]
        loss, self._duals[number] = self._step(
            self._h[rows],
            labels,
            self._duals[number],
            self.weights,
            self.bias,
            asarray(row_weights, self.device),
            self._c,
            self._slack,
            search,
        )
        if not math.isfinite(loss):
            raise TrainingError("the scores overflowed; scale the features down")
        return loss, float(row_weights.sum(dtype=np.float64))


def fit_dense_linear(
    h,
    y,
    *,
    C=1.0,
    slack=0.5,
    epochs=2,
    seed=0,
    sample_weight=None,
    device="cpu",
    progress=None,  # noqa: N803
):
    """Train a linear layer over dense features, one label against the rest; see `dense_linear_step` for the method.

    The rows are shuffled once and divided into at least 64 batches of at most 1,024 rows. An epoch is a pass over all
    batches that searches for labels whose score violates the margin, and four passes that do not. Each pass visits the
    batches in another order.

    Parameters
    ----------
    h : (N, d) float32
    y : (N, L) SciPy sparse matrix
        The entries that are not zero are the labels of the rows.
    C, slack : float
    epochs, seed : int
    sample_weight : (N,) integers or floats, optional
    device : 'auto', 'cpu' or 'cuda'
    progress : callable, optional
        ``progress(n_steps, total, loss)`` is called after each step with the number of steps so far, that of the whole
        run, and the mean loss of the step's rows.

    Returns
    -------
    weights : (L, d) float32
    bias : (L,) float32
        Both on `device`. The scores are ``h @ weights.T + bias``.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Wrong types or shapes, numbers out of range or not finite; CUDA not available.
    """
    h = check.array("h", check.on_host("h", h), np.float32, ("N", "d"), finite=True)
    check_squares("h", h.reshape(-1), np.arange(len(h) + 1) * h.shape[1])
    y = sparse.as_ones("y", y)
    if y.shape[0] != len(h):
        raise ValueError(f"h and y must have the same number of rows, got {len(h)} and {y.shape[0]}")
    check.integer("n_labels (the width of y)", y.shape[1], 1, 2**31 - 1)
    check.number("C", C, 0, math.inf, open_ends=True)
    check.number("slack", slack, 0, 1.999)
    epochs, seed = check.integer("epochs", epochs, 1), check.integer("seed", seed, 0)
    if sample_weight is not None:
        sample_weight = checked_weights(sample_weight, len(h))
    training = DenseDual(h, y, C=C, slack=slack, seed=seed, sample_weight=sample_weight, device=resolve_device(device))
    steps = [step for epoch in training.steps(epochs) for step in epoch]
    for i, (number, search) in enumerate(steps, 1):
        loss, weight = training.step(number, search)
        if progress is not None:
            progress(i, len(steps), loss / weight)
    return training.weights, training.bias


def memory(n_rows, n_inputs, n_labels):
    """The arrays of training a linear layer over dense features, as a list of `memory.Array`."""
    return [
        array(ALWAYS, "layer over embeddings: weights", n_labels, n_inputs),
        array("layer over embeddings", "rows in training order", n_rows, n_inputs),
        array("layer over embeddings", "dual variables", 2 * DUALS_PER_ROW, n_rows),
        array("layer over embeddings", "scores", max(n_labels, MAX_SCORES)),
    ]
