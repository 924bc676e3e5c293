"""Tables, pictures and the figures of README.md, anew: ``python -m bench.report`` makes them from bench/results/*.json.

bench/README.md is prose.md with the tables in their place. ``python -m bench.report --add FILE ...`` first sorts the
rows of FILE (gpu_output/results.json) into bench/results/. A table holds one row of results, so figures of different
machines never meet in one.
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
    """All tables, grouped by machine and versions."""
    sections = []
    for heading, group in itertools.groupby(sorted(rows, key=tables.machine_of), key=tables.machine_of):
        sections += [f"### {heading}", *(f"{tables.table(row)}\n\n{_source(row)}" for row in group)]
    return "\n\n".join(sections)


def readme(rows):
    """The whole text: the prose with all tables in their place."""
    before, _, after = PROSE.read_text().partition(START)
    return f"{before}{START}\n\n{render(rows)}\n\n{END}{after.partition(END)[2]}"


def draw(rows):
    """The pictures of what lies in bench/results/. ds_words and hierarchy show models, and are drawn by their benchmarks."""
    for module in (accuracy, language):
        module.draw(
            {
                benchmark: rows_of_tables.finished(names, module.FOLDER)
                for benchmark, (_, names) in module.TABLES.items()
            }
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
        tables.write_rows(tables.RESULTS / f"{name}-{row['parameters']['device']}.json", [row])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument(
        "--add", type=Path, nargs="+", default=[], help="files of rows to sort into bench/results/ first"
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
        print(f"the pictures are left as they were: {error}")


if __name__ == "__main__":
    main()
