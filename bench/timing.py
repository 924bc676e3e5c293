"""Time contestants in alternation, after checking their results.

A measurement runs several rounds. In each round every contestant is called once, so that other work on the machine
affects all of them alike. Ratios are taken within a round.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Contestant(NamedTuple):
    """`run()` computes a result; `check(result)` raises if it is wrong; `note` describes the method for the table."""

    run: Callable
    check: Callable
    note: str = ""


class Timing(NamedTuple):
    """Seconds of each timed call, in order. The first call, which includes compilation, is recorded separately."""

    name: str
    first_call_s: float
    seconds: list

    def summary(self):
        """Median, 10 % and 90 % quantiles, minimum and first call, in seconds."""
        q10, median, q90 = np.quantile(self.seconds, (0.1, 0.5, 0.9)).tolist()
        low = min(self.seconds)
        return {"median_s": median, "q10_s": q10, "q90_s": q90, "min_s": low, "first_call_s": self.first_call_s}


def _timed(run, sync):
    start = time.perf_counter()
    result = run()
    if sync is not None:
        sync()
    return time.perf_counter() - start, result


def measure(name, run, check, *, repeats, warmup=1, sync=None):
    """Time one contestant. The first call is checked and recorded separately; `warmup` further calls are discarded."""
    return compare({name: Contestant(run, check)}, repeats, warmup=warmup, sync=sync)[name]


def compare(contestants, rounds, *, warmup=1, sync=None, pause=0.01):
    """Time the contestants in alternation (A B C A B C ...); returns ``{name: Timing}``.

    All results are checked before anything is timed. `sync`, if given, waits for the device, and its time counts. The
    process sleeps for `pause` seconds before each call, because the idle worker threads of a library keep spinning for
    a while and would slow down the next contestant.
    """
    timings = {}
    for name, contestant in contestants.items():
        first, result = _timed(contestant.run, sync)
        contestant.check(result)
        for _ in range(warmup):
            _timed(contestant.run, sync)
        timings[name] = Timing(name, first, [])
    for _ in range(rounds):
        for name, contestant in contestants.items():
            time.sleep(pause)
            timings[name].seconds.append(_timed(contestant.run, sync)[0])
    return timings


def ratio(timing, ours):
    """Time relative to `ours`: the median and the 10 % and 90 % quantiles of the ratios within each round."""
    q10, median, q90 = np.quantile(np.divide(timing.seconds, ours.seconds), (0.1, 0.5, 0.9)).tolist()
    return {"ratio_to_ours": median, "ratio_q10": q10, "ratio_q90": q90}


def fastest(runs, tries=3):
    """Name of the fastest of ``{name: run}`` by minimum time; the first call of each is not timed."""
    timings = compare({name: Contestant(run, lambda _: None) for name, run in runs.items()}, tries, warmup=0)
    return min(timings, key=lambda name: min(timings[name].seconds))


def require(condition, message):
    """Raise AssertionError with `message` unless `condition` holds."""
    if not condition:
        raise AssertionError(f"wrong result, nothing was timed: {message}")


def require_close(name, got, want, tolerance):
    """Require ``max |got - want| <= tolerance * max |want|``, and that `want` is not all zero."""
    error, scale = np.abs(got - want).max(), np.abs(want).max()
    require(error <= tolerance * scale and scale > 0, f"{name} is off by {error:.3g} of {scale:.3g}")
