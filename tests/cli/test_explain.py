"""The command `explain`, for models of texts and of features."""

import dataclasses
import json

import numpy as np
import pytest

from sparsemax_nb import data, train
from sparsemax_nb.cli import main

TEXTS = ["old maps", "old books", "new maps"] * 9
LABELS = [["map"], ["book"], ["map", "new"]] * 9
LINEAR = {"C": 1.0, "slack": 0.5, "calibration": False, "progress": False, "device": "cpu"}


@pytest.fixture
def of_texts(tmp_path):
    model = train.Classifier(**LINEAR).fit(TEXTS, LABELS)
    model.save(tmp_path / "texts")
    return model, str(tmp_path / "texts")


@pytest.fixture
def of_features(tmp_path):
    points = data.bag_of_words(n_rows=80, n_features=30, words_per_row=4, n_labels=12, labels_per_row=2, seed=1)
    data.write_xc(tmp_path / "points.txt", points.features, points.labels)
    model = train.Classifier(**LINEAR).fit(points.features, points.labels)
    model.save(tmp_path / "features", [f"subject {i}" for i in range(12)])
    return train.Classifier.load(tmp_path / "features", device="cpu"), points, str(tmp_path / "features")


def as_json(found):
    return json.loads(json.dumps(list(map(dataclasses.asdict, found))))


def test_words_of_a_text(of_texts, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model, file = of_texts
    written, plot = tmp_path / "found.json", tmp_path / "found.png"
    arguments = ["explain", file, "old maps", "--label", "map", "-n", "1", "--json", str(written), "--plot", str(plot)]
    assert main.main([*arguments, "--device", "cpu"]) == 0
    found = model.explain("old maps", "map", 1)
    assert capsys.readouterr().out == f"{found}\n" and len(found.contributions) == 1
    assert json.loads(written.read_text()) == {"model": file, "explanations": as_json([found])}
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main.main(["explain", file, "new maps", "--json", str(written), "--device", "cpu"]) == 0
    found = model.explain("new maps")
    assert capsys.readouterr().out == "\n\n".join(map(str, found)) + "\n" and len(found) == 2
    assert json.loads(written.read_text())["explanations"] == as_json(found)


def test_a_row_of_features(of_features, tmp_path, capsys):
    model, points, file = of_features
    for arguments, row, label in (
        (["--row", "3", "--label", "subject 5"], 3, 5),
        (["--label", "5"], 0, 5),
        (["--row", "79"], 79, None),
    ):
        assert main.main(["explain", file, str(tmp_path / "points.txt"), *arguments, "--device", "cpu"]) == 0
        found = model.explain(points.features[row], label)
        found = found if label is None else [found]
        assert capsys.readouterr().out == "\n\n".join(map(str, found)) + "\n" and "subject" in str(found[0])
    np.save(tmp_path / "points.npy", points.features[:2].toarray())
    assert main.main(["explain", file, str(tmp_path / "points.npy"), "--label", "5", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == str(model.explain(points.features[0], 5)) + "\n"


def test_errors_are_one_line(of_texts, of_features, tmp_path, capsys):
    texts, features, points = of_texts[1], of_features[2], str(tmp_path / "points.txt")
    for arguments, message in (
        ([texts, "maps", "--row", "1"], f"--row is for a model of features, but {texts} takes texts; omit it"),
        ([texts, "maps", "--label", "ship"], "--label must be the name or number of a label of the model, got 'ship'"),
        ([texts, "maps", "-n", "0"], "n must be at least 1, got 0"),
        ([texts, "maps", "--plot", "x.txt"], "--plot x.txt must end in .png, .svg or .pdf"),
        ([features, points, "--row", "80"], f"--row must be below 80, the number of rows in {points}, got 80"),
        (
            [features, "old maps"],
            "old maps cannot be read: there is no such file; the model expects features, not texts",
        ),
        ([features, points, "--json", points], f"--json and file must be different files, got {points} and {points}"),
    ):
        assert main.main(["explain", *arguments, "--device", "cpu"]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"sparsemax-nb: {message}"
