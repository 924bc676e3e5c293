"""What a run shows of its progress, in a terminal and in a file."""

import io

import pytest

from sparsemax_nb.train import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def lines(capsys):
    """What a run of so many steps writes to a standard error that is no terminal."""

    def shown(total, done=0, steps=None, clock=lambda: 0.0):
        with progress.Progress(total, done, True, clock) as bar:
            for n in range(total - done if steps is None else steps):
                bar.step(lambda n=n: {"loss": n})
        return capsys.readouterr().err.splitlines()

    return shown


@pytest.mark.parametrize(("total", "wanted"), [(1, [1]), (3, [1, 2, 3]), (25, [3, 5, 8, 10, 13, 15, 18, 20, 23, 25])])
def test_a_line_for_every_tenth(lines, total, wanted):
    assert lines(total) == [f"step {n} of {total} ({n / total:.0%})  loss={n - 1}" for n in wanted]


def test_a_run_that_is_resumed_goes_on(lines):
    assert [line.split()[1] for line in lines(1000, done=850)] == ["900", "1,000"]


def test_a_line_after_a_minute_without_one(lines):
    """A run that has a budget may never come to a tenth of its steps."""
    seconds = iter(range(0, 10_000, 25))
    shown = lines(10**9, steps=10, clock=lambda: next(seconds))
    assert [line.split()[1] for line in shown] == ["3", "6", "9"]


def test_a_bar_in_a_terminal_alone(monkeypatch, lines):
    assert all("\r" not in line for line in lines(40))
    monkeypatch.setattr(progress.sys, "stderr", terminal := Terminal())
    lines(40)
    assert "| 40/40 [" in terminal.getvalue() and "loss=39" in terminal.getvalue()


def test_nothing_where_it_is_not_wanted(capsys):
    with progress.Progress(3, 0, False) as bar:
        bar.step(lambda: pytest.fail("the text is not needed"))
    assert capsys.readouterr().err == ""


def test_a_time_budget_is_shown_in_seconds(monkeypatch, capsys):
    """A line per tenth of the budget; in a terminal a bar that ends at 100 %, even if the last step takes longer."""

    def run():
        with progress.Progress(5.0, 1.0, True, unit="s") as bar:
            for n in range(30):
                bar.step(lambda n=n: {"loss": n}, 0.15)
        return capsys.readouterr().err.splitlines()

    shown = run()
    assert shown[0] == "1.6 of 5 s (32%)  loss=3" and shown[-1] == "5.0 of 5 s (100%)  loss=26" and len(shown) == 8
    monkeypatch.setattr(progress.sys, "stderr", terminal := Terminal())
    run()
    assert "| 5.0/5 s, loss=19" in terminal.getvalue() and "100%|" in terminal.getvalue()
