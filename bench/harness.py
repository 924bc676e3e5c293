"""What all benchmark scripts share: options, contestants, the lower bound on the time, and publishing of rows."""

import argparse
from pathlib import Path

import numba

from sparsemax_nb.internals import cuda_kernels, cuda_problem, resolve_device, synchronize

from . import profiling, tables, timing
from .machine import machine_limits
from .peers import Unavailable


def floor(args, work):
    """The minimum time for some work, from rates measured on this machine.

    `work` is ``{description: (amount, name of the limit)}``. Each amount is divided by the measured rate; the largest
    of these times is the floor. Work whose rate is not measured on this device is ignored. Returns None if no rate is
    measured.
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


def offer(check, prepare, *args):
    """A contestant from ``prepare(*args)``, checked by ``check(result, *peer.arrays)``; or its `Unavailable`."""
    try:
        peer = prepare(*args)
    except Unavailable as reason:
        return reason
    return timing.Contestant(peer.run, lambda result: check(result, *peer.arrays), peer.note)


def race(contestants, args, *, repeats=None, warmup=1):
    """Time the available contestants with `timing.compare`; `repeats` defaults to the command line's value."""
    present = {name: c for name, c in contestants.items() if not isinstance(c, Unavailable)}
    sync = synchronize if args.device == "cuda" else None
    return timing.compare(present, repeats or args.repeats, warmup=warmup, sync=sync)


def arguments(benchmark, description, sizes, argv=None, repeats=15):
    """Parse the options of a benchmark: the common ones, and one for each of ``sizes = {name: (full, smoke)}``.

    Sets the number of Numba's threads (competitors use the same number) and resolves the device and the output file.
    `args.parameters` contains the sizes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{benchmark}", description=description)
    cores = numba.config.NUMBA_NUM_THREADS
    parser.add_argument("--threads", type=int, default=min(2, cores), help="threads of Numba and PyTorch (default: 2)")
    parser.add_argument("--repeats", type=int, help=f"timed rounds (default: {repeats}; 2 with --smoke)")
    parser.add_argument(
        "--json",
        type=Path,
        help="file to add the results to (default: bench/results/NAME-DEVICE.json; none with --smoke)",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, to test that the script runs; the times are meaningless"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--profile", metavar="KERNEL", choices=cuda_kernels(),
        help="profile one launch of this CUDA kernel, then exit; for nsys and ncu "
        "(MODULE.KERNEL, e.g. fixed_fan_in.step_wide_kernel)",
    )  # fmt: skip
    for name, (full, smoke) in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, help=f"default: {full:,}; {smoke:,} with --smoke")
    args = parser.parse_args(argv)
    if not 1 <= args.threads <= cores:
        parser.error(
            f"--threads must be between 1 and {cores} (the number of cores that Numba uses), got {args.threads}"
        )
    try:
        args.device = resolve_device(args.device)
    except RuntimeError as error:
        parser.error(str(error))
    if args.profile and args.device != "cuda":
        parser.error(f"--profile {args.profile} needs a CUDA device: {cuda_problem() or 'use --device cuda'}")
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
        args.json = tables.RESULTS / f"{benchmark}-{args.device}.json"
    print(f"{benchmark} on {args.device}, {args.threads} threads" + (", smoke sizes" if args.smoke else ""), flush=True)
    return args


def publish(args, row):
    """Print the table of a row, write the row to the file of --json, and return it."""
    print("\n" + tables.table(row), flush=True)
    if args.json:
        tables.write_rows(args.json, [row])
    return row
