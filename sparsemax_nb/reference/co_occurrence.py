"""Rerank the best labels of each row by the labels that occur n_both."""

import numpy as np


def mutual_information(pairs):
    """(L, L) smoothed pointwise mutual information: ``log((n_jl + e) / (n_j n_l / N + e))``, e = 0.05."""
    n_labels = len(pairs.label_counts)
    n_both, n_points = np.zeros((n_labels, n_labels)), pairs.label_counts.astype(np.float64)
    n_both[np.repeat(np.arange(n_labels), np.diff(pairs.indptr)), pairs.ids] = pairs.counts
    return np.log((n_both + n_both.T + 0.05) / (n_points[:, None] * n_points / float(pairs.n_rows) + 0.05))


def rerank(scores, ids, pairs, weight, k):
    """Scores and labels (B, k), chosen greedily: each slot takes the candidate that best suits the ones before it.

    Ties go to the earlier candidate.
    """
    n_rows, n = scores.shape
    mutual, scores = mutual_information(pairs), scores.astype(np.float64)
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-(4 * scores + 0.8)))
    top_scores, top_ids = np.empty((n_rows, k)), np.empty((n_rows, k), np.int32)
    for b in range(n_rows):
        remaining, last = list(range(n)), np.inf
        support = np.zeros(n)
        for slot in range(k):
            c = max(remaining, key=lambda c: scores[b, c] + support[c])  # ties: the first
            remaining.remove(c)
            last = min(last, scores[b, c] + support[c])
            top_scores[b, slot], top_ids[b, slot] = max(last, scores[b, -1]), ids[b, c]
            support += weight * probability[b, c] * mutual[ids[b, c], ids[b]]
    return top_scores, top_ids
