"""Sampled softmax (method 2): the softmax loss over a row's targets and classes drawn by a sampler."""

import math
from typing import Literal

import numpy as np

from .core import check, sparse
from .core.annotations import Array, SparseMatrix
from .core.device import asarray, backend_of, device_of, empty, module_of, zeros
from .samplers import check_ids

CORRECTIONS = "paper", "importance"


def sampled_softmax(
    h: Array,
    weights: Array,
    targets: Array | SparseMatrix | sparse.Labels,
    ids: Array,
    log_q: Array,
    log_q_targets: Array,
    *,
    correction: Literal["paper", "importance"] = "paper",
    mask_hits: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[float, Array, tuple[Array, Array]]:
    """Cross-entropy of each target against M drawn classes; its gradients touch only the classes that occur.

    ``loss = sum_t (log(exp(s_t) + sum_m exp(s_m)) - s_t)`` for a row, over its targets t (one or several), with the
    scores s_t of target t and s_m of draw m. With "paper", ``s_t = h . w_t - log Q(t)`` and ``s_m = h . w_m - log
    Q(m)``; with "importance", ``s_t = h . w_t`` and ``s_m = h . w_m - log(M Q(m))``.

    Parameters
    ----------
    h : (B, d) float32
    weights : (L, d) float32
        The output embeddings, one row w per class.
    targets : (B,) int32 or other integers, SciPy CSR matrix (B, L) or Labels(indptr, indices)
        One target per row, in [0, L); or the labels of each row, which are all compared with the same draws.
    ids : (B, M) or (M,) int32, or other integers
        The draws of each row; or draws that all rows share, which makes the work dense matrix products.
    log_q : (B, M) or (M,) float32, like ids
        Their log-probabilities under the sampler.
    log_q_targets : (n,) float32
        Log-probabilities of the targets, row by row, in the order in which they are stored; if a matrix stores an entry
        twice, in the order of the classes. n = B with one target per row. Only "paper" uses the values.
    correction : 'paper' or 'importance'
        With exact probabilities, the mean gradient of "paper" is M / (M + 1) times that of the full softmax; that of
        "importance", with hits masked, tends to it as M grows.
    mask_hits : bool
        Ignore draws that equal the target; they still count for the row's other targets.
    reduction : 'mean' or 'sum'
        Over the rows.

    Returns
    -------
    loss : float
    dh : (B, d) float32
    (unique_ids, dweights) : (U,) int32 ascending, (U, d) float32
        The gradient with respect to the rows of `weights` that occur. Repeated ids are summed, in a fixed order on the
        CPU.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; ids or targets out of range; inputs that are not finite, including
        log-probabilities (-inf for a class that the sampler never draws).
    FloatingPointError
        The scores overflow.

    Notes
    -----
    Source: arXiv 2501.08563 ("paper"); Y. Bengio, J.-S. Senecal, "Quick training of probabilistic neural nets by
    importance sampling", AISTATS 2003.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import UniformSampler, sampled_softmax
    >>> random = np.random.default_rng(0)
    >>> h, weights = (random.standard_normal((n, 8)).astype(np.float32) for n in (2, 1000))
    >>> targets, sampler = np.array([3, 5], np.int32), UniformSampler(1000)
    >>> ids, log_q = sampler.sample(h, n_samples=20, seed=0)
    >>> log_q_targets = sampler.log_prob(h, targets.reshape(-1, 1)).reshape(-1)
    >>> loss, dh, (unique_ids, dweights) = sampled_softmax(h, weights, targets, ids, log_q, log_q_targets)
    >>> dh.shape, dweights.shape == (len(unique_ids), 8)
    ((2, 8), True)
    """
    check.choice("correction", correction, CORRECTIONS)
    check.choice("reduction", reduction, ("mean", "sum"))
    mask_hits = check.flag("mask_hits", mask_hits)
    arrays = {"h": h, "weights": weights, "ids": ids, "log_q": log_q, "log_q_targets": log_q_targets}
    device = check.same_device(**arrays, **({} if sparse.is_multi_label(targets) else {"targets": targets}))
    weights = check.array("weights", weights, np.float32, ("L", "d"))
    h = check.array("h", h, np.float32, ("B", weights.shape[1]))
    labels = sparse.as_targets(targets, h.shape[0], device, weights.shape[0])
    ids = check_ids(ids, weights.shape[0], h.shape[0])
    return _sampled_softmax(h, weights, labels, ids, log_q, log_q_targets, correction, mask_hits, reduction)


def corrected_log_q(ids, log_q, log_q_targets, n_targets, correction):
    """What is subtracted from the scores of the draws and of the targets, checked; see `sampled_softmax`.

    A sampler returns -inf for classes that it never draws.
    """
    n_samples = ids.shape[-1]
    check.integer("the number of samples (the width of ids)", n_samples, 1)
    check.integer("the number of draws and targets", ids.size + n_targets, 0, 2**31 - 1, "; use fewer rows or draws")
    log_q = check.array("log_q", log_q, np.float32, ids.shape, finite=True)
    is_paper = correction == "paper"
    log_q_targets = check.array("log_q_targets", log_q_targets, np.float32, (n_targets,), finite=is_paper)
    if is_paper:
        return log_q, log_q_targets
    return log_q + np.float32(math.log(n_samples)), zeros(n_targets, np.float32, device_of(log_q))


def losses_of_draws(scores, target_scores, labels, ids, log_q, log_q_targets, mask_hits):
    """The sum of the losses, and its gradients with respect to the scores of the draws (B, M) and targets (n,)."""
    device, n_samples = device_of(scores), scores.shape[1]
    dscores, losses, dtargets = (empty(a.shape, np.float32, device) for a in (scores, target_scores, target_scores))
    ids, log_q = ids.reshape(-1, n_samples), log_q.reshape(-1, n_samples)
    softmax = backend_of(device, "sampled_softmax").softmax
    softmax(scores, ids, log_q, target_scores, labels, log_q_targets, mask_hits, losses, dscores, dtargets)
    return float(losses.sum(dtype=np.float64)), dscores, dtargets


def _sampled_softmax(
    h, weights, labels, ids, log_q, log_q_targets, correction="paper", mask_hits=False, reduction="mean"
):
    """`sampled_softmax` for `Labels` that `as_targets` has checked, and valid h, weights and ids."""
    device, (n_rows, width) = device_of(h), h.shape
    n_targets, n_samples = labels.indices.shape[0], ids.shape[-1]
    log_q, log_q_targets = corrected_log_q(ids, log_q, log_q_targets, n_targets, correction)
    kernels, embedding = backend_of(device, "sampled_softmax"), backend_of(device, "embedding")
    matmul, is_shared = backend_of(device, "matmul").matmul, len(ids.shape) == 1
    xp = module_of(device)

    def new(*shape):
        return empty(shape, np.float32, device)

    target_scores = new(n_targets, 1)
    row = sparse.row_of_each_entry(labels.indptr, n_targets)
    kernels.scores(h[row], weights, labels.indices.reshape(-1, 1), target_scores)
    scores = new(n_rows, n_samples)
    if is_shared:
        drawn = weights[ids]
        matmul(h, drawn.T, scores)
    else:
        kernels.scores(h, weights, ids, scores)
    loss, dscores, dtargets = losses_of_draws(
        scores, target_scores.reshape(-1), labels, ids, log_q, log_q_targets, mask_hits
    )
    if not math.isfinite(loss):
        for name, value in (("h", h), ("weights", weights[ids]), ("weights", weights[labels.indices])):
            check.finite(name, value)
        raise FloatingPointError("the scores h @ weights.T overflowed; lower the learning rate")
    if reduction == "mean":
        scale = np.float32(1 / max(n_rows, 1))
        loss, dscores, dtargets = loss / max(n_rows, 1), dscores * scale, dtargets * scale

    # The gradient with respect to the scores is a sparse (B, L) matrix. Its products with weights and h are the forward
    # and backward pass of an embedding. `entries` stacks two matrices: the entries of the targets, one row of them for
    # each row of h, then those of the draws. The draws have one row for each row of h too; shared draws have one row
    # each, with coefficient 1, because their gradients come from a dense product.
    def as_rows(indptr, all_ids, coefficients):
        arrays = (indptr, np.int32), (all_ids, np.int32), (coefficients, np.float32)
        return sparse.SparseRows(*(asarray(a, device, dtype) for a, dtype in arrays))

    n_more, per_row = (n_samples, 1) if is_shared else (n_rows, n_samples)
    indptr = xp.concatenate([labels.indptr, n_targets + per_row * xp.arange(1, n_more + 1)])
    coefficients = xp.ones(n_samples, np.float32) if is_shared else dscores.reshape(-1)
    all_ids = xp.concatenate([labels.indices, ids.reshape(-1)])
    entries = as_rows(indptr, all_ids, xp.concatenate([dtargets, coefficients]))
    columns = sparse.by_column(entries)
    if is_shared:
        dh, dh_of_targets, ddrawn = new(n_rows, width), new(n_rows, width), new(n_samples, width)
        matmul(dscores, drawn, dh)
        matmul(dscores.T, h, ddrawn)
        embedding.forward(as_rows(labels.indptr, labels.indices, dtargets), weights, dh_of_targets)
        source = asarray(xp.concatenate([h, ddrawn]), device)
    else:
        both, source = new(2 * n_rows, width), h
        embedding.forward(entries, weights, both)
        dh, dh_of_targets = both[n_rows:], both[:n_rows]
        columns = columns._replace(rows=columns.rows % np.int32(max(n_rows, 1)))
    dh += dh_of_targets
    dweights = new(columns.ids.shape[0], width)
    embedding.backward(columns, source, dweights)
    return loss, dh, (columns.ids, dweights)
