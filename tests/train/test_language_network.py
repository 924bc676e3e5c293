"""The whole language model against float64: loss and every gradient through time, by finite differences, too."""

import numpy as np
import pytest

from sparsemax_nb import Adam, Labels
from sparsemax_nb.core import rng
from sparsemax_nb.reference import full_softmax, sampled_softmax
from sparsemax_nb.train.chunks import Chunk
from sparsemax_nb.train.language_network import LanguageNetwork
from sparsemax_nb.train.negatives import Negatives, Sampling
from tests.helpers import assert_close, close_to_derivative, normal
from tests.test_lstm import Layer, layer_backward, layer_forward

N_WORDS, WIDTH, T, B = 11, 4, 3, 2
TOKENS = np.array([[3, 1], [4, 1], [5, 9]], np.int32)
#: What follows each token; one is not predicted.
TARGETS = np.array([[4, 1], [5, 9], [2, -1]])
CHUNK = Chunk(TOKENS, TARGETS, True)
COUNTED = TARGETS.reshape(-1) >= 0
WANTED = TARGETS.reshape(-1)[COUNTED].astype(np.int32)


def masks(dropout, number):
    """What dropout number `number` multiplies (T, B, WIDTH) by at step 0."""
    d = rng.make_dropout(dropout, 5, number, 0)
    position = np.arange(T * B * WIDTH, dtype=np.uint64)
    words = rng.random_word(d.seed, d.stream, d.step, position)
    return np.where(words >= d.threshold, np.float64(d.scale), 0).reshape(T, B, WIDTH)


def loss_and_gradients(p, dropout, sampled):
    """The definition: parameters by name, in float64. `sampled` is (ids, log Q, log Q of the targets) or None."""
    drops = [masks(dropout, number) if dropout else np.ones((T, B, WIDTH)) for number in range(3)]
    zero = np.zeros((B, WIDTH))
    tied = "output.weights" not in p
    is_input, is_output = np.ones(WIDTH), np.ones(WIDTH)  # the first coordinate of a word is its bias
    is_input[0], is_output[0] = not tied, 0
    x, passes = p["embedding.table"][TOKENS] * drops[0] * is_input, []
    for number in range(2):
        layer = Layer(x, *(p[f"lstm{number}.{name}"] for name in ("weights", "recurrent", "bias")), zero, zero)
        hs, steps = layer_forward(layer)
        passes.append((layer, hs, steps))
        x = hs * drops[number + 1]
    x = x * is_output + (1 - is_output)
    h, n = x.reshape(-1, WIDTH)[COUNTED], int(COUNTED.sum())
    w = p.get("output.weights", p["embedding.table"])
    labels = Labels(np.arange(n + 1), WANTED)
    if sampled is None:
        loss, dh, dw, _ = full_softmax.cross_entropy(h, w, np.zeros(len(w)), labels, n)
    else:
        ids, log_q, log_q_targets = sampled
        scores = sampled_softmax.scores(h, w, ids)
        targets = (h * w[WANTED]).sum(1)
        losses, dscores, dtargets = sampled_softmax.softmax(scores, ids, log_q, targets, labels, log_q_targets, False)
        loss = losses.sum() / n
        dlogits = np.zeros((n, len(w)))
        np.add.at(dlogits, (np.arange(n)[:, None], ids), dscores / n)
        np.add.at(dlogits, (np.arange(n), WANTED), dtargets / n)
        dh, dw = dlogits @ w, dlogits.T @ h
    g = np.zeros((T * B, WIDTH))
    g[COUNTED] = dh
    g, gradients = g.reshape(T, B, WIDTH) * is_output, {}
    for number in (1, 0):
        layer, hs, steps = passes[number]
        by = layer_backward(layer, hs, steps, g * drops[number + 1], zero)
        gradients |= {
            f"lstm{number}.{name}": a for name, a in zip(("weights", "recurrent", "bias"), by[1:4], strict=True)
        }
        g = by.x
    table = np.zeros((N_WORDS, WIDTH))
    np.add.at(table, TOKENS, g * drops[0] * is_input)
    gradients |= {"embedding.table": table + dw} if tied else {"embedding.table": table, "output.weights": dw}
    return loss, gradients


def make(device, tied, dropout, sampler="none"):
    """A network with larger weights than those it starts with, and its parameters in float64."""
    network = LanguageNetwork(
        N_WORDS, width=WIDTH, n_layers=2, tied=tied, dropout=dropout, clip=1e9, seed=5, device=device
    )
    values = {name: 0.8 * normal(i, *a.shape) for i, (name, a) in enumerate(network.parameters.items())}
    network.set_parameters(values)
    if sampler != "none":
        how = Sampling(sampler, n_samples=3, n_codewords=2, residual="uniform", correction="paper", mask_hits=False)
        network.output.negatives = Negatives(how, network.output.weights, np.arange(1, N_WORDS + 1), seed=5)
        if network.output.negatives.follows_weights:
            network.output.negatives.update()
    return network, {name: a.astype(np.float64) for name, a in values.items()}


def drawn(network, backend):
    """What the network drew at step 0, by hand of its own sampler."""
    if network.output.negatives is None:
        return None
    h = network._predicting_rows(network.forward(CHUNK, training=True)[0], CHUNK)[0]
    labels = Labels(backend.array(np.arange(len(WANTED) + 1), np.int32), backend.array(WANTED))
    return tuple(map(backend.numpy, network.output.negatives.draw(h, labels, 0)))


