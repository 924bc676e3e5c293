"""Training of a kernel machine over the nearest neighbors of embeddings: choice of its settings, memory plan."""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np

from .. import metrics
from ..core import check, sparse
from ..core.connections import PaddedDuals
from ..core.device import asarray, to_numpy, zeros
from ..data.batches import shuffled
from ..feature_choice import INITIAL_BIAS
from ..neighbor_kernel import NeighborKernel, kernel_values, nearest_checked, step_checked
from . import held_out as held_out_rows
from .dual_run import DualRun, batch_size_of, restored_position
from .linear_settings import MAX_SPLITS, MIN_HELD_OUT, TRIAL_EPOCHS, climb_in_turns
from .loop import TrainingError
from .memory import ALWAYS, PREDICTION, array
from .models import CANDIDATES, MAX_SCORES, ROWS_PER_PREDICTION, KernelModel, frequency_tie_break, normalized
from .neighbor_search import ROWS_PER_BLOCK, nearest_points
from .outputs import UNSEEN_SCORE

#: Dual variables that a row's list has room for, beyond those of its own labels: more than we have seen.
OTHER_DUALS = 32
#: Mean number of dual variables per row, the largest that we have seen.
DUALS_PER_ROW = 32
#: Values of power and C that the search starts from, and those that it tries.
FIRST = 6.0, 4.0
GRID_POWER = 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0
GRID_C = 0.015625, 0.25, 4.0
#: Trials hold out this share of the rows, but at most MAX_HELD_OUT.
HELD_OUT_SHARE = 0.1
MAX_HELD_OUT = 5000
#: Labels per row that the metric of a trial looks at.
K = 5


@dataclass(frozen=True)
class Settings:
    """Settings for training a kernel machine; see `Classifier` for their meaning."""

    power: float
    C: float
    slack: float
    n_neighbors: int
    epochs: int
    seed: int


class Points(NamedTuple):
    """Embeddings as the kernel sees them, and their nearest neighbors among each other; arrays on the device."""

    mean: np.ndarray  # (d,) float32, NumPy
    points: np.ndarray  # (N, d) float32: without the mean, of length 1; or 0: no embedding
    similarities: np.ndarray  # (N, M) float32
    neighbors: np.ndarray  # (N, M) int32


def prepared(rows_of, n_rows, n_inputs, n_neighbors, seed, device, progress):
    """The `Points` of n_rows embeddings, ``rows_of(slice)`` being some of them, (n, d) float32, NumPy."""
    blocks = [slice(first, min(first + ROWS_PER_BLOCK, n_rows)) for first in range(0, n_rows, ROWS_PER_BLOCK)]
    total, n = np.zeros(n_inputs), 0
    for block in blocks:
        h = rows_of(block)
        total += h.sum(0, dtype=np.float64)
        n += int(h.any(1).sum())
    mean = (total / max(1, n)).astype(np.float32)
    points = np.empty((n_rows, n_inputs), np.float32)
    for block in blocks:
        points[block] = normalized(rows_of(block), mean)
    points = asarray(points, device)
    return Points(mean, points, *nearest_points(points, min(n_neighbors, n_rows), seed, progress))


