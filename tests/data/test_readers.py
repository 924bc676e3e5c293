import gzip
import itertools
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb.data import DataError, read_names, read_xc, readers, write_xc

PACK = {".txt": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
ENDINGS = pytest.mark.parametrize("ending", PACK)

TEXT = """6 5 4
1,3 0:2 4:0.5
 2:1e-3
0
2 4:-1 0:.25 1:3.

3,0  2:7   3:8 \n"""
FEATURES = [[2, 0, 0, 0, 0.5], [0, 0, 1e-3, 0, 0], [0] * 5, [0.25, 3, 0, 0, -1], [0] * 5, [0, 0, 7, 8, 0]]
LABELS = [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]


def save(folder, content, ending=".txt"):
    path = folder / f"data{ending}"
    path.write_bytes(PACK[ending](content if isinstance(content, bytes) else content.encode()))
    return path


def check_data(data, features, labels):
    for got, want in ((data.features, features), (data.labels, labels)):
        assert isinstance(got, scipy.sparse.csr_matrix)
        assert (got.dtype, got.indices.dtype, got.indptr.dtype) == (np.float32, np.int32, np.int32)
        assert all((np.diff(got.indices[a:b]) > 0).all() for a, b in itertools.pairwise(got.indptr))
        np.testing.assert_array_equal(got.toarray(), np.asarray(want, np.float32).reshape(got.shape))


@ENDINGS
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_reads(tmp_path, ending, newline):
    check_data(read_xc(save(tmp_path, TEXT.replace("\n", newline), ending)), FEATURES, LABELS)


def test_path_as_text_and_no_final_newline(tmp_path):
    check_data(read_xc(str(save(tmp_path, TEXT.rstrip()))), FEATURES, LABELS)


@pytest.mark.parametrize("sizes", ["0 0 0", "0 5 4", "2 0 0"])
def test_reads_nothing(tmp_path, sizes):
    data = read_xc(save(tmp_path, f"{sizes}\n" + " \n" * int(sizes[0])))
    n_points, n_features, n_labels = map(int, sizes.split())
    assert (data.features.shape, data.labels.shape) == ((n_points, n_features), (n_points, n_labels))
    check_data(data, [], [])


def test_keeps_stored_zeros(tmp_path):
    assert read_xc(save(tmp_path, "1 2 1\n0 1:0\n")).features.nnz == 1


def test_reads_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LINES_PER_CHUNK", 2)
    check_data(read_xc(save(tmp_path, TEXT)), FEATURES, LABELS)


MEASURE = """
import sys
from sparsemax_nb.data import read_xc

def peak():  # unlike getrusage, this does not inherit the peak of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))

read_xc(sys.argv[1], n_points=2000)
before = peak()
data = read_xc(sys.argv[1])
size = sum(array.nbytes for m in (data.features, data.labels) for array in (m.data, m.indices, m.indptr))
print(size, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory through /proc")
def test_peak_memory(tmp_path):
    """The largest resident memory grows by little more than the arrays that are read; parts and their stack take 2."""
    ids = np.sort(np.random.default_rng(0).permuted(np.tile(np.arange(1000), (500, 1)), axis=1)[:, :100], axis=1)
    lines = [f"{row[0]},{row[1]} {' '.join(f'{i}:1' for i in row)}\n" for row in ids.tolist()]
    with open(tmp_path / "data.txt", "w") as stream:
        stream.write("80000 1000 1000\n")
        for _ in range(160):
            stream.writelines(lines)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "data.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, growth = map(int, done.stdout.split())
    assert size > 60 << 20
    assert 0.8 * size < growth < 1.4 * size


@pytest.mark.parametrize("n_points", [0, 1, 5, 6, 7, np.int64(2)])
def test_n_points(tmp_path, n_points):
    check_data(read_xc(save(tmp_path, TEXT), n_points=n_points), FEATURES[:n_points], LABELS[:n_points])


def test_n_points_does_not_look_further(tmp_path):
    path = save(tmp_path, TEXT.replace("2 4:-1", "broken"))
    check_data(read_xc(path, n_points=3), FEATURES[:3], LABELS[:3])
    with pytest.raises(DataError, match="line 5"):
        read_xc(path, n_points=4)


@pytest.mark.parametrize("n_points", [-1, 1.0, "1"])
def test_wrong_n_points(tmp_path, n_points):
    with pytest.raises(ValueError, match="n_points must be a non-negative integer"):
        read_xc(save(tmp_path, TEXT), n_points=n_points)


HEADERS = ["", "1 2", "1 2 3 4", "1 -2 3", "1 2.0 3", "a b c", "1 2 2147483648", "1 2 " + "9" * 999, "1 ٣ 3", "1 1_0 1"]
LINES = [  # a line of a file with 3 features and 2 labels, and what is said about it
    ("x 0:1", "'x' is not a label id"),
    ("-1 0:1", "'-1' is not a label id"),
    ("0,,1 0:1", "'' is not a label id"),
    ("0, 0:1", "'' is not a label id"),
    (",0 0:1", "'' is not a label id"),
    ("0:1", "'0:1' is not a label id; .* a leading space"),
    ("1_0 0:1", "'1_0' is not a label id"),
    ("٣", "'٣' is not a label id"),
    ("\t0:1", "is not a label id"),
    ("2 0:1", "label id 2 is not below 2, the number in the header"),
    ("9" * 5000, "label id 9+ is not below 2"),
    ("1,0,1 0:1", "label id 1 is repeated"),
    ("1,01 0:1", "label id 01 is repeated"),
    (" 0", "'0' is not 'feature:value'"),
    (" 0:", "'0:' is not"),
    (" :1", "':1' is not"),
    (" 0:1:2", "'0:1:2' is not"),
    (" 0:1,2", "'0:1,2' is not"),
    (" 0:1\t1:1", "is not 'feature:value'"),
    (" 0: 1", "'0:' is not"),
    (" 0:one", "'0:one' is not"),
    (" 0:1_0", "'0:1_0' is not"),
    (" 0:0x1", "'0:0x1' is not"),
    (" 0:1e", "'0:1e' is not"),
    (" 0:.", "'0:.' is not"),
    (" 0.0:1", "'0.0:1' is not"),
    (" -1:1", "'-1:1' is not"),
    (" 0:\x00", r"'0:\\x00' is not"),
    (" ٠:1", "'٠:1' is not"),
    (" 0:١", "'0:١' is not"),
    (" 3:1", "feature id 3 is not below 3"),
    (" 99999999999999999999:1", "feature id 9+ is not below 3"),
    (" 2:1 0:1 2:1", "feature id 2 is repeated"),
    (" 0:nan", "'0:nan' must be finite"),
    (" 0:-Inf", "'0:-Inf' must be finite"),
    (" 0:infinity", "'0:infinity' must be finite"),
    (" 0:1e39", "'0:1e39' must be finite as float32"),
    (" 0:-1e999", "'0:-1e999' must be finite as float32"),
    (b" 0:1 \xff\xfe", "byte 0xff in column 6 is not UTF-8 text"),
    (b"\x80", "byte 0x80 in column 1 is not UTF-8 text"),
]


@pytest.mark.parametrize("header", HEADERS)
def test_wrong_header(tmp_path, header):
    path = save(tmp_path, header + "\n 0:1\n")
    with pytest.raises(DataError) as caught:
        read_xc(path)
    assert str(caught.value).startswith(f"{path}, line 1: the header must be")


@pytest.mark.parametrize(("line", "message"), LINES)
@pytest.mark.parametrize("before", [0, 1, 2, 5])
def test_wrong_line(tmp_path, monkeypatch, line, message, before):
    monkeypatch.setattr(readers, "LINES_PER_CHUNK", 3)
    line = line if isinstance(line, bytes) else line.encode()
    path = save(tmp_path, b"7 3 2\n" + b"0,1 0:1 2:3\n" * before + line + b"\n" + b"x\n" * (6 - before))
    with pytest.raises(DataError, match=message) as caught:
        read_xc(path)
    assert str(caught.value).startswith(f"{path}, line {before + 2}: ")
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file is empty"),
        ("3 1 1\n", "line 2: the file ends after 0 of 3 points"),
        ("3 1 1\n0\n0", "line 4: the file ends after 2 of 3 points"),
        ("1 1 1\n0\n0\n", "line 3: the file continues after 1 points"),
        ("1 1 1\n0\n\n", "line 3: the file continues"),
        (b"\x93NUMPY\n", "line 1: byte 0x93 in column 1"),
        (b"\x00\x01\x02\n", "line 1: the header must be"),
    ],
)
@ENDINGS
def test_wrong_file(tmp_path, text, message, ending):
    with pytest.raises(DataError, match=message):
        read_xc(save(tmp_path, text, ending))


@pytest.mark.parametrize("ending", [".gz", ".xz"])
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40] + bytes(9) + b[49:]])
def test_damaged_compression(tmp_path, ending, damage):
    text = "300 1000 1000\n" + "".join(f"{i} {i}:{i * i}\n" for i in range(300))
    path = save(tmp_path, text, ending)
    assert read_xc(path).labels.nnz == 300
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"line \d+: the compressed file is truncated or corrupt"):
        read_xc(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_xc(tmp_path / "none.txt")


def simple_parse(text):
    """The format once more, in the plainest Python; ValueError for any flaw."""
    header, *lines = text.removesuffix("\n").split("\n")
    n_points, n_features, n_labels = map(int, header.split())
    if len(lines) != n_points:
        raise ValueError
    features, labels = np.zeros((n_points, n_features), np.float32), np.zeros((n_points, n_labels), np.float32)
    for row, line in enumerate(lines):
        head, _, tail = line.partition(" ")
        label_ids = [(token, 1) for token in head.split(",")] if head else []
        pairs = [token.split(":") for token in tail.split()]
        for matrix, tokens in ((labels, label_ids), (features, pairs)):
            ids = [token for token, _ in tokens]
            if not all(i.isdigit() and int(i) < matrix.shape[1] for i in ids) or len(set(map(int, ids))) < len(ids):
                raise ValueError
            for i, value in tokens:
                matrix[row, int(i)] = float(value)
    if not np.isfinite(features).all():
        raise ValueError
    return features, labels


@pytest.mark.filterwarnings("ignore:overflow")
def test_random_flaws(tmp_path):
    """A random change to a good file is either refused with DataError or read as the plain parser reads it."""
    rng, n_good, n_runs = np.random.default_rng(0), 0, 1000
    header, body = TEXT.split("\n", 1)
    for _ in range(n_runs):
        text = list(body)
        for place in rng.integers(len(text), size=rng.integers(3)):
            text[place] = str(rng.choice(["", *"0123459,: .-e\n"]))
        text = f"{header}\n{''.join(text)}"
        try:
            want = simple_parse(text)
        except ValueError:
            with pytest.raises(DataError):
                read_xc(save(tmp_path, text))
        else:
            check_data(read_xc(save(tmp_path, text)), *want)
            n_good += 1
    assert 0.2 < n_good / n_runs < 0.8


def random_csr(shape, seed, ones=False):
    matrix = scipy.sparse.random(*shape, density=0.05, format="csr", dtype=np.float32, random_state=seed)
    matrix.data = np.ones_like(matrix.data) if ones else np.float32(10) ** (matrix.data * 60 - 30)
    return matrix


@ENDINGS
def test_round_trip(tmp_path, ending):
    features, labels = random_csr((50, 40), 1), random_csr((50, 30), 2, ones=True)
    assert features.data.min() < 1e-20 and features.data.max() > 1e20 and 0 in np.diff(labels.indptr)
    path = tmp_path / f"data{ending}"
    write_xc(path, features, labels)
    check_data(read_xc(path), features.toarray(), labels.toarray())
    assert path.read_bytes()[:2] == {".gz": b"\x1f\x8b", ".xz": b"\xfd7", ".txt": b"50"}[ending]
    assert os.listdir(tmp_path) == [path.name]


def test_writes(tmp_path):
    path = tmp_path / "data.txt"
    data = read_xc(save(tmp_path, TEXT))
    write_xc(str(path), data.features, data.labels)
    assert path.read_text() == "6 5 4\n1,3 0:2 4:0.5\n 2:0.001\n0 \n2 0:0.25 1:3 4:-1\n \n0,3 2:7 3:8\n"


def test_write_sorts_a_copy(tmp_path):
    unsorted = scipy.sparse.csr_array((np.array([1.5, 2]), np.array([1, 0]), np.array([0, 2])), shape=(1, 2))
    write_xc(tmp_path / "data.txt", unsorted, scipy.sparse.csr_array((1, 1), dtype=bool))
    assert (tmp_path / "data.txt").read_text() == "1 2 1\n 0:2 1:1.5\n"
    assert unsorted.indices.tolist() == [1, 0]


ONE = scipy.sparse.csr_matrix(np.ones((2, 2), np.float32))
TWICE = scipy.sparse.csr_matrix((np.ones(2), np.array([0, 0]), np.array([0, 2, 2])), shape=(2, 2))


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (ONE.toarray(), ONE, TypeError, "features must be a SciPy CSR matrix, got ndarray"),
        (ONE, ONE.tocsc(), TypeError, "labels must be a SciPy CSR matrix, got csc_matrix"),
        (ONE, ONE[:1], ValueError, "the same number of rows, got 2 and 1"),
        (TWICE, ONE, ValueError, "features must not have duplicate entries"),
        (ONE, TWICE, ValueError, "labels must not have duplicate entries"),
        (ONE * np.float32(np.nan), ONE, ValueError, "features must be finite"),
        (ONE.astype(float) * 1e39, ONE, ValueError, "features must be finite"),
        (ONE, ONE * 0.5, ValueError, "labels must store ones only"),
    ],
)
def test_write_errors(tmp_path, features, labels, error, message):
    with pytest.raises(error, match=message):
        write_xc(tmp_path / "data.txt", features, labels)
    assert os.listdir(tmp_path) == []


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path, TEXT)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_xc(path, ONE, ONE)
    assert path.read_text() == TEXT and os.listdir(tmp_path) == [path.name]


@ENDINGS
def test_read_names(tmp_path, ending):
    path = save(tmp_path, "Käthe\nWorld War II\r\n\n tab\tblank ", ending)
    assert read_names(path) == read_names(str(path)) == ["Käthe", "World War II", "", " tab\tblank "]


@ENDINGS
def test_read_names_errors(tmp_path, ending):
    path = save(tmp_path, b"one\ntwo\nK\xe4the\n", ending)
    with pytest.raises(DataError, match="line 3: byte 0xe4 in column 2 is not UTF-8 text") as caught:
        read_names(path)
    assert str(path) in str(caught.value)


def test_read_no_names(tmp_path):
    assert read_names(save(tmp_path, "")) == []


@pytest.mark.parametrize("packed", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("name", ["data.txt", "data", "data.gz", "data.xz"])
def test_first_bytes_say_whether_a_file_is_compressed(tmp_path, packed, name):
    (tmp_path / name).write_bytes(packed(TEXT.encode()))
    check_data(read_xc(tmp_path / name), FEATURES, LABELS)


@ENDINGS
def test_a_byte_order_mark_is_dropped(tmp_path, ending):
    mark = b"\xef\xbb\xbf"
    check_data(read_xc(save(tmp_path, mark + TEXT.encode(), ending)), FEATURES, LABELS)
    names = save(tmp_path, mark + b"cat\ndog\n", ending)
    assert read_names(names) == ["cat", "dog"]
    for text, wanted in (mark, []), (mark + b"\n", [""]), (mark + mark + b"a\n", ["\ufeffa"]):
        assert read_names(save(tmp_path, text, ending)) == wanted


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(tmp_path, encoding):
    path = save(tmp_path, "cat\ndog\n".encode(encoding))
    for read in read_names, read_xc:
        with pytest.raises(DataError, match="data.txt: this looks like UTF-16 text; save it as UTF-8"):
            read(path)


@pytest.mark.parametrize("header", [b"", b"2000000000 1 1\n"])
@pytest.mark.parametrize("line", [b"\n", b"0\n"])
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_small_file_that_unpacks_to_very_much_is_refused(tmp_path, monkeypatch, pack, line, header):
    monkeypatch.setattr(readers, "UNCHECKED_BYTES", 1 << 16)
    monkeypatch.setattr(readers, "MAX_BLANK_LINES", 1 << 14)
    path = save(tmp_path, pack(header + line * (1 << 20)))
    read = read_xc if header else read_names
    wanted = "more than 16,384 consecutive blank lines; is this text?" if line == b"\n" else "bytes unpack to"
    with pytest.raises(DataError, match=rf"data.txt, line \d+: .*{wanted}"):
        read(path)
    if line == b"0\n":  # the same, unpacked, is read
        many = (1 << 20) - 9
        assert len(read_names(save(tmp_path, line * many))) == many


def test_headers_with_very_many_zeros(tmp_path):
    assert read_xc(save(tmp_path, "0" * 5000 + "1 2 1\n0 1:2\n")).features.nnz == 1
