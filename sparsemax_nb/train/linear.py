"""Training of the linear layer over sparse features by dual coordinate descent, and its memory plan."""

from dataclasses import asdict, dataclass, replace

import numba
import numpy as np
import scipy.sparse

from ..co_occurrence import CoOccurrence
from ..core import check, sparse
from ..core.connections import Duals, FeatureLists
from ..core.device import asarray, backend_of, to_numpy
from ..cpu.linear import CHUNKS
from ..data.batches import shuffled
from ..feature_choice import ENTRIES_PER_CHUNK, check_squares, choose_lists, extended_lists, more_features
from ..linear import SparseLinear, no_duals
from . import held_out as held_out_rows
from . import loop
from .dual_run import DualRun, batch_size_of, restored_position
from .linear_file import layer_from_arrays
from .memory import ALWAYS, PREDICTION, Plan, array
from .models import CANDIDATES, ROWS_PER_PREDICTION, LinearModel, frequency_prior, frequency_tie_break
from .outputs import UNSEEN_SCORE

#: Rows whose features are weighted at once. Limits the memory of the temporary copies.
ROWS_PER_CHUNK = 1 << 16


@dataclass(frozen=True)
class Settings:
    """Settings for training a linear layer; see `Classifier` for their meaning."""

    C: float
    slack: float
    frequency: float
    co_occurrence: float
    features_per_point: float
    min_features: int
    extra_features: float
    epochs: int
    seed: int


def weighted_rows(x, y, sample_weight):
    """The rows of x and y whose weight is not 0, their weights, float32, and their numbers; None: every row weighs 1.

    ValueError if all weights are 0.
    """
    if sample_weight is None:
        return x, y, np.ones(x.shape[0], np.float32), np.arange(x.shape[0])
    if sample_weight.all():
        return x, y, sample_weight, np.arange(x.shape[0])
    rows = np.flatnonzero(sample_weight)
    if not len(rows):
        raise ValueError("sample_weight must be above 0 for at least one row, got only zeros")
    return x[rows], y[rows], sample_weight[rows], rows


