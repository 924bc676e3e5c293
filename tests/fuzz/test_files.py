"""The short form of ``python -m tests.fuzz.files``."""

from tests.fuzz import files


def test_damaged_files_are_refused_or_answer():
    counts, wrong = files.run(list(files.KINDS), n=40, seed=1)
    assert not wrong
    for name, found in counts.items():
        assert sum(found.values()) == 40 and found["refused"] and found["answered"], name
