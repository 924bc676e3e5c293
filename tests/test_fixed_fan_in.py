"""Fixed fan-in layer: the public functions against `reference`, and `reference` against finite differences."""

import numba
import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from sparsemax_nb import (
    SGD,
    Adam,
    FixedFanIn,
    GroupSharedFanIn,
    Labels,
    fixed_fan_in_backward,
    fixed_fan_in_forward,
    fixed_fan_in_step,
    fixed_fan_in_top_k,
)
from sparsemax_nb.core import formulas, rng
from sparsemax_nb.core.device import SIMULATOR, device_of
from sparsemax_nb.core.sparse import as_labels, by_label
from sparsemax_nb.cpu import blocks
from sparsemax_nb.cpu import fixed_fan_in as cpu_backend
from sparsemax_nb.cpu.losses import losses_and_slopes
from sparsemax_nb.cuda import fixed_fan_in as cuda_backend
from sparsemax_nb.reference import fixed_fan_in as reference
from sparsemax_nb.reference import initialization

from .conftest import DEVICES
from .helpers import (
    STEP_LOSSES,
    Layer,
    assert_close,
    close_to_derivative,
    copy_layer,
    integers,
    label_matrix,
    layer_arrays,
    make_layer,
    normal,
    place_labels,
    place_layer,
    step_loss,
    threads,
    tolerance,
)

#: (B, H, L, K): no rows; one of everything; K = H; odd; more labels than the CPU scores at a time; many blocks of rows.
SHAPES = [
    (0, 5, 3, 2),
    (1, 1, 1, 1),
    (3, 7, 5, 7),
    (33, 19, 17, 3),
    (65, 31, 47, 9),
    (3, 11, 1100, 5),
    (129, 11, 33, 5),
]
SMALL_SHAPES = [(0, 5, 3, 2), (1, 1, 1, 1), (3, 7, 5, 7), (9, 5, 7, 3)]
LOSSES = pytest.mark.parametrize("loss", STEP_LOSSES)


def shapes(only_small=False):
    """All shapes; in the simulator the CUDA side of a kernel with barriers gets the small ones only."""
    cases = []
    for device in DEVICES:
        small = device == "cuda" and SIMULATOR and only_small
        cases += [pytest.param(device, s, id=f"{device}-{s}") for s in (SMALL_SHAPES if small else SHAPES)]
    return pytest.mark.parametrize(("backend", "shape"), cases, indirect=["backend"])


def positives_of(matrix):
    return by_label(as_labels(matrix, matrix.shape[0], "cpu", matrix.shape[1]), matrix.shape[1])


def exact_rates(optimizer, count):
    """The rates of step number `count` as the papers have them, in float64."""
    if isinstance(optimizer, SGD):
        return formulas.Rates(optimizer.learning_rate, 0.0, 0.0, 0.0)
    first, second = 1 - optimizer.beta1**count, np.sqrt(1 - optimizer.beta2**count)
    return formulas.Rates(
        optimizer.learning_rate * second / first, optimizer.beta1, optimizer.beta2, optimizer.epsilon * second
    )


def make_adam():
    """Decay rates that float32 holds exactly, and a step so large that dx of new values would be another one."""
    return Adam(learning_rate=0.125, beta1=0.875, beta2=0.984375)


OPTIMIZERS = pytest.mark.parametrize("make_optimizer", [make_adam, lambda: SGD(learning_rate=0.5)], ids=["adam", "sgd"])


# ---------------------------------------------------------------- the reference


