"""The network architecture of `Classifier`: construction, training, and its part of a model file."""

import functools
from typing import Any

import numpy as np

from ..core import check
from ..core.device import asarray, device_of
from ..data.batches import resampled
from ..grouping import group_labels
from ..optimizers import Adam
from . import loop
from .classifier_targets import CLASS
from .estimator import SampledEstimator
from .negatives import FIXED_SAMPLERS, MIDX_KINDS, Negatives
from .network import SPARSE_OUTPUTS, Network
from .start import LabelStart
from .validation import possible_ks

#: Most weights of a dense matrix that samplers may make from a sparse output layer: 512 MiB.
MAX_DENSE_WEIGHTS = 1 << 27
#: Passes over the data if `epochs` is None.
EPOCHS = 5
#: Connections per label if `fan_in` is None: with the default embedding, a quarter of the memory of a dense output. The
#: files of such models do not store the number.
FAN_IN = 64


class _Rows:
    """Training features with the indexing that `group_labels` needs; slices are converted on demand."""

    def __init__(self, batch, x, rows):
        self._batch = batch
        self._x = x
        self._rows = rows
        self.shape = len(rows), x.shape[1]

    def __getitem__(self, part):
        return self._batch(self._x, self._rows[part])


def _initial_bias(bias, counts, n_points, loss):
    """Set the bias so that nearly all labels start off (our choice): squared hinge -1, its margin; bce the log-odds."""
    if loss == "squared-hinge":
        bias[:] = -1
        return
    odds = (counts + 0.5) / (n_points - counts + 0.5)
    bias[:] = asarray(np.log(odds), device_of(bias), np.float32)


