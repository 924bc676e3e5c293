"""Base classes of the estimators: parameters, model files, and checkpoints of a run."""

import contextlib
import copy
import functools
import inspect
import math
import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..core import check, checkpoint, description, files
from ..core.device import resolve_device, to_numpy
from ..data import fingerprint
from ..midx import MAX_CODEWORDS, RESIDUALS
from ..sampled_softmax import CORRECTIONS
from . import loop
from .negatives import BASELINES, MIDX_KINDS, SAMPLERS, Sampling

#: Parameters that may differ when a run is resumed: they do not change what a step computes.
CHANGEABLE_ON_RESUME = {"budget_seconds", "device", "memory_limit", "progress"}
#: Description of the training data in a model file. Only the command line records it.
DATA_DESCRIPTION = description.optional(description.record(name=description.text, fingerprint=description.text))

#: Maximum width of a layer: input ids are int32.
MAX_WIDTH = 2**31 - 1


class AvailableIf:
    """A method that exists only on objects for which ``condition(object)`` holds: on others `hasattr` returns False.

    `message` is that of the AttributeError.
    """

    def __init__(self, condition, message, method):
        self._condition, self._message, self._method = condition, message, method

    def __get__(self, instance, owner):
        if instance is None:
            return self._method
        if not self._condition(instance):
            raise AttributeError(self._message)
        return self._method.__get__(instance, owner)


class Estimator:
    """Base class with scikit-learn's conventions: the constructor stores parameters, `fit` checks them."""

    #: Name of the model kind, written into its files.
    kind: str | None = None
    #: Word for the classes of the output layer in error messages.
    classes = "classes"
    #: Signature of `fit` for the error of an unfitted estimator.
    fit_call: str | None = None
    #: Name of the attribute that `fit` sets.
    fitted_attribute = "network_"
    network_: Any
    #: {"name": ..., "fingerprint": ...} of the training data, saved with the model. Only the command line sets it.
    data_: dict[str, str] | None = None

    if TYPE_CHECKING:
        # The constructor and `fit` set most attributes by name, which type checkers cannot follow.
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    @classmethod
    def _param_names(cls):
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name.

        Parameters
        ----------
        deep : bool
            Ignored; for compatibility with scikit-learn.

        Returns
        -------
        params : dict

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> Classifier(fan_in=16).get_params()["fan_in"]
        16
        """
        return {name: getattr(self, name) for name in self._param_names()}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments.

        Parameters
        ----------
        **params : object
            New values by name; `fit` checks them.

        Returns
        -------
        self : the estimator

        Raises
        ------
        ValueError
            The constructor has no parameter of this name.

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> Classifier().set_params(fan_in=16, epochs=2)
        Classifier(fan_in=16, epochs=2)
        """
        for name, value in params.items():
            check.choice("parameter", name, self._param_names())
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self):
        return hasattr(self, self.fitted_attribute)

    def _changed_params(self):
        """The parameters that differ from their defaults."""
        defaults = {n: p.default for n, p in inspect.signature(type(self).__init__).parameters.items()}
        return {n: v for n, v in self.get_params().items() if v != defaults[n]}

    def __repr__(self):
        changed = ", ".join(f"{n}={v!r}" for n, v in self._changed_params().items())
        return f"{type(self).__name__}({changed})"

    def _check_fitted(self):
        if not hasattr(self, self.fitted_attribute):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call {self.fit_call} first")

    def _json_params(self):
        """The parameters with NumPy scalars converted to Python's numbers, as JSON needs them."""
        return {n: value.item() if isinstance(value, np.generic) else value for n, value in self.get_params().items()}

    @contextlib.contextmanager
    def _replaced_by(self, new):
        """Take over the attributes of `new`; an error before the end of the first epoch restores the previous ones."""
        before, n_epochs = dict(vars(self)), len(new.history_.epochs)
        vars(self).clear()
        vars(self).update(vars(new))
        try:
            yield
        except Exception:
            if len(new.history_.epochs) == n_epochs:
                vars(self).clear()
                vars(self).update(before)
            raise

    @staticmethod
    def _check_checkpoint_path(path, resume, seconds=0):
        check.flag("resume", resume)
        check.number("checkpoint_seconds", seconds, 0, math.inf)
        if path is not None:
            check.path("checkpoint_path", path)
        if path is None and resume:
            raise ValueError("resume needs checkpoint_path, the file to continue from")
        if path is not None:
            files.check_writable(path)
        if path is not None and not resume and os.path.exists(path):
            raise ValueError(f"{path} already exists; continue from it with resume=True (--resume), or remove it")

    def _set_up_checkpoints(self, training, path, resume, parts):
        """Restore `training` from the checkpoint at `path` where it should and can; return a function that saves one.

        `training` needs `state`, `restore` and `checkpoint_nbytes`. `parts` are the data as argument pairs of
        `fingerprint`. Raises ModelFileError for a checkpoint of a different run.
        """
        if path is None:
            return None
        files.check_writable(path, training.checkpoint_nbytes)
        kind = f"{self.kind} checkpoint"
        about = {"params": self._json_params(), "fingerprint": [fingerprint(*part) for part in parts]}
        if resume and os.path.exists(path):
            arrays, stored = checkpoint.load(path, kind)
            try:
                _check_same_run(stored, about, self._changeable_on_resume(training))
                training.restore(arrays, stored)
            except checkpoint.ModelFileError:
                raise
            except checkpoint.BROKEN as error:
                raise checkpoint.ModelFileError(f"{path} cannot be resumed: {error}") from error

        def save():
            arrays, state = training.state()
            checkpoint.save(path, kind, arrays, about | state)

        return save

    def _changeable_on_resume(self, training):
        """Names of the parameters that may differ when `training` is resumed."""
        return CHANGEABLE_ON_RESUME


