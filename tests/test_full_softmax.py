"""The full softmax: cross-entropy with its gradients, ranks of targets; memory, ignored rows, bad input."""

import tracemalloc

import ml_dtypes
import numba
import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import Labels, full_softmax, softmax_cross_entropy, target_ranks
from sparsemax_nb.reference import full_softmax as reference

from .helpers import (
    assert_close,
    close_to_derivative,
    integers,
    label_matrix,
    normal,
    on_other_device,
    place_labels,
    threads,
)


def problem(n_rows=7, width=5, n_classes=23):
    targets = np.random.default_rng(3).integers(0, n_classes, n_rows).astype(np.int32)
    targets[2:3] = -1
    return normal(1, n_rows, width), normal(2, n_classes, width), targets, normal(4, n_classes)


def expected(h, w, targets, bias):
    """Loss and gradients of `reference`, whatever the form of the targets (-1: ignored)."""
    if not scipy.sparse.issparse(targets):
        rows = np.flatnonzero(targets >= 0)
        targets = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, targets[rows])), (len(h), len(w)))
        return reference.cross_entropy(h, w, bias, targets, max(len(rows), 1))
    return reference.cross_entropy(h, w, bias, targets, len(h))


@pytest.mark.parametrize(
    ("cuts", "plan"),
    [
        ((1000, 100, 1), (7, 23, True)),
        ((70, 100, 2), (3, 23, True)),  # three rows at once
        ((1000, 2, 2), (2, 23, True)),
        ((28, 4, 4), (4, 7, False)),  # tiles, computed again
        ((1, 100, 1), (7, 1, False)),
    ],
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_equals_reference(backend, monkeypatch, cuts, plan, multi_label):
    for name, value in zip(("MAX_ELEMENTS", "MAX_ROWS", "MIN_ROWS"), cuts, strict=True):
        monkeypatch.setattr(full_softmax, name, value)
    assert full_softmax._plan(7, 23, 23) == plan
    h, w, targets, bias = problem()
    bias = bias if multi_label else np.zeros_like(bias)
    if multi_label:
        targets = label_matrix(7, 23).toarray()
        targets[2] = 0
        targets = scipy.sparse.csr_matrix(targets)
    arguments = [
        backend.array(h),
        backend.array(w),
        place_labels(backend, targets) if multi_label else backend.array(targets),
    ]
    loss, *got = softmax_cross_entropy(*arguments, *([backend.array(bias)] if multi_label else []))
    want_loss, *wanted = expected(h, w, targets, bias)
    assert loss == pytest.approx(want_loss, rel=1e-5)
    for a, b in zip(got, wanted, strict=True):
        assert_close(backend.numpy(a), b, 100)
    assert not backend.numpy(got[0])[2].any(), "a row without labels has no gradient"


def test_both_forms_of_one_label_are_the_same(backend):
    h, w, targets, bias = problem()
    targets[targets < 0] = 0
    labels = Labels(np.arange(8, dtype=np.int32), targets)
    a = softmax_cross_entropy(*map(backend.array, (h, w, targets, bias)))
    b = softmax_cross_entropy(*map(backend.array, (h, w)), Labels(*map(backend.array, labels)), backend.array(bias))
    assert a[0] == b[0]
    assert all((backend.numpy(x) == backend.numpy(y)).all() for x, y in zip(a[1:], b[1:], strict=True))


@pytest.mark.quick
def test_reference_is_the_derivative_of_its_loss():
    h, w, _, bias = (a.astype(np.float64) for a in problem())
    labels, random = label_matrix(7, 23), np.random.default_rng(5)
    _, dh, dw, dbias = reference.cross_entropy(h, w, bias, labels, 7)
    close_to_derivative(lambda x: reference.cross_entropy(x, w, bias, labels, 7)[0], h, dh, random)
    close_to_derivative(lambda x: reference.cross_entropy(h, x, bias, labels, 7)[0], w, dw, random)
    close_to_derivative(lambda x: reference.cross_entropy(h, w, x, labels, 7)[0], bias, dbias, random)


def test_large_logits_do_not_overflow(backend):
    h, w, targets, bias = problem()
    loss, *got = softmax_cross_entropy(*map(backend.array, (300 * h, w, targets, bias)))
    want_loss, *wanted = expected(300 * h, w, targets, bias)
    assert loss == pytest.approx(want_loss, rel=1e-5) and want_loss > 100
    assert all(np.isfinite(backend.numpy(a)).all() for a in got)
    assert_close(backend.numpy(got[0]), wanted[0], 100, 10)


@pytest.mark.parametrize("n_rows", [1, 16, 63, 64, 8192])
@pytest.mark.parametrize("n_classes", [1, 1000, 262_145, 10**7])
def test_what_is_held_is_bounded(n_rows, n_classes):
    plan = full_softmax._plan(n_rows, n_classes, n_classes)
    logits, sums = plan.rows * (n_classes if plan.keeps_logits else plan.classes), min(16, plan.rows) * plan.classes
    assert logits <= 1 << 24 and sums <= 1 << 22


def test_weights_of_infinity_are_refused():
    """They may leave the loss finite, but not the gradient."""
    h, w = np.ones((1, 2), np.float32), np.ones((3, 2), np.float32)
    w[1] = -np.inf
    with pytest.raises(ValueError, match="weights must be finite, got -inf at .1, 0."):
        softmax_cross_entropy(h, w, np.zeros(1, np.int32))


def test_logits_that_overflow_are_no_wrong_input():
    h, w = np.full((1, 2), 1e30, np.float32), np.full((3, 2), 1e30, np.float32)
    with pytest.raises(FloatingPointError, match="overflowed"):
        softmax_cross_entropy(h, w, np.zeros(1, np.int32))


def test_zeros_that_a_matrix_stores_are_no_targets():
    h, w, targets, _ = problem()
    rows, columns, values = [0, 0, 1, 3], [1, 3, 0, 2], [1, 0, 0, 1]
    stored = scipy.sparse.csr_matrix((values, (rows, columns)), (len(h), len(w)), np.float32)
    matrix = scipy.sparse.csr_matrix(stored.toarray())
    assert stored.nnz == matrix.nnz + 2
    assert softmax_cross_entropy(h, w, stored)[0] == softmax_cross_entropy(h, w, matrix)[0]


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


@pytest.mark.parametrize(
    ("cuts", "plan"),
    [
        ((1000, 1 << 22), (7, 23, True)),
        ((1000, 50), (7, 10, True)),  # tiles, held
        ((60, 50), (7, 8, False)),
        ((60, 1), (7, 1, False)),
    ],
)
def test_bfloat16(backend, monkeypatch, cuts, plan):
    """Computed from the very numbers that the inputs are; the gradients are float32."""
    for name, value in zip(("MAX_ELEMENTS", "MAX_WIDENED", "MIN_ROWS"), (*cuts, 5), strict=True):
        monkeypatch.setattr(full_softmax, name, value)
    assert full_softmax._plan(7, 23, cuts[1] // 5) == plan
    h, w, targets, bias = problem()
    h, w, bias = (a.astype(ml_dtypes.bfloat16) for a in (h, w, bias))
    loss, *got = softmax_cross_entropy(*map(backend.array, (h, w, targets, bias)))
    want_loss, *wanted = expected(*(a.astype(np.float64) for a in (h, w)), targets, bias.astype(np.float64))
    assert loss == pytest.approx(want_loss, rel=1e-5)
    for a, b in zip(got, wanted, strict=True):
        assert_close(backend.numpy(a), b, 100)


def test_bfloat16_is_no_other_result(backend):
    h, w, targets, bias = problem()
    narrow = [a.astype(ml_dtypes.bfloat16) for a in (h, w, bias)]
    a = softmax_cross_entropy(*map(backend.array, (*narrow[:2], targets, narrow[2])))
    h, w, bias = (n.astype(np.float32) for n in narrow)
    b = softmax_cross_entropy(*map(backend.array, (h, w, targets, bias)))
    mixed = softmax_cross_entropy(*map(backend.array, (*narrow[:2], targets, bias)))
    assert a[0] == b[0] == mixed[0]
    assert all((backend.numpy(x) == backend.numpy(y)).all() for x, y in zip(a[1:], b[1:], strict=True))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_neither_logits_nor_widened_weights_are_stored(monkeypatch, dtype):
    h, w, targets, bias = problem(n_rows=24, n_classes=40_000, width=64)
    h, w = h.astype(dtype), w.astype(dtype)
    for name, value in (("MAX_ELEMENTS", 1 << 18), ("MIN_ROWS", 4), ("MAX_WIDENED", 1 << 19)):
        monkeypatch.setattr(full_softmax, name, value)
    softmax_cross_entropy(h, w, targets, bias)  # compile
    tracemalloc.start()
    _, *gradients = softmax_cross_entropy(h, w, targets, bias)
    peak = tracemalloc.get_traced_memory()[1] - sum(a.nbytes for a in gradients)
    tracemalloc.stop()
    assert 4 * (full_softmax.MAX_ELEMENTS + (dtype != np.float32) * full_softmax.MAX_WIDENED) < peak < 9 << 19
    assert w.size * 4 > 9 << 20  # a copy of the widened weights; the logits: 3.7 MiB


@pytest.mark.parametrize(
    ("place", "change", "error", "message"),
    [
        (0, lambda a: np.full_like(a, np.nan), ValueError, "h must be finite"),
        (1, lambda a: np.full_like(a, np.nan), ValueError, "weights must be finite"),
        (3, lambda a: np.full_like(a, np.nan), ValueError, "bias must be finite"),
        (0, lambda a: a.astype(np.float64), TypeError, "h must be float32 or bfloat16, got float64"),
        (0, lambda a: a[:, 1:].copy(), ValueError, "h must have shape"),
        (3, lambda a: a[1:].copy(), ValueError, "bias must have shape"),
        (0, lambda a: a.astype(ml_dtypes.bfloat16), TypeError, "same dtype, got bfloat16 and float32; use h.astype"),
        (
            1,
            lambda a: a.astype(np.float16),
            TypeError,
            "weights must be float32 or bfloat16, got float16; use weights.astype",
        ),
        (2, lambda a: a.astype(float), TypeError, "targets must hold integers, got float64"),
        (2, lambda a: np.full_like(a, 23), ValueError, r"targets must lie in \[0, 23\) or be -1, got 23"),
        (2, lambda a: np.full_like(a, -2), ValueError, r"targets must lie in \[0, 23\) or be -1, got -2"),
    ],
)
def test_bad_arguments(backend, place, change, error, message):
    arguments = list(problem())
    arguments[place] = change(arguments[place])
    with pytest.raises(error, match=message):
        softmax_cross_entropy(*map(backend.array, arguments))


@pytest.mark.parametrize("place", [0, 1, 3])
def test_bad_bfloat16(backend, place):
    arguments = list(problem())
    for i in (0, 1, 3):
        arguments[i] = arguments[i].astype(ml_dtypes.bfloat16)
    arguments[place][2:] = np.nan
    with pytest.raises(ValueError, match=rf"{'hw b'[place]}\w* must be finite, got nan"):
        softmax_cross_entropy(*map(backend.array, arguments))


def test_bad_options(backend):
    arguments = [backend.array(a) for a in problem()]
    with pytest.raises(ValueError, match="ignore_index must not be a class"):
        softmax_cross_entropy(*arguments, ignore_index=3)
    arguments[1] = on_other_device(backend, problem()[1])
    with pytest.raises(TypeError, match="one device"):
        softmax_cross_entropy(*arguments)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (([0, 1, 2], [3, 23]), ValueError, r"targets must hold ids in \[0, 23\), got 23"),
        (([0, 1, 2], [3, -1]), ValueError, r"targets must hold ids in \[0, 23\), got -1"),
        (([0, 2, 2], [3, 3]), ValueError, "targets must not repeat a label inside one row"),
        (([0, 2, 1], [3, 4]), ValueError, "targets.indptr must rise from 0"),
        (([0, 1], [3]), ValueError, "targets.indptr must have shape"),
    ],
)
def test_bad_labels(backend, labels, error, message):
    h, w, _, bias = map(backend.array, problem(n_rows=2))
    with pytest.raises(error, match=message):
        softmax_cross_entropy(h, w, Labels(*(backend.array(a, np.int32) for a in labels)), bias)


