"""Training of the linear layer over sparse features: passes of dual coordinate descent, and the choice of its settings."""

import math
from dataclasses import asdict, dataclass, field

import numba
import numpy as np
import scipy.sparse

from ..co_occurrence import CoOccurrence, rerank_checked
from ..core import check, description, sparse
from ..core.connections import Duals, FeatureLists
from ..core.device import asarray, backend_of, empty, module_of, to_numpy
from ..cpu.linear import CHUNKS
from ..cpu.panels import padded
from ..cpu.simd import LANES
from ..data.batches import shuffled
from ..linear import AT_ONCE, SparseLinear, check_squares, choose_lists, more_features, no_duals, rows_of
from . import loop
from .loop import FIGURE, History, Run, TrainingError, peak_memory
from .memory import Plan, array
from .outputs import LAST

#: What a label's score gains for the logarithm of its number of points: where words say nothing, frequent labels come
#: first.
TIE = 1e-3
#: Rows of a step, at most; smaller sets are cut into so many steps a pass, at least.
BATCH, STEPS = 1024, 64
#: The best labels of a row that are reranked by which of them occur together.
CANDIDATES = 20
#: Rows whose features are weighed at once, and rows of a query.
WEIGHED, ANSWERED = 1 << 16, 4096


@dataclass(frozen=True)
class Settings:
    """What governs the training of a linear layer; see `Classifier` for the meaning of each."""

    C: float
    slack: float
    frequency: float
    co_occurrence: float
    features_per_point: float
    min_features: int
    extra_features: float
    epochs: int
    seed: int


class LinearModel:
    """A linear layer as a model that `Classifier` can ask: `top_k`, `parameters`.

    Parameters
    ----------
    layer : SparseLinear
    prior : (L,) float32 or None
        What is added to the scores where labels are asked for; training knows nothing of it.
    pairs : CoOccurrence or None
        What the best 20 labels are reranked by; training knows nothing of it, either.
    weight : float
        Of `rerank`.
    """

    def __init__(self, layer, prior=None, pairs=None, weight=0.0):
        self.layer, self.prior, self.pairs, self.weight = layer, prior, pairs, weight

    device = property(lambda self: self.layer.device)

    @property
    def parameters(self):
        """All arrays by name."""
        return {f"linear.{name}": array for name, array in self.layer.arrays._asdict().items()}

    @property
    def nbytes(self):
        """Bytes of all arrays."""
        return self.layer.nbytes + sum(part.nbytes for part in (self.prior, self.pairs) if part is not None)

    output_nbytes = nbytes

    def top_k(self, x, k):
        """The k best labels of each row of a SciPy CSR matrix: scores, ids (B, k)."""
        arrays, rows = self.layer.arrays, rows_of(x, self.device)
        if self.prior is not None:
            arrays = arrays._replace(bias=arrays.bias + self.prior)
        n, is_plain = min(CANDIDATES, self.layer.n_labels), self.pairs is None or k == 1  # the best one stays the best
        shape = x.shape[0], k if is_plain else max(k, n)
        scores, ids = empty(shape, np.float32, self.device), empty(shape, np.int32, self.device)
        backend_of(self.device, "linear").top_k(rows, arrays, scores, ids)
        if is_plain:
            return scores, ids
        best = (module_of(self.device).ascontiguousarray(a[:, :n]) for a in (scores, ids))
        best = rerank_checked(*best, self.pairs, min(k, n), self.weight)
        if k <= n:
            return best
        scores[:, :n], ids[:, :n] = best
        return scores, ids


def prior_of(frequency, n_points, device="cpu"):
    """(L,) float32, ``frequency`` times the logarithm of the labels' numbers of points; None where that is 0 for all."""
    if frequency == 0:
        return None
    return asarray((frequency * np.log(np.maximum(n_points, 1))).astype(np.float32), device)


def layer_of(arrays, n_features, n_labels, device):
    """The layer that `LinearModel.parameters` were taken from; TypeError or ValueError where the arrays are no such thing."""
    lists = FeatureLists(*(arrays[f"linear.{name}"] for name in FeatureLists._fields))
    return SparseLinear._of(checked(lists, n_features, n_labels), device)


