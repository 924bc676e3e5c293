"""The commands for models of texts, run as a user runs them."""

import io
import json
import random
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from sparsemax_nb import data, train
from sparsemax_nb.cli import main
from sparsemax_nb.core import checkpoint

TRAIN = ["train", "classifier", "--device", "cpu", "--quiet", "--epochs", "2", "--C", "1", "--slack", "0"]
TRAIN += ["--frequency", "0"]
TOPICS = {"http://x/1": "old maps of rome", "http://x/2": "history of books", "http://x/3": "ships at sea"}
VOCABULARY = (
    "<http://x/1>\tMaps\tcharts\n<http://x/2>\tBooks\\bound\n<http://x/9>\tGardens\tgardening\n<http://x/8>\tMoons\n"
)
COLUMNS = ["row", "rank", "label", "name", "score", "probability", "points"]


@pytest.fixture(scope="module")
def corpus():
    """Texts and lists of labels."""
    draw = random.Random(0)
    found = []
    for number in range(60):
        labels = draw.sample(list(TOPICS), draw.choice([1, 1, 2]))
        found.append((" ".join(TOPICS[label] for label in labels) + f" note {number}", labels))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """The texts in three formats, a vocabulary, and models: calibrated, not calibrated, and of features."""
    path = tmp_path_factory.mktemp("texts")
    with open(path / "train.tsv", "w") as tsv, open(path / "train.jsonl", "w") as lines:
        for text, labels in corpus:
            print(text, " ".join(f"<{label}>" for label in labels), sep="\t", file=tsv)
            print(json.dumps({"body": text, "topics": labels}), file=lines)
    (path / "annif").mkdir()
    for number, (text, labels) in enumerate(corpus):
        (path / "annif" / f"{number:02}.txt").write_text(text)
        (path / "annif" / f"{number:02}.tsv").write_text("".join(f"<{label}>\tname\n" for label in labels))
    (path / "vocabulary.tsv").write_text(VOCABULARY)
    (path / "new.tsv").write_text("trains on rails\t<http://x/4>\nold trains\t<http://x/4> <http://x/1>\n")
    (path / "no_labels.tsv").write_text("a text\nanother\n")
    text = ["--text", str(path / "train.tsv"), "--vocabulary", str(path / "vocabulary.tsv")]
    assert main.main([*TRAIN, *text, "--validation", "0.2", "--save", str(path / "m.st")]) == 0
    assert main.main([*TRAIN, *text, "--no-calibration", "--save", str(path / "plain.st")]) == 0
    points = data.bag_of_words(n_rows=40, n_features=20, words_per_row=4, n_labels=6, labels_per_row=1, seed=1)
    network = {"architecture": "network", "embedding": 4, "intermediate": None, "fan_in": 2, "epochs": 1}
    model = train.Classifier(**network, device="cpu", progress=False)
    model.fit(points.features, points.labels).save(path / "features.st")
    (path / "points").mkdir()
    data.write_xc(path / "points" / "train.txt", points.features, points.labels)
    data.write_xc(path / "points" / "test.txt", points.features, points.labels)
    scipy.sparse.save_npz(path / "points.npz", points.features)
    return path


@pytest.fixture
def predict(folder, capsys):
    """Run `predict` of a model in the folder; returns the lines of standard output as fields."""

    def run(*arguments, model="m.st"):
        capsys.readouterr()
        assert main.main(["predict", str(folder / model), *map(str, arguments), "--device", "cpu"]) == 0
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    return run


class StandardInput:
    """Lines that arrive one read at a time; `asked` is called before each read."""

    def __init__(self, *reads, asked=lambda n: None):
        self._reads, self._asked, self._n = reads, asked, 0
        self.buffer = self

    def read1(self, _):
        self._asked(self._n)
        self._n += 1
        return self._reads[self._n - 1] if self._n <= len(self._reads) else b""


# ------------------------------------------------------------ train


