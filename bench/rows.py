"""Rows of tables that take hours to train: each is one command that can be killed and given again.

It goes on from its checkpoint, and writes bench/results/TABLE/ROW.json when it is done. A table joins what single runs
have found: rows that were measured on another machine, or with other versions, than most are marked.
"""

import argparse
import collections
import json
from pathlib import Path

import numba

from sparsemax_nb.internals import command_line

from . import machine, tables


def train(command, options, *, script, row, data, folder, work, threads, more=None):
    """Train one row with ``sparsemax-nb train COMMAND``, or go on with it; write `folder`/ROW.json. Returns the exit code.

    `options` are {name: value}, True for a flag; ``more(result, model file)`` gives what the command does not report.
    """
    numba.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    model, figures, name = work / f"{row}.safetensors", work / f"{row}.json", Path(data).name
    given, commit = options, machine.environment("cpu")["commit"]
    options = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]
    files = ["--save", str(model), "--resume", "--json", str(figures), "--plot", str(work / f"{row}.png")]
    if not (model.exists() and figures.exists()):  # else only what follows is left to do
        code = command_line(["train", command, "--data", str(data), *options, *files])
        if code:
            return code
    result = json.loads(figures.read_text())
    for key, value in given.items():
        made = result["params"].get(key.replace("-", "_"), value)
        if made != value:
            raise ValueError(f"{figures} was made with {key} {made}, not {value}; remove it to train the row anew")
    result["command"] = " ".join([f"sparsemax-nb train {command} --data", name, *options])
    result["data"] = name
    if more is not None:
        result |= more(result, model)
    result["environment"] = machine.environment(result["device"]) | {"commit": commit}  # that of the last start
    result["environment"]["command"] = f"python -m bench.{script} {row} --data {name}"
    write(result, folder, row)
    return 0


def write(result, folder, row):
    """Write `folder`/ROW.json; the file appears, or is replaced, once it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{row}.part"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(folder / f"{row}.json")


def finished(names, folder):
    """{name: result} of the rows that there are, in the order of the names."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def elsewhere(found):
    """Those of the rows {name: result} that were measured on another kind of machine than most."""
    machines = {name: json.dumps(result["environment"]["machine"], sort_keys=True) for name, result in found.items()}
    most = collections.Counter(machines.values()).most_common(1)
    return [name for name, one in machines.items() if one != most[0][0]]


def elsewhere_note(found):
    """A list with the note that names the rows of `elsewhere`, or without any."""
    others = elsewhere(found)
    return [f"Measured on another machine, so that their times do not compare: {', '.join(others)}."] if others else []


def tell_apart(table, found):
    """Give a table the machine and versions of most of its rows, and those measured elsewhere a mark and a note."""
    places = {name: tables.machine_of(result) for name, result in found.items()}
    (most, _), *others = collections.Counter(places.values()).most_common()
    some = next(result for name, result in found.items() if places[name] == most)
    table["environment"] |= {key: some["environment"][key] for key in ("machine", "threads", "versions")}
    marks = {place: f"[{i}]" for i, (place, _) in enumerate(others, 1)}
    for cells in table["table"]["rows"]:
        if places.get(cells[0]) in marks:
            cells[0] += " " + marks[places[cells[0]]]
    table["notes"] += [f"{mark}: measured elsewhere than the other rows, on {place}." for place, mark in marks.items()]


def seconds_per_epoch(result):
    """As the run took them, whatever else the machine did."""
    return result["train_seconds"] / len(result["epochs"])


def main(
    argv, *, script, command, description, tables, options, folder, summary, draw, more=None, data=None, rivals=None
):
    """The command line of tables whose rows ``sparsemax-nb train COMMAND`` makes: ``bench.SCRIPT ROW | --list | --table``.

    `tables` is {benchmark: (options of all rows, {row: its own})}, `options` {row: all of its options};
    ``summary(benchmark, {row: result})`` makes a row of results with a table, ``draw({benchmark: {row: result}})`` the
    pictures; `more` as for `train`; `data` is where --data is not given; `rivals` {benchmark: rows that other commands
    make}.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{script}", description=description)
    parser.add_argument("row", nargs="?", choices=tuple(options), help="the row to train")
    parser.add_argument("--data", default=data, metavar="DIR", help="the data (see sparsemax-nb train --help)")
    parser.add_argument(
        "--work", type=Path, default=Path("accuracy_output"), metavar="DIR", help="models and checkpoints"
    )
    parser.add_argument("--threads", type=int, default=numba.config.NUMBA_NUM_THREADS, help="default: all")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--table", action="store_true", help="make tables and pictures of the rows that there are")
    args = parser.parse_args(argv)
    if args.list:
        print(*options, sep="\n")
        return 0
    if args.table:
        found = {
            benchmark: finished([*names, *(rivals or {}).get(benchmark, ())], folder)
            for benchmark, (_, names) in tables.items()
        }
        if not any(found.values()):
            parser.error("no row has been trained yet")
        made = [summary(benchmark, trained) for benchmark, trained in found.items() if trained]
        for row in made:
            tell_apart(row, found[row["benchmark"]])
            print(tables.table(row) + "\n")
        tables.write_rows(tables.RESULTS / f"{script}-cpu.json", made, keep=False)
        draw(found)
        return 0
    if not (args.row and args.data):
        parser.error("name a row and --data DIR, or --list or --table")
    return train(
        command, options[args.row], script=script, row=args.row, data=args.data, folder=folder, work=args.work,
        threads=args.threads, more=more,
    )  # fmt: skip
