"""SVD-softmax, D-softmax, and sampling with locality-sensitive hashing (LSH)."""

import numpy as np

from ..core import rng
from .full_softmax import most_probable
from .samplers import draw_words


def svd_top_k(h, layer, n_candidates, k):
    """The k largest probabilities per row and their classes: a preview scores all classes, the best get exact scores.

    layer = (coordinates (L, d), axes (d, d), bias (L,), width), where ``weights = coordinates @ axes.T``; the preview
    uses the first `width` coordinates.
    """
    coordinates, axes, bias, width = layer
    q = h.astype(np.float64) @ axes
    scores = q[:, :width] @ coordinates[:, :width].T + bias
    candidates = np.argsort(-scores, axis=1, kind="stable")[:, :n_candidates]
    exact = q @ coordinates.T + bias
    np.put_along_axis(scores, candidates, np.take_along_axis(exact, candidates, 1), 1)
    return most_probable(scores, k)


def d_top_k(h, layer, k):
    """The k largest probabilities per row and their classes.

    layer: for each bin its classes (n,), their coordinates (n, r) on axes (d, r), and their bias (n,).
    """
    scores = np.empty((len(h), sum(len(classes) for classes, *_ in layer)))
    for classes, coordinates, axes, bias in layer:
        scores[:, classes] = h.astype(np.float64) @ axes @ coordinates.T + bias
    return most_probable(scores, k)


def hash_codes(vectors, planes):
    """``code = sum_j 2^j [plane_j . v > 0]`` in each of T tables: (n, d), (T, n_bits, d) -> (n, T) int32."""
    bits = np.einsum("nd,tjd->ntj", vectors, planes, dtype=np.float64) > 0
    return (bits << np.arange(planes.shape[1])).sum(-1).astype(np.int32)


def lsh_log_prob(codes, tables, uniform, ids):
    """``log(u / L + (1 - u) / T sum_t [same bucket] / |bucket|)`` of ids (B, M); an empty bucket counts as uniform."""
    n_tables, n_classes = tables.indptr.shape[0], tables.codes.shape[0]
    t = np.arange(n_tables)
    size = tables.indptr[t, codes + 1] - tables.indptr[t, codes]
    same = tables.codes[ids] == codes[:, None]
    share = np.where(size[:, None] > 0, same / np.maximum(size, 1)[:, None], 1 / n_classes).mean(-1)
    return np.log(uniform / n_classes + (1 - uniform) * share)


def lsh_sample(codes, tables, uniform, seed, step, n_samples):
    """Draw ids (B, M) for rows of h with hash codes (B, T); returns them and their log-probabilities."""
    words = draw_words(seed, step, (len(codes), n_samples))
    n_tables, n_classes = tables.indptr.shape[0], tables.codes.shape[0]
    t = rng.below(words[1], np.uint64(n_tables)).astype(np.int64)
    code = codes[np.arange(len(codes))[:, None], t]
    first, size = tables.indptr[t, code], tables.indptr[t, code + 1] - tables.indptr[t, code]
    from_table = (rng.unit(words[0]) >= np.float32(uniform)) & (size > 0)
    n = np.where(from_table, size, n_classes).astype(np.uint64)
    position = rng.below(words[2], n).astype(np.int64)
    ids = np.where(from_table, tables.members[t, np.where(from_table, first + position, 0)], position).astype(np.int32)
    return ids, lsh_log_prob(codes, tables, uniform, ids)
