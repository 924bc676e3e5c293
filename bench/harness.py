"""What every benchmark shares: checked timings in turn, peak memory, measured machine limits, and rows of results.

A row is ``{benchmark, parameters, contestants: {name: {median_s, q10_s, q90_s, min_s, ratio_to_ours, ...}}, floor,
targets, memory, environment}``; ratios refer to the contestant "ours". One row is one run on one machine.
"""

import argparse
import contextlib
import ctypes
import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, NamedTuple

import numba
import numpy as np
from numba import prange

import sparsemax_nb
from sparsemax_nb.core import backend

from .peers import Unavailable

HERE = Path(__file__).parent
RESULTS = HERE / "results"
STARTED = time.perf_counter()


# ---------------------------------------------------------------- timing


class Contestant(NamedTuple):
    """`run()` computes and returns a result, `check(result)` raises where it is wrong, `note` says how it was done."""

    run: Callable
    check: Callable
    note: str = ""


class Timing(NamedTuple):
    """Seconds of every timed call, in order, and of the first call (compile time included), which is not among them."""

    name: str
    first_call_s: float
    seconds: list

    def summary(self):
        """Median, 10 % and 90 % quantile and minimum, in seconds."""
        q10, median, q90 = np.quantile(self.seconds, (0.1, 0.5, 0.9)).tolist()
        low = min(self.seconds)
        return {"median_s": median, "q10_s": q10, "q90_s": q90, "min_s": low, "first_call_s": self.first_call_s}


def _timed(run, sync):
    start = time.perf_counter()
    result = run()
    if sync is not None:
        sync()
    return time.perf_counter() - start, result


def measure(name, run, check, *, repeats, warmup=1, sync=None):
    """Time one contestant: its first call is checked and recorded apart, `warmup` more are thrown away."""
    return compare({name: Contestant(run, check)}, repeats, warmup=warmup, sync=sync)[name]


def compare(contestants, rounds, *, warmup=1, sync=None, pause=0.01):
    """Time contestants in turn, A B C A B C ..., so that a drifting machine hurts all alike; ``{name: Timing}``.

    Every result is checked before anything is timed. `sync` waits for the device; its time counts. Before each call the
    process sleeps `pause` seconds: a library's idle worker threads go on spinning for a while and would take time from
    the next contestant.
    """
    timings = {}
    for name, contestant in contestants.items():
        first, result = _timed(contestant.run, sync)
        contestant.check(result)
        for _ in range(warmup):
            _timed(contestant.run, sync)
        timings[name] = Timing(name, first, [])
    for _ in range(rounds):
        for name, contestant in contestants.items():
            time.sleep(pause)
            timings[name].seconds.append(_timed(contestant.run, sync)[0])
    return timings


def ratio(timing, ours):
    """How many times as long as `ours` it takes: the median of the rounds' ratios and their quantiles."""
    q10, median, q90 = np.quantile(np.divide(timing.seconds, ours.seconds), (0.1, 0.5, 0.9)).tolist()
    return {"ratio_to_ours": median, "ratio_q10": q10, "ratio_q90": q90}


def fastest(runs, tries=3):
    """Name of the fastest of ``{name: run}``, called in turn, by its best time (after one call that does not count)."""
    timings = compare({name: Contestant(run, lambda _: None) for name, run in runs.items()}, tries, warmup=0)
    return min(timings, key=lambda name: min(timings[name].seconds))


def require(condition, message):
    """The check that benchmarks use: AssertionError with `message` where the condition does not hold."""
    if not condition:
        raise AssertionError(f"wrong result, nothing was timed: {message}")


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


def _note(known, name, amount, run, tries=3):
    """One call that does not count, then the best of `tries`; kept in `known` where it beats what is there."""
    run()
    known[name] = max([known.get(name, 0), *(amount / _timed(run, None)[0] for _ in range(tries))])


