"""Fixed fan-in sparse output layer (method 1): the public functions. They check, allocate and call the backend.

Source: E. Schultheis, R. Babbar, "Towards memory-efficient training for extremely large output spaces - learning with
500k labels on a single commodity GPU", ECML-PKDD 2023, arXiv 2306.03725.
"""

import math
from typing import Literal, Self

import numpy as np

from .core import check, rng
from .core.annotations import Array, Device, SparseMatrix
from .core.connections import Connections
from .core.device import asarray, backend_of, empty, module_of, resolve_device, zeros
from .core.formulas import LOSSES, SOFTMAX, StepLoss
from .core.sparse import Labels, as_labels, by_label
from .optimizers import SGD, Adam

#: Rows of `indices` that are sorted together to find repeated inputs: limits the memory of the sorted copy.
ROWS_PER_CHECK = 1 << 16
#: Losses of `fixed_fan_in_step`.
STEP_LOSSES = *LOSSES, "softmax"
#: Subtracted from the scores of a row without labels: exp of the result, its share of the gradient, is 0.
FAR = np.float32(1e30)
#: Largest L * K of `random`: 8 TiB of indices and values. Larger sizes are taken for a mistake.
MAX_CONNECTIONS = 2**40


class FixedFanIn:
    """The arrays of a sparse output layer in which every label is connected to exactly K of the d inputs.

    ``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l, k]]``; dense equivalent: ``h @ layer.to_dense().T +
    bias``.

    Parameters
    ----------
    n_inputs : int
        d, the width of h.
    indices : (L, K) int32
        The inputs of each label, in [0, d), without repetition within a label. Other integer dtypes are converted,
        which makes a copy.
    values : (L, K) float32
        The weights of these inputs.
    bias : (L,) float32

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; K above d; an index out of range or repeated within a label.

    Notes
    -----
    The three arrays are C-contiguous and on one device (NumPy or CUDA). The layer keeps references, not copies, and
    training updates them in place. The constructor checks the indices; later calls do not check them again.

    Source: arXiv 2306.03725, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FixedFanIn, fixed_fan_in_forward
    >>> layer = FixedFanIn(4, np.array([[0, 2]], np.int32), np.array([[1, 10]], np.float32), np.zeros(1, np.float32))
    >>> fixed_fan_in_forward(np.array([[1, 2, 3, 4]], np.float32), layer)
    array([[31.]], dtype=float32)
    """

    _backend_module = "fixed_fan_in"  # its file in cpu/ and cuda/
    _row_name = "label"  # what one row of `indices` belongs to; for error messages

    def __init__(self, n_inputs: int, indices: Array, values: Array, bias: Array) -> None:
        self._set_device(n_inputs, indices, values, bias)
        indices = self._checked_indices(indices)
        values = check.array("values", values, np.float32, indices.shape, writeable=True)
        bias = check.array("bias", bias, np.float32, indices.shape[:1], writeable=True)
        self.arrays = Connections(indices, values, bias)

    def _set_device(self, n_inputs, indices, values, bias):
        self.n_inputs = check.integer("n_inputs", n_inputs, 1, 2**31 - 1)
        self.device = check.same_device(indices=indices, values=values, bias=bias)

    def _checked_indices(self, indices):
        """`indices` as int32: a valid fan-in, inputs in range, none repeated within a row."""
        indices, n_inputs = check.integers("indices", indices, ("L", "K")), self.n_inputs
        check.integer("n_labels (the length of indices)", indices.shape[0], 1, 2**31 - 1)
        check.integer("fan-in (the width of indices)", indices.shape[1], 1, n_inputs, f" (n_inputs = {n_inputs})")
        check.in_range("indices", indices, n_inputs)
        for first in range(0, indices.shape[0], ROWS_PER_CHECK):
            ordered = module_of(self.device).sort(indices[first : first + ROWS_PER_CHECK], axis=1)
            if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
                raise ValueError(f"indices must not repeat an input within one {self._row_name}")
        return indices

    indices = property(lambda self: self.arrays.indices, doc="(L, K) int32")
    values = property(lambda self: self.arrays.values, doc="(L, K) float32")
    bias = property(lambda self: self.arrays.bias, doc="(L,) float32")
    n_labels = property(lambda self: self.arrays.values.shape[0], doc="L")
    fan_in = property(lambda self: self.arrays.values.shape[1], doc="K")

    @property
    def nbytes(self) -> int:
        """Bytes of indices, values and bias."""
        return self.indices.nbytes + self.values.nbytes + self.bias.nbytes

    def __repr__(self):
        sizes = f"n_labels={self.n_labels}, n_inputs={self.n_inputs}, fan_in={self.fan_in}"
        return f"FixedFanIn({sizes}, device={self.device!r})"

    @classmethod
    def random(cls, n_labels: int, n_inputs: int, fan_in: int, seed: int, *, device: Device = "cpu") -> Self:
        """A layer with random connections, weights uniform in ±1/sqrt(fan_in) and zero bias.

        The connections of a label are drawn uniformly without repetition (Floyd's sampling) from the counter-based
        stream of `seed`, so they are the same on every device. The initial weights are our choice; the paper does not
        specify them.

        Parameters
        ----------
        n_labels, n_inputs, fan_in : int
            L, d and K; 1 <= K <= d.
        seed : int
            In [0, 2^64).
        device : 'cpu' or 'cuda'

        Returns
        -------
        layer : FixedFanIn

        Raises
        ------
        TypeError, ValueError, RuntimeError
            A size or the seed out of range, or not an integer; an unknown device; CUDA not available.

        Examples
        --------
        >>> from sparsemax_nb import FixedFanIn
        >>> FixedFanIn.random(n_labels=1000, n_inputs=256, fan_in=8, seed=1)
        FixedFanIn(n_labels=1000, n_inputs=256, fan_in=8, device='cpu')
        """
        n_labels = check.integer("n_labels", n_labels, 1, 2**31 - 1)
        n_inputs = check.integer("n_inputs", n_inputs, 1, 2**31 - 1)
        fan_in = check.integer("fan_in", fan_in, 1, n_inputs, f" (n_inputs = {n_inputs})")
        check.array_size(MAX_CONNECTIONS, n_labels=n_labels, fan_in=fan_in)
        key = np.uint64(check.integer("seed", seed, 0, 2**64 - 1))
        device = resolve_device(check.choice("device", device, ("cpu", "cuda")))
        kernels = backend_of(device, "initialization")
        indices = empty((n_labels, fan_in), np.int32, device)
        values = empty((n_labels, fan_in), np.float32, device)
        kernels.random_connections(key, n_inputs, indices)
        kernels.random_values(key, rng.WEIGHTS, np.float32(1 / math.sqrt(fan_in)), values.reshape(-1))
        layer = cls.__new__(cls)  # the indices are valid by construction: skip the checks of the constructor
        layer.n_inputs, layer.device = n_inputs, device
        layer.arrays = Connections(indices, values, zeros(n_labels, np.float32, device))
        return layer

    def _magnitudes(self):
        """What `rewire` ranks the connections by: the bits of a float32 for each index, shaped like `indices`.

        Here a view of `values`: writing zero bits to a slot sets its value to zero.
        """
        return self.values.view(np.int32)

    def _step_inputs(self, optimizer):
        """Arguments of the step kernel that only this kind of layer has."""
        return ()

    def _connections_of(self, labels):
        """The `Connections` of some labels, (n,) int32: copies, with float32 values."""
        return Connections(self.indices[labels], self.values[labels], self.bias[labels])

    def _redraw(self, seed, step, cut, offsets, bits, moments, slots):
        """Draw new connections for the slots below `cut`; their values and moments become zero."""
        kernels = backend_of(self.device, "rewiring")
        kernels.redraw(seed, step, self.n_inputs, cut, offsets, self.indices, bits, moments, slots)

    def to_dense(self) -> Array:
        """The dense weight matrix; for small layers and tests.

        Returns
        -------
        w : (L, d) float32
            On the layer's device.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import FixedFanIn
        >>> indices, values = np.array([[0, 2]], np.int32), np.array([[1, 10]], np.float32)
        >>> FixedFanIn(4, indices, values, np.zeros(1, np.float32)).to_dense()
        array([[ 1.,  0., 10.,  0.]], dtype=float32)
        """
        dense = zeros((self.n_labels, self.n_inputs), np.float32, self.device)
        dense[module_of(self.device).arange(self.n_labels)[:, None], self.indices] = self.values
        return dense