def test_labels_of_another_form(backend):
    h, w, _, bias = map(backend.array, problem())
    with pytest.raises(TypeError, match="targets must be a NumPy or CUDA array, got list"):
        softmax_cross_entropy(h, w, [1] * 7, bias)
    with pytest.raises(ValueError, match=r"targets must have shape \(7, 23\), got \(7, 22\)"):
        softmax_cross_entropy(h, w, label_matrix(7, 22), bias)
    if backend.device == "cuda":
        with pytest.raises(TypeError, match="targets is a SciPy matrix on cpu"):
            softmax_cross_entropy(h, w, label_matrix(7, 23), bias)
    else:
        labels = Labels(*(on_other_device(backend, a.astype(np.int32)) for a in (np.arange(8), np.arange(7))))
        with pytest.raises((TypeError, RuntimeError)):
            softmax_cross_entropy(h, w, labels, bias)


# ---------------------------------------------------------------- ranks


def sorted_ranks(logits, targets):
    """Places of the targets where all classes are sorted: highest first, equal ones by id."""
    order = np.argsort(-logits, axis=1, kind="stable")
    return np.argmax(order == targets[:, None], axis=1)


@pytest.mark.parametrize("held", [1 << 24, 70, 23, 1])  # all rows at once, three, one; fewer than the classes
@pytest.mark.parametrize("ties", [False, True])
def test_ranks_equal_reference(backend, monkeypatch, held, ties):
    monkeypatch.setattr(full_softmax, "MAX_ELEMENTS", held)
    h, w, targets, _ = problem()
    if ties:
        h, w = integers(1, -1, 2, 7, 5), integers(2, -1, 2, 23, 5)
    targets[2] = 22
    log_prob, rank = map(backend.numpy, target_ranks(*map(backend.array, (h, w, targets))))
    logits = h.astype(np.float64) @ w.T.astype(np.float64)
    want_log_prob, want_rank = reference.rank(logits, targets)
    assert_close(log_prob, want_log_prob, 100)
    assert rank.dtype == np.int32
    np.testing.assert_array_equal(rank, want_rank)
    np.testing.assert_array_equal(rank, sorted_ranks(logits, targets))
    assert len(set(rank.tolist())) > 3, "trivial data"
    n_equal = (logits == logits[np.arange(7), targets][:, None]).sum(1)
    assert (n_equal > 1).sum() >= (5 if ties else 0)


