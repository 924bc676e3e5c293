"""Every estimator learns what there is to learn, and predicts it; the other files go into the details."""

import numpy as np
import pytest

from sparsemax_nb import data, train

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("architecture", ["linear", "network"])
def test_classifier(architecture):
    points = data.bag_of_words(n_rows=300, n_features=60, words_per_row=6, n_labels=25, labels_per_row=2, seed=1)
    small = {"embedding": 16, "intermediate": 32, "fan_in": 8, "batch_size": 32, "epochs": 20, "learning_rate": 0.02}
    small = small | {"dropout": 0.0} if architecture == "network" else {"C": 0.5, "slack": 0.2, "frequency": 0.05}
    model = train.Classifier(architecture=architecture, device="cpu", seed=1, progress=False, **small)
    model.fit(points.features[:250], points.labels[:250])
    best = model.predict(points.features[250:], 1)[:, 0]
    right = np.asarray(points.labels[250:].toarray() > 0)[np.arange(50), best].mean()
    assert right > 0.6, "one of 25 labels; two are right"


def test_language_model():
    tokens = (np.arange(400) % 7).astype(np.int32)
    model = train.LanguageModel(
        width=8, n_layers=1, sampler="none", dropout=0.0, learning_rate=0.02, batch_size=4, unroll=6, epochs=8, seed=2,
        device="cpu", progress=False,
    ).fit(tokens)  # fmt: skip
    assert model.perplexity(tokens) < 1.5


def test_ds_softmax():
    """Classes in two groups: contexts lie at their class's own point."""
    random = np.random.default_rng(0)
    centres, targets = random.standard_normal((8, 6)).astype(np.float32), (np.arange(400) % 8).astype(np.int32)
    contexts = centres[targets] + 0.1 * random.standard_normal((400, 6)).astype(np.float32)
    model = train.DSSoftmax(
        n_experts=2, epochs=8, prune_after=4, batch_size=25, learning_rate=0.05, device="cpu", progress=False
    ).fit(contexts, targets)
    assert (model.pack().top_k(contexts, 1)[1][:, 0] == targets).mean() > 0.9
