"""Has our code become slower since the last results on this type of machine? ``python -m bench.regression``.

Runs short benchmarks on the CPU. Each time of our code is compared with the newest row in bench/results/ that has the
same benchmark, parameters, machine and number of threads. Nothing is written. Exit status: 0 if no time is more than
--tolerance times the earlier one; 1 if one is, or if a benchmark fails; 2 if there is no earlier result.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numba

from . import machine, tables

#: {benchmark: options}. The large size of cross_entropy is skipped because it takes minutes.
BENCHMARKS = {
    "forward": [],
    "step": [],
    "cross_entropy": ["--large-rows", "0"],
    "sampling": [],
    "lstm": [],
}
#: Parameters that are measured, or that do not change what a call computes: rows may differ in them.
IGNORED_PARAMETERS = {"repeats", "active_scores_percent", "active_blocks_percent"}
#: Maximum ratio of a median to the earlier one. Other work on the machine can easily cost 10 %.
TOLERANCE = 1.25


class Comparison(NamedTuple):
    """A time of our code now, and the earlier one (seconds; None if there is none) with its date."""

    benchmark: str
    what: str
    now: float
    before: float | None
    date: str | None

    @property
    def ratio(self):
        """The time relative to the earlier one."""
        return None if self.before is None else self.now / self.before


def times(row):
    """{name: median seconds} of our code in a row: contestants, the samplers of `sampling`, and their builds."""
    if "contestants" in row:
        entries = {name: entry for name, entry in row["contestants"].items() if name.partition(",")[0] == "ours"}
        return {name: entry["median_s"] for name, entry in entries.items() if "median_s" in entry}
    found = {}
    if row["benchmark"] == "sampling":
        sizes = [column.partition(" classes")[0] for column in row["table"]["header"][1:]]
        for sampler, figures in row["figures"].items():
            medians = zip(sizes, figures["median_s"], strict=False)  # the last columns are not sizes
            found |= {f"{sampler}, {size} classes": seconds for size, seconds in medians}
    elif row["benchmark"] == "sampling: index":
        for size, figures in row["figures"].items():
            found |= {f"{name}, {int(size):,} classes": seconds for name, seconds in figures.items()}
    return found


def machine_and_threads(row):
    """Two rows are comparable if this is equal."""
    return row["environment"]["machine"], row["environment"]["threads"]


def _case(row):
    """The benchmark and its parameters as a string, to look up rows."""
    parameters = {name: value for name, value in row["parameters"].items() if name not in IGNORED_PARAMETERS}
    return json.dumps([row["benchmark"], parameters], sort_keys=True)


def label(row):
    """The benchmark, and the parameters in which its rows differ."""
    parts = [f"{name} {row['parameters'][name]}" for name in ("loss", "inside_margin") if name in row["parameters"]]
    return ", ".join([row["benchmark"], *parts])


def compare(fresh, stored):
    """Compare each time of our code in the rows `fresh` with the newest matching row of `stored`."""
    comparisons = []
    for row in fresh:
        same = [
            old for old in stored if machine_and_threads(old) == machine_and_threads(row) and _case(old) == _case(row)
        ]
        for what, now in times(row).items():
            known = [old for old in same if what in times(old)]
            last = max(known, key=lambda old: old["environment"]["date_utc"], default=None)
            before, date = (None, None) if last is None else (times(last)[what], last["environment"]["date_utc"][:10])
            comparisons.append(Comparison(label(row), what, now, before, date))
    return comparisons


def table(comparisons, tolerance):
    """The comparisons as a table of text."""
    lines = [("benchmark", "ours", "before ms", "now ms", "ratio", "")]
    for c in comparisons:
        if c.before is None:
            lines.append((c.benchmark, c.what, "-", f"{1e3 * c.now:,.2f}", "-", "no earlier result"))
            continue
        verdict = f"SLOWER than {tolerance:g} x" if c.ratio > tolerance else ""
        verdict = f"{verdict} (before: {c.date})".strip()
        lines.append((c.benchmark, c.what, f"{1e3 * c.before:,.2f}", f"{1e3 * c.now:,.2f}", f"{c.ratio:.2f}", verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    align = "<<>>><"
    shown = ("  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, align, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in shown)


def verdict(comparisons, tolerance):
    """The exit status, and a line with the reason."""
    known = [c for c in comparisons if c.before is not None]
    if not known:
        return 2, "Nothing to compare with: no earlier result has these parameters on this type of machine."
    slower = [c for c in known if c.ratio > tolerance]
    if slower:
        worst = max(slower, key=lambda c: c.ratio)
        what = f"{len(slower)} of {len(known)} times are more than {tolerance:g} times as long as before"
        return 1, f"{what}; the worst: {worst.benchmark}, {worst.what}: {worst.ratio:.2f} times."
    return 0, f"None of {len(known)} times is more than {tolerance:g} times as long as before."


def stored_rows(names):
    """All rows in bench/results/ that the benchmarks `names` wrote on the CPU."""
    paths = (tables.RESULTS / f"{name}-cpu.json" for name in names)
    return [row for path in paths if path.exists() for row in json.loads(path.read_text())]


def run(name, args):
    """Run one benchmark in a separate process and return its rows; raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.json"
        command = [sys.executable, "-m", f"bench.{name}", "--device", "cpu", "--threads", str(args.threads)]
        command += ["--repeats", str(args.repeats), "--json", str(file), *BENCHMARKS[name]]
        subprocess.run(command, cwd=machine.HERE.parent, stdout=subprocess.DEVNULL, check=True)
        return json.loads(file.read_text())


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.regression", description=__doc__.partition("(")[0])
    cores = numba.config.NUMBA_NUM_THREADS
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(BENCHMARKS)} (default: all)"
    )
    parser.add_argument("--threads", type=int, default=min(2, cores), help="threads of Numba and PyTorch (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"maximum ratio to the earlier time (default: {TOLERANCE})"
    )
    args = parser.parse_args(argv)
    names = args.names or list(BENCHMARKS)
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"unknown benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    here = machine.environment("cpu")["machine"], args.threads
    stored = [row for row in stored_rows(names) if machine_and_threads(row) == here]
    if not stored:
        cpu, folder = here[0], f"bench/{tables.RESULTS.name}/"
        print(
            f"No results of this type of machine in {folder}: {cpu['cpu']}, {cpu['cores']} cores, caches "
            f"{cpu['caches']}, {args.threads} threads.\nNothing was measured. Check out a commit that you trust and "
            f"run python -m bench.{names[0]} to add results."
        )
        return 2
    fresh, failed = [], []
    with machine.other_work() as disturbed:
        for name in names:
            print(f"running bench.{name}", flush=True)
            try:
                fresh += run(name, args)
            except subprocess.CalledProcessError as error:
                failed.append(f"bench.{name} failed with exit status {error.returncode}")
    comparisons = compare(fresh, stored)
    status, line = verdict(comparisons, args.tolerance)
    print("\n" + table(comparisons, args.tolerance) + "\n")
    if machine.is_disturbed(disturbed):
        print(
            f"Other processes used {disturbed['other_cores']} cores during the measurement: repeat it on an idle "
            "machine."
        )
    print(*failed, line, sep="\n")
    return 1 if failed else status


if __name__ == "__main__":
    sys.exit(main())
