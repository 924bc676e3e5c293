"""What the estimators share: parameters by name, what they may be, checkpoints of a run."""

import contextlib
import inspect
import math
import os

import numpy as np

from ..core import check, checkpoint, description, files
from ..core.device import resolve_device, to_numpy
from ..data import fingerprint
from ..midx import MAX_CODEWORDS, RESIDUALS
from ..sampled_softmax import CORRECTIONS
from . import loop
from .negatives import BASELINES, INDICES, SAMPLERS, Sampling

#: Parameters that may differ when a run is resumed: they do not change what a step computes.
FREE_TO_CHANGE = {"budget_seconds", "device", "memory_limit", "progress"}
#: What a model file says of the data that the model was trained on, where the command line did it.
DATA = description.optional(description.record(name=description.text, fingerprint=description.text))

#: Of a layer: ids of inputs are int32.
MOST_WIDTH = 2**31 - 1


class AvailableIf:
    """A method that an object has only where ``condition(object)`` holds: `hasattr` is False elsewhere, as scikit-learn asks it."""

    def __init__(self, condition, method):
        self._condition, self._method = condition, method

    def __get__(self, instance, owner):
        if instance is None:
            return self._method
        if not self._condition(instance):
            raise AttributeError(
                f"{self._method.__name__} is for a linear layer, not for architecture={instance.architecture!r}"
            )
        return self._method.__get__(instance, owner)


class Estimator:
    """Parameters as constructor arguments, with scikit-learn's manners."""

    #: What the files of `save` say that they hold.
    kind: str | None = None
    #: What the classes of the output layer are called.
    classes = "classes"
    #: How it is fitted, for the error of what was not.
    fit_call: str | None = None
    #: The attribute that a fit makes.
    result = "network_"
    #: {"name": ..., "fingerprint": ...} of the data that it was fitted to, where the command line did it; saved with
    #: it.
    data_ = None

    @classmethod
    def _names(cls):
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep=True):
        """The constructor's arguments by name.

        Parameters
        ----------
        deep : bool
            Of no meaning here; scikit-learn passes it.

        Returns
        -------
        params : dict

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> Classifier(fan_in=16).get_params()["fan_in"]
        16
        """
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params):
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
            A name that the constructor does not know.

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> Classifier().set_params(fan_in=16, epochs=2)
        Classifier(fan_in=16, epochs=2)
        """
        for name, value in params.items():
            check.choice("parameter", name, self._names())
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self):
        return hasattr(self, self.result)

    def _changed_params(self):
        """The parameters that are not at their defaults."""
        defaults = {n: p.default for n, p in inspect.signature(type(self).__init__).parameters.items()}
        return {n: v for n, v in self.get_params().items() if v != defaults[n]}

    def __repr__(self):
        changed = ", ".join(f"{n}={v!r}" for n, v in self._changed_params().items())
        return f"{type(self).__name__}({changed})"

    def _check_fitted(self):
        if not hasattr(self, self.result):
            raise _not_fitted(f"this {type(self).__name__} is not fitted yet; call {self.fit_call} first")

    def _plain_params(self):
        """The parameters as JSON knows them."""
        return {n: value.item() if isinstance(value, np.generic) else value for n, value in self.get_params().items()}

    @contextlib.contextmanager
    def _becoming(self, new):
        """Take over the attributes of `new`; an error before an epoch has ended leaves `self` as it was before."""
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
    def _check_checkpoint_path(path, resume):
        check.flag("resume", resume)
        if path is not None:
            check.path("checkpoint_path", path)
        if path is None and resume:
            raise ValueError("resume needs checkpoint_path, the file to continue from")
        if path is not None:
            files.check_writable(path)
        if path is not None and not resume and os.path.exists(path):
            raise ValueError(f"{path} is there already: resume continues from it (--resume); else remove it first")

    def _checkpoints(self, training, path, resume, parts):
        """Bring `training` to where the checkpoint `path` was written, if it is there; returns what writes the next one.

        `training` has `state`, `restore` and `checkpoint_nbytes`; `parts` are the data, in pairs that `fingerprint`
        takes. ModelFileError for a checkpoint of another run.
        """
        if path is None:
            return None
        files.check_writable(path, training.checkpoint_nbytes)
        kind = f"{self.kind} checkpoint"
        about = {"params": self._plain_params(), "fingerprint": [fingerprint(*part) for part in parts]}
        if resume and os.path.exists(path):
            arrays, description = checkpoint.load(path, kind)
            try:
                _check_same_run(description, about, self._free_to_change(training))
                training.restore(arrays, description)
            except checkpoint.ModelFileError:
                raise
            except checkpoint.BROKEN as error:
                raise checkpoint.ModelFileError(f"{path} can not be resumed: {error}") from error

        def save():
            arrays, description = training.state()
            checkpoint.save(path, kind, arrays, about | description)

        return save

    def _free_to_change(self, training):
        """Names of the parameters that may differ when `training` is resumed."""
        return FREE_TO_CHANGE


def _check_same_run(description, about, free):
    """ValueError where a checkpoint's description is that of another run; parameters in `free` may differ."""
    for name, value in about["params"].items():
        if name not in free and description["params"][name] != value:
            raise ValueError(
                f"{name} was {description['params'][name]!r}, not {value!r}; start anew or give the old value"
            )
    if description["fingerprint"] != about["fingerprint"]:
        raise ValueError("it was written for other data (training or validation)")


