"""Negatives for the softmax loss: which sampler draws them, and how it follows the output weights."""

from typing import NamedTuple

import numpy as np

from ..baselines import LSHSampler, RFFSampler, SphereSampler
from ..core import check, sparse
from ..core.device import asarray, device_of, module_of, zeros
from ..cpu.midx import PARTS, SUMS
from ..fixed_fan_in import FixedFanIn
from ..midx import InvertedMultiIndex
from ..samplers import SCORES_PER_CHUNK, LogUniformSampler, UniformSampler, UnigramSampler
from .memory import ALWAYS, STEP, array

#: Values of the parameter `sampler`. Fixed samplers are built once; the others follow the output weights.
FIXED_SAMPLERS = "uniform", "log-uniform", "unigram"
BASELINES = {"lsh": LSHSampler, "sphere": SphereSampler, "rff": RFFSampler}
#: Kind of quantization, as `InvertedMultiIndex.build` takes it.
MIDX_KINDS = {"midx-pq": "pq", "midx-rq": "rq"}
SAMPLERS = "none", *FIXED_SAMPLERS, *BASELINES, *MIDX_KINDS


class Sampling(NamedTuple):
    """Settings of the negatives; see `Classifier` for their meaning."""

    sampler: str
    n_samples: int
    n_codewords: int
    residual: str
    correction: str
    mask_hits: bool


