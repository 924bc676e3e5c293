"""The choice of C, slack and frequency for a linear layer: trials on a part of the labels."""

from dataclasses import replace

import numpy as np

from .. import metrics
from ..data.batches import shuffled
from .linear import DualTraining

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
            c = _climb(GRID_C, c, lambda value: figure(value, slack), beats)
        if "slack" in wanted:
            slack = _climb(GRID_SLACK, slack, lambda value: figure(c, value), beats)
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
