"""Training of the linear layer over sparse features: passes of dual coordinate descent, and the choice of its settings."""

import math
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import scipy.sparse

from .. import metrics
from ..co_occurrence import CoOccurrence, rerank_checked
from ..core import check, description, sparse
from ..core.connections import Duals, FeatureLists
from ..core.device import asarray, backend_of, empty, module_of, to_numpy
from ..cpu.panels import padded
from ..cpu.simd import LANES
from ..data.batches import shuffled
from ..linear import SparseLinear, check_squares, choose_lists, more_features, no_duals, rows_of
from . import loop
from .layers import LAST
from .loop import FIGURE, History, Run, TrainingError, peak_memory

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
        self.history, self._at = History(), _Position()
        self._order = None  # this epoch's order of the batches
        self.history.first_step_seconds = loop.clock() - start  # it may compile

    # ------------------------------------------------------------ checkpoints

    def state(self):
        """(arrays, description) for a checkpoint: the run continues from it bit for bit."""
        arrays = {f"parameters/{name}": array for name, array in self.network.parameters.items()}
        for name in Duals._fields:
            arrays[f"duals/{name}"] = np.concatenate([to_numpy(getattr(d, name)) for d in self._duals])
        about = {"history": asdict(self.history), "position": asdict(self._at), "n_rows": self.n_rows}
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
        self.history, self._at = History(**about["history"]), position

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
        return self._at.step == len(self._batches)

    def _shown(self):
        total, rows = np.sum(self._at.losses[-200:], axis=0) if self._at.losses else (0, 1)
        shown = {"epoch": self._at.epoch + 1, "loss": f"{total / rows:.3f}"}
        return shown | {"GiB": f"{peak_memory() / 2**30:.2f}"}

    def _step(self):
        """One step over the batch whose turn it is; after the first epoch each label gets more features."""
        if self._at.step == 0 or self._order is None:
            self._order = shuffled(len(self._batches), self.settings.seed, self._at.epoch + 1)
        number = self._order[self._at.step]
        rows, settings, layer = self._batches[number], self.settings, self.network.layer
        x = sparse.SparseRows(*(asarray(a, self.device) for a in _part(self._x, rows)))
        labels = sparse.Labels(*(asarray(a, self.device) for a in _part(self._y, rows)[:2]))
        step = backend_of(self.device, "linear").step
        loss, self._duals[number] = step(
            x, labels, self._duals[number], layer.arrays, settings.C, settings.slack, self._room
        )
        if not math.isfinite(loss):
            raise TrainingError(f"step {self.history.steps}: the scores overflowed; scale the features down")
        self._at.losses.append([float(loss), rows.stop - rows.start])
        self._at.step += 1
        self.history.steps += 1
        if self._epoch_ended() and self._at.epoch == 0 and settings.extra_features > 0 and settings.epochs > 1:
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
        at, history = self._at, self.history
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


# ---------------------------------------------------------------- C, slack and frequency from the data

