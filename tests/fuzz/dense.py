"""What results must be: dense NumPy in float64, from arguments of any legal kind; AssertionError where they are not."""

import math

import numpy as np
import scipy.sparse

import sparsemax_nb
from sparsemax_nb import train
from sparsemax_nb.core.connections import PaddedDuals
from sparsemax_nb.reference import neighbor_kernel as reference

EPS = 64 * float(np.finfo(np.float32).eps)


def f8(a):
    return np.asarray(a).astype(np.float64)


def equal(got, want):
    got, want = np.asarray(got), np.asarray(want)
    same = np.array_equal(got, want, equal_nan=got.dtype.kind == want.dtype.kind == "f")
    assert same, f"got {got!r}, want {want!r}"


def close(got, want, atol):
    """Equal up to `atol` (a number or an array), where that is below what float32 can hold."""
    got, want, atol = f8(got), f8(want), np.broadcast_to(np.asarray(atol, np.float64), np.shape(want))
    assert got.shape == want.shape, f"shape {got.shape}, want {want.shape}"
    sane = np.isfinite(want) & (np.abs(want) < 1e36) & (atol < 1e30)
    wrong = sane & ~(np.abs(got - want) <= atol + 1e-30)
    assert not wrong.any(), f"got {got[wrong][:3]}, want {want[wrong][:3]}, within {atol[wrong][:3]}"


def label_rows(labels, n_labels):
    """(B, L) bool of labels of any legal kind, or of one target a row."""
    if scipy.sparse.issparse(labels):
        return np.asarray(labels.toarray() != 0)
    if isinstance(labels, tuple):
        indptr, found = (np.asarray(a).astype(np.int64) for a in labels)
        out = np.zeros((len(indptr) - 1, n_labels), bool)
        out[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), found] = True
        return out
    targets = np.asarray(labels).astype(np.int64)
    return (targets[:, None] == np.arange(n_labels)) & (targets[:, None] >= 0)


def scores_of(x, layer):
    """Scores of a layer and what float32 may lose in them."""
    w, x = f8(layer.to_dense()), f8(x)
    return x @ w.T + f8(layer.bias), EPS * (np.abs(x) @ np.abs(w).T + np.abs(f8(layer.bias)))


def forward(out_scores, x, layer, out=None):
    close(out_scores, *scores_of(x, layer))