def test_train_prints_what_it_has_read(folder, tmp_path, capsys):
    text, figures = str(folder / "train.tsv"), tmp_path / "figures.json"
    more = ["--test-text", text, "--vocabulary", str(folder / "vocabulary.tsv"), "--validation", "0.2"]
    assert main.main([*TRAIN, "--text", text, *more, "--json", str(figures)]) == 0
    shown, result = capsys.readouterr().out, json.loads(figures.read_text())
    assert shown.startswith("train.tsv: 60 texts, 3 labels; on cpu")
    assert (
        "vocabulary.tsv: 4 labels, 2 of them without texts; labels of the texts that it does not contain: 1 of 3"
        in shown
    )
    assert f"{result['n_features']:,} features, 5 labels, 2 of them known by their names only" in shown
    assert result["test"]["P@1"] == 1 and "test  P@1 100.00" in shown and "test  ECE " in shown
    assert "test  sample F1 " in shown and "macro F1 " in shown and "averaged over the labels" in shown
    assert (result["n_texts"], result["n_labels"], result["n_labels_by_name"]) == (60, 5, 2)
    assert not result["tfidf"] and result["epochs"][0]["validation"]


@pytest.mark.parametrize("source", ["train.tsv", "train.jsonl", "annif"])
def test_the_formats_of_texts_give_the_same_model(folder, tmp_path, source):
    model = tmp_path / "m.st"
    fields = ["--text-field", "body", "--labels-field", "topics"] if source == "train.jsonl" else []
    assert main.main([*TRAIN, "--text", str(folder / source), *fields, "--save", str(model)]) == 0
    found = train.Classifier.load(model, device="cpu")
    assert found.classes_.tolist() == list(TOPICS) and found.label_names_ == list(TOPICS)
    assert found.data_["name"] == source
    wanted = train.Classifier(C=1, slack=0, frequency=0, epochs=2, device="cpu", progress=False)
    corpus = data.read_texts(folder / "train.tsv")
    scores, ids = wanted.fit(corpus.texts, corpus.labels).top_k(["old ships"], 3)
    assert np.array_equal(found.top_k(["old ships"], 3), (scores, ids))


def test_without_test_texts_nothing_is_evaluated(folder, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    assert main.main([*TRAIN, "--text", str(folder / "train.tsv"), "--json", str(figures)]) == 0
    assert "test" not in json.loads(figures.read_text()) and "P@1" not in capsys.readouterr().out


def test_parameters_of_texts_and_label_sets(folder, tmp_path):
    model = tmp_path / "m.st"
    more = ["--no-word-pairs", "--char-ngrams", "0", "--hash-bits", "7", "--no-name-points", "--limit", "none"]
    more += ["--threshold", "0.25", "--validation", "0.2"]
    text = ["--text", str(folder / "train.tsv"), "--vocabulary", str(folder / "vocabulary.tsv")]
    assert main.main([*TRAIN, *text, *more, "--save", str(model)]) == 0
    found = train.Classifier.load(model, device="cpu")
    params = {name: found.get_params()[name] for name in ("word_pairs", "char_ngrams", "hash_bits", "name_points")}
    assert params == {"word_pairs": False, "char_ngrams": 0, "hash_bits": 7, "name_points": False}
    assert found.n_features_in_ == 3 << 7 and not found.name_counts_.any()
    assert (found.threshold_, found.limit_, found.threshold, found.limit) == (0.25, None, 0.25, None)
    assert main.main([*TRAIN, *text, "--limit", "2", "--threshold", "f1@5", "--save", str(model)]) == 0
    found = train.Classifier.load(model, device="cpu")
    assert (found.threshold, found.limit, found.word_pairs, found.name_points) == ("f1@5", 2, True, True)


def test_names_in_one_language_of_a_skos_file(folder, tmp_path):
    pytest.importorskip("rdflib")
    skos = tmp_path / "v.ttl"
    skos.write_text(
        "@prefix s: <http://www.w3.org/2004/02/skos/core#> .\n"
        '<http://x/1> a s:Concept ; s:prefLabel "Karten"@de, "Maps"@en .\n'
    )
    more = ["--text", str(folder / "train.tsv"), "--vocabulary", str(skos), "--language", "en"]
    assert main.main([*TRAIN, *more, "--save", str(tmp_path / "m.st")]) == 0
    assert train.Classifier.load(tmp_path / "m.st", device="cpu").label_names_[0] == "Maps"


def test_reading_many_texts_shows_progress(capsys, monkeypatch):
    monkeypatch.setattr(data.vectorizer, "TEXTS_PER_BLOCK", 4)
    model = train.Classifier(C=1, slack=0, frequency=0, epochs=1, device="cpu")
    model.fit(["old maps", "books"] * 5, [["map"], ["book"]] * 5)
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("text ")]
    assert shown == ["text 4 of 10 (40%)", "text 8 of 10 (80%)", "text 10 of 10 (100%)"]
    model.fit(["old maps", "books"] * 2, [["map"], ["book"]] * 2)
    assert "text " not in capsys.readouterr().err


