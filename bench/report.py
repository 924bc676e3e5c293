"""Regenerate the tables and figures of the benchmarks: ``python -m bench.report``. Reads bench/results/*.json.

bench/README.md is prose.md with the tables inserted; the numbers in README.md are updated as well. With
``python -m bench.report --add FILE ...``, the rows of FILE (gpu_output/results.json) are first added to bench/results/.
Rows of a table that were measured on another machine are marked.
"""

import argparse
import itertools
import json
from pathlib import Path

from . import accuracy, closeness, ds_softmax, language, machine, overview, scaling, tables, words
from . import rows as rows_of_tables

README, PROSE = machine.HERE / "README.md", machine.HERE / "prose.md"
START, END = "<!-- tables: start -->", "<!-- tables: end -->"


def _source(row):
    e = row["environment"]
    commit = (e["commit"] or "unknown")[:12] + (" with changes" if e["dirty"] else "")
    return f"`{e['command']}`, commit {commit}, {e['date_utc']}, {e['seconds']} s, load average {e['load_average']}."


def render(rows):
    """All tables as Markdown, grouped by machine and versions."""
    sections = []
    for heading, group in itertools.groupby(sorted(rows, key=tables.machine_of), key=tables.machine_of):
        sections += [f"### {heading}", *(f"{tables.table(row)}\n\n{_source(row)}" for row in group)]
    return "\n\n".join(sections)


def readme(rows):
    """The text of bench/README.md: prose.md with the tables inserted."""
    before, _, after = PROSE.read_text().partition(START)
    return f"{before}{START}\n\n{render(rows)}\n\n{END}{after.partition(END)[2]}"


def draw(rows):
    """Draw the figures from bench/results/.

    Only ds_words.png and hierarchy-*.png are missing: they need a trained model, and their benchmarks draw them.
    """
    for module in (accuracy, language):
        module.draw(
            {
                benchmark: rows_of_tables.finished(names, module.FOLDER)
                for benchmark, (_, names) in module.TABLES.items()
            }
        )
    words.draw()
    pictured = {
        ("closeness", "softmax-full"): closeness,
        ("ds_softmax: wikitext-2", "wikitext-2"): ds_softmax,
        ("scaling", None): scaling,
    }
    for what, module in pictured.items():
        if found := [row for row in rows if (row["benchmark"], row["parameters"].get("data")) == what]:
            module.picture(max(found, key=lambda row: row["environment"]["date_utc"]), module.PICTURE)
    overview.picture(rows, overview.PICTURE)


def add(path):
    """Add the rows of a file to bench/results/NAME-DEVICE.json, the files that their benchmarks write."""
    for row in json.loads(Path(path).read_text()):
        name = row["benchmark"].partition(":")[0].partition(" ")[0].replace("-", "_")
        name = "step" if name == "top_k" else name
        tables.write_rows(tables.RESULTS / f"{name}-{row['parameters']['device']}.json", [row])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument(
        "--add", type=Path, nargs="+", default=[], help="files with rows to add to bench/results/ first"
    )
    args = parser.parse_args(argv)
    for path in args.add:
        add(path)
    rows = [row for path in sorted(tables.RESULTS.glob("*.json")) for row in json.loads(path.read_text())]
    README.write_text(readme(rows))
    overview.write(rows)
    print(f"{len(rows)} rows of results in {README.name}")
    try:
        draw(rows)
    except ImportError as error:  # a machine with a GPU need not have matplotlib
        print(f"the figures were not updated: {error}")


if __name__ == "__main__":
    main()
