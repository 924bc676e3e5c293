"""The command `train ds-softmax`, run as a user runs it."""

import json
import signal

import numpy as np
import pytest

from sparsemax_nb import PackedDSSoftmax, SparseExperts, data, train
from sparsemax_nb.cli import ds_softmax, main
from sparsemax_nb.core import checkpoint

DS = [
    "train", "ds-softmax", "--device", "cpu", "--quiet", "--n-experts", "4", "--epochs", "2", "--prune-after", "1",
    "--threshold", "0.1", "--class-lasso", "0.02", "--batch-size", "16", "--learning-rate", "0.02",
]  # fmt: skip
# in the few steps of these tests a gate may well favour one expert
pytestmark = pytest.mark.filterwarnings("ignore:the gate has collapsed:RuntimeWarning")
LINE = " the cat sat on the mat while a dog ran \n"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text in a folder, and a language model of it."""
    folder = tmp_path_factory.mktemp("text")
    for part, content in (
        ("train", LINE * 30 + " rare words \n"),
        ("valid", LINE * 3),
        ("test", LINE * 2 + " the bird \n"),
    ):
        (folder / f"{part}.txt").write_text(content)
    command = [
        "train",
        "language-model",
        "--device",
        "cpu",
        "--quiet",
        "--width",
        "8",
        "--batch-size",
        "4",
        "--unroll",
        "5",
        "--sampler",
        "none",
        "--epochs",
        "12",
        "--learning-rate",
        "0.03",
        "--dropout",
        "0",
        "--min-count",
        "2",
        "--data",
        str(folder),
        "--save",
        str(folder / "m.st"),
    ]
    assert main.main(command) == 0
    return folder


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Sequences in a folder, and a language model of them."""
    folder = tmp_path_factory.mktemp("items")
    lines = [" ".join(f"i{(start + n) % 9}" for n in range(length)) for start in range(9) for length in (1, 3, 4, 6)]
    (folder / "sequences.txt").write_text("\n".join(lines) + "\n")
    command = [
        "train",
        "language-model",
        "--task",
        "next-item",
        "--device",
        "cpu",
        "--quiet",
        "--width",
        "8",
        "--batch-size",
        "4",
        "--sampler",
        "none",
        "--epochs",
        "2",
        "--unroll",
        "3",
        "--data",
        str(folder),
        "--save",
        str(folder / "m.st"),
    ]
    assert main.main(command) == 0
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small corpus on disk."""
    folder = tmp_path_factory.mktemp("corpus")
    points = data.bag_of_words(n_rows=90, n_features=30, words_per_row=4, n_labels=12, labels_per_row=2, seed=1)
    for part, rows in ("train_bow", slice(0, 60)), ("dev_bow", slice(60, 75)), ("test_bow", slice(75, 90)):
        data.write_xc(folder / f"{part}.txt", points.features[rows], points.labels[rows])
    return folder


def run(folder, tmp_path, *more, wanted=0):
    """Run the command on a folder with data and model; returns the figures, if it ends well."""
    figures, arguments = tmp_path / "figures.json", [*DS, "--model", str(folder / "m.st"), "--data", str(folder)]
    assert main.main([*arguments, "--save", str(tmp_path / "ds.st"), "--json", str(figures), *more]) == wanted
    return None if wanted else json.loads(figures.read_text())


def bits(path):
    """The arrays of a packed model; the order in a file's header varies."""
    packed = PackedDSSoftmax.load(path, device="cpu")
    return [array.tobytes() for array in (packed.gate, packed.starts, packed.ids, packed.weights)]


def check_stages(result, tmp_path):
    """The files, and that the table is about them."""
    assert {p.name for p in tmp_path.iterdir()} == {"ds.st", "ds-2.st", "ds-4.st", "figures.json"}
    assert bits(tmp_path / "ds.st") == bits(tmp_path / "ds-4.st") != bits(tmp_path / "ds-2.st")
    table = result["test"]
    assert [line["name"] for line in table] == ["full softmax", "DS-2", "DS-4"]
    for line, n_experts in zip(table[1:], (2, 4), strict=True):
        packed = PackedDSSoftmax.load(tmp_path / f"ds-{n_experts}.st", device="cpu")
        assert (packed.n_experts, len(packed.ids), packed.weights.nbytes) == (n_experts, line["rows"], line["bytes"])
    assert table[0]["held"] == table[0]["speed-up"] == 1


