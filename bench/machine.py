"""Properties of the machine: memory in use, measured limits, hardware and versions."""

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
from sparsemax_nb.internals import SIMULATOR, synchronize, xp, zeros

HERE = Path(__file__).parent
#: {module: package} of the optional competitors; a version is recorded if the module was imported.
OPTIONAL_PACKAGES = {
    "torch": "torch", "triton": "triton", "cut_cross_entropy": "cut-cross-entropy", "liger_kernel": "liger-kernel",
    "faiss": "faiss-cpu",
}  # fmt: skip
STARTED = time.perf_counter()


# ---------------------------------------------------------------- memory


@contextlib.contextmanager
def memory_growth(device="cpu"):
    """Measure the peak growth of memory inside a ``with`` block; after it, the yielded dict has "bytes".

    On the CPU, the kernel's high-water mark of the process (VmHWM) is reset before the block. A sampling thread would
    not work: compiled code holds the interpreter lock. "bytes" is None if /proc is not available. On CUDA, the growth
    of CuPy's memory pool and of PyTorch's allocations is measured. Memory that the C library or a pool keeps for reuse
    is released first, so that it counts when it is used again.
    """
    growth = {"bytes": None}
    if device == "cuda" and not SIMULATOR:
        pool, torch = xp.get_default_memory_pool(), sys.modules.get("torch")
        theirs = torch.cuda if torch and torch.cuda.is_available() else None
        pool.free_all_blocks()
        before = pool.used_bytes()
        if theirs:
            theirs.empty_cache()
            theirs.reset_peak_memory_stats()
            before += theirs.memory_allocated()
        yield growth
        growth["bytes"] = pool.total_bytes() + (theirs.max_memory_allocated() if theirs else 0) - before
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


@contextlib.contextmanager
def other_work():
    """Measure how many cores other processes use during a ``with`` block, on average.

    After the block, the yielded dict has "other_cores"; None if /proc is not available.
    """

    def seconds():
        try:
            user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        except (OSError, ValueError):
            return None
        own = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own

    found, before, start = {"other_cores": None}, seconds(), time.perf_counter()
    yield found
    after, wall = seconds(), time.perf_counter() - start
    if before is not None and after is not None:
        found["other_cores"] = round(max(0.0, after - before) / max(wall, 1e-9), 2)


#: A measurement is disturbed if other processes use more cores than this: a tenth of a core can change a time by 10 %.
MAX_OTHER_CORES = 0.1


