"""Files are written whole or not at all, by several processes at once, on full disks, to links, pipes and devices."""

import errno
import os
import resource
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data
from sparsemax_nb.cli import main
from sparsemax_nb.core import checkpoint, files
from sparsemax_nb.data.arrays import write_float16
from sparsemax_nb.train import curves

pytestmark = pytest.mark.quick


def write(path, content):
    with files.writing(path) as file:
        file.write(content)


@pytest.fixture
def terminal():
    """A device of our own, and what is written to it: root must not replace /dev/null where the code is wrong."""
    master, slave = os.openpty()
    yield master, os.ttyname(slave)
    os.close(master)
    os.close(slave)


def test_a_new_file_has_the_permissions_of_open_and_an_old_one_keeps_its_own(tmp_path):
    os.umask(mask := os.umask(0))
    write(tmp_path / "new", b"new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask
    (tmp_path / "new").chmod(0o640)
    write(tmp_path / "new", b"newer")
    assert (tmp_path / "new").read_bytes() == b"newer" and (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["new"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.writing(path) as file:  # noqa: PT012  the block is what is tested
        file.write(b"half of the new one")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_links_are_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "target").write_bytes(b"old")
    (tmp_path / "second").symlink_to("folder/target")
    (tmp_path / "link").symlink_to(tmp_path / "second")
    (tmp_path / "dangling").symlink_to("folder/other")
    write(tmp_path / "link", b"new")
    write(tmp_path / "dangling", b"made")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink()
    assert (tmp_path / "folder" / "target").read_bytes() == b"new"
    assert (tmp_path / "folder" / "other").read_bytes() == b"made"
    assert sorted(os.listdir(tmp_path / "folder")) == ["other", "target"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop cannot be written: Too many levels of symbolic links"):
        write(tmp_path / "loop", b"")


def test_pipes_and_devices_are_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe", b"through")
    reader.join()
    assert found == [b"through"] and os.listdir(tmp_path) == ["pipe"]


def test_devices_are_written_to(terminal):
    master, path = terminal
    for n in range(2):
        write(path, b"through %d" % n)
        assert os.read(master, 99) == b"through %d" % n and stat.S_ISCHR(os.stat(path).st_mode)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_json_to_standard_output(capfd, path):
    """Which is a file here, as where a shell redirects it: what was printed before comes first and stays."""
    print("printed")
    main._write_json(path, {"figure": 1})
    print("after")
    assert capfd.readouterr().out == 'printed\n{\n  "figure": 1\n}\nafter\n'


def test_a_reader_that_has_enough():
    reader, writer = os.pipe()
    write(f"/dev/fd/{writer}", b"first")
    assert os.read(reader, 99) == b"first"
    os.close(reader)
    with pytest.raises(BrokenPipeError):  # for which the command line has an exit code of its own
        write(f"/dev/fd/{writer}", b"second")
    os.close(writer)


def test_somebody_elses_file_is_left_alone(tmp_path):
    others = ["model.part", ".model.part", ".model.123-0123456789.part", ".other.1-01234567.part"]
    for name in others:
        (tmp_path / name).write_text(name)
    (tmp_path / "model.part.d").mkdir()
    checkpoint.save(tmp_path / "model", "test", {"a": np.zeros(3)}, {})
    assert all((tmp_path / name).read_text() == name for name in others)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "model", "model.part.d"])


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    path = tmp_path / "model"
    handle, left = files._create(str(path))
    os.close(handle)  # so a process that is killed leaves it
    left = os.path.basename(left)
    assert os.listdir(tmp_path) == [left] and left.startswith(".model.") and left.endswith(".part")
    with files.writing(path) as file:
        file.write(b"first")
        assert left not in os.listdir(tmp_path)
        write(path, b"second")  # at the same time
        assert path.read_bytes() == b"second" and len(os.listdir(tmp_path)) == 2
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["model"]


def test_names_as_long_as_they_may_be(tmp_path):
    path = tmp_path / ("й" * 127)
    write(path, b"long")
    assert path.read_bytes() == b"long" and len(os.listdir(tmp_path)) == 1


def test_several_writers_of_one_path(tmp_path):
    """A reader finds a whole file of one of them at any time; no writer fails, no temporary file remains."""
    path, done = tmp_path / "model", []

    def save(n):
        for _ in range(20):
            checkpoint.save(path, "test", {"a": np.full(1000, n)}, {"n": n})
        done.append(n)

    save(0)
    writers = [threading.Thread(target=save, args=(n,)) for n in range(1, 5)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        arrays, description = checkpoint.load(path, "test")
        assert (arrays["a"] == description["n"]).all()
    assert sorted(done) == [0, 1, 2, 3, 4] and os.listdir(tmp_path) == ["model"]


def _json(path):
    main._write_json(path, list(range(20000)))


def _model(path):
    checkpoint.save(path, "test", {"a": np.zeros(20000)}, {})


def _points(path):
    points = data.bag_of_words(n_rows=5000, n_features=60, words_per_row=9, n_labels=40, labels_per_row=2, seed=1)
    data.write_xc(path, points.features, points.labels)


def _contexts(path):
    def fill(array):
        array[...] = 1

    write_float16(path, (5000, 10), fill)


def _picture(path):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots(3, 3)
    curves.write_figure(figure, path)


WRITERS = {"json": _json, "model": _model, "txt": _points, "txt.gz": _points, "npy": _contexts, "png": _picture}


@pytest.mark.parametrize("ending", WRITERS)
def test_full_disk(tmp_path, ending):
    """A limit on file sizes stands for a full disk. No array is filled before there is room for it (SIGBUS)."""
    path = tmp_path / f"file.{ending}"
    path.write_bytes(b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match=f"{path} cannot be written: File too large") as caught:
            WRITERS[ending](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


def test_room_is_reserved_before_contexts_are_written(tmp_path, monkeypatch, terminal):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"c\.npy cannot be written: No space left on device"):
        write_float16(tmp_path / "c.npy", (3, 2), lambda _: pytest.fail("the array was filled"))
    assert not os.listdir(tmp_path)
    with pytest.raises(OSError, match="must be a regular file"):
        write_float16(terminal[1], (3, 2), None)


@pytest.mark.parametrize("shape", [(3, 2), (0, 2), (1, 1)])
def test_contexts(tmp_path, shape):
    array = write_float16(tmp_path / "c.npy", shape, lambda a: np.copyto(a, np.arange(a.size).reshape(shape)))
    assert np.array_equal(np.load(tmp_path / "c.npy"), np.arange(array.size).reshape(shape))
    array[...] = 5
    assert (np.load(tmp_path / "c.npy") == 5).all() and array.dtype == np.float16


def test_what_cannot_be_written_is_found_before_the_work(tmp_path, terminal):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        files.check_writable(tmp_path / "no" / "file")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        files.check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.check_writable("")
    with pytest.raises(OSError, match=r"the disk has [0-9.,]+ MiB free, the file needs [0-9,]+\.[0-9] MiB") as caught:
        files.check_writable(tmp_path / "file", 1 << 60)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="/dev/fd/987 cannot be written: Bad file descriptor"):
        files.check_writable("/dev/fd/987")
    for path in (terminal[1], "/dev/fd/1", tmp_path / "file"):
        files.check_writable(path)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_read_only_files_and_folders(tmp_path):
    (tmp_path / "file").touch(0o444)
    with pytest.raises(PermissionError, match="file cannot be written: the file is read-only"):
        files.check_writable(tmp_path / "file")
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="other cannot be written: Permission denied"):
        files.check_writable(tmp_path / "other")
    tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "classifier", "--save", "X", "--json", "X"], "--json and --save must be different files"),
        (["train", "classifier", "--save", "X.png", "--plot", "L"], "--save and --plot must be different files"),
        (["train", "classifier", "--json", "X.png", "--plot", "./X.png"], "--json and --plot must be different files"),
        (
            ["train", "classifier", "--save", "X.st", "--json", "X.checkpoint.st"],
            "--json and the checkpoint of --save must be different files",
        ),
        (["train", "ds-softmax", "--model", "X", "--save", "X"], "--save and model must be different files"),
        (["predict", "X", "points.txt", "--json", "points.txt"], "--json and points.txt must be different files"),
        (["evaluate", "X", "--json", "X"], "--json and model must be different files"),
    ],
)
def test_one_file_is_not_named_twice(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("L").symlink_to("X.png")
    assert main.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["L"]


def test_saves_of_one_model_are_the_same_bytes(tmp_path):
    """And those of the format: the library of its name reads them, and we read what it writes."""
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(3, dtype=np.uint16),
        "e": np.zeros((0, 2)),
    }
    for name, some in ("one", arrays), ("two", dict(reversed(arrays.items()))):
        checkpoint.save(tmp_path / name, "test", some, {"x": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for name, array in safetensors.load_file(tmp_path / "one").items():
        assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name])
    metadata = {"format": "sparsemax_nb", "version": str(checkpoint.VERSION), "kind": "test", "description": '{"x": 1}'}
    safetensors.save_file(arrays, tmp_path / "theirs", metadata)
    ours, description = checkpoint.load(tmp_path / "theirs", "test")
    assert description == {"x": 1} and {name: a.tolist() for name, a in ours.items()} == {
        name: a.tolist() for name, a in arrays.items()
    }


