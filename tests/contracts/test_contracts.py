"""Tier 2: properties of the compiled kernels, checked without a GPU."""

import json
import sys

import pytest

from tests.catalogue import BUDGETS

from . import table

EACH_KERNEL = pytest.mark.parametrize("name", BUDGETS)
EACH_SM = pytest.mark.parametrize("cc", table.LIMITS, ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
NEEDS_PTXAS = pytest.mark.skipif(
    table.find_ptxas() is None, reason="ptxas was not found: pip install nvidia-cuda-nvcc-cu12"
)


@EACH_KERNEL
@EACH_SM
def test_compiles_to_float32_code(name, cc):
    if cc < BUDGETS[name].since:
        pytest.skip(f"needs compute capability {BUDGETS[name].since}; a plain kernel takes its place")
    ptx = table.ptx_of(name, cc)
    for instruction in BUDGETS[name].holds:
        assert instruction in ptx
    assert f".target sm_{cc[0]}{cc[1]}" in ptx
    assert ".entry" in ptx
    assert BUDGETS[name].float64 or ".f64" not in ptx, [line for line in ptx.splitlines() if ".f64" in line][:5]


@NEEDS_PTXAS
@EACH_KERNEL
@EACH_SM
def test_stays_within_its_budget(name, cc):
    if cc < BUDGETS[name].since:
        pytest.skip(f"needs compute capability {BUDGETS[name].since}; a plain kernel takes its place")
    used, budget = table.resources(name, cc), BUDGETS[name]
    assert used["registers"] <= budget.registers
    assert used["shared"] <= budget.shared
    assert used["spills"] == used["stack"] == 0


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
def test_table_lists_every_kernel_for_every_sm(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["table", "--json", str(tmp_path / "table.json")])
    table.main()
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    wanted = {(name, sm) for name, budget in BUDGETS.items() for sm in (75, 80, 90) if divmod(sm, 10) >= budget.since}
    assert {(row["kernel"], row["sm"]) for row in written} == wanted
    assert len(printed.splitlines()) == len(written) + 1
    assert all(0 < row["occupancy"] <= 1 for row in written)