#: Where the search begins, and the values that it may take.
FIRST = 0.5, 0.2
GRID_C, GRID_SLACK = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0), (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
#: Values of frequency, and the answers of a row that each puts in its order.
FREQUENCIES, REORDERED = (0.0, 0.01, 0.02, 0.05, 0.1), 20
#: A value must be better by this share of its figure, and of C and slack by so many of the rows held back: less is
#: noise, and a smaller slack takes longer.
LEAST_GAIN, LEAST_ROWS = 2e-3, 2
#: Share of the labels that the search looks at, and the least number of them; smaller sets than this are searched with
#: all.
LABELS, LEAST_LABELS, SMALL = 0.2, 1000, 10_000
#: Of their rows, the share that is held back, and the most; passes of a trial.
HELD_BACK, MOST_HELD_BACK, PASSES = 0.2, 10_000, 3
#: Rows held back that a figure should rest on: smaller sets are split several times.
ENOUGH, MOST_SPLITS = 2000, 5


def choose_settings(x, y, settings, *, wanted, validation=None):
    """(Settings, trials): with values that have about the best nDCG@5 on rows that are held back.

    Labels are independent of each other, so a part of the labels, with all of their points, is a problem of the same
    kind, where a part of the rows would be one with fewer points a label. From those of `settings` on, C and slack move
    one after the other, twice at most, to neighbours on the grid that are better by more than noise, each trial with
    the frequency that suits it; at last C moves to the vertex of the parabola through its figure and those of its
    neighbours. `wanted` names what is to be chosen, of 'C', 'slack' and 'frequency'. With a `validation` (X, y) its
    rows take the place of what is held back.
    """
    parts = list(_trial_parts(x, y, settings.seed, validation))
    found, trials = {}, []
    if not parts:
        return settings, trials
    frequencies = FREQUENCIES if "frequency" in wanted else (settings.frequency,)
    n_held = sum(held_x.shape[0] for _, _, held_x, _ in parts)

    def beats(one, other):
        return one > (1 + LEAST_GAIN) * other + LEAST_ROWS / n_held

    def figure(c, slack):
        if (c, slack) not in found:
            one = replace(
                settings,
                C=c,
                slack=slack,
                frequency=frequencies[0],
                co_occurrence=0.0,
                epochs=min(PASSES, settings.epochs),
            )
            figures = np.mean([_trial(*part, one, frequencies) for part in parts], axis=0)
            best = int(figures.argmax()) if figures.max() > (1 + LEAST_GAIN) * figures[0] else 0
            found[c, slack] = float(figures[best]), frequencies[best]
            trials.append({"C": c, "slack": slack, "frequency": frequencies[best], "nDCG@5": float(figures[best])})
        return found[c, slack][0]

    c, slack = settings.C, settings.slack
    for _ in range(2):
        before = c, slack
        if "C" in wanted:
            c = _climb(GRID_C, c, lambda value, slack=slack: figure(value, slack), beats)
        if "slack" in wanted:
            slack = _climb(GRID_SLACK, slack, lambda value, c=c: figure(c, value), beats)
        if (c, slack) == before:
            break
    figure(c, slack)
    frequency = found[c, slack][1]
    if "C" in wanted:
        c *= 2 ** _vertex(*(found.get((neighbour, slack), (None,))[0] for neighbour in (c / 2, c, 2 * c)))
    return replace(settings, C=c, slack=slack, frequency=frequency), trials


def _vertex(below, best, above):
    """Where the parabola through figures at -1, 0 and 1 is highest, between -1/2 and 1/2; 0 where one is missing.

    `best`, at 0, is the largest, or falls short of it by no more than noise.
    """
    if below is None or above is None or below + above >= 2 * best:
        return 0.0
    return min(max((above - below) / (2 * (2 * best - below - above)), -0.5), 0.5)


def _climb(grid, value, figure, beats):
    """The value of the grid, from `value` on, that none of its neighbours beats by its figure."""
    at = grid.index(value)
    for direction in (-1, 1):
        moved = False
        while 0 <= at + direction < len(grid) and beats(figure(grid[at + direction]), figure(grid[at])):
            at, moved = at + direction, True
        if moved:
            break
    return grid[at]


def _trial_parts(x, y, seed, validation):
    """(x, y, held-back x, y) of each trial."""
    n_points = np.bincount(y.indices, minlength=y.shape[1])
    seen = np.flatnonzero(n_points)
    n = len(seen) if x.shape[0] < SMALL else min(len(seen), max(LEAST_LABELS, round(LABELS * len(seen))))
    labels = np.sort(seen[shuffled(len(seen), seed, 1)[:n]])
    y = y.tocsc()[:, labels].tocsr()
    rows = np.flatnonzero(np.diff(y.indptr))
    if validation is not None:
        other_x, other_y = validation
        other_y = other_y.tocsc()[:, labels].tocsr()
        others = np.flatnonzero(np.diff(other_y.indptr))
        if len(others):
            yield x[rows], y[rows], other_x[others[:MOST_HELD_BACK]], other_y[others[:MOST_HELD_BACK]]
            return
    n_held = min(MOST_HELD_BACK, max(1, round(HELD_BACK * len(rows))))
    for split in range(max(1, min(MOST_SPLITS, ENOUGH // n_held))):
        order = rows[shuffled(len(rows), seed, 2 + split)]
        held, others = order[:n_held], np.sort(order[n_held:])
        if len(others):
            yield x[others], y[others], x[held], y[held]


def _trial(x, y, held_x, held_y, settings, frequencies):
    """nDCG@5 on what is held back, with each of the frequencies: among a row's best with that of `settings`."""
    training = DualTraining(x, y, settings)
    training.run(progress=False)
    scores, ids = training.network.top_k(held_x, min(REORDERED, y.shape[1]))
    logs, figures = np.log(np.maximum(np.bincount(y.indices, minlength=y.shape[1]), 1)), []
    for frequency in frequencies:
        moved = scores + (frequency - settings.frequency) * logs[ids]
        order = np.argsort(-moved, axis=1, kind="stable")[:, : min(5, y.shape[1])]
        figures.append(metrics.ndcg_at_k(np.take_along_axis(ids, order, 1), held_y, order.shape[1]))
    return figures


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
