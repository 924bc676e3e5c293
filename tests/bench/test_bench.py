"""The benchmarks at smoke size, and the arithmetic and file handling of their shared modules."""

import functools
import json
import re
import sys
import types

import numpy as np
import pytest
import scipy.sparse

from bench import (
    accuracy,
    closeness,
    cross_entropy,
    ds_softmax,
    forward,
    gpu,
    harness,
    hierarchy,
    language,
    language_step,
    lstm,
    machine,
    memory_670k,
    overview,
    pecos,
    report,
    rows,
    sampling,
    scaling,
    step,
    tables,
    timing,
    words,
    words_scale,
)
from bench.peers import Peer, Unavailable, fused_losses, pytorch
from bench.peers import pecos as pecos_peer
from sparsemax_nb import PackedDSSoftmax, data, metrics, train
from sparsemax_nb.internals import peak_memory
from tests.helpers import threads


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_forward_without_torch(no_torch, tmp_path, capsys):
    (row,) = forward.main(["--smoke", "--device", "cpu", "--json", str(tmp_path / "f.json")])
    assert row["contestants"]["PyTorch CSR"] == {"unavailable": "PyTorch is not installed"}
    assert row["contestants"]["SciPy CSR"]["ratio_to_ours"] > 0
    assert row["parameters"]["labels"] == 300 and row["parameters"]["repeats"] == 2
    assert json.loads((tmp_path / "f.json").read_text()) == [json.loads(json.dumps(row))]
    printed = capsys.readouterr().out
    assert "PyTorch is not installed" in printed and "Floor: " in printed


def test_step_without_torch(no_torch):
    rows = step.main(["--smoke", "--device", "cpu", "--threads", "1"])
    assert [row["benchmark"] for row in rows] == ["step", "step", "step", "top_k"]
    active = [row["parameters"].get("active_scores_percent") for row in rows]
    assert 0 < active[0] < 10 and active[1] > 99 and active[2] == 100
    assert rows[0]["contestants"]["PyTorch dense"] == {"unavailable": "PyTorch is not installed"}


def test_forward_and_step_with_torch():
    pytest.importorskip("torch", reason="PyTorch is not installed: it is an optional competitor")
    rows = forward.main(["--smoke", "--device", "cpu"]) + step.main(["--smoke", "--device", "cpu", "--threads", "1"])
    for row in rows:
        assert not any("unavailable" in c for c in row["contestants"].values())


def test_cross_entropy_without_torch(no_torch, capsys):
    small, accuracy, large = cross_entropy.main(["--smoke", "--device", "cpu", "--threads", "1"])
    for row in small, large:
        assert row["contestants"]["PyTorch"] == {"unavailable": "PyTorch is not installed"}
        assert {"ours", "ours, bfloat16"} == set(row["memory"])
        assert row["contestants"]["ours, bfloat16"]["ratio_to_ours"] > 0
    assert (small["parameters"]["classes"], large["parameters"]["classes"]) == (300, 500)
    for errors in accuracy["figures"].values():
        assert 0 < errors["dw max"] < 1e-5 and 0 < errors["dh rms"] < 1e-5 and errors["loss"] < 1e-5
    assert "| dw rms |" in capsys.readouterr().out


