"""Group-shared fixed fan-in layer: groups of similar labels share one row of inputs and keep their own weights.

The functions of the plain layer (`fixed_fan_in`) take it: forward, backward, step, top-k, rewire.

Source: N. Ullah et al., "HASTE: hardware-aware dynamic sparse training for large output spaces", arXiv 2606.01117.
Weights without a float32 master copy and stochastic rounding: J. Zhang et al., "ELMO: efficiency via low-precision and
peak memory optimization in large output spaces", ICML 2025.
"""

import math
from typing import Literal, Self

import ml_dtypes
import numpy as np

from .core import check, rng
from .core.annotations import Array, Device
from .core.connections import Connections, SharedConnections
from .core.device import backend_of, empty, module_of, resolve_device, zeros
from .fixed_fan_in import MAX_CONNECTIONS, FixedFanIn
from .rewiring import empty_moments

#: The dtypes of the weights, by name.
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class GroupSharedFanIn(FixedFanIn):
    """A fixed fan-in layer in which G neighbouring labels share their K inputs, but not their weights.

    ``scores[b, l] = bias[l] + sum_k values[l, k] h[b, indices[l // G, k]]``; dense equivalent:
    ``h @ layer.to_dense().T + bias``. The inputs of a group are gathered once for its G labels, so that the scores of a
    group are a small dense product. The layer is as accurate as the plain one only if the labels of a group are
    similar: order them with `group_labels`.

    Parameters
    ----------
    n_inputs : int
        d, the width of h.
    indices : (L / G rounded up, K) int32
        The inputs of each group, in [0, d), without repetition within a group.
    values : (L, K) float32 or bfloat16 (``ml_dtypes.bfloat16``)
        The weights of each label. bfloat16 weights have no float32 copy: a step computes in float32 and rounds each new
        weight up or down at random, so that its expectation is exact.
    bias : (L,) float32
    group_size : int
        G, 1 <= G <= L. If L is not a multiple of G, the last group has fewer labels.
    seed : int, optional
        Seed of the random rounding.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, device, shape or layout; K above d; G above L; an index out of range or repeated within a group.

    Notes
    -----
    The three arrays are C-contiguous and on one device (NumPy or CUDA). The layer keeps references, not copies, and
    training updates them in place. The constructor checks the indices; later calls do not check them again.

    Source: HASTE, arXiv 2606.01117; bfloat16 with stochastic rounding: ELMO, ICML 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import GroupSharedFanIn, fixed_fan_in_forward
    >>> indices, values = np.array([[0, 2]], np.int32), np.array([[1, 10], [2, 20]], np.float32)
    >>> layer = GroupSharedFanIn(4, indices, values, np.zeros(2, np.float32), group_size=2)
    >>> fixed_fan_in_forward(np.array([[1, 2, 3, 4]], np.float32), layer)
    array([[31., 62.]], dtype=float32)
    """

    _backend_module = "group_shared"
    _row_name = "group"

    def __init__(
        self, n_inputs: int, indices: Array, values: Array, bias: Array, group_size: int, *, seed: int = 0
    ) -> None:
        self._set_device(n_inputs, indices, values, bias)
        indices = self._checked_indices(indices)
        dtype = DTYPES["bfloat16" if values.dtype == DTYPES["bfloat16"] else "float32"]
        values = check.array("values", values, dtype, ("L", indices.shape[1]), writeable=True)
        n_labels = check.integer("n_labels (the length of values)", len(values), 1, 2**31 - 1)
        bias = check.array("bias", bias, np.float32, (n_labels,), writeable=True)
        group_size = check.integer("group_size", group_size, 1, n_labels, f" (n_labels = {n_labels})")
        n_groups = -(-n_labels // group_size)
        if len(indices) != n_groups:
            raise ValueError(
                f"indices must have one row per group, {n_groups} for {n_labels} labels in groups of {group_size}, "
                f"got {len(indices)}"
            )
        self.seed = check.integer("seed", seed, 0, 2**64 - 1)
        self._set_arrays(indices, values, bias, group_size)

    def _set_arrays(self, indices, values, bias, group_size):
        self._values = values
        bits = values if values.dtype == np.float32 else values.view(np.uint16)  # Numba has no bfloat16
        self.arrays = SharedConnections(indices, bits, bias, group_size)

    values = property(lambda self: self._values, doc="(L, K) float32 or bfloat16")
    group_size = property(lambda self: self.arrays.group_size, doc="G")

    def __repr__(self):
        sizes = (
            f"n_labels={self.n_labels}, n_inputs={self.n_inputs}, fan_in={self.fan_in}, group_size={self.group_size}"
        )
        return f"GroupSharedFanIn({sizes}, dtype={self.values.dtype.name!r}, device={self.device!r})"

    @classmethod
    def random(  # type: ignore[override]  # a group-shared layer also needs a group size
        cls,
        n_labels: int,
        n_inputs: int,
        fan_in: int,
        group_size: int,
        seed: int,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: Device = "cpu",
    ) -> Self:
        """A layer with random connections, weights uniform in ±1/sqrt(fan_in) and zero bias (our choice).

        Connections and weights come from the counter-based stream of `seed`, so they are the same on every device. With
        a group size of 1 they equal those of `FixedFanIn.random`.

        Parameters
        ----------
        n_labels, n_inputs, fan_in, group_size : int
            L, d, K and G; 1 <= K <= d, 1 <= G <= L.
        seed : int
            In [0, 2^64); also the seed of the random rounding.
        dtype : 'float32' or 'bfloat16'
            Of the weights.
        device : 'cpu' or 'cuda'

        Returns
        -------
        layer : GroupSharedFanIn

        Raises
        ------
        TypeError, ValueError, RuntimeError
            A size or the seed out of range, or not an integer; an unknown dtype or device; CUDA not available.

        Examples
        --------
        >>> from sparsemax_nb import GroupSharedFanIn
        >>> GroupSharedFanIn.random(n_labels=1000, n_inputs=256, fan_in=8, group_size=16, seed=1)
        GroupSharedFanIn(n_labels=1000, n_inputs=256, fan_in=8, group_size=16, dtype='float32', device='cpu')
        """
        n_labels = check.integer("n_labels", n_labels, 1, 2**31 - 1)
        n_inputs = check.integer("n_inputs", n_inputs, 1, 2**31 - 1)
        fan_in = check.integer("fan_in", fan_in, 1, n_inputs, f" (n_inputs = {n_inputs})")
        group_size = check.integer("group_size", group_size, 1, n_labels, f" (n_labels = {n_labels})")
        check.array_size(MAX_CONNECTIONS, n_labels=n_labels, fan_in=fan_in)
        seed = check.integer("seed", seed, 0, 2**64 - 1)
        stored = DTYPES[check.choice("dtype", dtype, tuple(DTYPES))]
        device = resolve_device(check.choice("device", device, ("cpu", "cuda")))
        kernels = backend_of(device, "initialization")
        indices = empty((-(-n_labels // group_size), fan_in), np.int32, device)
        values = empty((n_labels, fan_in), np.float32, device)
        kernels.random_connections(np.uint64(seed), n_inputs, indices)
        kernels.random_values(np.uint64(seed), rng.WEIGHTS, np.float32(1 / math.sqrt(fan_in)), values.reshape(-1))
        layer = cls.__new__(cls)  # the indices are valid by construction: skip the checks of the constructor
        layer.n_inputs, layer.device, layer.seed = n_inputs, device, seed
        layer._set_arrays(indices, values.astype(stored, copy=False), zeros(n_labels, np.float32, device), group_size)
        return layer

    def to_dense(self) -> Array:
        """The dense weight matrix in float32; for small layers and tests.

        Returns
        -------
        w : (L, d) float32
            On the layer's device.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import GroupSharedFanIn
        >>> indices, values = np.array([[0, 2]], np.int32), np.array([[1, 10], [2, 20]], np.float32)
        >>> GroupSharedFanIn(3, indices, values, np.zeros(2, np.float32), group_size=2).to_dense()
        array([[ 1.,  0., 10.],
               [ 2.,  0., 20.]], dtype=float32)
        """
        dense = zeros((self.n_labels, self.n_inputs), np.float32, self.device)
        labels = module_of(self.device).arange(self.n_labels)[:, None]
        dense[labels, self.indices[labels[:, 0] // self.group_size]] = self.values.astype(np.float32)
        return dense

    def _magnitudes(self):
        """The mean magnitude over a group's labels, for each index; see `FixedFanIn._magnitudes`."""
        means = empty(self.indices.shape, np.float32, self.device)
        backend_of(self.device, "rewiring").magnitudes(self.arrays.values, self.group_size, means)
        return means.view(np.int32)

    def _step_inputs(self, optimizer):
        return (rng.Rounding(np.uint64(self.seed), np.uint64(optimizer.state_of(self.values).count)),)

    def _connections_of(self, labels):
        values = self.values[labels].astype(np.float32, copy=False)
        return Connections(self.indices[labels // self.group_size], values, self.bias[labels])

    def _redraw(self, seed, step, cut, offsets, bits, moments, slots):
        super()._redraw(seed, step, cut, offsets, bits, empty_moments(self.device), slots)
        for array in (self.arrays.values, *moments):
            if array.size:
                backend_of(self.device, "rewiring").clear(slots, self.group_size, array)