# ------------------------------------------------------------ predict


def test_label_sets_with_probabilities_and_points(folder, predict, tmp_path):
    model = train.Classifier.load(folder / "m.st", device="cpu")
    texts = ["old maps of rome, and ships at sea", "gardening", "zzz"]
    answers = tmp_path / "answers.json"
    header, *lines = predict(*texts, "--json", answers)
    assert header == COLUMNS
    sets, probabilities = model.predict(texts), model.predict_proba(texts, k=5).toarray()
    scores = model.decision_function(texts)
    assert sets[0] and sets[1][0] == "http://x/9"
    assert [(int(row), label) for row, _, label, *_ in lines] == [(i, label) for i, s in enumerate(sets) for label in s]
    for row, _, label, name, score, probability, points in lines:
        i = model.classes_.tolist().index(label)
        assert name == model.label_names_[i].replace("\\", "\\\\") and int(points) == model.label_counts_[i]
        assert np.float32(score) == scores[int(row), i]
        assert np.float32(probability) == probabilities[int(row), i] >= model.threshold_
    assert {line[-1] for line in lines if line[2] == "http://x/9"} == {"0"}, "it is known by its name only"
    found = json.loads(answers.read_text())
    assert [[label["label"] for label in row] for row in found] == sets
    assert found[1][0] | {"score": 0, "probability": 0} == {
        "label": "http://x/9", "name": "Gardens", "score": 0, "probability": 0, "points": 0
    }  # fmt: skip


def test_a_row_without_labels(predict):
    assert predict("zzz", "--threshold", "1") == [COLUMNS]
    assert predict("zzz", "--threshold", "1", "--format", "json-lines") == [['{"row": 0, "labels": []}']]


def test_options_of_label_sets(folder, predict, tmp_path):
    model, text = train.Classifier.load(folder / "m.st", device="cpu"), "old maps, and books"

    def labels(*options):
        return [line[2] for line in predict(text, *options)[1:]]

    assert labels("--threshold", "0") == model.predict([text], threshold=0)[0]
    assert labels("--threshold", "0", "--limit", "2") == model.predict([text], threshold=0, limit=2)[0]
    assert labels("--threshold", "1") == []
    assert labels("-k", "2") == model.predict([text], k=2)[0].tolist()
    some = tmp_path / "some.txt"
    some.write_text("<http://x/9>\tGardens\n\nhttp://x/3\n")
    listed = ["http://x/9", "http://x/3"]
    assert set(labels("-k", "5", "--allow", str(some))) == set(listed)
    assert labels("-k", "3", "--forbid", str(some)) == model.predict([text], k=3, forbid=listed)[0].tolist()
    weighted = predict(text, "-k", "5", "--label-weights", "inverse-propensity")[1:]
    scores, ids = model.top_k([text], 5, label_weights="inverse-propensity")
    assert [line[2] for line in weighted] == model.classes_[ids[0]].tolist()
    assert [np.float32(line[4]) for line in weighted] == scores[0].tolist()
    plain = {line[2]: line[5] for line in predict(text, "-k", "5")[1:]}
    for line in weighted:
        assert float(line[5]) == pytest.approx(float(plain[line[2]]), abs=0.02), "the probability is not weighted"


def test_a_model_without_calibration(folder, predict):
    lines = predict("old maps", "books", model="plain.st")
    model = train.Classifier.load(folder / "plain.st", device="cpu")
    assert len(lines) == 1 + 2 * 5 and all(line[5] == "" for line in lines[1:])
    assert [line[2] for line in lines[1:]] == model.classes_[model.top_k(["old maps", "books"], 5)[1]].ravel().tolist()
    found = [json.loads(line[0]) for line in predict("old maps", "--format", "json-lines", model="plain.st")]
    assert found[0]["row"] == 0 and found[0]["labels"][0]["probability"] is None


