"""What the site shows and nobody types: tables of bench/results/, help of the commands, copies of the tutorials."""

import argparse
import json
import os
import re
from pathlib import Path

from bench import report, tables
from sparsemax_nb.cli import main

HERE = Path(__file__).parent
OUT = HERE / "generated"
#: To be included in pages; a folder of settings for the kernel that runs the tutorials.
PARTS, IPYTHON = OUT / "parts", OUT / "ipython"
TUTORIALS = HERE.parent / "tutorials"
#: Figures with two pixels for each of the page; no word about how kernel and site talk, which is on this machine only.
KERNEL = 'get_config().InlineBackend.figure_formats = {"retina"}\nget_config().IPKernelApp.log_level = "ERROR"\n'
WIDTH = "92"  # of the help, in characters


def _write(path, text):
    """Write a file where its text has changed, so that Sphinx reads again only what it must."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _slug(name):
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _short(row):
    """A table of arrays by phase is cut to its sums and peaks."""
    if row.get("table", {}).get("header", [""])[0] != "phase":
        return row
    kept = [cells for cells in row["table"]["rows"] if cells[1].startswith("=") or "peak" in cells[1]]
    return row | {"table": row["table"] | {"rows": kept}}


def _rendered(row):
    """A table with its notes, and behind it where it was measured, as in bench/README.md."""
    heading, _, text = report.render([_short(row)]).partition("\n\n")
    return f"{text} {heading.removeprefix('### ')}.\n"


def results():
    """generated/parts/BENCHMARK.md: of each set of parameters, the newest row."""
    newest = {}
    rows = [row for path in sorted(tables.RESULTS.glob("*.json")) for row in json.loads(path.read_text())]
    for row in sorted(rows, key=lambda row: row["environment"]["date_utc"]):
        sizes = {name: value for name, value in row["parameters"].items() if name != "repeats"}
        newest.setdefault(_slug(row["benchmark"]), {})[json.dumps(sizes, sort_keys=True)] = row
    for name, found in newest.items():
        _write(PARTS / f"{name}.md", "\n".join(_rendered(row) for row in found.values()))


def _commands(parser):
    """(name, parser) of a command and of all below it."""
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _commands(below)


def command_line():
    """generated/parts/commands.md: the help of each command."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), WIDTH
    try:
        parts = [f"## `{name}`\n\n```text\n{parser.format_help()}```\n" for name, parser in _commands(main._parser())]
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})
    _write(PARTS / "commands.md", "\n".join(parts))


def tutorials():
    """generated/tutorials/: copies of the tutorials, and of what they import, where Sphinx finds them."""
    folder, sources = OUT / "tutorials", [*sorted(TUTORIALS.glob("[0-9]*.py")), TUTORIALS / "lesson.py"]
    for old in folder.glob("*.py"):
        if old.name not in {path.name for path in sources}:
            old.unlink()
    for path in sources:
        _write(folder / path.name, path.read_text())
    _write(IPYTHON / "profile_default" / "ipython_kernel_config.py", KERNEL)


def everything():
    """All of it."""
    results()
    command_line()
    tutorials()
