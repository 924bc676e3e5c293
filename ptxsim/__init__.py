"""ptxsim: run the PTX of numba.cuda kernels on a machine without a GPU."""

import copy
import time
from dataclasses import dataclass, field

import numpy as np

from . import counters as _counters
from .compile import address as host_address
from .compile import (
    flatten_argument,
    host_ranges,
    kernel_ptx,
    ptxas_resources,
    signature_of,
)
from .counters import CHIPS, Counters, lower_bound
from .execute import Finding, Machine
from .parse import flatten, link, parse
from .translate import Program

__all__ = ["CHIPS", "Counters", "Finding", "KernelError", "Result", "launch", "lower_bound", "run_ptx"]

BATCH_LANES = 16384
_programs, _resources = {}, {}


class KernelError(AssertionError):
    """Raised by Result.raise_on_error."""


@dataclass
class Result:
    """Outcome of a launch: counters, findings, resources and the PTX that ran."""

    name: str
    grid: tuple
    block: tuple
    counters: Counters
    errors: list
    warnings: list
    resources: dict | None
    ptx: str
    seconds: float
    accesses: list = field(default_factory=list, repr=False)

    def raise_on_error(self):
        if self.errors:
            raise KernelError("\n".join(str(e) for e in self.errors))
        return self

    def report(self, chip="H200", **rates):
        return _counters.report(self, chip, **rates)

    def worst_accesses(self, limit=3):
        """The global accesses that touch the most sectors beyond the fewest possible."""
        rows = []
        for a in self.accesses:
            ideal = -(-a.lanes * a.size // 32) if a.requests else 0
            if a.sectors > 1.5 * ideal + a.requests:
                where = f"{a.instr.loc[0]}:{a.instr.loc[1]}" if a.instr.loc else "no source line"
                text = (
                    f"{where} (PTX line {a.instr.line}) {a.instr.op}: {a.sectors / a.requests:.2f} sectors per request"
                )
                rows.append((a.sectors - ideal, text))
        return [text for _, text in sorted(rows, reverse=True)[:limit]]


def _triple(value):
    value = tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)
    return value + (1,) * (3 - len(value))


def launch(
    kernel, grid, block, args, *, cc=(9, 0), dynamic_shared=0, check=True, max_blocks=None,
    signature=None, l2_bytes=50 << 20, batch_lanes=BATCH_LANES, max_steps=20_000_000,
):  # fmt: skip
    """Compile a numba.cuda kernel to PTX and execute it; arrays are modified in place.

    kernel: a @cuda.jit dispatcher or a plain kernel function. args: NumPy arrays and
    scalars; `signature` (Numba types) overrides the inferred types. max_blocks runs an
    evenly spaced sample of the grid and scales the counters.
    """
    types = tuple(getattr(signature, "args", signature) or signature_of(args))
    modules = kernel_ptx(kernel, types, tuple(cc))
    result = run_ptx(
        modules, grid, block, args, types, cc=cc, dynamic_shared=dynamic_shared, check=check,
        max_blocks=max_blocks, l2_bytes=l2_bytes, batch_lanes=batch_lanes, max_steps=max_steps,
    )  # fmt: skip
    result.name = getattr(kernel, "py_func", kernel).__name__
    return result