def test_files_folders_and_texts_in_one_call(folder, predict, tmp_path):
    (tmp_path / "two.tsv").write_text("old maps\tany label\nbooks\n")
    (tmp_path / "one.jsonl").write_text('{"body": "ships at sea", "labels": 3}\n')
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("history of\nbooks")
    sources = [tmp_path / "two.tsv", "gardening", tmp_path / "one.jsonl", tmp_path / "corpus", "--text-field", "body"]
    lines = predict(*sources, "-k", "1")
    assert [(line[0], line[2][-1]) for line in lines[1:]] == [
        ("0", "1"),
        ("1", "2"),
        ("2", "9"),
        ("3", "3"),
        ("4", "2"),
    ]
    assert [line[0] for line in predict(*sources, "-k", "1", "--rows", "3")[1:]] == ["0", "1", "2"]


def test_standard_input_is_answered_line_by_line(folder, monkeypatch):
    written, seen = io.BytesIO(), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))  # only what has been flushed arrives

    def asked(_):
        seen.append([(line["row"], len(line["labels"])) for line in map(json.loads, written.getvalue().splitlines())])

    reads = b"\xef\xbb\xbfold maps\tlabel\n\nships\n \n", b"boo", b"ks\n\xc2\xa0\nhis", b"tory"
    monkeypatch.setattr(sys, "stdin", StandardInput(*reads, asked=asked))
    command = ["predict", str(folder / "m.st"), "-", "-k", "1", "--format", "json-lines", "--device", "cpu"]
    assert main.main(command) == 0
    assert seen == [[], [(0, 1), (1, 1)], [(0, 1), (1, 1)], [(0, 1), (1, 1), (2, 1)], [(0, 1), (1, 1), (2, 1)]]
    rows = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [row["labels"][0]["label"][-1] for row in rows] == ["1", "3", "2", "2"]


def test_the_table_starts_before_the_first_line_is_read(folder, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))
    seen = []
    monkeypatch.setattr(sys, "stdin", StandardInput(b"maps\n", asked=lambda n: seen.append(written.getvalue())))
    assert main.main(["predict", str(folder / "m.st"), "-", "-k", "1", "--device", "cpu"]) == 0
    assert seen[0].decode().split() == COLUMNS and seen[1].decode().splitlines()[1].startswith("0\t1\thttp://x/1\tMaps")


def test_json_lines_on_standard_input(folder, predict, monkeypatch):
    reads = b'{"body": "books", "labels": 3}\n', b'{"body": "ships"}\n'
    monkeypatch.setattr(sys, "stdin", StandardInput(*reads))
    lines = predict("-", "--json-lines", "--text-field", "body", "-k", "1")
    assert [line[2] for line in lines[1:]] == ["http://x/2", "http://x/3"]
    monkeypatch.setattr(sys, "stdin", StandardInput(*reads))
    assert len(predict("-", "--json-lines", "--text-field", "body", "-k", "1", "--rows", "1")) == 2


def test_labels_of_a_model_of_features_are_numbers(folder, predict, tmp_path):
    some = tmp_path / "some.txt"
    some.write_text("4\n2\n")
    lines = predict(folder / "points.npz", "--rows", "2", "--allow", some, model="features.st")
    assert [line[0] for line in lines[1:]] == ["0", "0", "1", "1"] and {line[2] for line in lines[1:]} == {"2", "4"}
    rows = predict(folder / "points.npz", "--rows", "1", "-k", "1", "--format", "json-lines", model="features.st")
    assert isinstance(json.loads(rows[0][0])["labels"][0]["label"], int)


# ------------------------------------------------------------ evaluate


