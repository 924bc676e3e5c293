"""Choice of C, slack and frequency for a linear layer, by trials on some of the labels."""

from dataclasses import replace

import numpy as np

from .. import metrics
from ..data.batches import shuffled
from .linear import DualTraining, weighted_rows

#: Values of C and slack that the search starts from.
FIRST = 0.5, 0.2
#: Values of C and slack that the search tries.
GRID_C = 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0
GRID_SLACK = 0.05, 0.1, 0.2, 0.3, 0.4, 0.6
#: Weights of character n-grams that the search tries, until one is no better than the one before.
CHAR_WEIGHTS = 1.0, 2.0, 4.0
#: Values of frequency that each trial tries.
FREQUENCIES = 0.0, 0.01, 0.02, 0.05, 0.1
#: Number of each row's best labels that a value of frequency may reorder.
REORDERED = 20
#: A value replaces the current one only if its nDCG@5 is better by this share, and for C and slack also by this many of
#: the held-out rows. Smaller gains are noise, and a smaller slack makes training slower.
MIN_GAIN = 2e-3
MIN_GAIN_ROWS = 2
#: Trials use this share of the labels, but at least MIN_LABELS. Training sets of fewer rows than SMALL_SET use all.
LABEL_SHARE = 0.2
MIN_LABELS = 1000
SMALL_SET = 10_000
#: Trials hold out this share of the rows of their labels, but at most MAX_HELD_OUT, which is enough for the metric.
HELD_OUT_SHARE = 0.2
MAX_HELD_OUT = 10_000
#: Epochs of a trial.
TRIAL_EPOCHS = 3
#: Held-out rows that a comparison should rest on. Smaller sets are split up to MAX_SPLITS times.
MIN_HELD_OUT = 2000
MAX_SPLITS = 5


def choose_char_weight(weighted, y, settings, *, wanted=(), **options):
    """The weight of character n-grams with the best nDCG@5 on held-out rows: the first, or a larger one; and trials.

    ``weighted(weight)`` are the features and the validation set, or None. `wanted` is 'frequency' or nothing; `options`
    as in `choose_settings`.
    """
    chosen, trials = CHAR_WEIGHTS[0], []
    for weight in CHAR_WEIGHTS:
        x, validation = weighted(weight)
        _, found = choose_settings(x, y, settings, wanted=wanted, validation=validation, **options)
        trials += [trial | {"char_weight": weight} for trial in found]
        if len(trials) > 1 and trials[-1]["nDCG@5"] <= (1 + MIN_GAIN) * trials[-2]["nDCG@5"] or not found:
            break
        chosen = weight
    return chosen, trials


def choose_settings(x, y, settings, *, wanted, validation=None, sample_weight=None, is_name=None, known=()):
    """(Settings, trials): settings with about the best nDCG@5 on held-out rows.

    `wanted` names the settings to choose: 'C', 'slack', 'frequency'. The rows of a `validation` (X, y) replace the
    held-out rows. The rows `is_name`, names of labels, are never held out. Trials train with `sample_weight`, as
    `DualTraining` does; in the metric all held-out rows count the same. `known` are trials with the same features that
    need not be repeated.

    A linear layer trains its labels independently. Hence some of the labels, with all their points, are a smaller
    problem of the same kind; some of the rows would be a problem with fewer points per label. C and slack take turns,
    two at most, in moving from their values in `settings` along the grid, as long as a neighbour is better by more than
    noise. Each trial uses its best frequency. Finally C moves to the vertex of the parabola through the metrics of its
    value and its neighbours.
    """
    x, y, row_weights, rows = weighted_rows(x, y, sample_weight)
    is_name = np.zeros(len(rows), bool) if is_name is None else is_name[rows]
    splits = list(_trial_splits(x, y, row_weights, settings.seed, validation, is_name))
    results = {(trial["C"], trial["slack"]): (trial["nDCG@5"], trial["frequency"]) for trial in known}
    trials = []
    if not splits:
        return settings, trials
    frequencies = FREQUENCIES if "frequency" in wanted else (settings.frequency,)
    n_held_out = sum(held_out_x.shape[0] for _, _, _, held_out_x, _ in splits)

    def score(c, slack):
        if (c, slack) not in results:
            trial_settings = replace(
                settings,
                C=c,
                slack=slack,
                frequency=frequencies[0],
                co_occurrence=0.0,
                epochs=min(TRIAL_EPOCHS, settings.epochs),
            )
            ndcgs = np.mean([_trial(*split, trial_settings, frequencies) for split in splits], axis=0)
            best = int(ndcgs.argmax()) if ndcgs.max() > (1 + MIN_GAIN) * ndcgs[0] else 0
            results[c, slack] = float(ndcgs[best]), frequencies[best]
            trials.append({"C": c, "slack": slack, "frequency": frequencies[best], "nDCG@5": float(ndcgs[best])})
        return results[c, slack][0]

    grids = GRID_C if "C" in wanted else None, GRID_SLACK if "slack" in wanted else None
    c, slack = climb_in_turns(grids, (settings.C, settings.slack), score, n_held_out)
    score(c, slack)
    frequency = results[c, slack][1]
    if "C" in wanted:
        c *= 2 ** _vertex(*(results.get((neighbour, slack), (None,))[0] for neighbour in (c / 2, c, 2 * c)))
    return replace(settings, C=c, slack=slack, frequency=frequency), trials


