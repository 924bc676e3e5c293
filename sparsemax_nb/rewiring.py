"""Rewiring a fixed fan-in layer (method 1): connections with the smallest weights are replaced by random ones."""

import math

import numpy as np

from .core import check
from .core.annotations import Array
from .core.device import backend_of, empty, to_numpy, zeros
from .core.formulas import MAGNITUDE, Moments, Threshold
from .fixed_fan_in import FixedFanIn
from .optimizers import SGD, Adam

#: (shift, n_bins) of the digits of a magnitude, the highest first. The first digit is the exponent and three more bits.
_DIGITS = (20, 2048), (10, 1024), (0, 1024)
#: From this first digit on, all bits of the exponent are set: infinity or NaN.
_NOT_FINITE = 255 << 3


def _threshold(bits, n, device):
    """Radix selection: the n-th smallest magnitude, its number of ties among the n smallest, and its ties in all."""
    kernels, prefix = backend_of(device, "rewiring"), 0
    for shift, n_bins in _DIGITS:
        counts = empty(n_bins, np.int64, device)
        kernels.magnitude_histogram(bits, prefix, shift, counts)
        counts = to_numpy(counts)
        if shift == _DIGITS[0][0] and counts[_NOT_FINITE:].any():
            raise ValueError("layer.values must be finite, got NaN or infinity; lower the learning rate")
        up_to = counts.cumsum()
        digit = int(np.searchsorted(up_to, n))
        n -= int(up_to[digit] - counts[digit])
        prefix = prefix * n_bins + digit
    return prefix, n, int(counts[digit])


def _smallest(bits, n, device):
    """The `Threshold` of the n slots with the smallest magnitudes, and how many of them each label has, (L,) int32."""
    threshold, n_ties, all_ties = _threshold(bits.reshape(-1), n, device)
    kernels, fan_in = backend_of(device, "rewiring"), bits.shape[1]

    def count(last):
        cut, counts = Threshold(threshold, last), empty(bits.shape[0], np.int32, device)
        kernels.count_smallest(bits, cut, counts)
        return cut, counts

    cut, counts = count(bits.size - 1)
    if n_ties == all_ties:
        return cut, counts
    # Only some of the ties go. Find the last one, in flat order, and count again below and up to it.
    _, below = count(-1)
    ties = counts - below
    up_to = ties.cumsum(dtype=np.int64)
    label = int((up_to < n_ties).sum())  # the label of the last tie that is replaced
    rest = n_ties - int(up_to[label] - ties[label])
    k = to_numpy((bits[label] & MAGNITUDE) == threshold).nonzero()[0][rest - 1]
    below[:label] += ties[:label]
    below[label] += rest
    return Threshold(threshold, label * fan_in + int(k)), below


def empty_moments(device):
    """`Moments` of size 0: what the kernels take if there is no optimizer."""
    return Moments(*(empty((0, 0), np.float32, device) for _ in range(2)))


def rewire(
    layer: FixedFanIn, fraction: float, seed: int, optimizer: Adam | SGD | None = None, *, step: int = 0
) -> Array:
    """Replace the weakest connections of a layer by random new ones, in place; every label keeps K connections.

    Drops the ``n = floor(fraction L K + 1/2)`` slots with the smallest ``|values[l, k]|`` of the whole layer; of equal
    magnitudes, those with the lower flat index ``l K + k``. A label that loses m slots draws m new inputs, uniformly
    from the H - K inputs that it was not connected to. They fill its dropped slots in ascending order. Their values
    start at 0, and so do the optimizer's moments. NumPy equivalent of the choice of slots:
    ``np.sort(np.argsort(np.abs(values).reshape(-1), kind="stable")[:n])``.

    Parameters
    ----------
    layer : FixedFanIn
        Its indices and values are updated in place. The indices of a label need not ascend afterwards.
    fraction : float
        Share of all connections to replace, in [0, 1].
    seed : int
        In [0, 2^64).
    optimizer : Adam or SGD, optional
        The optimizer that trains the layer. Its moments of the dropped values become 0.
    step : int
        In [0, 2^32); for example the number of the training step. Calls with one seed draw differently for each step.

    Returns
    -------
    slots : (n, 2) int32
        (label, k) of the slots that changed, ascending, on the layer's device.

    Raises
    ------
    TypeError, ValueError
        Wrong type; fraction, seed or step out of range; read-only arrays; values with NaN or infinity (not checked if
        n is 0); a label that needs more new inputs than it has free ones. Nothing has changed.

    Notes
    -----
    Three passes over the values find the n-th smallest magnitude exactly; one or two more count the slots that each
    label loses. Apart from the result, this needs a few numbers per label. Slots and indices are the same on every
    device.

    Source: arXiv 2306.03725, section 3, after SET (D. Mocanu et al., "Scalable training of artificial neural networks
    with adaptive sparse connectivity inspired by network science", Nature Communications 2018). The authors' released
    code keeps the old small value of a redrawn slot and allows repeated inputs; here new connections start at 0 and
    never repeat an input.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import FixedFanIn, rewire
    >>> values = np.array([[0.5, -0.1], [0.2, 3.0]], np.float32)
    >>> layer = FixedFanIn(3, np.array([[0, 2], [1, 0]], np.int32), values, np.zeros(2, np.float32))
    >>> rewire(layer, fraction=0.5, seed=1)
    array([[0, 1],
           [1, 0]], dtype=int32)
    >>> layer.indices
    array([[0, 1],
           [2, 0]], dtype=int32)
    >>> layer.values
    array([[0.5, 0. ],
           [0. , 3. ]], dtype=float32)
    """
    if not isinstance(layer, FixedFanIn):
        raise TypeError(f"layer must be a FixedFanIn, got {type(layer).__name__}")
    if not isinstance(optimizer, (Adam, SGD, type(None))):
        raise TypeError(f"optimizer must be Adam, SGD or None, got {type(optimizer).__name__}")
    fraction = check.number("fraction", fraction, 0, 1)
    key = np.uint64(check.integer("seed", seed, 0, 2**64 - 1))
    counter = np.uint64(check.integer("step", step, 0, 2**32 - 1))
    device, n_free = layer.device, layer.n_inputs - layer.fan_in
    check.writable("layer.indices", layer.indices)
    check.writable("layer.values", layer.values)
    if optimizer is not None:
        optimizer.check_writable(**{"layer.values": layer.values})
    n = math.floor(fraction * layer.indices.size + 0.5)
    slots = empty((n, 2), np.int32, device)
    if n == 0:
        return slots
    bits = layer._magnitudes()
    cut, counts = _smallest(bits, n, device)
    label = int(counts.argmax())
    if counts[label] > n_free:
        raise ValueError(
            f"fraction is too large: {layer._row_name} {label} would need {int(counts[label])} new inputs and has "
            f"{n_free} free ones (n_inputs = {layer.n_inputs}, fan-in = {layer.fan_in}); use a smaller fraction"
        )
    offsets = zeros(layer.indices.shape[0] + 1, np.int64, device)
    offsets[1:] = counts.cumsum(dtype=np.int64)
    moments = empty_moments(device) if optimizer is None else optimizer.state_of(layer.values).moments
    layer._redraw(key, counter, cut, offsets, bits, moments, slots)
    return slots
