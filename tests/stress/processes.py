"""Forks, spawns, threading layers and an empty kernel cache: other processes find the same bits as this one."""

import concurrent.futures
import importlib.util
import json
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from . import entries, storm

ROOT = Path(__file__).parents[2]
#: What forked and spawned processes compute: something of every kind, none of which takes long.
WORK = (
    ("layers", "fixed_fan_in_top_k"),
    ("layers", "fixed_fan_in_step"),
    ("softmax", "softmax_cross_entropy"),
    ("softmax", "FullSoftmax.top_k"),
    ("samplers", "InvertedMultiIndex.sample"),
    ("samplers", "sampled_softmax"),
    ("experts", "PackedDSSoftmax.top_k"),
    ("experts", "SparseExperts.step"),
    ("classifiers", "train.Classifier.predict"),
    ("language_models", "train.LanguageModel.perplexity"),
    ("language_models", "train.LanguageModel.generate"),
)
#: Nothing here takes a hundredth of it: whoever is silent for so many seconds hangs.
HANGS = 600


def work(item):
    """The bits of a function's calls as text, or what went wrong; objects that exist already are used again."""
    group, name = item
    try:
        made = {name: _made(group)[name]}
        return storm.digest(made)[name]
    except Exception as error:  # noqa: BLE001  whatever it is, it is reported
        return f"{type(error).__name__}: {error}"


_objects = {}


def _made(group):
    if group not in _objects:
        _objects[group] = entries.GROUPS[group](0)
    return _objects[group]


# ------------------------------------------------------------ forks and spawns


def work_and_threads(item):
    """`work`, and again in two threads at once: what all say, or what they disagree on."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = {work(item), *pool.map(work, [item, item])}
    return answers.pop() if len(answers) == 1 else f"threads of one process disagree: {sorted(answers)}"


def forked(item):
    """`work_and_threads` in a forked child: what it says, or how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with storm.shared_out():
                os.write(writing, work_and_threads(item).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if not select.select([pipe], [], [], HANGS)[0]:
            os.kill(child, signal.SIGKILL)
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    return answer if not status else f"ended by signal {os.waitstatus_to_exitcode(status)}"


def pooled(how, items):
    """`work` by a pool of two processes, each of which does one item."""
    with multiprocessing.get_context(how).Pool(2, maxtasksperchild=1) as pool:
        try:
            return pool.map_async(work, items, chunksize=1).get(HANGS)
        except multiprocessing.TimeoutError:
            return ["the pool hangs"] * len(items)


def forks(n_processes, seed, say):
    """Forks before and after the first call and beside busy threads, pools of forked and of spawned processes.

    Returns (processes, what went wrong). It must be the first thing that its process does.
    """
    draw, results = random.Random(seed), []
    shares = {"before use": 3, "after use": 3, "beside busy threads": 1, "fork pool": 2, "spawn pool": 1}

    def run(kind, answers_of):
        items = [draw.choice(WORK) for _ in range(-(-n_processes * shares[kind] // sum(shares.values())))]
        results.extend((kind, item, answer) for item, answer in zip(items, answers_of(items), strict=True))
        say(f"forks and spawns, {kind}: {len(items)} processes")

    run("before use", lambda items: list(map(forked, items)))
    wanted = {item: work(item) for item in WORK}
    run("after use", lambda items: list(map(forked, items)))
    stop = threading.Event()

    def busy(number):
        while not stop.is_set():
            work(WORK[number])

    threads = [threading.Thread(target=busy, args=(number,)) for number in (0, 2, 8)]
    for thread in threads:
        thread.start()
    try:
        run("beside busy threads", lambda items: list(map(forked, items)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    run("fork pool", lambda items: pooled("fork", items))
    run("spawn pool", lambda items: pooled("spawn", items))
    failures = [
        f"{kind}: {item[1]}: {'other bits than the parent' if len(answer) == 64 else answer or 'no answer'}"
        for kind, item, answer in results
        if answer != wanted[item]
    ]
    return len(results), failures


# ------------------------------------------------------------ whole processes


def layers():
    """Threading layers that can be tried here."""
    return ["omp", "workqueue", *(["tbb"] if importlib.util.find_spec("tbb") else [])]


def start(*arguments, **environment):
    """``python -m tests.stress`` with these arguments; a Popen with pipes."""
    command = [sys.executable, "-m", __package__, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def cold_caches(groups, say):
    """Two processes that find the same empty kernel cache at once, and a third that finds it full: the same bits.

    Returns (processes, what went wrong).
    """
    with tempfile.TemporaryDirectory() as folder:
        found, failures = [], []
        for n_processes in (2, 1):
            running = [start("--digest", *groups, NUMBA_CACHE_DIR=folder) for _ in range(n_processes)]
            for process in running:
                out, err = process.communicate()
                if process.returncode:
                    failures.append(f"cold cache: exit code {process.returncode}: {err.strip()[-2000:]}")
                else:
                    found.append(json.loads(out.splitlines()[-1]))
                failures += [f"cold cache: {line}" for line in err.splitlines() if "Warning" in line]
            say(f"kernel cache: {n_processes} process{'es' * (n_processes > 1)} done")
        for other in found[1:]:
            failures += [f"cold cache: other bits of {name}" for name in other if other[name] != found[0][name]]
        kernels = sum(path.is_file() for path in Path(folder).rglob("*"))
    if not kernels:
        failures.append("cold cache: no kernel was written")
    return 3, failures
