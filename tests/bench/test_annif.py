"""The benchmark of Annif, without Annif: the files that it gets, its definitions of metrics, rows and table."""

import json
import shutil
import sys

import numpy as np
import pytest
import scipy.sparse

from bench import annif, machine, tables
from bench.peers import annif as peer
from sparsemax_nb import data, metrics

#: Suggestions of two test documents, fewer than asked for, and the labels of these documents.
FOUND = [[3, 1], [0, 2, 4, 5, 1, 3]]
LABELS = scipy.sparse.csr_matrix([[0, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 1]], dtype=np.float32)


def ids_of(found, k):
    return np.array([row[:k] + [-1] * (k - len(row)) for row in found], np.int32)


def annif_writes(folder, found, versions):
    """A replacement of ``peer._run`` that writes the files of Annif's commands, and records the commands."""
    ids = ids_of(found, 20)
    scores = annif.annifs_metrics(ids, LABELS) | {"Documents_evaluated": len(found)}
    commands = []

    def run(python, *arguments, folder):
        if arguments[0] == "-c":
            return json.dumps(versions), 0.5
        command, given = arguments[2], dict(zip(arguments, arguments[1:], strict=False))
        commands.append(arguments[2:])
        if command == "train":
            model = folder / "data" / "projects" / arguments[-2]
            model.mkdir(parents=True)
            (model / "model").write_bytes(bytes(1000))
            (model / "omikuji-train.txt").write_bytes(bytes(50))
        elif command == "eval":
            (folder / "metrics.json").write_text(json.dumps(scores))
        elif command == "index":
            n = len((folder / arguments[4]).read_text().splitlines())
            lines = [{"results": [{"uri": f"{peer.URI}{i}", "score": 0.5} for i in row]} for row in found[:n]]
            (folder / given["--output"]).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return "", 2.0 if command == "train" else 1.0

    return run, commands


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """The folder of a small data set; rows and tables are written elsewhere."""
    folder = tmp_path / "small"
    folder.mkdir()
    texts = [f"one {part}\tb\nanother {part}\ta\tb\td\tf\n" for part in ("train", "test")]
    for part, text, rows in ("train", texts[0] + "last\tb\n", [0, 1, 0]), ("test", texts[1], [0, 1]):
        data.write_xc(folder / f"{part}_bow.txt", LABELS[rows], LABELS[rows])  # the features are not used
        (folder / f"{part}_text.tsv.xz").write_text(text)
    (folder / "labels.txt.xz").write_text("a\nb\nc\nd\ne\nf\n")
    monkeypatch.setattr(annif, "LANGUAGES", {"small": ("en", "snowball(english)")})
    monkeypatch.setattr(annif, "FOLDER", tmp_path / "rows")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return folder


def test_annif_is_skipped_or_a_row(corpus, tmp_path, monkeypatch, capsys):
    work = tmp_path / "work"
    command = ["annif-bonsai", "--data", str(corpus), "--work", str(work)]
    assert annif.main([*command, "--python", str(tmp_path / "none")]) == 2
    assert "none does not run" in capsys.readouterr().err
    with monkeypatch.context() as context:
        context.setattr(peer, "VERSIONS", "import no_such_package")
        assert annif.main([*command, "--python", sys.executable]) == 2
    assert "Annif is not installed" in capsys.readouterr().err
    run, commands = annif_writes(work, FOUND, {"annif": "1.4.3"})
    monkeypatch.setattr(peer, "_run", run)
    assert annif.main([*command, "--threads", "1"]) == 0
    assert [c[0] for c in commands] == ["load-vocab", "train", "eval", "index", "index"]
    files = work / "small" / "annif-bonsai"
    assert (files / "train.tsv").read_text().splitlines() == [
        "one train\t<http://example.org/l/1>",
        "another train\t" + " ".join(f"<http://example.org/l/{i}>" for i in (0, 1, 3, 5)),
        "last\t<http://example.org/l/1>",
    ]
    assert (
        (files / "vocabulary.tsv").read_text().startswith("<http://example.org/l/0>\ta\n<http://example.org/l/1>\tb\n")
    )
    assert "analyzer=snowball(english)\nvocab=labels\ncluster_balanced=False" in (files / "projects.cfg").read_text()
    np.testing.assert_array_equal(np.load(files / "ids.npy"), ids_of(FOUND, 20))
    row = json.loads((tmp_path / "rows" / "small" / "annif-bonsai.json").read_text())
    assert row["model_bytes"] == 1000 and row["train_seconds"] == 2
    assert row["environment"]["versions"]["annif"] == "1.4.3"
    assert row["test"]["P@1"] == 0.5 and row["test"]["nDCG@20"] == metrics.ndcg_at_k(ids_of(FOUND, 20), LABELS, 20)
    row["environment"]["other_cores"] = 2 * machine.MAX_OTHER_CORES
    (tmp_path / "rows" / "small" / "annif-bonsai.json").write_text(json.dumps(row))
    assert annif.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert "| annif-bonsai | 50.00 |" in shown and "(ignore these times): annif-bonsai." in shown
    assert "Not run: `python -m bench.annif annif-parabel --data small`" in shown
    shutil.move(corpus, corpus.with_name("unknown"))
    with pytest.raises(SystemExit):
        annif.main(["annif-bonsai", "--data", str(corpus.with_name("unknown"))])
    assert "got unknown; add its language" in capsys.readouterr().err


def test_annifs_definitions_of_the_metrics():
    """Precision divides by the suggestions that there are; NDCG by the best DCG of all labels."""
    found = annif.annifs_metrics(ids_of(FOUND, 10), LABELS)
    assert found["Precision@1"] == pytest.approx((0 + 1) / 2)
    assert found["Precision@5"] == pytest.approx((1 / 2 + 3 / 5) / 2)
    assert found["F1@5"] == pytest.approx((2 / (2 + 1) + 2 * 3 / (5 + 4)) / 2)
    gain = 1 / np.log2(np.arange(2, 12))
    assert found["NDCG"] == pytest.approx((gain[1] / gain[0] + (gain[0] + gain[3:6].sum()) / gain[:4].sum()) / 2)
    many = scipy.sparse.csr_matrix(np.ones((1, 30), np.float32))
    one = annif.annifs_metrics(np.arange(10, dtype=np.int32)[None], many)
    assert one["NDCG"] < one["NDCG@10"] == 1
    with pytest.raises(AssertionError, match="Annif's NDCG@5 is 0.5000"):
        annif.check_agreement(found | {"NDCG@5": 0.5}, ids_of(FOUND, 10), LABELS)
