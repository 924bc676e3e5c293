"""Choice of the inputs of sparse linear functions: greedy least squares over all inputs."""

import numpy as np


def matching_pursuit(covariance, correlations, ridge, fan_in, group_size):
    """Inputs and values of L linear functions with `fan_in` inputs each: indices (L / G, K) int32, values (L, K).

    For the chosen inputs J of a group, the values of label l minimize ``v' (S + ridge I)_JJ v / 2 - m_l,J' v``, where
    S (H, H) is the covariance of the inputs and m (L, H) their covariance with the functions' wanted values. Inputs are
    chosen one after the other: the one that decreases the sum of these minima over the labels of the group most, the
    first one in a tie. If none decreases it, the rest of the row has index -1 and value 0.
    """
    n_labels, n_inputs = correlations.shape
    system = np.asarray(covariance, np.float64) + ridge * np.eye(n_inputs)
    indices = np.full((-(-n_labels // group_size), fan_in), -1, np.int32)
    values = np.zeros((n_labels, fan_in))
    for group, row in enumerate(indices):
        wanted = np.asarray(correlations[group * group_size : (group + 1) * group_size], np.float64)
        chosen = []
        for _ in range(fan_in):
            gains = [_explained(system, wanted, [*chosen, j]) if j not in chosen else 0 for j in range(n_inputs)]
            if not wanted.any() or max(gains) <= _explained(system, wanted, chosen):
                break
            chosen.append(int(np.argmax(gains)))
        row[: len(chosen)] = chosen
        solution = np.linalg.solve(system[np.ix_(chosen, chosen)], wanted[:, chosen].T).T
        values[group * group_size : (group + 1) * group_size, : len(chosen)] = solution
    return indices, values


def _explained(system, wanted, chosen):
    """The sum over the labels of ``m' S^-1 m`` for the chosen inputs."""
    part = wanted[:, chosen]
    return (part * np.linalg.solve(system[np.ix_(chosen, chosen)], part.T).T).sum()
