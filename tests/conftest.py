"""The one `backend` fixture, which tests are collected where, and a count of the tests by tier at the end of a run.

Two runs make the whole suite, because one process cannot both simulate CUDA and compile for it: `pytest tests` in
Numba's simulator (NUMBA_ENABLE_CUDASIM=1), which leaves out the folders contracts and compiled; and `pytest
tests/contracts tests/compiled` without it. On a machine with a CUDA device one run of `pytest tests` without the
simulator does everything; without a device, it leaves out what needs one.
"""

import collections
import importlib
import itertools
import os
import pkgutil
import re
from pathlib import Path

# At least two threads, even on one core: tests compare the bits of one thread with those of several. Numba reads this
# when it is imported.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, len(os.sched_getaffinity(0)))))

import numba
import numpy as np
import pytest

import sparsemax_nb.cuda
from sparsemax_nb.core.device import SIMULATOR, asarray, backend_of, cuda_available, cuda_problem, to_numpy
from sparsemax_nb.train import loop

from .catalogue import BUDGETS, FILE_OF

TESTS = Path(__file__).parent
DEVICES = ("cpu", "cuda") if cuda_available() else ("cpu",)
CUDA = "CUDA device" if cuda_available() and not SIMULATOR else "simulator"
#: One process either simulates CUDA or compiles for it: these need the compiler.
FOLDERS = {"contracts": TESTS / "contracts", "compiled": TESTS / "compiled", "ptxsim": TESTS.parent / "ptxsim"}
TIERS = {
    "cpu": "tier 1 twins (cpu)",
    "cuda": f"tier 1 twins ({CUDA})",
    "contracts": "tier 2 contracts",
    "compiled": "tier 3 compiled code executed",
    "ptxsim": "PTX emulator (ptxsim)",
    "tutorials": "tutorials",
    "examples": "examples of the documentation",
    "other": "other",
}

#: Groups of tests that take long, which run first so that several processes end together. Catalogue operations run
#: before test files, because they compile the kernels that these use.
LONG = (
    "group_shared_mma", "group_shared", "fixed_fan_in", "ds_softmax", "full_softmax", "linear", "midx",
    "sparse_experts", "tests/train/test_classifier.py", "tests/train/test_linear.py", "tests/train/test_resume.py",
    "tests/stress/test_stress.py", "tests/fuzz/test_files.py", "tests/cli/test_main.py", "tests/bench/test_bench.py",
    "tests/test_top_k_layers.py", "tests/data/test_readers.py", "tests/test_linear.py", "tests/test_fuzz_calls.py",
    "tests/train/test_memory.py", "tests/compiled/test_counted.py",
)  # fmt: skip


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


@pytest.fixture(params=DEVICES)
def backend(request):
    """The CPU; and CUDA, in the simulator where it is on, on a device where there is one."""
    return Backend(request.param)


@pytest.fixture
def ticking(monkeypatch):
    """A clock for the training loop that advances a quarter of a second per reading; a step reads it twice."""
    ticks = itertools.count()
    monkeypatch.setattr(loop, "clock", lambda: next(ticks) / 4)


@pytest.fixture(scope="session", autouse=True)
def _fast_simulator():
    """In the simulator every thread costs time: launch small blocks, and use the faster schedule of their threads."""
    if not SIMULATOR:
        yield
        return
    from . import simulator

    for info in pkgutil.iter_modules(sparsemax_nb.cuda.__path__, "sparsemax_nb.cuda."):
        for function in vars(importlib.import_module(info.name)).values():
            defaults = getattr(function, "__kwdefaults__", None) or {}
            if "block" in defaults:
                defaults["block"] = 4 if isinstance(defaults["block"], int) else (4, 2)
    with simulator.by_turns():
        yield


def pytest_configure(config):
    config.addinivalue_line("markers", "twins: compares a backend with the reference (tier 1)")
    config.addinivalue_line("markers", "quick: run by `make check`")
    config.addinivalue_line("markers", "cuda: needs CUDA, a device or the simulator")
    if hasattr(config, "workerinput"):  # one of several processes: one core each
        numba.set_num_threads(1)


def pytest_ignore_collect(collection_path):
    there = FOLDERS.values() if SIMULATOR else {TESTS / "test_simulator.py"}
    return True if collection_path in there else None


def group_of(nodeid):
    """The group of a test, which runs in one process: a catalogue file, whose kernels it compiles, or its own file."""
    path, _, name = nodeid.partition("::")
    parameters = name.partition("[")[2].removesuffix("]")
    if path == "tests/contracts/test_contracts.py" and parameters in BUDGETS:
        return parameters.partition(".")[0]
    if path in ("tests/test_kernels.py", "tests/compiled/test_compiled.py"):
        return FILE_OF.get(re.split(r"-(?=[(\d])", parameters)[0], path)
    return nodeid if path == "tutorials/test_tutorials.py" else path  # tutorials are processes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """``--dist loadgroup`` hands out these groups. (xdist 3.8 does not mark them in pytest 9.)"""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        _split_scope = staticmethod(group_of)

    return ByGroup(config, log)


def pytest_collection_modifyitems(config, items):
    if not cuda_available():
        without = [item for item in items if item.get_closest_marker("cuda")]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]
    for item in items:
        tier = next((tier for tier, folder in FOLDERS.items() if folder in item.path.parents), "other")
        if SIMULATOR and tier != "other":
            raise pytest.UsageError(f"{FOLDERS[tier]} needs the compiler: run it without NUMBA_ENABLE_CUDASIM")
        if isinstance(item, pytest.DoctestItem):
            tier = "examples"
        elif item.path.parent.name == "tutorials":
            tier = "tutorials"
        if item.get_closest_marker("twins") and hasattr(item, "callspec"):
            tier = item.callspec.params.get("backend", tier)
        item.user_properties.append(("tier", tier))
    files, order = set(FILE_OF.values()), {name: i for i, name in enumerate(LONG)}
    groups = {item: group_of(item.nodeid) for item in items}
    items.sort(key=lambda item: (groups[item] not in files, order.get(groups[item], len(order))))


def pytest_terminal_summary(terminalreporter):
    counts = {tier: collections.Counter() for tier in TIERS}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            counts[dict(getattr(report, "user_properties", ())).get("tier", "other")][outcome] += 1
    terminalreporter.section("tests by tier")
    for tier, name in TIERS.items():
        if not counts[tier]:
            continue
        others = "".join(f", {n} {outcome}" for outcome, n in counts[tier].items() if outcome != "passed")
        terminalreporter.write_line(f"{name}: {counts[tier]['passed']} passed{others}")
    if SIMULATOR:
        terminalreporter.write_line("tiers 2 and 3 need a run without NUMBA_ENABLE_CUDASIM")
    elif cuda_problem():
        terminalreporter.write_line(f"no twins on CUDA: {cuda_problem()}; NUMBA_ENABLE_CUDASIM=1 simulates one")