def test_of_a_text(text, tmp_path, capsys):
    result = run(text, tmp_path)
    shown, table = capsys.readouterr().out, result["test"]
    check_stages(result, tmp_path)
    model = train.LanguageModel.load(text / "m.st", device="cpu")
    corpus = data.load_text(text, vocabulary=model.vocabulary_)
    wanted = model.evaluate(corpus.test)
    assert wanted["top-1"] > 0.8, "it has learnt something"
    for name, other in (("top-1", "top-1"), ("top-5", "top-5"), ("top-10", "Recall@10")):
        assert table[0][name] == pytest.approx(wanted[other], abs=1e-9)
    assert table[0]["rows"] == model.n_words_ == 11 and table[0]["bytes"] == 11 * 8 * 4
    h, targets = model.encode(corpus.test)
    packed = PackedDSSoftmax.load(tmp_path / "ds.st", device="cpu")
    ids = packed.top_k(h.astype(np.float16).astype(np.float32), 5)[1]
    assert table[2]["top-1"] == pytest.approx((ids[:, 0] == targets).mean())
    assert table[2]["top-5"] == pytest.approx((ids == targets[:, None]).any(1).mean())
    assert table[2]["speed-up"] == pytest.approx(packed.speed_up(h))
    assert table[2]["top-1"] > table[0]["top-1"] - 0.2, "the experts start from the model's rows"
    epochs = result["epochs"]
    assert len(epochs) == 4 and epochs[-1]["validation"]["top-1"] > 0.5 and result["contexts"] == len(corpus.train) - 1
    assert result["params"]["class_lasso"] == 0.02 and result["device"] == "cpu"
    assert f"11 words, contexts of width 8; {len(corpus.train) - 1} training contexts; on cpu" in shown
    last = epochs[-1]
    assert f"epoch   4  {last['seconds']:7.1f} s    4 experts  loss {last['loss']:.4f}  {last['rows']} rows" in shown
    assert f"valid  top-1 {100 * last['validation']['top-1']:.2f}  top-5" in shown
    assert (
        f"full softmax  {100 * table[0]['top-1']:8.2f}" in shown
        and f"DS-4          {100 * table[2]['top-1']:8.2f}" in shown
    )


def test_experts_start_from_the_rows_of_the_model(text, tmp_path):
    """With a learning rate of nothing two experts answer like the full softmax."""
    table = run(text, tmp_path, "--n-experts", "2", "--epochs", "1", "--learning-rate", "1e-12")["test"]
    for name in ("top-1", "top-5", "top-10", "held"):
        assert table[0][name] == table[1][name]
    assert table[1]["rows"] == 2 * table[0]["rows"]


def test_of_sequences(items, tmp_path):
    """All items are learnt from, the last of each sequence is asked for."""
    result = run(items, tmp_path)
    check_stages(result, tmp_path)
    model = train.LanguageModel.load(items / "m.st", device="cpu")
    parts = data.leave_last_out(data.load_sequences(items, vocabulary=model.vocabulary_))
    lengths = np.diff(parts[0].indptr)
    assert result["contexts"] == np.clip(lengths - 1, 0, 3).sum() == 9 * (0 + 1 + 3)
    wanted = model.evaluate(parts[2])
    assert result["test"][0]["top-1"] == pytest.approx(wanted["top-1"])
    assert result["test"][0]["top-10"] == pytest.approx(wanted["Recall@10"]) == 1


