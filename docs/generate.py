"""Generate pages of the site: tables from bench/results/, help texts of the commands, copies of the tutorials."""

import argparse
import json
import os
import re
from pathlib import Path

from bench import report, tables
from sparsemax_nb.cli import main

HERE = Path(__file__).parent
OUT = HERE / "generated"
#: PARTS are included in pages; IPYTHON has the settings of the Jupyter kernel that runs the tutorials.
PARTS, IPYTHON = OUT / "parts", OUT / "ipython"
TUTORIALS = HERE.parent / "tutorials"
#: Plots in double resolution. Errors alone are logged: other messages are about the connection to the kernel.
KERNEL = 'get_config().InlineBackend.figure_formats = {"retina"}\nget_config().IPKernelApp.log_level = "ERROR"\n'
WIDTH = "92"  # of the help texts, in characters


def _write(path, text):
    """Write a file only if its text has changed, so that Sphinx does not process it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _slug(name):
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _short(row):
    """Reduce a table of arrays by phase to its sums and peaks."""
    if row.get("table", {}).get("header", [""])[0] != "phase":
        return row
    kept = [cells for cells in row["table"]["rows"] if cells[1].startswith("=") or "peak" in cells[1]]
    return row | {"table": row["table"] | {"rows": kept}}


def _rendered(row):
    """A table with its notes, followed by the machine it was measured on, as in bench/README.md."""
    heading, _, text = report.render([_short(row)]).partition("\n\n")
    return f"{text} {heading.removeprefix('### ')}.\n"


def results():
    """Write generated/parts/BENCHMARK.md, with the newest row for each set of parameters."""
    newest = {}
    rows = [row for path in sorted(tables.RESULTS.glob("*.json")) for row in json.loads(path.read_text())]
    for row in sorted(rows, key=lambda row: row["environment"]["date_utc"]):
        sizes = {name: value for name, value in row["parameters"].items() if name != "repeats"}
        newest.setdefault(_slug(row["benchmark"]), {})[json.dumps(sizes, sort_keys=True)] = row
    for name, found in newest.items():
        _write(PARTS / f"{name}.md", "\n".join(_rendered(row) for row in found.values()))


def _commands(parser):
    """Yield (name, parser) of a command and its subcommands."""
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subcommand in action.choices.values():
                yield from _commands(subcommand)


def command_line():
    """Write generated/parts/commands.md, with the help text of each command."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), WIDTH
    try:
        parts = [f"### `{name}`\n\n```text\n{parser.format_help()}```\n" for name, parser in _commands(main._parser())]
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})
    _write(PARTS / "commands.md", "\n".join(parts))


def tutorials():
    """Copy the tutorials and the module they import to generated/tutorials/, where Sphinx finds them."""
    folder, sources = OUT / "tutorials", [*sorted(TUTORIALS.glob("[0-9]*.py")), TUTORIALS / "lesson.py"]
    for old in folder.glob("*.py"):
        if old.name not in {path.name for path in sources}:
            old.unlink()
    for path in sources:
        _write(folder / path.name, path.read_text())
    _write(IPYTHON / "profile_default" / "ipython_kernel_config.py", KERNEL)


def everything():
    """Generate all pages."""
    results()
    command_line()
    tutorials()
