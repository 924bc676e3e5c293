"""Training of a linear layer over words next to a kernel machine and a linear layer over embeddings: scores are added.

The parts are trained on their own: jointly, with one margin and one dual variable per row and label, they were less
accurate in our trials.
"""

import itertools

import numpy as np

from .. import metrics
from ..core import check
from ..core.device import product, to_numpy
from . import held_out as held_out_rows
from .dense_linear import DenseDual
from .linear import DualTraining
from .linear_settings import MIN_GAIN
from .models import MAX_SCORES, WideModel
from .progress import Progress

#: Weights of the kernel machine, and of the linear layer over the embeddings, that are tried.
KERNEL_WEIGHTS = 0.0, 0.5, 1.0, 2.0
HEAD_WEIGHTS = 0.0, 0.25, 0.5
#: Settings of the linear layer over the embeddings.
HEAD = {"C": 1.0, "slack": 0.5}
HEAD_EPOCHS = 2
FIRST_EPOCH, OTHER_EPOCHS = slice(0, 1), slice(1, None)
#: Labels per row that the metric of a trial looks at.
K = 5


class WideTraining(DualTraining):
    """A `DualTraining` whose model adds the scores of embeddings.

    Parameters
    ----------
    kernel : KernelTraining
        Of the same rows, in the same order, without the names of labels at the end; finished.
    kernel_weight, head_weight : float or None
        None tries some values on the held-out rows, or else on those of `validation`, which may be set before the run.

    Attributes
    ----------
    validation : tuple (WideFeatures, (n, L) CSR matrix) or None
    """

    validation = None

    def __init__(self, x, y, settings, device="cpu", *, kernel, kernel_weight=None, head_weight=None, **options):
        self._kernel, self._labels, self._head, self._progress = kernel, y, None, False
        weights = (
            tried if given is None else (given,)
            for tried, given in ((KERNEL_WEIGHTS, kernel_weight), (HEAD_WEIGHTS, head_weight))
        )
        self._tried = list(itertools.product(*weights))
        super().__init__(x, y, settings, device, **options)

    def _new_model(self, layer, prior, pairs):
        kernel_weight, head_weight = self._tried[-1]
        return WideModel(
            layer, prior, pairs, self.settings.co_occurrence, self._kernel.part, kernel_weight, None, head_weight
        )

    def state(self):
        """As in `DualTraining`, with the weights of the parts."""
        arrays, about = super().state()
        return arrays | {"weights": np.array([self.network.kernel_weight, self.network.head_weight])}, about

    def restore(self, arrays, about):
        """As in `DualTraining`."""
        super().restore(arrays, about)
        stored = check.array("weights", arrays["weights"], np.float64, (2,), finite=True)
        weights = [check.number("weights", float(weight), 0, 1e6) for weight in stored]
        self.network.kernel_weight, self.network.head_weight = weights

    def run(self, *, progress=True, **options):
        """As in `DualTraining`; then the linear layer over the embeddings and the weights are final."""
        self._progress = progress
        super().run(progress=progress, **options)
        model = self.network
        if self.held_out is None and self.validation is not None and len(self._tried) > 1:
            x, labels = self.validation
            head = self._finished_head() if self._has_head else None
            model.head = None
            found = self._candidates(model, model.kernel, head, x.words, *model.parts(x.dense))
            self._choose([ids for _, ids in found], labels)
            model.head = head
        if model.head_weight == 0:
            model.head = None
        elif model.head is None:
            model.head = self._finished_head()
        return self.history

    # ------------------------------------------------------------ the linear layer over the embeddings

    @property
    def _has_head(self):
        return any(head_weight > 0 for _, head_weight in self._tried)

    @property
    def _has_late_rows(self):
        return self._n_early < len(self._batches)

    def _dual(self, rows, late=None):
        """A `DenseDual` over the embeddings of these rows, the `late` ones join after the first epoch."""
        (h, y), weights = self._kernel.data, self._kernel.weights[rows]
        return DenseDual(
            h[rows], y[rows], **HEAD, seed=self.settings.seed, sample_weight=weights, device=self.device, late=late
        )

    def _trained(self, dual, epochs):
        """The weights (L, d) of a `DenseDual` after these epochs of it."""
        steps = sum(dual.steps(HEAD_EPOCHS)[epochs], [])
        with Progress(len(steps), 0, self._progress, unit="step over embeddings") as bar:
            for step in steps:
                dual.step(*step)
                bar.step()
        return dual.weights

    def _head_without(self, rows):
        """Weights (L, d) of a layer that has not been trained on these rows."""
        if self._has_late_rows:  # they join later, in `_finished_head`
            self._head = self._dual(slice(None), rows)
            return self._trained(self._head, FIRST_EPOCH)
        return self._trained(self._dual(np.delete(np.arange(len(self._kernel.weights)), rows)), slice(None))

    def _finished_head(self):
        """Weights (L, d) of a layer that has been trained on all rows; the late ones join after the first epoch."""
        if not self._has_late_rows:
            return self._trained(self._dual(slice(None)), slice(None))
        if self._head is None:  # in a resumed run the first epoch is not stored, but repeated
            self._head = self._dual(slice(None), self.held_out.rows)
            self._trained(self._head, FIRST_EPOCH)
        return self._trained(self._head, OTHER_EPOCHS)

    # ------------------------------------------------------------ held-out rows

    def _predicted(self, model, x, n_points, rows):
        kernel = self._kernel.without(rows)
        head = self._head_without(rows) if self._has_head else None
        found = self._candidates(model, kernel.part, head, x, self._kernel.listed_points(rows), *kernel.listed(rows))
        return [held_out_rows.HeldOut(scores, ids, n_points[ids], rows) for scores, ids in found]

    def _candidates(self, model, kernel, head, words, h, neighbors, kernels):
        """[(scores, ids) of the best labels with each pair of weights that is tried], NumPy, for some rows."""
        n, step = words.shape[0], max(1, MAX_SCORES // model.n_labels)
        found = [(np.empty((n, self._k), np.float32), np.empty((n, self._k), np.int32)) for _ in self._tried]
        for first in range(0, n, step):
            rows = slice(first, min(first + step, n))
            of_words, of_kernel = model.scores(words[rows]), kernel.scores(neighbors[rows], kernels[rows])
            of_head = None if head is None else product(h[rows], head.T)
            for (kernel_weight, head_weight), out in zip(self._tried, found, strict=True):
                scores = of_words + np.float32(kernel_weight) * of_kernel
                if head_weight > 0:
                    scores += np.float32(head_weight) * of_head
                for whole, part in zip(out, model.top_k_of(scores, self._k), strict=True):
                    whole[rows] = to_numpy(part)
        return found

    def _chosen(self, parts):
        candidates = [held_out_rows.joined(of_weights, self._k) for of_weights in zip(*parts, strict=True)]
        if not candidates:
            return super()._chosen(parts)
        return candidates[self._choose([found.ids for found in candidates], self._labels[candidates[0].rows])]

    def _choose(self, ids, labels):
        """Set the weights with about the best nDCG@5, from the best labels with each pair; returns its position.

        A part whose weight may be 0 without a loss beyond noise is left out.
        """
        k = min(K, labels.shape[1])
        values = [metrics.ndcg_at_k(np.ascontiguousarray(found[:, :k]), labels, k) for found in ids]
        good = [i for i, value in enumerate(values) if (1 + MIN_GAIN) * value >= max(values)]
        best = min(good, key=lambda i: (np.count_nonzero(self._tried[i]), -values[i]))
        self.network.kernel_weight, self.network.head_weight = self._tried[best]
        return best
