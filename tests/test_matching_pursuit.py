"""The greedy choice of inputs against its definition, and against exact least squares."""

import numpy as np
import pytest

from sparsemax_nb.cpu import matching_pursuit as cpu_backend
from sparsemax_nb.reference import matching_pursuit as reference


def problem(n_labels, n_inputs, seed=0):
    """Covariance of random inputs, and correlations with random functions; label 2 has none."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((3 * n_inputs, n_inputs)).astype(np.float32)
    correlations = rng.standard_normal((n_labels, n_inputs)).astype(np.float32)
    correlations[2:3] = 0
    return inputs.T @ inputs / len(inputs), correlations


def found(covariance, correlations, ridge, fan_in, group_size):
    n_labels = len(correlations)
    indices = np.empty((-(-n_labels // group_size), fan_in), np.int32)
    values = np.empty((n_labels, fan_in), np.float32)
    cpu_backend.matching_pursuit(covariance, correlations, ridge, fan_in, group_size, indices, values)
    return indices, values


@pytest.mark.parametrize(
    ("n_labels", "n_inputs", "fan_in", "group_size"),
    [(5, 7, 3, 1), (7, 12, 4, 3), (1, 1, 1, 1), (33, 9, 9, 2), (3, 65, 8, 1), (0, 4, 2, 1)],
)
def test_matches_the_definition(n_labels, n_inputs, fan_in, group_size):
    covariance, correlations = problem(n_labels, n_inputs)
    indices, values = found(covariance, correlations, 0.1, fan_in, group_size)
    wanted_indices, wanted_values = reference.matching_pursuit(covariance, correlations, 0.1, fan_in, group_size)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_allclose(values, wanted_values, atol=1e-5, rtol=1e-5)


def test_all_inputs_are_ridge_regression():
    covariance, correlations = problem(4, 6)
    indices, values = found(covariance, correlations, 0.5, 6, 4)
    solution = np.linalg.solve(covariance + 0.5 * np.eye(6), correlations.T).T
    np.testing.assert_allclose(values, solution[:, indices[0]], atol=1e-5)


def test_a_label_without_correlations_chooses_nothing():
    indices, values = found(*problem(3, 5), 0.1, 2, 1)
    assert (indices[2] == -1).all()
    assert not values[2].any()
    assert (indices[:2] >= 0).all()


def test_redundant_inputs_are_not_chosen_together():
    """Inputs 0 and 1 are the same, and correlate most; input 2 knows the rest."""
    inputs = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)[:, [0, 0, 1]]
    covariance = inputs.T @ inputs / 400
    correlations = (np.array([[1.0, 0.8]], np.float32) @ inputs[:, [0, 2]].T / 400 @ inputs).astype(np.float32)
    assert sorted(found(covariance, correlations, 1e-3, 2, 1)[0][0]) == [0, 2]


def test_groups_share_their_inputs():
    covariance, correlations = problem(6, 20)
    shared, _ = found(covariance, correlations, 0.1, 3, 6)
    assert shared.shape == (1, 3)
    alone, _ = found(covariance, correlations, 0.1, 3, 1)
    assert len(np.unique(alone[:2])) > 3