class DualTraining(DualRun):
    """A training run of a linear layer.

    The losses of the `History` are means over the rows: sums weighted by `sample_weight`, divided by the sum of the
    weights.

    Parameters
    ----------
    x : (N, F) canonical SciPy CSR matrix, float32
    y : (N, L) SciPy CSR matrix of ones
    settings : Settings
    device : 'cpu' or 'cuda'
    dense : (D,) integers or None
        Features connected to all labels, see `SparseLinear.choose`.
    lists : FeatureLists or None
        A trained layer to continue from; its features are kept.
    n_points : (L,) integers or None
        Number of points per label, including earlier ones; None counts those of `y`.
    pairs : CoOccurrence or None
        Co-occurrence counts that include earlier points; None counts those of `y` if the settings use them.
    validate : callable or None
        ``validate() -> dict`` of metrics, called after each epoch.
    budget_seconds : float or None
    sample_weight : (N,) float32 or None
        At least 0: the weight of each row, a factor of C; None: all are 1. Rows of weight 0 are left out first,
        also before points are counted. The choice of features before the first epoch does not use the weights.
    is_name : (N,) bool or None
        The rows that are names of labels: they are not held out, and their labels do not co-occur.
    held_out : bool
        Whether `run` also sets the attribute `held_out`: the predictions for rows that the layer had not been trained
        on, as `HeldOut`, for the calibration of its scores. From 10,000 rows on, these rows join the training after the
        first epochs, so that the trained layer knows all rows. Smaller sets are split into folds, each predicted by a
        layer that is trained on the others; the layer of this run does not depend on them.
    as_new : callable or None
        ``as_new(rows, others)``, the held-out rows (CSR) as they would be if only the others were known.
    """

    def __init__(
        self,
        x,
        y,
        settings,
        device="cpu",
        *,
        dense=None,
        lists=None,
        n_points=None,
        pairs=None,
        validate=None,
        budget_seconds=None,
        sample_weight=None,
        is_name=None,
        held_out=False,
        as_new=None,
    ):
        super().__init__(settings.epochs, budget_seconds)
        self.settings = settings
        self.device = device
        self.validate = validate
        x, y, sample_weight, rows = weighted_rows(x, y, sample_weight)
        self.n_rows = x.shape[0]
        batch_size = batch_size_of(self.n_rows)
        start = loop.clock()
        check_squares("X", x.data, x.indptr)
        n_late = held_out_rows.n_late_batches(self.n_rows, batch_size) if held_out else 0
        self._n_early = -(-self.n_rows // batch_size) - n_late
        self._joining_epoch = held_out_rows.joining_epoch(settings.epochs)
        order = shuffled(self.n_rows, settings.seed, 0)
        self._is_name = np.zeros(self.n_rows, bool)
        if is_name is not None:
            is_name = is_name[rows]
            order = held_out_rows.names_not_last(order, is_name, self.n_rows - self._n_early * batch_size)
            self._is_name = is_name[order]
        self._x, self._y, self._row_weights = x[order], y[order], sample_weight[order]  # so that each batch is a slice
        starts = range(0, self.n_rows, batch_size)
        self._batches = [slice(first, min(first + batch_size, self.n_rows)) for first in starts]
        self._as_new = as_new or (lambda rows, _: rows)
        self.held_out, self._row_ids = None, rows[order] if held_out else None
        self._n_early_rows = self._batches[self._n_early].start if n_late else self.n_rows
        self._n_points = np.bincount(self._y.indices, minlength=y.shape[1]) if n_points is None else n_points
        if lists is None:
            early = (_first_rows(matrix, self._n_early_rows) for matrix in (self._x, self._y))
            lists = choose_lists(*early, settings.features_per_point, settings.min_features, dense)
        prior = frequency_prior(settings.frequency, self._n_points, device)
        layer = SparseLinear._from_lists(self._with_bias(lists), device)
        self.network = self._new_model(layer, prior, pairs)
        self._duals = [no_duals(rows.stop - rows.start, device) for rows in self._batches]
        self._total_steps = settings.epochs * len(self._batches) - self._joining_epoch * n_late
        # Buffer sizes of the kernel, in pairs and entries per chunk of rows; the kernel raises them as needed.
        self._capacity = [1 << 12, 1 << 14]
        self.history.first_step_seconds = loop.clock() - start  # includes compilation

    def _new_model(self, layer, prior, pairs):
        return LinearModel(layer, prior, pairs, self.settings.co_occurrence)

    def _with_bias(self, lists):
        """The lists with the bias of labels that have their numbers of points; it is changed in place."""
        lists.bias[:] += frequency_tie_break(self._n_points, self.settings.slack)
        lists.bias[self._n_points == 0] = UNSEEN_SCORE
        return lists

    # ------------------------------------------------------------ checkpoints

    def state(self):
        """(arrays, description) for a checkpoint, from which a run continues bit for bit."""
        arrays = {f"parameters/{name}": array for name, array in self.network.layer_parameters.items()}
        for name in Duals._fields:
            arrays[f"duals/{name}"] = np.concatenate([to_numpy(getattr(d, name)) for d in self._duals])
        if self.held_out is not None:
            arrays |= held_out_rows.to_arrays(self.held_out)
        about = {"history": asdict(self.history), "position": asdict(self._position), "n_rows": self.n_rows}
        return {name: to_numpy(array) for name, array in arrays.items()}, about

    @property
    def checkpoint_nbytes(self):
        """Bytes of the arrays of a checkpoint."""
        held_out = sum(array.nbytes for array in self.held_out or ())
        return self.network.layer.nbytes + held_out + sum(array.nbytes for duals in self._duals for array in duals)

    def restore(self, arrays, about):
        """Continue from a result of `state`; KeyError, TypeError or ValueError if it does not fit."""
        history, position = restored_position(about, lambda epoch: len(self._order_in(epoch)))
        layer = self.network.layer
        parameters = {
            name.removeprefix("parameters/"): arrays[name] for name in arrays if name.startswith("parameters/")
        }
        restored = layer_from_arrays(parameters, layer.n_features, layer.n_labels, self.device)
        indptr = check.array("duals/indptr", arrays["duals/indptr"], np.int64, (self.n_rows + len(self._batches),))
        labels = check.array("duals/labels", arrays["duals/labels"], np.int32, ("n",))
        values = check.array("duals/values", arrays["duals/values"], np.float32, labels.shape)
        check.in_range("duals/labels", labels, layer.n_labels)
        check.finite("duals/values", values)
        if values.size and values.min() < 0:
            raise ValueError(f"duals/values must not be negative, got {values.min()}")
        duals, position_in_indptr, n_read = [], 0, 0
        for rows in self._batches:
            part = indptr[position_in_indptr : position_in_indptr + rows.stop - rows.start + 1]
            position_in_indptr += len(part)
            entries = slice(n_read, n_read + int(part[-1]))
            n_read = entries.stop
            if part[0] != 0 or (part[1:] < part[:-1]).any() or n_read > len(labels):
                raise ValueError("duals/indptr must rise from 0 in every batch")
            sparse.sorted_keys(sparse.Labels(part, labels[entries]), layer.n_labels, "duals")
            duals.append(Duals(*(asarray(a, self.device) for a in (part, labels[entries], values[entries]))))
        if n_read != len(labels):
            raise ValueError("duals/indptr must end with the number of duals/labels")
        self.held_out = self._restored_held_out(arrays, position)
        self.network.layer, self._duals = restored, duals
        self.history, self._position = history, position

    # ------------------------------------------------------------ held-out rows

    def _order_in(self, epoch):
        """The batches that an epoch visits, in order. Late batches are left out before the epoch in which they join."""
        order = shuffled(len(self._batches), self.settings.seed, epoch + 1)
        if epoch > self._joining_epoch:
            return order
        is_late = order >= self._n_early
        return np.concatenate([order[~is_late], order[is_late & (epoch == self._joining_epoch)]])

    def _n_late_points(self):
        """(L,) number of points of each label among the rows that join late."""
        return np.bincount(self._y.indices[self._y.indptr[self._n_early_rows] :], minlength=self._y.shape[1])

    def _admit_late_rows(self):
        """Predict the late rows, and give labels the most distinctive features of these rows: they join now."""
        self.held_out = self._predict_late_rows()
        rows, settings = slice(self._n_early_rows, None), self.settings
        n_early = self._n_points - self._n_late_points()
        lists = FeatureLists(*map(to_numpy, self.network.layer.arrays))
        lists = extended_lists(
            lists, self._x[rows], self._y[rows], settings.features_per_point, settings.min_features, n_early
        )
        self.network.layer = SparseLinear._from_lists(self._with_bias(lists), self.device)

    @property
    def _k(self):
        return min(CANDIDATES, self._y.shape[1])

    def _predict_late_rows(self):
        """`HeldOut` of the late batches, before they join."""
        first, settings, n_points = self._n_early_rows, self.settings, self._n_points - self._n_late_points()
        bias = to_numpy(self.network.layer.bias).copy()
        bias[n_points == 0] = UNSEEN_SCORE
        lists = self.network.layer.arrays._replace(bias=asarray(bias, self.device))
        model = LinearModel(
            SparseLinear._from_lists(lists, self.device),
            frequency_prior(settings.frequency, n_points, self.device),
            self._counted_pairs(first) if settings.co_occurrence > 0 else None,
            settings.co_occurrence,
        )
        x = self._as_new(self._x[first:], _first_rows(self._x, first))
        return self._chosen([self._predicted(model, x, n_points, self._row_ids[first:])])

    def _predicted(self, model, x, n_points, rows):
        """Candidates for the `HeldOut` of these rows with the features x, one of which `_chosen` takes."""
        scores, ids = loop.top_k(model, len(rows), lambda batch: x[batch], self._k, ROWS_PER_PREDICTION)
        return [held_out_rows.HeldOut(scores, ids, n_points[ids], rows)]

    def _chosen(self, parts):
        """The `HeldOut` of all parts, a list with the candidates of each."""
        return held_out_rows.joined([candidates[0] for candidates in parts], self._k)

    def _predict_folds(self):
        """`HeldOut` of the rows of a small set, by layers that are trained on the other rows."""
        parts, settings = [], replace(self.settings, epochs=min(held_out_rows.EPOCHS, self.settings.epochs))
        points = np.flatnonzero(~self._is_name)
        for fold in held_out_rows.folds(len(points)):
            fold = points[fold]
            others = np.delete(np.arange(self.n_rows), fold)
            training = DualTraining(
                self._x[others],
                self._y[others],
                settings,
                self.device,
                sample_weight=self._row_weights[others],
                is_name=self._is_name[others],
            )
            training.run(progress=False)
            model, n_points, rows = training.network, training._n_points, self._row_ids[fold]
            x = self._as_new(self._x[fold], self._x[others])
            parts.append(self._predicted(model, x, n_points, rows))
        return self._chosen(parts)

    def _restored_held_out(self, arrays, position):
        """`HeldOut` of a checkpoint, None before the late batches have joined; KeyError, TypeError or ValueError."""
        n_late = len(self._batches) - self._n_early
        if not n_late or (position.epoch, position.step) <= (self._joining_epoch, self._n_early):
            return None
        rows = self._row_ids[self._n_early_rows :]
        return held_out_rows.from_arrays(arrays, rows, self._k, self._y.shape[1])

    # ------------------------------------------------------------ the loop

    def run(self, *, after_epoch=None, **options):
        """As `Run.run`, but only once: it frees the training data. Even after an error the model can predict."""
        self._predicts_in_between = self.validate is not None or after_epoch is not None
        try:
            super().run(after_epoch=after_epoch, **options)
            if self._row_ids is not None and self.held_out is None:
                # A small set, or a time budget that ended before the late batches joined.
                has_late = self._n_early < len(self._batches)
                self.held_out = self._predict_late_rows() if has_late else self._predict_folds()
            return self.history
        finally:
            del self._duals, self._x  # frees memory before the pairs are counted
            self._count_pairs()

    def _count_pairs(self):
        """Count the co-occurrences of labels, unless that has been done."""
        if self.network.pairs is None and self.settings.co_occurrence > 0:
            self.network.pairs = self._counted_pairs(self.n_rows)

    def _counted_pairs(self, n_rows):
        """`CoOccurrence` of the first rows in training order, without names."""
        is_point = ~self._is_name[:n_rows]
        labels = _first_rows(self._y, n_rows)
        return CoOccurrence(labels if is_point.all() else labels[is_point], device=self.device)

    def _step(self):
        """One step over the next batch; after the first epoch each label gets more features."""
        if self._position.step == 0 or self._order is None:
            self._order = self._order_in(self._position.epoch)
        number = self._order[self._position.step]
        rows, settings, layer = self._batches[number], self.settings, self.network.layer
        if number >= self._n_early and self._position.epoch == self._joining_epoch and self.held_out is None:
            self._admit_late_rows()
            layer = self.network.layer
        x = sparse.SparseRows(*(asarray(a, self.device) for a in csr_slice(self._x, rows)))
        labels = sparse.Labels(*(asarray(a, self.device) for a in csr_slice(self._y, rows)[:2]))
        row_weights = self._row_weights[rows]
        loss, self._duals[number] = backend_of(self.device, "linear").step(
            x,
            labels,
            self._duals[number],
            layer.arrays,
            asarray(row_weights, self.device),
            settings.C,
            settings.slack,
            self._capacity,
        )
        self._note_step(loss, row_weights.sum(dtype=np.float64))
        if self._is_epoch_done() and self._position.epoch + 1 < settings.epochs:
            self._add_features()

    def _add_features(self):
        """Give labels more features, chosen by their errors so far, after the first epoch and when late rows joined."""
        epoch, extra = self._position.epoch, self.settings.extra_features
        share = np.full(len(self._n_points), extra if epoch == 0 else 0.0)
        if epoch == self._joining_epoch and epoch > 0 and self._n_early < len(self._batches):
            n_late = self._n_late_points()
            n_early = self._n_points - n_late
            share = extra * np.where(n_early > 0, n_late / np.maximum(n_early, 1), 1.0)
        if share.any():
            arrays = FeatureLists(*map(to_numpy, self.network.layer.arrays))
            duals = [Duals(*map(to_numpy, of_batch)) for of_batch in self._duals]
            lists = more_features(arrays, self._x, self._y, duals, share)
            self.network.layer = SparseLinear._from_lists(lists, self.device)

    def _finish_epoch(self):
        if self._predicts_in_between:
            self._count_pairs()
        super()._finish_epoch()


#: Positive dual variables per row: the largest mean over the rows of a data set that we have seen.
DUALS_PER_ROW = 128
#: Bytes per row of a step's (row, label) pairs and entries: the largest that we have seen.
PAIR_BYTES_PER_ROW = 32_768


def memory(
    *,
    n_rows,
    n_features,
    n_labels,
    n_entries,
    points,
    features_per_point,
    min_features,
    extra_features,
    n_pairs,
    held_out=False,
):
    """The `Plan` of training a linear layer over sparse features.

    `points` (L,) is the number of training points of each label; `n_pairs` bounds the pairs of labels that co-occur.
    `held_out` is that of `DualTraining`.
    """
    arrays, threads = [], numba.config.NUMBA_NUM_THREADS
    features_per_row = n_entries / max(1, n_rows)

    def add(phase, name, *shape, item=4):
        arrays.append(array(phase, name, *shape, item=item))

    chosen = np.minimum(np.maximum(min_features, features_per_point * points), n_features)
    late_share = held_out_rows.n_late_rows(n_rows) / max(1, n_rows) if held_out else 0
    # A label cannot have more features than its points have. Those of late rows come on top of `min_features`.
    n = int(np.minimum(chosen, features_per_row * points).sum() * (1 + extra_features + 2 * late_share))
    add(ALWAYS, "features: ids, weights, in training order", 2, 2, n_entries)
    add(ALWAYS, "features, labels: ends of the rows", 2, 2, n_rows)
    add(ALWAYS, "weights of the rows, in both orders", 2, n_rows)
    add(ALWAYS, "labels of the rows, in training order", 2, 2, int(points.sum()))
    add(ALWAYS, "layer: lists of labels, weights", 2, n)
    add(ALWAYS, "layer: bias, starts of the lists", n_labels + 4 * n_features)
    add(ALWAYS, "dual variables: labels, values", 2 * DUALS_PER_ROW, n_rows)
    add(ALWAYS, "co-occurring labels: ids, counts", 2, n_pairs)
    add("counting of pairs", "ids and counts once more", 2, n_pairs)
    add("counting of pairs", "labels, twice", 4, int(points.sum()))
    if held_out:
        add("counting of pairs", "pairs of all rows, of the other rows", 2, n_pairs)
        add("counting of pairs", "features of the late rows", 2, int(late_share * n_entries))
    add("choice of features", "rows by label", 2, int(points.sum()) + 3 * n_labels)
    add("choice of features", "lists before, and additions", 2, n)
    add(
        "choice of features",
        "dual variables and features by label",
        4,
        min(ENTRIES_PER_CHUNK, n + DUALS_PER_ROW * n_rows),
    )
    add("choice of features", "sums of all features", 16 * 4, n_features)
    add("step", "pairs and entries", 1024, PAIR_BYTES_PER_ROW, item=1)
    add("step", "scores of a row, positions of its pairs", 2 * min(CHUNKS, threads), n_labels)
    add(PREDICTION, "scores of a row", threads, n_labels)
    return Plan(arrays)


def csr_slice(matrix, rows):
    """(indptr, ids, values) of a slice of rows of a CSR matrix; ids and values are views."""
    first, last = matrix.indptr[rows.start], matrix.indptr[rows.stop]
    indptr = (matrix.indptr[rows.start : rows.stop + 1] - first).astype(np.int64)
    return indptr, matrix.indices[first:last].astype(np.int32, copy=False), matrix.data[first:last]


def _first_rows(matrix, n):
    """The first n rows of a CSR matrix: a matrix around views of its arrays."""
    end = matrix.indptr[n]
    arrays = matrix.data[:end], matrix.indices[:end], matrix.indptr[: n + 1]
    return scipy.sparse.csr_matrix(arrays, shape=(n, matrix.shape[1]))


def weighted_csr(weighted_rows, n_rows, n_features, n_entries):
    """(N, F) canonical CSR matrix, float32, put together from chunks ``weighted_rows(row_ids)``."""
    indptr, n_written = np.zeros(n_rows + 1, np.int64), 0
    ids, weights = np.empty(n_entries, np.int32), np.empty(n_entries, np.float32)
    for first in range(0, n_rows, ROWS_PER_CHUNK):
        rows = np.arange(first, min(first + ROWS_PER_CHUNK, n_rows))
        part = weighted_rows(rows)
        if not part.has_canonical_format:
            part.sum_duplicates()
        indptr[first + 1 : rows[-1] + 2] = n_written + part.indptr[1:]
        end = n_written + part.nnz
        ids[n_written:end], weights[n_written:end] = part.indices, part.data
        n_written = end
    return scipy.sparse.csr_matrix((weights[:n_written], ids[:n_written], indptr), shape=(n_rows, n_features))