def _check_same_run(stored, about, changeable):
    """ValueError where the checkpoint is of other data or parameters; the parameters in `changeable` may differ."""
    for name, value in about["params"].items():
        if name not in changeable and stored["params"][name] != value:
            raise ValueError(
                f"{name} was {stored['params'][name]!r}, not {value!r}; use the old value or start a new run"
            )
    if stored["fingerprint"] != about["fingerprint"]:
        raise ValueError("the checkpoint was written for different data (training or validation)")


class MetadataRequests:
    """Mixin for estimators whose methods take more than X and y: the part of scikit-learn's metadata routing for them.

    With ``sklearn.set_config(enable_metadata_routing=True)``, ``set_fit_request(sample_weight=True)`` makes
    meta-estimators such as GridSearchCV pass ``sample_weight`` on to `fit`; likewise for `partial_fit` and `score`.
    """

    #: Arguments of the methods that meta-estimators can pass on.
    metadata = {"fit": ("sample_weight", "names"), "partial_fit": ("classes", "sample_weight", "names"),
                "score": ("sample_weight",)}  # fmt: skip
    _metadata_request: Any

    def get_metadata_routing(self) -> Any:
        """Return what the methods of this estimator ask meta-estimators for.

        Returns
        -------
        routing : sklearn.utils.metadata_routing.MetadataRequest
            By default an argument that is passed to a meta-estimator is neither passed on nor ignored, but an error.

        Raises
        ------
        ImportError
            scikit-learn is not installed.

        Examples
        --------
        >>> import sklearn
        >>> from sparsemax_nb.train import Classifier
        >>> with sklearn.config_context(enable_metadata_routing=True):
        ...     model = Classifier().set_fit_request(sample_weight=True)
        >>> model.get_metadata_routing().fit.requests
        {'sample_weight': True, 'names': None}
        """
        from sklearn.utils.metadata_routing import MetadataRequest

        if hasattr(self, "_metadata_request"):  # scikit-learn's `clone` copies this attribute
            return copy.deepcopy(self._metadata_request)
        routing = MetadataRequest(owner=type(self).__name__)
        for method, names in self.metadata.items():
            for name in names:
                getattr(routing, method).add_request(param=name, alias=None)
        return routing

    def _set_request(self, method, /, **requests):
        """Set for each argument: True passes it on, False does not, None raises an error, a str is its other name."""
        import sklearn

        if not sklearn.get_config()["enable_metadata_routing"]:
            raise RuntimeError(f"set_{method}_request needs sklearn.set_config(enable_metadata_routing=True)")
        routing = self.get_metadata_routing()
        for name, request in requests.items():
            if name not in self.metadata[method]:
                known = ", ".join(self.metadata[method])
                raise TypeError(f"set_{method}_request has no argument {name!r}; its arguments are {known}")
            if not (
                request is None or isinstance(request, bool) or (isinstance(request, str) and request.isidentifier())
            ):
                raise ValueError(
                    f"{name} must be True, False, None or the name of an argument, got {check.shown(request)}"
                )
            getattr(routing, method).add_request(param=name, alias=request)
        self._metadata_request = routing
        return self

    set_fit_request = functools.partialmethod(_set_request, "fit")
    set_partial_fit_request = functools.partialmethod(_set_request, "partial_fit")
    set_score_request = functools.partialmethod(_set_request, "score")


