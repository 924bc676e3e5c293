"""Group-shared fixed fan-in: the public functions on such a layer, random rounding, rewiring of groups, bad input.

The kernels themselves are compared with `reference` by tests/test_kernels.py.
"""

import ml_dtypes
import numba
import numpy as np
import pytest

from sparsemax_nb import (
    SGD,
    Adam,
    FixedFanIn,
    GroupSharedFanIn,
    fixed_fan_in_backward,
    fixed_fan_in_forward,
    fixed_fan_in_step,
    fixed_fan_in_top_k,
    rewire,
)
from sparsemax_nb.core import rng
from sparsemax_nb.core.device import device_of
from sparsemax_nb.cpu import bfloat16 as cpu_backend
from sparsemax_nb.reference import bfloat16, initialization, rewiring

from .helpers import (
    STEP_LOSSES,
    assert_close,
    integers,
    label_matrix,
    normal,
    on_other_device,
    place_labels,
    shared_arrays,
    threads,
)

B, H, L, K, G = 9, 11, 14, 5, 4  # the last group has two labels
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def make(backend, dtype="float32", sizes=(L, H, K, G), seed=7):
    """A `GroupSharedFanIn` with normal weights and bias on the device of `backend`."""
    arrays = shared_arrays(*sizes, bfloat16=dtype == "bfloat16")
    values = backend.array(arrays.values)
    values = values.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else values
    return GroupSharedFanIn(
        sizes[1], backend.array(arrays.indices), values, backend.array(arrays.bias), sizes[3], seed=seed
    )


def weights_of(backend, layer):
    return backend.numpy(layer.values).astype(np.float32)


# ---------------------------------------------------------------- the functions of the plain layer


@pytest.mark.twins
@DTYPES
def test_is_a_plain_layer_whose_neighbours_have_equal_inputs(backend, dtype):
    """Forward, backward and top-k against those of a `FixedFanIn` that repeats the inputs, and the dense product."""
    layer, x = make(backend, dtype), normal(1, B, H)
    indices = np.repeat(backend.numpy(layer.indices), G, axis=0)[:L]
    repeated = FixedFanIn(H, *map(backend.array, (indices, weights_of(backend, layer), layer.bias)))
    np.testing.assert_array_equal(backend.numpy(layer.to_dense()), backend.numpy(repeated.to_dense()))
    scores = fixed_fan_in_forward(backend.array(x), layer)
    assert_close(backend.numpy(scores), x.astype(np.float64) @ backend.numpy(layer.to_dense()).T + layer.bias, K + 1)
    out = backend.array(np.full((B, L), np.nan, np.float32))
    assert fixed_fan_in_forward(backend.array(x), layer, out=out) is out
    np.testing.assert_array_equal(backend.numpy(out), backend.numpy(scores))
    arguments = backend.array(x), backend.array(normal(2, B, L))
    for got, want in zip(
        fixed_fan_in_backward(arguments[0], layer, arguments[1]),
        fixed_fan_in_backward(arguments[0], repeated, arguments[1]),
        strict=True,
    ):
        assert got.dtype == np.float32
        assert_close(backend.numpy(got), backend.numpy(want).astype(np.float64), 4 * L)
    best, ids = map(backend.numpy, fixed_fan_in_top_k(backend.array(x), layer, L))
    np.testing.assert_array_equal(np.sort(ids), np.tile(np.arange(L), (B, 1)), "every label once, none of padding")
    np.testing.assert_allclose(best, np.take_along_axis(backend.numpy(scores), ids, 1), atol=1e-5)


@pytest.mark.twins
@pytest.mark.parametrize("loss", STEP_LOSSES)
def test_groups_of_one_are_the_plain_layer(backend, loss):
    layer = GroupSharedFanIn.random(L, H, K, 1, seed=5, device=backend.device)
    other = FixedFanIn.random(L, H, K, seed=5, device=backend.device)
    for mine, others in ((layer.indices, other.indices), (layer.values, other.values)):
        np.testing.assert_array_equal(backend.numpy(mine), backend.numpy(others))
    matrix, x, optimizers = label_matrix(B, L), backend.array(normal(1, B, H)), [Adam(0.125), Adam(0.125)]
    for _ in range(3):
        one, two = (
            fixed_fan_in_step(x, it, place_labels(backend, matrix), loss, optimizer)
            for it, optimizer in zip((layer, other), optimizers, strict=True)
        )
        assert one[0] == pytest.approx(two[0], rel=1e-5)
        np.testing.assert_allclose(backend.numpy(one[1]), backend.numpy(two[1]), atol=2e-5)
    np.testing.assert_allclose(backend.numpy(layer.values), backend.numpy(other.values), atol=1e-4)


