"""The schedule of a run: warm-up, plateau, early stop, best weights, rewiring; with a network that only takes notes."""

import numpy as np
import pytest

from sparsemax_nb import Adam, data, train
from sparsemax_nb.train import loop


class Notes:
    """Stands in for a network: its one weight is the number of steps that it took."""

    def __init__(self):
        self.steps, self.rates, self.rewired, self.seen, self.output_seconds = 0, [], [], [], 0.0
        self.weight = np.zeros(1, np.float32)
        self.parameters = {"weight": self.weight}

    def step(self, x, labels, loss, optimizer, norms):
        self.steps += 1
        self.weight[0] = self.steps
        self.rates.append(optimizer.learning_rate)
        self.seen += x.tolist()
        if norms is not None:
            norms["layer"] = 2.0
        return float(self.steps)

    def rewire(self, fraction, optimizer):
        self.rewired.append(self.steps)
        return fraction

    def first_not_finite(self):
        return None if np.isfinite(self.weight).all() else "weight"

    def set_parameters(self, arrays):
        self.weight[...] = arrays["weight"]


def run(values=None, n_rows=10, **schedule):
    """Train `Notes` for epochs of 5 steps; `values` are what validation finds, epoch by epoch."""
    schedule = {"loss": "bce", "batch_size": 2, "epochs": 6, "seed": 0, "learning_rate": 0.8} | schedule
    network, values = Notes(), None if values is None else iter(values)
    training = loop.Training(
        network, Adam(), loop.Schedule(**schedule), n_rows, batch=lambda rows: (rows, rows),
        validate=None if values is None else lambda: {"P@3": next(values)},
    )  # fmt: skip
    return network, training.run(progress=False)


def test_every_row_once_an_epoch_in_another_order():
    network, history = run(epochs=2)
    first, second = network.seen[:10], network.seen[10:]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert history.steps == 10 and history.stopped == "epochs" and history.best_epoch is None


def test_last_batch_may_be_short():
    _, history = run(epochs=1, n_rows=5)  # rows 2, 2, 1; losses 1, 2, 3
    assert history.losses == [pytest.approx((2 * 1 + 2 * 2 + 1 * 3) / 5)]
    assert history.epochs[0]["loss_std"] == pytest.approx(np.std([1, 2, 3]))
    assert history.epochs[0]["gradient_norms"] == {"layer": 2.0}


def test_warm_up_rises_linearly():
    network, _ = run(epochs=1, warm_up=4)
    assert network.rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def test_learning_rate_is_halved_on_a_plateau_down_to_its_minimum():
    network, history = run([0.1, 0.2, 0.2, 0.3, 0.3, 0.1], min_learning_rate=0.3)
    assert network.rates[::5] == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.4, 0.3])
    assert [record["learning_rate"] for record in history.epochs] == network.rates[::5]


def test_patience():
    network, _ = run([0.2, 0.1, 0.1, 0.1, 0.1, 0.1], patience=2, stop_after=9)
    assert network.rates[::5] == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.4, 0.2])


def test_a_minimum_above_the_rate_does_not_raise_it():
    network, _ = run([0.2, 0.1, 0.1], epochs=3, min_learning_rate=1.0)
    assert network.rates[::5] == pytest.approx([0.8, 0.8, 0.8])


def test_early_stop_keeps_the_best_weights():
    network, history = run([0.1, 0.3, 0.3, 0.2, 0.9, 0.9], stop_after=2)
    assert history.stopped == "plateau" and history.steps == 20 and history.best_epoch == 1
    assert network.weight[0] == 10  # those after the second epoch


def test_best_weights_are_kept_at_the_end_too():
    network, history = run([0.1, 0.3, 0.2], epochs=3)
    assert history.stopped == "epochs" and network.weight[0] == 10


def test_rewiring_by_interval_until_its_share_of_the_training():
    network, history = run(rewire_fraction=0.1, rewire_every=4, rewire_until=0.5)  # 30 steps in all
    assert network.rewired == [4, 8, 12] and [r["step"] for r in history.rewirings] == [4, 8, 12]
    assert run(rewire_fraction=0.0, rewire_every=4)[0].rewired == []


def test_norms_of_gradients_are_those_of_the_network():
    d = data.bag_of_words(n_rows=60, n_features=30, words_per_row=4, n_labels=9, labels_per_row=2, seed=1)
    model = train.Classifier(
        architecture="network",
        embedding=8,
        intermediate=16,
        fan_in=4,
        batch_size=30,
        epochs=1,
        device="cpu",
        progress=False,
    )
    norms = model.fit(d.features, d.labels).history_.epochs[0]["gradient_norms"]
    assert set(norms) == {"embedding", "intermediate"} and all(0 < value < 100 for value in norms.values())


@pytest.mark.parametrize("validated", [True, False])
def test_parameters_that_are_not_finite_after_the_last_step(validated):
    """They are found behind the step, too: by the validation, or at the end."""

    class Spoilt(Notes):
        def step(self, *arguments):
            value = super().step(*arguments)
            self.weight[0] = np.nan if self.steps == 5 else self.steps
            return value

    def validate():
        raise ValueError("h must be finite, got nan")

    network, saved = Spoilt(), []
    training = loop.Training(
        network, Adam(), loop.Schedule(loss="bce", batch_size=2, epochs=1, seed=0), 10, batch=lambda rows: (rows, rows),
        validate=validate if validated else None,
    )  # fmt: skip
    with pytest.raises(train.TrainingError, match="step 4: weight holds NaN or infinity"):
        training.run(progress=False, save=lambda: saved.append(network.steps))
    assert saved == []


def test_a_validation_that_overflows_says_so():
    """The weights are finite, what is computed from the validation's rows is not."""

    def validate():
        raise ValueError("h must be finite, got nan")

    training = loop.Training(
        Notes(), Adam(), loop.Schedule(loss="bce", batch_size=2, epochs=1, seed=0), 10, batch=lambda rows: (rows, rows),
        validate=validate,
    )  # fmt: skip
    with pytest.raises(train.TrainingError, match="step 4: activations or scores overflowed in the validation"):
        training.run(progress=False)


def test_parameters_that_are_not_finite_when_the_budget_is_spent(ticking):
    """Inside an epoch: no checkpoint is written over one that is whole."""
    network, saved = Notes(), []
    schedule = loop.Schedule(loss="bce", batch_size=2, epochs=6, seed=0, learning_rate=0.8, budget_seconds=0.25)
    training = loop.Training(network, Adam(), schedule, 10, batch=lambda rows: (rows, rows))
    step = network.step
    network.step = lambda *args: (step(*args), network.weight.fill(np.nan) if network.steps == 2 else None)[0]
    with pytest.raises(train.TrainingError, match="step 1: weight holds NaN or infinity after it"):
        training.run(progress=False, save=lambda: saved.append(network.steps))
    assert not saved


def test_a_time_budget_is_the_length_of_the_progress_bar(capsys, ticking):
    """Not the steps of all epochs, of which the budget allows only a few. A step takes a quarter of a second."""
    schedule = loop.Schedule(loss="bce", batch_size=2, epochs=10_000, seed=0, budget_seconds=5.0)
    training = loop.Training(Notes(), Adam(), schedule, 10, batch=lambda rows: (rows, rows))
    assert training.run().stopped == "budget"
    shown = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in shown] == [f"{s / 2:.1f} of 5 s ({s}0%)" for s in range(1, 11)]
