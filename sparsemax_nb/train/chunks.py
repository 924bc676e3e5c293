"""Batches of sequences: continuous text cut into streams, or separate lines, each read from its beginning."""

from typing import NamedTuple

import numpy as np

from ..data.batches import shuffled

#: Number of consecutive batches of separate lines that are sorted by length together, so that less padding is computed.
BATCHES_PER_SORT = 32


class Chunk(NamedTuple):
    """Input of a network: T steps of B sequences.

    tokens (T, B) int32; positions (T, B) int64, the position in the text of the next token after each, -1 where none is
    to be predicted; `fresh`: the sequences begin here, else they continue those of the previous chunk.
    """

    tokens: np.ndarray
    positions: np.ndarray
    fresh: bool


class _Text:
    """`tokens`, which a subclass cuts into chunks."""

    def targets(self, chunk):
        """The tokens (n,) to predict, in the order of the chunk's positions."""
        return self.tokens[chunk.positions[chunk.positions >= 0]]


class RunningText(_Text):
    """A text (n,) as `n_streams` parallel streams, each of which is read from its beginning to its end.

    Row i consists of the i-th token of every stream; the last stream may be shorter. A step reads `unroll` rows and
    starts from the state after the previous one.
    """

    def __init__(self, tokens, n_streams, unroll):
        self.tokens = tokens
        self.rows_per_step = unroll
        self._n_streams = n_streams
        self.n_rows = -(-(len(tokens) - 1) // n_streams)

    @property
    def all_positions(self):
        """Positions of all tokens to predict, ascending."""
        return np.arange(1, len(self.tokens))

    def order(self, epoch):
        """Row ids of an epoch: always the order of the text."""
        return self.rows_in_order()

    def rows_in_order(self):
        """Row ids for evaluation."""
        return np.arange(self.n_rows)

    def chunk(self, rows):
        """The `Chunk` of consecutive rows."""
        positions = rows[:, None] + self.n_rows * np.arange(self._n_streams) + 1
        # Past the end, the last token is repeated: nothing is predicted there.
        tokens = self.tokens[np.minimum(positions, len(self.tokens)) - 1]
        return Chunk(tokens, np.where(positions < len(self.tokens), positions, -1), rows[0] == 0)


class SeparateLines(_Text):
    """Lines of tokens (indptr (n + 1,), items (m,)), each read from its beginning.

    Of a longer line only the last `longest` + 1 tokens are used. A row is a line of at least two tokens. With
    `last_only` only its last token is predicted, else all but the first.
    """

    def __init__(self, indptr, items, batch_size, longest, seed=0, last_only=False):
        self.tokens = items
        self.rows_per_step = batch_size
        self._seed = seed
        self._last_only = last_only
        ends, lengths = indptr[1:], np.minimum(np.diff(indptr), longest + 1)
        kept = lengths > 1
        self._ends, self._lengths = ends[kept], lengths[kept]
        self.n_rows = len(self._ends)
        if last_only:
            self.all_positions = self._ends - 1
        else:
            steps = np.arange(1, int(self._lengths.sum()) - self.n_rows + 1)
            before = np.cumsum(self._lengths - 1) - (self._lengths - 1)
            self.all_positions = steps + np.repeat(self._ends - self._lengths - before, self._lengths - 1)

    def order(self, epoch):
        """Row ids of an epoch: shuffled, but so that the lines of a batch have about the same length."""
        order, size = shuffled(self.n_rows, self._seed, epoch), self.rows_per_step
        for start in range(0, len(order), BATCHES_PER_SORT * size):
            rows = order[start : start + BATCHES_PER_SORT * size]
            order[start : start + BATCHES_PER_SORT * size] = rows[np.argsort(self._lengths[rows], kind="stable")]
        n_whole = len(order) // size
        whole = order[: n_whole * size].reshape(n_whole, size)[shuffled(n_whole, self._seed, epoch)]
        return np.concatenate([whole.reshape(-1), order[n_whole * size :]])

    def rows_in_order(self):
        """Row ids for evaluation, by length: the lines of a batch have about the same."""
        return np.argsort(self._lengths, kind="stable")

    def chunk(self, rows):
        """The `Chunk` of some lines, padded to the longest."""
        ends, steps = self._ends[rows], self._lengths[rows] - 1
        step = np.arange(int(steps.max()))[:, None]
        positions = ends - steps + step
        inside = step < steps
        # Padding repeats the last input token, so that no other row of the embedding is touched.
        tokens = self.tokens[np.where(inside, positions, ends - 1) - 1]
        predicted = step == steps - 1 if self._last_only else inside
        return Chunk(tokens, np.where(predicted, positions, -1), True)


def is_sequences(tokens):
    """Whether tokens are `Sequences` or look like them; a sparse matrix has an indptr, too, but no items."""
    return hasattr(tokens, "indptr") and hasattr(tokens, "items")


def fingerprint_parts(tokens):
    """A text or sequences as the pair of arrays that `fingerprint` takes."""
    return (tokens.items, tokens.indptr) if is_sequences(tokens) else (tokens, np.zeros(0))
