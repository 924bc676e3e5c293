"""The kernel architecture of `Classifier`, alone and beside a linear layer: training, its part of a model file."""

import functools
import math
import sys

import numpy as np

from ..core import check
from ..core.connections import Duals
from ..core.device import asarray
from ..neighbor_kernel import NeighborKernel, check_lengths
from . import dense_linear, kernel
from .classifier_linear import SMALLER
from .classifier_params import is_auto
from .estimator import SampledEstimator
from .linear_file import list_of_each_id
from .memory import Plan
from .models import KernelModel, WideModel
from .wide import WideTraining

#: Passes over the data if `epochs` is None.
EPOCHS = 5
#: Slack of a kernel machine: accuracy hardly depends on it.
SLACK = 0.2


class KernelArchitecture(SampledEstimator):
    """Mixin of `Classifier` with the methods for architecture='kernel', and for the kernel of 'wide-and-deep'."""

    def _kernel_training(self, X, y, validation, rows, weights, start):  # noqa: N803
        """The `KernelTraining` of dense features, after choosing power and C if they are 'auto'."""
        y = y[rows]
        self._plan(Plan(self._kernel_memory(X, y, len(rows))), "n_neighbors")
        self.tfidf_ = None
        training = self._kernel_part(
            lambda part: self._batch(X, rows[part]),
            X.shape[1],
            y,
            self._as_batch(validation),
            None if weights is None else weights[rows],
            held_out=self.calibration and validation is None,
        )
        return self._recording(training, validation)

    def _wide_training(self, X, y, validation, rows, weights, start):  # noqa: N803
        """The `WideTraining` of `WideFeatures`, after the training of its kernel machine."""
        of_rows, n_names = y[rows], int(self.name_counts_.sum())
        points = rows[: len(rows) - n_names]  # names have no embeddings
        weights_of_parts = {
            name: None if is_auto(getattr(self, name)) else float(getattr(self, name))
            for name in ("kernel_weight", "head_weight")
        }
        held_out = (self.calibration or None in weights_of_parts.values()) and validation is None
        plan = self._linear_memory(X.words, of_rows, held_out).arrays + self._kernel_memory(
            X.dense, of_rows, len(points)
        )
        if weights_of_parts["head_weight"] != 0:
            plan += dense_linear.memory(len(points), X.dense.shape[1], y.shape[1])
        self._plan(Plan(plan), f"n_neighbors, {SMALLER} or head_weight=0")
        of_embeddings = of_words = None
        if validation is not None:
            x, labels = validation
            of_embeddings, of_words = (x.dense, labels), (x.words, labels)
        part = self._kernel_part(
            lambda block: self._batch(X.dense, points[block]),
            X.dense.shape[1],
            y[points],
            self._as_batch(of_embeddings),
            None if weights is None else weights[points],
            budget_share=0.5,
        )
        part.run(progress=self.progress)
        budget = self.budget_seconds
        trials = self.trials_
        training = self._dual_training(
            X.words,
            y,
            of_words,
            rows,
            weights,
            start,
            held_out=held_out,
            budget_seconds=None if budget is None else max(budget / 2, budget - part.history.seconds),
            make=functools.partial(WideTraining, kernel=part, **weights_of_parts),
        )
        self.trials_ = trials + self.trials_
        training.validation = self._as_batch(validation)
        return self._recording(training, validation)

    def _as_batch(self, validation):
        """A pair of checked features and labels with the features as the model takes them; None for None."""
        if validation is None:
            return None
        x, labels = validation
        return self._batch(x, slice(0, x.shape[0])), labels

    @property
    def kernel_weight_(self):
        """Weight of the kernel machine's scores, for 'wide-and-deep'."""
        return self._wide_model.kernel_weight

    @property
    def head_weight_(self):
        """Weight of the linear layer over the embeddings, for 'wide-and-deep'; 0 without such a layer."""
        model = self._wide_model  # an interrupted fit has none yet
        return 0.0 if model.head is None else model.head_weight

    @property
    def _wide_model(self):
        if not isinstance(getattr(self, "network_", None), WideModel):
            raise AttributeError("this attribute needs a fitted model with architecture='wide-and-deep'")
        return self.network_

    def _kernel_memory(self, x, y, n_rows):
        """Arrays of the kernel machine over embeddings x, as a list of `memory.Array`."""
        return kernel.memory(
            n_rows=n_rows,
            n_inputs=x.shape[1],
            n_labels=y.shape[1],
            n_neighbors=self.n_neighbors,
            largest_row=int(np.diff(y.indptr).max(initial=0)),
        )

    def _kernel_part(self, rows_of, n_inputs, y, validation, weights, *, held_out=False, budget_share=1.0):
        """A `KernelTraining` over the embeddings ``rows_of(slice)`` of the rows of y.

        `validation` is a pair of embeddings and labels to choose settings by, or None.
        """
        points = kernel.prepared(
            rows_of, y.shape[0], n_inputs, self.n_neighbors, self.seed, self.device_, self.progress
        )
        given = {"power": self.power, "C": self.kernel_C}
        first = dict(zip(("power", "C"), kernel.FIRST, strict=True))
        wanted = [name for name, value in given.items() if is_auto(value)]
        chosen = {name: first[name] if name in wanted else float(given[name]) for name in given}
        epochs = EPOCHS if self.epochs is None else int(self.epochs)
        settings = kernel.Settings(
            **chosen, slack=SLACK, n_neighbors=int(self.n_neighbors), epochs=epochs, seed=int(self.seed)
        )
        settings, self.trials_ = kernel.choose_settings(
            points, y, settings, wanted=wanted, device=self.device_, sample_weight=weights, validation=validation
        )
        self.power_, self.kernel_C_ = settings.power, settings.C
        if wanted and self.progress:
            print(
                f"sparsemax-nb: power = {self.power_:g}, kernel_C = {self.kernel_C_:g}, after {len(self.trials_)} "
                "trials",
                file=sys.stderr,
            )
        return kernel.KernelTraining(
            points,
            y,
            settings,
            self.device_,
            sample_weight=weights,
            budget_seconds=None if self.budget_seconds is None else budget_share * self.budget_seconds,
            held_out=held_out,
        )

    # ------------------------------------------------------------ files

    def _kernel_from_arrays(self, arrays, about, n_inputs, device):
        """The `KernelModel` of a file; TypeError or ValueError for invalid arrays."""
        self.power_ = check.number("power", about["power"], 1, 100)
        self.kernel_C_ = check.number("kernel_C", about["kernel_C"], 0, math.inf, open_ends=True)
        points = check.array("kernel.points", arrays["kernel.points"], np.float32, ("N", n_inputs), finite=True)
        check.integer("the length of kernel.points", len(points), 1, 2**31 - 1)
        check_lengths("kernel.points", points)
        duals = Duals(*(arrays[f"kernel.{name}"] for name in Duals._fields))
        duals = checked_duals(duals, len(points), self.n_labels_)
        bias = check.array("kernel.bias", arrays["kernel.bias"], np.float32, (self.n_labels_,), finite=True)
        mean = check.array("kernel.mean", arrays["kernel.mean"], np.float32, (n_inputs,), finite=True)
        layer = NeighborKernel._from_arrays(points, duals, bias, self.power_, self.n_neighbors, device)
        return KernelModel(layer, mean)

    def _restore_kernel(self, arrays, about, device):
        if not self.is_dense_:
            raise ValueError("a kernel machine needs dense features, but is_dense is false")
        self.network_ = self._kernel_from_arrays(arrays, about, self.n_features_in_, device)

    def _restore_wide(self, arrays, about, device):
        self._restore_linear(arrays, about, device)
        weights = [check.number(name, about[name], 0, 1e6) for name in ("kernel_weight", "head_weight")]
        part, model, head = self._kernel_from_arrays(arrays, about, self.n_dense_, device), self.network_, None
        if weights[1] > 0:
            shape = self.n_labels_, self.n_dense_
            head = check.array("head.weights", arrays["head.weights"], np.float32, shape, finite=True)
            head = asarray(head, device)
        self.network_ = WideModel(
            model.layer, model.prior, model.pairs, model.weight, part, weights[0], head, weights[1]
        )


def checked_duals(duals, n_points, n_labels):
    """`Duals` read from a file; TypeError or ValueError unless all indices are inside the arrays."""
    indptr = check.array("kernel.indptr", duals.indptr, np.int64, (n_points + 1,))
    labels = check.array("kernel.labels", duals.labels, np.int32, ("n",))
    values = check.array("kernel.values", duals.values, np.float32, labels.shape, finite=True)
    check.in_range("kernel.labels", labels, n_labels)
    list_of_each_id("kernel.indptr", indptr, "kernel.labels", labels, n_labels, "the list of a point")
    return Duals(indptr, labels, values)
