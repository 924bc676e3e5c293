"""The arrays of the sparse output layers, as kernels take them."""

from typing import NamedTuple

import numpy as np


class Connections(NamedTuple):
    """A fixed fan-in layer: every label has its own inputs."""

    indices: np.ndarray  # (L, K) int32
    values: np.ndarray  # (L, K) float32
    bias: np.ndarray  # (L,) float32


class SharedConnections(NamedTuple):
    """A group-shared layer: labels g G ... (g + 1) G - 1 have the inputs of row g; the last group may hold fewer."""

    indices: np.ndarray  # (L / G rounded up, K) int32
    values: np.ndarray  # (L, K) float32, or the bits of bfloat16 as uint16
    bias: np.ndarray  # (L,) float32
    group_size: int  # G