def test_log_prob_of_every_class_adds_up(backend):
    h, w, *_ = problem()
    h = np.repeat(h[:1], len(w), axis=0)
    log_prob, rank = map(backend.numpy, target_ranks(*map(backend.array, (h, w, np.arange(23, dtype=np.int32)))))
    assert np.exp(log_prob.astype(np.float64)).sum() == pytest.approx(1, rel=1e-6)
    assert sorted(rank) == list(range(23))
    assert (np.diff(log_prob[np.argsort(rank)]) <= 0).all()


def test_ranks_far_apart(backend):
    """Where other classes' exp would overflow or vanish."""
    h, w, targets, _ = problem()
    log_prob, rank = map(backend.numpy, target_ranks(*map(backend.array, (300 * h, w, abs(targets)))))
    want_log_prob, want_rank = reference.rank(300 * h.astype(np.float64) @ w.T, abs(targets))
    assert want_log_prob.min() < -200
    assert_close(log_prob, want_log_prob, 100, 1000)
    np.testing.assert_array_equal(rank, want_rank)


@pytest.mark.parametrize("n_rows", [0, 1])
def test_few_rows_and_one_class(backend, n_rows):
    arguments = normal(1, n_rows, 3), normal(2, 1, 3), np.zeros(n_rows, np.int32)
    log_prob, rank = map(backend.numpy, target_ranks(*map(backend.array, arguments)))
    assert log_prob.tolist() == rank.tolist() == [0] * n_rows
    assert log_prob.dtype == np.float32


