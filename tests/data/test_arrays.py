"""Corpora as files of arrays: dense features that stay on disk, sparse ones, labels beside them."""

import io
import os
import zipfile

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb.core.sparse import valid_csr
from sparsemax_nb.data import DataError, Tfidf, arrays, fingerprint, load, write_xc

N_ROWS = {"train": 6, "test": 4, "dev": 3}
N_FEATURES, N_LABELS = 5, 7


def dense(part):
    return np.random.default_rng(N_ROWS[part]).normal(size=(N_ROWS[part], N_FEATURES)).astype(np.float32)


def sparse(part):
    return scipy.sparse.csr_matrix(np.maximum(dense(part), 0))


def labels(part, dtype=np.float32):
    chosen = np.random.default_rng(N_ROWS[part]).random((N_ROWS[part], N_LABELS)) < 0.4
    return scipy.sparse.csr_matrix(chosen, dtype=dtype)


def fill(folder, features, parts=tuple(N_ROWS), stem="{}"):
    """Write a corpus; `features` is `dense` or `sparse`."""
    for part in parts:
        if features is dense:
            np.save(folder / f"{stem.format(part)}.npy", dense(part))
        else:
            scipy.sparse.save_npz(folder / f"{stem.format(part)}.npz", sparse(part))
        scipy.sparse.save_npz(folder / f"{part}_labels.npz", labels(part))
    return folder


def check_csr(got, want):
    assert isinstance(got, scipy.sparse.csr_matrix) and got.has_canonical_format
    assert (got.dtype, got.indices.dtype, got.indptr.dtype) == (np.float32, np.int32, np.int32)
    np.testing.assert_array_equal(got.toarray(), want.toarray())


@pytest.mark.parametrize("stem", ["{}", "{}_bow"])
@pytest.mark.parametrize("features", [dense, sparse])
def test_load(tmp_path, features, stem):
    corpus = load(fill(tmp_path, features, stem=stem))
    assert (corpus.name, corpus.feature_names, corpus.label_names) == (tmp_path.name, None, None)
    for part in N_ROWS:
        data = getattr(corpus, part)
        check_csr(data.labels, labels(part))
        assert data.labels.nnz > 0
        if features is sparse:
            check_csr(data.features, sparse(part))
        else:
            assert isinstance(data.features, np.memmap) and data.features.mode == "r"
            assert data.features.dtype == np.float32 and not data.features.flags.writeable
            np.testing.assert_array_equal(data.features, dense(part))


def test_dev_is_optional_and_names_are_read(tmp_path):
    fill(tmp_path, dense, parts=("train", "test"))
    (tmp_path / "features.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "labels.txt").write_text("\n".join("ABCDEFG"))
    corpus = load(tmp_path)
    assert corpus.dev is None and corpus.feature_names == list("abcde") and corpus.label_names == list("ABCDEFG")
    (tmp_path / "labels.txt").write_text("A\n")
    with pytest.raises(DataError, match="labels.txt: 1 label names, but 7 in .*train.npy$"):
        load(tmp_path)


def test_dense_rows_stay_on_disk(tmp_path):
    """A file of 1 TiB with a hole in place of its values is opened at once."""
    fill(tmp_path, dense)
    shape = (2**30, 256)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with open(tmp_path / "train.npy", "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        try:
            os.truncate(stream.fileno(), stream.tell() + 2**40)
        except OSError as error:
            pytest.skip(f"no file of 1 TiB with a hole here: {error}")
    with pytest.raises(
        DataError, match=rf"train.npy: {2**30} rows, but 6 in .*train_labels.npz; both files must have one row"
    ):
        load(tmp_path)


def test_text_comes_first_and_dense_before_sparse(tmp_path):
    fill(tmp_path, sparse)
    fill(tmp_path, dense)
    assert isinstance(load(tmp_path).train.features, np.memmap)
    for part in N_ROWS:
        (tmp_path / f"{part}.txt").write_text("1 2 3\n0 1:1\n")
    assert load(tmp_path).train.features.shape == (1, 2)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float64])
def test_labels_of_any_dtype(tmp_path, dtype):
    fill(tmp_path, dense)
    scipy.sparse.save_npz(tmp_path / "train_labels.npz", scipy.sparse.csr_array(labels("train", dtype)))
    check_csr(load(tmp_path).train.labels, labels("train"))


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_unsorted_rows_and_wide_indices(tmp_path, index):
    fill(tmp_path, sparse)
    x = scipy.sparse.csr_matrix((np.float32([2, 3]), [4, 1], [0, 0, 2, 2, 2, 2, 2]), shape=(6, N_FEATURES))
    assert not x.has_sorted_indices
    np.savez(
        tmp_path / "train.npz", format="csr", data=x.data, indices=x.indices.astype(index),
        indptr=x.indptr.astype(index), shape=x.shape,
    )  # fmt: skip
    check_csr(load(tmp_path).train.features, x)


