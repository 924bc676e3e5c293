"""Threads, forks and processes, thousands of times: every result must have the bits that a single thread finds.

``python -m tests.stress`` runs all parts, each threading layer in a process of its own; ``--parts forks --layers omp``
and ``--groups layers softmax`` choose some. The exit code is 1 where anything went wrong.
"""

import argparse
import json
import os
import sys
import time

from . import entries, processes, storm

PARTS = "threads", "forks", "caches"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--groups", nargs="+", choices=entries.GROUPS, default=[*entries.GROUPS], metavar="GROUP")
    parser.add_argument("--layers", nargs="+", default=processes.layers(), help="threading layers")
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--calls", type=int, default=1000, help="of each function, on shared and on separate objects")
    parser.add_argument("--processes", type=int, default=200, help="forks and spawns")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--inside", choices=("threads", "forks"), help=argparse.SUPPRESS)  # one part, in this process
    parser.add_argument("--digest", nargs="+", metavar="GROUP", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.digest:
        print(
            json.dumps(
                {name: some for g in options.digest for name, some in storm.digest(entries.GROUPS[g](0)).items()}
            )
        )
        return 0
    if options.inside:
        return inside(options)
    return everything(options)


def say(text):
    """A line of progress, with the seconds so far."""
    print(f"[{time.perf_counter() - STARTED:6.0f} s] {text}", flush=True)


STARTED = time.perf_counter()


def inside(options):
    """A part in this process; the last line is JSON: how many calls or processes, and what went wrong."""
    if options.inside == "forks":
        count, failures = processes.forks(options.processes, options.seed, say)
    else:
        groups = {name: entries.GROUPS[name] for name in options.groups}
        count, failures = storm.storm(groups, options.threads, options.calls, options.seed, say)
    print(json.dumps({"count": count, "failures": failures}))
    return 1 if failures else 0


def everything(options):
    """All parts that are wanted, in processes of their own; a summary at the end."""
    lines, n_failures = [], 0

    def note(what, count, failures):
        nonlocal n_failures
        n_failures += len(failures)
        for text in dict.fromkeys(failures):
            print(f"  {text} ({failures.count(text)} times)", flush=True)
        lines.append(f"{what}: {count:,}, {len(failures):,} went wrong")
        say(lines[-1])

    if "threads" in options.parts:
        lost, gone = entries.missing()
        note("public functions without an entry, or entries of none", len(lost + gone), lost + gone)
    for part, unit in (("threads", "calls"), ("forks", "processes")):
        for layer in options.layers if part in options.parts else ():
            chosen = ["--threads", options.threads, "--calls", options.calls, "--processes", options.processes]
            chosen += ["--seed", options.seed, "--groups", *options.groups]
            running = processes.start("--inside", part, *chosen, NUMBA_THREADING_LAYER=layer)
            last = ""
            for line in running.stdout:
                if line.startswith("["):
                    print(f"  {layer} {line}", end="", flush=True)
                last = line
            _, err = running.communicate()
            if last.startswith("{"):
                note(f"{part} ({layer}), {unit}", **json.loads(last))
            else:
                end = f"exit code {running.returncode}: {err.strip()[-2000:]}"
                note(f"{part} ({layer}), {unit}", 0, [f"{part} ({layer}): {end}"])
    if "caches" in options.parts:
        note("empty kernel cache, processes", *processes.cold_caches(options.groups, say))
    print("\n".join([f"\n{os.path.basename(sys.executable)} {sys.version.split()[0]}, {os.cpu_count()} cores", *lines]))
    print(f"{n_failures} failures" if n_failures else "no failures")
    return 1 if n_failures else 0


if __name__ == "__main__":
    sys.exit(main())
