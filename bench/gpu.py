"""Everything that needs a GPU, in one command of under ten minutes: ``python -m bench.gpu`` (what ``make gpu`` runs).

The tests on real CUDA, then every benchmark on CUDA and on the CPU; no network. A failing part does not stop the rest.
OUT/ then holds summary.json (device, driver, versions, seconds and exit status of every part), pytest.xml, results.json
(the rows of all benchmarks) and log.txt. Exit status: 0, 1 where a part failed, 2 where there is no CUDA device.
"""

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

from sparsemax_nb.core import backend

from . import harness, machine, report

NOT_BENCHMARKS = {
    "__init__",
    "harness",
    "machine",
    "report",
    "gpu",
    "rows",
    "accuracy",
    "closeness",
    "language",
    "scaling",
    "profiling",
    "counted",
    "ds_softmax",
    "pecos",
}  # three need hours, ds_softmax a trained model, scaling and pecos measure the CPU, counted needs no GPU
TESTS_LIMIT = 300
#: On the CPU, what would take minutes at its full size.
SHORTER = {
    "cross_entropy": ["--large-rows", "1024"], "sampling": ["--step-classes", "100000", "--largest", "200000"],
}  # fmt: skip


def parts(out, rows, smoke):
    """``{name: command}`` in the order in which they run; what needs the GPU comes first."""
    commands = {"tests": ["python", "-m", "pytest", "tests", "-q", f"--junitxml={out / 'pytest.xml'}"]}
    names = sorted(path.stem for path in machine.HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    for device in ("cuda", "cpu"):
        for name in names:
            command = [
                "python",
                "-m",
                f"bench.{name}",
                "--device",
                device,
                "--json",
                str(rows / f"{name}-{device}.json"),
            ]
            if device == "cpu" and not smoke:
                command += SHORTER.get(name, [])
            commands[f"{name} {device}"] = command + ["--smoke"] * smoke
    return commands


def run_part(name, command, limit, log):
    """Run one command for at most `limit` seconds, everything it prints into `log`; returns its line of the summary."""
    command_line = " ".join(command)
    print(f"{name}: {command_line} (at most {limit:.0f} s)", flush=True)
    log.write(f"\n==== {name}: {command_line}\n")
    log.flush()
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}
    start, rc, status = time.perf_counter(), 124, "not started, out of time"
    if limit >= 1:
        command = [sys.executable, *command[1:]]
        where = {"cwd": machine.HERE.parent, "env": environment}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **where)
        try:
            rc = process.wait(limit)
            status = "failed" if rc else "ok"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"stopped after {limit:.0f} s"
    seconds = round(time.perf_counter() - start, 1)
    print(f"  {status} ({rc}), {seconds} s", flush=True)
    return {"name": name, "command": command_line, "rc": rc, "status": status, "seconds": seconds}


def junit_counts(path):
    """Totals of a junit file and how many tests were skipped for which reason; {} where there is none."""
    if not path.exists():
        return {}
    suites = list(xml.etree.ElementTree.parse(path).iter("testsuite"))
    counts = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    reasons = collections.Counter(skip.get("message") for suite in suites for skip in suite.iter("skipped"))
    return counts | {"skip_reasons": dict(reasons)}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_output"), help="folder for the results (default: gpu_output)"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="time for everything (default: 9.5)")
    parser.add_argument(
        "--smoke", action="store_true", help="benchmarks at tiny sizes; their rows are not kept in bench/results/"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    args = parser.parse_args(argv)
    if args.dry_run:
        print(*(" ".join(command) for command in parts(args.out, args.out, args.smoke).values()), sep="\n")
        return 0
    if backend.SIMULATOR or not backend.cuda_available():
        problem = (
            "NUMBA_ENABLE_CUDASIM is set, which stands for a simulated device"
            if backend.SIMULATOR
            else backend.cuda_problem()
        )
        print(f"bench.gpu needs a real CUDA device: {problem}", file=sys.stderr)
        return 2
    out, start, lines, rows = args.out.resolve(), time.perf_counter(), [], []
    out.mkdir(parents=True, exist_ok=True)
    for name in ("pytest.xml", "results.json"):
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder, open(out / "log.txt", "w") as log:
        commands = parts(out, Path(folder), args.smoke)
        for i, (name, command) in enumerate(commands.items()):
            left = 60 * args.minutes - (time.perf_counter() - start)
            lines.append(
                run_part(name, command, min(TESTS_LIMIT, left) if name == "tests" else left / (len(commands) - i), log)
            )
            lines[-1]["command"] = lines[-1]["command"].replace(f"{out}/", "").replace(f"{folder}/", "")
        for path in sorted(Path(folder).glob("*.json")):
            rows += json.loads(path.read_text())
    harness.write_rows(out / "results.json", rows)
    failed = [line["name"] for line in lines if line["rc"] != 0]
    summary = {"environment": machine.environment("cuda"), "parts": lines, "failed": failed}
    summary |= {"tests": junit_counts(out / "pytest.xml"), "seconds": round(time.perf_counter() - start, 1)}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if not args.smoke:
        report.add(out / "results.json")
    print(f"{len(failed)} of {len(lines)} parts failed, {summary['seconds']:.0f} s; see summary.json and log.txt")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
