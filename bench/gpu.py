"""Run everything that needs a GPU, in less than ten minutes: ``python -m bench.gpu`` (or ``make gpu``).

Runs the tests on real CUDA (at most 300 s), then every benchmark on CUDA (at most 90 s each), then, in the remaining
time, some benchmarks on the CPU of the same machine. No network is needed. If a part fails or is stopped, the others
still run, and the rows that it finished are kept. The folder --out gets summary.json (device, driver, versions, seconds
and exit status of every part), pytest.xml, results.json (the rows of all benchmarks) and log.txt. Exit status: 0, 1 if
a part failed, 2 if there is no CUDA device.
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

from sparsemax_nb.internals import SIMULATOR, cuda_available, cuda_problem

from . import machine, report, tables

#: Scripts of this folder that are not run. accuracy, closeness and language need hours, ds_softmax a trained model;
#: scaling, words, words_scale, texts, later_labels, pecos and annif measure the CPU; counted and floors need no GPU;
#: regression runs others.
NOT_BENCHMARKS = {
    "__init__", "__main__", "harness", "plotting", "tables", "timing", "machine", "report", "gpu", "rows", "profiling",
    "accuracy", "closeness", "language", "ds_softmax", "scaling", "words", "words_scale", "pecos", "annif", "texts",
    "later_labels", "counted", "floors", "overview", "regression",
}  # fmt: skip
TESTS_LIMIT, BENCHMARK_LIMIT = 300, 90  # seconds
#: Options of the benchmarks. On CUDA the large cross_entropy is reduced, because its check in NumPy takes minutes.
#: On the CPU, only these benchmarks run.
OPTIONS = {
    "cuda": {"cross_entropy": ["--large-rows", "2048"]},
    "cpu": {
        "forward": [], "lstm": [], "cross_entropy": ["--large-rows", "1024"], "step": ["--repeats", "5"],
        "group_shared": ["--repeats", "3"], "sampling": ["--step-classes", "100000", "--largest", "200000"],
    },
}  # fmt: skip


def parts(out, rows, smoke):
    """``{name: command}`` in the order in which they run, those on the GPU first."""
    commands = {"tests": ["python", "-m", "pytest", "tests", "-q", f"--junitxml={out / 'pytest.xml'}"]}
    names = sorted(path.stem for path in machine.HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    for device, chosen in (("cuda", names), ("cpu", OPTIONS["cpu"])):
        for name in chosen:
            file = rows / f"{name}-{device}.json"
            command = ["python", "-m", f"bench.{name}", "--device", device, "--json", str(file)]
            commands[f"{name} {device}"] = command + (["--smoke"] if smoke else OPTIONS[device].get(name, []))
    return commands


def limit_of(name, others, left):
    """Time limit of a part in seconds: its share of the time `left` for it and the `others` on its device."""
    device = name.rpartition(" ")[2]
    share = left / (1 + sum(other.endswith(device) for other in others))
    return min(TESTS_LIMIT, left) if name == "tests" else min(BENCHMARK_LIMIT, share)


def run_part(name, command, limit, log):
    """Run one command for at most `limit` seconds, with its output in `log`; returns its entry of the summary."""
    command_line = " ".join(command)
    print(f"{name}: {command_line} (at most {limit:.0f} s)", flush=True)
    log.write(f"\n==== {name}: {command_line}\n")
    log.flush()
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}
    start, rc, status = time.perf_counter(), 124, "not started: out of time"
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
    """Totals of a JUnit file, and the number of skipped tests by reason; {} if the file does not exist."""
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
    parser.add_argument("--minutes", type=float, default=9.5, help="total time limit (default: 9.5)")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="run the benchmarks at tiny sizes; their rows are not added to bench/results/",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and exit")
    args = parser.parse_args(argv)
    if args.dry_run:
        print(*(" ".join(command) for command in parts(args.out, args.out, args.smoke).values()), sep="\n")
        return 0
    if SIMULATOR or not cuda_available():
        problem = "NUMBA_ENABLE_CUDASIM is set; unset it to use the device" if SIMULATOR else cuda_problem()
        print(f"bench.gpu needs a real CUDA device: {problem}", file=sys.stderr)
        return 2
    out, start, lines, rows = args.out.resolve(), time.perf_counter(), [], []
    out.mkdir(parents=True, exist_ok=True)
    for name in ("pytest.xml", "results.json"):
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder, open(out / "log.txt", "w") as log:
        commands = parts(out, Path(folder), args.smoke)
        for i, (name, command) in enumerate(commands.items(), 1):
            left = 60 * args.minutes - (time.perf_counter() - start)
            lines.append(run_part(name, command, limit_of(name, list(commands)[i:], left), log))
            lines[-1]["command"] = lines[-1]["command"].replace(f"{out}/", "").replace(f"{folder}/", "")
        for path in sorted(Path(folder).glob("*.json")):
            rows += json.loads(path.read_text())
    tables.write_rows(out / "results.json", rows)
    failed = [line["name"] for line in lines if line["rc"] != 0]
    summary = {"environment": machine.environment("cuda"), "parts": lines, "failed": failed}
    summary |= {"tests": junit_counts(out / "pytest.xml"), "seconds": round(time.perf_counter() - start, 1)}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if not args.smoke:
        report.main(["--add", str(out / "results.json")])
    print(f"{len(failed)} of {len(lines)} parts failed, {summary['seconds']:.0f} s; see summary.json and log.txt")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
