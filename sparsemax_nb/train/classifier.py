"""`Classifier`: multi-label classification of sparse bags of words or dense features, with scikit-learn manners."""

import copy
import math
import sys
import time

import numpy as np
import scipy.sparse

from .. import metrics
from ..core import check
from ..core.device import resolve_device
from ..group_shared import DTYPES
from ..grouping import GROUPINGS
from . import linear, loop, memory
from .classifier_file import ARCHITECTURES, DESCRIPTION, ClassifierFile
from .classifier_inputs import ClassifierInputs, checked_features, checked_labels, feature_names, names_differ_message
from .classifier_linear import LINEAR_ONLY, LinearArchitecture
from .classifier_network import NETWORK_ONLY, NetworkArchitecture
from .estimator import MOST_WIDTH, SampledEstimator
from .network import LOSSES, OUTPUTS, SPARSE_OUTPUTS
from .validation import figures, possible_ks, split


class Classifier(LinearArchitecture, NetworkArchitecture, ClassifierInputs, ClassifierFile, SampledEstimator):
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
    embedding_lr_multiplier : float
        Factor of the learning rate for the embedding's table: most words are rare, so most steps do not update them.
    intermediate_lr_multiplier : float
        Factor of the learning rate for the weights of the wide layer below a sparse output. Where that layer changes
        slowly, labels with few points can not fit its features to themselves (our choice).
    clip : float or None
        Largest norm of the gradient of all parameters together: a larger one is scaled down to it. None: no clipping. A
        sparse output layer then computes and stores the scores of all labels, like a dense one.
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
    >>> network.fit(d.features, d.labels).encode(d.features).shape
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
    file_description = DESCRIPTION

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
        embedding_lr_multiplier=10.0,
        intermediate_lr_multiplier=0.1,
        clip=None,
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
        for name in ("embedding_lr_multiplier", "intermediate_lr_multiplier"):
            check.number(name, getattr(self, name), 0, math.inf, open_ends=True)
        if self.clip is not None:
            check.number("clip", self.clip, 0, math.inf, open_ends=True)
            if self.weight_dtype != "float32":
                raise ValueError(f"clip needs weight_dtype='float32', got {self.weight_dtype!r}")
        check.number("validation_fraction", self.validation_fraction, 0, 0.999)
        for name in ("rewire_fraction", "rewire_until"):
            check.number(name, getattr(self, name), 0, 1)

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
        names, others = feature_names(X), None if validation is None else feature_names(validation[0])
        if not (names is None or others is None or list(names) == list(others)):
            raise ValueError(f"validation: {names_differ_message(set(names), set(others))}")
        X, y = checked_features("X", X), checked_labels("y", y, two_classes=True)  # noqa: N806
        X, y, validation, rows = split(X, y, validation, self.validation_fraction, self.seed)  # noqa: N806
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
            ks = possible_ks(self.n_labels_)
        else:
            ks = [check.integer("ks", k, 1, self.n_labels_) for k in check.sequence("ks", ks, "integers")]
            check.integer("the number of ks", len(ks), 1)
        return self._figures_of(self.network_, *self._pair(X, y), ks)

    def _pair(self, x, y):
        """Checked features and labels that fit each other and the model."""
        x, y = self._features(x), checked_labels("y", y)
        if y.shape != (x.shape[0], self.n_labels_):
            raise ValueError(f"y must have shape ({x.shape[0]}, {self.n_labels_}), got {y.shape}")
        return x, y

    def _figures_of(self, network, x, y, ks):
        start = time.perf_counter()
        ids = self._top_k_of(network, x, max(ks))[1]
        seconds = time.perf_counter() - start
        propensity = metrics.propensities(self.label_counts_, self.n_points_) if self.n_points_ > 2 else None
        return figures(ids, y, ks, propensity) | {"seconds": seconds}

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
        names = self.label_names_ if label_names is None else label_names
        if isinstance(names, (str, bytes)) or not (names is None or hasattr(names, "__iter__")):
            shown = f" {names!r}" if isinstance(names, (str, bytes)) else ""
            raise TypeError(f"label_names must be a sequence of names, got the {type(names).__name__}{shown}")
        names = None if names is None else list(map(str, names))
        if names is not None and len(names) != self.n_labels_:
            raise ValueError(f"label_names must hold one name for each of {self.n_labels_} labels, got {len(names)}")
        self._write(path, label_names=names)
