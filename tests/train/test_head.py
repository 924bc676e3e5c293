"""The optional linear layer over embeddings in `Classifier(architecture='wide-and-deep')`."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb.train import Classifier, held_out
from sparsemax_nb.train.dense_linear import DenseDual
from sparsemax_nb.train.models import normalized
from sparsemax_nb.train.wide import HEAD, HEAD_EPOCHS

from ..helpers import normal

FIXED = {"C": 1.0, "slack": 0.2, "frequency": 0.0, "co_occurrence": 0.0, "power": 8.0, "kernel_C": 0.25, "epochs": 4,
         "device": "cpu", "progress": False}  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    """240 points whose labels the embeddings show; the words are noise."""
    classes = np.arange(240) % 6
    h = normal(1, 6, 8)[classes] + 0.3 * normal(2, 240, 8)
    words = scipy.sparse.random(240, 30, 0.1, "csr", np.float32, np.random.default_rng(3))
    return words, h, np.eye(6, dtype=np.float32)[classes]


def test_the_layer_is_that_of_all_rows(corpus):
    words, h, y = corpus
    model = Classifier(**FIXED, kernel_weight=0.0, head_weight=0.5).fit((words, h), y)
    assert (model.kernel_weight_, model.head_weight_) == (0, 0.5)
    points = normalized(h, model.network_.kernel.mean)
    dual = DenseDual(points, scipy.sparse.csr_matrix(y), **HEAD, seed=0, late=np.empty(0, int))
    for number, search in sum(dual.steps(HEAD_EPOCHS), []):
        dual.step(number, search)
    assert np.array_equal(model.network_.head, dual.weights)
    plain = Classifier(**FIXED, kernel_weight=0.0).fit((words, h), y)
    difference = model.decision_function((words, h)) - plain.decision_function((words, h))
    np.testing.assert_allclose(difference, 0.5 * points @ dual.weights.T, atol=1e-5)
    assert model.score((words, h), y) > plain.score((words, h), y)


def test_auto_takes_the_layer_only_where_it_helps(corpus):
    words, h, y = corpus
    helped = Classifier(**FIXED, kernel_weight=0.0, head_weight="auto").fit((words, h), y)
    assert helped.head_weight_ > 0
    noise = Classifier(**FIXED, kernel_weight=0.0, head_weight="auto").fit(
        (scipy.sparse.csr_matrix(y), normal(4, 240, 8)), y
    )
    assert noise.head_weight_ == 0 and noise.network_.head is None


def test_late_rows_are_not_trained_on_before_they_are_predicted(corpus):
    _, h, y = corpus
    late = np.arange(200, 240)
    early = DenseDual(h[:200], scipy.sparse.csr_matrix(y[:200]))
    for number, search in early.steps(1)[0]:
        early.step(number, search)
    dual = DenseDual(h, scipy.sparse.csr_matrix(y), late=late)
    first, second = dual.steps(2)
    rows = [dual._batches[number] for number, _ in first]
    assert max(part.stop for part in rows) == 200
    assert {number for number, _ in second} > {number for number, _ in first}


@pytest.mark.parametrize("small", [True, False])
def test_saved_and_resumed_models_have_the_same_bits(corpus, tmp_path, monkeypatch, small):
    words, h, y = corpus
    if not small:
        monkeypatch.setattr(held_out, "SMALL_SET", 0)
    params = FIXED | {"head_weight": "auto", "kernel_weight": 0.5}
    whole = Classifier(**params).fit((words, h), y)
    assert whole.head_weight_ > 0
    whole.save(tmp_path / "model")
    loaded = Classifier.load(tmp_path / "model")
    assert np.array_equal(loaded.top_k((words, h))[0], whole.top_k((words, h))[0])

    class Stop(Exception):
        pass

    def stop(epoch, _):
        if epoch == last:
            raise Stop

    for last in range(4):
        path = tmp_path / f"checkpoint-{last}"
        with pytest.raises(Stop):
            Classifier(**params).fit((words, h), y, checkpoint_path=path, checkpoint_seconds=0, after_epoch=stop)
        resumed = Classifier(**params).fit((words, h), y, checkpoint_path=path, resume=True)
        assert resumed.head_weight_ == whole.head_weight_ and resumed.threshold_ == whole.threshold_
        assert np.array_equal(resumed.network_.head, whole.network_.head)


def test_an_explanation_adds_up(corpus):
    words, h, y = corpus
    model = Classifier(**FIXED, kernel_weight=0.5, head_weight=0.25).fit((words, h), y)
    found = model.explain((words[3], h[3]), label=3)
    assert found.terms["embedding"] > 0
    total = sum(value for _, value in found.contributions) + found.other + sum(found.terms.values())
    assert total == pytest.approx(found.score, abs=1e-5)


def test_damaged_files(corpus, tmp_path):
    from sparsemax_nb.core import checkpoint
    from sparsemax_nb.train import ModelFileError

    words, h, y = corpus
    model = Classifier(**FIXED, kernel_weight=0.5, head_weight=0.25).fit((words, h), y)
    model.save(tmp_path / "model")
    arrays, about = checkpoint.load(tmp_path / "model", "classifier")
    for name, damaged in (
        ("head.weights", arrays["head.weights"][:-1]),
        ("head.weights", arrays["head.weights"] * np.nan),
        ("kernel.points", 2 * arrays["kernel.points"]),
        ("kernel.labels", arrays["kernel.labels"] + 6),
    ):
        checkpoint.save(tmp_path / "damaged", "classifier", dict(arrays) | {name: damaged}, about)
        with pytest.raises(ModelFileError, match=name.replace(".", r"\.")):
            Classifier.load(tmp_path / "damaged")
