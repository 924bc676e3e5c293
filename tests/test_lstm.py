"""The LSTM cell: a whole layer by hand, backwards through time, against finite differences and PyTorch."""

from typing import NamedTuple

import numpy as np
import pytest

from sparsemax_nb.reference import lstm

from .helpers import EPS, assert_close, close_to_derivative, normal


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


def layer_forward(layer, cell=lstm.cell):
    """All h (T, B, H); and for every step its gates, previous c and c."""
    h, c, hs, steps = layer.h, layer.c, [], []
    for x in layer.x:
        previous = c
        gates, c, h = cell(x @ layer.w + h @ layer.u + layer.b, previous)
        hs.append(h)
        steps.append((gates, previous, c))
    return np.stack(hs), steps


def layer_backward(layer, hs, steps, dhs, dc, cell_backward=lstm.cell_backward):
    """Gradients of all that is in the layer, for those by all h and by the last c: backpropagation through time."""
    dx, (dw, du, db) = np.empty(layer.x.shape), (np.zeros(a.shape) for a in (layer.w, layer.u, layer.b))
    dh = np.zeros(layer.h.shape, layer.h.dtype)
    for t in reversed(range(len(steps))):
        dpre, dc = cell_backward(dhs[t] + dh, dc, *steps[t])
        dx[t], dh = dpre @ layer.w.T, dpre @ layer.u.T
        dw += layer.x[t].T @ dpre
        du += (hs[t - 1] if t else layer.h).T @ dpre
        db += dpre.sum(0)
    return Layer(dx, dw, du, db, dh, dc)


def as_float64(layer):
    return Layer(*(a.astype(np.float64) for a in layer))


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


def test_layer_equals_reference(backend):
    """Several steps, each in place: rounding errors do not grow, and no array is read after it was overwritten."""
    wing, layer = backend.wing("lstm"), make_layer(n_steps=3, n_rows=2)

    def cell(pre, previous):
        gates, c = backend.array(pre), backend.array(previous)
        cells, out = backend.array(np.full_like(previous, np.nan)), backend.array(np.full_like(previous, np.nan))
        wing.cell(gates, c, gates, cells, out)
        return tuple(map(backend.numpy, (gates, cells, out)))

    def cell_backward(dout, dcells, *step):
        dpre, dcells = backend.array(np.full_like(step[0], np.nan)), backend.array(dcells)
        wing.cell_backward(backend.array(dout), dcells, *map(backend.array, step), dpre, dcells)
        return backend.numpy(dpre), backend.numpy(dcells)

    hs, steps = layer_forward(layer, cell)
    want_hs, want_steps = layer_forward(as_float64(layer))
    assert_close(hs, want_hs, 3 * 10)
    dhs, dc = normal(7, *hs.shape), normal(8, *layer.c.shape)
    got = layer_backward(layer, hs, steps, dhs, dc, cell_backward)
    wanted = layer_backward(as_float64(layer), want_hs, want_steps, dhs, dc)
    for name in Layer._fields:
        assert_close(getattr(got, name).astype(np.float32), getattr(wanted, name), 3 * 50)


#: What comes in, what sigmoid and tanh make of it.
EXTREMES = (
    (-np.inf, 0, -1), (-1e30, 0, -1), (-100, 0, -1), (100, 1, 1), (1e30, 1, 1), (np.inf, 1, 1),
    (np.nan, np.nan, np.nan),
)  # fmt: skip


def run(backend, function, inputs, outputs):
    """The operation on arrays of one row, each given as a list or as one number; its outputs as NumPy arrays."""
    arrays = [backend.array(np.reshape(a, (1, -1)), np.float32) for a in inputs]
    outputs = [backend.array(np.full((1, n), -9, np.float32)) for n in outputs]
    getattr(backend.wing("lstm"), function)(*arrays, *outputs)
    return list(map(backend.numpy, outputs))


@pytest.mark.parametrize(("value", "sigmoid", "tanh"), EXTREMES)
def test_extreme_inputs(backend, value, sigmoid, tanh):
    """Saturated gates are 0, 1 or -1 and pass no gradient; NaN is seen in all that depends on it."""
    previous, cell = 0.5, 0.5 * sigmoid + sigmoid * tanh
    gates, cells, out = run(backend, "cell", ([value] * 4, previous), (4, 1, 1))
    np.testing.assert_allclose(gates, [[sigmoid, sigmoid, tanh, sigmoid]], rtol=0, atol=1e-40)
    np.testing.assert_allclose(cells, [[cell]], rtol=0, atol=1e-40)
    np.testing.assert_allclose(out, [[sigmoid * np.tanh(cell)]], rtol=0, atol=2 * EPS)

    dpre, dprevious = run(backend, "cell_backward", (2, 3, gates, previous, cells), (4, 1))
    np.testing.assert_allclose(dpre, [[np.nan if np.isnan(value) else 0] * 4], rtol=0, atol=1e-40)
    wanted = sigmoid * (3 + 2 * sigmoid * (1 - np.tanh(cell) ** 2))
    np.testing.assert_allclose(dprevious, [[wanted]], rtol=4 * EPS, atol=1e-40)


def test_infinite_cell(backend):
    """c = inf gives h = o, and of the gradient by h nothing passes but to the output gate."""
    gates, cells, out = run(backend, "cell", ([0] * 4, np.inf), (4, 1, 1))
    assert (gates.tolist(), cells[0, 0], out[0, 0]) == ([[0.5, 0.5, 0, 0.5]], np.inf, 0.5)
    dpre, dprevious = run(backend, "cell_backward", (2, 0, gates, 1, cells), (4, 1))
    assert (dpre.tolist(), dprevious[0, 0]) == ([[0, 0, 0, 0.5]], 0)


@pytest.mark.parametrize("place", range(4))
def test_nan_in_one_gate(backend, place):
    """It stays in its gate, and comes through to c and h; by the output gate to h alone."""
    pre = [1.0] * 4
    pre[place] = np.nan
    gates, cells, out = run(backend, "cell", (pre, 1), (4, 1, 1))
    assert np.flatnonzero(np.isnan(gates)).tolist() == [place]
    assert (np.isnan(cells[0, 0]), np.isnan(out[0, 0])) == (place < 3, True)