@pytest.mark.parametrize("name", ["a" * 100, "ж" * 50, "\ud800 \U0001f600" * 10])
def test_descriptions_too_large_for_a_header(tmp_path, monkeypatch, name):
    monkeypatch.setattr(checkpoint, "MAX_DESCRIPTION", 1000)
    names = [f"{name}{n}" for n in range(100)]
    checkpoint.save(tmp_path / "m", "test", {"a": np.zeros(3)}, {"label_names": names})
    header = int.from_bytes((tmp_path / "m").read_bytes()[:8], "little")
    arrays, description = checkpoint.load(tmp_path / "m", "test")
    assert header < 1000 and description == {"label_names": names} and list(arrays) == ["a"]


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    checkpoint.save(tmp_path / "m", "test", {"a": np.zeros(100000)}, {})
    arrays, _ = checkpoint.load(tmp_path / "m", "test")
    os.truncate(tmp_path / "m", 4096)
    with pytest.raises(checkpoint.ModelFileError, match="truncated while it was read"):
        arrays["a"]


def test_compressed_points_are_read_again(tmp_path):
    points = scipy.sparse.csr_matrix(np.eye(3, dtype=np.float32))
    for ending in ("txt", "txt.gz", "txt.xz"):
        data.write_xc(tmp_path / f"p.{ending}", points, points)
        assert (data.read_xc(tmp_path / f"p.{ending}").features != points).nnz == 0
