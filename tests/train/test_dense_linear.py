"""Training of the linear layer over dense features."""

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import dense_linear_step, metrics
from sparsemax_nb.core.device import to_numpy
from sparsemax_nb.data.batches import shuffled
from sparsemax_nb.train import dual_run
from sparsemax_nb.train.dense_linear import fit_dense_linear

from ..helpers import label_matrix, normal


def points(n_rows=600, d=24, n_labels=80, seed=0):
    """Rows near the mean of the directions of their labels, of length 1."""
    labels = label_matrix(n_rows, n_labels, seed, 2 / n_labels)
    h = np.asarray(labels @ normal(seed + 1, n_labels, d)) + 0.5 * normal(seed + 2, n_rows, d)
    return h / np.linalg.norm(h, axis=1, keepdims=True), labels


def test_it_learns():
    h, labels = points()
    losses = []
    weights, bias = fit_dense_linear(h[:500], labels[:500], epochs=5, progress=lambda *shown: losses.append(shown))
    assert weights.shape == (80, 24) and weights.dtype == np.float32 and (bias == -1).all()
    best = np.argsort(-(h[500:] @ weights.T + bias), axis=1)[:, :1].astype(np.int32)
    known = np.diff(labels[500:].indptr) > 0
    assert metrics.precision_at_k(best[known], labels[500:][known], 1) > 0.6
    n, total, loss = np.array(losses).T
    assert (n == np.arange(1, len(n) + 1)).all() and (total == len(n)).all() and len(n) == 25 * 63
    assert loss[-63:].mean() < 0.5 * loss[:63].mean()


def test_steps_are_those_of_the_public_function():
    """Batches of shuffled rows, in another order in each epoch; rows of zeros, or of weight zero, are left out."""
    h, labels = points(300)
    weight = np.arange(300) % 7 / 2
    h[5::50] = 0
    got, bias = fit_dense_linear(h, labels, C=0.7, slack=0.2, epochs=3, seed=4, sample_weight=weight)
    kept = np.flatnonzero(weight > 0)
    order = kept[shuffled(len(kept), 4, 0)]
    order = order[h[order].any(1)]
    assert 200 < len(order) < len(kept) < 300
    want, duals = np.zeros((80, 24), np.float32), {}
    options = {"C": 0.7, "slack": 0.2}
    for number in range(3 * 5):
        options["search"] = number % 5 == 0
        for batch in shuffled(-(-len(order) // 4), 4, number + 1):
            rows = order[4 * batch : 4 * batch + 4]
            _, duals[batch] = dense_linear_step(
                h[rows], want, bias, labels[rows], duals.get(batch), sample_weight=weight[rows], **options
            )
    np.testing.assert_array_equal(got, want)


def test_a_batch_has_at_most_1024_rows(monkeypatch):
    monkeypatch.setattr(dual_run, "MAX_BATCH_SIZE", 100)
    monkeypatch.setattr(dual_run, "MIN_STEPS_PER_EPOCH", 2)
    h, labels = points(450)
    shown = []
    fit_dense_linear(h, labels, epochs=2, progress=lambda *args: shown.append(args))
    assert len(shown) == 2 * 5 * 5


def test_same_seed_same_bits_and_other_seeds_others():
    h, labels = points(200)
    found = [fit_dense_linear(h, labels, epochs=2, seed=seed)[0].tobytes() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_more_passes_come_closer_to_the_optimum():
    h, labels = points(200)
    best = fit_dense_linear(h, labels, epochs=100)[0]
    distances = [np.abs(fit_dense_linear(h, labels, epochs=n)[0] - best).max() for n in (1, 5, 50)]
    assert distances[0] > 2 * distances[1] > 20 * distances[2]


def test_on_cuda_as_on_the_cpu(backend):
    h, labels = points(12, 5, 7)
    want = fit_dense_linear(h, labels, epochs=1, slack=0.2)
    found = fit_dense_linear(h, labels, epochs=1, slack=0.2, device=backend.device)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(to_numpy(a), b, atol=1e-5)
    assert want[0].any()


def test_sets_without_rows_or_features():
    for rows in (0, 3):
        h, labels = np.zeros((rows, 4), np.float32), scipy.sparse.csr_matrix((rows, 5))
        weights, bias = fit_dense_linear(h, labels)
        assert weights.shape == (5, 4) and not weights.any() and (bias == -1).all()


def test_bad_input():
    h, labels = points(20)
    bad = h.copy()
    bad[0, 3] = np.inf
    cases = {
        "h must be float32": lambda: fit_dense_linear(h.astype(np.float64), labels),
        r"h must be finite, got inf at \[0, 3\]": lambda: fit_dense_linear(bad, labels),
        "h must have squares that a float32 can hold": lambda: fit_dense_linear(h * 1e30, labels),
        "h and y must have the same number of rows, got 20 and 19": lambda: fit_dense_linear(h, labels[:19]),
        "y must be a SciPy sparse matrix": lambda: fit_dense_linear(h, labels.toarray()),
        "C must lie in": lambda: fit_dense_linear(h, labels, C=-1),
        "slack must lie in": lambda: fit_dense_linear(h, labels, slack=-0.1),
        "epochs must be": lambda: fit_dense_linear(h, labels, epochs=0),
        "seed must be": lambda: fit_dense_linear(h, labels, seed=-1),
        "sample_weight must be above 0 for at least one row": lambda: fit_dense_linear(
            h, labels, sample_weight=np.zeros(20)
        ),
        "device must be": lambda: fit_dense_linear(h, labels, device="gpu"),
    }
    for message, call in cases.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
