"""The command line, run as a user runs it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sparsemax_nb import cli, data

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
        ([*TRAIN, "--save", "nowhere/model.safetensors"], "nowhere/model.safetensors can not be written"),
        ([*TRAIN, "--device", "cuda"], "device='cuda' can not be used"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    if "cuda" in arguments:
        monkeypatch.setattr("sparsemax_nb.core.backend.cuda_problem", lambda: "no device")
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("sparsemax-nb: ") and len(error.splitlines()) == 1


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
