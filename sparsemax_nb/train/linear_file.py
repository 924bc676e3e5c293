"""The arrays of a linear layer and its label co-occurrences in a file; what is read is checked like an argument."""

import numpy as np
import scipy.sparse

from ..co_occurrence import CoOccurrence
from ..core import check
from ..core.connections import FeatureLists
from ..core.device import to_numpy
from ..cpu.panels import padded
from ..cpu.simd import LANES
from ..linear import SparseLinear


def layer_from_arrays(arrays, n_features, n_labels, device):
    """The layer of `LinearModel.parameters` read from a file; TypeError or ValueError for invalid arrays."""
    lists = FeatureLists(*(arrays[f"linear.{name}"] for name in FeatureLists._fields))
    return SparseLinear._from_lists(checked_lists(lists, n_features, n_labels), device)


def pairs_from_arrays(arrays, n_labels, device):
    """The `CoOccurrence` of arrays read from a file; TypeError or ValueError for invalid arrays."""
    indptr = check.array("co_occurrence.indptr", arrays["co_occurrence.indptr"], np.int64, (n_labels + 1,))
    ids = check.array("co_occurrence.ids", arrays["co_occurrence.ids"], np.int32, ("n",))
    counts = check.array("co_occurrence.counts", arrays["co_occurrence.counts"], np.int32, ids.shape)
    label_counts = check.array(
        "co_occurrence.label_counts", arrays["co_occurrence.label_counts"], np.int32, (n_labels,)
    )
    n_rows = int(check.array("co_occurrence.n_rows", arrays["co_occurrence.n_rows"], np.int64, (1,))[0])
    check.in_range("co_occurrence.ids", ids, n_labels)
    check.integer("co_occurrence.n_rows", n_rows, 0, 2**31 - 1)
    check.in_range("co_occurrence.label_counts", label_counts, n_rows + 1)
    first = list_of_each_id("co_occurrence.indptr", indptr, "co_occurrence.ids", ids, n_labels, "the list of a label")
    if (ids <= first).any():
        raise ValueError("co_occurrence.ids must be larger than the label of their list")
    if (counts < 1).any() or (counts > np.minimum(label_counts[first], label_counts[ids])).any():
        raise ValueError("co_occurrence.counts must lie between 1 and the points of each of the two labels")
    pairs = scipy.sparse.csr_matrix((counts, ids, indptr), shape=(n_labels, n_labels))
    return CoOccurrence._from_counts(pairs, label_counts, n_rows, device)


def pairs_to_arrays(pairs):
    """The arrays that `pairs_from_arrays` reads, NumPy, by name."""
    arrays = {name: to_numpy(getattr(pairs.arrays, name)) for name in ("indptr", "ids", "counts", "label_counts")}
    return {
        f"co_occurrence.{name}": array
        for name, array in (arrays | {"n_rows": np.array([pairs.n_rows], np.int64)}).items()
    }


def list_of_each_id(indptr_name, indptr, ids_name, ids, n, list_name):
    """The list of each id, (len(ids),) int64; ValueError unless indptr rises and the ids ascend within each list."""
    if indptr[0] != 0 or indptr[-1] != len(ids) or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(f"{indptr_name} must rise from 0 to {len(ids)}")
    list_of_each = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    keys = list_of_each * n + ids
    if (keys[1:] <= keys[:-1]).any():
        raise ValueError(f"{ids_name} must ascend within {list_name}")
    return list_of_each


def checked_lists(lists, n_features, n_labels):
    """`FeatureLists` read from a file; TypeError or ValueError unless all indices are inside the arrays."""
    indptr = check.array("linear.indptr", lists.indptr, np.int64, (n_features + 1,))
    labels = check.array("linear.labels", lists.labels, np.int32, ("n",))
    values = check.array("linear.values", lists.values, np.float32, ("m",))
    dense = check.array("linear.dense", lists.dense, np.int64, (n_features,))
    bias = check.array("linear.bias", lists.bias, np.float32, (n_labels,))
    check.in_range("linear.labels", labels, n_labels)
    list_of_each_id("linear.indptr", indptr, "linear.labels", labels, n_labels, "a feature")
    first, width = padded(len(labels), LANES), padded(n_labels, LANES)
    starts = dense[dense >= 0]
    if np.diff(indptr)[dense >= 0].any():
        raise ValueError("linear.indptr must give empty lists to the features that are connected to all labels")
    if len(values) != first + len(starts) * width or not np.array_equal(starts, first + width * np.arange(len(starts))):
        raise ValueError("linear.values and linear.dense must agree")
    check.finite("linear.values", values)
    check.finite("linear.bias", bias)
    if values[first:].reshape(-1, width)[:, n_labels:].any() or values[len(labels) : first].any():
        raise ValueError("linear.values must be zero in the padding")
    return FeatureLists(indptr, labels, values, dense, bias)
