"""The command line, run as a user runs it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import cli, cli_train, data

TRAIN = [
    "train",
    "classifier",
    "--device",
    "cpu",
    "--quiet",
    "--embedding",
    "8",
    "--intermediate",
    "16",
    "--fan-in",
    "4",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small corpus on disk, with names."""
    path = tmp_path_factory.mktemp("corpus")
    points = data.bag_of_words(n_rows=80, n_features=30, words_per_row=4, n_labels=12, labels_per_row=2, seed=1)
    data.write_xc(path / "train_bow.txt", points.features, points.labels)
    data.write_xc(path / "test_bow.txt", points.features[:20], points.labels[:20])
    (path / "features.txt").write_text("".join(f"word{i}\n" for i in range(30)))
    (path / "labels.txt").write_text("".join(f"subject {i}\n" for i in range(12)))
    return path


def test_train_and_predict(folder, tmp_path, capsys):
    model, figures = str(tmp_path / "model.safetensors"), tmp_path / "figures.json"
    save = ["--data", str(folder), "--epochs", "2", "--save", model, "--json", str(figures)]
    assert cli.main([*TRAIN, *save]) == 0
    result, shown = json.loads(figures.read_text()), capsys.readouterr().out
    assert result["steps"] == 2 and f"test  P@1 {100 * result['test']['P@1']:.2f}" in shown and "on cpu" in shown
    points, answers = str(folder / "test_bow.txt"), tmp_path / "answers.json"
    assert (
        cli.main(["predict", model, points, "-k", "3", "--rows", "4", "--device", "cpu", "--json", str(answers)]) == 0
    )
    lines, answers = capsys.readouterr().out.splitlines(), json.loads(answers.read_text())
    assert len(lines) == len(answers) == 4 and all(len(a) == 3 for a in answers)
    assert lines[0].startswith("0\tsubject ") and answers[0][0]["name"] in lines[0]


@pytest.mark.parametrize("sampler", ["none", "log-uniform", "lsh", "midx-pq"])
def test_train_with_the_softmax_loss(folder, tmp_path, capsys, sampler):
    figures = tmp_path / "figures.json"
    more = ["--output", "dense", "--loss", "softmax", "--sampler", sampler, "--n-samples", "3", "--n-codewords", "4"]
    more += [
        "--residual",
        "popularity",
        "--correction",
        "importance",
        "--mask-hits",
        "--index-every",
        "0",
        "--epochs",
        "3",
    ]
    assert cli.main([*TRAIN, "--data", str(folder), *more, "--json", str(figures)]) == 0
    result, shown = json.loads(figures.read_text()), capsys.readouterr().out
    assert result["params"]["mask_hits"] and result["params"]["index_every"] is None
    assert len(result["index_updates"]) == (3 if sampler in ("lsh", "midx-pq") else 0)
    assert (f"3 updates of what {sampler} draws from" in shown) == (sampler in ("lsh", "midx-pq"))
    assert ("of the labels" in shown) == (sampler == "midx-pq")


def test_info(capsys, tmp_path):
    assert cli.main(["info", "--json", str(tmp_path / "info.json")]) == 0
    result = json.loads((tmp_path / "info.json").read_text())
    assert result["libraries"]["numpy"] == np.__version__ and "--device auto computes on cpu" in capsys.readouterr().out


