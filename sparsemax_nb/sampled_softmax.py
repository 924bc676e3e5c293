"""Sampled softmax (method 2): the softmax loss over a row's targets and classes drawn by a sampler."""

import math

import numpy as np

from .core import check, sparse
from .core.device import asarray, backend_of, empty, module_of, zeros
from .samplers import check_ids

CORRECTIONS = "paper", "importance"


def _log_probabilities(name, value, shape):
    value = check.array(name, value, np.float32, shape)
    check.finite(name, value)
    return value


def sampled_softmax(
    h, weights, targets, ids, log_q, log_q_targets, *, correction="paper", mask_hits=False, reduction="mean"
):
    """Cross-entropy of each target against M drawn classes; its gradients touch only the classes that occur.

    ``loss_b = sum_t (log(exp(t) + sum_m exp(s_bm)) - t)`` over the row's targets, of which there may be one or several.
    With "paper", ``t = q . c_target - log Q(target)`` and ``s = q . c_id - log Q(id)``; with "importance",
    ``t = q . c_target`` and ``s = q . c_id - log(M Q(id))``.

    Parameters
    ----------
    h : (B, d) float32
    weights : (L, d) float32
        The output embeddings.
    targets : (B,) int32 or other integers, SciPy CSR matrix (B, L) or Labels(indptr, indices)
        One target a row, in [0, L); or the positive labels of each row, each of which meets the same draws.
    ids : (B, M) or (M,) int32, or other integers
        The draws of each row; or draws that all rows share, which turns the work into dense products.
    log_q : (B, M) or (M,) float32, like ids
        Their log-probabilities under the sampler.
    log_q_targets : (n,) float32
        Those of the targets, row by row (n = B for one a row), in the order in which they are stored; of a matrix that
        stores an entry twice, by class. Only "paper" looks at them.
    correction : 'paper' or 'importance'
        Under the exact sampler the mean gradient of "paper" is M / (M + 1) times that of the full softmax; that of
        "importance", with hits masked, tends to it as M grows.
    mask_hits : bool
        Leave out draws that equal the target; the row's other targets still meet them.
    reduction : 'mean' or 'sum'
        Over the rows.

    Returns
    -------
    loss : float
    dqueries : (B, d) float32
    (unique_ids, dclasses) : (U,) int32 ascending, (U, d) float32
        The gradient by the rows of classes that occur; repeated ids are summed, in a fixed order on the CPU.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype, shape or device; ids or targets out of range; inputs that are not finite, log-probabilities among
        them (a class that the sampler never draws).
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
    >>> loss, dqueries, (touched, dclasses) = sampled_softmax(h, weights, targets, ids, log_q, log_q_targets)
    >>> dqueries.shape, dclasses.shape == (len(touched), 8)
    ((2, 8), True)
    """
    check.choice("correction", correction, CORRECTIONS)
    check.choice("reduction", reduction, ("mean", "sum"))
    mask_hits = check.flag("mask_hits", mask_hits)
    arrays = {"h": h, "weights": weights, "ids": ids, "log_q": log_q, "log_q_targets": log_q_targets}
    device = check.same_device(**arrays, **({} if sparse.holds_several(targets) else {"targets": targets}))
    weights = check.array("weights", weights, np.float32, ("L", "d"))
    n_classes, width = weights.shape
    h = check.array("h", h, np.float32, ("B", width))
    n_rows = h.shape[0]
    labels = sparse.as_targets(targets, n_rows, device, n_classes)
    n_targets = labels.indices.shape[0]
    ids = check_ids(ids, n_classes, n_rows)
    n_samples = check.integer("the number of samples (the width of ids)", ids.shape[-1], 1)
    check.integer("the number of draws and targets", ids.size + n_targets, 0, 2**31 - 1, "; use fewer rows or draws")
    log_q = _log_probabilities("log_q", log_q, ids.shape)
    if correction == "importance":
        check.array("log_q_targets", log_q_targets, np.float32, (n_targets,))
        log_q, log_q_targets = log_q + np.float32(math.log(n_samples)), zeros(n_targets, np.float32, device)
    else:
        log_q_targets = _log_probabilities("log_q_targets", log_q_targets, (n_targets,))
    kernels, embedding = backend_of(device, "sampled_softmax"), backend_of(device, "embedding")
    matmul, is_shared = backend_of(device, "matmul").matmul, len(ids.shape) == 1
    xp = module_of(device)

    def new(*shape):
        return empty(shape, np.float32, device)

    target_scores, scores, dscores = new(n_targets, 1), new(n_rows, n_samples), new(n_rows, n_samples)
    row = sparse.row_of_each_entry(labels.indptr, n_targets)
    kernels.scores(h[row], weights, labels.indices.reshape(-1, 1), target_scores)
    if is_shared:
        drawn = weights[ids]
        matmul(h, drawn.T, scores)
    else:
        kernels.scores(h, weights, ids, scores)
    losses, dtargets, lines = new(n_targets), new(n_targets), (-1, n_samples)
    kernels.softmax(
        scores,
        ids.reshape(lines),
        log_q.reshape(lines),
        target_scores.reshape(-1),
        labels,
        log_q_targets,
        mask_hits,
        losses,
        dscores,
        dtargets,
    )
    loss = float(losses.sum(dtype=np.float64))
    if not math.isfinite(loss):
        for name, value in (("h", h), ("weights", weights[ids]), ("weights", weights[labels.indices])):
            check.finite(name, value)
        raise FloatingPointError("the scores h @ weights.T overflowed; lower the learning rate")
    if reduction == "mean":
        scale = np.float32(1 / max(n_rows, 1))
        loss, dscores, dtargets = loss / max(n_rows, 1), dscores * scale, dtargets * scale

    # the gradient by the scores is a sparse matrix (B, L): its products with weights and h are those of an
    # embedding. Below the rows of the targets lie those of the draws: as many, or, where the draws are shared, one for
    # each draw
    def rows_of(indptr, all_ids, coefficients):
        arrays = (indptr, np.int32), (all_ids, np.int32), (coefficients, np.float32)
        return sparse.SparseRows(*(asarray(a, device, dtype) for a, dtype in arrays))

    n_more, per_row = (n_samples, 1) if is_shared else (n_rows, n_samples)
    indptr = xp.concatenate([labels.indptr, n_targets + per_row * xp.arange(1, n_more + 1)])
    coefficients = xp.ones(n_samples, np.float32) if is_shared else dscores.reshape(-1)
    all_ids = xp.concatenate([labels.indices, ids.reshape(-1)])
    entries = rows_of(indptr, all_ids, xp.concatenate([dtargets, coefficients]))
    columns = sparse.by_column(entries)
    if is_shared:
        dh, by_targets, ddrawn = new(n_rows, width), new(n_rows, width), new(n_samples, width)
        matmul(dscores, drawn, dh)
        matmul(dscores.T, h, ddrawn)
        embedding.forward(rows_of(labels.indptr, labels.indices, dtargets), weights, by_targets)
        source = asarray(xp.concatenate([h, ddrawn]), device)
    else:
        both, source = new(2 * n_rows, width), h
        embedding.forward(entries, weights, both)
        dh, by_targets = both[n_rows:], both[:n_rows]
        columns = columns._replace(rows=columns.rows % np.int32(max(n_rows, 1)))
    dh += by_targets
    dweights = new(columns.ids.shape[0], width)
    embedding.backward(columns, source, dweights)
    return loss, dh, (columns.ids, dweights)
