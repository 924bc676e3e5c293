"""Corpora of the Extreme Classification Repository whose features and labels are separate text files."""

import contextlib
import re
import reprlib
from array import array

import numpy as np
import scipy.sparse

from .readers import (
    PAIRS,
    DataError,
    GrowingCSR,
    XCData,
    check_pairs,
    chunks,
    decode,
    parse_pairs,
    read_header,
    read_lines,
)

#: A row and a label; no more digits than an int can be printed with.
PAIR = re.compile(rb"[ \t]*[0-9]{1,99}[ \t]+[0-9]{1,99}[ \t]*")


def read_matrices(features, labels):
    """Read a matrix of features and one of labels.

    The first line of each file is ``rows columns``. Each further line is one point: ``column:value column:value``, or
    nothing. Ids start at 0. The peak memory is 9/8 of the result, plus a thousand lines.

    Parameters
    ----------
    features, labels : path
        Plain text, or compressed with gzip or xz, whatever its name. The values of labels are 1.

    Returns
    -------
    XCData

    Raises
    ------
    DataError
        For the first malformed line; for files with different numbers of rows.
    """
    x, y = _read_matrix(features, "feature"), _read_matrix(labels, "label")
    if x.shape[0] != y.shape[0]:
        raise DataError(
            f"{features}, line 1: {x.shape[0]} rows, but {y.shape[0]} in {labels}; "
            "both files must have one row per point"
        )
    return XCData(x, y)


def _read_matrix(path, kind):
    """Read a CSR matrix; those of kind "label" contain ones only."""
    with contextlib.closing(read_lines(path)) as lines:
        n_rows, n_columns = read_header(path, next(lines, None), "rows columns")
        matrix = GrowingCSR(n_columns)
        for first, chunk in chunks(path, lines, n_rows, unit="rows"):
            chunk = [b" " + line for line in chunk]  # every pair follows a blank
            part = parse_pairs(chunk, n_columns) if all(map(PAIRS.fullmatch, chunk)) else None
            if part is None or (kind == "label" and (part.data != 1).any()):
                _raise_first_error(path, first, chunk, kind, n_columns)
            matrix.append(part)
    return matrix.finish()


def _raise_first_error(path, first, lines, kind, n_columns):
    """Find the first malformed line among those that `_read_matrix` refused, and raise a DataError."""
    for number, line in enumerate(lines, first):
        where = f"{path}, line {number}"
        text = decode(where, line[1:])
        check_pairs(where, kind, text, n_columns)
        for token in text.split() if kind == "label" else ():
            if np.float32(token.partition(":")[2]) != 1:
                raise DataError(f"{where}: the value in {reprlib.repr(token)} must be 1, as for every label of a point")
    raise AssertionError(f"{path}: _read_matrix refused the lines from {first} on, but no error was found in them")


def read_excluded(path, shape):
    """Read the pairs of points and labels that an evaluation must ignore: one ``row label`` per line.

    Parameters
    ----------
    path : path
        Plain text, or compressed with gzip or xz. Ids start at 0, in any order; a pair may be repeated.
    shape : (int, int)
        The numbers of points and labels.

    Returns
    -------
    scipy.sparse.csr_matrix
        (n_points, n_labels) float32, 1 for each pair.

    Raises
    ------
    DataError
        For the first malformed line.
    """
    ids = array("i"), array("i")
    with contextlib.closing(read_lines(path)) as lines:
        for number, line in enumerate(lines, 1):
            if not PAIR.fullmatch(line):
                text = decode(f"{path}, line {number}", line)
                raise DataError(f"{path}, line {number}: expected 'row label', two ids, got {reprlib.repr(text)}")
            for kind, token, n, found in zip(("row", "label"), line.split(), shape, ids, strict=True):
                if int(token) >= n:
                    raise DataError(f"{path}, line {number}: {kind} id {int(token)} is not below {n}")
                found.append(int(token))
    rows, labels = map(np.asarray, ids)
    matrix = scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, labels)), shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
