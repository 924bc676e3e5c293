"""The one `backend` fixture, and a count of the tests by net at the end of a run.

Two runs make the whole suite, because one process can not be both: `pytest tests` in Numba's simulator
(NUMBA_ENABLE_CUDASIM=1), and `pytest tests/contracts tests/compiled` without it. On a machine with a CUDA device one
run without the simulator does everything.
"""

import collections
import importlib
import itertools
import os
import pkgutil
from pathlib import Path

# That bits do not depend on the number of threads shows with two of them, also on one core. Read when Numba is
# imported.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, len(os.sched_getaffinity(0)))))

import numba
import numpy as np
import pytest

import sparsemax_nb.cuda
from sparsemax_nb.core.device import SIMULATOR, asarray, backend_of, cuda_available, cuda_problem, to_numpy
from sparsemax_nb.train import loop

TESTS = Path(__file__).parent
CUDA = "CUDA device" if cuda_available() and not SIMULATOR else "simulator"
NETS = {
    "cpu": "net 1 twins (cpu)",
    "cuda": f"net 1 twins ({CUDA})",
    "contracts": "net 2 contracts",
    "compiled": "net 3 compiled code executed",
    "other": "other",
}
NOT_IN_SIMULATOR = "real compiled code: run it without NUMBA_ENABLE_CUDASIM"


class Backend:
    """Places arrays on a device and brings them back."""

    def __init__(self, device):
        self.device = device

    def array(self, a, dtype=None):
        """A copy of `a` on the device, C-contiguous."""
        return asarray(np.array(to_numpy(a), dtype, order="C"), self.device)

    def numpy(self, a):
        """A copy of `a` as a NumPy array."""
        return np.array(to_numpy(a))

    def module(self, name):
        """The module `name` of the backend that computes on the device."""
        return backend_of(self.device, name)


@pytest.fixture(params=["cpu", "cuda"])
def backend(request):
    """The CPU; and CUDA, in the simulator where it is on, on a device where there is one."""
    if request.param == "cuda" and cuda_problem():
        pytest.skip(cuda_problem())
    return Backend(request.param)


@pytest.fixture
def ticking(monkeypatch):
    """A clock for the training loop that moves on by a quarter of a second whenever it is looked at: twice a step."""
    ticks = itertools.count()
    monkeypatch.setattr(loop, "clock", lambda: next(ticks) / 4)


@pytest.fixture(scope="session", autouse=True)
def _small_blocks():
    """The simulator runs every thread as a thread of Python: shrink the blocks that kernels are launched with."""
    if SIMULATOR:
        for info in pkgutil.iter_modules(sparsemax_nb.cuda.__path__, "sparsemax_nb.cuda."):
            for function in vars(importlib.import_module(info.name)).values():
                defaults = getattr(function, "__kwdefaults__", None) or {}
                if "block" in defaults:
                    defaults["block"] = 4 if isinstance(defaults["block"], int) else (4, 2)


def pytest_configure(config):
    config.addinivalue_line("markers", "twins: compares a wing with the reference (net 1)")
    if hasattr(config, "workerinput"):  # one of several processes: a core each
        numba.set_num_threads(1)


def pytest_collection_modifyitems(items):
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        net = folder if folder in NETS else "other"
        if net != "other" and SIMULATOR:
            item.add_marker(pytest.mark.skip(reason=NOT_IN_SIMULATOR))
        if item.get_closest_marker("twins") and hasattr(item, "callspec"):
            net = item.callspec.params.get("backend", net)
        item.user_properties.append(("net", net))


def pytest_terminal_summary(terminalreporter):
    counts = {net: collections.Counter() for net in NETS}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            counts[dict(getattr(report, "user_properties", ())).get("net", "other")][outcome] += 1
    terminalreporter.section("tests by net")
    for net, name in NETS.items():
        others = "".join(f", {n} {outcome}" for outcome, n in counts[net].items() if outcome != "passed")
        terminalreporter.write_line(f"{name}: {counts[net]['passed']} passed{others}")
