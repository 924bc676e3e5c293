"""The LSTM layer against finite differences and PyTorch, and both backends against that reference."""

from typing import NamedTuple

import numpy as np
import pytest

from sparsemax_nb.reference import lstm

from .conftest import Backend
from .helpers import EPS, close_to_derivative, normal


class Layer(NamedTuple):
    """Inputs, weights and first state of an LSTM: gates (T, B, 4H) are sums of x w, h u and b."""

    x: np.ndarray  # (T, B, D)
    w: np.ndarray  # (D, 4H)
    u: np.ndarray  # (H, 4H)
    b: np.ndarray  # (4H,)
    h: np.ndarray  # (B, H)
    c: np.ndarray  # (B, H)


def make_layer(n_steps=4, n_rows=3, n_inputs=4, n_units=5):
    shapes = (n_steps, n_rows, n_inputs), (n_inputs, 4 * n_units), (n_units, 4 * n_units), (4 * n_units,)
    return Layer(*(normal(seed, *shape) for seed, shape in enumerate((*shapes, *[(n_rows, n_units)] * 2))))


def layer_forward(layer):
    """All h (T, B, H); and for every step its gates, previous c and c."""
    h, c, hs, steps = layer.h, layer.c, [], []
    for x in layer.x:
        previous = c
        gates, c, h = lstm.cell(x @ layer.w + h @ layer.u + layer.b, previous)
        hs.append(h)
        steps.append((gates, previous, c))
    return np.stack(hs), steps


def layer_backward(layer, hs, steps, dhs, dc):
    """Gradients of all that is in the layer, for those by all h and by the last c: backpropagation through time."""
    dx, (dw, du, db) = np.empty(layer.x.shape), (np.zeros(a.shape) for a in (layer.w, layer.u, layer.b))
    dh = np.zeros(layer.h.shape, layer.h.dtype)
    for t in reversed(range(len(steps))):
        dpre, dc = lstm.cell_backward(dhs[t] + dh, dc, *steps[t])
        dx[t], dh = dpre @ layer.w.T, dpre @ layer.u.T
        dw += layer.x[t].T @ dpre
        du += (hs[t - 1] if t else layer.h).T @ dpre
        db += dpre.sum(0)
    return Layer(dx, dw, du, db, dh, dc)


def as_float64(layer):
    return Layer(*(a.astype(np.float64) for a in layer))


@pytest.mark.quick
@pytest.mark.parametrize("name", Layer._fields)
def test_reference_is_its_own_derivative(name):
    """Of a loss that sees every h and the last c, by the inputs, the weights and the first state."""
    layer = as_float64(make_layer())
    hs, steps = layer_forward(layer)
    dhs, dc = normal(7, *hs.shape), normal(8, *layer.c.shape)

    def loss(value):
        hs, steps = layer_forward(layer._replace(**{name: value}))
        return (hs * dhs).sum() + (steps[-1][2] * dc).sum()

    gradient = getattr(layer_backward(layer, hs, steps, dhs, dc), name)
    close_to_derivative(loss, getattr(layer, name), gradient, np.random.default_rng(9))


