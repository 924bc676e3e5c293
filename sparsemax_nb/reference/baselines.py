"""SVD-softmax and D-softmax."""

import numpy as np

from .full_softmax import most_probable


def svd_top_k(h, layer, n_candidates, k):
    """The k largest probabilities of each row and their classes: a preview for all, exact scores for the best of it.

    layer = (coordinates (L, d), axes (d, d), bias (L,), width): ``w = coordinates @ axes.T``.
    """
    coordinates, axes, bias, width = layer
    q = h.astype(np.float64) @ axes
    scores = q[:, :width] @ coordinates[:, :width].T + bias
    candidates = np.argsort(-scores, axis=1, kind="stable")[:, :n_candidates]
    exact = q @ coordinates.T + bias
    np.put_along_axis(scores, candidates, np.take_along_axis(exact, candidates, 1), 1)
    return most_probable(scores, k)


def d_top_k(h, layer, k):
    """The k largest probabilities of each row and their classes.

    layer: for each bin its classes (n,), their coordinates (n, r) on axes (d, r), and their bias (n,).
    """
    scores = np.empty((len(h), sum(len(classes) for classes, *_ in layer)))
    for classes, coordinates, axes, bias in layer:
        scores[:, classes] = h.astype(np.float64) @ axes @ coordinates.T + bias
    return most_probable(scores, k)
