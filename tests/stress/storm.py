"""Many Python threads call everything at once; each result must be that of a single thread, to the bit."""

import concurrent.futures
import hashlib
import random
import sys
import threading

import numba
import threadpoolctl

from . import entries

#: Objects differ by their seed; thread t of those that share nothing has objects of seed ``t % SEEDS``.
SEEDS = 4


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


def blas_threads():
    """Threads of each BLAS in the process, by its file."""
    return {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


def storm(groups, n_threads=32, n_calls=1000, seed=0, say=print):
    """Every function of the groups on shared and on separate objects, then all of them mixed.

    Returns (calls that were made, what went wrong). `say` is told how far it is.
    """
    before, failures, total = (blas_threads(), numba.get_num_threads()), [], 0
    everything, of_everything = {}, {}

    def note(where, problems):
        failures.extend(f"{where}: {problem}" for problem in problems)

    for group, make in groups.items():
        wanted = [alone(make(number)) for number in range(min(SEEDS, n_threads))]
        shared = make(0)
        kinds = {"shared": [shared] * n_threads, "separate": [make(t % len(wanted)) for t in range(n_threads)]}
        for kind, objects in kinds.items():
            expected = [wanted[0 if kind == "shared" else t % len(wanted)] for t in range(n_threads)]
            n_wrong = len(failures)
            for name in shared:
                note(f"{name} ({kind})", storm_of(name, objects, expected, n_calls))
                total += n_calls
            say(f"{group}, {kind} objects: {len(shared)} functions, {len(failures) - n_wrong} calls went wrong")
        everything |= shared
        of_everything |= wanted[0]
    note("mixed", mixed_storm(everything, of_everything, n_threads, 10 * n_calls, seed))
    total += 10 * n_calls
    after = blas_threads(), numba.get_num_threads()
    if after != before:
        failures.append(f"numbers of threads of BLAS and Numba before and after: {before}, {after}")
    say(f"all functions mixed: done; threads of BLAS and Numba {'as before' if after == before else 'CHANGED'}")
    return total, failures
