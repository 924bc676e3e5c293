"""Rewiring: what is dropped, what is drawn, what is left alone, and what `rewire` says to bad input."""

import tracemalloc
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import scipy.stats

from sparsemax_nb import SGD, Adam, FixedFanIn, fixed_fan_in_step, rewire
from sparsemax_nb.core import formulas
from sparsemax_nb.core.device import device_of
from sparsemax_nb.reference import rewiring as reference

from .helpers import (
    Layer,
    copy_layer,
    integers,
    label_matrix,
    layer_arrays,
    make_layer,
    normal,
    place_labels,
    place_layer,
    threads,
)

#: (L, H, K, fraction): one of everything; no input to spare; odd sizes; ties of small integers come on top.
SHAPES = [(1, 2, 1, 1), (3, 6, 3, 1), (7, 9, 3, 0.4), (33, 40, 7, 0.1)]


def trained(backend, n_labels, n_inputs, fan_in, values=None):
    """A layer, Adam with moments that are not zero, and a function that tells their state."""
    layer = layer_arrays(n_labels, n_inputs, fan_in)
    if values is not None:
        layer = layer._replace(values=np.float32(np.broadcast_to(values, layer.values.shape)))
    layer, adam = place_layer(backend, layer, n_inputs), Adam()
    for moment in adam.state_of(layer.values).moments:
        moment[:] = 5
    adam.end_step(layer.values)

    def state():
        return *copy_layer(layer), *moments_of(backend, adam, layer)

    return SimpleNamespace(layer=layer, adam=adam, state=state, before=state())


def moments_of(backend, optimizer, layer):
    return [backend.numpy(m) for m in optimizer.state_of(layer.values).moments]


def places(slots, shape):
    """A mask of the slots."""
    mask = np.zeros(shape, bool)
    mask[tuple(slots.T)] = True
    assert mask.sum() == len(slots), "no slot twice"
    return mask


# ---------------------------------------------------------------- what it does


@pytest.mark.twins
@pytest.mark.parametrize("step", [0, 2**32 - 1])
@pytest.mark.parametrize("kind", ["normal", "ties"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(backend, shape, kind, step):
    """Slots, indices, values and moments, bit for bit."""
    n_labels, n_inputs, fan_in, fraction = shape
    values = integers(5, -2, 3, n_labels, fan_in) if kind == "ties" else None
    it = trained(backend, n_labels, n_inputs, fan_in, values)
    slots = rewire(it.layer, fraction, 2**64 - 1, it.adam, step=step)
    assert device_of(slots) == backend.device
    n = int(np.floor(fraction * n_labels * fan_in + 0.5))
    wanted = reference.rewire(2**64 - 1, step, n_inputs, n, Layer(*it.before[:3]), formulas.Moments(*it.before[3:]))
    indices, values, _, m, v = it.state()
    for got, want in zip((indices, values, m, v, backend.numpy(slots)), wanted, strict=True):
        assert (got.dtype, got.tobytes()) == (want.dtype, want.tobytes())


@pytest.mark.twins
@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_smallest_change(backend, shape):
    """Without help of the reference: the slots, what is left alone bit for bit, what is new."""
    n_labels, n_inputs, fan_in, fraction = shape
    it = trained(backend, n_labels, n_inputs, fan_in)
    slots = backend.numpy(rewire(it.layer, fraction, 4, it.adam))
    assert (slots.shape, slots.dtype) == ((int(fraction * n_labels * fan_in + 0.5), 2), np.int32)
    assert (np.diff(slots[:, 0].astype(np.int64) * fan_in + slots[:, 1]) > 0).all(), "ascending"
    changed = places(slots, (n_labels, fan_in))
    old, new = it.before, it.state()
    magnitudes = np.abs(old[1])
    assert magnitudes[changed].max() <= magnitudes[~changed].min(initial=np.inf)
    for i in (0, 1, 3, 4):
        assert new[i][~changed].tobytes() == old[i][~changed].tobytes()
    for i in (1, 3, 4):
        assert old[i][changed].all(), "trivial data"
        assert new[i][changed].tobytes() == np.zeros(len(slots), np.float32).tobytes()
    assert new[2].tobytes() == old[2].tobytes(), "bias"
    assert it.adam.state_of(it.layer.values).count == 1
    for label in range(n_labels):
        row, drawn = new[0][label], new[0][label][changed[label]]
        assert len(set(row.tolist())) == fan_in, "no input twice"
        assert not set(drawn.tolist()) & set(old[0][label].tolist()), "neither kept nor dropped before"
        assert (np.diff(drawn) > 0).all()
    FixedFanIn(n_inputs, *it.layer.arrays)  # passes the checks of a layer


@pytest.mark.parametrize(
    ("fraction", "n"),
    [(0, 0), (0.0249, 0), (0.025, 1), (0.0749, 1), (0.075, 2), (0.5, 10), (0.975, 20), (1, 20), (np.float32(0.5), 10)],
)
def test_number_of_slots_is_rounded_half_up(backend, fraction, n):
    it = trained(backend, 5, 8, 4)
    assert rewire(it.layer, fraction, 0, it.adam).shape == (n, 2)
    changed = (it.state()[0] != it.before[0]).sum()
    assert changed == n


@pytest.mark.parametrize("value", [1, -1, 0, -0.0, 1e-42])
def test_ties_go_by_flat_index(backend, value):
    it = trained(backend, 5, 9, 4, value)
    slots = backend.numpy(rewire(it.layer, 0.35, 0, it.adam))
    assert slots.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2]]


