"""Checked timings in turn: contestants, rounds, ratios, and the checks that come before any of them."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Contestant(NamedTuple):
    """`run()` computes and returns a result, `check(result)` raises where it is wrong, `note` says how it was done."""

    run: Callable
    check: Callable
    note: str = ""


class Timing(NamedTuple):
    """Seconds of every timed call, in order, and of the first call (compile time included), which is not among them."""

    name: str
    first_call_s: float
    seconds: list

    def summary(self):
        """Median, 10 % and 90 % quantile and minimum, in seconds."""
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
    """Time one contestant: its first call is checked and recorded apart, `warmup` more are thrown away."""
    return compare({name: Contestant(run, check)}, repeats, warmup=warmup, sync=sync)[name]


def compare(contestants, rounds, *, warmup=1, sync=None, pause=0.01):
    """Time contestants in turn, A B C A B C ..., so that a drifting machine hurts all alike; ``{name: Timing}``.

    Every result is checked before anything is timed. `sync` waits for the device; its time counts. Before each call the
    process sleeps `pause` seconds: a library's idle worker threads go on spinning for a while and would take time from
    the next contestant.
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
    """How many times as long as `ours` it takes: the median of the rounds' ratios and their quantiles."""
    q10, median, q90 = np.quantile(np.divide(timing.seconds, ours.seconds), (0.1, 0.5, 0.9)).tolist()
    return {"ratio_to_ours": median, "ratio_q10": q10, "ratio_q90": q90}


def fastest(runs, tries=3):
    """Name of the fastest of ``{name: run}``, called in turn, by its best time (after one call that does not count)."""
    timings = compare({name: Contestant(run, lambda _: None) for name, run in runs.items()}, tries, warmup=0)
    return min(timings, key=lambda name: min(timings[name].seconds))


def require(condition, message):
    """The check that benchmarks use: AssertionError with `message` where the condition does not hold."""
    if not condition:
        raise AssertionError(f"wrong result, nothing was timed: {message}")


def require_close(name, got, want, tolerance):
    """The same for numbers: to `tolerance` times the largest wanted, which must not be zero."""
    error, scale = np.abs(got - want).max(), np.abs(want).max()
    require(error <= tolerance * scale and scale > 0, f"{name} is off by {error:.3g} of {scale:.3g}")
