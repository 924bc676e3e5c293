"""`Classifier`: multi-label classification of sparse bags of words or dense features, with scikit-learn's interface."""

import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from ..core.device import resolve_device
from ..data import TextVectorizer
from . import loop, memory
from .calibration import Calibration
from .classifier_file import DESCRIPTION, ClassifierFile
from .classifier_inputs import ClassifierInputs
from .classifier_kernel import KernelArchitecture
from .classifier_linear import LinearArchitecture
from .classifier_network import NetworkArchitecture
from .classifier_params import ClassifierParams
from .classifier_predictions import ClassifierPredictions
from .classifier_targets import form_of, weighted_rows
from .estimator import MetadataRequests, SampledEstimator
from .explanation import ClassifierExplanations
from .validation import split
from .wide_features import WideFeatures

#: Parameters that decide the shapes of a network.
LAYERS = "output", "loss", "embedding", "intermediate", "bottleneck", "fan_in", "group_size", "weight_dtype"
#: Attributes of an earlier fit that a new one may not set.
FITTED = (
    "feature_names_in_", "C_", "slack_", "frequency_", "power_", "kernel_C_", "trials_", "calibration_", "n_dense_"
)  # fmt: skip


def _arrays(x, labels):
    """Pairs of an array and labels, for fingerprints."""
    return [(x.words, labels), (x.dense, labels)] if isinstance(x, WideFeatures) else [(x, labels)]


