"""A fingerprint of data, to check that two runs use the same."""

import hashlib

import numpy as np

from ..core import check
from .readers import check_csr

#: Bytes that are converted and hashed at once: bounds the temporary memory.
BYTES_PER_CHUNK = 2**24


def fingerprint(features, labels):
    """BLAKE2b hash (16 bytes) of the shapes, dtypes and contents of features and labels.

    Equal data give equal strings, whether they are in memory or in a file (`numpy.memmap`), C-contiguous or not, with
    int32 or int64 indices. Any difference in shape, dtype, values or labels gives another string. A CSR matrix is
    hashed as it is stored: another order of the ids, stored zeros and duplicate entries are differences. Large arrays
    are read in chunks of about 16 MiB (at least one row) and are never copied as a whole.

    Parameters
    ----------
    features, labels : SciPy CSR matrix or ndarray (n, ...)
        Of any shape and numeric dtype.

    Returns
    -------
    str
        32 hexadecimal digits, the same on every machine.

    Raises
    ------
    TypeError
        Neither CSR nor an array of numbers; long doubles, whose format depends on the machine.

    Notes
    -----
    Source: RFC 7693 (BLAKE2).

    Examples
    --------
    >>> import scipy.sparse
    >>> labels = scipy.sparse.csr_matrix([[0, 1], [1, 1]], dtype=np.float32)
    >>> fingerprint(np.eye(2, dtype=np.float32), labels)
    'f93f515d11ec1cc6d6fbaffba425e959'
    >>> fingerprint(np.eye(2, dtype=np.float32), labels[::-1]) == fingerprint(np.eye(2, dtype=np.float32), labels)
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in (("features", features), ("labels", labels)):
        if isinstance(value, np.ndarray):
            check.same_device(**{name: value})
            _update(digest, name, value)
        else:
            check_csr(name, value)
            index = (
                np.int32 if max(*value.shape, value.nnz) < 2**31 else np.int64
            )  # independent of the dtype in the matrix
            digest.update(f"{name} csr {tuple(map(int, value.shape))};".encode())
            _update(digest, f"{name}.indptr", value.indptr, index)
            _update(digest, f"{name}.indices", value.indices[: value.nnz], index)
            _update(digest, f"{name}.data", value.data[: value.nnz])
    return digest.hexdigest()


def _update(digest, name, array, dtype=None):
    """Hash name, shape, dtype and elements of an array: row-major, little-endian, converted to `dtype` if given."""
    dtype = np.dtype(dtype or array.dtype)
    if dtype.kind not in "biufc" or dtype.char in "gG":  # the format of long doubles depends on the machine
        raise TypeError(f"{name} must contain numbers, got {dtype}; use {name}.astype(np.float32)")
    dtype = dtype.newbyteorder("<")
    digest.update(f"{name} {tuple(map(int, array.shape))} {dtype.str};".encode())
    array = np.atleast_1d(array)
    row_bytes = max(1, dtype.itemsize * int(np.prod(array.shape[1:])))
    step = max(1, BYTES_PER_CHUNK // row_bytes)
    for start in range(0, len(array), step):
        digest.update(np.ascontiguousarray(array[start : start + step], dtype).data)