def test_evaluate_texts(folder, tmp_path, capsys):
    model, text = train.Classifier.load(folder / "m.st", device="cpu"), tmp_path / "test.tsv"
    text.write_text(
        "old maps\t<http://x/1> <http://x/7>\nbooks\thttp://x/2\nold maps and ships\thttp://x/7\thttp://x/1\n"
    )
    figures, table = tmp_path / "figures.json", tmp_path / "labels.tsv"
    command = ["evaluate", str(folder / "m.st"), "--text", str(text), "--device", "cpu"]
    assert main.main([*command, "--json", str(figures), "--per-label", str(table)]) == 0
    captured = capsys.readouterr()
    assert "1 of the 3 labels are unknown to the model; their 2 occurrences count as missed" in captured.out
    assert "ms per text" in captured.out and "was trained on these texts" not in captured.err
    corpus = data.read_texts(text)
    wanted = model.evaluate(corpus.texts, corpus.labels)
    result = json.loads(figures.read_text())
    for name in ("P@1", "R@3", "sample F1", "micro F1", "macro F1", "ECE"):
        assert result[name] == wanted[name]
        assert f"{name} {100 * wanted[name]:.2f}" in captured.out
    header, *lines = (line.split("\t") for line in table.read_text().splitlines())
    assert header == ["label", "name", "points", "support", "predicted", "hits", "precision", "recall", "f1"]
    lines = {line[0]: line[1:] for line in lines}
    sets = model.predict(corpus.texts)
    assert list(lines)[:2] == ["http://x/1", "http://x/7"] and lines["http://x/1"][0] == "Maps"
    assert lines["http://x/7"] == ["http://x/7", "0", "2", "0", "0", "0.0000", "0.0000", "0.0000"]
    assert lines["http://x/2"][0] == "Books\\\\bound"
    for label, line in lines.items():
        true = [label in row for row in corpus.labels]
        found = [label in row for row in sets]
        assert list(map(int, line[2:5])) == [sum(true), sum(found), sum(map(min, true, found))]
    assert float(np.mean([float(line[-1]) for line in lines.values()])) == pytest.approx(wanted["macro F1"], abs=1e-4)
    assert main.main([*command, "--label-weights", "inverse-propensity", "--json", str(figures)]) == 0
    wanted = model.evaluate(corpus.texts, corpus.labels, label_weights="inverse-propensity")
    assert json.loads(figures.read_text())["PSP@1"] == wanted["PSP@1"]


def test_evaluating_on_the_training_texts_is_noted(folder, capsys):
    assert main.main(["evaluate", str(folder / "m.st"), "--text", str(folder / "train.tsv"), "--device", "cpu"]) == 0
    assert "the model was trained on these texts" in capsys.readouterr().err


def test_excluded_pairs_are_not_evaluated(folder, tmp_path):
    corpus = tmp_path / "points"
    corpus.mkdir()
    points = data.load(folder / "points").test
    for part in ("train", "test"):
        data.write_xc(corpus / f"{part}.txt", points.features, points.labels)
    model = train.Classifier.load(folder / "features.st", device="cpu")
    best = model.top_k(points.features, 1)[1].ravel()
    (corpus / "filter_labels_test.txt").write_text("".join(f"{row} {label}\n" for row, label in enumerate(best)))
    figures, table = tmp_path / "figures.json", tmp_path / "labels.tsv"
    command = ["evaluate", str(folder / "features.st"), "--data", str(corpus), "--device", "cpu"]
    assert main.main([*command, "--json", str(figures), "--per-label", str(table)]) == 0
    ids, labels = model.top_k(points.features, 2)[1], points.labels.tolil()
    labels[np.arange(len(best)), best] = 0
    wanted = np.mean([labels[row, label] for row, label in enumerate(ids[:, 1])])
    result = json.loads(figures.read_text())
    assert result["P@1"] == pytest.approx(wanted)
    assert result["R@3"] != model.evaluate(points.features, points.labels)["R@3"]
    lines = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    assert sum(int(line[3]) for line in lines) == labels.tocsr().count_nonzero()
    train_figures = tmp_path / "train.json"
    options = ["--architecture", "network", "--embedding", "4", "--intermediate", "0", "--fan-in", "2", "--epochs", "1"]
    command = ["train", "classifier", "--device", "cpu", "--quiet", "--data", str(corpus), *options]
    assert main.main([*command, "--json", str(train_figures)]) == 0
    assert json.loads(train_figures.read_text())["test"]["R@3"] == result["R@3"], "the same model, and the same pairs"


# ------------------------------------------------------------ update


