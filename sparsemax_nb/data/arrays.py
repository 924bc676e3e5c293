"""Files of arrays: dense features as NumPy writes them, sparse matrices as SciPy writes them."""

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

#: What NumPy, SciPy and the zip format raise for files that are truncated, damaged or something else altogether.
BROKEN = (
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
#: The most bytes that deflate makes of one.
DEFLATED = 1032


def read_arrays(features, labels):
    """Read features from a .npy or .npz file and labels from another .npz file.

    Parameters
    ----------
    features, labels : path

    Returns
    -------
    XCData
        What `read_dense` (for .npy) or `read_csr` reads as features, and ones where `labels` stores ones.

    Raises
    ------
    DataError
        Either file is not what it should be, or their numbers of rows differ.
    """
    x = read_dense(features) if features.suffix == ".npy" else _float32(features, read_csr(features))
    y = read_csr(labels)
    if (y.data != 1).any():
        raise DataError(
            f"{labels}: a label matrix must store ones only, got {y.data[y.data != 1][0]}; "
            "use matrix.eliminate_zeros() and matrix.data[:] = 1"
        )
    if x.shape[0] != y.shape[0]:
        raise DataError(f"{features}: {x.shape[0]} rows, but {y.shape[0]} in {labels}; one row is one point in both")
    y.data = np.ones(y.nnz, np.float32)
    return XCData(x, y)


def read_dense(path):
    """Open a .npy file of a C-contiguous float32 matrix; its rows stay on disk until they are used.

    Parameters
    ----------
    path : path

    Returns
    -------
    numpy.memmap
        (n, F) float32, read-only. Its values are not looked at: NaN or infinity are found by who uses them.

    Raises
    ------
    DataError
        Not a .npy file, truncated, or an array of another kind.
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
    """The array of a .npy file, a read-only `numpy.memmap`; DataError where it holds none."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    except BROKEN as error:
        raise DataError(f"{path}: truncated, damaged or no .npy file ({error})") from error


def read_csr(path):
    """Read a CSR matrix of numbers from a file that `scipy.sparse.save_npz` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    scipy.sparse.csr_matrix
        Ids ascend in each row; int32 indptr and indices where they allow; dtype as in the file.

    Raises
    ------
    DataError
        Not such a file, truncated, another format, ids out of range or an entry twice.
    """
    with open(path, "rb") as stream:
        try:
            _check_sizes(stream)
            matrix = scipy.sparse.load_npz(stream)  # refuses pickled objects
            if matrix.format == "csr":
                matrix = scipy.sparse.csr_matrix(matrix)
                check_structure(matrix)
                matrix.check_format(full_check=True)
        except (*BROKEN, OSError) as error:  # OSError: a damaged file may send the reader to a place before its start
            raise DataError(f"{path}: truncated, damaged or not from scipy.sparse.save_npz ({error})") from error
    if matrix.format != "csr":
        raise DataError(f"{path}: the matrix must be CSR, got {matrix.format.upper()}; save matrix.tocsr()")
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"{path}: the matrix must hold numbers, got {matrix.dtype}; save matrix.astype(np.float32)")
    matrix.sort_indices()
    if not matrix.has_canonical_format:
        raise DataError(f"{path}: the matrix holds an entry twice; use matrix.sum_duplicates()")
    matrix.prune()
    return matrix


def _check_sizes(stream):
    """ValueError where an array of a .npz file is not as long as its header says: before memory is taken for it."""
    most = DEFLATED * stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream) as packed:
        for about in packed.infolist():
            with packed.open(about) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                nbytes = about.file_size - member.tell()
            if dtype.hasobject:
                continue  # a pickle, which NumPy refuses
            if nbytes != math.prod(shape) * dtype.itemsize or about.file_size > most:
                raise ValueError(f"{about.filename} holds {nbytes} bytes, its header says shape {shape} of {dtype}")
    stream.seek(0)


def _float32(path, matrix):
    """`matrix`, or DataError where its values are not finite float32."""
    if matrix.dtype != np.float32:
        raise DataError(f"{path}: features must be float32, got {matrix.dtype}; save matrix.astype(np.float32)")
    if not np.isfinite(matrix.data).all():
        raise DataError(f"{path}: features must be finite, got NaN or infinity")
    return matrix


def write_float16(path, shape, write):
    """Write a .npy file of float16 that may be larger than memory; `path` is replaced in one move.

    Parameters
    ----------
    path : path
    shape : (int, int)
    write : callable
        ``write(array)`` fills the memory-mapped array.

    Returns
    -------
    numpy.memmap
        The file, which may be written to.

    Raises
    ------
    OSError
        The disk has no room for the file, which is found before `write` is called; no such folder; a device or a pipe.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} cannot be written: it is memory-mapped, so it must be a regular file")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    with files.writing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        files.reserve(file, file.tell() + 2 * math.prod(shape))
        array = np.memmap(file, np.float16, "r+", file.tell(), shape)
        write(array)
        array.flush()
    return np.load(path, mmap_mode="r+")