def backward(result, x, layer, dscores):
    dx, dvalues, dbias = result
    w, x, g = f8(layer.to_dense()), f8(x), f8(dscores)
    close(dx, g @ w, EPS * (np.abs(g) @ np.abs(w)))
    close(dbias, g.sum(axis=0), EPS * np.abs(g).sum(axis=0))
    dense = g.T @ x
    group = getattr(layer, "group_size", 1)
    rows = np.arange(layer.n_labels)[:, None]
    at = np.asarray(layer.indices)[rows[:, 0] // group]
    close(dvalues, dense[rows, at], EPS * (np.abs(g).T @ np.abs(x))[rows, at])


def ordered(scores, ids, true, slack):
    """Best first, ties by id; no better label is missing."""
    scores, ids = np.asarray(scores), np.asarray(ids).astype(np.int64)
    for b in range(len(ids)):
        held = ids[b][ids[b] >= 0]
        assert len(set(held.tolist())) == len(held) == min(ids.shape[1], true.shape[1]), f"row {b}: {ids[b]}"
        pairs = list(zip(-scores[b][: len(held)], held, strict=True))
        assert pairs == sorted(pairs), f"row {b} is not in order: {pairs}"
        if len(held) < true.shape[1] and len(held):
            others = np.setdiff1d(np.arange(true.shape[1]), held)
            assert (true[b, others] <= true[b, held].min() + slack[b].max()).all(), f"row {b}: a better one is missing"


def layer_top_k(result, x, layer, k):
    scores, ids = result
    true, slack = scores_of(x, layer)
    assert scores.shape == ids.shape == (len(true), int(k))
    if not (slack < 1e30).all():
        return
    close(scores, np.take_along_axis(true, ids.astype(np.int64), 1), np.take_along_axis(slack, ids.astype(np.int64), 1))
    ordered(scores, ids, true, 2 * slack)


def step(result, x, layer, labels, loss, optimizer):
    value, dx = result
    scores, slack = scores_of(x, layer)
    if not (slack < 1e15).all():
        return
    y, n = np.where(label_rows(labels, layer.n_labels), 1.0, -1.0), max(len(scores), 1)
    if loss == "softmax":
        softmax_step(value, dx, scores, slack, y > 0, layer)
        return
    z = y * scores
    if loss == "bce":
        total, slope = np.logaddexp(0, -z).sum(), -y / (1 + np.exp(np.minimum(z, 700)))
    else:
        total, slope = (np.maximum(0, 1 - z) ** 2).sum(), -2 * y * np.maximum(0, 1 - z)
    close(value, total / n, (EPS * total + (np.abs(slope) * slack).sum() + 1e-6) / n)
    if layer.to_dense().dtype == np.float32 and np.abs(scores).max(initial=0) < 1e3:
        w = np.abs(f8(layer.to_dense()))
        close(dx, slope @ f8(layer.to_dense()) / n, 10 * ((EPS * np.abs(slope) + 2 * slack + 1e-6) @ w) / n)


def softmax_step(value, dx, scores, slack, hot, layer):
    """Loss and dx of a step with the softmax loss."""
    n, counts, lost = max(len(scores), 1), hot.sum(axis=1)[:, None], 2 * slack.max(axis=1, initial=0)[:, None]
    log_p = scores - np.logaddexp.reduce(scores, axis=1)[:, None] if scores.size else scores
    total = -np.where(hot, log_p, 0).sum()
    close(value, total / n, ((hot * lost).sum() + EPS * (total + counts.sum() + 1)) / n)
    if layer.to_dense().dtype == np.float32 and lost.max(initial=0) < 0.1:
        w, slope = f8(layer.to_dense()), counts * np.exp(log_p) - hot
        close(dx, slope @ w / n, 10 * ((EPS * np.abs(slope) + counts * np.exp(log_p) * lost + 1e-6) @ np.abs(w)) / n)


def linear_scores(x, layer):
    """Scores of a `SparseLinear` and what float32 may lose in them."""
    w, x = f8(layer.weights.toarray()), f8(x.toarray())
    return x @ w.T + f8(layer.bias), EPS * (np.abs(x) @ np.abs(w).T + np.abs(f8(layer.bias)))


def linear_layer(layer, weights, bias=None, device="cpu"):
    close(layer.weights.toarray(), f8(weights.toarray()), 1e-6 * np.abs(f8(weights.toarray())))
    equal(layer.bias, np.full(layer.n_labels, -1, np.float32) if bias is None else bias)


def linear_choice(layer, x, labels, per_point=8.0, at_least=16, dense=None, device="cpu"):
    assert not layer.weights.data.any()
    points = (labels.toarray() != 0).sum(0)
    listed = np.bincount(layer.arrays.labels, minlength=layer.n_labels)
    assert (listed <= np.maximum(at_least, per_point * points)).all() and not listed[points == 0].any()


def linear_forward(scores, x, layer, out=None):
    close(scores, *linear_scores(x, layer))


def linear_top_k(result, x, layer, k):
    scores, ids = result
    true, slack = linear_scores(x, layer)
    assert scores.shape == ids.shape == (len(true), int(k))
    if (slack < 1e30).all():
        ordered(scores, ids, true, 2 * slack)


def co_occurrence(counts, labels, device="cpu"):
    y = (labels.toarray() != 0) * 1
    few = y[y.sum(1) <= 32]
    true = few.T @ few
    np.fill_diagonal(true, 0)
    equal(counts.counts.toarray(), true)
    assert counts.n_rows == len(few) and (counts.arrays.label_counts == few.sum(0)).all()


def more_co_occurrence(before):
    """The check of `CoOccurrence.extended` of the counts of `before`."""

    def check(counts, more):
        both = scipy.sparse.vstack(
            [
                scipy.sparse.csr_matrix((before.data, before.indices, before.indptr), (before.shape[0], more.shape[1])),
                more,
            ]
        )
        co_occurrence(counts, both)

    return check


def reranked(result, scores, ids, together, k=None, weight=0.03):
    found, labels = result
    k = ids.shape[1] if k is None else int(k)
    assert found.shape == labels.shape == (len(ids), k) and (labels[:, :1] == ids[:, :1]).all()
    true, wanted = sparsemax_nb.reference.co_occurrence.rerank(f8(scores), ids, together.arrays, float(weight), k)
    same = labels == wanted  # sums may lie so close that rounding decides
    assert same.mean() > 0.9 if same.size > 20 else True
    first = same.cumprod(1).astype(bool)
    close(found[first], true[first], 1e-5 * (1 + np.abs(true[first])))


def linear_step(result, x, layer, labels, duals=None, C=0.5, slack=0.2, sample_weight=None):
    loss_and_duals(result, x.shape[0])


def dense_step(result, h, weights, bias, labels, duals=None, C=1.0, slack=0.5, search=True, sample_weight=None):
    loss_and_duals(result, len(h))


def loss_and_duals(result, n_rows):
    loss, (indptr, found, values) = result
    assert loss >= 0 and len(indptr) == n_rows + 1 and len(found) == len(values) == indptr[-1]
    assert not len(values) or (values > 0).all()


def nearest(result, h, points, k):
    similarities, found = result
    true = f8(h) @ f8(points).T
    slack = EPS * (np.abs(f8(h)) @ np.abs(f8(points)).T)
    if (slack < 1e30).all():
        assert found.shape == (len(true), int(k))
        close(similarities, np.take_along_axis(true, found.astype(np.int64), 1), slack.max(initial=0))
        ordered(similarities, found, true, 2 * slack)


def neighbor_kernel(layer, points, duals, bias=None, *, power=6.0, n_neighbors=128, device="cpu"):
    equal(layer.points, points)
    if isinstance(duals, tuple):
        padded = PaddedDuals(*(np.asarray(a) for a in duals))
        equal(layer.duals.toarray(), reference.dense(padded, layer.n_labels).astype(np.float32))
    else:
        close(layer.duals.toarray(), f8(duals.toarray()), 1e-6 * np.abs(f8(duals.toarray())))
    equal(layer.bias, np.full(layer.n_labels, -1, np.float32) if bias is None else bias)


def neighbor_scores(h, layer):
    """Scores of a `NeighborKernel` and what float32 may lose in them; None where rounding decides the neighbors."""
    products, n = f8(h) @ f8(layer.points).T, min(layer.n_neighbors, layer.n_points)
    best = -np.sort(-products, axis=1)
    if n < layer.n_points and (best[:, n - 1] - best[:, n] < 1e-4 * (best[:, n - 1] > 0)).any():
        return None
    similarities, found = reference.nearest(f8(h), f8(layer.points), n)
    kernels = reference.kernel(similarities, layer.power)
    scores = reference.forward(found, kernels, layer.arrays, f8(layer.bias))
    absolute = layer.arrays._replace(values=np.abs(layer.arrays.values))
    error = EPS * layer.power * (1 + reference.forward(found, kernels * 0 + 1, absolute, np.abs(f8(layer.bias))))
    return scores, error


def neighbor_kernel_forward(scores, h, layer, out=None):
    true = neighbor_scores(h, layer)
    assert scores.shape == (len(h), layer.n_labels)
    if true is not None:
        close(scores, *true)


def neighbor_kernel_top_k(result, h, layer, k):
    scores, found = result
    assert scores.shape == found.shape == (len(h), int(k))
    true = neighbor_scores(h, layer)
    if true is not None and (true[1] < 1e30).all():
        ordered(scores, found, true[0], 2 * true[1])


def neighbor_kernel_step(loss, rows, neighbors, kernels, duals, labels, n_labels, **options):
    """The loss; `duals` are those before the step."""
    y = label_rows(labels, int(n_labels))
    own = sparsemax_nb.Labels(np.concatenate([[0], y.sum(1).cumsum()]), np.nonzero(y)[1])
    weights = options.get("sample_weight")
    weights = np.ones(len(rows)) if weights is None else f8(weights)
    before = PaddedDuals(*(np.asarray(a) for a in duals))
    c, slack = float(options.get("C", 1)), float(options.get("slack", 0.3))
    losses, _ = reference.step(
        np.asarray(rows).astype(np.int64), np.asarray(neighbors).astype(np.int64), np.asarray(kernels), own, weights, c,
        slack, int(n_labels), before,
    )  # fmt: skip
    close(loss, (weights * losses).sum(), 1e-4 * (1 + (weights * losses).sum()))


def rewired(slots, layer, fraction, seed, optimizer=None, step=0):
    n = math.floor(float(fraction) * layer.indices.size + 0.5)
    assert slots.shape == (n, 2)
    flat = slots[:, 0].astype(np.int64) * layer.fan_in + slots[:, 1]
    assert (np.diff(flat) > 0).all()


def layer_made(layer, n_inputs, indices, values, bias, group_size=1, *, seed=0):
    equal(layer.indices, indices)
    equal(f8(layer.values), f8(values))
    equal(layer.bias, bias)
    assert layer.indices.dtype == np.int32 and layer.indices.flags.c_contiguous
    assert 0 <= layer.indices.min() and layer.indices.max() < int(n_inputs)


def random_layer(layer, n_labels, n_inputs, fan_in, *more, **options):
    again = type(layer).random(int(n_labels), int(n_inputs), int(fan_in), *map(int, more), **options)
    equal(layer.indices, again.indices)
    equal(f8(layer.values), f8(again.values))


def grouped(order, features, labels, group_size, by, seed):
    n_labels = labels.shape[1]
    assert sorted(order.tolist()) == list(range(n_labels))
    plain = scipy.sparse.csr_matrix((np.asarray(labels.toarray()) != 0).astype(np.float32))
    if by != "similar":  # the features are not looked at, and may be anything
        equal(order, sparsemax_nb.group_labels(None, plain, int(group_size), by, int(seed)))


def cross_entropy(result, h, w, targets, bias=None, *, ignore_index=-1):
    loss, dh, dw, dbias = result
    h, w = f8(h), f8(w)
    bias = np.zeros(len(w)) if bias is None else f8(bias)
    y = label_rows(targets, len(w)).astype(np.float64)
    s = h @ w.T + bias
    slack = EPS * (np.abs(h) @ np.abs(w).T + np.abs(bias))
    if not (slack < 1e3).all():
        return
    n = max(int(y.sum()) if isinstance(targets, np.ndarray) else len(h), 1)
    top = s.max(axis=1, keepdims=True)
    log_z = top + np.log(np.exp(s - top).sum(axis=1, keepdims=True))
    error = 4 * slack.max(initial=0) + EPS * (1 + np.abs(s).max(initial=0))
    close(loss, (y * (log_z - s)).sum() / n, error * (y.sum() + 1))
    g = (np.exp(s - log_z) * y.sum(axis=1, keepdims=True) - y) / n
    bound = np.minimum(error, 1) * (y.sum(axis=1, keepdims=True) + 1) / n * np.ones_like(s)
    close(dh, g @ w, 4 * bound @ np.abs(w) + 1e-6)
    close(dw, g.T @ h, 4 * bound.T @ np.abs(h) + 1e-6)
    close(dbias, g.sum(axis=0), 4 * bound.sum(axis=0) + 1e-6)


def ranks(result, h, w, targets):
    log_prob, rank = result
    h, w, t = f8(h), f8(w), np.asarray(targets).astype(np.int64)
    s, slack = h @ w.T, EPS * (np.abs(h) @ np.abs(w).T)
    if not (slack < 1e3).all() or not len(h):
        return
    mine, own = np.take_along_axis(s, t[:, None], 1), np.take_along_axis(slack, t[:, None], 1)
    top = s.max(axis=1, keepdims=True)
    close(
        log_prob,
        (mine - top)[:, 0] - np.log(np.exp(s - top).sum(axis=1)),
        4 * slack.max(axis=1) + EPS * (1 + np.abs(s).max(axis=1)),
    )
    others = np.arange(len(w)) != t[:, None]
    least, most = (others & (s > mine + slack + own)).sum(axis=1), (others & (s >= mine - slack - own)).sum(axis=1)
    assert ((least <= rank) & (rank <= most)).all(), f"{least} <= {rank} <= {most}"


def sampled(result, h, w, targets, ids, log_q, log_q_targets, *, correction, mask_hits, reduction):
    loss = result[0]
    h, w, log_q = f8(h), f8(w), f8(log_q)
    ids = np.broadcast_to(np.asarray(ids).astype(np.int64), (len(h), np.shape(ids)[-1]))
    log_q = np.broadcast_to(log_q, ids.shape)
    if isinstance(targets, np.ndarray):
        pairs = [(b, int(t)) for b, t in enumerate(targets)]
    elif scipy.sparse.issparse(targets):
        m = targets.tocsr().copy()
        summed = m.copy()
        summed.sum_duplicates()
        m = summed if summed.nnz != m.nnz else m
        m.eliminate_zeros()
        pairs = [(b, int(t)) for b in range(len(h)) for t in m.indices[m.indptr[b] : m.indptr[b + 1]]]
    else:
        indptr, found = (np.asarray(a).astype(np.int64) for a in targets)
        pairs = [(b, int(t)) for b in range(len(h)) for t in found[indptr[b] : indptr[b + 1]]]
    total, scale = (
        0.0,
        (np.abs(h) @ np.abs(w).T).max(initial=0)
        + np.abs(log_q).max(initial=0)
        + np.abs(f8(log_q_targets)).max(initial=0),
    )
    if scale > 1e6:
        return
    for (b, t), q in zip(pairs, f8(log_q_targets), strict=True):
        s = h[b] @ w[ids[b]].T
        if correction == "paper":
            own, s = h[b] @ w[t] - q, s - log_q[b]
        else:
            own, s = h[b] @ w[t], s - log_q[b] - math.log(ids.shape[1])
        s = s[~(mask_hits & (ids[b] == t))]
        total += np.logaddexp.reduce(np.append(s, own)) - own
    if reduction == "mean":
        total /= max(len(h), 1)
    close(loss, total, EPS * (scale + 1) * (len(pairs) + 1))


def softmax_top_k(result, h, w, bias, k):
    probabilities, ids = result
    h, w, bias = f8(h), f8(w), f8(bias)
    s, slack = h @ w.T + bias, EPS * 4 * (np.abs(h) @ np.abs(w).T + np.abs(bias))
    assert probabilities.shape == ids.shape == (len(h), int(k))
    if not (slack < 1).all():
        return
    top = s.max(axis=1, keepdims=True)
    p = np.exp(s - top) / np.exp(s - top).sum(axis=1, keepdims=True)
    found = np.where(ids >= 0, np.take_along_axis(p, np.maximum(ids, 0).astype(np.int64), 1), 0)
    close(probabilities, found, 8 * slack.max(axis=1, initial=0)[:, None] * np.ones_like(found) + 1e-5)
    for b in range(len(ids)):
        held = ids[b][ids[b] >= 0]
        assert len(set(held.tolist())) == len(held) == min(int(k), len(w))
        if 0 < len(held) < len(w):
            others = np.setdiff1d(np.arange(len(w)), held)
            assert (s[b, others] <= s[b, held].min() + 8 * slack[b].max()).all()


def same_top_k(made, kind, w, bias):
    h = np.ones((1, made.width), np.float32)
    softmax_top_k(made.top_k(h, 2), h, w, np.zeros(len(w)) if bias is None else bias, 2)


def _table(sampler, h):
    everything = np.arange(sampler.n_classes, dtype=np.int32)
    table = sampler.log_prob(np.ascontiguousarray(h, np.float32), everything)
    with np.errstate(over="ignore"):
        close(np.exp(f8(table)).sum(axis=1), np.ones(len(table)), 1e-3)
    return f8(table)


def drawn(result, sampler, h, n_samples, seed, step):
    ids, log_q = result
    assert ids.shape == log_q.shape == (len(h), int(n_samples)) and ids.dtype == np.int32
    if ids.size:
        assert 0 <= ids.min() and ids.max() < sampler.n_classes
        assert np.isfinite(log_q).all()
        try:
            table = _table(sampler, h)
        except FloatingPointError:  # classes that are not drawn have scores that float32 can not hold
            return
        close(log_q, np.take_along_axis(table, ids.astype(np.int64), 1), 1e-3 + 1e-4 * np.abs(table).max())
    again = sampler.sample(np.ascontiguousarray(h, np.float32), int(n_samples), int(seed), int(step))
    equal(ids, again[0])


def log_probs(log_q, sampler, h, ids):
    table, ids = _table(sampler, h), np.asarray(ids).astype(np.int64)
    ids = np.broadcast_to(ids, (len(h), ids.shape[-1]))
    assert log_q.shape == ids.shape and not np.isnan(log_q).any()
    want = np.take_along_axis(table, ids, 1)
    equal(np.isfinite(log_q), np.isfinite(want))
    close(log_q, want, 1e-4 * (1 + np.abs(np.where(np.isfinite(want), want, 0))))


def sampler_made(sampler, *args, **kwargs):
    width = getattr(sampler, "_width", None) or getattr(getattr(sampler, "_classes", None), "shape", (0, 4))[1]
    try:
        _table(sampler, np.zeros((1, width), np.float32))
    except FloatingPointError:  # numbers so large that scores overflow say so
        pass


def expert_top_k(result, packed, h, k):
    probabilities, ids = result
    h, gate, starts, rows = f8(h), f8(packed.gate), np.asarray(packed.starts), f8(packed.weights)
    assert probabilities.shape == ids.shape == (len(h), int(k))
    if (np.abs(h).max(initial=0) * max(np.abs(gate).max(initial=0), np.abs(rows).max(initial=0))) > 1e4:
        return
    logits = h @ gate.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    for b in range(len(h)):
        best = np.sort(p[b])[::-1]
        if len(best) > 1 and best[0] - best[1] < 1e-4:
            continue
        e = int(p[b].argmax())
        some = slice(starts[e], starts[e + 1])
        held = np.asarray(packed.ids)[some]
        s = p[b, e] * (rows[some] @ h[b])
        got = ids[b][ids[b] >= 0]
        assert len(got) == min(int(k), len(held)) and set(got.tolist()) <= set(held.tolist())
        if len(held):
            q = np.exp(s - s.max())
            q = dict(zip(held.tolist(), q / q.sum(), strict=True))
            close(probabilities[b][: len(got)], [q[i] for i in got.tolist()], 1e-3 * (1 + np.abs(s).max()))


def f1_of(hits, predicted, true):
    return 2 * hits / (predicted + true) if predicted + true else 0.0


def metric(name, value, ids, labels, *more, excluded=None):
    k, truth = int(more[-1]), np.asarray(labels.toarray() != 0)
    ids = np.asarray(ids).astype(np.int64)
    if excluded is not None:
        out = np.asarray(excluded.toarray() != 0)
        kept = [[i for i in row if i < 0 or not out[b, i]] for b, row in enumerate(ids.tolist())]
        ids = np.array([row + [-1] * (ids.shape[1] - len(row)) for row in kept], np.int64).reshape(ids.shape)
        truth = truth & ~out
    ids = ids[:, :k]
    hits = (
        np.where(ids >= 0, np.take_along_axis(truth, np.maximum(ids, 0), 1), False)
        if ids.size
        else np.zeros(ids.shape, bool)
    )
    n_true, gains = truth.sum(axis=1), 1 / np.log2(np.arange(2, k + 2))
    rows = list(zip(ids, hits, n_true, strict=True))
    n_hits, n_predicted = (np.bincount(x, minlength=truth.shape[1]) for x in (ids[hits].ravel(), ids[ids >= 0].ravel()))
    by_label = [(h, p, t) for h, p, t in zip(n_hits, n_predicted, truth.sum(axis=0), strict=True) if p + t]
    if name == "hits_at_k":
        return equal(value, hits)
    if name == "per_label":
        equal(value["hits"], np.array([h for h, _, _ in by_label], np.int64))
        return close(value["f1"], np.array([f1_of(*counts) for counts in by_label]), 1e-9)
    if name == "macro_f1_at_k":
        want = np.mean([f1_of(*counts) for counts in by_label]) if by_label else 0.0
    elif name == "coverage_at_k":
        want = len({*ids[hits].tolist()}) / truth.any(axis=0).sum() if truth.any() else 0.0
    elif not len(ids):
        want = 0.0
    elif name == "precision_at_k":
        want = hits.mean()
    elif name == "recall_at_k":
        want = np.mean([h.sum() / n if n else 0 for _, h, n in rows])
    elif name == "ndcg_at_k":
        want = np.mean([(h * gains).sum() / gains[:n].sum() if n else 0 for _, h, n in rows])
    elif name == "f1_at_k":
        want = np.mean([f1_of(h.sum(), (i >= 0).sum(), n) for i, h, n in rows])
    elif name == "map_at_k":
        sums = [sum(h[: r + 1].mean() for r in np.flatnonzero(h)) for _, h, _ in rows]
        want = np.mean([total / min(k, n) if n else 0 for total, n in zip(sums, n_true, strict=True)])
    else:
        p = np.asarray(more[0])
        best = sum(np.sort(1 / p[t])[::-1][:k].sum() for t in truth)
        want = (1 / p)[ids[hits]].sum() / best if best else 0.0
    return close(value, want, 1e-9)


def set_metric(name, value, predicted, labels):
    predicted, truth = (np.asarray(m.toarray() != 0) for m in (predicted, labels))
    both, axis = predicted & truth, {"sample_f1": 1, "micro_f1": None, "macro_f1": 0}[name]
    counts = [np.atleast_1d(m.sum(axis=axis)) for m in (both, predicted, truth)]
    values = [f1_of(h, p, t) for h, p, t in zip(*counts, strict=True) if p + t or axis == 1]
    close(value, np.mean(values) if values else 0.0, 1e-9)


def calibration(name, value, probabilities, hits, n_bins=15):
    p, hits, n_bins = f8(probabilities).ravel(), np.asarray(hits).ravel(), int(n_bins)
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    bins = np.array([sum(x > edge for edge in edges) for x in p], np.int64)
    table = [(np.sum(bins == b), p[bins == b], hits[bins == b]) for b in range(n_bins)]
    if name == "expected_calibration_error":
        want = sum(n / len(p) * abs(q.mean() - h.mean()) for n, q, h in table if n)
        return close(value, want, 1e-9)
    equal(value[0], [n for n, _, _ in table])
    close(value[1], [q.mean() if n else 0 for n, q, _ in table], 1e-9)
    return close(value[2], [h.mean() if n else 0 for n, _, h in table], 1e-9)


def propensity(p, label_counts, n_points, a=0.55, b=1.5):
    c = (math.log(int(n_points)) - 1) * (float(b) + 1) ** float(a)
    close(p, 1 / (1 + c * (f8(label_counts) + float(b)) ** -float(a)), 1e-9)


def rank_figures(figures, ranks, k):
    r = f8(ranks)
    close(figures[f"Recall@{k}"], (r < int(k)).mean() if len(r) else 0, 1e-9)
    close(figures[f"NDCG@{k}"], ((r < int(k)) / np.log2(r + 2)).mean() if len(r) else 0, 1e-9)


def popularity(ranks, counts, targets):
    order = np.argsort(-f8(counts), kind="stable").tolist()
    equal(ranks, [order.index(int(t)) for t in targets])


def unigram(value, counts, tokens):
    c = f8(counts)
    p = (c + 1) / (c.sum() + len(c))
    if np.isfinite(c.sum()):
        close(value, np.exp(-np.log(p[np.asarray(tokens).astype(np.int64)]).mean()), 1e-6 * value)


def tfidf(me, method):
    def check(result, x):
        if method == "fit":
            return
        c = f8(x.toarray())
        idf = f8(me.idf_)
        w = np.where(c > 0, 1 + np.log(np.where(c > 0, c, 1)), 0) if me.sublinear else c
        w = w * idf
        norm = np.linalg.norm(w, axis=1, keepdims=True)
        if (norm < 1e100).all():
            close(result.toarray(), w / np.where(norm > 0, norm, 1), 1e-5)

    return check


def text_weights(me, method):
    """Rows of length 1 or 0, the same for a list of str."""

    def check(result, texts):
        if hasattr(texts, "__next__"):
            return
        if method in ("fit", "extend"):
            result = me.transform(texts)
        close(result.toarray(), me.transform([str(text) for text in texts]).toarray(), 0)
        lengths = np.linalg.norm(f8(result.toarray()), axis=1)
        close(lengths, np.diff(result.indptr) > 0, 1e-5)

    return check


def same_fit(model, x, y, validation=None):
    """A fit to data of an odd kind answers like one to the same data as plain CSR or float32."""
    plain = scipy.sparse.csr_matrix(x.toarray()) if scipy.sparse.issparse(x) else np.ascontiguousarray(x, np.float32)
    labels = y.toarray() if scipy.sparse.issparse(y) else np.asarray(y)
    labels = scipy.sparse.csr_matrix((labels != 0).astype(np.float32))
    again = train.Classifier(**model.get_params()).fit(plain, labels, validation=validation)
    got, want = (m.top_k(plain, 1)[0] for m in (model, again))
    if model.history_.epochs[0].get("P@3") is None if hasattr(model.history_, "epochs") else True:
        close(got, want, 1e-3 * (1 + np.abs(f8(want))))


def _plain(value):
    if scipy.sparse.issparse(value):
        return scipy.sparse.csr_matrix(np.asarray(value.toarray(), np.float32))
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return np.ascontiguousarray(value, np.int32 if value.dtype.kind in "iu" else np.float32)
    return value


def same_answer(model, method):
    """A fitted model answers the same to plain arrays."""

    def check(result, *args, **kwargs):
        again = getattr(model, method)(*map(_plain, args), **kwargs)
        if scipy.sparse.issparse(result):
            result, again = result.toarray(), again.toarray()
        if isinstance(result, dict):
            result, again = ({k: v for k, v in r.items() if k != "seconds"} for r in (result, again))
            assert result == again, f"{result} and {again}"
        elif isinstance(result, tuple):
            for a, b in zip(result, again, strict=True):
                close(a, b, 1e-4 * (1 + np.abs(f8(b))))
        elif scipy.sparse.issparse(result):
            assert result.shape == again.shape and (result != again).nnz == 0
        else:
            close(result, again, 1e-4 * (1 + np.abs(f8(again))))

    return check


def adds_up(result, *_, **__):
    """The parts of explanations are as much as the scores."""
    for one in result if isinstance(result, list) else [result]:
        parts = [value for _, value in one.contributions] + [one.other, *one.terms.values()]
        close(sum(parts), one.score, EPS * (1 + sum(map(abs, parts))))
