"""`LanguageModel`: prediction of the next word of a text, or the next item of a sequence, with LSTM layers."""

import copy
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from .. import metrics
from ..core import check, description, rng
from ..core.annotations import Array
from ..core.device import asarray, device_of, product, resolve_device, to_numpy
from ..data import Sequences, Vocabulary
from ..data.arrays import write_float16
from ..data.batches import batches
from ..data.text import END_OF_LINE, UNKNOWN
from ..optimizers import Adam
from . import loop
from .chunks import Chunk, RunningText, SeparateLines, fingerprint_parts, is_sequences
from .estimator import DATA_DESCRIPTION, MAX_WIDTH, SampledEstimator
from .language_network import LanguageNetwork, parameter_shapes
from .negatives import Negatives

#: Maximum number of LSTM layers; more are an error.
MAX_LAYERS = 1000
#: Cut-off of the ranking metrics, which are reported in addition to top-1 and top-5.
RANKING_K = 10
#: Tokens of each stream per step when a text is evaluated.
EVALUATION_UNROLL = 64
#: Description in the model file of a language model.
DESCRIPTION = description.record(
    params=description.record(),
    n_words=description.integer(1),
    raw=description.boolean,
    words=description.optional(description.list_of(description.text)),
    data=DATA_DESCRIPTION,
)


