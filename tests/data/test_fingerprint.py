import hashlib
import tracemalloc

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb.data import fingerprint
from sparsemax_nb.data.fingerprint import _update

RNG = np.random.default_rng(0)
DENSE = RNG.normal(size=(50, 7)).astype(np.float32)
SPARSE = scipy.sparse.csr_matrix(np.where(RNG.random((50, 9)) < 0.3, RNG.normal(size=(50, 9)), 0).astype(np.float32))
LABELS = scipy.sparse.csr_matrix(RNG.random((50, 11)) < 0.2, dtype=np.float32)
FEATURES = pytest.mark.parametrize("x", [DENSE, SPARSE], ids=["dense", "sparse"])


def wide(matrix):
    """With int64 indices."""
    matrix = matrix.copy()
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


def roomy(matrix):
    """With unused space behind the entries."""
    matrix = matrix.copy()
    matrix.data, matrix.indices = np.append(matrix.data, np.float32(1)), np.append(matrix.indices, 0)
    return matrix


@pytest.fixture(params=[1, 100, 2**24])
def chunk(request, monkeypatch):
    monkeypatch.setitem(_update.__globals__, "BYTES_PER_CHUNK", request.param)


def test_equal_contents(chunk, tmp_path):
    want = fingerprint(DENSE, LABELS)
    assert len(want) == 32 and int(want, 16) >= 0
    np.save(tmp_path / "x.npy", DENSE)
    np.save(tmp_path / "f.npy", np.asfortranarray(DENSE))
    for x in (
        DENSE.copy(), np.asfortranarray(DENSE), np.repeat(DENSE, 2, axis=1)[:, ::2], DENSE.astype(">f4"),
        np.load(tmp_path / "x.npy", mmap_mode="r"), np.load(tmp_path / "f.npy", mmap_mode="r"),
    ):  # fmt: skip
        assert fingerprint(x, LABELS) == want
    want = fingerprint(SPARSE, LABELS)
    for change in (lambda m: m.copy(), wide, roomy, scipy.sparse.csr_array):
        assert fingerprint(change(SPARSE), change(LABELS)) == want


def test_chunks_do_not_matter(monkeypatch):
    want = fingerprint(DENSE, LABELS), fingerprint(SPARSE, LABELS)
    monkeypatch.setitem(_update.__globals__, "BYTES_PER_CHUNK", 64)
    assert (fingerprint(DENSE, LABELS), fingerprint(SPARSE, LABELS)) == want


def test_against_the_definition():
    """The bytes that are hashed, once more."""
    digest = hashlib.blake2b(b"features (50, 7) <f4;" + DENSE.tobytes(), digest_size=16)
    digest.update(b"labels csr (50, 11);")
    digest.update(b"labels.indptr (51,) <i4;" + LABELS.indptr.tobytes())
    digest.update(b"labels.indices (%d,) <i4;" % LABELS.nnz + LABELS.indices.tobytes())
    digest.update(b"labels.data (%d,) <f4;" % LABELS.nnz + LABELS.data.tobytes())
    assert fingerprint(DENSE, LABELS) == digest.hexdigest()


def set_one(x):
    x = x.copy()
    (x.data if scipy.sparse.issparse(x) else x.reshape(-1))[-1] *= np.float32(1.0000002)
    return x


def move_one(x):
    """One entry in another column."""
    x = x.copy()
    row = np.flatnonzero((np.diff(x.indptr) > 0) & (np.diff(x.indptr) < x.shape[1]))[-1]
    free = np.setdiff1d(np.arange(x.shape[1]), x[row].indices)[0]
    x.indices[x.indptr[row + 1] - 1] = free
    return x


def move_to_next_row(x):
    """One entry in another row: only `indptr` differs."""
    x = x.copy()
    x.indptr[np.flatnonzero(np.diff(x.indptr))[5]] += 1
    return x


def more_columns(x):
    return scipy.sparse.csr_matrix((x.data, x.indices, x.indptr), shape=(x.shape[0], x.shape[1] + 1))


def test_different_contents(chunk):
    seen = [fingerprint(DENSE, LABELS), fingerprint(SPARSE, LABELS), fingerprint(DENSE, SPARSE)]
    for change in (set_one, lambda x: x[:-1], lambda x: x[::-1], lambda x: x.astype(np.float64), lambda x: -x):
        seen += [fingerprint(change(DENSE), LABELS), fingerprint(change(SPARSE), LABELS)]
    seen += [fingerprint(DENSE.reshape(25, 14), LABELS), fingerprint(DENSE.view(np.int32), LABELS)]
    for change in (set_one, move_one, move_to_next_row, more_columns):
        seen += [fingerprint(SPARSE, change(LABELS)), fingerprint(change(SPARSE), LABELS)]
    seen += [fingerprint(LABELS, SPARSE), fingerprint(SPARSE.toarray(), LABELS)]
    seen.remove(fingerprint(set_one(SPARSE), LABELS))  # it is in two of the lists
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty(shape):
    empty = np.empty(shape, np.float32)
    others = {fingerprint(x, LABELS) for x in (np.empty((0, 4)), np.empty((5, 0)), scipy.sparse.csr_matrix(shape))}
    assert fingerprint(empty, LABELS) == fingerprint(empty.copy(), LABELS)
    assert len({fingerprint(empty, LABELS), *others}) == 4


def test_memory_stays_constant(monkeypatch):
    """Fortran order and int64 indices need conversion, which goes chunk by chunk."""
    x = np.asfortranarray(np.ones((50_000, 20), np.float32))
    y = wide(scipy.sparse.csr_matrix(np.ones((50_000, 10), np.float32)))
    monkeypatch.setitem(_update.__globals__, "BYTES_PER_CHUNK", 10_000)
    tracemalloc.start()
    fingerprint(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 < min(x.nbytes, y.indices.nbytes // 2, y.indptr.nbytes // 2)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (SPARSE.tocsc(), LABELS, "features must be a SciPy CSR matrix, got csc_matrix"),
        (DENSE, [[1]], "labels must be a SciPy CSR matrix, got list"),
        (DENSE.astype(object), LABELS, "features must contain numbers, got object; use features.astype"),
        (DENSE.astype("U3"), LABELS, "features must contain numbers, got <U3"),
    ],
)
def test_wrong_input(x, y, message):
    with pytest.raises(TypeError, match=message):
        fingerprint(x, y)