def pairs_of(arrays, n_labels, device):
    """The `CoOccurrence` whose arrays a file holds; errors as for `layer_of`."""
    indptr = check.array("co_occurrence.indptr", arrays["co_occurrence.indptr"], np.int64, (n_labels + 1,))
    ids = check.array("co_occurrence.ids", arrays["co_occurrence.ids"], np.int32, ("n",))
    counts = check.array("co_occurrence.counts", arrays["co_occurrence.counts"], np.int32, ids.shape)
    label_counts = check.array(
        "co_occurrence.label_counts", arrays["co_occurrence.label_counts"], np.int32, (n_labels,)
    )
    n_rows = int(check.array("co_occurrence.n_rows", arrays["co_occurrence.n_rows"], np.int64, (1,))[0])
    check.below("co_occurrence.ids", ids, n_labels)
    check.integer("co_occurrence.n_rows", n_rows, 0, 2**31 - 1)
    check.below("co_occurrence.label_counts", label_counts, n_rows + 1)
    first = _checked_lists("co_occurrence.indptr", indptr, "co_occurrence.ids", ids, n_labels, "the list of a label")
    if (ids <= first).any():
        raise ValueError("co_occurrence.ids must be larger than the label of their list")
    if (counts < 1).any() or (counts > np.minimum(label_counts[first], label_counts[ids])).any():
        raise ValueError("co_occurrence.counts must lie between 1 and the points of each of the two labels")
    pairs = scipy.sparse.csr_matrix((counts, ids, indptr), shape=(n_labels, n_labels))
    return CoOccurrence._of(pairs, label_counts, n_rows, device)


def arrays_of(pairs):
    """The arrays that `pairs_of` reads, NumPy, by name."""
    arrays = {name: to_numpy(getattr(pairs.arrays, name)) for name in ("indptr", "ids", "counts", "label_counts")}
    return {
        f"co_occurrence.{name}": array
        for name, array in (arrays | {"n_rows": np.array([pairs.n_rows], np.int64)}).items()
    }


def _checked_lists(indptr_name, indptr, ids_name, ids, n, whole):
    """(len(ids),) int64, the list of each id below n; ValueError where indptr does not rise, or ids do not ascend in a list."""
    if indptr[0] != 0 or indptr[-1] != len(ids) or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(f"{indptr_name} must rise from 0 to {len(ids)}")
    of_each = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    keys = of_each * n + ids
    if (keys[1:] <= keys[:-1]).any():
        raise ValueError(f"{ids_name} must ascend within {whole}")
    return of_each


def checked(lists, n_features, n_labels):
    """`FeatureLists` from a file, in which every index leads where it should; TypeError or ValueError for others."""
    indptr = check.array("linear.indptr", lists.indptr, np.int64, (n_features + 1,))
    labels = check.array("linear.labels", lists.labels, np.int32, ("n",))
    values = check.array("linear.values", lists.values, np.float32, ("m",))
    dense = check.array("linear.dense", lists.dense, np.int64, (n_features,))
    bias = check.array("linear.bias", lists.bias, np.float32, (n_labels,))
    check.below("linear.labels", labels, n_labels)
    _checked_lists("linear.indptr", indptr, "linear.labels", labels, n_labels, "a feature")
    first, width = padded(len(labels), LANES), padded(n_labels, LANES)
    starts = dense[dense >= 0]
    if np.diff(indptr)[dense >= 0].any():
        raise ValueError("linear.indptr must leave the lists of features that are connected to all labels empty")
    if len(values) != first + len(starts) * width or not np.array_equal(starts, first + width * np.arange(len(starts))):
        raise ValueError("linear.values and linear.dense do not agree")
    check.finite("linear.values", values)
    check.finite("linear.bias", bias)
    if values[first:].reshape(-1, width)[:, n_labels:].any() or values[len(labels) : first].any():
        raise ValueError("linear.values must be zero where there is no label")
    return FeatureLists(indptr, labels, values, dense, bias)


@dataclass
class _Position:
    """Where a run stands between two steps, beside the arrays."""

    epoch: int = 0
    step: int = 0  # of the epoch
    losses: list = field(default_factory=list)  # of this epoch: [batch's loss, its rows]


