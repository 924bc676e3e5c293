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
from sparsemax_nb.internals import SIMULATOR, synchronize, xp, zeros

HERE = Path(__file__).parent
#: {module: package} whose version counts where it took part.
RIVALS = {
    "torch": "torch", "triton": "triton", "cut_cross_entropy": "cut-cross-entropy", "liger_kernel": "liger-kernel",
    "faiss": "faiss-cpu",
}  # fmt: skip
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
    memory pool, and of what PyTorch's tensors take. What the C library or a pool keeps for reuse is given back first,
    so that it counts when it is used.
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
    """Yields a dict; after the block its "other_cores" says how many cores other processes kept busy meanwhile, on average.

    None where /proc does not say.
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


#: Cores that others may use while a time is taken that counts.
QUIET = 0.1


def is_disturbed(environment):
    """Did other processes use the processor while this was measured?"""
    return (environment.get("other_cores") or 0) > QUIET


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def free_memory():
    """Bytes that a process can still have without swapping; None where /proc does not say."""
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
    for r in range(rounds):  # the start moves, or the compiler would sum once
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
            p, q, r, s = x, x + np.float32(1), x - np.float32(1), -x
            for _ in range(32):
                p, q, r, s = p * x + x, q * x + x, r * x + x, s * x + x
            array[i] = p + q + r + s


FLOPS_PER_ELEMENT = 32 * 4 * 2


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

    Each call measures for about two seconds and returns the best since the process started: other users of a machine
    only ever make it slower. CUDA: ``dram_copy`` (bytes read and written, CuPy copying 1 GiB), nothing else. CPU:

    dram_copy : bytes read and written; `threads` threads copy an array of eight times the L3 cache, 256 MiB at least
    dram_store : bytes written; they fill it with the byte 1 (some processors have a short cut for zeros)
    l3_read : bytes read; they sum half the L3 cache again and again, each its own part
    l2_read : bytes read; one thread sums half its L2 cache again and again; times `threads`, as each core has its own
    flops : float32 multiply-adds, two each; one thread, four independent polynomials an element, in registers; times
        `threads`
    """
    known, least_s = _limits.setdefault((threads, device), {}), 0 if smoke else 0.1
    if device == "cuda":
        source = zeros((1 << 12 if smoke else 1 << 28,), np.float32, "cuda")
        target = zeros(source.shape, np.float32, "cuda")

        def copy():
            xp.copyto(target, source)
            synchronize()

        _note(known, "dram_copy", 2 * source.nbytes, copy, least_s)
        return dict(known)
    caches = cache_bytes()
    n = threads * (1 << 16 if smoke else max(8 * caches["L3"], 1 << 28) // 4 // threads)
    source, target, small = np.ones(n, np.float32), np.ones(n, np.float32), np.full(2048, 0.1, np.float32)
    l2, l3 = source[: caches["L2"] // 8], source[: caches["L3"] // 8]
    rounds = (1, 1, 1) if smoke else (max(1, (1 << 28) // l2.nbytes), max(1, (1 << 28) // l3.nbytes), 100)
    flops = threads * rounds[2] * small.size * FLOPS_PER_ELEMENT
    for _ in range(1 if smoke else 3):
        _note(known, "dram_copy", 2 * source.nbytes, lambda: _copy(source, target, threads), least_s)
        _note(known, "dram_store", target.nbytes, lambda: _store(target.view(np.uint8), threads), least_s)
        _note(known, "l3_read", rounds[1] * l3.nbytes, lambda: _read_parts(l3, threads, rounds[1]), least_s)
        _note(known, "l2_read", threads * rounds[0] * l2.nbytes, lambda: _read(l2, rounds[0]), least_s)
        _note(known, "flops", flops, lambda: _polynomials(small, rounds[2]), least_s)
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
    present = [package for module, package in RIVALS.items() if sys.modules.get(module) is not None]
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
