"""Training a sparse mixture of sparse experts (method 3), the definition: noise, loss, gradients, penalties, pruning."""

import itertools

import numpy as np

from ..core import rng
from .ds_softmax import slices
from .full_softmax import log_softmax


def add_noise(seed, step, scale, logits):
    """logits + scale times random numbers of mean 0, variance 1, which are nearly normal (see `core.rng.bell`)."""
    words = rng.random_words(seed, rng.NOISE, step, np.arange(logits.size, dtype=np.uint64))
    return logits.astype(np.float64) + scale * rng.bell(*words).reshape(logits.shape)


def cross_entropy(scores, values, labels, groups, experts, n_classes, scale):
    """Loss of each row (B,), and the gradients of ``scale sum(loss)`` by the gate's values (B,) and the scores (flat).

    ``sum_labels(log(sum_c exp(g s_c) + n_absent) - g s_label)``: a class that the expert does not hold has logit 0, as
    a pruned row of zeros would have; there are n_absent of them.
    """
    loss, dvalues, dscores = np.zeros(len(values)), np.zeros(len(values)), np.zeros(scores.size)
    for place, (b, k) in enumerate(zip(groups.order, groups.experts, strict=True)):
        where, held = slice(*groups.offsets[place : place + 2]), experts.ids[slice(*experts.starts[k : k + 2])]
        s, wanted = scores[where].astype(np.float64), labels.indices[slice(*labels.indptr[b : b + 2])]
        hot, largest, absent = np.isin(held, wanted), s.max(initial=-np.inf), n_classes - len(held)
        largest = largest if len(s) else 0.0
        # logits relative to the largest score's: what the scores have in common cancels before anything is rounded
        z = np.append(values[b] * (s - largest), [-values[b] * largest] * absent)
        log_p = log_softmax(z[None])[0]
        n_missing = len(wanted) - hot.sum()
        loss[b] = -log_p[: len(s)][hot].sum() - (n_missing * log_p[-1] if n_missing else 0)
        dz = (len(wanted) * np.exp(log_p[: len(s)]) - hot) * scale
        pull = (n_missing - len(wanted) * np.exp(log_p[len(s) :]).sum()) * scale
        dvalues[b], dscores[where] = dz @ (s - largest) + pull * largest, values[b] * dz
    return loss, dvalues, dscores


def gradient_of_rows(dscores, h, groups, experts):
    """The gradient by the experts' rows: of expert k, its matrix of dscores, transposed, times its rows of h."""
    dweights = np.zeros(experts.weights.shape)
    for batch, classes in slices(groups, experts):
        of_expert = dscores[groups.offsets[batch.start] : groups.offsets[batch.stop]].astype(np.float64)
        dweights[classes] = of_expert.reshape(batch.stop - batch.start, classes.stop - classes.start).T @ h[batch]
    return dweights


def balance(values, groups):
    """How much gate value each expert gets, (E,), and the gradient by it of their squared coefficient of variation.

    ``CV^2 = var / mean^2 = E sum(load^2) / sum(load)^2 - 1``.
    """
    n_experts = len(groups.starts) - 1
    load = np.bincount(groups.experts, values[groups.order].astype(np.float64), n_experts)
    total = load.sum()
    return load, 2 * n_experts * (load * total - (load**2).sum()) / total**3


def gate_backward(probabilities, chosen, dvalues, dload):
    """The gradient by the gate's logits (B, E), from that by the kept values (B,) and by the experts' loads (E,)."""
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

    Added to the loss is ``class_lasso sum_r sqrt(mean(rows_r^2) + eps) + expert_lasso sum_c sqrt(mean_c + eps)``,
    mean_c being the mean square over all experts of class c, those that do not hold it included.
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
    """Which rows are kept, (R,) uint8: those with squares >= least, and of each class the largest, the first of equal ones."""
    keep = (squares >= least).astype(np.uint8)
    for first, stop in itertools.pairwise(by_class.indptr):
        rows = by_class.rows[first:stop]
        if len(rows):
            keep[rows[squares[rows].argmax()]] = 1
    return keep
