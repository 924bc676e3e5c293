"""Argument checks: every message names the argument, the rule, what came, and the fix."""

import re

import numpy as np
import pytest

from sparsemax_nb.core import check

from ..helpers import ForeignArray

pytestmark = pytest.mark.quick

F32 = np.zeros((3, 4), np.float32)
FOREIGN = ForeignArray(F32)
READ_ONLY = np.zeros((3, 4), np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check.same_device(a=F32, b=[1]), TypeError, "b must be a NumPy or CUDA array, got list; use np.as"),
        (
            lambda: check.same_device(a=F32, b=FOREIGN, c=F32), TypeError,
            "all arrays must live on one device, got a on cpu, b on cuda, c on cpu; move them with cupy.asarray",
        ),
        (
            lambda: check.array("a", F32, np.int32, (3, 4)), TypeError,
            "a must be int32, got float32; use a.astype(np.int32)"
        ),
        (lambda: check.array("a", 1.0, np.float32, ()), TypeError, "a must be a NumPy or CUDA array, got float"),
        (lambda: check.array("a", F32, np.float32, ("B", 5)), ValueError, "a must have shape (B, 5), got (3, 4)"),
        (lambda: check.array("a", F32, np.float32, ("B",)), ValueError, "a must have shape (B,), got (3, 4)"),
        (lambda: check.array("a", F32, np.float32, (3, 4, 1)), ValueError, "a must have shape (3, 4, 1), got (3, 4)"),
        (
            lambda: check.array("a", F32.T, np.float32, (4, 3)), ValueError,
            "a must be C-contiguous (row-major), got strides (4, 16); use np.ascontiguousarray(a)",
        ),
        (
            lambda: check.array("a", READ_ONLY, np.float32, (3, 4), writeable=True), ValueError,
            "a is written to but is read-only; pass a copy: a.copy()",
        ),
        (lambda: check.output("out", F32, np.float32, (3, 5), "cpu"), ValueError, "out must have shape (3, 5), got"),
        (lambda: check.output("out", READ_ONLY, np.float32, (3, 4), "cpu"), ValueError, "out is written to but is"),
        (
            lambda: check.output("out", F32, np.float32, (3, 4), "cuda"), TypeError,
            "out must live on cuda like the inputs, got cpu",
        ),
        (lambda: check.finite("a", np.float32([[0, 1], [np.nan, np.inf]])), ValueError, "a must be finite, got nan at"),
        (lambda: check.finite("a", np.float32([0, -np.inf])), ValueError, "a must be finite, got -inf at [1]; fix"),
        (lambda: check.integer("n", 0, 1), ValueError, "n must be at least 1, got 0"),
        (lambda: check.integer("n", 9, 1, 8, " (all)"), ValueError, "n must be between 1 and 8 (all), got 9"),
        (lambda: check.integer("n", 1.0, 1), TypeError, "n must be an integer, got float 1.0"),
        (lambda: check.integer("n", np.float32(1), 1), TypeError, "n must be an integer, got float32 "),
        (lambda: check.integer("n", True, 1), TypeError, "n must be an integer, got bool True"),
        (lambda: check.integer("n", np.True_, 1), TypeError, "n must be an integer, got bool"),
        (lambda: check.number("r", 1, 0, 1, open_ends=True), ValueError, "r must lie in (0, 1), got 1"),
        (lambda: check.number("r", 2, 0, 1), ValueError, "r must lie in [0, 1], got 2"),
        (lambda: check.number("r", np.nan, 0, 1), ValueError, "r must lie in [0, 1], got nan"),
        (lambda: check.number("r", np.inf, 0, np.inf), ValueError, "r must lie in [0, inf], got inf"),
        (lambda: check.number("r", "1", 0, 1), TypeError, "r must be a number, got str '1'"),
        (lambda: check.number("r", True, 0, 1), TypeError, "r must be a number, got bool True"),
        (lambda: check.number("r", [1], 0, 1), TypeError, "r must be a number, got list [1]"),
        (lambda: check.number("r", 1j, 0, 1), TypeError, "r must be a number, got complex 1j"),
        (lambda: check.choice("c", "z", ("x", "y")), ValueError, "c must be one of 'x', 'y', got 'z'"),
    ],
)  # fmt: skip
def test_refused(call, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (lambda: check.integer("n", np.int64(5), 5, 5), 5),
        (lambda: check.integer("n", 2**63 - 1, 1), 2**63 - 1),
        (lambda: check.integer("n", 2**64 - 1, 0, 2**64 - 1), 2**64 - 1),
        (lambda: check.number("r", np.float32(0.5), 0, 1), 0.5),
        (lambda: check.number("r", 0, 0, 1), 0.0),
        (lambda: check.choice("c", "x", ("x", "y")), "x"),
        (lambda: check.same_device(a=F32, b=F32), "cpu"),
        (lambda: check.finite("a", np.zeros((0, 3), np.float32)), None),
        (lambda: check.array("a", F32, np.float32, ("B", 4)) is F32, True),
        (lambda: check.array("a", READ_ONLY, np.float32, (3, 4)) is READ_ONLY, True),
        (lambda: check.output("out", F32, np.float32, (3, 4), "cpu") is F32, True),
        (lambda: check.output("out", None, np.int32, (2, 1), "cpu").dtype, np.int32),
    ],
)
def test_accepted(call, result):
    assert call() == result


def test_new_outputs_live_with_the_inputs(backend):
    from sparsemax_nb.core.device import device_of

    out = check.output("out", None, np.float32, (2, 3), backend.device)
    assert (device_of(out), out.shape) == (backend.device, (2, 3))


def test_finite_on_any_device(backend):
    check.finite("a", backend.array(np.ones((2, 3), np.float32)))
    with pytest.raises(ValueError, match=r"^a must be finite, got inf at \[1, 2\]"):
        check.finite("a", backend.array(np.float32([[0, 0, 0], [0, 0, np.inf]])))