class Negatives:
    """Samples negatives for an output layer, and updates the sampler to its weights.

    Parameters
    ----------
    sampling : Sampling
    weights : (L, H) float32, or FixedFanIn
        Weights of the output layer. Fixed samplers use only their number; the others use those of a sparse layer as a
        dense matrix, which `update` makes.
    counts : (L,) int64, NumPy
        Training points of each label.
    seed : int
        Seed of the samples and of the initial codewords.
    """

    def __init__(self, sampling, weights, counts, seed):
        self.sampling = sampling
        self._source = weights
        self._counts = counts
        self._seed = seed
        self._device = weights.device if isinstance(weights, FixedFanIn) else device_of(weights)
        #: None before the first `update` if the sampler follows the weights.
        self.sampler = None
        self._sampler_weights = None  # copy of the weights that a baseline sampler was built from
        if sampling.sampler in FIXED_SAMPLERS:
            self.sampler = self._fixed_sampler()

    def _dense_weights(self):
        """The weights as a matrix: those of the output layer themselves, or made from a sparse one."""
        return self._source.to_dense() if isinstance(self._source, FixedFanIn) else self._source

    @staticmethod
    def memory(sampling, batch_size, n_inputs, n_labels, device, is_sparse=False):
        """The arrays of the sampler of a dense or sparse output layer, see `train.memory`."""
        n_scores = min(SCORES_PER_CHUNK, batch_size * n_labels)
        found, all_scores = [], array(STEP, "scores of all labels", 4, n_scores)
        if sampling.sampler in BASELINES:
            name = f"{sampling.sampler}: copy of the weights"
            return [array(ALWAYS, name, n_labels, n_inputs), all_scores]
        if sampling.sampler in MIDX_KINDS:
            n_words, halves = sampling.n_codewords, 2 if MIDX_KINDS[sampling.sampler] == "pq" else 1
            has_records = sampling.residual == "popularity"
            found = [
                array(ALWAYS, "index: codebooks", 2, n_words, n_inputs // halves),
                array(ALWAYS, "index: codes, members, weights of k-means", 4, n_labels),
                array(ALWAYS, "index: cells, their weights", 3 if device == "cuda" else 2, n_words**2),
                array(ALWAYS, "index: popularity, records", 7 * has_records, n_labels),
                array("index: update", "residuals or halves", n_labels, n_inputs),
                array("index: update", "sums of the codewords", min(SUMS, PARTS * n_words * n_inputs // halves)),
                array("index: update", "distances, codes, their order", n_labels, 12 + 12 * has_records),
                array("index: update", "dense weights", n_labels * is_sparse, n_inputs),
            ]
            return [*found, all_scores] if sampling.residual == "exact" else found
        return [] if sampling.sampler == "uniform" else [array(ALWAYS, f"{sampling.sampler}: tables", 3, n_labels)]

    @property
    def follows_weights(self):
        """Whether the sampler depends on the weights, so that it needs `update`."""
        return self.sampling.sampler not in FIXED_SAMPLERS

    def _fixed_sampler(self):
        if self.sampling.sampler == "uniform":
            return UniformSampler(len(self._counts))
        if self.sampling.sampler == "unigram":
            return UnigramSampler(self._counts, device=self._device)
        ranks = np.argsort(np.argsort(-self._counts, kind="stable"))
        return LogUniformSampler(len(ranks), ranks=ranks, device=self._device)

    def _baseline_sampler(self):
        seeds = {} if self.sampling.sampler == "sphere" else {"seed": self._seed}
        return BASELINES[self.sampling.sampler](self._sampler_weights, **seeds)

    @property
    def _popularity(self):
        return self._counts if self.sampling.residual == "popularity" else None

    def update(self):
        """Update the sampler to the current weights.

        Returns the share of the labels whose cell of a MIDX index changed, or None. If all codewords of an index are
        equal, as after an update to zero weights, it is built from scratch: such codewords are no useful start.
        """
        sampling = self.sampling
        if sampling.sampler in BASELINES:
            weights = self._dense_weights()
            self._sampler_weights = weights.copy() if weights is self._source else weights
            self.sampler = self._baseline_sampler()
            return None
        weights = self._dense_weights()
        if self.sampler is not None and not self._has_equal_codewords:
            return self.sampler.update(weights)
        self.sampler = InvertedMultiIndex.build(
            weights,
            sampling.n_codewords,
            MIDX_KINDS[sampling.sampler],
            sampling.residual,
            self._seed,
            popularity=self._popularity,
            class_weights=self._counts,
        )
        return 1.0

    @property
    def _has_equal_codewords(self):
        codewords = self.sampler.codebooks[0]
        return bool((codewords == codewords[0]).all())

    def draw(self, h, labels, step):
        """ids, log_q (B, M) of each row's negatives, and log_q (n,) of all n labels of the batch."""
        ids, log_q = self.sampler.sample(h, self.sampling.n_samples, self._seed, step)
        n, xp = labels.indices.shape[0], module_of(self._device)
        row, counts = sparse.row_of_each_entry(labels.indptr, n), labels.indptr[1:] - labels.indptr[:-1]
        column = xp.arange(n) - labels.indptr[row]
        # One row of labels per row of h, padded with label 0: samplers take a matrix of ids.
        label_rows = zeros((len(h), int(counts.max()) if n else 0), np.int32, self._device)
        label_rows[row, column] = labels.indices
        return ids, log_q, self.sampler.log_prob(h, label_rows)[row, column]

    @property
    def arrays(self):
        """Arrays of the sampler for a checkpoint, by name."""
        if self.sampler is None or not self.follows_weights:
            return {}
        if self.sampling.sampler in BASELINES:
            return {"weights": self._sampler_weights}
        return {
            "codes": self.sampler.codes,
            "codebook_0": self.sampler.codebooks[0],
            "codebook_1": self.sampler.codebooks[1],
        }

    def restore(self, arrays):
        """Continue from a result of `arrays`; KeyError, TypeError or ValueError if it does not fit."""
        if not self.follows_weights:
            return
        weights = self._dense_weights()
        n_labels, width = weights.shape
        if self.sampling.sampler in BASELINES:
            stored = check.array("sampler/weights", arrays["weights"], np.float32, (n_labels, width))
            check.finite("sampler/weights", stored)
            self._sampler_weights = stored
            self.sampler = self._baseline_sampler()
            return
        kind = MIDX_KINDS[self.sampling.sampler]
        codes = check.array("sampler/codes", arrays["codes"], np.int32, (n_labels, 2))
        check.in_range("sampler/codes", codes, self.sampling.n_codewords)
        shape = self.sampling.n_codewords, width // 2 if kind == "pq" else width
        codebooks = [check.array(name, arrays[name], np.float32, shape) for name in ("codebook_0", "codebook_1")]
        for name, codebook in zip(("sampler/codebook_0", "sampler/codebook_1"), codebooks, strict=True):
            check.finite(name, codebook)
        codes, *codebooks = (asarray(array, self._device) for array in (codes, *codebooks))
        self.sampler = InvertedMultiIndex(
            codebooks, codes, kind, self.sampling.residual, self._popularity, self._counts, weights
        )