def test_demo_at_small_size(capsys, tmp_path):
    out, figures = tmp_path / "out", tmp_path / "demo.json"
    assert (
        cli.main(["demo", "--seconds", "0.5", "--device", "cpu", "--quiet", "--out", str(out), "--json", str(figures)])
        == 0
    )
    result, shown = json.loads(figures.read_text()), capsys.readouterr().out
    assert {"dense", "bottleneck of 64", "fixed fan-in 32"} < set(result["contestants"]) and len(
        result["artworks"]
    ) == 5
    assert shown.count("predicted ") == 5 and "fixed fan-in 32" in shown
    assert (out / "accuracy_against_memory.png").read_bytes().startswith(b"\x89PNG")
    for r in result["contestants"].values():
        assert 0 < r["P@1"] <= 1 and r["output_layer_bytes"] > 0 and r["train_seconds"] >= 0.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["predict", "nothing.safetensors", "x.txt"], "no model file nothing.safetensors"),
        ([*TRAIN, "--data", "nowhere"], "nowhere"),
        ([*TRAIN, "--fan-in", "17"], "fan_in must be between 1 and 16"),
        ([*TRAIN, "--plot", "curves.xyz"], "must end in .png, .svg or .pdf"),
        ([*TRAIN, "--resume"], "--resume needs --save FILE"),
        ([*TRAIN, "--rewire-fraction", "1.5"], "rewire_fraction must lie in [0, 1], got 1.5"),
        ([*TRAIN, "--plot", "nowhere/curves.png"], "nowhere/curves.png can not be written"),
        ([*TRAIN, "--save", "nowhere/model.safetensors"], "nowhere/model.safetensors can not be written"),
        ([*TRAIN, "--save", "nowhere/"], "nowhere/ can not be written: there is no such folder"),
        ([*TRAIN, "--save", "."], ". can not be written: it is a folder; name a file in it"),
        ([*TRAIN, "--loss", "softmax"], "loss='softmax' needs output='dense' or 'bottleneck'"),
        ([*TRAIN, "--sampler", "uniform"], "sampler='uniform' draws for loss='softmax' only"),
        ([*TRAIN, "--device", "cuda"], "device='cuda' can not be used"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    if "cuda" in arguments:
        monkeypatch.setattr("sparsemax_nb.core.backend.cuda_problem", lambda: "no device")
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("sparsemax-nb: ") and len(error.splitlines()) == 1


def test_evaluate_and_predict_from_arrays(folder, tmp_path, capsys):
    model, figures = str(tmp_path / "model.safetensors"), tmp_path / "figures.json"
    assert cli.main([*TRAIN, "--data", str(folder), "--epochs", "1", "--save", model, "--validation", "0.2"]) == 0
    trained = capsys.readouterr().out
    assert "epoch   1" in trained and "kept the weights of epoch 1" in trained
    assert cli.main(["evaluate", model, "--data", str(folder), "--device", "cpu", "--json", str(figures)]) == 0
    shown, result = capsys.readouterr().out, json.loads(figures.read_text())
    assert result["part"] == "test" and f"PSP@5 {100 * result['PSP@5']:.2f}" in shown and "R@3" in shown
    assert cli.main(["evaluate", model, "--data", str(folder), "--part", "dev"]) == 2
    assert "has no dev part" in capsys.readouterr().err
    assert cli.main(["evaluate", model]) == 2
    assert f"{model} takes 30 features, tate has 12310; --data names what" in capsys.readouterr().err
    for file, problem in (folder, "it is a folder; name a file of points in it"), ("no.txt", "there is no such file"):
        assert cli.main(["predict", model, str(file)]) == 2
        assert f"{file} can not be read: {problem}" in capsys.readouterr().err
    points = data.load(folder).test.features
    scipy.sparse.save_npz(tmp_path / "points.npz", points)
    answers = []
    for file in (folder / "test_bow.txt", tmp_path / "points.npz"):
        assert cli.main(["predict", model, str(file), "-k", "2", "--device", "cpu"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and len(answers[0].splitlines()) == 20


def test_a_spent_budget_says_what_is_left(folder, tmp_path, capsys):
    model, again = tmp_path / "model.safetensors", ["--data", str(folder), "--epochs", "500"]
    again += ["--save", str(model), "--checkpoint-seconds", "0", "--budget-seconds"]
    assert cli.main([*TRAIN, *again, "0.5"]) == 0
    left = str(tmp_path / "model.checkpoint.safetensors")
    said = capsys.readouterr().out
    assert f"the budget is spent; --resume with a larger one continues from {left}" in said
    assert "no dev part: every epoch is run" in said
    assert cli.main([*TRAIN, *again, "1"]) == 2
    assert f"{left} is there already: resume continues from it" in capsys.readouterr().err


def test_help_shows_defaults_but_none(capsys):
    for command in ["predict"], ["train", "classifier"]:
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
    shown = capsys.readouterr().out
    assert "(default: None)" not in shown and "(default: False)" not in shown and "(default: auto)" in shown
    assert "(default: 0)" in shown  # of --seed


def test_dense_features_from_files(tmp_path, capsys):
    points = data.bag_of_words(n_rows=80, n_features=30, words_per_row=4, n_labels=12, labels_per_row=2, seed=1)
    for part, rows in ("train", slice(0, 60)), ("test", slice(60, 80)):
        np.save(tmp_path / f"{part}.npy", points.features[rows].toarray())
        scipy.sparse.save_npz(tmp_path / f"{part}_labels.npz", points.labels[rows])
    model = str(tmp_path / "model.safetensors")
    save = ["--data", str(tmp_path), "--epochs", "2", "--save", model, "--memory-limit", "64MiB"]
    assert cli.main([*TRAIN, *save]) == 0
    assert cli.main(["predict", model, str(tmp_path / "test.npy"), "-k", "1", "--rows", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2\t")
    assert cli.main([*TRAIN, "--data", str(tmp_path), "--memory-limit", "4k"]) == 2
    error = capsys.readouterr().err
    assert "training needs 0.1 MiB, memory_limit allows 0.0 MiB" in error and "output.values" in error


@pytest.mark.parametrize("size, wanted", [("1GiB", 2**30), ("1.5 MiB", 3 * 2**19), ("64k", 65536), ("100", 100)])
def test_sizes(size, wanted):
    assert cli_train._size(size) == wanted


@pytest.mark.parametrize(
    "bad", [["--memory-limit", "much"], ["--validation", "2"], ["--validation", "some"], ["--intermediate", "x"]]
)
def test_options_that_can_not_be_read(bad, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*TRAIN, *bad])
    assert exit_.value.code == 2 and bad[0] in capsys.readouterr().err


def test_ctrl_c(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.demo, "run", interrupt)
    assert cli.main(["demo"]) == 130


def test_runs_as_a_module_with_help():
    run = subprocess.run(
        [sys.executable, "-m", "sparsemax_nb", "train", "classifier", "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0 and "connections per label" in run.stdout
    run = subprocess.run([sys.executable, "-m", "sparsemax_nb"], capture_output=True, text=True)
    assert run.returncode == 2 and "COMMAND" in run.stderr
    assert os.name == "posix"
