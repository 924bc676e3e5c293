"""Tier 2: properties of the compiled kernels, checked without a GPU."""

import json
import sys

import pytest

from tests.catalogue import BUDGETS, Budget
from tests.helpers import assert_none

from . import table

NEEDS_PTXAS = pytest.mark.skipif(
    table.find_ptxas() is None, reason="ptxas was not found: pip install nvidia-cuda-nvcc-cu12"
)


def flaws_of_code(text, cc, budget):
    """What PTX for compute capability `cc` holds and must not, or the other way round."""
    arch = f"sm_{cc[0]}{cc[1]}"
    wanted = f".target {arch}", ".entry", *budget.holds
    yield from (f"{arch}: no {instruction}" for instruction in wanted if instruction not in text)
    if not budget.float64:
        yield from (f"{arch}: float64 in {line.strip()}" for line in text.splitlines() if ".f64" in line)


def flaws_of_resources(used, cc, budget):
    """What ptxas says and the budget does not allow."""
    limits = {"registers": budget.registers, "shared": budget.shared, "spills": 0, "stack": 0}
    for name, limit in limits.items():
        if used[name] > limit:
            yield f"sm_{cc[0]}{cc[1]}: {name} {used[name]}, and {limit} at most"


def architectures(name):
    """Those that a kernel is for; on the others a plain one takes its place."""
    return [cc for cc in table.LIMITS if cc >= BUDGETS[name].since]


@pytest.mark.parametrize("name", BUDGETS)
def test_compiles_to_float32_code(name):
    assert architectures(name)
    assert_none(flaw for cc in architectures(name) for flaw in flaws_of_code(table.ptx_of(name, cc), cc, BUDGETS[name]))


@NEEDS_PTXAS
@pytest.mark.parametrize("name", BUDGETS)
def test_stays_within_its_budget(name):
    assert_none(
        flaw for cc in architectures(name) for flaw in flaws_of_resources(table.resources(name, cc), cc, BUDGETS[name])
    )


def test_broken_contracts_are_seen():
    budget = Budget(32, holds=("shfl.sync",))
    text = ".target sm_80\n.entry\nadd.f64 x\n"
    assert list(flaws_of_code(text, (8, 0), budget)) == ["sm_80: no shfl.sync", "sm_80: float64 in add.f64 x"]
    assert list(flaws_of_code(text, (9, 0), Budget(32, float64=True))) == ["sm_90: no .target sm_90"]
    used = {"registers": 33, "shared": 1, "spills": 4, "stack": 8}
    assert len(list(flaws_of_resources(used, (8, 0), budget))) == 4
    assert not list(flaws_of_resources(used | {"spills": 0, "stack": 0}, (8, 0), Budget(40, shared=1)))


@pytest.mark.parametrize(
    ("cc", "threads", "registers", "shared", "share"),
    [
        ((8, 0), 256, 32, 0, 1),  # 64 warps
        ((8, 0), 256, 33, 0, 48 / 64),  # 40 registers after rounding: 12 warps a scheduler
        ((9, 0), 128, 72, 0, 28 / 64),
        ((9, 0), 1024, 65, 0, 0),  # does not fit
        ((7, 5), 128, 64, 0, 1),  # 32 warps fill it
        ((7, 5), 32, 16, 0, 16 / 32),  # 16 blocks at most
        ((8, 0), 32, 16, 0, 32 / 64),  # 32 blocks at most
        ((9, 0), 64, 32, 48 << 10, 8 / 64),  # four blocks of 49 KiB in 228 KiB
    ],
)
def test_occupancy(cc, threads, registers, shared, share):
    assert table.occupancy(cc, threads, registers, shared) == share


@NEEDS_PTXAS
def test_table_lists_its_kernels_for_every_sm(monkeypatch, capsys, tmp_path):
    names = "bfloat16.widen_kernel", "lstm.cell_kernel", "sparse_experts.gradient_of_rows_mma_kernel"
    launches = {name: table.launches()[name] for name in names}
    monkeypatch.setattr(table, "launches", lambda: launches)
    monkeypatch.setattr(sys, "argv", ["table", "--json", str(tmp_path / "table.json")])
    table.main()
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert [(row["kernel"], row["sm"]) for row in written] == [
        (name, sm) for name in names for sm in (75, 80, 90) if divmod(sm, 10) >= BUDGETS[name].since
    ]
    assert len(written) == 8
    assert len(printed.splitlines()) == 9
    assert all(0 < row["occupancy"] <= 1 for row in written)
