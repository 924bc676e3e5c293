"""The short form of ``python -m tests.fuzz.calls``: every public name is covered, a few calls pass, faults are seen."""

import warnings

import numpy as np
import pytest

from sparsemax_nb import SGD

from .fuzz import calls, cases, children, odd

#: Calls of each name; those of the estimators train a model.
FEW = 2
SLOW = {"Classifier", "LanguageModel", "DSSoftmax"}


def test_every_public_name_has_a_case():
    assert set(calls.public_names()) == set(cases.CASES)


def test_a_few_calls_of_each_name():
    names = [name for name in calls.public_names() if name.split(".")[0] not in SLOW]
    table, failures = calls.run(names, FEW, seed=1)
    assert not failures, "\n".join(failures)
    assert all(sum(counts.values()) == FEW for counts in table.values())
    total = sum(table.values(), type(table[names[0]])())
    assert min(total["accepted"], total["refused"]) > len(names) / 2


def outcome(monkeypatch, function, *args, me=None, **more):
    """What becomes of ``function(*args)``, which is not spoiled."""
    monkeypatch.setitem(cases.CASES, "UniformSampler", lambda random: cases.Call(function, list(args), me=me, **more))
    monkeypatch.setattr(calls, "spoiled", lambda random, call: call)
    return calls.one("UniformSampler", 0, 0)


def test_faults_are_seen(monkeypatch):
    a = np.zeros(3)

    def writes_and_raises(a):
        a[0] += 1
        SGD(-1)  # learning_rate

    for function, why in (
        (lambda a: a["x"], "raw IndexError"),
        (lambda a: a.nothing, "raw AttributeError"),
        (lambda a: np.log(a), "raw RuntimeWarning"),
        (lambda a: warnings.warn("x", stacklevel=2), "raw UserWarning"),
        (lambda a: int("x"), "raised outside"),
        (lambda a: SGD(-1), "names no argument"),
        (lambda a: a.__setitem__(0, 5), "changed what it reads"),
    ):
        found = outcome(monkeypatch, function, a.copy())
        assert found["outcome"] == "failed" and found["why"].startswith(why), (why, found)
    wrong = outcome(
        monkeypatch, lambda a: 1, a, check=lambda result, a: odd.state(a) and (_ for _ in ()).throw(AssertionError)
    )
    assert wrong["why"].startswith("result: AssertionError")
    assert (
        outcome(monkeypatch, lambda learning_rate, a: writes_and_raises(a), 1, a)["why"] == "changed before the error"
    )
    assert outcome(monkeypatch, lambda learning_rate: SGD(-1), 1)["outcome"] == "refused"
    assert outcome(monkeypatch, lambda a: a.sum(), a)["outcome"] == "accepted"


def test_what_kills_a_child_is_one_case(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(
        "import os, sys\n"
        "from tests.fuzz import children\n"
        "first, count, records = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]\n"
        "def case(i):\n"
        "    if i == 2: os.abort()\n"
        "    if i == 4: sys.exit(3)\n"
        "    if i == 5:\n"
        "        try: bytearray(1 << 40)\n"
        "        except MemoryError: return 'refused'\n"
        "    return i * i\n"
        "children.work(records, range(first, first + count), case)\n"
    )
    bootstrap = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    found = children.run(lambda *numbers: ["-c", bootstrap, str(script), *map(str, numbers)], 0, 7)
    assert [found[i] for i in (0, 1, 3, 5, 6)] == [0, 1, 9, "refused", 36]
    assert (found[2]["died"], found[4]["died"]) == (-6, 3)


@pytest.mark.parametrize("name", ["fixed_fan_in_step", "precision_at_k"])
def test_the_same_seed_makes_the_same_calls(name):
    first, again = (calls.one(name, 3, 1) for _ in range(2))
    assert first == again
