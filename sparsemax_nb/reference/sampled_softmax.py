"""Sampled softmax: the target against M drawn classes instead of all L."""

import numpy as np


def scores(queries, classes, ids):
    """``scores[b, m] = queries[b] . classes[ids[b, m]]``, with (B, d), (L, d), (B, M) -> (B, M)."""
    return np.einsum("bd,bmd->bm", queries, classes[ids], dtype=np.float64)


def softmax(scores, ids, log_q, target_scores, targets, log_q_targets, mask_hits):
    """Loss of every row, (B,), and its derivatives by the scores, (B, M), and the target's score, (B,).

    ``loss = log(exp(t) + sum_m exp(s_m)) - t`` with ``s_m = scores - log_q`` and ``t = target_scores - log_q_targets``;
    with `mask_hits`, draws that hit the target are left out. ids and log_q are (B, M) or, shared by the rows, (M,).
    """
    s = scores.astype(np.float64) - log_q
    t = (target_scores.astype(np.float64) - log_q_targets)[:, None]
    if mask_hits:
        s = np.where(ids == targets[:, None], -np.inf, s)
    log_z = np.logaddexp.reduce(np.concatenate([t, s], axis=1), axis=1, keepdims=True)
    return (log_z - t)[:, 0], np.exp(s - log_z), (np.exp(t - log_z) - 1)[:, 0]
