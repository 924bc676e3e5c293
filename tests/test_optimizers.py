"""Adam and SGD: the textbook formulas, state that follows the arrays, rows, bad input."""

import gc
import re

import numpy as np
import pytest

from sparsemax_nb import SGD, Adam
from sparsemax_nb.core.device import device_of

from .helpers import assert_close, normal, on_other_device

SHAPES = [(1,), (33,), (3, 65), (0, 5), (2, 3, 4)]


def make_adam():
    return Adam(learning_rate=0.1, beta1=0.8, beta2=0.9, epsilon=1e-3)


def textbook(parameter, gradients, learning_rate=0.1, beta1=0.8, beta2=0.9, epsilon=1e-3):
    """Kingma & Ba 2015, algorithm 1, line by line in float64."""
    parameter = parameter.astype(np.float64)
    m = v = np.zeros(parameter.shape)
    for t, g in enumerate(gradients, 1):
        m = beta1 * m + (1 - beta1) * g.astype(np.float64)
        v = beta2 * v + (1 - beta2) * g.astype(np.float64) ** 2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        parameter = parameter - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)
    return parameter, m, v


@pytest.mark.twins
@pytest.mark.parametrize("shape", SHAPES)
def test_adam_is_the_textbook_formula(backend, shape):
    start, gradients = normal(0, *shape), [normal(i, *shape) for i in (1, 2, 3)]
    adam, array = make_adam(), backend.array(start)
    for gradient in gradients:
        assert adam.step(array, backend.array(gradient)) is None
    parameter, m, v = textbook(start, gradients)
    assert_close(backend.numpy(array), parameter, 4 * len(gradients))
    state = adam.state_of(array)
    assert_close(backend.numpy(state.moments.m), m, 4 * len(gradients))
    assert_close(backend.numpy(state.moments.v), v, 4 * len(gradients))
    assert state.count == 3
    assert device_of(state.moments.m) == backend.device


@pytest.mark.twins
@pytest.mark.parametrize("shape", SHAPES)
def test_sgd(backend, shape):
    start, gradient, sgd = normal(0, *shape), normal(1, *shape), SGD(learning_rate=0.3)
    array = backend.array(start)
    sgd.step(array, backend.array(gradient))
    assert_close(backend.numpy(array), start - 0.3 * gradient.astype(np.float64), 2)
    assert sgd.state_of(array).moments.m.size == 0


@pytest.mark.twins
def test_zero_gradient_still_decays_moments(backend):
    adam, array = make_adam(), backend.array(normal(0, 9))
    adam.step(array, backend.array(normal(1, 9)))
    before = backend.numpy(array), *map(backend.numpy, adam.state_of(array).moments)
    adam.step(array, backend.array(np.zeros(9, np.float32)))
    after = backend.numpy(array), *map(backend.numpy, adam.state_of(array).moments)
    assert_close(after[1], 0.8 * before[1].astype(np.float64), 1)
    assert_close(after[2], 0.9 * before[2].astype(np.float64), 1)
    assert (after[0] != before[0]).all()


@pytest.mark.twins
def test_each_array_counts_its_own_steps(backend):
    adam, one, two = make_adam(), backend.array(normal(0, 5)), backend.array(normal(0, 5))
    gradients = [normal(i, 5) for i in range(1, 4)]
    for i, gradient in enumerate(gradients):
        adam.step(one, backend.array(gradient))
        if i == 1:  # the other array's first step, in between
            adam.step(two, backend.array(gradients[0]))
    assert (adam.state_of(one).count, adam.state_of(two).count) == (3, 1)
    assert_close(backend.numpy(two), textbook(normal(0, 5), gradients[:1])[0], 4)
    assert_close(backend.numpy(one), textbook(normal(0, 5), gradients)[0], 12)


def test_state_follows_the_array_and_no_other():
    """A new array may get the address of a dead one: its state must still be new. Equal arrays do not share."""
    adam = make_adam()
    for _ in range(50):
        array = np.ones(3, np.float32)
        assert adam.state_of(array).count == 0
        adam.step(array, np.ones(3, np.float32))
        del array
        gc.collect(0)
    assert adam.state_of(np.ones(3, np.float32)) is not adam.state_of(np.ones(3, np.float32))


