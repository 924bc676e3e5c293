"""`LanguageModel`: the next word of a text, or the next item of a sequence, by LSTM layers and a softmax over all of them."""

import copy
import math
import os
import sys
import time

import numpy as np

from .. import metrics
from ..core import check, description, rng
from ..core.device import asarray, device_of, product, resolve_device, to_numpy
from ..data import Vocabulary
from ..data.arrays import write_float16
from ..data.batches import batches
from ..data.text import END_OF_LINE, UNKNOWN
from ..optimizers import Adam
from . import loop
from .chunks import Chunk, RunningText, SeparateLines
from .estimator import DATA, MOST_WIDTH, SampledEstimator
from .language_network import LanguageNetwork, parameter_shapes
from .negatives import Negatives

DECAYS = "plateau", "linear"
#: Of LSTM layers; more are a mistake.
MOST_LAYERS = 1000
#: The cut-off of the ranking metrics, beside top-1 and top-5.
K = 10
#: Tokens of each stream in a step where a text is only read.
STEPS_READ = 64
#: What the file of a language model says beside its arrays.
DESCRIPTION = description.record(
    params=description.record(),
    n_words=description.integer(1),
    raw=description.boolean,
    words=description.optional(description.list_of(description.text)),
    data=DATA,
)


class LanguageModel(SampledEstimator):
    """A language model with an output layer over very many words, trained with hand-written gradients.

    Token -> embedding -> dropout -> (LSTM -> dropout) `n_layers` times -> softmax over all words. A word's first
    coordinate in the output is its bias, which starts at the logarithm of its frequency: training starts from a unigram
    model (our choice).

    A text is read as `batch_size` streams side by side, `unroll` tokens at a step: the state is carried from step to
    step, back-propagation through time stops at the beginning of a step. Separate sequences (`data.Sequences`: lines of
    items) are read `batch_size` at a time, each from its beginning.

    Parameters
    ----------
    width : int
        Of the embedding and of every LSTM layer.
    n_layers : int
        LSTM layers, one on the other.
    tied : bool
        The output's weights are the embedding's table; else they are their own, and start at zero but for the bias.
    sampler : 'none', 'uniform', 'log-uniform', 'unigram', 'lsh', 'sphere', 'rff', 'midx-pq' or 'midx-rq'
        How negatives are drawn; see `Classifier`, as for the next six. 'none' takes the softmax over all words.
    n_samples, n_codewords : int
    residual : 'uniform', 'popularity' or 'exact'
    index_every : int or None
    correction : 'paper' or 'importance'
    mask_hits : bool
    dropout : float
        Rate behind the embedding and behind each LSTM layer, in [0, 1).
    clip : float
        The gradient is scaled down where its norm, all parameters together, exceeds this.
    learning_rate : float
        Of Adam, at the start. Rows of embedding and output that a step does not touch are left alone (lazy Adam); under
        sampler='none' a step touches all rows of the output.
    decay : 'linear' or 'plateau'
        The learning rate falls linearly in the steps, down to `min_learning_rate` at the end of the last epoch; or it
        is halved after every `patience` epochs in a row that the validation does not improve.
    warm_up : int
        Steps over which the learning rate rises from 0, linearly.
    min_learning_rate : float
        Below it the learning rate does not fall.
    patience, stop_after : int
        Training stops after `stop_after` epochs in a row without a better validation.
    batch_size, unroll : int
        Streams of a text and tokens of each in a step; or sequences of a step and how many of their last items count.
    epochs : int
        Passes over the text, at most.
    budget_seconds : float or None
        Training stops after so many seconds even if epochs are left; neither compiling nor validation is counted.
    seed : int
        Of weights, order, dropout and draws.
    device : 'auto', 'cpu' or 'cuda'
        'auto' takes a CUDA device where there is one.
    progress : bool
        Show progress on standard error: a bar in a terminal, else a line for every tenth of the steps.

    Attributes
    ----------
    network_ : LanguageNetwork
    vocabulary_ : Vocabulary or None
    n_words_ : int
    history_ : History
        What the run did, epoch by epoch.
    device_ : str

    Notes
    -----
    Source: arXiv 2501.08563 and arXiv 1901.10668 (two layers of width 200, tied embeddings); W. Zaremba et al., arXiv
    1409.2329 (where dropout sits); O. Press, L. Wolf, "Using the output embedding to improve language models", EACL
    2017 (tied embeddings); optimiser, rates and schedule are ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import train
    >>> text = np.arange(2000, dtype=np.int32) % 7  # 0 1 2 3 4 5 6 0 1 ...
    >>> model = train.LanguageModel(
    ...     width=16, sampler="uniform", n_samples=3, dropout=0.0, batch_size=8, unroll=10, epochs=10, learning_rate=0.01,
    ...     device="cpu", progress=False,
    ... )
    >>> model.fit(text).perplexity(text) < 1.5
    True
    >>> model.generate(np.array([2, 3], np.int32), n_words=5, temperature=0).tolist()
    [4, 5, 6, 0, 1]
    >>> model.evaluate(text)["top-1"] > 0.9
    True
    >>> h, targets = model.encode(text)
    >>> h.shape, bool((targets == model.targets(text)).all())
    ((1999, 16), True)

    On disk and back:

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(Path(folder, "model.safetensors"))
    ...     again = train.LanguageModel.load(Path(folder, "model.safetensors"), device="cpu")
    >>> again.perplexity(text) == model.perplexity(text)
    True
    """

    kind, classes, fit_call = "language model", "words", "fit(tokens)"
    file_description = DESCRIPTION

    def __init__(
        self,
        *,
        width=200,
        n_layers=2,
        tied=True,
        sampler="midx-rq",
        n_samples=100,
        n_codewords=64,
        residual="uniform",
        index_every=100,
        correction="paper",
        mask_hits=False,
        dropout=0.3,
        clip=1.0,
        learning_rate=5e-3,
        decay="linear",
        warm_up=0,
        min_learning_rate=1e-5,
        patience=1,
        stop_after=3,
        batch_size=64,
        unroll=35,
        epochs=6,
        budget_seconds=None,
        seed=0,
        device="auto",
        progress=True,
    ):
        self.set_params(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})

    def _check_params(self):
        super()._check_params()
        check.integer("width", self.width, 2, MOST_WIDTH)
        check.integer("unroll", self.unroll, 1)
        check.integer("n_layers", self.n_layers, 1, MOST_LAYERS)
        if not isinstance(self.tied, (bool, np.bool_)):
            raise TypeError(f"tied must be True or False, got {self.tied!r}")
        check.number("clip", self.clip, 0, math.inf, open_ends=True)
        check.choice("decay", self.decay, DECAYS)

    def _new_network(self, n_words, device):
        names = "width", "n_layers", "tied", "dropout", "clip", "seed"
        return LanguageNetwork(n_words, **{name: getattr(self, name) for name in names}, device=device)

    def fit(
        self,
        tokens,
        *,
        vocabulary=None,
        n_words=None,
        validation=None,
        checkpoint_path=None,
        checkpoint_seconds=300.0,
        resume=False,
        after_epoch=None,
    ):
        """Train on a text or on sequences.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Words by number; in memory or memory-mapped.
        vocabulary : Vocabulary, optional
            What the numbers mean (of `Sequences`: theirs). It is saved with the model.
        n_words : int, optional
            Where there is no vocabulary: the number of words; if not given, the largest token + 1.
        validation : like tokens, optional
            Measured after every epoch (see `evaluate`). The weights of the best epoch are kept: the largest likelihood
            of a text, the best NDCG@10 for sequences.
        checkpoint_path : path, optional
            See `Classifier.fit`, as for the next three.
        checkpoint_seconds : float
        resume : bool
            Where the learning rate falls linearly, `epochs` must stay the same, too.
        after_epoch : callable, optional

        Returns
        -------
        self : LanguageModel

        Raises
        ------
        TypeError, ValueError
            Bad arguments; `ModelFileError` for a checkpoint of other data, parameters or version, or a damaged one.
        TrainingError
            The loss, its gradient or a parameter is not finite; the last checkpoint stays.
        KeyboardInterrupt
            Ctrl-C, after the step in hand and the checkpoint.
        """
        self._check_params()
        device = resolve_device(self.device)
        tokens, validation = _plain(tokens), None if validation is None else _plain(validation)
        vocabulary = getattr(tokens, "vocabulary", None) if vocabulary is None else vocabulary
        n_words = self._count_words(tokens, vocabulary, n_words)
        text = self._sequences("tokens", tokens, n_words, training=True)
        other = None if validation is None else self._sequences("validation", validation, n_words)
        if other is not None and type(text) is not type(other):
            raise TypeError("tokens and validation must both be running text, or both Sequences")
        self._check_sampler(n_words, self.width, device)
        self._check_checkpoint_path(checkpoint_path, resume)
        network, counts = self._new_network(n_words, device), np.bincount(text.tokens, minlength=n_words)
        network.start_from(counts)
        if self.sampler != "none":
            network.output.negatives = Negatives(self._sampling(), network.output.weights, counts, self.seed)

        def batch(rows):
            chunk = text.chunk(rows)
            return chunk, text.targets(chunk)

        training = loop.Training(
            network,
            Adam(self.learning_rate),
            self._schedule(loss="softmax", batch_size=text.rows_per_step),
            text.n_rows,
            batch=batch,
            order=text.order,
            validate=None if other is None else lambda: _figures(network, other),
            monitor=f"NDCG@{K}" if isinstance(other, SeparateLines) else "log-likelihood",
        )
        parts = [_parts(part) for part in (tokens, validation) if part is not None]
        save = self._checkpoints(training, checkpoint_path, resume, parts)
        new = copy.copy(self)  # a fit that is refused leaves `self` as it is
        new.network_, new.n_words_, new.vocabulary_, new.device_ = network, n_words, vocabulary, device
        new._fitted_params, new.history_, new.data_ = self._plain_params(), training.history, None
        with self._becoming(new):
            training.run(save=save, save_seconds=checkpoint_seconds, progress=self.progress, after_epoch=after_epoch)
        return self

    def _count_words(self, tokens, vocabulary, n_words):
        if vocabulary is not None:
            if not isinstance(vocabulary, Vocabulary):
                raise TypeError(f"vocabulary must be a Vocabulary, got {type(vocabulary).__name__}")
            if n_words not in (None, len(vocabulary)):
                raise ValueError(f"n_words must be the length of the vocabulary, {len(vocabulary)}, got {n_words}")
            return len(vocabulary)
        if n_words is None:
            tokens = check.integers("tokens", _items(tokens), ("n",))
            return int(tokens.max()) + 1 if len(tokens) else 1
        return check.integer("n_words", n_words, 1)

    def _sequences(self, name, tokens, n_words, training=False, every=False):
        """A text as `RunningText`, sequences as `SeparateLines`, checked; as a step of training takes them, or to be read.

        What is read has the last item of each sequence to be predicted, or `every` one that training would predict.
        """
        tokens = _plain(tokens)
        if device_of(_items(tokens)) == "cuda":
            raise TypeError(
                f"{name} must be a NumPy array, got one on cuda: a text stays on the host; use cupy.asnumpy"
            )
        if _is_sequences(tokens):
            items = check.integers(f"{name}.items", tokens.items, ("m",), n_words)
            indptr = check.integers(f"{name}.indptr", tokens.indptr, ("n",), dtype=np.int64)
            if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(items) or (np.diff(indptr) < 0).any():
                raise ValueError(f"{name}.indptr must rise from 0 to len({name}.items) = {len(items)}")
            lines = SeparateLines(
                indptr, items, int(self.batch_size), int(self.unroll), self.seed, last_only=not (training or every)
            )
            if not lines.n_rows:
                raise ValueError(
                    f"{name} must hold a sequence of two items or more: of one there is nothing to predict"
                )
            return lines
        tokens = check.integers(name, tokens, ("n",), n_words)
        if len(tokens) < 2:
            raise ValueError(
                f"{name} must hold two tokens or more, got {len(tokens)}: each is predicted from those before"
            )
        if not training:
            return RunningText(tokens, max(1, min(int(self.batch_size), (len(tokens) - 1) // STEPS_READ)), STEPS_READ)
        if len(tokens) <= self.batch_size:
            raise ValueError(
                f"{name} must hold more than batch_size = {self.batch_size} tokens, got {len(tokens)}; use a smaller batch_size"
            )
        return RunningText(tokens, int(self.batch_size), int(self.unroll))

    def evaluate(self, tokens):
        """How well every word of a text is predicted, or the last item of each of `Sequences`; by the full softmax.

        A text is read as at most `batch_size` streams, each of which starts without a context.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Words by number.

        Returns
        -------
        figures : dict
            'log-likelihood', the mean ``log p(token | those before)``; 'perplexity', ``exp`` of minus that; 'top-1' and
            'top-5', the share of tokens among the 1 or 5 best words; 'Recall@10' and 'NDCG@10' of the ranking of all
            words; 'tokens', how many were predicted; 'seconds'.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; wrong dtype or shape; tokens out of range, or too few; arrays on CUDA.
        """
        self._check_fitted()
        return _figures(self.network_, self._sequences("tokens", tokens, self.n_words_))

    def perplexity(self, tokens):
        """``exp(-mean log p(token | those before))``, by the full softmax; see `evaluate`.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Words by number.

        Returns
        -------
        perplexity : float

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; wrong dtype or shape; tokens out of range, or too few; arrays on CUDA.
        """
        return self.evaluate(tokens)["perplexity"]

    def encode(self, tokens, out=None, *, every=False):
        """What the output layer sees before each token that is predicted, and that token, in the order of the text.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Of a text, all tokens but the first are predicted; of sequences, the last of each.
        out : path, or (N, width) float32 or float16 array, optional
            A path gets a .npy file of float16, which is returned memory-mapped: it may be larger than memory.
        every : bool
            Of sequences, all items that training predicts, not the last alone.

        Returns
        -------
        h : (N, width) float32, or `out`
            The first column is 1: it meets the words' biases.
        targets : (N,) int32

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; wrong dtype or shape, also of `out`; tokens out of range, or too few; arrays on CUDA.
        """
        self._check_fitted()
        text = self._sequences("tokens", tokens, self.n_words_, every=every)
        shape = len(text.all_places), self.width
        if isinstance(out, (str, os.PathLike)):
            h = write_float16(out, shape, lambda h: self._write_contexts(text, h))
        else:
            dtype = np.float16 if getattr(out, "dtype", None) == np.float16 else np.float32
            h = check.output("out", out, dtype, shape, "cpu")
            self._write_contexts(text, h)
        return h, text.tokens[text.all_places]

    def targets(self, tokens, *, every=False):
        """The tokens that are predicted: those that `encode` returns, without its work.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Words by number.
        every : bool
            Of sequences, all items that training predicts, not the last alone.

        Returns
        -------
        targets : (N,) int32

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; wrong dtype or shape; tokens out of range, or too few; arrays on CUDA.
        """
        self._check_fitted()
        text = self._sequences("tokens", tokens, self.n_words_, every=every)
        return text.tokens[text.all_places]

    def _write_contexts(self, text, h):
        places, state = text.all_places, None
        for chunk in _chunks(text):
            some, state = self.network_.encode(chunk, state)
            h[np.searchsorted(places, chunk.places[chunk.places >= 0])] = some

    def generate(self, prompt, n_words=50, *, temperature=1.0, top_k=None, seed=0):
        """Continue a prompt, word by word.

        Parameters
        ----------
        prompt : str, or (n,) int32 or other integers
            Words divided by blanks, for a model with a vocabulary; those it does not know count as `<unk>`. Or tokens.
        n_words : int
            Words to be drawn.
        temperature : float
            Words are drawn from ``softmax(scores / temperature)``; 0 takes the best word every time.
        top_k : int or None
            Only the k best words are drawn from. `<unk>` never is.
        seed : int
            In [0, 2^64): the same seed draws the same words.

        Returns
        -------
        words : str, or (n_words,) int32
            Like the prompt, without it.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; an argument out of range; an empty prompt, or one without a known word; text without a
            vocabulary.
        FloatingPointError
            The scores overflow.
        """
        self._check_fitted()
        check.elements(n_words=check.integer("n_words", n_words, 0))
        check.number("temperature", temperature, 0, math.inf)
        check.integer("seed", seed, 0, 2**64 - 1)
        top_k = self.n_words_ if top_k is None else check.integer("top_k", top_k, 1)
        is_text = isinstance(prompt, str)
        tokens = self._encode(prompt) if is_text else check.integers("prompt", _plain(prompt), ("n",))
        if not len(tokens):
            raise ValueError("prompt must hold at least one word")
        check.below("prompt", tokens, self.n_words_)
        drawn = self._draw(tokens, n_words, temperature, top_k, seed)
        return " ".join(self.vocabulary_.decode(drawn)).replace(END_OF_LINE, "\n") if is_text else drawn

    def _encode(self, prompt):
        if self.vocabulary_ is None:
            raise TypeError("prompt must be an array of tokens: the model was fitted without a vocabulary")
        words = self.vocabulary_.split(prompt)
        unknown = [word for word in words if word not in self.vocabulary_]
        if words and len(unknown) == len(words):
            raise ValueError(
                f"prompt must hold a word of the vocabulary of {self.n_words_:,}; none of {words} is in it"
            )
        if unknown:
            print(f"sparsemax-nb: not in the vocabulary: {' '.join(unknown)}", file=sys.stderr)
        tokens, _ = self.vocabulary_.encode([words])
        return tokens[: len(words)]  # without the end of the line

    def _draw(self, tokens, n_words, temperature, top_k, seed):
        never = self.vocabulary_.words.index(UNKNOWN) if self.vocabulary_ and UNKNOWN in self.vocabulary_ else None
        if never is not None and self.n_words_ == 1:
            raise ValueError(f"no word can be drawn: the vocabulary holds {UNKNOWN!r} alone")
        network, drawn = self.network_, np.empty(n_words, np.int32)
        text = RunningText(np.append(tokens, 0).astype(np.int32), 1, len(tokens))
        h, state = network.encode(text.chunk(text.rows_in_order()))
        for n in range(n_words):
            scores = product(asarray(h[-1:], self.device_), network.output.weights.T)[0]
            scores = to_numpy(scores).astype(np.float64)
            if not np.isfinite(scores).all():
                raise FloatingPointError(
                    "the scores of the next word are not finite: weights of the model are too large"
                )
            if never is not None:
                scores[never] = -np.inf
            best = np.argsort(-scores, kind="stable")[: 1 if temperature == 0 else top_k]
            if temperature > 0:
                p = np.exp((scores[best] - scores[best[0]]) / temperature)
                word = rng.random_word(np.uint64(seed), rng.GENERATION, np.uint64(0), np.uint64(n))
                best = best[np.searchsorted(np.cumsum(p), rng.unit(word) * p.sum(), side="right") :]
            drawn[n] = best[0]
            h, state = network.encode(Chunk(drawn[n : n + 1, None], np.ones((1, 1), np.int64), False), state)
        return drawn

    def save(self, path):
        """Write the fitted model and its vocabulary (safetensors); the file appears, or is replaced, once it is complete.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        ValueError
            Not fitted yet.
        OSError
            No such folder, no room on disk, or another reason; a file that is there stays as it was.
        """
        self._check_fitted()
        self._write(path)

    def _state(self):
        words, raw = (None, False) if self.vocabulary_ is None else (list(self.vocabulary_.words), self.vocabulary_.raw)
        return {}, {"n_words": self.n_words_, "words": words, "raw": raw}

    def _restore(self, arrays, about, device):
        self.n_words_, words = about["n_words"], about["words"]
        if words is not None and len(words) != self.n_words_:
            raise ValueError(f"a vocabulary of {len(words)} for {self.n_words_} words")
        self.vocabulary_ = None if words is None else Vocabulary(words, about["raw"])
        check.integer("n_layers", self.n_layers, 1, len(arrays))
        arrays.check_shapes(parameter_shapes(self.n_words_, self.width, self.n_layers, self.tied))
        self.network_ = self._new_network(self.n_words_, device)
        self.network_.set_parameters(arrays)


def _plain(tokens):
    """What is no array but can become one, such as a pandas Series, as an array; anything else as it is."""
    can_become_one = hasattr(tokens, "__array__") and device_of(tokens) is None
    return np.asarray(tokens) if can_become_one else tokens


def _is_sequences(tokens):
    """True for `Sequences`, or what looks like them; a sparse matrix has an indptr, too."""
    return hasattr(tokens, "indptr") and hasattr(tokens, "items")


def _items(tokens):
    """The tokens of a text, or of all sequences. (That a Series has a method called items does not make it `Sequences`.)"""
    return tokens.items if _is_sequences(tokens) else tokens


def _parts(tokens):
    """A text or sequences as a pair that `fingerprint` takes."""
    return (tokens.items, tokens.indptr) if _is_sequences(tokens) else (tokens, np.zeros(0))


def _chunks(text):
    """Every `Chunk` of a text, as it is read where nothing is learnt."""
    return (text.chunk(rows) for rows in batches(text.rows_in_order(), text.rows_per_step))


def _figures(network, text):
    """See `LanguageModel.evaluate`."""
    start, found, state = time.perf_counter(), [], None
    for chunk in _chunks(text):
        *of_chunk, state = network.evaluate(chunk, text.targets(chunk), state)
        found.append(of_chunk)
    log_prob, ranks = map(np.concatenate, zip(*found, strict=True))
    mean = float(log_prob.mean(dtype=np.float64))
    return {
        "log-likelihood": mean,
        "perplexity": math.exp(min(-mean, 700.0)),
        "tokens": len(ranks),
        "top-1": float((ranks < 1).mean()),
        "top-5": float((ranks < 5).mean()),
        **metrics.ranking_metrics(ranks, K),
        "seconds": time.perf_counter() - start,
    }
