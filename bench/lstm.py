"""How fast are two stacked LSTM layers, forward and backward? ``python -m bench.lstm`` (see bench/README.md)."""

import numpy as np

from sparsemax_nb.internals import LSTM, asarray, device_of, to_numpy, zeros

from . import harness, tables, timing
from .peers import Unavailable, pytorch

SIZES = {"steps": (35, 5), "rows": (64, 3), "width": (200, 8)}
LAYERS = 2
TARGETS = {"PyTorch": (1, 1.2)}


def problem(n_steps, n_rows, width):
    """x and dout (gradient of the last h), both (T, B, H); and (weights, recurrent, bias) of each layer.

    The shapes are (H, 4H), (H, 4H) and (4H,). The bias is that of a new layer of ours: one for the forget gate.
    """
    rng, scale = np.random.default_rng(0), np.float32(1 / np.sqrt(width))
    x, dout = (rng.standard_normal((n_steps, n_rows, width), dtype=np.float32) for _ in range(2))
    bias = np.repeat(np.array([0, 1, 0, 0], np.float32), width)
    uniform = [scale * rng.uniform(-1, 1, (width, 4 * width)).astype(np.float32) for _ in range(2 * LAYERS)]
    return x, dout, [(*uniform[2 * i : 2 * i + 2], bias) for i in range(LAYERS)]


def _gates(pre):
    i, f, g, o = np.split(pre, 4, axis=1)
    return *(1 / (1 + np.exp(-a)) for a in (i, f)), np.tanh(g), 1 / (1 + np.exp(-o))


def exact(x, dout, layers):
    """All h of the last layer, dx, and the gradients of the parameters layer by layer, in NumPy float64."""
    x, dout, tape = x.astype(np.float64), dout.astype(np.float64), []
    for layer in layers:
        w, u, bias = (a.astype(np.float64) for a in layer)
        gates, h, c = [], [np.zeros((x.shape[1], len(u)))], [np.zeros((x.shape[1], len(u)))]
        for row in x:
            gates.append(_gates(row @ w + h[-1] @ u + bias))
            i, f, g, o = gates[-1]
            c.append(f * c[-1] + i * g)
            h.append(o * np.tanh(c[-1]))
        tape.append((x, w, u, gates, np.stack(h), c))
        x = np.stack(h[1:])
    out, gradients = x, []
    for x, w, u, gates, h, c in reversed(tape):
        dpre, dc, dh = np.empty((*x.shape[:2], w.shape[1])), 0, 0
        for t in reversed(range(len(x))):
            (i, f, g, o), tanh_c, dh = gates[t], np.tanh(c[t + 1]), dout[t] + dh
            dc = dc + dh * o * (1 - tanh_c**2)
            parts = dc * g * i * (1 - i), dc * c[t] * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
            dpre[t], dc = np.hstack(parts), dc * f
            dh = dpre[t] @ u.T
        products = (np.tensordot(a, dpre, ((0, 1), (0, 1))) for a in (x, h[:-1]))
        gradients.insert(0, (*products, dpre.sum((0, 1))))
        dout = dpre @ w.T
    return out, dout, *(gradient for layer in gradients for gradient in layer)


def checker(truth):
    """A check of all values and gradients, to 1e-4 of the largest number of each array."""
    parameters = [f"d{name} of layer {i}" for i in range(LAYERS) for name in ("weights", "recurrent", "bias")]

    def check(result):
        for name, got, want in zip(("h", "dx", *parameters), result, truth, strict=True):
            got = to_numpy(got) if device_of(got) else got.detach().cpu().numpy()
            timing.require(got.shape == want.shape, f"{name} has shape {got.shape}")
            timing.require_close(name, got, want, 1e-4)

    return check


def ours(x, dout, layers, device):
    """A function that runs our layers forward and backward once."""
    x, dout = asarray(x, device), asarray(dout, device)
    stack, zero = [], zeros(x.shape[1:], np.float32, device)
    for i, arrays in enumerate(layers):
        layer = LSTM(x.shape[2], x.shape[2], 0, i, device)
        for parameter, value in zip(layer.parameters.values(), arrays, strict=True):
            parameter[...] = asarray(value, device)
        stack.append(layer)

    def run():
        h, d, gradients = x, dout, []
        for layer in stack:
            h, _ = layer.forward(h, (zero, zero), keep=True)
        for layer in reversed(stack):
            d, of_layer = layer.backward(d)
            gradients = [*(gradient.values for gradient in of_layer), *gradients]
        return h, d, *gradients

    return run


def main(argv=None):
    args = harness.arguments("lstm", __doc__.partition("``")[0], SIZES, argv)
    x, dout, layers = problem(args.steps, args.rows, args.width)
    check = checker(exact(x, dout, layers))
    contestants = {
        "ours": timing.Contestant(ours(x, dout, layers, args.device), check, "train.lstm.LSTM"),
        "PyTorch": harness.offer(check, pytorch.lstm, x, dout, layers, args.device),
    }
    timings = harness.race(contestants, args)
    n_tokens, size = args.steps * args.rows, args.width * 4 * args.width
    work = {"multiply-adds of six products per layer": (LAYERS * 6 * 2 * n_tokens * size, "flops")}
    row = tables.make_row(
        "lstm",
        args.parameters | {"layers": LAYERS},
        contestants,
        timings,
        floor=harness.floor(args, work),
        targets=TARGETS if args.device == "cpu" and not args.smoke else None,
        device=args.device,
    )
    rates = {
        name: n_tokens / row["contestants"][name]["median_s"]
        for name, contestant in contestants.items()
        if not isinstance(contestant, Unavailable)
    }
    row["notes"] = ["Tokens per second: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()) + "."]
    return [harness.publish(args, row)]


if __name__ == "__main__":
    main()