def test_step_learns_as_well_in_bfloat16():
    """Updates below half a unit in the last place make progress as in float32; rounding to nearest would get stuck."""
    x, matrix = normal(1, 32, 64), label_matrix(32, 40, density=0.1)

    def final_loss(dtype, nearest=False):
        layer, adam = GroupSharedFanIn.random(40, 64, 16, 8, seed=3, dtype=dtype), Adam(learning_rate=0.0003)
        for _ in range(200):
            loss, _ = fixed_fan_in_step(x, layer, matrix, "squared-hinge", adam)
            if nearest:
                layer.values[...] = layer.values.astype(ml_dtypes.bfloat16)
        return loss

    exact = final_loss("float32")
    assert exact < 42
    assert final_loss("bfloat16") == pytest.approx(exact, rel=0.01)
    assert final_loss("float32", nearest=True) > exact + 1


@pytest.mark.twins
def test_labels_beyond_the_margin_change_no_bit(backend):
    """Scores of -2 for negatives: loss and dx are 0, and SGD leaves bfloat16 weights as they are: nothing to round."""
    layer = make(backend, "bfloat16")
    layer.arrays.values[...], layer.bias[:] = 0, -2
    layer.arrays.values[0, :] = 0x8000  # -0
    no_labels = place_labels(backend, label_matrix(B, L, density=0))
    value, dx = fixed_fan_in_step(backend.array(normal(1, B, H)), layer, no_labels, "squared-hinge", SGD(0.5))
    assert value == 0
    assert not backend.numpy(dx).any()
    assert not weights_of(backend, layer).any()


# ---------------------------------------------------------------- random rounding


@pytest.mark.twins
def test_rounding_is_right_on_average(backend):
    """65,536 copies of one number, between two bfloat16 ones at 0.3 of their distance: each is one of the two."""
    low, high = np.array([1, 1 + 2.0**-7], np.float32)
    number = np.float32(low + 0.3 * (high - low))
    rounded = bfloat16.rounded(np.full(1 << 16, number), rng.Rounding(np.uint64(3), np.uint64(1)))
    values = (rounded.astype(np.uint32) << 16).view(np.float32)
    assert set(values) == {low, high}
    assert (values == high).mean() == pytest.approx(0.3, abs=0.01)
    out = np.zeros(1 << 16, np.uint16)
    cpu_backend.put(np.full(1 << 16, number), rng.Rounding(np.uint64(3), np.uint64(1)), 0, out)
    np.testing.assert_array_equal(out, rounded)
    part = np.zeros(100, np.uint16)  # as a thread does that begins in the middle of a draw
    cpu_backend.put(np.full(100, number), rng.Rounding(np.uint64(3), np.uint64(1)), 1003, part)
    np.testing.assert_array_equal(part, rounded[1003:1103])


def test_rounding_of_special_numbers():
    """Numbers of bfloat16, infinity and NaN are kept, also a NaN whose upper half looks like infinity."""
    exact = np.float32([0, -0.0, 1, -1.5, np.inf, -np.inf, 2.0**-126])
    for step in range(20):
        rounding = rng.Rounding(np.uint64(3), np.uint64(step))
        assert (bfloat16.widen(bfloat16.rounded(exact, rounding)).view(np.uint32) == exact.view(np.uint32)).all()
        odd = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
        assert np.isnan(bfloat16.widen(bfloat16.rounded(odd, rounding))).all()


def test_rounding_draws_anew_in_every_step_and_for_every_seed():
    """SGD at rate 0 would not move the weights; a rate far below half a unit in the last place moves some of them."""

    def after(seed, steps):
        layer = GroupSharedFanIn.random(40, 64, 16, 8, seed=seed, dtype="bfloat16")
        layer.arrays.values[...] = 0x3F80  # one
        sgd = SGD(2.0**-12)
        for _ in range(steps):
            fixed_fan_in_step(np.ones((4, 64), np.float32), layer, label_matrix(4, 40, density=0), "bce", sgd)
        return layer.arrays.values.copy()

    first, second, other = after(1, 1), after(1, 2), after(2, 1)
    assert 0 < (first != 0x3F80).mean() < 0.5
    assert (first != second).any()
    assert (first != other).any()
    np.testing.assert_array_equal(first, after(1, 1))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@DTYPES
