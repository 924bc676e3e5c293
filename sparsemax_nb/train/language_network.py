"""The network of the language model: embedding, LSTM layers, softmax output; gradients through time by hand."""

import numpy as np

from ..core import check, rng
from ..core.device import asarray, backend_of, empty, to_numpy, zeros
from ..full_softmax import target_ranks
from .gradients import add_rows, apply_all, clip
from .layers import TokenEmbedding
from .lstm import LSTM
from .network import BaseNetwork
from .outputs import SoftmaxOutput


def parameter_shapes(n_words, width, n_layers, tied):
    """{name: shape} of the parameters of a `LanguageNetwork` with these arguments, without building it."""
    shapes = {"embedding.table": (n_words, width)} | ({} if tied else {"output.weights": (n_words, width)})
    for number in range(n_layers):
        square = width, 4 * width
        shapes |= {f"lstm{number}.weights": square, f"lstm{number}.recurrent": square, f"lstm{number}.bias": square[1:]}
    return shapes


class LanguageNetwork(BaseNetwork):
    """Token -> embedding -> dropout -> (LSTM -> dropout), once or more -> softmax over all words.

    The first coordinate of a word in the output layer is its bias: the first output of the last LSTM layer is replaced
    by 1, and the first coordinate of tied weights is replaced by 0 where they are the input. Hence losses, samplers and
    h need no separate bias.

    Parameters
    ----------
    n_words : int
    width : int
        Width of the embedding and of each LSTM layer.
    n_layers : int
        Number of LSTM layers.
    tied : bool
        Whether the output's weights are the embedding's table.
    dropout : float
        Dropout rate after the embedding and after each LSTM layer, never between two steps of one layer, as in
        W. Zaremba et al., "Recurrent neural network regularization", arXiv 1409.2329.
    clip : float
        Maximum norm of all gradients together.
    seed : int
    device : 'cpu' or 'cuda'

    Attributes
    ----------
    state : list of (h, c), or None
        State of each LSTM layer after the last training chunk, (B, width) each; None before the first. Evaluation does
        not use it: there the caller passes a state from chunk to chunk, and the network does not change.
    """

    def __init__(self, n_words, *, width, n_layers, tied, dropout, clip, seed, device):
        self.device = device
        self.seed = seed
        self.steps = 0
        self.width = width
        self.dropout = dropout
        self.clip = clip
        self.tied = tied
        self.state = None
        self.embedding = TokenEmbedding(n_words, width, seed, device)
        self.lstms = [LSTM(width, width, seed, number, device) for number in range(n_layers)]
        self.hidden = [self.embedding, *self.lstms]
        self.output = SoftmaxOutput(width, n_words, device, self.embedding.table if tied else None)

    def start_from(self, counts):
        """Set each word's bias to the logarithm of its count, counts (L,): training starts from a unigram model."""
        bias = np.log(counts + 1.0)
        self.output.weights[:, 0] = asarray(bias - bias.mean(), self.device, np.float32)

    @property
    def parameters(self):
        """All arrays by name, from the input to the output; tied weights only once, as the embedding's."""
        arrays = super().parameters
        if self.tied:
            del arrays["output.weights"]
        return arrays

    @property
    def sampler_state(self):
        """State that a checkpoint needs apart from parameters and moments: the sampler's arrays, and the LSTM state."""
        pairs = enumerate(self.state or ())
        return super().sampler_state | {f"state/{n}": np.stack([*map(to_numpy, pair)]) for n, pair in pairs}

    def restore_sampler(self, arrays):
        """Continue from a `sampler_state` among these arrays; KeyError, TypeError or ValueError if it does not fit."""
        super().restore_sampler(arrays)
        self.state = None
        names = [f"state/{number}" for number in range(len(self.lstms))]
        if any(name in arrays for name in names):
            n_rows = arrays["state/0"].shape[1]
            pairs = [check.array(name, arrays[name], np.float32, (2, n_rows, self.width)) for name in names]
            for name, pair in zip(names, pairs, strict=True):
                check.finite(name, pair)
            self.state = [tuple(asarray(part, self.device) for part in pair) for pair in pairs]

    def _zero_state(self, n_rows):
        initial = zeros((n_rows, self.width), np.float32, self.device)
        return [(initial, initial)] * len(self.lstms)

    def _drop(self, x, number, training):
        """Dropout number `number` (0: after the embedding) of x (T, B, D), as a new array; the same for gradients."""
        if not training or self.dropout == 0:
            return x
        dropout = rng.make_dropout(self.dropout, self.seed, number, self.steps)
        out, flat_shape = empty(x.shape, np.float32, self.device), (-1, x.shape[-1])
        backend_of(self.device, "activations").dropout(x.reshape(flat_shape), dropout, out.reshape(flat_shape))
        return out

    def forward(self, chunk, state=None, training=False):
        """The input of the output layer after each token of a `Chunk`, (T, B, width), and the state after the last.

        Starts from `state`, or from zeros if it is None, belongs to another number of sequences, or the chunk is fresh.
        Only in training the layers store what their backward pass needs; otherwise the network does not change.
        """
        tokens, new_state = asarray(chunk.tokens, self.device), []
        if chunk.fresh or state is None or state[0][0].shape[0] != tokens.shape[1]:
            state = self._zero_state(tokens.shape[1])
        x = self._drop(self.embedding.forward(tokens, keep=training), 0, training)
        if self.tied:
            x[..., 0] = 0
        for number, (lstm, before) in enumerate(zip(self.lstms, state, strict=True)):
            h, after = lstm.forward(x, before, keep=training)
            new_state.append(after)
            x = self._drop(h, number + 1, training)
        if x is h:  # the array of the layer, which its backward pass needs unchanged
            x = h.copy()
        x[..., 0] = 1
        return x, new_state

    def _predicting_rows(self, h, chunk):
        """The rows of h (T, B, width) that predict a token, (n, width), and their indices, or None if all rows do."""
        h, rows = h.reshape(-1, self.width), np.flatnonzero(chunk.positions.reshape(-1) >= 0)
        if len(rows) == len(h):
            return h, None
        rows = asarray(rows, self.device)
        return asarray(h[rows], self.device), rows

    def gradients(self, chunk, targets, norms=None):
        """Mean loss of a chunk over its targets, (n,) int32, and a `Gradient` per parameter.

        The targets are in the order of the chunk's positions. Back-propagation through time is truncated at the
        beginning of the chunk.
        """
        h, self.state = self.forward(chunk, self.state, training=True)
        h_predicting, rows = self._predicting_rows(h, chunk)
        with self._timing_output():
            targets = asarray(targets, self.device, np.int32)
            value, dh, (of_output,) = self.output.gradients(h_predicting, targets, "softmax", self.steps)
        dout = dh
        if rows is not None:
            dout = zeros((h.shape[0] * h.shape[1], self.width), np.float32, self.device)
            dout[rows] = dh
        dout, found = dout.reshape(h.shape), []
        dout[..., 0] = 0
        for number in reversed(range(len(self.lstms))):
            lstm, dout = self.lstms[number], self._drop(dout, number + 1, True)
            self._note_norm(norms, lstm, dout)
            dout, of_lstm = lstm.backward(dout)
            found += of_lstm
        dout = self._drop(dout, 0, True)
        if self.tied:
            dout[..., 0] = 0
        self._note_norm(norms, self.embedding, dout)
        _, (of_embedding,) = self.embedding.backward(dout)
        if self.tied:
            return value, [*found, add_rows(of_output, of_embedding)]
        return value, [*found, of_embedding, of_output]

    def step(self, chunk, targets, loss, optimizer, norms=None):
        """One training step: forward, backward, clipping, update of all parameters; returns the mean loss.

        A dict `norms` receives the norms of the loss's gradient with respect to the output of each hidden layer and to
        all parameters together, before clipping.
        """
        self.output_seconds = 0.0
        value, gradients = self.gradients(chunk, targets, norms)
        norm = clip(gradients, self.clip)
        if norms is not None:
            norms["all parameters"] = norm
        *others, last = gradients
        apply_all(others, optimizer)
        with self._timing_output():
            last.apply(optimizer)
        self.steps += 1
        return value

    def evaluate(self, chunk, targets, state=None):
        """log p (n,) float32 and rank (n,) int32 of each target by the full softmax, NumPy; and the new state."""
        h, state = self.forward(chunk, state)
        targets = asarray(targets, self.device, np.int32)
        log_prob, rank = target_ranks(self._predicting_rows(h, chunk)[0], self.output.weights, targets)
        return to_numpy(log_prob), to_numpy(rank), state

    def encode(self, chunk, state=None):
        """The input of the output layer before each target of a chunk, (n, width), NumPy; and the new state."""
        h, state = self.forward(chunk, state)
        return to_numpy(self._predicting_rows(h, chunk)[0]), state