class SampledEstimator(Estimator):
    """Base class of estimators with one output layer, which may be trained with sampled negatives."""

    #: Whether `epochs` may be None.
    epochs_may_be_none = False

    network_: Any
    #: Rule that checks the description in a model file, see `core.description`.
    _file_description: Any = None

    # ------------------------------------------------------------ files

    def _write(self, path, **more):
        """Write a model file: the network's parameters and what `_state` returns; `more` overrides its description."""
        check.path("path", path)
        arrays, about = self._state()
        arrays |= {name: to_numpy(array) for name, array in self.network_.parameters.items()}
        checkpoint.save(path, self.kind, arrays, {"params": self._fitted_params, "data": self.data_} | about | more)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "auto") -> Self:
        """Load a model that `save` wrote.

        Parameters
        ----------
        path : str or path
        device : 'auto', 'cpu' or 'cuda'
            'auto' uses a CUDA device if there is one.

        Returns
        -------
        model : the estimator, fitted

        Raises
        ------
        FileNotFoundError, ModelFileError
            The file does not exist; or it is truncated, damaged, foreign, or of another kind or version.
        """
        check.path("path", path)
        device = resolve_device(device)
        arrays, about = checkpoint.load(path, cls.kind)
        with checkpoint.complete(path, cls.__name__):
            cls._file_description("description", about)
            model = cls(**about["params"]).set_params(device=device)
            model._check_params()
            model._fitted_params, model.device_, model.data_ = about["params"], device, about["data"]
            model._restore(arrays, about, device)
        return model

    # ------------------------------------------------------------ parameters

    def _check_params(self):
        """TypeError or ValueError for invalid values of the parameters that all these estimators share."""
        check.choice("sampler", self.sampler, SAMPLERS)
        check.choice("residual", self.residual, RESIDUALS)
        check.choice("correction", self.correction, CORRECTIONS)
        for name in ("mask_hits", "progress"):
            check.flag(name, getattr(self, name))
        if self.epochs is not None or not self.epochs_may_be_none:
            check.integer("epochs", self.epochs, 1)
        check.choice("decay", self.decay, loop.DECAYS)
        for name in ("patience", "stop_after", "batch_size", "n_samples", "n_codewords"):
            check.integer(name, getattr(self, name), 1)
        if self.index_every is not None:
            check.integer("index_every", self.index_every, 1)
        check.integer("warm_up", self.warm_up, 0)
        check.number("dropout", self.dropout, 0, 0.999)
        check.number("learning_rate", self.learning_rate, 0, math.inf, open_ends=True)
        check.number("min_learning_rate", self.min_learning_rate, 0, math.inf)
        if self.budget_seconds is not None:
            check.number("budget_seconds", self.budget_seconds, 0, math.inf, open_ends=True)
        check.integer("seed", self.seed, 0, 2**64 - 1)

    def _check_sampler(self, n_classes, width, device):
        """ValueError where the sampler does not fit the number of classes, the output width or the device."""
        if self.sampler in BASELINES and device != "cpu":
            raise ValueError(f"sampler={self.sampler!r} is a baseline for the CPU alone; use device='cpu'")
        if self.sampler in MIDX_KINDS:
            hint = f" (there are {n_classes} {self.classes})"
            check.integer("n_codewords", self.n_codewords, 1, min(n_classes, MAX_CODEWORDS), hint)
            if MIDX_KINDS[self.sampler] == "pq" and width % 2:
                raise ValueError(f"sampler='midx-pq' halves the output weights: their width must be even, got {width}")

    def _sampling(self):
        """The `Sampling` of the negatives, or None."""
        return None if self.sampler == "none" else Sampling(*(getattr(self, name) for name in Sampling._fields))

    def _schedule(self, **more):
        """The `Schedule` made of the parameters of the same names, overridden by `more`."""
        names = inspect.signature(loop.Schedule).parameters
        params = {name: getattr(self, name) for name in names if hasattr(self, name)} | more
        if self.sampler not in (*BASELINES, *MIDX_KINDS):
            params["index_every"] = 0
        return loop.Schedule(**params)

    def _changeable_on_resume(self, training):
        """`epochs` must stay the same where it decides when rewiring ends or how the learning rate decays."""
        schedule = training.schedule
        epochs_matter = schedule.rewire_fraction > 0 or schedule.decay == "linear"
        return CHANGEABLE_ON_RESUME if epochs_matter else CHANGEABLE_ON_RESUME | {"epochs"}