class DualTraining(Run):
    """One run of training a linear layer.

    Parameters
    ----------
    x : (N, F) canonical SciPy CSR matrix, float32
    y : (N, L) SciPy CSR matrix of ones
    settings : Settings
    device : 'cpu' or 'cuda'
    dense : (D,) integers or None
        Features connected to all labels, see `SparseLinear.choose`.
    lists : FeatureLists or None
        A layer that is trained already, to go on from; its features are not chosen anew.
    n_points : (L,) integers or None
        Points of each label, if others were seen before these.
    pairs : CoOccurrence or None
        Counts of the labels that occur together, if there were points before these; else those of `y`, where the
        settings give them a weight.
    validate : callable or None
        ``validate() -> dict`` of figures, called after every epoch.
    budget_seconds : float or None
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
    ):
        self.settings, self.device, self.validate = settings, device, validate
        self._epochs, self._budget_seconds = settings.epochs, budget_seconds
        self.n_rows = x.shape[0]
        batch = min(BATCH, max(1, -(-self.n_rows // STEPS)))
        start = loop.clock()
        check_squares("X", x.data, x.indptr)
        order = shuffled(self.n_rows, settings.seed, 0)
        self._x, self._y = x[order], y[order]  # a batch is a slice of them
        if lists is None:
            lists = choose_lists(self._x, self._y, settings.features_per_point, settings.min_features, dense)
        n_points = np.bincount(self._y.indices, minlength=y.shape[1]) if n_points is None else n_points
        # not above the threshold, or every label would be looked at in every row
        lists.bias[:] += np.minimum(TIE * np.log(np.maximum(n_points, 1)), settings.slack / 2).astype(np.float32)
        lists.bias[n_points == 0] = LAST
        prior = prior_of(settings.frequency, n_points, device)
        self.network = LinearModel(SparseLinear._of(lists, device), prior, pairs, settings.co_occurrence)
        self._batches = [slice(first, min(first + batch, self.n_rows)) for first in range(0, self.n_rows, batch)]
        self._duals = [no_duals(rows.stop - rows.start, device) for rows in self._batches]
        self._total_steps = settings.epochs * len(self._batches)
        self._room = [1 << 12, 1 << 14]  # pairs and entries of a chunk of rows, as the kernels need them
        self.history, self._position = History(), _Position()
        self._order = None  # this epoch's order of the batches
        self.history.first_step_seconds = loop.clock() - start  # it may compile

    # ------------------------------------------------------------ checkpoints

    def state(self):
        """(arrays, description) for a checkpoint: the run continues from it bit for bit."""
        arrays = {f"parameters/{name}": array for name, array in self.network.parameters.items()}
        for name in Duals._fields:
            arrays[f"duals/{name}"] = np.concatenate([to_numpy(getattr(d, name)) for d in self._duals])
        about = {"history": asdict(self.history), "position": asdict(self._position), "n_rows": self.n_rows}
        return {name: to_numpy(array) for name, array in arrays.items()}, about

    @property
    def checkpoint_nbytes(self):
        """Bytes of the arrays of a checkpoint."""
        return self.network.layer.nbytes + sum(array.nbytes for duals in self._duals for array in duals)

    def restore(self, arrays, about):
        """Continue where `state` was taken; KeyError, TypeError or ValueError for a state that does not fit."""
        DESCRIPTION("description", about)
        position = _Position(**about["position"])
        check.integer("position.step", position.step, 0, len(self._batches) - 1)
        if len(about["history"]["epochs"]) != position.epoch:
            raise ValueError(f"history.epochs must be {position.epoch} epochs")
        if len(position.losses) != position.step or any(rows <= 0 for _, rows in position.losses):
            raise ValueError("position.losses must be those of the epoch's steps")
        layer = self.network.layer
        parameters = {
            name.removeprefix("parameters/"): arrays[name] for name in arrays if name.startswith("parameters/")
        }
        restored = layer_of(parameters, layer.n_features, layer.n_labels, self.device)
        indptr = check.array("duals/indptr", arrays["duals/indptr"], np.int64, (self.n_rows + len(self._batches),))
        labels = check.array("duals/labels", arrays["duals/labels"], np.int32, ("n",))
        values = check.array("duals/values", arrays["duals/values"], np.float32, labels.shape)
        check.below("duals/labels", labels, layer.n_labels)
        check.finite("duals/values", values)
        if values.size and values.min() < 0:
            raise ValueError(f"duals/values must not be negative, got {values.min()}")
        duals, at, done = [], 0, 0
        for rows in self._batches:
            part = indptr[at : at + rows.stop - rows.start + 1]
            at += len(part)
            some = slice(done, done + int(part[-1]))
            done = some.stop
            if part[0] != 0 or (part[1:] < part[:-1]).any() or done > len(labels):
                raise ValueError("duals/indptr must rise from 0 in every batch")
            sparse.sorted_keys(sparse.Labels(part, labels[some]), layer.n_labels, "duals")
            duals.append(Duals(*(asarray(a, self.device) for a in (part, labels[some], values[some]))))
        if done != len(labels):
            raise ValueError("duals/indptr must end with the number of duals/labels")
        self.network.layer, self._duals = restored, duals
        self.history, self._position = History(**about["history"]), position

    # ------------------------------------------------------------ the loop

    def run(self, *, after_epoch=None, **options):
        """As `Run.run`, once; however it ends, the model can answer then, and what only training needs is gone."""
        self._answers_between = self.validate is not None or after_epoch is not None
        try:
            return super().run(after_epoch=after_epoch, **options)
        finally:
            del self._duals, self._x  # the pairs are counted in their place
            self._count_pairs()

    def _count_pairs(self):
        """Count the labels that occur together, if that has not been done."""
        if self.network.pairs is None and self.settings.co_occurrence > 0:
            self.network.pairs = CoOccurrence(self._y, device=self.device)

    def _epoch_ended(self):
        return self._position.step == len(self._batches)

    def _progress_text(self):
        total, rows = np.sum(self._position.losses[-200:], axis=0) if self._position.losses else (0, 1)
        shown = {"epoch": self._position.epoch + 1, "loss": f"{total / rows:.3f}"}
        return shown | {"GiB": f"{peak_memory() / 2**30:.2f}"}

    def _step(self):
        """One step over the batch whose turn it is; after the first epoch each label gets more features."""
        if self._position.step == 0 or self._order is None:
            self._order = shuffled(len(self._batches), self.settings.seed, self._position.epoch + 1)
        number = self._order[self._position.step]
        rows, settings, layer = self._batches[number], self.settings, self.network.layer
        x = sparse.SparseRows(*(asarray(a, self.device) for a in _part(self._x, rows)))
        labels = sparse.Labels(*(asarray(a, self.device) for a in _part(self._y, rows)[:2]))
        step = backend_of(self.device, "linear").step
        loss, self._duals[number] = step(
            x, labels, self._duals[number], layer.arrays, settings.C, settings.slack, self._room
        )
        if not math.isfinite(loss):
            raise TrainingError(f"step {self.history.steps}: the scores overflowed; scale the features down")
        self._position.losses.append([float(loss), rows.stop - rows.start])
        self._position.step += 1
        self.history.steps += 1
        if self._epoch_ended() and self._position.epoch == 0 and settings.extra_features > 0 and settings.epochs > 1:
            self._add_features()

    def _add_features(self):
        """Give each label more features, from its errors so far."""
        arrays = FeatureLists(*map(to_numpy, self.network.layer.arrays))
        duals = [Duals(*map(to_numpy, some)) for some in self._duals]
        lists = more_features(arrays, self._x, self._y, duals, self.settings.extra_features)
        self.network.layer = SparseLinear._of(lists, self.device)

    def _end_epoch(self):
        """Take down the epoch's figures."""
        if self._answers_between:
            self._count_pairs()
        at, history = self._position, self.history
        sums, rows = np.array(at.losses).T
        record = {
            "epoch": at.epoch,
            "steps": history.steps,
            "seconds": history.seconds,
            "loss": float(sums.sum() / rows.sum()),
            "loss_std": float((sums / rows).std()),
            "gradient_norms": {},
        }
        if self.validate is not None:
            record["validation"] = self.validate()
        history.epochs.append(record)
        at.epoch, at.step, at.losses = at.epoch + 1, 0, []


