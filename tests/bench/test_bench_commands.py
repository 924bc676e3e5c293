"""The benchmarks of group-shared layers and of scaling, `--profile`, and `python -m bench`."""

import contextlib
import importlib
import sys

import numpy as np
import pytest

import bench.__main__
from bench import forward, group_shared, neighbors, scaling, step
from sparsemax_nb.core.device import SIMULATOR


def test_group_shared_at_smoke_size(capsys):
    rows = group_shared.main(["--smoke", "--device", "cpu"])
    assert [row["benchmark"].rpartition(" ")[2] for row in rows] == ["forward", "top_k", "step", "step", "step"]
    for row in rows:
        assert {"ours", "ours, bfloat16", "ours, plain"} <= row["contestants"].keys()
        assert row["floor"]["seconds"] > 0
    assert "groups of 8, bfloat16 weights" in capsys.readouterr().out


def test_group_shared_notices_a_wrong_result(monkeypatch):
    wrong = group_shared.fixed_fan_in_forward
    monkeypatch.setattr(group_shared, "fixed_fan_in_forward", lambda h, layer, out: wrong(h, layer, out=out) + 1)
    with pytest.raises(AssertionError, match="wrong result, nothing was timed"):
        group_shared.main(["--smoke", "--device", "cpu"])


def test_dense_product_in_bfloat16():
    pytest.importorskip("torch", reason="PyTorch is not installed: it is an optional competitor")
    h = forward.inputs(20, 16, "cpu")
    dense = group_shared.dense_forward(h, 300, "bfloat16", 1e-2)
    dense.check(dense.run())
    with pytest.raises(AssertionError, match="the dense product is off"):
        dense.check(dense.run() * 1.05)
    with pytest.raises(AssertionError, match="the dense product is off"):
        group_shared.dense_forward(h, 300, "bfloat16", 1e-4).check(dense.run())


def test_scaling_at_smoke_size_and_points_that_do_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "LINES", {line: scaling.LINES[line] for line in ("group-shared", "PyTorch dense")})
    needs = scaling.needs
    monkeypatch.setattr(scaling, "needs", lambda line, *a: needs(line, *a) if line == "group-shared" else 1 << 60)
    (row,) = scaling.main(["--smoke", "--device", "cpu"])
    point = row["figures"]["group-shared"]["1000"]
    assert point["seconds"] > 0
    assert row["table"]["rows"][1][1] == "needs 1073741824.0 GiB"
    assert "group-shared 1,000" in capsys.readouterr().out


def test_slope_is_the_exponent():
    points = [(n, {"seconds": 3 * n**0.5}) for n in (10, 1000, 100)]
    assert scaling.slope(points, "seconds") == pytest.approx(0.5)


def test_every_benchmark_asks_a_question():
    summaries = bench.__main__.summaries()
    assert summaries["group_shared"].startswith("What does it gain if groups of labels share")
    assert "harness" not in summaries and "rows" not in summaries
    tools = {"gpu", "report"}
    assert all(summary.endswith("?") for name, summary in summaries.items() if name not in tools)


def test_profile_needs_cuda_and_an_existing_kernel(capsys):
    for arguments, message in (
        (
            ["--device", "cpu", "--profile", "fixed_fan_in.step_kernel"],
            "--profile fixed_fan_in.step_kernel needs a CUDA",
        ),
        (["--profile", "fixed_fan_in.step"], "invalid choice: 'fixed_fan_in.step'"),
    ):
        with pytest.raises(SystemExit):
            step.main(["--smoke", *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.cuda
def test_second_launch_is_profiled_and_ends_the_program(monkeypatch, capsys):
    """The first launch compiles and is checked; other kernels run normally."""
    events, module = [], importlib.import_module("sparsemax_nb.cuda.fixed_fan_in")

    @contextlib.contextmanager
    def profiled():
        events.append("start")
        yield
        events.append("stop")

    monkeypatch.setattr("bench.profiling.profiled", profiled)
    kernel = "forward_tiled_kernel" if SIMULATOR else "forward_wide_kernel"
    monkeypatch.setattr(module, kernel, getattr(module, kernel))  # restored at the end
    sizes = ["--rows", "3", "--inputs", "5", "--labels", "7", "--fan-in", "2"]
    with pytest.raises(SystemExit) as ended:
        forward.main(["--smoke", "--device", "cuda", *sizes, "--profile", f"fixed_fan_in.{kernel}"])
    assert ended.value.code == 0
    assert events == ["start", "stop"]
    assert f"profiled fixed_fan_in.{kernel}: grid (1, 1)" in capsys.readouterr().out


def test_neighbors_at_smoke_size(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    rows = neighbors.main(["--smoke", "--device", "cpu", "--threads", "1"])
    assert [row["parameters"]["rows"] for row in rows] == [64, 1]
    for row in rows:
        assert row["contestants"]["FAISS flat"] == {"unavailable": "FAISS is not installed (pip install faiss-cpu)"}
        assert all(row["contestants"][name]["median_s"] > 0 for name in ("ours", "NumPy", "scikit-learn"))
        assert row["floor"]["seconds"] > 0 and row["memory"]["ours"]["held"] >= 2000 * 16 * 4
    assert "IndexFlatIP" not in capsys.readouterr().out


def test_wrong_neighbors_are_noticed():
    points, h = neighbors.clustered(300, 20, 8)
    check = neighbors.checker(h, points, 4)
    ids = np.argsort(-(h @ points.T), axis=1)[:, :5]
    check(ids[:, :4])
    for wrong, message in (
        (ids, "ids have shape"),
        (ids[:, [0, 1, 2, 4]], "the products of the points found are off"),
        (ids[:, [1, 0, 2, 3]], "the products of the points found are off"),
        (ids[:, [0, 1, 2, 2]], "a point is found twice"),
    ):
        with pytest.raises(AssertionError, match=message):
            check(wrong)


def test_faiss_finds_the_same_neighbors():
    pytest.importorskip("faiss", reason="FAISS is not installed: it is an optional competitor")
    points, h = neighbors.clustered(300, 20, 8)
    neighbors.checker(h, points, 4)(neighbors.faiss_flat(points, h, 4).run())
