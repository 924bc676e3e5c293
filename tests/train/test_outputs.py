"""Output layers: their gradients, applied by the optimiser, make the same update as their fused step; clipping."""

import copy

import numpy as np
import pytest

from sparsemax_nb import SGD, train
from sparsemax_nb.core.device import to_numpy
from sparsemax_nb.train.gradients import clip
from sparsemax_nb.train.network import OUTPUTS, Network
from tests.helpers import label_matrix, normal, place_labels

SIZES = {"n_features": 12, "n_labels": 10, "embedding": None, "intermediate": 9, "fan_in": 3, "dropout": 0.0, "seed": 1}


def network(output, device, **more):
    made = Network(
        **SIZES, output=output, device=device, **({"group_size": 4} if output == "group-shared" else {}), **more
    )
    values = getattr(made.output, "values", None)
    weights = made.output.weights if values is None else values
    weights[...] = 0.3 * np.random.default_rng(0).standard_normal(weights.shape).astype(np.float32)
    return made


def parameters(made):
    return {name: to_numpy(array).copy() for name, array in made.parameters.items()}


@pytest.mark.parametrize("loss", ["squared-hinge", "bce"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_make_the_update_of_the_step(backend, output, loss):
    made, other = network(output, backend.device), network(output, backend.device)
    h, labels = backend.array(np.abs(normal(3, 6, 9))), place_labels(backend, label_matrix(6, 10))
    value, dh = made.output.step(h, labels, loss, SGD(0.5), 0)
    same_value, same_dh, gradients = other.output.gradients(h, labels, loss, 0)
    for gradient in gradients:
        gradient.apply(SGD(0.5))
    assert value == pytest.approx(same_value, rel=1e-5)
    np.testing.assert_allclose(to_numpy(dh), to_numpy(same_dh), rtol=1e-4, atol=1e-6)
    for name, array in parameters(made).items():
        np.testing.assert_allclose(array, parameters(other)[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("output", OUTPUTS)
def test_clipping_limits_the_norm_of_all_gradients(output):
    """With SGD the update of all parameters together has the norm ``rate * limit``."""
    x, labels = np.abs(normal(3, 6, 12)), label_matrix(6, 10)
    for limit, wanted in ((0.01, 0.01), (1e6, None)):
        made = network(output, "cpu", clip=limit)
        free, before = copy.deepcopy(made), parameters(made)
        free.clip = None
        made.step(x, labels, "squared-hinge", SGD(1.0))
        free.step(x, labels, "squared-hinge", SGD(1.0))
        change = {name: array - before[name] for name, array in parameters(made).items() if array.dtype.kind == "f"}
        norm = np.sqrt(sum((c.astype(np.float64) ** 2).sum() for c in change.values()))
        if wanted is not None:
            assert norm == pytest.approx(wanted, rel=1e-3)
        else:
            for name, array in parameters(free).items():
                np.testing.assert_allclose(array, before[name] + change.get(name, 0), rtol=1e-4, atol=1e-6)


def test_a_classifier_clips(monkeypatch):
    seen = []
    monkeypatch.setattr("sparsemax_nb.train.network.clip", lambda gradients, limit: seen.append(clip(gradients, limit)))
    x, y = np.abs(normal(3, 8, 12)), label_matrix(8, 10)
    params = {
        "architecture": "network",
        "intermediate": 9,
        "fan_in": 3,
        "epochs": 1,
        "device": "cpu",
        "progress": False,
    }
    model = train.Classifier(**params, clip=0.5).fit(x, y)
    assert len(seen) == model.history_.steps and min(seen) > 0
    for bad in 0, -1.0, np.nan, "1":
        with pytest.raises((TypeError, ValueError), match="^clip must"):
            train.Classifier(**params, clip=bad).fit(x, y)
    low = params | {"output": "group-shared", "group_size": 4, "weight_dtype": "bfloat16"}
    with pytest.raises(ValueError, match="^clip needs weight_dtype='float32'"):
        train.Classifier(**low, clip=1.0).fit(x, y)
