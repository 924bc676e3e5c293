"""Table rows that take hours to train. Each row is one command, which can be interrupted and repeated.

A repeated command resumes from its checkpoint. A finished row is written to bench/results/TABLE/ROW.json. A table
combines these rows, and marks those that were measured on a different machine, or with different versions, than most.
"""

import argparse
import collections
import json
from pathlib import Path

import numba

from sparsemax_nb.internals import command_line

from . import machine, tables


def train(command, options, *, script, row, data, folder, work, threads, more=None):
    """Train or resume one row with ``sparsemax-nb train COMMAND`` and write `folder`/ROW.json; returns the exit code.

    `options` is {name: value}, with value True for a flag. ``more(result, model_file)`` adds what the command does not
    report.
    """
    numba.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    model, report = work / f"{row}.safetensors", work / f"{row}.json"
    name = Path(data).name
    given, commit = options, machine.environment("cpu")["commit"]
    options = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]
    files = ["--save", str(model), "--resume", "--json", str(report), "--plot", str(work / f"{row}.png")]
    if not (model.exists() and report.exists()):  # else training is complete, and only the result must be written
        code = command_line(["train", command, "--data", str(data), *options, *files])
        if code:
            return code
    result = json.loads(report.read_text())
    for key, value in given.items():
        made = result["params"].get(key.replace("-", "_"), value)
        if made != value:
            raise ValueError(f"{report} was made with {key} {made}, not {value}; delete it to train the row again")
    result["command"] = " ".join([f"sparsemax-nb train {command} --data", name, *options])
    result["data"] = name
    if more is not None:
        result |= more(result, model)
    result["environment"] = machine.environment(result["device"]) | {
        "commit": commit
    }  # of the last start of this command
    result["environment"]["command"] = f"python -m bench.{script} {row} --data {name}"
    write(result, folder, row)
    return 0


def write(result, folder, row):
    """Write `folder`/ROW.json atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{row}.part"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(folder / f"{row}.json")


def finished(names, folder):
    """{name: result} of the finished rows, in the order of `names`."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def elsewhere(found):
    """Names of the rows of {name: result} that were measured on a different type of machine than most."""
    machines = {name: json.dumps(result["environment"]["machine"], sort_keys=True) for name, result in found.items()}
    most = collections.Counter(machines.values()).most_common(1)
    return [name for name, one in machines.items() if one != most[0][0]]


def elsewhere_note(found):
    """A list with one note that names the rows of `elsewhere`; empty if there are none."""
    others = elsewhere(found)
    return [f"Measured on another machine (do not compare the times): {', '.join(others)}."] if others else []


def closing_notes(found, names, command):
    """Notes on rows that were disturbed, measured elsewhere, or are missing from `names`: ``command ROW`` makes one.

    `command` is split at ROW.
    """
    notes = []
    if disturbed := [row for row, result in found.items() if machine.is_disturbed(result["environment"])]:
        notes.append(f"Other processes were running (ignore these times): {', '.join(disturbed)}.")
    return notes + elsewhere_note(found) + missing_note(found, names, command)


def missing_note(found, names, command):
    """A list with one note that names the rows of `names` that were not run; empty if there are none."""
    before, after = command.split("ROW")
    missing = [f"`{before}{row}{after}`" for row in names if row not in found]
    return [f"Not run: {', '.join(missing)}."] if missing else []


def mark_other_machines(table, found):
    """Give a table the environment of most of its rows; mark the others, and add a note for each mark."""
    environments = {name: tables.machine_of(result) for name, result in found.items()}
    (common, _), *others = collections.Counter(environments.values()).most_common()
    example = next(result for name, result in found.items() if environments[name] == common)
    table["environment"] |= {key: example["environment"][key] for key in ("machine", "threads", "versions")}
    marks = {other: f"[{i}]" for i, (other, _) in enumerate(others, 1)}
    for cells in table["table"]["rows"]:
        if environments.get(cells[0]) in marks:
            cells[0] += " " + marks[environments[cells[0]]]
    table["notes"] += [
        f"{mark}: measured in another environment than the other rows: {other}." for other, mark in marks.items()
    ]


def seconds_per_epoch(result):
    """Mean wall time of an epoch, including disturbances by other work on the machine."""
    return result["train_seconds"] / len(result["epochs"])


def main(
    argv,
    *,
    script,
    command,
    description,
    benchmarks,
    options,
    folder,
    summary,
    draw,
    more=None,
    data=None,
    other_rows=None,
):
    """The command line ``bench.SCRIPT ROW | --list | --table``, for rows made by ``sparsemax-nb train COMMAND``.

    `benchmarks` is {benchmark: (options of all rows, {row: its own options})}, `options` is {row: all of its options}.
    ``summary(benchmark, {row: result})`` makes a row of results with a table, ``draw({benchmark: {row: result}})`` the
    figures. `more` is passed to `train`. `data` is the default of --data. `other_rows` is {benchmark: names of rows
    that other commands make}.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{script}", description=description)
    parser.add_argument("row", nargs="?", choices=tuple(options), help="the row to train")
    parser.add_argument("--data", default=data, metavar="DIR", help="the data (see sparsemax-nb train --help)")
    parser.add_argument(
        "--work", type=Path, default=Path("accuracy_output"), metavar="DIR", help="models and checkpoints"
    )
    parser.add_argument("--threads", type=int, default=numba.config.NUMBA_NUM_THREADS, help="default: all")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--table", action="store_true", help="make the tables and figures from the finished rows")
    args = parser.parse_args(argv)
    if args.list:
        print(*options, sep="\n")
        return 0
    if args.table:
        found = {
            benchmark: finished([*names, *(other_rows or {}).get(benchmark, ())], folder)
            for benchmark, (_, names) in benchmarks.items()
        }
        if not any(found.values()):
            parser.error("no row has been trained yet")
        made = [summary(benchmark, trained) for benchmark, trained in found.items() if trained]
        for row in made:
            mark_other_machines(row, found[row["benchmark"]])
            print(tables.table(row) + "\n")
        tables.write_rows(tables.RESULTS / f"{script}-cpu.json", made, keep=False)
        draw(found)
        return 0
    if not (args.row and args.data):
        parser.error("give a row and --data DIR, or --list, or --table")
    return train(
        command, options[args.row], script=script, row=args.row, data=args.data, folder=folder, work=args.work,
        threads=args.threads, more=more,
    )  # fmt: skip
