"""Run every tutorial at smoke size with the right answers, warnings as errors; then check that wrong answers fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from answers import ANSWERS

HERE = Path(__file__).resolve().parent
TUTORIALS = sorted(path.stem for path in HERE.glob("[0-9][0-9]_*.py"))


def cells_of(name):
    """[(kind, exercise or None, source)] of the code cells of a tutorial; kind is 'exercise', 'check' or None."""
    found = []
    for cell in re.split(r"^# %%", (HERE / f"{name}.py").read_text(), flags=re.MULTILINE)[1:]:
        head, _, source = cell.partition("\n")
        if "[markdown]" not in head:
            marked = re.search(r'(exercise|check)="([\w-]+)"', head)
            found.append((*(marked.groups() if marked else (None, None)), source))
    return found


def run(name):
    """Run the tutorial in this process, and run its checks on every answer."""
    namespace, checks, answers = {"__name__": "__main__"}, {}, ANSWERS[name]
    for kind, exercise, source in cells_of(name):
        if kind == "check":
            checks[exercise] = source
        exec(answers[exercise][0] if kind == "exercise" else source, namespace)
    assert set(checks) == set(answers), "an exercise without a check, or without answers"
    for exercise, (_, *wrong) in answers.items():
        assert wrong, f"{exercise}: answers.py has no wrong answer"
        for answer in wrong:
            exec(answer, namespace)
            try:
                exec(checks[exercise], namespace)
            except AssertionError:
                continue
            raise SystemExit(f"exercise {exercise} accepts a wrong answer:\n{answer}")


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial(name, tmp_path):
    environment = os.environ | {
        "TUTORIAL_SMOKE": "1", "TUTORIAL_OUTPUT": str(tmp_path), "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
    }  # fmt: skip
    command = [sys.executable, "-W", "error", __file__, name]
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "skipped" not in done.stdout
    assert done.stdout.count(": right.") >= len(ANSWERS[name])


def test_all_tutorials_have_exercises():
    assert set(ANSWERS) == set(TUTORIALS)


if __name__ == "__main__":
    run(sys.argv[1])