class KernelTraining(DualRun):
    """A training run of a kernel machine.

    Parameters
    ----------
    points : Points
        All points, of the rows of y.
    y : (N, L) SciPy CSR matrix of ones
    settings : Settings
    device : 'cpu' or 'cuda'
    rows : (n,) integers or None
        The points to train on, None: all. The others have no dual variables, and contribute to no score.
    kernels : (N, M) float32 or None
        Those of the points and their neighbors, if they are known.
    sample_weight : (N,) float32 or None
        At least 0: the weight of each row, a factor of C.
    validate : callable or None
        ``validate() -> dict`` of metrics, called after each epoch.
    budget_seconds : float or None
    held_out : bool
        Whether `run` also sets the attribute `held_out`, the predictions for some of the rows by machines that are
        trained on the others, as `HeldOut`.
    """

    overflow_fix = "use a smaller kernel_C or a larger n_neighbors"

    def __init__(
        self,
        points,
        y,
        settings,
        device="cpu",
        *,
        rows=None,
        kernels=None,
        sample_weight=None,
        validate=None,
        budget_seconds=None,
        held_out=False,
    ):
        super().__init__(settings.epochs, budget_seconds)
        self.settings, self.device, self.validate = settings, device, validate
        self._points, self._y = points, y
        self._rows = np.arange(y.shape[0]) if rows is None else rows
        self.n_rows = len(self._rows)
        self.weights = np.ones(y.shape[0], np.float32) if sample_weight is None else sample_weight
        self._kernels = kernel_values(points.similarities, settings.power) if kernels is None else kernels
        width = int(np.diff(y.indptr).max(initial=0)) + OTHER_DUALS
        shape = y.shape[0], width
        arrays = (shape[:1], np.int32), (shape, np.int32), (shape, np.float32)
        self._duals = PaddedDuals(*(zeros(shape, dtype, device) for shape, dtype in arrays))
        self._batch_size = batch_size_of(self.n_rows)
        self._n_batches = -(-self.n_rows // self._batch_size)
        self._total_steps = settings.epochs * self._n_batches
        self.n_points = np.bincount(y[self._rows].indices, minlength=y.shape[1])
        self._wants_held_out = held_out
        self.held_out = None
        self.network = KernelModel(self._layer(self._bias), points.mean)

    @property
    def _bias(self):
        bias = INITIAL_BIAS + frequency_tie_break(self.n_points, self.settings.slack)
        bias[self.n_points == 0] = UNSEEN_SCORE
        return bias

    @property
    def part(self):
        """The `KernelModel` of the present dual variables without a bias, to be added to another model."""
        return KernelModel(self._layer(np.zeros(self._y.shape[1], np.float32)), self._points.mean)

    def _layer(self, bias):
        return NeighborKernel._from_padded(
            self._points.points, *self._duals, bias, self.settings.power, self.settings.n_neighbors, self.device
        )

    # ------------------------------------------------------------ checkpoints

    def state(self):
        """(arrays, description) for a checkpoint, from which a run continues bit for bit."""
        arrays = {f"duals/{name}": to_numpy(array) for name, array in self._duals._asdict().items()}
        return arrays, {
            "history": asdict(self.history),
            "position": asdict(self._position),
            "n_rows": self.n_rows,
        }

    @property
    def checkpoint_nbytes(self):
        """Bytes of the arrays of a checkpoint."""
        return sum(array.nbytes for array in self._duals)

    def restore(self, arrays, about):
        """Continue from a result of `state`; KeyError, TypeError or ValueError if it does not fit."""
        history, position = restored_position(about, lambda _: self._n_batches)
        limits = {"count": self._duals.labels.shape[1] + 1, "labels": self._y.shape[1]}
        for name, duals in self._duals._asdict().items():
            stored = check.array(f"duals/{name}", arrays[f"duals/{name}"], duals.dtype, duals.shape, finite=True)
            if name in limits:
                check.in_range(f"duals/{name}", stored, limits[name])
            duals[...] = asarray(stored, self.device)
        self.network.layer = self._layer(self._bias)
        self.history, self._position = history, position

    # ------------------------------------------------------------ the loop

    def run(self, **options):
        """As `Run.run`; afterwards `held_out` is set, if it is wanted."""
        super().run(**options)
        if self._wants_held_out:
            self.held_out = self._predicted_parts()
        return self.history

    def _step(self):
        """One step over the next batch."""
        position, size = self._position, self._batch_size
        if position.step == 0 or self._order is None:
            rows = self._rows[shuffled(self.n_rows, self.settings.seed, position.epoch)]
            self._order = [rows[first : first + size] for first in range(0, self.n_rows, size)]
        rows, settings = self._order[position.step], self.settings
        own, weights = self._y[rows], self.weights[rows]
        labels = sparse.Labels(asarray(own.indptr, self.device, np.int64), asarray(own.indices, self.device, np.int32))
        loss = step_checked(
            asarray(rows, self.device, np.int32),
            self._points.neighbors,
            self._kernels,
            self._duals,
            labels,
            self._y.shape[1],
            settings.C,
            settings.slack,
            weights,
        )
        self._note_step(loss, weights.sum(dtype=np.float64))

    def _finish_epoch(self):
        self.network.layer = self._layer(self._bias)
        super()._finish_epoch()

    # ------------------------------------------------------------ held-out rows

    def without(self, rows):
        """A run that has been trained on all rows but these."""
        training = KernelTraining(
            self._points,
            self._y,
            self.settings,
            self.device,
            rows=self._rows[~np.isin(self._rows, rows)],
            kernels=self._kernels,
            sample_weight=self.weights,
        )
        training.run(progress=False)
        return training

    @property
    def data(self):
        """The points (N, d), NumPy, and their labels."""
        return to_numpy(self._points.points), self._y

    def listed_points(self, rows):
        """Training rows as points."""
        return self._points.points[asarray(rows, self.device, np.int64)]

    def listed(self, rows):
        """The neighbors and kernels of training rows, for `KernelModel.scores`."""
        at = asarray(rows, self.device, np.int64)
        return self._points.neighbors[at], self._kernels[at]

    def best(self, rows, k):
        """The k best labels of training rows: scores, ids (n, k), NumPy."""
        return tuple(map(to_numpy, self.network.best(*self.listed(rows), k)))

    def _predicted_parts(self):
        """`HeldOut` of some of the rows, by runs on the others."""
        k, parts = min(CANDIDATES, self._y.shape[1]), []
        for rows in held_out_rows.parts_of(self._rows, self.settings.seed):
            training = self.without(rows)
            scores, ids = training.best(rows, k)
            parts.append(held_out_rows.HeldOut(scores, ids, training.n_points[ids], rows))
        return held_out_rows.joined(parts, k)


# ---------------------------------------------------------------- settings


def choose_settings(points, y, settings, *, wanted, device="cpu", sample_weight=None, validation=None):
    """(Settings, trials): the power and C with about the best nDCG@5 on held-out rows.

    `wanted` names the settings to choose: 'power', 'C'. Rows without an embedding are never held out. `validation` are
    embeddings (n, d) and labels that replace the held-out rows. The settings take turns, two at most, in moving from
    their values along the grid, as long as a neighbor is better by more than noise.
    """
    rows = np.flatnonzero(to_numpy(points.points).any(1) & (np.diff(y.indptr) > 0))
    if not wanted or len(rows) < 2:
        return settings, []
    k, results, trials = min(K, y.shape[1]), {}, []
    if validation is not None:
        h = asarray(normalized(validation[0], points.mean), device)
        similarities, neighbors = nearest_checked(h, points.points, points.neighbors.shape[1])
        n_held_out = len(h)
    else:
        n = min(MAX_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(rows))))
        n_splits = max(1, min(MAX_SPLITS, MIN_HELD_OUT // n))
        splits = [rows[shuffled(len(rows), settings.seed, 2 + split)[:n]] for split in range(n_splits)]
        n_held_out = n * n_splits

    def ndcg(training):
        if validation is None:
            found = [(training.without(rows).best(rows, k)[1], y[rows]) for rows in splits]
        else:
            training.run(progress=False)
            kernels = kernel_values(similarities, training.settings.power)
            found = [(to_numpy(training.network.best(neighbors, kernels, k)[1]), validation[1])]
        return float(np.mean([metrics.ndcg_at_k(ids, labels, k) for ids, labels in found]))

    def score(power, c):
        if (power, c) not in results:
            tried = replace(settings, power=power, C=c, epochs=min(TRIAL_EPOCHS, settings.epochs))
            try:
                results[power, c] = ndcg(KernelTraining(points, y, tried, device, sample_weight=sample_weight))
            except TrainingError:
                results[power, c] = 0.0
            trials.append({"power": power, "kernel_C": c, "nDCG@5": results[power, c]})
        return results[power, c]

    grids = GRID_POWER if "power" in wanted else None, GRID_C if "C" in wanted else None
    power, c = climb_in_turns(grids, (settings.power, settings.C), score, n_held_out)
    return replace(settings, power=power, C=c), trials


def memory(*, n_rows, n_inputs, n_labels, n_neighbors, largest_row):
    """The arrays of training a kernel machine over embeddings, as a list of `memory.Array`.

    `largest_row` is the largest number of own labels of a row.
    """
    width, block = largest_row + OTHER_DUALS, min(n_rows, ROWS_PER_BLOCK)
    rows_at_once = max(n_rows, ROWS_PER_PREDICTION)
    return [
        array(ALWAYS, "kernel: points", n_rows, n_inputs),
        array(ALWAYS, "kernel: neighbors, similarities, kernels", 3, n_rows, min(n_neighbors, n_rows)),
        array(ALWAYS, "kernel: lists of dual variables", n_rows, 1 + 2 * width),
        array("kernel: held-out rows", "lists of dual variables", n_rows, 1 + 2 * width),
        array("kernel: search", "products", max(n_rows, min(MAX_SCORES, block * n_rows))),
        array(PREDICTION, "kernel: dual variables", 2 * DUALS_PER_ROW, n_rows),
        array(PREDICTION, "scores of some rows", max(n_labels, min(MAX_SCORES, rows_at_once * n_labels))),
    ]