@pytest.mark.parametrize(("n_rows", "n_features"), [(0, N_FEATURES), (0, 0), (4, 0)])
def test_nothing(tmp_path, n_rows, n_features):
    for part in ("train", "test"):
        np.save(tmp_path / f"{part}.npy", np.empty((n_rows, n_features), np.float32))
        scipy.sparse.save_npz(tmp_path / f"{part}_labels.npz", scipy.sparse.csr_matrix((n_rows, 3), dtype=np.float32))
    assert load(tmp_path).train.features.shape == (n_rows, n_features)


def npy(x):
    return lambda path: np.save(path, x)


def npz(matrix):
    return lambda path: scipy.sparse.save_npz(path, matrix)


def text(content):
    return lambda path: path.write_bytes(content)


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_offset(path):
    """The end of the zip file tells a wrong place of its directory, which makes the places of the arrays negative."""
    content = bytearray(path.read_bytes())
    content[-6:-2] = (int.from_bytes(content[-6:-2], "little") + 1000).to_bytes(4, "little")
    path.write_bytes(content)


def out_of_range(path):
    indices = np.full(6, N_LABELS)
    np.savez(path, format="csr", data=np.ones(6), indices=indices, indptr=np.arange(7), shape=(6, N_LABELS))


def pickled(path):
    np.save(path, np.array([[print] * N_FEATURES] * 6, object), allow_pickle=True)


def pickled_matrix(path):
    data = np.array([print], object)
    np.savez(path, format="csr", data=data, indices=[0], indptr=[0] + [1] * 6, shape=(6, N_FEATURES))


TWICE = scipy.sparse.csr_matrix((np.ones(2, np.float32), [1, 1], [0, 2, 2, 2, 2, 2, 2]), shape=(6, N_LABELS))
NOT_NPY = "train.npy: truncated, damaged or not a .npy file"
NOT_NPZ = "truncated, damaged or not from scipy.sparse.save_npz"
NAN = np.float32(np.nan)


@pytest.mark.parametrize(
    ("features", "name", "damage", "message"),
    [
        (
            dense,
            "train_labels.npz",
            remove,
            "train.npy: the labels are missing; write train_labels.npz with scipy.sparse",
        ),
        (dense, "dev_labels.npz", remove, "dev.npy: the labels are missing; write dev_labels.npz"),
        (sparse, "test_labels.npz", remove, "test.npz: the labels are missing; write test_labels.npz"),
        (
            dense,
            "test.npy",
            npy(dense("train")),
            "test.npy: 6 rows, but 4 in .*test_labels.npz; both files must have one row per point",
        ),
        (sparse, "test.npz", npz(sparse("train")), "test.npz: 6 rows, but 4 in .*test_labels.npz"),
        (dense, "test.npy", npy(dense("test")[:, :3].copy()), r"test.npy: 3 features and 7 labels, but 5 and 7"),
        (sparse, "dev.npz", npz(sparse("dev")[:, :3]), r"dev.npz: 3 features and 7 labels, but 5 and 7"),
        (dense, "dev_labels.npz", npz(labels("dev")[:, :2]), r"dev.npy: 5 features and 2 labels, but 5 and 7 in"),
        (dense, "train.npy", npy(dense("train").astype(float)), r"float32, got float64; save x.astype\(np.float32\)"),
        (dense, "train.npy", npy(dense("train").astype(">f4")), "features must be float32, got >f4"),
        (dense, "train.npy", npy(dense("train")[0]), r"features must be a matrix \(rows, columns\), got shape \(5,\)"),
        (dense, "train.npy", npy(dense("train")[None]), r"must be a matrix \(rows, columns\), got shape \(1, 6, 5\)"),
        (dense, "train.npy", npy(np.asfortranarray(dense("train"))), "must be C-contiguous .* save np.ascont"),
        (dense, "train.npy", cut, NOT_NPY),
        (dense, "train.npy", cut_in_half, NOT_NPY),
        (dense, "train.npy", text(b""), NOT_NPY),
        (dense, "train.npy", text(b"1 2 3\n0 1:1\n"), NOT_NPY),
        (dense, "train.npy", text(b"PK\x03\x04"), NOT_NPY),
        (dense, "train.npy", pickled, NOT_NPY),
        (sparse, "train.npz", npz(sparse("train").astype(float)), "train.npz: features must be float32, got float64"),
        (sparse, "train.npz", npz(sparse("train") * NAN), "train.npz: features must be finite, got NaN"),
        (sparse, "train.npz", npz(sparse("train").tocsc()), r"train.npz: the matrix must be CSR, got CSC; save m"),
        (
            sparse,
            "train.npz",
            npz(sparse("train").astype(complex)),
            "train.npz: the matrix must contain numbers, got c",
        ),
        (
            sparse,
            "train.npz",
            npz(TWICE),
            "train.npz: the matrix must not have duplicate entries; use matrix.sum_duplicates",
        ),
        (sparse, "train.npz", cut, f"train.npz: {NOT_NPZ}"),
        (sparse, "train.npz", cut_in_half, f"train.npz: {NOT_NPZ}"),
        (sparse, "train.npz", wrong_offset, f"train.npz: {NOT_NPZ}"),
        (sparse, "train.npz", text(b""), f"train.npz: {NOT_NPZ}"),
        (sparse, "train.npz", text(b"1 2 3\n"), f"train.npz: {NOT_NPZ}"),
        (sparse, "train.npz", lambda path: np.savez(path, x=dense("train")), f"train.npz: {NOT_NPZ}"),
        (sparse, "train.npz", pickled_matrix, f"train.npz: {NOT_NPZ} .*allow_pickle=False"),
        (dense, "train_labels.npz", npz(labels("train") * 2), "train_labels.npz: a label matrix must store ones only"),
        (dense, "train_labels.npz", npz(labels("train") * 0), "must store ones only, got 0.0; use matrix.elim"),
        (dense, "train_labels.npz", npz(labels("train").tocoo()), "train_labels.npz: the matrix must be CSR, got COO"),
        (dense, "train_labels.npz", npz(TWICE), "train_labels.npz: the matrix must not have duplicate entries"),
        (dense, "train_labels.npz", out_of_range, f"train_labels.npz: {NOT_NPZ}"),
        (dense, "train_labels.npz", cut, f"train_labels.npz: {NOT_NPZ}"),
    ],
)
def test_files_that_do_not_fit(tmp_path, features, name, damage, message):
    damage(fill(tmp_path, features) / name)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path / name.replace("_labels.npz", "")) in str(caught.value)


