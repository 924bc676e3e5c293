"""Fixed fan-in sparse output layer (method 1): the public functions. They check, allocate and call the twin.

Source: E. Schultheis, R. Babbar, "Towards memory-efficient training for extremely large output spaces - learning with
500k labels on a single commodity GPU", ECML-PKDD 2023, arXiv 2306.03725.
"""

import math

import numpy as np

from .core import check, rng
from .core.connections import Connections
from .core.device import backend_of, empty, module_of, resolve_device, zeros
from .core.formulas import LOSSES
from .core.sparse import as_labels, by_label
from .optimizers import SGD, Adam

#: Labels whose indices are sorted at once, to find repeated ones.
CHECKED_AT_ONCE = 1 << 16
#: Of a layer: 8 TiB of indices and values.
MOST_CONNECTIONS = 2**40


class FixedFanIn:
    """The arrays of a sparse output layer in which every label is connected to exactly K of the H inputs.

    ``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l, k]]``; dense equivalent: ``h @ layer.to_dense().T +
    bias``.

    Parameters
    ----------
    n_inputs : int
        H, the width of the layer below.
    indices : (L, K) int32
        The inputs of each label, in [0, H), no input twice for one label. Other integers are converted, which copies
        them.
    values : (L, K) float32
        Their weights.
    bias : (L,) float32

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; K above H; an index out of range or repeated inside a label.

    Notes
    -----
    All three on one device (NumPy or CUDA arrays), C-contiguous; they are held, not copied, and updated in place by
    training. Check and make a layer once, then use it: later calls do not look at the indices again.

    Source: arXiv 2306.03725, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FixedFanIn, fixed_fan_in_forward
    >>> layer = FixedFanIn(4, np.array([[0, 2]], np.int32), np.array([[1, 10]], np.float32), np.zeros(1, np.float32))
    >>> fixed_fan_in_forward(np.array([[1, 2, 3, 4]], np.float32), layer)
    array([[31.]], dtype=float32)
    """

    operations = "fixed_fan_in"  # the file of each wing that computes with such a layer
    row = "label"  # what a row of indices belongs to

    def __init__(self, n_inputs, indices, values, bias):
        self._place(n_inputs, indices, values, bias)
        indices = self._checked_indices(indices)
        values = check.array("values", values, np.float32, indices.shape, writeable=True)
        bias = check.array("bias", bias, np.float32, indices.shape[:1], writeable=True)
        self.arrays = Connections(indices, values, bias)

    def _place(self, n_inputs, indices, values, bias):
        self.n_inputs = check.integer("n_inputs", n_inputs, 1, 2**31 - 1)
        self.device = check.same_device(indices=indices, values=values, bias=bias)

    def _checked_indices(self, indices):
        """An array of legal connections, a row for each `row`."""
        indices, n_inputs = check.integers("indices", indices, ("L", "K")), self.n_inputs
        check.integer("n_labels (the length of indices)", indices.shape[0], 1, 2**31 - 1)
        check.integer("fan-in (the width of indices)", indices.shape[1], 1, n_inputs, f" (n_inputs = {n_inputs})")
        check.below("indices", indices, n_inputs)
        for first in range(0, indices.shape[0], CHECKED_AT_ONCE):
            ordered = module_of(self.device).sort(indices[first : first + CHECKED_AT_ONCE], axis=1)
            if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
                raise ValueError(f"indices must not repeat an input inside one {self.row}")
        return indices

    indices = property(lambda self: self.arrays.indices, doc="(L, K) int32")
    values = property(lambda self: self.arrays.values, doc="(L, K) float32")
    bias = property(lambda self: self.arrays.bias, doc="(L,) float32")
    n_labels = property(lambda self: self.arrays.values.shape[0], doc="L")
    fan_in = property(lambda self: self.arrays.values.shape[1], doc="K")

    @property
    def nbytes(self):
        """Bytes of indices, values and bias."""
        return self.indices.nbytes + self.values.nbytes + self.bias.nbytes

    def __repr__(self):
        return f"FixedFanIn(n_labels={self.n_labels}, n_inputs={self.n_inputs}, fan_in={self.fan_in}, device={self.device!r})"

    @classmethod
    def random(cls, n_labels, n_inputs, fan_in, seed, *, device="cpu"):
        """A layer with random connections, weights uniform in ±1/sqrt(fan_in) and zero bias (our choice; the paper is silent).

        The connections are drawn uniformly without repetition inside a label (Floyd's sampling) from the counter-based
        stream of `seed`: the same on every processor.

        Parameters
        ----------
        n_labels, n_inputs, fan_in : int
            L, H and K; 1 <= K <= H.
        seed : int
            In [0, 2^64).
        device : 'cpu' or 'cuda'

        Returns
        -------
        layer : FixedFanIn

        Raises
        ------
        TypeError, ValueError, RuntimeError
            A size or the seed out of range, or not an integer; an unknown device, or CUDA where there is none.

        Examples
        --------
        >>> from sparsemax_nb import FixedFanIn
        >>> FixedFanIn.random(n_labels=1000, n_inputs=256, fan_in=8, seed=1)
        FixedFanIn(n_labels=1000, n_inputs=256, fan_in=8, device='cpu')
        """
        n_labels = check.integer("n_labels", n_labels, 1, 2**31 - 1)
        n_inputs = check.integer("n_inputs", n_inputs, 1, 2**31 - 1)
        fan_in = check.integer("fan_in", fan_in, 1, n_inputs, f" (n_inputs = {n_inputs})")
        check.elements(MOST_CONNECTIONS, n_labels=n_labels, fan_in=fan_in)
        seed = np.uint64(check.integer("seed", seed, 0, 2**64 - 1))
        device = resolve_device(check.choice("device", device, ("cpu", "cuda")))
        kernels = backend_of(device, "fixed_fan_in")
        indices = empty((n_labels, fan_in), np.int32, device)
        values = empty((n_labels, fan_in), np.float32, device)
        kernels.random_connections(seed, n_inputs, indices)
        kernels.random_values(seed, rng.WEIGHTS, np.float32(1 / math.sqrt(fan_in)), values.reshape(-1))
        layer = cls.__new__(cls)  # legal by construction: no second look at the indices
        layer.n_inputs, layer.device = n_inputs, device
        layer.arrays = Connections(indices, values, zeros(n_labels, np.float32, device))
        return layer

    def _magnitudes(self):
        """What `rewire` judges the connections by, as the bits of float32, shaped like indices."""
        return self.values.view(np.int32)

    def _step_inputs(self, optimizer):
        """What a step needs beside arrays, labels and optimizer."""
        return ()

    def _redraw(self, seed, step, cut, offsets, bits, moments, slots):
        """New connections for the smallest slots; their values and moments become zero."""
        kernels = backend_of(self.device, "rewiring")
        kernels.redraw(seed, step, self.n_inputs, cut, offsets, self.indices, bits, moments, slots)

    def to_dense(self):
        """The dense weight matrix; for small layers and tests.

        Returns
        -------
        w : (L, H) float32
            On the layer's device.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import FixedFanIn
        >>> FixedFanIn(4, np.array([[0, 2]], np.int32), np.array([[1, 10]], np.float32), np.zeros(1, np.float32)).to_dense()
        array([[ 1.,  0., 10.,  0.]], dtype=float32)
        """
        dense = zeros((self.n_labels, self.n_inputs), np.float32, self.device)
        dense[module_of(self.device).arange(self.n_labels)[:, None], self.indices] = self.values
        return dense


