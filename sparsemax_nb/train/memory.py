"""Memory plan of a training run: all its arrays, predicted before anything is allocated.

Each layer lists its arrays in a static method `memory`; a network combines them to a `Plan`. Measured peaks are a few
per cent higher: small arrays, and memory held by libraries, are not counted.
"""

import math
from typing import NamedTuple


class MemoryLimitError(ValueError):
    """Training would need more memory than it may use; the message says how much.

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
    """An array of a plan. Those of the phase 'always' exist all the time; of other phases only the largest counts."""

    phase: str
    name: str
    nbytes: int
    #: Shape of a parameter in the model file; None for other arrays.
    shape: tuple | None = None


def array(phase, name, *shape, item=4):
    """An `Array` of this shape; `item` is the size of an element in bytes."""
    return Array(phase, name, math.prod(shape) * item)


def parameter(name, *shape, item=4, learns=True):
    """A parameter, as a list of `Array`; with `learns` it includes the two float32 moments of Adam."""
    arrays = [Array("always", name, math.prod(shape) * item, shape)]
    return [*arrays, array("always", f"{name}: Adam's two moments", 2, *shape)] if learns else arrays


class Plan(NamedTuple):
    """All arrays of a training run; `print` shows them as a table."""

    arrays: list

    @property
    def phases(self):
        """{phase: bytes}."""
        return {
            p: sum(a.nbytes for a in self.arrays if a.phase == p) for p in dict.fromkeys(a.phase for a in self.arrays)
        }

    @property
    def nbytes(self):
        """Bytes of the phase 'always' plus those of the largest other phase."""
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
    """MemoryLimitError if the plan needs more than `limit` bytes; it shows the plan, and what could be `smaller`."""
    if plan.nbytes > limit:
        raise MemoryLimitError(
            f"training needs {plan.nbytes / 2**20:,.1f} MiB, memory_limit allows {limit / 2**20:,.1f} MiB; "
            f"use a smaller {smaller}, or a larger limit\n{plan}"
        )
