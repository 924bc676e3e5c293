"""Batches of sequences: running text cut into streams, or separate lines, each with its own beginning."""

from typing import NamedTuple

import numpy as np

from ..data.batches import shuffled

#: Batches of separate lines among which those of about the same length are put together.
ALIKE = 32


class Chunk(NamedTuple):
    """What a network sees at once: T steps of B sequences.

    tokens (T, B) int32; places (T, B) int64, where in the text the token that follows each lies, -1 where none is to be
    predicted; `fresh`: the sequences begin here, else they go on from the chunk before.
    """

    tokens: np.ndarray
    places: np.ndarray
    fresh: bool


class _Text:
    """`tokens`, cut into chunks by a subclass."""

    def targets(self, chunk):
        """The tokens (n,) that are to be predicted, in the order of the chunk's places."""
        return self.tokens[chunk.places[chunk.places >= 0]]


class RunningText(_Text):
    """A text (n,) as `n_streams` streams side by side, each of which is read from its beginning to its end.

    A row is a position of all streams; the last stream may be shorter. A step takes `unroll` rows, and the state behind
    them is where the next step begins.
    """

    def __init__(self, tokens, n_streams, unroll):
        self.tokens, self.rows_per_step, self._n_streams = tokens, unroll, n_streams
        self.n_rows = -(-(len(tokens) - 1) // n_streams)

    @property
    def all_places(self):
        """Where the tokens lie that are to be predicted, ascending."""
        return np.arange(1, len(self.tokens))

    def order(self, epoch):
        """Row ids of an epoch: a text is always read in its order."""
        return self.rows_in_order()

    def rows_in_order(self):
        """Row ids as they are read where nothing is learnt."""
        return np.arange(self.n_rows)

    def chunk(self, rows):
        """The `Chunk` of consecutive rows."""
        places = rows[:, None] + self.n_rows * np.arange(self._n_streams) + 1
        tokens = self.tokens[np.minimum(places, len(self.tokens)) - 1]  # behind the end the last token, again and again
        return Chunk(tokens, np.where(places < len(self.tokens), places, -1), rows[0] == 0)


class SeparateLines(_Text):
    """Lines of tokens (indptr (n + 1,), items (m,)); each is read from its beginning, at most its last `longest` + 1 tokens.

    A row is a line of two tokens or more. With `last_only` its last token alone is to be predicted, else all but the
    first.
    """

    def __init__(self, indptr, items, batch_size, longest, seed=0, last_only=False):
        self.tokens, self.rows_per_step, self._seed, self._last_only = items, batch_size, seed, last_only
        ends, lengths = indptr[1:], np.minimum(np.diff(indptr), longest + 1)
        kept = lengths > 1
        self._ends, self._lengths = ends[kept], lengths[kept]
        self.n_rows = len(self._ends)
        if last_only:
            self.all_places = self._ends - 1
        else:
            steps = np.arange(1, int(self._lengths.sum()) - self.n_rows + 1)
            before = np.cumsum(self._lengths - 1) - (self._lengths - 1)
            self.all_places = steps + np.repeat(self._ends - self._lengths - before, self._lengths - 1)

    def order(self, epoch):
        """Row ids of an epoch: shuffled, but so that lines which are read together have about the same length."""
        order, size = shuffled(self.n_rows, self._seed, epoch), self.rows_per_step
        for start in range(0, len(order), ALIKE * size):
            some = order[start : start + ALIKE * size]
            order[start : start + ALIKE * size] = some[np.argsort(self._lengths[some], kind="stable")]
        n_whole = len(order) // size
        whole = order[: n_whole * size].reshape(n_whole, size)[shuffled(n_whole, self._seed, epoch)]
        return np.concatenate([whole.reshape(-1), order[n_whole * size :]])

    def rows_in_order(self):
        """Row ids by length: lines read together have about the same."""
        return np.argsort(self._lengths, kind="stable")

    def chunk(self, rows):
        """The `Chunk` of some lines, as long as the longest; the others end early."""
        ends, steps = self._ends[rows], self._lengths[rows] - 1
        step = np.arange(int(steps.max()))[:, None]
        places = ends - steps + step
        inside = step < steps
        # behind the end the last of these again and again: no other row of the embedding is touched
        tokens = self.tokens[np.where(inside, places, ends - 1) - 1]
        counted = step == steps - 1 if self._last_only else inside
        return Chunk(tokens, np.where(counted, places, -1), True)
