"""`Classifier`: multi-label classification of sparse bags of words or dense features, with scikit-learn manners."""

import copy
import functools
import math
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import scipy.sparse

from .. import metrics
from ..co_occurrence import most_pairs
from ..core import check, checkpoint, description, sparse
from ..core.connections import FeatureLists
from ..core.device import asarray, device_of, resolve_device, to_numpy
from ..data import Tfidf
from ..data.batches import shuffled
from ..data.tfidf import first_non_count
from ..group_shared import DTYPES
from ..grouping import GROUPINGS, group_labels
from ..linear import extended_lists
from ..optimizers import Adam
from . import linear, loop, memory
from .estimator import DATA, FREE_TO_CHANGE, MOST_WIDTH, AvailableIf, SampledEstimator
from .negatives import INDICES, Negatives
from .network import LOSSES, OUTPUTS, SPARSE_OUTPUTS, Network, parameter_shapes

KS = (1, 3, 5)
#: The "epoch" whose order chooses the rows set aside: no run gets that far.
VALIDATION_EPOCH = 2**32 - 1
ARCHITECTURES = "linear", "network"
#: Parameters that only one of the architectures has.
LINEAR_ONLY = "C", "slack", "frequency", "co_occurrence", "features_per_point", "min_features", "extra_features"
NETWORK_ONLY = (
    "output",
    "embedding",
    "intermediate",
    "bottleneck",
    "fan_in",
    "group_size",
    "grouping",
    "weight_dtype",
    "loss",
    "sampler",
    "n_samples",
    "n_codewords",
    "residual",
    "index_every",
    "correction",
    "mask_hits",
    "dropout",
    "word_dropout",
    "learning_rate",
    "embedding_rate",
    "intermediate_rate",
    "warm_up",
    "min_learning_rate",
    "patience",
    "stop_after",
    "rewire_fraction",
    "rewire_every",
    "rewire_until",
    "batch_size",
)
#: Passes over the data where `epochs` is not given.
EPOCHS = {"linear": 5, "network": 10}
#: What the file of a classifier says beside its arrays.
DESCRIPTION = description.record(
    architecture=description.text,
    C=description.optional(description.number(0)),
    slack=description.optional(description.number(0)),
    frequency=description.optional(description.number(0)),
    params=description.record(),
    n_features=description.integer(1),
    n_labels=description.integer(1),
    n_points=description.integer(0),
    is_dense=description.boolean,
    label_names=description.optional(description.list_of(description.text)),
    tfidf=description.boolean,
    feature_names=description.optional(description.list_of(description.text)),
    data=DATA,
)


