"""Progress of a training run, or of reading texts, on standard error."""

import sys
import time

from tqdm import tqdm

#: In a file or a pipe, one line is printed per this share of the run, ...
LINES_PER_RUN = 10
#: ... and one after this many seconds without a line.
MAX_SILENT_SECONDS = 60.0
#: Steps between two updates of the metrics shown next to a bar. Formatting them takes time.
METRICS_EVERY = 20
#: A bar of seconds: tqdm's own would also show seconds per second.
SECONDS_BAR = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:g} s{postfix}"


class Progress:
    """A bar in a terminal; a plain line now and then if standard error is a file or a pipe.

    Parameters
    ----------
    total : int or float
        Steps of the whole run; or the seconds of its time budget, with the unit 's'.
    done : int or float
        Steps that are already done, or seconds that have passed, in a resumed run.
    enabled : bool
        False shows nothing.
    clock : callable
        Returns seconds, like `time.monotonic`.
    unit : str
        What is counted.
    """

    def __init__(self, total, done, enabled, clock=time.monotonic, unit="step"):
        self._total = total
        self._done = done
        self._enabled = enabled
        self._clock = clock
        self._unit = unit
        self._n_calls = 0
        self._part = LINES_PER_RUN * done // (total or 1)
        self._last_line = clock()
        self._bar = None
        if enabled and sys.stderr.isatty():
            bar_format = SECONDS_BAR if unit == "s" else None
            self._bar = tqdm(
                total=total, initial=done, unit=unit, bar_format=bar_format, file=sys.stderr, mininterval=0.5
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def step(self, metrics=dict, n=1):
        """Count n more steps or seconds; ``metrics()`` returns a dict of values to show next to their number."""
        self._done, self._n_calls = min(self._done + n, self._total), self._n_calls + 1
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)
            if self._n_calls % METRICS_EVERY == 0:
                self._bar.set_postfix(metrics(), refresh=False)
        elif self._enabled and self._is_due():
            shown = ", ".join(f"{name}={value}" for name, value in metrics().items())
            share = self._done / self._total
            done = f"{self._unit} {self._done:,} of {self._total:,}"
            if self._unit == "s":
                done = f"{self._done:.1f} of {self._total:g} s"
            print(f"{done} ({share:.0%})  {shown}".rstrip(), file=sys.stderr, flush=True)

    def _is_due(self):
        part, now = LINES_PER_RUN * self._done // self._total, self._clock()
        if part == self._part and now - self._last_line < MAX_SILENT_SECONDS:
            return False
        self._part, self._last_line = part, now
        return True
