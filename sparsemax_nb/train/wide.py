"""Training of a linear layer over words next to a kernel machine over embeddings, whose scores are added."""

import numpy as np

from .. import metrics
from ..core import check
from ..core.device import to_numpy
from . import held_out as held_out_rows
from .linear import DualTraining
from .models import MAX_SCORES, WideModel

#: Weights of the kernel machine that are tried.
WEIGHTS = 0.0, 0.25, 0.5, 1.0, 2.0
#: Labels per row that the metric of a trial looks at.
K = 5


class WideTraining(DualTraining):
    """A `DualTraining` whose model adds the scores of a kernel machine, which has been trained before.

    Both parts are trained on their own: jointly, with one margin and one dual variable per row and label, they were
    less accurate in our trials.

    Parameters
    ----------
    kernel : KernelTraining
        Of the same rows, in the same order; finished.
    kernel_weight : float or None
        None tries `WEIGHTS` on the held-out rows, or else on those of `validation`, which may be set before the run.

    Attributes
    ----------
    validation : tuple (WideFeatures, (n, L) CSR matrix) or None
    """

    validation = None

    def __init__(self, x, y, settings, device="cpu", *, kernel, kernel_weight=None, **options):
        self._kernel, self._labels = kernel, y
        self._tried = WEIGHTS if kernel_weight is None else (kernel_weight,)
        super().__init__(x, y, settings, device, **options)

    def _new_model(self, layer, prior, pairs):
        weight = self._tried[len(self._tried) // 2]
        return WideModel(layer, prior, pairs, self.settings.co_occurrence, self._kernel.part, weight)

    def state(self):
        """As in `DualTraining`, with the weight of the kernel machine."""
        arrays, about = super().state()
        return arrays | {"kernel_weight": np.array([self.network.kernel_weight])}, about

    def restore(self, arrays, about):
        """As in `DualTraining`."""
        super().restore(arrays, about)
        stored = check.array("kernel_weight", arrays["kernel_weight"], np.float64, (1,), finite=True)
        self.network.kernel_weight = check.number("kernel_weight", float(stored[0]), 0, 1e6)

    def _finish_epoch(self):
        """As in `DualTraining`, with the best weight for the validation rows, which the recorded metrics use."""
        if self.validation is not None and len(self._tried) > 1:
            self._count_pairs()
            x, labels = self.validation
            neighbors, kernels = self.network.kernel.neighbors(x.dense)
            found = self._candidates(self.network, self.network.kernel, x.words, neighbors, kernels)
            self._choose([ids for _, ids in found], labels)
        super()._finish_epoch()

    def _predicted(self, model, x, n_points, rows):
        kernel = self._kernel.without(rows)
        found = self._candidates(model, kernel.part, x, *kernel.listed(rows))
        return [held_out_rows.HeldOut(scores, ids, n_points[ids], rows) for scores, ids in found]

    def _candidates(self, model, kernel, words, neighbors, kernels):
        """[(scores, ids) of the best labels with each weight that is tried], NumPy, for rows of both parts."""
        n, step = words.shape[0], max(1, MAX_SCORES // model.n_labels)
        found = [(np.empty((n, self._k), np.float32), np.empty((n, self._k), np.int32)) for _ in self._tried]
        for first in range(0, n, step):
            rows = slice(first, min(first + step, n))
            of_words, of_kernel = model.scores(words[rows]), kernel.scores(neighbors[rows], kernels[rows])
            for weight, out in zip(self._tried, found, strict=True):
                best = model.top_k_of(of_words + np.float32(weight) * of_kernel, self._k)
                for whole, part in zip(out, best, strict=True):
                    whole[rows] = to_numpy(part)
        return found

    def _chosen(self, parts):
        candidates = [held_out_rows.joined(of_weight, self._k) for of_weight in zip(*parts, strict=True)]
        if not candidates:
            return super()._chosen(parts)
        return candidates[self._choose([found.ids for found in candidates], self._labels[candidates[0].rows])]

    def _choose(self, ids, labels):
        """Set the weight with the best nDCG@5, from the best labels with each weight; returns its position."""
        k = min(K, labels.shape[1])
        best = int(np.argmax([metrics.ndcg_at_k(np.ascontiguousarray(found[:, :k]), labels, k) for found in ids]))
        self.network.kernel_weight = self._tried[best]
        return best