def test_ties_with_smaller_ones_around(backend):
    """Flat indices of |2|: 0, 4, 5, 7; smaller: 3, 9. Six of ten: the last of the ties stays."""
    values = np.reshape([2, 3, -4, 1, -2, 2, 3, -2, 3, 0], (5, 2))
    for fraction, want in (0.2, [3, 9]), (0.3, [0, 3, 9]), (0.5, [0, 3, 4, 5, 9]), (0.6, [0, 3, 4, 5, 7, 9]):
        it = trained(backend, 5, 7, 2, values)
        slots = backend.numpy(rewire(it.layer, fraction, 0))
        assert (slots @ [2, 1]).tolist() == want


@pytest.mark.parametrize(
    ("values", "n", "want"),
    [
        ([[2, -2, 2, 1]], 2, [0, 3]),  # two ties stay, a smaller one follows them
        ([[2, 9, 9, 9], [2, 1, 9, 9]], 2, [0, 5]),  # all ties of one label go, none of the next
        ([[9, 9, 9, 9], [9, 2, 2, 1], [2, 1, 2, 2]], 3, [5, 7, 9]),
    ],
)
def test_ties_that_stay_beside_smaller_ones(backend, values, n, want):
    it = trained(backend, len(values), 9, 4, values)
    slots = backend.numpy(rewire(it.layer, n / (4 * len(values)), 0))
    assert (slots @ [4, 1]).tolist() == want


def test_zero_of_either_sign_is_the_same(backend):
    it = trained(backend, 1, 9, 4, [0.0, -0.0, 0.0, -0.0])
    assert backend.numpy(rewire(it.layer, 0.75, 0)).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert it.state()[1].tobytes() == np.float32([0, 0, 0, -0.0]).tobytes()


def test_magnitudes_that_differ_in_the_last_place(backend):
    """1 + i 2^-23 in mixed order and of mixed sign: only the last of the three digits tells them apart."""
    order = np.random.default_rng(1).permutation(60)
    bits = np.float32(1).view(np.int32) + order.astype(np.int32)
    values = bits.view(np.float32) * np.where(order % 2, -1, 1).astype(np.float32)
    it = trained(backend, 12, 30, 5, values.reshape(12, 5))
    slots = backend.numpy(rewire(it.layer, 0.3, 0))
    assert sorted(order[slots @ [5, 1]]) == list(range(18))


def test_a_large_layer():
    """Many parts and blocks of labels on the CPU: the slots are those of a stable sort, and no input comes twice."""
    layer = FixedFanIn.random(5000, 300, 16, 1)
    layer.values[:] = np.round(layer.values, 3)  # ties
    before = copy_layer(layer)
    slots = rewire(layer, 0.1, 3)
    np.testing.assert_array_equal(slots @ [16, 1], reference.smallest(before.values, 8000))
    FixedFanIn(300, *layer.arrays)
    kept = ~places(slots, before.values.shape)
    np.testing.assert_array_equal(layer.indices[kept], before.indices[kept])
    assert (layer.indices != before.indices).sum() == 8000