@pytest.mark.parametrize(
    ("options", "width"),
    [
        (["--loss", "softmax", "--output", "dense"], 16),
        (["--loss", "bce", "--output", "bottleneck", "--bottleneck", "6"], 7),
    ],
    ids=["without a bias", "with a bias"],
)
def test_of_a_classifier(corpus, tmp_path, options, width):
    model, given = (
        tmp_path / "given.st",
        ["--device", "cpu", "--quiet", "--architecture", "network", "--embedding", "16", "--data", str(corpus)],
    )
    rest = ["--epochs", "8", "--learning-rate", "0.02", "--batch-size", "20", "--save", str(model)]
    assert main.main(["train", "classifier", *given, *options, *rest]) == 0
    folder = tmp_path / "out"
    folder.mkdir()
    result = run(corpus, folder, "--model", str(model))
    check_stages(result, folder)
    points = data.load(str(corpus)).test
    classifier = train.Classifier.load(model, device="cpu")
    wanted = classifier.evaluate(points.features, points.labels, ks=[1, 5, 10])
    for k in (1, 5, 10):
        assert result["test"][0][f"top-{k}"] == pytest.approx(wanted[f"P@{k}"], abs=1e-9)
    assert f"12 labels, contexts of width {width}" in result["about"] and result["epochs"][0]["validation"]
    assert PackedDSSoftmax.load(folder / "ds.st", device="cpu").width == width
    assert classifier.network_.output.parameters.keys() == {"output.weights", *(["output.bias"] if width == 7 else [])}


def test_fewer_contexts(text, items, corpus, tmp_path):
    assert run(text, tmp_path, "--contexts", "50", "--epochs", "1")["contexts"] == 50
    assert run(items, tmp_path, "--contexts", "7", "--epochs", "1")["contexts"] == 8  # whole sequences of 1 and 3
    assert run(text, tmp_path, "--contexts", "0", "--epochs", "1")["contexts"] == 332


def test_interrupted_and_resumed(text, tmp_path, capsys, monkeypatch):
    """The contexts are used again, the models are the same bits; files that are in the way are refused."""
    whole = tmp_path / "whole"
    whole.mkdir()
    wanted = run(text, whole)
    step, encode, calls = SparseExperts.step, train.LanguageModel.encode, []

    def interrupted(experts, *arguments, **more):
        if experts.steps == 50:  # of 21 an epoch
            signal.raise_signal(signal.SIGINT)
        return step(experts, *arguments, **more)

    def count(model, *arguments, **more):
        calls.append(1)
        return encode(model, *arguments, **more)

    monkeypatch.setattr(train.LanguageModel, "encode", count)
    folder = tmp_path / "resumed"
    folder.mkdir()
    monkeypatch.setattr(SparseExperts, "step", interrupted)
    run(text, folder, wanted=130)
    assert (
        "interrupted: the checkpoint is that of the end of epoch 2; continue with --resume" in capsys.readouterr().err
    )
    parts = {f"ds.contexts-{part}.npy" for part in ("train", "valid", "test")}
    assert {p.name for p in folder.iterdir()} == parts | {"ds-2.st", "ds.checkpoint.st"} and len(calls) == 3
    h = np.load(folder / "ds.contexts-train.npy")
    assert h.dtype == np.float16 and h.shape == (332, 8) and (h[:, 0] == 1).all()
    monkeypatch.setattr(SparseExperts, "step", step)
    run(text, folder, wanted=2)
    assert "ds.checkpoint.st already exists; continue from it with resume=True" in capsys.readouterr().err
    run(text, folder, "--resume", "--contexts", "100", wanted=2)
    assert "must have shape (100, 8), got (332, 8); use the same --model" in capsys.readouterr().err
    run(text, folder, "--resume", "--balance", "3", wanted=2)
    assert "balance was 10.0, not 3.0" in capsys.readouterr().err
    got = run(text, folder, "--resume")
    assert "resuming from" in capsys.readouterr().out and len(calls) == 3, "no context was computed again"
    check_stages(got, folder)
    assert got["test"] == wanted["test"]
    for name in ("ds.st", "ds-2.st"):
        assert bits(folder / name) == bits(whole / name)
    run(text, folder, "--resume", wanted=2)
    assert "ds.st is complete and has no checkpoint to resume from" in capsys.readouterr().err