#: Dual variables above zero of a row, on average, at the most that was seen; pairs and entries of a step, in bytes a
#: row.
DUALS, PAIRS = 128, 32_768


def memory(
    *, n_rows, n_features, n_labels, n_entries, points, features_per_point, min_features, extra_features, n_pairs
):
    """The `Plan` of training a linear layer over sparse features; `points` (L,) are the training points of each label.

    `n_pairs` bounds the pairs of labels that occur together.
    """
    arrays, mean, threads = [], n_entries / max(1, n_rows), numba.config.NUMBA_NUM_THREADS

    def add(phase, name, *shape, item=4):
        arrays.append(array(phase, name, *shape, item=item))

    chosen = np.minimum(np.maximum(min_features, features_per_point * points), n_features)
    n = int(np.minimum(chosen, mean * points).sum() * (1 + extra_features))  # a label can not have more than its points
    add("always", "features: ids, weights, in the order of training", 2, 2, n_entries)
    add("always", "features, labels: ends of the rows", 2, 2, n_rows)
    add("always", "labels of the rows, in the order of training", 2, 2, int(points.sum()))
    add("always", "layer: lists of labels, weights", 2, n)
    add("always", "layer: bias, starts of the lists", n_labels + 4 * n_features)
    add("always", "dual variables: labels, values", 2 * DUALS, n_rows)
    add("always", "pairs of labels that occur together: ids, counts", 2, n_pairs)
    add("counting of pairs", "all of them once more", 2, n_pairs)
    add("counting of pairs", "labels, twice", 4, int(points.sum()))
    add("choice of features", "rows by label", 2, int(points.sum()) + 3 * n_labels)
    add("choice of features", "lists before, and what is added", 2, n)
    add("choice of features", "dual variables and features by label", 4, min(AT_ONCE, n + DUALS * n_rows))
    add("choice of features", "sums of all features", 16 * 4, n_features)
    add("step", "pairs and entries", 1024, PAIRS, item=1)
    add("step", "scores of a row, places of its pairs", 2 * min(CHUNKS, threads), n_labels)
    add("prediction", "scores of a row", threads, n_labels)
    return Plan(arrays)