@pytest.mark.quick
@LOSSES
def test_reference_gradients_by_finite_differences(loss):
    random, (n_rows, n_inputs, n_labels, fan_in) = np.random.default_rng(1), (4, 7, 5, 3)
    x = random.standard_normal((n_rows, n_inputs))
    layer = Layer(
        *(a.astype(np.float64) if a.dtype == np.float32 else a for a in layer_arrays(n_labels, n_inputs, fan_in))
    )
    matrix = label_matrix(n_rows, n_labels)
    label_rows, kind = positives_of(matrix), STEP_LOSSES[loss]
    nothing = formulas.Moments(np.zeros(0), np.zeros(0))
    rates = formulas.Rates(1.0, 0.0, 0.0, 0.0)  # a step of size 1: the gradient is old minus new

    def step(x, layer):
        shifted = step_loss(kind, reference.forward(x, layer), matrix, np.float64)
        return reference.step(x, layer, label_rows, shifted, formulas.SGD_KIND, rates, nothing, nothing)

    def total(x, layer):
        return step(x, layer)[1].sum()

    dx, _, (values, *_), (bias, *_) = step(x, layer)
    close_to_derivative(lambda p: total(p, layer), x, dx, random)
    close_to_derivative(lambda p: total(x, layer._replace(values=p)), layer.values, layer.values - values, random)
    close_to_derivative(lambda p: total(x, layer._replace(bias=p)), layer.bias, layer.bias - bias, random)


@pytest.mark.quick
def test_reference_backward_by_finite_differences():
    random, layer = np.random.default_rng(2), layer_arrays(5, 7, 3)
    layer = layer._replace(values=layer.values.astype(np.float64), bias=layer.bias.astype(np.float64))
    x, dscores = random.standard_normal((4, 7)), random.standard_normal((4, 5))
    dx, dvalues, dbias = reference.backward(x, layer, dscores)

    def total(x, layer):
        return (dscores * reference.forward(x, layer)).sum()

    close_to_derivative(lambda p: total(p, layer), x, dx, random)
    close_to_derivative(lambda p: total(x, layer._replace(values=p)), layer.values, dvalues, random)
    close_to_derivative(lambda p: total(x, layer._replace(bias=p)), layer.bias, dbias, random)


# ---------------------------------------------------------------- forward and backward


@pytest.mark.twins
@shapes()
def test_forward(backend, shape):
    n_rows, n_inputs, n_labels, fan_in = shape
    layer, x = make_layer(backend, n_labels, n_inputs, fan_in), normal(9, n_rows, n_inputs)
    want = reference.forward(x, copy_layer(layer))
    scores = fixed_fan_in_forward(backend.array(x), layer)
    assert_close(backend.numpy(scores), want, fan_in + 1)
    out = backend.array(np.full((n_rows, n_labels), np.nan, np.float32))
    assert fixed_fan_in_forward(backend.array(x), layer, out=out) is out
    np.testing.assert_array_equal(backend.numpy(out), backend.numpy(scores))
    dense = x @ backend.numpy(layer.to_dense()).T + backend.numpy(layer.bias)
    assert_close(dense, want, fan_in + 1)


@pytest.mark.twins
@shapes()
def test_backward(backend, shape):
    n_rows, n_inputs, n_labels, fan_in = shape
    layer, x = make_layer(backend, n_labels, n_inputs, fan_in), normal(9, n_rows, n_inputs)
    dscores = normal(8, n_rows, n_labels) * integers(7, 0, 2, n_rows, n_labels)
    dscores[:1, 0] = 1
    wanted = reference.backward(x, copy_layer(layer), dscores)
    most = np.bincount(backend.numpy(layer.indices).reshape(-1)).max()
    outputs = fixed_fan_in_backward(backend.array(x), layer, backend.array(dscores))
    for got, want, terms in zip(outputs, wanted, (most, n_rows, n_rows), strict=True):
        assert device_of(got) == backend.device
        assert_close(backend.numpy(got), want, terms)


# ---------------------------------------------------------------- step


