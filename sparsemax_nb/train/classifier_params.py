"""Checks of the parameters of `Classifier`, and which architecture they select."""

import math

import numpy as np
import scipy.sparse

from ..core import check
from ..data.vectorizer import MAX_WEIGHT
from ..group_shared import DTYPES
from ..grouping import GROUPINGS
from .calibration import parse_measure
from .estimator import MAX_WIDTH, SampledEstimator
from .models import CANDIDATES
from .network import LOSSES, OUTPUTS
from .wide_features import WideFeatures

#: Most neighbors of a row; more make a kernel machine slow, not better.
MAX_NEIGHBORS = 4096
ARCHITECTURES = "linear", "kernel", "wide-and-deep", "network"
#: Parameters that only some of the architectures have, beside those of `NETWORK_ONLY`.
LINEAR_ONLY = "C", "slack", "frequency", "co_occurrence", "features_per_point", "min_features", "extra_features"
KERNEL_ONLY = "power", "kernel_C", "n_neighbors"
WIDE_ONLY = "kernel_weight", "head_weight", "dense_columns"
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
    "initial",
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
    "embedding_lr_multiplier",
    "intermediate_lr_multiplier",
    "clip",
    "decay",
    "warm_up",
    "min_learning_rate",
    "patience",
    "stop_after",
    "rewire_fraction",
    "rewire_every",
    "rewire_until",
    "batch_size",
)
#: The architectures for each kind of features.
ARCHITECTURES_OF = {
    "pair": ("wide-and-deep",),
    "sparse": ("linear", "network"),
    "dense": ("linear", "kernel", "network"),
}
#: The parameters that an architecture does not have.
FOREIGN = {
    "linear": (*NETWORK_ONLY, *KERNEL_ONLY, *WIDE_ONLY),
    "kernel": (*NETWORK_ONLY, *LINEAR_ONLY, *WIDE_ONLY),
    "wide-and-deep": NETWORK_ONLY,
    "network": (*LINEAR_ONLY, *KERNEL_ONLY, *WIDE_ONLY),
}


def is_auto(value):
    """Whether a parameter is 'auto'; an array is not."""
    return isinstance(value, str) and value == "auto"


class ClassifierParams(SampledEstimator):
    """Mixin of `Classifier` that checks its parameters."""

    def _check_params(self):
        super()._check_params()
        check.choice("architecture", self.architecture, ("auto", *ARCHITECTURES))
        if not is_auto(self.C):
            check.number("C", self.C, 0, math.inf, open_ends=True)
        if not is_auto(self.slack):
            check.number("slack", self.slack, 0, 1.999)
        if not is_auto(self.frequency):
            check.number("frequency", self.frequency, 0, 1e6)
        if not is_auto(self.power):
            check.number("power", self.power, 1, 100)
        if not is_auto(self.kernel_C):
            check.number("kernel_C", self.kernel_C, 0, math.inf, open_ends=True)
        for name in ("kernel_weight", "head_weight"):
            if not is_auto(getattr(self, name)):
                check.number(name, getattr(self, name), 0, 1e6)
        check.integer("n_neighbors", self.n_neighbors, 1, MAX_NEIGHBORS)
        check.integer("dense_columns", self.dense_columns, 0)
        check.number("co_occurrence", self.co_occurrence, 0, 1e6)
        check.number("features_per_point", self.features_per_point, 0, 1e6)
        check.integer("min_features", self.min_features, 1)
        check.number("extra_features", self.extra_features, 0, 1e6)
        if not is_auto(self.char_weight):
            check.number("char_weight", self.char_weight, 0, MAX_WEIGHT, open_ends=True)
        self._new_vectorizer()._check_params()
        for name in ("name_points", "calibration", "warm_start"):
            check.flag(name, getattr(self, name))
        if isinstance(self.threshold, str):
            kind, number = parse_measure(self.threshold)
            if kind == "f1":
                check.integer("the limit of threshold", number, 1, CANDIDATES)
        else:
            check.number("threshold", self.threshold, 0, 1)
        if self.limit is not None and not is_auto(self.limit):
            check.integer("limit", self.limit, 1)
        check.choice("output", self.output, tuple(OUTPUTS))
        check.choice("loss", self.loss, LOSSES)
        check.choice("initial", self.initial, ("labels", "random"))
        if self.loss != "softmax" and self.sampler != "none":
            raise ValueError(f"sampler={self.sampler!r} needs loss='softmax', got loss={self.loss!r}")
        if not (isinstance(self.tfidf, (bool, np.bool_)) or is_auto(self.tfidf)):
            raise ValueError(f"tfidf must be 'auto', True or False, got {check.shown(self.tfidf)}")
        check.choice("grouping", self.grouping, GROUPINGS)
        check.choice("weight_dtype", self.weight_dtype, tuple(DTYPES))
        if self.weight_dtype != "float32" and self.output != "group-shared":
            raise ValueError(f"weight_dtype={self.weight_dtype!r} needs output='group-shared', got {self.output!r}")
        for name in ("fan_in", "group_size", "rewire_every"):
            if name != "fan_in" or self.fan_in is not None:
                check.integer(name, getattr(self, name), 1)
        for name in ("embedding", "bottleneck", "intermediate"):
            if name != "intermediate" or self.intermediate is not None:
                check.integer(name, getattr(self, name), 1, MAX_WIDTH)
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

    def _resolved_architecture(self, x):
        """The architecture for these features; ValueError if it does not fit them, or a changed parameter it."""
        kind = "pair" if isinstance(x, WideFeatures) else "sparse" if scipy.sparse.issparse(x) else "dense"
        changed, architecture = self._changed_params(), self._wanted_architecture
        if architecture == "auto":
            is_network = any(name in changed for name in NETWORK_ONLY)
            of_dense = "network" if is_network else "kernel"
            architecture = {"pair": "wide-and-deep", "sparse": "linear", "dense": of_dense}[kind]
        if (architecture == "wide-and-deep") != (kind == "pair"):
            raise ValueError(
                f"architecture={architecture!r} needs X to be "
                + (
                    "a pair (texts or sparse features, embeddings), or a matrix with dense_columns"
                    if architecture == "wide-and-deep"
                    else "one matrix, or texts, not a pair; use architecture='wide-and-deep'"
                )
            )
        if architecture == "kernel" and kind == "sparse":
            given = "a sparse matrix" if self.vectorizer_ is None else "texts"
            raise TypeError(f"architecture='kernel' needs a dense array X, got {given}; use 'linear'")
        foreign = [name for name in FOREIGN[architecture] if name in changed]
        if foreign:
            other = [name for name in ARCHITECTURES_OF[kind] if not set(foreign) & set(FOREIGN[name])]
            hint = f"use architecture={other[0]!r}, or do not set" if other else "do not set"
            raise ValueError(
                f"{', '.join(foreign)} must keep {'its default' if len(foreign) == 1 else 'their defaults'}: "
                f"{'a pair of features' if kind == 'pair' else f'{kind} features'} with architecture="
                f"{self.architecture!r} select the {architecture!r} architecture; "
                f"{hint} {'it' if len(foreign) == 1 else 'them'}"
            )
        return architecture
