"""Output layer under the softmax loss: exact over all labels, or against drawn negatives with lazy row updates."""

from typing import NamedTuple

import numpy as np

from ..baselines import LSHSampler, RFFSampler, SphereSampler
from ..core import check, sparse
from ..core.device import asarray, device_of, module_of, zeros
from ..cpu.midx import PARTS, SUMS
from ..midx import InvertedMultiIndex
from ..samplers import SCORES, LogUniformSampler, UniformSampler, UnigramSampler
from .memory import array

#: By name on the command line. Those of the first line are made once; the others follow the weights as training moves
#: them.
FIXED_SAMPLERS = "uniform", "log-uniform", "unigram"
BASELINES = {"lsh": LSHSampler, "sphere": SphereSampler, "rff": RFFSampler}
INDICES = {"midx-pq": "pq", "midx-rq": "rq"}
SAMPLERS = "none", *FIXED_SAMPLERS, *BASELINES, *INDICES


class Sampling(NamedTuple):
    """How negatives are drawn; see `Classifier` for the meaning of each."""

    sampler: str
    n_samples: int
    n_codewords: int
    residual: str
    correction: str
    mask_hits: bool


class Negatives:
    """Draws negatives for an output layer, and keeps what it draws from up to date.

    Parameters
    ----------
    how : Sampling
    weights : (L, H) float32
        Of the output layer; those that do not look at them only take their number.
    counts : (L,) int64, NumPy
        Training points of each label.
    seed : int
        Of the draws, and of the first codewords.
    """

    def __init__(self, how, weights, counts, seed):
        self.how, self._weights, self._counts, self._seed = how, weights, counts, seed
        self._device = device_of(weights)
        #: What the negatives are drawn from; None before the first `update` where that follows the weights.
        self.sampler, self._seen = None, None
        if how.sampler in FIXED_SAMPLERS:
            self.sampler = self._fixed()

    @staticmethod
    def memory(how, batch_size, n_inputs, n_labels, device):
        """What drawing takes of memory, as a layer's `memory`."""
        found, all_scores = [], array("output: step", "scores of all labels", 4, min(SCORES, batch_size * n_labels))
        if how.sampler in BASELINES:
            return [array("always", f"{how.sampler}: weights as last seen", n_labels, n_inputs), all_scores]
        if how.sampler in INDICES:
            n_words, halves = how.n_codewords, 2 if INDICES[how.sampler] == "pq" else 1
            has_records = how.residual == "popularity"
            found = [
                array("always", "index: codebooks", 2, n_words, n_inputs // halves),
                array("always", "index: codes, members, weights of k-means", 4, n_labels),
                array("always", "index: cells, their weights", 3 if device == "cuda" else 2, n_words**2),
                array("always", "index: popularity, records", 7 * has_records, n_labels),
                array("index: update", "residuals or halves", n_labels, n_inputs),
                array("index: update", "sums of the codewords", min(SUMS, PARTS * n_words * n_inputs // halves)),
                array("index: update", "distances, codes, their order", n_labels, 12 + 12 * has_records),
            ]
            return [*found, all_scores] if how.residual == "exact" else found
        return [] if how.sampler == "uniform" else [array("always", f"{how.sampler}: tables", 3, n_labels)]

    @property
    def follows_weights(self):
        """True where `update` has something to do."""
        return self.how.sampler not in FIXED_SAMPLERS

    def _fixed(self):
        if self.how.sampler == "uniform":
            return UniformSampler(len(self._counts))
        if self.how.sampler == "unigram":
            return UnigramSampler(self._counts, device=self._device)
        ranks = np.argsort(np.argsort(-self._counts, kind="stable"))
        return LogUniformSampler(len(ranks), ranks=ranks, device=self._device)

    def _baseline(self):
        make, seeds = BASELINES[self.how.sampler], {} if self.how.sampler == "sphere" else {"seed": self._seed}
        return make(self._seen, **seeds)

    @property
    def _popularity(self):
        return self._counts if self.how.residual == "popularity" else None

    def update(self):
        """Catch up with the weights; returns the share of the labels whose cell of a MIDX index changed, else None.

        An index whose codewords are all alike, as those of weights that were still zero, is no place to go on from: it
        is built anew.
        """
        if self.how.sampler in BASELINES:
            self._seen = self._weights.copy()
            self.sampler = self._baseline()
            return None
        if self.sampler is not None and not self._is_blank:
            return self.sampler.update(self._weights)
        how = self.how
        self.sampler = InvertedMultiIndex.build(
            self._weights,
            how.n_codewords,
            INDICES[how.sampler],
            how.residual,
            self._seed,
            popularity=self._popularity,
            class_weights=self._counts,
        )
        return 1.0

    @property
    def _is_blank(self):
        codewords = self.sampler.codebooks[0]
        return bool((codewords == codewords[0]).all())

    def draw(self, x, labels, step):
        """ids, log_q (B, M) of each row's negatives, and log_q (n,) of its positives (labels (B, L), n in all)."""
        ids, log_q = self.sampler.sample(x, self.how.n_samples, self._seed, step)
        n, xp = labels.indices.shape[0], module_of(self._device)
        row, counts = sparse.row_of_each_entry(labels.indptr, n), labels.indptr[1:] - labels.indptr[:-1]
        place = xp.arange(n) - labels.indptr[row]
        label_rows = zeros((len(x), int(counts.max()) if n else 0), np.int32, self._device)  # label 0 fills up
        label_rows[row, place] = labels.indices
        return ids, log_q, self.sampler.log_prob(x, label_rows)[row, place]

    @property
    def arrays(self):
        """What a checkpoint has to hold, by name."""
        if self.sampler is None or not self.follows_weights:
            return {}
        if self.how.sampler in BASELINES:
            return {"weights": self._seen}
        return {
            "codes": self.sampler.codes,
            "codebook_0": self.sampler.codebooks[0],
            "codebook_1": self.sampler.codebooks[1],
        }

    def restore(self, arrays):
        """Continue from what `arrays` held; KeyError, TypeError or ValueError where it does not fit."""
        if not self.follows_weights:
            return
        n_labels, width = self._weights.shape
        if self.how.sampler in BASELINES:
            self._seen = check.array("sampler/weights", arrays["weights"], np.float32, (n_labels, width))
            check.finite("sampler/weights", self._seen)
            self.sampler = self._baseline()
            return
        kind = INDICES[self.how.sampler]
        codes = check.array("sampler/codes", arrays["codes"], np.int32, (n_labels, 2))
        check.below("sampler/codes", codes, self.how.n_codewords)
        shape = self.how.n_codewords, width // 2 if kind == "pq" else width
        codebooks = [check.array(name, arrays[name], np.float32, shape) for name in ("codebook_0", "codebook_1")]
        for name, codebook in zip(("sampler/codebook_0", "sampler/codebook_1"), codebooks, strict=True):
            check.finite(name, codebook)
        codes, *codebooks = (asarray(array, self._device) for array in (codes, *codebooks))
        self.sampler = InvertedMultiIndex(
            codebooks, codes, kind, self.how.residual, self._popularity, self._counts, self._weights
        )