@pytest.mark.twins
@OPTIMIZERS
@LOSSES
@shapes(only_small=True)
def test_three_steps(backend, shape, loss, make_optimizer):
    """Each step from where the last one arrived: loss, dx, moments and parameters. dx is of the values before."""
    n_rows, n_inputs, n_labels, fan_in = shape
    layer, optimizer = make_layer(backend, n_labels, n_inputs, fan_in), make_optimizer()
    for count in (1, 2, 3):
        x, matrix = normal(10 + count, n_rows, n_inputs), label_matrix(n_rows, n_labels, seed=count)
        before, states = copy_layer(layer), [optimizer.state_of(a) for a in (layer.values, layer.bias)]
        moments = [formulas.Moments(*map(backend.numpy, state.moments)) for state in states]
        rates, code = exact_rates(optimizer, count), step_loss(STEP_LOSSES[loss], reference.forward(x, before), matrix)
        want_dx, want_loss, *wanted = reference.step(
            x, before, positives_of(matrix), code, optimizer.kind, rates, *moments
        )
        value, dx = fixed_fan_in_step(backend.array(x), layer, place_labels(backend, matrix), loss, optimizer)
        if loss == "softmax":  # the formula leaves a constant out
            n = np.diff(matrix.indptr)
            value -= (n * np.log(np.maximum(n, 1))).sum() / max(n_rows, 1)
        if loss == "softmax" and n_labels == 1:  # its probability is 1, whatever its score
            assert abs(value) < 1e-6
            assert np.abs(backend.numpy(dx)).max() < 1e-6
            return
        terms = n_rows * (fan_in + 1)
        most = np.bincount(before.indices.reshape(-1)).max()
        assert_close(backend.numpy(dx), want_dx, (fan_in + 1) * most * bool(n_rows))
        assert value == pytest.approx(want_loss.sum(), abs=tolerance(terms, want_loss.sum()))
        for array, state, old_moments, (parameter, m, v) in zip(
            (layer.values, layer.bias), states, moments, wanted, strict=True
        ):
            assert state.count == count
            new_m, new_v = map(backend.numpy, state.moments)
            assert_close(new_m, m, terms, scale=np.abs([*m.flat, *old_moments.m.flat]).max(initial=0))
            assert_close(new_v, v, 4 * terms)
            n_terms = terms
            if isinstance(
                optimizer, Adam
            ):  # m / sqrt(v) jumps where the gradient is about 0: take the moments as found
                old = before.values if array is layer.values else before.bias
                parameter = old - rates.step_size * new_m.astype(np.float64) / (np.sqrt(new_v) + rates.epsilon)
                n_terms = 1
            assert_close(backend.numpy(array), parameter, max(n_terms, 1))


@pytest.mark.twins
@OPTIMIZERS
def test_labels_beyond_the_margin_have_no_gradient(backend, make_optimizer):
    """Scores of -2 for negatives: loss and dx are exactly 0, SGD changes no bit, Adam's moments decay all the same."""
    n_rows, n_inputs, n_labels, fan_in = 9, 7, 5, 3
    layer, optimizer = make_layer(backend, n_labels, n_inputs, fan_in), make_optimizer()
    x, matrix = backend.array(normal(1, n_rows, n_inputs)), label_matrix(n_rows, n_labels)
    fixed_fan_in_step(x, layer, place_labels(backend, matrix), "squared-hinge", optimizer)
    moments = [backend.numpy(m) for m in optimizer.state_of(layer.values).moments]
    layer.values[:], layer.bias[:] = 0, -2
    no_labels = scipy.sparse.csr_matrix((n_rows, n_labels), dtype=np.float32)
    value, dx = fixed_fan_in_step(x, layer, place_labels(backend, no_labels), "squared-hinge", optimizer)
    assert value == 0
    assert not backend.numpy(dx).any()
    after = copy_layer(layer)
    if isinstance(optimizer, SGD):
        np.testing.assert_array_equal(after.values, 0)
        np.testing.assert_array_equal(after.bias, -2)
        return
    assert np.abs(moments[0]).min() > 0, "trivial data"
    for got, old, beta in zip(optimizer.state_of(layer.values).moments, moments, (0.875, 0.984375), strict=True):
        np.testing.assert_array_equal(backend.numpy(got), np.float32(beta) * old)
    assert np.abs(after.values).min() > 0, "momentum moves every value"


def test_step_learns():
    """Fifty steps on a problem that the layer can solve: from a loss of about 1 a label to almost nothing."""
    layer, adam = FixedFanIn.random(40, 64, 16, seed=3), Adam(learning_rate=0.05)
    x, matrix = normal(1, 32, 64), label_matrix(32, 40, density=0.1)
    losses = [fixed_fan_in_step(x, layer, matrix, "squared-hinge", adam)[0] for _ in range(50)]
    assert losses[0] > 30
    assert losses[-1] < losses[0] / 20


