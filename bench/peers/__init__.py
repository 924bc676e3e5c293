"""Optional rivals. A peer prepares everything that is not the question and returns a callable that is timed."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Unavailable(RuntimeError):
    """Why a rival can not take part here."""


def answered(ask, rows, alone):
    """``ask(rows)``, and milliseconds a query: of all rows in one call, and of the first `alone` in a call each."""
    some, times = [rows[i] for i in range(min(alone, rows.shape[0]))], [time.perf_counter()]
    answer = ask(rows)
    times.append(time.perf_counter())
    for row in some:
        ask(row)
    times.append(time.perf_counter())
    together, one = (1e3 * (b - a) for a, b in zip(times, times[1:], strict=False))
    return answer, {"ms_a_query": together / max(1, rows.shape[0]), "ms_a_query_alone": one / max(1, len(some))}


class Peer(NamedTuple):
    """`run()` computes and returns the result, `note` says in which form, `arrays` are what a check needs."""

    run: Callable
    note: str = ""
    arrays: tuple = ()