def test_same_bits_with_one_thread_and_two(dtype):
    x, matrix = normal(1, 65, 131), label_matrix(65, 2100, density=0.01)

    def run():
        layer, adam = GroupSharedFanIn.random(2100, 131, 9, 16, seed=5, dtype=dtype), Adam(0.125)
        results = [fixed_fan_in_step(x, layer, matrix, "squared-hinge", adam) for _ in range(2)]
        best = fixed_fan_in_top_k(x, layer, 7)
        return [
            a.tobytes() for a in (layer.arrays.values, layer.bias, *best, *(np.asarray(r) for p in results for r in p))
        ]

    with threads(1):
        one = run()
    with threads(2):
        two = run()
    assert one == two


# ---------------------------------------------------------------- rewiring


@pytest.mark.twins
@DTYPES
def test_rewire_replaces_the_weakest_slots_of_groups(backend, dtype):
    layer, adam = make(backend, dtype), Adam()
    for moment in adam.state_of(layer.values).moments:
        moment[:] = 5
    before, old = weights_of(backend, layer), backend.numpy(layer.indices)
    slots = backend.numpy(rewire(layer, 0.3, seed=4, optimizer=adam, step=2))
    n_groups = -(-L // G)
    means = np.stack([np.abs(before[g * G : (g + 1) * G]).mean(0) for g in range(n_groups)])
    np.testing.assert_array_equal(
        slots[:, 0] * K + slots[:, 1], rewiring.smallest(means, int(0.3 * n_groups * K + 0.5))
    )
    new = backend.numpy(layer.indices)
    changed = np.zeros((n_groups, K), bool)
    changed[tuple(slots.T)] = True
    np.testing.assert_array_equal(new[~changed], old[~changed])
    for group in range(n_groups):
        assert not set(new[group][changed[group]]) & set(old[group]), "new inputs only"
        assert len(set(new[group])) == K
    of_labels = np.repeat(changed, G, axis=0)[:L]
    after = weights_of(backend, layer)
    assert not after[of_labels].any()
    np.testing.assert_array_equal(after[~of_labels], before[~of_labels])
    for moment in map(backend.numpy, adam.state_of(layer.values).moments):
        np.testing.assert_array_equal(moment, np.where(of_labels, 0, 5))


def test_rewire_refuses_what_a_group_can_not_give():
    layer = GroupSharedFanIn.random(8, 6, 4, 4, seed=1)
    before = layer.indices.copy()
    with pytest.raises(
        ValueError, match=r"fraction is too large: group \d would need 4 new inputs and has 2 free ones"
    ):
        rewire(layer, 1.0, seed=1)
    np.testing.assert_array_equal(layer.indices, before)


# ---------------------------------------------------------------- the layer itself


@pytest.mark.twins
@DTYPES
def test_random_layer_is_the_same_everywhere(backend, dtype):
    layer = GroupSharedFanIn.random(L, H, K, G, seed=2**64 - 1, dtype=dtype, device=backend.device)
    np.testing.assert_array_equal(
        backend.numpy(layer.indices), initialization.random_connections(2**64 - 1, H, -(-L // G), K)
    )
    scale = np.float32(1 / np.sqrt(K))
    values = initialization.random_values(2**64 - 1, rng.WEIGHTS, scale, (L, K)).astype(layer.values.dtype)
    np.testing.assert_array_equal(backend.numpy(layer.arrays.values), values.view(layer.arrays.values.dtype))
    assert layer.nbytes == 4 * 4 * K + layer.values.itemsize * L * K + 4 * L
    assert (layer.n_labels, layer.n_inputs, layer.fan_in, layer.group_size) == (L, H, K, G)
    assert repr(layer) == (
        f"GroupSharedFanIn(n_labels={L}, n_inputs={H}, fan_in={K}, group_size={G}, dtype={dtype!r}, "
        f"device={backend.device!r})"
    )
    GroupSharedFanIn(H, layer.indices, layer.values, layer.bias, G)  # passes its own checks


def test_layer_holds_the_arrays_it_was_given():
    arrays = shared_arrays(L, H, K, G)
    layer = GroupSharedFanIn(H, *arrays)
    assert all(a is b for a, b in zip((layer.indices, layer.values, layer.bias), arrays[:3], strict=True))
    fixed_fan_in_step(normal(1, B, H), layer, label_matrix(B, L), "bce", SGD(1.0))
    assert not np.array_equal(arrays.values, shared_arrays(L, H, K, G).values)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"group_size": L + 1}, ValueError, rf"group_size must be between 1 and {L} \(n_labels = {L}\), got {L + 1}"),
        ({"group_size": 0}, ValueError, "group_size must be between 1"),
        ({"group_size": 2.0}, TypeError, "group_size must be an integer"),
        ({"group_size": 5}, ValueError, "indices must have one row per group, 3 for 14 labels in groups of 5, got 4"),
        ({"values": np.zeros((L, K), np.float64)}, TypeError, "values must be float32, got float64"),
        ({"values": np.zeros((L, K), np.float16)}, TypeError, "values must be float32, got float16"),
        ({"values": np.zeros((L, K + 1), np.float32)}, ValueError, "values must have shape"),
        ({"bias": np.zeros(L - 1, np.float32)}, ValueError, "bias must have shape"),
        ({"indices": np.zeros((4, K), np.int32)}, ValueError, "must not repeat an input within one group"),
        ({"indices": np.full((4, K), H, np.int32)}, ValueError, rf"indices must lie in \[0, {H}\)"),
        ({"n_inputs": K - 1}, ValueError, "fan-in"),
        ({"seed": -1}, ValueError, "seed must be"),
    ],
)  # fmt: skip
def test_bad_arrays(change, error, message):
    arrays = {"n_inputs": H, **shared_arrays(L, H, K, G)._asdict()} | change
    with pytest.raises(error, match=message):
        GroupSharedFanIn(**arrays)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"group_size": L + 1}, ValueError, r"group_size must be between 1 and 14 \(n_labels = 14\), got 15"),
        ({"fan_in": H + 1}, ValueError, "fan_in must be between 1 and 11"),
        ({"dtype": "float16"}, ValueError, "dtype must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"device": "gpu"}, ValueError, "device must be one of"),
        ({"seed": 2**64}, ValueError, "seed must be"),
    ],
)
def test_bad_arguments_of_random(change, error, message):
    arguments = {"n_labels": L, "n_inputs": H, "fan_in": K, "group_size": G, "seed": 1} | change
    with pytest.raises(error, match=message):
        GroupSharedFanIn.random(**arguments)