def machine_limits(threads, device="cpu", smoke=False):
    """What the machine can do at best, measured by small kernels of our own; per second.

    Each call measures three rounds again and returns the best since the process started: other users of a machine only
    ever make it slower. CPU, with `threads` threads that each own a part of the array: ``dram_copy`` (bytes read and
    written, copying an array of eight times the L3 cache, 256 MiB at least), ``dram_store`` (bytes written, filling it
    with the byte 1: some processors have a short cut for zeros), ``l2_read`` and ``l3_read`` (bytes read, summing
    512 MiB a thread out of half the L2 of each thread, half the L3 in all), ``flops`` (float32 multiply-adds, two each:
    four independent polynomials an element, in registers). CUDA: ``dram_copy`` (bytes read and written, CuPy copying
    1 GiB), nothing else.
    """
    known = _limits.setdefault((threads, device), {})
    if device == "cuda":
        source = backend.zeros((1 << 12 if smoke else 1 << 28,), np.float32, "cuda")
        target = backend.zeros(source.shape, np.float32, "cuda")

        def copy():
            backend.xp.copyto(target, source)
            backend.synchronize()

        _note(known, "dram_copy", 2 * source.nbytes, copy, 9)
        return known
    caches = cache_bytes()
    n = threads * (1 << 16 if smoke else max(8 * caches["L3"], 1 << 28) // 4 // threads)
    source, target, small = np.ones(n, np.float32), np.ones(n, np.float32), np.full(threads * 2048, 0.1, np.float32)
    for _ in range(1 if smoke else 3):
        _note(known, "dram_copy", 2 * source.nbytes, lambda: _copy(source, target, threads))
        _note(known, "dram_store", target.nbytes, lambda: _store(target.view(np.uint8), threads))
        for name, size in (("l2_read", threads * caches["L2"] // 2), ("l3_read", caches["L3"] // 2)):
            part = source[: max(1, size // 4)]
            rounds = 1 if smoke else max(1, threads * (1 << 29) // part.nbytes)
            _note(known, name, rounds * part.nbytes, lambda p=part, r=rounds: _read(p, threads, r))
        rounds = 1 if smoke else 200
        _note(known, "flops", rounds * small.size * FLOPS_PER_ELEMENT, lambda r=rounds: _compute(small, threads, r))
    return dict(known)


def floor(args, work):
    """The least time that ``{what: (amount, name of the limit)}`` takes: each amount over its rate, the largest counts.

    Work whose limit is not measured on this device is left out.
    """
    limits = machine_limits(args.threads, args.device, args.smoke)
    parts = {
        what: {"amount": float(amount), "unit": "FLOP" if name == "flops" else "B", "limit": limits[name]}
        for what, (amount, name) in work.items()
        if name in limits
    }
    seconds = {what: part["amount"] / part["limit"] for what, part in parts.items()}
    bound = max(seconds, key=seconds.get)
    return {"seconds": seconds[bound], "bound": bound, "parts": parts, "limits": limits}


# ---------------------------------------------------------------- rows of results


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
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - STARTED, 1),
    }


def make_row(benchmark, parameters, contestants, timings, *, floor=None, targets=None, memory=None, device="cpu"):
    """A row of results. Contestants that are an `Unavailable` are kept with their reason.

    `targets` is ``{rival: (least ratio wanted, ratio aimed at)}``, `memory` is
    ``{contestant: {"held": bytes, "growth": bytes}}``.
    """
    entries = {}
    for name, contestant in contestants.items():
        if isinstance(contestant, Unavailable):
            entries[name] = {"unavailable": str(contestant)}
        else:
            entries[name] = timings[name].summary() | ratio(timings[name], timings["ours"]) | {"note": contestant.note}
    return {
        "benchmark": benchmark,
        "parameters": parameters | {"device": device, "repeats": len(timings["ours"].seconds)},
        "contestants": entries,
        "floor": floor,
        "targets": targets or {},
        "memory": memory or {},
        "environment": environment(device),
    }


def _identity(row):
    return json.dumps(
        [row["benchmark"], row["parameters"], row["environment"]["machine"], row["environment"]["threads"]],
        sort_keys=True,
    )


def write_rows(path, rows):
    """Add rows to a JSON file, in place of those of the same benchmark, parameters and machine. Atomic."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_text()) if path.exists() else []
    new = {_identity(row) for row in rows}
    kept = [row for row in old if _identity(row) not in new]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(kept + list(rows), file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# ---------------------------------------------------------------- the frame of a script


def offer(check, prepare, *args):
    """The contestant that a peer prepares, checked by ``check(result, *arrays)``, or the `Unavailable` that it raised."""
    try:
        peer = prepare(*args)
    except Unavailable as reason:
        return reason
    return Contestant(peer.run, lambda result: check(result, *peer.arrays), peer.note)


def race(contestants, args):
    """`compare` for the contestants that are available; sync and rounds from the command line."""
    present = {name: c for name, c in contestants.items() if not isinstance(c, Unavailable)}
    return compare(present, args.repeats, sync=backend.synchronize if args.device == "cuda" else None)


def arguments(benchmark, description, sizes, argv=None, repeats=15):
    """The options of a benchmark: the common ones and one for each of ``sizes = {name: (full, smoke)}``.

    Sets Numba's threads (peers take theirs from it) and resolves device and file. `args.parameters` holds the sizes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{benchmark}", description=description)
    cores = numba.config.NUMBA_NUM_THREADS
    parser.add_argument("--threads", type=int, default=min(2, cores), help="threads of Numba and PyTorch (default: 2)")
    parser.add_argument("--repeats", type=int, help=f"timed rounds (default: {repeats}; 2 with --smoke)")
    parser.add_argument(
        "--json", type=Path, help="file to add the rows to (default: bench/results/NAME-DEVICE.json, none with --smoke)"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for name, (full, smoke) in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, help=f"default: {full:,}; {smoke:,} with --smoke")
    args = parser.parse_args(argv)
    if not 1 <= args.threads <= cores:
        parser.error(f"--threads must lie between 1 and {cores}, the cores that Numba sees, got {args.threads}")
    try:
        args.device = backend.resolve_device(args.device)
    except RuntimeError as error:
        parser.error(str(error))
    numba.set_num_threads(args.threads)
    args.parameters = {}
    for name, defaults in sizes.items():
        if getattr(args, name) is None:
            setattr(args, name, defaults[args.smoke])  # defaults: (full, smoke)
        args.parameters[name] = getattr(args, name)
    args.repeats = args.repeats or (2 if args.smoke else repeats)
    if args.json is None and not args.smoke:
        args.json = RESULTS / f"{benchmark}-{args.device}.json"
    print(f"{benchmark} on {args.device}, {args.threads} threads" + (", smoke sizes" if args.smoke else ""), flush=True)
    return args


def publish(args, row):
    """Print a row's table and write it where the command line says; returns it."""
    from .report import table

    print("\n" + table(row), flush=True)
    if args.json:
        write_rows(args.json, [row])
    return row