@pytest.mark.twins
def test_an_array_that_takes_the_place_of_another(backend):
    """Its moments are taken from those of the old one, steps and rate go on; the old one has no state any more."""
    adam, old, kept = make_adam(), backend.array(normal(0, 6, 3)), [4, 1, 1]
    adam.scale_rate(old, 0.5)
    for seed in (1, 2):
        adam.step(old, backend.array(normal(seed, 6, 3)))
    m, v = (backend.numpy(moment) for moment in adam.state_of(old).moments)
    new = backend.array(backend.numpy(old)[kept])
    adam.replace(old, new, lambda moment: backend.array(backend.numpy(moment)[kept]))
    state, gradient = adam.state_of(new), normal(3, 6, 3)
    assert (state.count, state.factor, state.array is new) == (2, 0.5, True)
    for got, want in zip(state.moments, (m, v), strict=True):
        np.testing.assert_array_equal(backend.numpy(got), want[kept])
        assert device_of(got) == backend.device
    adam.step(new, backend.array(gradient[kept]))
    wanted = textbook(normal(0, 6, 3), [normal(1, 6, 3), normal(2, 6, 3), gradient], learning_rate=0.05)[0]
    assert_close(backend.numpy(new), wanted[kept], 12)
    assert adam.state_of(old).count == 0, "as of an array that was never seen"
    one, other = (backend.array(normal(0, 3)) for _ in range(2))
    adam.replace(one, other, None)  # nothing was learnt of it
    assert adam.state_of(other).count == 0


@pytest.mark.twins
@pytest.mark.parametrize("make", [make_adam, lambda: SGD(0.3)], ids=["adam", "sgd"])
@pytest.mark.parametrize("ids", [[4, 0, 2], [1], []], ids=str)
@pytest.mark.parametrize("columns", [(7,), ()], ids=["matrix", "vector"])
def test_step_rows_touches_those_rows_only(backend, make, ids, columns):
    """Lazy rows: the others keep value and moments to the last bit. Two steps, so that moments are not zero."""
    optimizer, whole = make(), make()
    table, same = backend.array(normal(0, 5, *columns)), backend.array(normal(0, 5, *columns))
    everything = backend.array(normal(1, 5, *columns))
    optimizer.step(table, everything)
    whole.step(same, everything)
    gradient = normal(2, len(ids), *columns)
    full = np.zeros((5, *columns), np.float32)
    full[ids] = gradient
    before = [backend.numpy(a) for a in (table, *optimizer.state_of(table).moments)]
    optimizer.step_rows(table, backend.array(ids, np.int32), backend.array(gradient))
    whole.step(same, backend.array(full))  # the same where rows are touched, since both have counted two steps
    others = np.setdiff1d(np.arange(5), ids)
    for now, old, dense in zip(
        (table, *optimizer.state_of(table).moments), before, (same, *whole.state_of(same).moments), strict=True
    ):
        now, dense = backend.numpy(now), backend.numpy(dense)
        if now.size:
            np.testing.assert_array_equal(now[others], old[others])
            np.testing.assert_array_equal(now[ids], dense[ids])
            assert not ids or (now[ids] != old[ids]).all()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("make", [Adam, SGD])
@pytest.mark.parametrize(
    ("rate", "error"),
    [(0, ValueError), (-1, ValueError), (np.nan, ValueError), (np.inf, ValueError), ("0.1", TypeError),
     (None, TypeError), (True, TypeError), ([0.1], TypeError), (1j, TypeError)],
)  # fmt: skip
def test_learning_rate(make, rate, error):
    with pytest.raises(error, match="^learning_rate must "):
        make(learning_rate=rate)


