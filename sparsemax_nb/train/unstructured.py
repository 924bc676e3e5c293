"""Unstructured sparse output layer: as many connections as a fixed fan-in layer, anywhere. A rival, not a method.

Products are SciPy's on the CPU and cuSPARSE's (through CuPy) on CUDA; only the gradient of the weights, a sampled dense
product, is a kernel of ours. Scores and their gradient are whole (B, L) arrays.
"""

import math

import numpy as np
import scipy.sparse

from ..core import check, rng, sparse
from ..core.device import SIMULATOR, asarray, backend_of, csr_matrix, empty, to_numpy, zeros
from .layers import RankedLast, multilabel_loss, top_k_of_scores


class UnstructuredOutput(RankedLast):
    """``scores = x W.T + bias`` with W (L, H) sparse: `fan_in` L connections, placed uniformly over all of W.

    Drawn once and kept as CSR: indptr (L + 1,) int32, indices, values (n,). Rewired by the same rule as a fixed fan-in
    layer, but dropped connections come back anywhere in W, as in SET (Mocanu et al. 2018).
    """

    name = "output"

    def __init__(self, n_inputs, n_labels, fan_in, seed, device):
        n = n_labels * fan_in
        check.integer("connections", n, 1, 2**31 - 1)
        self._shape, self._device = (n_labels, n_inputs), device
        self._indptr = zeros(n_labels + 1, np.int32, device)
        self._indices, self._rows = (empty(n, np.int32, device) for _ in range(2))
        self._place(np.sort(self._draw(np.empty(0, np.int64), n, seed, rng.CONNECTIONS, 0)))
        self.values = zeros(n, np.float32, device)
        self.bias = zeros(n_labels, np.float32, device)

    @property
    def parameters(self):
        names = "output.indptr", "output.indices", "output.values", "output.bias"
        return dict(zip(names, (self._indptr, self._indices, self.values, self.bias), strict=True))

    def check_connections(self):
        """ValueError where parameters that were overwritten hold connections that can not be: kernels trust them."""
        matrix = scipy.sparse.csr_matrix(tuple(map(to_numpy, (self.values, self._indices, self._indptr))), self._shape)
        sparse.check_structure(matrix)
        if not matrix.has_canonical_format:
            raise ValueError("output.indices must ascend inside each label")
        self._rows[:] = sparse.row_of_each_entry(self._indptr, self._indices.size)

    def _draw(self, taken, n, seed, stream, step):
        """`n` different places (row H + column, int64) of W that are not among the sorted `taken`, in order of drawing."""
        new, position = np.empty(0, np.int64), 0
        while len(new) < n:
            wanted = n - len(new)
            counter = np.arange(position, position + 2 * wanted, dtype=np.uint64)
            with np.errstate(over="ignore"):
                words = rng.random_word(np.uint64(seed), stream, np.uint64(step), counter)
                row, column = (
                    rng.below(w, np.uint64(s)) for w, s in zip((words[::2], words[1::2]), self._shape, strict=True)
                )
            places = np.append(new, row.astype(np.int64) * self._shape[1] + column.astype(np.int64))
            _, first = np.unique(places, return_index=True)
            places = places[np.sort(first)]
            near = np.minimum(np.searchsorted(taken, places), max(len(taken) - 1, 0))
            new = places[taken[near] != places] if len(taken) else places
            position += 2 * wanted
        return new

    def _place(self, places):
        """Set the connections to `places`, ascending."""
        row = places // self._shape[1]
        self._rows[:] = asarray(row, self._device, np.int32)
        self._indices[:] = asarray(places % self._shape[1], self._device, np.int32)
        counts = np.bincount(row, minlength=self._shape[0])
        self._indptr[1:] = asarray(np.cumsum(counts), self._device, np.int32)

    def _matrix(self):
        return csr_matrix(self.values, self._indices, self._indptr, self._shape)

    def _product(self, matrix, x):
        """``(matrix @ x.T).T``, C-contiguous on the device of x."""
        x = to_numpy(x) if SIMULATOR else x
        return asarray((matrix @ x.T).T, self._device)

    def _scores(self, x):
        scores = self._product(self._matrix(), x)
        scores += self.bias
        return scores

    def step(self, x, labels, loss, optimizer):
        """Loss of a batch and gradient by x; updates values and bias."""
        value, dscores = multilabel_loss(self._scores(x), labels, loss)
        dx = self._product(self._matrix().T, dscores)
        xt, dscores_t = (asarray(a.T, self._device) for a in (x, dscores))
        dvalues = empty(self.values.shape, np.float32, self._device)
        wing = backend_of(self._device, "unstructured")
        wing.gradient_of_values(xt, dscores_t, self._rows, self._indices, dvalues)
        optimizer.step(self.values, dvalues)
        optimizer.step(self.bias, dscores.sum(axis=0))
        return value, dx

    def top_k(self, x, k):
        """The k best labels of each row: scores (B, k), ids (B, k) int32."""
        return top_k_of_scores(self._scores(x), k)

    def rewire(self, fraction, seed, step, optimizer):
        """Replace the share `fraction` of the connections, those with the smallest weights; returns what it came to.

        New places are drawn from all that W has and had no connection; new weights and their moments are zero.
        """
        values, rows, columns = map(to_numpy, (self.values, self._rows, self._indices))
        n, free = math.floor(fraction * values.size + 0.5), math.prod(self._shape) - values.size
        if n > free:
            raise ValueError(f"fraction {fraction} asks for {n} redraws, but only {free} places of the layer are free")
        places = rows.astype(np.int64) * self._shape[1] + columns
        dropped = np.argsort(np.abs(values), kind="stable")[:n]
        places[dropped] = self._draw(places, n, seed, rng.REWIRING, step)
        order = np.argsort(places)
        self._place(places[order])
        for array in (self.values, *optimizer.state_of(self.values).moments):
            if array.size:
                host = to_numpy(array).copy()
                host[dropped] = 0
                array[:] = asarray(host[order], self._device)
        return n / values.size