def test_makes_no_copy_of_the_weights():
    """What NumPy allocates on the way is a few numbers a label."""
    layer = FixedFanIn.random(20_000, 300, 32, 1)
    rewire(layer, 0.01, 0)  # compiled
    tracemalloc.start()
    try:
        slots = rewire(layer, 0.01, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert slots.nbytes < peak < 50 * layer.n_labels + 200_000 < layer.values.nbytes


# ---------------------------------------------------------------- what it draws


def test_draws_are_uniform():
    """2 of 4 connections are drawn anew from 5 free inputs: all 10 pairs are equally likely, over seeds and steps."""
    n_labels, free = 8, sorted(set(range(9)) - {7, 1, 5, 2})
    indices = np.tile(np.int32([7, 1, 5, 2]), (n_labels, 1))
    values = np.tile(np.float32([3, 0.1, 4, 0.2]), (n_labels, 1))
    draws = {"seed": [], "step": []}
    for i in range(300):
        for name, pairs in draws.items():
            layer = FixedFanIn(9, indices.copy(), values.copy(), np.zeros(n_labels, np.float32))
            rewire(layer, 0.5, i if name == "seed" else 5, step=i if name == "step" else 0)
            np.testing.assert_array_equal(layer.indices[:, [0, 2]], indices[:, [0, 2]])
            pairs.extend(layer.indices[:, [1, 3]])
    for pairs in draws.values():
        chosen, counts = np.unique(pairs, axis=0, return_counts=True)
        assert set(chosen.ravel().tolist()) == set(free)
        assert len(chosen) == 10
        assert 1e-3 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-3


def test_labels_draw_independently():
    """Each label draws one of the same six inputs: all equally likely, and so are the pairs of neighbours."""
    n = 7200
    layer = FixedFanIn(
        8, np.tile(np.int32([3, 5]), (n, 1)), np.tile(np.float32([1, 0]), (n, 1)), np.zeros(n, np.float32)
    )
    rewire(layer, 0.5, 1)
    drawn = layer.indices[:, 1]
    pairs = np.unique(np.stack([drawn[:-1], drawn[1:]], 1), axis=0, return_counts=True)[1]
    assert len(pairs) == 36
    for counts in (np.unique(drawn, return_counts=True)[1], pairs):
        assert 1e-3 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-3


def test_seed_and_step_change_the_draws(backend):
    """Not the slots. The step alone does, and the seed alone; the same ones again give the same."""

    def draw(seed, step):
        it = trained(backend, 9, 50, 4)
        slots = backend.numpy(rewire(it.layer, 0.5, seed, it.adam, step=step))
        return slots.tolist(), it.state()[0]

    slots, one = draw(1, 0)
    for seed, step in (2, 0), (1, 1), (1 + 2**32, 0), (1, 2**31):
        other_slots, other = draw(seed, step)
        assert other_slots == slots
        assert (other != one).sum() > 9
    again_slots, again = draw(1, 0)
    assert (again_slots, again.tolist()) == (slots, one.tolist())


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_same_bits_with_one_thread_and_two():
    def run(n_threads):
        layer, adam = FixedFanIn.random(2100, 131, 9, seed=5), Adam()
        for moment in adam.state_of(layer.values).moments:
            moment[:] = 1
        with threads(n_threads):
            slots = rewire(layer, 0.3, 8, adam)
        return [a.tobytes() for a in (slots, *layer.arrays, *adam.state_of(layer.values).moments)]

    assert run(1) == run(2)


# ---------------------------------------------------------------- optimisers


@pytest.mark.parametrize("optimizer", [None, SGD(0.1)], ids=["None", "SGD"])
def test_optimizers_without_moments(backend, optimizer):
    one, two = trained(backend, 7, 9, 3), trained(backend, 7, 9, 3)
    slots = [backend.numpy(rewire(it.layer, 0.4, 1, o)).tolist() for it, o in ((one, optimizer), (two, two.adam))]
    assert slots[0] == slots[1]
    for got, want in zip(one.state()[:3], two.state()[:3], strict=True):
        np.testing.assert_array_equal(got, want)
    assert (one.state()[3] == 5).all(), "the moments of an optimizer that was not named"
    assert (two.state()[3] == 0).sum() == len(slots[0])


def test_training_goes_on(backend):
    """Steps before and after, the layer's arrays held: new connections are trained as any others."""
    layer, adam = make_layer(backend, 5, 9, 3), Adam(0.1)
    x, labels = backend.array(normal(1, 3, 9)), place_labels(backend, label_matrix(3, 5))
    held = layer.arrays
    fixed_fan_in_step(x, layer, labels, "bce", adam)
    slots = backend.numpy(rewire(layer, 0.4, 1, adam, step=1))
    fixed_fan_in_step(x, layer, labels, "bce", adam)
    assert layer.arrays is held
    assert adam.state_of(layer.values).count == 2
    assert np.abs(backend.numpy(layer.values)[tuple(slots.T)]).min() > 0.01


# ---------------------------------------------------------------- what it refuses


def refuses(it, error, message, *arguments, **keywords):
    with pytest.raises(error, match=message):
        rewire(*arguments, **keywords)
    for got, want in zip(it.state(), it.before, strict=True):
        assert got.tobytes() == want.tobytes(), "something has changed"


OUTSIDE = r"^fraction must lie in \[0, 1\], got "


@pytest.mark.parametrize(
    ("fraction", "error", "message"),
    [
        (-0.1, ValueError, OUTSIDE + "-0.1$"),
        (1.0000001, ValueError, OUTSIDE + "1.0000001$"),
        (np.nan, ValueError, OUTSIDE + "nan$"),
        (np.inf, ValueError, OUTSIDE + "inf$"),
        ("0.1", TypeError, "^fraction must be a number, got str '0.1'$"),
        (None, TypeError, "^fraction must be a number, got NoneType None$"),
        (True, TypeError, "^fraction must be a number, got bool True$"),
        ([0.1], TypeError, "^fraction must be a number, got list"),
        (0.1j, TypeError, "^fraction must be a number, got complex"),
    ],
)
def test_fraction(backend, fraction, error, message):
    it = trained(backend, 5, 9, 4)
    refuses(it, error, message, it.layer, fraction, 0, it.adam)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"seed": -1}, ValueError, "^seed must be between 0 and 18446744073709551615, got -1"),
        ({"seed": 2**64}, ValueError, "^seed must be between"),
        ({"seed": 1.0}, TypeError, "^seed must be an integer, got float 1.0"),
        ({"step": -1}, ValueError, "^step must be between 0 and 4294967295, got -1"),
        ({"step": 2**32}, ValueError, "^step must be between"),
        ({"step": None}, TypeError, "^step must be an integer, got NoneType"),
        ({"optimizer": "adam"}, TypeError, "^optimizer must be Adam, SGD or None, got str$"),
        ({"optimizer": Adam}, TypeError, "^optimizer must be Adam, SGD or None, got type$"),
        ({"optimizer": 0}, TypeError, "^optimizer must be Adam, SGD or None, got int$"),
        ({"layer": None}, TypeError, "^layer must be a FixedFanIn, got NoneType$"),
        ({"layer": np.zeros((5, 4), np.float32)}, TypeError, "^layer must be a FixedFanIn, got ndarray$"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_other_arguments(backend, keywords, error, message):
    it = trained(backend, 5, 9, 4)
    arguments = {"layer": it.layer, "fraction": 0.2, "seed": 0, "optimizer": it.adam, **keywords}
    refuses(it, error, message, **arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize("fraction", [0.1, 1])
def test_values_that_are_not_finite(backend, bad, fraction):
    values = np.full((5, 4), 1, np.float32)
    values[4, 3] = bad
    it = trained(backend, 5, 9, 4, values)
    message = "^layer.values must be finite, got NaN or infinity; lower the learning rate$"
    refuses(it, ValueError, message, it.layer, fraction, 0, it.adam)


def test_nothing_to_do_looks_at_nothing(backend):
    """Fraction 0 is legal whatever the values."""
    it = trained(backend, 5, 9, 4, np.nan)
    assert rewire(it.layer, 0, 0, it.adam).shape == (0, 2)


def test_largest_number_is_finite(backend):
    it = trained(backend, 5, 9, 4, np.finfo(np.float32).max)
    assert len(rewire(it.layer, 1, 0)) == 20


def test_more_redraws_than_free_inputs(backend):
    """Label 2 holds all the small values: 3 of its 4 may go where 6 inputs are, 2 are free."""
    values = np.full((5, 4), 9, np.float32)
    values[2] = 1
    it = trained(backend, 5, 6, 4, values)
    message = (
        r"^fraction is too large: label 2 would need 3 new inputs and has 2 free ones "
        r"\(n_inputs = 6, fan-in = 4\); use a smaller fraction$"
    )
    refuses(it, ValueError, message, it.layer, 0.15, 0, it.adam)
    slots = backend.numpy(rewire(it.layer, 0.1, 0, it.adam))
    assert slots.tolist() == [[2, 0], [2, 1]]
    assert sorted(it.state()[0][2].tolist()) == sorted({*range(6)} - set(it.before[0][2, :2].tolist()))


def test_no_free_inputs_at_all(backend):
    """K = H: nothing can be redrawn; a fraction of 0 is legal."""
    it = trained(backend, 3, 4, 4)
    message = r"^fraction is too large: label \d would need [1-4] new inputs and has 0 free ones \(n_inputs = 4, fan-in"
    for fraction in (0.1, 1):
        refuses(it, ValueError, message, it.layer, fraction, 0, it.adam)
    assert rewire(it.layer, 0, 0, it.adam).shape == (0, 2)
    for got, want in zip(it.state(), it.before, strict=True):
        assert got.tobytes() == want.tobytes()


def test_read_only_indices():
    """A layer may be trained with read-only indices, not rewired."""
    layer = layer_arrays(3, 7, 2)
    layer.indices.flags.writeable = False
    layer = FixedFanIn(7, *layer)
    with pytest.raises(ValueError, match=r"^layer.indices is written to but is read-only"):
        rewire(layer, 0.1, 0)