class Classifier(
    LinearArchitecture,
    NetworkArchitecture,
    KernelArchitecture,
    ClassifierPredictions,
    ClassifierExplanations,
    ClassifierInputs,
    ClassifierFile,
    ClassifierParams,
    MetadataRequests,
    SampledEstimator,
):
    """Classification with many labels, of texts, sparse or dense features, or both at once.

    Texts become features by `TextVectorizer`: words, word pairs and character n-grams. Dense features are embeddings
    from an encoder of your own. A row has any number of labels, or one class.

    Linear: TF-IDF -> `SparseLinear`, one-vs-rest over all labels, trained by dual coordinate descent. It has no
    learning rate, trains in about a minute where a network takes many, and helps rare labels most. Kernel: embeddings
    -> `NeighborKernel`, one-vs-rest over the nearest training points, trained in the same way. Wide-and-deep: the
    scores of a linear layer over words and of a kernel machine over embeddings are added. Network
    over sparse features: TF-IDF -> embedding -> ReLU -> dropout [-> dense layer of width `intermediate` -> ReLU] ->
    output. Network over dense features: dropout [-> dense layer -> ReLU] -> output. Its gradients are written by hand.

    Parameters
    ----------
    architecture : 'auto', 'linear', 'kernel', 'wide-and-deep' or 'network'
        'auto' selects 'linear' for texts and sparse features, 'kernel' for dense ones ('network' if a parameter of
        networks is not at its default), and 'wide-and-deep' for a pair of both. With 'linear', dense features are
        converted to a CSR matrix. A parameter of another architecture must keep its default.
    C : 'auto' or float
        For 'linear': weight of the errors relative to ``|w|^2 / 2``, above 0. 'auto' tries values from 1/16 to 4 on a
        fifth of the labels (at least 1,000; all if there are fewer than 10,000 points), measured on held-out points or
        on `validation`. It selects the best nDCG@5, refined by a parabola through the neighbours; see `trials_`.
    slack : 'auto' or float
        For 'linear': labels that a point does not have should score at most ``slack - 1``; at least 0, at most
        1.999. 'auto' as for C.
    frequency : 'auto' or float
        For 'linear': predictions add ``frequency * log(number of the label's points)`` to a score; 0 or more. It helps
        if there are few points. 'auto' tries 0 to 0.1.
    co_occurrence : float
        For 'linear': weight with which the best 20 labels are reranked by how often they share points, see `rerank`.
    power : 'auto' or float
        For 'kernel' and 'wide-and-deep': the kernel of two embeddings is their cosine similarity, if positive, to this
        power; in [1, 100]. The mean of the training points is subtracted first. 'auto' tries values from 1 to 96 on
        held-out points.
    kernel_C : 'auto' or float
        C of the kernel machine. 'auto' tries 1/64, 1/4 and 4.
    n_neighbors : int
        Nearest training points that score a row. Among more than 150,000 training points, `fit` finds most of the
        nearest ones (it compares points within clusters); predictions always find all.
    kernel_weight : 'auto' or float
        For 'wide-and-deep': weight of the kernel machine's scores relative to those of the linear layer. 'auto' tries
        0 to 2 on held-out points; see `kernel_weight_`.
    head_weight : 'auto' or float
        For 'wide-and-deep': weight of the scores of a linear layer over the embeddings, see `dense_linear_step`; 0: no
        such layer. It has a weight for each label and column of the embeddings. 'auto' tries 0 to 0.5 on held-out
        points; they preferred 0 on our data sets, but a part with other texts than those of the training gained.
    dense_columns : int
        For 'wide-and-deep', if X is one matrix (such as the output of a ColumnTransformer) instead of a pair: number of
        its last columns that are embeddings.
    features_per_point, min_features : float, int
        For 'linear': a label is connected to this many of its most distinctive features per point, and to at least
        `min_features` if its points have that many; see `SparseLinear.choose`.
    extra_features : float
        For 'linear': number of features added after the first epoch, relative to those chosen before it. They are the
        ones that would have corrected the label's errors. 0 adds none.
    word_pairs, char_ngrams, hash_bits : bool, int, int or None
        Features of texts, see `TextVectorizer`.
    char_weight : 'auto' or float
        Weight of the character n-grams of texts relative to the words. For 'linear', 'auto' doubles it from 1 up to 4
        as long as trials like those for C become better; for 'network' it is 1.
    name_points : bool
        Whether the names of a label (if y has label names, and X texts) are additional training points of that label.
        They help rare labels, and make it possible to predict labels without any training point.
    calibration : bool
        Whether `fit` learns probabilities, `threshold_` and `limit_` from held-out points. For 'linear' these are
        `validation`, or some of the training points: from 10,000 points on they join the training late, and fewer are
        predicted by layers that are trained on the others. For 'network' they are the validation points, if there are
        any.
    threshold : float or str
        Probability that a label needs to be predicted, or the measure that decides it on held-out points: 'sample-f1',
        the mean F1 of the label sets; 'f1@5', with a limit of 5; or for example 'precision=0.8': the smallest threshold
        whose predicted labels are right with at least this share.
    limit : 'auto', int or None
        Maximum number of labels per row; 'auto' is chosen together with the threshold. None is 20, the number of
        labels that are considered.
    output : 'fixed-fan-in', 'group-shared', 'unstructured', 'dense' or 'bottleneck'
        Output layer. 'fixed-fan-in': `fan_in` connections per label. 'group-shared': the same, but a group of labels
        shares its inputs, which is faster. 'unstructured': as many connections in total, at any position (a baseline:
        slower, and it stores all scores). 'dense': all connections to the embedding. 'bottleneck': all connections to a
        narrow layer of width `bottleneck`.
    embedding : int
        Width of the embedding of sparse features.
    intermediate : int or None
        Width of the dense layer below a sparse output; None connects the labels to the embedding itself.
    bottleneck : int
        Width of the narrow layer below output='bottleneck'.
    fan_in : int or None
        Connections per label in a sparse output. None: 64, or half the width of the layer below if that is less. 32
        take half the memory, at some loss of accuracy.
    group_size : int
        Labels per group in a group-shared output.
    grouping : 'similar', 'frequency' or 'random'
        How labels are grouped: by the features of their points, by their number of points, or at random.
    weight_dtype : 'float32' or 'bfloat16'
        Type of the weights of a group-shared output, see `GroupSharedFanIn`.
    loss : 'squared-hinge', 'bce' or 'softmax'
        'softmax' is ``-log softmax(scores)``, summed over a row's labels.
    initial : 'labels' or 'random'
        Weights before the training. 'labels' computes them from the training labels, in closed form: the embedding and
        the output start as a linear model, the wide layer as discriminants of frequent labels, and a sparse output
        chooses its connections. 'random': random hidden layers
        and connections, an output of zeros.
    sampler : 'none', 'uniform', 'log-uniform', 'unigram', 'lsh', 'sphere', 'rff', 'midx-pq' or 'midx-rq'
        'none' computes the softmax over all labels. The others sample negatives for each row, and compare each of its
        labels with these alone: 'uniform'; 'log-uniform', by Zipf's law over the labels ranked by frequency; 'unigram',
        in proportion to frequency; 'midx-rq' and 'midx-pq', from an inverted multi-index over the output weights,
        nearly in proportion to ``exp(score)``; 'lsh', 'sphere' and 'rff', baselines for the CPU only. A step then
        touches only the rows of the output that occur. Predictions always use all labels. For a sparse output (not
        'unstructured', and with float32 weights), all but 'uniform', 'log-uniform' and 'unigram' make a dense copy of
        the weights, of at most 2^27 numbers.
    n_samples : int
        Negatives per row.
    n_codewords : int
        Codewords in each of the two codebooks of a MIDX index.
    residual : 'uniform', 'popularity' or 'exact'
        How MIDX samples inside a cell; see `InvertedMultiIndex.build`.
    index_every : int or None
        Steps between two updates of the samplers that depend on the output weights (midx, lsh, sphere, rff); None: once
        per epoch.
    correction : 'paper' or 'importance'
        Whether log Q is subtracted from all scores, or log(M Q) from those of the negatives only.
    mask_hits : bool
        Ignore draws that equal the target.
    dropout : float
        Dropout rate after the embedding, or of dense features; at most 0.999.
    word_dropout : float
        Dropout rate of the entries of sparse features; at most 0.999.
    learning_rate : float
        Initial learning rate of Adam.
    decay : 'linear' or 'plateau'
        The learning rate falls linearly in the steps, to `min_learning_rate` at the end of the last epoch; or it is
        halved after each `patience` consecutive epochs without a better P@3 on the validation set (with one class per
        row, or up to three labels: P@1).
    embedding_lr_multiplier : float
        Factor of the learning rate for the embedding's table. With initial='random', 10 is better: most words are rare,
        so most steps do not update them.
    intermediate_lr_multiplier : float
        Factor of the learning rate for the weights of the wide layer below a sparse output.
    clip : float or None
        Maximum norm of the gradient of all parameters; larger gradients are scaled down. With clipping, a sparse output
        layer stores the scores of all labels, like a dense one.
    warm_up : int
        Steps over which the learning rate rises linearly from 0.
    min_learning_rate : float
        Lower bound of the decaying learning rate.
    patience, stop_after : int
        With validation, training stops after `stop_after` consecutive epochs without a better P@3; for `patience` see
        `decay`.
    validation_fraction : float
        Share of the rows that `fit` holds out for validation if it is given no validation set; at most 0.999.
    rewire_fraction : float
        Share of a sparse output's connections that each rewiring replaces, those with the smallest weights; 0 disables
        it. Labels without training points keep zero weights: if there are many, only their connections are replaced.
    rewire_every : int
        Steps between two rewirings.
    rewire_until : float
        Rewiring ends after this share of the planned steps, in [0, 1].
    batch_size : int
        Points per training step of a network.
    epochs : int or None
        Maximum number of passes over the data. None: 5.
    budget_seconds : float or None
        Maximum training time in seconds, without compilation and validation. For 'wide-and-deep', the kernel machine
        gets half of it, and the linear layer over words what is left; that over embeddings takes extra time.
    tfidf : 'auto', True or False
        Whether sparse features are counts, to be converted to TF-IDF weights. False uses them as they are, which is
        always done with dense ones. 'auto' means False if any entry is not a non-negative integer, and reports it on
        standard error if `progress` is set.
    warm_start : bool
        Whether another `fit` continues from the weights of the previous one, if it has the same number of features, or
        texts with the same words, and the same labels and layers; otherwise it starts anew. A linear layer keeps its
        features, stays close to its weights, and keeps its calibration unless `validation` is given.
    memory_limit : int or None
        Maximum memory of the training in bytes. With a limit, `fit` prints the memory plan before it allocates (on
        standard error, if `progress` is set), and refuses a network that does not fit.
    seed : int
        Seed of weights, order, dropout, sampling and rewiring.
    device : 'auto', 'cpu' or 'cuda'
        'auto' uses a CUDA device if there is one.
    progress : bool
        Show progress on standard error: a bar, or outside of a terminal one line per tenth of the steps, or of
        the time budget.

    Attributes
    ----------
    architecture_ : 'linear', 'kernel', 'wide-and-deep' or 'network'
    network_ : Network, LinearModel, KernelModel or WideModel
    C_, slack_, frequency_, power_, kernel_C_, kernel_weight_, head_weight_ : float
        The values given or chosen, as far as the architecture has them.
    trials_ : list of dict
        The values tried, and the nDCG@5 of each trial; not for 'network'.
    tfidf_ : Tfidf or None
        None if features are used as they are.
    history_ : History
        Record of the training, epoch by epoch.
    memory_plan_ : Plan
        Predicted bytes of every array of the training; `print` shows the table.
    device_ : str
    classes_ : (L,) array
        The label of each column of the scores: the classes or names that y has in `fit`, or 0, 1, ... for a matrix.
    vectorizer_ : TextVectorizer or None
        None if X has features.
    calibration_ : Calibration or None
        Probabilities from scores.
    threshold_, limit_ : float, int or None
        What `predict` requires of a label by default.
    n_features_in_, n_labels_ : int
    feature_names_in_ : (F,) object array
        Names of the columns, if `fit` was given a DataFrame whose column names are all strings. Later inputs must have
        the same columns in the same order.
    label_counts_ : (L,) int64
        Training points of each label, without names.
    name_counts_ : (L,) int64
        Names that were training points of each label.
    n_points_ : int
        Number of training points.
    label_names_ : list of str, or None
        Name of each label: the first of its `names` in `fit`, else the label itself if it is a name, else what `save`
        was given.

    Notes
    -----
    Labels without training points and names rank last in every result, by id, with the score -1e30 (our choice): the
    model can know nothing about them.

    Source: arXiv 2306.03725 (network, squared hinge, Adam halved on a P@3 plateau, rewiring of 10 % every 1000 steps;
    stopping the rewiring after 66 % of the training comes from later work on the same layer); arXiv 2501.08563 (MIDX;
    every label of a row against the row's negatives). Defaults for narrower data are ours.

    Examples
    --------
    >>> from sparsemax_nb import data, train

    Texts and label names:

    >>> texts, labels = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9
    >>> model = train.Classifier(progress=False).fit(texts, labels)
    >>> model.predict(["a map", "books"])
    [['map'], ['book']]

    Features and a label matrix:

    >>> d = data.bag_of_words(n_rows=500, n_features=80, words_per_row=6, n_labels=40, labels_per_row=2, seed=1)
    >>> model = train.Classifier(progress=False)
    >>> scores, ids = model.fit(d.features, d.labels).top_k(d.features, k=2)
    >>> ids.shape
    (500, 2)
    >>> model.predict(d.features).shape, model.predict(d.features, k=2).shape
    ((500, 40), (500, 2))
    >>> network = train.Classifier(architecture="network", embedding=32, intermediate=128, fan_in=8, progress=False)
    >>> network.fit(d.features, d.labels).encode(d.features).shape
    (500, 128)
    >>> model.evaluate(d.features, d.labels, ks=[1])["P@1"] == model.score(d.features, d.labels)
    True

    New points and a new label, without the old points:

    >>> import scipy.sparse
    >>> more = scipy.sparse.csr_matrix(([1, 1], ([0, 1], [40, 3])), shape=(2, 41))
    >>> model.partial_fit(d.features[:2], more).n_labels_
    41
    >>> model = train.Classifier(progress=False).fit(d.features, d.labels)

    Save and load:

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(Path(folder, "model.safetensors"))
    ...     again = train.Classifier.load(Path(folder, "model.safetensors"))
    >>> bool((again.top_k(d.features, k=2)[1] == ids).all())
    True
    """

    kind = "classifier"
    classes = "labels"
    vectorizer_: TextVectorizer | None = None
    calibration_: Calibration | None = None
    n_dense_ = 0
    fit_call = "fit(X, y)"
    epochs_may_be_none = True
    _file_description = DESCRIPTION
    history_: loop.History

    def __init__(
        self,
        *,
        architecture: str = "auto",
        C: float | str = "auto",
        slack: float | str = "auto",
        frequency: float | str = "auto",
        co_occurrence: float = 0.03,
        features_per_point: float = 8.0,
        min_features: int = 16,
        extra_features: float = 0.5,
        power: float | str = "auto",
        kernel_C: float | str = "auto",  # noqa: N803
        n_neighbors: int = 100,
        kernel_weight: float | str = "auto",
        head_weight: float | str = 0.0,
        dense_columns: int = 0,
        word_pairs: bool = True,
        char_ngrams: int = 4,
        char_weight: float | str = "auto",
        hash_bits: int | None = None,
        name_points: bool = True,
        calibration: bool = True,
        threshold: float | str = "sample-f1",
        limit: int | str | None = "auto",
        output: str = "fixed-fan-in",
        embedding: int = 512,
        intermediate: int | None = 4096,
        bottleneck: int = 64,
        fan_in: int | None = None,
        group_size: int = 16,
        grouping: str = "similar",
        weight_dtype: str = "float32",
        loss: str = "squared-hinge",
        initial: str = "labels",
        sampler: str = "none",
        n_samples: int = 100,
        n_codewords: int = 64,
        residual: str = "uniform",
        index_every: int | None = 100,
        correction: str = "paper",
        mask_hits: bool = False,
        dropout: float = 0.1,
        word_dropout: float = 0.0,
        learning_rate: float = 5e-4,
        decay: str = "linear",
        embedding_lr_multiplier: float = 1.0,
        intermediate_lr_multiplier: float = 1.0,
        clip: float | None = None,
        warm_up: int = 0,
        min_learning_rate: float = 1e-5,
        patience: int = 1,
        stop_after: int = 3,
        validation_fraction: float = 0.0,
        rewire_fraction: float = 0.1,
        rewire_every: int = 1000,
        rewire_until: float = 0.66,
        batch_size: int = 256,
        epochs: int | None = None,
        budget_seconds: float | None = None,
        tfidf: bool | str = "auto",
        warm_start: bool = False,
        memory_limit: int | None = None,
        seed: int = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        self.set_params(**{name: value for name, value in locals().items() if name != "self"})

    def __sklearn_tags__(self):
        """scikit-learn's description of a classifier of texts or features, with one or more labels per row."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        needs_dense = self.architecture == "kernel"
        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True, multi_output=True, single_output=True),
            classifier_tags=ClassifierTags(multi_class=True, multi_label=True),
            input_tags=InputTags(sparse=not needs_dense, string=not needs_dense),
        )

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        names: Mapping[str, str | Sequence[str]] | None = None,
        validation: tuple[Any, Any] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 300.0,
        resume: bool = False,
        after_epoch: Callable[[int, loop.History], object] | None = None,
    ) -> Self:
        """Train on texts or features, and labels.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array, sequence of n texts, or pair
            A dense array may have any float dtype and may be memory-mapped (``np.load(..., mmap_mode="r")``). Rows
            without features, and empty texts, are allowed. A tuple (words, embeddings) has texts or sparse features
            first, then a dense array (n, d), row by row; a row of zeros has no embedding.
        y : label matrix, classes or lists of label names
            (n, L) SciPy sparse or dense matrix: nonzero entries are labels. 1-D array or sequence of n numbers or
            strings: one class per row. Sequence of n lists of str: the names of any number of labels. Rows without
            labels are allowed in a matrix and in lists.
        sample_weight : (n,) array, optional
            Weights of the rows, at least 0; rows of weight 0 are left out, in a copy of X. For a linear layer they are
            factors of C. For a network they say how often an epoch of n rows contains a row, relative to the mean,
            rounded at random.
        names : dict, optional
            If y has label names: {label: name, or [name, synonym, ...]}. With texts, the names are training points if
            `name_points` is set. Labels that y does not contain can then be predicted, too. By default, a label is its
            own name, unless it is a URI.
        validation : pair (X, y), optional
            For a linear layer it decides on C, slack and frequency. For a network it decides, by P@3 or P@1, on the
            learning rate, the early stop, and the epoch whose weights are kept. For both it is the data of the
            calibration.
        checkpoint_path : path, optional
            File to which a checkpoint is written after each epoch, every `checkpoint_seconds`, and on Ctrl-C. Without
            `resume` it must not exist yet.
        checkpoint_seconds : float
            Maximum time between two checkpoints in seconds, plus the current step.
        resume : bool
            Continue from `checkpoint_path` if it exists. The weights become, bit for bit, those of an uninterrupted run
            (on the CPU; on CUDA the last bits of some sums vary). Data and parameters must be the same, except for
            budget_seconds, device, memory_limit, progress and, for a network with validation and no rewiring, epochs.
        after_epoch : callable, optional
            ``after_epoch(epoch, history)``, called after each epoch.

        Returns
        -------
        self : Classifier

        Raises
        ------
        TypeError, ValueError
            Invalid arguments; or `ModelFileError`: the checkpoint is damaged, of another version, or of different data
            or parameters; or `MemoryLimitError`: the model does not fit into `memory_limit`.
        TrainingError
            Loss or input is not finite.
        KeyboardInterrupt
            Ctrl-C, after the current step and its checkpoint. The network then has its last weights.
        """
        self._check_params()
        self._check_checkpoint_path(checkpoint_path, resume, checkpoint_seconds)
        new = copy.copy(self)  # a refused fit leaves `self` unchanged
        for name in FITTED:
            vars(new).pop(name, None)
        new._target_form, new.device_, new.data_ = form_of(y), resolve_device(self.device), None
        new.threshold_, new.limit_ = None, self._fixed_limit
        X, y, weights = weighted_rows(X, y, sample_weight)  # noqa: N806
        X, y, validation = new._inputs(X, y, names, validation)  # noqa: N806
        validation, rows = split(X, y, validation, self.validation_fraction, self.seed)
        new.architecture_, new._fitted_params = self._resolved_architecture(X), self._json_params()
        new.n_features_in_, new.n_labels_, new.is_dense_ = X.shape[1], y.shape[1], isinstance(X, np.ndarray)
        new.n_dense_ = X.dense.shape[1] if isinstance(X, WideFeatures) else 0
        new.n_points_, new.label_counts_ = len(rows), np.bincount(y[rows].indices, minlength=y.shape[1])
        weighted = [] if weights is None else [(weights[:, None], y)]
        X, y, rows = new._with_name_points(X, y, rows)  # noqa: N806
        parts = [(X, y), *([] if validation is None else [validation]), *weighted]
        parts = [part for x, labels in parts for part in _arrays(x, labels)]
        start = self if self.warm_start and self._can_continue(new) else None
        if start is not None and new.architecture_ == "linear":  # there are no points that it does not know
            new.calibration_, new.threshold_, new.limit_ = start.calibration_, start.threshold_, start.limit_
        training = new._training_of[new.architecture_](X, y, validation, rows, weights, start)
        save = self._set_up_checkpoints(training, checkpoint_path, resume, parts)
        new.history_, new.network_ = training.history, training.network
        with self._replaced_by(new):
            training.run(save=save, save_seconds=checkpoint_seconds, progress=self.progress, after_epoch=after_epoch)
        if self.calibration:
            self._calibrate_after(training, y[rows], validation)
        return self

    @property
    def _training_of(self):
        """The function that prepares the training of each architecture."""
        return {
            "linear": self._linear_training,
            "wide-and-deep": self._wide_training,
            "kernel": self._kernel_training,
            "network": self._network_training,
        }

    def _can_continue(self, new):
        """Whether another `fit` can start from the weights of this model."""
        names = "architecture_", "n_features_in_", "is_dense_"
        if (
            new.architecture_ not in ("linear", "network")
            or not self.__sklearn_is_fitted__()
            or any(getattr(self, name) != getattr(new, name) for name in names)
        ):
            return False
        if new.architecture_ == "network" and any(self._fitted_params[n] != new._fitted_params[n] for n in LAYERS):
            return False
        features = [None if m.vectorizer_ is None else (m.vectorizer_._keys, *m._ngram_params) for m in (self, new)]
        return features[0] == features[1] and self.classes_.tolist() == new.classes_.tolist()

    _ngram_params = property(lambda self: (self.vectorizer_.word_pairs, self.vectorizer_.char_ngrams))

    def _plan(self, plan, *smaller):
        """Store the memory plan; MemoryLimitError, which says what could be `smaller`, if it exceeds the limit."""
        self.memory_plan_ = plan
        if self.memory_limit is not None:
            memory.require(plan, self.memory_limit, *smaller)
            if self.progress:
                print(plan, file=sys.stderr)

    def save(self, path: str | os.PathLike[str], label_names: Sequence[str] | None = None) -> None:
        """Write the fitted model to a safetensors file, which appears, or is replaced, only when it is complete.

        Parameters
        ----------
        path : str or path
        label_names : sequence of str, optional
            One name per label, stored with the model. By default `label_names_`.

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; label_names is a single str, or has another number of names than labels.
        FileNotFoundError, IsADirectoryError
            The folder does not exist; `path` is a folder.
        OSError
            The file cannot be written, for example because the disk is full. An existing file is kept.
        """
        self._check_fitted()
        names = self.label_names_ if label_names is None else label_names
        if isinstance(names, (str, bytes)) or not (names is None or hasattr(names, "__iter__")):
            shown = f" {names!r}" if isinstance(names, (str, bytes)) else ""
            raise TypeError(f"label_names must be a sequence of names, got the {type(names).__name__}{shown}")
        names = None if names is None else list(map(str, names))
        if names is not None and len(names) != self.n_labels_:
            raise ValueError(f"label_names must have one name per label, {self.n_labels_} in all, got {len(names)}")
        self._write(path, label_names=names)