def _checked_h_and_backend(h, layer):
    """Check `layer` and `h` against it; returns h and the backend module that computes."""
    if not isinstance(layer, FixedFanIn):
        raise TypeError(f"layer must be a FixedFanIn, got {type(layer).__name__}")
    device = check.same_device(h=h, layer=layer.values)
    h = check.array("h", h, np.float32, ("B", layer.n_inputs), finite=True)
    return h, backend_of(device, layer._backend_module)


def fixed_fan_in_forward(h: Array, layer: FixedFanIn, *, out: Array | None = None) -> Array:
    """Scores of all labels: ``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l, k]]``.

    Dense equivalent: ``h @ layer.to_dense().T + layer.bias``.

    Parameters
    ----------
    h : (B, d) float32
        Finite; B may be 0.
    layer : FixedFanIn
        On the device of h.
    out : (B, L) float32, optional
        Overwritten and returned. Allocated if not given.

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
    h, kernels = _checked_h_and_backend(h, layer)
    check.array_size(rows=h.shape[0], n_labels=layer.n_labels)
    inputs = {"h": h, "layer.indices": layer.indices, "layer.values": layer.values, "layer.bias": layer.bias}
    scores = check.output("out", out, np.float32, (h.shape[0], layer.n_labels), layer.device, **inputs)
    kernels.forward(h, layer.arrays, scores)
    return scores


def fixed_fan_in_backward(h: Array, layer: FixedFanIn, dscores: Array) -> tuple[Array, Array, Array]:
    """Gradients of ``sum(dscores * scores)`` with respect to h, the weights and the bias.

    ``dh[b, i] = sum over (l, k) with indices[l, k] = i of dscores[b, l] values[l, k]``;
    ``dvalues[l, k] = sum_b dscores[b, l] h[b, indices[l, k]]``; ``dbias[l] = sum_b dscores[b, l]``.
    Dense equivalent: ``dh = dscores @ layer.to_dense()``.

    Parameters
    ----------
    h : (B, d) float32
        The input of the forward pass.
    layer : FixedFanIn
    dscores : (B, L) float32
        Gradient of the loss with respect to the scores. Zeros are skipped.

    Returns
    -------
    dh : (B, d) float32
    dvalues : (L, K) float32
    dbias : (L,) float32

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; h or dscores not finite.

    Notes
    -----
    On CUDA, dh is summed with atomics: the order of its float sums varies. Source: arXiv 2306.03725, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FixedFanIn, fixed_fan_in_backward
    >>> layer = FixedFanIn.random(n_labels=5, n_inputs=16, fan_in=4, seed=1)
    >>> dh, dvalues, dbias = fixed_fan_in_backward(np.ones((2, 16), np.float32), layer, np.ones((2, 5), np.float32))
    >>> dh.shape, dvalues.shape, dbias
    ((2, 16), (5, 4), array([2., 2., 2., 2., 2.], dtype=float32))
    """
    h, kernels = _checked_h_and_backend(h, layer)
    check.same_device(h=h, dscores=dscores)
    dscores = check.array("dscores", dscores, np.float32, (h.shape[0], layer.n_labels), finite=True)
    dh = empty(h.shape, np.float32, layer.device)
    dvalues = empty(layer.values.shape, np.float32, layer.device)
    dbias = empty(layer.bias.shape, np.float32, layer.device)
    kernels.backward(h, layer.arrays, dscores, dh, dvalues, dbias)
    return dh, dvalues, dbias


def fixed_fan_in_top_k(h: Array, layer: FixedFanIn, k: int) -> tuple[Array, Array]:
    """The k best labels of each row.

    No (B, L) array exists; for large k, the scores are computed in blocks of at most 64 MiB, or of one row. Dense
    equivalent: ``np.argsort(-scores, axis=1, kind="stable")[:, :k]``.

    Parameters
    ----------
    h : (B, d) float32
    layer : FixedFanIn
    k : int
        1 <= k <= L.

    Returns
    -------
    scores : (B, k) float32
        Descending.
    ids : (B, k) int32
        Labels; those with equal scores ascend.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; k out of range; h not finite; scores that are not finite.

    Notes
    -----
    Source: arXiv 2306.03725 (the layer); the search without stored scores is ours.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FixedFanIn, fixed_fan_in_top_k
    >>> indices, values = np.array([[0], [0], [1]], np.int32), np.array([[1], [3], [2]], np.float32)
    >>> layer = FixedFanIn(2, indices, values, np.zeros(3, np.float32))
    >>> scores, ids = fixed_fan_in_top_k(np.ones((1, 2), np.float32), layer, k=2)
    >>> scores, ids
    (array([[3., 2.]], dtype=float32), array([[1, 2]], dtype=int32))
    """
    h, kernels = _checked_h_and_backend(h, layer)
    k = check.integer("k", k, 1, layer.n_labels, f" (n_labels = {layer.n_labels})")
    check.array_size(rows=h.shape[0], k=k)
    top_scores = empty((h.shape[0], k), np.float32, layer.device)
    top_ids = empty((h.shape[0], k), np.int32, layer.device)
    kernels.top_k(h, layer.arrays, top_scores, top_ids)
    if h.shape[0] and not bool(module_of(layer.device).isfinite(top_scores).all()):
        raise ValueError("the scores are not finite: values or bias contain NaN or infinity, or the scores overflow")
    return top_scores, top_ids


def _softmax_loss(h, layer, labels, kernels):
    """The `StepLoss` of a softmax, from the sums of each row, and the constant that its formula leaves out.

    FloatingPointError if the scores of a row are not finite.
    """
    xp, n_rows = module_of(layer.device), h.shape[0]
    largest, total = (empty(n_rows, np.float32, layer.device) for _ in range(2))
    kernels.softmax_sums(h, layer.arrays, largest, total)
    counts = labels.indptr[1:] - labels.indptr[:-1]
    n = xp.maximum(counts, 1).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = xp.log(total / n)
    if not bool(xp.isfinite(largest + rest).all()):
        raise FloatingPointError(
            "the scores are not finite: the layer's values or bias are not finite, or the scores overflow; "
            "lower the learning rate"
        )
    rest = xp.where(counts > 0, rest, FAR)
    shifts = asarray(xp.stack([largest, rest], axis=1), layer.device, np.float32)
    constant = float((counts * xp.log(n)).sum(dtype=np.float64)) / max(n_rows, 1)
    return StepLoss(SOFTMAX, shifts), constant


def fixed_fan_in_step(
    h: Array,
    layer: FixedFanIn,
    labels: SparseMatrix | Labels,
    loss: Literal["squared-hinge", "bce", "softmax"],
    optimizer: Adam | SGD,
) -> tuple[float, Array]:
    """Forward, loss, backward and update in one pass over the labels; no (B, L) array exists.

    ``loss = 1/B sum_b sum_l f(y[b, l] scores[b, l])``, y = +1 for the labels of a row, else -1; f(z) = max(0, 1 - z)^2
    ("squared-hinge") or log(1 + exp(-z)) ("bce"). With "softmax", ``loss = 1/B sum_b sum_{l in labels of b} -log
    softmax(scores[b])[l]``, as `softmax_cross_entropy` has it for a matrix of labels: a pass over the labels before
    the step computes the sum of each row's softmax. A label whose gradient is zero in all rows only costs its scores
    and, with Adam, the decay of its moments.

    Parameters
    ----------
    h : (B, d) float32
    layer : FixedFanIn
        Its values and bias are updated in place.
    labels : SciPy CSR matrix (B, L) or Labels(indptr, indices) of integers
        The labels of each row. In a matrix these are the entries that are not zero, after entries stored twice are
        summed. `Labels` may be on CUDA.
    loss : 'squared-hinge', 'bce' or 'softmax'
    optimizer : Adam or SGD
        Its moments of values and bias are updated in place. It counts the steps of each array.

    Returns
    -------
    loss : float
        Before the update.
    dh : (B, d) float32
        Gradient with respect to h, from the values before the update.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; labels out of range, repeated or NaN; h not finite; values, bias or
        moments that are read-only. Nothing has changed.
    FloatingPointError
        The loss is NaN or infinite: the layer's values or bias were not finite, or overflowed. The update has been
        applied and counted: restore finite weights before you continue. With "softmax", scores that are NaN or
        +infinity are found before the update: nothing has changed then.

    Notes
    -----
    On CUDA, dh is summed with atomics: the order of its float sums varies. There, "softmax" stores the scores of some
    labels at a time, at most 64 MiB. Source: arXiv 2306.03725, sections 3 and 4; the softmax is ours.

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
    h, kernels = _checked_h_and_backend(h, layer)
    check.choice("loss", loss, STEP_LOSSES)
    if not isinstance(optimizer, (Adam, SGD)):
        raise TypeError(f"optimizer must be Adam or SGD, got {type(optimizer).__name__}")
    labels = as_labels(labels, h.shape[0], layer.device, layer.n_labels)
    label_rows = by_label(labels, layer.n_labels)
    optimizer.check_writable(**{"layer.values": layer.values, "layer.bias": layer.bias})
    if loss == "softmax":
        step_loss, constant = _softmax_loss(h, layer, labels, kernels)
    else:
        step_loss, constant = StepLoss(LOSSES[loss], empty((0, 2), np.float32, layer.device)), 0.0
    dh = empty(h.shape, np.float32, layer.device)
    label_loss = empty(layer.n_labels, np.float32, layer.device)
    kind, rates, values_moments = optimizer.begin_step(layer.values)
    _, _, bias_moments = optimizer.begin_step(layer.bias)
    inputs = h, layer.arrays, label_rows, step_loss, kind, rates, values_moments, bias_moments
    kernels.step(*inputs, *layer._step_inputs(optimizer), dh, label_loss)
    optimizer.end_step(layer.values, layer.bias)
    value = float(label_loss.sum(dtype=np.float64)) + constant
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value}: the layer's values or bias are not finite; lower the learning rate"
        )
    return value, dh