def _vertex(below, best, above):
    """Vertex of the parabola through values at -1, 0 and 1, clipped to [-1/2, 1/2]; 0 if a neighbour is None.

    `best`, at 0, is the largest of the three, up to noise.
    """
    if below is None or above is None or below + above >= 2 * best:
        return 0.0
    return min(max((above - below) / (2 * (2 * best - below - above)), -0.5), 0.5)


def climb_in_turns(grids, values, score, n_held_out):
    """The values, of which each has climbed along its grid, in two turns at most; a value without a grid stays.

    ``score(*values)`` is a mean over `n_held_out` rows. A neighbour must be better by more than noise.
    """

    def is_better(new, old):
        return new > (1 + MIN_GAIN) * old + MIN_GAIN_ROWS / n_held_out

    values = list(values)
    for _ in range(2):
        previous = list(values)
        for i, grid in enumerate(grids):
            if grid is not None:
                others = values[:i], values[i + 1 :]
                values[i] = climb(grid, values[i], lambda value, o=others: score(*o[0], value, *o[1]), is_better)
        if values == previous:
            break
    return values


def climb(grid, value, score, is_better):
    """Climb from `value` along the grid, first down, else up, until no neighbour has a better score."""
    index = grid.index(value)
    for direction in (-1, 1):
        moved = False
        while 0 <= index + direction < len(grid) and is_better(score(grid[index + direction]), score(grid[index])):
            index, moved = index + direction, True
        if moved:
            break
    return grid[index]


def _trial_splits(x, y, row_weights, seed, validation, is_name):
    """(x, y, weights of the rows, held-out x, held-out y) of each trial."""
    n_points = np.bincount(y.indices, minlength=y.shape[1])
    seen = np.flatnonzero(n_points)
    n = len(seen) if x.shape[0] < SMALL_SET else min(len(seen), max(MIN_LABELS, round(LABEL_SHARE * len(seen))))
    labels = np.sort(seen[shuffled(len(seen), seed, 1)[:n]])
    y = y.tocsc()[:, labels].tocsr()
    rows = np.flatnonzero(np.diff(y.indptr))
    if validation is not None:
        validation_x, validation_y = validation
        validation_y = validation_y.tocsc()[:, labels].tocsr()
        held_out = np.flatnonzero(np.diff(validation_y.indptr))
        if len(held_out):
            held_out = held_out[:MAX_HELD_OUT]
            yield x[rows], y[rows], row_weights[rows], validation_x[held_out], validation_y[held_out]
            return
    points, names = rows[~is_name[rows]], rows[is_name[rows]]
    n_held_out = min(MAX_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(points))))
    for split in range(max(1, min(MAX_SPLITS, MIN_HELD_OUT // n_held_out))):
        order = points[shuffled(len(points), seed, 2 + split)]
        held_out, kept = order[:n_held_out], np.sort(np.append(order[n_held_out:], names))
        if len(kept):
            yield x[kept], y[kept], row_weights[kept], x[held_out], y[held_out]


def _trial(x, y, row_weights, held_out_x, held_out_y, settings, frequencies):
    """nDCG@5 on the held-out rows for each frequency, which reorders the best labels found with that of `settings`."""
    training = DualTraining(x, y, settings, sample_weight=row_weights)
    training.run(progress=False)
    scores, ids = training.network.top_k(held_out_x, min(REORDERED, y.shape[1]))
    log_counts = np.log(np.maximum(np.bincount(y.indices, minlength=y.shape[1]), 1))
    ndcgs = []
    for frequency in frequencies:
        moved = scores + (frequency - settings.frequency) * log_counts[ids]
        order = np.argsort(-moved, axis=1, kind="stable")[:, : min(5, y.shape[1])]
        ndcgs.append(metrics.ndcg_at_k(np.take_along_axis(ids, order, 1), held_out_y, order.shape[1]))
    return ndcgs
