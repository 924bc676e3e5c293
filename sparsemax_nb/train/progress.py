"""How far a run of training is, on standard error."""

import sys
import time

from tqdm import tqdm

#: In a file or a pipe: a line for each of so many parts of the run, and one after so many seconds without any.
PARTS, SECONDS = 10, 60.0
#: Steps between two looks at the figures beside a bar.
FIGURES_EVERY = 20


class Progress:
    """A bar in a terminal; a plain line now and then where standard error is a file or a pipe.

    Parameters
    ----------
    total : int
        Steps of the whole run.
    done : int
        Of them, those of the run that is resumed.
    wanted : bool
        False shows nothing.
    clock : callable
        Seconds, as `time.monotonic` gives them.
    """

    def __init__(self, total, done, wanted, clock=time.monotonic):
        self._total, self._done, self._wanted, self._clock = total, done, wanted, clock
        self._part, self._said, self._bar = PARTS * done // max(total, 1), clock(), None
        if wanted and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="step", file=sys.stderr, mininterval=0.5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def step(self, figures):
        """One more step is done; ``figures()`` is a dict of what is shown beside its number."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
            if self._done % FIGURES_EVERY == 0:
                self._bar.set_postfix(figures(), refresh=False)
        elif self._wanted and self._is_due():
            shown = ", ".join(f"{name}={value}" for name, value in figures().items())
            share = self._done / self._total
            print(f"step {self._done:,} of {self._total:,} ({share:.0%})  {shown}", file=sys.stderr, flush=True)

    def _is_due(self):
        part, now = PARTS * self._done // self._total, self._clock()
        if part == self._part and now - self._said < SECONDS:
            return False
        self._part, self._said = part, now
        return True
