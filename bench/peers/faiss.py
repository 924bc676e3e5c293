"""FAISS: maximum inner product search with a flat index, an inverted file, and a graph."""

import numba
import numpy as np

from . import Unavailable


def _faiss():
    try:
        import faiss
    except ImportError:
        raise Unavailable("FAISS is not installed (pip install faiss-cpu)") from None
    faiss.omp_set_num_threads(numba.get_num_threads())
    return faiss


def _answers(index):
    return lambda h, k: index.search(h, k)[1]


def flat(weights):
    """Exhaustive search; exact."""
    index = _faiss().IndexFlatIP(weights.shape[1])
    index.add(weights)
    return _answers(index)


def inverted_file(weights, n_probed):
    """About 4 sqrt(L) lists of vectors, by k-means; the lists of the `n_probed` nearest centroids are searched.

    An additional coordinate gives all vectors the same length. Then the nearest vector has the largest inner product.
    """
    faiss, squares = _faiss(), (weights**2).sum(1)
    extended = np.column_stack([weights, np.sqrt(squares.max() - squares)])
    index = faiss.index_factory(extended.shape[1], f"IVF{int(4 * np.sqrt(len(weights)))},Flat", faiss.METRIC_L2)
    index.train(extended)
    index.add(extended)
    index.nprobe = n_probed
    return lambda h, k: index.search(np.pad(h, ((0, 0), (0, 1))), k)[1]


def graph(weights, ef):
    """A hierarchical graph (HNSW): 32 neighbours, 200 candidates during construction, `ef` candidates during search."""
    faiss = _faiss()
    index = faiss.IndexHNSWFlat(weights.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(weights)
    index.hnsw.efSearch = ef
    return _answers(index)
