"""Storage of a sparse mixture of experts, and a batch sorted by expert."""

from typing import NamedTuple

import numpy as np

from .device import asarray, device_of, module_of


class Experts(NamedTuple):
    """All experts, concatenated: expert k has ``weights[starts[k]:starts[k + 1]]``, the rows of its classes `ids`."""

    starts: np.ndarray  # (E + 1,) int32
    ids: np.ndarray  # (R,) int32, ascending inside an expert
    weights: np.ndarray  # (R, d) float32


class Groups(NamedTuple):
    """A batch sorted by expert: expert k gets the rows ``order[starts[k]:starts[k + 1]]``.

    One flat array stores the scores of all rows; those of the b-th row in this order are
    ``scores[offsets[b]:offsets[b + 1]]``, one for each class of its expert. So the scores of an expert are a matrix.
    """

    order: np.ndarray  # (B,) int32
    experts: np.ndarray  # (B,) int32, the expert of each row in this order, ascending
    starts: np.ndarray  # (E + 1,) int32
    offsets: np.ndarray  # (B + 1,) int64


class ByClass(NamedTuple):
    """Which rows of the experts belong to each class: ``rows[indptr[c]:indptr[c + 1]]`` for class c, ascending."""

    indptr: np.ndarray  # (L + 1,) int32
    rows: np.ndarray  # (R,) int32


def group(chosen, starts):
    """Sort a batch by expert: `Groups` from each row's expert `chosen` (B,) and the experts' `starts` (E + 1,)."""
    device = device_of(chosen)
    xp, n_experts = module_of(device), starts.shape[0] - 1
    order = xp.argsort(chosen, kind="stable")
    experts = chosen[order]
    firsts = xp.searchsorted(experts, xp.arange(n_experts + 1))
    offsets = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum((starts[1:] - starts[:-1])[experts], dtype=np.int64)])
    dtypes = np.int32, np.int32, np.int32, np.int64
    return Groups(*map(asarray, (order, experts, firsts, offsets), [device] * 4, dtypes))


def by_class(ids, n_classes):
    """`ByClass` of the class `ids` (R,) of all rows of the experts; the rows of a class keep their order."""
    device = device_of(ids)
    xp = module_of(device)
    rows = xp.argsort(ids, kind="stable")
    indptr = xp.searchsorted(ids[rows], xp.arange(n_classes + 1))
    return ByClass(*(asarray(a, device, np.int32) for a in (indptr, rows)))
