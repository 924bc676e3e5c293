"""The examples: each is listed, and does what it says on a small task."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
#: {subject: words of its documents}.
SUBJECTS = {
    "cats": "cat kitten purring",
    "ships": "ship sail harbour",
    "bread": "bread flour oven",
    "stars": "star comet",
}
PROJECT = """[linear-en]
language=en
backend=sparsemax_nb
vocab=subjects
limit=3
C=1
slack=0.2
frequency=0
allow_learn=True
"""


def load(name):
    """Import an example; a test that needs what it imports skips before."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_listed():
    text = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in sorted(EXAMPLES.glob("*.py")) if f"| `{path.name}` |" not in text] == []


def uri(subject):
    return f"http://example.org/{subject}"


@pytest.fixture
def new_project(tmp_path):
    """Returns a function that reads the project of Annif anew, as each of its commands does."""
    pytest.importorskip("annif", reason="Annif is not installed: only the example needs it")
    from annif.registry import AnnifRegistry
    from annif.vocab import VocabFileTSV

    load("annif_backend")
    (tmp_path / "projects.cfg").write_text(PROJECT)
    (tmp_path / "vocabulary.tsv").write_text("".join(f"<{uri(name)}>\t{name}\n" for name in (*SUBJECTS, "rivers")))
    registries = []

    def make():
        registries.append(AnnifRegistry(str(tmp_path / "projects.cfg"), str(tmp_path / "data"), False))  # keeps its id
        return registries[-1].get_project("linear-en")

    make().vocab.load_vocabulary(VocabFileTSV(str(tmp_path / "vocabulary.tsv"), "en"))
    return make


def suggested(project, text):
    """[(URI, score)] of the suggestions, best first."""
    from annif.corpus import Document

    (found,) = project.suggest([Document(text=text)])
    return [(project.subjects[s.subject_id].uri, s.score) for s in found]


@pytest.mark.filterwarnings("default")  # Annif and what it imports warn of their own
def test_annif_backend(new_project, tmp_path):
    """Train, suggest from the saved model, learn a new subject; and the errors of a project without data."""
    from annif.corpus import DocumentFileTSV
    from annif.exception import NotInitializedException, NotSupportedException

    def corpus(name, lines):
        (tmp_path / name).write_text("".join(f"{text}\t<{uri(subject)}>\n" for text, subject in lines))
        return DocumentFileTSV(str(tmp_path / name), new_project().subjects)

    project = new_project()
    with pytest.raises(NotInitializedException, match="not trained"):
        suggested(project, "a cat")
    with pytest.raises(NotInitializedException, match="model.safetensors not found"):
        project.backend.initialize()
    with pytest.raises(NotSupportedException, match="no documents with subjects"):
        project.train(corpus("none.tsv", []))
    with pytest.raises(NotSupportedException, match="cached"):
        project.train("cached")
    lines = [
        (f"{word} number {i}", name) for name, words in SUBJECTS.items() for word in words.split() for i in range(9)
    ]
    project.train(corpus("train.tsv", lines))
    assert project.is_trained
    for name, words in SUBJECTS.items():
        found = suggested(project, words)
        assert found[0][0] == uri(name) and len(found) <= 3
        assert all(0 < score <= 1 for _, score in found)
        assert suggested(new_project(), words) == found  # loads the model
    project = new_project()
    project.learn(corpus("more.tsv", [(f"river delta estuary {i}", "rivers") for i in range(9)]))
    assert suggested(project, "river delta")[0][0] == uri("rivers")
    assert suggested(new_project(), "river delta")[0][0] == uri("rivers")


@pytest.fixture
def corpus(tmp_path):
    """A file of texts that each name a thing and a town, their labels."""
    towns = "Athens", "Boston", "Cairo", "Delhi", "Kyoto", "Lima", "London", "Oslo", "Paris", "Rome"
    things = {"map": "old maps of", "book": "books from", "ship": "ships at"}
    path = tmp_path / "corpus.tsv"
    path.write_text("".join(f"{text} {town}\t{thing}\t{town}\n" for thing, text in things.items() for town in towns))
    return path


def test_embeddings_tagger(corpus, capsys):
    """Stand-ins for embeddings: metrics of the held-out texts, and the label sets of three of them."""
    tagger = load("embeddings_tagger")
    tagger.main([str(corpus), "--smoke"])
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("3 held-out texts: P@1 ") and float(first.rpartition(" ")[2]) > 0.5 and len(rows) == 3
    for text, names in (row.split(": ") for row in rows):
        assert text.split()[-1] in names.split(", ")
    same = tagger.stand_ins(["Maps of Rome", "rome of maps", "", "ships of Rome"])
    assert (same[0] == same[1]).all() and not same[2].any() and (same[0] != same[3]).any()


def test_embeddings_tagger_takes_a_file_or_an_encoder(corpus, tmp_path, monkeypatch, capsys):
    """Embeddings that know the thing of a text, from a file and from an encoder; clear errors without them."""
    tagger = load("embeddings_tagger")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SystemExit, match="pip install sentence-transformers"):
        tagger.main([str(corpus)])
    np.save(tmp_path / "few.npy", np.ones((3, 4), np.float32))
    with pytest.raises(SystemExit, match="one row per text, 30 in all, got 3"):
        tagger.main([str(corpus), "--embeddings", str(tmp_path / "few.npy")])
    h = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    np.save(tmp_path / "h.npy", h)
    tagger.main([str(corpus), "--embeddings", str(tmp_path / "h.npy")])
    from_file = capsys.readouterr().out

    class Encoder:
        def __init__(self, name):
            assert name == "mine"

        def encode(self, texts):
            assert len(texts) == 30
            return h

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=Encoder))
    tagger.main([str(corpus), "--encoder", "mine"])
    assert capsys.readouterr().out == from_file and "3 held-out texts" in from_file
