"""Internal names for benchmarks and system tests. Nothing here is public.

`cuda_kernels` lists all CUDA kernels; `intercepted_launches` runs the CUDA backend without a device and reports each
launch. The rest are modules and functions that ``bench/`` needs in addition to the public names.
"""

import contextlib
import importlib
import pkgutil
import sys

import numpy as np

from . import cuda
from .cli.main import main as command_line
from .core import checkpoint, device, formulas, rng
from .core.connections import Connections, SharedConnections
from .core.device import (
    SIMULATOR,
    asarray,
    backend_of,
    cuda_available,
    cuda_problem,
    device_of,
    empty,
    module_of,
    profiled,
    resolve_device,
    synchronize,
    to_numpy,
    xp,
    zeros,
)
from .core.sparse import LabelRows
from .train.chunks import Chunk
from .train.curves import pyplot
from .train.ds_softmax import evaluate_experts
from .train.language_network import LanguageNetwork
from .train.loop import peak_memory
from .train.lstm import LSTM
from .train.negatives import Negatives, Sampling
from .train.network import Network

__all__ = [
    "Chunk",
    "Connections",
    "LSTM",
    "LanguageNetwork",
    "Negatives",
    "Network",
    "LabelRows",
    "SIMULATOR",
    "Sampling",
    "SharedConnections",
    "asarray",
    "backend_of",
    "checkpoint",
    "command_line",
    "cuda_available",
    "cuda_kernels",
    "cuda_problem",
    "device_of",
    "empty",
    "evaluate_experts",
    "formulas",
    "intercepted_launches",
    "module_of",
    "peak_memory",
    "profiled",
    "pyplot",
    "resolve_device",
    "rng",
    "synchronize",
    "to_numpy",
    "xp",
    "zeros",
]


def cuda_kernels():
    """All CUDA kernels (module-level names that end in ``_kernel``): ``{"module.kernel": (module, name)}``."""
    found = {}
    for info in pkgutil.iter_modules(cuda.__path__):
        module = importlib.import_module(f"{cuda.__name__}.{info.name}")
        found |= {f"{info.name}.{name}": (module, name) for name in vars(module) if name.endswith("_kernel")}
    return found


class _Intercepted:
    """Replaces a kernel in its module, and passes its launches to `receive`."""

    def __init__(self, name, kernel, receive):
        self._name, self._kernel, self._receive = name, kernel, receive

    def __getitem__(self, configuration):
        grid, block, _, shared = (*configuration, 0, 0)[:4]
        return lambda *args: self._receive(self._name, self._kernel, grid, block, shared, args)


@contextlib.contextmanager
def intercepted_launches(receive):
    """Run the CUDA backend on NumPy arrays, without a device.

    Inside the ``with`` block, every launch calls ``receive(name, kernel, grid, block, shared, args)`` instead of the
    kernel.
    """
    replaced = [(*found, _Intercepted(name, getattr(*found), receive)) for name, found in cuda_kernels().items()]
    in_package = [module for name, module in sys.modules.items() if name.startswith(f"{__package__}.")]
    for name, value in ("xp", np), ("asarray", lambda x, device, dtype=None: np.ascontiguousarray(x, dtype)):
        original = getattr(device, name)
        replaced += [(module, name, value) for module in in_package if getattr(module, name, None) is original]
    originals = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(replaced, originals, strict=True):
            setattr(module, name, value)
