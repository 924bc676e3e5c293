"""Sampled softmax over a sparse output layer: the loss of `sampled_softmax` with the scores of `fixed_fan_in`.

Only the labels that occur are read: their rows are copied out of the layer first.
"""

import math

import numpy as np

from .core import check, sparse
from .core.device import asarray, backend_of, device_of, empty, module_of
from .sampled_softmax import corrected_log_q, losses_of_draws


def sampled_softmax_of_layer(h, layer, labels, ids, log_q, log_q_targets, correction="paper", mask_hits=False):
    """`sampled_softmax` with the mean over the rows, for the scores of a `FixedFanIn` or `GroupSharedFanIn`.

    `labels` are `Labels` that `as_targets` has checked, `ids` and `log_q` (B, M) the draws of each row. Returns the
    loss, dh (B, d), and (unique_ids, dvalues, dbias): (U,) int32 ascending, and the gradients (U, K) and (U,) of the
    values and bias of these labels. Errors as for `sampled_softmax`.
    """
    device, (n_rows, n_samples) = device_of(h), ids.shape
    xp, n_targets = module_of(device), labels.indices.shape[0]
    log_q, log_q_targets = corrected_log_q(ids, log_q, log_q_targets, n_targets, correction)

    def new(*shape):
        return empty(shape, np.float32, device)

    unique_ids, positions = xp.unique(xp.concatenate([labels.indices, ids.reshape(-1)]), return_inverse=True)
    unique_ids, positions = (asarray(a, device, np.int32) for a in (unique_ids, positions))
    part = layer._connections_of(unique_ids)
    # The entries of the targets, one row of them for each row of h, then those of the draws, in the same way.
    indptr = xp.concatenate([labels.indptr, n_targets + n_samples * xp.arange(1, n_rows + 1)])
    indptr, scores = asarray(indptr, device, np.int32), new(positions.shape[0])
    kernels = backend_of(device, "sampled_fan_in")
    kernels.scores(h, part, indptr, positions, scores)
    drawn_scores = scores[n_targets:].reshape(n_rows, n_samples)
    loss, dscores, dtargets = losses_of_draws(
        drawn_scores, scores[:n_targets], labels, ids, log_q, log_q_targets, mask_hits
    )
    if not math.isfinite(loss):
        for name, value in (("h", h), ("layer.values", part.values), ("layer.bias", part.bias)):
            check.finite(name, value)
        raise FloatingPointError("the scores overflowed; lower the learning rate")
    scale = np.float32(1 / max(n_rows, 1))
    weights = asarray(xp.concatenate([dtargets, dscores.reshape(-1)]) * scale, device, np.float32)
    entries = sparse.SparseRows(indptr, positions, weights)
    columns = sparse.by_column(entries)
    columns = columns._replace(rows=columns.rows % np.int32(max(n_rows, 1)))
    dh, dvalues, dbias = new(*h.shape), new(*part.values.shape), new(*part.bias.shape)
    kernels.backward(h, part, entries, columns, dh, dvalues, dbias)
    return loss / max(n_rows, 1), dh, (unique_ids, dvalues, dbias)