class NetworkArchitecture(SampledEstimator):
    """Mixin of `Classifier` with the methods for architecture='network'."""

    def _network_params(self, n_features, n_labels, is_dense, device):
        """Arguments that `Network` and `Network.memory` share; ValueError if the fan-in is too large."""
        embedding = None if is_dense else self.embedding
        intermediate = self.intermediate
        if self.output == "dense":
            intermediate = None
        elif self.output == "bottleneck":
            intermediate = self.bottleneck
        width = intermediate or embedding or n_features
        fan_in = max(1, min(FAN_IN, width // 2)) if self.fan_in is None else self.fan_in
        if self.output in SPARSE_OUTPUTS:
            check.integer("fan_in", fan_in, 1, width, f" (the width of the layer below is {width})")
            limit = f"fan_in must be at most half the width of the layer below, {width // 2}, got {fan_in}"
            if 2 * fan_in > width and self.output == "unstructured":
                raise ValueError(f"{limit}: output='unstructured' draws until it finds free positions")
            if 2 * fan_in > width and self.rewire_fraction > 0:
                raise ValueError(
                    f"{limit}: a label may need more redraws than it has free inputs; use rewire_fraction=0"
                )
        if self.output == "group-shared":
            check.integer("group_size", self.group_size, 1, n_labels, f" (n_labels = {n_labels})")
        return {
            "n_features": n_features,
            "n_labels": n_labels,
            "embedding": embedding,
            "intermediate": intermediate,
            "output": self.output,
            "fan_in": fan_in,
            "device": device,
            "loss": self.loss,
            "group_size": self.group_size,
            "weight_dtype": self.weight_dtype,
            "clip": self.clip,
        }

    def _check_network_sampler(self, n_classes, width, device, counts):
        self._check_sampler(n_classes, width, device)
        if self.sampler != "none" and self.output in SPARSE_OUTPUTS:
            self._check_sampler_of_sparse_output(n_classes * width)
        if self.sampler in ("unigram", *MIDX_KINDS) and not counts.any():
            raise ValueError(f"y must have labels in the training rows: sampler={self.sampler!r} needs their counts")

    def _check_sampler_of_sparse_output(self, size):
        """ValueError if negatives cannot be drawn for it; `size` is the number of weights of a dense layer."""
        sampler = f"sampler={self.sampler!r}"
        if self.output == "unstructured":
            raise ValueError(f"{sampler} needs another output than 'unstructured'; use output='fixed-fan-in'")
        if self.weight_dtype != "float32":
            raise ValueError(f"{sampler} updates single labels, which needs weight_dtype='float32'")
        if self.sampler in FIXED_SAMPLERS:
            return
        if self.residual == "exact" and self.sampler in MIDX_KINDS:
            raise ValueError(f"residual='exact' needs output='dense' or 'bottleneck', got {self.output!r}")
        if size > MAX_DENSE_WEIGHTS:
            raise ValueError(
                f"{sampler} copies the weights of the output layer to a dense matrix of at most {MAX_DENSE_WEIGHTS:,} "
                f"numbers, which would have {size:,}; use a narrower layer below the output, or sampler='uniform', "
                "'log-uniform' or 'unigram', which need no weights"
            )

    def _new_network(self, params):
        return Network(**params, dropout=self.dropout, word_dropout=self.word_dropout, seed=self.seed)

    def _network_training(self, X, y, validation, rows, weights, start):  # noqa: N803
        """The `Training` of a new network, or of one with the weights of the model `start`.

        `weights` are those of the rows of X before the names of labels, or None.
        """
        row_order = None
        if weights is not None:
            weights = np.append(weights, np.full(int(self.name_counts_.sum()), weights.mean()))[rows]
            row_order = functools.partial(resampled, weights, self.seed)
        params = self._network_params(X.shape[1], y.shape[1], self.is_dense_, self.device_)
        width = params["intermediate"] or params["embedding"] or X.shape[1]
        counts = self.label_counts_ + self.name_counts_
        self._check_network_sampler(y.shape[1], width, self.device_, counts)
        self._plan(
            Network.memory(
                **params,
                batch_size=min(self.batch_size, len(rows)),
                keep_best=validation is not None,
                entries_per_row=0 if self.is_dense_ else X.nnz / X.shape[0],
                rewired=self.rewire_fraction,
                sampling=self._sampling(),
                labels_per_row=y.nnz / y.shape[0],
                initial=self.initial if start is None else "random",
                n_points=len(rows),
            )
        )
        self.tfidf_ = None
        if not self.is_dense_:
            self.tfidf_ = self._fitted_tfidf(X if np.array_equal(rows, np.arange(X.shape[0])) else X[rows], validation)
        if validation is not None:
            for first in range(0, validation[0].shape[0], self.batch_size):  # refuses NaN before the training
                self._batch(validation[0], slice(first, first + self.batch_size))
        network = self._new_network(params)
        if self.output == "group-shared":
            of_labels = group_labels(_Rows(self._batch, X, rows), y[rows], self.group_size, self.grouping, self.seed)
            unseen = counts[of_labels] == 0
            of_labels[unseen] = np.sort(of_labels[unseen])  # their scores are equal: positions break ties by id
            network.output.set_order(of_labels)
            counts = counts[of_labels]
        if start is not None:
            network.set_parameters(start.network_.parameters)
        elif self.loss != "softmax":
            _initial_bias(network.output.bias, counts, len(rows), self.loss)
        if self.sampler != "none":
            network.output.negatives = Negatives(self._sampling(), network.output.sampler_weights, counts, self.seed)
        scale, prepare = 1.0, None
        if self.initial == "labels":
            label_start = LabelStart(network, lambda ids: self._batch(X, rows[ids]), y[rows], self.seed)
            scale, prepare = label_start.scale, label_start.run if start is None else None
        network.output.rank_last(np.flatnonzero(self.label_counts_ + self.name_counts_ == 0))
        ks, adam = possible_ks(y.shape[1]), Adam(self.learning_rate)
        has_p3 = y.shape[1] > 3 and self._target_form != CLASS  # with three labels, P@3 is always the same
        self._scale_rates(adam, network, scale)
        return loop.Training(
            network,
            adam,
            self._network_schedule(),
            len(rows),
            batch=lambda ids: (self._batch(X, rows[ids]), y[rows[ids]]),
            order=row_order,
            validate=None if validation is None else lambda: self._evaluate_with(network, *validation, ks),
            monitor="P@3" if has_p3 else "P@1",
            prepare=prepare,
        )

    def _scale_rates(self, adam, network, scale):
        """Set the learning rates of the layers; `scale` is that of the weights next to dense features."""
        if not self.is_dense_:
            adam.scale_rate(network.hidden[0].table, self.embedding_lr_multiplier)
        if len(network.hidden) > 1:
            factor = self.intermediate_lr_multiplier if self.output in SPARSE_OUTPUTS else 1.0
            adam.scale_rate(network.hidden[-1].weights, factor * scale)
        elif self.is_dense_:
            output = network.output
            adam.scale_rate(output.weights if hasattr(output, "weights") else output.values, scale)

    def _network_schedule(self):
        more = {} if self.output in SPARSE_OUTPUTS else {"rewire_fraction": 0.0}
        return self._schedule(**more, epochs=EPOCHS if self.epochs is None else self.epochs)

    def encode(self, X: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Return the input of the output layer for each row.

        Parameters
        ----------
        X : (n, F) SciPy CSR matrix or dense array
            As in `fit`.
        out : (n, H) float32, optional
            NumPy array, may be memory-mapped; overwritten and returned.

        Returns
        -------
        h : (n, H) float32
            NumPy; H is the width of the layer below the output.

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet, or not a network; X of another kind or width than in `fit`, or not finite; out
            of the wrong dtype or shape.
        """
        self._check_fitted()
        if self.architecture_ != "network":
            raise ValueError(
                f"encode returns the input of an output layer: architecture={self.architecture_!r} has none; use "
                "'network'"
            )
        X = self._features(X)  # noqa: N806
        out = check.output("out", out, np.float32, (X.shape[0], self.network_.width), "cpu")
        loop.encode(self.network_, X.shape[0], lambda rows: self._batch(X, rows), self.batch_size, out)
        return out

    def _restore_network(self, arrays, about, device):
        params = self._network_params(self.n_features_in_, self.n_labels_, self.is_dense_, device)
        arrays.check_shapes(Network.memory(**params).parameter_shapes)
        self.network_ = self._new_network(params)
        self.network_.set_parameters(arrays)
        self.network_.output.rank_last(np.flatnonzero(self.label_counts_ + self.name_counts_ == 0))