class LanguageModel(SampledEstimator):
    """A language model with an output layer over very many words, trained with hand-written gradients.

    Token -> embedding -> dropout -> (LSTM -> dropout) `n_layers` times -> softmax over all words. The first
    column of the output weights is the bias, because the first entry of h is always 1. It is initially the word's
    log-frequency: training starts from a unigram model (our choice).

    A text is read as `batch_size` parallel streams, `unroll` tokens per step. The state is passed from step to step;
    back-propagation through time stops at the beginning of a step. Separate sequences (`data.Sequences`: lines of
    items) are read `batch_size` at a time, each from its beginning.

    Parameters
    ----------
    width : int
        Width of the embedding and of each LSTM layer.
    n_layers : int
        Number of stacked LSTM layers.
    tied : bool
        Whether the output's weights are the embedding's table. Separate weights start at zero, except for the bias.
    sampler : 'none', 'uniform', 'log-uniform', 'unigram', 'lsh', 'sphere', 'rff', 'midx-pq' or 'midx-rq'
        How negatives are sampled; 'none' computes the softmax over all words. `Classifier` describes the samplers.
    n_samples, n_codewords : int
        Negatives per row; codewords in each of the two codebooks of a MIDX index.
    residual : 'uniform', 'popularity' or 'exact'
        How MIDX samples inside a cell.
    index_every : int or None
        Steps between two updates of the samplers that depend on the output weights; None: once per epoch.
    correction : 'paper' or 'importance'
        Whether log Q is subtracted from all scores, or log(M Q) from those of the negatives only.
    mask_hits : bool
        Ignore draws that equal the target.
    dropout : float
        Dropout rate after the embedding and after each LSTM layer; at most 0.999.
    clip : float
        Maximum norm of the gradient of all parameters together; larger gradients are scaled down.
    learning_rate : float
        Initial learning rate of Adam. Rows of embedding and output that a step does not touch are not updated (lazy
        Adam); with sampler='none' a step touches all rows of the output.
    decay : 'linear' or 'plateau'
        The learning rate falls linearly in the steps, to `min_learning_rate` at the end of the last epoch; or it is
        halved after each `patience` consecutive epochs without a better validation.
    warm_up : int
        Steps over which the learning rate rises linearly from 0.
    min_learning_rate : float
        Lower bound of the decaying learning rate.
    patience, stop_after : int
        Training stops after `stop_after` consecutive epochs without a better validation; for `patience` see `decay`.
    batch_size, unroll : int
        For a text: number of streams, and tokens of each per step. For sequences: sequences per step, and how many of
        their last items are used.
    epochs : int
        Maximum number of passes over the text.
    budget_seconds : float or None
        Maximum training time in seconds, without compilation and validation.
    seed : int
        Seed of weights, order, dropout and sampling.
    device : 'auto', 'cpu' or 'cuda'
        'auto' uses a CUDA device if there is one.
    progress : bool
        Show progress on standard error: a bar in a terminal, else a line per tenth of the steps, or of the
        time budget.

    Attributes
    ----------
    network_ : LanguageNetwork
    vocabulary_ : Vocabulary or None
    n_words_ : int
    history_ : History
        Record of the training, epoch by epoch.
    device_ : str

    Notes
    -----
    Source: arXiv 2501.08563 and arXiv 1901.10668 (two layers of width 200, tied embeddings); W. Zaremba et al., arXiv
    1409.2329 (position of the dropout); O. Press, L. Wolf, "Using the output embedding to improve language models",
    EACL 2017 (tied embeddings). Optimizer, rates and schedule are ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import train
    >>> text = np.arange(2000, dtype=np.int32) % 7  # 0 1 2 3 4 5 6 0 1 ...
    >>> model = train.LanguageModel(
    ...     width=16, sampler="uniform", n_samples=3, dropout=0.0, batch_size=8, unroll=10, epochs=10,
    ...     learning_rate=0.01, device="cpu", progress=False,
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

    Save and load:

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(Path(folder, "model.safetensors"))
    ...     again = train.LanguageModel.load(Path(folder, "model.safetensors"), device="cpu")
    >>> again.perplexity(text) == model.perplexity(text)
    True
    """

    kind = "language model"
    classes = "words"
    fit_call = "fit(tokens)"
    _file_description = DESCRIPTION
    history_: loop.History

    def __init__(
        self,
        *,
        width: int = 200,
        n_layers: int = 2,
        tied: bool = True,
        sampler: str = "midx-rq",
        n_samples: int = 100,
        n_codewords: int = 64,
        residual: str = "uniform",
        index_every: int | None = 100,
        correction: str = "paper",
        mask_hits: bool = False,
        dropout: float = 0.3,
        clip: float = 1.0,
        learning_rate: float = 5e-3,
        decay: str = "linear",
        warm_up: int = 0,
        min_learning_rate: float = 1e-5,
        patience: int = 1,
        stop_after: int = 3,
        batch_size: int = 64,
        unroll: int = 35,
        epochs: int = 6,
        budget_seconds: float | None = None,
        seed: int = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        self.set_params(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})

    def _check_params(self):
        super()._check_params()
        check.integer("width", self.width, 2, MAX_WIDTH)
        check.integer("unroll", self.unroll, 1)
        check.integer("n_layers", self.n_layers, 1, MAX_LAYERS)
        if not isinstance(self.tied, (bool, np.bool_)):
            raise TypeError(f"tied must be True or False, got {self.tied!r}")
        check.number("clip", self.clip, 0, math.inf, open_ends=True)

    def _new_network(self, n_words, device):
        names = "width", "n_layers", "tied", "dropout", "clip", "seed"
        return LanguageNetwork(n_words, **{name: getattr(self, name) for name in names}, device=device)

    def fit(
        self,
        tokens: Array | Sequences,
        *,
        vocabulary: Vocabulary | None = None,
        n_words: int | None = None,
        validation: Array | Sequences | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 300.0,
        resume: bool = False,
        after_epoch: Callable[[int, loop.History], object] | None = None,
    ) -> Self:
        """Train on a text or on sequences.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Word numbers; in memory or memory-mapped.
        vocabulary : Vocabulary, optional
            Meaning of the numbers, saved with the model; by default the vocabulary of `Sequences`.
        n_words : int, optional
            Number of words if there is no vocabulary; by default the largest token plus one.
        validation : like tokens, optional
            Evaluated after each epoch, see `evaluate`. The weights of the best epoch are kept, by the likelihood of a
            text or the NDCG@10 of sequences.
        checkpoint_path : path, optional
            See `Classifier.fit` for this and the next three parameters.
        checkpoint_seconds : float
        resume : bool
            If the learning rate falls linearly, `epochs` must be the same, too.
        after_epoch : callable, optional

        Returns
        -------
        self : LanguageModel

        Raises
        ------
        TypeError, ValueError
            Invalid arguments; or `ModelFileError`: the checkpoint is damaged, of another version, or of different data
            or parameters.
        TrainingError
            The loss, its gradient or a parameter is not finite. The last checkpoint is kept.
        KeyboardInterrupt
            Ctrl-C, after the current step and its checkpoint.
        """
        self._check_params()
        device = resolve_device(self.device)
        tokens, validation = _as_tokens(tokens), None if validation is None else _as_tokens(validation)
        vocabulary = getattr(tokens, "vocabulary", None) if vocabulary is None else vocabulary
        n_words = self._count_words(tokens, vocabulary, n_words)
        text = self._sequences("tokens", tokens, n_words, training=True)
        validation_text = None if validation is None else self._sequences("validation", validation, n_words)
        if validation_text is not None and type(text) is not type(validation_text):
            raise TypeError("tokens and validation must both be continuous text, or both Sequences")
        self._check_sampler(n_words, self.width, device)
        self._check_checkpoint_path(checkpoint_path, resume, checkpoint_seconds)
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
            validate=None if validation_text is None else lambda: _evaluate(network, validation_text),
            monitor=f"NDCG@{RANKING_K}" if isinstance(validation_text, SeparateLines) else "log-likelihood",
        )
        parts = [fingerprint_parts(part) for part in (tokens, validation) if part is not None]
        save = self._set_up_checkpoints(training, checkpoint_path, resume, parts)
        new = copy.copy(self)  # a refused fit leaves `self` unchanged
        new.network_, new.n_words_ = network, n_words
        new.vocabulary_, new.device_ = vocabulary, device
        new._fitted_params, new.history_, new.data_ = self._json_params(), training.history, None
        with self._replaced_by(new):
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
        """Checked tokens as `RunningText` or `SeparateLines`, with the step sizes for training or evaluation.

        For evaluation, each sequence predicts only its last item, or with `every` all items that training predicts.
        """
        tokens = _as_tokens(tokens)
        if device_of(_items(tokens)) == "cuda":
            raise TypeError(f"{name} must be a NumPy array, got one on cuda: texts stay on the host; use cupy.asnumpy")
        if is_sequences(tokens):
            items = check.integers(f"{name}.items", tokens.items, ("m",), n_words)
            indptr = check.integers(f"{name}.indptr", tokens.indptr, ("n",), dtype=np.int64)
            if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(items) or (np.diff(indptr) < 0).any():
                raise ValueError(f"{name}.indptr must rise from 0 to len({name}.items) = {len(items)}")
            lines = SeparateLines(
                indptr, items, int(self.batch_size), int(self.unroll), self.seed, last_only=not (training or every)
            )
            if not lines.n_rows:
                raise ValueError(f"{name} must have a sequence of at least two items, else nothing can be predicted")
            return lines
        tokens = check.integers(name, tokens, ("n",), n_words)
        if len(tokens) < 2:
            raise ValueError(
                f"{name} must have at least two tokens, got {len(tokens)}: each is predicted from those before it"
            )
        if not training:
            n_streams = max(1, min(int(self.batch_size), (len(tokens) - 1) // EVALUATION_UNROLL))
            return RunningText(tokens, n_streams, EVALUATION_UNROLL)
        if len(tokens) <= self.batch_size:
            raise ValueError(
                f"{name} must have more than batch_size = {self.batch_size} tokens, got {len(tokens)}; "
                "use a smaller batch_size"
            )
        return RunningText(tokens, int(self.batch_size), int(self.unroll))

    def evaluate(self, tokens: Array | Sequences) -> dict[str, float]:
        """Measure, with the full softmax, how well each word of a text or the last item of each sequence is predicted.

        A text is read as at most `batch_size` streams, each of which starts without context.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Word numbers.

        Returns
        -------
        metrics : dict
            'log-likelihood': mean ``log p(token | tokens before)``. 'perplexity': ``exp(-log-likelihood)``. 'top-1' and
            'top-5': share of the tokens among the best 1 or 5 words. 'Recall@10' and 'NDCG@10' of the ranking of all
            words. 'tokens': number of predicted tokens. 'seconds'.

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; wrong dtype or shape; tokens out of range, or too few; arrays on CUDA.
        """
        self._check_fitted()
        return _evaluate(self.network_, self._sequences("tokens", tokens, self.n_words_))

    def perplexity(self, tokens: Array | Sequences) -> float:
        """Return ``exp(-mean log p(token | tokens before))`` under the full softmax; see `evaluate`.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Word numbers.

        Returns
        -------
        perplexity : float

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; wrong dtype or shape; tokens out of range, or too few; arrays on CUDA.
        """
        return self.evaluate(tokens)["perplexity"]

    def encode(self, tokens: Array | Sequences, out: Any = None, *, every: bool = False) -> tuple[Array, np.ndarray]:
        """Return the input of the output layer before each predicted token, and that token, in the order of the text.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            In a text, all tokens but the first are predicted; in sequences, the last of each.
        out : path, or (N, width) float32 or float16 array, optional
            With a path, h is written to a .npy file of float16 and returned memory-mapped; it may exceed the memory.
        every : bool
            For sequences: all items that training predicts, not only the last.

        Returns
        -------
        h : (N, width) float32, or `out`
            The first column is 1: it is multiplied by the words' biases.
        targets : (N,) int32

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; wrong dtype or shape, also of `out`; tokens out of range, or too few; arrays on
            CUDA.
        """
        self._check_fitted()
        text = self._sequences("tokens", tokens, self.n_words_, every=every)
        shape = len(text.all_positions), self.width
        if isinstance(out, (str, os.PathLike)):
            h = write_float16(out, shape, lambda h: self._write_h(text, h))
        else:
            dtype = np.float16 if getattr(out, "dtype", None) == np.float16 else np.float32
            h = check.output("out", out, dtype, shape, "cpu")
            self._write_h(text, h)
        return h, text.tokens[text.all_positions]

    def targets(self, tokens: Array | Sequences, *, every: bool = False) -> np.ndarray:
        """Return the tokens that are predicted, as `encode` does, but without computing h.

        Parameters
        ----------
        tokens : (n,) int32 or other integers, or Sequences
            Word numbers.
        every : bool
            For sequences: all items that training predicts, not only the last.

        Returns
        -------
        targets : (N,) int32

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; wrong dtype or shape; tokens out of range, or too few; arrays on CUDA.
        """
        self._check_fitted()
        text = self._sequences("tokens", tokens, self.n_words_, every=every)
        return text.tokens[text.all_positions]

    def _write_h(self, text, h):
        positions, state = text.all_positions, None
        for chunk in _chunks(text):
            h_of_chunk, state = self.network_.encode(chunk, state)
            h[np.searchsorted(positions, chunk.positions[chunk.positions >= 0])] = h_of_chunk

    def generate(
        self,
        prompt: str | Array,
        n_words: int = 50,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> str | np.ndarray:
        """Continue a prompt, word by word.

        Parameters
        ----------
        prompt : str, or (n,) int32 or other integers
            Words separated by spaces, for a model with a vocabulary (unknown words become `<unk>`); or tokens.
        n_words : int
            Number of words to generate.
        temperature : float
            Words are sampled from ``softmax(scores / temperature)``; 0 always takes the best word.
        top_k : int or None
            Sample from only the k best words. `<unk>` is never generated.
        seed : int
            In [0, 2^64): the same seed generates the same words.

        Returns
        -------
        words : str, or (n_words,) int32
            Like the prompt, which is not included.

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; an argument out of range; a prompt that is empty or has no known word; a text
            prompt without a vocabulary.
        FloatingPointError
            The scores overflow.
        """
        self._check_fitted()
        check.array_size(n_words=check.integer("n_words", n_words, 0))
        check.number("temperature", temperature, 0, math.inf)
        check.integer("seed", seed, 0, 2**64 - 1)
        top_k = self.n_words_ if top_k is None else check.integer("top_k", top_k, 1)
        is_text = isinstance(prompt, str)
        tokens = self._encode(prompt) if is_text else check.integers("prompt", _as_tokens(prompt), ("n",))
        if not len(tokens):
            raise ValueError("prompt must have at least one word")
        check.in_range("prompt", tokens, self.n_words_)
        drawn = self._draw(tokens, n_words, temperature, top_k, seed)
        return " ".join(self.vocabulary_.decode(drawn)).replace(END_OF_LINE, "\n") if is_text else drawn

    def _encode(self, prompt):
        if self.vocabulary_ is None:
            raise TypeError("prompt must be an array of tokens: the model was fitted without a vocabulary")
        words = self.vocabulary_.split(prompt)
        unknown = [word for word in words if word not in self.vocabulary_]
        if words and len(unknown) == len(words):
            raise ValueError(
                f"prompt must have a word of the vocabulary ({self.n_words_:,} words), got only unknown words: {words}"
            )
        if unknown:
            print(f"sparsemax-nb: not in the vocabulary: {' '.join(unknown)}", file=sys.stderr)
        tokens, _ = self.vocabulary_.encode([words])
        return tokens[: len(words)]  # without the end of the line

    def _draw(self, tokens, n_words, temperature, top_k, seed):
        unknown = self.vocabulary_.words.index(UNKNOWN) if self.vocabulary_ and UNKNOWN in self.vocabulary_ else None
        if unknown is not None and self.n_words_ == 1:
            raise ValueError(f"no word can be generated: the vocabulary has only {UNKNOWN!r}")
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
            if unknown is not None:
                scores[unknown] = -np.inf
            best = np.argsort(-scores, kind="stable")[: 1 if temperature == 0 else top_k]
            if temperature > 0:
                p = np.exp((scores[best] - scores[best[0]]) / temperature)
                word = rng.random_word(np.uint64(seed), rng.GENERATION, np.uint64(0), np.uint64(n))
                drawn_index = np.searchsorted(np.cumsum(p), rng.unit(word) * p.sum(), side="right")
                best = best[min(drawn_index, len(best) - 1) :]  # rounding must not lead past the last word
            drawn[n] = best[0]
            h, state = network.encode(Chunk(drawn[n : n + 1, None], np.ones((1, 1), np.int64), False), state)
        return drawn

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model and its vocabulary to a safetensors file, which appears only when it is complete.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        ValueError
            The model is not fitted yet.
        OSError
            The file cannot be written, for example because the disk is full. An existing file is kept.
        """
        self._check_fitted()
        self._write(path)

    def _state(self):
        words, raw = (None, False) if self.vocabulary_ is None else (list(self.vocabulary_.words), self.vocabulary_.raw)
        return {}, {"n_words": self.n_words_, "words": words, "raw": raw}

    def _restore(self, arrays, about, device):
        self.n_words_, words = about["n_words"], about["words"]
        if words is not None and len(words) != self.n_words_:
            raise ValueError(f"words must have n_words = {self.n_words_} words, got {len(words)}")
        self.vocabulary_ = None if words is None else Vocabulary(words, about["raw"])
        check.integer("n_layers", self.n_layers, 1, len(arrays))
        arrays.check_shapes(parameter_shapes(self.n_words_, self.width, self.n_layers, self.tied))
        self.network_ = self._new_network(self.n_words_, device)
        self.network_.set_parameters(arrays)


def _as_tokens(tokens):
    """Objects such as a pandas Series as a NumPy array; arrays and everything else unchanged."""
    is_convertible = hasattr(tokens, "__array__") and device_of(tokens) is None
    return np.asarray(tokens) if is_convertible else tokens


def _items(tokens):
    """The tokens of a text, or of all sequences; a Series is a text, although it has a method `items`."""
    return tokens.items if is_sequences(tokens) else tokens


def _chunks(text):
    """All chunks of a text, in the order of evaluation."""
    return (text.chunk(rows) for rows in batches(text.rows_in_order(), text.rows_per_step))


def _evaluate(network, text):
    """The result of `LanguageModel.evaluate`."""
    start, results, state = time.perf_counter(), [], None
    for chunk in _chunks(text):
        *result, state = network.evaluate(chunk, text.targets(chunk), state)
        results.append(result)
    log_prob, ranks = map(np.concatenate, zip(*results, strict=True))
    mean = float(log_prob.mean(dtype=np.float64))
    return {
        "log-likelihood": mean,
        "perplexity": math.exp(min(-mean, 700.0)),
        "tokens": len(ranks),
        "top-1": float((ranks < 1).mean()),
        "top-5": float((ranks < 5).mean()),
        **metrics.ranking_metrics(ranks, RANKING_K),
        "seconds": time.perf_counter() - start,
    }
