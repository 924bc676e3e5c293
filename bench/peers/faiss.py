"""FAISS: search of the largest inner products, flat, by an inverted file, by a graph."""

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


def flat(rows):
    """Every vector is looked at; the answer is exact."""
    index = _faiss().IndexFlatIP(rows.shape[1])
    index.add(rows)
    return _answers(index)


def inverted_file(rows, n_probed):
    """Vectors in about 4 sqrt(L) lists by k-means; those of the nearest `n_probed` are looked at.

    One more coordinate makes all vectors equally long: then the nearest one has the largest product, and lists have
    meaning.
    """
    faiss, squares = _faiss(), (rows**2).sum(1)
    longer = np.column_stack([rows, np.sqrt(squares.max() - squares)])
    index = faiss.index_factory(longer.shape[1], f"IVF{int(4 * np.sqrt(len(rows)))},Flat", faiss.METRIC_L2)
    index.train(longer)
    index.add(longer)
    index.nprobe = n_probed
    return lambda h, k: index.search(np.pad(h, ((0, 0), (0, 1))), k)[1]


def graph(rows, ef):
    """A hierarchical graph (HNSW) of 32 neighbours, built with 200 candidates; `ef` candidates are kept in a search."""
    faiss = _faiss()
    index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(rows)
    index.hnsw.efSearch = ef
    return _answers(index)
