"""A short string that tells whether two runs saw the same data."""

import hashlib

import numpy as np

from ..core import check
from .readers import check_csr

CHUNK = 2**24  # bytes that are converted and hashed in one go


def fingerprint(features, labels):
    """Hash of the shapes, dtypes and contents of features and labels: BLAKE2b of 16 bytes.

    Equal data gives equal strings, whatever holds it: an array in memory or in a file (`numpy.memmap`), C-contiguous or
    not, int32 or int64 indices. Any other shape, dtype, value or label gives another string. A CSR matrix is
    taken as it is stored: ids in another order, stored zeros and repeated entries count as differences.
    Large arrays are read in chunks of about 16 MiB (at least one row), and never copied as a whole.

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
        Neither CSR nor an array of numbers; long doubles, which differ from machine to machine.

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
            index = np.int32 if max(*value.shape, value.nnz) < 2**31 else np.int64  # whatever the matrix itself has
            digest.update(f"{name} csr {tuple(map(int, value.shape))};".encode())
            _update(digest, f"{name}.indptr", value.indptr, index)
            _update(digest, f"{name}.indices", value.indices[: value.nnz], index)
            _update(digest, f"{name}.data", value.data[: value.nnz])
    return digest.hexdigest()


def _update(digest, name, array, dtype=None):
    """Hash name, shape, dtype and the items of an array, row-major, little-endian, converted to `dtype` where given."""
    dtype = np.dtype(dtype or array.dtype)
    if dtype.kind not in "biufc" or dtype.char in "gG":  # a long double is another one on every machine
        raise TypeError(f"{name} must hold numbers, got {dtype}; use {name}.astype(np.float32)")
    dtype = dtype.newbyteorder("<")
    digest.update(f"{name} {tuple(map(int, array.shape))} {dtype.str};".encode())
    array = np.atleast_1d(array)
    row_bytes = max(1, dtype.itemsize * int(np.prod(array.shape[1:])))
    step = max(1, CHUNK // row_bytes)
    for start in range(0, len(array), step):
        digest.update(np.ascontiguousarray(array[start : start + step], dtype).data)