class SampledEstimator(Estimator):
    """An estimator with one output layer, that may be trained against negatives that are drawn."""

    #: Does None stand for a number of epochs?
    epochs_may_be_none = False

    #: Checks the description in a model file, see `description`.
    file_description = None

    # ------------------------------------------------------------ files

    def _write(self, path, **more):
        """Write a model file: the network's parameters, what `_state` adds to them, and what `more` replaces of it."""
        check.path("path", path)
        arrays, about = self._state()
        arrays |= {name: to_numpy(array) for name, array in self.network_.parameters.items()}
        checkpoint.save(path, self.kind, arrays, {"params": self._fitted_params, "data": self.data_} | about | more)

    @classmethod
    def load(cls, path, device="auto"):
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : str or path
        device : 'auto', 'cpu' or 'cuda'
            'auto' takes a CUDA device where there is one.

        Returns
        -------
        model : the estimator, fitted

        Raises
        ------
        FileNotFoundError, ModelFileError
            No such file; a file that is truncated, damaged, foreign, or of another kind or version.
        """
        check.path("path", path)
        device = resolve_device(device)
        arrays, about = checkpoint.load(path, cls.kind)
        with checkpoint.whole(path, cls.__name__):
            cls.file_description("description", about)
            model = cls(**about["params"]).set_params(device=device)
            model._check_params()
            model._fitted_params, model.device_, model.data_ = about["params"], device, about["data"]
            model._restore(arrays, about, device)
        return model

    # ------------------------------------------------------------ parameters

    def _check_params(self):
        """TypeError or ValueError for parameters that all estimators have."""
        check.choice("sampler", self.sampler, SAMPLERS)
        check.choice("residual", self.residual, RESIDUALS)
        check.choice("correction", self.correction, CORRECTIONS)
        for name in ("mask_hits", "progress"):
            check.flag(name, getattr(self, name))
        if self.epochs is not None or not self.epochs_may_be_none:
            check.integer("epochs", self.epochs, 1)
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
        """What sampler and number of classes, output width or device do not go together; before a fit."""
        if self.sampler in BASELINES and device != "cpu":
            raise ValueError(f"sampler={self.sampler!r} is a baseline for the CPU alone; use device='cpu'")
        if self.sampler in INDICES:
            hint = f" (there are {n_classes} {self.classes})"
            check.integer("n_codewords", self.n_codewords, 1, min(n_classes, MAX_CODEWORDS), hint)
            if INDICES[self.sampler] == "pq" and width % 2:
                raise ValueError(f"sampler='midx-pq' halves the output weights: their width must be even, got {width}")

    def _sampling(self):
        """How negatives are drawn, or None."""
        return None if self.sampler == "none" else Sampling(*(getattr(self, name) for name in Sampling._fields))

    def _schedule(self, **more):
        """The `Schedule` of the parameters that it shares with the estimator, and of `more`."""
        names = inspect.signature(loop.Schedule).parameters
        params = {name: getattr(self, name) for name in names if hasattr(self, name)} | more
        if self.sampler not in (*BASELINES, *INDICES):
            params["index_every"] = 0
        return loop.Schedule(**params)

    def _free_to_change(self, training):
        """Where the number of epochs decides until when a layer is rewired, or how the learning rate falls, it matters."""
        schedule = training.schedule
        epochs_matter = schedule.rewire_fraction > 0 or schedule.decay == "linear"
        return FREE_TO_CHANGE if epochs_matter else FREE_TO_CHANGE | {"epochs"}


def _not_fitted(message):
    """scikit-learn's error for it where that is installed, which is a ValueError, else a ValueError."""
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError(message)
    return NotFittedError(message)