def _part(matrix, rows):
    """(indptr, ids, values) of a slice of rows of a CSR matrix; ids and values are views."""
    first, last = matrix.indptr[rows.start], matrix.indptr[rows.stop]
    indptr = (matrix.indptr[rows.start : rows.stop + 1] - first).astype(np.int64)
    return indptr, matrix.indices[first:last].astype(np.int32, copy=False), matrix.data[first:last]


_COUNT, _SECONDS = description.integer(0), description.number(0)
#: What a checkpoint says of a run beside its arrays.
DESCRIPTION = description.record(
    n_rows=_COUNT,
    history=description.record(
        epochs=description.list_of(
            description.record(epoch=_COUNT, steps=_COUNT, seconds=_SECONDS, loss=FIGURE, loss_std=FIGURE)
        ),
        steps=_COUNT,
        seconds=_SECONDS,
        stopped=description.text,
    ),
    position=description.record(
        epoch=_COUNT, step=_COUNT, losses=description.list_of(description.list_of(description.number(), 2))
    ),
)


def weighed(batch, n_rows, n_features, n_entries):
    """(N, F) canonical CSR, float32, of what ``batch(rows)`` gives, some rows at a time."""
    indptr, at = np.zeros(n_rows + 1, np.int64), 0
    ids, weights = np.empty(n_entries, np.int32), np.empty(n_entries, np.float32)
    for first in range(0, n_rows, WEIGHED):
        rows = np.arange(first, min(first + WEIGHED, n_rows))
        part = batch(rows)
        if not part.has_canonical_format:
            part.sum_duplicates()
        indptr[first + 1 : rows[-1] + 2] = at + part.indptr[1:]
        ids[at : at + part.nnz], weights[at : at + part.nnz] = part.indices, part.data
        at += part.nnz
    return scipy.sparse.csr_matrix((weights[:at], ids[:at], indptr), shape=(n_rows, n_features))