class Classifier(SampledEstimator):
    """Multi-label classification with many labels: a linear layer over sparse features, or a network.

    Linear: TF-IDF -> `SparseLinear`, each label against the rest, exactly over all labels, by dual coordinate descent.
    There is no learning rate; a fit takes seconds where a network takes minutes, and rare labels gain most. Network,
    trained with hand-written gradients. Sparse features: TF-IDF -> embedding -> ReLU -> dropout [-> dense layer of
    width `intermediate` -> ReLU] -> output. Dense features take the place of the embedding: dropout [-> dense layer ->
    ReLU] -> output.

    Parameters
    ----------
    architecture : 'auto', 'linear' or 'network'
        'auto' takes 'linear' for sparse features and 'network' for dense ones. A parameter of the other architecture
        that is not at its default is an error.
    C : 'auto' or float
        Of 'linear': what an error weighs against ``|w|^2 / 2``, above 0. 'auto' tries values from 1/16 to 4 on a fifth
        of the labels (1,000 at least; all where there are fewer than 10,000 points), with all of their points but those
        held back (or with `validation`), and takes that with the best nDCG@5, or what lies between it and a neighbour
        by the parabola through their figures; see `trials_`.
    slack : 'auto' or float
        Of 'linear': other labels than a point's own are asked for a score of ``slack - 1``, in [0, 2). 'auto' as for C.
    frequency : 'auto' or float
        Of 'linear': what the answers add to a label's score for the logarithm of its number of points; 0 or more. It
        helps where there are few points. 'auto' tries 0 to 0.1.
    co_occurrence : float
        Of 'linear': the weight with which the best 20 labels are reranked by how often they share points, see `rerank`.
        0 turns it off, and no pairs of labels are counted.
    features_per_point, min_features : float, int
        Of 'linear': a label is connected to so many features for each of its points, and to so many at least, where its
        points have them: to those that stand out most, see `SparseLinear.choose`.
    extra_features : float
        Of 'linear': so many times as many features more, chosen after the first pass by what would have corrected the
        label's errors; 0 for none.
    output : 'fixed-fan-in', 'group-shared', 'unstructured', 'dense' or 'bottleneck'
        The output layer: `fan_in` connections per label; the same, to inputs that a group of labels shares, which is
        faster; as many, but anywhere in the layer (a rival: slower, and it stores all scores); all connections to the
        embedding; all connections to a narrow layer of width `bottleneck`.
    embedding : int
        Width of the embedding of sparse features.
    intermediate : int or None
        Width of the dense layer below a sparse output; None connects the labels to the embedding itself.
    bottleneck : int
        Width of the narrow layer below output='bottleneck'.
    fan_in : int
        Connections of a label in a sparse output.
    group_size : int
        Labels that share their inputs in a group-shared output.
    grouping : 'similar', 'frequency' or 'random'
        How its labels are grouped: by the features of their points (in memory for that long: the sum of each label's),
        by the number of points, or at random. See `group_labels`.
    weight_dtype : 'float32' or 'bfloat16'
        What the weights of a group-shared output are stored in; bfloat16 ones are rounded at random, see
        `GroupSharedFanIn`.
    loss : 'squared-hinge', 'bce' or 'softmax'
        The softmax loss, ``-log softmax(scores)`` summed over a row's labels, is for a dense output or a bottleneck.
    sampler : 'none', 'uniform', 'log-uniform', 'unigram', 'lsh', 'sphere', 'rff', 'midx-pq' or 'midx-rq'
        'none' takes the softmax over all labels. The others draw negatives for each row, and compare each of its labels
        with these alone: 'uniform'; 'log-uniform', by Zipf's law over the labels ranked by frequency; 'unigram', in
        proportion to frequency; 'midx-rq' and 'midx-pq', from an inverted multi-index over the output weights, nearly
        in proportion to ``exp(score)``; 'lsh', 'sphere' and 'rff', baselines for the CPU alone. A step then touches
        only those rows of the output that occur. Predictions are always over all labels.
    n_samples : int
        Negatives of a row.
    n_codewords : int
        Of each of the two codebooks of a MIDX index.
    residual : 'uniform', 'popularity' or 'exact'
        How MIDX draws inside a cell; see `InvertedMultiIndex.build`.
    index_every : int or None
        Steps between two updates of what midx, lsh, sphere and rff draw from, which follows the output weights; None:
        once an epoch.
    correction : 'paper' or 'importance'
        Of `sampled_softmax`, which see.
    mask_hits : bool
        The same.
    dropout : float
        Rate behind the embedding, or of dense features, in [0, 1).
    word_dropout : float
        Rate at which the entries of sparse features are dropped, in [0, 1).
    learning_rate : float
        Of Adam, at the start.
    embedding_rate : float
        The embedding's table learns at so many times that rate: most words are rare, and lazy updates leave them alone
        in most steps.
    intermediate_rate : float
        The weights of the wide layer below a sparse output learn at so many times the learning rate. A slow layer keeps
        features that labels with few points can not bend to their own (our choice).
    warm_up : int
        Steps over which the learning rate rises from 0, linearly.
    min_learning_rate : float
        Below it the learning rate does not fall.
    patience : int
        Where there is validation, the learning rate is halved, down to `min_learning_rate`, after every so many epochs
        in a row that do not raise the best P@3.
    stop_after : int
        Training stops after so many such epochs in a row.
    validation_fraction : float
        Share of the rows that `fit` sets aside for validation where it is not given a validation set, in [0, 1).
    rewire_fraction : float
        Share of a sparse output's connections that a rewiring replaces; 0 switches it off. The weights of a label that
        no training point has stay zero, the smallest there are: where there are many, only theirs are replaced.
    rewire_every : int
        Steps between two rewirings.
    rewire_until : float
        Rewiring ends after this share of the planned steps, in [0, 1].
    batch_size : int
        Points of a step of a network.
    epochs : int or None
        Passes over the data, at most. None: 5 for 'linear', 10 for 'network'.
    budget_seconds : float or None
        Training stops after so many seconds even if epochs are left; neither compiling nor validation is counted.
    tfidf : 'auto', True or False
        Whether sparse features are counts that become TF-IDF weights. False takes them as they are, as dense ones
        always are. 'auto' does so where any of them is no count (a whole number of at least 0): then they are weights
        already. With `progress`, `fit` says so on standard error.
    memory_limit : int or None
        Bytes that training may take. Where it is given, `fit` says before it allocates what each array will take (with
        `progress`, on standard error), and refuses what does not fit.
    seed : int
        Of weights, order, dropout, draws and rewiring.
    device : 'auto', 'cpu' or 'cuda'
        'auto' takes a CUDA device where there is one.
    progress : bool
        Show progress on standard error: a bar in a terminal, else a line for every tenth of the steps.

    Attributes
    ----------
    architecture_ : 'linear' or 'network'
    network_ : Network or LinearModel
    C_, slack_, frequency_ : float
        Of 'linear': those that were given or chosen.
    trials_ : list of dict
        Of 'linear': what was tried for them, with the nDCG@5 of each.
    tfidf_ : Tfidf or None
        None where features are taken as they are.
    history_ : History
        What the run did, epoch by epoch.
    memory_plan_ : Plan
        Every array of the training and its bytes, as predicted before it was allocated; `print` shows the table.
    device_ : str
    n_features_in_, n_labels_ : int
    feature_names_in_ : (F,) object array
        Names of the columns, where `fit` was given a DataFrame whose columns all have strings for names. Columns with
        other names, or in another order, are refused from then on.
    label_counts_ : (L,) int64
        Training points of each label.
    n_points_ : int
        Training points.
    label_names_ : list of str, or None
        Those of the file that the model was loaded from.

    Notes
    -----
    Labels that no training point has come last in every list, by id, with the score -1e30 (our choice): there is
    nothing that a model could know of them.

    Source: arXiv 2306.03725 (network, squared hinge, Adam halved on a P@3 plateau, rewiring of 10 % every 1000 steps;
    that rewiring stops after 66 % of the training comes from later work on the same layer); arXiv 2501.08563 (MIDX;
    every label of a row against the row's draws); defaults for narrower data are ours.

    Examples
    --------
    >>> from sparsemax_nb import data, train
    >>> d = data.bag_of_words(n_rows=500, n_features=80, words_per_row=6, n_labels=40, labels_per_row=2, seed=1)
    >>> model = train.Classifier(progress=False)
    >>> scores, ids = model.fit(d.features, d.labels).top_k(d.features, k=2)
    >>> ids.shape
    (500, 2)
    >>> model.predict(d.features, k=2).shape
    (500, 2)
    >>> network = train.Classifier(architecture="network", embedding=32, intermediate=128, fan_in=8, progress=False)
    >>> network.fit(d.features, d.labels).contexts(d.features).shape
    (500, 128)
    >>> model.evaluate(d.features, d.labels, ks=[1])["P@1"] == model.score(d.features, d.labels)
    True

    New points and a new label, without the old ones:

    >>> import scipy.sparse
    >>> more = scipy.sparse.csr_matrix(([1, 1], ([0, 1], [40, 3])), shape=(2, 41))
    >>> model.partial_fit(d.features[:2], more).n_labels_
    41
    >>> model = train.Classifier(progress=False).fit(d.features, d.labels)

    On disk and back:

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(Path(folder, "model.safetensors"))
    ...     again = train.Classifier.load(Path(folder, "model.safetensors"))
    >>> bool((again.top_k(d.features, k=2)[1] == ids).all())
    True
    """

    kind, classes, fit_call, epochs_may_be_none = "classifier", "labels", "fit(X, y)", True

    def __init__(
        self,
        *,
        architecture="auto",
        C="auto",
        slack="auto",
        frequency="auto",
        co_occurrence=0.03,
        features_per_point=8.0,
        min_features=16,
        extra_features=0.5,  # noqa: N803
        output="fixed-fan-in",
        embedding=256,
        intermediate=4096,
        bottleneck=64,
        fan_in=32,
        group_size=16,
        grouping="similar",
        weight_dtype="float32",
        loss="squared-hinge",
        sampler="none",
        n_samples=100,
        n_codewords=64,
        residual="uniform",
        index_every=100,
        correction="paper",
        mask_hits=False,
        dropout=0.1,
        word_dropout=0.0,
        learning_rate=5e-4,
        embedding_rate=10.0,
        intermediate_rate=0.1,
        warm_up=0,
        min_learning_rate=1e-4,
        patience=1,
        stop_after=3,
        validation_fraction=0.0,
        rewire_fraction=0.1,
        rewire_every=1000,
        rewire_until=0.66,
        batch_size=128,
        epochs=None,
        budget_seconds=None,
        tfidf="auto",
        memory_limit=None,
        seed=0,
        device="auto",
        progress=True,
    ):
        self.set_params(**{name: value for name, value in locals().items() if name != "self"})

    def __sklearn_tags__(self):
        """What scikit-learn asks an estimator: a multi-label classifier of sparse or dense features."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True, multi_output=True, single_output=False),
            classifier_tags=ClassifierTags(multi_class=False, multi_label=True),
            input_tags=InputTags(sparse=True),
        )

    def _check_params(self):
        super()._check_params()
        check.choice("architecture", self.architecture, ("auto", *ARCHITECTURES))
        if self.C != "auto":
            check.number("C", self.C, 0, math.inf, open_ends=True)
        if self.slack != "auto":
            check.number("slack", self.slack, 0, 1.999)
        if self.frequency != "auto":
            check.number("frequency", self.frequency, 0, 1e6)
        check.number("co_occurrence", self.co_occurrence, 0, 1e6)
        check.number("features_per_point", self.features_per_point, 0, 1e6)
        check.integer("min_features", self.min_features, 1)
        check.number("extra_features", self.extra_features, 0, 1e6)
        check.choice("output", self.output, tuple(OUTPUTS))
        check.choice("loss", self.loss, LOSSES)
        if self.loss == "softmax" and self.output in SPARSE_OUTPUTS:
            raise ValueError(f"loss='softmax' needs output='dense' or 'bottleneck', got {self.output!r}")
        if self.loss != "softmax" and self.sampler != "none":
            raise ValueError(f"sampler={self.sampler!r} draws for loss='softmax' only, got loss={self.loss!r}")
        if not (isinstance(self.tfidf, (bool, np.bool_)) or self.tfidf == "auto"):
            raise ValueError(f"tfidf must be 'auto', True or False, got {check.shown(self.tfidf)}")
        check.choice("grouping", self.grouping, GROUPINGS)
        check.choice("weight_dtype", self.weight_dtype, tuple(DTYPES))
        if self.weight_dtype != "float32" and self.output != "group-shared":
            raise ValueError(f"weight_dtype={self.weight_dtype!r} is for output='group-shared', got {self.output!r}")
        for name in ("fan_in", "group_size", "rewire_every"):
            check.integer(name, getattr(self, name), 1)
        for name in ("embedding", "bottleneck", "intermediate"):
            if name != "intermediate" or self.intermediate is not None:
                check.integer(name, getattr(self, name), 1, MOST_WIDTH)
        if self.memory_limit is not None:
            check.integer("memory_limit", self.memory_limit, 1)
        check.number("word_dropout", self.word_dropout, 0, 0.999)
        for name in ("embedding_rate", "intermediate_rate"):
            check.number(name, getattr(self, name), 0, math.inf, open_ends=True)
        check.number("validation_fraction", self.validation_fraction, 0, 0.999)
        for name in ("rewire_fraction", "rewire_until"):
            check.number(name, getattr(self, name), 0, 1)

    def _network_params(self, n_features, n_labels, is_dense, device):
        """What `Network` and the prediction of its memory are made from; ValueError for a fan-in that is too large."""
        embedding = None if is_dense else self.embedding
        intermediate = {"dense": None, "bottleneck": self.bottleneck}.get(self.output, self.intermediate)
        if self.output in SPARSE_OUTPUTS:
            width = intermediate or embedding or n_features
            check.integer("fan_in", self.fan_in, 1, width, f" (the width of the layer below is {width})")
            if 2 * self.fan_in > width and (self.rewire_fraction > 0 or self.output == "unstructured"):
                raise ValueError(
                    f"fan_in must be at most half the width of the layer below, {width // 2}, got {self.fan_in}: a label may "
                    "need more redraws than it has free inputs; use rewire_fraction=0 with output='fixed-fan-in'"
                )
        if self.output == "group-shared":
            check.integer("group_size", self.group_size, 1, n_labels, f" (n_labels = {n_labels})")
        return {
            "n_features": n_features,
            "n_labels": n_labels,
            "embedding": embedding,
            "intermediate": intermediate,
            "output": self.output,
            "fan_in": self.fan_in,
            "device": device,
            "loss": self.loss,
            "group_size": self.group_size,
            "weight_dtype": self.weight_dtype,
        }

    def _check_sampler(self, n_classes, width, device, counts):
        super()._check_sampler(n_classes, width, device)
        if self.sampler in ("unigram", *INDICES) and not counts.any():
            raise ValueError(f"y must have labels in the rows to train on: sampler={self.sampler!r} counts them")

    def _new_network(self, params):
        return Network(**params, dropout=self.dropout, word_dropout=self.word_dropout, seed=self.seed)

    def _features(self, x):
        """Checked features: CSR or a dense array, as they were in the fit. Not copied where they are CSR or dense already."""
        names, x = _feature_names(x), _features("X", x)
        if hasattr(self, "n_features_in_"):
            self._check_feature_names(names)
            if x.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {x.shape[1]} features, but Classifier is expecting {self.n_features_in_} features as input"
                )
            if self.is_dense_ == scipy.sparse.issparse(x):
                kind, mend = (
                    ("a dense array", "X.toarray()")
                    if self.is_dense_
                    else ("a SciPy sparse matrix", "scipy.sparse.csr_matrix(X)")
                )
                raise TypeError(f"X must be {kind} as in fit, got {type(x).__name__}; use {mend}")
        return x

    def _check_feature_names(self, names):
        """ValueError where a DataFrame's columns are not those of the fit, in their order; the rules are scikit-learn's."""
        known = getattr(self, "feature_names_in_", None)
        if (known is None) != (names is None):
            came, fitted = ("does not have valid", "with") if names is None else ("has", "without")
            message = f"X {came} feature names, but Classifier was fitted {fitted} feature names"
            warnings.warn(message, UserWarning, stacklevel=4)
        elif known is not None and list(names) != list(known):
            raise ValueError(_other_names(set(known), set(names)))

    def _fitted_tfidf(self, x, validation):
        """What weighs the features: a `Tfidf` of the training rows `x`, or None where they are taken as they are.

        `validation` is a pair of features and labels, or None.
        """
        if not self.tfidf:
            return None
        if isinstance(self.tfidf, str) and (other := first_non_count(x)) is not None:
            if self.progress:
                print(
                    f"sparsemax-nb: X holds weights, not counts (one is {other:g}): they are taken as they are; "
                    "tfidf=True or False decides otherwise",
                    file=sys.stderr,
                )
            return None
        if validation is not None and (other := first_non_count(validation[0])) is not None:
            raise ValueError(f"validation X must hold counts like X, got {other:g}; use tfidf=False for weights")
        return Tfidf().fit(x)

    def _batch(self, x, rows):
        """Rows of the features, a slice or ids, as the model takes them; only they are copied."""
        part = x if isinstance(rows, slice) and rows == slice(0, x.shape[0]) else x[rows]
        with np.errstate(over="ignore"):  # of numbers too large for float32, which are found below
            if self.is_dense_:
                part = np.ascontiguousarray(part, np.float32)
            else:
                part = part.astype(np.float32, copy=False) if self.tfidf_ is None else self.tfidf_._weights(part)
        if not np.isfinite(part if self.is_dense_ else part.data).all():
            ids = np.arange(x.shape[0])[rows]
            bad = next(row for row, one in zip(ids, part, strict=True) if not np.isfinite(one.sum()))
            raise ValueError(f"X must be finite as float32, got NaN or infinity in row {bad}")
        return part

    def fit(
        self, X, y, *, validation=None, checkpoint_path=None, checkpoint_seconds=300.0, resume=False, after_epoch=None
    ):  # noqa: N803
        """Train on features and labels.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array
            Dense: any float dtype, in memory or memory-mapped (``np.load(..., mmap_mode="r")``). Neither is copied as a
            whole. Rows without features are legal.
        y : (n, L) SciPy CSR matrix
            Entries that are not zero are positive (a dense 0/1 matrix will do). Rows without labels are legal. A single
            column is a single label, not class ids: it holds 0 and 1, or two other numbers, the larger of which is the
            label.
        validation : pair (X, y), optional
            Of a linear layer it decides on C, slack and frequency. Of a network it decides on learning rate, early stop
            and which epoch's weights are kept, by P@3.
        checkpoint_path : path, optional
            A checkpoint is written there after every epoch, every `checkpoint_seconds`, and on Ctrl-C. A file that is
            there already is an error, but with `resume`.
        checkpoint_seconds : float
            The longest time between two checkpoints, in seconds, but for the step in hand.
        resume : bool
            Continue from `checkpoint_path` where there is one: the weights become, bit for bit, those of a run that was
            not interrupted (on the CPU; on CUDA some sums vary in their last bits). Data and parameters must be the
            same, but for budget_seconds, device, memory_limit, progress and, of a network without rewiring, epochs.
        after_epoch : callable, optional
            ``after_epoch(epoch, history)`` is called after every epoch.

        Returns
        -------
        self : Classifier

        Raises
        ------
        TypeError, ValueError
            Bad arguments; `ModelFileError` for a checkpoint of other data, parameters or version, or a damaged one;
            `MemoryLimitError` where the network does not fit into `memory_limit`.
        TrainingError
            Loss or input is not finite.
        KeyboardInterrupt
            Ctrl-C, after the step in hand and the checkpoint. The network then holds its last weights.
        """
        self._check_params()
        if validation is not None:
            validation = check.pair("validation", validation, "(X, y)")
        names, others = _feature_names(X), None if validation is None else _feature_names(validation[0])
        if not (names is None or others is None or list(names) == list(others)):
            raise ValueError(f"validation: {_other_names(set(names), set(others))}")
        X, y = _features("X", X), _labels("y", y, two_classes=True)  # noqa: N806
        X, y, validation, rows = _validation_split(X, y, validation, self.validation_fraction, self.seed)  # noqa: N806
        is_dense, device = not scipy.sparse.issparse(X), resolve_device(self.device)
        new = copy.copy(self)  # a fit that is refused leaves `self` as it is
        new.architecture_, new._fitted_params = self._resolved_architecture(is_dense), self._plain_params()
        new.n_features_in_, new.n_labels_, new.is_dense_, new.device_ = X.shape[1], y.shape[1], is_dense, device
        new.n_points_, new.label_names_, new.data_ = len(rows), None, None
        new.label_counts_ = np.bincount(y[rows].indices, minlength=y.shape[1])
        for name in ("feature_names_in_", "C_", "slack_", "frequency_", "trials_"):
            vars(new).pop(name, None)
        if names is not None:
            new.feature_names_in_ = names
        prepare = new._linear_training if new.architecture_ == "linear" else new._network_training
        self._check_checkpoint_path(checkpoint_path, resume)
        training = prepare(X, y, validation, rows)
        save = self._checkpoints(
            training, checkpoint_path, resume, [(X, y)] if validation is None else [(X, y), validation]
        )
        new.history_, new.network_ = training.history, training.network
        with self._becoming(new):
            training.run(save=save, save_seconds=checkpoint_seconds, progress=self.progress, after_epoch=after_epoch)
        return self

    @functools.partial(AvailableIf, lambda self: self.architecture != "network")
    def partial_fit(self, X, y, classes=None):  # noqa: N803
        """Go on with a fitted linear layer on new points, which may have new labels and need not be kept; the first call fits.

        `epochs` passes over the new points, without a budget. What earlier points have taught stays in the weights, but
        can no longer be weighed against: where old and new contradict each other, give old points again. Each label
        gets `features_per_point` more features for each new point, those that stand out in them; TF-IDF, C, slack,
        frequency and co_occurrence stay. Names of the labels are dropped where there are new labels.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix
            As in `fit`.
        y : (n, L or more) SciPy CSR matrix
            As in `fit`; columns beyond those of before are new labels.
        classes : object, optional
            Of no meaning here, where the columns of y are the labels; scikit-learn passes it.

        Returns
        -------
        self : Classifier

        Raises
        ------
        TypeError, ValueError
            The model is a network; X of another width than in `fit`, or not finite; y with fewer labels or of other
            points. Nothing has changed then.
        AttributeError
            For architecture='network', which has no such method.
        """
        if not hasattr(self, self.result):
            return self.fit(X, y)
        self._check_params()
        if self.architecture_ != "linear":
            raise ValueError("partial_fit is for architecture='linear'; fit a network anew, or resume it")
        X, y = self._features(X), _labels("y", y)  # noqa: N806
        if y.shape[0] != X.shape[0] or y.shape[1] < self.n_labels_:
            raise ValueError(f"y must have {X.shape[0]} rows and at least {self.n_labels_} columns, got {y.shape}")
        if not X.shape[0]:
            raise ValueError("X and y must have at least one row, got 0")
        new = copy.copy(self)
        new.n_points_, new.n_labels_ = self.n_points_ + X.shape[0], y.shape[1]
        before = np.concatenate([self.label_counts_, np.zeros(y.shape[1] - self.n_labels_, np.int64)])
        new.label_counts_ = before + np.bincount(y.indices, minlength=y.shape[1])
        if self.label_names_ is not None and new.n_labels_ > self.n_labels_:
            new.label_names_ = None
        x, model = self._all_batches(X), self.network_
        settings = self._linear_settings(self.C_, self.slack_, self.frequency_)
        settings = replace(settings, extra_features=0.0, co_occurrence=model.weight)
        lists = FeatureLists(*map(to_numpy, model.layer.arrays))
        lists = extended_lists(lists, x, y, settings.features_per_point, settings.min_features, before)
        pairs = None if model.pairs is None else model.pairs.extended(y)
        training = linear.DualTraining(
            x, y, settings, self.device_, lists=lists, n_points=new.label_counts_, pairs=pairs
        )
        new.history_, new.network_, new.data_ = training.history, training.network, None
        training.run(progress=self.progress)
        vars(self).update(vars(new))
        return self

    def _linear_settings(self, c, slack, frequency):
        epochs = EPOCHS["linear"] if self.epochs is None else int(self.epochs)
        return linear.Settings(
            float(c),
            float(slack),
            float(frequency),
            float(self.co_occurrence),
            float(self.features_per_point),
            int(self.min_features),
            float(self.extra_features),
            epochs,
            int(self.seed),
        )

    def _resolved_architecture(self, is_dense):
        """'linear' or 'network'; ValueError for parameters that the architecture does not have, or features it cannot take."""
        architecture = self.architecture
        if architecture == "auto":
            architecture = "network" if is_dense else "linear"
        if architecture == "linear" and is_dense:
            raise ValueError(
                "architecture='linear' is for sparse features, X is a dense array; use architecture='network', or "
                "scipy.sparse.csr_matrix(X) where most of it is zero"
            )
        foreign, changed = NETWORK_ONLY if architecture == "linear" else LINEAR_ONLY, self._changed_params()
        changed = [name for name in foreign if name in changed]
        if changed:
            other = "network" if architecture == "linear" else "linear"
            raise ValueError(
                f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} of architecture={other!r}, but "
                f"{'sparse' if not is_dense else 'dense'} features with architecture={self.architecture!r} take {architecture!r}; "
                f"use architecture={other!r} or leave {'it' if len(changed) == 1 else 'them'} out"
            )
        return architecture

    def _plan(self, plan, *smaller):
        """Keep the memory plan; MemoryLimitError, with what could be `smaller`, where it does not fit."""
        self.memory_plan_ = plan
        if self.memory_limit is not None:
            memory.require(plan, self.memory_limit, *smaller)
            if self.progress:
                print(plan, file=sys.stderr)

    def _linear_training(self, X, y, validation, rows):  # noqa: N803
        """The run of a linear layer, with C, slack and frequency chosen where that is wanted."""
        y = y[rows]
        self._plan(
            memory.linear_plan(
                n_rows=len(rows),
                n_features=X.shape[1],
                n_labels=y.shape[1],
                n_entries=X.nnz,
                points=self.label_counts_,
                features_per_point=self.features_per_point,
                min_features=self.min_features,
                extra_features=self.extra_features,
                n_pairs=most_pairs(y) if self.co_occurrence > 0 else 0,
            ),
            "features_per_point, min_features or extra_features, or co_occurrence=0",
        )
        self.tfidf_ = self._fitted_tfidf(X[rows] if len(rows) < X.shape[0] else X, validation)
        x = self._all_batches(X, rows)
        wanted = [name for name in ("C", "slack", "frequency") if getattr(self, name) == "auto"]
        first = {"C": linear.FIRST[0], "slack": linear.FIRST[1], "frequency": 0.0}
        settings = self._linear_settings(
            *(start if name in wanted else getattr(self, name) for name, start in first.items())
        )
        self.trials_ = []
        if wanted:
            held = None if validation is None else (self._all_batches(validation[0]), validation[1])
            settings, self.trials_ = linear.choose_settings(x, y, settings, wanted=wanted, validation=held)
        self.C_, self.slack_, self.frequency_ = settings.C, settings.slack, settings.frequency
        if wanted and self.progress:
            chosen = ", ".join(f"{name} = {getattr(self, name + '_'):g}" for name in wanted)
            print(f"sparsemax-nb: {chosen}, after {len(self.trials_)} trials", file=sys.stderr)
        ks = _possible(KS, y.shape[1])
        training = linear.DualTraining(x, y, settings, self.device_, budget_seconds=self.budget_seconds)
        if validation is not None:
            training.validate = lambda: self._figures_of(training.network, *validation, ks)
        return training

    def _all_batches(self, x, rows=None):
        """All of these rows (ids) of checked features as the model takes them; if not given all that there are."""
        rows = np.arange(x.shape[0]) if rows is None else rows
        return linear.weighed(lambda some: self._batch(x, rows[some]), len(rows), x.shape[1], x.nnz)

    def _network_training(self, X, y, validation, rows):  # noqa: N803
        """The run of a network."""
        params = self._network_params(X.shape[1], y.shape[1], self.is_dense_, self.device_)
        width = params["intermediate"] or params["embedding"] or X.shape[1]
        counts = self.label_counts_
        self._check_sampler(y.shape[1], width, self.device_, counts)
        self._plan(
            memory.plan(
                **params,
                batch_size=min(self.batch_size, len(rows)),
                keep_best=validation is not None,
                entries_per_row=0 if self.is_dense_ else X.nnz / X.shape[0],
                rewired=self.rewire_fraction,
                sampling=self._sampling(),
                labels_per_row=y.nnz / y.shape[0],
            )
        )
        self.tfidf_ = None
        if not self.is_dense_:
            self.tfidf_ = self._fitted_tfidf(X[rows] if len(rows) < X.shape[0] else X, validation)
        network = self._new_network(params)
        if self.output == "group-shared":
            order = group_labels(_Rows(self._batch, X, rows), y[rows], self.group_size, self.grouping, self.seed)
            unseen = counts[order] == 0
            order[unseen] = np.sort(order[unseen])  # equal scores go by place, and these are equal
            network.output.set_order(order)
            counts = counts[order]
        if self.loss != "softmax":
            _initial_bias(network.output.bias, counts, len(rows), self.loss)
        elif self.sampler != "none":
            network.output.negatives = Negatives(self._sampling(), network.output.weights, counts, self.seed)
        network.output.rank_last(np.flatnonzero(self.label_counts_ == 0))
        ks, adam = _possible(KS, y.shape[1]), Adam(self.learning_rate)
        if not self.is_dense_:
            adam.scale_rate(network.hidden[0].table, self.embedding_rate)
        if self.output in SPARSE_OUTPUTS and self.intermediate is not None:
            adam.scale_rate(network.hidden[-1].weights, self.intermediate_rate)
        return loop.Training(
            network,
            adam,
            self._schedule(),
            len(rows),
            batch=lambda some: (self._batch(X, rows[some]), y[rows[some]]),
            validate=None if validation is None else lambda: self._figures_of(network, *validation, ks),
            monitor=f"P@{max(k for k in ks if k <= 3)}",
        )

    def _free_to_change(self, training):
        return FREE_TO_CHANGE if isinstance(training, linear.DualTraining) else super()._free_to_change(training)

    def _schedule(self):
        more = {} if self.output in SPARSE_OUTPUTS else {"rewire_fraction": 0.0}
        return super()._schedule(**more, epochs=EPOCHS["network"] if self.epochs is None else self.epochs)

    def top_k(self, X, k=None):  # noqa: N803
        """The k best labels of each row.

        Batch by batch: beside the result, memory does not depend on n.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array
            As in `fit`.
        k : int, optional
            At most L. If not given 5, or all where there are fewer labels.

        Returns
        -------
        scores : (n, k) float32
            Descending; NumPy. Of a linear layer those of `rerank`: a label that others have drawn up shares the score
            of the one before it.
        ids : (n, k) int32
            Labels, best first; NumPy.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; X of another kind or width than in `fit`, or not finite; k out of range.
        """
        self._check_fitted()
        k = min(5, self.n_labels_) if k is None else k
        return self._top_k(self._features(X), k)

    def _top_k(self, x, k):
        """`top_k` of features that have been checked."""
        check.integer("k", k, 1, self.n_labels_, f" (n_labels = {self.n_labels_})")
        return self._top_k_of(self.network_, x, k)

    def _top_k_of(self, network, x, k):
        batch_size = linear.ANSWERED if isinstance(network, linear.LinearModel) else self.batch_size
        return loop.top_k(network, x.shape[0], lambda rows: self._batch(x, rows), k, batch_size)

    def predict(self, X, k=None):  # noqa: N803
        """The k best labels of each row, without their scores; see `top_k`.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array
            As in `fit`.
        k : int, optional
            At most L. If not given 5, or all where there are fewer labels.

        Returns
        -------
        ids : (n, k) int32
            Best first; NumPy.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; X of another kind or width than in `fit`, or not finite; k out of range.
        """
        return self.top_k(X, k)[1]

    def contexts(self, X, out=None):  # noqa: N803
        """What the output layer sees of each row.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array
            As in `fit`.
        out : (n, H) float32, optional
            Overwritten and returned; NumPy, may be memory-mapped.

        Returns
        -------
        h : (n, H) float32
            H is the width of the layer below the output; NumPy.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; X of another kind or width than in `fit`, or not finite; out of the wrong dtype or shape.
        """
        self._check_fitted()
        if self.architecture_ == "linear":
            raise ValueError("contexts are what an output layer sees: architecture='linear' has none; use 'network'")
        X = self._features(X)  # noqa: N806
        out = check.output("out", out, np.float32, (X.shape[0], self.network_.width), "cpu")
        loop.contexts(self.network_, X.shape[0], lambda rows: self._batch(X, rows), self.batch_size, out)
        return out

    def evaluate(self, X, y, ks=None):  # noqa: N803
        """P@k, nDCG@k, recall R@k and propensity-scored PSP@k, and the seconds that prediction took.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array
            As in `fit`.
        y : (n, L) SciPy CSR matrix
            As in `fit`.
        ks : sequence of int, optional
            If not given 1, 3 and 5, or those of them that there are enough labels for.

        Returns
        -------
        figures : dict
            By name, 'P@1' and so on, in [0, 1]; 'seconds'. PSP@k needs a fit on three points or more.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; X of another kind or width than in `fit`, or not finite; y of another shape; a k out of
            range.
        """
        self._check_fitted()
        if ks is None:
            ks = _possible(KS, self.n_labels_)
        else:
            ks = [check.integer("ks", k, 1, self.n_labels_) for k in check.sequence("ks", ks, "integers")]
            check.integer("the number of ks", len(ks), 1)
        return self._figures_of(self.network_, *self._pair(X, y), ks)

    def _pair(self, x, y):
        """Checked features and labels that fit each other and the model."""
        x, y = self._features(x), _labels("y", y)
        if y.shape != (x.shape[0], self.n_labels_):
            raise ValueError(f"y must have shape ({x.shape[0]}, {self.n_labels_}), got {y.shape}")
        return x, y

    def _figures_of(self, network, x, y, ks):
        start = time.perf_counter()
        ids = self._top_k_of(network, x, max(ks))[1]
        seconds, figures = time.perf_counter() - start, {}
        propensity = metrics.propensities(self.label_counts_, self.n_points_) if self.n_points_ > 2 else None
        for k in ks:
            figures |= {
                f"P@{k}": metrics.precision_at_k(ids, y, k),
                f"nDCG@{k}": metrics.ndcg_at_k(ids, y, k),
                f"R@{k}": metrics.recall_at_k(ids, y, k),
            }
            if propensity is not None:
                figures[f"PSP@{k}"] = metrics.psp_at_k(ids, y, propensity, k)
        return figures | {"seconds": seconds}

    def score(self, X, y):  # noqa: N803
        """P@1, the share of the rows whose best label is right.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array
            As in `fit`.
        y : (n, L) SciPy CSR matrix
            As in `fit`.

        Returns
        -------
        p : float
            In [0, 1].

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; X of another kind or width than in `fit`, or not finite; y of another shape.
        """
        self._check_fitted()
        X, y = self._pair(X, y)  # noqa: N806
        return metrics.precision_at_k(self._top_k(X, 1)[1], y, 1)

    def save(self, path, label_names=None):
        """Write the fitted model (safetensors); the file appears, or is replaced, once it is complete.

        Parameters
        ----------
        path : str or path
        label_names : sequence of str, optional
            One for each label; kept with the model. If not given, those that the model was loaded with.

        Raises
        ------
        TypeError, ValueError
            Not fitted yet; one str for the names, or other than one name per label.
        FileNotFoundError, IsADirectoryError
            No such folder; `path` is one.
        OSError
            No room on disk, or another reason why the file cannot be written; a file that is there stays as it was.
        """
        self._check_fitted()
        check.path("path", path)
        label_names = self.label_names_ if label_names is None else label_names
        if isinstance(label_names, (str, bytes)):
            raise TypeError(
                f"label_names must be a sequence of names, got the {type(label_names).__name__} {label_names!r}"
            )
        if label_names is not None and not hasattr(label_names, "__iter__"):
            raise TypeError(f"label_names must be a sequence of names, got {type(label_names).__name__}")
        names = None if label_names is None else list(map(str, label_names))
        if names is not None and len(names) != self.n_labels_:
            raise ValueError(f"label_names must hold one name for each of {self.n_labels_} labels, got {len(names)}")
        arrays = {name: to_numpy(array) for name, array in self.network_.parameters.items()}
        arrays["label_counts"] = self.label_counts_
        if (pairs := getattr(self.network_, "pairs", None)) is not None:
            arrays |= linear.arrays_of(pairs)
        if self.tfidf_ is not None:
            arrays["tfidf.idf"] = self.tfidf_.idf_
        about = {
            "architecture": self.architecture_,
            "C": getattr(self, "C_", None),
            "slack": getattr(self, "slack_", None),
            "frequency": getattr(self, "frequency_", None),
            "params": self._fitted_params,
            "n_features": self.n_features_in_,
            "n_labels": self.n_labels_,
            "n_points": self.n_points_,
            "is_dense": self.is_dense_,
            "tfidf": self.tfidf_ is not None,
            "feature_names": list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None,
            "label_names": names,
            "data": self.data_,
        }
        checkpoint.save(path, self.kind, arrays, about)

    @classmethod
    def load(cls, path, device="auto"):
        """Read a model that `save` wrote; its `label_names_` are the names, or None.

        Parameters
        ----------
        path : str or path
        device : 'auto', 'cpu' or 'cuda'
            'auto' takes a CUDA device where there is one.

        Returns
        -------
        model : Classifier

        Raises
        ------
        FileNotFoundError, ModelFileError
            No such file; truncated, damaged, foreign, of another kind or version.
        """
        check.path("path", path)
        device = resolve_device(device)
        arrays, about = checkpoint.load(path, cls.kind)
        with checkpoint.whole(path, "Classifier"):
            DESCRIPTION("description", about)
            model = cls(**about["params"]).set_params(device=device)
            model._check_params()
            model._fitted_params = about["params"]
            model.n_features_in_, model.n_labels_ = about["n_features"], about["n_labels"]
            model.n_points_, model.is_dense_ = about["n_points"], about["is_dense"]
            model.label_names_ = about["label_names"]
            if model.label_names_ is not None and len(model.label_names_) != model.n_labels_:
                raise ValueError(f"{len(model.label_names_)} label names for {model.n_labels_} labels")
            model.label_counts_ = check.array("label_counts", arrays["label_counts"], np.int64, (model.n_labels_,))
            check.below("label_counts", model.label_counts_, model.n_points_ + 1)
            model.device_, model.tfidf_ = device, None
            names = about["feature_names"]
            if names is not None:
                if len(names) != model.n_features_in_:
                    raise ValueError(f"feature_names must be {model.n_features_in_} strings")
                model.feature_names_in_ = np.array(names, object)
            if about["tfidf"]:
                model.tfidf_ = Tfidf()
                model.tfidf_.idf_ = check.array("tfidf.idf", arrays["tfidf.idf"], np.float32, (model.n_features_in_,))
                check.finite("tfidf.idf", model.tfidf_.idf_)
            model.architecture_ = check.choice("architecture", about["architecture"], ARCHITECTURES)
            if model.architecture_ == "linear":
                if model.is_dense_:
                    raise ValueError("a linear layer is of sparse features")
                model.C_ = check.number("C", about["C"], 0, math.inf, open_ends=True)
                model.slack_ = check.number("slack", about["slack"], 0, 1.999)
                model.frequency_ = check.number("frequency", about["frequency"], 0, 1e6)
                prior = linear.prior_of(model.frequency_, model.label_counts_, device)
                layer = linear.layer_of(arrays, model.n_features_in_, model.n_labels_, device)
                pairs = None
                if model.co_occurrence > 0:
                    pairs = linear.pairs_of(arrays, model.n_labels_, device)
                model.network_ = linear.LinearModel(layer, prior, pairs, float(model.co_occurrence))
            else:
                params = model._network_params(model.n_features_in_, model.n_labels_, model.is_dense_, device)
                arrays.check_shapes(parameter_shapes(**params))
                model.network_ = model._new_network(params)
                model.network_.set_parameters(arrays)
                model.network_.output.rank_last(np.flatnonzero(model.label_counts_ == 0))
            model.data_ = about["data"]
        return model


class _Rows:
    """Rows of the features as the network takes them, made as slices ask for them."""

    def __init__(self, batch, x, rows):
        self._batch, self._x, self._rows, self.shape = batch, x, rows, (len(rows), x.shape[1])

    def __getitem__(self, some):
        return self._batch(self._x, self._rows[some])


def _possible(ks, n_labels):
    """Those of `ks` that there are enough labels for."""
    return [k for k in ks if k <= n_labels] or [n_labels]


def _feature_names(x):
    """Names of the columns of a DataFrame, (F,) objects, where all are strings, or None; TypeError where only some are."""
    if scipy.sparse.issparse(x) or not hasattr(x, "columns"):
        return None
    names = np.array(list(x.columns), object)
    kinds = sorted({type(name).__name__ for name in names})
    if any(isinstance(name, str) for name in names) and len(kinds) > 1:
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your input has "
            f"{kinds} as feature name / column name types; use X.columns = X.columns.astype(str)"
        )
    return names if kinds == ["str"] else None


def _other_names(known, names):
    """scikit-learn's message for columns that are not those of the fit."""

    def listed(title, some):
        some = sorted(some)
        return "".join(
            [f"{title}:\n", *(f"- {name}\n" for name in some[:5]), "- ...\n" * (len(some) > 5)] if some else []
        )

    message = listed("Feature names unseen at fit time", names - known)
    message += listed("Feature names seen at fit time, yet now missing", known - names)
    rule = "The feature names should match those that were passed during fit.\n"
    return rule + (message or "Feature names must be in the same order as they were in fit.\n")


