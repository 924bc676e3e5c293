"""MIDX: the inverted multi-index over class embeddings, and sampling from it (arXiv 2501.08563)."""

import numpy as np

from ..core import rng
from .samplers import draw_words, invert


def assign(vectors, codewords, weights):
    """The nearest codeword of each vector (Euclidean; ties: the first), (n,), and the squared distance, (n,).

    Also per codeword: the weighted sum of its vectors (K, d) and the sum of their weights (K,).
    """
    difference = vectors[:, None].astype(np.float64) - codewords
    distance = (difference**2).sum(-1)
    codes = distance.argmin(1).astype(np.int32)
    share = (codes == np.arange(len(codewords))[:, None]) * (weights.astype(np.float64) if weights.size else 1.0)
    return codes, distance.min(1), share @ vectors, share.sum(1)


def cell_probabilities(r0, r1, index):
    """``P(k0, k1 | h) ~ W[k0, k1] exp(r0[k0] + r1[k1])``, (B, K, K), and log Z, (B,)."""
    logits = r0[:, :, None] + r1[:, None, :]
    with np.errstate(divide="ignore"):
        logits = logits + np.log(index.cell_weights.astype(np.float64))
    largest = logits.max((1, 2), keepdims=True)
    p = np.exp(logits - largest)
    total = p.sum((1, 2), keepdims=True)
    return p / total, (np.log(total) + largest)[:, 0, 0]


def _below(r):
    """The scores minus the largest of their row, float64: common offsets cancel exactly."""
    r = r.astype(np.float64)
    return r - r.max(axis=1, keepdims=True)


def log_prob(r0, r1, index, ids):
    """``log Q(i | h) = r0[k0(i)] + r1[k1(i)] + log pop(i) - log Z(h)`` of ids (B, M), in float64."""
    rows, codes = np.arange(len(r0))[:, None], index.codes[ids]
    r0, r1 = _below(r0), _below(r1)
    log_z = cell_probabilities(r0, r1, index)[1]
    log_popularity = index.log_popularity[ids] if index.log_popularity.size else 0
    return r0[rows, codes[..., 0]] + r1[rows, codes[..., 1]] + log_popularity - log_z[:, None]


def sample(r0, r1, index, seed, step, n_samples):
    """Draw ids (B, M): k0, then k1 given k0, then the class in the cell; returns them and their log-probabilities.

    A third result, (B, M), is the distance (0..1) of a uniform number to one that would give another id: near 0,
    rounding decides.
    """
    shape = len(r0), n_samples
    words = draw_words(seed, step, shape)
    p = cell_probabilities(_below(r0), _below(r1), index)[0]
    k0, near0 = invert(p.sum(2)[:, None], rng.unit(words[0]))
    rows = np.arange(shape[0])[:, None]
    chosen = p[rows, k0]
    k1, near1 = invert(chosen / chosen.sum(-1, keepdims=True), rng.unit(words[1]))
    cell = k0 * p.shape[2] + k1
    first, n = index.indptr[cell], index.indptr[cell + 1] - index.indptr[cell]
    column = first + rng.below(words[2], n.astype(np.uint64)).astype(np.int64)
    if len(index.records):
        threshold, _, other, _ = np.moveaxis(index.records[column], -1, 0)
        column = np.where(words[3] < threshold, column, other)
    ids = index.members[column].astype(np.int32)
    return ids, log_prob(r0, r1, index, ids), np.minimum(near0, near1)
