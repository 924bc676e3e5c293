import gzip
import lzma
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import sparsemax_nb.data
from sparsemax_nb.data import DataError, load, matrices, readers

PACK = {"": bytes, ".txt": bytes, ".txt.gz": gzip.compress, ".txt.xz": lzma.compress}
FILES = {
    "train_bow": "2 3 2\n0,1 0:1\n1 2:4\n",
    "test_bow": "1 3 2\n0 1:1\n",
    "dev_bow": "1 3 2\n1 1:9\n",
    "features": "red\ngreen\nblue\n",
    "labels": "warm\ncold\n",
}
REPOSITORY = {"train_bow": "train", "test_bow": "test", "dev_bow": "dev", "features": "Xf", "labels": "Y"}


def fill(folder, ending=".txt", **changes):
    for stem, text in {**FILES, **changes}.items():
        if text is not None:
            (folder / (stem + ending)).write_bytes(PACK[ending](text.encode()))
    return folder


@pytest.fixture(scope="module")
def tate():
    return load("tate")


def test_tate(tate):
    assert tate.name == "tate" and tate.dev is None
    assert tate.train.features.shape == (52921, 12310) and tate.test.features.shape == (5880, 12310)
    assert tate.train.labels.shape == (52921, 15810) and tate.test.labels.shape == (5880, 15810)
    assert len(tate.feature_names) == 12310 and len(tate.label_names) == 15810
    assert round(tate.train.labels.nnz / 52921, 1) == 14.3
    assert tate.train.features.data.min() == 1 and (tate.train.labels.data == 1).all()


def test_tate_names_fit_the_ids(tate):
    with_ship = tate.train.features[:, tate.feature_names.index("ship")].nonzero()[0]
    counts = tate.train.labels[with_ship].sum(axis=0).A1
    assert len(with_ship) > 100
    assert {"ship, sailing", "seascapes and coasts"} & {tate.label_names[i] for i in (-counts).argsort()[:20]}


def test_tate_notice():
    notice = Path(sparsemax_nb.data.__file__).parent / "bundled" / "tate" / "NOTICE.md"
    assert "CC0 1.0" in notice.read_text()


def check_small(corpus, name):
    assert corpus.name == name
    assert corpus.train.features.toarray().tolist() == [[1, 0, 0], [0, 0, 4]]
    assert corpus.test.features.toarray().tolist() == [[0, 1, 0]]
    assert corpus.dev.features.toarray().tolist() == [[0, 9, 0]]
    assert corpus.train.labels.toarray().tolist() == [[1, 1], [0, 1]]
    assert (corpus.feature_names, corpus.label_names) == (["red", "green", "blue"], ["warm", "cold"])


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("repository", [False, True])
def test_directory(tmp_path, ending, repository):
    fill(tmp_path, ending)
    if repository:
        for old, new in REPOSITORY.items():
            (tmp_path / (old + ending)).rename(tmp_path / (new + ending))
    check_small(load(tmp_path), tmp_path.name)
    check_small(load(str(tmp_path)), tmp_path.name)


def test_optional_files(tmp_path):
    corpus = load(fill(tmp_path, dev_bow=None, features=None, labels=None))
    assert (corpus.dev, corpus.feature_names, corpus.label_names) == (None, None, None)


def test_bow_files_come_first(tmp_path):
    fill(tmp_path, train="no header\n", Xf="none\n")
    check_small(load(tmp_path), tmp_path.name)


def test_a_directory_called_like_a_bundled_corpus(tmp_path, monkeypatch):
    (tmp_path / "tate").mkdir()
    fill(tmp_path / "tate")
    monkeypatch.chdir(tmp_path)
    check_small(load("./tate"), "tate")
    check_small(load(Path("tate")), "tate")


@pytest.mark.parametrize("name", ["tat", "no/such/directory"])
def test_unknown_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"'{name}' is neither bundled \(tate\) nor a directory"):
        load(name)


@pytest.mark.parametrize("what", ["train", "test"])
def test_missing_file(tmp_path, what):
    fill(tmp_path, **{f"{what}_bow": None})
    with pytest.raises(FileNotFoundError, match=f"no {what} file; tried {what}_bow, .*{what}.txt.xz"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"test_bow": "1 4 2\n0 1:1\n"}, r"test_bow.txt, line 1: 4 features and 2 labels, but 3 and 2"),
        ({"dev_bow": "1 3 9\n0 1:1\n"}, r"dev_bow.txt, line 1: 3 features and 9 labels, but 3 and 2"),
        ({"features": "red\n"}, "features.txt: 1 feature names, but 3 in the header of .*train_bow.txt"),
        ({"labels": "a\nb\nc\n"}, "labels.txt: 3 label names, but 2 in the header of .*train_bow.txt"),
        ({"test_bow": "1 3 2\nx 1:1\n"}, "test_bow.txt, line 2: 'x' is not a label id"),
    ],
)
def test_files_that_do_not_fit(tmp_path, changes, error):
    with pytest.raises(DataError, match=error):
        load(fill(tmp_path, **changes))


