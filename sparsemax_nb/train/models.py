"""The models that dual coordinate descent trains, with the interface that `Classifier` needs to predict."""

import copy

import numpy as np

from ..co_occurrence import rerank_checked
from ..core.device import asarray, backend_of, empty, module_of, product
from ..feature_choice import rows_of
from ..neighbor_kernel import kernel_values, nearest_checked
from .outputs import top_k_of_scores

#: Number of a row's best labels that are reranked by co-occurrence.
CANDIDATES = 20
#: Added to a label's bias per unit of the logarithm of its number of points.
FREQUENCY_TIE_BREAK = 1e-3
#: Rows per call of `top_k` in a prediction.
ROWS_PER_PREDICTION = 4096
#: Most scores that exist at a time where all scores of a row are stored: 64 MiB.
MAX_SCORES = 1 << 24


class Model:
    """Base class: `top_k` with a prior and reranking.

    A subclass has `device`, `n_labels`, `parameters` (all arrays by name), `nbytes`, and ``_best(x, k)``, the k best
    labels of rows without reranking.

    Parameters
    ----------
    prior : (L,) float32 or None
        Added to the scores in predictions; training does not use it.
    pairs : CoOccurrence or None
        Reranks the best 20 labels in predictions; training does not use it.
    weight : float
        Weight of the co-occurrence in `rerank`.
    """

    def __init__(self, prior=None, pairs=None, weight=0.0):
        self.prior = prior
        self.pairs = pairs
        self.weight = weight

    @property
    def output_nbytes(self):
        """Bytes of all arrays."""
        return self.nbytes

    @property
    def _nbytes_of_base(self):
        return sum(part.nbytes for part in (self.prior, self.pairs) if part is not None)

    def with_offsets(self, offsets):
        """The model with `offsets` (L,), NumPy, added to the scores in predictions."""
        new = copy.copy(self)
        new.prior = asarray(offsets, self.device) if self.prior is None else self.prior + asarray(offsets, self.device)
        return new

    def plain(self):
        """The model without reranking."""
        new = copy.copy(self)
        new.pairs = None
        return new

    def top_k(self, x, k):
        """The k best labels of each row of features: scores, ids (B, k)."""
        return self.reranked(lambda n: self._best(x, n), k)

    def reranked(self, best, k):
        """The k best labels after reranking; ``best(n)`` are the scores and ids of the n best before it."""
        n = min(CANDIDATES, self.n_labels)
        if self.pairs is None or k == 1:  # reranking never changes the best label
            return best(k)
        scores, ids = best(max(k, n))
        candidates = (module_of(self.device).ascontiguousarray(a[:, :n]) for a in (scores, ids))
        candidates = rerank_checked(*candidates, self.pairs, min(k, n), self.weight)
        if k <= n:
            return candidates
        scores[:, :n], ids[:, :n] = candidates
        return scores, ids

    def top_k_of(self, scores, k):
        """The k best labels of rows with these scores, (B, L): they come without the prior, and are overwritten."""
        if self.prior is not None:
            scores += self.prior
        return self.reranked(lambda n: top_k_of_scores(scores, n), k)

    def _best_of_scores(self, n_rows, scores_of, k):
        """The k best of ``scores_of(slice)``, (B, L), of which at most 64 MiB exist at a time; adds the prior."""
        scores, ids = empty((n_rows, k), np.float32, self.device), empty((n_rows, k), np.int32, self.device)
        step = max(1, MAX_SCORES // self.n_labels)
        for first in range(0, n_rows, step):
            rows = slice(first, min(first + step, n_rows))
            values = scores_of(rows)
            if self.prior is not None:
                values += self.prior
            scores[rows], ids[rows] = top_k_of_scores(values, k)
        return scores, ids


class LinearModel(Model):
    """A `SparseLinear` layer over sparse features; parameters beyond those of `Model`: layer."""

    def __init__(self, layer, prior=None, pairs=None, weight=0.0):
        super().__init__(prior, pairs, weight)
        self.layer = layer

    device = property(lambda self: self.layer.device)
    n_labels = property(lambda self: self.layer.n_labels)

    @property
    def layer_parameters(self):
        """The arrays of the linear layer by name."""
        return {f"linear.{name}": array for name, array in self.layer.arrays._asdict().items()}

    parameters = layer_parameters

    @property
    def nbytes(self):
        return self.layer.nbytes + self._nbytes_of_base

    def scores(self, x):
        """(B, L) scores of a SciPy CSR matrix, without the prior."""
        scores = empty((x.shape[0], self.n_labels), np.float32, self.device)
        backend_of(self.device, "linear").forward(rows_of(x, self.device), self.layer.arrays, scores)
        return scores

    def _best(self, x, k):
        arrays = self.layer.arrays
        if self.prior is not None:
            arrays = arrays._replace(bias=arrays.bias + self.prior)
        scores, ids = (empty((x.shape[0], k), dtype, self.device) for dtype in (np.float32, np.int32))
        backend_of(self.device, "linear").top_k(rows_of(x, self.device), arrays, scores, ids)
        return scores, ids


class KernelModel(Model):
    """A `NeighborKernel` over embeddings, of which the mean is subtracted first; without prior and reranking."""

    def __init__(self, layer, mean):
        super().__init__()
        self.layer = layer
        self.mean = mean

    device = property(lambda self: self.layer.device)
    n_labels = property(lambda self: self.layer.n_labels)

    @property
    def parameters(self):
        layer = self.layer
        arrays = layer.arrays._asdict() | {"points": layer.points, "bias": layer.bias, "mean": self.mean}
        return {f"kernel.{name}": array for name, array in arrays.items()}

    @property
    def nbytes(self):
        return self.layer.nbytes + self.mean.nbytes + self._nbytes_of_base

    def neighbors(self, h):
        """The nearest points (B, M) int32 of embeddings (B, d), and the kernels with them, (B, M) float32."""
        h = asarray(normalized(h, self.mean), self.device)
        similarities, ids = nearest_checked(h, self.layer.points, min(self.layer.n_neighbors, self.layer.n_points))
        return ids, kernel_values(similarities, self.layer.power)

    def scores(self, neighbors, kernels):
        """(B, L) scores of rows with these neighbors, without the prior."""
        scores = empty((len(neighbors), self.n_labels), np.float32, self.device)
        layer = self.layer
        backend_of(self.device, "neighbor_kernel").forward(neighbors, kernels, layer.arrays, layer.bias, scores)
        return scores

    def best(self, neighbors, kernels, k):
        """The k best labels of rows with these neighbors, without reranking."""
        return self._best_of_scores(len(neighbors), lambda rows: self.scores(neighbors[rows], kernels[rows]), k)

    def _best(self, x, k):
        return self.best(*self.neighbors(x), k)


class WideModel(LinearModel):
    """``linear scores of words + kernel_weight * kernel scores + head_weight * h @ head.T``, for `WideFeatures`.

    Parameters beyond those of `LinearModel`: the `KernelModel` of the embeddings, its weight, a linear layer over the
    embeddings h without their mean and of length 1, (L, d) float32 or None, and its weight.
    """

    def __init__(self, layer, prior, pairs, weight, kernel, kernel_weight, head=None, head_weight=0.0):
        super().__init__(layer, prior, pairs, weight)
        self.kernel = kernel
        self.kernel_weight = kernel_weight
        self.head = head
        self.head_weight = head_weight

    @property
    def parameters(self):
        head = {} if self.head is None else {"head.weights": self.head}
        return self.layer_parameters | self.kernel.parameters | head

    @property
    def nbytes(self):
        return super().nbytes + self.kernel.nbytes + (0 if self.head is None else self.head.nbytes)

    def _best(self, x, k):
        if self.kernel_weight == 0 and self.head is None:
            return super()._best(x.words, k)
        parts = self.parts(x.dense)
        return self._best_of_scores(
            x.shape[0], lambda rows: self.scores(x.words[rows]) + self.added(*(part[rows] for part in parts)), k
        )

    def parts(self, dense):
        """What `added` needs of embeddings (B, d): h, and the neighbors and kernels."""
        return asarray(normalized(dense, self.kernel.mean), self.device), *self.kernel.neighbors(dense)

    def added(self, h, neighbors, kernels):
        """(B, L), what the embeddings add to the scores of the words."""
        scores = self.kernel.scores(neighbors, kernels)
        scores *= np.float32(self.kernel_weight)
        if self.head is not None:
            scores += np.float32(self.head_weight) * product(h, self.head.T)
        return scores


def normalized(h, mean):
    """``(h - mean) / |h - mean|`` of each row, (B, d) float32; rows of zeros, which have no embedding, stay zero."""
    has_embedding = h.any(1)[:, None]
    centered = np.where(has_embedding, h - mean.astype(np.float64), 0.0)
    lengths = np.linalg.norm(centered, axis=1, keepdims=True)
    return (centered / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def frequency_tie_break(n_points, slack):
    """A small bias per label, (L,) float32: where the features say nothing, frequent labels rank first."""
    # At most half the slack: above the threshold, every label would be a candidate in every row.
    return np.minimum(FREQUENCY_TIE_BREAK * np.log(np.maximum(n_points, 1)), slack / 2).astype(np.float32)


def frequency_prior(frequency, n_points, device="cpu"):
    """``frequency * log(n_points)``, (L,) float32; None if `frequency` is 0."""
    if frequency == 0:
        return None
    return asarray((frequency * np.log(np.maximum(n_points, 1))).astype(np.float32), device)
