"""Child processes that may crash, hang or ask for too much memory: what becomes of each of many numbered cases."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

#: Address space of a child: compilers and libraries take about three of it.
MEMORY = 8 << 30
#: Seconds of processor time of one case; compiling a kernel is part of it.
CPU_SECONDS = 120
#: Seconds that a child may take at all: only what sleeps for ever meets this limit.
WALL_SECONDS = 3600


def limit_memory(n_bytes=MEMORY):
    """From here on this process gets MemoryError where it asks for more."""
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def limit_processor(seconds=CPU_SECONDS):
    """The processor time that is left to this process from here on; SIGXCPU ends it behind that."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def work(records, numbers, case):
    """In the child: ``case(i)`` for each of the numbers; what it returns is written to the file `records` as JSON."""
    limit_memory()
    with open(records, "w") as stream:
        for i in numbers:
            limit_processor()
            print(json.dumps({"start": i}), file=stream, flush=True)
            print(json.dumps({"i": i, "outcome": case(i)}), file=stream, flush=True)


def run(command, first, count):
    """{number: outcome} of the cases first, ..., first + count - 1, which the child does that `command` starts.

    ``command(first, count, records)`` is the command line of a child that calls `work`. A child that dies is the
    outcome ``{"died": signal or exit status, "stderr": its last words}`` of the case that it was at; another one goes
    on behind.
    """
    outcomes, end = {}, first + count
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder, "records")
        while first < end:
            records.write_text("")
            environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
            try:
                child = subprocess.run(
                    [sys.executable, *command(first, end - first, str(records))], stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE, text=True, errors="replace", timeout=WALL_SECONDS, env=environment,
                )  # fmt: skip
                status, stderr = child.returncode, child.stderr
            except subprocess.TimeoutExpired as error:
                status, stderr = "hangs", str(error)
            lines = [json.loads(line) for line in records.read_text().splitlines() if line.endswith("}")]
            outcomes |= {line["i"]: line["outcome"] for line in lines if "i" in line}
            done = {line["i"] for line in lines if "i" in line}
            begun = [line["start"] for line in lines if "start" in line]
            at = next((i for i in begun if i not in done), None)
            if at is None and first + len(done) < end:  # it died before its first case, or between two
                raise RuntimeError(f"a child that does nothing ({status}): {stderr[-2000:]}")
            if at is not None:
                outcomes[at] = {"died": status, "stderr": stderr[-600:]}
            first = end if at is None else at + 1
    return outcomes
