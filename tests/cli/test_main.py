"""The command line, run as a user runs it."""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, train
from sparsemax_nb.cli import common, demo, main
from sparsemax_nb.core import checkpoint
from sparsemax_nb.core.device import resolve_device

TRAIN = [
    "train",
    "classifier",
    "--device",
    "cpu",
    "--quiet",
    "--architecture",
    "network",
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
    assert main.main([*TRAIN, *save]) == 0
    result, shown = json.loads(figures.read_text()), capsys.readouterr().out
    assert result["steps"] == 2 and f"test  P@1 {100 * result['test']['P@1']:.2f}" in shown and "on cpu" in shown
    points, answers = str(folder / "test_bow.txt"), tmp_path / "answers.json"
    assert (
        main.main(["predict", model, points, "-k", "3", "--rows", "4", "--device", "cpu", "--json", str(answers)]) == 0
    )
    lines, answers = capsys.readouterr().out.splitlines(), json.loads(answers.read_text())
    assert lines[0] == "row\trank\tlabel\tname\tscore\tprobability\tpoints" and len(lines) == 13 and len(answers) == 4
    shown = iter(lines[1:])
    for row, answer in enumerate(answers):
        for rank, found in enumerate(answer, 1):
            fields = next(shown).split("\t")
            assert fields[:4] == [str(row), str(rank), str(found["label"]), f"subject {found['label']}"]
            assert found["name"] == fields[3] and np.float32(fields[4]) == np.float32(found["score"])
    assert len(answers[3]) == 3


def test_predictions_can_be_read_whatever_the_names_hold(folder, tmp_path, monkeypatch, capsys):
    names = [
        "a; b (0.1)",
        "tab\there",
        "two\nlines",
        "back\\slash",
        "cr\rx",
        "\x85\u2028\u2029\x0b\x1c",
        "naïve",
        "",
        " x ",
        "\\t",
        "\x00",
        "z",
    ]
    model = train.Classifier(
        architecture="network", embedding=8, intermediate=16, fan_in=4, epochs=1, device="cpu", progress=False
    )
    points = data.load(folder).train
    model.fit(points.features, points.labels).save(tmp_path / "m.st", names)
    command = [
        "predict",
        str(tmp_path / "m.st"),
        str(folder / "test_bow.txt"),
        "-k",
        "12",
        "--rows",
        "2",
        "--device",
        "cpu",
    ]
    assert main.main(command) == 0
    shown = capsys.readouterr().out
    table = [line.split("\t") for line in shown.splitlines()]
    assert len(table) == 25 and all(len(fields) == 7 for fields in table) and shown.count("\n") == 25
    for fields in table[1:]:
        unescaped = fields[3].encode("latin-1").decode("unicode_escape")
        assert unescaped == names[int(fields[2])]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_output_that_can_not_encode_names_costs_nothing(folder, tmp_path, monkeypatch, encoding):
    corpus, model = tmp_path / "ко́рпус", str(tmp_path / "modèle\u2028\udcff.st")
    corpus.mkdir()
    for file in folder.iterdir():
        (corpus / file.name).write_bytes(file.read_bytes())
    (corpus / "labels.txt").write_text("".join(f"sujet n° {i} \U0001f600\n" for i in range(12)), encoding="utf-8")

    def run(*command):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
        assert main.main([*command]) == 0
        return written.getvalue().decode(encoding)

    train = [*TRAIN, "--data", str(corpus), "--epochs", "1", "--save", model, "--json", str(tmp_path / "r.json")]
    assert "saved " in run(*train) and os.path.exists(model)
    assert json.loads((tmp_path / "r.json").read_text())["steps"] == 1
    command = ["predict", model, str(corpus / "test_bow.txt"), "-k", "1", "--device", "cpu"]
    shown = run(*command, "--json", str(tmp_path / "p.json"))
    answers = json.loads((tmp_path / "p.json").read_text())
    assert (
        len(answers) == 20
        and ("\\U0001f600" in shown) == (encoding == "ascii")
        and answers[0][0]["name"].endswith("\U0001f600")
    )


@pytest.mark.parametrize(
    ("output", "sampler"),
    [("dense", name) for name in ("none", "log-uniform", "lsh", "midx-pq")] + [("fixed-fan-in", "midx-pq")],
)
def test_train_with_the_softmax_loss(folder, tmp_path, capsys, output, sampler):
    figures = tmp_path / "figures.json"
    more = ["--output", output, "--loss", "softmax", "--sampler", sampler, "--n-samples", "3", "--n-codewords", "4"]
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
    assert main.main([*TRAIN, "--data", str(folder), *more, "--json", str(figures)]) == 0
    result, shown = json.loads(figures.read_text()), capsys.readouterr().out
    assert result["params"]["mask_hits"] and result["params"]["index_every"] is None
    assert len(result["index_updates"]) == (3 if sampler in ("lsh", "midx-pq") else 0)
    assert (f"3 updates of the {sampler} index" in shown) == (sampler in ("lsh", "midx-pq"))
    assert ("of the labels" in shown) == (sampler == "midx-pq")


def test_info(capsys, tmp_path):
    assert main.main(["info", "--json", str(tmp_path / "info.json")]) == 0
    result, shown = json.loads((tmp_path / "info.json").read_text()), capsys.readouterr().out
    assert result["libraries"]["numpy"] == np.__version__
    assert f"--device auto computes on {resolve_device('auto')}" in shown
    assert f"threads ({numba.threading_layer()})" in shown


def test_demo(folder, capsys, tmp_path, monkeypatch, ticking):
    """Every part of its output, on a small corpus instead of the artworks."""
    corpus, out, figures = data.load(folder), tmp_path / "out", tmp_path / "demo.json"
    monkeypatch.setattr(data, "load", lambda name: corpus)
    command = ["demo", "--seconds", "0.5", "--device", "cpu", "--out", str(out), "--json", str(figures)]
    assert main.main(command) == 0
    result, (shown, errors) = json.loads(figures.read_text()), capsys.readouterr()
    assert list(result["contestants"]) == list(demo.CONTESTANTS)
    for r in result["contestants"].values():
        assert 0 < r["P@1"] <= 1 and r["output_layer_bytes"] > 0 and r["train_seconds"] == 0.5
    scores = "   ".join(f"{metric} {100 * result['linear'][metric]:.1f} %" for metric in ("P@1", "P@3", "P@5"))
    assert scores in shown and "0.5 of 0.5 s (100%)" in errors
    answer = result["answer"]
    row = corpus.test.features[answer["row"]]
    assert sorted(answer["text"].split()) == sorted(np.repeat([f"word{i}" for i in row.indices], row.data.astype(int)))
    assert answer["true"] == [f"subject {i}" for i in corpus.test.labels[answer["row"]].indices]
    for predicted in answer["predicted"]:
        assert predicted["right"] == (predicted["name"] in answer["true"])
        assert f"{'-+'[predicted['right']]} {predicted['name']} {predicted['probability']:.2f}" in shown
    assert (
        answer["explanation"].startswith(answer["predicted"][0]["name"] + ": score ") and answer["explanation"] in shown
    )
    assert (out / "accuracy_against_memory.png").read_bytes().startswith(b"\x89PNG")


def test_demo_shows_a_network_whose_initial_weights_took_all_the_time(folder, ticking):
    options = argparse.Namespace(seconds=0.25, seed=0, device="cpu", quiet=True)
    name = "fixed fan-in 8"
    result = demo._train_network(name, demo.CONTESTANTS[name], data.load(folder), options)
    assert result["steps"] == 0 and result["curve"] == [(0.25, result["P@1"])]


def test_demo_marks_the_better_layer_of_each_pair(capsys):
    results = {name: {"P@1": 0.5, "P@3": 0.4, "P@5": 0.3} for name in demo.CONTESTANTS}
    results["fixed fan-in 8"] |= {"P@1": 0.6, "P@3": 0.3}
    results["dense"] |= {"P@1": 0.9}
    demo._table(
        {name: r | {"output_layer_bytes": 2**20, "network_bytes": 2**21, "epochs": 1.0} for name, r in results.items()}
    )
    rows = [line.split() for line in capsys.readouterr().out.split("\n\n* ")[0].splitlines() if line]
    assert [row[-6:-3] for row in rows[1:]] == [
        ["50.0", "40.0*", "30.0"], ["60.0*", "30.0", "30.0"], *[["50.0", "40.0", "30.0"]] * 2, ["90.0", "40.0", "30.0"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nothing.safetensors", "x.txt"], "no model file nothing.safetensors"),
        ([*TRAIN, "--data", "nowhere"], "nowhere"),
        ([*TRAIN, "--fan-in", "17"], "fan_in must be between 1 and 16"),
        ([*TRAIN, "--plot", "curves.xyz"], "must end in .png, .svg or .pdf"),
        ([*TRAIN, "--resume"], "--resume needs --save FILE"),
        ([*TRAIN, "--rewire-fraction", "1.5"], "rewire_fraction must lie in [0, 1], got 1.5"),
        ([*TRAIN, "--plot", "nowhere/curves.png"], "nowhere/curves.png cannot be written"),
        ([*TRAIN, "--save", "nowhere/model.safetensors"], "nowhere/model.safetensors cannot be written"),
        ([*TRAIN, "--save", "nowhere/"], "nowhere/ cannot be written: there is no such folder"),
        ([*TRAIN, "--save", "."], ". cannot be written: it is a folder; name a file in it"),
        (
            [*TRAIN, "--loss", "softmax", "--output", "unstructured", "--sampler", "uniform"],
            "sampler='uniform' needs another output than 'unstructured'",
        ),
        ([*TRAIN, "--sampler", "uniform"], "sampler='uniform' needs loss='softmax'"),
        ([*TRAIN, "--device", "cuda"], "device='cuda' cannot be used"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    if "cuda" in arguments:
        monkeypatch.setattr("sparsemax_nb.core.device.cuda_problem", lambda: "no device")
    assert main.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("sparsemax-nb: ") and len(error.splitlines()) == 1


def test_evaluate_and_predict_from_arrays(folder, tmp_path, capsys):
    model, figures = str(tmp_path / "model.safetensors"), tmp_path / "figures.json"
    assert main.main([*TRAIN, "--data", str(folder), "--epochs", "1", "--save", model, "--validation", "0.2"]) == 0
    trained = capsys.readouterr().out
    assert "epoch   1" in trained and "kept the weights of epoch 1" in trained
    assert main.main(["evaluate", model, "--data", str(folder), "--device", "cpu", "--json", str(figures)]) == 0
    shown, result = capsys.readouterr().out, json.loads(figures.read_text())
    assert result["part"] == "test" and f"PSP@5 {100 * result['PSP@5']:.2f}" in shown and "R@3" in shown
    f1 = "  ".join(f"F1@{k} {100 * result[f'F1@{k}']:.2f}" for k in (1, 3, 5))
    assert f"test  {f1}  (F1@k in %: harmonic mean of P@k and R@k of a row)" in shown.splitlines()
    assert main.main(["evaluate", model, "--data", str(folder), "--part", "dev"]) == 2
    assert "has no dev part" in capsys.readouterr().err
    assert main.main(["evaluate", model]) == 2
    assert (
        f"--data is needed: .*; {model} was trained on '{folder.name}'".replace(
            ".*", "the folder of the data to evaluate on"
        )
        in capsys.readouterr().err
    )
    assert main.main(["evaluate", model, "--data", "tate"]) == 2
    assert f"--data must have 30 features, as {model} expects, but tate has 12310" in capsys.readouterr().err
    for file, problem in (folder, "it is a folder; pass a file in it"), ("no.txt", "there is no such file"):
        assert main.main(["predict", model, str(file)]) == 2
        assert f"{file} cannot be read: {problem}" in capsys.readouterr().err
    points = data.load(folder).test.features
    scipy.sparse.save_npz(tmp_path / "points.npz", points)
    answers = []
    for file in (folder / "test_bow.txt", tmp_path / "points.npz"):
        assert main.main(["predict", model, str(file), "-k", "2", "--device", "cpu"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and len(answers[0].splitlines()) == 1 + 20 * 2


def test_a_model_knows_what_it_was_trained_on(folder, tmp_path, capsys):
    """Other data is refused by name, also by a model that is loaded and saved again."""
    model, other = str(tmp_path / "m.st"), tmp_path / "other"
    other.mkdir()
    points = data.bag_of_words(n_rows=90, n_features=30, words_per_row=4, n_labels=12, labels_per_row=2, seed=2)
    for part in "train", "test":
        data.write_xc(other / f"{part}.txt", points.features, points.labels)
    assert main.main([*TRAIN, "--data", str(folder), "--epochs", "1", "--save", model]) == 0
    for _ in range(2):
        assert main.main(["evaluate", model, "--data", str(folder), "--device", "cpu"]) == 0
        capsys.readouterr()
        assert main.main(["evaluate", model, "--data", str(other), "--device", "cpu"]) == 2
        wanted = f"{model} was trained on '{folder.name}', but 'other' has another training part; check --data"
        assert wanted in capsys.readouterr().err
        assert main.main(["evaluate", model, "--data", str(other), "--device", "cpu", "--any-data"]) == 0
        train.Classifier.load(model, device="cpu").save(model)
    again = train.Classifier.load(model, device="cpu")
    assert again.data_["name"] == folder.name
    again.set_params(epochs=1, progress=False).fit(points.features, points.labels).save(model)
    assert again.data_ is None and main.main(["evaluate", model]) == 2
    assert f"{model} does not record its training data" in capsys.readouterr().err
    assert main.main(["evaluate", model, "--data", str(other), "--device", "cpu"]) == 0
    arrays, description = checkpoint.load(model, "classifier")
    for bad in {"name": 3, "fingerprint": ""}, [], {"name": "x"}:
        checkpoint.save(tmp_path / "bad", "classifier", dict(arrays), description | {"data": bad})
        with pytest.raises(checkpoint.ModelFileError, match="description.data.* must "):
            train.Classifier.load(tmp_path / "bad")


def test_bundled_data_need_not_be_named(folder, tmp_path, capsys, monkeypatch):
    model, load = str(tmp_path / "m.st"), data.load
    monkeypatch.setattr(
        data, "load", lambda name: dataclasses.replace(load(folder), name="tate") if name == "tate" else load(name)
    )
    assert main.main([*TRAIN, "--epochs", "1", "--save", model]) == 0
    assert main.main(["evaluate", model, "--device", "cpu", "--json", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["data"] == "tate"


def test_tfidf_on_the_command_line(folder, tmp_path, capsys):
    points = data.load(folder).train
    points.features.data[:] = 0.5
    for part in "train", "test":
        data.write_xc(tmp_path / f"{part}.txt", points.features, points.labels)
    for how, code, weighed in ("auto", 0, False), ("no", 0, False), ("yes", 2, None):
        figures = tmp_path / "f.json"
        figures.unlink(missing_ok=True)
        command = [
            *TRAIN[:4],
            *TRAIN[5:],
            "--data",
            str(tmp_path),
            "--epochs",
            "1",
            "--tfidf",
            how,
            "--json",
            str(figures),
        ]
        assert main.main(command) == code
        shown = capsys.readouterr().err
        assert ("X has weights, not counts" in shown) == (how == "auto")
        assert weighed is None or json.loads(figures.read_text())["tfidf"] is weighed
    assert "X must contain counts (whole numbers), got 0.5" in shown


def test_a_spent_budget_says_what_is_left(folder, tmp_path, capsys, ticking):
    model, again = tmp_path / "model.safetensors", ["--data", str(folder), "--epochs", "5"]
    again += ["--save", str(model), "--checkpoint-seconds", "0", "--budget-seconds"]
    assert main.main([*TRAIN, *again, "0.5"]) == 0
    left = str(tmp_path / "model.checkpoint.safetensors")
    said = capsys.readouterr().out
    assert f"the time budget is used up; --resume with a larger --budget-seconds continues from {left}" in said
    assert "no dev part: all epochs are run" in said
    assert main.main([*TRAIN, *again, "1"]) == 2
    assert f"{left} already exists; continue from it with resume=True" in capsys.readouterr().err


def test_help_shows_defaults_but_none(capsys):
    for command in ["predict"], ["train", "classifier"]:
        with pytest.raises(SystemExit):
            main.main([*command, "--help"])
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
    assert main.main([*TRAIN, *save]) == 0
    assert main.main(["predict", model, str(tmp_path / "test.npy"), "-k", "1", "--rows", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2\t1\t")
    assert main.main([*TRAIN, "--data", str(tmp_path), "--memory-limit", "4k"]) == 2
    error = capsys.readouterr().err
    assert "training needs 0.1 MiB, memory_limit allows 0.0 MiB" in error and "output.values" in error


@pytest.mark.parametrize(("size", "wanted"), [("1GiB", 2**30), ("1.5 MiB", 3 * 2**19), ("64k", 65536), ("100", 100)])
def test_sizes(size, wanted):
    assert common.size(size) == wanted


@pytest.mark.parametrize(
    "bad",
    [
        *(
            ["--memory-limit", size]
            for size in ("much", "1.2.3GiB", ".", "0", "-1", "nan", "9" * 400, "1" + "0" * 20 + "T", "")
        ),
        *(["--checkpoint-seconds", seconds] for seconds in ("nan", "-1", "inf", "1e999", "x", "")),
        *(["--intermediate", number] for number in ("x", "-1", "1.5", "9" * 5000, "٣")),
        ["--validation", "2"],
        ["--validation", "some"],
        ["--tfidf", "perhaps"],
        ["--embedding", "9" * 5000],
    ],
)
def test_options_that_can_not_be_read(bad, capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main([*TRAIN, *bad])
    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 2 and f"error: argument {bad[0]}: " in error and "_size" not in error


def test_ctrl_c(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "demo", interrupt)
    assert main.main(["demo"]) == 130


def test_runs_as_a_module_with_help():
    run = subprocess.run(
        [sys.executable, "-m", "sparsemax_nb", "train", "classifier", "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0 and "connections per label" in run.stdout
    run = subprocess.run([sys.executable, "-m", "sparsemax_nb"], capture_output=True, text=True)
    assert run.returncode == 2 and "COMMAND" in run.stderr
    assert os.name == "posix"
