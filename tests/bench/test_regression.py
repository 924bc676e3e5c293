"""Comparison with earlier results, on synthetic rows: nothing is timed here."""

import json
import subprocess

import pytest

from bench import machine, regression, tables

MACHINE = {"cpu": "Processor A", "cores": 2, "caches": {"L1": 1, "L2": 2, "L3": 3}}


def row(seconds=0.002, *, benchmark="step", cpu="Processor A", threads=2, date="2026-01-01T00:00:00", **parameters):
    """A row with two contestants of ours and a competitor."""
    names = {"ours": seconds, "ours, bfloat16": 2 * seconds, "PyTorch": 5 * seconds}
    contestants = {name: {"median_s": value, "note": ""} for name, value in names.items()}
    return {
        "benchmark": benchmark,
        "parameters": {"labels": 10, "device": "cpu", "repeats": 15} | parameters,
        "contestants": contestants | {"ours, one thread": {"unavailable": "not today"}},
        "environment": {"machine": MACHINE | {"cpu": cpu}, "threads": threads, "date_utc": date},
    }


def test_only_our_contestants_are_compared():
    assert regression.times(row(0.5)) == {"ours": 0.5, "ours, bfloat16": 1.0}


def test_samplers_and_builds_are_compared():
    draws = {
        "benchmark": "sampling",
        "table": {"header": ["sampler", "10 classes, ms (min)", "1,000 classes, ms (min)", "ns a draw", "growth"]},
        "figures": {"uniform": {"growth": 2.0, "median_s": [0.1, 0.2]}},
    }
    assert regression.times(draws) == {"uniform, 10 classes": 0.1, "uniform, 1,000 classes": 0.2}
    built = {"benchmark": "sampling: index", "figures": {"1000": {"build": 3.0, "update": 1.0}}}
    assert regression.times(built) == {"build, 1,000 classes": 3.0, "update, 1,000 classes": 1.0}
    assert regression.times({"benchmark": "cross_entropy: accuracy", "figures": {"ours": {"loss": 1e-7}}}) == {}


def test_rows_compare_with_the_newest_of_the_same_parameters_machine_and_threads():
    stored = [
        row(0.010, date="2026-01-03T00:00:00"),
        row(0.020, date="2026-01-02T00:00:00"),
        row(0.001, labels=20, date="2026-02-01T00:00:00"),
        row(0.001, cpu="Processor B", date="2026-02-01T00:00:00"),
        row(0.001, threads=1, date="2026-02-01T00:00:00"),
        row(0.001, benchmark="top_k", date="2026-02-01T00:00:00"),
    ]
    ours, narrow = regression.compare([row(0.012, repeats=7, active_scores_percent=1.1)], stored)
    assert (ours.before, ours.now, ours.date) == (0.010, 0.012, "2026-01-03")
    assert ours.ratio == pytest.approx(1.2)
    assert (narrow.what, narrow.ratio) == ("ours, bfloat16", pytest.approx(1.2))


@pytest.mark.parametrize(
    ("seconds", "status", "message"),
    [
        (0.010, 0, "None of 2 times is more than 1.25 times as long as before."),
        (0.0124, 0, "None of 2 times"),
        (
            0.013,
            1,
            "2 of 2 times are more than 1.25 times as long as before; the worst: step, loss bce, ours: 1.30 times.",
        ),
    ],
)
def test_status(seconds, status, message):
    comparisons = regression.compare([row(seconds, loss="bce")], [row(0.010, loss="bce")])
    found, line = regression.verdict(comparisons, 1.25)
    assert found == status
    assert line.startswith(message)
    shown = regression.table(comparisons, 1.25)
    assert ("SLOWER than 1.25 x (before: 2026-01-01)" in shown) == (status == 1)


def test_a_missing_earlier_result_is_reported_and_does_not_fail():
    comparisons = regression.compare([row(), row(labels=99)], [row()])
    assert regression.verdict(comparisons, 1.25)[0] == 0
    assert regression.table(comparisons, 1.25).count("no earlier result") == 2
    comparisons = regression.compare([row()], [row(cpu="Processor B")])
    status, line = regression.verdict(comparisons, 1.25)
    assert status == 2
    assert "Nothing to compare with" in line


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder with one row of results of this (pretended) machine."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "environment", lambda device: {"machine": MACHINE})
    monkeypatch.setattr(regression.numba.config, "NUMBA_NUM_THREADS", 2)
    (tmp_path / "step-cpu.json").write_text(json.dumps([row(0.010)]))
    return tmp_path


def test_command(results, monkeypatch, capsys):
    fresh = {"step": 0.011, "lstm": 0.011}
    monkeypatch.setattr(regression, "run", lambda name, args: [row(fresh[name], benchmark=name)])
    assert regression.main(["step", "lstm"]) == 0
    shown = capsys.readouterr().out
    assert "1.10" in shown
    assert shown.count("no earlier result") == 2  # of lstm
    fresh["step"] = 0.014
    assert regression.main(["step"]) == 1
    assert regression.main(["step", "--tolerance", "1.5"]) == 0
    assert [path.name for path in results.iterdir()] == ["step-cpu.json"]


def test_a_benchmark_that_fails_fails_the_command(results, monkeypatch, capsys):
    def run(name, args):
        if name == "lstm":
            raise subprocess.CalledProcessError(1, "python")
        return [row(0.010, benchmark=name)]

    monkeypatch.setattr(regression, "run", run)
    assert regression.main(["lstm", "step"]) == 1
    assert "bench.lstm failed with exit status 1" in capsys.readouterr().out


def test_a_machine_without_results_measures_nothing(results, monkeypatch, capsys):
    monkeypatch.setattr(regression, "run", lambda *_: pytest.fail("nothing should be measured"))
    for arguments in (["lstm"], ["--threads", "1"]):
        assert regression.main(arguments) == 2
        assert "No results of this type of machine" in capsys.readouterr().out


def test_unknown_benchmarks_are_refused(results, capsys):
    with pytest.raises(SystemExit):
        regression.main(["words"])
    assert "unknown benchmark 'words'" in capsys.readouterr().err


def test_every_benchmark_has_results_to_compare_with():
    """On any machine: if a parameter or benchmark were renamed, nothing would be compared."""
    for name in regression.BENCHMARKS:
        rows = regression.stored_rows([name])
        assert any(regression.times(one) for one in rows), name
