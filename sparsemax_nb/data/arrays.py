"""Array files: dense features in NumPy's .npy format, sparse matrices in SciPy's .npz format."""

import math
import os
import tokenize
import zipfile
import zlib

import numpy as np
import scipy.sparse

from ..core import files
from ..core.sparse import check_structure
from .readers import DataError, XCData

#: Exceptions of NumPy, SciPy and zipfile for files that are truncated, damaged or have another format.
READ_ERRORS = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
#: Maximum ratio of the size of data to their size after deflate: a larger array cannot be in a .npz file.
MAX_DEFLATE_RATIO = 1032


def read_arrays(features, labels):
    """Read features from a .npy or .npz file and labels from another .npz file.

    Parameters
    ----------
    features, labels : path

    Returns
    -------
    XCData
        The features as `read_dense` (.npy) or `read_csr` (.npz) returns them, and the labels as float32 ones.

    Raises
    ------
    DataError
        A malformed file, or files with different numbers of rows.
    """
    x = read_dense(features) if features.suffix == ".npy" else _check_float32(features, read_csr(features))
    y = read_csr(labels)
    if (y.data != 1).any():
        raise DataError(
            f"{labels}: a label matrix must store ones only, got {y.data[y.data != 1][0]}; "
            "use matrix.eliminate_zeros() and matrix.data[:] = 1"
        )
    if x.shape[0] != y.shape[0]:
        raise DataError(
            f"{features}: {x.shape[0]} rows, but {y.shape[0]} in {labels}; both files must have one row per point"
        )
    y.data = np.ones(y.nnz, np.float32)
    return XCData(x, y)


def read_dense(path):
    """Open a .npy file with a C-contiguous float32 matrix; rows are read from disk when they are used.

    Parameters
    ----------
    path : path

    Returns
    -------
    numpy.memmap
        (n, F) float32, read-only. The values are not checked: NaN and infinity are found when they are used.

    Raises
    ------
    DataError
        Not a .npy file; truncated; an array of another dtype, shape or layout.
    """
    x = open_npy(path)
    if x.dtype != np.float32:
        raise DataError(f"{path}: features must be float32, got {x.dtype}; save x.astype(np.float32)")
    if x.ndim != 2:
        raise DataError(f"{path}: features must be a matrix (rows, columns), got shape {x.shape}")
    if not x.flags.c_contiguous:
        raise DataError(f"{path}: features must be C-contiguous (row-major); save np.ascontiguousarray(x)")
    return x


def open_npy(path):
    """Open the array of a .npy file as a read-only `numpy.memmap`; DataError if it contains none."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    except READ_ERRORS as error:
        raise DataError(f"{path}: truncated, damaged or not a .npy file ({error})") from error


def read_csr(path):
    """Read a CSR matrix of numbers from a file written by `scipy.sparse.save_npz`.

    Parameters
    ----------
    path : path

    Returns
    -------
    scipy.sparse.csr_matrix
        Sorted indices; int32 indptr and indices if they fit; dtype as in the file.

    Raises
    ------
    DataError
        Not such a file; truncated; another sparse format; ids out of range; duplicate entries.
    """
    with open(path, "rb") as stream:
        try:
            _check_sizes(stream)
            matrix = scipy.sparse.load_npz(stream)  # refuses pickled objects
            if matrix.format == "csr":
                matrix = scipy.sparse.csr_matrix(matrix)
                check_structure(matrix)
                matrix.check_format(full_check=True)
        except (
            *READ_ERRORS,
            OSError,
        ) as error:  # OSError: a damaged file can make the reader seek to a negative position
            raise DataError(f"{path}: truncated, damaged or not from scipy.sparse.save_npz ({error})") from error
    if matrix.format != "csr":
        raise DataError(f"{path}: the matrix must be CSR, got {matrix.format.upper()}; save matrix.tocsr()")
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"{path}: the matrix must contain numbers, got {matrix.dtype}; save matrix.astype(np.float32)")
    matrix.sort_indices()
    if not matrix.has_canonical_format:
        raise DataError(f"{path}: the matrix must not have duplicate entries; use matrix.sum_duplicates()")
    matrix.prune()
    return matrix


def _check_sizes(stream):
    """ValueError if the size of an array in a .npz file contradicts its header; checked before memory is allocated."""
    max_bytes = MAX_DEFLATE_RATIO * stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream) as packed:
        for info in packed.infolist():
            with packed.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                nbytes = info.file_size - member.tell()
            if dtype.hasobject:
                continue  # a pickle, which NumPy refuses to load
            if nbytes != math.prod(shape) * dtype.itemsize or info.file_size > max_bytes:
                raise ValueError(
                    f"{info.filename} contains {nbytes} bytes, but its header says shape {shape} of {dtype}"
                )
    stream.seek(0)


def _check_float32(path, matrix):
    """Return `matrix`; DataError unless its values are finite float32."""
    if matrix.dtype != np.float32:
        raise DataError(f"{path}: features must be float32, got {matrix.dtype}; save matrix.astype(np.float32)")
    if not np.isfinite(matrix.data).all():
        raise DataError(f"{path}: features must be finite, got NaN or infinity")
    return matrix


def write_float16(path, shape, write):
    """Write a float16 .npy file that may be larger than memory; it replaces `path` atomically.

    Parameters
    ----------
    path : path
    shape : (int, int)
    write : callable
        ``write(array)`` fills the memory-mapped array.

    Returns
    -------
    numpy.memmap
        The file, opened for reading and writing.

    Raises
    ------
    OSError
        Not enough disk space, which is detected before `write` is called; no such folder; a device or a pipe.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} cannot be written: a memory-mapped file must be a regular file")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    with files.writing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        files.reserve(file, file.tell() + 2 * math.prod(shape))
        array = np.memmap(file, np.float16, "r+", file.tell(), shape)
        write(array)
        array.flush()
    return np.load(path, mmap_mode="r+")
