"""`Classifier`: multi-label classification of sparse bags of words, with scikit-learn manners."""

import inspect
import math
import time

import numpy as np
import scipy.sparse

from ..core import backend, check
from ..core.formulas import LOSSES
from ..data import Tfidf
from ..fixed_fan_in import FixedFanIn
from ..optimizers import Adam
from . import checkpoint, loop, metrics
from .network import Network

OUTPUTS = ("dense", "bottleneck", "fixed-fan-in")


class Classifier:
    """A network with a large multi-label output layer, trained with hand-written gradients.

    TF-IDF -> embedding -> ReLU -> dropout [-> dense layer of width `intermediate` -> ReLU] -> output layer.

    Parameters
    ----------
    output : 'fixed-fan-in', 'dense' or 'bottleneck'
        The output layer: `fan_in` connections per label; all connections to the embedding; all connections to a narrow
        intermediate layer of width `bottleneck`.
    embedding : int
        Width of the embedding.
    intermediate : int or None
        Width of the dense layer below a fixed fan-in output; None connects the labels to the embedding itself.
    bottleneck : int
    fan_in : int
    loss : 'squared-hinge' or 'bce'
    dropout : float
        Rate behind the embedding, in [0, 1).
    learning_rate : float
        Of Adam.
    batch_size, epochs : int
    budget_seconds : float or None
        Training stops after so many seconds even if epochs are left; compiling is not counted.
    tfidf : bool
        False takes the features as they are.
    seed : int
    device : 'auto', 'cpu' or 'cuda'
        'auto' takes a CUDA device where there is one.
    progress : bool
        Show a progress bar on standard error.

    Attributes
    ----------
    network_ : Network
    tfidf_ : Tfidf or None
    history_ : History
        Losses, steps and seconds.
    device_ : str
    n_features_in_, n_labels_ : int

    Source: arXiv 2306.03725 (network, squared hinge, Adam); defaults for narrower data are ours.

    Examples
    --------
    >>> from sparsemax_nb import data, train
    >>> d = data.bag_of_words(n_rows=500, n_features=80, words_per_row=6, n_labels=40, labels_per_row=2, seed=1)
    >>> model = train.Classifier(embedding=32, intermediate=128, fan_in=8, epochs=20, progress=False)
    >>> scores, ids = model.fit(d.features, d.labels).top_k(d.features, k=2)
    >>> ids.shape
    (500, 2)
    """

    def __init__(
        self, *, output="fixed-fan-in", embedding=256, intermediate=4096, bottleneck=64, fan_in=32, loss="squared-hinge",
        dropout=0.1, learning_rate=1e-3, batch_size=128, epochs=10, budget_seconds=None, tfidf=True, seed=0, device="auto",
        progress=True,
    ):  # fmt: skip
        for name in self._names():
            setattr(self, name, locals()[name])

    @classmethod
    def _names(cls):
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep=True):
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params):
        """Change constructor arguments; returns self. ValueError for a name that there is not."""
        for name, value in params.items():
            check.choice("parameter", name, self._names())
            setattr(self, name, value)
        return self

    def __repr__(self):
        defaults = {n: p.default for n, p in inspect.signature(type(self).__init__).parameters.items()}
        changed = ", ".join(f"{n}={v!r}" for n, v in self.get_params().items() if v != defaults[n])
        return f"Classifier({changed})"

    def _check_params(self):
        check.choice("output", self.output, OUTPUTS)
        check.choice("loss", self.loss, tuple(LOSSES))
        for name in ("embedding", "bottleneck", "fan_in", "batch_size", "epochs"):
            check.integer(name, getattr(self, name), 1)
        if self.intermediate is not None:
            check.integer("intermediate", self.intermediate, 1)
        if self.output == "fixed-fan-in":
            width = self.intermediate or self.embedding
            check.integer("fan_in", self.fan_in, 1, width, f" (the width of the layer below is {width})")
        check.number("dropout", self.dropout, 0, 0.999)
        check.number("learning_rate", self.learning_rate, 0, math.inf, open_ends=True)
        if self.budget_seconds is not None:
            check.number("budget_seconds", self.budget_seconds, 0, math.inf, open_ends=True)
        check.integer("seed", self.seed, 0, 2**64 - 1)

    def _features(self, x):
        """Checked CSR float32 features; the width must be that of the fit."""
        x = _csr("X", x)
        if hasattr(self, "n_features_in_") and x.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} features as in fit, got {x.shape[1]}")
        return x

    def _new_network(self):
        return Network(
            self.n_features_in_, self.n_labels_, embedding=self.embedding, dropout=self.dropout, seed=self.seed,
            intermediate={"dense": None, "bottleneck": self.bottleneck, "fixed-fan-in": self.intermediate}[self.output],
            fan_in=self.fan_in if self.output == "fixed-fan-in" else None, device=self.device_,
        )  # fmt: skip

    def fit(self, X, Y, after_epoch=None):  # noqa: N803
        """Train on features X (n, F) and labels Y (n, L), SciPy CSR; entries of Y that are not zero are positive.

        `after_epoch(epoch, history)` is called between epochs. Returns self. Rows without features or labels
        are legal. Raises TypeError or ValueError for bad arguments, TrainingError where loss or input is not finite.
        """
        self._check_params()
        params = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in self.get_params().items()
        }
        X, Y = _csr("X", X), _csr("Y", Y).astype(bool).astype(np.float32)  # noqa: N806
        Y.eliminate_zeros()
        if X.shape[0] != Y.shape[0]:
            raise ValueError(f"X and Y must have as many rows as each other, got {X.shape[0]} and {Y.shape[0]}")
        if min(*X.shape, Y.shape[1]) < 1:
            raise ValueError(f"X and Y must have at least one row and column, got {X.shape} and {Y.shape}")
        self.n_features_in_, self.n_labels_ = X.shape[1], Y.shape[1]
        self.device_ = backend.resolve_device(self.device)
        self.tfidf_ = Tfidf().fit(X) if self.tfidf else None
        self.network_ = self._new_network()
        _initial_bias(self.network_.output.bias, Y, self.loss)
        self.history_ = loop.fit(
            self.network_, self._transform(X), Y, loss=self.loss, optimizer=Adam(self.learning_rate), seed=self.seed,
            batch_size=self.batch_size, epochs=self.epochs, budget_seconds=self.budget_seconds, progress=self.progress,
            after_epoch=after_epoch,
        )  # fmt: skip
        self._fitted_params = params
        return self

    def _transform(self, x):
        return x if self.tfidf_ is None else self.tfidf_.transform(x)

    def top_k(self, X, k=5):  # noqa: N803
        """The k best labels of each row of X (n, F): scores (n, k) float32, ids (n, k) int32, best first; NumPy arrays."""
        self._check_fitted()
        check.integer("k", k, 1, self.n_labels_, f" (n_labels = {self.n_labels_})")
        return loop.top_k(self.network_, self._transform(self._features(X)), k)

    def predict(self, X, k=5):  # noqa: N803
        """Ids of the k best labels of each row of X (n, F): (n, k) int32, best first."""
        return self.top_k(X, k)[1]

    def evaluate(self, X, Y, ks=(1, 3, 5)):  # noqa: N803
        """P@k and nDCG@k on features X (n, F) and labels Y (n, L), and the seconds it took: a dict."""
        start = time.perf_counter()
        ks = [k for k in ks if k <= self.n_labels_] or [self.n_labels_]
        ids = self.predict(X, max(ks))
        seconds = time.perf_counter() - start
        result = {f"P@{k}": metrics.precision_at_k(ids, Y, k) for k in ks}
        return result | {f"nDCG@{k}": metrics.ndcg_at_k(ids, Y, k) for k in ks} | {"seconds": seconds}

    def score(self, X, Y):  # noqa: N803
        """P@1."""
        return metrics.precision_at_k(self.predict(X, 1), Y, 1)

    def _check_fitted(self):
        if not hasattr(self, "network_"):
            raise ValueError("this Classifier is not fitted yet; call fit(X, Y) first")

    def save(self, path, label_names=None):
        """Write the fitted model (safetensors), with the labels' names where given; `path` is replaced in one move."""
        self._check_fitted()
        arrays = {name: backend.to_numpy(array) for name, array in self.network_.parameters.items()}
        if self.tfidf_ is not None:
            arrays["tfidf.idf"] = self.tfidf_.idf_
        description = {
            "params": self._fitted_params, "n_features": self.n_features_in_, "n_labels": self.n_labels_,
            "label_names": None if label_names is None else list(label_names),
        }  # fmt: skip
        checkpoint.save(path, "classifier", arrays, description)

    @classmethod
    def load(cls, path, device="auto"):
        """Read a model that `save` wrote, onto `device`; attribute `label_names_` holds the names, or None."""
        device = backend.resolve_device(device)
        arrays, description = checkpoint.load(path, "classifier")
        try:
            model = cls(**description["params"]).set_params(device=device)
            model.n_features_in_, model.n_labels_ = description["n_features"], description["n_labels"]
            model.label_names_ = description["label_names"]
            if model.label_names_ is not None and len(model.label_names_) != model.n_labels_:
                raise ValueError(f"{len(model.label_names_)} label names for {model.n_labels_} labels")
            model._check_params()
            model.device_, model.tfidf_ = device, None
            if model.tfidf:
                model.tfidf_ = Tfidf()
                model.tfidf_.idf_ = check.array("tfidf.idf", arrays["tfidf.idf"], np.float32, (model.n_features_in_,))
            model.network_ = model._new_network()
            for name, array in model.network_.parameters.items():
                stored = check.array(name, arrays[name], array.dtype, array.shape)
                if stored.dtype == np.float32:
                    check.finite(name, stored)
                array[:] = backend.asarray(stored, device)
            if model.output == "fixed-fan-in":
                layer = model.network_.output.layer
                FixedFanIn(layer.n_inputs, *layer.arrays)  # checks the indices: kernels trust them
            model._fitted_params = description["params"]
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.ModelFileError(f"{path} does not hold a whole Classifier ({error})") from error
        return model


def _csr(name, matrix):
    """A finite float32 CSR matrix from a SciPy sparse matrix."""
    if not scipy.sparse.issparse(matrix):
        raise TypeError(
            f"{name} must be a SciPy sparse matrix, got {type(matrix).__name__}; use scipy.sparse.csr_matrix({name})"
        )
    matrix = scipy.sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"{name} is no valid CSR matrix: {error}") from error
    if not np.isfinite(matrix.data).all():
        row = int(np.searchsorted(matrix.indptr, np.flatnonzero(~np.isfinite(matrix.data))[0], side="right")) - 1
        raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}")
    return matrix


def _initial_bias(bias, labels, loss):
    """Start where nearly every label is rightly off (our choice): squared hinge -1, its margin; bce the label's log-odds."""
    if loss == "squared-hinge":
        bias[:] = -1
        return
    n = labels.shape[0]
    count = np.bincount(labels.indices, minlength=labels.shape[1])
    odds = (count + 0.5) / (n - count + 0.5)
    bias[:] = backend.asarray(np.log(odds), backend.device_of(bias), np.float32)
