"""Rows of results: create them, store them in bench/results/*.json, and format them as Markdown.

A row is ``{benchmark, parameters, contestants: {name: {median_s, q10_s, q90_s, min_s, ratio_to_ours, ...}}, floor,
targets, memory, environment}``. Ratios are relative to the contestant "ours". One row is one run on one machine.
"""

import json
import os
import tempfile
from pathlib import Path

from .machine import HERE, environment
from .peers import Unavailable
from .timing import ratio

RESULTS = HERE / "results"


def make_row(benchmark, parameters, contestants, timings, *, floor=None, targets=None, memory=None, device="cpu"):
    """Create a row of results. A contestant that is `Unavailable` is recorded with the reason.

    `targets` is ``{competitor: (minimum ratio, desired ratio)}``. `memory` is
    ``{contestant: {"held": bytes, "growth": bytes}}``: the size of its arrays, and the additional memory of one call.
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
    """Write rows to a JSON file atomically.

    They replace the rows with the same benchmark, parameters and machine, or all rows if `keep` is False.
    """
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


def _ms(seconds):
    return f"{seconds * 1e3:,.2f}" if seconds < 0.01 else f"{seconds * 1e3:,.1f}"


def _lines(header, rows):
    rule = ["---" if name in (header[0], "how", "array") else "---:" for name in header]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def _contestants(row):
    for name, c in row["contestants"].items():
        if "unavailable" in c:
            yield [name, "-", "-", "-", "-", c["unavailable"]]
        else:
            spread = f"{_ms(c['q10_s'])} - {_ms(c['q90_s'])}"
            times = f"{c['ratio_to_ours']:.2f} ({c['ratio_q10']:.2f} - {c['ratio_q90']:.2f})"
            yield [name, _ms(c["median_s"]), spread, _ms(c["min_s"]), "1" if name == "ours" else times, c["note"]]


def _floor(row):
    ours = row["contestants"]["ours"]["median_s"]
    for what, part in row["floor"]["parts"].items():
        rate = f"{part['amount'] / 1e9:,.2f} G{part['unit']} at {part['limit'] / 1e9:,.0f} G{part['unit']}/s"
        seconds = part["amount"] / part["limit"]
        yield [what, rate, _ms(seconds), f"{seconds / ours:.0%}"]


def _targets(row):
    for competitor, (wanted, aim) in row["targets"].items():
        c = row["contestants"][competitor]
        if "unavailable" not in c:
            verdict = "met" if c["ratio_to_ours"] >= wanted else "not met"
            yield f"- Target: {wanted} x {competitor}, desired {aim} x; measured {c['ratio_to_ours']:.2f} x: {verdict}."


def _memory(row):
    for name, m in row["memory"].items():
        growth = "unknown" if m["growth"] is None else f"{m['growth'] / 2**20:,.0f} MiB"
        yield f"- Memory, {name}: {m['held'] / 2**20:,.0f} MiB of arrays, {growth} more during a call."


def table(row):
    """Format one row of results as Markdown."""
    sizes = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in row["parameters"].items())
    if "table" in row:  # the benchmark made its own table
        header, rows = row["table"]["header"], row["table"]["rows"]
        notes = [f"- {note}" for note in row["notes"]]
        return "\n".join([f"**{row['benchmark']}**: {sizes}", "", *_lines(header, rows), "", *notes])
    header = ["contestant", "median ms", "10 % - 90 %", "min ms", "times ours", "how"]
    lines = [f"**{row['benchmark']}**: {sizes}", "", *_lines(header, _contestants(row)), ""]
    if row["floor"]:
        header = ["required work of ours", "amount and measured limit", "least ms", "share of ours"]
        floor, bound = row["floor"]["seconds"], row["floor"]["bound"]
        distance = row["contestants"]["ours"]["median_s"] / floor
        lines += [*_lines(header, _floor(row)), ""]
        lines += [f"- Floor: {_ms(floor)} ms ({bound}); ours takes {distance:.1f} times as long."]
    return "\n".join([*lines, *_targets(row), *_memory(row), *(f"- {note}" for note in row.get("notes", []))])


def machine_of(row):
    """One line: the hardware, threads and versions that a row was measured with."""
    e = row["environment"]
    m, versions = e["machine"], ", ".join(f"{name} {v}" for name, v in e["versions"].items())
    caches = ", ".join(f"{level} {size >> 10:,} KiB" for level, size in m["caches"].items())
    gpu = f"{m['gpu']}, driver {m['driver']}; " if "driver" in m else ""
    return f"{gpu}{m['cpu']}, {m['cores']} cores ({caches}), {e['threads']} threads; {versions}"
