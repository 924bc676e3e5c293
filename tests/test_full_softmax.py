"""Cross-entropy of the full softmax: value, gradients, memory, ignored rows, bad input."""

import tracemalloc

import numpy as np
import pytest

from sparsemax_nb import full_softmax, softmax_cross_entropy
from sparsemax_nb.core import backend as placement
from sparsemax_nb.reference import full_softmax as reference

from .helpers import assert_close, close_to_derivative, normal, on_other_device


def problem(n_rows=7, width=5, n_classes=23):
    targets = np.random.default_rng(3).integers(0, n_classes, n_rows).astype(np.int32)
    targets[2:3] = -1
    return normal(1, n_rows, width), normal(2, n_classes, width), targets, normal(4, n_classes)


@pytest.mark.parametrize(("tile", "with_bias"), [(1, True), (70, False), (70, True), (1 << 23, True)])
def test_equals_reference(backend, monkeypatch, tile, with_bias):
    if tile == 1 and backend.device == "cuda" and placement.SIMULATOR:
        pytest.skip("a launch for each class is slow in the simulator")
    monkeypatch.setattr(full_softmax, "TILE", tile)
    h, w, targets, bias = problem()
    bias = bias if with_bias else np.zeros_like(bias)
    arguments = [backend.array(a) for a in (h, w, targets, *([bias] if with_bias else []))]
    loss, *got = softmax_cross_entropy(*arguments)
    want_loss, *wanted = reference.cross_entropy(h, w, bias, targets, -1)
    assert loss == pytest.approx(want_loss, rel=1e-5)
    for a, b in zip(got, wanted, strict=True):
        assert_close(backend.numpy(a), b, 100)
    assert not backend.numpy(got[0])[2].any(), "a row that is ignored has no gradient"


def test_reference_is_the_derivative_of_its_loss():
    h, w, targets, bias = (a.astype(np.float64) if a.dtype == np.float32 else a for a in problem())
    random, (_, dh, dw, dbias) = np.random.default_rng(5), reference.cross_entropy(h, w, bias, targets, -1)
    close_to_derivative(lambda x: reference.cross_entropy(x, w, bias, targets, -1)[0], h, dh, random)
    close_to_derivative(lambda x: reference.cross_entropy(h, x, bias, targets, -1)[0], w, dw, random)
    close_to_derivative(lambda x: reference.cross_entropy(h, w, x, targets, -1)[0], bias, dbias, random)


def test_large_logits_do_not_overflow(backend):
    h, w, targets, bias = problem()
    loss, *got = softmax_cross_entropy(*map(backend.array, (300 * h, w, targets, bias)))
    want_loss, *wanted = reference.cross_entropy(300 * h, w, bias, targets, -1)
    assert loss == pytest.approx(want_loss, rel=1e-5) and want_loss > 100
    assert all(np.isfinite(backend.numpy(a)).all() for a in got)
    assert_close(backend.numpy(got[0]), wanted[0], 100, 10)


@pytest.mark.parametrize("targets", [np.zeros(0, np.int32), np.full(4, -1, np.int32)])
def test_nothing_to_learn_from(backend, targets):
    h, w, _, bias = problem(n_rows=len(targets))
    loss, *got = softmax_cross_entropy(*map(backend.array, (h, w, targets, bias)))
    assert loss == 0 and not any(backend.numpy(a).any() for a in got)


def test_ignore_index(backend):
    h, w, targets, bias = problem()
    other = np.where(targets == -1, 99, targets).astype(np.int32)
    a = softmax_cross_entropy(*map(backend.array, (h, w, targets, bias)))
    b = softmax_cross_entropy(*map(backend.array, (h, w, other, bias)), ignore_index=99)
    assert a[0] == b[0] and (backend.numpy(a[1]) == backend.numpy(b[1])).all()


def test_the_logits_are_never_stored():
    h, w, targets, bias = problem(n_rows=1000, n_classes=40_000, width=4)
    softmax_cross_entropy(h[:2], w[:9], targets[:2] % 9, bias[:9])  # compile
    tracemalloc.start()
    softmax_cross_entropy(h, w, targets, bias)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * full_softmax.TILE + (8 << 20) < 1000 * 40_000 * 4


@pytest.mark.parametrize(
    ("place", "change", "error", "message"),
    [
        (0, lambda a: np.full_like(a, np.nan), ValueError, "h must be finite"),
        (1, lambda a: np.full_like(a, np.nan), ValueError, "w must be finite"),
        (3, lambda a: np.full_like(a, np.nan), ValueError, "bias must be finite"),
        (0, lambda a: a.astype(np.float64), TypeError, "h must be float32"),
        (0, lambda a: a[:, 1:].copy(), ValueError, "h must have shape"),
        (3, lambda a: a[1:].copy(), ValueError, "bias must have shape"),
        (2, lambda a: a.astype(np.int64), TypeError, "targets must be int32"),
        (2, lambda a: np.full_like(a, 23), ValueError, r"targets must lie in \[0, 23\) or be -1, got 23"),
        (2, lambda a: np.full_like(a, -2), ValueError, r"targets must lie in \[0, 23\) or be -1, got -2"),
    ],
)
def test_bad_arguments(backend, place, change, error, message):
    arguments = list(problem())
    arguments[place] = change(arguments[place])
    with pytest.raises(error, match=message):
        softmax_cross_entropy(*map(backend.array, arguments))


def test_bad_options(backend):
    arguments = [backend.array(a) for a in problem()]
    with pytest.raises(ValueError, match="ignore_index must not be a class"):
        softmax_cross_entropy(*arguments, ignore_index=3)
    arguments[1] = on_other_device(backend, problem()[1])
    with pytest.raises(TypeError, match="one device"):
        softmax_cross_entropy(*arguments)
