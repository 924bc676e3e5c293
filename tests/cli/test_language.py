"""The command line of the language model, run as a user runs it."""

import json

import numpy as np
import pytest

from sparsemax_nb.cli import main

TRAIN = [
    "train", "language-model", "--device", "cpu", "--quiet", "--width", "8", "--batch-size", "4", "--unroll", "5",
    "--n-samples", "4", "--n-codewords", "3", "--epochs", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text in Penn Treebank's format."""
    path = tmp_path_factory.mktemp("ptb")
    line = " the cat sat on the mat while a dog ran \n"
    (path / "ptb.train.txt").write_text(line * 30 + " rare words \n")
    (path / "ptb.valid.txt").write_text(line * 3)
    (path / "ptb.test.txt").write_text(line * 2 + " the bird sat \n")
    return str(path)


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    """A model file."""
    path = str(tmp_path_factory.mktemp("model") / "model.safetensors")
    assert main.main([*TRAIN, "--data", folder, "--min-count", "2", "--save", path]) == 0
    return path


def test_train_on_penn_treebanks_format(folder, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    more = ["--plot", str(tmp_path / "curves.png"), "--save", str(tmp_path / "m.safetensors"), "--json", str(figures)]
    assert main.main([*TRAIN, "--data", folder, "--min-count", "2", *more]) == 0
    result, shown = json.loads(figures.read_text()), capsys.readouterr().out
    assert (
        "333 tokens, 11 words; out of vocabulary: train 0.60%, valid 0.00%, test 3.85%" in shown and "on cpu" in shown
    )
    assert f"test  perplexity {result['test']['perplexity']:.2f}  top-1" in shown
    assert f"baseline: a unigram model  perplexity {result['baseline']['perplexity']:.2f}" in shown
    assert result["n_words"] == 11 and len(result["epochs"]) == 2 and 0 < result["output_share"] < 1
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "figures.json", "m.safetensors"]


def test_a_run_of_one_step(tmp_path):
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text("a b c d e f\n" * 3)
    assert main.main([*TRAIN, "--data", str(tmp_path), "--epochs", "1", "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text())["steps"] == 1


def test_validation_may_be_cut_short_or_left_out(folder, tmp_path):
    for n, wanted in (("0", None), ("12", 11)):
        figures = tmp_path / f"{n}.json"
        command = [*TRAIN, "--data", folder, "--validation-tokens", n, "--json", str(figures), "--sampler", "unigram"]
        assert main.main(command) == 0
        validation = json.loads(figures.read_text())["epochs"][0].get("validation")
        assert (validation and validation["tokens"]) == wanted


def test_evaluate_and_generate(folder, model, tmp_path, capsys):
    assert main.main(["evaluate", model, "--data", folder, "--device", "cpu", "--json", str(tmp_path / "e.json")]) == 0
    shown, figures = capsys.readouterr().out, json.loads((tmp_path / "e.json").read_text())
    assert "test  3.85% of the tokens are not in the model's vocabulary" in shown and figures["tokens"] == 25
    assert f"test  perplexity {figures['perplexity']:.2f}" in shown
    command = ["generate", model, "the cat", "--words", "3", "--temperature", "0", "--device", "cpu"]
    assert main.main([*command, "--json", str(tmp_path / "g.json")]) == 0
    text = json.loads((tmp_path / "g.json").read_text())["text"]
    assert capsys.readouterr().out == f"the cat {text}\n"
    assert main.main(["generate", model, "xyz", "--device", "cpu"]) == 2
    assert "got only unknown words: ['xyz']" in capsys.readouterr().err


def test_next_item(tmp_path, capsys):
    lines = ["", "i8"]  # nothing to predict in these
    lines += [" ".join(f"i{(start + n) % 9}" for n in range(length)) for start in range(9) for length in (1, 2, 5)]
    (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")
    model, figures = str(tmp_path / "m.safetensors"), tmp_path / "f.json"
    next_item = ["--task", "next-item", "--data", str(tmp_path)]
    assert main.main([*TRAIN, *next_item, "--save", model, "--json", str(figures)]) == 0
    result, shown = json.loads(figures.read_text()), capsys.readouterr().out
    assert "29 sequences, 9 items" in shown and "(18 sequences)" in shown
    assert result["test"]["Recall@10"] == 1 and 0 < result["test"]["NDCG@10"] < 1
    assert result["baseline"]["NDCG@10"] == pytest.approx(np.mean([1 / np.log2(rank + 2) for rank in range(9)]))
    assert f"the most popular items  Recall@10 100.00  NDCG@10 {100 * result['baseline']['NDCG@10']:.2f}" in shown
    assert main.main(["evaluate", model, "--data", str(tmp_path), "--device", "cpu"]) == 0
    assert f"NDCG@10 {100 * result['test']['NDCG@10']:.2f}  (18 sequences)" in capsys.readouterr().out
    assert main.main(["evaluate", model, "--device", "cpu"]) == 2
    assert "--data is needed" in capsys.readouterr().err
    assert main.main([*TRAIN, *next_item, "--validation-tokens", "5"]) == 2
    assert "--validation-tokens must be 0" in capsys.readouterr().err
    (tmp_path / "sequences.txt").write_text("i1\ni2\n")
    assert main.main([*TRAIN, *next_item]) == 2
    assert "a sequence of at least two items" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ptb.train.txt", b"", "the file is empty"),
        ("ptb.train.txt", np.random.default_rng(0).bytes(900), "is not UTF-8 text"),
        ("ptb.train.txt", b"a b\n", "more than batch_size = 4 tokens, got 3; use a smaller batch_size"),
        ("ptb.valid.txt", b"\n", "the valid part must have at least two tokens, got 1"),
        ("ptb.test.txt", None, "contains no test file"),
    ],
)
def test_bad_data(tmp_path, capsys, name, content, message):
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text("a b c d e f g h i j k l m n o p q r s t u v\n" * 2)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    assert main.main([*TRAIN, "--data", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_line_longer_than_memory_would_like(tmp_path, capsys, monkeypatch):
    from sparsemax_nb.data import readers

    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text("word " * 300)
    assert main.main([*TRAIN, "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "train.txt, line 1" in error and "longer than" in error
