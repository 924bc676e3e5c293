"""What the machine is and what it can do: memory in use, measured limits, versions."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numba
import numpy as np
from numba import prange

import sparsemax_nb
from sparsemax_nb.core import backend

HERE = Path(__file__).parent
STARTED = time.perf_counter()


# ---------------------------------------------------------------- memory


def peak_rss():
    """Most bytes of memory that this process ever occupied (getrusage; Linux counts in KiB, macOS in bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def memory_growth(device="cpu"):
    """Yields a dict; after the block its "bytes" says how far memory grew above its level before, at most.

    CPU: the kernel's own high-water mark of the process (VmHWM), reset before the block; a sampling thread would stand
    still while compiled code holds the interpreter lock. None where /proc does not offer it. CUDA: growth of CuPy's
    memory pool. What the C library or the pool keeps for reuse is given back first, so that it counts when it is used.
    """
    growth = {"bytes": None}
    if device == "cuda" and not backend.SIMULATOR:
        pool = backend.xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        yield growth
        growth["bytes"] = pool.total_bytes() - before
        return
    try:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError:
        before = None
    yield growth
    if before is not None:
        growth["bytes"] = max(0, _status("VmHWM") - before)


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


# ---------------------------------------------------------------- the machine's limits


@numba.njit(fastmath=True, cache=True)
def _sum(array):
    total = np.float32(0)
    for i in range(array.size):
        total += array[i]
    return total


@numba.njit(fastmath={"contract"}, cache=True)
def _polynomials(array):
    for i in range(array.size):
        x = array[i]
        p, q, r, s = x, x + np.float32(1), x - np.float32(1), -x
        for _ in range(32):
            p, q, r, s = p * x + x, q * x + x, r * x + x, s * x + x
        array[i] = p + q + r + s


FLOPS_PER_ELEMENT = 32 * 4 * 2


@numba.njit(parallel=True, cache=True)
def _store(array, parts):
    n = array.size // parts
    for part in prange(parts):
        array[part * n : (part + 1) * n] = 1


@numba.njit(parallel=True, cache=True)
def _copy(source, target, parts):
    n = source.size // parts
    for part in prange(parts):
        target[part * n : (part + 1) * n] = source[part * n : (part + 1) * n]


@numba.njit(parallel=True, cache=True)
def _read(array, parts, rounds):
    n = array.size // parts
    totals = np.zeros(parts, np.float32)
    for part in prange(parts):
        for r in range(rounds):  # the start moves, or the compiler would sum once
            totals[part] += _sum(array[part * n + r % 2 : (part + 1) * n])
    return totals


@numba.njit(parallel=True, cache=True)
def _compute(array, parts, rounds):
    n = array.size // parts
    for part in prange(parts):
        for _ in range(rounds):
            _polynomials(array[part * n : (part + 1) * n])


_limits = {}  # the best that this process has seen, {(threads, device): {name: rate}}


def _note(known, name, amount, run, least_s):
    """One call that does not count, then three or more, for `least_s` seconds; the best is kept in `known`."""
    run()
    times, end = [], time.perf_counter() + least_s
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    known[name] = max(known.get(name, 0), amount / min(times))


def machine_limits(threads, device="cpu", smoke=False):
    """What the machine can do at best, measured by small kernels of our own; per second.

    Each call measures three rounds of 0.1 s each again and returns the best since the process started: other users of a machine only
    ever make it slower. CPU, with `threads` threads that each own a part of the array: ``dram_copy`` (bytes read and
    written, copying an array of eight times the L3 cache, 256 MiB at least), ``dram_store`` (bytes written, filling it
    with the byte 1: some processors have a short cut for zeros), ``l2_read`` and ``l3_read`` (bytes read, summing
    256 MiB a thread out of half the L2 of each thread, half the L3 in all), ``flops`` (float32 multiply-adds, two each:
    four independent polynomials an element, in registers). CUDA: ``dram_copy`` (bytes read and written, CuPy copying
    1 GiB), nothing else.
    """
    known, least_s = _limits.setdefault((threads, device), {}), 0 if smoke else 0.1
    if device == "cuda":
        source = backend.zeros((1 << 12 if smoke else 1 << 28,), np.float32, "cuda")
        target = backend.zeros(source.shape, np.float32, "cuda")

        def copy():
            backend.xp.copyto(target, source)
            backend.synchronize()

        _note(known, "dram_copy", 2 * source.nbytes, copy, least_s)
        return dict(known)
    caches = cache_bytes()
    n = threads * (1 << 16 if smoke else max(8 * caches["L3"], 1 << 28) // 4 // threads)
    source, target, small = np.ones(n, np.float32), np.ones(n, np.float32), np.full(threads * 2048, 0.1, np.float32)
    rounds_small = 1 if smoke else 100
    for _ in range(1 if smoke else 3):
        _note(known, "dram_copy", 2 * source.nbytes, lambda: _copy(source, target, threads), least_s)
        _note(known, "dram_store", target.nbytes, lambda: _store(target.view(np.uint8), threads), least_s)
        for name, size in (("l2_read", threads * caches["L2"] // 2), ("l3_read", caches["L3"] // 2)):
            part = source[: max(1, size // 4)]
            rounds = 1 if smoke else max(1, threads * (1 << 28) // part.nbytes)
            _note(known, name, rounds * part.nbytes, lambda p=part, r=rounds: _read(p, threads, r), least_s)
        flops = rounds_small * small.size * FLOPS_PER_ELEMENT
        _note(known, "flops", flops, lambda: _compute(small, threads, rounds_small), least_s)
    return dict(known)


# ---------------------------------------------------------------- versions


def cache_bytes():
    """Sizes of the data caches of one core, ``{"L1": .., "L2": .., "L3": ..}``; 32 KiB, 1 MiB, 32 MiB where unknown."""
    sizes = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            if (index / "type").read_text().strip() != "Instruction":
                size = int((index / "size").read_text().strip().removesuffix("K")) << 10
                sizes["L" + (index / "level").read_text().strip()] = size
    return sizes


def _output_of(*command):
    """First lines of a command's output, None where it can not run."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return None


def _version(package):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _cpu_name():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment(device="cpu"):
    """Everything that a figure depends on: machine, versions, commit, command, date, seconds since the start."""
    packages = ("numpy", "numba", "numba-cuda", "llvmlite", "scipy", "cupy-cuda12x", "cupy-cuda13x", "cupy")
    versions = {"sparsemax_nb": sparsemax_nb.__version__, "python": platform.python_version()}
    versions |= {name: version for name in packages if (version := _version(name))}
    if "torch" in sys.modules and sys.modules["torch"] is not None:
        versions["torch"] = sys.modules["torch"].__version__
    machine = {"cpu": _cpu_name(), "cores": os.cpu_count(), "caches": cache_bytes()}
    if device == "cuda" and backend.SIMULATOR:
        machine["gpu"] = "Numba's simulator"
    elif device == "cuda":
        query = _output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        runtime = backend.xp.cuda.runtime
        machine["gpu"] = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        machine["driver"] = query.splitlines()[0].split(", ")[-1] if query else str(runtime.driverGetVersion())
        versions["cuda"] = str(runtime.runtimeGetVersion())
    changed = _output_of("git", "status", "--porcelain", "--", "..", ":!results", ":!README.md")
    command = " ".join([f"python -m bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    return {
        "machine": machine,
        "threads": numba.get_num_threads(),
        "versions": versions,
        "commit": _output_of("git", "rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "command": re.sub(r" --json[ =]\S+", "", command),
        "load_average": round(os.getloadavg()[0], 1),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - STARTED, 1),
    }
