"""Chunks of text and of lines: every token is predicted once, from the one before it."""

import numpy as np
import pytest

from sparsemax_nb.data.batches import batches
from sparsemax_nb.train.chunks import RunningText, SeparateLines


def chunks(text, rows):
    return [text.chunk(some) for some in batches(rows, text.rows_per_step)]


def places_of(found):
    return np.concatenate([chunk.positions[chunk.positions >= 0] for chunk in found])


@pytest.mark.parametrize(("n", "n_streams", "unroll"), [(50, 4, 5), (51, 4, 7), (2, 1, 3), (10, 9, 2), (12, 5, 1)])
def test_running_text(n, n_streams, unroll):
    tokens = np.random.default_rng(n).integers(0, 90, n).astype(np.int32)
    text = RunningText(tokens, n_streams, unroll)
    found = chunks(text, text.order(0))
    assert sorted(places_of(found)) == text.all_positions.tolist() == list(range(1, n))
    for chunk in found:
        counted = chunk.positions >= 0
        assert (chunk.tokens[counted] == tokens[chunk.positions[counted] - 1]).all()
        assert chunk.tokens.shape[1] == n_streams and chunk.tokens.dtype == np.int32
    assert [chunk.fresh for chunk in found] == [True] + [False] * (len(found) - 1)
    for before, after in zip(found, found[1:], strict=False):  # each stream goes on where it stopped
        here = after.positions[0] >= 0
        assert (after.positions[0][here] == before.positions[-1][here] + 1).all()


LINES = [3, 1, 0, 2, 6, 4]  # lengths
INDPTR = np.concatenate([[0], np.cumsum(LINES)])
ITEMS = np.arange(100, 100 + INDPTR[-1], dtype=np.int32)


@pytest.mark.parametrize("longest", [2, 50])
@pytest.mark.parametrize("last_only", [False, True])
def test_separate_lines(longest, last_only):
    text = SeparateLines(INDPTR, ITEMS, 2, longest, seed=3, last_only=last_only)
    first = [max(start, stop - longest - 1) for start, stop in zip(INDPTR, INDPTR[1:], strict=False)]
    wanted = [range(stop - 1 if last_only else low + 1, stop) for low, stop in zip(first, INDPTR[1:], strict=True)]
    wanted = [list(places) for places, length in zip(wanted, LINES, strict=True) if length > 1]
    assert text.n_rows == 4 and text.all_positions.tolist() == sum(wanted, [])
    for rows in (text.order(0), text.rows_in_order()):
        found = chunks(text, rows)
        assert sorted(places_of(found)) == text.all_positions.tolist()
        assert all(chunk.fresh for chunk in found)
        for chunk in found:
            counted = chunk.positions >= 0
            assert (chunk.tokens[counted] == ITEMS[chunk.positions[counted] - 1]).all()
            for column, places in zip(chunk.tokens.T, chunk.positions.T, strict=True):  # from the line's beginning
                line = np.searchsorted(INDPTR, places.max(), side="right") - 1
                seen = ITEMS[first[line] : places.max()]
                assert column[: len(seen)].tolist() == seen.tolist()
                assert (column[len(seen) :] == ITEMS[INDPTR[line + 1] - 2]).all()
    assert (np.diff([chunk.tokens.shape[0] for chunk in chunks(text, text.rows_in_order())]) >= 0).all()
    orders = [text.order(epoch).tolist() for epoch in range(8)]
    assert len(set(map(tuple, orders))) > 1 and all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_lines_of_about_the_same_length_are_read_together():
    lengths = np.random.default_rng(0).geometric(0.1, 2000) + 1
    indptr = np.concatenate([[0], lengths.cumsum()])
    text = SeparateLines(indptr, np.zeros(indptr[-1], np.int32), 8, 50)
    order = text.order(3)
    assert sorted(order) == list(range(2000))
    computed = sum(chunk.tokens.size for chunk in chunks(text, order))
    assert len(text.all_positions) < computed < 1.2 * len(text.all_positions)
    first = [lengths[some].mean() for some in batches(order, 8)]
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.2  # but batches of any length follow each other