@LOSSES
@pytest.mark.twins
def test_step_without_rows_or_positives(backend, loss):
    """Legal: a batch of no rows has loss 0 and changes nothing; rows without labels are all negatives."""
    layer = make_layer(backend, 5, 7, 3)
    before = copy_layer(layer)
    empty = backend.array(np.zeros((0, 7), np.float32))
    no_labels = place_labels(backend, scipy.sparse.csr_matrix((0, 5), dtype=np.float32))
    value, dx = fixed_fan_in_step(empty, layer, no_labels, loss, SGD(1.0))
    assert (value, dx.shape) == (0, (0, 7))
    for got, want in zip(copy_layer(layer), before, strict=True):
        np.testing.assert_array_equal(got, want)
    x, no_labels = normal(3, 3, 7), scipy.sparse.csr_matrix((3, 5), dtype=np.float32)
    value, _ = fixed_fan_in_step(backend.array(x), layer, place_labels(backend, no_labels), loss, SGD(1.0))
    scores = reference.forward(x, before)
    want = {"squared-hinge": np.maximum(0, 1 + scores) ** 2, "bce": np.logaddexp(0, scores), "softmax": 0 * scores}
    assert value == pytest.approx(want[loss].sum() / 3, rel=1e-5)


@pytest.mark.parametrize("group", [(), (16,)], ids=["plain", "group-shared"])
def test_step_gives_the_same_bits_in_many_ranges_of_labels(group, monkeypatch):
    """The CPU works on as many labels at once as its memory allows; 129 rows: dx is never split by labels."""
    n_rows, n_inputs, n_labels, fan_in = 129, 31, 1100, 5
    x, matrix = normal(1, n_rows, n_inputs), label_matrix(n_rows, n_labels, density=0.01)

    def run(held):
        monkeypatch.setattr(blocks, "MAX_ELEMENTS", held)
        kind, adam = GroupSharedFanIn if group else FixedFanIn, make_adam()
        layer = kind.random(n_labels, n_inputs, fan_in, *group, seed=5)
        results = [fixed_fan_in_step(x, layer, matrix, "squared-hinge", adam) for _ in range(2)]
        return [a.tobytes() for a in (layer.values, layer.bias, *(np.asarray(r) for pair in results for r in pair))]

    assert cpu_backend.workspace_shapes(n_rows, n_inputs, n_labels, fan_in)["active"][0] == (9, n_labels)
    at_once = run(blocks.MAX_ELEMENTS)
    assert run(1) == at_once
    assert cpu_backend.workspace_shapes(n_rows, n_inputs, n_labels, fan_in)["active"][0] == (9, cpu_backend.CHUNK)


def test_cross_entropy_as_vector_code():
    """The CPU's own exp and log1p: as exact as float32 allows, from -110 to 110; infinities and NaN come through."""
    scores = np.concatenate([np.linspace(-110, 110, 100_001), 1e-3 * normal(0, 1000), [0, 1e-30]]).astype(np.float32)
    for sign in np.float32([-1, 1]):
        losses, slopes = np.empty_like(scores), np.empty_like(scores)
        losses_and_slopes(formulas.LOSSES["bce"], scores, np.full_like(scores, sign), losses, slopes)
        z = np.float64(sign) * scores
        np.testing.assert_allclose(losses, np.logaddexp(0, -z), rtol=4e-7, atol=2e-38)
        np.testing.assert_allclose(slopes, -sign / (1 + np.exp(z)), rtol=4e-7, atol=2e-38)
    scores, losses, slopes = np.float32([np.inf, -np.inf, np.nan]), np.empty(3, np.float32), np.empty(3, np.float32)
    losses_and_slopes(formulas.LOSSES["bce"], scores, np.ones(3, np.float32), losses, slopes)
    np.testing.assert_array_equal(losses, [0, np.inf, np.nan])
    np.testing.assert_array_equal(slopes, [0, -1, np.nan])


# ---------------------------------------------------------------- working arrays


def n_bytes(shapes):
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())


