"""Registers, shared memory, spills and occupancy of every CUDA kernel, compiled without a GPU.

``python -m tests.contracts.table`` prints the table; ``--json FILE`` writes it as well.
"""

import argparse
import functools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tests import ptx
from tests.catalogue import BUDGETS, recorded

#: Published limits per multiprocessor, by compute capability: warps, blocks, bytes of shared memory.
LIMITS = {(7, 5): (32, 16, 64 << 10), (8, 0): (64, 32, 164 << 10), (9, 0): (64, 32, 228 << 10)}
#: Registers per multiprocessor, and the unit in which a warp gets them.
REGISTERS, REGISTER_UNIT = 65536, 256
#: Bytes of shared memory: the unit in which a block gets it, and what the system reserves per block.
SHARED_UNIT = {(7, 5): 256, (8, 0): 128, (9, 0): 128}
SHARED_RESERVED = {(7, 5): 0, (8, 0): 1024, (9, 0): 1024}


def find_ptxas():
    """The path of ptxas, from PATH or NVIDIA's wheels, or None."""
    found = shutil.which("ptxas")
    try:
        import nvidia
    except ImportError:
        return found
    wheels = (path for root in nvidia.__path__ for path in Path(root).glob("*/bin/ptxas"))
    return found or next(map(str, wheels), None)


@functools.cache
def launches():
    """{name: Launch} of every kernel of the catalogue."""
    return recorded()


def ptx_of(name, cc):
    """The kernel as PTX for compute capability `cc`."""
    kernel, *_, args = launches()[name]
    return ptx.ptx_of(kernel, args, cc)


@functools.cache
def resources(name, cc):
    """What ptxas reports for a kernel: registers per thread, bytes of static shared memory, stack and spills."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx_of(name, cc))
        command = find_ptxas(), "-v", f"-arch=sm_{cc[0]}{cc[1]}", source, "-o", Path(folder) / "kernel.cubin"
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    patterns = {
        "registers": r"Used (\d+) registers",
        "shared": r"(\d+) bytes smem",
        "stack": r"(\d+) bytes stack frame",
        "spills": r"(\d+) bytes spill stores",
    }
    found = {key: re.search(pattern, result.stderr + result.stdout) for key, pattern in patterns.items()}
    return {key: int(match[1]) if match else 0 for key, match in found.items()}


def occupancy(cc, threads, registers, shared):
    """Share of a multiprocessor's warps that can be resident: the smallest that its four limits allow."""
    max_warps, max_blocks, shared_limit = LIMITS[cc]
    warps = -(-threads // 32)
    registers_of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    unit = SHARED_UNIT[cc]
    shared_of_block = -(-(shared + SHARED_RESERVED[cc]) // unit) * unit
    # each of the four schedulers has a quarter of the registers and whole warps
    by_registers = 4 * (REGISTERS // 4 // max(registers_of_warp, 1)) // warps
    blocks = min(max_blocks, max_warps // warps, by_registers, shared_limit // max(shared_of_block, 1))
    return blocks * warps / max_warps


def rows():
    """One dict per kernel and compute capability, for the block with which the kernel is launched by default."""
    for name, launch in launches().items():
        for cc in (cc for cc in LIMITS if cc >= BUDGETS[name].since):
            used, threads = resources(name, cc), int(np.prod(launch.block))
            share = occupancy(cc, threads, used["registers"], used["shared"] + launch.shared)
            yield {
                "kernel": name, "sm": 10 * cc[0] + cc[1], "threads": threads, **used, "dynamic": launch.shared,
                "occupancy": share,
            }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.contracts.table", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    if find_ptxas() is None:
        raise SystemExit("ptxas was not found: pip install nvidia-cuda-nvcc-cu12")
    table = list(rows())
    print(f"{'kernel':<45} sm threads registers shared dynamic spills occupancy")
    for row in table:
        print(
            f"{row['kernel']:<45} {row['sm']:>2} {row['threads']:>7} {row['registers']:>9} {row['shared']:>6} "
            f"{row['dynamic']:>7} {row['spills']:>6} {row['occupancy']:>8.0%}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