@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, np.nan])
def test_decay_rates(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must lie in \[0, "):
        Adam(**{name: value})


@pytest.mark.parametrize("value", [0, -1e-8, np.inf, np.nan])
def test_epsilon(value):
    with pytest.raises(ValueError, match=rf"^epsilon must lie in \(0, inf\), got {value}"):
        Adam(epsilon=value)


BAD_STEPS = {  # spoil (array, gradient, backend) -> (array, gradient), error, message
    "gradient float64": (
        lambda a, g, b: (a, g.astype(np.float64)), TypeError, "gradient must be float32, got float64; use "
    ),
    "gradient shape": (lambda a, g, b: (a, g[:2].copy()), ValueError, "gradient must have shape (3, 5), got (2, 5)"),
    "gradient layout": (lambda a, g, b: (a, g[:, ::-1]), ValueError, "gradient must be C-contiguous"),
    "gradient list": (lambda a, g, b: (a, [1.0]), TypeError, "gradient must be a NumPy or CUDA array, got list"),
    "gradient elsewhere": (
        lambda a, g, b: (a, on_other_device(b, b.numpy(g))), TypeError, "all arrays must live on one device, got "
    ),
    "array float64": (lambda a, g, b: (a.astype(np.float64), g), TypeError, "array must be float32, got float64"),
    "array layout": (lambda a, g, b: (b.array(b.numpy(a).T).T, g), ValueError, "array must be C-contiguous"),
    "array list": (lambda a, g, b: ([1.0], g), TypeError, "array must be a NumPy or CUDA array, got list"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_STEPS.values(), ids=BAD_STEPS)
def test_bad_steps_change_nothing(backend, spoil, error, message):
    adam, good = make_adam(), backend.array(normal(0, 3, 5))
    adam.step(good, good.copy())
    before, moments = backend.numpy(good), [backend.numpy(m) for m in adam.state_of(good).moments]
    array, gradient = spoil(good, backend.array(normal(1, 3, 5)), backend)
    with pytest.raises(error, match="^" + re.escape(message)):
        adam.step(array, gradient)
    assert adam.state_of(good).count == 1
    for got, want in zip((good, *adam.state_of(good).moments), (before, *moments), strict=True):
        np.testing.assert_array_equal(backend.numpy(got), want)


def test_read_only_array():
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    with pytest.raises(ValueError, match=r"^array is written to but is read-only; pass a copy"):
        Adam().step(array, np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("table", "ids", "gradient", "error", "message"),
    [
        ((5, 7), np.zeros(1), (1, 7), TypeError, "row_ids must hold integers, got float64"),
        ((5, 7), np.zeros((1, 1), np.int32), (1, 7), ValueError, "row_ids must have shape (n,), got (1, 1)"),
        ((5, 7), np.zeros(1, np.int32), (2, 7), ValueError, "gradient must have shape (1, 7), got (2, 7)"),
        ((5, 7), np.zeros(1, np.int32), (1, 6), ValueError, "gradient must have shape (1, 7), got (1, 6)"),
        ((5,), np.zeros(1, np.int32), (1, 7), ValueError, "gradient must have shape (1,), got (1, 7)"),
        ((5, 1, 7), np.zeros(1, np.int32), (1, 7), ValueError, "array must have shape (F, D), got (5, 1, 7)"),
    ],
)
def test_bad_rows(backend, table, ids, gradient, error, message):
    array = backend.array(normal(0, *table))
    with pytest.raises(error, match="^" + re.escape(message)):
        Adam().step_rows(array, backend.array(ids), backend.array(normal(1, *gradient)))
    np.testing.assert_array_equal(backend.numpy(array), normal(0, *table))


@pytest.mark.parametrize(
    "ids",
    [[0, 5], [-1, 2], [3, 3], [5, 0], [2, -1], [3, 0, 3]],
    ids=["too large", "negative", "repeated", "too large first", "negative last", "repeated apart"],
)
def test_row_ids_that_are_no_rows(backend, ids):
    """They would write outside the table (here: into the rows behind it), or let two threads update one row."""
    adam, whole = make_adam(), backend.array(normal(0, 8, 7))
    with pytest.raises(ValueError, match="^row_ids must "):
        adam.step_rows(whole[:5], backend.array(ids, np.int32), backend.array(normal(1, len(ids), 7)))
    np.testing.assert_array_equal(backend.numpy(whole), normal(0, 8, 7))