@pytest.mark.parametrize("shape", SHAPES)
def test_working_arrays_are_what_their_shapes_say(shape):
    n_rows, n_inputs, n_labels, fan_in = shape
    want = cpu_backend.workspace_shapes(*shape)
    with blocks.workspace(want) as work, blocks.workspace(want) as other:
        assert {name: (a.shape, a.dtype) for name, a in work._asdict().items()} == want
        assert all(a.ctypes.data % 64 == 0 for a in work if a.size)
        assert not any(np.shares_memory(a, b) for a, b in zip(work, other, strict=True)), "shared with no other call"
    with blocks.workspace(want) as again:
        assert again is work, "kept for the next call"


def test_working_arrays_stay_small():
    """670,000 labels, 128 rows of 32,768 inputs: one matrix of scores alone would take 327 MiB."""
    sizes = 128, 32768, 670_000, 32
    assert n_bytes(cpu_backend.workspace_shapes(*sizes)) < 50 << 20
    assert n_bytes(cpu_backend.top_k_shapes(*sizes, 5)) < 20 << 20
    assert n_bytes(cuda_backend.workspace_shapes(*sizes)) == 32 << 20
    assert n_bytes(cuda_backend.top_k_shapes(*sizes, 5)) < 32 << 20


# ---------------------------------------------------------------- top-k


@pytest.mark.twins
@shapes()
def test_top_k(backend, shape):
    """Ids equal those of the reference wherever its neighbouring scores differ by more than float32 can lose."""
    n_rows, n_inputs, n_labels, fan_in = shape
    layer, x, k = make_layer(backend, n_labels, n_inputs, fan_in), normal(9, n_rows, n_inputs), min(n_labels, 4)
    top_scores, top_ids = map(backend.numpy, fixed_fan_in_top_k(backend.array(x), layer, k))
    want_scores, want_ids = reference.top_k(x, copy_layer(layer), n_labels)
    assert (top_ids.shape, top_ids.dtype) == ((n_rows, k), np.int32)
    assert_close(top_scores, want_scores[:, :k], fan_in + 1)
    if n_rows:
        gaps = np.abs(np.diff(want_scores, axis=1, append=-np.inf)[:, :k])
        clear = gaps > 2 * tolerance(fan_in + 1, np.abs(want_scores).max())
        clear[:, 1:] &= clear[:, :-1]
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(top_ids[clear], want_ids[:, :k][clear])


@pytest.mark.twins
@pytest.mark.parametrize("k", [1, 3, 67])
def test_top_k_breaks_ties_by_label(backend, k):
    """Integers: scores are exact and many are equal, so scores and ids agree to the last bit."""
    n_rows, n_inputs, n_labels, fan_in = 17, 9, 67, 3
    layer = layer_arrays(n_labels, n_inputs, fan_in)
    layer = layer._replace(values=integers(4, -1, 2, n_labels, fan_in), bias=integers(5, -1, 2, n_labels))
    x = integers(6, -1, 2, n_rows, n_inputs)
    want_scores, want_ids = reference.top_k(x, layer, k)
    assert k == 1 or (np.diff(want_scores, axis=1) == 0).mean() > 0.3, "trivial data: no ties"
    scores, ids = fixed_fan_in_top_k(backend.array(x), place_layer(backend, layer, n_inputs), k)
    np.testing.assert_array_equal(backend.numpy(scores), want_scores)
    np.testing.assert_array_equal(backend.numpy(ids), want_ids)


# ---------------------------------------------------------------- same seed, same bits


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("call", ["forward", "backward", "step", "top_k"])
def test_same_bits_with_one_thread_and_two(call):
    n_rows, n_inputs, n_labels, fan_in = 65, 131, 2100, 9
    x, matrix = normal(1, n_rows, n_inputs), label_matrix(n_rows, n_labels, density=0.01)

    def run():
        layer, adam = FixedFanIn.random(n_labels, n_inputs, fan_in, seed=5), make_adam()
        if call == "forward":
            return (fixed_fan_in_forward(x, layer),)
        if call == "backward":
            return fixed_fan_in_backward(x, layer, normal(2, n_rows, n_labels))
        if call == "top_k":
            return fixed_fan_in_top_k(x, layer, 7)
        results = [fixed_fan_in_step(x, layer, matrix, loss, adam) for loss in ("bce", "softmax")]
        moments = [m for a in (layer.values, layer.bias) for m in adam.state_of(a).moments]
        return [layer.values, layer.bias, *moments, *(np.asarray(r) for result in results for r in result)]

    with threads(1):
        one = run()
    with threads(2):
        two = run()
    assert [a.tobytes() for a in one] == [b.tobytes() for b in two]