def test_dense_and_sparse_parts(tmp_path):
    fill(tmp_path, dense, parts=("train",))
    fill(tmp_path, sparse, parts=("test",))
    with pytest.raises(DataError, match="test.npz: sparse features, but dense ones in .*train.npy; the parts"):
        load(tmp_path)


@pytest.mark.parametrize("features", [dense, sparse])
def test_random_damage(tmp_path, features):
    """Whatever happens to the bytes: a corpus or a DataError, no other exception."""
    fill(tmp_path, features)
    rng, n_refused = np.random.default_rng(0), 0
    path = tmp_path / ("train.npy" if features is dense else "train.npz")
    good = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(good)
        for place in rng.integers(min(len(good), 400), size=2):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.choice([len(good), rng.integers(len(good))])])
        try:
            load(tmp_path)
        except DataError:
            n_refused += 1
    assert n_refused > 75


def test_a_file_of_float16_is_whole_or_not_there(tmp_path):
    def fill(array):
        assert array.dtype == np.float16 and array.shape == (3, 2)
        array[:] = [[0, 1], [2, 3], [4, 0.5]]

    path = tmp_path / "h.npy"
    mapped = arrays.write_float16(path, (3, 2), fill)
    assert isinstance(mapped, np.memmap) and np.load(path).tolist() == mapped.tolist() == [[0, 1], [2, 3], [4, 0.5]]

    def fails(array):
        array[:] = 7
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arrays.write_float16(path, (3, 2), fails)
    assert np.load(path)[2, 0] == 4 and [p.name for p in tmp_path.iterdir()] == ["h.npy"]


#: Changes of a CSR matrix after which SciPy's own full check finds nothing, but its loops leave the arrays.
UNSOUND = {
    "no entries": lambda m: m.indptr.__setitem__(-1, 0),
    "fewer than none": lambda m: m.indptr.__setitem__(-1, -(2**30)),
    "overflow": lambda m: m.indptr.__setitem__(slice(-2, None), (2**31 - 1, -(2**31) + 5)),
}


@pytest.mark.parametrize("change", UNSOUND)
def test_matrices_that_scipy_lets_pass(tmp_path, change):
    matrix = sparse("train")
    UNSOUND[change](matrix)
    if change != "overflow":
        matrix.check_format(full_check=True)
    parts = {
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "data": matrix.data,
        "shape": matrix.shape,
        "format": b"csr",
    }
    np.savez(tmp_path / "x.npz", **parts)
    with pytest.raises(
        DataError, match=r"x\.npz: truncated, damaged or not .*indptr must hold 7 numbers that rise from 0"
    ):
        arrays.read_csr(tmp_path / "x.npz")
    for use in (
        lambda: write_xc(tmp_path / "x.txt", matrix, labels("train")),
        lambda: fingerprint(matrix, labels("train")),
        lambda: Tfidf().fit(matrix),
        lambda: valid_csr("features", matrix),
        lambda: valid_csr("features", matrix.T),
    ):
        with pytest.raises(ValueError, match="is not a valid CSR matrix: indptr must hold 7 numbers"):
            use()


def test_sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    """A header that promises 373 GiB."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**11,)})
    scipy.sparse.save_npz(tmp_path / "good.npz", sparse("train"))
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "x.npz", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, stream.getvalue() if name == "data.npy" else good.read(name))
    monkeypatch.setattr(scipy.sparse, "load_npz", lambda _: pytest.fail("memory was taken"))
    with pytest.raises(
        DataError, match=r"data.npy contains 0 bytes, but its header says shape \(100000000000,\) of float32"
    ):
        arrays.read_csr(tmp_path / "x.npz")
