"""Nearest neighbors of many points among each other: exact, or for large sets within clusters."""

import math

import numpy as np

from ..core.device import asarray, backend_of, device_of, empty, module_of, product, to_numpy
from ..data.batches import shuffled
from ..midx import k_means
from ..neighbor_kernel import MAX_ELEMENTS, nearest_checked
from .progress import Progress

#: Rows that are searched between two updates of the progress bar.
ROWS_PER_BLOCK = 1024
#: Sets of more points are clustered: the products of all pairs take minutes.
MAX_EXACT = 150_000
#: Nearest clusters in which a point is searched. There are about as many clusters as points in each.
PROBES = 32
#: Points per cluster, and passes of k-means, that decide where the clusters are.
SAMPLES_PER_CLUSTER, K_MEANS_PASSES = 64, 5


def nearest_points(points, k, seed, progress):
    """Similarities (N, k) and ids (N, k) int32 of the nearest neighbors of points (N, d) of length 1 or 0.

    Up to 150,000 points they are exact. Of more points, only those in the 32 clusters with the nearest centers are
    compared; fewer than k are padded with the id -1 and the similarity -infinity.
    """
    n, device = points.shape[0], device_of(points)
    similarities, ids = empty((n, k), np.float32, device), empty((n, k), np.int32, device)
    with Progress(n, 0, progress and n > ROWS_PER_BLOCK, unit="neighbor search") as bar:
        if n > MAX_EXACT:
            similarities[...], ids[...] = -np.inf, -1
            _search_clusters(points, seed, similarities, ids, bar)
            return similarities, ids
        for first in range(0, n, ROWS_PER_BLOCK):
            rows = slice(first, min(first + ROWS_PER_BLOCK, n))
            similarities[rows], ids[rows] = nearest_checked(points[rows], points, k)
            bar.step(n=rows.stop - first)
    return similarities, ids


def _centers(points, n_clusters, seed):
    """Centers of clusters, (n_clusters, d) of length 1 or 0, by k-means over some of the points."""
    device, xp = device_of(points), module_of(device_of(points))
    order = shuffled(points.shape[0], seed, 0)
    centers = points[asarray(order[:n_clusters], device, np.int64)]
    sample = points[asarray(order[: SAMPLES_PER_CLUSTER * n_clusters], device, np.int64)]
    k_means(sample, centers, asarray(np.ones(len(sample), np.float32), device), K_MEANS_PASSES)
    lengths = xp.sqrt((centers * centers).sum(1, keepdims=True))
    return centers / xp.where(lengths > 0, lengths, np.float32(1))


def _search_clusters(points, seed, similarities, ids, bar):
    """Fill `similarities` and `ids`, cluster by cluster."""
    n, device, xp = points.shape[0], device_of(points), module_of(device_of(points))
    n_clusters, k = math.isqrt(n), ids.shape[1]
    centers = _centers(points, n_clusters, seed)
    probed = np.empty((n, PROBES), np.int32)
    for first in range(0, n, ROWS_PER_BLOCK):
        rows = slice(first, min(first + ROWS_PER_BLOCK, n))
        probed[rows] = to_numpy(nearest_checked(points[rows], centers, PROBES)[1])
    members, starts = _by_cluster(probed[:, :1], n_clusters)
    queries, query_starts = _by_cluster(probed, n_clusters)
    top_k = backend_of(device, "top_k").top_k
    for cluster in range(n_clusters):
        found = members[starts[cluster] : starts[cluster + 1]]
        asking = queries[query_starts[cluster] : query_starts[cluster + 1]]
        at_once = max(1, MAX_ELEMENTS // (k + len(found)))
        found = asarray(found, device, np.int64)
        inside = points[found].T
        for first in range(0, len(asking) if len(found) else 0, at_once):
            rows = asarray(asking[first : first + at_once], device, np.int64)
            scores = xp.concatenate([similarities[rows], product(points[rows], inside)], axis=1)
            best, columns = empty((len(rows), k), np.float32, device), empty((len(rows), k), np.int32, device)
            top_k(scores, best, columns)
            known = xp.take_along_axis(ids[rows], xp.minimum(xp.maximum(columns, 0), k - 1), axis=1)
            new = found[xp.maximum(columns - k, 0)].astype(np.int32)
            similarities[rows] = best
            ids[rows] = xp.where(columns < 0, np.int32(-1), xp.where(columns < k, known, new))
        bar.step(n=len(members[starts[cluster] : starts[cluster + 1]]))


def _by_cluster(clusters, n_clusters):
    """Rows of the matrix `clusters` (N, P) that have each cluster, one cluster after the other, and their starts."""
    order = np.argsort(clusters.reshape(-1), kind="stable")
    starts = np.searchsorted(clusters.reshape(-1)[order], np.arange(n_clusters + 1))
    return order // clusters.shape[1], starts
