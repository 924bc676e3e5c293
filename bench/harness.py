"""The frame of a benchmark script: its options, its contestants, the floor, and where its row goes."""

import argparse
from pathlib import Path

import numba

from sparsemax_nb.internals import cuda_kernels, cuda_problem, resolve_device, synchronize

from . import profiling, tables, timing
from .machine import machine_limits
from .peers import Unavailable


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


def offer(check, prepare, *args):
    """The contestant that a peer prepares, checked by ``check(result, *arrays)``, or the `Unavailable` raised."""
    try:
        peer = prepare(*args)
    except Unavailable as reason:
        return reason
    return timing.Contestant(peer.run, lambda result: check(result, *peer.arrays), peer.note)


def race(contestants, args, *, repeats=None, warmup=1):
    """`compare` for the contestants that are available; sync, and rounds where not given, from the command line."""
    present = {name: c for name, c in contestants.items() if not isinstance(c, Unavailable)}
    sync = synchronize if args.device == "cuda" else None
    return timing.compare(present, repeats or args.repeats, warmup=warmup, sync=sync)


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
        "--profile", metavar="KERNEL", choices=cuda_kernels(),
        help="profile one launch of this CUDA kernel (MODULE.KERNEL, e.g. fixed_fan_in.step_wide_kernel) and stop; for nsys and ncu",
    )  # fmt: skip
    for name, (full, smoke) in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, help=f"default: {full:,}; {smoke:,} with --smoke")
    args = parser.parse_args(argv)
    if not 1 <= args.threads <= cores:
        parser.error(f"--threads must lie between 1 and {cores}, the cores that Numba sees, got {args.threads}")
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
    """Print a row's table and write it where the command line says; returns it."""
    print("\n" + tables.table(row), flush=True)
    if args.json:
        tables.write_rows(args.json, [row])
    return row
