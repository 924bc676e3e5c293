"""MIDX (method 2): sampled softmax. The public functions check, allocate and call the twin.

Source: "Adaptive sampled softmax with inverted multi-index: methods, theory and applications", arXiv 2501.08563.
"""

import math

import numpy as np

from .core import backend, check, sparse
from .samplers import check_ids

CORRECTIONS = "paper", "importance"


def _log_probabilities(name, value, shape):
    value = check.array(name, value, np.float32, shape)
    check.finite(name, value)
    return value


def sampled_softmax(
    queries, classes, targets, ids, log_q, log_q_targets, *, correction="paper", mask_hits=False, reduction="mean"
):
    """Cross-entropy of the target against M drawn classes; its gradients touch only the classes that occur.

    ``loss_b = log(exp(t_b) + sum_m exp(s_bm)) - t_b``, where with "paper" ``t = q . c_target - log Q(target)`` and
    ``s = q . c_id - log Q(id)``; with "importance" ``t = q . c_target`` and ``s = q . c_id - log(M Q(id))``.

    Parameters
    ----------
    queries : (B, d) float32
    classes : (L, d) float32
        The output embeddings.
    targets : (B,) int32
        In [0, L).
    ids : (B, M) or (M,) int32
        The draws of each row; or draws that all rows share, which turns the work into dense products.
    log_q : float32, like ids
        Their log-probabilities under the sampler.
    log_q_targets : (B,) float32
        Those of the targets; only "paper" uses them.
    correction : 'paper' or 'importance'
        Under the exact sampler the mean gradient of "paper" is M / (M + 1) times that of the full softmax; that of
        "importance", with hits masked, tends to it as M grows.
    mask_hits : bool
        Leave out draws that equal the row's target.
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
        Wrong dtype, shape or device; ids or targets out of range; log-probabilities that are not finite (a class that
        the sampler never draws).

    Source: arXiv 2501.08563 ("paper"); Y. Bengio, J.-S. Senecal, "Quick training of probabilistic neural nets by
    importance sampling", AISTATS 2003.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import UniformSampler, sampled_softmax
    >>> random = np.random.default_rng(0)
    >>> queries, classes = (random.standard_normal((n, 8)).astype(np.float32) for n in (2, 1000))
    >>> targets, sampler = np.array([3, 5], np.int32), UniformSampler(1000)
    >>> ids, log_q = sampler.sample(queries, n_samples=20, seed=0)
    >>> log_q_targets = sampler.log_prob(queries, targets)[:, 0]
    >>> loss, dqueries, (touched, dclasses) = sampled_softmax(queries, classes, targets, ids, log_q, log_q_targets)
    >>> dqueries.shape, dclasses.shape == (len(touched), 8)
    ((2, 8), True)
    """
    check.choice("correction", correction, CORRECTIONS)
    check.choice("reduction", reduction, ("mean", "sum"))
    device = check.same_device(
        queries=queries, classes=classes, targets=targets, ids=ids, log_q=log_q, log_q_targets=log_q_targets
    )
    classes = check.array("classes", classes, np.float32, ("L", "d"))
    n_classes, width = classes.shape
    queries = check.array("queries", queries, np.float32, ("B", width))
    n_rows = queries.shape[0]
    targets = check.array("targets", targets, np.int32, (n_rows,))
    if n_rows:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= n_classes:
            raise ValueError(f"targets must lie in [0, {n_classes}), got {low if low < 0 else high}")
    ids = check_ids(ids, n_classes, n_rows)
    n_samples = check.integer("the number of samples (the width of ids)", ids.shape[-1], 1)
    log_q = _log_probabilities("log_q", log_q, ids.shape)
    log_q_targets = _log_probabilities("log_q_targets", log_q_targets, (n_rows,))
    if correction == "importance":
        log_q, log_q_targets = log_q + np.float32(math.log(n_samples)), backend.zeros(n_rows, np.float32, device)
    wing, embedding = backend.wing(device, "sampled_softmax"), backend.wing(device, "embedding")
    is_shared, xp = len(ids.shape) == 1, backend.module_of(device)

    def new(*shape):
        return backend.empty(shape, np.float32, device)

    target_scores, scores = new(n_rows, 1), new(n_rows, n_samples)
    wing.scores(queries, classes, targets.reshape(-1, 1), target_scores)
    if is_shared:
        matmul, drawn = backend.wing(device, "matmul").matmul, classes[ids]
        matmul(queries, drawn.T, scores)
        ids, log_q = ids.reshape(1, -1), log_q.reshape(1, -1)
    else:
        wing.scores(queries, classes, ids, scores)
    losses, dtargets = new(n_rows), new(n_rows)
    wing.softmax(
        scores, ids, log_q, target_scores.reshape(-1), targets, log_q_targets, bool(mask_hits), losses, scores, dtargets
    )
    loss = float(losses.sum(dtype=np.float64))
    if not math.isfinite(loss):
        for name, value in (("queries", queries), ("classes", classes[ids]), ("classes", classes[targets])):
            check.finite(name, value)
        raise ValueError("the scores queries @ classes.T must be finite; lower the learning rate")
    if reduction == "mean":
        scale = np.float32(1 / max(n_rows, 1))
        loss, scores, dtargets = loss / max(n_rows, 1), scores * scale, dtargets * scale
    # the gradient by scores is a sparse matrix (B, L): its products with classes and queries are those of an embedding
    dqueries = new(n_rows, width)
    if is_shared:
        ddrawn = new(n_samples, width)
        matmul(scores, drawn, dqueries)
        matmul(scores.T, queries, ddrawn)
        dqueries += dtargets[:, None] * classes[targets]
        n = n_samples + n_rows
        all_ids = xp.concatenate([ids.reshape(-1), targets])
        weights = xp.concatenate([xp.ones(n_samples, np.float32), dtargets])
        source = xp.concatenate([ddrawn, queries])
        indptr = xp.arange(n + 1, dtype=np.int32)
    else:
        all_ids = xp.concatenate([targets.reshape(-1, 1), ids], axis=1).reshape(-1)
        weights, source = xp.concatenate([dtargets.reshape(-1, 1), scores], axis=1).reshape(-1), queries
        indptr = xp.arange(n_rows + 1, dtype=np.int32) * np.int32(n_samples + 1)
    arrays = (indptr, np.int32), (all_ids, np.int32), (weights, np.float32)
    rows = sparse.SparseRows(*(backend.asarray(a, device, dtype) for a, dtype in arrays))
    if not is_shared:
        embedding.forward(rows, classes, dqueries)
    columns = sparse.by_column(rows)
    dclasses = new(columns.ids.shape[0], width)
    embedding.backward(columns, backend.asarray(source, device), dclasses)
    return loss, dqueries, (columns.ids, dclasses)
