"""Gradients of the whole network against finite differences of a float64 network made of `reference` operations."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import SGD, Adam, reference
from sparsemax_nb.core import formulas, rng, sparse
from sparsemax_nb.core.device import asarray, to_numpy
from sparsemax_nb.reference import activations, embedding, fixed_fan_in, losses  # noqa: F401  makes them attributes
from sparsemax_nb.train.network import LOSSES, OUTPUTS, WORD_DROPOUT_STREAM, Network

N_FEATURES, N_LABELS, N_ROWS = 7, 9, 5
ORDER = np.array([3, 8, 0, 5, 1, 2, 7, 6, 4], np.int32)  # of the labels of a group-shared output


def batch(n_rows=N_ROWS):
    x = scipy.sparse.random(n_rows, N_FEATURES, 0.5, "csr", np.float32, random_state=3)
    y = scipy.sparse.random(n_rows, N_LABELS, 0.3, "csr", np.float32, random_state=4)
    x, y = x.tolil(), y.tolil()
    x[1], y[2] = 0, 0  # a row without features, a row without labels
    x, y = x.tocsr(), y.tocsr()
    assert x.nnz > 5 and y.nnz > 5
    return x, y


def make(device, **changes):
    params = {"embedding": 4, "intermediate": 6, "output": "fixed-fan-in", "fan_in": 3, "dropout": 0.4, "seed": 11}
    params |= changes
    if params["output"] == "group-shared":
        params |= {"group_size": 4}
    network = Network(N_FEATURES, N_LABELS, **params, device=device)
    if params["output"] == "group-shared":
        network.output.set_order(ORDER)
    for name, array in network.parameters.items():  # what is not zero takes part in the check
        if name.endswith("bias") or name in ("output.values", "output.weights"):  # these start at zero
            noise = np.random.default_rng(len(name)).normal(size=array.shape).astype(np.float32)
            array[:] = asarray(noise, device)
    return network


def host(network):
    return {name: to_numpy(array).copy() for name, array in network.parameters.items()}


def loss64(p, x, y, loss, dropout, words=None):
    """The network's loss from its definition, in float64."""
    if "embedding.table" in p:
        rows = sparse.as_rows(x, "cpu")
        if words is not None:
            rows = rows._replace(weights=reference.activations.dropout(rows.weights[None], words)[0])
        h = reference.embedding.forward(rows, p["embedding.table"])
        h = reference.activations.relu_dropout(h, p["embedding.bias"], dropout)
    else:
        h = reference.activations.dropout(x, dropout)
    if "intermediate.weights" in p:
        off = rng.make_dropout(0.0, 0, 0, 0)
        h = reference.activations.relu_dropout(h @ p["intermediate.weights"], p["intermediate.bias"], off)
    if "output.indptr" in p:
        matrix = p["output.values"], p["output.indices"], p["output.indptr"]
        scores = h @ scipy.sparse.csr_matrix(matrix, (N_LABELS, h.shape[1])).toarray().T + p["output.bias"]
    elif "output.indices" in p:
        indices = np.repeat(p["output.indices"], N_LABELS // len(p["output.indices"]) + 1, axis=0)[:N_LABELS]
        gathered = h[:, indices if "output.order" in p else p["output.indices"]]
        scores = np.einsum("blk,lk->bl", gathered, p["output.values"]) + p["output.bias"]
        scores = scores[:, np.argsort(p["output.order"])] if "output.order" in p else scores
    else:
        scores = h @ p["output.weights"].T + p.get("output.bias", 0)
    if loss == "softmax":
        y = y.toarray() != 0
        return (y.sum(1) * np.logaddexp.reduce(scores, axis=1) - (y * scores).sum(1)).sum() / len(scores)
    label_rows = sparse.by_label(sparse.as_labels(y, *y.shape[:1], "cpu", y.shape[1]), y.shape[1])
    return reference.losses.multilabel(scores, label_rows, formulas.LOSSES[loss])[0].sum()


@pytest.mark.twins
@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        pytest.param(changes, loss, id=f"{name}-{loss}")
        for name, changes in {
            "fixed-fan-in": {},
            "word-dropout": {"word_dropout": 0.3},
            "dense": {"output": "dense"},
            "no-intermediate": {"intermediate": None},
            "unstructured": {"output": "unstructured"},
            "group-shared": {"output": "group-shared"},
            "dense-features": {"embedding": None},
        }.items()
        for loss in LOSSES
    ],
)
def test_gradients_of_every_layer(backend, changes, loss):
    network, (x, y) = make(backend.device, loss=loss, **changes), batch()
    if network.is_dense:
        x = np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    dropout, words = rng.make_dropout(0.4, 11, 0, 0), None
    if network.word_dropout:
        words = rng.make_dropout(0.3, 11, WORD_DROPOUT_STREAM, 0)
        assert 0 < reference.activations.dropout_mask((1, x.nnz), words).mean() < 1
    before = {name: a if a.dtype == np.int32 else a.astype(np.float64) for name, a in host(network).items()}
    value = network.step(x, y, loss, SGD(learning_rate=1.0))  # so that the change of a parameter is its gradient
    assert value == pytest.approx(loss64(before, x, y, loss, dropout, words), rel=1e-5)
    after, h, checked = host(network), 1e-6, 0
    for name, array in before.items():
        if array.dtype == np.int32:
            continue
        gradient = array - after[name]
        wanted = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            there, here = array[place] + h, array[place] - h
            both = []
            for moved in (there, here):
                changed = array.copy()
                changed[place] = moved
                both.append(loss64(before | {name: changed}, x, y, loss, dropout, words))
            wanted[place] = (both[0] - both[1]) / (2 * h)
        assert np.abs(wanted).max() > 1e-4, f"{name}: the check is trivial"
        np.testing.assert_allclose(gradient, wanted, atol=2e-5 * np.abs(wanted).max() + 2e-6, err_msg=name)
        checked += 1
    assert checked == sum(array.dtype != np.int32 for array in before.values()) >= 2


@pytest.mark.twins
@pytest.mark.parametrize("output", OUTPUTS)
def test_three_steps_and_prediction(backend, output):
    network, (x, y) = make(backend.device, dropout=0.0, output=output), batch()
    optimizer = Adam(learning_rate=0.05)
    values = [network.step(x, y, "squared-hinge", optimizer) for _ in range(3)]
    assert values[0] > values[1] > values[2]
    scores, ids = (to_numpy(a) for a in network.top_k(x, 2))
    assert scores.shape == ids.shape == (N_ROWS, 2) and (scores[:, 0] >= scores[:, 1]).all()
    assert np.all((ids >= 0) & (ids < N_LABELS))


@pytest.mark.cuda
def test_cpu_and_cuda_train_alike():
    x, y = batch()
    results = []
    for device in ("cpu", "cuda"):
        network, optimizer = (
            make(device),
            SGD(learning_rate=0.05),
        )  # Adam would blow rounding up where a gradient is zero
        losses_ = [network.step(x, y, "squared-hinge", optimizer) for _ in range(3)]
        results.append((losses_, host(network)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    for name, array in results[0][1].items():
        np.testing.assert_allclose(results[1][1][name], array, atol=1e-5, err_msg=name)


def test_first_not_finite_names_the_array():
    network = make("cpu")
    assert network.first_not_finite() is None
    network.parameters["intermediate.bias"][2] = np.nan
    assert network.first_not_finite() == "intermediate.bias"
