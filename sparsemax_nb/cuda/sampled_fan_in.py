"""Some labels of a fixed fan-in layer for each row, on CUDA: the scores and gradients of a sampled softmax."""

import numpy as np

from ..core.device import asarray, cuda, cuda_jit
from ..core.sparse import row_of_each_entry
from . import launch

ZERO = np.float32(0)


@cuda_jit
def scores_kernel(h, layer, rows, ids, out):
    """One thread owns one entry: the score of label ids[e] for row rows[e] of h.

    Grid: entries on x. Reads ids, rows and writes out (n,), coalesced; walks down the label's indices and values (L,
    K), sector by sector, and gathers from its row of h (B, H). No shared memory. No atomics.
    """
    e = cuda.grid(1)
    if e < out.size:
        label, row = ids[e], rows[e]
        total = layer.bias[label]
        for k in range(layer.indices.shape[1]):
            total += layer.values[label, k] * h[row, layer.indices[label, k]]
        out[e] = total


def scores(h, layer, indptr, ids, out, *, block=launch.BLOCK):
    """The score of label ``ids[e]`` for the row of h that entry e belongs to, (n,).

    The entries of row r of the CSR structure belong to row r mod B of h.
    """
    rows = row_of_each_entry(indptr, ids.shape[0]) % max(h.shape[0], 1)
    scores_kernel[launch.flat(out.size, block)](h, layer, asarray(rows, "cuda", np.int32), ids, out)


@cuda_jit
def gradient_of_rows_kernel(layer, entries, dh):
    """One block owns one row of dh (B, H), which begins as zeros; its threads share the connections of a label.

    Grid: rows on x. Processes the row's entries one after the other, with a barrier between them, because two labels
    may have an input in common; the inputs of one label are distinct. Reads values (L, K) coalesced. No shared memory.
    No atomics.
    """
    b = cuda.blockIdx.x
    for r in range(b, entries.indptr.size - 1, dh.shape[0]):
        for e in range(entries.indptr[r], entries.indptr[r + 1]):
            label, g = entries.ids[e], entries.weights[e]
            for k in range(cuda.threadIdx.x, layer.indices.shape[1], cuda.blockDim.x):
                dh[b, layer.indices[label, k]] += layer.values[label, k] * g
            cuda.syncthreads()


@cuda_jit
def gradient_of_labels_kernel(h, layer, columns, dvalues, dbias):
    """One block owns one label that occurs; its threads share the connections, and one more the bias.

    Grid: labels that occur on x. Sums over the label's entries in order, in a register: writes dvalues (L, K) coalesced
    and dbias (L,) of these labels. Gathers from rows of h (B, H). No shared memory. No atomics.
    """
    i, fan_in = cuda.blockIdx.x, layer.indices.shape[1]
    label = columns.ids[i]
    for k in range(cuda.threadIdx.x, fan_in + 1, cuda.blockDim.x):
        total = ZERO
        for j in range(columns.indptr[i], columns.indptr[i + 1]):
            if k < fan_in:
                total += columns.weights[j] * h[columns.rows[j], layer.indices[label, k]]
            else:
                total += columns.weights[j]
        if k < fan_in:
            dvalues[label, k] = total
        else:
            dbias[label] = total


def backward(h, layer, entries, columns, dh, dvalues, dbias, *, block=launch.WARP):
    """Gradients of ``sum(entries.weights * scores)``: dh (overwritten), dvalues and dbias of the labels that occur.

    `columns` are the same entries by label, with rows of h.
    """
    dh[...] = 0
    if h.shape[0]:
        gradient_of_rows_kernel[h.shape[0], block](layer, entries, dh)
    if columns.ids.shape[0]:
        gradient_of_labels_kernel[columns.ids.shape[0], block](h, layer, columns, dvalues, dbias)
