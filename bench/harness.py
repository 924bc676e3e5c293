"""What every benchmark shares: checked timings in turn, the floor, rows of results and the frame of a script.

A row is ``{benchmark, parameters, contestants: {name: {median_s, q10_s, q90_s, min_s, ratio_to_ours, ...}}, floor,
targets, memory, environment}``; ratios refer to the contestant "ours". One row is one run on one machine.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from sparsemax_nb.core import backend

from . import profiling
from .machine import HERE, environment, machine_limits
from .peers import Unavailable

RESULTS = HERE / "results"


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


def require_close(name, got, want, tolerance):
    """The same for numbers: to `tolerance` times the largest wanted, which must not be zero."""
    error, scale = np.abs(got - want).max(), np.abs(want).max()
    require(error <= tolerance * scale and scale > 0, f"{name} is off by {error:.3g} of {scale:.3g}")


# ---------------------------------------------------------------- rows of results


def floor(args, work):
    """The least time that ``{what: (amount, name of the limit)}`` takes: each amount over its rate, the largest counts.

    Work whose limit is not measured on this device is left out; None where nothing else is left.
    """
    limits = machine_limits(args.threads, args.device, args.smoke)
    parts = {
        what: {"amount": float(amount), "unit": "FLOP" if name == "flops" else "B", "limit": limits[name]}
        for what, (amount, name) in work.items()
        if name in limits
    }
    seconds = {what: part["amount"] / part["limit"] for what, part in parts.items()}
    if not seconds:
        return None
    bound = max(seconds, key=seconds.get)
    return {"seconds": seconds[bound], "bound": bound, "parts": parts, "limits": limits}


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


def write_rows(path, rows, keep=True):
    """Add rows to a JSON file, in place of those of the same benchmark, parameters and machine, or of all. Atomic."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_text()) if keep and path.exists() else []
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


def new_panels(n, width, height, **settings):
    """A figure, and n axes of `width` x `height` inches side by side, with a grid and without a frame."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(n * width, height), layout="constrained", squeeze=False, **settings)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def write_picture(figure, path, dpi=150):
    """Save and close a figure of matplotlib; the file is replaced in one move."""
    from matplotlib import pyplot as plt

    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=dpi)
    plt.close(figure)
    temporary.replace(path)


# ---------------------------------------------------------------- the frame of a script


def offer(check, prepare, *args):
    """The contestant that a peer prepares, checked by ``check(result, *arrays)``, or the `Unavailable` raised."""
    try:
        peer = prepare(*args)
    except Unavailable as reason:
        return reason
    return Contestant(peer.run, lambda result: check(result, *peer.arrays), peer.note)


def race(contestants, args, *, repeats=None, warmup=1):
    """`compare` for the contestants that are available; sync, and rounds where not given, from the command line."""
    present = {name: c for name, c in contestants.items() if not isinstance(c, Unavailable)}
    sync = backend.synchronize if args.device == "cuda" else None
    return compare(present, repeats or args.repeats, warmup=warmup, sync=sync)


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
    parser.add_argument(
        "--profile", metavar="KERNEL", choices=profiling.kernels(),
        help="profile one launch of this CUDA kernel (MODULE.KERNEL, e.g. fixed_fan_in.step_wide_kernel) and stop; for nsys and ncu",
    )  # fmt: skip
    for name, (full, smoke) in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, help=f"default: {full:,}; {smoke:,} with --smoke")
    args = parser.parse_args(argv)
    if not 1 <= args.threads <= cores:
        parser.error(f"--threads must lie between 1 and {cores}, the cores that Numba sees, got {args.threads}")
    try:
        args.device = backend.resolve_device(args.device)
    except RuntimeError as error:
        parser.error(str(error))
    if args.profile and args.device != "cuda":
        parser.error(f"--profile {args.profile} needs a CUDA device: {backend.cuda_problem() or 'use --device cuda'}")
    if args.profile:
        profiling.profile(args.profile)
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
