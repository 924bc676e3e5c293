"""Competitors, all optional. A peer prepares everything that is not measured, and returns the function to be timed."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Unavailable(RuntimeError):
    """A competitor is not available; the message gives the reason."""


def answered(predict, rows, n_single):
    """``predict(rows)``, and milliseconds per query: all rows in one call; `n_single` rows with one call each."""
    single, times = [rows[i] for i in range(min(n_single, rows.shape[0]))], [time.perf_counter()]
    answer = predict(rows)
    times.append(time.perf_counter())
    for row in single:
        predict(row)
    times.append(time.perf_counter())
    together, separately = (1e3 * (b - a) for a, b in zip(times, times[1:], strict=False))
    n_rows = max(1, rows.shape[0])
    return answer, {"ms_a_query": together / n_rows, "ms_a_query_alone": separately / max(1, len(single))}


class Peer(NamedTuple):
    """`run()` computes the result, `note` describes the method, and `arrays` are additional arguments of the check."""

    run: Callable
    note: str = ""
    arrays: tuple = ()