def test_update_adds_and_removes_labels(folder, predict, tmp_path, capsys):
    retire, new, names = tmp_path / "retire.txt", tmp_path / "new.st", tmp_path / "names.tsv"
    retire.write_text("<http://x/3>\tShips\n")
    names.write_text("http://x/4\tRailways\nhttp://x/6\tHarbors\n")
    command = ["update", str(folder / "m.st"), "--text", str(folder / "new.tsv"), "--retire", str(retire), "--quiet"]
    figures = tmp_path / "figures.json"
    more = ["--vocabulary", str(names), "--save", str(new), "--device", "cpu", "--json", str(figures)]
    assert main.main([*command, *more]) == 0
    shown, result = capsys.readouterr().out, json.loads(figures.read_text())
    assert (
        "retired labels: 1" in shown and "new texts: 2, new labels: 2; in total 50 training points, 7 labels" in shown
    )
    assert (result["texts"], result["retired"], result["new_labels"], result["n_labels"]) == (2, 1, 2, 7)
    model = train.Classifier.load(new, device="cpu")
    assert model.classes_.tolist()[-2:] == ["http://x/4", "http://x/6"] and model.label_names_[-2:] == [
        "Railways",
        "Harbors",
    ]
    assert model.calibration_ is not None
    lines = predict("old trains", "ships at sea", "harbors", "-k", "6", model=new)
    best = {line[0]: line[2] for line in lines if line[1] == "1"}
    assert best["0"] == "http://x/4" and best["2"] == "http://x/6"
    assert "http://x/3" not in [line[2] for line in lines if line[0] == "1"]
    assert main.main(["update", str(new), "--retire", str(retire), "--save", str(tmp_path / "n2.st")]) == 0


def test_the_examples_in_the_documentation(corpus, tmp_path, monkeypatch, capsys):
    section = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text().split("## Texts and label names")[1]
    commands = re.findall("^    (.*sparsemax-nb .*)$", section.split("\n## ")[0], re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"text": text, "labels": labels}) + "\n" for text, labels in corpus)
    for name in ("corpus.jsonl", "test.jsonl", "new.jsonl"):
        Path(name).write_text(lines)
    Path("vocabulary.tsv").write_text(VOCABULARY)
    Path("retired.txt").write_text("http://x/3\n")
    Path("titles.txt").write_text("old maps\nbooks\n")
    for command in commands:
        monkeypatch.setattr(sys, "stdin", StandardInput(Path("titles.txt").read_bytes()))
        arguments = shlex.split(command.split("sparsemax-nb ")[1], comments=True)
        assert main.main([*arguments, "--device", "cpu"]) == 0, command
    assert len(commands) >= 8 and {"train", "evaluate", "predict", "update"} == {
        command.split("sparsemax-nb ")[1].split()[0] for command in commands
    }
    shown = capsys.readouterr().out
    assert '{"row": 1, "labels": [{"label": "http://x/2", "name": "Books' in shown
    objects = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    assert list(objects[0]["labels"][0]) == re.findall(r'"(\w+)": \.\.\.', section)[1:]