def _inputs(h, layer):
    """Check h and the layer against each other; returns h and the wing that computes."""
    if not isinstance(layer, FixedFanIn):
        raise TypeError(f"layer must be a FixedFanIn, got {type(layer).__name__}")
    device = check.same_device(h=h, layer=layer.values)
    h = check.array("h", h, np.float32, ("B", layer.n_inputs))
    check.finite("h", h)
    return h, backend_of(device, layer.operations)


def fixed_fan_in_forward(h, layer, *, out=None):
    """Scores of all labels: ``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l, k]]``.

    Dense equivalent: ``h @ layer.to_dense().T + layer.bias``.

    Parameters
    ----------
    h : (B, H) float32
        Inputs, finite; B may be 0.
    layer : FixedFanIn
        On the device of h.
    out : (B, L) float32, optional
        Overwritten and returned; allocated where not given.

    Returns
    -------
    scores : (B, L) float32

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; h not finite.

    Notes
    -----
    Source: arXiv 2306.03725, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FixedFanIn, fixed_fan_in_forward
    >>> layer = FixedFanIn.random(n_labels=5, n_inputs=16, fan_in=4, seed=1)
    >>> h = np.ones((2, 16), np.float32)
    >>> np.allclose(fixed_fan_in_forward(h, layer), h @ layer.to_dense().T + layer.bias, atol=1e-6)
    True
    """
    h, kernels = _inputs(h, layer)
    check.elements(rows=h.shape[0], n_labels=layer.n_labels)
    inputs = {"h": h, "layer.indices": layer.indices, "layer.values": layer.values, "layer.bias": layer.bias}
    scores = check.output("out", out, np.float32, (h.shape[0], layer.n_labels), layer.device, **inputs)
    kernels.forward(h, layer.arrays, scores)
    return scores


