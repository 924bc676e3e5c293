"""Tables, pictures and the figures of README.md, anew: ``python -m bench.report`` makes them from bench/results/*.json.

bench/README.md is prose.md with the tables in their place. ``python -m bench.report --add FILE ...`` first sorts the
rows of FILE (gpu_output/results.json) into bench/results/. A table holds one row of results, so figures of different
machines never meet in one.
"""

import argparse
import itertools
import json
from pathlib import Path

from . import harness, machine

README, PROSE = machine.HERE / "README.md", machine.HERE / "prose.md"
START, END = "<!-- tables: start -->", "<!-- tables: end -->"


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
    for rival, (wanted, aim) in row["targets"].items():
        c = row["contestants"][rival]
        if "unavailable" not in c:
            verdict = "met" if c["ratio_to_ours"] >= wanted else "not met"
            yield f"- Target: {wanted} x {rival}, better {aim} x; measured {c['ratio_to_ours']:.2f} x: {verdict}."


def _memory(row):
    for name, m in row["memory"].items():
        growth = "unknown" if m["growth"] is None else f"{m['growth'] / 2**20:,.0f} MiB"
        yield f"- Memory, {name}: {m['held'] / 2**20:,.0f} MiB of arrays, {growth} more during a call."


def table(row):
    """One row of results as Markdown."""
    sizes = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in row["parameters"].items())
    if "table" in row:  # a benchmark that brings its own table
        header, rows = row["table"]["header"], row["table"]["rows"]
        notes = [f"- {note}" for note in row["notes"]]
        return "\n".join([f"**{row['benchmark']}**: {sizes}", "", *_lines(header, rows), "", *notes])
    header = ["contestant", "median ms", "10 % - 90 %", "min ms", "times ours", "how"]
    lines = [f"**{row['benchmark']}**: {sizes}", "", *_lines(header, _contestants(row)), ""]
    if row["floor"]:
        header = ["what ours has to do", "amount and measured limit", "least ms", "share of ours"]
        floor, bound = row["floor"]["seconds"], row["floor"]["bound"]
        distance = row["contestants"]["ours"]["median_s"] / floor
        lines += [*_lines(header, _floor(row)), ""]
        lines += [f"- Floor: {_ms(floor)} ms ({bound}); ours takes {distance:.1f} times that."]
    return "\n".join([*lines, *_targets(row), *_memory(row), *(f"- {note}" for note in row.get("notes", []))])


def machine_of(row):
    """A line that says what a row was measured on and with."""
    e = row["environment"]
    m, versions = e["machine"], ", ".join(f"{name} {v}" for name, v in e["versions"].items())
    caches = ", ".join(f"{level} {size >> 10:,} KiB" for level, size in m["caches"].items())
    gpu = f"{m['gpu']}, driver {m['driver']}; " if "driver" in m else ""
    return f"{gpu}{m['cpu']}, {m['cores']} cores ({caches}), {e['threads']} threads; {versions}"


def _source(row):
    e = row["environment"]
    commit = (e["commit"] or "unknown")[:12] + (" with changes" if e["dirty"] else "")
    return f"`{e['command']}`, commit {commit}, {e['date_utc']}, {e['seconds']} s, load average {e['load_average']}."


def render(rows):
    """All tables, grouped by machine and versions."""
    sections = []
    for heading, group in itertools.groupby(sorted(rows, key=machine_of), key=machine_of):
        sections += [f"### {heading}", *(f"{table(row)}\n\n{_source(row)}" for row in group)]
    return "\n\n".join(sections)


def readme(rows):
    """The whole text: the prose with all tables in their place."""
    before, _, after = PROSE.read_text().partition(START)
    return f"{before}{START}\n\n{render(rows)}\n\n{END}{after.partition(END)[2]}"


def draw(rows):
    """The pictures of what lies in bench/results/. ds_words and hierarchy show models, and are drawn by their benchmarks."""
    from . import accuracy, closeness, ds_softmax, language, overview, scaling, words  # they import this module
    from . import rows as joined

    for module in (accuracy, language):
        module.draw(
            {benchmark: joined.finished(names, module.FOLDER) for benchmark, (_, names) in module.TABLES.items()}
        )
    words.draw()
    pictured = {
        ("closeness", "softmax-full"): closeness, ("ds_softmax: wikitext-2", "wikitext-2"): ds_softmax, ("scaling", None): scaling,
    }  # fmt: skip
    for what, module in pictured.items():
        if found := [row for row in rows if (row["benchmark"], row["parameters"].get("data")) == what]:
            module.picture(max(found, key=lambda row: row["environment"]["date_utc"]), module.PICTURE)
    overview.picture(rows, overview.PICTURE)


def add(path):
    """Sort the rows of a file into bench/results/NAME-DEVICE.json, where their benchmark writes them itself."""
    for row in json.loads(Path(path).read_text()):
        name = row["benchmark"].partition(":")[0].partition(" ")[0].replace("-", "_")
        name = "step" if name == "top_k" else name
        harness.write_rows(harness.RESULTS / f"{name}-{row['parameters']['device']}.json", [row])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument(
        "--add", type=Path, nargs="+", default=[], help="files of rows to sort into bench/results/ first"
    )
    args = parser.parse_args(argv)
    for path in args.add:
        add(path)
    from . import overview  # it imports this module

    rows = [row for path in sorted(harness.RESULTS.glob("*.json")) for row in json.loads(path.read_text())]
    README.write_text(readme(rows))
    draw(rows)
    overview.write(rows)
    print(f"{len(rows)} rows of results in {README.name}")


if __name__ == "__main__":
    main()