def test_a_stage_that_somebody_removed(text, tmp_path, capsys, monkeypatch):
    def interrupted(experts, *arguments, step=SparseExperts.step, **more):
        if experts.steps == 50:
            signal.raise_signal(signal.SIGINT)
        return step(experts, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(SparseExperts, "step", interrupted)
        run(text, tmp_path, wanted=130)
    (tmp_path / "ds-2.st").unlink()
    assert [line["name"] for line in run(text, tmp_path, "--resume")["test"]] == ["full softmax", "DS-4"]
    assert "ds-2.st is missing and left out of the table" in capsys.readouterr().out


def test_nothing_is_left_where_nothing_can_be_resumed(text, tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise FloatingPointError("the scores overflowed")

    monkeypatch.setattr(SparseExperts, "step", fails)
    run(text, tmp_path, "--resume", wanted=2)
    output = capsys.readouterr()
    assert "step 0: the scores overflowed" in output.err and "no checkpoint" in output.out
    assert not list(tmp_path.iterdir())


def test_bad_input(text, items, corpus, tmp_path, capsys):
    def refused(message, folder, *more):
        run(folder, tmp_path, *more, wanted=2)
        output = capsys.readouterr()
        assert message in output.err and "writing contexts" not in output.out, "before any work"
        assert not [p for p in tmp_path.iterdir() if "contexts" in p.name]

    refused("n_experts must be first_experts = 2 times a power of two, got 6; use 4 or 8", text, "--n-experts", "6")
    refused("no model file", corpus)
    refused("contains no sequences file", text, "--model", str(items / "m.st"))
    other = tmp_path / "other.st"
    checkpoint.save(other, "ds-softmax", {"a": np.zeros(3)}, {})
    refused("--model must be a language model or a classifier, got a 'ds-softmax' model", text, "--model", str(other))
    sparse = [
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
        "8",
        "--fan-in",
        "4",
    ]
    assert main.main([*sparse, "--data", str(corpus), "--epochs", "1", "--save", str(other)]) == 0
    refused("--model must have a dense output layer, got 'fixed-fan-in'", corpus, "--model", str(other))
    dense = [*sparse[:8], "8", "--output", "dense", "--data", str(corpus), "--epochs", "1", "--save", str(other)]
    assert main.main(dense) == 0
    refused("but tate has 15,810;", corpus, "--model", str(other), "--data", "tate")
    with pytest.raises(SystemExit):
        main.main([*DS, "--model", str(text / "m.st")])
    assert "--save" in capsys.readouterr().err
    assert main.main([*DS, "--model", str(items / "m.st"), "--save", str(tmp_path / "ds.st")]) == 2
    error = capsys.readouterr().err
    assert (
        f"--data is needed: the file of sequences, or its folder; {items / 'm.st'} was trained on '{items.name}'"
        in error
    )
    for folder in text, corpus:  # what was trained on something else is not taken for what is bundled
        model = str(other) if folder is corpus else str(text / "m.st")
        assert main.main([*DS, "--model", model, "--save", str(tmp_path / "ds.st")]) == 2
        error = capsys.readouterr().err
        assert "--data is needed: the folder of the " in error and f"{model} was trained on '{folder.name}'" in error
    (tmp_path / "words").mkdir()
    for part in "train", "valid", "test":
        (tmp_path / "words" / f"{part}.txt").write_text(LINE * 5)
    refused(
        f"m.st was trained on '{text.name}', but 'words' has another training", text, "--data", str(tmp_path / "words")
    )


def test_labels_without_a_point_do_not_upset_it(corpus, tmp_path):
    """A classifier gives them the score -1e30; experts start from the lowest of the other biases."""
    points = data.load(corpus).train
    for part in "train", "test":
        labels = points.labels.copy()
        labels.data[labels.indices < 3] = 0
        labels.eliminate_zeros()
        data.write_xc(tmp_path / f"{part}.txt", points.features, labels)
    params = {
        "architecture": "network",
        "output": "dense",
        "embedding": 8,
        "epochs": 3,
        "device": "cpu",
        "progress": False,
    }
    train.Classifier(**params).fit(points.features, labels).save(tmp_path / "m.st")
    result = run(tmp_path, tmp_path, "--first-experts", "2", "--n-experts", "2")
    assert 0 < result["test"][0]["top-1"] <= 1 and all(np.isfinite(epoch["loss"]) for epoch in result["epochs"])
    assert np.isfinite(PackedDSSoftmax.load(tmp_path / "ds.st", device="cpu").weights).all()


def test_names_of_stages():
    assert ds_softmax.stage_file("a.b/ds.safetensors", 16) == "a.b/ds-16.safetensors"
