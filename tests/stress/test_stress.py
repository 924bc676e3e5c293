"""The short form of ``python -m tests.stress``: the same parts, with few threads, calls and processes."""

import json

import numpy as np
import pytest

from . import entries, processes, storm


def test_every_public_function_has_an_entry():
    without, unknown = entries.missing()
    assert not without, "add them to a group of entries.py, or to EXCUSED with the reason"
    assert not unknown, "these are not public (any more)"


def test_threads():
    """Shared objects, separate ones and a mix give the bits of one thread, and restore the number of BLAS threads."""
    lines = []
    count, failures = storm.storm(entries.GROUPS, n_threads=4, n_calls=8, say=lines.append, n_seeds=2)
    assert not failures
    assert count > 100 * 2 * 8 and len(lines) == 2 * len(entries.GROUPS) + 2


def test_what_goes_wrong_is_seen():
    """Other bits, an exception, and a call that disturbs its neighbours, each with the function's name."""
    shared = np.zeros(4)

    def writes():
        shared[:] += 1
        return shared.copy()

    def raises():
        raise KeyError("lost")

    failures = [
        problem
        for name, call in {"writes": writes, "raises": raises, "reads": lambda: np.ones(3)}.items()
        for problem in storm.storm_of(name, [{name: [call]}] * 4, [{name: [entries.bits(np.ones(3))]}] * 4, 8)
    ]
    assert failures == ["other bits than alone"] * 8 + ["KeyError: 'lost'"] * 8
    assert storm.mixed_storm({"a": [raises]}, {"a": [None]}, 2, 4, 0) == ["a: KeyError: 'lost'"] * 4


@pytest.mark.parametrize("layer", processes.layers())
def test_forks_and_spawns(layer):
    out, err = processes.start("--inside", "forks", "--processes", 5, NUMBA_THREADING_LAYER=layer).communicate()
    assert out.startswith("["), err
    result = json.loads(out.splitlines()[-1])
    assert not result["failures"]
    assert result["count"] >= 5


def test_an_empty_kernel_cache_met_by_two_processes():
    count, failures = processes.cold_caches(["optimizers"], say=lambda _: None)
    assert not failures
    assert count == 3


def test_bits():
    """Equal where all bits are, and only there."""
    assert entries.bits(np.float32([0.0])) != entries.bits(np.float32([-0.0]))
    assert entries.bits([1.0, "a", None]) == entries.bits((1.0, "a", None))
    assert entries.bits({"seconds": 1.0, "loss": 2.0}) == entries.bits({"seconds": 3.0, "loss": 2.0})
    assert entries.bits(np.zeros((2, 3))) != entries.bits(np.zeros((3, 2)))
    with pytest.raises(TypeError, match="no bits known of object"):
        entries.bits(object())
