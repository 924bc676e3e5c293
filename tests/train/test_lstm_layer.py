"""The LSTM layer: values and gradients through time, the state passed on, initial weights."""

import numpy as np
import pytest

from sparsemax_nb.train.lstm import LSTM
from tests.helpers import assert_close, normal
from tests.test_lstm import as_float64, layer_backward, layer_forward, make_layer


def placed(backend, layer):
    """An `LSTM` with the weights of a layer of tests/test_lstm.py, its inputs and its state on the device."""
    ours = LSTM(layer.w.shape[0], layer.u.shape[0], 0, 0, backend.device)
    for name, value in (("weights", layer.w), ("recurrent", layer.u), ("bias", layer.b)):
        getattr(ours, name)[...] = backend.array(value)
    return ours, backend.array(layer.x), tuple(map(backend.array, (layer.h, layer.c)))


@pytest.mark.parametrize("n_steps", [1, 4])
def test_values_and_gradients(backend, n_steps):
    layer = make_layer(n_steps=n_steps, n_rows=2, n_inputs=3, n_units=4)
    ours, x, state = placed(backend, layer)
    out, (h, c) = ours.forward(x, state, keep=True)
    hs, steps = layer_forward(as_float64(layer))
    assert_close(backend.numpy(out), hs, 50)
    assert (backend.numpy(h) == backend.numpy(out)[-1]).all()
    assert_close(backend.numpy(c), steps[-1][2], 50)
    dout = normal(7, *hs.shape)
    dx, gradients = ours.backward(backend.array(dout.copy()))
    wanted = layer_backward(as_float64(layer), hs, steps, dout, np.zeros_like(layer.c))
    assert_close(backend.numpy(dx), wanted.x, 200)
    assert list(ours.parameters) == ["lstm0.weights", "lstm0.recurrent", "lstm0.bias"]
    assert all(g.array is a for g, a in zip(gradients, ours.parameters.values(), strict=True))
    for got, want in zip((g.values for g in gradients), (wanted.w, wanted.u, wanted.b), strict=True):
        assert_close(backend.numpy(got), want, 200)


def test_a_state_that_is_carried_on_makes_two_halves_one(backend):
    ours, x, state = placed(backend, make_layer(n_steps=4, n_rows=2))
    whole = ours.forward(x, state, keep=True)[0]
    first, state = ours.forward(x[:2], state)
    second, _ = ours.forward(x[2:], state)
    halves = np.concatenate([backend.numpy(first), backend.numpy(second)])
    np.testing.assert_allclose(halves, backend.numpy(whole), rtol=1e-5, atol=1e-6)


def test_every_forward_starts_anew(backend):
    """The gates are kept from call to call, of the same shape and of another; what the caller keeps is not touched."""
    layer = make_layer(n_steps=4, n_rows=2)
    ours, x, state = placed(backend, layer)
    dout = backend.array(normal(7, 4, 2, layer.u.shape[0]))
    first = [ours.forward(x, state, keep=True), ours.backward(dout)]
    (out, (h, c)), (dx, gradients) = first
    before = [backend.numpy(a) for a in (out, h, c, dx, *(g.values for g in gradients))]
    ours.forward(x[:3] + 1, (h, c), keep=True)
    ours.backward(dout[:3])
    ours.forward(x + 1, (h, c), keep=True)
    ours.backward(dout)
    for got, want in zip((out, h, c, dx, *(g.values for g in gradients)), before, strict=True):
        np.testing.assert_array_equal(backend.numpy(got), want)
    (out, (h, c)), (dx, gradients) = ours.forward(x, state, keep=True), ours.backward(dout)
    for got, want in zip((out, h, c, dx, *(g.values for g in gradients)), before, strict=True):
        np.testing.assert_array_equal(backend.numpy(got), want)


def test_backward_once_after_each_forward(backend):
    """The gates are gradients then: a second call would be wrong without a word."""
    ours, x, state = placed(backend, make_layer(n_steps=2, n_rows=1))
    dout = backend.array(normal(7, 2, 1, 5))
    with pytest.raises(RuntimeError, match="call forward"):
        ours.backward(dout)
    ours.forward(x, state, keep=True)
    ours.backward(dout)
    with pytest.raises(RuntimeError, match="call forward"):
        ours.backward(dout)


@pytest.mark.parametrize(("n_steps", "n_rows"), [(1, 1), (3, 0), (0, 2)])
def test_hardly_anything_to_do(backend, n_steps, n_rows):
    layer = make_layer(n_steps=max(n_steps, 1), n_rows=max(n_rows, 1), n_inputs=3, n_units=4)
    ours, *_ = placed(backend, layer)
    x, *state = (backend.array(a) for a in (layer.x[:n_steps, :n_rows], layer.h[:n_rows], layer.c[:n_rows]))
    out, (h, c) = ours.forward(x, state, keep=True)
    assert (out.shape, h.shape, c.shape) == ((n_steps, n_rows, 4), (n_rows, 4), (n_rows, 4))
    dx, gradients = ours.backward(backend.array(np.ones(out.shape, np.float32)))
    assert dx.shape == x.shape
    for gradient in gradients:
        assert gradient.values.shape == gradient.array.shape
        assert np.any(backend.numpy(gradient.values)) == (n_steps * n_rows > 0)
    if not n_steps:
        np.testing.assert_array_equal(backend.numpy(c), layer.c)


def test_layers_and_seeds_start_differently():
    one, two, other = LSTM(5, 4, 0, 0, "cpu"), LSTM(5, 4, 0, 1, "cpu"), LSTM(5, 4, 1, 0, "cpu")
    assert np.abs(one.weights).max() <= 0.5 and np.abs(one.weights).mean() == pytest.approx(0.25, rel=0.2)
    arrays = one.weights, two.weights, other.weights
    assert all((a != b).any() for i, a in enumerate(arrays) for b in arrays[:i])
    assert (one.weights[:4] != one.recurrent).any()
    assert one.bias.tolist() == [0] * 4 + [1] * 4 + [0] * 8 and list(two.parameters)[0] == "lstm1.weights"