# ---------------------------------------------------------------- random layers


@pytest.mark.twins
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize(("n_labels", "n_inputs", "fan_in"), [(1, 1, 1), (33, 19, 3), (17, 9, 9)])
def test_random_layer_is_the_same_everywhere(backend, n_labels, n_inputs, fan_in, seed):
    layer = FixedFanIn.random(n_labels, n_inputs, fan_in, seed, device=backend.device)
    indices, values, bias = map(backend.numpy, layer.arrays)
    np.testing.assert_array_equal(indices, initialization.random_connections(seed, n_inputs, n_labels, fan_in))
    scale = np.float32(1 / np.sqrt(fan_in))
    np.testing.assert_array_equal(values, initialization.random_values(seed, rng.WEIGHTS, scale, (n_labels, fan_in)))
    np.testing.assert_array_equal(bias, np.zeros(n_labels, np.float32))
    assert (np.diff(indices, axis=1) > 0).all(), "ascending, no input twice"
    assert indices.min() >= 0
    assert indices.max() < n_inputs
    if fan_in == n_inputs:
        np.testing.assert_array_equal(indices, np.tile(np.arange(n_inputs), (n_labels, 1)))
    FixedFanIn(n_inputs, *layer.arrays)  # passes its own checks


def test_random_connections_are_uniform():
    """All 56 choices of 3 inputs out of 8 are equally likely, and no position in the list prefers a weight."""
    layer = FixedFanIn.random(n_labels=22400, n_inputs=8, fan_in=3, seed=11)
    choices, counts = np.unique(layer.indices, axis=0, return_counts=True)
    assert len(choices) == 56
    assert 1e-3 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-3
    weights = layer.values.reshape(-1) * np.sqrt(3)
    assert -1 <= weights.min() < -0.999 < 0.999 < weights.max() < 1
    assert scipy.stats.kstest(weights, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_random_layers_differ_by_seed():
    one, two = (FixedFanIn.random(100, 50, 5, seed) for seed in (1, 2))
    assert (one.indices == two.indices).mean() < 0.3
    assert (one.values == two.values).mean() < 0.01


# ---------------------------------------------------------------- the layer itself


def test_layer_describes_itself(backend):
    layer = make_layer(backend, 5, 7, 3)
    assert (layer.n_labels, layer.n_inputs, layer.fan_in) == (5, 7, 3)
    assert layer.nbytes == 4 * (5 * 3 + 5 * 3 + 5)
    assert repr(layer) == f"FixedFanIn(n_labels=5, n_inputs=7, fan_in=3, device='{backend.device}')"
    indices, values, _ = copy_layer(layer)
    dense = backend.numpy(layer.to_dense())
    assert np.count_nonzero(dense) == 15
    np.testing.assert_array_equal(np.take_along_axis(dense, indices, 1), values)


def test_layer_holds_the_arrays_it_was_given(backend):
    """Held, not copied: training writes into the caller's arrays."""
    arrays = [backend.array(a) for a in layer_arrays(5, 7, 3)]
    layer = FixedFanIn(7, *arrays)
    labels = Labels(backend.array(np.zeros(2), np.int32), backend.array(np.zeros(0), np.int32))
    before = backend.numpy(arrays[1])
    fixed_fan_in_step(backend.array(normal(0, 1, 7)), layer, labels, "bce", SGD(1.0))
    assert not np.array_equal(backend.numpy(arrays[1]), before)
    assert all(a is b for a, b in zip(layer.arrays, arrays, strict=True))
