"""Baselines in a few lines of scikit-learn and SciPy: centroids, votes of neighbors, logistic regressions."""

import time

import numpy as np
import scipy.sparse

from sparsemax_nb import nearest_neighbors

from . import Peer, answered

#: Rows whose scores are computed at the same time.
ROWS_PER_CHUNK = 256


def _best(scores, k):
    part = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, part, 1), axis=1, kind="stable")
    return np.take_along_axis(part, order, 1).astype(np.int32)


def nearest_centroids(x, y, test_x, *, k=5, n_single=1000):
    """Predict the labels whose mean features have the largest cosine with the row; returns ids and measurements."""
    start = time.perf_counter()
    centroids = (y.T @ x).tocsr()
    norms = np.sqrt(np.asarray(centroids.multiply(centroids).sum(1)).reshape(-1))
    centroids = scipy.sparse.diags(1 / np.maximum(norms, 1e-12)).astype(np.float32) @ centroids
    transposed = centroids.T.tocsr()
    seconds = time.perf_counter() - start

    def predict(rows):
        parts = [
            _best((rows[i : i + ROWS_PER_CHUNK] @ transposed).toarray(), k)
            for i in range(0, rows.shape[0], ROWS_PER_CHUNK)
        ]
        return np.concatenate(parts)

    size = transposed.data.nbytes + transposed.indices.nbytes + transposed.indptr.nbytes
    ids, times = answered(predict, test_x, n_single)
    return ids, {"train_seconds": seconds, "model_bytes": size} | times


def brute_neighbors(points, h, k):
    """``NearestNeighbors(algorithm="brute")``; of points with length 1, the nearest have the largest products."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points)
    return Peer(lambda: model.kneighbors(h, return_distance=False), "brute, Euclidean distances")


def nearest_votes(h, y, test_h, *, neighbors, power, k=5, n_single=1000):
    """Predict the labels of the nearest rows of h, each with the sum of their cosine similarities to a power.

    Nothing is trained. Returns ids (n, k), padded with -1, and measurements.
    """
    start = time.perf_counter()
    points, rows = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12) for a in (h, test_h))
    seconds, y = time.perf_counter() - start, y.astype(np.float32)

    def predict(rows):
        near, found = nearest_neighbors(rows.reshape(-1, points.shape[1]), points, min(neighbors, len(points)))
        weights, ends = np.maximum(near, 0).ravel() ** power, np.arange(0, found.size + 1, found.shape[1])
        votes = scipy.sparse.csr_matrix((weights, found.ravel(), ends), (len(near), len(points)))
        votes.eliminate_zeros()
        scores = votes @ y
        ids = np.full((len(near), k), -1, np.int32)
        for row, first, last in zip(ids, scores.indptr, scores.indptr[1:], strict=False):
            labels = scores.indices[first:last]
            labels = labels[np.lexsort((labels, -scores.data[first:last]))][:k]
            row[: len(labels)] = labels
        return ids

    size = points.nbytes + y.data.nbytes + y.indices.nbytes + y.indptr.nbytes
    ids, times = answered(predict, rows, n_single)
    return ids, {"train_seconds": seconds, "model_bytes": size} | times


def one_vs_rest(x, y, test_x, *, c, threads, k=5, n_single=1000):
    """One logistic regression per label (LIBLINEAR); returns ids and measurements."""
    import joblib
    from joblib.externals.loky import get_reusable_executor
    from sklearn.linear_model import LogisticRegression

    def fit(label):
        own = y[:, label].toarray().reshape(-1) > 0
        if not own.any() or own.all():
            return np.zeros(x.shape[1], np.float32), np.float32(1e9 if own.all() and len(own) else -1e9)
        model = LogisticRegression(C=c, solver="liblinear").fit(x, own)
        return model.coef_[0].astype(np.float32), np.float32(model.intercept_[0])

    start = time.perf_counter()
    found = joblib.Parallel(n_jobs=threads)(joblib.delayed(fit)(label) for label in range(y.shape[1]))
    get_reusable_executor().shutdown(wait=True)  # so that the CPU time of the worker processes is counted
    weights, bias = np.stack([w for w, _ in found], 1), np.array([b for _, b in found])
    seconds = time.perf_counter() - start

    def predict(rows):
        return np.concatenate(
            [_best(rows[i : i + ROWS_PER_CHUNK] @ weights + bias, k) for i in range(0, rows.shape[0], ROWS_PER_CHUNK)]
        )

    ids, times = answered(predict, test_x, n_single)
    return ids, {"train_seconds": seconds, "model_bytes": weights.nbytes + bias.nbytes} | times