def test_reference_equals_pytorch():
    """`torch.nn.LSTM` in float64, its gates in the same order: all values and all gradients."""
    torch = pytest.importorskip("torch")
    layer = as_float64(make_layer())
    hs, steps = layer_forward(layer)
    dhs, dc = normal(7, *hs.shape), normal(8, *layer.c.shape)
    got = layer_backward(layer, hs, steps, dhs, dc)

    theirs = torch.nn.LSTM(*layer.w.shape[:1], *layer.u.shape[:1], dtype=torch.float64)
    x, h, c = (torch.tensor(a, requires_grad=True) for a in (layer.x, layer.h, layer.c))
    with torch.no_grad():
        for parameter, value in zip(theirs.parameters(), (layer.w.T, layer.u.T, layer.b, 0 * layer.b), strict=True):
            parameter.copy_(torch.tensor(value))
    out, (_, last) = theirs(x, (h[None], c[None]))
    ((out * torch.tensor(dhs)).sum() + (last[0] * torch.tensor(dc)).sum()).backward()

    np.testing.assert_allclose(hs, out.detach(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(steps[-1][2], last[0].detach(), rtol=0, atol=1e-13)
    w, u, b, _ = (parameter.grad for parameter in theirs.parameters())
    for name, gradient in Layer(x.grad, w.T, u.T, b, h.grad, c.grad)._asdict().items():
        np.testing.assert_allclose(getattr(got, name), gradient, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.quick
def test_steps_of_reference_are_those_of_the_layer():
    """`forward` and `backward` do what the layer above does, but for its other products; they change no argument."""
    layer = as_float64(make_layer())
    hs, steps = layer_forward(layer)
    dhs = normal(7, *hs.shape)
    pre, cells, hidden = layer.x @ layer.w + layer.b, *(np.stack([a, *[a * np.nan] * 4]) for a in (layer.c, layer.h))
    arguments = layer.u, pre.copy(), cells.copy(), hidden.copy()
    gates, cells, hidden = lstm.forward(*arguments)
    np.testing.assert_array_equal(arguments[1], pre)
    for t, (want_gates, previous, c) in enumerate(steps):
        for got, want in ((gates[t], want_gates), (cells[t], previous), (cells[t + 1], c), (hidden[t + 1], hs[t])):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)
    dpre = lstm.backward(layer.u, gates, cells, dhs)
    wanted = layer_backward(layer, hs, steps, dhs, np.zeros_like(layer.c))
    np.testing.assert_allclose(np.einsum("tbh,tbg->hg", hidden[:-1], dpre), wanted.u, rtol=0, atol=1e-13)
    np.testing.assert_allclose(dpre @ layer.w.T, wanted.x, rtol=0, atol=1e-13)


def sequence(n_steps, n_rows, n_units):
    """recurrent, gates, cells and hidden as `forward` takes them, and a gradient with respect to all h."""
    shapes = (n_units, 4 * n_units), (n_steps, n_rows, 4 * n_units), *[(n_steps + 1, n_rows, n_units)] * 2
    *arrays, dout = (normal(seed, *shape) for seed, shape in enumerate((*shapes, (n_steps, n_rows, n_units))))
    return arrays, dout


def run(backend, arrays, dout, **options):
    """Both operations on copies: gates, cells, hidden and the gradient with respect to the inputs of the gates."""
    module, arrays, dout = backend.module("lstm"), [backend.array(a, np.float32) for a in arrays], backend.array(dout)
    recurrent, gates, cells, _ = arrays
    dpre = backend.array(np.full(gates.shape, np.nan, np.float32))
    module.forward(*arrays, **options)
    outputs = [backend.numpy(a) for a in arrays[1:]]
    module.backward(recurrent, gates, cells, dout, dpre, **options)
    return *outputs, backend.numpy(dpre)


def test_inputs_stay_as_they_are(backend):
    arrays, dout = sequence(3, 2, 5)
    placed, placed_dout = [backend.array(a) for a in arrays], backend.array(dout)
    backend.module("lstm").forward(*placed)
    kept = [placed[0], *placed[1:3], placed_dout]
    before = [backend.numpy(a) for a in kept]
    backend.module("lstm").backward(*kept, backend.array(np.zeros_like(arrays[1])))
    for got, want in zip(kept, before, strict=True):
        np.testing.assert_array_equal(backend.numpy(got), want)
    for got, want in ((placed[0], arrays[0]), (placed[2][0], arrays[2][0]), (placed[3][0], arrays[3][0])):
        np.testing.assert_array_equal(backend.numpy(got), want)


@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_a_row_does_not_depend_on_its_block(block):
    """The same bits, however the rows are cut; 70 units, so that 280 and 70 columns are no multiple of 16."""
    arrays, dout = sequence(4, 9, 70)
    wanted = run(Backend("cpu"), arrays, dout)
    for got, want in zip(run(Backend("cpu"), arrays, dout, block=block), wanted, strict=True):
        assert got.tobytes() == want.tobytes() and np.isfinite(got).all()


def test_rows_know_nothing_of_each_other(backend):
    """NaN in one row at one step stays in that row: forwards from there on, backwards before it."""
    arrays, dout = sequence(4, 5, 3)
    clean = run(backend, arrays, dout)
    arrays[1][2, 3] = np.nan
    spoilt = run(backend, arrays, dout)
    others = [0, 1, 2, 4]
    for got, want in zip(spoilt, clean, strict=True):
        np.testing.assert_array_equal(got[:, others], want[:, others])
    gates, cells, hidden, dpre = (np.isnan(a[:, 3]).all(1) for a in spoilt)
    assert gates.tolist() == [False, False, True, True]
    assert cells.tolist() == hidden.tolist() == [False, False, False, True, True]
    assert dpre.tolist() == [True] * 4


#: What comes in, what sigmoid and tanh make of it.
EXTREMES = (
    (-np.inf, 0, -1), (-1e30, 0, -1), (-100, 0, -1), (100, 1, 1), (1e30, 1, 1), (np.inf, 1, 1),
    (np.nan, np.nan, np.nan),
)  # fmt: skip


def one_step(backend, pre, previous):
    """Gates, c and h of one row of one unit after one step; the product with h adds nothing."""
    arrays = np.zeros((1, 4)), np.reshape(pre, (1, 1, -1)), [[[previous]], [[-9]]], [[[0]], [[-9]]]
    arrays = [backend.array(a, np.float32) for a in arrays]
    backend.module("lstm").forward(*arrays)
    return [backend.numpy(a)[-1] for a in arrays[1:]]


def one_step_back(backend, dout, gates, previous, cells):
    arrays = (
        np.zeros((1, 4)),
        np.reshape(gates, (1, 1, 4)),
        np.reshape([previous, np.ravel(cells)[0]], (2, 1, 1)),
        [[[dout]]],
    )
    arrays = [backend.array(a, np.float32) for a in arrays]
    dpre = backend.array(np.full((1, 1, 4), -9, np.float32))
    backend.module("lstm").backward(*arrays, dpre)
    return backend.numpy(dpre)[0]


@pytest.mark.parametrize(("value", "sigmoid", "tanh"), EXTREMES)
def test_extreme_inputs(backend, value, sigmoid, tanh):
    """Saturated gates are 0, 1 or -1 and pass no gradient; NaN is seen in all that depends on it."""
    previous, cell = 0.5, 0.5 * sigmoid + sigmoid * tanh
    gates, cells, out = one_step(backend, [value] * 4, previous)
    np.testing.assert_allclose(gates, [[sigmoid, sigmoid, tanh, sigmoid]], rtol=0, atol=1e-40)
    np.testing.assert_allclose(cells, [[cell]], rtol=0, atol=1e-40)
    np.testing.assert_allclose(out, [[sigmoid * np.tanh(cell)]], rtol=0, atol=2 * EPS)

    dpre = one_step_back(backend, 2, gates, previous, cells)
    np.testing.assert_allclose(dpre, [[np.nan if np.isnan(value) else 0] * 4], rtol=0, atol=1e-40)


def test_what_a_cell_hands_back_in_time(backend):
    """``dc_{t-1} = f dc_t``: of two steps, the second with all gates 1, the first receives what comes by c and h."""
    gates, cells = np.array([[[0.5, 0.25, 0.75, 0.5]], [[1, 0.5, 1, 1]]]), np.array([0.5, 0.3, 0.7]).reshape(3, 1, 1)
    dout, recurrent = np.array([0, 2]).reshape(2, 1, 1), np.zeros((1, 4))
    arrays = [backend.array(a, np.float32) for a in (recurrent, gates, cells, dout)]
    dpre = backend.array(np.full(gates.shape, np.nan), np.float32)
    backend.module("lstm").backward(*arrays, dpre)
    dc = 2 * (1 - np.tanh(0.7) ** 2) * 0.5
    wanted = [dc * 0.75 * 0.25, dc * 0.5 * 0.25 * 0.75, dc * 0.5 * (1 - 0.75**2), 0]
    np.testing.assert_allclose(backend.numpy(dpre)[0, 0], wanted, rtol=8 * EPS, atol=1e-40)


def test_infinite_cell(backend):
    """c = inf gives h = o, and the gradient of h reaches the output gate only."""
    gates, cells, out = one_step(backend, [0] * 4, np.inf)
    assert (gates.tolist(), cells[0, 0], out[0, 0]) == ([[0.5, 0.5, 0, 0.5]], np.inf, 0.5)
    dpre = one_step_back(backend, 2, gates, 1, cells)
    assert dpre.tolist() == [[0, 0, 0, 0.5]]


@pytest.mark.parametrize("place", range(4))
def test_nan_in_one_gate(backend, place):
    """It stays in its gate, and comes through to c and h; by the output gate to h alone."""
    pre = [1.0] * 4
    pre[place] = np.nan
    gates, cells, out = one_step(backend, pre, 1)
    assert np.flatnonzero(np.isnan(gates)).tolist() == [place]
    assert (np.isnan(cells[0, 0]), np.isnan(out[0, 0])) == (place < 3, True)