def run_ptx(
    modules, grid, block, args, types=None, *, cc=(9, 0), dynamic_shared=0, check=True, max_blocks=None,
    l2_bytes=50 << 20, batch_lanes=BATCH_LANES, max_steps=20_000_000,
):  # fmt: skip
    """Execute PTX text (or a list of modules) whose parameters follow Numba's kernel layout."""
    modules = [modules] if isinstance(modules, str) else list(modules)
    key = tuple(modules)
    if key not in _programs:
        _programs[key] = Program(flatten(link([parse(m) for m in modules])))
        _resources[key] = ptxas_resources(modules, tuple(cc))
    program, grid, block = _programs[key], _triple(grid), _triple(block)
    if not 0 < np.prod(block) <= 1024:
        raise ValueError(f"a block has at most 1024 threads, got {block}")
    started = time.perf_counter()
    machine = Machine(program, grid, block, dynamic_shared, check, l2_bytes, Counters(), max_steps)
    _pass_arguments(machine, args, types or signature_of(args))
    total = int(np.prod(grid))
    chosen = np.arange(total)
    if max_blocks is not None and max_blocks < total:
        chosen = np.unique(np.linspace(0, total - 1, max_blocks).round().astype(np.int64))
    per_lane = program.local_size + (machine.shared_stride / machine.padded) * 5
    lanes = min(batch_lanes, int(256e6 / max(1.0, per_lane)))
    step = max(1, lanes // machine.padded)
    with np.errstate(all="ignore"):
        for start in range(0, len(chosen), step):
            machine.start_batch(chosen[start : start + step])
            machine.run_batch()
    counters = machine.counters
    counters.add_blocks(program.blocks, machine.exec_warps, machine.exec_lanes)
    counters.blocks_total, counters.blocks_executed = total, len(chosen)
    if len(chosen) < total:
        counters.scale(total / len(chosen))
    _unique_bytes(machine, total / len(chosen))
    findings = list(machine.findings.values())
    return Result(
        program.name, grid, block, counters,
        [f for f in findings if f.severity == "error"], [f for f in findings if f.severity != "error"],
        _resources[key], "\n".join(modules), time.perf_counter() - started,
        [copy.copy(a) for a in program.accesses],
    )  # fmt: skip


def _pass_arguments(machine, args, types):
    """Place the arrays in simulated global memory and build the parameter values."""
    placed = []
    for low, high, name, writeable, skew in host_ranges(args):
        placed.append((low, high, machine.add_host_memory(name, low, high - low, writeable, skew)))

    def address_of(array):
        at = host_address(array)
        for low, high, alloc in placed:
            if low <= at < high or at == low:
                return alloc.low + at - low
        raise AssertionError("array was not placed")

    flat = [b for v, t in zip(args, types, strict=True) for b in flatten_argument(v, t, address_of)]
    params = machine.program.flat.params
    if [len(b) for b in flat] != [p.size for p in params]:
        raise TypeError(f"arguments give {len(flat)} parameters, the kernel has {len(params)}")
    data = bytearray(machine.program.param_size)
    for value, param in zip(flat, params, strict=True):
        at = machine.program.param_offsets[param.name]
        data[at : at + len(value)] = value
    machine.params = [
        np.frombuffer(bytes(data), np.dtype(dtype), 1, offset) for (offset, dtype) in machine.program.param_slots
    ]


def _unique_bytes(machine, factor):
    """Count the bytes touched; those of a sample of blocks are scaled, up to the whole array.

    Arrays that blocks share would otherwise count once per block, also in the modelled DRAM
    traffic of a sample; when everything fits the cache that traffic gets the same limit.
    """
    granule, c = machine.program.global_granule, machine.counters
    touched = [a for a in machine.allocations[1:] if a.read_mask is not None]
    limit = {"read": 0, "write": 0}
    for alloc in touched:
        parts = ("read", alloc.read_mask, c.global_load), ("write", alloc.write_mask, c.global_store)
        for kind, mask, traffic in parts:
            where = np.flatnonzero(mask) * granule
            traffic.unique_bytes += min(round(granule * len(where) * factor), alloc.base + alloc.size - alloc.low)
            sectors = np.count_nonzero(np.diff(where >> 5, prepend=-1))
            limit[kind] += 32 * min(round(sectors * factor), -(-alloc.size // 32))
    if factor > 1 and sum(a.size for a in touched) <= 32 * machine.l2_sectors:
        c.dram_read_bytes = min(c.dram_read_bytes, limit["read"])
        c.dram_write_bytes = min(c.dram_write_bytes, limit["write"])