@pytest.mark.twins
def test_bad_calls_leave_the_layer_alone(backend):
    layer = make(backend, "bfloat16")
    x, labels = backend.array(normal(1, B, H)), place_labels(backend, label_matrix(B, L))
    before = backend.numpy(layer.arrays.values)
    cases = [
        (lambda: fixed_fan_in_forward(on_other_device(backend, x), layer), TypeError, "one device"),
        (lambda: fixed_fan_in_forward(backend.array(normal(1, B, H + 1)), layer), ValueError, "h must have shape"),
        (lambda: fixed_fan_in_top_k(x, layer, L + 1), ValueError, "k must be between 1 and 14"),
        (lambda: fixed_fan_in_step(x, layer, labels, "hinge", Adam()), ValueError, "loss must be one of"),
        (lambda: fixed_fan_in_step(x, layer, labels, "bce", "adam"), TypeError, "optimizer must be Adam or SGD"),
        (lambda: rewire(layer, 2.0, seed=1), ValueError, "fraction must lie in"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    np.testing.assert_array_equal(backend.numpy(layer.arrays.values), before)


@pytest.mark.twins
@DTYPES
def test_weights_that_are_not_finite_are_reported(backend, dtype):
    layer = make(backend, dtype)
    layer.bias[3] = np.nan
    x, labels = backend.array(integers(1, -2, 3, B, H)), place_labels(backend, label_matrix(B, L))
    with pytest.raises(ValueError, match="the scores are not finite"):
        fixed_fan_in_top_k(x, layer, 2)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        fixed_fan_in_step(x, layer, labels, "squared-hinge", SGD(0.1))
    layer = make(backend, dtype)
    layer.values[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"layer\.values must be finite"):
        rewire(layer, 0.2, seed=1)
    assert device_of(layer.values) == backend.device
