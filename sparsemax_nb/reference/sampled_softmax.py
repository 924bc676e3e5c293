"""Sampled softmax: the target against M sampled classes instead of all L."""

import numpy as np

from .full_softmax import log_softmax


def scores(h, weights, ids):
    """``scores[b, m] = h[b] . weights[ids[b, m]]``, with (B, d), (L, d), (B, M) -> (B, M)."""
    return np.einsum("bd,bmd->bm", h, weights[ids], dtype=np.float64)


def softmax(scores, ids, log_q, target_scores, labels, log_q_targets, mask_hits):
    """Each target of a row against the row's M samples: losses, (n,), and their derivatives.

    labels = (indptr (B + 1,), indices (n,)) are the targets of each row. For target p of row b,
    ``loss_p = log(exp(t_p) + sum_m exp(s_bm)) - t_p`` with ``s = scores - log_q`` and
    ``t = target_scores - log_q_targets``; with `mask_hits`, samples equal to the target are left out. ids and log_q are
    (B, M), or (M,) if all rows share them. Derivatives: with respect to the scores, (B, M), summed over the row's
    targets; with respect to the targets' scores, (n,).
    """
    row = np.repeat(np.arange(len(scores)), np.diff(labels.indptr))
    # an offset of the whole row cancels, exactly if subtracted first
    shift = scores.astype(np.float64).max(axis=1)[:, None]
    t = target_scores[:, None] - shift[row] - log_q_targets[:, None]
    s = (scores - shift - log_q)[row]
    if mask_hits:
        s = np.where(np.broadcast_to(ids, scores.shape)[row] == labels.indices[:, None], -np.inf, s)
    log_p = log_softmax(np.concatenate([t, s], axis=1))
    dscores = np.zeros(scores.shape)
    np.add.at(dscores, row, np.exp(log_p[:, 1:]))
    return -log_p[:, 0], dscores, np.exp(log_p[:, 0]) - 1
