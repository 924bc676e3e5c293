"""The memory of a training run, array by array, before anything is allocated.

Each layer states its arrays in a static method `memory`; a network adds them up to a `Plan`. Measured peaks lie a few
per cent above: small arrays, and what libraries hold.
"""

import math
from typing import NamedTuple


class MemoryLimitError(ValueError):
    """A network that does not fit into the memory that it may take; the message says how much it needs.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb.train import Classifier, MemoryLimitError
    >>> x, y = np.ones((4, 100), np.float32), np.eye(4, 1000, dtype=np.float32)
    >>> try:
    ...     Classifier(memory_limit=1 << 20, device="cpu", progress=False).fit(x, y)
    ... except MemoryLimitError:
    ...     print("refused")
    refused
    """


class Array(NamedTuple):
    """An array of a plan. Those of the phase 'always' are held; of the other phases only the largest counts."""

    phase: str
    name: str
    nbytes: int
    #: Of a parameter: its shape, which its part of a model file has, too.
    shape: tuple | None = None


def array(phase, name, *shape, item=4):
    """An `Array` of this shape; `item` is the size of an entry in bytes."""
    return Array(phase, name, math.prod(shape) * item)


def parameter(name, *shape, item=4, learns=True):
    """A parameter, which is held always, and with `learns` the two float32 moments that Adam keeps of it."""
    held = [Array("always", name, math.prod(shape) * item, shape)]
    return [*held, array("always", f"{name}: Adam's two moments", 2, *shape)] if learns else held


class Plan(NamedTuple):
    """Every array of a training run, and the sum that counts."""

    arrays: list

    @property
    def phases(self):
        """{phase: bytes}."""
        return {
            p: sum(a.nbytes for a in self.arrays if a.phase == p) for p in dict.fromkeys(a.phase for a in self.arrays)
        }

    @property
    def nbytes(self):
        """What is held always, and the largest of the other phases."""
        phases = self.phases
        return phases.pop("always") + max(phases.values())

    @property
    def parameter_shapes(self):
        """{name: shape} of the parameters."""
        return {a.name: a.shape for a in self.arrays if a.shape is not None}

    def __str__(self):
        lines = [f"{'phase':<28}{'array':<40}{'MiB':>10}"]
        for phase, nbytes in self.phases.items():
            lines += [f"{a.phase:<28}{a.name:<40}{a.nbytes / 2**20:>10.1f}" for a in self.arrays if a.phase == phase]
            lines.append(f"{phase:<28}{'= sum':<40}{nbytes / 2**20:>10.1f}")
        return "\n".join([*lines, f"{'always + largest phase':<68}{self.nbytes / 2**20:>10.1f}"])


def require(plan, limit, smaller="intermediate layer, fan-in or batch"):
    """MemoryLimitError, with the whole plan and what could be `smaller`, where it needs more than `limit` bytes."""
    if plan.nbytes > limit:
        raise MemoryLimitError(
            f"training needs {plan.nbytes / 2**20:,.1f} MiB, memory_limit allows {limit / 2**20:,.1f} MiB; "
            f"use a smaller {smaller}, or a larger limit\n{plan}"
        )
