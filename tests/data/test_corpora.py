import gzip
import lzma
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sparsemax_nb.data
from sparsemax_nb.data import DataError, load

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
