"""The network of the language model: embedding, layers of LSTM cells, softmax output; gradients through time by hand."""

import numpy as np

from ..core import check, rng
from ..core.device import asarray, backend_of, empty, to_numpy, zeros
from ..full_softmax import target_ranks
from .gradients import add_rows, clip
from .layers import TokenEmbedding
from .lstm import LSTM
from .network import Layers
from .outputs import SoftmaxOutput


def parameter_shapes(n_words, width, n_layers, tied):
    """{name: shape} of the parameters of a `LanguageNetwork` with these arguments, which is not made."""
    shapes = {"embedding.table": (n_words, width)} | ({} if tied else {"output.weights": (n_words, width)})
    for number in range(n_layers):
        square = width, 4 * width
        shapes |= {f"lstm{number}.weights": square, f"lstm{number}.recurrent": square, f"lstm{number}.bias": square[1:]}
    return shapes


class LanguageNetwork(Layers):
    """Token -> embedding -> dropout -> (LSTM -> dropout), once or more -> softmax over all words.

    The first coordinate of a word in the output layer is its bias: the first output of the last LSTM layer is replaced
    by 1, and of tied weights the first coordinate is 0 where they are the input. So a bias needs no place of its own in
    losses, samplers and contexts.

    Parameters
    ----------
    n_words : int
    width : int
        Of the embedding and of every LSTM layer.
    n_layers : int
        LSTM layers.
    tied : bool
        The output's weights are the embedding's table.
    dropout : float
        Rate behind the embedding and behind each LSTM layer, never between two steps of one layer: the place that
        W. Zaremba et al., "Recurrent neural network regularization", arXiv 1409.2329, give it.
    clip : float
        The largest norm of all gradients together.
    seed : int
    device : 'cpu' or 'cuda'

    Attributes
    ----------
    state : list of (h, c), or None
        (B, width) each, behind the last chunk of training; None before the first. Whoever only reads passes a state of
        their own from chunk to chunk: reading changes nothing of the network.
    """

    def __init__(self, n_words, *, width, n_layers, tied, dropout, clip, seed, device):
        self.device, self.seed, self.steps = device, seed, 0
        self.width, self.dropout, self.clip, self.tied, self.state = width, dropout, clip, tied, None
        self.embedding = TokenEmbedding(n_words, width, seed, device)
        self.lstms = [LSTM(width, width, seed, number, device) for number in range(n_layers)]
        self.hidden = [self.embedding, *self.lstms]
        self.output = SoftmaxOutput(width, n_words, device, self.embedding.table if tied else None)

    def start_from(self, counts):
        """Make each word's bias the logarithm of how often it occurs, counts (L,): the network starts as a unigram model."""
        bias = np.log(counts + 1.0)
        self.output.weights[:, 0] = asarray(bias - bias.mean(), self.device, np.float32)

    @property
    def parameters(self):
        """All arrays by name, from the input to the output; tied weights once, as the embedding's."""
        arrays = super().parameters
        if self.tied:
            del arrays["output.weights"]
        return arrays

    @property
    def sampler_state(self):
        """What a checkpoint needs beside parameters and moments: what negatives are drawn from, and the state."""
        pairs = enumerate(self.state or ())
        return super().sampler_state | {f"state/{n}": np.stack([*map(to_numpy, pair)]) for n, pair in pairs}

    def restore_sampler(self, arrays):
        """Go on from what `sampler_state` held, among other arrays; KeyError, TypeError or ValueError where it does not fit."""
        super().restore_sampler(arrays)
        self.state = None
        names = [f"state/{number}" for number in range(len(self.lstms))]
        if any(name in arrays for name in names):
            n_rows = arrays["state/0"].shape[1]
            pairs = [check.array(name, arrays[name], np.float32, (2, n_rows, self.width)) for name in names]
            for name, pair in zip(names, pairs, strict=True):
                check.finite(name, pair)
            self.state = [tuple(asarray(part, self.device) for part in pair) for pair in pairs]

    def _start(self, n_rows):
        """All states zero."""
        initial = zeros((n_rows, self.width), np.float32, self.device)
        return [(initial, initial)] * len(self.lstms)

    def _drop(self, x, number, training):
        """Dropout number `number` (0 behind the embedding) of x (T, B, D): a new array; its own gradient, too."""
        if not training or self.dropout == 0:
            return x
        dropout = rng.make_dropout(self.dropout, self.seed, number, self.steps)
        out, lines = empty(x.shape, np.float32, self.device), (-1, x.shape[-1])
        backend_of(self.device, "activations").dropout(x.reshape(lines), dropout, out.reshape(lines))
        return out

    def forward(self, chunk, state=None, training=False):
        """The input of the output layer behind every token of a `Chunk`, (T, B, width), and the state behind the last.

        It goes on from `state`; from zeros where that is None, of another number of sequences, or the chunk is fresh.
        Nothing of the network changes, but in training: then the layers keep what their backward pass needs.
        """
        tokens, behind = asarray(chunk.tokens, self.device), []
        if chunk.fresh or state is None or state[0][0].shape[0] != tokens.shape[1]:
            state = self._start(tokens.shape[1])
        x = self._drop(self.embedding.forward(tokens, keep=training), 0, training)
        if self.tied:
            x[..., 0] = 0
        for number, (lstm, before) in enumerate(zip(self.lstms, state, strict=True)):
            h, after = lstm.forward(x, before, keep=training)
            behind.append(after)
            x = self._drop(h, number + 1, training)
        if x is h:  # the layer's own, which its backward pass needs
            x = h.copy()
        x[..., 0] = 1
        return x, behind

    def _counted(self, h, chunk):
        """The rows of h (T, B, width) behind which a token is to be predicted, (n, width), and their numbers or None: all."""
        h, rows = h.reshape(-1, self.width), np.flatnonzero(chunk.places.reshape(-1) >= 0)
        if len(rows) == len(h):
            return h, None
        rows = asarray(rows, self.device)
        return asarray(h[rows], self.device), rows

    def gradients(self, chunk, targets, norms=None):
        """Mean loss of a chunk over its targets, (n,) int32 in the order of its places, and every `Gradient`, one a parameter.

        Back-propagation through time, truncated where the chunk begins.
        """
        h, self.state = self.forward(chunk, self.state, training=True)
        counted, rows = self._counted(h, chunk)
        with self._timing_output():
            targets = asarray(targets, self.device, np.int32)
            value, dh, (of_output,) = self.output.gradients(counted, targets, "softmax", self.steps)
        gradient = dh
        if rows is not None:
            gradient = zeros((h.shape[0] * h.shape[1], self.width), np.float32, self.device)
            gradient[rows] = dh
        gradient, found = gradient.reshape(h.shape), []
        gradient[..., 0] = 0
        for number in reversed(range(len(self.lstms))):
            lstm, gradient = self.lstms[number], self._drop(gradient, number + 1, True)
            self._note_norm(norms, lstm, gradient)
            gradient, of_lstm = lstm.backward(gradient)
            found += of_lstm
        gradient = self._drop(gradient, 0, True)
        if self.tied:
            gradient[..., 0] = 0
        self._note_norm(norms, self.embedding, gradient)
        _, (of_embedding,) = self.embedding.backward(gradient)
        if self.tied:
            return value, [*found, add_rows(of_output, of_embedding)]
        return value, [*found, of_embedding, of_output]

    def step(self, chunk, targets, loss, optimizer, norms=None):
        """One step of training: forward, backward, clipping, update of all parameters; returns the mean loss.

        Where a dict `norms` is given, it gets the norm of the loss' gradient by the output of each hidden layer, and
        that by all parameters together, before it is clipped.
        """
        self.output_seconds = 0.0
        value, gradients = self.gradients(chunk, targets, norms)
        norm = clip(gradients, self.clip)
        if norms is not None:
            norms["all parameters"] = norm
        *others, last = gradients
        for gradient in others:
            gradient.apply(optimizer)
        with self._timing_output():
            last.apply(optimizer)
        self.steps += 1
        return value

    def evaluate(self, chunk, targets, state=None):
        """log p and rank of each target of a chunk by the full softmax, (n,) float32, (n,) int32, NumPy; and `forward`'s state."""
        h, state = self.forward(chunk, state)
        targets = asarray(targets, self.device, np.int32)
        log_prob, rank = target_ranks(self._counted(h, chunk)[0], self.output.weights, targets)
        return to_numpy(log_prob), to_numpy(rank), state

    def encode(self, chunk, state=None):
        """The input of the output layer before each target of a chunk, (n, width), NumPy; and `forward`'s state."""
        h, state = self.forward(chunk, state)
        return to_numpy(self._counted(h, chunk)[0]), state