def fixed_fan_in_backward(h, layer, dscores):
    """Gradients of ``sum(dscores * scores)`` by the inputs, the weights and the bias.

    ``dh[b, i] = sum over (l, k) with indices[l, k] = i of dscores[b, l] values[l, k]``;
    ``dvalues[l, k] = sum_b dscores[b, l] h[b, indices[l, k]]``; ``dbias[l] = sum_b dscores[b, l]``.
    Dense equivalent: ``dh = dscores @ layer.to_dense()``.

    Parameters
    ----------
    h : (B, H) float32
        The inputs of the forward pass.
    layer : FixedFanIn
    dscores : (B, L) float32
        Gradient of the loss by the scores. Zeros are skipped.

    Returns
    -------
    dh : (B, H) float32
    dvalues : (L, K) float32
    dbias : (L,) float32

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; h or dscores not finite.

    Notes
    -----
    On CUDA dh is summed with atomics: the order of its float sums varies. Source: arXiv 2306.03725, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FixedFanIn, fixed_fan_in_backward
    >>> layer = FixedFanIn.random(n_labels=5, n_inputs=16, fan_in=4, seed=1)
    >>> dh, dvalues, dbias = fixed_fan_in_backward(np.ones((2, 16), np.float32), layer, np.ones((2, 5), np.float32))
    >>> dh.shape, dvalues.shape, dbias
    ((2, 16), (5, 4), array([2., 2., 2., 2., 2.], dtype=float32))
    """
    h, kernels = _inputs(h, layer)
    check.same_device(h=h, dscores=dscores)
    dscores = check.array("dscores", dscores, np.float32, (h.shape[0], layer.n_labels))
    check.finite("dscores", dscores)
    dh = empty(h.shape, np.float32, layer.device)
    dvalues = empty(layer.values.shape, np.float32, layer.device)
    dbias = empty(layer.bias.shape, np.float32, layer.device)
    kernels.backward(h, layer.arrays, dscores, dh, dvalues, dbias)
    return dh, dvalues, dbias


def fixed_fan_in_top_k(h, layer, k):
    """The k best labels of each row, without a (B, L) array: for large k at most 64 MiB of the scores exist at a time, or one row.

    Dense equivalent: ``np.argsort(-scores, axis=1, kind="stable")[:, :k]``.

    Parameters
    ----------
    h : (B, H) float32
    layer : FixedFanIn
    k : int
        1 <= k <= L.

    Returns
    -------
    scores : (B, k) float32
        Descending.
    ids : (B, k) int32
        Labels; equal scores are ordered by label.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; k out of range; h not finite; weights that give NaN scores.

    Notes
    -----
    Source: the layer's, arXiv 2306.03725; the search that keeps no scores is ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FixedFanIn, fixed_fan_in_top_k
    >>> layer = FixedFanIn(2, np.array([[0], [0], [1]], np.int32), np.array([[1], [3], [2]], np.float32), np.zeros(3, np.float32))
    >>> scores, ids = fixed_fan_in_top_k(np.ones((1, 2), np.float32), layer, k=2)
    >>> scores, ids
    (array([[3., 2.]], dtype=float32), array([[1, 2]], dtype=int32))
    """
    h, kernels = _inputs(h, layer)
    k = check.integer("k", k, 1, layer.n_labels, f" (n_labels = {layer.n_labels})")
    check.elements(rows=h.shape[0], k=k)
    top_scores = empty((h.shape[0], k), np.float32, layer.device)
    top_ids = empty((h.shape[0], k), np.int32, layer.device)
    kernels.top_k(h, layer.arrays, top_scores, top_ids)
    if h.shape[0] and not bool(module_of(layer.device).isfinite(top_scores).all()):
        raise ValueError("layer gives NaN scores: its values or bias hold NaN or infinity")
    return top_scores, top_ids


