"""Training of a sparse mixture of sparse experts (method 3): noise, loss, gradients, penalties, pruning."""

import itertools

import numpy as np

from ..core import rng
from .ds_softmax import slices
from .full_softmax import log_softmax


def add_noise(seed, step, scale, logits):
    """logits + scale times nearly normal random numbers with mean 0 and variance 1 (see `core.rng.bell`)."""
    words = rng.random_words(seed, rng.NOISE, step, np.arange(logits.size, dtype=np.uint64))
    return logits.astype(np.float64) + scale * rng.bell(*words).reshape(logits.shape)


def cross_entropy(scores, values, labels, groups, experts, n_classes, scale):
    """The loss per row (B,), and the gradients of ``scale sum(loss)`` for the gate's values (B,) and the scores (flat).

    ``sum_labels(log(sum_c exp(g s_c) + n_absent) - g s_label)``: the n_absent classes that the expert does not have
    get logit 0, as pruned rows of zeros would.
    """
    loss, dvalues, dscores = np.zeros(len(values)), np.zeros(len(values)), np.zeros(scores.size)
    for position, (b, k) in enumerate(zip(groups.order, groups.experts, strict=True)):
        span, classes = slice(*groups.offsets[position : position + 2]), experts.ids[slice(*experts.starts[k : k + 2])]
        s, wanted = scores[span].astype(np.float64), labels.indices[slice(*labels.indptr[b : b + 2])]
        hot, absent = np.isin(classes, wanted), n_classes - len(classes)
        largest = s.max(initial=-np.inf)
        largest = largest if len(s) else 0.0
        # logits relative to that of the largest score: a common offset cancels before anything is rounded
        z = np.append(values[b] * (s - largest), [-values[b] * largest] * absent)
        log_p = log_softmax(z[None])[0]
        n_missing = len(wanted) - hot.sum()
        loss[b] = -log_p[: len(s)][hot].sum() - (n_missing * log_p[-1] if n_missing else 0)
        dz = (len(wanted) * np.exp(log_p[: len(s)]) - hot) * scale
        dabsent = (n_missing - len(wanted) * np.exp(log_p[len(s) :]).sum()) * scale
        dvalues[b], dscores[span] = dz @ (s - largest) + dabsent * largest, values[b] * dz
    return loss, dvalues, dscores


def gradient_of_rows(dscores, h, groups, experts):
    """The gradient of the experts' rows: for expert k, its matrix of dscores, transposed, times its rows of h."""
    dweights = np.zeros(experts.weights.shape)
    for batch, classes in slices(groups, experts):
        part = dscores[groups.offsets[batch.start] : groups.offsets[batch.stop]].astype(np.float64)
        dweights[classes] = part.reshape(batch.stop - batch.start, classes.stop - classes.start).T @ h[batch]
    return dweights


def balance(values, groups):
    """The load of each expert, (E,): its sum of gate values; and the gradient of its squared coefficient of variation.

    ``CV^2 = var / mean^2 = E sum(load^2) / sum(load)^2 - 1``; the gradient is with respect to the load.
    """
    n_experts = len(groups.starts) - 1
    load = np.bincount(groups.experts, values[groups.order].astype(np.float64), n_experts)
    total = load.sum()
    return load, 2 * n_experts * (load * total - (load**2).sum()) / total**3


def gate_backward(probabilities, chosen, dvalues, dload):
    """The gradient of the gate's logits (B, E), from that of the kept values (B,) and of the experts' loads (E,)."""
    rows = np.arange(len(chosen))
    kept = probabilities[rows, chosen].astype(np.float64)
    upstream = ((dvalues + dload[chosen]) * kept)[:, None]
    dlogits = -upstream * probabilities
    dlogits[rows, chosen] += upstream[:, 0]
    return dlogits


def class_sums(squares, by_class):
    """The sum of `squares` (R,) over the rows of each class, (L,)."""
    return np.array([squares[by_class.rows[a:b]].sum(dtype=np.float64) for a, b in itertools.pairwise(by_class.indptr)])


def update(gradient, ids, class_squares, penalties, rates, moments, weights, squares):
    """Adam on the loss and two group lassos: new weights, m, v, and the sum of squares of each new row.

    The penalty is ``class_lasso sum_r sqrt(mean(rows_r^2) + eps) + expert_lasso sum_c sqrt(mean_c + eps)``, where
    mean_c is the mean square of class c over all experts; an expert without the class counts as zeros.
    """
    class_lasso, expert_lasso, n_experts, epsilon = (float(p) for p in penalties)
    weights, width = weights.astype(np.float64), weights.shape[1]
    own = class_lasso / (width * np.sqrt(squares / width + epsilon))
    shared = n_experts * width
    all_experts = expert_lasso / (shared * np.sqrt(class_squares / shared + epsilon))
    g = gradient + (own + all_experts[ids])[:, None] * weights
    m = rates.beta1 * moments.m.astype(np.float64) + (1 - np.float64(rates.beta1)) * g
    v = rates.beta2 * moments.v.astype(np.float64) + (1 - np.float64(rates.beta2)) * g**2
    weights = weights - rates.step_size * m / (np.sqrt(v) + rates.epsilon)
    return weights, m, v, (weights**2).sum(1)


def survivors(squares, by_class, least):
    """Which rows are kept, (R,) uint8: squares >= least, and the largest of each class (ties: the first)."""
    keep = (squares >= least).astype(np.uint8)
    for first, stop in itertools.pairwise(by_class.indptr):
        rows = by_class.rows[first:stop]
        if len(rows):
            keep[rows[squares[rows].argmax()]] = 1
    return keep
