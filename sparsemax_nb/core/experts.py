"""How a sparse mixture of experts lies in memory, and how a batch is sorted by expert."""

from typing import NamedTuple

import numpy as np

from .device import asarray, device_of, module_of


class Experts(NamedTuple):
    """Experts one behind the other: expert k holds ``weights[starts[k]:starts[k + 1]]``, of the classes `ids` there."""

    starts: np.ndarray  # (E + 1,) int32
    ids: np.ndarray  # (R,) int32, ascending inside an expert
    weights: np.ndarray  # (R, d) float32


class Groups(NamedTuple):
    """A batch sorted by expert: expert k gets the rows ``order[starts[k]:starts[k + 1]]``.

    The scores of the b-th row in this order are ``scores[offsets[b]:offsets[b + 1]]`` of one flat array, as many as its
    expert has classes: so those of an expert are a matrix.
    """

    order: np.ndarray  # (B,) int32
    experts: np.ndarray  # (B,) int32, the expert of each row in this order, ascending
    starts: np.ndarray  # (E + 1,) int32
    offsets: np.ndarray  # (B + 1,) int64


class ByClass(NamedTuple):
    """Where each class is held: class c by the rows ``rows[indptr[c]:indptr[c + 1]]`` of the experts, ascending."""

    indptr: np.ndarray  # (L + 1,) int32
    rows: np.ndarray  # (R,) int32


def group(chosen, starts):
    """`Groups` of a batch whose rows chose the experts `chosen` (B,), from the experts' `starts` (E + 1,)."""
    device = device_of(chosen)
    xp, n_experts = module_of(device), starts.shape[0] - 1
    order = xp.argsort(chosen, kind="stable")
    experts = chosen[order]
    firsts = xp.searchsorted(experts, xp.arange(n_experts + 1))
    offsets = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum((starts[1:] - starts[:-1])[experts], dtype=np.int64)])
    dtypes = np.int32, np.int32, np.int32, np.int64
    return Groups(*map(asarray, (order, experts, firsts, offsets), [device] * 4, dtypes))


def by_class(ids, n_classes):
    """`ByClass` of the classes `ids` (R,) of all rows; in each class the rows keep their order."""
    device = device_of(ids)
    xp = module_of(device)
    rows = xp.argsort(ids, kind="stable")
    indptr = xp.searchsorted(ids[rows], xp.arange(n_classes + 1))
    return ByClass(*(asarray(a, device, np.int32) for a in (indptr, rows)))
