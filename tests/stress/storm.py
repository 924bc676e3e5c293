"""Many Python threads call everything at once; each result must be that of a single thread, to the bit."""

import concurrent.futures
import contextlib
import hashlib
import random
import sys
import threading

import numba
import threadpoolctl

from sparsemax_nb.core import threads

from . import entries


def alone(made):
    """The bits of every call of a group's objects, from this thread: {name: [bits, ...]}."""
    return {name: [entries.bits(call()) for call in calls] for name, calls in made.items()}


def digest(made):
    """{name: a hash of the bits of its calls}, for comparing processes."""
    return {name: hashlib.sha256(repr(found).encode()).hexdigest() for name, found in alone(made).items()}


def at_once(n_threads, work):
    """``work(thread)`` in so many threads, which start together and are interrupted often; their results."""
    barrier, before = threading.Barrier(n_threads), sys.getswitchinterval()

    def start(thread):
        barrier.wait()
        return work(thread)

    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(start, range(n_threads)))
    finally:
        sys.setswitchinterval(before)


def check(call, wanted):
    """What is wrong with a call's result, or None."""
    try:
        return None if entries.bits(call()) == wanted else "other bits than alone"
    except Exception as error:  # noqa: BLE001  whatever it is, it is reported
        return f"{type(error).__name__}: {error}"


def storm_of(name, objects, wanted, n_calls):
    """`n_calls` calls of `name`, shared out to one thread for each of `objects`; what went wrong."""
    n_threads = len(objects)

    def work(thread):
        calls, expected = objects[thread][name], wanted[thread][name]
        numbers = (number % len(calls) for number in range(thread, n_calls, n_threads))
        return [check(calls[number], expected[number]) for number in numbers]

    return [problem for found in at_once(n_threads, work) for problem in found if problem]


def mixed_storm(objects, wanted, n_threads, n_calls, seed):
    """`n_calls` calls of what is drawn from all functions, on shared objects; what went wrong, with names."""

    def work(thread):
        draw, found = random.Random(f"{seed} {thread}"), []
        for _ in range(thread, n_calls, n_threads):
            name = draw.choice(sorted(objects))
            number = draw.randrange(len(objects[name]))
            problem = check(objects[name][number], wanted[name][number])
            found += [f"{name}: {problem}"] if problem else []
        return found

    return [problem for found in at_once(n_threads, work) for problem in found]


@contextlib.contextmanager
def shared_out():
    """Numba's threads share out small work, too: kernels that one thread would do alone become what large ones are."""
    before, threads.MIN_PARALLEL = threads.MIN_PARALLEL, 0
    try:
        yield
    finally:
        threads.MIN_PARALLEL = before


def thread_counts():
    """{library: its threads}: each BLAS of the process by its file, and Numba."""
    pools = threadpoolctl.threadpool_info()
    blas = {pool["filepath"].rpartition("/")[2]: pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}
    return blas | {"numba": numba.get_num_threads()}


def storm(groups, n_threads=32, n_calls=1000, seed=0, say=print, n_seeds=4):
    """Every function of the groups on shared and on separate objects, then all of them mixed.

    Separate objects are those of seed ``t % n_seeds`` for thread t. Returns (calls that were made, what went wrong);
    `say` is told how far it is.
    """
    before, failures, total = thread_counts(), [], 0
    everything, of_everything = {}, {}

    def note(where, problems):
        failures.extend(f"{where}: {problem}" for problem in problems)

    for group, make in groups.items():
        wanted, shared = [alone(make(number)) for number in range(n_seeds)], make(0)
        kinds = {"shared": [shared] * n_threads, "separate": [make(t % n_seeds) for t in range(n_threads)]}
        for kind, objects in kinds.items():
            expected = [wanted[0 if kind == "shared" else t % n_seeds] for t in range(n_threads)]
            n_wrong = len(failures)
            for name in shared:
                with shared_out():
                    note(f"{name} ({kind})", storm_of(name, objects, expected, n_calls))
                total += n_calls
            say(f"{group}, {kind} objects: {len(shared)} functions, {len(failures) - n_wrong} calls went wrong")
        everything |= shared
        of_everything |= wanted[0]
    for kind, context in (("mixed, small work shared out", shared_out), ("mixed", contextlib.nullcontext)):
        n_wrong = len(failures)
        with context():
            note(kind, mixed_storm(everything, of_everything, n_threads, 10 * n_calls, seed))
        total += 10 * n_calls
        say(f"all functions, {kind}: {len(failures) - n_wrong} calls went wrong")
    after = thread_counts()
    if after != before:
        failures.append(f"threads of each library: {before} before, {after} after")
    return total, failures