def test_bundled_in_a_zip_file(tmp_path):
    """An install inside a zip file: the code of the package with small stand-ins for the data."""
    archive, root = tmp_path / "install.zip", Path(sparsemax_nb.data.__file__).parent
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("sparsemax_nb/__init__.py", "")
        for source in [*root.glob("*.py"), *root.parent.glob("core/*.py")]:
            stream.write(source, source.relative_to(root.parents[1]))
        for stem, text in FILES.items():
            stream.writestr(f"sparsemax_nb/data/bundled/tate/{stem}.txt.xz", lzma.compress(text.encode()))
    code = f"import sys; sys.path.insert(0, {str(archive)!r}); from sparsemax_nb.data import load; c = load('tate')"
    code += "; print(c.train.labels.shape, c.label_names, sys.modules['sparsemax_nb'].__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(2, 2) ['warm', 'cold']") and "install.zip" in done.stdout


# ---------------------------------------------------------------- features and labels in separate files

MATRICES = {
    "trn_X_Xf": "2 3\n0:1.0\n 2:4e0 \n",
    "trn_X_Y": "2 2\n1:1.00 0:1\n1:1.0\n",
    "tst_X_Xf": "1 3\n1:1\n",
    "tst_X_Y": "1 2\n0:1\n",
    "Xf": "red\ngreen\nblue\n",
    "Y": "warm\ncold\n",
    "filter_labels_train": "1 0\n0 1\n1\t0\n 0   0\r\n",
    "filter_labels_test": "",
}


def fill_matrices(folder, ending=".txt", **changes):
    nothing = dict.fromkeys(FILES)
    return fill(folder, ending, **nothing, **MATRICES | changes)


def check_excluded(points, excluded):
    got = points.excluded
    assert isinstance(got, scipy.sparse.csr_matrix) and got.has_canonical_format
    assert (got.dtype, got.indices.dtype, got.indptr.dtype) == (np.float32, np.int32, np.int32)
    assert got.shape == points.labels.shape and got.toarray().tolist() == excluded


@pytest.mark.parametrize("ending", PACK)
def test_matrices(tmp_path, ending):
    corpus = load(fill_matrices(tmp_path, ending))
    for got, want in (
        (corpus.train.features, [[1, 0, 0], [0, 0, 4]]),
        (corpus.train.labels, [[1, 1], [0, 1]]),
        (corpus.test.features, [[0, 1, 0]]),
        (corpus.test.labels, [[1, 0]]),
    ):
        assert isinstance(got, scipy.sparse.csr_matrix) and got.has_canonical_format
        assert (got.dtype, got.indices.dtype, got.indptr.dtype) == (np.float32, np.int32, np.int32)
        assert got.toarray().tolist() == want
    assert corpus.dev is None
    assert (corpus.feature_names, corpus.label_names) == (["red", "green", "blue"], ["warm", "cold"])
    check_excluded(corpus.train, [[1, 1], [1, 0]])
    check_excluded(corpus.test, [[0, 0]])


def test_excluded_of_other_formats(tmp_path):
    corpus = load(fill(tmp_path, filter_labels_test="0 1\n"))
    check_excluded(corpus.test, [[0, 1]])
    assert corpus.train.excluded is None and corpus.dev.excluded is None


def test_train_comes_before_matrices(tmp_path):
    fill_matrices(tmp_path, trn_X_Xf="broken\n", trn_X_Y=None)
    (tmp_path / "train.txt").write_text(FILES["train_bow"])
    corpus = load(tmp_path)
    assert corpus.train.features.toarray().tolist() == [[1, 0, 0], [0, 0, 4]]
    assert corpus.test.labels.toarray().tolist() == [[1, 0]]


def test_matrices_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LINES_PER_CHUNK", 1)
    assert load(fill_matrices(tmp_path)).train.labels.toarray().tolist() == [[1, 1], [0, 1]]
    with pytest.raises(DataError, match="trn_X_Y.txt, line 3: label id 2 is not below 2"):
        load(fill_matrices(tmp_path, trn_X_Y="2 2\n0:1\n2:1\n"))