def is_disturbed(environment):
    """Whether other processes used the processor during this measurement."""
    return (environment.get("other_cores") or 0) > MAX_OTHER_CORES


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def free_memory():
    """Bytes that are available without swapping; None if /proc is not available."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return None


# ---------------------------------------------------------------- the machine's limits


@numba.njit(fastmath=True, cache=True)
def _sum(array):
    total = np.float32(0)
    for i in range(array.size):
        total += array[i]
    return total


@numba.njit(cache=True)
def _read(array, rounds):
    total = np.float32(0)
    for r in range(rounds):  # a different start in each round, or the compiler would sum only once
        total += _sum(array[r % 2 :])
    return total


@numba.njit(parallel=True, cache=True)
def _read_parts(array, parts, rounds):
    n = array.size // parts
    totals = np.zeros(parts, np.float32)
    for part in prange(parts):
        totals[part] = _read(array[part * n : (part + 1) * n], rounds)
    return totals


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


@numba.njit(fastmath={"contract"}, cache=True)
def _polynomials(array, rounds):
    for _ in range(rounds):
        for i in range(array.size):
            x = array[i]
            # four independent chains hide the latency of a multiply-add
            p, q, r, s = x, x + np.float32(1), x - np.float32(1), -x
            for _ in range(32):
                p, q, r, s = p * x + x, q * x + x, r * x + x, s * x + x
            array[i] = p + q + r + s


#: Of `_polynomials`: 32 iterations of four multiply-adds.
FLOPS_PER_ELEMENT = 32 * 4 * 2

_limits = {}  # the best rates measured by this process, {(threads, device): {name: rate}}


def _keep_best(known, name, amount, run, min_s):
    """Call `run` once untimed, then at least three times and for `min_s` seconds; keep the best rate in `known`."""
    run()
    times, end = [], time.perf_counter() + min_s
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    known[name] = max(known.get(name, 0), amount / min(times))


def machine_limits(threads, device="cpu", smoke=False):
    """Measure the best rates of this machine with small kernels of our own, in amounts per second.

    A call takes about two seconds and returns the best rates since the process started: other users of a machine can
    only make it slower. On CUDA there is only ``dram_copy``: bytes read and written while CuPy copies 1 GiB. On the
    CPU:

    dram_copy : bytes read and written while `threads` threads copy an array of 8 times the L3 cache, at least 256 MiB
    dram_store : bytes written while they fill this array with the byte 1 (some processors have a fast path for zeros)
    l3_read : bytes read while each thread repeatedly sums its part of half the L3 cache
    l2_read : bytes read while one thread repeatedly sums half its L2 cache, times `threads`: each core has its own
    flops : float32 operations of one thread, times `threads`: four independent polynomials in registers; a
        multiply-add counts as two
    """
    known, min_s = _limits.setdefault((threads, device), {}), 0 if smoke else 0.1
    if device == "cuda":
        source = zeros((1 << 12 if smoke else 1 << 28,), np.float32, "cuda")
        target = zeros(source.shape, np.float32, "cuda")

        def copy():
            xp.copyto(target, source)
            synchronize()

        _keep_best(known, "dram_copy", 2 * source.nbytes, copy, min_s)
        return dict(known)
    caches = cache_bytes()
    n = threads * (1 << 16 if smoke else max(8 * caches["L3"], 1 << 28) // 4 // threads)
    source, target, small = np.ones(n, np.float32), np.ones(n, np.float32), np.full(2048, 0.1, np.float32)
    l2, l3 = source[: caches["L2"] // 8], source[: caches["L3"] // 8]
    rounds = (1, 1, 1) if smoke else (max(1, (1 << 28) // l2.nbytes), max(1, (1 << 28) // l3.nbytes), 100)
    flops = threads * rounds[2] * small.size * FLOPS_PER_ELEMENT
    for _ in range(1 if smoke else 3):
        _keep_best(known, "dram_copy", 2 * source.nbytes, lambda: _copy(source, target, threads), min_s)
        _keep_best(known, "dram_store", target.nbytes, lambda: _store(target.view(np.uint8), threads), min_s)
        _keep_best(known, "l3_read", rounds[1] * l3.nbytes, lambda: _read_parts(l3, threads, rounds[1]), min_s)
        _keep_best(known, "l2_read", threads * rounds[0] * l2.nbytes, lambda: _read(l2, rounds[0]), min_s)
        _keep_best(known, "flops", flops, lambda: _polynomials(small, rounds[2]), min_s)
    return dict(known)


# ---------------------------------------------------------------- versions


def cache_bytes():
    """Sizes of the data caches, ``{"L1": .., "L2": .., "L3": ..}``; 32 KiB, 1 MiB and 32 MiB if unknown."""
    sizes = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            if (index / "type").read_text().strip() != "Instruction":
                size = int((index / "size").read_text().strip().removesuffix("K")) << 10
                sizes["L" + (index / "level").read_text().strip()] = size
    return sizes


def _output_of(*command):
    """Output of a command; None if it fails."""
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
    """What a measurement depends on: machine, versions, commit, command, date, seconds since the start."""
    packages = ("numpy", "numba", "numba-cuda", "llvmlite", "scipy", "cupy-cuda12x", "cupy-cuda13x", "cupy")
    versions = {"sparsemax_nb": sparsemax_nb.__version__, "python": platform.python_version()}
    versions |= {name: version for name in packages if (version := _version(name))}
    present = [package for module, package in OPTIONAL_PACKAGES.items() if sys.modules.get(module) is not None]
    versions |= {package: version for package in present if (version := _version(package))}
    machine = {"cpu": _cpu_name(), "cores": os.cpu_count(), "caches": cache_bytes()}
    if device == "cuda" and SIMULATOR:
        machine["gpu"] = "Numba's simulator"
    elif device == "cuda":
        query = _output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        runtime = xp.cuda.runtime
        machine["gpu"] = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        machine["driver"] = query.splitlines()[0].split(", ")[-1] if query else str(runtime.driverGetVersion())
        versions["cuda"] = str(runtime.runtimeGetVersion())
    changed = _output_of(
        "git", "status", "--porcelain", "--", "..", ":!results", ":!README.md", ":!../README.md", ":!*.png"
    )
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