def _features(name, x):
    """(n, F) features: CSR, or a dense array of floats. Neither is copied; a dense one is looked through as it is used."""
    if isinstance(x, (list, tuple, np.ma.MaskedArray, np.matrix)):
        x = check.on_host(name, x)
    x = x if scipy.sparse.issparse(x) or isinstance(x, np.ndarray) else np.asarray(x)
    if x.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} is {x.dtype}")
    if scipy.sparse.issparse(x):
        x = sparse.valid_csr(name, x)
    elif x.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got shape {x.shape}; Reshape your data: one row a point")
    elif x.dtype.kind != "f":
        x = x.astype(np.float32)
    if x.shape[1] < 1:
        raise ValueError(f"{name} has 0 feature(s) (shape={x.shape}) while a minimum of 1 is required.")
    return x


def _labels(name, y, two_classes=False):
    """(n, L) labels as canonical CSR: float32 ones where an entry is not zero.

    Of one column, class ids are no labels. With `two_classes` it may hold two numbers: the larger one is the label.
    """
    if y is None:
        raise ValueError("Classifier requires y to be passed, but the target y is None")
    is_sparse = scipy.sparse.issparse(y)
    if is_sparse and y.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got shape {y.shape}")
    if is_sparse and y.shape[1] != 1:
        return sparse.as_ones(name, y)
    rule = f"{name} must be a SciPy sparse matrix, or a 0/1 matrix of n rows and one column a label"
    fix = "lists of label ids become one with scikit-learn's MultiLabelBinarizer(sparse_output=True)"
    try:
        y = sparse.valid_csr(name, y).toarray() if is_sparse else np.asarray(y)
        if y.ndim != 2:
            raise ValueError(f"got shape {y.shape}")
        if y.dtype.kind == "c":
            raise ValueError(f"got {y.dtype}")
        y = y.astype(np.float32)
        other = y[(y != 0) & (y != 1)]
        if other.size and y.shape[1] == 1:
            fix = "one class id per row becomes one with scikit-learn's LabelBinarizer(sparse_output=True)"
            numbers = np.unique(y)
            if two_classes and len(numbers) == 2:
                return scipy.sparse.csr_matrix(y == numbers[1], dtype=np.float32)
            raise ValueError(f"got one column with {other[0]:g} in it")
        if other.size:
            raise ValueError(f"got {other[0]:g} in it")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{rule}, {error}; {fix}") from error
    return sparse.as_ones(name, scipy.sparse.csr_matrix(y))


