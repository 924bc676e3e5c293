"""The kernel cache: keyed by the content of all that is compiled in, in a folder that is writable, or not at all."""

import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import sparsemax_nb
from sparsemax_nb.core import kernel_cache
from sparsemax_nb.core.device import njit

PACKAGE = Path(sparsemax_nb.__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of kernels."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    return tmp_path


def new_kernel():
    @njit
    def twice(x):
        return x + x

    return twice


def files(folder):
    return sorted(folder.glob("*.kernel"))


def hits(kernel):
    return sum(kernel.stats.cache_hits.values())


def test_the_sources_of_a_kernel_are_its_own_file_and_all_that_it_imports():
    found = {path.relative_to(PACKAGE).as_posix() for path in kernel_cache.sources(PACKAGE / "cpu" / "fixed_fan_in.py")}
    assert {"cpu/fixed_fan_in.py", "cpu/simd.py", "cpu/blocks.py", "core/formulas.py", "core/device.py"} <= found
    assert "core/rng.py" in found and not {"cpu/midx.py", "core/checkpoint.py", "fixed_fan_in.py"} & found


def test_a_kernel_is_compiled_once_for_each_signature(folder):
    first, second = new_kernel(), new_kernel()
    assert first(1) == 2 and first(1.5) == 3.0
    assert len(files(folder)) == 2 and hits(first) == 0
    assert second(1) == 2 and second(1.5) == 3.0
    assert hits(second) == 2


def test_an_edit_of_what_is_compiled_in_is_noticed(folder, monkeypatch):
    """An edit of any source file changes the fingerprint; then the old code is not found."""
    assert new_kernel()(1) == 2
    monkeypatch.setattr(kernel_cache, "_fingerprint", lambda source: "edited")
    again = new_kernel()
    assert again(1) == 2 and hits(again) == 0 and len(files(folder)) == 2


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("x = 1\n")
    b.write_text("x = 1\n")
    os.utime(a, (1, 1))
    os.utime(b, (0, 0))
    same = kernel_cache._fingerprint.__wrapped__
    kernel_cache.sources.cache_clear()
    assert same(a) == same(b)
    b.write_text("x = 2\n")
    os.utime(b, (0, 0))
    assert same(a) != same(b)


def test_files_that_changed_after_the_import_are_not_trusted(folder, monkeypatch):
    """Their content is not what is compiled: under its name, the old code would be found by every later process."""
    monkeypatch.setattr(kernel_cache, "IMPORTED", 0.0)
    kernel_cache._fingerprint.cache_clear()
    assert new_kernel()(1) == 2 and not files(folder)
    kernel_cache._fingerprint.cache_clear()


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "other key"])
def test_a_damaged_file_is_compiled_anew(folder, damage):
    assert new_kernel()(1) == 2
    (file,) = files(folder)
    others = {
        "empty": b"",
        "cut": file.read_bytes()[:-10],
        "foreign": b"no pickle",
        "other key": pickle.dumps(("key", None)),
    }
    file.write_bytes(others[damage])
    again = new_kernel()
    assert again(1) == 2 and hits(again) == 0
    third = new_kernel()
    assert third(1) == 2 and hits(third) == 1, "replaced"


def test_without_a_folder_there_is_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "file"))
    kernel_cache._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR") as told:  # noqa: PT031  two calls, one warning
        assert new_kernel()(1) == 2
        assert new_kernel()(1.5) == 3.0
    assert len(told) == 1


def test_a_full_disk_is_one_warning(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    kernel_cache._warn_once.cache_clear()
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._open_for_write", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert new_kernel()(1) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert new_kernel()(1) == 2


def test_kernels_can_be_flushed(folder):
    kernel = new_kernel()
    assert kernel(1) == 2
    kernel._cache.flush()
    assert not files(folder)


def test_a_read_only_package_and_home_still_work(tmp_path):
    """As in a container: the import must not fail, and the first kernel warns."""
    package = tmp_path / "sparsemax_nb"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    code = (
        "import pathlib, tempfile, numpy as np\n"
        "def read_only(*_, **__): raise OSError(30, 'Read-only file system')\n"  # root may write everywhere
        "tempfile.TemporaryFile = pathlib.Path.mkdir = read_only\n"
        "import sparsemax_nb\n"
        "print(sparsemax_nb.UniformSampler(1).sample(np.ones((1, 2), np.float32), 1, 0)[0])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout == "[[0]]\n" and done.stderr.count("NUMBA_CACHE_DIR") == 1, done.stderr
    assert not list(package.rglob("*.kernel"))