@pytest.mark.quick
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sampled", [False, True])
def test_definition_is_its_own_derivative(tied, sampled):
    """The check of the whole model: below 1e-6 of the gradient, in float64."""
    _, p = make("cpu", tied, 0.3)
    random = np.random.default_rng(1)
    draws = (
        random.integers(0, N_WORDS, (len(WANTED), 3)), -random.random((len(WANTED), 3)), -random.random(len(WANTED)),
    )  # fmt: skip
    draws = draws if sampled else None
    _, gradients = loss_and_gradients(p, 0.3, draws)
    assert set(gradients) == set(p)
    for name in p:
        close_to_derivative(
            lambda value, name=name: loss_and_gradients(p | {name: value}, 0.3, draws)[0], p[name],
            1.0 * gradients[name], random,
        )  # fmt: skip


@pytest.mark.parametrize(("tied", "sampler"), [(True, "none"), (False, "none"), (True, "midx-rq"), (False, "unigram")])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients(backend, tied, sampler, dropout):
    network, p = make(backend.device, tied, dropout, sampler)
    loss, gradients = loss_and_gradients(p, dropout, drawn(network, backend))
    value, found = network.gradients(CHUNK, WANTED)
    assert value == pytest.approx(loss, rel=1e-5)
    names = {id(array): name for name, array in network.parameters.items()}
    assert {names[id(gradient.array)] for gradient in found} == set(gradients) and len(found) == len(gradients)
    for gradient in found:
        name, dense = names[id(gradient.array)], backend.numpy(gradient.values)
        if gradient.rows is not None:
            rows, values = backend.numpy(gradient.rows), dense
            dense = np.zeros(gradient.array.shape, np.float32)
            dense[rows] = values
        assert_close(dense, gradients[name], 100, max(np.abs(gradients[name]).max(), 0.05))


def test_step_clips_updates_and_notes_norms(backend):
    network, p = make(backend.device, True, 0.0)
    _, gradients = loss_and_gradients(p, 0.0, None)
    norm, norms, adam = np.sqrt(sum((g**2).sum() for g in gradients.values())), {}, Adam(0.01)
    network.clip = 1e-3
    network.step(CHUNK, WANTED, "softmax", adam, norms)
    assert list(norms) == ["lstm1", "lstm0", "embedding", "all parameters"]
    assert norms["all parameters"] == pytest.approx(norm, rel=1e-4) and network.steps == 1
    moment = adam.state_of(network.lstms[0].weights).moments.m
    np.testing.assert_allclose(
        backend.numpy(moment), 0.1 * gradients["lstm0.weights"] * 1e-3 / norm, rtol=1e-3, atol=1e-9
    )
    for name, array in network.parameters.items():
        assert (backend.numpy(array) != p[name].astype(np.float32)).any(), name
    assert network.output_seconds > 0


def test_state_is_carried_until_a_chunk_is_fresh(backend):
    network, _ = make(backend.device, True, 0.0)
    whole = backend.numpy(network.forward(CHUNK)[0])
    first, state = network.forward(CHUNK._replace(tokens=TOKENS[:1]))
    second, _ = network.forward(Chunk(TOKENS[1:], TARGETS[1:], False), state)
    halves = np.concatenate([backend.numpy(half) for half in (first, second)])
    np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-6)
    assert network.state is None and not network.sampler_state  # reading leaves no trace
    network.gradients(CHUNK, WANTED)
    sampler_state = network.sampler_state
    assert set(sampler_state) == {"state/0", "state/1"} and sampler_state["state/0"].shape == (2, B, WIDTH)
    going_on = CHUNK._replace(fresh=False)
    onwards = backend.numpy(network.forward(going_on, network.state)[0])
    assert np.abs(onwards - whole).max() > 1e-3
    network.state = None
    network.restore_sampler(sampler_state)
    assert (backend.numpy(network.forward(going_on, network.state)[0]) == onwards).all()
    for fresh in (network.forward(CHUNK, network.state), network.forward(going_on)):
        np.testing.assert_allclose(backend.numpy(fresh[0]), whole, rtol=1e-5, atol=1e-6)


def test_log_probability_and_rank(backend):
    network, _ = make(backend.device, False, 0.3)
    log_prob, rank, _ = network.evaluate(CHUNK, WANTED)
    h = network.encode(CHUNK)[0].astype(np.float64)
    scores = h @ backend.numpy(network.output.weights).astype(np.float64).T
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    at = np.arange(len(WANTED)), WANTED
    np.testing.assert_allclose(log_prob, log_p[at], rtol=1e-4)
    assert rank.tolist() == (scores > scores[at][:, None]).sum(1).tolist()


@pytest.mark.parametrize("tied", [True, False])
def test_starts_as_a_unigram_model(backend, tied):
    network = LanguageNetwork(
        N_WORDS, width=WIDTH, n_layers=2, tied=tied, dropout=0.3, clip=1.0, seed=5, device=backend.device
    )
    counts = np.arange(N_WORDS) ** 3
    network.start_from(counts)
    p = (counts + 1) / (counts + 1).sum()
    log_prob, *_ = network.evaluate(CHUNK, WANTED)
    # what else there is, is small and knows nothing
    np.testing.assert_allclose(log_prob, np.log(p[WANTED]), atol=0.15 if tied else 1e-5)
    assert (network.encode(CHUNK)[0][:, 0] == 1).all()