def _validation_split(x, y, validation, fraction, seed):
    """(X, y, (X, y) of the validation or None, ids of the rows to train on), checked against each other."""
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"X and y must have as many rows as each other, got {x.shape[0]} and {y.shape[0]}")
    if min(*x.shape, y.shape[1]) < 1:
        raise ValueError(f"X and y must have at least one row and column, got {x.shape} and {y.shape}")
    rows = np.arange(x.shape[0])
    if validation is not None:
        other_x, other_y = _features("validation X", validation[0]), _labels("validation y", validation[1])
        shapes = (other_x.shape[0], x.shape[1]), (other_x.shape[0], y.shape[1])
        if (other_x.shape, other_y.shape) != shapes or scipy.sparse.issparse(other_x) != scipy.sparse.issparse(x):
            raise ValueError(
                f"validation must have the columns of X and y and equally many rows, got {other_x.shape} and {other_y.shape}"
            )
        if other_y.nnz == 0:
            raise ValueError(f"validation must have rows with labels, got {other_y.shape[0]} rows without any")
        return x, y, (other_x, other_y), rows
    if fraction == 0:
        return x, y, None, rows
    order = shuffled(len(rows), seed, VALIDATION_EPOCH)
    n = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    aside, rows = np.sort(order[:n]), np.sort(order[n:])
    if n < 1:
        raise ValueError("validation_fraction needs at least two rows")
    return x, y, (x[aside], y[aside]), rows


def _initial_bias(bias, counts, n_points, loss):
    """Start where nearly every label is rightly off (our choice): squared hinge -1, its margin; bce the label's log-odds."""
    if loss == "squared-hinge":
        bias[:] = -1
        return
    odds = (counts + 0.5) / (n_points - counts + 0.5)
    bias[:] = asarray(np.log(odds), device_of(bias), np.float32)
