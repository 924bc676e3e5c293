"""A new order of a row's best labels by the labels that occur together."""

import numpy as np


def mutual_information(pairs):
    """(L, L) smoothed pointwise mutual information: ``log((n_jl + e) / (n_j n_l / N + e))``, e = 0.05."""
    n_labels = len(pairs.label_counts)
    together, points = np.zeros((n_labels, n_labels)), pairs.label_counts.astype(np.float64)
    together[np.repeat(np.arange(n_labels), np.diff(pairs.indptr)), pairs.ids] = pairs.counts
    return np.log((together + together.T + 0.05) / (points[:, None] * points / float(pairs.n_rows) + 0.05))


def rerank(scores, ids, pairs, weight, k):
    """Scores and labels (B, k): each place takes the candidate that suits those before it best; ties: the earlier candidate."""
    n_rows, n = scores.shape
    mutual, scores = mutual_information(pairs), scores.astype(np.float64)
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-(4 * scores + 0.8)))
    top_scores, top_ids = np.empty((n_rows, k)), np.empty((n_rows, k), np.int32)
    for b in range(n_rows):
        left, support, last = list(range(n)), np.zeros(n), np.inf
        for place in range(k):
            c = max(left, key=lambda c: scores[b, c] + support[c])  # the first of equal ones
            left.remove(c)
            last = min(last, scores[b, c] + support[c])
            top_scores[b, place], top_ids[b, place] = max(last, scores[b, -1]), ids[b, c]
            support += weight * probability[b, c] * mutual[ids[b, c], ids[b]]
    return top_scores, top_ids