def test_ranks_hold_few_logits(monkeypatch):
    h, w, targets, _ = problem(n_rows=24, n_classes=40_000, width=64)
    monkeypatch.setattr(full_softmax, "MAX_ELEMENTS", 1 << 17)
    targets = abs(targets)
    target_ranks(h, w, targets)  # compile
    tracemalloc.start()
    target_ranks(h, w, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 3 * 160_000 < peak < 5 * 160_000  # three rows of logits, and one of zeros; there are 24


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_ranks_are_the_same_bits_with_one_thread_and_two(monkeypatch):
    monkeypatch.setattr(full_softmax, "MAX_ELEMENTS", 1 << 14)
    h, w, targets, _ = problem(n_rows=33, n_classes=1000)

    def bits(n_threads):
        with threads(n_threads):
            return [a.tobytes() for a in target_ranks(h, w, abs(targets))]

    assert bits(1) == bits(2)


@pytest.mark.parametrize(
    ("place", "change", "error", "message"),
    [
        (0, lambda a: np.full_like(a, np.nan), ValueError, "h must be finite"),
        (1, lambda a: np.where(a == a[3, 2], np.nan, a), ValueError, r"weights must be finite, got nan at \[3, 2\]"),
        (0, lambda a: a.astype(np.float64), TypeError, "h must be float32, got float64"),
        (1, lambda a: a.astype(np.float64), TypeError, "weights must be float32, got float64"),
        (0, lambda a: a[:, 1:].copy(), ValueError, r"h must have shape \(B, 5\)"),
        (1, lambda a: a[:0], ValueError, "n_classes .* must be at least 1, got 0"),
        (2, lambda a: a[1:].copy(), ValueError, r"targets must have shape \(7,\)"),
        (2, lambda a: a.astype(float), TypeError, "targets must hold integers, got float64"),
        (2, lambda a: np.full_like(a, 23), ValueError, r"targets must lie in \[0, 23\), got 23"),
        (2, lambda a: np.full_like(a, -1), ValueError, r"targets must lie in \[0, 23\), got -1"),
    ],
)
def test_bad_arguments_of_ranks(backend, place, change, error, message):
    arguments = list(problem()[:3])
    arguments[2] = abs(arguments[2])
    arguments[place] = change(arguments[place])
    with pytest.raises(error, match=message):
        target_ranks(*map(backend.array, arguments))


def test_ranks_on_two_devices(backend):
    h, w, targets, _ = problem()
    with pytest.raises(TypeError, match="one device"):
        target_ranks(backend.array(h), on_other_device(backend, w), backend.array(targets))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("where", [3, 70])  # in a lane, in the rest of the row
def test_ranks_of_logits_that_overflow(sign, where):
    """Also where only another class than the target does, and its probability would be 0."""
    h, w = np.full((1, 2), 1e30, np.float32), np.ones((71, 2), np.float32)
    w[where] = sign * 1e30
    with pytest.raises(FloatingPointError, match="overflowed"):
        target_ranks(h, w, np.zeros(1, np.int32))
    w[where] = sign * np.inf
    with pytest.raises(ValueError, match=r"weights must be finite, got -?inf at"):
        target_ranks(h, w, np.zeros(1, np.int32))