def fixed_fan_in_step(h, layer, labels, loss, optimizer):
    """Forward, loss, backward and update in one pass over the labels; no (B, L) array exists.

    ``loss = 1/B sum_b sum_l f(y[b, l] scores[b, l])``, y = +1 for positive labels, else -1; f(z) = max(0, 1 - z)^2
    ("squared-hinge") or log(1 + exp(-z)) ("bce"). Labels whose gradient is zero in all rows cost their scores and, with
    Adam, the decay of their moments.

    Parameters
    ----------
    h : (B, H) float32
    layer : FixedFanIn
        values and bias are updated in place.
    labels : SciPy CSR matrix (B, L) or Labels(indptr, indices) of integers
        The positive labels of each row: of a matrix the entries that are not zero, of which those that are stored twice
        are summed. `Labels` may live on CUDA.
    loss : 'squared-hinge' or 'bce'
    optimizer : Adam or SGD
        Its moments of values and bias are updated in place; each counts its own steps.

    Returns
    -------
    loss : float
        From before the update.
    dh : (B, H) float32
        Gradient by the inputs, from the values before the update.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; labels out of range, repeated or NaN; h not finite; values, bias or
        moments that are read-only. Nothing has changed.
    FloatingPointError
        The loss is NaN or infinite: the layer's values or bias were not finite, or overflowed. The step has been taken
        by then, and has been counted: go back to weights that are finite.

    Notes
    -----
    On CUDA dh is summed with atomics: the order of its float sums varies. Source: arXiv 2306.03725, sections 3 and 4.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from sparsemax_nb import Adam, FixedFanIn, fixed_fan_in_step
    >>> layer, adam = FixedFanIn.random(n_labels=5, n_inputs=16, fan_in=4, seed=1), Adam(learning_rate=0.1)
    >>> h, labels = np.ones((2, 16), np.float32), scipy.sparse.csr_matrix([[0, 1, 0, 0, 0], [0, 1, 0, 0, 1]])
    >>> losses = [fixed_fan_in_step(h, layer, labels, "squared-hinge", adam)[0] for _ in range(50)]
    >>> losses[0] > 3 * losses[-1]
    True
    """
    h, kernels = _inputs(h, layer)
    check.choice("loss", loss, tuple(LOSSES))
    if not isinstance(optimizer, (Adam, SGD)):
        raise TypeError(f"optimizer must be Adam or SGD, got {type(optimizer).__name__}")
    labels = as_labels(labels, h.shape[0], layer.device, layer.n_labels)
    label_rows = by_label(labels, layer.n_labels)
    optimizer.check_writable(**{"layer.values": layer.values, "layer.bias": layer.bias})
    dh = empty(h.shape, np.float32, layer.device)
    label_loss = empty(layer.n_labels, np.float32, layer.device)
    kind, rates, values_moments = optimizer.begin_step(layer.values)
    _, _, bias_moments = optimizer.begin_step(layer.bias)
    inputs = h, layer.arrays, label_rows, LOSSES[loss], kind, rates, values_moments, bias_moments
    kernels.step(*inputs, *layer._step_inputs(optimizer), dh, label_loss)
    optimizer.end_step(layer.values, layer.bias)
    value = float(label_loss.sum(dtype=np.float64))
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value}: the layer's values or bias are not finite; lower the learning rate"
        )
    return value, dh