# ------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train classifier --text DIR/none.tsv", "none.tsv"),
        ("train classifier --text DIR/no_labels.tsv", "must have texts with labels, but no text has a label"),
        ("train classifier --text DIR/train.jsonl", "the field 'text' is missing; the fields are 'body', 'topics'"),
        ("train classifier --text DIR/train.jsonl --text-field body", "see --labels-field"),
        ("train classifier --text DIR/latin.tsv", "latin.tsv, line 2: byte 0xe9 in column 2 is not UTF-8 text"),
        ("train classifier --text DIR/x.csv", "x.csv: .csv files are not supported"),
        ("train classifier --text DIR/train.tsv --vocabulary DIR/none.tsv", "none.tsv"),
        ("train classifier --text DIR/train.tsv --language en", "--language needs --vocabulary FILE"),
        ("train classifier --vocabulary DIR/vocabulary.tsv", "--vocabulary needs --text FILE"),
        ("train classifier --test-text DIR/train.tsv", "--test-text needs --text FILE"),
        ("train classifier --text DIR/train.tsv --save DIR/train.tsv", "--save and --text must be different files"),
        ("train classifier --text DIR/train.tsv --hash-bits 40", "hash_bits must be between 1 and 28, got 40"),
        ("train classifier --text DIR/train.tsv --embedding 3", "embedding must keep its default"),
        ("evaluate DIR/m.st", "--text FILE is needed instead of --data: DIR/m.st is a model of texts"),
        ("evaluate DIR/m.st --data tate", "--text FILE is needed instead of --data"),
        ("evaluate DIR/m.st --data tate --text DIR/new.tsv", "--text and --data or --part must not be given together"),
        ("evaluate DIR/m.st --text DIR/no_labels.tsv", "no text has a label"),
        ("evaluate DIR/features.st --text DIR/new.tsv", "--text needs a model of texts, but DIR/features.st expects"),
        ("evaluate DIR/m.st --text DIR/new.tsv --per-label DIR/new.tsv", "--per-label and --text must be different"),
        ("predict DIR/features.st old_maps", "there is no such file; the model expects features, not texts"),
        ("predict DIR/features.st -", "DIR/features.st expects one file with 20 features per point, got '-'"),
        ("predict DIR/features.st a b", "got 'a' 'b'; texts need a model that was trained with --text"),
        ("predict DIR/m.st DIR/points.npz", "points.npz contains features, but the model expects texts"),
        ("predict DIR/m.st nothing.tsv", "nothing.tsv cannot be read: there is no such file"),
        ("predict DIR/m.st DIR/latin.tsv", "is not UTF-8 text"),
        ("predict DIR/m.st -", "standard input contains no texts"),
        ("predict DIR/m.st maps -k 2 --threshold 0.5", "k and threshold or limit must not be given together"),
        ("predict DIR/m.st maps --threshold 2", "threshold must lie in [0, 1], got 2"),
        ("predict DIR/m.st maps -k 9", "k must be between 1 and 5"),
        ("predict DIR/plain.st maps --threshold 0.5", "threshold needs calibration"),
        ("predict DIR/m.st maps --allow DIR/none.txt", "none.txt cannot be read: there is no such file"),
        ("predict DIR/m.st maps --allow DIR/empty.txt", "empty.txt must contain labels, one per line, but it is empty"),
        ("predict DIR/m.st maps --forbid DIR/new.tsv", "new.tsv, line 1: the model has no label 'trains on rails'"),
        ("predict DIR/features.st DIR/points.npz --allow DIR/new.tsv", "; labels are numbers from 0 to 5"),
        ("update DIR/m.st --save DIR/n.st", "update needs --text FILE, --retire FILE or both"),
        ("update DIR/m.st --text DIR/new.tsv --save DIR/m.st", "--save and model must be different files"),
        ("update DIR/features.st --text DIR/new.tsv --save DIR/n.st", "update needs a linear model"),
        ("update DIR/m.st --retire DIR/new.tsv --vocabulary DIR/vocabulary.tsv --save DIR/n.st", "need --text FILE"),
        ("update DIR/m.st --retire DIR/new.tsv --save DIR/n.st", "the model has no label"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, monkeypatch, command, message):
    (folder / "latin.tsv").write_bytes("cafe\tlabel\ncaf\xe9\tlabel\n".replace("caf\xe9", "c\xe9").encode("latin-1"))
    (folder / "x.csv").write_text("a,b\n")
    (folder / "empty.txt").write_text("\n")
    monkeypatch.setattr(sys, "stdin", StandardInput(b"\n", b" \n"))
    arguments = command.replace("DIR", str(folder)).split()
    assert main.main([*arguments, "--device", "cpu"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if " on cpu (" not in line and "reading" not in line]
    assert len(error) == 1 and error[0].startswith("sparsemax-nb: ")
    assert message.replace("DIR", str(folder)) in error[0]
    assert not (folder / "n.st").exists()


def test_a_malformed_line_on_standard_input_is_named(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", StandardInput(b"maps\nships\n", b"books\nc\xe9\n"))
    assert main.main(["predict", str(folder / "m.st"), "-", "-k", "1", "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    assert "standard input, line 4: byte 0xe9" in captured.err and len(captured.out.splitlines()) == 3


def test_texts_and_data_exclude_each_other(folder, capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main([*TRAIN, "--data", "tate", "--text", str(folder / "train.tsv")])
    assert exit_.value.code == 2 and "not allowed with argument --data" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "x", "1.5", "9" * 5000, ""])
def test_limits_that_can_not_be_read(capsys, limit):
    with pytest.raises(SystemExit):
        main.main([*TRAIN, "--limit", limit])
    assert "must be a whole number of at least 1, 'auto' or 'none'" in capsys.readouterr().err


def test_options_of_classifiers_are_refused_for_a_language_model(folder, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "kind_of", lambda path: "language model")
    monkeypatch.setattr(train.LanguageModel, "kind", "language model")
    for option in (["--text", "x.tsv"], ["--per-label", "x.tsv"], ["--label-weights", "inverse-propensity"]):
        assert main.main(["evaluate", str(folder / "m.st"), *option]) == 2
        assert f"{option[0]} needs a classifier" in capsys.readouterr().err
