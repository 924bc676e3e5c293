"""The k best of each row on CUDA: every thread keeps a list of its own, then the lists of a row are merged."""

import numpy as np

from ..core import backend, formulas
from ..core.backend import cuda
from . import launch

_f = backend.cuda_formulas(formulas)
enters, insert = _f.enters, _f.insert
WORST = np.float32(-np.inf)


@backend.cuda_device
def clear(scores, ids):
    """Empty a list."""
    for i in range(scores.size):
        scores[i] = WORST
        ids[i] = -1


@backend.cuda_jit
def lists_kernel(scores, list_scores, list_ids):
    """One thread keeps the best k of every n_lists-th column of one row: x is the list, so a warp reads whole lines.

    Grid: lists on x, rows stride over y. Reads scores (B, L); its list in list_scores, list_ids (B, k, n_lists) is
    touched only where a score beats the k-th best so far, which a register holds. No shared memory, no atomics.
    """
    part = cuda.grid(1)
    n_rows, n_columns = scores.shape
    n_lists = list_scores.shape[2]
    if part < n_lists:
        for row in range(cuda.blockIdx.y, n_rows, cuda.gridDim.y):
            best, ids = list_scores[row, :, part], list_ids[row, :, part]
            clear(best, ids)
            worst = WORST
            for i in range(part, n_columns, n_lists):
                score = scores[row, i]
                if not score <= worst and enters(score, i, best, ids):
                    insert(best, ids, score, i)
                    worst = best[best.size - 1]


@backend.cuda_jit
def merge_kernel(list_scores, list_ids, top_scores, top_ids):
    """One thread merges the lists of one row. Grid: rows on x. No shared memory, no atomics.

    Reads list_scores, list_ids (B, k, n_lists), each list in its order; writes top_scores, top_ids (B, k).
    """
    row = cuda.grid(1)
    n_rows, k, n_lists = list_scores.shape
    if row < n_rows:
        best, ids = top_scores[row], top_ids[row]
        clear(best, ids)
        for part in range(n_lists):
            for i in range(k):
                score, column = list_scores[row, i, part], list_ids[row, i, part]
                if enters(score, column, best, ids):
                    insert(best, ids, score, column)


def merge(list_scores, list_ids, top_scores, top_ids, *, block=launch.BLOCK):
    """The best of all lists of each row: (B, k, n_lists) -> (B, k)."""
    merge_kernel[launch.flat(top_scores.shape[0], block)](list_scores, list_ids, top_scores, top_ids)


def top_k(scores, top_scores, top_ids, *, block=launch.BLOCK):
    """The k largest scores of each row (B, L) and their columns; k is the width of the outputs."""
    n_rows, k = top_scores.shape
    n_lists, grid = launch.lists_per_row(scores.shape[1], n_rows, k, block)
    list_scores = backend.empty((n_rows, k, n_lists), np.float32, "cuda")
    list_ids = backend.empty((n_rows, k, n_lists), np.int32, "cuda")
    lists_kernel[grid, block](scores, list_scores, list_ids)
    merge(list_scores, list_ids, top_scores, top_ids, block=block)