def test_cross_entropy_with_torch(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: it is an optional competitor")
    small, accuracy, large = cross_entropy.main(["--smoke", "--device", "cpu", "--threads", "1"])
    assert set(small["memory"]) == set(large["memory"]) == set(accuracy["figures"]) == {*small["contestants"]}
    monkeypatch.setattr("bench.peers.pytorch.free_memory", lambda: 300 * 48 * 12 - 1)
    arrays = cross_entropy.problem(48, 16, 300)
    with pytest.raises(Unavailable, match="need 0.0 GiB"):
        pytorch.cross_entropy(*arrays)


def test_a_wrong_gradient_is_noticed():
    arrays = cross_entropy.problem(48, 16, 300)
    truth, check = cross_entropy.exact(*arrays), cross_entropy.checker(*arrays)
    check(truth)
    for i, name in enumerate(("loss", "dh", "dw", "dbias")):
        wrong = list(truth)
        wrong[i] = truth[i] + 3e-4 * np.abs(truth[i]).max()
        with pytest.raises(AssertionError, match=name):
            check(wrong)


def test_competitors_of_the_loss_in_bfloat16(monkeypatch):
    """Each is within its own tolerance, but not within ours. Stubs replace the packages and take their arguments."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is an optional competitor")
    arrays = cross_entropy.problem(48, 16, 300)
    h, w, bias, targets = arrays
    with pytest.raises(Unavailable, match="need a GPU"):
        fused_losses.cut_cross_entropy(h, w, targets)
    entropy, linear = torch.nn.functional.cross_entropy, torch.nn.functional.linear
    package = types.SimpleNamespace(
        linear_cross_entropy=lambda e, c, targets: entropy(linear(e, c), targets),
        LigerFusedLinearCrossEntropyLoss=lambda: lambda w, h, targets, bias: entropy(linear(h, w, bias), targets),
    )
    monkeypatch.setattr(fused_losses, "_package", lambda *names: package)
    competitors = {
        "PyTorch, bfloat16": (cross_entropy.ROUNDED, pytorch.cross_entropy(*arrays, "bfloat16")),
        "Liger, bfloat16": (cross_entropy.ROUNDED, fused_losses.liger(*arrays, "bfloat16")),
        cross_entropy.CUT: (cross_entropy.SUMMED, fused_losses.cut_cross_entropy(h, w, targets)),
    }
    for name, (tolerance, peer) in competitors.items():
        truth = cross_entropy.exact(*cross_entropy.inputs_of(arrays, *cross_entropy.kind_of(name)))
        result = cross_entropy.to_numpy(peer.run())
        cross_entropy.require_close(result, truth, tolerance)
        assert (result[3] is None) == (name == cross_entropy.CUT)
        with pytest.raises(AssertionError, match="is off by|the loss is"):
            cross_entropy.require_close(result, truth)
    package.LigerFusedLinearCrossEntropyLoss = lambda: functools.partial(int, "no compiler")
    with pytest.raises(Unavailable, match="TypeError: "):
        fused_losses.liger(*arrays, "float32")


def test_lstm_without_torch(no_torch, capsys):
    (row,) = lstm.main(["--smoke", "--device", "cpu", "--threads", "1"])
    assert row["contestants"]["PyTorch"] == {"unavailable": "PyTorch is not installed"}
    assert row["parameters"]["layers"] == 2 and row["floor"]["parts"]
    rate = re.search(r"Tokens per second: ours ([\d,]+)\.\n", capsys.readouterr().out)[1].replace(",", "")
    assert int(rate) == pytest.approx(5 * 3 / row["contestants"]["ours"]["median_s"], abs=1)


def test_lstm_with_torch():
    pytest.importorskip("torch", reason="PyTorch is not installed: it is an optional competitor")
    (row,) = lstm.main(["--smoke", "--device", "cpu", "--threads", "1"])
    assert row["contestants"]["PyTorch"]["ratio_to_ours"] > 0 and "PyTorch" in row["notes"][0]


def test_a_wrong_gradient_of_the_lstm_is_noticed():
    truth = lstm.exact(*lstm.problem(3, 2, 4))
    check = lstm.checker(truth)
    check(truth)
    assert len(truth) == 8
    for i in range(len(truth)):
        wrong = list(truth)
        wrong[i] = truth[i] * (1 + 3e-4)
        with pytest.raises(AssertionError, match="is off by"):
            check(wrong)


def test_sampling_without_torch(no_torch, capsys):
    draws, index, a_step = sampling.main(["--smoke", "--device", "cpu", "--threads", "1"])
    assert [row["benchmark"] for row in (draws, index, a_step)] == ["sampling", "sampling: index", "sampling: step"]
    assert [cells[0] for cells in draws["table"]["rows"]] == ["MIDX uniform", "MIDX popularity", "uniform", "unigram"]
    assert index["figures"]["3000"]["build"] > 0
    assert a_step["contestants"][sampling.ADAM_BASELINE] == {"unavailable": "PyTorch is not installed"}
    assert "- Parts of our step: draws and their log Q " in capsys.readouterr().out


def test_sampling_with_torch():
    pytest.importorskip("torch", reason="PyTorch is not installed: it is an optional competitor")
    *_, row = sampling.main(["--smoke", "--device", "cpu", "--threads", "1"])
    assert not any("unavailable" in c for c in row["contestants"].values())


def test_wrong_draws_are_not_timed():
    sampler, h = sampling.UnigramSampler(np.arange(1, 51)), np.zeros((4, 2), np.float32)
    check = sampling.check_draws(sampler, np.arange(1, 51), h)
    ids, log_q = sampler.sample(h, 9, seed=0)
    check((ids, log_q))
    with pytest.raises(AssertionError, match="differs from log_prob"):
        check((ids, log_q + np.float32(0.01)))
    with pytest.raises(AssertionError, match="out of range"):
        check((ids + 50, log_q))
    with pytest.raises(AssertionError, match="a log-probability is off"):
        sampling.check_draws(sampler, np.ones(50), h)((ids, log_q))


def closeness_data(seed=0):
    random = np.random.default_rng(seed)
    classes = (random.standard_normal((10, 8))[np.arange(300) % 10] + random.standard_normal((300, 8)) / 3) / 2
    arrays = {"classes": classes.astype(np.float32), "queries": random.standard_normal((50, 8)).astype(np.float32)}
    return arrays | {"counts": random.zipf(1.5, 300).clip(max=500) - 1}  # some zero


def test_closeness(tmp_path, capsys):
    arrays = closeness_data()
    np.savez(tmp_path / "model.npz", **arrays)
    where = ["--json", str(tmp_path / "c.json"), "--picture", str(tmp_path / "c.png"), "--codewords", "4", "16"]
    row = closeness.main([str(tmp_path / "model.npz"), "--queries", "20", "--threads", "1", *where])
    assert row["parameters"]["queries"] == 20 and row["parameters"]["classes"] == 300
    lines, curves = row["figures"]["lines"], row["figures"]["curves"]
    assert list(lines) == ["uniform", "log-uniform", "unigram", "LSH", "Sphere*", "RFF*"]
    assert all(np.isfinite(v) and v > 0 for v in lines.values())
    assert curves["rq uniform"][16] < curves["rq uniform"][4] < lines["uniform"]
    assert len(curves) == 8 and len({curve[16] for curve in curves.values()}) == 8
    printed = capsys.readouterr().out
    assert "midx-rq is closer than midx-pq" in printed and "that of midx-rq with 16 codewords" in printed
    assert json.loads((tmp_path / "c.json").read_text())[0]["benchmark"] == "closeness"
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "c.png", "model.npz"]


def test_divergence_is_exact():
    arrays = closeness_data()
    weights, h = arrays["classes"], arrays["queries"]
    logits = h.astype(np.float64) @ weights.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    uniform = closeness.divergence(sampling.UniformSampler(300), weights, h)
    assert uniform == pytest.approx((p * np.log(p * 300)).sum(1).mean(), rel=1e-6)
    q = np.arange(1, 301) / np.arange(1, 301).sum()
    order = np.random.default_rng(1).permutation(300)
    got = closeness.divergence(
        sampling.UnigramSampler(q[np.argsort(order)]), weights, h
    )  # class order[i] has probability q[i]
    assert got == pytest.approx((p[:, order] * np.log(p[:, order] / q)).sum(1).mean(), rel=1e-5)
    exact = sampling.InvertedMultiIndex.build(weights, 8, residual="exact")
    assert abs(closeness.divergence(exact, weights, h)) < 1e-5


def test_labels_are_spread():
    assert closeness._spread([0, 5, 9], 2) == [0, 5, 9]
    assert closeness._spread([0, 1, 9], 2) == pytest.approx([-0.5, 1.5, 9])
    assert closeness._spread([0, 1, 1, 3.5], 2) == pytest.approx([-1.625, 0.375, 2.375, 4.375])


def test_closeness_refuses_bad_files(tmp_path, capsys):
    arrays = closeness_data()
    (tmp_path / "folder").mkdir()
    for name, value in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", value)
    assert [len(a) for a in closeness.read(tmp_path / "folder", 7)] == [300, 7, 300, 43]
    assert len(closeness.read(tmp_path / "folder", 50)[3]) == 0
    np.savez(tmp_path / "a.npz", classes=arrays["classes"])
    np.savez(tmp_path / "b.npz", **(arrays | {"counts": np.ones(3)}))
    np.savez(tmp_path / "c.npz", **(arrays | {"queries": np.ones((2, 5), np.float32)}))
    for name, message in (
        ("a", "lacks queries, counts"),
        ("b", "counts must have one entry per class"),
        ("c", "must have the same width"),
    ):
        with pytest.raises(SystemExit):
            closeness.main([str(tmp_path / f"{name}.npz")])
        assert message in capsys.readouterr().err


def test_closeness_of_a_model(tmp_path, capsys):
    from sparsemax_nb import data, train

    points = data.bag_of_words(n_rows=90, n_features=30, words_per_row=4, n_labels=40, labels_per_row=2, seed=1)
    for part, some in ("train", slice(0, 60)), ("test", slice(60, 90)):
        data.write_xc(tmp_path / f"{part}_bow.txt", points.features[some], points.labels[some])
    made = {
        "architecture": "network",
        "embedding": 8,
        "epochs": 2,
        "device": "cpu",
        "progress": False,
        "fan_in": 4,
        "intermediate": 16,
    }
    model = train.Classifier(output="dense", loss="softmax", **made).fit(points.features[:60], points.labels[:60])
    model.save(tmp_path / "dense.safetensors")
    weights, h, counts, others = closeness.read(tmp_path / "dense.safetensors", 7, str(tmp_path))
    assert (weights == model.network_.output.weights).all() and counts.sum() == points.labels[:60].nnz
    np.testing.assert_array_equal(h[0], model.encode(points.features[60:61])[0])
    assert h.shape == (7, 8) and others.shape == (23, 8)
    train.Classifier(**made).fit(points.features[:60], points.labels[:60]).save(tmp_path / "sparse.safetensors")
    for arguments, message in (
        (["dense.safetensors"], "give its data with --data"),
        (["sparse.safetensors", "--data", str(tmp_path)], "dense"),
    ):
        with pytest.raises(SystemExit):
            closeness.main([str(tmp_path / arguments[0]), *arguments[1:]])
        assert message in capsys.readouterr().err


def test_memory(tmp_path, capsys):
    (row,) = memory_670k.main(["--smoke", "--device", "cpu", "--threads", "1", "--json", str(tmp_path / "m.json")])
    figures = row["figures"]
    assert 0 < figures["predicted"] < 64 << 20 and figures["measured"] > 0 and figures["samples_per_second"] > 0
    names = [cells[1] for cells in row["table"]["rows"]]
    assert {"output.values", "predicted peak", "**measured peak**"} <= set(names)
    assert "an epoch of 490,449 points would take" in capsys.readouterr().out


def test_accuracy_rows_table_and_picture(tmp_path, monkeypatch, capsys):
    from sparsemax_nb import data

    points = data.bag_of_words(n_rows=200, n_features=30, words_per_row=4, n_labels=100, labels_per_row=2, seed=1)
    for part, some in ("train_bow", slice(0, 140)), ("dev_bow", slice(140, 170)), ("test_bow", slice(170, 200)):
        data.write_xc(tmp_path / f"{part}.txt", points.features[some], points.labels[some])
    monkeypatch.setattr(accuracy, "FOLDER", tmp_path / "rows")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(accuracy, "PICTURE", tmp_path / "rewiring.png")
    small = {"batch-size": 32, "embedding": 16, "epochs": 2, "seed": 0, "rewire-every": 3, "device": "cpu"}
    small |= {"intermediate": 64, "fan-in": 8, "n-samples": 5, "n-codewords": 4}
    names = "dense-512", accuracy.REWIRED, accuracy.NOT_REWIRED, "softmax-midx-rq-100", "default-fixed-fan-in"
    for name in names:
        monkeypatch.setitem(accuracy.OPTIONS, name, accuracy.OPTIONS[name] | small)
        assert accuracy.main([name, "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--threads", "1"]) == 0
    results = rows.finished(accuracy.ROWS, accuracy.FOLDER)
    assert list(results) == ["dense-512", accuracy.REWIRED, accuracy.NOT_REWIRED]
    rewired = results[accuracy.REWIRED]
    assert "connections_changed" not in rows.finished(accuracy.OUTPUTS, accuracy.FOLDER)["default-fixed-fan-in"]
    assert 0 < rewired["connections_changed"] < 1 and str(tmp_path) not in json.dumps(rewired["command"])
    assert accuracy.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert "| fixed-fan-in-32-intermediate |" in shown and "dense with intermediate (projected)" in shown
    assert "Not trained: `python -m bench.accuracy bottleneck-64" in shown
    assert (tmp_path / "rewiring.png").read_bytes().startswith(b"\x89PNG")
    assert "| softmax-midx-rq-100 |" in shown and "updates of the index in" in shown
    assert "Not trained: `python -m bench.accuracy softmax-full" in shown
    written = json.loads((tmp_path / "accuracy-cpu.json").read_text())
    assert [row["benchmark"] for row in written] == ["accuracy", "accuracy: softmax", "accuracy: defaults"]


def test_words_scale(tmp_path, monkeypatch, capsys):
    measured = words_scale.measure
    monkeypatch.setattr(words_scale, "measure", lambda *row: measured(*row, n_points=2000, n_words=400, n_test=200))
    monkeypatch.setattr(words_scale, "FOLDER", tmp_path / "rows")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setitem(words_scale.ROWS, "1000-labels-2-threads", (1000, 1))  # also where there is one core
    with threads(1):
        assert words_scale.main(["1000-labels-2-threads"]) == 0
    found = json.loads((tmp_path / "rows" / "1000-labels-2-threads.json").read_text())
    assert found["P@1"] > 0.2 and found["second_pass_seconds"] > 0 and found["labels"] == 1000
    assert words_scale.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert "| 1,000 | 1 |" in shown and "Not run: `python -m bench.words_scale 10000-labels-2-threads`" in shown
    x, y = words_scale.titles(50, 40, 30)
    assert (
        x.shape == (50, 40)
        and (x.sum(1) == words_scale.WORDS_PER_TITLE).all()
        and (y.sum(1) == words_scale.LABELS_PER_TITLE).all()
    )


def test_ablation_table():
    row = {
        "test": dict.fromkeys(("P@1", "P@3", "P@5", "PSP@5"), 0.5),
        "settings": {"C": 0.25, "slack": 0.1, "frequency": 0.0},
        "train_seconds": 3.0,
        "fit_seconds": 2.0,
        "model_bytes": 1 << 20,
        "environment": {"machine": {"cpu": "A"}},
    }
    assert words.ingredients("tate", {"linear": row}) is None
    other = row | {"environment": {"machine": {"cpu": "B"}}}
    found = {
        "linear": row,
        "no-slack": other | {"settings": {"C": 1.0, "slack": 0.0, "frequency": 0.01}},
        "2-passes": other,
    }
    made = words.ingredients("tate", found)
    assert [r[0] for r in made["table"]["rows"]] == ["linear", "no-slack", "2-passes"]
    assert "Measured on another machine (do not compare the times): linear." in made["notes"]
    assert made["table"]["rows"][1] == ["no-slack", *["50.00"] * 4, "1.00", "0", "0.01", "3.0", "2.0", "1.0"]


def test_pecos_is_skipped_or_a_row(tmp_path, monkeypatch, capsys):
    points = data.bag_of_words(n_rows=60, n_features=30, words_per_row=4, n_labels=20, labels_per_row=2, seed=1)
    for part, some in ("train_bow", slice(0, 40)), ("test_bow", slice(40, 60)):
        data.write_xc(tmp_path / f"{part}.txt", points.features[some], points.labels[some])
    monkeypatch.setattr(accuracy, "FOLDER", tmp_path / "rows")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    command = ["--data", str(tmp_path), "--work", str(tmp_path / "work")]
    assert pecos.main([*command, "--python", str(tmp_path / "none")]) == 2
    assert "none does not run" in capsys.readouterr().err
    figures = {"train_seconds": 7, "network_bytes": 3 << 20, "peak_memory_bytes": 5 << 20}
    figures |= {"ms_a_query": 0.25, "ms_a_query_alone": 0.5, "versions": {"libpecos": "1.2.8", "numpy": "1.26.4"}}

    def run(python, *arguments, threads=1):
        if arguments[0] != "-c":
            labels = scipy.sparse.load_npz(tmp_path / "work" / f"pecos-{tmp_path.name}" / "train_y.npz")
            assert labels.shape == (40, 20) and json.loads(arguments[2])["beam"] == 10
            np.save(tmp_path / "work" / f"pecos-{tmp_path.name}" / "ids.npy", np.full((20, 5), -1, np.int32))
        return types.SimpleNamespace(returncode=0, stderr="", stdout=json.dumps(figures))

    monkeypatch.setattr(pecos_peer, "_run", run)
    assert pecos.main(command) == 0
    row = json.loads((tmp_path / "rows" / "pecos-xr-linear.json").read_text())
    assert row["test"]["P@5"] == 0 and row["environment"]["versions"]["numpy"] == "1.26.4"
    assert accuracy.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert (
        "| pecos-xr-linear | 0.00 |" in shown
        and "Trained in 7 s" in shown
        and "0.50 ms with one query per call" in shown
    )


def test_rows_measured_elsewhere_are_marked():
    here, elsewhere = sample_row()["environment"], sample_row("Processor B")["environment"]
    newer = here | {"versions": here["versions"] | {"numpy": "9.9"}}
    found = {name: {"environment": e} for name, e in {"a": elsewhere, "b": here, "c": here, "d": newer}.items()}
    table = {"table": {"rows": [["a"], ["b"], ["c"], ["d"], ["projected"]]}, "notes": [], "environment": elsewhere}
    rows.mark_other_machines(table, found)
    assert [cells[0] for cells in table["table"]["rows"]] == ["a [1]", "b", "c", "d [2]", "projected"]
    assert table["environment"]["machine"]["cpu"] == "Processor A"
    assert "[1]: " in table["notes"][0] and "Processor B" in table["notes"][0] and "numpy 9.9" in table["notes"][1]


def test_a_wrong_result_is_not_timed():
    calls = []

    def check(result):
        timing.require(result == 2, f"got {result}, not 2")

    with pytest.raises(AssertionError, match="got 1, not 2"):
        timing.measure("wrong", lambda: calls.append(0) or 1, check, repeats=5)
    assert len(calls) == 1
    scores = np.zeros((2, 300), np.float32)
    layer = forward.FixedFanIn.random(300, 16, 4, seed=0)
    with pytest.raises(AssertionError, match="scores are off"):
        forward.checker(forward.inputs(2, 16, "cpu"), layer)(scores)


def test_turns_and_arithmetic():
    calls = []
    contestants = {n: timing.Contestant(lambda n=n: calls.append(n), lambda _: None) for n in "ab"}
    timings = timing.compare(contestants, 2, pause=0)
    assert "".join(calls) == "aabb" + "abab"
    assert [len(t.seconds) for t in timings.values()] == [2, 2]
    ours = timing.Timing("ours", 9.0, [1.0, 2.0, 4.0])
    other = timing.Timing("other", 9.0, [3.0, 4.0, 4.0])
    assert ours.summary()["median_s"] == 2 and ours.summary()["min_s"] == 1 and ours.summary()["first_call_s"] == 9
    assert ours.summary()["q90_s"] == pytest.approx(2 + 0.8 * 2)
    assert timing.ratio(other, ours)["ratio_to_ours"] == 2  # the median of 3, 2 and 1


def test_memory_growth():
    with machine.memory_growth() as growth:
        np.ones(32 << 20, np.uint8)
    if growth["bytes"] is None:
        pytest.skip("/proc has no high-water mark on this system")
    assert 31 << 20 <= growth["bytes"] < 64 << 20 and peak_memory() > 32 << 20


def sample_row(cpu="Processor A", n_labels=10, seconds=0.002):
    contestants = {
        "ours": timing.Contestant(None, None, "fast"),
        "other": timing.Contestant(None, None),
        "absent": Unavailable("not installed"),
    }
    timings = {"ours": timing.Timing("ours", 1.0, [seconds]), "other": timing.Timing("other", 1.0, [0.006])}
    parts = {"bytes stored": {"amount": 1e6, "unit": "B", "limit": 1e9}}
    floor, targets = {"seconds": 0.001, "bound": "bytes stored", "parts": parts}, {"other": (2, 4), "absent": (2, 4)}
    row = tables.make_row("demo", {"labels": n_labels}, contestants, timings, floor=floor, targets=targets)
    row["environment"]["machine"]["cpu"] = cpu
    return row


def test_rows_are_replaced_and_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "results" / "demo-cpu.json"
    tables.write_rows(path, [sample_row(), sample_row(n_labels=20)])
    tables.write_rows(path, [sample_row(seconds=0.001), sample_row("Processor B")])
    rows = json.loads(path.read_text())
    found = sorted((r["environment"]["machine"]["cpu"], r["parameters"]["labels"]) for r in rows)
    assert found == [("Processor A", 10), ("Processor A", 20), ("Processor B", 10)]
    assert {r["contestants"]["ours"]["median_s"] for r in rows} == {0.001, 0.002}

    with pytest.raises(TypeError):
        tables.write_rows(path, [sample_row() | {"floor": object()}])
    assert json.loads(path.read_text()) == rows and len(list(path.parent.iterdir())) == 1


def test_report(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "PROSE", tmp_path / "prose.md")
    monkeypatch.setattr(report, "draw", lambda rows: None)
    monkeypatch.setattr(overview, "write", lambda rows: None)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    (tmp_path / "gpu.json").write_text(json.dumps([sample_row("Processor B"), sample_row()]))
    report.PROSE.write_text(f"before\n\n{report.START}\nold\n{report.END}\n\nafter\n")
    for _ in range(2):
        report.main(["--add", str(tmp_path / "gpu.json")])
    text = report.README.read_text()
    assert text.startswith("before\n") and text.endswith("\n\nafter\n") and "old" not in text
    assert text.count("| other | 6.00 | 6.00 - 6.00 | 6.00 | 3.00 (3.00 - 3.00) |") == 2
    assert "3.00 times as fast as other (target 2)." in text and "| absent | - |" in text
    assert "| bytes stored | 0.00 GB at 1 GB/s | 1.00 | 50% |" in text and "ours takes 2.0 times as long" in text
    sections = text.split("### ")[1:]
    assert ["Processor A" in s for s in sections] == [True, False]
    assert all(s.count("**demo**") == 1 for s in sections)


def test_readmes_and_pictures_come_from_the_results(monkeypatch, tmp_path):
    """Both README.md are up to date with bench/results/, and the figures can be drawn from rows read from files."""
    rows = [row for path in sorted(tables.RESULTS.glob("*.json")) for row in json.loads(path.read_text())]
    assert report.README.read_text() == report.readme(rows), "edit prose.md and run python -m bench.report"
    text = overview.README.read_text()
    assert text == overview.readme(text, rows), "run python -m bench.report"
    for module in (accuracy, closeness, ds_softmax, language, overview, scaling, words):
        monkeypatch.setattr(module, "PICTURE", tmp_path / module.PICTURE.name)
    report.draw(rows)
    drawn = {"closeness", "ds_softmax", "overview", "perplexity", "rewiring", "scaling", "words"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in drawn}


def test_rows_go_where_their_benchmark_writes_them(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    names = {"top_k": "step", "group-shared step": "group_shared", "hierarchy: 10x10": "hierarchy", "step": "step"}
    (tmp_path / "gpu").write_text(json.dumps([sample_row() | {"benchmark": name} for name in names]))
    report.add(tmp_path / "gpu")
    assert {path.stem for path in tmp_path.glob("*.json")} == {f"{name}-cpu" for name in names.values()}


def test_no_floor_where_no_limit_is_known(monkeypatch):
    monkeypatch.setattr(harness, "machine_limits", lambda *a: {"dram_copy": 2.0})
    args = types.SimpleNamespace(threads=1, device="cuda", smoke=True)
    assert harness.floor(args, {"products": (6, "flops")}) is None
    assert harness.floor(args, {"products": (6, "flops"), "bytes": (6, "dram_copy")})["seconds"] == 3


def test_gpu_needs_a_device_and_survives_failing_parts(tmp_path, capsys, monkeypatch):
    assert gpu.main(["--dry-run"]) == 0
    commands = capsys.readouterr().out
    assert "python -m bench.step --device cuda" in commands
    assert re.search(r"bench.cross_entropy --device cpu .*--large-rows 1024\n", commands)
    assert "ds_softmax" not in commands and "pecos" not in commands  # they need a model, and a separate Python
    assert "bench.neighbors --device cuda" in commands
    assert "bench.texts" not in commands and "later_labels" not in commands  # they have no --device
    assert not any(f"bench.{name} " in commands for name in ("__main__", "harness", "plotting", "tables", "timing"))
    assert gpu.limit_of("tests", ["a cuda", "b cpu"], 570) == gpu.TESTS_LIMIT
    assert gpu.limit_of("a cuda", ["b cuda", "c cpu"], 570) == gpu.BENCHMARK_LIMIT
    assert gpu.limit_of("a cuda", ["b cuda", "c cpu"], 60) == gpu.limit_of("c cpu", [], 30) == 30
    monkeypatch.setattr(gpu, "cuda_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists() and "needs a real CUDA device" in capsys.readouterr().err
    with open(tmp_path / "log.txt", "w") as log:
        failed = gpu.run_part("bad", ["python", "-c", "print('hello'); raise SystemExit(3)"], 20, log)
        slow = gpu.run_part("slow", ["python", "-c", "import time; time.sleep(60)"], 0.01, log)
        late = gpu.run_part("late", ["python", "-c", "1"], 0, log)
    assert failed["rc"] == 3 and slow["rc"] == late["rc"] == 124
    assert "hello" in (tmp_path / "log.txt").read_text()
    assert gpu.junit_counts(tmp_path / "none.xml") == {}


def test_fastest_and_peers():
    assert timing.fastest({"slow": lambda: np.ones(1 << 22).sum(), "fast": lambda: None}) == "fast"
    assert harness.offer(None, lambda: Peer(lambda: 3)).run() == 3
    checked = harness.offer(
        lambda result, extra: timing.require(result == extra, "no"), lambda: Peer(lambda: 3, "", (3,))
    )
    checked.check(3)


LANGUAGE = {
    "width": 16, "n_layers": 1, "sampler": "none", "epochs": 6, "learning_rate": 0.03, "dropout": 0.0, "batch_size": 8,
    "progress": False, "device": "cpu",
}  # fmt: skip


def test_ds_softmax(tmp_path, monkeypatch, capsys):
    """From a language model to the table and the figures; wrong answers stop the benchmark."""
    random = np.random.default_rng(0)
    for part, n in (("train", 4000), ("valid", 400), ("test", 400)):
        words = random.integers(1, 3, n).cumsum() % 30
        (tmp_path / f"{part}.txt").write_text(" ".join(f"w{i}" for i in words) + "\n")
    model, file = train.LanguageModel(**LANGUAGE), tmp_path / "m.st"
    text = data.load_text(tmp_path)
    model.fit(text.train, vocabulary=text.vocabulary).save(file)
    small = ds_softmax.SHARED | {"n_experts": 4, "epochs": 3, "batch_size": 50}
    monkeypatch.setitem(ds_softmax.SETTINGS, train.LanguageModel.kind, small | {"learning_rate": 3e-3})
    for name, value in {
        "MIN_EXPERTS": 2,
        "PICTURE": tmp_path / "a.png",
        "PICTURE_OF_WORDS": tmp_path / "b.png",
    }.items():
        monkeypatch.setattr(ds_softmax, name, value)
    command = [
        str(tmp_path),
        "--model",
        str(file),
        "--work",
        str(tmp_path / "work"),
        "--repeats",
        "2",
        "--threads",
        "1",
    ]
    assert ds_softmax.main([*command, "--json", str(tmp_path / "r.json"), "--contexts", "3000"]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())
    figures = row["figures"]
    assert {"ours: full softmax", "SVD-softmax-5", "D-softmax", "DS-2", "DS-4"} <= figures.keys()
    assert figures["ours: full softmax"]["accuracy"]["1"] > 0.1 and figures["DS-4"]["ms, batch 1"] > 0
    assert (tmp_path / "a.png").stat().st_size > 9000 and (tmp_path / "b.png").stat().st_size > 9000
    assert "| DS-4 |" in tables.table(row) and any(note.startswith("Expert ") for note in row["notes"])
    assert row["memory"].keys() == {"2", "4"} and all(n is None or n >= 0 for n in row["memory"].values())
    wrong = ds_softmax.Method(lambda h, k: np.tile(np.arange(k), (len(h), 1)), exact=lambda h: np.arange(40.0))
    with pytest.raises(AssertionError, match="does not find the best classes"):
        ds_softmax.check("it", wrong, np.zeros((3, 8), np.float32))
    capsys.readouterr()


def test_adaptive_softmax(tmp_path):
    """It learns from one target or several labels per row, and its weights are stored and loaded again."""
    pytest.importorskip("torch", reason="PyTorch is not installed: it is an optional competitor")
    random = np.random.default_rng(0)
    rows, targets = random.standard_normal((60, 32)).astype(np.float32), random.geometric(0.1, 3000) % 60
    h, counts = (rows[targets] / 4).astype(np.float16), np.bincount(targets, minlength=60)
    options = {"shares": (0.7, 0.9), "epochs": 6, "batch_size": 100, "learning_rate": 1e-3}
    answer, flops = pytorch.adaptive_softmax(rows, counts, (h, targets), tmp_path / "a.pt", **options)
    ids = answer(h.astype(np.float32), 3)
    assert ids.shape == (3000, 3) and (ids[:, 0] == targets).mean() > 0.7 and 0 < flops < rows.size
    again, _ = pytorch.adaptive_softmax(rows, counts, None, tmp_path / "a.pt", **options)
    np.testing.assert_array_equal(again(h.astype(np.float32), 3), ids)
    labels = scipy.sparse.csr_matrix((np.ones(3000), targets, np.arange(3001)), (3000, 60))
    answer, _ = pytorch.adaptive_softmax(rows, counts, (h, labels), tmp_path / "b.pt", **options)
    assert (answer(h.astype(np.float32), 1)[:, 0] == targets).mean() > 0.7


def test_language_step(tmp_path):
    (row,) = language_step.main(["--smoke", "--device", "cpu", "--threads", "1", "--json", str(tmp_path / "s.json")])
    assert row["parameters"]["words"] == 120 and row["contestants"]["ours"]["median_s"] > 0
    assert (
        "Tokens per second: ours" in row["notes"][0]
        and "an update of the index every 100 steps takes" in row["notes"][1]
    )


def test_language_step_without_torch(no_torch):
    (row,) = language_step.main(["--smoke", "--device", "cpu", "--threads", "1"])
    assert row["contestants"]["PyTorch"] == {"unavailable": "PyTorch is not installed"}


def test_language_rows_tables_and_picture(tmp_path, monkeypatch, capsys):
    text = tmp_path / "text"
    text.mkdir()
    (text / "corpus.txt").write_text(
        "Gallia est omnis divisa in partes tres, In principio erat, Arma virumque cano.\n" * 40
    )
    items = tmp_path / "video"
    items.mkdir()
    (items / "sequences.txt").write_text("a b c d\nb c d e\nc d e a\nd e a b\n" * 5)
    monkeypatch.setattr(language, "FOLDER", tmp_path / "rows")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(language, "PICTURE", tmp_path / "perplexity.png")
    small = {"width": 8, "batch-size": 4, "unroll": 5, "epochs": 2, "n-samples": 3, "n-codewords": 3, "device": "cpu"}
    for name, folder in (("wikitext-midx-rq-100", text), ("video-full", items), ("latin-midx-rq-100", text)):
        monkeypatch.setitem(language.OPTIONS, name, language.OPTIONS[name] | small)
        command = [name, "--data", str(folder), "--work", str(tmp_path / "work"), "--threads", "1"]
        assert language.main(command) == 0
    assert str(tmp_path) not in (tmp_path / "rows" / "video-full.json").read_text()
    assert language.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert "| wikitext-midx-rq-100 |" in shown and "| unigram model |" in shown and "| most popular items |" in shown
    assert "“Gallia est omnis” " in shown and "Not trained: `python -m bench.language wikitext-full`" in shown
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "language-cpu.json").read_text())
    assert [row["benchmark"] for row in written] == [*language.TABLES]


def test_hierarchy(tmp_path, capsys):
    where = ["--json", str(tmp_path / "h.json"), "--picture", str(tmp_path / "h.png"), "--work", str(tmp_path / "work")]
    command = ["--smoke", "--device", "cpu", "--threads", "1", *where]
    row = hierarchy.main(command)
    full, first, last = row["figures"]["full"], *row["figures"]["stages"]
    assert full["accuracy"] == last["accuracy"] == 1 and full["seconds"] > 0 and row["figures"]["growth"] >= 0
    assert (first["experts"], last["experts"], last["whole"], last["rows"]) == (2, 4, 4, 20)
    assert last["speed-up"] == pytest.approx(20 / (4 + 5)) and last["seconds"] > 0
    printed = capsys.readouterr().out
    assert "4 of 4: met." in printed and "ideal for 4 equal experts 2.22." in printed
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    again = hierarchy.main(command)  # training is complete
    assert again["figures"]["stages"] == row["figures"]["stages"] and again["figures"]["growth"] is None
    assert json.loads((tmp_path / "h.json").read_text()) == [json.loads(json.dumps(again))]


def test_repeated_runs_of_the_hierarchy(monkeypatch):
    monkeypatch.setitem(hierarchy.SETTINGS, "smoke", hierarchy.SETTINGS["smoke"] | {"n_experts": 2, "epochs": 1})
    monkeypatch.setitem(hierarchy.TASKS, "smoke", hierarchy.TASKS["smoke"] | {"points": 40})
    found = hierarchy.repeated("smoke", 2, "cpu")
    assert list(found) == [1, 0]
    for whole, spread, lowest in found.values():
        assert whole == spread == 0 and 0 < lowest <= 1  # too few steps to prune


def small_mixture():
    """Two experts with one super-class of two classes each, and four rows of h, one of each class."""
    gate = np.array([[9, 0], [-9, 0]], np.float32)
    weights = np.array([[0, 1], [0, -1], [0, 1], [0, -1]], np.float32)
    starts, ids = np.array([0, 2, 4], np.int32), np.arange(4, dtype=np.int32)
    return (
        PackedDSSoftmax(gate, starts, ids, weights, 4),
        np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32),
        ids,
    )


def test_wrong_measurements_of_the_hierarchy_are_noticed():
    packed, h, targets = small_mixture()
    measured = hierarchy.measure(packed, h, targets, n_super=2)
    assert (measured["accuracy"], measured["whole"], measured["speed-up"], measured["rows"]) == (1, 2, 1, 4)
    hierarchy.check(packed, h, targets, measured, full_accuracy=1.0)
    for name in ("accuracy", "speed-up"):
        with pytest.raises(AssertionError, match=f"{name} is off by"):
            hierarchy.check(packed, h, targets, measured | {name: 0.99}, full_accuracy=1.0)
    wrong = np.array([0, 1, 2, 2], np.int32)
    measured = hierarchy.measure(packed, h, wrong, n_super=2)
    with pytest.raises(AssertionError, match="25.00% less accurate"):
        hierarchy.check(packed, h, wrong, measured, full_accuracy=1.0)


def test_structure_of_experts(tmp_path):
    member = np.zeros((3, 8), bool)  # four super-classes of two classes
    member[2, :2] = member[0, 2:4] = member[2, 4:6] = member[1, 6:] = True
    assert hierarchy.is_found(member, 4).tolist() == [True] * 4
    shown, whole = hierarchy.arranged(member, 4)
    assert whole.all() and [row.nonzero()[0].tolist() for row in shown] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    member[1, 5] = True  # a second expert has a part of the third super-class
    member[1, 7], member[0, 7] = False, True  # the fourth is divided
    assert hierarchy.is_found(member, 4).tolist() == [True, True, False, False]
    shown, whole = hierarchy.arranged(member, 4)
    assert shown.sum() == member.sum() and whole.sum() == 4
    hierarchy.picture(member, 4, "toy", tmp_path / "toy.png")
    assert hierarchy.ideals(10, 10, 10) == (5, 5)
    assert hierarchy.ideals(100, 100, 64) == (pytest.approx(1e4 / (64 + 156.25)), pytest.approx(1e4 / (64 + 172)))


# ---------------------------------------------------------------- words


def test_rows_of_words(tmp_path, monkeypatch, capsys):
    """Our classifier and nearest centroids on a small corpus: metrics, table, figure; and a missing competitor."""
    points = data.bag_of_words(n_rows=90, n_features=40, words_per_row=5, n_labels=12, labels_per_row=2, seed=1)
    for part, some in ("train", slice(0, 60)), ("test", slice(60, 90)):
        data.write_xc(tmp_path / f"{part}_bow.txt", points.features[some], points.labels[some])
    monkeypatch.setattr(words, "FOLDER", tmp_path / "words")
    monkeypatch.setattr(words, "PICTURE", tmp_path / "words.png")
    monkeypatch.setattr(words, "DATA", (tmp_path.name,))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setitem(sys.modules, "omikuji", None)
    given = ["--data", str(tmp_path), "--work", str(tmp_path / "work")]
    for row in ("linear", "centroids"):
        assert words.main([row, *given]) == 0
    assert words.main(["omikuji", *given]) == 2 and "omikuji is not installed" in capsys.readouterr().err
    found = words.finished()[tmp_path.name]
    assert found.keys() == {"linear", "centroids"}
    ids = train.Classifier(progress=False).fit(points.features[:60], points.labels[:60]).top_k(points.features[60:])[1]
    assert found["linear"]["test"]["P@1"] == metrics.precision_at_k(ids, points.labels[60:], 1)
    assert words.main(["--table"]) == 0
    assert "| linear |" in capsys.readouterr().out and (tmp_path / "words.png").exists()
    path = tmp_path / "words" / tmp_path.name / "centroids.json"
    other = json.loads(path.read_text())
    other["environment"]["machine"]["cpu"] = "another"
    path.write_text(json.dumps(other))
    assert words.main(["--table"]) == 0 and "(do not compare the times): centroids." in capsys.readouterr().out
    assert words.main(["linear", *given, "--points", "30"]) == 0
    assert (tmp_path / "words" / f"{tmp_path.name}-30" / "linear.json").exists()


def test_words_line():
    result = {"test": {"P@1": 0.5}, "train_seconds": 3.2, "environment": {"machine": {"cpu": "one"}}}
    all_rows = dict.fromkeys((overview.OURS, *overview.THEIRS), result)
    of_data = {
        "a": all_rows,
        "b": {},
        "c": all_rows | {"pecos": result | {"environment": {"machine": {"cpu": "another"}}}},
    }
    scale = {"labels": 7000, "points": 20, "first_pass_seconds": 2.4, "bytes": 1 << 29}
    line = overview.words_line(of_data, [scale])
    assert line[0].endswith(" With 7,000 labels, one pass over 20 titles takes 2 s and 512 MiB.")
    assert line == [line[0]] and "P@1 on a is 50.0 % in 3 s of training (omikuji: 50.0 % in 3 s; " in line[0]
    assert overview.words_line({"b": {}}, []) == []


def test_other_work_counts_other_processes():
    assert machine.is_disturbed({"other_cores": 0.5}) and not machine.is_disturbed({"other_cores": None})
    with machine.other_work() as found:
        pass
    assert found["other_cores"] is None or found["other_cores"] >= 0