def test_empty_matrices(tmp_path):
    corpus = load(fill_matrices(tmp_path, tst_X_Xf="0 3\n", tst_X_Y="0 2\n"))
    assert corpus.test.features.shape == (0, 3) and corpus.test.excluded.shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"trn_X_Y": None}, r"trn_X_Xf.txt: the labels are missing; add trn_X_Y.txt"),
        ({"trn_X_Xf": "2 3 2\n0:1\n\n"}, "trn_X_Xf.txt, line 1: the header must be 'rows columns', 2 integers"),
        ({"trn_X_Xf": ""}, "trn_X_Xf.txt, line 1: the file is empty; expected the header 'rows columns'"),
        ({"trn_X_Xf": "2 3\n0:1\n"}, "trn_X_Xf.txt, line 3: the file ends after 1 of 2 rows"),
        ({"trn_X_Xf": "2 3\n0:1\n\n\n"}, "trn_X_Xf.txt, line 4: the file continues after 2 rows"),
        ({"trn_X_Xf": "2 3\n0:1\n3:1\n"}, "trn_X_Xf.txt, line 3: feature id 3 is not below 3"),
        ({"trn_X_Xf": "2 3\n1:1 1:2\n\n"}, "trn_X_Xf.txt, line 2: feature id 1 is repeated"),
        ({"trn_X_Xf": "2 3\n0:1\n0:nan\n"}, "trn_X_Xf.txt, line 3: the value in '0:nan' must be finite"),
        ({"trn_X_Xf": "2 3\n0:1\n1,2 0:1\n"}, "trn_X_Xf.txt, line 3: '1,2' is not 'feature:value'"),
        ({"trn_X_Y": "2 2\n0:1\n0\n"}, "trn_X_Y.txt, line 3: '0' is not 'label:value'"),
        ({"trn_X_Y": "2 2\n0:1\n0:1 1:0.5\n"}, "trn_X_Y.txt, line 3: the value in '1:0.5' must be 1"),
        ({"trn_X_Y": "2 2\n0:0\n\n"}, "trn_X_Y.txt, line 2: the value in '0:0' must be 1"),
        ({"trn_X_Y": "1 2\n0:1\n"}, "trn_X_Xf.txt, line 1: 2 rows, but 1 in .*trn_X_Y.txt"),
        ({"tst_X_Y": "1 9\n0:1\n"}, "tst_X_Xf.txt and .*tst_X_Y.txt, line 1: 3 features and 9 labels, but 3 and 2 in"),
        ({"Y": "warm\n"}, "Y.txt: 1 label names, but 2 in the header of .*trn_X_Y.txt"),
        ({"Xf": "red\n"}, "Xf.txt: 1 feature names, but 3 in the header of .*trn_X_Xf.txt"),
        ({"filter_labels_test": "0 0\n1 0\n"}, "filter_labels_test.txt, line 2: row id 1 is not below 1"),
        ({"filter_labels_train": "0 0\n1 2\n"}, "filter_labels_train.txt, line 2: label id 2 is not below 2"),
        (
            {"filter_labels_train": "0 0 0\n"},
            "filter_labels_train.txt, line 1: expected 'row label', two ids, got '0 0 0'",
        ),
        ({"filter_labels_train": "0 0\n\n"}, "filter_labels_train.txt, line 2: expected 'row label', two ids, got ''"),
        ({"filter_labels_train": "0 -1\n"}, "filter_labels_train.txt, line 1: expected 'row label', two ids"),
        ({"filter_labels_train": "0 1.0\n"}, "filter_labels_train.txt, line 1: expected 'row label', two ids"),
        ({"filter_labels_train": "0 " + "9" * 5000}, "filter_labels_train.txt, line 1: expected 'row label', two ids"),
    ],
)
def test_malformed_matrices(tmp_path, changes, error):
    with pytest.raises(DataError, match=error):
        load(fill_matrices(tmp_path, **changes))


def test_no_matrix(tmp_path):
    with pytest.raises(FileNotFoundError, match="no test file; tried test_bow, .*, tst_X_Xf, tst_X_Xf.txt"):
        load(fill_matrices(tmp_path, tst_X_Xf=None))


def test_peak_memory_of_matrices(tmp_path, monkeypatch):
    """The parts are not kept beside the result: stacking them at the end would need twice its memory."""
    monkeypatch.setattr(readers, "LINES_PER_CHUNK", 64)
    row = " ".join(f"{i}:1" for i in range(50))
    for name in ("x", "y"):
        (tmp_path / name).write_text("8300 50\n" + f"{row}\n" * 8300)
    tracemalloc.start()
    points = matrices.read_matrices(tmp_path / "x", tmp_path / "y")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(array.nbytes for m in (points.features, points.labels) for array in (m.data, m.indices, m.indptr))
    assert size > 6 << 20
    assert peak < 1.3 * size
