"""The prediction of memory: array by array as it comes out, and a limit that is kept before anything is allocated."""

import numpy as np
import pytest

from sparsemax_nb import Adam, data, train
from sparsemax_nb.train import memory
from sparsemax_nb.train.negatives import MIDX_KINDS, SAMPLERS, Negatives, Sampling
from sparsemax_nb.train.network import OUTPUTS, Network

SIZES = {"n_features": 50, "n_labels": 40, "embedding": 12, "intermediate": 20, "fan_in": 5, "device": "cpu"}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("changes", [{}, {"embedding": None}, {"intermediate": None}])
def test_parameters_and_moments_are_predicted_to_the_byte(output, changes):
    sizes = SIZES | changes | {"output": output}
    sizes |= {"group_size": 16, "weight_dtype": "bfloat16"} if output == "group-shared" else {}
    network, adam = Network(**sizes, dropout=0.0, seed=0), Adam()
    plan = Network.memory(**sizes, batch_size=8, keep_best=True)
    predicted = {array.name: array.nbytes for array in plan.arrays if array.phase == "always"}
    for name, array in network.parameters.items():
        assert predicted[name] == predicted[f"{name}: of the best epoch"] == array.nbytes
        moments = sum(moment.nbytes for moment in adam.state_of(array).moments) if array.dtype.kind != "i" else 0
        assert predicted.get(f"{name}: Adam's two moments", 0) == moments


@pytest.mark.parametrize("residual", ["uniform", "popularity", "exact"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_a_softmax_holds_is_predicted(sampler, residual):
    sizes = SIZES | {"output": "dense", "intermediate": None, "loss": "softmax", "n_labels": 1000}
    network, adam = Network(**sizes, dropout=0.0, seed=0), Adam()
    sampling = None if sampler == "none" else Sampling(sampler, 5, 4, residual, "paper", False)
    plan = Network.memory(**sizes, batch_size=8, sampling=sampling, labels_per_row=2.0)
    predicted = {array.name: array.nbytes for array in plan.arrays if array.phase == "always"}
    for name, array in network.parameters.items():
        assert predicted[name] == array.nbytes
        assert predicted[f"{name}: Adam's two moments"] == sum(m.nbytes for m in adam.state_of(array).moments)
    if sampler in MIDX_KINDS:
        negatives = Negatives(sampling, network.output.weights, np.arange(1000), 0)
        negatives.update()
        held = sum(size for name, size in predicted.items() if name.startswith("index: "))
        real = negatives.sampler.nbytes + (8000 if residual == "popularity" else 0)  # float64, for the next update
        assert 0.98 * real <= held <= 1.02 * real
    tables = {f"{sampler}: tables"} & {"log-uniform: tables", "unigram: tables"}
    assert {name for name in predicted if name.endswith("tables")} == tables


def test_sum_is_what_is_held_and_the_largest_phase():
    arrays = [memory.Array(*a) for a in (("always", "a", 5), ("step", "b", 2), ("step", "c", 3), ("rewiring", "d", 4))]
    plan = memory.Plan(arrays)
    assert plan.phases == {"always": 5, "step": 5, "rewiring": 4} and plan.nbytes == 10


def corpus():
    return data.bag_of_words(n_rows=60, n_features=30, words_per_row=4, n_labels=50, labels_per_row=2, seed=1)


def test_limit_is_kept_before_anything_is_allocated(monkeypatch, capsys):
    d, made = corpus(), []
    monkeypatch.setattr(train.Classifier, "_new_network", lambda self: made.append(1))
    model = train.Classifier(
        architecture="network",
        embedding=8,
        intermediate=4096,
        fan_in=4,
        memory_limit=1 << 20,
        device="cpu",
        progress=False,
    )
    with pytest.raises(train.MemoryLimitError) as raised:
        model.fit(d.features, d.labels)
    assert not made
    message = str(raised.value)
    assert "memory_limit allows 1.0 MiB; use a smaller intermediate layer" in message
    for name in (
        "intermediate.weights: Adam's two moments",
        "output.values",
        "step: blocks",
        "slots that change",
        "top-k: blocks",
    ):
        assert name in message
    needed = float(message.split(" MiB")[0].rsplit(" ", 1)[1].replace(",", ""))
    monkeypatch.undo()
    model.set_params(memory_limit=int((needed + 0.1) * 2**20), epochs=1, progress=True).fit(d.features, d.labels)
    assert "intermediate.weights: Adam's two moments" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        {"fan_in": 32, "rewire_every": 1, "rewire_until": 1.0},
        {"output": "group-shared", "fan_in": 32, "rewire_every": 1, "rewire_until": 1.0},
        {"output": "dense", "loss": "softmax"},
        {
            "output": "dense",
            "loss": "softmax",
            "sampler": "midx-rq",
            "n_samples": 2000,
            "n_codewords": 8,
            "index_every": 1,
        },
        {"fan_in": 32, "loss": "softmax"},
        {"fan_in": 32, "loss": "softmax", "sampler": "unigram", "n_samples": 2000},
    ],
    ids=["fixed-fan-in", "group-shared", "softmax", "midx-rq", "sparse softmax", "sparse sampled"],
)
def test_peak_is_near_the_prediction(more):
    """A process of its own trains a layer of 60 to 100 MiB; the measured peak lies near the predicted one."""
    import subprocess
    import sys

    code = f"""
import numpy as np, scipy.sparse
from sparsemax_nb import data, train

def resident(what):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(what)) << 10

def fit(n_labels, n_inputs, intermediate):
    x = np.random.default_rng(0).random((64, n_inputs), dtype=np.float32)
    y = data.power_law_labels(64, n_labels, 3, 1.0, 0)
    before = resident("VmRSS")
    params = dict(batch_size=32, epochs=1, device="cpu", progress=False, **{more})
    model = train.Classifier(intermediate=intermediate, **params).fit(x, y)
    model.top_k(x, 5)
    return resident("VmHWM") - before, model.memory_plan_.nbytes

fit(50, 8, 64)
print(*fit(60_000, 128, 8192))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    measured, predicted = map(int, run.stdout.split())
    assert predicted > 50 << 20
    assert 0.8 * predicted - (8 << 20) < measured < 1.15 * predicted + (24 << 20)
